"""How the kernels of GPUs are tested: on a GPU where there is one, under Triton's interpreter otherwise."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from kernel_checks import assert_twins
from torch import Tensor

from lightfold import ops


def _device() -> torch.device:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    return torch.device("cuda" if torch.cuda.is_available() else "xpu")


DEVICE = _device()
NEEDS_TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
SIZES = pytest.mark.parametrize("n", [0, 1, 63, 300], ids="n{}".format)
"""The interpreter takes some milliseconds for a program, so these are small; none is a multiple of a block."""


@contextmanager
def kernels() -> Iterator[None]:
    """The kernels of GPUs, whatever device the tests have."""
    with ops.use("triton"):
        yield


def on_device(*values: Any) -> list[Any]:
    """Tensors on the device of the tests, as leaves that want gradients where they did; other things as they are."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().to(DEVICE).requires_grad_(value.requires_grad)
        return value

    return [move(v) for v in values]


def assert_gpu_twins(
    function: Callable[..., Tensor | tuple[Tensor, ...]], inputs: list[Tensor], slack: float = 1.0
) -> None:
    """`assert_twins` of the kernels of GPUs and the reference."""

    def there(*values: Tensor) -> tuple[Tensor, ...]:
        if values[0].dtype == torch.float64 and ops.backend.reference_wanted():
            out = function(*values)
        else:
            out = function(*(v.to(DEVICE) for v in values))
        return tuple(o.cpu() for o in (out if isinstance(out, tuple) else (out,)))

    with kernels():
        assert_twins(there, inputs, slack)
