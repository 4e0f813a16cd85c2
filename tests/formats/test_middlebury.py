"""Middlebury's par files: the box, names, damaged lines, and the temple."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from damage import survives_damage
from epipolar import epipolar_errors
from synthetic_rig import HEIGHT, WIDTH, rig, write_middlebury

from lightfold.errors import CaptureError
from lightfold.formats import middlebury


def lines(folder: Path) -> list[str]:
    return (folder / "rig_par.txt").read_text().splitlines()


def rewrite(folder: Path, rows: list[str]) -> Path:
    (folder / "rig_par.txt").write_text("\n".join(rows))
    return folder


def test_box_and_size(tmp_path: Path) -> None:
    capture = middlebury.read(write_middlebury(tmp_path, rig()))
    assert capture.bounds is not None and capture.bounds.tolist() == [[-0.5] * 3, [0.5, 0.5, 0.6]]
    camera = capture.frames[0].camera
    assert camera is not None and (camera.width, camera.height) == (WIDTH, HEIGHT)
    assert middlebury.read(tmp_path / "rig_par.txt").root == tmp_path


@pytest.mark.parametrize(
    "text", ["", "bounding box (1 2 3)", "The bounding box is (1 2 3) (1 5 9)", "box (0 0 0) (1 1 1)"]
)
def test_no_box(text: str, tmp_path: Path) -> None:
    write_middlebury(tmp_path, rig())
    (tmp_path / "README.txt").write_text(text)
    capture = middlebury.read(tmp_path)
    assert capture.bounds is None and "nothing bounds the scene" in capture.notes[-1]


def test_names_with_spaces_and_paths(tmp_path: Path) -> None:
    rows = lines(write_middlebury(tmp_path, rig()))
    (tmp_path / "1.png").rename(tmp_path / "view 1.png")
    rows[2] = rows[2].replace("1.png", "view 1.png")
    # Only the name counts: nothing above the folder is looked at.
    rows[3] = rows[3].replace("2.png", "../../2.png")
    capture = middlebury.read(rewrite(tmp_path, rows))
    assert [frame.name for frame in capture.frames] == ["0.png", "view 1.png", "2.png", "3.png", "4.png"]
    assert all(frame.path.parent == tmp_path for frame in capture.frames)


def test_cameras_that_cannot_be_used(tmp_path: Path) -> None:
    rows = lines(write_middlebury(tmp_path, rig()))
    rows[1] = " ".join([*rows[1].split()[:-1], "nan"])
    rows[2] = " ".join([*rows[2].split()[:10], *["7"] * 12])
    (tmp_path / "2.png").unlink()
    rows[4] = " ".join([rows[4].split()[0], "0", *rows[4].split()[2:]])
    capture = middlebury.read(rewrite(tmp_path, rows))
    assert [frame.name for frame in capture.frames] == ["4.png"] and len(capture.notes) == 4


def test_lines_that_are_no_cameras(tmp_path: Path) -> None:
    rows = lines(write_middlebury(tmp_path, rig()))
    with pytest.raises(CaptureError, match=r"Line 3 of .*rig_par.txt is not a picture and 21 numbers"):
        middlebury.read(rewrite(tmp_path, [*rows[:2], rows[2][:100]]))
    with pytest.raises(CaptureError, match=r"no usable frame \(0 found\)"):
        middlebury.read(rewrite(tmp_path, ["5"]))
    (tmp_path / "other_par.txt").write_text("x")
    with pytest.raises(CaptureError, match=r"holds 2 camera files \(other_par.txt, rig_par.txt\); name one"):
        middlebury.read(tmp_path)


def test_damaged_files(tmp_path: Path) -> None:
    write_middlebury(tmp_path, rig())
    survives_damage(tmp_path / "rig_par.txt", middlebury.read, tmp_path)
    survives_damage(tmp_path / "README.txt", middlebury.read, tmp_path, examples=20)


@pytest.mark.slow
def test_temple(shared_data: Path) -> None:
    capture = middlebury.read(shared_data / "middlebury_temple")
    assert len(capture) == 16 and capture.notes == () and capture.bounds is not None
    assert capture.bounds.flatten().tolist() == [-0.073568, 0.021728, -0.012445, 0.028855, 0.181892, 0.062736]
    # The box is in every picture: its corners project into it.
    corners = torch.cartesian_prod(*capture.bounds.T)
    for frame in capture.frames:
        assert frame.camera is not None
        xy, valid = frame.camera.project(corners)
        assert bool(valid.all()) and bool((xy > -20).all()) and bool((xy < torch.tensor([660, 500])).all())
    errors = epipolar_errors(capture, [6, 7, 8])
    assert len(errors) > 150 and np.median(errors) < 1 and (errors < 3).mean() > 0.85
