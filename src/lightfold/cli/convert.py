"""lightfold convert PATH --to FORMAT OUT: a capture, or the cameras of a run, as a data set in another format."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ..errors import CaptureError, ConfigError, RunError
from . import console
from .arguments import parse

if TYPE_CHECKING:
    from ..capture import Capture, Points
    from ..export.region import Sphere
    from ..export.views import Progress

DESCRIPTION = """Write a capture in another format, with its pictures, masks and depth maps.

OUT must be new or empty. Files that do not change are hard links, which take no room. Pictures are made anew only
where the format needs it: undistorted for formats that know pinholes only, with the exact inverse of the lens. What the
format has no place for is said. A run gives its cameras as training has refined them.

Formats: transforms (nerfstudio), instant-ngp, blender, llff, neus, colmap, colmap-text, sdfstudio."""


@dataclass(frozen=True)
class ConvertArguments:
    path: Annotated[Positional[str], arg(metavar="PATH")] = ""
    """A capture of any format that is read, or a run."""
    out: Annotated[Positional[str], arg(metavar="OUT")] = ""
    """The folder to write, new or empty."""
    to: Annotated[str, arg(metavar="FORMAT")] = ""
    """The format to write."""
    format: str = "auto"
    """Format of the capture; "auto" finds out."""
    subset: float | None = None
    """Write only so many of the capture's posed pictures, or below 1 this share of them, evenly spaced. None: all."""
    copy: bool = False
    """Copy files that do not change, instead of linking them."""
    factors: tuple[int, ...] = ()
    """llff, colmap: also make folders images_N of pictures divided by these, such as --factors 2 4 8."""
    box: tuple[float, float, float, float, float, float] | None = None
    """neus, sdfstudio, instant-ngp: lower and upper corner (x y z x y z) of what is of interest, in the capture's
    coordinates. None: found from silhouettes or surface points."""
    capture: Path | None = None
    """Where the pictures of a run are now. None: where they were."""
    step: int | None = None
    """Which checkpoint of a run. None: the newest."""


def main(words: list[str]) -> None:
    """The verb."""
    arguments = parse(ConvertArguments, words, "convert", DESCRIPTION, ConvertArguments())
    _check(arguments)
    from . import steps

    steps.use_threads(None)
    out = Path(arguments.out).expanduser().absolute()
    _require_new(out)
    capture = _opened(arguments)
    if arguments.subset is not None:
        capture = capture.evenly(arguments.subset)
    for note in convert(capture, arguments, out):
        console.remark(note)
    console.say(str(out))


def _check(arguments: ConvertArguments) -> None:
    from ..config import did_you_mean
    from ..export.cameras import TARGETS

    if not (arguments.path and arguments.out and arguments.to):
        raise ConfigError(
            f"Say what to write where: `lightfold convert PATH --to FORMAT OUT`. Formats: {', '.join(TARGETS)}."
        )
    if arguments.to not in TARGETS:
        raise ConfigError(f"No format called '{arguments.to}' is written. {did_you_mean(arguments.to, list(TARGETS))}")
    if arguments.factors and arguments.to not in ("llff", "colmap", "colmap-text"):
        raise ConfigError(f"--factors makes folders that llff and colmap have, and the format is {arguments.to}.")
    if arguments.subset is not None and not 0 < arguments.subset < math.inf:
        raise ConfigError("--subset must be a positive number of pictures, or a share of them, such as --subset 0.5.")
    if any(not 2 <= factor <= 64 for factor in arguments.factors):
        raise ConfigError("--factors must be whole numbers from 2 to 64, such as --factors 2 4 8.")
    box = arguments.box
    if box is not None and not all(low < high for low, high in zip(box[:3], box[3:], strict=True)):
        raise ConfigError("--box must be a lower and an upper corner, such as --box -1 -1 0 1 1 2.")
    if box is not None and TARGETS[arguments.to].needs != "sphere":
        raise ConfigError(f"--box says what is of interest, for which {arguments.to} has no place.")


