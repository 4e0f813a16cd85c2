"""A benchmark's record: one JSON file with its numbers and all that is needed to read them or take them again."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lightfold.files import whole_file

REPOSITORY = Path(__file__).resolve().parents[1]
COMMITTED = REPOSITORY / "benchmarks" / "results"
"""What docs/results.md is made from. Only `--full` writes here unless --out says so."""
SCRATCH = REPOSITORY / "runs" / "benchmarks"
"""Where quick measurements go."""
FORMAT = 1


@dataclass
class Record:
    """protocol: how it was measured, whole sentences or settings; results: numbers, in SI units named in the keys."""

    protocol: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have, described by a module's docstring."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="less of everything; the record goes to runs/benchmarks")
    made.add_argument("--out", type=Path, help="folder of the records; default: benchmarks/results, or runs/benchmarks")
    made.add_argument("--data", type=Path, help="folder of real captures; default: $LIGHTFOLD_TEST_DATA")
    return made


def folder(options: argparse.Namespace) -> Path:
    """Where this measurement's records go."""
    return options.out or (SCRATCH if options.quick else COMMITTED)


def captures(options: argparse.Namespace) -> Path:
    """The folder of real captures, which need not exist."""
    return Path(options.data or os.environ.get("LIGHTFOLD_TEST_DATA") or REPOSITORY.parent / "shared" / "data")


def find_capture(options: argparse.Namespace, name: str) -> Path | None:
    """A capture by its name: "sample" is the repository's own; others are in the data folder, or None."""
    path = REPOSITORY / "examples" / "sample" if name == "sample" else captures(options) / name
    return path if path.exists() else None


@contextmanager
def recorded(name: str, options: argparse.Namespace) -> Iterator[Record]:
    """`with recorded("kernels", options) as record:` writes NAME.json when the block ends well, and says so."""
    record = Record()
    before, wall, cpu = load_average(), time.perf_counter(), time.process_time()
    yield record
    document = {
        "format": FORMAT,
        "name": name,
        "quick": bool(options.quick),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": command(),
        "load_average": {"before": before, "after": load_average()},
        "seconds": {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu},
        "machine": machine_description(),
        "protocol": record.protocol,
        "results": record.results,
    }
    path = folder(options) / f"{name}.json"
    with whole_file(path) as partial:
        partial.write_text(json.dumps(rounded(document), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(f"wrote {path}", flush=True)


def machine_description() -> dict[str, Any]:
    """The machine, without what only installers know."""
    from lightfold.machine import environment

    return {key: value for key, value in environment().items() if key != "commit"}


def commit() -> dict[str, Any]:
    """The commit that was measured, and whether files differed from it."""
    identity = git("rev-parse", "HEAD")
    # What benchmarks write while they run is no change of what is measured.
    changes = git("status", "--porcelain", "--", "src", "csrc", "benchmarks/*.py", "CMakeLists.txt", "pyproject.toml")
    return {"id": identity, "dirty": None if changes is None else bool(changes)}


def git(*words: str) -> str | None:
    """What git answers, or None where there is no repository or no git."""
    try:
        done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def command() -> str:
    """The command line, with paths shortened to their names: folders differ from machine to machine."""
    script = Path(sys.argv[0])
    words = [Path(word).name if os.path.isabs(word) else word for word in sys.argv[1:]]
    return " ".join(["python -m", f"{script.parent.name}.{script.stem}", *words])


def load_average() -> list[float] | None:
    """Processes wanting to run, averaged over 1, 5 and 15 minutes; None on Windows."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def rounded(value: Any) -> Any:
    """Floats to six significant digits, which is more than anything here is known to; NaN and infinity as null."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): rounded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(entry) for entry in value]
    return value


def load(path: Path) -> dict[str, dict[str, Any]]:
    """All records in a folder, by name."""
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(path.glob("*.json"))]
    return {record["name"]: record for record in records}


def child(words: Sequence[str], timeout: float) -> dict[str, Any]:
    """Run `python -m WORDS` in a process of its own, whose last line of output is JSON, and return that."""
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, timeout=timeout, check=False
    )
    if done.returncode != 0 or not done.stdout.strip():
        raise SystemExit(f"`python -m {' '.join(words)}` failed with exit code {done.returncode}.")
    return json.loads(done.stdout.strip().splitlines()[-1])
