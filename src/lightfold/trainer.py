"""The training loop.

Everything a step does stands in `train`; what surrounds it (the clock, the log, the memory of a good state) are the
small classes below it. Evaluation, pictures and checkpoints never touch the state of the training, and all randomness
of a step comes from (seed, step): a run that was interrupted continues as if it had not been, bit for bit on a CPU
with the same threads when its budget is in steps.
"""

from __future__ import annotations

import gc
import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from . import pictures
from .errors import RunError
from .evaluate import background_colour, composited
from .machine import peak_memory_bytes
from .methods.base import step_generator
from .metrics import psnr
from .ops import own_threads
from .optim import Adam

if TYPE_CHECKING:
    from .config import TrainConfig
    from .methods.base import Method
    from .run import Run
    from .scene import Scene

FIRST_PICTURE = 1.5
"""Seconds of training after which the first picture is written: sooner there is only fog to see."""
PATIENCE = 5
"""Steps in a row whose loss is not finite before the last good state is restored."""
RETREATS = 3
"""Restored states after which the training gives up."""
LOOKING = 0.1
"""Largest share of the time for scores on held-out views during training."""
SUMMED = ("rays", "samples", "kept", "mse")
"""Statistics of a step that are added up, or of no interest by themselves; others are gauges, logged as they stand."""


class Told(Protocol):
    """Called with the share of the budget that is spent, with 1, and with a line of numbers, instead of showing it."""

    def __call__(self, done: float, total: float, text: str = "") -> None: ...


class Onlooker(Protocol):
    """Somebody who watches a training, such as the viewer. Its time does not count, and it changes nothing."""

    def turn(self, step: int, fraction: float, save: Callable[[], None]) -> None:
        """Called between steps: `step` are done, `fraction` of the budget. `save` writes a checkpoint of this step."""

    def pausing(self) -> bool:
        """While True, no step is taken, and `turn` is called again and again."""

    def row(self, row: dict[str, Any]) -> None:
        """A row of metrics, as metrics.jsonl has it."""


def train(
    run: Run,
    scene: Scene,
    method: Method,
    config: TrainConfig,
    progress: bool | Told = True,
    onlooker: Onlooker | None = None,
) -> None:
    """Train `method` on `scene` to the end of the budget, continuing from the run's newest checkpoint if it has one.

    Writes checkpoints, metrics.jsonl, TensorBoard events and preview.jpg into the run. progress: whether to show how
    far it is, or whom to tell. Ctrl-C ends the step, saves, and is raised again. Raises RunError when the loss stays
    not finite.
    """
    optim = Adam(method.groups())
    budget = Budget(config, method.config.steps)
    log = Log(run, scene, method, config, budget, progress, onlooker)
    memory = Memory(run, method, optim, budget)
    ctrl_c = CtrlC()
    step = memory.recall()
    gc.collect()
    gc.freeze()
    gc.disable()  # Nothing in a step makes cycles; looking for them would take a tenth of a short one.
    try:
        with own_threads(), ctrl_c:
            budget.start(step)
            while not budget.spent(step):
                ctrl_c.obey()
                losses = method.loss(scene, step, step_generator(config.seed, step))
                loss = torch.stack(list(losses.values())).sum() if len(losses) > 1 else next(iter(losses.values()))
                if not math.isfinite(value := float(loss.detach())):
                    optim.zero_grad()
                    step = memory.retreat(step)
                    continue
                loss.backward()
                optim.step(budget.fraction(step))
                method.after_step(step, optim)
                step += 1
                memory.healthy()
                log.note(step, value, losses)
                if log.due(step) or memory.due():
                    with budget.paused():
                        log.write(step)
                        memory.save_if_due(step)
                if onlooker is not None:
                    with budget.paused():
                        show(onlooker, step, budget.fraction(step), memory, ctrl_c)
    except KeyboardInterrupt:
        if not ctrl_c.torn:
            with budget.paused():
                memory.save(step)
        raise
    finally:
        gc.enable()
        gc.unfreeze()
        log.close(step)
    log.finish()
    memory.save(step)


