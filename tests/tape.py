"""A graph of launches that needs no GPU: what `torch.cuda.CUDAGraph` records, kept on a tape and carried out again.

It is as strict as a real one. While it records, nothing is carried out for good: what was written to is as before when
recording ends. To read something on the host raises. Afterwards `replay` repeats the same operations on the same
memory, with whatever that memory holds by then; numbers that Python had at hand are those of the recording.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from elsewhere import READS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """Stands in for `torch.cuda.CUDAGraph`, for PyTorch's operations and kernels of Triton's interpreter."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], None]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._made: dict[int, Tensor] = {}
        self._chances: list[torch.Generator] = []

    def register_generator_state(self, state: torch.Generator) -> None:
        """Recording takes no numbers from it; whoever calls an operation again gets the next."""
        self._chances.append(state)

    def capture_begin(self, pool: Any = None) -> None:
        """Record from now on."""
        from triton.runtime.interpreter import GridExecutor

        self._launch = GridExecutor.__call__
        self._states = [chance.get_state() for chance in self._chances]
        tape = self

        def launch(executor: Any, *args: Any, **kwargs: Any) -> None:
            def again() -> None:
                tape._launch(executor, *args, **kwargs)

            with _disable_current_modes():
                for tensor in tensors((args, kwargs)):
                    tape._keep(tensor)
                again()
            tape.calls.append(again)

        GridExecutor.__call__ = launch
        self.__enter__()

    def capture_end(self) -> None:
        """Put everything back as it was."""
        from triton.runtime.interpreter import GridExecutor

        self.__exit__(None, None, None)
        GridExecutor.__call__ = self._launch
        for chance, state in zip(self._chances, self._states, strict=True):
            chance.set_state(state)
        for tensor, content in self._before.values():
            tensor.untyped_storage().copy_(content.untyped_storage())

    def replay(self) -> None:
        """Everything again."""
        with torch.no_grad():
            for call in self.calls:
                call()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in READS:
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
        for given, argument in zip(args, func._schema.arguments, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tensors(given):
                    self._keep(tensor)
        for tensor in tensors(kwargs.get("out")):
            self._keep(tensor)
        out = func(*args, **kwargs)
        taken = {place(t) for t in tensors((args, kwargs))}
        fresh = [t for t in tensors(out) if place(t) not in taken]
        self._made |= {place(t): t for t in fresh}

        def again() -> None:
            found = [t for t in tensors(func(*args, **kwargs)) if place(t) not in taken]
            for tensor, value in zip(fresh, found, strict=True):
                tensor.copy_(value)

        self.calls.append(again)
        return out

    def _keep(self, tensor: Tensor) -> None:
        """Remember what is there before somebody writes to it."""
        if place(tensor) not in self._made and place(tensor) not in self._before:
            with _disable_current_modes():
                whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                self._before[place(tensor)] = whole, whole.clone()


def place(tensor: Tensor) -> int:
    """Where a tensor's memory is."""
    return tensor.untyped_storage().data_ptr()


def tensors(values: Any) -> Iterator[Tensor]:
    """Those among nested arguments that have memory."""
    return (v for v in tree_leaves(values) if isinstance(v, Tensor) and v.numel())
