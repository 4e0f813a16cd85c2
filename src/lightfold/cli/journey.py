"""The whole way as one: its stages, which of them are done, the current one's bar, and how long all of it will take.

`lightfold run` and `lightfold poses` open a `Journey`. Whatever reports progress inside (`console.progress`, the
trainer) reports to it, under a title that one of its stages has. What is shown is one list of the stages, one bar and
one time.

The time is a guess that gets better. A stage at work is measured. What comes after it is predicted from what has been
counted so far (pictures, pairs, minutes of training) and from how fast this machine was at the stages before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from . import console

INTERVAL = 15.0
"""Seconds between two lines about one stage where there is no terminal."""
TRUSTED_SHARE, TRUSTED_SECONDS = 0.04, 2.0
"""How much of a stage must be done, and for how long, before its own speed says more than the prediction."""
USUAL_PAIRS = 17
"""Pairs per picture where neighbours in time are compared."""
ALL_PAIRS, ALL_PAIRS_ORDERED = 150, 80
"""Pictures up to which all are compared with all (`poses.pairs`, which is not imported for a guess)."""


@dataclass
class Counts:
    """What is known of the work so far; None where it is not known yet. training: seconds. frames: of the video."""

    pictures: int | None = None
    pairs: int | None = None
    ordered: bool = False
    training: float | None = None
    frames: int = 0


@dataclass(frozen=True)
class Stage:
    """A part of the way. title: by which it is reported. group: what it is called in the list.

    cost: seconds that it takes on two cores, None when nothing is known. measured: whether how long it takes tells how
    fast the machine is, and the other way round.
    """

    group: str
    title: str
    cost: Callable[[Counts], float | None]
    measured: bool = True


def _each(seconds: float, square: float = 0.0) -> Callable[[Counts], float | None]:
    """A cost per picture, and per picture squared."""
    return lambda c: None if c.pictures is None else seconds * c.pictures + square * c.pictures**2


def _matching(counts: Counts) -> float | None:
    if counts.pairs is not None:
        return 0.01 * counts.pairs
    if counts.pictures is None:
        return None
    few = counts.pictures <= (ALL_PAIRS_ORDERED if counts.ordered else ALL_PAIRS)
    return 0.01 * (counts.pictures**2 / 2 if few else USUAL_PAIRS * counts.pictures)


# Seconds on two cores with the usual options: they need only be right enough for "about".
PHOTOS = (Stage("gathering", "reading headers", _each(0.01)), Stage("gathering", "reading photos", _each(0.06)))
VIDEO = (
    Stage("gathering", "choosing frames", lambda c: None, measured=False),
    Stage("gathering", "writing frames", _each(0.12)),
)
POSES = (
    Stage("features", "features", _each(0.15)),
    Stage("pairs", "pairs", _each(0.005)),
    Stage("matches", "matches", _matching),
    Stage("mapping", "mapping", _each(0.15, 0.0006)),
    Stage("refinement", "refinement", _each(0.06)),
    Stage("writing", "writing", _each(0.03)),
)
FIELD = (
    Stage("pictures", "reading pictures", _each(0.1)),
    Stage("pictures", "finding near planes", lambda c: 1.0),
    Stage("training", "training", lambda c: c.training, measured=False),
    Stage("scoring", "scoring views", _each(0.15)),
)
FILM = (Stage("video", "rendering", lambda c: 0.4 * c.frames),)
PAGE = (Stage("report", "report", lambda c: 2.0),)
COUNTED = ("reading headers", "reading photos", "writing frames", "features", "reading pictures")
"""Titles whose total is the number of pictures."""


class Journey:
    """Stages in their order, and how far they are. `report` is all that anything at work calls."""

    def __init__(
        self, stages: Sequence[Stage], counts: Counts | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stages = list(stages)
        self.counts = counts or Counts()
        self.groups = list(dict.fromkeys(stage.group for stage in self.stages))
        self.at = -1
        """Index of the current stage; -1 before the first, and past the last at the end."""
        self.title, self.text = "", ""
        self.done, self.total = 0.0, 1.0
        self.seconds: dict[str, float] = dict.fromkeys(self.groups, 0.0)
        """Seconds spent in each group."""
        self._clock = clock
        self._begun = self._since = clock()
        self._first: float | None = 0.0
        self._measured = self._predicted = 0.0

    def begin(self, title: str) -> None:
        """A stage begins, unless it has begun. One that no stage is called belongs to the current one."""
        if title == self.title:
            return
        self._leave()
        # The poses may go back a stage or two, to try again.
        self.at = next((i for i, stage in enumerate(self.stages) if stage.title == title), max(self.at, 0))
        self.title, self.text, self._since, self._first = title, "", self._clock(), None
        self.done, self.total = 0.0, 1.0

    def report(self, title: str, done: float, total: float, text: str = "") -> None:
        """So much of a stage is done. text: what else is worth saying."""
        self.begin(title)
        if self._first is None:
            # What an earlier run has done says nothing about speed.
            self._first = done
        self.done, self.total, self.text = done, max(total, 1e-9), text
        if title in COUNTED and total > 1:
            self.counts.pictures = int(total)
        elif title == "matches":
            self.counts.pairs = int(total)

    def end(self) -> None:
        """Nothing more will be reported."""
        self._leave()
        self.at, self.title = len(self.stages), ""

    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._begun

    def group(self) -> str:
        """The current stage as the list calls it; empty before the first and after the last."""
        return self.stages[self.at].group if 0 <= self.at < len(self.stages) else ""

    def rate(self) -> float | None:
        """What is done of the current stage in a second; None when it cannot be told yet."""
        spent, done = self._clock() - self._since, self.done - (self._first or 0.0)
        trusted = spent > TRUSTED_SECONDS and done > TRUSTED_SHARE * self.total
        return done / spent if trusted else None

    def left(self) -> tuple[float, str] | None:
        """Seconds that are left, and up to which group they are counted: "" for all, else the first of which nothing is
        known. None when nothing can be said of the current one."""
        if not 0 <= self.at < len(self.stages):
            return None
        rate, cost = self.rate(), self._cost(self.stages[self.at])
        if rate is not None:
            total = (self.total - self.done) / rate
        elif cost is not None:
            total = cost * max(0.0, 1 - self.done / self.total)
        else:
            return None
        for stage in self.stages[self.at + 1 :]:
            cost = self._cost(stage)
            if cost is None:
                return total, stage.group
            total += cost
        return total, ""

    def _cost(self, stage: Stage) -> float | None:
        cost = stage.cost(self.counts)
        # A second or two of work say little about the machine.
        pace = (self._measured + 2.0) / (self._predicted + 2.0)
        return cost if cost is None or not stage.measured else cost * pace

    def _leave(self) -> None:
        """The current stage has ended: keep what it says about the machine."""
        if not 0 <= self.at < len(self.stages):
            return
        stage, spent = self.stages[self.at], self._clock() - self._since
        self.seconds[stage.group] += spent
        share = (self.done - (self._first or 0.0)) / self.total
        cost = stage.cost(self.counts)
        if stage.title == self.title and stage.measured and cost is not None and share > 0.2:
            self._measured += spent
            self._predicted += cost * share

    def told(self) -> str:
        """How long everything took, and the groups that took longest: "6:02 (training 5:00, mapping 0:21)"."""
        longest = sorted(self.seconds.items(), key=lambda item: -item[1])[:4]
        parts = ", ".join(f"{group} {_clock(spent)}" for group, spent in longest if spent >= 1)
        return f"{_clock(self.elapsed())}{f' ({parts})' if parts else ''}"

    # --- in words ----------------------------------------------------------------------------------------------------

    def place(self) -> str:
        """ "[5/12] mapping"."""
        group = self.group()
        number = self.groups.index(group) + 1 if group else len(self.groups)
        title = self.title if self.title in (group, "") else f"{group}: {self.title}"
        return f"[{number}/{len(self.groups)}] {title}"

    def amount(self) -> str:
        """How much of the stage is done, and how fast: "34/50, 3.2/s"."""
        if self.total <= 1:
            return f"{self.done / self.total:.0%}" if self.done else ""
        rate = self.rate()
        speed = "" if rate is None else f", {rate:.0f}/s" if rate >= 10 else f", {rate:.2g}/s"
        return f"{self.done:.0f}/{self.total:.0f}{speed}"

    def outlook(self) -> str:
        """How long it will take: "about 4 min left"."""
        left = self.left()
        if left is None:
            return ""
        return f"about {roughly(left[0])} {'left' if not left[1] else f'to the {left[1]}'}"


def roughly(seconds: float) -> str:
    """A time as one says it: "20 s", "4 min", "1 h 20 min"."""
    if seconds < 90:
        return f"{max(10, 10 * math.ceil(seconds / 10))} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60 // 10 * 10} min"


def _clock(seconds: float) -> str:
    """A time as clocks show it: "4:05", "1:20:00"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


