"""transforms.json as it is written: what other programs find in it, and that our own reader finds everything again."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_rig import HEIGHT, WIDTH, rig, save_picture
from test_transforms import DISTORTIONS

from lightfold.cameras import Camera, Lens
from lightfold.capture import Capture, Frame, Points
from lightfold.formats import open_capture
from lightfold.formats.transforms import read, write
from lightfold.geometry import se3_exp

PERSPECTIVE = {"SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV"}
NERFSTUDIO_MODELS = PERSPECTIVE | {"OPENCV_FISHEYE", "EQUIRECTANGULAR", "ORTHOPHOTO"}
OURS_ALONE = {Lens.FULL_OPENCV, Lens.THIN_PRISM_FISHEYE, Lens.FOV}


def capture_of(folder: Path, cameras: list[Camera], **changes: Any) -> Capture:
    names = [f"images/{i:02d}.png" for i in range(len(cameras))]
    frames = tuple(
        Frame(save_picture(folder / name), camera, name) for name, camera in zip(names, cameras, strict=True)
    )
    return Capture(folder, "transforms", frames, **changes)


def camera_of(lens: Lens, pose: torch.Tensor, distortion: list[float] | None = None) -> Camera:
    if lens is Lens.EQUIRECTANGULAR:
        return Camera.panorama(pose, WIDTH, HEIGHT)
    values = DISTORTIONS[lens] if distortion is None else distortion
    return replace(rig()[0], cam_from_world=pose, distortion=torch.tensor(values, dtype=torch.float64), lens=lens)


def nerfstudio_values(document: dict[str, Any], frame: dict[str, Any]) -> dict[str, Any]:
    """The intrinsics as nerfstudio takes them: a key at the top hides a frame's, coefficients are global as a whole."""
    coefficients = ("k1", "k2", "k3", "k4", "p1", "p2")
    fixed = any(key in document for key in (*coefficients[:3], "p1", "p2"))
    values = {key: (document if fixed else frame).get(key, 0.0) for key in coefficients}
    values |= {key: document.get(key, frame.get(key)) for key in ("fl_x", "fl_y", "cx", "cy", "w", "h")}
    return values | {"model": document.get("camera_model", "OPENCV")}


@pytest.mark.parametrize("lens", list(DISTORTIONS))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(motion=st.lists(st.floats(-3, 3), min_size=12, max_size=12))
def test_every_lens_at_any_pose_reads_back(lens: Lens, motion: list[float], tmp_path: Path) -> None:
    poses = se3_exp(torch.tensor(motion, dtype=torch.float64).reshape(2, 6))
    capture = capture_of(tmp_path, [camera_of(lens, pose) for pose in poses])
    for before, after in zip(capture.frames, read(write(capture, tmp_path)).frames, strict=True):
        assert before.camera is not None and after.camera is not None
        assert before.camera.lens is after.camera.lens
        for key in ("cam_from_world", "intrinsics", "distortion"):
            torch.testing.assert_close(getattr(before.camera, key), getattr(after.camera, key), atol=1e-9, rtol=0)


@pytest.mark.parametrize("lens", [lens for lens in DISTORTIONS if lens not in OURS_ALONE])
def test_other_programs_find_the_keys_they_know(lens: Lens, tmp_path: Path) -> None:
    cameras = [camera_of(lens, camera.cam_from_world) for camera in rig()]
    document = json.loads(write(capture_of(tmp_path, cameras), tmp_path).read_text())
    assert document["camera_model"] in NERFSTUDIO_MODELS
    assert bool(document.get("is_fisheye")) == (document["camera_model"] == "OPENCV_FISHEYE")
    assert bool(document.get("latlong")) == (lens is Lens.EQUIRECTANGULAR)
    values = nerfstudio_values(document, document["frames"][0])
    names = {"OPENCV_FISHEYE": ("k1", "k2", "k3", "k4")}.get(document["camera_model"], ("k1", "k2", "p1", "p2"))
    expected = dict(zip(names, DISTORTIONS[lens], strict=False))
    assert {key: values[key] for key in ("k1", "k2", "k3", "k4", "p1", "p2") if values[key]} == expected
    if lens is Lens.EQUIRECTANGULAR:
        assert (values["fl_x"], values["fl_y"]) == (WIDTH / 2, HEIGHT)
    else:
        assert [values[key] for key in ("fl_x", "fl_y", "cx", "cy")] == cameras[0].intrinsics.tolist()


