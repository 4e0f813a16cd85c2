"""Several processes that train one model together, each on a device of its own, on one machine or on several.

Every process holds the whole model and draws rays of its own; gradients are averaged before the optimiser moves, so all
hold the same weights after every step, bit for bit. The batch of a step is the sum of the processes' batches. What
depends on a clock, on a signal or on a count of samples is decided by all in one small exchange per step (`World.sum`),
because two processes that disagree on it would wait for each other for ever.

`torchrun`, or `lightfold train --devices N`, starts the processes and tells each by environment variables who it is.
They meet through torch.distributed: numbers on the processor over gloo, gradients on a GPU over NCCL (NVIDIA, AMD) or
XCCL (Intel). Nothing here is imported where one process works alone. Text travels as bytes, never as a pickle.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch import distributed as dist

from .errors import ConfigError, LightfoldError, LostError
from .ops.backend import reference_wanted

if TYPE_CHECKING:
    from .optim import Group

MEETING = timedelta(minutes=5)
"""How long the processes wait for each other at the start."""
SILENCE = timedelta(hours=1)
"""How long one waits for another later: while the first decodes, scores or writes. A dead one is noticed at once."""
LINE = 16
"""Values of a table that are sent together: a line of `ops.adam_`."""
SPARSE = 0.75
"""Share of a table's lines from which on the whole table is sent: packing costs time too."""
LIBRARIES = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl", "xpu": "cpu:gloo,xpu:xccl"}
"""What the processes talk over, by type of the device."""


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is, in all and on its machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int


def place() -> Place | None:
    """This process's place as torchrun's environment variables state it; None where it works alone.

    Raises ConfigError when they contradict each other or are no numbers.
    """
    if not {"RANK", "WORLD_SIZE"} & set(os.environ):
        return None
    rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if rank >= size:
        raise ConfigError(
            f"The environment says that this is process {rank} of {size}, counted from 0 (RANK, WORLD_SIZE)."
        )
    if size == 1:
        return None
    local_size = _number("LOCAL_WORLD_SIZE", 1) if "LOCAL_WORLD_SIZE" in os.environ else 1
    local_rank = _number("LOCAL_RANK", 0) if "LOCAL_RANK" in os.environ else rank % local_size
    if local_rank >= local_size or local_size > size:
        raise ConfigError(
            f"The environment says that this is process {local_rank} of {local_size} on its machine and {rank} of "
            f"{size} in all, counted from 0, which cannot be (LOCAL_RANK, LOCAL_WORLD_SIZE, RANK, WORLD_SIZE)."
        )
    if not os.environ.get("MASTER_ADDR"):
        raise ConfigError("RANK and WORLD_SIZE are set, but not MASTER_ADDR; start the processes with torchrun.")
    if not 0 < _number("MASTER_PORT", 1) < 1 << 16:
        raise ConfigError(f"MASTER_PORT must be from 1 to 65535, and it is {os.environ['MASTER_PORT']}.")
    return Place(rank, size, local_rank, local_size)


def _number(name: str, least: int) -> int:
    text = os.environ.get(name)
    if text is None:
        raise ConfigError(
            f"The environment variable {name} is missing beside others of torchrun's; start all processes with "
            "torchrun, or remove RANK and WORLD_SIZE from the environment to work alone."
        )
    if not (text.isascii() and text.isdecimal() and least <= int(text[:10])):
        raise ConfigError(
            f"The environment variable {name} must be a whole number from {least}, and it is '{text[:60]}'."
        )
    return int(text[:10])


