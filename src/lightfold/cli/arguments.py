"""From words to a dataclass, by tyro; what tyro does not know becomes one sentence with the nearest names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

import tyro

from ..errors import ConfigError

ArgumentsT = TypeVar("ArgumentsT")


def parse(
    kind: type[ArgumentsT],
    words: Sequence[str],
    verb: str,
    description: str,
    default: ArgumentsT,
    flat: tuple[str, ...] = (),
) -> ArgumentsT:
    """Fill a dataclass from the words after `lightfold VERB`.

    default: an instance that gives the options their values. flat: fields whose fields are options without a prefix.
    Raises ConfigError for an option that does not exist; SystemExit after --help or a value of the wrong kind.
    """
    arguments, unknown = tyro.cli(
        kind,
        prog=f"lightfold {verb}",
        description=description,
        args=list(words),
        default=default,
        return_unknown_args=True,
    )
    if unknown:
        raise ConfigError(_unknown(unknown, option_names(arguments, flat), verb))
    return arguments


def chosen(words: Sequence[str], prefix: str) -> set[str]:
    """Names of the options under "--PREFIX." that words set, as the dataclass has them."""
    start = f"--{prefix}."
    names = (word.partition("=")[0].removeprefix(start) for word in words if word.startswith(start))
    return {name.replace("-", "_") for name in names}


def option_names(arguments: Any, flat: tuple[str, ...] = ()) -> list[str]:
    """Every option as it is typed: "--out", "--scene.max-side", "--model.no-flag"."""
    names = ["--help"]
    for field in fields(arguments):
        value = getattr(arguments, field.name)
        name = field.name.replace("_", "-")
        if not is_dataclass(value):
            names += _spellings("", name, value)
            continue
        prefix = "" if field.name in flat else f"{name}."
        for inner in fields(value):
            names += _spellings(prefix, inner.name.replace("_", "-"), getattr(value, inner.name))
    return names


def _spellings(prefix: str, name: str, value: Any) -> list[str]:
    return [f"--{prefix}{name}", *([f"--{prefix}no-{name}"] if isinstance(value, bool) else [])]


def _unknown(unknown: Sequence[str], names: Sequence[str], verb: str) -> str:
    options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
    if not options:
        return f"'{unknown[0]}' is one argument too many; see `lightfold {verb} --help`."
    wanted = options[0].replace("_", "-")
    if not wanted.rpartition(".")[2].lstrip("-").startswith("no"):
        names = [name for name in names if not name.rpartition(".")[2].lstrip("-").startswith("no-")]
    near = get_close_matches(wanted, names, n=2, cutoff=0.6)
    # `--downscale` for `--scene.downscale` is the likelier slip, but the letters of the prefix make it look far away.
    near = [name for name in names if name.rpartition(".")[2] == wanted.lstrip("-")] or near
    hint = f"Did you mean {' or '.join(near)}?" if near else f"`lightfold {verb} --help` lists them all."
    return f"`lightfold {verb}` has no option {options[0]}. {hint}"
