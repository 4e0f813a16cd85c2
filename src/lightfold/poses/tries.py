"""The engine's mapping stage: try after try until every picture is in one believable model, or nothing more pays.

Each try leaves its models in CAPTURE/colmap/tries/NAME and is not run again while the matches stay the same. What
counts is not what a mapper says of its model but what the matches say (`agreement`), and whether its lenses can exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pycolmap

from ..errors import CaptureError
from . import compare, mapping, pairs
from .agreement import Agreement
from .job import Job, Work, fingerprint
from .job import work as database_for

GLOBAL_FROM = 250
"""Pictures from which on the global mapper goes first: the time of the incremental one grows with the square."""
ALL_PAIRS_RETRY = 400
"""Pictures up to which a retry compares all with all."""
SMALL_SET, LEFT_OVER = 30, 0.05
"""Richer features cost ten times as much: they are tried for a single picture in sets up to this size, and for this
share of a larger one."""
NEEDED = 3
"""Pictures that a model needs."""
RIGHT_AFTER, TORN = 2, 0.2
"""In ordered footage, pictures this close in time whose matches fit the model by less than this share tear it."""
FEW_FEATURES = 200
"""A picture with fewer shows little detail."""

Mapper = Callable[[mapping.Task, Path], list[Path]]


@dataclass(frozen=True)
class Candidate:
    """The best model of a try.

    folder, names: the model and its pictures. others: further models of the same try, the largest first. lens: why its
    lenses cannot be, "" when they can. torn: pictures taken right after each other that match, and that the model puts
    where they cannot: it was folded, because something looks the same from several sides.
    """

    work: Work
    mapper: str
    folder: Path
    names: tuple[str, ...]
    agreement: Agreement
    lens: str = ""
    torn: tuple[tuple[str, str], ...] = ()
    others: tuple[Path, ...] = ()

    @property
    def believable(self) -> bool:
        """Whether matches, lenses and the order of taking speak for it."""
        return self.agreement.trusted and not self.lens and not self.torn

    @property
    def rank(self) -> tuple[bool, int, float]:
        """Larger is better: believable first, then complete, then in agreement with the matches."""
        return self.believable, len(self.names), round(self.agreement.share, 2)


@dataclass
class Search:
    """What has been found so far, and a sentence for everything that was tried."""

    job: Job
    best: Candidate | None
    told: list[str]

    @property
    def left(self) -> set[str]:
        """Pictures without a believable pose."""
        everything = {shot.name for shot in self.job.footage.shots}
        return everything - set(self.best.names) if self.best is not None and self.best.believable else everything


def search(job: Job, work: Work, chosen: pairs.Pairs) -> tuple[Candidate, list[str]]:
    """The best model there is, and the sentences. chosen: the pairs that were compared.

    Raises CaptureError when no try gives a model.
    """
    found = Search(job, None, [])
    for title, attempt in _ladder(found, work, chosen):
        candidate = attempt()
        found.told.append(f"{title}: {_in_words(job, candidate)}.")
        if candidate is not None and (found.best is None or candidate.rank > found.best.rank):
            found.best = candidate
        if not found.left:
            break
    if found.best is None:
        raise CaptureError(_why_no_model(job, work))
    return found.best, found.told


def _in_words(job: Job, candidate: Candidate | None) -> str:
    if candidate is None:
        return "no model"
    asked = candidate.agreement
    words = f"{len(candidate.names)} of {job.count} pictures in one model"
    if asked.pairs:
        words += f", {asked.share:.0%} of {asked.pairs} pairs agree with it"
    if asked.seam < 0.95:
        words += f", {asked.seam:.0%} of the matches at its weakest seam"
    if candidate.torn:
        words += f", but it jumps between {' and '.join(candidate.torn[0])}"
    return words + (f", but its lens {candidate.lens}" if candidate.lens else "")


# ---------------------------------------------------------------------------------------------------------------------
# What to try, in order. The next try is asked for only when pictures are left, so each looks at what was found before.


def _ladder(found: Search, work: Work, chosen: pairs.Pairs) -> Iterator[tuple[str, Callable[[], Candidate | None]]]:
    job, config = found.job, found.job.config
    first = config.mapper if config.mapper != "auto" else "global" if job.count >= GLOBAL_FROM else "incremental"
    second = "incremental" if first == "global" else "global"
    yield f"{first.capitalize()} mapping", partial(_map, job, work, first)
    if not config.retries:
        return
    if found.best is not None and found.best.lens:
        yield "A simpler lens", partial(_map_with_simpler_lens, job, work)
    if job.footage.ordered and found.best is not None and not found.best.believable:
        yield "Neighbours in time only", partial(_map_near, job, work)
    # A model that is wrong is not mended by more of the same.
    swapped = config.mapper == "auto" and (found.best is None or not found.best.believable)
    if swapped and _reachable(work, found.left):
        yield f"{second.capitalize()} mapping", partial(_map, job, work, second)
    yield from _retries(found, work, chosen)
    if config.mapper == "auto" and not swapped and _reachable(work, found.left):
        yield f"{second.capitalize()} mapping", partial(_map, job, work, second)
    small = job.count <= SMALL_SET or len(found.left) > LEFT_OVER * job.count
    if small and not job.config.rig:
        rich = database_for(job, "rich", config.richer())
        yield "Richer features", partial(_map_richly, job, rich, chosen)
        yield from _retries(found, rich, chosen)
        if config.mapper == "auto" and _reachable(rich, found.left):
            # Where no single pair is strong enough to begin with, all of them together may be.
            yield "Global mapping of richer features", partial(_map, job, rich, "global")


def _retries(found: Search, work: Work, chosen: pairs.Pairs) -> Iterator[tuple[str, Callable[[], Candidate | None]]]:
    """More pairs, then lower thresholds."""
    job = found.job
    everything = pairs.exhaustive(job.count)
    if job.config.pairs == "auto" and len(chosen) < len(everything):
        small = job.count <= ALL_PAIRS_RETRY
        more = everything if small else compare.more_pairs(job, work, found.left)
        mapper = found.best.mapper if found.best is not None else "incremental"
        yield ("All pairs compared" if small else "More pairs compared"), partial(_map_more, job, work, more, mapper)
    if _reachable(work, found.left):
        yield "Lower thresholds", lambda: _map_relaxed(job, work, found.best)


def _reachable(work: Work, left: set[str]) -> bool:
    """Whether a picture that was left over has verified matches at all; without them no mapper can place it."""
    partners = mapping.read_matches(work.database).partners()
    return any(partners.get(name, 0) > 0 for name in left)


def _map(job: Job, work: Work, mapper: str, variant: str = "") -> Candidate | None:
    run: Mapper = mapping.map_globally if mapper == "global" else mapping.map_incrementally
    return _attempt(job, work, mapper, f"{work.name} {mapper}{variant}", run)


def _map_more(job: Job, work: Work, more: pairs.Pairs, mapper: str) -> Candidate | None:
    compare.compare(job, work, more, "more")
    return _map(job, work, mapper, " more pairs")


def _map_richly(job: Job, rich: Work, chosen: pairs.Pairs) -> Candidate | None:
    compare.extract(job, rich)
    compare.compare(job, rich, chosen, "chosen")
    return _map(job, rich, "incremental")


def _map_with_simpler_lens(job: Job, work: Work) -> Candidate | None:
    def run(task: mapping.Task, output: Path) -> list[Path]:
        with mapping.scratch_copy(task.database, output) as copy:
            mapping.simplify_lenses(copy, task.fixed)
            return mapping.map_incrementally(replace(task, database=copy), output)

    return _attempt(job, work, "incremental", f"{work.name} simpler lens", run)


def _map_near(job: Job, work: Work) -> Candidate | None:
    """The incremental mapper on the matches of pictures taken close in time, in a database of their own.

    What looks the same from several sides (the label of a can) gives many strong matches between places that are far
    apart; pictures that were taken within moments of each other are not fooled.
    """
    near = replace(work, name="near", database=job.folder / "near.db")
    step = "matches near"
    inputs = fingerprint(work.inputs, mapping.read_matches(work.database).links(), job.config.overlap)
    if not job.record.finished(step, inputs) or not near.database.exists():
        with job.record.working(step, "matches", inputs):
            mapping.copy_near(work.database, near.database, job.config.overlap)
    return _map(job, near, "incremental")


def _map_relaxed(job: Job, work: Work, best: Candidate | None) -> Candidate | None:
    """Lower thresholds: go on from the best model where it has most pictures, else begin with another pair."""
    if best is not None and best.believable and best.work == work and 2 * len(best.names) >= job.count:
        go_on = partial(mapping.map_incrementally, relaxed=True, continued=best.folder)
        return _attempt(job, work, "incremental", f"{work.name} continued", go_on)
    begin = partial(mapping.map_incrementally, relaxed=True)
    return _attempt(job, work, "incremental", f"{work.name} relaxed", begin)


# ---------------------------------------------------------------------------------------------------------------------
# One try


def _attempt(job: Job, work: Work, mapper: str, name: str, run: Mapper) -> Candidate | None:
    """Run a mapper, or take what it left in an earlier run, and judge the result."""
    step = f"mapping {name}"
    matches = mapping.read_matches(work.database)
    if step in job.avoid or not matches.pairs:
        return None
    output = job.folder / "tries" / name.replace(" ", "-")
    inputs = fingerprint(work.inputs, matches.links(), job.config.seed, job.config.refine_known)
    if not job.record.finished(step, inputs):
        job.say({"step": step})
        job.progress("mapping", 0, job.count)
        with job.record.working(step, "mapping", inputs):
            task = task_for(job, work)
            mapping.join(task, run(task, output), output)
    return _candidate(job, work, mapper, output, matches)


def _candidate(job: Job, work: Work, mapper: str, output: Path, matches: mapping.Matches) -> Candidate | None:
    """The best model of a mapper's output, without pictures that stand in the wrong place; None without a model."""
    folders, fixed = mapping.models_in(output), task_for(job, work).fixed
    candidates = []
    for folder in folders:
        model = mapping.read(folder)
        asked = mapping.judge(model, matches)
        # When so many disagree that they could be right, it is the model that is in doubt.
        if 0 < len(asked.outliers) <= 0.2 * model.num_reg_images():
            mapping.drop(model, asked.outliers)
            mapping.write(model, folder)
            asked = mapping.judge(model, matches)
        if model.num_reg_images() < NEEDED:
            continue
        lens = " and ".join(sorted(set(mapping.implausible(model, fixed).values())))
        torn = _torn(job, asked)
        candidates.append(Candidate(work, mapper, folder, tuple(mapping.names_in(model)), asked, lens, torn))
    if not candidates:
        return None
    best = max(candidates, key=lambda candidate: candidate.rank)
    return replace(best, others=tuple(folder for folder in folders if folder != best.folder))


