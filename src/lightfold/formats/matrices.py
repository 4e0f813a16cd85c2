"""Data sets that keep small text files of numbers beside their pictures: reading them, matching them, making cameras.

A damaged file raises CaptureError with its path. Where every picture has a file of its own, the reader catches that and
leaves out one frame.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PureWindowsPath

import numpy as np

from ..cameras import Camera, Lens
from ..errors import CaptureError
from ..files import mapped_array
from .calibration import calibrated, read_bytes
from .frames import Tally, cam_from_world, find_picture, fit_camera, natural_key, read_header

LARGEST_FILE = 2**20
OFF_CENTRE = 0.2
"""Share of a side by which a principal point may lie off the middle before somebody should hear of it."""


# --- numbers --------------------------------------------------------------------------------------------------------


def read_rows(file: Path) -> list[list[float]]:
    """The numbers of a text file, line by line, empty lines left out. Raises CaptureError."""
    rows = []
    text = read_bytes(file, LARGEST_FILE).decode("utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = [float(word) for word in line.split()]
        except ValueError as error:
            raise CaptureError(f"Line {number} of {file} should hold numbers, but is {line.strip()[:60]!r}.") from error
        if row:
            rows.append(row)
    return rows


def read_numbers(file: Path, what: str, *counts: int) -> np.ndarray:
    """All numbers [n] of a text file, n one of `counts`. NaN and infinity are let through. Raises CaptureError."""
    numbers = [number for row in read_rows(file) for number in row]
    if len(numbers) not in counts:
        expected = " or ".join(str(count) for count in counts)
        raise CaptureError(f"{file} should hold {what}, {expected} numbers, but holds {len(numbers)}.")
    return np.array(numbers, dtype=np.float64)


def read_matrix(file: Path, what: str) -> np.ndarray:
    """A [4, 4] matrix of a text file. Raises CaptureError."""
    return read_numbers(file, what, 16).reshape(4, 4)


def read_array(file: Path, what: str, *tail: tuple[int, ...]) -> np.ndarray:
    """An npy file of numbers [N, *tail] as float64, for one of the tails. Raises CaptureError."""
    try:
        array = mapped_array(file)
        if array.ndim < 1 or array.shape[1:] not in tail or array.dtype.kind not in "fiu":
            raise CaptureError(f"{file} should hold {what}, but holds {array.dtype} of shape {array.shape}.")
        return np.array(array, dtype=np.float64)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise CaptureError(f"{file} is not a NumPy array of {what}: {reason}") from error


# --- files ----------------------------------------------------------------------------------------------------------


def text_files(folder: Path) -> list[str]:
    """Names of the .txt files directly in a folder, naturally sorted. Raises CaptureError."""
    try:
        found = [e.name for e in os.scandir(folder) if e.name.lower().endswith(".txt") and e.is_file()]
        return sorted(found, key=natural_key)
    except OSError as error:
        raise CaptureError(f"The folder {folder} cannot be listed: {error.strerror}.") from error


def pair(pictures: list[str], texts: list[str], where: Path) -> list[tuple[str | None, str | None]]:
    """Pictures with their text files, naturally sorted by picture; None where one of the two is missing.

    Files of one name belong together. Where the two folders have not one name in common, their order decides, as in the
    loaders of these data sets. Raises CaptureError when it cannot, because the numbers of files differ.
    """
    picture_of = {os.path.splitext(name)[0]: name for name in pictures}
    text_of = {os.path.splitext(name)[0]: name for name in texts}
    if picture_of.keys() & text_of.keys() or not pictures or not texts:
        stems = sorted(picture_of.keys() | text_of.keys(), key=natural_key)
        return [(picture_of.get(stem), text_of.get(stem)) for stem in stems]
    if len(pictures) != len(texts):
        raise CaptureError(
            f"{where} has {len(pictures)} pictures and {len(texts)} poses of other names; they can only be matched by "
            "order, so the numbers must agree."
        )
    return [*zip(sorted(pictures, key=natural_key), sorted(texts, key=natural_key), strict=True)]


def find_inside(folder: Path, written: str) -> Path | None:
    """`find_picture` for a name that a file states: an absolute one, or one that climbs out of the folder, has none."""
    if PureWindowsPath(written).anchor or ".." in re.split(r"[/\\]+", written):
        return None
    return find_picture(folder, written)


# --- cameras --------------------------------------------------------------------------------------------------------


def pinhole(
    picture: Path,
    world_from_cam: np.ndarray,
    intrinsics: tuple[float, float, float, float],
    size: tuple[float, float] | None = None,
    tally: Tally | None = None,
) -> tuple[Camera, bool]:
    """The camera of a picture on disk, and whether the picture is to be rotated as its EXIF says.

    world_from_cam: [3 or 4, 4] with OpenCV axes. intrinsics: fx, fy, cx, cy, counted from the picture's corner, in
    pixels of `size` (width, height); None: of the stored picture. A principal point far from the middle, which is what
    intrinsics of another size look like, is tallied. Raises FrameError.
    """
    header = read_header(picture)
    width, height = size or (header.width, header.height)
    camera = calibrated(Lens.PINHOLE, intrinsics, (), width, height, cam_from_world(world_from_cam))
    off = max(abs(intrinsics[2] / width - 0.5), abs(intrinsics[3] / height - 0.5))
    if tally is not None and off > OFF_CENTRE:
        tally.add(
            "have their principal point far from the middle; their intrinsics may belong to another size", picture.name
        )
    return fit_camera(camera, header)


def inverse(cam_from_world: np.ndarray) -> np.ndarray:
    """world_from_cam [3, 4] of a rigid cam_from_world [3 or 4, 4]."""
    rotation, translation = cam_from_world[:3, :3], cam_from_world[:3, 3:4]
    with np.errstate(all="ignore"):
        return np.concatenate([rotation.T, -rotation.T @ translation], axis=1)
