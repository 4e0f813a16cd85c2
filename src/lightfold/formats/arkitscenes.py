"""ARKitScenes (Baruch et al. 2021): rooms walked through with an iPad, its LiDAR and ARKit's poses.

    VIDEO_frames/ or VIDEO/             as the 3dod and the raw download name it; below, in either:
    lowres_wide/VIDEO_TIME.png          pictures 256 x 192; vga_wide (640 x 480) and wide (1920 x 1440) in raw downloads
    lowres_wide_intrinsics/VIDEO_TIME.pincam    one line: width height fx fy cx cy
    lowres_depth/VIDEO_TIME.png         z-depth, 16 bits, millimetres, 256 x 192; highres_depth with wide
    lowres_wide.traj                    a line per pose: time, three numbers axis times angle, three of translation

A pose is **world to camera** with OpenCV axes, in metres; the world has z up. Times are seconds. Not every picture was
taken at the time of a pose: between two poses at most MOST_GAP apart, the centre is interpolated linearly and the
rotation along the shortest arc. A .pincam file may be named a millisecond off. Principal points count from the
picture's corner (Apple, ARCamera.intrinsics). Source: the data set's DATA.md and tenFpsDataLoader.
"""

from __future__ import annotations

import bisect
import os
from pathlib import Path

import numpy as np
import torch

from ..capture import Capture, Frame
from ..errors import CaptureError
from ..geometry import so3_exp, so3_log
from .calibration import read_bytes
from .frames import FrameError, Names, Tally, list_pictures, listed, natural_key, require_frames
from .matrices import pinhole, read_numbers

LOOKS_FOR = "lowres_wide.traj beside a folder lowres_wide, vga_wide or wide"
TRAJECTORY = "lowres_wide.traj"
# Folders of pictures, the usual one first, and where their depth lies.
PICTURES = {"lowres_wide": "lowres_depth", "vga_wide": "lowres_depth", "wide": "highres_depth"}
LARGEST_FILE = 64 * 2**20
SAME_TIME = 0.005
"""Seconds within which a pose is that of a picture."""
MOST_GAP = 0.25
MILLIMETRE = 0.001


def sniff(path: Path) -> bool:
    """True for the folder of a video, and for one of its picture folders, which chooses that resolution."""
    return _layout(path) is not None


def read(path: Path) -> Capture:
    """Read the small pictures, or those of the folder that was named, with depth. Raises CaptureError."""
    layout = _layout(path)
    if layout is None:
        raise CaptureError(f"{path} is not a video of ARKitScenes. Looked for {LOOKS_FOR}.")
    root, folder = layout
    times, poses = _trajectory(root / TRAJECTORY)
    pictures = sorted(list_pictures(root / folder), key=natural_key)
    tally, names = Tally(), Names()
    frames = []
    for picture in pictures:
        with tally.leaving_out(picture, ".pincam file"):
            frames.append(_frame(root, folder, picture, times, poses, tally, names))
    notes = [*tally.notes(len(pictures), "pictures"), *_without_picture(root / f"{folder}_intrinsics", pictures)]
    require_frames(frames, len(pictures), root / folder, notes)
    return Capture(
        root=root,
        format="arkitscenes",
        frames=tuple(frames),
        up=torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64),
        metric=True,
        notes=tuple(notes),
    )


def _layout(path: Path) -> tuple[Path, str] | None:
    """The folder with the trajectory, and the name of the folder of pictures."""
    if path.name in PICTURES and os.path.isfile(path.parent / TRAJECTORY):
        return path.parent, path.name
    for root in (path, path / f"{path.name}_frames"):
        if os.path.isfile(root / TRAJECTORY):
            folder = next((name for name in PICTURES if os.path.isdir(root / name)), None)
            return None if folder is None else (root, folder)
    return None


