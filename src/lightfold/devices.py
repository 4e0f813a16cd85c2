"""Which device computes: what PyTorch sees, which of it is taken, and how the host works beside it without waiting.

A GPU is taken where PyTorch sees one that Triton has kernels for; otherwise the CPU, for which the native kernels are.
MPS is taken only when it is asked for: ops run there as plain PyTorch, which is slower than the CPU's own kernels.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from .errors import ConfigError
from .ops.backend import TRITON_DEVICES, bfloat16_pays, triton_lacks
from .ops.backend import exact as exact

CPU = torch.device("cpu")
KINDS = ("cuda", "xpu", "mps")
"""PyTorch's names of the GPUs of NVIDIA and AMD, of Intel, and of Apple."""
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
OutOfMemory = torch.cuda.OutOfMemoryError
"""What PyTorch raises when a device has no memory left, whatever its maker."""
_recorder: int | None = None
"""The thread that records a step, if one does."""
LAG = 4
"""Steps that the host may be ahead of a GPU: by then counts and losses have arrived, and reading is not waiting."""


# -------------------------------------------------------------------------------------------------------- which of them


def check_name(name: str) -> None:
    """Raises ConfigError unless `name` is one that a device can have, whether it exists here or not."""
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d{1,3})?", name):
        raise ConfigError(f"There is no device called '{name}'; known are auto, cpu, cuda, cuda:1, xpu and mps.")


def choose(name: str = "auto", place: int | None = None) -> torch.device:
    """The device that a name stands for.

    place: which process of this machine this is, where several share the work: each has a GPU of its own.
    Raises ConfigError, in one sentence, for a device that does not exist here.
    """
    check_name(name)
    kind, _, number = name.partition(":")
    if kind == "auto":
        kind = next((k for k in TRITON_DEVICES if count(k) and triton_lacks(k) is None), "cpu")
    if kind == "cpu":
        return CPU
    present = count(kind)
    if not present:
        raise ConfigError(f"PyTorch sees no '{kind}' device here ({_why_not(kind)}); use --device cpu.")
    if kind == "mps":
        return torch.device("mps", 0)
    if place is not None and number:
        raise ConfigError(f"Each of several processes takes a GPU of its own; say --device {kind}, without a number.")
    index = int(number or place or 0)
    if index >= present:
        if place is not None:
            raise ConfigError(f"This machine has {present} GPU(s), too few for {place + 1} processes; start fewer.")
        raise ConfigError(f"There is no device {name}; PyTorch sees {present} of that kind, counted from 0.")
    return torch.device(kind, index)


def count(kind: str) -> int:
    """Devices of a kind that PyTorch sees."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = getattr(torch, kind, None)
    return int(module.device_count()) if module is not None and module.is_available() else 0


def _why_not(kind: str) -> str:
    """Half a sentence: why PyTorch sees no device of a kind."""
    built = {"cuda": torch.version.cuda or torch.version.hip, "mps": torch.backends.mps.is_built()}
    if not built.get(kind, True):
        return f"this build of PyTorch, {torch.__version__}, is without it"
    return "no such GPU, or no driver for it"


def present() -> list[torch.device]:
    """The CPU, and every GPU that PyTorch sees."""
    numbered = [torch.device(kind, i) for kind in TRITON_DEVICES for i in range(count(kind))]
    return [CPU, *numbered, *([torch.device("mps", 0)] if count("mps") else [])]


def title(device: torch.device) -> str:
    """Name for a record or a person: "cpu", "cuda:0 (NVIDIA H200)"."""
    if device.type in TRITON_DEVICES:
        return f"{device} ({getattr(torch, device.type).get_device_name(device)})"
    return "mps (Apple GPU)" if device.type == "mps" else device.type


def driver() -> str | None:
    """The version of NVIDIA's driver, as its own tool tells it; None elsewhere."""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.strip().splitlines()[0]
    return None


# ------------------------------------------------------------------------------------------------------------ precision


def half_type(precision: str, device: torch.device) -> torch.dtype | None:
    """What networks multiply, and a GPU reads tables in: None for single precision.

    "auto" is bfloat16 where that is faster, and single precision elsewhere. Raises ConfigError for half precision on a
    device whose kernels have none.
    """
    if precision == "auto":
        return torch.bfloat16 if bfloat16_pays(device) else None
    half = PRECISIONS[precision]
    if half is torch.bfloat16 and device.type == "cpu":
        return half
    if half is not None and device.type not in TRITON_DEVICES:
        raise ConfigError(f"The kernels of '{device.type}' do not compute in {precision}; leave --precision out.")
    return half


