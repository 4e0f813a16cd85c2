"""A signed distance field on a hash grid, with its slope: distance, features and gradient of points in one pass.

With u = (x, y, z, 1, features of the hash grid), z = A u and h = (softplus(z), 1), `out` = B h and the gradient is that
of out[0] by the point. A loss on the gradient (eikonal, |grad f| = 1) differentiates a derivative. Written as a chain
of operations, that keeps a dozen arrays of samples x width per pass and spends its time on moving them; the kernels
take a tile of samples through everything while it is in cache, and csrc/surface.h has the formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .backend import core, empty, gpu, kernel, refuse_second_order, route
from .hash_encode import HashGrid, hash_encode, hash_encode_reference


def surface(
    points: Tensor,
    table: Tensor,
    first: Tensor,
    last: Tensor,
    grid: HashGrid,
    *,
    levels: int,
    beta: float,
    slope: bool = True,
) -> tuple[Tensor, Tensor]:
    """A distance field at points.

    points [N, 3] of the cube [-1, 1]^3 (the grid sees those outside clamped); table [grid.rows, F]; first [H, 4 +
    levels * F], of which column 3 is a bias; last [1 + K, H + 1], of which the last column is. Only the coarsest
    `levels` of the grid are looked at. softplus(z) = log(1 + exp(beta z)) / beta.
    -> out [N, 1 + K], whose first column is the distance, and gradient [N, 3] of that column; without `slope` the
    gradient is empty, [0, 3]. Differentiable once with respect to table, first and last. The points are constants:
    their own gradient is not taken.

    A distance needs its digits: inside `torch.autocast` the kernels compute as they do outside. On a GPU, layers that
    are too wide for a fused kernel run as a chain of operations.
    """
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points: expected shape [N, 3], got {tuple(points.shape)}")
    check_field(table, first, last, grid, levels)
    points = points.detach()
    trained = torch.is_grad_enabled() and any(t.requires_grad for t in (table, first, last))
    way = route("surface", points, table, first, last)
    shape = _Shape(grid, levels, beta, slope, trained, way)
    if way == "reference":
        return _by_chain(points, table, first, last, shape, hash_encode_reference)
    points, first, last = points.contiguous(), first.contiguous(), last.contiguous()
    if way == "triton" and not gpu("surface", points, table, first, last).fits(first, last):
        return _by_chain(points, table, first, last, shape, hash_encode)
    return _Surface.apply(points, table, first, last, shape)


class _Shape(NamedTuple):
    grid: HashGrid
    levels: int
    beta: float
    slope: bool
    trained: bool
    """Whether a backward pass may follow. Inside a Function, autograd does not say."""
    way: str
    """What `route` said: the pass back takes the same."""


def check_field(table: Tensor, first: Tensor, last: Tensor, grid: HashGrid, levels: int) -> None:
    """Raise unless these are the table and the layers of a field on a grid of which so many levels are looked at."""
    if tuple(table.shape) != (grid.rows, grid.features):
        raise ValueError(f"table: expected shape {(grid.rows, grid.features)}, got {tuple(table.shape)}")
    if not 1 <= levels <= grid.levels:
        raise ValueError(f"levels: expected 1 to {grid.levels}, got {levels}")
    inputs = 4 + levels * grid.features
    if first.ndim != 2 or first.shape[1] != inputs or first.shape[0] < 1:
        raise ValueError(f"first: expected shape [H, {inputs}], got {tuple(first.shape)}")
    if last.ndim != 2 or last.shape[1] != first.shape[0] + 1 or last.shape[0] < 1:
        raise ValueError(f"last: expected shape [*, {first.shape[0] + 1}], got {tuple(last.shape)}")


class _Surface(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, points: Tensor, table: Tensor, first: Tensor, last: Tensor, shape: _Shape
    ) -> tuple[Tensor, Tensor]:
        out = empty((len(points), last.shape[0]), points)
        gradient = empty((len(points) if shape.slope else 0, 3), points)
        ctx.shape = shape
        if shape.way == "triton":
            field = (points, table, first, last, shape.grid, shape.levels, shape.beta)
            gpu("surface", points, table, first, last).forward(*field, out, gradient if shape.slope else None)
            ctx.save_for_backward(points, table, first, last)
            return out, gradient
        run = kernel("surface", points, table, first, last)
        size = 0
        if shape.trained:
            size = _sized(points)(shape.grid.native, shape.levels, first.shape[0], len(points))
        trail = empty((size,), points)
        run(
            *_field(table, first, last, shape), points.data_ptr(), len(points), out.data_ptr(),
            gradient.data_ptr() if shape.slope else 0, trail.data_ptr() if shape.trained else 0,
        )  # fmt: skip
        ctx.save_for_backward(points, table, first, last, trail)
        return out, gradient

    @staticmethod
    def backward(ctx, d_out: Tensor, d_gradient: Tensor):
        refuse_second_order("surface")
        points, table, first, last, *rest = ctx.saved_tensors
        d_out, d_gradient, shape = d_out.contiguous(), d_gradient.contiguous(), ctx.shape
        if shape.way == "triton":
            field = (points, table, first, last, shape.grid, shape.levels, shape.beta)
            kernels = gpu("surface", points, table, first, last, d_out, d_gradient)
            return None, *kernels.backward(*field, d_out, d_gradient if shape.slope else None), None
        (trail,) = rest
        d_table, d_first, d_last = torch.zeros_like(table), torch.zeros_like(first), torch.zeros_like(last)
        kernel("surface_backward", points, table, first, last, d_out, d_gradient)(
            *_field(table, first, last, shape), points.data_ptr(), len(points), trail.data_ptr(), d_out.data_ptr(),
            d_gradient.data_ptr() if shape.slope else 0, d_table.data_ptr(), d_first.data_ptr(), d_last.data_ptr(),
        )  # fmt: skip
        return None, d_table, d_first, d_last, None


def _sized(like: Tensor):
    """The function that tells how many values a forward pass leaves for the backward pass."""
    return core().surface_trail_size_f32 if like.dtype == torch.float32 else core().surface_trail_size_f64


def _field(table: Tensor, first: Tensor, last: Tensor, shape: _Shape) -> list[object]:
    """The arguments that name a field, in the kernels' order."""
    weights = [t.data_ptr() for t in (table, first, last)]
    return [shape.grid.native, shape.levels, *weights, first.shape[0], last.shape[0], shape.beta]


def _by_chain(
    points: Tensor,
    table: Tensor,
    first: Tensor,
    last: Tensor,
    shape: _Shape,
    encode: Callable[[Tensor, Tensor, HashGrid], Tensor],
) -> tuple[Tensor, Tensor]:
    """`surface` in plain PyTorch, its gradient by autograd; `encode` is the hash encoding."""
    grid = shape.grid
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        place = (0.5 * points + 0.5).clamp(0.0, 1.0)
        encoded = encode(place, table, grid)[:, : shape.levels * grid.features]
        inputs = torch.cat([points, torch.ones_like(points[:, :1]), encoded], dim=1)
        scaled = shape.beta * (inputs @ first.T)
        # Not logaddexp, whose second derivative is no number where the exponential of -scaled overflows.
        hidden = torch.nn.functional.softplus(scaled, threshold=40.0) / shape.beta
        out = torch.cat([hidden, torch.ones_like(hidden[:, :1])], dim=1) @ last.T
        gradient = points[:0]
        if shape.slope:
            (gradient,) = torch.autograd.grad(out[:, 0].sum(), points, create_graph=shape.trained)
    return (out, gradient) if shape.trained else (out.detach(), gradient.detach())
