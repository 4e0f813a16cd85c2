"""How fast the frames of a long 4K video are chosen and written, and how much memory that takes.

The clip is made here: a few seconds of a wandering view of a random texture with a sensor's noise, H.264 at a phone's
bit rate with a key frame each second, repeated without a seam to the length that is asked for. It is gathered in a
process of its own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from .measure import own_memory, peak_bytes
from .record import child, parser, recorded

WIDTH, HEIGHT, RATE = 3840, 2160, 30
BITS_PER_SECOND = 50_000_000


def main() -> None:
    """Make a clip, choose its frames."""
    made = parser(__doc__)
    made.add_argument("--one", nargs=2, metavar=("VIDEO", "OUT"), help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.one:
        print(json.dumps(gather(Path(options.one[0]), Path(options.one[1]))), flush=True)
        return
    period, repeats = (2, 10) if options.quick else (8, 75)
    with recorded("video", options) as record, tempfile.TemporaryDirectory() as folder:
        record.protocol |= {
            "clip": f"H.264 {WIDTH}x{HEIGHT}, {RATE} frames/s, {BITS_PER_SECOND / 1e6:.0f} Mbit/s, 1 s groups",
            "clip_seconds": period * repeats,
            "choice": "the first pass: all that is needed to say which frames to keep",
            "whole": "choice, and the chosen frames as JPEG files of full size with a picture sheet",
            "own": "anonymous memory, looked at every 20 ms",
        }
        clip = Path(folder) / "clip.mp4"
        write_clip(clip, period, repeats)
        row = child(["benchmarks.video", "--one", str(clip), str(Path(folder) / "out")], timeout=3600)
        row["choice_video_seconds_per_second"] = period * repeats / row["choice_seconds"]
        row["whole_video_seconds_per_second"] = period * repeats / row["whole_seconds"]
        record.results |= row | {"clip_bytes": clip.stat().st_size}
        print(
            f"{period * repeats} s of video: {row['frames']} frames chosen in {row['choice_seconds']:.0f} s, written "
            f"in {row['whole_seconds'] - row['choice_seconds']:.0f} s, {row['peak_bytes'] / 1e6:.0f} MB",
            flush=True,
        )


def gather(video: Path, out: Path) -> dict[str, Any]:
    """Gather, watching the clock and memory."""
    from lightfold.footage.video import gather_video

    start, cpu, stages = time.perf_counter(), time.process_time(), {}

    def progress(stage: str, done: int, total: int) -> None:
        stages.setdefault(stage, (time.perf_counter() - start, time.process_time() - cpu))

    with own_memory() as memory:
        footage = gather_video(video, out, progress=progress)
    return {
        "frames": len(footage.shots),
        # The first frame is reported when it is written, a little after the choice was made.
        "choice_seconds": stages["writing frames"][0],
        "choice_cpu_seconds": stages["writing frames"][1],
        "whole_seconds": time.perf_counter() - start,
        "whole_cpu_seconds": time.process_time() - cpu,
        "peak_own_bytes": memory.peak,
        "peak_bytes": peak_bytes(),
    }


def write_clip(path: Path, period: int, repeats: int) -> None:
    """A view that wanders in a closed curve once in `period` seconds, `repeats` times."""
    import av

    rng = np.random.default_rng(0)
    frames, margin = period * RATE, 200
    surface = texture(rng, WIDTH + 2 * margin, HEIGHT + 2 * margin)
    noise = rng.normal(scale=3, size=(HEIGHT + 64, WIDTH + 64)).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "g": str(RATE), "bf": "0"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", BITS_PER_SECOND
        planes = np.full((HEIGHT * 3 // 2, WIDTH), 128, dtype=np.uint8)
        packets = []
        for i in range(frames):
            angle = 2 * np.pi * i / frames
            x, y = int(margin * (1 + np.sin(angle))), int(margin * (1 + np.sin(2 * angle)))
            grain = noise[(i * 23) % 64 :, (i * 37) % 64 :][:HEIGHT, :WIDTH]
            planes[:HEIGHT] = np.clip(surface[y : y + HEIGHT, x : x + WIDTH] + grain, 0, 255)
            packets += stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p"))
        packets += stream.encode()
        copies = [(bytes(packet), packet.pts, packet.is_keyframe) for packet in packets]
        unit, tick = packets[0].time_base, round(1 / RATE / packets[0].time_base)
        for repeat in range(repeats):
            for content, pts, is_key in copies:
                packet = av.Packet(content)
                packet.stream, packet.time_base, packet.is_keyframe = stream, unit, is_key
                packet.pts = packet.dts = pts + repeat * frames * tick
                container.mux(packet)


def texture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Blurred noise of several sizes, [height, width] int16 in [0, 255]."""
    from PIL import Image

    total = np.zeros((height, width), dtype=np.float32)
    for size in (3, 8, 24, 80):
        coarse = rng.normal(size=(height // size + 2, width // size + 2)).astype(np.float32)
        total += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) * size**0.3
    return np.clip(128 + total / total.std() * 40, 0, 255).astype(np.int16)


if __name__ == "__main__":
    main()
