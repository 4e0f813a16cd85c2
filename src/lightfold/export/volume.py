"""Density and colour on a regular grid, for volume renderers and for numpy.

density     [X, Y, Z] float16, per unit of length of the file's frame; colours [X, Y, Z, 3] uint8 where asked for
frame_from_grid [3, 4] float64: sample (i, j, k) lies at frame_from_grid @ (i, j, k, 1)
box         [2, 3] float64: the grid's lower and upper corner in the frame, where the frame's axes are the grid's
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import ConfigError, RunError
from ..files import whole_file
from ..geometry import Similarity
from ..methods.base import HasDensity
from .blocks import Lattice
from .views import Progress, Seen, observe

if TYPE_CHECKING:
    from ..methods.base import Method

FORMATS = ("npz", "vdb")
HAZE = 0.1
"""Samples of less density than this, per scene unit, count as empty and get no colour."""


@dataclass(frozen=True, eq=False)
class Volume:
    """density [X, Y, Z] float32 per unit of the frame's length; colours [X, Y, Z, 3] uint8, 0 where unknown;
    frame_from_grid [3, 4] float64."""

    density: np.ndarray
    colours: np.ndarray
    frame_from_grid: np.ndarray


@torch.no_grad()
def extract_volume(
    method: Method,
    views: Sequence[Seen],
    lattice: Lattice,
    b_from_scene: Similarity,
    progress: Progress | None = None,
) -> Volume:
    """The method's density on a lattice of the scene frame, and the colours that views see there.

    A volume renderer multiplies density by length, so density is given per unit of length of the frame. Raises
    ConfigError for a method that has no density.
    """
    if not isinstance(method, HasDensity):
        raise ConfigError("This method has no density that can be asked at a point; export a mesh or points instead.")
    nx, ny, nz = lattice.shape
    density = np.zeros(lattice.shape, dtype=np.float32)
    colours = np.zeros((*lattice.shape, 3), dtype=np.uint8)
    plane = torch.cartesian_prod(torch.arange(ny), torch.arange(nz))
    thick = max(1, (1 << 18) // len(plane))
    for start in range(0, nx, thick):
        if progress is not None:
            progress("asking the density field", start, nx)
        x = torch.arange(start, min(start + thick, nx))
        index = torch.cat([x.repeat_interleave(len(plane))[:, None], plane.repeat(len(x), 1)], dim=1)
        points = lattice.points(index)
        sigma = method.density_at(points)
        density[start : start + len(x)] = sigma.reshape(len(x), ny, nz).numpy()
        dense = (sigma > HAZE).nonzero()[:, 0]
        # Matter is as thick as a few samples, and behind a surface it has the surface's colour.
        rgb = observe(points[dense], None, views, 4 * lattice.spacing).rgb.nan_to_num(0).round().to(torch.uint8)
        flat = colours[start : start + len(x)].reshape(-1, 3)
        flat[dense.numpy()] = rgb.numpy()
    lower = b_from_scene.apply(torch.tensor([lattice.lower], dtype=torch.float64))[0]
    axes = b_from_scene.scale * lattice.spacing * b_from_scene.rotation
    frame_from_grid = torch.cat([axes, lower[:, None]], dim=1).numpy()
    return Volume(density / b_from_scene.scale, colours, frame_from_grid)


def write_volume(volume: Volume, path: Path) -> None:
    """Write .npz or .vdb, whole or not at all. Raises RunError when OpenVDB is not installed."""
    if path.suffix.lower() == ".vdb":
        _write_vdb(volume, path)
        return
    # float16 ends at 65504; densities above that are as opaque as anything.
    most = float(np.finfo(np.float16).max)
    arrays = {
        "density": np.minimum(volume.density, most).astype(np.float16),
        "colours": volume.colours,
        "frame_from_grid": volume.frame_from_grid,
        "box": corners(volume),
    }
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)


def corners(volume: Volume) -> np.ndarray:
    """[2, 3] lower and upper corner of the grid's bounding box in the frame."""
    last = np.array(volume.density.shape) - 1
    index = np.stack(np.meshgrid(*[[0, n] for n in last], indexing="ij"), axis=-1).reshape(-1, 3)
    at = index @ volume.frame_from_grid[:, :3].T + volume.frame_from_grid[:, 3]
    return np.stack([at.min(axis=0), at.max(axis=0)])


def openvdb_module() -> ModuleType:
    """OpenVDB's Python module, under its new name or its old one; RunError where there is neither."""
    for name in ("openvdb", "pyopenvdb"):
        with suppress(ImportError):
            return import_module(name)
    raise RunError(
        "A .vdb needs OpenVDB's Python module, which pip does not have; Blender brings it, and so does "
        "`conda install -c conda-forge openvdb`. Without it, write .npz."
    )


def _write_vdb(volume: Volume, path: Path) -> None:
    openvdb = openvdb_module()
    # OpenVDB multiplies row vectors: index @ matrix.
    matrix = np.eye(4)
    matrix[:3, :3], matrix[3, :3] = volume.frame_from_grid[:, :3].T, volume.frame_from_grid[:, 3]
    density = openvdb.FloatGrid()
    density.copyFromArray(volume.density, tolerance=HAZE)
    colour = openvdb.Vec3SGrid()
    colour.copyFromArray(volume.colours.astype(np.float32) / 255)
    for grid, name in ((density, "density"), (colour, "Cd")):
        grid.name = name
        grid.transform = openvdb.createLinearTransform(matrix.tolist())
    with whole_file(path) as partial:
        # OpenVDB chooses the format by the suffix.
        beside = partial.with_suffix(".vdb")
        openvdb.write(str(beside), grids=[density, colour])
        beside.replace(partial)