def _trajectory(file: Path) -> tuple[list[float], np.ndarray]:
    """Times [N], ascending, and cam_from_world [N, 6] as axis times angle and translation."""
    rows = []
    text = read_bytes(file, LARGEST_FILE).decode("utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            row = [float(word) for word in words]
        except ValueError:
            row = []
        if len(row) != 7 or not np.isfinite(row).all():
            raise CaptureError(
                f"Line {number} of {file} is not a time and six finite numbers (rotation, translation): {line[:60]!r}."
            )
        rows.append(row)
    if not rows:
        raise CaptureError(f"{file} holds no poses.")
    table = np.array(sorted(rows))
    return table[:, 0].tolist(), table[:, 1:]


def _frame(
    root: Path, folder: str, picture: str, times: list[float], poses: np.ndarray, tally: Tally, names: Names
) -> Frame:
    path = root / folder / picture
    video, _, written = path.stem.rpartition("_")
    try:
        time = float(written)
    except ValueError as error:
        raise FrameError("were left out because their name does not end in a time") from error
    world_from_cam = _pose_at(time, times, poses, tally, picture)
    width, height, fx, fy, cx, cy = _intrinsics(root / f"{folder}_intrinsics", video, written)
    camera, rotate = pinhole(path, world_from_cam, (fx, fy, cx, cy), (width, height))
    depth = root / PICTURES[folder] / f"{path.stem}.png"
    return Frame(
        path=path,
        camera=camera,
        name=names.new(f"{folder}/{picture}"),
        depth=depth if os.path.isfile(depth) else None,
        depth_scale=MILLIMETRE,
        time=time,
        exif_rotate=rotate,
    )


def _pose_at(time: float, times: list[float], poses: np.ndarray, tally: Tally, picture: str) -> np.ndarray:
    """world_from_cam [3, 4] at a time."""
    after = bisect.bisect_left(times, time)
    near = [i for i in (after - 1, after) if 0 <= i < len(times)]
    closest = min(near, key=lambda i: abs(times[i] - time))
    if abs(times[closest] - time) <= SAME_TIME:
        return _world_from_cam(poses[closest])
    if len(near) < 2 or times[near[1]] - times[near[0]] > MOST_GAP:
        raise FrameError(f"were left out because {TRAJECTORY} has no pose at their time")
    tally.add("were taken between two poses, and are given one interpolated from both", picture)
    share = (time - times[near[0]]) / (times[near[1]] - times[near[0]])
    first, last = (torch.from_numpy(_world_from_cam(poses[i])) for i in near)
    arc = so3_log(first[:, :3].T @ last[:, :3])
    rotation = first[:, :3] @ so3_exp(share * arc)
    centre = torch.lerp(first[:, 3:], last[:, 3:], share)
    return torch.cat([rotation, centre], dim=1).numpy()


def _world_from_cam(pose: np.ndarray) -> np.ndarray:
    rotation = so3_exp(torch.from_numpy(pose[:3])).numpy()
    return np.concatenate([rotation.T, -rotation.T @ pose[3:, None]], axis=1)


def _without_picture(folder: Path, pictures: list[str]) -> list[str]:
    """A note on the .pincam files that no picture goes with."""
    times = {name.rpartition("_")[2].rpartition(".")[0] for name in pictures}
    try:
        files = sorted(e.name.removesuffix(".pincam") for e in os.scandir(folder) if e.name.endswith(".pincam"))
    except OSError:
        files = []
    lonely = [name for name in files if not times & set(_spellings(name.rpartition("_")[2]))]
    return [f"{len(lonely)} of {len(files)} .pincam files have no picture: {listed(lonely)}."] if lonely else []


def _spellings(written: str) -> tuple[str, ...]:
    """A time as written, and a millisecond before and after it."""
    try:
        time = float(written)
    except ValueError:
        return (written,)
    return written, f"{time - 0.001:.3f}", f"{time + 0.001:.3f}"


def _intrinsics(folder: Path, video: str, written: str) -> np.ndarray:
    """width, height, fx, fy, cx, cy."""
    for spelling in _spellings(written):
        file = folder / f"{video}_{spelling}.pincam"
        if os.path.isfile(file):
            return read_numbers(file, "width, height, fx, fy, cx, cy", 6)
    raise FrameError("were left out because they have no .pincam file")
