"""transforms.json: every key of both dialects, round trips, and files that are wrong in every way we could think of."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from synthetic_rig import HEIGHT, WIDTH, ngp_document, opengl_matrix, rig, save_picture, write_transforms

from lightfold.cameras import Camera, Lens
from lightfold.capture import Capture, Frame, Points
from lightfold.errors import CaptureError, LightfoldError, RunError
from lightfold.formats import open_capture
from lightfold.formats.transforms import read, write
from lightfold.geometry import Similarity, rotation_from_quaternion

NAMES = [f"images/{i}.png" for i in range(5)]


def document(**changes: Any) -> dict[str, Any]:
    """The rig's file with keys changed; a value of None removes the key."""
    values = {**ngp_document(rig(), NAMES), **changes}
    return {key: value for key, value in values.items() if value is not None}


def first_camera(folder: Path, **changes: Any) -> Camera:
    camera = read(write_transforms(folder, document(**changes))).frames[0].camera
    assert camera is not None
    return camera


# --- poses -----------------------------------------------------------------------------------------------------------


def test_poses_become_opencv_cameras(tmp_path: Path) -> None:
    capture = read(write_transforms(tmp_path, document()))
    for frame, truth in zip(capture.frames, rig(), strict=True):
        assert frame.camera is not None
        torch.testing.assert_close(frame.camera.cam_from_world, truth.cam_from_world, atol=1e-12, rtol=0)
        torch.testing.assert_close(frame.camera.intrinsics, truth.intrinsics)
        assert (frame.camera.width, frame.camera.height, frame.camera.lens) == (WIDTH, HEIGHT, Lens.PINHOLE)


def test_a_camera_at_the_opengl_identity_looks_down_negative_z(tmp_path: Path) -> None:
    identity = torch.eye(4).tolist()
    camera = first_camera(tmp_path, frames=[{"file_path": "a.png", "transform_matrix": identity}])
    assert camera.forward.tolist() == [0.0, 0.0, -1.0]
    above, _ = camera.project(torch.tensor([[0.0, 1.0, -5.0]], dtype=torch.float64))
    assert above[0, 1] < camera.intrinsics[3]


def test_a_mitsuba_camera_looks_down_positive_z(tmp_path: Path) -> None:
    frames = [{"file_path": "a.png", "transform_matrix": torch.eye(4).tolist()}]
    camera = first_camera(tmp_path, frames=frames, from_mitsuba=True)
    assert camera.forward.tolist() == [0.0, 0.0, 1.0]


def test_frames_are_sorted_naturally(tmp_path: Path) -> None:
    names = ["b/2.png", "b/10.png", "a/11.png", "b/1.png", "a/9.png"]
    capture = read(write_transforms(tmp_path, ngp_document(rig(), names)))
    assert [frame.name for frame in capture.frames] == ["a/9.png", "a/11.png", "b/1.png", "b/2.png", "b/10.png"]


def test_slightly_wrong_rotations_are_projected_and_very_wrong_ones_dropped(tmp_path: Path) -> None:
    values = document()
    for frame, size in zip(values["frames"], (1e-7, 1e-3, 0.5, 0.0, 0.0), strict=True):
        frame["transform_matrix"][0][0] += size
    values["frames"][3]["transform_matrix"] = torch.diag(torch.tensor([0.0, 0.0, 0.0, 1.0])).tolist()
    mirrored = values["frames"][4]["transform_matrix"]
    for row in mirrored[:3]:
        row[0] = -row[0]
    capture = read(write_transforms(tmp_path, values))
    assert [frame.name for frame in capture.frames] == NAMES[:2]
    for frame in capture.frames:
        assert frame.camera is not None
        rotation = frame.camera.cam_from_world[:, :3]
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-12, rtol=0)
        assert torch.linalg.det(rotation) > 0
    expected = "3 of 5 frames were left out because the pose is not a rotation and a translation"
    assert any(note.startswith(expected) for note in capture.notes)


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400, 1e300])
def test_poses_that_are_not_finite_are_dropped(value: float, tmp_path: Path) -> None:
    values = document()
    values["frames"][2]["transform_matrix"][1][3] = value
    capture = read(write_transforms(tmp_path, values))
    assert len(capture) == 4
    assert "left out because the pose" in capture.notes[0]
    assert NAMES[2] in capture.notes[0]


def test_a_pose_moved_during_the_exposure_is_taken_at_its_middle(tmp_path: Path) -> None:
    def turned(angle: float, x: float) -> list[list[float]]:
        c, s = math.cos(angle), math.sin(angle)
        return [[c, -s, 0, x], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]

    both = {"transform_matrix_start": turned(0.2, 1.0), "transform_matrix_end": turned(1.0, 3.0)}
    middle = first_camera(tmp_path / "a", frames=[{"file_path": "a.png", **both}])
    expected = first_camera(tmp_path / "b", frames=[{"file_path": "a.png", "transform_matrix": turned(0.6, 2.0)}])
    torch.testing.assert_close(middle.cam_from_world, expected.cam_from_world)


