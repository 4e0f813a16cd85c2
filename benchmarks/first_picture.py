"""Seconds from the start of `lightfold run CAPTURE` to a picture of the scene on disk, as a user waits for it.

Measured from outside: a process is started as a shell would start it, and preview.jpg is waited for. "First time" means
that the photographs must be decoded; "again" that the cache has them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .record import find_capture, parser, recorded

LONGEST = 180.0
CAPTURES = {"fox": ["--scene.downscale", "4", "--scene.split", "every:8"], "sample": []}


def main() -> None:
    """Both captures, first time and again; the best of a few."""
    options = parser(__doc__).parse_args()
    repeats = 1 if options.quick else 3
    with recorded("first_picture", options) as record:
        record.protocol |= {"repeats": repeats, "shown": "best", "clock": "wall, whole process, from its start"}
        for name, words in CAPTURES.items():
            capture = find_capture(options, name)
            if capture is None:
                print(f"{name} is skipped: the capture is not there.")
                continue
            first, again = [], []
            for _ in range(repeats):
                with tempfile.TemporaryDirectory() as folder:
                    for times in (first, again):
                        times.append(seconds_to_picture(capture, words, Path(folder), len(times) + len(again)))
            record.results[name] = {
                "options": " ".join(words),
                "first_time_seconds": min(first),
                "again_seconds": min(again),
                "all": {"first_time": first, "again": again},
            }
            print(f"{name}: {min(first):.1f} s the first time, {min(again):.1f} s again", flush=True)


def seconds_to_picture(capture: Path, words: list[str], folder: Path, number: int) -> float:
    """Start a run in a process, wait for preview.jpg, stop the process."""
    out = folder / f"run{number}-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "lightfold", "run", str(capture), "--out", str(out), "--minutes", "10", *words]
    environment = os.environ | {"LIGHTFOLD_CACHE": str(folder / "cache")}
    start = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            while not (out / "preview.jpg").exists():
                if process.poll() is not None:
                    raise SystemExit(f"lightfold run ended early:\n{(folder / 'log.txt').read_text()}")
                if time.perf_counter() - start > LONGEST:
                    raise SystemExit(f"no picture after {LONGEST:.0f} s")
                time.sleep(0.01)
            return time.perf_counter() - start
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that this one started, first politely."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
