"""Small fully connected networks without biases, ReLU between the layers and nothing after the last.

Weights W_l have shape [width_{l+1}, width_l]: h_0 = x, h_{l+1} = relu(W_l h_l), out = W_{last} h_last. Hash-grid
methods use widths of 16 to 64, where a general matrix product spends its time on overhead; here a tile of samples
passes through all layers without leaving the first-level cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .backend import empty, gpu, half_type, in_pairs, kernel, refuse_second_order, route


def mlp(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """x [N, in], weights [[h1, in], [h2, h1], ..., [out, h]] -> [N, out]. Differentiable once in all of them.

    On a GPU, operands of the products are rounded as `torch.autocast` and `torch.set_float32_matmul_precision` allow;
    networks that are too large for a fused kernel run as PyTorch's matrix products there.
    """
    if x.ndim != 2:
        raise ValueError(f"x: expected shape [N, in], got {tuple(x.shape)}")
    if not 1 <= len(weights) <= 8:
        raise ValueError(f"weights: expected 1 to 8 layers, got {len(weights)}")
    width = x.shape[1]
    for i, w in enumerate(weights):
        if w.ndim != 2 or w.shape[1] != width:
            raise ValueError(f"weights[{i}]: expected shape [*, {width}], got {tuple(w.shape)}")
        width = w.shape[0]
    way = route("mlp", x, *weights)
    if way == "triton" and not gpu("mlp", x.contiguous(), *weights).fits([x.shape[1], *(w.shape[0] for w in weights)]):
        way = "reference"
    if way == "reference":
        return mlp_reference(x, weights)
    return _MLP.apply(way, x.contiguous(), *weights)


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, way: str, x: Tensor, *weights: Tensor) -> Tensor:
        widths = [x.shape[1], *(w.shape[0] for w in weights)]
        out = empty((x.shape[0], widths[-1]), x)
        if way == "triton":
            ctx.half = half_type(x)
            gpu("mlp", x, *weights).forward(x, weights, out, ctx.half)
        else:
            ctx.half = in_pairs(x)
            run, pointers = kernel("mlp", x, *weights), [w.data_ptr() for w in weights]
            run(widths, pointers, ctx.half, x.data_ptr(), x.shape[0], out.data_ptr())
        ctx.save_for_backward(x, *weights)
        ctx.widths, ctx.way = widths, way
        return out

    @staticmethod
    def backward(ctx, d_out: Tensor):
        refuse_second_order("mlp")
        x, *weights = ctx.saved_tensors
        d_out = d_out.contiguous()
        d_x = empty(tuple(x.shape), x) if ctx.needs_input_grad[1] else None
        if ctx.way == "triton":
            return None, d_x, *gpu("mlp", x, d_out, *weights).backward(x, weights, d_out, d_x, ctx.half)
        d_weights = [torch.zeros_like(w) for w in weights]
        kernel("mlp_backward", x, d_out, *weights)(
            ctx.widths,
            [w.data_ptr() for w in weights],
            ctx.half,
            x.data_ptr(),
            x.shape[0],
            d_out.data_ptr(),
            [d.data_ptr() for d in d_weights],
            0 if d_x is None else d_x.data_ptr(),
        )
        return None, d_x, *d_weights


def mlp_reference(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """`mlp` in plain PyTorch."""
    for w in weights[:-1]:
        x = torch.relu(x @ w.T)
    return x @ weights[-1].T
