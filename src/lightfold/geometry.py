"""Rotations, rigid and similarity transforms, and the contraction of unbounded space.

Names carry the frames, after COLMAP: `b_from_a` is the transform with x_in_b = R x_in_a + t, so a chain reads
`c_from_a = compose(c_from_b, b_from_a)` and a wrong composition is a spelling mistake that can be seen.

    R        rotation matrix [..., 3, 3]
    b_from_a rigid transform [..., 3, 4] = [R | t]
    wxyz     quaternion [..., 4], Hamilton, real part first
    omega    rotation vector [..., 3], radians times unit axis
    xi       twist [..., 6] = (rho, omega): translation part first, rotation part last

Everything is differentiable unless a docstring says otherwise, also at the identity, where the textbook formulas divide
zero by zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# ---------------------------------------------------------------------------------------------------------------------
# Rigid transforms


def apply(b_from_a: Tensor, x_in_a: Tensor) -> Tensor:
    """Moves points: x_in_b = R x_in_a + t.

    Args:
        b_from_a: rigid transform [..., 3, 4].
        x_in_a: points [..., 3]. The leading dimensions of the two broadcast, so one transform moves any number of
            points, and [B, 1, 3, 4] moves [B, N, 3].

    Returns:
        points [..., 3] in frame b.
    """
    rotation, translation = b_from_a[..., :3], b_from_a[..., 3]
    return torch.einsum("...ij,...j->...i", rotation, x_in_a) + translation


def compose(c_from_b: Tensor, b_from_a: Tensor) -> Tensor:
    """c_from_a [..., 3, 4]: first b_from_a, then c_from_b."""
    rotation = c_from_b[..., :3] @ b_from_a[..., :3]
    translation = apply(c_from_b, b_from_a[..., 3])
    return torch.cat([rotation, translation[..., None]], dim=-1)


def invert(b_from_a: Tensor) -> Tensor:
    """a_from_b [..., 3, 4] of a rigid transform: [R^T | -R^T t]."""
    inverse_rotation = b_from_a[..., :3].mT
    translation = -(inverse_rotation @ b_from_a[..., 3:])
    return torch.cat([inverse_rotation, translation], dim=-1)


def look_at(eye: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """The pose of a camera that stands at `eye` and has `target` in the middle of its picture.

    Args:
        eye, target: points [..., 3] in the world.
        up: direction [..., 3] in the world that points upward in the picture (towards -y of the camera).

    Returns:
        cam_from_world [..., 3, 4] in OpenCV axes (x right, y down, z forward).

    Raises:
        ValueError: eye and target coincide, or up is parallel to the line of sight; then no picture is upright.
    """
    eye, target, up = torch.broadcast_tensors(eye, target, up)
    sight = target - eye
    forward = torch.nn.functional.normalize(sight, dim=-1)
    right = torch.linalg.cross(forward, torch.nn.functional.normalize(up, dim=-1))
    if bool((right.norm(dim=-1) < 1e-6).any()):
        raise ValueError(
            "look_at: expected eye and target apart and up not parallel to the line of sight, "
            f"got eye {eye.tolist()}, target {target.tolist()}, up {up.tolist()}"
        )
    right = torch.nn.functional.normalize(right, dim=-1)
    down = torch.linalg.cross(forward, right)
    rotation = torch.stack([right, down, forward], dim=-2)
    return torch.cat([rotation, -(rotation @ eye[..., None])], dim=-1)


# ---------------------------------------------------------------------------------------------------------------------
# Rotations


def rotation_from_quaternion(wxyz: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4]. They need not be unit; a zero quaternion gives NaN."""
    w, x, y, z = wxyz.unbind(-1)
    s = 2.0 / (wxyz * wxyz).sum(-1)
    rows = [
        1 - s * (y * y + z * z), s * (x * y - w * z), s * (x * z + w * y),
        s * (x * y + w * z), 1 - s * (x * x + z * z), s * (y * z - w * x),
        s * (x * z - w * y), s * (y * z + w * x), 1 - s * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def quaternion_from_rotation(rotation: Tensor) -> Tensor:
    """Unit quaternions [..., 4] (wxyz, w >= 0) of rotation matrices [..., 3, 3].

    The products 4 q_i q_j are all linear in R. The row that belongs to the largest q_i is q up to scale, and dividing
    by its length never divides by less than one (Shepperd's method without branches), so precision and gradients hold
    for every rotation, half turns included.
    """
    m = rotation.flatten(-2).unbind(-1)
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = m
    ww, xx, yy, zz = 1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22
    wx, wy, wz = m21 - m12, m02 - m20, m10 - m01
    xy, xz, yz = m01 + m10, m02 + m20, m12 + m21
    rows = [ww, wx, wy, wz, wx, xx, xy, xz, wy, xy, yy, yz, wz, xz, yz, zz]
    products = torch.stack(rows, dim=-1).unflatten(-1, (4, 4))
    largest = torch.stack([ww, xx, yy, zz], dim=-1).argmax(-1)
    row = torch.take_along_dim(products, largest[..., None, None], dim=-2).squeeze(-2)
    row = torch.where(row[..., :1] < 0, -row, row)
    return row / row.norm(dim=-1, keepdim=True)


def _alternating_series(x: Tensor, first: int) -> Tensor:
    """Sum over k of (-x)^k / (2k + first)!, exact to double precision for |x| <= 1."""
    total = torch.zeros_like(x)
    for k in reversed(range(11)):
        total = 1.0 / math.factorial(2 * k + first) - x * total
    return total


def sine_ratio(theta_squared: Tensor) -> Tensor:
    """sin(theta) / theta as a function of theta^2, smooth at zero, where sqrt has no derivative."""
    small = theta_squared < 1.0
    theta = torch.where(small, torch.ones_like(theta_squared), theta_squared).sqrt()
    series = _alternating_series(torch.where(small, theta_squared, torch.zeros_like(theta_squared)), 1)
    return torch.where(small, series, theta.sin() / theta)


def _rodrigues(omega: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cross-product matrix K [..., 3, 3] of omega and the factors [..., 1, 1]
    a = sin(theta)/theta, b = (1 - cos(theta))/theta^2, c = (theta - sin(theta))/theta^3."""
    x, y, z = omega.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    squared = (omega * omega).sum(-1)
    small = squared < 1.0
    inner = torch.where(small, squared, torch.zeros_like(squared))
    theta = torch.where(small, torch.ones_like(squared), squared).sqrt()
    sine, cosine = theta.sin(), theta.cos()
    a = torch.where(small, _alternating_series(inner, 1), sine / theta)
    b = torch.where(small, _alternating_series(inner, 2), (1 - cosine) / theta**2)
    c = torch.where(small, _alternating_series(inner, 3), (theta - sine) / theta**3)
    return cross, a[..., None, None], b[..., None, None], c[..., None, None]


def so3_exp(omega: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of rotation vectors [..., 3] (Rodrigues' formula)."""
    cross, a, b, _ = _rodrigues(omega)
    eye = torch.eye(3, dtype=omega.dtype, device=omega.device)
    return eye + a * cross + b * (cross @ cross)


def so3_log(rotation: Tensor) -> Tensor:
    """Rotation vectors [..., 3], of length at most pi, of rotation matrices [..., 3, 3].

    Goes through the quaternion, which is well conditioned everywhere. At a half turn both signs of the axis are right,
    and one of them is returned.
    """
    wxyz = quaternion_from_rotation(rotation)
    w, vector = wxyz[..., 0], wxyz[..., 1:]
    sine_squared = (vector * vector).sum(-1)
    small = sine_squared < 1e-2 * w * w
    # atan(s/w) / s = (1 - u/3 + u^2/5 - ...) / w with u = (s/w)^2, for small angles.
    safe_w = torch.where(small, w, torch.ones_like(w))
    u = torch.where(small, sine_squared, torch.zeros_like(w)) / safe_w**2
    series = torch.zeros_like(u)
    for k in reversed(range(10)):
        series = 1.0 / (2 * k + 1) - u * series
    sine = torch.where(small, torch.ones_like(w), sine_squared).sqrt()
    half_angle_over_sine = torch.where(small, series / safe_w, torch.atan2(sine, w) / sine)
    return 2.0 * half_angle_over_sine[..., None] * vector


def se3_exp(xi: Tensor) -> Tensor:
    """Rigid transforms [..., 3, 4] of twists [..., 6] = (rho, omega), translation part first.

    The exponential of the 4x4 matrix [[K(omega), rho], [0, 0]]: R = exp(K), t = V rho, V = I + b K + c K^2.
    """
    rho, omega = xi[..., :3], xi[..., 3:]
    cross, a, b, c = _rodrigues(omega)
    eye = torch.eye(3, dtype=xi.dtype, device=xi.device)
    squared = cross @ cross
    rotation = eye + a * cross + b * squared
    translation = (eye + b * cross + c * squared) @ rho[..., None]
    return torch.cat([rotation, translation], dim=-1)


def se3_log(b_from_a: Tensor) -> Tensor:
    """Twists [..., 6] = (rho, omega) of rigid transforms [..., 3, 4]; the inverse of `se3_exp` for angles up to pi."""
    omega = so3_log(b_from_a[..., :3])
    cross, _, b, c = _rodrigues(omega)
    eye = torch.eye(3, dtype=omega.dtype, device=omega.device)
    rho = torch.linalg.solve(eye + b * cross + c * (cross @ cross), b_from_a[..., 3])
    return torch.cat([rho, omega], dim=-1)


# ---------------------------------------------------------------------------------------------------------------------
# Contraction of unbounded space


def contract(x: Tensor) -> Tensor:
    """Squeezes all of space into the ball of radius 2 and leaves the unit ball as it is (mip-NeRF 360, eq. 10).

    contract(x) = x for |x| <= 1, (2 - 1/|x|) x/|x| beyond, with the Euclidean norm: (3, 4, 0) -> (1.08, 1.44, 0).
    Continuous with its first derivative. In float32, |x| must stay below 1e18, where its square overflows.

    Args:
        x: points [..., 3].
    """
    squared = (x * x).sum(-1, keepdim=True).clamp_min(1.0)
    return x * ((2.0 - squared.rsqrt()) * squared.rsqrt())


def contract_gaussian(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Gaussians after `contract`, which is taken as linear about each one's own mean (mip-NeRF 360, equation 9).

    The covariance becomes J covariance J^T with the Jacobian J of `contract` at the mean: beyond the unit ball, lengths
    across the direction to the mean shrink by 2/|x| - 1/|x|^2, and lengths along it by 1/|x|^2.

    Args:
        mean: [..., 3], from the centre of the contraction.
        covariance: [..., 3, 3].
    """
    inverse = (mean * mean).sum(-1, keepdim=True).clamp_min(1.0).rsqrt()
    across = (2.0 - inverse) * inverse
    # J = across I + (along - across) u u^T with the unit vector u = x/|x|; within the unit ball the bracket is zero.
    unit = mean * inverse
    stretch = (inverse * inverse - across)[..., None] * unit[..., :, None] * unit[..., None, :]
    jacobian = stretch + across[..., None] * torch.eye(3, dtype=mean.dtype, device=mean.device)
    return mean * across, jacobian @ covariance @ jacobian


def contract_cube(x: Tensor) -> Tensor:
    """`contract` with the maximum norm: all of space into the cube [-2, 2]^3, the cube [-1, 1]^3 as it is. x: [...,
    3]."""
    largest = x.abs().amax(-1, keepdim=True).clamp_min(1.0)
    return x * ((2.0 - 1.0 / largest) / largest)


def contract_cube_isotropic(mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Round Gaussians after `contract_cube`, kept round (Zip-NeRF, Barron et al. 2023, its supplement).

    The deviation is multiplied by the cube root of the determinant of the contraction's Jacobian at the mean, so that
    the Gaussian's volume is what the linearised contraction makes of it. Beyond the cube [-1, 1]^3, where m = max |x|,
    one axis shrinks by 1/m^2 and two by (2m - 1)/m^2.

    Args:
        mean: [..., 3].
        deviation: standard deviations [...].
    """
    x, y, z = mean.abs().unbind(-1)
    largest = torch.maximum(torch.maximum(x, y), z).clamp_min(1.0)
    inverse = 1.0 / largest
    squeeze = (2.0 * largest - 1.0) ** (2.0 / 3.0) * inverse.square()
    return mean * ((2.0 - inverse) * inverse)[..., None], deviation * squeeze


def uncontract_cube(y: Tensor) -> Tensor:
    """The inverse of `contract_cube`: points [..., 3] of the cube [-2, 2]^3 to all of space.

    The surface of the cube is infinitely far; it is sent to the largest distance that the float type resolves
    (about 1e7 in float32), so the result is always finite.
    """
    largest = y.abs().amax(-1, keepdim=True).clamp_min(1.0)
    remaining = (2.0 - largest).clamp_min(torch.finfo(y.dtype).eps)
    return y / (largest * remaining)


# ---------------------------------------------------------------------------------------------------------------------
# Similarities and lines


@dataclass(frozen=True, eq=False)
class Similarity:
    """A change of frame that may also change the unit of length: x_in_b = scale * R x_in_a + t.

    Held in float64, because it joins measured coordinates (metres, eastings of 1e6) to a scene of unit size.
    """

    scale: float
    rotation: Tensor
    """[3, 3] float64."""
    translation: Tensor
    """[3] float64, in the units of frame b."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale: expected a finite positive number, got {self.scale}")
        object.__setattr__(self, "scale", float(self.scale))
        object.__setattr__(self, "rotation", torch.as_tensor(self.rotation, dtype=torch.float64))
        object.__setattr__(self, "translation", torch.as_tensor(self.translation, dtype=torch.float64))
        if self.rotation.shape != (3, 3):
            raise ValueError(f"rotation: expected shape [3, 3], got {list(self.rotation.shape)}")
        if self.translation.shape != (3,):
            raise ValueError(f"translation: expected shape [3], got {list(self.translation.shape)}")
        # A mirror or a sheared matrix would give pictures that no camera can take.
        gram_error = (self.rotation @ self.rotation.T - torch.eye(3, dtype=torch.float64)).abs().max()
        if not (gram_error < 1e-5 and torch.linalg.det(self.rotation) > 0):
            raise ValueError(f"rotation: expected orthonormal with determinant +1, got {self.rotation.tolist()}")

    @classmethod
    def identity(cls) -> Similarity:
        """The transform that changes nothing."""
        return cls(1.0, torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))

    def inverse(self) -> Similarity:
        """a_from_b."""
        rotation = self.rotation.T
        return Similarity(1.0 / self.scale, rotation, -(rotation @ self.translation) / self.scale)

    def __matmul__(self, other: Similarity) -> Similarity:
        """`c_from_b @ b_from_a` is c_from_a."""
        translation = self.scale * (self.rotation @ other.translation) + self.translation
        return Similarity(self.scale * other.scale, self.rotation @ other.rotation, translation)

    def apply(self, points: Tensor) -> Tensor:
        """Moves points [..., 3] from a to b. Computed in float64, returned in the points' own type, on their device."""
        rotation, translation = self.rotation.to(points.device), self.translation.to(points.device)
        return (self.scale * (points.double() @ rotation.T) + translation).to(points.dtype)

    def camera_from(self, cam_from_a: Tensor) -> Tensor:
        """Poses [..., 3, 4] of the same cameras with regard to frame b.

        The camera's own unit of length changes with the world's (a point at depth z comes to depth scale * z), so the
        pose stays rigid and every point of the world keeps its pixel.
        """
        rotation, translation = self.rotation.to(cam_from_a.device), self.translation.to(cam_from_a.device)
        pose = cam_from_a.double()
        rotation_b = pose[..., :3] @ rotation.T
        translation_b = self.scale * pose[..., 3] - rotation_b @ translation
        return torch.cat([rotation_b, translation_b[..., None]], dim=-1).to(cam_from_a.dtype)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON."""
        return {"scale": self.scale, "rotation": self.rotation.tolist(), "translation": self.translation.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Similarity:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a key is missing, or a value is not a similarity's.
        """
        missing = [key for key in ("scale", "rotation", "translation") if key not in data]
        if missing:
            raise ValueError(f"similarity: expected the keys scale, rotation, translation, got none for {missing}")
        return cls(
            float(data["scale"]),
            torch.tensor(data["rotation"], dtype=torch.float64),
            torch.tensor(data["translation"], dtype=torch.float64),
        )


def closest_point_to_lines(origin: Tensor, direction: Tensor) -> Tensor:
    """The point [3] with the least sum of squared distances to N lines: what a ring of cameras looks at.

    Solves sum_i (I - d_i d_i^T) (p - o_i) = 0.

    Args:
        origin: a point of each line [N, 3].
        direction: the lines' directions [N, 3], of any length but zero.

    Raises:
        ValueError: fewer than two lines, or all parallel within about 1e-4 radians; then no point is closest.
    """
    if origin.ndim != 2 or origin.shape != direction.shape or origin.shape[-1] != 3 or len(origin) < 2:
        raise ValueError(
            "closest_point_to_lines: expected origin and direction [N, 3] with N >= 2, "
            f"got {list(origin.shape)} and {list(direction.shape)}"
        )
    unit = torch.nn.functional.normalize(direction.double(), dim=-1)
    middle = origin.double().mean(0)  # Solving about the middle keeps digits when the frame's origin is far away.
    projector = torch.eye(3, dtype=torch.float64, device=unit.device) - unit[:, :, None] * unit[:, None, :]
    matrix = projector.mean(0)
    if not torch.linalg.eigvalsh(matrix)[0] > 1e-8:
        raise ValueError("closest_point_to_lines: expected lines in different directions, got parallel ones")
    offset = (projector @ (origin.double() - middle)[..., None]).mean(0)
    return (middle + torch.linalg.solve(matrix, offset).squeeze(-1)).to(origin.dtype)
