"""The folder of decoded pictures: bounded in size, the longest unused out first, and what is in use stays.

Every cache may be deleted at any time; it is made again when it is asked for. Only files with the names that
`images` and `sweep` give are looked at, so that nothing else in a folder that a user has chosen is touched.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from .errors import ConfigError, LightfoldError

LIMIT = "LIGHTFOLD_CACHE_GB"
"""Environment variable: the most that the folder may hold, in gigabytes. Without it, half of what the disk has left."""
RESERVE = 1 << 28
"""Bytes that are left on the disk for everything else."""
OURS = re.compile(r"(pixels-[0-9a-f]{24}\.bin|surface-[0-9a-f]{24}\.npy)")
UNFINISHED = re.compile(r"\.pixels-.*\.partial")


def make_room(folder: Path, needed: int) -> None:
    """See to it that `needed` bytes fit into the folder: remove what interrupted programs left, then, as far as there
    is need, the caches whose last use is the longest ago and that no program has open.

    Raises LightfoldError, before anything is removed, when that cannot be enough; ConfigError for a limit that is none.
    """
    for path in _named(folder, UNFINISHED):
        _remove(path)
    found = sorted(((path, path.stat()) for path in _named(folder, OURS)), key=lambda pair: pair[1].st_mtime)
    held = sum(status.st_size for _, status in found)
    loose = [(path, status.st_size) for path, status in found if not in_use(path)]
    removable = sum(size for _, size in loose)
    free = shutil.disk_usage(folder).free
    stated = stated_limit()
    if stated is not None and needed > stated - (held - removable):
        raise LightfoldError(
            f"The decoded pictures need {_gb(needed)}, and {LIMIT} allows the cache folder {folder} {_gb(stated)}, of "
            f"which {_gb(held - removable)} are in use; raise it, or train with a larger --scene.downscale."
        )
    if needed + RESERVE > free + removable:
        raise LightfoldError(
            f"The decoded pictures need {_gb(needed)}, and the disk of the cache folder {folder} has {_gb(free)} left; "
            "free some space, train with a larger --scene.downscale, or name another folder in LIGHTFOLD_CACHE."
        )
    limit = (free + held) / 2 if stated is None else stated
    for path, size in loose:
        if held + needed <= limit and needed + RESERVE <= free:
            return
        if _remove(path):
            held, free = held - size, free + size


def stated_limit() -> float | None:
    """The limit in bytes that the environment states, or None. Raises ConfigError on what is no number of gigabytes."""
    text = os.environ.get(LIMIT)
    if not text:
        return None
    with suppress(ValueError):
        if math.isfinite(limit := float(text) * 1e9) and limit > 0:
            return limit
    raise ConfigError(f"The environment variable {LIMIT} must be a number of gigabytes above 0, and it is '{text}'.")


class Hold:
    """Marks a file as in use for as long as this object lives. Raises OSError when the file cannot be opened."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        mark(self._descriptor)

    def read_ahead(self, begin: int, size: int) -> None:
        """Ask the system to read these bytes soon, in one go. Where it cannot be asked, they are read when used."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(self._descriptor, begin, size, os.POSIX_FADV_WILLNEED)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def mark(descriptor: int, alone: bool = False) -> bool:
    """Mark an open file as in use until it is closed, `alone` against other holders too; whether that was possible.

    Where the system has no such marks, as Windows, it refuses to remove open files, which serves as well.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # Some network disks have no marks. What is mapped stays readable there even when it is removed.
    return True


def in_use(path: Path) -> bool:
    """Whether some program holds the file."""
    try:
        with path.open("rb") as file:
            return not mark(file.fileno(), alone=True)
    except OSError:
        return False


def _named(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    return [path for path in folder.iterdir() if pattern.fullmatch(path.name)]


def _remove(path: Path) -> bool:
    """Remove a cache unless it is in use; whether that was done."""
    if in_use(path):
        return False
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False  # Windows says in this way that it is in use.
    return True


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
