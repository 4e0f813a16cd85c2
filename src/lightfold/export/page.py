"""One HTML file that turns a mesh or a point cloud on a page: nothing to install, nothing loaded from anywhere.

The viewer is page.html beside this file; the geometry goes into it as base64. Positions are 16-bit numbers in their
box, which is finer than a screen, so a mesh of 200 000 triangles makes about 7 MB.
"""

from __future__ import annotations

import base64
import html
import json
import math
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np

from ..files import whole_file

SHOWN_TRIANGLES = 300_000
SHOWN_POINTS = 600_000


def write_page(
    path: Path,
    vertices: np.ndarray,
    colours: np.ndarray | None,
    faces: np.ndarray | None = None,
    *,
    title: str,
    caption: str = "",
    up: np.ndarray | None = None,
    eye: np.ndarray | None = None,
    target: np.ndarray | None = None,
) -> None:
    """Write a page that shows a mesh, or points where there are no faces.

    vertices [V, 3]; colours [V, 3] uint8; faces [F, 3]; up [3], z by default. eye, target [3]: where the first view is
    taken from and what it looks at; None: the middle of everything, from a little above. Positions are shown relative
    to the middle, so coordinates of any size keep their digits. Raises RunError when the file cannot be written.
    """
    middle = 0.5 * (vertices.min(axis=0) + vertices.max(axis=0))
    local = vertices - middle
    low, high = local.min(axis=0), local.max(axis=0)
    extent = np.where(high > low, high - low, 1.0)
    positions = np.zeros((len(local), 4), dtype="<u2")
    positions[:, :3] = np.round((local - low) / extent * 65535)
    rgba = np.full((len(local), 4), 255, dtype=np.uint8)
    rgba[:, :3] = 180 if colours is None else colours
    up = np.array([0.0, 0.0, 1.0]) if up is None else up / np.linalg.norm(up)
    radius = 0.5 * float(np.linalg.norm(high - low)) or 1.0
    centre = np.zeros(3) if target is None else target - middle
    offset = None if eye is None else eye - middle - centre
    azimuth, elevation, distance = _view(up, offset, radius)
    model = {
        "vertices": len(local),
        "indices": 0 if faces is None else int(faces.size),
        "low": low.tolist(),
        "high": (low + extent).tolist(),
        "up": up.tolist(),
        "centre": centre.tolist(),
        "azimuth": azimuth,
        "elevation": elevation,
        "distance": distance,
        # Points as large as the gaps between them, on a surface of about the box's own area.
        "spacing": 2.5 * radius / math.sqrt(max(len(local), 1)),
    }
    text = Template(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    # The page's own script is full of dollar signs, so only the names given here are replaced.
    page = text.safe_substitute(
        TITLE=html.escape(title),
        CAPTION=html.escape(caption),
        MODEL=json.dumps(model, allow_nan=False),
        POSITIONS=_base64(positions),
        COLOURS=_base64(rgba),
        INDICES="" if faces is None else _base64(faces.astype("<u4")),
    )
    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _view(up: np.ndarray, offset: np.ndarray | None, radius: float) -> tuple[float, float, float]:
    """Azimuth, elevation and distance of an eye at `offset` from the centre, in the axes that page.html has."""
    if offset is None or not np.linalg.norm(offset) > 1e-9 * radius:
        return 0.6, 0.5, 2.2 * radius
    east = np.cross(up, [1.0, 0, 0] if abs(up[0]) < 0.9 else [0, 1.0, 0])
    east = east / np.linalg.norm(east)
    north = np.cross(up, east)
    distance = float(np.linalg.norm(offset))
    elevation = math.asin(max(-1.0, min(1.0, float(offset @ up) / distance)))
    return math.atan2(float(offset @ north), float(offset @ east)), max(-1.5, min(1.5, elevation)), distance


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
