"""Photos: a folder of whatever cameras, phones and programs leave behind becomes `Footage`.

Two passes. The first reads headers: what can be a picture at all, what it was taken with, when and where, and which
files say the same thing twice. The second decodes, in a few threads: it proves that a picture is whole, measures it,
and puts it into out/images. A file that needs no change (an upright JPEG or PNG with 8 bits, without transparency) is
linked there and costs no space; others become copies. The user's files are only ever read.

Pictures of light (EXR, .hdr) are shown to the pose engine as 8-bit copies, each at the exposure that suits it; the
light itself is linked into out/light, for the training.
"""

from __future__ import annotations

import calendar
import errno
import hashlib
import importlib
import importlib.util
import math
import os
import re
import shutil
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image

from .. import colour, light
from ..cameras import Camera, Lens
from ..capture import Frame
from ..errors import CaptureError, ConfigError, RunError
from ..files import whole_file
from ..formats.frames import (
    PICTURE_SUFFIXES,
    FrameError,
    Header,
    Names,
    Tally,
    fit_camera,
    natural_key,
    read_header,
)
from ..formats.lens_file import read_lens_file
from ..formats.photos import NOT_PHOTOS, guess_lens, pictures_among
from ..images import decode as eight_bits
from . import gathered
from .masks import LARGEST_PIXELS, UNREADABLE, Mask, Masks, Unusable, patient_pillow, save_mask, upright
from .sharpness import LONG_SIDE, reduced_grey, sharpness
from .shots import Footage, Shot

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

VERSION = 1
"""Part of the fingerprint: a change of what is written must raise it."""
HEIC_SUFFIXES = (".heic", ".heif", ".hif")
RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw")
SMALLEST_SIDE = 64
"""Pixels. Less holds no features, and a picture of one pixel ends COLMAP's process."""
ONE_AT_A_TIME_PIXELS = 40_000_000
"""Pictures with more pixels are decoded one after the other, which bounds memory."""
OPAQUE = 128
"""Pixels of at least this alpha count."""
JPEG_QUALITY = 95
WALK_SECONDS = 10.0
"""Photos taken closer together than this, typically, were taken on one walk."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PhotosConfig:
    """How a folder of photos is read."""

    lens: str = "auto"
    """Lens to start from, for all photos: auto, or SIMPLE_RADIAL, OPENCV_FISHEYE, EQUIRECTANGULAR and so on. auto is
    one radial coefficient, and EQUIRECTANGULAR for panoramas: where the header says so or the shape is 2:1."""
    mask: Path | None = None
    """One mask for all photos: pixels that are not black count. Masks of single photos are found by themselves: in a
    folder masks inside or beside that of the photos, as NAME.png or NAME.jpg.png."""
    calibration: Path | None = None
    """Calibration of the camera, known and kept unless --refine-known: COLMAP's cameras.txt, YAML of OpenCV, ROS or
    Kalibr, or JSON with the camera's keys of transforms.json. For photos of its shape and another size it is scaled."""


@dataclass(frozen=True)
class PhotoFile:
    """A file whose header promises a picture.

    name:     relative to the folder of the photos, with forward slashes.
    header:   of the stored pixels; of the developed ones for a camera's raw file, which has no orientation then.
    plain:    the file can be used as it is.
    lossy:    the pixels were compressed with loss already.
    gps, time: as in `Shot`.
    device:   maker, model and number of the camera, as far as the header has them.
    """

    path: Path
    name: str
    header: Header
    plain: bool
    lossy: bool
    gps: tuple[float, float, float] | None
    time: float | None
    device: str


