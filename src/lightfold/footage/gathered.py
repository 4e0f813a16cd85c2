"""Whose a gathered folder is, of what it was made, and what was made so far.

gather.json, beside footage.json, says whose it is; its fingerprint is "unfinished" while at work:

    {"source": "/home/me/walk", "fingerprint": "photos 1f0c..."}

gathered.jsonl has a line for each picture, written when the picture is:

    {"key": "9b1d...", "image": [size, time], "mask": null, "remarks": [], "shot": {...}}

The key is a digest of all that decides what the picture becomes. Whoever gathers again, after an interruption or with
some other photos or options, takes what is there by its key and makes only the rest. A folder that holds anything else
is never written over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import CaptureError, RunError
from ..files import whole_file
from .shots import Footage, Shot, load_footage, shot_from, without_nan

UNFINISHED = "unfinished"
JOURNAL = "gathered.jsonl"


def finished(out: Path, fingerprint: str) -> Footage | None:
    """The footage of an earlier run if it was made of the same and is still there."""
    if _marker(out).get("fingerprint") != fingerprint:
        return None
    try:
        footage = load_footage(out)
    except CaptureError:
        return None
    return footage if all(path.is_file() for path in _files(footage)) else None


def source_of(out: Path) -> str | None:
    """What a folder was gathered from; None for a folder that was not."""
    source = _marker(out).get("source")
    return source if isinstance(source, str) else None


def name_of(source: Sequence[Path]) -> str:
    """One path, or several with their separator. Broken Unicode, which a disk may hold, is written as it can be."""
    return " and ".join(str(path).encode("utf-8", "replace").decode("utf-8") for path in source)


def refuse_foreign(out: Path, source: Sequence[Path]) -> None:
    """CaptureError when `out` has pictures of other footage, or such as this program did not put there."""
    before = source_of(out)
    if before is not None and before != name_of(source):
        raise CaptureError(f"{out} is the capture of {before}; choose another folder, so that it is not overwritten.")
    for folder in (out / "images", out / "masks", out / "light"):
        with suppress(OSError):
            if before is None and any(folder.iterdir()):
                raise CaptureError(
                    f"{folder} holds files that were not put there by this program; choose another folder for the "
                    "capture, so that nothing is overwritten."
                )


def digest(*parts: Any) -> str:
    """A key of anything whose `repr` says all of it; the path of a file counts with its size and time."""
    made = hashlib.sha256()
    for part in parts:
        said = (str(part), stamp(part)) if isinstance(part, Path) else part
        made.update(repr(said).encode("utf-8", "surrogateescape"))
    return made.hexdigest()


def stamp(path: Path) -> list[int] | None:
    """Size and time of a file, which change when it does; None for none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


class Journal:
    """What was made in a folder, by key. Pictures that are gone, or another than was written, do not count."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._lines: dict[str, dict[str, Any]] = {}
        self._there: list[Path] = []
        for line in _read(out / JOURNAL):
            with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
                entry = json.loads(line)
                shot = shot_from(entry["shot"])
                self._there += [path for path in self._paths(shot) if path is not None]
                if self._stamps(shot) == (entry["image"], entry["mask"]):
                    self._lines[str(entry["key"])] = entry

    def shot(self, key: str) -> tuple[Shot, list[str]] | None:
        """What was made under a key, and the remarks that were made with it."""
        entry = self._lines.get(key)
        return None if entry is None else (shot_from(entry["shot"]), [str(remark) for remark in entry["remarks"]])

    def begin(self, source: Sequence[Path], keys: Iterable[str]) -> None:
        """Say whose folder this is, and remove all pictures of earlier gatherings but those under these keys."""
        mark(self.out, source, UNFINISHED)
        self._lines = {key: self._lines[key] for key in keys if key in self._lines}
        with suppress(CaptureError):
            self._there += _files(load_footage(self.out))
        kept = {path for entry in self._lines.values() for path in self._paths(shot_from(entry["shot"]))}
        with suppress(OSError):
            for path in set(self._there) - kept:
                path.unlink(missing_ok=True)
            (self.out / "footage.json").unlink(missing_ok=True)
        with whole_file(self.out / JOURNAL) as partial:
            partial.write_text("".join(f"{json.dumps(entry)}\n" for entry in self._lines.values()), encoding="utf-8")

    def add(self, key: str, shot: Shot, remarks: Sequence[str] = ()) -> None:
        """A picture, and its mask, have been written. Raises RunError."""
        image, mask = self._stamps(shot)
        entry = {"key": key, "image": image, "mask": mask, "remarks": list(remarks), "shot": without_nan(vars(shot))}
        path = self.out / JOURNAL
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(entry)}\n")
        except OSError as error:
            raise RunError(f"{path} could not be written: {error.strerror or error}.") from error

    def _paths(self, shot: Shot) -> tuple[Path, Path | None, Path | None]:
        place = Footage(self.out, "photos", False, ())
        return place.image(shot), place.mask(shot), place.light(shot)

    def _stamps(self, shot: Shot) -> tuple[list[int] | None, list[int] | None]:
        image, mask, light = self._paths(shot)
        whole = light is None or light.is_file()
        return stamp(image) if whole else None, None if mask is None else stamp(mask)


def mark(out: Path, source: Sequence[Path], fingerprint: str) -> None:
    """Write gather.json."""
    with whole_file(out / "gather.json") as partial:
        partial.write_text(json.dumps({"source": name_of(source), "fingerprint": fingerprint}), encoding="utf-8")


def _marker(out: Path) -> dict[str, object]:
    try:
        marker = json.loads((out / "gather.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return marker if isinstance(marker, dict) else {}


def _read(path: Path) -> list[str]:
    """Lines of a file; none where there is none, or one that is no text. The last may have been cut off."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []


def _files(footage: Footage) -> list[Path]:
    made = (footage.image, footage.mask, footage.light)
    found = (of(shot) for shot in footage.shots for of in made)
    return [path for path in found if path is not None]
