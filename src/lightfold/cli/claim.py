"""One process at a time in a folder: two that write the same capture or run would ruin each other's work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from ..errors import RunError
from ..files import whole_file

MARK = ".at-work"
"""File that names the process at work. One that a killed process left behind claims nothing."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep a folder for this process while the block runs. Raises RunError when another process is at work there.

    A folder that did not exist and holds nothing at the end is removed again.
    """
    mark, new = folder / MARK, not folder.exists()
    other = owner(folder)
    if other is not None:
        raise RunError(
            f"Another lightfold, process {other}, is at work in {folder}; wait for it, or choose another folder."
        )
    me = psutil.Process()
    with whole_file(mark) as partial:
        partial.write_text(f"{me.pid} {me.create_time()}", encoding="utf-8")
    try:
        yield
    finally:
        with suppress(OSError):
            mark.unlink()
            if new and not any(folder.iterdir()):
                folder.rmdir()


def owner(folder: Path) -> int | None:
    """The number of the other process that is at work in a folder, or None."""
    try:
        number, begun = (folder / MARK).read_text(encoding="utf-8").split()
        process = psutil.Process(int(number))
        # Numbers are given again: a process that began later is another one.
        alive = process.is_running() and abs(process.create_time() - float(begun)) < 1.0
    except (OSError, ValueError, psutil.Error):
        return None
    return int(number) if alive and int(number) != os.getpid() else None
