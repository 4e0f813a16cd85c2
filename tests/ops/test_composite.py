"""ops/composite.py: volume rendering of packed samples."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from kernel_checks import DTYPES, SIZES, assert_near, assert_twins, threads
from torch import Tensor

from lightfold import ops
from lightfold.ops import composite, distance_at


def packed(rays: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """sigma, rgb, t0, t1, offset of rays with 0 to 12 samples; the first one is empty where there are several."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 13, (rays,), generator=generator)
    counts[: min(rays - 1, 1) if rays else 0] = 0
    offset = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    samples = int(offset[-1])
    sigma = torch.randn(samples, generator=generator, dtype=dtype).exp() * 3
    rgb = torch.rand(samples, 3, generator=generator, dtype=dtype)
    ends = (0.05 + torch.rand(samples, generator=generator, dtype=dtype)).cumsum(0)
    t0 = ends - 0.05
    t1 = t0 + 0.3 * torch.rand(samples, generator=generator, dtype=dtype)
    return [sigma.requires_grad_(), rgb.requires_grad_(), t0, t1, offset]


def test_five_samples_by_hand() -> None:
    alpha = torch.tensor([0.1, 0.5, 0.2, 0.9, 0.4], dtype=torch.float64)
    t0 = torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.float64)
    length = torch.tensor([0.5, 0.5, 1.0, 0.25, 2.0], dtype=torch.float64)
    rgb = torch.eye(5, 3, dtype=torch.float64)
    for name in ("native", "reference"):
        with ops.use(name):
            out = composite(-torch.log1p(-alpha) / length, rgb, t0, t0 + length, torch.tensor([0, 5]))
        expected = torch.tensor([0.1, 0.45, 0.09, 0.324, 0.0144], dtype=torch.float64)
        torch.testing.assert_close(out.weight, expected)
        torch.testing.assert_close(out.opacity, torch.tensor([0.9784], dtype=torch.float64))
        torch.testing.assert_close(out.colour, expected[None, :3])
        depth = 0.1 * 1.25 + 0.45 * 2.25 + 0.09 * 3.5 + 0.324 * 4.125 + 0.0144 * 6.0
        torch.testing.assert_close(out.depth, torch.tensor([depth], dtype=torch.float64))


def test_reference_gradient() -> None:
    *values, offset = packed(4, torch.float64)
    with ops.use("reference"):
        assert torch.autograd.gradcheck(lambda s, c: composite(s, c, values[2], values[3], offset), values[:2])


