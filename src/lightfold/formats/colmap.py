"""COLMAP models: cameras, images and points3D, as .bin or .txt.

Poses are world-to-camera with Hamilton quaternions (w first), axes are OpenCV's and pixel centres lie at +0.5, so
nothing is converted. Ids need not be contiguous or sorted. Newer releases add rigs and frames files, which repeat what
images holds; they are written, and not read. The file layouts are those of COLMAP's documentation, "Output Format".
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..cameras import Camera, Lens
from ..capture import Capture, Frame, Points
from ..errors import CaptureError
from ..files import whole_file
from ..geometry import quaternion_from_rotation, rotation_from_quaternion
from .frames import (
    LARGEST_SIDE,
    PICTURE_SUFFIXES,
    FrameError,
    Names,
    Tally,
    find_companion,
    fit_camera,
    listed,
    natural_key,
    printable,
    read_header,
    require_frames,
    smaller_note,
)

LOOKS_FOR = "cameras and images (.bin or .txt) in it, or in sparse/0, sparse, colmap/sparse/0 or dense/sparse inside it"
SPARSE_FOLDERS = ("sparse", "colmap/sparse", "colmap", "dense/sparse", "dense")
PICTURE_FOLDERS = ("images", "images_2", "images_4", "images_8")
# Model id -> name and number of parameters; 0 parameters marks a model that this project has no lens for.
MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 0),
    12: ("SIMPLE_DIVISION", 0),
    13: ("DIVISION", 0),
    14: ("SIMPLE_FISHEYE", 3),
    15: ("FISHEYE", 4),
    16: ("EUCM", 0),
    17: ("EQUIRECTANGULAR", 2),
}
SUPPORTED = tuple(name for name, count in MODELS.values() if count)


def sniff(path: Path) -> bool:
    """True for a folder that holds a model or contains one in a usual place, and for a picture folder beside one."""
    return bool(_models(path)) or (path.name in PICTURE_FOLDERS and bool(_models(path.parent)))


def read(path: Path) -> Capture:
    """Read the model with the most images, and find its pictures beside or above it.

    Masks (masks/NAME.png) and depth maps (depths/NAME.png or .npy, else those of a dense workspace) parallel to the
    pictures are taken along. Naming a picture folder, such as SCENE/images_4, chooses it. Raises CaptureError.
    """
    chosen = path if path.name in PICTURE_FOLDERS and not _models(path) else None
    root = path.parent if chosen is not None else path
    models = _models(root)
    if not models:
        raise CaptureError(f"{root} holds no COLMAP model. Looked for {LOOKS_FOR}.")
    notes: list[str] = []
    model = _largest(models, notes)
    cameras = _read(model, "cameras")
    images = sorted(_read(model, "images"), key=lambda image: natural_key(image.name))
    folder = chosen or _picture_folder(root, model, images)
    tally = Tally()
    frames, frame_of_image = _frames(images, {c.id: c for c in cameras}, folder, tally)
    notes += [*smaller_note(frames), *tally.notes(len(images), "images")]
    require_frames(frames, len(images), model, notes)
    return Capture(
        root=root,
        format="colmap",
        frames=tuple(frames),
        points=_points(model, frame_of_image, notes),
        notes=tuple(notes),
    )


# --- which model, which pictures ------------------------------------------------------------------------------------


def _models(path: Path) -> list[Path]:
    """Folders that hold a model: path itself, or the usual places inside it and their numbered sub-folders."""
    if _is_model(path):
        return [path]
    found: list[Path] = []
    for place in (path / name for name in SPARSE_FOLDERS):
        numbered = []
        if os.path.isdir(place):
            try:
                numbered = sorted((e for e in place.iterdir() if e.name.isdecimal()), key=lambda e: natural_key(e.name))
            except OSError:
                numbered = []
        found += [folder for folder in (*numbered, place) if _is_model(folder)]
    return found


def _is_model(path: Path) -> bool:
    return all(any(os.path.isfile(path / f"{kind}.{end}") for end in ("bin", "txt")) for kind in ("cameras", "images"))


def _largest(models: list[Path], notes: list[str]) -> Path:
    """The model with the most images; the mapper numbers its models by the order of their birth, not by their size."""
    if len(models) == 1:
        return models[0]
    sizes = [_image_count(model) for model in models]
    best = max(range(len(models)), key=lambda i: (sizes[i], -i))
    others = [
        f"{model} ({size} images)" for i, (model, size) in enumerate(zip(models, sizes, strict=True)) if i != best
    ]
    notes.append(
        f"Of {len(models)} models, {models[best]} with {sizes[best]} images is used, and not {listed(others)}."
    )
    return models[best]


def _image_count(model: Path) -> int:
    """Images that a model says it has; 0 when its file cannot be read, so that another is chosen."""
    binary = model / "images.bin"
    try:
        if os.path.isfile(binary):
            with open(binary, "rb") as file:
                start = file.read(8)
            return struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        return sum(1 for _ in _image_lines(model / "images.txt"))
    except (OSError, CaptureError):
        return 0


def _picture_folder(root: Path, model: Path, images: list[_Image]) -> Path:
    """The folder in which the most images of the model are found; the full-size one in a tie. Raises CaptureError."""
    if not images:
        raise CaptureError(f"The COLMAP model {model} has no images.")
    # From the model upwards, so that dense/sparse finds the undistorted dense/images before the originals in images; at
    # most to the capture that was named, or three levels when the model itself was (colmap/sparse/0).
    above = [model, *list(model.parents)[: 3 if root == model else len(model.relative_to(root).parts)]]
    places = [place / name for name in PICTURE_FOLDERS for place in above] + above
    best, most = None, 0
    for place in dict.fromkeys(places):
        if not os.path.isdir(place):
            continue
        count = sum(_picture(place, image.name) is not None for image in images)
        if count > most:
            best, most = place, count
        if most == len(images):
            break
    if best is None:
        tried = ", ".join(str(place) for place in reversed(above))
        raise CaptureError(
            f"None of the {len(images)} pictures of the COLMAP model {model} (such as "
            f"{printable(images[0].name)}) is on disk. "
            f"Put them into a folder 'images' in one of {tried}."
        )
    return best


def _picture(folder: Path, name: str) -> Path | None:
    """The picture of an image, also when it has since been saved with another suffix (images_4/x.png for x.JPG)."""
    path = os.path.join(folder, name)
    if os.path.isfile(path):
        return Path(path)
    stem, suffix = os.path.splitext(path)
    if suffix.lower() in PICTURE_SUFFIXES:
        for other in PICTURE_SUFFIXES:
            for end in (other, other.upper()):
                if os.path.isfile(stem + end):
                    return Path(stem + end)
    return None


# --- frames and points ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Intrinsics:
    """One row of cameras."""

    id: int
    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclass(frozen=True)
class _Image:
    """One row of images. pose: qw qx qy qz tx ty tz, cam_from_world."""

    id: int
    pose: tuple[float, ...]
    camera: int
    name: str


def _frames(
    images: list[_Image], cameras: dict[int, _Intrinsics], folder: Path, tally: Tally
) -> tuple[list[Frame], dict[int, int]]:
    """Usable frames, and the index of the frame of each image id."""
    names = Names()
    frames: list[Frame] = []
    frame_of_image: dict[int, int] = {}
    taken: set[str] = set()
    for image in images:
        try:
            if image.name in taken:
                raise FrameError("were left out because an image of the same name comes before")
            taken.add(image.name)
            frame = _frame(image, cameras, folder, tally, names)
        except FrameError as reason:
            tally.add(str(reason), image.name)
            continue
        frame_of_image[image.id] = len(frames)
        frames.append(frame)
    return frames, frame_of_image


def _frame(image: _Image, cameras: dict[int, _Intrinsics], folder: Path, tally: Tally, names: Names) -> Frame:
    path = _picture(folder, image.name)
    if path is None:
        raise FrameError("were left out because the picture is not on disk")
    if image.camera not in cameras:
        raise FrameError("were left out because their camera is not in the model")
    camera = _camera(cameras[image.camera], _cam_from_world(image.pose))
    fitted, rotate = fit_camera(camera, read_header(path))
    if fitted.width != camera.width:
        tally.add("have intrinsics for another size than the picture's, which were scaled", image.name)
    parallel = folder.parent
    # masks_4 goes with images_4; a single masks folder goes with all.
    scale = folder.name.removeprefix("images") if folder.name in PICTURE_FOLDERS else ""
    mask = find_companion(parallel / f"masks{scale}", image.name, (".png", ".jpg", ".jpeg"))
    # What patch_match_stereo leaves is in the model's unit; maps that agree with their neighbours' come first.
    dense = find_companion(parallel / "stereo" / "depth_maps", image.name, (".geometric.bin", ".photometric.bin"))
    depth = find_companion(parallel / "depths", image.name, (".png", ".npy"))
    return Frame(
        path=path,
        camera=fitted,
        name=names.new(image.name),
        mask=mask or find_companion(parallel / "masks", image.name, (".png", ".jpg", ".jpeg")),
        depth=depth or dense,
        depth_scale=1.0 if depth is None and dense is not None else Frame.depth_scale,
        exif_rotate=rotate,
        smaller=_smaller(folder, image.name),
    )


def _smaller(folder: Path, name: str) -> dict[int, Path]:
    """The copies of a picture in images_2, images_4 and images_8 beside images, by their factor."""
    if folder.name != PICTURE_FOLDERS[0]:
        return {}
    others = [other for other in PICTURE_FOLDERS[1:] if os.path.isdir(folder.parent / other)]
    copies = {int(other[-1]): _picture(folder.parent / other, name) for other in others}
    return {factor: copy for factor, copy in copies.items() if copy is not None}


def _camera(row: _Intrinsics, cam_from_world: Tensor) -> Camera:
    if not all(np.isfinite(row.params)) or not row.params[0] > 0:
        raise FrameError(
            "were left out because their camera holds NaN, infinity or a focal length that is not positive"
        )
    try:
        return Camera.from_colmap(row.model, list(row.params), row.width, row.height, cam_from_world)
    except ValueError as error:
        raise FrameError("were left out because the parameters of their camera do not fit its model") from error


def _cam_from_world(pose: tuple[float, ...]) -> Tensor:
    numbers = torch.tensor(pose, dtype=torch.float64)
    norm = numbers[:4].norm()
    if not torch.isfinite(numbers).all() or not 1e-6 < norm < 1e6:
        raise FrameError("were left out because the pose holds NaN, infinity or a quaternion of length 0")
    return torch.cat([rotation_from_quaternion(numbers[:4] / norm), numbers[4:, None]], dim=1)


def _points(model: Path, frame_of_image: dict[int, int], notes: list[str]) -> Points | None:
    """points3D with the tracks of the frames that are used. None without the file."""
    if not any(os.path.isfile(model / f"points3D.{end}") for end in ("bin", "txt")):
        notes.append(f"{model} has no points3D file; near planes must be found without it.")
        return None
    rows: list[tuple[float, ...]] = []
    seen_by: list[np.ndarray] = []
    for row, images in _read(model, "points3D"):
        if np.isfinite(row[:3]).all():
            rows.append(row)
            seen_by.append(images)
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    point_index = np.repeat(np.arange(len(rows)), [len(images) for images in seen_by])
    image_id = np.concatenate(seen_by) if seen_by else np.zeros(0, dtype=np.int64)
    known, inverse = np.unique(image_id, return_inverse=True)
    frame_index = np.array([frame_of_image.get(int(i), -1) for i in known], dtype=np.int64)[inverse]
    keep = frame_index >= 0
    return Points(
        xyz=torch.from_numpy(table[:, :3].copy()),
        rgb=torch.from_numpy(np.clip(table[:, 3:6], 0, 255).astype(np.uint8)),
        error=torch.from_numpy(table[:, 6].copy()),
        tracks=(torch.from_numpy(point_index[keep].astype(np.int64)), torch.from_numpy(frame_index[keep])),
    )


def _read(model: Path, kind: str) -> list[Any]:
    """All rows of one file of a model, binary before text. Raises CaptureError."""
    for end, readers in (("bin", BINARY_READERS), ("txt", TEXT_READERS)):
        path = model / f"{kind}.{end}"
        if os.path.isfile(path):
            try:
                return list(readers[kind](path))
            except OSError as error:
                raise CaptureError(f"{path} cannot be read: {error.strerror}.") from error
    raise CaptureError(f"{model} has no {kind}.bin and no {kind}.txt.")


def _intrinsics(
    path: Path, camera: int, model: int | str, width: int, height: int, params: tuple[float, ...]
) -> _Intrinsics:
    """A checked row of cameras. Raises CaptureError, with number and name of a model that there is no lens for."""
    name = MODELS[model][0] if isinstance(model, int) and model in MODELS else model
    if name not in SUPPORTED:
        number = next((i for i, (known, _) in MODELS.items() if known == name), "unknown")
        spelled = f"number {model}, unknown" if isinstance(name, int) else f"{name}, number {number}"
        raise CaptureError(
            f"Camera {camera} of {path} has a lens model that is not supported ({spelled}). Supported are "
            f"{', '.join(SUPPORTED)}; undistort the pictures with COLMAP's image_undistorter to use the others."
        )
    if not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE):
        raise CaptureError(f"Camera {camera} of {path} has an impossible size of {width} x {height} pixels.")
    return _Intrinsics(camera, str(name), width, height, params)


Row = TypeVar("Row")


# --- binary ---------------------------------------------------------------------------------------------------------


class _Bytes:
    """A little-endian file read from front to back, which knows where it is and what it is in the middle of."""

    def __init__(self, path: Path) -> None:
        self.path, self.at, self.record, self.start = path, 0, "the header", 0
        with open(path, "rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            # An empty file cannot be mapped.
            self.data: bytes | mmap.mmap = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""

    def begin(self, record: str) -> None:
        self.record, self.start = record, self.at

    def skip(self, count: int) -> int:
        """Move on by `count` bytes; returns where they began. Raises CaptureError when the file ends before."""
        if count > self.size - self.at:
            raise CaptureError(
                f"{self.path} is truncated: it ends at byte {self.size}, inside {self.record}, which begins at byte "
                f"{self.start}."
            )
        begun, self.at = self.at, self.at + count
        return begun

    def numbers(self, layout: str) -> tuple[Any, ...]:
        layout = "<" + layout
        return struct.unpack_from(layout, self.data, self.skip(struct.calcsize(layout)))

    def text(self) -> str:
        end = self.data.find(b"\0", self.at)
        if end < 0:
            self.skip(self.size - self.at + 1)
        begun = self.skip(end + 1 - self.at)
        # Names are bytes to COLMAP and to the disk; fsdecode gives back a name that opens the same file.
        return os.fsdecode(bytes(self.data[begun:end]))

    def array(self, kind: str, count: int) -> np.ndarray:
        begun = self.skip(count * np.dtype(kind).itemsize)
        return np.frombuffer(bytes(self.data[begun : self.at]), dtype=kind)


def binary_cameras(path: Path) -> Iterator[_Intrinsics]:
    """The rows of cameras.bin. Raises CaptureError, and OSError."""
    file = _Bytes(path)
    (count,) = file.numbers("Q")
    for i in range(count):
        file.begin(f"camera {i + 1} of {count}")
        camera, model, width, height = file.numbers("IiQQ")
        if model not in MODELS or MODELS[model][1] == 0:
            _intrinsics(path, camera, model, width, height, ())
        yield _intrinsics(path, camera, model, width, height, file.numbers(f"{MODELS[model][1]}d"))


def _binary_images(path: Path) -> Iterator[_Image]:
    file = _Bytes(path)
    (count,) = file.numbers("Q")
    for i in range(count):
        file.begin(f"image {i + 1} of {count}")
        image, *pose, camera = file.numbers("I7dI")
        name = file.text()
        (observations,) = file.numbers("Q")
        # x, y and point id of each; the points list the same observations from their side.
        file.skip(24 * observations)
        yield _Image(image, tuple(pose), camera, name)


def _binary_points(path: Path) -> Iterator[tuple[tuple[float, ...], np.ndarray]]:
    file = _Bytes(path)
    (count,) = file.numbers("Q")
    for i in range(count):
        file.begin(f"point {i + 1} of {count}")
        _, x, y, z, red, green, blue, error, length = file.numbers("Q3d3BdQ")
        yield (x, y, z, red, green, blue, error), file.array("<u4", 2 * length)[::2].astype(np.int64)


# --- text -----------------------------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, comments and empty ones included."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        yield from enumerate(file, start=1)


def _parsed(path: Path, number: int, what: str, words: list[str], parse: Callable[[list[str]], Row]) -> Row:
    try:
        return parse(words)
    except (ValueError, IndexError, OverflowError) as error:
        raise CaptureError(f"Line {number} of {path} is not {what}: {' '.join(words)[:80]!r}.") from error


def text_cameras(path: Path) -> Iterator[_Intrinsics]:
    """The rows of cameras.txt. Raises CaptureError, and OSError."""
    for number, line in _lines(path):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        what = "a camera (ID MODEL WIDTH HEIGHT PARAMETERS)"
        camera, model, width, height, params = _parsed(
            path,
            number,
            what,
            words,
            lambda w: (int(w[0]), w[1], int(w[2]), int(w[3]), tuple(float(p) for p in w[4:])),
        )
        row = _intrinsics(path, camera, model, width, height, params)
        expected = next(count for name, count in MODELS.values() if name == model)
        if len(params) != expected:
            raise CaptureError(f"Line {number} of {path} has {len(params)} parameters; {model} has {expected}.")
        yield row


def _image_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The first of the two lines of each image. The second may be empty, so it is taken together with the first."""
    lines = _lines(path)
    for number, line in lines:
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line
            second, observations = next(lines, (number + 1, ""))
            if len(observations.split()) % 3:
                raise CaptureError(
                    f"Line {second} of {path} should hold the observations (X Y POINT3D_ID) of the line before it."
                )