def _opened(arguments: ConvertArguments) -> Capture:
    """The capture, with posed frames at least; of a run, the one that it was trained on, with its refined cameras."""
    from ..formats import FORMATS, open_capture
    from ..run import Run, is_run
    from . import steps

    path = Path(arguments.path).expanduser()
    if not is_run(path):
        if arguments.format not in ("auto", *FORMATS):
            raise ConfigError(f"There is no format called '{arguments.format}'. Known: auto, {', '.join(FORMATS)}.")
        capture = open_capture(path, arguments.format)
        posed = capture.posed()
        missing = len(capture) - len(posed)
        if not len(posed):
            raise CaptureError(steps.UNPOSED.format(path=path, count=missing))
        note = f"{missing} of {len(capture)} pictures have no pose and are left out."
        return replace(posed, notes=(*capture.notes, note)) if missing else posed
    from ..export.cameras import capture_of
    from .export import refined

    run = Run.open(path)
    place = arguments.capture or Path(run.config.capture).expanduser()
    if not place.exists():
        raise RunError(f"The pictures of {path} are not at {place}; say where they are with --capture.")
    pictures = steps.posed_capture(place, run.config.format)
    info = refined(run, arguments.step)
    return capture_of(info, info.scene_from_capture.inverse(), pictures)


def convert(capture: Capture, arguments: ConvertArguments, out: Path) -> list[str]:
    """Write the capture into the folder `out`; returns what there is to say about it, in sentences.

    Everything is made in a folder beside it, which takes its name at the end: a failure leaves nothing behind.
    """
    from ..export.cameras import TARGETS, lost, placed, write_cameras
    from ..export.carry import carry, smaller_pictures
    from ..light import holds_light
    from .export import stages

    if arguments.factors and any(holds_light(frame) for frame in capture.frames):
        raise ConfigError("--factors makes pictures of 8 bits, and this capture holds light; leave it out.")
    target = TARGETS[arguments.to]
    notes = [*capture.notes, *lost(capture, arguments.to)]
    capture, more = _with_split(capture) if arguments.to == "blender" else (capture, [])
    notes += more
    with stages() as progress:
        points = _points(capture, target.needs, progress)
        sphere = None
        if target.needs == "sphere":
            sphere = _sphere(capture, points, arguments.box)
            notes.append(
                f"The sphere of interest, of radius {sphere.radius:.4g} about "
                f"({', '.join(f'{x:.4g}' for x in sphere.centre.tolist())}), is from {sphere.source}."
            )
        if target.needs == "depths" and points is not None:
            capture = replace(capture, points=points)
        capture, sphere = placed(capture, arguments.to, sphere)
        with _staging(out) as folder:
            carried, more = carry(capture, folder, target.holds, arguments.copy, progress)
            notes += more
            notes += write_cameras(carried, arguments.to, folder, sphere)
            for factor in arguments.factors:
                smaller_pictures(carried, folder, factor, progress)
    return notes


def _with_split(capture: Capture) -> tuple[Capture, list[str]]:
    """The capture with every frame in a list, by the rule that training follows where it has no lists of its own."""
    from ..split import split_names

    _, test, _ = split_names(sorted(capture.frames, key=lambda frame: frame.name), "auto")
    if any(frame.split == "test" for frame in capture.frames) or len(capture.frames) < 2:
        return capture, []
    frames = tuple(replace(frame, split="test" if frame.name in test else "train") for frame in capture.frames)
    return replace(capture, frames=frames), [f"Every 8th picture is a test view: {len(test)} of {len(frames)}."]


def _points(capture: Capture, needs: str | None, progress: Progress) -> Points | None:
    """Surface points, where the format needs what only they can say."""
    from ..export.region import surface_points

    if needs == "sphere" and capture.bounds is None:
        return surface_points(capture, progress)
    if needs == "depths" and capture.points is None and (capture.near is None or capture.far is None):
        return surface_points(capture, progress)
    return capture.points


def _sphere(
    capture: Capture, points: Points | None, box: tuple[float, float, float, float, float, float] | None
) -> Sphere:
    import torch

    from ..export.region import sphere_of_interest

    given = None if box is None else torch.tensor(box, dtype=torch.float64).reshape(2, 3)
    return sphere_of_interest(capture, points, given)


def _require_new(out: Path) -> None:
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise RunError(f"{out} holds something already; give a new or an empty folder.")


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when the block ends well, and vanishes when it does not."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise RunError(f"{out} could not be written: {error.strerror or error}.") from error
    try:
        # mkdtemp's folders are closed to everybody else, which is not what a user expects of a result.
        folder.chmod(0o777 & ~_umask())
        yield folder
        with suppress(FileNotFoundError):
            out.rmdir()  # Empty, or this fails.
        os.replace(folder, out)
    except OSError as error:
        raise RunError(f"{out} could not be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
