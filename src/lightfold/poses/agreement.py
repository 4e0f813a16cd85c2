"""Whether a model says what the pictures say. A low reprojection error does not prove it.

Mapping drops what does not fit: a model can be folded or bent by tens of degrees and still show less than a pixel of
error, because the matches that contradict it were thrown out as outliers. The matches of picture pairs, verified before
there was any model, are the witnesses: in a right model almost every pair's matches lie on its epipolar lines.

Everything here is angles between unit rays [n, 3] in camera axes, so it holds for every lens, panoramas included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .seams import spanning_seams

PAIR_MATCHES = 30
"""Pairs with fewer matches are no witnesses: such few can be chance, or a repeated pattern."""
AGREES = 0.5
"""A pair agrees when this share of its matches lies on the model's epipolar lines."""
TRUSTED = 0.75
"""Share of agreeing pairs from which on a model is trusted. Right models of ordinary sets reach 0.95; repeated patterns
cost some."""
SEAM_HOLDS = 0.5
"""Share of the matches across every seam that must agree. A model that is folded in its middle has 80 % of all pairs
agree, each half being right by itself, but next to none of the matches that cross the fold."""
SEAM_SIDE = 3
"""Pictures on either side that make a seam; fewer are outliers."""


@dataclass(frozen=True)
class Pair:
    """Verified matches of two pictures: names, and unit rays [n, 3] in the axes of each camera."""

    first: str
    second: str
    rays_first: NDArray[np.float64]
    rays_second: NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """What the pairs say about a model.

    share:    of the pairs with enough matches, those that agree; 1 when there are none.
    pairs:    how many pairs were asked.
    seam:     the least share of agreeing matches across any of the model's seams; 1 when there are none.
    doubtful: (first, second, share of their matches that fit) of the pairs that disagree, the worst first.
    outliers: pictures most of whose pairs disagree: they stand in the wrong place.
    """

    share: float
    pairs: int
    seam: float
    doubtful: tuple[tuple[str, str, float], ...]
    outliers: tuple[str, ...]

    @property
    def trusted(self) -> bool:
        """Whether the model may be believed as a whole."""
        return self.share >= TRUSTED and self.seam >= SEAM_HOLDS


def agreement(
    poses: Mapping[str, NDArray[np.float64]], pairs: Sequence[Pair], tolerance: Mapping[str, float]
) -> Agreement:
    """Ask the pairs. poses: cam_from_world [3, 4] of the model's pictures. tolerance: radians by which matches of a
    picture may miss, a few pixels over its focal length."""
    asked: dict[str, list[bool]] = {}
    doubtful: list[tuple[str, str, float]] = []
    number = {name: i for i, name in enumerate(sorted(poses))}
    links: list[tuple[int, int, int, int]] = []
    count = 0
    for pair in pairs:
        if pair.first not in poses or pair.second not in poses or not len(pair.rays_first):
            continue
        error = epipolar_angles(poses[pair.first], poses[pair.second], pair.rays_first, pair.rays_second)
        limit = max(tolerance[pair.first], tolerance[pair.second])
        fits = float((error < limit).mean())
        right = round(fits * len(error))
        links.append((number[pair.first], number[pair.second], right, len(error) - right))
        if len(error) < PAIR_MATCHES:
            continue
        agrees = fits >= AGREES
        count += 1
        asked.setdefault(pair.first, []).append(agrees)
        asked.setdefault(pair.second, []).append(agrees)
        if not agrees:
            doubtful.append((pair.first, pair.second, fits))
    return Agreement(
        share=1.0 - len(doubtful) / count if count else 1.0,
        pairs=count,
        seam=weakest_seam(len(number), np.array(links, dtype=np.int64).reshape(-1, 4)),
        doubtful=tuple(sorted(doubtful, key=lambda row: row[2])),
        outliers=tuple(sorted(name for name, votes in asked.items() if 2 * sum(votes) < len(votes))),
    )


def weakest_seam(count: int, links: NDArray[np.int64]) -> float:
    """The least share of agreeing matches across any seam along which the model may come apart.

    links: [P, 4] rows of two pictures in 0..count-1 and how many of their matches agree and disagree. Seams with fewer
    than SEAM_SIDE pictures on a side, and those that nothing crosses, do not count.
    """
    weakest = 1.0
    for side in spanning_seams(count, links[:, :2], links[:, 2].astype(np.float64)):
        across = side[links[:, 0]] != side[links[:, 1]]
        agreeing, against = links[across, 2].sum(), links[across, 3].sum()
        if SEAM_SIDE <= side.sum() <= count - SEAM_SIDE and agreeing + against > 0:
            weakest = min(weakest, float(agreeing / (agreeing + against)))
    return weakest


def epipolar_angles(
    first_from_world: NDArray[np.float64],
    second_from_world: NDArray[np.float64],
    rays_first: NDArray[np.float64],
    rays_second: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Radians [n] between the rays of the second picture and the half-planes in which the first picture's points lie.

    The points of a ray d of the first camera appear in the second along the arc from R d (far away) to t (near by), the
    arc of Hartley and Zisserman's epipolar line that is in front of both. A ray beside the arc misses it by its
    distance from the plane; a ray beyond an end, by its distance from that end. Cameras at one place see only R d.
    """
    rotation = second_from_world[:, :3] @ first_from_world[:, :3].T
    shift = second_from_world[:, 3] - rotation @ first_from_world[:, 3]
    far = rays_first @ rotation.T
    to_far = _angle(rays_second, far)
    length = np.linalg.norm(shift)
    if length < 1e-12:
        return to_far
    near = np.broadcast_to(shift / length, far.shape)
    normal = np.cross(far, near)
    size = np.linalg.norm(normal, axis=1, keepdims=True)
    normal = normal / np.maximum(size, 1e-12)
    # Between the ends when it is on the near side of the far end, and the other way round.
    after_far = (np.cross(far, rays_second) * normal).sum(1) >= 0
    before_near = (np.cross(rays_second, near) * normal).sum(1) >= 0
    beside = np.abs(np.arcsin(np.clip((normal * rays_second).sum(1), -1, 1)))
    ends = np.minimum(to_far, _angle(rays_second, near))
    return np.where(after_far & before_near & (size[:, 0] > 1e-9), beside, ends)


def _angle(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return 2 * np.arcsin(np.clip(np.linalg.norm(a - b, axis=1) / 2, 0, 1))
