"""A plane sweep over small grey pictures: where, roughly, is the nearest thing that each camera sees?

This is stereo at its smallest (Collins 1996): for every pixel of a reference picture, guess a distance, look where that
point falls in a few neighbouring pictures, and keep the guess under which the patches look alike. Only confident
answers leave: textured patches, one clear winner, agreement of two neighbours, no contradiction from other reference
views. What is left is a few thousand surface points in a couple of seconds, enough to place near planes and the
region of interest.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .cameras import Camera, Lens
from .errors import LightfoldError
from .files import whole_file
from .geometry import Similarity
from .images import Pictures

VERSION = 1
"""Part of the cache key: a change of what is found must raise it."""
LONG_SIDE = 96
"""Pixels along the longer side of the pictures that are compared; camera focal lengths are then about 100 pixels."""
REFERENCES = 16
NEIGHBOURS = 5
PLANES = 64
WINDOW = 5
MIN_CONTRAST = 0.015
"""Standard deviation of grey (of 1) in the window below which a patch is blank and matches anything."""
MIN_SCORE = 0.80
MAX_RIVAL = 0.65
"""The winner's distance from perfect correlation, divided by that of the best rival elsewhere on the ray."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Estimate:
    """What one reference view found. Pixels are in row-major order.

    inverse [h * w] inverse distance along the ray; confident [h * w]; xyz [M, 3] the points of the M confident
    pixels; step between two planes, in inverse distance.
    """

    inverse: Tensor
    confident: Tensor
    xyz: Tensor
    step: float


def small_size(width: int, height: int) -> tuple[int, int]:
    """Size at which a picture takes part in the sweep."""
    factor = max(1.0, max(width, height) / LONG_SIDE)
    return max(1, round(width / factor)), max(1, round(height / factor))


def sweep(cameras: Sequence[Camera], grey: Callable[[int], tuple[Tensor, Tensor | None]]) -> Tensor:
    """Surface points [N, 3] float64 seen by several of these cameras, in their world.

    There are none where views, parallax or texture are missing.

    Args:
        cameras: single cameras of any lens, in a common world, at the size of the small pictures (`small_size`).
        grey: gives a camera's picture [h, w] float32 in [0, 1], and which of its pixels count, [h, w] bool or None
            for all.
            Asked once, and only for the views that take part.
    """
    nothing = torch.zeros(0, 3, dtype=torch.float64)
    if len(cameras) < 2:
        return nothing
    centre = torch.stack([camera.center.double() for camera in cameras])
    middle = centre.median(0).values
    spread = float((centre - middle).norm(dim=-1).mean())
    if not spread > 0:
        return nothing
    # float32 is enough only once large coordinates are gone.
    local = Similarity(1 / spread, torch.eye(3, dtype=torch.float64), -middle / spread)
    moved = [camera.transformed(local).to(torch.float32) for camera in cameras]
    pictures: dict[int, tuple[Tensor, Tensor | None]] = {}
    estimates: dict[int, _Estimate] = {}
    directions: dict[tuple[object, ...], Tensor] = {}  # Cameras that share a lens share its costly inversion.
    place = torch.stack([camera.center for camera in moved]), torch.stack([camera.forward for camera in moved])
    for i in spread_out(moved, REFERENCES):
        others = neighbours(moved, i, place)
        if not others:
            continue
        for j in (i, *others):
            if j not in pictures:
                pictures[j] = _checked(grey(j), cameras[j])
        lens = lens_key(moved[i])
        if lens not in directions:
            directions[lens] = moved[i].unproject(moved[i].pixel_grid())
        estimates[i] = _match(moved, pictures, i, others, directions[lens])
    return local.inverse().apply(_agreeing(moved, estimates).double())


def _checked(picture: tuple[Tensor, Tensor | None], camera: Camera) -> tuple[Tensor, Tensor | None]:
    if tuple(picture[0].shape) != (camera.height, camera.width):
        raise ValueError(f"grey: expected {camera.height} x {camera.width}, got {list(picture[0].shape)}")
    return picture


def lens_key(camera: Camera) -> tuple[object, ...]:
    """Equal for cameras whose pixels look in the same directions, as seen from the camera."""
    numbers = (*camera.intrinsics.tolist(), *camera.distortion.tolist())
    return (camera.lens, camera.width, camera.height, *numbers)


def spread_out(cameras: Sequence[Camera], count: int) -> list[int]:
    """Up to `count` cameras that differ most in position and direction (farthest point sampling, from the first)."""
    place = torch.stack([torch.cat([camera.center, camera.forward]) for camera in cameras]).double()
    chosen = [0]
    distance = (place - place[0]).norm(dim=-1)
    while len(chosen) < min(count, len(cameras)) and float(distance.max()) > 0:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (place - place[chosen[-1]]).norm(dim=-1))
    return sorted(chosen)


