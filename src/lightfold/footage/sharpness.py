"""How sharp a picture is, as one number that does not depend on its brightness or contrast.

A sharp picture loses much of its gradients when it is blurred, a blurred one has little left to lose. The share that is
lost is the measure (Crete, Dolmiere, Ladret, Nicolas: "The blur effect", 2007). The plain variance of the Laplacian,
which is more common, mostly says how much texture and light there is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LONG_SIDE = 1024
"""Pictures are measured at this size, so that the pixels of a camera with many of them do not count as blur."""
WINDOW = 9
"""Length in pixels of the box that blurs."""


def reduced_grey(picture: Image.Image) -> NDArray[np.uint8]:
    """A picture of 8-bit channels as grey levels [h, w], area-averaged so that its longer side is at most LONG_SIDE."""
    factor = min(1.0, LONG_SIDE / max(picture.size))
    size = tuple(max(1, round(side * factor)) for side in picture.size)
    grey = picture.convert("L")
    return np.asarray(grey.resize((size[0], size[1]), Image.Resampling.BOX))


def sharpness(grey: NDArray[np.generic]) -> float:
    """Sharpness of grey levels [h, w] of any type and range: 0 for none, towards 1 for noise.

    A motion blurs along its own direction only, so the worse of the two axes counts. Pictures that are to be compared
    should have about the same size; `reduced_grey` brings them there. Raises ValueError for another shape.
    """
    if grey.ndim != 2:
        raise ValueError(f"grey: expected shape [h, w], got {list(grey.shape)}")
    levels = grey.astype(np.float32)
    return min(_lost_share(levels), _lost_share(levels.T))


def _lost_share(levels: NDArray[np.float32]) -> float:
    """The share of the gradients along the first axis that a box blur along it takes away; 0 where there are none."""
    if levels.shape[0] <= WINDOW:
        return 0.0
    # The blurred picture itself is not needed: neighbouring boxes differ by the two pixels at their ends.
    after = np.abs(levels[WINDOW:] - levels[:-WINDOW]) / WINDOW
    half = WINDOW // 2
    before = np.abs(np.diff(levels[half : half + len(after) + 1], axis=0))
    present = float(before.sum())
    return float(np.maximum(before - after, 0).sum()) / present if present > 0 else 0.0
