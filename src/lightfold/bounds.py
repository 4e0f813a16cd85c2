"""Where the content is: near planes, the region of interest, and the scene frame, found from data.

Near planes matter more than anything else on real captures. Density hung right in front of a camera explains that
camera's picture perfectly and no other's, so whatever room is left before the first surface fills with floaters. Each
view therefore starts at a fixed share of the distance of the nearest thing it is known to see:

    near_i = 0.75 * (1st percentile of the distances from camera i to surface points in its picture)

Points come from structure from motion where the capture has them, else from a plane sweep (`sweep`). A point counts
for every view whose picture it falls into, hidden or not: if something stands before it, that is nearer still.

The scene frame is chosen by how the cameras stand:

    object-centric   axes meet in front of the cameras, which surround it: centre = where the axes meet, and the median
                     camera is at distance 1 of it; none of note beyond 1.5
    forward-facing   all look one way from nearly one place: centre = on the mean axis at the median depth of the
                     content, which is then at distance 1 from the cameras
    inside-out       all else (rooms, walks, flights): centre and half side = the box that holds the cameras and the
                     inner 80 % of the content
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cameras import Camera, Lens
from .capture import Capture, Points
from .geometry import Similarity, closest_point_to_lines

NEAR_SHARE = 0.75
"""Near plane as a share of the distance to the nearest thing seen; the rest covers what the points miss."""
NEAR_QUANTILE = 0.01
MIN_POINTS = 30
"""A view that sees fewer points than this says nothing about its near plane."""
UNBOUNDED_FAR = 1000.0
"""Far plane of an unbounded scene in scene units, where the cameras are at about 1."""
MAX_SEED_POINTS = 20_000
FORWARD_ANGLE = math.radians(30)


@dataclass(frozen=True)
class Content:
    """Surface points [N, 3] float64 in the capture frame, and where they come from, for people."""

    xyz: Tensor
    source: str

    @property
    def known(self) -> bool:
        """Enough points to rely on."""
        return len(self.xyz) >= MIN_POINTS


@dataclass(frozen=True)
class Region:
    """The region of interest in the capture frame: a cube about `centre` with this half side, and the regime found."""

    kind: str
    centre: Tensor
    half_side: float


def reliable_points(points: Points) -> Tensor:
    """[N, 3] the sparse points worth trusting: finite, seen three times or more, with an ordinary reprojection error.

    Each test is dropped when it would leave less than a third of the points.
    """
    xyz = points.xyz.double()
    keep = torch.isfinite(xyz).all(-1)
    tests = []
    if points.tracks is not None:
        views = torch.bincount(points.tracks[0], minlength=len(xyz))
        tests.append(views >= 3)
    if points.error is not None and len(xyz):
        tests.append(points.error <= max(2.0, 2 * float(points.error.median())))
    for test in tests:
        if int((keep & test).sum()) >= max(MIN_POINTS, len(xyz) / 3):
            keep = keep & test
    return xyz[keep]


def evenly(xyz: Tensor, count: int) -> Tensor:
    """At most `count` of the points, spread evenly over their order: the same choice every time."""
    return xyz if len(xyz) <= count else xyz[torch.linspace(0, len(xyz) - 1, count, dtype=torch.float64).long()]


def distances(camera: Camera, xyz: Tensor) -> Tensor:
    """[M] distances from the camera to those points [N, 3] that fall into its picture."""
    xy, valid = camera.project(xyz.to(camera.cam_from_world))
    inside = valid & (xy >= 0).all(-1) & (xy[:, 0] <= camera.width) & (xy[:, 1] <= camera.height)
    return (xyz[inside] - camera.center.to(xyz)).norm(dim=-1)


def nearest_seen(camera: Camera, xyz: Tensor) -> float | None:
    """Distance of the nearest surface in the camera's picture, a low percentile; None when it sees too few points."""
    seen = distances(camera, xyz)
    return None if len(seen) < MIN_POINTS else float(torch.quantile(seen, NEAR_QUANTILE))


