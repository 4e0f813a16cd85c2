"""fields.py: which cells may be occupied at all, and how occupancy follows the density."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from analytic_sphere import camera_at, info_of, ring
from painted_ball import PaintedBall
from torch import Tensor

from lightfold.cameras import Camera
from lightfold.fields import OccupancyGrid, block_centres, bounded_exp, in_hull, layers, seen_cells, sees
from lightfold.ops.march import cell_centres, cell_of, unpack_bits
from lightfold.scene import SceneInfo

SIZE = 32


def info(cameras: list[Camera], bounded: bool = True, near: float = 0.2) -> SceneInfo:
    return replace(info_of(cameras, None), bounded=bounded, near=near, view_near=(near,) * len(cameras))


def around(count: int = 8) -> SceneInfo:
    origin = torch.zeros(3)
    return info([camera_at(eye, origin) for eye in ring(count)])


def grid_of(scene: SceneInfo | None = None, thickness: float = 0.05, cascades: int = 3) -> OccupancyGrid:
    return OccupancyGrid(scene or around(), SIZE, cascades, thickness)


def blob(points: Tensor) -> Tensor:
    """A ball of radius 0.4 at the origin, of density 10."""
    return torch.where(points.norm(dim=1) < 0.4, 10.0, 0.0)


def update(grid: OccupancyGrid, density, times: int, seed: int = 0, probes: int = 20_000) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(times):
        grid.update(density, probes, generator)


class TestSeen:
    def test_in_front_but_not_behind(self) -> None:
        """Two cameras side by side that look along +x, from inside of the region."""
        eyes = [torch.tensor([-0.5, y, 0.0]) for y in (-0.1, 0.1)]
        cameras = [camera_at(eye, eye + torch.tensor([1.0, 0.0, 0.0])) for eye in eyes]
        allowed = unpack_bits(seen_cells(info(cameras), 64, 1))
        where = torch.tensor([[0.3, 0, 0], [0.9, 0.5, 0.3], [-0.9, 0, 0], [-0.9, 0.5, 0.5], [0.0, 0.95, 0.0]])
        assert allowed[cell_of(where, 1, 64)].tolist() == [True, True, False, False, False]

    def test_nothing_before_the_near_plane(self) -> None:
        camera = camera_at(torch.tensor([-0.8, 0.0, 0.0]), torch.zeros(3))
        centres = torch.tensor([[-0.3, 0.0, 0.0], [0.3, 0.0, 0.0]])
        assert sees(camera, 0.2, centres, 0.05).tolist() == [True, True]
        assert sees(camera, 0.9, centres, 0.05).tolist() == [False, True]

    def test_one_of_many_cameras_is_not_enough(self) -> None:
        """Only where few cameras exist may one alone decide."""
        right = [camera_at(torch.tensor([0.0, -0.1 * i, 0.0]), torch.tensor([1.0, -0.1 * i, 0.0])) for i in range(4)]
        left = camera_at(torch.zeros(3), torch.tensor([-1.0, 0.0, 0.0]))
        behind = torch.tensor([[-0.8, 0.0, 0.0]])
        many = unpack_bits(seen_cells(info([*right, left]), SIZE, 1))
        few = unpack_bits(seen_cells(info([*right[:2], left]), SIZE, 1))
        assert not many[cell_of(behind, 1, SIZE)] and few[cell_of(behind, 1, SIZE)]

    @pytest.mark.parametrize(
        "focal",
        [40.0, 16.0],
        ids=["62 degrees", "113 degrees"],
    )
    def test_whatever_two_cameras_see_is_allowed(self, focal: float) -> None:
        """No cell is lost that holds a point which falls into two pictures: thousands of points, on three cascades."""
        cascades, generator = 3, torch.Generator().manual_seed(0)
        eyes = [eye * 0.4 for eye in ring(9)]
        aims = torch.randn(9, 3, generator=generator) * 0.5
        scene = info([camera_at(eye, aim, focal=focal) for eye, aim in zip(eyes, aims, strict=True)], bounded=False)
        half = 2.0 ** torch.randint(cascades, (30_000, 1), generator=generator)
        points = (torch.rand(30_000, 3, generator=generator) * 2 - 1) * half
        count = torch.zeros(len(points), dtype=torch.int64)
        for camera, near in zip(scene.cameras, scene.view_near, strict=True):
            xy, valid = camera.project(points)
            inside = valid & (xy >= 0).all(dim=1) & (xy[:, 0] < camera.width) & (xy[:, 1] < camera.height)
            count += inside & ((points - camera.center).norm(dim=1) > near)
        seen = points[count >= 2]
        allowed = unpack_bits(seen_cells(scene, SIZE, cascades))[cell_of(seen, cascades, SIZE)]
        assert len(seen) > 2000
        assert allowed.all(), f"{int((~allowed).sum())} of {len(seen)} points lost"

    def test_cascades_of_a_bounded_scene(self) -> None:
        assert grid_of().cascades == 1
        assert grid_of(replace(around(), bounded=False)).cascades == 3


class TestHull:
    def test_cells_of_the_ball_stay_and_those_far_from_it_go(self) -> None:
        ball = PaintedBall(views=14, side=32, focal=0.7)
        grid = OccupancyGrid(ball.info, 64, 1, 0.05)
        before = unpack_bits(grid.allowed)
        grid.carve(ball)  # type: ignore[arg-type]
        after, centres = unpack_bits(grid.allowed), cell_centres(0, 64)
        inside = centres.norm(dim=1) < 0.98
        assert torch.equal(after & inside, before & inside) and (before & inside).any()
        outside = centres.norm(dim=1) > 1.25
        assert 0 < int((after & outside).sum()) < 0.75 * int((before & outside).sum())
        assert torch.equal(grid.bits, grid.allowed)

    def test_what_a_mask_hides_is_not_judged(self) -> None:
        ball = PaintedBall(views=8, side=24)
        painted = ball.view
        ball.view = lambda index: replace(painted(index), mask=torch.zeros(24, 24, dtype=torch.bool))  # type: ignore
        assert in_hull(ball, block_centres(0, SIZE), 0.2).all()  # type: ignore[arg-type]


class TestUpkeep:
    def test_starts_full(self) -> None:
        grid = grid_of()
        assert torch.equal(grid.bits, grid.allowed) and grid.fraction == 1.0

    def test_empty_space_is_given_up_after_its_grace(self) -> None:
        grid = grid_of()
        update(grid, lambda p: torch.zeros(len(p)), grid.GRACE - 1, probes=0)
        assert grid.fraction == 1.0
        update(grid, lambda p: torch.zeros(len(p)), 3, probes=0)
        assert grid.fraction == 0.0

    def test_follows_the_density(self) -> None:
        """Found by probing alone, from a grid that had given up everything; and given up again when it goes."""
        grid = grid_of()
        grid.bits.zero_()
        update(grid, blob, 20)
        occupied, distance = unpack_bits(grid.bits), cell_centres(0, SIZE).norm(dim=1)
        allowed, cell = unpack_bits(grid.allowed), 2 / SIZE * 3**0.5 / 2
        assert occupied[allowed & (distance < 0.4 - cell)].float().mean() > 0.99
        assert not occupied[distance > 0.4 + cell].any()
        update(grid, lambda p: torch.zeros(len(p)), 80)
        assert grid.fraction == 0.0
        update(grid, blob, 5)
        assert grid.fraction > 0.0

    def test_threshold_is_an_optical_thickness(self) -> None:
        """Coarser cascades have wider cells, so thinner matter fills them."""
        grid = grid_of(replace(around(), bounded=False), thickness=0.05)
        width = 2 / SIZE * torch.tensor([1.0, 2.0, 4.0])
        torch.testing.assert_close(grid.threshold * width, torch.full((3,), 0.05))
        grid.bits.zero_()
        update(grid, lambda p: torch.full((len(p),), 0.6), 10)
        share = (unpack_bits(grid.bits) & unpack_bits(grid.allowed)).reshape(3, -1).any(dim=1)
        assert share.tolist() == [False, True, True]

    def test_cells_that_nobody_sees_stay_empty(self) -> None:
        grid = grid_of(info([camera_at(torch.tensor([-0.5, 0, 0]), torch.zeros(3))]))
        assert 0 < int(unpack_bits(grid.allowed).sum()) < SIZE**3
        update(grid, lambda p: torch.full((len(p),), 1e6), 5)
        assert (grid.bits & ~grid.allowed == 0).all() and grid.fraction > 0

    def test_densities_that_are_not_numbers_occupy_nothing(self) -> None:
        grid = grid_of()
        grid.bits.zero_()
        update(grid, lambda p: torch.full((len(p),), torch.nan), 3)
        assert grid.fraction == 0.0

    def test_the_generator_decides(self) -> None:
        grids = [grid_of() for _ in range(3)]
        for grid, seed in zip(grids, (1, 1, 2), strict=True):
            grid.bits.zero_()
            update(grid, blob, 1, seed, probes=2000)
        assert torch.equal(grids[0].bits, grids[1].bits) and not torch.equal(grids[0].bits, grids[2].bits)

    def test_state_round_trip(self) -> None:
        grid = grid_of()
        update(grid, blob, 40)
        other = grid_of()
        other.load_state_dict(grid.state_dict())
        for g in (grid, other):
            update(g, blob, 3, seed=5)
        assert torch.equal(grid.bits, other.bits) and torch.equal(grid.peak, other.peak)
        assert 0 < grid.fraction < 1


def test_bounded_exponential() -> None:
    """Never infinite, and never without a slope, in either direction."""
    x = torch.tensor([-200.0, -1.0, 0.0, 11.0, 500.0], requires_grad=True)
    y = bounded_exp(x)
    torch.testing.assert_close(y[1:4].detach(), torch.exp(x.detach()[1:4]))
    assert y[4] == y[3] and bool(y.isfinite().all())
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


def test_layers_keep_the_size_of_what_passes() -> None:
    torch.manual_seed(0)
    weights = layers(64, 64, 64, 8)
    assert [tuple(w.shape) for w in weights] == [(64, 64), (64, 64), (8, 64)]
    assert all(float(w.detach().abs().max()) <= (6 / sum(w.shape)) ** 0.5 for w in weights)
    assert float(weights[0].detach().var()) == pytest.approx(2 / 128, rel=0.1)
