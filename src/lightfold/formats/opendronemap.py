"""OpenSfM's reconstruction.json, which OpenDroneMap keeps in its folder opensfm.

    opensfm/reconstruction.json (or reconstruction.json itself), with the pictures in images

A list of reconstructions, each with cameras, shots and points. A shot has `rotation`, an axis times an angle, and
`translation`, **world to camera** with OpenCV axes. Where the pictures had GPS positions the world is metric, with x
east, y north and z up at reference_lla. Intrinsics are in units of the picture's longer side and count from its middle:

    perspective                       focal, k1, k2
    brown                             focal_x, focal_y, c_x, c_y, k1, k2, k3, p1, p2
    simple_radial, radial             the same without tangential terms
    fisheye                           focal, k1, k2 of the angle; fisheye_opencv: focal_x ... k1, k2, k3, k4
    spherical, equirectangular        none
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cameras import Camera, Lens
from ..capture import Capture, Frame, Points
from ..errors import CaptureError
from ..geometry import so3_exp
from .calibration import brown_lens, calibrated, finite_numbers, read_bytes
from .frames import FrameError, Names, Tally, fit_camera, listed, natural_key, read_header, require_frames
from .picture_index import PictureIndex

LOOKS_FOR = "opensfm/reconstruction.json (OpenDroneMap) or reconstruction.json (OpenSfM), with a folder images"
FILES = ("opensfm/reconstruction.json", "reconstruction.json")
LARGEST_FILE = 1 << 30


def sniff(path: Path) -> bool:
    """True for a project of OpenDroneMap or OpenSfM, and for its reconstruction.json."""
    return _file(path) is not None


def read(path: Path) -> Capture:
    """Read the reconstruction with the most shots, and its points. Raises CaptureError."""
    file = _file(path)
    if file is None:
        raise CaptureError(f"{path} has no {' and no '.join(FILES)}.")
    root = file.parent.parent if file.parent.name == "opensfm" else file.parent
    notes: list[str] = []
    reconstruction = _largest(_load(file), file, notes)
    cameras, shots = _table(reconstruction, "cameras", file), _table(reconstruction, "shots", file)
    index = PictureIndex(root / "images" if os.path.isdir(root / "images") else root)
    tally, names = Tally(), Names()
    frames = []
    for name in sorted(shots, key=natural_key):
        try:
            frames.append(_frame(name, shots[name], cameras, index, names))
        except FrameError as reason:
            tally.add(str(reason), name)
    notes += tally.notes(len(shots), "shots")
    require_frames(frames, len(shots), file, notes)
    return Capture(
        root=root,
        format="opendronemap",
        frames=tuple(frames),
        points=_points(reconstruction.get("points")),
        up=torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64) if _georeferenced(reconstruction) else None,
        notes=tuple(notes),
    )


def _file(path: Path) -> Path | None:
    if path.name == "reconstruction.json" and os.path.isfile(path):
        return path
    return next((path / name for name in FILES if os.path.isfile(path / name)), None)


# --- JSON -----------------------------------------------------------------------------------------------------------


def _load(file: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(read_bytes(file, LARGEST_FILE).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise CaptureError(f"{file} is not valid JSON: {str(error)[:200]}.") from error
    if not isinstance(content, list) or not content or not all(isinstance(item, dict) for item in content):
        raise CaptureError(f"{file} should hold a list of reconstructions, and holds none.")
    return content


def _table(reconstruction: dict[str, Any], key: str, file: Path) -> dict[str, dict[str, Any]]:
    table = reconstruction.get(key)
    if not isinstance(table, dict) or not all(isinstance(entry, dict) for entry in table.values()):
        raise CaptureError(f"A reconstruction of {file} has no {key}.")
    return table


def _largest(reconstructions: list[dict[str, Any]], file: Path, notes: list[str]) -> dict[str, Any]:
    """The reconstruction with the most shots; they have no common frame, so the others cannot be used with it."""
    sizes = [len(_table(reconstruction, "shots", file)) for reconstruction in reconstructions]
    best = max(range(len(sizes)), key=lambda i: (sizes[i], -i))
    if len(sizes) > 1:
        others = [f"{size} shots" for i, size in enumerate(sizes) if i != best]
        notes.append(
            f"Of {len(sizes)} reconstructions, the one with {sizes[best]} shots is used, and not {listed(others)}."
        )
    return reconstructions[best]


def _number(entry: dict[str, Any], key: str, default: float | None = None) -> float:
    return finite_numbers([entry.get(key, default)], 1, f"the {key} of their camera")[0]


def _vector(entry: dict[str, Any], key: str) -> Tensor:
    return torch.tensor(finite_numbers(entry.get(key), 3, f"their {key}"), dtype=torch.float64)


def _georeferenced(reconstruction: dict[str, Any]) -> bool:
    """Whether the world is set by GPS. Without, OpenSfM writes a reference at zero, and up is only its guess."""
    reference = reconstruction.get("reference_lla")
    if not isinstance(reference, dict):
        return False
    return any(
        isinstance(reference.get(key), (int, float)) and reference[key] != 0 for key in ("latitude", "longitude")
    )


# --- frames and points ----------------------------------------------------------------------------------------------


def _frame(
    name: str, shot: dict[str, Any], cameras: dict[str, dict[str, Any]], index: PictureIndex, names: Names
) -> Frame:
    path, written = index.take(name)
    rotation, translation = (_vector(shot, key) for key in ("rotation", "translation"))
    pose = torch.cat([so3_exp(rotation), translation[:, None]], dim=1)
    model = cameras.get(str(shot.get("camera")))
    if model is None:
        raise FrameError("were left out because their camera is not in the file")
    fitted, rotate = fit_camera(_camera(model, pose), read_header(path))
    return Frame(path=path, camera=fitted, name=names.new(written), exif_rotate=rotate)


def _camera(model: dict[str, Any], pose: Tensor) -> Camera:
    kind = model.get("projection_type", "perspective")
    width, height = _number(model, "width"), _number(model, "height")
    side = max(width, height)
    if kind in ("spherical", "equirectangular"):
        focal = (width / (2 * math.pi), height / math.pi)
        return calibrated(Lens.EQUIRECTANGULAR, (*focal, width / 2, height / 2), (), width, height, pose)
    shared = _number(model, "focal", 0.0)
    fx, fy = side * _number(model, "focal_x", shared), side * _number(model, "focal_y", shared)
    cx, cy = width / 2 + side * _number(model, "c_x", 0.0), height / 2 + side * _number(model, "c_y", 0.0)
    k1, k2, k3, k4, p1, p2 = (_number(model, key, 0.0) for key in ("k1", "k2", "k3", "k4", "p1", "p2"))
    if kind in ("perspective", "brown", "radial", "simple_radial"):
        lens, distortion, _ = brown_lens((k1, k2, k3, 0.0), p1, p2, max(fx, fy), width, height)
    elif kind in ("fisheye", "fisheye_opencv"):
        lens, distortion = Lens.OPENCV_FISHEYE, [k1, k2, k3, k4]
    else:
        raise FrameError(
            f"were left out because their lens ({str(kind)[:40]}) has no counterpart; undistort the pictures"
        )
    return calibrated(lens, (fx, fy, cx, cy), distortion, width, height, pose)


def _points(table: object) -> Points | None:
    """The reconstruction's points with their colours. Rows that are no three numbers are skipped."""
    if not isinstance(table, dict):
        return None
    xyz, rgb = [], []
    for point in table.values():
        try:
            at = [float(v) for v in point["coordinates"]]
            colour = [float(v) for v in point.get("color", (128, 128, 128))]
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
            continue
        if len(at) == len(colour) == 3 and all(math.isfinite(v) for v in (*at, *colour)):
            xyz.append(at)
            rgb.append(colour)
    if not xyz:
        return None
    colours = np.clip(np.round(np.array(rgb)), 0, 255).astype(np.uint8)
    return Points(torch.tensor(xyz, dtype=torch.float64), torch.from_numpy(colours))
