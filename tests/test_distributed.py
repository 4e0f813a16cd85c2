"""distributed.py, cli/workers.py, the trainer: several processes do what one does, and survive what one would not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
import several_processes
import torch
from analytic_sphere import Sphere, camera_at, info_of, ring, scene_of
from painted_ball import PaintedBall
from PIL import Image
from safetensors.torch import load_file
from several_processes import TINY, Line, run_of, state
from test_cli import NGP as SMALL
from test_cli import caches, capture  # noqa: F401 (fixtures)
from torch import Generator, Tensor

from lightfold import cli, distributed
from lightfold.cli import console, workers
from lightfold.cli.info import describe_run
from lightfold.cli.train import begun_before
from lightfold.distributed import Place, World, place
from lightfold.errors import ConfigError, LightfoldError
from lightfold.evaluate import evaluate
from lightfold.methods.base import RANK_STRIDE, step_generator
from lightfold.methods.ngp import NGP
from lightfold.render import render_path, render_stills
from lightfold.run import Run
from lightfold.trainer import train
from lightfold.window import CYCLE

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
GOOD = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "h",
    "MASTER_PORT": "1",
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def ball() -> PaintedBall:
    return PaintedBall(views=7, side=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes of `several_processes` have left."""
    folder = tmp_path_factory.mktemp("together")
    store = torch.distributed.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    paths = os.pathsep.join([str(Path(several_processes.__file__).parent), *sys.path])
    started = []
    for rank in range(2):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": store.port}
        environment = os.environ | {name: str(value) for name, value in place.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True", "PYTHONPATH": paths}
        environment |= {"TORCHELASTIC_RESTART_COUNT": "0", "OMP_NUM_THREADS": "1"}
        if (loopback := workers._loopback()) is not None:
            environment["GLOO_SOCKET_IFNAME"] = loopback
        command = [sys.executable, several_processes.__file__, str(folder)]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    complaints = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], complaints
    return folder


