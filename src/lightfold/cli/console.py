"""What the command line shows: plain sentences on standard output, complaints in red on standard error, progress."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from ..viewer.jobs import MARK, PROGRESS_LINES


class Report(Protocol):
    """Called with (done, in all), and with what else is worth saying."""

    def __call__(self, done: float, total: float, text: str = "") -> None: ...


_whole: Callable[[str], Report] | None = None
"""What `progress` reports to, by title, while something larger is shown that it is a part of. There is one terminal."""
_screen: Console | None = None
"""The console on which that is being drawn, through which everything else must go so as not to be drawn over."""


_name: str | None = None
"""Who is complaining, in a process that says nothing else."""


def only_complain(name: str) -> None:
    """From now on show complaints alone, and under this name: the process is one of several, and another one speaks."""
    global _name
    _name = name


def say(text: str, style: str = "") -> None:
    """A line on standard output, not wrapped, so that a path in it can be copied."""
    if _name is not None:
        return
    _console().print(Text(text, style=style), soft_wrap=True)


def complain(text: str) -> None:
    """A sentence in red on standard error."""
    text = text if _name is None else f"{_name}: {text}"
    _console(stderr=True).print(Text(text, style="bold red"), soft_wrap=True)


def remark(text: str) -> None:
    """A sentence in yellow on standard error: something the user should know that stops nothing."""
    if _name is not None:
        return
    _console(stderr=True).print(Text(text, style="yellow"), soft_wrap=True)


def table(rows: Sequence[tuple[str, str]], title: str = "") -> None:
    """Two columns: what it is, and its value. Lines are not wrapped, so that a path in one can be copied."""
    if _name is not None:
        return
    shown = _console()
    if title:
        shown.print(Text(title, style="bold cyan"), soft_wrap=True)
    width = max((len(name) for name, _ in rows), default=0) + 2
    for name, value in rows:
        shown.print(Text.assemble((name.ljust(width), "bold"), value), soft_wrap=True)


def _console(stderr: bool = False) -> Console:
    if _screen is not None and (stderr or sys.stdout.isatty()):
        return _screen
    return Console(stderr=stderr, highlight=False)


@contextmanager
def progress(title: str) -> Iterator[Report]:
    """A progress bar on standard error with an ETA; where that is not a terminal, one line that says what is begun.

    Inside `reporting_to`, a part of what is shown there."""
    shown = Console(stderr=True, highlight=False)
    if _name is not None:
        yield lambda done, total, text="": None
        return
    if _whole is not None:
        yield _whole(title)
        return
    if for_a_program():
        yield lines(title)
        return
    if not shown.is_terminal:
        shown.print(Text(f"{title} ..."), soft_wrap=True)
        yield lambda done, total, text="": None
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

        def report(done: float, total: float, text: str = "") -> None:
            bars.update(task, completed=done, total=total)

        yield report


@contextmanager
def one_after_another() -> Iterator[Callable[[str, int, int], None]]:
    """Called with (what is being done, done, in all): a `progress` for each thing that is done, one after the other."""
    with ExitStack() as stack:
        shown: list[tuple[str, Report]] = []

        def report(what: str, done: int, total: int) -> None:
            if not shown or shown[0][0] != what:
                stack.close()
                shown[:] = [(what, stack.enter_context(progress(what)))]
            shown[0][1](done, total)

        yield report


def within(title: str) -> Report | None:
    """Where to report something that has a bar of its own: None when it is to show that, outside `reporting_to`."""
    return None if _whole is None else _whole(title)


@contextmanager
def reporting_to(whole: Callable[[str], Report], screen: Console | None = None) -> Iterator[None]:
    """While the block runs, `progress` and `within` report to what `whole` gives for their titles. screen: on which
    something is drawn meanwhile."""
    global _whole, _screen
    before = _whole, _screen
    _whole, _screen = whole, screen
    try:
        yield
    finally:
        _whole, _screen = before


def for_a_program() -> bool:
    """Whether progress is to be written as lines for another program to read (`viewer.jobs`)."""
    return PROGRESS_LINES in os.environ


def lines(title: str) -> Report:
    """Progress as lines for another program, at most a few of them per second."""
    written = 0.0

    def report(done: float, total: float, text: str = "") -> None:
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
    """Also write what the package logs to this file. `main` ends that with the verb."""
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("lightfold")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def drop_logs() -> None:
    """Write no more to any file: the folders that they are in may go away."""
    logger = logging.getLogger("lightfold")
    for handler in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
        logger.removeHandler(handler)
        handler.close()
