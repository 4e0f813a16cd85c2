"""What every reader does for a frame: find the picture, read its header, check the pose, fit the camera to the picture.

Only headers are read here, never pixels: opening a capture of a thousand photos takes a second. Whatever makes one
frame unusable is a `FrameError` with a reason; the reader leaves the frame out and `Tally` turns the reasons into a
few sentences.
"""

from __future__ import annotations

import os
import re
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from .. import light
from ..cameras import Camera
from ..capture import Frame
from ..errors import CaptureError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
LARGEST_SIDE = 1_000_000
# Camera axes: negating y and z turns OpenGL (y up, z back) into OpenCV (y down, z forward), and the other way round.
OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0])
ROTATION_TOLERANCE = 1e-2


class FrameError(Exception):
    """One frame cannot be used. The message is the reason, in words that can follow "left out because"."""


@dataclass
class Tally:
    """Remarks about frames, counted, so that a thousand missing photos make one sentence."""

    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, remark: str, name: str) -> None:
        self.names.setdefault(remark, []).append(printable(name))

    @contextmanager
    def leaving_out(self, name: str, file: str = "") -> Iterator[None]:
        """Remark on a frame, instead of failing, when it turns out in the block that it cannot be used.

        file: what to call the frame's own file, where a damaged one costs no more than the frame.
        """
        try:
            yield
        except FrameError as reason:
            self.add(str(reason), name)
        except CaptureError:
            if not file:
                raise
            self.add(f"were left out because their {file} is damaged", name)

    def notes(self, total: int, noun: str = "frames") -> tuple[str, ...]:
        """One sentence per remark: how many of `total`, what, and the first three names."""
        return tuple(
            f"{len(names)} of {total} {noun} {remark}: {listed(names)}." for remark, names in self.names.items()
        )


def listed(names: list[str], most: int = 3) -> str:
    """'a, b, c and 14 more'."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def require_frames(frames: Sequence[object], found: int, where: Path, notes: Iterable[str]) -> None:
    """Raise CaptureError when nothing is left of `found` frames, with the reasons; a capture is never empty."""
    if not frames:
        reasons = " ".join(notes) or "It lists no frames."
        raise CaptureError(f"{where} has no usable frame ({found} found). {reasons}")


# --- names and files -------------------------------------------------------------------------------------------------


def printable(name: str) -> str:
    """The name without line breaks, terminal codes and broken Unicode, all of which a hostile file may hold."""
    return "".join(letter if letter.isprintable() else "_" for letter in name)


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which 'r_9' comes before 'r_10'. Digits sort before letters; case counts only in a tie."""
    pieces = re.findall(r"[0-9]+|[^0-9]+", name)
    key = [(0, int(p), "") if p[0] in "0123456789" and len(p) < 1000 else (1, 0, p.casefold()) for p in pieces]
    return (*key, (2, 0, name))


class Names:
    """Hands out frame names: unique, relative, with forward slashes, printable, never climbing out of a folder."""

    def __init__(self) -> None:
        self.taken: set[str] = set()

    def new(self, written: str) -> str:
        parts = [p for p in re.split(r"[/\\]+", written) if p not in ("", ".", "..")]
        plain = printable("/".join(parts)) or "frame"
        name, count = plain, 1
        while name in self.taken:
            count += 1
            head = PurePosixPath(plain)
            name = str(head.with_name(f"{head.stem}~{count}{head.suffix}"))
        self.taken.add(name)
        return name


def find_picture(folder: Path, written: str) -> Path | None:
    """The file `written` in `folder`, with the usual suffixes tried when it has none; None when there is none."""
    # os.path.isfile answers False to names that are too long or hold a NUL byte, where Path.is_file raises.
    for spelling in dict.fromkeys((written, written.replace("\\", "/"))):
        path = os.path.join(folder, spelling)
        if os.path.isfile(path):
            return Path(path)
        if not spelling.lower().endswith(PICTURE_SUFFIXES):
            for suffix in PICTURE_SUFFIXES:
                for end in (suffix, suffix.upper()):
                    if os.path.isfile(path + end):
                        return Path(path + end)
    return None


def find_companion(folder: Path, picture: str, suffixes: tuple[str, ...]) -> Path | None:
    """The mask or depth map of a picture in a parallel folder: NAME.EXT.png as COLMAP writes it, or NAME.png."""
    for stem in (picture, str(PurePosixPath(picture).with_suffix(""))):
        for suffix in suffixes:
            path = os.path.join(folder, stem + suffix)
            if os.path.isfile(path):
                return Path(path)
    return None


def list_pictures(folder: Path) -> list[str]:
    """Names of the pictures directly in a folder, in plain (code point) order."""
    try:
        return sorted(e.name for e in os.scandir(folder) if e.name.lower().endswith(PICTURE_SUFFIXES) and e.is_file())
    except OSError as error:
        raise CaptureError(f"The folder {folder} cannot be listed: {error.strerror}.") from error


def smaller_note(frames: Sequence[Frame]) -> tuple[str, ...]:
    """A sentence on the factors by which a data set has smaller copies of all its pictures; nothing where it has none.

    Published numbers are of those copies, which no resizing of ours gives back exactly.
    """
    factors = sorted(set.intersection(*(set(frame.smaller) for frame in frames))) if frames else []
    if not factors:
        return ()
    options = " or ".join(f"--scene.downscale {factor}" for factor in factors)
    return (f"The data set has smaller copies of its pictures: {options} uses them.",)