def _text_images(path: Path) -> Iterator[_Image]:
    for number, line in _image_lines(path):
        # Names may hold spaces, so only the first nine gaps separate.
        words = line.rstrip("\r\n").split(maxsplit=9)
        what = "an image (ID QW QX QY QZ TX TY TZ CAMERA_ID NAME)"
        yield _parsed(
            path,
            number,
            what,
            words,
            lambda w: _Image(int(w[0]), tuple(float(v) for v in w[1:8]), int(w[8]), w[9]),
        )


def _text_points(path: Path) -> Iterator[tuple[tuple[float, ...], np.ndarray]]:
    for number, line in _lines(path):
        words = line.split()
        if words and not words[0].startswith("#"):
            yield _parsed(
                path,
                number,
                "a point (ID X Y Z R G B ERROR TRACK)",
                words,
                lambda w: (
                    (float(w[1]), float(w[2]), float(w[3]), int(w[4]), int(w[5]), int(w[6]), float(w[7])),
                    np.array([int(i) for i in w[8::2]], dtype=np.int64),
                ),
            )


BINARY_READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    "cameras": binary_cameras,
    "images": _binary_images,
    "points3D": _binary_points,
}
TEXT_READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    "cameras": text_cameras,
    "images": _text_images,
    "points3D": _text_points,
}


