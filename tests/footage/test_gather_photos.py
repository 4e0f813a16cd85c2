"""A folder of photos, good and bad, becomes footage: what is kept, how it is turned, what is said of the rest."""

from __future__ import annotations

import math
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lightfold.errors import CaptureError, ConfigError, RunError
from lightfold.footage.masks import UPRIGHT
from lightfold.footage.photos import PhotosConfig, gather_photos
from lightfold.footage.shots import Footage, load_footage

WIDTH, HEIGHT = 160, 120


def scene(seed: int = 0, width: int = WIDTH, height: int = HEIGHT, mode: str = "RGB") -> Image.Image:
    """A picture that is not like itself turned or mirrored: a dark block in the upper left corner on coloured ones."""
    rng = np.random.default_rng(seed)
    blocks = Image.fromarray(rng.integers(60, 255, (6, 8, 3), dtype=np.uint8)).resize((width, height), 0)
    ImageDraw.Draw(blocks).rectangle((0, 0, width // 4, height // 6), fill=(0, 0, 0))
    return blocks.convert(mode)


def save(path: Path, picture: Image.Image, top: dict[int, Any] | None = None, **details: Any) -> Path:
    """top: EXIF tags; details: `exif=` tags of the camera's own directory, `gps=`, and what Image.save takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif.update(top or {})
    exif.get_ifd(0x8769).update(details.pop("exif", {}))
    exif.get_ifd(0x8825).update(details.pop("gps", {}))
    picture.save(path, exif=exif, **details)
    return path


def folder_of(root: Path, count: int = 3, **changes: Any) -> Path:
    """Photos whose names are no sequence and that have no times."""
    for i in range(count):
        save(root / f"{'acegikmoq'[i]}.jpg", scene(i), **changes)
    return root


def pixels(footage: Footage, index: int = 0) -> np.ndarray:
    with Image.open(footage.image(footage.shots[index])) as file:
        assert file.getexif().get(0x0112, 1) == 1 and file.mode in ("L", "RGB")
        return np.asarray(file.convert("RGB")).astype(int)


def mask_of(footage: Footage, index: int = 0) -> np.ndarray:
    path = footage.mask(footage.shots[index])
    assert path is not None
    with Image.open(path) as file:
        assert file.mode == "L" and set(np.unique(np.asarray(file)).tolist()) <= {0, 255}
        return np.asarray(file) > 0


def gather(root: Path, **config: Any) -> Footage:
    return gather_photos(root, root.parent / "capture", PhotosConfig(**config))


# --- what is found, and what it is called --------------------------------------------------------------------------


def test_photos_at_any_depth_and_under_any_name(tmp_path: Path) -> None:
    names = ["IMG_9.JPG", "IMG_10.jpeg", "tag eins/Bär é.png", "tag eins/图.webp", "z.tif", "y.bmp"]
    for i, name in enumerate(names):
        save(tmp_path / "my photos" / name, scene(i))
    for name in ("masks/a.png", ".thumbs/a.jpg", "images_4/b.png", ".hidden.jpg"):
        save(tmp_path / "my photos" / name, scene(9))
    (tmp_path / "my photos" / "notes.txt").write_text("no picture")
    steps: list[tuple[str, int, int]] = []
    footage = gather_photos(tmp_path / "my photos", tmp_path / "out", progress=lambda *step: steps.append(step))
    assert [shot.name for shot in footage.shots] == [
        "IMG_9.JPG",
        "IMG_10.jpeg",
        "tag_eins/Bär_é.png",
        "tag_eins/图.png",
        "y.png",
        "z.png",
    ]
    assert [Path(shot.source).name for shot in footage.shots][2:4] == ["Bär é.png", "图.webp"]
    assert all(footage.image(shot).is_file() for shot in footage.shots) and footage.dropped == ()
    assert steps[-1] == ("reading photos", 6, 6)
    assert load_footage(tmp_path / "out") == footage
    for shot in footage.shots:
        assert (shot.width, shot.height, shot.lens, shot.mask) == (WIDTH, HEIGHT, "SIMPLE_RADIAL", False)
        assert 0 < shot.sharpness < 1 and 0.2 < shot.brightness < 0.9


def test_a_file_that_needs_no_change_is_the_same_file(tmp_path: Path) -> None:
    save(tmp_path / "photos/a.jpg", scene(1))
    save(tmp_path / "photos/b.png", scene(2, mode="L"))
    save(tmp_path / "photos/c.JPG", scene(3), format="PNG")
    save(tmp_path / "photos/d.bmp", scene(4))
    footage = gather(tmp_path / "photos")
    assert [shot.name for shot in footage.shots] == ["a.jpg", "b.png", "c.png", "d.png"]
    same = [footage.image(shot).samefile(shot.source) for shot in footage.shots]
    assert same == [True, True, True, False]
    assert (pixels(footage, 3) == np.asarray(scene(4))).all()


def test_where_the_disk_cannot_link_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    footage = gather(folder_of(tmp_path / "photos"))
    for shot in footage.shots:
        assert not footage.image(shot).samefile(shot.source)
        assert footage.image(shot).read_bytes() == Path(shot.source).read_bytes()


def light_of(path: Path, picture: Image.Image, exponent: int) -> Path:
    """A Radiance picture whose light is the picture's levels times two to the power of the exponent, over 256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shared = np.full((*np.shape(picture)[:2], 1), 128 + exponent, dtype=np.uint8)
    header = f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y {picture.height} +X {picture.width}\n".encode()
    path.write_bytes(header + np.concatenate([np.asarray(picture), shared], axis=2).tobytes())
    return path


def test_light_is_shown_and_kept(tmp_path: Path) -> None:
    for seed, (name, exponent) in enumerate({"a.hdr": 0, "b c.HDR": 0, "very bright.hdr": 9}.items()):
        light_of(tmp_path / "photos" / name, scene(seed), exponent)
    (tmp_path / "photos/broken.hdr").write_bytes((tmp_path / "photos/a.hdr").read_bytes()[:900])
    footage = gather(tmp_path / "photos")
    assert [shot.name for shot in footage.shots] == ["a.png", "b_c.png", "very_bright.png"]
    assert [name for name, _ in footage.dropped] == ["broken.hdr"]
    for index, shot in enumerate(footage.shots):
        kept = footage.light(shot)
        assert kept is not None and kept.samefile(shot.source) and kept.parent == footage.root / "light"
        light = np.asarray(scene(index)) / 256
        coded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)
        seen = pixels(footage, index)
        assert np.abs(seen - 255 * coded).max() <= 1 if index < 2 else 60 < np.median(seen) < 200
    kept.unlink()
    assert gather(tmp_path / "photos").shots == footage.shots and kept.is_file()


def test_a_capture_folder_is_taken_for_its_images(tmp_path: Path) -> None:
    folder_of(tmp_path / "scene" / "images")
    save(tmp_path / "scene/masks/a.png", Image.fromarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8) * 255))
    footage = gather_photos(tmp_path / "scene", tmp_path / "out")
    assert [(shot.name, shot.mask) for shot in footage.shots] == [("a.jpg", True), ("c.jpg", False), ("e.jpg", False)]


