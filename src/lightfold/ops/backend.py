"""Which code runs an op: the native kernels for CPU tensors, or the plain PyTorch reference where it is asked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

_reference = False
_core: ModuleType | None = None
_threads = 0
_own_threads = 0
_inside = 0
_counting = threading.Lock()


@contextmanager
def use(name: str) -> Iterator[None]:
    """`with ops.use("reference"):` runs the slow and obvious PyTorch version of every op; "native" is the default."""
    global _reference
    if name not in ("native", "reference"):
        raise ValueError(f"name: expected 'native' or 'reference', got {name!r}")
    before, _reference = _reference, name == "reference"
    try:
        yield
    finally:
        _reference = before


@contextmanager
def own_threads() -> Iterator[None]:
    """Inside, the kernels keep all threads and PyTorch computes with one.

    A training step's tensors are too small to share out, and PyTorch's OpenMP threads spin for a while after each
    parallel region, on the cores that the kernels want. The count is the process's, so the last of several threads to
    leave gives it back.
    """
    global _own_threads, _inside
    with _counting:
        _inside += 1
        if _inside == 1:
            _own_threads = torch.get_num_threads()
            torch.set_num_threads(1)
    try:
        yield
    finally:
        with _counting:
            _inside -= 1
            if _inside == 0:
                torch.set_num_threads(_own_threads)
                _own_threads = 0


def reference_wanted() -> bool:
    """Whether the reference was asked for with `use`."""
    return _reference


def core() -> ModuleType:
    """The extension module, with as many threads as PyTorch has now."""
    global _core, _threads
    if _core is None:
        try:
            _core = import_module("lightfold._core")
        except ImportError as error:
            raise ImportError(
                "The native kernels of lightfold are not built. Build them with `pip install .` in the repository."
            ) from error
    wanted = _own_threads or torch.get_num_threads()
    if wanted != _threads:
        _core.set_threads(wanted)
        _threads = wanted
    return _core


def kernel(name: str, *tensors: Tensor):
    """Kernel `name` for the first tensor's scalar type. All tensors must be contiguous, on the CPU, of one type."""
    dtype = tensors[0].dtype
    for t in tensors:
        if t.device.type != "cpu":
            raise RuntimeError(
                f"{name}: there are no kernels for device '{t.device}' in this version; move the model to the CPU, or "
                "run it inside `lightfold.ops.use('reference')`, which is slow"
            )
        if t.dtype != dtype:
            raise ValueError(f"{name}: expected tensors of one type, got {dtype} and {t.dtype}")
        if not t.is_contiguous():
            raise ValueError(
                f"{name}: expected contiguous tensors, got strides {t.stride()} for shape {tuple(t.shape)}"
            )
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name}: expected float32 or float64, got {dtype}")
    return getattr(core(), name + ("_f32" if dtype == torch.float32 else "_f64"))


def refuse_second_order(name: str) -> None:
    """Raise inside a backward pass that is itself to be differentiated: the native gradients are constants to autograd,
    and counting their derivative as zero would train a wrong model in silence."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"{name}: second derivatives are not available natively; use `ops.use('reference')`")


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Memory for an output. Under test it is filled with NaN, so that an element nobody wrote cannot pass."""
    if os.environ.get("LIGHTFOLD_POISON"):
        return torch.full(shape, float("nan"), dtype=like.dtype)
    return torch.empty(shape, dtype=like.dtype)


def native_info() -> dict[str, object]:
    """What the kernels run on: instruction set in use, those this machine has, threads."""
    module = core()
    return {"isa": module.isa(), "available": module.isas(), "threads": module.threads()}
