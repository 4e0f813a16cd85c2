"""Eyeful Tower (Xu et al. 2023): rooms photographed by a tower of 9 fisheye (v1) or 22 perspective cameras (v2).

    cameras.json            {"KRT": [one object per picture]}: cameraId ("17/17_DSC0316"), width, height (full size), K
                            [3, 3] and T [4, 4], both **column by column**; distortionModel and distortion
    splits.json             {"train": [cameraId, ...], "test": [...]}: all pictures of one camera are held out
    images-jpeg, images-jpeg-4k, -2k, -1k       pictures CAMERA/CAMERA_DSC0316.jpg, 5784 x 8660 and smaller
    images-2k, images-1k                        the same as linear DCI-P3 in EXR, before white balance

T is **world to camera** with OpenCV axes. RadialAndTangential is k1 k2 p1 p2 k3 in OpenCV's order; Fisheye is an
equidistant fisheye with k1 k2 k3 _ _ _ p1 p2. The world is in metres with y up and the floor at 0. Principal points
count from the picture's corner. Some pictures were withdrawn by the authors, and are reported as missing.

The pictures of v1 show the tower below and little light at the rim. Nerfstudio's script crops them to a disc whose
radius it found by hand for each scene, as a share of the picture's **width**; the same table is used here, by the name
of the folder, and `Capture.fisheye_crop_radius` has it in pixels. The white balance of the EXR pictures is published in
a table too, and goes by the name of the folder.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..cameras import Lens, opencv_lens
from ..capture import Capture, Frame
from ..errors import CaptureError
from .calibration import calibrated, finite_numbers
from .frames import (
    FrameError,
    Names,
    Tally,
    cam_from_world,
    fit_camera,
    listed,
    natural_key,
    read_header,
    require_frames,
)
from .matrices import find_inside, inverse
from .transforms import Entry, read_document

LOOKS_FOR = "cameras.json with a list KRT, beside a folder images-jpeg-2k or the like"
PICTURE_FOLDERS = ("images-jpeg", "images-jpeg-4k", "images-jpeg-2k", "images-jpeg-1k", "images-2k", "images-1k")
CROP_RADIUS = {"office1a": 0.43, "office2": 0.45, "seating_area": 0.375, "table": 0.45, "workshop": 0.45}
"""Of the picture's width."""
WHITE_BALANCE = {
    "apartment": (0.726097, 1.741252),
    "kitchen": (0.628143, 2.212346),
    "office1a": (0.740846, 1.750224),
    "office1b": (0.725535, 1.839938),
    "office2": (0.707729, 1.747833),
    "office_view1": (1.029089, 1.145235),
    "office_view2": (0.939620, 1.273549),
    "riverview": (1.077719, 1.145992),
    "seating_area": (0.616093, 2.426888),
    "table": (0.653298, 2.139514),
    "workshop": (0.709929, 1.797705),
    "raf_emptyroom": (0.718776, 1.787020),
    "raf_furnishedroom": (0.721494, 1.793423),
}
"""Published factors on red and blue light of the EXR files, by the name of the folder; that of green is 1."""
HEAD = 4096


def sniff(path: Path) -> bool:
    """True for a scene, its cameras.json, and one of its picture folders, which chooses that resolution."""
    file = _camera_file(path)
    try:
        with open(file, "rb") as stream:
            return b'"KRT"' in stream.read(HEAD)
    except (OSError, ValueError):
        return False