def gather_photos(
    path: Path, out: Path, config: PhotosConfig | None = None, progress: Progress | None = None
) -> Footage:
    """Make `out` a `Footage` of the photos in a folder and in the folders inside it.

    Finished work is found again: with the same files and the same configuration nothing is decoded, and after an
    interruption, or with a few other files, only what is missing. Links to folders are not followed.

    Raises CaptureError when no two photos can be used or `out` holds pictures of someone else, ConfigError for an
    unknown lens, RunError when `out` cannot be written.
    """
    config = config or PhotosConfig()
    if config.lens != "auto" and config.lens not in Lens.__members__:
        raise ConfigError(f"There is no lens called '{config.lens}'. Known are auto, {', '.join(Lens.__members__)}.")
    path, out = Path(os.path.realpath(path.expanduser())), Path(os.path.realpath(out.expanduser()))
    if path == out or out in path.parents:
        raise CaptureError(f"{out} cannot become the capture, because the photos lie in it; choose another folder.")
    known = None
    if config.calibration is not None:
        if config.lens != "auto":
            raise ConfigError(
                f"A calibration says which lens it is, and {config.lens} was named too; give one of the two."
            )
        known = read_lens_file(config.calibration)
    dropped: list[tuple[str, str]] = []
    path, names = inside_images(path, find_photos(path, dropped, besides=out))
    if not names:
        raise CaptureError(f"{path} holds no pictures ({', '.join(PICTURE_SUFFIXES)}, EXR, HEIC or camera raw).")
    with patient_pillow():
        masks = Masks(path, config.mask)
        fingerprint = _fingerprint(path, names, masks, config)
        finished = gathered.finished(out, fingerprint)
        if finished is not None:
            return finished
        gathered.refuse_foreign(out, [path])
        notes: list[str] = []
        photos = list(_look_at_all(path, names, dropped, progress))
        photos, kind = _one_kind(photos, config, dropped, notes)
        if photos and not any(masks.suits(photo.header) for photo in photos):
            raise CaptureError(f"The mask {config.mask} has another shape than every photo in {path}.")
        if known is not None:
            notes += _calibration_notes(photos, known, config)
        given = Names()
        named = [(photo, given.new(_digestible(photo))) for photo in photos]
        shots: list[Shot] = []
        used: list[PhotoFile] = []
        keys = [_key(photo, name, masks, config) for photo, name in named]
        journal = gathered.Journal(out)
        before = [journal.shot(key) for key in keys]
        journal.begin([path], keys)
        make = partial(_make, out=out, masks=masks, lens=config.lens, known=known)
        rest = _parallel(make, [item for item, earlier in zip(named, before, strict=True) if earlier is None])
        for done, (photo, key, earlier) in enumerate(zip(photos, keys, before, strict=True)):
            made = next(rest) if earlier is None else earlier[0]
            if isinstance(made, Unusable):
                dropped.append((photo.name, str(made)))
            else:
                if earlier is None:
                    journal.add(key, made, masks.remarks(photo.name))
                else:
                    masks.remark(photo.name, earlier[1])
                shots.append(made)
                used.append(photo)
            if progress is not None:
                progress("reading photos", done + 1, len(photos))
    if len(shots) < 2:
        raise CaptureError(_too_few(path, shots, len(names), dropped))
    shots, ordered = _in_order(shots, used)
    notes += masks.notes(len(names))
    footage = Footage(out, kind, ordered, tuple(shots), tuple(dropped), tuple(notes))
    footage.save()
    gathered.mark(out, [path], fingerprint)
    return footage


