"""Near planes, regions of interest, the scene frame, and the plane sweep that feeds them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightfold import bounds
from lightfold.bounds import Content, Region
from lightfold.cameras import Camera, Lens
from lightfold.capture import Capture, Frame, Points
from lightfold.geometry import look_at
from lightfold.sweep import MIN_CONTRAST, neighbours, small_size, spread_out, sweep

UP = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)


def vector(*xyz: float) -> Tensor:
    return torch.tensor(xyz, dtype=torch.float64)


def camera_at(eye: Tensor, target: Tensor, size: int = 64, up: Tensor = UP) -> Camera:
    intrinsics = torch.tensor([0.9 * size, 0.9 * size, size / 2, size / 2])
    return Camera(look_at(eye, target, up), intrinsics, torch.zeros(0), size, size, Lens.PINHOLE)


def ring(count: int, radius: float, height: float, centre: Tensor, arc: float = 2 * math.pi) -> list[Camera]:
    angles = [arc * i / count for i in range(count)]
    eyes = [centre + vector(radius * math.cos(a), radius * math.sin(a), height) for a in angles]
    return [camera_at(eye, centre) for eye in eyes]


def grid(spacing: float, columns: int = 4, rows: int = 4) -> list[Camera]:
    """Cameras side by side that all look along +y, as in a forward-facing capture."""
    eyes = [vector(spacing * (i - 1.5), 0, spacing * (j - 1.5)) for j in range(rows) for i in range(columns)]
    return [camera_at(eye, eye + vector(0, 1, 0)) for eye in eyes]


def ball(count: int, radius: float, centre: Tensor) -> Tensor:
    directions = torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return centre + radius * torch.nn.functional.normalize(directions, dim=-1)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The pictures are so small that handing work to a second thread costs more than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- near planes ---------------------------------------------------------------------------------------------------


def test_near_is_a_share_of_the_nearest_surface_seen() -> None:
    cameras = ring(12, radius=4, height=0, centre=vector(0, 0, 0))
    content = Content(ball(20_000, 1.0, vector(0, 0, 0)), "test")
    planes, anywhere, note = bounds.near_planes(cameras, content, Region("object-centric", vector(0, 0, 0), 4), None)
    assert note is None
    # The sphere begins at 3; one percent of its points lies within 0.06 of that.
    assert all(0.75 * 3 <= near < 0.75 * 3.1 for near in (*planes, anywhere))


def test_near_does_not_follow_a_handful_of_outliers() -> None:
    cameras = ring(12, radius=4, height=0, centre=vector(0, 0, 0))
    good = ball(5000, 1.0, vector(0, 0, 0))
    wrong = cameras[0].center + 0.3 * cameras[0].forward + 0.01 * ball(20, 1.0, vector(0, 0, 0))
    region = Region("object-centric", vector(0, 0, 0), 4)
    planes, _, _ = bounds.near_planes(cameras, Content(torch.cat([good, wrong]), "test"), region, None)
    assert min(planes) > 0.7 * 3


def test_near_never_exceeds_the_closest_content_even_if_the_capture_says_so() -> None:
    cameras = ring(6, radius=4, height=0, centre=vector(0, 0, 0))
    content = Content(ball(20_000, 1.0, vector(0, 0, 0)), "test")
    region = Region("object-centric", vector(0, 0, 0), 4)
    for stated in (2.8, 3.2, 10.0):
        planes, _, _ = bounds.near_planes(cameras, content, region, stated)
        assert all(0.75 * 3 < near < 3.05 for near in planes)


def test_view_without_points_takes_the_near_plane_of_the_others() -> None:
    cameras = [*ring(6, 4, 0, vector(0, 0, 0)), camera_at(vector(4, 0, 0), vector(8, 0, 0))]
    content = Content(ball(5000, 1.0, vector(0, 0, 0)), "test")
    planes, anywhere, _ = bounds.near_planes(cameras, content, Region("object-centric", vector(0, 0, 0), 4), None)
    assert planes[-1] == anywhere


@pytest.mark.parametrize("stated, near", [(None, 2.0), (3.0, 2.7)])
def test_without_content_near_is_a_guess_and_says_so(stated: float | None, near: float) -> None:
    cameras = ring(6, 4, 0, vector(0, 0, 0))
    nothing = Content(torch.zeros(0, 3, dtype=torch.float64), "test")
    planes, anywhere, note = bounds.near_planes(cameras, nothing, Region("object-centric", vector(0, 0, 0), 4), stated)
    assert planes == pytest.approx([near] * 6) and anywhere == pytest.approx(near)
    assert note is not None and "guess" in note


def test_points_count_only_inside_the_picture() -> None:
    camera = camera_at(vector(0, 0, 0), vector(0, 5, 0))
    xyz = torch.stack([vector(0, 2, 0), vector(0, -2, 0), vector(9, 2, 0)])
    assert bounds.distances(camera, xyz).tolist() == pytest.approx([2.0])


def test_reliable_points_drop_short_tracks_and_large_errors() -> None:
    xyz = ball(100, 1.0, vector(0, 0, 0))
    xyz[7] = math.nan
    error = torch.ones(100)
    error[3] = 50.0
    tracks = (torch.arange(100).repeat(3)[1:], torch.zeros(299, dtype=torch.int64))  # Point 0 is seen twice.
    kept = bounds.reliable_points(Points(xyz, error=error, tracks=tracks))
    expected = [i for i in range(100) if i not in (0, 3, 7)]
    assert torch.equal(kept, xyz[expected])


def test_reliable_points_keep_short_tracks_when_there_is_nothing_else() -> None:
    xyz = ball(100, 1.0, vector(0, 0, 0))
    tracks = (torch.arange(100).repeat(2), torch.zeros(200, dtype=torch.int64))
    assert len(bounds.reliable_points(Points(xyz, tracks=tracks))) == 100


# --- regions and frames --------------------------------------------------------------------------------------------


def test_orbit_is_centred_on_what_it_circles_with_the_cameras_at_distance_one() -> None:
    centre = vector(100, -50, 7)
    cameras = ring(16, radius=3, height=1, centre=centre)
    region = bounds.find_region(cameras, Content(ball(500, 0.5, centre), "test"), torch.eye(3).double())
    assert region.kind == "object-centric"
    torch.testing.assert_close(region.centre, centre)
    frame = bounds.frame_of_region(region, torch.eye(3).double())
    assert float(frame.apply(cameras[0].center).norm()) == pytest.approx(1.0)


def test_a_far_camera_of_an_orbit_stays_within_one_and_a_half() -> None:
    near, far = ring(8, 2, 0.5, vector(0, 0, 0)), ring(4, 9, 2, vector(0, 0, 0))
    region = bounds.find_region(near + far, Content(ball(500, 0.5, vector(0, 0, 0)), "test"), torch.eye(3).double())
    frame = bounds.frame_of_region(region, torch.eye(3).double())
    assert max(float(frame.apply(camera.center).abs().max()) for camera in near + far) <= 1.5 + 1e-6


def test_cameras_side_by_side_are_forward_facing() -> None:
    cameras = grid(0.3)
    wall = torch.cat([ball(500, 1.0, vector(0, 5, 0)), ball(100, 1.0, vector(0, 20, 0))])
    region = bounds.find_region(cameras, Content(wall, "test"), torch.eye(3).double())
    assert region.kind == "forward-facing"
    assert region.half_side == pytest.approx(5, rel=0.1)
    torch.testing.assert_close(region.centre, vector(0, region.half_side, 0), atol=1e-6, rtol=0)
    assert bounds.all_in_front(cameras, Content(wall, "test"))
    assert not bounds.all_in_front(cameras, Content(wall - vector(0, 6, 0), "test"))


def test_cameras_that_look_outwards_in_a_room_are_inside_out() -> None:
    eyes = ring(12, 1.0, 0, vector(0, 0, 0))
    cameras = [camera_at(camera.center, 3 * camera.center) for camera in eyes]
    walls = ball(3000, 1.0, vector(0, 0, 0))
    walls = 4 * walls / walls.abs().amax(-1, keepdim=True)  # The faces of a cube of half side 4.
    region = bounds.find_region(cameras, Content(walls, "test"), torch.eye(3).double())
    assert region.kind == "inside-out"
    assert region.half_side == pytest.approx(4, rel=0.1)
    torch.testing.assert_close(region.centre, vector(0, 0, 0), atol=0.2, rtol=0)


def test_a_long_walk_is_not_mistaken_for_forward_facing() -> None:
    cameras = [camera_at(vector(0, y, 0), vector(0, y + 1, 0)) for y in range(20)]
    sides = ball(2000, 1.0, vector(0, 0, 0)) * vector(2, 10, 2) + vector(0, 10, 0)
    region = bounds.find_region(cameras, Content(sides, "test"), torch.eye(3).double())
    assert region.kind == "inside-out"
    frame = bounds.frame_of_region(region, torch.eye(3).double())
    assert all(float(frame.apply(camera.center).abs().max()) <= 1 + 1e-6 for camera in cameras)


def test_two_cameras_and_nothing_known_still_give_a_frame() -> None:
    cameras = [camera_at(vector(x, 0, 0), vector(x, 1, 0)) for x in (0.0, 1.0)]
    region = bounds.find_region(cameras, Content(torch.zeros(0, 3).double(), "test"), torch.eye(3).double())
    assert region.half_side > 0 and bool(torch.isfinite(region.centre).all())


@pytest.mark.parametrize("up", [(0, 0, 1), (0, 0, -1), (0, 1, 0), (-1, 2, 0.5), (1e-9, 0, -1)])
def test_rotation_takes_up_to_z(up: tuple[float, float, float]) -> None:
    direction = torch.nn.functional.normalize(vector(*up), dim=0)
    rotation = bounds.rotation_to_up(ring(4, 1, 0, vector(0, 0, 0)), "auto", direction)
    torch.testing.assert_close(rotation @ direction, UP, atol=1e-7, rtol=0)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3).double(), atol=1e-7, rtol=0)
    assert float(torch.linalg.det(rotation)) == pytest.approx(1)


def test_mean_up_of_a_level_ring_is_its_axis() -> None:
    tilted = torch.nn.functional.normalize(vector(0.3, -0.5, 0.8), dim=0)
    side = torch.linalg.cross(tilted, vector(1, 0, 0))
    side = side / side.norm()
    other = torch.linalg.cross(tilted, side)
    eyes = [math.cos(a) * side + math.sin(a) * other for a in torch.linspace(0, 5.5, 12).tolist()]
    cameras = [camera_at(eye, vector(0, 0, 0), up=tilted) for eye in eyes]
    for orientation in ("up", "pca"):
        rotation = bounds.rotation_to_up(cameras, orientation, None)
        torch.testing.assert_close(rotation @ tilted, UP, atol=1e-6, rtol=0)
        assert float(torch.linalg.det(rotation)) == pytest.approx(1)
    assert torch.equal(bounds.rotation_to_up(cameras, "none", tilted), torch.eye(3).double())


def test_box_fills_the_cube_along_its_longest_side() -> None:
    box = torch.tensor([[0.0, 0.0, 0.0], [4.0, 2.0, 1.0]])
    frame = bounds.frame_of_box(box, bounds.rotation_to_up([], "none", None))
    torch.testing.assert_close(frame.apply(box.double()), torch.tensor([[-1, -0.5, -0.25], [1, 0.5, 0.25]]).double())


def test_bounded_capture_takes_near_and_far_from_its_box() -> None:
    cameras = ring(6, 4, 0, vector(0, 0, 0))
    frames = tuple(Frame(Path(f"{i}.png"), camera, f"{i}.png") for i, camera in enumerate(cameras))
    box = torch.tensor([[-1.5] * 3, [1.5] * 3], dtype=torch.float64)
    capture = Capture(Path("."), "test", frames, bounds=box)
    unused = lambda: pytest.fail("a known box needs no sweep")  # noqa: E731
    placed = bounds.place(capture, cameras, range(6), "auto", unused)
    assert placed.bounded and placed.scene_from_capture.scale == pytest.approx(1 / 1.5)
    assert placed.view_near[0] == pytest.approx((4 - 1.5) / 1.5)
    corner = math.dist((4 / 1.5, 0, 0), (-1, 1, 1))
    assert placed.far >= corner
    stated = bounds.place(replace(capture, near=2.0, far=6.0), cameras, range(6), "auto", unused)
    assert stated.far == pytest.approx(4.0) and all(near >= 2 / 1.5 for near in stated.view_near)


# --- the plane sweep -----------------------------------------------------------------------------------------------

WALL, BOX = 6.0, 3.0


def texture(u: Tensor, v: Tensor, seed: int) -> Tensor:
    """Smooth grey noise in [0, 1] that repeats nowhere near."""
    generator = torch.Generator().manual_seed(seed)
    frequency = 2.0 + 8.0 * torch.rand(12, 2, generator=generator).double()
    phase = 6.28 * torch.rand(12, generator=generator).double()
    waves = torch.sin(frequency[:, 0, None] * u + frequency[:, 1, None] * v + phase[:, None])
    return (0.5 + waves.sum(0) / 10).clamp(0, 1)


def picture(camera: Camera, blank: bool = False) -> Tensor:
    """A textured wall at y = WALL, and before it a textured square of half side 0.6 at y = BOX."""
    rays = camera.to(torch.float64).rays(camera.pixel_grid().double())
    shade = torch.full((len(rays),), 0.5, dtype=torch.float64)
    if not blank:
        for distance, half, seed in ((WALL, math.inf, 0), (BOX, 0.6, 1)):
            t = (distance - rays.origin[:, 1]) / rays.direction[:, 1]
            hit = rays.origin + t[:, None] * rays.direction
            inside = hit[:, [0, 2]].abs().amax(-1) < half
            shade = torch.where(inside, texture(hit[:, 0], hit[:, 2], seed), shade)
    return shade.float().reshape(camera.height, camera.width)


@pytest.fixture(scope="module")
def wall_views() -> tuple[list[Camera], list[Tensor]]:
    cameras = grid(0.25)
    return cameras, [picture(camera) for camera in cameras]


def test_sweep_finds_a_wall_and_what_stands_before_it(wall_views: tuple[list[Camera], list[Tensor]]) -> None:
    cameras, pictures = wall_views
    surface = sweep(cameras, lambda i: (pictures[i], None))
    assert len(surface) > 2000
    y = surface[:, 1]
    close = (y - WALL).abs().minimum((y - BOX).abs())
    assert float(close.quantile(0.9)) < 0.25
    on_box = y < 0.5 * (BOX + WALL)
    assert int(on_box.sum()) > 200
    assert float(surface[on_box][:, [0, 2]].abs().amax(-1).quantile(0.9)) < 0.8


def test_sweep_gives_near_planes_before_the_square(wall_views: tuple[list[Camera], list[Tensor]]) -> None:
    cameras, pictures = wall_views
    content = Content(sweep(cameras, lambda i: (pictures[i], None)), "test")
    planes, _, note = bounds.near_planes(cameras, content, Region("forward-facing", vector(0, 5, 0), 5), None)
    assert note is None and all(0.65 * BOX < near < 0.85 * BOX for near in planes)


def test_sweep_does_not_depend_on_place_or_unit(wall_views: tuple[list[Camera], list[Tensor]]) -> None:
    cameras, pictures = wall_views
    moved = []
    for camera in cameras:
        eye = 1000 * camera.center + vector(4e5, 5e6, 0)
        moved.append(camera_at(eye, eye + vector(0, 1, 0)))
    found = sweep(moved, lambda i: (pictures[i], None))
    there = (found - vector(4e5, 5e6, 0)) / 1000
    here = sweep(cameras, lambda i: (pictures[i], None))
    assert len(there) == pytest.approx(len(here), rel=0.05)
    torch.testing.assert_close(there.median(0).values, here.median(0).values, atol=0.05, rtol=0)


def test_sweep_of_blank_pictures_claims_nothing() -> None:
    cameras = grid(0.25)
    noise = torch.Generator().manual_seed(0)
    pictures = [picture(c, blank=True) + 0.3 * MIN_CONTRAST * torch.randn(64, 64, generator=noise) for c in cameras]
    assert len(sweep(cameras, lambda i: (pictures[i], None))) == 0


def test_sweep_of_unrelated_pictures_claims_next_to_nothing() -> None:
    cameras = grid(0.25)
    noise = torch.Generator().manual_seed(0)
    pictures = [torch.rand(64, 64, generator=noise) for _ in cameras]
    assert len(sweep(cameras, lambda i: (pictures[i], None))) < 20


def test_sweep_leaves_out_pixels_that_do_not_count(wall_views: tuple[list[Camera], list[Tensor]]) -> None:
    cameras, pictures = wall_views
    counts = torch.zeros(64, 64, dtype=torch.bool)
    assert len(sweep(cameras, lambda i: (pictures[i], counts))) == 0


@pytest.mark.parametrize("cameras", [[], grid(0.25)[:1], [grid(0.25)[0]] * 4])
def test_sweep_without_parallax_is_empty(cameras: list[Camera]) -> None:
    assert len(sweep(cameras, lambda i: (picture(cameras[i]), None))) == 0


def test_sweep_refuses_a_picture_of_another_size() -> None:
    with pytest.raises(ValueError, match="expected 64 x 64"):
        sweep(grid(0.25), lambda _: (torch.zeros(3, 3), None))


def test_neighbours_form_a_ladder_that_faces_the_same_way() -> None:
    cameras = ring(72, 3, 0, vector(0, 0, 0))  # 5 degrees apart.
    chosen = neighbours(cameras, 10)
    steps = sorted(min(abs(i - 10), 72 - abs(i - 10)) for i in chosen)
    assert 10 not in chosen and steps[0] == 1 and 4 <= steps[-1] <= 9


def test_spread_out_views_cover_the_ring() -> None:
    chosen = spread_out(ring(72, 3, 0, vector(0, 0, 0)), 8)
    gaps = [(b - a) % 72 for a, b in zip(chosen, chosen[1:] + chosen[:1], strict=True)]
    assert len(chosen) == 8 and max(gaps) <= 18


def test_small_size_keeps_the_shape() -> None:
    assert small_size(1920, 1080) == (96, 54) and small_size(50, 40) == (50, 40)
