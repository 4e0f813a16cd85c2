"""The engine's last stages: intrinsics refined, the model turned upright and to metres, everything written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import torch

from ..files import whole_file
from ..geometry import Similarity
from . import align, mapping, rigs
from .agreement import Agreement
from .job import Job, Work, fingerprint, stamp
from .tries import Candidate, stated_cameras, task_for

Origin = tuple[float, float, float]
VERSION = 1
"""Of solution.json, which `solve.load_solution` reads."""


@dataclass(frozen=True)
class Finished:
    """A refined model, what the matches say about it, and sentences for the user."""

    folder: Path
    agreement: Agreement
    notes: tuple[str, ...]


def refine(job: Job, best: Candidate) -> Finished:
    """Adjust everything once more, with as free a lens as the model can determine, and check what comes out."""
    folder = job.folder / "refined"
    matches = mapping.read_matches(best.work.database)
    inputs = fingerprint(
        str(best.folder), stamp(best.folder / "images.bin"), job.config.refine_principal_point, job.config.refine_known
    )
    notes: tuple[str, ...] = ()
    job.progress("refinement", 0, 1)
    if not job.record.finished("refinement", inputs) or not (folder / "images.bin").exists():
        job.say({"step": "refinement"})
        with job.record.working("refinement", "refinement", inputs):
            model, notes = _refined(job, best, matches)
            mapping.write(model, folder)
    job.progress("refinement", 1, 1)
    agreement = mapping.judge(mapping.read(folder), matches)
    if not agreement.trusted:
        notes += (
            f"{agreement.share:.0%} of the compared pairs agree with the model, and {agreement.seam:.0%} of the "
            "matches across its weakest seam: it is likely to be wrong.",
        )
    return Finished(folder, agreement, notes)


def _refined(job: Job, best: Candidate, matches: mapping.Matches) -> tuple[pycolmap.Reconstruction, tuple[str, ...]]:
    """From the freest lens to the model as it was mapped: the first that can be and that the matches accept."""
    mapped = mapping.read(best.folder)
    if "refinement" in job.avoid:
        return mapped, ()
    task = task_for(job, best.work)
    strong = mapping.strong_cameras(mapped) - task.fixed if job.config.refine_principal_point else set()
    wrong: dict[int, str] = {}
    choices: list[tuple[bool, set[int]]] = [(False, strong), (False, set())] if strong else [(False, set())]
    if strong and job.config.lens == "auto":
        choices.insert(0, (True, strong))
    for freer_lens, free in choices:
        model = mapping.read(best.folder)
        if freer_lens:
            mapping.free_lenses(model, free)
        if mapping.adjust(model, task, free) != free:
            continue  # The pictures do not determine so much.
        wrong = mapping.implausible(model, task.fixed)
        if not wrong and mapping.judge(model, matches).share >= best.agreement.share - 0.02:
            return model, ()
    if not wrong:
        return mapped, ()
    return mapped, (
        f"The lens that was found {' and '.join(sorted(set(wrong.values())))}, so the poses may be bent. Try another "
        "--lens, or add pictures from other distances, some of them with the camera held sideways.",
    )


def write(job: Job, best: Candidate, finished: Finished, told: list[str]) -> None:
    """sparse/0 is the chosen model, sparse/1 ... the others of its try; solution.json says the rest."""
    sparse = job.folder / "sparse"
    inputs = fingerprint(
        str(best.work.database),
        stamp(finished.folder / "images.bin"),
        [(str(other), stamp(other / "images.bin")) for other in best.others],
        [(shot.name, shot.gps) for shot in job.footage.shots],
        told,
    )
    if job.record.finished("writing", inputs) and (job.folder / "solution.json").exists():
        return
    with job.record.working("writing", "writing", inputs):
        job.progress("writing", 0, len(best.names))
        model = mapping.read(finished.folder)
        metric, origin, notes = _place(job, model, best.work)
        notes += rigs.in_words(model, job.footage, metric, best.work.fixed_rigs)
        mapping.colour(model, job.footage, lambda done: job.progress("writing", done, len(best.names)))
        folders = [mapping.write(model, sparse / "0")]
        for other in best.others:
            rest = mapping.read(other)
            if set(mapping.names_in(rest)) - set(best.names):
                folders.append(mapping.write(rest, sparse / str(len(folders))))
        for number in range(len(folders), 1000):
            if not mapping.remove(sparse / str(number)):
                break
    models = [mapping.read(folder) for folder in folders]
    solution = {
        "version": VERSION,
        "database": best.work.database.name,
        "models": [
            {"folder": folder.relative_to(job.folder).as_posix(), "names": mapping.names_in(model)}
            for folder, model in zip(folders, models, strict=True)
        ],
        "agreement": finished.agreement.share,
        "trusted": finished.agreement.trusted,
        "doubtful": [list(row) for row in finished.agreement.doubtful[:100]],
        "error": models[0].compute_mean_reprojection_error(),
        "cameras": _cameras(models[0], best.work.database, stated_cameras(job, best.work)),
        "metric": metric,
        "origin": origin,
        "tries": told,
        "notes": [*finished.notes, *notes],
        "seconds": job.record.seconds(),
    }
    with whole_file(job.folder / "solution.json") as partial:
        partial.write_text(
            json.dumps(solution, indent=1, ensure_ascii=False), encoding="utf-8", errors="surrogateescape"
        )


def _place(job: Job, model: pycolmap.Reconstruction, work: Work) -> tuple[bool, Origin | None, tuple[str, ...]]:
    """Turn the model upright; to metres where a rig's offsets are stated, else to metres east, north and up where GPS
    allows. Returns whether it is in metres, the GPS origin then, and notes."""
    images = {model.images[i].name: model.images[i] for i in model.reg_image_ids()}
    poses = np.stack([np.asarray(image.cam_from_world().matrix()) for image in images.values()])
    up, certain = align.up_from_cameras(torch.from_numpy(poses))
    scale = rigs.stated_scale(model, work)
    mapping.place(model, Similarity(scale or 1.0, align.rotation_to_z(up), torch.zeros(3)))
    if scale is not None:
        return True, None, ()
    fixes = {shot.name: shot.gps for shot in job.footage.shots if shot.gps is not None and shot.name in images}
    if len(fixes) < 3:
        return False, None, ()
    metres, origin = align.east_north_up(list(fixes.values()))
    centres = np.stack([np.asarray(images[name].projection_center()) for name in fixes])
    fit = align.metres_from_gps(torch.from_numpy(centres), metres, certain, job.config.seed)
    if fit is None:
        return False, None, ("The GPS positions are too few, too close together or too far off to give the scale.",)
    mapping.place(model, fit)
    return True, origin, ()


def _cameras(model: pycolmap.Reconstruction, database: Path, stated: frozenset[int]) -> list[dict[str, Any]]:
    """Intrinsics found, beside those they started from, both for the lens that was found."""
    with pycolmap.Database.open(str(database)) as opened:
        start = {camera.camera_id: camera for camera in opened.read_all_cameras()}
    pictures: dict[int, int] = {}
    for i in model.reg_image_ids():
        pictures[model.images[i].camera_id] = pictures.get(model.images[i].camera_id, 0) + 1
    rows = []
    for camera_id, count in sorted(pictures.items()):
        camera, began = model.cameras[camera_id], start[camera_id]
        started = began.params
        if began.model_name != camera.model_name:
            focal = began.mean_focal_length()
            started = pycolmap.Camera.create_from_model_name(
                camera_id, camera.model_name, focal, camera.width, camera.height
            ).params
        rows.append(
            {
                "lens": camera.model_name,
                "width": camera.width,
                "height": camera.height,
                "parameters": [float(value) for value in camera.params],
                "started": [float(value) for value in started],
                "prior": camera_id in stated,
                "pictures": count,
            }
        )
    return rows
