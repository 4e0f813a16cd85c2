"""Losses that use measured depth: from a LiDAR, a depth camera, or another reconstruction.

Where few photographs see a surface, or it has no texture, colours alone leave its distance open. A measured distance
D along a ray says where the ray's weights w should lie. Both losses here are means over the rays that have a
measurement (D > 0), and 0, still differentiable, where none has. They take weights of any method that samples rays in
intervals: `edges` [R, n + 1] distances in scene units, ascending, and `weights` [R, n].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

KINDS = ("termination", "sight")


def depth_loss(kind: str, weights: Tensor, edges: Tensor, depth: Tensor, spread: float) -> Tensor:
    """One of the losses below, by name."""
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got '{kind}'")
    return (termination if kind == "termination" else line_of_sight)(weights, edges, depth, spread)


def termination(weights: Tensor, edges: Tensor, depth: Tensor, spread: float) -> Tensor:
    """The weights should be the measurement's own distribution (DS-NeRF: Deng et al. 2022, equation 7).

        - sum_k g_k log w_k,    g_k = the mass that a Gaussian about D, of standard deviation spread * D, has in
                                interval k

    The paper takes the Gaussian's height at the middle of an interval times its length; its mass is the same for short
    intervals, and does not vanish where the intervals are longer than the Gaussian is wide.

    Args:
        depth: [R] measured distances along the rays, 0 where unknown.
        spread: standard deviation of the measurement as a share of the distance.
    """
    _check(weights, edges, depth, spread)
    known = depth > 0
    width = (spread * depth).clamp(min=torch.finfo(depth.dtype).tiny)[:, None]
    below = 0.5 * (1.0 + torch.erf((edges - depth[:, None]) / (math.sqrt(2.0) * width)))
    wanted = below.diff(dim=-1)
    # The logarithm of nothing is not finite, and its slope there pulls no harder than that of a weight of 1e-5.
    per_ray = -(wanted * torch.log(weights + 1e-5)).sum(-1)
    return _mean_of(per_ray, known)


def line_of_sight(weights: Tensor, edges: Tensor, depth: Tensor, spread: float) -> Tensor:
    """Nothing before the surface, all of the light at it (URF: Rematas et al. 2022, equations 11 to 14).

        (sum_k w_k t_k - D)^2 / D^2  +  sum of w_k^2 before D - e  +  (1 - sum of w_k within e of D)^2,   e = 3 spread D

    The first term is the expected depth's, relative to the distance; the second empties the line of sight; the third is
    the paper's comparison with a kernel of width e, taken over the kernel as a whole, which intervals of any length can
    satisfy.
    """
    _check(weights, edges, depth, spread)
    known = depth > 0
    measured = depth.clamp(min=torch.finfo(depth.dtype).eps)[:, None]
    middle = 0.5 * (edges[:, 1:] + edges[:, :-1])
    reach = 3.0 * spread * measured
    # An interval that touches the surface's neighbourhood belongs to it.
    empty, beyond = edges[:, 1:] < measured - reach, edges[:, :-1] > measured + reach
    at = (weights * ~(empty | beyond)).sum(-1)
    # Far intervals would count a thousand times; beyond twice the distance it is wrong enough.
    expected = (weights * torch.minimum(middle / measured, torch.full_like(middle, 2.0))).sum(-1)
    per_ray = (expected - 1.0).square() + (weights * empty).square().sum(-1) + (1.0 - at).square()
    return _mean_of(per_ray, known)


def _mean_of(values: Tensor, known: Tensor) -> Tensor:
    return torch.where(known, values, 0.0).sum() / known.sum().clamp(min=1)


def _check(weights: Tensor, edges: Tensor, depth: Tensor, spread: float) -> None:
    rays, n = weights.shape
    if tuple(edges.shape) != (rays, n + 1) or tuple(depth.shape) != (rays,):
        raise ValueError(
            f"edges, depth: expected shapes {(rays, n + 1)} and {(rays,)}, got {tuple(edges.shape)}, "
            f"{tuple(depth.shape)}"
        )
    if not spread > 0:
        raise ValueError(f"spread: expected a positive number, got {spread}")
