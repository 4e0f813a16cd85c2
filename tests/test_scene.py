"""From a capture to batches of pixels: split, frame, exactness of every pixel and its ray."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lightfold import scene as scene_module
from lightfold.cameras import Camera, Lens
from lightfold.capture import Capture, Frame, Points
from lightfold.errors import CaptureError, ConfigError
from lightfold.formats import open_capture
from lightfold.geometry import look_at
from lightfold.scene import Scene, SceneConfig, SceneInfo, load_scene
from lightfold.split import split_names

UP = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
ORIGIN = torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64)
SIZES = ((12, 8), (8, 12), (9, 9))
LENSES = (
    (Lens.PINHOLE, ()),
    (Lens.OPENCV, (0.05, -0.02, 0.001, -0.002)),
    (Lens.OPENCV_FISHEYE, (0.02, 0.001, 0.0, 0.0)),
)


def pixels_of(index: int, width: int, height: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (height, width, channels), dtype=np.uint8)


def make_capture(
    folder: Path,
    count: int = 10,
    sizes: tuple[tuple[int, int], ...] = ((12, 8),),
    lenses: tuple[tuple[Lens, tuple[float, ...]], ...] = LENSES[:1],
    channels: int = 3,
    **more: object,
) -> Capture:
    """A ring of cameras around ORIGIN with random pictures; sizes and lenses take turns. Its box saves the sweep."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = []
    for i in range(count):
        (width, height), (lens, distortion) = sizes[i % len(sizes)], lenses[i % len(lenses)]
        path = folder / f"{i:02}.png"
        Image.fromarray(pixels_of(i, width, height, channels)).save(path)
        angle = 2 * math.pi * i / count
        eye = ORIGIN + torch.tensor([4 * math.cos(angle), 4 * math.sin(angle), 1.0 + 0.1 * i], dtype=torch.float64)
        intrinsics = torch.tensor([0.9 * width, 0.95 * width, 0.52 * width, 0.47 * height])
        pose = look_at(eye, ORIGIN, UP)
        frames.append(Frame(path, Camera(pose, intrinsics, torch.tensor(distortion), width, height, lens), path.name))
    box = torch.stack([ORIGIN - 1, ORIGIN + 1])
    fields = {"root": folder, "format": "test", "frames": tuple(frames), "bounds": box, **more}
    return Capture(**fields)  # type: ignore[arg-type]


def with_frames(capture: Capture, **change: object) -> Capture:
    return replace(capture, frames=tuple(replace(frame, **change) for frame in capture.frames))  # type: ignore[arg-type]


def check_batch(scene: Scene, rng: torch.Generator, n: int = 3000) -> Tensor:
    """Every drawn pixel has its picture's value and its camera's ray. Returns the views that were drawn."""
    batch = scene.pixels(n, rng)
    assert len(batch.rays) == n and batch.xy.shape == (n, 2) and batch.alpha.shape == (n,)
    drawn = batch.rays.view.unique()
    for index in drawn.tolist():
        view, of_view = scene.view(index), batch.rays.view == index
        xy = batch.xy[of_view]
        x, y = (xy - 0.5).long().unbind(-1)
        assert torch.equal(batch.rgb[of_view], view.rgb[y, x])
        assert torch.equal(batch.alpha[of_view], view.alpha[y, x])
        assert bool(view.mask[y, x].all())
        expected = view.camera.to(torch.float64).rays(xy.double())
        rays = batch.rays[of_view]
        torch.testing.assert_close(rays.origin, expected.origin.float(), atol=2e-6, rtol=0)
        torch.testing.assert_close(rays.direction, expected.direction.float(), atol=2e-5, rtol=0)
        torch.testing.assert_close(rays.radius, expected.radius.float(), rtol=0.1, atol=0)
        assert bool((rays.near == np.float32(scene.info.view_near[index])).all())
        assert bool((rays.far == np.float32(scene.info.far)).all())
    return drawn


