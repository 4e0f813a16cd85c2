"""proposal.py: ray spacings, weights, and resampling against a literal transcription and hostile histograms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from literal_resampling import height_at, resample_literally
from torch import Tensor

from lightfold.proposal import (
    ENDLESS,
    Spacing,
    above,
    dilate,
    inverse_power,
    median_distance,
    power,
    resample,
    weights_from_density,
)

DOUBLE = torch.float64


def histogram(rays: int, m: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Edges over [0, 1] and uneven weights of sum below 1, in double precision."""
    inner = torch.rand(rays, m - 1, generator=rng, dtype=DOUBLE).sort(-1).values
    edges = torch.cat([torch.zeros(rays, 1, dtype=DOUBLE), inner, torch.ones(rays, 1, dtype=DOUBLE)], -1)
    weights = torch.rand(rays, m, generator=rng, dtype=DOUBLE) ** 4
    return edges, 0.9 * weights / weights.sum(-1, keepdim=True)


def one_hot(m: int, hot: int) -> tuple[Tensor, Tensor]:
    return torch.linspace(0, 1, m + 1)[None], torch.eye(m)[hot][None]


class TestSpacing:
    @pytest.mark.parametrize("spacing", Spacing)
    def test_round_trip_and_ends(self, spacing: Spacing, rng: torch.Generator) -> None:
        near = torch.tensor([0.2, 1.0, 3.0], dtype=DOUBLE)
        far = torch.tensor([0.7, 4.0, 1000.0], dtype=DOUBLE)
        s = torch.rand(3, 50, generator=rng, dtype=DOUBLE).sort(-1).values
        s[:, 0], s[:, -1] = 0.0, 1.0
        t = spacing.t_from_s(s, near, far)
        torch.testing.assert_close(t[:, 0], near)
        torch.testing.assert_close(t[:, -1], far)
        assert (t.diff(dim=-1) > 0).all()
        torch.testing.assert_close(spacing.s_from_t(t, near, far), s)

    def test_known_values(self) -> None:
        half, near, far = torch.tensor([[0.5]]), torch.tensor([2.0]), torch.tensor([6.0])
        assert Spacing.LINEAR.t_from_s(half, near, far).item() == 4.0
        assert Spacing.RECIPROCAL.t_from_s(half, near, far).item() == pytest.approx(3.0)
        whole = torch.tensor([[0.0, 0.25, 0.5, 0.75, 1.0]])
        found = Spacing.PIECEWISE.t_from_s(whole, torch.tensor([0.0]), torch.tensor([math.inf]))
        torch.testing.assert_close(found, torch.tensor([[0.0, 0.5, 1.0, 2.0, math.inf]]))
        # P(2 t, -3/2) = 5/3 (1 - (0.8 t + 1)^(-3/2)): half of the way to infinity where the bracket is 1/2.
        found = Spacing.POWER.t_from_s(half, torch.tensor([0.0]), torch.tensor([math.inf]))
        assert found.item() == pytest.approx((2 ** (2 / 3) - 1) / 0.8, rel=1e-5)

    @pytest.mark.parametrize("spacing", [Spacing.RECIPROCAL, Spacing.PIECEWISE, Spacing.POWER])
    def test_infinite_far(self, spacing: Spacing) -> None:
        s = torch.linspace(0, 1, 9)[None]
        t = spacing.t_from_s(s, torch.tensor([0.2]), torch.tensor([math.inf]))
        assert t[:, :-1].isfinite().all() and t[0, -1] == math.inf and (t.diff(dim=-1) > 0).all()
        torch.testing.assert_close(spacing.s_from_t(t, torch.tensor([0.2]), torch.tensor([math.inf])), s)

    @pytest.mark.parametrize("spacing", Spacing)
    def test_near_equals_far(self, spacing: Spacing) -> None:
        near = torch.tensor([0.7, 1.0, 30.0])
        t = spacing.t_from_s(torch.linspace(0, 1, 5).expand(3, 5), near, near)
        torch.testing.assert_close(t, near[:, None].expand(3, 5))
        torch.testing.assert_close(spacing.s_from_t(t, near, near), torch.zeros(3, 5))

    @pytest.mark.parametrize("spacing", Spacing)
    def test_single_precision_stays_within_the_ray(self, spacing: Spacing) -> None:
        near, far = torch.tensor([0.2]), torch.tensor([1e6])
        t = spacing.t_from_s(torch.linspace(0, 1, 4097)[None], near, far)
        assert (t.diff(dim=-1) >= 0).all() and t.min() >= near and t.max() <= far

    def test_what_a_spacing_cannot_do_is_refused(self) -> None:
        s, one = torch.tensor([[0.5]]), torch.tensor([1.0])
        with pytest.raises(ValueError, match="far: expected finite"):
            Spacing.LINEAR.t_from_s(s, one, torch.tensor([math.inf]))
        with pytest.raises(ValueError, match="near: expected positive"):
            Spacing.RECIPROCAL.s_from_t(s, torch.tensor([0.0]), one)


