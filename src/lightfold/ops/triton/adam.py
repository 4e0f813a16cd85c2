"""Adam on a GPU: one pass over value, gradient and moments, bounded by their bytes: 16 read and 16 written for each, or
12 and 12 without momentum.

`sparse` saves most of them: where the gradient of a value is zero nothing else is read or written, and `touched` tells
of sixteen gradients at once that they are.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..adam import corrected
from . import blocks, halves

BLOCK = 1024


def adam_(
    value: Tensor, gradient: Tensor, first: Tensor | None, second: Tensor, *,
    step: int, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, sparse: bool,
    touched: Tensor | None, rates: Tensor | None,
) -> None:  # fmt: skip
    """One step, in place; gradient and touched are cleared."""
    n = value.numel()
    if n == 0:
        return
    numbers = [
        h for v in (*corrected(step, lr, betas), 1 - betas[0], 1 - betas[1], eps, weight_decay) for h in halves(v)
    ]
    _adam_kernel[(blocks(n, BLOCK),)](
        value, gradient, first, second, touched, rates, n, *numbers, SPARSE=sparse, BLOCK=BLOCK, num_warps=4
    )
    if touched is not None:
        # Not in the kernel: a thread that is late would find the mark cleared that its neighbour has read.
        touched.zero_()


@triton.jit
def _adam_kernel(
    value, gradient, first, second, touched, rates, n,
    rate_high, rate_low, root_high, root_low, new1_high, new1_low, new2_high, new2_low, eps_high, eps_low,
    decay_high, decay_low, SPARSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # Rows of four: a thread moves four neighbours at once, or none of them where all their gradients are zero.
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK // 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
    live = i < n
    if touched is not None:
        live = live & (tl.load(touched + i // 16, mask=live, other=0) != 0)
    g = tl.load(gradient + i, mask=live, other=0.0)
    dtype: tl.constexpr = g.dtype
    if rates is not None:
        rate, root = tl.load(rates), tl.load(rates + 1)
    else:
        rate, root = tl.cast(rate_high, dtype) + rate_low, tl.cast(root_high, dtype) + root_low
    new1, new2 = tl.cast(new1_high, dtype) + new1_low, tl.cast(new2_high, dtype) + new2_low
    eps, decay = tl.cast(eps_high, dtype) + eps_low, tl.cast(decay_high, dtype) + decay_low
    if SPARSE:
        live = live & (tl.max((g != 0).to(tl.int32), axis=1, keep_dims=True) > 0)
    p = tl.load(value + i, mask=live, other=0.0)
    v = tl.load(second + i, mask=live, other=0.0)
    full = g + decay * p
    m = full
    if first is not None:
        before = tl.load(first + i, mask=live, other=0.0)
        m = before + new1 * (full - before)
        tl.store(first + i, tl.where(g != 0, m, before) if SPARSE else m, mask=live)
    after = v + new2 * (full * full - v)
    moved = p - rate * m / (tl.sqrt(after * root) + eps)
    if SPARSE:
        after, moved = tl.where(g != 0, after, v), tl.where(g != 0, moved, p)
    tl.store(value + i, moved, mask=live)
    tl.store(second + i, after, mask=live)
    tl.store(gradient + i, tl.zeros_like(g), mask=live)