def test_the_matrix_is_that_of_an_opengl_camera(tmp_path: Path) -> None:
    """A camera at (1, 2, 3) that looks along the world's +y with +z up: right is +x, up is +z, back is -y."""
    rotation = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)
    centre = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    camera = camera_of(Lens.PINHOLE, torch.cat([rotation, -rotation @ centre], dim=1))
    document = json.loads(write(capture_of(tmp_path, [camera]), tmp_path).read_text())
    expected = [[1, 0, 0, 1], [0, 0, -1, 2], [0, 1, 0, 3], [0, 0, 0, 1]]
    assert document["frames"][0]["transform_matrix"] == expected


def test_coefficients_that_differ_in_part_stay_with_their_frames(tmp_path: Path) -> None:
    """With k2 at the top, nerfstudio would read every k1 as zero."""
    cameras = [camera_of(Lens.OPENCV, c.cam_from_world, [0.1 * i, 0.05, 0.0, 0.0]) for i, c in enumerate(rig())]
    document = json.loads(write(capture_of(tmp_path, cameras), tmp_path).read_text())
    assert "k2" not in document and "fl_x" in document
    for i, frame in enumerate(document["frames"]):
        values = nerfstudio_values(document, frame)
        assert (values["k1"], values["k2"]) == (0.1 * i, 0.05)
    again = read(tmp_path)
    assert [float(f.camera.distortion[0]) for f in again.frames if f.camera is not None] == [0.1 * i for i in range(5)]


def test_every_split_that_a_reader_may_ask_for_has_a_list(tmp_path: Path) -> None:
    capture = capture_of(tmp_path, rig())
    splits = ["test", "train", "train", "train", "test"]
    frames = tuple(replace(frame, split=split) for frame, split in zip(capture.frames, splits, strict=True))
    document = json.loads(write(replace(capture, frames=frames), tmp_path).read_text())
    assert document["val_filenames"] == document["test_filenames"] == ["images/00.png", "images/04.png"]
    assert document["train_filenames"] == ["images/01.png", "images/02.png", "images/03.png"]
    assert [frame.split for frame in read(tmp_path).frames] == splits


def test_points_lie_beside_the_file_and_up_and_unit_are_kept(tmp_path: Path) -> None:
    points = Points(torch.rand(7, 3, dtype=torch.float64), torch.randint(0, 255, (7, 3), dtype=torch.uint8))
    up = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    capture = capture_of(tmp_path, rig(), points=points, up=up)
    document = json.loads(write(capture, tmp_path / "transforms.json").read_text())
    assert document["ply_file_path"] == "points.ply"
    second = write(replace(capture, points=replace(points, xyz=points.xyz + 1)), tmp_path / "moved.json")
    again = open_capture(tmp_path)
    assert again.points is not None and torch.equal(again.points.xyz, points.xyz)
    assert again.points.rgb is not None and torch.equal(again.points.rgb, points.rgb)
    assert again.up is not None and again.up.tolist() == pytest.approx(up.tolist())
    assert not again.metric
    write(replace(capture, metric=True), tmp_path)
    assert read(tmp_path).metric
    moved = read(second)
    assert moved.points is not None and torch.equal(moved.points.xyz, points.xyz + 1)


def test_paths_are_relative_with_forward_slashes_and_any_letters(tmp_path: Path) -> None:
    names = ["images/tag eins/Bär é.png", "images/图 2.png"]
    frames = tuple(Frame(save_picture(tmp_path / n), c, n) for n, c in zip(names, rig(), strict=False))
    capture = Capture(tmp_path, "transforms", frames)
    document = json.loads(write(capture, tmp_path / "out" / "transforms.json").read_text(encoding="utf-8"))
    assert [frame["file_path"] for frame in document["frames"]] == [f"../{name}" for name in names]
    assert all(a.path.samefile(b.path) for a, b in zip(frames, read(tmp_path / "out").frames, strict=True))


def test_a_lens_key_counts_only_beside_the_model_that_it_was_written_with(tmp_path: Path) -> None:
    cameras = [camera_of(Lens.RADIAL_FISHEYE, camera.cam_from_world) for camera in rig()]
    file = write(capture_of(tmp_path, cameras), tmp_path)
    document = json.loads(file.read_text())
    assert (document["camera_model"], document["lens"]) == ("OPENCV_FISHEYE", "RADIAL_FISHEYE")
    document["camera_model"] = "OPENCV"
    file.write_text(json.dumps(document))
    camera = read(file).frames[0].camera
    assert camera is not None and camera.lens is Lens.OPENCV
    document["lens"] = math.pi
    file.write_text(json.dumps(document))
    with pytest.raises(Exception, match="'lens' of .* should be text"):
        read(file)
