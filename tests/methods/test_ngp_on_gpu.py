"""`ngp` with the kernels of GPUs learns what it learns with the native ones; on a GPU or interpreted."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gpu_checks import DEVICE, NEEDS_TRITON, kernels
from painted_ball import PaintedBall
from test_ngp import SMALL, model_of, train

from lightfold.config import RunConfig, TrainConfig
from lightfold.metrics import psnr
from lightfold.optim import Adam
from lightfold.run import Run
from lightfold.scene import SceneConfig

pytestmark = NEEDS_TRITON


@pytest.mark.slow
def test_the_first_steps_have_the_losses_of_the_native_training() -> None:
    """Loss for loss, picture for picture, and density for density, from the same random numbers.

    Steps are never widened here: how many samples of a ray are evaluated, which that depends on, differs.
    """
    scene = PaintedBall(bounded=True, side=6)
    config = replace(
        SMALL,
        batch=1024,
        samples=128,
        probes=100,
        log2_rows=10,
        levels=2,
        thickness=0.3,
        step_bounded=0.1,
        grid_bounded=16,
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


@pytest.mark.slow
@pytest.mark.parametrize("first", ["native", "triton"])
def test_a_checkpoint_moves_between_the_kernels(first: str, tmp_path: Path) -> None:
    """Trained with those of one device, it is rendered, and trained on, with those of the other; within 0.05 dB."""
    scene = PaintedBall(bounded=True, views=12, side=8)
    config = replace(
        SMALL, batch=512, samples=16, log2_rows=10, levels=2, grid_bounded=16, step_bounded=0.06, probes=100
    )
    steps = range(300) if first == "native" else range(2)
    here, there = (nullcontext, kernels) if first == "native" else (kernels, nullcontext)
    places = (torch.device("cpu"), DEVICE) if first == "native" else (DEVICE, torch.device("cpu"))
    model = model_of(scene, config).to(places[0])
    optim = Adam(model.groups())
    with here():
        train(model, scene, steps, optim=optim)
    settings = RunConfig("/captures/ball", "ngp", config, SceneConfig(), TrainConfig())
    run = Run.create(tmp_path / "run", settings, scene.info)
    run.save_checkpoint(len(steps), model.state_dict(), optim.state())
    camera, truth = scene.info.cameras[0], scene.truth(0)
    with here():
        before = psnr(model.render(camera).rgb, truth)
    found = run.checkpoint(resume=True)
    assert found is not None and found.resume is not None
    other = model_of(scene, config, seed=1)
    other.load_state_dict(found.tensors)
    other = other.to(places[1])
    moments = Adam(other.groups())
    moments.load_state(found.resume)
    with there():
        assert psnr(other.render(camera).rgb, truth) == pytest.approx(before, abs=0.05)
        (loss,) = train(other, scene, range(len(steps), len(steps) + 1), optim=moments)
    with here():
        (expected,) = train(model, scene, range(len(steps), len(steps) + 1), optim=optim)
    assert loss == pytest.approx(expected, rel=5e-3)
