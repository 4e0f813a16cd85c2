"""Captures carried into every format that is written, and read back: same pixels, masks and depths, nothing touched."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "formats"))
from synthetic_rig import HEIGHT, WIDTH, rig, world_points

from lightfold.cameras import Camera, Lens
from lightfold.capture import Capture, Frame, Points
from lightfold.errors import CaptureError
from lightfold.export.cameras import TARGETS, in_frame, lost, placed, write_cameras
from lightfold.export.carry import carry, resampled, said_by, smaller_pictures
from lightfold.export.region import sphere_of_interest
from lightfold.formats import open_capture
from lightfold.geometry import Similarity, se3_exp
from lightfold.images import read_depth

READ_AS = {"instant-ngp": "transforms", "colmap-text": "colmap"}
LENSES = {
    Lens.PINHOLE: [],
    Lens.RADIAL: [-0.08, 0.01],
    Lens.OPENCV: [-0.1, 0.02, 1e-3, -2e-3],
    Lens.FULL_OPENCV: [0.05, 0.01, 1e-3, 1e-3, 0.01, 0.02, 0.01, 0.0],
    Lens.OPENCV_FISHEYE: [0.02, -0.01, 0.0, 0.0],
    Lens.THIN_PRISM_FISHEYE: [0.02, -0.01, 1e-4, 1e-4, 0.0, 0.0, 1e-4, 0.0],
    Lens.FOV: [0.6],
}
ORIGINAL = Similarity(40.0, torch.eye(3, dtype=torch.float64), torch.tensor([-28.0, 5.0, 640.0]).double())


def picture(path: Path, seed: int, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    levels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, channels), dtype=np.uint8)
    Image.fromarray(levels.squeeze()).save(path)
    return path


def capture_of(folder: Path, cameras: list[Camera] | None = None, mode: str = "RGB", **changes: Any) -> Capture:
    names = ["a 1.png", "b/a 1.png", "c.png", "d.png", "e.png"]
    frames = tuple(
        Frame(picture(folder / "images" / name, i, mode), camera, f"images/{name}", split="test" if i == 2 else "train")
        for i, (name, camera) in enumerate(zip(names, cameras or rig(), strict=True))
    )
    fields = {"points": Points(world_points()), "near": 0.5, "far": 7.0, "original_from_capture": ORIGINAL}
    return Capture(folder, "transforms", frames, **{**fields, **changes})


def converted(capture: Capture, format: str, folder: Path) -> tuple[Capture, list[str]]:
    """What `lightfold convert` does but for the command line, read back by the format's own reader."""
    sphere = sphere_of_interest(capture, capture.points) if TARGETS[format].needs == "sphere" else None
    moved, sphere = placed(capture, format, sphere)
    carried, notes = carry(moved, folder, TARGETS[format].holds)
    notes += write_cameras(carried, format, folder, sphere)
    again = open_capture(folder)
    assert again.format == READ_AS.get(format, format)
    return again, notes


def by_picture(capture: Capture, format: str) -> list[Frame]:
    """The frames in the order of `capture_of`, which is that of their names; Blender counts test views behind."""
    order = [0, 1, 3, 4, 2]
    if format != "blender":
        return list(capture.frames)
    return [capture.frames[order.index(i)] for i in range(5)]


def assert_same_pixels(capture: Capture, frames: list[Frame], b_from_capture: Similarity, atol: float = 1e-6) -> None:
    moved = b_from_capture.apply(world_points())
    for before, after in zip(capture.frames, frames, strict=True):
        assert before.camera is not None and after.camera is not None
        expected, valid = before.camera.project(world_points())
        assert bool(valid.all())
        torch.testing.assert_close(after.camera.project(moved)[0], expected, atol=atol, rtol=0)


