"""The pose engine on pictures whose poses are known, and on pictures that have none: real COLMAP, real processes."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from textured_room import FOCAL, HEIGHT, WIDTH, cameras, footage_of, gps_of, render, room

from lightfold.errors import CaptureError, ConfigError
from lightfold.footage.shots import Footage
from lightfold.formats import open_capture
from lightfold.poses import child, solve
from lightfold.poses.align import pose_errors
from lightfold.poses.config import PoseConfig
from lightfold.poses.write import write_capture

CONFIG = PoseConfig(threads=2)


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory):
    """The room's poses, with GPS and a focal length from a header, in a folder with a space and an umlaut."""
    root = tmp_path_factory.mktemp("räume a")
    footage, truth = room(root, focal=FOCAL * 1.05)
    shots = [replace(shot, gps=gps_of(camera)) for shot, camera in zip(footage.shots, truth, strict=True)]
    footage = replace(footage, shots=tuple(shots))
    heard: list[tuple[str, int, int]] = []
    solution = solve.solve(footage, CONFIG, lambda *words: heard.append(words))
    return footage, truth, solution, heard


def test_the_room_is_solved(solved):
    footage, truth, solution, _ = solved
    assert solution.missing == () and solution.trusted and solution.agreement > 0.9
    assert solution.models[0].names and set(solution.models[0].names) == {shot.name for shot in footage.shots}
    assert len(solution.tries) == 1 and "8 of 8" in solution.tries[0]
    (intrinsics,) = solution.intrinsics
    assert intrinsics.prior and intrinsics.pictures == 8
    assert intrinsics.parameters[0] == pytest.approx(FOCAL, rel=0.03)
    capture = open_capture(write_capture(footage, solution))
    poses = torch.stack([frame.camera.cam_from_world for frame in capture.frames])
    assert [frame.name for frame in capture.frames] == [f"images/{shot.name}" for shot in footage.shots]
    errors = pose_errors(poses, torch.stack([camera.cam_from_world for camera in truth]))
    assert float(errors.rotation_free.median()) < 0.3
    assert float(errors.position.median()) < 0.01 * errors.extent


def test_the_capture_is_upright_in_metres_with_coloured_points(solved):
    footage, truth, solution, _ = solved
    write_capture(footage, solution)
    capture = open_capture(footage.root, "transforms")
    assert solution.metric and solution.origin is not None and solution.origin[0] == pytest.approx(47.0, abs=1e-3)
    assert capture.up is not None and capture.up.tolist() == [0.0, 0.0, 1.0]
    centres = torch.stack([frame.camera.center for frame in capture.frames])
    true_centres = torch.stack([20 * camera.center for camera in truth])
    offset = (centres - true_centres) - (centres - true_centres).mean(0)
    assert float(offset.norm(dim=1).max()) < 1.0  # metres, of a walk of 65
    assert capture.points is not None and len(capture.points) > 100
    colours = capture.points.rgb
    assert colours is not None and float(colours.float().std()) > 10


def test_stages_are_told_in_order(solved):
    stages = list(dict.fromkeys(stage for stage, _, _ in solved[3]))
    assert stages == ["features", "pairs", "matches", "mapping", "refinement", "writing"]
    assert all(0 <= done <= total for _, done, total in solved[3])


def test_finished_work_is_not_done_again_and_from_stage_redoes(solved):
    footage, _, solution, _ = solved
    images = solution.model / "images.bin"
    before = os.stat(images).st_mtime_ns
    again = solve.solve(footage, CONFIG)
    assert again == solution and os.stat(images).st_mtime_ns == before
    redone = solve.solve(footage, replace(CONFIG, from_stage="mapping"))
    assert redone.missing == () and redone.seconds["features"] == solution.seconds["features"]
    assert os.stat(images).st_mtime_ns > before


