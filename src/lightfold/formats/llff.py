"""LLFF's poses_bounds.npy (Mildenhall et al. 2019): one row of 17 numbers per picture, in the order of their names.

The first 15 are a 3x5 matrix [R | t | (height, width, focal)], camera-to-world with the columns of R **down, right,
back**; the last two are the depths between which 99.8 % of the points seen by that picture lie.
"""

from __future__ import annotations

import filecmp
import logging
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..cameras import Camera, Lens
from ..capture import Capture, Frame, Points
from ..errors import CaptureError
from ..files import mapped_array, whole_file
from .frames import (
    LARGEST_SIDE,
    FrameError,
    Names,
    Tally,
    cam_from_world,
    fit_camera,
    list_pictures,
    printable,
    read_header,
    require_frames,
    smaller_note,
)

LOOKS_FOR = "poses_bounds.npy with a folder images, images_2, images_4 or images_8 beside it"
PICTURE_FOLDERS = ("images", "images_2", "images_4", "images_8")
# Lenses that one focal length describes, but for their distortion.
PERSPECTIVE = {Lens.SIMPLE_PINHOLE, Lens.PINHOLE, Lens.SIMPLE_RADIAL, Lens.RADIAL, Lens.OPENCV, Lens.FULL_OPENCV}
# Views within this angle of their mean direction look the same way, as normalised device coordinates need.
FORWARD_FACING = np.cos(np.radians(60))

log = logging.getLogger(__name__)


def sniff(path: Path) -> bool:
    """True for a folder with poses_bounds.npy, and for one of its picture folders, which chooses that resolution."""
    return os.path.isfile(path / "poses_bounds.npy") or _is_picture_folder(path)


def read(path: Path) -> Capture:
    """Read poses_bounds.npy. Of several picture folders the full-size one is taken, unless path names another.

    Raises CaptureError, also when the number of pictures is not the number of rows: then rows cannot be told apart.
    """
    root = path.parent if _is_picture_folder(path) else path
    file = root / "poses_bounds.npy"
    rows = _read_rows(file)
    folder = path if root != path else _picture_folder(root)
    pictures = list_pictures(folder)
    if len(pictures) != len(rows):
        raise CaptureError(
            f"{file} has {len(rows)} poses and {folder} has {len(pictures)} pictures; they are matched by order, so "
            "the numbers must agree."
        )
    tally, names = Tally(), Names()
    frames = []
    copies = _smaller(root, len(pictures)) if folder.name == PICTURE_FOLDERS[0] else {}
    for i, (name, row) in enumerate(zip(pictures, rows, strict=True)):
        try:
            frame = _frame(row, folder / name, names.new(f"{folder.name}/{name}"))
            frames.append(replace(frame, smaller={factor: paths[i] for factor, paths in copies.items()}))
        except FrameError as reason:
            tally.add(str(reason), name)
    notes = list(tally.notes(len(rows)))
    require_frames(frames, len(rows), file, notes)
    bounds = rows[:, 15:]
    bounds = bounds[np.isfinite(bounds).all(axis=1) & (bounds > 0).all(axis=1) & (bounds[:, 0] < bounds[:, 1])]
    others = [other for other in PICTURE_FOLDERS if other != folder.name and os.path.isdir(root / other)]
    notes += smaller_note(frames)
    if others and not copies:
        notes.append(f"The pictures are those of {folder.name}; name {root / others[-1]} to use another resolution.")
    if len(bounds) == 0:
        notes.append("The depth bounds are not usable and are ignored.")
    if _forward_facing(frames):
        notes.append("All views look the same way; normalised device coordinates suit this capture.")
    return Capture(
        root=root,
        format="llff",
        frames=tuple(frames),
        near=float(bounds[:, 0].min()) if len(bounds) else None,
        far=float(bounds[:, 1].max()) if len(bounds) else None,
        notes=tuple(notes),
    )


def _is_picture_folder(path: Path) -> bool:
    return path.name in PICTURE_FOLDERS and os.path.isfile(path.parent / "poses_bounds.npy")


