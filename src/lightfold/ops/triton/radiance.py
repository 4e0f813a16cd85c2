"""A radiance field along rays on a GPU, put together from the kernels beside this file, and its gradient by hand.

    march -> pack -> place -> encode -> density network -> weigh -> gather what is kept -> colour network -> shade
    and back:  shade -> colour network -> density network -> (in `backward()`) scatter into the table

`train` waits for nothing: how many samples there are, and how many of them are kept, are numbers on the device, and
buffers have room for the most there may be (`Tracing.room`, about one kilobyte each). What is not used is neither
written nor read, but costs programs that find nothing to do. `render` waits once for each `RAYS_AT_ONCE` rays, to make
buffers of the right size: a picture's rays may have a thousand samples, and have a few dozen.

The fused single pass of the CPU exists to keep activations in cache. A GPU has other means: instant-ngp's authors found
separate kernels faster for training, fusion faster for pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import empty
from . import blocks
from .composite import ray_range
from .hash_encode import encode, scatter
from .march import Walk, cell_at, march, march_exactly, pack
from .mlp import WIDEST, backward, fits, forward
from .spherical_harmonics import spherical_harmonics

if TYPE_CHECKING:
    from ..march import Varying
    from ..radiance import Radiance, Tracing

RAYS_AT_ONCE = 1 << 18
"""Rays of a picture whose samples are in memory at once: some gigabytes where they are many."""
RAYS = 4
CHUNK = 32
SAMPLES = 64


class Kept(NamedTuple):
    """Samples whose weight counts, ray after ray, the first `total` of the room: inputs of the colour network, and per
    sample weight, distance, length; for the way back, None in a picture, unit positions, features, density, and
    transmittance behind."""

    offset: Tensor
    total: Tensor
    colour_in: Tensor
    weight: Tensor
    middle: Tensor
    length: Tensor
    unit: Tensor | None
    features: Tensor | None
    sigma: Tensor | None
    after: Tensor | None


class Seen(NamedTuple):
    """What a batch of rays has met: kept samples, transmittance at the end [R], samples whose density was evaluated."""

    kept: Kept
    left: Tensor
    evaluated: Tensor


class Trained(NamedTuple):
    """rgb, opacity, depth [R], per-ray sums of loss, squared error and distortion [R, 3]; the networks' gradients, and
    what `scatter_gradient` wants."""

    rgb: Tensor
    opacity: Tensor
    depth: Tensor
    sums: Tensor
    evaluated: Tensor
    kept: Kept
    d_density: list[Tensor]
    d_colour: list[Tensor]
    d_features: Tensor


def check(field: Radiance) -> None:
    """Raise where a network is larger than its kernel takes."""
    for name, widths in (("density", field.density_widths()), ("colour", field.colour_widths())):
        if not fits(widths):
            raise ValueError(f"{name}: expected layers of at most {WIDEST} on a GPU, and few of them, got {widths}")


def density(field: Radiance, unit: Tensor, half: torch.dtype | None, out: Tensor) -> None:
    """Fills out [N] with the density at positions in the unit cube [N, 3]."""
    features = empty((unit.shape[0], field.grid.width), unit)
    encode(unit, _read(field.table, half), field.grid, features)
    geometry = empty((unit.shape[0], field.density[-1].shape[0]), unit)
    forward(features, field.density, geometry, half)
    torch.exp(geometry[:, 0] + field.shift, out=out)


def render(
    field: Radiance, tracing: Tracing, rays: tuple[Tensor, ...], seed: int, half: torch.dtype | None,
    rgb: Tensor, opacity: Tensor, depth: Tensor, median: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Fills rgb [R, 3], opacity, depth and median [R]; samples evaluated and kept."""
    count = rays[0].shape[0]
    counts = torch.zeros(2, dtype=torch.int64, device=rgb.device)
    for begin in range(0, count, RAYS_AT_ONCE):
        part = slice(begin, begin + RAYS_AT_ONCE)
        *lines, background = (t[part] for t in rays)
        seen = _see(field, tracing, lines, seed, begin, half, room=None)
        colour = empty((seen.kept.weight.shape[0], 3), rgb)
        forward(seen.kept.colour_in, field.colour, colour, half, seen.kept.total)
        _shade(seen, colour, background, rgb[part], opacity[part], depth[part], median[part], None)
        counts += torch.cat([seen.evaluated, seen.kept.total])
    return counts[0], counts[1]


