"""DeepVoxels (Sitzmann et al. 2019): synthetic objects on white, as nerf-pytorch reads them.

    train/cube/rgb/000000.png ...       pictures, 512 x 512; validation/cube and test/cube beside them
    train/cube/pose/000000.txt ...      **camera to world**, 4 x 4, OpenCV axes; the inverse where line 6 below is 1
    train/cube/intrinsics.txt           1: f cx cy _      2: barycentre      3: near plane      4: scale
                                        5: height width of the calibration   6: optional, 0 or 1

The file's numbers belong to a calibration picture of line 5 whose height became the side of the square pictures:
f is scaled by side / height, cx by side / width, cy by side / height. They count from the **centre** of the first pixel
(319.5 of 640 is the middle). The intrinsics of train serve all splits, and the content lies between the mean distance
of the cameras from the origin minus and plus 1, as in nerf-pytorch. Validation pictures are left out.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from ..capture import Capture, Frame
from ..errors import CaptureError
from . import nsvf
from .frames import FrameError, Names, Tally, list_pictures, listed, read_header, require_frames
from .matrices import inverse, pair, pinhole, read_matrix, read_rows, text_files

LOOKS_FOR = "train/OBJECT with rgb, pose and intrinsics.txt"


def sniff(path: Path) -> bool:
    """True for a folder with train/OBJECT, and for train/OBJECT itself, which chooses the object."""
    return bool(_objects(path))


def read(path: Path) -> Capture:
    """Read the training and test pictures of one object. Raises CaptureError, also when there are several objects."""
    objects = _objects(path)
    if not objects:
        raise CaptureError(f"{path} is not laid out like DeepVoxels. Looked for {LOOKS_FOR}.")
    if len(objects) > 1:
        raise CaptureError(
            f"{path} holds {len(objects)} objects ({listed([o.name for o in objects])}); "
            f"name one, such as {objects[0]}."
        )
    train = objects[0]
    root = train.parent.parent
    held_out = next((s for s in ("test", "validation") if _is_object(root / s / train.name)), None)
    rows = _intrinsics(train / "intrinsics.txt")
    tally, names = Tally(), Names()
    frames: list[Frame] = []
    found = 0
    for folder, split in (("train", "train"), (held_out, "test")):
        if folder is None:
            continue
        place = root / folder / train.name
        pairs = pair(list_pictures(place / "rgb"), text_files(place / "pose"), place)
        found += len(pairs)
        for picture, text in pairs:
            with tally.leaving_out(f"{folder}/{picture or text}", "pose file"):
                frames.append(_frame(place, picture, text, rows, split, names))
    notes = tally.notes(found)
    require_frames(frames, found, train, notes)
    distances = [float(frame.camera.center.norm()) for frame in frames if frame.camera is not None]
    radius = sum(distances) / len(distances)
    outside = radius > 1
    return Capture(
        root=root,
        format="deepvoxels",
        frames=tuple(frames),
        bounds=torch.tensor([[-1.0] * 3, [1.0] * 3], dtype=torch.float64) if outside else None,
        background="white",
        near=radius - 1 if outside else None,
        far=radius + 1 if outside else None,
        notes=notes,
    )


def _objects(path: Path) -> list[Path]:
    """The folders train/OBJECT that a path means."""
    if path.parent.name == "train" and _is_object(path):
        return [path]
    try:
        return sorted(entry for entry in (path / "train").iterdir() if _is_object(entry))
    except OSError:
        return []


def _is_object(folder: Path) -> bool:
    parts = os.path.isdir(folder / "rgb") and os.path.isdir(folder / "pose")
    return parts and os.path.isfile(folder / "intrinsics.txt") and not nsvf.sniff(folder)


def _intrinsics(file: Path) -> list[list[float]]:
    """The six rows of the file, checked. Raises CaptureError."""
    rows = read_rows(file)
    if len(rows) < 5 or len(rows[0]) < 3 or len(rows[4]) != 2:
        raise CaptureError(f"{file} should hold f cx cy, a barycentre, a near plane, a scale, and height width.")
    if (
        not all(side >= 1 and side == int(side) for side in rows[4] if np.isfinite(side))
        or not np.isfinite(rows[4]).all()
    ):
        raise CaptureError(f"Line 5 of {file} should be height and width in pixels, but is {rows[4]}.")
    return rows


def _frame(
    place: Path, picture: str | None, text: str | None, rows: list[list[float]], split: str, names: Names
) -> Frame:
    if picture is None:
        raise FrameError("were left out because the picture is not on disk")
    if text is None:
        raise FrameError("were left out because they have no pose file")
    matrix = read_matrix(place / "pose" / text, "a pose")
    if len(rows) > 5 and rows[5][0] == 1:
        matrix = inverse(matrix)
    (focal, cx, cy), (height, width) = rows[0][:3], rows[4]
    path = place / "rgb" / picture
    header = read_header(path)
    f = focal * header.height / height
    # Both axes share f, as the pictures are square crops of the calibration's.
    intrinsics = (f, f, (cx + 0.5) * header.width / width, (cy + 0.5) * header.height / height)
    camera, rotate = pinhole(path, matrix, intrinsics)
    name = names.new(f"{place.parent.name}/{place.name}/rgb/{picture}")
    return Frame(path=path, camera=camera, name=name, split=split, exif_rotate=rotate)
