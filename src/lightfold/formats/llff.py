"""LLFF's poses_bounds.npy (Mildenhall et al. 2019): one row of 17 numbers per picture, in the order of their names.

The first 15 are a 3x5 matrix [R | t | (height, width, focal)], camera-to-world with the columns of R **down, right,
back**; the last two are the depths between which 99.8 % of the points seen by that picture lie.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from ..cameras import Camera, Lens
from ..capture import Capture, Frame
from ..errors import CaptureError
from .frames import (
    LARGEST_SIDE,
    FrameError,
    Names,
    Tally,
    cam_from_world,
    fit_camera,
    list_pictures,
    read_header,
    require_frames,
)

LOOKS_FOR = "poses_bounds.npy with a folder images, images_2, images_4 or images_8 beside it"
PICTURE_FOLDERS = ("images", "images_2", "images_4", "images_8")
# Views within this angle of their mean direction look the same way, as normalised device coordinates need.
FORWARD_FACING = np.cos(np.radians(60))


def sniff(path: Path) -> bool:
    """True for a folder with poses_bounds.npy, and for one of its picture folders, which chooses that resolution."""
    return os.path.isfile(path / "poses_bounds.npy") or _is_picture_folder(path)


def read(path: Path) -> Capture:
    """Read poses_bounds.npy. Of several picture folders the full-size one is taken, unless path names another.

    Raises CaptureError, also when the number of pictures is not the number of rows: then rows cannot be told apart.
    """
    root = path.parent if _is_picture_folder(path) else path
    file = root / "poses_bounds.npy"
    rows = _read_rows(file)
    folder = path if root != path else _picture_folder(root)
    pictures = list_pictures(folder)
    if len(pictures) != len(rows):
        raise CaptureError(
            f"{file} has {len(rows)} poses and {folder} has {len(pictures)} pictures; they are matched by order, so "
            "the numbers must agree."
        )
    tally, names = Tally(), Names()
    frames = []
    for name, row in zip(pictures, rows, strict=True):
        try:
            frames.append(_frame(row, folder / name, names.new(f"{folder.name}/{name}")))
        except FrameError as reason:
            tally.add(str(reason), name)
    notes = list(tally.notes(len(rows)))
    require_frames(frames, len(rows), file, notes)
    bounds = rows[:, 15:]
    bounds = bounds[np.isfinite(bounds).all(axis=1) & (bounds > 0).all(axis=1) & (bounds[:, 0] < bounds[:, 1])]
    others = [other for other in PICTURE_FOLDERS if other != folder.name and os.path.isdir(root / other)]
    if others:
        notes.append(f"The pictures are those of {folder.name}; name {root / others[-1]} to use another resolution.")
    if len(bounds) == 0:
        notes.append("The depth bounds are not usable and are ignored.")
    if _forward_facing(frames):
        notes.append("All views look the same way; normalised device coordinates suit this capture.")
    return Capture(
        root=root,
        format="llff",
        frames=tuple(frames),
        near=float(bounds[:, 0].min()) if len(bounds) else None,
        far=float(bounds[:, 1].max()) if len(bounds) else None,
        notes=tuple(notes),
    )


def _is_picture_folder(path: Path) -> bool:
    return path.name in PICTURE_FOLDERS and os.path.isfile(path.parent / "poses_bounds.npy")


def _read_rows(file: Path) -> np.ndarray:
    try:
        # Mapped first, so that a header that promises terabytes meets the size of the file, not of the memory.
        array = np.load(file, allow_pickle=False, mmap_mode="r")
        if array.ndim != 2 or array.shape[1] != 17 or array.dtype.kind not in "fiu":
            raise CaptureError(f"{file} should hold N x 17 numbers, but holds {array.dtype} of shape {array.shape}.")
        return np.array(array, dtype=np.float64)
    except (OSError, ValueError, EOFError, SyntaxError, AttributeError, OverflowError) as error:
        raise CaptureError(f"{file} is not a NumPy array of N x 17 numbers: {error}") from error


def _picture_folder(root: Path) -> Path:
    for name in PICTURE_FOLDERS:
        if os.path.isdir(root / name):
            return root / name
    raise CaptureError(f"{root} has poses_bounds.npy but none of the picture folders {', '.join(PICTURE_FOLDERS)}.")


def _frame(row: np.ndarray, path: Path, name: str) -> Frame:
    matrix = row[:15].reshape(3, 5)
    height, width, focal = matrix[:, 4]
    sides_fit = all(0 < side <= LARGEST_SIDE and side == int(side) for side in (height, width))
    if not (np.isfinite(row[:15]).all() and sides_fit and focal > 0):
        raise FrameError("were left out because their row holds NaN, or a size or focal length that is not positive")
    down, right, back = matrix[:, 0], matrix[:, 1], matrix[:, 2]
    header = read_header(path)
    camera = Camera(
        cam_from_world=cam_from_world(np.stack([right, down, -back, matrix[:, 3]], axis=1)),
        intrinsics=torch.tensor([focal, focal, width / 2, height / 2], dtype=torch.float64),
        distortion=torch.zeros(0, dtype=torch.float64),
        width=int(width),
        height=int(height),
        lens=Lens.SIMPLE_PINHOLE,
    )
    fitted, rotate = fit_camera(camera, header)
    return Frame(path=path, camera=fitted, name=name, exif_rotate=rotate)


def _forward_facing(frames: list[Frame]) -> bool:
    forward = torch.stack([frame.camera.forward for frame in frames if frame.camera is not None])
    mean = forward.mean(dim=0)
    return bool((forward @ mean >= float(FORWARD_FACING) * mean.norm()).all()) and float(mean.norm()) > 0.5
