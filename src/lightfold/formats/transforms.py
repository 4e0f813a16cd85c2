"""transforms.json, in the dialects of instant-ngp and of nerfstudio, read and written.

One JSON file lists the frames: a picture, a camera-to-world matrix with **OpenGL camera axes** (x right, y up, z back),
and intrinsics either for all frames or per frame. The two dialects share those keys and add their own; every key that
says something about cameras or pictures is understood here, and those that only steer instant-ngp's training are
ignored.

  instant-ngp  camera_angle_x/y, x_fov/y_fov, is_fisheye, latlong, orthographic, from_mitsuba, aabb, aabb_scale, scale,
               offset, up, depth_path with integer_depth_scale, transform_matrix_start/_end, and the files
               dynamic_mask_NAME.png and NAME.alpha.EXT beside the pictures
  nerfstudio   camera_model, distortion_params, fisheye_crop_radius, mask_path, depth_file_path, ply_file_path,
               train/val/test_filenames, applied_transform, applied_scale, orientation_override
  ours         depth_unit_scale_factor, mask_inverted, mask_is_alpha (the mask is a silhouette), time, group, near, far,
               background, metric; k5, k6 of FULL_OPENCV; distortion_params in COLMAP's order for the lens models that
               nerfstudio does not have; lens, the exact name of a lens whose camera_model is a larger one that others
               know

Where a key stands both at the top and in a frame, the frame's wins: it is the more specific.
"""

from __future__ import annotations

import json
import math
import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cameras import Camera, Lens
from ..capture import Capture, Frame, Points
from ..errors import CaptureError
from ..files import whole_file
from ..geometry import Similarity
from . import ply
from .frames import (
    LARGEST_SIDE,
    OPENCV_FROM_OPENGL,
    FrameError,
    Header,
    Names,
    Tally,
    cam_from_world,
    find_picture,
    fit_camera,
    listed,
    natural_key,
    nearest_rotation,
    read_header,
    require_frames,
)

LOOKS_FOR = "transforms.json, or the name of any such .json file"
MAX_JSON_BYTES = 128 * 2**20
# from_mitsuba: camera axes x left, y up, z forward.
OPENCV_FROM_MITSUBA = np.diag([-1.0, -1.0, 1.0])

# Names that camera_model may have, beside those of Lens. nerfstudio's perspective models are one model with all
# coefficients.
LENS_NAMES = {"PERSPECTIVE": Lens.OPENCV, "FISHEYE": Lens.OPENCV_FISHEYE, "ORTHOPHOTO": Lens.ORTHOGRAPHIC}
# Each lens with the keys of its coefficients in COLMAP's order, from the simplest model of a family to the richest.
PERSPECTIVE = {
    Lens.SIMPLE_PINHOLE: (),
    Lens.PINHOLE: (),
    Lens.SIMPLE_RADIAL: ("k1",),
    Lens.RADIAL: ("k1", "k2"),
    Lens.OPENCV: ("k1", "k2", "p1", "p2"),
    Lens.FULL_OPENCV: ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
}
FISHEYE = {
    Lens.SIMPLE_RADIAL_FISHEYE: ("k1",),
    Lens.RADIAL_FISHEYE: ("k1", "k2"),
    Lens.OPENCV_FISHEYE: ("k1", "k2", "k3", "k4"),
    Lens.THIN_PRISM_FISHEYE: ("k1", "k2", "p1", "p2", "k3", "k4", "sx1", "sy1"),
}
# What the writer calls lenses that only COLMAP knows by their own name; the key `lens` keeps that name.
WRITTEN_AS = {
    Lens.SIMPLE_RADIAL_FISHEYE: "OPENCV_FISHEYE",
    Lens.RADIAL_FISHEYE: "OPENCV_FISHEYE",
    Lens.ORTHOGRAPHIC: "ORTHOPHOTO",
}
NERFSTUDIO_PARAMS = ("k1", "k2", "k3", "k4", "p1", "p2")
COEFFICIENTS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "sx1", "sy1")


def sniff(path: Path) -> bool:
    """True for a .json file and for a folder that holds transforms.json."""
    return os.path.isfile(path / "transforms.json") or (path.suffix.lower() == ".json" and os.path.isfile(path))


