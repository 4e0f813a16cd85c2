"""lightfold mask FOLDER: simple masks for the photos of a folder, from a circle, rectangles, a colour, or the nadir."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from PIL import ImageColor
from tyro.conf import Positional, arg

from ..errors import CaptureError, ConfigError
from . import console
from .arguments import parse

if TYPE_CHECKING:
    from ..footage.masks import Mask
    from ..footage.photos import PhotoFile

DESCRIPTION = """Make simple masks for the photos of a folder: FOLDER/masks/NAME.png, NAME with the photo's own suffix.

White pixels count, black ones are hidden from features, training and scores. Shapes are given for the photo as it is
seen upright, and can be combined; masks that exist are kept."""


@dataclass(frozen=True)
class MaskArguments:
    folder: Annotated[Positional[str], arg(metavar="FOLDER")] = ""
    """The folder of the photos, or of a capture with a folder images inside."""
    circle: float | None = None
    """Only the inside of a circle counts: its radius as a share of half the shorter side. For fisheye lenses."""
    centre: tuple[float, float] = (0.5, 0.5)
    """Centre of the circle, as shares of width and height."""
    rectangle: tuple[tuple[float, float, float, float], ...] = ()
    """Hide rectangles: left, top, right and bottom as shares of width and height, four numbers each."""
    nadir: float | None = None
    """Hide what lies within this angle of straight down in a panorama, in degrees: the tripod."""
    colour_key: str | None = None
    """Hide a colour, by name or as "#00ff00": a screen, a studio's background."""
    tolerance: float = 40.0
    """How far each channel may be from that colour, in levels of 255."""
    overwrite: bool = False
    """Also replace masks that exist."""


@dataclass(frozen=True)
class Made:
    """What `make_masks` did. written: names of photos. share: of their pixels that count, on average. kept: photos that
    had a mask. refused: (photo, reason)."""

    folder: Path
    written: tuple[str, ...]
    share: float
    kept: int
    refused: tuple[tuple[str, str], ...]


def main(words: list[str]) -> None:
    """The verb. Ends with an error when no photo of the folder can be read."""
    arguments = parse(MaskArguments, words, "mask", DESCRIPTION, MaskArguments())
    if not arguments.folder:
        raise ConfigError("Say which photos to mask: `lightfold mask FOLDER --circle 0.95`.")
    with console.progress("masks") as report:
        made = make_masks(arguments, report)
    rows = [("masks written", str(len(made.written)))]
    if made.written:
        rows.append(("pixels that count", f"{100 * made.share:.1f} %"))
    if made.kept:
        rows.append(("kept as they were", f"{made.kept}, add --overwrite to replace them"))
    rows += [("left out", f"{name}, because {reason}") for name, reason in made.refused]
    console.table(rows, title=str(made.folder))


def make_masks(arguments: MaskArguments, report: console.Report | None = None) -> Made:
    """Make the masks. Raises ConfigError for impossible shapes, CaptureError without a readable photo."""
    from ..footage.masks import STORED, Masks, Unusable, patient_pillow, save_mask, turned
    from ..footage.photos import find_photos, inside_images, look

    colour = _check(arguments)
    folder = Path(arguments.folder).expanduser().absolute()
    refused: list[tuple[str, str]] = []
    root, names = inside_images(folder, find_photos(folder, refused))
    written: list[str] = []
    shares: list[float] = []
    kept = 0
    with patient_pillow():
        there = Masks(root, None)
        for done, name in enumerate(names):
            if there.path(name) is not None and not arguments.overwrite:
                kept += 1
            else:
                try:
                    photo = look(root, name)
                    counts = _mask(photo, arguments, colour)
                    # Mask files describe the stored pixels, shapes the upright picture.
                    save_mask(turned(counts, STORED.get(photo.header.orientation)), folder / "masks" / f"{name}.png")
                    written.append(name)
                    shares.append(float(counts.mean()))
                except Unusable as reason:
                    refused.append((name, str(reason)))
            if report is not None:
                report(done + 1, len(names))
    if not written and not kept:
        reasons = "; ".join(f"{name}, because {reason}" for name, reason in refused[:3])
        raise CaptureError(f"No mask was made: {folder} holds no photo that can be used. {reasons}".strip())
    return Made(folder / "masks", tuple(written), sum(shares) / max(1, len(shares)), kept, tuple(refused))


def _check(arguments: MaskArguments) -> tuple[int, int, int] | None:
    """The colour to hide, if any. Raises ConfigError for values that mean nothing, and when no shape is given."""
    shapes = (arguments.circle, arguments.nadir, arguments.colour_key, arguments.rectangle or None)
    if all(shape is None for shape in shapes):
        raise ConfigError("Say what to mask: --circle, --rectangle, --nadir or --colour-key.")
    if arguments.circle is not None and not 0 < arguments.circle <= 2:
        raise ConfigError(f"--circle should lie between 0 and 2, but is {arguments.circle:g}.")
    if arguments.nadir is not None and not 0 < arguments.nadir < 180:
        raise ConfigError(f"--nadir should lie between 0 and 180 degrees, but is {arguments.nadir:g}.")
    for left, top, right, bottom in arguments.rectangle:
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ConfigError(
                "--rectangle should be left, top, right and bottom as shares between 0 and 1, but is "
                f"{left:g} {top:g} {right:g} {bottom:g}."
            )
    if arguments.colour_key is None:
        return None
    try:
        red, green, blue = ImageColor.getrgb(arguments.colour_key)[:3]
    except ValueError as error:
        raise ConfigError(
            f'--colour-key should be a colour such as "#00ff00", not {arguments.colour_key!r}.'
        ) from error
    return red, green, blue


def _mask(photo: PhotoFile, arguments: MaskArguments, colour: tuple[int, int, int] | None) -> Mask:
    """The pixels [h, w] of the upright photo that count. Raises Unusable."""
    from ..footage.masks import Unusable, all_of, circle, off_colour, outside_nadir, outside_rectangle
    from ..footage.photos import decode

    width, height = photo.header.shown
    masks = [outside_rectangle(width, height, *rectangle) for rectangle in arguments.rectangle]
    if arguments.circle is not None:
        masks.append(circle(width, height, arguments.circle, arguments.centre))
    if arguments.nadir is not None:
        if abs(width / height - 2) > 0.01:
            raise Unusable("only a panorama, twice as wide as high, has its nadir at the lower edge")
        masks.append(outside_nadir(width, height, arguments.nadir))
    if colour is not None:
        picture, _ = decode(photo)
        if picture.size != (width, height):
            raise Unusable("its pixels have another size than its header says")
        masks.append(off_colour(picture, colour, arguments.tolerance))
    return all_of(masks)
