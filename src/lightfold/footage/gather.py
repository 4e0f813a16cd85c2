"""Footage of any kind: finds out what a path is, and has it gathered by whoever knows that kind."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CaptureError
from ..formats import VIDEO_SUFFIXES
from ..formats.frames import natural_key
from .photos import PhotosConfig, Progress, find_photos, gather_photos
from .shots import Footage
from .video import VideoConfig, gather_videos


def gather(
    path: Path,
    out: Path,
    photos: PhotosConfig | None = None,
    video: VideoConfig | None = None,
    progress: Progress | None = None,
) -> Footage:
    """Make `out` a `Footage` of a video file, a folder of photos or panoramas, or a folder of videos of one place.

    The user's files are only read. Work that is finished with the same files and options is found again.
    Raises CaptureError with a sentence when nothing there can be used.
    """
    path = path.expanduser()
    if not path.exists():
        raise CaptureError(f"There is nothing at {path}.")
    if path.is_file():
        return gather_videos([path], out, video, progress)
    if is_video(path, out):
        return gather_videos(videos_in(path), out, video, progress)
    return gather_photos(path, out, photos, progress)


def is_video(path: Path, besides: Path | None = None) -> bool:
    """Whether footage is a video or a folder of nothing but videos. besides: a folder inside, not to be looked into."""
    return path.is_file() or bool(videos_in(path) and not find_photos(path, [], besides=besides))


def videos_in(folder: Path) -> list[Path]:
    """The videos in a folder, naturally sorted. Raises CaptureError when it cannot be listed."""
    try:
        names = [name for name in os.listdir(folder) if name.lower().endswith(VIDEO_SUFFIXES)]
    except OSError as error:
        raise CaptureError(f"{folder} cannot be listed: {error.strerror or error}.") from error
    return [folder / name for name in sorted(names, key=natural_key) if not name.startswith(".")]
