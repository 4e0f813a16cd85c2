"""ops/triton/composite.py, adam.py and spherical_harmonics.py against the reference; on a GPU or interpreted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu_checks import DTYPES, NEEDS_TRITON, SIZES, assert_gpu_twins, kernels, on_device
from kernel_checks import assert_near
from test_adam import OPTIONS, state
from test_composite import packed
from test_spherical_harmonics import directions

from lightfold import ops
from lightfold.ops import adam_, composite, spherical_harmonics
from lightfold.ops.adam import corrected

pytestmark = NEEDS_TRITON


class TestComposite:
    @DTYPES
    @pytest.mark.parametrize("n", [0, 1, 63], ids="n{}".format)
    def test_equals_the_reference(self, dtype: torch.dtype, n: int) -> None:
        assert_gpu_twins(lambda *inputs: tuple(composite(*inputs)), packed(n, dtype), slack=2.0)

    def test_rays_longer_than_a_chunk(self) -> None:
        generator = torch.Generator().manual_seed(0)
        offset = torch.tensor([0, 100, 100, 131, 163, 196])
        t0 = torch.arange(196, dtype=torch.float64) * 0.1
        sigma = (torch.rand(196, generator=generator, dtype=torch.float64) * 0.5).requires_grad_()
        rgb = torch.rand(196, 3, generator=generator, dtype=torch.float64).requires_grad_()
        assert_gpu_twins(lambda *inputs: tuple(composite(*inputs)), [sigma, rgb, t0, t0 + 0.08, offset], slack=2.0)

    @DTYPES
    def test_an_opaque_sample_hides_what_is_behind(self, dtype: torch.dtype) -> None:
        sigma, rgb, t0, offset = on_device(
            torch.tensor([2.0, 1e30, 5.0], dtype=dtype).requires_grad_(),
            torch.eye(3, dtype=dtype).requires_grad_(),
            torch.tensor([1.0, 2.0, 3.0], dtype=dtype),
            torch.tensor([0, 3]),
        )
        with kernels():
            out = composite(sigma, rgb, t0, t0 + 0.5, offset)
            out.colour.sum().backward()
        before = 1 - torch.exp(torch.tensor(-1.0, dtype=dtype))
        assert_near(out.weight.cpu(), torch.stack([before, 1 - before, 0 * before]))
        assert sigma.grad is not None and sigma.grad.isfinite().all() and float(sigma.grad[2].abs()) < 1e-6

    def test_a_second_derivative_is_refused_not_ignored(self) -> None:
        sigma, rgb, t0, t1, offset = on_device(*packed(3, torch.float64))
        with kernels():
            out = composite(sigma, rgb, t0, t1, offset)
        with pytest.raises(RuntimeError, match="second"):
            torch.autograd.grad(out.opacity.sum(), sigma, create_graph=True)


class TestAdam:
    @DTYPES
    @pytest.mark.parametrize("n", [0, 1, 63, 3000], ids="n{}".format)
    @pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
    def test_equals_the_reference(self, dtype: torch.dtype, n: int, sparse: bool) -> None:
        ours, reference = on_device(*state(n, dtype)), [t.double() for t in state(n, dtype)]
        with kernels():
            adam_(*ours, **OPTIONS, weight_decay=0.1, sparse=sparse)
        with ops.use("reference"):
            adam_(*reference, **OPTIONS, weight_decay=0.1, sparse=sparse)
        for name, a, b in zip(("value", "gradient", "first", "second"), ours, reference, strict=True):
            assert_near(a.cpu(), b, name)
        assert (ours[1] == 0).all()

    def test_without_momentum(self) -> None:
        value, gradient, _, second = on_device(*state(300, torch.float32))
        expected = [t.double().cpu() for t in (value, gradient, second)]
        options = OPTIONS | {"betas": (0.0, 0.99), "sparse": True}
        with kernels():
            adam_(value, gradient, None, second, **options)
        with ops.use("reference"):
            adam_(expected[0], expected[1], None, expected[2], **options)
        for name, a, b in zip(("value", "gradient", "second"), (value, gradient, second), expected, strict=True):
            assert_near(a.cpu(), b, name)

    def test_rates_are_read_on_the_device(self) -> None:
        """Bit for bit as with the numbers that they stand for, whatever else is said."""
        ours, expected = (on_device(*state(300, torch.float32)) for _ in range(2))
        rates = torch.tensor(corrected(OPTIONS["step"], OPTIONS["lr"], OPTIONS["betas"]), device=ours[0].device)
        with kernels():
            adam_(*ours, **OPTIONS | {"step": 999, "lr": 123.0}, rates=rates)
            adam_(*expected, **OPTIONS)
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
        with pytest.raises(ValueError, match="rates: expected None, or torch.float32"):
            adam_(*state(300, torch.float32), **OPTIONS, rates=rates)  # The processor's kernels know none.

    def test_sparse_leaves_untouched_values_alone(self) -> None:
        """Bit for bit, moments and weight decay included."""
        before, after = state(1000, torch.float32), on_device(*state(1000, torch.float32))
        with kernels():
            adam_(*after, **OPTIONS, weight_decay=0.1, sparse=True)
        still = before[1] == 0
        for i in (0, 2, 3):
            assert torch.equal(before[i][still], after[i].cpu()[still])
            assert (before[i][~still] != after[i].cpu()[~still]).all()

    @pytest.mark.parametrize("n", [1, 16, 63, 3000], ids="n{}".format)
    def test_touched_lines(self, n: int) -> None:
        lines = (n + 15) // 16
        marked = torch.rand(lines, generator=torch.Generator().manual_seed(n)) < 0.3
        marked[-1] = True
        values = state(n, torch.float32, zeros=0.0)
        expected = [t.clone() for t in values]
        here = on_device(*values, marked.to(torch.uint8) * 255)
        with kernels():
            adam_(*here[:4], **OPTIONS, sparse=True, touched=here[4])
        of_marked = marked.repeat_interleave(16)[:n]
        swept = [t[of_marked] for t in expected]
        adam_(*swept, **OPTIONS, sparse=True)
        for a, b, s in zip(here, expected, swept, strict=False):
            assert torch.equal(a.cpu()[~of_marked], b[~of_marked])
            assert_near(a.cpu()[of_marked], s)
        assert (here[4] == 0).all()

    def test_many_steps_do_not_overflow_the_bias_correction(self) -> None:
        values: list[Any] = on_device(*state(8, torch.float32, zeros=0.0))
        with kernels():
            adam_(*values, **(OPTIONS | {"step": 2_000_000_000}))
        assert all(t.isfinite().all() for t in values)


@DTYPES
@SIZES
def test_spherical_harmonics(dtype: torch.dtype, n: int) -> None:
    assert_gpu_twins(spherical_harmonics, [directions(n, dtype)])
