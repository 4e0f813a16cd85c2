"""`neus` with the kernels of GPUs learns what it learns with the native ones; on a GPU or interpreted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gpu_checks import DEVICE, NEEDS_TRITON, kernels
from painted_ball import PaintedBall
from test_neus_method import SMALL

from lightfold.methods.base import step_generator
from lightfold.methods.neus import NeuS
from lightfold.optim import Adam

pytestmark = [NEEDS_TRITON, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


CONFIG = replace(SMALL, grid=16, batch=256, step=0.03, level_every=2, refresh=2)


def trained(scene: PaintedBall, device: torch.device) -> tuple[NeuS, list[float], list[int]]:
    """A method after four steps; their losses, and how many samples they kept."""
    torch.manual_seed(0)
    method = NeuS(CONFIG, scene.info)
    method.rays.fill_(24)
    method.to(device)
    optim, losses, counts = Adam(method.groups()), [], []
    for step in range(4):
        loss = torch.stack(list(method.loss(scene, step, step_generator(0, step)).values())).sum()  # type: ignore[arg-type]
        loss.backward()
        optim.step(0.1)
        losses.append(float(loss.detach()))
        counts.append(method.stats["kept"])
    return method, losses, counts


@pytest.mark.slow
def test_the_first_steps_have_the_losses_of_the_native_training() -> None:
    """Loss for loss and count for count, from the same random numbers, while levels are switched on; then a picture."""
    scene = PaintedBall(bounded=True, views=6, side=6)
    native, expected, kept = trained(scene, torch.device("cpu"))
    truth = native.render(scene.info.cameras[0])
    with kernels():
        ours, losses, counts = trained(scene, DEVICE)
        picture = ours.render(scene.info.cameras[0])
    assert losses == pytest.approx(expected, rel=2e-3) and len(set(expected)) == 4 and min(kept) > 20
    assert all(abs(a - b) <= 2 for a, b in zip(counts, kept, strict=True))
    assert float((picture.rgb - truth.rgb).abs().max()) < 0.02
    assert picture.normal is not None and truth.normal is not None
    assert float((picture.normal - truth.normal).abs().mean()) < 0.02
