"""Sampling by proposal: a cheap field says where a ray meets something, a costly one looks only there.

mip-NeRF 360 (Barron et al. 2022, section 3) and its descendants cut each ray into intervals, ask a small network how
much of the ray's light stops in each, and cut the ray anew where the answer was large. The small network is trained by
`losses.interlevel` to bound the weights of the large one. This file holds the three parts that all of them share: how a
ray is measured (`Spacing`), how densities become weights, and how weights become new intervals (`resample`).

s in [0, 1]  position on a ray, whatever its length: 0 is its near end, 1 its far end
t            distance along the ray, in scene units
R rays, m intervals before, n intervals after
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from .devices import sent
from .rays import inverse_cdf

ENDLESS = 1e10
"""Length that stands for an infinite interval, in scene units: endless for all matter, and zero density is still
nothing."""


class Spacing(Enum):
    """What an even step in s is: s = (g(t) - g(near)) / (g(far) - g(near)), with a curve g for each (equation 11)."""

    LINEAR = "linear"
    """g(t) = t: even steps in distance, for bounded scenes. far must be finite."""
    RECIPROCAL = "reciprocal"
    """g(t) = 1 / t: even steps in disparity, as pixels resolve depth. near must be positive; far may be infinite."""
    PIECEWISE = "piecewise"
    """g(t) = t / 2 for t < 1, else 1 - 1 / (2 t): half of the steps even in distance up to 1, where the content is, the
    rest even in disparity. near may be 0 and far infinite. (nerfacto, in Nerfstudio: Tancik et al. 2023)"""
    POWER = "power"
    """g(t) = P(2 t, -3/2) (see `power`): a smooth way from even steps in distance, next to the camera, to even steps in
    t^(-3/2), far off. near may be 0 and far infinite. (Zip-NeRF: Barron et al. 2023)"""

    def t_from_s(self, s: Tensor, near: Tensor, far: Tensor) -> Tensor:
        """Distances [R, n] from s [R, n] and the ends near <= far [R] of the rays; s = 0 and 1 give the ends."""
        self._check(near, far)
        near, far = near[:, None], far[:, None]
        # Far away a curve is flat, and rounding could carry its inverse past the end of the ray.
        return self._inverse(torch.lerp(self._curve(near), self._curve(far), s)).clamp(near, far)

    def s_from_t(self, t: Tensor, near: Tensor, far: Tensor) -> Tensor:
        """The inverse of `t_from_s`. All of a ray with near = far is at s = 0."""
        self._check(near, far)
        first, last = self._curve(near)[:, None], self._curve(far)[:, None]
        span = last - first
        return torch.where(span == 0, 0.0, (self._curve(t) - first) / torch.where(span == 0, 1.0, span))

    def _curve(self, t: Tensor) -> Tensor:
        if self is Spacing.LINEAR:
            return t
        if self is Spacing.RECIPROCAL:
            return 1.0 / t
        if self is Spacing.POWER:
            return power(2.0 * t, -1.5)
        return torch.where(t < 1.0, 0.5 * t, 1.0 - 0.5 / t.clamp(min=1.0))

    def _inverse(self, g: Tensor) -> Tensor:
        if self is Spacing.LINEAR:
            return g
        if self is Spacing.RECIPROCAL:
            return 1.0 / g
        if self is Spacing.POWER:
            return 0.5 * inverse_power(g, -1.5)
        return torch.where(g < 0.5, 2.0 * g, 0.5 / (1.0 - g.clamp(min=0.5)))

    def _check(self, near: Tensor, far: Tensor) -> None:
        """Raises ValueError for ends that the curve does not take. Not on a device, for whose answer the host would
        have to wait: those are the rays of a method, which bounds them to what its curve takes (see `spaces`)."""
        if near.device.type != "cpu":
            return
        if self is Spacing.LINEAR and bool(far.isinf().any()):
            raise ValueError("far: expected finite distances for even steps in distance, got infinity")
        if self is Spacing.RECIPROCAL and bool((near <= 0).any()):
            raise ValueError(f"near: expected positive distances for even steps in 1/t, got {float(near.min()):g}")


def power(x: Tensor, exponent: float) -> Tensor:
    """P(x, lambda) = |lambda - 1| / lambda ((x / |lambda - 1| + 1)^lambda - 1), for x >= 0 (Zip-NeRF, its supplement).

    P(0) = 0 and P'(0) = 1 for every lambda; from there it bends down to the power lambda < 1. A negative lambda maps
    all of [0, infinity] below |lambda - 1| / |lambda|. The exponent may be neither 0 nor 1, where P has other forms.
    """
    scale = abs(_bent(exponent) - 1.0)
    return scale / exponent * ((x / scale + 1.0) ** exponent - 1.0)


def inverse_power(y: Tensor, exponent: float) -> Tensor:
    """The inverse of `power`. Where y is at or above all of its values, infinity."""
    scale = abs(_bent(exponent) - 1.0)
    return scale * ((y * (exponent / scale) + 1.0).clamp(min=0.0) ** (1.0 / exponent) - 1.0)


def _bent(exponent: float) -> float:
    if exponent in (0.0, 1.0):
        raise ValueError(f"exponent: expected another number than 0 and 1, got {exponent}")
    return exponent


def weights_from_density(density: Tensor, edges_t: Tensor, opaque_last: bool = False) -> Tensor:
    """The share w_i = T_i (1 - exp(-sigma_i delta_i)) of a ray's light that stops in each of its intervals.

    T_i = exp(-sum_{j<i} sigma_j delta_j) is the share that gets that far (NeRF 2020, equation 3).

    Args:
        density: sigma [R, n] >= 0, per unit of `edges_t`.
        edges_t: ends of the intervals [R, n + 1], increasing, in lengths along the ray; the last may be infinite.
        opaque_last: the last interval stops whatever reaches it, so that weights sum to 1. For pictures without a
            background of their own, whose rays all end somewhere.

    Returns:
        weights [R, n], which sum to at most 1. Differentiable.
    """
    if edges_t.shape != (*density.shape[:-1], density.shape[-1] + 1):
        raise ValueError(
            "weights_from_density: expected density [R, n] and edges_t [R, n + 1], "
            f"got {list(density.shape)} and {list(edges_t.shape)}"
        )
    optical = density * edges_t.diff(dim=-1).clamp(max=ENDLESS)
    before = torch.nn.functional.pad(optical[..., :-1].cumsum(dim=-1), (1, 0))
    stops = -torch.expm1(-optical)
    if opaque_last:
        stops = torch.cat([stops[..., :-1], torch.ones_like(stops[..., -1:])], dim=-1)
    return torch.exp(-before) * stops


def above(weights: Tensor, least: float, fixed: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """The K of R n samples whose weight [R, n] is more than `least`: weights [K], places among the R n, and rays.

    What becomes of the others cannot be seen, so costly networks are asked about these alone.

    fixed: all samples instead, K = R n, the others with a weight of 0, so that the host need not wait for a device to
        learn how many there are.
    """
    flat = weights.reshape(-1)
    counts = flat.detach() > least
    place = torch.arange(len(flat), device=flat.device) if fixed else torch.nonzero(counts)[:, 0]
    chosen = torch.where(counts, flat, 0.0) if fixed else flat.index_select(0, place)
    return chosen, place, torch.div(place, weights.shape[1], rounding_mode="floor")


@torch.no_grad()
def median_distance(edges_s: Tensor, weights: Tensor, near: Tensor, far: Tensor, spacing: Spacing) -> Tensor:
    """Distances [R] before which half of what rays see lies, from edges [R, n + 1] in s and weights [R, n].

    Weight is taken as evenly spread over an interval in s: in t, half of the last one may be hundreds of units long.
    For a ray without weight, the distance is that of its middle in s.
    """
    half = weights.new_full((len(weights), 1), 0.5)
    return spacing.t_from_s(inverse_cdf(edges_s, weights, half), near, far)[:, 0]


def annealing(fraction: float, slope: float = 10.0) -> float:
    """Exponent on a proposal's weights when a fraction of the training is done (mip-NeRF 360, equation 18): 0 at the
    start, where rays are cut evenly, whatever a network says that has learned nothing; then soon 1."""
    return slope * fraction / ((slope - 1.0) * fraction + 1.0)


@torch.no_grad()
def resample(
    edges_s: Tensor,
    weights: Tensor,
    n: int,
    rng: torch.Generator | None,
    dilation: float = 0.0,
    anneal: float | Tensor = 1.0,
) -> Tensor:
    """Cuts rays anew, with short intervals where `weights` are large (mip-NeRF 360, appendix, and its authors' code).

    The weights' histogram is dilated and annealed, n centres are drawn from it, and the new edges lie midway between
    neighbouring centres. The two outer edges mirror the ones next to them at the outer centres, within [0, 1].

    No gradient passes: where to look next is not what the loss should teach the weights.

    Args:
        edges_s: ends of the intervals [R, m + 1] in [0, 1], increasing. To begin, [[0, 1]] with weight 1.
        weights: [R, m], not negative; need not sum to one. A ray without weight is cut evenly between its edges.
        n: number of new intervals, at least 2.
        rng: shifts all centres of a ray by one random number, which keeps them evenly spread in probability. None: no
            shift (evaluation must repeat).
        dilation: see `dilate`; 0 leaves the histogram as it is.
        anneal: exponent on the weights in [0, 1], a number or a tensor of one. Less than 1 flattens them early in
            training, when they are little more than guesses.

    Returns:
        edges [R, n + 1] in [0, 1], increasing.
    """
    if edges_s.ndim != 2 or weights.shape != (edges_s.shape[0], edges_s.shape[1] - 1):
        raise ValueError(
            "resample: expected edges_s [R, m + 1] and weights [R, m], "
            f"got {list(edges_s.shape)} and {list(weights.shape)}"
        )
    if n < 2:
        raise ValueError(f"n: expected at least 2 intervals, for one has no neighbour to end at, got {n}")
    empty = weights.sum(dim=-1, keepdim=True) <= 0
    weights = torch.where(empty, edges_s.diff(dim=-1), weights)
    if dilation > 0:
        edges_s, weights = dilate(edges_s, weights, dilation)
    if isinstance(anneal, Tensor) or anneal != 1:
        # To the power of 0, even nothing is 1; but an interval without length has no place for a centre.
        weights = torch.where(edges_s.diff(dim=-1) > 0, weights**anneal, 0.0)
    centre = inverse_cdf(edges_s, weights, _one_jitter(edges_s, n, rng))
    middle = 0.5 * (centre[:, 1:] + centre[:, :-1])
    first = (2.0 * centre[:, :1] - middle[:, :1]).clamp(min=0.0)
    last = (2.0 * centre[:, -1:] - middle[:, -1:]).clamp(max=1.0)
    return torch.cat([first, middle, last], dim=-1)


def dilate(edges_s: Tensor, weights: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """The histogram whose height everywhere is the greatest one within `width`, to either side (max pooling).

    A proposal learned its bounds from intervals that ended elsewhere than this ray's: what it puts into one of them may
    belong just beside it. Without dilation, thin structures alias.

    Args:
        edges_s: [R, m + 1] in [0, 1], increasing.
        weights: mass [R, m] of the intervals.
        width: in s, positive. The authors' is 0.0025 + 0.5 / (product of the sample counts of the levels before).

    Returns:
        edges [R, 3 m - 1] and weights [R, 3 m - 2] that sum to 1. The outermost bin at either end is left out, as in
        the authors' code.
    """
    m = weights.shape[-1]
    starts, ends = (edges_s[:, :-1] - width).contiguous(), (edges_s[:, 1:] + width).contiguous()
    edges = torch.cat([edges_s, starts, ends], dim=-1).sort(dim=-1).values
    # The histogram is constant between the edges. The old intervals that, grown, hold the start of a new one are
    # neighbours: `low` up to `high`. Their greatest height is that of two ranges of a power of two in length.
    probe = edges[:, :-1].contiguous()
    low = torch.searchsorted(ends, probe, right=True).clamp_(max=m - 1)
    high = (torch.searchsorted(starts, probe, right=True) - 1).clamp_(min=0)
    tiny = torch.finfo(weights.dtype).eps ** 2
    greatest = [weights / edges_s.diff(dim=-1).clamp(min=tiny)]  # over 1, 2, 4, ... intervals from each one on
    while 2 ** len(greatest) <= m:
        half = 2 ** (len(greatest) - 1)
        wide = torch.maximum(greatest[-1][:, :-half], greatest[-1][:, half:])
        greatest.append(torch.nn.functional.pad(wide, (0, half)))
    level = torch.frexp((high - low + 1).to(weights.dtype)).exponent.long() - 1  # floor(log2), without rounding
    pool = torch.stack(greatest, dim=1).flatten(1)
    height = torch.maximum(pool.gather(1, level * m + low), pool.gather(1, level * m + high - 2**level + 1))
    edges = edges.clamp(0.0, 1.0)
    mass = height * edges.diff(dim=-1)
    mass = mass / mass.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)
    return edges[:, 1:-1], mass[:, 1:-1]


def _one_jitter(like: Tensor, n: int, rng: torch.Generator | None) -> Tensor:
    """[R, n] shares u_i = (i + jitter) / n, with one jitter of [0, 1) per ray, or 1/2 without a generator."""
    rows = like.shape[0]
    place = torch.arange(n, dtype=like.dtype, device=like.device)
    if rng is None:
        return ((place + 0.5) / n).expand(rows, n)
    jitter = sent(torch.rand(rows, 1, generator=rng, dtype=like.dtype, device=rng.device), like.device)
    # The sum may round up to n; the half-open interval must stay half-open.
    return ((place + jitter) / n).clamp(max=1.0 - torch.finfo(like.dtype).eps)
