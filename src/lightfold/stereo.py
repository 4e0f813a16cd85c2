"""Pictures for two eyes, and for viewers that look around: stereo pairs, 360 degrees, VR180.

    pinhole, fisheye, orthographic    two cameras with parallel axes, side by side
    panorama                          omnidirectional stereo (Ishiguro et al. 1992; Peleg et al. 2001)
    front half of a panorama          the same over 180 degrees

A viewer of a panorama turns the head, and the eyes turn along. Omnidirectional stereo therefore has no two centres: in
every direction of the horizon the eyes stand beside each other across that direction, so each column of the picture has
a centre of its own, on a circle as wide as the eyes are apart. A method renders it column by column, with a fisheye
that is one pixel wide: the equidistant lens maps its own vertical line to equal angles, as a panorama does. Towards the
zenith and below the feet the eyes can not be right, whatever one does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .cameras import Camera, Lens
from .geometry import compose
from .methods.base import Image
from .spherical_video import LAYOUTS, Tags

if TYPE_CHECKING:
    from .methods.base import Method


@dataclass(frozen=True)
class Viewing:
    """How many eyes look, and how their pictures share a frame.

    layout:       "mono", "top-bottom" (left eye above) or "side-by-side".
    eye_distance: between the eyes, in scene units; not read for "mono".
    half:         of a panorama, only the front 180 degrees are rendered and shown.
    """

    layout: str = "mono"
    eye_distance: float = 0.0
    half: bool = False

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if self.layout != "mono" and not 0 < self.eye_distance < math.inf:
            raise ValueError(f"eye_distance: expected a positive distance, got {self.eye_distance}")

    def tags(self, camera: Camera) -> Tags | None:
        """What a player of such a video has to be told, or None where it is plain."""
        panorama = camera.lens is Lens.EQUIRECTANGULAR
        if not panorama and self.layout == "mono":
            return None
        side = 0.25 if self.half else 0.0
        return Tags(self.layout, (0.0, 0.0, side, side) if panorama else None)

    def packed(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """The frame that holds the pictures [H, W, ...] of the eyes, left first."""
        if self.half:
            quarter = pictures[0].shape[1] // 4
            pictures = [picture[:, quarter : picture.shape[1] - quarter] for picture in pictures]
        return np.concatenate(pictures, axis=1 if self.layout == "side-by-side" else 0)


MONO = Viewing()


def eyes(
    method: Method, camera: Camera, viewing: Viewing, background: Tensor | None = None
) -> list[tuple[Image, Camera]]:
    """What each eye sees, and through which camera: one picture, or the left eye's and the right eye's.

    Pictures have the camera's size; of half a panorama, the outer quarters stay empty. For omnidirectional stereo the
    camera is the one in the middle of the circle. Raises ValueError when half of something else is asked for.
    """
    panorama = camera.lens is Lens.EQUIRECTANGULAR
    if viewing.half and (not panorama or camera.width % 4):
        raise ValueError(
            f"viewing.half: expected a panorama whose width four divides, got {camera.lens.value}, {camera.width} wide"
        )
    if viewing.layout == "mono" and not viewing.half:
        return [(method.render(camera, background), camera)]
    offsets = [0.0] if viewing.layout == "mono" else [-0.5 * viewing.eye_distance, 0.5 * viewing.eye_distance]
    if panorama:
        quarter = camera.width // 4 if viewing.half else 0
        columns = range(quarter, camera.width - quarter)
        return [(_by_columns(method, camera, offset, columns, background), camera) for offset in offsets]
    pair = [beside(camera, offset) for offset in offsets]
    return [(method.render(eye, background), eye) for eye in pair]


def beside(camera: Camera, offset: float) -> Camera:
    """The same camera moved to its right by an offset in world units."""
    pose = camera.cam_from_world.clone()
    pose[..., 0, 3] -= offset
    return replace(camera, cam_from_world=pose)


def _by_columns(method: Method, camera: Camera, offset: float, columns: range, background: Tensor | None) -> Image:
    """A panorama whose every column is seen from `offset` to the right of the middle, looking at that column."""
    height, width = camera.height, camera.width
    # A column by itself sees few of the scene's points. If near planes were found for each, they would show as stripes.
    info = method.info
    method = copy.copy(method)
    method.info = replace(info, near=info.near_for(camera), points=None)
    parts: list[Image] = []
    for column in columns:
        longitude = ((column + 0.5) / width - 0.5) * 2 * math.pi
        cos, sin = math.cos(longitude), math.sin(longitude)
        turned = camera.cam_from_world.new_tensor([[cos, 0, -sin, 0], [0, 1, 0, 0], [sin, 0, cos, 0]])
        line = Camera(
            cam_from_world=compose(turned, camera.cam_from_world),
            intrinsics=torch.tensor([height / math.pi, height / math.pi, 0.5, 0.5 * height]),
            distortion=torch.zeros(4),
            width=1,
            height=height,
            lens=Lens.OPENCV_FISHEYE,
        )
        parts.append(method.render(beside(line, offset), background))

    def joined(planes: list[Tensor]) -> Tensor:
        found = torch.cat(planes, dim=1)
        whole = found.new_zeros(height, width, *found.shape[2:])
        whole[:, columns.start : columns.stop] = found
        return whole

    return Image.merged(parts, joined)
