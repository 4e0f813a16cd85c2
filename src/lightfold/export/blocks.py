"""Surfaces from samples on a sparse lattice: only blocks near the surface exist, so that 512^3 fits into a laptop.

A block owns 32^3 (or any n^3) samples; every sample belongs to one block and is computed once. Marching cubes (Lewiner
et al. 2003, by scikit-image) runs block by block, each with the first samples of its neighbours. Both sides of a seam
therefore see the same numbers, and their vertices are the same because a vertex is known by the lattice edge that it
lies on, not by its position.

Samples are positive inside, negative outside, NaN where nothing is known. A cell with an unknown corner gets no
surface: what no camera saw stays a hole.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from skimage.measure import marching_cubes
from torch import Tensor

from .views import Progress

Index = tuple[int, int, int]

LEAST = 1e-3
"""Samples are kept this far from 0: a vertex within rounding of a lattice point could lie on any of six edges."""


@dataclass(frozen=True)
class Lattice:
    """Sample (i, j, k) lies at lower + spacing * (i, j, k); there are shape[0] x shape[1] x shape[2] of them."""

    lower: tuple[float, float, float]
    spacing: float
    shape: tuple[int, int, int]

    @staticmethod
    def over(box: Tensor, resolution: int) -> Lattice:
        """A lattice over a box [2, 3] with `resolution` cells along its longest side."""
        sides = (box[1] - box[0]).double()
        spacing = float(sides.max()) / resolution
        shape = [max(2, 1 + round(side / spacing)) for side in sides.tolist()]
        x, y, z = box[0].tolist()
        return Lattice((x, y, z), spacing, (shape[0], shape[1], shape[2]))

    def points(self, index: Tensor) -> Tensor:
        """Where samples [N, 3] (integers, or anything between) lie: [N, 3] float32."""
        return (torch.tensor(self.lower, dtype=torch.float64) + self.spacing * index.double()).float()

    def block_grid(self, size: int) -> Index:
        """How many blocks of `size` samples there are along each axis."""
        x, y, z = (-(-n // size) for n in self.shape)
        return x, y, z


Blocks = dict[Index, np.ndarray]
"""Block (i, j, k) holds samples [n, n, n] float32 from sample (i n, j n, k n) on."""


def block_samples(index: Index, size: int) -> Tensor:
    """[size^3, 3] lattice indices of a block's samples, the last axis running fastest."""
    axis = torch.arange(size)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    return grid + torch.tensor(index) * size


def polygonise(
    lattice: Lattice, blocks: Blocks, size: int, missing: float, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The surface where samples change sign: vertices [V, 3] float64 in the lattice's frame, faces [F, 3] int64.

    missing: what the samples of blocks that do not exist count as: -1 (empty) or NaN (unknown). Samples beyond the
    lattice are unknown. Faces turn counter-clockwise seen from outside. Both are empty where there is no surface.
    """
    keys: list[np.ndarray] = []
    places: list[np.ndarray] = []
    triangles: list[np.ndarray] = []
    total = 0
    # A cell belongs to the block of its lowest corner, and so may lie in a block that does not exist.
    steps = [(0, 0, 0)] if math.isnan(missing) else list(itertools.product((0, 1), repeat=3))
    indices = sorted(
        {(i - a, j - b, k - c) for i, j, k in blocks for a, b, c in steps if min(i - a, j - b, k - c) >= 0}
    )
    for done, index in enumerate(indices):
        if progress is not None and done % 16 == 0:
            progress("marching cubes", done, len(indices))
        found = _march(lattice, blocks, index, size, missing)
        if found is None:
            continue
        local, faces = found
        edge, place = _lattice_edges(local, np.array(index) * size, lattice.shape)
        # Vertices inside a cell (Lewiner's ambiguous cases) are on no edge, belong to one block, and get numbers < 0.
        inner = edge < 0
        edge[inner] = -1 - (total + np.flatnonzero(inner))
        keys.append(edge)
        places.append(place)
        triangles.append(faces + total)
        total += len(local)
    if not keys:
        return np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64)
    _, first, number = np.unique(np.concatenate(keys), return_index=True, return_inverse=True)
    faces = number[np.concatenate(triangles)]
    vertices = np.asarray(lattice.lower) + lattice.spacing * np.concatenate(places)[first]
    return vertices, faces.astype(np.int64)


def _march(
    lattice: Lattice, blocks: Blocks, index: Index, size: int, missing: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Vertices [V, 3] in samples from the block's first, and faces [F, 3]; None where there are none."""
    values = np.full((size + 1,) * 3, missing, dtype=np.float32)
    for step in itertools.product((0, 1), repeat=3):
        block = blocks.get((index[0] + step[0], index[1] + step[1], index[2] + step[2]))
        if block is not None:
            here = tuple(slice(size, None) if s else slice(0, size) for s in step)
            there = tuple(slice(0, 1) if s else slice(None) for s in step)
            values[here] = block[there]
    for axis in range(3):
        inside = lattice.shape[axis] - index[axis] * size
        np.moveaxis(values, axis, 0)[max(inside, 0) :] = np.nan
    known = np.isfinite(values)
    if not (values > 0).any() or not (values < 0).any():
        return None
    # scikit-image's mask tells of a cell by its last corner.
    cells = np.zeros_like(known)
    corners = [known[tuple(slice(1, None) if s else slice(None, -1) for s in step)]
               for step in itertools.product((0, 1), repeat=3)]  # fmt: skip
    cells[1:, 1:, 1:] = np.logical_and.reduce(corners)
    values = np.where(known, values, -1.0)
    values = np.copysign(np.clip(np.abs(values), LEAST, 1.0), values)
    try:
        vertices, faces, _, _ = marching_cubes(values, 0.0, gradient_direction="ascent", mask=cells)
    except RuntimeError:  # The only sign changes lie in cells that are masked out.
        return None
    return vertices, faces.astype(np.int64)


def _lattice_edges(local: np.ndarray, offset: np.ndarray, shape: Index) -> tuple[np.ndarray, np.ndarray]:
    """A number [V] for the lattice edge of each vertex, -1 inside a cell; and positions [V, 3] in samples, float64."""
    rounded = np.rint(local)
    whole = np.abs(local - rounded) < 0.25 * LEAST
    on_edge = whole.sum(axis=1) == 2
    corner = np.where(whole, rounded, np.floor(local)).astype(np.int64) + offset
    axis = np.argmin(whole, axis=1)
    number = ((corner[:, 0] * shape[1] + corner[:, 1]) * shape[2] + corner[:, 2]) * 3 + axis
    return np.where(on_edge, number, -1), local.astype(np.float64) + offset
