"""A walk of panoramas with exact poses: solved as panoramas, and as the unrelated perspective crops that others make.

examples/walk renders the walk. One way gives the engine each panorama as one picture with one pose. The other way cuts
each panorama into the eight crops of 120 degrees that nerfstudio cuts, of its size, and gives the engine those as
photographs that know nothing of each other, except that they are told their common focal length exactly. Both are timed
from the panoramas on disk to the poses. Errors are those after the similarity that aligns the camera centres best;
positions are in per cent of the length of the path.

The two ways run one after the other, and what else the machine does meanwhile changes. So both clocks are recorded, and
how much faster panoramas are is a ratio of processor seconds, which other processes change least. --limit ends a way
that takes longer. What a way without poses had taken by its end is a lower bound of its time, and the ratio is marked
as one.
"""

from __future__ import annotations

import _thread
import argparse
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lightfold.capture import Capture, Frame
from lightfold.errors import LightfoldError
from lightfold.footage.panorama import LAYOUTS, training_crops
from lightfold.footage.shots import Footage, Shot
from lightfold.formats import open_capture
from lightfold.machine import usable_cores
from lightfold.poses.align import pose_errors
from lightfold.poses.config import PoseConfig
from lightfold.poses.job import Record
from lightfold.poses.solve import Solution, solve
from lightfold.poses.write import read_model

from .record import REPOSITORY, load_average, parser, recorded

COUNT, QUICK_COUNT = 120, 24
WIDTH = 2048
BARS = {"registered_share": 0.98, "rotation_degrees": 0.05, "position_percent_of_path": 0.05, "speed_up": 8.0}
LAYOUT = LAYOUTS["8"]


def main() -> None:
    """One record with both ways, and how they compare."""
    made = parser(__doc__)
    made.add_argument("--walk", type=Path, help="a walk made before; default: render one")
    made.add_argument("--ways", nargs="+", choices=("panoramas", "crops"), default=("panoramas", "crops"))
    made.add_argument("--keep", type=Path, help="keep what is made in this folder")
    made.add_argument("--count", type=int, help="how many panoramas of the walk, from its beginning; default: all")
    made.add_argument("--limit", type=float, default=4 * 3600.0, help="seconds after which a way is stopped")
    options = made.parse_args()
    with recorded("panoramas", options) as record, tempfile.TemporaryDirectory() as scratch:
        folder = options.keep.resolve() if options.keep else Path(scratch)
        walk = rendered(options, folder)
        count = min(len(walk), options.count or (QUICK_COUNT if options.quick else len(walk)))
        walk = walk.select(range(count))
        camera = walk.frames[0].camera
        assert camera is not None
        record.protocol |= {
            "panoramas": count,
            "size": [camera.width, camera.height],
            "path_length": path_length(walk.frames),
            "configuration": "defaults",
            "crops": f"{len(LAYOUT.directions)} per panorama, {crop_size(walk)} pixels a side, focal length given",
            "clock": "wall and processor, from the panoramas on disk to the poses; cutting crops is inside",
            "speed_up": "seconds of the crops over seconds of the panoramas; the bar is for processor seconds",
            "threads": usable_cores(),
            "limit_seconds": options.limit,
            "bars": BARS,
        }
        ways = {"panoramas": as_panoramas, "crops": as_crops}
        for way in options.ways:
            record.results[way] = found = measured(ways[way], walk, folder / way, options.limit)
            print(f"{way}: {line(found)}", flush=True)
        if len(options.ways) == 2 and "registered" in record.results["panoramas"]:
            record.results["speed_up"] = faster = compared(record.results["panoramas"], record.results["crops"])
            print(
                f"panoramas are {'more than ' if faster['at_least'] else ''}{faster['cpu']:.1f} times as fast by the "
                f"processor's clock, and {faster['wall']:.1f} by the wall's",
                flush=True,
            )


def compared(native: dict[str, Any], crops: dict[str, Any]) -> dict[str, Any]:
    """How many times as fast panoramas are; at least that, where the crops have no poses."""
    return {
        "cpu": crops["cpu_seconds"] / native["cpu_seconds"],
        "wall": crops["wall_seconds"] / native["wall_seconds"],
        "at_least": "registered" not in crops,
    }


def rendered(options: argparse.Namespace, folder: Path) -> Capture:
    """The walk with its true poses."""
    out = options.walk or folder / "walk"
    if not options.walk:
        script = REPOSITORY / "examples" / "walk" / "make_walk.py"
        words = [str(out), "--count", str(COUNT), "--width", str(WIDTH)]
        subprocess.run([sys.executable, str(script), *words], check=True, stdout=subprocess.DEVNULL)
    return open_capture(out)


