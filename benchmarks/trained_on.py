"""What poses are worth: a capture trained on the poses that are found here, against the same trained on given ones.

The photographs are the same, and so are the size, the held-out views, the method and the budget. The budget is counted
in steps, as many as a minute of training makes, so that a busy machine favours neither side. A difference smaller than
the spread over seeds is none.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from lightfold import machine, trainer
from lightfold.config import RunConfig, TrainConfig, lookup
from lightfold.evaluate import evaluate
from lightfold.footage.gather import gather
from lightfold.formats import open_capture
from lightfold.poses.config import PoseConfig
from lightfold.poses.quality import assess
from lightfold.poses.solve import solve
from lightfold.poses.write import write_capture
from lightfold.run import Run, placed
from lightfold.scene import load_scene

from .quality import FOX, over_seeds
from .record import captures, child, find_capture, parser, recorded

CAPTURE, PHOTOS = "fox", "images"
"""A capture, and the folder in it whose poses are thrown away."""
METHOD = "ngp"
STEPS, QUICK_STEPS = 8000, 1000
"""`ngp` makes 8000 steps in a minute on the two cores of the project's machine."""
TIMEOUT = 7200.0


def main() -> None:
    """Find poses, train on both, compare."""
    made = parser(__doc__)
    made.add_argument("--seeds", nargs="+", type=int, help="default: 0 1 2, and 0 with --quick")
    made.add_argument("--one", nargs=3, metavar=("FOLDER", "SEED", "STEPS"), help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.one:
        folder, seed, steps = options.one
        print(json.dumps(train(Path(folder), int(seed), int(steps))), flush=True)
        return
    seeds = options.seeds or ([0] if options.quick else [0, 1, 2])
    steps = QUICK_STEPS if options.quick else STEPS
    source = find_capture(options, CAPTURE)
    if source is None:
        print(f"There is no capture '{CAPTURE}' in {captures(options)}; say where captures are with --data.")
        return
    with recorded("trained_on", options) as record, tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / CAPTURE
        verdict = find_poses(source / PHOTOS, found)
        runs: dict[str, list[dict[str, Any]]] = {"given": [], "found": []}
        for turn, seed in enumerate(seeds):
            both = [("given", source), ("found", found)]
            for name, capture in both if turn % 2 == 0 else both[::-1]:
                words = ["benchmarks.trained_on", "--one", str(capture.resolve()), str(seed), str(steps)]
                run = child(words, timeout=TIMEOUT)
                runs[name].append(run)
                print(f"{name}, seed {seed}: {run['psnr']:.2f} dB", flush=True)
        views = [run.pop("held_out") for each in runs.values() for run in each]
        if any(names != views[0] for names in views):
            raise SystemExit("The two captures hold out different views, so their scores cannot be compared.")
        record.protocol |= {
            "capture": CAPTURE,
            "method": METHOD,
            "steps": steps,
            "downscale": FOX.downscale,
            "split": FOX.split,
            "held_out": views[0],
            "seeds": seeds,
            "given": "the poses that come with the capture",
            "found": "`lightfold poses` on its photographs alone, with defaults",
            "verdict_on_found": verdict,
        }
        record.results |= summary(runs)
        print(f"found over given: {record.results['psnr_gain']['mean']:+.2f} dB", flush=True)


def find_poses(photos: Path, out: Path) -> str:
    """Make a capture of photographs alone; the report's verdict on it."""
    footage = gather(photos, out)
    solution = solve(footage, PoseConfig())
    write_capture(footage, solution)
    return assess(footage, solution).verdict


def train(capture: Path, seed: int, steps: int) -> dict[str, Any]:
    """Train on a capture in this process, and score what it was not shown."""
    torch.set_num_threads(machine.default_threads())
    scene = load_scene(open_capture(capture).posed(), FOX, machine.cache_folder())
    cls, model = lookup(METHOD)
    budget = TrainConfig(steps=steps, seed=seed, eval_every=0, checkpoint_every=0)
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", RunConfig(str(capture), METHOD, model, FOX, budget), scene.info)
        torch.manual_seed(seed)
        method = placed(cls(model, run.info))
        trainer.train(run, scene, method, budget, progress=False)
    mean = evaluate(method, scene, "test")["mean"]
    held_out = [scene.info.names[i] for i in scene.info.test]
    return {"seed": seed, "psnr": mean["psnr"], "ssim": mean["ssim"], "held_out": held_out}


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Both sides over seeds, and how much better the found poses are, seed by seed."""
    gains = [ours["psnr"] - theirs["psnr"] for ours, theirs in zip(runs["found"], runs["given"], strict=True)]
    return {
        "runs": runs,
        "over_seeds": {name: over_seeds(each) for name, each in runs.items()},
        "psnr_gain": over_seeds([{"gain": gain} for gain in gains])["gain"],
    }


if __name__ == "__main__":
    main()
