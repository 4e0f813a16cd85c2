"""A picture of what was chosen from a video: the frames with their times, and the curves that decided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..files import whole_file

PAPER, INK, FAINT = (250, 250, 248), (34, 34, 34), (190, 190, 186)
SHARP, CHANGE, CHOSEN, BLURRED = (32, 96, 176), (206, 120, 24), (20, 20, 20), (214, 64, 64)
GAP, MARGIN, LABEL = 4, 24, 18
SHEET_WIDTH = 1920
CURVE_HEIGHT = 150


@dataclass(frozen=True, eq=False)
class Curves:
    """What was measured in one video; arrays [N] over the frames that were looked at.

    time: seconds. sharpness: as a share of that around. position: view change since the start. blurred: frames that
    were left out for it. chosen: [K] indices.
    """

    name: str
    time: NDArray[np.float64]
    sharpness: NDArray[np.float64]
    position: NDArray[np.float64]
    blurred: NDArray[np.bool_]
    chosen: NDArray[np.int64]


def save_sheet(path: Path, frames: Sequence[tuple[Image.Image, float]], videos: Sequence[Curves]) -> None:
    """Write a JPEG of small frames, each with its time in seconds, in rows; below them the curves of each video."""
    cell = max(72, min(240, round(math.sqrt(SHEET_WIDTH * 1100 / max(1, len(frames))))))
    largest = (max(f.width for f, _ in frames), max(f.height for f, _ in frames))
    room = SHEET_WIDTH - 2 * MARGIN + GAP
    columns = max(1, round(room / (cell * largest[0] / max(largest) + GAP)))
    width = min(largest[0], room // columns - GAP)
    height = max(1, round(width * largest[1] / largest[0]))
    rows = -(-len(frames) // columns)
    top = MARGIN + rows * (height + LABEL + GAP) + MARGIN
    canvas = Image.new("RGB", (SHEET_WIDTH, top + len(videos) * (CURVE_HEIGHT + 2 * MARGIN + LABEL)), PAPER)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(12)
    for i, (frame, time) in enumerate(frames):
        x = MARGIN + (i % columns) * (width + GAP)
        y = MARGIN + (i // columns) * (height + LABEL + GAP)
        small = frame.copy()
        small.thumbnail((width, height), Image.Resampling.BOX)
        canvas.paste(small, (x, y))
        draw.text((x, y + height + 2), _seconds(time), fill=INK, font=font)
    for curves in videos:
        _draw_curves(draw, curves, top, font)
        top += CURVE_HEIGHT + 2 * MARGIN + LABEL
    with whole_file(path) as partial:
        canvas.save(partial, format="JPEG", quality=90, subsampling=0)


def _draw_curves(
    draw: ImageDraw.ImageDraw, curves: Curves, top: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> None:
    left, right, bottom = MARGIN, SHEET_WIDTH - MARGIN, top + LABEL + CURVE_HEIGHT
    label = f"{curves.name}: {len(curves.chosen)} frames chosen"
    x = left
    for text, colour in (
        (label, INK),
        ("sharpness against the frames around", SHARP),
        ("blurred", BLURRED),
        (f"view change so far, {curves.position[-1]:.2f} picture sides in all", CHANGE),
        ("chosen", CHOSEN),
    ):
        draw.text((x, top), text, fill=colour, font=font)
        x += round(draw.textlength(text, font=font)) + MARGIN
    top += LABEL
    start, end = float(curves.time[0]), float(curves.time[-1])
    across = left + (curves.time - start) / max(end - start, 1e-9) * (right - left)
    draw.line([(left, bottom), (right, bottom)], fill=FAINT)
    step = _round_step((end - start) / 12)
    for k in range(math.ceil(start / step), math.floor(end / step) + 1):
        x = round(left + (k * step - start) / max(end - start, 1e-9) * (right - left))
        draw.line([(x, bottom), (x, bottom + 4)], fill=INK)
        draw.text((x + 3, bottom + 4), _seconds(k * step), fill=INK, font=font)
    sharp = bottom - np.clip(curves.sharpness / 1.2, 0, 1) * (bottom - top)
    for i in curves.chosen:
        draw.line([(across[i], bottom), (across[i], sharp[i])], fill=FAINT)
    _draw_line(draw, across, sharp, SHARP)
    _draw_line(draw, across, bottom - curves.position / max(curves.position[-1], 1e-9) * (bottom - top), CHANGE, 2)
    for i in np.flatnonzero(curves.blurred):
        draw.point([(across[i] + d, sharp[i]) for d in (-1, 0, 1)], fill=BLURRED)
    for i in curves.chosen:
        draw.ellipse([(across[i] - 2, sharp[i] - 2), (across[i] + 2, sharp[i] + 2)], fill=CHOSEN)


def _draw_line(
    draw: ImageDraw.ImageDraw,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    colour: tuple[int, int, int],
    width: int = 1,
) -> None:
    draw.line([(float(a), float(b)) for a, b in zip(x, y, strict=True)], fill=colour, width=width)


def _seconds(time: float) -> str:
    """12.3 s, or 4:05 from a minute on."""
    return f"{time:.1f} s" if time < 60 else f"{int(time // 60)}:{time % 60:04.1f}"


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten, not smaller than `least` and at least a tenth."""
    for power in range(-1, 6):
        for digit in (1, 2, 5):
            if digit * 10.0**power >= least:
                return digit * 10.0**power
    return 1e6