# --- batches of pixels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [SIZES[:1], SIZES[:2], SIZES], ids=["one size", "portrait too", "three sizes"])
@pytest.mark.parametrize("lenses", [LENSES[:1], LENSES[1:2], LENSES], ids=["pinhole", "distorted", "three lenses"])
def test_every_pixel_has_its_value_and_its_ray(
    tmp_path: Path, rng: torch.Generator, sizes: tuple, lenses: tuple
) -> None:
    scene = load_scene(make_capture(tmp_path, sizes=sizes, lenses=lenses), SceneConfig(), tmp_path / "cache")
    drawn = check_batch(scene, rng)
    assert tuple(drawn.tolist()) == scene.info.train
    assert scene.info.test == (0, 8)


@pytest.mark.parametrize("lenses", [LENSES[:1], LENSES], ids=["pinholes", "three lenses"])
def test_pixels_are_exact_when_directions_do_not_fit_into_memory(
    tmp_path: Path, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch, lenses: tuple
) -> None:
    monkeypatch.setattr(scene_module, "MAX_DIRECTIONS", 50)
    scene = load_scene(make_capture(tmp_path, sizes=SIZES, lenses=lenses), SceneConfig(), tmp_path / "cache")
    assert tuple(check_batch(scene, rng).tolist()) == scene.info.train


def test_parallel_rays_start_on_the_camera_plane(tmp_path: Path, rng: torch.Generator) -> None:
    capture = make_capture(tmp_path, lenses=((Lens.ORTHOGRAPHIC, ()),))
    check_batch(load_scene(capture, SceneConfig(), tmp_path / "cache"), rng)


def test_a_subset_is_a_capture_of_its_own(tmp_path: Path, rng: torch.Generator) -> None:
    capture = make_capture(tmp_path, count=21)
    unposed = replace(capture.frames[0], camera=None, name="00a.png")
    capture = replace(capture, frames=(unposed, *capture.frames))
    for subset, names in ((11, range(0, 21, 2)), (0.25, (0, 5, 10, 15, 20)), (100, range(21))):
        scene = load_scene(capture, SceneConfig(subset=subset), tmp_path / "cache")
        assert scene.info.names == tuple(f"{i:02}.png" for i in names)
        assert scene.info.test == tuple(range(0, len(names), 8))
        assert f"{len(names)} of 21 pictures are used, evenly spaced (scene.subset)." in scene.info.notes
    check_batch(load_scene(capture, SceneConfig(subset=0.25), tmp_path / "cache"), rng)
    for wrong in (0, -2, math.nan, math.inf):
        with pytest.raises(ConfigError, match="scene.subset must be a positive"):
            load_scene(capture, SceneConfig(subset=wrong), tmp_path / "cache")


def test_a_data_sets_own_smaller_pictures_are_used_where_the_factor_is_theirs(tmp_path: Path) -> None:
    capture = make_capture(tmp_path / "images", sizes=((46, 30),))
    (tmp_path / "images_4").mkdir()
    frames = []
    for i, frame in enumerate(capture.frames):
        # 46 / 4 is 11.5; some programs round it down.
        copy = tmp_path / "images_4" / f"{i:02}.png"
        Image.fromarray(pixels_of(100 + i, 11, 7)).save(copy)
        frames.append(replace(frame, smaller={4: copy}))
    capture = replace(capture, frames=tuple(frames))
    scene = load_scene(capture, SceneConfig(downscale=4), tmp_path / "cache")
    assert any("data set's own" in note and "images_4" in note for note in scene.info.notes)
    assert (scene.view(3).rgb * 255).round().byte().numpy().tolist() == pixels_of(103, 11, 7).tolist()
    camera, whole = scene.info.cameras[3], capture.frames[3].camera
    assert whole is not None and (camera.width, camera.height) == (11, 7)
    expected = whole.intrinsics * torch.tensor([11 / 46, 7 / 30, 11 / 46, 7 / 30])
    torch.testing.assert_close(camera.intrinsics, expected.float())
    for other in (SceneConfig(downscale=2), SceneConfig(max_side=12)):
        info = load_scene(capture, other, tmp_path / "cache").info
        assert info.cameras[3].width in (23, 12) and not any("own" in note for note in info.notes)
    one_without = replace(capture, frames=(replace(frames[0], smaller={}), *frames[1:]))
    info = load_scene(one_without, SceneConfig(downscale=4), tmp_path / "cache").info
    assert {camera.width for camera in info.cameras} == {12}


