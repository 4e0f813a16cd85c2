"""NeRF++'s layout of Tanks and Temples and its other captures (Zhang et al. 2020): a file of numbers per picture.

    train/rgb/000000.png ...        pictures; test/ (or validation/) holds those to test on
    train/pose/000000.txt ...       **camera to world**, 4 x 4, OpenCV axes
    train/intrinsics/000000.txt ... 4 x 4; principal points count from the picture's corner, as in COLMAP
    camera_path/                    poses to render along, which are not read

NeRF++ expects the cameras inside the unit sphere; nothing here depends on that.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..capture import Capture, Frame
from ..errors import CaptureError
from .frames import FrameError, Names, Tally, list_pictures, require_frames
from .matrices import pair, pinhole, read_matrix, text_files

LOOKS_FOR = "folders train/rgb, train/pose and train/intrinsics"


def sniff(path: Path) -> bool:
    """True for a folder whose train holds rgb, pose and intrinsics."""
    return _is_split(path / "train")


def read(path: Path) -> Capture:
    """Read the training and the test pictures. Raises CaptureError."""
    if not _is_split(path / "train"):
        raise CaptureError(f"{path} is not a capture in NeRF++'s layout. Looked for {LOOKS_FOR}.")
    held_out = next((name for name in ("test", "validation") if _is_split(path / name)), None)
    tally, names = Tally(), Names()
    frames: list[Frame] = []
    found = 0
    for folder, split in (("train", "train"), (held_out, "test")):
        if folder is None:
            continue
        root = path / folder
        pairs = pair(list_pictures(root / "rgb"), text_files(root / "pose"), root)
        found += len(pairs)
        for picture, text in pairs:
            with tally.leaving_out(f"{folder}/{picture or text}", "pose or intrinsics file"):
                frames.append(_frame(root, picture, text, split, tally, names))
    notes = tally.notes(found)
    require_frames(frames, found, path, notes)
    return Capture(root=path, format="nerfpp", frames=tuple(frames), notes=notes)


def _is_split(folder: Path) -> bool:
    return all(os.path.isdir(folder / name) for name in ("rgb", "pose", "intrinsics"))


def _frame(root: Path, picture: str | None, text: str | None, split: str, tally: Tally, names: Names) -> Frame:
    if picture is None:
        raise FrameError("were left out because the picture is not on disk")
    if text is None:
        raise FrameError("were left out because they have no pose file")
    if not os.path.isfile(root / "intrinsics" / text):
        raise FrameError("were left out because they have no intrinsics file")
    world_from_cam = read_matrix(root / "pose" / text, "a camera-to-world matrix")
    k = read_matrix(root / "intrinsics" / text, "an intrinsics matrix")
    path = root / "rgb" / picture
    camera, rotate = pinhole(path, world_from_cam, (k[0, 0], k[1, 1], k[0, 2], k[1, 2]), tally=tally)
    return Frame(
        path=path, camera=camera, name=names.new(f"{root.name}/rgb/{picture}"), split=split, exif_rotate=rotate
    )
