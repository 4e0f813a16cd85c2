"""Spherical harmonics on a GPU: a thread per direction. There is one direction per ray, so nothing depends on this."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import blocks

BLOCK = 128


def spherical_harmonics(direction: Tensor, out: Tensor) -> None:
    """Fills out [N, 16]."""
    n = direction.shape[0]
    if n:
        _harmonics_kernel[(blocks(n, BLOCK),)](direction, out, n, BLOCK=BLOCK, num_warps=4)


@triton.jit
def _harmonics_kernel(direction, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = i < n
    x = tl.load(direction + 3 * i, mask=live, other=0.0)
    y = tl.load(direction + 3 * i + 1, mask=live, other=0.0)
    z = tl.load(direction + 3 * i + 2, mask=live, other=0.0)
    out += 16 * i
    tl.store(out, tl.zeros_like(x) + 0.28209479177387814, mask=live)
    tl.store(out + 1, -0.48860251190291987 * y, mask=live)
    tl.store(out + 2, 0.48860251190291987 * z, mask=live)
    tl.store(out + 3, -0.48860251190291987 * x, mask=live)
    tl.store(out + 4, 1.0925484305920792 * x * y, mask=live)
    tl.store(out + 5, -1.0925484305920792 * y * z, mask=live)
    tl.store(out + 6, 0.94617469575755997 * z * z - 0.31539156525251999, mask=live)
    tl.store(out + 7, -1.0925484305920792 * x * z, mask=live)
    tl.store(out + 8, 0.54627421529603959 * (x * x - y * y), mask=live)
    tl.store(out + 9, 0.59004358992664352 * y * (-3.0 * x * x + y * y), mask=live)
    tl.store(out + 10, 2.8906114426405538 * x * y * z, mask=live)
    tl.store(out + 11, 0.45704579946446572 * y * (1.0 - 5.0 * z * z), mask=live)
    tl.store(out + 12, 0.3731763325901154 * z * (5.0 * z * z - 3.0), mask=live)
    tl.store(out + 13, 0.45704579946446572 * x * (1.0 - 5.0 * z * z), mask=live)
    tl.store(out + 14, 1.4453057213202769 * z * (x * x - y * y), mask=live)
    tl.store(out + 15, 0.59004358992664352 * x * (-x * x + 3.0 * y * y), mask=live)
