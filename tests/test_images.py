"""Decoding, exact resizing, masks, and the cache file."""

from __future__ import annotations

import errno
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lightfold import images
from lightfold.cameras import Camera, Lens
from lightfold.capture import Frame
from lightfold.errors import LightfoldError
from lightfold.formats.frames import FrameError, read_header
from lightfold.images import UNREADABLE, Resize, area_resize, decode, load_pictures, prepare, read_depth

WHOLE = Resize(downscale=1, max_side=800)


def camera(width: int, height: int, lens: Lens = Lens.PINHOLE, distortion: tuple[float, ...] = ()) -> Camera:
    intrinsics = torch.tensor([0.8 * width, 0.8 * width, width / 2, height / 2])
    return Camera(torch.eye(3, 4, dtype=torch.float64), intrinsics, torch.tensor(distortion), width, height, lens)


def frame(path: Path, width: int, height: int, **more: object) -> Frame:
    return Frame(path=path, camera=camera(width, height), name=path.name, **more)  # type: ignore[arg-type]


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def deep_png(path: Path, levels: np.ndarray) -> Path:
    """A 16-bit RGB PNG, which Pillow reads but cannot write."""
    height, width, _ = levels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


# --- decoding ------------------------------------------------------------------------------------------------------


def test_decode_keeps_eight_bit_rgb_exactly(tmp_path: Path) -> None:
    pixels = noise(7, 5)
    rgb, alpha = decode(save(tmp_path / "a.png", pixels))
    assert alpha is None
    np.testing.assert_array_equal(rgb, pixels)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
