"""OpenSfM's reconstructions: lenses, points, several reconstructions, damaged JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import survives_damage
from synthetic_rig import HEIGHT, WIDTH, rig, save_picture, world_points, write_opendronemap

from lightfold.cameras import Camera, Lens
from lightfold.errors import CaptureError
from lightfold.formats import opendronemap

FILE = "opensfm/reconstruction.json"


def load(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / FILE).read_text())
    return found


def with_camera(folder: Path, **model: Any) -> Camera:
    """The first camera after keys of the shared model were replaced, or removed with None."""
    write_opendronemap(folder, rig())
    content = load(folder)
    changed = content[0]["cameras"]["v2"] | model
    content[0]["cameras"]["v2"] = {key: value for key, value in changed.items() if value is not None}
    (folder / FILE).write_text(json.dumps(content))
    camera = opendronemap.read(folder).frames[0].camera
    assert camera is not None
    return camera


def normalised(camera: Camera) -> tuple[torch.Tensor, torch.Tensor]:
    """The rig's points in the first camera, on the plane z = 1."""
    x_in_cam = world_points() @ camera.cam_from_world[:, :3].T + camera.cam_from_world[:, 3]
    return x_in_cam[:, 0] / x_in_cam[:, 2], x_in_cam[:, 1] / x_in_cam[:, 2]


def test_points_up_and_root(tmp_path: Path) -> None:
    capture = opendronemap.read(write_opendronemap(tmp_path, rig()))
    assert capture.root == tmp_path and [frame.name for frame in capture.frames] == [f"{i}.png" for i in range(5)]
    assert capture.points is not None and capture.points.xyz.tolist() == [[0.1, 0.2, 0.3]]
    assert capture.points.rgb is not None and capture.points.rgb.tolist() == [[10, 20, 30]]
    assert capture.up is not None and capture.up.tolist() == [0, 0, 1]
    assert len(opendronemap.read(tmp_path / FILE)) == 5


def test_an_opensfm_project_without_gps(tmp_path: Path) -> None:
    write_opendronemap(tmp_path, rig())
    content = load(tmp_path)
    content[0]["reference_lla"] = {"latitude": 0.0, "longitude": 0.0, "altitude": 0.0}
    (tmp_path / "reconstruction.json").write_text(json.dumps(content))
    (tmp_path / FILE).unlink()
    capture = opendronemap.read(tmp_path)
    assert capture.root == tmp_path and len(capture) == 5 and capture.up is None


def test_brown(tmp_path: Path) -> None:
    k1, k2, k3, p1, p2 = 0.03, -0.02, 0.01, 0.002, -0.003
    camera = with_camera(tmp_path, k1=k1, k2=k2, k3=k3, p1=p1, p2=p2, c_x=0.01, c_y=-0.02, focal_x=0.9, focal_y=0.8)
    x, y = normalised(camera)
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    # opensfm/src/geometry/functions.h: BrownDistortion, then an affine map and the longer side.
    distorted_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    distorted_y = y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y)
    side = max(WIDTH, HEIGHT)
    expected = torch.stack(
        [(0.9 * distorted_x + 0.01) * side + WIDTH / 2, (0.8 * distorted_y - 0.02) * side + HEIGHT / 2]
    )
    torch.testing.assert_close(camera.project(world_points())[0], expected.T, atol=1e-9, rtol=0)


def test_perspective(tmp_path: Path) -> None:
    keys = dict.fromkeys(("focal_x", "focal_y", "c_x", "c_y", "k3", "p1", "p2"))
    camera = with_camera(tmp_path, projection_type="perspective", focal=0.9, k1=0.1, k2=0.2, **keys)
    x, y = normalised(camera)
    r2 = x * x + y * y
    expected = torch.stack([x, y], dim=1) * (0.9 * (1 + 0.1 * r2 + 0.2 * r2**2))[:, None] * WIDTH
    expected += torch.tensor([WIDTH / 2, HEIGHT / 2])
    torch.testing.assert_close(camera.project(world_points())[0], expected, atol=1e-9, rtol=0)


