"""Point clouds: on the surface, with its normals and colours, as many as asked for, without stragglers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from ball_field import RADIUS, BallRender, ball_info, ball_views

from lightfold.errors import RunError
from lightfold.export.ply import write_ply
from lightfold.export.points import extract_points
from lightfold.export.views import Seen
from lightfold.formats.ply import read_points

METHOD = BallRender(ball_info(side=96), shaded=True)


@pytest.fixture(scope="module")
def views() -> list[Seen]:
    return ball_views(METHOD, side=96)


def test_points_lie_on_the_surface_and_are_as_many_as_asked_for(views: list[Seen]) -> None:
    points = extract_points(METHOD, 3000, views=views)  # type: ignore[arg-type]
    assert len(points) == 3000
    radius = points.xyz.norm(dim=1)
    assert (radius - RADIUS).abs().max() < 1e-3
    outward = points.xyz / RADIUS
    assert (points.normal * outward).sum(dim=1).min() > 0.9
    assert ((points.rgb / 255) - (0.5 * outward + 0.5)).abs().max() < 0.05
    # All around, and not where the first views happen to look.
    assert (points.xyz.amin(0) < -0.65).all() and (points.xyz.amax(0) > 0.65).all()


def test_a_box_limits_them_and_does_not_make_them_fewer(views: list[Seen]) -> None:
    upper = torch.tensor([[-1.0, -1, 0.2], [1, 1, 1]])
    points = extract_points(METHOD, 2000, upper, views=views)  # type: ignore[arg-type]
    assert len(points) == 2000 and points.xyz[:, 2].min() >= 0.2
    with pytest.raises(RunError, match="No surface was found in the box"):
        extract_points(METHOD, 100, torch.tensor([[0.9] * 3, [1.0] * 3]), views=views)  # type: ignore[arg-type]


def test_what_one_view_sees_alone_is_left_out(views: list[Seen]) -> None:
    # The first view sees the ball at half the distance: fog in front of one camera.
    near = views[0]
    fog = replace(near, depth=near.depth / 2, nearest=near.nearest / 2, farthest=near.farthest / 2)
    points = extract_points(METHOD, 3000, views=[fog, *views[1:]])  # type: ignore[arg-type]
    assert (points.xyz.norm(dim=1) - RADIUS).abs().max() < 1e-3


def test_a_ply_holds_positions_normals_and_colours(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    xyz, normals = rng.normal(size=(50, 3)), rng.normal(size=(50, 3)).astype(np.float32)
    colours = rng.integers(0, 256, (50, 3), dtype=np.uint8)
    path = tmp_path / "neuer ordner" / "pünkte.ply"
    write_ply(path, xyz, normals, colours)
    cloud = trimesh.load(path)
    assert np.allclose(cloud.vertices, xyz, atol=1e-6) and np.array_equal(cloud.colors[:, :3], colours)
    names = [line.split()[-1] for line in path.read_bytes().decode("latin-1").splitlines() if line.startswith("prop")]
    assert names == ["x", "y", "z", "nx", "ny", "nz", "red", "green", "blue"]
    read = read_points(path)
    assert read.rgb is not None and torch.equal(read.rgb, torch.from_numpy(colours))
    write_ply(path, xyz[:0], normals[:0], colours[:0])
    assert len(read_points(path)) == 0


def test_eastings_stay_exact(tmp_path: Path) -> None:
    xyz = np.array([[4e6, 5e5, 100.0], [4e6 + 0.001, 5e5, 100.0]])
    write_ply(tmp_path / "far.ply", xyz)
    assert torch.equal(read_points(tmp_path / "far.ply").xyz, torch.from_numpy(xyz))
