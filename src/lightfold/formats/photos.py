"""A plain folder of photos: frames without poses, with what their headers suggest about the lens."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import ExifTags

from .. import light
from ..cameras import Lens
from ..capture import Capture, Frame, LensGuess
from ..errors import CaptureError
from .frames import (
    PICTURE_SUFFIXES,
    FrameError,
    Header,
    Names,
    Tally,
    find_companion,
    natural_key,
    read_header,
    require_frames,
)

LOOKS_FOR = "pictures (" + ", ".join(suffix[1:] for suffix in PICTURE_SUFFIXES) + "), in folders inside it too"
LOOKS_FOR += "; exr and hdr where there are no others"
# Folders beside the photos that hold something else, or the same photos smaller.
NOT_PHOTOS = {"mask", "masks", "depth", "depths", "normals", "sparse", "colmap", "stereo"}
NOT_PHOTOS |= {"images_2", "images_4", "images_8"}
# The diagonal of 35 mm film, to which FocalLengthIn35mmFilm refers (CIPA DCG-001).
FILM_DIAGONAL_MM = math.hypot(36, 24)
KNOWN_SUFFIXES = PICTURE_SUFFIXES + light.SUFFIXES
MILLIMETRES: dict[float, float] = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}


def sniff(path: Path) -> bool:
    """True for a folder with a picture anywhere inside it."""
    return os.path.isdir(path) and next(_walk(path), None) is not None


def read(path: Path) -> Capture:
    """Every picture in the folder, naturally sorted by its path; masks/NAME.png beside them are taken along.

    A picture with an EXIF orientation is to be rotated (`exif_rotate`), and its guess describes the rotated picture.
    """
    if not os.path.isdir(path):
        raise CaptureError(f"{path} is not a folder.")
    written = sorted(pictures_among(list(_walk(path))), key=natural_key)
    tally, names = Tally(), Names()
    frames = []
    for name in written:
        try:
            header = read_header(path / name)
        except FrameError as reason:
            tally.add(str(reason), name)
            continue
        mask = find_companion(path / "masks", name.removeprefix("images/"), (".png", ".jpg"))
        frame = Frame(
            path=path / name,
            camera=None,
            name=names.new(name),
            mask=mask,
            exif_rotate=header.orientation != 1,
            guess=guess_lens(header),
        )
        frames.append(frame)
    notes = tally.notes(len(written), "pictures")
    require_frames(frames, len(written), path, notes)
    return Capture(root=path, format="photos", frames=tuple(frames), notes=notes)


def _walk(root: Path) -> Iterator[str]:
    """Relative paths of the pictures inside a folder. Links to folders are not followed: they may form a cycle."""
    for folder, inside, files in os.walk(root):
        inside[:] = sorted(name for name in inside if not name.startswith(".") and name.lower() not in NOT_PHOTOS)
        for name in sorted(files):
            if name.lower().endswith(KNOWN_SUFFIXES) and not name.startswith((".", "dynamic_mask_")):
                yield os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")


def pictures_among(names: list[str]) -> list[str]:
    """The names without EXR and .hdr files, unless there is nothing else: beside photographs they are depth maps."""
    return [name for name in names if not name.lower().endswith(light.SUFFIXES)] or names


# --- what a header suggests -----------------------------------------------------------------------------------------


def guess_lens(header: Header) -> LensGuess:
    """The lens to start from: a panorama when the header says so or the shape is 2:1, else one radial coefficient."""
    width, height = header.shown
    maker, model = (str(header.exif.get(tag, "")).strip(" \0") for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
    device = model if model.startswith(maker) else f"{maker} {model}".strip()
    if b"equirectangular" in header.xmp or (width == 2 * height and width >= 1024):
        return LensGuess(Lens.EQUIRECTANGULAR, None, width, height, device)
    return LensGuess(Lens.SIMPLE_RADIAL, _focal_length(header), width, height, device)


def _focal_length(header: Header) -> float | None:
    """Focal length in pixels: from its 35 mm equivalent, else from the sensor's own pixel pitch."""
    details = header.exif
    diagonal = math.hypot(header.width, header.height)
    film = _positive(details.get(ExifTags.Base.FocalLengthIn35mmFilm))
    if film is not None:
        return film * diagonal / FILM_DIAGONAL_MM
    millimetres = _positive(details.get(ExifTags.Base.FocalLength))
    per_unit = _positive(details.get(ExifTags.Base.FocalPlaneXResolution))
    unit = MILLIMETRES.get(_positive(details.get(ExifTags.Base.FocalPlaneResolutionUnit)) or 2.0)
    if millimetres is None or per_unit is None or unit is None:
        return None
    # The pitch is that of the picture as taken; a picture resized since then says how wide it was.
    taken = _positive(details.get(ExifTags.Base.ExifImageWidth)) or header.width
    return millimetres * per_unit / unit * header.width / taken


def _positive(value: object) -> float | None:
    """An EXIF number as a float, or None: headers hold zeros, 0/0 and text where numbers belong."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None