def test_a_seed_decides_the_draw(tmp_path: Path) -> None:
    scene = load_scene(make_capture(tmp_path), SceneConfig(), tmp_path / "cache")
    first, second, other = (scene.pixels(100, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(first.xy, second.xy) and torch.equal(first.rgb, second.rgb)
    assert not torch.equal(first.xy, other.xy)


def test_pixels_are_drawn_evenly_whatever_the_sizes(tmp_path: Path, rng: torch.Generator) -> None:
    scene = load_scene(make_capture(tmp_path, 6, sizes=SIZES), SceneConfig(split="every:6"), tmp_path / "cache")
    batch = scene.pixels(200_000, rng)
    count = torch.bincount(batch.rays.view, minlength=6)[1:].double()
    area = torch.tensor([c.width * c.height for c in scene.info.cameras[1:]]).double()
    torch.testing.assert_close(count / count.sum(), area / area.sum(), atol=0.005, rtol=0)
    column = (batch.xy[batch.rays.view == 1][:, 0] - 0.5).long()
    share = torch.bincount(column, minlength=8) / len(column)
    torch.testing.assert_close(share, torch.full_like(share, 1 / 8), atol=0.01, rtol=0)


@pytest.mark.parametrize("valid", [0.9, 0.5, 0.1])
def test_masked_pixels_are_never_drawn_and_others_evenly(tmp_path: Path, rng: torch.Generator, valid: float) -> None:
    capture = make_capture(tmp_path, sizes=SIZES)
    frames, expected = [], 0
    for i, frame in enumerate(capture.frames):
        assert frame.camera is not None
        shape = (frame.camera.height, frame.camera.width)
        mask = (np.random.default_rng(i).random(shape) < valid).astype(np.uint8)
        Image.fromarray(mask).save(tmp_path / f"mask{i}.png")
        frames.append(replace(frame, mask=tmp_path / f"mask{i}.png"))
        expected += int(mask.sum()) if i % 8 else 0
    scene = load_scene(replace(capture, frames=tuple(frames)), SceneConfig(), tmp_path / "cache")
    check_batch(scene, rng)
    batch = scene.pixels(200 * expected, rng)
    place = batch.rays.view * 10_000 + (batch.xy[:, 1].long() * 100 + batch.xy[:, 0].long())
    count = place.unique(return_counts=True)[1]
    assert len(count) == expected
    # Counts are Poisson with mean 200: six standard deviations are 85.
    assert int(count.min()) > 115 and int(count.max()) < 285


def test_a_mask_that_hides_everything_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 12), dtype=np.uint8)).save(tmp_path / "mask.png")
    capture = with_frames(make_capture(tmp_path), mask=tmp_path / "mask.png")
    with pytest.raises(CaptureError, match="inverted"):
        load_scene(capture, SceneConfig(), tmp_path / "cache")


def test_alpha_stays_straight(tmp_path: Path, rng: torch.Generator) -> None:
    scene = load_scene(make_capture(tmp_path, channels=4), SceneConfig(), tmp_path / "cache")
    check_batch(scene, rng)
    view, source = scene.view(3), pixels_of(3, 12, 8, 4)
    np.testing.assert_array_equal((view.rgb * 255).round().numpy(), source[:, :, :3])
    np.testing.assert_array_equal((view.alpha * 255).round().numpy(), source[:, :, 3])


def test_an_empty_batch_is_a_batch(tmp_path: Path, rng: torch.Generator) -> None:
    assert len(load_scene(make_capture(tmp_path), SceneConfig(), tmp_path / "cache").pixels(0, rng).rays) == 0


