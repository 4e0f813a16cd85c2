"""cli/: verbs find their options, chain what they should, and answer everything that goes wrong with a sentence."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from lightfold import cli, devices
from lightfold.cli import arguments as argument_module
from lightfold.cli import claim, doctor, info, steps
from lightfold.cli import run as run_verb
from lightfold.cli.render import RenderArguments, video_size
from lightfold.cli.run import parse_run
from lightfold.cli.train import anchored, parse_training, run_config
from lightfold.config import TrainConfig, for_gpu, lookup
from lightfold.errors import ConfigError, LightfoldError, RunError
from lightfold.geometry import invert, look_at
from lightfold.run import Run
from lightfold.scene import SceneConfig


def model_options(**values: int) -> list[str]:
    return [word for name, value in values.items() for word in (f"--model.{name.replace('_', '-')}", str(value))]


SMALL = model_options(width=8, depth=2, rays=16, coarse_samples=4, fine_samples=4)
NGP = model_options(log2_rows=8, grid=16, grid_bounded=16, finest=64, width=16, batch=256)


@pytest.fixture(scope="session")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures of 16 x 12 around a coloured middle, with transforms.json."""
    folder = tmp_path_factory.mktemp("captures") / "ring"
    (folder / "images").mkdir(parents=True)
    frames = []
    grid = np.indices((12, 16)).transpose(1, 2, 0)
    for i in range(9):
        angle = 2 * math.pi * i / 9
        eye = torch.tensor([3 * math.cos(angle), 3 * math.sin(angle), 1.0], dtype=torch.float64)
        up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3] = invert(look_at(eye, torch.zeros(3, dtype=torch.float64), up))
        opengl = pose @ torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
        picture = np.stack([grid[..., 0] * 20, grid[..., 1] * 15, np.full((12, 16), 25 * i)], axis=-1)
        Image.fromarray(picture.astype(np.uint8)).save(folder / "images" / f"{i}.png")
        frames.append({"file_path": f"images/{i}.png", "transform_matrix": opengl.tolist()})
    intrinsics = {"fl_x": 16.0, "fl_y": 16.0, "cx": 8.0, "cy": 6.0, "w": 16, "h": 12}
    (folder / "transforms.json").write_text(json.dumps(intrinsics | {"frames": frames}))
    return folder


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTFOLD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("LIGHTFOLD_DEBUG", raising=False)


