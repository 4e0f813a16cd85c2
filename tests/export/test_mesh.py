"""Meshes of a ball that is known exactly, from density, signed distance and fused depth; and their files."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from ball_field import (
    RADIUS,
    BallDistance,
    BallField,
    BallRender,
    FloatingField,
    ball_info,
    ball_views,
)
from PIL import Image

from lightfold.errors import ConfigError, RunError
from lightfold.export.density import find_level
from lightfold.export.mesh import MeshOptions, extract_mesh, linear_colours, write_mesh
from lightfold.export.surface import (
    Mesh,
    keep_faces,
    large_pieces,
    pieces,
    plain_mesh,
    smaller_copy,
    thinned,
)
from lightfold.export.views import Seen

INFO = ball_info(side=96)
RESOLUTION = 64
AWAY = np.array([4e6, 5e5, 100.0])
"""Where a survey's coordinates may be."""


@pytest.fixture(scope="module")
def views() -> list[Seen]:
    return ball_views(BallRender(INFO, shaded=True), side=96)


def as_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


@pytest.fixture(scope="module")
def ball(views: list[Seen]) -> Mesh:
    options = MeshOptions(source="density", resolution=RESOLUTION)
    return extract_mesh(BallField(INFO), options, views=views).mesh  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "source"), [(BallField, "density"), (BallDistance, "sdf"), (BallRender, "fusion")])
def test_each_way_finds_the_ball(kind: type[BallRender], source: str, views: list[Seen]) -> None:
    found = extract_mesh(kind(INFO), MeshOptions(source=source, resolution=RESOLUTION), views=views)  # type: ignore[arg-type]
    distance = np.linalg.norm(found.mesh.vertices, axis=1) - RADIUS
    assert np.abs(distance).mean() < 0.25 * found.spacing and np.abs(distance).max() < 1.5 * found.spacing
    made = as_trimesh(found.mesh)
    assert made.area == pytest.approx(4 * np.pi * RADIUS**2, rel=0.05)
    assert made.volume > 0 and made.is_winding_consistent
    assert made.is_watertight
    outward = found.mesh.vertices / np.linalg.norm(found.mesh.vertices, axis=1, keepdims=True)
    assert (found.mesh.normals * outward).sum(axis=1).mean() > 0.97


@pytest.mark.parametrize(
    ("kind", "level", "source"),
    [
        (BallField, None, "fusion"),
        (BallField, 30.0, "density"),
        (BallDistance, None, "sdf"),
        (BallRender, None, "fusion"),
    ],
)
def test_auto_takes_the_best_there_is_and_a_level_means_density(
    kind: type[BallRender], level: float | None, source: str, views: list[Seen]
) -> None:
    auto, named = (
        extract_mesh(kind(INFO), MeshOptions(source=name, resolution=32, level=level), views=views)  # type: ignore[arg-type]
        for name in ("auto", source)
    )
    assert np.array_equal(named.mesh.vertices, auto.mesh.vertices)


def test_vertices_have_the_colours_of_the_pictures(ball: Mesh) -> None:
    assert ball.colours is not None
    outward = ball.vertices / np.linalg.norm(ball.vertices, axis=1, keepdims=True)
    assert np.abs(ball.colours / 255 - (0.5 * outward + 0.5)).mean() < 0.01


def test_the_level_is_found_where_the_pictures_show_the_surface(views: list[Seen]) -> None:
    field = BallField(INFO)
    box = torch.tensor([[-1.0] * 3, [1.0] * 3])
    level = find_level(field, views, box)
    # Steps along a ray are 0.15 * 2 * 2 / 160 long, over which the density changes by a quarter.
    assert level.density == pytest.approx(20, rel=0.35)
    assert level.error < 0.01 and level.hit > 0.99
    with pytest.raises(RunError, match="none of the rendered depths"):
        find_level(field, views, torch.tensor([[2.0] * 3, [3.0] * 3]))


def test_what_no_camera_sees_goes_and_stays_when_asked(views: list[Seen]) -> None:
    method, box = FloatingField(INFO), torch.tensor([[-1.0] * 3, [1.0] * 3])
    options = MeshOptions(resolution=RESOLUTION, level=20.0, box=box, least_piece=0)
    clean = extract_mesh(method, options, views=views)  # type: ignore[arg-type]
    assert clean.notes == ()
    radius = np.linalg.norm(clean.mesh.vertices, axis=1)
    assert radius.min() > 0.6 and radius.max() < 0.8
    every = extract_mesh(method, replace(options, only_seen=False), views=views).mesh  # type: ignore[arg-type]
    radius = np.linalg.norm(every.vertices, axis=1)
    assert radius.min() < 0.45 and radius.max() > 0.9
    assert len(np.unique(pieces(every))) == 3
    assert len(np.unique(pieces(keep_faces(every, large_pieces(every, 0.05))))) == 2


