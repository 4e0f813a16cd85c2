"""ops/triton/surface.py: a distance field and its slope, with all derivatives, against the reference."""

from __future__ import annotations

import pytest
import torch
from gpu_checks import NEEDS_TRITON, assert_gpu_twins, kernels, on_device
from kernel_checks import assert_near
from test_surface import BETA, SHAPES, grid_of, inputs_of
from torch import Tensor

from lightfold import ops
from lightfold.ops import HashGrid, surface

pytestmark = NEEDS_TRITON


def assert_equal(
    grid: HashGrid, n: int, hidden: int, outputs: int, levels: int, dtype: torch.dtype, slack: float = 8.0
) -> None:
    """Distance, features and slope, and what a loss on all of them says of table and layers; some points lie outside of
    the cube."""
    points, *weights = inputs_of(grid, n, hidden, outputs, levels, dtype)
    assert_gpu_twins(lambda *w: surface(points.to(w[0]), *w, grid, levels=levels, beta=BETA), weights, slack)


@SHAPES
def test_equals_the_reference(features: int, hidden: int, outputs: int, levels: int) -> None:
    """In double, so that only the mathematics can be wrong."""
    assert_equal(grid_of(features), 70, hidden, outputs, levels, torch.float64)


@pytest.mark.parametrize("n", [0, 1, 15, 16, 63, 65, 130], ids="n{}".format)
def test_sizes(n: int) -> None:
    assert_equal(grid_of(4), n, 16, 5, 3, torch.float32)


def test_in_the_other_layout() -> None:
    assert_equal(grid_of(2, "xor"), 40, 9, 3, 4, torch.float64)


def test_a_single_level() -> None:
    assert_equal(HashGrid(levels=1, features=2, log2_rows=8, base=4, finest=4), 40, 9, 3, 1, torch.float64)


@pytest.mark.parametrize("hidden", [65, 128])
def test_more_hidden_units_than_are_computed_at_once(hidden: int) -> None:
    assert_equal(grid_of(4), 33, hidden, 5, 4, torch.float64)


def test_more_columns_than_the_least() -> None:
    assert_equal(HashGrid(levels=5, features=8, log2_rows=8, base=4, finest=24), 20, 9, 17, 5, torch.float64)


def test_programs_that_take_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightfold.ops.triton import surface as here

    monkeypatch.setattr(here, "PROGRAMS", 2)
    assert_equal(grid_of(2), 90, 9, 3, 4, torch.float64)


def test_a_crowd_on_coarse_levels_is_summed_from_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some levels below and some above the limit."""
    from lightfold.ops.triton import surface as here

    grid = grid_of(2)
    monkeypatch.setattr(here, "CROWD", 1)
    monkeypatch.setattr(here, "COARSE_ROWS", grid.modulus[1])
    assert_equal(grid, 300, 8, 2, 4, torch.float64)


def test_without_the_slope() -> None:
    grid = grid_of(4)
    points, *weights = inputs_of(grid, 100, 16, 5, 4, torch.float64)

    def out(*w: Tensor) -> Tensor:
        found, gradient = surface(points.to(w[0]), *w, grid, levels=4, beta=BETA, slope=False)
        assert gradient.shape == (0, 3)
        return found

    assert_gpu_twins(out, weights, slack=4.0)


def test_a_loss_on_the_slope_alone() -> None:
    grid = grid_of(2)
    points, *weights = inputs_of(grid, 40, 8, 3, 4, torch.float64)
    assert_gpu_twins(lambda *w: surface(points.to(w[0]), *w, grid, levels=4, beta=BETA)[1], weights, slack=8.0)


def test_what_is_not_trained_is_the_same() -> None:
    grid = grid_of(4)
    points, *weights = on_device(*inputs_of(grid, 50, 16, 5, 4, torch.float32))
    with kernels():
        moving = surface(points, *weights, grid, levels=4, beta=BETA)
        with torch.no_grad():
            still = surface(points, *weights, grid, levels=4, beta=BETA)
    assert moving[1].requires_grad and not still[1].requires_grad
    assert all(torch.equal(a, b) for a, b in zip(moving, still, strict=True))


def test_far_from_the_surface_nothing_overflows() -> None:
    grid = grid_of(2)
    points, table, first, last = on_device(*inputs_of(grid, 50, 8, 3, 4, torch.float32))
    with kernels():
        out, gradient = surface(points, table, 1e6 * first, last, grid, levels=4, beta=100.0)
        (out.sum() + gradient.sum()).backward()
    for t in (out, gradient, table.grad, first.grad, last.grad):
        assert t is not None and t.isfinite().all()


def test_points_that_are_no_numbers_touch_nothing_they_should_not() -> None:
    grid = grid_of(2)
    points, *weights = inputs_of(grid, 40, 8, 3, 4, torch.float32)
    points[3] = float("nan")
    with kernels():
        out, gradient = surface(*on_device(points, *weights), grid, levels=4, beta=BETA)
    others = torch.arange(40) != 3
    assert out[3].isnan().all()
    assert out[others].isfinite().all() and gradient[others].isfinite().all()


def test_autocast_changes_nothing() -> None:
    grid = grid_of(4)
    points, *weights = on_device(*inputs_of(grid, 30, 16, 5, 4, torch.float32))
    results = []
    for enabled in (False, True):
        with kernels(), torch.autocast(points.device.type, dtype=torch.bfloat16, enabled=enabled):
            results.append(surface(points, *weights, grid, levels=4, beta=BETA))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_second_derivative_is_refused_not_ignored() -> None:
    grid = grid_of(2)
    points, table, *layers = on_device(*inputs_of(grid, 4, 8, 3, 2, torch.float64))
    with kernels():
        out, _ = surface(points, table, *layers, grid, levels=2, beta=BETA)
    with pytest.raises(RuntimeError, match="second"):
        torch.autograd.grad(out.sum(), table, create_graph=True)


def test_a_softplus_keeps_its_digits_on_both_sides() -> None:
    """One unit, whose input runs from far below to far above zero: the value is right also where it is tiny."""
    grid = HashGrid(levels=1, features=1, log2_rows=4, base=2, finest=2)
    points = torch.zeros(81, 3)
    points[:, 0] = torch.linspace(-1.0, 1.0, 81)
    table = torch.zeros(grid.rows, 1)
    first, last = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    inputs = on_device(points, table, first, last)
    with kernels():
        out, gradient = surface(*inputs, grid, levels=1, beta=40.0)
    z = 40.0 * points[:, 0].double()
    assert_near(out[:, 0].cpu(), torch.nn.functional.softplus(z, threshold=1e9) / 40.0)
    relative = out[:, 0].cpu().double() / (torch.log1p(torch.exp(-z.abs())) + z.clamp(min=0.0)) * 40.0 - 1.0
    assert float(relative.abs().max()) < 5e-5
    assert_near(gradient[:, 0].cpu(), torch.sigmoid(z))
    with ops.use("reference"):
        assert_near(gradient, surface(*inputs, grid, levels=1, beta=40.0)[1])
