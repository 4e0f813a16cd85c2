"""Poses that are wrong, and a training that corrects them: fox, with every training camera disturbed.

Each training camera is turned by 1 degree about an axis of its own and moved by 1 % of the extent (the diagonal of the
box around all cameras) in a direction of its own. Held-out cameras keep their poses. Four trainings of one budget and
one seed follow each other:

    given       nerfacto on the poses as they were given
    fixed       nerfacto on the disturbed ones, not allowed to move them
    refined     nerfacto:noisy on the disturbed ones, which moves them
    ngp         ngp on the disturbed ones, which cannot move them

Scores are those of held-out photographs. A training that moves its cameras may move scene and cameras together, which
no photograph shows; so held-out cameras follow the similarity that takes the true training cameras closest to those of
the training. "psnr" is the plain score from there. "psnr_fitted" first fits each held-out pose to its own photograph,
everything else frozen, for all methods alike that can; it forgives what is left of the similarity.

    recovered = (refined - fixed) / (given - fixed)
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lightfold import machine, trainer
from lightfold.capture import Capture
from lightfold.config import RunConfig, TrainConfig, lookup
from lightfold.evaluate import evaluate
from lightfold.formats import open_capture
from lightfold.geometry import so3_exp
from lightfold.refine import HasColours, corrections, given_from_refined, refined_cameras
from lightfold.run import Run, placed
from lightfold.scene import load_scene

from .quality import FOX, count_steps
from .record import child, find_capture, parser, recorded

TURN, SHIFT = 1.0, 0.01
"""Degrees, and the share of the extent."""
WAYS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "given": ("nerfacto", False, {}),
    "fixed": ("nerfacto", True, {"poses": "off"}),
    "refined": ("nerfacto:noisy", True, {}),
    "ngp": ("ngp", True, {}),
}
"""Method, whether the poses are disturbed, and its options."""


def main() -> None:
    """One record with all ways."""
    made = parser(__doc__)
    made.add_argument("--seconds", type=float, help="of each training; default 300, or 30 with --quick")
    made.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    made.add_argument("--one", metavar="WAY", help=argparse.SUPPRESS)
    options = made.parse_args()
    seconds = options.seconds or (30.0 if options.quick else 300.0)
    path = find_capture(options, "fox")
    if path is None:
        raise SystemExit("There is no capture 'fox'; say where captures are with --data or LIGHTFOLD_TEST_DATA.")
    if options.one:
        print(json.dumps(measure(options.one, path, seconds)), flush=True)
        return
    with recorded("noisy_poses", options) as record:
        record.protocol |= {
            "capture": "fox, 270x480, every 8th view held out",
            "seconds": seconds,
            "seed": 0,
            "turned_degrees": TURN,
            "moved_share_of_extent": SHIFT,
            "psnr": "held-out photographs; cameras follow the similarity between true and trained training cameras",
            "psnr_fitted": "each held-out pose fitted to its own photograph first",
        }
        for way in options.ways:
            words = ["benchmarks.noisy_poses", "--one", way, "--seconds", str(seconds)]
            words += ["--data", str(options.data.resolve())] if options.data else []
            row = record.results[way] = child(words, timeout=20 * seconds + 1200)
            print(f"{way}: {row}", flush=True)
        record.results |= judged(record.results)
        print({key: value for key, value in record.results.items() if key not in WAYS}, flush=True)


def measure(way: str, path: Path, seconds: float) -> dict[str, float | None]:
    """Train in this process, and score."""
    torch.set_num_threads(machine.default_threads())
    preset, disturb, options = WAYS[way]
    given = open_capture(path).posed()
    # A scene sorts its pictures by name, and holds out every 8th of them.
    given = replace(given, frames=tuple(sorted(given.frames, key=lambda frame: frame.name)))
    capture = disturbed(given) if disturb else given
    scene = load_scene(capture, FOX, machine.cache_folder())
    cls, model = lookup(preset)
    model = replace(model, **options)
    train = TrainConfig(minutes=seconds / 60, seed=0, eval_every=0, checkpoint_every=0)
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", RunConfig(str(path), preset, model, FOX, train), scene.info)
        torch.manual_seed(0)
        method = placed(cls(model, run.info))
        totals = count_steps(method)
        trainer.train(run, scene, method, train, progress=False)
    info = scene.info
    resized = zip(given.frames, info.cameras, strict=True)
    true = [
        frame.camera.resized(camera.width, camera.height).transformed(info.scene_from_capture)
        for frame, camera in resized
        if frame.camera is not None
    ]
    trained = refined_cameras(method)
    ours, theirs = [trained[i] for i in info.train], [true[i] for i in info.train]
    shift = given_from_refined(ours, theirs)
    moved = copy.copy(scene)
    moved.info = replace(info, cameras=tuple(camera.transformed(shift).to(torch.float32) for camera in true))
    turn, distance = corrections(theirs, ours)
    extent = extent_of([camera.center for camera in true])
    return {
        "steps": totals["steps"],
        "psnr": evaluate(method, moved, "test")["mean"]["psnr"],
        "psnr_fitted": evaluate(method, moved, "test", refine="poses")["mean"]["psnr"] if can_fit(method) else None,
        "turn_median_degrees": math.degrees(float(turn.median())),
        "position_median_percent": 100 * float(distance.median()) / extent,
    }


def can_fit(method: object) -> bool:
    return isinstance(method, HasColours)


def disturbed(capture: Capture) -> Capture:
    """The capture, sorted by name, with each camera that is trained on turned and moved, by a generator of its own."""
    rng = torch.Generator().manual_seed(0)
    extent = extent_of([frame.camera.center for frame in capture.frames if frame.camera is not None])
    frames = []
    for i, frame in enumerate(capture.frames):
        axis, way = torch.nn.functional.normalize(torch.randn(2, 3, generator=rng, dtype=torch.float64), dim=1)
        camera = frame.camera
        if camera is None or i % 8 == 0:
            frames.append(frame)
            continue
        pose = camera.cam_from_world.double()
        turned = so3_exp(math.radians(TURN) * axis) @ pose[:, :3]
        centre = camera.center.double() + SHIFT * extent * way
        moved = torch.cat([turned, -(turned @ centre)[:, None]], dim=1)
        frames.append(replace(frame, camera=replace(camera, cam_from_world=moved.to(pose.dtype))))
    return replace(capture, frames=tuple(frames))


def extent_of(centres: list[torch.Tensor]) -> float:
    points = torch.stack([centre.double() for centre in centres])
    return float((points.amax(0) - points.amin(0)).norm())


def judged(rows: dict[str, Any]) -> dict[str, float]:
    """What was lost, how much of it was recovered, and how much of the error in the poses is left."""
    if not {"given", "fixed", "refined"} <= rows.keys():
        return {}
    found = {}
    for score in ("psnr", "psnr_fitted"):
        given, fixed, refined = (rows[way][score] for way in ("given", "fixed", "refined"))
        found |= {f"lost_{score}": given - fixed, f"recovered_{score}": (refined - fixed) / (given - fixed)}
    for error in ("turn_median_degrees", "position_median_percent"):
        found[f"left_of_{error}"] = rows["refined"][error] / rows["fixed"][error]
    if "ngp" in rows:
        found["psnr_over_ngp"] = rows["refined"]["psnr"] - rows["ngp"]["psnr"]
    return found


if __name__ == "__main__":
    main()
