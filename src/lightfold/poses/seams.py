"""Ways to part the pictures of a model in two, such that a wrong joint is among them.

There are 2^(S - 1) ways to part S pictures. Cutting one edge of the maximum spanning tree (Kruskal 1956) over the
matches that agree with the model gives S - 1 of them. Few matches agree across a wrong joint, so the tree crosses it as
rarely as it can, and cutting the edge that crosses it parts the model there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def spanning_seams(count: int, pair: NDArray[np.int64], weight: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The sides [K, count] of all seams: what is on the smaller side of each; of two equal ones, either.

    pair: [L, 2] numbers of pictures in 0..count - 1. weight: [L]; pairs of weight zero hold nothing together. Where the
    pairs leave several trees, each but the largest is a side too.
    """
    leader = list(range(count))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    neighbours: list[list[int]] = [[] for _ in range(count)]
    for k in np.argsort(-weight, kind="stable"):
        a, b = (int(i) for i in pair[k])
        if weight[k] > 0 and find(a) != find(b):
            leader[find(a)] = find(b)
            neighbours[a].append(b)
            neighbours[b].append(a)
    # Each tree is hung up by its first picture, and parents come before their children.
    parent: dict[int, int] = {}
    trees: list[list[int]] = []
    for root in range(count):
        if root in parent:
            continue
        parent[root], tree = -1, [root]
        for i in tree:
            for j in neighbours[i]:
                if j not in parent:
                    parent[j] = i
                    tree.append(j)
        trees.append(tree)
    trees.sort(key=len, reverse=True)
    order = [i for tree in trees for i in tree]
    # inside[i] marks i and what hangs on it.
    inside = np.eye(count, dtype=bool)
    for i in reversed(order):
        if parent[i] >= 0:
            inside[parent[i]] |= inside[i]
    sides = inside[order[1:]]
    larger = 2 * sides.sum(axis=1) > count
    return sides ^ larger[:, None]
