"""From a solution to a capture that trains: transforms.json with the points beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ..capture import Capture, Points
from ..errors import CaptureError
from ..footage.shots import Footage
from ..formats import colmap, transforms
from .solve import Solution

RELIABLE_ERROR = 2.0
"""Pixels of reprojection error up to which a point is kept, unless that is less than twice the median."""


def read_model(footage: Footage, solution: Solution) -> Capture:
    """The chosen model as a capture: frames in the order of the footage, points with tracks, z up."""
    capture = colmap.read(solution.model)
    order = {shot.name: i for i, shot in enumerate(footage.shots)}
    known = [i for i, frame in enumerate(capture.frames) if frame.name in order]
    capture = capture.select(sorted(known, key=lambda i: order[capture.frames[i].name]))
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    return replace(capture, root=footage.root, up=up, metric=solution.metric)


def write_capture(footage: Footage, solution: Solution) -> Path:
    """Write transforms.json, and the points worth keeping beside it, for the chosen model. Returns the file.

    Raises CaptureError when the model or its pictures are gone, RunError when the files cannot be written.
    """
    capture = read_model(footage, solution)
    if not capture.frames:
        raise CaptureError(f"The model {solution.model} has no picture of {footage.root}.")
    points = capture.points
    path = footage.root / "transforms.json"
    transforms.write(replace(capture, points=None if points is None else reliable(points)), path)
    return path


def reliable(points: Points) -> Points:
    """The points seen in three pictures or more with an ordinary error; all of them when these are too few.

    The tracks that tell good points from bad have no place in a point cloud, so the bad ones stay behind.
    """
    keep = torch.isfinite(points.xyz).all(dim=1)
    if points.tracks is not None:
        keep = keep & (torch.bincount(points.tracks[0], minlength=len(points)) >= 3)
    if points.error is not None and len(points):
        keep = keep & (points.error <= max(RELIABLE_ERROR, 2 * float(points.error.median())))
    if 3 * int(keep.sum()) < len(points):
        return points
    return Points(
        xyz=points.xyz[keep],
        rgb=None if points.rgb is None else points.rgb[keep],
        error=None if points.error is None else points.error[keep],
    )
