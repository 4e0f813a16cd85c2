"""Gathering video: clips made here, whose every frame is known, and two real ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from lightfold.errors import CaptureError, ConfigError, RunError
from lightfold.footage import clip, motion, tonemap, video
from lightfold.footage.shots import Footage, load_footage
from lightfold.footage.video import VideoConfig, gather_video, gather_videos

WIDTH, HEIGHT, RATE = 320, 240, 30


def surface(seed: int = 0, width: int = 1600, height: int = 700, grey: bool = False) -> np.ndarray:
    """Coloured noise of several sizes: every view of it can be told from every other."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), dtype=np.float32)
    for size in (3, 9, 30, 100):
        for channel in range(3):
            coarse = rng.normal(size=(height // size + 2, width // size + 2)).astype(np.float32)
            total[..., channel] += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    total = total.mean(axis=2, keepdims=True).repeat(3, axis=2) if grey else total
    return np.clip(128 + 45 * total / total.std(), 0, 255).astype(np.uint8)


SURFACE = surface()


def view(x: float, y: float = 200, blur: int = 0) -> np.ndarray:
    """What a camera at (x, y) sees; `blur` is the way in pixels that it moved during the exposure."""
    shifts = [round(x) + k for k in range(blur + 1)]
    stack = [SURFACE[int(y) : int(y) + HEIGHT, s : s + WIDTH] for s in shifts]
    return np.mean(stack, axis=0).round().astype(np.uint8)


def pan(frames: int = 60, speed: float = 6.0) -> list[np.ndarray]:
    return [view(speed * i) for i in range(frames)]


def write_clip(
    path: Path,
    views: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    stamps: Sequence[int] | None = None,
    set_up: Callable[[Any], None] | None = None,
    options: dict[str, str] | None = None,
    raw: Callable[[np.ndarray], av.VideoFrame] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """A video of these pictures [H, W, 3]; stamps in thousandths of a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    quality = {"crf": "12", "preset": "ultrafast", "g": "10"} if codec == "libx264" else {}
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=RATE, options={**quality, **(options or {})})
        stream.height, stream.width = views[0].shape[:2]
        stream.pix_fmt = pixels
        if codec != "libx264":
            stream.bit_rate = 4_000_000
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if set_up is not None:
            set_up(stream)
        for i, picture in enumerate(views):
            if raw is not None:
                frame = raw(picture)
            else:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame = frame.reformat(format=pixels, dst_colorspace=5)
            frame.pts = i if stamps is None else stamps[i]
            frame.time_base = Fraction(1, RATE) if stamps is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def written(footage: Footage) -> list[np.ndarray]:
    return [np.asarray(Image.open(footage.image(shot)).convert("RGB")).astype(np.int16) for shot in footage.shots]


def assert_right_frames(footage: Footage, views: Sequence[np.ndarray], largest_error: float = 8.0) -> None:
    """Each picture is the view that its number says, not the one before or after."""
    for shot, picture in zip(footage.shots, written(footage), strict=True):
        number = int(Path(shot.name).stem.split("_")[1])
        errors = {
            k: float(np.abs(picture - views[k]).mean()) for k in range(number - 1, number + 2) if 0 <= k < len(views)
        }
        assert min(errors, key=errors.__getitem__) == number
        assert errors[number] < largest_error


# --- the choice, end to end -----------------------------------------------------------------------------------------


def test_blurred_and_still_stretches_are_left_out(tmp_path: Path) -> None:
    way = [6.0 * i for i in range(30)] + [180.0] * 30 + [180 + 6.0 * i for i in range(1, 61)]
    blurred = set(range(10, 14)) | set(range(80, 88))
    views = [view(x, blur=20 if i in blurred else 0) for i, x in enumerate(way)]
    stages: dict[str, list[tuple[int, int]]] = {}
    footage = gather_video(
        write_clip(tmp_path / "clip.mp4", views),
        tmp_path / "out",
        VideoConfig(frames=30),
        lambda stage, done, total: stages.setdefault(stage, []).append((done, total)),
    )
    numbers = [int(shot.name[6:12]) for shot in footage.shots]
    assert footage.kind == "video" and footage.ordered
    assert len(numbers) in (28, 29, 30)
    assert not blurred & set(numbers)
    assert sum(29 <= n <= 60 for n in numbers) <= 2
    positions = np.array([way[n] for n in numbers])
    gaps = np.diff(positions)
    # The way is 540 pixels long and 30 frames share it; around a blurred stretch of 48 pixels there is a gap.
    assert np.median(gaps) == pytest.approx(18, abs=4)
    assert gaps.min() >= 5 and gaps.max() <= 48 + 2 * 18
    assert_right_frames(footage, views)
    reasons = {reason: what for what, reason in footage.dropped}
    assert reasons["they are blurred or show nothing"] == f"{len(blurred)} frames"
    assert sum(int(what.split()[0]) for what, _ in footage.dropped) + len(numbers) == len(views)
    assert [shot.time for shot in footage.shots] == pytest.approx([n / RATE for n in numbers], abs=1e-3)
    assert {(shot.width, shot.height, shot.camera, shot.lens) for shot in footage.shots} == {
        (WIDTH, HEIGHT, "0", "SIMPLE_RADIAL")
    }
    assert all(0.3 < shot.brightness < 0.7 and shot.sharpness > 0 for shot in footage.shots)
    sheet = Image.open(tmp_path / "out" / "frames.jpg")
    assert sheet.width == 1920 and np.asarray(sheet).std() > 10
    assert load_footage(tmp_path / "out") == footage
    for steps in stages.values():
        assert steps == sorted(steps) and steps[-1][0] <= steps[-1][1]
    assert stages["writing frames"][-1] == (len(numbers), len(numbers))


def test_pictures_are_jpeg_with_full_chroma(tmp_path: Path) -> None:
    footage = gather_video(write_clip(tmp_path / "clip.mp4", pan(12)), tmp_path / "out")
    with Image.open(footage.image(footage.shots[0])) as picture:
        assert picture.format == "JPEG"
        assert [component[1:3] for component in picture.layer] == [(1, 1)] * 3


def test_a_rate_instead_of_a_count(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", pan(90, 5))
    assert len(gather_video(path, tmp_path / "out", VideoConfig(fps=4)).shots) == 12


def test_varying_frame_rate(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    stamps = np.cumsum(rng.choice([16, 33, 120], 60)).tolist()
    path = write_clip(tmp_path / "clip.mkv", pan(), stamps=stamps)
    footage = gather_video(path, tmp_path / "out", VideoConfig(frames=15))
    for shot in footage.shots:
        assert shot.time == pytest.approx((stamps[int(shot.name[6:12])] - stamps[0]) / 1000, abs=2e-3)
    assert_right_frames(footage, pan())


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("mov", "libx264", {}),
        ("ts", "libx264", {}),
        ("avi", "mpeg4", {"bf": "2", "g": "12"}),
        ("h264", "libx264", {}),
        ("mp4", "libx264", {"preset": "veryfast", "x264-params": "open-gop=1:keyint=15:min-keyint=15:bframes=3"}),
        ("mp4", "libx264", {"preset": "veryfast", "x264-params": "intra-refresh=1:keyint=20"}),
    ],
)
def test_containers_find_their_frames_again(tmp_path: Path, suffix: str, codec: str, options: dict[str, str]) -> None:
    path = write_clip(tmp_path / f"clip.{suffix}", pan(), codec=codec, options=options)
    footage = gather_video(path, tmp_path / "out", VideoConfig(frames=10))
    assert len(footage.shots) >= 9
    assert_right_frames(footage, pan(), largest_error=14.0)
    assert any("no time stamps" in note for note in footage.notes) == (suffix == "h264")


def test_a_long_video_is_not_decoded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "clip.mp4", pan(240, 4), options={"g": "30"})
    monkeypatch.setattr(video, "SCAN_PIXELS", 80 * WIDTH * HEIGHT)
    footage = gather_video(path, tmp_path / "out", VideoConfig(frames=20))
    looked = next(int(note.split(" of its 240")[0].split()[-1]) for note in footage.notes if "of its 240" in note)
    assert 80 <= looked <= 110  # a third, and the first group whole
    assert len(footage.shots) >= 19
    assert_right_frames(footage, pan(240, 4))
    gaps = np.diff([int(shot.name[6:12]) for shot in footage.shots])
    assert gaps.max() <= 31


# --- how frames are stored ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_is_applied(tmp_path: Path, degrees: int) -> None:
    path = write_clip(tmp_path / "clip.mp4", pan(20), set_up=lambda stream: stream.set_display_rotation(degrees))
    footage = gather_video(path, tmp_path / "out", VideoConfig(frames=4))
    turned = [np.rot90(picture, degrees // 90) for picture in pan(20)]  # both counterclockwise
    assert footage.shots[0].width == turned[0].shape[1]
    assert_right_frames(footage, turned)


def test_a_mirrored_video_is_mirrored_back(tmp_path: Path) -> None:
    flip = [-1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30]
    path = write_clip(tmp_path / "clip.mp4", pan(20), set_up=lambda stream: stream.set_display_matrix(flip))
    assert_right_frames(gather_video(path, tmp_path / "out"), [picture[:, ::-1] for picture in pan(20)])


@pytest.mark.parametrize("transfer", [tonemap.PQ, tonemap.HLG])
def test_high_dynamic_range_is_tone_mapped(tmp_path: Path, transfer: int) -> None:
    """A patch of diffuse white, as BT.2408 places it, becomes a light grey below white; darkness stays dark."""
    white = 0.58 if transfer == tonemap.PQ else 0.75

    def raw(picture: np.ndarray) -> av.VideoFrame:
        coded = picture.astype(np.uint16) << 8
        coded[:60, :60] = round(white * 65535)
        coded[-60:, -60:] = 0
        frame = av.VideoFrame.from_ndarray(coded, format="rgb48le").reformat(format="yuv420p10le", dst_colorspace=9)
        frame.color_trc, frame.color_primaries, frame.colorspace = transfer, 9, 9
        return frame

    def set_up(stream: Any) -> None:
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace = transfer, 9, 9

    path = write_clip(tmp_path / "clip.mp4", pan(12), pixels="yuv420p10le", raw=raw, set_up=set_up)
    footage = gather_video(path, tmp_path / "out", VideoConfig(frames=3))
    for picture in written(footage):
        assert picture[10:50, 10:50].mean() == pytest.approx(229, abs=4)
        assert picture[-50:-10, -50:-10].max() <= 4
    assert any("HDR" in note for note in footage.notes)


def test_tone_mapping_is_monotonic_and_keeps_grey_grey() -> None:
    levels = np.linspace(0, 65535, 2000).astype(np.uint16)
    ramp = np.repeat(levels[None, :, None], 3, axis=2)
    for transfer in (tonemap.PQ, tonemap.HLG):
        mapped = tonemap.srgb_from_hdr(ramp, transfer).astype(int)[0]
        assert (np.diff(mapped, axis=0) >= 0).all()
        assert np.ptp(mapped, axis=1).max() <= 1
        assert mapped[0].tolist() == [0, 0, 0] and mapped[-1].tolist() == [255, 255, 255]
    # 50 cd/m2 lies below the knee: light is only rescaled, and 50 / 203 is level 136 of sRGB.
    assert tonemap.srgb_from_hdr(np.full((1, 1, 3), round(0.4404 * 65535), np.uint16), tonemap.PQ).mean() == 136
    with pytest.raises(ValueError, match="transfer"):
        tonemap.srgb_from_hdr(ramp, 1)


def test_saturated_hdr_keeps_its_hue() -> None:
    red = np.array([[[60000, 20000, 15000]]], dtype=np.uint16)
    r, g, b = (int(v) for v in tonemap.srgb_from_hdr(red, tonemap.HLG)[0, 0])
    assert r > 200 and g < 60 and b < 60


@pytest.mark.parametrize(("height", "stated", "matrix"), [(720, 1, 1), (720, None, 1), (240, None, 5), (240, 5, 5)])
def test_colours(tmp_path: Path, height: int, stated: int | None, matrix: int) -> None:
    """The matrix between luma and colour is the stated one, else BT.709 above standard definition and BT.601 below."""
    left, right = (200, 40, 30), (30, 180, 60)

    def raw(picture: np.ndarray) -> av.VideoFrame:
        return av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p", dst_colorspace=matrix)

    def set_up(stream: Any) -> None:
        if stated is not None:
            stream.codec_context.colorspace = stated

    views = []
    for i in range(6):
        picture = np.zeros((height, height * 4 // 3, 3), dtype=np.uint8)
        picture[:, : picture.shape[1] // 2], picture[:, picture.shape[1] // 2 :] = left, right
        picture[height // 2 : height // 2 + 120, 10:310] = view(30 * i)[:120, :300]
        views.append(picture)
    path = write_clip(tmp_path / "clip.mp4", views, raw=raw, set_up=set_up)
    picture = written(gather_video(path, tmp_path / "out", VideoConfig(frames=2)))[0]
    assert picture[20, 20] == pytest.approx(left, abs=4)
    assert picture[20, -20] == pytest.approx(right, abs=4)


def test_pixels_become_square(tmp_path: Path) -> None:
    def set_up(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    footage = gather_video(write_clip(tmp_path / "clip.mp4", pan(12), set_up=set_up), tmp_path / "out")
    assert (footage.shots[0].width, footage.shots[0].height) == (427, 240)


def test_interlaced_is_left_and_told(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", pan(12), options={"x264-params": "tff=1"})
    assert any("interlaced" in note for note in gather_video(path, tmp_path / "out").notes)


def test_focal_length_from_metadata(tmp_path: Path) -> None:
    path = tmp_path / "clip.mov"
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata["com.apple.quicktime.camera.focal_length.35mm_equivalent"] = "26"
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in pan(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    footage = gather_video(path, tmp_path / "out")
    assert footage.shots[0].focal == pytest.approx(26 / np.hypot(36, 24) * np.hypot(WIDTH, HEIGHT), rel=1e-6)


# --- 360 ------------------------------------------------------------------------------------------------------------


def wide(i: int, circles: bool = False) -> np.ndarray:
    """The view of a camera that rises; a turn would change nothing in a panorama."""
    picture = np.asarray(Image.fromarray(SURFACE[8 * i : 8 * i + 240, :480]).resize((1920, 960))).copy()
    if circles:
        y, x = np.mgrid[:960, :1920]
        picture[np.hypot(y - 480, x % 960 - 480) > 470] = 0
    return picture


def test_wide_video_is_taken_for_panoramas(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "360.mp4", [wide(i) for i in range(6)])
    footage = gather_video(path, tmp_path / "out")
    assert footage.kind == "panoramas"
    assert {shot.lens for shot in footage.shots} == {"EQUIRECTANGULAR"}
    assert any("twice as wide" in note for note in footage.notes)
    flat = gather_video(path, tmp_path / "flat", VideoConfig(lens="OPENCV_FISHEYE", frames=3))
    assert flat.kind == "video" and flat.shots[0].lens == "OPENCV_FISHEYE"


def test_two_circles_are_no_panorama(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "dual.mp4", [wide(i, circles=True) for i in range(4)])
    with pytest.raises(CaptureError, match="dual-fisheye"):
        gather_video(path, tmp_path / "out")
    assert gather_video(path, tmp_path / "out", VideoConfig(lens="EQUIRECTANGULAR")).kind == "panoramas"


# --- motion ---------------------------------------------------------------------------------------------------------


def small(x: float, y: float = 0.0, noise: int = 0) -> np.ndarray:
    """A quarter of a large view, so that whole pixels of the surface are quarters here."""
    crop = SURFACE[int(y) : int(y) + 360, int(x) : int(x) + 640].mean(axis=2)
    picture = crop.reshape(90, 4, 160, 4).mean(axis=(1, 3))
    return (picture + np.random.default_rng(noise).normal(scale=2, size=picture.shape)).astype(np.float32)


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (3, 0), (0, 10), (-24, 12), (100, -50), (250, 0)])
def test_flow_of_a_pan(dx: int, dy: int) -> None:
    flow = motion.flow(small(300, 100, 1), small(300 + dx, 100 + dy, 2))
    assert flow is not None
    assert np.median(flow, axis=0) == pytest.approx([-dy / 640, -dx / 640], abs=1e-3)


def test_flow_of_walking_forwards_points_outwards() -> None:
    ahead = Image.fromarray(small(300, 100)).resize((160, 90), Image.Resampling.BICUBIC, box=(6, 3.4, 154, 86.6))
    flow = motion.flow(small(300, 100), np.asarray(ahead))
    assert flow is not None
    assert np.linalg.norm(flow, axis=1).mean() == pytest.approx(0.08 * 0.25, rel=0.35)
    assert np.abs(flow.mean(axis=0)).max() < 0.005


def test_flow_of_unrelated_or_empty_pictures_is_unknown() -> None:
    assert motion.flow(small(0), small(900, 300)) is None
    assert motion.flow(small(0), np.full((90, 160), 7, np.float32)) is None
    with pytest.raises(ValueError, match="shape"):
        motion.flow(small(0), small(0)[:20])


def test_trembling_adds_nothing_up() -> None:
    rng = np.random.default_rng(0)
    change = motion.ViewChange()
    total = sum(change.add(small(300 + rng.integers(-4, 5), 100 + rng.integers(-4, 5), k)) for k in range(60))
    assert total < 0.015  # the tremor itself is 4 of 640 pixels to each side
    steady = motion.ViewChange()
    assert sum(steady.add(small(3 * k, 100, k)) for k in range(60)) == pytest.approx(3 * 59 / 640, rel=0.05)


def test_turning_a_panorama_is_no_change_of_view() -> None:
    change = motion.ViewChange(sphere=True)
    assert sum(change.add(small(3 * k, 100, k)) for k in range(60)) < 0.02


# --- bad input ------------------------------------------------------------------------------------------------------


def test_what_is_no_video_is_one_sentence(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.mp4").touch()
    for name in ("text.mp4", "text.txt"):
        (tmp_path / name).write_text("this is not a film\n" * 400)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(50_000))
    Image.fromarray(view(0)).save(tmp_path / "picture.png")
    whole = write_clip(tmp_path / "whole.mp4", pan(12)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "codec.mp4").write_bytes(whole.replace(b"avc1", b"zz9q"))
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nwhole.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.ffconcat").write_text("ffconcat version 1.0\nfile whole.mp4\n")
    with av.open(str(tmp_path / "sound.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    write_clip(tmp_path / "one.mp4", pan(1))
    write_clip(tmp_path / "still.mp4", [view(0)] * 20)
    write_clip(tmp_path / "black.mp4", [np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * 20)
    write_clip(tmp_path / "tiny.mp4", [picture[:32, :48] for picture in pan(5)])
    for name, words in {
        "absent.mp4": "nothing at",
        "folder": "not a video",
        "empty.mp4": "is empty",
        "text.mp4": "not a video",
        "text.txt": "not a video",
        "noise.mp4": "not a video",
        "picture.png": "single picture",
        "cut.mp4": "cut off",
        "codec.mp4": "cannot decode",
        "list.m3u8": "not a video",
        "list.ffconcat": "not a video",
        "sound.m4a": "only sound",
        "one.mp4": "only one frame",
        "still.mp4": "hardly changes",
        "black.mp4": "show nothing",
        "tiny.mp4": "48 x 32",
    }.items():
        with pytest.raises(CaptureError, match=words) as caught:
            gather_video(tmp_path / name, out)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not out.exists()


def test_damage_in_the_middle_costs_a_few_frames(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "clip.mp4", pan(90, 5))
    content = bytearray(whole.read_bytes())
    with av.open(str(whole)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    rng = np.random.default_rng(0)
    for place, size in places[33:36]:
        content[place : place + size] = rng.bytes(size)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(content)
    footage = gather_video(broken, tmp_path / "out", VideoConfig(frames=30))
    numbers = {int(shot.name[6:12]) for shot in footage.shots}
    # The group of ten frames in which the damage lies is lost from there on, and no more.
    assert not numbers & set(range(33, 40))
    assert numbers & set(range(28, 33)) and numbers & set(range(40, 45))
    assert_right_frames(footage, pan(90, 5))
    assert any("damaged" in note for note in footage.notes)


def test_a_video_that_ends_early_is_used_and_told(tmp_path: Path) -> None:
    content = write_clip(tmp_path / "whole.mkv", pan(120, 5)).read_bytes()
    path = tmp_path / "early.mkv"
    path.write_bytes(content[: len(content) // 2])
    footage = gather_video(path, tmp_path / "out", VideoConfig(frames=10))
    assert len(footage.shots) >= 8
    assert_right_frames(footage, pan(120, 5))
    assert any("should last 4.0 s" in note for note in footage.notes)


def test_foreign_words_and_spaces(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "Ordner mit ü, 日本 % # 01" / "film №1 %03d.mp4", pan(12))
    footage = gather_video(path, tmp_path / "aus gabe é")
    assert len(footage.shots) >= 5
    assert footage.shots[0].source == str(path)


def test_a_disk_that_cannot_be_written(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", pan(12))
    out = tmp_path / "out"
    out.mkdir()
    (out / "images").write_text("a file where the folder should be")
    with pytest.raises(RunError, match="could not be written"):
        gather_video(path, out)
    assert (out / "images").read_text() == "a file where the folder should be"
    assert not (out / "footage.json").exists()


@pytest.mark.parametrize(
    "config",
    [
        VideoConfig(frames=1),
        VideoConfig(frames=10, fps=1),
        VideoConfig(fps=0),
        VideoConfig(fps=float("nan")),
        VideoConfig(lens="WIDE"),
        VideoConfig(lens="OPENCV", calibration=Path("a.pto")),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, config: VideoConfig) -> None:
    with pytest.raises(ConfigError):
        gather_video(tmp_path / "absent.mp4", tmp_path / "out", config)


# --- work that is done ----------------------------------------------------------------------------------------------


def test_finished_work_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = write_clip(tmp_path / "clip.mp4", pan(30)), tmp_path / "out"
    first = gather_video(path, out, VideoConfig(frames=10))
    with monkeypatch.context() as patch:
        patch.setattr(video, "opened", None)
        patch.setattr(clip, "opened", None)
        assert gather_video(path, out, VideoConfig(frames=10)) == first
    # Other options, and the earlier frames make room.
    second = gather_video(path, out, VideoConfig(frames=7))
    assert sorted(p.name for p in (out / "images").iterdir()) == sorted(shot.name for shot in second.shots)
    # A picture that is gone is made again.
    second.image(second.shots[0]).unlink()
    assert gather_video(path, out, VideoConfig(frames=7)) == second
    assert second.image(second.shots[0]).is_file()
    # A failure leaves what was there.
    with pytest.raises(CaptureError):
        gather_video(tmp_path / "absent.mp4", out)
    assert load_footage(out) == second


def test_an_interrupted_gathering_starts_again(tmp_path: Path) -> None:
    path, out = write_clip(tmp_path / "clip.mp4", pan(30)), tmp_path / "out"

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "writing frames" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather_video(path, out, VideoConfig(frames=10), interrupt)
    assert not (out / "footage.json").exists()
    assert not list(out.rglob("*.partial"))
    assert len(gather_video(path, out, VideoConfig(frames=10)).shots) >= 9


def test_pictures_of_someone_else_are_left_alone(tmp_path: Path) -> None:
    path, out = write_clip(tmp_path / "clip.mp4", pan(12)), tmp_path / "out"
    (out / "images").mkdir(parents=True)
    (out / "images" / "frame_000000.jpg").write_bytes(b"mine")
    with pytest.raises(CaptureError, match="not put there"):
        gather_video(path, out)
    assert (out / "images" / "frame_000000.jpg").read_bytes() == b"mine"


def test_several_videos(tmp_path: Path) -> None:
    paths = [
        write_clip(tmp_path / "a b.mp4", pan(60)),
        write_clip(tmp_path / "other" / "a b.mp4", pan(30)),
        tmp_path / "absent.mp4",
    ]
    footage = gather_videos(paths, tmp_path / "out", VideoConfig(frames=30))
    folders = [shot.name.split("/")[0] for shot in footage.shots]
    assert len(set(folders)) == 2 and not any(" " in shot.name for shot in footage.shots)
    assert {shot.camera for shot in footage.shots} == set(folders)
    # The longer way gets more of the frames.
    assert folders.count(folders[0]) == pytest.approx(20, abs=2) and len(folders) == pytest.approx(30, abs=3)
    assert any(name == "absent.mp4" for name, _ in footage.dropped)
    assert_right_frames(footage, pan(60))
    assert json.loads((tmp_path / "out" / "footage.json").read_text())["kind"] == "video"


# --- real footage ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_walk_around_a_can(shared_data: Path, tmp_path: Path) -> None:
    footage = gather_video(shared_data / "beer_can_video" / "Beer.mp4", tmp_path / "out")
    assert 95 <= len(footage.shots) <= 150
    assert {(shot.width, shot.height) for shot in footage.shots} == {(720, 1280)}
    numbers = [int(shot.name[6:12]) for shot in footage.shots]
    assert numbers == sorted(set(numbers)) and numbers[0] < 15 and numbers[-1] > 690
    # Three frames that are plainly blurred to the eye.
    assert not {137, 353, 683} & set(numbers)


@pytest.mark.slow
def test_the_file_of_a_dual_fisheye_camera(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="dual-fisheye"):
        gather_video(shared_data / "dual_fisheye_video" / "360_0103_0.MP4", tmp_path / "out")
