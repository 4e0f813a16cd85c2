"""poses_bounds.npy as it is written: rows in the order of the pictures, for those that have poses and no others."""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_rig import HEIGHT, WIDTH, rig, save_picture, world_points

from lightfold.cameras import Camera, Lens
from lightfold.capture import Capture, Frame, Points
from lightfold.errors import CaptureError, RunError
from lightfold.formats import colmap, open_capture
from lightfold.formats.llff import write

NAMES = ["images/b.png", "images/a 10.png", "images/tag/a.png", "images/a 9.png", "images/ä.png"]
IN_ORDER = ["images/a 10.png", "images/a 9.png", "images/b.png", "images/tag_a.png", "images/ä.png"]


def simple_rig() -> list[Camera]:
    return rig(cx=WIDTH / 2, cy=HEIGHT / 2, fx=36.0, fy=36.0)


def capture_of(folder: Path, cameras: list[Camera] | None = None, **changes: Any) -> Capture:
    pictures = zip(NAMES, cameras or simple_rig(), strict=True)
    frames = tuple(Frame(save_picture(folder / name), camera, name) for name, camera in pictures)
    return Capture(folder, "transforms", frames, **{"points": Points(world_points()), **changes})


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    capture = capture_of(tmp_path / "from")
    write(capture, tmp_path / "to")
    again = open_capture(tmp_path / "to")
    assert again.format == "llff" and [frame.name for frame in again.frames] == IN_ORDER
    order = [1, 3, 0, 2, 4]
    for index, after in zip(order, again.frames, strict=True):
        before = capture.frames[index]
        assert before.camera is not None and after.camera is not None and after.path.samefile(before.path)
        torch.testing.assert_close(after.camera.cam_from_world, before.camera.cam_from_world, atol=1e-12, rtol=0)
        assert after.camera.intrinsics.tolist() == before.camera.intrinsics.tolist()
        assert (after.camera.width, after.camera.height) == (WIDTH, HEIGHT)


def test_the_row_of_a_known_camera(tmp_path: Path) -> None:
    """At (0, 0, 5), looking down the world's -z with its y up: down is -y, right is +x, back is +z."""
    rotation = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    pose = torch.cat([rotation, torch.tensor([[0.0], [0.0], [5.0]], dtype=torch.float64)], dim=1)
    camera = replace(simple_rig()[0], cam_from_world=pose)
    depths = torch.linspace(1, 3, 1001, dtype=torch.float64)
    points = Points(torch.stack([0 * depths, 0 * depths, 5 - depths], dim=1))
    write(capture_of(tmp_path, [camera] * 5, points=points), tmp_path / "to")
    row = np.load(tmp_path / "to/poses_bounds.npy")[0]
    expected = [[0, 1, 0, 0, HEIGHT], [-1, 0, 0, 0, WIDTH], [0, 0, 1, 5, 36]]
    np.testing.assert_allclose(row[:15].reshape(3, 5), expected, atol=1e-12)
    np.testing.assert_allclose(row[15:], [1.002, 2.998], atol=1e-9)


def test_bounds_are_of_the_points_that_a_picture_saw(tmp_path: Path) -> None:
    xyz = world_points()
    tracks = (torch.tensor([0, 1, 2, 3, 4]), torch.tensor([0, 0, 0, 1, 1]))
    capture = capture_of(tmp_path / "from", points=Points(xyz, tracks=tracks))
    write(capture, tmp_path / "to")
    rows = np.load(tmp_path / "to/poses_bounds.npy")
    first, second = capture.frames[0].camera, capture.frames[1].camera
    assert first is not None and second is not None

    def depths(camera: Camera, points: torch.Tensor) -> np.ndarray:
        return (points @ camera.cam_from_world[2, :3] + camera.cam_from_world[2, 3]).numpy()

    np.testing.assert_allclose(rows[2, 15:], np.percentile(depths(first, xyz[:3]), [0.1, 99.9]))
    np.testing.assert_allclose(rows[0, 15:], np.percentile(depths(second, xyz[3:5]), [0.1, 99.9]))
    # The others saw nothing and get the bounds of all together.
    every = np.concatenate([depths(first, xyz[:3]), depths(second, xyz[3:5])])
    np.testing.assert_allclose(rows[[1, 3, 4], 15:], [np.percentile(every, [0.1, 99.9])] * 3)
    one = Points(xyz[:1], tracks=(torch.tensor([0]), torch.tensor([0])))
    write(replace(capture, points=one), tmp_path / "one")
    assert (np.diff(np.load(tmp_path / "one/poses_bounds.npy")[:, 15:]) > 0).all()


