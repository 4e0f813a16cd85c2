"""The command line: finds the verb, runs it, and says in words whatever goes wrong.

This file imports nothing heavy, so `lightfold --help` answers at once; a verb's module is imported
when it is asked for.
A verb is one file with `main(arguments: list[str]) -> None`, and one line in `VERBS`.
"""

from __future__ import annotations

import difflib
import errno
import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..errors import LightfoldError, LostError
from . import console

VERBS = {
    "run": "everything in one command: find poses, train, score on held-out views, write a report and a video",
    "poses": "find the cameras of photos, a video or panoramas, and say how good they are",
    "mask": "make simple masks for photos: a circle, rectangles, a colour, the nadir of panoramas",
    "train": "train a method on a capture, or go on with a run that was interrupted",
    "eval": "score a run on held-out views, with pictures of truth, rendering, error and depth",
    "view": "look at a run, or at a capture's cameras, in a browser: fly, compare, make paths and videos, export",
    "render": "render a video or stills from a run: orbit, spiral, a flight, held-out views, a camera-path file",
    "export": "take a mesh, points, cameras or a volume out of a run",
    "convert": "write a capture in another format, with its pictures, masks and depths",
    "info": "say what a capture, a run or a checkpoint is, and whether it is healthy",
    "download": "get a public data set: resumable, checked, its licence shown first; without a name, list them",
    "bench": "compare methods on captures: each trained for the same time, scored on held-out views, in one table",
    "doctor": "say what is installed, which kernels run here, and what is slow and why",
}

DONE, WENT_WRONG, INTERRUPTED = 0, 2, 130
"""Exit codes. 130 is what shells report for a program stopped by Ctrl-C."""
CRASHED, LOST = 70, 75
"""Exit codes of one of several processes (`workers`): it hit what should not have happened, or another one is gone.
Starting all of them again may help."""

DEBUG = "LIGHTFOLD_DEBUG"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. `arguments` defaults to those of the process."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] == "help":
        words = [*words[1:2], "--help"]
    if not words or words[0] in ("-h", "--help"):
        console.say(overview())
        return DONE
    if words[0] in ("-V", "--version"):
        console.say(f"lightfold {_version()}")
        return DONE
    handler = console.show_warnings()
    try:
        with _heeding_termination():
            return _run(words[0], words[1:])
    finally:
        logging.getLogger("lightfold").removeHandler(handler)
        handler.close()
        console.drop_logs()


@contextmanager
def _heeding_termination() -> Iterator[None]:
    """Being asked to end (SIGTERM, or the terminal closing) is Ctrl-C: what is finished is kept, half files vanish."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # What `nohup` has set to be ignored stays ignored.
    heeded = [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def overview() -> str:
    """The text of `lightfold --help`."""
    lines = [
        "Photos, video or panoramas in; a radiance field you can look at, measure and export out, on the computer you "
        "have.",
        "",
        "usage: lightfold VERB ...",
        "",
        *(f"  {verb:<10}{what}" for verb, what in VERBS.items()),
        "",
        "Start with:         lightfold run FOOTAGE",
        "A verb's options:   lightfold VERB --help",
        f"Python tracebacks:  set {DEBUG}=1",
    ]
    return "\n".join(lines)


def _run(verb: str, arguments: list[str]) -> int:
    """One verb, with every way in which it can end."""
    try:
        if verb not in VERBS:
            near = difflib.get_close_matches(verb, VERBS, n=2) or list(VERBS)
            raise LightfoldError(
                f"There is no verb '{verb}'. Did you mean {' or '.join(near)}? See `lightfold --help`."
            )
        import_module(f".{verb}", __name__).main(arguments)
    except SystemExit as stop:  # The parser has shown help, or what is wrong with the arguments.
        return stop.code if isinstance(stop.code, int) else DONE if stop.code is None else WENT_WRONG
    except KeyboardInterrupt as stop:
        console.complain(str(stop) or "Stopped.")
        return INTERRUPTED
    except BrokenPipeError:  # `lightfold info X | head` has read enough. Nothing more may be written, also not at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        if os.environ.get(DEBUG, "0") not in ("", "0"):
            raise
        return _complain(error)
    else:
        return DONE


def _complain(error: Exception) -> int:
    """Say what went wrong; the exit code."""
    from .workers import PARENT, TORCHRUN

    lost = isinstance(error, LostError)
    if not (lost and PARENT in os.environ):  # Who started the processes knows which one ended, and says that.
        console.complain(in_words(error))
    crashed = bool(TORCHRUN & set(os.environ)) and not isinstance(error, LightfoldError)
    return LOST if lost else CRASHED if crashed else WENT_WRONG


def in_words(error: Exception) -> str:
    """What to tell the user about an exception. One that is no fault of theirs goes to a log file, which is named."""
    if isinstance(error, LightfoldError):
        return str(error)
    # PyTorch reports a failed allocation as a RuntimeError.
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return (
            "There is not enough memory. Close other programs, or use less: smaller pictures (--scene.downscale 2) "
            "or a smaller preset."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        where = f" while {error.filename} was being written" if error.filename else ""
        return f"The disk is full{where}. Free some space and run the same command again; finished work is kept."
    if isinstance(error, PermissionError) and error.filename:
        return f"{error.filename} may not be read or written by this user ({error.strerror})."
    reason = " ".join(str(error).split())[:200]
    return (
        f"Something went wrong that should not have: {type(error).__name__}{': ' + reason if reason else ''}. "
        f"The details are in {_log_crash(error)}; please attach that file to a bug report."
    )


def _log_crash(error: Exception) -> Path:
    """Write the traceback to the run's log where there is a run, else to a file of its own, and return its path."""
    text = "".join(traceback.format_exception(error))
    logger = logging.getLogger("lightfold")
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, "Crash.\n%s", (text,), None))
            return Path(handler.baseFilename)
    try:
        number, name = tempfile.mkstemp(prefix="lightfold-", suffix=".log", text=True)
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(f"lightfold {_version()} {' '.join(sys.argv[1:])}\n{text}")
    except OSError:
        return Path(f"nowhere, because no file could be written; set {DEBUG}=1 to see them")
    return Path(name)


def _version() -> str:
    try:
        return version("lightfold")
    except PackageNotFoundError:
        return "(not installed)"
