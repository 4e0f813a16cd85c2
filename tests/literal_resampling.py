"""Resampling of one ray as the paper's appendix says it, in loops: what `proposal.resample` is checked against."""

from __future__ import annotations

import numpy as np


def height_at(edges: np.ndarray, weights: np.ndarray, x: float, width: float) -> float:
    """The greatest height of a histogram within `width` of x, by looking at every interval."""
    near = (edges[:-1] - width <= x) & (x < edges[1:] + width)
    return float(np.max(np.where(near, weights / np.diff(edges), 0.0)))


def resample_literally(
    edges: np.ndarray, weights: np.ndarray, n: int, dilation: float, anneal: float, jitter: float = 0.5
) -> np.ndarray:
    """New edges [n + 1] from edges [m + 1] and weights [m] of a ray; `jitter` in [0, 1) shifts all centres."""
    if dilation > 0:
        cuts = np.clip(np.sort(np.concatenate([edges, edges[:-1] - dilation, edges[1:] + dilation])), 0, 1)
        middle = 0.5 * (cuts[1:] + cuts[:-1])
        mass = np.array([height_at(edges, weights, x, dilation) for x in middle]) * np.diff(cuts)
        mass /= mass.sum()
        edges, weights = cuts[1:-1], mass[1:-1]
    mass = np.where(np.diff(edges) > 0, weights**anneal, 0.0)
    cdf = np.concatenate([[0.0], np.cumsum(mass / mass.sum())])
    centre = np.interp((np.arange(n) + jitter) / n, cdf, edges)
    middle = (centre[1:] + centre[:-1]) / 2
    first, last = max(0.0, 2 * centre[0] - middle[0]), min(1.0, 2 * centre[-1] - middle[-1])
    return np.concatenate([[first], middle, [last]])
