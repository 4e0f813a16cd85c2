"""Cameras: thirteen lenses, from world points to pixels and from pixels to rays.

Every lens is two steps, and this file is written along them:

    camera axes (X, Y, Z)  <->  plane (u, v)      the ideal lens: perspective u = X/Z, or fisheye |(u, v)| = angle
    plane (u, v)  <->  distorted plane            polynomial, rational, tangential, thin prism: COLMAP's formulas
    pixel = (fx, fy) * distorted plane + (cx, cy)

Axes are OpenCV's (x right, y down, z forward); pixel centres lie at +0.5, so a picture covers [0, width] x [0, height].
EQUIRECTANGULAR and ORTHOGRAPHIC have no distorted plane: a panorama is longitude and latitude over the whole picture,
an orthographic camera is X and Y themselves.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .geometry import Similarity, invert, sine_ratio
from .rays import Rays


class Lens(str, Enum):
    """How directions become pixels. All but ORTHOGRAPHIC are COLMAP's, with its parameters in its order."""

    SIMPLE_PINHOLE = "SIMPLE_PINHOLE"
    PINHOLE = "PINHOLE"
    SIMPLE_RADIAL = "SIMPLE_RADIAL"
    """k1"""
    RADIAL = "RADIAL"
    """k1, k2"""
    OPENCV = "OPENCV"
    """k1, k2, p1, p2"""
    FULL_OPENCV = "FULL_OPENCV"
    """k1, k2, p1, p2, k3, k4, k5, k6: (1 + k1 r^2 + k2 r^4 + k3 r^6) / (1 + k4 r^2 + k5 r^4 + k6 r^6)"""
    OPENCV_FISHEYE = "OPENCV_FISHEYE"
    """k1, k2, k3, k4: odd polynomial of the angle from the axis"""
    SIMPLE_RADIAL_FISHEYE = "SIMPLE_RADIAL_FISHEYE"
    """k1"""
    RADIAL_FISHEYE = "RADIAL_FISHEYE"
    """k1, k2"""
    THIN_PRISM_FISHEYE = "THIN_PRISM_FISHEYE"
    """k1, k2, p1, p2, k3, k4, sx1, sy1"""
    FOV = "FOV"
    """omega (Devernay and Faugeras 2001)"""
    EQUIRECTANGULAR = "EQUIRECTANGULAR"
    """2 pi x pi over the whole picture, forward in its middle"""
    ORTHOGRAPHIC = "ORTHOGRAPHIC"
    """parallel rays; focal lengths are pixels per unit of length"""


@dataclass(frozen=True)
class _Model:
    """What a lens's numbers mean: indices into its distortion vector."""

    fisheye: bool = False
    numerator: tuple[int, ...] = ()
    """factors of r^2, r^4, ... in the radial scale"""
    denominator: tuple[int, ...] = ()
    """the same below the fraction bar"""
    tangential: tuple[int, ...] = ()
    prism: tuple[int, ...] = ()
    colmap_id: int | None = None
    single_focal: bool = False
    extra: int = 0
    """numbers that none of the above covers (FOV's omega)"""

    @property
    def size(self) -> int:
        return len(self.numerator) + len(self.denominator) + len(self.tangential) + len(self.prism) + self.extra


_MODELS: dict[Lens, _Model] = {
    Lens.SIMPLE_PINHOLE: _Model(colmap_id=0, single_focal=True),
    Lens.PINHOLE: _Model(colmap_id=1),
    Lens.SIMPLE_RADIAL: _Model(numerator=(0,), colmap_id=2, single_focal=True),
    Lens.RADIAL: _Model(numerator=(0, 1), colmap_id=3, single_focal=True),
    Lens.OPENCV: _Model(numerator=(0, 1), tangential=(2, 3), colmap_id=4),
    Lens.FULL_OPENCV: _Model(numerator=(0, 1, 4), denominator=(5, 6, 7), tangential=(2, 3), colmap_id=6),
    Lens.OPENCV_FISHEYE: _Model(fisheye=True, numerator=(0, 1, 2, 3), colmap_id=5),
    Lens.SIMPLE_RADIAL_FISHEYE: _Model(fisheye=True, numerator=(0,), colmap_id=8, single_focal=True),
    Lens.RADIAL_FISHEYE: _Model(fisheye=True, numerator=(0, 1), colmap_id=9, single_focal=True),
    Lens.THIN_PRISM_FISHEYE: _Model(
        fisheye=True, numerator=(0, 1, 4, 5), tangential=(2, 3), prism=(6, 7), colmap_id=10
    ),
    Lens.FOV: _Model(extra=1, colmap_id=7),
    Lens.EQUIRECTANGULAR: _Model(colmap_id=17),
    Lens.ORTHOGRAPHIC: _Model(),
}

# COLMAP's fisheyes without distortion are OPENCV_FISHEYE with zeros: name, id, and whether there is one focal length.
_PLAIN_FISHEYES = {"SIMPLE_FISHEYE": (14, True), "FISHEYE": (15, False)}

# A perspective lens sees less than half of space. Beyond 89.9 degrees polynomials in tan(angle) are noise and overflow.
_LARGEST_TANGENT = math.tan(math.radians(89.9))


def distortion_size(lens: Lens) -> int:
    """How many distortion numbers the lens has."""
    return _MODELS[lens].size


