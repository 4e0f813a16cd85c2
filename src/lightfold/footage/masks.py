"""Masks: which pixels of a photo count. Found in files, fitted to their photos, and made from simple shapes.

A mask file is a picture of one channel in the grid of the photo's *stored* pixels, as most programs write it: pixels
that are not black count. After gathering, a mask is as upright as its picture.
"""

from __future__ import annotations

import math
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import CaptureError
from ..files import whole_file
from ..formats.frames import Header, Tally, find_companion, natural_key, printable

Mask = NDArray[np.bool_]
"""[h, w], True where pixels count."""
LARGEST_PIXELS = 1_000_000_000
UNREADABLE: tuple[type[Exception], ...] = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError)
UNREADABLE += (RuntimeError, ArithmeticError, MemoryError, struct.error, zlib.error)
"""What Pillow and its plugins raise on files that are damaged, truncated, empty, or no pictures at all."""
# How the stored pixels are turned to be seen upright, by EXIF orientation (tag 0x0112), and what turns them back.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
STORED = {**UPRIGHT, 6: UPRIGHT[8], 8: UPRIGHT[6]}


class Unusable(Exception):
    """A picture or a mask cannot be used. The message is the reason, in words that can follow "left out because"."""


# --- shapes ---------------------------------------------------------------------------------------------------------


def circle(width: int, height: int, radius: float, centre: tuple[float, float] = (0.5, 0.5)) -> Mask:
    """[h, w] True inside the circle of light of a fisheye lens.

    radius: as a share of half the shorter side, so 1 is the largest circle that fits. centre: shares of width and
    height.
    """
    x = np.arange(width) + 0.5 - centre[0] * width
    y = np.arange(height) + 0.5 - centre[1] * height
    return np.asarray(x[None, :] ** 2 + y[:, None] ** 2 <= (radius * min(width, height) / 2) ** 2)