def show(onlooker: Onlooker, step: int, fraction: float, memory: Memory, ctrl_c: CtrlC) -> None:
    """Give the onlooker its turn, and more of them while it wants the training to pause."""
    while True:
        onlooker.turn(step, fraction, lambda: memory.save(step))
        if not onlooker.pausing():
            return
        ctrl_c.obey()


class CtrlC:
    """Holds Ctrl-C, SIGTERM and SIGHUP back until the step is whole, so that what is saved is a state that the training
    has really been in.

    A second Ctrl-C does not wait. Outside the main thread, where signals cannot be caught, nothing changes.
    """

    def __init__(self) -> None:
        self.torn = False
        """Whether a step was cut off in the middle, so that its state is none to save."""
        self._asked = False
        self._before: dict[signal.Signals, Any] = {}

    def obey(self) -> None:
        """Raise KeyboardInterrupt if it was asked for."""
        if self._asked:
            raise KeyboardInterrupt

    def _ask(self, number: int, frame: object) -> None:
        if self._asked:
            self.torn = True
            raise KeyboardInterrupt
        self._asked = True

    def __enter__(self) -> CtrlC:
        if threading.current_thread() is threading.main_thread():
            known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
            heeded = [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, *heeded)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


class Budget:
    """How long to train, in steps, in seconds, or whichever ends first; seconds of evaluation do not count."""

    def __init__(self, config: TrainConfig, method_steps: int) -> None:
        self.seconds = None if config.minutes is None else 60.0 * config.minutes
        self.steps = config.steps if config.steps or config.minutes else method_steps
        self.before = 0.0
        """Seconds spent by earlier sittings of this run."""
        self._since = 0.0
        self._cpu_since = 0.0
        self._paused_at: tuple[float, float] | None = None

    def start(self, step: int) -> None:
        """Begin to count."""
        self.first_step = step
        self._since = time.perf_counter()
        self._cpu_since = time.process_time()

    def elapsed(self) -> float:
        """Seconds of training so far, earlier sittings included."""
        now = time.perf_counter() if self._paused_at is None else self._paused_at[0]
        return self.before + now - self._since

    def cpu(self) -> float:
        """Seconds of processor time, all threads together, of this sitting's training."""
        now = time.process_time() if self._paused_at is None else self._paused_at[1]
        return now - self._cpu_since

    def fraction(self, step: int) -> float:
        """Share of the budget that is spent, in [0, 1]: what schedules run on."""
        by_steps = step / self.steps if self.steps else 0.0
        by_time = self.elapsed() / self.seconds if self.seconds else 0.0
        return min(max(by_steps, by_time), 1.0)

    def spent(self, step: int) -> bool:
        """Whether the training is over."""
        return self.fraction(step) >= 1.0

    def paused(self) -> Budget:
        """`with budget.paused():` time inside does not count."""
        return self

    def __enter__(self) -> None:
        self._paused_at = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        assert self._paused_at is not None
        self._since += time.perf_counter() - self._paused_at[0]
        self._cpu_since += time.process_time() - self._paused_at[1]
        self._paused_at = None


