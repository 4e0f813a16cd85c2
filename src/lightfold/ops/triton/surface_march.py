"""Which steps along rays a signed distance field makes opaque, on a GPU: the walk of `csrc/surface_march.h`.

`march` finds each ray's steps. Then a program takes `RAYS` rays and `STEPS` steps of each at a time, which is a tile of
points for the field, as in `surface`. A ray ends where no more than `keep` of the light is left, so what lies behind a
surface is not evaluated. To pack all steps and evaluate them would fill every tile, but a ray through an object has
several times as many steps as it has before its first surface. Within a program f goes through memory, where
neighbouring steps find it; the last step of a tile is settled with the next tile, when it is known what follows.

The host waits once, to know how much is kept; then a last kernel puts it in one row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import empty
from . import blocks, halves
from .hash_encode import corner_share, level_numbers
from .march import Walk, march
from .surface import PIECE, at_corner, constants, in_cells, in_columns, load_point, softplus, to_hidden
from .surface import fits as field_fits

if TYPE_CHECKING:
    from ..hash_encode import HashGrid

RAYS = 8
STEPS = 8
"""Their product is the points of a tile. With more steps, more are evaluated in vain; with more rays, more wait for the
longest of them."""
COLLECT_RAYS = 4
CHUNK = 32


def fits(first: Tensor, last: Tensor) -> bool:
    """Whether a field with these layers is small enough for its kernels; of the last, one row counts."""
    return field_fits(first, last[:1])


def sample(
    rays: tuple[Tensor, Tensor, Tensor, Tensor], bits: Tensor, size: int, table: Tensor, first: Tensor, last: Tensor,
    grid: HashGrid, levels: int, beta: float, inv_s: float, step: float, keep: float, most: int, seed: int,
) -> tuple[Tensor, Tensor, Tensor, int]:  # fmt: skip
    """ray [S] int64, start [S] and offset [R + 1] int64 of the steps that are kept, and how many were evaluated."""
    origin, direction, *_ = rays
    count = origin.shape[0]
    device = origin.device
    offset = torch.zeros(count + 1, dtype=torch.int64, device=device)
    if count == 0:
        return offset[:0], empty((0,), origin), offset, 0
    t0, dt, f, start = (empty((count, most), origin) for _ in range(4))
    found, kept, evaluated = torch.zeros((3, count), dtype=torch.int32, device=device)
    march(rays, Walk(bits, 1, size, step, 0.0, most, seed), t0, dt, found)
    network = constants(first, last[:1], PIECE)
    del network["OUTPUTS"], network["OUT"]
    _sample_kernel[(blocks(count, RAYS),)](
        origin, direction, t0, found, table, first, last, f, start, kept, evaluated,
        *level_numbers(grid, device, origin.dtype), count, most, levels,
        *halves(beta), *halves(inv_s), *halves(step), *halves(keep),
        F=grid.features, LINE=grid.layout == "line", **network, RAYS=RAYS, STEPS=STEPS, num_warps=4, num_stages=1,
    )  # fmt: skip
    torch.cumsum(kept, 0, out=offset[1:])
    total, seen = torch.stack([offset[-1], evaluated.sum()]).tolist()
    ray, chosen = torch.empty(total, dtype=torch.int64, device=device), empty((total,), origin)
    _collect_kernel[(blocks(count, COLLECT_RAYS),)](
        start, offset, ray, chosen, count, most, RAYS=COLLECT_RAYS, CHUNK=CHUNK, num_warps=4
    )
    return ray, chosen, offset, seen


@triton.jit
def _value(
    x, y, z, live, table, first, last, scales, numbers, levels, beta, F: tl.constexpr, HIDDEN: tl.constexpr,
    LINE: tl.constexpr, COLUMNS: tl.constexpr, UNITS: tl.constexpr, PIECE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """f at points [BLOCK, 1] -> [BLOCK]."""
    cell, place, _scale, shape, known = in_cells(x, y, z, scales, numbers, levels, COLUMNS // F)
    fx, fy, fz = place
    u = tl.zeros([BLOCK, COLUMNS // F, F], x.dtype)
    for k in tl.static_range(8):
        corner = tl.load(table + at_corner(cell, shape, k, LINE, F), mask=live[:, :, None] & known, other=0.0)
        u += corner_share(fx, k & 1) * corner_share(fy, (k >> 1) & 1) * corner_share(fz, k >> 2) * corner
    u, at = tl.reshape(u, [BLOCK, COLUMNS]), in_columns(x, y, z, 1.0)
    f = tl.zeros([BLOCK], x.dtype) + tl.load(last + HIDDEN)
    for begin in range(0, UNITS, PIECE):
        unit = begin + tl.arange(0, PIECE)
        value, _, _ = softplus(to_hidden(u, at, first, levels, unit, HIDDEN, F, COLUMNS, PRECISION), beta)
        f += tl.sum(value * tl.load(last + unit, mask=unit < HIDDEN, other=0.0)[None, :], axis=1)
    return f


@triton.jit
def _opacity(tau):
    """1 - exp(-tau), also where tau is too small for the difference."""
    limit = 1e-4 if tau.dtype == tl.float64 else 1e-2
    series = tau * (1.0 - tau * (0.5 - tau * (1.0 / 6.0)))
    return tl.where(tau < limit, series, 1.0 - tl.exp(-tau))


@triton.jit(do_not_specialize=["most", "levels"])
def _sample_kernel(
    origin, direction, t0, counts, table, first, last, f, start, kept_counts, evaluated, scales, numbers,
    rays, most, levels, beta_high, beta_low, inv_s_high, inv_s_low, step_high, step_low, keep_high, keep_low,
    F: tl.constexpr, LINE: tl.constexpr, HIDDEN: tl.constexpr, COLUMNS: tl.constexpr, UNITS: tl.constexpr,
    PIECE: tl.constexpr, PRECISION: tl.constexpr, RAYS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    ray = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)[:, None]
    there = ray < rays
    ox, oy, oz = load_point(origin, ray, there)
    dx, dy, dz = load_point(direction, ray, there)
    dtype: tl.constexpr = ox.dtype
    beta, inv_s = tl.cast(beta_high, dtype) + beta_low, tl.cast(inv_s_high, dtype) + inv_s_low
    step, keep = tl.cast(step_high, dtype) + step_low, tl.cast(keep_high, dtype) + keep_low
    count = tl.load(counts + ray, mask=there, other=0)
    lane = tl.arange(0, STEPS)[None, :]
    depth = tl.zeros([RAYS, 1], dtype)  # optical depth of the steps that are settled
    kept, seen = tl.zeros([RAYS, 1], tl.int32), tl.zeros([RAYS, 1], tl.int32)
    active, begin = count > 0, 0
    while tl.max(active.to(tl.int32)) > 0:
        i = begin + lane
        fresh = active & (i < count)
        if tl.max(fresh.to(tl.int32)) > 0:
            middle = tl.load(t0 + ray * most + i, mask=fresh, other=0.0) + 0.5 * step
            # A ray that has ended stays at the origin, whatever it was.
            x = tl.reshape(tl.where(fresh, ox + middle * dx, 0.0), [RAYS * STEPS, 1])
            y = tl.reshape(tl.where(fresh, oy + middle * dy, 0.0), [RAYS * STEPS, 1])
            z = tl.reshape(tl.where(fresh, oz + middle * dz, 0.0), [RAYS * STEPS, 1])
            new = _value(
                x, y, z, tl.reshape(fresh, [RAYS * STEPS, 1]), table, first, last, scales, numbers, levels, beta,
                F, HIDDEN, LINE, COLUMNS, UNITS, PIECE, PRECISION, RAYS * STEPS,
            )  # fmt: skip
            tl.store(f + ray * most + i, tl.reshape(new, [RAYS, STEPS]), mask=fresh)
            seen += tl.sum(fresh.to(tl.int32), axis=1, keep_dims=True)
        tl.debug_barrier()  # Other threads of the program read what has been written.
        i -= 1  # These know what follows them now.
        settled = active & (i >= 0) & (i < count)
        has_before, has_after = settled & (i > 0), settled & (i + 1 < count)
        at = ray * most + i
        t, value = tl.load(t0 + at, mask=settled, other=0.0), tl.load(f + at, mask=settled, other=0.0)
        # Steps that follow one another share an end, halfway between their middles; at the ends of a run f goes on as
        # it came, and in a run of one it falls as steeply as a distance can.
        has_before &= t - tl.load(t0 + at - 1, mask=has_before, other=0.0) < 1.5 * step
        has_after &= tl.load(t0 + at + 1, mask=has_after, other=0.0) - t < 1.5 * step
        before = value - tl.load(f + at - 1, mask=has_before, other=0.0)
        after = tl.load(f + at + 1, mask=has_after, other=0.0) - value
        first_rise = tl.where(has_before, before, tl.where(has_after, after, -step))
        last_rise = tl.where(has_after, after, tl.where(has_before, before, -step))
        one = tl.zeros([RAYS, 1], dtype) + 1.0
        high, _, _ = softplus(-inv_s * (value + 0.5 * last_rise), one)
        low, _, _ = softplus(-inv_s * (value - 0.5 * first_rise), one)
        tau = tl.where(settled, tl.maximum(high - low, 0.0), 0.0)
        weight = tl.exp(-(depth + tl.cumsum(tau, axis=1) - tau)) * _opacity(tau)
        chosen = (settled & (weight > keep)).to(tl.int32)
        tl.store(start + ray * most + kept + tl.cumsum(chosen, axis=1) - 1, t, mask=chosen > 0)
        kept += tl.sum(chosen, axis=1, keep_dims=True)
        depth += tl.sum(tau, axis=1, keep_dims=True)
        # No step behind here can weigh more than the light that gets here.
        active = active & (tl.exp(-depth) > keep) & (begin + STEPS - 1 < count)
        begin += STEPS
    tl.store(kept_counts + ray, kept, mask=there)
    tl.store(evaluated + ray, seen, mask=there)


@triton.jit
def _collect_kernel(start, offset, ray_out, start_out, rays, most, RAYS: tl.constexpr, CHUNK: tl.constexpr):
    ray = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)[:, None]
    there = ray < rays
    begin = tl.load(offset + ray, mask=there, other=0)
    count = tl.load(offset + ray + 1, mask=there, other=0) - begin
    for first in range(0, tl.max(count), CHUNK):
        i = first + tl.arange(0, CHUNK)[None, :]
        live = i < count
        tl.store(start_out + begin + i, tl.load(start + ray * most + i, mask=live, other=0.0), mask=live)
        tl.store(ray_out + begin + i, tl.broadcast_to(ray, [RAYS, CHUNK]), mask=live)
