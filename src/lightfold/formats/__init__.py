"""Readers of data set formats, one file each. All conventions other than this project's end here.

A format is one file with `LOOKS_FOR` (what it looks for, in words), `sniff(path) -> bool` and `read(path) -> Capture`,
and one line in `FORMATS`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from ..capture import Capture
from ..errors import CaptureError
from . import (
    arkitscenes,
    blender,
    colmap,
    deepvoxels,
    dtu,
    eyefultower,
    fvs,
    linemod,
    llff,
    metashape,
    middlebury,
    mvsnet,
    nerfpp,
    neus,
    nsvf,
    opendronemap,
    photos,
    phototourism,
    polycam,
    realitycapture,
    record3d,
    scannet,
    scannetpp,
    sdfstudio,
    transforms,
)

# In the order in which open_capture asks: what says more about a folder goes before what says less.
FORMATS: dict[str, ModuleType] = {
    "scannetpp": scannetpp,
    "eyefultower": eyefultower,
    "linemod": linemod,
    "transforms": transforms,
    "blender": blender,
    "record3d": record3d,
    "polycam": polycam,
    "arkitscenes": arkitscenes,
    "scannet": scannet,
    "sdfstudio": sdfstudio,
    "neus": neus,
    "dtu": dtu,
    "mvsnet": mvsnet,
    "fvs": fvs,
    "nerfpp": nerfpp,
    "nsvf": nsvf,
    "deepvoxels": deepvoxels,
    "phototourism": phototourism,
    "colmap": colmap,
    "llff": llff,
    "opendronemap": opendronemap,
    "middlebury": middlebury,
    "metashape": metashape,
    "realitycapture": realitycapture,
    "photos": photos,
}
# Formats whose files are those of another one with more in them; what the other makes of them is no second capture.
INCLUDES = {"linemod": {"blender"}, "phototourism": {"colmap"}}
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".insv")


def open_capture(path: str | Path, format: str = "auto", subset: float | None = None) -> Capture:
    """Open a folder (or a .json file) as a capture.

    format: a key of FORMATS, or "auto" for the first one that recognises the path; a note names the others that would.
    subset: how many frames to keep, or below 1 which share of them (`Capture.evenly`). None keeps all.
    Raises CaptureError when nothing recognises the path or what is there cannot be used; ValueError for another format,
    and for a subset that is not positive.
    """
    capture = _opened(path, format)
    return capture if subset is None else capture.evenly(subset)


def _opened(path: str | Path, format: str) -> Capture:
    if format != "auto" and format not in FORMATS:
        raise ValueError(f"format: expected one of auto, {', '.join(FORMATS)}, got {format!r}")
    # Absolute, so that the folders above can be looked at and a run can be continued from anywhere.
    path = Path(path).expanduser().absolute()
    if not os.path.exists(path):
        raise CaptureError(f"There is nothing at {path}.")
    if format != "auto":
        chosen: Capture = FORMATS[format].read(path)
        return chosen
    found = [name for name, module in FORMATS.items() if module.sniff(path)]
    if not found:
        raise CaptureError(_nothing_found(path))
    capture: Capture = FORMATS[found[0]].read(path)
    # Almost every capture holds pictures; only another set of poses is worth a remark. A capture that `lightfold poses`
    # made keeps the model that its transforms.json was written from.
    known = {"photos", "colmap"} if (path / "footage.json").is_file() else {"photos"}
    known |= INCLUDES.get(found[0], set())
    others = [name for name in found[1:] if name not in known]
    if others:
        note = f"{path} can also be read as {' or '.join(others)}; it is read as {found[0]}."
        capture = replace(capture, notes=(*capture.notes, note))
    return capture


def _nothing_found(path: Path) -> str:
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return f"{path} is a video: `lightfold poses {path}` makes a capture of it, `lightfold run {path}` does all."
    known = ", ".join(name for name in FORMATS if name != "photos")
    if not os.path.isdir(path):
        return f"{path} is neither a video nor a capture of a known format ({known})."
    if not any(path.iterdir()):
        return f"The folder {path} is empty."
    return f"{path} holds no photos, no video, and no capture of a known format ({known})."
