"""What a client sees, painted progressively: at once and coarse while the camera moves, then finer, then sharp.

A picture is refined without waste. Every slice of work renders the pixels of one sublattice, k columns and k rows
apart, which are the picture of a camera with a k times coarser sensor, shifted by less than a pixel. After 1, 4, 16 ...
slices the known pixels are a whole picture of 1/k, 2/k, 4/k ... of the resolution; after k^2 they are the picture
itself. So nothing is rendered twice, and whoever paints beside a training stops after any slice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import pictures
from ..cameras import Camera, Lens
from ..geometry import invert
from ..methods.base import Image
from ..rays import Box
from ..render import shown_output

PHOTO = "photo"
"""The output that shows the photograph, from where it was taken."""
MOVING = 0.1
"""Seconds that a picture may take while the camera moves."""
SLICE = 0.04
"""Seconds of one slice of work, about: what a camera that starts to move, or a training step, may have to wait."""
COARSEST = 48
"""Least pixels on the longer side of a picture while the camera moves."""


@dataclass(frozen=True, eq=False)
class Look:
    """From where, and what, a client wants to see.

    world_from_cam: [3, 4] scene frame, OpenCV axes. fov: vertical, radians. width, height: of the canvas, pixels.
    outputs: names of `render.OUTPUTS` or PHOTO: one, or two side by side. divider: the first's share of the width.
    depth_limits: nearest and farthest of the depth colours, scene units; None: of what is in sight.
    background: [3] colour behind everything, None for the scene's. crop: outside it nothing is shown.
    appearance: the photograph whose exposure is shown, where a method has learnt those; None: an average one's.
    """

    world_from_cam: Tensor
    fov: float
    width: int
    height: int
    outputs: tuple[str, ...] = ("rgb",)
    divider: float = 0.5
    depth_limits: tuple[float, float] | None = None
    background: Tensor | None = None
    crop: Box | None = None
    appearance: int | None = None

    def camera(self, width: int | None = None, height: int | None = None) -> Camera:
        """The pinhole camera, of the canvas's size or another."""
        w, h = width or self.width, height or self.height
        focal = 0.5 * h / math.tan(0.5 * self.fov)
        return Camera(
            cam_from_world=invert(self.world_from_cam.double()).float(),
            intrinsics=torch.tensor([focal * (w / h) / (self.width / self.height), focal, w / 2, h / 2]),
            distortion=torch.zeros(0),
            width=w,
            height=h,
            lens=Lens.PINHOLE,
        )


