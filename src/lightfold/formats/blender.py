"""The Blender scenes of NeRF (nerf_synthetic), and other renders with one transforms_SPLIT.json per split.

The JSON files are read by `transforms`; what is added here is the split and, for scenes that look like the published
ones, the customs of that data set: content within +-1.5, cameras about 4 away, white behind transparent pixels.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from ..capture import Capture, Frame
from ..errors import CaptureError
from .frames import FrameError, Names, Tally, read_header, require_frames
from .transforms import Entry, read_document, read_frames

LOOKS_FOR = "transforms_train.json, with transforms_test.json and transforms_val.json beside it"
HALF_SIDE = 1.5
NEAR, FAR = 2.0, 6.0


def sniff(path: Path) -> bool:
    """True for a folder with transforms_train.json."""
    return os.path.isfile(path / "transforms_train.json")


def read(path: Path, include_val: bool = False) -> Capture:
    """Read transforms_{train,test}.json. Pictures that a file lists and the disk lacks are left out, with a note.

    include_val: also read transforms_val.json, as frames that belong to neither split. Without a test file, the
    validation file is the test split either way. Raises CaptureError.
    """
    splits: dict[str, str | None] = {"train": "train", "test": "test"}
    if not os.path.isfile(path / "transforms_test.json"):
        splits = {"train": "train", "val": "test"}
    elif include_val:
        splits["val"] = None
    files = {name: path / f"transforms_{name}.json" for name in splits}
    if not os.path.isfile(files["train"]):
        raise CaptureError(f"{path} has no transforms_train.json.")
    documents = {name: read_document(file) for name, file in files.items() if os.path.isfile(file)}
    names = Names()
    frames: list[Frame] = []
    notes: list[str] = []
    for name, document in documents.items():
        tally = Tally()
        found = [frame for frame, _ in read_frames(document, path, tally, names)]
        notes += tally.notes(len(document.objects("frames")), f"{name} frames")
        frames += [replace(frame, split=splits[name]) for frame in found]
    require_frames(frames, sum(len(d.objects("frames")) for d in documents.values()), path, notes)
    if "val" in documents and splits["val"] == "test":
        notes.append("There is no transforms_test.json; the validation frames are the test split.")
    if not any(frame.split == "train" for frame in frames):
        raise CaptureError(f"No frame of {files['train']} can be used. {' '.join(notes)}")
    if not _is_nerf_synthetic(documents["train"], frames):
        notes.append(
            "This is not laid out like nerf_synthetic, so nothing is assumed about background, near, far or bounds."
        )
        return Capture(root=path, format="blender", frames=tuple(frames), notes=tuple(notes))
    box = torch.tensor([[-HALF_SIDE] * 3, [HALF_SIDE] * 3], dtype=torch.float64)
    return Capture(
        root=path,
        format="blender",
        frames=tuple(frames),
        bounds=box,
        background="white",
        up=torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64),
        near=NEAR,
        far=FAR,
        notes=tuple(notes),
    )


def _is_nerf_synthetic(document: Entry, frames: list[Frame]) -> bool:
    """The customs apply to transparent pictures with nothing but an opening angle, from cameras 2.5 to 6 away."""
    if document.get("camera_angle_x") is None or document.get("fl_x") is not None:
        return False
    distances = [float(frame.camera.center.norm()) for frame in frames if frame.camera is not None]
    if not all(NEAR + 0.5 <= distance <= FAR for distance in distances):
        return False
    try:
        return read_header(frames[0].path).has_alpha
    except FrameError:
        return False
