"""What one picture shows, and another one that stands beside it should show and does not.

Two places that look alike in part (two doors of a corridor, the same machine in two halls) are easily taken for one.
Their pictures then match, the matches agree with the model, and what does not match, all that surrounds the doors, is
in nobody's way: it becomes points that only the pictures of one of the places see. It is this absence that betrays the
model (Zach, Irschara, Bischof 2008, "What can missing correspondences tell us about 3D structure and motion?"; Heinly,
Dunn, Frahm 2014, "Correcting for duplicate scene structure in sparse 3D reconstruction").

Pictures that stand beside each other hide little from each other, so the points of one are asked for in the other. That
some are not found again is normal, and they are spread over the picture. That whole regions have none in common is not.
On right models of real captures it is 0 to 20 % of the regions; with a place taken for another it is all but the copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..cameras import Camera, Lens

NEAR = 0.2
"""Beside each other: less than this share of the depth apart, and,"""
SAME_WAY = 15.0
"""but for panoramas, axes less than this many degrees apart."""
REGIONS = 8
"""Regions along the longer side of a picture; they are squares."""
REGION_POINTS = 5
"""Points that a region must have: so many are missed all together by chance once in thirty times."""
FEWEST_REGIONS = 8
"""Of both pictures together; fewer say nothing."""
MOST_PAIRS = 1000
"""Pairs that are asked, evenly spaced, where there are more."""


def absent_shares(
    pair: NDArray[np.int64],
    cameras: Sequence[Camera | None],
    depth: NDArray[np.float64],
    points: NDArray[np.float64],
    sees: NDArray[np.int64],
    seen: NDArray[np.int64],
) -> NDArray[np.float64]:
    """[L] of the regions in which one picture of a pair shows points that lie in the other too, the share in which the
    other sees none of them. NaN where pictures do not stand beside each other, or too little is to be asked.

    pair: [L, 2] numbers of pictures. cameras: of each picture, None without a pose. depth: [S] median distance of the
    points that a picture sees. points: [P, 3]. sees, seen: [M] each, picture and point of every observation.
    """
    absent = np.full(len(pair), math.nan)
    asked = np.flatnonzero([_beside(cameras[a], cameras[b], float(min(depth[a], depth[b]))) for a, b in pair])
    if len(asked) > MOST_PAIRS:
        asked = asked[np.linspace(0, len(asked) - 1, MOST_PAIRS).astype(np.int64)]
    own = {int(i): np.unique(seen[sees == i]) for i in np.unique(pair[asked])}
    for k in asked:
        a, b = (int(i) for i in pair[k])
        regions = empty = 0
        for other, first, second in ((cameras[b], own[a], own[b]), (cameras[a], own[b], own[a])):
            assert other is not None
            counts, shared = _by_region(other, points[first], np.isin(first, second, assume_unique=True))
            rich = counts >= REGION_POINTS
            regions += int(rich.sum())
            empty += int((shared[rich] == 0).sum())
        if regions >= FEWEST_REGIONS:
            absent[k] = empty / regions
    return absent


def _beside(first: Camera | None, second: Camera | None, depth: float) -> bool:
    if first is None or second is None or not math.isfinite(depth):
        return False
    if float((first.center - second.center).norm()) >= NEAR * depth:
        return False
    cosine = float((first.forward * second.forward).sum())
    return first.lens is Lens.EQUIRECTANGULAR or cosine > math.cos(math.radians(SAME_WAY))


def _by_region(
    camera: Camera, points: NDArray[np.float64], shared: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many of the points lie in each region of a picture, and how many of these are shared."""
    xy, valid = (tensor.numpy() for tensor in camera.project(torch.from_numpy(points)))
    inside = valid & (xy >= 0).all(axis=1) & (xy[:, 0] < camera.width) & (xy[:, 1] < camera.height)
    region = (xy[inside] * REGIONS // max(camera.width, camera.height)).astype(np.int64)
    number = region[:, 1] * REGIONS + region[:, 0]
    counts = np.bincount(number, minlength=REGIONS**2)
    return counts, np.bincount(number[shared[inside]], minlength=REGIONS**2)
