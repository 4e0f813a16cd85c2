"""Several processes for one verb: started on this machine by `--devices N`, or found in torchrun's environment.

The program that was called starts the processes, waits, and computes nothing. The first process has the terminal. The
others are heard only when they end the work. When one dies (no memory left, a device that is gone), all are started
again from the last checkpoint: they cannot go on without its part of their connections. A process that gave up with a
sentence would do so again, so nothing is started then.

Each process reads its standard input and stops, as for Ctrl-C, when that is closed. So they are asked to stop in one
way on every system, and none is left behind when the program that started them is killed.
"""

from __future__ import annotations

import _thread
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil

from .. import machine
from ..errors import ConfigError, LightfoldError
from . import console

if TYPE_CHECKING:
    from ..distributed import World

TORCHRUN = {"RANK", "WORLD_SIZE"}
"""Environment variables that say that this is one of several processes."""
PARENT = "LIGHTFOLD_STARTED"
"""Environment variable of a process that was started here."""
RESTARTS = 3
"""How often a training is started again before it is left to the user."""
GRACE = 15.0
"""Seconds that the others get to notice that one has died, before they are ended."""
MOST = 8
"""Processes that any machine may start; beyond that, one per core."""


def several(devices: int) -> bool:
    """Whether this program is to start processes, which then do the work.

    Raises ConfigError for a number of devices that is none, or that contradicts the environment.
    """
    most = max(MOST, machine.usable_cores())
    if not 1 <= devices <= most:
        raise ConfigError(f"--devices must be from 1 to {most} on this machine, and it is {devices}.")
    return devices > 1 and not TORCHRUN & set(os.environ)


@contextmanager
def joined(devices: int = 1, device: str = "auto") -> Iterator[World | None]:
    """All processes of this work, met; None where this one works alone, which costs nothing.

    device: what each of them computes on, as --device names it; each takes the GPU of its own place on the machine.
    """
    if not TORCHRUN & set(os.environ):
        yield None
        return
    from ..devices import choose
    from ..distributed import World, place

    found = place()
    if found is None:
        yield None
        return
    if devices not in (1, found.local_size):
        raise ConfigError(
            f"--devices says {devices}, but this is one of {found.local_size} processes on its machine that have been "
            "started already; leave --devices out under torchrun."
        )
    if found.rank > 0:
        console.only_complain(f"Process {found.rank} of {found.size}")
    if PARENT in os.environ:
        threading.Thread(target=_stop_with_parent, daemon=True).start()
    world = World.join(found, choose(device, found.local_rank).type)
    try:
        yield world
    finally:
        world.leave()


def only_one(verb: str) -> None:
    """Raises ConfigError when several processes were started for a verb that is for one."""
    if TORCHRUN & set(os.environ):
        from ..distributed import place

        if place() is not None:
            raise ConfigError(f"`lightfold {verb}` is for one process; several can share train, eval and render.")


def start(words: Sequence[str], devices: int, step: Callable[[], int | None] | None = None) -> None:
    """Run `lightfold WORDS` in so many processes, to the end.

    step: the step of the newest checkpoint, for work that can be started again. Raises SystemExit with the code of
    a process that has said what was wrong, KeyboardInterrupt when it was stopped, LightfoldError when it died for good.
    """
    from torch.distributed import TCPStore

    for attempt in range(RESTARTS + 1):
        # The processes meet at this program, whose port nobody can take meanwhile; each time at a new one, as they
        # would find there the addresses of those that have died.
        store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False, use_libuv=sys.platform != "win32")
        ended = _attempt(words, devices, store.port, attempt)
        if ended is None:
            return
        if step is None:
            raise LightfoldError(f"{ended}, so the work was not finished; run the same command again.")
        reached = step()
        since = "the start" if reached is None else f"the checkpoint of step {reached}"
        if attempt < RESTARTS:
            console.remark(f"{ended}; all go on from {since} (restart {attempt + 1} of {RESTARTS}).")
    raise LightfoldError(
        f"{ended}, and {RESTARTS} restarts did not help; the same command goes on from {since}, with fewer --devices "
        "or smaller pictures if memory is short."
    )


