"""The table of methods. A new method is one file beside this one and one line here."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from .base import Method

METHODS: dict[str, str] = {
    "ngp": "ngp:NGP",
    "nerf": "nerf:NeRF",
    "mipnerf360": "mipnerf360:MipNeRF360",
    "nerfacto": "nerfacto:Nerfacto",
    "neus": "neus:NeuS",
    "zipnerf": "zipnerf:ZipNeRF",
}
"""Name on the command line -> "module:class". Modules are imported when a method is asked for, not before."""


def method_class(name: str) -> type[Method]:
    """The class behind a method's name; an unknown name raises ConfigError with the nearest valid ones."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=2) or sorted(METHODS)
        raise ConfigError(f"There is no method called '{name}'. Did you mean {' or '.join(near)}?")
    module, cls = METHODS[name].split(":")
    return getattr(import_module(f".{module}", __name__), cls)
