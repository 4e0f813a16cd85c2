"""ops/surface.py: a distance field and its slope in one kernel, with all derivatives, against plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_checks import DTYPES, SIZES, assert_near, assert_twins, threads
from torch import Tensor

from lightfold import ops
from lightfold.ops import HashGrid, surface

SHAPES = pytest.mark.parametrize(
    ("features", "hidden", "outputs", "levels"),
    [(4, 16, 5, 4), (2, 64, 16, 3), (1, 7, 1, 1), (8, 33, 9, 4)],
    ids=lambda v: str(v),
)
BETA = 20.0


def grid_of(features: int, layout: str = "line") -> HashGrid:
    """Four levels, of which the first two are dense and the others hashed."""
    return HashGrid(levels=4, features=features, log2_rows=10, base=4, finest=24, layout=layout)


def inputs_of(grid: HashGrid, n: int, hidden: int, outputs: int, levels: int, dtype: torch.dtype) -> list[Tensor]:
    """Points of which some lie outside the cube, table, both layers."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    points = 2.2 * torch.rand(n, 3, generator=generator, dtype=dtype) - 1.1
    width = 4 + levels * grid.features
    layers = [normal(hidden, width) * width**-0.5, normal(outputs, hidden + 1) * hidden**-0.5]
    return [points, *(t.requires_grad_() for t in (normal(grid.rows, grid.features), *layers))]


@SHAPES
def test_reference_gradients(features: int, hidden: int, outputs: int, levels: int) -> None:
    grid = grid_of(features)
    points, *weights = inputs_of(grid, 3, hidden, outputs, levels, torch.float64)
    with ops.use("reference"):
        assert torch.autograd.gradcheck(
            lambda *w: surface(points, *w, grid, levels=levels, beta=BETA), weights, fast_mode=True
        )


def test_reference_is_the_field_and_its_slope() -> None:
    """The gradient is the difference of distances of neighbouring points, also across the border of the cube."""
    grid = grid_of(2)
    points, *weights = inputs_of(grid, 200, 8, 3, 4, torch.float64)
    step = 1e-6
    moved = torch.cat([points + step * sign * axis for axis in torch.eye(3).double() for sign in (1, -1)])
    with ops.use("reference"), torch.no_grad():
        gradient = surface(points, *weights, grid, levels=4, beta=BETA)[1]
        value = surface(moved, *weights, grid, levels=4, beta=BETA, slope=False)[0][:, 0].reshape(3, 2, -1)
    difference = (value[:, 0] - value[:, 1]).T / (2 * step)
    # A few points lie within a step of a cell's border, where the blend has a kink.
    assert ((difference - gradient).abs() < 1e-5).float().mean() > 0.98


@pytest.mark.usefixtures("isa")
class TestKernels:
    @SHAPES
    @DTYPES
    @SIZES
    def test_equal_the_reference(
        self, features: int, hidden: int, outputs: int, levels: int, dtype: torch.dtype, n: int
    ) -> None:
        grid = grid_of(features)
        points, *weights = inputs_of(grid, n, hidden, outputs, levels, dtype)
        assert_twins(lambda *w: surface(points.to(w[0]), *w, grid, levels=levels, beta=BETA), weights, slack=8.0)

    @DTYPES
    def test_equal_the_reference_without_the_slope(self, dtype: torch.dtype) -> None:
        grid = grid_of(4)
        points, *weights = inputs_of(grid, 300, 16, 5, 4, dtype)

        def out(*w: Tensor) -> Tensor:
            found, gradient = surface(points.to(w[0]), *w, grid, levels=4, beta=BETA, slope=False)
            assert gradient.shape == (0, 3)
            return found

        assert_twins(out, weights, slack=4.0)

    @DTYPES
    def test_in_the_other_layout(self, dtype: torch.dtype) -> None:
        grid = grid_of(2, "xor")
        points, *weights = inputs_of(grid, 300, 16, 5, 4, dtype)
        assert_twins(lambda *w: surface(points.to(w[0]), *w, grid, levels=4, beta=BETA), weights, slack=8.0)

    @SHAPES
    def test_gradients(self, features: int, hidden: int, outputs: int, levels: int) -> None:
        grid = grid_of(features)
        points, *weights = inputs_of(grid, 5, hidden, outputs, levels, torch.float64)
        assert torch.autograd.gradcheck(
            lambda *w: surface(points, *w, grid, levels=levels, beta=BETA), weights, fast_mode=True
        )

    @DTYPES
    @pytest.mark.parametrize("n", [2, 15, 16, 17, 95, 96, 97, 192, 193], ids="n{}".format)
    def test_ends_of_tiles(self, dtype: torch.dtype, n: int) -> None:
        grid = grid_of(2)
        points, *weights = inputs_of(grid, n, 9, 3, 4, dtype)
        assert_twins(lambda *w: surface(points.to(w[0]), *w, grid, levels=4, beta=BETA), weights, slack=8.0)

    def test_more_samples_than_the_scatter_remembers(self) -> None:
        grid = grid_of(2)
        points, *weights = inputs_of(grid, 40_000, 8, 2, 4, torch.float32)
        assert_twins(lambda *w: surface(points.to(w[0]), *w, grid, levels=4, beta=BETA), weights, slack=20.0)

    def test_far_from_the_surface_nothing_overflows(self) -> None:
        grid = grid_of(2)
        points, table, first, last = inputs_of(grid, 50, 8, 3, 4, torch.float32)
        out, gradient = surface(points, table, 1e6 * first, last, grid, levels=4, beta=100.0)
        (out.sum() + gradient.sum()).backward()
        assert all(t.isfinite().all() for t in (out, gradient, table.grad, first.grad, last.grad) if t is not None)

    def test_points_that_are_no_numbers_touch_nothing_they_should_not(self) -> None:
        grid = grid_of(2)
        points, *weights = inputs_of(grid, 20, 8, 3, 4, torch.float32)
        points[3] = float("nan")
        out, _ = surface(points, *weights, grid, levels=4, beta=BETA)
        assert out[3].isnan().all()
        assert out[torch.arange(20) != 3].isfinite().all()

    def test_the_number_of_threads_changes_no_bit(self) -> None:
        results: list[Any] = []
        grid = grid_of(4)
        for count in (1, 2, 3):
            points, *weights = inputs_of(grid, 3000, 16, 5, 4, torch.float32)
            with threads(count):
                out, gradient = surface(points, *weights, grid, levels=4, beta=BETA)
                (out.square().sum() + (gradient.norm(dim=1) - 1).square().sum()).backward()
            results.append([out, gradient, *(w.grad for w in weights)])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


