"""What training minimises. Every function returns one scalar, a mean, so weights do not depend on the batch size.

Letters: R rays, n fine intervals, m proposal intervals. `edges` are ascending interval ends along a ray, one more than
there are intervals; `weights` >= 0 are the shares w_i = T_i alpha_i of the ray that stop in each interval, sum <= 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import devices


def mse(pred: Tensor, true: Tensor) -> Tensor:
    """Mean squared error over all elements of two tensors of one shape; 0, still differentiable, if there are none."""
    _check_same_shape(pred, true)
    return _mean((pred - true).square())


def huber(pred: Tensor, true: Tensor, delta: float = 0.1) -> Tensor:
    """Mean Huber loss in its "smooth L1" form: d^2 / (2 delta) for |d| < delta, |d| - delta / 2 beyond.

    Unlike the square it does not let a few wrong pixels (a passer-by, a highlight) outvote the rest; near zero it is
    the square, so that sharp detail still converges. `delta` is in the unit of the colours; it must be positive.
    """
    _check_same_shape(pred, true)
    if not delta > 0:
        raise ValueError(f"delta: expected a positive number, got {delta}")
    size = (pred - true).abs()
    inside = size.clamp(max=delta)
    return _mean(inside * (size - 0.5 * inside) / delta)


def charbonnier(pred: Tensor, true: Tensor, padding: float = 1e-3) -> Tensor:
    """Mean of sqrt(d^2 + padding^2) over all elements: the absolute error, with its corner at zero rounded off.

    mip-NeRF 360 prefers it to the square on photographs, for the reason given at `huber`. `padding` is in the unit of
    the colours, and it is what remains of the loss when all is right.
    """
    _check_same_shape(pred, true)
    return _mean(((pred - true).square() + padding**2).sqrt())


def distortion(edges: Tensor, weights: Tensor) -> Tensor:
    """How spread out each ray's weights are: mean over rays of equation 15 of mip-NeRF 360 (Barron et al. 2022).

        sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 (t_{i+1} - t_i),   m_i = (t_i + t_{i+1}) / 2

    Minimal when a ray's weight sits in one thin interval: it removes floaters and semi-transparent fog.
    `edges` [R, n+1] ascending, in a normalised coordinate (s in [0, 1], not metres) so that the far field does not
    dominate; `weights` [R, n]. Differentiable in both. The double sum costs O(n): the intervals are sorted, so the
    pairs (i, j < i) contribute w_i (m_i W_i - M_i), where W_i and M_i are the sums of w_j and of w_j m_j over j < i.
    """
    _check_intervals("edges", edges, "weights", weights)
    middle = 0.5 * (edges[..., 1:] + edges[..., :-1])
    moment = weights * middle
    weight_before = weights.cumsum(-1) - weights
    moment_before = moment.cumsum(-1) - moment
    between = 2.0 * (weights * (middle * weight_before - moment_before)).sum(-1)
    within = (weights.square() * (edges[..., 1:] - edges[..., :-1])).sum(-1) / 3.0
    return _mean(between + within)


def interlevel(edges: Tensor, weights: Tensor, proposal_edges: Tensor, proposal_weights: Tensor) -> Tensor:
    """Pull a proposal up to an envelope of the fine weights (mip-NeRF 360, equation 13); mean over rays and intervals.

        B_i = sum of the proposal weights whose interval overlaps fine interval i
        loss = max(0, w_i - B_i)^2 / w_i

    A proposal that is consistent with the fine weights satisfies w_i <= B_i everywhere, however its intervals are cut;
    only a violation costs anything. The fine weights and all edges are taken as constants, so the proposal learns from
    the field and never the other way round.

    The bound here is strict: a proposal interval that merely touches a fine interval's end does not count. The authors'
    code is looser where a fine end equals a proposal end, and counts the next interval too.

    `edges` [R, n+1], `weights` [R, n], `proposal_edges` [R, m+1], `proposal_weights` [R, m]; edges ascending, both over
    the same span. Differentiable in `proposal_weights` alone.
    """
    _check_intervals("edges", edges, "weights", weights)
    _check_intervals("proposal_edges", proposal_edges, "proposal_weights", proposal_weights)
    weights = weights.detach()
    bound = envelope(edges, proposal_edges, proposal_weights)
    excess = (weights - bound).clamp(min=0.0)
    return _mean(excess.square() / (weights + torch.finfo(weights.dtype).eps))


def spline_interlevel(
    edges: Tensor, weights: Tensor, proposal_edges: Tensor, proposal_weights: Tensor, radius: float
) -> Tensor:
    """`interlevel` without its steps, against z-aliasing (Zip-NeRF, Barron et al. 2023, section 4); mean over all bins.

        w_i  = mass of the fine histogram, blurred by a box of half width `radius`, in proposal interval i
        loss = max(0, w_i - wp_i)^2 / wp_i

    `interlevel` jumps where a fine edge passes a proposal's, so a proposal may be right about one distance and, without
    any gradient that says so, wrong about its neighbours: a surface then appears and disappears as the camera recedes.
    Blurred, the target moves smoothly, and it asks the proposal to be right within `radius` of what this ray saw.

    `edges` [R, n+1], `weights` [R, n], `proposal_edges` [R, m+1], `proposal_weights` [R, m]; edges ascending, both over
    the same span, and `radius` > 0 in their unit. Mass that the blur carries beyond that span is lost. Differentiable
    in `proposal_weights` alone.
    """
    _check_intervals("proposal_edges", proposal_edges, "proposal_weights", proposal_weights)
    target = blurred_mass(edges, weights, proposal_edges, radius)
    excess = (target - proposal_weights).clamp(min=0.0)
    # With less in the denominator, one proposal that sees nothing where the field sees all outweighs the whole batch.
    return _mean(excess.square() / (proposal_weights + 1e-5))


@torch.no_grad()
def blurred_mass(edges: Tensor, weights: Tensor, at: Tensor, radius: float) -> Tensor:
    """Mass [R, m] between neighbouring places `at` [R, m+1] of a histogram, blurred by a box (Zip-NeRF, section 4).

    The histogram has `weights` [R, n] spread evenly between `edges` [R, n+1], ascending. Blurred by a box of half width
    `radius` it is piecewise linear, and its integral, which is what this needs, a piecewise quadratic spline:

        M(x) = (D(x + radius) - D(x - radius)) / (2 radius),   D the integral of the histogram's own integral C

    so that the knots of the blurred histogram are never sorted or made: D is evaluated between the histogram's edges.
    """
    _check_intervals("edges", edges, "weights", weights)
    if not radius > 0:
        raise ValueError(f"radius: expected a positive number, got {radius}")
    # M is a small difference over a small number: single precision would leave 1e-4 of noise in it.
    exact = torch.float64 if devices.exact(edges.device) == edges.device else torch.float32
    knots, mass = edges.to(exact).contiguous(), weights.to(exact)
    length = knots.diff(dim=-1)
    below = torch.nn.functional.pad(mass.cumsum(-1), (1, 0))
    area = torch.nn.functional.pad((length * 0.5 * (below[..., 1:] + below[..., :-1])).cumsum(-1), (1, 0))
    place = at.to(exact)
    place = torch.cat([place - radius, place + radius], dim=-1)
    inside = torch.minimum(torch.maximum(place, knots[..., :1]), knots[..., -1:])
    interval = (torch.searchsorted(knots, inside, right=True) - 1).clamp(0, mass.shape[-1] - 1)
    beyond = inside - knots.gather(-1, interval)
    height = mass.gather(-1, interval) / length.gather(-1, interval).clamp(min=torch.finfo(exact).tiny)
    integral = area.gather(-1, interval) + beyond * (below.gather(-1, interval) + 0.5 * beyond * height)
    # After the last edge C stays what it is there.
    integral = integral + (place - inside).clamp(min=0.0) * below[..., -1:]
    low, high = integral.chunk(2, dim=-1)
    return ((high - low) / (2.0 * radius)).diff(dim=-1).to(weights.dtype)


def envelope(edges: Tensor, proposal_edges: Tensor, proposal_weights: Tensor) -> Tensor:
    """B_i of `interlevel` [R, n]: sum of the proposal weights [R, m] whose interval overlaps [edges_i, edges_{i+1}]."""
    m = proposal_weights.shape[-1]
    ends = proposal_edges.detach().contiguous()
    # The last proposal edge at or before the fine interval's start, and the first one at or after its end.
    first = torch.searchsorted(ends, edges[..., :-1].detach().contiguous(), right=True) - 1
    last = torch.searchsorted(ends, edges[..., 1:].detach().contiguous(), right=False)
    first, last = first.clamp(0, m), last.clamp(0, m)
    total = torch.nn.functional.pad(proposal_weights.cumsum(-1), (1, 0))
    return total.gather(-1, torch.maximum(first, last)) - total.gather(-1, first)


def _mean(values: Tensor) -> Tensor:
    """Mean that is 0, and still has a gradient path, for an empty batch (torch's own is NaN)."""
    return values.sum() / max(values.numel(), 1)


def _check_same_shape(pred: Tensor, true: Tensor) -> None:
    if pred.shape != true.shape:
        raise ValueError(f"true: expected the shape of pred {tuple(pred.shape)}, got {tuple(true.shape)}")


def _check_intervals(edges_name: str, edges: Tensor, weights_name: str, weights: Tensor) -> None:
    expected = (*weights.shape[:-1], weights.shape[-1] + 1)
    if tuple(edges.shape) != expected:
        raise ValueError(
            f"{edges_name}: expected shape {expected}, one end more than {weights_name} has intervals, "
            f"got {tuple(edges.shape)}"
        )
