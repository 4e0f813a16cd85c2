"""What a page shows: a run, a capture, or a training; and what is known about its photographs."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import pictures
from ..cameras import Camera
from ..methods.base import Image, Method
from ..paths import arrangement
from ..refine import AppearanceCodes, HasColours, PoseRefinement, refined_cameras
from ..run import Run
from ..scene import Scene, SceneInfo
from .painter import Look, seen_from_same_place

THUMBNAIL = 96
"""Pixels on the longer side of the pictures in frustums."""
FRUSTUMS = 300
"""Most cameras that are drawn; more are thinned out evenly."""
REMEMBERED = 4
"""Photographs kept decoded."""


@dataclass
class Subject:
    """title: over the page. info: cameras, names, split, frame. method: the field, None for a capture alone.

    run: where it lies, for videos, exports and scores. scene: the photographs, where they are at hand.
    missing: names of pictures without a pose. notes: sentences for the page.
    """

    title: str
    info: SceneInfo
    method: Method | None = None
    run: Run | None = None
    scene: Scene | None = None
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    _photos: OrderedDict[int, Tensor] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def up(self) -> Tensor:
        """[3] unit: the mean of the pictures' upward directions, scene frame."""
        return arrangement(self.info).up

    def first_camera(self) -> Camera:
        """Where a client begins: the training view that looks most like all the others."""
        group = arrangement(self.info)
        views = self.info.train or tuple(range(len(self.info.cameras)))
        away = (group.centre - group.centre.median(dim=0).values).norm(dim=1)
        return self.info.cameras[views[int(away.argmin())]]

    def render(self, camera: Camera, look: Look) -> Image:
        """The method's picture of a camera, as a client wants to see it, in sRGB whatever the method learns in."""
        assert self.method is not None
        background = None if look.background is None else self.info.coded(look.background)
        codes = self.codes
        if codes is None or look.appearance is None or not isinstance(self.method, HasColours):
            image = self.method.render(camera, background, look.crop)
        else:
            code = codes.of(torch.tensor([look.appearance]))[0].detach()
            image = self.method.render(camera, background, look.crop, code=code)
        return replace(image, rgb=self.info.shown(image.rgb))

    @property
    def codes(self) -> AppearanceCodes | None:
        """What the method has learnt of the photographs' exposures, if it has."""
        found = getattr(self.method, "codes", None)
        return found if isinstance(found, AppearanceCodes) else None

    @property
    def moving(self) -> bool:
        """Whether training corrects the cameras' poses."""
        return isinstance(getattr(self.method, "poses", None), PoseRefinement)

    def cameras(self) -> tuple[Camera, ...]:
        """The cameras of all views, as training has corrected them by now where it does."""
        return self.info.cameras if self.method is None else refined_cameras(self.method)

    def shown_views(self) -> list[int]:
        """Views whose cameras are drawn, spread evenly where there are too many."""
        count = len(self.info.cameras)
        return sorted({round(i) for i in np.linspace(0, count - 1, min(count, FRUSTUMS))}) if count else []

    def photo(self, index: int) -> Tensor | None:
        """A photograph [H, W, 3], sRGB in [0, 1], over the scene's background, at training size; None without any."""
        if self.scene is None:
            return None
        with self._lock:
            if index not in self._photos:
                view = self.scene.view(index)
                behind = torch.tensor(self.info.background or (0.0, 0.0, 0.0))
                photo = torch.lerp(behind.expand_as(view.rgb), view.rgb, view.alpha[..., None])
                self._photos[index] = self.info.shown(photo)
                while len(self._photos) > REMEMBERED:
                    self._photos.popitem(last=False)
            self._photos.move_to_end(index)
            return self._photos[index]

    def photo_from(self, camera: Camera) -> Tensor | None:
        """[h, w, 3] what the photograph taken from the camera's place shows of its picture; None from elsewhere."""
        cameras = self.cameras()
        centres = torch.stack([view.center for view in cameras])
        index = int((centres - camera.center.to(centres)).norm(dim=1).argmin())
        photo = self.photo(index)
        return None if photo is None else seen_from_same_place(photo, cameras[index], camera)

    def thumbnail(self, index: int) -> np.ndarray | None:
        """A photograph as [h, w, 3] uint8 of at most THUMBNAIL pixels a side."""
        photo = self.photo(index)
        if photo is None:
            return None
        shrink = min(1.0, THUMBNAIL / max(photo.shape[:2]))
        size = [max(1, round(side * shrink)) for side in photo.shape[:2]]
        small = F.interpolate(photo.permute(2, 0, 1)[None], size, mode="area")[0].permute(1, 2, 0)
        return pictures.to_uint8(small)

    def scores(self) -> dict[str, float]:
        """PSNR of held-out views by name, from the run's last evaluation."""
        if self.run is None:
            return {}
        try:
            data = json.loads((self.run.path / "eval.json").read_text(encoding="utf-8"))
            return {str(row["name"]): float(row["psnr"]) for row in data["views"]}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}


def unposed_names(capture: Path) -> tuple[str, ...]:
    """Names of the pictures that `lightfold poses` could not place, from the report beside the capture."""
    folder = capture if capture.is_dir() else capture.parent
    try:
        data = json.loads((folder / "poses.json").read_text(encoding="utf-8"))
        return tuple(str(name) for name in data["missing"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()