def test_without_points_near_and_far_serve(tmp_path: Path) -> None:
    write(capture_of(tmp_path, points=None, near=0.5, far=7.0), tmp_path / "to")
    assert np.load(tmp_path / "to/poses_bounds.npy")[:, 15:].tolist() == [[0.5, 7.0]] * 5
    behind = Points(torch.tensor([[0.0, -100.0, 0.0]], dtype=torch.float64))
    with pytest.raises(CaptureError, match="no 3-D points in front of a camera and no near and far"):
        write(capture_of(tmp_path, points=behind), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_unregistered_pictures_and_ids_with_gaps_are_no_trouble(tmp_path: Path) -> None:
    """What LLFF's own imgs2poses stops at: images of a COLMAP model missing, their ids not 1..N."""
    capture = capture_of(tmp_path)
    frames = (capture.frames[0], replace(capture.frames[1], camera=None), *capture.frames[2:])
    tracks = (torch.arange(4), torch.tensor([0, 2, 3, 4]))
    points = Points(world_points()[:4], tracks=tracks)
    colmap.write(replace(capture, frames=frames, points=points), tmp_path / "sparse/0")
    solved = open_capture(tmp_path)
    write(solved, tmp_path / "to")
    again = open_capture(tmp_path / "to")
    assert [frame.name for frame in again.frames] == [name for name in IN_ORDER if name != "images/a 10.png"]
    # Beside all pictures, rows and pictures would be mismatched without a word.
    with pytest.raises(CaptureError, match=r"holds other pictures than the 4 with poses"):
        write(solved, tmp_path)
    assert not (tmp_path / "poses_bounds.npy").exists()


def test_a_folder_that_holds_just_these_pictures_is_used(tmp_path: Path) -> None:
    capture = capture_of(tmp_path)
    flat = replace(capture, frames=tuple(frame for frame in capture.frames if "/tag/" not in frame.name))
    write(flat, tmp_path)
    (tmp_path / "copy/images").mkdir(parents=True)
    for frame in flat.frames:
        (tmp_path / "copy" / frame.name).write_bytes(frame.path.read_bytes())
    write(flat, tmp_path / "copy")
    save_picture(tmp_path / "copy/images/b.png", mode="L")
    with pytest.raises(CaptureError, match="holds other pictures"):
        write(flat, tmp_path / "copy")


def test_what_the_format_cannot_say_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cameras = simple_rig()
    with caplog.at_level(logging.WARNING):
        write(capture_of(tmp_path, cameras), tmp_path / "good")
    assert caplog.text == ""
    cameras[0] = rig()[0]
    bent = torch.tensor([0.1], dtype=torch.float64)
    cameras[1] = replace(cameras[1], lens=Lens.SIMPLE_RADIAL, distortion=bent)
    with caplog.at_level(logging.WARNING):
        write(capture_of(tmp_path, cameras), tmp_path / "bent")
    assert "2 of 5 pictures have lens distortion" in caplog.text
    cameras[2] = Camera.panorama(cameras[2].cam_from_world, WIDTH, HEIGHT)
    with pytest.raises(CaptureError, match=r"tag/a.png has the lens EQUIRECTANGULAR"):
        write(capture_of(tmp_path, cameras), tmp_path / "wide")
    with pytest.raises(CaptureError, match="no frame with a pose"):
        write(capture_of(tmp_path).select([]), tmp_path / "none")
    with pytest.raises(RunError, match="could not be written"):
        write(capture_of(tmp_path), save_picture(tmp_path / "file.png") / "to")


def test_the_file_is_the_one_that_imgs2poses_wrote(shared_data: Path, tmp_path: Path) -> None:
    """A COLMAP model of 71 images and the poses_bounds.npy that LLFF's own script made of it."""
    source = shared_data / "beer_can_video"
    shutil.copytree(source / "sparse", tmp_path / "sparse")
    (tmp_path / "images").mkdir()
    blank = save_picture(tmp_path / "images" / "0000.jpg", 720, 1280, mode="L").read_bytes()
    for name in colmap_names(tmp_path / "sparse/0/images.bin"):
        (tmp_path / "images" / name).write_bytes(blank)
    write(open_capture(tmp_path), tmp_path)
    ours, theirs = np.load(tmp_path / "poses_bounds.npy"), np.load(source / "poses_bounds.npy")
    # The script gives all pictures the focal length of the first; here each has its own.
    assert ours[0, 14] == theirs[0, 14] and np.abs(ours[:, 14] - theirs[:, 14]).max() > 10
    np.testing.assert_allclose(np.delete(ours, 14, axis=1), np.delete(theirs, 14, axis=1), atol=1e-12)


def colmap_names(images: Path) -> list[str]:
    return [name.decode() for name in re.findall(rb"[0-9]{4}\.jpg(?=\0)", images.read_bytes())]
