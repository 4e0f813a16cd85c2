"""Putting a reconstruction where it belongs: similarity alignment, the direction of up, metres from GPS.

Structure from motion knows the cameras up to a similarity. Three things fix it, as far as they are known: other
positions of the same cameras (a reference, for evaluation; GPS, for metres and north), and the habit of people to hold
cameras level, which gives up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..geometry import Similarity, invert

EQUATORIAL_RADIUS = 6378137.0
FLATTENING = 1 / 298.257223563
"""The ellipsoid of WGS 84, in metres, to which GPS coordinates refer."""
LEVEL = 0.2
"""Sine of the largest typical roll of cameras that are held level."""
GPS_ACCURACY = 5.0
"""Metres by which the position of a phone's GPS is commonly wrong."""


# ---------------------------------------------------------------------------------------------------------------------
# Similarity alignment


def umeyama(source: ArrayLike | Tensor, target: ArrayLike | Tensor) -> Similarity:
    """The similarity target_from_source with the least squared distance between matching points (Umeyama 1991).

    source, target: [N, 3], N >= 3, row i of one matches row i of the other. Raises ValueError when the shapes differ,
    there are fewer than three points, or either set lies on a line, about which any rotation fits.
    """
    x, y = (torch.as_tensor(points, dtype=torch.float64) for points in (source, target))
    if x.shape != y.shape or x.ndim != 2 or x.shape[1] != 3 or len(x) < 3:
        raise ValueError(
            f"source, target: expected two [N, 3] of at least 3 points, got {list(x.shape)}, {list(y.shape)}"
        )
    x_mean, y_mean = x.mean(0), y.mean(0)
    x_centred, y_centred = x - x_mean, y - y_mean
    if any(_collinear(points) for points in (x_centred, y_centred)):
        raise ValueError("source, target: expected points that are not all on one line")
    u, singular, vt = torch.linalg.svd(y_centred.T @ x_centred / len(x))
    sign = torch.ones(3, dtype=torch.float64)
    # A mirror image would sometimes fit better, but no camera takes one.
    sign[2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vt))
    rotation = u @ torch.diag(sign) @ vt
    scale = float((singular * sign).sum() / x_centred.square().sum(1).mean())
    return Similarity(scale, rotation, y_mean - scale * rotation @ x_mean)


def _collinear(centred: Tensor) -> bool:
    singular = torch.linalg.svdvals(centred)
    return not bool(singular[1] > 1e-9 * singular[0]) or not bool(singular[0] > 0)


@dataclass(frozen=True, eq=False)
class PoseErrors:
    """How far estimated cameras are from reference ones, after similarity alignment of their centres.

    rotation:      [N] degrees.
    rotation_free: [N] degrees after also taking out one rotation, constant in the camera's own axes. Such a rotation
                   is what two solutions with different principal points differ by, and it moves no pixel.
    position:      [N] in units of the reference.
    extent:        length of the diagonal of the box around the reference's centres.
    """

    rotation: Tensor
    rotation_free: Tensor
    position: Tensor
    extent: float
    reference_from_estimate: Similarity


def pose_errors(estimate: Tensor, reference: Tensor) -> PoseErrors:
    """Compare cam_from_world [N, 3, 4] of the same N >= 3 cameras. Raises ValueError as `umeyama` does."""
    estimate, reference = estimate.double(), reference.double()
    similarity = umeyama(invert(estimate)[..., 3], invert(reference)[..., 3])
    aligned = similarity.camera_from(estimate)
    centres = invert(reference)[..., 3]
    # Rows are camera axes, so this product is the rotation seen from the camera.
    camera_from_camera = aligned[..., :3] @ reference[..., :3].mT
    u, _, vt = torch.linalg.svd(camera_from_camera.mean(0))
    constant = u @ torch.diag(torch.tensor([1.0, 1.0, float(torch.linalg.det(u @ vt).sign())]).double()) @ vt
    return PoseErrors(
        rotation=_angle(camera_from_camera),
        rotation_free=_angle(constant.mT @ camera_from_camera),
        position=(invert(aligned)[..., 3] - centres).norm(dim=-1),
        extent=float((centres.amax(0) - centres.amin(0)).norm()),
        reference_from_estimate=similarity,
    )


