"""Samples of a method's signed distance, in the blocks that its surface may run through."""

from __future__ import annotations

import torch

from ..methods.base import HasDistance
from .blocks import Blocks, Lattice, block_samples
from .views import Progress

BLOCK = 32
TRUST = 2.0
"""A signed distance changes by no more than the way. Learnt ones are not exact: so many times that is allowed for."""
CUT = 8.0
"""Samples are cut off at so many spacings from the surface: marching cubes asks for signs, and for values near 0."""


@torch.no_grad()
def distance_blocks(method: HasDistance, lattice: Lattice, progress: Progress | None = None) -> Blocks:
    """The signed distance on the lattice, turned to positive inside, in the blocks that may hold a part of its zero.

    A block is asked at 27 points half a block apart. It stays unless all of them have one sign and are farther from the
    surface than any sample of the block is from the nearest of them.
    """
    axis = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64) * BLOCK
    probes = torch.cartesian_prod(axis, axis, axis)
    reach = TRUST * 0.25 * 3**0.5 * BLOCK * lattice.spacing
    every = torch.cartesian_prod(*(torch.arange(n) for n in lattice.block_grid(BLOCK)))
    chosen: list[tuple[int, int, int]] = []
    for done, part in enumerate(every.split(1 << 12)):
        if progress is not None:
            progress("looking for the surface", done << 12, len(every))
        points = lattice.points((part[:, None] * BLOCK + probes).reshape(-1, 3))
        distance = method.sdf_at(points).reshape(len(part), -1)
        low, high = distance.amin(dim=1), distance.amax(dim=1)
        chosen += [(i, j, k) for i, j, k in part[(low < reach) & (high > -reach)].tolist()]
    blocks: Blocks = {}
    for done, index in enumerate(chosen):
        if progress is not None and done % 8 == 0:
            progress("asking the signed distance", done, len(chosen))
        inside = -method.sdf_at(lattice.points(block_samples(index, BLOCK))) / (CUT * lattice.spacing)
        blocks[index] = inside.clamp(-1, 1).reshape(BLOCK, BLOCK, BLOCK).float().numpy()
    return blocks