def measured(way: Any, walk: Capture, out: Path, limit: float) -> dict[str, Any]:
    """Prepare, solve and judge one way; a sentence where it has no solution, and how far it came where time ran out."""
    wall, cpu = time.perf_counter(), processor_seconds()
    truth: Sequence[Frame] = ()
    solution: Solution | None = None
    failure: dict[str, Any] = {}
    reached: tuple[str, int, int] = ("preparing", 0, 1)

    def remember(*progress: Any) -> None:
        nonlocal reached
        reached = progress

    load = load_average()
    try:
        with interrupted_after(limit):
            footage, truth = way(walk, out)
            prepared = time.perf_counter() - wall
            solution = solve(footage, PoseConfig(), remember)
    except LightfoldError as error:
        failure = {"error": str(error).replace(str(out), out.name)}
    except TimeoutError:
        failure = {"stopped": dict(zip(("stage", "done", "total"), reached, strict=True))}
        failure["stage_seconds"] = Record(out / "colmap" / "stages.json").seconds()
    clocks = {
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": processor_seconds() - cpu,
        "load_average": {"before": load, "after": load_average()},
    }
    if solution is None:
        return clocks | failure
    estimate = {frame.name: frame.camera for frame in read_model(footage, solution).frames if frame.camera is not None}
    both = [frame for frame in truth if short(frame.name) in estimate]
    errors = pose_errors(
        torch.stack([estimate[short(frame.name)].cam_from_world for frame in both]),
        torch.stack([frame.camera.cam_from_world for frame in both if frame.camera is not None]),
    )
    # A crop is called PANORAMA_07; a panorama is found when any of its crops is.
    stems = {Path(name).stem.rpartition("_")[0] or Path(name).stem for name in estimate}
    return clocks | {
        "preparing_wall_seconds": prepared,
        "stage_seconds": solution.seconds,
        "tries": list(solution.tries),
        "pictures": len(footage.shots),
        "registered": len(both),
        "registered_share": len(both) / len(footage.shots),
        "panoramas_registered_share": len(stems) / len(walk),
        "models": [len(model.names) for model in solution.models],
        "agreement": solution.agreement,
        "trusted": solution.trusted,
        "rotation_degrees": {"median": float(errors.rotation.median()), "max": float(errors.rotation.max())},
        "position_percent_of_path": {
            "median": 100 * float(errors.position.median()) / path_length(walk.frames),
            "max": 100 * float(errors.position.max()) / path_length(walk.frames),
        },
    }


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """TimeoutError when the block takes longer: the interrupt of Ctrl-C, which ends the engine in its orderly way."""
    rung = threading.Event()

    def ring() -> None:
        rung.set()
        _thread.interrupt_main()

    timer = threading.Timer(seconds, ring)
    timer.daemon = True
    timer.start()
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if not rung.is_set():
            raise
        raise TimeoutError from interrupt
    finally:
        timer.cancel()


def as_panoramas(walk: Capture, out: Path) -> tuple[Footage, Sequence[Frame]]:
    """Every panorama as one picture."""
    shots = []
    for frame in walk.frames:
        assert frame.camera is not None
        name = short(frame.name)
        link(frame.path, out / "images" / name)
        shots.append(Shot(name, str(frame.path), frame.camera.width, frame.camera.height, lens="EQUIRECTANGULAR"))
    return Footage(out, "panoramas", True, tuple(shots)), walk.frames


def as_crops(walk: Capture, out: Path) -> tuple[Footage, Sequence[Frame]]:
    """Every crop as a photograph of its own. Cutting needs no poses; the crops' true ones are for judging only."""
    cut = training_crops(walk, out, LAYOUT, crop_size(walk))
    shots = []
    for frame in cut.frames:
        assert frame.camera is not None
        lens, known = frame.camera.to_colmap()
        side = frame.camera.width
        shots.append(
            Shot(short(frame.name), frame.name, side, side, lens=lens, focal=known[0], parameters=tuple(known))
        )
    return Footage(out, "photos", False, tuple(shots)), cut.frames


def crop_size(walk: Capture) -> int:
    """nerfstudio's: as many pixels in all crops as in the panorama."""
    camera = walk.frames[0].camera
    assert camera is not None
    return round(math.sqrt(camera.width * camera.height / len(LAYOUT.directions)))


def short(name: str) -> str:
    """A frame's name as its shot has it, below images/."""
    return name.removeprefix("images/")


def link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the system cannot."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        target.write_bytes(source.read_bytes())


def path_length(frames: Sequence[Frame]) -> float:
    """Metres from the first camera to the last, one after the other."""
    centres = torch.stack([frame.camera.center for frame in frames if frame.camera is not None])
    return float(centres.diff(dim=0).norm(dim=1).sum())


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def line(found: dict[str, Any]) -> str:
    """A result in one line."""
    clocks = f"{found['wall_seconds']:.0f} s ({found['cpu_seconds']:.0f} s of processor)"
    if "error" in found:
        return f"no poses after {clocks}: {found['error']}"
    if "stopped" in found:
        return f"stopped after {clocks} in {found['stopped']}"
    return (
        f"{found['registered']} of {found['pictures']}, {clocks}, median "
        f"{found['rotation_degrees']['median']:.4f} degrees and "
        f"{found['position_percent_of_path']['median']:.4f} % of the path"
    )


if __name__ == "__main__":
    main()
