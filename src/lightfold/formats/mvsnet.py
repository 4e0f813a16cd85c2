"""MVSNet's layout (Yao et al. 2018), and BlendedMVS as published (Yao et al. 2020), which is stored in it.

    images/00000000.jpg ...                     pictures (MVSNet); or
    blended_images/00000000.jpg ...             pictures (BlendedMVS); the copies NAME_masked.jpg are not read
    cams/00000000_cam.txt ...                   "extrinsic", **world to camera** 4 x 4; "intrinsic", 3 x 3;
                                                depth_min depth_interval [depth_num [depth_max]]
    cams/pair.txt, pair.txt                     neighbours of each view, for stereo; not read
    rendered_depth_maps/00000000.pfm ...        z-depth in the world's units, 0 where unknown; also depths/

Axes are OpenCV's, and principal points count from the picture's corner, as MVSNet's warping does. Content lies between
the smallest depth_min and the largest depth_max; a depth_min that is not positive states nothing.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from ..capture import Capture, Frame
from ..errors import CaptureError
from .calibration import read_bytes
from .frames import FrameError, Names, Tally, find_companion, natural_key, require_frames
from .matrices import LARGEST_FILE, find_inside, inverse, pinhole

LOOKS_FOR = "a folder cams with files NUMBER_cam.txt, and a folder blended_images or images"
PICTURE_FOLDERS = ("blended_images", "images")
DEPTH_FOLDERS = ("rendered_depth_maps", "depths")
END = "_cam.txt"


def sniff(path: Path) -> bool:
    """True for a folder with camera files in cams and a folder of pictures."""
    return _pictures(path) is not None and bool(_camera_files(path))


def read(path: Path) -> Capture:
    """Read a frame for every camera file whose picture is there. Raises CaptureError."""
    pictures, files = _pictures(path), _camera_files(path)
    if pictures is None or not files:
        raise CaptureError(f"{path} is not a capture in MVSNet's layout. Looked for {LOOKS_FOR}.")
    tally, names = Tally(), Names()
    frames, ranges = [], []
    for name in files:
        with tally.leaving_out(name.removesuffix(END), "camera file"):
            frame, depths = _frame(path, pictures, name, tally, names)
            frames.append(frame)
            ranges.append(depths)
    notes = tally.notes(len(files))
    require_frames(frames, len(files), path, notes)
    near = min(near for near, _ in ranges)
    far = max(far for _, far in ranges)
    return Capture(
        root=path,
        format="mvsnet",
        frames=tuple(frames),
        near=near if 0 < near < far else None,
        far=far if 0 < far < math.inf else None,
        notes=notes,
    )


def read_camera(file: Path) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """cam_from_world [4, 4], K [3, 3] and the depth range (0 to 4 numbers) of a camera file. Raises CaptureError."""
    words = read_bytes(file, LARGEST_FILE).decode("utf-8", errors="replace").split()
    if len(words) < 27 or words[0] != "extrinsic" or words[17] != "intrinsic":
        raise CaptureError(f"{file} should hold 'extrinsic' and 16 numbers, 'intrinsic' and 9, and a depth range.")
    try:
        numbers = [float(word) for word in (*words[1:17], *words[18:])]
    except ValueError as error:
        raise CaptureError(f"{file} should hold numbers after 'extrinsic' and 'intrinsic': {error}.") from error
    return np.array(numbers[:16]).reshape(4, 4), np.array(numbers[16:25]).reshape(3, 3), numbers[25:29]


def _pictures(path: Path) -> str | None:
    return next((name for name in PICTURE_FOLDERS if os.path.isdir(path / name)), None)


def _camera_files(path: Path) -> list[str]:
    try:
        found = [e.name for e in os.scandir(path / "cams") if e.name.endswith(END) and e.is_file()]
        return sorted(found, key=natural_key)
    except OSError:
        return []


def _frame(root: Path, pictures: str, name: str, tally: Tally, names: Names) -> tuple[Frame, tuple[float, float]]:
    stem = name.removesuffix(END)
    path = find_inside(root / pictures, stem)
    if path is None:
        raise FrameError("were left out because the picture is not on disk")
    pose, k, depths = read_camera(root / "cams" / name)
    camera, rotate = pinhole(path, inverse(pose), (k[0, 0], k[1, 1], k[0, 2], k[1, 2]), tally=tally)
    places = (find_companion(root / folder, stem, (".pfm", ".npy", ".exr")) for folder in DEPTH_FOLDERS)
    frame = Frame(
        path=path,
        camera=camera,
        name=names.new(f"{pictures}/{path.name}"),
        depth=next((place for place in places if place is not None), None),
        depth_scale=1.0,
        exif_rotate=rotate,
    )
    return frame, _range(depths)


def _range(depths: list[float]) -> tuple[float, float]:
    """Near and far of a camera file; 0 and infinity where it does not state them."""
    if not depths or not np.isfinite(depths).all():
        return 0.0, math.inf
    near = max(depths[0], 0.0)
    if len(depths) == 4:
        return near, depths[3]
    return near, depths[0] + depths[1] * (depths[2] - 1) if len(depths) == 3 else math.inf