def _read_rows(file: Path) -> np.ndarray:
    try:
        array = mapped_array(file)
        if array.ndim != 2 or array.shape[1] != 17 or array.dtype.kind not in "fiu":
            raise CaptureError(f"{file} should hold N x 17 numbers, but holds {array.dtype} of shape {array.shape}.")
        return np.array(array, dtype=np.float64)
    except (OSError, ValueError) as error:
        raise CaptureError(f"{file} is not a NumPy array of N x 17 numbers: {error}") from error


def _picture_folder(root: Path) -> Path:
    for name in PICTURE_FOLDERS:
        if os.path.isdir(root / name):
            return root / name
    raise CaptureError(f"{root} has poses_bounds.npy but none of the picture folders {', '.join(PICTURE_FOLDERS)}.")


def _smaller(root: Path, count: int) -> dict[int, list[Path]]:
    """The pictures of images_2, images_4 and images_8 in their order, by their factor, where they are as many."""
    found = {}
    for name in PICTURE_FOLDERS[1:]:
        pictures = list_pictures(root / name) if os.path.isdir(root / name) else []
        if len(pictures) == count:
            found[int(name[-1])] = [root / name / picture for picture in pictures]
    return found


def _frame(row: np.ndarray, path: Path, name: str) -> Frame:
    matrix = row[:15].reshape(3, 5)
    height, width, focal = matrix[:, 4]
    sides_fit = all(0 < side <= LARGEST_SIDE and side == int(side) for side in (height, width))
    if not (np.isfinite(row[:15]).all() and sides_fit and focal > 0):
        raise FrameError("were left out because their row holds NaN, or a size or focal length that is not positive")
    down, right, back = matrix[:, 0], matrix[:, 1], matrix[:, 2]
    header = read_header(path)
    camera = Camera(
        cam_from_world=cam_from_world(np.stack([right, down, -back, matrix[:, 3]], axis=1)),
        intrinsics=torch.tensor([focal, focal, width / 2, height / 2], dtype=torch.float64),
        distortion=torch.zeros(0, dtype=torch.float64),
        width=int(width),
        height=int(height),
        lens=Lens.SIMPLE_PINHOLE,
    )
    fitted, rotate = fit_camera(camera, header)
    return Frame(path=path, camera=fitted, name=name, exif_rotate=rotate)


def _forward_facing(frames: list[Frame]) -> bool:
    forward = torch.stack([frame.camera.forward for frame in frames if frame.camera is not None])
    mean = forward.mean(dim=0)
    return bool((forward @ mean >= float(FORWARD_FACING) * mean.norm()).all()) and float(mean.norm()) > 0.5


# --- writing --------------------------------------------------------------------------------------------------------


def write(capture: Capture, path: Path) -> None:
    """Write the posed frames of a capture as `path`/poses_bounds.npy, with their pictures in `path`/images.

    Rows and pictures are matched by the order of the pictures' names, so images holds exactly the posed ones: where the
    folder does not exist it is made of links (copies where the disk has none), with '_' for every '/' of a name. The
    depth bounds are the 0.1 and 99.9 percentiles of the points that a picture saw, as in LLFF's imgs2poses; those of
    all pictures together where it saw none, and the capture's near and far where there are no points.

    The format has one focal length, no principal point and no distortion; a warning is logged when that matters.

    Raises CaptureError when no frame has a pose, for a lens that is not perspective, for a capture without points, near
    and far, and when `path`/images holds other pictures; RunError when a file cannot be written.
    """
    posed = [(i, frame, frame.camera) for i, frame in enumerate(capture.frames) if frame.camera is not None]
    if not posed:
        raise CaptureError(f"{capture.root} has no frame with a pose, so there is nothing to write.")
    for _, frame, camera in posed:
        if camera.lens not in PERSPECTIVE:
            raise CaptureError(
                f"{printable(frame.name)} has the lens {camera.lens.value}; LLFF knows perspective ones."
            )
    lossy = sum(not _is_simple(camera) for _, _, camera in posed)
    if lossy:
        log.warning(
            "%d of %d pictures have lens distortion, a principal point off the middle or oblong pixels, which "
            "poses_bounds.npy cannot say; undistort them first.",
            lossy,
            len(posed),
        )
    bounds = _depth_bounds(capture, [(i, camera) for i, _, camera in posed])
    names = Names()
    rows = {}
    for (_, frame, camera), depths in zip(posed, bounds, strict=True):
        name = names.new(re.sub(r"[/\\]", "_", frame.name.removeprefix("images/")))
        rows[name] = (frame.path, [*_matrix(camera).ravel(), *depths])
    _put_pictures(path / "images", {name: source for name, (source, _) in rows.items()})
    with whole_file(path / "poses_bounds.npy") as partial, partial.open("wb") as file:
        np.save(file, np.array([rows[name][1] for name in sorted(rows)]))


