"""Similarity alignment, up and GPS: known answers, and input that determines nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightfold.geometry import Similarity, invert, look_at, so3_exp
from lightfold.poses.align import (
    east_north_up,
    metres_from_gps,
    pose_errors,
    rotation_to_z,
    umeyama,
    up_from_cameras,
)

Z = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)


def a_similarity(rng: torch.Generator) -> Similarity:
    omega = torch.randn(3, generator=rng, dtype=torch.float64)
    return Similarity(2.7, so3_exp(omega), 10 * torch.randn(3, generator=rng, dtype=torch.float64))


def orbit(count: int = 12, height: float = 0.5) -> torch.Tensor:
    """cam_from_world of level cameras on a circle that look at the origin, z up."""
    angle = torch.arange(count, dtype=torch.float64) * 2 * math.pi / count
    eye = torch.stack([3 * angle.cos(), 3 * angle.sin(), torch.full_like(angle, height)], dim=1)
    return look_at(eye, torch.zeros(3, dtype=torch.float64), Z)


def test_umeyama_finds_an_exact_similarity_again(rng):
    points = torch.randn(20, 3, generator=rng, dtype=torch.float64)
    truth = a_similarity(rng)
    found = umeyama(points, truth.apply(points))
    assert found.scale == pytest.approx(2.7)
    assert torch.allclose(found.apply(points), truth.apply(points), atol=1e-10)


def test_umeyama_takes_a_plane_and_never_a_mirror(rng):
    flat = torch.randn(9, 3, generator=rng, dtype=torch.float64) * torch.tensor([1.0, 1.0, 0.0])
    assert torch.allclose(umeyama(flat, flat).rotation, torch.eye(3, dtype=torch.float64), atol=1e-9)
    points = torch.randn(9, 3, generator=rng, dtype=torch.float64)
    assert torch.linalg.det(umeyama(points, points * torch.tensor([-1.0, 1.0, 1.0])).rotation) > 0.99


@pytest.mark.parametrize("points", [torch.zeros(5, 3), torch.arange(5.0)[:, None] * torch.ones(3), torch.ones(2, 3)])
def test_umeyama_refuses_what_any_rotation_fits(points):
    with pytest.raises(ValueError, match="expected"):
        umeyama(points, points)


def test_pose_errors_are_zero_up_to_a_similarity(rng):
    poses = orbit()
    errors = pose_errors(a_similarity(rng).camera_from(poses), poses)
    assert float(errors.rotation.max()) < 1e-6 and float(errors.position.max()) < 1e-9
    assert errors.extent == pytest.approx(math.sqrt(72), rel=1e-6)


def test_pose_errors_see_a_turn_and_take_out_one_that_is_constant(rng):
    poses = orbit()
    turned = poses.clone()
    turn = so3_exp(torch.tensor([0.01, 0.0, 0.0], dtype=torch.float64))
    centres = invert(poses)[..., 3]
    turned[..., :3] = turn @ poses[..., :3]
    turned[..., 3] = -(turned[..., :3] @ centres[..., None])[..., 0]
    errors = pose_errors(turned, poses)
    assert errors.rotation.median() == pytest.approx(math.degrees(0.01), rel=1e-6)
    assert float(errors.rotation_free.max()) < 1e-6


@pytest.mark.parametrize("height", [-1.0, 0.5, 2.0, 30.0])
def test_level_cameras_say_where_up_is_also_when_they_look_down(rng, height):
    moved = a_similarity(rng)
    up, certain = up_from_cameras(moved.camera_from(orbit(height=height)))
    assert certain
    assert float(up @ (moved.rotation @ Z)) > 0.9999


def test_cameras_that_look_the_same_way_give_a_guess_and_say_so():
    eyes = torch.tensor([[x, 0.0, 0.0] for x in range(5)], dtype=torch.float64)
    up, certain = up_from_cameras(look_at(eyes, eyes + torch.tensor([0.0, 5.0, 0.0]).double(), Z))
    assert not certain and float(up @ Z) > 0.99


@pytest.mark.parametrize("up", [[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [1.0, 2.0, -3.0], [0.0, 1e-9, -1.0]])
def test_rotation_to_z(up):
    direction = torch.tensor(up, dtype=torch.float64)
    rotation = rotation_to_z(direction)
    assert torch.allclose(rotation @ (direction / direction.norm()), Z, atol=1e-6)
    assert torch.linalg.det(rotation) == pytest.approx(1.0)


def test_east_north_up_has_the_lengths_of_degrees():
    metres, origin = east_north_up([(45.0, 10.0, 100.0), (45.001, 10.0, 100.0), (45.0, 10.001, math.nan)])
    assert origin == pytest.approx((45.0, 10.0, 100.0))
    assert metres[1] == pytest.approx([0.0, 111.1, 0.0], abs=0.2)  # a thousandth of a degree of latitude at 45 degrees
    assert metres[2] == pytest.approx([78.8, 0.0, 0.0], abs=0.2)
    across_the_date_line, _ = east_north_up([(0.0, 179.9995, 0.0), (0.0, -179.9995, 0.0), (0.0, 180.0, 0.0)])
    assert np.abs(across_the_date_line).max() < 60


def walk(count: int = 30) -> torch.Tensor:
    """Centres along a bent street, in units of a fifth of a metre."""
    t = torch.linspace(0, 1, count, dtype=torch.float64)
    return torch.stack([300 * t, 40 * (3 * t).sin(), 2 * t], dim=1)


def test_gps_gives_metres_and_heading_and_ignores_outliers(rng):
    centres = walk()
    turn = so3_exp(torch.tensor([0.0, 0.0, 0.7], dtype=torch.float64))
    metres = 0.2 * centres @ turn.T + torch.tensor([5.0, -3.0, 90.0], dtype=torch.float64)
    metres += 0.3 * torch.randn(metres.shape, generator=rng, dtype=torch.float64)
    metres[[3, 17]] += 80.0
    metres[5, 2] = 0.0
    found = metres_from_gps(centres, metres.numpy(), level=True)
    assert found is not None
    assert found.scale == pytest.approx(0.2, rel=0.02)
    assert torch.allclose(found.rotation, turn, atol=0.03)
    assert float(found.translation[2]) == pytest.approx(90.0, abs=1.0)


def test_gps_on_a_straight_street_needs_the_cameras_to_be_level():
    centres = walk() * torch.tensor([1.0, 0.0, 0.0])
    metres = (0.2 * centres).numpy()
    assert metres_from_gps(centres, metres, level=True) is not None
    assert metres_from_gps(centres, metres, level=False) is None


def test_gps_that_says_nothing_is_not_believed(rng):
    centres = walk()
    noise = (4 * torch.randn(30, 3, generator=rng, dtype=torch.float64)).numpy()
    assert metres_from_gps(centres, noise, level=True) is None
    assert metres_from_gps(centres, np.zeros((30, 3)), level=True) is None
    assert metres_from_gps(centres[:2], noise[:2], level=True) is None
    assert metres_from_gps(centres, np.full((30, 3), np.nan), level=True) is None
