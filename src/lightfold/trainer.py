"""The training loop.

Everything a step does stands in `train`; what surrounds it (the clock, the log, the memory of a good state) are the
small classes below it. Evaluation, pictures and checkpoints never touch the state of the training, and all randomness
of a step comes from (seed, step): a run that was interrupted continues as if it had not been, bit for bit on a CPU
with the same threads when its budget is in steps.

On a GPU the host runs some steps ahead and never waits inside a step: it prepares the next ones while those before are
computed. What it wants to know of a step, its loss and its counts, it is told LAG steps later (`devices.Reports`), and
`guard` sees to it that a step which went wrong has done no harm by then.

Where several processes train together (`distributed`), each draws rays of its own, and every step's gradient is the
mean of all of theirs. They hold the same weights after every step, so they must also decide the same: `agree` is the
exchange for that. The first process alone reads and writes the run.
"""

from __future__ import annotations

import gc
import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from . import pictures
from .devices import CPU, OutOfMemory, Reports, apart, graphs, peak_memory, shortage, synchronize, title
from .errors import ConfigError, RunError
from .evaluate import background_colour, composited
from .guard import Guard
from .machine import peak_memory_bytes
from .methods.base import Recordable, step_generator
from .metrics import psnr
from .ops import own_threads
from .optim import Adam
from .recording import Recorder, total

if TYPE_CHECKING:
    from torch import Tensor

    from .config import TrainConfig
    from .distributed import World
    from .methods.base import Method
    from .run import Checkpoint, Run
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
"""Statistics of a step that are added up; others are gauges, logged as they stand."""


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
    world: World | None = None,
) -> None:
    """Train `method` on `scene` to the end of the budget, continuing from the run's newest checkpoint if it has one.

    Writes checkpoints, metrics.jsonl, TensorBoard events and preview.jpg into the run. progress: whether to show how
    far it is, or whom to tell. Ctrl-C ends the step, saves, and is raised again. world: all processes that train this
    run, each of which calls this; an onlooker is for one that trains alone. Raises RunError when the loss stays not
    finite, and LostError when another process is gone.
    """
    if world is not None and not method.TOGETHER:
        raise ConfigError(f"{run.config.method} cannot be trained by several processes together; train it with one.")
    optim = Adam(method.groups())
    guard, reports = Guard(method.device, method.half_type), Reports(method.device, late=world is None)
    recorder = recorder_for(method, optim, guard, config) if world is None else None
    budget = Budget(config, method.config.steps, method.device)
    writes = world is None or world.is_first
    log = Log(run, scene, method, config, budget, progress, onlooker) if writes else Silence()
    memory = Memory(run, method, optim, budget, world)
    ctrl_c = CtrlC(alone=world is None)
    rank = 0 if world is None else world.rank
    step = memory.recall()
    gc.collect()
    gc.freeze()
    gc.disable()  # Nothing in a step makes cycles; looking for them would take a tenth of a short one.
    try:
        with (
            own_threads() if method.BY_KERNELS else nullcontext(),
            nullcontext() if recorder is None else apart(method.device),
            ctrl_c,
        ):
            budget.start(step)
            while not budget.spent(step):
                ctrl_c.obey()
                rng = step_generator(config.seed, step, rank)
                try:
                    if recorder is None:
                        losses = method.loss(scene, step, rng)
                        loss = total(losses)
                    else:  # All of the step: nothing of it waits to be seen here.
                        loss, losses = recorder.take(recorder.method.drawn(scene, step, rng), budget.fraction(step))
                    value = told(reports, loss, method)
                    if world is not None:
                        value = agree(world, value, method, budget, memory, ctrl_c)
                    if not math.isfinite(value):
                        optim.zero_grad()
                        reports.forget()
                        step = memory.retreat(step)
                        continue
                    if recorder is None:
                        guard.backward(loss)
                except OutOfMemory:
                    if recorder is not None:
                        recorder.forget()
                    memory.shrink(step)
                    continue
                if world is not None:
                    method.stats["sent_mb"] = world.average_gradients(optim.groups) / 1e6
                if recorder is None:
                    guard.clean(optim.groups)
                    optim.step(budget.fraction(step))
                if world is not None:
                    world.maximum_(method.peaks(step))
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


def recorder_for(method: Method, optim: Adam, guard: Guard, config: TrainConfig) -> Recorder | None:
    """What takes steps whole, where method and device allow it and the user has not forbidden it."""
    make_graph = graphs(method.device)
    if make_graph is None or not config.record or not isinstance(method, Recordable):
        return None
    return Recorder(method, optim, guard, make_graph)


