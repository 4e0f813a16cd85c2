"""EXR files: channels, what counts as depth, damaged and hostile files."""

from __future__ import annotations

import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightfold import exr

OpenEXR: Any = pytest.importorskip("OpenEXR", reason="EXR files need the extra [exr]")


def save(path: Path, channels: dict[str, np.ndarray], **header: Any) -> Path:
    kind = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage, **header}
    OpenEXR.File(kind, dict(channels)).write(str(path))
    return path


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.uint32])
def test_channels_keep_their_values(kind: type, tmp_path: Path) -> None:
    values = np.arange(12).reshape(3, 4).astype(kind)
    found = exr.read_channels(save(tmp_path / "ä b.exr", {"R": values, "Z": values + values}))
    assert sorted(found) == ["R", "Z"] and found["R"].dtype == np.float32
    np.testing.assert_array_equal(found["Z"], 2 * values.astype(np.float32))


@pytest.mark.parametrize(
    ("names", "depth"),
    [(["R"], "R"), (["depth.V"], "depth.V"), (["B", "G", "R"], "R"), (["A", "Y"], "Y"), (["Y", "Z"], "Z")],
)
def test_the_plane_that_is_the_depth(names: list[str], depth: str, tmp_path: Path) -> None:
    channels = {name: np.full((2, 3), len(name) + ord(name[-1]), dtype=np.float32) for name in names}
    plane = exr.read_plane(save(tmp_path / "a.exr", channels))
    np.testing.assert_array_equal(plane, channels[depth])


def test_files_read_at_once_leave_the_programs_output_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [save(tmp_path / f"{seconds}.exr", {"Y": np.zeros((2, 3), dtype=np.float32)}) for seconds in (0.1, 0.2)]
    opened = OpenEXR.File

    def slowly(path: str, **options: Any) -> Any:
        time.sleep(float(Path(path).stem))
        return opened(path, **options)

    monkeypatch.setattr(OpenEXR, "File", slowly)
    before = sys.stdout
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(exr.picture_size, paths[0])
        time.sleep(0.05)
        second = pool.submit(exr.picture_size, paths[1])
        assert first.result() == second.result() == (3, 2)
    assert sys.stdout is before


def test_no_plane_is_the_depth(tmp_path: Path) -> None:
    channels = {name: np.zeros((2, 3), dtype=np.float32) for name in ("u", "v")}
    with pytest.raises(ValueError, match="channels u, v, of which none"):
        exr.read_plane(save(tmp_path / "a.exr", channels))


def test_damaged_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    whole = save(tmp_path / "whole.exr", {"R": noise}).read_bytes()
    for name, content in (
        ("empty", b""),
        ("text", b"hello"),
        ("short", whole[: len(whole) // 2]),
        ("head", whole[:40]),
    ):
        path = tmp_path / f"{name}.exr"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not an EXR picture"):
            exr.read_plane(path)
    assert capfd.readouterr().out == ""
    with pytest.raises(FileNotFoundError):
        exr.read_plane(tmp_path / "gone.exr")


def test_a_header_that_promises_too_much(tmp_path: Path) -> None:
    content = save(tmp_path / "a.exr", {"R": np.zeros((2, 3), dtype=np.float32)}).read_bytes()
    for window in (b"dataWindow\0box2i\0", b"displayWindow\0box2i\0"):
        at = content.index(window) + len(window) + 4
        content = content[:at] + struct.pack("<4i", 0, 0, 300_000, 300_000) + content[at + 16 :]
    (tmp_path / "a.exr").write_bytes(content)
    with pytest.raises(ValueError, match="claims 300001 x 300001 pixels"):
        exr.read_plane(tmp_path / "a.exr")


def test_a_real_one(shared_data: Path) -> None:
    found = exr.read_channels(shared_data / "exr" / "albert.exr")
    assert sorted(found) == ["A", "B", "G", "R"] and found["R"].shape == (1024, 1024)
    assert 0 < float(found["R"].min()) < float(found["R"].max()) < 1
