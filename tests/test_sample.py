"""The sample capture in examples/sample: its files are sound, and they are what its script says they are."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightfold.formats import open_capture

SAMPLE = Path(__file__).resolve().parents[1] / "examples" / "sample"
EXIF_FOLDER, DATE_TIME_ORIGINAL, FOCAL_LENGTH, FOCAL_LENGTH_35MM, MAKE = 0x8769, 0x9003, 0x920A, 0xA405, 0x010F


@pytest.fixture(scope="module")
def sample() -> ModuleType:
    """The script as a module; dataclasses look their module up by name, hence the entry in sys.modules."""
    spec = importlib.util.spec_from_file_location("lightfold_sample", SAMPLE / "make_sample.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def posed() -> dict[str, Any]:
    return json.loads((SAMPLE / "transforms.json").read_text())


def camera_of(sample: ModuleType, posed: dict[str, Any], index: int) -> Any:
    """The camera as the file states it, not as the script would compute it."""
    pose = np.array(posed["frames"][index]["transform_matrix"])
    lens = {name: posed[name] for name in ("cx", "cy", "k1", "k2", "p1", "p2")}
    return sample.Camera(pose, posed["w"], posed["h"], fx=posed["fl_x"], fy=posed["fl_y"], **lens)


def truth_of(sample: ModuleType, posed: dict[str, Any], index: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """Half-size camera, depth [N] in metres along the ray (infinite: sky) and unit normals [N, 3] of one stored truth
    view."""
    stored = np.asarray(Image.open(SAMPLE / "truth" / f"{index + 1:04d}_depth.png"))
    colour = np.asarray(Image.open(SAMPLE / "truth" / f"{index + 1:04d}_normal.png"))
    height, width = stored.shape
    depth = np.where(stored == 0, np.inf, stored * sample.DEPTH_UNIT).ravel()
    normal = colour.reshape(-1, 3) / 127.5 - 1.0
    return camera_of(sample, posed, index).resized(width, height), depth, normal


def centre_rays(sample: ModuleType, camera: Any) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[: camera.height, : camera.width]
    return sample.pixel_rays(camera, np.stack([x.ravel() + 0.5, y.ravel() + 0.5], axis=1))


def test_every_photo_is_there_and_says_how_it_was_taken(posed: dict[str, Any]) -> None:
    names = [frame["file_path"] for frame in posed["frames"]]
    assert len(names) == len(set(names)) >= 55
    assert sorted(names) == sorted(f"images/{path.name}" for path in (SAMPLE / "images").iterdir())
    taken = []
    for name in names:
        with Image.open(SAMPLE / name) as photo:
            exif = photo.getexif()
            details = exif.get_ifd(EXIF_FOLDER)
            assert photo.size == (posed["w"], posed["h"])
        assert exif[MAKE] == "Lightfold"
        # The 35 mm equivalent leads back to the true focal length: by the diagonal, rounded to whole millimetres.
        diagonal = np.hypot(posed["w"], posed["h"])
        assert details[FOCAL_LENGTH_35MM] * diagonal / np.hypot(36, 24) == pytest.approx(posed["fl_x"], rel=0.02)
        assert float(details[FOCAL_LENGTH]) > 0
        taken.append(datetime.strptime(details[DATE_TIME_ORIGINAL], "%Y:%m:%d %H:%M:%S"))
    assert taken == sorted(taken)
    assert 30 < (taken[-1] - taken[0]).total_seconds() < 120


def test_the_sample_stays_small_enough_for_a_repository() -> None:
    files = [path for path in SAMPLE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 6e6


def test_poses_are_rigid_and_walk_around_the_table(posed: dict[str, Any]) -> None:
    poses = np.array([frame["transform_matrix"] for frame in posed["frames"]])
    turn, eye = poses[:, :3, :3], poses[:, :3, 3]
    np.testing.assert_allclose(turn @ turn.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turn.shape), atol=1e-7)
    np.testing.assert_allclose(np.linalg.det(turn), 1.0, atol=1e-7)
    np.testing.assert_array_equal(poses[:, 3], np.broadcast_to([0.0, 0.0, 0.0, 1.0], (len(poses), 4)))
    distance = np.linalg.norm(eye, axis=1)
    assert 0.7 < distance.min() < 1.0 < 1.3 < distance.max() < 1.7
    assert (turn[:, 2, 1] > 0.5).all(), "world z is up in every picture"
    turned = np.unwrap(np.arctan2(eye[:, 1], eye[:, 0]))
    assert turned[-1] - turned[0] == pytest.approx(2 * np.pi * 1.3, abs=0.2)


def test_lens_round_trip_over_the_whole_picture(sample: ModuleType, posed: dict[str, Any]) -> None:
    camera = camera_of(sample, posed, 7)
    xy = np.stack(np.meshgrid(np.linspace(0.1, 639.9, 41), np.linspace(0.1, 479.9, 31)), axis=-1).reshape(-1, 2)
    origin, direction = sample.pixel_rays(camera, xy)
    again, seen = sample.project(camera, origin + 2.5 * direction)
    assert seen.all()
    np.testing.assert_allclose(again, xy, atol=1e-8)
    undistorted, _ = sample.project(sample.replace(camera, k1=0.0, k2=0.0, p1=0.0, p2=0.0), origin + 2.5 * direction)
    assert np.abs(undistorted - xy).max() > 5.0, "the lens is meant to be noticeably distorted"


def test_a_small_rendering_matches_the_stored_photo(
    sample: ModuleType, posed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ten pixels of the stored photo make one of the small one, so the paint is averaged over a tenth as many.
    monkeypatch.setattr(sample, "TEXTURE_BLUR", sample.TEXTURE_BLUR / 10)
    camera = camera_of(sample, posed, 20).resized(64, 48)
    rendered = sample.render(camera, samples=48, extra=0)
    with Image.open(SAMPLE / posed["frames"][20]["file_path"]) as photo:
        light = sample.decode(np.asarray(photo.convert("RGB")))
    # Pictures are averages of light, so the stored one is shrunk as light, and blurred like the small one.
    shrunk = sample.encode(sample.soften(light.reshape(48, 10, 64, 10, 3).mean(axis=(1, 3))))
    error = np.mean((shrunk.astype(np.float64) - rendered) ** 2)
    assert 10 * np.log10(255.0**2 / error) > 32.0


def test_rendering_is_deterministic(sample: ModuleType, posed: dict[str, Any]) -> None:
    camera = camera_of(sample, posed, 3).resized(16, 12)
    np.testing.assert_array_equal(sample.render(camera, seed=5), sample.render(camera, seed=5))


@pytest.mark.parametrize("index", [0, 32])
def test_stored_truth_is_the_exact_geometry(sample: ModuleType, posed: dict[str, Any], index: int) -> None:
    camera, depth, normal = truth_of(sample, posed, index)
    origin, direction = centre_rays(sample, camera)
    pick = np.random.default_rng(index).choice(depth.size, 3000, replace=False)
    t, n = sample.scene_depth_normal(origin, direction[pick])
    hit = np.isfinite(t)
    np.testing.assert_array_equal(np.isfinite(depth[pick]), hit)
    assert np.abs(depth[pick][hit] - t[hit]).max() <= 0.51 * sample.DEPTH_UNIT
    np.testing.assert_allclose(np.linalg.norm(n[hit], axis=1), 1.0, atol=1e-9)
    np.testing.assert_allclose(normal[pick][hit], n[hit], atol=0.5 / 127.5 + 1e-9)
    facing = (n[hit] * direction[pick][hit]).sum(axis=1)
    assert (facing < 0.02).mean() > 0.999, "visible surfaces face the camera"


def test_points_of_one_truth_view_land_on_the_surfaces_of_another(sample: ModuleType, posed: dict[str, Any]) -> None:
    # Views 1 and 49 look at the same side of the table, one turn apart.
    first, depth, _ = truth_of(sample, posed, 0)
    second, other_depth, _ = truth_of(sample, posed, 48)
    origin, direction = centre_rays(sample, first)
    near = depth < 6.0
    points = origin + direction[near] * depth[near, None]
    xy, seen = sample.project(second, points)
    assert seen.mean() > 0.3
    column, row = np.floor(xy[seen]).astype(int).T
    expected = np.linalg.norm(points[seen] - second.world_from_camera[:3, 3], axis=1)
    found = other_depth[row * second.width + column]
    # A point is on the surface that the other view sees there, or hidden behind it; never in the air before it.
    assert (np.abs(expected - found) < 0.02 * expected).mean() > 0.6
    assert (expected < found - 0.05 * expected).mean() < 0.02


def test_depth_and_normals_describe_the_same_surface(sample: ModuleType, posed: dict[str, Any]) -> None:
    camera, depth, normal = truth_of(sample, posed, 16)
    origin, direction = centre_rays(sample, camera)
    shape = (camera.height, camera.width)
    depth, normal = depth.reshape(shape), normal.reshape(*shape, 3)
    points = origin + direction.reshape(*shape, 3) * np.where(np.isfinite(depth), depth, 0.0)[..., None]
    step = points[:, 1:] - points[:, :-1]
    smooth = (np.abs(normal[:, 1:] - normal[:, :-1]).max(axis=2) < 0.02) & (depth[:, 1:] < 3.0) & (depth[:, :-1] < 3.0)
    smooth &= np.abs(depth[:, 1:] - depth[:, :-1]) < 0.03
    off_plane = np.abs((step * normal[:, :-1]).sum(axis=2))[smooth]
    assert smooth.mean() > 0.3
    assert np.quantile(off_plane, 0.95) < 1.5e-3
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    level = (normal[..., 2] > 0.999) & (np.hypot(x, y) < 0.55) & (np.abs(z) < 0.01)
    assert level.sum() > 1000 and np.quantile(np.abs(z[level]), 0.99) < 1e-3, "the table top is the plane z = 0"


def test_rays_into_the_sky_return_infinity_and_single_origins_broadcast(sample: ModuleType) -> None:
    through_an_arch = np.array([3.0, 1.5, 0.75])
    t, normal = sample.scene_depth_normal([0.0, 0.0, 1.2], [through_an_arch, [0.0, 0.0, -2.0]])
    assert np.isinf(t[0]) and (normal[0] == 0.0).all()
    assert t.shape == (2,) and 0.5 < t[1] <= 1.2


def test_the_script_writes_a_small_capture(tmp_path: Path) -> None:
    options = f"--out {tmp_path} --views 2 --size 32x24 --jobs 1".split()
    subprocess.run(
        [sys.executable, str(SAMPLE / "make_sample.py"), *options], check=True, capture_output=True, timeout=120
    )
    posed = json.loads((tmp_path / "transforms.json").read_text())
    assert (posed["w"], posed["h"], len(posed["frames"])) == (32, 24, 2)
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert written == [
        "images/0001.jpg", "images/0002.jpg", "transforms.json", "truth/0001_depth.png", "truth/0001_normal.png",
    ]  # fmt: skip


def test_the_library_reads_both_forms_and_sees_the_rays_that_were_traced(
    sample: ModuleType, posed: dict[str, Any]
) -> None:
    capture = open_capture(SAMPLE)
    assert len(capture.frames) == len(posed["frames"]) and capture.notes == ()
    xy = np.random.default_rng(4).random((200, 2)) * [posed["w"], posed["h"]]
    for index in (0, 31):
        frame = capture.frames[index]
        assert frame.camera is not None and frame.path.name == f"{index + 1:04d}.jpg"
        rays = frame.camera.rays(torch.from_numpy(xy))
        origin, direction = sample.pixel_rays(camera_of(sample, posed, index), xy)
        np.testing.assert_allclose(rays.direction.numpy(), direction, atol=1e-9)
        np.testing.assert_allclose(rays.origin.numpy(), np.broadcast_to(origin, (200, 3)), atol=1e-9)
    footage = open_capture(SAMPLE / "images")
    assert len(footage.frames) == len(posed["frames"]) and all(frame.camera is None for frame in footage.frames)
