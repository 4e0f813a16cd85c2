"""Hash encoding on a GPU: three kernels, each with the weights of the trilinear blend or with their slope.

Let w_k(x) be the weight of corner k, and w'_k = v . grad w_k its slope along a direction v per point. Everything that
the op and its derivatives need is one of

    blend     out[n, l]      = sum_k w_k  table[row_k]        the encoding;   with w': by the incoming gradient
    scatter   d_table[row_k] += w_k  d_out[n, l]              by the table;   with w': the same of a slope
    slope     d_x[n]         = sum_l,k grad w_k (table[row_k] . d_out[n, l])       with w': the curvature times v

`blend` and `scatter` run a program per block of points and level, levels apart from each other in time, so that the
second-level cache holds one level's table while it is read. `slope` has one result for all levels and loops over them
instead of adding atomically.

The gradient of the table is a sum at random places, by atomic additions in single precision; their order, and so the
last bit, is chance. On coarse levels a whole batch adds to a few thousand rows, and the additions wait for each other:
these levels, the first rows of the table, have a launch of their own, into `COPIES` copies, one for every program
modulo their number, which are summed afterwards.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import blocks

if TYPE_CHECKING:
    from ..hash_encode import HashGrid

BLOCK = 128
"""Points of a program: one per thread of four warps, each with all features of a row in one load."""
COARSE_ROWS = 1 << 15
"""Levels of at most so many rows are coarse: 2^18 points write each of their rows 64 times or more."""
COPIES = 8
CROWD = 1 << 14
"""Points from which copies are worth their clearing and summing."""


def encode(x: Tensor, table: Tensor, grid: HashGrid, out: Tensor, count: Tensor | None = None) -> None:
    """Fills out [N, L F]; the table may be of half precision. Rows from `count` on are left as they are."""
    _blend(x, table, x, grid, out, False, count)


def scatter(
    x: Tensor,
    d_out: Tensor,
    grid: HashGrid,
    d_table: Tensor,
    count: Tensor | None = None,
    factor: Tensor | None = None,
) -> None:
    """Adds the gradient by the table, times `factor` (a tensor of one number), to d_table."""
    _scatter(x, d_out, x, grid, d_table, False, count, factor)


def slope(x: Tensor, table: Tensor, d_out: Tensor, grid: HashGrid, d_x: Tensor) -> None:
    """Fills d_x [N, 3] with the gradient by x."""
    _slope(x, table, d_out, x, grid, d_x, False)


def second(
    x: Tensor,
    table: Tensor,
    d_out: Tensor,
    v: Tensor,
    grid: HashGrid,
    d_x: Tensor | None,
    d_table: Tensor | None,
    d_d_out: Tensor | None,
) -> None:
    """Derivatives of sum(v * gradient by x), by x, table and d_out: d_x and d_d_out are filled, d_table added to."""
    if d_d_out is not None:
        _blend(x, table, v, grid, d_d_out, True, None)
    if d_table is not None:
        _scatter(x, d_out, v, grid, d_table, True, None)
    if d_x is not None:
        _slope(x, table, d_out, v, grid, d_x, True)


def _blend(x: Tensor, table: Tensor, v: Tensor, grid: HashGrid, out: Tensor, along: bool, count: Tensor | None) -> None:
    n = x.shape[0]
    if n == 0:
        return
    scale, numbers = level_numbers(grid, x.device, x.dtype)
    _blend_kernel[(blocks(n, BLOCK), grid.levels)](
        x, table, v, out, scale, numbers, count, n, grid.levels,
        F=grid.features, LINE=grid.layout == "line", ALONG=along, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip


def _scatter(
    x: Tensor,
    d_out: Tensor,
    v: Tensor,
    grid: HashGrid,
    d_table: Tensor,
    along: bool,
    count: Tensor | None,
    factor: Tensor | None = None,
) -> None:
    n = x.shape[0]
    if n == 0:
        return
    scale, numbers = level_numbers(grid, x.device, x.dtype)
    coarse = sum(size <= COARSE_ROWS for size in grid.modulus) if n >= CROWD else 0

    def launch(into: Tensor, first: int, levels: int, copies: int) -> None:
        _scatter_kernel[(blocks(n, BLOCK), levels)](
            x, d_out, v, into, scale, numbers, count, factor, n, grid.levels, first, into.numel() // copies,
            F=grid.features, LINE=grid.layout == "line", ALONG=along, COPIES=copies, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip

    if coarse:
        rows = grid.first_row[coarse]
        copies = torch.zeros((COPIES, rows, grid.features), dtype=d_table.dtype, device=x.device)
        launch(copies, 0, coarse, COPIES)
        d_table[:rows] += copies.sum(dim=0)
    if coarse < grid.levels:
        launch(d_table, coarse, grid.levels - coarse, 1)


def _slope(x: Tensor, table: Tensor, d_out: Tensor, v: Tensor, grid: HashGrid, d_x: Tensor, along: bool) -> None:
    n = x.shape[0]
    if n == 0:
        return
    scale, numbers = level_numbers(grid, x.device, x.dtype)
    _slope_kernel[(blocks(n, BLOCK),)](
        x, table, d_out, v, d_x, scale, numbers, n, grid.levels,
        F=grid.features, LINE=grid.layout == "line", ALONG=along, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip


@lru_cache(maxsize=64)
def level_numbers(grid: HashGrid, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Per level, on the device: scale [L], and [L, 5] factor of y, factor of z, rows, first row, whether dense."""
    spare = 1 if grid.layout == "line" else 0
    numbers = []
    for level in range(grid.levels):
        side = grid.resolution[level] + spare
        y, z = (side, side * side) if grid.dense[level] else (2654435761, 805459861)
        numbers.append([y, z, grid.modulus[level], grid.first_row[level], int(grid.dense[level])])
    return (
        torch.tensor(grid.scale, dtype=dtype, device=device),
        torch.tensor(numbers, dtype=torch.int64, device=device),
    )


