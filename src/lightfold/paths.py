"""Camera paths: where a virtual camera goes for a video.

A path is a batched `Camera` in scene coordinates, one entry per frame. Every path is built from the training cameras
alone, because they say what was seen; a camera that leaves their surroundings looks at what nobody photographed. `auto`
therefore flies a circle only where the cameras stood on one, and otherwise follows the photographer.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .cameras import Camera, Lens
from .errors import LightfoldError
from .geometry import closest_point_to_lines, invert, look_at, quaternion_from_rotation, rotation_from_quaternion

if TYPE_CHECKING:
    from .scene import SceneInfo

PERSPECTIVE = (Lens.SIMPLE_PINHOLE, Lens.PINHOLE, Lens.SIMPLE_RADIAL, Lens.RADIAL, Lens.OPENCV, Lens.FULL_OPENCV)
FISHEYE = (Lens.OPENCV_FISHEYE, Lens.SIMPLE_RADIAL_FISHEYE, Lens.RADIAL_FISHEYE, Lens.THIN_PRISM_FISHEYE, Lens.FOV)


# --- the camera that travels ----------------------------------------------------------------------------------------


def template_camera(info: SceneInfo, size: tuple[int, int] | None = None, lens: Lens | None = None) -> Camera:
    """The camera that a path moves: the training cameras' field of view without their distortion, at the origin.

    size: (width, height) in pixels; None is the commonest size of the training views. A different shape keeps the
    vertical field of view, except that panoramas are always whole.
    lens: None keeps panoramas and orthographic cameras what they are and turns all others into pinholes (at most 90
    degrees wide when the captures are fisheyes). PINHOLE, OPENCV_FISHEYE (equidistant), EQUIRECTANGULAR, ORTHOGRAPHIC.
    """
    cameras = [info.cameras[i] for i in info.train or range(len(info.cameras))]
    if not cameras:
        raise LightfoldError("The scene has no cameras, so there is nothing to take a field of view from.")
    common = Counter((camera.width, camera.height, camera.lens) for camera in cameras).most_common(1)[0][0]
    alike = [camera for camera in cameras if (camera.width, camera.height, camera.lens) == common]
    old_width, old_height, old_lens = common
    width, height = (old_width, old_height) if size is None else size
    if width < 1 or height < 1:
        raise ValueError(f"size: expected positive width and height, got {size}")
    if lens is None:
        lens = old_lens if old_lens in (Lens.EQUIRECTANGULAR, Lens.ORTHOGRAPHIC) else Lens.PINHOLE
    fx, fy = torch.stack([c.intrinsics.double()[:2] for c in alike]).median(dim=0).values.tolist()
    if lens is Lens.EQUIRECTANGULAR:
        fx, fy = width / (2 * math.pi), height / math.pi
    elif old_lens is Lens.EQUIRECTANGULAR or (old_lens in FISHEYE and lens in PERSPECTIVE):
        # Near 180 degrees a pinhole picture stretches without bound, so a wide lens is shown as a 90-degree window.
        half = math.pi / 4 if old_lens is Lens.EQUIRECTANGULAR else min(0.5 * float(alike[0].fov[0]), math.pi / 4)
        fx = fy = 0.5 * width / math.tan(half)
    else:
        fx, fy = fx * height / old_height, fy * height / old_height
    if lens not in (Lens.PINHOLE, Lens.OPENCV_FISHEYE, Lens.EQUIRECTANGULAR, Lens.ORTHOGRAPHIC):
        raise ValueError(f"lens: expected PINHOLE, OPENCV_FISHEYE, EQUIRECTANGULAR or ORTHOGRAPHIC, got {lens.value}")
    return Camera(
        cam_from_world=torch.eye(4, dtype=torch.float64)[:3],
        intrinsics=torch.tensor([fx, fy, width / 2, height / 2], dtype=torch.float64),
        distortion=torch.zeros(4 if lens is Lens.OPENCV_FISHEYE else 0, dtype=torch.float64),
        width=width,
        height=height,
        lens=lens,
    )


def _placed(info: SceneInfo, template: Camera | None, cam_from_world: Tensor) -> Camera:
    """The template, or the scene's own, at every pose of [n, 3, 4]."""
    template = template_camera(info) if template is None else template
    return replace(template, cam_from_world=cam_from_world.float())


