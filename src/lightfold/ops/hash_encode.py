"""Multi-resolution hash encoding (Mueller et al. 2022, section 3).

Letters: L levels, F features per level, N points. Level l has scale s_l = base * b^l - 1 with
b = (finest / base)^(1 / (L-1)); a point x in [0, 1]^3 lies in the cell floor(x s_l + 1/2), and the table rows of the
cell's eight corners are blended trilinearly. Two layouts:

- "line" (default): the two corners along x are neighbours in the table, row = x + h(y, z), where h strides (dense
  levels) or hashes (fine levels) y and z only. Half the loads, each twice as long, which a CPU rewards.
- "xor": tiny-cuda-nn's layout, so that its weights and published numbers can be compared.

An encoding is linear in the table, so all its derivatives are sums over the same eight corners with other weights. The
gradient by x is differentiable again, which is what a loss on the slope of a field needs (an eikonal loss, |grad f| =
1): with a direction v per point, v . grad moves the table through the slopes of the eight weights along v.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .backend import core, empty, gpu, half_type, kernel, route

PRIMES = (1, 2654435761, 805459861)


@dataclass(frozen=True)
class HashGrid:
    """The shape of a hash encoding. Equal values mean interchangeable tables."""

    levels: int = 8
    features: int = 4
    log2_rows: int = 15
    """A level has at most 2^log2_rows rows (plus one spare in the "line" layout)."""
    base: int = 16
    finest: int = 2048
    layout: str = "line"

    def __post_init__(self) -> None:
        if self.features not in (1, 2, 4, 8):
            raise ValueError(f"features: expected 1, 2, 4 or 8, got {self.features}")
        if not 1 <= self.levels <= 32:
            raise ValueError(f"levels: expected 1 to 32, got {self.levels}")
        if self.layout not in ("line", "xor"):
            raise ValueError(f"layout: expected 'line' or 'xor', got {self.layout!r}")
        if not 4 <= self.log2_rows <= 28:
            raise ValueError(f"log2_rows: expected 4 to 28, got {self.log2_rows}")
        if not 2 <= self.base <= self.finest:
            raise ValueError(f"base and finest: expected 2 <= base <= finest, got {self.base} and {self.finest}")

    @cached_property
    def scale(self) -> list[float]:
        """Cells per unit length, per level."""
        growth = math.log(self.finest / self.base) / max(self.levels - 1, 1)
        exact = [self.base * math.exp(growth * level) - 1.0 for level in range(self.levels)]
        # exp(log) misses integers by a few ulp, and the ceiling below would turn 2046.999... + 1 into another grid.
        return [float(round(s)) if abs(s - round(s)) < 1e-6 else s for s in exact]

    @cached_property
    def resolution(self) -> list[int]:
        """Vertices per axis, per level."""
        return [math.ceil(s) + 1 for s in self.scale]

    @cached_property
    def dense(self) -> list[bool]:
        """Whether a level has a row of its own for every vertex."""
        spare = 1 if self.layout == "line" else 0
        return [(r + spare) ** 3 <= 2**self.log2_rows for r in self.resolution]

    @cached_property
    def modulus(self) -> list[int]:
        """Rows that indices of a level run over."""
        spare = 1 if self.layout == "line" else 0
        sizes = [(r + spare) ** 3 if d else 2**self.log2_rows for r, d in zip(self.resolution, self.dense, strict=True)]
        return [-(-size // 8) * 8 if d else size for size, d in zip(sizes, self.dense, strict=True)]

    @cached_property
    def first_row(self) -> list[int]:
        """Row at which a level starts, and the total at the end."""
        # The spare row of a hashed "line" level is padded to 8 rows, so that levels start at cache lines.
        spare = 8 if self.layout == "line" else 0
        starts = [0]
        for size in self.modulus:
            starts.append(starts[-1] + size + spare)
        return starts

    @property
    def rows(self) -> int:
        """Rows of the whole table."""
        return self.first_row[-1]

    @property
    def width(self) -> int:
        """Length of an encoding, levels * features."""
        return self.levels * self.features

    @cached_property
    def native(self):
        """The same, as the kernels read it."""
        kind = 1 if self.layout == "line" else 0
        dense = [int(d) for d in self.dense]
        return core().HashSpec(
            self.features, kind, dense, self.resolution, self.modulus, self.first_row[:-1], self.scale
        )


def hash_encode(x: Tensor, table: Tensor, grid: HashGrid) -> Tensor:
    """Features of points.

    x [N, 3] in [0, 1] (values outside are clamped); table [grid.rows, F] -> [N, L * F], level-major. Differentiable
    twice with respect to both. The gradient with respect to x is that of the trilinear blend, piecewise constant in
    the cell's own axis. Source: instant-ngp section 3, and this module's docstring.

    On a GPU, inside `torch.autocast`, a copy of the table in autocast's half precision is read, which halves the bytes
    of what bounds this op; sums and the gradient of the table, which stays the master, are in x's type.
    """
    _check(x, table, grid)
    x = x.clamp(0.0, 1.0)
    way = route("hash_encode", x, table)
    if way == "reference":
        return hash_encode_reference(x, table, grid)
    return _HashEncode.apply(x.contiguous(), table, grid, way)


def hash_gradient(x: Tensor, table: Tensor, d_out: Tensor, grid: HashGrid) -> Tensor:
    """Gradient by x of sum(d_out * hash_encode(x)): how a function of the features slopes in space.

    x and table as in `hash_encode`, d_out [N, L * F] -> [N, 3], zero along an axis on which x is clamped. It is
    what autograd finds for x, without the gradient of the table, which autograd would compute along with it: a table's
    worth of scattered additions that nobody asked for. Differentiable once with respect to x, table and d_out.
    """
    _check(x, table, grid)
    if tuple(d_out.shape) != (x.shape[0], grid.width):
        raise ValueError(f"d_out: expected shape {(x.shape[0], grid.width)}, got {tuple(d_out.shape)}")
    inside = (x >= 0.0) & (x <= 1.0)
    x = x.clamp(0.0, 1.0)
    way = route("hash_encode", x, table, d_out)
    if way == "reference":
        return hash_gradient_reference(x, table, d_out, grid) * inside
    return _PositionGradient.apply(x.contiguous(), table, d_out.contiguous(), grid, way) * inside


def _check(x: Tensor, table: Tensor, grid: HashGrid) -> None:
    if x.ndim != 2 or x.shape[1] != 3:
        raise ValueError(f"x: expected shape [N, 3], got {tuple(x.shape)}")
    if tuple(table.shape) != (grid.rows, grid.features):
        raise ValueError(f"table: expected shape {(grid.rows, grid.features)}, got {tuple(table.shape)}")


class _HashEncode(torch.autograd.Function):
    """x [N, 3], table -> features [N, L F]. `way` is what `route` said: the passes back take the same."""

    @staticmethod
    def forward(ctx, x: Tensor, table: Tensor, grid: HashGrid, way: str) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.grid, ctx.way = grid, way
        return _encode(x, table, grid, way)

    @staticmethod
    def backward(ctx, d_out: Tensor):
        x, table = ctx.saved_tensors
        d_out = d_out.contiguous()
        d_x = _PositionGradient.apply(x, table, d_out, ctx.grid, ctx.way) if ctx.needs_input_grad[0] else None
        d_table = _TableGradient.apply(x, d_out, ctx.grid, ctx.way) if ctx.needs_input_grad[1] else None
        return d_x, d_table, None, None


class _PositionGradient(torch.autograd.Function):
    """x, table, d_out [N, L F] -> the gradient by x of sum(d_out * features), [N, 3]. Linear in table and d_out."""

    @staticmethod
    def forward(ctx, x: Tensor, table: Tensor, d_out: Tensor, grid: HashGrid, way: str) -> Tensor:
        ctx.save_for_backward(x, table, d_out)
        ctx.grid, ctx.way = grid, way
        d_x = empty((x.shape[0], 3), x)
        _backward(x, table, d_out, grid, way, None, d_x)
        return d_x

    @staticmethod
    def backward(ctx, v: Tensor):
        _refuse_third_order()
        x, table, d_out = ctx.saved_tensors
        v = v.contiguous()
        wanted = ctx.needs_input_grad
        d_x = empty((x.shape[0], 3), x) if wanted[0] else None
        d_table = torch.zeros_like(table) if wanted[1] else None
        d_d_out = empty(tuple(d_out.shape), x) if wanted[2] else None
        if ctx.way == "triton":
            gpu("hash_encode", x, table, d_out, v).second(x, table, d_out, v, ctx.grid, d_x, d_table, d_d_out)
        else:
            inputs = [table.data_ptr(), x.data_ptr(), x.shape[0], d_out.data_ptr(), v.data_ptr()]
            outputs = [0 if t is None else t.data_ptr() for t in (d_d_out, d_table, d_x)]
            kernel("hash_encode_second", x, table, d_out, v)(ctx.grid.native, *inputs, *outputs)
        return d_x, d_table, d_d_out, None, None


class _TableGradient(torch.autograd.Function):
    """x, d_out [N, L F] -> the gradient by the table of sum(d_out * features). Linear in d_out."""

    @staticmethod
    def forward(ctx, x: Tensor, d_out: Tensor, grid: HashGrid, way: str) -> Tensor:
        ctx.save_for_backward(x, d_out)
        ctx.grid, ctx.way = grid, way
        d_table = torch.zeros(grid.rows, grid.features, dtype=x.dtype, device=x.device)
        _backward(x, d_table, d_out, grid, way, d_table, None)
        return d_table

    @staticmethod
    def backward(ctx, u: Tensor):
        _refuse_third_order()
        x, d_out = ctx.saved_tensors
        u = u.contiguous()
        d_x = empty((x.shape[0], 3), x) if ctx.needs_input_grad[0] else None
        if d_x is not None:
            _backward(x, u, d_out, ctx.grid, ctx.way, None, d_x)
        return d_x, _encode(x, u, ctx.grid, ctx.way) if ctx.needs_input_grad[1] else None, None, None


def _encode(x: Tensor, table: Tensor, grid: HashGrid, way: str) -> Tensor:
    out = empty((x.shape[0], grid.width), x)
    if way == "triton":
        half = half_type(x)
        gpu("hash_encode", x, table).encode(x, table if half is None else table.to(half), grid, out)
    else:
        kernel("hash_encode", x, table)(grid.native, table.data_ptr(), x.data_ptr(), x.shape[0], out.data_ptr())
    return out


def _backward(
    x: Tensor, table: Tensor, d_out: Tensor, grid: HashGrid, way: str, d_table: Tensor | None, d_x: Tensor | None
) -> None:
    """Adds to d_table and fills d_x, whichever are given; the table's values matter to d_x alone."""
    if way == "triton":
        kernels = gpu("hash_encode", x, table, d_out)
        if d_table is not None:
            kernels.scatter(x, d_out, grid, d_table)
        if d_x is not None:
            kernels.slope(x, table, d_out, grid, d_x)
        return
    inputs = [table.data_ptr(), x.data_ptr(), x.shape[0], d_out.data_ptr()]
    outputs = [0 if t is None else t.data_ptr() for t in (d_table, d_x)]
    kernel("hash_encode_backward", x, table, d_out)(grid.native, *inputs, *outputs)