class Memory:
    """Checkpoints, and the way back from a loss that is not finite."""

    def __init__(self, run: Run, method: Method, optim: Adam, budget: Budget) -> None:
        self.run, self.method, self.optim, self.budget = run, method, optim, budget
        self.every = run.config.train.checkpoint_every or math.inf
        self.saved_at = time.perf_counter()
        self.saved_step = -1
        self.bad = 0
        self.retreats = 0

    def recall(self) -> int:
        """Load the newest good checkpoint; the step to go on with, 0 when there is none."""
        found = self.run.checkpoint(resume=True)
        if found is None:
            return 0
        self._load(found)
        self.budget.before = float((found.resume or {})["seconds"])
        self.saved_step = found.step
        return found.step

    def _load(self, found: Any) -> None:
        self.method.load_state_dict(found.tensors)
        self.optim.load_state(found.resume)

    def healthy(self) -> None:
        """A step went well."""
        self.bad = 0

    def retreat(self, step: int) -> int:
        """A loss was not finite: skip the step, and when that repeats, go back to the last checkpoint."""
        self.bad += 1
        if self.bad < PATIENCE:
            return step + 1
        self.retreats += 1
        found = self.run.checkpoint(resume=True)
        if found is None or self.retreats > RETREATS:
            raise RunError(
                f"The loss was not finite for {self.bad} steps in a row at step {step} and restoring did not help. "
                "Lower the learning rates (see `lightfold train METHOD --help`), and check the poses of the capture."
            )
        self._load(found)
        self.bad = 0
        self.run.notes.append(f"The loss was not finite at step {step}; the state of step {found.step} was restored.")
        # Another sitting of the same step would draw the same batch, so the steps that failed are passed over.
        return step + 1

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.perf_counter() - self.saved_at > self.every

    def save_if_due(self, step: int) -> None:
        """Write a checkpoint if it is time."""
        if self.due():
            self.save(step)

    def save(self, step: int) -> None:
        """Write a checkpoint, unless that of this step is written, or the weights are no numbers any more."""
        state = self.method.state_dict()
        if step == self.saved_step or not all(bool(t.isfinite().all()) for t in state.values()):
            return
        seconds = torch.tensor(self.budget.elapsed(), dtype=torch.float64)
        self.run.save_checkpoint(step, state, self.optim.state() | {"seconds": seconds})
        self.saved_step, self.saved_at = step, time.perf_counter()