def test_names_stay_apart_and_fit_the_disk(tmp_path: Path) -> None:
    long = "x" * 240
    for i, name in enumerate(("a b.png", "a_b.png", "a#b.png", "c.webp", "c.tif", f"{long}.png", f"{long}y.png")):
        save(tmp_path / "photos" / name, scene(i))
    footage = gather(tmp_path / "photos")
    names = [shot.name for shot in footage.shots]
    assert len({name.casefold() for name in names}) == 7 and footage.dropped == ()
    assert names[:5] == ["a_b.png", "a_b~2.png", "a_b~3.png", "c.png", "c~2.png"]
    assert all(len(name) < 200 and not set(name) & set(" #\n") for name in names)


# --- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_every_orientation_is_applied(orientation: int, suffix: str, tmp_path: Path) -> None:
    upright = scene(1)
    undo = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    stored = upright.transpose(UPRIGHT[undo]) if undo in UPRIGHT else upright
    for name in "ab":
        save(tmp_path / f"photos/{name}.{suffix}", stored, {0x0112: orientation, 0x010F: name})
    footage = gather(tmp_path / "photos")
    assert (footage.shots[0].width, footage.shots[0].height) == (WIDTH, HEIGHT)
    assert np.abs(pixels(footage) - np.asarray(upright).astype(int)).mean() < 6


