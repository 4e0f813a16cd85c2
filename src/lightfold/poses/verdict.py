"""The verdict on a solution: what is known of it, whether to train on it, and what to do next.

A model with a small reprojection error can still be wrong: mapping drops what does not fit. So the verdict rests on
what was measured before there was a model, the verified matches between pairs of pictures (`agreement`), and asks along
seams. A seam parts the pictures in two, and the matches across it either lie on the model's epipolar lines or not. If
two halves of a model are each right and wrongly joined, all pairs within the halves agree and hide the few that do not;
across the seam nearly all disagree. (fox with its neighbours compared, folded in the middle by 3 to 60 degrees: 78 to
80 % of the pairs agree, but 1 to 5 % of the matches across the seam.) The seams that are asked are those of the maximum
spanning tree over agreeing matches: few matches agree across a wrong joint, so the tree crosses it as rarely as it can,
and one of its edges is the seam.

The rules:

    bad     what is trained on these poses will be wrong
            - a seam across which fewer than half of the matches agree (SEAM_BROKEN), with three pictures or more on
              either side. The right model of fox, whose wallpaper repeats, has 73 % at its weakest seam; others 98 %
            - fewer than 3/4 of the pairs agree (agreement.TRUSTED, which is what the engine believes by)
            - a jump, in ordered footage: neighbours that match, and do not stand where their matches say. A model of a
              walk around a can whose label is printed on it twice, folded by half a turn at three places, has 99 % of
              its pairs agree and 52 % at its weakest seam, because the false matches are as many as the true ones. But
              what follows in time is what it seems to be
            - pictures that stand close and look the same way, as the model has it, and share no match, in more than
              half of such cases (SILENT_BAD): two places that look alike were taken for one
            - pictures that stand side by side and match, but whose surroundings differ (`absence`), in more than a
              fifth of such pairs (LOOKALIKE_BAD): what they have in common is a copy
            - a lens that cannot be: it folds over inside the picture, or its focal length is beyond FOCAL_RANGE
            - the points are seen under a median angle of less than 1 degree (ANGLE_BAD): the camera turned on the spot,
              and depths are a guess
            - fewer than half of the pictures have a pose (REGISTERED_BAD), or fewer than three
    usable  worth training, with less than was hoped for, or with a doubt
            - fewer than 9 in 10 pictures have a pose (REGISTERED_GOOD)
            - a seam that hangs on few matches (SEAM_MATCHES) or is contradicted (SEAM_DOUBTFUL), single pictures in the
              wrong place (bad when they are a fifth), silent pairs above SILENT_DOUBTFUL, lookalikes above
              LOOKALIKE_DOUBTFUL
            - less than two agreeing pairs per picture (WITNESSES): a chain, in which no pair checks another
            - reprojection error above 0.15 % of the longer side (ERROR_DOUBTFUL), a focal length more than 15 % off the
              header's (FOCAL_DOUBTFUL), an axis more than a tenth off the middle, a median angle below 3 degrees
    good    none of these

Blur, exposure, copies, and gaps in the coverage are named, and change no verdict: they cost quality, not truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..cameras import Lens
from ..footage.shots import Footage
from ..formats.frames import listed, printable
from .agreement import AGREES, PAIR_MATCHES, TRUSTED
from .evidence import Evidence

SEAM_BROKEN, SEAM_DOUBTFUL = 0.5, 0.7
SEAM_MATCHES = 60
SILENT_BAD, SILENT_DOUBTFUL = 0.5, 0.25
LOOKALIKE_BAD, LOOKALIKE_DOUBTFUL = 0.2, 0.05
REGISTERED_BAD, REGISTERED_GOOD = 0.5, 0.9
WITNESSES = 2.0
ERROR_DOUBTFUL = 0.0015
FOCAL_DOUBTFUL = 0.15
FOCAL_RANGE = (0.2, 10.0)
"""Focal lengths of real lenses in lengths of the longer side: 10 is a telephoto of 360 mm on 35 mm film."""
AXIS_DOUBTFUL = 0.1
ANGLE_BAD, ANGLE_DOUBTFUL = 1.0, 3.0
GAP = (60.0, 120.0)
"""Degrees without a camera, in a walk around something, that are worth filling. More than that was left out on purpose,
or is a wall."""
MISPLACED = "probably in the wrong place"
MOST_LINES = 6
"""Reasons for missing pictures, and breaks, that are told one by one."""


@dataclass(frozen=True)
class Picture:
    """What is known about one picture.

    group:    0 in the chosen model, k in the k-th other model, None in none.
    missing:  why it has no pose in the chosen model; "" when it has one. Can follow "because".
    features: keypoints found. partners: pictures it has verified matches with. observations: points of the model in it.
    error:    mean reprojection error of these in pixels, NaN without any.
    remarks:  "blurred", "darker than the others", "shows the same as NAME", MISPLACED.
    """

    name: str
    group: int | None
    missing: str
    features: int
    partners: int
    observations: int
    error: float
    sharpness: float
    brightness: float
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Seam:
    """A way to part the pictures of the model in two, and the verified matches across.

    side:   the smaller part. first, second: the pair across with the most agreeing matches, None where there is none.
    agree, against: matches across that lie, and do not lie, on the model's epipolar lines.
    """

    side: tuple[str, ...]
    first: str | None
    second: str | None
    agree: int
    against: int

    @property
    def share(self) -> float:
        """Of the matches across, those that agree; 0 without any."""
        return self.agree / max(self.agree + self.against, 1)


@dataclass(frozen=True)
class Break:
    """Neighbours in ordered footage across which nothing nearby matches, or little. matches: of the strongest pair."""

    before: str
    after: str
    matches: int


@dataclass(frozen=True)
class Jump:
    """Neighbours in ordered footage that match each other, and do not stand where their matches say."""

    before: str
    after: str
    matches: int


@dataclass(frozen=True)
class LensFact:
    """One camera's intrinsics beside what they began as.

    focal, prior: pixels; prior is None where the header had none. offset: of the axis from the middle, in lengths of
    the longer side. impossible: why no real lens is like this, or "".
    """

    lens: str
    width: int
    height: int
    pictures: int
    focal: float
    prior: float | None
    offset: tuple[float, float]
    distortion: tuple[float, ...]
    impossible: str

    @property
    def deviation(self) -> float | None:
        """How far the focal length is from the header's: 0.1 is ten per cent longer. None without a header."""
        return None if self.prior is None else self.focal / self.prior - 1


