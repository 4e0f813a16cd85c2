"""Blender scenes: splits, lists longer than the folder, and when the customs of nerf_synthetic apply."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic_rig import WIDTH, opengl_matrix, rig, save_picture

from lightfold.errors import CaptureError
from lightfold.formats import blender, open_capture


def scene(folder: Path, counts: dict[str, int], mode: str = "RGBA", **changes: Any) -> Path:
    """A Blender folder with so many frames per split, cameras about 3 away from the origin."""
    cameras = rig()
    for split, count in counts.items():
        frames = []
        for i in range(count):
            save_picture(folder / split / f"r_{i}.png", mode=mode)
            matrix = opengl_matrix(cameras[i % 5])
            frames.append({"file_path": f"./{split}/r_{i}", "rotation": 0.01, "transform_matrix": matrix})
        document = {"camera_angle_x": 0.7, "frames": frames, **changes}
        (folder / f"transforms_{split}.json").write_text(json.dumps(document))
    return folder


def test_train_and_test_are_read_and_val_is_not(tmp_path: Path) -> None:
    capture = open_capture(scene(tmp_path, {"train": 11, "val": 2, "test": 3}))
    assert capture.format == "blender"
    assert [frame.split for frame in capture.frames] == ["train"] * 11 + ["test"] * 3
    names = [frame.name for frame in capture.frames]
    assert names[:3] == ["train/r_0.png", "train/r_1.png", "train/r_2.png"] and names[10] == "train/r_10.png"
    assert names[11:] == ["test/r_0.png", "test/r_1.png", "test/r_2.png"]
    assert capture.notes == ()


def test_val_on_request_and_in_place_of_test(tmp_path: Path) -> None:
    asked = blender.read(scene(tmp_path / "a", {"train": 2, "val": 2, "test": 2}), include_val=True)
    assert [frame.split for frame in asked.frames] == ["train"] * 2 + ["test"] * 2 + [None] * 2
    stand_in = blender.read(scene(tmp_path / "b", {"train": 2, "val": 3}))
    assert [frame.split for frame in stand_in.frames] == ["train"] * 2 + ["test"] * 3
    assert "the validation frames are the test split" in stand_in.notes[0]


def test_the_train_file_alone_is_enough(tmp_path: Path) -> None:
    capture = blender.read(scene(tmp_path, {"train": 4}))
    assert [frame.split for frame in capture.frames] == ["train"] * 4
    with pytest.raises(CaptureError, match=r"has no transforms_train\.json"):
        blender.read(scene(tmp_path / "b", {"test": 4}))


def test_test_pictures_that_are_absent_are_dropped_with_a_note(tmp_path: Path) -> None:
    scene(tmp_path, {"train": 2, "test": 9})
    for i in range(1, 9):
        (tmp_path / f"test/r_{i}.png").unlink()
    capture = blender.read(tmp_path)
    assert [frame.name for frame in capture.frames] == ["train/r_0.png", "train/r_1.png", "test/r_0.png"]
    assert capture.notes[0].startswith("8 of 9 test frames were left out because the picture is not on disk: test/r_1")


def test_no_training_picture_is_an_error(tmp_path: Path) -> None:
    scene(tmp_path, {"train": 1, "test": 1})
    (tmp_path / "train/r_0.png").unlink()
    with pytest.raises(CaptureError, match=r"No frame of .*transforms_train.json can be used. 1 of 1 train frames"):
        blender.read(tmp_path)
    (tmp_path / "test/r_0.png").unlink()
    with pytest.raises(CaptureError, match=r"no usable frame \(2 found\)"):
        blender.read(tmp_path)


def test_customs_of_nerf_synthetic(tmp_path: Path) -> None:
    capture = blender.read(scene(tmp_path, {"train": 5}))
    assert (capture.background, capture.near, capture.far) == ("white", 2.0, 6.0)
    assert capture.bounds is not None and capture.bounds.tolist() == [[-1.5] * 3, [1.5] * 3]
    camera = capture.frames[0].camera
    assert camera is not None
    assert float(camera.intrinsics[0]) == pytest.approx(0.5 * WIDTH / math.tan(0.35))
    assert camera.intrinsics[0] == camera.intrinsics[1]


@pytest.mark.parametrize(("mode", "changes"), [("RGB", {}), ("RGBA", {"fl_x": 50.0})])
def test_other_renders_get_no_customs(mode: str, changes: dict[str, Any], tmp_path: Path) -> None:
    capture = blender.read(scene(tmp_path, {"train": 5}, mode, **changes))
    assert (capture.background, capture.near, capture.far, capture.bounds) == (None, None, None, None)
    assert "not laid out like nerf_synthetic" in capture.notes[0]


def test_cameras_far_away_get_no_customs(tmp_path: Path) -> None:
    scene(tmp_path, {"train": 5})
    file = tmp_path / "transforms_train.json"
    document = json.loads(file.read_text())
    for frame in document["frames"]:
        for row in frame["transform_matrix"][:3]:
            row[3] *= 10
    file.write_text(json.dumps(document))
    assert blender.read(tmp_path).bounds is None


def test_lego(shared_data: Path) -> None:
    capture = open_capture(shared_data / "nerf_synthetic" / "lego")
    assert (capture.format, capture.background, capture.near, capture.far) == ("blender", "white", 2.0, 6.0)
    assert [frame.split for frame in capture.frames] == ["train"] * 100 + ["test"] * 25
    for frame in capture.frames:
        camera = frame.camera
        assert camera is not None and (camera.width, camera.height) == (800, 800)
        assert float(camera.center.norm()) == pytest.approx(4.0311, abs=1e-3)
        # The bulldozer stands at the origin, which every camera has in the middle of its picture.
        xy, valid = camera.project(torch.zeros(1, 3, dtype=torch.float64))
        assert bool(valid) and xy[0].tolist() == pytest.approx([400, 400], abs=0.01)