@pytest.mark.parametrize("format", TARGETS)
def test_one_rig_through_every_format_falls_on_the_same_pixels(format: str, tmp_path: Path) -> None:
    simple = TARGETS[format].holds.simple
    cameras = rig(WIDTH / 2, HEIGHT / 2, 36.0, 36.0) if simple else rig()
    capture = capture_of(tmp_path / "from", cameras)
    if format == "colmap-text":  # COLMAP's own text reader cannot read names with spaces.
        frames = [replace(f, name=f.name.replace(" ", "_")) for f in capture.frames]
        capture = replace(capture, frames=tuple(frames))
    before = {path: path.read_bytes() for path in (tmp_path / "from").rglob("*.png")}
    again, notes = converted(capture, format, tmp_path / "to")
    assert not any("resampled" in note or "undistorted" in note for note in notes)
    back = again.original_from_capture.inverse() @ ORIGINAL
    frames = by_picture(again, format)
    kept = "original" not in TARGETS[format].loses
    assert_same_pixels(capture, frames, back if kept else Similarity.identity())
    for source, frame in zip(capture.frames, frames, strict=True):
        first, second = (np.asarray(Image.open(f.path).convert("RGB")) for f in (source, frame))
        assert np.array_equal(first, second)
    assert {path: path.read_bytes() for path in (tmp_path / "from").rglob("*.png")} == before
    if "split" not in TARGETS[format].loses:
        assert [frame.split for frame in frames] == [frame.split for frame in capture.frames]


@pytest.mark.parametrize("format", TARGETS)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(motion=st.lists(st.floats(-3, 3), min_size=30, max_size=30), focal=st.floats(20, 90), shift=st.floats(-3, 3))
def test_any_pose_and_focal_length_reads_back(
    format: str, motion: list[float], focal: float, shift: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp("any")
    shift = 0.0 if TARGETS[format].holds.simple else shift
    intrinsics = torch.tensor([focal, focal, WIDTH / 2 + shift, HEIGHT / 2 - shift], dtype=torch.float64)
    poses = se3_exp(torch.tensor(motion, dtype=torch.float64).reshape(5, 6))
    cameras = [replace(rig()[0], cam_from_world=pose, intrinsics=intrinsics) for pose in poses]
    box = torch.tensor([[-1.0] * 3, [1.0] * 3], dtype=torch.float64)
    capture = capture_of(tmp_path / "from", cameras, points=None, bounds=box)
    frames = tuple(replace(f, name=f.name.replace(" ", "_")) for f in capture.frames)
    capture = replace(capture, frames=frames, original_from_capture=Similarity.identity())
    again, _ = converted(capture, format, tmp_path / "to")
    back = again.original_from_capture.inverse()
    for before, after in zip(capture.frames, by_picture(again, format), strict=True):
        assert before.camera is not None and after.camera is not None
        expected = before.camera.transformed(back)
        scale = 1 + float(expected.cam_from_world.abs().max())
        torch.testing.assert_close(after.camera.cam_from_world, expected.cam_from_world, atol=1e-9 * scale, rtol=0)
        torch.testing.assert_close(after.camera.intrinsics, expected.intrinsics, atol=1e-8, rtol=1e-9)


@pytest.mark.parametrize("format", ["blender", "neus", "instant-ngp", "llff"])
@pytest.mark.parametrize("lens", [lens for lens in LENSES if lens is not Lens.PINHOLE])
def test_a_bent_picture_becomes_what_a_pinhole_sees(lens: Lens, format: str, tmp_path: Path) -> None:
    """A picture whose colours say which direction each pixel looks in still does so after it has been made straight."""
    cameras = []
    for camera in rig(fx=60.0, fy=60.0):
        cameras.append(replace(camera, distortion=torch.tensor(LENSES[lens], dtype=torch.float64), lens=lens))
    capture = capture_of(tmp_path / "from", cameras)
    for frame in capture.frames:
        assert frame.camera is not None
        Image.fromarray(_direction_colours(frame.camera)).save(frame.path)
    again, notes = converted(capture, format, tmp_path / "to")
    if lens in TARGETS[format].holds.lenses:
        assert not any("undistorted" in note for note in notes)
        return
    assert any("5 of 5 pictures are undistorted to pinholes" in note for note in notes)
    camera = again.frames[0].camera
    assert camera is not None and not bool(camera.distortion.any())
    levels = np.asarray(Image.open(again.frames[0].path).convert("RGB")).astype(int)
    error = np.abs(levels - _direction_colours(camera))[1:-1, 1:-1]
    assert error.max() <= 3, "bilinear between pixels of a smooth picture"
    assert levels.min() > 0, "no blank border"


def _direction_colours(camera: Camera) -> np.ndarray:
    direction = camera.unproject(camera.pixel_grid()).reshape(camera.height, camera.width, 3)
    colour = 128 + 100 * direction
    return colour.clamp(1, 255).round().to(torch.uint8).numpy()


def test_a_straight_camera_is_left_alone_and_a_panorama_is_refused() -> None:
    holds = TARGETS["neus"].holds
    camera = rig()[0]
    assert said_by(camera, holds) is camera
    flat = replace(camera, lens=Lens.OPENCV, distortion=torch.zeros(4, dtype=torch.float64))
    assert said_by(flat, holds).lens is Lens.PINHOLE and torch.equal(said_by(flat, holds).intrinsics, flat.intrinsics)
    with pytest.raises(CaptureError, match=r"lens EQUIRECTANGULAR.*convert to transforms"):
        said_by(Camera.panorama(camera.cam_from_world, 40, 20), holds)


def test_resampling_to_the_same_camera_changes_nothing() -> None:
    planes = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.float32)
    camera = rig()[0]
    assert np.abs(resampled(planes, camera, camera) - planes).max() < 1e-2
    assert np.array_equal(resampled(planes, camera, camera, nearest=True), planes)


