"""lightfold bench quality CAPTURE ...: methods against each other on captures, at one budget, in one table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from ..config import lookup
from ..errors import CaptureError, ConfigError, LightfoldError, RunError
from ..files import whole_file
from . import console
from .arguments import parse

DESCRIPTION = """Train methods on captures, each for the same time, score them on held-out views, and write one table,
beside published figures where there are any for a scene of that name.

Every training is a run of its own below --out, in a process of its own; what is finished is not done again. Options of
`lightfold run` that all of them shall have come last, after two dashes:

    lightfold bench quality CAPTURE --methods ngp neus -- --scene.downscale 4"""
KINDS = ("quality",)


@dataclass(frozen=True)
class BenchArguments:
    kind: Annotated[Positional[str], arg(metavar="quality")] = ""
    """What to measure."""
    captures: Annotated[Positional[tuple[str, ...]], arg(metavar="CAPTURE ...")] = ()
    """Captures with poses."""
    methods: tuple[str, ...] = ("ngp:fast", "ngp", "nerfacto")
    """Methods and presets."""
    minutes: float = 1.0
    """Training time of each."""
    seed: int = 0
    """Seed of each."""
    out: Path = Path("runs/bench")
    """Folder of the runs and of the table."""


def main(words: list[str]) -> None:
    """The verb."""
    end = words.index("--") if "--" in words else len(words)
    words, options = words[:end], words[end + 1 :]
    arguments = parse(BenchArguments, words, "bench", DESCRIPTION, BenchArguments())
    if arguments.kind not in KINDS:
        raise ConfigError("Say what to measure on which captures: `lightfold bench quality CAPTURE ...`.")
    if not arguments.captures or not arguments.methods:
        raise ConfigError("Name at least one capture and one method: `lightfold bench quality CAPTURE --methods ngp`.")
    if not 0 < arguments.minutes <= 100_000:
        raise ConfigError(f"--minutes must be above 0, and it is {arguments.minutes:g}.")
    for method in arguments.methods:
        lookup(method)
    for capture in arguments.captures:
        if not Path(capture).expanduser().exists():
            raise CaptureError(f"There is nothing at {capture}.")
    rows = [
        measured(capture, method, arguments, options) for capture in arguments.captures for method in arguments.methods
    ]
    table = written(rows)
    with whole_file(arguments.out / "bench.json") as partial:
        partial.write_text(json.dumps({"minutes": arguments.minutes, "rows": rows}, indent=1), encoding="utf-8")
    with whole_file(arguments.out / "bench.md") as partial:
        partial.write_text(table, encoding="utf-8")
    console.say(table)
    if all("failure" in row for row in rows):
        raise LightfoldError(f"No training has worked; {arguments.out / 'bench.md'} says why.")
    console.say(f"The table is in {arguments.out / 'bench.md'}, its numbers with their protocol in bench.json.")


def measured(capture: str, method: str, arguments: BenchArguments, options: list[str]) -> dict[str, Any]:
    """One training and its scores, or why there are none: a method that fails does not end the comparison."""
    place = Path(capture).expanduser().resolve()
    out = arguments.out / place.name / method.replace(":", "-")
    words = ["run", str(place), "--method", method, "--out", str(out), "--video-seconds", "0"]
    words += ["--minutes", f"{arguments.minutes:g}", "--seed", str(arguments.seed), *options]
    console.say(f"{place.name}, {method}: {arguments.minutes:g} minutes ...")
    row: dict[str, Any] = {"capture": place.name, "of": place.parent.name, "method": method}
    command = [sys.executable, "-m", "lightfold", *words]
    # -m would look for modules in the current folder first, whoever filled it.
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except OSError as error:
        raise LightfoldError(f"The training could not be started: {error.strerror or error}.") from error
    if done.returncode:
        return row | {"failure": (done.stderr.strip().splitlines() or ["it ended without saying why"])[-1]}
    try:
        result = json.loads((out / "eval.json").read_text(encoding="utf-8"))
        metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise RunError(f"The scores of {out} cannot be read: {error}.") from error
    trained: dict[str, Any] = next((entry for entry in reversed(metrics) if "rays_per_second" in entry), {})
    return row | {
        "psnr": result["mean"]["psnr"],
        "ssim": result["mean"]["ssim"],
        "seconds": trained.get("seconds"),
        "cpu_seconds": trained.get("cpu_seconds"),
        "steps": result["protocol"].get("step"),
        "peak_memory_bytes": result["timing"]["peak_memory_bytes"],
        "seconds_per_view": result["timing"]["seconds_per_view"],
        "protocol": result["protocol"],
    }


def written(rows: list[dict[str, Any]]) -> str:
    """The comparison as Markdown, a table for each capture, with published figures below our own."""
    parts = []
    for name in dict.fromkeys(row["capture"] for row in rows):
        of_capture = [row for row in rows if row["capture"] == name]
        lines = [f"## {name}", "", "| method | whose | PSNR | SSIM | training | memory | a view |"]
        lines += ["|---|---|---|---|---|---|---|", *(_line(row) for row in of_capture)]
        protocol = next((row["protocol"] for row in of_capture if "protocol" in row), None)
        notes = []
        if protocol is not None:
            notes.append(
                f"Ours: {protocol['view_count']} views ({protocol['views']}) at {', '.join(protocol['resolution'])}, "
                f"background {protocol['background']}, 8-bit quantised, split {protocol['split']}, "
                f"{protocol['processor']}."
            )
        theirs = published(of_capture[0]["of"], name)
        if theirs is not None:
            figures, how = theirs
            lines += [f"| {method} | published | {psnr:.2f} dB | | {time} | | |" for method, psnr, time in figures]
            notes.append(f"Published: {how}. Views, size, hardware and time differ, so these are no like for like.")
        parts.append("\n".join([*lines, "", *notes]))
    return "\n\n".join(parts) + "\n"


def _line(row: dict[str, Any]) -> str:
    if "failure" in row:
        return f"| `{row['method']}` | ours | failed: {row['failure']} | | | | |"
    memory = row["peak_memory_bytes"]
    return (
        f"| `{row['method']}` | ours | {row['psnr']:.2f} dB | {row['ssim']:.4f} | "
        f"{row['seconds']:.0f} s ({row['cpu_seconds']:.0f} s of CPU) | "
        f"{'' if memory is None else f'{memory / 1e9:.2f} GB'} | {row['seconds_per_view']:.2f} s |"
    )


def published(of: str, scene: str) -> tuple[list[tuple[str, float, str]], str] | None:
    """(method, PSNR, time) of a scene of a public benchmark, and how those were measured; None for any other capture.

    of: the folder that holds the scene, which has the benchmark's name.
    """
    known = json.loads(files("lightfold").joinpath("published.json").read_text(encoding="utf-8"))
    if of not in known or scene not in known[of]["scenes"]:
        return None
    place = known[of]["scenes"].index(scene)
    figures = [(method, entry["values"][place], entry["time"]) for method, entry in known[of]["psnr"].items()]
    return figures, known[of]["protocol"]
