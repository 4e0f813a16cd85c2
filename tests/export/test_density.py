"""Density samples: what a method's rendering skips is empty, and only blocks that hold something are asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ball_field import RADIUS, BallField, ball_info

from lightfold import ops
from lightfold.export.blocks import Lattice, block_samples
from lightfold.export.density import BLOCK, density_blocks
from lightfold.methods.base import HasDensity, HasDistance, HasOccupancy
from lightfold.methods.ngp import NGP, NGPConfig
from lightfold.ops.march import cell_of, pack_bits, unpack_bits

BOX = torch.tensor([[-1.0] * 3, [1.0] * 3])
TINY = NGPConfig(log2_rows=8, grid=16, grid_bounded=16, finest=64, finest_bounded=64, width=16)


@pytest.mark.parametrize("bounded", [True, False])
def test_ngp_is_empty_where_its_rendering_skips(bounded: bool) -> None:
    torch.manual_seed(0)
    method = NGP(TINY, ball_info(bounded=bounded))
    occupied = unpack_bits(method.occupancy.bits)
    occupied &= torch.rand(len(occupied), generator=torch.Generator().manual_seed(0)) < 0.3
    method.occupancy.bits.copy_(pack_bits(occupied))
    assert isinstance(method, HasOccupancy) and not isinstance(method, HasDistance)
    assert method.cell == 2 / 16
    points = torch.rand(5000, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    inside = method.occupied_at(points)
    grid = method.occupancy
    assert (
        torch.equal(inside, occupied[cell_of(points, grid.cascades, grid.size)]) and 0.05 < inside.float().mean() < 0.5
    )
    assert (method.density_at(points)[~inside] == 0).all()
    assert torch.allclose(method.density_at(points)[inside], ops.density_at(method.field(), points[inside]))
    beyond = torch.full((1, 3), 2.0 * 2 ** (grid.cascades - 1))
    assert not method.occupied_at(beyond).any() and float(method.density_at(beyond)) == 0


def test_no_matter_is_missed_and_empty_space_costs_nothing() -> None:
    asked: list[int] = []

    class Counting(BallField):
        def density_at(self, points: torch.Tensor) -> torch.Tensor:
            asked.append(len(points))
            return super().density_at(points)

    lattice = Lattice.over(BOX, 160)
    method = Counting(ball_info())
    assert isinstance(method, HasDensity) and not isinstance(method, HasOccupancy)
    blocks = density_blocks(method, 20.0, lattice)
    for index in np.ndindex(*lattice.block_grid(BLOCK)):
        radius = lattice.points(block_samples(index, BLOCK)).norm(dim=1)
        crosses = bool((radius < RADIUS).any())
        assert not crosses or index in blocks
        if index in blocks:
            assert np.array_equal(blocks[index].reshape(-1) > 0, (radius < RADIUS).numpy())
    assert len(blocks) < 0.7 * np.prod(lattice.block_grid(BLOCK)) and sum(asked) < 161**3


def test_a_grid_that_can_tell_is_asked_instead() -> None:
    """A wire thinner than the distance between probes of the density is found by the cells that it occupies."""

    class Wire:
        cell = 0.05

        def density_at(self, points: torch.Tensor) -> torch.Tensor:
            return torch.where((points[:, 0] - 0.31).abs() + (points[:, 1] + 0.17).abs() < 0.015, 500.0, 0.0)

        def occupied_at(self, points: torch.Tensor) -> torch.Tensor:
            middle = ((points / self.cell).floor() + 0.5) * self.cell
            return ((middle[:, 0] - 0.31).abs() < self.cell) & ((middle[:, 1] + 0.17).abs() < self.cell)

    lattice = Lattice.over(BOX, 160)
    blocks = density_blocks(Wire(), 20.0, lattice)
    found = sum(int((value > 0).sum()) for value in blocks.values())
    whole = torch.arange(BLOCK * max(lattice.block_grid(BLOCK)))  # blocks are whole, also beyond the box
    every = sum(
        int((Wire().density_at(lattice.points(torch.cartesian_prod(torch.tensor([x]), *[whole] * 2))) > 0).sum())
        for x in range(98, 112)
    )
    assert found == every > 161 and len(blocks) < 0.1 * np.prod(lattice.block_grid(BLOCK))