class TestPower:
    @pytest.mark.parametrize("exponent", [-1.5, -0.25, 0.5, 2.0])
    def test_formula_slope_and_inverse(self, exponent: float) -> None:
        x = torch.tensor([0.0, 1e-3, 0.1, 1.0, 30.0], dtype=DOUBLE, requires_grad=True)
        y = power(x, exponent)
        scale = abs(exponent - 1)
        literal = [scale / exponent * ((v / scale + 1) ** exponent - 1) for v in x.tolist()]
        torch.testing.assert_close(y.detach(), torch.tensor(literal, dtype=DOUBLE))
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert y[0] == 0 and slope[0] == 1 and bool((slope > 0).all())
        torch.testing.assert_close(inverse_power(y, exponent), x)

    def test_all_distances_lie_below_a_bound(self) -> None:
        assert power(torch.tensor([math.inf]), -1.5).item() == pytest.approx(5 / 3)
        assert inverse_power(torch.tensor([2.0]), -1.5).item() == math.inf

    @pytest.mark.parametrize("exponent", [0.0, 1.0])
    def test_exponents_with_other_forms(self, exponent: float) -> None:
        for function in (power, inverse_power):
            with pytest.raises(ValueError, match="exponent: expected another"):
                function(torch.ones(1), exponent)


class TestWeights:
    def test_box_of_constant_density(self, rng: torch.Generator) -> None:
        edges = torch.rand(4, 33, generator=rng, dtype=DOUBLE).sort(-1).values
        for sigma in (0.0, 0.3, 40.0):
            weights = weights_from_density(torch.full((4, 32), sigma, dtype=DOUBLE), edges)
            torch.testing.assert_close(weights.sum(-1), 1 - torch.exp(-sigma * (edges[:, -1] - edges[:, 0])))

    def test_opaque_end_takes_what_is_left(self, rng: torch.Generator) -> None:
        density = torch.rand(5, 8, generator=rng, dtype=DOUBLE)
        edges = torch.linspace(0, 1, 9, dtype=DOUBLE).expand(5, 9)
        open_end, closed = weights_from_density(density, edges), weights_from_density(density, edges, opaque_last=True)
        torch.testing.assert_close(closed[:, :-1], open_end[:, :-1])
        torch.testing.assert_close(closed.sum(-1), torch.ones(5, dtype=DOUBLE))

    def test_infinite_last_interval(self) -> None:
        edges = torch.tensor([[0.0, 1.0, math.inf]]).expand(2, 3)
        density = torch.tensor([[0.0, 0.0], [0.0, 1.0]]).requires_grad_()
        weights = weights_from_density(density, edges)
        torch.testing.assert_close(weights, torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
        weights.sum().backward()
        assert density.grad is not None and density.grad.isfinite().all()
        assert density.grad[0, 1] == ENDLESS

    def test_gradient(self, rng: torch.Generator) -> None:
        edges, density = histogram(3, 6, rng)
        for opaque in (False, True):
            assert torch.autograd.gradcheck(
                lambda d, o=opaque: weights_from_density(d, edges, o), density.requires_grad_()
            )

    @pytest.mark.parametrize("spacing", list(Spacing))
    def test_median_has_half_of_the_weight_before_it(self, spacing: Spacing, rng: torch.Generator) -> None:
        edges, weights = histogram(20, 9, rng)
        near, far = torch.rand(20, generator=rng, dtype=DOUBLE) + 0.1, torch.rand(20, generator=rng, dtype=DOUBLE) + 3
        found = median_distance(edges, weights, near, far, spacing)
        s = spacing.s_from_t(found[:, None], near, far)
        share = ((s - edges[:, :-1]) / edges.diff(dim=-1)).clamp(0, 1)
        torch.testing.assert_close((weights * share).sum(-1), 0.5 * weights.sum(-1))

    def test_wrong_shapes_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"edges_t \[R, n \+ 1\], got \[2, 4\] and \[2, 4\]"):
            weights_from_density(torch.zeros(2, 4), torch.zeros(2, 4))


