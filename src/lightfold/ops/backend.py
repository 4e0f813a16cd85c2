"""Which code runs an op: the native kernels for tensors of the CPU, Triton's for those of a GPU, or the plain PyTorch
reference, where it is asked for and on devices that Triton does not know."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

log = logging.getLogger(__name__)

WAYS = ("native", "reference", "triton")
TRITON_DEVICES = ("cuda", "xpu")
"""PyTorch's names of the devices that Triton compiles for; ROCm's GPUs call themselves "cuda" too."""

OLDEST_TRITON = (3, 4)
"""Before it, a kernel could not take the widths of its network as a constant tuple."""

_wanted = "native"
_noted: set[str] = set()
_core: ModuleType | None = None
_threads = 0
_own_threads = 0
_inside = 0
_counting = threading.Lock()


@contextmanager
def use(name: str) -> Iterator[None]:
    """`with ops.use("reference"):` runs the slow and obvious PyTorch version of every op. "native" is the default: the
    tensors' device decides. "triton" runs the kernels of GPUs on tensors of the CPU too, under Triton's interpreter.
    """
    global _wanted
    if name not in WAYS:
        raise ValueError(f"name: expected 'native', 'reference' or 'triton', got {name!r}")
    before, _wanted = _wanted, name
    try:
        yield
    finally:
        _wanted = before


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
    return _wanted == "reference"


def route(name: str, *tensors: Tensor) -> str:
    """Which code runs op `name` on these tensors, which must be on one device: "native", "triton" or "reference"."""
    if reference_wanted():
        return "reference"
    device = tensors[0].device
    for t in tensors:
        if t.device != device:
            raise ValueError(f"{name}: expected tensors on one device, got {device} and {t.device}")
    if device.type == "cpu":
        if _wanted != "triton":
            return "native"
        if not interpreted():
            raise RuntimeError(
                f"{name}: Triton runs tensors of the CPU under its interpreter only; set TRITON_INTERPRET=1 before "
                "Python starts, or move the tensors to a GPU"
            )
        return "triton"
    if device.type == "meta":
        return "native"  # which refuses it: a tensor without memory has nothing to compute with
    lacking = triton_lacks(device.type)
    if lacking is None:
        return "triton"
    if device.type not in _noted:
        _noted.add(device.type)
        log.warning("Ops on '%s' run as plain PyTorch, which is slow: %s.", device.type, lacking)
    return "reference"


def interpreted() -> bool:
    """Whether Triton is here and interprets kernels, on the CPU, instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None


def triton_lacks(device: str) -> str | None:
    """Why Triton's kernels cannot run on a type of device, as half a sentence; None where they can."""
    if device not in TRITON_DEVICES:
        return f"Triton has no kernels for '{device}'"
    if find_spec("triton") is None:
        return 'Triton is not installed (`pip install "lightfold[gpu]"`)'
    found = triton_version()
    if found is not None and tuple(int(n) for n in re.findall(r"\d+", found)[:2]) < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return f"Triton {found} does not compile the kernels: {oldest} does, which comes with PyTorch 2.8"
    return None


def triton_version() -> str | None:
    """Of the package that brings Triton: PyTorch's builds for other makers' GPUs have it under names of their own."""
    for name in ("triton", "pytorch-triton-rocm", "triton-rocm", "pytorch-triton-xpu", "triton-xpu", "triton-windows"):
        with suppress(PackageNotFoundError):
            return version(name)
    return None


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
    """Native kernel `name` for the first tensor's type. All tensors must be contiguous, on the CPU, of one type."""
    for t in tensors:
        if t.device.type != "cpu":
            raise RuntimeError(
                f"{name}: there are no kernels for device '{t.device}'; move the tensors to the CPU or a GPU"
            )
    _check(name, *tensors)
    return getattr(core(), name + ("_f32" if tensors[0].dtype == torch.float32 else "_f64"))


def gpu(name: str, *tensors: Tensor) -> ModuleType:
    """The Triton kernels of op `name`, for contiguous tensors of one type."""
    _check(name, *tensors)
    device = tensors[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        raise RuntimeError(
            f"{name}: Triton launches on the current device, and the tensors are on '{device}'; call "
            f"`torch.cuda.set_device({device.index})` first"
        )
    return import_module(f".triton.{name}", __package__)


def _check(name: str, *tensors: Tensor) -> None:
    dtype = tensors[0].dtype
    for t in tensors:
        if t.dtype != dtype:
            raise ValueError(f"{name}: expected tensors of one type, got {dtype} and {t.dtype}")
        if not t.is_contiguous():
            raise ValueError(
                f"{name}: expected contiguous tensors, got strides {t.stride()} for shape {tuple(t.shape)}"
            )
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name}: expected float32 or float64, got {dtype}")


def half_type(like: Tensor) -> torch.dtype | None:
    """float16 or bfloat16 inside `torch.autocast` for the device of a single-precision tensor: what networks then
    multiply, and kernels of a GPU read tables as. None outside."""
    device = like.device.type
    if like.dtype != torch.float32 or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def in_pairs(like: Tensor) -> bool:
    """Whether native kernels multiply networks in pairs of bfloat16 (csrc/half.h). They know no float16, and then stay
    in single precision."""
    return half_type(like) == torch.bfloat16


def bfloat16_pays(device: torch.device) -> bool:
    """Whether networks are multiplied faster in bfloat16 than in single precision there.

    They are on GPUs that have it, and on processors with instructions for it. Others compute the same, and no faster.
    """
    if device.type == "cpu":
        return core().isa() == "avx512bf16"
    # Older cards of NVIDIA take bfloat16, and emulate it.
    newer = device.type != "cuda" or torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8
    return device.type in TRITON_DEVICES and newer


def refuse_second_order(name: str) -> None:
    """Raise inside a backward pass that is itself to be differentiated: the native gradients are constants to autograd,
    and counting their derivative as zero would train a wrong model in silence."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"{name}: second derivatives are not available here; use `ops.use('reference')`")


def exact(device: torch.device) -> torch.device:
    """Where to compute what needs double precision, for this device: there, or on the CPU, as not every GPU has it."""
    lacks = device.type == "mps" or (device.type == "xpu" and not torch.xpu.get_device_properties(device).has_fp64)
    return torch.device("cpu") if lacks else device


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Memory for an output. Under test it is filled with NaN, so that an element nobody wrote cannot pass."""
    if os.environ.get("LIGHTFOLD_POISON"):
        return torch.full(shape, float("nan"), dtype=like.dtype, device=like.device)
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def native_info() -> dict[str, object]:
    """What the kernels run on: instruction set in use, those this machine has, threads."""
    module = core()
    return {"isa": module.isa(), "available": module.isas(), "threads": module.threads()}
