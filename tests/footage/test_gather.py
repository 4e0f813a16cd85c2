"""What a path is, and who gathers it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lightfold.errors import CaptureError
from lightfold.footage import gather as module
from lightfold.footage.gather import gather, videos_in


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Who was asked to gather what."""
    calls: list[tuple[str, Any]] = []

    def stand_in(kind: str) -> Any:
        def note(what: Any, *_: Any) -> None:
            calls.append((kind, what))

        return note

    monkeypatch.setattr(module, "gather_photos", stand_in("photos"))
    monkeypatch.setattr(module, "gather_videos", stand_in("video"))
    return calls


def test_photos_win_over_a_video_beside_them(tmp_path: Path, asked: list[tuple[str, Any]]) -> None:
    (tmp_path / "clip.MP4").touch()
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg")
    gather(tmp_path, tmp_path / "out")
    assert asked == [("photos", tmp_path)]


def test_a_video_and_a_folder_that_holds_one(tmp_path: Path, asked: list[tuple[str, Any]]) -> None:
    clip = tmp_path / "mein Gang über die Brücke.mov"
    clip.touch()
    (tmp_path / "._hidden.mov").touch()
    gather(clip, tmp_path / "out")
    gather(tmp_path, tmp_path / "out")
    assert asked == [("video", [clip]), ("video", [clip])]


def test_an_empty_folder_goes_to_photos_which_have_the_words(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="holds no pictures"):
        gather(tmp_path, tmp_path / "out")


def test_several_videos_are_of_one_place_and_in_their_order(tmp_path: Path, asked: list[tuple[str, Any]]) -> None:
    for name in ("walk_10.mp4", "walk_9.mp4"):
        (tmp_path / name).touch()
    assert [path.name for path in videos_in(tmp_path)] == ["walk_9.mp4", "walk_10.mp4"]
    gather(tmp_path, tmp_path / "out")
    assert asked == [("video", [tmp_path / "walk_9.mp4", tmp_path / "walk_10.mp4"])]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="nothing at"):
        gather(tmp_path / "gone", tmp_path / "out")
