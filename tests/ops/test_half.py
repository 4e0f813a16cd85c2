"""Networks in pairs of bfloat16 (csrc/half.h): exact products of rounded numbers, in every set of kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_checks import assert_near, threads
from test_mlp import layers, points
from test_radiance import FULL, field_of, parameters, rays_of, target_of, tracing_of
from torch import Tensor

from lightfold.ops import backend, density_at, mlp, render_rays, train_rays
from lightfold.ops.backend import bfloat16_pays, half_type, in_pairs

WIDTHS = pytest.mark.parametrize(
    "widths", [(1, 1), (3, 5), (6, 10, 4), (32, 64, 64, 3), (31, 17, 9, 33, 1)], ids=lambda w: "-".join(map(str, w))
)
COUNTS = pytest.mark.parametrize("n", [0, 1, 2, 15, 17, 63, 95, 97, 193, 1000], ids="n{}".format)
"""Odd counts too: of pairs of samples, the last has then no partner."""


def in_bfloat16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


class Rounded(torch.autograd.Function):
    """W x as pairs compute it: operands rounded to bfloat16, also those of both gradients, and exact sums."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(short(x), short(weight))
        return short(x) @ short(weight).T

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return short(d_out) @ weight, short(d_out).T @ x


def short(x: Tensor) -> Tensor:
    return x.float().bfloat16().double()


def expected(x: Tensor, weights: list[Tensor]) -> Tensor:
    for weight in weights[:-1]:
        x = Rounded.apply(x, weight).relu()
    return Rounded.apply(x, weights[-1])


@pytest.mark.usefixtures("isa")
class TestPairs:
    @WIDTHS
    @COUNTS
    def test_products_of_rounded_numbers(self, widths: tuple[int, ...], n: int) -> None:
        """Outputs and all gradients. A number that lies between two bfloat16 may be rounded either way after sums in
        another order, which moves what follows by 2^-8 of itself, so deep networks get more room."""
        x, weights = points(n, widths[0], torch.float32).requires_grad_(), layers(widths, torch.float32)
        with in_bfloat16():
            out = mlp(x, weights)
        wide = [t.detach().double().requires_grad_() for t in (x, *weights)]
        truth = expected(wide[0], wide[1:])
        slack = 1.0 if len(weights) == 1 else 300.0
        assert_near(out, truth, "output", slack)
        cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        found = torch.autograd.grad(out, [x, *weights], cotangent)
        true = torch.autograd.grad(truth, wide, cotangent.double())
        for i, (a, b) in enumerate(zip(found, true, strict=True)):
            assert_near(a, b, f"gradient {i}", slack)

    def test_what_is_no_number_stays_none(self) -> None:
        """A network that has exploded must not look healthy after rounding, and its neighbours must not catch it."""
        x = points(20, 4, torch.float32)
        x[7, 2] = float("nan")
        with in_bfloat16():
            out = mlp(x, [torch.ones(3, 4)])
        assert out[7].isnan().all() and out[:7].isfinite().all() and out[8:].isfinite().all()
        x[7, 2] = float("inf")
        with in_bfloat16():
            assert not mlp(x, [torch.ones(3, 4)])[7].isfinite().any()

    def test_training_is_near_single_precision(self) -> None:
        """Loss, picture and the direction of every gradient of the fused step, and the number of samples exactly."""
        field = field_of(torch.float32)
        arguments = field, tracing_of("full"), *rays_of(FULL.rays, torch.float32), target_of(FULL.rays, torch.float32)

        def train() -> tuple[Any, list[Tensor]]:
            result = train_rays(*arguments, seed=3, distortion=0.01)
            return result, list(torch.autograd.grad(result.loss, parameters(field)))

        single, exact = train()
        with in_bfloat16():
            pairs, gradients = train()
        assert not torch.equal(pairs.picture.rgb, single.picture.rgb)
        assert float((pairs.picture.rgb - single.picture.rgb).abs().max()) < 0.02
        assert pairs.picture.evaluated == single.picture.evaluated
        assert float(pairs.loss) == pytest.approx(float(single.loss), rel=0.01)
        for a, b in zip(gradients, exact, strict=True):
            assert float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0)) > 0.999
            assert float(a.norm()) == pytest.approx(float(b.norm()), rel=0.02)

    def test_pictures_and_densities(self) -> None:
        field = field_of(torch.float32)
        rays = rays_of(40, torch.float32)
        at = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
        single, density = render_rays(field, tracing_of("full"), *rays), density_at(field, at)
        with in_bfloat16():
            pairs, of_pairs = render_rays(field, tracing_of("full"), *rays), density_at(field, at)
        assert not torch.equal(pairs.rgb, single.rgb) and not torch.equal(of_pairs, density)
        assert float((pairs.rgb - single.rgb).abs().max()) < 0.02
        torch.testing.assert_close(of_pairs, density, rtol=0.05, atol=0)

    def test_the_number_of_threads_changes_no_bit(self) -> None:
        results: list[list[Tensor]] = []
        for count in (1, 2, 3):
            x, weights = points(3001, 8, torch.float32).requires_grad_(), layers((8, 32, 16), torch.float32)
            with threads(count), in_bfloat16():
                out = mlp(x, weights)
            results.append([out.detach(), *torch.autograd.grad(out.square().sum(), [x, *weights])])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_all_sets_of_kernels_agree() -> None:
    """With an instruction for pairs and without: only the order of sums differs."""
    core = backend.core()
    before, found = core.isa(), {}
    x, weights = points(200, 31, torch.float32), layers((31, 8), torch.float32)
    try:
        for name in core.isas():
            core.set_isa(name)
            with in_bfloat16():
                found[name] = mlp(x, weights).detach()
    finally:
        core.set_isa(before)
    for name, out in found.items():
        assert_near(out, found["portable"], name)


class TestWhen:
    def test_autocast_for_the_processor_asks_for_it(self) -> None:
        x = torch.zeros(1)
        with in_bfloat16():
            assert half_type(x) == torch.bfloat16 and in_pairs(x)
            assert half_type(x.double()) is None
        with torch.autocast("cpu", torch.float16):
            assert half_type(x) == torch.float16 and not in_pairs(x)
        assert half_type(x) is None

    def test_double_precision_is_left_alone(self) -> None:
        x, weights = points(9, 4, torch.float64), layers((4, 8, 2), torch.float64)
        with in_bfloat16():
            inside = mlp(x, weights)
        assert torch.equal(inside, mlp(x, weights))

    def test_it_pays_with_an_instruction_for_pairs(self) -> None:
        core, cpu = backend.core(), torch.device("cpu")
        before = core.isa()
        try:
            for name in core.isas():
                core.set_isa(name)
                assert bfloat16_pays(cpu) == (name == "avx512bf16")
        finally:
            core.set_isa(before)
        assert not bfloat16_pays(torch.device("mps")) and bfloat16_pays(torch.device("xpu"))
