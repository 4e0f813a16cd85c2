"""LINEMOD objects in nerf-pytorch's form (Hinterstoisser et al. 2012): Blender's files with an intrinsics matrix each.

    transforms_{train,val,test}.json    near, far; frames with file_path (with its suffix), transform_matrix (**camera
                                        to world**, 4 x 4, OpenGL axes) and intrinsic_matrix (3 x 3)

Principal points count from the **centre** of the first pixel, as nerf-pytorch's rays do. Where nerf-pytorch takes the
matrix of the first frame of the last split for all, each frame here has its own. A file_path leads to the author's
disk: the picture is found by its name, and the folders it shares with the path, inside the capture. Near is the floor
of the smallest near of train and test, far the ceiling of the largest far. Validation frames are left out.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from ..capture import Capture, Frame
from .frames import FrameError, Names, Tally, require_frames
from .matrices import pinhole
from .picture_index import PictureIndex
from .transforms import Entry, read_document

LOOKS_FOR = "transforms_train.json whose frames have an intrinsic_matrix"
HEAD = 65536
OPENCV_FROM_OPENGL = np.array([1.0, -1.0, -1.0, 1.0])
"""Signs of the columns of a camera-to-world matrix."""


def sniff(path: Path) -> bool:
    """True for a folder with transforms_train.json that speaks of an intrinsic_matrix in its first 64 KiB."""
    try:
        with open(path / "transforms_train.json", "rb") as file:
            return b'"intrinsic_matrix"' in file.read(HEAD)
    except (OSError, ValueError):
        return False


def read(path: Path) -> Capture:
    """Read transforms_train.json and transforms_test.json (without it, transforms_val.json). Raises CaptureError."""
    held_out = next((s for s in ("test", "val") if os.path.isfile(path / f"transforms_{s}.json")), None)
    documents = {"train": read_document(path / "transforms_train.json")}
    if held_out is not None:
        documents["test"] = read_document(path / f"transforms_{held_out}.json")
    pictures = PictureIndex(path)
    tally, names = Tally(), Names()
    frames: list[Frame] = []
    found = 0
    for split, document in documents.items():
        entries = document.objects("frames")
        found += len(entries)
        for i, values in enumerate(entries):
            entry = Entry(values, f"frame {i} of {document.where}", document)
            written = entry.text("file_path") or ""
            with tally.leaving_out(f"{split}/{written}"):
                frames.append(_frame(entry, written, split, pictures, names, tally))
    notes = tally.notes(found)
    require_frames(frames, found, path, notes)
    nears = [n for n in (d.number("near") for d in documents.values()) if n is not None]
    fars = [f for f in (d.number("far") for d in documents.values()) if f is not None]
    near = float(math.floor(min(nears))) if nears else 0.0
    return Capture(
        root=path,
        format="linemod",
        frames=tuple(frames),
        # A near of 0 states nothing.
        near=near if near > 0 else None,
        far=float(math.ceil(max(fars))) if fars and max(fars) > 0 else None,
        notes=notes,
    )


def _frame(entry: Entry, written: str, split: str, pictures: PictureIndex, names: Names, tally: Tally) -> Frame:
    path, name = pictures.take(written)
    matrix = entry.matrix("transform_matrix", (4, 4), (3, 4))
    k = entry.matrix("intrinsic_matrix", (3, 3), (4, 4))
    if matrix is None or k is None:
        raise FrameError("were left out because they have no transform_matrix or no intrinsic_matrix")
    world_from_cam = matrix * OPENCV_FROM_OPENGL
    intrinsics = (k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5)
    camera, rotate = pinhole(path, world_from_cam, intrinsics, tally=tally)
    return Frame(path=path, camera=camera, name=names.new(name), split=split, exif_rotate=rotate)
