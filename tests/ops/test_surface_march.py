"""ops/surface_march.py: which steps of rays count, against plain PyTorch and against a sphere whose answer is known."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from kernel_checks import DTYPES, SIZES, threads
from torch import Tensor

from lightfold import ops
from lightfold.ops import HashGrid, Steps, march_field, surface_march
from lightfold.ops.march import cell_centres, pack_bits

GRID = HashGrid(levels=3, features=2, log2_rows=10, base=4, finest=16)
SIZE = 32
HOW = {"step": 0.02, "keep": 1e-3, "most": 200}


def bumpy_ball(dtype: torch.dtype, radius: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Table and layers whose f is about |x| - radius: 64 units spread over the sphere, with bumps from the table."""
    generator = torch.Generator().manual_seed(2)
    directions = torch.nn.functional.normalize(torch.randn(64, 3, generator=generator, dtype=torch.float64), dim=1)
    first = torch.cat(
        [directions, torch.zeros(64, 1).double(), torch.randn(64, 6, generator=generator).double()], dim=1
    )
    last = torch.full((1, 65), 4.0 / 64, dtype=torch.float64)
    last[0, -1] = -radius
    table = 0.02 * torch.randn(GRID.rows, GRID.features, generator=generator).double()
    return table.to(dtype), first.to(dtype), last.to(dtype)


def rays_of(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rays from all sides, of which some miss, one starts in the middle, and one is no line."""
    generator = torch.Generator().manual_seed(3)
    origin = 1.5 * torch.nn.functional.normalize(torch.randn(n, 3, generator=generator, dtype=torch.float64), dim=1)
    towards = 0.5 * torch.randn(n, 3, generator=generator, dtype=torch.float64) - origin
    direction = torch.nn.functional.normalize(towards, dim=1)
    if n > 2:
        origin[1], direction[2] = 0.0, float("nan")
    near, far = torch.zeros(n, dtype=torch.float64), torch.full((n,), 9.0, dtype=torch.float64)
    return tuple(t.to(dtype).contiguous() for t in (origin, direction, near, far))  # type: ignore[return-value]


def shell() -> Tensor:
    """Bits of two layers of cells around the ball, with air between them, so that runs of steps end and begin."""
    distance = cell_centres(0, SIZE).norm(dim=1) - 0.5
    return pack_bits((distance.abs() < 0.12) & ((cell_centres(0, SIZE)[:, 0] * 8).long() % 3 != 0))


def marched(n: int, dtype: torch.dtype, inv_s: float = 60.0, **other: Any) -> Steps:
    return surface_march(
        rays_of(n, dtype), shell(), SIZE, *bumpy_ball(dtype), GRID, levels=3, beta=100.0, inv_s=inv_s, **(HOW | other)
    )


@cache
def expected(n: int, dtype: torch.dtype, inv_s: float = 60.0, **other: Any) -> Steps:
    """What the reference keeps, whichever kernels are asked next."""
    with ops.use("reference"):
        return marched(n, dtype, inv_s, **other)


def pairs(steps: Steps) -> set[tuple[int, float]]:
    return {(int(r), round(float(t), 4)) for r, t in zip(steps.ray, steps.start, strict=True)}


@pytest.mark.usefixtures("isa")
class TestKernels:
    @DTYPES
    @SIZES
    @pytest.mark.parametrize("inv_s", [20.0, 400.0])
    def test_keep_the_steps_that_the_reference_keeps(self, dtype: torch.dtype, n: int, inv_s: float) -> None:
        native = marched(n, dtype, inv_s, seed=5)
        wide = expected(n, dtype, inv_s, seed=5)
        assert native.offset.tolist()[0] == 0 and len(native.offset) == n + 1
        assert torch.equal(native.offset.diff(), torch.bincount(native.ray, minlength=n))
        # Rounding may decide otherwise only about steps whose weight is the threshold's to a few digits.
        apart, both = pairs(native) ^ pairs(wide), pairs(native) & pairs(wide)
        assert len(apart) <= (0 if dtype == torch.float64 else max(1, len(both) // 500))
        assert n < 63 or len(both) > n // 2
        assert native.evaluated <= wide.evaluated

    @DTYPES
    def test_what_is_behind_a_surface_is_not_evaluated(self, dtype: torch.dtype) -> None:
        native = marched(1000, dtype, 400.0)
        assert native.evaluated < 0.8 * expected(1000, dtype, 400.0).evaluated

    def test_no_threshold_keeps_all_that_has_weight(self) -> None:
        native = marched(63, torch.float64, keep=0.0)
        assert pairs(native) == pairs(expected(63, torch.float64, keep=0.0))

    def test_at_most_so_many_steps(self) -> None:
        for most in (1, 6, 7):
            found = marched(100, torch.float64, 5.0, most=most)
            assert 0 < found.offset.diff().max() <= most and found.evaluated <= 100 * most
            assert pairs(found) == pairs(expected(100, torch.float64, 5.0, most=most))

    def test_the_number_of_threads_changes_nothing(self) -> None:
        results = []
        for count in (1, 2, 3):
            with threads(count):
                results.append(marched(1000, torch.float32, seed=9))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0][:3], other[:3], strict=True))
            assert other.evaluated == results[0].evaluated


class TestReference:
    def test_weight_is_where_the_distance_is_zero(self) -> None:
        rays = rays_of(200, torch.float64)
        bits = torch.full((SIZE**3 // 64,), -1)
        found = march_field(lambda x: x.norm(dim=1) - 0.5, rays, bits, SIZE, inv_s=200.0, **HOW)
        middle = rays[0][found.ray] + (found.start + 0.01)[:, None] * rays[1][found.ray]
        assert len(found.ray) > 100
        assert ((middle.norm(dim=1) - 0.5).abs() < 0.05).all(), "a few widths of the logistic function, and a step"
        inside = torch.tensor([1])  # The ray that starts in the middle leaves matter, which takes no light.
        assert not torch.isin(inside, found.ray).any() and not torch.isin(torch.tensor([2]), found.ray).any()


class TestArguments:
    @pytest.mark.parametrize(
        ("other", "message"),
        [({"keep": -1.0}, "keep >= 0"), ({"inv_s": 0.0}, "inv_s > 0"), ({"inv_s": float("nan")}, "inv_s > 0"),
         ({"step": 0.0}, "step > 0"), ({"most": 0}, "most >= 1")],
    )  # fmt: skip
    def test_errors_name_the_argument(self, other: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            marched(4, torch.float32, **other)

    def test_shapes(self) -> None:
        origin, direction, near, far = rays_of(4, torch.float32)
        table, first, last = bumpy_ball(torch.float32)
        how: dict[str, Any] = {"levels": 3, "beta": 100.0, "inv_s": 60.0} | HOW
        with pytest.raises(ValueError, match="near: expected shape"):
            surface_march((origin, direction, near[1:], far), shell(), SIZE, table, first, last, GRID, **how)
        with pytest.raises(ValueError, match="bits: expected contiguous int64"):
            surface_march((origin, direction, near, far), shell()[1:], SIZE, table, first, last, GRID, **how)
        with pytest.raises(ValueError, match=r"first: expected shape \[H, 10\]"):
            surface_march((origin, direction, near, far), shell(), SIZE, table, first[:, 1:], last, GRID, **how)
        with pytest.raises(ValueError, match="expected tensors of one type"):
            surface_march((origin, direction, near, far), shell(), SIZE, table.double(), first, last, GRID, **how)
