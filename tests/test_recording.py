"""recording.py: a step that is recorded and launched again is the step that it would have been.

Under Triton's interpreter the graph is a tape (`tape`), which repeats what was done to the same memory; on a GPU it is
the GPU's own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_checks import DEVICE, NEEDS_TRITON, kernels
from methods.test_ngp import SMALL, model_of
from methods.test_on_a_device import WAITLESS, configured
from painted_ball import PaintedBall
from tape import Tape
from torch import Tensor, nn

from lightfold import devices, ops, trainer
from lightfold.config import RunConfig, TrainConfig
from lightfold.guard import Guard
from lightfold.methods.base import Drawn, Method, Recordable, step_generator
from lightfold.methods.ngp import NGP, NGPConfig
from lightfold.optim import Adam, Group, exponential_after
from lightfold.proposal import Spacing
from lightfold.recording import Recorder, total
from lightfold.run import Run
from lightfold.scene import SceneConfig

TINY = replace(
    SMALL, batch=128, samples=2, log2_rows=8, levels=2, width=8, geometry=8, grid_bounded=16, step_bounded=0.3,
    probes=60, final_lr=0.1, plateau=0.0,
)  # fmt: skip
MAKE: Callable[[], Any] = devices.graphs(DEVICE) or Tape


class Line(nn.Module):
    """A recordable method of two numbers: y = a x + b, in plain PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2, device=DEVICE))
        self.stats: dict[str, Any] = {}
        self.asked = 0

    @property
    def device(self) -> torch.device:
        return DEVICE

    def groups(self) -> list[Group]:
        return [Group("all", [self.weights], 0.1, schedule=exponential_after(0.2, 0.1))]

    def drawn(self, scene: Any, step: int, rng: torch.Generator) -> Drawn:
        x = torch.rand(8 + step % 2, generator=rng)
        return Drawn((len(x),), (x.to(DEVICE), (2 * x - 1).to(DEVICE)))

    def loss_of(self, drawn: Drawn) -> dict[str, Tensor]:
        self.asked += 1
        x, y = drawn.tensors
        error = (self.weights[0] * x + self.weights[1] - y).square()
        self.stats = {"rays": len(x), "mse": error.mean().detach()}
        return {"error": error.mean(), "size": 1e-4 * self.weights.square().sum()}


def one_by_one(method: Any, scene: Any, steps: range) -> tuple[list[float], list[dict[str, float]]]:
    """Losses and counts of a training whose steps are launched kernel by kernel."""
    optim, guard = Adam(method.groups()), Guard(DEVICE)
    optim.keep_rates(DEVICE)
    losses, stats = [], []
    for step in steps:
        loss = total(method.loss_of(method.drawn(scene, step, step_generator(0, step))))
        guard.backward(loss)
        optim.step(step / 100)
        losses.append(float(loss.detach()))
        stats.append({name: float(value) for name, value in method.stats.items()})
        if isinstance(method, NGP):
            method.after_step(step, optim)
    return losses, stats


def recorded(
    method: Any, scene: Any, steps: range, make: Callable[[], Any] = MAKE
) -> tuple[list[float], list[dict[str, float]], Recorder]:
    """The same by a recorder."""
    optim = Adam(method.groups())
    recorder = Recorder(method, optim, Guard(DEVICE), make)
    losses, stats = [], []
    with devices.apart(DEVICE):
        for step in steps:
            loss, terms = recorder.take(method.drawn(scene, step, step_generator(0, step)), step / 100)
            assert float(loss) == pytest.approx(sum(float(term) for term in terms.values()))
            losses.append(float(loss))
            stats.append({name: float(value) for name, value in method.stats.items()})
            if isinstance(method, NGP):
                method.after_step(step, optim)
    return losses, stats, recorder


