"""A dense workspace of COLMAP: pictures without distortion, their cameras, and rendered depth and normals.

    images/NAME.png                            photographs, or renderings where the photographs are gone
    sparse/*.bin                               their pinhole cameras, and surface points with the views that see them
    stereo/depth_maps/NAME.png.geometric.bin   z-depth in the frame's unit, 0 where unknown
    stereo/normal_maps/NAME.png.geometric.bin  unit normals in camera axes, towards the camera; 0 where unknown
    stereo/consistency_graphs/                 empty, as image_undistorter leaves it
    stereo/patch-match.cfg, fusion.cfg         which pictures those two programs are to work on

This is what COLMAP's patch_match_stereo, which needs a graphics card of one maker, leaves behind; so stereo_fusion and
whatever else begins there can go on. The layouts are those of COLMAP's documentation, "Output Format".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..cameras import Camera, Lens
from ..capture import Capture, Frame, Points
from ..errors import RunError
from ..files import whole_file
from ..formats import colmap
from ..geometry import Similarity
from ..paths import FISHEYE, PERSPECTIVE
from ..pictures import save_picture, to_uint8
from ..refine import refined_cameras
from ..render import depth_of, normals_of, unique_stems
from .points import extract_points
from .views import Progress, Seen, colours_at, observe

if TYPE_CHECKING:
    from ..methods.base import Method
    from ..scene import Scene

POINTS = 20_000
"""Surface points of the sparse model, by which COLMAP finds out which pictures overlap."""
SOURCES = 20
"""Neighbours that patch_match_stereo is told to choose for each picture."""


@torch.no_grad()
def write_dense(
    method: Method,
    views: Sequence[Seen],
    b_from_scene: Similarity,
    folder: Path,
    side: int | None = None,
    scene: Scene | None = None,
    progress: Progress | None = None,
) -> int:
    """Write a workspace with a picture for each of the views into a folder; returns the number of sparse points.

    b_from_scene: the frame of the cameras, points and depths. side: pixels on the longer side of the pictures; None:
    those of the training pictures. scene: where the photographs are; None: renderings take their place. Raises RunError
    for lenses that no pinhole can stand in for, when the field has no surface, and when a file cannot be written.
    """
    info = method.info
    names = [f"{stem}.png" for stem in unique_stems([info.names[view.index] for view in views])]
    taken = refined_cameras(method)
    cameras = [pinhole(taken[view.index], name, side) for view, name in zip(views, names, strict=True)]
    stereo = folder / "stereo"
    for done, (view, camera, name) in enumerate(zip(views, cameras, names, strict=True)):
        if progress is not None:
            progress("rendering depth maps", done, len(views))
        image = method.render(camera)
        normal = normals_of(image, camera)
        direction = camera.unproject(camera.pixel_grid()).reshape(camera.height, camera.width, 3)
        median = depth_of(image, "median_depth")
        known = (image.alpha > 0.5) & (median > 0)
        depth = torch.where(known, median * direction[..., 2] * b_from_scene.scale, 0.0)
        in_camera = normal.to(camera.cam_from_world) @ camera.cam_from_world[:, :3].T
        away = (in_camera * direction).sum(dim=-1, keepdim=True) > 0
        in_camera = torch.where(away, -in_camera, in_camera) * known[..., None]
        write_map(stereo / "depth_maps" / f"{name}.geometric.bin", depth.numpy())
        write_map(stereo / "normal_maps" / f"{name}.geometric.bin", in_camera.numpy())
        rgb = info.shown(image.rgb)
        if scene is not None:
            rgb = straightened(info.shown(scene.view(view.index).rgb), taken[view.index], camera)
        save_picture(folder / "images" / name, to_uint8(rgb))
    points = sparse_points(method, views, b_from_scene, progress)
    frames = [
        Frame(folder / "images" / name, camera.to(torch.float64).transformed(b_from_scene), name)
        for name, camera in zip(names, cameras, strict=True)
    ]
    colmap.write(Capture(folder, "colmap", tuple(frames), points=points), folder / "sparse")
    (stereo / "consistency_graphs").mkdir(parents=True, exist_ok=True)
    _write_text(stereo / "fusion.cfg", "".join(f"{name}\n" for name in names))
    _write_text(stereo / "patch-match.cfg", "".join(f"{name}\n__auto__, {SOURCES}\n" for name in names))
    return len(points)


def pinhole(camera: Camera, name: str, side: int | None = None) -> Camera:
    """The camera without its distortion, with at most `side` pixels on the longer side; of a fisheye, the middle 90
    degrees. Raises RunError for panoramas and orthographic cameras, naming the picture."""
    if camera.lens not in PERSPECTIVE + FISHEYE:
        raise RunError(
            f"A dense workspace holds pinhole cameras only, and {name} has the lens {camera.lens.value}; use "
            "--cameras-as transforms."
        )
    intrinsics = camera.intrinsics.clone()
    if camera.lens in FISHEYE:
        half = min(0.5 * float(camera.fov[0]), math.pi / 4)
        intrinsics[:2] = 0.5 * camera.width / math.tan(half)
    straight = replace(camera, intrinsics=intrinsics, distortion=camera.distortion.new_zeros(0), lens=Lens.PINHOLE)
    shrink = 1.0 if side is None else min(1.0, side / max(camera.width, camera.height))
    return straight.resized(max(1, round(camera.width * shrink)), max(1, round(camera.height * shrink)))


def straightened(picture: Tensor, camera: Camera, straight: Camera) -> Tensor:
    """A picture [H, W, 3] of one camera as another one at the same place would have taken it; black beyond its rim."""
    rays = straight.rays(straight.pixel_grid())
    xy, valid = camera.project((rays.origin + rays.direction).to(camera.cam_from_world))
    xy = xy.float()
    inside = valid & (xy >= 0).all(dim=1) & (xy[:, 0] <= camera.width) & (xy[:, 1] <= camera.height)
    rgb = colours_at(picture, xy / torch.tensor([camera.width, camera.height])) * inside[:, None]
    return rgb.reshape(straight.height, straight.width, 3)


def sparse_points(
    method: Method, views: Sequence[Seen], b_from_scene: Similarity, progress: Progress | None = None
) -> Points:
    """Surface points in frame b, with the views (counted in their order) that see them."""
    points = extract_points(method, POINTS, None, progress, list(views))
    point, frame = [], []
    for number, view in enumerate(views):
        seen = observe(points.xyz, points.normal, [view], 0.0).support.nonzero()[:, 0]
        point.append(seen)
        frame.append(torch.full_like(seen, number))
    return Points(b_from_scene.apply(points.xyz.double()), points.rgb, tracks=(torch.cat(point), torch.cat(frame)))


def write_map(path: Path, values: np.ndarray) -> None:
    """Write numbers [H, W] or [H, W, C] as COLMAP's maps: a header in text, then float32, channel after channel."""
    channels = np.atleast_3d(values)
    height, width, count = channels.shape
    with whole_file(path) as partial, partial.open("wb") as file:
        file.write(f"{width}&{height}&{count}&".encode("ascii"))
        file.write(np.ascontiguousarray(channels.transpose(2, 0, 1), dtype="<f4").tobytes())


def _write_text(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_bytes(text.encode("utf-8"))