@dataclass(frozen=True)
class Coverage:
    """Cameras around something they all look at, from above.

    subject: [3] where they look. gap: degrees of the widest sector without a camera, between two pictures.
    """

    subject: tuple[float, float, float]
    gap: float
    first: str
    second: str


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. level: "bad", "doubt" or "note". reason and advice are whole sentences."""

    level: str
    reason: str
    advice: str = ""


@dataclass(frozen=True, eq=False)
class Quality:
    """The report. All counts of pictures refer to the footage; what could not be told is NaN.

    groups:    names in every model, the chosen one first.
    agreement: share of pairs that agree, of the `pairs` with enough matches to say. silent: share of pairs that should
               match and do not, NaN when there are too few to say.
    lookalikes: pairs that match side by side though their surroundings differ, of the `beside` that could be asked.
    seams:     all that were asked, the worst first. mean_error, median_error: pixels. angle: median, degrees.
    """

    footage: Footage
    evidence: Evidence
    findings: tuple[Finding, ...]
    pictures: tuple[Picture, ...]
    groups: tuple[tuple[str, ...], ...]
    breaks: tuple[Break, ...]
    jumps: tuple[Jump, ...]
    seams: tuple[Seam, ...]
    lenses: tuple[LensFact, ...]
    coverage: Coverage | None
    agreement: float
    pairs: int
    silent: float
    lookalikes: tuple[tuple[str, str], ...]
    beside: int
    mean_error: float
    median_error: float
    track_length: float
    observations: float
    angle: float
    metric: bool
    seconds: dict[str, float]
    tries: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """ "good", "usable" or "bad"."""
        levels = {finding.level for finding in self.findings}
        return "bad" if "bad" in levels else "usable" if "doubt" in levels else "good"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Whole sentences, the gravest first."""
        return tuple(finding.reason for finding in self.findings)

    @property
    def advice(self) -> tuple[str, ...]:
        """What to do next, in the same order, each once."""
        return tuple(dict.fromkeys(finding.advice for finding in self.findings if finding.advice))

    @property
    def registered(self) -> int:
        """Pictures with a pose in the chosen model."""
        return int(self.evidence.registered.sum())


