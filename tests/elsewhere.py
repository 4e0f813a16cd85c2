"""A device that is not there: tensors on it compute on the CPU, and whatever would fail on a real one raises.

Real devices do not mix: an operation on tensors of two of them is an error, which on a machine without a GPU nobody
sees. Inside `Elsewhere()` tensors may be moved to `DEVICE`: PyTorch's "meta", the one device that needs no build of its
own, whose tensors have contents here. Then an operation on a tensor there and one here raises, save for a single number
of the CPU, and so does double precision, which not every GPU has. Ops must take their plain PyTorch versions
(`ops.use("reference")`). `waits` lists what the host read from the device, for which it would have to wait.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

DEVICE = torch.device("meta")
CPU = torch.device("cpu")
READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "repeat_interleave"}
"""Operations whose result the host has to wait for: a number, or how many of something there are."""
MIXES = {"copy_", "index", "index_put", "index_put_", "_index_put_impl_"}
"""Operations that take tensors of the CPU beside those of a device: a copy, and indices into a tensor there."""


class There(Tensor):
    """A tensor on DEVICE; `here` is its content."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        shell = torch.empty_strided(here.shape, here.stride(), dtype=here.dtype, device="meta")
        made = Tensor._make_subclass(cls, shell)
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, [])

    def tolist(self) -> Any:
        """As every tensor's, which PyTorch does not give to classes of tensors."""
        return self.here.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"There({self.here!r})"


class Elsewhere(TorchDispatchMode):
    """Inside, DEVICE is there."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __enter__(self) -> Elsewhere:
        def tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
            # PyTorch's own looks at the device before anybody else can.
            made = self._tensor(data, **options)
            return made if device is None else made.to(device)

        self._tensor, torch.tensor = torch.tensor, tensor  # type: ignore[assignment]
        super().__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        torch.tensor = self._tensor
        super().__exit__(*reason)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, self.waits)


def run(func: Any, args: Any, kwargs: dict[str, Any], waits: list[str]) -> Any:
    """An operation, on the content of its tensors; its results are where theirs would be."""
    name = func.overloadpacket.__name__
    flat, shape = tree_flatten((args, kwargs))
    tensors = [value for value in flat if isinstance(value, Tensor)]
    there = [value for value in tensors if isinstance(value, There)]
    target = kwargs.get("device")
    to_there = torch.device(target).type == DEVICE.type if target is not None else bool(there)
    if there and name not in {*MIXES, "_to_copy"}:
        strangers = [t for t in tensors if not isinstance(t, There) and t.dim() > 0]
        if strangers:
            raise RuntimeError(f"{name}: a tensor on {DEVICE} met one of the CPU of shape {tuple(strangers[0].shape)}")
    if name == "index" and tensors and not isinstance(tensors[0], There) and there:
        raise RuntimeError(f"{name}: indices on {DEVICE} into a tensor of the CPU")
    chosen = [t for t in tensors[1:] if t.dtype in (torch.bool, torch.uint8)] if name in MIXES - {"copy_"} else []
    if there and (name in READS or chosen or (target is not None and not to_there)):
        waits.append(name)
    handed = {id(t.here): t for t in there}
    flat = [t.here if isinstance(t, There) else CPU if isinstance(t, torch.device) else t for t in flat]
    args, kwargs = tree_unflatten(flat, shape)
    out = func(*args, **kwargs)

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, There):
            return value
        if id(value) in handed and to_there:
            return handed[id(value)]
        if not to_there:
            return value
        if value.dtype == torch.float64:
            raise TypeError(f"{name}: {DEVICE.type} has no double precision")
        return There(value)

    return tree_map(placed, out)
