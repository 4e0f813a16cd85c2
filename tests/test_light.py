"""Pictures of linear light: what is read, cleaned and coded, and a training that keeps light beyond white."""

from __future__ import annotations

import json
import math
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightfold import colour, exr, trainer
from lightfold.cameras import Camera, Lens
from lightfold.capture import Capture, Frame
from lightfold.colour import Tone
from lightfold.config import RunConfig, TrainConfig, lookup
from lightfold.errors import ConfigError
from lightfold.evaluate import evaluate
from lightfold.formats.frames import FrameError, read_header
from lightfold.geometry import look_at
from lightfold.images import Resize, decode, load_pictures, prepare
from lightfold.light import picture_size, read_light
from lightfold.render import render_stills
from lightfold.run import Run
from lightfold.scene import SceneConfig, SceneInfo, load_scene

WHOLE = Resize(downscale=1, max_side=800)


def camera(width: int, height: int) -> Camera:
    intrinsics = torch.tensor([0.8 * width, 0.8 * width, width / 2, height / 2])
    return Camera(torch.eye(3, 4, dtype=torch.float64), intrinsics, torch.zeros(0), width, height, Lens.PINHOLE)


def save_exr(path: Path, **channels: np.ndarray) -> Path:
    openexr: Any = pytest.importorskip("OpenEXR", reason="EXR files need the extra [exr]")
    header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
    openexr.File(header, channels).write(str(path))
    return path


def save_light(path: Path, light: np.ndarray, **more: np.ndarray) -> Path:
    planes = {name: np.ascontiguousarray(light[:, :, i], dtype=np.float32) for i, name in enumerate("RGB")}
    return save_exr(path, **planes, **more)


def save_radiance(path: Path, light: np.ndarray) -> Path:
    """Flat RGBE: a shared exponent of eight bits for three mantissas of eight."""
    exponent = np.ceil(np.log2(np.maximum(light.max(axis=2), 1e-30)) + 1e-9)
    mantissa = np.clip(light / 2.0 ** exponent[:, :, None] * 256, 0, 255)
    pixels = np.concatenate([mantissa, exponent[:, :, None] + 128], axis=2).astype(np.uint8)
    size = f"-Y {light.shape[0]} +X {light.shape[1]}\n".encode()
    path.write_bytes(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n" + size + pixels.tobytes())
    return path


def deep_png(path: Path, levels: np.ndarray) -> Path:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def bright(width: int = 6, height: int = 4, seed: int = 0) -> np.ndarray:
    return np.exp2(np.random.default_rng(seed).uniform(-6, 5, (height, width, 3))).astype(np.float32)


# --- reading -------------------------------------------------------------------------------------------------------


def test_light_of_exr_is_kept(tmp_path: Path) -> None:
    light = bright()
    path = save_light(tmp_path / "ä b.exr", light)
    found, alpha = read_light(Frame(path, camera(6, 4), "a"), decode)
    np.testing.assert_array_equal(found, light)
    assert alpha is None and picture_size(path) == (6, 4) and read_header(path).shown == (6, 4)


def test_grey_exr_and_premultiplied_alpha(tmp_path: Path) -> None:
    grey = np.array([[0.5, 2.0]], dtype=np.float32)
    found, _ = read_light(Frame(save_exr(tmp_path / "a.exr", Y=grey), None, "a"), decode)
    np.testing.assert_array_equal(found, np.repeat(grey[:, :, None], 3, axis=2))
    opacity = np.array([[0.5, 0.0]], dtype=np.float32)
    path = save_light(tmp_path / "b.exr", np.array([[[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]]), A=opacity)
    found, alpha = read_light(Frame(path, None, "b"), decode)
    assert found[0, 0].tolist() == [2.0, 4.0, 6.0]
    assert alpha is not None and alpha.tolist() == [[128, 0]]


def test_what_is_no_light_becomes_none_or_the_most(tmp_path: Path) -> None:
    light = np.array([[[np.nan, -1.0, np.inf], [1e30, -np.inf, 0.25]]], dtype=np.float32)
    found, _ = read_light(Frame(save_light(tmp_path / "a.exr", light), None, "a"), decode)
    assert found.tolist() == [[[0.0, 0.0, 65504.0], [65504.0, 0.0, 0.25]]]
    for pq in (True, False):
        pixels = prepare(Frame(tmp_path / "a.exr", camera(2, 1), "a"), WHOLE, None, Tone(pq, 2.0)).rgb
        assert int(pixels.max()) == (65535 if pq else 255) and int(pixels.min()) == 0


def test_radiance_pictures(tmp_path: Path) -> None:
    light = bright(12, 9)
    path = save_radiance(tmp_path / "a.hdr", light)
    found, _ = read_light(Frame(path, camera(12, 9), "a"), decode)
    assert picture_size(path) == (12, 9) and found.shape == light.shape
    assert float((np.abs(found - light) / light.max(axis=2, keepdims=True)).max()) < 1 / 120


@pytest.mark.parametrize("name", ["a.exr", "a.hdr"])
@pytest.mark.parametrize("content", [b"", b"hello", b"#?RADIANCE\n\n-Y 4 +X 900000\n", b"\x76\x2f\x31\x01" + bytes(20)])
def test_damaged_light_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("OpenEXR")
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError)):
        read_light(Frame(tmp_path / name, None, "a"), decode)
    if b"-Y" not in content or name == "a.exr":
        with pytest.raises(FrameError, match="cannot be read"):
            read_header(tmp_path / name)


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (5, 4, 3), dtype=np.uint16)
    found, _ = read_light(Frame(deep_png(tmp_path / "a.png", levels), None, "a"), decode)
    back = colour.srgb_from_linear(torch.from_numpy(found)).numpy() * 65535
    assert np.abs(back - levels).max() < 0.5


