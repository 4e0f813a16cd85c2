"""A scene: pictures, cameras, split and frame, ready to be learnt from.

    capture -> [images] pixels on disk -> [bounds] frame and near planes -> Scene -> batches of pixels, or whole views

The scene frame is where all learning happens. Its cube [-1, 1]^3 holds the content (bounded) or the region of interest
(unbounded), its z axis is up, and `SceneInfo.scene_from_capture.inverse()` takes whatever is exported back to the
capture.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from . import bounds, colour
from .cameras import Camera, DirectionTable, Lens
from .capture import Capture, Frame
from .devices import CPU, exact, memory, sent
from .errors import CaptureError, ConfigError, LightfoldError
from .geometry import Similarity
from .images import UNREADABLE, Pictures, Progress, Resize, decode, load_pictures, read_depth, stored_size
from .light import holds_light, read_light
from .rays import Rays
from .split import split_names
from .sweep import lens_key, surface_points
from .window import Window

MAX_DIRECTIONS = 1 << 22
"""Pixel directions kept in memory, 16 bytes each, for all distinct lenses together."""
MAX_TABLES = 256
"""Distorted lenses that get a table of directions each; where there are more, each batch inverts its own pixels'."""
MEMORY_SHARE = 0.5
"""Share of the machine's memory beyond which decoded pictures count as too large for it."""
MAX_LISTED = 1 << 27
"""Pixels that are listed one by one where masks leave few."""
BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0)}
ORIENTATIONS = ("auto", "up", "pca", "none")
HDR = ("tonemap", "pq")
TABLES = (
    "_start", "_shift", "_width", "_view", "_near", "_origin", "_axes", "_intrinsics", "_parallel", "_every_direction",
    "_direction_start",
)  # fmt: skip
"""What `Scene.pixels` looks up for a pixel."""
EXPOSURE_VIEWS = 16
"""Pictures whose light is looked at to find an exposure."""


@dataclass(frozen=True)
class SceneConfig:
    """How a capture becomes a scene."""

    downscale: float | None = None
    """Divide the picture sizes by this factor, at least 1, or use the data set's own pictures of that size (images_4)
    where it has them. None: as `max_side` says."""
    subset: float | None = None
    """Use only so many of the capture's posed pictures, or below 1 this share of them, evenly spaced in its order.
    None: all."""
    max_side: int = 800
    """Shrink pictures whose longer side exceeds this many pixels; used when `downscale` is None."""
    split: str = "auto"
    """Which views are held out: "auto" (the capture's own lists, else every 8th), "every:N", "fraction:F" (share of
    views to train on), "all" (train on every view, test on every 8th of the same) or "file:PATH" (test names, one per
    line)."""
    orientation: str = "auto"
    """Which way is up: "auto" (what the capture states, else "up"), "up" (mean up of the cameras), "pca" (the direction
    in which the cameras spread least) or "none" (keep the capture's axes)."""
    background: str = "auto"
    """What evaluation puts behind transparent pixels: "auto" (the capture's custom, else black), "white" or "black"."""
    near: float | None = None
    """Distance from each camera, in scene units, before which there is nothing. None: found from the data."""
    hdr: str = "tonemap"
    """What becomes of light in floating-point pictures (EXR, .hdr): "tonemap" (exposure, sRGB's curve, 8 bits; what is
    brighter than white is white) or "pq" (every picture as light in PQ, 16 bits, up to a hundred times white)."""
    exposure: float | None = None
    """Factor on that light. None: 1, or for pictures that are much too dark or bright the power of two that fits."""
    memory_gb: float | None = None
    """Decoded pictures that take more than this many gigabytes are not drawn from all at once: a window of that size
    moves over all views. None: half of the machine's memory."""
    gpu_share: float = 0.25
    """Decoded pictures that take at most this share of a GPU's memory are kept there while it trains; others, and all
    of them with 0, stay in the machine's memory, and each batch is sent."""


