"""Panoramas cut into perspective pictures: rotations, maps, resampling at seam and poles, masks, posed crops."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightfold.cameras import Camera, Lens
from lightfold.capture import Capture, Frame, Points
from lightfold.errors import CaptureError
from lightfold.footage import panorama
from lightfold.geometry import so3_exp

WIDTH, HEIGHT = 192, 96
ANGLES = st.floats(-math.pi, math.pi)


def sphere(width: int = WIDTH, pose: Tensor | None = None) -> Camera:
    return Camera.panorama(torch.eye(3, 4, dtype=torch.float64) if pose is None else pose, width, width // 2)


def paint(direction: Tensor) -> NDArray[np.float64]:
    """A smooth colour [..., 3] in [0, 255] of every direction, none like another."""
    x, y, z = direction.unbind(-1)
    waves = [torch.sin(3 * x + 2 * y) + z, torch.cos(2 * z - 3 * y) + x, torch.sin(2 * x * z + 4 * y) - z]
    return (127.5 + 60.0 * torch.stack(waves, dim=-1)).clamp(0, 255).numpy()


def painted(width: int = WIDTH) -> NDArray[np.uint8]:
    camera = sphere(width)
    return paint(camera.unproject(camera.pixel_grid())).round().astype(np.uint8).reshape(width // 2, width, 3)


@given(ANGLES, st.floats(-math.pi / 2, math.pi / 2))
@settings(max_examples=50, deadline=None)
def test_a_crop_looks_where_it_is_told(yaw: float, pitch: float) -> None:
    rotation = panorama.crop_from_pano(yaw, pitch)
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert float(torch.linalg.det(rotation)) == pytest.approx(1.0)
    xy = sphere().project(rotation[2][None])[0][0]
    if abs(pitch) < 1.57:
        assert math.cos(2 * math.pi * float(xy[0]) / WIDTH - math.pi - yaw) == pytest.approx(1.0, abs=1e-9)
    assert float(xy[1]) == pytest.approx((0.5 - pitch / math.pi) * HEIGHT, abs=1e-4)
    assert float(rotation[0, 1]) == 0.0  # the horizon is level


def test_known_axes() -> None:
    straight, right, up = (panorama.crop_from_pano(*angles) for angles in ((0, 0), (math.pi / 2, 0), (0, math.pi / 2)))
    assert torch.equal(straight, torch.eye(3, dtype=torch.float64))
    assert torch.allclose(right[2], torch.tensor([1.0, 0.0, 0.0]).double(), atol=1e-15)
    assert torch.allclose(up[2], torch.tensor([0.0, -1.0, 0.0]).double(), atol=1e-15)
    assert torch.allclose(up[1], torch.tensor([0.0, 0.0, 1.0]).double(), atol=1e-15)  # below the zenith is ahead


@given(st.sampled_from(sorted(panorama.LAYOUTS)), st.integers(0, 2**32 - 1))
@settings(max_examples=6, deadline=None)
def test_maps_between_crop_and_panorama_undo_each_other(name: str, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    turn = so3_exp(torch.randn(3, generator=rng, dtype=torch.float64))
    posed = sphere(pose=torch.cat([turn, torch.randn(3, 1, generator=rng, dtype=torch.float64)], dim=1))
    for crop in panorama.crop_cameras(posed, panorama.LAYOUTS[name], 100):
        xy = torch.rand(5, 4, 2, generator=rng, dtype=torch.float64) * 100
        there, seen = panorama.same_directions(crop, posed, xy)
        back, also = panorama.same_directions(posed, crop, there)
        assert bool(seen.all()) and bool(also.all())
        assert torch.allclose(back, xy, atol=1e-9)
        # The same by way of a point in the world.
        ray = crop.rays(xy.flatten(0, 1))
        assert torch.allclose(posed.project(ray.origin + 3 * ray.direction)[0], there.flatten(0, 1), atol=1e-6)


def test_layouts_are_those_of_their_names_and_the_cube_sees_everything_once() -> None:
    assert all(len(layout.directions) == int(name) for name, layout in panorama.LAYOUTS.items())
    direction = torch.nn.functional.normalize(torch.randn(4000, 3, dtype=torch.float64), dim=-1)
    seen = torch.zeros(4000)
    for crop in panorama.crop_cameras(sphere(), panorama.LAYOUTS["6"], 64):
        xy, valid = crop.project(direction)
        seen += valid & ((xy >= 0) & (xy < 64)).all(-1)
    assert bool((seen == 1).all())
    with pytest.raises(ValueError, match="fov"):
        panorama.rings(180.0, (0.0, 4))


@pytest.mark.parametrize("name", ["6", "14"])
def test_crops_show_what_their_own_rays_see(name: str) -> None:
    """The straight-back crop crosses the seam, and those of the cube contain both poles."""
    planes = panorama.as_planes(painted(), panorama=True)
    layout = panorama.LAYOUTS[name]
    assert panorama.natural_size(layout, WIDTH) == round(2 * math.tan(layout.fov / 2) * WIDTH / (2 * math.pi))
    for crop in panorama.crop_cameras(sphere(), layout):
        picture = panorama.cut(planes, panorama.crop_map(sphere(), crop), crop)
        truth = paint(crop.unproject(crop.pixel_grid()) @ crop.cam_from_world[:, :3]).reshape(picture.shape)
        assert np.abs(picture - truth).max() < 3.0


def test_neighbours_across_the_seam_and_over_the_poles() -> None:
    numbers = np.arange(HEIGHT * WIDTH, dtype=np.int64).reshape(HEIGHT, WIDTH) % 251
    planes = panorama.as_planes(numbers.astype(np.uint8), panorama=True)
    y = 10
    xy = torch.tensor([[[0.0, y + 0.5], [float(WIDTH), y + 0.5], [5.5, 0.0], [5.5, float(HEIGHT)]]])
    left, right, top, bottom = panorama.resample(planes, xy)[0, 0].tolist()
    assert left == pytest.approx((numbers[y, 0] + numbers[y, -1]) / 2, abs=1e-3)
    assert right == pytest.approx(left, abs=1e-3)
    assert top == pytest.approx((numbers[0, 5] + numbers[0, 5 + WIDTH // 2]) / 2, abs=1e-3)
    assert bottom == pytest.approx((numbers[-1, 5] + numbers[-1, 5 + WIDTH // 2]) / 2, abs=1e-3)


def test_pixel_centres_are_not_moved() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    for around in (True, False):
        planes = panorama.as_planes(picture, panorama=around)
        grid = sphere(16).pixel_grid().reshape(8, 16, 2)
        assert np.abs(panorama.resample(planes, grid).permute(1, 2, 0).numpy() - picture).max() < 1e-3


def test_a_small_crop_averages_instead_of_skipping() -> None:
    stripes = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    stripes[:, ::2] = 200
    crop = panorama.crop_cameras(sphere(), panorama.LAYOUTS["4"], 12)[0]
    assert panorama.samples_per_side(WIDTH, crop) > 4
    picture = panorama.cut(panorama.as_planes(stripes, panorama=True), panorama.crop_map(sphere(), crop), crop)
    assert np.abs(picture.astype(float) - 100).max() < 20
    assert panorama.samples_per_side(WIDTH, panorama.crop_cameras(sphere(), panorama.LAYOUTS["4"])[0]) == 1


# --- posed crops -----------------------------------------------------------------------------------------------------


@pytest.fixture
def walk(tmp_path: Path) -> Capture:
    """Two posed panoramas of one painted sphere, an ordinary photograph, a panorama without a pose, and points."""
    root = tmp_path / "walk"
    (root / "images").mkdir(parents=True)
    rng = torch.Generator().manual_seed(3)
    frames = []
    for k in range(2):
        turn = so3_exp(torch.randn(3, generator=rng, dtype=torch.float64))
        camera = sphere(256, torch.cat([turn, torch.randn(3, 1, generator=rng, dtype=torch.float64)], dim=1))
        path = root / "images" / f"größe {k}.png"
        Image.fromarray(painted(256)).save(path)
        frames.append(Frame(path, camera, f"images/{path.name}", time=float(k)))
    plain = replace(frames[0], camera=panorama.crop_cameras(camera, panorama.LAYOUTS["4"], 32)[0], name="plain.jpg")
    frames += [plain, replace(frames[0], camera=None, name="lost.png")]
    xyz = torch.randn(50, 3, generator=rng, dtype=torch.float64) * 5
    tracks = (torch.arange(50).repeat(3), torch.arange(3).repeat_interleave(50))
    return Capture(root, "transforms", tuple(frames), points=Points(xyz, tracks=tracks))


def test_crops_stand_where_their_panorama_stands_and_show_the_same(walk: Capture, tmp_path: Path) -> None:
    said: list[tuple[int, int]] = []
    out = tmp_path / "crops"
    cut = panorama.training_crops(
        walk, out, panorama.LAYOUTS["6"], progress=lambda _, done, total: said.append((done, total))
    )
    assert cut.root == out and len(cut.frames) == 13 and said[-1] == (12, 12)
    assert any("without a pose" in note for note in cut.notes)
    for k, frame in enumerate(cut.frames[:12]):
        camera, parent = frame.camera, walk.frames[k // 6].camera
        assert camera is not None and parent is not None and camera.lens is Lens.PINHOLE
        assert frame.name == f"images/größe {k // 6}_{k % 6:02d}.png" and frame.path == out / frame.name
        assert torch.allclose(camera.center, parent.center, atol=1e-12) and frame.time == k // 6
        picture = np.asarray(Image.open(frame.path))
        assert picture.shape == (camera.height, camera.width, 3)
        # What a pixel shows is what the panorama shows in the direction of the pixel's ray.
        direction = camera.rays(camera.pixel_grid()).direction @ parent.cam_from_world[:, :3].mT
        assert np.abs(picture - paint(direction).reshape(picture.shape)).max() < 3.0
    assert cut.frames[12] is walk.frames[2]


def test_tracks_follow_to_the_crops_that_see_the_points(walk: Capture, tmp_path: Path) -> None:
    cut = panorama.training_crops(walk, tmp_path / "crops", panorama.LAYOUTS["6"])
    assert cut.points is not None and cut.points.tracks is not None
    point, frame = cut.points.tracks
    for parent in range(2):
        seen = point[(frame >= 6 * parent) & (frame < 6 * parent + 6)]
        assert sorted(seen.tolist()) == list(range(50))  # the faces of a cube see each point once
    assert sorted(point[frame == 12].tolist()) == list(range(50))


def test_masks_and_transparency_reach_the_crops(walk: Capture, tmp_path: Path) -> None:
    counts = np.full((128, 256), 255, dtype=np.uint8)
    counts[64:] = 0
    Image.fromarray(counts).save(tmp_path / "mask.png")
    rgba = np.dstack([painted(256), np.where(np.arange(256)[None] < 128, 255, 0).repeat(128, 0).astype(np.uint8)])
    Image.fromarray(rgba).save(walk.frames[1].path)
    frames = (replace(walk.frames[0], mask=tmp_path / "mask.png"), walk.frames[1])
    cut = panorama.training_crops(replace(walk, frames=frames, points=None), tmp_path / "crops", panorama.LAYOUTS["6"])
    for k, frame in enumerate(cut.frames):
        assert frame.mask is not None and frame.camera is not None
        assert frame.mask == tmp_path / "crops" / "masks" / f"{frame.path.name}.png"
        mask = np.asarray(Image.open(frame.mask))
        assert set(np.unique(mask)) <= {0, 255}
        parent = frames[k // 6].camera
        assert parent is not None
        xy, _ = panorama.same_directions(frame.camera, parent, frame.camera.pixel_grid())
        distance = 64 - xy[:, 1] if k < 6 else torch.minimum(128 - xy[:, 0], xy[:, 0])
        clear = distance.numpy().reshape(mask.shape)
        assert (mask[clear > 1.5] == 255).all() and (mask[clear < -0.5] == 0).all()


def test_damaged_panoramas_are_left_out_with_a_note(walk: Capture, tmp_path: Path) -> None:
    walk.frames[0].path.write_bytes(walk.frames[0].path.read_bytes()[:500])
    cut = panorama.training_crops(walk, tmp_path / "crops", panorama.LAYOUTS["4"], size=20)
    assert [frame.name for frame in cut.frames] == [*(f"images/größe 1_{k:02d}.png" for k in range(4)), "plain.jpg"]
    assert any("größe 0.png is left out" in note for note in cut.notes)
    walk.frames[1].path.write_bytes(b"")
    with pytest.raises(CaptureError, match="No panorama"):
        panorama.training_crops(walk, tmp_path / "crops")
    with pytest.raises(CaptureError, match="No panorama"):
        panorama.training_crops(walk.select([3]), tmp_path / "crops")


def test_nothing_is_written_outside_or_over_the_capture(walk: Capture, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="out"):
        panorama.training_crops(walk, walk.root)
    same = [replace(walk.frames[0], name=name) for name in ("../../evil.png", "a.jpg", "a.webp", "sub/images/a.png")]
    cut = panorama.training_crops(replace(walk, frames=tuple(same), points=None), tmp_path / "x" / "crops", size=8)
    assert len({frame.path for frame in cut.frames}) == 4 * 8
    root = (tmp_path / "x" / "crops" / "images").resolve()
    assert all(root in frame.path.resolve().parents for frame in cut.frames)


def test_many_rounds_give_the_same_as_one(walk: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = panorama.training_crops(walk, tmp_path / "one", panorama.LAYOUTS["8"], size=40)
    monkeypatch.setattr(panorama, "MAP_BYTES", 30_000)
    many = panorama.training_crops(walk, tmp_path / "many", panorama.LAYOUTS["8"], size=40)
    assert [frame.name for frame in one.frames] == [frame.name for frame in many.frames]
    for a, b in zip(one.frames[:16], many.frames[:16], strict=True):
        assert a.path.read_bytes() == b.path.read_bytes()
