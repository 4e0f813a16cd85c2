"""What the training cameras see of a finished field: rendered colour and depth, by which what is exported is judged.

A method of any kind can render, so what is built on these views works for every method. They answer three questions
about a point: does a camera see a surface there, does a camera look straight through it, and what colour has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Camera
from ..errors import RunError
from ..refine import refined_cameras
from ..render import depth_of, normals_of

if TYPE_CHECKING:
    from ..methods.base import Method
    from ..scene import SceneInfo

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, in all)."""

SLACK = 0.01
"""Rendered depth is believed to this share of the distance: depths of a field scatter about so much."""
CHUNK = 1 << 18
"""Points that are looked at together."""
FLAT = 0.05
"""Neighbouring depths that differ by more than this share of the distance belong to different surfaces."""


@dataclass(frozen=True, eq=False)
class Seen:
    """One training camera and its rendering.

    camera: scene frame, of the size of the depth.
    index:  which of `SceneInfo.cameras` it is.
    rgb:    [H', W', 3] uint8, sRGB; of any size, as it is looked up by position and not by pixel.
    depth:  [H, W] distance along the ray in scene units, infinite where the ray meets nothing.
    nearest, farthest: [H, W] the same over each pixel and its eight neighbours: at an edge, both sides.
    normal: [H, W, 3] unit, in world axes, 0 where unknown.
    """

    camera: Camera
    index: int
    rgb: Tensor
    depth: Tensor
    nearest: Tensor
    farthest: Tensor
    normal: Tensor

    @property
    def size(self) -> Tensor:
        """[2] width and height of the camera's picture."""
        return torch.tensor([self.camera.width, self.camera.height])

    @property
    def flat(self) -> Tensor:
        """[H, W] bool: the pixel shows a surface, and no edge of one, where a depth may lie between two."""
        return self.farthest - self.nearest < FLAT * self.depth


def render_views(method: Method, count: int = 60, side: int = 400, progress: Progress | None = None) -> list[Seen]:
    """Renderings of at most `count` training views, evenly chosen, with at most `side` pixels on the longer side."""
    chosen, cameras = even_choice(method.info, count), refined_cameras(method)
    views = []
    for done, index in enumerate(chosen):
        if progress is not None:
            progress("rendering the training views", done, len(chosen))
        camera = cameras[index]
        shrink = min(1.0, side / max(camera.width, camera.height))
        camera = camera.resized(max(1, round(camera.width * shrink)), max(1, round(camera.height * shrink)))
        image = method.render(camera)
        # Where a pixel sees two surfaces, the median is one of them; fused, it makes truer meshes than the mean.
        depth = depth_of(image, "median_depth").float()
        depth = torch.where((image.alpha > 0.5) & (depth > 0), depth, torch.inf)
        normal = normals_of(image, camera)
        around = F.pad(depth[None], (1, 1, 1, 1), mode="replicate")
        views.append(
            Seen(
                camera=camera,
                index=index,
                rgb=(method.info.shown(image.rgb).clamp(0, 1) * 255).round().to(torch.uint8),
                depth=depth,
                nearest=-F.max_pool2d(-around, 3, stride=1)[0],
                farthest=F.max_pool2d(around, 3, stride=1)[0],
                normal=normal.float(),
            )
        )
    if not any(bool(view.depth.isfinite().any()) for view in views):
        raise RunError(
            "No surface was found: none of the training views shows anything opaque. Train longer, and look at "
            "`lightfold render RUN --path train --outputs rgb alpha`."
        )
    return views


def even_choice(info: SceneInfo, count: int) -> list[int]:
    """At most `count` training views, spread evenly over their order."""
    train = list(info.train)
    return [train[round(i)] for i in torch.linspace(0, len(train) - 1, min(count, len(train))).tolist()]


