"""losses.py: check vectors, properties the papers claim, gradients, hostile input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightfold.losses import (
    blurred_mass,
    charbonnier,
    distortion,
    envelope,
    huber,
    interlevel,
    mse,
    spline_interlevel,
)

DOUBLE = torch.float64


def random_histogram(rays: int, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ascending edges over [0, 1] and weights that sum to less than 1 per ray, in double precision."""
    inner = torch.rand(rays, n - 1, generator=rng, dtype=DOUBLE).sort(-1).values
    edges = torch.cat([torch.zeros(rays, 1, dtype=DOUBLE), inner, torch.ones(rays, 1, dtype=DOUBLE)], -1)
    weights = torch.rand(rays, n, generator=rng, dtype=DOUBLE)
    return edges, 0.9 * weights / weights.sum(-1, keepdim=True)


def distortion_double_loop(edges: Tensor, weights: Tensor) -> Tensor:
    """Equation 15 as it is printed."""
    middle = 0.5 * (edges[:, 1:] + edges[:, :-1])
    pairs = weights[:, :, None] * weights[:, None, :] * (middle[:, :, None] - middle[:, None, :]).abs()
    return (pairs.sum((1, 2)) + (weights**2 * edges.diff(dim=-1)).sum(-1) / 3).mean()


class TestColourLosses:
    def test_mse_is_the_mean_square(self) -> None:
        assert mse(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.5]])).item() == pytest.approx(0.625)

    def test_huber_is_smooth_l1(self, rng: torch.Generator) -> None:
        pred, true = torch.randn(2, 50, 3, generator=rng, dtype=DOUBLE)
        for delta in (0.05, 0.1, 1.0, 10.0):
            expected = torch.nn.functional.smooth_l1_loss(pred, true, beta=delta)
            torch.testing.assert_close(huber(pred, true, delta), expected)

    @pytest.mark.parametrize("loss", [mse, huber, charbonnier])
    def test_no_pixels_is_a_differentiable_zero(self, loss) -> None:
        pred = torch.zeros(0, 3, requires_grad=True)
        value = loss(pred, torch.zeros(0, 3))
        value.backward()
        assert value.item() == 0.0
        assert pred.grad is not None and pred.grad.shape == (0, 3)

    def test_charbonnier_is_the_absolute_error_with_a_round_corner(self) -> None:
        pred, true = torch.tensor([[3e-3, 0.5]], dtype=DOUBLE), torch.tensor([[0.0, 0.2]], dtype=DOUBLE)
        expected = 0.5 * ((9e-6 + 16e-6) ** 0.5 + (0.09 + 16e-6) ** 0.5)
        assert charbonnier(pred, true, padding=4e-3).item() == pytest.approx(expected, rel=1e-12)
        assert charbonnier(true, true).item() == pytest.approx(1e-3)

    def test_charbonnier_has_a_gradient_where_all_is_right(self) -> None:
        pred = torch.full((2, 3), 0.25, dtype=DOUBLE, requires_grad=True)
        assert torch.autograd.gradcheck(lambda p: charbonnier(p, torch.full_like(p, 0.25)), pred)

    @pytest.mark.parametrize("loss", [mse, huber, charbonnier])
    def test_broadcast_is_refused(self, loss) -> None:
        """[R, 3] against [R, 1] would broadcast silently and train on nonsense."""
        with pytest.raises(ValueError, match=r"true: expected the shape of pred \(4, 3\), got \(4, 1\)"):
            loss(torch.zeros(4, 3), torch.zeros(4, 1))

    def test_huber_refuses_a_width_of_zero(self) -> None:
        with pytest.raises(ValueError, match="delta: expected a positive number, got 0"):
            huber(torch.zeros(1), torch.zeros(1), delta=0.0)


