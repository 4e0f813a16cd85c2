"""The quality report of a solution: measured from its files, judged by the rules of `verdict`, written by `page`."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..cameras import Camera, Lens
from ..footage.shots import Footage
from ..formats.frames import printable
from ..geometry import closest_point_to_lines
from .agreement import AGREES, PAIR_MATCHES
from .evidence import Evidence, gather
from .seams import spanning_seams
from .solve import Solution
from .verdict import (
    FOCAL_RANGE,
    MISPLACED,
    SEAM_BROKEN,
    Break,
    Coverage,
    Jump,
    LensFact,
    Picture,
    Quality,
    Seam,
    findings,
    part,
    rows,
)

__all__ = ["Quality", "assess", "rows"]

FEW_FEATURES = 200
"""Keypoints below which a picture has too little detail, where others have more."""
BLURRED = 0.6
"""A picture is blurred when its sharpness is below this share of the median of those around it."""
EXPOSURE = 0.15
"""A picture is badly exposed when its mean brightness is this far from the median of those around it."""
STANDSTILL = 0.0005
"""Median shift of the matches, in lengths of the longer side, below which two pictures are the same."""
ORDERED_REACH = 3
"""How far in time a match may reach across a blurred picture or two before there is a break."""
ABSENT = 0.3
"""Pictures beside each other are of two places when so many regions of one lack in the other. It is at most 0.2 in
right models of real captures, and above 0.5 where a copy fills half of the picture."""
SILENT_PAIRS = 8
"""Pairs side by side below which their silence says nothing."""


def assess(footage: Footage, solution: Solution) -> Quality:
    """Judge a solution by the rules above. Raises CaptureError when its files are missing or damaged."""
    evidence = gather(footage, solution)
    seams, misplaced = _seams_and_outliers(footage, evidence)
    fits, matches = evidence.links.fits, evidence.links.matches
    asked = np.isfinite(fits) & (matches >= PAIR_MATCHES)
    quality = Quality(
        footage=footage,
        evidence=evidence,
        findings=(),
        pictures=_pictures(footage, solution, evidence, misplaced),
        groups=tuple(model.names for model in solution.models),
        breaks=_breaks(footage, evidence),
        jumps=_jumps(footage, evidence, misplaced),
        seams=seams,
        lenses=_lenses(solution),
        coverage=_coverage(footage, evidence),
        agreement=float((fits[asked] >= AGREES).mean()) if asked.any() else math.nan,
        pairs=int(asked.sum()),
        silent=_silence(footage, evidence),
        lookalikes=_lookalikes(footage, evidence),
        beside=int(np.isfinite(evidence.links.absent).sum()),
        mean_error=_mean(evidence.point_error),
        median_error=_median(evidence.point_error),
        track_length=_mean(evidence.track_length),
        observations=_median(evidence.observations[evidence.registered]),
        angle=math.degrees(_median(evidence.angle)),
        metric=solution.metric,
        seconds=solution.seconds,
        tries=solution.tries,
        notes=(*footage.notes, *solution.notes),
    )
    order = {"bad": 0, "doubt": 1, "note": 2}
    found = sorted(findings(quality), key=lambda finding: order[finding.level])
    return replace(quality, findings=tuple(found))


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def _pictures(
    footage: Footage, solution: Solution, evidence: Evidence, misplaced: frozenset[str]
) -> tuple[Picture, ...]:
    shots, links = footage.shots, evidence.links
    groups: dict[str, int] = {}
    for k, model in enumerate(solution.models):
        for name in model.names:
            groups.setdefault(name, k)
    partners = np.bincount(links.pair.ravel(), minlength=len(shots))
    sharpness = np.array([shot.sharpness for shot in shots])
    brightness = np.array([shot.brightness for shot in shots])
    usual_sharpness = _usual(sharpness, footage.ordered)
    usual_brightness = _usual(brightness, footage.ordered)
    twins = _twins(evidence)
    found = []
    for i, shot in enumerate(shots):
        remarks = []
        if sharpness[i] < BLURRED * usual_sharpness[i]:
            remarks.append("blurred")
        if abs(brightness[i] - usual_brightness[i]) > EXPOSURE:
            remarks.append(f"{'darker' if brightness[i] < usual_brightness[i] else 'brighter'} than the others")
        if i in twins:
            remarks.append(f"shows the same as {printable(shots[twins[i]].name)}")
        if shot.name in misplaced:
            remarks.append(MISPLACED)
        group = groups.get(shot.name)
        registered = bool(evidence.registered[i])
        found.append(
            Picture(
                name=shot.name,
                group=0 if registered else group if group != 0 else None,
                missing="" if registered else _why_missing(i, footage, evidence, groups, "blurred" in remarks),
                features=int(evidence.features[i]),
                partners=int(partners[i]),
                observations=int(evidence.observations[i]),
                error=float(evidence.error[i]),
                sharpness=float(sharpness[i]),
                brightness=float(brightness[i]),
                remarks=tuple(remarks),
            )
        )
    return tuple(found)


def _why_missing(i: int, footage: Footage, evidence: Evidence, groups: dict[str, int], blurred: bool) -> str:
    links, shots = evidence.links, footage.shots
    typical = float(np.median(evidence.features)) if len(evidence.features) else 0.0
    count = int(evidence.features[i])
    blur = "it is blurred, and " if blurred else ""
    if count < min(FEW_FEATURES, max(0.2 * typical, 50)):
        return f"{blur}it has too little detail ({count} features, where the others have {typical:.0f})"
    mine = (links.pair == i).any(axis=1)
    if not mine.any():
        return f"{blur}no other picture matches it"
    other = links.pair[mine].sum(axis=1) - i
    matches = links.matches[mine]
    inside = evidence.registered[other]
    if not inside.any():
        group = groups.get(shots[i].name)
        if group:
            return f"{blur}it is in another group (number {group}) that shares no matches with the chosen one"
        strongest = other[int(matches.argmax())]
        return f"{blur}it matches only pictures that are missing too (most: {printable(shots[strongest].name)})"
    best = int(matches[inside].max())
    partner = printable(shots[other[inside][int(matches[inside].argmax())]].name)
    if best < PAIR_MATCHES:
        return f"{blur}its matches are too few (at most {best}, with {partner})"
    if bool(links.flat[mine].all()):
        spot = "it was taken from the same spot as the others, or shows one flat thing"
        return f"{blur}{spot} ({best} matches with {partner})"
    return f"{blur}its {best} matches with {partner} contradict the rest of the model"


def _usual(value: NDArray[np.float64], ordered: bool) -> NDArray[np.float64]:
    """The median of the pictures around each, of all where there is no order; NaN where nothing was measured."""
    if not ordered:
        return np.full(len(value), _median(value))
    return np.array([_median(value[max(0, i - 7) : i + 8]) for i in range(len(value))])


def _twins(evidence: Evidence) -> dict[int, int]:
    """Pictures that show the same as an earlier one, pixel for pixel: nothing moved between them."""
    links = evidence.links
    fewer = evidence.features[links.pair].min(axis=1)
    same = (links.shift < STANDSTILL) & (links.matches > 0.3 * fewer) & (links.matches >= PAIR_MATCHES)
    twins: dict[int, int] = {}
    for first, second in links.pair[same].tolist():
        twins.setdefault(second, first)
    return twins


# ---------------------------------------------------------------------------------------------------------------------
# The graph of matches


def _breaks(footage: Footage, evidence: Evidence) -> tuple[Break, ...]:
    """Places in ordered footage that no strong pair of near neighbours spans."""
    if not footage.ordered:
        return ()
    shots, links = footage.shots, evidence.links
    near = links.pair[:, 1] - links.pair[:, 0] <= ORDERED_REACH
    strongest = np.zeros(max(len(shots) - 1, 0), dtype=np.int64)
    for (first, second), matches in zip(links.pair[near], links.matches[near], strict=True):
        strongest[first:second] = np.maximum(strongest[first:second], matches)
    weak = np.flatnonzero(strongest < PAIR_MATCHES)
    return tuple(Break(shots[k].name, shots[k + 1].name, int(strongest[k])) for k in weak)


def _jumps(footage: Footage, evidence: Evidence, misplaced: frozenset[str]) -> tuple[Jump, ...]:
    """Neighbours in time whose matches contradict the model, single pictures in the wrong place left aside."""
    if not footage.ordered:
        return ()
    shots, links = footage.shots, evidence.links
    # A false match may look like a true one, but not between neighbours, which show the same thing.
    contradict = (links.fits < AGREES) & (links.matches >= PAIR_MATCHES) & (links.pair[:, 1] - links.pair[:, 0] == 1)
    found = [Jump(shots[a].name, shots[b].name, int(n)) for (a, b), n in zip(links.pair, links.matches, strict=True)]
    return tuple(
        jump
        for jump, wrong in zip(found, contradict, strict=True)
        if wrong and jump.before not in misplaced and jump.after not in misplaced
    )


def _seams_and_outliers(footage: Footage, evidence: Evidence) -> tuple[tuple[Seam, ...], frozenset[str]]:
    """All seams, the worst first, without the pictures that stand in the wrong place by themselves, and these.

    Such a picture contradicts all its pairs, and with them the seams that part it from any of its partners, so it must
    go before the others are asked.
    """
    placed = evidence.registered.copy()
    outliers: list[str] = []
    while True:
        seams = _seams(footage, evidence, placed)
        alone = [seam for seam in seams if seam.share < SEAM_BROKEN and len(seam.side) < part(len(seams) + 1)]
        if not alone or 5 * len(outliers) > int(evidence.registered.sum()):
            return seams, frozenset(outliers)
        outliers += alone[0].side
        placed &= np.array([shot.name not in alone[0].side for shot in footage.shots])


def _seams(footage: Footage, evidence: Evidence, placed: NDArray[np.bool_]) -> tuple[Seam, ...]:
    """The seams of the maximum spanning tree, the worst first, and the larger before the smaller."""
    nodes = np.flatnonzero(placed)
    links = evidence.links
    known = placed[links.pair].all(axis=1)
    position = np.full(len(placed), -1)
    position[nodes] = np.arange(len(nodes))
    pair, agree = position[links.pair[known]], links.matches[known] * links.fits[known]
    against = links.matches[known] - agree
    seams = []
    for side in spanning_seams(len(nodes), pair, agree):
        across = side[pair[:, 0]] != side[pair[:, 1]]
        first = second = None
        if across.any() and agree[across].max() > 0:
            first, second = (footage.shots[nodes[k]].name for k in pair[across][int(agree[across].argmax())])
        seams.append(
            Seam(
                side=tuple(footage.shots[k].name for k in nodes[side]),
                first=first,
                second=second,
                agree=round(float(agree[across].sum())),
                against=round(float(against[across].sum())),
            )
        )
    return tuple(sorted(seams, key=lambda seam: (seam.share, -len(seam.side))))


def _silence(footage: Footage, evidence: Evidence) -> float:
    """Of the compared pairs that stand side by side and look the same way, in the model, the share without a match.

    Two places that look alike, taken for one, put the pictures of both side by side; but what they do not have in
    common keeps them from matching. Side by side: a tenth of the depth apart, axes within 15 degrees.
    """
    links = evidence.links

    def side_by_side(pair: NDArray[np.int64]) -> int:
        a, b = pair[:, 0], pair[:, 1]
        distance = np.linalg.norm(evidence.centres[a] - evidence.centres[b], axis=1)
        close = distance < 0.1 * np.minimum(evidence.depth[a], evidence.depth[b])
        if footage.kind != "panoramas":
            close &= (evidence.forward[a] * evidence.forward[b]).sum(axis=1) > math.cos(math.radians(15))
        return int(close.sum())

    silent, linked = side_by_side(evidence.unlinked), side_by_side(links.pair)
    return silent / (silent + linked) if silent + linked >= SILENT_PAIRS else math.nan


def _lookalikes(footage: Footage, evidence: Evidence) -> tuple[tuple[str, str], ...]:
    """Pairs that match, and of whose surroundings each shows what the other lacks; the worst first."""
    links = evidence.links
    found = np.flatnonzero(links.absent > ABSENT)
    order = found[np.argsort(-links.absent[found], kind="stable")]
    return tuple((footage.shots[a].name, footage.shots[b].name) for a, b in links.pair[order])


# ---------------------------------------------------------------------------------------------------------------------
# Lenses and coverage


def _lenses(solution: Solution) -> tuple[LensFact, ...]:
    found = []
    for entry in solution.intrinsics:
        size = (entry.width, entry.height)
        camera = Camera.from_colmap(entry.lens, entry.parameters, *size, torch.eye(3, 4, dtype=torch.float64))
        began = Camera.from_colmap(entry.lens, entry.started, *size, torch.eye(3, 4, dtype=torch.float64))
        side = max(size)
        fx, fy, cx, cy = camera.intrinsics.tolist()
        focal = (fx + fy) / 2
        found.append(
            LensFact(
                lens=entry.lens,
                width=entry.width,
                height=entry.height,
                pictures=entry.pictures,
                focal=focal,
                prior=float(began.intrinsics[:2].mean()) if entry.prior else None,
                offset=((cx - entry.width / 2) / side, (cy - entry.height / 2) / side),
                distortion=tuple(camera.distortion.tolist()),
                impossible=_impossible(camera, focal / side),
            )
        )
    return tuple(found)


def _impossible(camera: Camera, focal: float) -> str:
    """Why no real lens is like this, in words that can follow "The lens"; "" when one may be."""
    if camera.lens is Lens.EQUIRECTANGULAR:
        return ""
    if not FOCAL_RANGE[0] <= focal <= FOCAL_RANGE[1]:
        return f"would have a focal length of {focal:.1f} picture lengths"
    w, h = float(camera.width), float(camera.height)
    border = torch.tensor([[0, 0], [w, 0], [0, h], [w, h], [w / 2, 0], [0, h / 2]], dtype=torch.float64)
    # The corners of a fisheye's picture may well be outside its circle; the middles of the sides of a perspective
    # picture are inside.
    if "FISHEYE" not in camera.lens.value and not bool(camera.unproject_valid(border)[1].all()):
        return "would show some directions twice, because its distortion folds over inside the picture"
    return ""


def _coverage(footage: Footage, evidence: Evidence) -> Coverage | None:
    """Around what the cameras stand, if they stand around something, and the widest gap in the ring."""
    nodes = np.flatnonzero(evidence.registered)
    if footage.kind == "panoramas" or len(nodes) < 5:
        return None
    centres, forward = evidence.centres[nodes], evidence.forward[nodes]
    try:
        subject = closest_point_to_lines(torch.from_numpy(centres), torch.from_numpy(forward)).numpy()
    except ValueError:
        return None
    sight = subject - centres
    distance = np.linalg.norm(sight, axis=1)
    cosine = (sight * forward).sum(axis=1) / np.maximum(distance, 1e-12)
    extent = float(np.linalg.norm(np.ptp(centres, axis=0)))
    if (cosine > math.cos(math.radians(35))).mean() < 0.8 or np.median(distance) > 3 * extent:
        return None
    azimuth = np.degrees(np.arctan2(-sight[:, 1], -sight[:, 0]))
    order = np.argsort(azimuth)
    gaps = np.diff(azimuth[order], append=azimuth[order[0]] + 360)
    widest = int(gaps.argmax())
    first, second = order[widest], order[(widest + 1) % len(order)]
    x, y, z = subject.tolist()
    names = (footage.shots[nodes[first]].name, footage.shots[nodes[second]].name)
    return Coverage((x, y, z), float(gaps[widest]), *names)


def _mean(values: NDArray[np.generic]) -> float:
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if len(finite) else math.nan


def _median(values: NDArray[np.generic]) -> float:
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    return float(np.median(finite)) if len(finite) else math.nan
