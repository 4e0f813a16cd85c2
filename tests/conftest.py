"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Triton decides when it is imported whether it compiles or interprets; without a GPU its kernels are interpreted.
import torch

if not (torch.cuda.is_available() or torch.xpu.is_available()):
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
from kernel_checks import INSTRUCTION_SETS

from lightfold.ops import backend

REPOSITORY = Path(__file__).resolve().parents[1]

# Outputs of kernels start as NaN, so that an element that nobody wrote cannot pass for a small number.
os.environ["LIGHTFOLD_POISON"] = "1"
torch.set_num_threads(2)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real captures. They cannot be redistributed, so tests that want them skip where they are absent."""
    folder = Path(os.environ.get("LIGHTFOLD_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real captures are not at {folder}; set LIGHTFOLD_TEST_DATA to a folder that holds them")
    return folder


@pytest.fixture
def rng() -> torch.Generator:
    """A generator with a fixed seed, so that a failure repeats."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every set of kernels that this machine can run, one after the other."""
    core = backend.core()
    before = core.isa()
    core.set_isa(request.param)
    yield request.param
    core.set_isa(before)
