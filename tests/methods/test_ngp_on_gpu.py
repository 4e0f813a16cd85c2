"""`ngp` with the kernels of GPUs learns what it learns with the native ones; on a GPU or interpreted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gpu_checks import DEVICE, NEEDS_TRITON, kernels
from painted_ball import PaintedBall
from test_ngp import SMALL, model_of, train

pytestmark = NEEDS_TRITON


@pytest.mark.slow
def test_the_first_steps_have_the_losses_of_the_native_training() -> None:
    """Loss for loss, picture for picture, and density for density, from the same random numbers.

    Steps are never widened here: how many samples of a ray are evaluated, which that depends on, differs.
    """
    scene = PaintedBall(bounded=True, side=6)
    config = replace(
        SMALL, batch=1024, samples=128, probes=100, log2_rows=10, levels=2, thickness=0.3, step_bounded=0.1, grid=16
    )
    native, ours = model_of(scene, config), model_of(scene, config).to(DEVICE)
    steps = range(14, 18)  # Across an update of the occupancy grid.
    expected = train(native, scene, steps)
    with kernels():
        losses = train(ours, scene, steps)
        picture = ours.render(scene.info.cameras[0])
    assert losses == pytest.approx(expected, rel=2e-3) and len(set(expected)) == len(steps)
    assert torch.equal(ours.occupancy.bits.cpu(), native.occupancy.bits)
    truth = native.render(scene.info.cameras[0])
    assert float((picture.rgb - truth.rgb).abs().max()) < 0.02
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    with kernels():
        density = ours.density_at(points)
    torch.testing.assert_close(density, native.density_at(points), rtol=0.02, atol=0.02)
