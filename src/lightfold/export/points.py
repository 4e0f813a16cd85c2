"""A point cloud of a run: surface points of rendered views, with colours and normals, stragglers removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ..errors import RunError
from .surface import confirmed
from .views import Progress, Seen, SurfacePoints, content_box, inside_box, observe, render_views, surface_points

if TYPE_CHECKING:
    from ..methods.base import Method

NEIGHBOURS = 16
SPREAD = 2.0
"""Points whose mean distance to their neighbours exceeds the mean by so many standard deviations are stragglers."""
SPARE = 1.5
"""Points drawn for each that is wanted; what is left over after the tests is dropped at random."""


def extract_points(
    method: Method,
    count: int = 500_000,
    box: Tensor | None = None,
    progress: Progress | None = None,
    views: list[Seen] | None = None,
) -> SurfacePoints:
    """At most `count` surface points in the scene frame, drawn evenly over the pixels of the training views.

    box: [2, 3] lower and upper corner in the scene frame; None: what was captured. A point stays when views agree on
    it, and when it has neighbours (statistical outlier removal, Rusu et al. 2008). There are fewer than `count` only
    where the pictures have too few pixels. Raises RunError when nothing is left.
    """
    views = render_views(method, progress=progress) if views is None else views
    box = content_box(method.info, views) if box is None else box
    # How many of all pixels lie in the box is found from a small draw, so that the large one is of the right size.
    small = surface_points(views, 50_000)
    share = float(inside_box(small.xyz, box).float().mean())
    if share == 0:
        raise RunError("No surface was found in the box: no rendered depth lies in it. Give another --box.")
    points = surface_points(views, int(SPARE * count / share))
    points = points.select(inside_box(points.xyz, box))
    seen = observe(points.xyz, points.normal, views, 0.0, progress)
    points = points.select(confirmed(seen))
    if progress is not None:
        progress("removing stragglers", 0, 1)
    points = points.select(torch.from_numpy(_with_neighbours(points.xyz.numpy())))
    if len(points) == 0:
        raise RunError("No surface was found on which the training views agree. Train longer, or give another --box.")
    chosen = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:count]
    return points.select(chosen.sort().values)


def _with_neighbours(xyz: np.ndarray) -> np.ndarray:
    """[N] bool: points whose mean distance to their nearest neighbours is not far above that of the others."""
    if len(xyz) <= NEIGHBOURS:
        return np.ones(len(xyz), dtype=bool)
    distance, _ = cKDTree(xyz).query(xyz, k=NEIGHBOURS + 1, workers=-1)
    mean = distance[:, 1:].mean(axis=1)
    return mean <= mean.mean() + SPREAD * mean.std()
