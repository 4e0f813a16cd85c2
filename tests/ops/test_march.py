"""ops/march.py: the occupancy pyramid, and which steps along a ray become samples."""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any

import pytest
import torch
from kernel_checks import DTYPES, fate, threads
from torch import Tensor

from lightfold import ops
from lightfold.ops import march
from lightfold.ops.march import (
    cell_centres,
    cell_of,
    check_bits,
    grid_decay_,
    grid_raise_,
    pack_bits,
    random_unit,
    unpack_bits,
)

SIZE = 16
FULL, EMPTY = -1, 0
FourTensors = tuple[Tensor, Tensor, Tensor, Tensor]
"""Origins, directions, near, far."""


def bits_of(kind: str, cascades: int = 1) -> Tensor:
    """Bits of a grid that is full, empty, or of a third of its cells with one block in four empty altogether."""
    words = cascades * SIZE**3 // 64
    if kind != "random":
        return torch.full((words,), FULL if kind == "full" else EMPTY, dtype=torch.int64)
    generator = torch.Generator().manual_seed(5)
    occupied = torch.rand(words, 64, generator=generator) < 0.33
    return pack_bits((occupied & (torch.rand(words, 1, generator=generator) > 0.25)).reshape(-1))


def rays_of(n: int, dtype: torch.dtype, reach: float = 1.0, seed: int = 0) -> FourTensors:
    """Rays from in and around the pyramid to points inside; a fifth of the directions lie in a plane or on an axis."""
    generator = torch.Generator().manual_seed(seed)
    origin = torch.randn(n, 3, generator=generator, dtype=torch.float64) * reach
    direction = torch.rand(n, 3, generator=generator, dtype=torch.float64) * 2 - 1 - 0.5 * origin / reach
    direction[::5, 0] = 0.0
    direction[::10, 2] = -0.0
    direction = direction / direction.norm(dim=1, keepdim=True)
    near = 0.3 * torch.rand(n, generator=generator, dtype=torch.float64)
    far = near + 8 * reach * torch.rand(n, generator=generator, dtype=torch.float64)
    return origin.to(dtype), direction.to(dtype), near.to(dtype), far.to(dtype)


def one_ray(origin: list[float], direction: list[float], near: float = 0.0, far: float = math.inf) -> FourTensors:
    wide = torch.float64
    return (
        torch.tensor([origin], dtype=wide),
        torch.tensor([direction], dtype=wide),
        torch.tensor([near], dtype=wide),
        torch.tensor([far], dtype=wide),
    )


def cast(rays: FourTensors, dtype: torch.dtype) -> FourTensors:
    origin, direction, near, far = rays
    return origin.to(dtype), direction.to(dtype), near.to(dtype), far.to(dtype)


