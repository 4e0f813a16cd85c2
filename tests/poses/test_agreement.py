"""Whether matches agree with a model: exact geometry agrees, a folded model and a misplaced picture are found out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightfold.geometry import compose, look_at, so3_exp
from lightfold.poses.agreement import Pair, agreement, epipolar_angles, weakest_seam

Z = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
LIMIT = 0.003


def street(count: int = 16) -> tuple[list[np.ndarray], np.ndarray]:
    """Poses along a street that look across it, and points [400, 3] of the houses."""
    rng = np.random.default_rng(0)
    eye = torch.tensor([[i, 0.1 * math.sin(i), 0.0] for i in range(count)], dtype=torch.float64)
    poses = look_at(eye, eye + torch.tensor([0.3, 5.0, 0.0], dtype=torch.float64), Z)
    points = rng.uniform([-4, 4, -2], [count + 4, 9, 2], (60 * count, 3))
    return [pose.numpy() for pose in poses], points


def rays(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    x = points @ pose[:, :3].T + pose[:, 3]
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def pairs_of(poses: list[np.ndarray], points: np.ndarray, reach: int = 3) -> list[Pair]:
    """Matches of neighbours: the points within 45 degrees of both axes, with a little noise."""
    rng = np.random.default_rng(1)
    found = []
    for i in range(len(poses)):
        for j in range(i + 1, min(i + reach, len(poses) - 1) + 1):
            a, b = rays(poses[i], points), rays(poses[j], points)
            both = (a[:, 2] > 0.7) & (b[:, 2] > 0.7)
            noise = rng.normal(0, LIMIT / 6, (2, int(both.sum()), 3))
            found.append(Pair(f"{i:02}", f"{j:02}", a[both] + noise[0], b[both] + noise[1]))
    return [Pair(p.first, p.second, unit(p.rays_first), unit(p.rays_second)) for p in found]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def named(poses: list[np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    return {f"{i:02}": p for i, p in enumerate(poses)}, {f"{i:02}": LIMIT for i in range(len(poses))}


def turned(pose: np.ndarray, degrees: float) -> np.ndarray:
    """The pose in a world that was turned about z through the camera-free origin."""
    turn = torch.cat([so3_exp(Z * math.radians(degrees)), torch.zeros(3, 1, dtype=torch.float64)], dim=1)
    return compose(torch.from_numpy(pose), turn).numpy()


def test_the_true_model_agrees_with_its_matches():
    poses, points = street()
    found = agreement(named(poses)[0], pairs_of(poses, points), named(poses)[1])
    assert found.share == 1.0 and found.pairs == 42 and found.seam > 0.95
    assert found.trusted and not found.doubtful and not found.outliers


def test_a_folded_model_is_not_trusted_although_most_pairs_agree():
    poses, points = street(30)
    pairs = pairs_of(poses, points, reach=2)
    folded = [pose if i < 15 else turned(pose, 15) for i, pose in enumerate(poses)]
    found = agreement(named(folded)[0], pairs, named(folded)[1])
    assert found.share > 0.9 and found.seam < 0.2
    assert not found.trusted
    assert {tuple(sorted((int(a) >= 15, int(b) >= 15))) for a, b, _ in found.doubtful} == {(False, True)}


def test_a_picture_in_the_wrong_place_is_named():
    poses, points = street()
    wrong = list(poses)
    wrong[7] = turned(poses[7], 20)
    found = agreement(named(wrong)[0], pairs_of(poses, points), named(wrong)[1])
    assert found.outliers == ("07",)


def test_without_witnesses_there_is_no_objection():
    poses, _ = street(4)
    found = agreement(named(poses)[0], [], named(poses)[1])
    assert found.share == 1.0 and found.seam == 1.0 and found.pairs == 0


def test_epipolar_angles_are_zero_on_the_arc_and_grow_off_it():
    first, second = np.eye(3, 4), np.concatenate([np.eye(3), [[-1.0], [0.0], [0.0]]], axis=1)
    ray = unit(np.array([[0.0, 0.0, 1.0]] * 4))
    # The point at depth 5; beside the line by 0.01; beyond infinity (a negative depth); behind the first camera.
    seen = unit(np.array([[-0.2, 0.0, 1.0], [-0.2, 0.01, 1.0], [0.1, 0.0, 1.0], [0.0, 0.0, -1.0]]))
    angles = epipolar_angles(first, second, ray, seen)
    assert angles[0] == pytest.approx(0.0, abs=1e-9)
    assert angles[1] == pytest.approx(0.01, rel=0.05)
    assert angles[2] == pytest.approx(math.atan(0.1), rel=1e-6)
    assert angles[3] == pytest.approx(math.pi / 2, rel=1e-6)


def test_cameras_at_one_place_see_the_same_direction():
    eye = np.eye(3, 4)
    ray = unit(np.array([[0.1, 0.2, 1.0]]))
    assert epipolar_angles(eye, eye, ray, ray)[0] == pytest.approx(0.0, abs=1e-9)


def test_seams_count_only_between_groups_of_three():
    chain = np.array([[i, i + 1, 50, 0] for i in range(7)])
    assert weakest_seam(8, chain) == 1.0
    broken = chain.copy()
    broken[3] = [3, 4, 10, 90]
    assert weakest_seam(8, broken) == pytest.approx(0.1)
    broken = chain.copy()
    broken[0] = [0, 1, 10, 90]
    assert weakest_seam(8, broken) == 1.0
    assert weakest_seam(0, np.zeros((0, 4), dtype=np.int64)) == 1.0