class TestArguments:
    def test_errors_name_the_argument(self) -> None:
        grid = grid_of(2)
        points, table, first, last = inputs_of(grid, 4, 8, 3, 2, torch.float32)

        def call(points: Tensor = points, first: Tensor = first, last: Tensor = last, levels: int = 2) -> None:
            surface(points, table, first, last, grid, levels=levels, beta=BETA)

        call()
        with pytest.raises(ValueError, match="points: expected shape"):
            call(points=points[0])
        with pytest.raises(ValueError, match=r"first: expected shape \[H, 8\]"):
            call(first=first[:, 1:])
        with pytest.raises(ValueError, match=r"last: expected shape \[\*, 9\]"):
            call(last=last[:, 1:])
        with pytest.raises(ValueError, match="levels: expected 1 to 4"):
            call(levels=5)
        with pytest.raises(ValueError, match="table: expected shape"):
            surface(points, table[1:], first, last, grid, levels=2, beta=BETA)

    def test_a_second_derivative_is_refused_not_ignored(self) -> None:
        grid = grid_of(2)
        points, table, *layers = inputs_of(grid, 4, 8, 3, 2, torch.float64)
        out, _ = surface(points, table, *layers, grid, levels=2, beta=BETA)
        with pytest.raises(RuntimeError, match="second"):
            (slope,) = torch.autograd.grad(out.sum(), table, create_graph=True)
            slope.square().sum().backward()

    def test_no_trail_is_kept_where_nothing_is_trained(self) -> None:
        grid = grid_of(2)
        points, *weights = inputs_of(grid, 100, 8, 3, 2, torch.float32)
        with torch.no_grad():
            still = surface(points, *weights, grid, levels=2, beta=BETA)
        moving = surface(points, *weights, grid, levels=2, beta=BETA)
        assert not still[0].requires_grad and moving[0].requires_grad
        for a, b in zip(still, moving, strict=True):
            assert_near(a, b.detach())


def test_the_reference_has_second_derivatives_far_from_zero() -> None:
    """Where a unit is as good as off, or on, its softplus is a straight line, and no overflow of exponentials."""
    torch.manual_seed(0)
    grid = HashGrid(2, 2, 6, 4, 8)
    table = torch.randn(grid.rows, 2).requires_grad_()
    first = torch.tensor([[0.0, 0.0, 1.0, -9.0], [0.0, 1.0, 0.0, 9.0]])
    first = torch.cat([first, torch.ones(2, 4)], dim=1).requires_grad_()
    last = torch.ones(1, 3, requires_grad=True)
    with ops.use("reference"):
        out, gradient = ops.surface(torch.rand(9, 3), table, first, last, grid, levels=2, beta=100.0)
        (out.sum() + gradient.square().sum()).backward()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (table, first, last))
