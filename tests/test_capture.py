"""Capture: choosing frames keeps everything else consistent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightfold.cameras import Camera, Lens
from lightfold.capture import Capture, Frame, Points


def camera() -> Camera:
    pose = torch.eye(4, dtype=torch.float64)[:3]
    return Camera(pose, torch.tensor([5.0, 5.0, 4.0, 3.0]), torch.zeros(0), 8, 6, Lens.PINHOLE)


def capture() -> Capture:
    """Frames b and d have poses; point 0 is seen by a, b and d, point 1 by d."""
    frames = tuple(Frame(Path(f"{n}.png"), camera() if n in "bd" else None, f"{n}.png") for n in "abcd")
    tracks = (torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 3, 3]))
    points = Points(torch.zeros(2, 3, dtype=torch.float64), tracks=tracks)
    return Capture(Path("."), "test", frames, points, notes=("kept",))


def test_posed_drops_frames_without_camera_and_renumbers_tracks() -> None:
    posed = capture().posed()
    assert [frame.name for frame in posed.frames] == ["b.png", "d.png"]
    assert posed.notes == ("kept",)
    assert posed.points is not None and posed.points.tracks is not None
    assert posed.points.tracks[0].tolist() == [0, 0, 1]
    assert posed.points.tracks[1].tolist() == [0, 1, 1]


def test_select_keeps_the_given_order() -> None:
    chosen = capture().select([3, 0])
    assert [frame.name for frame in chosen.frames] == ["d.png", "a.png"]
    assert chosen.points is not None and chosen.points.tracks is not None
    seen = set(zip(chosen.points.tracks[0].tolist(), chosen.points.tracks[1].tolist(), strict=True))
    assert seen == {(0, 0), (0, 1), (1, 0)}


def test_select_of_everything_is_the_identity_and_of_nothing_is_empty() -> None:
    full = capture()
    same = full.select(range(len(full)))
    assert same.frames == full.frames
    assert same.points is not None and same.points.tracks is not None
    assert same.points.tracks[1].tolist() == [0, 1, 3, 3]
    none = full.select([])
    assert len(none) == 0
    assert none.points is not None and none.points.tracks is not None and len(none.points.tracks[0]) == 0


@pytest.mark.parametrize("indices", [[4], [-1], [1, 1]])
def test_select_refuses_indices_outside_or_given_twice(indices: list[int]) -> None:
    with pytest.raises(ValueError, match=r"indices: expected distinct numbers in 0\.\.3"):
        capture().select(indices)


def test_points_have_a_length() -> None:
    assert len(Points(torch.zeros(5, 3, dtype=torch.float64))) == 5


def test_identity_is_the_default_frame_of_origin() -> None:
    moved = capture().original_from_capture.apply(torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64))
    assert moved.tolist() == [[1.0, 2.0, 3.0]]
