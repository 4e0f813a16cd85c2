"""Volume rendering of packed samples (Max 1995; NeRF, equation 3).

Letters: S samples, R rays; the samples of ray r are [offset[r], offset[r+1]).
    alpha_i = 1 - exp(-sigma_i (t1_i - t0_i)),  T_i = prod_{j<i} (1 - alpha_j),  w_i = T_i alpha_i
    colour = sum w_i c_i,  opacity = sum w_i,  depth = sum w_i (t0_i + t1_i) / 2
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .backend import empty, exact, gpu, kernel, refuse_second_order, route


class Composite(NamedTuple):
    """weight [S]; colour [R, 3], background not included; opacity [R]; depth [R], not divided by opacity."""

    weight: Tensor
    colour: Tensor
    opacity: Tensor
    depth: Tensor


def composite(sigma: Tensor, rgb: Tensor, t0: Tensor, t1: Tensor, offset: Tensor) -> Composite:
    """sigma [S] per unit length, rgb [S, 3], t0 and t1 [S] distances, offset [R + 1] int64 -> Composite.

    Differentiable once with respect to sigma and rgb. A ray without samples gives zeros. Whether offset rises from 0 to
    S is not checked on a GPU, where looking would mean to wait; ranges beyond the samples are cut off there.
    """
    samples = sigma.shape[0]
    for name, tensor, shape in (("rgb", rgb, (samples, 3)), ("t0", t0, (samples,)), ("t1", t1, (samples,))):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
    if offset.dtype != torch.int64 or offset.ndim != 1 or offset.shape[0] < 1:
        raise ValueError(f"offset: expected int64 [R + 1], got {offset.dtype} {tuple(offset.shape)}")
    if offset.device.type == "cpu" and (
        int(offset[0]) != 0 or int(offset[-1]) != samples or bool((offset[1:] < offset[:-1]).any())
    ):
        raise ValueError(f"offset: expected to rise from 0 to {samples}")
    way = route("composite", sigma, rgb, t0, t1, offset)
    if way == "reference":
        return composite_reference(sigma, rgb, t0, t1, offset)
    tensors = (sigma.contiguous(), rgb.contiguous(), t0.contiguous(), t1.contiguous(), offset.contiguous())
    return Composite(*_Composite.apply(*tensors, way))


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sigma: Tensor, rgb: Tensor, t0: Tensor, t1: Tensor, offset: Tensor, way: str):
        rays = offset.shape[0] - 1
        out = [empty(shape, sigma) for shape in ((sigma.shape[0],), (rays, 3), (rays,), (rays,))]
        if way == "triton":
            gpu("composite", sigma, rgb, t0, t1).composite(sigma, rgb, t0, t1, offset, *out)
        else:
            inputs = [t.data_ptr() for t in (sigma, rgb, t0, t1, offset)]
            kernel("composite", sigma, rgb, t0, t1)(*inputs, rays, *(o.data_ptr() for o in out))
        weight, colour, opacity, depth = out
        ctx.way = way
        ctx.save_for_backward(sigma, rgb, t0, t1, offset, weight, opacity)
        return weight, colour, opacity, depth

    @staticmethod
    def backward(ctx, d_weight: Tensor, d_colour: Tensor, d_opacity: Tensor, d_depth: Tensor):
        refuse_second_order("composite")
        sigma, rgb, t0, t1, offset, weight, opacity = ctx.saved_tensors
        gradients = [d.contiguous() for d in (d_weight, d_colour, d_opacity, d_depth)]
        d_sigma, d_rgb = empty(tuple(sigma.shape), sigma), empty(tuple(rgb.shape), rgb)
        if ctx.way == "triton":
            kernels = gpu("composite", sigma, *gradients)
            kernels.backward(sigma, rgb, t0, t1, offset, weight, opacity, *gradients, d_sigma, d_rgb)
            return d_sigma, d_rgb, None, None, None, None
        inputs = [t.data_ptr() for t in (sigma, rgb, t0, t1, offset)]
        saved = [weight.data_ptr(), opacity.data_ptr(), *(d.data_ptr() for d in gradients)]
        outputs = [d_sigma.data_ptr(), d_rgb.data_ptr()]
        kernel("composite_backward", sigma, *gradients)(*inputs, offset.shape[0] - 1, *saved, *outputs)
        return d_sigma, d_rgb, None, None, None, None


def composite_reference(sigma: Tensor, rgb: Tensor, t0: Tensor, t1: Tensor, offset: Tensor) -> Composite:
    """`composite` in plain PyTorch, a ray at a time."""
    weights, colours, opacities, depths = [], [], [], []
    for begin, end in zip(offset[:-1].tolist(), offset[1:].tolist(), strict=True):
        keep = torch.exp(-sigma[begin:end] * (t1[begin:end] - t0[begin:end]))
        before = torch.cat([torch.ones_like(keep[:1]), torch.cumprod(keep, dim=0)[:-1]]) if end > begin else keep
        weight = before * (1 - keep)
        weights.append(weight)
        colours.append((weight[:, None] * rgb[begin:end]).sum(dim=0))
        opacities.append(weight.sum())
        depths.append((weight * 0.5 * (t0[begin:end] + t1[begin:end])).sum())
    if not colours:
        zero = sigma.new_zeros(0)
        return Composite(sigma * 0, sigma.new_zeros(0, 3), zero, zero)
    return Composite(torch.cat(weights), torch.stack(colours), torch.stack(opacities), torch.stack(depths))


@torch.no_grad()
def distance_at(reached: Tensor, weight: Tensor, t0: Tensor, t1: Tensor, offset: Tensor) -> Tensor:
    """Distances at which the weights of packed samples, summed along each ray, have reached so much.

    Within a sample weight is taken as evenly spread. With half of the sum, it is the median distance: unlike the mean,
    it does not fall between two surfaces where a pixel sees some of both.

    Args:
        reached: [R], at most the sum of the ray's weights.
        weight, t0, t1: [S] weights, not negative, and the ends of the samples' intervals.
        offset: [R + 1] int64; those of ray i are `offset[i]` up to `offset[i + 1]`, near to far.

    Returns:
        [R]; 0 for a ray without weight.
    """
    if len(weight) == 0:
        return torch.zeros_like(reached)
    home = reached.device
    reached, weight, t0, t1, offset = (x.to(exact(home)) for x in (reached, weight, t0, t1, offset))
    # One sum over all rays, which increases, so that one search finds them all.
    passed = torch.nn.functional.pad(weight.double().cumsum(0), (1, 0))
    first, last = passed[offset[:-1]], passed[offset[1:]]
    wanted = torch.minimum(first + reached, last)
    found = torch.searchsorted(passed, wanted) - 1
    found = found.clamp(min=0).maximum(offset[:-1]).minimum(offset[1:] - 1).clamp(min=0)
    share = (wanted - passed[found]) / weight[found].double().clamp(min=torch.finfo(torch.float64).tiny)
    distance = torch.lerp(t0[found], t1[found], share.clamp(0.0, 1.0).to(t0))
    return torch.where(last > first, distance, 0.0).to(home)
