"""A mesh of a run, from the method's signed distance, density or rendered depth, and its files.

    views -> box -> samples on a sparse lattice -> triangles -> what cameras saw -> thinner -> colours -> PLY, GLB, ...

Extraction happens in the scene frame; files are written in whichever frame is asked for, in float64 as far as a format
allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, RunError
from ..files import whole_file
from ..methods.base import HasDensity, HasDistance
from . import density, distance, fusion
from .blocks import Lattice, polygonise
from .ply import write_ply
from .points import extract_points
from .poisson import poisson_surface
from .surface import Mesh, coloured, keep_faces, large_pieces, plain_mesh, thinned, vertex_normals, visible_faces
from .views import Progress, Seen, content_box, observe, render_views, written_box

if TYPE_CHECKING:
    import trimesh

    from ..methods.base import Method

SOURCES = ("auto", "density", "fusion", "sdf", "poisson")
FORMATS = ("ply", "glb", "obj", "stl")
UNDECIDED = "No surface was found in the box {box} (scene units): {why}. {fix}."
POISSON_POINTS = 1_000_000


@dataclass(frozen=True)
class MeshOptions:
    """How a mesh is made.

    source: of `SOURCES`; auto is the signed distance where the method has one, else fusion, and the density where a
        `level` of it is given. Poisson reconstruction closes the surface through a cloud of points, which every method
        has.
    resolution: cells along the longest side of the box; for Poisson reconstruction, the nearest power of two.
    level: density per scene unit at which the surface is; None: found from the data (density only).
    box: [2, 3] lower and upper corner in the scene frame; None: what was captured (`content_box`).
    triangles: at most so many; None: as many as there are.
    least_piece: connected pieces below this share of the whole area are dropped. It is small, because views judge
        better than size does: floors and distant walls fall into many true pieces.
    only_seen: drop what no training camera sees.
    """

    source: str = "auto"
    resolution: int = 384
    level: float | None = None
    box: Tensor | None = None
    triangles: int | None = None
    least_piece: float = 0.0002
    only_seen: bool = True


@dataclass(frozen=True, eq=False)
class Extracted:
    """A mesh in the scene frame, the views that judged it, the distance between samples, and sentences for the user."""

    mesh: Mesh
    views: list[Seen]
    spacing: float
    notes: tuple[str, ...]


def extract_mesh(
    method: Method,
    options: MeshOptions | None = None,
    progress: Progress | None = None,
    views: list[Seen] | None = None,
) -> Extracted:
    """The surface of a trained method, with normals and colours.

    Raises RunError with a sentence on what to do when there is no surface, ConfigError when the method lacks what
    `options.source` asks for.
    """
    options = options or MeshOptions()
    source = source_of(method, options.source, options.level)
    views = render_views(method, progress=progress) if views is None else views
    box = content_box(method.info, views) if options.box is None else options.box
    lattice = Lattice.over(box, options.resolution)
    notes: list[str] = []
    vertices, faces = _triangles(method, source, options, views, box, lattice, notes, progress)
    if len(faces) == 0:
        fix = "Train longer, give another --box, or --source fusion" if source != "fusion" else "Give another --box"
        raise RunError(
            UNDECIDED.format(box=written_box(box), why=f"the {source} never crosses its level there", fix=fix)
        )
    mesh = _cleaned(plain_mesh(vertices, faces), views, lattice.spacing, options, progress)
    if len(mesh.faces) == 0:
        raise RunError(
            UNDECIDED.format(
                box=written_box(box),
                why="no training camera sees any of the triangles",
                fix="Train longer, or keep them all with --no-only-seen --least-piece 0",
            )
        )
    if options.triangles is not None:
        mesh = thinned(mesh, options.triangles)
    mesh = coloured(mesh, views, 2 * lattice.spacing, progress)
    return Extracted(mesh, views, lattice.spacing, tuple(notes))


def source_of(method: Method, source: str, level: float | None = None) -> str:
    """What the mesh is made from: `source`, or for "auto" the best that the method has; a `level` is one of density.

    Raises ConfigError when the method lacks what is asked for, and when a level is given that nothing would use.
    """
    if level is not None and source in ("auto", "density"):
        if not isinstance(method, HasDensity):
            raise ConfigError("This method has no density that a level could be of; leave --level away.")
        return "density"
    if level is not None and source in SOURCES:
        raise ConfigError(f"--level is a density, which --source {source} does not look at; leave one of the two away.")
    has = {
        "sdf": isinstance(method, HasDistance),
        "fusion": True,
        "density": isinstance(method, HasDensity),
        "poisson": True,
    }
    if source == "auto":
        return next(name for name, there in has.items() if there)
    if source not in has:
        raise ValueError(f"source: expected one of {', '.join(SOURCES)}, got {source!r}")
    if not has[source]:
        raise ConfigError(f"This method has no {source}; leave --source away, or use --source fusion.")
    return source


def _triangles(
    method: Method,
    source: str,
    options: MeshOptions,
    views: list[Seen],
    box: Tensor,
    lattice: Lattice,
    notes: list[str],
    progress: Progress | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of the bare surface, before anything is taken away."""
    unknown = float("nan")
    if source == "poisson":
        return poisson_surface(
            extract_points(method, POISSON_POINTS, box, progress, views), options.resolution, progress
        )
    if source == "fusion":
        return polygonise(lattice, fusion.fused_blocks(views, lattice, progress), fusion.BLOCK, unknown, progress)
    if source == "sdf":
        assert isinstance(method, HasDistance)
        blocks = distance.distance_blocks(method, lattice, progress)
        return polygonise(lattice, blocks, distance.BLOCK, unknown, progress)
    assert isinstance(method, HasDensity)
    level = options.level
    if level is None:
        found = density.find_level(method, views, box)
        level = found.density
        share = found.error / float((box[1] - box[0]).norm())
        notes.append(
            f"The surface is where density reaches {level:.3g} per scene unit: there it agrees best with the rendered "
            f"depth, within {share:.2%} of the box's diagonal for half of the rays."
        )
    blocks = density.density_blocks(method, level, lattice, progress)
    return polygonise(lattice, blocks, density.BLOCK, -1.0, progress)


