"""ScanNet (Dai et al. 2017): a room walked through with a tablet and its depth camera, as exported from a .sens file.

    color/0.jpg ...                     pictures, 1296 x 968
    depth/0.png ...                     z-depth, 16 bits, millimetres, 640 x 480; 0 where unknown
    pose/0.txt ...                      **camera to world**, 4 x 4, OpenCV axes; -inf where tracking was lost
    intrinsic/intrinsic_color.txt       4 x 4; the calibration counts from the **centre** of the first pixel
    intrinsic/{intrinsic,extrinsic}_{depth,color}.txt

The world is in metres with z up. The depth camera sees what the colour camera sees to within a percent; its maps are
taken as the colour camera's. Source: the data set's SensReader.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from ..capture import Capture, Frame
from ..errors import CaptureError
from .frames import FrameError, Names, Tally, list_pictures, require_frames
from .matrices import pair, pinhole, read_matrix, text_files

LOOKS_FOR = "folders color, pose and intrinsic (an exported .sens file of ScanNet)"
MILLIMETRE = 0.001


def sniff(path: Path) -> bool:
    """True for a folder with color, pose and intrinsic/intrinsic_color.txt."""
    return _root(path) is not None


def read(path: Path) -> Capture:
    """Read a frame for every picture with a pose, with depth where there is any. Raises CaptureError."""
    root = _root(path)
    if root is None:
        raise CaptureError(f"{path} is not an exported ScanNet scene. Looked for {LOOKS_FOR}.")
    k = read_matrix(root / "intrinsic" / "intrinsic_color.txt", "the intrinsics of the colour camera")
    pairs = pair(list_pictures(root / "color"), text_files(root / "pose"), root)
    tally, names = Tally(), Names()
    frames = []
    for picture, text in pairs:
        with tally.leaving_out(picture or str(text), "pose file"):
            frames.append(_frame(root, picture, text, k, tally, names))
    notes = tally.notes(len(pairs))
    require_frames(frames, len(pairs), root, notes)
    return Capture(
        root=root,
        format="scannet",
        frames=tuple(frames),
        up=torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64),
        metric=True,
        notes=notes,
    )


def _root(path: Path) -> Path | None:
    for root in (path, path / "frames"):
        folders = os.path.isdir(root / "color") and os.path.isdir(root / "pose")
        if folders and os.path.isfile(root / "intrinsic" / "intrinsic_color.txt"):
            return root
    return None


def _frame(root: Path, picture: str | None, text: str | None, k: np.ndarray, tally: Tally, names: Names) -> Frame:
    if picture is None:
        raise FrameError("were left out because the picture is not on disk")
    if text is None:
        raise FrameError("were left out because they have no pose file")
    world_from_cam = read_matrix(root / "pose" / text, "a camera-to-world matrix")
    if not np.isfinite(world_from_cam).all():
        raise FrameError("were left out because tracking was lost there (their pose is infinite)")
    path = root / "color" / picture
    camera, rotate = pinhole(path, world_from_cam, (k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5), tally=tally)
    depth = root / "depth" / f"{path.stem}.png"
    return Frame(
        path=path,
        camera=camera,
        name=names.new(f"color/{picture}"),
        depth=depth if os.path.isfile(depth) else None,
        depth_scale=MILLIMETRE,
        exif_rotate=rotate,
    )
