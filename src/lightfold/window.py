"""Which views pixels are drawn from while the pictures are larger than memory: a window that moves over all of them.

Random pixels of a file larger than memory are random reads of the disk, one for nearly every ray, which takes many
times as long as the step they are for. So a batch is drawn from as many views as fit into memory, which lie side by
side in a random order of all views, and this window moves on with the steps. Every view is in it equally often. Where
it stands follows from the seed of the batch's generator alone, which methods take from the step
(`methods.base.step_generator`): a resumed training draws what an unbroken one would have, and nothing is stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

CYCLE = 1 << 13
"""Steps in which the window passes over all views: a power of two, as seeds are counted modulo 2^32."""
LEAD = 1 << 5
"""Steps before its first use at which a view is read ahead; methods draw for up to half as many at once."""


class Window:
    """A moving choice of views.

    slots: [V] the views that have pixels to draw, in any numbering of the caller's; begin, size: [V] the number of each
    one's first pixel, and how many it has; most: pixels that fit into memory.
    """

    def __init__(self, slots: Tensor, begin: Tensor, size: Tensor, most: int) -> None:
        self.views = len(slots)
        order = torch.randperm(self.views, generator=torch.Generator().manual_seed(0))
        # Twice around, so that a window which reaches over the end of the order is still one piece.
        twice = torch.cat([order, order])
        self._slot, self._begin = slots[twice], begin[twice]
        self._end = torch.cat([torch.zeros(1, dtype=torch.int64), size[twice].cumsum(0)])
        share = min(most / max(int(size.sum()), 1), 1.0)
        self.count = max(1, int(share * self.views))
        self._read = -1

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        """[n] numbers of pixels, drawn evenly from those of the views in the window."""
        first = self.first(rng.initial_seed())
        low, high = int(self._end[first]), int(self._end[first + self.count])
        place = torch.randint(low, high, (n,), generator=rng)
        view = torch.searchsorted(self._end, place, right=True) - 1
        return self._begin[view] + place - self._end[view]

    def first(self, seed: int) -> int:
        """Where in the order the window begins at a seed."""
        return seed % CYCLE * self.views // CYCLE

    def entering(self, seed: int) -> list[int]:
        """Views that are about to enter and were not named before. What is drawn does not depend on it."""
        reach = self.first(seed + LEAD)
        behind = self.first(seed) if self._read < 0 else self._read
        self._read = reach
        # More than a quarter of a turn is a jump, backwards or to another training, and no step forwards.
        steps = (reach - behind) % self.views
        if steps > max(self.views // 4, 1):
            return []
        return [int(self._slot[(behind + self.count + k) % self.views]) for k in range(steps)]
