"""Polycam's "raw data" export of a LiDAR capture (developer mode), as its own polyform project documents it.

    keyframes/corrected_images/ID.jpg     undistorted pictures     } made by Polycam's pose optimisation;
    keyframes/corrected_cameras/ID.json   globally optimised poses } absent when the session was too long for it
    keyframes/images/, keyframes/cameras/ the pictures as taken, with ARKit's poses
    keyframes/depth/ID.png                z-depth, 16 bits, millimetres, smaller than the picture; 0 where unknown
    keyframes/confidence/ID.png           how far to trust the depth: 0, 127 or 255

ID is the time in microseconds. A camera file has width, height, fx, fy, cx, cy in pixels, counted from the picture's
corner, and t_00 ... t_23, the first three rows of **camera to world** with OpenGL camera axes (x right, y up, z back).
ARKit's world has y up, against gravity, and metres. Undistortion leaves black pixels along the borders, and depths
beyond 5 m are guesses of the sensor; neither is changed here.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from ..cameras import Lens
from ..capture import Capture, Frame
from ..errors import CaptureError
from .calibration import calibrated
from .frames import (
    OPENCV_FROM_OPENGL,
    FrameError,
    Names,
    Tally,
    cam_from_world,
    find_picture,
    fit_camera,
    natural_key,
    read_header,
    require_frames,
)
from .transforms import Entry, read_document

LOOKS_FOR = "keyframes/corrected_cameras or keyframes/cameras (a Polycam raw data export, unzipped)"
KEYS = tuple(f"t_{row}{column}" for row in range(3) for column in range(4))


def sniff(path: Path) -> bool:
    """True for an export, and for its folder keyframes."""
    return _keyframes(path) is not None


def read(path: Path) -> Capture:
    """Read the optimised poses and the undistorted pictures, or those as taken where there are no others.

    Raises CaptureError.
    """
    keyframes = _keyframes(path)
    if keyframes is None:
        raise CaptureError(f"{path} is not a Polycam raw data export. Looked for {LOOKS_FOR}.")
    corrected = _camera_files(keyframes / "corrected_cameras") if _has(keyframes, "corrected_") else []
    cameras = corrected or _camera_files(keyframes / "cameras")
    pictures = keyframes / ("corrected_images" if corrected else "images")
    root = keyframes.parent
    tally, names = Tally(), Names()
    frames = []
    for file in cameras:
        written = f"{keyframes.name}/{pictures.name}/{file.stem}"
        try:
            frames.append(_frame(file, keyframes, pictures, written, names))
        except FrameError as reason:
            tally.add(str(reason), file.stem)
        except CaptureError:
            # One camera, one file: a damaged one costs its frame and no other.
            tally.add("were left out because their camera file is damaged", file.stem)
    notes = list(tally.notes(len(cameras)))
    require_frames(frames, len(cameras), keyframes, notes)
    if not corrected:
        notes.append("There are no corrected_cameras: the poses are ARKit's own, and the pictures are not undistorted.")
    return Capture(
        root=root,
        format="polycam",
        frames=tuple(frames),
        up=torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64),
        metric=True,
        notes=tuple(notes),
    )


def _keyframes(path: Path) -> Path | None:
    for folder in (path, path / "keyframes"):
        if any(_has(folder, prefix) for prefix in ("corrected_", "")) and folder.name == "keyframes":
            return folder
    return None


def _has(keyframes: Path, prefix: str) -> bool:
    return all(os.path.isdir(keyframes / f"{prefix}{kind}") for kind in ("cameras", "images"))


def _camera_files(folder: Path) -> list[Path]:
    try:
        files = [
            entry for entry in folder.iterdir() if entry.suffix.lower() == ".json" and not entry.name.startswith(".")
        ]
    except OSError as error:
        raise CaptureError(f"The folder {folder} cannot be listed: {error.strerror}.") from error
    return sorted(files, key=lambda file: natural_key(file.stem))


def _frame(file: Path, keyframes: Path, pictures: Path, written: str, names: Names) -> Frame:
    path = find_picture(pictures, file.stem)
    if path is None:
        raise FrameError("were left out because the picture is not on disk")
    entry = read_document(file)
    fx, fy, cx, cy, width, height, *rows = (
        _number(entry, k) for k in ("fx", "fy", "cx", "cy", "width", "height", *KEYS)
    )
    matrix = np.array(rows).reshape(3, 4)
    matrix[:, :3] = matrix[:, :3] @ OPENCV_FROM_OPENGL
    camera = calibrated(Lens.PINHOLE, (fx, fy, cx, cy), (), width, height, cam_from_world(matrix))
    fitted, rotate = fit_camera(camera, read_header(path))
    depth = keyframes / "depth" / f"{file.stem}.png"
    return Frame(
        path=path,
        camera=fitted,
        name=names.new(f"{written}{path.suffix}"),
        depth=depth if os.path.isfile(depth) else None,
        depth_scale=0.001,
        exif_rotate=rotate,
    )


def _number(entry: Entry, key: str) -> float:
    value = entry.number(key)
    if value is None:
        raise FrameError(f"were left out because their camera file has no {key}")
    return value
