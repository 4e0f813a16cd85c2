"""Quality at a budget of training seconds: train a preset on posed photographs, then score the held-out ones.

Every training is a process of its own, so that its memory and its clocks are its own. Budgets count training only;
evaluation and pictures are outside. Seeds differ in nothing but the seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lightfold import machine, trainer
from lightfold.config import RunConfig, TrainConfig, lookup
from lightfold.evaluate import evaluate
from lightfold.formats import open_capture
from lightfold.methods.base import Method
from lightfold.run import Run, placed
from lightfold.scene import Scene, SceneConfig, load_scene

from .measure import own_memory, peak_bytes
from .record import Record, captures, child, find_capture, parser, recorded

FOX = SceneConfig(downscale=4, split="every:8")
THRESHOLDS = (25.0, 27.0, 28.5, 30.0, 33.0, 35.0)
"""Decibels whose time of first reaching is noted, in cases that look during training."""


@dataclass(frozen=True)
class Case:
    """A capture, a method and a budget. `look_every` seconds of training, a few held-out views are scored; 0: never."""

    capture: str
    method: str
    seconds: float
    scene: SceneConfig = field(default_factory=SceneConfig)
    look_every: float = 0.0


LEGO = "nerf_synthetic/lego"
BARS = {
    "fox-15s": Case("fox", "ngp:fast", 15, FOX),
    "fox-60s": Case("fox", "ngp", 60, FOX),
    "fox-300s": Case("fox", "ngp:big", 300, FOX),
    "lego-120s": Case(LEGO, "ngp", 120, look_every=10),
    "lego-360s": Case(LEGO, "ngp:big", 360, look_every=20),
}
"""What the project has promised."""
BEYOND = {
    "fox-30s": Case("fox", "ngp", 30, FOX),
    "fox-120s": Case("fox", "ngp:big", 120, FOX),
    "fox-900s": Case("fox", "ngp:big", 900, FOX),
    "lego-60s": Case(LEGO, "ngp", 60),
    "lego-180s": Case(LEGO, "ngp:big", 180),
    "lego-900s": Case(LEGO, "ngp:big", 900, look_every=60),
}
"""What it hopes for."""
DEFAULTS = {
    "sample-60s": Case("sample", "ngp", 60),
    "fern-60s": Case("nerf_llff_data/fern", "ngp", 60),
}
"""The defaults on other captures, so that nothing is tuned to one."""
METHODS = {
    "fox-nerfacto-300s": Case("fox", "nerfacto", 300, FOX),
    "fox-zipnerf-300s": Case("fox", "zipnerf", 300, FOX),
    "fox-mipnerf360-small-1800s": Case("fox", "mipnerf360:small", 1800, FOX),
    "lego-half-mipnerf360-small-1800s": Case(LEGO, "mipnerf360:small", 1800, SceneConfig(downscale=2)),
}
"""The other methods; what has a mesh is in benchmarks/mesh.py and benchmarks/dtu.py."""
QUICK = {"sample-15s": Case("sample", "ngp:fast", 15), "fox-15s": BARS["fox-15s"]}
GROUPS = {"bars": BARS, "beyond": BEYOND, "defaults": DEFAULTS, "methods": METHODS, "quick": QUICK}
CASES = {name: case for group in GROUPS.values() for name, case in group.items()}


def main() -> None:
    """One record per case."""
    made = parser(__doc__)
    made.add_argument("--cases", nargs="+", choices=[*GROUPS, *CASES], help="groups or cases; default: bars, defaults")
    made.add_argument("--seeds", nargs="+", type=int, help="default: 0 1 2, and 0 with --quick")
    made.add_argument("--seconds", type=float, help="another budget, for trying this program out; needs --out")
    made.add_argument("--one", nargs=2, metavar=("CASE", "SEED"), help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.seconds and not options.out:
        made.error("--seconds changes what the cases mean, so it needs --out with another folder")
    if options.one:
        name, seed = options.one
        case = budgeted(CASES[name], options)
        path = find_capture(options, case.capture)
        if path is None:
            raise SystemExit(f"There is no capture '{case.capture}' in {captures(options)}.")
        numbers, method, scene = train_once(case, path, int(seed))
        print(json.dumps(numbers | score(method, scene)), flush=True)
        return
    wanted = options.cases or (["quick"] if options.quick else ["bars", "defaults"])
    names = dict.fromkeys(name for word in wanted for name in GROUPS.get(word, [word]))
    seeds = options.seeds or ([0] if options.quick else [0, 1, 2])
    for name in names:
        case = budgeted(CASES[name], options)
        if find_capture(options, case.capture) is None:
            print(
                f"{name} is skipped: there is no capture '{case.capture}' in {captures(options)}; "
                "say where captures are with --data or LIGHTFOLD_TEST_DATA."
            )
            continue
        # A case with another budget is another measurement, which no table may take for the case.
        suffix = f"-instead-{options.seconds:g}s" if options.seconds else ""
        with recorded(f"quality-{name}{suffix}", options) as record:
            measure(name, case, seeds, options, record)


def budgeted(case: Case, options: argparse.Namespace) -> Case:
    """The case with the budget of --seconds, if there is one."""
    return replace(case, seconds=options.seconds) if options.seconds else case


def measure(name: str, case: Case, seeds: list[int], options: argparse.Namespace, record: Record) -> None:
    """Train with every seed and summarise."""
    record.protocol |= {**asdict(case), "seeds": seeds, "views": "held out", "budget": "training only, wall clock"}
    runs = []
    for seed in seeds:
        words = ["benchmarks.quality", "--one", name, str(seed)]
        words += ["--data", str(options.data.resolve())] if options.data else []
        words += ["--seconds", str(options.seconds), "--out", str(options.out)] if options.seconds else []
        run = child(words, timeout=20 * case.seconds + 1200)
        if "protocol" in run:
            record.protocol["evaluation"] = run.pop("protocol")
        runs.append(run)
        print(f"{name}, seed {seed}: {run['psnr']:.2f} dB, {run['rays_per_second'] / 1e3:.0f} k rays/s", flush=True)
    record.results |= {"runs": runs, "over_seeds": over_seeds(runs)}


def over_seeds(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean, least, greatest and standard deviation of every number that all runs have."""
    found = {}
    for key, value in runs[0].items():
        values = [run.get(key) for run in runs]
        if isinstance(value, (int, float)) and all(isinstance(v, (int, float)) for v in values):
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            found[key] = {"mean": statistics.fmean(values), "min": min(values), "max": max(values), "stdev": spread}
    found.pop("seed", None)
    return found