@pytest.mark.usefixtures("isa")
class TestKernels:
    @DTYPES
    @SIZES
    def test_equal_the_reference(self, dtype: torch.dtype, n: int) -> None:
        assert_twins(lambda *inputs: tuple(composite(*inputs)), packed(n, dtype), slack=2.0)

    def test_gradient(self) -> None:
        *values, offset = packed(5, torch.float64)
        assert torch.autograd.gradcheck(lambda s, c: tuple(composite(s, c, values[2], values[3], offset)), values[:2])

    @DTYPES
    def test_a_box_of_constant_density(self, dtype: torch.dtype) -> None:
        """1 - exp(-sigma L), however the box is cut into samples."""
        cuts = torch.rand(3, 31, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sort(dim=1).values
        edges = torch.cat([torch.zeros(3, 1), cuts, torch.ones(3, 1)], dim=1).to(dtype)
        t0, t1 = edges[:, :-1].reshape(-1), edges[:, 1:].reshape(-1)
        offset = torch.tensor([0, 32, 64, 96])
        for sigma in (0.0, 1e-3, 1.0, 30.0, 1e6):
            density = torch.full((96,), sigma, dtype=dtype)
            out = composite(density, torch.full((96, 3), 0.5, dtype=dtype), t0, t1, offset)
            expected = torch.full((3,), -math.expm1(-sigma), dtype=dtype)
            torch.testing.assert_close(out.opacity, expected, rtol=1e-5, atol=2e-6)
            torch.testing.assert_close(out.colour, 0.5 * expected[:, None].expand(3, 3), rtol=1e-5, atol=2e-6)

    @DTYPES
    def test_weights_are_shares_that_sum_to_the_opacity(self, dtype: torch.dtype) -> None:
        sigma, rgb, t0, t1, offset = packed(200, dtype)
        out = composite(sigma, rgb, t0, t1, offset)
        assert (out.weight >= 0).all() and (out.opacity <= 1).all()
        ray = torch.repeat_interleave(torch.arange(200), offset.diff())
        total = torch.zeros(200, dtype=dtype).index_add(0, ray, out.weight.detach())
        torch.testing.assert_close(total, out.opacity.detach(), rtol=0, atol=1e-6)

    @DTYPES
    def test_an_opaque_sample_hides_what_is_behind(self, dtype: torch.dtype) -> None:
        sigma = torch.tensor([0.0, 1e30, 5.0], dtype=dtype, requires_grad=True)
        rgb = torch.eye(3, dtype=dtype).requires_grad_()
        t0 = torch.tensor([1.0, 2.0, 3.0], dtype=dtype)
        out = composite(sigma, rgb, t0, t0 + 0.5, torch.tensor([0, 3]))
        assert_near(out.weight, torch.tensor([0.0, 1.0, 0.0], dtype=dtype))
        out.colour.sum().backward()
        assert sigma.grad is not None and rgb.grad is not None
        assert sigma.grad.isfinite().all() and float(sigma.grad[2].abs()) < 1e-6
        assert_near(rgb.grad, torch.tensor([[0.0] * 3, [1.0] * 3, [0.0] * 3], dtype=dtype))

    def test_the_number_of_threads_changes_no_bit(self) -> None:
        results: list[Any] = []
        for count in (1, 2, 3):
            sigma, rgb, t0, t1, offset = packed(900, torch.float32)
            with threads(count):
                out = composite(sigma, rgb, t0, t1, offset)
                (out.colour.square().sum() + out.depth.sum()).backward()
            results.append([*out, sigma.grad, rgb.grad])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


class TestArguments:
    def test_shapes(self) -> None:
        sigma, rgb, t0, t1, offset = packed(5, torch.float32)
        for name, bad in [
            ("rgb", (sigma, rgb[1:], t0, t1)),
            ("rgb", (sigma, rgb[:, :2], t0, t1)),
            ("t0", (sigma, rgb, t0[1:], t1)),
            ("t1", (sigma, rgb, t0, t1[None])),
        ]:
            with pytest.raises(ValueError, match=f"{name}: expected shape"):
                composite(*bad, offset)
        with pytest.raises(ValueError, match="one type"):
            composite(sigma, rgb.double(), t0, t1, offset)

    def test_offsets(self) -> None:
        """Offsets that do not partition the samples would read outside of memory."""
        sigma, rgb, t0, t1, offset = packed(5, torch.float32)
        rising, last = offset.clone(), int(offset[-1])
        rising[2] = last + 1
        for bad in (offset + 1, offset[:-2], rising, offset.flip(0), offset.int(), offset[None], offset[:0]):
            with pytest.raises(ValueError, match="offset: expected"):
                composite(sigma, rgb, t0, t1, bad)

    def test_strided_input(self) -> None:
        sigma, rgb, t0, t1, offset = packed(5, torch.float32)
        strided = composite(sigma, rgb.t().contiguous().t(), t0, t1, offset)
        assert torch.equal(strided.colour, composite(sigma, rgb, t0, t1, offset).colour)

    def test_a_second_derivative_is_refused_not_ignored(self) -> None:
        sigma, rgb, t0, t1, offset = packed(3, torch.float64)
        out = composite(sigma, rgb, t0, t1, offset)
        with pytest.raises(RuntimeError, match="second"):
            (slope,) = torch.autograd.grad(out.opacity.sum(), sigma, create_graph=True)
            (out.opacity.sum() + slope.square().sum()).backward()


class TestDistanceAt:
    def test_equals_walking_along_each_ray(self, rng: torch.Generator) -> None:
        counts = [0, 5, 0, 1, 40, 7, 0]
        offset = torch.tensor([0, *counts]).cumsum(0)
        weight = torch.rand(sum(counts), generator=rng, dtype=torch.float64)
        weight[::3] = 0.0
        t0 = torch.rand(sum(counts), generator=rng, dtype=torch.float64).cumsum(0)
        t1 = t0 + 0.01
        share = torch.rand(len(counts), generator=rng, dtype=torch.float64)
        total = torch.stack([weight[a:b].sum() for a, b in zip(offset, offset[1:], strict=False)])
        found = distance_at(share * total, weight, t0, t1, offset)
        for ray, (begin, end) in enumerate(zip(offset.tolist(), offset[1:].tolist(), strict=False)):
            left, expected = float(share[ray] * total[ray]), 0.0
            for i in range(begin, end):
                if left <= float(weight[i]):
                    expected = float(t0[i]) + 0.01 * left / float(weight[i])
                    break
                left -= float(weight[i])
            assert float(found[ray]) == pytest.approx(expected, abs=1e-12)

    def test_of_two_surfaces_the_median_is_one_of_them(self) -> None:
        t0, offset = torch.tensor([1.0, 5.0]), torch.tensor([0, 2])
        for first in (0.2, 0.7):
            weight = torch.tensor([first, 0.9 - first])
            median = distance_at(torch.tensor([0.45]), weight, t0, t0 + 0.1, offset)
            assert float((median - t0[int(first < 0.45)]).abs()) < 0.1 < float((median - 3.0).abs())

    def test_nothing_to_see(self) -> None:
        nothing, no_sample = torch.zeros(3), torch.zeros(0)
        offset = torch.zeros(4, dtype=torch.int64)
        assert distance_at(nothing, no_sample, no_sample, no_sample, offset).tolist() == [0.0, 0.0, 0.0]
        offset = torch.tensor([0, 2, 2, 2])
        assert distance_at(nothing, torch.zeros(2), torch.ones(2), torch.ones(2), offset).tolist() == [0.0, 0.0, 0.0]
