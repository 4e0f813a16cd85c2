"""What only a GPU can show: whole trainings there, steps in which nothing waits, runs that move from device to device.

`make gpu` runs these, the tests of the kernels, and the benchmark. Without a GPU all of it is skipped; what can be
tested under Triton's interpreter is tested elsewhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from painted_ball import PaintedBall

from lightfold import devices
from lightfold.config import RunConfig, TrainConfig
from lightfold.formats import open_capture
from lightfold.guard import Guard
from lightfold.machine import cache_folder
from lightfold.methods import METHODS, method_class
from lightfold.methods.base import Recordable, step_generator
from lightfold.methods.ngp import NGP, NGPConfig
from lightfold.metrics import psnr
from lightfold.optim import Adam
from lightfold.run import Run, placed
from lightfold.scene import SceneConfig, load_scene
from lightfold.trainer import train

SAMPLE = Path(__file__).parents[1] / "examples" / "sample"
GPU = devices.choose()
pytestmark = pytest.mark.skipif(GPU == devices.CPU, reason="PyTorch sees no GPU that Triton has kernels for")
SMALL = NGPConfig(
    steps=200, levels=4, log2_rows=12, base=8, finest=128, finest_bounded=64, width=16, geometry=8, batch=8192,
    samples=16, grid=32, grid_bounded=32, cascades=4, probes=2000, ramp=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def ball() -> PaintedBall:
    return PaintedBall(bounded=True)


def lightfold(*words: str) -> str:
    command = [sys.executable, "-m", "lightfold", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_train_eval_render_and_export_by_the_command_line(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    said = lightfold("train", "ngp:fast", str(SAMPLE), "--steps", "300", "--scene.max-side", "200", "--out", run)
    assert "--model.batch 262144" in said and f"Training on {devices.title(GPU)}" in said and "there too" in said
    lightfold("eval", run)
    result = json.loads((Path(run) / "eval.json").read_text())
    assert result["mean"]["psnr"] > 15 and result["protocol"]["device"] == devices.title(GPU)
    lightfold("render", run, "--frames", "3", "--size", "64", "48", "--stills")
    lightfold("export", run, "mesh", "--resolution", "48", "--views", "4")


def test_a_run_moves_from_the_cpu_to_the_gpu_and_back(tmp_path: Path, ball: PaintedBall) -> None:
    """Weights, moments and controllers; a picture is the same on both within 0.05 dB, in any precision."""
    config = RunConfig("/captures/ball", "ngp", SMALL, SceneConfig(), TrainConfig(steps=60, eval_every=0))
    run = Run.create(tmp_path / "run", config, ball.info)
    for steps, device in ((60, devices.CPU), (120, GPU), (160, devices.CPU), (200, GPU)):
        run.reconfigure(replace(run.config.train, steps=steps))
        method = placed(NGP(SMALL, ball.info), "auto", device)
        train(run, ball, method, run.config.train, progress=False)  # type: ignore[arg-type]
        truth, camera = ball.truth(0), ball.info.cameras[0]
        scores = [psnr(run.method(device=d).render(camera).rgb, truth) for d in (devices.CPU, GPU)]
        assert abs(scores[0] - scores[1]) < 0.05, (steps, scores)
    assert scores[1] > 22


@pytest.mark.parametrize("name", [name for name in METHODS if name != "neus"])
def test_nothing_waits_in_a_step(name: str) -> None:
    """PyTorch raises where the host would have to wait; the trainer's own reading is by events, long past. The steps
    are those around the thousandth: poses move by then, and proposals learn in some steps only."""
    if GPU.type != "cuda":
        pytest.skip("PyTorch watches for waits on CUDA and ROCm only")
    scene = load_scene(open_capture(SAMPLE), SceneConfig(max_side=100), cache_folder()).on(GPU, 0.5)
    cls = method_class(name)
    config = replace(SMALL, finest=256) if name == "ngp" else cls.PRESETS.get("small", cls.PRESETS[""])
    torch.manual_seed(0)
    method = placed(cls(config, scene.info), "auto", GPU)
    optim, reports, guard = Adam(method.groups()), devices.Reports(GPU), Guard(GPU, method.half_type)

    def steps(span: range) -> None:
        for step in span:
            loss = torch.stack(list(method.loss(scene, step, step_generator(0, step)).values())).sum()
            numbers = reports.turn({"loss": loss.detach(), **method.stats})
            numbers.pop("loss")
            method.stats = numbers
            guard.backward(loss)
            guard.clean(optim.groups)
            optim.step(0.1)
            method.after_step(step, optim)

    steps(range(980, 1020))  # Kernels are compiled, memory is taken.
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(range(1020, 1060))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_recorded_training_is_as_good_as_one_that_is_not(tmp_path: Path, ball: PaintedBall) -> None:
    scores, seconds = [], []
    for record in (True, False):
        habits = TrainConfig(steps=200, eval_every=0, record=record)
        run = Run.create(
            tmp_path / f"run-{record}", RunConfig("/captures/ball", "ngp", SMALL, SceneConfig(), habits), ball.info
        )
        method = placed(NGP(SMALL, ball.info), "auto", GPU)
        train(run, ball, method, habits, progress=False)  # type: ignore[arg-type]
        scores.append(psnr(method.render(ball.info.cameras[0]).rgb, ball.truth(0)))
        seconds.append(run.metrics()[-1]["seconds"])
    assert min(scores) > 22 and abs(scores[0] - scores[1]) < 1.0, (scores, seconds)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_nothing_refuses_to_be_recorded(
    name: str, tmp_path: Path, ball: PaintedBall, caplog: pytest.LogCaptureFixture
) -> None:
    cls = method_class(name)
    config, habits = cls.PRESETS.get("small", cls.PRESETS[""]), TrainConfig(steps=60, eval_every=0)
    run = Run.create(tmp_path / "run", RunConfig("/captures/ball", name, config, SceneConfig(), habits), ball.info)
    torch.manual_seed(0)
    method = placed(cls(config, ball.info), "auto", GPU)
    with caplog.at_level("WARNING"):
        train(run, ball, method, habits, progress=False)  # type: ignore[arg-type]
    assert [record.getMessage() for record in caplog.records] == []
    assert isinstance(method, Recordable) == (name != "neus")
    assert all(bool(p.isfinite().all()) for p in method.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_some_steps(name: str, ball: PaintedBall) -> None:
    cls = method_class(name)
    torch.manual_seed(0)
    method = placed(cls(cls.PRESETS.get("small", cls.PRESETS[""]), ball.info), "auto", GPU)
    optim = Adam(method.groups())
    for step in range(4):
        loss = torch.stack(list(method.loss(ball, step, step_generator(0, step)).values())).sum()  # type: ignore[arg-type]
        loss.backward()
        optim.step(0.1)
        method.after_step(step, optim)
        assert bool(loss.isfinite())
    image = method.render(ball.info.cameras[0].resized(8, 8))
    assert image.rgb.device == devices.CPU and bool(image.rgb.isfinite().all())


def test_the_same_pixels_are_drawn_there() -> None:
    here = load_scene(open_capture(SAMPLE), SceneConfig(max_side=100), cache_folder())
    expected = here.pixels(1000, torch.Generator().manual_seed(1))
    for share in (0.0, 0.5):
        drawn = here.on(GPU, share).pixels(1000, torch.Generator().manual_seed(1))
        assert torch.equal(drawn.rgb.cpu(), expected.rgb) and torch.equal(drawn.xy.cpu(), expected.xy)
        torch.testing.assert_close(drawn.rays.direction.cpu(), expected.rays.direction)


@pytest.mark.parametrize("record", [True, False], ids=["recorded", "kernel by kernel"])
def test_a_loss_that_is_not_finite_harms_no_weight(record: bool, tmp_path: Path, ball: PaintedBall) -> None:
    class Broken(NGP):
        def drawn(self, scene, step, rng):
            found = super().drawn(scene, step, rng)
            if step == 20:
                found.tensors[0].fill_(float("nan"))
            return found

    habits = TrainConfig(steps=60, eval_every=0, record=record)
    run = Run.create(tmp_path / "run", RunConfig("/captures/ball", "ngp", SMALL, SceneConfig(), habits), ball.info)
    train(run, ball, placed(Broken(SMALL, ball.info), "auto", GPU), habits, progress=False)  # type: ignore[arg-type]
    found = run.checkpoint()
    assert found is not None and found.step == 60
    assert all(bool(t.isfinite().all()) for t in found.tensors.values())
