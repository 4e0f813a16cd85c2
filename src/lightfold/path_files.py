"""Camera paths in files: the JSON that nerfstudio's viewer, its Blender add-on and this project's viewer write.

    {"camera_type": "perspective" | "fisheye" | "equirectangular" | "omnidirectional" | "vr180",
     "render_width": 1920, "render_height": 1080, "fps": 24, "seconds": 4.0,
     "camera_path": [{"camera_to_world": [16 numbers, row by row], "fov": vertical degrees, "aspect": 1.78}, ...],
     "frame": "capture" | "scene"}

`camera_to_world` has OpenGL camera axes (x right, y up, z backwards). `frame` is our own key and says in which
coordinates the path is; without it we assume those of the capture. A path made in nerfstudio's viewer is in the frame
to which nerfstudio normalised the scene: pass the similarity of its `dataparser_transforms.json`, which
`capture_from_nerfstudio` reads. Pixels are square, so `aspect` is implied by the size and not read.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .cameras import Camera, Lens
from .errors import CaptureError
from .files import whole_file
from .geometry import Similarity, invert

if TYPE_CHECKING:
    from .scene import SceneInfo

LENSES = {"perspective": Lens.PINHOLE, "fisheye": Lens.OPENCV_FISHEYE, "equirectangular": Lens.EQUIRECTANGULAR}
TWO_EYES = ("omnidirectional", "vr180")
"""The camera types of nerfstudio's Blender add-on that are panoramas for two eyes: whole ones, and front halves."""
LARGEST_SIDE = 16384
DEFAULT_FPS = 24.0


@dataclass(frozen=True)
class CameraPath:
    """What a camera-path file says."""

    cameras: Camera
    """Batch [n] in scene coordinates."""
    fps: float
    notes: tuple[str, ...] = ()
    """What the file asks for and will not get."""
    eyes: str = ""
    """Of `TWO_EYES`, where the file asks for such pictures. The cameras of vr180 are whole panoramas, twice as wide."""


def camera_path_json(path: Path | str, info: SceneInfo, capture_from_path: Similarity | None = None) -> CameraPath:
    """Read a camera-path file into scene coordinates.

    capture_from_path: where the file's coordinates lie in the capture's; it overrides the file's `frame`. Size falls
    back to the training views', the frame rate to frames / seconds or 24. Raises CaptureError with one sentence.
    """
    return camera_path_of(_json_object(Path(path)), info, str(path), capture_from_path)


def camera_path_of(
    data: dict[str, Any], info: SceneInfo, path: str, capture_from_path: Similarity | None = None
) -> CameraPath:
    """The same from the file's contents; `path` is what its sentences call it."""
    shots = data.get("camera_path")
    if not isinstance(shots, list) or not shots:
        hint = " It has keyframes only; save it from the viewer's render tab." if data.get("keyframes") else ""
        raise CaptureError(f"The camera path {path} has no list 'camera_path' with at least one camera in it.{hint}")
    kind = data.get("camera_type", "perspective")
    kind = kind.lower() if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in (*LENSES, *TWO_EYES):
        raise CaptureError(
            f"The camera path {path} asks for the camera_type {str(kind)[:40]!r}; known are "
            f"{', '.join((*LENSES, *TWO_EYES))}."
        )
    lens = LENSES.get(kind, Lens.EQUIRECTANGULAR)
    width = _side(data, "render_width", path, info.cameras[0].width)
    # Of half a panorama, a quarter is cut off at each side.
    width = 2 * (width + width % 2) if kind == "vr180" else width
    height = _side(data, "render_height", path, info.cameras[0].height)
    if lens is Lens.EQUIRECTANGULAR:
        focal = [(width / (2 * math.pi), height / math.pi)] * len(shots)
    else:
        focal = [(f, f) for f in (_focal(shot, data, i, height, path) for i, shot in enumerate(shots))]
    world_from_cam = torch.stack([_pose(shot, i, path) for i, shot in enumerate(shots)])
    cameras = Camera(
        cam_from_world=invert(world_from_cam),
        intrinsics=torch.tensor([(fx, fy, width / 2, height / 2) for fx, fy in focal], dtype=torch.float64),
        distortion=torch.zeros(len(shots), 4 if lens is Lens.OPENCV_FISHEYE else 0, dtype=torch.float64),
        width=width,
        height=height,
        lens=lens,
    )
    frame = data.get("frame", "capture")
    if frame not in ("capture", "scene"):
        raise CaptureError(f"'frame' of {path} should be 'capture' or 'scene', and it is {str(frame)[:40]!r}.")
    if capture_from_path is not None:
        cameras = cameras.transformed(info.scene_from_capture @ capture_from_path)
    elif frame == "capture":
        cameras = cameras.transformed(info.scene_from_capture)
    notes = ("The crop box of the camera path is not applied.",) if data.get("crop") else ()
    eyes = kind if kind in TWO_EYES else ""
    return CameraPath(cameras.to(torch.float32), _fps(data, len(shots), path), notes, eyes)


