"""Curves and primaries against published values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightfold import colour
from lightfold.colour import Tone


@pytest.mark.parametrize(
    ("light", "code"),
    # ITU-R BT.2408 and BT.2390; the ends of SMPTE ST 2084.
    [(0.0, 0.0), (1.0, 0.1499), (100.0, 0.5081), (203.0, 0.5807), (1000.0, 0.7518), (4000.0, 0.9026), (10_000.0, 1.0)],
)
def test_pq_has_the_published_values(light: float, code: float) -> None:
    assert float(colour.pq_from_light(torch.tensor(light, dtype=torch.float64))) == pytest.approx(code, abs=6e-5)


@given(st.floats(0, 10_000))
def test_pq_comes_back(light: float) -> None:
    code = colour.pq_from_light(torch.tensor(light, dtype=torch.float64))
    assert float(colour.light_from_pq(code)) == pytest.approx(light, rel=1e-9, abs=1e-9)


def test_sixteen_bits_of_pq_keep_light_to_a_thousandth() -> None:
    light = torch.logspace(-2, 4, 10_000, dtype=torch.float64)
    code = (colour.pq_from_light(light).float() * 65535).round() / 65535
    assert float((colour.light_from_pq(code.double()) / light - 1).abs().max()) < 1.5e-3


@pytest.mark.parametrize(("light", "code"), [(0.0, 0.0), (0.0031308, 0.04045), (0.18, 0.46136), (1.0, 1.0)])
def test_srgb_has_the_published_values(light: float, code: float) -> None:
    value = torch.tensor(light, dtype=torch.float64)
    assert float(colour.srgb_from_linear(value)) == pytest.approx(code, abs=1e-5)
    assert float(colour.linear_from_srgb(colour.srgb_from_linear(value))) == pytest.approx(light, abs=1e-7)


def test_matrices_of_primaries_are_the_published_ones() -> None:
    # IEC 61966-2-1, and Display P3 to linear sRGB as CSS Color 4 prints it.
    xyz = torch.tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    assert torch.allclose(colour.xyz_from_rgb("linear-srgb").float(), xyz, atol=1e-4)
    p3 = torch.tensor([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]])
    assert torch.allclose(colour.srgb_from("linear-p3").float(), p3, atol=4e-4)
    assert torch.allclose(colour.srgb_from("linear-p3").sum(1), torch.ones(3).double(), atol=1e-12)
    assert torch.allclose(colour.srgb_from("linear-srgb"), torch.eye(3).double(), atol=1e-12)


@pytest.mark.parametrize(("median", "factor"), [(0.18, 1), (0.05, 1), (0.7, 1), (18.0, 2**-7), (0.001, 128), (0.0, 1)])
def test_exposure_is_left_alone_or_a_power_of_two(median: float, factor: float) -> None:
    assert colour.fitting_exposure(median) == factor


def test_a_code_shows_as_the_srgb_that_it_was_made_from() -> None:
    srgb = torch.linspace(0, 1, 256)
    code = Tone(pq=True, exposure=1.0).encoded(colour.linear_from_srgb(srgb))
    assert torch.allclose(colour.shown_code(code), srgb, atol=1e-4)
    assert torch.allclose(Tone(pq=False, exposure=1.0).encoded(colour.linear_from_srgb(srgb)), srgb, atol=1e-5)
    assert torch.allclose(colour.light_of_code(code, 4.0), colour.linear_from_srgb(srgb) / 4, rtol=1e-3, atol=1e-6)


def test_light_beyond_white_is_white_in_srgb_and_kept_in_pq() -> None:
    light = torch.tensor([0.5, 2.0, 60.0, 1e9])
    assert Tone(False, 1.0).encoded(light)[1:].tolist() == pytest.approx([1.0, 1.0, 1.0])
    back = colour.light_of_code(Tone(True, 1.0).encoded(light), 1.0)
    assert back.tolist() == pytest.approx([0.5, 2.0, 60.0, 100.0], rel=1e-3)