@dataclass(frozen=True, eq=False)
class SceneInfo:
    """All that a method may know of a scene at construction; saved with the run as scene.json.

    bounded:    True: all content lies in the cube [-1, 1]^3. False: it goes on, the cube is the region of interest.
    cameras:    all views, single cameras (batch shape ()), scene frame, float32, at training resolution.
    names:      one per view.
    train, test: indices into `cameras`; disjoint unless the split is "all".
    near:       distance before which there is nothing, for any camera, in scene units.
    view_near:  the same per view, found from what that view sees.
    far:        distance behind which there is nothing; 1000 when unbounded.
    scene_from_capture: the frame change, inverse of what exports apply.
    points:     [N, 3] float32 surface points in the scene frame to start from (at most 20 000), or None.
    background: colour behind transparent pixels in evaluation; None for an opaque capture (composite on black).
    has_alpha:  some picture has transparent pixels.
    forward_facing: all cameras look the same way at content in front of all of them, so NDC applies.
    notes:      whole sentences: what was left out, what was assumed, and why.
    hdr_exposure: None for colours in sRGB. Else they are light in PQ (`colour`), which was multiplied by this before.
    """

    bounded: bool
    cameras: tuple[Camera, ...]
    names: tuple[str, ...]
    train: tuple[int, ...]
    test: tuple[int, ...]
    near: float
    view_near: tuple[float, ...]
    far: float
    scene_from_capture: Similarity
    points: Tensor | None = None
    background: tuple[float, float, float] | None = None
    has_alpha: bool = False
    forward_facing: bool = False
    notes: tuple[str, ...] = ()
    hdr_exposure: float | None = None

    def shown(self, rgb: Tensor) -> Tensor:
        """Colours as methods learn and render them -> sRGB in [0, 1]."""
        return rgb if self.hdr_exposure is None else colour.shown_code(rgb)

    def light(self, rgb: Tensor) -> Tensor:
        """Colours as methods learn and render them -> linear light in the units of the pictures, sRGB primaries."""
        if self.hdr_exposure is None:
            return colour.linear_from_srgb(rgb)
        return colour.light_of_code(rgb, self.hdr_exposure)

    def coded(self, srgb: Tensor) -> Tensor:
        """sRGB in [0, 1] -> the same colour as methods learn and render it."""
        if self.hdr_exposure is None:
            return srgb
        return colour.pq_from_light(colour.WHITE * colour.linear_from_srgb(srgb))

    def near_for(self, camera: Camera) -> float:
        """Near distance of a camera that need not be one of the views: from the seed points that it sees, else `near`.

        Where all views share one near plane, because it was set by hand or nothing is known, so does every camera.
        """
        if self.bounded or self.points is None or len(set(self.view_near)) == 1:
            return self.near
        distance = bounds.nearest_seen(camera, self.points)
        return self.near if distance is None else bounds.NEAR_SHARE * distance

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; points are rounded to 1e-5 scene units."""
        points = None if self.points is None else [[round(v, 5) for v in xyz] for xyz in self.points.tolist()]
        hdr = {} if self.hdr_exposure is None else {"hdr_exposure": self.hdr_exposure}
        return hdr | {
            "bounded": self.bounded,
            "cameras": [camera.to_dict() for camera in self.cameras],
            "names": list(self.names),
            "train": list(self.train),
            "test": list(self.test),
            "near": self.near,
            "view_near": list(self.view_near),
            "far": self.far,
            "scene_from_capture": self.scene_from_capture.to_dict(),
            "points": points,
            "background": None if self.background is None else list(self.background),
            "has_alpha": self.has_alpha,
            "forward_facing": self.forward_facing,
            "notes": list(self.notes),
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> SceneInfo:
        """The inverse of `to_dict`. Raises ValueError naming the first key that is missing or unknown."""
        known = set(SceneInfo.__dataclass_fields__)
        data = {"hdr_exposure": None} | data
        for key in sorted(known ^ set(data)):
            raise ValueError(f"scene info: {'missing' if key in known else 'unknown'} key '{key}'")
        background = data["background"]
        return SceneInfo(
            bounded=bool(data["bounded"]),
            cameras=tuple(Camera.from_dict(camera) for camera in data["cameras"]),
            names=tuple(data["names"]),
            train=tuple(data["train"]),
            test=tuple(data["test"]),
            near=float(data["near"]),
            view_near=tuple(float(near) for near in data["view_near"]),
            far=float(data["far"]),
            scene_from_capture=Similarity.from_dict(data["scene_from_capture"]),
            points=None if data["points"] is None else torch.tensor(data["points"], dtype=torch.float32).reshape(-1, 3),
            background=None if background is None else (background[0], background[1], background[2]),
            has_alpha=bool(data["has_alpha"]),
            forward_facing=bool(data["forward_facing"]),
            notes=tuple(data["notes"]),
            hdr_exposure=None if data["hdr_exposure"] is None else float(data["hdr_exposure"]),
        )


@dataclass(frozen=True)
class Pixels:
    """A batch of n pixels drawn from the training views.

    rays:  through the pixel centres, scene frame; `rays.view` indexes `SceneInfo.cameras`, `rays.near` is that view's.
    rgb:   [n, 3] float32 sRGB in [0, 1], straight (not multiplied by alpha).
    alpha: [n] float32 in [0, 1]; ones for an opaque capture.
    xy:    [n, 2] float32, pixel centres (+0.5).
    depth: [n] distance along the ray in scene units, 0 where unknown; None: no depth is drawn.
    """

    rays: Rays
    rgb: Tensor
    alpha: Tensor
    xy: Tensor
    depth: Tensor | None = None

    def to(self, device: torch.device) -> Pixels:
        """On another device."""
        if self.rgb.device == device:
            return self
        there = {name: sent(getattr(self, name), device) for name in ("rgb", "alpha", "xy")}
        rays = Rays(**{field.name: sent(getattr(self.rays, field.name), device) for field in fields(Rays)})
        return Pixels(rays, **there, depth=None if self.depth is None else sent(self.depth, device))


@dataclass(frozen=True)
class View:
    """A whole picture with its camera.

    rgb [H, W, 3] and alpha [H, W] as in `Pixels`; mask [H, W] bool, True where the pixel counts in losses and metrics;
    depth [H, W] z-depth in scene units, 0 where unknown, or None when the capture has no depth for this view.
    """

    camera: Camera
    rgb: Tensor
    alpha: Tensor
    mask: Tensor
    name: str
    index: int
    depth: Tensor | None = None


class Scene:
    """Pixels and views of a capture. Made by `load_scene`; holds the cache mapped, so it costs little memory."""

    def __init__(
        self, info: SceneInfo, pictures: Pictures, frames: Sequence[Frame], memory_gb: float | None = None
    ) -> None:
        """`pictures` and `frames` run parallel to `info.cameras`; `memory_gb` as in `SceneConfig`.

        Raises CaptureError if masks leave no pixel to train on.
        """
        self.info = info
        self._pictures = pictures
        self._frames = tuple(frames)
        self._z_depth: Tensor | None = None
        self._host: Scene | None = None
        """The scene on the CPU, where this one is its likeness on a device (see `on`)."""
        self._there = CPU
        cameras = [info.cameras[i] for i in info.train]
        count = torch.tensor([camera.width * camera.height for camera in cameras])
        # Training pixels are numbered 0 .. total - 1, view after view, whatever lies between them in the file.
        self._start = torch.cat([torch.zeros(1, dtype=torch.int64), count.cumsum(0)])
        self._total = int(self._start[-1])
        self._equal = int(count[0]) if bool((count == count[0]).all()) else None
        self._shift = torch.tensor([pictures.offset[i] for i in info.train]) - self._start[:-1]
        self._width = torch.tensor([camera.width for camera in cameras])
        self._same_width = cameras[0].width if bool((self._width == cameras[0].width).all()) else None
        self._view = torch.tensor(info.train)
        self._near = torch.tensor([info.view_near[i] for i in info.train], dtype=torch.float32)
        self._origin = torch.stack([camera.center.double() for camera in cameras]).float()
        self._axes = torch.stack([camera.cam_from_world[:, :3] for camera in cameras]).float()
        self._set_lenses(cameras)
        self._set_mask(memory_gb)

    def _set_lenses(self, cameras: list[Camera]) -> None:
        """Directions of every pixel for each distinct lens, where they fit into memory; else a table for each lens."""
        keys = [lens_key(camera) for camera in cameras]
        first: dict[tuple[object, ...], int] = {}
        for slot, key in enumerate(keys):
            first.setdefault(key, slot)
        position = {key: index for index, key in enumerate(first)}
        lenses = [cameras[slot] for slot in first.values()]
        lens = torch.tensor([position[key] for key in keys])
        count = torch.tensor([camera.width * camera.height for camera in lenses])
        self._intrinsics = torch.stack([camera.intrinsics for camera in cameras]).float()
        self._parallel = torch.tensor([camera.lens is Lens.ORTHOGRAPHIC for camera in cameras])
        self._any_parallel = bool(self._parallel.any())
        self._pinholes = all(camera.lens in (Lens.PINHOLE, Lens.SIMPLE_PINHOLE) for camera in cameras)
        self._every_direction: Tensor | None = None
        self._direction_start: Tensor | None = None
        self._lens, self._tables = lens, []
        self._alike: list[tuple[Tensor, Camera]] = []
        if int(count.sum()) <= MAX_DIRECTIONS:
            self._every_direction = torch.cat([_every_direction(camera) for camera in lenses])
            self._direction_start = (count.cumsum(0) - count)[lens]
        elif self._pinholes:
            pass  # Their formula is shorter than a look into a table.
        elif len(lenses) > MAX_TABLES:
            self._alike = _alike(cameras)
        else:
            # Together they stay near MAX_DIRECTIONS; below 2^14 knots each, interpolation would lose precision.
            knots = max(1 << 14, MAX_DIRECTIONS // len(lenses))
            self._tables = [DirectionTable(camera, knots) for camera in lenses]

    def _set_mask(self, memory_gb: float | None) -> None:
        """How valid pixels are drawn: by rejection where most are valid, from a list of them where few are; and from
        all views, or from a window of them where all do not fit into memory."""
        self._kept, self._allowed, self._window = 1.0, None, None
        pictures, train = self._pictures, self.info.train
        mask, offset = pictures.mask, pictures.offset
        count = self._start[1:] - self._start[:-1]
        if mask is not None:
            count = torch.tensor([int(torch.count_nonzero(mask[offset[i] : offset[i + 1]])) for i in train])
            self._kept = int(count.sum()) / self._total
            if self._kept == 0:
                raise CaptureError("The masks leave no pixel of any training view; are they inverted?")
        memory = MEMORY_SHARE * psutil.virtual_memory().total if memory_gb is None else 1e9 * memory_gb
        if self._total * pictures.bytes_per_pixel > memory:
            slots = count.nonzero()[:, 0]
            size = self._start[1:] - self._start[:-1]
            most = int(memory / pictures.bytes_per_pixel)
            self._window = Window(slots, self._start[slots], size[slots], most)
        elif mask is not None and self._kept < 0.25 and int(count.sum()) <= MAX_LISTED:
            # A quarter of the pixels at four bytes is no more than the mask itself.
            number = torch.int32 if self._total < 2**31 else torch.int64
            valid = [torch.nonzero(mask[offset[i] : offset[i + 1]])[:, 0] for i in train]
            pieces = [(index + start).to(number) for index, start in zip(valid, self._start.tolist(), strict=False)]
            self._allowed = torch.cat(pieces)

    def on(self, device: torch.device, share: float = 0.0) -> Scene:
        """The same scene, whose batches come on a device: the same pixels for the same generator, wherever that is.

        share: of the device's memory that its pictures may take; where they are larger, they stay, and each batch's
        colours are sent. Whole views come on the CPU as ever.
        """
        if device == CPU:
            return self
        placed = copy(self)
        placed._host, placed._there = self, device
        for name in TABLES:
            table = getattr(self, name)
            setattr(placed, name, None if table is None else table.to(exact(device)))
        pictures, room = self._pictures, memory(device) or 0
        planes = [plane for plane in (pictures.rgb, pictures.alpha) if plane is not None]
        # PyTorch's kernels for 16 unsigned bits, in which light is kept, are few.
        usable = self._window is None and pictures.rgb.dtype == torch.uint8 and exact(device) == device
        if usable and sum(plane.nbytes for plane in planes) <= share * room:
            alpha = None if pictures.alpha is None else pictures.alpha.to(device)
            placed._pictures = replace(pictures, rgb=pictures.rgb.to(device), alpha=alpha)
        return placed

    @property
    def _source(self) -> Scene:
        return self if self._host is None else self._host

    @property
    def holds_pictures(self) -> bool:
        """Whether the pictures are where the batches come."""
        return self._pictures.rgb.device == self._there

    # -- batches of pixels ---------------------------------------------------------------------------------------------

    def pixels(self, n: int, rng: torch.Generator, depth: bool = False) -> Pixels:
        """n pixels drawn evenly, with replacement, from all unmasked pixels of all training views.

        Where the pictures do not fit into memory, from those of a window of the views (`window`). The draw depends on
        the generator alone. This is the training loop's hot path: no loop over views or pixels.
        With `depth`, measured distances come along where the capture has any; the first call reads them all.
        """
        # Drawn on the CPU, whose generator gives the same numbers on every machine.
        drawn = self._source._draw(n, rng)
        number = sent(drawn, self._start.device)
        slot, pixel, xy = self._places(number)
        row = number + self._shift.index_select(0, slot)
        if self._source is self or self._every_direction is not None or self._pinholes:
            in_cam, radius = self._directions(slot, pixel, xy)
        else:  # Lenses that have tables, and take them in turns: on the CPU, which need not ask where its pixels are.
            found = self._source._directions(*self._source._places(drawn))
            in_cam, radius = (sent(t, xy.device) for t in found)
        axes = self._axes.index_select(0, slot)
        # Rows of cam_from_world are the camera's axes in the world: three multiply-adds beat a batch of tiny products.
        direction = axes[:, 0] * in_cam[:, :1]
        direction.addcmul_(axes[:, 1], in_cam[:, 1:2]).addcmul_(axes[:, 2], in_cam[:, 2:3])
        origin = self._origin.index_select(0, slot)
        if self._any_parallel:
            intrinsics = self._intrinsics[slot]
            on_plane = (xy - intrinsics[:, 2:]) / intrinsics[:, :2] * self._parallel[slot, None]
            origin = origin + axes[:, 0] * on_plane[:, :1] + axes[:, 1] * on_plane[:, 1:]
        far = torch.full((n,), self.info.far, device=xy.device)
        rays = Rays(origin, direction, radius, self._near.index_select(0, slot), far, self._view.index_select(0, slot))
        if self._pictures.rgb.device != row.device:
            row = self._source._row(drawn)
        alpha = self._pictures.opacities(row, xy.device)
        return Pixels(
            rays=rays,
            rgb=self._pictures.colours(row, xy.device),
            alpha=torch.ones(n, device=xy.device) if alpha is None else alpha,
            xy=xy,
            depth=self._distance(drawn, in_cam) if depth else None,
        ).to(self._there)

    def _distance(self, number: Tensor, in_cam: Tensor) -> Tensor | None:
        """Measured distances [n] along rays of directions `in_cam` [n, 3], 0 where unknown; the numbers on the CPU."""
        if self._z_depth is None:
            if all(self._frames[i].depth is None for i in self.info.train):
                return None
            self._z_depth = self._all_depths()
        z = sent(self._z_depth.index_select(0, number).float(), in_cam.device)
        # z-depth says nothing about a direction that looks sideways.
        forward = in_cam[:, 2]
        return torch.where((z > 0) & z.isfinite() & (forward > 0.05), z / forward.clamp(min=0.05), 0.0)

    def _all_depths(self) -> Tensor:
        """z-depths of all training pixels, in a file without a name: for thousands of views they are gigabytes."""
        try:
            with tempfile.TemporaryFile(dir=self._pictures.path.parent) as file:
                for index in self.info.train:
                    camera, depth = self.info.cameras[index], self._depth(index)
                    depth = torch.zeros(camera.height, camera.width) if depth is None else depth
                    # Half precision resolves a thousandth of the distance, which no sensor does, in half the memory.
                    file.write(depth.half().numpy().tobytes())
                file.flush()
                return torch.from_numpy(np.memmap(file, dtype=np.float16, mode="r+"))
        except OSError as error:
            raise LightfoldError(
                f"The depths cannot be written beside {self._pictures.path}: {error.strerror or error}."
            ) from error

    def _draw(self, n: int, rng: torch.Generator) -> Tensor:
        """[n] numbers of training pixels that no mask excludes."""
        if self._allowed is not None:
            return self._allowed[torch.randint(len(self._allowed), (n,), generator=rng)].long()
        if self._window is not None:
            for slot in self._window.entering(rng.initial_seed()):
                self._pictures.read_ahead(self.info.train[slot])
        if self._kept == 1.0:
            return self._any(n, rng)
        assert self._pictures.mask is not None
        found = torch.zeros(0, dtype=torch.int64)
        while len(found) < n:  # Nearly always one pass: it draws three standard deviations more than are needed.
            missing = n - len(found)
            tries = min(int(missing / self._kept + 3 * math.sqrt(missing) / self._kept + 16), max(n, 1 << 22))
            number = self._any(tries, rng)
            found = torch.cat([found, number[self._pictures.mask[self._row(number)] > 0]])
        return found[:n]

    def _any(self, n: int, rng: torch.Generator) -> Tensor:
        """[n] numbers of training pixels, masked or not."""
        if self._window is not None:
            return self._window.draw(n, rng)
        return torch.randint(self._total, (n,), generator=rng)

    def _slot(self, number: Tensor) -> Tensor:
        """Which training view a pixel number belongs to, as a position in `info.train`."""
        if self._equal is not None:
            return torch.div(number, self._equal, rounding_mode="floor")
        return torch.searchsorted(self._start, number, right=True) - 1

    def _places(self, number: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The training views that pixels belong to [n], as positions in `info.train`, where they come within their view
        [n], and their centres there, xy [n, 2]."""
        slot = self._slot(number)
        pixel = number - self._start.index_select(0, slot)
        width = self._width[slot] if self._same_width is None else self._same_width
        y = torch.div(pixel, width, rounding_mode="floor")
        x = pixel - y * width
        return slot, pixel, torch.stack([x, y], dim=-1).to(torch.float32).add_(0.5)

    def _row(self, number: Tensor) -> Tensor:
        """Where in the file pixels lie."""
        return number + self._shift.index_select(0, self._slot(number))

    def _directions(self, slot: Tensor, pixel: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
        """Unit directions [n, 3] in camera axes and cone radii [n]; `pixel` counts within its view."""
        if self._every_direction is not None:
            assert self._direction_start is not None
            found = self._every_direction.index_select(0, pixel + self._direction_start.index_select(0, slot))
            return found[:, :3], found[:, 3].contiguous()
        if self._pinholes:
            intrinsics = self._intrinsics.index_select(0, slot)
            plane = (xy - intrinsics[:, 2:]) / intrinsics[:, :2]
            depth = (plane.square().sum(-1) + 1).rsqrt()
            direction = torch.cat([plane * depth[:, None], depth[:, None]], dim=-1)
            return direction, depth * intrinsics[:, :2].abs().reciprocal().sum(-1) / math.sqrt(12)
        direction, radius = xy.new_empty(len(xy), 3), xy.new_empty(len(xy))
        for place, cameras in self._alike:
            chosen = (place[slot] >= 0).nonzero()[:, 0]
            if len(chosen):
                rays = cameras[place[slot[chosen]]].rays(xy[chosen, None].double())
                direction[chosen], radius[chosen] = rays.direction.float(), rays.radius.float()
        if self._alike:
            return direction, radius
        lens = self._lens[slot]
        for index, table in enumerate(self._tables):
            chosen = (lens == index).nonzero()[:, 0]
            if len(chosen):
                x, y = xy[chosen].long().unbind(-1)
                direction[chosen], radius[chosen] = table(x, y)
        return direction, radius

    # -- whole views ---------------------------------------------------------------------------------------------------

    def view(self, index: int) -> View:
        """One whole picture, training or held out. Depth is read from its file at this moment.

        Raises ValueError on an index that is no view, CaptureError if its depth cannot be read.
        """
        if not 0 <= index < len(self.info.cameras):
            raise ValueError(f"index: expected 0..{len(self.info.cameras) - 1}, got {index}")
        camera, pictures = self.info.cameras[index], self._source._pictures
        rows = slice(pictures.offset[index], pictures.offset[index + 1])
        shape = (camera.height, camera.width)
        count = rows.stop - rows.start
        alpha = pictures.opacities(rows)
        mask = torch.ones(count, dtype=torch.bool) if pictures.mask is None else pictures.mask[rows] > 0
        return View(
            camera=camera,
            rgb=pictures.colours(rows).reshape(*shape, 3),
            alpha=torch.ones(shape) if alpha is None else alpha.reshape(shape),
            mask=mask.reshape(shape),
            name=self.info.names[index],
            index=index,
            depth=self._depth(index),
        )

    def _depth(self, index: int) -> Tensor | None:
        frame, camera = self._frames[index], self.info.cameras[index]
        if frame.depth is None:
            return None
        try:
            return read_depth(frame, camera.width, camera.height) * self.info.scene_from_capture.scale
        except UNREADABLE as error:
            raise CaptureError(f"The depth of {frame.name} cannot be read from {frame.depth}: {error}.") from error


def _alike(cameras: list[Camera]) -> list[tuple[Tensor, Camera]]:
    """Cameras that one batch can hold, put together: (where each of all cameras is in the batch, or -1; the batch).

    They stand at the origin and are not turned, so their rays are in camera axes.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for slot, camera in enumerate(cameras):
        of_size = (camera.width, camera.height) if camera.lens is Lens.EQUIRECTANGULAR else ()
        groups.setdefault((camera.lens, *of_size), []).append(slot)
    found = []
    for slots in groups.values():
        place = torch.full((len(cameras),), -1)
        place[slots] = torch.arange(len(slots))
        some = cameras[slots[0]]
        batch = Camera(
            cam_from_world=torch.eye(3, 4, dtype=torch.float64).expand(len(slots), 3, 4),
            intrinsics=torch.stack([cameras[slot].intrinsics for slot in slots]).double(),
            distortion=torch.stack([cameras[slot].distortion for slot in slots]).double(),
            width=some.width,
            height=some.height,
            lens=some.lens,
        )
        found.append((place, batch))
    return found


def _every_direction(camera: Camera) -> Tensor:
    """[H * W, 4] float32: the direction in camera axes and the cone radius of every pixel."""
    table = DirectionTable(camera)
    x = torch.arange(camera.width).repeat(camera.height)
    y = torch.arange(camera.height).repeat_interleave(camera.width)
    pieces = [table(*index) for index in zip(x.split(1 << 18), y.split(1 << 18), strict=True)]
    return torch.cat([torch.cat([direction, radius[:, None]], dim=-1) for direction, radius in pieces])


# --- from a capture to a scene -------------------------------------------------------------------------------------


def load_scene(capture: Capture, config: SceneConfig, cache_dir: Path, progress: Progress | None = None) -> Scene:
    """A capture's posed pictures, decoded, split, and moved to the scene frame.

    The first call decodes every picture into `cache_dir`; later ones with the same pictures and sizes start at once.

    Args:
        progress: called with (what is being done, done, total).

    Raises:
        CaptureError: no poses, or fewer than two training views can be read.
        ConfigError: an option has a value that means nothing.
        LightfoldError: the cache folder cannot be written.
    """
    check_config(config)
    capture = capture.posed()
    if not capture.frames:
        raise CaptureError(f"No picture of {capture.root} has a camera pose; find the poses first.")
    capture, chosen_note = _chosen(capture, config.subset)
    frames = sorted(capture.frames, key=lambda frame: frame.name)
    train_names, test_names, split_note = split_names(frames, config.split)
    frames = [frame for frame in frames if frame.name in train_names or frame.name in test_names]
    frames, resize, copies_note = _of_size(frames, config)
    tone, tone_note = _tone(frames, config)
    pictures = load_pictures(frames, resize, capture.fisheye_crop_radius, cache_dir, progress, tone)
    frames = [frames[i] for i in pictures.frame]
    train = tuple(i for i, frame in enumerate(frames) if frame.name in train_names)
    test = tuple(i for i, frame in enumerate(frames) if frame.name in test_names)
    if len(train) < 2:
        lost = f" {pictures.dropped[0]}" if pictures.dropped else ""
        raise CaptureError(f"{capture.root} leaves {len(train)} picture(s) to train on, and two are the least.{lost}")
    cameras = [
        frame.camera.resized(*size)
        for frame, size in zip(frames, pictures.sizes, strict=True)
        if frame.camera is not None
    ]
    if progress is not None:
        progress("finding near planes", 0, 1)
    placed = bounds.place(capture, cameras, train, config.orientation, lambda: surface_points(cameras, train, pictures))
    views = len(frames)
    info = SceneInfo(
        bounded=placed.bounded,
        cameras=tuple(camera.transformed(placed.scene_from_capture).to(torch.float32) for camera in cameras),
        names=tuple(frame.name for frame in frames),
        train=train,
        test=test,
        near=placed.near if config.near is None else config.near,
        view_near=placed.view_near if config.near is None else (config.near,) * views,
        far=placed.far,
        scene_from_capture=placed.scene_from_capture,
        points=placed.points,
        background=_background(capture, config, pictures),
        has_alpha=pictures.alpha is not None,
        forward_facing=placed.forward_facing,
        notes=(*capture.notes, *chosen_note, *pictures.dropped, *split_note, *copies_note, *tone_note, *placed.notes),
        hdr_exposure=tone.exposure if tone is not None and tone.pq else None,
    )
    if progress is not None:
        progress("finding near planes", 1, 1)
    return Scene(info, pictures, frames, config.memory_gb)


def _chosen(capture: Capture, subset: float | None) -> tuple[Capture, tuple[str, ...]]:
    """The pictures of the capture that are used, and what to say of it."""
    if subset is None:
        return capture, ()
    chosen = capture.evenly(subset)
    return chosen, (f"{len(chosen)} of {len(capture)} pictures are used, evenly spaced (scene.subset).",)


def _of_size(frames: list[Frame], config: SceneConfig) -> tuple[list[Frame], Resize, tuple[str, ...]]:
    """The frames, how their pictures are shrunk, and what to say of it: not at all where the data set has done so."""
    factor = config.downscale
    if factor is None or not all(factor in frame.smaller and not frame.exif_rotate for frame in frames):
        return frames, Resize(factor, config.max_side), ()
    copies = []
    for frame in frames:
        assert frame.camera is not None
        path, camera = frame.smaller[int(factor)], frame.camera
        # A copy that cannot be read stays, to be named with the others that cannot.
        with suppress(*UNREADABLE):
            camera = camera.resized(*stored_size(path))
        copies.append(replace(frame, path=path, camera=camera))
    where = copies[0].path.parent.name
    return copies, Resize(1.0, config.max_side), (f"The pictures are the data set's own of that size, as in {where}.",)


def _tone(frames: Sequence[Frame], config: SceneConfig) -> tuple[colour.Tone | None, tuple[str, ...]]:
    """How light is coded, and what to say of it; None for a set of sRGB alone."""
    with_light = [frame for frame in frames if holds_light(frame)]
    if not with_light:
        return (colour.Tone(True, 1.0), ()) if config.hdr == "pq" else (None, ())
    exposure = _fitting_exposure(with_light) if config.exposure is None else config.exposure
    tone = colour.Tone(config.hdr == "pq", exposure)
    found = f"{len(with_light)} pictures hold linear light, which is multiplied by {exposure:g} (scene.exposure)"
    if tone.pq:
        return tone, (f"{found} and learnt in PQ up to {10_000 / colour.WHITE:g} times white.",)
    return tone, (f"{found}; what is brighter than white is cut off, and kept by --scene.hdr pq.",)


def _fitting_exposure(frames: Sequence[Frame]) -> float:
    """From the median luminance of a few of the pictures."""
    medians = []
    for frame in frames[:: -(-len(frames) // EXPOSURE_VIEWS)]:
        try:
            luminance = read_light(frame, decode)[0][::4, ::4] @ np.array(colour.SRGB_LUMINANCE, dtype=np.float32)
        except UNREADABLE:
            continue  # It will be left out, and named.
        medians.append(float(np.median(luminance[luminance > 0])) if (luminance > 0).any() else 0.0)
    return colour.fitting_exposure(float(np.median(medians)) if medians else 0.0)


def check_config(config: SceneConfig) -> None:
    """Raises ConfigError on the first value that means nothing."""
    if config.downscale is not None and not (math.isfinite(config.downscale) and config.downscale >= 1):
        raise ConfigError(f"scene.downscale must be at least 1, got {config.downscale}.")
    if config.subset is not None and not (math.isfinite(config.subset) and config.subset > 0):
        raise ConfigError(f"scene.subset must be a positive number or share of the pictures, got {config.subset}.")
    if config.max_side < 1:
        raise ConfigError(f"scene.max_side must be at least 1 pixel, got {config.max_side}.")
    if config.orientation not in ORIENTATIONS:
        raise ConfigError(f"scene.orientation must be one of {', '.join(ORIENTATIONS)}, got '{config.orientation}'.")
    if config.background != "auto" and config.background not in BACKGROUNDS:
        raise ConfigError(f"scene.background must be auto, {' or '.join(BACKGROUNDS)}, got '{config.background}'.")
    if config.near is not None and not (math.isfinite(config.near) and config.near > 0):
        raise ConfigError(f"scene.near must be a positive distance, got {config.near}.")
    if config.hdr not in HDR:
        raise ConfigError(f"scene.hdr must be {' or '.join(HDR)}, got '{config.hdr}'.")
    if config.exposure is not None and not (math.isfinite(config.exposure) and config.exposure > 0):
        raise ConfigError(f"scene.exposure must be a factor above 0, got {config.exposure}.")
    if not 0 <= config.gpu_share <= 1:
        raise ConfigError(f"scene.gpu_share must be a share of the GPU's memory from 0 to 1, got {config.gpu_share}.")
    if config.memory_gb is not None and not (math.isfinite(config.memory_gb) and config.memory_gb > 0):
        raise ConfigError(f"scene.memory_gb must be a number of gigabytes above 0, got {config.memory_gb}.")


def _background(capture: Capture, config: SceneConfig, pictures: Pictures) -> tuple[float, float, float] | None:
    """The user's choice, else the data set's custom; black behind transparent pixels where there is no custom."""
    if config.background == "auto" and pictures.alpha is None:
        return None
    name = (capture.background or "black") if config.background == "auto" else config.background
    if name == "white" and pictures.rgb.dtype == torch.uint16:
        white = float(colour.pq_from_light(torch.tensor(colour.WHITE)))
        return white, white, white
    return BACKGROUNDS[name]
