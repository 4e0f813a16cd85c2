"""How soon and how often the page shows pictures, and what looking on costs a training.

The page is a real one, reached through its web socket by a client without a browser: what a browser adds for decoding a
JPEG picture and showing it is not in these numbers.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightfold import machine, trainer
from lightfold.config import RunConfig, TrainConfig, lookup
from lightfold.formats import open_capture
from lightfold.methods.base import Method
from lightfold.run import Run, placed
from lightfold.scene import Scene, SceneConfig, load_scene
from lightfold.viewer.server import Viewer
from lightfold.viewer.subject import Subject
from lightfold.viewer.training_tab import Training

from .page import Page
from .record import REPOSITORY, find_capture, parser, recorded

CAPTURES = {"sample": SceneConfig(downscale=2), "nerf_synthetic/lego": SceneConfig()}
METHOD = "ngp"


def main() -> None:
    """Train a little, look at it, and train on with and without somebody who looks."""
    made = parser(__doc__)
    made.add_argument("--look", nargs=2, metavar=("PORT", "RUN"), help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.look:
        look(int(options.look[0]), Run.open(options.look[1]))
        return
    seconds, watched = (10, 4) if options.quick else (60, 12)
    with recorded("viewer", options) as record:
        record.protocol |= {
            "trained_seconds": seconds,
            "method": METHOD,
            "moving": "30 new cameras a second on a circle, canvas 320x240, for 6 s",
            "settled": "from a new camera to its picture of full size, canvas 800x600, median of 8",
            "first_picture": "from before the web socket is opened to the first picture, median of 5",
            "cost": f"steps per second over {watched} s, page and pictures included; median of 3 rounds in turn",
            "share": f"{Training.share:.0%} of the time, the default",
        }
        for name, config in CAPTURES.items():
            path = find_capture(options, name)
            if path is None:
                print(f"{name} is skipped: the capture is not there.")
                continue
            scene = load_scene(open_capture(path).posed(), config, machine.cache_folder())
            with tempfile.TemporaryDirectory() as folder:
                record.results[name] = measure(scene, Path(folder), seconds, watched)
            row = record.results[name]
            print(
                f"{name}: first picture {row['first_picture_seconds']:.2f} s, moving "
                f"{row['moving_pictures_per_second']:.1f} pictures/s of {row['moving_pixels']:.0f} pixels, "
                f"settled {row['settled_seconds']:.2f} s, training slower by {row['cost_of_a_client']:.0%} with a "
                f"client, {row['cost_of_an_open_page']:.0%} without",
                flush=True,
            )


def measure(scene: Scene, folder: Path, seconds: float, watched: float) -> dict[str, Any]:
    """All numbers of one scene."""
    cls, model = lookup(METHOD)
    config = RunConfig("scene", METHOD, model, SceneConfig(), TrainConfig(minutes=seconds / 60, checkpoint_every=0))
    run = Run.create(folder / "run", config, scene.info)
    torch.manual_seed(0)
    method = placed(cls(model, run.info))
    trainer.train(run, scene, method, config.train, progress=False)
    return looking(run, method) | training(scene, folder, watched)


def cameras(run: Run, count: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Eye, target and up on a circle about the first training camera's place."""
    camera = run.info.cameras[run.info.train[0]]
    eye, forward = camera.center.double().numpy(), camera.forward.double().numpy()
    up = -camera.world_from_cam[:, 1].double().numpy()
    target = eye + max(0.5, float(-eye @ forward)) * forward
    side = np.cross(forward, up)
    turns = [2 * math.pi * i / count for i in range(count)]
    return [(eye + 0.2 * (math.cos(a) * side + math.sin(a) * up), target, up) for a in turns]