def flat(t0: Tensor, dt: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ray number, t0 and dt of all samples."""
    live = torch.arange(t0.shape[1]) < count[:, None]
    return torch.arange(t0.shape[0])[:, None].expand_as(live)[live], t0[live], dt[live]


class TestPyramid:
    def test_bits_round_trip(self, rng: torch.Generator) -> None:
        occupied = torch.rand(640, generator=rng) < 0.5
        assert torch.equal(unpack_bits(pack_bits(occupied)), occupied)
        lowest, highest = torch.zeros(64, dtype=torch.bool), torch.zeros(64, dtype=torch.bool)
        lowest[0], highest[63] = True, True
        assert pack_bits(torch.cat([lowest, highest])).tolist() == [1, -(2**63)]

    @pytest.mark.parametrize("size", [16, 48])
    def test_a_centre_lies_in_its_cell(self, size: int) -> None:
        """On the outer cascades, outside of the cube that belongs to the finer ones."""
        for k in range(3):
            centres = cell_centres(k, size)
            number = k * size**3 + torch.arange(size**3)
            own = centres.abs().amax(dim=1) > (2.0 ** (k - 1) if k else 0.0)
            assert torch.equal(cell_of(centres, 3, size)[own], number[own])
            assert (cell_of(centres, 3, size)[~own] < k * size**3).all()

    def test_the_finest_cascade_that_holds_a_point(self) -> None:
        edge = torch.tensor([[1.0, 0, 0], [1.0001, 0, 0], [0, -2.0, 0], [0, -2.0001, 0], [0, 0, 1e9], [0, 0, 0]])
        assert (cell_of(edge, 3, SIZE) // SIZE**3).tolist() == [0, 1, 1, 2, 2, 0]

    def test_random_numbers_are_even_and_independent(self) -> None:
        values = torch.tensor([[random_unit(seed, i) for i in range(500)] for seed in (1, 2, 2**62)])
        assert values.min() >= 0 and values.max() < 1
        assert (values.mean(dim=1) - 0.5).abs().max() < 0.05
        correlation = torch.corrcoef(torch.cat([values[:, 1:], values[:1, :-1]]))
        assert (correlation - torch.eye(4)).abs().max() < 0.15

    def test_impossible_grids_are_refused(self) -> None:
        check_bits(bits_of("full"), 1, SIZE)
        for bits, cascades, size, name in [
            (bits_of("full"), 1, 20, "size"),
            (bits_of("full"), 1, 0, "size"),
            (bits_of("full"), 1, 528, "size"),
            (bits_of("full"), 0, SIZE, "cascades"),
            (bits_of("full"), 17, SIZE, "cascades"),
            (bits_of("full"), 2, SIZE, "bits"),
            (bits_of("full").int(), 1, SIZE, "bits"),
            (bits_of("full", 2)[::2], 1, SIZE, "bits"),
        ]:
            with pytest.raises(ValueError, match=f"{name}: expected"):
                check_bits(bits, cascades, size)


CASES = {
    "one cascade": ("random", 1, 0.05, 0.0, 0),
    "one cascade, jittered": ("random", 1, 0.031, 0.0, 123456789),
    "three cascades": ("random", 3, 0.04, 0.03, 2**62),
    "full": ("full", 2, 0.05, 0.02, 7),
    "empty": ("empty", 2, 0.05, 0.0, 7),
}


@cache
def reference_case(name: str) -> tuple[Tensor, Tensor, Tensor]:
    kind, cascades, step, cone, seed = CASES[name]
    rays = rays_of(25, torch.float64, 2.0 ** (cascades - 1))
    with ops.use("reference"):
        return march(*rays, bits_of(kind, cascades), cascades, SIZE, step=step, cone=cone, most=60, seed=seed)


@pytest.mark.usefixtures("isa")
class TestMarch:
    @pytest.mark.parametrize("name", CASES)
    def test_equals_brute_force(self, name: str) -> None:
        """No occupied step is missed, no empty one taken, and every step lies where the reference has it."""
        kind, cascades, step, cone, seed = CASES[name]
        rays = rays_of(25, torch.float64, 2.0 ** (cascades - 1))
        native = march(*rays, bits_of(kind, cascades), cascades, SIZE, step=step, cone=cone, most=60, seed=seed)
        expected = reference_case(name)
        assert torch.equal(native[2], expected[2])
        assert (expected[2].sum() > 100) == (kind != "empty")
        for got, wanted in zip(flat(*native), flat(*expected), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)

    @DTYPES
    @pytest.mark.parametrize("cascades", [1, 4])
    def test_the_grid_never_shifts_a_step(self, dtype: torch.dtype, cascades: int) -> None:
        """Samples are exactly those of the full grid whose middle lies in an occupied cell: thousands of them."""
        rays, bits = rays_of(300, dtype, 2.0 ** (cascades - 1)), bits_of("random", cascades)
        options: dict[str, Any] = {"step": 0.02, "cone": 0.01, "most": 1000, "seed": 3}
        ray, t0, dt = flat(*march(*rays, bits_of("full", cascades), cascades, SIZE, **options))
        middle = rays[0][ray] + (t0 + 0.5 * dt)[:, None] * rays[1][ray]
        occupied = unpack_bits(bits)[cell_of(middle, cascades, SIZE)]
        found = flat(*march(*rays, bits, cascades, SIZE, **options))
        # Where a found step lies in the list of all steps of all rays, which lie apart by at least 0.02.
        key = ray * 100.0 + t0.double()
        found_key = found[0] * 100.0 + found[1].double()
        place = (torch.searchsorted(key, found_key - 0.005)).clamp(max=len(key) - 1)
        assert (key[place] - found_key).abs().max() < (1e-10 if dtype == torch.float64 else 2e-4)
        taken = torch.zeros_like(occupied)
        taken[place] = True
        assert int(taken.sum()) == len(place) and int(occupied.sum()) > 3000
        # In single precision a middle within rounding of a cell's face may fall to either side.
        wrong = int((taken != occupied).sum())
        assert wrong <= (0 if dtype == torch.float64 else 0.003 * int(occupied.sum()))

    @DTYPES
    def test_a_full_grid_is_walked_from_end_to_end(self, dtype: torch.dtype) -> None:
        rays = rays_of(200, dtype, 2.0)
        t0, dt, count = march(*rays, bits_of("full", 2), 2, SIZE, step=0.01, cone=0.02, most=2000)
        ray, start, length = flat(t0, dt, count)
        same = ray[1:] == ray[:-1]
        torch.testing.assert_close(start[1:][same], (start + length)[:-1][same])
        torch.testing.assert_close(length, (0.02 * start).clamp(min=0.01))
        safe = torch.where(rays[1] == 0, 1e-12, rays[1].double())
        walls = torch.stack([(-2 - rays[0].double()) / safe, (2 - rays[0].double()) / safe])
        begin = torch.maximum(rays[2].double(), walls.amin(dim=0).amax(dim=1))
        end = torch.minimum(rays[3].double(), walls.amax(dim=0).amin(dim=1))
        assert torch.equal(count > 0, end > begin + 0.5 * (0.02 * begin).clamp(min=0.01))
        hit = (count > 0).nonzero()[:, 0]
        first, last = t0[hit, 0].double(), (t0 + dt)[hit, count[hit].long() - 1].double()
        torch.testing.assert_close(first, (begin + 0.5 * (0.02 * begin).clamp(min=0.01))[hit], rtol=1e-5, atol=1e-5)
        assert (last >= end[hit] - 1e-5).all() and (last <= (end + (0.02 * end).clamp(min=0.01))[hit] + 1e-5).all()

    def test_most_takes_the_first_ones(self) -> None:
        rays, bits = rays_of(80, torch.float64), bits_of("random")
        t0, dt, count = march(*rays, bits, 1, SIZE, step=0.02, cone=0.0, most=200, seed=9)
        assert int(count.max()) > 20
        for most in (1, 7, 20):
            fewer = march(*rays, bits, 1, SIZE, step=0.02, cone=0.0, most=most, seed=9)
            assert torch.equal(fewer[2], count.clamp(max=most))
            for a, b in zip(flat(*fewer), flat(t0[:, :most], dt[:, :most], count.clamp(max=most)), strict=True):
                assert torch.equal(a, b)

    def test_seeds(self) -> None:
        """A seed shifts each ray's first step by a share of its own of one step; zero shifts all by half a step."""
        n = 64
        rays = one_ray([-3.0, 0.1, 0.2], [1.0, 0.0, 0.0])
        origin, direction, near, far = (t.expand(n, *t.shape[1:]).contiguous() for t in rays)
        starts = []
        for seed in (0, 1, 1, 2):
            t0, _, _ = march(
                origin, direction, near, far, bits_of("full"), 1, SIZE, step=0.1, cone=0.0, most=8, seed=seed
            )
            starts.append((t0[:, 0] - 2.0) / 0.1)
        torch.testing.assert_close(starts[0], torch.full((n,), 0.5, dtype=torch.float64))
        assert torch.equal(starts[1], starts[2]) and (starts[1] != starts[3]).all()
        for start in starts[1:]:
            assert (start >= -1e-9).all() and (start < 1 + 1e-9).all() and start.std() > 0.2

    @pytest.mark.parametrize("axis", [0, 1, 2])
    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_along_an_axis(self, axis: int, sign: float) -> None:
        """One occupied cell, hit by the ray through its middle and missed by the ones beside it."""
        cell = torch.tensor([5, 9, 3])
        centre = (cell + 0.5) * (2 / SIZE) - 1
        bits = torch.zeros(SIZE**3, dtype=torch.bool)
        bits[cell_of(centre[None], 1, SIZE)] = True
        direction = torch.zeros(3)
        direction[axis] = sign
        # A component may be minus zero as well as zero.
        direction = torch.where(direction == 0, -0.0 if sign > 0 else 0.0, direction)
        hits = []
        for shift in (-1.0, 0.0, 1.0):
            origin = centre.clone()
            origin[axis] = -3.0 * sign
            origin[(axis + 1) % 3] += shift * 2 / SIZE
            ray = one_ray(origin.tolist(), direction.tolist())
            t0, dt, count = march(*ray, pack_bits(bits), 1, SIZE, step=0.01, cone=0.0, most=100)
            hits.append(int(count[0]))
            if shift == 0.0:
                middle = origin[axis] + sign * (t0 + 0.5 * dt)[0, : hits[-1]]
                assert ((middle - centre[axis]).abs() <= 1 / SIZE + 1e-6).all()
        assert hits[0] == hits[2] == 0 and hits[1] in (12, 13)

    @DTYPES
    def test_rays_that_see_nothing(self, dtype: torch.dtype) -> None:
        nothing = {
            "beside the box": one_ray([-3, 1.5, 0], [1, 0, 0]),
            "away from the box": one_ray([-3, 0, 0], [-1, 0, 0]),
            "near behind far": one_ray([-3, 0, 0], [1, 0, 0], 2.5, 2.4),
            "near is far": one_ray([-3, 0, 0], [1, 0, 0], 2.5, 2.5),
            "far before the box": one_ray([-3, 0, 0], [1, 0, 0], 0.0, 1.9),
            "near behind the box": one_ray([-3, 0, 0], [1, 0, 0], 4.1, 9.0),
            "along a face, outside": one_ray([-3, 1.0001, 0], [1, 0, 0]),
        }
        for name, ray in nothing.items():
            count = march(*cast(ray, dtype), bits_of("full"), 1, SIZE, step=0.05, cone=0.0, most=50)[2]
            assert count.tolist() == [0], name

    def test_no_rays(self) -> None:
        t0, dt, count = march(*rays_of(0, torch.float32), bits_of("full"), 1, SIZE, step=0.05, cone=0.0, most=5)
        assert t0.shape == dt.shape == (0, 5) and count.shape == (0,)

    def test_the_number_of_threads_changes_nothing(self) -> None:
        results = []
        for count in (1, 2, 3):
            with threads(count):
                args = (*rays_of(500, torch.float32), bits_of("random"), 1, SIZE)
                results.append(flat(*march(*args, step=0.02, cone=0.0, most=100, seed=4)))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


HOSTILE = {
    "direction not a number": (one_ray([0, 0, 0], [math.nan, math.nan, math.nan]), 0),
    "one component not a number": (one_ray([0.1, 0.2, 0.3], [0.6, math.nan, 0.8]), 0),
    "origin not a number": (one_ray([math.nan, 0, 0], [1, 0, 0]), 0),
    "near and far not numbers": (one_ray([-3, 0, 0], [1, 0, 0], math.nan, math.nan), 0),
    "direction infinite": (one_ray([0.1, 0.2, 0.3], [math.inf, 0, 0]), 0),
    "origin infinite": (one_ray([math.inf, 0, 0], [-1, 0, 0]), 0),
    "direction zero": (one_ray([0.1, 0.2, 0.3], [0, 0, 0], 0.0, 1.0), None),
    "direction zero, without end": (one_ray([0.1, 0.2, 0.3], [0, 0, 0]), None),
    "so far away that a step is lost to rounding": (one_ray([-1e6, 0.1, 0.2], [1, 0, 0]), None),
    "near minus infinity": (one_ray([-3, 0, 0], [1, 0, 0], -math.inf, math.inf), None),
}
"""Rays, and the number of samples on them where it is certain."""


@DTYPES
def test_hostile_rays_end(dtype: torch.dtype) -> None:
    """Whatever a ray is made of, marching it returns; a ray that is no line has no samples."""

    def walk(rays: FourTensors, expected: int | None, kind: str) -> None:
        t0, dt, count = march(*cast(rays, dtype), bits_of(kind), 1, SIZE, step=0.01, cone=0.0, most=40)
        _, t0, dt = flat(t0, dt, count)
        assert t0.isfinite().all() and dt.isfinite().all()
        assert expected is None or count.tolist() == [expected], f"{count.tolist()} samples"

    fates = {
        f"{name}, {kind} grid": fate(partial(walk, rays, expected, kind))
        for name, (rays, expected) in HOSTILE.items()
        for kind in ("empty", "full")
    }
    assert set(fates.values()) == {"done"}, fates


class TestArguments:
    def test_steps(self) -> None:
        rays, bits = rays_of(3, torch.float32), bits_of("full")
        good: dict[str, Any] = {"step": 0.1, "cone": 0.0, "most": 4}
        for change in ({"step": 0.0}, {"step": -1.0}, {"cone": -0.1}, {"most": 0}):
            with pytest.raises(ValueError, match="step, cone, most: expected"):
                march(*rays, bits, 1, SIZE, **(good | change))

    @pytest.mark.parametrize("change", [{"step": math.nan}, {"cone": math.nan}], ids=str)
    def test_steps_that_are_not_numbers(self, change: dict[str, float]) -> None:
        values: dict[str, Any] = {"step": 0.1, "cone": 0.0, "most": 4, **change}
        assert "ValueError: step, cone, most" in fate(
            lambda: march(*rays_of(3, torch.float32), bits_of("full"), 1, SIZE, **values)
        )

    @pytest.mark.parametrize("name", ["origin", "direction", "near", "far"])
    def test_shapes(self, name: str) -> None:
        """A kernel that believed a wrong shape would read outside of memory."""
        values: dict[str, Any] = dict(
            zip(("origin", "direction", "near", "far"), rays_of(8, torch.float32), strict=True)
        )
        values[name] = torch.ones(8, 2) if name in ("origin", "direction") else torch.ones(3)

        def call() -> None:
            march(**values, bits=bits_of("full"), cascades=1, size=SIZE, step=0.1, cone=0.0, most=4)

        assert f"ValueError: {name}: expected" in fate(call)

    def test_types(self) -> None:
        origin, direction, near, far = rays_of(3, torch.float32)
        good: dict[str, Any] = {"step": 0.1, "cone": 0.0, "most": 4}
        with pytest.raises(ValueError, match="one type"):
            march(origin, direction.double(), near, far, bits_of("full"), 1, SIZE, **good)
        with pytest.raises(ValueError, match="contiguous"):
            march(origin.t().contiguous().t(), direction, near, far, bits_of("full"), 1, SIZE, **good)


@pytest.mark.usefixtures("isa")
class TestUpkeep:
    def test_decay_equals_the_reference(self) -> None:
        cascades = 2
        generator = torch.Generator().manual_seed(1)
        peak = torch.rand(cascades * SIZE**3, generator=generator)
        threshold = torch.tensor([0.4, 0.7])
        results = []
        for name in ("native", "reference"):
            bits, values = bits_of("random", cascades), peak.clone()
            with ops.use(name):
                grid_decay_(bits, values, cascades, SIZE, 0.9, threshold)
            results.append((bits, values))
        occupied = unpack_bits(results[0][0])
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1][occupied], results[1][1][occupied])
        assert 100 < int(occupied.sum()) < int(unpack_bits(bits_of("random", cascades)).sum())

    def test_raise_by_hand(self) -> None:
        """Against a loop over the points: peaks rise, bits are set at the threshold, forbidden cells stay."""
        cascades, n = 2, 3000
        generator = torch.Generator().manual_seed(2)
        points = torch.randn(n, 3, generator=generator)
        density = torch.rand(n, generator=generator)
        allowed, bits = bits_of("random", cascades), torch.zeros_like(bits_of("empty", cascades))
        peak, threshold = torch.full((cascades * SIZE**3,), 0.3), torch.tensor([0.5, 0.8])
        may = unpack_bits(allowed)
        occupied, expected = torch.zeros(len(peak), dtype=torch.bool), peak.clone()
        for cell, value in zip(cell_of(points, cascades, SIZE).tolist(), density.tolist(), strict=True):
            if not may[cell]:
                continue
            # An empty cell's value says nothing: it is what it was when the cell was struck off.
            expected[cell] = max(float(expected[cell]), value) if occupied[cell] else value
            occupied[cell] |= value >= float(threshold[cell // SIZE**3])
        grid_raise_(bits, peak, allowed, cascades, SIZE, points, density, threshold)
        assert torch.equal(unpack_bits(bits), occupied) and int(occupied.sum()) > 50
        torch.testing.assert_close(peak, expected)
        assert not (unpack_bits(bits) & ~may).any()

    def test_densities_and_points_that_are_not_numbers(self) -> None:
        bits, peak = bits_of("empty"), torch.zeros(SIZE**3)
        points = torch.tensor([[math.nan] * 3, [0.1, 0.1, 0.1], [math.inf, -math.inf, 0.0], [1e30, 0.0, 0.0]])
        density = torch.tensor([math.nan, math.nan, 0.0, -1.0])
        grid_raise_(bits, peak, bits_of("full"), 1, SIZE, points, density, torch.tensor([0.5]))
        assert (bits == 0).all()

    def test_arguments(self) -> None:
        bits, peak, one = bits_of("empty"), torch.zeros(SIZE**3), torch.tensor([0.5])
        with pytest.raises(ValueError, match="float32"):
            grid_raise_(bits, peak, bits, 1, SIZE, torch.zeros(2, 3).double(), torch.zeros(2).double(), one)
        with pytest.raises(ValueError, match="bits: expected"):
            grid_raise_(bits, peak, bits[1:], 1, SIZE, torch.zeros(2, 3), torch.zeros(2), one)
        with pytest.raises(ValueError, match="bits: expected"):
            grid_decay_(bits[1:], peak, 1, SIZE, 0.9, one)

    @pytest.mark.parametrize("name", ["peak", "threshold", "density", "points"])
    def test_short_tensors_are_refused(self, name: str) -> None:
        """They would be written, or read, past their end."""
        values = {"peak": torch.zeros(SIZE**3), "threshold": torch.tensor([0.5])}
        values |= {"points": torch.zeros(2, 3), "density": torch.zeros(2)}
        values[name] = values[name][:0] if name != "points" else torch.zeros(2, 2)

        def call() -> None:
            points, density = values.pop("points"), values.pop("density")
            peak, threshold = values["peak"], values["threshold"]
            if name in ("points", "density"):
                grid_raise_(bits_of("full"), peak, bits_of("full"), 1, SIZE, points, density, threshold)
            grid_decay_(bits_of("full"), peak, 1, SIZE, 0.9, threshold)

        assert f"ValueError: {name}" in fate(call)
