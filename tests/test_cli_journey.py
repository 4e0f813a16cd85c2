"""The whole way as one: stages in order, one time that is left, and one process at a time in a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from lightfold.cli import claim, console, journey
from lightfold.cli.journey import FIELD, FILM, PAGE, PHOTOS, POSES, Counts, Journey, Stage, roughly
from lightfold.errors import RunError
from lightfold.poses import pairs
from lightfold.poses.config import STAGES
from lightfold.viewer.jobs import MARK, PROGRESS_LINES

WHOLE = [*PHOTOS, *POSES, *FIELD, *FILM, *PAGE]


class Clock:
    """A time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def per_picture(seconds: float) -> Stage:
    return Stage(f"g{seconds:g}", f"s{seconds:g}", lambda c: None if c.pictures is None else seconds * c.pictures)


def test_the_list_is_what_the_engine_does_in_its_order() -> None:
    assert tuple(stage.title for stage in POSES) == STAGES
    assert (journey.ALL_PAIRS, journey.ALL_PAIRS_ORDERED) == (pairs.ALL_PAIRS, pairs.ALL_PAIRS_ORDERED)
    assert len(Journey(WHOLE).groups) == 12


def test_nothing_is_foretold_before_anything_is_known(clock: Clock) -> None:
    way = Journey(WHOLE, Counts(training=300), clock)
    assert way.left() is None and way.group() == "" and way.outlook() == ""
    way.begin("reading headers")
    assert way.left() is None and way.place() == "[1/12] gathering: reading headers"
    way.report("reading headers", 1, 50)
    left = way.left()
    assert left is not None and left[0] > 300 and left[1] == ""


def test_a_stage_at_work_is_measured_and_the_rest_follows_from_it(clock: Clock) -> None:
    way = Journey([per_picture(1), per_picture(2), per_picture(4)], Counts(pictures=100), clock)
    way.begin("s1")
    assert way.left() == (700.0, "")
    way.report("s1", 0, 100)
    clock.now += 100
    way.report("s1", 50, 100)
    assert way.rate() == 0.5 and way.left() == (100 + 600, "")
    clock.now += 100
    way.report("s1", 100, 100)
    way.begin("s2")
    left = way.left()
    assert left is not None and left[0] == pytest.approx(1200, rel=0.02), "the machine is half as fast as foretold"
    assert way.seconds["g1"] == 200


def test_what_was_done_before_says_nothing_about_the_machine(clock: Clock) -> None:
    way = Journey([per_picture(1), per_picture(2)], Counts(pictures=100), clock)
    way.report("s1", 100, 100)
    clock.now += 0.1
    way.begin("s2")
    assert way.left() == (200.0, "")


def test_what_cannot_be_known_ends_the_count(clock: Clock) -> None:
    way = Journey([per_picture(1), *FIELD, *PAGE], Counts(pictures=60), clock)
    way.begin("s1")
    left = way.left()
    assert left is not None and left[1] == "training" and way.outlook().endswith("to the training")
    way.begin("training")
    assert way.left() is None
    clock.now += 10
    way.report("training", 0.0, 1.0)
    clock.now += 10
    way.report("training", 0.25, 1.0, "step 10")
    assert way.text == "step 10" and way.amount() == "25%"
    left = way.left()
    assert left is not None and left[0] > 30 and left[1] == ""


def test_a_budget_in_minutes_is_known(clock: Clock) -> None:
    way = Journey([*FIELD], Counts(pictures=10, training=600), clock)
    way.begin("training")
    left = way.left()
    assert left is not None and 600 <= left[0] < 610
    way.report("training", 0.5, 1.0)
    left = way.left()
    assert left is not None and 300 <= left[0] < 310, "half was trained in an earlier sitting"