@NEEDS_TRITON
class TestSteps:
    def test_are_those_of_single_launches(self) -> None:
        """Schedules go on, and two kinds take turns."""
        with kernels():
            expected, expected_stats = one_by_one(Line(), None, range(20))
            method = Line()
            losses, stats, recorder = recorded(method, None, range(20))
        assert losses == pytest.approx(expected, rel=1e-5) and stats == [pytest.approx(row) for row in expected_stats]
        assert losses[-1] < 0.6 * losses[0]
        # The first step makes gradients, and starts over; then of each kind one is launched, and one recorded.
        assert method.asked == 5 and recorder.refused is None

    @pytest.mark.slow
    def test_of_ngp_are_those_of_single_launches(self) -> None:
        """Widths, seeds, learning rates and numbers of rays differ from step to step, and every fourth raises peaks."""
        scene = PaintedBall(bounded=True, views=12, side=8)
        config, steps = replace(TINY, ramp=30), range(8, 20)
        with kernels():
            first, second = (model_of(scene, config).to(DEVICE) for _ in range(2))
            for method in (first, second):
                method.rays.fill_(64)
                method.widen.fill_(1.3)
            expected, expected_stats = one_by_one(first, scene, steps)
            losses, stats, recorder = recorded(second, scene, steps)
        assert recorder.refused is None and len({row["samples"] for row in stats}) > 5
        exact = DEVICE.type == "cpu"
        assert losses == (expected if exact else pytest.approx(expected, rel=1e-2)) and len(set(losses)) == len(steps)
        assert stats == expected_stats or not exact
        for (name, ours), theirs in zip(second.state_dict().items(), first.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs) or not exact, name

    def test_go_on_one_by_one_where_recording_is_refused(self, caplog: pytest.LogCaptureFixture) -> None:
        class Waits(Line):
            def loss_of(self, drawn: Drawn) -> dict[str, Tensor]:
                losses = super().loss_of(drawn)
                self.stats["read"] = float(losses["error"].detach())
                return losses

        with kernels(), caplog.at_level(logging.WARNING):
            expected, _ = one_by_one(Line(), None, range(8))
            losses, _, recorder = recorded(Waits(), None, range(8))
        assert losses == pytest.approx(expected, rel=1e-5)
        assert recorder.refused is not None
        assert [record.getMessage() for record in caplog.records] == [
            f"Steps are launched kernel by kernel, as they could not be recorded: {recorder.refused}"
        ]

    def test_are_recorded_anew_when_a_parameter_has_moved(self) -> None:
        method = Line()
        optim = Adam(method.groups())
        with kernels(), devices.apart(DEVICE):
            recorder = Recorder(method, optim, Guard(DEVICE), MAKE)

            def take(step: int) -> float:
                return float(recorder.take(method.drawn(None, 2 * step, step_generator(0, step)), 0.0)[0])

            for step in range(3):
                take(step)
            asked = method.asked
            method.weights.data = torch.full((2,), 100.0, device=DEVICE)
            assert take(3) > 100 and method.asked == asked + 1

    def test_memory_that_is_short_is_for_the_trainer(self) -> None:
        class Greedy(Line):
            def loss_of(self, drawn: Drawn) -> dict[str, Tensor]:
                if self.asked == 1:
                    raise devices.OutOfMemory("no memory")
                return super().loss_of(drawn)

        method = Greedy()
        with kernels(), devices.apart(DEVICE):
            recorder = Recorder(method, Adam(method.groups()), Guard(DEVICE), MAKE)
            drawn = method.drawn(None, 0, step_generator(0, 0))
            recorder.take(drawn, 0.0)
            with pytest.raises(devices.OutOfMemory):
                recorder.take(drawn, 0.0)
            recorder.forget()
            method.asked = 2
            assert torch.isfinite(recorder.take(drawn, 0.0)[0]) and recorder.refused is None


def test_a_step_that_is_recorded_sends_nothing_and_others_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may render a picture meanwhile, on a device of its own mind."""
    here, there, found = torch.ones(2), torch.device("meta"), []
    with pytest.raises(RuntimeError, match="sends something from the host"), devices.recording(Tape(), None, None):
        thread = threading.Thread(target=lambda: found.append(devices.sent(here, there)))
        thread.start()
        thread.join()
        devices.sent(here, there)
    assert len(found) == 1 and devices.sent(here, there).device == there


@NEEDS_TRITON
class TestTape:
    """The stand-in is as strict as what it stands for."""

    def test_recording_changes_nothing_and_replaying_does(self) -> None:
        x, y = torch.ones(3), torch.zeros(2, 3)
        tape = Tape()
        tape.capture_begin()
        z = (2 * x).add_(1.0)
        y[1].copy_(z)
        tape.capture_end()
        assert float(y.sum()) == 0
        x.fill_(5.0)
        tape.replay()
        assert y.tolist() == [[0.0] * 3, [11.0] * 3] and z.tolist() == [11.0] * 3

    def test_to_look_is_refused(self) -> None:
        tape = Tape()
        tape.capture_begin()
        with pytest.raises(RuntimeError, match="capturing"):
            float(torch.ones(()) + 1)
        tape.capture_end()


def test_ngp_can_be_recorded_and_nobody_is_taken_for_what_they_are_not() -> None:
    ball = PaintedBall(views=6, side=4)
    assert isinstance(NGP(NGPConfig(log2_rows=4, grid_bounded=16), ball.info), Recordable)
    assert not isinstance(nn.Linear(2, 2), Recordable)


@pytest.fixture
def here_as_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU is taken for a device with graphs, on which methods compute in plain PyTorch."""
    monkeypatch.setattr(devices, "TRITON_DEVICES", ("cpu",))
    monkeypatch.setattr(Method, "fixed_sizes", True)
    monkeypatch.setattr(Spacing, "_check", lambda *_: None)  # It looks at what is on the CPU.