def _torn(job: Job, asked: Agreement) -> tuple[tuple[str, str], ...]:
    """Pairs taken right after each other, hardly any of whose many matches fit the model."""
    if not job.footage.ordered:
        return ()
    order = {shot.name: i for i, shot in enumerate(job.footage.shots)}
    return tuple(
        (first, second)
        for first, second, fits in asked.doubtful
        if fits < TORN and abs(order[first] - order[second]) <= RIGHT_AFTER
    )


def task_for(job: Job, work: Work) -> mapping.Task:
    """What mappers are given: known intrinsics stay, unless they are to be refined; a sphere has none."""
    known = {shot.name for shot in job.footage.shots if shot.parameters and not job.config.refine_known}
    with pycolmap.Database.open(str(work.database)) as opened:
        fixed = {camera.camera_id for camera in opened.read_all_cameras() if camera.is_spherical()}
        fixed |= {image.camera_id for image in opened.read_all_images() if image.name in known}
    return mapping.Task(
        database=work.database,
        images=job.footage.root / "images",
        config=job.config,
        fixed=frozenset(fixed),
        stated=stated_cameras(job, work),
        progress=lambda done: job.progress("mapping", min(done, job.count), job.count),
        fixed_rigs=work.fixed_rigs,
    )


def stated_cameras(job: Job, work: Work) -> frozenset[int]:
    """Ids of the cameras whose focal length a header or a calibration states."""
    stated = {shot.name for shot in job.footage.shots if shot.focal or shot.parameters}
    with pycolmap.Database.open(str(work.database)) as opened:
        return frozenset(image.camera_id for image in opened.read_all_images() if image.name in stated)


