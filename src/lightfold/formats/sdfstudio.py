"""sdfstudio's meta_data.json (Yu et al. 2022): poses that lead into a normalised scene, with masks and depths.

    camera_model "OPENCV", height, width     one size for all pictures
    worldtogt                                4x4, from this frame back to the one before it was normalised
    scene_box                                aabb, near, far, radius, collider_type
    frames                                   rgb_path, camtoworld 4x4 with OpenCV camera axes, intrinsics 4x4,
                                             foreground_mask, sensor_depth_path (.npy), mono_depth_path, ...

Pixel centres lie at +0.5: sdfstudio casts its rays through there with the principal point as written. Depths and
normals that a network guessed (mono_depth_path, mono_normal_path) have no scale, and are not read. The scene_box is the
region of interest of scenes without end as well; only foreground masks take away what lies outside, so only with them
it bounds the scene.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..cameras import Lens
from ..capture import Capture, Frame
from ..errors import CaptureError
from ..files import whole_file
from ..geometry import Similarity
from .calibration import VISIBLE_SKEW, calibrated, similarity, skewed
from .frames import (
    FrameError,
    Names,
    Tally,
    cam_from_world,
    find_picture,
    fit_camera,
    printable,
    read_header,
    require_frames,
)
from .transforms import Entry, normalised, read_document, relative

LOOKS_FOR = "meta_data.json"
FILE = "meta_data.json"
PERSPECTIVE = (Lens.SIMPLE_PINHOLE, Lens.PINHOLE, Lens.SIMPLE_RADIAL, Lens.RADIAL, Lens.OPENCV, Lens.FULL_OPENCV)


def sniff(path: Path) -> bool:
    """True for a folder with meta_data.json, and for that file itself."""
    return os.path.isfile(path / FILE) or (path.name == FILE and os.path.isfile(path))


def read(path: Path) -> Capture:
    """Read meta_data.json. Raises CaptureError."""
    file = path if os.path.isfile(path) else path / FILE
    document = read_document(file)
    entries = document.objects("frames")
    tally, names = Tally(), Names()
    frames: list[Frame] = []
    for i, values in enumerate(entries):
        entry = Entry(values, f"frame {i} of {file}", document)
        written = entry.text("rgb_path") if "rgb_path" in values else None
        if not written:
            raise CaptureError(f"The key 'rgb_path' of {entry.where} is missing or empty; it names the picture.")
        with tally.leaving_out(written):
            frames.append(_frame(entry, file.parent, written, tally, names))
    notes = list(tally.notes(len(entries)))
    require_frames(frames, len(entries), file, notes)
    box, near, far = _scene_box(document, any(frame.mask is not None for frame in frames))
    return Capture(
        root=file.parent,
        format="sdfstudio",
        frames=tuple(frames),
        bounds=box,
        near=near,
        far=far,
        original_from_capture=_original_from_capture(document, notes),
        notes=tuple(notes),
    )


def _frame(entry: Entry, root: Path, written: str, tally: Tally, names: Names) -> Frame:
    path = find_picture(root, written)
    if path is None:
        raise FrameError("were left out because the picture is not on disk")
    matrix, intrinsics = entry.matrix("camtoworld", (4, 4), (3, 4)), entry.matrix("intrinsics", (4, 4), (3, 3))
    if matrix is None or intrinsics is None:
        raise FrameError("were left out because they have no camtoworld or no intrinsics")
    header = read_header(path)
    width, height = entry.number("width"), entry.number("height")
    width, height = width or header.width, height or header.height
    k = intrinsics[:3, :3]
    numbers = (float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2]))
    camera = calibrated(Lens.PINHOLE, numbers, (), width, height, cam_from_world(matrix))
    if skewed(k, width, height):
        tally.add(
            f"have pixel axes that are more than {VISIBLE_SKEW} pixels off a right angle, which is ignored", written
        )
    fitted, rotate = fit_camera(camera, header)
    mask, depth = _companion(entry, root, "foreground_mask", tally), _companion(entry, root, "sensor_depth_path", tally)
    return Frame(
        path=path,
        camera=fitted,
        name=names.new(normalised(written)),
        mask=mask,
        mask_is_alpha=mask is not None,
        depth=depth,
        depth_scale=Frame.depth_scale if depth is None else 1.0,
        exif_rotate=rotate,
    )


def _companion(entry: Entry, root: Path, key: str, tally: Tally) -> Path | None:
    """A file that a frame names beside its picture; None when it names none or it is gone."""
    written = entry.text(key) if key in entry.values else None
    if not written:
        return None
    found = os.path.join(root, written)
    if not os.path.isfile(found):
        tally.add(f"name a {key} that is not on disk", written)
        return None
    return Path(found)


def _scene_box(document: Entry, has_masks: bool) -> tuple[torch.Tensor | None, float | None, float | None]:
    """Bounds, near and far, as far as they say what must hold: sdfstudio states them for scenes without end as well."""
    values = document.get("scene_box")
    if values is None or not has_masks:
        return None, None, None
    if not isinstance(values, dict):
        raise CaptureError(f"The key 'scene_box' of {document.where} should be an object.")
    entry = Entry(values, f"scene_box of {document.where}")
    corners = entry.matrix("aabb", (2, 3))
    usable = corners is not None and np.isfinite(corners).all() and (corners[0] < corners[1]).all()
    near, far = entry.number("near"), entry.number("far")
    if entry.text("collider_type") != "near_far" or near is None or far is None or not 0 < near < far:
        near = far = None
    return (torch.from_numpy(corners) if usable and corners is not None else None), near, far


def _original_from_capture(document: Entry, notes: list[str]) -> Similarity:
    matrix = document.matrix("worldtogt", (4, 4), (3, 4))
    if matrix is None:
        return Similarity.identity()
    try:
        return similarity(matrix)
    except FrameError:
        notes.append("worldtogt is ignored: it is not a scale, a rotation and a shift.")
        return Similarity.identity()


# --- writing --------------------------------------------------------------------------------------------------------


def write(capture: Capture, path: Path) -> None:
    """Write the posed frames of a capture as `path`/meta_data.json. The pictures stay where they are.

    The frame of the capture is that of the file, so it should be normalised: the object or the room within [-1, 1]^3.
    Masks must be silhouettes, and depths .npy files in the capture's unit; a lens's distortion has no place in the
    file. Raises CaptureError when no frame has a pose, for lenses that are no pinholes at all and for pictures of
    several sizes, RunError when the file cannot be written.
    """
    posed = [(frame, frame.camera) for frame in capture.frames if frame.camera is not None]
    if not posed:
        raise CaptureError(f"{capture.root} has no frame with a pose, so there is nothing to write.")
    sizes = {(camera.width, camera.height) for _, camera in posed}
    if len(sizes) > 1:
        raise CaptureError(f"{capture.root} has pictures of {len(sizes)} sizes, and sdfstudio knows one for all.")
    (width, height) = sizes.pop()
    box = [[-1.0] * 3, [1.0] * 3] if capture.bounds is None else capture.bounds.tolist()
    known = capture.near is not None and capture.far is not None
    reach = [float(camera.center.norm()) for _, camera in posed]
    scene_box = {
        "aabb": box,
        "near": capture.near if known else max(0.05, min(reach) - 1.0),
        "far": capture.far if known else max(reach) + 1.0,
        "radius": 1.0,
        "collider_type": "near_far",
    }
    original = capture.original_from_capture
    worldtogt = torch.eye(4, dtype=torch.float64)
    worldtogt[:3] = torch.cat([original.scale * original.rotation, original.translation[:, None]], dim=1)
    document = {
        "camera_model": "OPENCV",
        "height": height,
        "width": width,
        "has_mono_prior": False,
        "has_sensor_depth": all(frame.depth is not None for frame, _ in posed),
        "has_foreground_mask": all(frame.mask is not None for frame, _ in posed),
        "pairs": None,
        "worldtogt": worldtogt.tolist(),
        "scene_box": scene_box,
        "frames": [_written(frame, path) for frame, _ in posed],
    }
    with whole_file(path / FILE) as partial:
        partial.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")


def _written(frame: Frame, folder: Path) -> dict[str, Any]:
    camera = frame.camera
    assert camera is not None
    if camera.lens not in PERSPECTIVE:
        raise CaptureError(
            f"sdfstudio knows pinholes only, and {printable(frame.name)} has the lens {camera.lens.value}; write "
            "transforms instead."
        )
    fx, fy, cx, cy = camera.intrinsics.tolist()
    entry: dict[str, Any] = {
        "rgb_path": relative(frame.path, folder),
        "camtoworld": [*camera.world_from_cam.tolist(), [0.0, 0.0, 0.0, 1.0]],
        "intrinsics": [[fx, 0.0, cx, 0.0], [0.0, fy, cy, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]],
    }
    if frame.mask is not None:
        entry["foreground_mask"] = relative(frame.mask, folder)
    if frame.depth is not None:
        entry["sensor_depth_path"] = relative(frame.depth, folder)
    return entry
