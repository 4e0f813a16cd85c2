"""A method that learns from pixels drawn evenly, by a loss that is the same from step to step but for its random
numbers and a few facts: `nerf`, `mipnerf360`, `nerfacto`, `zipnerf`. On a GPU its steps can be recorded (`recording`).

    pixels, phase  ->  terms of the loss                        `terms`: all that a method says here itself

On a processor random numbers come from the step's generator. A recording needs some that are new at each launch, so on
a GPU they come from a generator there, whose seed is set before each step.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Generator, Tensor

from .. import devices
from ..rays import Rays
from ..scene import Pixels
from .base import Drawn, Method, seed_of

if TYPE_CHECKING:
    from ..scene import Scene


class Phase(NamedTuple):
    """Where a training is, as far as a step depends on it."""

    kind: tuple[Any, ...] = ()
    """What decides which operations the step takes, the same for many steps; can be the key of a dict."""
    anneal: float | Tensor = 1.0
    """Exponent on proposals' weights; a tensor of one number where a recorded step finds it anew. Where `kind` says
    that it is 1, nobody looks."""


class PixelMethod(Method):
    """See the module's docstring."""

    def __init__(self, config: Any, info: Any) -> None:
        super().__init__(config, info)
        self._chance: Generator | None = None

    def phase(self, step: int) -> Phase:
        """What a step depends on."""
        return Phase()

    def terms(self, pixels: Pixels, phase: Phase, rng: Generator) -> dict[str, Tensor]:
        """The weighted loss terms of these pixels; fills `stats`."""
        raise TypeError(f"{type(self).__name__} must define terms()")

    def pixels(self, scene: Scene, step: int, rng: Generator) -> Pixels:
        """A step's pixels, on the device."""
        return scene.pixels(self.config.rays, rng).to(self.device)

    def loss(self, scene: Scene, step: int, rng: Generator) -> dict[str, Tensor]:
        """Weighted loss terms of a batch of pixels."""
        if self.device.type in devices.TRITON_DEVICES:
            return self.loss_of(self.drawn(scene, step, rng))
        return self.terms(self.pixels(scene, step, rng), self.phase(step), rng)

    # -- in two parts --------------------------------------------------------------------------------------------------

    @property
    def chance(self) -> Generator:
        """The generator on the device."""
        if self._chance is None or self._chance.device != self.device:
            self._chance = torch.Generator(self.device)
        return self._chance

    def drawn(self, scene: Scene, step: int, rng: Generator) -> Drawn:
        """Pixels and exponent of a step; and the seed of what is to be random in it."""
        pixels, phase = self.pixels(scene, step, rng), self.phase(step)
        self.chance.manual_seed(seed_of(rng))
        anneal = devices.sent(torch.tensor(phase.anneal), self.device)
        return Drawn((phase.kind, len(pixels.rgb), pixels.depth is not None), (*_flat(pixels), anneal))

    def loss_of(self, drawn: Drawn) -> dict[str, Tensor]:
        """The loss of such inputs."""
        *flat, anneal = drawn.tensors
        return self.terms(_pixels(flat), Phase(drawn.kind[0], anneal), self.chance)


def _flat(pixels: Pixels) -> list[Tensor]:
    """All that pixels consist of."""
    known = [] if pixels.depth is None else [pixels.depth]
    return [*(getattr(pixels.rays, f.name) for f in fields(Rays)), pixels.rgb, pixels.alpha, pixels.xy, *known]


def _pixels(flat: list[Tensor]) -> Pixels:
    """The inverse."""
    count = len(fields(Rays))
    return Pixels(Rays(*flat[:count]), *flat[count:])
