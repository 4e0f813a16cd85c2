"""Pictures as linear light: EXR and Radiance files, 16-bit PNG and TIFF, and everything else by its sRGB curve.

What comes out is float32 light with sRGB's primaries, white-balanced, finite and not negative, whatever the file held.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from . import exr
from .capture import LARGEST_PICTURE, Frame
from .colour import linear_from_srgb, srgb_from

SUFFIXES = (".exr", ".hdr")
"""Files whose numbers are light."""
DEEP_SUFFIXES = (".png", ".tif", ".tiff")
RADIANCE_SIZE = re.compile(rb"\A#\?.*?\n\n-Y (\d{1,6}) \+X (\d{1,6})\n", re.DOTALL)
MOST = 65504.0
"""The greatest half-precision number; infinite light, as renderers give it for a lamp, becomes this."""

Decoder = Callable[[Path, bool], tuple[NDArray[np.uint8], NDArray[np.uint8] | None]]


def holds_light(frame: Frame) -> bool:
    """Whether the picture's file stores light without an upper end, by its name."""
    return frame.path.suffix.lower() in SUFFIXES


def read_light(frame: Frame, decode: Decoder) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
    """Light [H, W, 3] float32, straight (not multiplied by alpha), and alpha [H, W] uint8 or None, of a picture.

    decode: reads pictures of 8 bits. Raises ValueError and OSError on what cannot be read.
    """
    suffix = frame.path.suffix.lower()
    values: NDArray[np.float32]
    alpha: NDArray[np.uint8] | None = None
    if suffix == ".exr":
        values, alpha = exr.read_rgba(frame.path)
    elif suffix == ".hdr":
        values = _with_ffmpeg(frame.path, {"gbrpf32le": 1.0})
    else:
        pixels, alpha = decode(frame.path, frame.exif_rotate)
        values = pixels.astype(np.float32) / np.float32(255)
        # The library of all other pictures cuts colours of 16 bits to 8. It rotates, and alpha is rarely that deep.
        if suffix in DEEP_SUFFIXES and alpha is None and not frame.exif_rotate and _is_deep(frame.path):
            values = _with_ffmpeg(frame.path, {"rgb48le": 65535.0, "rgb48be": 65535.0})
    kind = frame.colour or ("linear-srgb" if suffix in SUFFIXES else "srgb")
    light = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    if kind == "srgb":
        light = linear_from_srgb(light)
    light = torch.nan_to_num(light, nan=0.0, posinf=MOST, neginf=0.0)
    if frame.white_balance is not None:
        light = light * torch.tensor(frame.white_balance, dtype=torch.float32)
    if kind == "linear-p3":
        light = light @ srgb_from(kind).float().T
    # Below zero lie colours that sRGB does not have, and the ringing of lens and demosaicing filters.
    return light.clamp_(0, MOST).numpy(), alpha


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a file with one of SUFFIXES, from its header. Raises ValueError and OSError."""
    if path.suffix.lower() == ".exr":
        return exr.picture_size(path)
    with path.open("rb") as file:
        found = RADIANCE_SIZE.search(file.read(1 << 16))
    if found is None:
        raise ValueError("it is not a Radiance picture with its first row at the top")
    return int(found[2]), int(found[1])


def _is_deep(path: Path) -> bool:
    """Whether FFmpeg sees three channels of 16 bits."""
    import av

    try:
        with av.open(str(path)) as container:
            return str(container.streams.video[0].codec_context.format.name).startswith("rgb48")
    except (av.FFmpegError, IndexError, AttributeError):
        return False


def _with_ffmpeg(path: Path, formats: dict[str, float]) -> NDArray[np.float32]:
    """[H, W, 3] of the only frame, which has to be in one of the formats, divided by the format's white."""
    import av

    with path.open("rb"):
        pass  # For the reasons that the system gives.
    try:
        with av.open(str(path)) as container:
            shape = container.streams.video[0].codec_context
            if shape.width * shape.height > LARGEST_PICTURE:
                raise ValueError(f"it claims {shape.width} x {shape.height} pixels")
            picture = next(iter(container.decode(video=0)))
            if picture.format.name not in formats:
                raise ValueError(f"its pixels are {picture.format.name}, which is not read")
            return picture.to_ndarray().astype(np.float32) / np.float32(formats[picture.format.name])
    except (av.FFmpegError, StopIteration, IndexError) as error:
        raise ValueError(f"it is not a picture that can be read ({error})") from error
