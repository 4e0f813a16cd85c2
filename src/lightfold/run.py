"""The run folder: written by training, opened by everything after it, never in need of the training pictures.

    config.yaml                             every option, resolved (config.py)
    scene.json                              cameras, split, frame: the SceneInfo
    run.json                                format number, versions, machine; written last: it marks a whole folder
    metrics.jsonl                           one JSON object per line, appended while training
    checkpoints/step_0001000.safetensors    weights of the method
    checkpoints/step_0001000.resume.safetensors   what only a continued training needs, such as Adam's moments
    preview.jpg, tensorboard/               a held-out view and curves, while training
    eval.json, eval/, renders/, report.html, log.txt   written by those who make them

Every file but metrics.jsonl appears under its name only when it is whole. A process that is killed at any moment leaves
a run that opens and continues. There is nothing in the folder that could be executed: YAML of plain values, JSON, and
safetensors. Whatever is damaged is named in one sentence.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import machine
from .config import RunConfig, TrainConfig, from_yaml, to_yaml
from .devices import CPU, half_type, use
from .errors import ConfigError, RunError
from .files import whole_file
from .methods import method_class
from .methods.base import Method
from .scene import SceneInfo

FORMAT = 1
"""Version of the folder's layout. It rises when an older program would misread a newer folder."""
KEPT = 2
"""Checkpoints kept: the newest, and the one before it in case a disk damages the newest."""
OURS = {"config.yaml", "scene.json", "checkpoints", "log.txt"}
"""What an interrupted `Run.create` may have left, and a new one may overwrite."""


def placed(method: Method, precision: str = "auto", device: torch.device = CPU) -> Method:
    """A method on the device that it is to compute on, from this thread on, in this precision where it can be had."""
    use(device)
    method.half_type = half_type(precision, device) if method.HALF else None
    return method.to(device)


@dataclass(frozen=True)
class Checkpoint:
    """A moment of a training.

    tensors: the method's state_dict. resume: what only a continued training needs, or None when it was not asked for.
    """

    step: int
    path: Path
    tensors: dict[str, Tensor]
    resume: dict[str, Tensor] | None = None