# --- pictures --------------------------------------------------------------------------------------------------------


def test_pictures_outside_the_folder_are_said(tmp_path: Path) -> None:
    inner = tmp_path / "capture"
    inner.mkdir()
    save_picture(tmp_path / "private.png")
    frames = [
        {"file_path": name, "transform_matrix": torch.eye(4).tolist()}
        for name in ("a.png", "../private.png", str(tmp_path / "private.png"))
    ]
    (note,) = [n for n in read(write_transforms(inner, document(frames=frames))).notes if "outside" in n]
    assert note.startswith("2 of its files") and str(tmp_path / "private.png") in note
    assert not [n for n in read(write_transforms(tmp_path, document())).notes if "outside" in n]


def test_missing_pictures_are_one_note(tmp_path: Path) -> None:
    write_transforms(tmp_path, document())
    for name in NAMES[1:]:
        (tmp_path / name).unlink()
    notes = read(tmp_path).notes
    assert notes == (
        "4 of 5 frames were left out because the picture is not on disk: "
        "images/1.png, images/2.png, images/3.png and 1 more.",
    )
    (tmp_path / NAMES[0]).unlink()
    with pytest.raises(CaptureError, match=r"transforms.json has no usable frame \(5 found\).*not on disk"):
        read(tmp_path)


def test_suffix_backslashes_and_dots_are_optional(tmp_path: Path) -> None:
    for name in ("images/a.png", "images/b.JPG", "images/c.d.webp"):
        save_picture(tmp_path / name)
    frames = [
        {"file_path": n, "transform_matrix": opengl_matrix(rig()[0])} for n in ("./images/a", "images\\b", "images/c.d")
    ]
    capture = read(write_transforms(tmp_path, document(frames=frames), pictures=False))
    assert [frame.name for frame in capture.frames] == ["images/a.png", "images/b.JPG", "images/c.d.webp"]
    assert all(frame.path.is_file() for frame in capture.frames)


def test_names_may_hold_spaces_umlauts_and_leave_the_folder_but_frame_names_do_not(tmp_path: Path) -> None:
    names = ["../photos/Bär im Wald é.png", "photos/Bär im Wald é.png", "图/1.png"]
    capture = read(write_transforms(tmp_path / "capture", ngp_document(rig()[:3], names)))
    found = [frame.name for frame in capture.frames]
    assert sorted(found) == sorted(["photos/Bär im Wald é.png", "photos/Bär im Wald é~2.png", "图/1.png"])
    assert (tmp_path / "photos" / "Bär im Wald é.png").is_file()


def test_a_picture_listed_twice_is_used_once(tmp_path: Path) -> None:
    values = document()
    values["frames"].append({**values["frames"][1], "file_path": "./images/1.png"})
    capture = read(write_transforms(tmp_path, values))
    assert len(capture) == 5
    assert "1 of 6 frames were left out because the same picture is listed before" in capture.notes[0]


def test_a_smaller_picture_of_the_same_shape_scales_the_intrinsics(tmp_path: Path) -> None:
    # 41 x 31 stated, 20 x 15 on disk: both sides were rounded down.
    camera = first_camera(tmp_path, w=2 * WIDTH + 1, h=2 * HEIGHT + 1)
    assert (camera.width, camera.height) == (WIDTH, HEIGHT)
    assert float(camera.intrinsics[0]) == pytest.approx(37 * WIDTH / (2 * WIDTH + 1))
    with pytest.raises(CaptureError, match="the picture and its intrinsics have different shapes"):
        read(write_transforms(tmp_path / "b", document(w=WIDTH, h=WIDTH)))


@pytest.mark.parametrize(
    ("orientation", "stored_matches", "rotate"),
    [(6, False, True), (6, True, False), (3, True, False), (1, True, False)],
)
def test_the_size_decides_whether_exif_rotates(
    orientation: int, stored_matches: bool, rotate: bool, tmp_path: Path
) -> None:
    size = (WIDTH, HEIGHT) if stored_matches else (HEIGHT, WIDTH)
    save_picture(tmp_path / "a.jpg", *size, orientation=orientation)
    frames = [{"file_path": "a.jpg", "transform_matrix": opengl_matrix(rig()[0])}]
    capture = read(write_transforms(tmp_path, document(frames=frames), pictures=False))
    assert capture.frames[0].exif_rotate is rotate
    camera = capture.frames[0].camera
    assert camera is not None and (camera.width, camera.height) == (WIDTH, HEIGHT)


