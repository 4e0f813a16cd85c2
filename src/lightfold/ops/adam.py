"""Adam (Kingma and Ba 2015), in place, clearing the gradient as it is read.

With `sparse`, a value whose gradient is exactly zero keeps its value and moments, as instant-ngp does for its table:
most rows of a hash table are touched by few steps, and decaying their moments in between would only cost time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import gpu, kernel, route


def adam_(
    value: Tensor,
    gradient: Tensor,
    first: Tensor | None,
    second: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-15,
    weight_decay: float = 0.0,
    sparse: bool = False,
    touched: Tensor | None = None,
    rates: Tensor | None = None,
) -> None:
    """Update `value` and both moments, all of one shape, and set `gradient` to zero.

    Without momentum, where betas[0] is 0, there is no first moment and `first` is None. `step` counts from 1.
    `touched` (uint8, one byte for every 16 values, as `train_rays` fills it) names the lines that can hold a gradient;
    others are not even read, and its bytes are cleared. It requires `sparse`.

    `rates`, which native kernels do not take, are those of `corrected` on the device, of the values' type: read there
    instead of `step` and `lr`, so that a recorded launch finds those of its step.
    """
    if step < 1:
        raise ValueError(f"step: expected at least 1, got {step}")
    if (first is None) != (betas[0] == 0):
        raise ValueError(f"first: expected None with betas[0] = 0, and only then, got betas {betas}")
    moments = {"second": second} if first is None else {"first": first, "second": second}
    for name, t in {"gradient": gradient, **moments}.items():
        if t.shape != value.shape:
            raise ValueError(f"{name}: expected shape {tuple(value.shape)}, got {tuple(t.shape)}")
    if touched is not None:
        lines = (value.numel() + 15) // 16
        if not sparse or touched.dtype != torch.uint8 or touched.numel() != lines:
            raise ValueError(
                f"touched: expected uint8 [{lines}] and sparse=True, got {touched.dtype} {tuple(touched.shape)}"
            )
    marks = () if touched is None else (touched,)
    way = route("adam", value, gradient, *moments.values(), *marks)
    if rates is not None and (way == "native" or rates.shape != (2,) or rates.dtype != value.dtype):
        raise ValueError(f"rates: expected None, or {value.dtype} [2] on a GPU, got {rates.dtype} {tuple(rates.shape)}")
    if way == "reference":
        numbers = corrected(step, lr, betas) if rates is None else (rates[0], rates[1])
        adam_reference_(value, gradient, first, second, numbers, betas, eps, weight_decay, sparse)
        if touched is not None:
            touched.zero_()
        return
    if way == "triton":
        gpu("adam", value, gradient, *moments.values()).adam_(
            value,
            gradient,
            first,
            second,
            step=step,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            sparse=sparse,
            touched=touched,
            rates=rates,
        )
        return
    kernel("adam", value, gradient, *moments.values())(
        value.data_ptr(),
        gradient.data_ptr(),
        0 if first is None else first.data_ptr(),
        second.data_ptr(),
        value.numel(),
        step,
        lr,
        *betas,
        eps,
        weight_decay,
        sparse,
        0 if touched is None else touched.data_ptr(),
    )


def corrected(step: int, lr: float, betas: tuple[float, float]) -> tuple[float, float]:
    """The learning rate over the bias of the first moment, and one over that of the second: what a step counts for."""
    return lr / (1 - betas[0] ** step), 1 / (1 - betas[1] ** step)


def adam_reference_(
    value: Tensor,
    gradient: Tensor,
    first: Tensor | None,
    second: Tensor,
    rates: tuple[float, float] | tuple[Tensor, Tensor],
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    sparse: bool,
) -> None:
    """`adam_` in plain PyTorch; rates as from `corrected`."""
    live = gradient != 0 if sparse else torch.ones_like(gradient, dtype=torch.bool)
    full = gradient + weight_decay * value
    m = full if first is None else torch.where(live, first + (1 - betas[0]) * (full - first), first)
    v = torch.where(live, second + (1 - betas[1]) * (full * full - second), second)
    rate, root = rates
    change = rate * m / ((v * root).sqrt() + eps)
    value.copy_(torch.where(live, value - change, value))
    if first is not None:
        first.copy_(m)
    second.copy_(v)
    gradient.zero_()
