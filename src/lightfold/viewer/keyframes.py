"""Camera paths made by hand: keyframes, the smooth way through them, and the file that keeps both.

The file is the one that nerfstudio's viewer and its Blender add-on write (see `path_files`), with their key
"keyframes" beside the finished path, so that a path can be taken up again where it was put down.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.spatial.transform import Rotation, RotationSpline
from torch import Tensor

from ..cameras import Camera, Lens
from ..errors import CaptureError
from ..files import whole_file
from ..geometry import invert
from ..path_files import CameraPath, camera_path_data, camera_path_of
from ..scene import SceneInfo

LONGEST = 100_000
"""Most frames of a path."""


@dataclass(frozen=True, eq=False)
class Keyframe:
    """A camera at a moment. world_from_cam [3, 4] float64 scene frame; fov vertical, radians; seconds to the next."""

    world_from_cam: Tensor
    fov: float
    seconds: float = 2.0


@dataclass(frozen=True)
class Flight:
    """Keyframes and how to fly through them. size: width, height in pixels, of one eye's picture where there are two.
    loop: the last leads to the first. eyes: of `path_files.TWO_EYES`, for a panorama lens, or nothing."""

    keyframes: tuple[Keyframe, ...] = ()
    loop: bool = False
    fps: float = 24.0
    size: tuple[int, int] = (960, 540)
    lens: Lens = Lens.PINHOLE
    eyes: str = ""

    @property
    def seconds(self) -> float:
        """Length of the whole flight. The last keyframe's time counts only in a loop."""
        times = [key.seconds for key in self.keyframes]
        return sum(times if self.loop else times[:-1])

    @property
    def frames(self) -> int:
        """Frames of the video; at least one where there is a keyframe."""
        return min(max(1, round(self.seconds * self.fps)), LONGEST) if self.keyframes else 0

    def at(self, seconds: Tensor) -> tuple[Tensor, Tensor]:
        """Poses world_from_cam [n, 3, 4] and vertical fields of view [n] at times since the start.

        Positions follow a cubic spline in time, directions a spline of rotations with continuous angular velocity, and
        fields of view a monotone one, which never zooms beyond what its keyframes say. Two keyframes give a straight
        line with an even pace.
        """
        keys = list(self.keyframes)
        if not keys:
            raise ValueError("keyframes: expected at least one, got none")
        if self.loop and len(keys) > 1:
            keys.append(keys[0])
        time = np.concatenate([[0.0], np.cumsum([max(key.seconds, 1e-3) for key in keys[:-1]])])
        when = np.clip(seconds.double().numpy(), 0.0, time[-1])
        if len(keys) == 1:
            n = len(when)
            return keys[0].world_from_cam.double().expand(n, 3, 4), torch.full((n,), keys[0].fov, dtype=torch.float64)
        pose = np.stack([key.world_from_cam.double().numpy() for key in keys])
        if self.loop:
            place = CubicSpline(time, pose[:, :, 3], bc_type="periodic")(when)
        else:
            place = CubicSpline(time, pose[:, :, 3], bc_type="natural")(when)
        turn = RotationSpline(time, Rotation.from_matrix(pose[:, :, :3]))(when).as_matrix()
        fov = PchipInterpolator(time, [key.fov for key in keys])(when)
        return torch.from_numpy(np.concatenate([turn, place[:, :, None]], axis=2)), torch.from_numpy(fov)

    def cameras(self) -> Camera:
        """One camera per frame, batch [frames], scene frame."""
        count = self.frames
        moments = torch.arange(count, dtype=torch.float64) / self.fps
        if not self.loop and count > 1:
            # The last frame shows the last keyframe.
            moments = torch.linspace(0, self.seconds, count, dtype=torch.float64)
        pose, fov = self.at(moments)
        width, height = self.size
        if self.lens is Lens.EQUIRECTANGULAR:
            return Camera.panorama(invert(pose).float(), width, height)
        focal = 0.5 * height / torch.tan(0.5 * fov)
        middle = torch.tensor([width / 2, height / 2], dtype=torch.float64).expand(count, 2)
        return Camera(
            cam_from_world=invert(pose).float(),
            intrinsics=torch.cat([focal[:, None], focal[:, None], middle], dim=1).float(),
            distortion=torch.zeros(4 if self.lens is Lens.OPENCV_FISHEYE else 0),
            width=width,
            height=height,
            lens=self.lens,
        )


def moved(keyframes: tuple[Keyframe, ...], index: int, by: int) -> tuple[Keyframe, ...]:
    """The same with one keyframe earlier or later in the order, as far as it goes."""
    order = list(keyframes)
    order.insert(min(max(index + by, 0), len(order) - 1), order.pop(index))
    return tuple(order)


# --- files ----------------------------------------------------------------------------------------------------------