# ------------------------------------------------------------------------------------------------ beside a busy device


def use(device: torch.device) -> None:
    """Let kernels start on this device, in this thread."""
    if device.type in TRITON_DEVICES:
        getattr(torch, device.type).set_device(device)


@contextmanager
def current(device: torch.device) -> Iterator[None]:
    """Inside, kernels start on this device: a thread begins with the first, whatever the one that started it uses."""
    with getattr(torch, device.type).device(device) if device.type in TRITON_DEVICES else nullcontext():
        yield


def synchronize(device: torch.device) -> None:
    """Wait until all that was started there is done."""
    if device.type in KINDS:
        getattr(torch, device.type).synchronize()


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on another device, without waiting for what that still computes."""
    if tensor.device == device:
        return tensor
    if _recorder == get_ident():
        raise RuntimeError("a step that is recorded sends something from the host")
    if tensor.device.type == "cpu" and device.type in TRITON_DEVICES:
        # Only from memory that cannot be paged out does a copy happen beside everything else.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def constant(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU that never changes, on a device: sent once, and kept there as long as it is here."""
    if tensor.device == device:
        return tensor
    places: dict[torch.device, Tensor] = tensor.__dict__.setdefault("places", {})
    if device not in places:
        places[device] = sent(tensor, device)
    return places[device]


def fetched(tensor: Tensor) -> Tensor:
    """A tensor on the CPU. From a GPU it is on its way there: `synchronize` before it is read."""
    if tensor.device.type not in TRITON_DEVICES:
        return tensor.cpu()
    # Into memory that cannot be paged out, which is several times as fast, and kept by PyTorch for the next.
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def number(value: Tensor) -> float | Tensor:
    """A statistic of a step: a number; or, on a GPU, the tensor that will hold it, as to read it would be to wait."""
    value = value.detach()
    return value if value.device.type in TRITON_DEVICES else float(value)


def memory(device: torch.device) -> int | None:
    """Bytes that a GPU has in all; None for the CPU, and where the system does not say."""
    if device.type in TRITON_DEVICES:
        return int(getattr(torch, device.type).get_device_properties(device).total_memory)
    return int(torch.mps.recommended_max_memory()) if device.type == "mps" else None


SIZES = (1.0, 0.5, 0.25, 0.125)
"""How large GPUs are, beside one of 132 multiprocessors (an H100), for which the numbers in `Method.ON_GPU` are."""


def size(device: torch.device) -> float:
    """The one of SIZES that a GPU has: a smaller batch fills a small one."""
    if device.type not in TRITON_DEVICES:
        return 1.0
    about = getattr(torch, device.type).get_device_properties(device)
    cores = getattr(about, "multi_processor_count", 0) or getattr(about, "gpu_subslice_count", 0) or 132
    return min(SIZES, key=lambda size: abs(math.log2(cores / 132 / size)))


def peak_memory(device: torch.device) -> int | None:
    """The most bytes of a GPU that tensors have taken so far; None elsewhere."""
    if device.type not in TRITON_DEVICES:
        return None
    return int(getattr(torch, device.type).max_memory_allocated(device))


def release(device: torch.device) -> None:
    """Give memory back that is kept for tensors to come."""
    if device.type != "cpu":
        getattr(torch, device.type).empty_cache()