def train(
    field: Radiance, tracing: Tracing, rays: tuple[Tensor, ...], target: Tensor, seed: int, huber: float,
    distortion: float, half: torch.dtype | None, varying: Varying | None,
) -> Trained:  # fmt: skip
    """A batch's picture, loss and gradients, which are those of 3 R times the loss: half precision, in which networks
    multiply them, has no numbers as small as those of a mean over many rays."""
    *lines, background = rays
    count = lines[0].shape[0]
    room = count * tracing.most if tracing.room is None else min(tracing.room, count * tracing.most)
    seen = _see(field, tracing, lines, seed, 0, half, room, varying)
    kept = seen.kept
    geometry = field.density[-1].shape[0]
    colour = empty((room, 3), target)
    forward(kept.colour_in, field.colour, colour, half, kept.total)
    rgb, opacity, depth = empty((count, 3), target), empty((count,), target), empty((count,), target)
    sums, d_colour, d_raw = empty((count, 3), target), empty((room, 3), target), empty((room,), target)
    _shade(seen, colour, background, rgb, opacity, depth, None, (target, huber, distortion, sums, d_colour, d_raw))
    d_inputs = empty(tuple(kept.colour_in.shape), target)
    d_colour_weights = backward(kept.colour_in, field.colour, d_colour, d_inputs, half, kept.total)
    d_geometry = empty((room, geometry), target)
    if room:
        _merge_kernel[(blocks(room, SAMPLES),)](
            d_inputs, d_raw, d_geometry, kept.total, WIDTH=geometry, PAD=triton.next_power_of_2(geometry),
            INPUTS=geometry + 16, SAMPLES=SAMPLES, num_warps=4,
        )  # fmt: skip
    assert kept.features is not None
    d_features = empty(tuple(kept.features.shape), target)
    d_density_weights = backward(kept.features, field.density, d_geometry, d_features, half, kept.total)
    return Trained(rgb, opacity, depth, sums, seen.evaluated, kept, d_density_weights, d_colour_weights, d_features)


def scatter_gradient(field: Radiance, trained: Trained, factor: Tensor, d_table: Tensor) -> None:
    """Adds `factor` times the gradient of the table to d_table."""
    assert trained.kept.unit is not None
    scatter(trained.kept.unit, trained.d_features, field.grid, d_table, trained.kept.total, factor)


def _see(
    field: Radiance, tracing: Tracing, lines: list[Tensor], seed: int, first: int, half: torch.dtype | None,
    room: int | None, varying: Varying | None = None,
) -> Seen:  # fmt: skip
    """Everything up to the colour network. `first` and `varying` as in `Walk`; `room` as in `pack` in training; None in
    a picture, which has room for just what is needed, and for which the host waits to know how much that is."""
    trains = room is not None
    origin, direction, *_ = lines
    rays, most = origin.shape[0], tracing.most
    walk = Walk(
        tracing.bits, tracing.cascades, tracing.size, tracing.step, tracing.cone, most, seed, first, varying
    )  # fmt: skip
    if room is None:
        offset, ray, middle, length = march_exactly(lines, walk)
    else:
        t0, dt = empty((rays, most), origin), empty((rays, most), origin)
        counts = torch.empty(rays, dtype=torch.int32, device=origin.device)
        march(lines, walk, t0, dt, counts)
        offset, ray, middle, length = pack(t0, dt, counts, room)
    total, room = offset[-1:], ray.shape[0]
    unit = empty((room, 3), origin)
    if room:
        _place_kernel[(blocks(room, 256),)](
            origin, direction, ray, middle, unit, total, UNBOUNDED=field.unbounded, BLOCK=256, num_warps=4
        )
    features = empty((room, field.grid.width), origin)
    encode(unit, _read(field.table, half), field.grid, features, total)
    width = field.density[-1].shape[0]
    geometry = empty((room, width), origin)
    forward(features, field.density, geometry, half, total)

    sigma, weight, after = empty((room,), origin), empty((room,), origin), empty((room,), origin)
    rank = torch.empty(room, dtype=torch.int32, device=origin.device)
    left, kept_counts = empty((rays,), origin), torch.empty(rays, dtype=torch.int32, device=origin.device)
    if rays:
        _weigh_kernel[(blocks(rays, RAYS),)](
            geometry, middle, length, offset, origin, direction, tracing.peak, sigma, weight, after, rank, left,
            kept_counts, rays, room, field.shift, tracing.stop, tracing.keep, tracing.cascades, tracing.size,
            WIDTH=width, RAYS=RAYS, CHUNK=CHUNK, num_warps=4,
        )  # fmt: skip
    kept_offset = torch.zeros(rays + 1, dtype=torch.int64, device=origin.device)
    torch.cumsum(kept_counts, 0, out=kept_offset[1:])
    harmonics = empty((rays, 16), origin)
    spherical_harmonics(direction, harmonics)
    widths = (width + 16, None, None, None, *((3, field.grid.width, None, None) if trains else ()))
    made = [empty((room,) if w is None else (room, w), origin) for w in widths]
    kept = Kept(kept_offset, kept_offset[-1:], *made[:4], *(made[4:] or (None,) * 4))
    if room:
        _gather_kernel[(blocks(room, SAMPLES),)](
            ray, rank, kept_offset, total, geometry, harmonics, weight, middle, length, unit, features, sigma, after,
            *kept[2:], FEATURES=field.grid.width, FEATURES_PAD=triton.next_power_of_2(field.grid.width),
            WIDTH=width, PAD=triton.next_power_of_2(width), SAMPLES=SAMPLES, num_warps=4,
        )  # fmt: skip
    return Seen(kept, left, total)


