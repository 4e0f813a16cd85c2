"""A step on a GPU that goes wrong does no harm, though the host hears of it only later.

On the CPU the trainer looks at each loss before it takes the step. On a GPU looking is waiting, so the step is taken
whatever its loss is: one that is not finite has its gradients set to zero there, and weights move by their momentum
alone. In float16 small gradients would vanish, so the loss is scaled up before the way back, and gradients down after
it (Micikevicius et al. 2018); where that made one of them infinite, the step counts as gone wrong and the scale falls.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .ops.backend import TRITON_DEVICES
from .optim import Group

SCALE = 2.0**16
"""Factor on a loss in float16 at the start."""
PATIENCE = 1000
"""Steps without an infinite gradient after which it doubles."""


class Guard:
    """The way back from a loss to gradients, for a method on `device` with networks in type `half`.

    On a CPU, which has no float16, it is `backward` and nothing else.
    """

    def __init__(self, device: torch.device, half: torch.dtype | None = None) -> None:
        self.active = device.type in TRITON_DEVICES or half is torch.float16
        self.scale = torch.full((), SCALE, device=device) if half is torch.float16 else None
        self._calm = torch.zeros((), device=device)
        """Steps since the scale last changed."""
        self._loss = torch.zeros(())

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss; still scaled, and whatever they are."""
        self._loss = loss.detach()
        (loss if self.scale is None else loss * self.scale).backward()

    def clean(self, groups: Sequence[Group]) -> None:
        """The gradients as the optimiser may take them, in place. The host does not wait."""
        if not self.active:
            return
        gradients = [p.grad for group in groups for p in group.params if p.grad is not None]
        good = self._loss.isfinite()
        if self.scale is not None and gradients:
            good = good & torch.stack([gradient.isfinite().all() for gradient in gradients]).all()
        bad = ~good
        for gradient in gradients:
            gradient.masked_fill_(bad, 0.0)
            if self.scale is not None:
                gradient.div_(self.scale)
        if self.scale is not None:
            self._calm.add_(1.0).mul_(good)
            grows = self._calm >= PATIENCE
            self._calm.masked_fill_(grows, 0.0)
            self.scale.mul_(torch.where(good, torch.where(grows, 2.0, 1.0), 0.5)).clamp_(1.0, 2.0**24)