def neighbours(cameras: Sequence[Camera], reference: int, place: tuple[Tensor, Tensor] | None = None) -> list[int]:
    """Views to compare with a reference: a ladder of baselines, 1st, 2nd, 4th, 8th ... nearest.

    Short baselines tell which match is the right one, long ones tell where exactly (Okutomi and Kanade 1993); the
    ladder finds both in a dense video as in a few photos. Nearness counts turning too: 20 degrees as much as the mean
    camera spacing. place: the cameras' centres and optical axes [N, 3], for who has them already.
    """
    if place is None:
        place = torch.stack([camera.center for camera in cameras]), torch.stack([camera.forward for camera in cameras])
    centre, forward = place
    baseline = (centre - centre[reference]).norm(dim=-1)
    turn = torch.rad2deg(torch.acos((forward @ forward[reference]).clamp(-1, 1)))
    if all(camera.lens is Lens.EQUIRECTANGULAR for camera in cameras):
        turn = torch.zeros_like(turn)  # A panorama sees everything whichever way it is turned.
    unit = baseline.sort().values[: min(len(cameras), 9)].mean().clamp(min=1e-9)
    far = (baseline / unit) ** 2 + (turn / 20) ** 2
    useful = (turn < 45) & (baseline > 1e-3 * unit)
    useful[reference] = False
    ranked = [int(i) for i in far.argsort() if bool(useful[i])]
    if len(ranked) <= NEIGHBOURS:
        return ranked
    rungs = [2**k - 1 for k in range(NEIGHBOURS) if 2**k - 1 < len(ranked)]
    extra = [rank for rank in range(len(ranked)) if rank not in rungs][: NEIGHBOURS - len(rungs)]
    return [ranked[rank] for rank in sorted(rungs + extra)]


def _match(
    cameras: Sequence[Camera],
    pictures: dict[int, tuple[Tensor, Tensor | None]],
    reference: int,
    others: list[int],
    in_cam: Tensor,
) -> _Estimate:
    """Distance of every pixel of the reference, by the best mean ZNCC over the two neighbours that agree most."""
    camera, (picture, counts) = cameras[reference], pictures[reference]
    height, width = picture.shape
    baselines = [float((cameras[j].center - camera.center).norm()) for j in others]
    # Nearer than its longest baseline a point is seen under more than 45 degrees, which no patch survives.
    inverse = torch.linspace(1.0, 1e-3, PLANES) / max(baselines)
    step = float(inverse[0] - inverse[1])
    direction = in_cam @ camera.cam_from_world[:, :3]
    xyz = (camera.center + direction / inverse[:, None, None]).reshape(-1, 3)
    mean, deviation = _statistics(picture[None])
    scores = []
    for j in others:
        xy, valid = cameras[j].project(xyz)
        place = (xy * xy.new_tensor([2 / cameras[j].width, 2 / cameras[j].height]) - 1).reshape(1, -1, width, 2)
        valid = valid & (place.abs().amax(-1).reshape(-1) < 1)
        warped = functional.grid_sample(pictures[j][0][None, None], place, padding_mode="border", align_corners=False)
        warped = warped.reshape(PLANES, height, width)
        other_mean, other_deviation = _statistics(warped)
        covariance = _box(warped * picture) - other_mean * mean
        score = covariance / (deviation * other_deviation).clamp(min=MIN_CONTRAST**2)
        scores.append(torch.where(valid.reshape(score.shape), score, -1.0))
    score = _mean_of_best(scores)
    best, plane = score.max(0)
    index = torch.arange(PLANES)[:, None, None]
    rival = torch.where((index - plane).abs() <= 3, -1.0, score).amax(0)
    confident = (best > MIN_SCORE) & (1 - best < MAX_RIVAL * (1 - rival)) & (deviation[0] > MIN_CONTRAST)
    # The first and last plane have no peak, only a slope that leaves the range.
    confident &= (plane > 0) & (plane < PLANES - 1)
    margin = WINDOW // 2
    border = torch.zeros_like(confident)
    border[margin : height - margin, margin : width - margin] = True
    confident = (confident & border if counts is None else confident & border & counts).reshape(-1)
    found = _refined(score, plane, inverse).reshape(-1)
    surface = camera.center + direction[confident] / found[confident, None]
    return _Estimate(found, confident, surface, step)


def _mean_of_best(scores: list[Tensor]) -> Tensor:
    """Mean of the two largest at each place; the only one where there is one."""
    first, second = scores[0], scores[min(1, len(scores) - 1)]
    first, second = torch.maximum(first, second), torch.minimum(first, second)
    for score in scores[2:]:
        second = torch.maximum(second, torch.minimum(first, score))
        first = torch.maximum(first, score)
    return 0.5 * (first + second)


def _refined(score: Tensor, plane: Tensor, inverse: Tensor) -> Tensor:
    """Inverse distance [h, w] at the top of the parabola through the winner and its two neighbours."""
    middle = plane.clamp(1, len(inverse) - 2)
    before, at, after = (score.gather(0, (middle + k)[None])[0] for k in (-1, 0, 1))
    shift = 0.5 * (before - after) / (before - 2 * at + after).clamp(max=-1e-6)
    return inverse[middle] + shift.clamp(-0.5, 0.5) * (inverse[1] - inverse[0])


