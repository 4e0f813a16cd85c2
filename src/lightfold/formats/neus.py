"""The npz cameras of IDR, which NeuS and its successors share: DTU, BlendedMVS and custom captures (Yariv et al. 2020).

    cameras_sphere.npz (NeuS) or cameras.npz (IDR)
    image/000000.png ...   pictures, matched to the matrices by sorted order, or by number where some are missing
    mask/000.png ...       the object, non-zero inside: a silhouette, so what is outside becomes transparent; blank
                           (all inside) where somebody had none, since NeuS does not start without the files

For picture i, world_mat_i [4, 4] holds the projection K [R | t] from the world (millimetres for DTU) to pixels, with
OpenCV axes, up to scale; scale_mat_i [4, 4] takes the unit sphere that holds the object to the world. K belongs to the
pictures as they are stored, and counts from the **centre** of the first pixel.

The capture's frame is the one of the unit sphere; `original_from_capture` leads back to the world. The box round the
sphere bounds the scene: what lies outside it is background, which the masks take away. Where they are all blank,
nothing takes it away, and nothing bounds the scene.
"""

from __future__ import annotations

import io
import math
import os
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..cameras import Camera, Lens
from ..capture import Capture, Frame
from ..errors import CaptureError
from ..files import whole_file
from ..geometry import Similarity
from .calibration import calibrated, decompose, similarity, skewed
from .frames import (
    FrameError,
    Names,
    Tally,
    list_pictures,
    listed,
    natural_key,
    printable,
    read_header,
    require_frames,
)

LOOKS_FOR = "cameras_sphere.npz or cameras.npz with a folder image beside it"
CAMERA_FILES = ("cameras_sphere.npz", "cameras.npz")
PICTURE_FOLDERS = ("image", "images", "rgb")
MASK_FOLDERS = ("mask", "masks")
MOST_PICTURES = 100_000
LARGEST_MEMBER = 4096
"""Bytes of one unpacked array: a 4x4 matrix takes 256 and its header."""
PERSPECTIVE = (Lens.SIMPLE_PINHOLE, Lens.PINHOLE, Lens.SIMPLE_RADIAL, Lens.RADIAL, Lens.OPENCV, Lens.FULL_OPENCV)
DAMAGE: tuple[type[Exception], ...] = (OSError, ValueError, EOFError, SyntaxError, KeyError, RuntimeError)
DAMAGE += (NotImplementedError, OverflowError, zipfile.BadZipFile, zlib.error, struct.error)
DAMAGE += (tokenize.TokenError,)
"""What zipfile and NumPy raise on files that are damaged, encrypted or no archives at all."""


def sniff(path: Path) -> bool:
    """True for a folder with the camera file and pictures, and for the camera file itself."""
    file = _camera_file(path)
    return file is not None and _folder(file.parent, PICTURE_FOLDERS) is not None


def read(path: Path) -> Capture:
    """Read the cameras into the frame of the unit sphere, with masks where there are any.

    Raises CaptureError, also when pictures and matrices cannot be told which belongs to which.
    """
    file = _camera_file(path)
    if file is None:
        raise CaptureError(f"{path} has no {' and no '.join(CAMERA_FILES)}.")
    root = file.parent
    folder = _folder(root, PICTURE_FOLDERS)
    if folder is None:
        raise CaptureError(f"{file} needs its pictures in a folder {' or '.join(PICTURE_FOLDERS)} beside it.")
    world_mats, scale_mats = _matrices(file)
    pictures = sorted(list_pictures(folder), key=natural_key)
    numbers = _numbers_of(pictures, len(world_mats), file, folder)
    notes: list[str] = []
    world_from_sphere = _normalisation(scale_mats, file, notes)
    masks = _masks(root, pictures, notes)
    blank = bool(masks) and _all_blank(list(masks.values()))
    if blank:
        masks = {}
        notes.append("The masks are blank, so nothing is known to bound the scene.")
    tally, names = Tally(), Names()
    frames = []
    for name, number in zip(pictures, numbers, strict=True):
        try:
            world_mat = world_mats.get(number)
            if world_mat is None:
                raise FrameError(f"were left out because {file.name} has no world_mat for them")
            frame = _frame(world_mat, folder / name, masks.get(name), world_from_sphere, tally, names)
            frames.append(frame)
        except FrameError as reason:
            tally.add(str(reason), name)
    missing = [f"{number:03d}" for number in sorted(world_mats.keys() - set(numbers))]
    if missing:
        notes.append(f"{len(missing)} of {len(world_mats)} cameras of {file.name} have no picture: {listed(missing)}.")
    notes += tally.notes(len(pictures))
    require_frames(frames, len(pictures), file, notes)
    near, far = _depths(frames) if scale_mats else (None, None)
    box = torch.tensor([[-1.0] * 3, [1.0] * 3], dtype=torch.float64)
    return Capture(
        root=root,
        format="neus",
        frames=tuple(frames),
        bounds=box if scale_mats and not blank else None,
        near=None if blank else near,
        far=None if blank else far,
        original_from_capture=world_from_sphere,
        notes=tuple(notes),
    )


