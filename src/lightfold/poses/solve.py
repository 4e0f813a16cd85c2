"""Poses of footage: `solve` runs the engine in a process of its own and returns what it found.

COLMAP is never loaded here. What the engine leaves in CAPTURE/colmap is read back with this project's own readers.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CaptureError
from ..files import whole_file
from ..footage.shots import Footage
from . import child
from .config import PoseConfig

VERSION = 1
MOST_DEATHS = 5
"""How often a step that killed the engine is left out and the engine started again."""


@dataclass(frozen=True)
class SubModel:
    """One connected reconstruction. path: a folder with a COLMAP model. names: the pictures that have a pose in it."""

    path: Path
    names: tuple[str, ...]


@dataclass(frozen=True)
class Intrinsics:
    """What was found for the pictures of one camera.

    parameters: in COLMAP's order for the lens, pixels. started: what these began as. prior: whether that was known from
    a header or a calibration, and not guessed. pictures: how many of the model share them.
    """

    lens: str
    width: int
    height: int
    parameters: tuple[float, ...]
    started: tuple[float, ...]
    prior: bool
    pictures: int


@dataclass(frozen=True)
class Solution:
    """The poses of footage.

    model:     folder of the chosen COLMAP model, z up; in metres, east and north, when `metric`.
    database:  the COLMAP database with the features and matches that it was made from.
    models:    all models, the chosen one first; the others are in frames of their own.
    missing:   names of the pictures without a pose in the chosen model, in the order of the footage.
    agreement: share of the compared pairs of pictures whose verified matches agree with the model, in [0, 1].
    trusted:   whether that is enough to believe the model.
    doubtful:  (first, second, share of their matches that fit) of pairs that disagree, the worst first.
    error:     mean reprojection error in pixels.
    intrinsics: of each camera in the chosen model.
    metric:    whether one unit is a metre.
    origin:    latitude and longitude in degrees and altitude in metres of the model's origin, where metric by GPS.
    tries:     a sentence for everything that was tried.
    seconds:   of each stage, over all runs that contributed.
    notes:     whole sentences for the user.
    """

    model: Path
    database: Path
    models: tuple[SubModel, ...]
    missing: tuple[str, ...]
    agreement: float
    trusted: bool
    doubtful: tuple[tuple[str, str, float], ...]
    error: float
    intrinsics: tuple[Intrinsics, ...]
    metric: bool
    origin: tuple[float, float, float] | None
    tries: tuple[str, ...]
    seconds: dict[str, float]
    notes: tuple[str, ...]


def solve(footage: Footage, config: PoseConfig, progress: child.Progress | None = None) -> Solution:
    """Find the poses of footage, in footage.root/colmap. What an earlier run finished is not done again.

    Raises CaptureError with a sentence when the footage has no solution, the engine dies, or pycolmap is missing. An
    interrupt stops the engine; the same call goes on where it was.
    """
    if importlib.util.find_spec("pycolmap") is None:
        raise CaptureError("Finding poses needs the package pycolmap, which is not installed: pip install pycolmap")
    root = footage.root.resolve()
    folder = root / "colmap"
    if config.rig not in ("", "folders"):
        # The engine runs in another folder.
        config = replace(config, rig=str(Path(config.rig).expanduser().resolve()))
    job, log = folder / "job.json", folder / "log.txt"
    # The engine reads the footage from its file.
    replace(footage, root=root).save()
    avoid: list[str] = []
    while True:
        content = {"root": str(root), "config": asdict(config), "avoid": avoid}
        with whole_file(job) as partial:
            partial.write_text(json.dumps(content), encoding="utf-8")
        ending = child.run([str(job)], log, config.silence, progress)
        job.unlink(missing_ok=True)
        if ending.finished:
            return load_solution(footage)
        if ending.error:
            raise CaptureError(ending.error)
        # A mapper that aborts is one try that failed, when there are others.
        if ending.stage in ("mapping", "refinement") and ending.step not in ("", *avoid) and len(avoid) < MOST_DEATHS:
            avoid.append(ending.step)
            config = replace(config, from_stage="")
            continue
        raise CaptureError(
            f"The pose engine died in the stage '{ending.stage}' because {ending.reason}. Its log is {log}."
        )


def load_solution(footage: Footage) -> Solution:
    """What `solve` found, read back from the capture. CaptureError when there is none or it is damaged."""
    folder = footage.root.resolve() / "colmap"
    path = folder / "solution.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}")
        return _solution(footage, folder, content)
    except OSError as error:
        raise CaptureError(f"{footage.root} has no poses yet: {path} cannot be read ({error.strerror}).") from error
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise CaptureError(f"{path} is damaged ({error}). Delete it, and the poses are found again.") from error


def _solution(footage: Footage, folder: Path, content: dict[str, Any]) -> Solution:
    models = tuple(
        SubModel(_inside(folder, entry["folder"]), tuple(str(name) for name in entry["names"]))
        for entry in content["models"]
    )
    chosen = set(models[0].names)
    return Solution(
        model=models[0].path,
        database=_inside(folder, content["database"]),
        models=models,
        missing=tuple(shot.name for shot in footage.shots if shot.name not in chosen),
        agreement=float(content["agreement"]),
        trusted=bool(content["trusted"]),
        doubtful=tuple((str(a), str(b), float(share)) for a, b, share in content["doubtful"]),
        error=float(content["error"]),
        intrinsics=tuple(
            Intrinsics(
                lens=str(entry["lens"]),
                width=int(entry["width"]),
                height=int(entry["height"]),
                parameters=tuple(float(value) for value in entry["parameters"]),
                started=tuple(float(value) for value in entry["started"]),
                prior=bool(entry["prior"]),
                pictures=int(entry["pictures"]),
            )
            for entry in content["cameras"]
        ),
        metric=bool(content["metric"]),
        origin=None if content["origin"] is None else tuple(float(v) for v in content["origin"][:3]),  # type: ignore[arg-type]
        tries=tuple(str(text) for text in content["tries"]),
        seconds={str(stage): float(value) for stage, value in content["seconds"].items()},
        notes=tuple(str(text) for text in content["notes"]),
    )


def _inside(folder: Path, name: str) -> Path:
    """A path below the folder; ValueError for one that leads out of it."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts:
        raise ValueError(f"the path {name!r} leads out of the folder")
    return folder / name
