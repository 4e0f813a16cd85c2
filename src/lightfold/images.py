"""Pictures from files to memory-mapped pixels: decoded once, shrunk exactly, kept as bytes in one cache file.

The cache file holds planes one after the other, each picture after picture, row after row:

    RGB    [P, 3] uint8, straight sRGB; or uint16, straight PQ (see `colour.Tone`)
    alpha  [P]    uint8, only when some picture has transparent pixels
    mask   [P]    uint8, 255 counts and 0 does not, only when some picture has a mask

and after them a footer in JSON that says which pictures they are. It is mapped, not read, so a set larger than memory
trains from disk, and a second start costs nothing.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import struct
import tempfile
import threading
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from . import cache, exr
from .cameras import Camera, Lens
from .capture import Frame
from .colour import Tone
from .devices import CPU, sent
from .errors import LightfoldError
from .files import mapped_array
from .light import holds_light, read_light

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

VERSION = 1
"""Part of the cache's key: a change of decoding, resizing or layout must raise it."""
MAGIC = b"lfpixels"
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises on files that are damaged, truncated, empty, or no pictures at all."""
ONE_AT_A_TIME = 64_000_000
"""Pixels from which pictures are decoded one after the other, or a few threads' worth of them would fill the memory."""
COLMAP_MAP = re.compile(rb"(\d{1,6})&(\d{1,6})&1&")
ASPECT_TOLERANCE = 0.01
"""A file whose aspect ratio is this close to the camera's is the same picture at another size."""

log = logging.getLogger(__name__)
_large_pictures = threading.Lock()


@dataclass(frozen=True)
class Resize:
    """How large pictures become. downscale: divide sizes by this; None: the longer side is at most max_side."""

    downscale: float | None
    max_side: int

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Training size of a picture, rounded half up, never larger than the picture."""
        factor = max(1.0, max(width, height) / self.max_side) if self.downscale is None else self.downscale
        return max(1, int(width / factor + 0.5)), max(1, int(height / factor + 0.5))


@dataclass(frozen=True, eq=False)
class Pictures:
    """All pixels of V pictures, P in total, mapped from the cache file; read-only.

    rgb [P, 3], alpha [P] or None, mask [P] or None, all uint8, but rgb uint16 in PQ; picture v owns rows offset[v] up
             to offset[v + 1].
    frame:   index of each picture's frame in the list that was asked for; fewer than asked when some were unreadable.
    sizes:   (width, height) of each picture.
    dropped: one sentence for each frame that is missing here.
    """

    rgb: Tensor
    alpha: Tensor | None
    mask: Tensor | None
    offset: tuple[int, ...]
    frame: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    dropped: tuple[str, ...]
    path: Path
    held: cache.Hold | None = None
    """While this lives, no other program removes the cache to make room."""

    def colours(self, rows: Tensor | slice, device: torch.device = CPU) -> Tensor:
        """Colours [n, 3] float32 in [0, 1] of some rows, on a device."""
        chosen = self.rgb[rows] if isinstance(rows, slice) else self.rgb.index_select(0, rows)
        return sent(chosen, device).to(torch.float32).div_(65535 if self.rgb.dtype == torch.uint16 else 255)

    def opacities(self, rows: Tensor | slice, device: torch.device = CPU) -> Tensor | None:
        """Opacities [n] float32 in [0, 1] of some rows, on a device; None where all is opaque."""
        if self.alpha is None:
            return None
        chosen = self.alpha[rows] if isinstance(rows, slice) else self.alpha.index_select(0, rows)
        return sent(chosen, device).to(torch.float32).div_(255)

    @property
    def bytes_per_pixel(self) -> int:
        """Over all planes."""
        return sum(plane[:1].nbytes for plane in self._planes())

    def read_ahead(self, index: int) -> None:
        """Ask the system to have a picture in memory soon; a hint, which some systems do not take."""
        start = 0
        for plane in self._planes():
            size = plane[:1].nbytes
            if self.held is not None:
                begin, end = size * self.offset[index], size * self.offset[index + 1]
                self.held.read_ahead(start + begin, end - begin)
            start += plane.nbytes

    def _planes(self) -> list[Tensor]:
        """In the order of the file."""
        return [plane for plane in (self.rgb, self.alpha, self.mask) if plane is not None]


# --- one picture ---------------------------------------------------------------------------------------------------


def stored_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture file of 8 or 16 bits, from its header. Raises one of UNREADABLE."""
    with Image.open(path) as file:
        return file.size