def _camera_file(path: Path) -> Path | None:
    if path.name in CAMERA_FILES and os.path.isfile(path):
        return path
    return next((path / name for name in CAMERA_FILES if os.path.isfile(path / name)), None)


def _folder(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if os.path.isdir(root / name)), None)


def _numbers_of(pictures: list[str], count: int, file: Path, folder: Path) -> list[int]:
    """Which matrix belongs to each picture: the order says so, or with some missing the number in the name."""
    if len(pictures) == count:
        return list(range(count))
    stems = [Path(name).stem for name in pictures]
    if all(stem.isascii() and stem.isdigit() and len(stem) < 10 for stem in stems):
        return [int(stem) for stem in stems]
    raise CaptureError(
        f"{file} has {count} cameras and {folder} has {len(pictures)} pictures, whose names are not plain numbers; "
        "they are matched by order, so the numbers must agree."
    )


def _masks(root: Path, pictures: list[str], notes: list[str]) -> dict[str, Path]:
    """The mask of each picture. The two folders count with different numbers of digits, so the order decides."""
    folder = _folder(root, MASK_FOLDERS)
    masks = sorted(list_pictures(folder), key=natural_key) if folder is not None else []
    if folder is None or not masks:
        return {}
    if len(masks) != len(pictures):
        notes.append(f"{folder} has {len(masks)} masks for {len(pictures)} pictures; they are not used.")
        return {}
    return {name: folder / mask for name, mask in zip(pictures, masks, strict=True)}


def _all_blank(masks: list[Path]) -> bool:
    """Whether no mask takes anything away. Real ones say so at the first; one that is damaged is no blank one."""
    for mask in masks:
        try:
            with Image.open(mask) as picture:
                low, _ = picture.convert("L").getextrema()
        except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError):
            return False
        if low == 0:
            return False
    return True


def _normalisation(scale_mats: dict[int, np.ndarray], file: Path, notes: list[str]) -> Similarity:
    """world_from_sphere. One for all: where the matrices differ, the first is taken, which changes no projection."""
    if not scale_mats:
        notes.append(f"{file} has no scale_mat, so the cameras stay in the world and nothing bounds the scene.")
        return Similarity.identity()
    first = scale_mats[min(scale_mats)]
    if any(not np.allclose(other, first) for other in scale_mats.values()):
        notes.append(f"The pictures have different scale_mats in {file}; all are brought into the frame of the first.")
    try:
        return similarity(first)
    except FrameError as error:
        raise CaptureError(f"scale_mat_{min(scale_mats)} of {file} is not a scale, a rotation and a shift.") from error


def _frame(
    world_mat: np.ndarray,
    path: Path,
    mask: Path | None,
    world_from_sphere: Similarity,
    tally: Tally,
    names: Names,
) -> Frame:
    header = read_header(path)
    k, pose = decompose(world_mat[:3])
    width, height = header.width, header.height
    if skewed(k, width, height):
        tally.add("have pixel axes that are not at right angles (skew), which is ignored", path.name)
    if not (0 <= k[0, 2] <= width and 0 <= k[1, 2] <= height):
        tally.add(
            "have their principal point outside the picture, which may be of another size than its camera's", path.name
        )
    intrinsics = (k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5)
    camera = calibrated(Lens.PINHOLE, intrinsics, (), width, height, torch.from_numpy(pose))
    return Frame(
        path=path,
        camera=camera.transformed(world_from_sphere.inverse()),
        name=names.new(f"{path.parent.name}/{path.name}"),
        mask=mask,
        mask_is_alpha=mask is not None,
    )


def _depths(frames: list[Frame]) -> tuple[float | None, float | None]:
    """Depths between which the unit sphere lies for every camera; None when one stands inside it."""
    middle = [float(frame.camera.cam_from_world[2, 3]) for frame in frames if frame.camera is not None]
    return (min(middle) - 1.0, max(middle) + 1.0) if min(middle) > 1.0 else (None, None)


