"""From raw triangles to a surface worth keeping: what no camera saw goes, floaters go, holes stay, colours come.

visible    a face stays if some training camera in front of it sees a surface there, and not far more look through it
connected  pieces smaller than a share of the whole go
thinned    optional, by a library (quadric error, Garland and Heckbert 1997)
coloured   the mean of what cameras see at each vertex, near and frontal ones above all
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from types import ModuleType

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ..errors import RunError
from ..geometry import Similarity
from .views import Observed, Progress, Seen, observe

THROUGH = 4
"""A point stays while at most so many views look through it for each that sees a surface there."""
CONFIRMED = 4
"""Views that must see a surface at a point, where well-seen points have many. Measured on the sample capture: with two,
floaters of 3 % of the surface stay; with six, walls go that were seen from one side only."""
UNSEEN_COLOUR = 128


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles of a surface.

    vertices: [V, 3] float64. faces: [F, 3] int64, counter-clockwise seen from outside.
    normals:  [V, 3] float32 unit, outward; 0 at vertices of no face with an area.
    colours:  [V, 3] uint8 sRGB, or None.
    uv:       [V, 2] float32 in the texture, from its lower left corner, or None; texture: [T, T, 3] uint8, or None.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    colours: np.ndarray | None = None
    uv: np.ndarray | None = None
    texture: np.ndarray | None = None

    def moved(self, b_from_a: Similarity) -> Mesh:
        """The same surface in another frame."""
        vertices = b_from_a.apply(torch.from_numpy(self.vertices)).numpy()
        normals = (torch.from_numpy(self.normals).double() @ b_from_a.rotation.T).float().numpy()
        return replace(self, vertices=vertices, normals=normals)


def plain_mesh(vertices: np.ndarray, faces: np.ndarray) -> Mesh:
    """A mesh of bare geometry, with its normals."""
    return Mesh(vertices, faces, vertex_normals(vertices, faces))


def face_vectors(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """[F, 3] normals whose length is twice the area."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return np.cross(b - a, c - a)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """[V, 3] float32 unit: the mean of the faces around each vertex, by area."""
    vectors = face_vectors(vertices, faces)
    total = np.zeros((len(vertices), 3))
    for axis in range(3):
        for corner in range(3):
            total[:, axis] += np.bincount(faces[:, corner], weights=vectors[:, axis], minlength=len(vertices))
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.divide(total, length, out=np.zeros_like(total), where=length > 0).astype(np.float32)


def keep_faces(mesh: Mesh, keep: np.ndarray) -> Mesh:
    """Only the faces where `keep` [F] is True, and the vertices that they use."""
    faces = mesh.faces[keep]
    used = np.zeros(len(mesh.vertices), dtype=bool)
    used[faces.reshape(-1)] = True
    number = np.cumsum(used) - 1
    colours = None if mesh.colours is None else mesh.colours[used]
    return Mesh(mesh.vertices[used], number[faces], mesh.normals[used], colours)


# --- what goes ------------------------------------------------------------------------------------------------------


def visible_faces(faces: np.ndarray, seen: Observed) -> np.ndarray:
    """[F] bool: faces with a corner that enough cameras see on a surface. One corner will do, or a vertex that is seen
    badly would tear a hole into a wall."""
    return confirmed(seen).numpy()[faces].any(axis=1)


def confirmed(seen: Observed) -> Tensor:
    """[N] bool: points on a surface that enough cameras agree on, and not far more look through.

    Fog that one or two cameras see is consistent with their pictures and with no other's: that is what floaters are, so
    a point needs `CONFIRMED` views, but no more than a quarter of what well-seen points have: the views may be few. A
    few views that look through are no objection: thin parts cover a pixel only partly, and its depth is then that of
    what lies behind.
    """
    some = seen.support[seen.support > 0].double()
    well = float(torch.quantile(some[:: max(1, len(some) // 1_000_000)], 0.9)) if len(some) else 0.0
    least = min(CONFIRMED, max(1, round(well / 4)))
    return (seen.support >= least) & (seen.through <= THROUGH * seen.support)


def large_pieces(mesh: Mesh, least: float) -> np.ndarray:
    """[F] bool: faces of connected pieces with at least `least` of the whole area."""
    if len(mesh.faces) == 0:
        return np.zeros(0, dtype=bool)
    piece = pieces(mesh)
    area = np.bincount(piece, weights=0.5 * np.linalg.norm(face_vectors(mesh.vertices, mesh.faces), axis=1))
    return (area >= least * area.sum())[piece]


def pieces(mesh: Mesh) -> np.ndarray:
    """[F] the number of the connected piece that each face belongs to."""
    count, faces = len(mesh.vertices), mesh.faces
    start = np.concatenate([faces[:, 0], faces[:, 1]])
    end = np.concatenate([faces[:, 1], faces[:, 2]])
    graph = coo_matrix((np.ones(len(start), dtype=bool), (start, end)), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    return label[faces[:, 0]]


def thinning_module() -> ModuleType:
    """The library that takes triangles away; RunError where it is not installed."""
    try:
        return import_module("fast_simplification")
    except ImportError as error:
        raise RunError(
            'Fewer triangles need the package fast-simplification: `pip install "lightfold[mesh]"`.'
        ) from error


def thinned(mesh: Mesh, triangles: int) -> Mesh:
    """About the same surface with at most `triangles` faces. Raises RunError when the library is not installed."""
    if len(mesh.faces) <= triangles:
        return mesh
    fast_simplification = thinning_module()
    # It computes in float32: around the middle of the mesh no digit is lost.
    middle = mesh.vertices.mean(axis=0)
    points, faces = fast_simplification.simplify(
        (mesh.vertices - middle).astype(np.float32), mesh.faces.astype(np.int32), target_count=triangles
    )
    return plain_mesh(points.astype(np.float64) + middle, faces.astype(np.int64))


def smaller_copy(mesh: Mesh, triangles: int) -> Mesh:
    """A copy with at most `triangles` faces that keeps vertex colours: for showing, where each vertex of the copy has
    the colour of the original's nearest. The mesh itself where it is small enough, or where nothing can thin it."""
    from scipy.spatial import cKDTree

    try:
        fewer = thinned(mesh, triangles)
    except RunError:
        return mesh
    if fewer is mesh or mesh.colours is None:
        return fewer
    _, nearest = cKDTree(mesh.vertices).query(fewer.vertices)
    return replace(fewer, colours=mesh.colours[nearest])


# --- colour ---------------------------------------------------------------------------------------------------------


def coloured(mesh: Mesh, views: Sequence[Seen], slack: float, progress: Progress | None = None) -> Mesh:
    """The mesh with the colours that the views see at its vertices; scene frame."""
    points, normals = torch.from_numpy(mesh.vertices).float(), torch.from_numpy(mesh.normals)
    return replace(mesh, colours=filled(observe(points, normals, views, slack, progress).rgb, points))


def filled(rgb: Tensor, points: Tensor) -> np.ndarray:
    """[N, 3] uint8 of colours [N, 3] in [0, 255]; where they are NaN, those of the nearest point that has one."""
    from scipy.spatial import cKDTree

    known = rgb.isfinite().all(dim=1)
    if not bool(known.any()):
        return np.full((len(rgb), 3), UNSEEN_COLOUR, dtype=np.uint8)
    if not bool(known.all()):
        _, nearest = cKDTree(points[known].numpy()).query(points[~known].numpy())
        rgb = rgb.clone()
        rgb[~known] = rgb[known][torch.from_numpy(np.asarray(nearest))]
    return rgb.round().clamp(0, 255).to(torch.uint8).numpy()