# --- masks, transparency, depth -----------------------------------------------------------------------------------


def with_masks(capture: Capture, **flags: bool) -> Capture:
    frames = []
    for i, frame in enumerate(capture.frames):
        mask = capture.root / "m" / f"{i}.png"
        mask.parent.mkdir(exist_ok=True)
        levels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        levels[5 + i : 20, 8:30] = 255
        Image.fromarray(levels).save(mask)
        frames.append(replace(frame, mask=mask, **flags))
    return replace(capture, frames=tuple(frames))


def counted(frame: Frame) -> np.ndarray:
    """Which pixels are the object, or count, by mask and transparency together."""
    kept = np.ones((HEIGHT, WIDTH), dtype=bool)
    if frame.mask is not None:
        kept &= (np.asarray(Image.open(frame.mask).convert("L")) > 0) != frame.mask_inverted
    with Image.open(frame.path) as image:
        if image.mode == "RGBA":
            kept &= np.asarray(image)[:, :, 3] > 0
    return kept


@pytest.mark.parametrize("flags", [{}, {"mask_inverted": True}, {"mask_is_alpha": True}])
@pytest.mark.parametrize("format", TARGETS)
def test_masks_say_the_same_in_every_format_that_has_them(format: str, flags: dict[str, bool], tmp_path: Path) -> None:
    simple = TARGETS[format].holds.simple
    cameras = rig(WIDTH / 2, HEIGHT / 2, 36.0, 36.0) if simple else rig()
    capture = with_masks(capture_of(tmp_path / "from", cameras), **flags)
    frames = tuple(replace(f, name=f.name.replace(" ", "_")) for f in capture.frames)
    again, notes = converted(replace(capture, frames=frames), format, tmp_path / "to")
    if simple and not flags.get("mask_is_alpha"):
        assert any("masks are left behind" in note for note in notes)
        return
    for before, after in zip(capture.frames, by_picture(again, format), strict=True):
        assert np.array_equal(counted(after), counted(before))
    if format in ("neus", "sdfstudio"):
        assert all(frame.mask_is_alpha for frame in again.frames)
        assert any("masks are silhouettes now" in note for note in notes) != bool(flags.get("mask_is_alpha"))
    if format == "transforms":
        assert all(frame.mask_is_alpha == bool(flags.get("mask_is_alpha")) for frame in again.frames)