def in_mode(mode: str, seed: int) -> tuple[Image.Image, Image.Image]:
    """A picture of another pixel type, and what it should look like as 8-bit RGB."""
    grey = scene(seed, mode="L")
    if mode == "1":
        picture = grey.point(lambda level: 255 if level > 128 else 0).convert("1")
        return picture, picture.convert("RGB")
    if mode.startswith("I"):
        levels = np.asarray(grey).astype(np.uint16 if mode == "I;16" else np.int32) * 257
        return Image.fromarray(levels), grey.convert("RGB")
    if mode == "CMYK":
        inks = [Image.fromarray(255 - np.asarray(scene(seed))[..., channel]) for channel in range(3)]
        return Image.merge("CMYK", [*inks, Image.new("L", grey.size, 0)]), scene(seed)
    picture = scene(seed).convert(mode)
    return picture, picture.convert("RGB")


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "I"])
def test_every_kind_of_pixel_becomes_eight_bits(mode: str, tmp_path: Path) -> None:
    for i, name in enumerate("ab"):
        save(tmp_path / f"photos/{name}.{'tif' if mode in ('CMYK', 'I') else 'png'}", in_mode(mode, i)[0])
    footage = gather(tmp_path / "photos")
    assert footage.dropped == () and not footage.shots[0].mask
    assert np.abs(pixels(footage) - np.asarray(in_mode(mode, 0)[1]).astype(int)).max() <= 1


