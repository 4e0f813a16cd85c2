"""A signed distance field with its slope on a GPU: one kernel forward, three back.

Letters and formulas are those of `csrc/surface.h`: u = (x, y, z, 1, features), z = A u, h = (softplus(z), 1) and
out = B h; p = A^T (b_0 s) is the derivative of the distance by u, J that of the features by the point, and q =
(g, 0, J g) the direction in which a loss whose gradient by the slope is g moves u.

    forward     gather features and J, network, slope                   a program per tile of points
    gather      u and q, from one visit to the table                    a program per block of points and level
    backward    network: gradients of A and B; A^T d_z and p            a program per tile of points
    scatter     A^T d_z by the corners' weights, p by their slopes      a program per block of points and level

`neus` asks for some 10^4 points at a time: a few tiles per core of a large GPU, so that launches and waiting for the
table cost more than arithmetic. A chain of the kernels beside this file would read the table three times and add to it
twice, with dozens of launches in all; here it is read twice, and both terms of its gradient are one addition. The way
back is not one kernel because its registers did not suffice by far. Between its kernels 1 kB per point is written and
read, as much as a visit to the table reads.

- **Columns are features.** A forward tile is [BLOCK, levels, F] while it is gathered, so that a row of the table is one
  load, and [BLOCK, levels * F] in products. Coordinates and the 1 are a second operand, 16 columns wide.
- **Hidden units come in pieces**, so that the size of what is in registers does not depend on the network's width.
- **Gradients of the weights** are summed as in `mlp`: in registers, written once per program, in the layout of the
  weights, and added in a fixed order. Coarse levels have copies where there is a crowd, as in `hash_encode`.

A distance wants all its digits, so autocast changes nothing here; products are those of single precision unless PyTorch
has been allowed TF32 (see `mlp`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import empty
from . import blocks, halves, mlp
from .hash_encode import (
    BLOCK,
    COARSE_ROWS,
    COPIES,
    CROWD,
    corner_row,
    corner_share,
    corner_sign,
    corner_weight,
    level_numbers,
    level_shape,
)
from .mlp import PROGRAMS

if TYPE_CHECKING:
    from ..hash_encode import HashGrid

FORWARD_TILE = 32
VALUE_TILE = 64
"""Points of a forward program with and without the slope, whose four warps have no registers for more."""
TILE = 16
"""Points of a tile of the way back. Of so few rows each of four warps takes all and a part of the columns; of more, it
would take some and hold all weights of a product, which in three TF32 parts are more than its registers."""
PIECE = 32
BACKWARD_PIECE = 64
"""Hidden units that are computed at once. On the way back each piece has programs of its own."""
LEAST_COLUMNS = 32
"""Least columns of features. `neus` begins with three levels of four features; it need not compile twice."""


def fits(first: Tensor, last: Tensor) -> bool:
    """Whether a field with these layers is small enough for its kernels."""
    return mlp.fits((first.shape[1] - 4, first.shape[0], last.shape[0]))


def forward(
    points: Tensor, table: Tensor, first: Tensor, last: Tensor, grid: HashGrid, levels: int, beta: float, out: Tensor,
    gradient: Tensor | None,
) -> None:  # fmt: skip
    """Fills out [N, 1 + K] and, where it is given, gradient [N, 3]."""
    n = points.shape[0]
    if n == 0:
        return
    block = VALUE_TILE if gradient is None else FORWARD_TILE
    _surface_kernel[(blocks(n, block),)](
        points, table, first, last, out, gradient, *level_numbers(grid, points.device, points.dtype), n, levels,
        *halves(beta), F=grid.features, LINE=grid.layout == "line", **constants(first, last, PIECE), BLOCK=block,
        num_warps=4, num_stages=1,
    )  # fmt: skip


def backward(
    points: Tensor, table: Tensor, first: Tensor, last: Tensor, grid: HashGrid, levels: int, beta: float, d_out: Tensor,
    d_gradient: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by table, first and last."""
    n = points.shape[0]
    if n == 0:
        return torch.zeros_like(table), torch.zeros_like(first), torch.zeros_like(last)
    shape, network = level_numbers(grid, points.device, points.dtype), constants(first, last, BACKWARD_PIECE)
    layout: dict[str, Any] = {"F": grid.features, "LINE": grid.layout == "line", "COLUMNS": network["COLUMNS"]}
    everywhere = (blocks(n, BLOCK), levels)
    moved = empty((n, 2, layout["COLUMNS"]), points)
    _surface_gather_kernel[everywhere](points, table, d_gradient, moved, *shape, n, **layout, BLOCK=BLOCK, num_warps=4)
    programs, pieces = min(blocks(n, TILE), PROGRAMS), network["UNITS"] // network["PIECE"]
    changes = empty((pieces, n, 2, layout["COLUMNS"]), points)
    partial = empty((programs, first.numel() + last.numel()), points)
    _surface_backward_kernel[(programs, pieces)](
        points, first, last, d_out, d_gradient, moved, changes, partial, n, programs, levels, *halves(beta),
        F=grid.features, **network, BLOCK=TILE, num_warps=4, num_stages=1,
    )  # fmt: skip
    # Coarse levels are the first rows; behind all rows lie their copies.
    crowded = [rows for rows, size in zip(grid.first_row[1:], grid.modulus, strict=True) if size <= COARSE_ROWS]
    coarse = crowded[-1] if crowded and n >= CROWD else 0
    d_rows = torch.zeros((grid.rows + COPIES * coarse, grid.features), dtype=table.dtype, device=table.device)
    _surface_scatter_kernel[everywhere](
        points, d_gradient, changes, d_rows, *shape, n, grid.rows, coarse,
        PIECES=pieces, COPIES=COPIES, **layout, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    d_table, copies = d_rows.split([grid.rows, COPIES * coarse])
    if coarse:
        d_table[:coarse] += copies.view(COPIES, coarse, grid.features).sum(dim=0)
    d_first, d_last = partial.sum(dim=0).split([first.numel(), last.numel()])
    return d_table, d_first.view_as(first), d_last.view_as(last)


def constants(first: Tensor, last: Tensor, piece: int) -> dict[str, Any]:
    """What kernels are compiled for: COLUMNS, UNITS and OUT are the features, hidden units and outputs, padded."""
    features, hidden, outputs = mlp.padded((first.shape[1] - 4, first.shape[0], last.shape[0]))
    return {
        "HIDDEN": first.shape[0], "OUTPUTS": last.shape[0], "COLUMNS": max(features, LEAST_COLUMNS), "UNITS": hidden,
        "OUT": outputs, "PIECE": min(hidden, piece), "PRECISION": mlp.product_precision(first),
    }  # fmt: skip


# ---- Kernels. Points are rows: tensors of them have the shape [BLOCK, 1], as in `hash_encode`.


@triton.jit
def to_hidden(
    u, at, first, levels, unit, HIDDEN: tl.constexpr, F: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Some rows of A u, of which the coordinates and their 1 are `at` [BLOCK, 16]."""
    column, axis = tl.arange(0, COLUMNS)[:, None], tl.arange(0, 16)[:, None]
    row = first + unit[None, :] * (4 + levels * F)
    there = (unit < HIDDEN)[None, :]
    weight = tl.load(row + 4 + column, mask=there & (column < levels * F), other=0.0)
    sums = tl.dot(u, weight, input_precision=PRECISION)
    weight = tl.load(row + axis, mask=there & (axis < 4), other=0.0)
    return tl.dot(at, weight, sums, input_precision=PRECISION)


@triton.jit
def to_features(
    a, first, levels, unit, sums, HIDDEN: tl.constexpr, F: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Adds what some units have in A^T a to its rows of features."""
    column, row = tl.arange(0, COLUMNS)[None, :], first + unit[:, None] * (4 + levels * F)
    weight = tl.load(row + 4 + column, mask=(unit < HIDDEN)[:, None] & (column < levels * F), other=0.0)
    return tl.dot(a, weight, sums, input_precision=PRECISION)


@triton.jit
def to_places(a, first, levels, unit, sums, HIDDEN: tl.constexpr, F: tl.constexpr, PRECISION: tl.constexpr):
    """The same, to its rows of coordinates."""
    axis, row = tl.arange(0, 16)[None, :], first + unit[:, None] * (4 + levels * F)
    weight = tl.load(row + axis, mask=(unit < HIDDEN)[:, None] & (axis < 4), other=0.0)
    return tl.dot(a, weight, sums, input_precision=PRECISION)


@triton.jit
def in_columns(x, y, z, w):
    """Four columns of 16."""
    axis = tl.arange(0, 16)[None, :]
    return tl.where(axis == 0, x, tl.where(axis == 1, y, tl.where(axis == 2, z, tl.where(axis == 3, w, 0.0))))


@triton.jit
def _inside(x, scale):
    """The cell's coordinate along an axis, and the point's place in it, of points of the cube [-1, 1]^3."""
    place = 0.5 * x + 0.5
    position = tl.where(place > 0, tl.where(place < 1, place, 1.0), 0.0) * scale + 0.5
    cell = position.to(tl.int32)
    return cell.to(tl.uint32), position - cell.to(position.dtype)


@triton.jit
def load_point(points, point, live):
    """Rows of three numbers, apart."""
    x = tl.load(points + point * 3, mask=live, other=0.0)
    y = tl.load(points + point * 3 + 1, mask=live, other=0.0)
    return x, y, tl.load(points + point * 3 + 2, mask=live, other=0.0)


@triton.jit
def _moves(x):
    """How a place in the unit cube moves with its point: by a half, or not at all where the cube ends."""
    return tl.where((x >= -1) & (x <= 1), 0.5, 0.0).to(x.dtype)


@triton.jit
def in_cells(x, y, z, scales, numbers, levels, LEVELS: tl.constexpr):
    """For points [BLOCK, 1] and levels the cell, the place in it, and what `corner_row` wants of a level, all [BLOCK,
    LEVELS, 1]; which levels count."""
    level = tl.arange(0, LEVELS)[None, :, None]
    scale, shape = level_shape(scales, numbers, tl.minimum(level, levels - 1))
    cx, fx = _inside(x[:, :, None], scale)
    cy, fy = _inside(y[:, :, None], scale)
    cz, fz = _inside(z[:, :, None], scale)
    return (cx, cy, cz), (fx, fy, fz), scale, shape, level < levels


@triton.jit
def at_corner(cell, shape, K: tl.constexpr, LINE: tl.constexpr, F: tl.constexpr):
    """Where in a table corner K has its features [BLOCK, LEVELS, F]."""
    cx, cy, cz = cell
    return corner_row(cx, cy, cz, shape, K, LINE) * F + tl.arange(0, F)[None, None, :]


@triton.jit
def log1p(y):
    """log(1 + y) for y in [0, 1]: 2 artanh(y / (2 + y)), whose argument is at most 1/3; in double by the logarithm."""
    if y.dtype == tl.float64:
        whole = 1.0 + y
        return tl.where(whole == 1.0, y, tl.log(whole) * (y / tl.where(whole == 1.0, 1.0, whole - 1.0)))
    else:
        s = y / (y + 2.0)
        q = s * s
        p = (((q * 0.090909091 + 0.11111111) * q + 0.14285714) * q + 0.2) * q + 0.33333333
        return 2.0 * s * (p * q + 1.0)


@triton.jit
def softplus(z, beta):
    """log(1 + exp(beta z)) / beta and its first two derivatives, of which none overflows anywhere."""
    e = tl.exp(-tl.abs(z) * beta)
    inverse = 1.0 / (1.0 + e)
    value = tl.maximum(z, 0.0) + log1p(e) / beta
    return value, tl.where(z > 0, inverse, e * inverse), beta * e * inverse * inverse


@triton.jit
def _surface_kernel(
    points, table, first, last, out, gradient, scales, numbers, n, levels, beta_high, beta_low,
    F: tl.constexpr, HIDDEN: tl.constexpr, OUTPUTS: tl.constexpr, LINE: tl.constexpr, COLUMNS: tl.constexpr,
    UNITS: tl.constexpr, OUT: tl.constexpr, PRECISION: tl.constexpr, PIECE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    point = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
    live = point < n
    x, y, z = load_point(points, point, live)
    cell, place, scale, shape, known = in_cells(x, y, z, scales, numbers, levels, COLUMNS // F)
    fx, fy, fz = place
    u = tl.zeros([BLOCK, COLUMNS // F, F], x.dtype)
    along_x, along_y, along_z = u, u, u  # derivatives of the features
    for k in tl.static_range(8):
        corner = tl.load(table + at_corner(cell, shape, k, LINE, F), mask=live[:, :, None] & known, other=0.0)
        wx, wy, wz = corner_share(fx, k & 1), corner_share(fy, (k >> 1) & 1), corner_share(fz, k >> 2)
        u += wx * wy * wz * corner
        if gradient is not None:
            along_x += corner_sign(wy * wz, k & 1) * corner
            along_y += corner_sign(wx * wz, (k >> 1) & 1) * corner
            along_z += corner_sign(wx * wy, k >> 2) * corner
    u, at = tl.reshape(u, [BLOCK, COLUMNS]), in_columns(x, y, z, 1.0)
    beta = tl.cast(beta_high, x.dtype) + beta_low
    output, axis = tl.arange(0, OUT)[None, :], tl.arange(0, 16)[None, :]
    bias = tl.load(last + output * (HIDDEN + 1) + HIDDEN, mask=output < OUTPUTS, other=0.0)
    found = tl.zeros([BLOCK, OUT], x.dtype) + bias
    total, p = tl.zeros([BLOCK, 16], x.dtype), tl.zeros([BLOCK, COLUMNS], x.dtype)
    for start in range(0, UNITS, PIECE):
        unit = start + tl.arange(0, PIECE)
        value, slope, _ = softplus(to_hidden(u, at, first, levels, unit, HIDDEN, F, COLUMNS, PRECISION), beta)
        mask = (unit < HIDDEN)[:, None] & (output < OUTPUTS)
        weight = tl.load(last + output * (HIDDEN + 1) + unit[:, None], mask=mask, other=0.0)
        found = tl.dot(value, weight, found, input_precision=PRECISION)
        if gradient is not None:
            a = slope * tl.load(last + unit, mask=unit < HIDDEN, other=0.0)[None, :]
            total = to_places(a, first, levels, unit, total, HIDDEN, F, PRECISION)
            p = to_features(a, first, levels, unit, p, HIDDEN, F, COLUMNS, PRECISION)
    tl.store(out + point * OUTPUTS + output, found, mask=live & (output < OUTPUTS))
    if gradient is not None:
        d_x = _moves(x) * tl.sum(p * tl.reshape(scale * along_x, [BLOCK, COLUMNS]), axis=1, keep_dims=True)
        d_y = _moves(y) * tl.sum(p * tl.reshape(scale * along_y, [BLOCK, COLUMNS]), axis=1, keep_dims=True)
        d_z = _moves(z) * tl.sum(p * tl.reshape(scale * along_z, [BLOCK, COLUMNS]), axis=1, keep_dims=True)
        tl.store(gradient + point * 3 + axis, total + in_columns(d_x, d_y, d_z, 0.0), mask=live & (axis < 3))


@triton.jit
def _in_level(points, d_gradient, scales, numbers, n, BLOCK: tl.constexpr):
    """This program's points and level: cells, places in them, and how these move with the loss's direction."""
    point = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
    live = point < n
    scale, shape = level_shape(scales, numbers, tl.program_id(1))
    x, y, z = load_point(points, point, live)
    cx, fx = _inside(x, scale)
    cy, fy = _inside(y, scale)
    cz, fz = _inside(z, scale)
    vx, vy, vz = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
    if d_gradient is not None:
        vx, vy, vz = load_point(d_gradient, point, live)
        vx, vy, vz = _moves(x) * vx, _moves(y) * vy, _moves(z) * vz
    return point, live, (cx, cy, cz), (fx, fy, fz, vx, vy, vz, scale), shape


@triton.jit
def _corner(cell, place, shape, K: tl.constexpr, LINE: tl.constexpr):
    """Row, weight and slope of the weight of corner K."""
    cx, cy, cz = cell
    fx, fy, fz, vx, vy, vz, scale = place
    weight = corner_weight(fx, fy, fz, vx, vy, vz, scale, K, False)
    return corner_row(cx, cy, cz, shape, K, LINE), weight, corner_weight(fx, fy, fz, vx, vy, vz, scale, K, True)


@triton.jit
def _surface_gather_kernel(
    points, table, d_gradient, moved, scales, numbers, n,
    F: tl.constexpr, LINE: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    point, live, cell, place, shape = _in_level(points, d_gradient, scales, numbers, n, BLOCK)
    feature = tl.arange(0, F)[None, :]
    u = tl.zeros([BLOCK, F], points.dtype.element_ty)
    q = u
    for k in tl.static_range(8):
        row, weight, slope = _corner(cell, place, shape, k, LINE)
        value = tl.load(table + row * F + feature, mask=live, other=0.0)
        u += weight * value
        if d_gradient is not None:
            q += slope * value
    into = moved + point * (2 * COLUMNS) + tl.program_id(1) * F + feature
    tl.store(into, u, mask=live)
    if d_gradient is not None:
        tl.store(into + COLUMNS, q, mask=live)


@triton.jit
def _surface_backward_kernel(
    points, first, last, d_out, d_gradient, moved, changes, partial, n, programs, levels, beta_high, beta_low,
    F: tl.constexpr, HIDDEN: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, UNITS: tl.constexpr,
    OUT: tl.constexpr, PIECE: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = points.dtype.element_ty
    beta = tl.cast(beta_high, dtype) + beta_low
    piece = tl.program_id(1)
    unit = piece * PIECE + tl.arange(0, PIECE)
    column, output = tl.arange(0, COLUMNS)[None, :], tl.arange(0, OUT)
    known = column < levels * F
    in_last = (unit < HIDDEN)[None, :] & (output < OUTPUTS)[:, None]
    changes += piece.to(tl.int64) * n * (2 * COLUMNS)
    d_features, d_place = tl.zeros([PIECE, COLUMNS], dtype), tl.zeros([PIECE, 16], dtype)
    d_weight, d_bias, d_top = tl.zeros([OUT, PIECE], dtype), tl.zeros([OUT], dtype), tl.zeros([PIECE], dtype)
    for tile in range(tl.program_id(0), tl.cdiv(n, BLOCK), programs):
        point = tl.cast(tile, tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
        live = point < n
        x, y, z = load_point(points, point, live)
        u = tl.load(moved + point * (2 * COLUMNS) + column, mask=live & known, other=0.0)
        at = in_columns(x, y, z, tl.where(live, 1.0, 0.0).to(dtype))
        hidden = to_hidden(u, at, first, levels, unit, HIDDEN, F, COLUMNS, PRECISION)
        value, slope, bend = softplus(hidden, beta)
        in_out = live & (output < OUTPUTS)[None, :]
        dy = tl.load(d_out + point * OUTPUTS + output[None, :], mask=in_out, other=0.0)
        d_weight = tl.dot(tl.trans(dy), value, d_weight, input_precision=PRECISION)
        d_bias += tl.sum(dy, axis=0)
        weight = tl.load(last + output[:, None] * (HIDDEN + 1) + unit[None, :], mask=in_last, other=0.0)
        dz = tl.dot(dy, weight, input_precision=PRECISION) * slope
        into = changes + point * (2 * COLUMNS) + column
        if d_gradient is not None:
            gx, gy, gz = load_point(d_gradient, point, live)
            towards = in_columns(gx, gy, gz, 0.0)
            q = tl.load(moved + point * (2 * COLUMNS) + COLUMNS + column, mask=live & known, other=0.0)
            along = to_hidden(q, towards, first, levels, unit, HIDDEN, F, COLUMNS, PRECISION)
            top = tl.load(last + unit, mask=unit < HIDDEN, other=0.0)[None, :]
            dz += top * bend * along
            d_top += tl.sum(slope * along, axis=0)
            a = top * slope
            d_features = tl.dot(tl.trans(a), q, d_features, input_precision=PRECISION)
            d_place = tl.dot(tl.trans(a), towards, d_place, input_precision=PRECISION)
            p = to_features(
                a, first, levels, unit, tl.zeros([BLOCK, COLUMNS], dtype), HIDDEN, F, COLUMNS, PRECISION
            )  # fmt: skip
            tl.store(into + COLUMNS, p, mask=live & known)
        d_features = tl.dot(tl.trans(dz), u, d_features, input_precision=PRECISION)
        d_place = tl.dot(tl.trans(dz), at, d_place, input_precision=PRECISION)
        du = to_features(
            dz, first, levels, unit, tl.zeros([BLOCK, COLUMNS], dtype), HIDDEN, F, COLUMNS, PRECISION
        )  # fmt: skip
        tl.store(into, du, mask=live & known)
    inputs = 4 + levels * F
    partial += tl.program_id(0).to(tl.int64) * (HIDDEN * inputs + OUTPUTS * (HIDDEN + 1))
    there, row, axis = (unit < HIDDEN)[:, None], unit[:, None] * inputs, tl.arange(0, 16)[None, :]
    tl.store(partial + row + 4 + column, d_features, mask=there & known)
    tl.store(partial + row + axis, d_place, mask=there & (axis < 4))
    partial += HIDDEN * inputs
    d_weight += tl.where(output[:, None] == 0, d_top[None, :], 0.0)
    tl.store(partial + output[:, None] * (HIDDEN + 1) + unit[None, :], d_weight, mask=in_last)
    tl.store(partial + output * (HIDDEN + 1) + HIDDEN, d_bias, mask=output < tl.where(piece == 0, OUTPUTS, 0))


@triton.jit
def _surface_scatter_kernel(
    points, d_gradient, changes, d_rows, scales, numbers, n, rows, coarse,
    F: tl.constexpr, LINE: tl.constexpr, COLUMNS: tl.constexpr, PIECES: tl.constexpr, COPIES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    point, live, cell, place, shape = _in_level(points, d_gradient, scales, numbers, n, BLOCK)
    y_factor, z_factor, size, start, dense = shape
    if start < coarse:
        start += rows + (tl.program_id(0) % COPIES).to(tl.int64) * coarse
    feature = tl.arange(0, F)[None, :]
    du = tl.zeros([BLOCK, F], points.dtype.element_ty)
    p = du
    for piece in tl.static_range(PIECES):
        change = changes + (piece * tl.cast(n, tl.int64) + point) * (2 * COLUMNS) + tl.program_id(1) * F + feature
        du += tl.load(change, mask=live, other=0.0)
        if d_gradient is not None:
            p += tl.load(change + COLUMNS, mask=live, other=0.0)
    for k in tl.static_range(8):
        row, weight, slope = _corner(cell, place, (y_factor, z_factor, size, start, dense), k, LINE)
        tl.atomic_add(d_rows + row * F + feature, weight * du + slope * p, mask=live, sem="relaxed")
