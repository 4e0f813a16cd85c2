"""Optimiser and schedules. One Adam for all methods; it can skip what a step did not touch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from . import devices, ops
from .ops.adam import corrected

Schedule = Callable[[float], float]
"""Fraction of the training that is done, in [0, 1] -> factor on the learning rate."""


def constant(fraction: float) -> float:
    """No schedule."""
    return 1.0


def exponential_after(start: float, final: float) -> Schedule:
    """1 until `start`, then log-linear to `final` at the end: the plateau finds the shape, the decay the detail."""

    def schedule(fraction: float) -> float:
        if fraction <= start:
            return 1.0
        return final ** ((fraction - start) / (1.0 - start))

    return schedule


def warm_up(schedule: Schedule, share: float, first: float = 0.01) -> Schedule:
    """`schedule`, times a sine ramp from `first` to 1 over the first `share` of the training (mip-NeRF 360)."""

    def ramped(fraction: float) -> float:
        ramp = math.sin(0.5 * math.pi * min(fraction / share, 1.0)) if share > 0 else 1.0
        return (first + (1.0 - first) * ramp) * schedule(fraction)

    return ramped


@dataclass
class Group:
    """Parameters that share a learning rate and its schedule."""

    name: str
    params: list[nn.Parameter]
    lr: float
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the two moments per step. Without momentum, where the first is 0, there is no first moment to keep."""
    eps: float = 1e-15
    weight_decay: float = 0.0
    """L2 term added to the gradient (Adam's own form, not AdamW's)."""
    schedule: Schedule = field(default=constant)
    clip: float | None = None
    """Largest norm of the group's whole gradient; a longer one is scaled down to it. First, what is not a finite number
    in it is set to zero (mip-NeRF 360). None: gradients are taken as they are."""
    sparse: bool = False
    """True: entries whose gradient is exactly zero keep value and moments (instant-ngp's rule for hash tables)."""
    touched: Tensor | None = None
    """For a single sparse parameter: which lines of it can hold a gradient (see `ops.adam_`)."""


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) over groups, by `ops.adam_`, which clears the gradient as it goes.

    Bias correction counts the steps of the whole optimiser, also for sparse groups: an entry first touched at step
    1000 starts with the step size it would have had, had it been zero until then.
    """

    def __init__(self, groups: list[Group]) -> None:
        self.groups = groups
        self.step_count = 0
        self.fraction = 0.0
        """Share of the training that was done at the last step, for methods with schedules of their own."""
        self._lr: list[float] = []
        self._rates: Tensor | None = None
        self.moments: dict[str, tuple[Tensor | None, Tensor]] = {}
        for group in groups:
            for i, param in enumerate(group.params):
                first = torch.zeros_like(param.data) if group.betas[0] else None
                self.moments[f"{group.name}.{i}"] = (first, torch.zeros_like(param.data))

    def step(self, fraction: float) -> None:
        """Move every parameter that has a gradient, then set that gradient to zero in place."""
        self.advance(fraction)
        self.move()

    def keep_rates(self, device: torch.device) -> None:
        """From now on what changes from step to step is read on the device, where all parameters are: what `move`
        launches may be recorded, and launched again after another `advance`."""
        self._rates = torch.zeros(len(self.groups), 2, device=device)

    def advance(self, fraction: float) -> None:
        """Begin a step: its number, and its learning rates."""
        self.step_count += 1
        self.fraction = fraction
        self._lr = [group.lr * group.schedule(fraction) for group in self.groups]
        if self._rates is not None:
            steps = zip(self._lr, self.groups, strict=True)
            rates = [corrected(self.step_count, lr, group.betas) for lr, group in steps]
            self._rates.copy_(devices.sent(torch.tensor(rates), self._rates.device))

    def move(self) -> None:
        """The rest of the step."""
        for number, group in enumerate(self.groups):
            if group.clip is not None:
                _clip(group.params, group.clip)
            for i, param in enumerate(group.params):
                if param.grad is None:
                    continue
                first, second = self.moments[f"{group.name}.{i}"]
                ops.adam_(
                    param.data,
                    param.grad,
                    first,
                    second,
                    step=self.step_count,
                    lr=self._lr[number],
                    betas=group.betas,
                    eps=group.eps,
                    weight_decay=group.weight_decay,
                    sparse=group.sparse,
                    touched=group.touched,
                    rates=None if self._rates is None else self._rates[number],
                )

    def zero_grad(self) -> None:
        """Forget the gradients of a step that was skipped."""
        for group in self.groups:
            for param in group.params:
                if param.grad is not None:
                    param.grad.zero_()

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed training needs, as tensors."""
        tensors = {"step_count": torch.tensor(self.step_count, dtype=torch.int64)}
        for name, (first, second) in self.moments.items():
            if first is not None:
                tensors[f"{name}.first"] = first
            tensors[f"{name}.second"] = second
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state`."""
        self.step_count = int(tensors["step_count"])
        for name, (first, second) in self.moments.items():
            if first is not None:
                first.copy_(tensors[f"{name}.first"])
            second.copy_(tensors[f"{name}.second"])


def _clip(params: list[nn.Parameter], largest: float) -> None:
    """Scales the gradients of all parameters together, in place, to a norm of at most `largest`."""
    gradients = [param.grad for param in params if param.grad is not None]
    if not gradients:
        return
    for gradient in gradients:
        gradient.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    factor = (largest / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)
