"""Polycam's raw data: which cameras go first, depth, and damaged camera files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import survives_damage
from PIL import Image
from synthetic_rig import HEIGHT, WIDTH, rig, save_picture, write_polycam

from lightfold.errors import CaptureError
from lightfold.formats import polycam
from lightfold.images import read_depth


def change(folder: Path, number: int, **changes: Any) -> None:
    file = folder / f"keyframes/corrected_cameras/{1000 + number}.json"
    entry = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in entry.items() if value is not None}))


def test_names_depth_and_up(tmp_path: Path) -> None:
    write_polycam(tmp_path, rig())
    (tmp_path / "keyframes/depth").mkdir()
    Image.fromarray(np.full((HEIGHT // 2, WIDTH // 2), 1250, dtype=np.uint16)).save(
        tmp_path / "keyframes/depth/1002.png"
    )
    capture = polycam.read(tmp_path)
    assert polycam.read(tmp_path / "keyframes").root == capture.root == tmp_path
    assert [frame.name for frame in capture.frames] == [f"keyframes/corrected_images/{1000 + i}.jpg" for i in range(5)]
    assert capture.up is not None and capture.up.tolist() == [0, 1, 0]
    assert [frame.depth is not None for frame in capture.frames] == [False, False, True, False, False]
    assert torch.allclose(read_depth(capture.frames[2], WIDTH, HEIGHT), torch.tensor(1.25))


def test_without_optimised_poses_those_of_arkit_are_used(tmp_path: Path) -> None:
    write_polycam(tmp_path, rig())
    (tmp_path / "keyframes/corrected_cameras").rename(tmp_path / "keyframes/cameras")
    (tmp_path / "keyframes/corrected_images").rename(tmp_path / "keyframes/images")
    capture = polycam.read(tmp_path)
    assert capture.frames[0].name == "keyframes/images/1000.jpg"
    assert "the poses are ARKit's own" in capture.notes[0]


def test_intrinsics_are_scaled_to_the_picture(tmp_path: Path) -> None:
    write_polycam(tmp_path, rig())
    save_picture(tmp_path / "keyframes/corrected_images/1000.jpg", WIDTH // 2, HEIGHT // 2)
    camera = polycam.read(tmp_path).frames[0].camera
    assert camera is not None and camera.intrinsics.tolist() == pytest.approx([18.5, 17.75, 9.15, 8.05])


def test_a_picture_that_lies_on_its_side(tmp_path: Path) -> None:
    write_polycam(tmp_path, rig())
    save_picture(tmp_path / "keyframes/corrected_images/1000.jpg", HEIGHT, WIDTH, orientation=6)
    frame = polycam.read(tmp_path).frames[0]
    assert frame.exif_rotate and frame.camera is not None and frame.camera.width == WIDTH


def test_one_bad_camera_costs_one_frame(tmp_path: Path) -> None:
    write_polycam(tmp_path, rig())
    change(tmp_path, 0, t_00=float("nan"))
    change(tmp_path, 1, fx=None)
    change(tmp_path, 2, t_00=4.0)
    (tmp_path / "keyframes/corrected_images/1003.jpg").unlink()
    capture = polycam.read(tmp_path)
    assert [frame.name[-8:] for frame in capture.frames] == ["1004.jpg"] and len(capture.notes) == 4
    (tmp_path / "keyframes/corrected_cameras/1004.json").write_text("[")
    with pytest.raises(CaptureError, match=r"no usable frame \(5 found\).*camera file is damaged: 1000, 1004"):
        polycam.read(tmp_path)


def test_other_folders_are_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "cameras").mkdir()
    (tmp_path / "images").mkdir()
    assert not polycam.sniff(tmp_path)
    with pytest.raises(CaptureError, match="is not a Polycam raw data export"):
        polycam.read(tmp_path)
    (tmp_path / "keyframes/cameras").mkdir(parents=True)
    (tmp_path / "keyframes/images").mkdir(parents=True)
    with pytest.raises(CaptureError, match=r"no usable frame \(0 found\)"):
        polycam.read(tmp_path)


def test_damaged_camera_files(tmp_path: Path) -> None:
    write_polycam(tmp_path, rig())
    survives_damage(tmp_path / "keyframes/corrected_cameras/1000.json", polycam.read, tmp_path)
