"""ops/adam.py: one step of Adam, dense and sparse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_checks import DTYPES, SIZES, assert_near, threads
from torch import Tensor

from lightfold import ops
from lightfold.ops import adam_

OPTIONS: dict[str, Any] = {"step": 3, "lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-10}


def state(n: int, dtype: torch.dtype, zeros: float = 0.5) -> list[Tensor]:
    """value, gradient, first and second moments; a share of the gradients is exactly zero."""
    generator = torch.Generator().manual_seed(n)
    value, gradient, first = (torch.randn(n, generator=generator, dtype=dtype) for _ in range(3))
    gradient[torch.rand(n, generator=generator) < zeros] = 0.0
    return [value, gradient, first, torch.rand(n, generator=generator, dtype=dtype)]


@pytest.mark.usefixtures("isa")
class TestKernel:
    @DTYPES
    @SIZES
    @pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
    @pytest.mark.parametrize("weight_decay", [0.0, 0.1], ids=["plain", "decay"])
    def test_equals_the_reference(self, dtype: torch.dtype, n: int, sparse: bool, weight_decay: float) -> None:
        native = state(n, dtype)
        reference = [t.double() for t in native]
        adam_(*native, **OPTIONS, weight_decay=weight_decay, sparse=sparse)
        with ops.use("reference"):
            adam_(*reference, **OPTIONS, weight_decay=weight_decay, sparse=sparse)
        for name, a, b in zip(("value", "gradient", "first", "second"), native, reference, strict=True):
            assert_near(a, b, name)
        assert (native[1] == 0).all()

    @DTYPES
    @SIZES
    @pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
    def test_without_momentum(self, dtype: torch.dtype, n: int, sparse: bool) -> None:
        """The reference's, which is what a first moment that forgets at once would give; and there is none to keep."""
        value, gradient, _, second = state(n, dtype)
        reference = [t.double() for t in (value, gradient, second)]
        options = OPTIONS | {"betas": (0.0, 0.99), "weight_decay": 0.1, "sparse": sparse}
        touched = torch.ones((n + 15) // 16, dtype=torch.uint8) if sparse else None
        adam_(value, gradient, None, second, **options, touched=touched)
        with ops.use("reference"):
            adam_(reference[0], reference[1], None, reference[2], **options)
        for name, a, b in zip(("value", "gradient", "second"), (value, gradient, second), reference, strict=True):
            assert_near(a, b, name)
        assert (gradient == 0).all()

    @DTYPES
    @pytest.mark.parametrize("weight_decay", [0.0, 0.05], ids=["plain", "decay"])
    def test_equals_pytorch(self, dtype: torch.dtype, weight_decay: float, rng: torch.Generator) -> None:
        """Twenty steps beside torch.optim.Adam, from its own zero moments."""
        value = torch.randn(7, 11, generator=rng, dtype=dtype)
        param = torch.nn.Parameter(value.clone())
        theirs = torch.optim.Adam([param], lr=0.02, betas=(0.8, 0.95), eps=1e-8, weight_decay=weight_decay)
        first, second = torch.zeros_like(value), torch.zeros_like(value)
        for step in range(1, 21):
            gradient = torch.randn(7, 11, generator=rng, dtype=dtype) * 10.0 ** (step % 5 - 2)
            param.grad = gradient.clone()
            theirs.step()
            options: dict[str, Any] = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-8, "weight_decay": weight_decay}
            adam_(value, gradient, first, second, step=step, **options)
            assert_near(value, param.detach(), f"step {step}", slack=5)

    @DTYPES
    def test_a_first_step_is_as_long_as_the_learning_rate(self, dtype: torch.dtype) -> None:
        value, gradient = torch.zeros(5, dtype=dtype), torch.tensor([1e-6, -1e-3, 1.0, -1e3, 1e6], dtype=dtype)
        sign = gradient.sign()
        adam_(value, gradient, torch.zeros_like(value), torch.zeros_like(value), step=1, lr=0.1, eps=1e-30)
        assert_near(value, -0.1 * sign)

    @DTYPES
    def test_sparse_leaves_untouched_values_alone(self, dtype: torch.dtype) -> None:
        """Bit for bit, moments and weight decay included."""
        before, after = state(1000, dtype), state(1000, dtype)
        adam_(*after, **OPTIONS, weight_decay=0.1, sparse=True)
        still = before[1] == 0
        assert 300 < int(still.sum()) < 700
        for i in (0, 2, 3):
            assert torch.equal(before[i][still], after[i][still])
            assert (before[i][~still] != after[i][~still]).all()

    @DTYPES
    @pytest.mark.parametrize("n", [1, 16, 63, 1000, 70_000], ids="n{}".format)
    def test_touched_lines(self, dtype: torch.dtype, n: int) -> None:
        """Only lines that are marked are visited; the result is that of the sweep, and the marks are cleared."""
        lines = (n + 15) // 16
        marked = torch.rand(lines, generator=torch.Generator().manual_seed(n)) < 0.3
        marked[-1] = True
        values = state(n, dtype)
        values[1][~marked.repeat_interleave(16)[:n]] = 0.0
        swept = [t.clone() for t in values]
        touched = marked.to(torch.uint8) * 255
        adam_(*values, **OPTIONS, sparse=True, touched=touched)
        adam_(*swept, **OPTIONS, sparse=True)
        for a, b in zip(values, swept, strict=True):
            assert torch.equal(a, b)
        assert (touched == 0).all()

    def test_a_line_that_is_not_marked_is_not_read(self) -> None:
        values = state(64, torch.float32, zeros=0.0)
        before = [t.clone() for t in values]
        adam_(*values, **OPTIONS, sparse=True, touched=torch.tensor([0, 1, 0, 0], dtype=torch.uint8))
        for a, b in zip(values, before, strict=True):
            assert torch.equal(a[:16], b[:16]) and torch.equal(a[32:], b[32:])
            assert not torch.equal(a[16:32], b[16:32])

    def test_reference_clears_the_marks_too(self) -> None:
        touched = torch.ones(4, dtype=torch.uint8)
        with ops.use("reference"):
            adam_(*state(64, torch.float32), **OPTIONS, sparse=True, touched=touched)
        assert (touched == 0).all()

    def test_the_number_of_threads_changes_no_bit(self) -> None:
        results = []
        for count in (1, 2, 3):
            with threads(count):
                values = state(100_003, torch.float32)
                adam_(*values, **OPTIONS)
            results.append(values)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))

    def test_many_steps_do_not_overflow_the_bias_correction(self) -> None:
        values = state(8, torch.float32, zeros=0.0)
        adam_(*values, **(OPTIONS | {"step": 2_000_000_000}))
        assert all(t.isfinite().all() for t in values)


