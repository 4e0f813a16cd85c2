"""benchmarks/gpu.py where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from benchmarks import gpu


def test_without_a_gpu_it_says_so_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^PyTorch sees no GPU that Triton has kernels for, .*\.$"):
        gpu.find_device()


def test_a_gpu_without_triton_is_told_what_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "triton_lacks", lambda kind: "Triton is not installed")
    with pytest.raises(SystemExit, match="There is a GPU, but no kernels"):
        gpu.find_device()