def _angle(rotation: Tensor) -> Tensor:
    """Degrees of rotation matrices; the chord is exact for small angles, where the cosine is not."""
    eye = torch.eye(3, dtype=rotation.dtype)
    chord = (rotation - eye).flatten(-2).norm(dim=-1) / math.sqrt(8)
    return torch.rad2deg(2 * torch.asin(chord.clamp(max=1.0)))


# ---------------------------------------------------------------------------------------------------------------------
# Up


def up_from_cameras(cam_from_world: Tensor) -> tuple[Tensor, bool]:
    """The world direction [3] that is most likely up, and whether the cameras determine it well.

    cam_from_world: [N, 3, 4]. People hold cameras level, tilted up or down but not rolled, so the right axes of all
    pictures are horizontal and up is perpendicular to them: the last right-singular vector. That holds for pictures
    that look down as well as for those that look ahead. When the right axes are all alike, or the cameras were rolled,
    the mean up axis of the pictures is the better guess, but no more than that.
    """
    right, up = cam_from_world[:, 0, :3].double(), -cam_from_world[:, 1, :3].double()
    forward = cam_from_world[:, 2, :3].double().mean(0)
    mean_up = up.mean(0)
    spread, axes = torch.linalg.svd(right / math.sqrt(len(right)), full_matrices=True)[1:]
    level = len(right) >= 3 and bool(spread[2] < LEVEL) and bool(spread[1] > 2 * max(float(spread[2]), 0.05))
    if not level:
        # Pictures straight down from all sides have no mean up axis; the sky is then behind the cameras.
        guess = mean_up if float(mean_up.norm()) > 0.1 else -forward
        return guess / guess.norm().clamp_min(1e-12), False
    vertical = axes[2]
    lean = float(vertical @ mean_up)
    upward = lean > 0 if abs(lean) > 0.1 else float(vertical @ forward) < 0
    return (vertical if upward else -vertical), True


