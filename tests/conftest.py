"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]


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
