"""The folder of decoded pictures stays within its limit, and what is in use stays in it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightfold import cache
from lightfold.errors import ConfigError, LightfoldError


@pytest.fixture(autouse=True)
def plenty_of_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cache.LIMIT, raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))


def fill(folder: Path, *sizes: int) -> list[Path]:
    """Caches of these sizes, the first the longest unused."""
    paths = [folder / f"pixels-{i:024x}.bin" for i in range(len(sizes))]
    for age, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        path.write_bytes(bytes(size))
        os.utime(path, (1000 + age, 1000 + age))
    return paths


def test_the_longest_unused_go_first_and_only_as_many_as_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = fill(tmp_path, 400, 400, 400)
    os.utime(paths[0], (5000, 5000))
    monkeypatch.setenv(cache.LIMIT, "1.2e-6")
    cache.make_room(tmp_path, 300)
    assert [path.exists() for path in paths] == [True, False, True]
    cache.make_room(tmp_path, 300)
    assert [path.exists() for path in paths] == [True, False, True]


def test_what_is_in_use_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fcntl")
    paths = fill(tmp_path, 400, 400)
    held = cache.Hold(paths[0])
    monkeypatch.setenv(cache.LIMIT, "1e-6")
    cache.make_room(tmp_path, 500)
    assert [path.exists() for path in paths] == [True, False]
    with pytest.raises(LightfoldError, match="of which 4e-07 GB are in use"):
        cache.make_room(tmp_path, 700)
    del held
    cache.make_room(tmp_path, 700)
    assert not paths[0].exists()


def test_what_can_not_fit_is_refused_before_anything_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = fill(tmp_path, 400, 400)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=cache.RESERVE + 100))
    with pytest.raises(LightfoldError, match="need 1e-06 GB, and the disk .* free some space"):
        cache.make_room(tmp_path, 1000)
    assert all(path.exists() for path in paths)
    cache.make_room(tmp_path, 800)
    assert not any(path.exists() for path in paths)


def test_half_of_the_disk_without_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = fill(tmp_path, 2**29, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**29))
    cache.make_room(tmp_path, 2**27)
    assert [path.exists() for path in paths] == [False, True]


def test_unfinished_ones_of_programs_that_are_gone_are_removed(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    gone, working, foreign = (tmp_path / name for name in (".pixels-a.partial", ".pixels-b.partial", "pixels-x.bin"))
    for path in (gone, working, foreign):
        path.write_bytes(b"1")
    with working.open("r+b") as file:
        cache.mark(file.fileno(), alone=True)
        cache.make_room(tmp_path, 1)
        assert not gone.exists() and working.exists() and foreign.exists()


@pytest.mark.parametrize("text", ["many", "0", "-3", "nan", "inf"])
def test_a_limit_that_is_none_is_named(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.LIMIT, text)
    with pytest.raises(ConfigError, match=f"{cache.LIMIT} must be"):
        cache.make_room(tmp_path, 1)
