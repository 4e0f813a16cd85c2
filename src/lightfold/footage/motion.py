"""How far a video's content has moved: view change, in units of the picture's longer side.

Each frame is compared with an anchor, an earlier frame that stays until the content has moved some way from it. So a
hand that trembles adds nothing up, however long it does, and neither does the noise of the sensor. A comparison is
phase correlation (Kuglin and Hines 1975): first of the whole pictures, which survives fast pans, then of small windows,
which sees what a pan does not explain: the parallax of a walk around something, or a walk towards it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

SIDE = 160
"""Longer side in pixels at which frames are compared. Pictures of other sizes of this order do as well."""
WINDOW = 32
"""Side of the windows, in pixels; they overlap by half."""
NEXT_ANCHOR = 0.03
"""View change after which a frame becomes the next anchor."""
TEXTURE = 2.0
"""Least standard deviation, in grey levels, of a window with something to hold on to."""
AGREEMENT = 0.25
"""Least height of a window's correlation peak; 1 is a pure shift, and two unrelated windows reach 0.15."""
WHOLE_AGREEMENT = 0.05
"""The same for the whole pictures, whose unrelated peaks are far lower."""
ENOUGH = 0.25
"""Share of the textured windows that must agree, else nothing is known."""


class ViewChange:
    """Compares the frames of one video, in order.

    sphere: the pictures are equirectangular. Turning such a camera sideways shifts its pictures and changes no view, so
    the shift that is common to all windows does not count.
    """

    def __init__(self, sphere: bool = False) -> None:
        self._sphere = sphere
        self._anchor: NDArray[np.float32] | None = None
        self._farthest = 0.0

    def add(self, grey: NDArray[np.generic]) -> float:
        """View change from the frame before to this one [h, w]; 0 for the first, NaN where it cannot be measured.

        Going back towards the anchor is no change: what lies there has been seen. All frames have one size.
        """
        picture = grey.astype(np.float32)
        if self._anchor is None:
            self._anchor = picture
            return 0.0
        moved = flow(self._anchor, picture)
        if moved is None:
            self._anchor, self._farthest = picture, 0.0
            return math.nan
        turn = np.array([0.0, np.median(moved[:, 1])]) if self._sphere else np.zeros(2)
        distance = float(np.linalg.norm(moved - turn, axis=1).mean())
        change = max(0.0, distance - self._farthest)
        self._farthest = max(self._farthest, distance)
        if np.linalg.norm(moved, axis=1).mean() > NEXT_ANCHOR:
            self._anchor, self._farthest = picture, 0.0
        return change


def flow(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """How far content moves from picture a to b [h, w], as (y, x) [M, 2] in units of the longer side.

    One row for each window whose content was found again; None when too few were. Pans are followed up to about half of
    the picture's size, and what is added to them up to a tenth of it.
    """
    if a.ndim != 2 or a.shape != b.shape or min(a.shape) < WINDOW:
        raise ValueError(f"a, b: expected one shape of at least {WINDOW} x {WINDOW}, got {a.shape} and {b.shape}")
    side = max(a.shape)
    whole, agreement = _shifts(a[None], b[None])
    pan = np.rint(whole[0]).astype(np.int64) * (agreement[0] > WHOLE_AGREEMENT)
    a, b = _overlap(a, pan), _overlap(b, -pan)
    if min(a.shape) < WINDOW:
        return None
    windows_a, windows_b = _windows(a), _windows(b)
    textured = np.minimum(windows_a.std(axis=(1, 2)), windows_b.std(axis=(1, 2))) > TEXTURE
    if not textured.any():
        return None
    shift, agreement = _shifts(windows_a[textured], windows_b[textured])
    sure = agreement > AGREEMENT
    if sure.mean() < ENOUGH:
        return None
    return (shift[sure] + pan) / side


def _overlap(picture: NDArray[np.float32], pan: NDArray[np.int64]) -> NDArray[np.float32]:
    """The part of a picture that is still in view after its content has moved by pan (y, x)."""
    (y, x), (height, width) = pan, picture.shape
    return picture[max(0, -y) : height - max(0, y), max(0, -x) : width - max(0, x)]


def _windows(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """All windows [N, WINDOW, WINDOW] on a grid of half a window."""
    views = np.lib.stride_tricks.sliding_window_view(picture, (WINDOW, WINDOW))
    return views[:: WINDOW // 2, :: WINDOW // 2].reshape(-1, WINDOW, WINDOW)


def _shifts(a: NDArray[np.float32], b: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Phase correlation of pairs [N, h, w]: how far content moves from a to b, (y, x) [N, 2], and the peaks' heights.

    Fractions of a pixel are the maximum of a parabola through the peak and its neighbours.
    """
    count, height, width = a.shape
    taper = np.hanning(height)[:, None] * np.hanning(width)
    spectra = [np.fft.rfft2((p - p.mean(axis=(1, 2), keepdims=True)) * taper) for p in (a, b)]
    cross = spectra[1] * spectra[0].conj()
    surface = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-9), s=(height, width))
    peak = surface.reshape(count, -1).max(axis=1)
    place = np.stack(np.unravel_index(surface.reshape(count, -1).argmax(axis=1), (height, width)), axis=1)
    shift = np.empty((count, 2))
    for axis, size in enumerate((height, width)):
        step = np.eye(2, dtype=np.int64)[axis]
        low, high = (_at(surface, place + d) for d in (-step, step))
        curvature = low - 2 * peak + high
        part = np.divide(0.5 * (low - high), curvature, out=np.zeros(count), where=curvature < 0)
        shift[:, axis] = (place[:, axis] + size // 2) % size - size // 2 + np.clip(part, -0.5, 0.5)
    return shift, peak


def _at(surface: NDArray[np.float64], place: NDArray[np.int64]) -> NDArray[np.float64]:
    """Values [N] of periodic surfaces [N, h, w], each at its own place (y, x)."""
    y, x = (place % surface.shape[1:]).T
    return surface[np.arange(len(surface)), y, x]