# ---- Kernels. Tensors of points have the shape [BLOCK, 1], so that they meet [BLOCK, F] features without a change of
# layout, which would go through shared memory.


@triton.jit
def _points(n, count, BLOCK: tl.constexpr):
    """This program's points, which of them there are, and whether there is any."""
    if count is not None:
        n = tl.minimum(n, tl.load(count))
    begin = tl.program_id(0).to(tl.int64) * BLOCK
    point = begin + tl.arange(0, BLOCK)[:, None]
    return point, point < n, begin < n


@triton.jit
def _cell(x, point, live, AXIS: tl.constexpr, scale):
    """The cell's coordinate along an axis, and the point's place in it. What is not a number is taken for 0."""
    position = tl.load(x + point * 3 + AXIS, mask=live, other=0.0)
    position = tl.where(position > 0, tl.where(position < 1, position, 1.0), 0.0) * scale + 0.5
    cell = position.to(tl.int32)  # not negative, so this is the floor
    return cell.to(tl.uint32), position - cell.to(position.dtype)


@triton.jit
def level_shape(scales, numbers, level):
    """Scale of a level, and what `corner_row` wants of it."""
    numbers += level * 5
    y_factor, z_factor = tl.load(numbers).to(tl.uint32), tl.load(numbers + 1).to(tl.uint32)
    rows, first, dense = tl.load(numbers + 2).to(tl.uint32), tl.load(numbers + 3), tl.load(numbers + 4) != 0
    return tl.load(scales + level), (y_factor, z_factor, rows, first, dense)


@triton.jit
def corner_row(cx, cy, cz, level, K: tl.constexpr, LINE: tl.constexpr):
    """Table row of corner K, as `corner_rows` has it, in unsigned 32-bit arithmetic that wraps around."""
    y_factor, z_factor, rows, first, dense = level
    y = (cy + ((K >> 1) & 1)) * y_factor
    z = (cz + (K >> 2)) * z_factor
    if LINE:
        index = cx + y + z
        index = tl.where(dense, index, index & (rows - 1)) + (K & 1)
    else:
        x = cx + (K & 1)
        along = x + y + z
        # A dense index goes beyond the rows by less than their number, so this is the modulus.
        index = tl.where(dense, tl.where(along >= rows, along - rows, along), (x ^ y ^ z) & (rows - 1))
    return index.to(tl.int64) + first


@triton.jit
def corner_share(f, BIT: tl.constexpr):
    """A corner's weight along one axis."""
    if BIT:
        return f
    else:
        return 1.0 - f


@triton.jit
def corner_sign(scale, BIT: tl.constexpr):
    """Slope of that weight."""
    if BIT:
        return scale
    else:
        return -scale


@triton.jit
def corner_weight(fx, fy, fz, vx, vy, vz, scale, K: tl.constexpr, ALONG: tl.constexpr):
    """Weight of corner K, or its slope along v."""
    wx, wy, wz = corner_share(fx, K & 1), corner_share(fy, (K >> 1) & 1), corner_share(fz, K >> 2)
    if ALONG:
        sx, sy, sz = corner_sign(scale, K & 1), corner_sign(scale, (K >> 1) & 1), corner_sign(scale, K >> 2)
        return vx * sx * wy * wz + vy * sy * wx * wz + vz * sz * wx * wy
    else:
        return wx * wy * wz


@triton.jit
def _direction(v, point, live, f, ALONG: tl.constexpr):
    if ALONG:
        return (
            tl.load(v + point * 3, mask=live, other=0.0),
            tl.load(v + point * 3 + 1, mask=live, other=0.0),
            tl.load(v + point * 3 + 2, mask=live, other=0.0),
        )
    else:
        return f, f, f  # Nobody looks.


