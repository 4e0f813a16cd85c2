"""Seconds until the command line answers."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from .record import parser, recorded

QUESTIONS = (("--help",), ("train", "--help"), ("doctor",))


def main() -> None:
    """The fastest of several starts, by the wall clock and by processor time of the child."""
    options = parser(__doc__).parse_args()
    repeats = 2 if options.quick else 7
    with recorded("start_up", options) as record:
        record.protocol |= {"repeats": repeats, "shown": "best", "clock": "whole process, Python's own start included"}
        for words in QUESTIONS:
            runs = [seconds_of(words) for _ in range(repeats)]
            wall, cpu = min(runs)
            record.results[" ".join(["lightfold", *words])] = {"wall": wall, "cpu": cpu}
            print(f"lightfold {' '.join(words)}: {wall:.2f} s", flush=True)


def seconds_of(words: tuple[str, ...]) -> tuple[float, float]:
    """Wall and processor seconds of one process."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-m", "lightfold", *words], stdout=subprocess.DEVNULL, check=True, timeout=120)
    wall, after = time.perf_counter() - start, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, used


if __name__ == "__main__":
    main()