def decode(path: Path, exif_rotate: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """RGB [H, W, 3] and alpha [H, W] (None when opaque) of a picture file, 8 bits, straight.

    Grey, palette, CMYK and 16-bit pictures are converted; 16-bit levels are scaled by 255/65535, not cut. Colour
    profiles are not applied. Raises one of UNREADABLE.
    """
    with Image.open(path) as file:
        file.load()
        image: Image.Image = ImageOps.exif_transpose(file) if exif_rotate else file
        if image.mode.startswith(("I", "F")):
            grey = _eight_bit(np.asarray(image))
            return np.repeat(grey[:, :, None], 3, axis=2), None
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            rgba = np.asarray(image.convert("RGBA"))
            opaque = bool(rgba[:, :, 3].min() == 255)
            return np.ascontiguousarray(rgba[:, :, :3]), None if opaque else np.ascontiguousarray(rgba[:, :, 3])
        return np.asarray(image.convert("RGB")), None


def _eight_bit(grey: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Integer grey levels of 16 bits -> 8 bits, rounded. Raises ValueError on levels that no 16-bit picture has."""
    if not np.issubdtype(grey.dtype, np.integer):
        raise ValueError("floating-point pictures are not supported; convert it to 8-bit sRGB")
    level = grey.astype(np.int64)
    if level.min() < 0 or level.max() > 65535:
        raise ValueError("its grey levels exceed 16 bits")
    return ((level * 255 + 32767) // 65535).astype(np.uint8)


def area_resize(picture: NDArray[np.generic], width: int, height: int) -> NDArray[np.float32]:
    """Shrink [H, W] or [H, W, C] by exact area averaging: each new pixel is the mean of the area that it covers.

    The ratio may be any rational number: a source pixel cut by a border counts with the share that lies inside.
    Returns float32 in the input's units. Raises ValueError when a side would grow.
    """
    if not 1 <= width <= picture.shape[1] or not 1 <= height <= picture.shape[0]:
        raise ValueError(
            f"size: expected at most {picture.shape[1]} x {picture.shape[0]} and at least 1, got {width} x {height}"
        )
    shrunk = _average(picture, height)
    return _average(shrunk.swapaxes(0, 1), width).swapaxes(0, 1)


def _average(values: NDArray[np.generic], count: int) -> NDArray[np.float32]:
    """Area averages of the first axis, `count` of them. In whole numbers, so that no border is missed by rounding."""
    length = values.shape[0]
    if count == length:
        return values.astype(np.float32)
    # In units of 1/count of a source pixel, output k covers [k * length, (k + 1) * length).
    start = np.arange(count, dtype=np.int64) * length
    first = start // count
    result = np.zeros((count, *values.shape[1:]), dtype=np.float32)
    for tap in range(-(-length // count) + 1):
        source = first + tap
        share = np.minimum((source + 1) * count, start + length) - np.maximum(source * count, start)
        weight = (np.maximum(share, 0) / length).astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
        result += weight * values[np.minimum(source, length - 1)]
    return result


@dataclass(frozen=True)
class _Prepared:
    """A picture at training size: rgb [h, w, 3], alpha and mask [h, w] or None, all uint8; rgb uint16 in PQ."""

    rgb: NDArray[np.uint8] | NDArray[np.uint16]
    alpha: NDArray[np.uint8] | None
    mask: NDArray[np.uint8] | None


def prepare(frame: Frame, resize: Resize, crop_radius: float | None, tone: Tone | None = None) -> _Prepared:
    """Decode a frame's picture and mask, and bring both to training size. Raises one of UNREADABLE.

    tone: how light is coded; None for sets of sRGB alone, whose codes are averaged as they are. Light is averaged as
    light, and coded then.
    """
    camera = frame.camera
    large = camera is not None and camera.width * camera.height > ONE_AT_A_TIME
    with _large_pictures if large else contextlib.nullcontext():
        return _prepare(frame, resize, crop_radius, tone)


def _prepare(frame: Frame, resize: Resize, crop_radius: float | None, tone: Tone | None) -> _Prepared:
    rgb: Any  # An array of bytes, or of float32 light.
    finish: Callable[[NDArray[np.float32]], NDArray[Any]] = _rounded
    if tone is not None and (tone.pq or holds_light(frame)):
        rgb, alpha = read_light(frame, decode)
        if holds_light(frame):
            rgb *= np.float32(tone.exposure)
        finish = functools.partial(_coded, tone=tone)
    else:
        rgb, alpha = decode(frame.path, frame.exif_rotate)
    height, width = rgb.shape[:2]
    _check_aspect("the picture", width, height, frame)
    new_width, new_height = resize.size(width, height)
    mask = None
    if frame.mask is not None and frame.mask_is_alpha:
        silhouette = (255 * mask_counts(frame, width, height)).astype(np.uint8)
        alpha = silhouette if alpha is None else np.minimum(alpha, silhouette)
    elif frame.mask is not None:
        # A new pixel that is only partly valid mixes in what the mask is there to hide, so it does not count.
        share = area_resize(mask_counts(frame, width, height).astype(np.float32), new_width, new_height)
        mask = np.where(share > 0.999, 255, 0).astype(np.uint8)
    if crop_radius is not None and frame.camera is not None:
        disc = _disc(crop_radius / frame.camera.width, new_width, new_height)
        mask = disc if mask is None else np.minimum(mask, disc)
    unreached = None if frame.camera is None else lens_mask(frame.camera.resized(new_width, new_height))
    if unreached is not None:
        mask = unreached if mask is None else np.minimum(mask, unreached)
    if (new_width, new_height) == (width, height):
        rgb = rgb if finish is _rounded else finish(rgb)
    elif alpha is None:
        rgb = finish(area_resize(rgb, new_width, new_height))
    else:
        # Colours of transparent pixels are arbitrary, so they must enter an average with the weight of their alpha.
        opacity = alpha.astype(np.float32)[:, :, None] / 255
        mean_opacity = area_resize(opacity, new_width, new_height)
        premultiplied = area_resize((rgb * opacity).astype(np.float32), new_width, new_height)
        rgb = finish(premultiplied / np.maximum(mean_opacity, np.float32(1e-6)))
        alpha = _rounded(255 * mean_opacity[:, :, 0])
    return _Prepared(rgb, alpha, mask)


def _rounded(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


def _coded(light: NDArray[np.float32], tone: Tone) -> NDArray[Any]:
    """Exposed light -> levels of its code: 16 bits in PQ, else 8."""
    code = tone.encoded(torch.from_numpy(np.ascontiguousarray(light))).clamp_(0, 1)
    levels, kind = (65535, np.uint16) if tone.pq else (255, np.uint8)
    return (code.numpy() * np.float32(levels) + np.float32(0.5)).astype(kind)


def _check_aspect(what: str, width: int, height: int, frame: Frame) -> None:
    camera = frame.camera
    if camera is not None and abs(width * camera.height / (height * camera.width) - 1) > ASPECT_TOLERANCE:
        raise ValueError(f"{what} is {width} x {height}, but its camera is {camera.width} x {camera.height}")


def mask_counts(frame: Frame, width: int, height: int) -> NDArray[np.bool_]:
    """[height, width] which pixels of the picture the frame's mask lets count, or holds for the object.

    Raises one of UNREADABLE.
    """
    assert frame.mask is not None
    with Image.open(frame.mask) as file:
        file.load()
        image: Image.Image = ImageOps.exif_transpose(file) if frame.exif_rotate else file
        lossy = image.format == "JPEG" or file.format == "JPEG"
        levels = np.asarray(image if image.mode.startswith("I") else image.convert("L"))
    _check_aspect(f"its mask {frame.mask.name}", levels.shape[1], levels.shape[0], frame)
    # Lossy compression leaves noise around zero, so there half the range is the only usable threshold.
    counts = (levels > 127 if lossy else levels != 0) != frame.mask_inverted
    return counts if counts.shape == (height, width) else _nearest(counts, width, height)


def _nearest(values: NDArray[Any], width: int, height: int) -> NDArray[Any]:
    rows = (np.arange(height) * 2 + 1) * values.shape[0] // (2 * height)
    columns = (np.arange(width) * 2 + 1) * values.shape[1] // (2 * width)
    return values[rows][:, columns]


def _disc(radius: float, width: int, height: int) -> NDArray[np.uint8]:
    """255 inside the disc about the picture's centre whose radius is this share of the width."""
    x = (np.arange(width) + 0.5) / width - 0.5
    y = ((np.arange(height) + 0.5) / height - 0.5) * height / width
    return np.where(x[None, :] ** 2 + y[:, None] ** 2 <= radius**2, 255, 0).astype(np.uint8)


def lens_mask(camera: Camera) -> NDArray[np.uint8] | None:
    """[H, W] 255 where a direction of the lens reaches the pixel, 0 elsewhere (the corners around a fisheye's circle).

    None when all pixels are reached, which is the rule.
    """
    intrinsics, distortion = tuple(camera.intrinsics.tolist()), tuple(camera.distortion.tolist())
    lens = (camera.lens, intrinsics, distortion, camera.width, camera.height)
    return None if _reaches_all(*lens) else _lens_mask(*lens)


@functools.lru_cache(maxsize=1 << 15)
def _reaches_all(
    lens: Lens, intrinsics: tuple[float, ...], distortion: tuple[float, ...], width: int, height: int
) -> bool:
    """Kept for very many lenses, since a large set may have one for each picture, and an answer is a bit."""
    if lens in (Lens.PINHOLE, Lens.SIMPLE_PINHOLE):
        return True
    camera = _lens_only(lens, intrinsics, distortion, width, height)
    # What a lens reaches has a simple outline: a coarse grid with the corners shows whether anything is missing.
    x, y = torch.linspace(0.5, width - 0.5, 33), torch.linspace(0.5, height - 0.5, 33)
    return bool(camera.unproject_valid(torch.cartesian_prod(x, y).double())[1].all())


@functools.lru_cache(maxsize=64)
def _lens_mask(
    lens: Lens, intrinsics: tuple[float, ...], distortion: tuple[float, ...], width: int, height: int
) -> NDArray[np.uint8]:
    camera = _lens_only(lens, intrinsics, distortion, width, height)
    valid = [camera.unproject_valid(xy)[1] for xy in camera.pixel_grid().split(1 << 17)]
    return torch.cat(valid).reshape(height, width).to(torch.uint8).mul(255).numpy()


def _lens_only(
    lens: Lens, intrinsics: tuple[float, ...], distortion: tuple[float, ...], width: int, height: int
) -> Camera:
    pose = torch.eye(3, 4, dtype=torch.float64)
    return Camera(pose, torch.tensor(intrinsics), torch.tensor(distortion), width, height, lens)


def read_depth(frame: Frame, width: int, height: int) -> Tensor:
    """z-depth [height, width] float32 in capture units, 0 where unknown; nearest neighbour: depths must not be mixed.

    The file is a picture of one channel, EXR among them, an array of NumPy's or a map of COLMAP's dense workspace.
    Raises one of UNREADABLE.
    """
    assert frame.depth is not None
    values: NDArray[Any]
    if frame.depth.suffix.lower() == ".npy":
        values = mapped_array(frame.depth)
    elif frame.depth.suffix.lower() == ".bin":
        values = _read_map(frame.depth)
    elif frame.depth.suffix.lower() == ".exr":
        values = exr.read_plane(frame.depth)
    else:
        with Image.open(frame.depth) as file:
            file.load()
            values = np.asarray(ImageOps.exif_transpose(file) if frame.exif_rotate else file)
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.number):
        raise ValueError(f"a depth picture has one channel of numbers, this one has shape {list(values.shape)}")
    depth = _nearest(values, width, height).astype(np.float32) * np.float32(frame.depth_scale)
    return torch.from_numpy(np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32))


