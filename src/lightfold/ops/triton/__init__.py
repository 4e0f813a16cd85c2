"""Kernels for GPUs, in Triton's language: one file per op family, imported when the first tensor of a GPU arrives.

The public functions, their checks and their autograd functions are those of `lightfold.ops`; what is here takes tensors
that have been checked, and fills tensors that the caller has made. Shared habits:

- **A fixed shape per kernel.** Triton compiles a kernel for each combination of types and constants, so what changes
  between steps (numbers of points, learning rates, seeds) is an ordinary argument, and block sizes are not tuned at run
  time. What changes between models (features per level, widths of layers) is a constant.
- **Nothing waits for the device.** No result is read by the host. Where one kernel decides how many rows the next one
  has (samples of a ray march), the number stays on the device: `count` is a tensor of one number, programs beyond it
  return at once, and buffers have room for the most there can be. Pictures and `surface_march`, whose result has exact
  sizes, wait once.
- **Scalars in two halves.** Triton passes a Python float in single precision. Kernels that also run in double, where
  they are tested against finite differences, take it as `high + low` (see `halves`).
- Offsets into tensors are 64 bit; sums are in the type of the points, whatever the type of the table.

Run so far under Triton's interpreter, and compiled for GPUs without one at hand; block sizes are reasoned, not tuned.
"""

from __future__ import annotations

import os
import struct

# A multiplication and an addition in one instruction, as in the native kernels. Triton is about to change its default.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


def halves(value: float) -> tuple[float, float]:
    """A double as a sum of two single-precision numbers, to twice their precision."""
    high = _single(value)
    return high, _single(value - high)


def blocks(count: int, size: int) -> int:
    """Programs that share `count` elements, `size` each."""
    return -(-count // size)


def _single(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]