def test_an_exact_size_goes_before_a_similar_shape(tmp_path: Path) -> None:
    # Stored 301 x 300, which could pass for a rescaled 300 x 301; turned upright it is just that.
    save_picture(tmp_path / "a.jpg", 301, 300, orientation=8)
    frames = [{"file_path": "a.jpg", "transform_matrix": opengl_matrix(rig()[0])}]
    capture = read(write_transforms(tmp_path, document(frames=frames, w=300, h=301), pictures=False))
    assert capture.frames[0].exif_rotate
    camera = capture.frames[0].camera
    assert camera is not None and float(camera.intrinsics[0]) == 37.0
    assert capture.notes == ()


def test_pictures_that_cannot_be_read_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_transforms(tmp_path, document())
    (tmp_path / NAMES[0]).write_bytes(b"")
    (tmp_path / NAMES[1]).write_bytes((tmp_path / NAMES[2]).read_bytes()[:20])
    save_picture(tmp_path / NAMES[2], 400, 300)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    capture = read(tmp_path)
    assert [frame.name for frame in capture.frames] == NAMES[3:]
    assert any("2 of 5 frames were left out because the file is not a picture" in note for note in capture.notes)
    assert any("claims more than" in note and "images/2.png" in note for note in capture.notes)


# --- intrinsics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "fx", "fy"),
    [
        ({"fl_x": 50, "fl_y": None}, 50, 50),
        ({"fl_x": None, "fl_y": 60}, 60, 60),
        ({"fl_x": None, "fl_y": None, "camera_angle_x": math.pi / 2}, 20, 20),
        ({"fl_x": None, "fl_y": None, "camera_angle_x": math.pi / 2, "camera_angle_y": math.pi / 2}, 20, 15),
        ({"fl_x": None, "fl_y": None, "x_fov": 90.0}, 20, 20),
        ({"fl_x": None, "fl_y": None, "x_fov": 90.0, "y_fov": 90}, 20, 15),
        ({"camera_angle_x": 0.1}, 37, 35.5),
    ],
)
def test_focal_length_in_all_its_spellings(changes: dict[str, Any], fx: float, fy: float, tmp_path: Path) -> None:
    intrinsics = first_camera(tmp_path, **changes).intrinsics
    assert intrinsics[:2].tolist() == pytest.approx([fx, fy])


def test_size_and_centre_default_to_the_picture(tmp_path: Path) -> None:
    camera = first_camera(tmp_path, w=None, h=None, cx=None, cy=None)
    assert (camera.width, camera.height) == (WIDTH, HEIGHT)
    assert camera.intrinsics[2:].tolist() == [WIDTH / 2, HEIGHT / 2]


def test_a_frames_own_intrinsics_win(tmp_path: Path) -> None:
    values = document(k1=0.1, k2=0.0, p1=0.0, p2=0.0)
    values["frames"][1].update(fl_x=99.0, cx=1.0, k1=0.2)
    values["frames"][2].update(camera_angle_x=math.pi / 2, camera_model="SIMPLE_RADIAL")
    values["frames"][3].update(camera_model="OPENCV_FISHEYE")
    cameras = [frame.camera for frame in read(write_transforms(tmp_path, values)).frames]
    assert all(camera is not None for camera in cameras)
    lenses = [camera.lens for camera in cameras if camera is not None]
    assert lenses == [Lens.OPENCV, Lens.OPENCV, Lens.SIMPLE_RADIAL, Lens.OPENCV_FISHEYE, Lens.OPENCV]
    assert cameras[1] is not None and cameras[1].intrinsics.tolist() == [99.0, 35.5, 1.0, 16.1]
    assert cameras[1].distortion.tolist() == [0.2, 0, 0, 0]
    assert cameras[2] is not None and cameras[2].intrinsics[0].item() == pytest.approx(20)


