"""The engine's first stages: features of all pictures, the choice of pairs, their verified matches."""

from __future__ import annotations

import numpy as np
import pycolmap
from numpy.typing import NDArray

from ..errors import CaptureError
from ..files import whole_file
from . import align, features, mapping, pairs
from .job import Job, Work, fingerprint

BLOCK = 400
"""Pairs that are matched before the next word of progress."""
FEATURELESS = 50
"""When no picture has as many features, there is nothing to recognise."""


def extract(job: Job, work: Work) -> None:
    """Features of all pictures, going on where an earlier run was stopped. Raises CaptureError when there are none."""
    name = f"features {work.name}"
    if job.record.finished(name, work.inputs) and work.database.exists():
        _check_images(job, work)
        job.progress("features", job.count, job.count)
        return
    if not job.record.begun(name, work.inputs):
        for suffix in ("", "-wal", "-shm", "-journal"):
            work.database.with_name(work.database.name + suffix).unlink(missing_ok=True)
    with job.record.working(name, "features", work.inputs):
        if job.footage.kind == "panoramas":
            from . import spherical

            spherical.extract(job.footage, work.database, work.config, job.progress)
        else:
            features.extract(job.footage, work.database, work.config, job.progress)
    _check_images(job, work)
    most = max(feature_counts(work).values())
    if most < FEATURELESS:
        raise CaptureError(
            f"The pictures of {job.footage.root} have next to no detail to recognise (at most {most} features in one): "
            "they are blank, out of focus, blurred by motion, or masked. Take sharp pictures of something with texture."
        )


def feature_counts(work: Work) -> dict[str, int]:
    """Keypoints by name of picture."""
    with pycolmap.Database.open(str(work.database)) as opened:
        return {i.name: opened.num_keypoints_for_image(i.image_id) for i in opened.read_all_images()}


def choose_pairs(job: Job, work: Work) -> pairs.Pairs:
    """The pairs to begin with, by the configuration and by what is known of the pictures. Kept in pairs.txt, a line of
    two image ids each."""
    config, path = job.config, job.folder / "pairs.txt"
    choice = (config.pairs, config.overlap, config.neighbours, config.seed, job.footage.ordered)
    inputs = fingerprint(work.inputs, choice, [shot.gps for shot in job.footage.shots])
    if job.record.finished("pairs", inputs) and path.exists():
        return np.loadtxt(path, dtype=np.int64, ndmin=2).reshape(-1, 2) - 1
    with job.record.working("pairs", "pairs", inputs):
        job.progress("pairs", 0, 1)
        chosen = pairs_by(job, work)
        with whole_file(path) as partial:
            np.savetxt(partial, chosen + 1, fmt="%d")
        job.progress("pairs", 1, 1)
    return chosen


def pairs_by(job: Job, work: Work) -> pairs.Pairs:
    """Pairs as the configuration wants them. Raises CaptureError for spatial pairs without GPS."""
    ordered, config, kind = job.footage.ordered, job.config, job.config.pairs
    located = [i for i, shot in enumerate(job.footage.shots) if shot.gps is not None]
    if kind == "auto":
        if job.count <= (pairs.ALL_PAIRS_ORDERED if ordered else pairs.ALL_PAIRS):
            kind = "exhaustive"
        elif ordered:
            kind = "sequential"
        else:
            kind = "spatial" if len(located) >= 0.8 * job.count else "retrieval"
    if kind == "exhaustive":
        return pairs.exhaustive(job.count)
    if kind == "sequential":
        # Pictures that look alike and are far apart in time are where a walk came back to where it had been.
        loops = pairs.retrieval(likeness(job, work), 5, apart=config.overlap)
        return pairs.union([pairs.sequential(job.count, config.overlap), loops])
    if kind == "retrieval":
        return pairs.retrieval(likeness(job, work), config.neighbours)
    if not located:
        raise CaptureError(f"No picture of {job.footage.root} has a GPS position; choose other --pairs.")
    metres = np.full((job.count, 3), np.nan)
    metres[located] = align.east_north_up([shot.gps for shot in job.footage.shots if shot.gps is not None])[0]
    return pairs.union([pairs.spatial(metres, config.neighbours), pairs.retrieval(likeness(job, work), 5)])


def more_pairs(job: Job, work: Work, left: set[str]) -> pairs.Pairs:
    """For a large set some of whose pictures were left over: three times the neighbours, five times for those."""
    alike = likeness(job, work)
    wide = pairs.retrieval(alike, 5 * job.config.neighbours)
    lost = np.array([shot.name in left for shot in job.footage.shots])
    return pairs.union([pairs.retrieval(alike, 3 * job.config.neighbours), wide[lost[wide].any(axis=1)]])


def likeness(job: Job, work: Work) -> NDArray[np.float32]:
    """[N, N] how much the pictures look alike."""
    with pycolmap.Database.open(str(work.database)) as opened:
        found = [opened.read_descriptors(i + 1).data for i in range(job.count)]
    return pairs.similarity_of([np.asarray(d, dtype=np.uint8).reshape(-1, 128) for d in found], job.config.seed)


def compare(job: Job, work: Work, chosen: pairs.Pairs, name: str) -> None:
    """Match and verify pairs, block by block; what is in the database already is not done again."""
    title = f"matches {work.name} {name}"
    inputs = fingerprint(work.inputs, chosen.tolist(), job.config.seed)
    if job.record.finished(title, inputs):
        job.progress("matches", len(chosen), len(chosen))
        return
    if name == "chosen" and not job.record.begun(title, inputs):
        # The choice of pairs is another than before; matches beyond it would make the result depend on history.
        with pycolmap.Database.open(str(work.database)) as opened:
            opened.clear_matches()
            opened.clear_two_view_geometries()
    with job.record.working(title, "matches", inputs):
        block_file = job.folder / "block.txt"
        job.progress("matches", 0, len(chosen))
        for start in range(0, len(chosen), BLOCK):
            mapping.match(work.database, chosen[start : start + BLOCK] + 1, block_file, job.config)
            job.progress("matches", min(start + BLOCK, len(chosen)), len(chosen))
        block_file.unlink(missing_ok=True)


def _check_images(job: Job, work: Work) -> None:
    """Image ids follow the shots; and names are theirs, also after a kill while `mapping.match` had replaced them."""
    with pycolmap.Database.open(str(work.database)) as opened:
        images = {image.image_id: image for image in opened.read_all_images()}
        assert sorted(images) == list(range(1, job.count + 1)), "image_id must be 1 + index of the shot"
        for number, shot in enumerate(job.footage.shots, start=1):
            if images[number].name != shot.name:
                images[number].name = shot.name
                opened.update_image(images[number])