# --- writing --------------------------------------------------------------------------------------------------------


def write(capture: Capture, path: Path, binary: bool = True) -> None:
    """Write the posed frames of a capture as a COLMAP model in the folder `path`; frames without a pose are left out.

    Images are named relative to the capture's picture folder, which is COLMAP's image path. Frames with the same lens
    and intrinsics share a camera. A capture knows which frames saw a point, but not at which pixel: observations are
    the projections of the point. Points without a colour are black, and without an error have -1, as in COLMAP.

    Raises CaptureError when no frame has a pose, for a lens that COLMAP does not have, for a name that a text file
    cannot hold, and for a folder that holds a model in the other form, which would be taken for this one; RunError when
    a file cannot be written.
    """
    other = "txt" if binary else "bin"
    if os.path.isfile(path / f"images.{other}"):
        raise CaptureError(f"{path} holds a COLMAP model in .{other} files already; choose another folder.")
    cameras, images, points = _tables(capture)
    spaced = [row.image.name for row in images if any(letter.isspace() for letter in row.image.name)]
    if spaced and not binary:
        raise CaptureError(
            f"{printable(spaced[0])} has a space in its name, where COLMAP's text reader ends it; write a binary model."
        )
    contents = (_binary_files if binary else _text_files)(cameras, images, points)
    for name, content in contents.items():
        with whole_file(path / name) as partial:
            partial.write_bytes(content)


