"""Evaluation: known scores come out, the protocol stands beside them, and nothing half-written is left."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic_sphere import RED, Sphere, camera_at, info_of, ring, scene_of
from PIL import Image as PillowImage

from lightfold.errors import ConfigError, LightfoldError, RunError
from lightfold.evaluate import background_colour, composited, evaluate, mean_scores, select_views
from lightfold.metrics import psnr, ssim
from lightfold.pictures import quantised
from lightfold.scene import SceneInfo

ORIGIN = torch.zeros(3)


@pytest.fixture
def info() -> SceneInfo:
    return info_of([camera_at(eye, ORIGIN) for eye in ring(8)], has_alpha=True)


def test_a_perfect_method_gets_a_perfect_score(info: SceneInfo) -> None:
    result = evaluate(Sphere(info), scene_of(info))  # type: ignore[arg-type]
    assert result["mean"] == {"psnr": 100.0, "ssim": pytest.approx(1.0, abs=1e-12), "lpips": None}
    assert [row["index"] for row in result["views"]] == [0, 4]
    assert result["protocol"]["lpips"] == "LPIPS was not asked for."


def test_scores_are_means_over_pictures_of_8_bit_comparisons(info: SceneInfo) -> None:
    scene = scene_of(info, noise=0.1)
    result = evaluate(Sphere(info), scene, "all")  # type: ignore[arg-type]
    expected = []
    for row in result["views"]:
        view = scene.view(row["index"])
        truth = quantised(composited(view.rgb, view.alpha, torch.zeros(3)))
        shown = quantised(Sphere(info).render(view.camera).rgb)
        assert row["psnr"] == pytest.approx(psnr(shown, truth), abs=1e-9)
        assert row["ssim"] == pytest.approx(ssim(shown, truth), abs=1e-9)
        expected.append(row["psnr"])
    assert len(expected) == 8
    assert result["mean"]["psnr"] == pytest.approx(float(np.mean(expected)))


@pytest.mark.parametrize("background", ["white", (0.2, 0.4, 0.6), torch.tensor([0.5, 0.0, 1.0])])
def test_truth_and_render_are_composited_over_the_same_background(info: SceneInfo, background: object) -> None:
    result = evaluate(Sphere(info), scene_of(info), background=background)  # type: ignore[arg-type]
    assert result["mean"]["psnr"] == 100.0
    colour = background_colour(info, background)  # type: ignore[arg-type]
    assert result["protocol"]["background"] == pytest.approx(colour.tolist(), abs=1e-6)


def test_the_scenes_own_background_is_the_default() -> None:
    white = info_of([camera_at(eye, ORIGIN) for eye in ring(4)], background=(1.0, 1.0, 1.0))
    assert evaluate(Sphere(white), scene_of(white))["protocol"]["background"] == [1.0, 1.0, 1.0]  # type: ignore[arg-type]
    assert background_colour(info_of(list(white.cameras)), None).tolist() == [0.0, 0.0, 0.0]


def test_masked_scores_leave_out_what_the_mask_leaves_out(info: SceneInfo) -> None:
    scene = scene_of(info, masked=(0,))
    clean = scene.view

    def spoiled(index: int) -> object:
        view = clean(index)
        view.rgb[~view.mask] = 1 - view.rgb[~view.mask]
        return view

    scene.view = spoiled
    result = evaluate(Sphere(info), scene)  # type: ignore[arg-type]
    first, second = result["views"]
    assert first["masked"]
    assert not second["masked"]
    assert first["psnr"] < 20
    assert first["psnr_masked"] == 100.0
    assert first["ssim"] < first["ssim_masked"] <= 1.0
    assert "psnr_masked" not in second
    assert result["mean"]["psnr_masked"] == 100.0
    assert result["mean"]["psnr"] == pytest.approx(0.5 * (first["psnr"] + 100.0))


def test_a_view_that_is_masked_out_altogether_has_no_masked_score(info: SceneInfo) -> None:
    scene = scene_of(info)
    clean = scene.view

    def hidden(index: int) -> object:
        view = clean(index)
        view.mask[:] = index != 0
        return view

    scene.view = hidden
    result = evaluate(Sphere(info), scene)  # type: ignore[arg-type]
    assert result["views"][0]["psnr_masked"] is None
    assert result["mean"]["psnr_masked"] == 100.0


def test_files_are_complete_and_hold_what_was_returned(info: SceneInfo, tmp_path: Path) -> None:
    calls = []
    result = evaluate(
        Sphere(info),  # type: ignore[arg-type]
        scene_of(info, noise=0.05),  # type: ignore[arg-type]
        out_dir=tmp_path,
        protocol={"split": "every:4", "step": 300},
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(1, 2), (2, 2)]
    stored = json.loads((tmp_path / "eval.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(result))
    protocol = stored["protocol"]
    assert protocol["split"] == "every:4"
    assert protocol["step"] == 300
    assert protocol["8-bit quantised"] is True
    assert protocol["colour_space"] == "sRGB"
    assert protocol["resolution"] == ["48x36"]
    assert protocol["view_count"] == 2
    assert protocol["of_them_trained_on"] == 0
    assert stored["timing"]["rays_per_second"] > 0
    for row in stored["views"]:
        assert row["seconds"] >= 0
        picture = np.asarray(PillowImage.open(tmp_path / row["picture"]))
        assert picture.shape[1] > 4 * 48
        assert np.abs(picture[22 + 18, 24].astype(int) - (RED * 255).numpy()).max() < 60
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval", "eval.json"]
    assert not list(tmp_path.rglob("*.partial"))


def test_scores_on_training_views_do_not_replace_the_held_out_ones(info: SceneInfo, tmp_path: Path) -> None:
    scene = scene_of(info)
    for views in ("test", "train", "every:3", [1, 5]):
        evaluate(Sphere(info), scene, views, tmp_path)  # type: ignore[arg-type]
    names = sorted(path.name for path in tmp_path.glob("*.json"))
    assert names == ["eval.json", "eval_chosen.json", "eval_every_3.json", "eval_train.json"]
    assert json.loads((tmp_path / "eval_train.json").read_text())["protocol"]["of_them_trained_on"] == 6


def test_a_broken_rendering_is_counted_and_scored(info: SceneInfo, tmp_path: Path) -> None:
    class Broken(Sphere):
        def render(self, camera, background=None):  # type: ignore[no-untyped-def]
            image = super().render(camera, background)
            image.rgb[3, 4, 1] = float("nan")
            return image

    result = evaluate(Broken(info), scene_of(info), out_dir=tmp_path)  # type: ignore[arg-type]
    assert all(row["pixels_not_finite"] == 1 for row in result["views"])
    assert math.isfinite(result["mean"]["psnr"])
    json.loads((tmp_path / "eval.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_pictures_too_small_for_a_window_still_have_a_psnr() -> None:
    tiny = info_of([camera_at(eye, ORIGIN, width=9, height=8, focal=8.0) for eye in ring(4)])
    result = evaluate(Sphere(tiny), scene_of(tiny))  # type: ignore[arg-type]
    assert result["mean"] == {"psnr": 100.0, "ssim": None, "lpips": None}


def test_lpips_is_asked_for_once_and_its_reason_is_kept(info: SceneInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def network(net: str) -> object:
        asked.append(net)
        return lambda pred, true: float((pred - true).abs().mean()) + 0.25

    monkeypatch.setattr("lightfold.evaluate.lpips_or_reason", network)
    result = evaluate(Sphere(info), scene_of(info), lpips=True)  # type: ignore[arg-type]
    assert asked == ["vgg"]
    assert result["mean"]["lpips"] == 0.25
    assert result["protocol"]["lpips"].startswith("vgg")
    monkeypatch.setattr("lightfold.evaluate.lpips_or_reason", lambda net: f"no weights for {net}")
    result = evaluate(Sphere(info), scene_of(info), lpips="alex")  # type: ignore[arg-type]
    assert result["protocol"]["lpips"] == "no weights for alex"
    assert result["mean"]["lpips"] is None


def test_views_are_chosen_by_name_or_index(info: SceneInfo) -> None:
    assert select_views(info, "test") == (0, 4)
    assert select_views(info, "train") == (1, 2, 3, 5, 6, 7)
    assert select_views(info, "every:3") == (0, 3, 6)
    assert select_views(info, "all") == tuple(range(8))
    assert select_views(info, [7, 1]) == (7, 1)
    for wrong in ("every:0", "every:x", "tests", ""):
        with pytest.raises(ConfigError, match="known are test, train, all"):
            select_views(info, wrong)
    for indices in ([], [8], [-1]):
        with pytest.raises(ValueError, match="views: expected"):
            select_views(info, indices)
    with pytest.raises(LightfoldError, match="No views were held out"):
        select_views(info_of(list(info.cameras), test_every=None), "test")


def test_backgrounds_that_are_none_are_refused(info: SceneInfo) -> None:
    with pytest.raises(ConfigError, match="known are black, white, grey"):
        background_colour(info, "pink")
    for colour in ((0.1, 0.2), (0.0, 0.0, 1.5), (float("nan"), 0.0, 0.0)):
        with pytest.raises(ValueError, match=r"three values in \[0, 1\]"):
            background_colour(info, colour)


def test_means_pass_over_what_is_missing() -> None:
    rows = [{"psnr": 20.0, "ssim": None, "masked": False}, {"psnr": math.nan, "ssim": 0.5, "masked": False}]
    assert mean_scores(rows) == {"psnr": 20.0, "ssim": 0.5, "lpips": None}


def test_a_folder_that_cannot_be_made_gives_one_sentence(info: SceneInfo, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="could not be written"):
        evaluate(Sphere(info), scene_of(info), out_dir=tmp_path / "file")  # type: ignore[arg-type]