def looking(run: Run, method: Method) -> dict[str, Any]:
    """The page of what has been learnt."""
    viewer = Viewer(Subject("benchmark", run.info, method), port=0)
    threading.Thread(target=viewer.serve, daemon=True).start()
    port, places = int(viewer.server.get_port()), cameras(run, 180)
    first = []
    for _ in range(5):
        start = time.perf_counter()
        with Page(port) as page:
            page.look(*places[0], 800, 600)
            page.listen(20, pictures=1)
            first.append(page.arrived[0][0] - start)
    with Page(port) as page:
        settled = []
        for i in range(8):
            start = time.perf_counter()
            page.look(*places[20 * i], 800, 600)
            while page.listen(20, pictures=1) and page.arrived[-1][1].shape[:2] != (600, 800):
                pass
            settled.append(page.arrived[-1][0] - start)
        page.arrived.clear()
        stop = threading.Event()

        def move() -> None:
            for place in places:
                page.look(*place, 320, 240)
                if stop.wait(1 / 30):
                    return

        mover = threading.Thread(target=move)
        mover.start()
        page.listen(6.0)
        stop.set()
        mover.join()
        pixels = [picture.shape[0] * picture.shape[1] for _, picture in page.arrived]
    viewer.close()
    return {
        "first_picture_seconds": statistics.median(first),
        "settled_seconds": statistics.median(settled),
        "moving_pictures_per_second": len(pixels) / 6.0,
        "moving_pixels": statistics.median(pixels),
    }


def training(scene: Scene, folder: Path, seconds: float) -> dict[str, Any]:
    """Steps per second alone, with an open page, and with a client that moves."""
    rates: dict[str, list[float]] = {"alone": [], "open page": [], "client": []}
    for i in range(3):
        for kind, found in rates.items():
            found.append(steps_per_second(scene, folder / f"{kind}-{i}", seconds, kind))
    median = {kind: statistics.median(found) for kind, found in rates.items()}
    return {
        "steps_per_second": rates,
        "cost_of_an_open_page": 1 - median["open page"] / median["alone"],
        "cost_of_a_client": 1 - median["client"] / median["alone"],
    }


def steps_per_second(scene: Scene, folder: Path, seconds: float, kind: str) -> float:
    """Of a training from its beginning, by the clock on the wall, pictures included."""
    cls, model = lookup(METHOD)
    config = RunConfig("scene", METHOD, model, SceneConfig(), TrainConfig(steps=10**6, checkpoint_every=0))
    run = Run.create(folder, config, scene.info)
    torch.manual_seed(0)
    method = placed(cls(model, run.info))
    viewer = None if kind == "alone" else Viewer(Subject("benchmark", run.info, method), port=0, training=True)
    steps = 0

    class Clock:
        """Ends the training after so many seconds, and passes everything on to the viewer."""

        start = 0.0

        def turn(self, step: int, fraction: float, save: Any) -> None:
            nonlocal steps
            steps, self.start = step, self.start or time.perf_counter()
            if viewer is not None:
                viewer.turn(step, fraction, save)
            if time.perf_counter() - self.start > seconds:
                raise KeyboardInterrupt

        def pausing(self) -> bool:
            return False

        def row(self, row: dict[str, Any]) -> None:
            return

    looker = None
    if kind == "client":
        assert viewer is not None
        words = ["-m", "benchmarks.viewer", "--look", str(viewer.server.get_port()), str(folder)]
        looker = subprocess.Popen([sys.executable, *words], cwd=REPOSITORY)
        while not viewer.clients:
            time.sleep(0.05)
    clock = Clock()
    try:
        trainer.train(run, scene, method, config.train, progress=False, onlooker=clock)
    except KeyboardInterrupt:
        pass
    finally:
        if looker is not None:
            looker.terminate()
            looker.wait()
        if viewer is not None:
            viewer.close()
    return steps / (time.perf_counter() - clock.start)


def look(port: int, run: Run) -> None:
    """A client that moves until it is stopped, and takes pictures without decoding them: that is a browser's work."""
    with Page(port, decode=False) as page:
        while True:
            for place in cameras(run, 90):
                page.look(*place, 640, 480)
                page.listen(1 / 15)


if __name__ == "__main__":
    main()