def _shade(
    seen: Seen, colour: Tensor, background: Tensor, rgb: Tensor, opacity: Tensor, depth: Tensor, median: Tensor | None,
    train: tuple | None,
) -> None:  # fmt: skip
    rays = rgb.shape[0]
    target, huber, distortion, sums, d_colour, d_raw = train or (None, 0.0, 0.0, None, None, None)
    kept = seen.kept
    if rays:
        _shade_kernel[(blocks(rays, RAYS),)](
            colour, kept.weight, kept.sigma, kept.after, kept.middle, kept.length, kept.offset, seen.left, background,
            target, rgb, opacity, depth, median, sums, d_colour, d_raw, rays, colour.shape[0], huber, 3.0 * distortion,
            1.0, HUBER=huber > 0, DISTORTION=distortion > 0, RAYS=RAYS, CHUNK=CHUNK, num_warps=4,
        )  # fmt: skip


def _read(table: Tensor, half: torch.dtype | None) -> Tensor:
    return table.detach() if half is None else table.detach().to(half)


@triton.jit
def _place_kernel(
    origin, direction, rays, middle, unit, total, UNBOUNDED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    # Samples' places in [0, 1]^3, contracted where the scene has no bounds (`ops.radiance.to_unit`).
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = i < tl.load(total)
    ray = tl.load(rays + i, mask=live, other=0).to(tl.int64)
    t = tl.load(middle + i, mask=live, other=0.0)
    x = tl.load(origin + 3 * ray, mask=live, other=0.0) + t * tl.load(direction + 3 * ray, mask=live, other=0.0)
    y = tl.load(origin + 3 * ray + 1, mask=live, other=0.0) + t * tl.load(direction + 3 * ray + 1, mask=live, other=0.0)
    z = tl.load(origin + 3 * ray + 2, mask=live, other=0.0) + t * tl.load(direction + 3 * ray + 2, mask=live, other=0.0)
    factor = tl.zeros_like(t) + 0.5
    if UNBOUNDED:
        inverse = 1.0 / tl.maximum(tl.maximum(tl.abs(x), tl.abs(y)), tl.maximum(tl.abs(z), 1.0))
        factor = 0.25 * (2.0 - inverse) * inverse
    tl.store(unit + 3 * i, tl.minimum(tl.maximum(x * factor + 0.5, 0.0), 1.0), mask=live)
    tl.store(unit + 3 * i + 1, tl.minimum(tl.maximum(y * factor + 0.5, 0.0), 1.0), mask=live)
    tl.store(unit + 3 * i + 2, tl.minimum(tl.maximum(z * factor + 0.5, 0.0), 1.0), mask=live)


@triton.jit
def _density(geometry, i, live, shift, WIDTH: tl.constexpr):
    return tl.exp(tl.load(geometry + i * WIDTH, mask=live, other=0.0) + shift)


@triton.jit
def _weigh_kernel(
    geometry, middle, length, offset, origin, direction, peak, sigma, weight, after, rank, left, kept_counts,
    rays, samples, shift, stop, keep, cascades, size, WIDTH: tl.constexpr, RAYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    # A ray ends behind the sample after which less than `stop` of the light is left; samples of a weight above `keep`
    # are kept, and get their rank among the ray's kept ones, others -1. Scans as in `triton.composite`.
    ray, there, begin, end = ray_range(offset, rays, samples, RAYS)
    lane = tl.arange(0, CHUNK)[None, :]
    before = tl.zeros([RAYS, 1], length.dtype.element_ty)
    last = before + 1.0
    kept = tl.zeros([RAYS, 1], tl.int32)
    for start in range(0, tl.max(end - begin), CHUNK):
        i = begin + start + lane
        live = i < end
        behind_first = live & (i > begin)
        s = _density(geometry, i, live, shift, WIDTH)
        tau = s * tl.load(length + i, mask=live, other=0.0)
        shifted = _density(geometry, i - 1, behind_first, shift, WIDTH)
        shifted = tl.where(behind_first, shifted * tl.load(length + i - 1, mask=behind_first, other=0.0), 0.0)
        arrives = tl.exp(-(before + tl.cumsum(shifted, axis=1)))
        through = tl.exp(-tau)
        reached = live & (arrives >= stop)
        w = arrives * (1.0 - through)
        counts = (reached & (w > keep)).to(tl.int32)
        place = kept + tl.cumsum(counts, axis=1) - 1
        tl.store(sigma + i, s, mask=live)
        tl.store(weight + i, w, mask=live)
        tl.store(after + i, arrives * through, mask=live)
        tl.store(rank + i, tl.where(counts > 0, place, -1), mask=live)
        last = tl.minimum(last, tl.min(tl.where(reached, arrives * through, 1.0), axis=1, keep_dims=True))
        before += tl.sum(shifted, axis=1, keep_dims=True)
        kept += tl.sum(counts, axis=1, keep_dims=True)
        if peak is not None:
            t = tl.load(middle + i, mask=live, other=0.0)
            at = 3 * tl.where(there, ray, 0)
            x = (tl.load(origin + at) + t * tl.load(direction + at)).to(tl.float32)
            y = (tl.load(origin + at + 1) + t * tl.load(direction + at + 1)).to(tl.float32)
            z = (tl.load(origin + at + 2) + t * tl.load(direction + at + 2)).to(tl.float32)
            cell = cell_at(tl.where(live, x, 0.0), tl.where(live, y, 0.0), tl.where(live, z, 0.0), cascades, size)
            tl.atomic_max(peak + cell, s.to(tl.float32), mask=live, sem="relaxed")
    tl.store(left + ray, last, mask=there)
    tl.store(kept_counts + ray, kept, mask=there)


@triton.jit
def _copy(source, into, row, to, live, WIDTH: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr):
    """Rows of a matrix to other rows of a matrix that may be wider."""
    column = tl.arange(0, PAD)[None, :]
    mask = live[:, None] & (column < WIDTH)
    value = tl.load(source + row[:, None] * WIDTH + column, mask=mask, other=0.0)
    tl.store(into + to[:, None] * STRIDE + column, value, mask=mask)


@triton.jit
def _move(source, into, i, to, live):
    tl.store(into + to, tl.load(source + i, mask=live, other=0.0), mask=live)


@triton.jit
def _gather_kernel(
    rays, ranks, kept_offset, total, geometry, harmonics, weight, middle, length, unit, features, sigma, after,
    colour_in, weight_out, middle_out, length_out, unit_out, features_out, sigma_out, after_out,
    FEATURES: tl.constexpr, FEATURES_PAD: tl.constexpr, WIDTH: tl.constexpr, PAD: tl.constexpr, SAMPLES: tl.constexpr,
):  # fmt: skip
    begin = tl.program_id(0).to(tl.int64) * SAMPLES
    n = tl.load(total)
    if begin >= n:
        return
    i = begin + tl.arange(0, SAMPLES)
    there = i < n
    rank = tl.load(ranks + i, mask=there, other=-1)
    live = there & (rank >= 0)
    ray = tl.load(rays + i, mask=live, other=0).to(tl.int64)
    to = tl.load(kept_offset + ray, mask=live, other=0) + rank
    _copy(geometry, colour_in, i, to, live, WIDTH, WIDTH + 16, PAD)
    _copy(harmonics, colour_in + WIDTH, ray, to, live, 16, WIDTH + 16, 16)
    _move(weight, weight_out, i, to, live)
    _move(middle, middle_out, i, to, live)
    _move(length, length_out, i, to, live)
    if unit_out is not None:
        _copy(unit, unit_out, i, to, live, 3, 3, 4)
        _copy(features, features_out, i, to, live, FEATURES, FEATURES, FEATURES_PAD)
        _move(sigma, sigma_out, i, to, live)
        _move(after, after_out, i, to, live)


@triton.jit
def _sigmoid(raw, i, live, CHANNEL: tl.constexpr):
    return 1.0 / (1.0 + tl.exp(-tl.load(raw + 3 * i + CHANNEL, mask=live, other=0.0)))


@triton.jit
def _squash(t):
    return t / (1.0 + t)


@triton.jit
def _sum(values):
    return tl.sum(values, axis=1, keep_dims=True)


@triton.jit
def _error(value, target, there, ray, CHANNEL: tl.constexpr, huber, HUBER: tl.constexpr):
    """Loss of a channel, its squared error, and half of its slope."""
    error = value - tl.load(target + 3 * ray + CHANNEL, mask=there, other=0.0)
    square = error * error
    if HUBER:  # Beyond `huber` the parabola goes on with its slope.
        far = tl.abs(error) > huber
        held = tl.minimum(tl.maximum(error, -huber), huber)
        return tl.where(far, 2.0 * huber * tl.abs(error) - huber * huber, square), square, held
    else:
        return square, square, error


@triton.jit
def _shade_kernel(
    colour, weight, sigma, after, middle, length, offset, left, background, target, rgb, opacity, depth, median,
    sums, d_colour, d_raw, rays, room, huber, distortion, share,
    HUBER: tl.constexpr, DISTORTION: tl.constexpr, RAYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    # The picture of each ray; with a target, also its loss, and the gradient by colours and by raw density.
    ray, there, begin, end = ray_range(offset, rays, room, RAYS)
    lane = tl.arange(0, CHUNK)[None, :]
    longest = tl.max(end - begin)
    zero = tl.zeros([RAYS, 1], weight.dtype.element_ty)
    r, g, b, far = zero, zero, zero, zero
    all_weight, all_moment = zero, zero
    for start in range(0, longest, CHUNK):
        i = begin + start + lane
        live = i < end
        w = tl.load(weight + i, mask=live, other=0.0)
        t = tl.load(middle + i, mask=live, other=0.0)
        r += _sum(w * _sigmoid(colour, i, live, 0))
        g += _sum(w * _sigmoid(colour, i, live, 1))
        b += _sum(w * _sigmoid(colour, i, live, 2))
        far += _sum(w * t)
        all_weight += _sum(w)
        if DISTORTION:
            all_moment += _sum(w * _squash(t))
    rest = tl.load(left + ray, mask=there, other=1.0)
    behind_r = tl.load(background + 3 * ray, mask=there, other=0.0)
    behind_g = tl.load(background + 3 * ray + 1, mask=there, other=0.0)
    behind_b = tl.load(background + 3 * ray + 2, mask=there, other=0.0)
    r, g, b = r + rest * behind_r, g + rest * behind_g, b + rest * behind_b
    tl.store(rgb + 3 * ray, r, mask=there)
    tl.store(rgb + 3 * ray + 1, g, mask=there)
    tl.store(rgb + 3 * ray + 2, b, mask=there)
    tl.store(opacity + ray, 1.0 - rest, mask=there)
    tl.store(depth + ray, far, mask=there)
    if median is not None:
        # The samples before the one in which half of the weight is reached, how many and how heavy.
        before, passed, summed = begin, zero, zero
        for start in range(0, longest, CHUNK):
            i = begin + start + lane
            live = i < end
            w = tl.load(weight + i, mask=live, other=0.0)
            early = live & (summed + tl.cumsum(w, axis=1) < 0.5 * all_weight)
            before += tl.sum(early.to(before.dtype), axis=1, keep_dims=True)
            passed += _sum(tl.where(early, w, 0.0))
            summed += _sum(w)
        some = there & (end > begin)
        i = tl.minimum(before, end - 1)
        w = tl.load(weight + i, mask=some, other=1.0)
        part = tl.minimum((0.5 * all_weight - passed) / w, 1.0) - 0.5
        found = tl.load(middle + i, mask=some, other=0.0) + part * tl.load(length + i, mask=some, other=0.0)
        tl.store(median + ray, found, mask=there)
    if target is not None:
        loss_r, square_r, d_r = _error(r, target, there, ray, 0, huber, HUBER)
        loss_g, square_g, d_g = _error(g, target, there, ray, 1, huber, HUBER)
        loss_b, square_b, d_b = _error(b, target, there, ray, 2, huber, HUBER)
        d_r, d_g, d_b = 2.0 * share * d_r, 2.0 * share * d_g, 2.0 * share * d_b
        # From the back: what a ray's end and the samples behind add to the picture, by their part in its gradient.
        suffix = rest * (d_r * behind_r + d_g * behind_g + d_b * behind_b)
        right_weight, right_moment, apart_sum = zero, zero, zero
        for start in range(0, longest, CHUNK):
            i = end - start - CHUNK + lane
            live = i >= begin
            w = tl.load(weight + i, mask=live, other=0.0)
            dt = tl.load(length + i, mask=live, other=0.0)
            c_r, c_g, c_b = _sigmoid(colour, i, live, 0), _sigmoid(colour, i, live, 1), _sigmoid(colour, i, live, 2)
            gain = c_r * d_r + c_g * d_g + c_b * d_b
            tl.store(d_colour + 3 * i, w * d_r * c_r * (1.0 - c_r), mask=live)
            tl.store(d_colour + 3 * i + 1, w * d_g * c_g * (1.0 - c_g), mask=live)
            tl.store(d_colour + 3 * i + 2, w * d_b * c_b * (1.0 - c_b), mask=live)
            if DISTORTION:  # mip-NeRF 360, equation 15, on s = t / (1 + t), and its derivative by each weight
                t = tl.load(middle + i, mask=live, other=0.0)
                m = _squash(t)
                ds = _squash(t + 0.5 * dt) - _squash(t - 0.5 * dt)
                w_behind = right_weight + tl.cumsum(w, axis=1, reverse=True) - w
                m_behind = right_moment + tl.cumsum(w * m, axis=1, reverse=True) - w * m
                apart = m * (all_weight - w_behind - w) - (all_moment - m_behind - w * m) + m_behind - m * w_behind
                gain += distortion * (2.0 * apart + (2.0 / 3.0) * w * ds)
                apart_sum += _sum(w * apart + w * w * ds * (1.0 / 3.0))
                right_weight += _sum(w)
                right_moment += _sum(w * m)
            behind = suffix + tl.cumsum(w * gain, axis=1, reverse=True) - w * gain
            change = dt * (tl.load(after + i, mask=live, other=0.0) * gain - behind)
            # The exponential's own derivative is density; beyond exp(15) it is held there, as trunc_exp does.
            change *= tl.minimum(tl.load(sigma + i, mask=live, other=0.0), 3269017.37)
            tl.store(d_raw + i, change, mask=live)
            suffix += _sum(w * gain)
        tl.store(sums + 3 * ray, loss_r + loss_g + loss_b, mask=there)
        tl.store(sums + 3 * ray + 1, square_r + square_g + square_b, mask=there)
        tl.store(sums + 3 * ray + 2, apart_sum, mask=there)


@triton.jit
def _merge_kernel(
    d_inputs, d_raw, d_geometry, count, WIDTH: tl.constexpr, PAD: tl.constexpr, INPUTS: tl.constexpr,
    SAMPLES: tl.constexpr,
):  # fmt: skip
    # The density network's outputs are inputs of the colour network, and the first of them is raw density too.
    i = tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)[:, None]
    live = i < tl.load(count)
    column = tl.arange(0, PAD)[None, :]
    mask = live & (column < WIDTH)
    value = tl.load(d_inputs + i * INPUTS + column, mask=mask, other=0.0)
    value += tl.where(column == 0, tl.load(d_raw + i, mask=live, other=0.0), 0.0)
    tl.store(d_geometry + i * WIDTH + column, value, mask=mask)
