"""lightfold poses, from words to exit codes. The engine is stood in for where its answer does not matter."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lightfold.cli import main
from lightfold.cli import poses as verb
from lightfold.errors import CaptureError
from lightfold.footage import gathered
from lightfold.footage.shots import Footage, Shot


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Stand-ins for every stage, and a record of what they were called with."""
    seen: dict[str, object] = {}
    quality = SimpleNamespace(verdict="good")

    def gather(source, out, photos, video, progress):
        seen.update(source=source, out=out, photos=photos, video=video)
        progress("reading photos", 1, 2)
        return Footage(out, "photos", False, (Shot("a.jpg", "a.jpg", 10, 10),))

    def solve(footage, config, progress):
        seen.update(footage=footage, config=config)
        progress("features", 1, 1)
        return SimpleNamespace(notes=("The walk closes.",))

    def write_quality(quality, folder):
        seen.update(report=folder)
        return folder / "poses.html"

    monkeypatch.setattr(verb, "gather", gather)
    monkeypatch.setattr(verb, "solve", solve)
    monkeypatch.setattr(verb, "write_capture", lambda footage, solution: footage.root / "transforms.json")
    monkeypatch.setattr(verb, "assess", lambda footage, solution: quality)
    monkeypatch.setattr(verb, "rows", lambda quality: [("verdict", quality.verdict)])
    monkeypatch.setattr(verb, "write_quality", write_quality)
    monkeypatch.chdir(tmp_path)
    return seen, quality


def test_good_poses_end_with_the_next_command(stages, tmp_path, capsys):
    assert main(["poses", "my walk", "--max-side", "800"]) == 0
    seen, _ = stages
    assert seen["out"] == Path("captures/my walk") and seen["config"].max_side == 800
    assert seen["config"].threads >= 1
    out = capsys.readouterr()
    assert "lightfold run captures" in out.out and "poses.html" in out.out
    assert "The walk closes." in out.err


def test_bad_poses_exit_with_two_and_name_the_way_past(stages, tmp_path, capsys):
    stages[1].verdict = "bad"
    assert main(["poses", "walk", "--out", str(tmp_path / "cap")]) == 2
    out = capsys.readouterr()
    assert "not to be trained on" in out.err and "lightfold train" in out.err
    assert "lightfold run" not in out.out
    assert stages[0]["report"] == tmp_path / "cap"


def test_a_capture_made_before_is_not_gathered_again(stages, tmp_path):
    footage = Footage(tmp_path / "cap", "photos", True, (Shot("a.jpg", "a.jpg", 10, 10),))
    (tmp_path / "cap").mkdir()
    footage.save()
    assert main(["poses", str(tmp_path / "cap"), "--from-stage", "mapping"]) == 0
    seen, _ = stages
    assert "source" not in seen and seen["footage"] == footage
    assert seen["config"].from_stage == "mapping"


def test_an_interrupt_says_how_to_go_on(stages, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(verb, "solve", interrupted)
    assert main(["poses", "walk"]) == 130
    assert "lightfold poses walk --out" in capsys.readouterr().err


def test_no_solution_is_one_sentence(stages, monkeypatch, capsys):
    def fails(*_):
        raise CaptureError("No two pictures show the same thing.")

    monkeypatch.setattr(verb, "solve", fails)
    assert main(["poses", "walk"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "No two pictures show the same thing."


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "lightfold poses FOOTAGE"),
        (["x", "--max-sides", "3"], "--max-side"),
        (["x", "--max-side", "3"], "max_side"),
        (["x", "--lens", "WIDE"], "lens"),
    ],
)
def test_wrong_words_get_a_sentence(words, sentence, capsys):
    assert main(["poses", *words]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_photos_become_a_capture_that_opens(shared_data, tmp_path, capsys):
    """The castle of Sceaux: 11 photos, all found, with a report."""
    from lightfold.formats import open_capture

    assert main(["poses", str(shared_data / "sceaux_castle"), "--out", str(tmp_path / "castle")]) == 0
    capture = open_capture(tmp_path / "castle", "transforms")
    assert len(capture.frames) == 11 and capture.points is not None and len(capture.points) > 500
    assert {path.name for path in (tmp_path / "castle").iterdir()} >= {
        "poses.html",
        "poses.json",
        "footage.json",
        "colmap",
    }


def test_what_lacks_poses(tmp_path: Path) -> None:
    """Photos, videos, and pictures that only gathering can read; not what is no footage at all."""
    for folder, name in (("raw", "a.CR3"), ("clip", "b.mp4")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
        assert verb.lacks_poses(tmp_path / folder, "auto")
    assert verb.lacks_poses(tmp_path / "clip" / "b.mp4", "auto")
    assert not verb.lacks_poses(tmp_path / "clip" / "b.mp4", "colmap")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CaptureError, match="is empty"):
        verb.lacks_poses(tmp_path / "empty", "auto")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with pytest.raises(CaptureError, match="holds no photos, no video"):
        verb.lacks_poses(tmp_path / "notes", "auto")


def test_footage_of_the_same_name_gets_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture is never written over by other footage, and is found again by its own."""
    monkeypatch.chdir(tmp_path)
    first, second = tmp_path / "a" / "walk", tmp_path / "b" / "walk"
    for folder in (first, second):
        (folder / "images").mkdir(parents=True)
    assert verb.capture_folder(first) == Path("captures/walk")
    gathered.mark(Path("captures/walk"), [first / "images"], "photos 1")
    assert verb.capture_folder(first) == verb.capture_folder(first / "images") == Path("captures/walk")
    assert verb.capture_folder(second) == Path("captures/walk-2")
    with pytest.raises(CaptureError, match="is the capture of"):
        gathered.refuse_foreign(Path("captures/walk"), [second])