class TestArguments:
    @pytest.mark.parametrize("name", ["gradient", "first", "second"])
    def test_shapes(self, name: str) -> None:
        values: dict[str, Any] = dict(
            zip(("value", "gradient", "first", "second"), state(20, torch.float32), strict=True)
        )
        values[name] = values[name][:19]
        with pytest.raises(ValueError, match=f"{name}: expected shape"):
            adam_(**values, step=1, lr=0.1)

    def test_a_first_moment_with_momentum_and_only_then(self) -> None:
        value, gradient, first, second = state(4, torch.float32)
        with pytest.raises(ValueError, match=r"first: expected None with betas\[0\] = 0, and only then"):
            adam_(value, gradient, None, second, step=1, lr=0.1)
        with pytest.raises(ValueError, match="first: expected None"):
            adam_(value, gradient, first, second, step=1, lr=0.1, betas=(0.0, 0.9))

    def test_step_counts_from_one(self) -> None:
        with pytest.raises(ValueError, match="step: expected at least 1"):
            adam_(*state(4, torch.float32), step=0, lr=0.1)

    def test_types(self) -> None:
        value, gradient, first, second = state(4, torch.float32)
        with pytest.raises(ValueError, match="one type"):
            adam_(value, gradient, first.double(), second, step=1, lr=0.1)
        with pytest.raises(ValueError, match="contiguous"):
            adam_(*(t.expand(3, 4).t() for t in (value, gradient, first, second)), step=1, lr=0.1)

    def test_touched(self) -> None:
        values = state(64, torch.float32)
        for touched, sparse in [
            (torch.zeros(4, dtype=torch.uint8), False),
            (torch.zeros(3, dtype=torch.uint8), True),
            (torch.zeros(4, dtype=torch.bool), True),
        ]:
            with pytest.raises(ValueError, match="touched: expected"):
                adam_(*values, step=1, lr=0.1, sparse=sparse, touched=touched)