def _attempt(words: Sequence[str], devices: int, port: int, attempt: int) -> str | None:
    """One time all processes together. None when they have finished; else which one died, and of what."""
    from . import CRASHED, INTERRUPTED, LOST, WENT_WRONG

    with ExitStack() as stack:
        said = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(1, devices)]
        processes: list[subprocess.Popen[bytes]] = []
        for rank in range(devices):
            processes.append(_process(words, rank, devices, port, attempt, said[rank - 1] if rank else None))
            stack.callback(_end, processes[-1])
        try:
            codes = _wait(processes, {INTERRUPTED})
        except KeyboardInterrupt:
            for process in processes:
                _ask_to_stop(process)
            codes = [process.wait() for process in processes]  # A second Ctrl-C ends this, and with it all of them.
            if codes[0] == INTERRUPTED:
                raise SystemExit(INTERRUPTED) from None  # The first process has said how to go on.
            raise
        if not any(codes):
            return None
        if codes[0] in (WENT_WRONG, INTERRUPTED):
            raise SystemExit(codes[0])
        # Those that were lost are not the cause.
        causes = [rank for rank, code in enumerate(codes) if code not in (0, LOST)]
        if not causes:
            return "The processes lost each other"
        rank = causes[0]
        sentence = _last_line(said[rank - 1]) if rank else ""
        if codes[rank] == WENT_WRONG:
            raise LightfoldError(sentence or f"Process {rank} of {devices} gave up and did not say why.")
        if codes[rank] == CRASHED and sentence:
            return sentence.removesuffix(".")
        return f"Process {rank} of {devices} {_death(codes[rank])}"


def _process(
    words: Sequence[str], rank: int, devices: int, port: int, attempt: int, said: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": devices, "LOCAL_WORLD_SIZE": devices}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RESTART_COUNT": attempt}
    environment = os.environ | {name: str(value) for name, value in {**place, **meeting}.items()}
    # The name is torchrun's: it says that the meeting place is there already.
    environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True", PARENT: "1", "PYTHONSAFEPATH": "1"}
    environment["OMP_NUM_THREADS"] = str(max(1, machine.default_threads() // devices))
    # What PyTorch would print about connections that end is said here in a sentence.
    defaults = {"TORCH_CPP_LOG_LEVEL": "FATAL"} | ({"USE_LIBUV": "0"} if sys.platform == "win32" else {})
    if (loopback := _loopback()) is not None:
        defaults["GLOO_SOCKET_IFNAME"] = loopback
    # A group of its own, so that Ctrl-C reaches the parent only, which then asks all of them.
    group: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "lightfold", *words],
            stdin=subprocess.PIPE,
            stdout=None if said is None else subprocess.DEVNULL,
            stderr=said,
            env=defaults | environment,
            **group,
        )
    except OSError as error:
        raise LightfoldError(f"Process {rank} of {devices} could not be started: {error.strerror or error}.") from error


def _wait(processes: list[subprocess.Popen[bytes]], orderly: set[int]) -> list[int]:
    """The exit codes of all; those that are still at work GRACE seconds after another has died are ended, with code 0.

    orderly: codes after which the others end in order, however long it takes them to save.
    """
    died: float | None = None
    while True:
        codes = [process.poll() for process in processes]
        if all(code is not None for code in codes):
            return [code or 0 for code in codes]
        if died is None and any(code not in (None, 0, *orderly) for code in codes):
            died = time.monotonic()
        if died is not None and time.monotonic() - died > GRACE:
            return [code or 0 for code in codes]
        time.sleep(0.05)


def _ask_to_stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """What is still there, goes."""
    _ask_to_stop(process)
    if process.poll() is None:
        process.kill()
    process.wait()


def _stop_with_parent() -> None:
    """Wait until the parent closes the standard input, or dies; then do as for a signal to end."""
    with suppress(OSError):
        while os.read(0, 1024):
            pass
    _thread.interrupt_main(signal.SIGTERM)


def _loopback() -> str | None:
    """Name of the network interface that leads to this machine itself. Gloo would look for one by the host's name,
    which many machines cannot resolve."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.family == socket.AF_INET and entry.address == "127.0.0.1" for entry in addresses):
            return name
    return None


def _death(code: int) -> str:
    """Words for an exit code, negative for a signal."""
    if code == -getattr(signal, "SIGKILL", 0):
        return "was killed, most likely because memory ran out"
    if code < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"


def _last_line(file: IO[bytes]) -> str:
    """What a process said last."""
    file.seek(0)
    lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:1000] if lines else ""


def checkpoint_of(folder: Path) -> Callable[[], int | None]:
    """Asks for the step of a run's newest checkpoint; None while there is none."""

    def step() -> int | None:
        from ..run import Run, is_run

        steps = Run.open(folder).steps() if is_run(folder) else []
        return steps[-1] if steps else None

    return step
