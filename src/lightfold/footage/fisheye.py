"""Dual-fisheye frames, as cheap 360 cameras store them, to panoramas.

Two lenses look in opposite directions, each sees a little more than half of all directions, and their two circles of
light stand in one frame. A calibration says where; then every pixel of the panorama has a place in one circle, or near
the seam in both, where the two are blended over a few degrees. That map depends on the calibration and the size only:
it is made once and applied to every frame.

The lenses are a few centimetres apart, so what is near the camera cannot fit at the seam. That is the footage, not the
calibration.

Calibrations come from Hugin's project files (https://hugin.sourceforge.io), or from two cameras of any other source.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cameras import Camera, Lens
from ..errors import CaptureError
from .panorama import as_planes, resample, same_directions

FEATHER = math.radians(4.0)
"""Width of the blend across the seam."""
GAMMA = 2.2
"""Exponent between stored values and light, near enough to every camera's for a smooth brightening."""
LARGEST_GAIN = 4.0
"""Light is not raised by more: there is only noise to raise."""
CIRCULAR, FULL_FRAME = 2, 3
"""Hugin's numbers of the projections whose radius is proportional to the angle."""


@dataclass(frozen=True, eq=False)
class Fisheye:
    """One of the lenses of a frame.

    camera: intrinsics in pixels of the whole frame. The rotation of its pose is lens_from_panorama; nothing else of the
            pose is read.
    circle: (x, y, radius) in pixels of the frame: where the lens throws light that is good enough to use.
    falloff: (b, c, d): the share 1 + b r^2 + c r^4 + d r^6 of the light arrives at a distance r from the optical axis,
            in units of half the frame's diagonal. Zeros where it is not known.
    """

    camera: Camera
    circle: tuple[float, float, float]
    falloff: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class DualFisheye:
    """The calibration of a frame of width x height pixels with two fisheyes in it."""

    width: int
    height: int
    lenses: tuple[Fisheye, Fisheye]


@dataclass(frozen=True, eq=False)
class Stitch:
    """How a panorama of width x height is put together from a frame of frame_width x frame_height.

    For each lens: the panorama's pixels that it contributes to (index [N], row after row), where these are in the frame
    (xy [N, 2] float32), and with what weight ([N] float32). The weights of a pixel sum to one, but for the brightening
    that undoes the lens's falloff.
    mask: [height, width] uint8, 255 where any lens sees.
    """

    width: int
    height: int
    frame_width: int
    frame_height: int
    parts: tuple[tuple[Tensor, Tensor, Tensor], ...]
    mask: NDArray[np.uint8]


def side_by_side(first: Camera, second: Camera, second_from_first: Tensor) -> DualFisheye:
    """A calibration from two cameras whose pictures stand beside each other in the frame, the first one on the left.

    Args:
        first, second: single fisheye cameras, in pixels of their own pictures; poses are not read.
        second_from_first: rotation [3, 3] between them.

    The first looks at the middle of the panorama. Its light is taken to fill the largest circle in its picture.
    """
    if second_from_first.shape != (3, 3):
        raise ValueError(f"second_from_first: expected [3, 3], got {list(second_from_first.shape)}")
    lenses = []
    for camera, left, rotation in ((first, 0, torch.eye(3)), (second, first.width, second_from_first)):
        pose = torch.cat([rotation, torch.zeros(3, 1)], dim=1).to(torch.float64)
        moved = camera.intrinsics.double() + torch.tensor([0.0, 0.0, float(left), 0.0], dtype=torch.float64)
        circle = (left + camera.width / 2, camera.height / 2, min(camera.width, camera.height) / 2)
        lenses.append(Fisheye(replace(camera, cam_from_world=pose, intrinsics=moved), circle))
    width, height = first.width + second.width, max(first.height, second.height)
    sized = [Fisheye(replace(lens.camera, width=width, height=height), lens.circle) for lens in lenses]
    return DualFisheye(width, height, (sized[0], sized[1]))