def test_decode_converts_other_modes_as_pillow_does(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(noise(8, 6)).convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    picture.save(path)
    rgb, alpha = decode(path)
    assert alpha is None and rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_decode_separates_alpha_and_keeps_colours_straight(tmp_path: Path, mode: str) -> None:
    pixels = noise(8, 6, 4)
    picture = Image.fromarray(pixels).convert(mode)
    picture.save(tmp_path / "a.png")
    rgb, alpha = decode(tmp_path / "a.png")
    assert alpha is not None
    np.testing.assert_array_equal(alpha, pixels[:, :, 3])
    np.testing.assert_array_equal(rgb, np.asarray(picture.convert("RGBA"))[:, :, :3])


def test_decode_reads_a_transparent_palette_entry(tmp_path: Path) -> None:
    picture = Image.new("P", (4, 3), 1)
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((2, 1), 0)
    picture.save(tmp_path / "a.png", transparency=0)
    rgb, alpha = decode(tmp_path / "a.png")
    assert alpha is not None and alpha[1, 2] == 0 and int(alpha.sum()) == 11 * 255
    assert rgb[0, 0].tolist() == [200, 100, 50]


def test_decode_drops_an_alpha_channel_that_is_opaque(tmp_path: Path) -> None:
    pixels = noise(8, 6, 4)
    pixels[:, :, 3] = 255
    assert decode(save(tmp_path / "a.png", pixels))[1] is None


def test_decode_scales_sixteen_bit_grey_instead_of_cutting_it(tmp_path: Path) -> None:
    levels = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    rgb, _ = decode(save(tmp_path / "a.png", levels))
    np.testing.assert_array_equal(rgb[0, :, 0], [0, 0, 1, 1, 128, 255])
    np.testing.assert_array_equal(rgb[:, :, 0], rgb[:, :, 2])


def test_decode_reads_sixteen_bit_rgb_to_within_one_level(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (5, 4, 3), dtype=np.uint16)
    rgb, _ = decode(deep_png(tmp_path / "a.png", levels))
    assert np.abs(rgb - levels / 257).max() < 1


def test_decode_turns_by_exif_only_when_asked(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn clockwise by 90 degrees to view.
    pixels = noise(6, 4)
    path = save(tmp_path / "a.png", pixels, exif=exif)
    np.testing.assert_array_equal(decode(path)[0], pixels)
    np.testing.assert_array_equal(decode(path, exif_rotate=True)[0], np.rot90(pixels, -1))


def test_decode_refuses_float_pictures(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((3, 3), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="floating-point"):
        decode(tmp_path / "a.tif")


# --- resizing ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 13), st.integers(1, 11), st.data())
def test_area_resize_equals_repeating_pixels_and_averaging_blocks(width: int, height: int, data: st.DataObject) -> None:
    new_width, new_height = data.draw(st.integers(1, width)), data.draw(st.integers(1, height))
    pixels = noise(width, height, seed=width * 31 + height)
    repeated = pixels.astype(np.float64).repeat(new_height, 0).repeat(new_width, 1)
    blocks = repeated.reshape(new_height, height, new_width, width, 3).mean((1, 3))
    np.testing.assert_allclose(area_resize(pixels, new_width, new_height), blocks, atol=2e-4)


def test_area_resize_refuses_to_enlarge() -> None:
    with pytest.raises(ValueError, match="at most 4 x 3"):
        area_resize(noise(4, 3), 5, 3)


@pytest.mark.parametrize(
    "resize, size, expected",
    [
        (Resize(None, 800), (1080, 1920), (450, 800)),
        (Resize(None, 800), (800, 600), (800, 600)),
        (Resize(None, 800), (640, 480), (640, 480)),
        (Resize(4, 800), (4946, 3286), (1237, 822)),  # Half rounds up, as the mip-NeRF 360 files do.
        (Resize(2.5, 800), (1000, 500), (400, 200)),
        (Resize(100, 800), (40, 30), (1, 1)),
    ],
)
def test_resize_chooses_the_training_size(resize: Resize, size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resize.size(*size) == expected


def test_nothing_to_resize_means_no_resampling(tmp_path: Path) -> None:
    pixels = noise(9, 7, 4)
    prepared = prepare(frame(save(tmp_path / "a.png", pixels), 9, 7), WHOLE, None)
    np.testing.assert_array_equal(prepared.rgb, pixels[:, :, :3])


def test_colour_hidden_behind_transparency_does_not_bleed(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[:, 0] = [200, 100, 50, 255]
    pixels[:, 1] = [0, 255, 0, 0]  # Green that nobody should see.
    prepared = prepare(frame(save(tmp_path / "a.png", pixels), 2, 2), Resize(2, 800), None)
    assert prepared.rgb.reshape(-1).tolist() == [200, 100, 50]
    assert prepared.alpha is not None and int(prepared.alpha[0, 0]) == 128


# --- masks ---------------------------------------------------------------------------------------------------------


def prepared_mask(
    tmp_path: Path, mask: np.ndarray, resize: Resize = WHOLE, name: str = "m.png", **more: object
) -> np.ndarray:
    picture = save(tmp_path / "a.png", noise(8, 4))
    prepared = prepare(frame(picture, 8, 4, mask=save(tmp_path / name, mask), **more), resize, None)
    assert prepared.mask is not None
    return prepared.mask


def test_mask_of_ones_counts_and_zero_does_not(tmp_path: Path) -> None:
    mask = np.ones((4, 8), dtype=np.uint8)
    mask[1, 3] = 0
    np.testing.assert_array_equal(prepared_mask(tmp_path, mask), np.where(mask, 255, 0))


def test_inverted_mask_hides_what_is_marked(tmp_path: Path) -> None:
    mask = np.zeros((4, 8), dtype=np.uint8)
    mask[:, :2] = 255
    np.testing.assert_array_equal(prepared_mask(tmp_path, mask, mask_inverted=True), np.where(mask, 0, 255))


def test_shrunk_mask_keeps_only_pixels_that_are_valid_throughout(tmp_path: Path) -> None:
    mask = np.full((4, 8), 255, dtype=np.uint8)
    mask[0, 3] = 0
    assert prepared_mask(tmp_path, mask, Resize(2, 800)).tolist() == [[255, 0, 255, 255], [255] * 4]


def test_lossy_mask_is_cut_at_half(tmp_path: Path) -> None:
    mask = np.zeros((4, 8), dtype=np.uint8)
    mask[:, 4:] = 255
    np.testing.assert_array_equal(prepared_mask(tmp_path, mask, name="m.jpg"), mask)


def test_mask_of_the_same_shape_at_lower_resolution_is_used(tmp_path: Path) -> None:
    mask = np.array([[255, 0, 255, 255], [255, 255, 255, 255]], dtype=np.uint8)
    np.testing.assert_array_equal(prepared_mask(tmp_path, mask), mask.repeat(2, 0).repeat(2, 1))


def test_crop_radius_is_in_pixels_of_the_full_picture(tmp_path: Path) -> None:
    picture = save(tmp_path / "a.png", noise(40, 40))
    prepared = prepare(frame(picture, 40, 40), Resize(2, 800), crop_radius=10)
    assert prepared.mask is not None
    y, x = np.mgrid[:20, :20] + 0.5
    np.testing.assert_array_equal(prepared.mask > 0, (x - 10) ** 2 + (y - 10) ** 2 <= 25)


def test_pixels_that_no_direction_reaches_are_masked(tmp_path: Path) -> None:
    picture = save(tmp_path / "a.png", noise(64, 64))
    fisheye = camera(64, 64, Lens.OPENCV_FISHEYE, (-0.15, 0.0, 0.0, 0.0))  # Folds over at a radius of 1 of its plane.
    wide = Frame(
        picture,
        Camera(
            fisheye.cam_from_world,
            fisheye.intrinsics * torch.tensor([0.5, 0.5, 1, 1]),
            fisheye.distortion,
            64,
            64,
            Lens.OPENCV_FISHEYE,
        ),
        "a.png",
    )
    prepared = prepare(wide, WHOLE, None)
    assert prepared.mask is not None
    assert prepared.mask[32, 32] == 255 and prepared.mask[0, 0] == 0


# --- depth ---------------------------------------------------------------------------------------------------------


def test_depth_is_scaled_and_taken_from_the_nearest_pixel(tmp_path: Path) -> None:
    levels = np.array([[1000, 2000], [0, 4000]], dtype=np.uint16)
    depth = save(tmp_path / "d.png", levels)
    found = read_depth(frame(tmp_path / "a.png", 4, 4, depth=depth, depth_scale=0.001), 4, 4)
    assert found.tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 4, 4], [0, 0, 4, 4]]


def test_depth_array_with_holes(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.array([[np.nan, -1.0, np.inf, 2.5]]))
    found = read_depth(frame(tmp_path / "a.png", 4, 1, depth=tmp_path / "d.npy", depth_scale=2.0), 4, 1)
    assert found.tolist() == [[0, 0, 0, 5]]


def header_of(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.npy", header_of("(1000000, 1000000)") + bytes(64)),
        ("d.npy", header_of("(2, 2")),
        ("d.npy", header_of('(2, """')),
        ("d.npy", b"PK\x03\x04 no archive"),
        ("d.npy", b""),
        ("d.bin", b"2&2&1&" + bytes(12)),
        ("d.bin", b"2&2&3&" + bytes(48)),
        ("d.bin", b"0&0&1&"),
        ("d.bin", b"999999&999999&1&" + bytes(16)),
        ("d.bin", b""),
    ],
)
def test_damaged_depth_is_refused_and_fills_no_memory(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UNREADABLE):
        read_depth(frame(tmp_path / "a.png", 4, 4, depth=tmp_path / name), 4, 4)


def test_depth_maps_of_a_dense_workspace(tmp_path: Path) -> None:
    map = tmp_path / "a.png.geometric.bin"
    map.write_bytes(b"3&2&1&" + np.array([[1, 2, 3], [0, -1, 4]], dtype="<f4").tobytes())
    found = read_depth(frame(tmp_path / "a.png", 3, 2, depth=map, depth_scale=1.0), 3, 2)
    assert found.tolist() == [[1, 2, 3], [0, 0, 4]]


# --- the cache -----------------------------------------------------------------------------------------------------


def some_frames(folder: Path, count: int = 3) -> list[Frame]:
    folder.mkdir(parents=True, exist_ok=True)
    return [frame(save(folder / f"{i}.png", noise(6 + i, 6 + i, seed=i)), 6 + i, 6 + i) for i in range(count)]


def test_cache_holds_every_pixel_and_no_plane_that_is_not_needed(tmp_path: Path) -> None:
    pictures = load_pictures(some_frames(tmp_path / "in"), WHOLE, None, tmp_path / "cache")
    pixels = 36 + 49 + 64
    assert pictures.offset == (0, 36, 85, pixels) and pictures.sizes == ((6, 6), (7, 7), (8, 8))
    assert pictures.alpha is None and pictures.mask is None
    assert 3 * pixels < pictures.path.stat().st_size < 3 * pixels + 1000
    for i in range(3):
        rows = pictures.rgb[pictures.offset[i] : pictures.offset[i + 1]]
        np.testing.assert_array_equal(rows.numpy(), noise(6 + i, 6 + i, seed=i).reshape(-1, 3))


def test_planes_begin_with_the_first_picture_that_needs_them(tmp_path: Path) -> None:
    frames = some_frames(tmp_path)
    clear = noise(7, 7, 4)
    save(frames[1].path, clear)
    hidden = np.full((8, 8), 255, dtype=np.uint8)
    hidden[2, 5] = 0
    frames[2] = frame(frames[2].path, 8, 8, mask=save(tmp_path / "m.png", hidden))
    pictures = load_pictures(frames, WHOLE, None, tmp_path / "cache")
    assert pictures.alpha is not None and pictures.mask is not None
    np.testing.assert_array_equal(pictures.alpha[36:85].numpy(), clear[:, :, 3].reshape(-1))
    assert bool((pictures.alpha[:36] == 255).all()) and bool((pictures.alpha[85:] == 255).all())
    np.testing.assert_array_equal(pictures.mask.numpy(), [255] * 85 + hidden.reshape(-1).tolist())


def test_second_load_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = some_frames(tmp_path)
    first = load_pictures(frames, WHOLE, None, tmp_path / "cache")
    monkeypatch.setattr(images, "prepare", lambda *_: pytest.fail("the cache was not used"))
    second = load_pictures(frames, WHOLE, None, tmp_path / "cache")
    assert torch.equal(first.rgb, second.rgb) and first.path == second.path


@pytest.mark.parametrize("change", ["touch", "resize", "crop"])
def test_any_change_of_the_input_makes_another_cache(tmp_path: Path, change: str) -> None:
    frames = some_frames(tmp_path)
    first = load_pictures(frames, WHOLE, None, tmp_path / "cache")
    if change == "touch":
        os.utime(frames[1].path, ns=(1, 1))
    resize = Resize(2, 800) if change == "resize" else WHOLE
    second = load_pictures(frames, resize, 3.0 if change == "crop" else None, tmp_path / "cache")
    assert first.path != second.path


@pytest.mark.parametrize("damage", ["truncated", "footer", "empty", "pixels", "nonsense"])
def test_damaged_cache_is_made_again(tmp_path: Path, damage: str) -> None:
    frames = some_frames(tmp_path)
    path = load_pictures(frames, WHOLE, None, tmp_path / "cache").path
    whole = path.read_bytes()
    broken = {
        "truncated": whole[:-7],
        "footer": whole[:-40] + b"#" + whole[-39:],
        "empty": b"",
        "pixels": bytes(100) + whole[100:],
        "nonsense": b"lightfold" * 100,
    }[damage]
    path.write_bytes(broken)
    again = load_pictures(frames, WHOLE, None, tmp_path / "cache")
    assert path.read_bytes() == whole
    np.testing.assert_array_equal(again.rgb[:36].numpy(), noise(6, 6).reshape(-1, 3))


def test_mapping_the_cache_warns_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_pictures(some_frames(tmp_path), WHOLE, None, tmp_path / "cache")


def test_unreadable_pictures_are_left_out_by_name(tmp_path: Path) -> None:
    frames = some_frames(tmp_path, 7)
    jpeg = save(tmp_path / "cut.jpg", noise(64, 64))
    jpeg.write_bytes(jpeg.read_bytes()[: jpeg.stat().st_size // 2])
    frames[1] = frame(jpeg, 64, 64)
    frames[2].path.write_bytes(b"")
    frames[3].path.write_text("not a picture")
    frames[4].path.unlink()
    frames[5] = frame(frames[5].path, 11, 11, mask=save(tmp_path / "m.png", noise(30, 11, 1)))
    frames[6] = frame(frames[6].path, 24, 12)
    pictures = load_pictures(frames, WHOLE, None, tmp_path / "cache")
    assert pictures.frame == (0,) and pictures.sizes == ((6, 6),)
    expected = {
        "cut.jpg": "truncated",
        "2.png": "is empty",
        "3.png": "not a picture",
        "4.png": "does not exist",
        "5.png": "its mask m.png is 30 x 11, but its camera is 11 x 11",
        "6.png": "the picture is 12 x 12, but its camera is 24 x 12",
    }
    assert len(pictures.dropped) == len(expected)
    for sentence, (name, reason) in zip(pictures.dropped, expected.items(), strict=True):
        assert sentence.startswith(f"{name} is left out: ") and reason in sentence and sentence.endswith(".")


def test_paths_may_hold_spaces_and_any_letters(tmp_path: Path) -> None:
    folder = tmp_path / "Fotos für Ærø 写真"
    pictures = load_pictures(some_frames(folder), WHOLE, None, folder / "mein cache")
    assert pictures.frame == (0, 1, 2)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    frames = some_frames(tmp_path / "in")
    monkeypatch.setattr(images.os, "fsync", full)
    with pytest.raises(LightfoldError, match="is full"):
        load_pictures(frames, WHOLE, None, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(LightfoldError, match="cannot be written .*choose another"):
        load_pictures(some_frames(tmp_path / "in"), WHOLE, None, tmp_path / "cache")


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    load_pictures(some_frames(tmp_path), WHOLE, None, tmp_path / "cache", lambda _, *counts: seen.append(counts))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def header_only(path: Path, width: int, height: int) -> Path:
    """A PNG that claims a size and holds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def test_large_panoramas_are_pictures_and_larger_ones_are_not(tmp_path: Path) -> None:
    assert read_header(header_only(tmp_path / "a.png", 32_000, 16_000)).shown == (32_000, 16_000)
    bomb = header_only(tmp_path / "b.png", 32_001, 16_001)
    with pytest.raises(FrameError, match="more than 512 megapixels"):
        read_header(bomb)
    with pytest.raises(Image.DecompressionBombError):
        decode(bomb)


def test_a_set_that_does_not_fit_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTFOLD_CACHE_GB", "4e-7")
    monkeypatch.setattr(images, "prepare", lambda *_: pytest.fail("a picture was decoded"))
    with pytest.raises(LightfoldError, match="need 4.47e-07 GB, and LIGHTFOLD_CACHE_GB allows"):
        load_pictures(some_frames(tmp_path / "in"), WHOLE, None, tmp_path / "cache")


def test_what_an_interrupted_program_left_is_removed(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".pixels-abc.partial").write_bytes(b"half a cache")
    path = load_pictures(some_frames(tmp_path / "in"), WHOLE, None, tmp_path / "cache").path
    assert list((tmp_path / "cache").iterdir()) == [path]


def test_reading_ahead_is_a_hint(tmp_path: Path) -> None:
    pictures = load_pictures(some_frames(tmp_path / "in"), WHOLE, None, tmp_path / "cache")
    for index in range(3):
        pictures.read_ahead(index)
    assert pictures.bytes_per_pixel == 3