# --- how the training cameras stand ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arrangement:
    """The training cameras as a group; positions in scene units, float64."""

    world_from_cam: Tensor
    """[V, 3, 4]"""
    up: Tensor
    """[3] unit: the mean of the pictures' upward directions"""
    focus: Tensor | None
    """[3] where the optical axes meet, in front of the cameras; None when they do not (parallel, or looking outward)"""
    gap: float
    """Largest angle, seen from the focus about `up`, without a camera in it; radians, 2 pi without a focus."""
    unevenness: float
    """Standard deviation over mean of the cameras' distances to the focus; infinite without a focus."""

    @property
    def centre(self) -> Tensor:
        """[V, 3]"""
        return self.world_from_cam[:, :, 3]

    @property
    def forward(self) -> Tensor:
        """[V, 3] unit"""
        return self.world_from_cam[:, :, 2]

    @property
    def reach(self) -> float:
        """A length that makes a radian of turning comparable with a step: the distance to the focus, else 1."""
        return 1.0 if self.focus is None else float((self.centre - self.focus).norm(dim=1).median())


def arrangement(info: SceneInfo) -> Arrangement:
    """Measure the training cameras of a scene."""
    views = info.train or tuple(range(len(info.cameras)))
    if not views:
        raise LightfoldError("The scene has no cameras, so no path can be made from them.")
    poses = torch.stack([info.cameras[i].world_from_cam.double() for i in views])
    centre, forward = poses[:, :, 3], poses[:, :, 2]
    up = -poses[:, :, 1].mean(dim=0)
    # Cameras that look straight down from all round have no common upward direction in the picture; the scene has one.
    up = up / up.norm() if float(up.norm()) > 0.1 else torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    nowhere = Arrangement(poses, up, None, 2 * math.pi, math.inf)
    if len(views) < 3:
        return nowhere
    try:
        focus = closest_point_to_lines(centre, forward)
    except ValueError:
        return nowhere
    toward = focus - centre
    distance = toward.norm(dim=1)
    facing = (toward * forward).sum(dim=1) / distance.clamp(min=1e-12)
    if not bool(torch.isfinite(focus).all()) or float(facing.median()) < 0.7:
        return nowhere
    east, north = _horizon(up)
    azimuth = torch.atan2(-toward @ north, -toward @ east).sort().values
    gaps = torch.cat([azimuth.diff(), azimuth[:1] + 2 * math.pi - azimuth[-1:]])
    return Arrangement(poses, up, focus, float(gaps.max()), float(distance.std() / distance.mean()))


def _horizon(up: Tensor) -> tuple[Tensor, Tensor]:
    """Two unit directions that span the plane across `up`."""
    axis = torch.zeros_like(up)
    axis[int(up.abs().argmin())] = 1.0
    east = torch.linalg.cross(axis, up)
    east = east / east.norm()
    return east, torch.linalg.cross(up, east)


# --- the paths ------------------------------------------------------------------------------------------------------


def auto(info: SceneInfo, n: int = 120, template: Camera | None = None) -> Camera:
    """The path that stays where photographs were taken: see `suited_path`."""
    return PATHS[suited_path(info)](info, n, template)


def suited_path(info: SceneInfo) -> str:
    """Name of the path that suits how the training cameras stand.

    "orbit" when they surround one point without a gap of more than 100 degrees and at about one distance, "spiral" for
    a forward-facing capture, and "interpolate" for everything else: arcs, walks, rooms.
    """
    if info.forward_facing:
        return "spiral"
    group = arrangement(info)
    surrounds = group.gap < math.radians(100) and group.unevenness < 0.25
    return "orbit" if surrounds else "interpolate"


def orbit(info: SceneInfo, n: int = 120, template: Camera | None = None) -> Camera:
    """A full circle around the point that the cameras look at, at their mean distance and mean elevation.

    It begins at the first training camera's side; the last frame is one step before the first, so the video loops.
    """
    _check_count(n)
    group = arrangement(info)
    if group.focus is None:
        raise LightfoldError(
            "An orbit needs cameras that look at a common point, and these do not; "
            "use the path 'interpolate' or 'spiral'."
        )
    offset = group.centre - group.focus
    distance = offset.norm(dim=1).clamp(min=1e-12)
    # Straight above the focus there is no circle, and no upward direction in the picture.
    elevation = torch.asin(((offset @ group.up) / distance).clamp(-1, 1)).mean().clamp(-1.4, 1.4)
    radius, height = distance.mean() * elevation.cos(), distance.mean() * elevation.sin()
    east, north = _horizon(group.up)
    start = torch.atan2(offset[0] @ north, offset[0] @ east)
    angle = start + torch.arange(n, dtype=torch.float64)[:, None] * (2 * math.pi / n)
    eye = group.focus + radius * (angle.cos() * east + angle.sin() * north) + height * group.up
    return _placed(info, template, look_at(eye, group.focus, group.up))


