"""Samples of a density field around its surface, and at which density that surface is.

A density field has no surface: nothing in its training says at which density matter begins, and a level that suits one
run is fog or a hole in the next. But its pictures say where things are. The level is therefore the one whose first
crossing along the rays of the training views agrees best with the rendered depth, found over a sample of rays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import RunError
from ..methods.base import HasDensity, HasOccupancy
from .blocks import Blocks, Lattice, block_samples
from .views import Progress, Seen, inside_box, surface_points, written_box

RAYS = 4096
"""Rays by which the level is chosen."""
REACH = 0.15
"""How far before and behind the rendered depth a surface is looked for, as a share of that depth."""
STEPS = 160
LEVELS = 48
FOLD = math.log(1e3)
"""Samples are logarithms of density over level, in units of this, cut off at -1 and 1."""
BLOCK = 32


# --- the level ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """density: per scene unit. error: median distance between the surface and the rendered depth, in scene units.
    hit: share of the rays that meet the surface near the rendered depth."""

    density: float
    error: float
    hit: float


@torch.no_grad()
def find_level(field: HasDensity, views: Sequence[Seen], box: Tensor, rays: int = RAYS) -> Level:
    """The density at which rays enter matter where the pictures say that it is.

    For each of some random rays towards surface points in the box [2, 3] that no edge disturbs, density is sampled
    around the rendered depth; for each candidate level, the first crossing gives a distance from that depth, and a ray
    without one counts the whole reach. The level with the least mean wins. Raises RunError when hardly a ray meets
    anything at any level.
    """
    points = surface_points(views, 4 * rays)
    points = points.select(inside_box(points.xyz, box))
    if len(points) == 0:
        raise RunError(f"No surface was found: none of the rendered depths lies in the box {written_box(box)}.")
    points = points.select(torch.linspace(0, len(points) - 1, min(rays, len(points))).long())
    origin = torch.stack([views[i].camera.center.float() for i in points.view.tolist()])
    along = points.xyz - origin
    depth = along.norm(dim=1)
    share = 1 + torch.linspace(-REACH, REACH, STEPS)
    samples = origin[:, None] + along[:, None] * share[:, None]
    density = field.density_at(samples.reshape(-1, 3)).reshape(len(points), STEPS)
    peak = density.amax(dim=1)
    if float((peak > 0).float().mean()) < 0.2:
        raise RunError(
            "No surface was found in the density field: it is empty where the pictures show surfaces. Train longer, or "
            "fuse rendered depth instead with --source fusion."
        )
    top = float(peak[peak > 0].quantile(0.75))
    best = Level(top, math.inf, 0.0)
    least = math.inf
    for level in torch.logspace(math.log10(top) - 3.5, math.log10(top), LEVELS).tolist():
        dense = density >= level
        first = dense.float().argmax(dim=1)
        crossed = dense.any(dim=1) & (first > 0)
        error = torch.where(crossed, (share[first] - 1).abs() * depth, REACH * depth)
        if float(error.mean()) < least:
            least = float(error.mean())
            best = Level(level, float(error.median()), float(crossed.float().mean()))
    return best


# --- samples --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def density_blocks(field: HasDensity, level: float, lattice: Lattice, progress: Progress | None = None) -> Blocks:
    """log(density / level) on the lattice, in the blocks that hold something: positive where denser than the level."""
    chosen = _occupied_blocks(field, level, lattice, progress)
    blocks: Blocks = {}
    for done, index in enumerate(chosen):
        if progress is not None and done % 8 == 0:
            progress("asking the density field", done, len(chosen))
        sigma = field.density_at(lattice.points(block_samples(index, BLOCK)))
        value = ((sigma.clamp(min=1e-12).log() - math.log(level)) / FOLD).clamp(-1, 1)
        if bool((value > -1).any()):
            blocks[index] = value.reshape(BLOCK, BLOCK, BLOCK).numpy().astype(np.float32)
    return blocks


def _occupied_blocks(
    field: HasDensity, level: float, lattice: Lattice, progress: Progress | None
) -> list[tuple[int, int, int]]:
    """Blocks that may hold something, by probes on a grid that no occupied cell slips through.

    A method that cannot tell is asked for its density itself, at every fourth sample.
    """
    side = BLOCK * lattice.spacing
    knowing = field if isinstance(field, HasOccupancy) else None
    pitch = 4 * lattice.spacing if knowing is None else 0.5 * knowing.cell
    axis = torch.linspace(0, BLOCK, max(2, 1 + math.ceil(side / pitch)), dtype=torch.float64)
    inner = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    grid = lattice.block_grid(BLOCK)
    every = torch.cartesian_prod(*(torch.arange(n) for n in grid))
    found: list[tuple[int, int, int]] = []
    together = max(1, (1 << 18) // len(inner))
    for done, part in enumerate(every.split(together)):
        if progress is not None:
            progress("looking for matter", done * together, len(every))
        points = lattice.points((part[:, None] * BLOCK + inner).reshape(-1, 3))
        probed = field.density_at(points) > 0.1 * level if knowing is None else knowing.occupied_at(points)
        hit = probed.reshape(len(part), -1).any(dim=1)
        found += [(i, j, k) for i, j, k in part[hit].tolist()]
    return found
