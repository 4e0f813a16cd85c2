"""Gathering that was interrupted, or is done again with a little changed, makes only what is missing."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_gather_photos import folder_of, save, scene
from test_video import pan, write_clip

from lightfold.errors import CaptureError, ConfigError, RunError
from lightfold.footage import gathered, photos, video
from lightfold.footage.photos import PhotosConfig, gather_photos
from lightfold.footage.shots import load_footage
from lightfold.footage.video import VideoConfig, gather_video, gather_videos


def stop_at(stage: str, count: int) -> Any:
    def stop(what: str, done: int, total: int) -> None:
        if what == stage and done == count:
            raise KeyboardInterrupt

    return stop


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the photos that are decoded and of the frames that are written."""
    names: list[str] = []
    photo, frame = photos._make, video._write_frame

    def note_photo(item: Any, *rest: Any, **options: Any) -> Any:
        names.append(item[1])
        return photo(item, *rest, **options)

    def note_frame(scan: Any, index: int, *rest: Any) -> Any:
        names.append(video._name(scan, index, rest[-1]))
        return frame(scan, index, *rest)

    monkeypatch.setattr(photos, "_make", note_photo)
    monkeypatch.setattr(video, "_write_frame", note_frame)
    monkeypatch.setattr(photos.os, "cpu_count", lambda: 1)  # two photos at most are made ahead
    return names


# --- photos ---------------------------------------------------------------------------------------------------------


def test_photos_that_were_made_are_not_made_again(tmp_path: Path, made: list[str]) -> None:
    root, out = folder_of(tmp_path / "photos", 8, exif={0xA405: 24}), tmp_path / "out"
    save(tmp_path / "masks/a.png", scene(1, 80, 60, "L"))
    whole = gather_photos(root, tmp_path / "in one go")
    made.clear()
    for count in (2, 5):
        with pytest.raises(KeyboardInterrupt):
            gather_photos(root, out, progress=stop_at("reading photos", count))
        assert not (out / "footage.json").exists()
    begun = list(made)
    footage = gather_photos(root, out)
    finished = made[len(begun) :]
    assert set(finished) <= {"k.jpg", "m.jpg", "o.jpg"} and "o.jpg" in finished
    assert footage.shots == whole.shots and footage.notes == whole.notes
    assert "another size" in footage.notes[0], "what was remarked before the interruption is not lost"


def test_one_more_photo_costs_one_photo(tmp_path: Path, made: list[str]) -> None:
    root, out = folder_of(tmp_path / "photos", 5), tmp_path / "out"
    gather_photos(root, out)
    made.clear()
    save(root / "new.png", scene(9))
    (root / "a.jpg").unlink()
    footage = gather_photos(root, out)
    assert made == ["new.png"] and len(footage.shots) == 5
    assert sorted(path.name for path in (out / "images").iterdir()) == [shot.name for shot in footage.shots]
    made.clear()
    save(root / "c.jpg", scene(7))
    assert len(gather_photos(root, out).shots) == 5 and made == ["c.jpg"]
    made.clear()
    assert gather_photos(root, out, PhotosConfig(lens="OPENCV")).shots[0].lens == "OPENCV" and len(made) == 5


@pytest.mark.parametrize("harm", ["gone", "short", "line", "json", "climbs", "binary"])
def test_what_is_damaged_is_made_again(tmp_path: Path, harm: str) -> None:
    root, out = tmp_path / "photos", tmp_path / "out"
    for i in range(4):
        save(root / f"{'acde'[i]}.bmp", scene(i))  # copies, not links
    footage = gather_photos(root, out)
    (out / "footage.json").unlink()
    journal = out / gathered.JOURNAL
    lines = journal.read_text().splitlines()
    if harm == "gone":
        (out / "images/c.png").unlink()
    elif harm == "short":
        (out / "images/c.png").write_bytes((out / "images/c.png").read_bytes()[:99])
    elif harm == "line":
        journal.write_text("\n".join([lines[0], lines[1][:50]]))
    elif harm == "json":
        journal.write_text("\n".join(["[]", "{}", '{"key": 1}', "7", *lines[2:]]))
    elif harm == "climbs":
        entry = json.loads(lines[0])
        entry["shot"]["name"] = "../../photos/a.bmp"
        journal.write_text(json.dumps(entry))
    else:
        journal.write_bytes(bytes(range(256)))
    assert gather_photos(root, out) == footage
    for i in range(4):
        with Image.open(footage.image(footage.shots[i])) as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(scene(i)))
    assert len(list(root.iterdir())) == 4