@NEEDS_TRITON
@pytest.mark.skipif(DEVICE.type != "cpu", reason="on a GPU `test_on_a_gpu` trains all methods")
@pytest.mark.parametrize("kind", [pytest.param("bounded", marks=pytest.mark.slow), "unbounded"])
@pytest.mark.parametrize(("name", "options"), WAITLESS)
def test_steps_of_methods_that_look_at_pixels(
    name: str, options: dict[str, Any], kind: str, here_as_there: None
) -> None:
    """Random numbers are others in each step, poses begin to move, and proposals learn in some steps only."""
    options = options | ({"annealed": 3} if name == "zipnerf" else {})
    options = options | ({"pose_delay": 4} if "poses" in options else {})
    found = []
    for record in (False, True):
        method, scene = configured(name, kind, options)
        assert isinstance(method, Recordable)
        optim = Adam(method.groups())
        recorder = Recorder(method, optim, Guard(DEVICE), Tape)
        losses = []
        for step in {"nerfacto": range(998, 1010), "zipnerf": range(10)}.get(name, range(4)):
            with ops.use("reference"):
                drawn = method.drawn(scene, step, step_generator(0, step))
                if record:
                    loss, _ = recorder.take(drawn, step / 2000)
                else:
                    loss = total(method.loss_of(drawn))
                    loss.backward()
                    optim.step(step / 2000)
                losses.append((float(loss.detach()), float(method.stats["mse"])))
                method.after_step(step, optim)
        assert recorder.refused is None
        found.append((losses, [p.detach() for p in method.parameters()]))
        if record:
            assert len(recorder._recordings) >= 1
    (losses, params), (others, ours) = found
    assert losses == others and len(set(losses)) == len(losses)
    assert all(torch.equal(a, b) for a, b in zip(params, ours, strict=True))


@NEEDS_TRITON
@pytest.mark.skipif(DEVICE.type != "cpu", reason="on a GPU `test_on_a_gpu` has trainings")
def test_a_training_takes_recorded_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's own loop, checkpoint and metrics, bit for bit as where nothing can be recorded; and without a
    recorder if that is asked for."""

    class Refuses(Tape):
        def capture_begin(self, pool: Any = None) -> None:
            raise RuntimeError("no graphs here")

    monkeypatch.setattr(devices, "number", lambda value: value.detach())
    monkeypatch.setattr(Spacing, "_check", lambda *_: None)
    monkeypatch.setattr(Method, "fixed_sizes", True)
    found, launches = {}, []
    for name, make in {"recorded": Tape, "refused": Refuses, "not asked for": Tape}.items():
        monkeypatch.setattr(trainer, "graphs", lambda device, make=make: make)
        monkeypatch.setattr(Recorder, "take", counted := Counted(Recorder.take))
        method, scene = configured("nerf", "unbounded", {})
        habits = TrainConfig(steps=6, eval_every=0, record=name != "not asked for")
        run = Run.create(tmp_path / name, RunConfig("/c", "nerf", method.config, SceneConfig(), habits), scene.info)
        scene.view = scene.scene.view
        with ops.use("reference"):
            trainer.train(run, scene, method, habits, progress=False)
        monkeypatch.setattr(Recorder, "take", counted.function)
        launches.append(counted.calls)
        saved = run.checkpoint()
        assert saved is not None and saved.step == 6
        found[name] = saved.tensors
        assert run.metrics()[-1]["loss"] > 0
    assert launches == [6, 6, 0]
    assert all(torch.equal(t, found["refused"][name]) for name, t in found["recorded"].items())
    assert not all(torch.equal(t, found["refused"][name]) for name, t in found["not asked for"].items())


class Counted:
    """A function, and how often it was called."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __get__(self, instance: Any, owner: Any) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            self.calls += 1
            return self.function(instance, *arguments)

        return called
