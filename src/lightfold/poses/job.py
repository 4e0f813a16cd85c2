"""What the engine's stages share: the footage, the options, the folder, and a record of what was done from what."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import whole_file
from ..footage.shots import Footage
from .config import STAGES, PoseConfig


class Record:
    """stages.json: for each piece of work its stage, the fingerprint of its inputs, whether it is finished, seconds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        # A damaged record only means that the work is done again.
        with suppress(OSError, ValueError, AttributeError):
            loaded = json.loads(path.read_text(encoding="utf-8"))
            self.entries = {str(work): entry for work, entry in loaded.items() if isinstance(entry, dict)}

    def begun(self, work: str, inputs: str) -> bool:
        """Whether this work was begun with these inputs, and may be gone on with."""
        return self.entries.get(work, {}).get("inputs") == inputs

    def finished(self, work: str, inputs: str) -> bool:
        """Whether this work was finished with these inputs."""
        return self.begun(work, inputs) and bool(self.entries[work].get("finished"))

    @contextmanager
    def working(self, work: str, stage: str, inputs: str) -> Iterator[None]:
        """Record that work begins, and, when the block ends well, that it is finished. Seconds add up over runs."""
        before = float(self.entries[work].get("seconds", 0.0)) if self.begun(work, inputs) else 0.0
        self.entries[work] = {"stage": stage, "inputs": inputs, "finished": False, "seconds": before}
        self._save()
        start = time.perf_counter()
        yield
        seconds = round(before + time.perf_counter() - start, 2)
        self.entries[work] = {"stage": stage, "inputs": inputs, "finished": True, "seconds": seconds}
        self._save()

    def forget_from(self, stage: str) -> None:
        """Forget a stage and all after it."""
        later = STAGES[STAGES.index(stage) :]
        self.entries = {work: entry for work, entry in self.entries.items() if entry.get("stage") not in later}
        self._save()

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage, over all its tries."""
        return {
            stage: round(sum(e.get("seconds", 0.0) for e in self.entries.values() if e.get("stage") == stage), 1)
            for stage in STAGES
        }

    def _save(self) -> None:
        with whole_file(self.path) as partial:
            partial.write_text(json.dumps(self.entries, indent=1), encoding="utf-8")


@dataclass(frozen=True)
class Job:
    """One solution of one footage. avoid: steps that killed the process before. say: a message to the parent."""

    footage: Footage
    config: PoseConfig
    folder: Path
    record: Record
    avoid: frozenset[str]
    say: Callable[[dict[str, Any]], None]

    @property
    def count(self) -> int:
        """How many pictures there are."""
        return len(self.footage.shots)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Tell how far a stage is."""
        self.say({"stage": stage, "done": done, "total": total})


@dataclass(frozen=True)
class Work:
    """A database of features and matches. name: "plain", "rich", "near" or "rig". inputs: fingerprint of what it is
    made from. fixed_rigs: ids of the rigs in it whose offsets were stated, and stay."""

    name: str
    database: Path
    config: PoseConfig
    inputs: str
    fixed_rigs: frozenset[int] = frozenset()


def work(job: Job, name: str, config: PoseConfig) -> Work:
    """The database for features by this configuration."""
    shots = [
        (
            (shot.name, shot.width, shot.height, shot.camera, shot.lens, shot.focal, shot.parameters),
            stamp(job.footage.image(shot)),
            stamp(job.footage.mask(shot)),
        )
        for shot in job.footage.shots
    ]
    settings = (config.lens, config.cameras, config.max_side, config.max_features, config.first_octave)
    file = job.folder / ("database.db" if name == "plain" else f"{name}.db")
    return Work(name, file, config, fingerprint(job.footage.kind, shots, settings))


def fingerprint(*parts: Any) -> str:
    """A short name for anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8")).hexdigest()[:16]


def stamp(path: Path | None) -> tuple[int, int] | None:
    """Size and time of a file, which change when it does; None for none."""
    if path is None or not path.exists():
        return None
    status = path.stat()
    return status.st_size, status.st_mtime_ns