def train_once(case: Case, capture: Path, seed: int) -> tuple[dict[str, Any], Method, Scene]:
    """Train in this process; numbers of the training, and what it made."""
    torch.set_num_threads(machine.default_threads())
    scene = load_scene(open_capture(capture).posed(), case.scene, machine.cache_folder())
    cls, model = lookup(case.method)
    train = TrainConfig(minutes=case.seconds / 60, seed=seed, eval_every=case.look_every, checkpoint_every=0)
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(str(capture), case.method, model, case.scene, train)
        run = Run.create(Path(folder) / "run", config, scene.info)
        torch.manual_seed(seed)
        method = placed(cls(model, run.info))
        totals = count_steps(method)
        with own_memory() as memory:
            trainer.train(run, scene, method, train, progress=False)
        rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    clocks = [row for row in rows if "cpu_seconds" in row][-1]
    wall, cpu = clocks["seconds"], clocks["cpu_seconds"]
    looks = seen_while_training(rows)
    numbers = {
        "seed": seed,
        "steps": totals["steps"],
        "training_wall_seconds": wall,
        "training_cpu_seconds": cpu,
        "rays_per_second": totals["rays"] / wall,
        "samples_evaluated_per_second": totals["samples"] / wall,
        "samples_kept_per_second": totals["kept"] / wall,
        "rays_per_cpu_second": totals["rays"] / max(cpu, 1e-9),
        "peak_bytes_in_training": peak_bytes(),
        "peak_own_bytes_in_training": memory.peak,
        "parameters": sum(parameter.numel() for parameter in method.parameters()),
        "looks": looks,
        "seconds_to": seconds_to(looks),
    }
    return numbers, method, scene


def score(method: Method, scene: Scene) -> dict[str, Any]:
    """Numbers of the held-out views, and how they were taken."""
    result = evaluate(method, scene, "test")
    views, timing, protocol = result["views"], result["timing"], result["protocol"]
    return {
        "psnr": result["mean"]["psnr"],
        "ssim": result["mean"]["ssim"],
        "psnr_of_the_worst_view": min(view["psnr"] for view in views),
        "psnr_of_the_best_view": max(view["psnr"] for view in views),
        "peak_bytes": peak_bytes(),
        "seconds_per_view": timing["seconds_per_view_median"],
        "seconds_of_the_fastest_view": min(view["seconds"] for view in views),
        "rendered_rays_per_second": timing["rays_per_second"],
        "protocol": {key: protocol[key] for key in ("view_count", "resolution", "background", "8-bit quantised")},
    }


def count_steps(method: Any) -> dict[str, int]:
    """Totals over the training to come, filled in after every step; they cost it about a microsecond."""
    totals = {"steps": 0, "rays": 0, "samples": 0, "kept": 0}
    after_step = method.after_step

    def counting(step: int, optim: Any) -> None:
        after_step(step, optim)
        totals["steps"] += 1
        for key in ("rays", "samples", "kept"):
            totals[key] += int(method.stats.get(key, 0))

    method.after_step = counting
    return totals


def seen_while_training(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Scores of a few held-out views with the seconds of training at which they were taken."""
    return [
        {"seconds": row["seconds"], "psnr": row["held_out_psnr"], "views": row["held_out_views"]}
        for row in rows
        if row.get("held_out_psnr") is not None
    ]


def seconds_to(looks: list[dict[str, float]]) -> dict[str, float | None]:
    """When each threshold was first seen passed; None when never. The looks' spacing is the error."""
    return {
        f"{level:g} dB": next((look["seconds"] for look in looks if look["psnr"] >= level), None)
        for level in THRESHOLDS
    }


if __name__ == "__main__":
    main()
