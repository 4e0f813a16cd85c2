"""elsewhere.py: the pretended device tells what the host would have to wait for, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from elsewhere import DEVICE, Elsewhere
from torch import Tensor

WAIT: dict[str, Callable[[Tensor], object]] = {
    "a number": lambda x: float(x.sum()),
    "a decision": lambda x: bool((x > 0.5).any()),
    "an index as a number": lambda x: x[x.argmin(0)[0]],
    "a list": lambda x: x.tolist(),
    "a copy here": lambda x: x.cpu(),
    "a copy into memory here": lambda x: torch.zeros(4, 3).copy_(x),
    "how many": lambda x: torch.nonzero(x > 0.5),
    "a mask as an index": lambda x: x[x > 0.5],
    "values put by a mask": lambda x: x.index_put((x > 0.5,), x[0, 0]),
    "whether two are the same": lambda x: torch.equal(x, x),
    "numbers sent": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "numbers sent as others are": lambda x: x.new_tensor([1.0, 2.0]),
    "an index sent": lambda x: x[[0, 2]],
    "memory that is not pinned": lambda x: torch.zeros(3).to(x.device, non_blocking=True),
    "pinned memory, but in turn": lambda x: torch.zeros(3).pin_memory().to(x.device),
    "whether an inverse exists": lambda x: torch.linalg.inv(x[:3] + torch.eye(3, device=x.device)),
}
DO_NOT: dict[str, Callable[[Tensor], object]] = {
    "pinned memory beside all else": lambda x: torch.zeros(3).pin_memory().to(x.device, non_blocking=True),
    "a choice": lambda x: torch.where(x > 0.5, x, 0.0),
    "an index there": lambda x: x[x.argmin(0)] + x.index_select(0, x.argmin(0)),
    "a place known here": lambda x: x[1, 2] + x[:2, None].sum(),
    "a number of the CPU": lambda x: x * torch.tensor(2.0) + torch.full((3,), 2.0, device=x.device),
    "something filled": lambda x: x.masked_fill(x > 0.5, 0.0).clamp(min=0.1).fill_(1.0),
    "sums at places": lambda x: x.index_add(0, x.argmin(0), x[:3]).cumsum(0).sort(0),
}


@pytest.mark.parametrize("what", WAIT)
def test_what_waits(what: str) -> None:
    with Elsewhere() as elsewhere:
        x = torch.linspace(0.1, 1.0, 12).view(4, 3).pin_memory().to(DEVICE, non_blocking=True)
        assert elsewhere.waits == []
        WAIT[what](x)
        assert elsewhere.waits


@pytest.mark.parametrize("what", DO_NOT)
def test_what_does_not_wait(what: str) -> None:
    with Elsewhere() as elsewhere:
        DO_NOT[what](torch.linspace(0.1, 1.0, 12).view(4, 3).pin_memory().to(DEVICE, non_blocking=True))
        assert elsewhere.waits == []


def test_pytorch_is_as_before() -> None:
    before = torch.tensor, torch.as_tensor, Tensor.new_tensor, Tensor.pin_memory
    with Elsewhere():
        assert torch.tensor is not before[0]
    assert (torch.tensor, torch.as_tensor, Tensor.new_tensor, Tensor.pin_memory) == before
