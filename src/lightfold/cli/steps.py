"""The steps that verbs share: open a capture, make its scene, begin or continue a run, open a run's scene again."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .. import devices, machine, trainer
from ..capture import Capture
from ..config import RunConfig, TrainConfig, for_gpu, from_yaml, to_yaml
from ..errors import CaptureError, ConfigError, RunError
from ..formats import FORMATS, VIDEO_SUFFIXES, open_capture
from ..methods import method_class
from ..methods.base import Method
from ..ops.backend import TRITON_DEVICES
from ..run import Run, is_run, next_folder, placed
from ..scene import Scene, SceneConfig, SceneInfo, load_scene
from . import console

if TYPE_CHECKING:
    from ..distributed import World

UNPOSED = (
    "{path} holds {count} pictures without camera poses. Find them with `lightfold poses {path}`, or do everything at "
    "once with `lightfold run {path}`."
)


PLAIN_NAMES = {"images", "photos", "frames", "input"}
"""Folders that are called what they hold; the one above has a name."""


class Stopped(KeyboardInterrupt):
    """The user stopped the program; the message says how to go on."""


def posed_capture(path: str | Path, format: str = "auto") -> Capture:
    """A capture's frames that have a pose. ConfigError for an unknown format, CaptureError when nothing has a pose."""
    if format not in ("auto", *FORMATS):
        raise ConfigError(f"There is no format called '{format}'. Known are auto, {', '.join(FORMATS)}.")
    capture = open_capture(path, format)
    posed = capture.posed()
    if not posed.frames:
        raise CaptureError(UNPOSED.format(path=path, count=len(capture.frames)))
    return posed


def make_scene(capture: Capture, config: SceneConfig) -> Scene:
    """The scene of a capture, with a progress bar while its pictures are decoded."""
    with console.one_after_another() as progress:
        scene = load_scene(capture, config, machine.cache_folder(), progress)
    for note in scene.info.notes:
        console.remark(note)
    return scene


def capture_name(path: str | Path) -> str:
    """The name of a capture for folders: that of its folder, also when a file in it was given; that of a video."""
    resolved = Path(path).expanduser().resolve()
    if resolved.suffix.lower() in VIDEO_SUFFIXES:
        return resolved.stem
    if resolved.is_file() or resolved.name.lower() in PLAIN_NAMES:
        resolved = resolved.parent
    return resolved.name or "capture"


def begin(config: RunConfig, out: Path | None, chosen: Collection[str] = ()) -> tuple[Run, Scene]:
    """A new run and its scene; or, when `out` is a run of the same configuration, that run with the new budget.

    chosen: names of the method's options that the user has set, and that stay so whatever device there is.
    """
    use_threads(config.train.threads)
    device = device_of(config)
    if out is not None and is_run(out):
        return resume(_same_run(out, config, chosen))
    if device.type in TRITON_DEVICES:
        model, sentence = for_gpu(config.method, config.model, chosen, devices.size(device))
        config = replace(config, model=model)
        if sentence is not None:
            console.say(sentence)
    scene = make_scene(posed_capture(config.capture, config.format), config.scene)
    folder = out or free_folder(config)
    run = Run.create(folder, config, scene.info)
    console.keep_log(run.path / "log.txt")
    return run, scene


def free_folder(config: RunConfig) -> Path:
    """Where a run goes that nobody has named a folder for."""
    return next_folder(Path("runs") / capture_name(config.capture), config.method.replace(":", "-"))


def together(world: World | None, begun: Callable[[], tuple[Run, Scene]]) -> tuple[Run, Scene]:
    """The run and scene that `begun` gives, in every process: the first calls it and tells the others, who need to see
    the pictures, but not the run's folder."""
    if world is None:
        return begun()
    if world.is_first:
        run, scene = begun()
        told = {"path": str(run.path), "config": to_yaml(run.config), "info": run.info.to_dict(), "about": run.about}
        world.tell(json.dumps(told))
    else:
        told = json.loads(world.tell())
        info = SceneInfo.from_dict(told["info"])
        run = Run(Path(told["path"]), from_yaml(told["config"]), info, told["about"])
    with world.one_per_machine_first():  # One decodes the pictures, and the others find them decoded.
        if not world.is_first:
            use_threads(run.config.train.threads)
            scene = scene_of(run)
    return run, scene


def device_of(config: RunConfig, world: World | None = None) -> torch.device:
    """The device that a run is to be trained on here. Raises ConfigError for one that is not here, or cannot do what is
    asked for."""
    device = devices.choose(config.train.device, None if world is None else world.local_rank)
    half = devices.half_type(config.train.precision, device)
    method = config.method.partition(":")[0]
    if half is not None and config.train.precision != "auto" and not method_class(method).HALF:
        raise ConfigError(f"{method} computes in float32 everywhere; leave --precision out.")
    return device