class TestDistortion:
    def test_check_vector(self) -> None:
        edges = torch.tensor([[0.0, 0.25, 0.5, 1.0]])
        assert distortion(edges, torch.tensor([[0.2, 0.5, 0.3]])).item() == pytest.approx(0.2766667, abs=1e-6)

    @settings(max_examples=25, deadline=None)
    @given(rays=st.integers(1, 5), n=st.integers(1, 20), seed=st.integers(0, 2**31))
    def test_prefix_sums_equal_the_double_loop(self, rays: int, n: int, seed: int) -> None:
        edges, weights = random_histogram(rays, n, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(distortion(edges, weights), distortion_double_loop(edges, weights))

    def test_shift_does_not_matter_and_scale_is_a_b_squared(self, rng: torch.Generator) -> None:
        edges, weights = random_histogram(6, 12, rng)
        base = distortion(edges, weights)
        torch.testing.assert_close(distortion(edges + 3.0, weights), base)
        torch.testing.assert_close(distortion(2.0 * edges, 0.5 * weights), 0.5 * base)

    def test_splitting_an_interval_does_not_matter(self) -> None:
        """The loss is an integral over a step function, so it must not see how the steps are cut."""
        whole = distortion(torch.tensor([[0.0, 0.4, 1.0]]), torch.tensor([[0.3, 0.6]]))
        split = distortion(torch.tensor([[0.0, 0.4, 0.7, 1.0]]), torch.tensor([[0.3, 0.3, 0.3]]))
        torch.testing.assert_close(split, whole)

    def test_gradient(self, rng: torch.Generator) -> None:
        edges, weights = random_histogram(3, 7, rng)
        assert torch.autograd.gradcheck(distortion, (edges.requires_grad_(), weights.requires_grad_()))

    def test_no_rays(self) -> None:
        assert distortion(torch.zeros(0, 5), torch.zeros(0, 4)).item() == 0.0

    def test_wrong_number_of_edges_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"edges: expected shape \(2, 5\).*got \(2, 4\)"):
            distortion(torch.zeros(2, 4), torch.zeros(2, 4))