def test_what_is_missing_is_a_sentence(views: list[Seen]) -> None:
    with pytest.raises(ConfigError, match="no density"):
        extract_mesh(BallRender(INFO), MeshOptions(source="density"), views=views)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no sdf"):
        extract_mesh(BallField(INFO), MeshOptions(source="sdf"), views=views)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no density that a level could be of; leave --level away"):
        extract_mesh(BallDistance(INFO), MeshOptions(level=3.0), views=views)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--source fusion does not look at; leave one of the two away"):
        extract_mesh(BallField(INFO), MeshOptions(source="fusion", level=3.0), views=views)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="source"):
        extract_mesh(BallField(INFO), MeshOptions(source="magic"), views=views)  # type: ignore[arg-type]
    nowhere = torch.tensor([[0.8] * 3, [0.9] * 3])
    for method in (BallField(INFO), BallRender(INFO), BallDistance(INFO)):
        with pytest.raises(RunError, match=r"No surface was found"):
            extract_mesh(method, MeshOptions(resolution=16, box=nowhere), views=views)  # type: ignore[arg-type]

    class Empty(BallRender):
        def density_at(self, points: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(points))

    with pytest.raises(RunError, match=r"empty where the pictures show surfaces.*--source fusion"):
        extract_mesh(Empty(INFO), MeshOptions(source="density", resolution=16), views=views)  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"No surface was found"):
        extract_mesh(BallField(INFO), MeshOptions(resolution=16, level=1e5), views=views)  # type: ignore[arg-type]


def test_faces_are_kept_with_their_own_vertices(ball: Mesh) -> None:
    half = keep_faces(ball, (ball.vertices[:, 2] >= 0)[ball.faces].all(axis=1))
    assert half.vertices[:, 2].min() >= 0 and 0.4 < len(half.faces) / len(ball.faces) < 0.55
    assert half.colours is not None and len(half.colours) == len(half.normals) == len(half.vertices)


def test_a_thinner_mesh_is_the_same_ball(ball: Mesh) -> None:
    pytest.importorskip("fast_simplification")
    thin = thinned(ball, 1000)
    assert len(thin.faces) <= 1000
    assert np.abs(np.linalg.norm(thin.vertices, axis=1) - RADIUS).max() < 0.03
    assert thinned(ball, 10**6) is ball
    copy = smaller_copy(ball, 1000)
    assert copy.colours is not None and ball.colours is not None
    outward = copy.vertices / np.linalg.norm(copy.vertices, axis=1, keepdims=True)
    assert np.abs(copy.colours / 255 - (0.5 * outward + 0.5)).mean() < 0.05


# --- files ----------------------------------------------------------------------------------------------------------


def test_ply_stl_and_obj_say_what_the_mesh_is(ball: Mesh, tmp_path: Path) -> None:
    moved = ball.moved(INFO.scene_from_capture.inverse())
    for name in ("größe mit raum.ply", "a.stl", "b.OBJ"):
        path = tmp_path / "new folder" / name
        assert write_mesh(moved, path)[0] == path
        read = trimesh.load(path, process=False, force="mesh", file_type=path.suffix.lower()[1:])
        assert len(read.faces) == len(ball.faces)
        assert np.allclose(read.triangles, moved.vertices[moved.faces], atol=1e-5)
        if path.suffix != ".stl":
            assert np.array_equal(read.visual.vertex_colors[:, :3], ball.colours)
            assert np.allclose(read.vertex_normals, moved.normals, atol=0.1)
    assert not list((tmp_path / "new folder").glob("*.partial"))
    with pytest.raises(ValueError, match=r"\.xyz"):
        write_mesh(ball, tmp_path / "mesh.xyz")


def test_a_glb_is_y_up_unlit_and_leads_back_to_the_capture(ball: Mesh, tmp_path: Path) -> None:
    far = Mesh(ball.vertices + AWAY, ball.faces, ball.normals, ball.colours)
    path = write_mesh(far, tmp_path / "mesh.glb")[0]
    raw = path.read_bytes()
    assert raw[:4] == b"glTF" and struct.unpack("<I", raw[8:12])[0] == len(raw)
    tree = json.loads(raw[20 : 20 + struct.unpack("<I", raw[12:16])[0]])
    assert tree["extensionsUsed"] == ["KHR_materials_unlit"]
    primitive = tree["meshes"][0]["primitives"][0]
    assert "KHR_materials_unlit" in tree["materials"][primitive["material"]]["extensions"]
    assert {"POSITION", "NORMAL", "COLOR_0"} <= set(primitive["attributes"])
    read = trimesh.load(path, process=False)
    transform, name = read.graph["mesh"]
    vertices = read.geometry[name].vertices @ transform[:3, :3].T + transform[:3, 3]
    # glTF's y is up: x, y, z of the file's world are x, z, -y of the capture.
    assert np.allclose(np.stack([vertices[:, 0], -vertices[:, 2], vertices[:, 1]], axis=1), far.vertices, atol=1e-3)
    assert far.colours is not None
    colours = read.geometry[name].visual.vertex_attributes["color"]
    assert np.array_equal(colours[:, :3], linear_colours(far.colours))