def _refuse_third_order() -> None:
    """The second derivatives are constants to autograd; counting their own as zero would train a wrong model."""
    if torch.is_grad_enabled():
        raise RuntimeError("hash_encode: third derivatives are not available here; use `ops.use('reference')`")


def corner_rows(cell: Tensor, level: int, grid: HashGrid) -> Tensor:
    """Table rows of the eight corners of cells: cell [N, 3] int64 -> [N, 8], corner k at offset (k&1, k>>1&1, k>>2)."""
    rows = []
    for k in range(8):
        dx, dy, dz = k & 1, k >> 1 & 1, k >> 2
        x, y, z = cell[:, 0], cell[:, 1] + dy, cell[:, 2] + dz
        if grid.layout == "line":
            if grid.dense[level]:
                side = grid.resolution[level] + 1
                row = x + side * (y + side * z) + dx
            else:
                # Unsigned 32-bit arithmetic, as in the kernel; the neighbour along x follows without wrapping.
                mixed = (x + y * PRIMES[1] + z * PRIMES[2]) & 0xFFFFFFFF
                row = mixed % grid.modulus[level] + dx
        elif grid.dense[level]:
            side = grid.resolution[level]
            row = (x + dx + side * (y + side * z)) % grid.modulus[level]
        else:
            row = hash_index(torch.stack([x + dx, y, z], dim=-1)) % grid.modulus[level]
        rows.append(row + grid.first_row[level])
    return torch.stack(rows, dim=1)