def read(path: Path) -> Capture:
    """Read the pictures with their cameras and the published split.

    Of several picture folders the one with the largest JPEGs is taken, unless path names another. Raises CaptureError.
    """
    file = _camera_file(path)
    root = file.parent
    document = read_document(file)
    entries = document.objects("KRT")
    present = [name for name in PICTURE_FOLDERS if os.path.isdir(root / name)]
    folder = path.name if path.name in present and path.parent == root else (present or [""])[0]
    if not folder:
        raise CaptureError(f"{root} has cameras.json but none of the picture folders {', '.join(PICTURE_FOLDERS)}.")
    splits, notes = _splits(root / "splits.json")
    tally, names = Tally(), Names()
    frames = []
    for i, values in enumerate(entries):
        entry = Entry(values, f"KRT {i} of {file}", Entry({}, str(file)))
        written = entry.text("cameraId") or ""
        with tally.leaving_out(written):
            frames.append(_frame(entry, root / folder, written, splits.get(written), names))
    notes = [*tally.notes(len(entries)), *notes]
    require_frames(frames, len(entries), root / folder, notes)
    frames.sort(key=lambda frame: natural_key(frame.name))
    if folder in ("images-2k", "images-1k") and root.name not in WHITE_BALANCE:
        notes.append(f"No white balance is published for {root.name!r}, so the colours of its EXR files are raw.")
    if len(present) > 1:
        others = ", ".join(name for name in present if name != folder)
        notes.append(f"The pictures are those of {folder}; name one of the folders {others} to use another resolution.")
    return Capture(
        root=root,
        format="eyefultower",
        frames=tuple(frames),
        up=torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64),
        metric=True,
        fisheye_crop_radius=_crop_radius(root.name, frames, notes),
        notes=tuple(notes),
    )


def _camera_file(path: Path) -> Path:
    if path.name in PICTURE_FOLDERS:
        return path.parent / "cameras.json"
    return path if path.name == "cameras.json" else path / "cameras.json"


def _splits(file: Path) -> tuple[dict[str, str], list[str]]:
    """The split of each cameraId."""
    if not os.path.isfile(file):
        return {}, [f"There is no {file.name}, so the published split is not known."]
    document = read_document(file)
    lists = {split: document.texts(split) or [] for split in ("train", "test")}
    both = sorted(set(lists["train"]) & set(lists["test"]))
    notes = [f"{len(both)} pictures are in both lists of {file.name} and train: {listed(both)}."] if both else []
    return {name: split for split in ("test", "train") for name in lists[split]}, notes


def _frame(entry: Entry, folder: Path, written: str, split: str | None, names: Names) -> Frame:
    path = find_inside(folder, written) or find_inside(folder, f"{written}.exr")
    if path is None:
        raise FrameError("were left out because the picture is not on disk")
    k, pose = entry.matrix("K", (3, 3)), entry.matrix("T", (4, 4))
    if k is None or pose is None:
        raise FrameError("were left out because they have no K or no T")
    k, pose = k.T, pose.T
    lens, coefficients = _lens(entry)
    width, height = entry.number("width") or 0, entry.number("height") or 0
    intrinsics = (k[0, 0], k[1, 1], k[0, 2], k[1, 2])
    camera = calibrated(lens, intrinsics, coefficients, width, height, cam_from_world(inverse(pose)))
    fitted, rotate = fit_camera(camera, read_header(path))
    balance = WHITE_BALANCE.get(folder.parent.name)
    return Frame(
        path=path,
        camera=fitted,
        name=names.new(f"{folder.name}/{written}{path.suffix}"),
        split=split,
        exif_rotate=rotate,
        colour="linear-p3" if path.suffix == ".exr" else None,
        white_balance=(balance[0], 1.0, balance[1]) if path.suffix == ".exr" and balance is not None else None,
    )


def _lens(entry: Entry) -> tuple[Lens, list[float]]:
    model, values = entry.text("distortionModel"), entry.get("distortion")
    if model == "RadialAndTangential":
        k1, k2, p1, p2, k3 = finite_numbers(values, 5, "distortion")
        return opencv_lens(k1, k2, p1, p2, k3)
    if model == "Fisheye":
        k1, k2, k3, _, _, _, p1, p2 = finite_numbers(values, 8, "distortion")
        return Lens.THIN_PRISM_FISHEYE, [k1, k2, p1, p2, k3, 0.0, 0.0, 0.0]
    raise FrameError("were left out because their distortionModel is neither Fisheye nor RadialAndTangential")


def _crop_radius(scene: str, frames: list[Frame], notes: list[str]) -> float | None:
    """Pixels of the first picture; None for a perspective tower and for a scene without a published radius."""
    camera = frames[0].camera
    assert camera is not None
    if camera.lens is not Lens.THIN_PRISM_FISHEYE:
        return None
    if scene not in CROP_RADIUS:
        notes.append(
            f"No crop radius is known for the fisheye pictures of {scene!r}, so they are used to their rim; folders "
            f"named {', '.join(CROP_RADIUS)} are cropped."
        )
        return None
    return CROP_RADIUS[scene] * camera.width
