"""lightfold render RUN: videos and stills."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from ..errors import ConfigError
from . import console, workers
from .arguments import parse

if TYPE_CHECKING:
    from ..cameras import Camera, Lens
    from ..capture import Capture
    from ..distributed import World
    from ..geometry import Similarity
    from ..render import Rendering
    from ..run import Run
    from ..scene import SceneInfo
    from ..stereo import Viewing

FPS = 24.0
OUTPUTS = ("rgb", "depth", "median_depth", "normal", "alpha")
VIEWS = ("held-out", "train")
PANORAMAS = {"equirectangular": (2048, 1024), "vr180": (1024, 1024)}
"""Lenses that see all round, or half of it, and the size of one eye's picture."""
HUMAN_EYES = 0.063
"""Mean distance between people's pupils in metres (Dodgson 2004)."""
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
    outputs: tuple[Literal["rgb", "depth", "median_depth", "normal", "alpha"], ...] = ("rgb",)
    """What to show, side by side in a video."""
    stills: bool = False
    """Pictures instead of a video. The paths held-out and train always give pictures."""
    hdr: bool = False
    """Write the colours of stills as linear light: OpenEXR in half precision, 1 is the white of a photograph."""
    depth_as: Literal["colour", "png16", "npy"] = "colour"
    """How stills show depth: colours, 16-bit PNG (thousandths of a capture unit) or float arrays (capture units)."""
    frames: int = 120
    """Frames of the path; a camera-path file has its own number."""
    fps: float | None = None
    """Frames per second of the video. None: 24, or what the camera-path file says."""
    size: tuple[int, int] | None = None
    """Width and height in pixels, of one eye's picture in stereo. None: those of the training pictures, or of the
    camera-path file; 2048 x 1024 for panoramas, 1024 x 1024 for vr180."""
    lens: Literal["auto", "pinhole", "fisheye", "equirectangular", "orthographic", "vr180"] = "auto"
    """Lens of the camera that travels: vr180 is the front half of a panorama, for two eyes unless --stereo mono says
    otherwise. Panoramas keep their horizon level."""
    stereo: Literal["auto", "mono", "side-by-side", "top-bottom"] = "auto"
    """One picture, or one for each eye and how the two share the frame. Panoramas become omnidirectional stereo."""
    eye_distance: float | None = None
    """Between the eyes, in units of the capture. None: 0.063 where the capture is in metres, else a thirtieth of the
    distance to what the cameras look at."""
    background: tuple[float, float, float] | None = None
    """Colour behind everything, red green blue in [0, 1]. None: what the scene says."""
    viewer_frame: Path | None = None
    """The dataparser_transforms.json of the nerfstudio run in whose viewer a camera-path file was made."""
    step: int | None = None
    """Which checkpoint. None: the newest."""
    device: str = "auto"
    """What computes: auto (a GPU that Triton has kernels for, else the processor), cpu, cuda, cuda:1, xpu or mps."""
    devices: int = 1
    """Processes that share the frames, one for each GPU, or sharing the cores where there is none."""


def main(words: list[str]) -> None:
    """The verb."""
    arguments = parse(RenderArguments, words, "render", DESCRIPTION, RenderArguments())
    if not arguments.run:
        raise ConfigError("Say which run to render: `lightfold render RUN`.")
    _check(arguments)
    if workers.several(arguments.devices):
        workers.start(["render", *words], arguments.devices)
        return
    with workers.joined(arguments.devices, arguments.device) as world:
        show(arguments, world)


def show(arguments: RenderArguments, world: World | None) -> None:
    """The pictures, made alone or together with others."""
    from ..run import Run
    from . import steps

    run = Run.open(arguments.run)
    steps.use_threads(None)
    rendering = render_run(run, arguments, world)
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
    if arguments.eye_distance is not None and not 0 < arguments.eye_distance < 1e6:
        raise ConfigError("--eye-distance must be a distance above 0, in units of the capture.")
    if arguments.lens == "vr180" and (arguments.path in VIEWS or arguments.path.endswith(".json")):
        raise ConfigError("--lens vr180 needs a path that is made here: auto, orbit, spiral or interpolate.")
    as_video = not arguments.stills and arguments.path not in VIEWS
    if arguments.hdr and as_video:
        raise ConfigError("--hdr writes pictures, and a video cannot hold them; add --stills.")
    if arguments.hdr and find_spec("OpenEXR") is None:
        raise ConfigError("--hdr needs the OpenEXR library: pip install 'lightfold[exr]'.")
    if as_video and arguments.out is not None and arguments.out.suffix.lower() != ".mp4":
        raise ConfigError(f"--out must end in .mp4 for a video, and it is {arguments.out}; or ask for --stills.")


