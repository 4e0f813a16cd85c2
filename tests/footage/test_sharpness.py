"""Sharpness: falls with blur of any direction, and stays with light and contrast."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lightfold.footage.sharpness import LONG_SIDE, WINDOW, reduced_grey, sharpness


def texture(seed: int = 0) -> np.ndarray:
    """Edges of all sizes: random rectangles, one over the other."""
    rng = np.random.default_rng(seed)
    picture = np.full((240, 320), 128, dtype=np.uint8)
    for _ in range(400):
        x, y = rng.integers(0, 320), rng.integers(0, 240)
        picture[y : y + rng.integers(2, 60), x : x + rng.integers(2, 60)] = rng.integers(0, 256)
    return picture


def blurred(picture: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


@pytest.mark.parametrize("seed", range(3))
def test_falls_with_every_step_of_blur(seed: int) -> None:
    values = [sharpness(blurred(texture(seed), radius)) for radius in (0, 0.7, 1.5, 3, 6)]
    assert all(a > b + 0.05 for a, b in zip(values, values[1:], strict=False))
    assert 0 < values[-1] < values[0] < 1


@pytest.mark.parametrize("axis", [0, 1])
def test_motion_along_one_axis_is_enough(axis: int) -> None:
    moved = np.mean([np.roll(texture(), shift, axis) for shift in range(7)], axis=0)
    assert sharpness(moved) < 0.7 * sharpness(texture())


def test_light_contrast_and_type_do_not_matter() -> None:
    value = sharpness(texture())
    assert sharpness(texture().astype(np.float64) * 0.01 + 7) == pytest.approx(value, abs=1e-3)
    assert sharpness(texture().astype(np.uint16) * 257) == pytest.approx(value, abs=1e-3)
    assert sharpness(texture().T) == pytest.approx(value, abs=1e-6)


def test_it_is_the_lost_share_of_the_gradients() -> None:
    """A ramp stays a ramp; where there is a step, the box turns a gradient of 1 into 1/9."""
    ramp = np.tile(np.arange(40.0), (40, 1))
    assert sharpness(ramp + ramp.T) == 0.0
    both = np.add.outer(np.arange(40) >= 20, np.arange(40) >= 20).astype(float)
    assert sharpness(both) == pytest.approx(1 - 1 / WINDOW, abs=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (300, 5), (64, 64)])
def test_nothing_to_see_is_not_sharp(shape: tuple[int, int]) -> None:
    assert sharpness(np.full(shape, 200, dtype=np.uint8)) == 0.0


def test_the_reduced_copy_is_of_one_size_and_averages_areas() -> None:
    checks = Image.fromarray(np.indices((1000, 2048)).sum(0).astype(np.uint8) % 2 * 255).convert("RGB")
    grey = reduced_grey(checks)
    assert grey.shape == (500, LONG_SIDE) and abs(int(grey.min()) - 127) <= 1 and int(grey.max()) - int(grey.min()) <= 1
    assert reduced_grey(Image.new("L", (30, 1))).shape == (1, 30)
    assert reduced_grey(Image.new("RGB", (5000, 1))).shape == (1, LONG_SIDE)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"grey: expected shape \[h, w\], got \[3, 3, 3\]"):
        sharpness(np.zeros((3, 3, 3)))