def spiral(info: SceneInfo, n: int = 120, template: Camera | None = None, turns: int = 2) -> Camera:
    """The spiral of LLFF (Mildenhall et al. 2019) for forward-facing captures: two turns about the average pose.

    In the average camera's axes the centre runs over (cos a, sin a, sin(a / 2)) times the 90th percentile of the
    cameras' offsets per axis, and looks at the point straight ahead whose inverse depth is a quarter of the way from
    infinity to the closest content: 1 / (0.25 / close + 0.75 / far).
    """
    _check_count(n)
    group = arrangement(info)
    forward = group.forward.sum(dim=0)
    if float(forward.norm()) < 0.5 * len(group.forward):
        raise LightfoldError(
            "A spiral needs cameras that look the same way, and these do not; use the path 'interpolate'."
        )
    forward = forward / forward.norm()
    middle = group.centre.mean(dim=0)
    average = look_at(middle, middle + forward, group.up)
    offset = (group.centre - middle) @ average[:, :3].T
    radii = torch.quantile(offset.abs(), 0.9, dim=0)
    close, far = _content(info, group, middle, forward)
    focus = middle + forward / (0.25 / close + 0.75 / far)
    angle = torch.arange(n, dtype=torch.float64) * (2 * math.pi * turns / n)
    local = torch.stack([angle.cos(), angle.sin(), (0.5 * angle).sin()], dim=1) * radii
    eye = middle + local @ average[:, :3]
    return _placed(info, template, look_at(eye, focus, group.up))


def _content(info: SceneInfo, group: Arrangement, middle: Tensor, forward: Tensor) -> tuple[float, float]:
    """LLFF's bounds (0.9 times the closest, 5 times the farthest content) along the average axis, in scene units."""
    if info.points is not None and len(info.points) >= 10:
        depth = (info.points.double() - middle) @ forward
        depth = depth[depth > 1e-6]
        if len(depth) >= 10:
            low, high = torch.quantile(depth[:1_000_000], torch.tensor([0.001, 0.999], dtype=torch.float64)).tolist()
            return 0.9 * low, 5.0 * high
    # Without points only the near plane is known, which the scene puts at three quarters of the closest content.
    closest = info.near / 0.75
    return 0.9 * closest, 5.0 * max(min(info.far, 20.0 * closest), closest)


def levelled(cameras: Camera) -> Camera:
    """The same cameras [n] with the horizon level: they turn about the vertical only, for viewers that look around.

    A panorama holds all that a tilted one does, but whoever looks around in it feels the tilt. Cameras that look
    straight up or down keep the upper edge of their picture, or the lower one, in front.
    """
    world_from_cam = cameras.world_from_cam.double()
    down, forward = world_from_cam[:, :, 1], world_from_cam[:, :, 2]
    ahead = forward * forward.new_tensor([1.0, 1.0, 0.0])
    edge = torch.sign(forward[:, 2:]) * down * down.new_tensor([1.0, 1.0, 0.0])
    ahead = torch.where(ahead.norm(dim=1, keepdim=True) > 1e-3, ahead, edge)
    eye = world_from_cam[:, :, 3]
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    return replace(cameras, cam_from_world=look_at(eye, eye + ahead, up).to(cameras.cam_from_world))


def held_out(info: SceneInfo) -> list[Camera]:
    """The cameras of the held-out views, as they were, in the capture's order."""
    if not info.test:
        raise LightfoldError(
            "No views were held out, so there is no held-out path; train with a split such as 'every:8'."
        )
    return [info.cameras[i] for i in info.test]


