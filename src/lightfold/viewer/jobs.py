"""Work that the page starts: a verb of the command line, in a process of its own.

A video or a mesh takes minutes and gigabytes. In another process it can be stopped at any moment, cannot take the page
or a training with it when memory runs out, and is exactly what `lightfold render` and `lightfold export` do: the page
can do nothing that the command line cannot. The process reports its progress in lines (see `cli.console`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROGRESS_LINES = "LIGHTFOLD_PROGRESS_LINES"
"""Environment variable that makes the command line write progress as lines for a program to read."""
MARK = "@progress\t"


@dataclass
class Job:
    """A verb at work. `words` are those after `lightfold`; `files` is where its results will be."""

    words: Sequence[str]
    files: Callable[[], list[Path]]
    stage: str = "starting"
    done: float = 0.0
    """Share of the stage that is done, in [0, 1]."""
    failure: str | None = None
    """A sentence, when it went wrong."""
    finished: bool = False
    stopped: bool = False
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def run(self, changed: Callable[[], None]) -> None:
        """Start, follow until the end, and call `changed` at every news. Blocks; never raises."""
        last = ""
        try:
            with self._lock:
                if self.stopped:
                    return
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "lightfold", *self.words],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    encoding="utf-8",
                    errors="replace",
                    # Without the last, -m would look for modules in the current folder first, whoever filled it.
                    env=os.environ | {PROGRESS_LINES: "1", "PYTHONIOENCODING": "utf-8", "PYTHONSAFEPATH": "1"},
                )
            assert self._process.stderr is not None
            for line in self._process.stderr:
                if line.startswith(MARK):
                    self._note(line[len(MARK) :].rstrip("\n"))
                    changed()
                elif line.strip():
                    last = line.strip()
            if self._process.wait() and not self.stopped:
                self.failure = last or "It ended without saying why."
        except OSError as error:
            self.failure = f"It could not be started: {error.strerror or error}."
        finally:
            self.finished = True
            changed()

    def stop(self) -> None:
        """End it; what it has not finished leaves no file."""
        with self._lock:
            self.stopped = True
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()

    def _note(self, line: str) -> None:
        done, _, rest = line.partition("\t")
        total, _, stage = rest.partition("\t")
        try:
            self.stage, self.done = stage, min(float(done) / max(float(total), 1.0), 1.0)
        except ValueError:
            self.stage = stage
