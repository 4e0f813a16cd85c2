"""lightfold train METHOD[:PRESET] CAPTURE, and lightfold train RUN to go on with a run."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import psutil
from tyro.conf import OmitArgPrefixes, Positional, arg

from ..config import RunConfig, TrainConfig, lookup
from ..errors import ConfigError
from ..methods import METHODS
from ..run import Run, is_run
from ..scene import SceneConfig
from . import console, steps, workers
from .arguments import chosen, parse
from .claim import claimed
from .view import WatchArguments, watching

if TYPE_CHECKING:
    from ..distributed import World
    from ..scene import Scene

ModelT = TypeVar("ModelT")
DEFAULT_METHOD = next(iter(METHODS))
"""Whose options `lightfold train --help` shows, and what `lightfold run` trains."""

DESCRIPTION = """Train a method on a capture, into a run folder.

`lightfold train METHOD CAPTURE` begins a run, `lightfold train RUN` goes on with one to the end of its budget, and
`lightfold train RUN --minutes 10` gives it another budget. With --devices N, or started by torchrun, several processes
train together, and as many as you like when a run goes on. The model options below are those of {method}; every
method has its own: `lightfold train METHOD --help`. Methods: {methods}."""


@dataclass(frozen=True)
class TrainArguments(Generic[ModelT]):
    train: OmitArgPrefixes[TrainConfig]
    """How long to train, and what to write down meanwhile."""
    scene: SceneConfig
    """How the capture becomes a scene."""
    model: ModelT
    """The method's own options."""
    watch: OmitArgPrefixes[WatchArguments]
    """How the training can be watched."""
    what: Annotated[Positional[str], arg(metavar="METHOD[:PRESET]")] = ""
    """Method and preset, such as ngp or ngp:fast; or a run folder, to go on with it."""
    capture: Annotated[Positional[str], arg(metavar="CAPTURE")] = ""
    """Folder of the capture, or its transforms.json."""
    out: Path | None = None
    """Run folder. None: the next free runs/CAPTURE/METHOD-N."""
    format: str = "auto"
    """Format of the capture; "auto" finds out."""
    devices: int = 1
    """Processes that train together, one for each GPU, or sharing the cores where there is none. A step's batch is the
    sum of theirs, so N of them look at N times the samples per step; the options are those of one."""


def main(words: list[str]) -> None:
    """The verb."""
    arguments = parse_training(words)
    if workers.several(arguments.devices):
        start(arguments, words)
        return
    with workers.joined(arguments.devices, asked_for(arguments)) as world:
        train(arguments, world, chosen(words, "model"))


def start(arguments: TrainArguments[Any], words: list[str]) -> None:
    """Have several processes do it, all into one folder, also those that take the place of others."""
    refuse_watching(arguments)
    if goes_on(arguments):
        only_budget(arguments)
        folder = Run.open(arguments.what).path
    else:
        folder = arguments.out or steps.free_folder(run_config(arguments))
        words = [*words, "--out", str(folder)]
    workers.start(["train", *words], arguments.devices, workers.checkpoint_of(folder))


def train(arguments: TrainArguments[Any], world: World | None, own: Collection[str] = ()) -> None:
    """Begin a run or go on with one, alone or together with others. own: the method's options that the user has set."""
    if world is not None:
        refuse_watching(arguments)

    def begun() -> tuple[Run, Scene]:
        if not goes_on(arguments):
            config = run_config(arguments)
            return steps.begin(config, arguments.out or begun_before(config, own), own)
        only_budget(arguments)
        run = Run.open(arguments.what)
        steps.budget(run, arguments.train)
        return steps.resume(run)

    run, scene = steps.together(world, begun)
    console.say(f"The run is in {run.path}")
    mine = claimed(run.path) if world is None or world.is_first else nullcontext()
    with mine, watching(arguments.watch, run, scene) as watch:
        steps.train(run, scene, None if watch is None else watch.begin, world)
        console.say(
            f"Look at it: lightfold view {run.path}\nScore it:   lightfold eval {run.path}\n"
            f"A video:    lightfold render {run.path}"
        )
        if watch is not None:
            watch.training_ended()
            watch.stay()


