"""Record3D: RGBD video from the LiDAR or the TrueDepth camera of an iPhone or iPad, with ARKit's poses.

    EXR_RGBD/metadata.json    the folder that the app's export "EXR + RGB" makes; the folder around it will do too
    EXR_RGBD/rgb/0.jpg ...    upright pictures
    EXR_RGBD/depth/0.exr ...  z-depth in metres, smaller than the picture; NaN where unknown
    metadata, rgbd/0.jpg ...  or: what an unzipped .r3d holds; its depth is LZFSE-compressed and is not read

metadata.json has w, h (the size that the intrinsics belong to), K (nine numbers, **column by column**), in newer
exports perFrameIntrinsicCoeffs (fx, fy, cx, cy per frame, which focusing changes), frameTimestamps in seconds, and
poses: qx, qy, qz, qw, x, y, z of **camera to world** with OpenGL camera axes (x right, y up, z back). ARKit's world has
y up, against gravity, and metres. The principal point counts from the picture's corner (Apple, ARCamera.intrinsics).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from .. import exr
from ..cameras import Lens
from ..capture import Capture, Frame
from ..errors import CaptureError
from ..geometry import rotation_from_quaternion
from .calibration import calibrated, finite_numbers
from .frames import (
    OPENCV_FROM_OPENGL,
    FrameError,
    Names,
    Tally,
    cam_from_world,
    find_picture,
    fit_camera,
    read_header,
    require_frames,
)
from .transforms import Entry, read_document

LOOKS_FOR = "metadata.json with a folder rgb beside it (or inside EXR_RGBD)"
# The metadata file and the folder of pictures, as exported and as unzipped.
LAYOUTS = (("metadata.json", "rgb"), ("metadata", "rgbd"))


def sniff(path: Path) -> bool:
    """True for an exported folder, and for the folder that holds its EXR_RGBD."""
    return _layout(path) is not None


def read(path: Path) -> Capture:
    """Read an export: a frame for every pose whose picture is there. Raises CaptureError.

    Depth maps are taken along when the library that reads them is installed; a note says so when it is not.
    """
    layout = _layout(path)
    if layout is None:
        raise CaptureError(f"{path} is not a Record3D export. Looked for {LOOKS_FOR}; a .r3d file must be unzipped.")
    root, metadata, pictures = layout
    document = read_document(root / metadata)
    poses = document.get("poses")
    if not isinstance(poses, list):
        raise CaptureError(f"{root / metadata} has no list 'poses'; it is not Record3D's, or is of a very old version.")
    tally, names = Tally(), Names()
    frames = []
    for index, pose in enumerate(poses):
        written = f"{pictures}/{index}"
        try:
            frames.append(_frame(document, root, written, index, pose, names))
        except FrameError as reason:
            tally.add(str(reason), written)
    notes = list(tally.notes(len(poses)))
    require_frames(frames, len(poses), root / metadata, notes)
    has_depth = any(frame.depth is not None for frame in frames)
    if has_depth and not exr.available():
        notes.append("The depth maps are EXR files and are not used; pip install 'lightfold[exr]' to read them.")
        frames = [Frame(f.path, f.camera, f.name, time=f.time, exif_rotate=f.exif_rotate) for f in frames]
    elif not has_depth and pictures == "rgbd":
        notes.append("The depth of a .r3d is compressed in a way that is not read; export 'EXR + RGB' to have it.")
    return Capture(
        root=root,
        format="record3d",
        frames=tuple(frames),
        up=torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64),
        metric=True,
        notes=tuple(notes),
    )


def _layout(path: Path) -> tuple[Path, str, str] | None:
    """Root, metadata file and picture folder of an export."""
    for root in (path, path / "EXR_RGBD"):
        for metadata, pictures in LAYOUTS:
            if os.path.isfile(root / metadata) and os.path.isdir(root / pictures):
                return root, metadata, pictures
    return None


def _frame(document: Entry, root: Path, written: str, index: int, pose: object, names: Names) -> Frame:
    path = find_picture(root, written)
    if path is None:
        raise FrameError("were left out because the picture is not on disk")
    numbers = np.array(finite_numbers(pose, 7, "the pose"))
    length = np.linalg.norm(numbers[:4])
    if not 1e-6 < length < 1e6:
        raise FrameError("were left out because the quaternion of the pose has no direction")
    x, y, z, w = numbers[:4] / length
    rotation = rotation_from_quaternion(torch.tensor([w, x, y, z], dtype=torch.float64)).numpy()
    matrix = np.concatenate([rotation @ OPENCV_FROM_OPENGL, numbers[4:, None]], axis=1)
    header = read_header(path)
    width, height = document.number("w") or header.shown[0], document.number("h") or header.shown[1]
    camera = calibrated(Lens.PINHOLE, _intrinsics(document, index), (), width, height, cam_from_world(matrix))
    fitted, rotate = fit_camera(camera, header)
    depth = root / "depth" / f"{index}.exr"
    times = document.get("frameTimestamps")
    time = times[index] if isinstance(times, list) and index < len(times) else None
    return Frame(
        path=path,
        camera=fitted,
        name=names.new(f"{written}{path.suffix}"),
        depth=depth if os.path.isfile(depth) else None,
        depth_scale=1.0,
        time=float(time) if isinstance(time, (int, float)) and abs(time) < 1e12 else None,
        exif_rotate=rotate,
    )


def _intrinsics(document: Entry, index: int) -> list[float]:
    """fx, fy, cx, cy: the frame's own where there are any."""
    own = document.get("perFrameIntrinsicCoeffs")
    if isinstance(own, list) and index < len(own):
        return finite_numbers(own[index], 4, "their entry of perFrameIntrinsicCoeffs")
    k = document.numbers("K", 9)
    if k is None:
        raise CaptureError(f"{document.where} has neither K nor perFrameIntrinsicCoeffs.")
    # Writers of this format that are not Record3D itself store the rows; then the corner below the diagonal is empty.
    cx, cy = (k[2], k[5]) if k[6] == k[7] == 0 else (k[6], k[7])
    return [k[0], k[4], cx, cy]
