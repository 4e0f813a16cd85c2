"""trainer.py: budgets, resuming bit for bit, losses that are not finite, and what is written meanwhile."""

from __future__ import annotations

import gc
import itertools
import math
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from kernel_checks import threads
from painted_ball import PaintedBall
from PIL import Image as Picture
from torch import Generator, Tensor, nn

from lightfold import ops, trainer
from lightfold.cameras import Camera
from lightfold.config import RunConfig, TrainConfig
from lightfold.errors import LightfoldError, RunError
from lightfold.methods.base import Image, Method
from lightfold.methods.ngp import NGP, NGPConfig
from lightfold.optim import Adam, Group, exponential_after
from lightfold.run import Run
from lightfold.scene import SceneConfig
from lightfold.trainer import Budget, train

TINY = NGPConfig(
    steps=64, levels=2, features=2, log2_rows=9, base=4, finest_bounded=16, width=8, geometry=8, batch=1024,
    samples=8, step=0.06, grid=16, grid_bounded=16, probes=500,
)  # fmt: skip


@pytest.fixture(scope="module")
def ball() -> PaintedBall:
    return PaintedBall(views=7, side=16)


class Clock:
    """A clock that goes as fast as it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=clock, process_time=clock))
    return clock


class Slope(Method):
    """One number that learns to be one. A step takes a second, a picture a hundred."""

    Config = NGPConfig
    PRESETS: ClassVar[dict[str, Any]] = {"": TINY}

    def __init__(self, config: NGPConfig, info: Any, clock: Clock | None = None) -> None:
        super().__init__(config, info)
        self.value = nn.Parameter(torch.zeros(1))
        self.clock = clock or Clock()
        self.bad: Callable[[int], bool] = lambda step: False
        """Steps whose loss is not a number."""
        self.seen: list[int] = []
        self.pictures = 0
        self.picture_seconds = 100.0

    def groups(self) -> list[Group]:
        return [Group("value", [self.value], 0.1, schedule=exponential_after(0.5, 0.01))]

    def loss(self, scene: Any, step: int, rng: Generator) -> dict[str, Tensor]:
        self.seen.append(step)
        self.clock.now += 1.0
        error = (self.value - 1).square().sum()
        self.stats = {"rays": 10.0, "samples": 70.0, "mse": float(error.detach())}
        return {"colour": error * (math.nan if self.bad(step) else 1.0), "prior": 0.01 * self.value.square().sum()}

    def render(self, camera: Camera, background: Tensor | None = None) -> Image:
        self.clock.now += self.picture_seconds
        self.pictures += 1
        shape = (camera.height, camera.width)
        return Image(torch.full((*shape, 3), 0.5), torch.ones(shape), torch.ones(shape))


def run_of(folder: Path, scene: PaintedBall, **options: Any) -> Run:
    defaults: dict[str, Any] = {"eval_every": 0.0, "checkpoint_every": 0.0}
    config = RunConfig("/captures/ball", "ngp", TINY, SceneConfig(), TrainConfig(**(defaults | options)))
    return Run.create(folder, config, scene.info)


def start(run: Run, scene: PaintedBall, method: Method) -> None:
    train(run, scene, method, run.config.train, progress=False)  # type: ignore[arg-type]


def ngp(scene: PaintedBall, kind: type[NGP] = NGP, seed: int = 0) -> NGP:
    torch.manual_seed(seed)
    return kind(TINY, scene.info)


@pytest.mark.parametrize("by_kernels", [True, False])
def test_threads_are_pytorchs_where_its_operations_are_the_step(
    tmp_path: Path, ball: PaintedBall, monkeypatch: pytest.MonkeyPatch, by_kernels: bool
) -> None:
    found = []

    def loss(self: Slope, scene: Any, step: int, rng: Generator) -> dict[str, Tensor]:
        found.append(torch.get_num_threads())
        return {"colour": self.value.square().sum()}

    monkeypatch.setattr(Slope, "BY_KERNELS", by_kernels)
    monkeypatch.setattr(Slope, "loss", loss)
    with threads(2):
        start(run_of(tmp_path / "run", ball, steps=1), ball, Slope(TINY, ball.info))
        assert found == [1 if by_kernels else 2] and torch.get_num_threads() == 2


class Interrupted(NGP):
    """Stops before a step, as if Ctrl-C had come exactly then."""

    at = -1

    def loss(self, scene: Any, step: int, rng: Generator) -> dict[str, Tensor]:
        if step == self.at:
            raise KeyboardInterrupt
        return super().loss(scene, step, rng)


def final(run: Run) -> dict[str, Tensor]:
    found = run.checkpoint(resume=True)
    assert found is not None and found.resume is not None
    resume = {f"resume.{name}": t for name, t in found.resume.items() if name != "seconds"}
    return {**found.tensors, **resume, "step": torch.tensor(found.step)}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, f"{different} differ"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, ball: PaintedBall) -> dict[str, Tensor]:
    """What 64 steps without a break end in."""
    run = run_of(tmp_path_factory.mktemp("straight") / "run", ball, steps=64)
    start(run, ball, ngp(ball))
    return final(run)


class TestResuming:
    @pytest.mark.parametrize("at", [[27], [32], [1, 33, 63]], ids=str)
    def test_bit_for_bit(self, at: list[int], tmp_path: Path, ball: PaintedBall, straight: dict[str, Tensor]) -> None:
        """Stopped and continued, once or more, on the edge of a block of batches or in the middle of one."""
        run_of(tmp_path / "run", ball, steps=64)
        for stop in at:
            method = ngp(ball, Interrupted, seed=stop)
            assert isinstance(method, Interrupted)
            method.at = stop
            if stop == at[0]:
                method.load_state_dict(ngp(ball).state_dict())
            with pytest.raises(KeyboardInterrupt):
                start(Run.open(tmp_path / "run"), ball, method)
            assert Run.open(tmp_path / "run").steps()[-1] == stop
        start(Run.open(tmp_path / "run"), ball, ngp(ball, seed=9))
        assert_same(final(Run.open(tmp_path / "run")), straight)

    def test_evaluation_and_checkpoints_change_nothing(
        self, tmp_path: Path, ball: PaintedBall, straight: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ticks = itertools.count()  # A clock that goes on by one whenever it is looked at.
        clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)), process_time=lambda: 0.0)
        monkeypatch.setattr(trainer, "time", clock)
        run = run_of(tmp_path / "run", ball, steps=64, eval_every=25.0, checkpoint_every=30.0)
        start(run, ball, ngp(ball))
        assert len([row for row in run.metrics() if "held_out_psnr" in row]) > 3
        assert_same(final(run), straight)

    def test_a_signal_waits_for_the_end_of_the_step(
        self, tmp_path: Path, ball: PaintedBall, straight: dict[str, Tensor]
    ) -> None:
        """A real Ctrl-C, in the middle of a step."""

        class Signalled(NGP):
            def after_step(self, step: int, optim: Adam) -> None:
                if step == 20:
                    os.kill(os.getpid(), signal.SIGINT)
                super().after_step(step, optim)

        before = signal.getsignal(signal.SIGINT)
        run = run_of(tmp_path / "run", ball, steps=64)
        with pytest.raises(KeyboardInterrupt):
            start(run, ball, ngp(ball, Signalled))
        assert signal.getsignal(signal.SIGINT) is before
        assert run.steps() == [21]
        start(run, ball, ngp(ball, seed=3))
        assert_same(final(run), straight)

    def test_a_finished_training_stays_finished(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        run = run_of(tmp_path / "run", ball, steps=5)
        start(run, ball, Slope(TINY, ball.info, clock))
        before, again = final(run), Slope(TINY, ball.info, clock)
        start(Run.open(run.path), ball, again)
        assert again.seen == [] and float(again.value.detach()) == float(before["value"])
        assert_same(final(run), before)

    def test_a_longer_budget_goes_on(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        run = run_of(tmp_path / "run", ball, steps=5)
        start(run, ball, Slope(TINY, ball.info, clock))
        run.reconfigure(replace(run.config.train, steps=8))
        method = Slope(TINY, ball.info, clock)
        start(run, ball, method)
        assert method.seen == [5, 6, 7]


class TestBudget:
    def test_the_methods_own_steps(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        run, method = run_of(tmp_path / "run", ball), Slope(TINY, ball.info, clock)
        start(run, ball, method)
        assert method.seen == list(range(TINY.steps)) and run.steps()[-1] == TINY.steps

    def test_minutes(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        """Pictures and scores take most of the time here, and do not count. One that dear is not asked for again."""
        run, method = run_of(tmp_path / "run", ball, minutes=2.0, eval_every=20.0), Slope(TINY, ball.info, clock)
        start(run, ball, method)
        assert method.pictures >= 5
        assert sum("held_out_psnr" in row for row in run.metrics()) == 1
        assert method.seen == list(range(120))

    def test_whichever_ends_first(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        for name, minutes, steps, expected in (("a", 0.5, 100, 30), ("b", 0.5, 10, 10)):
            method = Slope(TINY, ball.info, clock)
            start(run_of(tmp_path / name, ball, minutes=minutes, steps=steps), ball, method)
            assert len(method.seen) == expected

    def test_time_of_earlier_sittings_counts(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        run, method = run_of(tmp_path / "run", ball, minutes=1.0), Slope(TINY, ball.info, clock)

        def stop(step: int) -> bool:
            if step == 24:
                raise KeyboardInterrupt
            return False

        method.bad = stop
        with pytest.raises(KeyboardInterrupt):
            start(run, ball, method)
        second = Slope(TINY, ball.info, clock)
        start(run, ball, second)
        # The step that was interrupted had taken its second.
        assert second.seen == list(range(24, 59))

    def test_schedules_run_over_the_budget(self, clock: Clock) -> None:
        by_steps, by_time = Budget(TrainConfig(steps=10), 99), Budget(TrainConfig(minutes=1.0), 99)
        for budget in (by_steps, by_time):
            budget.start(0)
        clock.now += 15.0
        assert by_steps.fraction(5) == 0.5 and by_steps.fraction(12) == 1.0
        assert by_time.fraction(10_000) == 0.25
        clock.now += 100.0
        assert by_time.fraction(0) == 1.0 and by_time.spent(0)

    def test_a_pause_does_not_count(self, clock: Clock) -> None:
        budget = Budget(TrainConfig(minutes=1.0), 99)
        budget.start(0)
        clock.now += 10.0
        with budget.paused():
            clock.now += 500.0
        assert budget.elapsed() == pytest.approx(10.0) and budget.cpu() == pytest.approx(10.0)

    def test_a_pause_does_not_count_while_it_lasts(self, clock: Clock) -> None:
        """Rows of metrics, and the seconds in a checkpoint, are written within one."""
        budget = Budget(TrainConfig(minutes=1.0), 99)
        budget.start(0)
        clock.now += 10.0
        with budget.paused():
            clock.now += 500.0
            assert budget.elapsed() == pytest.approx(10.0)

    def test_evaluation_is_not_in_the_checkpoint(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        run = run_of(tmp_path / "run", ball, steps=30, eval_every=10.0, checkpoint_every=9.0)
        start(run, ball, Slope(TINY, ball.info, clock))
        for step in run.steps():
            resume = run.checkpoint(step, resume=True).resume  # type: ignore[union-attr]
            assert resume is not None and float(resume["seconds"]) == pytest.approx(step, abs=1.01)


class TestNotFinite:
    def test_a_single_step_is_skipped(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        run, method = run_of(tmp_path / "run", ball, steps=20), Slope(TINY, ball.info, clock)
        method.bad = lambda step: step in (7, 12)
        start(run, ball, method)
        assert method.seen == list(range(20)) and run.notes == []
        assert int(final(run)["resume.step_count"]) == 18
        assert math.isfinite(float(method.value.detach()))

    def test_if_it_repeats_the_last_good_state_returns(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        run = run_of(tmp_path / "run", ball, steps=60, checkpoint_every=10.0)
        method = Slope(TINY, ball.info, clock)
        method.bad = lambda step: 30 <= step < 35
        start(run, ball, method)
        (note,) = run.notes
        found = re.fullmatch(r"The loss was not finite at step 34; the state of step (\d+) was restored\.", note)
        assert found is not None and 20 <= (saved := int(found[1])) <= 30
        assert method.seen == list(range(60))
        assert int(final(run)["resume.step_count"]) == 60 - 5 - (30 - saved)

    def test_weights_that_are_not_numbers_are_replaced(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        """The usual course: one step ruins the weights, and every loss after it."""
        run = run_of(tmp_path / "run", ball, steps=60, checkpoint_every=10.0)
        method = Slope(TINY, ball.info, clock)

        def ruin(step: int, optim: Adam) -> None:
            if step == 40:
                method.value.data.fill_(math.nan)

        method.after_step = ruin  # type: ignore[method-assign]
        start(run, ball, method)
        assert len(run.notes) == 1 and math.isfinite(float(method.value.detach()))
        assert float(method.value.detach()) == pytest.approx(1.0, abs=0.2)

    def test_a_ruined_state_is_not_saved(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        """Else the retreat leads back to it, past a good checkpoint before."""
        run = run_of(tmp_path / "run", ball, steps=60, checkpoint_every=1e-9)
        method = Slope(TINY, ball.info, clock)

        def ruin(step: int, optim: Adam) -> None:
            if step == 40:
                method.value.data.fill_(math.nan)

        method.after_step = ruin  # type: ignore[method-assign]
        start(run, ball, method)
        assert len(run.notes) == 1 and math.isfinite(float(method.value.detach()))

    def test_a_hopeless_training_gives_up_in_a_sentence(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        run = run_of(tmp_path / "run", ball, steps=200, checkpoint_every=10.0)
        method = Slope(TINY, ball.info, clock)
        method.bad = lambda step: step >= 30
        with pytest.raises(RunError, match="not finite .* Lower the learning rates"):
            start(run, ball, method)
        assert all(t.isfinite().all() for t in final(run).values())
        assert len(method.seen) < 60 and gc.isenabled()

    def test_without_a_checkpoint_too(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        run, method = run_of(tmp_path / "run", ball, steps=200), Slope(TINY, ball.info, clock)
        method.bad = lambda step: True
        with pytest.raises(RunError, match="not finite"):
            start(run, ball, method)
        assert run.steps() == []

    def test_a_retreat_costs_no_time(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        run = run_of(tmp_path / "run", ball, minutes=2.0, checkpoint_every=10.0)
        method = Slope(TINY, ball.info, clock)
        method.bad = lambda step: 60 <= step < 65
        start(run, ball, method)
        assert len(run.notes) == 1 and len(method.seen) == 120

    def test_a_learning_rate_too_high_never_leaves_numbers_that_are_not(
        self, tmp_path: Path, ball: PaintedBall
    ) -> None:
        """Either it holds, or the trainer gives up and says so; no checkpoint has NaN in it."""

        class Reckless(NGP):
            def groups(self) -> list[Group]:
                return [replace(group, lr=1e30) for group in super().groups()]

        run = run_of(tmp_path / "run", ball, steps=40, checkpoint_every=1e-9)
        with pytest.raises(RunError, match="Lower the learning rates"):
            start(run, ball, ngp(ball, Reckless))
        found = run.checkpoint(resume=True)
        assert found is not None
        assert all(t.isfinite().all() for name, t in found.tensors.items() if t.is_floating_point())


class TestWriting:
    def test_rows(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        run, method = run_of(tmp_path / "run", ball, steps=50, eval_every=15.0), Slope(TINY, ball.info, clock)
        method.picture_seconds = 0.5
        start(run, ball, method)
        rows = run.metrics()
        scores = [row for row in rows if "held_out_psnr" in row]
        rows = [row for row in rows if "loss" in row]
        assert len(scores) >= 2 and len(rows) > 5
        assert [row["step"] for row in rows] == sorted({row["step"] for row in rows}) and rows[-1]["step"] == 50
        for row in rows:
            assert {
                "train_psnr",
                "rays_per_second",
                "samples_per_second",
                "seconds",
                "loss_colour",
                "loss_prior",
            } <= set(row)
            assert row["samples_per_second"] == pytest.approx(7 * row["rays_per_second"])
            assert all(value is not None and math.isfinite(value) for value in row.values())
        expected = torch.stack([(0.5 - ball.truth(i)).square().mean() for i in ball.info.test])
        # The picture is rounded to eight bits: 0.5 becomes 128 / 255.
        assert scores[0]["held_out_psnr"] == pytest.approx(float((-10 * expected.log10()).mean()), abs=0.1)
        assert scores[0]["held_out_views"] == len(ball.info.test)

    def test_rates_are_those_of_training(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        """Ten rays a second, whatever the pictures between take."""
        run = run_of(tmp_path / "run", ball, steps=50, eval_every=15.0)
        start(run, ball, Slope(TINY, ball.info, clock))
        for row in run.metrics():
            if "loss" in row:
                assert row["rays_per_second"] == pytest.approx(10.0)
                assert row["seconds"] == pytest.approx(row["step"])

    def test_preview(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        """While training, and at the latest when it ends; never larger than it needs to be."""
        info = replace(ball.info, cameras=tuple(c.resized(1200, 900) for c in ball.info.cameras))
        scene = SimpleNamespace(info=info, view=ball.view, pixels=ball.pixels)
        for name, steps in (("long", 20), ("short", 1)):
            run = run_of(tmp_path / name, ball, steps=steps)
            start(run, scene, Slope(TINY, info, clock))  # type: ignore[arg-type]
            with Picture.open(run.path / "preview.jpg") as picture:
                assert picture.size == (480, 360)

    def test_light_learnt_in_pq_is_shown_and_scored_as_srgb(
        self, tmp_path: Path, ball: PaintedBall, clock: Clock
    ) -> None:
        info = replace(ball.info, hdr_exposure=1.0)
        scene = SimpleNamespace(info=info, view=ball.view, pixels=ball.pixels)
        run = run_of(tmp_path / "run", ball, steps=30, eval_every=5.0)
        start(run, scene, Slope(TINY, info, clock))  # type: ignore[arg-type]
        grey = info.shown(torch.tensor(0.5))
        with Picture.open(run.path / "preview.jpg") as picture:
            assert picture.getpixel((3, 3))[0] == pytest.approx(255 * float(grey), abs=2)  # type: ignore[index]
        expected = torch.stack([(grey - info.shown(ball.truth(i))).square().mean() for i in info.test])
        score = next(row["held_out_psnr"] for row in run.metrics() if "held_out_psnr" in row)
        assert score == pytest.approx(float((-10 * expected.log10()).mean()), abs=0.1)

    def test_checkpoints_in_time(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        run = run_of(tmp_path / "run", ball, steps=50, checkpoint_every=7.0)
        start(run, ball, Slope(TINY, ball.info, clock))
        before, last = run.steps()  # Two are kept: the last step, and one at most eight steps before it.
        assert last == 50 and 42 <= before < 50

    def test_tensorboard_has_the_curves(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        run = run_of(tmp_path / "run", ball, steps=10)
        start(run, ball, Slope(TINY, ball.info, clock))
        assert any(p.stat().st_size > 0 for p in (run.path / "tensorboard").iterdir())

    def test_the_garbage_collector_is_given_back(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        start(run_of(tmp_path / "run", ball, steps=3), ball, Slope(TINY, ball.info, clock))
        assert gc.isenabled() and gc.get_freeze_count() == 0

    def test_threads_are_given_back(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        before = torch.get_num_threads()
        start(run_of(tmp_path / "run", ball, steps=3), ball, Slope(TINY, ball.info, clock))
        assert torch.get_num_threads() == before

    def test_a_capture_without_held_out_views(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        info = replace(ball.info, test=(), train=tuple(range(7)))
        scene = SimpleNamespace(info=info, view=ball.view, pixels=ball.pixels)
        run = run_of(tmp_path / "run", ball, steps=30, eval_every=5.0)
        start(run, scene, Slope(TINY, info, clock))  # type: ignore[arg-type]
        assert any("held_out_psnr" in row for row in run.metrics())

    def test_any_seed_will_do(self, tmp_path: Path, ball: PaintedBall, clock: Clock) -> None:
        for seed in (2**31 - 1, 2**63 - 1):
            method = Slope(TINY, ball.info, clock)
            start(run_of(tmp_path / str(seed), ball, steps=2, seed=seed), ball, method)
            assert len(method.seen) == 2


class Starved(Slope):
    """A device that has no memory left for a batch above some size."""

    Config = NGPConfig
    BATCH = ("batch", 100)
    room = 300

    def loss(self, scene: Any, step: int, rng: Generator) -> dict[str, Tensor]:
        if self.config.batch > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return super().loss(scene, step, rng)


class TestOutOfMemory:
    def test_the_batch_is_halved_and_the_step_taken_again(self, tmp_path: Path, ball: PaintedBall) -> None:
        run = run_of(tmp_path / "run", ball, steps=3)
        method = Starved(TINY, ball.info)
        start(run, ball, method)
        assert method.seen == [0, 1, 2] and method.config.batch == 256
        assert len(run.notes) == 2 and run.notes[-1] == (
            "cpu had too little memory at step 0; from there on a batch is half: batch 256."
        )

    def test_at_the_floor_it_gives_up_in_one_sentence(self, tmp_path: Path, ball: PaintedBall) -> None:
        run = run_of(tmp_path / "run", ball, steps=3)
        method = Starved(TINY, ball.info)
        method.room = 10
        with pytest.raises(RunError, match=r"^The memory of cpu does not suffice for a step of Starved, however small"):
            start(run, ball, method)

    def test_ngp_shrinks_at_once(self, ball: PaintedBall) -> None:
        method = ngp(ball)
        method.config = replace(TINY, batch=1 << 18)
        method.rays.fill_(4096)
        assert method.halve_batch() == "batch 131072" and int(method.rays) == 2048

    def test_a_picture_is_rendered_in_smaller_chunks(self, ball: PaintedBall, monkeypatch: pytest.MonkeyPatch) -> None:
        method, camera = ngp(ball), ball.info.cameras[0]
        expected = method.render(camera)
        real, most = ops.render_rays, [100]

        def short(field: Any, tracing: Any, origin: Tensor, *rest: Tensor) -> Any:
            if len(origin) > most[0]:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return real(field, tracing, origin, *rest)

        monkeypatch.setattr(ops, "render_rays", short)
        assert torch.equal(method.render(camera).rgb, expected.rgb) and method.chunk(1 << 16) == 64
        most[0] = 0
        with pytest.raises(LightfoldError, match=r"^The memory of cpu does not suffice for a picture, however small"):
            method.render(camera)
