"""Poisson reconstruction by COLMAP: a closed ball through its points, and a sentence where there is none."""

from __future__ import annotations

import signal
import subprocess

import numpy as np
import pytest
import torch
import trimesh

from lightfold.errors import RunError
from lightfold.export.poisson import poisson_surface
from lightfold.export.views import SurfacePoints


def ball_points(count: int) -> SurfacePoints:
    normal = torch.nn.functional.normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    return SurfacePoints(0.7 * normal, normal, torch.zeros(count, 3, dtype=torch.uint8), torch.zeros(count))


@pytest.mark.slow
def test_it_closes_the_ball() -> None:
    vertices, faces = poisson_surface(ball_points(5000), 32)
    made = trimesh.Trimesh(vertices, faces, process=False)
    assert made.is_watertight and made.volume == pytest.approx(4 / 3 * np.pi * 0.7**3, rel=0.02)
    assert np.abs(np.linalg.norm(vertices, axis=1) - 0.7).max() < 0.02


def test_what_ends_colmap_is_a_sentence_and_not_the_end_of_this_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(words: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        assert options["capture_output"] and words[1:3] == ["-m", "lightfold.export.poisson"] and words[-1] == "5"
        return subprocess.CompletedProcess(words, -signal.SIGSEGV, b"", b"")

    monkeypatch.setattr(subprocess, "run", killed)
    with pytest.raises(
        RunError, match=r"no surface through 2 points, because it was ended by SIGSEGV\. .*--source fusion"
    ):
        poisson_surface(ball_points(2), 32)