def render_run(run: Run, arguments: RenderArguments, world: World | None = None) -> Rendering:
    """What the arguments ask for."""
    import torch

    from ..devices import choose
    from ..render import render_path, render_stills
    from . import steps

    cameras, fps, names, notes, eyes = cameras_of(run, arguments)
    background = None if arguments.background is None else torch.tensor(arguments.background)
    viewing = viewing_of(run, arguments, eyes)
    if viewing.half and arguments.size is not None and arguments.size[0] % 2:
        raise ConfigError(f"--size must have an even width for vr180, and it is {arguments.size[0]}.")
    if viewing.layout != "mono" and len(arguments.outputs) > 1 and not arguments.stills and names is None:
        raise ConfigError("A stereo video has room for one of --outputs; render the others into videos of their own.")
    place = None if world is None else world.local_rank
    method = run.method(steps.checkpoint_step(run, arguments.step, world), choose(arguments.device, place))
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
                viewing=viewing,
                hdr=arguments.hdr,
                world=world,
            )
        kind = ["vr180"] if viewing.half else [viewing.layout] if viewing.layout != "mono" else []
        out = arguments.out or run.path / "renders" / f"{'_'.join([name, *kind, *arguments.outputs])}.mp4"
        return render_path(
            method,
            cameras,
            out,
            arguments.fps or fps,
            arguments.outputs,
            report,
            background=background,
            viewing=viewing,
            world=world,
        )


def viewing_of(run: Run, arguments: RenderArguments, eyes: str = "") -> Viewing:
    """How many eyes look, how far apart they are, and how much of a panorama they see.

    eyes: what a camera-path file asks for, of `path_files.TWO_EYES` or nothing.
    """
    from ..paths import arrangement
    from ..stereo import Viewing

    half = "vr180" in (arguments.lens, eyes)
    layout = arguments.stereo
    if layout == "auto":
        layout = "side-by-side" if half else "top-bottom" if eyes else "mono"
    if layout == "mono":
        return Viewing(half=half)
    scene_per_capture = run.info.scene_from_capture.scale
    if arguments.eye_distance is not None:
        distance = arguments.eye_distance * scene_per_capture
    elif _is_metric(run):
        distance = HUMAN_EYES * scene_per_capture
    else:
        distance = arrangement(run.info).reach / 30
    return Viewing(layout, distance, half)


def cameras_of(
    run: Run, arguments: RenderArguments
) -> tuple[Camera | list[Camera], float, list[str] | None, tuple[str, ...], str]:
    """Cameras of the path, its frame rate, names where the cameras are those of views, notes, and what a camera-path
    file says about eyes (see `viewing_of`)."""
    from .. import path_files, paths
    from ..config import did_you_mean

    info, path = run.info, arguments.path
    if path in VIEWS:
        indices = list(info.test if path == "held-out" else info.train)
        views = paths.held_out(info) if path == "held-out" else [info.cameras[i] for i in indices]
        return views, FPS, [info.names[i] for i in indices], (), ""
    if path.endswith(".json"):
        frame = None
        if arguments.viewer_frame is not None:
            frame = path_files.capture_from_nerfstudio(arguments.viewer_frame, _original_from_capture(run))
        found = path_files.camera_path_json(path, info, frame)
        cameras = found.cameras
        if arguments.size is not None:
            wider = 2 if found.eyes == "vr180" else 1
            cameras = cameras.resized(wider * arguments.size[0], arguments.size[1])
        return cameras, found.fps, None, found.notes, found.eyes
    if path != "auto" and path not in paths.PATHS:
        known = ["auto", *paths.PATHS, *VIEWS]
        raise ConfigError(f"There is no path called '{path}', and it is no .json file. {did_you_mean(path, known)}")
    template = paths.template_camera(info, _size(arguments), _lens(arguments.lens))
    make = paths.auto if path == "auto" else paths.PATHS[path]
    cameras = make(info, arguments.frames, template)
    if arguments.lens in PANORAMAS:
        cameras = paths.levelled(cameras)
    return cameras, FPS, None, (), ""


def _size(arguments: RenderArguments) -> tuple[int, int] | None:
    """Width and height of the camera that travels: of vr180, the whole panorama whose front half is shown."""
    if arguments.lens not in PANORAMAS:
        return arguments.size
    width, height = arguments.size or PANORAMAS[arguments.lens]
    return (2 * width, height) if arguments.lens == "vr180" else (width, height)


def _capture(run: Run) -> Capture | None:
    """What the run was trained on, if it is still there to be asked."""
    from ..formats import open_capture

    if not Path(run.config.capture).exists():
        return None
    return open_capture(run.config.capture, run.config.format)


def _original_from_capture(run: Run) -> Similarity | None:
    """The frame change that the capture's own file states."""
    capture = _capture(run)
    return None if capture is None else capture.original_from_capture


def _is_metric(run: Run) -> bool:
    capture = _capture(run)
    return capture is not None and capture.metric


def _lens(name: str) -> Lens | None:
    from ..cameras import Lens

    lenses = {"pinhole": Lens.PINHOLE, "fisheye": Lens.OPENCV_FISHEYE}
    lenses |= {"equirectangular": Lens.EQUIRECTANGULAR, "orthographic": Lens.ORTHOGRAPHIC}
    lenses |= {"vr180": Lens.EQUIRECTANGULAR}
    return lenses.get(name)


def fly(run: Run, seconds: float, side: int, device: str = "auto") -> Path:
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
        path=name, out=out, frames=max(1, round(seconds * FPS)), size=video_size(run.info, side), device=device
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
