"""lightfold download NAME: public data sets, resumable and checked, once their licence is accepted."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.text import Text
from tyro.conf import Positional, arg

from ..download import Plan, Source, carry_out, plan, sources
from ..download.fetch import Report
from ..download.planning import chosen, require_space
from ..errors import ConfigError, LightfoldError
from . import console
from .arguments import parse

if TYPE_CHECKING:
    from ..capture import Capture

DESCRIPTION = """Download a public data set. Without a name, list them all with size and licence.

What is interrupted goes on when the same command is run again. Nothing that is there is ever replaced."""
MOST_FOLDERS = 200


@dataclass(frozen=True)
class DownloadArguments:
    name: Annotated[Positional[str], arg(metavar="NAME")] = ""
    """Which data set; none lists them."""
    captures: Annotated[Positional[tuple[str, ...]], arg(metavar="CAPTURE ...")] = ()
    """Which of its captures; all where none is given."""
    out: Path = Path("data")
    """Folder in which a folder of the data set's name is made."""
    accept_licence: str = ""
    """Name of the data set, once you have read its licence and accept it; otherwise you are asked."""
    resolution: str = ""
    """EyefulTower: jpeg-1k, jpeg-2k, jpeg-4k, jpeg-8k, exr-1k or exr-2k; empty takes jpeg-1k."""
    images: int | None = None
    """EyefulTower: only so many pictures of each capture, evenly chosen."""
    fraction: float | None = None
    """EyefulTower: only this part of the pictures, evenly chosen."""
    archive: Path | None = None
    """Unpack this archive, which you have downloaded yourself, instead of downloading."""
    keep_archive: bool = False
    """Keep downloaded archives, for captures that you want from them later."""


def main(words: list[str]) -> None:
    """The verb."""
    arguments = parse(DownloadArguments, words, "download", DESCRIPTION, DownloadArguments())
    if not arguments.name:
        list_all()
        return
    source = find(arguments.name)
    if source.by_hand and arguments.archive is None:
        raise ConfigError(
            f"{source.title} cannot be downloaded by a program. {source.by_hand} Its licence: {source.licence}. Then: "
            f"lightfold download {source.name} --archive FILE"
        )
    chosen(source, arguments.captures)
    require_answer(source, arguments.accept_licence)
    out = arguments.out.expanduser().absolute()
    archive = None if arguments.archive is None else arguments.archive.expanduser()
    if archive is not None and not archive.is_file():
        raise ConfigError(f"There is no file {archive}.")
    resolution = arguments.resolution.replace("_", "-")
    request = (source, arguments.captures, out, resolution, arguments.images, arguments.fraction)
    planned = plan(*request, ask=archive is None)
    if archive is not None and (source.files or source.bucket or len(planned.archives) > 1):
        raise ConfigError(f"{source.name} is not one archive. Name the captures that {archive} holds, or leave it out.")
    console.table(about(planned), title=source.title)
    if planned.archives or planned.files:
        if archive is None:
            require_space(planned.work, planned.disk)
        ask(source, arguments.accept_licence)
        try:
            notes = carry_out(planned, bytes_progress, archive, arguments.keep_archive)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("Stopped. What has arrived is kept; the same command goes on.") from None
        for note in notes:
            console.remark(note)
    for name in planned.there:
        console.say(f"{planned.folders[name]} was there already, and is left as it is.")
    for folder in planned.folders.values():
        say_what_it_is(folder)


def find(name: str) -> Source:
    """A data set by its name. Raises ConfigError with the nearest names."""
    known = sources()
    if name not in known:
        holding = [source.name for source in known.values() if name in source.captures]
        if holding:
            raise ConfigError(f"{name!r} is a part of a data set: `lightfold download {holding[0]} {name}`.")
        near = get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(f"There is no data set {name!r} in the list. {hint}`lightfold download` shows them all.")
    return known[name]


def list_all() -> None:
    """Every data set with what it is, its size and its licence."""
    for source in sources().values():
        size = source.size()
        rows = [("what", source.about)]
        if source.bucket:
            rows.append(("size", f"{_size(size)} in all as {source.bucket['default']}; far more in others"))
        else:
            rows.append(("size", _size(size) if size else "as its host says" if not source.by_hand else "unknown"))
        if len(source.captures) > 1:
            rows.append(("captures", ", ".join(source.captures)))
        rows += [("licence", source.licence), ("home", source.home)]
        if source.by_hand:
            rows.append(("download", "by hand, in a browser; the command says how"))
        console.table(rows, title=source.name)
    console.say("")
    console.say("Download one:  lightfold download NAME [CAPTURE ...] --out data")


