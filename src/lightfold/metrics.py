"""How far a picture is from the truth: PSNR, SSIM, LPIPS.

Every function takes one picture and its truth, [H, W, 3] sRGB in [0, 1], and returns one number, so that the mean over
a test set is the mean of its pictures' scores and not the score of their pooled error (the two differ by up to a
decibel). A mask is [H, W] bool; True counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal, cast, get_args

import torch
from torch import Tensor

SMALLEST_MSE = 1e-10
"""PSNR of a picture without any error is 100 dB and not infinity, so that a mean over pictures stays a number."""

WINDOW = 11
SIGMA = 1.5
"""The Gaussian window of Wang et al. 2004: 11 x 11 pixels, standard deviation 1.5."""

LpipsNet = Literal["vgg", "alex", "squeeze"]
LPIPS_NETS: tuple[LpipsNet, ...] = get_args(LpipsNet)
LPIPS_SMALLEST_SIDE = 32
"""The networks halve a picture up to five times; below this nothing is left to compare."""

Perceptual = Callable[[Tensor, Tensor], float]
"""LPIPS with its network loaded: (picture, truth) -> distance, lower is better."""


def psnr(pred: Tensor, true: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB, -10 log10(mean squared error) for a peak of 1, over the pixels of the mask."""
    _check(pred, true, mask)
    squared = (pred.double() - true.double()).square()
    mse = squared.mean() if mask is None else squared[mask].mean()
    # The clamp must let NaN through: a broken picture has no score.
    return -10.0 * math.log10(max(float(mse), SMALLEST_MSE)) if not math.isnan(float(mse)) else math.nan


def ssim(pred: Tensor, true: Tensor, mask: Tensor | None = None) -> float:
    """Structural similarity (Wang et al. 2004), at most 1, for sRGB pictures of range 1.

    Each colour channel is compared on its own and the three are averaged. Only windows that lie wholly inside the
    picture count (the "valid" convention of multinerf; torchmetrics 1.9 averages over mirrored borders as well). With
    a mask, windows count whose centre is inside it, so those on its rim still see some of what is outside.
    """
    _check(pred, true, mask)
    scores = ssim_map(pred, true)
    if mask is None:
        return float(scores.mean())
    margin = WINDOW // 2
    inside = mask[margin:-margin, margin:-margin]
    if not bool(inside.any()):
        raise ValueError(f"mask: expected a True pixel at least {margin} pixels from the border, got none")
    return float(scores[inside].mean())


def ssim_map(pred: Tensor, true: Tensor) -> Tensor:
    """SSIM at every window centre, averaged over the channels: [H - 10, W - 10].

    With Gaussian-weighted means, variances and covariance in the window,
    SSIM = (2 mx my + C1)(2 cov + C2) / ((mx^2 + my^2 + C1)(vx + vy + C2)),  C1 = 0.01^2, C2 = 0.03^2.
    """
    _check(pred, true, None)
    height, width = pred.shape[:2]
    if min(height, width) < WINDOW:
        raise ValueError(f"pred: expected at least {WINDOW} pixels on each side for SSIM, got {width} x {height}")
    # In float32 the rounding of mean(x^2) - mean(x)^2 would be a visible part of C2 in flat regions.
    x = pred.double().permute(2, 0, 1)
    y = true.double().permute(2, 0, 1)
    mx, my, mxx, myy, mxy = _window_means(torch.stack([x, y, x * x, y * y, x * y]))
    # The difference of two nearly equal means can come out a hair below zero, which no variance is.
    vx = (mxx - mx * mx).clamp(min=0)
    vy = (myy - my * my).clamp(min=0)
    covariance = mxy - mx * my
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mx * my + c1) * (2 * covariance + c2)
    bottom = (mx * mx + my * my + c1) * (vx + vy + c2)
    return (top / bottom).mean(dim=0)


def lpips_or_reason(net: str = "vgg") -> Perceptual | str:
    """LPIPS (Zhang et al. 2018) with the given network, or one sentence that says why it cannot be had.

    The published tables use "vgg". The network's weights are fetched by torchvision at the first use, here and never
    at import; without torchvision or without a connection the reason comes back instead, and evaluation goes on.
    """
    if net not in LPIPS_NETS:
        raise ValueError(f"net: expected one of {', '.join(LPIPS_NETS)}, got {net!r}")
    missing = [name for name in ("torchmetrics", "torchvision") if find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        return f"LPIPS was not computed: {names} cannot be imported; `pip install lightfold[lpips]` adds it."
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        network = LearnedPerceptualImagePatchSimilarity(net_type=cast(LpipsNet, net), normalize=True).eval()
    except (ImportError, OSError, RuntimeError) as error:
        # A download that failed is an OSError; one that arrived damaged is a RuntimeError.
        cause = " ".join(str(error).split()) or type(error).__name__
        return f"LPIPS was not computed: the weights of '{net}' could not be loaded ({cause[:200]})."

    @torch.no_grad()
    def distance(pred: Tensor, true: Tensor) -> float:
        _check(pred, true, None)
        pair = [image.float().clamp(0, 1).permute(2, 0, 1)[None] for image in (pred, true)]
        value = float(network(*pair))
        network.reset()  # torchmetrics would average over all calls so far
        return value

    return distance


def _window_means(images: Tensor) -> Tensor:
    """Gaussian-weighted mean of every full window: [..., H, W] -> [..., H - 10, W - 10].

    The window is separable, so eleven shifted additions down and eleven across do it, several times faster on a CPU
    than a convolution with one channel.
    """
    offset = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weight = torch.exp(-0.5 * (offset / SIGMA) ** 2)
    share: list[float] = (weight / weight.sum()).tolist()
    for dim in (-2, -1):
        size = images.shape[dim] - WINDOW + 1
        total = share[0] * images.narrow(dim, 0, size)
        for k in range(1, WINDOW):
            total.add_(images.narrow(dim, k, size), alpha=share[k])
        images = total
    return images


def _check(pred: Tensor, true: Tensor, mask: Tensor | None) -> None:
    if pred.dim() != 3 or pred.shape[-1] != 3:
        raise ValueError(f"pred: expected [H, W, 3], got {list(pred.shape)}")
    if true.shape != pred.shape:
        raise ValueError(f"true: expected {list(pred.shape)} as pred has, got {list(true.shape)}")
    if mask is None:
        return
    if mask.dtype != torch.bool or mask.shape != pred.shape[:2]:
        raise ValueError(f"mask: expected bool {list(pred.shape[:2])}, got {mask.dtype} {list(mask.shape)}")
    if not bool(mask.any()):
        raise ValueError("mask: expected at least one True pixel, got none")