def _is_simple(camera: Camera) -> bool:
    fx, fy, cx, cy = camera.intrinsics.tolist()
    centred = abs(cx - camera.width / 2) < 1 and abs(cy - camera.height / 2) < 1
    return centred and abs(fx / fy - 1) < 1e-3 and not bool(camera.distortion.any())


def _matrix(camera: Camera) -> np.ndarray:
    """[3, 5]: down, right, back, centre, and height, width, focal length."""
    right, down, forward, centre = camera.world_from_cam.numpy().T
    focal = float(camera.intrinsics[:2].mean())
    return np.stack([down, right, -forward, centre, [camera.height, camera.width, focal]], axis=1)


def _depth_bounds(capture: Capture, cameras: list[tuple[int, Camera]]) -> list[tuple[float, float]]:
    """Near and far for every camera, given with the index of its frame."""
    seen = [_depths(capture.points, index, camera) for index, camera in cameras]
    every = np.concatenate(seen)
    if every.size:
        return [_percentiles(depths if depths.size else every) for depths in seen]
    if capture.near is None or capture.far is None:
        raise CaptureError(
            f"{capture.root} has no 3-D points in front of a camera and no near and far depth, and LLFF needs bounds."
        )
    return [(capture.near, capture.far)] * len(cameras)


def _percentiles(depths: np.ndarray) -> tuple[float, float]:
    near, far = np.percentile(depths, [0.1, 99.9])
    # Readers divide by the difference; a single point has none.
    return float(near), float(far) if far > near else float(near * 1.001)


def _depths(points: Points | None, index: int, camera: Camera) -> np.ndarray:
    """Depths [m] of the points that a frame saw: by its tracks, without any by projecting into its picture."""
    if points is None:
        return np.zeros(0)
    xyz = points.xyz
    if points.tracks is not None:
        point_index, frame_index = points.tracks
        xyz = xyz[point_index[frame_index == index].unique()]
    xy, valid = camera.project(xyz)
    size = xy.new_tensor([camera.width, camera.height])
    inside = valid if points.tracks is not None else valid & (xy >= 0).all(dim=1) & (xy <= size).all(dim=1)
    depth: np.ndarray = (xyz @ camera.cam_from_world[2, :3] + camera.cam_from_world[2, 3])[inside].numpy()
    return depth


def _put_pictures(folder: Path, sources: dict[str, Path]) -> None:
    """Make the folder hold these pictures, by name, and no others."""
    if folder.is_dir() and (held := list_pictures(folder)):
        if held != sorted(sources) or not all(_same_file(folder / n, p) for n, p in sources.items()):
            raise CaptureError(
                f"{folder} holds other pictures than the {len(sources)} with poses, and LLFF matches poses to pictures "
                "by their order; write into a new folder."
            )
        return
    for name, source in sources.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            os.link(os.path.realpath(source), folder / name)
        except OSError:
            with whole_file(folder / name) as partial:
                shutil.copyfile(source, partial)


def _same_file(a: Path, b: Path) -> bool:
    return os.path.samefile(a, b) or filecmp.cmp(a, b, shallow=False)
