"""lightfold convert: a data set in another format, whole or not at all, and never over something."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent / "formats"))
from synthetic_rig import HEIGHT, WIDTH, ngp_document, rig, save_picture, write_transforms

from lightfold.cli import main
from lightfold.cli.convert import ConvertArguments, convert
from lightfold.errors import ConfigError
from lightfold.formats import llff, open_capture

NAMES = [f"images/{i}.png" for i in range(5)]


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    document = ngp_document(rig(WIDTH / 2, HEIGHT / 2, 36.0, 36.0), NAMES)
    document |= {"near": 1.0, "far": 5.0, "aabb": [[-1, -1, -1], [1, 1, 1]]}
    return write_transforms(tmp_path / "capture", document)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_a_capture_is_written_and_says_what_was_lost(
    capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(capture), "--to", "llff", str(tmp_path / "to"), "--factors", "2"]) == 0
    assert "no place for it: the box that holds the scene" in said(capsys)
    again = open_capture(tmp_path / "to")
    assert again.format == "llff" and (again.near, again.far) == (1.0, 5.0)
    half = llff.read(tmp_path / "to/images_2")
    assert {frame.camera.width for frame in half.frames if frame.camera is not None} == {WIDTH // 2}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(("subset", "kept"), [("2", "04"), ("0.6", "024"), ("100", "01234")])
def test_a_subset_is_spaced_evenly(capture: Path, tmp_path: Path, subset: str, kept: str) -> None:
    assert main(["convert", str(capture), "--to", "transforms", str(tmp_path / "to"), "--subset", subset]) == 0
    assert [frame.name for frame in open_capture(tmp_path / "to").frames] == [f"images/{i}.png" for i in kept]


def test_light_has_no_smaller_copies(capture: Path, tmp_path: Path) -> None:
    read = open_capture(capture)
    light = replace(read, frames=tuple(replace(frame, path=frame.path.with_suffix(".exr")) for frame in read.frames))
    arguments = ConvertArguments(str(capture), str(tmp_path / "to"), "colmap", factors=(2,))
    with pytest.raises(ConfigError, match="holds light; leave it out"):
        convert(light, arguments, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_nothing_is_overwritten(capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "to"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    assert main(["convert", str(capture), "--to", "colmap", str(out)]) == 2
    assert "holds something already" in said(capsys)
    assert main(["convert", str(capture), "--to", "colmap", str(capture)]) == 2
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    assert main(["convert", str(capture), "--to", "colmap", str(tmp_path / "empty")]) == 0
    assert open_capture(tmp_path / "empty").format == "colmap"


def test_a_failure_leaves_nothing_behind(capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = (capture / "images/3.png").read_bytes()
    (capture / "images/3.png").write_bytes(data[: len(data) - 30])
    assert main(["convert", str(capture), "--to", "blender", str(tmp_path / "to")]) == 2
    assert "images/3.png cannot be carried over" in said(capsys)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["capture"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Say what to write where"),
        (["CAPTURE", "OUT"], "Say what to write where"),
        (["CAPTURE", "OUT", "--to", "colmpa"], "No format called 'colmpa' is written. Did you mean"),
        (["CAPTURE", "OUT", "--to", "blender", "--factors", "2"], "the format is blender"),
        (["CAPTURE", "OUT", "--to", "llff", "--factors", "1"], "--factors must be"),
        (["CAPTURE", "OUT", "--to", "llff", "--subset", "0"], "--subset must be"),
        (["CAPTURE", "OUT", "--to", "llff", "--subset", "nan"], "--subset must be"),
        (["CAPTURE", "OUT", "--to", "neus", "--box", "1", "1", "1", "0", "0", "0"], "--box must be"),
        (["CAPTURE", "OUT", "--to", "llff", "--box", "0", "0", "0", "1", "1", "1"], "no place"),
        (["CAPTURE", "OUT", "--to", "llff", "--format", "lff"], "no format called 'lff'"),
        (["gone", "OUT", "--to", "llff"], "nothing at"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    words: list[str], sentence: str, capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"CAPTURE": str(capture), "OUT": str(tmp_path / "to")}
    assert main(["convert", *(named.get(word, word) for word in words)]) == 2
    assert sentence in said(capsys)
    assert not (tmp_path / "to").exists()


def test_photos_without_poses_are_sent_to_poses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_picture(tmp_path / "photos/a.png")
    assert main(["convert", str(tmp_path / "photos"), "--to", "neus", str(tmp_path / "to")]) == 2
    assert "lightfold poses" in said(capsys)


def test_a_box_is_what_the_unit_sphere_holds(capture: Path, tmp_path: Path) -> None:
    free = replace(open_capture(capture), bounds=None)
    arguments = ConvertArguments(to="neus", box=(-0.5, -0.4, 0.1, 0.7, 0.4, 0.3))
    notes = convert(free, arguments, tmp_path / "to")
    assert any("from the box that was given" in note for note in notes)
    scale_mat = np.load(tmp_path / "to/cameras_sphere.npz")["scale_mat_0"]
    corners = np.array([[-0.5, -0.4, 0.1, 1], [0.7, 0.4, 0.3, 1]]) @ np.linalg.inv(scale_mat).T
    np.testing.assert_allclose(np.linalg.norm(corners[:, :3], axis=1), 1.0)
    assert sorted(p.name for p in (tmp_path / "to/image").iterdir()) == [f"{i:06d}.png" for i in range(5)]


def test_blender_gets_a_split_by_the_rule_of_training(capture: Path, tmp_path: Path) -> None:
    notes = convert(open_capture(capture), ConvertArguments(to="blender"), tmp_path / "to")
    assert "Every 8th picture is a test view: 1 of 5." in notes
    again = open_capture(tmp_path / "to")
    assert [frame.split for frame in again.frames].count("test") == 1
    with Image.open(again.frames[0].path) as image:
        assert image.mode == "RGBA"


def test_converting_twice_comes_back(capture: Path, tmp_path: Path) -> None:
    first = open_capture(capture)
    convert(first, ConvertArguments(to="neus"), tmp_path / "neus")
    convert(open_capture(tmp_path / "neus"), ConvertArguments(to="colmap"), tmp_path / "colmap")
    again = open_capture(tmp_path / "colmap")
    at = torch.rand(7, 3, dtype=torch.float64) - 0.5
    sphere = open_capture(tmp_path / "neus").original_from_capture.inverse().apply(at)
    for before, after in zip(first.frames, again.frames, strict=True):
        assert before.camera is not None and after.camera is not None
        torch.testing.assert_close(after.camera.project(sphere)[0], before.camera.project(at)[0], atol=1e-6, rtol=0)
