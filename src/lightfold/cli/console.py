"""What the command line shows: plain sentences on standard output, complaints in red on standard error, progress."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from ..viewer.jobs import MARK, PROGRESS_LINES


class Report(Protocol):
    """Called with (done, in all)."""

    def __call__(self, done: int, total: int) -> None: ...


def say(text: str, style: str = "") -> None:
    """A line on standard output, not wrapped, so that a path in it can be copied."""
    Console(highlight=False).print(Text(text, style=style), soft_wrap=True)


def complain(text: str) -> None:
    """A sentence in red on standard error."""
    Console(stderr=True, highlight=False).print(Text(text, style="bold red"), soft_wrap=True)


def remark(text: str) -> None:
    """A sentence in yellow on standard error: something the user should know that stops nothing."""
    Console(stderr=True, highlight=False).print(Text(text, style="yellow"), soft_wrap=True)


def table(rows: Sequence[tuple[str, str]], title: str = "") -> None:
    """Two columns: what it is, and its value. Lines are not wrapped, so that a path in one can be copied."""
    shown = Console(highlight=False)
    if title:
        shown.print(Text(title, style="bold cyan"), soft_wrap=True)
    width = max((len(name) for name, _ in rows), default=0) + 2
    for name, value in rows:
        shown.print(Text.assemble((name.ljust(width), "bold"), value), soft_wrap=True)


@contextmanager
def progress(title: str) -> Iterator[Report]:
    """A progress bar on standard error with an ETA; where that is not a terminal, one line that says what is begun."""
    shown = Console(stderr=True, highlight=False)
    if PROGRESS_LINES in os.environ:
        yield _lines(title)
        return
    if not shown.is_terminal:
        shown.print(Text(f"{title} ..."), soft_wrap=True)
        yield lambda done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=shown, transient=True) as bars:
        task = bars.add_task(title, total=None)

        def report(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        yield report


def _lines(title: str) -> Report:
    """Progress as lines for another program, at most a few of them per second."""
    written = 0.0

    def report(done: int, total: int) -> None:
        nonlocal written
        now = time.monotonic()
        if now - written > 0.2 or done >= total:
            written = now
            sys.stderr.write(f"{MARK}{done}\t{total}\t{title}\n")
            sys.stderr.flush()

    report(0, 1)
    return report


class _Remarks(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        remark(record.getMessage())


def show_warnings() -> logging.Handler:
    """Show warnings of the package as remarks; returns the handler, for whoever takes it off again."""
    handler = _Remarks(level=logging.WARNING)
    logging.getLogger("lightfold").addHandler(handler)
    return handler


def keep_log(path: Path) -> None:
    """Also write what the package logs to this file. `main` detaches it when the verb has ended."""
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("lightfold")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
