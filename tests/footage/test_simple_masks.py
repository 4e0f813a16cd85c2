"""`lightfold mask`: shapes are where they should be, masks fit their photos, and nothing that exists is lost."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightfold.cameras import Camera
from lightfold.cli.mask import MaskArguments, main, make_masks
from lightfold.errors import CaptureError, ConfigError
from lightfold.footage.masks import UPRIGHT, all_of, circle, off_colour, outside_nadir, outside_rectangle
from lightfold.footage.photos import gather_photos


def photo(path: Path, width: int = 160, height: int = 120, orientation: int = 1, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height), colour).save(path, exif=exif)
    return path


def read(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file) > 0


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_a_circle_of_radius_one_touches_the_longer_sides() -> None:
    mask = circle(160, 120, 1.0)
    assert mask[0, 80] and mask[-1, 79] and mask[60, 20] and not mask[60, 19] and not mask[0, 0]
    assert mask.mean() == pytest.approx(math.pi * 60**2 / (160 * 120), rel=0.01)
    assert (mask == mask[::-1, ::-1]).all()
    moved = circle(160, 120, 0.5, (0.25, 0.5))
    assert moved[60, 40] and not moved[60, 80]


def test_rectangles_are_shares_of_the_sides() -> None:
    mask = outside_rectangle(100, 50, 0.1, 0.8, 0.3, 1.0)
    assert (~mask).sum() == 20 * 10 and not mask[40:, 10:30].any()


@pytest.mark.parametrize("degrees", [10, 45, 90, 120])
def test_the_nadir_is_an_angle_on_the_sphere(degrees: float) -> None:
    camera = Camera.panorama(torch.eye(3, 4, dtype=torch.float64), 360, 180)
    down = camera.unproject(camera.pixel_grid())[:, 1].reshape(180, 360)
    from_straight_down = torch.rad2deg(torch.acos(down.clamp(-1, 1))).numpy()
    assert (outside_nadir(360, 180, degrees) == (from_straight_down > degrees)).all()


def test_a_colour_is_hidden_with_those_near_it() -> None:
    picture = Image.new("RGB", (3, 1))
    for x, colour in enumerate([(0, 255, 0), (30, 230, 20), (60, 255, 0)]):
        picture.putpixel((x, 0), colour)
    assert off_colour(picture, (0, 255, 0), 40).tolist() == [[False, False, True]]
    assert off_colour(picture, (0, 255, 0), 0).tolist() == [[False, True, True]]
    assert not all_of([np.eye(3, dtype=bool), ~np.eye(3, dtype=bool)]).any()


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_reaches_the_footage_as_the_photo_is_seen(orientation: int, tmp_path: Path) -> None:
    """The rectangle is in the upper left corner of the upright picture, however it is stored."""
    photo(tmp_path / "photos/a b.jpg", orientation=orientation)
    photo(tmp_path / "photos/tag/ä.png", orientation=orientation, colour="blue")
    made = make_masks(MaskArguments(str(tmp_path / "photos"), rectangle=((0.0, 0.0, 0.5, 0.25),)))
    assert made.written == ("a b.jpg", "tag/ä.png") and made.share == pytest.approx(7 / 8)
    stored = read(tmp_path / "photos/masks/a b.jpg.png")
    assert stored.shape == (120, 160)
    footage = gather_photos(tmp_path / "photos", tmp_path / "out")
    for shot in footage.shots:
        path = footage.mask(shot)
        assert path is not None
        upright = read(path)
        assert upright.shape == (shot.height, shot.width)
        assert not upright[: shot.height // 4, : shot.width // 2].any() and upright.mean() == pytest.approx(7 / 8)
    if orientation in UPRIGHT:
        turned = Image.fromarray(stored.astype(np.uint8)).transpose(UPRIGHT[orientation])
        assert not np.asarray(turned)[0, 0]


def test_masks_that_exist_are_kept_unless_told_otherwise(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        photo(tmp_path / name)
    (tmp_path / "masks").mkdir()
    Image.new("L", (160, 120), 255).save(tmp_path / "masks/a.png")
    Image.new("L", (160, 120), 255).save(tmp_path / "masks/b.jpg.png")
    arguments = MaskArguments(str(tmp_path), circle=0.5)
    made = make_masks(arguments)
    assert (made.written, made.kept) == (("c.jpg",), 2)
    assert read(tmp_path / "masks/a.png").all() and read(tmp_path / "masks/b.jpg.png").all()
    made = make_masks(MaskArguments(str(tmp_path), circle=0.5, overwrite=True))
    assert (len(made.written), made.kept) == (3, 0)
    assert not read(tmp_path / "masks/b.jpg.png").all() and not read(tmp_path / "masks/a.jpg.png").all()


def test_a_captures_masks_lie_beside_its_images(tmp_path: Path) -> None:
    photo(tmp_path / "images/a.jpg")
    make_masks(MaskArguments(str(tmp_path), circle=1.0))
    assert (tmp_path / "masks/a.jpg.png").is_file()


def test_photos_that_cannot_be_masked_are_named(tmp_path: Path) -> None:
    photo(tmp_path / "wide.jpg", 1024, 512)
    photo(tmp_path / "other.jpg")
    (tmp_path / "text.jpg").write_text("no picture")
    made = make_masks(MaskArguments(str(tmp_path), nadir=20.0))
    assert made.written == ("wide.jpg",)
    assert [name for name, _ in made.refused] == ["other.jpg", "text.jpg"]
    (tmp_path / "wide.jpg").unlink()
    with pytest.raises(CaptureError, match=r"No mask was made: .* only a panorama"):
        make_masks(MaskArguments(str(tmp_path), nadir=20.0))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Say which photos to mask"),
        (["."], "Say what to mask"),
        ([".", "--circle", "0"], "--circle should lie between 0 and 2, but is 0"),
        ([".", "--nadir", "200"], "--nadir should lie between"),
        ([".", "--rectangle", "0.5", "0", "0.2", "1"], "but is 0.5 0 0.2 1"),
        ([".", "--colour-key", "greenish"], "not 'greenish'"),
        ([".", "--color-key", "green"], "Did you mean --colour-key"),
    ],
)
def test_arguments_that_mean_nothing(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main(words)


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "b.png", colour="#00ff00")
    words = [str(tmp_path), "--rectangle", "0", "0", "0.5", "1", "0.75", "0", "1", "1", "--colour-key", "#0f0"]
    main(words)
    shown = capsys.readouterr().out
    assert "masks written" in shown and "12.5 %" in shown
    main(words)
    assert "--overwrite" in capsys.readouterr().out
