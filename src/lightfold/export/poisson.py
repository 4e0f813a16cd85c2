"""A closed surface through oriented points: screened Poisson reconstruction (Kazhdan and Hoppe 2013), by COLMAP.

It fills what no ray met with the smoothest surface there is, so its meshes have no holes before the cameras have their
say. COLMAP ends the process that it runs in when it dislikes its input, so it runs in one of its own:

    python -m lightfold.export.poisson IN.ply OUT.ply DEPTH
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from ..errors import RunError
from ..poses.child import cause_of_death
from .ply import write_ply
from .views import Progress, SurfacePoints

DEPTHS = (4, 12)
"""Levels of the octree, at least and at most: 16 to 4096 cells along a side."""


def poisson_surface(
    points: SurfacePoints, resolution: int, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] float64 and faces [F, 3] int64, counter-clockwise seen from outside, in the points' frame.

    resolution: cells along the longest side, rounded to a power of two. Raises RunError when there are too few points,
    or COLMAP gives up.
    """
    import trimesh

    depth = min(max(round(math.log2(resolution)), DEPTHS[0]), DEPTHS[1])
    if progress is not None:
        progress("solving for the surface", 0, 1)
    with tempfile.TemporaryDirectory(prefix="lightfold-") as name:
        cloud, out = Path(name) / "points.ply", Path(name) / "surface.ply"
        write_ply(cloud, points.xyz.double().numpy(), points.normal.numpy())
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(cloud), str(out), str(depth)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            # -m looks for modules in the current folder first, which must not be one that a stranger filled.
            cwd=Path(__file__).resolve().parents[2],
            check=False,
        )
        if done.returncode != 0 or not out.is_file():
            why = cause_of_death(done.returncode, done.stderr.decode("utf-8", "replace"))
            raise RunError(
                f"COLMAP found no surface through {len(points):,} points, because {why}. Use --source fusion instead."
            )
        made = trimesh.load_mesh(out, process=False)
    return np.asarray(made.vertices, dtype=np.float64), np.asarray(made.faces, dtype=np.int64)


def main(words: list[str]) -> None:
    """What the child does."""
    import pycolmap

    cloud, out, depth = words
    options = pycolmap.PoissonMeshingOptions()
    # Views judge better which parts are true than the density of points does, by which this would trim.
    options.depth, options.trim, options.color = int(depth), 0.0, False
    pycolmap.poisson_meshing(cloud, out, options)


if __name__ == "__main__":
    main(sys.argv[1:])
