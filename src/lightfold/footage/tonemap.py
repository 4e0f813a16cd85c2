"""High dynamic range to what everything after it expects: 8-bit sRGB.

Phones record HLG or PQ (ITU-R BT.2100): up to 1000 candela per square metre and the wide colours of BT.2020. Shown as
if they were sRGB, such frames are flat and grey. Here light is computed, its colours are brought to sRGB's, and what is
brighter than a white wall is rolled off as ITU-R BT.2390 (section 5.4.1) does it for a display of less light.

The curve is fixed. One that adapts to each frame would give a surface another colour in every picture of it, and a
radiance field would have to explain that.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

PQ, HLG = 16, 18
"""The two transfer characteristics, by their numbers in ITU-T H.273, which are FFmpeg's."""
PEAK = 1000.0
"""Light of the brightest pixel, cd/m2: the nominal peak of HLG, and what PQ footage seldom exceeds."""
WHITE = 203.0
"""Light of a diffuse white in HDR, cd/m2 (ITU-R BT.2408). It is what sRGB's white stands for."""
BT2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)
SRGB_FROM_BT2020 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)
"""Linear light, ITU-R BT.2087."""
STRIP = 1 << 18
"""Pixels at a time, which bounds memory."""


def srgb_from_hdr(coded: NDArray[np.uint16], transfer: int) -> NDArray[np.uint8]:
    """PQ or HLG signal [H, W, 3], BT.2020 primaries, full range of 16 bits -> sRGB [H, W, 3] of 8 bits."""
    if transfer not in (PQ, HLG):
        raise ValueError(f"transfer: expected {PQ} (PQ) or {HLG} (HLG), got {transfer}")
    pixels = coded.reshape(-1, 3)
    result = np.empty(pixels.shape, dtype=np.uint8)
    light_table, roll_off, srgb_table = _light_of_signal(transfer), _roll_off(), _srgb_of_light()
    for first in range(0, len(pixels), STRIP):
        light = light_table[pixels[first : first + STRIP] >> 4]
        if transfer == HLG:
            # The display's gamma of 1.2 (BT.2100, table 5) acts on the luminance and leaves hues alone.
            light *= np.maximum(light @ BT2020_LUMINANCE, 1e-9)[:, None] ** np.float32(0.2) * np.float32(PEAK / WHITE)
        light = np.maximum(light @ SRGB_FROM_BT2020.T, 0)
        # By the largest channel: none is clipped on its own, so bright colours keep their hue.
        brightest = np.minimum(light.max(axis=1) * np.float32(WHITE / PEAK), 1)
        light *= roll_off[np.rint(np.sqrt(brightest) * (len(roll_off) - 1)).astype(np.int32)][:, None]
        level = np.minimum(light * np.float32(len(srgb_table) - 1) + np.float32(0.5), len(srgb_table) - 1)
        result[first : first + STRIP] = srgb_table[level.astype(np.int32)]
    return result.reshape(coded.shape)


@lru_cache(maxsize=2)
def _light_of_signal(transfer: int) -> NDArray[np.float32]:
    """Light of each of 4096 signal levels: display light in units of WHITE for PQ, the scene's in [0, 1] for HLG."""
    signal = (np.arange(4096) + 0.5) / 4096
    if transfer == PQ:
        return (np.minimum(_light_of_pq(signal), PEAK) / WHITE).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)


@lru_cache(maxsize=1)
def _roll_off() -> NDArray[np.float32]:
    """Factor on light, over the square root of light as a share of PEAK.

    BT.2390: below a knee nothing changes; above it a Hermite spline in PQ's perceptual scale ends at WHITE.
    """
    light = np.maximum(np.linspace(0, 1, 1 << 16) ** 2 * PEAK, 1e-4)
    top = _pq_of_light(np.array(PEAK))
    signal, target = _pq_of_light(light) / top, _pq_of_light(np.array(WHITE)) / top
    knee = 1.5 * target - 0.5
    t = np.clip((signal - knee) / (1 - knee), 0, 1)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * target
    rolled = _light_of_pq(np.where(signal < knee, signal, spline) * top)
    return (rolled / light).astype(np.float32)


@lru_cache(maxsize=1)
def _srgb_of_light() -> NDArray[np.uint8]:
    """Level of each of 32768 steps of linear light, IEC 61966-2-1; fine enough for its steep start."""
    light = np.linspace(0, 1, 32768)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)
    return np.rint(255 * encoded).astype(np.uint8)


_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128


def _light_of_pq(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """cd/m2 of a PQ signal in [0, 1] (SMPTE ST 2084)."""
    power = signal ** (1 / _M2)
    return 10000 * (np.maximum(power - _C1, 0) / (_C2 - _C3 * power)) ** (1 / _M1)


def _pq_of_light(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse."""
    power = (light / 10000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2
