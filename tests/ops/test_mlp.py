"""ops/mlp.py: small networks of every width, against plain matrix products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_checks import DTYPES, SIZES, assert_near, assert_twins, threads
from torch import Tensor

from lightfold import ops
from lightfold.ops import mlp

WIDTHS = pytest.mark.parametrize(
    "widths",
    [(1, 1), (3, 5), (16, 64, 16), (32, 64, 64, 3), (31, 17, 9, 33, 1), (8, 8, 8, 8, 8, 8, 8, 8, 8)],
    ids=lambda w: "-".join(map(str, w)),
)


def layers(widths: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    spread = [
        torch.randn(o, i, generator=generator, dtype=dtype) * i**-0.5 for i, o in zip(widths, widths[1:], strict=False)
    ]
    return [w.requires_grad_() for w in spread]


def points(n: int, width: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(3), dtype=dtype)


@WIDTHS
def test_reference_gradient(widths: tuple[int, ...]) -> None:
    x = points(3, widths[0], torch.float64).requires_grad_()
    with ops.use("reference"):
        assert torch.autograd.gradcheck(lambda x, *w: mlp(x, w), (x, *layers(widths, torch.float64)), fast_mode=True)


def test_reference_is_what_torch_has() -> None:
    weights = layers((4, 8, 2), torch.float64)
    x = points(5, 4, torch.float64)
    linear = torch.nn.functional.linear
    with ops.use("reference"):
        torch.testing.assert_close(mlp(x, weights), linear(linear(x, weights[0]).relu(), weights[1]))


@pytest.mark.usefixtures("isa")
class TestKernels:
    @WIDTHS
    @DTYPES
    @SIZES
    def test_equal_the_reference(self, widths: tuple[int, ...], dtype: torch.dtype, n: int) -> None:
        inputs = [points(n, widths[0], dtype).requires_grad_(), *layers(widths, dtype)]
        assert_twins(lambda x, *w: mlp(x, w), inputs, slack=2.0)

    @WIDTHS
    def test_gradient(self, widths: tuple[int, ...]) -> None:
        x = points(3, widths[0], torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, *w: mlp(x, w), (x, *layers(widths, torch.float64)), fast_mode=True)

    def test_full_gradient_of_a_small_one(self) -> None:
        x = points(2, 3, torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, *w: mlp(x, w), (x, *layers((3, 5, 2), torch.float64)))

    @DTYPES
    @pytest.mark.parametrize("n", [2, 7, 15, 16, 17, 95, 96, 97, 191, 192, 193, 385], ids="n{}".format)
    def test_ends_of_tiles(self, dtype: torch.dtype, n: int) -> None:
        """Counts just before and behind the sizes of vectors, tiles and blocks."""
        assert_twins(lambda x, *w: mlp(x, w), [points(n, 6, dtype).requires_grad_(), *layers((6, 10, 4), dtype)], 2.0)

    @DTYPES
    def test_dead_units_pass_no_gradient(self, dtype: torch.dtype) -> None:
        first = -torch.ones(4, 3, dtype=dtype)
        x = (points(20, 3, dtype).abs() + 0.1).requires_grad_()
        weights = [first.requires_grad_(), torch.ones(2, 4, dtype=dtype, requires_grad=True)]
        out = mlp(x, weights)
        out.sum().backward()
        assert x.grad is not None
        assert (out == 0).all() and (x.grad == 0).all()
        assert all(w.grad is not None and (w.grad == 0).all() for w in weights)

    def test_a_gradient_for_the_weights_alone(self) -> None:
        weights = layers((3, 5, 2), torch.float64)
        x = points(9, 3, torch.float64)
        mlp(x, weights).square().sum().backward()
        with ops.use("reference"):
            expected = torch.autograd.grad(mlp(x, weights).square().sum(), weights)
        for w, e in zip(weights, expected, strict=True):
            assert w.grad is not None
            assert_near(w.grad, e)

    def test_the_number_of_threads_changes_no_bit(self) -> None:
        results: list[Any] = []
        for count in (1, 2, 3):
            x, weights = points(3000, 8, torch.float32).requires_grad_(), layers((8, 32, 16), torch.float32)
            with threads(count):
                out = mlp(x, weights)
                out.square().sum().backward()
            results.append([out, x.grad, *(w.grad for w in weights)])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


class TestArguments:
    def test_errors_name_the_argument(self) -> None:
        x = torch.rand(4, 3)
        with pytest.raises(ValueError, match="x: expected shape"):
            mlp(x[0], [torch.rand(2, 3)])
        with pytest.raises(ValueError, match=r"weights\[1\]: expected shape \[\*, 5\]"):
            mlp(x, [torch.rand(5, 3), torch.rand(2, 4)])
        for bad in ([], [torch.rand(3, 3)] * 9):
            with pytest.raises(ValueError, match="weights: expected 1 to 8 layers"):
                mlp(x, bad)
        with pytest.raises(ValueError, match="one type"):
            mlp(x, [torch.rand(2, 3, dtype=torch.float64)])
        with pytest.raises(ValueError, match="contiguous"):
            mlp(x, [torch.rand(3, 2).t()])

    def test_strided_input(self) -> None:
        x, weights = torch.rand(3, 7).t(), [torch.rand(2, 3)]
        assert torch.equal(mlp(x, weights), mlp(x.contiguous(), weights))

    def test_a_second_derivative_is_refused_not_ignored(self) -> None:
        x, weights = points(3, 3, torch.float64).requires_grad_(), layers((3, 5, 2), torch.float64)
        out = mlp(x, weights)
        with pytest.raises(RuntimeError, match="second"):
            (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
            (out.sum() + slope.square().sum()).backward()