def same_command(run: Run, config: RunConfig, chosen: Collection[str] = ()) -> bool:
    """Whether a run has this configuration, whichever kind of device it was begun on."""
    sizes = [for_gpu(config.method, config.model, chosen, size)[0] for size in devices.SIZES]
    return run.config in (config, *(replace(config, model=model) for model in sizes))


def _same_run(out: Path, config: RunConfig, chosen: Collection[str]) -> Run:
    run = Run.open(out)
    if same_command(run, replace(config, train=run.config.train), chosen):
        config = replace(config, model=run.config.model)
    for name in ("capture", "method", "model", "scene", "format"):
        if getattr(run.config, name) != getattr(config, name):
            raise RunError(
                f"{out} is a run with another {name}; choose another --out, or go on with it: `lightfold train {out}`."
            )
    budget(run, config.train)
    return run


def budget(run: Run, train: TrainConfig) -> None:
    """Give a run the budget and habits in `train` where they differ from the defaults; what is not named stays."""
    plain = TrainConfig()
    changed = {name: value for name, value in vars(train).items() if value != getattr(plain, name)}
    if changed.get("seed", run.config.train.seed) != run.config.train.seed:
        raise RunError(
            f"{run.path} was begun with seed {run.config.train.seed}, which cannot change; choose another --out."
        )
    # `--minutes 10` on a run that was given steps means ten minutes, not whichever ends first.
    if "minutes" in changed or "steps" in changed:
        changed = {"minutes": None, "steps": None} | changed
    wanted = replace(run.config.train, **changed)
    if wanted != run.config.train:
        run.reconfigure(wanted)


def resume(run: Run) -> tuple[Run, Scene]:
    """A run with its scene, from the same pictures."""
    use_threads(run.config.train.threads)
    console.keep_log(run.path / "log.txt")
    return run, scene_of(run)


def train(
    run: Run,
    scene: Scene,
    watch: Callable[[Method], trainer.Onlooker] | None = None,
    world: World | None = None,
) -> None:
    """Train a run to the end of its budget, from its newest good checkpoint if it has one. `watch` makes an onlooker of
    the method; `world` is all processes that train it together."""
    device = device_of(run.config, world)
    torch.manual_seed(run.config.train.seed)
    method = method_class(run.config.method.partition(":")[0])(run.config.model, run.info)
    method = placed(method, run.config.train.precision, device)
    scene = scene.on(device, run.config.scene.gpu_share)
    precision = next(name for name, half in devices.PRECISIONS.items() if half == method.half_type)
    if world is None or world.is_first:
        run.used(devices.title(device), precision)
    if device != devices.CPU:
        where = "there too" if scene.holds_pictures else "in the machine's memory"
        console.say(f"Training on {devices.title(device)} in {precision}, with the pictures {where}.")
    onlooker = None if watch is None else watch(method)
    compiled = devices.Compilations(
        lambda: console.say("Kernels are compiled for this device; it takes a while, and is kept for the next time.")
    )
    try:
        with compiled if device.type in TRITON_DEVICES else nullcontext():
            trainer.train(run, scene, method, run.config.train, console.within("training") or True, onlooker, world)
    except KeyboardInterrupt:
        # On several machines it is torchrun that goes on.
        shared = "" if world is None or world.local_size < world.size else f" --devices {world.size}"
        raise Stopped(f"Stopped. Continue with:  lightfold train {run.path}{shared}") from None
    finally:
        if compiled.kernels:
            console.say(f"{compiled.kernels} kernels were compiled, in {compiled.seconds:.0f} s.")
        for note in run.notes:
            console.remark(note)


def scene_of(run: Run, capture: str | Path | None = None) -> Scene:
    """The scene that a run was trained on, read again from its pictures; `capture` says where they are now."""
    place = str(capture or run.config.capture)
    if not Path(place).expanduser().exists():
        raise RunError(f"The pictures of {run.path} are no longer at {place}; say where they are with --capture.")
    scene = make_scene(posed_capture(place, run.config.format), run.config.scene)
    same = scene.info.names == run.info.names and [(c.width, c.height) for c in scene.info.cameras] == [
        (c.width, c.height) for c in run.info.cameras
    ]
    if not same:
        raise RunError(
            f"{place} is not what {run.path} was trained on: {len(scene.info.names)} views, of which "
            f"{len(set(scene.info.names) & set(run.info.names))} have a name that the run knows, and it has "
            f"{len(run.info.names)}. Restore the pictures, or name the right folder with --capture."
        )
    return scene


def checkpoint_step(run: Run, step: int | None, world: World | None = None) -> int | None:
    """The step of the newest good checkpoint, or `step` if there is one of it: the same for all processes, though a
    training may just be writing another."""
    found = run.checkpoint(step) if world is None or world.is_first else None
    own = None if found is None else found.step
    return own if world is None else json.loads(world.tell(json.dumps(own)))


def use_threads(threads: int | None) -> None:
    """Compute with so many threads; None: PyTorch's choice, within what the container allows."""
    torch.set_num_threads(threads or machine.default_threads())
