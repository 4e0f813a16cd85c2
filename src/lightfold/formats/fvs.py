"""Free View Synthesis' layout of Tanks and Temples (Riegler and Koltun 2020), which Stable View Synthesis shares.

    dense/ibr3d_pw_0.50/im_00000000.jpg ...     pictures at this share of their size
    dense/ibr3d_pw_0.50/dm_00000000.npy ...     z-depth rendered from a mesh, in the world's units
    dense/ibr3d_pw_0.50/{Ks,Rs,ts}.npy          intrinsics [N, 3, 3] and **world to camera** [N, 3, 3], [N, 3]

The numbers in the names index the arrays. Axes are OpenCV's; principal points count from the picture's corner, as in
the COLMAP model that they come from.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from ..capture import Capture, Frame
from ..errors import CaptureError
from .frames import FrameError, Names, Tally, find_picture, require_frames
from .matrices import inverse, pinhole, read_array

LOOKS_FOR = "Ks.npy, Rs.npy and ts.npy beside im_00000000.jpg, in a folder ibr3d_pw_..."
ARRAYS = ("Ks.npy", "Rs.npy", "ts.npy")
SCALE = re.compile(r"ibr3d_pw_([0-9.]+)$")


def sniff(path: Path) -> bool:
    """True for a folder with the three arrays, and for a scene that holds one."""
    return _folder(path) is not None


def read(path: Path) -> Capture:
    """Read the folder that was named, or the one with the largest pictures. Raises CaptureError."""
    folder = _folder(path)
    if folder is None:
        raise CaptureError(f"{path} is not a scene in the layout of Free View Synthesis. Looked for {LOOKS_FOR}.")
    ks = read_array(folder / "Ks.npy", "N 3 x 3 matrices", (3, 3))
    rotations = read_array(folder / "Rs.npy", "N 3 x 3 rotations", (3, 3))
    shifts = read_array(folder / "ts.npy", "N translations", (3,), (3, 1)).reshape(-1, 3)
    if not len(ks) == len(rotations) == len(shifts):
        raise CaptureError(
            f"Ks.npy, Rs.npy and ts.npy in {folder} should have one row per picture each, but have {len(ks)}, "
            f"{len(rotations)} and {len(shifts)}."
        )
    tally, names = Tally(), Names()
    frames = []
    for index, (k, rotation, shift) in enumerate(zip(ks, rotations, shifts, strict=True)):
        with tally.leaving_out(f"im_{index:08d}"):
            frames.append(_frame(folder, index, k, np.column_stack([rotation, shift]), tally, names))
    notes = tally.notes(len(ks))
    require_frames(frames, len(ks), folder, notes)
    return Capture(root=folder, format="fvs", frames=tuple(frames), notes=notes)


def _folder(path: Path) -> Path | None:
    for place in (path, path / "dense"):
        if all(os.path.isfile(place / name) for name in ARRAYS):
            return place
        try:
            inside = [e for e in place.iterdir() if SCALE.match(e.name) and os.path.isfile(e / "Ks.npy")]
        except OSError:
            inside = []
        if inside:
            return max(inside, key=lambda e: (_scale(e.name), e.name))
    return None


def _scale(name: str) -> float:
    try:
        return float(name.rpartition("_")[2])
    except ValueError:
        return 0.0


def _frame(folder: Path, index: int, k: np.ndarray, pose: np.ndarray, tally: Tally, names: Names) -> Frame:
    path = find_picture(folder, f"im_{index:08d}")
    if path is None:
        raise FrameError("were left out because the picture is not on disk")
    camera, rotate = pinhole(path, inverse(pose), (k[0, 0], k[1, 1], k[0, 2], k[1, 2]), tally=tally)
    depth = folder / f"dm_{index:08d}.npy"
    return Frame(
        path=path,
        camera=camera,
        name=names.new(path.name),
        depth=depth if os.path.isfile(depth) else None,
        depth_scale=1.0,
        exif_rotate=rotate,
    )
