"""The Blender scenes of NeRF (nerf_synthetic), and other renders with one transforms_SPLIT.json per split.

    transforms_{train,val,test}.json   camera_angle_x in radians; frames with file_path (without .png) and
                                       transform_matrix, camera-to-world with OpenGL camera axes
    train/*.png, test/*.png            RGBA, straight alpha; square pixels, principal point in the middle

The JSON files are read by `transforms`; what is added here is the split and, for scenes that look like the published
ones, the customs of that data set: content within +-1.5, cameras about 4 away, white behind transparent pixels. Where
a file says itself what holds for its scene (as those that are written here do), that counts instead. The pictures of
depth and normals beside the test views are for people to look at, 8 bits without a unit, and are not read. D-NeRF's
scenes are read as well, with the time of each frame.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..cameras import Camera
from ..capture import Capture, Frame
from ..errors import CaptureError
from ..files import whole_file
from .frames import FrameError, Names, Tally, read_header, require_frames
from .transforms import Entry, facts, opengl_rows, read_document, read_frames, relative, shared, with_facts

LOOKS_FOR = "transforms_train.json, with transforms_test.json and transforms_val.json beside it"
HALF_SIDE = 1.5
NEAR, FAR = 2.0, 6.0
STATED = ("aabb", "aabb_scale", "near", "far", "background", "up")
"""Keys of a file that says itself what the customs of nerf_synthetic would say."""


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
    if sum(frame.time is not None for frame in frames) > 0 and len({frame.time for frame in frames}) > 1:
        notes.append("The frames are of different times; a method that knows no time sees them as one scene.")
    plain = Capture(root=path, format="blender", frames=tuple(frames))
    if any(documents["train"].get(key) is not None for key in STATED):
        return with_facts(plain, documents["train"], notes)
    if not _is_nerf_synthetic(documents["train"], frames):
        notes.append(
            "This is not laid out like nerf_synthetic, so nothing is assumed about background, near, far or bounds."
        )
        return replace(plain, notes=tuple(notes))
    box = torch.tensor([[-HALF_SIDE] * 3, [HALF_SIDE] * 3], dtype=torch.float64)
    return replace(
        plain,
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


# --- writing --------------------------------------------------------------------------------------------------------


def write(capture: Capture, path: Path) -> None:
    """Write transforms_train.json, transforms_test.json and transforms_val.json into the folder `path`.

    Frames of no split are training views; the validation file lists the test views. The pictures stay where they are:
    those who read this format want RGBA in .png files. The angle of view stands at the top, and where not all frames
    have the same, with each as well. Pixels are square and the principal point is the middle: whatever else a camera
    is, the format cannot say, and the mean of its two focal lengths is written.

    Raises CaptureError when no frame has a pose or none is to be trained on, RunError when a file cannot be written.
    """
    posed = [(frame, frame.camera) for frame in capture.frames if frame.camera is not None]
    train = [pair for pair in posed if pair[0].split != "test"]
    test = [pair for pair in posed if pair[0].split == "test"]
    if not train:
        raise CaptureError(f"{capture.root} has no posed frame to train on, so there is nothing to write.")
    known = facts(capture)
    if capture.bounds is None:
        # Says that content goes on outside, where readers would otherwise believe in the box of nerf_synthetic.
        known["aabb_scale"] = 16
    for name, pairs in (("train", train), ("val", test), ("test", test)):
        if not pairs:
            continue
        frames = [_written(frame, camera, path) for frame, camera in pairs]
        angle = frames[0]["camera_angle_x"]
        # Readers other than this one look for the angle at the top only, and need one there.
        document = {"camera_angle_x": angle, **shared(frames), **known, "frames": frames}
        with whole_file(path / f"transforms_{name}.json") as partial:
            partial.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")


def _written(frame: Frame, camera: Camera, folder: Path) -> dict[str, Any]:
    focal = float(camera.intrinsics[:2].mean())
    file_path = relative(frame.path, folder)
    entry: dict[str, Any] = {
        "camera_angle_x": 2 * math.atan(0.5 * camera.width / focal),
        "w": camera.width,
        "h": camera.height,
        # Readers of nerf_synthetic put ".png" behind whatever is written here.
        "file_path": f"./{file_path.removesuffix('.png')}",
        "transform_matrix": opengl_rows(camera),
    }
    if frame.time is not None:
        entry["time"] = frame.time
    return entry
