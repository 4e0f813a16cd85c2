"""The engine's process: what it says arrives, and however it ends, the user's program gets a sentence and lives on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightfold.errors import CaptureError
from lightfold.poses import child

PROLOGUE = "import json, os, sys, time\ndef say(**m): print(json.dumps(m), flush=True)\n"


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a program in the engine's place."""

    def install(program: str) -> Path:
        (tmp_path / "stand_in_engine.py").write_text(PROLOGUE + program)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(child, "MODULE", "stand_in_engine")
        return tmp_path / "logs" / "log.txt"

    return install


def test_progress_arrives_in_order_and_the_log_is_kept(engine):
    log = engine(
        "print('not ours')\nprint('a word', file=sys.stderr)\n"
        "say(stage='features', done=1, total=2); say(stage='matches', done=2, total=2); say(finished=True)\n"
    )
    heard = []
    ending = child.run(["x"], log, 60, lambda *words: heard.append(words))
    assert heard == [("features", 1, 2), ("matches", 2, 2)]
    assert ending.finished and not ending.error and not ending.reason
    assert "a word" in log.read_text()


def test_a_sentence_from_the_engine_is_passed_on(engine):
    ending = child.run([], engine("say(error='No two pictures match.'); sys.exit(3)"), 60)
    assert ending.error == "No two pictures match." and not ending.finished and not ending.reason


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_abort_is_named_with_stage_step_and_last_words(engine):
    log = engine(
        "say(stage='mapping', done=0, total=9); say(step='mapping: one')\n"
        "print('F20260101 10:00:00.1 123 map.cc:7] Check failed: n > 0', file=sys.stderr, flush=True); os.abort()"
    )
    ending = child.run([], log, 60)
    assert (ending.stage, ending.step) == ("mapping", "mapping: one")
    assert "Check failed: n > 0" in ending.reason


def test_a_traceback_is_named_by_its_last_line(engine):
    ending = child.run([], engine("raise KeyError('lost')"), 60)
    assert "KeyError: 'lost'" in ending.reason and "Traceback" not in ending.reason


@pytest.mark.parametrize(
    ("code", "log", "words"),
    [
        (-6, "terminate called after throwing an instance of 'std::bad_alloc'", "memory"),
        (1, "SQLite error: database or disk is full", "disk is full"),
        (1, "OSError: [Errno 28] No space left on device", "disk is full"),
        (7, "", "code 7"),
    ],
)
def test_causes_of_death(code, log, words):
    assert words in child.cause_of_death(code, log)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_signals_have_names():
    assert "memory" in child.cause_of_death(-int(signal.SIGKILL), "")
    assert "SIGSEGV" in child.cause_of_death(-int(signal.SIGSEGV), "")


def test_only_this_run_s_part_of_the_log_is_blamed(engine):
    log = engine("sys.exit(7)")
    log.parent.mkdir()
    log.write_text("SQLite error: database or disk is full\n")
    assert "code 7" in child.run([], log, 60).reason


def test_silence_ends_the_engine(engine):
    log = engine("say(stage='matches', done=0, total=1)\ntime.sleep(100)")
    begun = time.monotonic()
    with pytest.raises(CaptureError, match="silent for 2 seconds in the stage 'matches'"):
        child.run([], log, 2)
    assert time.monotonic() - begun < 60


@pytest.mark.skipif(sys.platform == "win32", reason="asks for a process by its number")
def test_an_interrupt_stops_the_engine_and_goes_on(engine, tmp_path):
    log = engine(
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "say(stage='features', done=0, total=1)\ntime.sleep(100)"
    )

    def interrupt(*_words):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        child.run([], log, 60, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_the_engine_ends_when_its_parent_does(tmp_path):
    """The real one: with its input closed it goes, whatever it was about to do."""
    source = Path(child.__file__).resolve().parents[2]
    program = "from lightfold.poses import engine; engine._open_channel(); import time; time.sleep(100)"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, cwd=source)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(90) == 4