def near_planes(
    cameras: Sequence[Camera], content: Content, region: Region, stated: float | None
) -> tuple[list[float], float, str | None]:
    """Near distance of each view, one for any camera, and a note when they are guesses. In the capture's units.

    stated: the depth before which, says the capture, there is nothing. It is believed up to the points.
    The one for any camera is the 10th percentile of the views': one odd view must not open all of them to floaters.
    """
    xyz = evenly(content.xyz, 10_000)
    nearest = [nearest_seen(camera, xyz) if content.known else None for camera in cameras]
    found = [distance for distance in nearest if distance is not None]
    note = None
    if not found:
        guess = 0.9 * stated if stated is not None else _guessed_near(cameras, region)
        why = "the capture states it" if stated is not None else "too few surface points were found"
        note = (
            f"The near plane is a guess ({guess:.3g} in the capture's units, as {why}); "
            "set scene.near by hand if fog hangs before the cameras."
        )
        return [guess] * len(cameras), guess, note
    typical = sorted(found)[len(found) // 2]
    planes = []
    for distance in nearest:
        if distance is None:
            planes.append(math.nan)
            continue
        near = max(NEAR_SHARE * distance, 0.02 * typical)
        planes.append(near if stated is None else max(near, min(0.9 * stated, 0.95 * distance)))
    anywhere = float(torch.nanquantile(torch.tensor(planes, dtype=torch.float64), 0.1))
    return [anywhere if math.isnan(near) else near for near in planes], anywhere, note


def _guessed_near(cameras: Sequence[Camera], region: Region) -> float:
    """Half the way to the region's centre from outside it, a twentieth of the region's size from inside."""
    if region.kind == "inside-out":
        return 0.05 * region.half_side
    return 0.5 * min(float((camera.center.double() - region.centre).norm()) for camera in cameras)


# --- the frame -----------------------------------------------------------------------------------------------------


def rotation_to_up(cameras: Sequence[Camera], orientation: str, up: Tensor | None) -> Tensor:
    """[3, 3] float64 rotation after which z points up.

    `orientation` as in SceneConfig; `up` is what the capture states.
    """
    if orientation == "none":
        return torch.eye(3, dtype=torch.float64)
    mean_up = -torch.stack([camera.cam_from_world[1, :3].double() for camera in cameras]).mean(0)
    if orientation == "pca":
        centre = torch.stack([camera.center.double() for camera in cameras])
        _, axes = torch.linalg.eigh((centre - centre.mean(0)).T @ (centre - centre.mean(0)))
        z, x = axes[:, 0], axes[:, 2]
        z = z if float(z @ mean_up) >= 0 else -z
        return torch.stack([x, torch.linalg.cross(z, x), z])
    if orientation == "auto" and up is not None:
        mean_up = up.double()
    length = float(mean_up.norm())
    # Cameras that look straight up or down, or are turned every way, have no common up.
    return torch.eye(3, dtype=torch.float64) if length < 0.1 else _shortest_rotation(mean_up / length)


def _shortest_rotation(up: Tensor) -> Tensor:
    """The rotation by the smallest angle that takes the unit vector `up` to z: Rodrigues without trigonometry."""
    x, y, z = up.tolist()
    if z < -1 + 1e-9:
        return torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    k = 1 / (1 + z)
    rows = [[1 - k * x * x, -k * x * y, -x], [-k * x * y, 1 - k * y * y, -y], [x, y, z]]
    return torch.tensor(rows, dtype=torch.float64)


def frame_of_box(bounds: Tensor, rotation: Tensor) -> Similarity:
    """scene_from_capture that maps a known box [2, 3] into the cube [-1, 1]^3, its longest side from -1 to 1."""
    low, high = bounds.double()
    half = 0.5 * (high - low) @ rotation.T.abs()
    return _frame(0.5 * (low + high), float(half.max()), rotation)


def frame_of_region(region: Region, rotation: Tensor) -> Similarity:
    """scene_from_capture that maps the region's cube to [-1, 1]^3."""
    return _frame(region.centre, region.half_side, rotation)


def _frame(centre: Tensor, half_side: float, rotation: Tensor) -> Similarity:
    scale = 1 / half_side
    return Similarity(scale, rotation, -scale * (rotation @ centre))


def find_region(cameras: Sequence[Camera], content: Content, rotation: Tensor) -> Region:
    """The region of interest by the three rules at the top of this file; `rotation` turns its box upright."""
    centre = torch.stack([camera.center.double() for camera in cameras])
    forward = torch.stack([camera.forward.double() for camera in cameras])
    middle = centre.mean(0)
    spread = float((centre - middle).norm(dim=-1).max())
    focus = None if any(camera.lens is Lens.EQUIRECTANGULAR for camera in cameras) else _focus(cameras, centre, forward)
    if _same_way(forward) and not any(camera.lens is Lens.EQUIRECTANGULAR for camera in cameras):
        axis = torch.nn.functional.normalize(forward.mean(0), dim=0)
        depth = _depth_along(middle, axis, content, focus)
        if depth is not None and spread < 0.7 * depth:
            return Region("forward-facing", middle + depth * axis, depth)
    if focus is not None:
        away = centre - focus
        distance = float(away.norm(dim=-1).median())
        largest = float((away @ rotation.T).abs().amax(-1).quantile(0.95))
        if distance > 0:
            return Region("object-centric", focus, max(distance, largest / 1.5))
    return _box_region(centre, content, rotation)


def _same_way(forward: Tensor) -> bool:
    axis = torch.nn.functional.normalize(forward.mean(0), dim=0)
    return bool((forward @ axis).min() >= math.cos(FORWARD_ANGLE))


def _focus(cameras: Sequence[Camera], centre: Tensor, forward: Tensor) -> Tensor | None:
    """The point that the optical axes come closest to, if nearly all cameras face it and most picture it."""
    try:
        focus = closest_point_to_lines(centre, forward)
    except ValueError:  # One camera, or axes all parallel.
        return None
    in_front = ((focus - centre) * forward).sum(-1) > 0
    in_picture = [len(distances(camera.to(torch.float64), focus[None])) == 1 for camera in cameras]
    if float(in_front.double().mean()) < 0.9 or sum(in_picture) < 0.8 * len(cameras):
        return None
    return focus


def _depth_along(middle: Tensor, axis: Tensor, content: Content, focus: Tensor | None) -> float | None:
    if content.known:
        depth = (content.xyz - middle) @ axis
        depth = depth[depth > 0]
        if len(depth):
            return float(depth.median())
    return None if focus is None else float((focus - middle) @ axis)


def _box_region(centre: Tensor, content: Content, rotation: Tensor) -> Region:
    turned = centre @ rotation.T
    if content.known:
        points = content.xyz @ rotation.T
        middle = points.median(0).values
        away = (points - middle).abs().amax(-1)
        # The box is put about the inner points, so that a few far ones (sky, mirrors) pull it nowhere.
        inner = points[away <= away.quantile(0.8)]
        everything = torch.cat([inner, turned])
    else:
        # With nothing known of the content, leave as much room around the cameras as they take themselves.
        reach = (turned - turned.mean(0)).norm(dim=-1).max()
        everything = torch.cat([turned - reach, turned + reach])
    low, high = everything.amin(0), everything.amax(0)
    half_side = float(0.5 * (high - low).max())
    return Region("inside-out", rotation.T @ (0.5 * (low + high)), half_side if half_side > 0 else 1.0)


def all_in_front(cameras: Sequence[Camera], content: Content) -> bool:
    """Whether the content begins before no camera: then one plane separates them, and NDC applies."""
    centre = torch.stack([camera.center.double() for camera in cameras])
    axis = torch.nn.functional.normalize(torch.stack([camera.forward.double() for camera in cameras]).mean(0), dim=0)
    if not content.known:
        return True
    return float((content.xyz @ axis).quantile(NEAR_QUANTILE)) > float((centre @ axis).max())


def box_distances(centre: Tensor) -> tuple[float, float]:
    """Nearest and farthest distance from a point [3] to the cube [-1, 1]^3; the nearest is 0 inside."""
    outside = (centre.abs() - 1).clamp(min=0)
    return float(outside.norm()), float((centre.abs() + 1).norm())


# --- all of it ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placement:
    """All that is found here, in scene units; fields as in SceneInfo."""

    scene_from_capture: Similarity
    bounded: bool
    near: float
    view_near: tuple[float, ...]
    far: float
    points: Tensor | None
    forward_facing: bool
    notes: tuple[str, ...]


def place(
    capture: Capture,
    cameras: Sequence[Camera],
    train: Sequence[int],
    orientation: str,
    sweep: Callable[[], Tensor],
) -> Placement:
    """Frame, near planes and seed points: from the box that the capture states, else from what its views see.

    Args:
        cameras: of all views, capture frame; those in `train` decide the frame.
        orientation: as in SceneConfig; "auto" gives way to what the capture's author asked for.
        sweep: gives surface points [N, 3] in the capture frame; called only when the capture has none of its own.
    """
    training = [cameras[i] for i in train]
    orientation = capture.orientation or orientation if orientation == "auto" else orientation
    points = capture.points
    content = Content(torch.zeros(0, 3, dtype=torch.float64), "nothing")
    if points is not None:
        content = Content(reliable_points(points), "the capture's own")
    if capture.bounds is not None:
        return _place_in_box(capture, capture.bounds, cameras, training, orientation, content)
    if not content.known:
        content = Content(sweep(), "a plane sweep")
    rotation = rotation_to_up(training, orientation, capture.up)
    region = find_region(training, content, rotation)
    frame = frame_of_region(region, rotation)
    planes, near, note = near_planes(cameras, content, region, capture.near)
    kind = f"The capture looks {region.kind}"
    found = f"{kind}; {len(content.xyz)} surface points ({content.source}) place its near planes."
    return Placement(
        scene_from_capture=frame,
        bounded=False,
        near=frame.scale * near,
        view_near=tuple(frame.scale * plane for plane in planes),
        far=UNBOUNDED_FAR,
        points=_seeds(content, frame),
        forward_facing=region.kind == "forward-facing" and all_in_front(training, content),
        notes=(found,) if note is None else (f"{kind}.", note),
    )


def _place_in_box(
    capture: Capture,
    box: Tensor,
    cameras: Sequence[Camera],
    training: Sequence[Camera],
    orientation: str,
    content: Content,
) -> Placement:
    """Near and far of each view from the cube itself, narrowed by the depths that the capture states."""
    # A box is stated along the capture's axes; turning it by a guess would only make it larger.
    turn = orientation if capture.up is not None or orientation == "pca" else "none"
    frame = frame_of_box(box, rotation_to_up(training, turn, capture.up))
    reach = [box_distances(frame.apply(camera.center.double())) for camera in cameras]
    stated_near = 0.0 if capture.near is None else capture.near * frame.scale
    view_near = tuple(max(near, stated_near, 0.01) for near, _ in reach)
    far = max(far for _, far in reach)
    return Placement(
        scene_from_capture=frame,
        bounded=True,
        near=min(view_near),
        view_near=view_near,
        far=far if capture.far is None else min(far, capture.far * frame.scale),
        points=_seeds(content, frame),
        forward_facing=False,
        notes=(),
    )


def _seeds(content: Content, frame: Similarity) -> Tensor | None:
    """[N, 3] at most MAX_SEED_POINTS of the points, an even choice, in the scene frame; None: no points."""
    return frame.apply(evenly(content.xyz, MAX_SEED_POINTS)).float() if len(content.xyz) else None
