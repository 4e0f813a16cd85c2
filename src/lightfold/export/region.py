"""The sphere that holds what a capture is about, for formats that want one: NeuS, sdfstudio, instant-ngp.

NeuS's own script makes it from a point cloud that somebody has cleaned by hand. Here the cleaning is done by rules,
each tried when the one before knows nothing:

    a box that the user gives, or a sphere that the capture states
    silhouettes            the visual hull: cells of a grid that lie inside the masks of nearly all pictures
    a box that the capture states
    cameras all around     surface points that most pictures show and that lie well before the cameras, without
                           stragglers (Rusu et al. 2008: points far from their neighbours)
    otherwise              the region of interest in which training happens
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ..bounds import Content, find_region, reliable_points, rotation_to_up
from ..cameras import Camera
from ..capture import Capture, Frame, Points
from ..geometry import Similarity
from ..images import UNREADABLE, Progress, Resize, prepare
from ..scene import SceneConfig, load_scene

MARGIN = 1.1
"""The sphere's radius over that of what was found, which is never all of it."""
NEAREST_CAMERA = 0.9
"""No sphere about something that cameras surround reaches beyond this share of the way to the nearest of them."""
SHOWN_BY = 0.6
"""A point of the object is in at least this share of the pictures."""
INSIDE_MASKS = 0.9
"""A cell of the hull is inside the masks of at least this share of the pictures that show it."""
GRID = 64
MASK_SIDE = 400
LEAST_POINTS = 30
SPHERES = ("neus", "sdfstudio")
"""Formats that state a sphere, about which their readers put a box."""


@dataclass(frozen=True, eq=False)
class Sphere:
    """centre [3] float64 and radius in the capture's frame; camera_distance: of the median camera from the centre; and
    what it was found from, for people."""

    centre: Tensor
    radius: float
    camera_distance: float
    source: str

    @property
    def world_from_sphere(self) -> Similarity:
        """From the unit sphere to the capture's frame, with the same axes."""
        return Similarity(self.radius, torch.eye(3, dtype=torch.float64), self.centre)

    def moved(self, b_from_capture: Similarity) -> Sphere:
        """The same sphere in another frame."""
        scale = b_from_capture.scale
        centre = b_from_capture.apply(self.centre)
        return Sphere(centre, scale * self.radius, scale * self.camera_distance, self.source)


def surface_points(capture: Capture, progress: Progress | None = None) -> Points | None:
    """The capture's own points if there are enough of them, else those of a plane sweep over small pictures.

    None when a sweep finds none. Raises CaptureError when the pictures cannot be read.
    """
    if capture.points is not None and len(reliable_points(capture.points)) >= LEAST_POINTS:
        return capture.points
    with tempfile.TemporaryDirectory(prefix="lightfold-") as cache:
        # Without a box, which would spare the scene the search for points.
        unbounded = Capture(capture.root, capture.format, capture.frames)
        info = load_scene(unbounded, SceneConfig(max_side=MASK_SIDE, split="all"), Path(cache), progress).info
    if info.points is None or not len(info.points):
        return None
    return Points(info.scene_from_capture.inverse().apply(info.points.double()))


def sphere_of_interest(capture: Capture, points: Points | None, box: Tensor | None = None) -> Sphere:
    """The sphere by the rules at the top of this file.

    Args:
        capture: with at least one posed frame; its masks are read.
        points: surface points of the capture, or None.
        box: [2, 3] lower and upper corner that the user gives, in the capture's frame.

    Raises:
        CaptureError: the cameras are too few to say anything.
    """
    cameras = [frame.camera for frame in capture.frames if frame.camera is not None]
    if box is not None:
        return _about_box(box, cameras, "the box that was given")
    if capture.bounds is not None:
        inscribed = capture.format in SPHERES
        stated = _about_box(capture.bounds, cameras, "the box that the capture states", inscribed)
        hull = None if inscribed else _visual_hull(capture, stated.centre, stated.radius)
        return stated if hull is None else _about_points(hull, cameras, "the hull of the silhouettes")
    content = Content(torch.zeros(0, 3).double() if points is None else reliable_points(points), "surface points")
    region = find_region(cameras, content, rotation_to_up(cameras, "auto", capture.up))
    whole = _sphere(region.centre, region.half_side, cameras, f"the region of interest ({region.kind})")
    if region.kind != "object-centric":
        return whole
    nearest = min(float((camera.center - region.centre).norm()) for camera in cameras)
    hull = _visual_hull(capture, region.centre, NEAREST_CAMERA * nearest)
    if hull is not None:
        return _about_points(hull, cameras, "the hull of the silhouettes")
    shown = _shown_by_most(content.xyz, cameras, region.centre, NEAREST_CAMERA * nearest)
    if len(shown) < LEAST_POINTS:
        return _sphere(region.centre, 0.5 * nearest, cameras, "the cameras around it, for want of surface points")
    return _about_points(_without_stragglers(shown), cameras, f"{len(shown)} surface points that most pictures show")


