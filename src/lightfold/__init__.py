"""Lightfold: photos, video or 360 footage in; a radiance field you can look at, measure and export out.

The public names, imported when they are first used, so that `import lightfold` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cameras import Camera
    from .capture import Capture
    from .errors import LightfoldError
    from .evaluate import evaluate
    from .formats import open_capture
    from .methods.base import Image, Method
    from .render import render_path
    from .run import Run
    from .scene import Scene, SceneConfig, load_scene
    from .trainer import train

_HOMES = {
    "Camera": "cameras",
    "Capture": "capture",
    "Image": "methods.base",
    "LightfoldError": "errors",
    "Method": "methods.base",
    "Run": "run",
    "Scene": "scene",
    "SceneConfig": "scene",
    "evaluate": "evaluate",
    "load_scene": "scene",
    "open_capture": "formats",
    "render_path": "render",
    "train": "trainer",
}

__all__ = [
    "Camera",
    "Capture",
    "Image",
    "LightfoldError",
    "Method",
    "Run",
    "Scene",
    "SceneConfig",
    "evaluate",
    "load_scene",
    "open_capture",
    "render_path",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module 'lightfold' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