def stitching(calibration: DualFisheye, frame: tuple[int, int], width: int, feather: float = FEATHER) -> Stitch:
    """The map from frames of one size (width, height) to panoramas of width x width / 2 pixels.

    Frames may be larger or smaller than those that were calibrated, but not of another shape. `feather` is the width of
    the blend in radians.

    Raises:
        CaptureError: the frame has another aspect ratio than the calibration.
    """
    if width < 2 or feather <= 0.0:
        raise ValueError(f"width, feather: expected at least 2 pixels and more than 0 radians, got {width}, {feather}")
    if abs(frame[0] * calibration.height / (frame[1] * calibration.width) - 1) > 0.01:
        raise CaptureError(
            f"The frames are {frame[0]} x {frame[1]} pixels, but the calibration is for {calibration.width} x "
            f"{calibration.height}, which is another shape. Use the calibration that belongs to this camera."
        )
    height = width // 2
    sphere = Camera.panorama(torch.eye(3, 4, dtype=torch.float64), width, height)
    where = torch.empty(2, height, width, 2)
    share = torch.empty(2, height, width)
    x = torch.arange(width, dtype=torch.float64) + 0.5
    band = max(1, (1 << 18) // width)  # rows at a time, which bounds the memory of the float64 work
    for first in range(0, height, band):
        y = torch.arange(first, min(first + band, height), dtype=torch.float64) + 0.5
        xy = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        rows = slice(first, first + len(y))
        share[:, rows] = _shares(calibration, sphere, xy, frame, feather, where[:, rows]).float()
    parts = []
    for lens in range(2):
        index = torch.nonzero(share[lens].flatten() > 0)[:, 0]
        parts.append((index, where[lens].reshape(-1, 2)[index], share[lens].flatten()[index]))
    mask = np.where((share.sum(0) > 0).numpy(), 255, 0).astype(np.uint8)
    return Stitch(width, height, *frame, tuple(parts), mask)


def _shares(
    calibration: DualFisheye, sphere: Camera, xy: Tensor, frame: tuple[int, int], feather: float, where: Tensor
) -> Tensor:
    """Weights [2, h, w] of the lenses at panorama pixels xy [h, w, 2]; `where` [2, h, w, 2] gets the frame's pixels.

    Away from the seam, where both are equally far from a lens's axis, the nearer lens counts alone. A lens also fades
    out towards the end of its circle, or the end would show.
    """
    sees, angle, fade, gain = [], [], [], []
    direction = sphere.unproject(xy.flatten(0, 1)).unflatten(0, xy.shape[:2])
    for number, lens in enumerate(calibration.lenses):
        pixels, valid = same_directions(sphere, lens.camera, xy)
        centre_x, centre_y, radius = lens.circle
        inward = radius - torch.hypot(pixels[..., 0] - centre_x, pixels[..., 1] - centre_y)
        sees.append(valid & (inward > 0))
        fade.append((inward / (0.5 * feather * lens.camera.intrinsics[0])).clamp(1e-3, 1.0))
        angle.append(torch.acos((direction @ lens.camera.forward).clamp(-1.0, 1.0)))
        gain.append(_brightening(lens, pixels))
        scale = pixels.new_tensor([frame[0] / calibration.width, frame[1] / calibration.height])
        where[number] = (pixels * scale).float()
    # Half the difference of the two angles is how far a direction is from the seam.
    s = (0.5 + 0.5 * (angle[1] - angle[0]) / feather).clamp(0.0, 1.0)
    smooth = s * s * (3.0 - 2.0 * s)
    weights = torch.stack([smooth * fade[0], (1.0 - smooth) * fade[1]])
    # Where the nearer lens has run out of picture, the other is better than nothing.
    weights = torch.where(torch.stack(sees), weights.clamp_min(1e-6), torch.zeros_like(weights))
    weights = weights / weights.sum(0).clamp_min(1e-12)
    weights = torch.where(weights < 1e-3, torch.zeros_like(weights), torch.where(weights > 0.999, 1.0, weights))
    return weights * torch.stack(gain)


def _brightening(lens: Fisheye, pixels: Tensor) -> Tensor:
    """Factors [...] for stored values at pixels [..., 2] of the frame, which undo the lens's falloff."""
    half_diagonal = 0.5 * math.hypot(lens.camera.width, lens.camera.height)
    r2 = ((pixels - lens.camera.intrinsics[2:]) / half_diagonal).square().sum(-1)
    b, c, d = lens.falloff
    light = 1.0 + r2 * (b + r2 * (c + r2 * d))
    return light.clamp(1.0 / LARGEST_GAIN, 1.0) ** (-1.0 / GAMMA)


def stitch(frame: NDArray[np.uint8], how: Stitch) -> NDArray[np.uint8]:
    """The panorama [height, width, 3] of a frame [H, W, 3]; black where no lens sees."""
    if frame.shape[:2] != (how.frame_height, how.frame_width):
        raise ValueError(
            f"frame: expected {how.frame_width} x {how.frame_height} pixels, got {frame.shape[1]} x {frame.shape[0]}"
        )
    planes = as_planes(frame, panorama=False)
    total = torch.zeros(planes.shape[1], how.height * how.width)
    for index, xy, weight in how.parts:
        total[:, index] += weight * resample(planes, xy[None])[:, 0]
    pixels = total.add_(0.5).clamp_(0, 255).to(torch.uint8)
    return np.ascontiguousarray(pixels.reshape(-1, how.height, how.width).permute(1, 2, 0).numpy())


# --- Hugin -----------------------------------------------------------------------------------------------------------
#
# One line per photograph, "i w3840 h1920 f2 v380.1 ... S0,1920,0,1920 n"name"": size, projection, horizontal angle of
# view in degrees (of the whole width, whatever the crop), yaw, pitch and roll (y p r: right, up, clockwise, degrees),
# radial polynomial (a b c), shift of the optical axis from the middle (d e, pixels), shear (g t), crop (S: left, right,
# top, bottom), vignetting (Vb Vc Vd). "v=0" means: the same as photograph 0.


def read_hugin(path: Path) -> DualFisheye:
    """The calibration in a Hugin project (.pto) of frames that hold two circles.

    Photographs with the same crop are of the same lens, and the first of each lens gives it. The panorama is oriented
    as Hugin would make it.

    Raises:
        CaptureError: the file cannot be read, or is no such project.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise CaptureError(f"{path} cannot be read ({error.strerror or error}).") from error
    lines = [line for line in text.splitlines() if line.startswith("i ")]
    try:
        first_of: dict[str, int] = {}
        for number, line in enumerate(lines):
            first_of.setdefault(_word(line, "S"), number)
        if len(first_of) != 2:
            raise ValueError(f"its photographs have {len(first_of)} different crops, and two lenses need two")
        lenses = [_hugin_lens(lines, number) for number in first_of.values()]
    except ValueError as error:
        raise CaptureError(
            f"{path} is not a Hugin project of a dual-fisheye camera: {error}. Calibrate both circles of one frame, "
            "each with a crop of its own."
        ) from error
    sizes = {(lens.camera.width, lens.camera.height) for lens in lenses}
    if len(sizes) != 1:
        raise CaptureError(f"{path} has photographs of different sizes; both lenses must be in one frame.")
    return DualFisheye(*sizes.pop(), (lenses[0], lenses[1]))


def _word(line: str, key: str) -> str:
    """What follows a key in a line, up to the next blank."""
    found = re.search(rf" {key}([-+=.,\d][^\s]*)", line.partition(' n"')[0])
    if found is None:
        raise ValueError(f"a photograph has no '{key}'")
    return found.group(1)


def _number(lines: list[str], number: int, key: str) -> float:
    """A value of a photograph, which may be given as that of another one."""
    for _ in range(len(lines)):
        word = _word(lines[number], key)
        if not word.startswith("="):
            value = float(word)
            if not abs(value) < 1e6:
                raise ValueError(f"'{key}' is {word}")
            return value
        number = int(word[1:])
        if not 0 <= number < len(lines):
            raise ValueError(f"'{key}' is that of photograph {number}, which is not there")
    raise ValueError(f"'{key}' leads round in a circle")


def _hugin_lens(lines: list[str], number: int) -> Fisheye:
    def value(key: str) -> float:
        return _number(lines, number, key)

    if value("f") not in (CIRCULAR, FULL_FRAME):
        raise ValueError(f"projection {value('f'):.0f} is not a fisheye ({CIRCULAR} or {FULL_FRAME})")
    if value("g") != 0.0 or value("t") != 0.0:
        raise ValueError("it has shear ('g', 't'), which no lens here has")
    width, height, field = int(value("w")), int(value("h")), math.radians(value("v"))
    if not (0 < width <= 1 << 16 and 0 < height <= 1 << 16 and 0.1 < field < 100.0):
        raise ValueError(f"its photographs are {width} x {height} and {value('v'):.0f} degrees wide")
    left, right, top, bottom = (float(edge) for edge in _word(lines[number], "S").split(","))
    circle = (0.5 * (left + right), 0.5 * (top + bottom), 0.5 * min(right - left, bottom - top))
    if not 1.0 <= circle[2] <= max(width, height):
        raise ValueError(f"the crop {left:.0f}, {right:.0f}, {top:.0f}, {bottom:.0f} holds no circle")
    cx, cy = 0.5 * width + value("d"), 0.5 * height + value("e")
    reach = circle[2] + math.hypot(cx - circle[0], cy - circle[1])
    focal, distortion = _fit(width / field, 0.5 * min(width, height), (value("a"), value("b"), value("c")), reach)
    yaw, pitch, roll = (math.radians(value(key)) for key in "ypr")
    pose = torch.cat([_lens_from_panorama(yaw, pitch, roll), torch.zeros(3, 1, dtype=torch.float64)], dim=1)
    intrinsics = pose.new_tensor([focal, focal, cx, cy])
    camera = Camera(pose, intrinsics, pose.new_tensor(distortion), width, height, Lens.OPENCV_FISHEYE)
    # Hugin gives vignetting a centre of its own; light falls off about the optical axis, which is known better.
    return Fisheye(camera, circle, (value("Vb"), value("Vc"), value("Vd")))


def _lens_from_panorama(yaw: float, pitch: float, roll: float) -> Tensor:
    """Rotation [3, 3]: the lens is rolled clockwise, then tilted up, then turned right."""
    (cy, sy), (cp, sp), (cr, sr) = ((math.cos(a), math.sin(a)) for a in (yaw, pitch, roll))
    turn = torch.tensor([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]], dtype=torch.float64)
    tilt = torch.tensor([[1, 0, 0], [0, cp, -sp], [0, sp, cp]], dtype=torch.float64)
    rolled = torch.tensor([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]], dtype=torch.float64)
    return (turn @ tilt @ rolled).mT


def _fit(scale: float, unit: float, abc: tuple[float, float, float], reach: float) -> tuple[float, list[float]]:
    """Focal length and distortion k1 .. k4 of the OPENCV_FISHEYE lens nearest to Hugin's, up to `reach` pixels from the
    axis.

    Hugin: r = scale * angle pixels become r * (a q^3 + b q^2 + c q + 1 - a - b - c), q = r / unit. Even powers of the
    angle can only be approximated by odd ones; the difference is below a pixel, and so is such a calibration's error.
    """
    a, b, c = abc
    angle = np.linspace(0.0, 0.98 * math.pi, 4001)[1:]
    q = scale * angle / unit
    radius = scale * angle * (a * q**3 + b * q**2 + c * q + 1 - a - b - c)
    # Beyond the rim, and where the polynomial turns back, it means nothing.
    usable = int(np.argmax((np.diff(radius, prepend=0.0) <= 0) | (radius > reach)))
    usable = usable or len(radius)
    if usable < 100:
        raise ValueError("its radial distortion ('a', 'b', 'c') folds the picture over")
    powers = np.stack([angle[:usable] ** k for k in (1, 3, 5, 7, 9)], axis=1)
    fitted = np.linalg.lstsq(powers, radius[:usable], rcond=None)[0]
    if not fitted[0] > 0:
        raise ValueError("its radial distortion ('a', 'b', 'c') folds the picture over")
    return float(fitted[0]), [float(k) for k in fitted[1:] / fitted[0]]