class Reports:
    """Numbers of each step, for the host: at once, or on a GPU some steps late, so that it never waits for them.

    A copy into memory of the host is started behind the step; when it is read, LAG steps later, it has long arrived.
    Always the same lag, so that what follows from the numbers does not depend on how fast anything is.
    """

    def __init__(self, device: torch.device, late: bool = True) -> None:
        self.lag = LAG if late and device.type in TRITON_DEVICES else 0
        self._device = device
        self._sent: deque[Callable[[], dict[str, float]]] = deque()
        self._last: dict[str, float] | None = None

    def turn(self, values: dict[str, float | Tensor]) -> dict[str, float]:
        """Send a step's numbers, and take those of LAG steps ago; in the first steps those of the first."""
        if self._device.type not in TRITON_DEVICES:
            return {name: float(v) if isinstance(v, Tensor) else v for name, v in values.items()}
        self._sent.append(self._start(values))
        while self._last is None or len(self._sent) > self.lag:
            self._last = self._sent.popleft()()
        return self._last

    def forget(self) -> None:
        """Pass over the numbers that are on their way."""
        self._sent.clear()
        self._last = None

    def _start(self, values: dict[str, float | Tensor]) -> Callable[[], dict[str, float]]:
        there = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        if not there:
            return lambda: {name: float(value) for name, value in values.items()}
        together = torch.stack([value.detach().reshape(()).float() for value in there.values()])
        here = torch.empty(len(there), pin_memory=True)
        here.copy_(together, non_blocking=True)
        arrived = getattr(torch, self._device.type).Event()
        arrived.record()

        def read() -> dict[str, float]:
            arrived.synchronize()
            numbers = values | dict(zip(there, here.tolist(), strict=True))
            return {name: float(value) for name, value in numbers.items()}

        return read


# ----------------------------------------------------------------------------------------------- launches that are kept


def graphs(device: torch.device) -> Callable[[], Any] | None:
    """What makes the graph in which launches on a device are recorded; None where PyTorch has none for it."""
    if device.type == "cuda":
        return torch.cuda.CUDAGraph
    return torch.xpu.XPUGraph if device.type == "xpu" and hasattr(torch.xpu, "XPUGraph") else None


@contextmanager
def recording(graph: Any, pool: Any, chance: torch.Generator | None) -> Iterator[None]:
    """What this thread launches inside is recorded in a graph, and not carried out. Numbers from `chance` are new ones
    each time that the graph is launched."""
    global _recorder
    if chance is not None:
        if not hasattr(graph, "register_generator_state"):
            raise RuntimeError("graphs of this PyTorch take no random numbers")
        graph.register_generator_state(chance)
    # Left to itself, PyTorch also forbids what other threads do at the same time; they may be rendering a picture.
    alone = {"capture_error_mode": "thread_local"} if isinstance(graph, torch.cuda.CUDAGraph) else {}
    graph.capture_begin(pool=pool, **alone)
    _recorder = get_ident()
    try:
        yield
    except BaseException:
        with suppress(RuntimeError):
            graph.capture_end()
        raise
    finally:
        _recorder = None
    graph.capture_end()


def graph_pool(device: torch.device) -> Any:
    """Memory that recordings share, as no two of them run at a time; None for what has no graphs."""
    return getattr(torch, device.type).graph_pool_handle() if graphs(device) is not None else None


class Compilations:
    """Counts what Triton compiles inside `with`, and for how long: kernels that its cache has are none.

    begun: called when the first is compiled.
    """

    def __init__(self, begun: Callable[[], object] = lambda: None) -> None:
        self._begun = begun
        self.kernels = 0
        self.seconds = 0.0
        self._listeners: Any = None

    def __enter__(self) -> Compilations:
        with suppress(ImportError, AttributeError):  # No Triton, or one that does not tell.
            self._listeners = import_module("triton.knobs").compilation
            self._before = self._listeners.listener
            self._listeners.listener = self._heard
        return self

    def __exit__(self, *_: object) -> None:
        if self._listeners is not None:
            self._listeners.listener = self._before

    def _heard(self, *, times: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            if self.kernels == 0:
                self._begun()
            self.kernels += 1
            self.seconds += times.total / 1e6


@contextmanager
def apart(device: torch.device) -> Iterator[None]:
    """Inside, launches go to a stream of their own: the one that is there without asking cannot be recorded."""
    if device.type not in TRITON_DEVICES:
        yield
        return
    module = getattr(torch, device.type)
    stream, before = module.Stream(device), module.current_stream(device)
    stream.wait_stream(before)
    try:
        with module.stream(stream):
            yield
    finally:
        before.wait_stream(stream)


# ------------------------------------------------------------------------------------------------------- out of memory


def shortage(device: torch.device, what: str, remedy: str) -> str:
    """The sentence of somebody who gives up for lack of memory."""
    total = memory(device)
    size = "" if total is None else f" of {total / 2**30:.0f} GiB"
    return f"The memory{size} of {title(device)} does not suffice for {what}, however small; {remedy}."