def test_transparency_becomes_the_mask_of_neus_and_blank_masks_bound_nothing(tmp_path: Path) -> None:
    see_through = capture_of(tmp_path / "a", mode="RGBA")
    again, _ = converted(see_through, "neus", tmp_path / "b")
    for before, after in zip(see_through.frames, again.frames, strict=True):
        assert after.mask is not None
        assert np.array_equal(np.asarray(Image.open(after.mask)), np.asarray(Image.open(before.path))[:, :, 3])
    assert again.bounds is not None
    again, _ = converted(capture_of(tmp_path / "c"), "neus", tmp_path / "d")
    assert [p.name for p in sorted((tmp_path / "d/mask").iterdir())] == [f"{i:03d}.png" for i in range(5)]
    assert again.bounds is None and all(frame.mask is None for frame in again.frames)
    assert any("masks are blank" in note for note in again.notes)


@pytest.mark.parametrize("format", ["transforms", "colmap", "sdfstudio", "instant-ngp"])
@pytest.mark.parametrize("scale", [0.001, 0.25])
def test_depths_keep_meaning_the_same_length(format: str, scale: float, tmp_path: Path) -> None:
    capture = capture_of(tmp_path / "from")
    frames = []
    for i, frame in enumerate(capture.frames):
        levels = np.random.default_rng(i).integers(0, 60000, (HEIGHT, WIDTH)).astype(np.uint16)
        path = tmp_path / "from" / f"{i}.png"
        Image.fromarray(levels).save(path)
        frames.append(replace(frame, depth=path, depth_scale=scale))
    capture = replace(capture, frames=tuple(frames))
    again, _ = converted(capture, format, tmp_path / "to")
    kept = "original" not in TARGETS[format].loses
    ratio = (again.original_from_capture.inverse() @ ORIGINAL).scale if kept else 1.0
    for before, after in zip(capture.frames, again.frames, strict=True):
        expected = read_depth(before, WIDTH, HEIGHT) * ratio
        torch.testing.assert_close(read_depth(after, WIDTH, HEIGHT), expected, rtol=1e-5, atol=0)


def test_a_picture_that_its_header_turns_is_turned(tmp_path: Path) -> None:
    capture = capture_of(tmp_path / "from")
    exif = Image.Exif()
    exif[0x0112] = 6
    levels = np.random.default_rng(0).integers(0, 256, (WIDTH, HEIGHT, 3), dtype=np.uint8)
    path = tmp_path / "from/images/turned.jpg"
    Image.fromarray(levels).save(path, exif=exif, quality=95)
    turned = replace(capture.frames[0], path=path, name="images/turned.jpg", exif_rotate=True)
    capture = replace(capture, frames=(turned, *capture.frames[1:]))
    again, notes = converted(capture, "colmap", tmp_path / "to")
    assert "1 of 5 pictures are turned as their EXIF orientation says, and saved as PNG." in notes
    frame = next(f for f in again.frames if "turned" in f.name)
    assert frame.path.suffix == ".png" and Image.open(frame.path).size == (WIDTH, HEIGHT)


def test_files_are_linked_and_with_copy_they_are_not(tmp_path: Path) -> None:
    capture = capture_of(tmp_path / "from")
    for copy in (False, True):
        carried, notes = carry(capture, tmp_path / f"to{copy}", TARGETS["transforms"].holds, copy)
        assert notes == []
        for before, after in zip(capture.frames, carried.frames, strict=True):
            assert os.path.samefile(before.path, after.path) != copy
            assert after.path.read_bytes() == before.path.read_bytes()


def test_frames_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    capture = capture_of(tmp_path / "from", rig(WIDTH / 2, HEIGHT / 2, 36.0, 36.0))
    frames = tuple(
        replace(f, name=n)
        for f, n in zip(capture.frames, ["a_b.png", "a/b.png", "../x.png", "x.png", "y"], strict=True)
    )
    carried, _ = carry(replace(capture, frames=frames), tmp_path / "to", TARGETS["llff"].holds)
    names = [frame.name for frame in carried.frames]
    assert len(set(names)) == 5 and all((tmp_path / "to" / name).is_file() for name in names)
    assert all((tmp_path / "to") in frame.path.resolve().parents for frame in carried.frames)


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    capture = capture_of(tmp_path / "from", [replace(c, lens=Lens.FOV, distortion=torch.tensor([0.5])) for c in rig()])
    data = capture.frames[1].path.read_bytes()
    capture.frames[1].path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CaptureError, match=r"images/b/a 1.png cannot be carried over"):
        carry(capture, tmp_path / "to", TARGETS["neus"].holds)