def part(count: int) -> int:
    """Pictures that make a part of a model of `count`, and no outlier."""
    return max(3, math.ceil(0.05 * count)) if count >= 6 else 1


def rows(quality: Quality) -> list[tuple[str, str]]:
    """(what, value) lines for the terminal, the verdict first. Names are free of terminal codes."""
    total = len(quality.pictures)
    lines = [("verdict", f"{quality.verdict}: {headline(quality)}"), ("registered", f"{quality.registered} of {total}")]
    missing: dict[str, list[str]] = {}
    for picture in quality.pictures:
        if picture.missing:
            missing.setdefault(picture.missing, []).append(printable(picture.name))
    lines += [("missing", f"{listed(names)}: {reason}") for reason, names in list(missing.items())[:MOST_LINES]]
    if len(missing) > MOST_LINES:
        lines.append(("", "and others for other reasons; poses.html names all"))
    if len(quality.groups) > 1:
        lines.append(("groups", ", ".join(str(len(group)) for group in quality.groups) + " pictures"))
    lines += facts(quality)
    lines += [("because", reason) for reason in quality.reasons]
    return lines + [("do next", sentence) for sentence in quality.advice]


def facts(quality: Quality) -> list[tuple[str, str]]:
    """The measured numbers, in words."""
    lines = [("agreement", f"{_percent(quality.agreement)} of {quality.pairs} pairs of pictures agree with the model")]
    if quality.seams:
        worst = quality.seams[0]
        lines.append(
            (
                "weakest seam",
                f"{_percent(worst.share)} of {worst.agree + worst.against} matches agree ({_across(worst)})",
            )
        )
    if math.isfinite(quality.silent):
        lines.append(("near, no match", f"{_percent(quality.silent)} of the pairs that stand side by side"))
    if quality.beside:
        lines.append(("lookalikes", f"{len(quality.lookalikes)} of {quality.beside} pairs that stand side by side"))
    lines += [
        ("reprojection", f"{quality.mean_error:.2f} px mean, {quality.median_error:.2f} px median"),
        ("points", f"{len(quality.evidence.points):,}, each seen in {quality.track_length:.1f} pictures"),
        ("points per picture", f"{quality.observations:.0f} (median)"),
        ("angle of points", f"{quality.angle:.1f} degrees (median of the widest)"),
    ]
    for lens in quality.lenses:
        if lens.lens == Lens.EQUIRECTANGULAR.value:
            lines.append(("lens", f"{lens.lens}, {lens.width} x {lens.height}, {lens.pictures} pictures"))
            continue
        told = "" if lens.deviation is None else f", {100 * lens.deviation:+.1f} % against the header"
        numbers = " ".join(f"{value:.4g}" for value in lens.distortion)
        lines.append(
            (
                "lens",
                f"{lens.lens}, {lens.pictures} pictures: focal length {lens.focal:.0f} px{told}; axis "
                f"{100 * lens.offset[0]:+.1f} %, {100 * lens.offset[1]:+.1f} % off the middle"
                + (f"; distortion {numbers}" if numbers else ""),
            )
        )
    if quality.coverage is not None:
        lines.append(("coverage", f"{360 - quality.coverage.gap:.0f} of 360 degrees around the subject"))
    lines.append(("scale", "metres" if quality.metric else "unknown"))
    if quality.seconds:
        lines.append(("seconds", ", ".join(f"{stage} {value:.0f}" for stage, value in quality.seconds.items())))
    return lines


