"""OpenEXR files (half, float or integer channels), read and written with the library of the format's authors.

The library is optional: `pip install 'lightfold[exr]'`. Everything that a damaged file can do to it becomes a
ValueError, which is among the errors that readers of pictures expect.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .files import whole_file

LARGEST_SIDE = 1 << 16
LARGEST_PICTURE = 180_000_000
"""Pixels, of which each takes up to sixteen bytes while it is read."""
PLANE_NAMES = ("Z", "Y", "R")
"""Under which of several channels a single quantity such as depth is stored, the likeliest first."""

# Two threads that redirect the program's output at once would put it back in the wrong order, and it would be lost.
_one_at_a_time = threading.Lock()


def available() -> bool:
    """Whether the library is installed, without importing it."""
    return importlib.util.find_spec("OpenEXR") is not None


def read_channels(path: Path) -> dict[str, NDArray[np.float32]]:
    """The channels of the first part of a file, each [H, W] float32, by name.

    Raises ValueError when the file is damaged, larger than LARGEST_PICTURE pixels, or of a kind without plain pixels
    (deep, subsampled, cropped), and when the library is missing; OSError when it cannot be opened.
    """
    try:
        import OpenEXR
    except ImportError as error:
        raise ValueError("EXR files need the OpenEXR library: pip install 'lightfold[exr]'") from error
    with path.open("rb"):
        pass  # For the reasons that the system gives; the library only says that it could not.
    # The library prints what it thinks of a damaged file, and then hands out a file without parts.
    with _one_at_a_time, contextlib.redirect_stdout(io.StringIO()):
        try:
            header = OpenEXR.File(str(path), header_only=True).header()
            width, height = _size(header)
            channels = OpenEXR.File(str(path), separate_channels=True).channels()
            planes = {name: np.asarray(channel.pixels) for name, channel in channels.items()}
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, MemoryError) as error:
            raise ValueError(f"it is not an EXR picture that can be read ({error})") from error
    for name, plane in planes.items():
        if plane.shape != (height, width) or plane.dtype.kind not in "fu":
            raise ValueError(f"its channel {name} is {plane.dtype} {list(plane.shape)}, not {height} x {width} numbers")
    return {name: plane.astype(np.float32) for name, plane in planes.items()}


def read_plane(path: Path) -> NDArray[np.float32]:
    """The one quantity [H, W] of a depth map: its only channel, or the one named Z, Y or R.

    Raises what `read_channels` raises, and ValueError when no channel is the one.
    """
    channels = read_channels(path)
    if len(channels) == 1:
        return next(iter(channels.values()))
    for name in PLANE_NAMES:
        if name in channels:
            return channels[name]
    raise ValueError(f"it has the channels {', '.join(channels)}, of which none is Z, Y or R")


def read_rgba(path: Path) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
    """Light [H, W, 3] float32, straight, and opacity [H, W] in 8 bits (None when opaque), of a picture.

    Channels R, G, B, or Y alone for a grey picture, and A. EXR multiplies light by A, which is undone here; light
    where A is 0 (a glow without matter) is lost. Raises what `read_channels` raises, and ValueError without colours.
    """
    channels = read_channels(path)
    names = ["R", "G", "B"] if "R" in channels else ["Y", "Y", "Y"]
    missing = [name for name in names if name not in channels]
    if missing:
        raise ValueError(f"it has the channels {', '.join(channels)}, which are not those of a picture (R, G, B or Y)")
    light = np.stack([channels[name] for name in names], axis=-1)
    if "A" not in channels:
        return light, None
    alpha = np.clip(np.nan_to_num(channels["A"], nan=0.0), 0, 1)
    if bool((alpha > 0.998).all()):
        return light, None
    with np.errstate(over="ignore", invalid="ignore"):
        straight = light / np.maximum(alpha, np.float32(1e-6))[:, :, None]
    return straight, np.rint(255 * alpha).astype(np.uint8)


def write_rgb(path: Path, light: NDArray[np.float32]) -> None:
    """Write light [H, W, 3] with sRGB's primaries, which the header states, in half precision, whole or not at all.

    Raises ValueError when the library is missing; RunError when the file cannot be written.
    """
    try:
        import OpenEXR
    except ImportError as error:
        raise ValueError("EXR files need the OpenEXR library: pip install 'lightfold[exr]'") from error
    header = {
        "compression": OpenEXR.ZIP_COMPRESSION,
        "type": OpenEXR.scanlineimage,
        # ITU-R BT.709 and D65: red, green, blue, white, each x and y.
        "chromaticities": (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290),
    }
    half = np.clip(light, 0, 65504).astype(np.float16)
    with whole_file(path) as partial:
        try:
            OpenEXR.File(header, {"RGB": half}).write(str(partial))
        except RuntimeError as error:
            raise OSError(str(error)) from error


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height from the header. Raises what `read_channels` raises."""
    try:
        import OpenEXR
    except ImportError as error:
        raise ValueError("EXR files need the OpenEXR library: pip install 'lightfold[exr]'") from error
    with path.open("rb"):
        pass
    with _one_at_a_time, contextlib.redirect_stdout(io.StringIO()):
        try:
            return _size(OpenEXR.File(str(path), header_only=True).header())
        except (RuntimeError, TypeError, KeyError, IndexError, AttributeError, MemoryError) as error:
            raise ValueError(f"it is not an EXR picture that can be read ({error})") from error


def _size(header: dict[str, object]) -> tuple[int, int]:
    """Width and height. Checked before any pixel is read: a header may promise terabytes."""
    window, display = (
        [int(v) for corner in _corners(header[k]) for v in corner] for k in ("dataWindow", "displayWindow")
    )
    width, height = window[2] - window[0] + 1, window[3] - window[1] + 1
    if not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE and width * height <= LARGEST_PICTURE):
        raise ValueError(f"it claims {width} x {height} pixels")
    if window != display:
        raise ValueError("its data window is not the whole picture")
    return width, height


def _corners(window: object) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    if not isinstance(window, tuple) or len(window) != 2:
        raise ValueError("a window of its header is not a box")
    return np.asarray(window[0]), np.asarray(window[1])