def write_camera_path(path: Path | str, cameras: Camera, info: SceneInfo, fps: float = DEFAULT_FPS) -> None:
    """Write a batch [n] of scene cameras as a camera-path file in capture coordinates, whole or not at all."""
    with whole_file(Path(path)) as partial:
        text = json.dumps(camera_path_data(cameras, info, fps), indent=1, allow_nan=False)
        partial.write_text(text, encoding="utf-8")


def camera_path_data(cameras: Camera, info: SceneInfo, fps: float = DEFAULT_FPS) -> dict[str, Any]:
    """What such a file holds, for a batch [n] of scene cameras."""
    names = {lens: name for name, lens in LENSES.items()} | {Lens.SIMPLE_PINHOLE: "perspective"}
    if cameras.lens not in names or bool((cameras.distortion != 0).any()):
        raise ValueError(f"cameras: expected {', '.join(LENSES)} without distortion, got {cameras.lens.value}")
    in_capture = cameras.to(torch.float64).transformed(info.scene_from_capture.inverse())
    flip = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    matrices = torch.zeros(len(in_capture), 4, 4, dtype=torch.float64)
    matrices[:, :3] = in_capture.world_from_cam * flip
    matrices[:, 3, 3] = 1.0
    fov = torch.rad2deg(2 * torch.atan(0.5 * cameras.height / cameras.intrinsics[:, 1].double()))
    aspect = cameras.width / cameras.height
    return {
        "camera_type": names[cameras.lens],
        "render_width": cameras.width,
        "render_height": cameras.height,
        "fps": fps,
        "seconds": len(matrices) / fps,
        "frame": "capture",
        "camera_path": [
            {"camera_to_world": matrix.flatten().tolist(), "fov": angle, "aspect": aspect}
            for matrix, angle in zip(matrices, fov.tolist(), strict=True)
        ],
    }


def capture_from_nerfstudio(path: Path | str, original_from_capture: Similarity | None = None) -> Similarity:
    """Similarity from the frame of nerfstudio's viewer to the capture's, from a `dataparser_transforms.json`.

    The file maps the original world (before a transforms.json's `applied_transform`) by x_viewer = scale * (R x + t);
    `original_from_capture` is that of the `Capture`, the identity for most.
    """
    path = Path(path)
    data = _json_object(path)
    matrix = _numbers(data.get("transform"), 12, f"'transform' of {path}").reshape(3, 4)
    scale = _number(data.get("scale"), f"'scale' of {path}")
    if not scale > 0:
        raise CaptureError(f"'scale' of {path} must be positive, and it is {scale}.")
    rotation = _rotation(matrix[:, :3], f"'transform' of {path}")
    original_from_viewer = Similarity(scale, rotation, scale * matrix[:, 3]).inverse()
    if original_from_capture is None:
        return original_from_viewer
    return original_from_capture.inverse() @ original_from_viewer


# --- reading untrusted numbers --------------------------------------------------------------------------------------