def test_fisheye(tmp_path: Path) -> None:
    keys = dict.fromkeys(("focal_x", "focal_y", "c_x", "c_y", "k3", "p1", "p2"))
    camera = with_camera(tmp_path, projection_type="fisheye", focal=0.5, k1=0.1, k2=-0.05, **keys)
    x, y = normalised(camera)
    angle = torch.atan(torch.hypot(x, y))
    distorted = angle * (1 + 0.1 * angle**2 - 0.05 * angle**4) / torch.hypot(x, y)
    expected = torch.stack([x, y], dim=1) * distorted[:, None] * 0.5 * WIDTH + torch.tensor([WIDTH / 2, HEIGHT / 2])
    torch.testing.assert_close(camera.project(world_points())[0], expected, atol=1e-9, rtol=0)


def test_panoramas(tmp_path: Path) -> None:
    write_opendronemap(tmp_path, rig())
    content = load(tmp_path)
    content[0]["cameras"]["v2"] = {"projection_type": "spherical", "width": 64, "height": 32}
    for i in range(5):
        save_picture(tmp_path / f"images/{i}.png", 64, 32)
    (tmp_path / FILE).write_text(json.dumps(content))
    camera = opendronemap.read(tmp_path).frames[0].camera
    assert camera is not None and camera.lens is Lens.EQUIRECTANGULAR
    x_in_cam = world_points() @ camera.cam_from_world[:, :3].T + camera.cam_from_world[:, 3]
    x, y, z = x_in_cam.T
    # opensfm's SphericalCamera: longitude and latitude over 2 pi, times the longer side, from the middle.
    expected = torch.stack([torch.atan2(x, z), torch.atan2(y, torch.hypot(x, z))], dim=1) / (2 * math.pi) * 64
    expected += torch.tensor([32.0, 16.0])
    torch.testing.assert_close(camera.project(world_points())[0], expected, atol=1e-9, rtol=0)


def test_the_largest_reconstruction_is_used(tmp_path: Path) -> None:
    write_opendronemap(tmp_path, rig())
    content = load(tmp_path)
    small = content[0] | {"shots": {"0.png": content[0]["shots"]["0.png"]}}
    (tmp_path / FILE).write_text(json.dumps([small, content[0], small]))
    capture = opendronemap.read(tmp_path)
    assert len(capture) == 5
    assert capture.notes == ("Of 3 reconstructions, the one with 5 shots is used, and not 1 shots, 1 shots.",)


def test_shots_that_cannot_be_used(tmp_path: Path) -> None:
    write_opendronemap(tmp_path, rig())
    content = load(tmp_path)
    shots, cameras = content[0]["shots"], content[0]["cameras"]
    (tmp_path / "images/0.png").unlink()
    shots["1.png"]["rotation"] = [0, None, 0]
    shots["2.png"]["camera"] = "gone"
    shots["3.png"]["camera"] = "dual"
    cameras["dual"] = cameras["v2"] | {"projection_type": "dual"}
    shots["../../etc/4"] = shots["4.png"]
    (tmp_path / FILE).write_text(json.dumps(content))
    capture = opendronemap.read(tmp_path)
    assert [frame.name for frame in capture.frames] == ["4.png"]
    text = " ".join(capture.notes)
    for reason in ("not on disk", "rotation is not 3 finite", "camera is not in the file", "(dual) has no counterpart"):
        assert reason in text
    assert "listed before" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not valid JSON"),
        ("{}", "should hold a list of reconstructions"),
        ("[]", "should hold a list of reconstructions"),
        ("[1]", "should hold a list of reconstructions"),
        ("[{}]", "has no shots"),
        ('[{"shots": {}}]', "has no cameras"),
        ('[{"shots": {"a": 1}, "cameras": {}}]', "has no shots"),
        ('[{"shots": {}, "cameras": {}}]', r"no usable frame \(0 found\)"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_files_that_cannot_be_used(content: str, message: str, tmp_path: Path) -> None:
    write_opendronemap(tmp_path, rig())
    (tmp_path / FILE).write_text(content)
    with pytest.raises(CaptureError, match=message):
        opendronemap.read(tmp_path)


def test_no_file(tmp_path: Path) -> None:
    assert not opendronemap.sniff(tmp_path)
    with pytest.raises(CaptureError, match="has no opensfm/reconstruction.json and no reconstruction.json"):
        opendronemap.read(tmp_path)


def test_damaged_files(tmp_path: Path) -> None:
    survives_damage(write_opendronemap(tmp_path, rig()) / FILE, opendronemap.read, tmp_path)
