"""Rendered depth fused into a signed distance (Curless and Levoy 1996): a surface from whatever can be rendered.

Every view says of a point how far it lies in front of the depth in its pixel. Averaged over the views and cut off at a
short distance, that is a signed distance near the surface; points that no view says anything of stay unknown. Only
blocks near a rendered surface exist, as in voxel hashing (Niessner et al. 2013).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .blocks import Blocks, Index, Lattice, block_samples
from .views import Progress, Seen, pixels_of

BLOCK = 16
TRUNCATION = 4.0
"""Distance at which the signed distance is cut off, in samples; or SHARE of the camera's, where that is more."""
SHARE = 0.01


@torch.no_grad()
def fused_blocks(views: Sequence[Seen], lattice: Lattice, progress: Progress | None = None) -> Blocks:
    """Signed distance on the lattice, positive inside, in units of the truncation; NaN where no view says anything."""
    sums: dict[Index, Tensor] = {}
    weights: dict[Index, Tensor] = {}
    for done, view in enumerate(views):
        if progress is not None:
            progress("fusing rendered depth", done, len(views))
        touched = _touched(view, lattice)
        for start in range(0, len(touched), 64):
            _integrate(view, touched[start : start + 64], lattice, sums, weights)
    blocks: Blocks = {}
    for index, total in sums.items():
        weight = weights[index]
        value = torch.where(weight > 0, -total / weight, torch.nan)
        blocks[index] = value.reshape(BLOCK, BLOCK, BLOCK).numpy().astype(np.float32)
    return blocks


def _truncation(distance: Tensor, lattice: Lattice) -> Tensor:
    return (SHARE * distance).clamp(min=TRUNCATION * lattice.spacing)


def _touched(view: Seen, lattice: Lattice) -> list[Index]:
    """Blocks within the truncation of the surface that a view sees."""
    flat = view.flat.reshape(-1)
    rays = view.camera.rays(view.camera.pixel_grid()[flat])
    depth = view.depth.reshape(-1)[flat]
    reach = _truncation(depth, lattice)
    grid = torch.tensor(lattice.block_grid(BLOCK))
    found = []
    for share in (-1.0, -0.5, 0.0, 0.5, 1.0):
        points = rays.origin + rays.direction * (depth + share * reach)[:, None]
        index = (points.double() - torch.tensor(lattice.lower, dtype=torch.float64)) / (lattice.spacing * BLOCK)
        inside = ((index >= 0) & (index < grid)).all(dim=1)
        i, j, k = index[inside].long().unbind(1)
        found.append(torch.unique((i * grid[1] + j) * grid[2] + k))
    number = torch.unique(torch.cat(found))
    ij, k = number // grid[2], number % grid[2]
    return list(zip((ij // grid[1]).tolist(), (ij % grid[1]).tolist(), k.tolist(), strict=True))


def _integrate(
    view: Seen, touched: Sequence[Index], lattice: Lattice, sums: dict[Index, Tensor], weights: dict[Index, Tensor]
) -> None:
    """Add what a view says of the samples of some blocks."""
    samples = torch.cat([block_samples(index, BLOCK) for index in touched])
    points = lattice.points(samples)
    _, pixel, inside = pixels_of(view, points)
    distance = (points - view.camera.center.float()).norm(dim=1)
    depth = view.depth.reshape(-1)[pixel]
    reach = _truncation(depth, lattice)
    signed = depth - distance
    known = inside & view.flat.reshape(-1)[pixel] & (signed > -reach)
    value = torch.where(known, (signed / reach).clamp(max=1.0), 0.0)
    weight = known.float()
    for number, index in enumerate(touched):
        part = slice(number * BLOCK**3, (number + 1) * BLOCK**3)
        if index in sums:
            sums[index] += value[part]
            weights[index] += weight[part]
        else:
            sums[index], weights[index] = value[part].clone(), weight[part].clone()