@pytest.mark.parametrize(
    ("changes", "lens", "distortion"),
    [
        ({}, Lens.PINHOLE, []),
        ({"k1": 0.1, "p2": 0.4}, Lens.OPENCV, [0.1, 0, 0, 0.4]),
        (
            {"k1": 0.1, "k2": 0.2, "k3": 0.0, "k4": 0.0, "p1": 0, "p2": 0, "is_fisheye": False},
            Lens.OPENCV,
            [0.1, 0.2, 0, 0],
        ),
        ({"k1": 0.1, "k3": 0.3}, Lens.FULL_OPENCV, [0.1, 0, 0, 0, 0.3, 0, 0, 0]),
        ({"k1": 0.1, "k4": 0.4, "is_fisheye": True}, Lens.OPENCV_FISHEYE, [0.1, 0, 0, 0.4]),
        ({"k1": 0.1, "p1": 0.5, "is_fisheye": True}, Lens.THIN_PRISM_FISHEYE, [0.1, 0, 0.5, 0, 0, 0, 0, 0]),
        ({"camera_model": "PINHOLE", "k1": 0.1}, Lens.SIMPLE_RADIAL, [0.1]),
        ({"camera_model": "SIMPLE_RADIAL", "k2": 0.1}, Lens.RADIAL, [0, 0.1]),
        ({"camera_model": "OPENCV", "distortion_params": [1, 2, 0, 0, 5, 6]}, Lens.OPENCV, [1, 2, 5, 6]),
        (
            {"camera_model": "OPENCV_FISHEYE", "distortion_params": [1, 2, 3, 4, 0, 0]},
            Lens.OPENCV_FISHEYE,
            [1, 2, 3, 4],
        ),
        (
            {"camera_model": "THIN_PRISM_FISHEYE", "distortion_params": list(range(8))},
            Lens.THIN_PRISM_FISHEYE,
            list(range(8)),
        ),
        ({"camera_model": "FOV", "distortion_params": [0.9]}, Lens.FOV, [0.9]),
        ({"camera_model": "FULL_OPENCV", "k4": 0.4, "k6": 0.6}, Lens.FULL_OPENCV, [0, 0, 0, 0, 0, 0.4, 0, 0.6]),
        ({"camera_model": "EQUIRECTANGULAR"}, Lens.EQUIRECTANGULAR, []),
        ({"latlong": True}, Lens.EQUIRECTANGULAR, []),
        ({"equirectangular": True}, Lens.EQUIRECTANGULAR, []),
        ({"camera_model": "ORTHOPHOTO"}, Lens.ORTHOGRAPHIC, []),
        ({"orthographic": True}, Lens.ORTHOGRAPHIC, []),
        ({"camera_model": "perspective"}, Lens.OPENCV, [0, 0, 0, 0]),
    ],
)
def test_lens_models(changes: dict[str, Any], lens: Lens, distortion: list[float], tmp_path: Path) -> None:
    camera = first_camera(tmp_path, **changes)
    assert camera.lens is lens
    assert camera.distortion.tolist() == pytest.approx(distortion)
    if lens is Lens.EQUIRECTANGULAR:
        expected = [WIDTH / (2 * math.pi), HEIGHT / math.pi, WIDTH / 2, HEIGHT / 2]
        assert camera.intrinsics.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camera_model": "FISHEYE624"}, "'FISHEYE624' .* is not supported; these are: SIMPLE_PINHOLE"),
        ({"ftheta_p0": 0.1}, "f-theta"),
        ({"k1": 0.1, "k4": 0.1}, "k4 .* has no agreed meaning"),
        ({"camera_model": "OPENCV", "distortion_params": [1, 2, 3]}, "should be k1 k2 k3 k4 p1 p2, but has 3"),
        ({"camera_model": "FOV"}, "needs its one coefficient"),
        ({"fl_x": None, "fl_y": None}, "has no focal length"),
        ({"fl_x": -5}, "'fl_x' .* should be positive, but is -5"),
        ({"fl_x": None, "fl_y": None, "x_fov": 190}, "angle below 180 degrees, but is 190"),
        ({"w": 40.5}, "'w' .* whole number of pixels, but is 40.5"),
        ({"h": 0}, "'h' .* whole number of pixels, but is 0"),
        ({"fl_x": "1375"}, "'fl_x' .* should be a number, but is '1375'"),
        ({"fl_x": True}, "'fl_x' .* should be a number, but is True"),
        ({"near": math.nan}, "'near' .* should be a finite number"),
        ({"camera_model": 3}, "'camera_model' .* should be text"),
        ({"is_fisheye": "yes"}, "'is_fisheye' .* should be true or false"),
        ({"frames": {"0": {}}}, "'frames' .* should be a list of objects"),
        ({"frames": None}, "'frames' .* should be a list of objects, but is nothing"),
        ({"frames": [1, 2]}, "'frames' .* should be a list of objects"),
        ({"frames": []}, "has no usable frame"),
        ({"train_filenames": "a.png"}, "'train_filenames' .* should be a list of text"),
        ({"orientation_override": "sideways"}, "orientation_override .* 'sideways'"),
        ({"applied_transform": [[1, 0], [0, 1]]}, "'applied_transform' .* 3x4 or 4x4 matrix"),
    ],
)
def test_wrong_values_are_named_with_key_and_file(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_transforms(tmp_path, document())
    write_transforms(tmp_path, document(**changes), pictures=False)
    with pytest.raises(CaptureError, match=message) as error:
        read(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], "should be a 4x4 or 3x4 matrix"),
        ([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1], [0, 0, 0, 1]], "should be a 4x4 or 3x4 matrix"),
        ([], "should be a 4x4 or 3x4 matrix"),
        ([[]], "should be a 4x4 or 3x4 matrix"),
        ("identity", "a list of rows, but is 'identity'"),
        ([["1", 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "should be a number, but is '1'"),
    ],
)
def test_a_matrix_of_another_shape_is_a_mistake_in_the_file(matrix: object, message: str, tmp_path: Path) -> None:
    values = document()
    values["frames"][3]["transform_matrix"] = matrix
    with pytest.raises(CaptureError, match=f"'transform_matrix' of frame 3 .*{message}"):
        read(write_transforms(tmp_path, values))