def _read_map(path: Path) -> NDArray[np.float32]:
    """[H, W] of a depth map as COLMAP writes it: "width&height&channels&" and little-endian float32, row after row."""
    with path.open("rb") as file:
        found = COLMAP_MAP.match(file.read(64))
        if found is None:
            raise ValueError("it does not begin as a depth map of COLMAP does")
        width, height = int(found[1]), int(found[2])
        file.seek(found.end())
        numbers = np.fromfile(file, dtype="<f4")
    if numbers.size != width * height or numbers.size == 0:
        raise ValueError(f"it claims {width} x {height} numbers and holds {numbers.size}")
    return numbers.reshape(height, width)


# --- the cache -----------------------------------------------------------------------------------------------------


def load_pictures(
    frames: Sequence[Frame],
    resize: Resize,
    crop_radius: float | None,
    cache_dir: Path,
    progress: Progress | None = None,
    tone: Tone | None = None,
) -> Pictures:
    """The pixels of these frames, from the cache when it has them, else decoded into it.

    Frames whose picture or mask cannot be read are left out and named in `dropped`. Raises LightfoldError when the
    cache cannot be written.
    """
    key = _key(frames, resize, crop_radius, tone)
    path = cache_dir / f"pixels-{key[:24]}.bin"
    cached = _open_cache(path, key)
    if cached is not None:
        return cached
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        cache.make_room(cache_dir, _needed_bytes(frames, resize, crop_radius, tone))
        _write_cache(path, key, _prepared(frames, resize, crop_radius, tone, progress))
    except OSError as error:
        raise LightfoldError(_no_cache(cache_dir, error)) from error
    written = _open_cache(path, key)
    if written is None:
        raise LightfoldError(f"The picture cache {path} changed while it was being written; run the command again.")
    return written


