"""RealityCapture's (RealityScan's) "Internal/External camera parameters": a CSV with a line for each picture.

    #name,x,y,alt,heading,pitch,roll,f,px,py,k1,k2,k3,k4,t1,t2

x, y, alt are the camera's place. heading, pitch and roll are degrees: with all of them 0 the camera looks down the
world's -z axis with the world's y up in its picture, and

    R = Rz(-heading) Rx(pitch) Ry(roll)    is camera to world with OpenGL camera axes (x right, y up, z back)

which reproduces the matrices that the program writes to XMP files for the same cameras. f is the focal length in
millimetres for a picture whose longer side is 36 mm; px, py are the principal point from the picture's middle in units
of its longer side. k1 ... k4 are Brown's radial coefficients of r^2 to r^8, t1, t2 the tangential ones, taken to be in
OpenCV's order. Export with the distortion model Brown, not Division: the file does not say which one it was. It does
not state the size of a picture either, so that is the size of the picture found.

The columns are a template that users change: those from px on may be missing and count as 0.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..capture import Capture, Frame
from ..errors import CaptureError
from .calibration import (
    VISIBLE_ERROR,
    brown_lens,
    calibrated,
    camera_files,
    geocentric_up,
    one_camera_file,
    read_bytes,
)
from .frames import OPENCV_FROM_OPENGL, FrameError, Names, Tally, cam_from_world, read_header, require_frames
from .picture_index import PictureIndex

LOOKS_FOR = "a .csv file with the columns name, x, y, alt, heading, pitch, roll, f (RealityCapture's export)"
NEEDED = ("name", "x", "y", "alt", "heading", "pitch", "roll", "f")
OPTIONAL = ("px", "py", "k1", "k2", "k3", "k4", "t1", "t2")
LARGEST_FILE = 128 * 2**20
FILM_WIDTH = 36.0


def sniff(path: Path) -> bool:
    """True for such a file, and for a folder that holds one. Looks into the first lines of .csv files."""
    return bool(camera_files(path, ".csv", _is_camera_list))


def read(path: Path) -> Capture:
    """Read the cameras; the pictures are looked for beside the file and in folders below it. Raises CaptureError."""
    file = one_camera_file(path, camera_files(path, ".csv", _is_camera_list), LOOKS_FOR)
    rows = list(_rows(file))
    index = PictureIndex(file.parent)
    tally, names = Tally(), Names()
    frames: list[Frame] = []
    for row in rows:
        try:
            frames.append(_frame(row, index, tally, names))
        except FrameError as reason:
            tally.add(str(reason), row["name"])
    notes = tally.notes(len(rows), "cameras")
    require_frames(frames, len(rows), file, notes)
    return Capture(root=file.parent, format="realitycapture", frames=tuple(frames), up=_up(frames), notes=notes)


def _is_camera_list(head: bytes) -> bool:
    lines = head.decode("utf-8-sig", errors="replace").splitlines()[:10]
    return any(set(NEEDED) <= set(_columns(line.split(","))) for line in lines)


def _columns(words: list[str]) -> list[str]:
    return [word.strip().strip('"').removeprefix("#").strip().lower() for word in words]


def _rows(file: Path) -> Iterator[dict[str, str]]:
    """The lines after the heading, as column: text. Raises CaptureError."""
    text = read_bytes(file, LARGEST_FILE).decode("utf-8-sig", errors="replace")
    columns: list[str] | None = None
    try:
        for words in csv.reader(io.StringIO(text, newline="")):
            if columns is None:
                found = _columns(words)
                columns = found if set(NEEDED) <= set(found) else None
            elif any(word.strip() for word in words):
                # A line that stops short lacks its last columns, which is noticed where one of them is needed.
                yield {"name": "", **dict(zip(columns, words, strict=False))}
    except csv.Error as error:
        raise CaptureError(f"{file} is not a CSV file: {error}.") from error


def _number(row: dict[str, str], column: str) -> float:
    text = row.get(column, "0" if column in OPTIONAL else "").strip()
    try:
        number = float(text or ("0" if column in OPTIONAL else ""))
    except ValueError:
        number = math.nan
    if not abs(number) < 1e100:
        raise FrameError(f"were left out because {column} is not a finite number")
    return number


def _frame(row: dict[str, str], index: PictureIndex, tally: Tally, names: Names) -> Frame:
    path, written = index.take(row["name"].strip())
    x, y, z, heading, pitch, roll, f = (_number(row, column) for column in NEEDED[1:])
    px, py, k1, k2, k3, k4, t1, t2 = (_number(row, column) for column in OPTIONAL)
    rotation = _rotation(math.radians(heading), math.radians(pitch), math.radians(roll)) @ OPENCV_FROM_OPENGL
    pose = cam_from_world(np.concatenate([rotation, [[x], [y], [z]]], axis=1))
    header = read_header(path)
    # The program works on the stored grid; the orientation in the header is not applied.
    width, height = header.width, header.height
    side = max(width, height)
    focal = f * side / FILM_WIDTH
    lens, distortion, error = brown_lens((k1, k2, k3, k4), t1, t2, focal, width, height)
    if error > VISIBLE_ERROR:
        tally.add(f"have a lens with a term in r^8, which is fitted to within {_rounded_up(error)} pixels", written)
    intrinsics = (focal, focal, width / 2 + px * side, height / 2 + py * side)
    return Frame(
        path=path, camera=calibrated(lens, intrinsics, distortion, width, height, pose), name=names.new(written)
    )


def _rounded_up(error: float) -> str:
    """0.3 pixels, 2 pixels, 30 pixels: coarse, so that frames of one camera make one remark."""
    step = 10.0 ** math.floor(math.log10(error))
    return f"{math.ceil(error / step) * step:.2g}"


def _rotation(heading: float, pitch: float, roll: float) -> np.ndarray:
    """Rz(-heading) Rx(pitch) Ry(roll), angles in radians."""
    c, s = math.cos(-heading), math.sin(-heading)
    about_z = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    c, s = math.cos(pitch), math.sin(pitch)
    about_x = np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])
    c, s = math.cos(roll), math.sin(roll)
    about_y = np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])
    return about_z @ about_x @ about_y


def _up(frames: list[Frame]) -> Tensor:
    """z, but for places given in Earth-centred coordinates, which no projected ones are 20 km above the sea."""
    centre = torch.stack([frame.camera.center for frame in frames if frame.camera is not None]).mean(0)
    geocentric = geocentric_up(centre) if abs(float(centre[2])) > 2e4 else None
    return torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64) if geocentric is None else geocentric