def test_large_coordinates_keep_their_digits_in_a_ply(ball: Mesh, tmp_path: Path) -> None:
    far = Mesh(ball.vertices + AWAY, ball.faces, ball.normals, ball.colours)
    path = write_mesh(far, tmp_path / "far.ply")[0]
    assert b"property double x" in path.read_bytes()[:300]
    read = trimesh.load(path, process=False)
    assert np.abs(read.vertices - far.vertices).max() < 1e-6


def test_normals_of_a_tetrahedron_point_outward() -> None:
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    mesh = plain_mesh(vertices, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]))
    assert np.allclose(np.linalg.norm(mesh.normals, axis=1), 1)
    assert ((mesh.normals * (vertices - 0.25)).sum(axis=1) > 0.9 * np.linalg.norm(vertices - 0.25, axis=1)).all()


def test_linear_colours_are_the_srgb_curve() -> None:
    assert linear_colours(np.array([0, 10, 128, 255])).tolist() == [0, 1, 55, 255]


# --- texture --------------------------------------------------------------------------------------------------------


def test_a_texture_shows_the_pictures_and_its_obj_and_glb_carry_it(
    ball: Mesh, views: list[Seen], tmp_path: Path
) -> None:
    pytest.importorskip("xatlas")
    pytest.importorskip("fast_simplification")
    from lightfold.export.texture import textured

    painted = textured(thinned(ball, 600), views, 256, 0.05)
    assert painted.uv is not None and painted.texture is not None and painted.texture.shape == (256, 256, 3)
    assert len(painted.uv) == len(painted.vertices) and painted.uv.min() >= 0 and painted.uv.max() <= 1
    obj, *beside = write_mesh(painted, tmp_path / "ball.obj")
    assert sorted(path.name for path in beside) == ["ball.mtl", "ball.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "ball.png").convert("RGB")), painted.texture)
    for path in (obj, *write_mesh(painted, tmp_path / "ball.glb")):
        read = trimesh.load(path, process=False, force="mesh")
        material = read.visual.material
        picture = np.asarray((material.image if path == obj else material.baseColorTexture).convert("RGB"))
        # The colour in the middle of each face is that of the ball there, by the reader's own idea of uv.
        uv = read.visual.uv[read.faces].mean(axis=1)
        column = (uv[:, 0] * 256).astype(int).clip(0, 255)
        row = ((1 - uv[:, 1]) * 256).astype(int).clip(0, 255)
        middle = read.triangles.mean(axis=1)
        if path.suffix == ".glb":
            middle = np.stack([middle[:, 0], -middle[:, 2], middle[:, 1]], axis=1)
        outward = middle / np.linalg.norm(middle, axis=1, keepdims=True)
        assert np.abs(picture[row, column] / 255 - (0.5 * outward + 0.5)).mean() < 0.03


def test_texels_cover_each_triangle_once_with_its_own_shares() -> None:
    from lightfold.export.texture import texels

    corners = np.array([[[0.1, 0.1], [0.9, 0.1], [0.1, 0.9]], [[0.9, 0.9], [0.1, 0.9], [0.9, 0.1]]])
    number, face, share = texels(corners, 64)
    assert len(np.unique(number)) == len(number)
    assert np.allclose(share.sum(axis=1), 1) and share.min() >= 0
    middle = np.stack([number % 64 + 0.5, 64 - (number // 64 + 0.5)], axis=1) / 64
    at = np.einsum("nc,ncd->nd", share, corners[face])
    inside = (middle > 0.1).all(axis=1) & (middle < 0.9).all(axis=1)
    assert np.allclose(at[inside], middle[inside], atol=1e-9)
    off_diagonal = inside & (np.abs(middle.sum(axis=1) - 1) > 1e-9)
    assert np.array_equal(face[off_diagonal], (middle[off_diagonal].sum(axis=1) > 1).astype(int))
    # Every texel whose middle is inside is covered, and a rim of about one around.
    assert inside.sum() == sum(0.1 < (i + 0.5) / 64 < 0.9 for i in range(64)) ** 2
    assert 0 < (~inside).sum() < 4 * 60
