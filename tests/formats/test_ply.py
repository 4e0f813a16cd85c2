"""PLY point clouds: both encodings and byte orders, colours of both kinds, and hostile headers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_rig import ngp_document, rig, write_transforms

from lightfold.capture import Points
from lightfold.errors import CaptureError
from lightfold.formats import open_capture
from lightfold.formats.ply import read_points, write_points

XYZ = [[0.5, -1.25, 2.0], [3.0, 4.0, -5.5], [0.0, 0.0, 1e6]]
RGB = [[0, 128, 255], [1, 2, 3], [254, 0, 9]]


def binary(order: str, colour: str = "uchar") -> bytes:
    sign = "<" if order == "little" else ">"
    kinds = {"uchar": "u1", "float": sign + "f4"}
    names = ["x", "y", "z", "nx", "red", "green", "blue"]
    row = np.dtype([(n, sign + "f4" if i < 4 else kinds[colour]) for i, n in enumerate(names)])
    rows = np.zeros(3, dtype=row)
    for i in range(3):
        rows[names[i]] = np.array(XYZ)[:, i]
        rows[names[4 + i]] = np.array(RGB)[:, i] / (255 if colour == "float" else 1)
    header = (
        f"ply\r\nformat binary_{order}_endian 1.0\r\ncomment made by hand\r\nelement camera 1\r\nproperty int id\r\n"
    )
    header += "element vertex 3\r\n" + "".join(
        f"property {'float' if i < 4 else colour} {n}\r\n" for i, n in enumerate(names)
    )
    header += "element face 1\r\nproperty list uchar int vertex_indices\r\nend_header\n"
    return header.replace("\r\n", "\n").encode() + b"\0\0\0\7" + rows.tobytes() + b"\3" + b"\0" * 12


def ascii_text() -> bytes:
    lines = [
        "ply",
        "format ascii 1.0",
        "element vertex 3",
        "property double x",
        "property double y",
        "property double z",
    ]
    lines += ["property uchar red", "property uchar green", "property uchar blue", "property float error", "end_header"]
    lines += [" ".join(map(str, [*xyz, *rgb, 0.5])) for xyz, rgb in zip(XYZ, RGB, strict=True)]
    return ("\n".join(lines) + "\n").encode()


@pytest.mark.parametrize(
    "content",
    [binary("little"), binary("big"), binary("little", "float"), ascii_text()],
    ids=["little", "big", "float", "ascii"],
)
def test_positions_and_colours(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_bytes(content)
    points = read_points(tmp_path / "a.ply")
    assert points.xyz.tolist() == XYZ and points.xyz.dtype == torch.float64
    assert points.rgb is not None and points.rgb.tolist() == RGB and points.rgb.dtype == torch.uint8
    assert points.tracks is None


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    xyz = torch.rand(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rgb = torch.arange(150, dtype=torch.uint8).reshape(50, 3)
    for points in (Points(xyz, rgb, xyz[:, 0].clone()), Points(xyz), Points(xyz[:0], rgb[:0])):
        write_points(tmp_path / "a.ply", points)
        again = read_points(tmp_path / "a.ply")
        assert torch.equal(again.xyz, points.xyz)
        assert (again.rgb is None) == (points.rgb is None) and (again.error is None) == (points.error is None)
        assert points.rgb is None or (again.rgb is not None and torch.equal(again.rgb, points.rgb))
        assert points.error is None or (again.error is not None and torch.equal(again.error, points.error))


def test_points_that_are_not_finite_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_bytes(ascii_text().replace(b"3.0 4.0", b"nan 4.0"))
    points = read_points(tmp_path / "a.ply")
    assert points.xyz.tolist() == [XYZ[0], XYZ[2]]
    assert points.rgb is not None and points.rgb.tolist() == [RGB[0], RGB[2]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a PLY file"),
        (b"obj\n", "is not a PLY file"),
        (b"ply\n", "a line that is not PLY"),
        (b"ply\nend_header\n", "no complete PLY header"),
        (b"ply\nformat ascii 1.0\nend_header\n", "has no vertices"),
        (b"ply\nformat ascii 1.0\n" + b"comment x\n" * 2000, "no complete PLY header"),
        (b"ply\nformat ascii 1.0\n" + b"x" * 100_000, "a line that is not PLY"),
        (b"ply\nformat binary_middle_endian 1.0\n", "a line that is not PLY"),
        (ascii_text().replace(b"vertex 3", b"vertex -3"), "a line that is not PLY"),
        (ascii_text().replace(b"vertex 3", b"vertex 4"), "promises 4 vertices and holds 3"),
        (ascii_text().replace(b"vertex 3", b"vertex 999999999999999"), "promises 999999999999999 vertices and holds 3"),
        (ascii_text().replace(b"double z", b"double w"), "need one each of x, y, z"),
        (ascii_text().replace(b"double y", b"double x"), "need one each of x, y, z"),
        (ascii_text().replace(b"property float error", b"property list uchar int error"), "has a list"),
        (ascii_text().replace(b"-1.25", b"one"), "Vertex 0 of .* is not 7 numbers"),
        (ascii_text().replace(b"0.5 -1.25 2.0", b"0.5"), "Vertex 0 of .* is not 7 numbers"),
        (binary("little")[:-30], "is truncated: 3 vertices need 57 bytes, and"),
        (binary("big").replace(b"vertex 3", b"vertex 99999999999"), "is truncated"),
    ],
)
def test_hostile_files(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_bytes(content)
    with pytest.raises(CaptureError, match=message):
        read_points(tmp_path / "a.ply")


def test_random_damage_reads_or_fails_in_a_sentence(tmp_path: Path) -> None:
    draw = random.Random(1)
    outcomes = {True: 0, False: 0}
    for _ in range(300):
        broken = bytearray(draw.choice([binary("little"), ascii_text()]))
        for _ in range(draw.randrange(1, 4)):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        (tmp_path / "a.ply").write_bytes(broken)
        try:
            points = read_points(tmp_path / "a.ply")
        except CaptureError:
            outcomes[False] += 1
        else:
            outcomes[True] += 1
            assert bool(torch.isfinite(points.xyz).all())
    assert min(outcomes.values()) > 20


def test_a_capture_takes_its_points_and_goes_on_without_damaged_ones(tmp_path: Path) -> None:
    document = {**ngp_document(rig(), [f"{i}.png" for i in range(5)]), "ply_file_path": "cloud/sparse.ply"}
    write_transforms(tmp_path, document)
    assert open_capture(tmp_path).notes == ("The point cloud cloud/sparse.ply is not on disk.",)
    (tmp_path / "cloud").mkdir()
    (tmp_path / "cloud/sparse.ply").write_bytes(ascii_text())
    points = open_capture(tmp_path).points
    assert points is not None and points.xyz.tolist() == XYZ
    (tmp_path / "cloud/sparse.ply").write_bytes(b"ply\nformat ascii 1.0\n")
    damaged = open_capture(tmp_path)
    assert damaged.points is None and "The point cloud is ignored." in damaged.notes[0]
    assert json.loads((tmp_path / "transforms.json").read_text()) == document
