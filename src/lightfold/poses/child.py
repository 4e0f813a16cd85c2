"""The process in which COLMAP runs: started, listened to, stopped, and its death put into words.

COLMAP ends the process it runs in when its input displeases it (a failed check calls abort), can hang on a damaged
picture, and cannot be interrupted within a long step. None of this may happen to the user's program, so it happens to a
child, which prints one JSON object per line on its standard output:

    {"stage": "matches", "done": 12, "total": 40}     progress
    {"step": "mapping: incremental"}                  what is about to be tried, so that its death can be named
    {"error": "sentence"}                             it cannot go on, and why
    {"finished": true}

The child ends by itself when its standard input is closed, which is what happens when its parent dies.
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import CaptureError

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, in all)."""
MODULE = "lightfold.poses.engine"


@dataclass(frozen=True)
class Ending:
    """How a child ended.

    finished: it did everything.
    error:    the sentence it gave up with; "" when it finished or died.
    stage, step: what it was doing last.
    reason:   why it died, in words that can follow "because"; "" when it did not die.
    """

    finished: bool
    error: str
    stage: str
    step: str
    reason: str


def run(arguments: Sequence[str], log: Path, silence: float, progress: Progress | None = None) -> Ending:
    """Run the engine with these arguments until it ends.

    Its standard error is appended to `log`, and growth of that file counts as a sign of life. Raises CaptureError when
    nothing is heard for `silence` seconds or the process cannot be started. KeyboardInterrupt, or any exception of
    `progress`, stops the child and goes on to the caller.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # A group of its own, so that Ctrl-C reaches the parent only, which then stops the child in its own way.
    group: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    with log.open("ab") as output:
        start = output.tell()
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", MODULE, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                # -m looks for modules in the current folder first, which must not be one that a stranger filled.
                cwd=Path(__file__).resolve().parents[2],
                **group,
            )
        except OSError as error:
            raise CaptureError(f"The pose engine could not be started: {error.strerror or error}.") from error
        try:
            last = _listen(process, log, silence, progress)
        finally:
            stop(process)
    code = process.returncode
    finished, given_up = bool(last.get("finished")), str(last.get("error", ""))
    died = not finished and not given_up
    return Ending(
        finished=finished,
        error=given_up,
        stage=str(last.get("stage", "start")),
        step=str(last.get("step", "")),
        reason=cause_of_death(code, tail(log, start)) if died else "",
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a child that may still run: politely, and after five seconds not. Its pipes are closed."""
    assert process.stdin is not None and process.stdout is not None
    with suppress(OSError):
        process.stdin.close()
    try:
        process.wait(0.5)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    # Not before the child has ended: closing waits for whoever reads.
    process.stdout.close()


def cause_of_death(code: int, text: str) -> str:
    """Words for an exit code (negative for a signal, as subprocess gives it) and the end of the log."""
    lowered = text.lower()
    if "no space left" in lowered or "disk is full" in lowered or "disk full" in lowered:
        return "the disk is full; free some space and run the same command again, finished work is kept"
    if "bad_alloc" in lowered or "out of memory" in lowered or "memoryerror" in lowered or -code == _signal("SIGKILL"):
        return "memory ran out, most likely; close other programs, or use less: --max-side 800 --max-features 2048"
    fatal = [line.strip() for line in text.splitlines() if line.startswith("F") and "]" in line]
    if fatal:
        return f"COLMAP gave up ({fatal[-1].partition('] ')[2][:200]})"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "Traceback (most recent call last)" in text:
        # A process that is ended on its way out adds the stack of its own libraries.
        named = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception)\b", line)]
        return f"of an error ({[*lines, *named][-1][:200]})"
    if code < 0:
        with suppress(ValueError):
            return f"it was ended by {signal.Signals(-code).name}"
    return f"it ended with code {code}"


def tail(log: Path, start: int = 0, length: int = 20000) -> str:
    """The end of a log, from byte `start` on."""
    with suppress(OSError), log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - length))
        return file.read().decode("utf-8", "replace")
    return ""


def _listen(process: subprocess.Popen[bytes], log: Path, silence: float, progress: Progress | None) -> dict[str, Any]:
    """All that the child said, later words over earlier ones."""
    assert process.stdout is not None
    lines: queue.Queue[bytes | None] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    said: dict[str, Any] = {}
    heard, size = time.monotonic(), -1
    while True:
        try:
            line = lines.get(timeout=0.5)
        except queue.Empty:
            grown = log.stat().st_size if log.exists() else 0
            if grown != size:
                heard, size = time.monotonic(), grown
            if time.monotonic() - heard > silence:
                raise CaptureError(
                    f"The pose engine was silent for {silence:.0f} seconds in the stage '{said.get('stage', 'start')}' "
                    f"and was stopped. Run the same command again to go on there, with a larger --silence if this "
                    f"machine is slow; the log is {log}."
                ) from None
            continue
        if line is None:
            return said
        heard = time.monotonic()
        try:
            message = json.loads(line)
        except ValueError:
            continue  # COLMAP has printed something of its own.
        if not isinstance(message, dict):
            continue
        said.update(message)
        if progress is not None and "done" in message:
            progress(str(message["stage"]), int(message["done"]), int(message["total"]))


def _read(pipe: IO[bytes], lines: queue.Queue[bytes | None]) -> None:
    # The pipe is closed under this thread when the child is stopped.
    with suppress(OSError, ValueError):
        for line in pipe:
            lines.put(line)
    lines.put(None)


def _signal(name: str) -> int | None:
    number = getattr(signal, name, None)
    return None if number is None else int(number)
