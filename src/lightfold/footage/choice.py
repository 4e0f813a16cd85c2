"""Which frames of a video to keep: evenly spaced in what they see, each the sharpest of its surroundings.

Even spacing in time is wrong twice. Where the camera rests, it gives the same picture many times over; where it turns
fast, neighbours share too little to be matched. So frames are spaced by view change: the distance that the picture's
content moves, added up along the video, in units of the picture's longer side. Blurred frames are left out first. The
rest of the way is cut into slots of equal view change, and every slot gives its best frame.

Nothing here knows about files: curves in, indices out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW = 1.0
"""Seconds to either side in which a frame's sharpness is compared: within that time content hardly changes, but the
blur of a shaken camera comes and goes."""
BLURRED = 0.8
"""Frames below this share of the sharpness around them are blurred."""
LASTING_BLUR = 0.5
"""Where blur lasts longer than WINDOW, frames are compared with this share of what is usual in the whole video."""
LEAST_CHANGE = 0.01
"""Frames closer than this in view change show the same: they add work to a reconstruction, and no baseline."""
USUAL_CHANGE = 0.06
"""Spacing that the default number of frames aims at."""
LARGEST_CHANGE = 0.2
"""Spacing up to which the default number of frames grows: neighbours still share four fifths of what they see."""
FEW, MANY, MOST = 100, 150, 400
"""Default numbers of frames: at least, usually at most, and at most where LARGEST_CHANGE asks for more."""
REACH = 0.35
"""How far from its slot's middle a frame may be taken, in slots, as long as there is one."""
EVENNESS = 0.5
"""How much sharpness, as a share, a frame must gain to be taken one slot away from the middle (the loss is squared)."""
CLOSEST = 0.3
"""Least distance between chosen neighbours, in slots."""


@dataclass(frozen=True, eq=False)
class Choice:
    """Chosen frames, and why the others were not. Arrays have one entry for each of the N frames.

    indices:  [K] the chosen ones, increasing.
    spacing:  view change between the middles of slots.
    blurred:  [N] frames that were left out because they are less sharp than others around them.
    repeated: [N] frames that show the same as a chosen one. Those that are neither were simply not needed.
    """

    indices: NDArray[np.int64]
    spacing: float
    blurred: NDArray[np.bool_]
    repeated: NDArray[np.bool_]


def choose(
    time: NDArray[np.float64], sharpness: NDArray[np.float64], position: NDArray[np.float64], count: int
) -> Choice:
    """Choose up to `count` frames, evenly along `position`, and sharp.

    Args:
        time: [N] seconds, increasing.
        sharpness: [N] larger is sharper, 0 is a picture without any detail. Only ratios matter.
        position: [N] view change since the first frame, not decreasing; see `positions`.
        count: how many are wanted. There are fewer where frames would be closer than LEAST_CHANGE.

    Raises ValueError when the shapes differ or count is not positive.
    """
    if not (time.shape == sharpness.shape == position.shape) or time.ndim != 1:
        raise ValueError(f"expected three curves of one length, got {time.shape}, {sharpness.shape}, {position.shape}")
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    relative = relative_sharpness(time, sharpness)
    blurred = relative < BLURRED
    sharp = np.flatnonzero(~blurred)
    if sharp.size == 0:
        return Choice(sharp, 0.0, blurred, np.zeros(len(time), dtype=bool))
    steps = np.diff(position[sharp])
    spacing = max(LEAST_CHANGE, _spacing(steps, count))
    # No step is longer than a slot now, so none jumps over a slot and leaves it empty.
    along = np.concatenate([[0.0], np.cumsum(np.minimum(steps, spacing) / spacing)])
    if count == 1:
        along[:] = 0.0
    slot = np.floor(along + 0.5)
    offset = np.abs(along - slot)
    score = relative[sharp] - EVENNESS * offset**2
    score[offset > REACH] -= 10.0  # only where the slot has no other
    chosen: list[int] = []
    borders = np.flatnonzero(np.diff(slot)) + 1
    for members in np.split(np.arange(sharp.size), borders):
        apart = members if not chosen else members[along[members] - along[chosen[-1]] >= CLOSEST]
        if apart.size:
            chosen.append(int(apart[np.argmax(score[apart])]))
    indices = sharp[chosen][:count]
    after = np.minimum(np.searchsorted(indices, np.arange(len(time))), len(indices) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.minimum(*(np.abs(position - position[indices[side]]) for side in (before, after)))
    repeated = ~blurred & (nearest < LEAST_CHANGE)
    repeated[indices] = False
    return Choice(indices, spacing, blurred, repeated)


def positions(time: NDArray[np.float64], motion: NDArray[np.float64]) -> NDArray[np.float64]:
    """View change since the first frame [N], from that since the frame before [N]; NaN where it could not be measured.

    Nothing is known of a gap but how fast the view changed on its two sides, so it is given the speed between them.
    """
    steps = np.maximum(np.diff(time), 1e-6)
    change = motion[1:].astype(np.float64)
    known = np.isfinite(change)
    if known.any():
        middle = 0.5 * (time[1:] + time[:-1])
        speed = np.interp(middle, middle[known], change[known] / steps[known])
        change = np.where(known, change, speed * steps)
    else:
        change = LEAST_CHANGE * np.ones_like(change)
    return np.concatenate([np.zeros(min(1, len(time))), np.cumsum(np.maximum(change, 0.0))])


def default_count(change: float) -> int:
    """How many frames to choose from footage whose view changes this much in all, when nobody said."""
    usual = np.clip(change / USUAL_CHANGE, FEW, MANY)
    return round(float(max(usual, min(change / LARGEST_CHANGE, MOST))))


def relative_sharpness(time: NDArray[np.float64], sharpness: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sharpness [N] as a share of what good frames around have: about 1 for good frames, 0 for pictures of nothing."""
    first = np.searchsorted(time, time - WINDOW, side="left")
    last = np.searchsorted(time, time + WINDOW, side="right")
    around = np.array([np.quantile(sharpness[a:b], 0.9) for a, b in zip(first, last, strict=True)])
    shown = sharpness[sharpness > 0]
    usual = float(np.median(shown)) if shown.size else 0.0
    reference = np.maximum(around, LASTING_BLUR * usual)
    return np.divide(sharpness, reference, out=np.zeros_like(reference), where=reference > 0)


def _spacing(steps: NDArray[np.float64], count: int) -> float:
    """The h for which steps, none counted as longer than h, add up to count - 1 slots of length h.

    Longer steps (a cut, a gap of blurred frames) cannot be filled, and must not eat the slots of the rest. The sum of
    min(step, h) - (count - 1) h over h has one zero above 0, and h = 0 is the other: sorted, it is found by walking.
    """
    if count < 2 or steps.size == 0:
        return float(steps.sum())
    ordered = np.sort(steps)
    below = np.concatenate([[0.0], np.cumsum(ordered)])
    # With m steps cut to h, the equation is below[n - m] + m h = (count - 1) h.
    for cut in range(min(count - 1, steps.size + 1)):
        kept = steps.size - cut
        spacing = below[kept] / (count - 1 - cut)
        if kept == 0 or ordered[kept - 1] <= spacing:
            return float(spacing)
    return 0.0