def find_photos(folder: Path, dropped: list[tuple[str, str]], besides: Path | None = None) -> list[str]:
    """Relative paths of the pictures in a folder, naturally sorted: raw files and HEIC too, and EXR and .hdr
    where there is nothing else.

    What cannot be listed is added to `dropped`. besides: a folder inside that is not looked into. Raises CaptureError
    when the folder itself cannot be listed.
    """
    if not os.path.isdir(folder):
        raise CaptureError(f"{folder} is not a folder." if folder.exists() else f"There is nothing at {folder}.")

    def report(error: OSError) -> None:
        if error.filename == str(folder):
            raise CaptureError(f"{folder} cannot be listed: {error.strerror or error}.") from error
        dropped.append((str(error.filename), f"the folder cannot be listed ({error.strerror or error})"))

    suffixes = (*PICTURE_SUFFIXES, *HEIC_SUFFIXES, *RAW_SUFFIXES, *light.SUFFIXES)
    names = []
    for place, inside, files in os.walk(folder, onerror=report):
        inside[:] = [n for n in inside if not n.startswith(".") and n.lower() not in NOT_PHOTOS]
        inside[:] = [n for n in inside if besides is None or Path(place, n) != besides]
        for name in files:
            if name.lower().endswith(suffixes) and not name.startswith((".", "dynamic_mask_")):
                names.append(os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/"))
    return sorted(pictures_among(names), key=natural_key)


def inside_images(folder: Path, names: list[str]) -> tuple[Path, list[str]]:
    """The folder that the photos are named from: the given one, or its `images` where all of them lie there."""
    if names and all(name.startswith("images/") for name in names):
        return folder / "images", [name.removeprefix("images/") for name in names]
    return folder, names


def look(root: Path, name: str) -> PhotoFile:
    """What a picture's header says. For use in `patient_pillow`. Raises Unusable."""
    path = root / name
    lower = name.lower()
    try:
        if path.stat().st_size == 0:
            raise Unusable("the file is empty")
        if lower.endswith(RAW_SUFFIXES):
            photo = _look_raw(path, name)
        elif lower.endswith(light.SUFFIXES):
            header = read_header(path)
            photo = PhotoFile(path, name, header, plain=False, lossy=False, gps=None, time=None, device=_device(header))
        else:
            if lower.endswith(HEIC_SUFFIXES):
                _extra("pillow_heif", "pillow-heif", "heic").register_heif_opener()
            header = read_header(path)
            with Image.open(path) as file:
                kept = file.format in ("JPEG", "MPO") or (file.format == "PNG" and file.tile[0][3] == file.mode)
                photo = PhotoFile(
                    path=path,
                    name=name,
                    header=header,
                    plain=kept and header.orientation == 1 and file.mode in ("L", "RGB") and not header.has_alpha,
                    lossy=file.format in ("JPEG", "MPO", "HEIF"),
                    # Pillow would decode a whole PNG to look for EXIF behind the pixels.
                    gps=None if file.format == "PNG" and "exif" not in file.info else _gps(file.getexif()),
                    time=_time(header.exif),
                    device=_device(header),
                )
    except FrameError as error:
        raise Unusable(str(error).partition("left out because ")[2]) from error
    except PermissionError as error:
        raise Unusable("the file may not be read by this user") from error
    except UNREADABLE as error:
        raise Unusable("the file is not a picture that can be read") from error
    width, height = photo.header.width, photo.header.height
    if width * height > LARGEST_PIXELS:
        raise Unusable(f"the picture claims {width} x {height} pixels, and more than 1000 megapixels are not read")
    if min(width, height) < SMALLEST_SIDE:
        raise Unusable(f"the picture has only {width} x {height} pixels, and fewer than {SMALLEST_SIDE} show nothing")
    return photo


def decode(photo: PhotoFile) -> tuple[Image.Image, Mask | None]:
    """The upright picture with 8 bits, RGB or grey, and where it is opaque; None when that is everywhere.

    Colours stay as they are stored: profiles are not applied, and what lies under transparent pixels is kept. Raises
    Unusable.
    """
    with _decoding(photo):
        if photo.name.lower().endswith(RAW_SUFFIXES):
            return _develop(photo.path), None
        if photo.name.lower().endswith(light.SUFFIXES):
            return _shown(photo.path)
        with Image.open(photo.path) as file:
            file.load()
            return _eight_bit(upright(file, photo.header.orientation))


# --- the first pass: headers ----------------------------------------------------------------------------------------


def _look_at_all(
    root: Path, names: Sequence[str], dropped: list[tuple[str, str]], progress: Progress | None
) -> Iterator[PhotoFile]:
    """Every usable header. A raw file or HEIC beside a picture of the same name, and copies of a file, are dropped."""
    others = {
        str(PurePosixPath(name).with_suffix("")).casefold(): name
        for name in names
        if name.lower().endswith(PICTURE_SUFFIXES)
    }
    sizes = Counter(_size(root / name) for name in names)
    seen: dict[bytes, str] = {}
    for done, name in enumerate(names):
        if progress is not None:
            progress("reading headers", done, len(names))
        developed = others.get(str(PurePosixPath(name).with_suffix("")).casefold())
        try:
            if developed is not None and not name.lower().endswith(PICTURE_SUFFIXES):
                raise Unusable(f"the same photo is there as {developed}")
            photo = look(root, name)
            if sizes[_size(root / name)] > 1:
                first = seen.setdefault(_digest(root / name), name)
                if first != name:
                    raise Unusable(f"it is a copy of {first}")
        except Unusable as reason:
            dropped.append((name, str(reason)))
            continue
        yield photo


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise Unusable(f"the file cannot be read ({error.strerror or error})") from error
    return digest.digest()


def _one_kind(
    photos: list[PhotoFile], config: PhotosConfig, dropped: list[tuple[str, str]], notes: list[str]
) -> tuple[list[PhotoFile], str]:
    """Panoramas or photos, whichever are more: one camera model cannot serve both."""
    if config.lens == "auto":
        panoramas = [photo for photo in photos if guess_lens(photo.header).lens is Lens.EQUIRECTANGULAR]
    else:
        panoramas = photos if config.lens == Lens.EQUIRECTANGULAR.value else []
    chosen = {photo.name for photo in panoramas}
    others = [photo for photo in photos if photo.name not in chosen]
    if len(panoramas) > len(others):
        kind, kept, left, reason = "panoramas", panoramas, others, "it is no panorama, and most pictures are"
    else:
        kind, kept, left, reason = "photos", others, panoramas, "it is a panorama, and most pictures are not"
    dropped += [(photo.name, reason) for photo in left]
    if left:
        notes.append(
            f"There are {len(panoramas)} panoramas and {len(others)} other photos, which cannot be solved together; "
            f"the {len(kept)} {kind} are used. Give the rest as a set of its own."
        )
    if kind == "photos":
        return kept, kind
    whole = [photo for photo in kept if abs(photo.header.shown[0] / photo.header.shown[1] - 2) < 0.01]
    names = {photo.name for photo in whole}
    reason = "it is a panorama that does not show the whole sphere (the picture is not twice as wide as high)"
    dropped += [(photo.name, reason) for photo in kept if photo.name not in names]
    if config.lens == "auto" and not any(b"equirectangular" in photo.header.xmp for photo in whole):
        notes.append(
            "The photos are twice as wide as high and are taken for panoramas of the whole sphere, although their "
            "headers do not say so; name another lens if they are not."
        )
    return whole, kind


def _device(header: Header) -> str:
    number = str(header.exif.get(ExifTags.Base.BodySerialNumber, "")).strip(" \0")
    return f"{guess_lens(header).device or 'unknown'} {number}".strip()


def _look_raw(path: Path, name: str) -> PhotoFile:
    """The header of a camera's raw file: size and orientation from LibRaw, EXIF where the file is built like a TIFF."""
    rawpy = _extra("rawpy", "rawpy", "raw")
    try:
        with rawpy.imread(str(path)) as raw:
            sizes = raw.sizes
    except rawpy.LibRawError as error:
        raise Unusable("the file is not a raw picture that can be read") from error
    width, height = (sizes.height, sizes.width) if sizes.flip in (5, 6) else (sizes.width, sizes.height)
    tags = Image.Exif()
    exif: dict[int, object] = {}
    with suppress(*UNREADABLE), path.open("rb") as file:
        tags.load_from_fp(file)
        exif = {**tags, **tags.get_ifd(ExifTags.IFD.Exif)}
    header = Header(width, height, orientation=1, has_alpha=False, exif=exif, xmp=b"")
    return PhotoFile(
        path=path,
        name=name,
        header=header,
        plain=False,
        # Losslessly, a developed raw file is mostly the noise of its sensor, at several times the size.
        lossy=True,
        gps=_gps(tags),
        time=_time(exif),
        device=_device(header),
    )


def _extra(module: str, package: str, extra: str) -> Any:
    """An optional package. Raises Unusable with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unusable(f'reading it needs {package}: pip install "lightfold[{extra}]"') from error


def _gps(exif: Image.Exif) -> tuple[float, float, float] | None:
    """Latitude and longitude in degrees and altitude in metres (NaN when absent) from EXIF; None without a position."""
    tag = ExifTags.GPS
    try:
        table = exif.get_ifd(ExifTags.IFD.GPSInfo)
        latitude, longitude = (_degrees(table[key]) for key in (tag.GPSLatitude, tag.GPSLongitude))
        latitude *= -1 if str(table.get(tag.GPSLatitudeRef, "N")).upper().startswith("S") else 1
        longitude *= -1 if str(table.get(tag.GPSLongitudeRef, "E")).upper().startswith("W") else 1
        altitude = float(table.get(tag.GPSAltitude, math.nan))
        altitude *= -1 if table.get(tag.GPSAltitudeRef) in (1, b"\x01") else 1
    except UNREADABLE:
        return None
    # Receivers without a fix write zeros or 0/0.
    fix = abs(latitude) <= 90 and abs(longitude) <= 180 and (latitude, longitude) != (0.0, 0.0)
    return (latitude, longitude, altitude if math.isfinite(altitude) else math.nan) if fix else None


def _degrees(value: Sequence[float]) -> float:
    degrees, minutes, seconds = (float(part) for part in value)
    return degrees + minutes / 60 + seconds / 3600


def _time(exif: dict[int, object]) -> float | None:
    """Seconds since the epoch at which the photo was taken. Where the header has no time zone, as if in UTC."""
    text = str(exif.get(ExifTags.Base.DateTimeOriginal) or exif.get(ExifTags.Base.DateTimeDigitized) or "")
    try:
        moment = calendar.timegm(time.strptime(text.strip(" \0"), "%Y:%m:%d %H:%M:%S"))
    except ValueError:
        return None
    fraction = re.match(r"[0-9]+", str(exif.get(ExifTags.Base.SubsecTimeOriginal, "")))
    zone = re.match(r"([+-])([0-9]{2}):([0-9]{2})", str(exif.get(ExifTags.Base.OffsetTimeOriginal, "")))
    offset = int(f"{zone[1]}1") * (int(zone[2]) * 3600 + int(zone[3]) * 60) if zone else 0
    return moment - offset + (float(f"0.{fraction[0]}") if fraction else 0.0)


def _digestible(photo: PhotoFile) -> str:
    """The name in the capture: the photo's own, with a suffix that tells the truth about the file, and without what
    ends a word or a line in COLMAP's lists of names and pairs."""
    name = re.sub(r"[\s#]", "_", photo.name)
    allowed = (".jpg", ".jpeg") if photo.lossy else (".png",)
    if not name.lower().endswith(allowed):
        name = str(PurePosixPath(name).with_suffix(allowed[0]))
    head, tail = os.path.split(name)
    if len(os.fsencode(tail)) > 200:  # Masks and half-written files have longer names yet, and disks allow 255 bytes.
        stem, suffix = os.path.splitext(tail)
        tail = stem[:40] + hashlib.sha256(os.fsencode(stem)).hexdigest()[:16] + suffix
    return f"{head}/{tail}" if head else tail


# --- the second pass: pixels ----------------------------------------------------------------------------------------


def _parallel(make: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result | Unusable]:
    """Results in order, or the reason why there is none; a few threads work a little ahead."""
    threads = min(8, os.cpu_count() or 1)
    waiting: deque[Future[Result]] = deque()
    # Pillow releases the interpreter's lock; the short queue bounds memory, and what Ctrl-C has to wait for.
    pool = ThreadPoolExecutor(threads, thread_name_prefix="photos")
    try:
        queue = iter(items)
        for _ in items:
            while len(waiting) < 2 * threads and (ahead := next(queue, None)) is not None:
                waiting.append(pool.submit(make, ahead))
            try:
                yield waiting.popleft().result()
            except Unusable as reason:
                yield reason
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _make(item: tuple[PhotoFile, str], out: Path, masks: Masks, lens: str, known: Camera | None) -> Shot:
    """Put one photo and its mask into `out`, by this name. Raises Unusable, and RunError when it cannot be written."""
    photo, name = item
    target = out / "images" / name
    if photo.plain:
        grey, opaque, size = _plain_grey(photo), None, (photo.header.width, photo.header.height)
    else:
        picture, opaque = decode(photo)
        grey, size = reduced_grey(picture), picture.size
    counts = masks.of(photo.name, photo.header, size, opaque)
    if photo.plain:
        _link(photo.path, target)
    else:
        with whole_file(target) as partial:
            if photo.lossy:
                picture.save(partial, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
            else:
                picture.save(partial, format="PNG", compress_level=1)
    if counts is not None:
        save_mask(counts, out / "masks" / f"{name}.png")
    guess = guess_lens(replace(photo.header, width=size[0], height=size[1], orientation=1))
    lens = guess.lens.value if lens == "auto" else lens
    focal = None if lens == Lens.EQUIRECTANGULAR.value else guess.focal
    words = [photo.device, f"{size[0]}x{size[1]}", *([] if focal is None else [f"{focal:.0f}px"])]
    parameters: list[float] = []
    fitted = None if known is None else _fitted(known, size)
    if fitted is not None:
        lens, parameters = fitted.to_colmap()
        focal, words = float(fitted.intrinsics[:2].mean()), ["calibrated", f"{size[0]}x{size[1]}"]
    shot = Shot(
        name=name,
        source=str(photo.path),
        width=size[0],
        height=size[1],
        camera=" ".join(words),
        lens=lens,
        focal=focal,
        parameters=tuple(parameters),
        time=photo.time,
        gps=photo.gps,
        mask=counts is not None,
        sharpness=sharpness(grey),
        brightness=float(grey.mean()) / 255,
    )
    kept = Footage(out, "photos", False, ()).light(shot)
    if kept is not None:
        _link(photo.path, kept)
    return shot


def _fitted(known: Camera, size: tuple[int, int]) -> Camera | None:
    """A calibration for pictures of this size; None where they have another shape."""
    try:
        return fit_camera(known, Header(*size, orientation=1, has_alpha=False, exif={}, xmp=b""))[0]
    except FrameError:
        return None


def _calibration_notes(photos: Sequence[PhotoFile], known: Camera, config: PhotosConfig) -> list[str]:
    """What the user should know of a calibration and these photos. CaptureError when it fits none of them."""
    fitted = [_fitted(known, photo.header.shown) for photo in photos]
    of = f"{config.calibration} is for pictures of {known.width} x {known.height} pixels"
    if photos and all(camera is None for camera in fitted):
        width, height = photos[0].header.shown
        raise CaptureError(
            f"The calibration {of}, and no photo has their shape; {photos[0].name} has {width} x {height}. "
            "Give the calibration of these photos, upright and uncropped."
        )
    tally = Tally()
    for photo, camera in zip(photos, fitted, strict=True):
        if camera is None:
            tally.add("have another shape than the calibration and are solved without it", photo.name)
        elif (camera.width, camera.height) != (known.width, known.height):
            tally.add("have another size than the calibration, which was scaled", photo.name)
    return list(tally.notes(len(photos), "photos"))


_large_picture = threading.Lock()


@contextmanager
def _decoding(photo: PhotoFile) -> Iterator[None]:
    """Pixels are read inside: large pictures one after the other, and whatever goes wrong is Unusable."""
    large = photo.header.width * photo.header.height > ONE_AT_A_TIME_PIXELS
    try:
        with _large_picture if large else nullcontext():
            yield
    except MemoryError as error:
        raise Unusable("there is not enough memory to decode it") from error
    except UNREADABLE as error:
        ends = "truncated" in str(error) or "broken data stream" in str(error)
        raise Unusable("the file ends too early" if ends else "its pixels are damaged") from error


def _plain_grey(photo: PhotoFile) -> NDArray[np.uint8]:
    """A reduced grey copy of a file that is used as it is; reads it to its end, so that a truncated one is found.

    libjpeg can decode at a half, quarter or eighth of the size, and without colours, in much less time.
    """
    with _decoding(photo), Image.open(photo.path) as file:
        long_side = max(file.size)
        width, height = (min(side, math.ceil(side * LONG_SIDE / long_side)) for side in file.size)
        file.draft("L", (width, height))
        file.load()
        return reduced_grey(file)


def _develop(path: Path) -> Image.Image:
    """A camera's raw file as 8-bit sRGB, upright, with the white balance that the camera chose."""
    rawpy = _extra("rawpy", "rawpy", "raw")
    try:
        with rawpy.imread(str(path)) as raw:
            return Image.fromarray(raw.postprocess(use_camera_wb=True, output_bps=8))
    except rawpy.LibRawError as error:
        raise Unusable("its pixels are damaged") from error


def _shown(path: Path) -> tuple[Image.Image, Mask | None]:
    """A picture of light as 8-bit sRGB, and where it is opaque. What is brighter than white is white."""
    found, alpha = light.read_light(Frame(path, None, path.name), eight_bits)
    luminance = found[::4, ::4] @ np.array(colour.SRGB_LUMINANCE, dtype=np.float32)
    lit = luminance[luminance > 0]
    exposure = colour.fitting_exposure(float(np.median(lit)) if lit.size else 0.0)
    shown = colour.srgb_from_linear(torch.from_numpy(found * np.float32(exposure)).clamp_(0, 1))
    opaque = None if alpha is None else alpha >= OPAQUE
    return Image.fromarray((255 * shown + 0.5).to(torch.uint8).numpy()), opaque


def _eight_bit(picture: Image.Image) -> tuple[Image.Image, Mask | None]:
    """RGB or grey with 8 bits, and where it is opaque."""
    if picture.mode == "F":
        raise Unusable("its pixels are floating-point numbers; convert it to 8-bit sRGB")
    if picture.mode.startswith("I"):
        levels = np.asarray(picture).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise Unusable("its grey levels have more than 16 bits; convert it to 8-bit sRGB")
        return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8)), None
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        opaque = np.asarray(rgba.getchannel("A")) >= OPAQUE
        return rgba.convert("RGB"), None if opaque.all() else opaque
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB"), None