def test_smaller_pictures_are_means_of_areas(tmp_path: Path) -> None:
    carried, _ = carry(capture_of(tmp_path / "from"), tmp_path / "to", TARGETS["llff"].holds)
    smaller_pictures(carried, tmp_path / "to", 2)
    for frame in carried.frames:
        whole = np.asarray(Image.open(frame.path)).astype(float)
        small = np.asarray(Image.open(tmp_path / "to/images_2" / f"{frame.path.stem}.png")).astype(float)
        mean = whole.reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3).mean((1, 3))
        assert np.abs(small - mean).max() <= 0.5


# --- facts ----------------------------------------------------------------------------------------------------------


def test_what_is_lost_is_said_and_what_is_kept_is_not(tmp_path: Path) -> None:
    up = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    capture = capture_of(tmp_path, up=up, metric=True, background="white")
    assert lost(capture, "transforms") == []
    (sentence,) = lost(capture, "colmap")
    for words in ("lists of training", "which way is up", "a unit is a metre", "colour behind"):
        assert words in sentence
    assert "3-D points" not in sentence
    bare = Capture(tmp_path, "transforms", tuple(replace(f, split=None) for f in capture.frames))
    assert all(lost(bare, format) == [] for format in TARGETS)


def test_every_fact_that_a_format_keeps_reads_back(tmp_path: Path) -> None:
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    box = torch.tensor([[-2.0, -1.0, -1.5], [2.0, 1.0, 1.0]], dtype=torch.float64)
    cameras = rig(WIDTH / 2, HEIGHT / 2, 36.0, 36.0)
    capture = capture_of(tmp_path / "from", cameras, up=up, metric=True, background="white", bounds=box)
    for format in ("transforms", "blender", "instant-ngp"):
        again, _ = converted(capture, format, tmp_path / format)
        assert (again.near, again.far, again.metric, again.background) == (0.5, 7.0, True, "white")
        assert again.bounds is not None and torch.equal(again.bounds, box)
        assert again.up is not None and torch.equal(again.up, up)
        assert again.original_from_capture.scale == pytest.approx(40.0)
    free = replace(capture, bounds=None, near=None, far=None)
    for format in ("blender", "instant-ngp"):
        again, _ = converted(free, format, tmp_path / f"{format} free")
        assert again.bounds is None and again.near is None


def test_instant_ngp_is_told_where_the_scene_lies(tmp_path: Path) -> None:
    capture = capture_of(tmp_path / "from")
    converted(capture, "instant-ngp", tmp_path / "to")
    document = json.loads((tmp_path / "to/transforms.json").read_text())
    assert document["aabb_scale"] == 16
    centres = np.array([np.array(frame["transform_matrix"])[:3, 3] for frame in document["frames"]])
    in_cube = document["scale"] * centres + document["offset"]
    assert np.median(np.linalg.norm(in_cube - 0.5, axis=1)) == pytest.approx(1.32)
    assert all("is_fisheye" not in frame for frame in document["frames"])


def test_moving_a_capture_moves_all_of_it(tmp_path: Path) -> None:
    b_from_capture = Similarity(
        3.0, torch.eye(3, dtype=torch.float64)[[1, 2, 0]], torch.tensor([1.0, 2.0, 3.0]).double()
    )
    box = torch.tensor([[-1.0] * 3, [1.0] * 3], dtype=torch.float64)
    capture = capture_of(tmp_path, bounds=box, up=torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    moved = in_frame(capture, b_from_capture)
    assert_same_pixels(capture, list(moved.frames), b_from_capture)
    assert moved.points is not None and capture.points is not None
    assert torch.allclose(moved.points.xyz, b_from_capture.apply(capture.points.xyz))
    assert moved.near == pytest.approx(1.5) and moved.bounds is not None
    assert moved.bounds.tolist() == [[-2.0, -1.0, 0.0], [4.0, 5.0, 6.0]]
    at = torch.rand(3, dtype=torch.float64)
    before, after = capture.original_from_capture.apply(at), moved.original_from_capture.apply(b_from_capture.apply(at))
    assert torch.allclose(before, after)