# --- headers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """What a picture's header says. width, height: the stored pixel grid, before any EXIF rotation."""

    width: int
    height: int
    orientation: int
    has_alpha: bool
    exif: dict[int, object]
    xmp: bytes

    @property
    def shown(self) -> tuple[int, int]:
        """Width and height after the EXIF rotation."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_header(path: Path) -> Header:
    """Size, orientation and EXIF of a picture without decoding it. Raises FrameError."""
    if path.suffix.lower() in light.SUFFIXES:
        try:
            return Header(*light.picture_size(path), orientation=1, has_alpha=False, exif={}, xmp=b"")
        except (OSError, ValueError) as error:
            raise FrameError(f"were left out because the file cannot be read ({error})") from error
    try:
        with warnings.catch_warnings():
            # Pillow warns of damaged EXIF, which is ignored here, and of more than 90 megapixels, which cameras have
            # by now; at twice that it raises, and that is the bomb.
            warnings.simplefilter("ignore")
            with Image.open(path) as picture:
                exif = _read_exif(picture)
                orientation = exif.get(ExifTags.Base.Orientation)
                if not isinstance(orientation, int) or not 1 <= orientation <= 8 or picture.format == "TIFF":
                    # Pillow rotates a TIFF itself when it decodes it, and states the size after that.
                    orientation = 1
                xmp = picture.info.get("xmp", b"")
                return Header(
                    width=picture.width,
                    height=picture.height,
                    orientation=orientation,
                    has_alpha="A" in picture.getbands() or "transparency" in picture.info,
                    exif=exif,
                    xmp=xmp if isinstance(xmp, bytes) else b"",
                )
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise FrameError(f"were left out because the picture claims more than {most} megapixels") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, OverflowError) as error:
        raise FrameError("were left out because the file is not a picture that can be read") from error


def _read_exif(picture: Image.Image) -> dict[int, object]:
    """EXIF tags with those of the camera's own directory; empty where there are none or they are damaged.

    Pictures are used without EXIF every day, so damage to it is no reason to refuse one.
    """
    if picture.format == "PNG" and "exif" not in picture.info:
        # Pillow would decode the whole PNG to look for EXIF behind the pixels.
        return {}
    try:
        exif = picture.getexif()
        return {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
    except (OSError, ValueError, KeyError, TypeError, IndexError, SyntaxError, struct.error):
        return {}


def fit_camera(camera: Camera, header: Header) -> tuple[Camera, bool]:
    """The camera of the picture on disk, and whether the picture must be rotated as its EXIF says before use.

    A posed capture states the size its intrinsics were calibrated at. Where that is the stored grid, the EXIF
    orientation is ignored (COLMAP and OpenCV read the stored grid); where it is the rotated one, the picture is rotated
    on load. A picture of another size but the same shape (images_4, say) gets scaled intrinsics. Raises FrameError for
    another shape.
    """
    stored = (header.width, header.height)
    sizes = [(stored, False)] if header.orientation < 5 else [(stored, False), (header.shown, True)]
    for size, rotate in sizes:
        if size == (camera.width, camera.height):
            return camera, rotate
    for (width, height), rotate in sizes:
        # Each side of a downscaled picture may have been rounded by up to a pixel.
        slack = 1 + camera.width / camera.height
        if abs(width - camera.width * height / camera.height) <= min(slack, 0.02 * width):
            return camera.resized(width, height), rotate
    raise FrameError("were left out because the picture and its intrinsics have different shapes")


# --- poses ----------------------------------------------------------------------------------------------------------


def cam_from_world(world_from_cam: np.ndarray) -> Tensor:
    """Invert a camera-to-world matrix [3 or 4, 4] with OpenCV camera axes -> [3, 4] float64. Raises FrameError.

    A rotation that is off by rounding, up to 1e-2 in R^T R, is replaced by the nearest one in the Frobenius norm.
    """
    matrix = np.asarray(world_from_cam, dtype=np.float64)
    if not np.isfinite(matrix).all():
        raise FrameError("were left out because the pose holds NaN or infinity")
    if matrix.shape[0] == 4 and np.abs(matrix[3] - (0, 0, 0, 1)).max() > 1e-6:
        raise FrameError("were left out because the last row of the pose is not 0 0 0 1")
    rotation = nearest_rotation(matrix[:3, :3])
    pose = np.concatenate([rotation.T, -rotation.T @ matrix[:3, 3:]], axis=1)
    if np.abs(pose).max() > 1e100:
        raise FrameError("were left out because the pose is too far away for any arithmetic")
    return torch.from_numpy(pose)


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """The rotation [3, 3] nearest to a matrix that is one but for rounding. Raises FrameError when it is not."""
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs(matrix.T @ matrix - np.eye(3)).max()
    # Written so that a NaN, from values too large to multiply, fails the test too.
    if not error <= ROTATION_TOLERANCE or np.linalg.det(matrix) < 0:
        raise FrameError("were left out because the pose is not a rotation and a translation")
    if error <= 1e-12:
        return matrix
    left, _, right = np.linalg.svd(matrix)
    return np.asarray(left @ right)