def headline(quality: Quality) -> str:
    """The verdict in a few words."""
    if quality.verdict == "bad":
        return "do not train on these poses"
    if quality.verdict == "usable":
        return "worth training on, with what is said below"
    return "ready to train on"


# ---------------------------------------------------------------------------------------------------------------------
# The rules


def findings(quality: Quality) -> list[Finding]:
    """All that is wrong, by the rules of the module, in no order."""
    return [
        *_about_registration(quality),
        *_about_truth(quality),
        *_about_geometry(quality),
        *_about_pictures(quality),
    ]


def _about_registration(quality: Quality) -> list[Finding]:
    total, registered = len(quality.pictures), quality.registered
    if registered == total:
        return []
    share = registered / max(total, 1)
    bad = share < REGISTERED_BAD or registered < 3
    level = "bad" if bad else "doubt" if share < REGISTERED_GOOD else "note"
    found = [Finding(level, f"{registered} of {total} pictures have a pose.")]
    known = {picture.name for picture in quality.pictures if not picture.missing}
    for k, group in enumerate(quality.groups):
        if set(group) - known:
            found.append(_about_group(quality, k))
            known |= set(group)
    # Breaks between two groups have been named with the groups.
    gaps = [gap for gap in quality.breaks if gap.before not in known or gap.after not in known]
    if gaps:
        said = [f"{printable(gap.before)} and {printable(gap.after)} ({gap.matches or 'none'})" for gap in gaps]
        where = "between them" if len(gaps) == 1 else "in these places"
        found.append(
            Finding(
                "note",
                f"Neighbours with too few matches: {listed(said, MOST_LINES)}.",
                f"Add pictures {where}, so that each overlaps the next by two thirds.",
            )
        )
    elif len(known) < total:
        lost = [f"{printable(p.name)} ({p.missing})" for p in quality.pictures if p.name not in known]
        found.append(
            Finding(
                "note",
                f"Pictures in no group: {listed(lost, MOST_LINES)}.",
                "Take more pictures around those that are missing, each overlapping its neighbours by two thirds.",
            )
        )
    return found


def _about_group(quality: Quality, k: int) -> Finding:
    """What parts another model from the chosen one, and where to add pictures."""
    position = {shot.name: i for i, shot in enumerate(quality.footage.shots)}
    links = quality.evidence.links
    chosen = quality.evidence.registered
    other = np.zeros(len(position), dtype=bool)
    other[[position[name] for name in quality.groups[k] if name in position]] = True
    other &= ~chosen
    size = int(other.sum())
    start = f"Another group ({_count(size)}) could not be joined to the model"
    across = (chosen[links.pair[:, 0]] & other[links.pair[:, 1]]) | (other[links.pair[:, 0]] & chosen[links.pair[:, 1]])
    names = [printable(shot.name) for shot in quality.footage.shots]
    if across.any():
        best = int(np.where(across, links.matches, -1).argmax())
        where = " and ".join(names[i] for i in links.pair[best])
        return Finding(
            "note",
            f"{start}: the strongest pair between them, {where}, has {links.matches[best]} matches.",
            f"Add pictures between {where}.",
        )
    neighbours = np.flatnonzero((chosen[:-1] & other[1:]) | (other[:-1] & chosen[1:]))
    if quality.footage.ordered and len(neighbours):
        where = f"{names[neighbours[0]]} and {names[neighbours[0] + 1]}"
        return Finding("note", f"{start}: they share no matches between {where}.", f"Add pictures between {where}.")
    members = listed([names[i] for i in np.flatnonzero(other)])
    return Finding(
        "note",
        f"{start}: they share no matches ({members}).",
        f"Add pictures that show what {members} show together with what the others show.",
    )


