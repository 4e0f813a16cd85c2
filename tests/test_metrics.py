"""PSNR and SSIM against their definitions and against torchmetrics; LPIPS must explain itself when it cannot run."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightfold import metrics
from lightfold.metrics import lpips_or_reason, psnr, ssim, ssim_map


def pair(rng: torch.Generator, height: int = 24, width: int = 31) -> tuple[torch.Tensor, torch.Tensor]:
    true = torch.rand(height, width, 3, generator=rng)
    return (true + 0.1 * torch.randn(true.shape, generator=rng)).clamp(0, 1), true


@pytest.mark.parametrize(("error", "decibel"), [(0.1, 20.0), (0.01, 40.0), (1.0, 0.0), (0.0, 100.0)])
def test_psnr_of_a_constant_error(error: float, decibel: float) -> None:
    true = torch.zeros(5, 7, 3)
    assert psnr(true + error, true) == pytest.approx(decibel, abs=1e-4)


def test_psnr_of_a_broken_picture_is_not_a_number() -> None:
    true = torch.zeros(4, 4, 3)
    assert math.isnan(psnr(true * float("nan"), true))


def test_psnr_counts_only_the_mask(rng: torch.Generator) -> None:
    pred, true = pair(rng)
    mask = torch.zeros(24, 31, dtype=torch.bool)
    mask[3:9, 5:20] = True
    spoiled = torch.where(mask[..., None], pred, 1 - true)
    assert psnr(spoiled, true, mask) == pytest.approx(psnr(pred[3:9, 5:20], true[3:9, 5:20]), abs=1e-6)
    assert psnr(pred, true, torch.ones_like(mask)) == pytest.approx(psnr(pred, true), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(11, 30), st.integers(11, 30), st.integers(0, 1000))
def test_ssim_is_one_for_itself_symmetric_and_bounded(height: int, width: int, seed: int) -> None:
    pred, true = pair(torch.Generator().manual_seed(seed), height, width)
    assert ssim(true, true) == pytest.approx(1.0, abs=1e-12)
    assert ssim(pred, true) == pytest.approx(ssim(true, pred), abs=1e-6)
    assert -1.0 <= ssim(pred, true) < 1.0


def test_ssim_of_two_flat_pictures_is_the_luminance_term() -> None:
    a, b = 0.3, 0.5
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    assert ssim(torch.full((12, 15, 3), a), torch.full((12, 15, 3), b)) == pytest.approx(expected, abs=1e-5)


def test_ssim_map_at_one_pixel_from_the_definition(rng: torch.Generator) -> None:
    pred, true = (image.double() for image in pair(rng, 11, 11))
    offset = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(offset**2) / (2 * 1.5**2))
    weight = line[:, None] * line[None, :]
    weight = (weight / weight.sum())[..., None]
    mx, my = (weight * pred).sum((0, 1)), (weight * true).sum((0, 1))
    vx, vy = (weight * (pred - mx) ** 2).sum((0, 1)), (weight * (true - my) ** 2).sum((0, 1))
    covariance = (weight * (pred - mx) * (true - my)).sum((0, 1))
    top = (2 * mx * my + 0.01**2) * (2 * covariance + 0.03**2)
    expected = top / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2))
    assert ssim_map(pred, true).shape == (1, 1)
    assert ssim(pred, true) == pytest.approx(float(expected.mean()), abs=1e-9)


def test_ssim_equals_the_inner_part_of_torchmetrics(rng: torch.Generator) -> None:
    image = pytest.importorskip("torchmetrics.functional.image", reason="torchmetrics is not installed")
    pred, true = pair(rng, 40, 53)
    _, whole = image.structural_similarity_index_measure(
        pred.permute(2, 0, 1)[None], true.permute(2, 0, 1)[None], data_range=1.0, return_full_image=True
    )
    inner = whole[0, :, 5:-5, 5:-5].mean(dim=0)
    torch.testing.assert_close(ssim_map(pred, true), inner.double(), atol=2e-5, rtol=0)


def test_masked_ssim_averages_the_map_over_window_centres(rng: torch.Generator) -> None:
    pred, true = pair(rng)
    mask = torch.zeros(24, 31, dtype=torch.bool)
    mask[8:12, 7:21] = True
    assert ssim(pred, true, mask) == pytest.approx(float(ssim_map(pred, true)[3:7, 2:16].mean()), abs=1e-6)
    assert ssim(pred, true, torch.ones_like(mask)) == pytest.approx(ssim(pred, true), abs=1e-6)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_arguments_that_do_not_fit_are_named(metric: object) -> None:
    assert callable(metric)
    image = torch.zeros(16, 16, 3)
    with pytest.raises(ValueError, match="pred: expected"):
        metric(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16))
    with pytest.raises(ValueError, match="true: expected"):
        metric(image, torch.zeros(16, 17, 3))
    with pytest.raises(ValueError, match="mask: expected bool"):
        metric(image, image, torch.ones(16, 16))
    with pytest.raises(ValueError, match="at least one True"):
        metric(image, image, torch.zeros(16, 16, dtype=torch.bool))


def test_ssim_needs_a_whole_window_and_a_mask_that_meets_one() -> None:
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(torch.zeros(10, 40, 3), torch.zeros(10, 40, 3))
    rim = torch.zeros(16, 16, dtype=torch.bool)
    rim[0] = True
    with pytest.raises(ValueError, match="from the border"):
        ssim(torch.zeros(16, 16, 3), torch.zeros(16, 16, 3), rim)


def test_lpips_without_its_packages_gives_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    reason = lpips_or_reason("vgg")
    assert isinstance(reason, str)
    assert "torchvision" in reason
    assert "pip install lightfold[lpips]" in reason


@pytest.mark.parametrize("failure", [OSError("no route to host"), RuntimeError("invalid hash value"), ImportError("x")])
def test_lpips_without_its_weights_gives_a_reason(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    lpip = pytest.importorskip("torchmetrics.image.lpip", reason="torchmetrics is not installed")

    def refuse(**options: object) -> None:
        raise failure

    monkeypatch.setattr(metrics, "find_spec", lambda name: True)
    monkeypatch.setattr(lpip, "LearnedPerceptualImagePatchSimilarity", refuse)
    reason = lpips_or_reason("alex")
    assert isinstance(reason, str)
    assert "'alex'" in reason
    assert str(failure) in reason


def test_an_unknown_lpips_net_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of vgg, alex, squeeze"):
        lpips_or_reason("resnet")


def test_importing_metrics_does_not_import_the_perceptual_network() -> None:
    code = "import sys, lightfold.metrics; sys.exit('torchmetrics' in sys.modules or 'torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
