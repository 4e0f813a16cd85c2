"""Peak memory of training as the number of photographs grows: it should follow the model, not the capture.

Captures of a formula (see `synthetic`), each opened, decoded into the cache and trained on in a process of its own; the
largest once more with a cache that counts as five times larger than memory, so that a window of its views is trained
on. Two numbers: what the program holds itself, and that plus the pages of the picture cache that the system keeps in
memory while nobody else needs them. And what it takes to decode one photograph of 24 megapixels.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from .measure import own_memory, peak_bytes, status_bytes
from .record import child, parser, recorded

DISTINCT = 100
"""Photographs that are computed; the others are names of these."""
LARGE = (6000, 4000)


def main() -> None:
    """Train on captures of several sizes."""
    made = parser(__doc__)
    made.add_argument("--one", nargs=3, metavar=("CAPTURE", "SECONDS", "GB"), help=argparse.SUPPRESS)
    made.add_argument("--decode", metavar="FOLDER", help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.one:
        capture, seconds, memory_gb = options.one
        print(json.dumps(train_on(Path(capture), float(seconds), float(memory_gb) or None)), flush=True)
        return
    if options.decode:
        print(json.dumps(decode_large(Path(options.decode))), flush=True)
        return
    counts, width, height, seconds = ((10, 60), 320, 240, 3) if options.quick else ((100, 1000, 10_000), 320, 240, 15)
    decoded = width * height * 3
    with recorded("memory", options) as record:
        record.protocol |= {
            "method": "ngp",
            "pictures": f"{width}x{height}",
            "distinct_pictures": DISTINCT,
            "training_seconds": seconds,
            "own": "anonymous memory, looked at every 20 ms from before the capture is opened to the end of training",
            "whole": "own memory and the pages of mapped files, such as the cache of decoded pictures",
            "window": "the largest capture again, drawn from a window of a fifth of its views (scene.memory_gb)",
        }
        rows = []
        for count, share in [*((count, None) for count in counts), (counts[-1], 0.2)]:
            row = measure(count, width, height, seconds, share) | {"decoded_bytes": count * decoded}
            rows.append(row)
            print(
                f"{count} pictures{'' if share is None else ' in a window'}: {row['peak_own_bytes'] / 1e6:.0f} MB own, "
                f"{row['peak_bytes'] / 1e6:.0f} MB, {row['rays_per_second'] / 1e3:.0f} k rays/s",
                flush=True,
            )
        window = rows.pop()
        grown = rows[-1]["peak_own_bytes"] - rows[0]["peak_own_bytes"]
        with tempfile.TemporaryDirectory() as folder:
            large = child(["benchmarks.memory", "--decode", folder], timeout=600)
        record.results |= {
            "captures": rows,
            "window": window,
            "one_large_photograph": large,
            "own_bytes_per_further_picture": grown / (counts[-1] - counts[0]),
            "own_growth_over_decoded_size": grown / (counts[-1] - counts[0]) / decoded,
        }


def measure(count: int, width: int, height: int, seconds: float, share: float | None) -> dict[str, Any]:
    """Write a capture, train on it in another process, forget it."""
    from .synthetic import write_capture

    memory_gb = 0.0 if share is None else share * count * width * height * 3 / 1e9
    with tempfile.TemporaryDirectory() as folder:
        capture = write_capture(Path(folder) / "capture", count, width, height, DISTINCT)
        os.environ["LIGHTFOLD_CACHE"] = str(Path(folder) / "cache")
        words = ["benchmarks.memory", "--one", str(capture), str(seconds), str(memory_gb)]
        return child(words, timeout=3600) | {"pictures": count}


def train_on(capture: Path, seconds: float, memory_gb: float | None) -> dict[str, Any]:
    """Open, prepare and train, watching memory."""
    wall, cpu = time.perf_counter(), time.process_time()
    with own_memory() as memory:
        from lightfold.scene import SceneConfig

        from .quality import Case, train_once

        case = Case("synthetic", "ngp", seconds, SceneConfig(memory_gb=memory_gb))
        run, _, _ = train_once(case, capture, seed=0)
    return {
        "peak_own_bytes": memory.peak if memory.peak is not None else run["peak_bytes_in_training"],
        "peak_bytes": peak_bytes(),
        "peak_own_bytes_in_training": run["peak_own_bytes_in_training"],
        "steps": run["steps"],
        "rays_per_second": run["rays_per_second"],
        "preparation_wall_seconds": time.perf_counter() - wall - run["training_wall_seconds"],
        "preparation_cpu_seconds": time.process_time() - cpu - run["training_cpu_seconds"],
    }


def decode_large(folder: Path) -> dict[str, Any]:
    """Seconds and memory of bringing one JPEG of 24 megapixels to the default training size, as each thread does."""
    import numpy as np
    import torch
    from PIL import Image

    from lightfold.cameras import Camera, Lens
    from lightfold.capture import Frame
    from lightfold.images import Resize, prepare
    from lightfold.scene import SceneConfig

    width, height = LARGE
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(LARGE, Image.Resampling.BICUBIC).save(folder / "large.jpg", quality=92)
    intrinsics = torch.tensor([width, width, width / 2, height / 2], dtype=torch.float64)
    camera = Camera(torch.eye(3, 4).double(), intrinsics, torch.zeros(0), width, height, Lens.PINHOLE)
    frame = Frame(folder / "large.jpg", camera, "large.jpg")
    before, wall, cpu = status_bytes("RssAnon"), time.perf_counter(), time.process_time()
    with own_memory() as memory:
        prepared = prepare(frame, Resize(None, SceneConfig().max_side), None)
    return {
        "megapixels": width * height / 1e6,
        "to": list(prepared.rgb.shape[1::-1]),
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "own_bytes": None if memory.peak is None or before is None else memory.peak - before,
    }


if __name__ == "__main__":
    main()
