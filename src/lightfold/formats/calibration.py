"""What camera files of different programs have in common: finding them, matrices to cameras, polynomials to lenses.

Everything that makes the camera of one frame unusable is a `FrameError`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..cameras import Camera, Lens, opencv_lens
from ..errors import CaptureError
from ..geometry import Similarity
from .frames import LARGEST_SIDE, FrameError, listed, nearest_rotation

LARGEST_COEFFICIENT = 1e12
VISIBLE_SKEW = 0.1
"""Pixels by which skew may move a corner before somebody should hear of it."""
VISIBLE_ERROR = 0.1
"""Pixels by which a fitted lens may be off before somebody should hear of it."""
HEAD = 4096
FIT_SAMPLES = 256


# --- files ------------------------------------------------------------------------------------------------------------


def camera_files(path: Path, end: str, recognised: Callable[[bytes], bool]) -> list[Path]:
    """`path`, or the files in the folder `path`, whose name ends in `end` and whose first 4096 bytes are recognised."""
    try:
        candidates = [path] if os.path.isfile(path) else sorted(path.iterdir())
        return [file for file in candidates if file.name.lower().endswith(end) and recognised(_head(file))]
    except OSError:
        return []


def one_camera_file(path: Path, files: Sequence[Path], what: str) -> Path:
    """The only one of these files. Raises CaptureError when there is none, or another one."""
    if not files:
        raise CaptureError(f"{path} neither is nor holds {what}.")
    if len(files) > 1:
        raise CaptureError(
            f"{path} holds {len(files)} camera files ({listed([f.name for f in files])}); name one of them."
        )
    return files[0]


def read_bytes(file: Path, largest: int) -> bytes:
    """A file's content. Raises CaptureError when it cannot be read or is larger than `largest` bytes."""
    try:
        size = os.path.getsize(file)
        if size > largest:
            raise CaptureError(f"{file} is {size >> 20} MiB; a camera list beyond {largest >> 20} MiB is not read.")
        return file.read_bytes()
    except OSError as error:
        raise CaptureError(f"{file} cannot be read: {error.strerror}.") from error


def _head(file: Path) -> bytes:
    if not os.path.isfile(file):
        return b""
    with file.open("rb") as stream:
        return stream.read(HEAD)


def finite_numbers(value: object, count: int, what: str) -> list[float]:
    """A JSON list of so many numbers below 1e100. Raises FrameError for anything else."""
    numbers = value if isinstance(value, list) and len(value) == count else []
    if not numbers or not all(type(v) in (int, float) and abs(v) < 1e100 for v in numbers):
        raise FrameError(f"were left out because {what} is not {count} finite numbers")
    return [float(v) for v in numbers]


# --- cameras ----------------------------------------------------------------------------------------------------------


def calibrated(
    lens: Lens, intrinsics: Sequence[float], distortion: Sequence[float], width: float, height: float, pose: Tensor
) -> Camera:
    """A camera from the numbers of a file, checked. intrinsics: fx, fy, cx, cy in pixels of width x height.

    Raises FrameError for numbers that are not finite, focal lengths that are not positive, sizes that are not whole.
    """
    if not all(abs(v) < LARGEST_COEFFICIENT for v in distortion):
        raise FrameError("were left out because their distortion is not finite")
    if not all(0 < side <= LARGEST_SIDE and side == int(side) for side in (width, height)):
        raise FrameError("were left out because the size of their picture is not a whole number of pixels")
    if not all(math.isfinite(v) for v in intrinsics) or not min(intrinsics[:2]) > 0:
        raise FrameError("were left out because their intrinsics are not finite, or a focal length is not positive")
    return Camera(
        cam_from_world=pose,
        intrinsics=torch.tensor(intrinsics, dtype=torch.float64),
        distortion=torch.tensor(distortion, dtype=torch.float64),
        width=int(width),
        height=int(height),
        lens=lens,
    )