def hash_index(vertex: Tensor) -> Tensor:
    """instant-ngp's spatial hash before the modulus: vertex [..., 3] int64 -> uint32 values in int64 (equation 4)."""
    x, y, z = vertex.unbind(-1)
    return (x ^ (y * PRIMES[1] & 0xFFFFFFFF) ^ (z * PRIMES[2] & 0xFFFFFFFF)) & 0xFFFFFFFF


def hash_encode_reference(x: Tensor, table: Tensor, grid: HashGrid) -> Tensor:
    """`hash_encode` in plain PyTorch."""
    features = []
    for level in range(grid.levels):
        position = x * grid.scale[level] + 0.5
        cell = position.detach().floor()
        f = position - cell
        corners = table[corner_rows(cell.long(), level, grid)]  # [N, 8, F]
        weight = torch.stack(
            [
                (f[:, 0] if k & 1 else 1 - f[:, 0])
                * (f[:, 1] if k >> 1 & 1 else 1 - f[:, 1])
                * (f[:, 2] if k >> 2 else 1 - f[:, 2])
                for k in range(8)
            ],
            dim=1,
        )
        features.append((weight[..., None] * corners).sum(dim=1))
    return torch.cat(features, dim=1)


def hash_gradient_reference(x: Tensor, table: Tensor, d_out: Tensor, grid: HashGrid) -> Tensor:
    """`hash_gradient` in plain PyTorch: what autograd makes of `hash_encode_reference`."""
    with torch.enable_grad():
        if not x.requires_grad:
            x = x.detach().requires_grad_()
        product = (hash_encode_reference(x, table, grid) * d_out).sum()
        return torch.autograd.grad(product, x, create_graph=True)[0]
