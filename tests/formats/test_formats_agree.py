"""One rig written in every format projects the same points to the same pixels; open_capture tells formats apart."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_rig import (
    HEIGHT,
    WIDTH,
    WRITERS,
    colmap_model,
    ngp_document,
    opengl_matrix,
    rig,
    save_picture,
    world_points,
    write_colmap,
    write_transforms,
)

from lightfold.cameras import Camera
from lightfold.capture import Capture
from lightfold.errors import CaptureError
from lightfold.formats import FORMATS, open_capture

NAMES = [f"images/view {i}.png" for i in (1, 2, 9, 10, 11)]


def write(kind: str, folder: Path, cameras: list[Camera]) -> Path:
    if kind == "transforms":
        return write_transforms(folder, ngp_document(cameras, NAMES))
    if kind in ("colmap binary", "colmap text"):
        for name in NAMES:
            save_picture(folder / name)
        rows = colmap_model(cameras, [name.removeprefix("images/") for name in NAMES])
        write_colmap(folder / "sparse" / "0", kind == "colmap binary", *rows)
        return folder
    if kind == "blender":
        angle = 2 * math.atan(0.5 * WIDTH / float(cameras[0].intrinsics[0]))
        frames = [{"file_path": f"./train/r_{i}", "transform_matrix": opengl_matrix(c)} for i, c in enumerate(cameras)]
        for i in range(len(cameras)):
            save_picture(folder / f"train/r_{i}.png", mode="RGBA")
        (folder / "transforms_train.json").write_text(json.dumps({"camera_angle_x": angle, "frames": frames}))
        return folder
    assert kind == "llff"
    rows = []
    for i, camera in enumerate(cameras):
        save_picture(folder / f"images/{i}.png")
        right, down, forward, center = camera.world_from_cam.numpy().T
        size = [HEIGHT, WIDTH, float(camera.intrinsics[0])]
        matrix = np.stack([down, right, -forward, center, size], axis=1)
        rows.append([*matrix.ravel(), 1.0, 5.0])
    np.save(folder / "poses_bounds.npy", np.array(rows))
    return folder


def projections(capture: Capture) -> torch.Tensor:
    cameras = [frame.camera for frame in capture.frames]
    assert all(camera is not None and camera.cam_from_world.dtype == torch.float64 for camera in cameras)
    return torch.stack([camera.project(world_points())[0] for camera in cameras if camera is not None])


@pytest.mark.parametrize("kind", ["transforms", "colmap binary", "colmap text", "blender", "llff"])
def test_every_format_gives_the_same_pixels(kind: str, tmp_path: Path) -> None:
    # Blender and LLFF can say neither a principal point off the middle nor two focal lengths.
    plain = kind in ("blender", "llff")
    cameras = rig(WIDTH / 2, HEIGHT / 2, 37.0, 37.0) if plain else rig()
    capture = open_capture(write(kind, tmp_path, cameras))
    assert capture.format == kind.split()[0]
    assert len(capture) == 5
    expected = torch.stack([camera.project(world_points())[0] for camera in cameras])
    torch.testing.assert_close(projections(capture), expected, atol=1e-6, rtol=0)
    assert all(camera.project(world_points())[1].all() for camera in cameras)


@pytest.mark.parametrize("kind", WRITERS)
def test_every_program_gives_the_same_pixels(kind: str, tmp_path: Path) -> None:
    # RealityCapture has one focal length.
    cameras = rig(fx=37.0, fy=37.0) if kind == "realitycapture" else rig()
    module = importlib.import_module(f"lightfold.formats.{kind}")
    folder = WRITERS[kind](tmp_path, cameras)
    assert module.sniff(folder)
    capture = module.read(folder)
    assert (capture.format, len(capture), capture.notes) == (kind, 5, ())
    expected = torch.stack([camera.project(world_points())[0] for camera in cameras])
    torch.testing.assert_close(projections(capture), expected, atol=1e-6, rtol=0)


def test_a_capture_written_as_transforms_projects_the_same(tmp_path: Path) -> None:
    from_colmap = open_capture(write("colmap binary", tmp_path / "a", rig()))
    FORMATS["transforms"].write(from_colmap, tmp_path / "b")
    torch.testing.assert_close(projections(open_capture(tmp_path / "b")), projections(from_colmap), atol=1e-9, rtol=0)


# --- open_capture ----------------------------------------------------------------------------------------------------


def test_nothing_found_names_the_formats(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="is empty"):
        open_capture(tmp_path)
    (tmp_path / "notes.txt").touch()
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(CaptureError) as failed:
            open_capture(path)
        assert all(name in str(failed.value) for name in FORMATS if name != "photos")


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"There is nothing at .*gone"):
        open_capture(tmp_path / "gone")


def test_an_unknown_format_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"format: expected one of auto, .*transforms, .* got 'tranforms'"):
        open_capture(tmp_path, format="tranforms")


def test_a_video_is_recognised_as_one(tmp_path: Path) -> None:
    (tmp_path / "walk.MP4").write_bytes(b"\0" * 32)
    with pytest.raises(CaptureError, match="is a video"):
        open_capture(tmp_path / "walk.MP4")


def test_other_formats_in_the_same_folder_are_named(tmp_path: Path) -> None:
    cameras = rig(WIDTH / 2, HEIGHT / 2, 37.0, 37.0)
    write("transforms", tmp_path, cameras)
    write_colmap(tmp_path / "sparse/0", True, *colmap_model(cameras, [n.removeprefix("images/") for n in NAMES]))
    capture = open_capture(tmp_path)
    assert capture.format == "transforms"
    assert any("can also be read as colmap" in note for note in capture.notes)
    assert open_capture(tmp_path, format="colmap").format == "colmap"
    assert open_capture(tmp_path, format="photos").frames[0].camera is None


def test_a_relative_path_opens_the_same_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("colmap binary", tmp_path, rig())
    monkeypatch.chdir(tmp_path / "sparse" / "0")
    capture = open_capture(".")
    assert len(capture) == 5
    assert capture.root.is_absolute()
