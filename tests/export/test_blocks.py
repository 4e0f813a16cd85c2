"""Marching over sparse blocks: the same surface as in one piece, welded without a seam, open where nothing is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from lightfold.export.blocks import Blocks, Lattice, block_samples, polygonise

BOX = torch.tensor([[-1.0, -1.1, -1.2], [1.0, 1.1, 1.2]])


def blocks_of(function, lattice: Lattice, size: int) -> Blocks:  # type: ignore[no-untyped-def]
    """The blocks of a function of points that are not far outside everywhere."""
    blocks: Blocks = {}
    for i, j, k in np.ndindex(*lattice.block_grid(size)):
        value = function(lattice.points(block_samples((i, j, k), size))).reshape(size, size, size).numpy()
        if (value > -0.2).any():
            blocks[i, j, k] = value.astype(np.float32)
    return blocks


def ball(points: torch.Tensor) -> torch.Tensor:
    return 0.8 - points.norm(dim=1)


@pytest.mark.parametrize("size", [8, 16, 64])
def test_a_ball_is_round_closed_and_outward_whatever_the_blocks(size: int) -> None:
    lattice = Lattice.over(BOX, 40)
    mesh = trimesh.Trimesh(*polygonise(lattice, blocks_of(ball, lattice, size), size, -1.0), process=False)
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert np.allclose(np.linalg.norm(mesh.vertices, axis=1), 0.8, atol=2e-3)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.8**3, rel=0.01)
    assert mesh.euler_number == 2
    assert mesh.vertices.dtype == np.float64


def test_the_size_of_blocks_changes_nothing() -> None:
    lattice = Lattice.over(BOX, 26)
    generator = torch.Generator().manual_seed(1)
    bumps = torch.randn(12, 4, generator=generator)

    def lumps(points: torch.Tensor) -> torch.Tensor:
        return (bumps[:, 3] * torch.exp(-8 * (points[:, None] - bumps[:, :3]).square().sum(dim=2))).sum(dim=1) - 0.15

    first = polygonise(lattice, blocks_of(lumps, lattice, 8), 8, -1.0)
    second = polygonise(lattice, blocks_of(lumps, lattice, 64), 64, -1.0)
    assert len(first[0]) == len(second[0]) and len(first[1]) == len(second[1])
    assert np.allclose(np.sort(first[0], axis=0), np.sort(second[0], axis=0), atol=1e-6)
    # No vertex twice: what two blocks share was welded.
    assert len(np.unique(first[0].round(9), axis=0)) == len(first[0])


def test_random_signs_are_welded_without_an_open_edge_inside() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(24, 24, 24)).astype(np.float32)
    values[[0, -1]], values[:, [0, -1]], values[:, :, [0, -1]] = -1, -1, -1
    blocks = {(i, j, k): values[8 * i : 8 * i + 8, 8 * j : 8 * j + 8, 8 * k : 8 * k + 8]
              for i, j, k in np.ndindex(3, 3, 3)}  # fmt: skip
    lattice = Lattice((0.0, 0.0, 0.0), 1.0, (24, 24, 24))
    _, faces = polygonise(lattice, blocks, 8, -1.0)
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    _, count = np.unique(edges, axis=0, return_counts=True)
    assert len(faces) > 5000 and (count % 2 == 0).all()


def test_unknown_samples_leave_a_hole_and_empty_blocks_close_nothing_beyond_the_lattice() -> None:
    lattice = Lattice.over(BOX, 40)
    blocks = blocks_of(ball, lattice, 16)
    for index, value in blocks.items():
        points = lattice.points(block_samples(index, 16)).numpy().reshape(16, 16, 16, 3)
        value[points[..., 2] > 0.3] = np.nan
    vertices, faces = polygonise(lattice, blocks, 16, float("nan"))
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert not mesh.is_watertight and vertices[:, 2].max() < 0.3 + lattice.spacing
    assert np.allclose(np.linalg.norm(vertices, axis=1), 0.8, atol=2e-3)
    # A ball larger than the box is cut open by it, not closed with a lid.
    vertices, _ = polygonise(lattice, blocks_of(lambda p: 1.15 - p.norm(dim=1), lattice, 16), 16, -1.0)
    assert np.allclose(np.linalg.norm(vertices, axis=1), 1.15, atol=2e-3)


def test_no_surface_is_no_error() -> None:
    lattice = Lattice.over(BOX, 20)
    for value in (-0.5, 0.5, 0.0, np.nan):
        full = {(0, 0, 0): np.full((32, 32, 32), value, dtype=np.float32)}
        vertices, faces = polygonise(lattice, full, 32, float("nan"))
        assert vertices.shape == (0, 3) and faces.shape == (0, 3)
    assert len(polygonise(lattice, {}, 32, -1.0)[1]) == 0


def test_a_lattice_spans_its_box() -> None:
    lattice = Lattice.over(BOX, 24)
    assert lattice.shape == (21, 23, 25)
    last = torch.tensor([[0, 0, 0], [n - 1 for n in lattice.shape]])
    assert torch.allclose(lattice.points(last), BOX, atol=1e-6)