def read(path: Path) -> Capture:
    """Read transforms.json of a folder, or the .json file given. Raises CaptureError."""
    file = path if os.path.isfile(path) else path / "transforms.json"
    document = read_document(file)
    tally = Tally()
    frames = read_frames(document, file.parent, tally)
    frames, unknown = _split(frames, document, tally)
    found = len(document.objects("frames"))
    notes = list(tally.notes(found))
    if document.flag("equirectangular"):
        notes.append(
            "The flag equirectangular is read as latlong, an ordinary panorama; instant-ngp itself spaces the rows of "
            "such pictures by height instead of latitude."
        )
    if unknown:
        notes.append(f"{len(unknown)} names in the lists of the splits belong to no frame: {listed(unknown)}.")
    require_frames(frames, found, file, notes)
    notes += _elsewhere([frame for frame, _ in frames], file.parent)
    points = _points(document, file.parent, notes)
    radius = _crop_radius(document, frames, notes)
    capture = Capture(
        file.parent, "transforms", tuple(frame for frame, _ in frames), points, fisheye_crop_radius=radius
    )
    return with_facts(capture, document, notes)


def _elsewhere(frames: list[Frame], root: Path) -> list[str]:
    """A note on pictures, masks and depths outside the folder. `lightfold export` and others name files where they lie,
    so they are read; but a capture from a stranger must not pick up what its user does not know of."""
    paths = [path for frame in frames for path in (frame.path, frame.mask, frame.depth) if path is not None]
    top = os.path.join(os.path.abspath(root), "")
    outside = [full for full in map(os.path.abspath, paths) if not full.startswith(top)]
    if not outside:
        return []
    return [f"{len(outside)} of its files lie outside the folder {root}, the first at {outside[0]}."]


def with_facts(capture: Capture, document: Entry, notes: list[str]) -> Capture:
    """The capture with what the top of a document says about all of it, and with these notes (more may be added)."""
    return replace(
        capture,
        bounds=_bounds(document),
        background=document.text("background"),
        up=_up(document),
        metric=document.flag("metric"),
        near=document.number("near"),
        far=document.number("far"),
        orientation=_orientation(document),
        original_from_capture=_original_from_capture(document, notes),
        notes=tuple(notes),
    )