def _box(values: Tensor) -> Tensor:
    """Means over WINDOW x WINDOW patches of pictures [P, h, w], zero beyond the border.

    Shifted sums: a tenth of the time of torch's pooling for windows this small.
    """
    pad = WINDOW // 2
    height, width = values.shape[1:]
    padded = functional.pad(values, (pad, pad, pad, pad))
    rows = sum((padded[:, k : k + height] for k in range(1, WINDOW)), start=padded[:, :height])
    total = sum((rows[:, :, k : k + width] for k in range(1, WINDOW)), start=rows[:, :, :width])
    return total * (1 / WINDOW**2)


def _statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the patches of pictures [P, h, w]."""
    mean = _box(values)
    return mean, (_box(values * values) - mean * mean).clamp(min=0).sqrt()


def _agreeing(cameras: Sequence[Camera], estimates: dict[int, _Estimate]) -> Tensor:
    """Points [N, 3] of all references, kept when others see the same surface there and do not see through it.

    A point that one reference puts closer than another reference's surface along the same line of sight would hide that
    surface; false matches near the camera, the ones that would spoil a near plane, all do.
    """
    points = [torch.zeros(0, 3)]
    for i, estimate in estimates.items():
        xyz = estimate.xyz
        balance = torch.zeros(2, len(xyz))
        for j, other in estimates.items():
            if j != i and len(xyz):
                balance += _votes(xyz, cameras[j], other)
        keep = (balance[0] >= 1) & (balance[0] > balance[1])
        points.append(xyz[keep])
    return torch.cat(points)


def _votes(xyz: Tensor, camera: Camera, estimate: _Estimate) -> Tensor:
    """[2, N] of 0 and 1: this view's surface is where the point is; this view looks through the point."""
    xy, valid = camera.project(xyz)
    column, row = xy.floor().long().unbind(-1)
    inside = valid & (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
    pixel = torch.where(inside, row * camera.width + column, 0)
    known = inside & estimate.confident[pixel]
    closer = 1 / (xyz - camera.center).norm(dim=-1) - estimate.inverse[pixel]
    tolerance = 1.5 * estimate.step + 0.05 * estimate.inverse[pixel]
    return torch.stack([known & (closer.abs() < tolerance), known & (closer > 2 * tolerance)]).float()


# --- from the picture cache, and kept --------------------------------------------------------------------------------


def surface_points(cameras: Sequence[Camera], train: Sequence[int], pictures: Pictures) -> Tensor:
    """[N, 3] float64 points that the training views agree on, in their cameras' world.

    Kept beside the picture cache, for the same pictures and cameras.
    """
    digest = hashlib.sha256(pictures.path.name.encode() + bytes([VERSION]))
    for i in train:
        digest.update(repr((i, cameras[i].to_dict())).encode())
    path = pictures.path.parent / f"surface-{digest.hexdigest()[:24]}.npy"
    try:
        stored = np.load(path, allow_pickle=False)
        if stored.ndim == 2 and stored.shape[1] == 3 and stored.dtype == np.float64:
            return torch.from_numpy(stored)
        log.warning("The cached surface points %s are damaged and are made again.", path)
    except FileNotFoundError:
        pass  # The first time.
    except (OSError, ValueError, EOFError) as error:
        log.warning("The cached surface points %s are damaged (%s) and are made again.", path, error)
    threads = torch.get_num_threads()
    small = [cameras[i].resized(*small_size(cameras[i].width, cameras[i].height)) for i in train]
    try:
        # Arrays of a megabyte: sharing them out costs more than it gains, and on a busy machine fifty times more.
        torch.set_num_threads(1)
        xyz = sweep(small, lambda slot: _small_grey(pictures, train[slot], small[slot]))
    finally:
        torch.set_num_threads(threads)
    _store(path, xyz)
    return xyz


def _store(path: Path, xyz: Tensor) -> None:
    """A cache that cannot be written costs seconds next time, so that is no error."""
    try:
        with whole_file(path) as partial, partial.open("wb") as file:
            np.save(file, xyz.numpy(), allow_pickle=False)
    except LightfoldError as error:
        log.warning("The surface points are not kept: %s", error)


def _small_grey(pictures: Pictures, index: int, camera: Camera) -> tuple[Tensor, Tensor | None]:
    """A view as the plane sweep wants it: grey [h, w] in [0, 1] and which pixels count. Transparent ones do not."""
    rows = slice(pictures.offset[index], pictures.offset[index + 1])
    width, height = pictures.sizes[index]
    size = (camera.width, camera.height)

    def small(plane: Tensor) -> np.ndarray:
        values = plane.numpy().reshape(height, width, *plane.shape[1:])
        picture = Image.fromarray(values if values.dtype == np.uint8 else (values >> 8).astype(np.uint8))
        return np.asarray(picture.convert("L").resize(size, Image.Resampling.BILINEAR), dtype=np.float32) / 255

    counts = None
    for plane in (pictures.alpha, pictures.mask):
        if plane is not None:
            valid = torch.from_numpy(small(plane[rows]) > 0.99)
            counts = valid if counts is None else counts & valid
    return torch.from_numpy(small(pictures.rgb[rows])), counts
