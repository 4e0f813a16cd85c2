"""lightfold run FOOTAGE: everything in one command."""

from __future__ import annotations

import glob
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from tyro.conf import OmitArgPrefixes, Positional, arg

from ..config import RunConfig, TrainConfig, lookup
from ..errors import ConfigError, LightfoldError
from ..footage.photos import PhotosConfig
from ..footage.video import VideoConfig
from ..formats.frames import natural_key
from ..poses.config import PoseConfig
from ..report import write_report
from ..run import Run, is_run
from ..scene import Scene, SceneConfig
from . import console, steps, workers
from .arguments import chosen, parse
from .claim import claimed, owner
from .eval import evaluate_run, scores
from .journey import FIELD, FILM, PAGE, POSES, VIDEO, Counts, Journey, shown
from .poses import capture_folder, find_poses, footage_stages, lacks_poses
from .render import FPS, fly
from .train import DEFAULT_METHOD, anchored
from .view import Watch, WatchArguments, watching

ModelT = TypeVar("ModelT")
DESCRIPTION = """Find the camera poses of photos, a video or panoramas, train on them, score held-out views, and write a
report and a video: all in one command. What has poses already is trained on at once.

The same command again goes on where it was stopped; what is finished is not done again. The model options
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
    workers.only_one("run")
    if not arguments.footage:
        raise ConfigError("Say what to make a field of: `lightfold run FOOTAGE`; see `lightfold run --help`.")
    try:
        make(arguments, chosen(words, "model"))
    except steps.Stopped:
        raise
    except KeyboardInterrupt as stop:
        raise steps.Stopped("Stopped. The same command goes on where it was; what is finished is kept.") from stop


def make(arguments: RunArguments[Any], own: Collection[str] = ()) -> None:
    """Everything that remains to be done, and the summary. own: the method's options that the user has set."""
    source = Path(arguments.footage).expanduser()
    old = Run.open(source) if is_run(source) else None
    if old is not None:
        steps.budget(old, arguments.train)
    lacking = old is None and lacks_poses(source, arguments.format)
    with ExitStack() as stack:
        with shown(journey(arguments, old, lacking)) as way:
            run, scene = begun(arguments, source, lacking, own) if old is None else steps.resume(old)
            stack.enter_context(claimed(run.path))
            console.say(f"The run is in {run.path}")
            try:
                watch = stack.enter_context(watching(arguments.watch, run, scene))
                rows = finish(run, scene, arguments.video_seconds, arguments.video_side, watch)
            except KeyboardInterrupt as stop:
                raise steps.Stopped(f"Stopped. Continue with:  lightfold run {run.path}") from stop
        rows.append(("time", way.told()))
        console.table(rows, title=f"{steps.capture_name(run.config.capture)}, {run.config.method}")
        if watch is not None:
            watch.stay()


def journey(arguments: RunArguments[Any], old: Run | None, lacking: bool) -> Journey:
    """The stages from what was given to the end, and what is known of them. old: a run to finish. lacking: poses."""
    source = Path(arguments.footage).expanduser()
    before = [*footage_stages(source), *POSES] if lacking else []
    film = FILM if arguments.video_seconds > 0 else ()
    minutes = (old.config.train if old is not None else arguments.train).minutes
    counts = Counts(
        pictures=len(old.info.names) if old is not None else None,
        ordered=lacking and footage_stages(source) == VIDEO,
        training=None if minutes is None else 60 * minutes,
        frames=round(arguments.video_seconds * FPS),
    )
    return Journey([*before, *FIELD, *film, *PAGE], counts)


def begun(arguments: RunArguments[Any], source: Path, lacking: bool, own: Collection[str] = ()) -> tuple[Run, Scene]:
    """The run and its scene: a new run, or the one of the same command that was stopped."""
    config = RunConfig(
        capture=str(posed(arguments, source) if lacking else source.resolve()),
        method=arguments.method,
        model=arguments.model,
        scene=anchored(arguments.scene),
        train=arguments.train,
        format=arguments.format,
    )
    return steps.begin(config, arguments.out or unfinished(config, own), own)


def unfinished(config: RunConfig, own: Collection[str] = ()) -> Path | None:
    """The newest run of the same configuration, under a name that `lightfold run` gave, that has no report yet and that
    no other process is at work on; None without one."""
    name = config.method.replace(":", "-")
    folder = Path("runs") / steps.capture_name(config.capture)
    numbered = (path for path in folder.glob(f"{glob.escape(name)}-*") if is_run(path))
    for path in sorted(numbered, key=lambda path: natural_key(path.name), reverse=True):
        with suppress(LightfoldError):
            same = steps.same_command(Run.open(path), config, own)
            if same and not (path / "report.html").exists() and owner(path) is None:
                console.remark(f"Going on with {path}, which was not finished.")
                return path
    return None


def posed(arguments: RunArguments[Any], source: Path) -> Path:
    """The capture that is made of footage without poses."""
    out = arguments.capture or capture_folder(source)
    try:
        with claimed(out):
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


def finish(
    run: Run, scene: Scene, video_seconds: float, video_side: int, watch: Watch | None = None
) -> list[tuple[str, str]]:
    """Everything from training to the report, without what is finished. Returns the rows of the summary."""
    steps.train(run, scene, None if watch is None else watch.begin)
    if watch is not None:
        watch.training_ended()
    device = run.config.train.device
    result = evaluate_run(run, scene, device=device) if scene.info.test else {}
    video = fly(run, seconds=video_seconds, side=video_side, device=device) if video_seconds > 0 else None
    with console.progress("report"):
        report = write_report(run.path)
    rows = scores(result) if result else [("scores", "none: no views were held out (--scene.split)")]
    rows += [("report", str(report)), ("pictures", str(run.path / "eval"))] if result else [("report", str(report))]
    if video is not None:
        rows.append(("video", str(video)))
    return [
        *rows,
        ("look at it", f"lightfold view {run.path}"),
        ("another video", f"lightfold render {run.path} --path interpolate"),
        ("train longer", f"lightfold run {run.path} --minutes 15"),
        ("what is in it", f"lightfold info {run.path}"),
    ]