class TestAbove:
    weights = torch.tensor([[0.1, 0.5, 0.2], [0.0, 0.3, 0.05]])

    def test_samples_that_weigh_enough(self) -> None:
        weight, place, ray = above(self.weights, 0.1)
        assert place.tolist() == [1, 2, 4] and ray.tolist() == [0, 0, 1]
        torch.testing.assert_close(weight, torch.tensor([0.5, 0.2, 0.3]))

    def test_the_others_weigh_nothing_where_sizes_are_fixed(self) -> None:
        weights = self.weights.clone().requires_grad_()
        weight, place, ray = above(weights, 0.1, fixed=True)
        assert place.tolist() == [0, 1, 2, 3, 4, 5] and ray.tolist() == [0, 0, 0, 1, 1, 1]
        torch.testing.assert_close(weight.detach(), torch.tensor([0.0, 0.5, 0.2, 0.0, 0.3, 0.0]))
        weight.sum().backward()
        assert weights.grad is not None and weights.grad.tolist() == [[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]]


class TestDilate:
    @settings(max_examples=25, deadline=None)
    @given(m=st.integers(1, 20), width=st.sampled_from([1e-4, 0.01, 0.1, 0.6]), seed=st.integers(0, 2**31))
    def test_equals_looking_at_every_interval(self, m: int, width: float, seed: int) -> None:
        edges, weights = histogram(2, m, torch.Generator().manual_seed(seed))
        cuts, mass = dilate(edges, weights, width)
        assert cuts.shape == (2, 3 * m - 1) and mass.shape == (2, 3 * m - 2)
        for ray in range(2):
            middle = 0.5 * (cuts[ray, 1:] + cuts[ray, :-1])
            heights = [height_at(edges[ray].numpy(), weights[ray].numpy(), float(x), width) for x in middle]
            expected = torch.tensor(heights, dtype=DOUBLE) * cuts[ray].diff()
            torch.testing.assert_close(mass[ray], expected / expected.sum())

    def test_a_spike_widens_to_both_sides(self) -> None:
        edges, weights = one_hot(10, 4)
        cuts, mass = dilate(edges, weights, 0.05)
        middle = 0.5 * (cuts[:, 1:] + cuts[:, :-1])
        hit = middle[mass > 1e-6]
        assert hit.min() > 0.35 and hit.max() < 0.55
        assert mass.sum().item() == pytest.approx(1.0)
        assert (cuts[:, 1:] - cuts[:, :-1])[mass > 1e-6].sum().item() == pytest.approx(0.2, abs=1e-6)


