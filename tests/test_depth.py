"""Losses on measured depth pull weights to where the measurement is, and leave rays without one alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lightfold.depth import KINDS, depth_loss, line_of_sight, termination
from lightfold.proposal import weights_from_density

EDGES = torch.linspace(0.5, 4.5, 41).expand(3, 41).contiguous()
DEPTH = torch.tensor([1.32, 2.0, 3.71])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors as small as these only get slower by being shared out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fitted(kind: str, depth: Tensor) -> tuple[Tensor, Tensor]:
    """Densities trained by the loss alone, from an even fog: their weights, and the expected depth."""
    raw = torch.zeros(3, 40, requires_grad=True)
    optim = torch.optim.Adam([raw], 0.1)
    for _ in range(300):
        weights = weights_from_density(raw.exp(), EDGES)
        optim.zero_grad()
        depth_loss(kind, weights, EDGES, depth, 0.02).backward()
        optim.step()
    weights = weights_from_density(raw.detach().exp(), EDGES)
    middle = 0.5 * (EDGES[:, 1:] + EDGES[:, :-1])
    return weights, (weights * middle).sum(1) / weights.sum(1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_come_to_lie_at_the_measurement(kind: str) -> None:
    weights, expected = fitted(kind, DEPTH)
    torch.testing.assert_close(expected, DEPTH, atol=0.1, rtol=0)
    near = (EDGES[:, 1:] > DEPTH[:, None] * 0.9) & (EDGES[:, :-1] < DEPTH[:, None] * 1.1)
    assert float((weights * near).sum(1).min()) > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_rays_without_a_measurement_stay_as_they_are(kind: str) -> None:
    weights, _ = fitted(kind, torch.tensor([0.0, 2.0, 0.0]))
    start = weights_from_density(torch.ones(3, 40), EDGES)
    assert torch.equal(weights[0], start[0]) and torch.equal(weights[2], start[2])
    assert not torch.equal(weights[1], start[1])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_measured_costs_nothing(kind: str) -> None:
    weights = torch.full((3, 40), 0.02, requires_grad=True)
    loss = depth_loss(kind, weights, EDGES, torch.zeros(3), 0.02)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert weights.grad is not None and not bool(weights.grad.any())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_and_extremes_are_finite(kind: str) -> None:
    weights = torch.rand(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 40 + 1e-3
    edges, depth = EDGES.double(), DEPTH.double()
    assert torch.autograd.gradcheck(lambda w: depth_loss(kind, w, edges, depth, 0.05), (weights.requires_grad_(),))
    empty = torch.zeros(3, 40, requires_grad=True)
    far = torch.cat([EDGES[:, :-1], torch.full((3, 1), 1e10)], dim=1)
    loss = depth_loss(kind, empty, far, torch.tensor([1e-6, 2.0, 1e6]), 1e-6)
    loss.backward()
    assert math.isfinite(float(loss.detach())) and empty.grad is not None and bool(empty.grad.isfinite().all())


def test_termination_is_the_cross_entropy_with_a_gaussian() -> None:
    """One interval holds the Gaussian's half, its neighbour the other."""
    edges = torch.tensor([[1.0, 2.0, 3.0]])
    weights = torch.tensor([[0.2, 0.7]])
    expected = -0.5 * (math.log(0.2 + 1e-5) + math.log(0.7 + 1e-5))
    assert float(termination(weights, edges, torch.tensor([2.0]), 0.01)) == pytest.approx(expected, rel=1e-5)


def test_line_of_sight_by_hand() -> None:
    """D = 2, e = 0.06: the first interval is before the surface, the second touches it, the third lies beyond."""
    edges, weights = torch.tensor([[0.5, 1.5, 2.5, 6.5]]), torch.tensor([[0.3, 0.5, 0.1]])
    expected = (0.3 * 0.5 + 0.5 * 1.0 + 0.1 * 2.0 - 1) ** 2 + 0.3**2 + 0.5**2
    assert float(line_of_sight(weights, edges, torch.tensor([2.0]), 0.01)) == pytest.approx(expected, rel=1e-5)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="termination, sight"):
        depth_loss("l1", torch.zeros(3, 40), EDGES, DEPTH, 0.1)
    with pytest.raises(ValueError, match="edges, depth"):
        termination(torch.zeros(3, 39), EDGES, DEPTH, 0.1)
    with pytest.raises(ValueError, match="spread"):
        line_of_sight(torch.zeros(3, 40), EDGES, DEPTH, 0.0)
