"""A training step that is recorded once and launched as a whole: CUDA graphs, and their like on other GPUs.

A step of `ngp` starts dozens of kernels, one of `nerfacto` hundreds. To start them one by one, from Python, may take
the host longer than a large GPU takes to compute them. So the first step of a kind is launched as usual, which compiles
kernels and takes memory; in the second the launches are recorded, and with it and every later one the recording is
launched.

A recording repeats its launches with the arguments they had, and Python's part is not run again. So all that differs
between steps of one kind has to be numbers on the device, at places that stay: inputs (`Drawn.tensors`) are copied to
where the recording reads them, learning rates are there (`Adam.keep_rates`), random numbers come from a generator
there, and parameters, gradients and moments never move. What decides shapes, or the way that Python takes, is in
`Drawn.kind`, and each kind has a recording.

A device whose driver refuses to record, or a method of which something moves after all, costs speed and nothing else:
steps are launched one by one then, and a warning says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from . import devices

if TYPE_CHECKING:
    from .guard import Guard
    from .methods.base import Drawn, Recordable
    from .optim import Adam

log = logging.getLogger(__name__)

MOST = 64
"""Recordings that are kept: beyond it the oldest is dropped."""


class Graph(Protocol):
    """What launches are recorded in: `torch.cuda.CUDAGraph`, `torch.xpu.XPUGraph`."""

    def register_generator_state(self, state: torch.Generator) -> None:
        """Let numbers of a generator be others each time."""

    def capture_begin(self, *, pool: Any) -> None:
        """From now on, launches are recorded and not carried out."""

    def capture_end(self) -> None:
        """The end of that."""

    def replay(self) -> None:
        """Launch all of it."""


@dataclass
class Recording:
    """A kind's launches, where they read their inputs, and where they leave what they have to tell."""

    graph: Graph
    inputs: tuple[Tensor, ...]
    losses: dict[str, Tensor]
    loss: Tensor
    stats: dict[str, Any]


class Recorder:
    """Takes the steps of a method, whole: loss, gradients, optimiser."""

    def __init__(self, method: Recordable, optim: Adam, guard: Guard, make_graph: Callable[[], Graph]) -> None:
        self.method, self._optim, self._guard, self._make_graph = method, optim, guard, make_graph
        self._recordings: dict[tuple[Any, ...], Recording] = {}
        self._met: set[tuple[Any, ...]] = set()
        self._places: tuple[int, ...] = ()
        self._pool: Any = devices.graph_pool(method.device)
        self.refused: str | None = None
        """Why nothing is recorded any more."""
        optim.keep_rates(method.device)

    def take(self, drawn: Drawn, fraction: float) -> tuple[Tensor, dict[str, Tensor]]:
        """A step with these inputs, when that share of the training is done: its loss, and the terms of it. The tensors
        hold another step's as soon as that is taken. `method.stats` is filled."""
        self._optim.advance(fraction)
        if self._places != (places := self._where()):  # As after a step that has made gradients for the first time.
            self.forget()
            self._places = places
        if drawn.kind not in self._met or self.refused is not None:
            self._met.add(drawn.kind)
            return self._launch(drawn)
        recording = self._recordings.get(drawn.kind)
        if recording is None:
            try:
                recording = self._record(drawn)
            except devices.OutOfMemory:
                raise
            except RuntimeError as error:
                self.refused = str(error).partition("\n")[0]
                self._recordings.clear()
                log.warning("Steps are launched kernel by kernel, as they could not be recorded: %s", self.refused)
                return self._launch(drawn)
        for place, value in zip(recording.inputs, drawn.tensors, strict=True):
            place.copy_(value)
        recording.graph.replay()
        self.method.stats = dict(recording.stats)
        return recording.loss, recording.losses

    def forget(self) -> None:
        """Drop all recordings: what they read or write is elsewhere now, or its memory is needed."""
        self._recordings.clear()
        self._met.clear()

    def _launch(self, drawn: Drawn) -> tuple[Tensor, dict[str, Tensor]]:
        """The step, kernel by kernel."""
        losses = self.method.loss_of(drawn)
        loss = total(losses)
        self._guard.backward(loss)
        self._guard.clean(self._optim.groups)
        self._optim.move()
        return loss.detach(), {name: term.detach() for name, term in losses.items()}

    def _record(self, drawn: Drawn) -> Recording:
        while len(self._recordings) >= MOST:
            del self._recordings[next(iter(self._recordings))]
        inputs = tuple(t.clone() for t in drawn.tensors)
        graph = self._make_graph()
        with devices.recording(graph, self._pool, getattr(self.method, "chance", None)):
            loss, losses = self._launch(type(drawn)(drawn.kind, inputs))
        recording = Recording(graph, inputs, losses, loss, dict(self.method.stats))
        self._recordings[drawn.kind] = recording
        return recording

    def _where(self) -> tuple[int, ...]:
        """Where everything is that recordings read and write, beside what is their own."""
        params = [p for group in self._optim.groups for p in group.params]
        return tuple(t.data_ptr() for p in params for t in (p, p.grad) if t is not None)


def total(losses: dict[str, Tensor]) -> Tensor:
    """The sum of a loss's terms."""
    return torch.stack(list(losses.values())).sum() if len(losses) > 1 else next(iter(losses.values()))