class TestResample:
    @settings(max_examples=25, deadline=None)
    @given(
        m=st.integers(1, 12),
        n=st.integers(2, 20),
        dilation=st.sampled_from([0.0, 0.003, 0.1]),
        anneal=st.sampled_from([0.0, 0.526316, 1.0]),
        seed=st.integers(0, 2**31),
    )
    def test_equals_a_literal_transcription(self, m: int, n: int, dilation: float, anneal: float, seed: int) -> None:
        edges, weights = histogram(2, m, torch.Generator().manual_seed(seed))
        found = resample(edges, weights, n, None, dilation, anneal)
        expected = [
            resample_literally(e, w, n, dilation, anneal) for e, w in zip(edges.numpy(), weights.numpy(), strict=True)
        ]
        torch.testing.assert_close(found, torch.tensor(np.array(expected)))

    @settings(max_examples=25, deadline=None)
    @given(
        m=st.integers(1, 12), n=st.integers(2, 20), dilation=st.sampled_from([0.0, 0.01]), seed=st.integers(0, 2**31)
    )
    def test_edges_ascend_within_the_ray(self, m: int, n: int, dilation: float, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        edges, weights = histogram(3, m, rng)
        found = resample(edges.float(), weights.float(), n, rng, dilation, 0.5)
        assert found.shape == (3, n + 1)
        assert (found.diff(dim=-1) >= 0).all() and found.min() >= 0 and found.max() <= 1

    def test_nothing_known_is_cut_evenly(self) -> None:
        found = resample(torch.tensor([[0.0, 1.0]]), torch.ones(1, 1), 4, None)
        torch.testing.assert_close(found, torch.linspace(0, 1, 5)[None])

    def test_one_jitter_per_ray(self) -> None:
        """A uniform histogram: centres are (i + jitter) / n, all shifted alike, differently from ray to ray."""
        rng = torch.Generator().manual_seed(0)
        found = resample(torch.tensor([[0.0, 1.0]]).expand(500, 2), torch.ones(500, 1), 8, rng)
        torch.testing.assert_close(found[:, 1:-1].diff(dim=-1), torch.full((500, 6), 1 / 8))
        jitter = 8 * found[:, 1] - 1.0
        assert (jitter >= -0.5 - 1e-5).all() and (jitter <= 0.5 + 1e-5).all(), "middles lie half a step past centres"
        assert jitter.std().item() == pytest.approx(1 / 12**0.5, abs=0.02)

    def test_reflected_ends_are_clamped(self) -> None:
        edges = torch.tensor([[0.0, 0.01, 0.99, 1.0]])
        found = resample(edges, torch.tensor([[0.5, 0.0, 0.5]]), 2, None)
        torch.testing.assert_close(found, torch.tensor([[0.0, 0.5, 1.0]]))

    @pytest.mark.parametrize("hot", [0, 3, 9])
    @pytest.mark.parametrize("dilation", [0.0, 0.01])
    def test_one_hot_histogram(self, hot: int, dilation: float) -> None:
        found = resample(*one_hot(10, hot), 16, torch.Generator().manual_seed(1), dilation)
        grown = dilation + 0.2 / 15
        assert found.min() >= hot / 10 - grown and found.max() <= (hot + 1) / 10 + grown

    @pytest.mark.parametrize("dilation", [0.0, 0.01])
    @pytest.mark.parametrize("anneal", [0.0, 0.5, 1.0])
    def test_all_zero_ray_is_cut_evenly(self, dilation: float, anneal: float) -> None:
        edges = torch.tensor([[0.0, 0.1, 0.2, 1.0], [0.0, 0.3, 0.6, 1.0]])
        weights = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        found = resample(edges, weights, 10, None, dilation, anneal)
        assert found.isfinite().all()
        if anneal == 1:
            torch.testing.assert_close(found[0], torch.linspace(0, 1, 11))

    @pytest.mark.parametrize("dilation", [0.0, 0.01])
    @pytest.mark.parametrize("anneal", [0.0, 0.5, 1.0])
    def test_degenerate_intervals(self, dilation: float, anneal: float) -> None:
        """Intervals without length hold no centres, and a ray of nothing but those stays where it is."""
        edges = torch.tensor([[0.0, 0.5, 0.5, 1.0], [0.4, 0.4, 0.4, 0.4]])
        weights = torch.tensor([[0.5, 0.0, 0.5], [0.2, 0.3, 0.5]])
        found = resample(edges, weights, 8, torch.Generator().manual_seed(2), dilation, anneal)
        assert found.isfinite().all() and (found.diff(dim=-1) >= 0).all()
        assert (found[1] - 0.4).abs().max() <= 1.1 * dilation
        assert found[0].min() < 0.1 and found[0].max() > 0.9

    def test_tiny_weights_count_as_much_as_large_ones(self, rng: torch.Generator) -> None:
        edges, weights = histogram(4, 9, rng)
        found = resample(edges.float(), 1e-30 * weights.float(), 12, None, 0.01)
        torch.testing.assert_close(found, resample(edges.float(), weights.float(), 12, None, 0.01), rtol=0, atol=1e-4)

    def test_anneal_flattens(self) -> None:
        edges, weights = torch.linspace(0, 1, 3)[None], torch.tensor([[0.99, 0.01]])
        share = [(resample(edges, weights, 1000, None, 0.0, a) < 0.5).float().mean().item() for a in (0.0, 0.5, 1.0)]
        assert share[0] == pytest.approx(0.5, abs=0.01)
        assert share[1] == pytest.approx(0.99**0.5 / (0.99**0.5 + 0.1), abs=0.01)
        assert share[2] == pytest.approx(0.99, abs=0.01)

    def test_no_gradient_passes(self) -> None:
        weights = torch.ones(2, 4, requires_grad=True)
        assert not resample(torch.linspace(0, 1, 5).expand(2, 5), weights, 8, None, 0.01, 0.5).requires_grad

    def test_no_rays(self) -> None:
        assert resample(torch.zeros(0, 5), torch.zeros(0, 4), 8, None, 0.01, 0.5).shape == (0, 9)

    def test_arguments_are_left_as_they_are(self, rng: torch.Generator) -> None:
        edges, weights = histogram(3, 5, rng)
        before = edges.clone(), weights.clone()
        resample(edges, weights, 8, rng, 0.01, 0.5)
        assert torch.equal(edges, before[0]) and torch.equal(weights, before[1])

    def test_one_interval_is_refused(self) -> None:
        with pytest.raises(ValueError, match="n: expected at least 2 intervals"):
            resample(torch.tensor([[0.0, 1.0]]), torch.ones(1, 1), 1, None)

    def test_wrong_shapes_are_refused(self) -> None:
        with pytest.raises(ValueError, match="resample: expected edges_s"):
            resample(torch.zeros(2, 4), torch.zeros(2, 4), 8, None)