def decompose(projection: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """K [3, 3] and cam_from_world [3, 4] of a projection matrix P = K [R | t], [3, 4] up to scale.

    K has a positive diagonal and K[2, 2] = 1 (Hartley and Zisserman 2004, section 6.2.4). Raises FrameError when P has
    no such form.
    """
    if not np.isfinite(projection).all():
        raise FrameError("were left out because their projection matrix holds NaN or infinity")
    # The sign of P is free; with det(KR) > 0 the rotation is one, and points in front have a positive depth.
    with np.errstate(over="ignore", invalid="ignore"):
        matrix = projection if np.linalg.det(projection[:, :3]) > 0 else -projection
    # RQ from QR: reversing rows and columns turns the lower triangle into the upper.
    q, r = np.linalg.qr(matrix[::-1, :3].T)
    upper, rotation = r.T[::-1, ::-1], q.T[::-1]
    signs = np.sign(np.diag(upper))
    upper, rotation = upper * signs, signs[:, None] * rotation
    if not np.abs(np.diag(upper)).min() > 1e-12 * np.abs(upper).max():
        raise FrameError("were left out because their projection matrix has no camera centre")
    pose = np.concatenate([rotation, np.linalg.solve(upper, matrix[:, 3:])], axis=1)
    if not np.isfinite(pose).all():
        raise FrameError("were left out because their projection matrix has no camera centre")
    return upper / upper[2, 2], pose


def skewed(intrinsics: np.ndarray, width: float, height: float) -> bool:
    """Whether dropping the skew of K [3, 3] moves a corner of the picture by more than VISIBLE_SKEW pixels."""
    most = max(abs(intrinsics[1, 2]), abs(height - intrinsics[1, 2])) / abs(intrinsics[1, 1])
    return bool(abs(intrinsics[0, 1]) * most > VISIBLE_SKEW)


def similarity(matrix: np.ndarray) -> Similarity:
    """The similarity that a [3 or 4, 4] matrix of scale, rotation and shift holds. Raises FrameError for others."""
    if not np.isfinite(matrix).all():
        raise FrameError("were left out because a transform holds NaN or infinity")
    with np.errstate(all="ignore"):
        scale = float(np.cbrt(np.linalg.det(matrix[:3, :3])))
    if not 1e-12 < scale < 1e12:
        raise FrameError("were left out because a transform is not a scale, a rotation and a shift")
    rotation = nearest_rotation(matrix[:3, :3] / scale)
    return Similarity(scale, torch.from_numpy(rotation), torch.from_numpy(matrix[:3, 3].copy()))


def geocentric_up(x_in_world: Tensor) -> Tensor | None:
    """Up [3] at a place in Earth-centred coordinates (EPSG:4978, metres); None for a place deep inside or far outside.

    The normal of the WGS 84 ellipsoid, which is that of the ground to within a second of arc a few kilometres up.
    """
    if not 6.3e6 < float(x_in_world.norm()) < 6.5e6:
        return None
    equator, pole = 6378137.0, 6356752.314245
    normal = x_in_world.double() / torch.tensor([equator, equator, pole], dtype=torch.float64) ** 2
    unit: Tensor = normal / normal.norm()
    return unit


def brown_lens(
    radial: Sequence[float], p1: float, p2: float, focal: float, width: float, height: float
) -> tuple[Lens, list[float], float]:
    """A lens for 1 + k1 r^2 + ... + k4 r^8 with tangential p1, p2 in OpenCV's order, and its error in pixels.

    There is no lens with an r^8 term; where k4 is not zero, FULL_OPENCV's fraction of two cubics in r^2 is fitted to
    the polynomial over the picture, and the error is the largest in it. Without k4 the lens is exact and the error 0.
    Raises FrameError when the coefficients are not finite.
    """
    k1, k2, k3, k4 = radial
    if not all(abs(v) < LARGEST_COEFFICIENT for v in (*radial, p1, p2)) or not focal > 0:
        raise FrameError("were left out because their distortion or focal length is not a usable number")
    if k4 == 0:
        lens, coefficients = opencv_lens(k1, k2, p1, p2, k3)
        return lens, coefficients, 0.0
    polynomial = np.polynomial.Polynomial([1.0, k1, k2, k3, k4])
    # The corner may lie half a picture further from the principal point than from the middle; beyond that, who cares.
    corner = 1.2 * math.hypot(width, height) / (2 * focal)
    radius = np.linspace(0.0, 4 * corner, 4096)
    with np.errstate(over="ignore", invalid="ignore"):
        reached = radius * polynomial(radius**2)
    grows = np.diff(reached, prepend=-1.0) > 0
    first_fold = len(radius) if grows.all() else int(np.argmin(grows))
    beyond = int(np.searchsorted(reached[:first_fold], corner))
    reach = radius[max(1, min(beyond, first_fold - 1))]
    # Chebyshev's nodes keep the fit from swinging at its ends; x is r^2 over its largest value.
    x = 0.5 - 0.5 * np.cos(np.pi * (np.arange(FIT_SAMPLES) + 0.5) / FIT_SAMPLES)
    fits = [_rational_fit(x, polynomial(x * reach**2), terms) for terms in range(4)]
    above, below, error = min((fit for fit in fits if fit is not None), key=lambda fit: fit[2])
    units = reach ** np.array([2.0, 4.0, 6.0])
    a, b = (above / units).tolist(), (below / units).tolist()
    return Lens.FULL_OPENCV, [a[0], a[1], p1, p2, a[2], *b], error * reach * focal


def _rational_fit(x: np.ndarray, scale: np.ndarray, terms: int) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Coefficients of x, x^2, x^3 above and below a fraction bar, the first `terms` below, that give a radial factor.

    The error is the largest of sqrt(x) times the difference, a share of the largest radius. None when the denominator
    has a root where the fraction is to be used.
    """
    powers = np.stack([x, x**2, x**3], axis=1)
    radius = np.sqrt(x)
    above, below = np.zeros(3), np.zeros(3)
    # Linear in the unknowns once multiplied by the denominator; dividing by the last one found removes that weight
    # (Sanathanan and Koerner 1963).
    for _ in range(5):
        weight = radius / np.abs(1.0 + powers @ below).clip(1e-6)
        rows = np.concatenate([powers, -scale[:, None] * powers[:, :terms]], axis=1) * weight[:, None]
        solution = np.linalg.lstsq(rows, (scale - 1.0) * weight, rcond=1e-12)[0]
        above, below[:terms] = solution[:3], solution[3:]
    roots = np.polynomial.Polynomial([1.0, *below]).roots()
    if ((np.abs(roots.imag) < 1e-6) & (roots.real > 0) & (roots.real < 1.2)).any():
        return None
    return above, below, float(np.abs(radius * ((1.0 + powers @ above) / (1.0 + powers @ below) - scale)).max())
