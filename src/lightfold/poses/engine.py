"""The process that runs COLMAP: `python -m lightfold.poses.engine JOB.json`. See `child` for what it prints.

The stages, and what each leaves in CAPTURE/colmap for the next run:

    features    database.db      cameras, images, keypoints, descriptors; picture by picture      (compare.py)
    pairs       pairs.txt        which pictures to compare
    matches     database.db      matches and their verification; block of pairs by block
    mapping     tries/NAME/      models of every mapper that was tried                            (tries.py)
    refinement  refined/         the best model, its intrinsics refined                           (finish.py)
    writing     sparse/0 1 ...   the chosen model, upright, in metres where GPS allows, and the others; solution.json

stages.json remembers what each stage was made from. A stage with the same inputs is not done again; one that was cut
short goes on where it was. A step that killed the process is named in the job by the parent and left out.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pycolmap

from ..errors import CaptureError, LightfoldError
from ..footage.shots import load_footage
from . import compare, finish, mapping, rigs, tries
from .config import PoseConfig
from .job import Job, Record, Work, work
from .pairs import Pairs

TOO_FEW = (
    "{root} holds {number}. Poses need at least 3 pictures of one place from different spots; 30 to 100 make a good "
    "capture."
)


def main(arguments: list[str]) -> int:
    """Run the job in a file and return the exit code: 0 done, 3 a sentence for the user. Other errors are raised, for
    the log, and the parent finds words for them."""
    say = _open_channel()
    try:
        with open(arguments[0], encoding="utf-8") as file:
            content = json.load(file)
        footage = load_footage(Path(content["root"]))
        config = PoseConfig(**content["config"])
        config = replace(config, threads=config.threads or _usable_threads())
        folder = footage.root / "colmap"
        run(Job(footage, config, folder, Record(folder / "stages.json"), frozenset(content["avoid"]), say))
        say({"finished": True})
        return 0
    except LightfoldError as error:
        say({"error": str(error)})
    except MemoryError:
        say({"error": "Memory ran out. Close other programs, or use less: --max-side 800 --max-features 2048."})
    except OSError as error:
        if error.errno == errno.ENOSPC:
            say({"error": "The disk is full. Free some space and run the same command again; finished work is kept."})
        else:
            say({"error": f"{error.filename or 'A file'} could not be used: {error.strerror or error}."})
    except AttributeError as error:
        # Options and functions of pycolmap change their names between versions.
        traceback.print_exc()
        say({"error": f"pycolmap {pycolmap.__version__} is not a version that fits ({error}). Install pycolmap 4.2.1."})
    return 3


def run(job: Job) -> None:
    """All stages. Raises CaptureError when there is no solution."""
    if job.count < tries.NEEDED:
        number = {0: "no picture", 1: "one picture"}.get(job.count, f"{job.count} pictures")
        raise CaptureError(TOO_FEW.format(root=job.footage.root, number=number))
    if job.config.from_stage:
        job.record.forget_from(job.config.from_stage)
    bolted = rigs.read_rigs(job.config.rig, job.footage)
    job = replace(job, footage=rigs.with_cameras(job.footage, bolted))
    plain = work(job, "plain", job.config)
    compare.extract(job, plain)
    chosen = compare.choose_pairs(job, plain)
    compare.compare(job, plain, chosen, "chosen")
    best, told = _search_as_rigs(job, plain, chosen, bolted) if bolted else tries.search(job, plain, chosen)
    finish.write(job, best, finish.refine(job, best), told)


def _search_as_rigs(
    job: Job, plain: Work, chosen: Pairs, given: tuple[rigs.Rig, ...]
) -> tuple[tries.Candidate, list[str]]:
    """The best model of cameras that are bolted together; first without, where their offsets are to be estimated."""
    if all(rig.stated for rig in given):
        return tries.search(job, rigs.bolted(job, plain, given, stated=True), chosen)
    loose, told = tries.search(job, plain, chosen)
    told = [f"Each picture on its own: {text}" for text in told]
    try:
        model = mapping.read(loose.folder)
        estimated = tuple(rigs.estimated(rig, job.footage, model) for rig in given)
        best, more = tries.search(job, rigs.bolted(job, loose.work, estimated, stated=False), chosen)
    except CaptureError as error:
        return loose, [*told, f"The rig was not used. {error}"]
    told += [f"As a rig: {text}" for text in more]
    if loose.believable and not best.believable:
        return loose, [*told, "The rig was not used, because the pictures do not fit constant offsets."]
    return best, told


def _open_channel() -> Callable[[dict[str, Any]], None]:
    """Take standard output for our words alone, and end when the parent does. Returns what sends a message."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    # Whatever a library prints goes to the log.
    os.dup2(2, 1)
    lock = threading.Lock()

    def say(message: dict[str, Any]) -> None:
        with lock, suppress(BrokenPipeError):
            channel.write(json.dumps(message) + "\n")

    def watch() -> None:
        with suppress(OSError):
            while os.read(0, 1024):
                pass
        os._exit(4)

    threading.Thread(target=watch, daemon=True).start()
    return say


def _usable_threads() -> int:
    """One per core that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
