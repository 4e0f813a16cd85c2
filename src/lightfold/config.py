"""Run configuration: `method:preset` lookup, and dataclasses to and from YAML that can say nothing but plain values.

    "ngp:fast" -> lookup -> RunConfig(capture, method, model, scene, train) <-> to_yaml, from_yaml <-> config.yaml

A configuration is a frozen dataclass of scalars two levels deep, written whole: every option with its resolved value.
It is read back strictly. An unknown key, a missing key or a value of the wrong kind is a sentence that names the key,
never a default taken in silence. The YAML is of the plainest kind (strings, numbers, true, false, null, lists), so a
configuration from a stranger can execute nothing and mean nothing else on another machine.
"""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Collection
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import yaml

from .devices import PRECISIONS, check_name
from .errors import ConfigError
from .methods import METHODS, method_class
from .methods.base import Method
from .scene import SceneConfig

LARGEST_FILE = 1_000_000
"""Characters. A configuration has a hundred lines; whatever is larger was not written by this program."""


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, and what to write down meanwhile."""

    steps: int | None = None
    """Optimiser steps in all. None: as many as the method asks for, or as fit into `minutes`."""
    minutes: float | None = None
    """Minutes of training in all; learning rates and grids adapt to them. None: `steps` decides alone. With both, the
    one that is reached first ends the training."""
    seed: int = 0
    """Seed of everything random. The same seed, threads and steps give the same model, bit for bit, on a processor."""
    threads: int | None = None
    """Processor threads. None: one per core that this process may use."""
    device: str = "auto"
    """What computes: "auto" (a GPU that Triton has kernels for, where PyTorch sees one; else the processor), "cpu",
    "cuda" (NVIDIA, AMD), "cuda:1", "xpu" (Intel) or "mps" (Apple; plain PyTorch, slower than its processor)."""
    precision: str = "auto"
    """What networks multiply, and a GPU reads tables in: "float32", "bfloat16", "float16" (on a GPU), or "auto":
    bfloat16 where that is faster, for methods that allow it. Weights, sums and everything else are in float32."""
    record: bool = True
    """On a GPU, launch a step as a whole (CUDA graphs) where the method allows it. No: kernel by kernel."""
    eval_every: float = 60.0
    """Seconds of training between scores on held-out views, more where those would take over a tenth of the time; 0:
    only when the training ends."""
    checkpoint_every: float = 60.0
    """Seconds between checkpoints, from which an interrupted training continues; 0: only when the training ends."""

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("threads", 1), ("seed", 0), ("eval_every", 0), ("checkpoint_every", 0)):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= least):
                raise ConfigError(f"The option '{name}' must be a finite number of at least {least}, not {value}.")
        check_name(self.device)
        if self.precision not in ("auto", *PRECISIONS):
            known = ", ".join(("auto", *PRECISIONS))
            raise ConfigError(f"There is no precision called '{self.precision}'; known are {known}.")
        if self.minutes is not None and not (math.isfinite(self.minutes) and self.minutes > 0):
            raise ConfigError(f"The option 'minutes' must be a positive number, not {self.minutes}.")


@dataclass(frozen=True)
class RunConfig:
    """All that decides what a training does: the capture, the method with its options, the scene and the budget."""

    capture: str
    """Folder or file of the capture, as an absolute path."""
    method: str
    """Name of the method, with the preset that its options started from: "ngp" or "ngp:fast"."""
    model: Any
    """The method's own options, an instance of its Config."""
    scene: SceneConfig
    """How the capture becomes a scene."""
    train: TrainConfig
    """How long to train, and what to write down meanwhile."""
    format: str = "auto"
    """Format of the capture; "auto" finds out."""


# ---------------------------------------------------------------------------------------------------- method and preset


def lookup(name: str) -> tuple[type[Method], Any]:
    """The class and the options behind "method" or "method:preset"; ConfigError with the nearest names if unknown."""
    method, colon, preset = name.partition(":")
    cls = method_class(method)
    if preset not in cls.PRESETS or (colon and not preset):
        known = sorted(f"{method}:{key}" for key in cls.PRESETS if key)
        near = nearest(name, known) or known
        presets = f"Did you mean {' or '.join(near)}?" if near else "It has none."
        raise ConfigError(f"The method '{method}' has no preset called '{preset}'. {presets}")
    return cls, cls.PRESETS[preset]


def method_names() -> list[str]:
    """Every "method" and "method:preset", in the order of the tables. Imports all methods."""
    return [f"{name}:{preset}" if preset else name for name in METHODS for preset in method_class(name).PRESETS]


def for_gpu(method: str, model: Any, chosen: Collection[str] = (), size: float = 1.0) -> tuple[Any, str | None]:
    """A method's options as a GPU wants them, and a sentence that says which ones changed; None where none did.

    chosen: names of the options that the user has set, which stay. Options that are larger already stay too.
    size: see `devices.size`.
    """
    cls, _ = lookup(method)
    wanted = {name: int(value * size) for name, value in cls.ON_GPU.items() if name not in chosen}
    changed = {name: value for name, value in wanted.items() if getattr(model, name) < value}
    if not changed:
        return model, None
    words = " ".join(f"--model.{name.replace('_', '-')} {value}" for name, value in changed.items())
    return replace(model, **changed), f"For the GPU: {words} (say another number to have another)."


def nearest(name: str, known: Collection[str], n: int = 2) -> list[str]:
    """The known names most like `name`, best first; empty when none is near."""
    return difflib.get_close_matches(name, list(known), n=n, cutoff=0.6)