def test_downscaled_pixels_see_along_the_downscaled_camera(tmp_path: Path, rng: torch.Generator) -> None:
    capture = make_capture(tmp_path, sizes=((30, 20), (21, 33)), lenses=LENSES)
    scene = load_scene(capture, SceneConfig(max_side=13), tmp_path / "cache")
    assert {(c.width, c.height) for c in scene.info.cameras} == {(13, 9), (8, 13)}
    check_batch(scene, rng)
    # A corner of the picture is a corner at any size.
    full, small = capture.frames[1].camera, scene.info.cameras[1]
    assert full is not None
    corner = full.unproject(torch.tensor([[21.0, 33.0]]).double())
    torch.testing.assert_close(small.unproject(torch.tensor([[8.0, 13.0]])), corner.float(), atol=1e-5, rtol=0)


# --- whole views ---------------------------------------------------------------------------------------------------


def test_view_refuses_an_index_that_is_none(tmp_path: Path) -> None:
    scene = load_scene(make_capture(tmp_path), SceneConfig(), tmp_path / "cache")
    for index in (-1, 10):
        with pytest.raises(ValueError, match=r"0\.\.9"):
            scene.view(index)


def test_depth_arrives_in_scene_units(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 12), 2500, dtype=np.uint16)).save(tmp_path / "depth.png")
    capture = with_frames(make_capture(tmp_path), depth=tmp_path / "depth.png")
    scene = load_scene(capture, SceneConfig(), tmp_path / "cache")
    depth = scene.view(0).depth
    assert depth is not None
    torch.testing.assert_close(depth, torch.full((8, 12), 2.5 * scene.info.scene_from_capture.scale))
    (tmp_path / "depth.png").write_bytes(b"")
    with pytest.raises(CaptureError, match="depth of 00.png"):
        scene.view(0)


# --- split ---------------------------------------------------------------------------------------------------------


def frames_named(names: list[str], split: list[str | None] | None = None) -> list[Frame]:
    return [Frame(Path(name), None, name, split=None if split is None else split[i]) for i, name in enumerate(names)]


LETTERS = [chr(97 + i) for i in range(20)]


# fraction:0.9 keeps 18 evenly spaced ones of 20, k * 19/17 rounded down: it skips 9 and 18.
@pytest.mark.parametrize(
    "rule, test", [("auto", "aiq"), ("every:8", "aiq"), ("every:5", "afkp"), ("fraction:0.9", "js")]
)
def test_split_rules(rule: str, test: str) -> None:
    train, held_out, _ = split_names(frames_named(LETTERS), rule)
    assert held_out == set(test) and train == set(LETTERS) - set(test)


def test_split_follows_the_capture_and_mentions_who_is_left_out() -> None:
    train, test, notes = split_names(frames_named(["a", "b", "c", "d"], ["train", "train", "test", None]), "auto")
    assert (train, test) == ({"a", "b"}, {"c"}) and len(notes) == 1 and notes[0].endswith("not used: 1.")
    train, test, notes = split_names(frames_named(["a", "b", "c"], [None, None, "test"]), "auto")
    assert (train, test, notes) == ({"a", "b"}, {"c"}, ())


def test_split_all_trains_on_everything_and_says_so() -> None:
    train, test, notes = split_names(frames_named(LETTERS), "all")
    assert train == set(LETTERS) and test == set("aiq") and "flatter" in notes[0]


def test_split_from_a_file(tmp_path: Path) -> None:
    listing = tmp_path / "test names.txt"
    listing.write_text("in/b.png\n\n  c.png \n")
    frames = frames_named(["in/a.png", "in/b.png", "in/c.png", "out/b.png"])
    assert split_names(frames, f"file:{listing}")[1] == {"in/b.png", "in/c.png"}
    for line, message in (("zebra.png", "no posed picture"), ("b.png", "several pictures")):
        listing.write_text(line)
        with pytest.raises(ConfigError, match=message):
            split_names(frames, f"file:{listing}")
    with pytest.raises(ConfigError, match="cannot be read"):
        split_names(frames, f"file:{tmp_path / 'absent.txt'}")


