"""NSVF's layout (Liu et al. 2020): its synthetic scenes, and its versions of Tanks and Temples and BlendedMVS.

    rgb/0_00000.png ...     pictures; the first digit is the split: 0 train, 1 validation, 2 test
    pose/0_00000.txt ...    **camera to world**, 4 x 4, OpenCV axes
    intrinsics.txt          4 x 4 (or 3 x 3); or, as in DeepVoxels, "f cx cy 0", and "height width" in the only line
                            of two numbers
    bbox.txt                xmin ymin zmin xmax ymax zmax, and the size of a voxel
    test_traj.txt           a path to render along, which is not read

Where no picture has the digit 2 (Tanks and Temples, BlendedMVS), 1 is the test split; else validation pictures are left
out. Principal points count from the picture's corner (half the width is the middle). The box holds the object; what is
transparent, or outside the object, is white.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..capture import Capture, Frame
from ..errors import CaptureError
from .frames import FrameError, Names, Tally, list_pictures, require_frames
from .matrices import pair, pinhole, read_matrix, read_numbers, read_rows, text_files

LOOKS_FOR = "folders rgb and pose, intrinsics.txt, and bbox.txt or names like 0_00000.png"
SPLIT = re.compile(r"([012])_")


def sniff(path: Path) -> bool:
    """True for a folder with rgb, pose and intrinsics.txt, and with bbox.txt or the digits of the splits."""
    if not (os.path.isdir(path / "rgb") and os.path.isdir(path / "pose") and os.path.isfile(path / "intrinsics.txt")):
        return False
    try:
        return os.path.isfile(path / "bbox.txt") or _has_digits(list_pictures(path / "rgb"))
    except CaptureError:
        return False


def read(path: Path) -> Capture:
    """Read the pictures with their poses, and the box. Raises CaptureError."""
    if not (os.path.isdir(path / "rgb") and os.path.isdir(path / "pose")):
        raise CaptureError(f"{path} is not a scene in NSVF's layout. Looked for {LOOKS_FOR}.")
    intrinsics, size = read_intrinsics(path / "intrinsics.txt")
    pictures = list_pictures(path / "rgb")
    split_of = {"0": "train", "1": "test"}
    if _has_digits(pictures):
        if any(name.startswith("2_") for name in pictures):
            split_of = {"0": "train", "2": "test"}
    else:
        split_of = {}
    pairs = pair(pictures, text_files(path / "pose"), path)
    tally, names = Tally(), Names()
    frames = []
    for picture, text in pairs:
        digit = (picture or str(text))[0]
        if split_of and digit not in split_of:
            tally.add("were left out because they are the validation split", picture or str(text))
            continue
        with tally.leaving_out(picture or str(text), "pose file"):
            frames.append(_frame(path, picture, text, intrinsics, size, split_of.get(digit), tally, names))
    notes = list(tally.notes(len(pairs)))
    require_frames(frames, len(pairs), path, notes)
    return Capture(
        root=path,
        format="nsvf",
        frames=tuple(frames),
        bounds=_bounds(path / "bbox.txt", notes),
        background="white",
        notes=tuple(notes),
    )


def read_intrinsics(file: Path) -> tuple[tuple[float, float, float, float], tuple[float, float] | None]:
    """fx, fy, cx, cy as written, and the size (width, height) that they belong to where the file states it.

    Raises CaptureError.
    """
    rows = read_rows(file)
    lengths = [len(row) for row in rows]
    if lengths in ([4] * 4, [3] * 3, [16], [9]):
        k = np.array([number for row in rows for number in row])
        k = k.reshape(4, 4) if k.size == 16 else k.reshape(3, 3)
        return (k[0, 0], k[1, 1], k[0, 2], k[1, 2]), None
    if not rows or len(rows[0]) < 3:
        raise CaptureError(f"{file} should hold a 4 x 4 matrix, or f cx cy in its first line.")
    focal, cx, cy = rows[0][:3]
    size = next((row for row in rows[1:] if len(row) == 2), None)
    return (focal, focal, cx, cy), None if size is None else (size[1], size[0])


def _has_digits(pictures: list[str]) -> bool:
    return bool(pictures) and all(SPLIT.match(name) for name in pictures)


def _frame(
    root: Path,
    picture: str | None,
    text: str | None,
    intrinsics: tuple[float, float, float, float],
    size: tuple[float, float] | None,
    split: str | None,
    tally: Tally,
    names: Names,
) -> Frame:
    if picture is None:
        raise FrameError("were left out because the picture is not on disk")
    if text is None:
        raise FrameError("were left out because they have no pose file")
    world_from_cam = read_matrix(root / "pose" / text, "a camera-to-world matrix")
    path = root / "rgb" / picture
    camera, rotate = pinhole(path, world_from_cam, intrinsics, size, tally)
    return Frame(path=path, camera=camera, name=names.new(f"rgb/{picture}"), split=split, exif_rotate=rotate)


def _bounds(file: Path, notes: list[str]) -> Tensor | None:
    """The box [2, 3]. Training works without, so a damaged file is a note."""
    if not os.path.isfile(file):
        notes.append("There is no bbox.txt, so nothing bounds the scene.")
        return None
    try:
        box = read_numbers(file, "a box and the size of a voxel", 6, 7)[:6].reshape(2, 3)
    except CaptureError as error:
        notes.append(f"Nothing bounds the scene. {error}")
        return None
    if not (np.isfinite(box).all() and (box[0] < box[1]).all()):
        notes.append(f"Nothing bounds the scene: the box of {file} is not finite, or empty.")
        return None
    return torch.from_numpy(box)
