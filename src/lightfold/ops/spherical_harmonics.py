"""Real spherical harmonics of bands 0 to 3: how a small network is told the viewing direction."""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import empty, gpu, kernel, route


def spherical_harmonics(direction: Tensor) -> Tensor:
    """direction [N, 3], unit -> [N, 16], in tiny-cuda-nn's order and signs. Not differentiable natively.

    The values are those of the unit vector itself. (tiny-cuda-nn takes (d + 1) / 2 and maps it back inside; feeding it
    d evaluates the functions at 2 d - 1, a mistake that several ports contain.)
    """
    if direction.ndim != 2 or direction.shape[1] != 3:
        raise ValueError(f"direction: expected shape [N, 3], got {tuple(direction.shape)}")
    way = route("spherical_harmonics", direction)
    if way == "reference" or direction.requires_grad:
        return spherical_harmonics_reference(direction)
    direction = direction.contiguous()
    out = empty((direction.shape[0], 16), direction)
    if way == "triton":
        gpu("spherical_harmonics", direction).spherical_harmonics(direction, out)
    else:
        kernel("spherical_harmonics", direction)(direction.data_ptr(), direction.shape[0], out.data_ptr())
    return out


def spherical_harmonics_reference(direction: Tensor) -> Tensor:
    """`spherical_harmonics` in plain PyTorch, differentiable."""
    x, y, z = direction.unbind(-1)
    return torch.stack(
        [
            torch.full_like(x, 0.28209479177387814),
            -0.48860251190291987 * y,
            0.48860251190291987 * z,
            -0.48860251190291987 * x,
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.94617469575755997 * z * z - 0.31539156525251999,
            -1.0925484305920792 * x * z,
            0.54627421529603959 * (x * x - y * y),
            0.59004358992664352 * y * (-3.0 * x * x + y * y),
            2.8906114426405538 * x * y * z,
            0.45704579946446572 * y * (1.0 - 5.0 * z * z),
            0.3731763325901154 * z * (5.0 * z * z - 3.0),
            0.45704579946446572 * x * (1.0 - 5.0 * z * z),
            1.4453057213202769 * z * (x * x - y * y),
            0.59004358992664352 * x * (-x * x + 3.0 * y * y),
        ],
        dim=-1,
    )
