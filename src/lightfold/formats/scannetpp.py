"""ScanNet++ (Yeshwanth et al. 2023): rooms photographed with a fisheye lens, and filmed with a phone.

    SCENE/dslr/nerfstudio/transforms.json          poses as in nerfstudio's transforms.json (OpenGL axes, camera to
                                                   world); frames to train on, and test_frames
    SCENE/dslr/nerfstudio/transforms_undistorted.json   the same for the undistorted copies
    SCENE/dslr/resized_images/DSC00001.JPG ...     the pictures that file_path names; resized_undistorted_images
    SCENE/dslr/resized_anon_masks/DSC00001.png ... 255 where valid, 0 where something was made unrecognisable
    SCENE/dslr/train_test_lists.json               names by split, where transforms.json has no test_frames
    SCENE/iphone/nerfstudio/transforms.json        with iphone/rgb, iphone/rgb_masks, iphone/depth (millimetres)

The world is in metres. Training frames that the authors mark as bad (blurred, over-exposed) are left out; test frames
are kept whatever their mark. The pictures of hidden test sets are not published, and are reported as missing.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..capture import Capture, Frame
from ..errors import CaptureError
from .frames import Names, Tally, listed, natural_key, require_frames
from .matrices import find_inside
from .transforms import Entry, read_document, read_frames

LOOKS_FOR = "dslr/nerfstudio/transforms.json with a folder dslr/resized_images beside it"
# Folders of pictures beside the folder nerfstudio, and of their masks. Undistorted ones belong to another file.
PICTURES = {
    "resized_images": "resized_anon_masks",
    "rgb": "rgb_masks",
    "original_images": "original_anon_masks",
}
UNDISTORTED = {
    "resized_undistorted_images": "resized_undistorted_masks",
    "undistorted_images": "undistorted_anon_masks",
}


def sniff(path: Path) -> bool:
    """True for a scene, for its folder dslr or iphone, and for one of its transforms files."""
    file = _file(path)
    return file is not None and _folders(file) is not None


def read(path: Path) -> Capture:
    """Read the photographs of a scene (or the phone's, when that folder is named). Raises CaptureError."""
    file = _file(path)
    folders = None if file is None else _folders(file)
    if file is None or folders is None:
        raise CaptureError(f"{path} is not a scene of ScanNet++. Looked for {LOOKS_FOR}.")
    root, pictures, masks = folders
    document = read_document(file)
    tally, names = Tally(), Names()
    train = _kept(document, "frames", pictures, masks, root, tally)
    test = _kept(document, "test_frames", pictures, masks, root, tally) if document.get("test_frames") else []
    frames = [replace(f, split="train") for f in _frames(document, train, root, tally, names)]
    frames += [replace(f, split="test") for f in _frames(document, test, root, tally, names)]
    notes: list[str] = []
    if not test:
        frames = _split(frames, root / "train_test_lists.json", notes)
    total = sum(len(document.objects(key)) for key in ("frames", "test_frames") if document.get(key))
    notes = [*tally.notes(total), *notes]
    require_frames(frames, total, file, notes)
    return Capture(
        root=root,
        format="scannetpp",
        frames=tuple(sorted((_with_depth(frame, root) for frame in frames), key=lambda f: natural_key(f.name))),
        metric=True,
        notes=tuple(notes),
    )


def _file(path: Path) -> Path | None:
    if path.suffix.lower() == ".json":
        return path if path.parent.name == "nerfstudio" and os.path.isfile(path) else None
    for root in (path, path / "dslr", path / "iphone"):
        if os.path.isfile(root / "nerfstudio" / "transforms.json"):
            return root / "nerfstudio" / "transforms.json"
    return None


def _folders(file: Path) -> tuple[Path, str, str] | None:
    """The folder of the sensor, and the names of its folders of pictures and of masks."""
    root = file.parent.parent
    known = UNDISTORTED if "undistorted" in file.name else PICTURES
    found = next((name for name in known if os.path.isdir(root / name)), None)
    return None if found is None else (root, found, known[found])


def _kept(document: Entry, key: str, pictures: str, masks: str, root: Path, tally: Tally) -> list[dict[str, Any]]:
    """The frames of a list, with paths as seen from the root, without the bad ones and those that name no picture."""
    kept = []
    for i, values in enumerate(document.objects(key)):
        entry = Entry(values, f"{key} {i} of {document.where}")
        written = entry.text("file_path") or ""
        if key == "frames" and entry.flag("is_bad"):
            tally.add("were left out because the data set marks them as bad (is_bad)", written)
            continue
        if find_inside(root / pictures, written) is None:
            tally.add("were left out because the picture is not on disk", written)
            continue
        changed = {**_without_files(values), "file_path": f"{pictures}/{written}"}
        mask = entry.text("mask_path") or ""
        if find_inside(root / masks, mask) is not None:
            changed["mask_path"] = f"{masks}/{mask}"
        kept.append(changed)
    return kept


def _without_files(values: dict[str, Any]) -> dict[str, Any]:
    """An object of the file without the names of files that `transforms` would follow wherever they lead."""
    return {key: value for key, value in values.items() if key not in ("mask_path", "depth_file_path", "depth_path")}


def _frames(document: Entry, kept: list[dict[str, Any]], root: Path, tally: Tally, names: Names) -> list[Frame]:
    part = Entry({**_without_files(document.values), "frames": kept}, document.where)
    return [frame for frame, _ in read_frames(part, root, tally, names)]


def _split(frames: list[Frame], file: Path, notes: list[str]) -> list[Frame]:
    """Frames with the split of train_test_lists.json; with none where there is no such file."""
    if not os.path.isfile(file):
        return [replace(frame, split=None) for frame in frames]
    lists = read_document(file)
    of = {name: split for split in ("train", "test") for name in lists.texts(split) or ()}
    stray = [frame.name for frame in frames if PurePosixPath(frame.name).name not in of]
    if stray:
        notes.append(f"{len(stray)} frames are in neither list of {file.name} and are left out: {listed(stray)}.")
    picture = {frame.name: PurePosixPath(frame.name).name for frame in frames}
    return [replace(frame, split=of[picture[frame.name]]) for frame in frames if picture[frame.name] in of]


def _with_depth(frame: Frame, root: Path) -> Frame:
    """The phone's depth map of a frame, where it has been extracted; the camera has none."""
    depth = root / "depth" / f"{frame.path.stem}.png"
    return replace(frame, depth=depth, depth_scale=0.001) if os.path.isfile(depth) else frame
