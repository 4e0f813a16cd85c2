"""The npz cameras of IDR and NeuS: normalisation, numbering, hostile archives, and DTU."""

from __future__ import annotations

import io
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import survives_damage
from epipolar import epipolar_errors
from PIL import Image
from synthetic_rig import WORLD, rig, save_picture, write_neus

from lightfold.cameras import Lens
from lightfold.capture import Capture, Frame
from lightfold.errors import CaptureError
from lightfold.formats import neus
from lightfold.geometry import Similarity


def arrays(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "cameras_sphere.npz") as archive:
        return dict(archive)


def rewrite(folder: Path, **changes: np.ndarray | None) -> Path:
    kept = {key: value for key, value in (arrays(folder) | changes).items() if value is not None}
    np.savez(folder / "cameras_sphere.npz", **kept)
    return folder


def npy(array: np.ndarray, pickled: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=pickled)
    return buffer.getvalue()


def test_the_capture_is_the_unit_sphere_and_remembers_the_world(tmp_path: Path) -> None:
    capture = neus.read(write_neus(tmp_path, rig()))
    world_from_capture = capture.original_from_capture
    assert world_from_capture.scale == pytest.approx(WORLD.scale)
    torch.testing.assert_close(world_from_capture.rotation, WORLD.rotation, atol=1e-9, rtol=0)
    torch.testing.assert_close(world_from_capture.translation, WORLD.translation, atol=1e-9, rtol=0)
    assert capture.bounds is not None and capture.bounds.tolist() == [[-1] * 3, [1] * 3]
    # Every point of the unit sphere lies between near and far in every camera.
    sphere = torch.nn.functional.normalize(torch.randn(500, 3, dtype=torch.float64), dim=-1)
    depth = torch.stack(
        [sphere @ f.camera.forward + f.camera.cam_from_world[2, 3] for f in capture.frames if f.camera is not None]
    )
    assert capture.near is not None and capture.far is not None
    assert capture.near <= float(depth.min()) and float(depth.max()) <= capture.far
    # The file itself may be named.
    assert len(neus.read(tmp_path / "cameras_sphere.npz")) == 5


def test_masks_go_with_the_pictures(tmp_path: Path) -> None:
    write_neus(tmp_path, rig())
    for i in range(5):
        mask = save_picture(tmp_path / "mask" / f"{i:03d}.png", mode="L")
        with Image.open(mask) as levels:
            levels.paste(0, (0, 0, 9, 9))
            levels.save(mask)
    frames = neus.read(tmp_path).frames
    assert [frame.mask.name for frame in frames if frame.mask] == [f"{i:03d}.png" for i in range(5)]
    (tmp_path / "mask" / "004.png").unlink()
    capture = neus.read(tmp_path)
    assert all(frame.mask is None for frame in capture.frames) and "has 4 masks for 5 pictures" in capture.notes[0]


def test_blank_masks_bound_nothing(tmp_path: Path) -> None:
    """NeuS's script for custom captures writes them where nobody has masked anything."""
    write_neus(tmp_path, rig())
    for i in range(5):
        save_picture(tmp_path / "mask" / f"{i:03d}.png", mode="L")
    capture = neus.read(tmp_path)
    assert capture.bounds is None and capture.near is None and all(frame.mask is None for frame in capture.frames)
    assert capture.notes == ("The masks are blank, so nothing is known to bound the scene.",)
    assert capture.original_from_capture.scale == pytest.approx(WORLD.scale)
    (tmp_path / "mask/003.png").write_bytes(b"no picture")
    assert neus.read(tmp_path).bounds is not None