def test_a_frame_without_a_name_or_a_pose(tmp_path: Path) -> None:
    values = document()
    del values["frames"][1]["transform_matrix"]
    assert (
        "1 of 5 frames were left out because they have no transform_matrix"
        in read(write_transforms(tmp_path, values)).notes[0]
    )
    values["frames"][0]["file_path"] = ""
    write_transforms(tmp_path, values, pictures=False)
    with pytest.raises(CaptureError, match=r"'file_path' of frame 0 .* is missing or empty"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b'{"frames": [', "is not valid JSON: .* line 1, column 13"),
        (b"[1, 2]", "should hold one JSON object .* a list"),
        (b'{"frames": "\xff\xfe"}', "is not UTF-8 text: byte 12"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"w": ' + b"9" * 5000 + b"}", "a number too long to read"),
        (b"\0" * 64, "is not valid JSON"),
    ],
)
def test_files_that_are_not_json(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "transforms.json").write_bytes(content)
    with pytest.raises(CaptureError, match=message):
        read(tmp_path)


def test_a_file_beyond_the_size_limit_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "transforms.json", "wb") as file:
        file.truncate(200 * 2**20)
    with pytest.raises(CaptureError, match="is 200 MiB; a camera list beyond 128 MiB is not read"):
        read(tmp_path)


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    write_transforms(tmp_path, document())
    file = tmp_path / "transforms.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(read(tmp_path)) == 5


def test_hostile_names_are_harmless(tmp_path: Path) -> None:
    values = document()
    for frame, name in zip(
        values["frames"], ["a\0b.png", "x" * 5000, "\x1b[2J.png", "\ud800.png", "/dev/zero"], strict=True
    ):
        frame["file_path"] = name
    (tmp_path / "\x1b[2J.png").write_bytes(save_picture(tmp_path / "a.png").read_bytes())
    capture = read(write_transforms(tmp_path, values, pictures=False))
    assert [frame.name for frame in capture.frames] == ["_[2J.png"]
    assert all(note.isprintable() for note in capture.notes)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = [
    *("fl_x", "w", "h", "cx", "k1", "k4", "camera_model", "is_fisheye", "aabb", "aabb_scale", "offset", "scale", "up"),
    *("applied_transform", "applied_scale", "distortion_params", "ply_file_path", "test_filenames", "frames", "near"),
    *("fisheye_crop_radius", "orientation_override", "depth_unit_scale_factor", "mask_path", "depth_path", "latlong"),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(KEYS), value=JSON_VALUES)
def test_any_value_under_any_key_reads_or_fails_in_a_sentence(key: str, value: object, tmp_path: Path) -> None:
    if not (tmp_path / NAMES[0]).exists():
        write_transforms(tmp_path, document())
    (tmp_path / "transforms.json").write_text(json.dumps({**document(), key: value}))
    try:
        capture = read(tmp_path)
    except LightfoldError as error:
        assert str(error).endswith(".")
    else:
        assert len(capture) == 5
        for frame in capture.frames:
            assert frame.camera is not None and torch.isfinite(frame.camera.cam_from_world).all()


# --- companions ------------------------------------------------------------------------------------------------------


def test_masks_and_depths(tmp_path: Path) -> None:
    values = document(integer_depth_scale=0.25)
    frames = values["frames"]
    frames[0]["mask_path"] = "masks/0.png"
    frames[1]["mask_path"] = "masks/gone.png"
    frames[3].update(depth_file_path="depth/3.png", depth_unit_scale_factor=0.01)
    frames[4]["depth_path"] = "depth/4.png"
    for name in ("masks/0.png", "images/dynamic_mask_2.png", "images/3.alpha.png", "depth/3.png", "depth/4.png"):
        save_picture(tmp_path / name, mode="L")
    capture = read(write_transforms(tmp_path, values))
    masks = [
        None if f.mask is None else (f.mask.relative_to(tmp_path).as_posix(), f.mask_inverted) for f in capture.frames
    ]
    assert masks == [
        ("masks/0.png", False),
        None,
        ("images/dynamic_mask_2.png", True),
        ("images/3.alpha.png", False),
        None,
    ]
    depths = [None if f.depth is None else (f.depth.name, f.depth_scale) for f in capture.frames]
    assert depths == [None, None, None, ("3.png", 0.01), ("4.png", 0.25)]
    assert any("name a mask that is not on disk, and are used whole: images/1.png" in note for note in capture.notes)