@dataclass(frozen=True)
class _Observed:
    """An image with its observations: xy [m, 2] in pixels, and the point id of each."""

    image: _Image
    xy: np.ndarray
    point: np.ndarray


@dataclass(frozen=True)
class _Point:
    """One row of points3D. track: pairs of an image's id and an index into its observations."""

    id: int
    xyz: tuple[float, ...]
    rgb: tuple[int, ...]
    error: float
    track: list[tuple[int, int]]


def _tables(capture: Capture) -> tuple[list[_Intrinsics], list[_Observed], list[_Point]]:
    """The rows of cameras, images and points3D. Ids count from 1: images as the frames come, cameras as they appear."""
    posed = [(i, frame, frame.camera) for i, frame in enumerate(capture.frames) if frame.camera is not None]
    if not posed:
        raise CaptureError(f"{capture.root} has no frame with a pose, so there is no model to write.")
    names = _image_names(capture.root, [frame for _, frame, _ in posed])
    points = _point_rows(capture.points)
    cameras: dict[tuple[object, ...], _Intrinsics] = {}
    images: list[_Observed] = []
    for number, ((index, _, camera), name) in enumerate(zip(posed, names, strict=True), start=1):
        if camera.lens is Lens.ORTHOGRAPHIC:
            raise CaptureError(f"{printable(name)} has the lens {camera.lens.value}, which COLMAP does not have.")
        model, params = camera.to_colmap()
        key = (model, camera.width, camera.height, *params)
        row = cameras.setdefault(key, _Intrinsics(len(cameras) + 1, model, camera.width, camera.height, tuple(params)))
        quaternion = quaternion_from_rotation(camera.cam_from_world[:, :3])
        pose = (*quaternion.tolist(), *camera.cam_from_world[:, 3].tolist())
        xy, seen = _observations(capture.points, index, camera)
        for place, point in enumerate(seen.tolist()):
            points[point].track.append((number, place))
        images.append(_Observed(_Image(number, pose, row.id, name), xy, seen + 1))
    return list(cameras.values()), images, points


