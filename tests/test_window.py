"""The moving choice of views: even, complete, and a function of the seed alone."""

from __future__ import annotations

import math
from collections import Counter

import torch

from lightfold.methods.base import earlier, step_generator
from lightfold.window import CYCLE, Window


def window(views: int = 40, pixels: int = 10, share: float = 0.25) -> Window:
    size = torch.arange(views) % 3 + pixels
    begin = size.cumsum(0) - size
    return Window(torch.arange(views), begin, size, math.ceil(share * int(size.sum())))


def views_of(numbers: torch.Tensor, views: int = 40, pixels: int = 10) -> torch.Tensor:
    size = torch.arange(views) % 3 + pixels
    return torch.searchsorted(size.cumsum(0), numbers, right=True)


def test_a_batch_comes_from_the_window_and_the_cycle_from_every_view_as_often() -> None:
    chosen = window()
    assert chosen.count == 10
    seen: Counter[int] = Counter()
    for seed in range(5, 5 + CYCLE, CYCLE // 40):
        drawn = views_of(chosen.draw(4000, torch.Generator().manual_seed(seed)))
        assert len(drawn.unique()) == 10
        seen.update(drawn.tolist())
    assert len(seen) == 40
    weight = torch.tensor([seen[view] / (view % 3 + 10) for view in range(40)])
    assert float(weight.max() / weight.min()) < 1.25


def test_pixels_of_a_window_are_drawn_evenly() -> None:
    drawn = window(views=6, pixels=5, share=1.0).draw(60_000, torch.Generator().manual_seed(3))
    counts = torch.bincount(drawn, minlength=36).double()
    assert len(counts) == 36
    assert float((counts / counts.mean() - 1).abs().max()) < 0.12


def test_the_seed_decides_and_steps_move_it_on() -> None:
    chosen = window()
    for step in (0, 77, 123_456):
        first = chosen.draw(500, step_generator(7, step))
        assert torch.equal(first, window().draw(500, step_generator(7, step)))
    places = [chosen.first(step_generator(7, step).initial_seed()) for step in range(0, CYCLE, 64)]
    moves = {(after - before) % 40 for before, after in zip(places, places[1:], strict=False)}
    assert moves == {0, 1} and set(places) == set(range(40))
    # What a method draws ahead, with a generator of its own, moves on as evenly.
    ahead = [chosen.first(earlier(step_generator(7, step), 2**31).initial_seed()) for step in range(0, CYCLE, 64)]
    assert {(after - before) % 40 for before, after in zip(ahead, ahead[1:], strict=False)} == {0, 1}


def test_views_are_named_before_they_enter_and_once() -> None:
    chosen, known, named = window(), set[int](), Counter[int]()
    for seed in range(0, CYCLE, 32):
        named.update(chosen.entering(seed))
        drawn = set(views_of(chosen.draw(2000, torch.Generator().manual_seed(seed))).tolist())
        known = known or drawn
        assert drawn <= known | set(named)
    assert set(named.values()) == {1}


def test_a_jump_names_nothing_and_a_window_has_a_view() -> None:
    chosen = window()
    chosen.entering(0)
    assert chosen.entering(CYCLE // 2) == []
    assert window(share=0.0).count == 1 and window(share=5.0).count == 40
