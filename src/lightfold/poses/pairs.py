"""Which pictures are compared with which. Comparing all with all grows with the square of their number.

Pairs are rows (i, j), i < j, of indices into the shots. Nothing here knows COLMAP; descriptors are [n, 128] uint8.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Pairs = NDArray[np.int64]
"""[P, 2], i < j, sorted, each once."""

ALL_PAIRS = 150
"""Pictures up to which all are compared with all: about two minutes on two cores."""
ALL_PAIRS_ORDERED = 80
"""The same where their order already says who is near whom."""
WORDS = 64
"""Size of the codebook of the global descriptors."""


def exhaustive(count: int) -> Pairs:
    """All pairs of `count` pictures."""
    i, j = np.triu_indices(count, k=1)
    return np.stack([i, j], axis=1).astype(np.int64)


def sequential(count: int, overlap: int) -> Pairs:
    """Each picture with its next `overlap` ones, and with those 2, 4, 8 ... times as far for a stiffer chain."""
    steps = set(range(1, overlap + 1)) | {2**k for k in range(2, 8) if 2**k > overlap and 2**k <= 8 * overlap}
    return union([np.stack([np.arange(count - s), np.arange(s, count)], axis=1) for s in sorted(steps) if s < count])


def spatial(metres: NDArray[np.float64], neighbours: int) -> Pairs:
    """Each picture with its nearest ones on the map. metres: [N, 3], NaN where unknown; those get no pairs."""
    known = np.flatnonzero(np.isfinite(metres[:, :2]).all(axis=1))
    if len(known) < 2:
        return union([])
    place = metres[known, :2]
    squared = (place**2).sum(1)
    distance = squared[:, None] + squared[None, :] - 2 * place @ place.T
    found = _nearest(-distance, neighbours)
    return union([known[found]])


def retrieval(similarity: NDArray[np.float32], neighbours: int, apart: int = 0) -> Pairs:
    """Each picture with those most alike, of those more than `apart` places away in the order of taking.

    similarity: [N, N], larger is more alike. A pair is taken when either of its pictures asks for it.
    """
    scores = similarity.astype(np.float64)
    index = np.arange(len(scores))
    scores[np.abs(index[:, None] - index[None, :]) <= apart] = -np.inf
    return _nearest(scores, neighbours)


def union(parts: Iterable[Pairs]) -> Pairs:
    """Pairs of all parts, in canonical form; pictures with themselves are left out."""
    rows = np.concatenate([np.zeros((0, 2), dtype=np.int64), *parts]).astype(np.int64)
    rows = np.sort(rows[rows[:, 0] != rows[:, 1]], axis=1)
    return np.unique(rows, axis=0).reshape(-1, 2)


def components(count: int, pairs: Pairs) -> list[list[int]]:
    """Pictures that are connected by pairs, in groups, the largest first; a picture without pairs is its own group."""
    parent = np.arange(count)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    for a, b in pairs:
        parent[root(int(a))] = root(int(b))
    groups: dict[int, list[int]] = {}
    for i in range(count):
        groups.setdefault(root(i), []).append(i)
    return sorted(groups.values(), key=lambda group: (-len(group), group[0]))


def similarity_of(descriptors: Sequence[NDArray[np.uint8]], seed: int = 0) -> NDArray[np.float32]:
    """[N, N] how much the pictures look alike, from their local descriptors: no vocabulary to download.

    Each picture becomes one vector: of every word of a small codebook, found by k-means in the pictures themselves, the
    sum of the differences of its descriptors from the word (VLAD, Jegou et al. 2010), each word normalised by itself
    (Arandjelovic and Zisserman 2013), the whole whitened by its own principal axes (Jegou and Chum 2012), which takes
    out what all pictures of a place have in common. Pictures without features are alike to none (zeros).
    """
    rng = np.random.default_rng(seed)
    chosen = [_rows(d, 1000, rng) for d in descriptors]
    pool = np.concatenate([np.zeros((0, 128), dtype=np.float32), *(_rows(d, 300, rng) for d in chosen)])
    if len(pool) < WORDS:
        return np.zeros((len(descriptors), len(descriptors)), dtype=np.float32)
    words = _k_means(_rows(pool, 40000, rng), WORDS, rng)
    vectors = np.stack([_vlad(d, words) for d in chosen])
    empty = np.array([len(d) == 0 for d in chosen])
    vectors[~empty] -= vectors[~empty].mean(axis=0)
    _, singular, axes = np.linalg.svd(vectors, full_matrices=False)
    kept = min(128, max(1, int((singular > 1e-3 * singular[0]).sum()) // 2)) if singular[0] > 0 else 1
    # The square root of whitening: full whitening makes noise as loud as what distinguishes places.
    projected = vectors @ axes[:kept].T / np.sqrt(np.maximum(singular[:kept], 1e-12))
    projected /= np.maximum(np.linalg.norm(projected, axis=1, keepdims=True), 1e-12)
    projected[empty] = 0
    return (projected @ projected.T).astype(np.float32)


def _nearest(scores: NDArray[np.float64], neighbours: int) -> Pairs:
    scores = scores.copy()
    np.fill_diagonal(scores, -np.inf)
    count = min(neighbours, len(scores) - 1)
    if count < 1:
        return union([])
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    i = np.repeat(np.arange(len(scores)), count)
    j = order.reshape(-1)
    allowed = np.isfinite(scores[i, j])
    return union([np.stack([i, j], axis=1)[allowed]])


def _rows(array: NDArray, most: int, rng: np.random.Generator) -> NDArray[np.float32]:
    if len(array) > most:
        array = array[np.sort(rng.choice(len(array), most, replace=False))]
    return array.astype(np.float32)


def _k_means(points: NDArray[np.float32], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Lloyd's algorithm, ten rounds; a word that nobody is nearest to stays where it was."""
    words = points[rng.choice(len(points), count, replace=False)].copy()
    for _ in range(10):
        nearest = _nearest_word(points, words)
        sums = np.zeros_like(words)
        np.add.at(sums, nearest, points)
        number = np.bincount(nearest, minlength=count)
        words[number > 0] = sums[number > 0] / number[number > 0, None]
    return words


def _nearest_word(points: NDArray[np.float32], words: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.argmin((words**2).sum(1)[None, :] - 2 * points @ words.T, axis=1)


def _vlad(descriptors: NDArray[np.float32], words: NDArray[np.float32]) -> NDArray[np.float32]:
    vector = np.zeros_like(words)
    if len(descriptors):
        nearest = _nearest_word(descriptors, words)
        np.add.at(vector, nearest, descriptors - words[nearest])
        vector /= np.maximum(np.linalg.norm(vector, axis=1, keepdims=True), 1e-12)
    flat = vector.reshape(-1)
    return flat / np.maximum(np.linalg.norm(flat), 1e-12)
