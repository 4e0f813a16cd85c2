"""ops/triton/surface_march.py: the steps of rays that count are those of the reference; on a GPU or interpreted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu_checks import DEVICE, DTYPES, NEEDS_TRITON, kernels
from test_surface_march import GRID, HOW, SIZE, bumpy_ball, expected, pairs, rays_of, shell

from lightfold.ops import Steps, surface_march

pytestmark = [NEEDS_TRITON, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


def marched(n: int, dtype: torch.dtype, inv_s: float = 60.0, **other: Any) -> Steps:
    rays = tuple(t.to(DEVICE) for t in rays_of(n, dtype))
    field = tuple(t.to(DEVICE) for t in bumpy_ball(dtype))
    with kernels():
        found = surface_march(
            rays, shell().to(DEVICE), SIZE, *field, GRID, levels=3, beta=100.0, inv_s=inv_s, **(HOW | other)
        )
    assert isinstance(found.evaluated, int)
    return Steps(found.ray.cpu(), found.start.cpu(), found.offset.cpu(), found.evaluated)


@DTYPES
@pytest.mark.parametrize("n", [0, 1, 43], ids="n{}".format)
@pytest.mark.parametrize("inv_s", [20.0, 400.0])
def test_keeps_the_steps_that_the_reference_keeps(dtype: torch.dtype, n: int, inv_s: float) -> None:
    ours, wide = marched(n, dtype, inv_s, seed=5), expected(n, dtype, inv_s, seed=5)
    assert ours.ray.dtype == ours.offset.dtype == torch.int64 and ours.start.dtype == dtype
    assert ours.offset.tolist()[0] == 0 and len(ours.offset) == n + 1
    assert torch.equal(ours.offset.diff(), torch.bincount(ours.ray, minlength=n))
    same = ours.ray.diff() == 0
    assert (ours.ray.diff() >= 0).all() and (ours.start.diff()[same] > 0).all(), "ray after ray, front to back"
    # Rounding may decide otherwise only about steps whose weight is the threshold's to a few digits.
    apart, both = pairs(ours) ^ pairs(wide), pairs(ours) & pairs(wide)
    assert len(apart) <= (0 if dtype == torch.float64 else 1)
    assert n < 43 or len(both) > n // 2
    assert ours.evaluated <= wide.evaluated


def test_what_is_behind_a_surface_is_not_evaluated() -> None:
    assert marched(43, torch.float32, 400.0).evaluated < 0.85 * expected(43, torch.float32, 400.0).evaluated


def test_no_threshold_keeps_all_that_has_weight() -> None:
    assert pairs(marched(20, torch.float64, keep=0.0)) == pairs(expected(20, torch.float64, keep=0.0))


@pytest.mark.parametrize("most", [1, 7, 8, 9])
def test_at_most_so_many_steps(most: int) -> None:
    """Also where a ray's last step is the last of a tile."""
    found = marched(20, torch.float64, 5.0, most=most)
    assert 0 < found.offset.diff().max() <= most and found.evaluated <= 20 * most
    assert pairs(found) == pairs(expected(20, torch.float64, 5.0, most=most))


def test_an_empty_grid_keeps_nothing() -> None:
    rays, field = (t.to(DEVICE) for t in rays_of(9, torch.float32)), (t.to(DEVICE) for t in bumpy_ball(torch.float32))
    empty = torch.zeros_like(shell()).to(DEVICE)
    with kernels():
        found = surface_march(tuple(rays), empty, SIZE, *field, GRID, levels=3, beta=100.0, inv_s=60.0, **HOW)  # type: ignore[arg-type]
    assert len(found.ray) == len(found.start) == found.evaluated == 0 and not found.offset.any()


def test_a_network_that_is_too_wide_is_marched_step_by_step() -> None:
    """Every step is evaluated then, by the field's own way."""
    table, first, last = bumpy_ball(torch.float64)
    first = torch.cat([first] * 3)
    last = torch.cat([last[:, :-1] / 3] * 3 + [last[:, -1:]], dim=1)
    rays = tuple(t.to(DEVICE) for t in rays_of(6, torch.float64))
    field = [t.to(DEVICE) for t in (table, first, last)]
    with kernels():
        found = surface_march(
            rays, shell().to(DEVICE), SIZE, *field, GRID, levels=3, beta=100.0, inv_s=60.0, seed=3, **HOW
        )
    wide = expected(6, torch.float64, 60.0, seed=3)
    assert pairs(Steps(found.ray.cpu(), found.start.cpu(), found.offset, found.evaluated)) == pairs(wide)
    assert found.evaluated == wide.evaluated


def test_the_seed_shifts_the_steps() -> None:
    ours = pairs(marched(12, torch.float64, seed=1))
    assert ours == pairs(expected(12, torch.float64, seed=1)) != pairs(expected(12, torch.float64, seed=2))