def sublattice(camera: Camera, stride: int, column: int, row: int) -> Camera:
    """The camera whose pixels are pixels (stride i + column, stride j + row) of a camera."""
    fx, fy, cx, cy = camera.intrinsics.unbind(-1)
    moved = [fx / stride, fy / stride, (cx - column - 0.5) / stride + 0.5, (cy - row - 0.5) / stride + 0.5]
    return Camera(
        cam_from_world=camera.cam_from_world,
        intrinsics=torch.stack(moved, dim=-1),
        distortion=camera.distortion,
        width=-(-(camera.width - column) // stride),
        height=-(-(camera.height - row) // stride),
        lens=camera.lens,
    )


def offsets(stride: int) -> list[tuple[int, int]]:
    """(column, row) of all sublattices, in such an order that the first 1, 4, 16 ... make coarser lattices whole."""
    order = [(0, 0)]
    step = stride // 2
    while step:
        order += [(x + dx, y + dy) for dx, dy in ((step, step), (step, 0), (0, step)) for x, y in order]
        step //= 2
    return order


@dataclass
class _Canvas:
    """The picture in the making; `known` slices of `order` are in it."""

    camera: Camera
    stride: int
    order: list[tuple[int, int]]
    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    normal: Tensor | None = None
    median_depth: Tensor | None = None
    known: int = 0

    def add(self, image: Image, column: int, row: int) -> None:
        at = slice(row, None, self.stride), slice(column, None, self.stride)
        self.rgb[at], self.alpha[at], self.depth[at] = image.rgb, image.alpha, image.depth
        if image.normal is not None:
            if self.normal is None:
                self.normal = torch.zeros_like(self.rgb)
            self.normal[at] = image.normal
        if image.median_depth is not None:
            if self.median_depth is None:
                self.median_depth = torch.zeros_like(self.depth)
            self.median_depth[at] = image.median_depth
        self.known += 1

    def whole(self) -> int | None:
        """The stride of the lattice that has just become whole, if one has."""
        root = math.isqrt(self.known)
        return self.stride // root if root * root == self.known and root & (root - 1) == 0 else None

    def picture(self, stride: int) -> tuple[Image, Camera]:
        """What is known at that stride."""
        at = slice(None, None, stride), slice(None, None, stride)
        normal = None if self.normal is None else self.normal[at]
        median = None if self.median_depth is None else self.median_depth[at]
        image = Image(self.rgb[at], self.alpha[at], self.depth[at], normal, median)
        return image, sublattice(self.camera, stride, 0, 0)


@dataclass
class Painter:
    """Paints for one client. `want` may be called from any thread; `paint` from one at a time."""

    render: Callable[[Camera, Look], Image]
    """The picture of a camera, with the look's background, crop and appearance."""
    photo: Callable[[Camera], Tensor | None] = lambda camera: None
    """[H, W, 3] the photograph as that camera would have taken it, where a photograph was taken from there."""
    most: int = 1024
    """Most pixels on the longer side of a sharp picture."""
    share: float = 1.0
    """Share of the time that painting gets, which makes coarse pictures coarser."""
    rate: float = 2e5
    """Pixels per second, as measured last."""
    _look: Look | None = None
    _moving: bool = False
    _canvas: _Canvas | None = None
    _shown: int = field(default=0, init=False)
    """Pixels of the last picture of this look."""

    def want(self, look: Look | None) -> None:
        """From now on, this; None: nothing."""
        self._look, self._moving = look, look is not None

    def again(self) -> None:
        """The field has changed: paint the same look anew, without going back to coarse pictures."""
        if self._look is not None and not self._moving and self._canvas is None:
            self._canvas, self._shown = self._begin(self._look), 0

    @property
    def waiting(self) -> bool:
        """Whether anything is left to paint."""
        return self._moving or self._canvas is not None

    @property
    def urgent(self) -> bool:
        """Whether the camera has moved since the last picture."""
        return self._moving

    def paint(self) -> np.ndarray | None:
        """One slice of work; a picture [h, w, 3] uint8 when there is a new one to show."""
        if self._moving:
            return self._coarse()
        if self._canvas is None or self._look is None:
            return None
        look, canvas = self._look, self._canvas
        column, row = canvas.order[canvas.known]
        canvas.add(self._timed(sublattice(canvas.camera, canvas.stride, column, row), look), column, row)
        stride = canvas.whole()
        if canvas.known == len(canvas.order):
            self._canvas = None
        if stride is None or self._moving:
            return None
        image, camera = canvas.picture(stride)
        # A picture that is hardly finer than the one on the screen is not worth its transport.
        if stride > 1 and camera.width * camera.height <= 1.5 * self._shown:
            return None
        self._shown = camera.width * camera.height
        return self._composed(image, camera, look)

    def _coarse(self) -> np.ndarray | None:
        """The whole picture, as fine as the time allows."""
        self._moving, look = False, self._look
        if look is None:
            return None
        width, height = self._full_size(look)
        pixels = max(self.rate * self.share * MOVING, 1.0)
        shrink = min(1.0, max((pixels / (width * height)) ** 0.5, COARSEST / max(width, height)))
        camera = look.camera(max(1, round(width * shrink)), max(1, round(height * shrink)))
        image = self._timed(camera, look)
        self._shown = camera.width * camera.height
        self._canvas = None if shrink == 1.0 else self._begin(look)
        return self._composed(image, camera, look)

    def _begin(self, look: Look) -> _Canvas:
        width, height = self._full_size(look)
        stride = 1
        while (
            stride < 16 and width * height / (stride * stride) > self.rate * SLICE and stride * 2 <= min(width, height)
        ):
            stride *= 2
        shape = (height, width)
        empty = torch.zeros(*shape, 3), torch.zeros(shape), torch.zeros(shape)
        return _Canvas(look.camera(width, height), stride, offsets(stride), *empty)

    def _full_size(self, look: Look) -> tuple[int, int]:
        shrink = min(1.0, self.most / max(look.width, look.height))
        return max(1, round(look.width * shrink)), max(1, round(look.height * shrink))

    def _timed(self, camera: Camera, look: Look) -> Image:
        start = time.perf_counter()
        image = self.render(camera, look)
        seconds = max(time.perf_counter() - start, 1e-6)
        self.rate += 0.3 * (camera.width * camera.height / seconds - self.rate)
        return image

    def _composed(self, image: Image, camera: Camera, look: Look) -> np.ndarray:
        """The outputs that are wanted, the first to the left of the divider."""
        parts = [self._output(image, camera, name, look) for name in look.outputs]
        if len(parts) == 1:
            return parts[0]
        divider = min(max(round(look.divider * camera.width), 0), camera.width)
        both = np.concatenate([parts[0][:, :divider], parts[1][:, divider:]], axis=1)
        both[:, max(divider - 1, 0) : divider + 1] = 255
        return both

    def _output(self, image: Image, camera: Camera, name: str, look: Look) -> np.ndarray:
        if name != PHOTO:
            return shown_output(image, camera, name, look.depth_limits)
        photo = self.photo(camera)
        # Where no photograph was taken from here, its side says so by being grey.
        return pictures.to_uint8(torch.full_like(image.rgb, 0.5) if photo is None else photo)


def seen_from_same_place(photo: Tensor, taken: Camera, camera: Camera) -> Tensor | None:
    """A photograph [H, W, 3] as a camera at the same place would have taken it, [h, w, 3]; grey outside its frame.

    Two pictures from one point differ by no parallax, so each pixel has its counterpart whatever the scene: lenses,
    directions and fields of view may differ. None when the camera stands elsewhere.
    """
    if float((taken.center.double() - camera.center.double()).norm()) > 1e-3:
        return None
    rays = camera.rays(camera.pixel_grid())
    xy, valid = taken.project(taken.center.to(rays.direction) + rays.direction)
    size = xy.new_tensor([taken.width, taken.height])
    inside = valid & ((xy >= 0) & (xy <= size)).all(dim=1)
    grid = (2 * xy / size - 1).reshape(1, camera.height, camera.width, 2).float()
    sampled = F.grid_sample(
        photo.permute(2, 0, 1)[None], grid, mode="bilinear", align_corners=False, padding_mode="border"
    )
    sampled = sampled[0].permute(1, 2, 0)
    return torch.where(inside.reshape(camera.height, camera.width, 1), sampled, torch.full_like(sampled, 0.5))
