"""lightfold render RUN: videos and stills."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from ..errors import ConfigError
from . import console
from .arguments import parse

if TYPE_CHECKING:
    from ..cameras import Camera, Lens
    from ..geometry import Similarity
    from ..render import Rendering
    from ..run import Run
    from ..scene import SceneInfo

FPS = 24.0
OUTPUTS = ("rgb", "depth", "normal", "alpha")
VIEWS = ("held-out", "train")
DESCRIPTION = """Render a video, or stills, from a run.

PATH is auto (an orbit where the cameras stood around something, otherwise along the photographer's way), orbit, spiral,
interpolate, held-out, train, or a camera-path file (.json) from nerfstudio's viewer or Blender add-on."""


@dataclass(frozen=True)
class RenderArguments:
    run: Annotated[Positional[str], arg(metavar="RUN")] = ""
    """The run folder."""
    path: str = "auto"
    """Where the camera goes: auto, orbit, spiral, interpolate, held-out, train, or a camera-path file."""
    out: Path | None = None
    """The video (.mp4), or the folder of the stills. None: in the run's folder renders."""
    outputs: tuple[Literal["rgb", "depth", "normal", "alpha"], ...] = ("rgb",)
    """What to show, side by side in a video."""
    stills: bool = False
    """Pictures instead of a video. The paths held-out and train always give pictures."""
    depth_as: Literal["colour", "png16", "npy"] = "colour"
    """How stills show depth: colours, 16-bit PNG (thousandths of a capture unit) or float arrays (capture units)."""
    frames: int = 120
    """Frames of the path; a camera-path file has its own number."""
    fps: float | None = None
    """Frames per second of the video. None: 24, or what the camera-path file says."""
    size: tuple[int, int] | None = None
    """Width and height in pixels. None: those of the training pictures, or of the camera-path file."""
    lens: Literal["auto", "pinhole", "fisheye", "equirectangular", "orthographic"] = "auto"
    """Lens of the camera that travels."""
    background: tuple[float, float, float] | None = None
    """Colour behind everything, red green blue in [0, 1]. None: what the scene says."""
    viewer_frame: Path | None = None
    """The dataparser_transforms.json of the nerfstudio run in whose viewer a camera-path file was made."""
    step: int | None = None
    """Which checkpoint. None: the newest."""


def main(words: list[str]) -> None:
    """The verb."""
    arguments = parse(RenderArguments, words, "render", DESCRIPTION, RenderArguments())
    if not arguments.run:
        raise ConfigError("Say which run to render: `lightfold render RUN`.")
    _check(arguments)
    from ..run import Run
    from . import steps

    run = Run.open(arguments.run)
    steps.use_threads(None)
    rendering = render_run(run, arguments)
    for note in rendering.notes:
        console.remark(note)
    first = rendering.files[0]
    where = str(first) if len(rendering.files) == 1 else f"{len(rendering.files)} files beside {first}"
    console.say(f"{rendering.frames} frames: {where}")


def _check(arguments: RenderArguments) -> None:
    if not arguments.outputs or len(set(arguments.outputs)) < len(arguments.outputs):
        raise ConfigError(f"--outputs: name each of {', '.join(OUTPUTS)} at most once, and at least one.")
    if arguments.frames < 1 or (arguments.fps is not None and not 0 < arguments.fps <= 1000):
        raise ConfigError("--frames must be at least 1, and --fps above 0 and at most 1000.")
    if arguments.size is not None and not all(1 <= side <= 16384 for side in arguments.size):
        raise ConfigError("--size must be two numbers of pixels from 1 to 16384, such as --size 1280 720.")
    if arguments.background is not None and not all(0 <= value <= 1 for value in arguments.background):
        raise ConfigError("--background must be three numbers from 0 to 1, such as --background 1 1 1.")
    as_video = not arguments.stills and arguments.path not in VIEWS
    if as_video and arguments.out is not None and arguments.out.suffix.lower() != ".mp4":
        raise ConfigError(f"--out must end in .mp4 for a video, and it is {arguments.out}; or ask for --stills.")


def render_run(run: Run, arguments: RenderArguments) -> Rendering:
    """What the arguments ask for."""
    import torch

    from ..render import render_path, render_stills

    cameras, fps, names, notes = cameras_of(run, arguments)
    background = None if arguments.background is None else torch.tensor(arguments.background)
    method = run.method(arguments.step)
    name = Path(arguments.path).stem if arguments.path.endswith(".json") else arguments.path
    for note in notes:
        console.remark(note)
    with console.progress("rendering") as report:
        if arguments.stills or names is not None:
            folder = arguments.out or run.path / "renders" / name
            return render_stills(
                method,
                cameras,
                folder,
                names,
                arguments.outputs,
                report,
                background=background,
                depth_as=arguments.depth_as,
            )
        out = arguments.out or run.path / "renders" / f"{'_'.join([name, *arguments.outputs])}.mp4"
        return render_path(method, cameras, out, arguments.fps or fps, arguments.outputs, report, background=background)


def cameras_of(
    run: Run, arguments: RenderArguments
) -> tuple[Camera | list[Camera], float, list[str] | None, tuple[str, ...]]:
    """Cameras of the path, its frame rate, names where the cameras are those of views, and notes."""
    from .. import path_files, paths
    from ..config import did_you_mean

    info, path = run.info, arguments.path
    if path in VIEWS:
        indices = list(info.test if path == "held-out" else info.train)
        views = paths.held_out(info) if path == "held-out" else [info.cameras[i] for i in indices]
        return views, FPS, [info.names[i] for i in indices], ()
    if path.endswith(".json"):
        frame = None
        if arguments.viewer_frame is not None:
            frame = path_files.capture_from_nerfstudio(arguments.viewer_frame, _original_from_capture(run))
        found = path_files.camera_path_json(path, info, frame)
        cameras = found.cameras if arguments.size is None else found.cameras.resized(*arguments.size)
        return cameras, found.fps, None, found.notes
    if path != "auto" and path not in paths.PATHS:
        known = ["auto", *paths.PATHS, *VIEWS]
        raise ConfigError(f"There is no path called '{path}', and it is no .json file. {did_you_mean(path, known)}")
    template = paths.template_camera(info, arguments.size, _lens(arguments.lens))
    make = paths.auto if path == "auto" else paths.PATHS[path]
    return make(info, arguments.frames, template), FPS, None, ()


def _original_from_capture(run: Run) -> Similarity | None:
    """The frame change that the capture's own file states, if the capture is still there to be asked."""
    from ..formats import open_capture

    if not Path(run.config.capture).exists():
        return None
    return open_capture(run.config.capture, run.config.format).original_from_capture


def _lens(name: str) -> Lens | None:
    from ..cameras import Lens

    lenses = {"pinhole": Lens.PINHOLE, "fisheye": Lens.OPENCV_FISHEYE}
    lenses |= {"equirectangular": Lens.EQUIRECTANGULAR, "orthographic": Lens.ORTHOGRAPHIC}
    return lenses.get(name)


def fly(run: Run, seconds: float, side: int) -> Path:
    """The video that `lightfold run` makes, unless there is one that is newer than the checkpoint."""
    from ..paths import suited_path

    name = suited_path(run.info)
    # A name of its own: `lightfold render` may write another kind of picture under the name of the path.
    out = run.path / "renders" / "video.mp4"
    found = run.checkpoint()
    if found is not None and out.is_file() and out.stat().st_mtime >= found.path.stat().st_mtime:
        console.say("The video of this checkpoint exists already.")
        return out
    arguments = RenderArguments(
        path=name, out=out, frames=max(1, round(seconds * FPS)), size=video_size(run.info, side)
    )
    for note in render_run(run, arguments).notes:
        console.remark(note)
    return out


def video_size(info: SceneInfo, side: int) -> tuple[int, int]:
    """Even width and height in the shape of the training pictures, with at most `side` pixels on the longer side."""
    from ..paths import template_camera

    camera = template_camera(info)
    shrink = min(1.0, side / max(camera.width, camera.height))
    return max(2, 2 * round(camera.width * shrink / 2)), max(2, 2 * round(camera.height * shrink / 2))
