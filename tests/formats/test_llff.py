"""poses_bounds.npy: axes, sizes, picture folders and damaged arrays."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_rig import HEIGHT, WIDTH, rig, save_picture

from lightfold.errors import CaptureError
from lightfold.formats import llff, open_capture


def rows_of_rig(focal: float = 74.0, factor: int = 2) -> np.ndarray:
    """Rows for pictures `factor` times as large as those of the rig."""
    rows = []
    for i, camera in enumerate(rig()):
        right, down, forward, center = camera.world_from_cam.numpy().T
        size = [factor * HEIGHT, factor * WIDTH, focal]
        rows.append([*np.stack([down, right, -forward, center, size], axis=1).ravel(), 1.0 + i, 5.0 + i])
    return np.array(rows)


def scene(folder: Path, pictures: str = "images_2", count: int = 5, rows: np.ndarray | None = None) -> Path:
    for i in range(count):
        save_picture(folder / pictures / f"image{i:03d}.png")
    np.save(folder / "poses_bounds.npy", rows_of_rig() if rows is None else rows)
    return folder


def test_axes_sizes_and_bounds(tmp_path: Path) -> None:
    capture = open_capture(scene(tmp_path))
    assert (capture.format, len(capture), capture.near, capture.far) == ("llff", 5, 1.0, 9.0)
    for i, (frame, truth) in enumerate(zip(capture.frames, rig(), strict=True)):
        assert frame.name == f"images_2/image{i:03d}.png" and frame.camera is not None
        torch.testing.assert_close(frame.camera.cam_from_world, truth.cam_from_world, atol=1e-12, rtol=0)
        assert frame.camera.intrinsics.tolist() == [37.0, 37.0, WIDTH / 2, HEIGHT / 2]
    assert any("normalised device coordinates suit" in note for note in capture.notes)


def test_full_size_goes_first_and_another_can_be_named(tmp_path: Path) -> None:
    scene(tmp_path, "images_8", rows=rows_of_rig(factor=1))
    scene(tmp_path, "images", rows=rows_of_rig(factor=1))
    capture = open_capture(tmp_path)
    assert capture.frames[0].path.parent.name == "images"
    assert any("--scene.downscale 8 uses them" in note for note in capture.notes)
    named = open_capture(tmp_path / "images_8")
    assert (named.format, named.frames[0].path.parent.name, named.root) == ("llff", "images_8", tmp_path)


def test_a_ring_of_cameras_is_not_forward_facing(tmp_path: Path) -> None:
    rows = rows_of_rig()
    turned = rows[2, :15].reshape(3, 5)
    turned[:, [1, 2]] *= -1
    capture = llff.read(scene(tmp_path, rows=rows))
    assert not any("device coordinates" in note for note in capture.notes)


def test_rows_that_cannot_be_used_are_left_out(tmp_path: Path) -> None:
    rows = rows_of_rig()
    rows[0, 3] = np.nan
    rows[1, 14] = -1
    rows[2, 15:] = [3, 2]
    rows[3, 15:] = np.inf
    capture = llff.read(scene(tmp_path, rows=rows))
    assert [frame.name[-5] for frame in capture.frames] == ["2", "3", "4"]
    assert capture.notes[0].startswith("2 of 5 frames were left out because their row holds NaN")
    assert (capture.near, capture.far) == (1.0, 9.0)
    rows[:, 15:] = 0
    assert llff.read(scene(tmp_path, rows=rows)).near is None


def test_counts_must_agree(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"has 5 poses and .*images_2 has 4 pictures"):
        llff.read(scene(tmp_path, count=4))


def test_smaller_copies_are_those_at_the_same_place_in_their_folder(tmp_path: Path) -> None:
    scene(tmp_path, "images")
    scene(tmp_path, "images_4")
    scene(tmp_path, "images_8", count=4)
    capture = llff.read(tmp_path)
    assert capture.frames[3].path == tmp_path / "images" / "image003.png"
    assert capture.frames[3].smaller == {4: tmp_path / "images_4" / "image003.png"}
    assert any("--scene.downscale 4 uses them" in note for note in capture.notes)
    assert llff.read(tmp_path / "images_4").frames[3].smaller == {}


def test_no_picture_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "poses_bounds.npy", rows_of_rig())
    with pytest.raises(CaptureError, match="none of the picture folders images, images_2"):
        llff.read(tmp_path)


def saved(array: np.ndarray, pickled: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=pickled)
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros((5, 17)))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a NumPy array"),
        (b"hello", "is not a NumPy array"),
        (saved(rows_of_rig())[:200], "is not a NumPy array"),
        (saved(rows_of_rig()).replace(b"(5, 17)", b"(5000000000000, 17)"), "is not a NumPy array"),
        (saved(np.array([{"a": 1}], dtype=object), pickled=True), "is not a NumPy array"),
        (zipped(), "is not a NumPy array"),
        (saved(np.zeros((5, 16))), r"should hold N x 17 numbers, but holds float64 of shape \(5, 16\)"),
        (saved(np.zeros((5, 17), dtype=complex)), "should hold N x 17 numbers, but holds complex128"),
        (saved(np.zeros((0, 17))), "has 0 poses"),
        (saved(np.zeros((5, 17))), r"no usable frame \(5 found\)"),
    ],
)
def test_damaged_arrays(content: bytes, message: str, tmp_path: Path) -> None:
    scene(tmp_path)
    (tmp_path / "poses_bounds.npy").write_bytes(content)
    with pytest.raises(CaptureError, match=message):
        llff.read(tmp_path)


def test_fern(shared_data: Path) -> None:
    capture = open_capture(shared_data / "nerf_llff_data" / "fern")
    assert (capture.format, len(capture)) == ("llff", 20)
    assert capture.frames[0].name == "images_8/image000.png"
    camera = capture.frames[0].camera
    assert camera is not None and (camera.width, camera.height) == (504, 378)
    # 3260.53 px for 4032 px of width.
    assert float(camera.intrinsics[0]) == pytest.approx(3260.52633 / 8)
    assert capture.near is not None and capture.far is not None and 10 < capture.near < 20 < 70 < capture.far < 100
    assert any("device coordinates" in note for note in capture.notes)
    forward = torch.stack([frame.camera.forward for frame in capture.frames if frame.camera is not None])
    assert bool((forward @ forward.T > 0.8).all())