def _why_no_model(job: Job, work: Work) -> str:
    """One sentence on why, and one on what to do."""
    matches, where = mapping.read_matches(work.database), job.footage.root
    poor = sum(count < FEW_FEATURES for count in compare.feature_counts(work).values())
    if not matches.pairs and 2 * poor > job.count:
        return (
            f"No two pictures of {where} could be matched, and {poor} of {job.count} show little detail: they are "
            "blurred, dark or blank. Take sharper pictures of something with texture."
        )
    if not matches.pairs:
        return (
            f"No two of the {job.count} pictures of {where} show the same thing. Take pictures that overlap by two "
            "thirds with their neighbours."
        )
    if matches.planar > 0.7 * len(matches.pairs):
        return (
            f"The pictures of {where} match, but were taken from one spot (or show nothing but one flat thing, or are "
            "copies of each other), so depth cannot be told. Move the camera sideways between pictures."
        )
    index = {shot.name: i for i, shot in enumerate(job.footage.shots)}
    linked = np.array([[index[first], index[second]] for first, second in matches.pairs], dtype=np.int64)
    largest = len(pairs.components(job.count, linked)[0])
    return (
        f"No model could be built from the {job.count} pictures of {where}: at most {largest} of them are connected by "
        "matches, and these are too few or too weak. Take more pictures, closer together, from places that differ."
    )