# --- npz ------------------------------------------------------------------------------------------------------------


def _matrices(file: Path) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """world_mat and scale_mat [4, 4] float64 by number.

    An npz is a zip of npy files. Members are read one by one and no further than LARGEST_MEMBER, whatever they claim,
    so that a bomb stays small; pickled objects are refused.
    """
    found: dict[str, dict[int, np.ndarray]] = {"world_mat": {}, "scale_mat": {}}
    member = "its list of members"
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.namelist():
                kind, _, number = member.removesuffix(".npy").rpartition("_")
                if kind in found and number.isascii() and number.isdigit() and len(number) < 7:
                    with archive.open(member) as stream:
                        found[kind][int(number)] = _matrix(stream.read(LARGEST_MEMBER + 1))
                    if len(found[kind]) > MOST_PICTURES:
                        raise ValueError(f"there are more than {MOST_PICTURES}")
    except DAMAGE as error:
        raise CaptureError(f"{file} is not an npz of 4x4 camera matrices: {member}: {error}") from error
    if not found["world_mat"]:
        raise CaptureError(f"{file} has no world_mat_0, world_mat_1, ...; it is not a camera file of IDR or NeuS.")
    return found["world_mat"], found["scale_mat"]


def _matrix(data: bytes) -> np.ndarray:
    """One npy file [3 or 4, 4] as [4, 4] float64. Raises ValueError."""
    if len(data) > LARGEST_MEMBER:
        raise ValueError(f"larger than {LARGEST_MEMBER} bytes")
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = header(stream)
    if shape not in ((4, 4), (3, 4)) or dtype.kind not in "fiu":
        raise ValueError(f"{dtype} of shape {shape}")
    values = np.frombuffer(stream.read(), dtype=dtype)
    if values.size != math.prod(shape):
        raise ValueError("its end is missing")
    matrix = values.reshape(shape, order="F" if by_columns else "C").astype(np.float64)
    return matrix if shape == (4, 4) else np.concatenate([matrix, [[0.0, 0.0, 0.0, 1.0]]])


# --- writing --------------------------------------------------------------------------------------------------------


def write(capture: Capture, path: Path, world_from_sphere: Similarity) -> None:
    """Write the posed frames of a capture as `path`/cameras_sphere.npz, as NeuS and its followers read it.

    The capture's frame is the world. world_from_sphere: from the unit sphere that holds the object to the world, one
    for all frames. The matrices count in the order of the frames, and the pictures must be named in that order
    (image/000000.png, mask/000.png). A lens's distortion has no place in the file. camera_mat is K, and the inverses
    are written along, as NeuS's own script does.

    Raises CaptureError when no frame has a pose and for lenses that are no pinholes at all, RunError when the file
    cannot be written.
    """
    posed = [(frame, frame.camera) for frame in capture.frames if frame.camera is not None]
    if not posed:
        raise CaptureError(f"{capture.root} has no frame with a pose, so there is nothing to write.")
    scale_mat = np.eye(4)
    scale_mat[:3, :3] = world_from_sphere.scale * world_from_sphere.rotation.numpy()
    scale_mat[:3, 3] = world_from_sphere.translation.numpy()
    matrices: dict[str, np.ndarray] = {}
    for i, (frame, camera) in enumerate(posed):
        camera_mat = _camera_mat(frame, camera)
        pose = np.eye(4)
        pose[:3] = camera.cam_from_world.numpy()
        for name, matrix in (("camera", camera_mat), ("world", camera_mat @ pose), ("scale", scale_mat)):
            matrices |= {f"{name}_mat_{i}": matrix, f"{name}_mat_inv_{i}": np.linalg.inv(matrix)}
    with whole_file(path / "cameras_sphere.npz") as partial, partial.open("wb") as file:
        np.savez(file, **matrices)  # type: ignore[arg-type]


def _camera_mat(frame: Frame, camera: Camera) -> np.ndarray:
    """K as [4, 4], counted from the centre of the first pixel."""
    if camera.lens not in PERSPECTIVE:
        raise CaptureError(
            f"NeuS's camera file knows pinholes only, and {printable(frame.name)} has the lens {camera.lens.value}; "
            "write transforms instead."
        )
    fx, fy, cx, cy = camera.intrinsics.tolist()
    camera_mat = np.eye(4)
    camera_mat[:2, :3] = [[fx, 0, cx - 0.5], [0, fy, cy - 0.5]]
    return camera_mat
