"""`lightfold run` on small real footage: stopped at every stage in every way, and given what cannot work."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from textured_room import cameras, render

import lightfold
from lightfold import cli
from lightfold.viewer.jobs import MARK, PROGRESS_LINES

OPTIONS = [
    "--method",
    "nerf:tiny",
    "--steps",
    "40",
    "--threads",
    "1",
    "--video-seconds",
    "0.5",
    "--scene.downscale",
    "8",
]
OPTIONS += ["--model.width", "8", "--model.depth", "2", "--model.rays", "16", "--bad-poses"]


def room(folder: Path, count: int = 8) -> Path:
    folder.mkdir(parents=True)
    for i, camera in enumerate(cameras(count)):
        Image.fromarray(render(camera)).save(folder / f"Bild {i}.png")
    return folder


def started(words: list[str], folder: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(lightfold.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {
        "PYTHONPATH": path,
        PROGRESS_LINES: "1",
        "LIGHTFOLD_CACHE": str(folder / "cache"),
        "PYTHONIOENCODING": "utf-8",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "lightfold", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
        # What runs in the background of a script inherits that Ctrl-C is ignored; in a terminal it is not.
        preexec_fn=None if sys.platform == "win32" else lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def heard(process: subprocess.Popen[str], until: str = "") -> list[str]:
    """Lines of standard error, up to the first that reports this stage, or all."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line.rstrip("\n"))
        if until and line.startswith(MARK) and line.endswith(f"\t{until}\n"):
            break
    return lines


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_stopped_at_every_stage_in_every_way_it_goes_on(tmp_path: Path) -> None:
    """Ctrl-C goes to the whole group, as a terminal sends it; SIGTERM and SIGKILL to the process alone."""
    room(tmp_path / "Mein Zimmer")
    words = ["run", "Mein Zimmer", *OPTIONS]
    stops = [
        ("reading photos", signal.SIGKILL),
        ("features", signal.SIGINT),
        ("matches", signal.SIGTERM),
        ("mapping", signal.SIGKILL),
        ("refinement", signal.SIGINT),
        ("writing", signal.SIGTERM),
        ("reading pictures", signal.SIGINT),
        ("training", signal.SIGTERM),
        ("scoring views", signal.SIGKILL),
        ("rendering", signal.SIGTERM),
    ]
    for stage, number in stops:
        process = started(words, tmp_path)
        before = heard(process, stage)
        assert before[-1].endswith(f"\t{stage}"), (stage, before)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        after = heard(process)
        process.wait(60)
        if number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 130, (stage, before, after)
            (last,) = [line for line in after if line.startswith("Stopped.")]
            assert "Continue with" in last or "same command goes on" in last
        for picture in (tmp_path / "captures").rglob("images/*.png"):
            with Image.open(picture) as file:
                file.load()
        for text in [*tmp_path.rglob("stages.json"), *tmp_path.rglob("eval.json"), *tmp_path.rglob("run.json")]:
            json.loads(text.read_text(encoding="utf-8"))
        assert not list(tmp_path.rglob("*.mp4"))
    process = started(words, tmp_path)
    lines = heard(process)
    assert process.wait(120) == 0, lines
    done = [line for line in lines if line.endswith("\tfeatures")]
    assert f"{MARK}8\t8\tfeatures" in done and len(done) <= 2, "features are not looked for again"
    assert not [line for line in lines if line.endswith("\treading photos")]
    (run,) = (tmp_path / "runs" / "Mein Zimmer").iterdir()
    assert {"eval.json", "report.html", "renders"} <= {path.name for path in run.iterdir()}
    assert [path.name for path in run.glob("renders/*")] == ["video.mp4"]
    assert not list(tmp_path.rglob(".at-work"))


def blurred(folder: Path) -> None:
    for i, camera in enumerate(cameras(4)):
        Image.fromarray(render(camera)).filter(ImageFilter.GaussianBlur(25)).save(folder / f"{i}.png")


def identical(folder: Path) -> None:
    for i in range(4):
        # Other bytes, the same pixels: copies of a file are found at once.
        Image.fromarray(render(cameras()[0])).save(folder / f"{i}.png", compress_level=i)


def unrelated(folder: Path) -> None:
    for i in range(4):
        Image.fromarray(render(cameras()[i], seed=i + 1)).save(folder / f"{i}.png")


def two(folder: Path) -> None:
    for i in range(2):
        Image.fromarray(render(cameras()[i])).save(folder / f"{i}.png")


def one(folder: Path) -> None:
    Image.fromarray(render(cameras()[0])).save(folder / "only.png")


def words(folder: Path) -> None:
    (folder / "letter.jpg").write_text("Dear Sir or Madam")


def cut(folder: Path) -> None:
    for i in range(3):
        Image.fromarray(render(cameras()[i])).save(folder / f"{i}.jpg")
        (folder / f"{i}.jpg").write_bytes((folder / f"{i}.jpg").read_bytes()[:3000])


def dots(folder: Path) -> None:
    for i in range(3):
        Image.fromarray(np.full((1, 1, 3), i, np.uint8)).save(folder / f"{i}.png")


def not_a_film(folder: Path) -> None:
    (folder / "film.mp4").write_bytes(b"\0" * 5000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: None, "is empty"),
        (one, "Only one of the 1 pictures"),
        (two, "2 pictures"),
        (identical, "one spot"),
        (blurred, "no detail|little detail"),
        (unrelated, "No two"),
        (words, "cannot be read|can be used|not a picture"),
        (cut, "ends too early"),
        (dots, "only 1 x 1 pixels|holds no usable|fewer than"),
        (not_a_film, "not a video|not videos|cannot be used"),
    ],
)
def test_footage_that_cannot_work_is_one_sentence(
    make: object, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "Fotos für heute"
    folder.mkdir()
    make(folder)  # type: ignore[operator]
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert cli.main(["run", str(folder), *OPTIONS]) == 2
    shown = capsys.readouterr()
    last = shown.err.strip().splitlines()[-1]
    assert re.search(sentence, last), shown.err
    assert "Traceback" not in shown.err + shown.out and "should not have" not in shown.err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert not (tmp_path / "runs").exists() and not list(tmp_path.rglob(".at-work"))