@pytest.mark.parametrize("rule", ["", "every:1", "every:x", "every", "fraction:1", "fraction:nan", "file:", "some"])
def test_split_refuses_rules_that_mean_nothing(rule: str) -> None:
    with pytest.raises(ConfigError, match="scene.split must be"):
        split_names(frames_named(LETTERS), rule)


def test_an_unreadable_picture_does_not_shift_the_split(tmp_path: Path) -> None:
    capture = make_capture(tmp_path)
    capture.frames[3].path.write_bytes(b"")
    info = load_scene(capture, SceneConfig(), tmp_path / "cache").info
    assert [info.names[i] for i in info.test] == ["00.png", "08.png"]
    assert "03.png" not in info.names and any(note.startswith("03.png is left out") for note in info.notes)


# --- the scene frame -----------------------------------------------------------------------------------------------


def test_the_scene_frame_changes_no_pixel_and_leads_back(tmp_path: Path) -> None:
    capture = make_capture(tmp_path, lenses=LENSES, bounds=None, near=1.0)
    info = load_scene(capture, SceneConfig(), tmp_path / "cache").info
    x_in_capture = ORIGIN + torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
    x_in_scene = info.scene_from_capture.apply(x_in_capture)
    torch.testing.assert_close(info.scene_from_capture.inverse().apply(x_in_scene), x_in_capture)
    for frame, camera in zip(capture.frames, info.cameras, strict=True):
        assert frame.camera is not None
        before, _ = frame.camera.project(x_in_capture)
        after, _ = camera.to(torch.float64).project(x_in_scene)
        torch.testing.assert_close(after, before, atol=1e-4, rtol=0)
    centre = torch.stack([camera.center for camera in info.cameras])
    assert float(centre.abs().max()) < 1.5 and not info.bounded
    torch.testing.assert_close(info.scene_from_capture.rotation @ UP, UP, atol=0.1, rtol=0)


def test_points_of_the_capture_are_seeds_and_place_the_near_planes(tmp_path: Path) -> None:
    noise = torch.randn(30_000, 3, generator=torch.Generator().manual_seed(0))
    xyz = ORIGIN + torch.nn.functional.normalize(noise, dim=-1)
    capture = make_capture(tmp_path, bounds=None, points=Points(xyz))
    info = load_scene(capture, SceneConfig(), tmp_path / "cache").info
    assert info.points is not None and len(info.points) == 20_000 and info.points.dtype == torch.float32
    scale = info.scene_from_capture.scale
    for camera, near in zip(info.cameras, info.view_near, strict=True):
        surface = float((camera.center.double() - info.scene_from_capture.apply(ORIGIN)).norm()) - scale
        assert 0.75 * surface <= near < 0.85 * surface
        assert info.near_for(camera) == pytest.approx(near, rel=0.05)
    away = look_at(torch.tensor([2.0, 0, 0]), torch.tensor([3.0, 0, 0]), torch.tensor([0.0, 0, 1]))
    assert info.near_for(replace(info.cameras[0], cam_from_world=away)) == info.near


def test_near_by_hand_wins_everywhere(tmp_path: Path) -> None:
    info = load_scene(make_capture(tmp_path), SceneConfig(near=0.3), tmp_path / "cache").info
    assert info.near == 0.3 and set(info.view_near) == {0.3} and info.near_for(info.cameras[0]) == 0.3


def test_the_plane_sweep_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = make_capture(tmp_path, bounds=None)
    first = load_scene(capture, SceneConfig(), tmp_path / "cache").info
    (kept,) = (tmp_path / "cache").glob("surface-*.npy")
    monkeypatch.setattr("lightfold.sweep.sweep", lambda *_: pytest.fail("the kept points were not used"))
    assert load_scene(capture, SceneConfig(), tmp_path / "cache").info.to_dict() == first.to_dict()
    monkeypatch.undo()
    kept.write_bytes(b"damaged")
    assert load_scene(capture, SceneConfig(), tmp_path / "cache").info.to_dict() == first.to_dict()


# --- info and options ----------------------------------------------------------------------------------------------


