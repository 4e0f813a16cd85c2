"""Phototourism as NeRF in the Wild uses it (Snavely et al. 2006, Martin-Brualla et al. 2021): photographs of sights.

    dense/sparse, dense/images          a COLMAP model and the undistorted photographs (`colmap` reads them)
    NAME.tsv                            filename, id, split, dataset: which photographs NeRF-W trains and tests on

Rows without an id were discarded by the authors. The world has COLMAP's arbitrary scale. Photographs of a sight differ
in size, exposure and who stands before it.
"""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ..capture import Capture
from ..errors import CaptureError
from . import colmap
from .calibration import camera_files, one_camera_file, read_bytes
from .frames import listed

LOOKS_FOR = "a .tsv file with the columns filename and split beside a COLMAP model (dense/sparse)"
LARGEST_FILE = 64 * 2**20


def sniff(path: Path) -> bool:
    """True for a folder with such a list and a COLMAP model, and for the list itself."""
    files = camera_files(path, ".tsv", _is_list)
    return bool(files) and colmap.sniff(files[0].parent)


def read(path: Path) -> Capture:
    """Read the model with the split of the list, without the photographs it does not use. Raises CaptureError."""
    file = one_camera_file(path, camera_files(path, ".tsv", _is_list), LOOKS_FOR)
    splits = _splits(file)
    capture = colmap.read(file.parent)
    notes = list(capture.notes)
    names = [PurePosixPath(frame.name).name for frame in capture.frames]
    kept = [i for i, name in enumerate(names) if splits.get(name)]
    unused = [name for name in names if not splits.get(name)]
    if not kept:
        raise CaptureError(f"{file} names none of the {len(names)} pictures of the model, such as {names[0]}.")
    if unused:
        notes.append(f"{len(unused)} of {len(names)} pictures are not used by {file.name}: {listed(unused)}.")
    missing = sorted(name for name, split in splits.items() if split and name not in set(names))
    if missing:
        notes.append(f"{len(missing)} pictures of {file.name} are not in the model: {listed(missing)}.")
    capture = capture.select(kept)
    frames = [replace(frame, split=splits[names[i]]) for i, frame in zip(kept, capture.frames, strict=True)]
    return replace(capture, format="phototourism", frames=tuple(frames), notes=tuple(notes))


def _is_list(head: bytes) -> bool:
    columns = head.decode("utf-8-sig", errors="replace").splitlines()[:1]
    return bool(columns) and {"filename", "split"} <= set(columns[0].split("\t"))


def _splits(file: Path) -> dict[str, str | None]:
    """The split of each picture, None where it is not used."""
    text = read_bytes(file, LARGEST_FILE).decode("utf-8-sig", errors="replace").replace("\0", "")
    splits: dict[str, str | None] = {}
    try:
        for row in csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE):
            name, split, number = row.get("filename"), row.get("split"), row.get("id", "0")
            if name:
                splits[os.path.basename(name)] = split if split in ("train", "test") and number else None
    except csv.Error as error:
        raise CaptureError(f"{file} is not a table of filename, id, split and dataset: {error}.") from error
    return splits
