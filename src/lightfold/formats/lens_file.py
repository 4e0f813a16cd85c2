"""One camera's calibration, from a file that a calibration program wrote.

    COLMAP       cameras.txt or cameras.bin with one camera
    JSON         one camera with the keys of transforms.json: w, h, fl_x, fl_y, cx, cy, k1 ..., camera_model
    OpenCV       FileStorage as YAML, XML or JSON: image_width, camera_matrix, distortion_coefficients, fisheye_model
    ROS          camera_info: the same in YAML, with distortion_model; or the message itself: width, height, k, d
    Kalibr       camchain.yaml with one camera: intrinsics, resolution, distortion_model, distortion_coeffs

OpenCV, ROS and Kalibr count pixels from the centre of the first; here it lies at 0.5, as in COLMAP.
https://docs.opencv.org/4.x/d4/d94/tutorial_camera_calibration.html, https://wiki.ros.org/camera_calibration_parsers,
https://github.com/ethz-asl/kalibr/wiki/yaml-formats
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
import yaml

from ..cameras import Camera, Lens, opencv_lens
from ..errors import CaptureError
from . import colmap, transforms
from .calibration import calibrated, read_bytes
from .frames import FrameError, Header

LARGEST = 4 << 20
"""Bytes. One camera needs a thousand."""
WRITTEN_BY = "COLMAP (cameras.txt), OpenCV, ROS (camera_info), Kalibr (camchain), or JSON as in transforms.json"
PERSPECTIVE_NAMES = ("plumb_bob", "rational_polynomial", "radtan", "none", "")
FISHEYE_NAMES = ("equidistant", "fisheye", "equi")


def read_lens_file(path: Path) -> Camera:
    """The camera of a calibration file, standing at the origin, at the size that it was calibrated at.

    Raises CaptureError with one sentence for a file that is none, holds several cameras, or a lens there is none for.
    """
    data = read_bytes(path, LARGEST)
    try:
        if path.suffix.lower() in (".txt", ".bin"):
            camera = _from_colmap(path)
        else:
            camera = _from_entries(_entries(path, data), path)
    except FrameError as error:
        raise CaptureError(f"{path} is no calibration: {str(error).partition('because ')[2] or error}.") from error
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
        raise CaptureError(f"{path} is no calibration that can be read; known are those of {WRITTEN_BY}.") from error
    if camera.lens in (Lens.EQUIRECTANGULAR, Lens.ORTHOGRAPHIC):
        raise CaptureError(f"{path} describes no lens but {camera.lens.value}, which has nothing to calibrate.")
    return camera


def _from_colmap(path: Path) -> Camera:
    rows = list(colmap.binary_cameras(path) if path.suffix.lower() == ".bin" else colmap.text_cameras(path))
    if len(rows) != 1:
        raise CaptureError(f"{path} holds {len(rows)} cameras, and it must be one; delete the lines of the others.")
    (row,) = rows
    return Camera.from_colmap(row.model, row.params, row.width, row.height, _at_origin())


def _entries(path: Path, data: bytes) -> dict[str, Any]:
    """What a JSON, YAML or XML file says at its top. Raises ValueError and its like."""
    text = data.decode("utf-8-sig")
    if text.lstrip().startswith("<"):
        return _xml(text)
    if path.suffix.lower() == ".json":
        return transforms.read_document(path).values
    # OpenCV writes a directive that YAML does not have, and a tag of its own.
    plain = re.sub(r"\A%YAML[^\n]*\n", "", text).replace("!!opencv-matrix", "")
    try:
        values = yaml.safe_load(plain)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not isinstance(values, dict):
        raise ValueError("no entries")
    return values


def _xml(text: str) -> dict[str, Any]:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("definitions have no place in a calibration")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
    values: dict[str, Any] = {}
    for child in root:
        inner = child.find("data")
        words = (child.text if inner is None else inner.text) or ""
        values[child.tag] = {"data": words.split()} if inner is not None else words.strip()
    return values


def _from_entries(values: dict[str, Any], path: Path) -> Camera:
    cameras = {key: value for key, value in values.items() if re.fullmatch(r"cam[0-9]+", str(key))}
    if len(cameras) > 1:
        raise CaptureError(f"{path} holds {len(cameras)} cameras, and it must be one; delete the others.")
    if cameras:
        return _from_kalibr(next(iter(cameras.values())), path)
    if "intrinsics" in values and "resolution" in values:
        return _from_kalibr(values, path)
    if _first(values, "camera_matrix", "Camera_Matrix", "cameraMatrix", "K", "k") is not None:
        return _from_opencv(values, path)
    if any(key in values for key in ("fl_x", "camera_angle_x", "x_fov")):
        if "w" not in values or "h" not in values:
            raise CaptureError(f"{path} does not say for which size of picture it holds; add w and h.")
        header = Header(int(values["w"]), int(values["h"]), orientation=1, has_alpha=False, exif={}, xmp=b"")
        return transforms.intrinsics_of(transforms.Entry(values, str(path)), header)
    raise ValueError("nothing known")


def _from_opencv(values: dict[str, Any], path: Path) -> Camera:
    """OpenCV's FileStorage and ROS's camera_info, which call the same things by many names."""
    width, height = _first(values, "image_width", "width"), _first(values, "image_height", "height")
    if width is None or height is None:
        raise CaptureError(f"{path} does not say for which size of picture it holds; add image_width and image_height.")
    matrix = _numbers(_first(values, "camera_matrix", "Camera_Matrix", "cameraMatrix", "K", "k"))
    names = ("distortion_coefficients", "Distortion_Coefficients", "distCoeffs", "dist_coeffs", "D", "d")
    coefficients = _numbers(_first(values, *names) or [])
    name = str(_first(values, "distortion_model") or "").lower()
    # A flag of OpenCV's own calibration program.
    fisheye = name in FISHEYE_NAMES or str(values.get("fisheye_model", "0")).lower() in ("1", "true")
    if len(matrix) != 9:
        raise ValueError("no 3 x 3 matrix")
    intrinsics = (matrix[0], matrix[4], matrix[2], matrix[5])
    return _camera(path, "equidistant" if fisheye else name, intrinsics, coefficients, float(width), float(height))


def _from_kalibr(values: dict[str, Any], path: Path) -> Camera:
    kind = str(values.get("camera_model", "pinhole"))
    if kind != "pinhole":
        raise CaptureError(
            f"{path} has a camera of the kind '{kind}', for which there is no lens; calibrate a pinhole."
        )
    fx, fy, cx, cy = _numbers(values["intrinsics"])
    width, height = _numbers(values["resolution"])
    coefficients = _numbers(values.get("distortion_coeffs") or [])
    name = str(values.get("distortion_model", "none")).lower()
    if name == "fov":
        return calibrated(Lens.FOV, (fx, fy, cx + 0.5, cy + 0.5), coefficients[:1], width, height, _at_origin())
    return _camera(path, name, (fx, fy, cx, cy), coefficients, width, height)


def _camera(
    path: Path,
    name: str,
    intrinsics: tuple[float, float, float, float],
    coefficients: list[float],
    width: float,
    height: float,
) -> Camera:
    """A camera from OpenCV's numbers. name: of the distortion, as ROS and Kalibr call it."""
    fx, fy, cx, cy = intrinsics
    if name in FISHEYE_NAMES:
        lens, distortion = Lens.OPENCV_FISHEYE, [*coefficients, *[0.0] * 4][:4]
    elif name in PERSPECTIVE_NAMES:
        k1, k2, p1, p2, k3, k4, k5, k6 = [*coefficients, *[0.0] * 8][:8]
        if any(coefficients[8:]):
            raise CaptureError(
                f"{path} has thin-prism or tilt coefficients, for which there is no lens; calibrate without them."
            )
        lens, distortion = Lens.FULL_OPENCV, [k1, k2, p1, p2, k3, k4, k5, k6]
        if k4 == k5 == k6 == 0:
            lens, distortion = opencv_lens(k1, k2, p1, p2, k3)
    else:
        raise CaptureError(f"{path} has a distortion of the kind '{name}', for which there is no lens.")
    return calibrated(lens, (fx, fy, cx + 0.5, cy + 0.5), distortion, width, height, _at_origin())


def _first(values: dict[str, Any], *names: str) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), None)


def _numbers(value: Any) -> list[float]:
    """The numbers of a list, of a list of rows, or of a matrix with its `data`. Raises ValueError and its like."""
    if isinstance(value, dict):
        value = value["data"]
    if not isinstance(value, list):
        raise ValueError("no list")
    flat = [number for row in value for number in (row if isinstance(row, list) else [row])]
    numbers = [float(number) for number in flat]
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("not finite")
    return numbers


def _at_origin() -> torch.Tensor:
    return torch.eye(4, dtype=torch.float64)[:3]