def test_a_png_of_sixteen_bit_colours_is_not_linked(tmp_path: Path) -> None:
    """Pillow calls it RGB like any other; COLMAP does not get along with it."""
    levels = np.asarray(scene(0)).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in levels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    folder_of(tmp_path / "photos", 2)
    (tmp_path / "photos/0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    footage = gather(tmp_path / "photos")
    assert footage.image(footage.shots[0]).read_bytes()[24] == 8
    assert (pixels(footage) == np.asarray(scene(0)).astype(int)).all()


def test_transparency_becomes_a_mask(tmp_path: Path) -> None:
    alpha = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    alpha[:, : WIDTH // 2], alpha[:30] = 255, 127
    for i, name in enumerate("ab"):
        picture = scene(i, mode="RGBA")
        picture.putalpha(Image.fromarray(alpha))
        save(tmp_path / f"photos/{name}.png", picture)
    palette = scene(5).convert("P")
    save(tmp_path / "photos/p.png", palette, transparency=palette.getpixel((0, 0)))
    save(tmp_path / "photos/z.png", Image.new("RGBA", (WIDTH, HEIGHT)))
    footage = gather(tmp_path / "photos")
    assert (mask_of(footage) == (alpha >= 128)).all()
    assert (pixels(footage) == np.asarray(scene(0)).astype(int)).all()
    assert not mask_of(footage, 2)[0, 0] and mask_of(footage, 2)[-1, -1]
    assert footage.dropped == (("z.png", "its mask or its transparency leaves no pixel"),)


def test_originals_are_never_changed(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "photos")
    save(root / "turned.jpg", scene(7), {0x0112: 6})
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.iterdir()}
    gather(root)
    save(root / "new.png", scene(8))
    gather(root)
    gather(root, lens="OPENCV")
    assert all((path.read_bytes(), path.stat().st_mtime_ns) == was for path, was in before.items())


# --- headers ---------------------------------------------------------------------------------------------------------

CANON = {0x010F: "Canon", 0x0110: "Canon EOS R"}


def test_focal_length_camera_time_and_place_come_from_the_header(tmp_path: Path) -> None:
    gps = {1: "S", 2: (33.0, 51.0, 30.0), 3: "E", 4: (151.0, 12.0, 36.0), 5: b"\x01", 6: 12.5}
    taken = {36867: "2024:05:01 12:00:00", 36881: "+02:00", 37521: "25"}
    save(tmp_path / "photos/a.jpg", scene(0), CANON, exif={0xA405: 24, **taken}, gps=gps)
    save(tmp_path / "photos/b.jpg", scene(1), {**CANON, 0x0112: 6}, exif={0xA405: 24})
    save(tmp_path / "photos/c.jpg", scene(2), CANON, exif={0xA405: 70, 0xA431: "77"}, gps={**gps, 1: "N", 6: math.inf})
    save(tmp_path / "photos/d.jpg", scene(3), CANON, exif={0xA405: 24}, gps={2: (0.0, 0.0, 0.0), 4: (0.0, 0.0, 0.0)})
    a, b, c, d = gather(tmp_path / "photos").shots
    assert a.focal == pytest.approx(24 * math.hypot(WIDTH, HEIGHT) / math.hypot(36, 24))
    assert a.focal == b.focal and (b.width, b.height) == (HEIGHT, WIDTH)
    assert a.camera == d.camera == "Canon EOS R 160x120 111px"
    assert b.camera == "Canon EOS R 120x160 111px" and c.camera == "Canon EOS R 77 160x120 324px"
    assert a.time == 1714557600.25 and b.time is None
    assert a.gps == pytest.approx((-33.858333333, 151.21, -12.5))
    assert c.gps is not None and c.gps[0] > 0 and math.isnan(c.gps[2])
    assert b.gps is None and d.gps is None


def times_of(seconds: list[int]) -> list[str]:
    return [f"2024:05:01 12:{second // 60:02d}:{second % 60:02d}" for second in seconds]


@pytest.mark.parametrize(
    ("names", "seconds", "ordered", "order"),
    [
        (["f_1.jpg", "f_2.jpg", "f_3.jpg", "f_10.jpg"], None, True, [0, 1, 2, 3]),
        (["f_010.jpg", "f_020.jpg", "f_030.jpg"], None, True, [0, 1, 2]),
        (["f_1.jpg", "f_2.jpg", "f_500.jpg", "f_900.jpg"], None, False, [0, 1, 2, 3]),
        (["1_f_1.jpg", "1_f_2.jpg", "2_f_3.jpg"], None, False, [0, 1, 2]),
        (["a.jpg", "b.jpg", "c.jpg"], None, False, [0, 1, 2]),
        (["a.jpg", "b.jpg", "c.jpg"], [9, 3, 6], True, [1, 2, 0]),
        (["a.jpg", "b.jpg", "c.jpg"], [0, 900, 300], False, [0, 2, 1]),
        (["a.jpg", "b.jpg", "c.jpg"], [5, 5, 5], False, [0, 1, 2]),
        (["x/1.jpg", "x/2.jpg", "y/1.jpg"], None, False, [0, 1, 2]),
    ],
)
def test_order(names: list[str], seconds: list[int] | None, ordered: bool, order: list[int], tmp_path: Path) -> None:
    taken = times_of(seconds) if seconds else [None] * len(names)
    for i, (name, moment) in enumerate(zip(names, taken, strict=True)):
        save(tmp_path / "photos" / name, scene(i), exif={36867: moment} if moment else {})
    footage = gather(tmp_path / "photos")
    assert footage.ordered is ordered
    assert [shot.name for shot in footage.shots] == [names[i] for i in order]


def test_two_cameras_are_no_sequence(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / f"photos/{i}.jpg", scene(i), {0x0110: f"camera {i % 2}"})
    footage = gather(tmp_path / "photos")
    assert not footage.ordered and len({shot.camera for shot in footage.shots}) == 2


@pytest.mark.parametrize(("panoramas", "kind"), [(3, "panoramas"), (1, "photos")])
def test_panoramas_and_photos_are_not_mixed(panoramas: int, kind: str, tmp_path: Path) -> None:
    for i in range(panoramas):
        save(tmp_path / f"photos/pano{i}.jpg", scene(i, 1024, 512))
    folder_of(tmp_path / "photos", 2)
    footage = gather(tmp_path / "photos")
    assert footage.kind == kind and len(footage.shots) == max(panoramas, 2)
    assert {shot.lens for shot in footage.shots} == {"EQUIRECTANGULAR" if kind == "panoramas" else "SIMPLE_RADIAL"}
    assert len(footage.dropped) == min(panoramas, 2)
    assert f"{panoramas} panoramas and 2 other photos" in footage.notes[0]
    assert (kind == "panoramas") == any("headers do not say so" in note for note in footage.notes)
    assert gather(tmp_path / "photos", lens="OPENCV").kind == "photos"


def test_a_panorama_shows_the_whole_sphere(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"None of the 3 .* does not show the whole sphere"):
        gather(folder_of(tmp_path / "photos"), lens="EQUIRECTANGULAR")
    with pytest.raises(ConfigError, match="no lens called 'PINHOLES'"):
        gather(tmp_path / "photos", lens="PINHOLES")


# --- masks -----------------------------------------------------------------------------------------------------------


def block(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A mask that hides the block of `scene`, in its upper left corner."""
    counts = np.full((height, width), 255, dtype=np.uint8)
    counts[: height // 6, : width // 4] = 0
    return counts


@pytest.mark.parametrize("place", ["photos/masks", "masks"])
@pytest.mark.parametrize("name", ["a.png", "a.jpg.png"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("grid", ["stored", "upright"])
def test_masks_turn_with_their_photos(place: str, name: str, orientation: int, grid: str, tmp_path: Path) -> None:
    if grid == "upright" and orientation == 3:
        return  # Nothing tells it from a stored one, which it is taken for.
    save(tmp_path / "photos/a.jpg", scene(0), {0x0112: orientation})
    folder_of(tmp_path / "photos/more", 2)
    expected = block()
    if orientation in UPRIGHT:
        expected = np.asarray(Image.fromarray(expected).transpose(UPRIGHT[orientation]))
    save(tmp_path / place / name, Image.fromarray(block() if grid == "stored" else expected))
    footage = gather(tmp_path / "photos")
    assert (mask_of(footage) == (expected > 0)).all() and footage.notes == ()
    # The mask hides what it hid before: the dark block.
    assert pixels(footage)[~mask_of(footage)].mean() < 25 < 100 < pixels(footage)[mask_of(footage)].mean()


def test_masks_of_other_sizes_are_scaled_and_of_other_shapes_refused_and_both_are_said(tmp_path: Path) -> None:
    folder_of(tmp_path / "photos", 4)
    save(tmp_path / "masks/a.png", Image.fromarray(block(WIDTH // 2, HEIGHT // 2)))
    save(tmp_path / "masks/c.png", Image.fromarray(block(WIDTH, WIDTH)))
    save(tmp_path / "masks/e.png", Image.new("L", (1, 1)))
    (tmp_path / "masks/g.png").write_text("not a picture")
    footage = gather(tmp_path / "photos")
    assert [shot.mask for shot in footage.shots] == [True, False, False, False]
    assert (mask_of(footage) == (block() > 0)).mean() > 0.98
    assert set(footage.notes) == {
        "1 of 4 photos have a mask of another size, which was scaled: a.jpg.",
        "2 of 4 photos have a mask that is not used, because it has another shape than its picture: c.jpg, e.jpg.",
        "1 of 4 photos have a mask that is not used, because it is not a picture that can be read: g.jpg.",
    }


def test_a_mask_for_all_joins_the_others(tmp_path: Path) -> None:
    save(tmp_path / "photos/a.png", scene(0))
    save(tmp_path / "photos/c.png", scene(1))
    own = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
    own[-10:] = 0
    save(tmp_path / "masks/c.png", Image.fromarray(own))
    shared = save(tmp_path / "every.png", Image.fromarray(block()))
    footage = gather(tmp_path / "photos", mask=shared)
    assert (mask_of(footage, 0) == (block() > 0)).all()
    assert (mask_of(footage, 1) == ((block() > 0) & (own > 0))).all()
    save(shared, Image.new("L", (WIDTH, WIDTH), 255))
    with pytest.raises(CaptureError, match=r"every.png has another shape than every photo"):
        gather(tmp_path / "photos", mask=shared)
    shared.write_text("not a picture")
    with pytest.raises(CaptureError, match=r"every.png cannot be used, because it is not a picture"):
        gather(tmp_path / "photos", mask=shared)


def test_a_white_mask_is_none_and_a_black_one_drops_the_photo(tmp_path: Path) -> None:
    folder_of(tmp_path / "photos")
    save(tmp_path / "masks/a.png", Image.new("L", (WIDTH, HEIGHT), 255))
    save(tmp_path / "masks/c.png", Image.new("L", (WIDTH, HEIGHT), 0))
    footage = gather(tmp_path / "photos")
    assert [(shot.name, shot.mask) for shot in footage.shots] == [("a.jpg", False), ("e.jpg", False)]
    assert footage.dropped == (("c.jpg", "its mask or its transparency leaves no pixel"),)


# --- what cannot be used ---------------------------------------------------------------------------------------------


def test_every_bad_file_is_dropped_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_of(tmp_path / "photos")
    (root / "text.jpg").write_text("I am no picture")
    (root / "empty.png").touch()
    whole = (root / "a.jpg").read_bytes()
    (root / "short.jpg").write_bytes(whole[: len(whole) // 2])
    save(root / "short.png", scene(4))
    (root / "short.png").write_bytes((root / "short.png").read_bytes()[:300])
    (root / "copy of a.jpg").write_bytes(whole)
    save(root / "dot.png", Image.new("RGB", (1, 1)))
    save(root / "strip.png", Image.new("RGB", (500, 63)))
    save(root / "float.tif", Image.fromarray(np.full((90, 90), 0.5, dtype=np.float32)))
    save(root / "deep.tif", Image.fromarray(np.full((90, 90), 70000, dtype=np.int32)))
    bomb = bytearray((root / "dot.png").read_bytes())
    bomb[16:24] = struct.pack(">II", 40_000, 40_000)
    (root / "bomb.png").write_bytes(bomb[:29] + struct.pack(">I", zlib.crc32(bomb[12:29])) + bomb[33:])
    (root / "folder.jpg").mkdir()
    os.symlink(root / "nowhere.jpg", root / "link.jpg")
    footage = gather(root)
    assert [shot.name for shot in footage.shots] == ["a.jpg", "c.jpg", "e.jpg"]
    reasons = dict(footage.dropped)
    expected = {
        "text.jpg": "not a picture",
        "empty.png": "the file is empty",
        "short.jpg": "ends too early",
        "short.png": "ends too early|damaged",
        "copy of a.jpg": "it is a copy of a.jpg",
        "dot.png": "only 1 x 1 pixels",
        "strip.png": "only 500 x 63 pixels",
        "float.tif": "floating-point",
        "deep.tif": "more than 16 bits",
        "bomb.png": "40000 x 40000 pixels, and more than 1000 megapixels",
        "link.jpg": "not a picture",
    }
    assert set(reasons) == set(expected)
    for name, words in expected.items():
        assert any(word in reasons[name] for word in words.split("|")), (name, reasons[name])


def test_beyond_pillows_limit_but_not_beyond_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    root = folder_of(tmp_path / "photos")
    save(tmp_path / "masks/a.png", Image.fromarray(block()))
    footage = gather(root)
    assert len(footage.shots) == 3 and footage.shots[0].mask
    assert Image.MAX_IMAGE_PIXELS == 5000


def test_when_nothing_is_left_the_reasons_are_given(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    with pytest.raises(CaptureError, match="There is nothing at"):
        gather(root)
    root.mkdir()
    with pytest.raises(CaptureError, match="holds no pictures"):
        gather(root)
    save(root / "a.jpg", scene(0))
    with pytest.raises(CaptureError, match=r"Only one of the 1 pictures in .* can be used, and poses need two"):
        gather(root)
    (root / "b.jpg").write_bytes((root / "a.jpg").read_bytes())
    with pytest.raises(CaptureError, match=r"1 of 2 pictures were left out because it is a copy of a.jpg: b.jpg."):
        gather(root)
    (root / "a.jpg").write_text("x")
    (root / "b.jpg").write_text("y")
    with pytest.raises(CaptureError, match=r"None of the 2 .* 2 of 2 pictures were left out because the file is not a"):
        gather(root)
    with pytest.raises(CaptureError, match=r"a.jpg is not a folder"):
        gather(root / "a.jpg")


def test_damage_anywhere_ends_in_a_reason(tmp_path: Path) -> None:
    """Bytes of a header and of the pixels flipped at random: the photo is used or dropped, and nothing else happens."""
    rng = np.random.default_rng(0)
    for name, options in (("jpg", {}), ("png", {}), ("tif", {"compression": "tiff_lzw"}), ("webp", {})):
        root = tmp_path / name
        folder_of(root, 2)
        for i in range(8):
            path = save(root / f"x{i}.{name}", scene(i + 5), CANON, exif={0xA405: 24}, gps={1: "N"}, **options)
            content = bytearray(path.read_bytes())
            for at in rng.integers(0, [len(content), 400][i % 2], 12):
                content[at] = rng.integers(0, 256)
            path.write_bytes(content)
        footage = gather_photos(root, tmp_path / f"out {name}")
        assert len(footage.shots) + len(footage.dropped) == 10 and len(footage.shots) >= 2


# --- where it goes, and coming back ---------------------------------------------------------------------------------


def test_finished_work_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_of(tmp_path / "photos")
    first = gather(root)

    def steps() -> int:
        count = 0

        def step(*_: object) -> None:
            nonlocal count
            count += 1

        again = gather_photos(root, tmp_path / "capture", PhotosConfig(), step)
        assert count or again == first
        return count

    assert steps() == 0
    save(root / "new.png", scene(7))
    assert steps() > 0
    first = load_footage(tmp_path / "capture")
    assert len(first.shots) == 4 and steps() == 0
    (tmp_path / "capture/images/new.png").unlink()
    assert steps() > 0
    save(root.parent / "masks/new.png", Image.fromarray(block()))
    assert steps() > 0 and load_footage(tmp_path / "capture").shots[-1].mask
    (root / "new.png").unlink()
    assert steps() > 0
    assert sorted(path.name for path in (tmp_path / "capture/images").iterdir()) == ["a.jpg", "c.jpg", "e.jpg"]
    assert not list((tmp_path / "capture/masks").iterdir())


def test_an_interrupted_gathering_starts_again(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "photos", 6)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "reading photos" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather_photos(root, tmp_path / "capture", progress=stop)
    assert not (tmp_path / "capture/footage.json").exists()
    assert len(gather(root).shots) == 6


def test_pictures_of_someone_else_are_not_touched(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "photos")
    theirs = save(tmp_path / "capture/images/a.jpg", scene(9)).read_bytes()
    with pytest.raises(CaptureError, match=r"images holds files that were not put there by this program"):
        gather(root)
    assert (tmp_path / "capture/images/a.jpg").read_bytes() == theirs
    for out in (root, tmp_path):
        with pytest.raises(CaptureError, match="because the photos lie in it"):
            gather_photos(root, out)
    inside = gather_photos(root, root / "capture")
    assert len(inside.shots) == 3
    assert gather_photos(root, root / "capture") == inside


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_of(tmp_path / "photos")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="could not be written"):
        gather_photos(root, tmp_path / "file" / "capture")
    save(root / "b.bmp", scene(9))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(RunError, match=r"b.png could not be written: No space left on device"):
        gather(root)


# --- optional packages ----------------------------------------------------------------------------------------------


def test_without_a_package_its_files_are_dropped_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setitem(sys.modules, "rawpy", None)
    root = folder_of(tmp_path / "photos")
    for name in ("x.heic", "y.NEF", "a.dng", "c.HEIC"):
        (root / name).write_bytes(b"something")
    assert dict(gather(root).dropped) == {
        "x.heic": 'reading it needs pillow-heif: pip install "lightfold[heic]"',
        "y.NEF": 'reading it needs rawpy: pip install "lightfold[raw]"',
        "a.dng": "the same photo is there as a.jpg",
        "c.HEIC": "the same photo is there as c.jpg",
    }


def test_heic(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="HEIC is read by the extra [heic]")
    heif.register_heif_opener()
    root = folder_of(tmp_path / "photos", 2)
    # HEIC turns its pixels by a property of its own, which the decoder applies; the EXIF orientation repeats it.
    save(root / "x.HEIC", scene(4), {**CANON, 0x0112: 6}, exif={0xA405: 24}, quality=90)
    (root / "y.heic").write_bytes((root / "x.HEIC").read_bytes()[:900])
    (root / "z.heic").write_text("not a picture")
    footage = gather(root)
    assert [name for name, _ in footage.dropped] == ["y.heic", "z.heic"]
    shot = footage.shots[2]
    assert (shot.name, shot.width, shot.height) == ("x.jpg", WIDTH, HEIGHT) and shot.focal is not None
    assert np.abs(pixels(footage, 2) - np.asarray(scene(4)).astype(int)).mean() < 5


def minimal_dng(levels: np.ndarray) -> bytes:
    """A digital negative of 16-bit sensor levels under a Bayer filter of red, green, green, blue."""
    height, width = levels.shape
    matrix = [(3240479, 10**6), (-1537150, 10**6), (-498535, 10**6), (-969256, 10**6), (1875992, 10**6)]
    matrix += [(41556, 10**6), (55648, 10**6), (-204043, 10**6), (1057311, 10**6)]  # sRGB from XYZ
    pairs = b"".join(struct.pack("<ii", *value) for value in matrix)
    entries: list[tuple[int, int, int, bytes]] = [
        (254, 4, 1, struct.pack("<I", 0)),
        (256, 4, 1, struct.pack("<I", width)),
        (257, 4, 1, struct.pack("<I", height)),
        (258, 3, 1, struct.pack("<H", 16)),
        (259, 3, 1, struct.pack("<H", 1)),
        (262, 3, 1, struct.pack("<H", 32803)),
        (271, 2, 5, b"Acme\0"),
        (272, 2, 4, b"One\0"),
        (273, 4, 1, b"DATA"),
        (274, 3, 1, struct.pack("<H", 6)),
        (277, 3, 1, struct.pack("<H", 1)),
        (278, 4, 1, struct.pack("<I", height)),
        (279, 4, 1, struct.pack("<I", 2 * width * height)),
        (33421, 3, 2, struct.pack("<HH", 2, 2)),
        (33422, 1, 4, bytes([0, 1, 1, 2])),
        (50706, 1, 4, bytes([1, 4, 0, 0])),
        (50708, 2, 9, b"Acme One\0"),
        (50721, 10, 9, pairs),
        (50728, 5, 3, struct.pack("<6I", 1, 1, 1, 1, 1, 1)),
        (50778, 3, 1, struct.pack("<H", 21)),
    ]
    at = 8 + 2 + 12 * len(entries) + 4
    table, rest = b"", b""
    data_at = at + sum(len(v) + len(v) % 2 for _, _, _, v in entries if len(v) > 4)
    for tag, kind, count, value in entries:
        value = struct.pack("<I", data_at) if value == b"DATA" else value
        if len(value) > 4:
            table += struct.pack("<HHII", tag, kind, count, at + len(rest))
            rest += value + b"\0" * (len(value) % 2)
        else:
            table += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
    start = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + table + b"\0" * 4
    return start + rest + levels.astype("<u2").tobytes()


def test_camera_raw(tmp_path: Path) -> None:
    pytest.importorskip("rawpy", reason="camera raw is read by the extra [raw]")
    root = folder_of(tmp_path / "photos", 2)
    levels = np.full((200, 300), 9000)
    levels[:40, :60] = 0  # upper left of the stored pixels, upper right after a turn to the right
    (root / "x.DNG").write_bytes(minimal_dng(levels))
    (root / "y.dng").write_text("not a picture")
    footage = gather(root)
    assert [name for name, _ in footage.dropped] == ["y.dng"]
    shot = footage.shots[2]
    assert (shot.name, shot.camera.startswith("Acme One")) == ("x.jpg", True)
    assert (shot.width, shot.height) == (200, 300)
    assert pixels(footage, 2)[:30, -20:].mean() < 10 < 60 < pixels(footage, 2)[-50:].mean()


# --- real captures ---------------------------------------------------------------------------------------------------


def test_real_photos(shared_data: Path, tmp_path: Path) -> None:
    footage = gather_photos(shared_data / "lund", tmp_path / "lund")
    assert (footage.kind, len(footage.shots), footage.dropped) == ("photos", 29, ())
    assert all(shot.gps is not None and shot.focal is not None for shot in footage.shots)
    assert all(0.2 < shot.sharpness < 0.95 for shot in footage.shots)
    panoramas = gather_photos(shared_data / "theta_office", tmp_path / "office")
    assert (panoramas.kind, len(panoramas.shots)) == ("panoramas", 21)
    assert {shot.lens for shot in panoramas.shots} == {"EQUIRECTANGULAR"}