def test_info_survives_json(tmp_path: Path) -> None:
    capture = make_capture(tmp_path, lenses=LENSES, channels=4, points=Points(ORIGIN + torch.randn(50, 3).double()))
    info = load_scene(capture, SceneConfig(), tmp_path / "cache").info
    data = json.loads(json.dumps(info.to_dict()))
    back = SceneInfo.from_dict(data)
    assert back.to_dict() == data and back.points is not None and info.points is not None
    torch.testing.assert_close(back.points, info.points, atol=1e-5, rtol=0)
    del data["far"]
    with pytest.raises(ValueError, match="missing key 'far'"):
        SceneInfo.from_dict(data)


@pytest.mark.parametrize(
    "channels, custom, option, expected",
    [
        (3, None, "auto", None),
        (3, "white", "auto", None),
        (4, "white", "auto", (1, 1, 1)),
        (4, None, "auto", (0, 0, 0)),
        (4, "white", "black", (0, 0, 0)),
        (4, None, "white", (1, 1, 1)),
    ],
)
def test_background(tmp_path: Path, channels: int, custom: str | None, option: str, expected: tuple | None) -> None:
    capture = make_capture(tmp_path, channels=channels, background=custom)
    info = load_scene(capture, SceneConfig(background=option), tmp_path / "cache").info
    assert info.background == expected and info.has_alpha == (channels == 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"downscale": 0.5},
        {"downscale": math.nan},
        {"max_side": 0},
        {"orientation": "sideways"},
        {"background": "pink"},
        {"near": -1.0},
    ],
)
def test_options_that_mean_nothing_are_named(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"scene.{next(iter(wrong))} must be"):
        load_scene(make_capture(tmp_path, 3), SceneConfig(**wrong), tmp_path / "cache")


def test_captures_that_cannot_be_trained_on(tmp_path: Path) -> None:
    capture = make_capture(tmp_path, 3)
    with pytest.raises(CaptureError, match="find the poses first"):
        load_scene(with_frames(capture, camera=None), SceneConfig(), tmp_path / "cache")
    capture.frames[1].path.write_bytes(b"")
    with pytest.raises(CaptureError, match="leaves 1 picture.* 01.png is left out"):
        load_scene(capture, SceneConfig(), tmp_path / "cache")


