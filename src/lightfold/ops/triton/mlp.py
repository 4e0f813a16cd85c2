"""Small networks on the matrix units of a GPU: a tile of samples passes through all layers inside one program.

What a layer gives stays in registers and shared memory; memory sees the input and the output. Widths are padded with
zeros to powers of two from 16 on, the smallest that the matrix units take.

- **The backward pass computes the activations again.** Storing them would cost 2 * 64 numbers per sample and hidden
  layer to write and to read, as much time as the third of the arithmetic that it saves, and memory on top.
- **Gradients of the weights** are sums over all samples. A program takes every `programs`-th tile, keeps its sums in
  registers, and writes them once; the partial sums are then added in a fixed order. So the result is the same every
  time, which atomic additions would not give, for one small further pass.
- **Operands.** Single precision is multiplied as such unless PyTorch has been allowed less
  (`torch.set_float32_matmul_precision("high")` allows TF32); inside `torch.autocast` operands are rounded to its half
  precision. Sums are in the type of the input always. Float16 underflows below 6e-8: with it, scale the loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import interpreted
from . import blocks

WIDEST = 128
"""Widest layer of a fused network. Beyond it a general matrix product has enough to do, and is taken."""
MOST_WEIGHTS = 1 << 15
"""Most weights, padded, of a fused network: their gradient has to fit into a program's registers."""
PROGRAMS = 256
"""Programs of a backward pass: about two for each core of a large GPU."""
OPERANDS = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


def fits(widths: Sequence[int]) -> bool:
    """Whether a network with these widths, input to output, is small enough to be fused."""
    pads = padded(widths)
    weights = sum(i * o for i, o in zip(pads, pads[1:], strict=False))
    return max(widths) <= WIDEST and weights <= MOST_WEIGHTS


def forward(
    x: Tensor, weights: Sequence[Tensor], out: Tensor, half: torch.dtype | None, count: Tensor | None = None
) -> None:
    """Fills out [N, last width]; rows from `count` on are left as they are."""
    n = x.shape[0]
    if n == 0:
        return
    widths = (x.shape[1], *(w.shape[0] for w in weights))
    wide = max(padded(widths)) > 64
    block = 64 if wide or x.dtype == torch.float64 else 128
    _forward_kernel[(blocks(n, block),)](
        x, tuple(weights), out, count, n,
        WIDTHS=widths, PADS=padded(widths), LAYERS=len(weights), **_operands(half or x.dtype),
        PRECISION=product_precision(x), BLOCK=block, num_warps=8 if wide else 4,
    )  # fmt: skip


def backward(
    x: Tensor,
    weights: Sequence[Tensor],
    d_out: Tensor,
    d_x: Tensor | None,
    half: torch.dtype | None,
    count: Tensor | None = None,
) -> list[Tensor]:
    """Gradients of the weights; fills d_x [N, in] where it is given."""
    n = x.shape[0]
    if n == 0:
        return [torch.zeros_like(w) for w in weights]
    widths = (x.shape[1], *(w.shape[0] for w in weights))
    pads = padded(widths)
    sizes = [i * o for i, o in zip(pads, pads[1:], strict=False)]
    block, total = 64, sum(sizes)
    programs = min(blocks(n, block), PROGRAMS)
    partial = torch.empty((programs, total), dtype=x.dtype, device=x.device)
    _backward_kernel[(programs,)](
        x, tuple(weights), d_out, d_x, partial, count, n, programs,
        WIDTHS=widths, PADS=pads, LAYERS=len(weights), **_operands(half or x.dtype),
        PRECISION=product_precision(x), BLOCK=block, num_warps=16 if total > 1 << 14 else 8 if total > 1 << 12 else 4,
        num_stages=1,  # Prefetching weights, which the loop reads again and again, would only fill shared memory.
    )  # fmt: skip
    parts = partial.sum(dim=0).split(sizes)
    return [
        part.view(o, i)[: w.shape[0], : w.shape[1]].contiguous()
        for part, w, i, o in zip(parts, weights, pads, pads[1:], strict=False)
    ]


def padded(widths: Sequence[int]) -> tuple[int, ...]:
    return tuple(max(16, triton.next_power_of_2(w)) for w in widths)


def _operands(dtype: torch.dtype) -> dict[str, object]:
    """The type that operands are rounded to, and the one in which they are multiplied: the same, but under Triton's
    interpreter, which multiplies the bits of a bfloat16. There, rounded operands are multiplied in single precision."""
    rounded = OPERANDS[dtype]
    return {"OPERAND": rounded, "FACTOR": tl.float32 if dtype == torch.bfloat16 and interpreted() else rounded}


def product_precision(x: Tensor) -> str:
    if x.dtype == torch.float64:
        return "ieee"
    if torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    # Products of three TF32 parts are as exact as those of single precision, and NVIDIA's matrix units do them; in true
    # single precision they would be done by the vector units, out of registers that there are too few of.
    return "tf32x3" if torch.version.cuda else "ieee"


@triton.jit
def _rows(matrix, row, live, WIDTH: tl.constexpr, PAD: tl.constexpr):
    """Rows of a matrix, padded with zeros."""
    column = tl.arange(0, PAD)[None, :]
    return tl.load(matrix + row * WIDTH + column, mask=live & (column < WIDTH), other=0.0)