def _image_names(root: Path, frames: list[Frame]) -> list[str]:
    """Where the pictures lie, as seen from the capture's folder, or from its `images` when all lie there.

    Raises CaptureError for two frames of one picture, which a model cannot tell apart.
    """
    base = os.path.abspath(root)
    paths = [os.path.abspath(frame.path) for frame in frames]
    inside = all(path.startswith(base + os.sep) for path in paths)
    names = [os.path.relpath(p, base).replace(os.sep, "/") for p in paths] if inside else [f.name for f in frames]
    folders = {name.partition("/")[0] for name in names}
    if len(folders) == 1 and folders <= set(PICTURE_FOLDERS):
        names = [name.partition("/")[2] for name in names]
    if len(set(names)) != len(names):
        raise CaptureError(f"{root} has several frames of one picture, which a COLMAP model cannot hold.")
    return names


def _point_rows(points: Points | None) -> list[_Point]:
    if points is None:
        return []
    count = len(points)
    colours = [[0, 0, 0]] * count if points.rgb is None else points.rgb.tolist()
    errors = [-1.0] * count if points.error is None else points.error.tolist()
    rows = zip(points.xyz.tolist(), colours, errors, strict=True)
    return [_Point(i, tuple(xyz), tuple(rgb), error, []) for i, (xyz, rgb, error) in enumerate(rows, start=1)]


