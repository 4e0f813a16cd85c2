"""DTU as published (Jensen et al. 2014): scans from a robot's arm, each view under seven lights and under all of them.

    Rectified/scan65/rect_001_3_r5000.png ...   view from 1, light 0 to 6 or max, shutter; 1600 x 1200
    Calibration/cal18/pos_001.txt ...           **projection** K [R | t], 3 x 4, from the world (millimetres) to pixels
    Cameras/00000000_cam.txt ...                or: the same as MVSNet stores it, view from 0
    Rectified/scan65_train/...                  MVSNet's training copies: halved and cropped to 640 x 512, with
    Cameras/train/00000000_cam.txt ...          intrinsics for 160 x 128, and
    Depths/scan65_train/depth_map_0000.pfm ...  z-depth in millimetres, view from 0

The calibration counts from the **centre** of the first pixel. The camera files are looked for in the folder of the scan
and in the two above it. Light 3 is the most even one and is what is read; naming one picture, such as
scan65/rect_001_max.png, chooses its light.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from ..capture import Capture, Frame
from ..errors import CaptureError
from .calibration import decompose
from .frames import FrameError, Names, Tally, list_pictures, read_header, require_frames
from .matrices import inverse, pinhole, read_numbers
from .mvsnet import read_camera

LOOKS_FOR = "pictures named like rect_001_3_r5000.png, with cal18 or Cameras up to two folders above"
PICTURE = re.compile(r"rect_([0-9]{3})_([0-6]|max)(_[^.]*)?\.png")
LIGHT = "3"
# Where projections lie, and camera files; as seen from the folder of the scan or from one above it.
PROJECTIONS = ("Calibration/cal18", "cal18")
TRAINING_SIZE, TRAINING_PICTURE = (160, 128), (640, 512)
# Half a pixel of the full picture, whose centres the calibration counts from, is an eighth of that at 160 x 128.
HALF_PIXEL_OF_TRAINING = 0.0625


def sniff(path: Path) -> bool:
    """True for the folder of a scan, and for one of its pictures, which chooses the light."""
    if PICTURE.fullmatch(path.name):
        return os.path.isfile(path)
    try:
        return any(PICTURE.fullmatch(entry.name) for entry in os.scandir(path))
    except OSError:
        return False


def read(path: Path) -> Capture:
    """Read the views of a scan under one light. Raises CaptureError."""
    chosen = PICTURE.fullmatch(path.name)
    root = path.parent if chosen else path
    by_light: dict[str, dict[int, str]] = {}
    for name in list_pictures(root):
        match = PICTURE.fullmatch(name)
        if match:
            by_light.setdefault(match[2], {}).setdefault(int(match[1]), name)
    light = (
        chosen[2]
        if chosen
        else LIGHT
        if LIGHT in by_light
        else max(by_light, key=lambda k: len(by_light[k]), default="")
    )
    views = by_light.get(light, {})
    if not views:
        raise CaptureError(f"{root} has no pictures of a DTU scan. Looked for {LOOKS_FOR}.")
    tally, names = Tally(), Names()
    frames = []
    for view, name in views.items():
        try:
            frames.append(_frame(root, view, name, names))
        except FrameError as reason:
            tally.add(str(reason), name)
        except CaptureError as error:
            tally.add(f"were left out because their camera file is damaged ({error})", name)
    notes = list(tally.notes(len(views)))
    require_frames(frames, len(views), root, notes)
    others = sorted(set(by_light) - {light})
    if others:
        notes.append(f"The pictures are those under light {light}; name one of another ({', '.join(others)}) for its.")
    return Capture(root=root, format="dtu", frames=tuple(frames), notes=tuple(notes))


def _frame(root: Path, view: int, name: str, names: Names) -> Frame:
    path = root / name
    header = read_header(path)
    training = (header.width, header.height) == TRAINING_PICTURE
    places = [p for p in (f"{folder}/pos_{view:03d}.txt" for folder in PROJECTIONS) if not training]
    places.append(f"Cameras/{'train/' if training else ''}{view - 1:08d}_cam.txt")
    file = next((a / p for a in (root, root.parent, root.parent.parent) for p in places if os.path.isfile(a / p)), None)
    if file is None:
        raise FrameError(f"were left out because their camera ({places[0]} and the like) is not on disk")
    if file.name.endswith("_cam.txt"):
        pose, k, _ = read_camera(file)
    else:
        k, pose = decompose(read_numbers(file, "a projection matrix", 12).reshape(3, 4))
    shift = HALF_PIXEL_OF_TRAINING if training else 0.5
    intrinsics = (k[0, 0], k[1, 1], k[0, 2] + shift, k[1, 2] + shift)
    camera, rotate = pinhole(path, inverse(np.asarray(pose)), intrinsics, TRAINING_SIZE if training else None)
    depth = root.parent.parent / "Depths" / root.name / f"depth_map_{view - 1:04d}.pfm"
    return Frame(
        path=path,
        camera=camera,
        name=names.new(name),
        depth=depth if os.path.isfile(depth) else None,
        depth_scale=1.0,
        exif_rotate=rotate,
    )
