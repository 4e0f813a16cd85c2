"""lightfold eval RUN: scores on views that were not trained on."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from ..errors import ConfigError
from . import console, workers
from .arguments import parse

if TYPE_CHECKING:
    from ..distributed import World
    from ..run import Run
    from ..scene import Scene

DESCRIPTION = """Score a run on views it did not train on.

Writes eval.json, with the scores of every view and the protocol that they were taken by; pictures of truth, rendering,
error and depth in eval/; and report.html."""


@dataclass(frozen=True)
class EvalArguments:
    run: Annotated[Positional[str], arg(metavar="RUN")] = ""
    """The run folder."""
    views: str = "test"
    """Which views: test, train, all, or every:K."""
    lpips: Literal["none", "vgg", "alex", "squeeze"] = "none"
    """Also LPIPS, with this network; published tables use vgg. Needs the extra [lpips] and fetches weights once."""
    background: Literal["auto", "black", "white", "grey"] = "auto"
    """What to put behind transparent pixels; auto is what the scene says."""
    refine: Literal["none", "poses", "appearance", "both"] = "none"
    """Fit each view's own pose, appearance or both to its photograph before scoring it. The scores go to
    eval_refined.json: they are not comparable with plain ones."""
    step: int | None = None
    """Which checkpoint. None: the newest."""
    capture: str | None = None
    """Where the pictures are now, if they were moved."""
    device: str = "auto"
    """What computes: auto (a GPU that Triton has kernels for, else the processor), cpu, cuda, cuda:1, xpu or mps."""
    devices: int = 1
    """Processes that share the views, one for each GPU, or sharing the cores where there is none."""


def main(words: list[str]) -> None:
    """The verb."""
    arguments = parse(EvalArguments, words, "eval", DESCRIPTION, EvalArguments())
    if not arguments.run:
        raise ConfigError("Say which run to score: `lightfold eval RUN`.")
    if workers.several(arguments.devices):
        workers.start(["eval", *words], arguments.devices)
        return
    with workers.joined(arguments.devices, arguments.device) as world:
        score(arguments, world)


def score(arguments: EvalArguments, world: World | None) -> None:
    """Scores and report, alone or together with others."""
    from ..report import write_report
    from ..run import Run
    from . import steps

    run = Run.open(arguments.run)
    steps.use_threads(None)
    with nullcontext() if world is None else world.one_per_machine_first():
        scene = steps.scene_of(run, arguments.capture)
    result = evaluate_run(
        run,
        scene,
        views=arguments.views,
        step=arguments.step,
        background=None if arguments.background == "auto" else arguments.background,
        lpips=False if arguments.lpips == "none" else arguments.lpips,
        refine=arguments.refine,
        again=True,
        world=world,
        device=arguments.device,
    )
    if world is not None and not world.is_first:
        return
    report = write_report(run.path)
    console.table([*scores(result), ("report", str(report))], title=str(run.path))


def evaluate_run(
    run: Run,
    scene: Scene,
    views: str = "test",
    step: int | None = None,
    background: str | None = None,
    lpips: str | bool = False,
    refine: str = "none",
    again: bool = False,
    world: World | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Score a checkpoint and write eval.json. Unless `again`, scores of the same checkpoint that exist are returned."""
    from ..devices import choose, title
    from ..evaluate import evaluate
    from . import steps

    step = steps.checkpoint_step(run, step, world)
    plain = views == "test" and refine == "none"
    written = _written(run.path / "eval.json") if plain and not again else {}
    if written and written["protocol"].get("step") == step:
        console.say(f"The checkpoint of step {step} has been scored already.")
        return written
    method = run.method(step, choose(device, None if world is None else world.local_rank))
    protocol = {
        "capture": run.config.capture,
        "method": run.config.method,
        "step": step,
        "split": run.config.scene.split,
        "device": title(method.device),
        "trained_on": run.about.get("devices"),
        **{key: run.about.get(key) for key in ("processor", "instruction_set")},
    }
    with console.progress("scoring views") as report:
        return evaluate(
            method, scene, views, run.path, protocol,
            background=background, lpips=lpips, refine=refine, progress=report, world=world,
        )  # fmt: skip


def _written(path: Path) -> dict[str, Any]:
    """An eval.json that is there and whole enough to be shown, else an empty dict."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        whole = all(isinstance(data[key], dict) for key in ("mean", "timing", "protocol"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return data if whole else {}


def scores(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows for the summary."""
    mean, protocol, timing = result["mean"], result["protocol"], result["timing"]
    names = {"psnr": ("PSNR", "{:.2f} dB"), "ssim": ("SSIM", "{:.4f}"), "lpips": ("LPIPS", "{:.4f}")}
    names |= {"psnr_masked": ("PSNR in the mask", "{:.2f} dB"), "ssim_masked": ("SSIM in the mask", "{:.4f}")}
    rows = [(name, shape.format(mean[key])) for key, (name, shape) in names.items() if mean.get(key) is not None]
    sizes = protocol.get("resolution", [])
    shown = sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes"
    rows.append(("views", f"{protocol.get('view_count', '?')} ({protocol.get('views', '?')}) at {shown}"))
    if protocol.get("of_them_trained_on"):
        rows.append(("careful", f"{protocol['of_them_trained_on']} of these views were trained on"))
    if protocol.get("refined", "none") != "none":
        rows.append(("careful", protocol["refined"]))
    if isinstance(protocol.get("lpips"), str) and mean.get("lpips") is None and "asked" not in protocol["lpips"]:
        rows.append(("LPIPS", protocol["lpips"]))
    if timing.get("seconds_per_view"):
        rows.append(
            ("rendering", f"{timing['seconds_per_view']:.2f} s per view, {timing['rays_per_second']:,.0f} rays/s")
        )
    return rows
