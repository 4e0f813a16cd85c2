"""ops/spherical_harmonics.py: an orthonormal basis on the sphere, in tiny-cuda-nn's order and signs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kernel_checks import DTYPES, SIZES, assert_twins
from torch import Tensor

from lightfold import ops
from lightfold.ops import spherical_harmonics

BANDS = [slice(0, 1), slice(1, 4), slice(4, 9), slice(9, 16)]


def directions(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    v = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (v / v.norm(dim=1, keepdim=True)).to(dtype)


def test_orthonormal() -> None:
    """Gauss-Legendre in z and equal steps in azimuth integrate polynomials of this degree exactly."""
    z, weight = np.polynomial.legendre.leggauss(8)
    angle = 2 * math.pi * np.arange(16) / 16
    ring = np.sqrt(1 - z**2)[:, None]
    shape = (8, 16)
    xyz = np.stack([ring * np.cos(angle), ring * np.sin(angle), np.broadcast_to(z[:, None], shape)], axis=-1)
    values = spherical_harmonics(torch.from_numpy(xyz.reshape(-1, 3)))
    area = torch.from_numpy(np.broadcast_to(weight[:, None] * 2 * math.pi / 16, shape).reshape(-1).copy())
    products = values.T @ (area[:, None] * values)
    torch.testing.assert_close(products, torch.eye(16, dtype=torch.float64), atol=1e-12, rtol=0)


def test_energy_of_a_band_is_the_same_everywhere() -> None:
    values = spherical_harmonics(directions(50))
    for degree, band in enumerate(BANDS):
        energy = values[:, band].square().sum(dim=1)
        torch.testing.assert_close(energy, torch.full_like(energy, (2 * degree + 1) / (4 * math.pi)))


def test_parity() -> None:
    """Odd bands change their sign with the direction, even ones do not."""
    here, there = spherical_harmonics(directions(20)), spherical_harmonics(-directions(20))
    for degree, band in enumerate(BANDS):
        torch.testing.assert_close(there[:, band], (-1) ** degree * here[:, band])


def test_order_and_signs() -> None:
    values = spherical_harmonics(torch.eye(3, dtype=torch.float64))
    band_1 = [[0, 0, -0.4886025119], [-0.4886025119, 0, 0], [0, 0.4886025119, 0]]
    torch.testing.assert_close(values[:, 1:4], torch.tensor(band_1, dtype=torch.float64), atol=1e-9, rtol=0)
    pole = {0: 0.2820947918, 2: 0.4886025119, 6: 0.6307831305, 12: 0.7463526652}
    expected = torch.tensor([pole.get(i, 0.0) for i in range(16)], dtype=torch.float64)
    torch.testing.assert_close(values[2], expected, atol=1e-9, rtol=0)


def test_reference_gradient() -> None:
    with ops.use("reference"):
        assert torch.autograd.gradcheck(spherical_harmonics, (directions(4).requires_grad_(),))


@pytest.mark.usefixtures("isa")
@DTYPES
@SIZES
def test_kernel_equals_the_reference(dtype: torch.dtype, n: int) -> None:
    assert_twins(spherical_harmonics, [directions(n, dtype)])


def test_a_direction_that_wants_a_gradient_gets_one() -> None:
    d = directions(3).requires_grad_()
    spherical_harmonics(d).sum().backward()
    assert d.grad is not None and (d.grad != 0).any()


def test_arguments() -> None:
    for bad in (torch.rand(3), torch.rand(4, 2), torch.rand(1, 4, 3)):
        with pytest.raises(ValueError, match="direction: expected shape"):
            spherical_harmonics(bad)
    with pytest.raises(ValueError, match="float32 or float64"):
        spherical_harmonics(torch.ones(2, 3, dtype=torch.float16))
    strided = directions(6).t().contiguous().t()
    assert torch.equal(spherical_harmonics(strided), spherical_harmonics(strided.contiguous()))