def told(reports: Reports, loss: Tensor, method: Method) -> float:
    """The loss as a number, with what the method counts: of this step, or on a GPU of some steps before."""
    numbers = reports.turn({"loss": loss.detach(), **method.stats})
    value = numbers.pop("loss")
    method.stats = numbers
    return value


def agree(world: World, loss: float, method: Method, budget: Budget, memory: Memory, ctrl_c: CtrlC) -> float:
    """The mean loss of all processes, with all else that they must see alike, in one exchange.

    The clock, and whether a checkpoint is due, are those of the first process; anybody may have been asked to stop;
    and what a method counts in a step, which may decide how many rays it draws next, is that of the whole batch.
    """
    stats, first = method.stats, float(world.is_first)
    mine = [loss, float(ctrl_c.asked), first * budget.elapsed(), first * memory.late()]
    total = world.sum([*mine, *(float(stats.get(name, 0.0)) for name in SUMMED)])
    loss, stop, seconds, late, *counts = total
    ctrl_c.agreed, budget.agreed, memory.agreed = stop > 0, seconds, late > 0
    whole = dict(zip(SUMMED, counts, strict=True))
    whole["mse"] /= world.size
    method.stats = stats | {name: value for name, value in whole.items() if name in stats}
    return loss / world.size


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

    A second Ctrl-C does not wait. Outside the main thread, where signals cannot be caught, nothing changes. A process
    that is not alone stops after the step in which all have heard of it.
    """

    def __init__(self, alone: bool = True) -> None:
        self.torn = False
        """Whether a step was cut off in the middle, so that its state is none to save."""
        self.asked = False
        """Whether this process was asked to stop."""
        self.agreed = False
        """Whether any was, as all of them know."""
        self._alone = alone
        self._before: dict[signal.Signals, Any] = {}

    def obey(self) -> None:
        """Raise KeyboardInterrupt if it was asked for."""
        if self.asked if self._alone else self.agreed:
            raise KeyboardInterrupt

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            self.torn = True
            raise KeyboardInterrupt
        self.asked = True

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

    def __init__(self, config: TrainConfig, method_steps: int, device: torch.device = CPU) -> None:
        self.device = device
        self.seconds = None if config.minutes is None else 60.0 * config.minutes
        self.steps = config.steps if config.steps or config.minutes else method_steps
        self.before = 0.0
        """Seconds spent by earlier sittings of this run."""
        self.agreed: float | None = None
        """Seconds so far by the first process's clock, where several train together; None: this one's own count."""
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
        elapsed = self.elapsed() if self.agreed is None else self.agreed
        by_time = elapsed / self.seconds if self.seconds else 0.0
        return min(max(by_steps, by_time), 1.0)

    def spent(self, step: int) -> bool:
        """Whether the training is over."""
        return self.fraction(step) >= 1.0

    def paused(self) -> Budget:
        """`with budget.paused():` time inside does not count."""
        return self

    def __enter__(self) -> None:
        synchronize(self.device)  # Steps that are still being computed count.
        self._paused_at = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        assert self._paused_at is not None
        self._since += time.perf_counter() - self._paused_at[0]
        self._cpu_since += time.process_time() - self._paused_at[1]
        self._paused_at = None


class Memory:
    """Checkpoints, and the way back from a loss that is not finite.

    Of several processes the first reads and writes them. The others need not see the run's folder.
    """

    def __init__(self, run: Run, method: Method, optim: Adam, budget: Budget, world: World | None = None) -> None:
        self.run, self.method, self.optim, self.budget, self.world = run, method, optim, budget, world
        self.every = run.config.train.checkpoint_every or math.inf
        self.processes = 1 if world is None else world.size
        self.agreed = False
        """Whether a checkpoint is due by the first process's clock, where several train together."""
        self.saved_at = time.perf_counter()
        self.saved_step = -1
        self.bad = 0
        self.retreats = 0

    def recall(self) -> int:
        """Load the newest good checkpoint; the step to go on with, 0 when there is none."""
        step = self._load()
        if step is None:
            return 0
        self.saved_step = step
        return step

    def _load(self, keep_clock: bool = False) -> int | None:
        """Take over the newest good checkpoint, and return its step; None without one.

        Everywhere the state is then that of the first process, also where there is no checkpoint.
        """
        first = self.world is None or self.world.is_first
        found = self.run.checkpoint(resume=True) if first else None
        if found is not None:
            self._take(found, keep_clock)
        if self.world is None:
            return None if found is None else found.step
        step, self.budget.before = self.world.sum(
            [-1.0 if found is None else found.step, self.budget.before] if first else [0.0, 0.0]
        )
        if not keep_clock:
            self.budget.agreed = self.budget.before
        self._level()
        return None if step < 0 else int(step)

    def _take(self, found: Checkpoint, keep_clock: bool) -> None:
        state = found.resume or {}
        self.method.load_state_dict(found.tensors)
        self.optim.load_state(state)
        if keep_clock:
            return
        self.budget.before = float(state["seconds"])
        before = int(state.get("processes", 1))
        if before != self.processes:
            self.run.notes.append(
                f"{before} process(es) trained this run until step {found.step}, and {self.processes} from there on: "
                "the batch of a step is the sum of theirs."
            )

    def _level(self) -> None:
        """Give all processes the first one's state."""
        assert self.world is not None
        state, moments = self.method.state_dict(), self.optim.state()
        self.world.share([*state.values(), *moments.values()])
        self.method.load_state_dict(state)
        self.optim.load_state(moments)

    def healthy(self) -> None:
        """A step went well."""
        self.bad = 0

    def retreat(self, step: int) -> int:
        """A loss was not finite: skip the step, and when that repeats, go back to the last checkpoint."""
        self.bad += 1
        if self.bad < PATIENCE:
            return step + 1
        self.retreats += 1
        found = self._load(keep_clock=True) if self.retreats <= RETREATS else None
        if found is None:
            raise RunError(
                f"The loss was not finite for {self.bad} steps in a row at step {step} and restoring did not help. "
                "Lower the learning rates (see `lightfold train METHOD --help`), and check the poses of the capture."
            )
        self.bad = 0
        self.run.notes.append(f"The loss was not finite at step {step}; the state of step {found} was restored.")
        # Another sitting of the same step would draw the same batch, so the steps that failed are passed over.
        return step + 1

    def shrink(self, step: int) -> None:
        """The device had no memory left for a step: halve the batch, and take the step again."""
        self.optim.zero_grad()
        half = self.method.halve_batch() if self.world is None else None
        if half is None:
            name = self.method.BATCH[0].replace("_", "-")
            remedy = f"give each process a smaller --model.{name}" if self.world else "say --device cpu"
            raise RunError(shortage(self.method.device, f"a step of {type(self.method).__name__}", remedy))
        self.run.notes.append(
            f"{title(self.method.device)} had too little memory at step {step}; from there on a batch is half: {half}."
        )

    def late(self) -> bool:
        """Whether it is time for a checkpoint, by this process's clock."""
        return time.perf_counter() - self.saved_at > self.every

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return self.late() if self.world is None else self.agreed

    def save_if_due(self, step: int) -> None:
        """Write a checkpoint if it is time."""
        if self.due():
            self.save(step)

    def save(self, step: int) -> None:
        """Write a checkpoint, unless that of this step is written, or the weights are no numbers any more."""
        if step == self.saved_step:
            return
        if self.world is not None:
            self._compare(step, self.world)
        state = self.method.state_dict()
        if not all(bool(t.isfinite().all()) for t in state.values()):
            return
        if self.world is None or self.world.is_first:
            seconds = torch.tensor(self.budget.elapsed(), dtype=torch.float64)
            resume = {"seconds": seconds, "processes": torch.tensor(self.processes)}
            self.run.save_checkpoint(step, state, self.optim.state() | resume)
        self.saved_step, self.saved_at = step, time.perf_counter()

    def _compare(self, step: int, world: World) -> None:
        """See to it that all processes hold the same state. Processors of different kinds may round differently."""
        world.maximum_(self.method.peaks())
        if not world.alike([*self.method.state_dict().values(), *self.optim.state().values()]):
            self._level()
            note = "The processes' weights had drifted apart, as processors of different kinds round differently"
            if not any(line.startswith(note) for line in self.run.notes):
                self.run.notes.append(f"{note}; from step {step} on they are those of the first again.")


class Silence:
    """The log of a process that is not the first: nothing."""

    def note(self, step: int, loss: float, losses: dict[str, Any]) -> None:
        """A step was made."""

    def due(self, step: int) -> bool:
        """Never."""
        return False

    def write(self, step: int) -> None:
        """Nothing."""

    def close(self, step: int) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


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
        self.rays = self.samples = self.kept = self.steps = 0
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
        self.kept += int(stats.get("kept", 0))
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
            **({"kept_samples_per_second": self.kept / seconds} if "kept" in self.method.stats else {}),
            "seconds": self.budget.elapsed(),
            "cpu_seconds": self.budget.cpu(),
            "peak_memory_gb": (peak_memory_bytes() or 0) / 1e9,
        }
        if (there := peak_memory(self.method.device)) is not None:
            row["peak_gpu_memory_gb"] = there / 1e9
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
        self.last, self.rays, self.samples, self.kept, self.steps = now, 0, 0, 0, 0
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