def test_a_full_disk_loses_nothing(tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = tmp_path / "photos", tmp_path / "out"
    for i in range(6):
        save(root / f"{'acdefg'[i]}.bmp", scene(i))
    save_picture = Image.Image.save

    def save_some(picture: Image.Image, path: Any, **options: Any) -> None:
        if "e.png" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save_picture(picture, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", save_some)
        with pytest.raises(RunError, match=r"e.png could not be written: No space left"):
            gather_photos(root, out)
    assert not list(out.rglob("*.partial"))
    made.clear()
    assert len(gather_photos(root, out).shots) == 6
    assert "a.png" not in made and "e.png" in made


# --- video ----------------------------------------------------------------------------------------------------------


def test_frames_that_were_written_are_not_written_again(tmp_path: Path, made: list[str]) -> None:
    path, out, config = write_clip(tmp_path / "clip.mp4", pan(60)), tmp_path / "out", VideoConfig(frames=16)
    whole = gather_video(path, tmp_path / "in one go", config)
    made.clear()
    with pytest.raises(KeyboardInterrupt):
        gather_video(path, out, config, stop_at("writing frames", 6))
    assert not (out / "footage.json").exists() and not list(out.rglob("*.partial"))
    before, titles = list(made), []
    made.clear()
    footage = gather_video(path, out, config, lambda what, *_: titles.append(what))
    assert set(titles) == {"writing frames"}, "the first pass is not made again"
    assert not set(before[:6]) & set(made) and len(made) <= len(footage.shots) - 6
    assert footage.shots == whole.shots and footage.notes == whole.notes and footage.dropped == whole.dropped
    assert (out / "frames.jpg").is_file()


def test_another_number_of_frames_needs_no_first_pass(tmp_path: Path, made: list[str]) -> None:
    path, out = write_clip(tmp_path / "clip.mp4", pan(60)), tmp_path / "out"
    few = gather_video(path, out, VideoConfig(frames=8))
    titles: list[str] = []
    many = gather_video(path, out, VideoConfig(frames=20), lambda what, *_: titles.append(what))
    assert set(titles) == {"writing frames"} and len(many.shots) > len(few.shots)
    assert [shot.time for shot in many.shots] == sorted(shot.time or 0.0 for shot in many.shots)
    assert sorted(p.name for p in (out / "images").iterdir()) == sorted(shot.name for shot in many.shots)
    # Another file in its place is looked at.
    write_clip(path, pan(50, 8))
    titles.clear()
    gather_video(path, out, VideoConfig(frames=8), lambda what, *_: titles.append(what))
    assert "choosing frames" in titles


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", bytes(range(256)) * 40])
def test_a_damaged_first_pass_is_made_again(tmp_path: Path, content: bytes) -> None:
    path, out = write_clip(tmp_path / "clip.mp4", pan(30)), tmp_path / "out"
    first = gather_video(path, out, VideoConfig(frames=8))
    (scan,) = out.glob("scan-*.npz")
    scan.write_bytes(content)
    (out / "footage.json").unlink()
    assert gather_video(path, out, VideoConfig(frames=8)) == first


def test_several_videos_go_on_in_the_second(tmp_path: Path, made: list[str]) -> None:
    clips = [write_clip(tmp_path / "a b.mp4", pan(40)), write_clip(tmp_path / "ü.mp4", pan(40, 8))]
    whole = gather_videos(clips, tmp_path / "in one go", VideoConfig(frames=20))
    made.clear()
    first = sum(shot.camera == whole.shots[0].camera for shot in whole.shots)
    with pytest.raises(KeyboardInterrupt):
        gather_videos(clips, tmp_path / "out", VideoConfig(frames=20), stop_at("writing frames", first + 2))
    made.clear()
    assert gather_videos(clips, tmp_path / "out", VideoConfig(frames=20)).shots == whole.shots
    assert len(made) <= len(whole.shots) - first - 2


# --- calibrations ---------------------------------------------------------------------------------------------------

CALIBRATION = "1 OPENCV 320 240 300 301 161 119 -0.1 0.02 0.001 0.002\n"


def calibration(folder: Path, text: str = CALIBRATION) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.txt").write_text(text)
    return folder / "cameras.txt"


def test_photos_get_their_calibration_scaled(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "photos", 2)  # 160 x 120
    save(root / "odd.png", scene(5, 120, 120))
    config = PhotosConfig(calibration=calibration(tmp_path / "lab 1"))
    footage = gather_photos(root, tmp_path / "out", config)
    a, c, odd = footage.shots
    assert a.lens == "OPENCV" and a.parameters == (150, 150.5, 80.5, 59.5, -0.1, 0.02, 0.001, 0.002)
    assert a.focal == 150.25 and a.camera == c.camera and odd.parameters == () and odd.lens == "SIMPLE_RADIAL"
    assert "1 of 3 photos have another shape than the calibration" in " ".join(footage.notes)
    assert "2 of 3 photos have another size than the calibration, which was scaled" in " ".join(footage.notes)
    assert load_footage(tmp_path / "out") == footage
    # Another calibration is other work.
    calibration(tmp_path / "lab 1", CALIBRATION.replace("300 ", "310 "))
    assert gather_photos(root, tmp_path / "out", config).shots[0].parameters[0] == 155


def test_frames_get_their_calibration(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", pan(12))
    footage = gather_video(path, tmp_path / "out", VideoConfig(calibration=calibration(tmp_path)))
    assert {shot.lens for shot in footage.shots} == {"OPENCV"}
    assert footage.shots[0].parameters == (300, 301, 161, 119, -0.1, 0.02, 0.001, 0.002)
    assert footage.kind == "video"


def test_a_calibration_of_something_else_is_one_sentence(tmp_path: Path) -> None:
    root, clip = folder_of(tmp_path / "photos", 3), write_clip(tmp_path / "clip.mp4", pan(5))
    square = calibration(tmp_path, "1 PINHOLE 500 500 300 300 250 250\n")
    with pytest.raises(CaptureError, match=r"500 x 500 pixels, and no photo has their shape; a.jpg has 160 x 120"):
        gather_photos(root, tmp_path / "out", PhotosConfig(calibration=square))
    with pytest.raises(CaptureError, match=r"500 x 500 pixels, and the frames of .* have another shape: 320 x 240"):
        gather_video(clip, tmp_path / "out", VideoConfig(calibration=square))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="give one of the two"):
        gather_photos(root, tmp_path / "out", PhotosConfig(calibration=square, lens="OPENCV"))
    with pytest.raises(ConfigError, match="give one of the two"):
        gather_video(clip, tmp_path / "out", VideoConfig(calibration=square, lens="OPENCV"))
    with pytest.raises(CaptureError, match="cannot be read"):
        gather_photos(root, tmp_path / "out", PhotosConfig(calibration=tmp_path / "gone.yaml"))