def _link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy where the disk has no links between the two."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{target} could not be written: {error.strerror or error}.") from error
    try:
        os.link(os.path.realpath(source), target)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise Unusable("the file is gone") from error
        with whole_file(target) as partial:
            shutil.copyfile(source, partial)


# --- the whole set --------------------------------------------------------------------------------------------------


def _in_order(shots: list[Shot], photos: list[PhotoFile]) -> tuple[list[Shot], bool]:
    """The shots in the order of taking where all times are known, and whether neighbours were taken side by side.

    They were when one camera numbered them without large gaps, or took them within seconds of each other. photos: what
    the shots were made from, in the same order, that of their names.
    """
    one_camera = len({photo.device for photo in photos}) == 1
    numbered = one_camera and _is_sequence([str(PurePosixPath(photo.name).with_suffix("")) for photo in photos])
    times = sorted(photo.time for photo in photos if photo.time is not None)
    if len(times) < len(photos) or times[0] == times[-1]:
        return shots, numbered
    gap = statistics.median(b - a for a, b in zip(times, times[1:], strict=False))
    # Sorting is stable, so names decide within a second.
    return sorted(shots, key=lambda shot: shot.time or 0.0), numbered or (one_camera and 0 < gap < WALK_SECONDS)


def _is_sequence(names: list[str]) -> bool:
    """Whether names, naturally sorted, differ in one number only, and not many numbers are missing in between."""
    pieces = [re.split(r"([0-9]+)", name) for name in names]
    if len(pieces) < 3 or len({len(piece) for piece in pieces}) != 1:
        return False
    varying = [i for i in range(len(pieces[0])) if len({piece[i] for piece in pieces}) > 1]
    if len(varying) != 1 or varying[0] % 2 == 0:
        return False
    numbers = [int(piece[varying[0]]) for piece in pieces]
    # A sequence may count in steps of ten, and be thinned out; numbers all over the place are a choice.
    step = min(b - a for a, b in zip(numbers, numbers[1:], strict=False))
    return step > 0 and numbers[-1] - numbers[0] <= 3 * step * (len(numbers) - 1)