def test_white_balance_comes_before_primaries(tmp_path: Path) -> None:
    path = save_light(tmp_path / "a.exr", np.full((1, 1, 3), 0.5))
    frame = Frame(path, None, "a", colour="linear-p3", white_balance=(0.5, 1.0, 2.0))
    expected = colour.srgb_from("linear-p3").float() @ torch.tensor([0.25, 0.5, 1.0])
    np.testing.assert_allclose(read_light(frame, decode)[0][0, 0], expected.clamp(min=0), rtol=1e-5)


def test_eight_bit_pictures_are_the_same_with_a_tone_curve(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    frame = Frame(tmp_path / "a.png", camera(6, 8), "a")
    for resize in (WHOLE, Resize(2, 800)):
        plain, toned = prepare(frame, resize, None), prepare(frame, resize, None, Tone(False, 4.0))
        np.testing.assert_array_equal(plain.rgb, toned.rgb)


def test_light_is_averaged_before_it_is_coded(tmp_path: Path) -> None:
    light = np.zeros((2, 2, 3))
    light[0, 0] = 2.0
    frame = Frame(save_light(tmp_path / "a.exr", light), camera(2, 2), "a")
    assert prepare(frame, Resize(2, 800), None, Tone(False, 1.0)).rgb.tolist() == [[[188, 188, 188]]]
    coded = prepare(frame, Resize(2, 800), None, Tone(True, 1.0)).rgb
    assert coded.dtype == np.uint16
    back = colour.light_of_code(torch.from_numpy(coded.astype(np.float32)) / 65535, 1.0)
    assert float(back.mean()) == pytest.approx(0.5, rel=1e-3)


def test_the_cache_keeps_sixteen_bits_and_tells_tones_apart(tmp_path: Path) -> None:
    frames = [Frame(save_light(tmp_path / f"{i}.exr", bright(seed=i)), camera(6, 4), str(i)) for i in range(3)]
    found = [load_pictures(frames, WHOLE, None, tmp_path / "c", None, Tone(True, e)) for e in (1.0, 1.0, 2.0)]
    assert found[0].path == found[1].path != found[2].path
    assert found[1].rgb.dtype == torch.uint16 and found[1].bytes_per_pixel == 6
    back = colour.light_of_code(found[1].colours(slice(24, 48)), 1.0)
    np.testing.assert_allclose(back.numpy(), bright(seed=1).reshape(-1, 3), rtol=2e-3)
    assert torch.equal(found[1].colours(torch.arange(24, 48)), found[1].colours(slice(24, 48)))


# --- a scene of light ------------------------------------------------------------------------------------------------


def light_capture(folder: Path, count: int = 12, side: int = 40, scale: float = 1.0) -> Capture:
    """A ring about a ball of light before nothing: one half of it is twenty times as bright as white."""
    folder.mkdir()
    frames = []
    for i in range(count):
        angle = 2 * math.pi * i / count
        eye = torch.tensor([3 * math.cos(angle), 3 * math.sin(angle), 0.8], dtype=torch.float64)
        pose = look_at(eye, torch.zeros(3).double(), torch.tensor([0.0, 0.0, 1.0]).double())
        intrinsics = torch.tensor([1.2 * side, 1.2 * side, side / 2, side / 2]).double()
        view = Camera(pose, intrinsics, torch.zeros(0).double(), side, side, Lens.PINHOLE)
        rays = view.rays(view.pixel_grid())
        along = (rays.origin * rays.direction).sum(1)
        root = along**2 - (rays.origin**2).sum(1) + 0.49
        normal = rays.origin + (-along - root.clamp(min=0).sqrt())[:, None] * rays.direction
        light = torch.where(normal[:, :1] > 0, 20.0, 0.2) * (0.6 + 0.5 * normal)
        hit = (root > 0).float()
        light = light.clamp(min=0.01) * hit[:, None] * scale
        opacity = hit.reshape(side, side).numpy()
        path = save_light(folder / f"{i:02}.exr", light.reshape(side, side, 3).numpy(), A=opacity)
        frames.append(Frame(path, view, path.name))
    box = torch.tensor([[-1.0, -1, -1], [1, 1, 1]]).double()
    return Capture(folder, "test", tuple(frames), bounds=box)


def test_a_scene_of_light_says_what_it_does(tmp_path: Path) -> None:
    capture = light_capture(tmp_path / "in", 4, 12)
    shown = load_scene(capture, SceneConfig(), tmp_path / "cache").info
    assert shown.hdr_exposure is None and any("cut off" in note for note in shown.notes)
    kept = load_scene(capture, SceneConfig(hdr="pq", exposure=0.5), tmp_path / "cache")
    assert kept.info.hdr_exposure == 0.5
    again = SceneInfo.from_dict(json.loads(json.dumps(kept.info.to_dict())))
    assert again.hdr_exposure == 0.5 and "hdr_exposure" not in shown.to_dict()
    truth = read_light(capture.frames[1], decode)[0]
    np.testing.assert_allclose(kept.info.light(kept.view(1).rgb).numpy(), truth, rtol=3e-3)
    pixels = kept.pixels(500, torch.Generator().manual_seed(0))
    assert float(pixels.rgb.max()) > float(kept.info.coded(torch.ones(1))) > 0.5


def test_much_too_bright_light_is_exposed(tmp_path: Path) -> None:
    info = load_scene(light_capture(tmp_path / "in", 4, 12, 1024.0), SceneConfig(hdr="pq"), tmp_path / "cache").info
    assert info.hdr_exposure is not None and info.hdr_exposure < 1 / 64


@pytest.mark.parametrize("wrong", [{"hdr": "hlg"}, {"exposure": 0.0}, {"exposure": math.nan}, {"memory_gb": -1.0}])
def test_options_that_mean_nothing(wrong: dict, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"scene.{next(iter(wrong))}"):
        load_scene(Capture(tmp_path, "test", ()), replace(SceneConfig(), **wrong), tmp_path)


@pytest.mark.slow
def test_light_beyond_white_is_learnt_and_rendered(tmp_path: Path) -> None:
    capture, config = light_capture(tmp_path / "in"), SceneConfig(hdr="pq", split="all")
    scene = load_scene(capture, config, tmp_path / "cache")
    cls, model = lookup("ngp:fast")
    train = TrainConfig(steps=600, checkpoint_every=0)
    run = Run.create(tmp_path / "run", RunConfig(str(capture.root), "ngp:fast", model, config, train), scene.info)
    method = cls(model, run.info)
    trainer.train(run, scene, method, train, progress=False)
    scores = evaluate(method, scene, "train", tmp_path / "run")
    assert scores["mean"]["psnr_pq"] > 30 and scores["mean"]["psnr"] > 25
    assert "PQ" in scores["protocol"]["colour_space"]
    files = render_stills(method, [run.info.cameras[0]], tmp_path / "out", hdr=True).files
    assert files[0].name == "0000_rgb.exr"
    rendered, truth = exr.read_rgba(files[0])[0], read_light(capture.frames[0], decode)[0]
    brightest = truth > 8  # Of them, what a picture of 8 bits would hold is 1.
    assert brightest.sum() > 50 and abs(np.median(rendered[brightest] / truth[brightest]) - 1) < 0.1