@triton.jit
def _zeros(OUT: tl.constexpr, IN: tl.constexpr, dtype: tl.constexpr):
    # Triton 3.6 takes no element of a tuple for a shape, save through a function's argument.
    return tl.zeros([OUT, IN], dtype)


@triton.jit
def _layer(
    h, weight, IN: tl.constexpr, OUT: tl.constexpr, PAD_IN: tl.constexpr, PAD_OUT: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """h W^T."""
    i = tl.arange(0, PAD_IN)[:, None]
    o = tl.arange(0, PAD_OUT)[None, :]
    w = tl.load(weight + o * IN + i, mask=(i < IN) & (o < OUT), other=0.0)
    return tl.dot(h, w.to(OPERAND).to(h.dtype), input_precision=PRECISION)


@triton.jit
def _back(
    dy, weight, IN: tl.constexpr, OUT: tl.constexpr, PAD_IN: tl.constexpr, PAD_OUT: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dy W."""
    i = tl.arange(0, PAD_IN)[None, :]
    o = tl.arange(0, PAD_OUT)[:, None]
    w = tl.load(weight + o * IN + i, mask=(i < IN) & (o < OUT), other=0.0)
    return tl.dot(dy, w.to(OPERAND).to(dy.dtype), input_precision=PRECISION)


@triton.jit
def _forward_kernel(
    x, weights, out, count, n,
    WIDTHS: tl.constexpr, PADS: tl.constexpr, LAYERS: tl.constexpr, OPERAND: tl.constexpr, FACTOR: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if count is not None:
        n = tl.minimum(n, tl.load(count))
    begin = tl.program_id(0).to(tl.int64) * BLOCK
    if begin >= n:
        return
    row = begin + tl.arange(0, BLOCK)[:, None]
    live = row < n
    h = _rows(x, row, live, WIDTHS[0], PADS[0])
    for i in tl.static_range(LAYERS):
        h = h.to(OPERAND).to(FACTOR)
        h = _layer(h, weights[i], WIDTHS[i], WIDTHS[i + 1], PADS[i], PADS[i + 1], OPERAND, PRECISION)
        if i + 1 < LAYERS:
            h = tl.maximum(h, 0.0)
    column = tl.arange(0, PADS[LAYERS])[None, :]
    tl.store(out + row * WIDTHS[LAYERS] + column, h, mask=live & (column < WIDTHS[LAYERS]))


@triton.jit
def _backward_kernel(
    x, weights, d_out, d_x, partial, count, n, programs,
    WIDTHS: tl.constexpr, PADS: tl.constexpr, LAYERS: tl.constexpr, OPERAND: tl.constexpr, FACTOR: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if count is not None:
        n = tl.minimum(n, tl.load(count))
    sums = ()
    for i in tl.static_range(LAYERS):
        sums = sums + (_zeros(PADS[i + 1], PADS[i], x.dtype.element_ty),)
    for tile in range(tl.program_id(0), tl.cdiv(n, BLOCK), programs):
        row = tl.cast(tile, tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
        live = row < n
        h = _rows(x, row, live, WIDTHS[0], PADS[0]).to(OPERAND).to(FACTOR)
        inputs = (h,)  # of each layer
        for i in tl.static_range(LAYERS - 1):
            h = _layer(h, weights[i], WIDTHS[i], WIDTHS[i + 1], PADS[i], PADS[i + 1], OPERAND, PRECISION)
            h = tl.maximum(h, 0.0).to(OPERAND).to(FACTOR)
            inputs = inputs + (h,)
        dy = _rows(d_out, row, live, WIDTHS[LAYERS], PADS[LAYERS]).to(OPERAND).to(FACTOR)
        products = ()
        for step in tl.static_range(LAYERS):
            h = inputs[LAYERS - 1 - step]
            products = (tl.dot(tl.trans(dy), h, input_precision=PRECISION),) + products
            if step + 1 < LAYERS:
                dh = _back(
                    dy, weights[LAYERS - 1 - step], WIDTHS[LAYERS - 1 - step], WIDTHS[LAYERS - step],
                    PADS[LAYERS - 1 - step], PADS[LAYERS - step], OPERAND, PRECISION,
                )  # fmt: skip
                dy = tl.where(h > 0, dh, 0.0).to(OPERAND).to(FACTOR)
        if d_x is not None:
            dh = _back(dy, weights[0], WIDTHS[0], WIDTHS[1], PADS[0], PADS[1], OPERAND, PRECISION)
            column = tl.arange(0, PADS[0])[None, :]
            tl.store(d_x + row * WIDTHS[0] + column, dh, mask=live & (column < WIDTHS[0]))
        added = ()
        for i in tl.static_range(LAYERS):
            added = added + (sums[i] + products[i],)
        sums = added
    size = 0
    for i in tl.static_range(LAYERS):
        size += PADS[i] * PADS[i + 1]
    into = partial + tl.program_id(0).to(tl.int64) * size
    for i in tl.static_range(LAYERS):
        row = tl.arange(0, PADS[i + 1])[:, None]
        tl.store(into + row * PADS[i] + tl.arange(0, PADS[i])[None, :], sums[i])
        into += PADS[i] * PADS[i + 1]