def test_depths_of_unknown_unit_are_ignored(tmp_path: Path) -> None:
    values = document()
    values["frames"][0]["depth_path"] = "depth/0.png"
    values["frames"][1]["depth_file_path"] = "depth/0.png"
    save_picture(tmp_path / "depth/0.png", mode="L")
    capture = read(write_transforms(tmp_path, values))
    assert capture.frames[0].depth is None
    assert capture.frames[1].depth is not None and capture.frames[1].depth_scale == 0.001
    assert any("depth map of unknown unit" in note for note in capture.notes)


@pytest.mark.parametrize(
    ("lists", "splits"),
    [
        ({}, [None] * 5),
        ({"train": [0, 1], "val": [2], "test": [3, 4]}, ["train", "train", "test", "test"]),
        ({"train": [0, 1, 2], "val": [3, 4]}, ["train", "train", "train", "test", "test"]),
        ({"test": [1]}, ["train", "test", "train", "train", "train"]),
        ({"train": [1]}, ["test", "train", "test", "test", "test"]),
        ({"train": [0, 1, 2, 3], "test": [3, 4]}, ["train"] * 4 + ["test"]),
    ],
)
def test_splits(lists: dict[str, list[int]], splits: list[str | None], tmp_path: Path) -> None:
    changes = {f"{key}_filenames": [f"./{NAMES[i]}" for i in indices] for key, indices in lists.items()}
    capture = read(write_transforms(tmp_path, document(**changes)))
    assert [frame.split for frame in capture.frames] == splits


def test_names_in_split_lists_that_no_frame_has_are_noted(tmp_path: Path) -> None:
    capture = read(write_transforms(tmp_path, document(test_filenames=["images/0.png", "images/nine.png"])))
    assert "1 names in the lists of the splits belong to no frame: images/nine.png." in capture.notes


# --- the capture as a whole ------------------------------------------------------------------------------------------


