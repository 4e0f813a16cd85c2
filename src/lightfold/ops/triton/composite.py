"""Compositing on a GPU: a program per few rays, a warp's lanes along each ray, a scan for what lies before a sample.

A ray has some tens of samples. One thread per ray would read memory in strides and wait for the longest ray of its
warp; here neighbouring lanes read neighbouring samples, `CHUNK` at a time.

Optical depth is summed, not transmittance multiplied, because a sum can be scanned: T_i = exp(-sum_{j<i} tau_j). The
sum before sample i is that over samples shifted by one, read again; the sum up to i less tau_i would lose all before an
opaque sample to rounding.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import blocks

RAYS = 4
CHUNK = 32


def composite(
    sigma: Tensor, rgb: Tensor, t0: Tensor, t1: Tensor, offset: Tensor,
    weight: Tensor, colour: Tensor, opacity: Tensor, depth: Tensor,
) -> None:  # fmt: skip
    """Fills weight [S], colour [R, 3], opacity [R] and depth [R]."""
    rays = offset.shape[0] - 1
    if rays:
        _composite_kernel[(blocks(rays, RAYS),)](
            sigma, rgb, t0, t1, offset, weight, colour, opacity, depth, rays, sigma.shape[0],
            RAYS=RAYS, CHUNK=CHUNK, num_warps=4,
        )  # fmt: skip


def backward(
    sigma: Tensor, rgb: Tensor, t0: Tensor, t1: Tensor, offset: Tensor, weight: Tensor, opacity: Tensor,
    d_weight: Tensor, d_colour: Tensor, d_opacity: Tensor, d_depth: Tensor, d_sigma: Tensor, d_rgb: Tensor,
) -> None:  # fmt: skip
    """Fills d_sigma [S] and d_rgb [S, 3]."""
    rays = offset.shape[0] - 1
    if rays:
        _backward_kernel[(blocks(rays, RAYS),)](
            sigma, rgb, t0, t1, offset, weight, opacity, d_weight, d_colour, d_opacity, d_depth, d_sigma, d_rgb,
            rays, sigma.shape[0], RAYS=RAYS, CHUNK=CHUNK, num_warps=4,
        )  # fmt: skip


@triton.jit
def ray_range(offset, rays, samples, RAYS: tl.constexpr):
    """This program's rays [RAYS, 1], which of them there are, and where their samples begin and end.

    Ranges are kept inside the samples: on a GPU nobody has looked at the offsets, and what they say must not lead
    beyond the memory.
    """
    ray = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)[:, None]
    there = ray < rays
    begin = tl.maximum(tl.load(offset + ray, mask=there, other=0), 0)
    end = tl.minimum(tl.load(offset + ray + 1, mask=there, other=0), samples)
    return ray, there, begin, end


@triton.jit
def optical_depth(sigma, t0, t1, i, live):
    """sigma_i (t1_i - t0_i), zero where there is no sample."""
    length = tl.load(t1 + i, mask=live, other=0.0) - tl.load(t0 + i, mask=live, other=0.0)
    return tl.load(sigma + i, mask=live, other=0.0) * length


@triton.jit
def _composite_kernel(
    sigma, rgb, t0, t1, offset, weight, colour, opacity, depth, rays, samples,
    RAYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    ray, there, begin, end = ray_range(offset, rays, samples, RAYS)
    lane = tl.arange(0, CHUNK)[None, :]
    before = tl.zeros([RAYS, 1], sigma.dtype.element_ty)
    total, far = tl.zeros_like(before), tl.zeros_like(before)
    red, green, blue = tl.zeros_like(before), tl.zeros_like(before), tl.zeros_like(before)
    for start in range(0, tl.max(end - begin), CHUNK):
        i = begin + start + lane
        live = i < end
        tau = optical_depth(sigma, t0, t1, i, live)
        shifted = optical_depth(sigma, t0, t1, i - 1, live & (i > begin))
        w = tl.exp(-(before + tl.cumsum(shifted, axis=1))) * (1.0 - tl.exp(-tau))
        w = tl.where(live, w, 0.0)
        before += tl.sum(shifted, axis=1, keep_dims=True)
        total += tl.sum(tau, axis=1, keep_dims=True)
        tl.store(weight + i, w, mask=live)
        red += tl.sum(w * tl.load(rgb + 3 * i, mask=live, other=0.0), axis=1, keep_dims=True)
        green += tl.sum(w * tl.load(rgb + 3 * i + 1, mask=live, other=0.0), axis=1, keep_dims=True)
        blue += tl.sum(w * tl.load(rgb + 3 * i + 2, mask=live, other=0.0), axis=1, keep_dims=True)
        middle = 0.5 * (tl.load(t0 + i, mask=live, other=0.0) + tl.load(t1 + i, mask=live, other=0.0))
        far += tl.sum(w * middle, axis=1, keep_dims=True)
    tl.store(colour + 3 * ray, red, mask=there)
    tl.store(colour + 3 * ray + 1, green, mask=there)
    tl.store(colour + 3 * ray + 2, blue, mask=there)
    tl.store(opacity + ray, 1.0 - tl.exp(-total), mask=there)
    tl.store(depth + ray, far, mask=there)


@triton.jit
def _backward_kernel(
    sigma, rgb, t0, t1, offset, weight, opacity, d_weight, d_colour, d_opacity, d_depth, d_sigma, d_rgb, rays, samples,
    RAYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    # With G_i = dL/dw_i collected from colour, depth and weight, and opacity = 1 - T_end:
    #   dL/dsigma_i = dt_i ( T_{i+1} G_i - sum_{j>i} w_j G_j + T_end dL/dopacity ),  T_{i+1} = T_end + sum_{j>i} w_j.
    # Chunks are taken from the back, so that both sums are of what has been seen, not differences of large ones.
    ray, there, begin, end = ray_range(offset, rays, samples, RAYS)
    lane = tl.arange(0, CHUNK)[None, :]
    after = 1.0 - tl.load(opacity + ray, mask=there, other=0.0)
    suffix = -after * tl.load(d_opacity + ray, mask=there, other=0.0)
    d_red = tl.load(d_colour + 3 * ray, mask=there, other=0.0)
    d_green = tl.load(d_colour + 3 * ray + 1, mask=there, other=0.0)
    d_blue = tl.load(d_colour + 3 * ray + 2, mask=there, other=0.0)
    d_far = tl.load(d_depth + ray, mask=there, other=0.0)
    for start in range(0, tl.max(end - begin), CHUNK):
        i = end - start - CHUNK + lane
        live = i >= begin
        near, far = tl.load(t0 + i, mask=live, other=0.0), tl.load(t1 + i, mask=live, other=0.0)
        w = tl.load(weight + i, mask=live, other=0.0)
        gain = tl.load(d_weight + i, mask=live, other=0.0) + 0.5 * (near + far) * d_far
        gain += tl.load(rgb + 3 * i, mask=live, other=0.0) * d_red
        gain += tl.load(rgb + 3 * i + 1, mask=live, other=0.0) * d_green
        gain += tl.load(rgb + 3 * i + 2, mask=live, other=0.0) * d_blue
        behind_weight = tl.cumsum(w, axis=1, reverse=True) - w
        behind_gain = tl.cumsum(w * gain, axis=1, reverse=True) - w * gain
        change = (far - near) * ((after + behind_weight) * gain - (suffix + behind_gain))
        tl.store(d_sigma + i, change, mask=live)
        tl.store(d_rgb + 3 * i, w * d_red, mask=live)
        tl.store(d_rgb + 3 * i + 1, w * d_green, mask=live)
        tl.store(d_rgb + 3 * i + 2, w * d_blue, mask=live)
        after += tl.sum(w, axis=1, keep_dims=True)
        suffix += tl.sum(w * gain, axis=1, keep_dims=True)