def asked_for(arguments: TrainArguments[Any]) -> str:
    """The device that is asked for: now, or when the run was begun."""
    named = arguments.train.device
    if named != TrainConfig().device or not goes_on(arguments):
        return named
    return Run.open(arguments.what).config.train.device


def goes_on(arguments: TrainArguments[Any]) -> bool:
    """Whether a run was named, not a method and a capture."""
    return bool(arguments.what) and is_run(arguments.what) and not arguments.capture


def refuse_watching(arguments: TrainArguments[Any]) -> None:
    """Raises ConfigError for --view: a page that lets a training pause would make the other processes wait."""
    if arguments.watch.view:
        raise ConfigError(
            "A training in several processes cannot be watched (--view); look at what it has saved with "
            "`lightfold view RUN`, also while it goes on."
        )


def begun_before(config: RunConfig, own: Collection[str] = ()) -> Path | None:
    """The run that this torchrun has begun already, in a folder that nobody named: it starts all processes again when
    one has died, and when a machine comes or goes."""
    torchrun = psutil.Process().parent()
    if "TORCHELASTIC_RUN_ID" not in os.environ or torchrun is None:
        return None
    free = steps.free_folder(config)
    name, _, number = free.name.rpartition("-")
    last = free.with_name(f"{name}-{int(number) - 1}")
    if not is_run(last) or not steps.same_command(Run.open(last), config, own):
        return None
    return last if (last / "run.json").stat().st_mtime > torchrun.create_time() else None


def parse_training(words: Sequence[str]) -> TrainArguments[Any]:
    """The arguments, with the option tree of the method that they name, wherever among the words that name stands."""
    guess = next((word for word in words if word.partition(":")[0] in METHODS), DEFAULT_METHOD)
    arguments = _parse_as(guess, words)
    # The guess may have been the value of an option, such as `--out ngp`.
    named = arguments.what
    return _parse_as(named, words) if named != guess and named.partition(":")[0] in METHODS else arguments


def _parse_as(method: str, words: Sequence[str]) -> TrainArguments[Any]:
    cls, model = lookup(method)
    default = TrainArguments(TrainConfig(), SceneConfig(), model, WatchArguments())
    description = DESCRIPTION.format(method=method, methods=", ".join(METHODS))
    return parse(TrainArguments[cls.Config], words, "train", description, default, flat=("train", "watch"))  # type: ignore[name-defined]


def run_config(arguments: TrainArguments[Any]) -> RunConfig:
    """The configuration of a new run; ConfigError when method or capture is not what it should be."""
    what, capture = arguments.what, arguments.capture
    if not what:
        raise ConfigError(
            "Say what to train and on what, such as `lightfold train ngp CAPTURE`; see `lightfold train --help`."
        )
    if not capture and what.partition(":")[0] not in METHODS and Path(what).exists():
        raise ConfigError(
            f"{what} is no run. To train on it, name a method first: `lightfold train {DEFAULT_METHOD} {what}`."
        )
    lookup(what)
    if not capture:
        raise ConfigError(f"Say which capture to train on: `lightfold train {what} CAPTURE`.")
    return RunConfig(
        capture=str(Path(capture).expanduser().resolve()),
        method=what,
        model=arguments.model,
        scene=anchored(arguments.scene),
        train=arguments.train,
        format=arguments.format,
    )


def anchored(scene: SceneConfig) -> SceneConfig:
    """The same, with the path in a split "file:PATH" made absolute, so that the run continues from any folder."""
    kind, _, path = scene.split.partition(":")
    if kind != "file" or not path:
        return scene
    return replace(scene, split=f"file:{Path(path).expanduser().resolve().as_posix()}")


def only_budget(arguments: TrainArguments[Any]) -> None:
    """Raises ConfigError when options were given that a begun run cannot change."""
    _, model = lookup(DEFAULT_METHOD)
    plain = TrainArguments(arguments.train, SceneConfig(), model, arguments.watch, what=arguments.what)
    for name in ("scene", "model", "out", "format"):
        if getattr(arguments, name) != getattr(plain, name):
            raise ConfigError(
                f"A run keeps the options it was begun with, so --{name} cannot change; "
                "only the budget and the device can (--minutes, --steps, --device)."
            )
