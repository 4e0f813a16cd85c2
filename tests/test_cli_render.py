"""lightfold render for two eyes and all round: the videos are what players expect, and mistakes are sentences."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from analytic_sphere import RED, Sphere, camera_at, info_of, ring

from lightfold.cli import render
from lightfold.config import RunConfig, TrainConfig, lookup
from lightfold.errors import ConfigError
from lightfold.path_files import write_camera_path
from lightfold.paths import orbit
from lightfold.run import Run
from lightfold.scene import SceneConfig
from lightfold.spherical_video import Tags, read_tags

WHOLE, FRONT = (0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.25, 0.25)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose method is a sphere; its capture, of unknown unit, is gone."""
    monkeypatch.setattr(Run, "method", lambda run, step=None, device=None: Sphere(run.info))
    info = info_of([camera_at(eye, torch.zeros(3)) for eye in ring(8)])
    config = RunConfig("/captures/sphere", "nerf", lookup("nerf")[1], SceneConfig(), TrainConfig())
    return Run.create(tmp_path / "run", config, info).path


def first_frame(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


@pytest.mark.parametrize(
    ("words", "name", "shape", "tags"),
    [
        (["--stereo", "side-by-side"], "auto_side-by-side_rgb", (36, 96), Tags("side-by-side")),
        (["--lens", "equirectangular", "--size", "32", "16"], "auto_rgb", (16, 32), Tags("mono", WHOLE)),
        (
            ["--lens", "equirectangular", "--size", "32", "16", "--stereo", "top-bottom", "--outputs", "depth"],
            "auto_top-bottom_depth",
            (32, 32),
            Tags("top-bottom", WHOLE),
        ),
        (["--lens", "vr180", "--size", "16", "16"], "auto_vr180_rgb", (16, 32), Tags("side-by-side", FRONT)),
        (
            ["--lens", "vr180", "--size", "16", "16", "--stereo", "mono"],
            "auto_vr180_rgb",
            (16, 16),
            Tags("mono", FRONT),
        ),
    ],
)
def test_videos_for_players(words: list[str], name: str, shape: tuple[int, int], tags: Tags, run: Path) -> None:
    render.main([str(run), "--frames", "1", *words])
    path = run / "renders" / f"{name}.mp4"
    assert first_frame(path).shape[:2] == shape
    assert read_tags(path) == tags
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_eyes_are_as_far_apart_as_is_said(run: Path) -> None:
    """In units of the capture, half as long as those of the scene; else a thirtieth of the way to the focus."""
    opened = Run.open(run)
    said = render.viewing_of(opened, render.RenderArguments(stereo="top-bottom", eye_distance=0.3))
    assert (said.layout, said.half) == ("top-bottom", False) and said.eye_distance == pytest.approx(0.15)
    found = render.viewing_of(opened, render.RenderArguments(lens="vr180"))
    assert (found.layout, found.half) == ("side-by-side", True)
    assert found.eye_distance == pytest.approx(10**0.5 / 30, rel=1e-3)
    assert render.viewing_of(opened, render.RenderArguments()).layout == "mono"


def test_in_metres_the_eyes_are_those_of_people(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "_is_metric", lambda run: True)
    found = render.viewing_of(Run.open(run), render.RenderArguments(stereo="side-by-side"))
    assert found.eye_distance == pytest.approx(0.5 * 0.063)


def test_panoramas_are_level(run: Path) -> None:
    cameras, *_ = render.cameras_of(Run.open(run), render.RenderArguments(lens="equirectangular", frames=3))
    assert (cameras.width, cameras.height) == (2048, 1024)  # type: ignore[union-attr]
    down = cameras.world_from_cam[:, :, 1]  # type: ignore[union-attr]
    assert torch.allclose(down, torch.tensor([0.0, 0.0, -1.0]).expand(3, 3), atol=1e-6)


@pytest.mark.parametrize(("kind", "shape", "tags"), [
    ("vr180", (36, 96), Tags("side-by-side", FRONT)),
    ("Omnidirectional", (72, 48), Tags("top-bottom", WHOLE)),
])  # fmt: skip
def test_camera_paths_for_two_eyes(kind: str, shape: tuple[int, int], tags: Tags, run: Path, tmp_path: Path) -> None:
    """As nerfstudio's add-on for Blender writes them."""
    info = Run.open(run).info
    write_camera_path(tmp_path / "film.json", orbit(info, 1), info)
    document = json.loads((tmp_path / "film.json").read_text())
    (tmp_path / "film.json").write_text(json.dumps(document | {"camera_type": kind}))
    render.main([str(run), "--path", str(tmp_path / "film.json"), "--out", str(tmp_path / "film.mp4")])
    frame = first_frame(tmp_path / "film.mp4")
    assert frame.shape[:2] == shape and read_tags(tmp_path / "film.mp4") == tags
    # The camera looks at the sphere, which is in the middle of each eye's picture.
    height, width = 36, 48
    middles = [frame[18, 24], frame[shape[0] - height // 2, shape[1] - width // 2]]
    assert all(np.abs(middle.astype(int) - (RED * 255).numpy()).max() < 12 for middle in middles)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--stereo", "side-by-side", "--outputs", "rgb", "depth"], "room for one of --outputs"),
        (["--stereo", "side-by-side", "--eye-distance", "0"], "--eye-distance must be"),
        (["--lens", "vr180", "--size", "15", "16"], "even width"),
        (["--lens", "vr180", "--path", "held-out"], "--lens vr180 needs a path that is made here"),
    ],
)
def test_mistakes_are_sentences(words: list[str], sentence: str, run: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        render.main([str(run), "--frames", "1", *words])
    assert not (run / "renders").exists()