def interpolate(
    info: SceneInfo,
    n: int = 120,
    template: Camera | None = None,
    *,
    smoothing: float = 2.0,
    order: str = "auto",
    loop: bool | None = None,
) -> Camera:
    """A smooth flight through the training cameras at an even pace.

    Positions and quaternions follow one cubic spline through the (smoothed) cameras; quaternions are renormalised,
    which for neighbouring views is slerp with a continuous angular velocity. Frames are spread evenly over the length
    of the path, where a radian of turning counts as much as a step of the distance to what is looked at.

    smoothing: standard deviation, in views, of the Gaussian that averages neighbouring cameras; it takes out the
    tremble of a hand. 0 passes through every camera.
    order: "capture" (names, numbers compared as numbers), "nearest" (from camera to nearest camera), or "auto": the
    capture's, unless it jumps to and fro over more than twice the nearest order's length.
    loop: close the path. None closes it when its ends are about as near each other as neighbours are.
    """
    _check_count(n)
    if smoothing < 0:
        raise ValueError(f"smoothing: expected 0 or more views, got {smoothing}")
    group = arrangement(info)
    views = info.train or tuple(range(len(info.cameras)))
    sequence = _sequence(group, [info.names[i] for i in views], order)
    centre = group.centre[sequence]
    quaternion = _same_side(quaternion_from_rotation(group.world_from_cam[sequence][:, :, :3]))
    step = _pose_steps(centre, quaternion, group.reach)
    if loop is None:
        ends = _pose_steps(centre[[-1, 0]], quaternion[[-1, 0]], group.reach)
        loop = len(sequence) > 3 and float(ends) <= 3 * float(step.median())
    state = torch.cat([centre, quaternion], dim=1)
    if smoothing > 0:
        state = _smoothed(state, smoothing, loop)
    state = _even_pace(state, n, group.reach, loop)
    poses = torch.cat([rotation_from_quaternion(_unit(state[:, 3:])), state[:, :3, None]], dim=2)
    return _placed(info, template, invert(poses))


def _sequence(group: Arrangement, names: list[str], order: str) -> list[int]:
    """Indices of the cameras in the order in which the path visits them."""
    if order not in ("auto", "capture", "nearest"):
        raise ValueError(f"order: expected auto, capture or nearest, got {order!r}")
    by_name = sorted(range(len(names)), key=lambda i: _natural(names[i]))
    if order == "capture" or len(names) < 3:
        return by_name
    quaternion = quaternion_from_rotation(group.world_from_cam[:, :, :3])
    turn = 2 * torch.acos((quaternion @ quaternion.T).abs().clamp(max=1.0))
    distance = torch.cdist(group.centre, group.centre) + group.reach * turn
    # Starting from the camera that is farthest from all others keeps the tour from beginning in its middle.
    nearest = [int(distance.sum(dim=1).argmax())]
    left = set(range(len(names))) - set(nearest)
    while left:
        candidates = sorted(left)
        nearest.append(candidates[int(distance[nearest[-1], candidates].argmin())])
        left.remove(nearest[-1])
    length = {k: float(distance[v[:-1], v[1:]].sum()) for k, v in (("nearest", nearest), ("capture", by_name))}
    return nearest if order == "nearest" or length["capture"] > 2 * length["nearest"] else by_name


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key in which view_10 comes after view_9."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), "") if i % 2 else (1, 0, part) for i, part in enumerate(parts)]


def _unit(q: Tensor) -> Tensor:
    return q / q.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def _same_side(q: Tensor) -> Tensor:
    """q and -q are one rotation; choose the signs so that neighbours are near each other."""
    flips = torch.where((q[1:] * q[:-1]).sum(dim=1) < 0, -1.0, 1.0).cumprod(dim=0)
    return torch.cat([q[:1], q[1:] * flips[:, None].to(q.dtype)])


def _pose_steps(centre: Tensor, quaternion: Tensor, reach: float) -> Tensor:
    """Length of each step between successive poses: distance plus turning angle times reach. [V-1]"""
    moved = centre.diff(dim=0).norm(dim=1)
    q = _unit(quaternion)
    chord = torch.minimum((q[1:] - q[:-1]).norm(dim=1), (q[1:] + q[:-1]).norm(dim=1))
    return moved + reach * 4 * torch.asin((0.5 * chord).clamp(max=1.0))