class Log:
    """The progress line, metrics.jsonl, TensorBoard, the preview, and scores on held-out views while training."""

    INTERVAL = 5.0

    def __init__(
        self,
        run: Run,
        scene: Scene,
        method: Method,
        config: TrainConfig,
        budget: Budget,
        progress: bool | Told,
        onlooker: Onlooker | None,
    ) -> None:
        self.told = progress if callable(progress) else None
        progress = progress is True
        self.run, self.scene, self.method, self.budget, self.onlooker = run, scene, method, budget, onlooker
        self.eval_every = config.eval_every
        views = scene.info.test or scene.info.train
        self.views = list(views[:: max(1, len(views) // 4)])[:4]
        self.next_row, self.next_picture, self.next_eval = 1.0, FIRST_PICTURE, config.eval_every or math.inf
        self.rays = self.samples = self.steps = 0
        self.squares = self.loss = 0.0
        self.terms: dict[str, Any] = {}
        self.last = 0.0
        self.held_out: float | None = None
        self.board: Any = None
        columns = (
            TextColumn("{task.fields[text]}", markup=False), BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn(compact=True),
        )  # fmt: skip
        self.bar = Progress(*columns, disable=not progress or not sys.stderr.isatty(), transient=True)
        self.bar.start()
        self.task = self.bar.add_task("train", total=1.0, text="starting")
        self.plain = progress and not sys.stderr.isatty()

    def note(self, step: int, loss: float, losses: dict[str, Any]) -> None:
        """Count a step."""
        stats = self.method.stats
        self.rays += int(stats.get("rays", 0))
        self.samples += int(stats.get("samples", 0))
        self.squares += stats.get("mse", math.nan)
        self.loss += loss
        self.steps += 1
        self.terms = losses

    def due(self, step: int) -> bool:
        """Whether something is to be written. Asked at every step, so it looks at the clock and nothing else."""
        elapsed = self.budget.elapsed() - self.budget.before
        return elapsed > min(self.next_row, self.next_picture, self.next_eval)

    def write(self, step: int) -> None:
        """Write whatever is due."""
        elapsed = self.budget.elapsed() - self.budget.before
        if elapsed > self.next_picture:
            self.next_picture = max(10.0, 2 * elapsed)
            self.preview()
        if elapsed > self.next_eval:
            began = time.perf_counter()
            self.held_out = self.score()
            # A method that is slow to render would look at itself for longer than it learns.
            self.next_eval = elapsed + max(self.eval_every, (time.perf_counter() - began) / LOOKING)
            row = {"held_out_psnr": self.held_out, "held_out_views": len(self.views), "seconds": self.budget.elapsed()}
            self._row(step, row)
        if elapsed > self.next_row:
            self.next_row = elapsed + (self.INTERVAL if elapsed > 10 else 1.0)
            self.row(step)
        gc.collect()

    def row(self, step: int) -> None:
        """A row of metrics over the steps since the last one, and the progress line."""
        if self.steps == 0:
            return
        now = self.budget.elapsed()
        seconds = max(now - max(self.last, self.budget.before), 1e-9)
        mse = self.squares / self.steps
        row: dict[str, Any] = {
            "loss": self.loss / self.steps,
            "train_psnr": -10.0 * math.log10(mse) if mse > 0 else math.nan,
            "rays_per_second": self.rays / seconds,
            "samples_per_second": self.samples / seconds,
            "seconds": self.budget.elapsed(),
            "cpu_seconds": self.budget.cpu(),
            "peak_memory_gb": (peak_memory_bytes() or 0) / 1e9,
        }
        if len(self.terms) > 1:
            row |= {f"loss_{name}": float(term.detach()) for name, term in self.terms.items()}
        row |= {name: value for name, value in self.method.stats.items() if name not in SUMMED}
        self._row(step, row)
        text = (
            f"step {step}  loss {row['loss']:.5f}  psnr {row['train_psnr']:.2f}"
            + (f" (held out {self.held_out:.2f})" if self.held_out is not None else "")
            + f"  {row['rays_per_second'] / 1e3:.0f} k rays/s  {row['samples_per_second'] / 1e6:.2f} M samples/s"
            f"  {row['peak_memory_gb']:.2f} GB"
        )
        fraction = self.budget.fraction(step)
        self.bar.update(self.task, completed=fraction, text=text)
        if self.told is not None:
            self.told(fraction, 1.0, text)
        if self.plain:
            left = self.budget.elapsed() * (1 - fraction) / max(fraction, 1e-6)
            sys.stderr.write(f"{text}  {fraction:4.0%}, {left:.0f} s left\n")
            sys.stderr.flush()
        self.last, self.rays, self.samples, self.steps = now, 0, 0, 0
        self.squares = self.loss = 0.0

    def _row(self, step: int, row: dict[str, Any]) -> None:
        self.run.log_metrics({"step": step} | row)
        if self.onlooker is not None:
            self.onlooker.row({"step": step} | row)
        if self.board is None:
            # Imported late: it takes longer than the first seconds of training are worth.
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.run.path / "tensorboard"))
        for name, value in row.items():
            if value is not None:
                self.board.add_scalar(name, value, step)

    def score(self) -> float:
        """Mean PSNR over a few held-out views, at the training resolution, rounded to 8 bits as in evaluation."""
        total, info = 0.0, self.scene.info
        background = background_colour(info, None)
        for index in self.views:
            view = self.scene.view(index)
            image = self.method.render(view.camera, background)
            truth = info.shown(composited(view.rgb, view.alpha, background))
            total += float(psnr(pictures.quantised(info.shown(image.rgb)), truth, view.mask))
        return total / len(self.views)

    def preview(self) -> None:
        """preview.jpg: a held-out view as it looks now, at most 480 pixels wide and high."""
        camera = self.scene.info.cameras[self.views[0]]
        shrink = min(1.0, 480 / max(camera.width, camera.height))
        small = camera.resized(max(1, round(camera.width * shrink)), max(1, round(camera.height * shrink)))
        image = self.method.render(small, background_colour(self.scene.info, None))
        pictures.save_picture(self.run.path / "preview.jpg", self.scene.info.shown(image.rgb))

    def close(self, step: int) -> None:
        """The last row, and the terminal as it was, however the training ended."""
        self.bar.stop()
        self.row(step)
        if self.board is not None:
            self.board.close()

    def finish(self) -> None:
        """A picture, where the training was too short for one."""
        if not (self.run.path / "preview.jpg").exists():
            self.preview()