def _no_cache(cache_dir: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(cache_dir).free / 2**20
        return (
            f"The disk that holds the picture cache {cache_dir} is full ({free:.0f} MiB left); "
            "free some space, train with a larger downscale, or choose another cache folder."
        )
    return f"The picture cache {cache_dir} cannot be written ({error.strerror or error}); choose another cache folder."


def _needed_bytes(frames: Sequence[Frame], resize: Resize, crop_radius: float | None, tone: Tone | None) -> int:
    """About how much the cache takes while it is made. Opacity is known only after decoding and is not counted."""
    sizes = [resize.size(frame.camera.width, frame.camera.height) for frame in frames if frame.camera is not None]
    masked = crop_radius is not None or any(frame.mask is not None for frame in frames)
    # A plane of masks is written beside the colours first, and then copied behind them.
    colours = 6 if tone is not None and tone.pq else 3
    return sum(width * height for width, height in sizes) * (colours + 2 * masked)


def _key(frames: Sequence[Frame], resize: Resize, crop_radius: float | None, tone: Tone | None) -> str:
    """A digest of all that decides the cache's contents: files by path, size and time, and what is done to them."""
    digest = hashlib.sha256()
    digest.update(repr((VERSION, resize.downscale, resize.max_side, crop_radius)).encode())
    if tone is not None:
        digest.update(repr((tone, [(frame.colour, frame.white_balance) for frame in frames])).encode())
    for frame in frames:
        entry = (
            _stamp(frame.path),
            _stamp(frame.mask),
            frame.mask_inverted,
            frame.mask_is_alpha,
            frame.exif_rotate,
            frame.name,
            None if frame.camera is None else _camera_stamp(frame.camera),
        )
        digest.update(repr(entry).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _camera_stamp(camera: Camera) -> tuple[object, ...]:
    """What a camera changes in the cache: its size, and its lens only if pixels are masked for it."""
    size = (camera.width, camera.height)
    if lens_mask(camera) is None:
        return size
    return (*size, camera.lens.value, *camera.intrinsics.tolist(), *camera.distortion.tolist())


def _stamp(path: Path | None) -> tuple[str, int, int] | None:
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return (str(path.absolute()), -1, -1)
    return (str(path.absolute()), status.st_size, status.st_mtime_ns)


def _prepared(
    frames: Sequence[Frame], resize: Resize, crop_radius: float | None, tone: Tone | None, progress: Progress | None
) -> Iterator[_Prepared | str]:
    """Pictures in order, or a sentence in the place of one that cannot be read; a few threads decode a little ahead."""
    threads = min(8, os.cpu_count() or 1)
    waiting: deque[Future[_Prepared]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        queue = iter(frames)
        for done, frame in enumerate(frames):
            # Pillow and NumPy release the interpreter's lock; the short queue bounds memory whatever the set's size.
            while len(waiting) < 2 * threads and (ahead := next(queue, None)) is not None:
                waiting.append(pool.submit(prepare, ahead, resize, crop_radius, tone))
            try:
                yield waiting.popleft().result()
            except UNREADABLE as error:
                yield f"{frame.name} is left out: {_reason(frame, error)}."
            if progress is not None:
                progress("reading pictures", done + 1, len(frames))


def _reason(frame: Frame, error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} does not exist"
    if not frame.path.stat().st_size:
        return f"the file {frame.path} is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"{frame.path} or its mask is not a picture that can be read"
    return f"{str(error).rstrip('.')} ({frame.path})"


class _Plane:
    """One byte per pixel, stored from the first picture that needs it on; pixels before and between are 255."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file: BinaryIO | None = None
        self.pixels = 0

    def add(self, values: NDArray[np.uint8] | None, count: int) -> None:
        if values is not None and self.file is None:
            self.file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 (closed by _write_cache, after copying)
            self._fill(self.pixels)
        if self.file is not None:
            if values is None:
                self._fill(count)
            else:
                self.file.write(values.tobytes())
        self.pixels += count

    def _fill(self, count: int) -> None:
        assert self.file is not None
        for start in range(0, count, 1 << 20):
            self.file.write(b"\xff" * min(1 << 20, count - start))

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def _write_cache(path: Path, key: str, pictures: Iterator[_Prepared | str]) -> None:
    """Write the cache beside its final name and rename it, so that a cache is whole or absent."""
    alpha, mask = _Plane(path.parent), _Plane(path.parent)
    handle, name = tempfile.mkstemp(prefix=".pixels-", suffix=".partial", dir=path.parent)
    partial = Path(name)
    kept: list[tuple[int, int, int]] = []
    deep = False
    dropped: list[str] = []
    try:
        with os.fdopen(handle, "w+b") as file:
            cache.mark(file.fileno(), alone=True)
            for index, picture in enumerate(pictures):
                if isinstance(picture, str):
                    dropped.append(picture)
                    continue
                height, width = picture.rgb.shape[:2]
                kept.append((index, width, height))
                # write() reports a full disk; a store through a mapping would kill the process instead.
                file.write(picture.rgb.tobytes())
                deep = picture.rgb.dtype == np.uint16
                alpha.add(picture.alpha, width * height)
                mask.add(picture.mask, width * height)
            for plane in (alpha, mask):
                if plane.file is not None:
                    plane.file.seek(0)
                    shutil.copyfileobj(plane.file, file, 1 << 20)
            file.flush()
            footer = {
                "key": key,
                "pictures": kept,
                "dropped": dropped,
                "alpha": alpha.file is not None,
                "mask": mask.file is not None,
                "sample": _sample(file, file.tell()),
            }
            if deep:
                footer["deep"] = True
            text = json.dumps(footer).encode()
            file.seek(0, os.SEEK_END)
            file.write(text + struct.pack("<II", len(text), zlib.crc32(text)) + MAGIC)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        alpha.close()
        mask.close()
        partial.unlink(missing_ok=True)


def _sample(file: BinaryIO, length: int) -> int:
    """Checksum of 256 pages spread over the first `length` bytes: finds lost pages without reading everything."""
    checksum = 0
    for i in range(256):
        file.seek(i * max(0, length - 4096) // 255)
        checksum = zlib.crc32(file.read(min(4096, length)), checksum)
    return checksum


def _open_cache(path: Path, key: str) -> Pictures | None:
    """The cache at this path if it is whole and was made for this key, else None."""
    try:
        held = cache.Hold(path)
        footer = _read_footer(path)
        os.utime(path)  # Its age for `cache.make_room` is that of its last use.
    except OSError:
        return None  # There is none yet; if it exists and cannot be read, writing will say why.
    except (ValueError, KeyError, TypeError, struct.error) as error:
        log.warning("The picture cache %s is damaged (%s) and is made again.", path, error)
        return None
    if footer["key"] != key:
        return None
    sizes = [(width, height) for _, width, height in footer["pictures"]]
    offset = np.concatenate([[0], np.cumsum([width * height for width, height in sizes])]).astype(np.int64)
    pixels = int(offset[-1])
    start = (6 if footer.get("deep") else 3) * pixels
    colours = slice(0, start)
    planes: dict[str, Tensor | None] = {"alpha": None, "mask": None}
    flat = _map(path) if pixels else torch.zeros(0, dtype=torch.uint8)
    for name in planes:
        if footer[name]:
            planes[name] = flat[start : start + pixels]
            start += pixels
    return Pictures(
        rgb=flat[colours].view(torch.uint16 if footer.get("deep") else torch.uint8).view(-1, 3),
        alpha=planes["alpha"],
        mask=planes["mask"],
        offset=tuple(int(o) for o in offset),
        frame=tuple(index for index, _, _ in footer["pictures"]),
        sizes=tuple(sizes),
        dropped=tuple(footer["dropped"]),
        path=path,
        held=held,
    )


def _map(path: Path) -> Tensor:
    """The file's bytes as a tensor that nothing may write to.

    A copy-on-write mapping would spare the warning below, but Linux counts it as memory and refuses one larger than
    that.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="r"))


def _read_footer(path: Path) -> dict[str, Any]:
    """The footer, checked against the file. Raises ValueError when they do not agree."""
    with path.open("rb") as file:
        total = file.seek(0, os.SEEK_END)
        tail = 8 + len(MAGIC)
        if total < tail:
            raise ValueError("it is too short")
        file.seek(total - tail)
        length, checksum = struct.unpack("<II", file.read(8))
        if file.read() != MAGIC or length > total - tail:
            raise ValueError("its end is missing")
        file.seek(total - tail - length)
        text = file.read(length)
        if zlib.crc32(text) != checksum:
            raise ValueError("its footer is damaged")
        footer: dict[str, Any] = json.loads(text)
        data = total - tail - length
        pixels = sum(width * height for _, width, height in footer["pictures"])
        if data != pixels * ((6 if footer.get("deep") else 3) + bool(footer["alpha"]) + bool(footer["mask"])):
            raise ValueError("it has the wrong size")
        if _sample(file, data) != footer["sample"]:
            raise ValueError("its pixels are damaged")
    return footer
