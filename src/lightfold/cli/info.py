"""lightfold info PATH: what a capture, a run, a checkpoint or a configuration is, and whether it is healthy."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ..errors import ConfigError, LightfoldError, RunError
from . import console
from .arguments import parse

if TYPE_CHECKING:
    from ..capture import Capture
    from ..run import Run

DESCRIPTION = """Say what something is, and whether it is healthy: a capture, a run, a checkpoint, a config.yaml."""
Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class InfoArguments:
    path: Annotated[Positional[str], arg(metavar="PATH")] = ""
    """A capture's folder or transforms.json, a run's folder, a .safetensors checkpoint, or a config.yaml."""
    format: str = "auto"
    """Format of a capture; "auto" finds out."""


def main(words: list[str]) -> None:
    """The verb. Ends with an error when what the path holds cannot be used."""
    arguments = parse(InfoArguments, words, "info", DESCRIPTION, InfoArguments())
    if not arguments.path:
        raise ConfigError("Say what to look at: `lightfold info PATH`.")
    path = Path(arguments.path).expanduser()
    title, rows, troubles = describe(path, arguments.format)
    rows.append(("healthy", "yes" if not troubles else "; ".join(troubles)))
    console.table(rows, title=title)


def describe(path: Path, format: str = "auto") -> tuple[str, Rows, list[str]]:
    """What it is, rows about it, and what is wrong with it. Raises LightfoldError when it cannot be opened at all."""
    if not path.exists():
        raise LightfoldError(f"There is nothing at {path}.")
    if path.is_file() and path.suffix == ".safetensors":
        return describe_checkpoint(path)
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return describe_configuration(path)
    from ..run import Run, is_run, was_begun

    if is_run(path) or was_begun(path):
        return describe_run(Run.open(path))
    from ..formats import FORMATS, open_capture

    if format not in ("auto", *FORMATS):
        raise ConfigError(f"There is no format called '{format}'. Known are auto, {', '.join(FORMATS)}.")
    return describe_capture(open_capture(path, format))


def describe_capture(capture: Capture) -> tuple[str, Rows, list[str]]:
    """Frames, sizes, lenses, split and what comes with them; what its reader had to leave out counts as a trouble."""
    frames = capture.frames
    posed = [frame.camera for frame in frames if frame.camera is not None]
    rows: Rows = [("format", capture.format), ("pictures", str(len(frames))), ("with poses", str(len(posed)))]
    if posed:
        rows.append(("sizes", _counts(f"{camera.width}x{camera.height}" for camera in posed)))
        rows.append(("lenses", _counts(camera.lens.value for camera in posed)))
        rows.append(("focal length", _spread([float(camera.intrinsics[0]) for camera in posed]) + " pixels"))
    guesses = [frame.guess for frame in frames if frame.guess is not None]
    if guesses:
        rows.append(("sizes", _counts(f"{guess.width}x{guess.height}" for guess in guesses)))
        rows.append(("cameras", _counts(guess.device or "unknown" for guess in guesses)))
    if any(frame.split for frame in frames):
        rows.append(("split", _counts(frame.split or "in no list" for frame in frames)))
    for name in ("mask", "depth", "time"):
        count = sum(getattr(frame, name) is not None for frame in frames)
        if count:
            rows.append((f"with {name}", str(count)))
    if capture.points is not None:
        rows.append(("3-D points", f"{len(capture.points.xyz):,}"))
    if capture.metric:
        rows.append(("unit", "metres"))
    rows += [("note", note) for note in capture.notes]
    missing = f"no: fewer than two pictures have a pose; `lightfold poses {capture.root}` finds them"
    troubles = [] if len(posed) > 1 else [missing]
    return f"{capture.root}: a capture", rows, troubles


def describe_run(run: Run) -> tuple[str, Rows, list[str]]:
    """Method, capture, checkpoints and scores of a run; a damaged checkpoint is a trouble."""
    info, config, about = run.info, run.config, run.about
    views = f"{len(info.train)} to train on, {len(info.test)} held out"
    rows: Rows = [
        ("method", config.method),
        ("capture", config.capture),
        ("views", views),
        ("sizes", _counts(f"{camera.width}x{camera.height}" for camera in info.cameras)),
        ("scene", f"{'bounded' if info.bounded else 'unbounded'}, near plane at {info.near:.3g}"),
        ("made", f"{about.get('created')} by lightfold {about.get('lightfold')}, torch {about.get('torch')}"),
        ("machine", f"{about.get('processor')}, {about.get('threads')} threads"),
        ("device", f"{', then '.join(about.get('devices', ['none yet']))}; {about.get('precision', 'float32')}"),
    ]
    troubles: list[str] = []
    try:
        found = run.checkpoint(resume=True)
    except RunError as error:
        found = None
        troubles.append(f"no: {error}")
    troubles += [f"no: {note}" for note in run.notes]
    rows.append(("checkpoints", ", ".join(f"step {step:,}" for step in run.steps()) or "none yet"))
    if found is not None:
        count = sum(tensor.numel() for tensor in found.tensors.values() if tensor.is_floating_point())
        rows.append(("model", f"{count:,} numbers, {_size(found.path.stat().st_size)}"))
        if (processes := int((found.resume or {}).get("processes", 1))) > 1:
            rows.append(("trained by", f"{processes} processes lately; the batch of a step is the sum of theirs"))
    logged = [row for row in run.metrics() if "step" in row]
    if logged:
        last = {key: value for key, value in logged[-1].items() if isinstance(value, (int, float))}
        rows.append(("last logged", ", ".join(f"{key} {value:.5g}" for key, value in last.items())))
    try:
        mean = json.loads((run.path / "eval.json").read_text(encoding="utf-8"))["mean"]
        rows.append(("scores", ", ".join(f"{key} {value:.4g}" for key, value in mean.items() if value is not None)))
    except FileNotFoundError:
        rows.append(("scores", f"none yet; `lightfold eval {run.path}`"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        troubles.append(f"no: {run.path / 'eval.json'} is damaged; `lightfold eval {run.path}` makes it again")
    size = sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file())
    rows.append(("on disk", _size(size)))
    return f"{run.path}: a run", rows, troubles


def describe_checkpoint(path: Path) -> tuple[str, Rows, list[str]]:
    """What a .safetensors file of ours holds; its checksum is verified."""
    from ..run import load_tensors

    tensors, header = load_tensors(path)
    rows: Rows = [
        ("step", header.get("step", "?")),
        ("format", header.get("format", "?")),
        ("on disk", _size(path.stat().st_size)),
    ]
    for name, tensor in tensors.items():
        rows.append(
            (name, f"{'x'.join(map(str, tensor.shape)) or 'one number'} {str(tensor.dtype).removeprefix('torch.')}")
        )
    broken = [
        name for name, tensor in tensors.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]
    what = "what a continued training needs" if "weights" in header else "a checkpoint"
    return f"{path}: {what}", rows, [f"no: {name} holds numbers that are not finite" for name in broken]


def describe_configuration(path: Path) -> tuple[str, Rows, list[str]]:
    """The options of a config.yaml."""
    from ..config import from_yaml, to_plain

    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    rows: Rows = []
    for name, value in to_plain(from_yaml(text, str(path))).items():
        if isinstance(value, dict):
            rows += [(f"{name}.{inner}", str(entry)) for inner, entry in value.items()]
        else:
            rows.append((name, str(value)))
    return f"{path}: a configuration", rows, []


def _counts(values: Iterable[str]) -> str:
    """ "12 of 640x480, 3 of 480x640", the commonest first."""
    counted = Counter(values).most_common()
    if len(counted) == 1:
        return counted[0][0]
    shown = ", ".join(f"{count} of {value}" for value, count in counted[:6])
    return shown if len(counted) <= 6 else f"{shown} and {len(counted) - 6} more kinds"


def _spread(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.1f}" if high - low < 0.05 else f"{low:.1f} to {high:.1f}"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