def _about_truth(quality: Quality) -> list[Finding]:
    found = []
    count = quality.registered
    anew = "Take the pictures of that place anew, closer together, so that each overlaps the next by two thirds."
    if quality.pairs and quality.agreement < TRUSTED:
        found.append(
            Finding(
                "bad",
                f"The model is wrong: only {_percent(quality.agreement)} of {quality.pairs} pairs of pictures agree.",
                "Find the poses again with richer features or all pairs, or take pictures that overlap more.",
            )
        )
    if quality.jumps:
        places = [f"{printable(jump.before)} and {printable(jump.after)}" for jump in quality.jumps]
        found.append(
            Finding(
                "bad",
                f"The model is wrong: it jumps between neighbours that match: {listed(places, MOST_LINES)}.",
                "Something looks the same from several sides, so that the model was folded: compare neighbours in time "
                "only (--pairs sequential), or take pictures that show more of what surrounds it.",
            )
        )
    for level, seam in _broken_seams(quality.seams, count):
        what = "The model is wrongly joined" if level == "bad" else "The model may be wrongly joined"
        found.append(
            Finding(
                level,
                f"{what}: between {_count(len(seam.side))} ({_named(seam)}) and the other {count - len(seam.side)}, "
                f"{seam.against} of {seam.agree + seam.against} matches contradict it.",
                anew,
            )
        )
    misplaced = [printable(p.name) for p in quality.pictures if MISPLACED in p.remarks]
    if misplaced:
        found.append(
            Finding(
                "bad" if 5 * len(misplaced) > count else "doubt",
                f"Probably in the wrong place: {listed(misplaced, MOST_LINES)}.",
                "Leave out the pictures that are in the wrong place.",
            )
        )
    if quality.silent > SILENT_DOUBTFUL:
        found.append(
            Finding(
                "bad" if quality.silent > SILENT_BAD else "doubt",
                f"Two places that look alike were probably taken for one: {_percent(quality.silent)} of the pairs that "
                "stand side by side in the model share no matches.",
                "Add pictures that show what is different between the places that look alike.",
            )
        )
    strange = len(quality.lookalikes) / max(quality.beside, 1)
    if strange > LOOKALIKE_DOUBTFUL:
        first, second = (printable(name) for name in quality.lookalikes[0])
        found.append(
            Finding(
                "bad" if strange > LOOKALIKE_BAD else "doubt",
                f"Two places that look alike were taken for one: {len(quality.lookalikes)} of {quality.beside} pairs "
                f"that stand side by side match, but around what matches each shows what the other lacks, {first} and "
                f"{second} above all.",
                "Find the poses of each place by itself, or add pictures on the way from one to the other.",
            )
        )
    # Broken seams have been named; these only hang on little.
    for seam in quality.seams:
        if seam.share >= SEAM_DOUBTFUL and seam.agree < SEAM_MATCHES and part(count) <= len(seam.side):
            where = _across(seam)
            found.append(
                Finding(
                    "doubt",
                    f"A weak joint: only {seam.agree} matches hold {_count(len(seam.side))} ({_named(seam)}) to the "
                    f"others; the strongest pair is {where}.",
                    f"Add pictures between {where}.",
                )
            )
    links = quality.evidence.links
    witnesses = int(((links.fits >= AGREES) & (links.matches >= PAIR_MATCHES)).sum())
    # Three pictures have three pairs at most.
    if witnesses < WITNESSES * (count - 1) and count > 4:
        found.append(
            Finding(
                "doubt",
                f"The model is a chain: {witnesses} pairs of pictures hold {count} together, so that no pair checks "
                "another.",
                "Take more pictures, closer together, so that each overlaps several others.",
            )
        )
    return found


