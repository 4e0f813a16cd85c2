"""losses.py: check vectors, properties the papers claim, gradients, hostile input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightfold.losses import charbonnier, distortion, envelope, huber, interlevel, mse

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