def _json_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CaptureError(f"The file {path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:  # undecodable bytes and JSON errors are ValueErrors
        raise CaptureError(f"The file {path} is not JSON: {str(error).splitlines()[0][:120]}.") from error
    if not isinstance(data, dict):
        raise CaptureError(f"The file {path} should hold a JSON object, and it holds a {type(data).__name__}.")
    return data


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CaptureError(f"{where} should be a number, and it is {str(value)[:40]!r}.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise CaptureError(f"{where} should be a finite number, and it is {str(value)[:40]}.")
    return number


def _numbers(value: object, count: int, where: str) -> Tensor:
    """`count` finite numbers, from a flat list or a list of rows, [count] float64."""
    if not isinstance(value, list):
        raise CaptureError(f"{where} should be a list of {count} numbers, and it is {str(value)[:40]!r}.")
    flat = [x for row in value for x in (row if isinstance(row, list) else [row])]
    if len(flat) != count:
        raise CaptureError(f"{where} should have {count} numbers, and it has {len(flat)}.")
    return torch.tensor([_number(x, where) for x in flat], dtype=torch.float64)


def _rotation(matrix: Tensor, where: str) -> Tensor:
    """The rotation in a 3 x 3 block that may carry an even scale and rounding, as viewers write it."""
    left, size, right = torch.linalg.svd(matrix)
    if float(size[2]) <= 0 or float(size[0]) > 1.05 * float(size[2]) or float(torch.linalg.det(matrix)) <= 0:
        raise CaptureError(f"{where} should hold a rotation, and its 3 x 3 part is skewed, mirrored or zero.")
    return left @ right


def _pose(shot: object, i: int, path: str) -> Tensor:
    """world_from_cam [3, 4] with OpenCV axes."""
    where = f"'camera_to_world' of camera {i} in {path}"
    if not isinstance(shot, dict):
        raise CaptureError(f"Camera {i} in {path} should be a JSON object, and it is a {type(shot).__name__}.")
    matrix = _numbers(shot.get("camera_to_world"), 16, where).reshape(4, 4)
    if not torch.allclose(matrix[3], torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64), atol=1e-4):
        raise CaptureError(f"{where} should end with the row 0 0 0 1; is it written column by column?")
    flip = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    return torch.cat([_rotation(matrix[:3, :3], where) * flip, matrix[:3, 3:]], dim=1)


def _focal(shot: object, data: dict[str, Any], i: int, height: int, path: str) -> float:
    """Pixels, from the vertical field of view; nerfstudio uses the same focal length for its fisheye."""
    own = shot.get("fov") if isinstance(shot, dict) else None
    fov = _number(data.get("default_fov", 50.0) if own is None else own, f"'fov' of camera {i} in {path}")
    if not 0.1 <= fov < 179.5:
        raise CaptureError(f"'fov' of camera {i} in {path} should be from 0.1 to 179.5 degrees, and it is {fov:g}.")
    return 0.5 * height / math.tan(0.5 * math.radians(fov))


def _side(data: dict[str, Any], key: str, path: str, default: int) -> int:
    value = data.get(key)
    number = float(default) if value is None else _number(value, f"'{key}' of {path}")
    if not 1 <= number <= LARGEST_SIDE:
        raise CaptureError(f"'{key}' of {path} should lie between 1 and {LARGEST_SIDE} pixels, and it is {number:g}.")
    return round(number)


def _fps(data: dict[str, Any], frames: int, path: str) -> float:
    seconds = data.get("seconds")
    if data.get("fps") is not None:
        fps = _number(data["fps"], f"'fps' of {path}")
    elif seconds is not None and _number(seconds, f"'seconds' of {path}") > 0:
        fps = frames / float(seconds)
    else:
        fps = DEFAULT_FPS
    if not 0.1 <= fps <= 240:
        raise CaptureError(f"'fps' of {path} should lie between 0.1 and 240, and it is {fps:g}.")
    return fps
