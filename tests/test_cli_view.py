"""lightfold view: what it refuses, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lightfold.cli import view
from lightfold.errors import CaptureError, ConfigError, LightfoldError


@pytest.mark.parametrize("words", [[], ["--port", "7007"], ["x", "--port", "70000"], ["x", "--host", " "]])
def test_what_cannot_be_served_is_said_at_once(words: list[str]) -> None:
    with pytest.raises(ConfigError):
        view.main(words)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="There is nothing at"):
        view.main([str(tmp_path / "nowhere")])


def test_pictures_without_poses_have_nothing_to_be_shown(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (32, 24), (i * 40, 0, 0)).save(tmp_path / f"{i}.jpg")
    with pytest.raises(LightfoldError, match="lightfold poses"):
        view.main([str(tmp_path)])


def test_a_page_for_others_says_who_can_reach_it(capsys: pytest.CaptureFixture[str]) -> None:
    class Gated:
        gate = object()
        address = "http://here:1/?token=secret"

    view.announce(Gated())  # type: ignore[arg-type]
    said = capsys.readouterr()
    assert "http://here:1/?token=secret" in said.out and "not encrypted" in said.err
