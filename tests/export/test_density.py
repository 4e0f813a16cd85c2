"""Density samples: what a method's rendering skips is empty, and only blocks that hold something are asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ball_field import RADIUS, BallField, ball_info

from lightfold import ops
from lightfold.export.blocks import Lattice, block_samples
from lightfold.export.density import BLOCK, DensityField, density_blocks, density_of
from lightfold.methods.ngp import NGP, NGPConfig
from lightfold.ops.march import cell_of, pack_bits, unpack_bits

BOX = torch.tensor([[-1.0] * 3, [1.0] * 3])
TINY = NGPConfig(log2_rows=8, grid=16, finest=64, finest_bounded=64, width=16)


@pytest.mark.parametrize("bounded", [True, False])
def test_ngp_is_empty_where_its_rendering_skips(bounded: bool) -> None:
    torch.manual_seed(0)
    method = NGP(TINY, ball_info(bounded=bounded))
    occupied = unpack_bits(method.occupancy.bits)
    occupied &= torch.rand(len(occupied), generator=torch.Generator().manual_seed(0)) < 0.3
    method.occupancy.bits.copy_(pack_bits(occupied))
    field = density_of(method)
    assert field is not None and field.occupied is not None
    points = torch.rand(5000, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    inside = field.occupied(points)
    grid = method.occupancy
    assert (
        torch.equal(inside, occupied[cell_of(points, grid.cascades, grid.size)]) and 0.05 < inside.float().mean() < 0.5
    )
    assert (field.density(points)[~inside] == 0).all()
    assert torch.allclose(field.density(points)[inside], ops.density_at(method.field(), points[inside]))
    beyond = torch.full((1, 3), 2.0 * 2 ** (grid.cascades - 1))
    assert not field.occupied(beyond).any() and float(field.density(beyond)) == 0


def test_no_matter_is_missed_and_empty_space_costs_nothing() -> None:
    asked: list[int] = []

    def density(points: torch.Tensor) -> torch.Tensor:
        asked.append(len(points))
        return BallField(ball_info()).density_at(points)

    lattice = Lattice.over(BOX, 160)
    blocks = density_blocks(DensityField(density), 20.0, lattice)
    for index in np.ndindex(*lattice.block_grid(BLOCK)):
        radius = lattice.points(block_samples(index, BLOCK)).norm(dim=1)
        crosses = bool((radius < RADIUS).any())
        assert not crosses or index in blocks
        if index in blocks:
            assert np.array_equal(blocks[index].reshape(-1) > 0, (radius < RADIUS).numpy())
    assert len(blocks) < 0.7 * np.prod(lattice.block_grid(BLOCK)) and sum(asked) < 161**3


def test_a_grid_that_can_tell_is_asked_instead() -> None:
    """A wire thinner than the distance between probes of the density is found by the cells that it occupies."""
    cell = 0.05

    def wire(points: torch.Tensor) -> torch.Tensor:
        return torch.where((points[:, 0] - 0.31).abs() + (points[:, 1] + 0.17).abs() < 0.015, 500.0, 0.0)

    def occupied(points: torch.Tensor) -> torch.Tensor:
        middle = ((points / cell).floor() + 0.5) * cell
        return ((middle[:, 0] - 0.31).abs() < cell) & ((middle[:, 1] + 0.17).abs() < cell)

    lattice = Lattice.over(BOX, 160)
    blocks = density_blocks(DensityField(wire, occupied, cell), 20.0, lattice)
    found = sum(int((value > 0).sum()) for value in blocks.values())
    whole = torch.arange(BLOCK * max(lattice.block_grid(BLOCK)))  # blocks are whole, also beyond the box
    every = sum(
        int((wire(lattice.points(torch.cartesian_prod(torch.tensor([x]), *[whole] * 2))) > 0).sum())
        for x in range(98, 112)
    )
    assert found == every > 161 and len(blocks) < 0.1 * np.prod(lattice.block_grid(BLOCK))