def about(planned: Plan) -> list[tuple[str, str]]:
    """What will be downloaded, stated before it begins."""
    source = planned.source
    rows = [("what", source.about), ("licence", source.licence), ("home", source.home)]
    coming = [name for name in planned.folders if name not in planned.there]
    if coming:
        rows.append(("captures", ", ".join(coming)))
    if planned.files:
        rows.append(("files", f"{len(planned.files):,}"))
    if coming and not source.by_hand:
        rows.append(("to fetch", _size(planned.size) if planned.size is not None else "its host does not say how much"))
        rows.append(("disk", f"about {_size(planned.disk)}" if planned.disk is not None else "unknown"))
    if source.note:
        rows.append(("note", source.note))
    return rows


def require_answer(source: Source, accepted: str) -> None:
    """Raise ConfigError where the licence is not accepted and nobody is there to ask."""
    if accepted and accepted != source.name:
        raise ConfigError(f"--accept-licence names {accepted!r}, and the data set is {source.name!r}.")
    if not accepted and not (sys.stdin and sys.stdin.isatty()):
        raise ConfigError(
            f"The licence of {source.title} has to be accepted: {source.licence}. Read it ({source.home}), then add "
            f"--accept-licence {source.name}"
        )


def ask(source: Source, accepted: str) -> None:
    """Ask for the licence at the terminal, unless it was accepted by name. Raises ConfigError for any other answer."""
    if accepted == source.name:
        return
    console.say("Type yes to accept the licence above and to download: ")
    try:
        answer = input().strip().lower()
    except EOFError:
        answer = ""
    if answer != "yes":
        raise ConfigError("The licence was not accepted, so nothing was downloaded.")


@contextmanager
def bytes_progress(title: str, size: int | None) -> Iterator[Report]:
    """A bar with bytes, rate and ETA on standard error; where that is no terminal, a line every tenth."""
    if console.PROGRESS_LINES in os.environ:
        with console.progress(title) as lines:
            yield _steps(lambda done: lines(done, size or max(done, 1)))
        return
    shown = Console(stderr=True, highlight=False)
    if not shown.is_terminal:
        tenths = -1

        def line(done: int) -> None:
            nonlocal tenths
            tenth = 10 * done // size if size else done // 10**9
            if tenth > tenths:
                tenths = tenth
                of = f" of {_size(size)}" if size else ""
                shown.print(Text(f"{title}: {_size(done)}{of}"), soft_wrap=True)

        line(0)
        yield _steps(line)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=shown, transient=True) as bars:
        task = bars.add_task(title, total=size)
        begun = False

        def add(count: int) -> None:
            nonlocal begun
            if begun:
                bars.update(task, advance=count)
            else:  # What an earlier try has fetched is no achievement of this one's rate.
                bars.reset(task, completed=count)
            begun = True

        yield add


def say_what_it_is(folder: Path) -> None:
    """The format of what was downloaded, and the command that comes next."""
    found = readable(folder)
    if not found:
        console.say(f"{folder} is there, but this version of lightfold cannot read it as a capture.")
        return
    for path, capture in found:
        posed = sum(frame.camera is not None for frame in capture.frames)
        console.say(f"{path}: {capture.format}, {len(capture.frames)} pictures, {posed} of them with poses.")
    console.say(f"Go on with:  lightfold run {found[0][0]}")


def readable(folder: Path) -> list[tuple[Path, Capture]]:
    """The captures in a folder: itself, else those right below it. Plain photos count only where nothing else does."""
    from ..formats import open_capture

    found: list[tuple[Path, Capture]] = []
    below = sorted(path for path in folder.iterdir() if path.is_dir())[:MOST_FOLDERS] if folder.is_dir() else []
    for path in (folder, *below):
        try:
            capture = open_capture(path)
        except LightfoldError:
            continue
        if path == folder and capture.format != "photos":
            return [(path, capture)]
        found.append((path, capture))
    posed = [(path, capture) for path, capture in found if capture.format != "photos"]
    return posed or found[:1]


def _steps(show: Report) -> Report:
    """From steps to sums."""
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        show(done)

    return add


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    return f"{count / 1e9:.2f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB"