def test_original_from_capture_undoes_what_was_applied(tmp_path: Path) -> None:
    # nerfstudio's own: rows (0, 2, 1) of the identity, the last negated; then a scale.
    applied = [[1, 0, 0, 1], [0, 0, 1, 2], [0, -1, 0, 3]]
    capture = read(write_transforms(tmp_path, document(applied_transform=applied, applied_scale=2.0)))
    original = torch.tensor([[4.0, 5.0, 6.0]], dtype=torch.float64)
    in_file = 2.0 * (original @ torch.tensor(applied, dtype=torch.float64)[:, :3].T + torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(capture.original_from_capture.apply(in_file), original)


@pytest.mark.parametrize(
    "changes", [{"applied_scale": 0}, {"applied_transform": [[0.0] * 4] * 3}, {"applied_scale": 1e300}]
)
def test_an_applied_transform_that_is_none_is_ignored_with_a_note(changes: dict[str, Any], tmp_path: Path) -> None:
    capture = read(write_transforms(tmp_path, document(**changes)))
    assert capture.original_from_capture.scale == 1
    assert any("ignored" in note for note in capture.notes)


@pytest.mark.parametrize(
    ("changes", "bounds"),
    [
        ({}, None),
        ({"aabb_scale": 4}, None),
        ({"aabb_scale": 1, "scale": 0.5, "offset": [0.5, 0.5, 0.0]}, [[-1, -1, 0], [1, 1, 2]]),
        ({"aabb_scale": 1, "scale": 1.0, "offset": 0}, [[0, 0, 0], [1, 1, 1]]),
        ({"aabb": [[1, -2, 3], [-1, 2, 5]]}, [[-1, -2, 3], [1, 2, 5]]),
        ({"aabb": [[-1, -1, -1], [1, 1, 1]], "aabb_scale": 8}, None),
        ({"aabb": [[1, 1, 1], [1, 1, 1]]}, None),
    ],
)
def test_bounds(changes: dict[str, Any], bounds: list[list[float]] | None, tmp_path: Path) -> None:
    found = read(write_transforms(tmp_path, document(**changes))).bounds
    assert (None if found is None else found.tolist()) == bounds


def test_other_keys_of_the_capture(tmp_path: Path) -> None:
    changes = {"up": [0, 0, 2], "orientation_override": "vertical", "near": 1, "far": 9.0, "fisheye_crop_radius": 12}
    capture = read(write_transforms(tmp_path, document(**changes, w=2 * WIDTH, h=2 * HEIGHT)))
    assert capture.up is not None and capture.up.tolist() == [0, 0, 1]
    assert (capture.orientation, capture.near, capture.far) == ("up", 1.0, 9.0)
    # Stated for pictures twice as large as those on disk.
    assert capture.fisheye_crop_radius == pytest.approx(6)
    fraction = read(write_transforms(tmp_path, document(fisheye_crop_radius=0.25)))
    assert fraction.fisheye_crop_radius == pytest.approx(10)
    assert any("fraction of the picture's width" in note for note in fraction.notes)


def test_the_two_kinds_of_panorama_are_told_apart_in_a_note(tmp_path: Path) -> None:
    assert read(write_transforms(tmp_path, document(latlong=True))).notes == ()
    (note,) = read(write_transforms(tmp_path, document(equirectangular=True))).notes
    assert "is read as latlong" in note


def test_a_json_of_any_name_opens(tmp_path: Path) -> None:
    write_transforms(tmp_path, document(), name="cameras.json")
    capture = open_capture(tmp_path / "cameras.json")
    assert (capture.format, len(capture), capture.root) == ("transforms", 5, tmp_path)


# --- writing ---------------------------------------------------------------------------------------------------------

DISTORTIONS = {
    Lens.SIMPLE_PINHOLE: [],
    Lens.PINHOLE: [],
    Lens.SIMPLE_RADIAL: [0.1],
    Lens.RADIAL: [0.1, -0.02],
    Lens.OPENCV: [0.1, -0.02, 0.003, 0.004],
    Lens.FULL_OPENCV: [0.1, -0.02, 0.003, 0.004, 0.005, 0.06, 0.007, 0.008],
    Lens.OPENCV_FISHEYE: [0.1, -0.02, 0.003, 0.004],
    Lens.SIMPLE_RADIAL_FISHEYE: [0.1],
    Lens.RADIAL_FISHEYE: [0.1, 0.02],
    Lens.THIN_PRISM_FISHEYE: [0.1, -0.02, 0.003, 0.004, 0.005, 0.006, 0.007, 0.008],
    Lens.FOV: [0.9],
    Lens.EQUIRECTANGULAR: [],
    Lens.ORTHOGRAPHIC: [],
}


def capture_of(folder: Path, lenses: list[Lens]) -> Capture:
    """A capture with everything a file can hold, one frame per lens."""
    frames = []
    for i, lens in enumerate(lenses):
        base = rig()[i % 5]
        intrinsics = base.intrinsics
        if lens is Lens.EQUIRECTANGULAR:
            intrinsics = Camera.panorama(base.cam_from_world, WIDTH, HEIGHT).intrinsics
        distortion = torch.tensor(DISTORTIONS[lens], dtype=torch.float64)
        camera = Camera(base.cam_from_world, intrinsics, distortion, WIDTH, HEIGHT, lens)
        frames.append(
            Frame(
                path=save_picture(folder / f"images/{i:02d}.png"),
                camera=camera,
                name=f"images/{i:02d}.png",
                mask=save_picture(folder / f"masks/{i:02d}.png", mode="L") if i % 2 else None,
                depth=save_picture(folder / f"depths/{i:02d}.png", mode="L") if i % 3 else None,
                depth_scale=0.001 if i % 3 == 0 else 0.25,
                time=0.1 * i if i % 2 else None,
                split="test" if i % 4 == 0 else "train",
                mask_inverted=i % 4 == 1,
            )
        )
    quaternion = torch.tensor([0.5, 0.5, -0.5, 0.5], dtype=torch.float64)
    return Capture(
        root=folder,
        format="transforms",
        frames=tuple(frames),
        points=Points(
            torch.tensor([[0.1, 0.2, 0.3], [4.0, 5.0, 6.0]], dtype=torch.float64),
            torch.tensor([[1, 2, 3], [255, 0, 9]], dtype=torch.uint8),
            torch.tensor([0.5, 0.25], dtype=torch.float64),
        ),
        bounds=torch.tensor([[-1.0, -2.0, -3.0], [1.0, 2.0, 3.5]], dtype=torch.float64),
        background="white",
        up=torch.tensor([0.0, 0.6, 0.8], dtype=torch.float64),
        near=0.5,
        far=7.0,
        fisheye_crop_radius=14.5,
        orientation="none",
        original_from_capture=Similarity(2.5, rotation_from_quaternion(quaternion), torch.tensor([1.0, 2.0, 3.0])),
    )


def assert_same(a: Capture, b: Capture) -> None:
    assert len(a) == len(b)
    for one, two in zip(a.frames, b.frames, strict=True):
        assert one.camera is not None and two.camera is not None
        assert (one.camera.lens, one.camera.width, one.camera.height) == (
            two.camera.lens,
            two.camera.width,
            two.camera.height,
        )
        torch.testing.assert_close(one.camera.cam_from_world, two.camera.cam_from_world, atol=1e-14, rtol=0)
        assert one.camera.intrinsics.tolist() == two.camera.intrinsics.tolist()
        assert one.camera.distortion.tolist() == two.camera.distortion.tolist()
        for key in ("name", "depth_scale", "time", "split", "mask_inverted", "exif_rotate"):
            assert getattr(one, key) == getattr(two, key), key
        for key in ("path", "mask", "depth"):
            first, second = getattr(one, key), getattr(two, key)
            assert (first is None) == (second is None), key
            assert first is None or first.samefile(second), key
    assert (a.points is None) == (b.points is None)
    if a.points is not None and b.points is not None:
        assert torch.equal(a.points.xyz, b.points.xyz)
        assert a.points.rgb is not None and b.points.rgb is not None and torch.equal(a.points.rgb, b.points.rgb)
        assert a.points.error is not None and b.points.error is not None and torch.equal(a.points.error, b.points.error)
    for key in ("background", "near", "far", "fisheye_crop_radius", "orientation"):
        assert getattr(a, key) == getattr(b, key), key
    assert a.bounds is not None and b.bounds is not None and torch.equal(a.bounds, b.bounds)
    assert a.up is not None and b.up is not None and torch.allclose(a.up, b.up, atol=1e-15)
    one_to_other = a.original_from_capture.inverse() @ b.original_from_capture
    assert one_to_other.scale == pytest.approx(1, abs=1e-12)
    assert torch.allclose(one_to_other.rotation, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(one_to_other.translation, torch.zeros(3, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("lenses", [list(DISTORTIONS), [Lens.OPENCV] * 5], ids=["every lens", "one lens"])
def test_a_written_capture_reads_back_equal(lenses: list[Lens], tmp_path: Path) -> None:
    capture = capture_of(tmp_path, lenses)
    file = write(capture, tmp_path)
    assert file == tmp_path / "transforms.json"
    again = read(file)
    assert again.notes == ()
    assert_same(capture, again)
    assert ("fl_x" in json.loads(file.read_text())) == (len(set(lenses)) == 1)
    assert not list(tmp_path.glob(".*"))


def test_a_capture_written_elsewhere_finds_its_pictures(tmp_path: Path) -> None:
    capture = capture_of(tmp_path / "footage", [Lens.PINHOLE] * 3)
    file = write(capture, tmp_path / "runs" / "one" / "cameras.json")
    (tmp_path / "link").symlink_to(tmp_path / "runs" / "one", target_is_directory=True)
    for path in (file, tmp_path / "link" / "cameras.json"):
        assert all(a.path.samefile(b.path) for a, b in zip(read(path).frames, capture.frames, strict=True))
    linked = write(capture, tmp_path / "link")
    assert len(read(linked)) == 3


def test_writing_refuses_frames_without_pose_and_folders_that_cannot_be(tmp_path: Path) -> None:
    unposed = Capture(tmp_path, "photos", (Frame(save_picture(tmp_path / "a.png"), None, "a.png"),))
    with pytest.raises(ValueError, match=r"got 'a.png' without; use capture.posed\(\)"):
        write(unposed, tmp_path)
    assert not (tmp_path / "transforms.json").exists()
    with pytest.raises(RunError, match="could not be written"):
        write(capture_of(tmp_path, [Lens.PINHOLE]), tmp_path / "a.png" / "inside")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = capture_of(tmp_path, [Lens.PINHOLE])
    file = write(capture, tmp_path)
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="No space left"):
        write(capture, tmp_path)
    assert file.read_bytes() == before


# --- real captures ---------------------------------------------------------------------------------------------------


def test_fox(shared_data: Path, tmp_path: Path) -> None:
    capture = open_capture(shared_data / "fox")
    assert (capture.format, len(capture), capture.bounds) == ("transforms", 50, None)
    assert capture.notes[0].startswith(
        "17 of 67 frames were left out because the picture is not on disk: images/0005.jpg"
    )
    camera = capture.frames[0].camera
    assert camera is not None and camera.lens is Lens.OPENCV and (camera.width, camera.height) == (1080, 1920)
    # All cameras look at the fox: the axes nearly meet.
    centers = torch.stack([frame.camera.center for frame in capture.frames if frame.camera is not None])
    axes = torch.stack([frame.camera.forward for frame in capture.frames if frame.camera is not None])
    projector = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None, :]
    meeting = torch.linalg.solve(projector.sum(0), (projector @ centers[:, :, None]).sum(0))[:, 0]
    xy, valid = camera.project(meeting[None])
    assert valid.all() and 0 < float(xy[0, 0]) < 1080 and 0 < float(xy[0, 1]) < 1920
    again = read(write(capture, tmp_path / "fox.json"))
    for a, b in zip(capture.frames, again.frames, strict=True):
        assert a.camera is not None and b.camera is not None
        torch.testing.assert_close(a.camera.cam_from_world, b.camera.cam_from_world, atol=1e-13, rtol=0)
