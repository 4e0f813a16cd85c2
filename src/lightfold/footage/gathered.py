"""Whose a gathered folder is, and of what it was made: gather.json, beside footage.json.

    {"source": "/home/me/walk", "fingerprint": "photos 1f0c..."}     the fingerprint is "unfinished" while at work

Work that is finished is found again by the fingerprint; a folder that holds anything else is never written over.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import CaptureError
from ..files import whole_file
from .shots import Footage, load_footage

UNFINISHED = "unfinished"


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
    for folder in (out / "images", out / "masks"):
        with suppress(OSError):
            if before is None and any(folder.iterdir()):
                raise CaptureError(
                    f"{folder} holds files that were not put there by this program; choose another folder for the "
                    "capture, so that nothing is overwritten."
                )


def make_room(out: Path, source: Sequence[Path]) -> None:
    """Remove the pictures of an earlier gathering, and say whose folder this is before the first new one comes."""
    mark(out, source, UNFINISHED)
    with suppress(CaptureError, OSError):
        for path in _files(load_footage(out)):
            path.unlink(missing_ok=True)
        (out / "footage.json").unlink()


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


def _files(footage: Footage) -> list[Path]:
    found = (path for shot in footage.shots for path in (footage.image(shot), footage.mask(shot)))
    return [path for path in found if path is not None]
