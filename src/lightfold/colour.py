"""Linear light and the codes it is stored in: the sRGB curve, PQ, primaries, and which of them a scene trains in.

A radiance field that composites codes learns well where equal steps of the code look equal. For photographs that is
sRGB. For light without an upper end it is PQ (SMPTE ST 2084), which codes 0 to 10,000 cd/m2 in steps just below what
the eye sees; VR-NeRF (Xu et al. 2023) trains in it. Functions take and give tensors of any shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WHITE = 100.0
"""cd/m2 that light of 1.0 stands for, after exposure: what a display of sRGB shows as white. PQ ends at 100 of it."""
D65 = (0.3127, 0.3290)
PRIMARIES = {
    "linear-srgb": ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    "linear-p3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
"""CIE 1931 xy of red, green and blue (ITU-R BT.709, SMPTE RP 431-2), both with the white D65."""
SRGB_LUMINANCE = (0.2126, 0.7152, 0.0722)
MIDDLE_GREY = 0.18
_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128


@dataclass(frozen=True)
class Tone:
    """How light becomes what methods learn. pq: PQ in 16 bits; else sRGB in 8 bits, which ends at white.

    exposure: factor on the light of floating-point pictures before either.
    """

    pq: bool
    exposure: float

    def encoded(self, light: Tensor) -> Tensor:
        """Light that is exposed already -> code in [0, 1]."""
        return pq_from_light(light * WHITE) if self.pq else srgb_from_linear(light.clamp(0, 1))


def srgb_from_linear(light: Tensor) -> Tensor:
    """IEC 61966-2-1: light in [0, 1] -> code in [0, 1]."""
    return torch.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clamp(min=1e-9) ** (1 / 2.4) - 0.055)


def linear_from_srgb(code: Tensor) -> Tensor:
    """The inverse."""
    return torch.where(code <= 0.04045, code / 12.92, ((code.clamp(min=0) + 0.055) / 1.055) ** 2.4)


def pq_from_light(light: Tensor) -> Tensor:
    """SMPTE ST 2084: cd/m2 -> code in [0, 1]. Light is held to 0 to 10,000 cd/m2."""
    power = (light / 10_000).clamp(0, 1) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


def light_from_pq(code: Tensor) -> Tensor:
    """The inverse: code, held to [0, 1] -> cd/m2."""
    power = code.clamp(0, 1) ** (1 / _M2)
    return 10_000 * ((power - _C1).clamp(min=0) / (_C2 - _C3 * power)) ** (1 / _M1)


def xyz_from_rgb(name: str) -> Tensor:
    """[3, 3] float64: linear light in some primaries -> CIE XYZ, where their white has Y = 1 (SMPTE RP 177)."""
    xyz = torch.tensor([[x / y, 1.0, (1 - x - y) / y] for x, y in PRIMARIES[name]], dtype=torch.float64).T
    white = torch.tensor([D65[0] / D65[1], 1.0, (1 - D65[0] - D65[1]) / D65[1]], dtype=torch.float64)
    return xyz * torch.linalg.solve(xyz, white)


def srgb_from(name: str) -> Tensor:
    """[3, 3] float64: linear light in some primaries -> in sRGB's. Colours outside sRGB come out negative."""
    return torch.linalg.solve(xyz_from_rgb("linear-srgb"), xyz_from_rgb(name))


def fitting_exposure(median: float) -> float:
    """The factor on light that shows pictures of this median luminance well.

    1 where the median is within a quarter and four times middle grey, so that light which was exposed with care stays
    as it is; else the power of two that brings it nearest.
    """
    if not 0 < median < float("inf") or MIDDLE_GREY / 4 <= median <= MIDDLE_GREY * 4:
        return 1.0
    return float(2.0 ** torch.tensor(MIDDLE_GREY / median, dtype=torch.float64).log2().round().clamp(-60, 60))


# --- codes of a scene -------------------------------------------------------------------------------------------------


def light_of_code(code: Tensor, exposure: float) -> Tensor:
    """What a scene in PQ renders -> linear light in the units of its pictures, sRGB primaries."""
    return light_from_pq(code) / (WHITE * exposure)


def shown_code(code: Tensor) -> Tensor:
    """What a scene in PQ renders -> sRGB in [0, 1] for eyes: everything brighter than white is white."""
    return srgb_from_linear((light_from_pq(code) / WHITE).clamp(0, 1))
