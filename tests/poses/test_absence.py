from __future__ import annotations

import math

import numpy as np
import torch

from lightfold.cameras import Camera
from lightfold.geometry import look_at
from lightfold.poses.absence import absent_shares


def beside(apart: float = 0.2) -> list[Camera]:
    """Two cameras that look the same way, at points some four units ahead of them."""
    eyes = torch.tensor([[0.0, -4.0, 0.0], [apart, -4.0, 0.0]], dtype=torch.float64)
    ahead = torch.tensor([[0.0, 0.0, 0.0], [apart, 0.0, 0.0]], dtype=torch.float64)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    poses = [look_at(eye, target, up) for eye, target in zip(eyes, ahead, strict=True)]
    return [Camera.from_colmap("PINHOLE", [350, 350, 200, 150], 400, 300, pose) for pose in poses]


def shares(cameras: list[Camera | None], first: np.ndarray, second: np.ndarray, points: np.ndarray) -> float:
    """Of one pair. first, second: [P] which points each picture sees."""
    sees = np.repeat([0, 1], [first.sum(), second.sum()])
    seen = np.concatenate([np.flatnonzero(first), np.flatnonzero(second)])
    return float(absent_shares(np.array([[0, 1]]), cameras, np.array([4.0, 4.0]), points, sees, seen)[0])


def wall(rng: np.random.Generator, count: int = 1500) -> np.ndarray:
    return rng.uniform([-2, -0.2, -1.5], [2, 0.2, 1.5], (count, 3))


def test_points_that_are_missed_at_random_are_no_absence() -> None:
    rng = np.random.default_rng(0)
    points = wall(rng)
    first, second = rng.random((2, len(points))) < 0.6
    assert shares(beside(), first, second, points) < 0.02


def test_half_a_wall_that_only_one_picture_shows_is_absent_from_the_other() -> None:
    points = wall(np.random.default_rng(0))
    everything, left = np.ones(len(points), dtype=bool), points[:, 0] < 0
    found = shares(beside(), everything, left, points)
    # All regions of the right half are asked in one direction, none in the other.
    assert 0.25 < found < 0.45
    assert shares(beside(), left, ~left, points) > 0.9


def test_pictures_far_apart_turned_or_without_a_pose_are_not_asked() -> None:
    points = wall(np.random.default_rng(0))
    everything = np.ones(len(points), dtype=bool)
    assert math.isnan(shares(beside(apart=1.5), everything, everything, points))
    first, second = beside()
    assert math.isnan(shares([first, None], everything, everything, points))
    eye, target = torch.tensor([[0.0, -4, 0], [4.0, 0, 0]], dtype=torch.float64)
    turned = look_at(eye, target, torch.tensor([0.0, 0, 1], dtype=torch.float64))
    camera = Camera.from_colmap("PINHOLE", [350, 350, 200, 150], 400, 300, turned)
    assert math.isnan(shares([first, camera], everything, everything, points))
    assert not math.isnan(shares([first, second], everything, everything, points))


def test_a_handful_of_points_says_nothing() -> None:
    points = wall(np.random.default_rng(0), count=20)
    assert math.isnan(shares(beside(), np.arange(20) < 10, np.arange(20) >= 10, points))
