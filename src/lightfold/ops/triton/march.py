"""Ray marching and upkeep of the occupancy pyramid on a GPU: the walk of `csrc/march.h`, a ray per lane.

A program is one warp of `LANES` rays that walk together until the last has ended; each turn of the loop takes a sample
or leaves an empty cell or block, by selection, not by branches. A single warp has no barrier to wait at, and other rays
fill the processor while one program waits for memory. Where steps grow with distance, the walk leaves a cell by
n = ceil(log(leave / t) / log(1 + cone)) steps at once; up to rounding these are the places that step after step
reaches.

`pack` turns [R, M] samples with a count per ray into samples one after the other, on the device: offsets are a running
sum of the counts, and what follows reads the number of samples from their end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import empty
from ..march import Varying, seed_start
from . import blocks, halves

LANES = 32
WORDS = 16
POINTS = 128
PACK_RAYS = 4


class Walk(NamedTuple):
    """How rays walk; `first` is the number of the first ray, for its random shift. `varying` is read on the device
    instead of `step`, `cone` and `seed`, of which it then only counts whether they are zero."""

    bits: Tensor
    cascades: int
    size: int
    step: float
    cone: float
    most: int
    seed: int
    first: int = 0
    varying: Varying | None = None


def march(rays: Sequence[Tensor], walk: Walk, t0: Tensor, dt: Tensor, count: Tensor) -> None:
    """Fills t0 and dt [R, M], each up to count [R]. rays: origin, direction, near, far."""
    _walk(rays, walk, t0, dt, count, None, None)


def march_exactly(rays: Sequence[Tensor], walk: Walk) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Samples of a picture's rays as from `pack`, with room for just these: they are counted in a first walk and
    written in a second, as the most there can be is more than a GPU's memory holds. The host waits in between."""
    origin = rays[0]
    count = torch.empty(len(origin), dtype=torch.int32, device=origin.device)
    _walk(rays, walk, None, None, count, None, None)
    offset = _offsets(count)
    room = int(offset[-1])
    ray = torch.empty(room, dtype=torch.int32, device=origin.device)
    middle, length = empty((room,), origin), empty((room,), origin)
    if room:
        _walk(rays, walk, middle, length, None, offset, ray)
    return offset, ray, middle, length


def _walk(
    rays: Sequence[Tensor], walk: Walk, t: Tensor | None, dt: Tensor | None, count: Tensor | None,
    offset: Tensor | None, ray: Tensor | None,
) -> None:  # fmt: skip
    origin, direction, near, far = rays
    if not len(origin):
        return
    lengths, start = (None, None) if walk.varying is None else walk.varying
    _march_kernel[(blocks(len(origin), LANES),)](
        origin, direction, near, far, walk.bits, t, dt, count, offset, ray, len(origin), walk.most, walk.cascades,
        walk.size, 2.0 ** (walk.cascades - 1), *halves(walk.step), *halves(walk.cone), seed_start(walk.seed),
        walk.first, lengths, start, CONE=walk.cone > 0, JITTER=walk.seed != 0, LANES=LANES, num_warps=1,
    )  # fmt: skip