def outside_rectangle(width: int, height: int, left: float, top: float, right: float, bottom: float) -> Mask:
    """[h, w] False inside a rectangle whose sides are shares of width and height: a date, a logo, a bonnet."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    inside = ((x >= left) & (x <= right))[None, :] & ((y >= top) & (y <= bottom))[:, None]
    return np.asarray(~inside)


def outside_nadir(width: int, height: int, degrees: float) -> Mask:
    """[h, w] False within this angle of straight down in a panorama: the tripod and whoever holds it."""
    latitude = ((np.arange(height) + 0.5) / height - 0.5) * math.pi  # grows downwards
    rows = latitude < math.pi / 2 - math.radians(degrees)
    return np.repeat(rows[:, None], width, axis=1)


def off_colour(picture: Image.Image, colour: tuple[int, int, int], tolerance: float) -> Mask:
    """[h, w] False where all three channels are within `tolerance` levels (of 255) of a colour: a screen, a studio."""
    away = np.abs(np.asarray(picture.convert("RGB")).astype(np.int16) - np.array(colour, dtype=np.int16))
    return np.asarray(away.max(axis=2) > tolerance)


def all_of(masks: Sequence[Mask]) -> Mask:
    """True where every mask is."""
    return np.asarray(np.logical_and.reduce(masks))


# --- files ----------------------------------------------------------------------------------------------------------


def save_mask(counts: Mask, path: Path) -> None:
    """Write a mask as a PNG: 255 where pixels count, else 0. Raises RunError."""
    with whole_file(path) as partial:
        Image.fromarray(np.where(counts, 255, 0).astype(np.uint8)).save(partial, format="PNG", compress_level=1)


def read_mask(path: Path) -> Mask:
    """[h, w], True where the stored pixels of a mask are not black. For use in `patient_pillow`. Raises Unusable."""
    try:
        with Image.open(path) as file:
            if file.width * file.height > LARGEST_PIXELS:
                raise Unusable("it claims more than 1000 megapixels")
            file.load()
            lossy = file.format == "JPEG"
            levels = np.asarray(file if file.mode.startswith(("I", "F")) else file.convert("L"))
    except UNREADABLE as error:
        raise Unusable("it is not a picture that can be read") from error
    # Lossy compression leaves noise around black.
    return np.asarray(levels > 127 if lossy else levels != 0)


class Masks:
    """The masks of a folder of photos: one for a photo where there is one, and one for all."""

    def __init__(self, root: Path, shared: Path | None) -> None:
        """root: the folder of the photos; masks lie in a folder `masks` inside or beside it. Raises CaptureError when
        the mask for all cannot be read."""
        self.folders = [folder for folder in (root / "masks", root.parent / "masks") if folder.is_dir()]
        self.shared: Mask | None = None
        self._remarks = Tally()
        self._lock = threading.Lock()
        if shared is not None:
            try:
                self.shared = read_mask(shared)
            except Unusable as reason:
                raise CaptureError(f"The mask {shared} cannot be used, because {reason}.") from reason

    def path(self, name: str) -> Path | None:
        """The mask file of a photo: NAME.jpg.png or NAME.png."""
        found = (find_companion(folder, name, (".png", ".jpg")) for folder in self.folders)
        return next((path for path in found if path is not None), None)

    def suits(self, header: Header) -> bool:
        """Whether the mask for all, if there is one, has the shape of this photo."""
        if self.shared is None:
            return True
        height, width = self.shared.shape
        return any(_same_shape((width, height), size) for size in ((header.width, header.height), header.shown))

    def of(self, name: str, header: Header, size: tuple[int, int], opaque: Mask | None) -> Mask | None:
        """The pixels [h, w] of the upright picture of this size that count by all its masks; None for all of them.

        opaque: where the picture itself is opaque. Raises Unusable when nothing is left.
        """
        counts = [] if opaque is None else [opaque]
        path = self.path(name)
        try:
            if path is not None:
                counts.append(self._fit(read_mask(path), name, header, size))
            if self.shared is not None:
                counts.append(self._fit(self.shared, name, header, size))
        except Unusable as reason:
            self.remark(name, [f"have a mask that is not used, because {reason}"])
        if not counts:
            return None
        both = all_of(counts)
        if not both.any():
            raise Unusable("its mask or its transparency leaves no pixel")
        return None if both.all() else both

    def notes(self, total: int) -> tuple[str, ...]:
        """Sentences on what was refused or scaled in masks of `total` photos."""
        in_order = {remark: sorted(names, key=natural_key) for remark, names in sorted(self._remarks.names.items())}
        return Tally(in_order).notes(total, "photos")

    def remark(self, name: str, remarks: Sequence[str]) -> None:
        """Note that such photos as this one `remarks`, for `notes`."""
        with self._lock:
            for remark in remarks:
                self._remarks.add(remark, name)

    def remarks(self, name: str) -> list[str]:
        """What was remarked on a photo."""
        with self._lock:
            return [remark for remark, names in self._remarks.names.items() if printable(name) in names]

    def _fit(self, counts: Mask, name: str, header: Header, size: tuple[int, int]) -> Mask:
        """A mask as the upright picture needs it. Raises Unusable when it has another shape.

        Where it fits the stored pixels as well as the upright ones, it is taken to describe the stored ones.
        """
        found, stored = (counts.shape[1], counts.shape[0]), (header.width, header.height)
        if _same_shape(found, stored) and (found != size or stored == size):
            counts = turned(counts, UPRIGHT.get(header.orientation))
        elif not _same_shape(found, size):
            raise Unusable("it has another shape than its picture")
        if counts.shape == (size[1], size[0]):
            return counts
        self.remark(name, ["have a mask of another size, which was scaled"])
        scaled = Image.fromarray(counts.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        return np.asarray(scaled).astype(bool)


def turned(counts: Mask, how: Image.Transpose | None) -> Mask:
    """A mask transposed as Pillow would transpose its picture."""
    return counts if how is None else np.asarray(Image.fromarray(counts.astype(np.uint8)).transpose(how)).astype(bool)


def upright(picture: Image.Image, orientation: int) -> Image.Image:
    """A stored picture as its EXIF orientation says it is to be seen."""
    return picture.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else picture


def _same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one is the other at another scale, up to rounding."""
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) <= 0.01


@contextmanager
def patient_pillow() -> Iterator[None]:
    """No warnings of damaged EXIF, and no error for pictures beyond 180 megapixels: readers here have their own limit.

    Pillow has one setting for the whole process, so it is put back.
    """
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
