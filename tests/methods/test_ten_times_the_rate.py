"""Every method trained for 500 steps at ten times its learning rates, by the trainer itself: whatever becomes of the
picture, every parameter stays a number."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from kernel_checks import threads

from lightfold import trainer
from lightfold.config import RunConfig, TrainConfig, lookup
from lightfold.formats import open_capture
from lightfold.run import Run, placed
from lightfold.scene import Scene, SceneConfig, load_scene

SAMPLE = Path(__file__).parents[2] / "examples" / "sample"
SMALL = SceneConfig(max_side=64)
STEPS = 500


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return load_scene(open_capture(SAMPLE).posed(), SMALL, tmp_path_factory.mktemp("cache"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nerf:tiny", "ngp:fast", "nerfacto", "mipnerf360:small", "neus:fast", "zipnerf:fast"])
def test_ten_times_the_learning_rates(name: str, scene: Scene, tmp_path: Path) -> None:
    make, usual = lookup(name)
    names = {field.name for field in fields(usual)} - {"final_lr"}  # which is a share
    rates = [name for name in names if name == "lr" or name.endswith("_lr")]
    options = replace(usual, **{rate: 10 * getattr(usual, rate) for rate in rates})
    budget = TrainConfig(steps=STEPS, eval_every=0, checkpoint_every=0)
    run = Run.create(tmp_path / "run", RunConfig(str(SAMPLE), name, options, SMALL, budget), scene.info)
    torch.manual_seed(0)
    method = placed(make(options, run.info))
    with threads(1):
        trainer.train(run, scene, method, budget, progress=False)
    assert rates and run.steps()[-1] == STEPS
    bad = [
        key for key, value in method.state_dict().items() if value.is_floating_point() and not value.isfinite().all()
    ]
    assert not bad
    image = method.render(scene.info.cameras[scene.info.test[0]].resized(16, 12))
    assert image.rgb.isfinite().all() and image.depth.isfinite().all()
    assert math.isfinite(float(method.stats["mse"]))
