"""Peak memory of training as the number of photographs grows: it should follow the model, not the capture.

Captures of a formula (see `synthetic`), each trained on in a process of its own. Two numbers: what the program holds
itself, and that plus the pages of the picture cache that the system keeps in memory while nobody else needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from .measure import own_memory, peak_bytes
from .record import child, parser, recorded


def main() -> None:
    """Train on captures of several sizes."""
    made = parser(__doc__)
    made.add_argument("--one", nargs=2, metavar=("CAPTURE", "SECONDS"), help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.one:
        print(json.dumps(train_on(Path(options.one[0]), float(options.one[1]))), flush=True)
        return
    counts, width, height, seconds = ((10, 60), 480, 360, 3) if options.quick else ((50, 200, 800), 640, 480, 10)
    decoded = width * height * 3
    with recorded("memory", options) as record:
        record.protocol |= {
            "method": "ngp",
            "pictures": f"{width}x{height}",
            "training_seconds": seconds,
            "own": "anonymous memory, looked at every 20 ms from before the capture is opened to the end of training",
            "whole": "own memory and the pages of mapped files, such as the cache of decoded pictures",
        }
        rows = []
        for count in counts:
            row = measure(count, width, height, seconds) | {"decoded_bytes": count * decoded}
            rows.append(row)
            print(
                f"{count} pictures: {row['peak_own_bytes'] / 1e6:.0f} MB own, {row['peak_bytes'] / 1e6:.0f} MB",
                flush=True,
            )
        grown = rows[-1]["peak_own_bytes"] - rows[0]["peak_own_bytes"]
        record.results |= {
            "captures": rows,
            "own_bytes_per_further_picture": grown / (counts[-1] - counts[0]),
            "own_growth_over_decoded_size": grown / (counts[-1] - counts[0]) / decoded,
        }


def measure(count: int, width: int, height: int, seconds: float) -> dict[str, Any]:
    """Write a capture, train on it in another process, forget it."""
    from .synthetic import write_capture

    with tempfile.TemporaryDirectory() as folder:
        capture = write_capture(Path(folder) / "capture", count, width, height)
        os.environ["LIGHTFOLD_CACHE"] = str(Path(folder) / "cache")
        return child(["benchmarks.memory", "--one", str(capture), str(seconds)], timeout=1800) | {"pictures": count}


def train_on(capture: Path, seconds: float) -> dict[str, Any]:
    """Open, prepare and train, watching memory."""
    with own_memory() as memory:
        from .quality import Case, train_once

        run, _, _ = train_once(Case("synthetic", "ngp", seconds), capture, seed=0)
    return {
        "peak_own_bytes": memory.peak if memory.peak is not None else run["peak_bytes_in_training"],
        "peak_bytes": peak_bytes(),
        "peak_own_bytes_in_training": run["peak_own_bytes_in_training"],
    }


if __name__ == "__main__":
    main()