def opencv_lens(
    k1: float = 0.0, k2: float = 0.0, p1: float = 0.0, p2: float = 0.0, k3: float = 0.0, k4: float = 0.0
) -> tuple[Lens, list[float]]:
    """The simplest lens, and its distortion, for k1 k2 p1 p2 k3 as transforms.json files give them (perspective).

    k3 needs FULL_OPENCV with an empty denominator. k4 means two things: nerfstudio multiplies r^8 by it, OpenCV puts it
    below a fraction bar (times r^2). None of COLMAP's lenses has an r^8, so a k4 other than zero is refused rather than
    guessed.

    Raises:
        ValueError: k4 is not zero.
    """
    if k4 != 0.0:
        raise ValueError(f"k4: expected 0 for a perspective lens (no lens here has an r^8 term), got {k4}")
    if k3 != 0.0:
        return Lens.FULL_OPENCV, [k1, k2, p1, p2, k3, 0.0, 0.0, 0.0]
    if k1 == k2 == p1 == p2 == 0.0:
        return Lens.PINHOLE, []
    return Lens.OPENCV, [k1, k2, p1, p2]


# ---------------------------------------------------------------------------------------------------------------------
# Distortion of the plane. k is [..., D] and uv is [..., N, 2]: one lens, many points.


def _horner(coefficients: Sequence[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The polynomial 1 + c1 x + c2 x^2 + ... and its derivative."""
    value, slope = torch.zeros_like(x), torch.zeros_like(x)
    for c in reversed(coefficients):
        slope = slope * x + value + c
        value = (value + c) * x
    return value + 1.0, slope


def _radial_scale(lens: Lens, k: Tensor, r2: Tensor) -> tuple[Tensor, Tensor]:
    """The radial factor s(r^2) and ds/d(r^2), for r2 [..., N]."""
    model = _MODELS[lens]
    if lens is Lens.FOV:
        return _fov_scale(k[..., 0, None], r2)
    value, slope = _horner([k[..., i, None] for i in model.numerator], r2)
    if model.denominator:
        below, below_slope = _horner([k[..., i, None] for i in model.denominator], r2)
        slope = (slope * below - value * below_slope) / (below * below)
        value = value / below
    return value, slope


def _fov_scale(omega: Tensor, r2: Tensor) -> tuple[Tensor, Tensor]:
    """The FOV lens: s = atan(a r) / (omega r) with a = 2 tan(omega/2), and ds/d(r^2); s = 1 where omega is zero."""
    flat = omega.abs() < 1e-6
    safe_omega = torch.where(flat, torch.ones_like(omega), omega)
    a = 2.0 * torch.tan(0.5 * safe_omega)
    ratio, ratio_slope = _arctangent_ratio(r2 * a**2)
    value = torch.where(flat, torch.ones_like(ratio), ratio * a / safe_omega)
    return value, torch.where(flat, torch.zeros_like(ratio), ratio_slope * a**3 / safe_omega)


def _arctangent_ratio(q2: Tensor) -> tuple[Tensor, Tensor]:
    """atan(q) / q and its derivative as functions of q^2 >= 0, smooth at zero, where both are quotients of zeros."""
    small = q2 < 1e-2
    inner = torch.where(small, q2, torch.zeros_like(q2))
    series, series_slope = torch.zeros_like(q2), torch.zeros_like(q2)
    for n in reversed(range(10)):
        series_slope = -series - inner * series_slope
        series = 1.0 / (2 * n + 1) - inner * series
    outer = torch.where(small, torch.ones_like(q2), q2)
    q = outer.sqrt()
    value = torch.where(small, series, torch.atan(q) / q)
    return value, torch.where(small, series_slope, 0.5 * (1.0 / (1.0 + outer) - torch.atan(q) / q) / outer)


def _distort(lens: Lens, k: Tensor, uv: Tensor) -> Tensor:
    """Plane to distorted plane, [..., N, 2] to [..., N, 2]."""
    model = _MODELS[lens]
    if model.size == 0:
        return uv
    u, v = uv[..., 0], uv[..., 1]
    r2 = u * u + v * v
    scale, _ = _radial_scale(lens, k, r2)
    du, dv = u * scale, v * scale
    if model.tangential:
        p1, p2 = (k[..., i, None] for i in model.tangential)
        du = du + 2 * p1 * u * v + p2 * (r2 + 2 * u * u)
        dv = dv + 2 * p2 * u * v + p1 * (r2 + 2 * v * v)
    if model.prism:
        sx, sy = (k[..., i, None] for i in model.prism)
        du, dv = du + sx * r2, dv + sy * r2
    return torch.stack([du, dv], dim=-1)


def _distort_jacobian(lens: Lens, k: Tensor, uv: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The derivative of `_distort` as (du'/du, du'/dv, dv'/du, dv'/dv), each [..., N]."""
    model = _MODELS[lens]
    u, v = uv[..., 0], uv[..., 1]
    scale, slope = _radial_scale(lens, k, u * u + v * v)
    uu, uv_, vu, vv = scale + 2 * u * u * slope, 2 * u * v * slope, 2 * u * v * slope, scale + 2 * v * v * slope
    if model.tangential:
        p1, p2 = (k[..., i, None] for i in model.tangential)
        uu, uv_ = uu + 2 * p1 * v + 6 * p2 * u, uv_ + 2 * p1 * u + 2 * p2 * v
        vu, vv = vu + 2 * p2 * v + 2 * p1 * u, vv + 2 * p2 * u + 6 * p1 * v
    if model.prism:
        sx, sy = (k[..., i, None] for i in model.prism)
        uu, uv_, vu, vv = uu + 2 * sx * u, uv_ + 2 * sx * v, vu + 2 * sy * u, vv + 2 * sy * v
    return uu, uv_, vu, vv


@functools.lru_cache(maxsize=4096)
def _monotone_radius(lens: Lens, k: tuple[float, ...]) -> float:
    """The plane radius up to which r -> r s(r^2) grows; beyond it two directions share a pixel and the lens folds over.

    With x = r^2 and s = N/D, d(r s)/dr = (N D + 2x (N' D - N D')) / D^2: the answer is the first positive root of the
    numerator or of D.
    """
    model = _MODELS[lens]
    largest = math.pi if model.fisheye else _LARGEST_TANGENT
    if not all(abs(c) < 1e12 for c in k):  # NaN fails this as well
        raise ValueError(f"distortion: expected finite numbers below 1e12, got {list(k)}")
    if lens is Lens.FOV or not any(k[i] for i in model.numerator + model.denominator):
        return largest
    polynomial = np.polynomial.Polynomial
    above = polynomial([1.0, *(k[i] for i in model.numerator)])
    below = polynomial([1.0, *(k[i] for i in model.denominator)])
    slope = above * below + polynomial([0.0, 2.0]) * (above.deriv() * below - above * below.deriv())
    # Terms that do nothing within the largest radius would only send the root finder to infinity.
    roots = np.concatenate([p.trim(1e-12 / largest ** (2 * max(p.degree(), 1))).roots() for p in (slope, below)])
    real = roots.real[(np.abs(roots.imag) <= 1e-9 * np.abs(roots)) & (roots.real > 0)]
    return min(largest, math.sqrt(real.min()) * (1.0 - 1e-9)) if real.size else largest


def _limit(lens: Lens, k: Tensor) -> Tensor:
    """`_monotone_radius` of a batch of lenses: [..., D] to [..., 1]."""
    rows = k.detach().double().reshape(math.prod(k.shape[:-1]), k.shape[-1]).tolist()
    return k.new_tensor([_monotone_radius(lens, tuple(row)) for row in rows]).reshape(*k.shape[:-1], 1)


def _unfolded(lens: Lens, k: Tensor, uv: Tensor) -> Tensor:
    """Which points [..., N] of the plane lie where the distortion still has its first sheet."""
    with torch.no_grad():
        model = _MODELS[lens]
        uv = uv.detach()
        # A comparison that NaN and infinity fail.
        inside = (uv * uv).sum(-1) <= _limit(lens, k) ** 2
        if model.tangential or model.prism:
            uu, uv_, vu, vv = _distort_jacobian(lens, k, uv)
            inside = inside & (uu * vv - uv_ * vu > 0)
        return inside


# ---------------------------------------------------------------------------------------------------------------------
# Its inverse


def _solve_radius(lens: Lens, k: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Plane radius r [..., N] with r s(r^2) = target, and whether there is one.

    Newton's method kept inside a bracket: the function grows on [0, limit], so a step that leaves the bracket is
    replaced by halving it, and every pixel that has a solution finds it. Others get the limit.
    """
    limit = _limit(lens, k).expand_as(target)
    reachable = limit * _radial_scale(lens, k, limit * limit)[0]
    valid = target <= reachable
    goal = torch.minimum(target, reachable)
    low, high = torch.zeros_like(goal), limit.clone()
    r = torch.minimum(goal, limit)
    for _ in range(100):
        scale, slope = _radial_scale(lens, k, r * r)
        error = r * scale - goal
        if bool((error.abs() <= 4e-15 * goal.clamp_min(1e-3)).all()):
            break
        low = torch.where(error < 0, r, low)
        high = torch.where(error > 0, r, high)
        newton = r - error / (scale + 2 * r * r * slope)
        step = torch.where((newton >= low) & (newton <= high), newton, 0.5 * (low + high))
        if torch.equal(step, r):
            break
        r = step
    return r, valid


def _newton_step(lens: Lens, k: Tensor, uv: Tensor, error: Tensor) -> Tensor:
    """J^-1 error [..., N, 2] with the Jacobian of the distortion at uv; no step where J has no usable inverse."""
    uu, uv_, vu, vv = _distort_jacobian(lens, k, uv)
    determinant = uu * vv - uv_ * vu
    safe = torch.where(determinant.abs() > 1e-12, determinant, torch.full_like(determinant, math.inf))
    e_u, e_v = error[..., 0], error[..., 1]
    return torch.stack([vv * e_u - uv_ * e_v, uu * e_v - vu * e_u], dim=-1) / safe[..., None]


def _newton_plane(lens: Lens, k: Tensor, target: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Solves distort(uv) = target from a good start, for lenses that are not radial: damped Newton in the plane."""
    limit = _limit(lens, k)[..., None]
    uv = start
    error = _distort(lens, k, uv) - target
    for _ in range(30):
        size = error.norm(dim=-1)
        waiting = size > 1e-14  # Points that are solved to the last bit cannot improve, and must not hold up the rest.
        if not bool(waiting.any()):
            break
        step = _newton_step(lens, k, uv, error)
        moved = False
        # A full step may overshoot where the distortion bends strongly: halve it until it helps.
        for _ in range(12):
            trial = uv - step
            radius = trial.norm(dim=-1, keepdim=True)
            trial = torch.where(radius > limit, trial * (limit / radius), trial)
            trial_error = _distort(lens, k, trial) - target
            better = waiting & (trial_error.norm(dim=-1) < size)
            uv = torch.where(better[..., None], trial, uv)
            error = torch.where(better[..., None], trial_error, error)
            moved = moved or bool(better.any())
            waiting = waiting & ~better & (size > 1e-12)
            if not bool(waiting.any()):
                break
            step = 0.5 * step
        if not moved:
            break
    return uv, error.norm(dim=-1) < 1e-10 * (1.0 + target.norm(dim=-1))


def _undistort(lens: Lens, k: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Distorted plane to plane [..., N, 2], and which points [..., N] have an answer.

    Solved in float64 without a graph. Gradients with respect to target and k come from the implicit function theorem,
    as one more Newton step that is recorded.
    """
    model = _MODELS[lens]
    if model.size == 0:
        return target, torch.ones_like(target[..., 0], dtype=torch.bool)
    with torch.no_grad():
        k64, goal = k.detach().double(), target.detach().double()
        distance = goal.norm(dim=-1)
        r, valid = _solve_radius(lens, k64, distance)
        uv = goal * (r / distance.clamp_min(1e-300))[..., None]
        if model.tangential or model.prism:
            uv, valid = _newton_plane(lens, k64, goal, uv)
            valid = valid & _unfolded(lens, k64, uv)
    if not (k.requires_grad or target.requires_grad):
        return uv.to(target.dtype), valid
    error = _distort(lens, k, uv.to(target.dtype)) - target
    error = error - error.detach()  # The value is solved already; only its derivative is wanted.
    step = _newton_step(lens, k64, uv, error)
    return uv.to(target.dtype) - torch.where(valid[..., None], step, torch.zeros_like(step)).to(target.dtype), valid


# ---------------------------------------------------------------------------------------------------------------------
# The ideal lens: camera axes to plane and back


def _of_size_one(x_in_cam: Tensor) -> Tensor:
    """The same directions with a largest coordinate of one, so that squares neither overflow nor vanish in float32.

    The scale is kept out of the graph: pixels do not depend on it, so their gradients are the same.
    """
    return x_in_cam / x_in_cam.detach().abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x_in_cam.dtype).tiny)


def _plane_from_direction(lens: Lens, x_in_cam: Tensor) -> tuple[Tensor, Tensor]:
    """Points [..., 3] in camera axes to plane coordinates [..., 2], and which of them [...] the ideal lens can see."""
    x_in_cam = _of_size_one(x_in_cam)
    x, y, z = x_in_cam.unbind(-1)
    if not _MODELS[lens].fisheye:
        # Within a millionth of a radian of sideways the quotient is no pixel any more; it is treated as behind.
        front = z > 1e-6 * (x.abs() + y.abs())
        safe_z = torch.where(front, z, torch.ones_like(z))
        return torch.stack([x / safe_z, y / safe_z], dim=-1), front
    radial2, z2 = x * x + y * y, z * z
    seen = (radial2 > 1e-12 * z2) | (z > 0)  # all but straight behind, where the angle has no direction
    near_axis = (z > 0) & (radial2 < 1e-2 * z2)
    safe_z = torch.where(near_axis, z, torch.ones_like(z))
    on_axis = _arctangent_ratio(torch.where(near_axis, radial2, torch.zeros_like(z)) / safe_z**2)[0] / safe_z
    wide = seen & ~near_axis
    radial = torch.where(wide, radial2, torch.ones_like(z)).sqrt()
    off_axis = torch.atan2(radial, torch.where(wide, z, torch.ones_like(z))) / radial
    scale = torch.where(near_axis, on_axis, off_axis)
    return x_in_cam[..., :2] * scale[..., None], seen


def _direction_from_plane(lens: Lens, uv: Tensor) -> Tensor:
    """Plane coordinates [..., 2] to unit directions [..., 3] in camera axes."""
    squared = (uv * uv).sum(-1, keepdim=True)
    if not _MODELS[lens].fisheye:
        return torch.cat([uv, torch.ones_like(squared)], dim=-1) * torch.rsqrt(squared + 1.0)
    # cos(angle) = 1 - 2 sin^2(angle / 2), which has a derivative on the axis.
    half_sine = 0.5 * sine_ratio(0.25 * squared)
    return torch.cat([uv * sine_ratio(squared), 1.0 - 2.0 * squared * half_sine**2], dim=-1)


def _panorama_from_direction(x_in_cam: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Equirectangular pixels of points in camera axes. At the poles every x is right, and the middle is given."""
    x, y, z = _of_size_one(x_in_cam).unbind(-1)
    horizontal2 = x * x + z * z
    pole = horizontal2 <= 1e-14 * y * y
    safe_x, safe_z = torch.where(pole, torch.zeros_like(x), x), torch.where(pole, torch.ones_like(z), z)
    horizontal = (safe_x * safe_x + safe_z * safe_z).sqrt()
    longitude = torch.atan2(safe_x, safe_z)
    latitude = torch.where(pole, 0.5 * math.pi * torch.sign(y), torch.atan2(y, horizontal))
    pixel = torch.stack([(longitude / (2 * math.pi) + 0.5) * width, (latitude / math.pi + 0.5) * height], dim=-1)
    return pixel, (horizontal2 > 0) | (y != 0)


def _direction_from_panorama(xy: Tensor, width: int, height: int) -> Tensor:
    """Unit directions of equirectangular pixels; x wraps around."""
    longitude = (xy[..., 0] / width - 0.5) * (2 * math.pi)
    latitude = (xy[..., 1] / height - 0.5) * math.pi
    flat = torch.cos(latitude)
    return torch.stack([torch.sin(longitude) * flat, torch.sin(latitude), torch.cos(longitude) * flat], dim=-1)


def _cone_radius(lens: Lens, direction: Tensor, right: Tensor, below: Tensor) -> Tensor:
    """Radius [...] of a pixel's cone at distance 1, from the directions [..., 3] of it and of its two neighbours.

    multinerf's rule: the mean of the two neighbour differences times 2/sqrt(12), which gives a disc the variance of a
    square pixel. For perspective lenses multinerf takes the differences on the plane z = 1 with t counted along z; per
    unit of distance along the ray that is the same radius times the direction's z.
    """
    shrink: Tensor | float = 1.0
    if not _MODELS[lens].fisheye and lens not in (Lens.EQUIRECTANGULAR, Lens.ORTHOGRAPHIC):
        shrink = direction[..., 2]
        direction, right, below = (d / d[..., 2:] for d in (direction, right, below))
    mean = 0.5 * ((right - direction).norm(dim=-1) + (below - direction).norm(dim=-1))
    return mean * shrink * (2.0 / math.sqrt(12.0))


# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Camera:
    """One camera, or a batch that shares lens and size. A capture of mixed cameras is a list of these.

    `intrinsics` and `distortion` take the type and device of `cam_from_world` and are broadcast to its batch shape, so
    `replace(camera, cam_from_world=path)` is the same camera at many poses.
    """

    cam_from_world: Tensor
    """[..., 3, 4] rigid, OpenCV axes, float32 or float64."""
    intrinsics: Tensor
    """[..., 4] fx, fy, cx, cy in pixels. EQUIRECTANGULAR ignores them (w/2pi, h/pi, w/2, h/2 by convention);
    ORTHOGRAPHIC reads fx, fy as pixels per unit of length."""
    distortion: Tensor
    """[..., D] in COLMAP's order for the lens; D = `distortion_size(lens)`."""
    width: int
    height: int
    lens: Lens

    def __post_init__(self) -> None:
        pose = self.cam_from_world
        if pose.shape[-2:] != (3, 4) or not pose.is_floating_point():
            raise ValueError(f"cam_from_world: expected floats [..., 3, 4], got {pose.dtype} {list(pose.shape)}")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"width, height: expected at least 1 pixel, got {self.width} x {self.height}")
        batch = pose.shape[:-2]
        for name, size in (("intrinsics", 4), ("distortion", _MODELS[self.lens].size)):
            value = getattr(self, name).to(pose)
            if value.shape[-1:] != (size,):
                raise ValueError(f"{name}: expected [..., {size}] for {self.lens.value}, got {list(value.shape)}")
            if value.shape[:-1] != batch:
                value = value.expand(*batch, size)
            object.__setattr__(self, name, value)

    # -- making cameras ------------------------------------------------------------------------------------------------

    @classmethod
    def panorama(cls, cam_from_world: Tensor, width: int, height: int) -> Camera:
        """An EQUIRECTANGULAR camera."""
        intrinsics = _panorama_intrinsics(cam_from_world, width, height)
        return cls(cam_from_world, intrinsics, intrinsics[..., :0], width, height, Lens.EQUIRECTANGULAR)

    @classmethod
    def stack(cls, cameras: Sequence[Camera]) -> Camera:
        """A batch of cameras [n, ...] from n of the same lens, size and batch shape.

        Raises:
            ValueError: none given, or they differ in lens, size or batch shape.
        """
        kinds = {(c.lens.value, c.width, c.height, tuple(c.shape)) for c in cameras}
        if len(kinds) != 1:
            raise ValueError(f"Camera.stack: expected cameras of one lens, size and batch shape, got {sorted(kinds)}")
        poses = torch.stack([c.cam_from_world for c in cameras])
        intrinsics = torch.stack([c.intrinsics for c in cameras])
        distortion = torch.stack([c.distortion for c in cameras])
        return replace(cameras[0], cam_from_world=poses, intrinsics=intrinsics, distortion=distortion)

    @classmethod
    def from_colmap(
        cls, model: str | int, params: Sequence[float], width: int, height: int, cam_from_world: Tensor
    ) -> Camera:
        """A camera from COLMAP's model (name or id) and parameters.

        Raises:
            ValueError: the model is not one of those here, or the number of parameters is not the model's.
        """
        ids = {m.colmap_id: lens.value for lens, m in _MODELS.items() if m.colmap_id is not None}
        ids |= {number: name for name, (number, _) in _PLAIN_FISHEYES.items()}
        name = ids.get(model) if isinstance(model, int) else model if model in ids.values() else None
        if name is None:
            raise ValueError(f"model: expected one of COLMAP's {', '.join(ids[i] for i in sorted(ids))}, got {model!r}")
        params = [float(p) for p in params]
        if name == "EQUIRECTANGULAR":
            if params != [width, height]:
                raise ValueError(f"params: expected EQUIRECTANGULAR's width and height {[width, height]}, got {params}")
            return cls.panorama(cam_from_world, width, height)
        plain = name in _PLAIN_FISHEYES
        lens = Lens.OPENCV_FISHEYE if plain else Lens(name)
        single_focal = _PLAIN_FISHEYES[name][1] if plain else _MODELS[lens].single_focal
        expected = (3 if single_focal else 4) + (0 if plain else _MODELS[lens].size)
        if len(params) != expected:
            raise ValueError(f"params: expected {expected} numbers for {name}, got {len(params)}")
        if single_focal:
            params = [params[0], *params]
        distortion = [0.0] * _MODELS[lens].size if plain else params[4:]
        intrinsics = cam_from_world.new_tensor(params[:4])
        return cls(cam_from_world, intrinsics, cam_from_world.new_tensor(distortion), width, height, lens)

    def to_colmap(self) -> tuple[str, list[float]]:
        """COLMAP's model name and parameters of a single camera.

        A lens with one focal length whose two have come to differ (a resize that rounds) is given as the next larger
        model that says exactly the same.

        Raises:
            ValueError: a batch, or a lens that COLMAP does not have.
        """
        self._require_single("to_colmap")
        if self.lens is Lens.EQUIRECTANGULAR:
            return self.lens.value, [float(self.width), float(self.height)]
        if _MODELS[self.lens].colmap_id is None:
            raise ValueError(f"to_colmap: expected a lens that COLMAP has, got {self.lens.value}")
        intrinsics, distortion = self.intrinsics.tolist(), self.distortion.tolist()
        if not _MODELS[self.lens].single_focal:
            return self.lens.value, [*intrinsics, *distortion]
        if intrinsics[0] == intrinsics[1]:
            return self.lens.value, [*intrinsics[1:], *distortion]
        if self.lens is Lens.SIMPLE_PINHOLE:
            return Lens.PINHOLE.value, intrinsics
        larger = Lens.OPENCV_FISHEYE if _MODELS[self.lens].fisheye else Lens.OPENCV
        return larger.value, [*intrinsics, *distortion, *([0.0] * (4 - len(distortion)))]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON."""
        return {
            "lens": self.lens.value,
            "width": self.width,
            "height": self.height,
            "dtype": str(self.cam_from_world.dtype).removeprefix("torch."),
            "intrinsics": self.intrinsics.tolist(),
            "distortion": self.distortion.tolist(),
            "cam_from_world": self.cam_from_world.tolist(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Camera:
        """The inverse of `to_dict`, bit for bit.

        Raises:
            ValueError: a key is missing or names an unknown lens or type, or a shape does not fit the lens.
        """
        keys = ("lens", "width", "height", "dtype", "intrinsics", "distortion", "cam_from_world")
        missing = [key for key in keys if key not in data]
        if missing:
            raise ValueError(f"camera: expected the keys {', '.join(keys)}, got none for {', '.join(missing)}")
        dtypes = {"float32": torch.float32, "float64": torch.float64}
        if data["dtype"] not in dtypes:
            raise ValueError(f"camera dtype: expected one of {', '.join(dtypes)}, got {data['dtype']!r}")
        pose, intrinsics, distortion = (
            torch.tensor(data[key], dtype=dtypes[data["dtype"]])
            for key in ("cam_from_world", "intrinsics", "distortion")
        )
        return cls(pose, intrinsics, distortion, int(data["width"]), int(data["height"]), Lens(data["lens"]))

    # -- the batch -----------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> torch.Size:
        """Batch shape; () for a single camera."""
        return self.cam_from_world.shape[:-2]

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a single camera has no length")
        return self.shape[0]

    def __getitem__(self, index: Any) -> Camera:
        """The cameras that an index, slice, mask or index tensor selects from the batch."""
        if not self.shape:
            raise IndexError("a single camera cannot be indexed")
        return replace(
            self,
            cam_from_world=self.cam_from_world[index],
            intrinsics=self.intrinsics[index],
            distortion=self.distortion[index],
        )

    def to(self, target: torch.device | str | torch.dtype) -> Camera:
        """On another device, or in another float type."""
        return replace(
            self,
            cam_from_world=self.cam_from_world.to(target),
            intrinsics=self.intrinsics.to(target),
            distortion=self.distortion.to(target),
        )

    def _require_single(self, what: str) -> None:
        if self.shape:
            raise ValueError(f"{what}: expected a single camera, got a batch of shape {list(self.shape)}")

    # -- where it is and what it sees ----------------------------------------------------------------------------------

    @property
    def world_from_cam(self) -> Tensor:
        """[..., 3, 4]."""
        return invert(self.cam_from_world)

    @property
    def center(self) -> Tensor:
        """[..., 3] the centre of projection in the world."""
        return self.world_from_cam[..., 3]

    @property
    def forward(self) -> Tensor:
        """[..., 3] the optical axis in the world, unit."""
        return self.cam_from_world[..., 2, :3]

    @property
    def fov(self) -> Tensor:
        """[..., 2] horizontal and vertical angle of view in radians, through the principal point, up to 2 pi.

        Zero for ORTHOGRAPHIC. Where a fisheye's picture circle ends inside the picture, the angle to which the lens
        model reaches.
        """
        w, h = float(self.width), float(self.height)
        cx, cy = self.intrinsics[..., 2], self.intrinsics[..., 3]
        left, right = torch.stack([torch.zeros_like(cx), cy], -1), torch.stack([torch.full_like(cx, w), cy], -1)
        top, bottom = torch.stack([cx, torch.zeros_like(cx)], -1), torch.stack([cx, torch.full_like(cx, h)], -1)
        d = self.unproject(torch.stack([left, right, top, bottom], dim=-2))
        across, down = torch.atan2(d[..., :2, 0], d[..., :2, 2]), torch.atan2(d[..., 2:, 1], d[..., 2:, 2])
        return torch.stack([across[..., 1] - across[..., 0], down[..., 1] - down[..., 0]], dim=-1)

    def resized(self, width: int, height: int) -> Camera:
        """The same view as a picture of another size. Works per axis, because pixel sizes round."""
        scale = self.intrinsics.new_tensor([width / self.width, height / self.height] * 2)
        return replace(self, intrinsics=self.intrinsics * scale, width=width, height=height)

    def transformed(self, b_from_a: Similarity) -> Camera:
        """The same camera in another world frame; every point keeps its pixel."""
        intrinsics = self.intrinsics
        if self.lens is Lens.ORTHOGRAPHIC:  # pixels per unit, and the unit changes
            intrinsics = intrinsics * intrinsics.new_tensor([1 / b_from_a.scale, 1 / b_from_a.scale, 1.0, 1.0])
        return replace(self, cam_from_world=b_from_a.camera_from(self.cam_from_world), intrinsics=intrinsics)

    # -- projection ----------------------------------------------------------------------------------------------------

    def project(self, x_in_world: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels of points in the world.

        Differentiable with respect to points, pose, intrinsics and distortion.

        Args:
            x_in_world: [..., N, 3]; the leading dimensions broadcast with the camera's batch.

        Returns:
            xy [..., N, 2] in pixels, which may lie outside the picture, and valid [..., N]: the point is in front of
            the lens and where its distortion has not folded over. Where not valid, xy is finite and means nothing.
        """
        x_in_cam = x_in_world @ self.cam_from_world[..., :3].mT + self.cam_from_world[..., None, :, 3]
        if self.lens is Lens.EQUIRECTANGULAR:
            return _panorama_from_direction(x_in_cam, self.width, self.height)
        focal, principal = self.intrinsics[..., None, :2], self.intrinsics[..., None, 2:]
        if self.lens is Lens.ORTHOGRAPHIC:
            return x_in_cam[..., :2] * focal + principal, x_in_cam[..., 2] > 0
        uv, valid = _plane_from_direction(self.lens, x_in_cam)
        if _MODELS[self.lens].size:
            valid = valid & _unfolded(self.lens, self.distortion, uv)
        uv = torch.where(valid[..., None], uv, torch.zeros_like(uv))
        return _distort(self.lens, self.distortion, uv) * focal + principal, valid

    def unproject(self, xy: Tensor) -> Tensor:
        """Unit directions [..., N, 3] in camera axes of pixels [..., N, 2].

        (0, 0, 1) everywhere for ORTHOGRAPHIC. Pixels that no direction reaches (the corners around a fisheye's circle)
        get a direction at the rim of the lens; `unproject_valid` tells which they are.
        """
        return self.unproject_valid(xy)[0]

    def unproject_valid(self, xy: Tensor) -> tuple[Tensor, Tensor]:
        """`unproject`, and which pixels [..., N] a direction reaches at all.

        The distortion is inverted in float64 to about 1e-9 pixels. Differentiable with respect to pixels, intrinsics
        and distortion.
        """
        batch = torch.broadcast_shapes(self.shape, xy.shape[:-2])
        xy = xy.to(self.intrinsics).expand(*batch, *xy.shape[-2:])
        if self.lens is Lens.EQUIRECTANGULAR:
            inside = (xy[..., 1] >= 0) & (xy[..., 1] <= self.height)
            return _direction_from_panorama(xy, self.width, self.height), inside
        if self.lens is Lens.ORTHOGRAPHIC:
            axis = xy.new_tensor([0.0, 0.0, 1.0]).expand(*xy.shape[:-1], 3)
            return axis, torch.ones_like(xy[..., 0], dtype=torch.bool)
        target = (xy - self.intrinsics[..., None, 2:]) / self.intrinsics[..., None, :2]
        uv, valid = _undistort(self.lens, self.distortion, target)
        return _direction_from_plane(self.lens, uv), valid

    def rays(self, xy: Tensor, near: float = 0.0, far: float = math.inf) -> Rays:
        """Rays in the world through pixels [..., N, 2], flattened over the batch, camera after camera.

        Differentiable with respect to the pose (and intrinsics and distortion). ORTHOGRAPHIC rays start on the camera's
        plane z = 0 and their cone radius is zero, since their pixels do not widen.
        """
        xy = xy.to(self.intrinsics)
        step_x, step_y = xy.new_tensor([1.0, 0.0]), xy.new_tensor([0.0, 1.0])
        # One call for the pixels and their neighbours: the inversion's cost is mostly in its number of operations.
        in_cam = self.unproject(torch.cat([xy, xy + step_x, xy + step_y], dim=-2))
        in_cam, right, below = in_cam.chunk(3, dim=-2)
        radius = _cone_radius(self.lens, in_cam, right, below)
        rotation = self.cam_from_world[..., :3]
        direction = torch.nn.functional.normalize(in_cam @ rotation, dim=-1)
        origin = self.center[..., None, :].expand_as(direction)
        if self.lens is Lens.ORTHOGRAPHIC:
            on_plane = (xy - self.intrinsics[..., None, 2:]) / self.intrinsics[..., None, :2]
            origin = origin + on_plane @ rotation[..., :2, :]
        return Rays(
            origin=origin.reshape(-1, 3),
            direction=direction.reshape(-1, 3),
            radius=radius.reshape(-1),
            near=torch.tensor(near),
            far=torch.tensor(far),
        )

    def pixel_grid(self) -> Tensor:
        """The centres of all pixels [height * width, 2], row after row."""
        like = self.cam_from_world
        x = torch.arange(self.width, dtype=like.dtype, device=like.device) + 0.5
        y = torch.arange(self.height, dtype=like.dtype, device=like.device) + 0.5
        return torch.stack([x.repeat(self.height), y.repeat_interleave(self.width)], dim=-1)


def _panorama_intrinsics(like: Tensor, width: int, height: int) -> Tensor:
    """The numbers that stand in an EQUIRECTANGULAR camera's intrinsics: pixels per radian, and the middle."""
    return like.new_tensor([width / (2 * math.pi), height / math.pi, 0.5 * width, 0.5 * height])


class DirectionTable:
    """Directions and cone radii of one camera's pixels, for training loops: the lens is inverted once, not per batch.

    Lenses without distortion are computed on the spot, which takes no memory. For the others, a picture of at most
    `entries` pixels gets a table of every pixel. A larger one gets what undistortion adds to the plane coordinates at
    knots on a regular grid; between them it is interpolated bilinearly, and Newton steps remove the rest (one for most
    lenses). That is within 1e-3 pixels, save for the last knots before a lens folds over. Pixels that no direction
    reaches get one at the rim of the lens.

    Args:
        camera: a single camera; its pose plays no part.
        entries: about the table's greatest length: 16 bytes for each pixel, or 24 for each of about 65,536 knots.
    """

    def __init__(self, camera: Camera, entries: int = 1 << 20) -> None:
        camera._require_single("DirectionTable")
        self.camera = camera.to(torch.float64)
        self.device = camera.cam_from_world.device
        fx, fy, cx, cy = self.camera.intrinsics.tolist()
        # plane = (index - offset) * scale, where an index counts from the first pixel's centre.
        self._offset = torch.tensor([cx - 0.5, cy - 0.5], dtype=torch.float64, device=self.device)
        self._scale = torch.tensor([1 / fx, 1 / fy], dtype=torch.float64, device=self.device)
        self._table: Tensor | None = None
        self._knots: Tensor | None = None
        if _MODELS[camera.lens].size == 0:
            self._offset, self._scale = self._offset.float(), self._scale.float()
        elif camera.width * camera.height <= entries:
            self._table, _, _ = self._solve_grid(camera.width, camera.height, stride=1)
        else:
            self._stride = math.ceil(math.sqrt(camera.width * camera.height / min(entries, 1 << 16)))
            self._columns, rows = camera.width // self._stride + 2, camera.height // self._stride + 2
            solved, plane, valid = self._solve_grid(self._columns, rows, self._stride)
            self._knots = torch.cat([plane, solved[:, 3:].double()], dim=-1)
            self._corners = torch.tensor([0, 1, self._columns, self._columns + 1], device=self.device)
            self._steps = self._steps_needed(valid.view(rows, self._columns))

    def __call__(self, x_index: Tensor, y_index: Tensor) -> tuple[Tensor, Tensor]:
        """Unit directions [N, 3] in camera axes and cone radii [N], both float32, of pixels given as integers [N]."""
        if self._table is not None:
            row = self._table[y_index * self.camera.width + x_index]
            return row[:, :3], row[:, 3]
        index = torch.stack([x_index, y_index], dim=-1)
        return self._direct(index) if self._knots is None else self._interpolated(index)

    def _direct(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The closed forms, for lenses without distortion."""
        lens = self.camera.lens
        xy = index.to(torch.float32)
        if lens is Lens.EQUIRECTANGULAR:
            width, height = self.camera.width, self.camera.height
            centre = xy + 0.5
            direction = _direction_from_panorama(centre, width, height)
            # Neighbour differences are chords: 2 sin(step/2), narrowed by the cosine of the latitude across.
            across = 2 * math.sin(math.pi / width) * torch.cos((centre[:, 1] / height - 0.5) * math.pi)
            radius = 0.5 * (across + 2 * math.sin(0.5 * math.pi / height)) * (2.0 / math.sqrt(12.0))
            return direction, radius
        if lens is Lens.ORTHOGRAPHIC:
            return xy.new_tensor([0.0, 0.0, 1.0]).expand(len(xy), 3), xy.new_zeros(len(xy))
        direction = _direction_from_plane(lens, (xy - self._offset) * self._scale)
        return direction, direction[:, 2] * (self._scale.abs().sum() / math.sqrt(12.0))

    def _solve_grid(self, columns: int, rows: int, stride: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inverts the lens at pixels (stride * column, stride * row).

        Returns:
            [columns * rows, 4] float32 directions and cone radii; [columns * rows, 2] float64 plane coordinates less
            those without distortion; [columns * rows] whether a direction reaches the pixel.
        """
        # With stride one, a pixel's neighbours are in the grid as well: one more row and column serve all differences.
        shared = stride == 1
        x = torch.arange(columns + shared, dtype=torch.float64, device=self.device) * stride
        solved, plane, reached = [], [], []
        band = max(1, (1 << 17) // (columns + 1))  # rows at a time, which bounds the memory of the solver
        for first in range(0, rows, band):
            count = min(band, rows - first)
            y = (torch.arange(count + shared, dtype=torch.float64, device=self.device) + first) * stride
            index = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
            linear = (index - self._offset) * self._scale
            uv, valid = _undistort(self.camera.lens, self.camera.distortion, linear.flatten(0, 1))
            uv, valid = uv.view_as(index), valid.view(index.shape[:2])
            direction = _direction_from_plane(self.camera.lens, uv)
            if shared:
                right, below = direction[:-1, 1:], direction[1:, :-1]
                direction, valid = direction[:-1, :-1], valid[:-1, :-1]
                uv, linear = uv[:-1, :-1], linear[:-1, :-1]
            else:
                centre = index.flatten(0, 1) + 0.5
                steps = torch.eye(2, dtype=torch.float64, device=self.device)
                right, below = (self.camera.unproject(centre + step).view_as(direction) for step in steps)
            radius = _cone_radius(self.camera.lens, direction, right, below)
            solved.append(torch.cat([direction, radius[..., None]], dim=-1).float().flatten(0, 1))
            plane.append((uv - linear).flatten(0, 1))
            reached.append(valid.flatten())
        return torch.cat(solved), torch.cat(plane), torch.cat(reached)

    def _steps_needed(self, valid: Tensor) -> int:
        """Newton steps that bring the middles between knots, where interpolation is worst, within 1e-4 pixels."""
        whole = valid[:-1, :-1] & valid[:-1, 1:] & valid[1:, :-1] & valid[1:, 1:]
        row, column = torch.nonzero(whole, as_tuple=True)
        middle = torch.stack([column, row], dim=-1) * self._stride + self._stride // 2
        wanted = (middle - self._offset) * self._scale
        for steps in range(1, 5):
            plane, _ = self._plane(middle, steps)
            error = (_distort(self.camera.lens, self.camera.distortion, plane) - wanted) / self._scale
            if not bool((error.abs() > 1e-4).any()):
                return steps
        return 5

    def _plane(self, index: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Plane coordinates [N, 2] and cone radii [N] of pixels [N, 2]: bilinear between knots, then Newton.

        In float64, because 8,000 pixels leave float32 no digits to spare.
        """
        assert self._knots is not None
        lens, distortion = self.camera.lens, self.camera.distortion
        corner = torch.div(index, self._stride, rounding_mode="floor")
        share = (index - corner * self._stride).double() / self._stride
        around = self._knots[(corner[:, 1] * self._columns + corner[:, 0])[:, None] + self._corners]
        upper, lower = torch.lerp(around[:, 0::2], around[:, 1::2], share[:, :1, None]).unbind(1)
        knot = torch.lerp(upper, lower, share[:, 1:])
        linear = (index - self._offset) * self._scale
        uv = linear + knot[:, :2]
        # No step may be longer than a knot is wide: at the rim, where the lens folds, Newton's can be anything.
        longest = self._stride * self._scale.abs()
        for _ in range(steps):
            step = _newton_step(lens, distortion, uv, _distort(lens, distortion, uv) - linear)
            uv = uv - step.clamp(-longest, longest)
        return uv, knot[:, 2]

    def _interpolated(self, index: Tensor) -> tuple[Tensor, Tensor]:
        uv, radius = self._plane(index, self._steps)
        return _direction_from_plane(self.camera.lens, uv).float(), radius.float()