@triton.jit
def _blend_kernel(
    x, table, v, out, scales, numbers, count, n, levels,
    F: tl.constexpr, LINE: tl.constexpr, ALONG: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    point, live, any_live = _points(n, count, BLOCK)
    if not any_live:
        return
    level = tl.program_id(1)
    scale, shape = level_shape(scales, numbers, level)
    cx, fx = _cell(x, point, live, 0, scale)
    cy, fy = _cell(x, point, live, 1, scale)
    cz, fz = _cell(x, point, live, 2, scale)
    vx, vy, vz = _direction(v, point, live, fx, ALONG)
    feature = tl.arange(0, F)[None, :]
    total = tl.zeros([BLOCK, F], fx.dtype)
    for k in tl.static_range(8):
        row = corner_row(cx, cy, cz, shape, k, LINE)
        value = tl.load(table + row * F + feature, mask=live, other=0.0).to(fx.dtype)
        total += corner_weight(fx, fy, fz, vx, vy, vz, scale, k, ALONG) * value
    tl.store(out + point * (levels * F) + level * F + feature, total, mask=live)


@triton.jit(do_not_specialize=["first"])
def _scatter_kernel(
    x, d_out, v, into, scales, numbers, count, factor, n, levels, first, size,
    F: tl.constexpr, LINE: tl.constexpr, ALONG: tl.constexpr, COPIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    point, live, any_live = _points(n, count, BLOCK)
    if not any_live:
        return
    level = first + tl.program_id(1)
    scale, shape = level_shape(scales, numbers, level)
    cx, fx = _cell(x, point, live, 0, scale)
    cy, fy = _cell(x, point, live, 1, scale)
    cz, fz = _cell(x, point, live, 2, scale)
    vx, vy, vz = _direction(v, point, live, fx, ALONG)
    feature = tl.arange(0, F)[None, :]
    gradient = tl.load(d_out + point * (levels * F) + level * F + feature, mask=live, other=0.0)
    if factor is not None:
        gradient *= tl.load(factor)
    if COPIES > 1:
        into += (tl.program_id(0) % COPIES).to(tl.int64) * size
    for k in tl.static_range(8):
        row = corner_row(cx, cy, cz, shape, k, LINE)
        change = corner_weight(fx, fy, fz, vx, vy, vz, scale, k, ALONG) * gradient
        tl.atomic_add(into + row * F + feature, change, mask=live, sem="relaxed")


@triton.jit
def _slope_kernel(
    x, table, d_out, v, d_x, scales, numbers, n, levels,
    F: tl.constexpr, LINE: tl.constexpr, ALONG: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    point, live, _ = _points(n, None, BLOCK)
    feature = tl.arange(0, F)[None, :]
    along_x = tl.zeros([BLOCK, 1], x.dtype.element_ty)
    along_y = tl.zeros([BLOCK, 1], x.dtype.element_ty)
    along_z = tl.zeros([BLOCK, 1], x.dtype.element_ty)
    for level in range(levels):
        scale, shape = level_shape(scales, numbers, level)
        cx, fx = _cell(x, point, live, 0, scale)
        cy, fy = _cell(x, point, live, 1, scale)
        cz, fz = _cell(x, point, live, 2, scale)
        vx, vy, vz = _direction(v, point, live, fx, ALONG)
        gradient = tl.load(d_out + point * (levels * F) + level * F + feature, mask=live, other=0.0)
        for k in tl.static_range(8):
            row = corner_row(cx, cy, cz, shape, k, LINE)
            value = tl.load(table + row * F + feature, mask=live, other=0.0).to(fx.dtype)
            product = tl.sum(value * gradient, axis=1, keep_dims=True)
            wx, wy, wz = corner_share(fx, k & 1), corner_share(fy, (k >> 1) & 1), corner_share(fz, k >> 2)
            sx, sy, sz = corner_sign(scale, k & 1), corner_sign(scale, (k >> 1) & 1), corner_sign(scale, k >> 2)
            if ALONG:  # A weight is linear along each axis, so only mixed second derivatives are there.
                along_x += product * sx * (vy * sy * wz + vz * sz * wy)
                along_y += product * sy * (vx * sx * wz + vz * sz * wx)
                along_z += product * sz * (vx * sx * wy + vy * sy * wx)
            else:
                along_x += product * sx * wy * wz
                along_y += product * sy * wx * wz
                along_z += product * sz * wx * wy
    tl.store(d_x + point * 3, along_x, mask=live)
    tl.store(d_x + point * 3 + 1, along_y, mask=live)
    tl.store(d_x + point * 3 + 2, along_z, mask=live)