# --- showing it -----------------------------------------------------------------------------------------------------


@contextmanager
def shown(journey: Journey) -> Iterator[Journey]:
    """Show a journey on standard error while the block runs, and have everything inside report to it."""
    terminal = Console(stderr=True, highlight=False)
    try:
        if console.for_a_program():
            with console.reporting_to(lambda title: _as_lines(journey, title)):
                yield journey
        elif terminal.is_terminal:
            picture = _Picture(journey)
            # What is said meanwhile goes above it, through the same console; what is piped elsewhere is left alone.
            live = Live(picture, console=terminal, transient=True, redirect_stdout=False)
            with live, console.reporting_to(lambda title: _to(journey, title), terminal):
                yield journey
        else:
            with console.reporting_to(_Lines(journey, terminal).begin):
                yield journey
    finally:
        journey.end()


def _to(journey: Journey, title: str) -> console.Report:
    def report(done: float, total: float, text: str = "") -> None:
        journey.report(title, done, total, text)

    journey.begin(title)
    return report


def _as_lines(journey: Journey, title: str) -> console.Report:
    to_program, to_journey = console.lines(title), _to(journey, title)

    def report(done: float, total: float, text: str = "") -> None:
        to_journey(done, total, text)
        to_program(done, total)

    return report


@dataclass
class _Lines:
    """Plain lines, for a file or a pipe: one when a stage begins, and one every INTERVAL while it lasts."""

    journey: Journey
    out: Console
    _said: float = field(default=0.0)

    def begin(self, title: str) -> console.Report:
        begun = title == self.journey.title
        self.journey.begin(title)

        def report(done: float, total: float, text: str = "") -> None:
            nonlocal begun
            self.journey.report(title, done, total, text)
            now = time.monotonic()
            if begun and now - self._said < INTERVAL:
                return
            more = [self.journey.text or self.journey.amount() if begun else "", self.journey.outlook()]
            begun, self._said = True, now
            self.out.print(Text("  ".join([f"{self.journey.place()} ...", *filter(None, more)])), soft_wrap=True)

        return report


class _Picture:
    """The list of stages, and below it the current one."""

    def __init__(self, journey: Journey) -> None:
        self._journey = journey

    def __rich__(self) -> RenderableType:
        journey, current = self._journey, self._journey.group()
        # A line that is printed above without being wrapped must not unwrap this.
        names, style = Text(no_wrap=False, overflow="fold"), "green"
        for group in journey.groups:
            here = group == current
            names.append(group, "bold cyan" if here else style)
            style = "dim" if here or not current else style
            names.append("  ")
        bar = ProgressBar(total=journey.total, completed=journey.done, width=24, pulse=journey.done <= 0)
        line = Table.grid(padding=(0, 2))
        line.add_row(journey.place(), bar, journey.amount(), _clock(journey.elapsed()), Text(journey.outlook(), "cyan"))
        return Group(names, line, Text(journey.text, "dim")) if journey.text else Group(names, line)
