"""Which steps along rays a signed distance field makes opaque: where `neus` samples.

Letters: R rays, S steps that are kept. f is the field, s the steepness of the logistic function that turns it into
opacity (NeuS, Wang et al. 2021, equation 13): a step whose ends have f_0 and f_1 lets through exp(-tau) of the light,

    tau = max(softplus(-s f_1) - softplus(-s f_0), 0),     weight = (light that gets there) (1 - exp(-tau))

f is evaluated in the middle of each step through cells whose bit is set, and is linear between neighbouring middles.
Most steps have no weight, and those behind a surface cannot have any: the kernels take steps a few at a time, and do
not evaluate f where no more than `keep` of the light arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import empty, gpu, kernel, route
from .hash_encode import HashGrid
from .march import check_bits, check_rays, check_steps, march
from .surface import check_field, surface


class Steps(NamedTuple):
    """The S steps of R rays that are kept, ray after ray, front to back."""

    ray: Tensor
    """[S] int64"""
    start: Tensor
    """[S] distance along the ray at which the step begins; all are equally long."""
    offset: Tensor
    """[R + 1] int64: those of ray r are offset[r] to offset[r + 1]."""
    evaluated: int
    """Points at which f was computed."""


@torch.no_grad()
def surface_march(
    rays: tuple[Tensor, Tensor, Tensor, Tensor],
    bits: Tensor,
    size: int,
    table: Tensor,
    first: Tensor,
    last: Tensor,
    grid: HashGrid,
    *,
    levels: int,
    beta: float,
    inv_s: float,
    step: float,
    keep: float,
    most: int,
    seed: int = 0,
) -> Steps:
    """The steps of rays whose weight is above `keep`, in the field of `ops.surface`.

    rays: origin, direction (unit) [R, 3], near, far [R]; bits int64 [size^3 / 64] of cells of the cube [-1, 1]^3 (see
    `ops.march`); table, first, last, grid, levels and beta as in `ops.surface`, of whose outputs the first is f. A ray
    has at most `most` steps of length `step` in cells whose bit is set; `seed` shifts each ray's first at random, 0
    shifts all by half a step. Not differentiable. On a GPU the host waits once, to know how many steps are kept.
    """
    origin, direction, near, far = rays
    _check(rays, bits, size, inv_s, step, keep, most)
    check_field(table, first, last, grid, levels)
    first, last = first.contiguous(), last.contiguous()
    way = route("surface_march", origin, direction, near, far, bits, table, first, last)
    if way == "triton":
        kernels = gpu("surface_march", origin, direction, near, far, table, first, last)
        if kernels.fits(first, last):
            field = (table, first, last, grid, levels, beta)
            return Steps(*kernels.sample(rays, bits, size, *field, inv_s, step, keep, most, seed))
    if way != "native":
        # Plain PyTorch, or a network that is too large for the kernels: marching and the field go their own ways.
        def value(points: Tensor) -> Tensor:
            return surface(points, table, first, last, grid, levels=levels, beta=beta, slope=False)[0][:, 0]

        return march_field(value, rays, bits, size, inv_s=inv_s, step=step, keep=keep, most=most, seed=seed)
    last = last[:1]
    run = kernel("surface_march", origin, direction, near, far, table, first, last)
    start = empty((len(origin), most), origin)
    kept, evaluated = torch.zeros((2, len(origin)), dtype=torch.int32)
    run(
        grid.native, levels, table.data_ptr(), first.data_ptr(), last.data_ptr(), first.shape[0], 1, beta,
        size, bits.data_ptr(), len(origin), origin.data_ptr(), direction.data_ptr(), near.data_ptr(), far.data_ptr(),
        seed, step, most, inv_s, keep, start.data_ptr(), kept.data_ptr(), evaluated.data_ptr(),
    )  # fmt: skip
    widest = int(kept.max()) if len(kept) else 0
    ray, place = (torch.arange(widest) < kept[:, None]).nonzero(as_tuple=True)
    return Steps(ray, start[ray, place], F.pad(kept.long().cumsum(0), (1, 0)), int(evaluated.sum()))


@torch.no_grad()
def march_field(
    value: Callable[[Tensor], Tensor],
    rays: tuple[Tensor, Tensor, Tensor, Tensor],
    bits: Tensor,
    size: int,
    *,
    inv_s: float,
    step: float,
    keep: float,
    most: int,
    seed: int = 0,
) -> Steps:
    """`surface_march` for any f, points [N, 3] -> [N], in plain PyTorch: every step of a ray is evaluated."""
    origin, direction, near, far = rays
    _check(rays, bits, size, inv_s, step, keep, most)
    t0, _, count = march(origin, direction, near, far, bits, 1, size, step=step, cone=0.0, most=most, seed=seed)
    widest = int(count.max()) if len(count) else 0
    there = torch.arange(widest, device=count.device) < count[:, None]
    ray, place = there.nonzero(as_tuple=True)
    t0 = torch.where(there, t0[:, :widest], 0.0)
    f = torch.zeros_like(t0)
    f[ray, place] = value(origin[ray] + (t0[ray, place] + 0.5 * step)[:, None] * direction[ray])
    # Steps that follow one another share an end, halfway between their middles; at the ends of a run f goes on as it
    # came, and in a run of one it falls as steeply as a distance can.
    joined = there[:, 1:] & (t0.diff(dim=1) < 1.5 * step)
    rise = torch.where(joined, f.diff(dim=1), 0.0)
    after, before = F.pad(rise, (0, 1)), F.pad(rise, (1, 0))
    has_after, has_before = F.pad(joined, (0, 1)), F.pad(joined, (1, 0))
    alone = ~has_after & ~has_before
    after = torch.where(has_after, after, torch.where(alone, -step, before))
    before = torch.where(has_before, before, torch.where(alone, -step, after))
    tau = F.softplus(-inv_s * (f + 0.5 * after)) - F.softplus(-inv_s * (f - 0.5 * before))
    tau = torch.where(there, tau.clamp(min=0.0), 0.0)
    kept = torch.exp(tau - tau.cumsum(dim=1)) * -torch.expm1(-tau) > keep
    chosen, place = kept.nonzero(as_tuple=True)
    return Steps(chosen, t0[chosen, place], F.pad(kept.sum(dim=1).cumsum(0), (1, 0)), len(ray))


def _check(
    rays: tuple[Tensor, Tensor, Tensor, Tensor],
    bits: Tensor,
    size: int,
    inv_s: float,
    step: float,
    keep: float,
    most: int,
) -> None:
    check_rays(*rays)
    check_bits(bits, 1, size)
    check_steps(step, 0.0, most)
    if not (inv_s > 0 and keep >= 0):
        raise ValueError(f"inv_s, keep: expected inv_s > 0 and keep >= 0, got {inv_s}, {keep}")