def rotation_to_z(up: Tensor) -> Tensor:
    """The smallest rotation [3, 3] that takes the direction up [3] to +z."""
    up = up.double() / up.double().norm()
    z = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    cosine = float(up @ z)
    if cosine < -1 + 1e-9:
        return torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    x, y, w = torch.linalg.cross(up, z).tolist()
    k = torch.tensor([[0.0, -w, y], [w, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
    return torch.eye(3, dtype=torch.float64) + k + k @ k / (1 + cosine)


# ---------------------------------------------------------------------------------------------------------------------
# GPS


def east_north_up(
    fixes: Sequence[tuple[float, float, float]],
) -> tuple[NDArray[np.float64], tuple[float, float, float]]:
    """Metres [N, 3] east, north and up of the median fix, and that origin (latitude, longitude, altitude).

    fixes: (latitude degrees, longitude degrees, altitude metres) on WGS 84. Altitudes that are not finite count as the
    median of the others. Goes through Earth-centred coordinates, so it is exact at any distance and latitude.
    """
    table = np.array(fixes, dtype=np.float64).reshape(-1, 3)
    known = np.isfinite(table[:, 2])
    table[~known, 2] = np.median(table[known, 2]) if known.any() else 0.0
    # Near the date line longitudes jump by 360 degrees; they are brought to one side before the median.
    table[:, 1] = table[0, 1] + (table[:, 1] - table[0, 1] + 180.0) % 360.0 - 180.0
    origin = np.median(table, axis=0)
    latitude, longitude = np.radians(origin[:2])
    north, east = (np.sin(latitude), np.cos(latitude)), (np.sin(longitude), np.cos(longitude))
    axes = np.array([
        [-east[0], east[1], 0.0],
        [-north[0] * east[1], -north[0] * east[0], north[1]],
        [north[1] * east[1], north[1] * east[0], north[0]],
    ])  # fmt: skip
    return (_earth_centred(table) - _earth_centred(origin[None])) @ axes.T, (
        float(origin[0]),
        float((origin[1] + 180.0) % 360.0 - 180.0),
        float(origin[2]),
    )


def _earth_centred(table: NDArray[np.float64]) -> NDArray[np.float64]:
    latitude, longitude, height = np.radians(table[:, 0]), np.radians(table[:, 1]), table[:, 2]
    eccentricity2 = FLATTENING * (2 - FLATTENING)
    normal = EQUATORIAL_RADIUS / np.sqrt(1 - eccentricity2 * np.sin(latitude) ** 2)
    flat = (normal + height) * np.cos(latitude)
    return np.stack(
        [
            flat * np.cos(longitude),
            flat * np.sin(longitude),
            (normal * (1 - eccentricity2) + height) * np.sin(latitude),
        ],
        axis=1,
    )


def metres_from_gps(centres: Tensor, metres: NDArray[np.float64], level: bool, seed: int = 0) -> Similarity | None:
    """The similarity that takes camera centres to metres east, north and up; None when the fixes do not determine it.

    centres: [N, 3] of the cameras that have a fix, in a frame whose z is up. metres: [N, 3] of `east_north_up`.
    level: z is known to be up. Then only scale, heading and shift are estimated, which fixes along a street can do, and
    to which the altitude, the worst of GPS, adds nothing but the height. Otherwise the fixes must be spread over a
    plane. Outliers are left out by RANSAC. The fixes determine it when they are spread over several times the distance
    by which they miss, and most of them agree.
    """
    source, target = centres.double(), torch.as_tensor(metres, dtype=torch.float64)
    count = len(source)
    if count < 3 or not bool(torch.isfinite(target).all()):
        return None
    axes = 2 if level else 3
    threshold = max(GPS_ACCURACY, 0.02 * float((target.amax(0) - target.amin(0)).norm()))
    size = 2 if level else 3
    best: Tensor | None = None
    for sample in _samples(count, size, seed):
        fit = _fit(source[sample], target[sample], level)
        if fit is None:
            continue
        error = (fit.apply(source) - target)[:, :axes].norm(dim=1)
        inside = error < threshold
        if best is None or int(inside.sum()) > int(best.sum()):
            best = inside
    if best is None or int(best.sum()) < max(3, math.ceil(0.6 * count)):
        return None
    final = _fit(source[best], target[best], level)
    if final is None:
        return None
    error = (final.apply(source[best]) - target[best])[:, :axes].norm(dim=1)
    spread = torch.linalg.svdvals(target[best, :axes] - target[best, :axes].mean(0))[0 if level else 1]
    deviation = float(spread) / math.sqrt(int(best.sum()))
    miss = float(error.square().mean().sqrt())
    return final if deviation > 4 * max(miss, 0.25) else None


def _samples(count: int, size: int, seed: int) -> list[list[int]]:
    """All subsets where these are few, else 300 of them."""
    if math.comb(count, size) <= 300:
        return [list(chosen) for chosen in itertools.combinations(range(count), size)]
    rng = np.random.default_rng(seed)
    return [rng.choice(count, size, replace=False).tolist() for _ in range(300)]


def _fit(source: Tensor, target: Tensor, level: bool) -> Similarity | None:
    if not level:
        try:
            return umeyama(source, target)
        except ValueError:
            return None
    return _fit_level(source, target)


def _fit_level(source: Tensor, target: Tensor) -> Similarity | None:
    """Scale, heading and shift: the least-squares similarity of the plane, as a product of complex numbers."""
    mean, goal = source.mean(0), target.mean(0)
    a = torch.complex(*(source - mean)[:, :2].T.contiguous().unbind(0))
    b = torch.complex(*(target - goal)[:, :2].T.contiguous().unbind(0))
    power = float((a.conj() * a).real.sum())
    if not power > 1e-18:
        return None
    turn = complex((a.conj() * b).sum()) / power
    scale = abs(turn)
    if not scale > 1e-12:
        return None
    cosine, sine = turn.real / scale, turn.imag / scale
    rotation = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    # The median: one altitude of zero, a common way to say unknown, must not lift the whole model.
    height = torch.median(target[:, 2] - scale * source[:, 2])
    shift = goal - scale * rotation @ mean
    shift[2] = height
    return Similarity(scale, rotation, shift)