def _broken_seams(seams: Sequence[Seam], count: int) -> list[tuple[str, Seam]]:
    """Seams between parts that the matches contradict. One wrong joint is many seams that differ by a few pictures;
    the first, which is the worst, stands for those whose parts overlap with its own by half."""
    found: list[tuple[str, Seam]] = []
    for seam in seams:
        if seam.share >= SEAM_DOUBTFUL or len(seam.side) < part(count):
            continue
        members = set(seam.side)
        if any(2 * len(members & set(other.side)) > min(len(members), len(other.side)) for _, other in found):
            continue
        found.append(("bad" if seam.share < SEAM_BROKEN else "doubt", seam))
    return found


def _about_geometry(quality: Quality) -> list[Finding]:
    found = []
    for lens in quality.lenses:
        calibrate = (
            "Add pictures from the side and from other distances, which tell the focal length, or choose another "
            "--lens: what is wrong with the lens bends all poses."
        )
        if lens.impossible:
            found.append(Finding("bad", f"The lens {lens.impossible}.", calibrate))
        elif lens.deviation is not None and abs(lens.deviation) > FOCAL_DOUBTFUL:
            found.append(
                Finding(
                    "doubt",
                    f"The focal length came out as {lens.focal:.0f} px, {100 * lens.deviation:+.0f} % against the "
                    "header of the pictures.",
                    calibrate,
                )
            )
        if not lens.impossible and max(map(abs, lens.offset)) > AXIS_DOUBTFUL:
            found.append(
                Finding(
                    "doubt",
                    f"The axis of the lens lies {max(map(abs, lens.offset)):.0%} of the picture off its middle; unless "
                    "the pictures were cropped, the poses are bent.",
                    calibrate,
                )
            )
    if quality.angle < ANGLE_DOUBTFUL:
        found.append(
            Finding(
                "bad" if quality.angle < ANGLE_BAD else "doubt",
                f"Depth is uncertain: the points are seen under angles of {quality.angle:.1f} degrees only, so the "
                "camera hardly moved, or turned on the spot.",
                "Move sideways between pictures: by a tenth of the distance to what you take, at least.",
            )
        )
    side = max((max(lens.width, lens.height) for lens in quality.lenses), default=1)
    if quality.mean_error > ERROR_DOUBTFUL * side:
        found.append(
            Finding(
                "doubt",
                f"The reprojection error of {quality.mean_error:.1f} px is large: the lens model does not fit, things "
                "moved, or a rolling shutter bent the pictures.",
                "Try another --lens, or take the pictures standing still.",
            )
        )
    gap = quality.coverage
    if gap is not None and GAP[0] < gap.gap < GAP[1]:
        where = f"{printable(gap.first)} and {printable(gap.second)}"
        found.append(
            Finding(
                "note",
                f"There are no cameras in a sector of {gap.gap:.0f} degrees around the subject, between {where}.",
                f"If that side can be reached, add pictures between {where}.",
            )
        )
    return found


def _about_pictures(quality: Quality) -> list[Finding]:
    found = []
    kinds = (
        ("blurred", "Blurred", "Take the blurred pictures again, or leave them out: they blur the result."),
        ("darker", "Darker than the others", "Lock the exposure of the camera."),
        ("brighter", "Brighter than the others", "Lock the exposure of the camera."),
        ("shows", "The same as other pictures, so of no use", ""),
    )
    for start, words, advice in kinds:
        names = [printable(p.name) for p in quality.pictures if any(r.startswith(start) for r in p.remarks)]
        if names:
            found.append(Finding("note", f"{words}: {listed(names, MOST_LINES)}.", advice))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Words


def _count(number: int) -> str:
    return "1 picture" if number == 1 else f"{number} pictures"


def _named(seam: Seam) -> str:
    return listed([printable(name) for name in seam.side])


def _across(seam: Seam) -> str:
    if seam.first is None or seam.second is None:
        return "nothing connects the two sides"
    return f"{printable(seam.first)} and {printable(seam.second)}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if math.isfinite(share) else "unknown"
