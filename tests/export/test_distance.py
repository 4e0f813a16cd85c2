"""Signed distances are asked where the surface may be, and nowhere else; learnt ones need not be true distances."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ball_field import BallDistance, BallField, ball_info
from torch import Tensor

from lightfold.export.blocks import Lattice, polygonise
from lightfold.export.distance import BLOCK, distance_blocks
from lightfold.methods.base import HasDensity, HasDistance

LATTICE = Lattice.over(torch.tensor([[-1.0] * 3, [1.0] * 3]), 100)


class Distance:
    """A signed distance, and how often it was asked."""

    def __init__(self, sdf: Callable[[Tensor], Tensor]) -> None:
        self.sdf = sdf
        self.asked = 0

    def sdf_at(self, points: Tensor) -> Tensor:
        self.asked += len(points)
        return self.sdf(points)


def ball(points: Tensor) -> Tensor:
    return points.norm(dim=1) - 0.6


@pytest.mark.parametrize(
    "sdf",
    [ball, lambda x: 0.5 * ball(x), lambda x: 1.8 * ball(x), lambda x: ball(x).sign() * ball(x).abs().sqrt()],
    ids=["true", "flat", "steep", "steeper near the surface"],
)
def test_no_part_of_the_surface_is_missed(sdf: Callable[[Tensor], Tensor]) -> None:
    blocks = distance_blocks(Distance(sdf), LATTICE)
    vertices, faces = polygonise(LATTICE, blocks, BLOCK, float("nan"))
    assert np.abs(np.linalg.norm(vertices, axis=1) - 0.6).max() < 0.5 * LATTICE.spacing
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()


def test_only_blocks_near_the_surface_are_asked() -> None:
    small = Lattice((-0.1, -0.1, -0.1), 0.002, (101, 101, 101))
    method = Distance(lambda points: (points - 0.1).norm(dim=1) - 0.01)
    blocks = distance_blocks(method, small)
    assert 1 <= len(blocks) < 4**3 / 2 and method.asked == 4**3 * 27 + len(blocks) * BLOCK**3


def test_who_has_a_distance() -> None:
    assert isinstance(BallDistance(ball_info()), HasDistance) and not isinstance(BallDistance(ball_info()), HasDensity)
    assert isinstance(BallField(ball_info()), HasDensity) and not isinstance(BallField(ball_info()), HasDistance)
