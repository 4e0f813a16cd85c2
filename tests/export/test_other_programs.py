"""Exports opened by the programs that they are for, where those are installed: Blender, Open3D, MeshLab."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ball_field import RADIUS, BallField, ball_info, ball_views

from lightfold.export.mesh import MeshOptions, extract_mesh, write_mesh
from lightfold.export.surface import Mesh

SHIFT = np.array([3.0, -5.0, 2.0])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mesh, Path, Path]:
    """A ball beside the origin, as PLY and GLB."""
    method = BallField(ball_info(), shaded=True)
    views = ball_views(method)
    mesh = extract_mesh(method, MeshOptions(resolution=24, level=20.0), views=views).mesh  # type: ignore[arg-type]
    mesh = Mesh(mesh.vertices + SHIFT, mesh.faces, mesh.normals, mesh.colours)
    folder = tmp_path_factory.mktemp("exports")
    return mesh, write_mesh(mesh, folder / "ball.ply")[0], write_mesh(mesh, folder / "ball.glb")[0]


def assert_same(mesh: Mesh, vertices: np.ndarray, faces: int) -> None:
    assert faces == len(mesh.faces) and len(vertices) == len(mesh.vertices)
    assert np.allclose(vertices.min(axis=0), mesh.vertices.min(axis=0), atol=1e-5)
    assert np.allclose(vertices.max(axis=0), mesh.vertices.max(axis=0), atol=1e-5)
    assert np.allclose(np.linalg.norm(vertices - SHIFT, axis=1), RADIUS, atol=0.1)


def test_blender_shows_both_files_where_the_capture_has_them(files: tuple[Mesh, Path, Path]) -> None:
    bpy = pytest.importorskip("bpy")
    mesh, ply, glb = files
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.ops.wm.ply_import(filepath=str(ply))
    bpy.ops.import_scene.gltf(filepath=str(glb))
    found = [shown for shown in bpy.data.objects if shown.type == "MESH"]
    assert len(found) == 2
    for shown in found:
        local = np.array([vertex.co for vertex in shown.data.vertices])
        world = np.array(shown.matrix_world)
        assert_same(mesh, local @ world[:3, :3].T + world[:3, 3], len(shown.data.polygons))
        colours = np.array([value.color_srgb for value in shown.data.color_attributes[0].data])[:, :3]
        assert mesh.colours is not None and np.abs(colours.mean(axis=0) - mesh.colours.mean(axis=0) / 255).max() < 0.02


def test_open3d_reads_a_mesh_with_colours_and_normals(files: tuple[Mesh, Path, Path]) -> None:
    open3d = pytest.importorskip("open3d")
    mesh, ply, _ = files
    read = open3d.io.read_triangle_mesh(str(ply))
    assert_same(mesh, np.asarray(read.vertices), len(read.triangles))
    assert np.allclose(255 * np.asarray(read.vertex_colors), mesh.colours, atol=0.6)
    assert np.allclose(np.asarray(read.vertex_normals), mesh.normals, atol=1e-5)


def test_meshlab_reads_it_too(files: tuple[Mesh, Path, Path]) -> None:
    pymeshlab = pytest.importorskip("pymeshlab")
    mesh, ply, _ = files
    meshes = pymeshlab.MeshSet()
    meshes.load_new_mesh(str(ply))
    read = meshes.current_mesh()
    assert_same(mesh, read.vertex_matrix(), read.face_number())
    assert np.allclose(255 * read.vertex_color_matrix()[:, :3], mesh.colours, atol=0.6)
