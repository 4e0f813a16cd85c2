"""Timing. Machines are shared, so the best of several repeats stands for the code, and both clocks are reported."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lightfold.machine import peak_memory_bytes

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Timing:
    """Seconds of the fastest repeat: on the wall, and of processor time of all threads; and of the median repeat.

    Processor time near threads * wall means that nothing else ran; well below it, that others were in the way.
    """

    wall: float
    cpu: float
    median: float
    repeats: int


def best(
    function: Callable[[], object],
    *,
    repeats: int = 5,
    seconds: float = 0.5,
    before: Callable[[], object] | None = None,
) -> Timing:
    """The fastest run of `function`, of at least `repeats` and at least so many that `seconds` pass; one more warms up.

    `before` prepares each run and is not timed. Where the machine is so busy that the repeats take twenty times
    `seconds`, and more than a second, there are fewer of them.
    """
    runs: list[tuple[float, float]] = []
    prepare = before or (lambda: None)
    prepare()
    function()
    spent, patience = 0.0, max(20 * seconds, 1.0)
    while not runs or spent < seconds or (len(runs) < repeats and spent < patience):
        prepare()
        runs.append(once(function))
        spent += runs[-1][0]
    wall, cpu = min(runs)
    return Timing(wall, cpu, statistics.median(wall for wall, _ in runs), len(runs))


def once(function: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def status_bytes(*names: str) -> int | None:
    """Sum of some sizes in /proc/self/status; None where there is no such file or name."""
    try:
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
        return sum(int(lines[name].split()[0]) * 1024 for name in names)
    except (OSError, KeyError):
        return None


def peak_bytes() -> int | None:
    """The most memory that this process has held, pages of mapped files included.

    Linux's VmHWM is this process's own; the ru_maxrss of a child may be what its parent held when it was started.
    """
    return status_bytes("VmHWM") or peak_memory_bytes()


class OwnMemory:
    """The most anonymous memory held while inside, looked at every few milliseconds: what the program asked for itself.

    Pages of mapped files, such as the cache of decoded pictures, are left out: the system takes them back when it
    needs to. `peak` is None where the system does not tell the two apart.
    """

    peak: int | None = None


@contextmanager
def own_memory(every: float = 0.02) -> Iterator[OwnMemory]:
    """`with own_memory() as memory:` ... memory.peak"""
    memory, done = OwnMemory(), threading.Event()

    def watch() -> None:
        while True:
            held = status_bytes("RssAnon")
            if held is not None:
                memory.peak = max(memory.peak or 0, held)
            if done.wait(every):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield memory
    finally:
        done.set()
        watcher.join()