def flight_text(flight: Flight, info: SceneInfo) -> str:
    """The camera-path file of a flight, in capture coordinates."""
    data = camera_path_data(flight.cameras(), info, flight.fps)
    width, height = flight.size
    poses = torch.stack([key.world_from_cam.double() for key in flight.keyframes])
    in_capture = Camera(
        cam_from_world=invert(poses),
        intrinsics=torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64),
        distortion=torch.zeros(0, dtype=torch.float64),
        width=width,
        height=height,
        lens=Lens.PINHOLE,
    ).transformed(info.scene_from_capture.inverse())
    flip = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    data["keyframes"] = [
        {
            "matrix": torch.cat([pose * flip, bottom[None]]).flatten().tolist(),
            "fov": math.degrees(key.fov),
            "aspect": width / height,
            "override_transition_enabled": True,
            # Their keyframes say how long it takes to come there, ours how long to the next.
            "override_transition_sec": before.seconds,
        }
        for key, before, pose in zip(
            flight.keyframes,
            [flight.keyframes[-1], *flight.keyframes[:-1]],
            in_capture.world_from_cam,
            strict=True,
        )
    ]
    if flight.eyes:
        data["camera_type"] = flight.eyes
    data |= {"is_cycle": flight.loop, "default_fov": math.degrees(flight.keyframes[0].fov)}
    return json.dumps(data, indent=1, allow_nan=False)


def write_flight(path: Path, flight: Flight, info: SceneInfo) -> None:
    """Write a flight as a camera-path file."""
    with whole_file(path) as partial:
        partial.write_text(flight_text(flight, info), encoding="utf-8")


def read_flight(text: bytes | str, info: SceneInfo, name: str = "camera path") -> Flight:
    """A flight from a camera-path file. Without keyframes in it, every camera becomes one.

    Raises CaptureError with one sentence.
    """
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CaptureError(f"{name} is not JSON: {str(error).splitlines()[0][:120]}.") from error
    if not isinstance(data, dict):
        raise CaptureError(f"{name} should hold a JSON object, and it holds a {type(data).__name__}.")
    keys = data.get("keyframes")
    if not isinstance(keys, list) or not keys:
        found = camera_path_of(data, info, name)
        return _of_path(found)
    # Read by the same careful reader as the path.
    shots = [_as_shot(key, i, name) for i, key in enumerate(keys[:LONGEST])]
    found = camera_path_of(data | {"camera_path": shots, "fps": data.get("fps") or 24.0}, info, name)
    flight = _of_path(found)
    otherwise = _seconds(data.get("default_transition_sec"), 2.0)
    arriving = [_seconds(shot["seconds"], otherwise) for shot in shots]
    keyframes = tuple(
        replace(frame, fov=math.radians(shot["fov"]), seconds=seconds)
        for frame, shot, seconds in zip(flight.keyframes, shots, [*arriving[1:], arriving[0]], strict=True)
    )
    return replace(flight, keyframes=keyframes, loop=bool(data.get("is_cycle", False)))


def _of_path(found: CameraPath) -> Flight:
    cameras, fps = found.cameras, found.fps
    fov = 2 * torch.atan(0.5 * cameras.height / cameras.intrinsics[:, 1].double())
    if cameras.lens is Lens.EQUIRECTANGULAR:
        fov = torch.full_like(fov, math.radians(50))
    poses = cameras.world_from_cam.double()
    keyframes = tuple(Keyframe(pose, float(angle), 1 / fps) for pose, angle in zip(poses, fov, strict=True))
    # The cameras of vr180 are whole panoramas.
    width = cameras.width // 2 if found.eyes == "vr180" else cameras.width
    return Flight(keyframes, fps=fps, size=(width, cameras.height), lens=cameras.lens, eyes=found.eyes)


def _as_shot(key: object, i: int, name: str) -> dict[str, Any]:
    """A keyframe as an entry of "camera_path"; "seconds" is the time to come there, None where it has none."""
    matrix = key.get("matrix") if isinstance(key, dict) else None
    if isinstance(matrix, str):
        # Files of the first viewer hold the matrix as text, column by column.
        try:
            columns = json.loads(matrix)
            matrix = [columns[column * 4 + row] for row in range(4) for column in range(4)]
        except (ValueError, RecursionError, TypeError, LookupError):
            matrix = None
    if not isinstance(key, dict) or not isinstance(matrix, list) or len(matrix) != 16:
        raise CaptureError(f"Keyframe {i} of {name} has no 'matrix' of 16 numbers.")
    seconds = key.get("override_transition_sec") if key.get("override_transition_enabled") else None
    fov = key.get("fov")
    usable = isinstance(fov, (int, float)) and not isinstance(fov, bool) and 0.1 <= fov < 179.5
    return {"camera_to_world": matrix, "fov": float(fov) if usable else 50.0, "seconds": seconds}  # type: ignore[arg-type]


def _seconds(value: object, otherwise: float) -> float:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 3600
    return float(value) if usable else otherwise  # type: ignore[arg-type]