# --- JSON -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One JSON object, with the words to name it in an error and the object that supplies what it lacks.

    A value of the wrong kind is a mistake in the file and raises CaptureError; a number that is not finite makes a
    frame `FrameError`, and is a mistake in the file at the top.
    """

    values: dict[str, Any]
    where: str
    parent: Entry | None = None

    def get(self, key: str) -> Any:
        value = self.values.get(key)
        return self.parent.get(key) if value is None and self.parent is not None else value

    def number(self, key: str) -> float | None:
        value = self.get(key)
        return None if value is None else self._number(value, key)

    def text(self, key: str) -> str | None:
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, "text", value)
        return value

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, (bool, int, float)):
            raise self._wrong(key, "true or false", value)
        return bool(value)

    def numbers(self, key: str, count: int | None = None) -> list[float] | None:
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or (count is not None and len(value) != count):
            raise self._wrong(key, "a list of numbers" if count is None else f"a list of {count} numbers", value)
        return [self._number(v, key) for v in value]

    def texts(self, key: str) -> list[str] | None:
        value = self.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            raise self._wrong(key, "a list of text", value)
        return value

    def matrix(self, key: str, *shapes: tuple[int, int]) -> np.ndarray | None:
        """A list of rows. NaN and infinity are let through: the caller knows what they make unusable."""
        value = self.get(key)
        if value is None:
            return None
        expected = " or ".join(f"{rows}x{columns}" for rows, columns in shapes)
        if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
            raise self._wrong(key, f"a {expected} matrix, a list of rows", value)
        if (len(value), len(value[0]) if value else 0) not in shapes or len({len(row) for row in value}) != 1:
            raise self._wrong(key, f"a {expected} matrix", value)
        return np.array([[self._number(v, key, finite=False) for v in row] for row in value], dtype=np.float64)

    def objects(self, key: str) -> list[dict[str, Any]]:
        value = self.get(key)
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            raise self._wrong(key, "a list of objects", value)
        return value

    def _number(self, value: Any, key: str, finite: bool = True) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(key, "a number", value)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if finite and not math.isfinite(number):
            if self.parent is None:
                raise self._wrong(key, "a finite number", value)
            raise FrameError(f"were left out because {key} is not a finite number")
        return number

    def _wrong(self, key: str, expected: str, value: Any) -> CaptureError:
        shown = "nothing" if value is None else repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return CaptureError(f"The key {key!r} of {self.where} should be {expected}, but is {shown}.")


def read_document(file: Path) -> Entry:
    """The top object of a JSON file. Raises CaptureError for anything that is not one."""
    try:
        size = os.path.getsize(file)
        if size > MAX_JSON_BYTES:
            raise CaptureError(
                f"{file} is {size >> 20} MiB; a camera list beyond {MAX_JSON_BYTES >> 20} MiB is not read."
            )
        values = json.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise CaptureError(f"{file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise CaptureError(f"{file} is not UTF-8 text: byte {error.start} does not belong there.") from error
    except json.JSONDecodeError as error:
        raise CaptureError(
            f"{file} is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}."
        ) from error
    except (RecursionError, ValueError) as error:
        raise CaptureError(
            f"{file} is not a camera list: it is nested too deep or holds a number too long to read."
        ) from error
    if not isinstance(values, dict):
        raise CaptureError(
            f"{file} should hold one JSON object with a list 'frames', but holds a {type(values).__name__}."
        )
    return Entry(values, str(file))


# --- frames ---------------------------------------------------------------------------------------------------------


def read_frames(document: Entry, root: Path, tally: Tally, names: Names | None = None) -> list[tuple[Frame, str]]:
    """Every usable frame with its file_path as written (normalised), sorted naturally by it. The others are tallied."""
    names = names or Names()
    frames: list[tuple[Frame, str]] = []
    taken: set[str] = set()
    entries = [Entry(v, f"frame {i} of {document.where}", document) for i, v in enumerate(document.objects("frames"))]
    written = [_file_path(entry) for entry in entries]
    for i in sorted(range(len(entries)), key=lambda i: natural_key(written[i])):
        if written[i] in taken:
            tally.add("were left out because the same picture is listed before", written[i])
            continue
        taken.add(written[i])
        try:
            frames.append((_frame(entries[i], root, written[i], tally, names), written[i]))
        except FrameError as reason:
            tally.add(str(reason), written[i])
    return frames


def _file_path(entry: Entry) -> str:
    written = entry.text("file_path") if "file_path" in entry.values else None
    if not written:
        raise CaptureError(
            f"The key 'file_path' of {entry.where} is missing or empty; every frame names its picture there."
        )
    return normalised(written)


def normalised(written: str) -> str:
    """A path as this reader compares it: './a//b.png' and 'a\\b.png' are 'a/b.png'."""
    return posixpath.normpath(written.replace("\\", "/"))


def _frame(entry: Entry, root: Path, written: str, tally: Tally, names: Names) -> Frame:
    # The path as written goes to the disk first: normalising a '..' that follows a symbolic link changes its meaning.
    path = find_picture(root, str(entry.get("file_path")))
    if path is None:
        raise FrameError("were left out because the picture is not on disk")
    matrix = _matrix(entry, tally, written)
    header = read_header(path)
    camera = replace(intrinsics_of(entry, header), cam_from_world=cam_from_world(matrix))
    fitted, rotate = fit_camera(camera, header)
    if (fitted.width, fitted.height) != (camera.width, camera.height):
        tally.add("have intrinsics for another size than the picture's, which were scaled", written)
    mask, inverted, silhouette = _mask(entry, root, path, tally, written)
    depth, depth_scale = _depth(entry, root, tally, written)
    # file_path may lack the suffix; the name has it, so that 'r_0' of two folders or types cannot be mixed up.
    suffix = path.name[len(posixpath.basename(written)) :] if path.name.startswith(posixpath.basename(written)) else ""
    return Frame(
        path=path,
        camera=fitted,
        name=names.new(written + suffix),
        mask=mask,
        depth=depth,
        depth_scale=depth_scale,
        time=entry.number("time"),
        group=entry.text("group"),
        mask_inverted=inverted,
        mask_is_alpha=silhouette,
        exif_rotate=rotate,
    )


def _matrix(entry: Entry, tally: Tally, written: str) -> np.ndarray:
    """camera-to-world [3 or 4, 4], with OpenCV camera axes."""
    shapes = ((4, 4), (3, 4))
    matrix = entry.matrix("transform_matrix", *shapes)
    if matrix is None:
        start, end = entry.matrix("transform_matrix_start", *shapes), entry.matrix("transform_matrix_end", *shapes)
        if start is None or end is None:
            raise FrameError("were left out because they have no transform_matrix")
        middle = 0.5 * (start[:3] + end[:3])
        if np.isfinite(middle).all():
            # The chord's midpoint is shorter than the arc's; the rotation nearest to it is the arc's.
            left, _, right = np.linalg.svd(middle[:, :3])
            middle[:, :3] = left @ right
        if np.abs(start - end).max() > 0:
            tally.add("moved during the exposure, and are given the pose at its middle", written)
        matrix = middle
    from_opencv = OPENCV_FROM_MITSUBA if entry.flag("from_mitsuba") else OPENCV_FROM_OPENGL
    # Infinity times zero is no number; the pose is refused for either.
    with np.errstate(invalid="ignore"):
        matrix[:3, :3] = matrix[:3, :3] @ from_opencv
    return matrix


def _mask(entry: Entry, root: Path, path: Path, tally: Tally, written: str) -> tuple[Path | None, bool, bool]:
    """The mask of a frame, whether its non-zero pixels are the ones to ignore, and whether it is a silhouette."""
    named = entry.text("mask_path")
    if named:
        mask = find_picture(root, named)
        if mask is None:
            tally.add("name a mask that is not on disk, and are used whole", written)
            return None, False, False
        return mask, entry.flag("mask_inverted"), entry.flag("mask_is_alpha")
    dynamic = path.parent / f"dynamic_mask_{path.stem}.png"
    if os.path.isfile(dynamic):
        return dynamic, True, False
    alpha = path.parent / f"{path.stem}.alpha{path.suffix}"
    return (alpha, False, False) if os.path.isfile(alpha) else (None, False, False)


def _depth(entry: Entry, root: Path, tally: Tally, written: str) -> tuple[Path | None, float]:
    """The depth map of a frame and the factor from its values to capture units."""
    default = Frame.depth_scale
    named = entry.text("depth_file_path")
    stated = entry.number("depth_unit_scale_factor")
    scale = default if stated is None else stated
    if not named and (named := entry.text("depth_path")):
        stated = entry.number("integer_depth_scale")
        if stated is None:
            tally.add("have a depth map of unknown unit (no integer_depth_scale), which is ignored", written)
            return None, default
        scale = stated
    if not named:
        return None, default
    depth = os.path.join(root, named)
    if not os.path.isfile(depth):
        tally.add("name a depth map that is not on disk", written)
        return None, default
    if not scale > 0:
        tally.add("have a depth map whose unit is not a positive number, which is ignored", written)
        return None, default
    return Path(depth), scale


# --- intrinsics -----------------------------------------------------------------------------------------------------


def intrinsics_of(entry: Entry, header: Header) -> Camera:
    """The camera of a frame, at the origin, at the size that the file states (by default the picture's)."""
    width, height = _side(entry, "w", header.width), _side(entry, "h", header.height)
    lens, coefficients = _lens(entry)
    cx, cy = entry.number("cx"), entry.number("cy")
    cx, cy = width / 2 if cx is None else cx, height / 2 if cy is None else cy
    if lens is Lens.EQUIRECTANGULAR:
        fx, fy, cx, cy = width / (2 * math.pi), height / math.pi, width / 2, height / 2
    else:
        fx, fy = _focal_lengths(entry, width, height)
    return Camera(
        cam_from_world=torch.eye(4, dtype=torch.float64)[:3],
        intrinsics=torch.tensor([fx, fy, cx, cy], dtype=torch.float64),
        distortion=torch.tensor(coefficients, dtype=torch.float64),
        width=width,
        height=height,
        lens=lens,
    )


def _side(entry: Entry, key: str, default: int) -> int:
    value = entry.number(key)
    if value is None:
        return default
    if value != int(value) or not 0 < value <= LARGEST_SIDE:
        raise CaptureError(f"The key {key!r} of {entry.where} should be a whole number of pixels, but is {value:g}.")
    return int(value)


def _focal_lengths(entry: Entry, width: int, height: int) -> tuple[float, float]:
    """fx, fy in pixels. A frame's own key of any spelling goes before the file's; fy defaults to fx, and fx to fy."""
    fx = _focal_length(entry, "x", width)
    fy = _focal_length(entry, "y", height)
    fx, fy = fx or fy, fy or fx
    if fx is None or fy is None:
        raise CaptureError(f"{entry.where} has no focal length: neither fl_x, camera_angle_x nor x_fov is there.")
    return fx, fy


def _focal_length(entry: Entry, axis: str, side: int) -> float | None:
    """One focal length in pixels, from the first of its keys, or None without any."""
    keys = (f"fl_{axis}", f"camera_angle_{axis}", f"{axis}_fov")
    scopes = (entry.values, entry.parent.values) if entry.parent is not None else (entry.values,)
    key = next((key for scope in scopes for key in keys if scope.get(key) is not None), None)
    if key is None:
        return None
    value = entry.number(key)
    assert value is not None
    if key == keys[0]:
        if not value > 0:
            raise CaptureError(f"The key {key!r} of {entry.where} should be positive, but is {value:g}.")
        return value
    angle = math.radians(value) if key == keys[2] else value
    if not 0 < angle < math.pi:
        raise CaptureError(f"The key {key!r} of {entry.where} should be an angle below 180 degrees, but is {value:g}.")
    return 0.5 * side / math.tan(0.5 * angle)


def _lens(entry: Entry) -> tuple[Lens, list[float]]:
    """The lens and its coefficients in COLMAP's order: the named model, or the next of its family that holds them."""
    named = (entry.text("camera_model") or "").upper()
    exact = (entry.text("lens") or "").upper()
    if exact in Lens.__members__ and WRITTEN_AS.get(Lens(exact)) == named:
        named = exact
    if named == "EQUIRECTANGULAR" or entry.flag("latlong") or entry.flag("equirectangular"):
        return Lens.EQUIRECTANGULAR, []
    if entry.flag("orthographic"):
        return Lens.ORTHOGRAPHIC, []
    if entry.get("ftheta_p0") is not None:
        raise CaptureError(
            f"{entry.where} uses the f-theta lens, which is not supported; undistort the pictures first."
        )
    lens = LENS_NAMES.get(named) or (Lens(named) if named in Lens.__members__ else None)
    if named and lens is None:
        known = ", ".join([*Lens.__members__, *LENS_NAMES])
        raise CaptureError(f"The camera_model {named!r} of {entry.where} is not supported; these are: {known}.")
    if lens is Lens.ORTHOGRAPHIC:
        return lens, []
    values = _coefficients(entry, lens)
    if lens is Lens.FOV:
        return lens, [values["omega"]]
    used = {key for key, value in values.items() if value != 0}
    family = FISHEYE if lens in FISHEYE or (lens is None and entry.flag("is_fisheye")) else PERSPECTIVE
    if lens is None:
        lens = Lens.OPENCV_FISHEYE if family is FISHEYE else Lens.OPENCV if used else Lens.PINHOLE
    if family is PERSPECTIVE and lens is not Lens.FULL_OPENCV and "k4" in used:
        # r^8 to nerfstudio, a denominator to OpenCV, a slot shared with p2 to instant-ngp.
        raise CaptureError(
            f"k4 of {entry.where} has no agreed meaning for the lens {lens.value}; undistort the pictures first."
        )
    ladder = list(family)
    for candidate in [lens, *ladder[ladder.index(lens) :]]:
        if used <= set(family[candidate]):
            return candidate, [values[key] for key in family[candidate]]
    raise CaptureError(
        f"{entry.where} mixes lens coefficients ({', '.join(sorted(used))}) that no known lens model has."
    )


def _coefficients(entry: Entry, lens: Lens | None) -> dict[str, float]:
    """Every coefficient by key, 0 where absent. distortion_params replaces the keys, as in nerfstudio."""
    values = dict.fromkeys((*COEFFICIENTS, "omega"), 0.0)
    params = entry.numbers("distortion_params")
    if params is None:
        values.update({key: entry.number(key) or 0.0 for key in COEFFICIENTS})
        if lens is Lens.FOV:
            raise CaptureError(f"The lens FOV of {entry.where} needs its one coefficient in distortion_params.")
        return values
    own_order = {
        Lens.FULL_OPENCV: PERSPECTIVE[Lens.FULL_OPENCV],
        Lens.THIN_PRISM_FISHEYE: FISHEYE[Lens.THIN_PRISM_FISHEYE],
        Lens.FOV: ("omega",),
    }
    keys = own_order.get(lens, NERFSTUDIO_PARAMS) if lens is not None else NERFSTUDIO_PARAMS
    if len(params) != len(keys):
        raise CaptureError(
            f"distortion_params of {entry.where} should be {' '.join(keys)}, but has {len(params)} numbers."
        )
    values.update(zip(keys, params, strict=True))
    return values


# --- what concerns the whole capture --------------------------------------------------------------------------------


def _split(frames: list[tuple[Frame, str]], document: Entry, tally: Tally) -> tuple[list[tuple[Frame, str]], list[str]]:
    """Frames with their split set from the file's own lists, without those that the lists keep from both uses.

    One missing list is what the other leaves. Also returns the names in the lists that belong to no frame.
    """
    lists = {key: document.texts(f"{key}_filenames") for key in ("train", "val", "test")}
    if all(names is None for names in lists.values()):
        return frames, []
    train = None if lists["train"] is None else {normalised(name) for name in lists["train"]}
    # Without a test list the validation list is what the author held out.
    held_out = lists["test"] if lists["test"] is not None else lists["val"]
    test = None if held_out is None else {normalised(name) for name in held_out}
    kept = []
    for frame, written in frames:
        in_train, in_test = written in (train or ()), written in (test or ())
        if in_train and in_test:
            tally.add("are in the training and in the test list, and are used for training", written)
        if in_train or (train is None and not in_test):
            kept.append((replace(frame, split="train"), written))
        elif in_test or test is None:
            kept.append((replace(frame, split="test"), written))
        else:
            tally.add("were left out because neither the training nor the test list names them", written)
    known = {normalised(str(values.get("file_path"))) for values in document.objects("frames")}
    return kept, sorted(((train or set()) | (test or set())) - known)


def _points(document: Entry, root: Path, notes: list[str]) -> Points | None:
    """Seed points. A file that is missing or damaged is a note: training works without."""
    named = document.text("ply_file_path")
    if not named:
        return None
    path = root / named
    if not os.path.isfile(path):
        notes.append(f"The point cloud {named} is not on disk.")
        return None
    try:
        return ply.read_points(path)
    except CaptureError as error:
        notes.append(f"The point cloud is ignored. {error}")
        return None


def _bounds(document: Entry) -> Tensor | None:
    """The box that holds everything, when the author says there is one.

    instant-ngp traces rays in a cube of side aabb_scale round (.5, .5, .5), in coordinates scale * x + offset, or with
    `aabb` such that this box fits the unit cube. Only a side of 1 says that the content was known to fit.
    """
    scale = document.number("aabb_scale")
    box = document.matrix("aabb", (2, 3))
    if scale is not None and scale > 1:
        return None
    if box is not None:
        lower, upper = np.sort(box, axis=0)
        return torch.from_numpy(np.stack([lower, upper])) if np.isfinite(box).all() and (lower < upper).all() else None
    if scale is None:
        return None
    factor = document.number("scale") or 0.33
    # One number stands for all three axes.
    one = isinstance(document.get("offset"), (int, float))
    shift = [document.number("offset")] * 3 if one else document.numbers("offset", 3) or [0.5] * 3
    unit_cube = torch.tensor([[0.0] * 3, [1.0] * 3], dtype=torch.float64)
    box_of_cube: Tensor = (unit_cube - torch.tensor(shift, dtype=torch.float64)) / factor
    return box_of_cube if factor > 0 else None


def _up(document: Entry) -> Tensor | None:
    up = document.numbers("up", 3)
    if up is None or not 1e-6 < math.hypot(*up) < 1e6:
        return None
    vector = torch.tensor(up, dtype=torch.float64)
    unit: Tensor = vector / vector.norm()
    return unit


def _orientation(document: Entry) -> str | None:
    named = document.text("orientation_override")
    if named is not None and named not in ("pca", "up", "vertical", "none"):
        raise CaptureError(
            f"orientation_override of {document.where} should be pca, up, vertical or none, but is {named!r}."
        )
    # `vertical` is another estimator of the same thing.
    return "up" if named == "vertical" else named


def _crop_radius(document: Entry, frames: Sequence[tuple[Frame, str]], notes: list[str]) -> float | None:
    """Pixels of the pictures on disk. The files of the EyefulTower data set state a fraction of the width instead."""
    radius = document.number("fisheye_crop_radius")
    if radius is None:
        return None
    camera = frames[0][0].camera
    assert camera is not None
    if not radius > 0:
        raise CaptureError(f"fisheye_crop_radius of {document.where} should be positive, but is {radius:g}.")
    if radius <= 1:
        notes.append(f"fisheye_crop_radius {radius:g} is read as a fraction of the picture's width.")
        return radius * camera.width
    stated = document.number("w")
    long_side = max(stated, document.number("h") or 0) if stated else max(camera.width, camera.height)
    return radius * max(camera.width, camera.height) / long_side


def _original_from_capture(document: Entry, notes: list[str]) -> Similarity:
    """applied_transform [3, 4] took the original world to the file's, and applied_scale scaled what came out."""
    matrix = document.matrix("applied_transform", (3, 4), (4, 4))
    matrix = np.eye(4)[:3] if matrix is None else matrix[:3]
    applied_scale = document.number("applied_scale")
    scale = 1.0 if applied_scale is None else applied_scale
    with np.errstate(all="ignore"):
        inner = np.cbrt(np.linalg.det(matrix[:, :3])) if np.isfinite(matrix).all() else 0.0
    if not 1e-12 < scale * inner < 1e12 or not scale > 0:
        notes.append(
            "applied_transform and applied_scale are ignored: they are not a rotation, a shift and a positive scale."
        )
        return Similarity.identity()
    try:
        rotation = nearest_rotation(matrix[:, :3] / inner)
    except FrameError:
        notes.append("applied_transform is ignored: it is not a rotation, a shift and a scale.")
        return Similarity.identity()
    shift = torch.from_numpy(scale * matrix[:, 3])
    return Similarity(scale * inner, torch.from_numpy(rotation), shift).inverse()


# --- writing --------------------------------------------------------------------------------------------------------


def write(capture: Capture, path: Path) -> Path:
    """Write a capture as transforms.json, and its points as a PLY beside it. The pictures stay where they are.

    path: a folder, which gets transforms.json, or a name that ends in .json. Returns the file. Reading it back gives
    the same cameras, masks, depths, split, bounds, up, points and colours; point tracks and notes have no place in the
    format. nerfstudio and instant-ngp read it, but for lenses that they do not have (FULL_OPENCV, THIN_PRISM_FISHEYE,
    FOV). Raises ValueError when a frame has no camera (use capture.posed()), RunError when it cannot be written.
    """
    file = path if path.suffix.lower() == ".json" else path / "transforms.json"
    document = _document(capture, file)
    if capture.points is not None:
        # Several camera lists may lie in one folder, each with points of its own.
        document["ply_file_path"] = "points.ply" if file.stem == "transforms" else f"{file.stem}_points.ply"
        ply.write_points(file.with_name(document["ply_file_path"]), capture.points)
    # frames go last, so that a person who opens the file meets the short part first.
    document["frames"] = document.pop("frames")
    with whole_file(file) as partial:
        partial.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
    return file


def _document(capture: Capture, file: Path) -> dict[str, Any]:
    frames: list[dict[str, Any]] = []
    for frame in capture.frames:
        if frame.camera is None:
            raise ValueError(
                f"capture: expected every frame to have a camera, got {frame.name!r} without; use capture.posed()"
            )
        frames.append(_written_frame(frame, frame.camera, file.parent))
    document = shared(frames)
    if any(f.split is not None for f in capture.frames):
        # nerfstudio wants a list for every split it asks for, and knows no difference between val and test.
        for key, split in (("train", "train"), ("val", "test"), ("test", "test")):
            written = [w["file_path"] for w, f in zip(frames, capture.frames, strict=True) if f.split == split]
            document[f"{key}_filenames"] = written
    document.update(facts(capture))
    if capture.fisheye_crop_radius is not None:
        document["fisheye_crop_radius"] = capture.fisheye_crop_radius
    document["frames"] = frames
    return document


def facts(capture: Capture) -> dict[str, Any]:
    """The keys at the top that say something about all of a capture; `with_facts` reads them."""
    capture_from_original = capture.original_from_capture.inverse()
    rotation, shift = capture_from_original.rotation, capture_from_original.translation / capture_from_original.scale
    optional = {
        "aabb": None if capture.bounds is None else capture.bounds.tolist(),
        "up": None if capture.up is None else capture.up.tolist(),
        "metric": capture.metric or None,
        "background": capture.background,
        "near": capture.near,
        "far": capture.far,
        "orientation_override": capture.orientation,
    }
    return {
        "applied_transform": torch.cat([rotation, shift[:, None]], dim=1).tolist(),
        "applied_scale": float(capture_from_original.scale),
        **{key: value for key, value in optional.items() if value is not None},
    }


def shared(frames: list[dict[str, Any]]) -> dict[str, Any]:
    """Moves what all frames say alike to the top, where readers that know only global intrinsics look for it.

    Coefficients move together or not at all: nerfstudio ignores those of the frames once it has met one at the top.
    """
    first = frames[0] if frames else {}
    per_frame = (
        *("file_path", "transform_matrix", "mask_path", "depth_file_path", "time"),
        *("mask_inverted", "mask_is_alpha", "depth_path", "integer_depth_scale", "group"),
    )
    together = (*COEFFICIENTS, "distortion_params")
    groups = [(key,) for key in first if key not in (*per_frame, *together)] + [together]
    shared: dict[str, Any] = {}
    for group in groups:
        # A dictionary lookup that finds nothing gives None, which no frame writes.
        if all(frame.get(key) == first.get(key) for frame in frames for key in group):
            shared.update({key: first[key] for key in group if key in first})
            for frame in frames:
                for key in group:
                    frame.pop(key, None)
    return shared


def _written_frame(frame: Frame, camera: Camera, folder: Path) -> dict[str, Any]:
    fx, fy, cx, cy = camera.intrinsics.tolist()
    entry: dict[str, Any] = {
        "file_path": relative(frame.path, folder),
        "w": camera.width,
        "h": camera.height,
        "fl_x": fx,
        "fl_y": fy,
        "cx": cx,
        "cy": cy,
    }
    if camera.lens is Lens.EQUIRECTANGULAR:
        # nerfstudio's convention for panoramas; the reader knows the rest from the size.
        entry.update(fl_x=camera.width / 2, fl_y=float(camera.height), latlong=True)
    entry["camera_model"] = WRITTEN_AS.get(camera.lens, camera.lens.value)
    if camera.lens in WRITTEN_AS:
        entry["lens"] = camera.lens.value
    if camera.lens in FISHEYE:
        entry["is_fisheye"] = True
    coefficients = camera.distortion.tolist()
    if camera.lens is Lens.FOV:
        entry["distortion_params"] = coefficients
    else:
        keys = PERSPECTIVE.get(camera.lens) or FISHEYE.get(camera.lens) or ()
        entry.update(zip(keys, coefficients, strict=True))
    entry["transform_matrix"] = opengl_rows(camera)
    if frame.mask is not None:
        entry["mask_path"] = relative(frame.mask, folder)
        if frame.mask_inverted:
            entry["mask_inverted"] = True
        if frame.mask_is_alpha:
            entry["mask_is_alpha"] = True
    if frame.depth is not None:
        entry["depth_file_path"] = relative(frame.depth, folder)
        entry["depth_unit_scale_factor"] = frame.depth_scale
    if frame.time is not None:
        entry["time"] = frame.time
    if frame.group is not None:
        entry["group"] = frame.group
    return entry


def opengl_rows(camera: Camera) -> list[list[float]]:
    """camera-to-world [4, 4] with OpenGL camera axes, as rows."""
    world_from_cam = camera.world_from_cam.numpy()
    rows = np.concatenate([world_from_cam[:, :3] @ OPENCV_FROM_OPENGL, world_from_cam[:, 3:]], axis=1)
    # Adding 0 turns -0.0 into 0.0, which reads better and changes nothing.
    return [*(rows + 0.0).tolist(), [0.0, 0.0, 0.0, 1.0]]


def relative(path: Path, folder: Path) -> str:
    """A path as seen from a folder, with forward slashes; absolute where no relative one exists (another drive)."""
    plain, base = os.path.abspath(path), os.path.abspath(folder)
    if not plain.startswith(base + os.sep):
        # '..' climbs out of the folder that a symbolic link leads to, so both ends must be the real ones.
        plain, base = os.path.realpath(path), os.path.realpath(folder)
    try:
        return os.path.relpath(plain, base).replace(os.sep, "/")
    except ValueError:
        return plain.replace(os.sep, "/")
