"""run.py: a run folder opens after anything that can happen to it, or says in one sentence why it cannot."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lightfold import run as run_module
from lightfold.cameras import Camera, Lens
from lightfold.config import RunConfig, TrainConfig, lookup
from lightfold.errors import RunError
from lightfold.geometry import Similarity, look_at
from lightfold.methods.nerf import NeRFConfig
from lightfold.run import Run, is_run, next_folder, was_begun
from lightfold.scene import SceneConfig, SceneInfo

MODEL = NeRFConfig(width=8, depth=2, position_octaves=2, direction_octaves=1)


def camera_at(x: float) -> Camera:
    eye = torch.tensor([x, 1 / 3, 3.0], dtype=torch.float64)
    pose = look_at(eye, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    intrinsics = torch.tensor([9.1, 9.2, 4.0, 3.0], dtype=torch.float64)
    return Camera(pose, intrinsics, torch.zeros(0, dtype=torch.float64), 8, 6, Lens.PINHOLE).to(torch.float32)


def info_of(points: Tensor | None = None) -> SceneInfo:
    return SceneInfo(
        bounded=True,
        cameras=(camera_at(-0.1), camera_at(0.7)),
        names=("a.jpg", "b.jpg"),
        train=(0,),
        test=(1,),
        near=0.1,
        view_near=(0.1, 0.2),
        far=6.0,
        scene_from_capture=Similarity.identity(),
        points=points,
    )


def config_of(**train: float) -> RunConfig:
    return RunConfig("/captures/fox", "nerf", MODEL, SceneConfig(), TrainConfig(**train))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", config_of(), info_of())


def weights_of(run: Run, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return lookup("nerf")[0](run.config.model, run.info).state_dict()


def small(value: float) -> dict[str, Tensor]:
    return {"w": torch.full((2, 3), value), "count": torch.tensor(7)}


# --- create and open ------------------------------------------------------------------------------------------------


def test_a_run_opens_as_it_was_made(run: Run) -> None:
    again = Run.open(run.path)
    assert again.config == run.config
    assert again.info.to_dict() == run.info.to_dict()
    assert torch.equal(again.info.cameras[1].cam_from_world, run.info.cameras[1].cam_from_world)
    assert again.about["format"] == run_module.FORMAT
    assert {"torch", "processor", "threads", "instruction_set", "python", "created"} <= set(again.about)


def test_a_first_training_sees_what_a_continued_one_will(tmp_path: Path) -> None:
    points = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    run = Run.create(tmp_path / "run", config_of(), info_of(points))
    again = Run.open(run.path).info.points
    assert run.info.points is not None and again is not None
    assert torch.equal(run.info.points, again)


def test_a_run_is_not_overwritten(run: Run) -> None:
    with pytest.raises(RunError, match="lightfold train"):
        Run.create(run.path, run.config, run.info)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match=r"thesis\.tex"):
        Run.create(tmp_path, config_of(), info_of())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(RunError, match="is a file"):
        Run.create(tmp_path / "x", config_of(), info_of())


@pytest.mark.parametrize("last", ["config.yaml", "scene.json", "run.json"])
def test_an_interrupted_creation_explains_itself_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    write = run_module._write

    def killed(path: Path, text: str) -> None:
        if path.name == last:
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(run_module, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        Run.create(tmp_path / "run", config_of(), info_of())
    monkeypatch.undo()
    assert not is_run(tmp_path / "run")
    with pytest.raises(RunError):
        Run.open(tmp_path / "run")
    assert Run.create(tmp_path / "run", config_of(), info_of()).steps() == []


def test_a_missing_folder_and_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder"):
        Run.open(tmp_path / "nothing")
    with pytest.raises(RunError, match="not a run folder"):
        Run.open(tmp_path)
    assert not was_begun(tmp_path)


def test_a_newer_format_says_how_to_upgrade(run: Run) -> None:
    about = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps(about | {"format": run_module.FORMAT + 1, "lightfold": "9.0"}))
    with pytest.raises(RunError, match=r"newer lightfold \(9\.0.*upgrade"):
        Run.open(run.path)


@pytest.mark.parametrize("name", ["config.yaml", "scene.json", "run.json"])
def test_a_file_cut_anywhere_opens_or_explains_itself(run: Run, name: str) -> None:
    whole = (run.path / name).read_bytes()
    explained = 0
    for cut in range(0, len(whole), max(1, len(whole) // 150)):
        (run.path / name).write_bytes(whole[:cut])
        try:
            Run.open(run.path)
        except RunError as error:
            explained += 1
            assert str(run.path) in str(error) and "\n" not in str(error)
    assert explained > 50


@pytest.mark.parametrize("name", ["config.yaml", "scene.json"])
def test_a_missing_file_is_named(run: Run, name: str) -> None:
    (run.path / name).unlink()
    with pytest.raises(RunError, match=name):
        Run.open(run.path)


@pytest.mark.parametrize("change", [{"cameras": 3}, {"cameras": [{}]}, {"near": "x"}, {"extra": 1}, {"train": None}])
def test_a_scene_of_another_shape_is_damaged(run: Run, change: dict[str, object]) -> None:
    data = json.loads((run.path / "scene.json").read_text())
    (run.path / "scene.json").write_text(json.dumps(data | change))
    with pytest.raises(RunError, match=r"scene\.json is damaged"):
        Run.open(run.path)


def test_another_budget_is_written_down(run: Run) -> None:
    run.reconfigure(TrainConfig(minutes=9.0))
    assert Run.open(run.path).config == replace(config_of(), train=TrainConfig(minutes=9.0))


# --- checkpoints ----------------------------------------------------------------------------------------------------


def test_tensors_of_every_kind_come_back_exactly(run: Run) -> None:
    base = torch.arange(12, dtype=torch.float64).reshape(3, 4)
    tensors = {
        "single": torch.randn(3, 2),
        "scalar": torch.tensor(5),
        "empty": torch.zeros(0, 3),
        "bits": torch.tensor([2**62, -1]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "half": torch.randn(3).half(),
        "turned": base.T,
        "part": base[1:],
        "shared": base,
        "special": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    run.save_checkpoint(3, tensors, {"step_count": torch.tensor(3)})
    found = Run.open(run.path).checkpoint(resume=True)
    assert found is not None and found.step == 3 and found.resume is not None
    assert set(found.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name].nan_to_num(9.0), tensor.nan_to_num(9.0)), name
    assert int(found.resume["step_count"]) == 3


def test_the_newest_two_are_kept(run: Run) -> None:
    for step in (5, 10, 900, 10_000_000):
        run.save_checkpoint(step, small(step), small(-step))
    assert run.steps() == [900, 10_000_000]
    assert len(list((run.path / "checkpoints").iterdir())) == 4
    found = run.checkpoint()
    assert found is not None and found.step == 10_000_000 and found.resume is None
    older = run.checkpoint(900)
    assert older is not None and float(older.tensors["w"][0, 0]) == 900
    with pytest.raises(RunError, match="900, 10000000"):
        run.checkpoint(5)


def test_checkpoints_may_be_read_by_whoever_may_read_the_run(run: Run) -> None:
    path = run.save_checkpoint(1, small(1), small(-1))
    modes = {file.stat().st_mode & 0o777 for file in (*path.parent.iterdir(), run.path / "run.json")}
    assert len(modes) == 1


def test_no_checkpoint_yet(run: Run) -> None:
    assert run.checkpoint() is None and run.checkpoint(resume=True) is None
    with pytest.raises(RunError, match="no checkpoint yet"):
        run.method()


def test_a_checkpoint_cut_at_any_byte_gives_way_to_the_one_before(run: Run) -> None:
    run.save_checkpoint(1, small(1), small(-1))
    path = run.save_checkpoint(2, small(2), small(-2))
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        opened = Run.open(run.path)
        found = opened.checkpoint()
        assert found is not None and found.step == 1, cut
        assert len(opened.notes) == 1 and "step 1 is used" in opened.notes[0]
    path.write_bytes(whole)
    found = run.checkpoint()
    assert found is not None and found.step == 2


def test_a_byte_that_changed_is_noticed(run: Run) -> None:
    """A disk that loses power may keep a file's length and lose its contents; the header's lengths cannot tell."""
    run.save_checkpoint(1, small(1))
    path = run.save_checkpoint(2, small(2))
    whole = path.read_bytes()
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    for position in range(start, len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        found = Run.open(run.path).checkpoint()
        assert found is not None and found.step == 1, position
    path.write_bytes(whole[:start] + bytes(len(whole) - start))
    with pytest.raises(RunError, match="checksum"):
        run.checkpoint(2)


def test_a_cut_resume_state_costs_the_resume_and_not_the_weights(run: Run) -> None:
    run.save_checkpoint(1, small(1), small(-1))
    path = run.save_checkpoint(2, small(2), small(-2))
    state = path.with_name(path.stem + ".resume.safetensors")
    state.write_bytes(state.read_bytes()[:-3])
    weights, whole = run.checkpoint(), run.checkpoint(resume=True)
    assert weights is not None and weights.step == 2
    assert whole is not None and whole.step == 1


def test_weights_never_meet_the_moments_of_others(run: Run) -> None:
    run.save_checkpoint(1, small(1), small(-1))
    path = run.save_checkpoint(2, small(2), small(-2))
    one = run.path / "checkpoints" / "step_0000001.resume.safetensors"
    path.with_name(path.stem + ".resume.safetensors").write_bytes(one.read_bytes())
    found = run.checkpoint(resume=True)
    assert found is not None and found.step == 1
    assert "belongs to other weights" in run.notes[0]


def test_all_checkpoints_damaged_is_one_sentence(run: Run) -> None:
    path = run.save_checkpoint(1, small(1))
    path.write_bytes(b"")
    with pytest.raises(RunError, match="No checkpoint of"):
        run.checkpoint()


@pytest.mark.parametrize("when", ["weights", "resume"])
def test_a_kill_while_saving_leaves_the_one_before(run: Run, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    run.save_checkpoint(1, small(1), small(-1))

    def killed(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        if (".resume." in Path(path).name) == (when == "resume"):
            Path(path).write_bytes(b"half")
            raise KeyboardInterrupt
        save_file(tensors, path, metadata)

    monkeypatch.setattr(run_module, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        run.save_checkpoint(2, small(2), small(-2))
    found = Run.open(run.path).checkpoint(resume=True)
    assert found is not None and found.step == 1
    assert not list(run.path.rglob("*.partial"))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(run_module, "save_file", full)
    with pytest.raises(RunError, match="No space left"):
        run.save_checkpoint(2, small(2))
    assert run.steps() == [] and not list(run.path.rglob("*.partial"))


def executed(path: str) -> object:
    Path(path).touch()
    return {}


class Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return executed, (str(self.mark),)


def pickled(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(Trap(mark)))


def torch_saved(path: Path, mark: Path) -> None:
    torch.save(Trap(mark), path)


def foreign(path: Path, mark: Path) -> None:
    save_file(small(2), path)


@pytest.mark.parametrize("make", [pickled, torch_saved, foreign])
def test_a_checkpoint_from_a_stranger_executes_nothing(
    run: Run, tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    (run.path / "checkpoints").mkdir()
    mark = tmp_path / "executed"
    make(run.path / "checkpoints" / "step_0000001.safetensors", mark)
    with pytest.raises(RunError):
        Run.open(run.path).method()
    assert not mark.exists()


def test_strange_names_in_the_folder_are_passed_over(run: Run) -> None:
    run.save_checkpoint(4, small(4))
    for name in ("step_.safetensors", "step_9x.safetensors", ".step_0000009.safetensors.partial", "notes.txt"):
        (run.path / "checkpoints" / name).write_text("x")
    assert run.steps() == [4]


def test_a_checkpoint_under_another_name_is_noticed(run: Run) -> None:
    path = run.save_checkpoint(4, small(4))
    path.rename(path.with_name("step_0000009.safetensors"))
    with pytest.raises(RunError, match="written for step 4"):
        run.checkpoint(9)


# --- the method -----------------------------------------------------------------------------------------------------


def test_the_method_comes_back_ready_to_render(run: Run) -> None:
    weights = weights_of(run)
    run.save_checkpoint(7, weights)
    method = Run.open(run.path).method()
    assert not method.training and not any(p.requires_grad for p in method.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in method.state_dict().items())
    picture = method.render(run.info.cameras[1])
    assert picture.rgb.shape == (6, 8, 3) and bool(picture.rgb.isfinite().all())


def test_weights_of_other_options_do_not_fit(run: Run) -> None:
    run.save_checkpoint(7, weights_of(run))
    text = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(text.replace("width: 8", "width: 16"))
    with pytest.raises(RunError, match="does not fit the method 'nerf'"):
        Run.open(run.path).method()


# --- metrics --------------------------------------------------------------------------------------------------------


def test_metrics_come_back(run: Run) -> None:
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": torch.tensor(0.25)}, {"step": 3, "loss": float("nan")}]
    for row in rows:
        run.log_metrics(row)
    assert Run.open(run.path).metrics() == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.25},
        {"step": 3, "loss": None},
    ]


def test_a_torn_last_line_costs_that_line(run: Run) -> None:
    for step in range(1, 4):
        run.log_metrics({"step": step, "loss": 1 / step})
    path = run.path / "metrics.jsonl"
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        opened = Run.open(run.path)
        kept = len(opened.metrics())
        assert kept in (whole[:cut].count(b"\n"), whole[:cut].count(b"\n") + 1)
        opened.log_metrics({"step": 9, "loss": 0.0})
        assert [row["step"] for row in opened.metrics()] == [*range(1, kept + 1), 9]


def test_a_continued_training_replaces_what_it_does_again(run: Run) -> None:
    for step in (10, 20, 30):
        run.log_metrics({"step": step, "loss": float(step)})
    again = Run.open(run.path)
    for step in (20, 20, 30, 40):  # a training row and an evaluation of the same step both stay
        again.log_metrics({"step": step, "loss": -1.0})
    assert [(row["step"], row["loss"]) for row in again.metrics()] == [
        (10, 10.0),
        (20, -1.0),
        (20, -1.0),
        (30, -1.0),
        (40, -1.0),
    ]


def test_metrics_of_a_stranger_are_only_numbers(run: Run) -> None:
    lines = ["[1]", "{", '{"step": "x"}', "null", "[" * 100_000, '{"step": 2}', "\x00\xff"]
    (run.path / "metrics.jsonl").write_text("\n".join(lines), encoding="latin-1")
    assert run.metrics() == [{"step": "x"}, {"step": 2}]
    run.log_metrics({"step": 3})
    assert run.metrics()[-1] == {"step": 3}


# --- folders --------------------------------------------------------------------------------------------------------


def test_the_next_folder_is_after_all_others(tmp_path: Path) -> None:
    assert next_folder(tmp_path / "runs", "ngp").name == "ngp-1"
    for name in ("ngp-1", "ngp-7", "ngp-fast-9", "ngp-x"):
        (tmp_path / name).mkdir()
    assert next_folder(tmp_path, "ngp").name == "ngp-8"