# --- surface points -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SurfacePoints:
    """Points [N, 3] in the scene frame with unit normals [N, 3], colours [N, 3] uint8, and who sees them [N]."""

    xyz: Tensor
    normal: Tensor
    rgb: Tensor
    view: Tensor

    def __len__(self) -> int:
        return len(self.xyz)

    def select(self, keep: Tensor) -> SurfacePoints:
        """Those where `keep` is True, or those that an index names."""
        return SurfacePoints(self.xyz[keep], self.normal[keep], self.rgb[keep], self.view[keep])


def surface_points(views: Sequence[Seen], count: int, seed: int = 0) -> SurfacePoints:
    """About `count` surface points of random pixels, drawn evenly over all views and away from edges of depth."""
    generator = torch.Generator().manual_seed(seed)
    usable = [(view.flat & (view.normal.norm(dim=-1) > 0.5)).reshape(-1).nonzero()[:, 0] for view in views]
    share = min(1.0, count / max(sum(len(pixels) for pixels in usable), 1))
    parts = []
    for number, (view, pixels) in enumerate(zip(views, usable, strict=True)):
        drawn = pixels[torch.randperm(len(pixels), generator=generator)[: round(share * len(pixels))]]
        if len(drawn) == 0:
            continue
        xy = torch.stack([drawn % view.camera.width, drawn // view.camera.width], dim=1) + 0.5
        rays = view.camera.rays(xy)
        xyz = rays.origin + rays.direction * view.depth.reshape(-1)[drawn, None]
        rgb = colours_at(view.rgb, xy / view.size).round().to(torch.uint8)
        parts.append(
            SurfacePoints(xyz.float(), view.normal.reshape(-1, 3)[drawn], rgb, torch.full((len(drawn),), number))
        )
    if not parts:
        raise RunError(
            "No surface was found: the rendered depth of the training views is all edges. Train longer, and look at "
            "`lightfold render RUN --path train --outputs rgb depth`."
        )
    columns = zip(*((p.xyz, p.normal, p.rgb, p.view) for p in parts), strict=True)
    return SurfacePoints(*(torch.cat(column) for column in columns))


def content_box(info: SceneInfo, views: Sequence[Seen]) -> Tensor:
    """[2, 3] lower and upper corner, in the scene frame, of what was captured: where cameras and content both say so.

    Content counts inside the scene's cube [-1, 1]^3 and, unless the scene is bounded by it, the box that holds the
    cameras. Beyond them, a field seen from one side only is no surface to keep.
    """
    box = torch.tensor([[-1.0] * 3, [1.0] * 3])
    if not info.bounded:
        centres = torch.stack([info.cameras[i].center.float() for i in info.train])
        box = torch.stack([torch.minimum(box[0], centres.amin(0)), torch.maximum(box[1], centres.amax(0))])
    xyz = surface_points(views, 200_000).xyz
    xyz = xyz[inside_box(xyz, box)]
    if len(xyz) < 100:
        return box
    ends = torch.quantile(xyz, torch.tensor([0.001, 0.999]), dim=0)
    margin = 0.02 * float((ends[1] - ends[0]).max())
    return torch.stack([torch.maximum(ends[0] - margin, box[0]), torch.minimum(ends[1] + margin, box[1])])


def inside_box(xyz: Tensor, box: Tensor) -> Tensor:
    """[N] bool: points [N, 3] that lie in a box [2, 3] of lower and upper corner."""
    return ((xyz >= box[0]) & (xyz <= box[1])).all(dim=1)


def written_box(box: Tensor) -> str:
    """The six numbers of a box [2, 3], for a sentence."""
    return " ".join(f"{value:.3g}" for value in box.reshape(-1).tolist())


# --- points and what the views say of them --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Observed:
    """What the views say of points.

    support: [N] how many views see a surface there.
    through: [N] how many look through it at something farther away.
    rgb:     [N, 3] float32 in [0, 255]: mean colour in the supporting views, the near and the frontal ones above all;
             NaN where there are none.
    """

    support: Tensor
    through: Tensor
    rgb: Tensor


def observe(
    points: Tensor, normals: Tensor | None, views: Sequence[Seen], slack: float, progress: Progress | None = None
) -> Observed:
    """Ask every view about points [N, 3] of the scene.

    normals: [N, 3] outward, or None. A surface is seen only by cameras on its outer side.
    slack: distance in scene units by which a point may lie off the rendered surface, besides `SLACK`.
    """
    count = len(points)
    support = torch.zeros(count, dtype=torch.int32)
    through = torch.zeros(count, dtype=torch.int32)
    rgb, weight = torch.zeros(count, 3), torch.zeros(count)
    parts = [slice(begin, min(begin + CHUNK, count)) for begin in range(0, count, CHUNK)]
    for done, view in enumerate(views):
        if progress is not None:
            progress("comparing with the training views", done, len(views))
        for part in parts:
            _ask(view, points[part], None if normals is None else normals[part], slack,
                 support[part], through[part], rgb[part], weight[part])  # fmt: skip
    rgb /= weight[:, None]
    return Observed(support, through, rgb)


def _ask(
    view: Seen, points: Tensor, normals: Tensor | None, slack: float,
    support: Tensor, through: Tensor, rgb: Tensor, weight: Tensor,
) -> None:  # fmt: skip
    """Add what one view says of some points to the four sums, in place."""
    xy, pixel, inside = pixels_of(view, points)
    at = inside.nonzero()[:, 0]
    xy, pixel, points = xy[at], pixel[at], points[at]
    towards = view.camera.center.float() - points
    distance = towards.norm(dim=1).clamp(min=1e-9)
    facing = torch.ones_like(distance)
    if normals is not None:
        facing = (normals[at] * towards).sum(dim=1) / distance
    tolerance = slack + SLACK * distance
    depth, nearest, farthest = (part.reshape(-1)[pixel] for part in (view.depth, view.nearest, view.farthest))
    # On one surface, however slanted, all between its neighbours' depths is on it; at an edge, what lies between the
    # two surfaces is on neither.
    between = (distance >= nearest - tolerance) & (distance <= farthest + tolerance) & view.flat.reshape(-1)[pixel]
    exact = (distance - depth).abs() <= tolerance
    beside = ((distance - nearest).abs() <= tolerance) | ((distance - farthest).abs() <= tolerance)
    seen = (facing > 0) & (between | exact | beside)
    support[at[seen]] += 1
    through[at[distance < nearest - tolerance]] += 1
    # A pixel at an edge shows one surface or the other: only the depth of its own middle says which.
    share = (facing.clamp(min=0.05) / distance).pow(4) * torch.where(exact, 1.0, 1e-3)
    at, xy, share = at[seen], xy[seen], share[seen]
    rgb[at] += share[:, None] * colours_at(view.rgb, xy / view.size)
    weight[at] += share


def pixels_of(view: Seen, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Image positions [N, 2] of points [N, 3], the pixel [N] each falls into, and whether it falls into the picture."""
    camera = view.camera
    xy, valid = camera.project(points.to(camera.cam_from_world.dtype))
    xy = xy.float()
    inside = valid & (xy >= 0).all(dim=1) & (xy[:, 0] < camera.width) & (xy[:, 1] < camera.height)
    column, row = xy[:, 0].long().clamp(0, camera.width - 1), xy[:, 1].long().clamp(0, camera.height - 1)
    return xy, row * camera.width + column, inside


def colours_at(picture: Tensor, at: Tensor) -> Tensor:
    """[N, 3] float32: colours of a picture [H, W, 3], bilinear between pixel centres, at places [N, 2] given as shares
    of its width and height, so that the picture may have any size."""
    grid = (2 * at - 1)[None, None].float()
    planes = picture.permute(2, 0, 1)[None].float()
    return F.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=False)[0, :, 0].T