class TestInterlevel:
    edges = torch.tensor([[0.0, 0.2, 0.6, 1.0]])
    weights = torch.tensor([[0.5, 0.3, 0.1]])
    proposal_edges = torch.tensor([[0.0, 0.5, 1.0]])
    proposal_weights = torch.tensor([[0.4, 0.5]])

    def test_check_vector(self) -> None:
        bounds = envelope(self.edges, self.proposal_edges, self.proposal_weights)
        torch.testing.assert_close(bounds, torch.tensor([[0.4, 0.9, 0.5]]))
        loss = interlevel(self.edges, self.weights, self.proposal_edges, self.proposal_weights)
        assert 3 * loss.item() == pytest.approx(0.02, abs=1e-6)

    @settings(max_examples=25, deadline=None)
    @given(n=st.integers(1, 12), m=st.integers(1, 12), seed=st.integers(0, 2**31))
    def test_bound_equals_the_definition(self, n: int, m: int, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        edges, _ = random_histogram(2, n, rng)
        ends, shares = random_histogram(2, m, rng)
        overlaps = (ends[:, None, :-1] < edges[:, 1:, None]) & (ends[:, None, 1:] > edges[:, :-1, None])
        torch.testing.assert_close(envelope(edges, ends, shares), (overlaps * shares[:, None, :]).sum(-1))

    def test_a_coarser_view_of_the_same_weights_costs_nothing(self, rng: torch.Generator) -> None:
        """Merging neighbouring fine intervals gives a proposal that is consistent by construction."""
        edges, weights = random_histogram(5, 12, rng)
        merged = weights.reshape(5, 4, 3).sum(-1)
        assert interlevel(edges, weights, edges[:, ::3], merged).item() == pytest.approx(0.0, abs=1e-15)

    def test_bound_is_strict_at_shared_edges(self) -> None:
        """Same edges on both levels: each bound is that interval's own weight, not the neighbour's as well."""
        bounds = envelope(self.edges, self.edges, self.weights)
        torch.testing.assert_close(bounds, self.weights)

    def test_only_the_proposal_learns(self) -> None:
        weights = self.weights.clone().requires_grad_()
        proposal = self.proposal_weights.clone().requires_grad_()
        interlevel(self.edges, weights, self.proposal_edges, proposal).backward()
        assert weights.grad is None
        assert proposal.grad is not None and proposal.grad[0, 0] < 0, "the violated bound must be raised"

    def test_gradient(self, rng: torch.Generator) -> None:
        edges, weights = random_histogram(3, 6, rng)
        ends, shares = random_histogram(3, 5, rng)
        assert torch.autograd.gradcheck(lambda s: interlevel(edges, weights, ends, s), (0.3 * shares).requires_grad_())

    def test_empty_weights_are_finite(self) -> None:
        nothing = torch.zeros(1, 3)
        assert interlevel(self.edges, nothing, self.proposal_edges, self.proposal_weights).item() == 0.0

    def test_wrong_proposal_shape_is_refused(self) -> None:
        with pytest.raises(ValueError, match="proposal_edges: expected shape"):
            interlevel(self.edges, self.weights, self.edges, self.proposal_weights)


class TestSplineInterlevel:
    def test_blurred_mass_is_the_convolution(self, rng: torch.Generator) -> None:
        """Against the histogram sampled finely, convolved with a sampled box, and summed: no formula in common."""
        edges, weights = random_histogram(3, 7, rng)
        ends, _ = random_histogram(3, 11, rng)
        for radius in (0.03, 0.2):
            found = blurred_mass(edges, weights, ends, radius)
            step = 1e-5
            x = torch.arange(-0.5, 1.5, step, dtype=DOUBLE) + 0.5 * step
            for ray in range(3):
                place = torch.searchsorted(edges[ray], x) - 1
                inside = (x > 0) & (x < 1)
                height = (weights / edges.diff(dim=-1))[ray][place.clamp(0, 6)] * inside
                total = torch.nn.functional.pad(height.cumsum(0), (1, 0)) * step
                half = round(radius / step)
                blurred = (total[2 * half :] - total[: -2 * half]) / (2 * radius)
                where = x[0] - 0.5 * step + step * torch.arange(half, len(total) - half)
                counted = [
                    float(blurred[(where >= low) & (where < high)].sum() * step)
                    for low, high in zip(ends[ray], ends[ray, 1:], strict=False)
                ]
                torch.testing.assert_close(found[ray], torch.tensor(counted, dtype=DOUBLE), rtol=1e-3, atol=2e-5)

    def test_a_block_becomes_a_trapezoid(self) -> None:
        """All mass in [0.4, 0.6], blurred by 0.1: up from 0.3 to 0.5, where it is 5 high, and down to 0.7."""
        edges, weights = torch.tensor([[0.0, 0.4, 0.6, 1.0]]), torch.tensor([[0.0, 1.0, 0.0]])
        found = blurred_mass(edges, weights, torch.tensor([[0.0, 0.3, 0.4, 0.5, 0.7, 1.0]]), 0.1)
        torch.testing.assert_close(found, torch.tensor([[0.0, 0.125, 0.375, 0.5, 0.0]]), rtol=0, atol=1e-6)

    def test_without_blur_it_is_the_histogram_cut_anew(self, rng: torch.Generator) -> None:
        edges, weights = random_histogram(4, 9, rng)
        torch.testing.assert_close(blurred_mass(edges, weights, edges, 1e-9), weights, rtol=1e-5, atol=1e-6)
        coarse = edges[:, ::3]
        together = weights.view(4, 3, 3).sum(-1)
        torch.testing.assert_close(blurred_mass(edges, weights, coarse, 1e-9), together, rtol=1e-5, atol=1e-6)

    def test_half_of_the_mass_at_an_end_is_carried_off(self) -> None:
        edges, weights = torch.tensor([[0.0, 1e-6, 1.0]]), torch.tensor([[1.0, 0.0]])
        found = blurred_mass(edges, weights, torch.tensor([[0.0, 1.0]]), 0.1)
        assert float(found) == pytest.approx(0.5, abs=1e-4)

    def test_single_precision_is_enough_outside(self, rng: torch.Generator) -> None:
        """The narrow blur divides small differences by a small number; what is empty must stay empty."""
        edges = torch.linspace(0, 1, 65)[None]
        weights = torch.zeros(1, 64)
        weights[0, 20] = 0.9
        found = blurred_mass(edges, weights, edges, 0.003)
        assert float(found[0, 30:].abs().max()) < 1e-7 and float(found.sum()) == pytest.approx(0.9, abs=1e-6)

    def test_formula(self, rng: torch.Generator) -> None:
        edges, weights = random_histogram(5, 8, rng)
        ends, shares = random_histogram(5, 12, rng)
        target = blurred_mass(edges, weights, ends, 0.05)
        expected = ((target - shares).clamp(min=0) ** 2 / (shares + 1e-5)).mean()
        torch.testing.assert_close(spline_interlevel(edges, weights, ends, shares, 0.05), expected)
        assert spline_interlevel(edges, weights, ends, target, 0.05).item() == 0.0
        assert spline_interlevel(edges, weights, ends, 2 * target, 0.05).item() == 0.0

    def test_only_the_proposal_learns(self, rng: torch.Generator) -> None:
        edges, weights = random_histogram(3, 6, rng)
        ends, shares = random_histogram(3, 8, rng)
        inputs = [t.clone().requires_grad_() for t in (edges, weights, ends, 0.3 * shares)]
        spline_interlevel(*inputs, 0.03).backward()
        assert [t.grad is None for t in inputs] == [True, True, True, False]
        assert torch.autograd.gradcheck(
            lambda s: spline_interlevel(edges, weights, ends, s, 0.03), (0.3 * shares).requires_grad_()
        )

    def test_moves_smoothly_where_interlevel_jumps(self) -> None:
        """A surface that recedes across the edge of a proposal's interval (the paper's figure of z-aliasing)."""
        ends, shares = torch.linspace(0, 1, 5, dtype=DOUBLE)[None], torch.full((1, 4), 0.25, dtype=DOUBLE)
        smooth, jumps = [], []
        for x in torch.linspace(0.3, 0.7, 201, dtype=DOUBLE):
            edges = torch.tensor([[0.0, x - 0.01, x + 0.01, 1.0]], dtype=DOUBLE)
            weights = torch.tensor([[0.0, 1.0, 0.0]], dtype=DOUBLE)
            smooth.append(spline_interlevel(edges, weights, ends, shares, 0.05))
            jumps.append(interlevel(edges, weights, ends, shares))
        largest = [float(torch.stack(losses).diff().abs().max()) for losses in (smooth, jumps)]
        assert largest[0] < 0.1 * float(max(smooth) - min(smooth))
        assert largest[1] > 0.9 * float(max(jumps) - min(jumps))

    @pytest.mark.parametrize("hollow", [0.0, 1.0])
    def test_intervals_without_length(self, hollow: float) -> None:
        edges, weights = torch.tensor([[0.0, 0.5, 0.5, 1.0]]), torch.tensor([[0.2, 0.6 * hollow, 0.2]])
        shares = torch.zeros(1, 2, requires_grad=True)
        loss = spline_interlevel(edges, weights, torch.tensor([[0.0, 0.5, 1.0]]), shares, 0.003)
        loss.backward()
        assert bool(loss.isfinite()) and shares.grad is not None and bool(shares.grad.isfinite().all())

    def test_bad_input(self) -> None:
        good = torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[0.5, 0.5]])
        with pytest.raises(ValueError, match="radius: expected a positive number, got 0"):
            spline_interlevel(*good, *good, 0.0)
        with pytest.raises(ValueError, match="proposal_edges"):
            spline_interlevel(*good, good[0], torch.ones(1, 3), 0.1)
        with pytest.raises(ValueError, match="edges"):
            spline_interlevel(good[0], torch.ones(1, 3), *good, 0.1)