def pack(t0: Tensor, dt: Tensor, count: Tensor, room: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Samples [R, M] of which each ray has count [R] -> offset [R + 1] int64, and one after the other [room]: ray
    int32, middle, dt. Only the first offset[R] of these are filled; how many that is, the host need not know. Where
    there is not enough room for all rays, the last ones have no samples."""
    rays, most = t0.shape
    offset = _offsets(count)
    if room < rays * most:
        offset.clamp_(max=torch.where(offset <= room, offset, 0).amax())
    ray = torch.empty(room, dtype=torch.int32, device=t0.device)
    middle, length = empty((room,), t0), empty((room,), t0)
    if rays:
        _pack_kernel[(blocks(rays, PACK_RAYS),)](
            t0, dt, offset, ray, middle, length, rays, most, RAYS=PACK_RAYS, CHUNK=32, num_warps=4
        )
    return offset, ray, middle, length


def _offsets(count: Tensor) -> Tensor:
    """Where each ray's samples begin, and where the last one's end: [R + 1] int64."""
    offset = torch.zeros(len(count) + 1, dtype=torch.int64, device=count.device)
    torch.cumsum(count, 0, out=offset[1:])
    return offset


def decay(bits: Tensor, peak: Tensor, cascades: int, size: int, factor: float, threshold: Tensor) -> None:
    """`grid_decay_`: a program takes some words of the pyramid with their 64 cells each."""
    words = bits.shape[0]
    _decay_kernel[(blocks(words, WORDS),)](
        bits, peak, threshold, words, size**3 // 64, factor, WORDS=WORDS, num_warps=4
    )


def raise_(
    bits: Tensor, peak: Tensor, allowed: Tensor, cascades: int, size: int, points: Tensor, density: Tensor,
    threshold: Tensor,
) -> None:  # fmt: skip
    """`grid_raise_`, of all points at once.

    An empty cell's old peak means nothing, so a first pass forgets it where a point falls into the cell; then the
    densest point wins by an atomic maximum, and bits are set by an atomic or. The order of the points does not count.
    """
    n = points.shape[0]
    if n == 0:
        return
    before = bits.clone()
    for forget in (True, False):
        _raise_kernel[(blocks(n, POINTS),)](
            bits, before, peak, allowed, points, density, threshold, n, cascades, size,
            FORGET=forget, POINTS=POINTS, num_warps=4,
        )  # fmt: skip


@triton.jit
def cascade_of(reach, cascades):
    """Smallest k with 2^k >= reach, from the exponent's bits; reach is a float32 that is not negative."""
    k = ((reach.to(tl.int32, bitcast=True) + 0x7FFFFF) >> 23) - 127
    return tl.minimum(tl.maximum(k, 0), cascades - 1)


@triton.jit
def power_of_two(k):
    """2^k as a float32."""
    return ((127 + k) << 23).to(tl.float32, bitcast=True)


@triton.jit
def cell_along(x, cells, size):
    """Cell's coordinate along an axis, kept inside of the pyramid. The product is a number: callers see to it."""
    half = 0.5 * size
    place = tl.minimum(tl.maximum(x * cells + half, 0.0), size - 1.0)
    return place.to(tl.int32)


@triton.jit
def cell_index(k, ix, iy, iz, size):
    """Number of a cell, block-major: word * 64 + bit."""
    side = size // 4
    word = ((k * side + (iz >> 2)) * side + (iy >> 2)) * side + (ix >> 2)
    return word.to(tl.int64) * 64 + ((iz & 3) * 4 + (iy & 3)) * 4 + (ix & 3)


@triton.jit
def cell_at(x, y, z, cascades, size):
    """Cell that holds a point."""
    k = cascade_of(tl.maximum(tl.maximum(tl.abs(x), tl.abs(y)), tl.abs(z)), cascades)
    cells = 0.5 * size * power_of_two(-k)
    return cell_index(k, cell_along(x, cells, size), cell_along(y, cells, size), cell_along(z, cells, size), size)


@triton.jit
def random_unit(start, index):
    """The counter-based random number of `ops.march.random_unit`; `start` holds the seed."""
    x = start.to(tl.uint64) + index.to(tl.uint64) * 0xD1342543DE82EF95
    x = x ^ (x >> 32)
    x = x * 0xD6E8FEB86659FD93
    x = x ^ (x >> 32)
    x = x * 0xD6E8FEB86659FD93
    x = x ^ (x >> 32)
    return (x >> 40).to(tl.float32) * (1.0 / 16777216.0)


@triton.jit
def _inverse(d):
    """1 / d, large where d is zero."""
    return 1.0 / tl.where(tl.abs(d) < 1e-12, tl.where(d < 0, -1e-12, 1e-12).to(d.dtype), d)


@triton.jit
def _box(o, inverse, half, near, far):
    """Cut [near, far] to where a ray is between two planes at -half and half."""
    a, b = (-half - o) * inverse, (half - o) * inverse
    return tl.maximum(near, tl.minimum(a, b)), tl.minimum(far, tl.maximum(a, b))


@triton.jit
def _leave(o, d, inverse, low, span, half, width, leave):
    """Where a ray leaves the cells [low, low + span) along an axis, if sooner than `leave`."""
    edge = (low + tl.where(d > 0, span, 0)).to(o.dtype) - half
    return tl.where(tl.abs(d) < 1e-12, leave, tl.minimum(leave, (edge * width - o) * inverse))


@triton.jit(do_not_specialize=["start", "first", "most"])
def _march_kernel(
    origin, direction, nears, fars, bits, t_out, dt_out, counts, offset, ray_out, rays, most, cascades, size, outer,
    step_high, step_low, cone_high, cone_low, start, first, lengths, chosen,
    CONE: tl.constexpr, JITTER: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    ray = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    there = ray < rays
    ox = tl.load(origin + 3 * ray, mask=there, other=0.0)
    oy = tl.load(origin + 3 * ray + 1, mask=there, other=0.0)
    oz = tl.load(origin + 3 * ray + 2, mask=there, other=0.0)
    dx = tl.load(direction + 3 * ray, mask=there, other=0.0)
    dy = tl.load(direction + 3 * ray + 1, mask=there, other=0.0)
    dz = tl.load(direction + 3 * ray + 2, mask=there, other=0.0)
    near = tl.load(nears + ray, mask=there, other=0.0)
    far = tl.load(fars + ray, mask=there, other=0.0)
    dtype: tl.constexpr = ox.dtype
    if lengths is not None:
        step, cone = tl.load(lengths).to(dtype), tl.load(lengths + 1).to(dtype)
        start = tl.load(chosen)
    else:
        step, cone = tl.cast(step_high, dtype) + step_low, tl.cast(cone_high, dtype) + cone_low

    # A ray that is no line has no samples: pixels beyond the rim of a fisheye's disc, for one. What is not a number
    # differs from itself, and what is infinite differs from itself less itself.
    total = ox + oy + oz + dx + dy + dz
    good = (total - total == 0) & (dx * dx + dy * dy + dz * dz > 0.5) & (near == near) & (far == far) & there
    ux, uy, uz = _inverse(dx), _inverse(dy), _inverse(dz)
    t = tl.maximum(near, 0.0)
    t, far = _box(ox, ux, outer, t, far)
    t, far = _box(oy, uy, outer, t, far)
    t, far = _box(oz, uz, outer, t, far)
    if JITTER:
        jitter = random_unit(start, ray + first).to(dtype)
    else:
        jitter = tl.full([LANES], 0.5, dtype)
    t += jitter * tl.maximum(step, cone * t)

    if ray_out is not None:
        begin = tl.load(offset + ray, mask=there, other=0)
    half = 0.5 * size
    found = tl.zeros([LANES], tl.int32)
    active = good & (t < far) & (found < most)
    while tl.max(active.to(tl.int32)) > 0:
        dt = tl.maximum(step, cone * t)
        middle = t + 0.5 * dt
        # A ray that has ended stays at the origin, so that nothing it computes leads out of the pyramid.
        x = tl.where(active, ox + middle * dx, 0.0).to(tl.float32)
        y = tl.where(active, oy + middle * dy, 0.0).to(tl.float32)
        z = tl.where(active, oz + middle * dz, 0.0).to(tl.float32)
        k = cascade_of(tl.maximum(tl.maximum(tl.abs(x), tl.abs(y)), tl.abs(z)), cascades)
        cells = half * power_of_two(-k)
        ix, iy, iz = cell_along(x, cells, size), cell_along(y, cells, size), cell_along(z, cells, size)
        cell = cell_index(k, ix, iy, iz, size)
        word = tl.load(bits + (cell >> 6), mask=active, other=0)
        taken = active & (((word >> (cell & 63)) & 1) != 0)
        if ray_out is not None:
            tl.store(t_out + begin + found, middle, mask=taken)
            tl.store(dt_out + begin + found, dt, mask=taken)
            tl.store(ray_out + begin + found, ray.to(tl.int32), mask=taken)
        elif t_out is not None:
            tl.store(t_out + ray * most + found, t, mask=taken)
            tl.store(dt_out + ray * most + found, dt, mask=taken)
        found += taken.to(tl.int32)

        # Leave the empty cell, or its whole block where that is empty, by whole steps.
        span = tl.where(word == 0, 4, 1)
        width = power_of_two(k).to(dtype) / half
        leave = _leave(ox, dx, ux, ix & -span, span, half, width, far)
        leave = _leave(oy, dy, uy, iy & -span, span, half, width, leave)
        leave = _leave(oz, dz, uz, iz & -span, span, half, width, leave)
        steps = tl.ceil((leave - t) / step - 0.5)
        if CONE:  # Equal steps, as far as they are equal; then growing ones.
            steps = tl.minimum(steps, tl.ceil((step / cone - t) / step))
            skipped = t + tl.maximum(steps, 1.0) * step
            growth = tl.log2(1.0 + cone)
            # A little less than is needed: one turn more costs less than a sample missed to rounding.
            ratio = tl.maximum(leave / (t * (1.0 + 0.5 * cone)), 1.0)
            steps = tl.maximum(tl.ceil(tl.log2(ratio) / growth - 1e-3), 1.0)
            skipped = tl.where(cone * t < step, skipped, t * tl.exp2(steps * growth))
        else:
            skipped = t + tl.maximum(steps, 1.0) * step
        after = tl.where(taken, t + dt, skipped)
        # So far away that a step is lost to rounding, the walk ends.
        active = active & (after > t) & (after < far) & (found < most)
        t = after
    if counts is not None:
        tl.store(counts + ray, found, mask=there)


@triton.jit
def _pack_kernel(t0, dt, offset, ray_out, middle, length, rays, most, RAYS: tl.constexpr, CHUNK: tl.constexpr):
    ray = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)[:, None]
    there = ray < rays
    begin = tl.load(offset + ray, mask=there, other=0)
    samples = tl.load(offset + ray + 1, mask=there, other=0) - begin
    for start in range(0, tl.max(samples), CHUNK):
        i = start + tl.arange(0, CHUNK)[None, :]
        live = i < samples
        dt_i = tl.load(dt + ray * most + i, mask=live, other=0.0)
        tl.store(middle + begin + i, tl.load(t0 + ray * most + i, mask=live, other=0.0) + 0.5 * dt_i, mask=live)
        tl.store(length + begin + i, dt_i, mask=live)
        tl.store(ray_out + begin + i, tl.broadcast_to(ray.to(tl.int32), [RAYS, CHUNK]), mask=live)


@triton.jit
def _decay_kernel(bits, peak, threshold, words, per_cascade, factor, WORDS: tl.constexpr):
    word = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
    there = word < words
    bit = tl.arange(0, 64)[None, :]
    old = tl.load(bits + word, mask=there, other=0)
    limit = tl.load(threshold + word // per_cascade, mask=there, other=0.0)
    # Empty cells' values mean nothing until a point raises them, so they are neither read nor written.
    occupied = there[:, None] & (((old[:, None] >> bit) & 1) != 0)
    cell = word.to(tl.int64)[:, None] * 64 + bit
    value = tl.load(peak + cell, mask=occupied, other=0.0) * factor
    tl.store(peak + cell, value, mask=occupied)
    stays = occupied & (value >= limit[:, None])
    tl.store(bits + word, tl.sum(stays.to(tl.int64) << bit, axis=1), mask=there)


@triton.jit
def _raise_kernel(
    bits, before, peak, allowed, points, densities, threshold, n, cascades, size,
    FORGET: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    there = i < n
    x = tl.load(points + 3 * i, mask=there, other=0.0)
    y = tl.load(points + 3 * i + 1, mask=there, other=0.0)
    z = tl.load(points + 3 * i + 2, mask=there, other=0.0)
    there = there & (x == x) & (y == y) & (z == z)
    # Not beyond what has a whole number: the cell is that at the edge anyway.
    x, y, z = _held(x, there), _held(y, there), _held(z, there)
    cell = cell_at(x, y, z, cascades, size)
    word, bit = cell >> 6, cell & 63
    there = there & (((tl.load(allowed + word, mask=there, other=0) >> bit) & 1) != 0)
    if FORGET:
        empty = there & (((tl.load(before + word, mask=there, other=0) >> bit) & 1) == 0)
        tl.store(peak + cell, tl.zeros([POINTS], tl.float32), mask=empty)
    else:
        density = tl.load(densities + i, mask=there, other=0.0)
        tl.atomic_max(peak + cell, density, mask=there & (density == density), sem="relaxed")
        limit = tl.load(threshold + cell // (size * size * size), mask=there, other=0.0)
        one = tl.full([POINTS], 1, tl.int64)
        tl.atomic_or(bits + word, one << bit, mask=there & (density >= limit), sem="relaxed")


@triton.jit
def _held(x, there):
    return tl.where(there, tl.minimum(tl.maximum(x, -1e9), 1e9), 0.0)
