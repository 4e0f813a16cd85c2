"""Tags of spherical and stereo video: written, read back, understood by FFmpeg, and no frame is lost for them."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import av
import numpy as np
import pytest

from lightfold.spherical_video import Tags, read_tags, write_tags

FRONT_HALF = (0.0, 0.0, 0.25, 0.25)
KINDS = [
    Tags("side-by-side", FRONT_HALF),
    Tags("top-bottom", (0.0, 0.0, 0.0, 0.0)),
    Tags("mono", (0.125, 0.0, 0.0, 0.0)),
    Tags("side-by-side"),
]


def made(path: Path, audio_first: bool = False, **options: str) -> Path:
    """A video of ten frames that differ, 64 x 32."""
    with av.open(str(path), "w", format="mp4", options=options) as container:
        if audio_first:
            sound = container.add_stream("aac", rate=48000)
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        if audio_first:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 48000), dtype=np.float32), format="fltp", layout="mono")
            silence.rate = 48000
            container.mux(sound.encode(silence))
            container.mux(sound.encode())
        for i in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((32, 64, 3), 20 * i, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("tags", KINDS, ids=str)
@pytest.mark.parametrize("movflags", ["+write_colr", "+faststart"])
def test_tags_are_read_back_and_frames_stay(tags: Tags, movflags: str, tmp_path: Path) -> None:
    path = made(tmp_path / "größe mit raum.mp4", movflags=movflags)
    before = frames(path)
    assert read_tags(path) is None
    write_tags(path, tags)
    assert read_tags(path) == tags
    assert all(np.array_equal(a, b) for a, b in zip(frames(path), before, strict=True))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with pytest.raises(ValueError, match="without such tags"):
        write_tags(path, tags)
    assert read_tags(path) == tags


def test_the_video_gets_them_also_behind_sound_which_stays_whole(tmp_path: Path) -> None:
    path = made(tmp_path / "a.mp4", audio_first=True, movflags="+faststart")
    with av.open(str(path)) as container:
        assert container.streams[0].type == "audio"
        before = [bytes(packet) for packet in container.demux(audio=0)]
    write_tags(path, KINDS[0])
    assert read_tags(path) == KINDS[0]
    with av.open(str(path)) as container:
        assert [bytes(packet) for packet in container.demux(audio=0)] == before
    assert len(frames(path)) == 10


def test_ffmpeg_understands_them(tmp_path: Path) -> None:
    """Frames then carry the side data that players act on."""
    path = made(tmp_path / "a.mp4")
    write_tags(path, KINDS[0])
    with av.open(str(path)) as container:
        kinds = {data.type.name for frame in container.decode(video=0) for data in frame.side_data}
    assert {"SPHERICAL", "STEREO3D"} <= kinds


def test_the_bytes_are_those_of_the_specification(tmp_path: Path) -> None:
    path = made(tmp_path / "a.mp4")
    write_tags(path, KINDS[0])
    raw = path.read_bytes()
    assert struct.pack(">I4sIB", 13, b"st3d", 0, 2) in raw
    projection = struct.pack(">I4sI3i", 24, b"prhd", 0, 0, 0, 0)
    projection += struct.pack(">I4sI4I", 28, b"equi", 0, 0, 0, 1 << 30, 1 << 30)
    source = struct.pack(">I4sI", 22, b"svhd", 0) + b"Lightfold\0"
    whole = struct.pack(">I4s", 8 + 22 + 60, b"sv3d") + source + struct.pack(">I4s", 60, b"proj") + projection
    assert whole in raw


def test_what_is_no_such_file_is_refused_and_stays(tmp_path: Path) -> None:
    good = made(tmp_path / "good.mp4").read_bytes()
    index = good.index(b"moov") - 4
    bad = {
        "empty": b"",
        "text": b"This is no video at all, and it goes on for some bytes.",
        "cut": good[: index + 200],
        "no index": good[:index],
        "mad size": good[:index] + b"\xff\xff\xff\xff" + good[index + 4 :],
        "no entry": good.replace(b"stsd", b"free"),
        "no video": good.replace(b"vmhd", b"free"),
        "zero": bytes(200),
    }
    for name, content in bad.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError):
            write_tags(path, KINDS[0])
        assert path.read_bytes() == content
    assert len(list(tmp_path.iterdir())) == len(bad) + 1
    with pytest.raises(ValueError, match=r"tags\.layout"):
        write_tags(tmp_path / "good.mp4", Tags("cross-eyed"))


def test_any_damage_ends_in_a_value_error_or_in_a_video(tmp_path: Path) -> None:
    """Every byte of the index, changed by itself."""
    good = made(tmp_path / "good.mp4")
    raw = good.read_bytes()
    path = tmp_path / "a.mp4"
    for place in range(raw.index(b"moov") - 4, len(raw), 7):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 0xFF]) + raw[place + 1 :])
        try:
            write_tags(path, KINDS[0])
        except ValueError:
            continue
        assert read_tags(path) == KINDS[0]
    shutil.copy(good, path)
    write_tags(path, KINDS[0])
