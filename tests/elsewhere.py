"""A device that is not there: tensors on it compute on the CPU, and whatever would fail on a real one raises.

Real devices do not mix: an operation on tensors of two of them is an error, which on a machine without a GPU nobody
sees. Inside `Elsewhere()` tensors may be moved to `DEVICE`: PyTorch's "meta", the one device that needs no build of its
own, whose tensors have contents here. Then an operation on a tensor there and one here raises, save for a single number
of the CPU, and so does double precision, which not every GPU has. Ops must take their plain PyTorch versions
(`ops.use("reference")`). `waits` lists every operation for which the host would have to wait for the device, with the
line that asked for it: whatever it reads there, and whatever it sends from memory that can be paged out, as lists of
numbers are, for PyTorch then waits until the copy is made. `pin_memory` marks memory that cannot be. `sends` lists all
that was sent there, waited for or not.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

DEVICE = torch.device("meta")
CPU = torch.device("cpu")
SOURCE = str(Path(__file__).parents[1] / "src")
READS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
    "repeat_interleave", "equal", "allclose", "_linalg_check_errors",
}  # fmt: skip
"""Operations whose result the host has to wait for: a number, or how many of something there are."""
SENDS = {"index", "index_put", "index_put_", "_index_put_impl_", "where"}
"""Operations that send what they get of the CPU, be it a single number, and wait until it has arrived."""
MIXES = {"copy_", "index", "index_put", "index_put_", "_index_put_impl_"}
"""Operations that take tensors of the CPU beside those of a device: a copy, and indices into a tensor there."""


class There(Tensor):
    """A tensor on DEVICE; `here` is its content."""

    here: Tensor
    waits: list[str]
    sends: list[str]
    """Those of the `Elsewhere` that was entered last."""

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        shell = torch.empty_strided(here.shape, here.stride(), dtype=here.dtype, device="meta")
        made = Tensor._make_subclass(cls, shell)
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, cls.waits, cls.sends)

    def tolist(self) -> Any:
        """As every tensor's, which PyTorch does not give to classes of tensors."""
        self.waits.append(f"tolist {asked_by()}")
        return self.here.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"There({self.here!r})"


class Elsewhere(TorchDispatchMode):
    """Inside, DEVICE is there."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.sends: list[str] = []

    def __enter__(self) -> Elsewhere:
        own = torch.tensor

        def tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
            made = own(data, **options)
            return made if device is None else made.to(device)

        def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
            made = data if isinstance(data, Tensor) else own(data)
            return made.to(dtype=dtype or made.dtype, device=device or made.device)

        def new_tensor(like: Tensor, data: Any, *, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
            return tensor(data, dtype=dtype or like.dtype, device=device or like.device, **options)

        def pin_memory(data: Tensor, *_: Any) -> Tensor:
            pinned = data.clone()
            pinned.pinned = True  # type: ignore[attr-defined]
            return pinned

        # PyTorch's own look at the device before anybody else can, and to pin memory they need a GPU.
        ours = [(torch, tensor), (torch, as_tensor), (Tensor, new_tensor), (Tensor, pin_memory)]
        self._own = [(place, mine.__name__, getattr(place, mine.__name__)) for place, mine in ours]
        for place, mine in ours:
            setattr(place, mine.__name__, mine)
        There.waits, There.sends = self.waits, self.sends
        super().__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        for place, name, own in self._own:
            setattr(place, name, own)
        super().__exit__(*reason)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, self.waits, self.sends)


def waiting(name: str, tensors: list[Tensor], to_there: bool, beside: bool) -> bool:
    """Whether the host has to wait for an operation on these tensors with a result there or here. beside: it was asked
    not to wait for a copy."""
    there = [isinstance(t, There) for t in tensors]
    if name in ("copy_", "_to_copy"):
        source, target = there[-1], there[0] if name == "copy_" else to_there
        host = tensors[0] if name == "copy_" and source else tensors[-1]
        return source != target and not (beside and hasattr(host, "pinned"))
    if name in SENDS and any(there):
        masks = [t for t in tensors[1:] if t.dtype in (torch.bool, torch.uint8)] if name != "where" else []
        return bool(masks) or not all(there)
    return any(there) and (name in READS or not to_there)


def asked_by() -> str:
    """The line of lightfold that runs, for people; that of a way back is the one that asked for all gradients."""
    frame: Any = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(SOURCE):
        frame = frame.f_back
    return "" if frame is None else f"in {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def run(func: Any, args: Any, kwargs: dict[str, Any], waits: list[str], sends: list[str]) -> Any:
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
    if waiting(name, tensors, to_there, kwargs.get("non_blocking", len(args) > 2 and args[2])):
        waits.append(f"{name} {asked_by()}")
    if name in ("copy_", "_to_copy") and to_there and not isinstance(tensors[-1], There):
        sends.append(f"{name} {asked_by()}")
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