@pytest.fixture(scope="module")
def said(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"said-{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


class TestExchanges:
    def test_words_and_numbers(self, said: list[dict[str, Any]]) -> None:
        for heard in said:
            assert heard["sum"] == [2.0, 1.0, pytest.approx(0.2)]
            assert heard["tell"] == "ä first\n" and heard["tell nothing"] == ""
            assert heard["gather"] == ["", "x"]
            assert heard["share"] == [5.0] * 3 and heard["maximum"] == [1.0, 0.0]
            assert heard["alike"] == [True, False]
        assert said[0]["collect"] == [[0], [1]] and said[1]["collect"] == []

    def test_sparse_is_dense(self, said: list[dict[str, Any]]) -> None:
        """The same means, of a fifteenth of the numbers here: 40 of 500 lines, and tables that lines do not divide."""
        (dense, sparse), (other, _) = said[0]["means"], said[1]["means"]
        assert dense == sparse == other == said[1]["means"][1]
        whole, few = said[0]["sent"]
        assert whole == 4 * (8000 + 53 + 7 + 4) and few < whole / 10

    def test_the_mean_of_gradients(self, said: list[dict[str, Any]]) -> None:
        table, odd, plain, seldom, touched = said[0]["means"][1]
        grads, lines = [], []
        for rank in range(2):
            rng = torch.Generator().manual_seed(rank)
            grads.append(torch.randn(7, generator=rng))
            lines.append(torch.randint(500, (20,), generator=rng))
        assert torch.allclose(torch.tensor(plain), 0.5 * (grads[0] + grads[1]))
        assert set(torch.tensor(touched).nonzero()[:, 0].tolist()) == set(torch.cat(lines).tolist())
        filled = torch.tensor(table).view(500, 16).abs().sum(1).nonzero()[:, 0]
        assert set(filled.tolist()) == set(torch.cat(lines).tolist())
        assert odd[-2:] == [1.5, 1.5] and not any(odd[:-2])
        # Who has no gradient has one of zero, where another has one.
        assert seldom == [0.5] * 4


class Doubled(Line):
    """The batches of two processes in one."""

    def error(self, rng: Generator) -> Tensor:
        second = torch.Generator().manual_seed((rng.initial_seed() + RANK_STRIDE) % 2**32)
        return 0.5 * (super().error(rng) + super().error(second))


class DoubledNGP(NGP):
    """The batches of two processes in one."""

    def loss(self, scene: Any, step: int, rng: Generator) -> dict[str, Tensor]:
        blocks = getattr(self, "blocks", [None, None])
        total, stats = torch.zeros(()), []
        for rank in range(2):
            self._block = blocks[rank]
            total = total + 0.5 * super().loss(scene, step, step_generator(0, step, rank))["colour"]
            blocks[rank] = self._block
            stats.append(self.stats)
        self.blocks = blocks
        self.stats = {name: stats[0][name] + stats[1][name] for name in stats[0]}
        return {"colour": total}


class TestTraining:
    def test_two_are_one_with_the_doubled_batch(
        self, said: list[dict[str, Any]], tmp_path: Path, ball: PaintedBall
    ) -> None:
        run, method = run_of(tmp_path, "run", ball, steps=50), Doubled(TINY, ball.info)
        train(run, ball, method, run.config.train, False)  # type: ignore[arg-type]
        for heard in said:
            slope, table = (torch.tensor(part, dtype=torch.float64) for part in heard["line"])
            assert torch.allclose(slope, method.slope, rtol=0, atol=1e-12)
            assert torch.allclose(table, method.table, rtol=0, atol=1e-12)

    def test_ngp_too(self, folder: Path, tmp_path: Path, ball: PaintedBall) -> None:
        """With its gradient in place, its grid that samples raise and its number of rays that follows from them."""
        torch.manual_seed(0)
        run, method = run_of(tmp_path, "run", ball, steps=50), DoubledNGP(TINY, ball.info)
        train(run, ball, method, run.config.train, False)  # type: ignore[arg-type]
        together = load_file(folder / "ngp-0.safetensors")
        for name, tensor in state(method).items():
            if tensor.is_floating_point():
                # Adam divides by the gradient's own size, so that a sum of zero but for rounding moves a weight.
                close = (tensor - together[name]).abs() <= 1e-3 * tensor.abs().mean().clamp(min=1e-3)
                assert close.float().mean() > 0.99, name
            else:
                assert torch.equal(tensor, together[name]), name

    @pytest.mark.parametrize("name", ["ngp", "halves", "acto"])
    def test_ranks_stay_equal_bit_for_bit(self, name: str, folder: Path) -> None:
        first, second = (load_file(folder / f"{name}-{rank}.safetensors") for rank in range(2))
        assert first.keys() == second.keys()
        assert [key for key in first if not torch.equal(first[key], second[key])] == []

    def test_a_pause_changes_nothing(self, folder: Path, said: list[dict[str, Any]]) -> None:
        """Ctrl-C in the second process: the first saves, once, and another sitting ends in the same bits."""
        straight, halves = (load_file(folder / f"{name}-0.safetensors") for name in ("ngp", "halves"))
        assert [key for key in straight if not torch.equal(straight[key], halves[key])] == []
        assert said[0]["halves"] == [[22], [22, 50]] and said[1]["halves"] == [[], []]
        assert said[0]["stopped"] == [8, [8]] and said[1]["stopped"] == [8, []]

    def test_the_number_of_rays_is_that_of_the_whole_batch(self, said: list[dict[str, Any]]) -> None:
        (drawn, each), other = said[0]["rays"], said[1]["rays"]
        assert drawn == 2 * each and other == [drawn, each]

    def test_only_the_first_writes(self, said: list[dict[str, Any]]) -> None:
        assert {"checkpoints", "metrics.jsonl", "preview.jpg"} <= set(said[0]["written"])
        assert 0 < said[0]["sent_mb"][-1] < 0.1
        assert said[1]["written"] == ["config.yaml", "run.json", "scene.json"]

    def test_a_loss_that_is_not_finite_in_one_process(self, said: list[dict[str, Any]]) -> None:
        (slope, (note,)), (other, _) = (heard["retreating"] for heard in said)
        assert slope == other and note.startswith("The loss was not finite at step 24; the state of step 20")
        assert said[0]["hopeless"] == said[1]["hopeless"] and "not finite for 5 steps" in said[0]["hopeless"]

    def test_processors_that_round_differently(self, said: list[dict[str, Any]]) -> None:
        (slope, (note,)), (other, _) = (heard["drifting"] for heard in said)
        assert slope == other and "drifted apart" in note

    def test_the_clock_is_the_first_ones(self, said: list[dict[str, Any]]) -> None:
        assert said[0]["timed"] == said[1]["timed"] and said[0]["timed"][0] > 0

    def test_a_method_that_cannot_refuses(self, said: list[dict[str, Any]]) -> None:
        assert said[0]["alone"] == "ngp cannot be trained by several processes together; train it with one."

    @pytest.mark.parametrize("processes", [1, 2])
    def test_a_run_of_two_goes_on_with_one(
        self, processes: int, folder: Path, tmp_path: Path, ball: PaintedBall
    ) -> None:
        run = run_of(tmp_path, "run", ball, steps=53)
        found = Run.open(folder / "ngp").checkpoint(resume=True)
        assert found is not None and found.resume is not None and int(found.resume["processes"]) == 2
        resume = found.resume | {"processes": torch.tensor(processes)}
        run.save_checkpoint(50, found.tensors, resume)
        train(run, ball, NGP(TINY, ball.info), run.config.train, False)  # type: ignore[arg-type]
        assert run.steps() == [50, 53]
        shown = dict(describe_run(Run.open(folder / "ngp"))[1])
        assert shown["trained by"].startswith("2 processes") and "trained by" not in dict(describe_run(run)[1])
        assert len(run.notes) == processes - 1
        for note in run.notes:
            assert note.startswith("2 process(es) trained this run until step 50, and 1 from there on")
        last = run.checkpoint(resume=True)
        assert last is not None and last.resume is not None and int(last.resume["processes"]) == 1

    def test_ranks_draw_from_generators_far_apart(self) -> None:
        """And from the same window of the views."""
        seeds = sorted((rank * RANK_STRIDE) % 2**32 for rank in range(1024))
        gaps = [after - before for before, after in zip(seeds, [*seeds[1:], 2**32], strict=True)]
        assert min(gaps) >= 2**22 and RANK_STRIDE % CYCLE == 0
        assert step_generator(3, 5).initial_seed() == step_generator(3, 5, 0).initial_seed()
        assert step_generator(3, 5, 1).initial_seed() != step_generator(3, 5).initial_seed()


class TestPictures:
    def test_scores_are_those_of_one(self, folder: Path, said: list[dict[str, Any]], tmp_path: Path) -> None:
        info = info_of([camera_at(eye, torch.zeros(3)) for eye in ring(5)], has_alpha=True)
        evaluate(Sphere(info), scene_of(info, noise=0.1), "all", tmp_path)  # type: ignore[arg-type]
        single, together = (json.loads((f / "eval_all.json").read_text()) for f in (tmp_path, folder / "together"))
        assert together["mean"] == single["mean"] == said[1]["evaluated"]["mean"]
        assert (single["timing"]["processes"], together["timing"]["processes"]) == (1, 2)
        for result in (single, together):
            for row in result["views"]:
                del row["seconds"], row["rays_per_second"]
        assert together["views"] == single["views"] and together["protocol"] == single["protocol"]
        names = [path.name for path in sorted((tmp_path / "eval_all").iterdir())]
        assert names == [path.name for path in sorted((folder / "together" / "eval_all").iterdir())]
        for name in names:
            assert (tmp_path / "eval_all" / name).read_bytes() == (folder / "together" / "eval_all" / name).read_bytes()

    def test_pictures_are_those_of_one(self, folder: Path, said: list[dict[str, Any]], tmp_path: Path) -> None:
        info = info_of([camera_at(eye, torch.zeros(3)) for eye in ring(5)], has_alpha=True)
        made = render_stills(Sphere(info), list(info.cameras), tmp_path / "stills")  # type: ignore[arg-type]
        for file in made.files:
            pair = (np.asarray(Image.open(f)) for f in (file, folder / "together" / "stills" / file.name))
            assert np.array_equal(*pair)
        film = render_path(Sphere(info), list(info.cameras), tmp_path / "video.mp4", outputs=("rgb", "normal"))  # type: ignore[arg-type]
        assert said[0]["frames"] == [5, 5, 1] and said[0]["notes"] == [*made.notes, *film.notes]
        assert np.array_equal(frames(tmp_path / "video.mp4"), frames(folder / "together" / "video.mp4"))
        assert len(frames(folder / "together" / "one.mp4")) == 1


def frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


class TestPlace:
    def test_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert place() is None
        monkeypatch.setenv("LOCAL_RANK", "nonsense")  # Without the others it means nothing.
        assert place() is None
        for name, value in (("RANK", "0"), ("WORLD_SIZE", "1")):
            monkeypatch.setenv(name, value)
        assert place() is None

    def test_one_of_several(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in GOOD.items():
            monkeypatch.setenv(name, value)
        assert place() == Place(1, 4, 1, 2)

    @pytest.mark.parametrize(
        ("name", "value", "named"),
        [
            ("WORLD_SIZE", None, "WORLD_SIZE is missing"),
            ("RANK", None, "RANK is missing"),
            ("RANK", "4", "process 4 of 4"),
            ("RANK", "-1", "RANK must be a whole number from 0"),
            ("RANK", "1.5", "'1.5'"),
            ("RANK", "", "''"),
            ("RANK", "²", "whole number"),
            ("WORLD_SIZE", "0", "WORLD_SIZE must be a whole number from 1"),
            ("WORLD_SIZE", "9" * 5000, "process .* on its machine|MASTER|cannot be|must be"),
            ("LOCAL_RANK", "2", "2 of 2 on its machine"),
            ("LOCAL_WORLD_SIZE", "5", "cannot be"),
            ("MASTER_ADDR", None, "MASTER_ADDR"),
            ("MASTER_PORT", None, "MASTER_PORT is missing"),
            ("MASTER_PORT", "70000", "from 1 to 65535"),
            ("MASTER_PORT", "http", "whole number"),
        ],
    )
    def test_hostile_environments_are_sentences(
        self,
        name: str,
        value: str | None,
        named: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        for key, good in GOOD.items():
            monkeypatch.setenv(key, good)
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
        if value == "9" * 5000:  # Many processes are no mistake by themselves.
            assert place() is not None
            return
        with pytest.raises(ConfigError, match=named) as caught:
            place()
        assert str(caught.value).count("\n") == 0 and len(str(caught.value)) < 300
        assert cli.main(["train", "nerf:tiny", "nowhere"]) == cli.WENT_WRONG
        assert "Traceback" not in capsys.readouterr().err

    def test_nobody_comes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for key, good in (GOOD | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}).items():
            monkeypatch.setenv(key, good)
        monkeypatch.setattr(distributed, "MEETING", distributed.timedelta(seconds=1))
        with pytest.raises(LightfoldError, match="Process 1 of 4 did not meet the others at 127.0.0.1:9"):
            World.join(Place(1, 4, 1, 2))

    def test_a_device_that_is_none(self) -> None:
        with pytest.raises(ConfigError, match="cannot train on 'mps'"):
            World.join(Place(1, 4, 1, 2), "mps")
        if not torch.cuda.is_available():
            with pytest.raises(ConfigError, match="0 GPU"):
                World.join(Place(1, 4, 1, 2), "cuda")


class TestLauncher:
    """With processes that only pretend, which start at once."""

    @pytest.fixture
    def pretend(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        monkeypatch.setattr(workers, "GRACE", 0.5)

        def pretend(*attempts: tuple[str, str]) -> None:
            """The code of the first and the second process, in every attempt."""

            def process(words: Any, rank: int, devices: int, port: int, attempt: int, said: Any) -> Any:
                code = attempts[min(attempt, len(attempts) - 1)][rank]
                begin = "import os, signal, sys, time; say = lambda s: print(s, file=sys.stderr); "
                return subprocess.Popen([sys.executable, "-S", "-c", begin + code], stdin=subprocess.PIPE, stderr=said)

            monkeypatch.setattr(workers, "_process", process)

        return pretend

    def test_all_went_well(self, pretend: Callable[..., None]) -> None:
        pretend(("", ""))
        workers.start(["train"], 2)

    def test_a_death_is_told_and_followed_by_a_restart(
        self, pretend: Callable[..., None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The other waits for it in vain, and is ended."""
        pretend(("time.sleep(60)", "os._exit(9)"), ("sys.exit(75)", "say('It broke.'); sys.exit(70)"), ("", ""))
        steps = iter([None, 120])
        workers.start(["train"], 2, lambda: next(steps))
        told = capsys.readouterr().err.splitlines()
        assert told == [
            "Process 1 of 2 ended with code 9; all go on from the start (restart 1 of 3).",
            "It broke; all go on from the checkpoint of step 120 (restart 2 of 3).",
        ]

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
    def test_it_does_not_go_on_for_ever(self, pretend: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
        pretend(("os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(75)"))
        with pytest.raises(LightfoldError, match="Process 0 of 2 was killed.* and 3 restarts did not help.* step 7"):
            workers.start(["train"], 2, lambda: 7)
        assert len(capsys.readouterr().err.splitlines()) == 3

    def test_what_cannot_start_again_says_so(self, pretend: Callable[..., None]) -> None:
        pretend(("sys.exit(75)", "sys.exit(5)"))
        with pytest.raises(LightfoldError, match="ended with code 5, so the work was not finished"):
            workers.start(["eval"], 2)
        pretend(("sys.exit(75)", "sys.exit(75)"))
        with pytest.raises(LightfoldError, match="The processes lost each other, so"):
            workers.start(["eval"], 2)

    def test_who_gave_up_is_heard_and_not_started_again(self, pretend: Callable[..., None]) -> None:
        pretend(("sys.exit(75)", "say('Noise.'); say('Process 1 of 2: The disk is full.'); sys.exit(2)"))
        with pytest.raises(LightfoldError, match="^Process 1 of 2: The disk is full.$"):
            workers.start(["train"], 2, lambda: 7)
        pretend(("sys.exit(2)", "sys.exit(75)"))  # The first has been heard already.
        with pytest.raises(SystemExit) as stopped:
            workers.start(["train"], 2, lambda: 7)
        assert stopped.value.code == 2

    def test_only_the_first_speaks(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(console, "_name", None)
        console.only_complain("Process 1 of 2")
        console.say("a")
        console.remark("b")
        console.table([("c", "d")])
        with console.progress("e") as report:
            report(1, 2)
        console.complain("f")
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err == "Process 1 of 2: f\n"

    @pytest.mark.parametrize(
        ("words", "named"),
        [
            (["train", "ngp", "x", "--devices", "0"], "--devices must be from 1"),
            (["eval", "x", "--devices", "100000"], "--devices must be from 1"),
            (["train", "ngp", "x", "--devices", "2", "--view"], "cannot be watched"),
        ],
    )
    def test_devices_that_cannot_be(self, words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(words) == cli.WENT_WRONG
        assert named in capsys.readouterr().err

    def test_torchruns_restarts_find_the_run_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ball: PaintedBall
    ) -> None:
        monkeypatch.chdir(tmp_path)
        run = run_of(Path("runs") / "ball", "ngp-3", ball, steps=5)
        other = replace(run.config, train=replace(run.config.train, steps=6))
        assert begun_before(run.config) is None
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
        assert begun_before(run.config) == run.path and begun_before(other) is None
        os.utime(run.path / "run.json", (0, 0))  # Begun by another one, before this one was.
        assert begun_before(run.config) is None

    def test_devices_under_torchrun(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        for name, value in GOOD.items():
            monkeypatch.setenv(name, value)
        assert cli.main(["train", "ngp", "x", "--devices", "3"]) == cli.WENT_WRONG
        assert "leave --devices out under torchrun" in capsys.readouterr().err
        assert cli.main(["run", "x"]) == cli.WENT_WRONG
        assert "is for one process" in capsys.readouterr().err


def children() -> list[psutil.Process]:
    """The processes that this one has started, in order of their ranks."""
    found = [child for child in psutil.Process().children() if "lightfold" in child.cmdline()]
    return sorted(found, key=lambda child: int(child.environ()["RANK"]))


def once(ready: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Act in another thread as soon as it is time."""

    def wait() -> None:
        end = time.monotonic() + 120
        while not ready() and time.monotonic() < end:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def step_of(folder: Path) -> int:
    steps = Run.open(folder).steps() if (folder / "run.json").exists() else []
    return steps[-1] if steps else -1


@pytest.mark.skipif(sys.platform == "win32", reason="the signals are those of Unix")
class TestTheVerbs:
    def test_killed_stopped_and_finished_by_one(
        self,
        capture: Path,  # noqa: F811
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """SIGKILL to a process: all go on from the checkpoint. Ctrl-C: one checkpoint, and nobody is left. Then one
        process finishes the run."""
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        out = tmp_path / "a run"
        words = [
            "train",
            "ngp",
            str(capture),
            "--out",
            str(out),
            "--steps",
            "1000000",
            "--checkpoint-every",
            "0.2",
            *SMALL,
        ]
        seen: dict[str, int] = {}

        def kill() -> None:
            seen["killed"] = step_of(out)
            children()[1].kill()

        def stop() -> None:
            seen["workers"] = len(children())
            os.kill(os.getpid(), signal.SIGINT)

        threads = [
            once(lambda: step_of(out) > 0, kill),
            once(lambda: seen.get("killed", 10**9) < step_of(out) - 1 and len(children()) == 2, stop),
        ]
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            assert cli.main([*words, "--devices", "2"]) == cli.INTERRUPTED
        finally:
            signal.signal(signal.SIGINT, before)
        for thread in threads:
            thread.join()
        told = capsys.readouterr().err
        assert told.count("Process 1 of 2 was killed") == 1 and "(restart 1 of 3)" in told
        assert seen["workers"] == 2 and children() == []
        run = Run.open(out)
        assert run.steps()[-1] > seen["killed"] > 0 and not list(out.rglob("*.partial"))
        rows = [row["step"] for row in run.metrics()]
        assert rows == sorted(set(rows))
        reached = run.steps()[-1]
        assert cli.main(["train", str(out), "--steps", str(reached + 2)]) == cli.DONE
        assert Run.open(out).steps()[-1] == reached + 2
        assert "2 process(es) trained this run" in capsys.readouterr().err

    @pytest.mark.slow
    def test_train_score_and_render(
        self,
        capture: Path,  # noqa: F811
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The verbs, each with two processes, from the beginning to the end; and scored by one."""
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        out = tmp_path / "run"
        assert (
            cli.main(["train", "ngp", str(capture), "--out", str(out), "--steps", "20", "--devices", "2", *SMALL]) == 0
        )
        assert capfd.readouterr().out.count("The run is in") == 1
        assert cli.main(["eval", str(out)]) == 0
        single = json.loads((out / "eval.json").read_text())
        assert cli.main(["eval", str(out), "--devices", "2"]) == 0
        together = json.loads((out / "eval.json").read_text())
        assert together["mean"] == single["mean"] and together["protocol"] == single["protocol"]
        film = ["render", str(out), "--frames", "3", "--size", "16", "12"]
        assert cli.main([*film, "--out", str(tmp_path / "one.mp4")]) == 0
        assert cli.main([*film, "--out", str(tmp_path / "two.mp4"), "--devices", "2"]) == 0
        assert np.array_equal(frames(tmp_path / "one.mp4"), frames(tmp_path / "two.mp4"))

    @pytest.mark.slow
    def test_nobody_is_left_behind(
        self,
        capture: Path,  # noqa: F811
        tmp_path: Path,
    ) -> None:
        """The program that started them is killed: they save, and end."""
        out = tmp_path / "run"
        words = [
            "train",
            "ngp",
            str(capture),
            "--out",
            str(out),
            "--steps",
            "1000000",
            "--checkpoint-every",
            "0.2",
            *SMALL,
        ]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        parent = subprocess.Popen([sys.executable, "-m", "lightfold", *words, "--devices", "2"], env=environment)
        once(lambda: step_of(out) > 0, lambda: None).join()
        left = psutil.Process(parent.pid).children()
        assert len(left) == 2
        parent.kill()
        parent.wait()
        assert psutil.wait_procs(left, timeout=120)[1] == []
        assert not list(out.rglob("*.partial")) and Run.open(out).checkpoint(resume=True) is not None

    @pytest.mark.slow
    def test_torchrun(
        self,
        capture: Path,  # noqa: F811
        tmp_path: Path,
    ) -> None:
        """Its own launcher, with no folder named."""
        words = ["-m", "lightfold", "train", "ngp", str(capture), "--steps", "20", *SMALL]
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (run,) = (tmp_path / "runs").rglob("run.json")
        assert Run.open(run.parent).steps() == [20]
        assert done.stdout.count("The run is in") == 1
