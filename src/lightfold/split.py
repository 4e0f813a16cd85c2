"""Which views are trained on and which are held out, by the rules that published numbers use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .capture import Frame
from .errors import ConfigError


def split_names(frames: Sequence[Frame], rule: str) -> tuple[set[str], set[str], tuple[str, ...]]:
    """Names to train on, names held out, and notes. `frames` are sorted by name; `rule` as in `SceneConfig.split`.

    "every:8" holds out indices 0, 8, 16 ... as LLFF and mip-NeRF 360 do; "fraction:0.9" trains on ceil(0.9 n) evenly
    spaced frames including the first and last, as nerfstudio does. Pictures that turn out unreadable do not shift the
    rule. A group (`Frame.group`) counts as one picture in both.
    """
    names = [frame.name for frame in frames]
    together: dict[tuple[str, bool], list[str]] = {}
    for frame in frames:
        key = (frame.name, False) if frame.group is None else (frame.group, True)
        together.setdefault(key, []).append(frame.name)
    units = list(together.values())
    kind, _, value = rule.partition(":")
    if rule == "auto":
        listed = {split: {frame.name for frame in frames if frame.split == split} for split in ("train", "test")}
        if not listed["test"]:
            test = _union(units[::8])
        else:
            train = listed["train"] or set(names) - listed["test"]
            left_out = len(set(names) - train - listed["test"])
            note = f"Pictures in neither of the capture's lists, and so not used: {left_out}."
            return train, listed["test"], (note,) if left_out else ()
    elif rule == "all":
        return set(names), _union(units[::8]), ("The test views are training views too, so their scores flatter.",)
    elif kind == "every" and value.isdecimal() and int(value) >= 2:
        test = _union(units[:: int(value)])
    elif kind == "fraction" and 0 < _number(value) < 1:
        count = math.ceil(_number(value) * len(units))
        test = set(names) - _union([units[int(i)] for i in np.linspace(0, len(units) - 1, count)])
    elif kind == "file" and value:
        test = _listed_names(Path(value), names)
    else:
        known = "auto, all, every:N (N >= 2), fraction:F (0 < F < 1) or file:PATH"
        raise ConfigError(f"scene.split must be {known}, got '{rule}'.")
    return set(names) - test, test, ()


def _union(groups: Sequence[Sequence[str]]) -> set[str]:
    return {name for group in groups for name in group}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _listed_names(path: Path, names: Sequence[str]) -> set[str]:
    """The names in a text file, one per line. A name may leave out its folder if that leaves no doubt."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The list of test pictures {path} cannot be read: {error}.") from error
    chosen = set()
    for line in filter(None, lines):
        matches = [name for name in names if name == line or name.rsplit("/", 1)[-1] == line]
        exact = [name for name in matches if name == line]
        if len(exact or matches) != 1:
            what = "several pictures" if matches else "no posed picture"
            raise ConfigError(f"'{line}' in {path} names {what} of the capture.")
        chosen.add((exact or matches)[0])
    return chosen
