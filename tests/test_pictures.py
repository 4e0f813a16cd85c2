"""Colours keep their order, tiles keep their places, files come back as they were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from lightfold import pictures
from lightfold.errors import RunError


def luminance(colours: np.ndarray) -> np.ndarray:
    linear = (colours / 255.0) ** 2.2
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def test_rounding_to_8_bit_and_back() -> None:
    levels = torch.arange(256).float() / 255
    picture = levels.reshape(16, 16, 1).expand(16, 16, 3)
    assert np.array_equal(pictures.to_uint8(picture)[..., 0].ravel(), np.arange(256))
    torch.testing.assert_close(pictures.quantised(picture), picture)
    broken = torch.tensor([[[float("nan"), -1.0, 2.0]]])
    assert pictures.to_uint8(broken).tolist() == [[[0, 0, 255]]]


def test_the_colour_table_grows_evenly_lighter() -> None:
    table = pictures.colour_table()
    assert table.shape == (256, 3)
    lightness = np.cbrt(luminance(table))
    assert (np.diff(lightness[::4]) > 0).all()
    steps = np.diff(lightness[::16])
    assert steps.max() < 2.5 * steps.min()


def test_depth_colours_put_near_above_far_and_fade_where_nothing_is() -> None:
    depth = torch.linspace(1, 5, 50).expand(4, 50).clone()
    alpha = torch.ones(4, 50)
    alpha[3] = 0
    shown = pictures.depth_colours(depth, alpha)
    light = luminance(shown)
    assert (np.diff(light[0, ::5]) < 0).all()
    assert (shown[3] == 0).all()


def test_depth_range_ignores_a_floater_and_what_is_empty() -> None:
    depth = torch.full((100, 100), 4.0)
    depth[:, :50] = 2.0
    depth[0, 0] = 1e-3
    depth[1] = 900.0
    alpha = torch.ones(100, 100)
    alpha[1] = 0.0
    assert pictures.depth_range(depth, alpha) == (2.0, 4.0)
    assert pictures.depth_range(depth, torch.zeros(100, 100)) == (0.0, 0.0)
    assert (pictures.depth_colours(depth, torch.zeros(100, 100)) == 0).all()


def test_depth_colours_with_the_same_limits_do_not_depend_on_the_frame() -> None:
    alpha = torch.ones(8, 8)
    first = pictures.depth_colours(torch.full((8, 8), 2.0), alpha, (1.0, 10.0))
    mixed = torch.full((8, 8), 9.0)
    mixed[0, 0] = 2.0
    assert (pictures.depth_colours(mixed, alpha, (1.0, 10.0))[0, 0] == first[0, 0]).all()


def test_flat_depth_does_not_divide_by_zero() -> None:
    shown = pictures.depth_colours(torch.full((3, 3), 2.0), torch.ones(3, 3))
    assert (shown == shown[0, 0]).all()


def test_normal_alpha_and_error_colours() -> None:
    normal = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 0.0, 0.0]]])
    assert pictures.normal_colours(normal)[0].tolist() == [[255, 128, 128], [128, 128, 0], [128, 128, 128]]
    assert (pictures.normal_colours(normal, torch.zeros(1, 3)) == 0).all()
    assert pictures.alpha_colours(torch.tensor([[0.0, 1.0]]))[0, :, 0].tolist() == [0, 255]
    table = pictures.colour_table()
    error = pictures.error_colours(torch.tensor([[[0.0] * 3, [0.5] * 3]]), torch.zeros(1, 2, 3))
    assert (error[0, 0] == table[0]).all()
    assert (error[0, 1] == table[255]).all()


def test_tiles_lie_where_they_should() -> None:
    shades = [np.full((4, 6, 3), value, dtype=np.uint8) for value in (10, 20, 30)]
    row = pictures.tiled(shades)
    assert row.shape == (4, 3 * 6 + 2 * pictures.GAP, 3)
    assert [int(row[0, k * (6 + pictures.GAP), 0]) for k in range(3)] == [10, 20, 30]
    square = pictures.tiled(shades, columns=2)
    assert square.shape == (2 * 4 + pictures.GAP, 2 * 6 + pictures.GAP, 3)
    assert int(square[-1, 0, 0]) == 30
    assert tuple(square[-1, -1]) == pictures.PAPER
    with pytest.raises(ValueError, match="at least one"):
        pictures.tiled([])
    with pytest.raises(ValueError, match="expected uint8"):
        pictures.tiled([shades[0], shades[1][:2]])


@pytest.mark.parametrize("text", ["truth", "", "a very long name " * 20, "línea\n\x00<script>", "写真"])
def test_captions_keep_the_picture(text: str) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (20, 90, 3), dtype=np.uint8)
    shown = pictures.captioned(picture, text)
    assert shown.shape == (20 + pictures.CAPTION_HEIGHT, 90, 3)
    assert np.array_equal(shown[pictures.CAPTION_HEIGHT :], picture)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("images/0001.jpg", "images_0001"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("<script>alert(1)</script>.png", "_script_alert_1___script_"),
        ("...", "view"),
        ("day.1/view", "day.1_view"),
        ("", "view"),
        ("C:\\a b.png", "C__a_b"),
    ],
)
def test_safe_names_have_no_folders_and_no_markup(name: str, stem: str) -> None:
    found = pictures.safe_name(name)
    assert found == stem
    assert "/" not in found
    assert len(pictures.safe_name(name * 100)) <= 80


def test_png_comes_back_exactly_and_jpeg_nearly(tmp_path: Path) -> None:
    picture = np.linspace(0, 255, 16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
    pictures.save_picture(tmp_path / "new" / "a.png", picture)
    pictures.save_picture(tmp_path / "new" / "a.jpg", torch.from_numpy(picture) / 255)
    assert np.array_equal(np.asarray(PillowImage.open(tmp_path / "new" / "a.png")), picture)
    close = np.asarray(PillowImage.open(tmp_path / "new" / "a.jpg")).astype(int)
    assert np.abs(close - picture).mean() < 4
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.jpg", "a.png"]
    with pytest.raises(ValueError, match=r"ends in .png"):
        pictures.save_picture(tmp_path / "a.gif", picture)


def test_depth_files_keep_the_numbers(tmp_path: Path) -> None:
    depth = torch.tensor([[0.0, 1.2344], [65.535, 80.0]])
    assert pictures.save_depth(tmp_path / "d.png", depth) == 1
    stored = PillowImage.open(tmp_path / "d.png")
    assert np.asarray(stored).tolist() == [[0, 1234], [65535, 65535]]
    assert float(stored.info["depth_unit"]) == 0.001
    assert pictures.save_depth(tmp_path / "d.npy", depth) == 0
    assert np.array_equal(np.load(tmp_path / "d.npy"), depth.numpy())
    with pytest.raises(ValueError, match="positive step"):
        pictures.save_depth(tmp_path / "d.png", depth, unit=0.0)


def test_a_folder_that_cannot_be_written_gives_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    picture = np.zeros((4, 4, 3), dtype=np.uint8)
    with pytest.raises(RunError, match="could not be written"):
        pictures.save_picture(tmp_path / "file" / "a.png", picture)
