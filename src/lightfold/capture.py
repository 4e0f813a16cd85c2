"""What a capture is: pictures on disk, what is known about the camera behind each, and the 3-D points they agree on.

A `Capture` is the one type in which reading data and learning from it meet. Every reader in `formats` produces one,
`scene` turns one into batches of pixels, and nothing after `formats` knows which files it came from. The conversion to
this project's conventions (OpenCV axes, pixel centres at +0.5) has happened by the time a `Capture` exists.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .cameras import Camera, Lens
from .geometry import Similarity

LARGEST_PICTURE = 512_000_000
"""Pixels, as many as a panorama of 32,000 x 16,000 has. What claims more is taken for a file made to fill the memory;
one of this size takes four gigabytes while it is decoded."""
# Pillow refuses twice this; by itself it would refuse panoramas of 20,000 x 10,000.
Image.MAX_IMAGE_PIXELS = LARGEST_PICTURE // 2


@dataclass(frozen=True)
class LensGuess:
    """What a picture's header suggests about its lens before any pose is known; a pose engine starts from it and
    refines it.

    lens:   the model to start with; EQUIRECTANGULAR for a picture that is, or looks like, a full panorama.
    focal:  focal length in pixels, or None when the header has no focal length.
    width, height: size in pixels of the picture as `Frame.exif_rotate` presents it.
    device: maker and model as the header spells them ("" when absent); pictures of one device and size may share
            intrinsics.
    """

    lens: Lens
    focal: float | None
    width: int
    height: int
    device: str = ""


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture and what is known about it.

    path:   the picture; it existed and its header was readable when the capture was opened.
    camera: pose in the capture frame, intrinsics and lens: batch shape (), float64. Its width and height are those of
            the picture on disk, after the EXIF rotation when `exif_rotate` is set. None while the picture has no pose.
    mask:   single-channel picture of the same shape; non-zero pixels count, unless `mask_inverted`.
    depth:  picture or .npy of z-depth; value * depth_scale is the depth in capture units, and 0 means unknown.
    time:   the moment of a dynamic capture, in whatever unit the file uses.
    split:  "train" or "test" when the capture itself says so; None when it does not.
    name:   unique in the capture, relative to its root, with forward slashes.
    mask_inverted: non-zero mask pixels are to be ignored (instant-ngp's dynamic_mask files).
    mask_is_alpha: the mask is a silhouette: what is outside it is transparent, and not unknown.
    exif_rotate:   rotate the picture as its EXIF orientation says before use. False: the camera describes the stored
                   pixel grid.
    guess:  what the header suggests about the lens, for frames without a camera.
    colour: what the picture's numbers are: "srgb" (coded by the sRGB curve), "linear-srgb" or "linear-p3" (light, with
            those primaries). None: light with sRGB's primaries in EXR and .hdr files, sRGB in all others.
    white_balance: factors on red, green and blue light, before primaries are changed; None: the picture is balanced.
    group:  pictures of one group were taken from one place (crops of a panorama), so that a split keeps them together.
    smaller: the data set's own smaller copies of the picture, by the factor that divides its sides.
    """

    path: Path
    camera: Camera | None
    name: str
    mask: Path | None = None
    depth: Path | None = None
    depth_scale: float = 0.001
    time: float | None = None
    split: str | None = None
    mask_inverted: bool = False
    mask_is_alpha: bool = False
    exif_rotate: bool = False
    guess: LensGuess | None = None
    colour: str | None = None
    white_balance: tuple[float, float, float] | None = None
    group: str | None = None
    smaller: Mapping[int, Path] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Points:
    """Sparse 3-D points in the capture frame.

    xyz:    [N, 3] float64.
    rgb:    [N, 3] uint8, or None.
    error:  [N] float64, mean reprojection error in pixels, or None.
    tracks: (point_index [M], frame_index [M]), both int64: point p was seen in frame f. None when unknown.
    """

    xyz: Tensor
    rgb: Tensor | None = None
    error: Tensor | None = None
    tracks: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return int(self.xyz.shape[0])


@dataclass(frozen=True, eq=False)
class Capture:
    """What is on disk, posed or not.

    root:       the folder that was opened.
    format:     the reader that read it, a key of `formats.FORMATS`.
    frames:     sorted as the format sorts them (naturally by name, unless it has an order of its own).
    points:     sparse points, or None.
    bounds:     [2, 3] float64, lower and upper corner of a box known to hold the object; None when nothing is known.
    background: colour behind transparent pixels by the data set's custom ("white"), or None.
    up:         [3] float64, world direction known to be up, or None.
    metric:     whether one unit is known to be a metre.
    near, far:  depths between which all content lies, in capture units, where the format states them.
    fisheye_crop_radius: pixels; only the disc of this radius about the picture's centre holds light. None: the whole
        picture.
    orientation: how the author wants the scene oriented ("up", "pca", "none"), which wins over the user's default, or
                 None.
    original_from_capture: back to the frame that the poses had before whoever wrote the capture normalised it.
    notes:      whole sentences: what was left out, what was assumed, and why.
    """

    root: Path
    format: str
    frames: tuple[Frame, ...]
    points: Points | None = None
    bounds: Tensor | None = None
    background: str | None = None
    up: Tensor | None = None
    metric: bool = False
    near: float | None = None
    far: float | None = None
    fisheye_crop_radius: float | None = None
    orientation: str | None = None
    original_from_capture: Similarity = field(default_factory=Similarity.identity)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.frames)

    def select(self, indices: Sequence[int]) -> Capture:
        """The capture with these frames only, in this order. Point tracks follow; points that nobody sees any more are
        kept.

        Raises ValueError on an index outside the capture or given twice.
        """
        count = len(self.frames)
        if any(not 0 <= i < count for i in indices) or len(set(indices)) != len(indices):
            raise ValueError(f"indices: expected distinct numbers in 0..{count - 1}, got {list(indices)}")
        points = self.points
        if points is not None and points.tracks is not None:
            point_index, frame_index = points.tracks
            new_index = torch.full((count,), -1, dtype=torch.int64)
            new_index[torch.tensor(list(indices), dtype=torch.int64)] = torch.arange(len(indices))
            moved = new_index[frame_index]
            points = replace(points, tracks=(point_index[moved >= 0], moved[moved >= 0]))
        return replace(self, frames=tuple(self.frames[i] for i in indices), points=points)

    def evenly(self, subset: float) -> Capture:
        """The capture with so many of its frames, or below 1 with this share of them, evenly spaced in its order.

        Nerfstudio's transforms_300.json and transforms_half.json of Eyeful Tower are such choices. Raises ValueError on
        a number that is not positive.
        """
        if not 0 < subset < math.inf:
            raise ValueError(f"subset: expected a positive number of frames, or a share of them, got {subset}")
        total = len(self)
        count = min(total, max(1, round(subset * total) if subset < 1 else int(subset)))
        return self.select([round(i * (total - 1) / max(count - 1, 1)) for i in range(count)])

    def posed(self) -> Capture:
        """The capture with its posed frames only."""
        return self.select([i for i, frame in enumerate(self.frames) if frame.camera is not None])