def _sphere(centre: Tensor, radius: float, cameras: Sequence[Camera], source: str) -> Sphere:
    distance = torch.stack([(camera.center.double() - centre.double()).norm() for camera in cameras])
    return Sphere(centre.double(), radius, float(distance.median()), source)


def _about_box(box: Tensor, cameras: Sequence[Camera], source: str, inscribed: bool = False) -> Sphere:
    low, high = box.double()
    half = 0.5 * (high - low)
    return _sphere(0.5 * (low + high), float(half.max() if inscribed else half.norm()), cameras, source)


def _about_points(xyz: Tensor, cameras: Sequence[Camera], source: str) -> Sphere:
    """The sphere about the middle of the box of points, with a margin, that reaches no camera."""
    low, high = torch.quantile(xyz, torch.tensor([0.01, 0.99], dtype=xyz.dtype), dim=0)
    centre = 0.5 * (low + high)
    radius = MARGIN * float((xyz - centre).norm(dim=1).quantile(0.99))
    nearest = min(float((camera.center - centre).norm()) for camera in cameras)
    return _sphere(centre, min(radius, NEAREST_CAMERA * nearest), cameras, source)


def _shown_by_most(xyz: Tensor, cameras: Sequence[Camera], centre: Tensor, reach: float) -> Tensor:
    """Points [M, 3] within reach of the centre that lie in at least SHOWN_BY of the pictures."""
    xyz = xyz[(xyz - centre).norm(dim=1) <= reach]
    shown = torch.zeros(len(xyz), dtype=torch.float64)
    for camera in cameras:
        xy, valid = camera.project(xyz)
        shown += valid & (xy >= 0).all(1) & (xy[:, 0] <= camera.width) & (xy[:, 1] <= camera.height)
    return xyz[shown >= SHOWN_BY * len(cameras)]


def _without_stragglers(xyz: Tensor) -> Tensor:
    """Points whose mean distance to their 8 neighbours is not above the mean of all by two standard deviations."""
    distance = cKDTree(xyz.numpy()).query(xyz.numpy(), k=9)[0][:, 1:].mean(axis=1)
    return xyz[torch.from_numpy(distance <= distance.mean() + 2 * distance.std())]


def _visual_hull(capture: Capture, centre: Tensor, reach: float) -> Tensor | None:
    """Cells [M, 3] of a grid about the centre that lie inside nearly all silhouettes; None without any."""
    axis = torch.linspace(-reach, reach, GRID, dtype=torch.float64)
    cells = centre + torch.cartesian_prod(axis, axis, axis)
    shown = torch.zeros(len(cells), dtype=torch.int32)
    inside = torch.zeros(len(cells), dtype=torch.int32)
    found = 0
    for frame in capture.frames:
        silhouette = None if frame.camera is None else _silhouette(frame)
        if silhouette is None or frame.camera is None:
            continue
        found += 1
        height, width = silhouette.shape
        xy, valid = frame.camera.resized(width, height).project(cells)
        at = xy.floor().long()
        valid &= (at >= 0).all(1) & (at[:, 0] < width) & (at[:, 1] < height)
        seen = at[valid]
        shown[valid] += 1
        inside[valid] += torch.from_numpy(silhouette)[seen[:, 1], seen[:, 0]].to(torch.int32)
    hull = cells[(shown >= max(2, 0.5 * found)) & (inside >= INSIDE_MASKS * shown)]
    return hull if len(hull) >= 8 else None


def _silhouette(frame: Frame) -> np.ndarray | None:
    """[h, w] bool: where a small form of the picture is opaque, or within its mask; None when it says neither."""
    try:
        picture = prepare(frame, Resize(None, MASK_SIDE), None)
    except UNREADABLE:
        return None
    plane = picture.alpha if picture.alpha is not None else picture.mask if frame.mask is not None else None
    return None if plane is None or bool((plane > 127).all()) else plane > 127