def test_progress_is_reported(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    load_scene(make_capture(tmp_path, 3), SceneConfig(), tmp_path / "cache", lambda *step: seen.append(step))
    assert ("reading pictures", 3, 3) in seen and seen[-1] == ("finding near planes", 1, 1)


# --- real captures -------------------------------------------------------------------------------------------------


def test_fox_near_planes_fit_what_training_found_best(shared_data: Path, tmp_path: Path, rng: torch.Generator) -> None:
    """A search by hand found 0.65 of the smallest distance from a camera to the focus; 0.5 lost 1.5 dB."""
    scene = load_scene(open_capture(shared_data / "fox"), SceneConfig(max_side=480), tmp_path)
    info = scene.info
    distance = torch.stack([camera.center for camera in info.cameras]).norm(dim=-1)
    ratio = torch.tensor(info.view_near).median() / distance.min()
    assert 0.5 < float(ratio) < 0.8
    assert 0.4 < info.near / float(distance.min()) < 0.8
    assert not info.bounded and not info.forward_facing and len(info.test) == 7
    assert scene.pixels(256, rng).rgb.shape == (256, 3)


def test_fern_is_forward_facing_and_its_near_plane_is_before_the_stated_one(shared_data: Path, tmp_path: Path) -> None:
    capture = open_capture(shared_data / "nerf_llff_data" / "fern")
    info = load_scene(replace(capture, near=None), SceneConfig(), tmp_path).info
    scale = info.scene_from_capture.scale
    assert info.forward_facing and capture.near is not None
    assert all(0.7 < near / scale / capture.near < 1.1 for near in info.view_near)


def test_lego_is_bounded_with_the_limits_of_its_box(shared_data: Path, tmp_path: Path) -> None:
    info = load_scene(open_capture(shared_data / "nerf_synthetic" / "lego"), SceneConfig(max_side=50), tmp_path).info
    assert info.bounded and info.background == (1, 1, 1) and info.has_alpha
    assert info.near == pytest.approx(2 / 1.5) and info.far == pytest.approx(6 / 1.5)
    assert (len(info.train), len(info.test)) == (100, 25)
    assert torch.equal(info.scene_from_capture.rotation, torch.eye(3).double())


# --- large sets ------------------------------------------------------------------------------------------------------


def test_pictures_larger_than_memory_are_drawn_from_a_window(tmp_path: Path) -> None:
    capture = make_capture(tmp_path / "in", count=20, sizes=SIZES)
    size = 20 * 3 * 90 / 1e9
    scene = load_scene(capture, SceneConfig(split="all", memory_gb=0.3 * size), tmp_path / "cache")
    few = check_batch(scene, torch.Generator().manual_seed(5))
    assert 3 <= len(few) <= 8
    seen = [check_batch(scene, torch.Generator().manual_seed(seed), 200) for seed in range(0, 8192, 512)]
    assert len(torch.cat(seen).unique()) == 20
    again = scene.pixels(100, torch.Generator().manual_seed(700)), scene.pixels(100, torch.Generator().manual_seed(700))
    assert torch.equal(again[0].xy, again[1].xy) and torch.equal(again[0].rays.view, again[1].rays.view)


@pytest.mark.parametrize("valid", [0.9, 0.05])
def test_masks_hold_in_a_window(tmp_path: Path, valid: float) -> None:
    capture = make_capture(tmp_path / "in", count=8)
    masks = np.random.default_rng(0).random((8, 8, 12)) < valid
    masks[2] = False
    frames = []
    for i, frame in enumerate(capture.frames):
        path = tmp_path / "in" / f"m{i}.png"
        Image.fromarray((255 * masks[i]).astype(np.uint8)).save(path)
        frames.append(replace(frame, mask=path))
    config = SceneConfig(split="all", memory_gb=150 / 1e9)
    scene = load_scene(replace(capture, frames=tuple(frames)), config, tmp_path / "cache")
    seen = [check_batch(scene, torch.Generator().manual_seed(seed), 50) for seed in range(0, 8192, 512)]
    assert sorted(torch.cat(seen).unique().tolist()) == [0, 1, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("lenses", [LENSES, LENSES[1:2]])
def test_pixels_are_exact_with_a_lens_for_each_picture(
    tmp_path: Path, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch, lenses: tuple
) -> None:
    monkeypatch.setattr(scene_module, "MAX_DIRECTIONS", 50)
    monkeypatch.setattr(scene_module, "MAX_TABLES", 2)
    capture = make_capture(tmp_path, count=9, sizes=SIZES, lenses=lenses)
    views = check_batch(load_scene(capture, SceneConfig(split="every:9"), tmp_path / "cache"), rng)
    assert len(views) == 8


def test_drawn_depths_are_those_of_the_views(tmp_path: Path, rng: torch.Generator) -> None:
    capture = make_capture(tmp_path / "in", count=4, sizes=SIZES)
    frames = []
    for i, frame in enumerate(capture.frames):
        assert frame.camera is not None
        values = np.random.default_rng(i).uniform(1, 4, (frame.camera.height, frame.camera.width))
        np.save(tmp_path / "in" / f"{i}.npy", values)
        path = None if i == 2 else tmp_path / "in" / f"{i}.npy"
        frames.append(replace(frame, depth=path, depth_scale=1.0))
    config = SceneConfig(split="all")
    scene = load_scene(replace(capture, frames=tuple(frames)), config, tmp_path / "cache")
    batch = scene.pixels(500, rng, depth=True)
    assert batch.depth is not None
    for i, xy, distance in zip(batch.rays.view.tolist(), batch.xy, batch.depth, strict=True):
        depth = scene.view(i).depth
        if depth is None:
            assert float(distance) == 0
        else:
            column, row = (xy - 0.5).long().tolist()
            assert 0.998 <= float(distance / depth[row, column]) < 1.5
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".bin"]