def _too_few(path: Path, shots: list[Shot], found: int, dropped: list[tuple[str, str]]) -> str:
    tally = Tally()
    for name, reason in dropped:
        tally.add(f"were left out because {reason}", name)
    reasons = " ".join(tally.notes(found, "pictures"))
    what = "None" if not shots else "Only one"
    return f"{what} of the {found} pictures in {path} can be used, and poses need two or more. {reasons}".strip()


# --- finding finished work ------------------------------------------------------------------------------------------


def _key(photo: PhotoFile, name: str, masks: Masks, config: PhotosConfig) -> str:
    """A digest of all that decides what one photo becomes."""
    return gathered.digest(
        VERSION, photo.path, name, masks.path(photo.name), config.mask, config.lens, config.calibration
    )


def _fingerprint(root: Path, names: Sequence[str], masks: Masks, config: PhotosConfig) -> str:
    """A digest of all that decides the outcome: files by path, size and time, the configuration, optional packages."""
    files = [root / name for name in names]
    files += [path for name in names if (path := masks.path(name)) is not None]
    files += [file for file in (config.mask, config.calibration) if file is not None]
    digest = hashlib.sha256()
    packages = [importlib.util.find_spec(module) is not None for module in ("pillow_heif", "rawpy")]
    digest.update(repr((VERSION, config.lens, packages)).encode())
    for file in files:
        with suppress(OSError):
            status = file.stat()
            entry = (str(file), status.st_size, status.st_mtime_ns)
            digest.update(repr(entry).encode("utf-8", "surrogateescape"))
    return f"photos {digest.hexdigest()}"
