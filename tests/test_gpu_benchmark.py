"""benchmarks/gpu.py where there is no GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks import gpu
from gpu_checks import DEVICE, NEEDS_TRITON, kernels

from lightfold.config import lookup
from lightfold.methods.neus import NeuSConfig
from lightfold.ops.backend import bfloat16_pays
from lightfold.scene import SceneConfig


def test_without_a_gpu_it_says_so_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^PyTorch sees no GPU that Triton has kernels for, .*\.$"):
        gpu.find_device()


def test_a_gpu_without_triton_is_told_what_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.devices, "count", lambda kind: 1)
    monkeypatch.setattr(gpu, "triton_lacks", lambda kind: "Triton is not installed")
    with pytest.raises(SystemExit, match="There is a GPU, but no kernels"):
        gpu.find_device()


@NEEDS_TRITON
def test_the_rows_of_the_distance_field_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """All calls are the kernels' own, though nothing can be timed: each is made once, with a small field."""
    calls: list[object] = []
    small = NeuSConfig(levels=2, log2_rows=8, finest=32, width=16, grid=16)
    monkeypatch.setattr(gpu, "NeuSConfig", lambda: small)
    monkeypatch.setattr(gpu, "seconds", lambda function, device: calls.append(function()) or 1.0)
    with kernels():
        rows = gpu.surfaces(DEVICE, 320)
    assert [row["kernel"] for row in rows] == ["surface", "surface backward", "surface_march"]
    assert len(calls) == 3 and all(row["bytes"] > 0 for row in rows)
    assert rows[-1]["samples_per_second"] > rows[-1]["rays_per_second"] > 0


def test_its_training_is_that_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of it on the CPU, for a moment: every number that the record has is there."""
    sample = Path(__file__).parents[1] / "examples" / "sample"
    small = replace(lookup("ngp:big")[1], log2_rows=10, batch=2048)
    monkeypatch.setattr(gpu, "lookup", lambda name: (None, small))
    monkeypatch.setattr(gpu, "PICTURES", 1)
    case = gpu.Case("sample", SceneConfig(max_side=48), (5.0, 90.0), 3.0)
    found = gpu.train(sample, case, torch.device("cpu"))
    assert found["seconds_to_psnr"]["90.0"] is None
    assert found["precision"] == ("bfloat16" if bfloat16_pays(torch.device("cpu")) else "float32")
    assert found["kept_samples_per_second"] > 0 and found["pictures_per_second"] > 0 and found["psnr"] > 5