def _smoothed(state: Tensor, sigma: float, loop: bool) -> Tensor:
    """Gaussian average over neighbouring rows of [V, 7]; at open ends the window is cut, so the path stays inside."""
    v = len(state)
    index = torch.arange(v, dtype=state.dtype)
    apart = (index[:, None] - index[None, :]).abs()
    sign = torch.ones(v, v, dtype=state.dtype)
    if loop:
        # Across the seam the quaternions may have changed sign after a full turn.
        seam = -1.0 if float((state[0, 3:] * state[-1, 3:]).sum()) < 0 else 1.0
        sign = torch.where(apart > v / 2, seam, 1.0).to(state.dtype)
        apart = torch.minimum(apart, v - apart)
    weight = torch.exp(-0.5 * (apart / sigma) ** 2)
    weight = weight / weight.sum(dim=1, keepdim=True)
    return torch.cat([weight @ state[:, :3], _unit((weight * sign) @ state[:, 3:])], dim=1)


def _even_pace(state: Tensor, n: int, reach: float, loop: bool) -> Tensor:
    """n poses [n, 7] at equal steps along the spline through [V, 7]; a loop does not repeat its first pose."""
    if loop:
        seam = -1.0 if float((state[0, 3:] * state[-1, 3:]).sum()) < 0 else 1.0
        first = torch.cat([state[:1, :3], seam * state[:1, 3:]], dim=1)
        state = torch.cat([state, first])
    step = _pose_steps(state[:, :3], state[:, 3:], reach)
    moved = torch.cat([torch.tensor([True]), step > 1e-9 * max(reach, 1e-9)])  # cameras on a tripod stand on one point
    state, step = state[moved], step[moved[1:]]
    if len(state) == 1:
        return state.expand(n, -1)
    # Knots a square root of the step apart (centripetal) keep the cubic from looping where spacing is uneven.
    knot = torch.cat([torch.zeros(1, dtype=state.dtype), step.sqrt().cumsum(dim=0)])
    fine = torch.linspace(0, float(knot[-1]), max(32 * len(state), 8 * n), dtype=state.dtype)
    dense = _cubic(knot, state, fine, loop)
    travelled = np.concatenate([[0.0], np.cumsum(_pose_steps(dense[:, :3], dense[:, 3:], reach).numpy())])
    share = np.arange(n) / (n if loop else max(n - 1, 1))
    at = np.interp(share * travelled[-1], travelled, fine.numpy())
    return _cubic(knot, state, torch.from_numpy(at), loop)


def _cubic(knot: Tensor, value: Tensor, at: Tensor, loop: bool) -> Tensor:
    """Cubic Hermite spline through value [V, D] at knot [V], with the slope of the parabola through each three."""
    width = knot.diff()[:, None]
    slope = value.diff(dim=0) / width
    inner = (slope[:-1] * width[1:] + slope[1:] * width[:-1]) / (width[:-1] + width[1:])
    if loop:
        # The quaternion may close with the other sign, and then so does its slope.
        seam = torch.ones_like(slope[0])
        if float((value[0, 3:] * value[-1, 3:]).sum()) < 0:
            seam[3:] = -1.0
        joint = (slope[-1] * width[0] + seam * slope[0] * width[-1]) / (width[0] + width[-1])
        tangent = torch.cat([(seam * joint)[None], inner, joint[None]])
    else:
        tangent = torch.cat([slope[:1], inner, slope[-1:]])
    i = (torch.searchsorted(knot, at.contiguous(), right=True) - 1).clamp(0, len(knot) - 2)
    h = width[i]
    u = (at[:, None] - knot[i][:, None]) / h
    u2, u3 = u * u, u * u * u
    return (
        (2 * u3 - 3 * u2 + 1) * value[i]
        + (u3 - 2 * u2 + u) * h * tangent[i]
        + (3 * u2 - 2 * u3) * value[i + 1]
        + (u3 - u2) * h * tangent[i + 1]
    )


def _check_count(n: int) -> None:
    if n < 1:
        raise ValueError(f"n: expected at least one frame, got {n}")


PATHS: dict[str, Callable[[SceneInfo, int, Camera | None], Camera]] = {
    "auto": auto,
    "orbit": orbit,
    "spiral": spiral,
    "interpolate": interpolate,
}
"""Name on the command line -> path. `held_out` and camera-path files are apart, for they bring their own cameras."""