@pytest.fixture(scope="session")
def trained(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, made by the verb."""
    out = tmp_path_factory.mktemp("runs") / "ring"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTFOLD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        assert cli.main(["train", "nerf:tiny", str(capture), "--steps", "2", "--out", str(out), *SMALL]) == 0
    return out


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """Runs a verb that raises."""

    def run(error: BaseException) -> int:
        def main(words: list[str]) -> None:
            raise error

        monkeypatch.setitem(cli.VERBS, "boom", "raises")
        monkeypatch.setitem(sys.modules, "lightfold.cli.boom", SimpleNamespace(main=main))  # type: ignore[arg-type]
        return cli.main(["boom"])

    return run


def failure(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence on standard error of a command that must fail."""
    assert cli.main(words) == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err + shown.out
    return " ".join(shown.err.split())


# --- help -----------------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    """What makes `lightfold --help` answer at once, whatever the machine is doing."""
    code = (
        "import sys; from lightfold.cli import main; assert main(['--help']) == 0; "
        "print([m for m in ('torch', 'numpy', 'tyro', 'yaml', 'av') if m in sys.modules])"
    )
    path = os.pathsep.join([str(Path(cli.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=True
    )
    assert done.stdout.rstrip().endswith("[]"), done.stdout
    assert all(f"  {name} " in done.stdout for name in cli.VERBS)


@pytest.mark.parametrize("name", list(cli.VERBS))
def test_every_verb_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    assert f"usage: lightfold {name}" in capsys.readouterr().out
    assert import_module(f"lightfold.cli.{name}").__doc__.startswith(f"lightfold {name}")


def test_ways_to_ask(capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for words in ([], ["-h"], ["--help"], ["help"]):
        assert cli.main(words) == 0
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1 and "lightfold run FOOTAGE" in texts[0]
    assert cli.main(["help", "info"]) == 0
    assert "usage: lightfold info" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lightfold ")


# --- names that do not exist ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["trian", "ngp", "x"], ["'trian'", "train"]),
        (["train", "ngq", "x"], ["'ngq'", "ngp"]),
        (["train", "nerf:tiney", "x"], ["'tiney'", "nerf:tiny"]),
        (["train", "nerf", "x", "--minuts", "5"], ["--minuts", "--minutes"]),
        (["train", "nerf", "x", "--minuts=5"], ["--minuts", "--minutes"]),
        (["train", "nerf", "x", "--downscale", "5"], ["--downscale", "--scene.downscale"]),
        (["train", "nerf", "x", "--model.widht", "5"], ["--model.widht", "--model.width"]),
        (["train", "ngp", "x", "--model.depth", "5"], ["--model.depth"]),
        (["train", "nerf", "x", "y"], ["'y'", "too many"]),
        (["train"], ["lightfold train ngp CAPTURE"]),
        (["train", "nerf"], ["lightfold train nerf CAPTURE"]),
        (["train", "nerf", "x", "--steps", "0"], ["'steps'", "at least 1"]),
        (["train", "nerf", "x", "--format", "mp3"], ["'mp3'", "colmap"]),
        (["run"], ["lightfold run FOOTAGE"]),
        (["run", "x", "--method", "nert"], ["'nert'", "nerf"]),
        (["eval"], ["lightfold eval RUN"]),
        (["eval", "nowhere"], ["nowhere"]),
        (["render"], ["lightfold render RUN"]),
        (["render", "x", "--stils"], ["--stils", "--stills"]),
        (["render", "x", "--frames", "0"], ["--frames"]),
        (["render", "x", "--out", "film.avi"], ["film.avi", ".mp4"]),
        (["info"], ["lightfold info PATH"]),
        (["info", "nowhere"], ["nothing at nowhere"]),
    ],
    ids=" ".join,
)
def test_what_does_not_exist_is_named_with_its_nearest(
    words: list[str],
    named: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    message = failure(words, capsys)
    assert all(word in message for word in named), message
    assert not list(tmp_path.iterdir())


def test_a_value_of_the_wrong_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--minutes" in failure(["train", "nerf", "x", "--minutes", "soon"], capsys)


def test_a_capture_without_a_method(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"lightfold train ngp {capture}" in failure(["train", str(capture)], capsys)


# --- how things end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (LightfoldError("The lens cap was on."), 2, "The lens cap was on."),
        (KeyboardInterrupt(), 130, "Stopped."),
        (steps.Stopped("Stopped. Continue with: lightfold train runs/x"), 130, "lightfold train runs/x"),
        (MemoryError(), 2, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x/a"), 2, "disk is full while runs/x/a"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 2, "/root/x may not be read"),
        (SystemExit(3), 3, ""),
        (SystemExit(None), 0, ""),
    ],
)
def test_every_end_has_words_and_a_code(
    verb: Callable[[BaseException], int],
    error: BaseException,
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert verb(error) == code
    shown = capsys.readouterr()
    assert words in " ".join(shown.err.split()) and "Traceback" not in shown.err and shown.out == ""


def test_a_bug_is_logged_and_the_log_named(
    verb: Callable[[BaseException], int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert verb(ZeroDivisionError("one by none")) == 2
    shown = capsys.readouterr().err
    (log,) = tmp_path.iterdir()
    assert "ZeroDivisionError: one by none" in shown and log.name in shown and "Traceback" not in shown
    assert "Traceback" in log.read_text() and "one by none" in log.read_text()


def test_a_bug_in_a_run_is_in_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(words: list[str]) -> None:
        cli.console.keep_log(tmp_path / "log.txt")
        logging.getLogger("lightfold").info("begun")
        raise ZeroDivisionError

    monkeypatch.setitem(cli.VERBS, "boom", "raises")
    monkeypatch.setitem(sys.modules, "lightfold.cli.boom", SimpleNamespace(main=main))  # type: ignore[arg-type]
    assert cli.main(["boom"]) == 2
    assert str(tmp_path / "log.txt") in capsys.readouterr().err
    text = (tmp_path / "log.txt").read_text()
    assert "begun" in text and "ZeroDivisionError" in text
    assert not [h for h in logging.getLogger("lightfold").handlers if isinstance(h, logging.FileHandler)]


def test_who_debugs_gets_the_traceback(verb: Callable[[BaseException], int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTFOLD_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        verb(ZeroDivisionError())


def test_warnings_of_the_package_are_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def main(words: list[str]) -> None:
        logging.getLogger("lightfold.images").warning("The cache %s is damaged.", "x[1]")

    monkeypatch.setitem(cli.VERBS, "warn", "warns")
    monkeypatch.setitem(sys.modules, "lightfold.cli.warn", SimpleNamespace(main=main))  # type: ignore[arg-type]
    assert cli.main(["warn"]) == 0
    assert "The cache x[1] is damaged." in capsys.readouterr().err


# --- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "nerf:tiny fox --minutes 5 --model.width 32 --scene.downscale 4 --out runs/x",
        "--minutes 5 --model.width 32 nerf:tiny fox --scene.downscale=4 --out runs/x",
        "--out runs/x --model.width 32 --minutes=5 --scene.downscale 4 nerf:tiny fox",
    ],
)
def test_options_may_stand_anywhere(words: str) -> None:
    config = run_config(parse_training(words.split()))
    assert config.method == "nerf:tiny" and Path(config.capture) == Path("fox").resolve()
    assert (config.model.width, config.model.steps) == (32, 500)
    assert (config.train.minutes, config.scene.downscale) == (5.0, 4.0)
    assert parse_training(words.split()).out == Path("runs/x")


def test_a_method_name_as_the_value_of_an_option() -> None:
    found = parse_training(["--out", "ngp", "nerf:tiny", "fox"])
    assert found.what == "nerf:tiny" and found.out == Path("ngp") and found.model.steps == 500


def test_run_takes_the_options_of_its_method() -> None:
    found = parse_run(["fox", "--method", "nerf:tiny", "--model.width", "24", "--minutes", "1"])
    assert (found.model.width, found.train.minutes, found.footage) == (24, 1.0, "fox")
    assert parse_run(["fox", "--method=nerf"]).model.width == 128


def test_all_options_are_known_to_the_suggestions() -> None:
    names = argument_module.option_names(parse_training(["nerf", "fox"]), flat=("train",))
    assert {"--minutes", "--out", "--scene.max-side", "--model.no-softplus-density", "--help"} <= set(names)
    assert "--train.minutes" not in names


def test_a_list_of_test_pictures_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        anchored(SceneConfig(split="file:names.txt")).split == f"file:{(tmp_path / 'names.txt').resolve().as_posix()}"
    )
    assert anchored(SceneConfig(split="every:5")) == SceneConfig(split="every:5")


# --- train and go on ------------------------------------------------------------------------------------------------


def test_a_run_is_made_beside_others(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        assert cli.main(["train", "nerf:tiny", str(capture), "--steps", "1", *SMALL]) == 0
        assert (tmp_path / "runs" / "ring" / f"nerf-tiny-{number}" / "run.json").is_file()
    shown = capsys.readouterr().out
    assert "lightfold eval" in shown and "nerf-tiny-2" in shown


def test_a_trained_run_is_whole(trained: Path, capture: Path) -> None:
    run = Run.open(trained)
    assert run.steps()[-1] == 2 and run.config.capture == str(capture.resolve())
    assert len(run.info.test) == 2 and len(run.info.train) == 7
    assert run.method().render(run.info.cameras[0]).rgb.shape == (12, 16, 3)
    assert [row["step"] for row in run.metrics()][-1] == 2


@pytest.mark.parametrize(
    ("method", "options", "stops", "last"), [("nerf:tiny", SMALL, (2,), 4), ("ngp", NGP, (5, 21, 38), 50)]
)
def test_a_training_stopped_and_continued_is_the_same_as_one_in_one_go(
    capture: Path, tmp_path: Path, method: str, options: list[str], stops: tuple[int, ...], last: int
) -> None:
    """Bit for bit, weights and moments, wherever Ctrl-C came."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    base = ["train", method, str(capture), "--threads", "1", "--steps", str(last), *options]
    assert cli.main([*base, "--out", str(once)]) == 0
    for i, stop in enumerate(stops):
        with pytest.MonkeyPatch.context() as patch:
            _interrupt_at(patch, method, stop)
            assert cli.main(["train", str(twice)] if i else [*base, "--out", str(twice)]) == 130
        assert Run.open(twice).steps()[-1] == stop
    assert cli.main(["train", str(twice)]) == 0
    one, two = Run.open(once).checkpoint(last, resume=True), Run.open(twice).checkpoint(last, resume=True)
    assert one is not None and two is not None and one.resume is not None and two.resume is not None
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
    assert all(torch.equal(one.resume[name], two.resume[name]) for name in one.resume if name != "seconds")


def _interrupt_at(patch: pytest.MonkeyPatch, method: str, step: int) -> None:
    """Ctrl-C in the middle of a step."""
    cls = lookup(method)[0]
    loss = cls.loss

    def stopped(self: object, scene: object, number: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
        if number == step:
            raise KeyboardInterrupt
        return loss(self, scene, number, rng)  # type: ignore[arg-type]

    patch.setattr(cls, "loss", stopped)


def test_a_stop_says_how_to_go_on(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _interrupt_at(monkeypatch, "nerf:tiny", 1)
    out = tmp_path / "x"
    assert cli.main(["train", "nerf:tiny", str(capture), "--steps", "3", "--out", str(out), *SMALL]) == 130
    assert f"lightfold train {out}" in " ".join(capsys.readouterr().err.split())


def test_the_same_command_again_goes_on(trained: Path, capture: Path) -> None:
    again = ["train", "nerf:tiny", str(capture), "--out", str(trained), *SMALL]
    before = (trained / "checkpoints").stat().st_mtime_ns
    assert cli.main([*again, "--steps", "2"]) == 0
    assert Run.open(trained).steps()[-1] == 2 and (trained / "checkpoints").stat().st_mtime_ns == before


def test_a_run_is_trained_by_one_program(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (run / claim.MARK).write_text(f"{other.pid} {psutil.Process(other.pid).create_time()}")
        assert f"process {other.pid}, is at work in" in failure(["train", str(run), "--steps", "1000"], capsys)
        other.communicate(b"\n")


def test_a_run_keeps_its_options(trained: Path, capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "nerf:tiny", str(capture), "--out", str(trained), "--model.width", "16"]
    assert "another model" in failure(words, capsys)
    assert "--scene cannot change" in failure(["train", str(trained), "--scene.downscale", "2"], capsys)
    assert "seed" in failure(["train", str(trained), "--seed", "4"], capsys)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (TrainConfig(), (2, None, 60.0)),
        (TrainConfig(steps=9), (9, None, 60.0)),
        (TrainConfig(minutes=3.0), (None, 3.0, 60.0)),
        (TrainConfig(eval_every=5.0), (2, None, 5.0)),
    ],
)
def test_another_budget_replaces_the_old_one(trained: Path, given: TrainConfig, wanted: tuple[object, ...]) -> None:
    run = Run.open(trained)
    before = run.config.train
    try:
        steps.budget(run, given)
        now = Run.open(trained).config.train
        assert (now.steps, now.minutes, now.eval_every) == wanted
    finally:
        run.reconfigure(before)


def test_pictures_without_poses(tmp_path: Path, capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for file in (capture / "images").iterdir():
        (photos / file.name).write_bytes(file.read_bytes())
    message = failure(["train", "ngp", str(photos), "--out", str(tmp_path / "out")], capsys)
    assert "9 pictures without camera poses" in message and f"lightfold poses {photos}" in message
    message = failure(["run", str(photos), "--out", str(tmp_path / "out"), "--capture", str(tmp_path / "made")], capsys)
    assert "16 x 12 pixels" in message
    assert not (tmp_path / "out").exists()


def test_run_finds_poses_where_there_are_none_and_trains_on_what_it_made(
    tmp_path: Path, capture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is stood in for; what it would have made is the capture with poses."""
    asked: dict[str, object] = {}

    def find_poses(source: Path, out: Path, poses: object, photos: object, video: object, accept_bad: bool) -> Path:
        asked.update(source=source, out=out, poses=poses, accept_bad=accept_bad)
        return capture

    monkeypatch.setattr(run_verb, "find_poses", find_poses)
    monkeypatch.chdir(tmp_path)
    arguments = parse_run([str(capture / "images"), "--poses.max-side", "500", "--bad-poses"])
    assert run_verb.posed(arguments, capture / "images") == capture
    assert asked["out"] == Path("captures/ring") and asked["accept_bad"] is True
    assert asked["poses"].max_side == 500  # type: ignore[attr-defined]
    asked.clear()
    assert not run_verb.lacks_poses(capture, "auto") and not asked


def test_a_name_for_folders(tmp_path: Path) -> None:
    (tmp_path / "Küche" / "images").mkdir(parents=True)
    assert steps.capture_name(tmp_path / "Küche" / "images") == "Küche"
    assert steps.capture_name(tmp_path / "Küche" / "walk.2.MOV") == "walk.2"
    (tmp_path / "Küche" / "transforms.json").touch()
    assert steps.capture_name(tmp_path / "Küche" / "transforms.json") == "Küche"


def test_moved_pictures(trained: Path, tmp_path: Path, capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.open(trained)
    data = (trained / "config.yaml").read_text()
    try:
        (trained / "config.yaml").write_text(data.replace(run.config.capture, str(tmp_path / "gone")))
        assert "--capture" in failure(["eval", str(trained)], capsys)
        with pytest.raises(RunError, match="no longer"):
            steps.scene_of(Run.open(trained))
        assert steps.scene_of(Run.open(trained), capture).info.names == run.info.names
    finally:
        (trained / "config.yaml").write_text(data)


def test_other_pictures_than_those_trained_on(trained: Path, tmp_path: Path, capture: Path) -> None:
    other = tmp_path / "other"
    (other / "images").mkdir(parents=True)
    data = json.loads((capture / "transforms.json").read_text())
    data["frames"] = data["frames"][:5]
    (other / "transforms.json").write_text(json.dumps(data))
    for i in range(5):
        (other / "images" / f"{i}.png").write_bytes((capture / "images" / f"{i}.png").read_bytes())
    with pytest.raises(RunError, match="5 views, of which 5 .* it has 9"):
        steps.scene_of(Run.open(trained), other)


# --- eval, render, run ----------------------------------------------------------------------------------------------


def test_eval_writes_scores_and_says_them(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(trained)]) == 0
    shown = capsys.readouterr().out
    result = json.loads((trained / "eval.json").read_text())
    assert result["protocol"]["step"] == 2 and result["protocol"]["split"] == "auto"
    assert f"{result['mean']['psnr']:.2f} dB" in shown and "2 (test) at 16x12" in shown
    assert (trained / "report.html").is_file()


def test_scores_of_the_same_checkpoint_are_not_taken_again(trained: Path) -> None:
    from lightfold.cli.eval import evaluate_run

    run = Run.open(trained)
    scene = steps.scene_of(run)
    evaluate_run(run, scene)
    path = trained / "eval.json"
    marked = json.loads(path.read_text()) | {"mark": 1}
    path.write_text(json.dumps(marked))
    assert evaluate_run(run, scene).get("mark") == 1
    path.write_text(path.read_text()[:50])  # a damaged file is made again
    assert evaluate_run(run, scene)["protocol"]["step"] == 2


def test_render_makes_films_and_stills(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film = tmp_path / "a.mp4"
    assert cli.main(["render", str(trained), "--path", "orbit", "--frames", "2", "--out", str(film)]) == 0
    assert film.stat().st_size > 0 and str(film) in capsys.readouterr().out
    words = ["render", str(trained), "--path", "held-out", "--outputs", "rgb", "depth", "--depth-as", "npy"]
    assert cli.main([*words, "--out", str(tmp_path / "stills")]) == 0
    assert len(list((tmp_path / "stills").iterdir())) == 4
    words = ["render", str(trained), "--stills", "--frames", "1", "--lens", "equirectangular", "--size", "16", "8"]
    assert cli.main(words) == 0
    (still,) = (trained / "renders" / "auto").iterdir()
    assert Image.open(still).size == (16, 8)


def test_render_knows_its_paths(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'orbit'" in failure(["render", str(trained), "--path", "orbitt"], capsys)
    assert "nothere.json" in failure(["render", str(trained), "--path", "nothere.json"], capsys)
    assert "no checkpoint of step 77" in failure(["render", str(trained), "--step", "77", "--frames", "1"], capsys)


def test_defaults_of_render_match_what_can_be_rendered() -> None:
    from lightfold.cli.render import OUTPUTS
    from lightfold.render import OUTPUTS as KNOWN

    assert OUTPUTS == KNOWN and RenderArguments().outputs == ("rgb",)


def test_run_chains_everything_and_does_nothing_twice(
    capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "all"
    words = ["run", str(capture), "--method", "nerf:tiny", "--out", str(out), "--steps", "1", "--video-seconds", "0.1"]
    assert cli.main([*words, *SMALL]) == 0
    shown = capsys.readouterr().out
    films = list((out / "renders").glob("*.mp4"))
    assert len(films) == 1 and str(films[0]) in shown
    for name in ("eval.json", "report.html", "log.txt"):
        assert (out / name).is_file() or name == "log.txt"
    assert "PSNR" in shown and str(out / "report.html") in shown and "lightfold render" in shown
    stamps = {file: file.stat().st_mtime_ns for file in (films[0], out / "eval.json", *(out / "checkpoints").iterdir())}
    assert cli.main(["run", str(out), "--video-seconds", "0.1"]) == 0
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    assert "scored already" in capsys.readouterr().out


@pytest.mark.parametrize("side", [480, 7, 1, 16])
def test_video_sizes_are_even_and_in_shape(trained: Path, side: int) -> None:
    width, height = video_size(Run.open(trained).info, side)
    assert width % 2 == height % 2 == 0 and 2 <= width <= 16 and abs(width * 12 / 16 - height) <= 2


# --- info -----------------------------------------------------------------------------------------------------------


def test_info_about_a_capture(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(capture)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(words in shown for words in ("pictures 9", "16x12", "PINHOLE", "healthy yes"))


def test_info_about_a_run_and_what_is_in_it(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(trained)]) == 0
    shown = capsys.readouterr().out
    assert "nerf:tiny" in shown and "step 2" in shown and "7 to train on, 2 held out" in shown
    assert cli.main(["info", str(next((trained / "checkpoints").glob("step_*2.safetensors")))]) == 0
    assert "float32" in capsys.readouterr().out
    assert cli.main(["info", str(trained / "config.yaml")]) == 0
    assert "model.width" in capsys.readouterr().out


def test_info_about_a_damaged_run(trained: Path) -> None:
    path = next((trained / "checkpoints").glob("step_*2.safetensors"))
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-9])
        _, _, troubles = info.describe(trained)
        assert len(troubles) == 1 and "damaged" in troubles[0]
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("content", ["", "x: 1", "method: ngp"])
def test_info_about_a_damaged_configuration(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ConfigError):
        info.describe(tmp_path / "config.yaml")


def test_info_about_a_capture_that_happens_to_hold_a_config(tmp_path: Path, capture: Path) -> None:
    """OpenSfM keeps a config.yaml beside its pictures; that makes no run of the folder."""
    (tmp_path / "a.png").write_bytes((capture / "images" / "0.png").read_bytes())
    (tmp_path / "config.yaml").write_text("processes: 8")
    title, _, troubles = info.describe(tmp_path)
    assert "a capture" in title and troubles


# --- doctor ---------------------------------------------------------------------------------------------------------


def test_doctor_says_what_runs_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--no-measure"]) == 0
    shown = capsys.readouterr().out
    assert sys.executable in shown and f"torch {torch.__version__}" in shown and "kernels" in shown


def test_doctor_says_how_large_the_cache_may_become(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIGHTFOLD_CACHE", str(tmp_path))
    for limit, told, advised in (("", "half of what the disk has left", 0), ("2.5", "at most 2.5 GB", 0), ("x", "", 1)):
        monkeypatch.setenv("LIGHTFOLD_CACHE_GB", limit)
        advice: list[str] = []
        ((_, text),) = doctor.caches(advice)
        assert told in text and len(advice) == advised


def test_doctor_measures() -> None:
    assert doctor.points_per_second(0.0) > 0


def test_doctor_explains_a_chosen_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightfold import ops

    monkeypatch.setattr(
        ops, "native_info", lambda: {"isa": "portable", "available": ["avx2", "portable"], "threads": 1}
    )
    monkeypatch.setenv("LIGHTFOLD_ISA", "portable")
    advice: list[str] = []
    doctor.kernels(advice)
    assert any("unset LIGHTFOLD_ISA" in sentence for sentence in advice)


def test_doctor_says_which_kernels_a_gpu_uses_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightfold.ops import backend

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(devices, "memory", lambda device: 80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=36))
    slow = "plain PyTorch, which is slow, because Triton is not installed"
    for found, told, taken in ((object(), "Triton", "cuda:0 (Card 0)"), (None, slow, "cpu; MPS only")):
        monkeypatch.setattr(backend, "find_spec", lambda name, found=found: found)
        rows = dict(doctor.gpus())
        assert rows["--device cuda:1"].startswith("cuda:1 (Card 1), 80 GiB; kernels: " + told)
        launched = "as a whole" if found else "kernel by kernel"
        told = f"precision bfloat16; for ngp there: --model.batch 65536, and steps launched {launched}"
        assert rows["  cuda:1"] == told
        assert rows["--device auto"].startswith(taken)


def test_doctor_without_kernels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor.machine, "instruction_set", lambda: "not built")
    assert "pip install ." in failure(["doctor"], capsys)


def test_a_missing_package_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = doctor.machine.package_version
    monkeypatch.setattr(doctor.machine, "package_version", lambda name: None if name == "av" else known(name))
    assert "-m pip install av" in failure(["doctor"], capsys)


@pytest.mark.parametrize("verb", ["train", "eval", "render", "export", "view"])
def test_a_device_that_is_not_there_is_a_sentence(
    verb: str, trained: Path, capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.xpu.is_available():
        pytest.skip("this machine has the device that is to be missing")
    new = ["ngp", str(capture), "--out", str(tmp_path / "new")]
    what = {"train": new, "export": [str(trained), "mesh"]}.get(verb, [str(trained)])
    assert "PyTorch sees no 'xpu' device here" in failure([verb, *what, "--device", "xpu"], capsys)
    assert not (tmp_path / "new").exists()


def test_a_precision_that_the_processor_has_not_is_refused(
    capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "ngp", str(capture), "--out", str(tmp_path / "run"), "--device", "cpu", "--precision", "float16"]
    assert "The kernels of 'cpu' do not compute in float16" in failure(words, capsys)


def test_a_run_records_what_was_asked_for_and_what_was_used(trained: Path) -> None:
    run = Run.open(trained)
    used = devices.title(devices.choose())
    assert run.config.train.device == "auto" and run.config.train.precision == "auto"
    assert run.about["device"] == used and run.about["devices"] == [used]
    run.used("xpu:0 (Arc)", "bfloat16")
    assert Run.open(trained).about["devices"] == [used, "xpu:0 (Arc)"] and run.about["precision"] == "bfloat16"
    run.used(used, "float32")


class TestOptionsOfAGPU:
    def test_options_that_nobody_has_set_become_larger(self) -> None:
        _, model = lookup("ngp")
        larger, said = for_gpu("ngp", model)
        assert larger.batch == 1 << 18 and replace(larger, batch=model.batch) == model
        assert said is not None and "--model.batch 262144" in said
        assert for_gpu("ngp", model, size=0.25)[0].batch == 1 << 16
        assert for_gpu("ngp", model, size=1 / 64)[0] == model, "as large as the processor's it is at least"

    def test_options_that_the_user_has_set_stay(self) -> None:
        words = ["ngp", "CAPTURE", "--model.batch=24576", "--model.log2-rows", "15", "--steps", "3"]
        assert argument_module.chosen(words, "model") == {"batch", "log2_rows"}
        _, model = lookup("ngp")
        assert for_gpu("ngp", model, argument_module.chosen(words, "model")) == (model, None)
        large = replace(model, batch=1 << 20)
        assert for_gpu("ngp", large) == (large, None)

    def test_the_same_command_goes_on_on_another_device(self, trained: Path) -> None:
        run = Run.open(trained)
        elsewhere = replace(run.config, model=for_gpu(run.config.method, run.config.model)[0])
        assert steps.same_command(run, run.config)
        begun_there = Run(run.path, elsewhere, run.info, run.about)
        assert steps.same_command(begun_there, run.config)
        small = replace(run.config, model=for_gpu(run.config.method, run.config.model, size=0.25)[0])
        assert steps.same_command(Run(run.path, small, run.info, run.about), run.config)
        assert not steps.same_command(run, replace(run.config, method="nerf:paper"))