class World:
    """All processes of a training, seen from one of them. Every method must be called by all of them, in one order."""

    def __init__(self, place: Place) -> None:
        self.rank, self.size = place.rank, place.size
        self.local_rank, self.local_size = place.local_rank, place.local_size
        self.is_first = place.rank == 0
        """Whether this is the process that speaks, and writes to the run."""

    @staticmethod
    def join(place: Place, device: str = "cpu") -> World:
        """Meet the other processes. device: type of the device on which the model will be.

        Raises ConfigError for a device that does not exist, LightfoldError when the others do not come.
        """
        if device not in LIBRARIES:
            raise ConfigError(
                f"Several processes cannot train on '{device}' together; known are {', '.join(LIBRARIES)}."
            )
        if device != "cpu":
            present = getattr(torch, device).device_count()
            if place.local_rank >= present:
                raise ConfigError(
                    f"This machine has {present} GPU(s), too few for {place.local_size} processes; start fewer."
                )
            getattr(torch, device).set_device(place.local_rank)
        try:
            store, rank, size = next(dist.rendezvous("env://", timeout=MEETING))
            store.set_timeout(MEETING)
            dist.init_process_group(LIBRARIES[device], store=store, rank=rank, world_size=size, timeout=SILENCE)
        except (RuntimeError, ValueError) as error:
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise LightfoldError(
                f"Process {place.rank} of {place.size} did not meet the others at {where} ({_reason(error)}). Are all "
                "of them started, and may they reach that address?"
            ) from error
        world = World(place)
        world.wait()  # Connections are made now, so that a machine that cannot be reached is found before the work.
        return world

    def leave(self) -> None:
        """End the connections. The others notice, if they still wait for this process."""
        dist.destroy_process_group()

    # ------------------------------------------------------------------------------------------------ words and numbers

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, the same bits everywhere."""
        total = torch.tensor(values, dtype=torch.float64)
        with _listening():
            dist.all_reduce(total)
        return total.tolist()

    def wait(self) -> None:
        """Until all processes are here."""
        self.sum([0.0])

    def tell(self, text: str = "") -> str:
        """The first process's text."""
        data = torch.frombuffer(bytearray(text.encode()) or bytearray(1), dtype=torch.uint8)
        length = torch.tensor([len(text.encode())])
        with _listening():
            dist.broadcast(length, 0)
            if not self.is_first:
                data = torch.empty(max(int(length), 1), dtype=torch.uint8)
            dist.broadcast(data, 0)
        return data[: int(length)].numpy().tobytes().decode()

    def gather(self, text: str) -> list[str]:
        """Every process's text, in order of their ranks."""
        data = torch.frombuffer(bytearray(text.encode()) or bytearray(1), dtype=torch.uint8)
        lengths = [0] * self.size
        lengths[self.rank] = len(text.encode())
        lengths = [int(length) for length in self.sum(lengths)]
        padded = torch.zeros(max(*lengths, 1), dtype=torch.uint8)
        padded[: len(data)] = data
        parts = [torch.empty_like(padded) for _ in lengths]
        with _listening():
            dist.all_gather(parts, padded)
        return [part[:length].numpy().tobytes().decode() for part, length in zip(parts, lengths, strict=True)]

    def collect(self, tensor: Tensor) -> list[Tensor]:
        """Every process's tensor, in order of their ranks, at the first; nothing elsewhere. All have one shape."""
        parts = [torch.empty_like(tensor) for _ in range(self.size)] if self.is_first else []
        with _listening():
            dist.gather(tensor.contiguous(), parts or None)
        return parts

    @contextmanager
    def one_per_machine_first(self) -> Iterator[None]:
        """The block runs in one process of each machine, and then in the others: who decodes, and who finds it done."""
        if self.local_rank:
            self.wait()
        yield
        if not self.local_rank:
            self.wait()

    # ------------------------------------------------------------------------------------------------------------ state

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors in place with the first process's."""
        with _listening():
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def maximum_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors in place with the largest of each value over all processes."""
        with _listening():
            for tensor in tensors:
                dist.all_reduce(tensor, dist.ReduceOp.MAX)

    def alike(self, tensors: Iterable[Tensor]) -> bool:
        """Whether all processes hold the same bits."""
        crc = 0
        for tensor in tensors:
            crc = zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data, crc)
        of_all = [0.0] * self.size
        of_all[self.rank] = float(crc)
        return len(set(self.sum(of_all))) == 1

    # -------------------------------------------------------------------------------------------------------- gradients

    def average_gradients(self, groups: Sequence[Group]) -> int:
        """Replace every gradient by its mean over all processes; returns how many bytes of them each sent in.

        A parameter that has a gradient anywhere gets one everywhere. Of a sparse group only those lines are exchanged
        that some process has touched, unless they are most of the table: the result is the same, as all others are
        zero. `Group.touched` becomes the union of what the processes have touched.
        """
        params = [(param, group) for group in groups for param in group.params]
        device = params[0][0].device
        here = torch.tensor([param.grad is not None for param, _ in params], dtype=torch.uint8, device=device)
        marks = [here, *(_touched(param, group) for param, group in params if group.sparse)]
        sizes = [len(mark) for mark in marks]
        together = torch.cat(marks)
        self.maximum_([together])
        here, *lines = together.split(sizes)
        places: list[tuple[Tensor, Tensor | None]] = []
        of_table = iter(lines)
        for (param, group), anywhere in zip(params, here.tolist(), strict=True):
            touched = next(of_table) if group.sparse else None
            if not anywhere:
                continue
            gradient = _own_gradient(param)
            if touched is None:
                places.append((gradient, None))
                continue
            if group.touched is not None:
                group.touched.copy_(touched)
            whole = gradient.numel() // LINE
            index = touched[:whole].nonzero()[:, 0]
            if len(index) >= SPARSE * whole:
                places.append((gradient, None))
                continue
            places.append((gradient[: whole * LINE].view(-1, LINE), index))
            places.append((gradient[whole * LINE :], None))
        pieces = [values if index is None else values.index_select(0, index).view(-1) for values, index in places]
        if not pieces:
            return 0
        flat = torch.cat(pieces)
        with _listening():
            dist.all_reduce(flat)
        flat /= self.size
        mean = flat.split([len(piece) for piece in pieces])
        for (values, index), piece in zip(places, mean, strict=True):
            if index is None:
                values.copy_(piece)
            else:
                values.index_copy_(0, index, piece.view(-1, LINE).to(values.dtype))
        return flat.numel() * flat.element_size()


def _own_gradient(param: torch.nn.Parameter) -> Tensor:
    """The gradient as a flat view, made where there is none."""
    if param.grad is None:
        param.grad = torch.zeros_like(param)
    elif not param.grad.is_contiguous():
        param.grad = param.grad.contiguous()
    return param.grad.view(-1)


def _touched(param: torch.nn.Parameter, group: Group) -> Tensor:
    """Which lines of a table hold a gradient here, uint8 [lines]."""
    lines = -(-param.numel() // LINE)
    if param.grad is None:
        return torch.zeros(lines, dtype=torch.uint8, device=param.device)
    # The reference kernels mark nothing.
    if group.touched is not None and not reference_wanted():
        return group.touched
    padded = torch.nn.functional.pad(param.grad.reshape(-1), (0, lines * LINE - param.numel()))
    return (padded.view(lines, LINE) != 0).any(1).to(torch.uint8)


@contextmanager
def _listening() -> Iterator[None]:
    """Whatever goes wrong in an exchange is that another process is gone, or cannot be heard any more."""
    try:
        yield
    except RuntimeError as error:
        raise LostError(f"Another process of this work has ended or cannot be reached ({_reason(error)}).") from error


def _reason(error: Exception) -> str:
    """The first sentence of what PyTorch says, without the places in its own source."""
    said = re.sub(r"\[[^\]]*\.(cc|cpp):\d+\]\s*", "", " ".join(str(error).split()))
    return said.partition(". ")[0].removesuffix(".")[:160] or type(error).__name__
