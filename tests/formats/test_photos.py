"""A plain folder of photos: what is listed, and what headers say about the lens."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational
from synthetic_rig import save_picture

from lightfold.cameras import Lens
from lightfold.errors import CaptureError
from lightfold.formats import open_capture, photos
from lightfold.formats.frames import FrameError, read_header


def with_exif(path: Path, width: int, height: int, top: dict[int, object], details: dict[int, object]) -> Path:
    exif = Image.Exif()
    exif.update(top)
    exif.get_ifd(0x8769).update(details)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), 90).save(path, exif=exif)
    return path


def test_pictures_are_found_in_natural_order_at_any_depth(tmp_path: Path) -> None:
    names = ["day 1/IMG_9.JPG", "day 1/IMG_10.jpeg", "day 2/ä.webp", "top.png", "z.tif"]
    extra = ["masks/top.png", ".thumbs/a.png", "images_4/b.png", "dynamic_mask_top.png", ".hidden.png"]
    for name in names + extra:
        save_picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    capture = open_capture(tmp_path)
    assert capture.format == "photos"
    assert [frame.name for frame in capture.frames] == names
    assert all(frame.camera is None and frame.guess is not None for frame in capture.frames)
    assert [frame.mask for frame in capture.frames if frame.name == "top.png"] == [tmp_path / "masks/top.png"]
    assert len(capture.posed()) == 0


def radiance(path: Path, level: int = 128) -> Path:
    path.write_bytes(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 80 +X 90\n" + bytes([level, 90, 60, 128]) * 7200)
    return path


def test_light_counts_where_there_is_nothing_else(tmp_path: Path) -> None:
    """Beside photographs, files of floating-point numbers are their depths."""
    for name in ("b.hdr", "a.HDR"):
        radiance(tmp_path / name)
    capture = open_capture(tmp_path)
    assert capture.format == "photos" and [frame.name for frame in capture.frames] == ["a.HDR", "b.hdr"]
    assert capture.frames[0].guess is not None and capture.frames[0].guess.width == 90
    save_picture(tmp_path / "c.png")
    assert [frame.name for frame in open_capture(tmp_path).frames] == ["c.png"]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    save_picture(tmp_path / "a" / "1.png")
    os.symlink(tmp_path, tmp_path / "a" / "again", target_is_directory=True)
    assert [frame.name for frame in photos.read(tmp_path).frames] == ["a/1.png"]


def test_unreadable_pictures_are_noted_and_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    save_picture(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff nonsense")
    capture = photos.read(tmp_path)
    assert capture.notes == (
        "1 of 2 pictures were left out because the file is not a picture that can be read: bad.jpg.",
    )
    (tmp_path / "good.png").unlink()
    with pytest.raises(CaptureError, match=r"no usable frame \(1 found\).*bad.jpg"):
        photos.read(tmp_path)
    assert not photos.sniff(tmp_path / "bad.jpg")
    with pytest.raises(CaptureError, match="is not a folder"):
        photos.read(tmp_path / "bad.jpg")


@pytest.mark.parametrize(
    ("orientation", "size"), [(1, (40, 30)), (3, (40, 30)), (6, (30, 40)), (8, (30, 40)), (77, (40, 30))]
)
def test_exif_orientation_is_to_be_applied(orientation: int, size: tuple[int, int], tmp_path: Path) -> None:
    save_picture(tmp_path / "a.jpg", orientation=orientation)
    (frame,) = photos.read(tmp_path).frames
    assert frame.guess is not None and (frame.guess.width, frame.guess.height) == size
    assert frame.exif_rotate is (orientation in (3, 6, 8))


def test_a_tiff_is_rotated_by_pillow_itself(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.tif", orientation=6)
    (frame,) = photos.read(tmp_path).frames
    with Image.open(frame.path) as picture:
        picture.load()
        assert frame.guess is not None and (frame.guess.width, frame.guess.height) == picture.size
    assert not frame.exif_rotate


def test_focal_length_from_the_35_mm_equivalent(tmp_path: Path) -> None:
    # The diagonal of the frame is 50 px, that of 35 mm film 43.27 mm.
    with_exif(tmp_path / "a.jpg", 40, 30, {271: "Maker", 272: "Maker 5"}, {41989: 26, 37386: IFDRational(5, 1)})
    guess = photos.read(tmp_path).frames[0].guess
    assert guess is not None and guess.lens is Lens.SIMPLE_RADIAL and guess.device == "Maker 5"
    assert guess.focal == pytest.approx(26 * 50 / 43.2666, rel=1e-4)


def test_focal_length_from_the_pixel_pitch(tmp_path: Path) -> None:
    # 100 pixels per centimetre of sensor, 5 mm lens, and the picture was 80 wide when taken.
    details = {37386: IFDRational(5, 1), 41486: IFDRational(100, 1), 41488: 3, 40962: 80}
    with_exif(tmp_path / "a.jpg", 40, 30, {}, details)
    guess = photos.read(tmp_path).frames[0].guess
    assert guess is not None and guess.focal == pytest.approx(5 * 10 * 40 / 80)


@pytest.mark.parametrize(
    "details", [{}, {41989: 0}, {37386: IFDRational(0, 0), 41486: IFDRational(1, 1)}, {41989: "wide"}]
)
def test_no_focal_length_in_the_header(details: dict[int, object], tmp_path: Path) -> None:
    with_exif(tmp_path / "a.jpg", 40, 30, {}, details)
    guess = photos.read(tmp_path).frames[0].guess
    assert guess is not None and guess.focal is None


def test_panoramas(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.jpg", 1024, 512)
    save_picture(tmp_path / "b.jpg", 1024, 511)
    save_picture(tmp_path / "c.jpg", 40, 20)
    said = b'<rdf:Description GPano:ProjectionType="equirectangular"/>'
    Image.new("RGB", (60, 30)).save(tmp_path / "d.jpg", xmp=said)
    lenses = [frame.guess.lens for frame in photos.read(tmp_path).frames if frame.guess is not None]
    assert lenses == [Lens.EQUIRECTANGULAR, Lens.SIMPLE_RADIAL, Lens.SIMPLE_RADIAL, Lens.EQUIRECTANGULAR]


def test_damaged_headers_are_refused_in_one_way(tmp_path: Path) -> None:
    draw = random.Random(0)
    path = with_exif(tmp_path / "a.jpg", 40, 30, {271: "Maker"}, {41989: 26})
    whole = path.read_bytes()
    read = refused = 0
    for _ in range(400):
        broken = bytearray(whole[: draw.randrange(len(whole))] if draw.random() < 0.3 else whole)
        for _ in range(draw.randrange(1, 6)):
            if broken:
                broken[draw.randrange(min(len(broken), 250))] = draw.randrange(256)
        path.write_bytes(broken)
        try:
            guess = photos.guess_lens(read_header(path))
        except FrameError:
            refused += 1
        else:
            read += 1
            assert guess.width > 0 and guess.height > 0
    assert read > 50 and refused > 50


def test_sceaux_castle_guesses_its_calibration(shared_data: Path) -> None:
    capture = open_capture(shared_data / "sceaux_castle")
    assert len(capture) == 11
    for frame in capture.frames:
        # K.txt has 2905.88; a guess from EXIF is good for a few per cent.
        assert frame.guess is not None and frame.guess.focal == pytest.approx(2905.88, rel=0.05)
        assert frame.guess.device.endswith("KODAK Z612 ZOOM DIGITAL CAMERA")


def test_theta_panoramas_are_recognised(shared_data: Path) -> None:
    capture = open_capture(shared_data / "theta_office")
    assert len(capture) == 21
    assert all(frame.guess is not None and frame.guess.lens is Lens.EQUIRECTANGULAR for frame in capture.frames)