class Run:
    """A run folder. Make one with `Run.create`, open one with `Run.open`."""

    def __init__(self, path: Path, config: RunConfig, info: SceneInfo, about: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        self.info = info
        self.about = about
        """Contents of run.json: versions, machine, time of creation."""
        self.notes: list[str] = []
        """Whole sentences about damage that was worked around."""
        self._appending = False

    # -------------------------------------------------------------------------------------------------- create and open

    @staticmethod
    def create(path: Path | str, config: RunConfig, info: SceneInfo) -> Run:
        """Make a run folder. Raises RunError if the folder already holds a run, or anything else."""
        folder = Path(path)
        if is_run(folder):
            raise RunError(
                f"{folder} is a run already; continue it with `lightfold train {folder}`, or choose another --out."
            )
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file, so no run can be written there; choose another --out.")
        strangers = [] if not folder.exists() else [p.name for p in folder.iterdir() if p.name not in OURS]
        strangers = sorted(name for name in strangers if not name.endswith(".partial"))
        if strangers:
            raise RunError(f"{folder} is not empty (it holds {strangers[0]}); choose another --out for the run.")
        scene = info.to_dict()
        _write(folder / "config.yaml", to_yaml(config))
        _write(folder / "scene.json", json.dumps(scene, separators=(",", ":")))
        made = datetime.now(timezone.utc).isoformat(timespec="seconds")
        about = {"format": FORMAT, "created": made, **machine.environment()}
        _write(folder / "run.json", json.dumps(about, indent=1))
        # What a continued training will read, to the last digit, is what this one shall see.
        return Run(folder, config, SceneInfo.from_dict(scene), about)

    @staticmethod
    def open(path: Path | str) -> Run:
        """Open a run folder. Raises RunError with one sentence: not a run, damaged and where, or of a newer version."""
        folder = Path(path)
        if not folder.is_dir():
            raise RunError(f"There is no run folder at {folder}.")
        if not is_run(folder):
            if was_begun(folder):
                raise RunError(
                    f"{folder} is a run without run.json: its making was interrupted. Delete it and train again."
                )
            raise RunError(f"{folder} is not a run folder: it holds no run.json.")
        about = _read_json(folder / "run.json")
        number = about.get("format")
        if not isinstance(number, int):
            raise RunError(f"{folder / 'run.json'} does not say which format the run has, so it cannot be opened.")
        if number > FORMAT:
            raise RunError(
                f"{folder} was written by a newer lightfold ({about.get('lightfold', 'unknown')}, run format {number}; "
                f"this one reads up to {FORMAT}); upgrade with `pip install --upgrade lightfold`."
            )
        config_file = folder / "config.yaml"
        try:
            config = from_yaml(_read(config_file), str(config_file))
        except ConfigError as error:
            raise RunError(f"The run {folder} cannot be opened: {error}") from error
        return Run(folder, config, _read_info(folder / "scene.json"), about)

    def used(self, device: str, precision: str) -> None:
        """Record, in run.json, on which device the training goes on, and in which precision; all of them in order."""
        now = {"device": device, "precision": precision}
        if {name: self.about.get(name) for name in now} == now:
            return
        before = self.about.get("devices")
        self.about |= now | {"devices": [*(before if isinstance(before, list) else []), device]}
        _write(self.path / "run.json", json.dumps(self.about, indent=1))

    def reconfigure(self, train: TrainConfig) -> None:
        """Give the run another training budget and write that down. What was learnt so far stays."""
        self.config = replace(self.config, train=train)
        _write(self.path / "config.yaml", to_yaml(self.config))

    # ------------------------------------------------------------------------------------------------------ checkpoints

    def save_checkpoint(
        self, step: int, tensors: Mapping[str, Tensor], resume: Mapping[str, Tensor] | None = None
    ) -> Path:
        """Write the weights, and what a continued training needs, as the checkpoint of `step`; forget all but two.

        The weights appear last and carry the pair's number, so weights never meet the moments of another moment.
        """
        path = self._checkpoint_path(step)
        weights = _plain_tensors(tensors)
        header = {"format": str(FORMAT), "step": str(step), "crc32": _checksum(weights)}
        if resume is not None:
            state = _plain_tensors(resume)
            _save_tensors(_resume_path(path), state, header | {"crc32": _checksum(state), "weights": header["crc32"]})
        _save_tensors(path, weights, header)
        for old in self.steps()[:-KEPT]:
            for file in (self._checkpoint_path(old), _resume_path(self._checkpoint_path(old))):
                file.unlink(missing_ok=True)
        return path

    def steps(self) -> list[int]:
        """Steps of the checkpoints in the folder, ascending, whether they are good or not."""
        folder = self.path / "checkpoints"
        names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(m[1]) for name in names if (m := re.fullmatch(r"step_(\d{1,12})\.safetensors", name)))

    def checkpoint(self, step: int | None = None, resume: bool = False) -> Checkpoint | None:
        """The newest good checkpoint, or that of `step`; None when there is none yet.

        resume: also read what a continued training needs, and take only a checkpoint that has it whole. A damaged
        newest checkpoint is passed over with a sentence in `notes`. Raises RunError when all are damaged, or that of
        `step` is missing or damaged.
        """
        if step is not None:
            if step not in self.steps():
                has = ", ".join(map(str, self.steps())) or "none"
                raise RunError(f"{self.path} has no checkpoint of step {step}; it has {has}.")
            return self._load(step, resume)
        failures: list[str] = []
        for candidate in reversed(self.steps()):
            try:
                found = self._load(candidate, resume)
            except RunError as error:
                failures.append(str(error))
                continue
            for failure in failures:
                note = f"{failure} The checkpoint of step {candidate} is used instead."
                if note not in self.notes:
                    self.notes.append(note)
            return found
        if failures:
            fix = (
                "train again with another --out" if resume else f"`lightfold train {self.path}` may be able to continue"
            )
            raise RunError(f"No checkpoint of {self.path} can be read; {fix}. {' '.join(failures)}")
        return None

    def method(self, step: int | None = None, device: torch.device = CPU) -> Method:
        """The trained method, ready to render, on a device: of the newest good checkpoint, or of `step`."""
        found = self.checkpoint(step)
        if found is None:
            raise RunError(
                f"{self.path} has no checkpoint yet; `lightfold train {self.path}` goes on with its training."
            )
        method = method_class(self.config.method.partition(":")[0])(self.config.model, self.info)
        try:
            method.load_state_dict(found.tensors)
        except (RuntimeError, KeyError, ValueError) as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise RunError(
                f"The checkpoint {found.path} does not fit the method '{self.config.method}' with the options in "
                f"config.yaml ({first}); one of the two files was changed, or the method was."
            ) from error
        for parameter in method.parameters():
            parameter.requires_grad_(False)
        return placed(method, self.config.train.precision, device).eval()

    def _checkpoint_path(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step_{step:07d}.safetensors"

    def _load(self, step: int, resume: bool) -> Checkpoint:
        path = self._checkpoint_path(step)
        tensors, header = load_tensors(path)
        if header.get("step") != str(step):
            raise RunError(f"{path} was written for step {header.get('step')} and renamed.")
        if not resume:
            return Checkpoint(step, path, tensors)
        state, state_header = load_tensors(_resume_path(path))
        if state_header.get("weights") != header["crc32"]:
            raise RunError(f"{_resume_path(path)} belongs to other weights than {path.name}.")
        return Checkpoint(step, path, tensors, state)

    # ---------------------------------------------------------------------------------------------------------- metrics

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl; it should have "step". Numbers that are not finite are written as null.

        A training that continues writes some steps again. The first row after opening therefore drops all rows of its
        own step or later, so the log reads as if nothing had happened.
        """
        path = self.path / "metrics.jsonl"
        plain = {key: _number(value) for key, value in row.items()}
        try:
            if not self._appending:
                self._drop_rows_from(plain.get("step"))
                self._appending = True
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(plain, allow_nan=False) + "\n")
        except OSError as error:
            raise RunError(f"{path} could not be written: {error.strerror or error}.") from error

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl. Lines that are not whole (a kill in the middle of a write) are passed over."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        rows = []
        for line in _read(path).splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                rows.append(row)
        return rows

    def _drop_rows_from(self, step: object) -> None:
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        rows = self.metrics()
        kept = [row for row in rows if not (_is_number(step) and _is_number(row.get("step")) and row["step"] >= step)]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        if text != _read(path):
            _write(path, text)


def is_run(path: Path | str) -> bool:
    """Whether this is the folder of a run that was wholly created."""
    return (Path(path) / "run.json").is_file()


def was_begun(path: Path | str) -> bool:
    """Whether this is a folder that `Run.create` began and did not finish, or that has lost its run.json."""
    folder = Path(path)
    made = (folder / "scene.json").is_file() or (folder / "checkpoints").is_dir()
    return made and (folder / "config.yaml").is_file() and not is_run(folder)


def next_folder(parent: Path, name: str) -> Path:
    """The first of parent/name-1, parent/name-2, ... after all that exist."""
    pattern = re.compile(rf"{re.escape(name)}-(\d{{1,9}})")
    found = [p.name for p in parent.iterdir()] if parent.is_dir() else []
    taken = [int(m[1]) for entry in found if (m := pattern.fullmatch(entry))]
    return parent / f"{name}-{max(taken, default=0) + 1}"


# --------------------------------------------------------------------------------------------------- files with tensors


def _resume_path(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.stem}.resume.safetensors")


def _plain_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU that own their memory alone, as safetensors wants them, in order of their names."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        if not alone or tensor.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        plain[name] = tensor
    return plain


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 over names, types, shapes and bytes. It finds a damaged disk, which the lengths in the header cannot."""
    crc = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode(), crc)
        if tensor.numel():
            crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def _save_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    with whole_file(path) as partial:
        try:
            save_file(tensors, partial, metadata=header)
            # safetensors makes files that only their owner may read; a run is as readable as its folder.
            partial.chmod(path.parent.stat().st_mode & 0o666)
        except SafetensorError as error:
            raise OSError(str(error)) from error  # A full disk, mostly; `whole_file` says which file it was.


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a file of ours; RunError in one sentence for everything else."""
    if not path.is_file():
        raise RunError(f"{path} is missing.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            # Clones, because the file is memory-mapped, and is deleted when newer checkpoints come.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise RunError(f"{path} is damaged or not a safetensors file ({str(error).splitlines()[0]}).") from error
    if "crc32" not in header:
        raise RunError(f"{path} was not written by lightfold: it has no checksum.")
    if header["crc32"] != _checksum(tensors):
        raise RunError(f"{path} is damaged: its checksum does not match its contents.")
    return tensors, header


# ---------------------------------------------------------------------------------------------------------- small files


def _write(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing, so the run cannot be opened.") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}.") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: it is not whole JSON.") from error
    if not isinstance(data, dict):
        raise RunError(f"{path} is damaged: it does not hold an object.")
    return data


def _read_info(path: Path) -> SceneInfo:
    data = _read_json(path)
    try:
        return SceneInfo.from_dict(data)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path} is damaged: {reason}.") from error


def _number(value: Any) -> Any:
    """A value for JSON: tensors of one element become numbers, numbers that are not finite become null."""
    if isinstance(value, Tensor):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