def _cleaned(
    mesh: Mesh, views: Sequence[Seen], spacing: float, options: MeshOptions, progress: Progress | None
) -> Mesh:
    """Without what no camera sees, then without small pieces."""
    if options.only_seen:
        seen = observe(
            torch.from_numpy(mesh.vertices).float(), torch.from_numpy(mesh.normals), views, 2 * spacing, progress
        )
        mesh = keep_faces(mesh, visible_faces(mesh.faces, seen))
    if options.least_piece > 0:
        mesh = keep_faces(mesh, large_pieces(mesh, options.least_piece))
    return replace(mesh, normals=vertex_normals(mesh.vertices, mesh.faces))


# --- files ----------------------------------------------------------------------------------------------------------

GLTF_FROM_Z_UP = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""glTF is y-up by definition. This is Blender's own change of axes, so Blender shows the coordinates that we have."""


def write_mesh(mesh: Mesh, path: Path) -> list[Path]:
    """Write a mesh in the format of the name's suffix, of `FORMATS`, whole or not at all; returns all files written.

    A texture becomes NAME.png (with NAME.mtl) beside an OBJ, is inside a GLB, and has no place in PLY and STL. GLB is
    y-up by its specification: the file says so by a rotation of its only node, and its vertices are relative to the
    mesh's middle; both are undone by whoever reads it as the specification says.
    """
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise ValueError(f"path: expected a name that ends in {', '.join(FORMATS)}, got {path.name!r}")
    if suffix == "ply":
        write_ply(path, mesh.vertices, mesh.normals, mesh.colours, mesh.faces)
        return [path]
    if suffix == "obj":
        return _write_obj(mesh, path)
    if suffix == "stl":
        from trimesh.exchange.stl import export_stl

        return [_write(path, export_stl(_trimesh(mesh)))]
    return [_write(path, _glb(mesh))]


def _trimesh(mesh: Mesh) -> trimesh.Trimesh:
    """The same for trimesh, which may change nothing about it."""
    import trimesh
    from PIL import Image

    made = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_normals=mesh.normals, process=False)
    if mesh.texture is not None:
        material = trimesh.visual.texture.SimpleMaterial(
            image=Image.fromarray(mesh.texture),
            diffuse=[255, 255, 255, 255],
            ambient=[0, 0, 0, 255],
            specular=[0, 0, 0, 255],
        )
        made.visual = trimesh.visual.TextureVisuals(uv=mesh.uv, material=material)
    elif mesh.colours is not None:
        made.visual = trimesh.visual.ColorVisuals(made, vertex_colors=mesh.colours)
    return made


def _write_obj(mesh: Mesh, path: Path) -> list[Path]:
    from trimesh.exchange.obj import export_obj

    text, beside = export_obj(
        _trimesh(mesh), include_normals=True, return_texture=True, mtl_name=f"{path.stem}.mtl", header=None
    )
    files = []
    # trimesh names the picture after its material; two exports in a folder must not share one.
    names = {name: f"{path.stem}{Path(name).suffix}" for name in beside}
    for name, data in beside.items():
        if name.endswith(".mtl"):
            for old, new in names.items():
                data = data.replace(old.encode(), new.encode())
        files.append(_write(path.with_name(names[name]), data))
    return [_write(path, text.encode("utf-8")), *files]


def _glb(mesh: Mesh) -> bytes:
    """glTF 2.0, binary. What the pictures show is lit already, so the material is unlit; vertex colours are linear."""
    import trimesh
    from trimesh.exchange.gltf import export_glb

    middle = mesh.vertices.mean(axis=0)
    linear = None if mesh.colours is None else linear_colours(mesh.colours)
    scene = trimesh.Scene()
    place = np.eye(4)
    place[:3, 3] = middle
    made = _trimesh(replace(mesh, vertices=mesh.vertices - middle, colours=linear))
    scene.add_geometry(made, node_name="mesh", geom_name="mesh", transform=GLTF_FROM_Z_UP @ place)

    def unlit(tree: dict) -> None:
        if not tree.get("materials"):
            tree["materials"] = [{"pbrMetallicRoughness": {"metallicFactor": 0.0}}]
            tree["meshes"][0]["primitives"][0]["material"] = 0
        tree["materials"][0].setdefault("extensions", {})["KHR_materials_unlit"] = {}
        tree["materials"][0]["doubleSided"] = True
        tree["extensionsUsed"] = sorted({*tree.get("extensionsUsed", []), "KHR_materials_unlit"})

    return export_glb(scene, include_normals=True, tree_postprocessor=unlit)


def linear_colours(srgb: np.ndarray) -> np.ndarray:
    """Linear light as bytes of sRGB bytes, as glTF wants vertex colours."""
    value = srgb / 255.0
    light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.round(255 * light).astype(np.uint8)


def _write(path: Path, data: bytes) -> Path:
    with whole_file(path) as partial:
        partial.write_bytes(data)
    return path
