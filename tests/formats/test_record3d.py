"""Record3D exports: layouts, intrinsics, depth, damaged metadata, and a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import survives_damage
from epipolar import epipolar_errors
from synthetic_rig import HEIGHT, WIDTH, rig, save_picture, write_record3d

from lightfold import exr
from lightfold.errors import CaptureError
from lightfold.formats import record3d

METADATA = "EXR_RGBD/metadata.json"


def change(folder: Path, **changes: Any) -> Path:
    """Keys of metadata.json replaced, or removed with None."""
    document = json.loads((folder / METADATA).read_text()) | changes
    (folder / METADATA).write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
    return folder


def poses(folder: Path) -> list[list[float]]:
    found: list[list[float]] = json.loads((folder / METADATA).read_text())["poses"]
    return found


def test_the_folder_may_be_named_from_outside_or_inside(tmp_path: Path) -> None:
    write_record3d(tmp_path, rig())
    outside, inside = record3d.read(tmp_path), record3d.read(tmp_path / "EXR_RGBD")
    assert outside.root == inside.root == tmp_path / "EXR_RGBD"
    assert [frame.name for frame in outside.frames] == [f"rgb/{i}.png" for i in range(5)]
    assert [frame.time for frame in outside.frames] == pytest.approx([i / 60 for i in range(5)])
    assert outside.up is not None and outside.up.tolist() == [0, 1, 0]
    assert not record3d.sniff(tmp_path / "EXR_RGBD" / "rgb")
    with pytest.raises(CaptureError, match="is not a Record3D export"):
        record3d.read(tmp_path / "EXR_RGBD" / "rgb")


def test_intrinsics_follow_the_picture_and_the_frame(tmp_path: Path) -> None:
    write_record3d(tmp_path, rig())
    save_picture(tmp_path / "EXR_RGBD/rgb/1.png", 2 * WIDTH, 2 * HEIGHT)
    own = [[30.0 + i, 31.0, 20.0, 15.0] for i in range(5)]
    first, second = record3d.read(tmp_path).frames[:2]
    assert first.camera is not None and second.camera is not None
    assert second.camera.intrinsics.tolist() == pytest.approx([2 * v for v in first.camera.intrinsics.tolist()])
    frames = record3d.read(change(tmp_path, perFrameIntrinsicCoeffs=own)).frames
    assert [float(frame.camera.intrinsics[0]) for frame in frames if frame.camera is not None] == [30, 62, 32, 33, 34]
    # Rows instead of columns, as others write it.
    rows = change(tmp_path, perFrameIntrinsicCoeffs=None, K=[37.0, 0, 18.3, 0, 35.5, 16.1, 0, 0, 1])
    again = record3d.read(rows).frames[0].camera
    assert again is not None and torch.equal(again.intrinsics, first.camera.intrinsics)


def test_frames_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    write_record3d(tmp_path, rig())
    (tmp_path / "EXR_RGBD/rgb/0.png").unlink()
    rows: list[Any] = poses(tmp_path)
    rows[1][3] = float("nan")
    rows[2] = [0.0] * 7
    rows[3] = "seven"
    capture = record3d.read(change(tmp_path, poses=rows))
    assert [frame.name for frame in capture.frames] == ["rgb/4.png"]
    assert [note.split(": ")[0].split("because ")[1] for note in capture.notes] == [
        "the picture is not on disk",
        "the pose is not 7 finite numbers",
        "the quaternion of the pose has no direction",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"poses": None}, "has no list 'poses'"),
        ({"poses": []}, r"no usable frame \(0 found\)"),
        ({"K": None}, "has neither K nor perFrameIntrinsicCoeffs"),
        ({"K": [1, 2]}, "should be a list of 9 numbers"),
        ({"K": [0] * 9}, "a focal length is not positive"),
        ({"w": -3}, "not a whole number of pixels"),
        ({"w": 400}, "different shapes"),
    ],
)
def test_metadata_that_cannot_be_used(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=message):
        record3d.read(change(write_record3d(tmp_path, rig()), **changes))


def test_an_unzipped_r3d_says_why_it_has_no_depth(tmp_path: Path) -> None:
    write_record3d(tmp_path, rig())
    (tmp_path / "EXR_RGBD" / "rgb").rename(tmp_path / "EXR_RGBD" / "rgbd")
    (tmp_path / METADATA).rename(tmp_path / "EXR_RGBD" / "metadata")
    capture = record3d.read(tmp_path)
    assert capture.frames[0].name == "rgbd/0.png" and "export 'EXR + RGB'" in capture.notes[0]


def test_depth_needs_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record3d(tmp_path, rig())
    (tmp_path / "EXR_RGBD" / "depth").mkdir()
    (tmp_path / "EXR_RGBD" / "depth" / "0.exr").write_bytes(b"\x76\x2f\x31\x01")
    monkeypatch.setattr(exr, "available", lambda: True)
    frames = record3d.read(tmp_path).frames
    assert frames[0].depth is not None and frames[0].depth_scale == 1.0 and frames[1].depth is None
    monkeypatch.setattr(exr, "available", lambda: False)
    capture = record3d.read(tmp_path)
    assert capture.frames[0].depth is None and r"pip install 'lightfold[exr]'" in capture.notes[0]


def test_damaged_metadata(tmp_path: Path) -> None:
    survives_damage(write_record3d(tmp_path, rig()) / METADATA, record3d.read, tmp_path)


@pytest.mark.slow
def test_door(shared_data: Path) -> None:
    capture = record3d.read(shared_data / "record3d_door")
    assert len(capture) == 29 and capture.notes == ()
    cameras = [frame.camera for frame in capture.frames if frame.camera is not None]
    assert (cameras[0].width, cameras[0].height) == (1440, 1920)
    # The phone is held upright, first above the handle and looking down, at last below it and looking up.
    down = torch.stack([camera.cam_from_world[1, :3] for camera in cameras])
    assert bool((down[:, 1] < -0.5).all())
    assert float(cameras[0].forward[1]) < 0 < float(cameras[-1].forward[1])
    # ARKit's poses are good to some tenths of a degree; any other convention is off by tens of pixels.
    errors = epipolar_errors(capture, [8, 12, 16, 20])
    assert len(errors) > 100 and np.median(errors) < 8
    pytest.importorskip("OpenEXR")
    depth = exr.read_plane(capture.frames[0].depth)
    assert depth.shape == (256, 192) and 0.1 < np.nanmedian(depth) < 0.6
