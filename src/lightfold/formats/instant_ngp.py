"""instant-ngp's transforms.json, written; `transforms` reads it, as it reads nerfstudio's (Müller et al. 2022).

The poses stay as they are: camera-to-world with OpenGL camera axes. Where the scene lies in instant-ngp's unit cube is
said beside them, x_in_cube = scale * x + offset before its axes are cycled, and aabb_scale says how far content goes on
outside: 1 for a box that holds everything, 16 for a scene that does not end. Of masks instant-ngp knows files beside
the pictures, dynamic_mask_NAME.png, whose non-zero pixels are ignored; depth maps are 16-bit pictures, all of one unit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ..cameras import Camera, Lens
from ..capture import Capture, Frame
from ..errors import CaptureError
from ..files import whole_file
from .frames import printable
from .transforms import FISHEYE, PERSPECTIVE, facts, opengl_rows, relative, shared

LENSES = (
    *(Lens.SIMPLE_PINHOLE, Lens.PINHOLE, Lens.SIMPLE_RADIAL, Lens.RADIAL, Lens.OPENCV),
    *(Lens.OPENCV_FISHEYE, Lens.SIMPLE_RADIAL_FISHEYE, Lens.RADIAL_FISHEYE, Lens.EQUIRECTANGULAR, Lens.ORTHOGRAPHIC),
)
"""Those that instant-ngp has."""
CAMERA_DISTANCE = 1.32
"""How far from the middle of the cube instant-ngp's own scripts leave the average camera: 0.33 times 4."""
UNBOUNDED_AABB_SCALE = 16


def write(capture: Capture, path: Path, centre: Tensor, radius: float) -> None:
    """Write the posed frames of a capture as `path`/transforms.json.

    The pictures stay where they are. centre [3], radius: the middle of the region of interest and the distance of the
    cameras from it, in the capture's frame; a capture that states its bounds needs neither, and they decide.

    Raises CaptureError when no frame has a pose and for a lens that is not one of LENSES, RunError when the file cannot
    be written.
    """
    posed = [(frame, frame.camera) for frame in capture.frames if frame.camera is not None]
    if not posed:
        raise CaptureError(f"{capture.root} has no frame with a pose, so there is nothing to write.")
    units = {frame.depth_scale for frame, _ in posed if frame.depth is not None}
    frames = [_written(frame, camera, path) for frame, camera in posed]
    # One unit for all depth maps is what instant-ngp knows; `transforms` reads one for each as well.
    document = {**shared(frames), **facts(capture)}
    if capture.bounds is None:
        scale = CAMERA_DISTANCE / radius
        offset = (0.5 - scale * centre).tolist()
        document |= {"aabb_scale": UNBOUNDED_AABB_SCALE, "scale": scale, "offset": offset}
    else:
        document["aabb_scale"] = 1
    if len(units) == 1:
        document["integer_depth_scale"] = units.pop()
    document["frames"] = frames
    with whole_file(path / "transforms.json") as partial:
        partial.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")


def _written(frame: Frame, camera: Camera, folder: Path) -> dict[str, Any]:
    if camera.lens not in LENSES:
        raise CaptureError(
            f"{printable(frame.name)} has the lens {camera.lens.value}, which instant-ngp does not have."
        )
    entry: dict[str, Any] = {"w": camera.width, "h": camera.height}
    entry |= dict(zip(("fl_x", "fl_y", "cx", "cy"), camera.intrinsics.tolist(), strict=True))
    coefficients = dict.fromkeys(("k1", "k2", "k3", "k4", "p1", "p2"), 0.0)
    names = PERSPECTIVE.get(camera.lens) or FISHEYE.get(camera.lens) or ()
    coefficients |= dict(zip(names, camera.distortion.tolist(), strict=True))
    if camera.lens in FISHEYE:
        # p1 and p2 share the places of k3 and k4 and would win.
        entry |= {"is_fisheye": True} | {key: coefficients[key] for key in ("k1", "k2", "k3", "k4")}
    elif camera.lens is Lens.EQUIRECTANGULAR:
        entry["latlong"] = True
    elif camera.lens is Lens.ORTHOGRAPHIC:
        entry["orthographic"] = True
    else:
        entry |= {key: coefficients[key] for key in ("k1", "k2", "p1", "p2")}
    entry |= {"file_path": relative(frame.path, folder), "transform_matrix": opengl_rows(camera)}
    if frame.depth is not None:
        entry |= {"depth_path": relative(frame.depth, folder), "integer_depth_scale": frame.depth_scale}
    if frame.time is not None:
        entry["time"] = frame.time
    return entry
