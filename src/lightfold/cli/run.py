"""lightfold run FOOTAGE: everything in one command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from tyro.conf import OmitArgPrefixes, Positional, arg

from ..config import RunConfig, TrainConfig, lookup
from ..errors import ConfigError
from ..footage.photos import PhotosConfig
from ..footage.video import VideoConfig
from ..poses.config import PoseConfig
from ..report import write_report
from ..run import Run, is_run
from ..scene import Scene, SceneConfig
from . import console, steps
from .arguments import parse
from .eval import evaluate_run, scores
from .poses import capture_folder, find_poses, lacks_poses
from .render import fly
from .train import DEFAULT_METHOD, anchored
from .view import Watch, WatchArguments, watching

ModelT = TypeVar("ModelT")
DESCRIPTION = """Find the camera poses of photos, a video or panoramas, train on them, score held-out views, and write a
report and a video: all in one command. What has poses already is trained on at once.

Run it again with the same --out to go on where it was stopped; what is finished is not done again. The model options
below are those of {method}; --method chooses another."""


@dataclass(frozen=True)
class RunArguments(Generic[ModelT]):
    train: OmitArgPrefixes[TrainConfig]
    """How long to train, and what to write down meanwhile."""
    scene: SceneConfig
    """How the capture becomes a scene."""
    model: ModelT
    """The method's own options."""
    watch: OmitArgPrefixes[WatchArguments]
    """How the training can be watched."""
    poses: PoseConfig
    """How poses are found, of footage that has none."""
    photos: PhotosConfig
    """How a folder of photos is read."""
    video: VideoConfig
    """How frames of a video are chosen."""
    footage: Annotated[Positional[str], arg(metavar="FOOTAGE")] = ""
    """Folder of photos or panoramas, a video; a capture with poses, or its transforms.json; or a run, to finish it."""
    method: str = DEFAULT_METHOD
    """Method and preset to train."""
    out: Path | None = None
    """Run folder. None: the next free runs/CAPTURE/METHOD-N."""
    format: str = "auto"
    """Format of the capture; "auto" finds out."""
    capture: Path | None = None
    """Folder of the capture that is made of footage without poses. None: captures/NAME, after the footage."""
    bad_poses: bool = False
    """Train even when the report calls the poses bad."""
    video_seconds: float = 4.0
    """Length of the video at 24 frames per second; 0 makes none."""
    video_side: int = 480
    """Longer side of the video in pixels, at most that of the pictures."""


def main(words: list[str]) -> None:
    """The verb."""
    arguments = parse_run(words)
    if not arguments.footage:
        raise ConfigError("Say what to make a field of: `lightfold run FOOTAGE`; see `lightfold run --help`.")
    if is_run(arguments.footage):
        run = Run.open(arguments.footage)
        steps.budget(run, arguments.train)
        run, scene = steps.resume(run)
    else:
        config = RunConfig(
            capture=str(posed(arguments)),
            method=arguments.method,
            model=arguments.model,
            scene=anchored(arguments.scene),
            train=arguments.train,
            format=arguments.format,
        )
        run, scene = steps.begin(config, arguments.out)
    console.say(f"The run is in {run.path}")
    try:
        with watching(arguments.watch, run, scene) as watch:
            finish(run, scene, arguments.video_seconds, arguments.video_side, watch)
    except KeyboardInterrupt as stop:
        raise steps.Stopped(f"Stopped. Continue with:  lightfold run {run.path}") from stop


def posed(arguments: RunArguments[Any]) -> Path:
    """The capture to train on: what the user named, or what is made of it when it has no poses."""
    source = Path(arguments.footage).expanduser()
    if not lacks_poses(source, arguments.format):
        return source.resolve()
    out = arguments.capture or capture_folder(source)
    try:
        made = find_poses(source, out, arguments.poses, arguments.photos, arguments.video, arguments.bad_poses)
    except KeyboardInterrupt as stop:
        raise steps.Stopped(f"Stopped. The same command goes on; what is finished is in {out}.") from stop
    return made.resolve()


def parse_run(words: Sequence[str]) -> RunArguments[Any]:
    """The arguments, with the option tree of the method that --method names."""
    method = DEFAULT_METHOD
    for i, word in enumerate(words):
        if word == "--method" and i + 1 < len(words):
            method = words[i + 1]
        elif word.startswith("--method="):
            method = word.partition("=")[2]
    cls, model = lookup(method)
    options = (TrainConfig(), SceneConfig(), model, WatchArguments(), PoseConfig(), PhotosConfig(), VideoConfig())
    default = RunArguments(*options, method=method)
    description = DESCRIPTION.format(method=method)
    return parse(RunArguments[cls.Config], words, "run", description, default, flat=("train", "watch"))  # type: ignore[name-defined]


def finish(run: Run, scene: Scene, video_seconds: float, video_side: int, watch: Watch | None = None) -> None:
    """Everything from training to the summary, without what is finished."""
    steps.train(run, scene, None if watch is None else watch.begin)
    if watch is not None:
        watch.training_ended()
    result = evaluate_run(run, scene) if scene.info.test else {}
    video = fly(run, seconds=video_seconds, side=video_side) if video_seconds > 0 else None
    report = write_report(run.path)
    rows = scores(result) if result else [("scores", "none: no views were held out (--scene.split)")]
    rows += [("report", str(report)), ("pictures", str(run.path / "eval"))] if result else [("report", str(report))]
    if video is not None:
        rows.append(("video", str(video)))
    rows += [
        ("look at it", f"lightfold view {run.path}"),
        ("another video", f"lightfold render {run.path} --path interpolate"),
        ("train longer", f"lightfold run {run.path} --minutes 15"),
        ("what is in it", f"lightfold info {run.path}"),
    ]
    console.table(rows, title=f"{steps.capture_name(run.config.capture)}, {run.config.method}")
    if watch is not None:
        watch.stay()