@pytest.mark.slow
def test_an_interrupted_solution_goes_on_where_it_was(tmp_path):
    footage, _ = room(tmp_path)
    for stop_at in ("features", "matches", "mapping"):

        def stop(stage: str, done: int, total: int, stop_at: str = stop_at) -> None:
            if stage == stop_at and (done >= 3 or stage == "mapping"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            solve.solve(footage, CONFIG, stop)
    heard = []
    solution = solve.solve(footage, CONFIG, lambda *words: heard.append(words))
    assert solution.missing == ()
    assert heard[0] == ("features", 8, 8), "the features were there already"


@pytest.mark.slow
def test_known_intrinsics_stay_and_masks_keep_features_out(tmp_path):
    footage, _ = room(tmp_path, lens="SIMPLE_PINHOLE", parameters=(FOCAL, WIDTH / 2, HEIGHT / 2))
    shots = []
    for shot in footage.shots:
        mask = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
        mask[:, :60] = 0
        path = tmp_path / "masks" / f"{shot.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
        shots.append(replace(shot, mask=True))
    solution = solve.solve(replace(footage, shots=tuple(shots)), CONFIG)
    assert solution.intrinsics[0].parameters == (FOCAL, WIDTH / 2, HEIGHT / 2)
    from lightfold.formats import colmap

    points = colmap.read(solution.model).points
    assert points is not None and len(points) > 50
    import sqlite3

    with sqlite3.connect(solution.database) as database:
        rows = database.execute("select rows, cols, data from keypoints").fetchall()
    x = np.concatenate([np.frombuffer(data, dtype=np.float32).reshape(n, c)[:, 0] for n, c, data in rows])
    assert len(x) > 500 and x.min() >= 60


def pictures_of_nothing(kind: str) -> dict[str, np.ndarray]:
    if kind == "blank":
        return {f"{i}.png": np.full((HEIGHT, WIDTH), 128, dtype=np.uint8) for i in range(4)}
    if kind == "tiny":
        return {f"{i}.png": np.full((1, 1), i, dtype=np.uint8) for i in range(3)}
    if kind == "identical":
        return {f"{i}.png": render(cameras()[0]) for i in range(4)}
    if kind == "unrelated":
        return {f"{i}.png": render(cameras()[i], seed=i + 1) for i in range(4)}
    return {f"{i}.png": render(cameras()[0]) for i in range(int(kind))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("1", "one picture"),
        ("2", "2 pictures"),
        ("blank", "no detail"),
        ("tiny", "no detail"),
        ("identical", "one spot"),
        ("unrelated", "No two"),
    ],
)
def test_pictures_without_a_solution_get_one_sentence(tmp_path, kind, sentence):
    footage = footage_of(pictures_of_nothing(kind), tmp_path)
    with pytest.raises(CaptureError, match=sentence) as caught:
        solve.solve(footage, CONFIG)
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.slow
def test_a_mask_of_the_wrong_size_gets_a_sentence_and_no_abort(tmp_path):
    footage, _ = room(tmp_path, count=3)
    path = tmp_path / "masks" / f"{footage.shots[0].name}.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.full((5, 5), 255, dtype=np.uint8)).save(path)
    shots = (replace(footage.shots[0], mask=True), *footage.shots[1:])
    with pytest.raises(CaptureError, match="5 x 5"):
        solve.solve(replace(footage, shots=shots), CONFIG)


def test_without_pycolmap_the_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CaptureError, match="pip install pycolmap"):
        solve.solve(Footage(tmp_path, "photos", False, ()), CONFIG)


def ending(**words) -> child.Ending:
    plain = {"finished": False, "error": "", "stage": "mapping", "step": "mapping one", "reason": "it broke"}
    return child.Ending(**(plain | words))


def test_a_step_that_kills_the_engine_is_left_out_the_next_time(tmp_path, monkeypatch):
    asked = []

    def run(arguments, log, silence, progress):
        asked.append(json.loads(Path(arguments[0]).read_text())["avoid"])
        if len(asked) == 3:
            return ending(error="Nothing worked.")
        return ending(step=f"mapping {len(asked)}")

    monkeypatch.setattr(child, "run", run)
    with pytest.raises(CaptureError, match=r"Nothing worked\."):
        solve.solve(Footage(tmp_path, "photos", False, ()), CONFIG)
    assert asked == [[], ["mapping 1"], ["mapping 1", "mapping 2"]]


@pytest.mark.parametrize("stage", ["features", "matches"])
def test_a_death_that_cannot_be_avoided_is_one_sentence(tmp_path, monkeypatch, stage):
    monkeypatch.setattr(child, "run", lambda *_: ending(stage=stage, step=""))
    with pytest.raises(CaptureError, match=f"died in the stage '{stage}' because it broke"):
        solve.solve(Footage(tmp_path, "photos", False, ()), CONFIG)


@pytest.mark.parametrize("text", ["", "[]", '{"version": 7}', '{"version": 1, "models": []}', "\x00"])
def test_a_damaged_solution_is_refused(tmp_path, text):
    (tmp_path / "colmap").mkdir()
    (tmp_path / "colmap" / "solution.json").write_text(text)
    with pytest.raises(CaptureError, match="damaged"):
        solve.load_solution(Footage(tmp_path, "photos", False, ()))


def test_a_solution_may_not_lead_out_of_its_folder(solved):
    footage = solved[0]
    path = footage.root / "colmap" / "solution.json"
    text = path.read_text(encoding="utf-8")
    try:
        path.write_text(text.replace('"sparse/0"', '"../../elsewhere"'), encoding="utf-8")
        with pytest.raises(CaptureError, match="leads out"):
            solve.load_solution(footage)
    finally:
        path.write_text(text, encoding="utf-8")


def test_options_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="max_side"):
        PoseConfig(max_side=0)
    with pytest.raises(ConfigError, match="lens"):
        PoseConfig(lens="WIDE")
    with pytest.raises(ConfigError, match="silence"):
        PoseConfig(silence=float("nan"))
