"""meta_data.json by its specification, what it may lack, and what strangers put into it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import survives_damage
from synthetic_rig import HEIGHT, WIDTH, rig, save_picture, world_points

from lightfold.capture import Capture
from lightfold.errors import CaptureError
from lightfold.formats import open_capture
from lightfold.formats.sdfstudio import read, sniff


def write_meta(folder: Path, **changes: Any) -> Path:
    frames = []
    for i, camera in enumerate(rig()):
        save_picture(folder / f"{i:06d}_rgb.png")
        fx, fy, cx, cy = camera.intrinsics.tolist()
        frames.append(
            {
                "rgb_path": f"{i:06d}_rgb.png",
                "camtoworld": [*camera.world_from_cam.tolist(), [0, 0, 0, 1]],
                "intrinsics": [[fx, 0, cx, 0], [0, fy, cy, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
                "mono_depth_path": f"{i:06d}_depth.npy",
            }
        )
    document = {
        "camera_model": "OPENCV",
        "height": HEIGHT,
        "width": WIDTH,
        "has_mono_prior": True,
        "pairs": None,
        "worldtogt": [[2.0, 0, 0, 5], [0, 2.0, 0, 6], [0, 0, 2.0, 7], [0, 0, 0, 1]],
        "scene_box": {"aabb": [[-1, -1, -1], [1, 1, 1]], "near": 0.5, "far": 4.5, "collider_type": "near_far"},
        "frames": frames,
        **changes,
    }
    (folder / "meta_data.json").write_text(json.dumps(document))
    return folder


def with_masks(folder: Path) -> None:
    document = json.loads((folder / "meta_data.json").read_text())
    for i, frame in enumerate(document["frames"]):
        frame["foreground_mask"] = save_picture(folder / f"{i:06d}_foreground_mask.png", mode="L").name
    (folder / "meta_data.json").write_text(json.dumps(document))


def test_points_fall_where_the_rig_sees_them(tmp_path: Path) -> None:
    assert sniff(write_meta(tmp_path)) and sniff(tmp_path / "meta_data.json") and not sniff(tmp_path / "x")
    capture = open_capture(tmp_path)
    assert (capture.format, len(capture), capture.notes) == ("sdfstudio", 5, ())
    for frame, camera in zip(capture.frames, rig(), strict=True):
        assert frame.camera is not None and frame.depth is None
        torch.testing.assert_close(
            frame.camera.project(world_points())[0], camera.project(world_points())[0], atol=1e-6, rtol=0
        )
    assert capture.original_from_capture.apply(torch.ones(3)).tolist() == pytest.approx([7, 8, 9])


def test_only_masks_make_the_box_a_bound(tmp_path: Path) -> None:
    free = read(write_meta(tmp_path))
    assert free.bounds is None and free.near is None
    with_masks(tmp_path)
    capture = read(tmp_path)
    assert capture.bounds is not None and capture.bounds.tolist() == [[-1.0] * 3, [1.0] * 3]
    assert (capture.near, capture.far) == (0.5, 4.5)
    assert all(frame.mask is not None and frame.mask_is_alpha for frame in capture.frames)


def test_sensor_depth_is_in_the_frame_of_the_file(tmp_path: Path) -> None:
    write_meta(tmp_path)
    document = json.loads((tmp_path / "meta_data.json").read_text())
    document["frames"][1]["sensor_depth_path"] = "d.npy"
    document["frames"][2]["sensor_depth_path"] = "gone.npy"
    np.save(tmp_path / "d.npy", np.ones((HEIGHT, WIDTH), dtype=np.float32))
    (tmp_path / "meta_data.json").write_text(json.dumps(document))
    capture = read(tmp_path)
    assert capture.frames[1].depth == tmp_path / "d.npy" and capture.frames[1].depth_scale == 1.0
    assert any("sensor_depth_path that is not on disk" in note for note in capture.notes)


def test_one_bad_frame_stops_nobody(tmp_path: Path) -> None:
    write_meta(tmp_path)
    document = json.loads((tmp_path / "meta_data.json").read_text())
    document["frames"][0]["camtoworld"][0][0] = float("nan")
    document["frames"][1]["intrinsics"][0][0] = -1
    del document["frames"][2]["camtoworld"]
    document["frames"][3]["rgb_path"] = "../../../../etc/hostname"
    (tmp_path / "meta_data.json").write_text(json.dumps(document))
    capture = read(tmp_path)
    assert len(capture) == 1 and len(capture.notes) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 3}, "'frames' of .*meta_data.json should be a list of objects"),
        ({"frames": []}, "no usable frame"),
        ({"frames": [{}]}, "'rgb_path' of frame 0"),
        ({"width": "wide"}, "'width' of .* should be a number"),
        ({"worldtogt": 1}, "'worldtogt' of .* should be a"),
    ],
)
def test_the_field_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=message):
        read(write_meta(tmp_path, **changes))


def test_a_scene_box_of_the_wrong_kind_is_named(tmp_path: Path) -> None:
    with_masks(write_meta(tmp_path, scene_box=[1, 2]))
    with pytest.raises(CaptureError, match="'scene_box'"):
        read(tmp_path)


def test_damage_is_a_sentence(tmp_path: Path) -> None:
    with_masks(write_meta(tmp_path))

    def opened(path: Path) -> Capture:
        return read(path)

    survives_damage(tmp_path / "meta_data.json", opened, tmp_path)
