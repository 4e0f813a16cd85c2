"""transforms_SPLIT.json as they are written: the numbers by hand, and what NeRF's own loader would make of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import survives_damage
from synthetic_rig import HEIGHT, WIDTH, rig, save_picture

from lightfold.cameras import Camera
from lightfold.capture import Capture, Frame
from lightfold.errors import CaptureError
from lightfold.formats import open_capture
from lightfold.formats.blender import read, write


def capture_of(folder: Path, cameras: list[Camera] | None = None) -> Capture:
    cameras = cameras or rig(WIDTH / 2, HEIGHT / 2, 36.0, 36.0)
    frames = tuple(
        Frame(save_picture(folder / f"train/r_{i}.png", mode="RGBA"), camera, f"train/r_{i}.png", time=i / 4)
        for i, camera in enumerate(cameras)
    )
    return Capture(folder, "transforms", (*frames[:4], replace(frames[4], split="test")))


def test_the_numbers_of_a_known_camera(tmp_path: Path) -> None:
    """At (0, 0, 4), looking down the world's -z with its y up: an OpenGL camera without a rotation."""
    rotation = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    pose = torch.cat([rotation, torch.tensor([[0.0], [0.0], [4.0]], dtype=torch.float64)], dim=1)
    camera = replace(rig(WIDTH / 2, HEIGHT / 2, 20.0, 20.0)[0], cam_from_world=pose)
    write(capture_of(tmp_path, [camera] * 5), tmp_path)
    document = json.loads((tmp_path / "transforms_train.json").read_text())
    assert document["camera_angle_x"] == pytest.approx(math.radians(90), abs=1e-15)
    assert document["frames"][0]["file_path"] == "./train/r_0"
    np.testing.assert_array_equal(document["frames"][0]["transform_matrix"], np.eye(4) + _shift(4.0))
    assert "fl_x" not in document and document["aabb_scale"] == 16
    test, val = (json.loads((tmp_path / f"transforms_{name}.json").read_text()) for name in ("test", "val"))
    assert test == val and len(test["frames"]) == 1


def _shift(z: float) -> np.ndarray:
    matrix = np.zeros((4, 4))
    matrix[2, 3] = z
    return matrix


def test_angles_that_differ_stand_with_their_frames(tmp_path: Path) -> None:
    cameras = rig(WIDTH / 2, HEIGHT / 2, 36.0, 36.0)
    cameras[2] = replace(cameras[2], intrinsics=torch.tensor([50.0, 50.0, WIDTH / 2, HEIGHT / 2]))
    write(capture_of(tmp_path, cameras), tmp_path)
    document = json.loads((tmp_path / "transforms_train.json").read_text())
    angles = [frame["camera_angle_x"] for frame in document["frames"]]
    assert document["camera_angle_x"] == angles[0] and len(set(angles)) == 2
    focal = [round(float(f.camera.intrinsics[0]), 9) for f in read(tmp_path).frames if f.camera is not None]
    assert focal == [36.0, 36.0, 50.0, 36.0, 36.0]


def test_times_are_kept_and_said(tmp_path: Path) -> None:
    write(capture_of(tmp_path), tmp_path)
    capture = open_capture(tmp_path)
    assert [frame.time for frame in capture.frames] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert any("different times" in note for note in capture.notes)


def test_nothing_is_assumed_of_a_scene_that_goes_on(tmp_path: Path) -> None:
    """Cameras about 3 away and RGBA pictures look like nerf_synthetic; the file says that they are not."""
    write(capture_of(tmp_path), tmp_path)
    assert read(tmp_path).bounds is None
    for name in ("train", "val", "test"):
        document = json.loads((tmp_path / f"transforms_{name}.json").read_text())
        for key in ("aabb_scale", "applied_transform", "applied_scale"):
            document.pop(key)
        (tmp_path / f"transforms_{name}.json").write_text(json.dumps(document))
    customs = read(tmp_path)
    assert customs.bounds is not None and (customs.background, customs.near, customs.far) == ("white", 2.0, 6.0)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    capture = capture_of(tmp_path)
    with pytest.raises(CaptureError, match="no posed frame to train on"):
        write(capture.select([4]), tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_damage_is_a_sentence(tmp_path: Path) -> None:
    write(capture_of(tmp_path), tmp_path)
    survives_damage(tmp_path / "transforms_train.json", read, tmp_path, examples=25)
