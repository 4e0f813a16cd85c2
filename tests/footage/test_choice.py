"""Choosing frames, on curves whose right answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightfold.footage.choice import (
    BLURRED,
    CLOSEST,
    LEAST_CHANGE,
    choose,
    default_count,
    positions,
    relative_sharpness,
)

RATE = 30


def seconds(frames: int) -> np.ndarray:
    return np.arange(frames) / RATE


def test_steady_motion_gives_even_spacing() -> None:
    time = seconds(600)
    chosen = choose(time, np.ones(600), 0.1 * time, 50)
    gaps = np.diff(chosen.indices)
    assert len(chosen.indices) == 50
    assert chosen.indices[0] == 0 and chosen.indices[-1] == 599
    assert gaps.min() >= 12 and gaps.max() <= 13
    assert not chosen.blurred.any()


def test_spacing_follows_the_view_and_not_the_clock() -> None:
    time = seconds(600)
    position = np.where(time < 10, 0.02 * time, 0.2 + 0.18 * (time - 10))
    indices = choose(time, np.ones(600), position, 41).indices
    # A tenth of the way is in the first half of the time.
    assert abs((indices < 300).sum() - 4) <= 1
    assert np.diff(position[indices]).max() < 0.06


def test_standing_still_gives_one_frame() -> None:
    time = seconds(300)
    position = np.clip(time - 2, 0, None) - np.clip(time - 4, 0, None) + np.clip(time - 8, 0, None)  # rests twice
    chosen = choose(time, np.ones(300), position, 30)
    for start, end in ((0, 2), (4, 8)):
        assert ((time[chosen.indices] >= start) & (time[chosen.indices] <= end)).sum() <= 1
    assert chosen.repeated[time < 2].sum() == (time < 2).sum() - 1
    assert len(chosen.indices) >= 29


def test_a_camera_that_never_moves_gives_one_frame() -> None:
    chosen = choose(seconds(100), np.ones(100), np.zeros(100), 20)
    assert len(chosen.indices) == 1
    assert chosen.repeated.sum() == 99


def test_fewer_than_asked_when_the_rest_would_repeat() -> None:
    time = seconds(100)
    position = time / time[-1] * 10 * LEAST_CHANGE
    chosen = choose(time, np.ones(100), position, 80)
    assert 8 <= len(chosen.indices) <= 12
    assert np.diff(position[chosen.indices]).min() >= CLOSEST * LEAST_CHANGE


def test_blurred_stretches_are_left_out_and_marked() -> None:
    time = seconds(600)
    sharpness = np.full(600, 0.6)
    sharpness[100:110] = 0.3
    sharpness[400:415] = 0.35
    chosen = choose(time, sharpness, 0.1 * time, 100)
    soft = sharpness < 0.5
    assert not soft[chosen.indices].any()
    assert np.array_equal(chosen.blurred, soft)
    assert len(chosen.indices) == 100


def test_blur_that_lasts_is_found_by_what_is_usual() -> None:
    time = seconds(900)
    sharpness = np.full(900, 0.6)
    sharpness[300:450] = 0.1  # five seconds
    assert np.array_equal(relative_sharpness(time, sharpness) < BLURRED, sharpness < 0.5)


def test_the_sharpest_of_each_slot_is_taken() -> None:
    time = seconds(600)
    sharpness = np.full(600, 0.55)
    best = np.arange(3, 600, 12)
    sharpness[best] = 0.65
    chosen = choose(time, sharpness, time / time[-1] * 599, 51)
    assert np.isin(chosen.indices, best).mean() > 0.9


def test_a_cut_does_not_eat_the_places_of_the_rest() -> None:
    time = seconds(200)
    position = 0.5 * time + np.where(time > 3, 100.0, 0.0)
    chosen = choose(time, np.ones(200), position, 40)
    assert len(chosen.indices) == 40
    assert np.diff(chosen.indices).max() <= 8
    # Frames on both sides of the cut, each close to it.
    assert np.abs(chosen.indices - 90.5).min() < 8


def test_pictures_of_nothing_are_never_chosen() -> None:
    time = seconds(90)
    sharpness = np.where(time < 1, 0.0, 0.5)
    assert choose(time, sharpness, time, 10).indices.min() >= 30
    nothing = choose(time, np.zeros(90), time, 10)
    assert len(nothing.indices) == 0 and nothing.blurred.all()


def test_one_frame_is_the_sharpest() -> None:
    sharpness = np.full(60, 0.5)
    sharpness[40] = 0.55
    assert choose(seconds(60), sharpness, seconds(60), 1).indices.tolist() == [40]


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 120), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_whatever_the_curves(frames: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    time = np.cumsum(rng.exponential(1 / RATE, frames))
    steps = rng.exponential(0.02, frames) * rng.choice([0.0, 0.01, 1.0, 50.0], frames)
    sharpness = rng.uniform(0, 1, frames) * rng.choice([0.0, 1.0], frames, p=[0.1, 0.9])
    position = positions(time, steps)
    chosen = choose(time, sharpness, position, count)
    assert len(chosen.indices) <= count
    assert (np.diff(chosen.indices) > 0).all()
    assert not chosen.blurred[chosen.indices].any()
    assert not (chosen.blurred & chosen.repeated).any()
    assert (np.diff(position[chosen.indices]) >= (CLOSEST - 1e-9) * LEAST_CHANGE).all()
    again = choose(time, sharpness, position, count)
    assert np.array_equal(chosen.indices, again.indices)
    # Up to the places lost at borders of slots, the count is reached where there is enough to show.
    if chosen.spacing > LEAST_CHANGE and count > 1:
        assert len(chosen.indices) >= 0.6 * count


def test_positions_fill_what_is_unknown_with_the_speed_around() -> None:
    time = seconds(31)
    motion = np.full(31, 0.01)
    motion[10:20] = np.nan
    assert positions(time, motion) == pytest.approx(0.3 * time)
    unknown = positions(time, np.full(31, np.nan))
    assert (np.diff(unknown) > 0).all()  # spread by time rather than thrown away
    assert positions(time[:1], motion[:1]).tolist() == [0.0]


def test_default_counts() -> None:
    counts = [default_count(change) for change in np.linspace(0, 200, 500)]
    assert counts[0] == 100 and counts[-1] == 400
    assert counts == sorted(counts)
    assert default_count(9.0) == 150


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="one length"):
        choose(seconds(3), np.ones(4), np.zeros(3), 2)
    with pytest.raises(ValueError, match="count"):
        choose(seconds(3), np.ones(3), np.zeros(3), 0)