def _observations(points: Points | None, index: int, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [m, 2] and indices [m] of the points that a frame saw, but for those that its lens cannot see."""
    if points is None or points.tracks is None:
        return np.zeros((0, 2)), np.zeros(0, dtype=np.int64)
    point_index, frame_index = points.tracks
    seen = point_index[frame_index == index].unique()
    xy, valid = camera.project(points.xyz[seen])
    return xy[valid].numpy(), seen[valid].numpy()


def _binary_files(cameras: list[_Intrinsics], images: list[_Observed], points: list[_Point]) -> dict[str, bytes]:
    numbers = {name: number for number, (name, _) in MODELS.items()}
    # Every camera is a rig of its own, and every image a frame of it: id, sensors, and its own as sensor type 0.
    tables: dict[str, list[bytes]] = {
        "cameras.bin": [
            struct.pack(f"<IiQQ{len(c.params)}d", c.id, numbers[c.model], c.width, c.height, *c.params) for c in cameras
        ],
        "images.bin": [],
        "points3D.bin": [
            struct.pack("<Q3d3BdQ", p.id, *p.xyz, *p.rgb, p.error, len(p.track)) + np.array(p.track, "<u4").tobytes()
            for p in points
        ],
        "rigs.bin": [struct.pack("<IIiI", c.id, 1, 0, c.id) for c in cameras],
        "frames.bin": [],
    }
    for row in images:
        image, camera = row.image, row.image.camera
        seen = np.empty(len(row.point), dtype=[("x", "<f8"), ("y", "<f8"), ("point", "<i8")])
        seen["x"], seen["y"], seen["point"] = row.xy[:, 0], row.xy[:, 1], row.point
        head = struct.pack("<I7dI", image.id, *image.pose, camera) + os.fsencode(image.name) + b"\0"
        tables["images.bin"].append(head + struct.pack("<Q", len(seen)) + seen.tobytes())
        tables["frames.bin"].append(struct.pack("<II7dIiIQ", image.id, camera, *image.pose, 1, 0, camera, image.id))
    return {name: struct.pack("<Q", len(rows)) + b"".join(rows) for name, rows in tables.items()}


def _text_files(cameras: list[_Intrinsics], images: list[_Observed], points: list[_Point]) -> dict[str, bytes]:
    tables = {
        "cameras.txt": [_line(c.id, c.model, c.width, c.height, *c.params) for c in cameras],
        "images.txt": [],
        "points3D.txt": [
            _line(p.id, *p.xyz, *p.rgb, p.error, *(value for pair in p.track for value in pair)) for p in points
        ],
        "rigs.txt": [_line(c.id, 1, "CAMERA", c.id) for c in cameras],
        "frames.txt": [],
    }
    for row in images:
        image, camera = row.image, row.image.camera
        seen = zip(row.xy.tolist(), row.point.tolist(), strict=True)
        tables["images.txt"].append(_line(image.id, *image.pose, camera, image.name))
        tables["images.txt"].append(_line(*(value for (x, y), point in seen for value in (x, y, point))))
        tables["frames.txt"].append(_line(image.id, camera, *image.pose, 1, "CAMERA", camera, image.id))
    return {name: os.fsencode("".join(f"{line}\n" for line in lines)) for name, lines in tables.items()}


def _line(*values: object) -> str:
    """Numbers with all their digits, so that they read back the same."""
    return " ".join(repr(value) if isinstance(value, float) else str(value) for value in values)
