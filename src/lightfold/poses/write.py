"""From a solution to a capture that trains: transforms.json with the points beside it."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from ..capture import Capture, Points
from ..errors import CaptureError
from ..files import whole_file
from ..footage.panorama import LAYOUTS, training_crops
from ..footage.shots import Footage
from ..formats import colmap, transforms
from .child import Progress
from .config import PoseConfig
from .job import fingerprint, stamp
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

    Where the pictures are copies of light in 8 bits, it names the light.
    Raises CaptureError when the model or its pictures are gone, RunError when the files cannot be written.
    """
    capture = read_model(footage, solution)
    if not capture.frames:
        raise CaptureError(f"The model {solution.model} has no picture of {footage.root}.")
    points = capture.points
    path = footage.root / "transforms.json"
    lights = {shot.name: footage.light(shot) for shot in footage.shots}
    frames = tuple(replace(frame, path=lights.get(frame.name) or frame.path) for frame in capture.frames)
    transforms.write(replace(capture, frames=frames, points=None if points is None else reliable(points)), path)
    return path


def write_crops(footage: Footage, solution: Solution, config: PoseConfig, progress: Progress | None = None) -> Path:
    """Write the capture to train on where `config.panoramas` asks for crops: ROOT/crops-8/transforms.json, with the
    perspective pictures and masks that it names. Returns the file; cuts nothing that is there already.

    The crops of one panorama share its place, so a crop to train on would give away a crop that is held out. Therefore
    the split is made here, between panoramas: every eighth is held out, as it would be of the panoramas themselves.

    Raises CaptureError when the folder is not this program's, or no panorama can be cut.
    """
    out = footage.root / config.panoramas
    layout = LAYOUTS[config.panoramas.removeprefix("crops-")]
    mark, path = out / "crops.json", out / "transforms.json"
    pictures = [(stamp(footage.image(shot)), stamp(footage.mask(shot))) for shot in footage.shots]
    inputs = fingerprint(
        layout.fov, layout.directions, config.crop_side, pictures, stamp(solution.model / "images.bin")
    )
    with suppress(OSError, ValueError, AttributeError):
        if json.loads(mark.read_text(encoding="utf-8")).get("made_from") == inputs and path.is_file():
            return path
    if out.exists() and any(out.iterdir()) and not mark.is_file():
        raise CaptureError(f"{out} holds files that were not put there by this program; move or delete it.")
    out.mkdir(parents=True, exist_ok=True)
    _mark(mark, "unfinished")
    for folder in ("images", "masks"):
        shutil.rmtree(out / folder, ignore_errors=True)
    whole = read_model(footage, solution)
    frames = tuple(
        replace(frame, split="test" if number % 8 == 0 else "train") for number, frame in enumerate(whole.frames)
    )
    points = None if whole.points is None else reliable(whole.points)
    cut = training_crops(replace(whole, frames=frames, points=points), out, layout, config.crop_side, progress)
    transforms.write(cut, path)
    _mark(mark, inputs)
    return path


def _mark(path: Path, made_from: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps({"made_from": made_from}), encoding="utf-8")


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
