"""The multi-view stereo sets of Middlebury (Seitz et al. 2006): temple, dino, and whatever else is stored like them.

    NAME_par.txt   the number of pictures, then a line for each: picture k11 ... k33 r11 ... r33 t1 t2 t3
    NAME_ang.txt   viewing angles, which say nothing more
    README.txt     a sentence with the bounding box of the model

K [R | t] projects a point of the world (metres) to pixels, with OpenCV axes. The set does not say where a pixel has its
centre; calibration tools of its day count from the **centre** of the first, and so does this. The object stands in the
dark, and the box of README.txt bounds the scene.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..cameras import Lens
from ..capture import Capture, Frame
from ..errors import CaptureError
from .calibration import calibrated, camera_files, one_camera_file, read_bytes, skewed
from .frames import (
    FrameError,
    Names,
    Tally,
    cam_from_world,
    find_picture,
    nearest_rotation,
    read_header,
    require_frames,
)

LOOKS_FOR = "a file whose name ends in _par.txt, beside its pictures"
END = "_par.txt"
LARGEST_FILE = 16 * 2**20
_NUMBER = r"([-+]?[0-9]+\.?[0-9]*(?:[eE][-+]?[0-9]+)?)"
_CORNER = rf"\(\s*{_NUMBER}\s+{_NUMBER}\s+{_NUMBER}\s*\)"
BOX = re.compile(rf"bounding box[^(]*{_CORNER}\s*{_CORNER}", re.IGNORECASE)


def sniff(path: Path) -> bool:
    """True for a folder with a file NAME_par.txt, and for the file itself."""
    return bool(camera_files(path, END, bool))


def read(path: Path) -> Capture:
    """Read the cameras, and the box from README.txt where it has one. Raises CaptureError."""
    file = one_camera_file(path, camera_files(path, END, bool), LOOKS_FOR)
    root = file.parent
    rows = _rows(file)
    tally, names = Tally(), Names()
    frames = []
    for name, numbers in rows:
        try:
            frames.append(_frame(root, name, numbers, tally, names))
        except FrameError as reason:
            tally.add(str(reason), name)
    notes = list(tally.notes(len(rows)))
    require_frames(frames, len(rows), file, notes)
    bounds = _bounds(root / "README.txt")
    if bounds is None:
        notes.append("There is no README.txt with a bounding box, so nothing bounds the scene.")
    return Capture(root=root, format="middlebury", frames=tuple(frames), bounds=bounds, notes=tuple(notes))


def _rows(file: Path) -> list[tuple[str, np.ndarray]]:
    """Pictures and their 21 numbers. The names may hold spaces; the numbers stand behind them."""
    rows = []
    for number, line in enumerate(
        read_bytes(file, LARGEST_FILE).decode("utf-8", errors="replace").splitlines(), start=1
    ):
        words = line.rsplit(maxsplit=21)
        if not words or (number == 1 and len(words) == 1):
            continue
        try:
            if len(words) != 22:
                raise ValueError("too few")
            rows.append((words[0].strip(), np.array([float(word) for word in words[1:]])))
        except ValueError as error:
            raise CaptureError(
                f"Line {number} of {file} is not a picture and 21 numbers (K, R, t): {line.strip()[:80]!r}."
            ) from error
    return rows


def _frame(root: Path, name: str, numbers: np.ndarray, tally: Tally, names: Names) -> Frame:
    path = find_picture(root, Path(name.replace("\\", "/")).name)
    if path is None:
        raise FrameError("were left out because the picture is not on disk")
    k, rotation, translation = numbers[:9].reshape(3, 3), numbers[9:18].reshape(3, 3), numbers[18:]
    if not np.isfinite(numbers).all() or not abs(k[2, 2]) > 1e-12:
        raise FrameError("were left out because their camera holds NaN, infinity or a K that is none")
    header = read_header(path)
    k = k / k[2, 2]
    if k[1, 1] > 0 and skewed(k, header.width, header.height):
        tally.add("have pixel axes that are not at right angles (skew), which is ignored", name)
    rotation = nearest_rotation(rotation)
    world_from_cam = np.concatenate([rotation.T, -rotation.T @ translation[:, None]], axis=1)
    intrinsics = (k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5)
    pose = cam_from_world(world_from_cam)
    camera = calibrated(Lens.PINHOLE, intrinsics, (), header.width, header.height, pose)
    return Frame(path=path, camera=camera, name=names.new(path.name))


def _bounds(readme: Path) -> Tensor | None:
    """The box [2, 3] that README.txt states, when it states one."""
    if not os.path.isfile(readme):
        return None
    found = BOX.search(read_bytes(readme, LARGEST_FILE).decode("utf-8", errors="replace"))
    if found is None:
        return None
    corners = torch.tensor([float(number) for number in found.groups()], dtype=torch.float64).view(2, 3)
    lower, upper = corners.amin(0), corners.amax(0)
    return torch.stack([lower, upper]) if bool(torch.isfinite(corners).all() and (lower < upper).all()) else None