def test_the_engine_may_go_back_and_say_what_no_stage_is_called(clock: Clock) -> None:
    way = Journey(WHOLE, Counts(), clock)
    for title in ("mapping", "features", "matches", "dreaming"):
        way.report(title, 1, 4)
    assert way.group() == "matches" and way.place() == "[4/12] matches: dreaming"
    assert way.counts.pictures == 4 and way.counts.pairs == 4
    way.end()
    assert way.left() is None and way.place() == "[12/12] "


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "10 s"),
        (11, "20 s"),
        (89, "90 s"),
        (91, "2 min"),
        (600, "10 min"),
        (5400, "1 h 30 min"),
        (7300, "2 h 0 min"),
    ],
)
def test_times_as_one_says_them(seconds: float, words: str) -> None:
    assert roughly(seconds) == words


# --- showing it -----------------------------------------------------------------------------------------------------


def walk() -> None:
    with console.one_after_another() as progress:
        for done in range(51):
            progress("features", done, 50)
        progress("matches", 50, 50)
    with console.progress("scoring views") as report:
        report(1, 4)
    training = console.within("training")
    assert training is not None
    training(0.5, 1.0, "step 7")


def test_without_a_terminal_there_are_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PROGRESS_LINES, raising=False)
    assert console.within("training") is None
    with journey.shown(Journey(WHOLE, Counts(training=60))):
        walk()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ...")[0] for line in lines] == [
        "[2/12] features",
        "[4/12] matches",
        "[10/12] scoring: scoring views",
        "[9/12] training",
    ]
    assert "about" in lines[0] and "left" in lines[0]
    assert console.within("training") is None


def test_lines_speak_again_after_a_while(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journey, "INTERVAL", 0.0)
    with journey.shown(Journey(WHOLE)):
        walk()
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 51 + 3 and "34/50" in shown and "\x1b" not in shown


def test_for_a_program_there_are_marks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROGRESS_LINES, "1")
    with journey.shown(Journey(WHOLE)):
        walk()
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(MARK) for line in lines)
    assert f"{MARK}50\t50\tfeatures" in lines and any(line.endswith("\ttraining") for line in lines)


def test_on_a_terminal_there_is_a_picture(clock: Clock) -> None:
    way = Journey(WHOLE, Counts(training=60), clock)
    way.report("features", 34, 50)
    page = Console(width=100, record=True, file=open(os.devnull, "w", encoding="utf-8"), force_terminal=True)  # noqa: SIM115
    page.print(journey._Picture(way))
    way.report("training", 0.5, 1.0, "step 7  loss 0.1")
    page.print(journey._Picture(way))
    way.end()
    page.print(journey._Picture(way))
    shown = page.export_text()
    assert "gathering  features  pairs" in shown and "[2/12] features" in shown and "34/50" in shown
    assert "about" in shown and "step 7  loss 0.1" in shown and "50%" in shown


def test_an_error_inside_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROGRESS_LINES, raising=False)
    way = Journey(WHOLE)
    with pytest.raises(KeyboardInterrupt), journey.shown(way):
        raise KeyboardInterrupt
    assert way.at == len(WHOLE) and console.within("x") is None


# --- one at a time --------------------------------------------------------------------------------------------------


def test_a_folder_is_for_one_process(tmp_path: Path) -> None:
    folder = tmp_path / "my cäpture"
    with claim.claimed(folder):
        assert claim.owner(folder) is None, "it is our own"
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]
    with claim.claimed(tmp_path / "empty"):
        pass
    assert not (tmp_path / "empty").exists()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        import psutil

        begun = psutil.Process(other.pid).create_time()
        (folder / claim.MARK).write_text(f"{other.pid} {begun}")
        with pytest.raises(RunError, match=f"process {other.pid}, is at work in"), claim.claimed(folder):
            pass
        assert (folder / claim.MARK).is_file()
        (folder / claim.MARK).write_text(f"{other.pid} {begun - 1000}")
        assert claim.owner(folder) is None, "the number was given again"
        other.communicate(b"\n")
    (folder / claim.MARK).write_text(f"{other.pid} {begun}")
    for text in (None, "", "x y", "1", "99999999 1.0"):
        if text is not None:
            (folder / claim.MARK).write_text(text)
        with claim.claimed(folder):
            pass
