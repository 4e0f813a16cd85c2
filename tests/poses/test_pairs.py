"""Which pictures are compared: canonical form, coverage, and retrieval that finds places again."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lightfold.poses import pairs


def test_exhaustive_is_every_pair_once():
    assert pairs.exhaustive(4).tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert pairs.exhaustive(1).shape == (0, 2) and pairs.exhaustive(0).shape == (0, 2)


@given(st.integers(0, 120), st.integers(1, 20))
def test_sequential_holds_all_near_neighbours_and_grows_linearly(count, overlap):
    found = pairs.sequential(count, overlap)
    wanted = {(i, j) for i in range(count) for j in range(i + 1, min(i + overlap, count - 1) + 1)}
    assert wanted <= {(i, j) for i, j in found.tolist()}
    assert len(found) <= count * (overlap + 7)
    assert (found[:, 0] < found[:, 1]).all() and len(np.unique(found, axis=0)) == len(found)


def test_union_sorts_and_drops_pictures_with_themselves():
    parts = [np.array([[3, 1], [2, 2]]), np.array([[1, 3], [0, 4]])]
    assert pairs.union(parts).tolist() == [[0, 4], [1, 3]]
    assert pairs.union([]).shape == (0, 2)


def test_spatial_joins_neighbours_on_the_map_and_leaves_out_the_unknown():
    metres = np.array([[0.0, 0, 0], [1, 0, 500], [100, 0, 0], [101, 0, 0], [np.nan, np.nan, np.nan]])
    assert pairs.spatial(metres, 1).tolist() == [[0, 1], [2, 3]]
    assert len(pairs.spatial(metres[4:], 3)) == 0


def test_components_are_groups_by_size():
    assert pairs.components(6, np.array([[4, 5], [1, 2], [2, 3]])) == [[1, 2, 3], [4, 5], [0]]


def places(rng: np.random.Generator, visits: int = 2, count: int = 20) -> list[np.ndarray]:
    """Descriptors of `count` places, each visited `visits` times; all share some clutter."""
    clutter = rng.integers(0, 255, (100, 128))
    of_place = [rng.integers(0, 255, (120, 128)) for _ in range(count)]
    seen = [np.concatenate([of_place[p], clutter]) for _ in range(visits) for p in range(count)]
    return [np.clip(d + rng.normal(0, 20, d.shape), 0, 255).astype(np.uint8) for d in seen]


def test_retrieval_finds_the_place_again_without_any_vocabulary_file():
    likeness = pairs.similarity_of(places(np.random.default_rng(0)))
    found = {(i, j) for i, j in pairs.retrieval(likeness, 1, apart=5).tolist()}
    right = sum((i, i + 20) in found for i in range(20))
    assert right >= 18
    assert len(found) <= 40


def test_retrieval_respects_the_distance_in_time():
    likeness = pairs.similarity_of(places(np.random.default_rng(1)))
    near = pairs.retrieval(likeness, 3, apart=8)
    assert (near[:, 1] - near[:, 0] > 8).all()
    assert len(pairs.retrieval(likeness, 3, apart=100)) == 0


def test_pictures_without_features_are_like_nothing():
    empty = np.zeros((0, 128), dtype=np.uint8)
    assert pairs.similarity_of([empty, empty]).tolist() == [[0, 0], [0, 0]]
    likeness = pairs.similarity_of([*places(np.random.default_rng(2), visits=1, count=5), empty])
    assert np.isfinite(likeness).all() and not likeness[5].any()
    same = pairs.similarity_of([np.full((100, 128), 7, dtype=np.uint8)] * 3)
    assert np.isfinite(same).all()
