"""lightfold poses FOOTAGE: from pictures to cameras, and how good they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from ..errors import CaptureError, ConfigError
from ..footage import gathered
from ..footage.gather import gather, is_video, videos_in
from ..footage.photos import PhotosConfig, find_photos
from ..footage.shots import load_footage
from ..footage.video import VideoConfig
from ..formats import VIDEO_SUFFIXES, open_capture
from ..machine import usable_cores
from ..poses.config import PoseConfig
from ..poses.page import write_quality
from ..poses.quality import assess, rows
from ..poses.solve import solve
from ..poses.write import write_capture, write_crops
from . import console
from .arguments import parse
from .claim import claimed
from .journey import PHOTOS, POSES, VIDEO, Journey, Stage, shown
from .steps import Stopped, capture_name

DESCRIPTION = """Find the camera poses of photos, a video or panoramas, and say how good they are.

The result is a folder that every verb takes as a capture: transforms.json with the poses, pictures, points, the COLMAP
model, and poses.html, which shows what was found and what to do about the rest. Run it again with the same --out to go
on where it was stopped; what is finished is not done again. Exits with 2 when the poses must not be trained on."""


@dataclass(frozen=True)
class PosesArguments:
    poses: OmitArgPrefixes[PoseConfig]
    """How poses are found."""
    photos: PhotosConfig
    """How a folder of photos is read."""
    video: VideoConfig
    """How frames of a video are chosen."""
    footage: Annotated[Positional[str], arg(metavar="FOOTAGE")] = ""
    """Folder of photos or panoramas, a video; or a capture made before, to find its poses again."""
    out: Path | None = None
    """Folder of the capture. None: captures/NAME, with the name of the footage."""


def main(words: list[str]) -> None:
    """The verb."""
    default = PosesArguments(PoseConfig(), PhotosConfig(), VideoConfig())
    arguments = parse(PosesArguments, words, "poses", DESCRIPTION, default, flat=("poses",))
    if not arguments.footage:
        raise ConfigError("Say what to find the poses of: `lightfold poses FOOTAGE`; see `lightfold poses --help`.")
    source = Path(arguments.footage).expanduser()
    out = arguments.out or capture_folder(source)
    try:
        with claimed(out), shown(Journey([*footage_stages(source), *POSES])):
            find_poses(source, out, arguments.poses, arguments.photos, arguments.video)
    except KeyboardInterrupt as stop:
        raise Stopped(f"Stopped. Continue with:  lightfold poses {source} --out {out}") from stop


def lacks_poses(path: Path, format: str) -> bool:
    """Whether a path is footage whose poses are to be found: a video, or pictures none of which has a pose."""
    if format not in ("auto", "photos") or not path.exists():
        return False
    if path.is_file():
        return path.suffix.lower() in VIDEO_SUFFIXES
    try:
        return not any(frame.camera is not None for frame in open_capture(path, format).frames)
    except CaptureError:
        # Videos, HEIC and raw files are footage, and no capture.
        if videos_in(path) or find_photos(path, []):
            return True
        raise


def capture_folder(source: Path) -> Path:
    """Where the capture made of footage goes: captures/NAME, with a number behind it where that is of other footage; or
    the folder itself where it was made by this program."""
    if (source / "footage.json").is_file():
        return source
    whole = source.resolve()
    same = {gathered.name_of([whole]), gathered.name_of([whole / "images"])}
    if whole.is_dir():
        same.add(gathered.name_of(videos_in(whole)))
    number, folder = 1, Path("captures") / capture_name(source)
    while folder.exists() and gathered.source_of(folder) not in same:
        number += 1
        folder = Path("captures") / f"{capture_name(source)}-{number}"
    return folder


def footage_stages(source: Path) -> tuple[Stage, ...]:
    """How footage is gathered: none of it where that was done before."""
    if (source / "footage.json").is_file():
        return ()
    return VIDEO if source.exists() and is_video(source) else PHOTOS


def find_poses(
    source: Path, out: Path, config: PoseConfig, photos: PhotosConfig, video: VideoConfig, accept_bad: bool = False
) -> Path:
    """Gather, solve, write and judge; returns the folder of the capture. What is finished is not done again.

    Raises CaptureError when there are no poses, and, unless `accept_bad`, when there are none to be trained on.
    """
    config = replace(config, threads=config.threads or usable_cores())
    with console.one_after_another() as progress:
        if (source / "footage.json").is_file() and source.resolve() == out.resolve():
            footage = load_footage(source)
        else:
            footage = gather(source, out, photos, video, progress)
        solution = solve(footage, config, progress)
        written = write_capture(footage, solution)
        if footage.kind == "panoramas" and config.panoramas != "whole":
            written = write_crops(footage, solution, config, progress)
    quality = assess(footage, solution)
    report = write_quality(quality, footage.root)
    found = [*rows(quality), ("capture", str(written.parent)), ("report", str(report))]
    bad = quality.verdict == "bad"
    if not bad:
        found.append(("train", f"lightfold run {written.parent}"))
    console.table(found, title=f"{capture_name(source)}: {len(footage.shots)} pictures")
    for note in (*footage.notes, *solution.notes):
        console.remark(note)
    if bad and not accept_bad:
        raise CaptureError(
            f"These poses are not to be trained on, for the reasons above; pictures are in {report}. To train on them "
            f"all the same: lightfold train ngp {written.parent}"
        )
    return written.parent