def test_the_matrices_of_a_known_camera(tmp_path: Path) -> None:
    """At (0, 0, -4), looking along +z with x to the right: the sphere's middle falls on the principal point."""
    pose = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4]], dtype=torch.float64)
    camera = replace(rig()[0], cam_from_world=pose)
    frame = Frame(save_picture(tmp_path / "a.png"), camera, "a.png")
    sphere = Similarity(2.0, torch.eye(3, dtype=torch.float64), torch.tensor([0.0, 0.0, 1.0]))
    neus.write(Capture(tmp_path, "transforms", (frame,)), tmp_path, sphere)
    found = arrays(tmp_path)
    fx, fy, cx, cy = camera.intrinsics.tolist()
    k = np.array([[fx, 0, cx - 0.5, 0], [0, fy, cy - 0.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(found["camera_mat_0"], k)
    np.testing.assert_allclose(found["scale_mat_0"], np.diag([2.0, 2, 2, 1]) + np.outer([0, 0, 1, 0], [0, 0, 0, 1]))
    middle = found["world_mat_0"] @ found["scale_mat_0"] @ [0, 0, 0, 1]
    np.testing.assert_allclose(middle[:2] / middle[2], [cx - 0.5, cy - 0.5])
    assert middle[2] == pytest.approx(5.0)
    np.testing.assert_allclose(found["world_mat_0"] @ found["world_mat_inv_0"], np.eye(4), atol=1e-9)
    fisheye = replace(camera, lens=Lens.OPENCV_FISHEYE, distortion=torch.zeros(4))
    with pytest.raises(CaptureError, match=r"pinholes only, and a.png has the lens OPENCV_FISHEYE"):
        neus.write(Capture(tmp_path, "transforms", (replace(frame, camera=fisheye),)), tmp_path / "to", sphere)


def test_missing_pictures_are_matched_by_number(tmp_path: Path) -> None:
    write_neus(tmp_path, rig())
    (tmp_path / "image/000001.png").unlink()
    capture = neus.read(tmp_path)
    expected = [camera.cam_from_world for i, camera in enumerate(rig()) if i != 1]
    found = [frame.camera.cam_from_world for frame in capture.frames if frame.camera is not None]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), atol=1e-9, rtol=0)
    (tmp_path / "image/000002.png").rename(tmp_path / "image/x.png")
    with pytest.raises(CaptureError, match=r"has 5 cameras and .*image has 4 pictures, whose names are not plain"):
        neus.read(tmp_path)


def test_without_normalisation_nothing_is_bounded(tmp_path: Path) -> None:
    write_neus(tmp_path, rig())
    capture = neus.read(rewrite(tmp_path, **{f"scale_mat_{i}": None for i in range(5)}))
    assert capture.bounds is None and capture.near is None and capture.original_from_capture.scale == 1
    assert "has no scale_mat" in capture.notes[0]


def test_different_normalisations_are_brought_together(tmp_path: Path) -> None:
    write_neus(tmp_path, rig())
    other = arrays(tmp_path)["scale_mat_3"]
    other[:3] *= 2
    capture = neus.read(rewrite(tmp_path, scale_mat_3=other))
    assert "different scale_mats" in capture.notes[0]
    camera = capture.frames[3].camera
    assert camera is not None
    torch.testing.assert_close(camera.cam_from_world, rig()[3].cam_from_world, atol=1e-9, rtol=0)


def test_cameras_that_cannot_be_used(tmp_path: Path) -> None:
    write_neus(tmp_path, rig())
    found = arrays(tmp_path)
    found["world_mat_0"][0, 0] = np.nan
    found["world_mat_1"][:3, :3] = 0
    # Skewed pixels, by 40 % of a pixel per row.
    found["world_mat_2"][0] += 0.4 * found["world_mat_2"][1]
    # As if the picture had been shrunk and its camera had not.
    found["world_mat_3"][0] += 50 * found["world_mat_3"][2]
    capture = neus.read(rewrite(tmp_path, **found))
    assert [frame.name for frame in capture.frames] == [f"image/00000{i}.png" for i in (2, 3, 4)]
    assert len(capture.notes) == 4
    text = " ".join(capture.notes)
    assert "holds NaN" in text and "no camera centre" in text and "skew" in text and "principal point outside" in text


@pytest.mark.parametrize("scale", [np.nan, 0.0, -1.0])
def test_a_normalisation_that_is_none(scale: float, tmp_path: Path) -> None:
    write_neus(tmp_path, rig())
    matrix = np.diag([scale, scale, scale, 1.0])
    with pytest.raises(CaptureError, match=r"scale_mat_0 of .* is not a scale, a rotation and a shift"):
        neus.read(rewrite(tmp_path, scale_mat_0=matrix))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.eye(3)), r"world_mat_0.npy: float64 of shape \(3, 3\)"),
        (npy(np.eye(4, dtype=complex)), "complex128"),
        (npy(np.array([{"a": 1}], dtype=object), pickled=True), "object of shape"),
        (npy(np.eye(4))[:144], "its end is missing"),
        (npy(np.eye(4)).replace(b"(4, 4)", b"(9999999999, 4)"), "of shape"),
        (b"", "world_mat_0.npy"),
        (b"\0" * (1 << 26), "larger than 4096 bytes"),
    ],
)
def test_hostile_members(content: bytes, message: str, tmp_path: Path) -> None:
    write_neus(tmp_path, rig())
    with zipfile.ZipFile(tmp_path / "cameras_sphere.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("world_mat_0.npy", content)
    with pytest.raises(CaptureError, match=message):
        neus.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + b"\0" * 50, npy(np.eye(4))])
def test_other_files_by_that_name(content: bytes, tmp_path: Path) -> None:
    write_neus(tmp_path, rig())
    (tmp_path / "cameras_sphere.npz").write_bytes(content)
    with pytest.raises(CaptureError, match="is not an npz of 4x4 camera matrices"):
        neus.read(tmp_path)


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    write_neus(tmp_path, rig())
    np.savez(tmp_path / "cameras_sphere.npz", poses=np.eye(4))
    with pytest.raises(CaptureError, match="has no world_mat_0"):
        neus.read(tmp_path)
    (tmp_path / "cameras_sphere.npz").unlink()
    assert not neus.sniff(tmp_path)
    with pytest.raises(CaptureError, match="has no cameras_sphere.npz"):
        neus.read(tmp_path)


def test_damaged_archives(tmp_path: Path) -> None:
    write_neus(tmp_path, rig())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        survives_damage(tmp_path / "cameras_sphere.npz", neus.read, tmp_path)


@pytest.mark.slow
def test_dtu(shared_data: Path) -> None:
    capture = neus.read(shared_data / "dtu_scan65")
    assert len(capture) == 25 and capture.notes == () and all(frame.mask is not None for frame in capture.frames)
    # Millimetres, about 60 cm in front of the first camera.
    assert capture.original_from_capture.scale == pytest.approx(164.604, abs=1e-3)
    camera = capture.frames[0].camera
    assert camera is not None
    assert camera.intrinsics.tolist() == pytest.approx([1446.165, 1441.588, 411.853, 309.785], abs=1e-2)
    errors = epipolar_errors(capture, [6, 7])
    assert len(errors) > 50 and np.median(errors) < 1 and (errors < 3).mean() > 0.8
