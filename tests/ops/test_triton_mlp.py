"""ops/triton/mlp.py against plain matrix products; on a GPU or interpreted."""

from __future__ import annotations

import pytest
import torch
from gpu_checks import NEEDS_TRITON, assert_gpu_twins, kernels, on_device
from kernel_checks import assert_near
from test_mlp import WIDTHS, layers, points

from lightfold import ops
from lightfold.ops import mlp

pytestmark = NEEDS_TRITON


@WIDTHS
def test_equals_the_reference(widths: tuple[int, ...]) -> None:
    """In double, so that only the mathematics can be wrong."""
    inputs = [points(70, widths[0], torch.float64).requires_grad_(), *layers(widths, torch.float64)]
    assert_gpu_twins(lambda x, *w: mlp(x, w), inputs, slack=2.0)


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 300], ids="n{}".format)
def test_sizes(n: int) -> None:
    widths = (32, 64, 64, 3)
    inputs = [points(n, 32, torch.float32).requires_grad_(), *layers(widths, torch.float32)]
    assert_gpu_twins(lambda x, *w: mlp(x, w), inputs, slack=3.0)


def test_programs_that_take_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightfold.ops.triton import mlp as here

    monkeypatch.setattr(here, "PROGRAMS", 2)
    inputs = [points(330, 6, torch.float64).requires_grad_(), *layers((6, 10, 4), torch.float64)]
    assert_gpu_twins(lambda x, *w: mlp(x, w), inputs, slack=2.0)


def test_a_gradient_for_the_weights_alone() -> None:
    x, *weights = on_device(points(9, 3, torch.float64), *layers((3, 5, 2), torch.float64))
    with kernels():
        mlp(x, weights).square().sum().backward()
    with ops.use("reference"):
        expected = torch.autograd.grad(mlp(x, weights).square().sum(), weights)
    for w, e in zip(weights, expected, strict=True):
        assert w.grad is not None
        assert_near(w.grad, e)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_autocast_rounds_the_operands(half: torch.dtype) -> None:
    """Within the rounding of the operands; outputs and gradients stay in single precision."""
    x, *weights = on_device(points(80, 8, torch.float32).requires_grad_(), *layers((8, 32, 4), torch.float32))
    with kernels(), torch.autocast(x.device.type, dtype=half):
        out = mlp(x, weights)
    gradients = torch.autograd.grad(out.square().sum(), [x, *weights])
    with ops.use("reference"):
        exact = mlp(x, weights)
        expected = torch.autograd.grad(exact.square().sum(), [x, *weights])
    share = 16 * torch.finfo(half).eps
    for a, b in zip((out, *gradients), (exact, *expected), strict=True):
        assert a.dtype == torch.float32
        error = float((a - b).detach().abs().max() / b.detach().abs().max())
        assert 0 < error < share


def test_large_networks_are_matrix_products() -> None:
    """They have nothing to gain from a fused kernel; the contract is the same."""
    x, *weights = on_device(points(20, 8, torch.float32).requires_grad_(), *layers((8, 300, 4), torch.float32))
    with kernels():
        out = mlp(x, weights)
    with ops.use("reference"):
        assert torch.equal(out, mlp(x, weights))


def test_a_second_derivative_is_refused_not_ignored() -> None:
    x, *weights = on_device(points(3, 3, torch.float64).requires_grad_(), *layers((3, 5, 2), torch.float64))
    with kernels():
        out = mlp(x, weights)
    with pytest.raises(RuntimeError, match="second"):
        torch.autograd.grad(out.sum(), x, create_graph=True)