def did_you_mean(name: str, known: Collection[str]) -> str:
    """A sentence for an error message: the nearest names, or all of them when none is near."""
    near = nearest(name, known)
    return f"Did you mean {' or '.join(repr(k) for k in near)}?" if near else f"Known are {', '.join(known)}."


# ------------------------------------------------------------------------------------------- dataclass <-> plain values


def to_plain(config: Any) -> dict[str, Any]:
    """A dataclass as a dict of plain values: nested dataclasses become dicts, enums their values, tuples lists."""
    return {field.name: _plain(getattr(config, field.name)) for field in fields(config)}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(value)
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Path):
        return value.as_posix()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"value: expected a plain value or a dataclass, got {type(value).__name__}")


def from_plain(cls: type, data: Any, where: str = "configuration", overrides: dict[str, type] | None = None) -> Any:
    """The inverse of `to_plain`, strict both ways.

    where: what to call this level in messages, such as "config.yaml" or "model". `overrides` gives the types of fields
    that the class itself leaves open. Raises ConfigError naming the key and, for an unknown one, the nearest valid one.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a block of options, got {_shown(data)}.")
    hints = get_type_hints(cls) | (overrides or {})
    names = [field.name for field in fields(cls) if field.init]
    for key in data:
        if key not in names:
            raise ConfigError(f"{where}: there is no option {_shown(key)}. {did_you_mean(str(key)[:60], names)}")
    for name in names:
        if name not in data:
            raise ConfigError(f"{where}: the option '{name}' is missing.")
    values = {name: _typed(hints[name], data[name], f"{where}: {name}") for name in names}
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type, or ConfigError. Only an integer may stand for a float."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _typed_union(arguments, value, where)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            choices = ", ".join(map(repr, arguments))
            raise ConfigError(f"{where}: expected one of {choices}, got {_shown(value)}.")
        return value
    if origin is tuple:
        return _typed_tuple(arguments, value, where)
    if is_dataclass(hint):
        return from_plain(cast(type, hint), value, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        members = {member.value: member for member in hint}
        if not isinstance(value, (str, int)) or value not in members:
            raise ConfigError(f"{where}: expected one of {', '.join(map(str, members))}, got {_shown(value)}.")
        return members[value]
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) is int:
        return float(value)
    # bool is a subclass of int in Python; here `steps: true` is a mistake.
    if hint in (bool, int, float, str) and type(value) is hint:
        return value
    if hint is type(None) and value is None:
        return None
    raise ConfigError(f"{where}: expected {_kind(hint)}, got {_shown(value)}.")


def _typed_union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    options = [hint for hint in arguments if hint is not type(None)]
    exact = [hint for hint in options if type(value) is hint]
    for hint in exact + options:
        try:
            return _typed(hint, value, where)
        except ConfigError:
            if len(options) == 1:
                raise
    raise ConfigError(f"{where}: expected {' or '.join(map(_kind, arguments))}, got {_shown(value)}.")


def _typed_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: expected a list, got {_shown(value)}.")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise ConfigError(f"{where}: expected {len(arguments)} values, got {len(value)}.")
    pairs = zip(arguments, value, strict=True)
    return tuple(_typed(hint, entry, f"{where}[{i}]") for i, (hint, entry) in enumerate(pairs))


def _kind(hint: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def _shown(value: Any) -> str:
    """A value for a message: short whatever it is, because it comes from a file."""
    if isinstance(value, dict):
        return "a block of options"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ----------------------------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """Plain values only: no tags, no anchors, no repeated keys; `no` is text and `1e-3` a number, as in YAML 1.2."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.constructor.ConstructorError(None, None, "anchors and aliases are not allowed", event.start_mark)
        # A tag chooses a constructor. Without tags there is nothing to choose, so nothing that could be executed.
        if getattr(event, "tag", None) is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the tag {event.tag} is not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key.value, str) or key.value in seen:
                twice = f"the key {_shown(key.value)} appears twice"
                what = twice if isinstance(key.value, str) else "a key is not plain text"
                raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever any YAML version could take for something else than text."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Rare line breaks (U+0085, U+2028) only survive as escapes, which only double quotes have.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _text)

_RESOLVERS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]{1,18}", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
}
_Loader.yaml_implicit_resolvers = {}  # Without those of YAML 1.1, where `no` is false and 1:30 is ninety.
for _name, (_pattern, _first) in _RESOLVERS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), _first)


def to_yaml(config: RunConfig) -> str:
    """The whole configuration as YAML, in the order of the dataclasses, with YAML's mark "..." at its end."""
    plain = to_plain(config)
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000, explicit_end=True)


def from_yaml(text: str, where: str = "config.yaml") -> RunConfig:
    """The inverse of `to_yaml`. `where` is the file's name in messages. Raises ConfigError, whatever the text is."""
    data = _read_yaml(text, where)
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a block of options, got {_shown(data)}.")
    name = data.get("method")
    if not isinstance(name, str):
        raise ConfigError(f"{where}: the option 'method' must name a method, such as 'ngp'.")
    # A file that lost its end may still read well: `seed: 123` becomes `seed: 1`.
    if text.rstrip().rpartition("\n")[2] != "...":
        raise ConfigError(f"{where}: its last line should be '...', so its end is missing.")
    # Every option is in the file, so a preset that has since been renamed or retuned does not matter.
    cls = method_class(name.partition(":")[0])
    return cast(RunConfig, from_plain(RunConfig, data, where, overrides={"model": cls.Config}))


def _read_yaml(text: str, where: str) -> Any:
    if len(text) > LARGEST_FILE:
        raise ConfigError(f"{where}: {len(text)} characters are more than any configuration has.")
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise ConfigError(f"{where}: it is nested too deeply to be a configuration.") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{where}{line}: this is not a configuration: {problem}.") from error
