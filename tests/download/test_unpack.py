"""Archives of strangers: what is good comes out, what is hostile is refused, and nothing is ever written elsewhere."""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightfold.download import unpack as module
from lightfold.download.fetch import DownloadError
from lightfold.download.unpack import inside, look_into, member_path, unpack

GOOD = {
    "set/lego/a.txt": b"a",
    "set/lego/train/r 0.png": b"\x89PNG" * 500,
    "set/ship/ä.txt": b"",
    "set/README": b"hello",
}
SUFFIXES = ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"]


def make_zip(path: Path, files: dict[str, bytes], modes: dict[str, int] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3
            info.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o644) << 16
            # ZipInfo cleans names up, which no attacker's tool does.
            info.filename = name
            archive.writestr(info, content)
    return path


def make_tar(path: Path, files: dict[str, bytes | tuple[bytes, str]], mode: str = "w") -> Path:
    """Members with content, or of another type with the name they link to."""
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.type, info.linkname = content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def make(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        return make_zip(path, files)
    compression = path.name.partition(".tar")[2].removeprefix(".")
    return make_tar(path, dict(files), f"w:{compression}")


def found(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(path: Path, words: str) -> None:
    """The archive is refused before anything is written."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(DownloadError, match=words):
        look_into(path)
    assert sorted(path.parent.rglob("*")) == before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_good_comes_out(tmp_path: Path, suffix: str) -> None:
    path = make(tmp_path / f"a.{suffix}", GOOD)
    content = look_into(path)
    assert content.size == sum(map(len, GOOD.values())) and content.links == 0
    counts: list[int] = []
    unpack(path, content, tmp_path / "out", counts.append)
    assert found(tmp_path / "out") == GOOD and sum(counts) == content.size


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("set/lego", {"a.txt", "train/r 0.png"}),
        ("lego", {"a.txt", "train/r 0.png"}),
        ("train", {"r 0.png"}),
        ("", {"lego/a.txt", "lego/train/r 0.png", "ship/ä.txt", "README"}),
        ("ego", set()),
        ("README", set()),
    ],
)
def test_one_folder_of_an_archive(tmp_path: Path, suffix: str, folder: str, expected: set[str]) -> None:
    path = make(tmp_path / f"a.{suffix}", GOOD)
    part = inside(look_into(path), folder)
    assert {"/".join(member.path) for member in part.members} == expected
    if expected:
        unpack(path, part, tmp_path / "out")
        assert set(found(tmp_path / "out")) == expected


def test_the_folder_nearest_to_the_top(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"x/y/lego/no": b"", "lego/yes": b"", "lego/lego/deeper": b""})
    assert {m.path for m in inside(look_into(path), "lego").members} == {("yes",), ("lego", "deeper")}


def test_files_at_the_top_stay_there(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a": b"", "b/c": b""})
    assert {m.path for m in inside(look_into(path), "").members} == {("a",), ("b", "c")}


def test_what_macos_adds_is_left_out(tmp_path: Path) -> None:
    files = {"set/a": b"1", "__MACOSX/set/._a": b"2", "set/.DS_Store": b"3", "set/._a": b"4"}
    content = inside(look_into(make_zip(tmp_path / "a.zip", files)), "")
    assert [member.path for member in content.members] == [("a",)]


def test_folders_may_be_named_again(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"./": b"", "a/": b"", "a/b": b"1", "a//c": b"2", "./a/d": b"3"})
    unpack(path, look_into(path), tmp_path / "out")
    assert found(tmp_path / "out") == {"a/b": b"1", "a/c": b"2", "a/d": b"3"}


# --- names ----------------------------------------------------------------------------------------------------------

HOSTILE = [
    "../evil",
    "a/../../evil",
    "/etc/evil",
    "\\evil",
    "..\\evil",
    "a\\..\\..\\evil",
    "C:/evil",
    "c:\\evil",
    "C:evil/x",
]
HOSTILE += [
    "a/\x00b",
    "a\nb",
    "a/..",
    "..",
    "//server/share",
    "\\\\server\\share",
    "a" * 256,
    "a/" * 600 + "b",
    "c:/../x",
]


@pytest.mark.parametrize("name", [name for name in HOSTILE if "\x00" not in name and name != "C:evil/x"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_out(tmp_path: Path, kind: str, name: str) -> None:
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    if kind == "zip":
        path = make_zip(folder / "a.zip", {"good": b"1", name: b"evil"})
    else:
        path = make_tar(folder / "a.tar", {"good": b"1", name: b"evil"})
    refused(path, "refused")


@pytest.mark.parametrize("name", [*HOSTILE[:-1], "", ".", "./", "\ud800"])
def test_members_that_may_not_be_written(name: str) -> None:
    assert member_path(name, windows=True) is None
    assert member_path(name, windows=False) is None or name == "C:evil/x"


@pytest.mark.parametrize(
    "name", ["con", "a/NUL.txt", "a/com1", "a.", "a /b", "a:stream", "a/b?", "a|b", "aux.tar.gz", "C:evil/x"]
)
def test_names_that_windows_reads_otherwise(name: str) -> None:
    assert member_path(name, windows=True) is None and member_path(name, windows=False) is not None


pieces = st.sampled_from(
    ["..", ".", "", "a", "b c", "ä", "C:", "con", "nul.txt", "~", "-", "*", "\\", "/", "..\\", "x:y", "\x7f"]
)


@settings(max_examples=400)
@given(
    st.one_of(
        st.text(max_size=40), st.lists(pieces, max_size=8).map("/".join), st.lists(pieces, max_size=8).map("\\".join)
    )
)
@example("a/./../b")
@example("....//")
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    for windows in (False, True):
        parts = member_path(name, windows)
        if parts is None:
            continue
        assert parts and not {"", ".", ".."} & set(parts)
        assert not any(set(part) & set("/\\\0") for part in parts)
        folder = PurePosixPath("/data/set")
        assert folder in folder.joinpath(*parts).parents
        assert os.path.normpath("/data/set/" + "/".join(parts)).startswith("/data/set/")
        if windows:
            there = PureWindowsPath("D:/data/set")
            placed = there.joinpath(*parts)
            assert there in placed.parents and placed.drive == "D:" and not placed.is_reserved()
        # Reading a cleaned name again changes nothing.
        assert member_path("/".join(parts), windows) == parts


@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(max_examples=50, deadline=None)
@given(
    names=st.lists(st.lists(pieces, min_size=1, max_size=4).map("/".join), min_size=1, max_size=4), tar=st.booleans()
)
def test_whatever_an_archive_names_stays_inside(
    names: list[str], tar: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Unpacked whole or refused; in both cases nothing is anywhere else."""
    top = tmp_path_factory.mktemp("names")
    (top / "deep").mkdir()
    path = top / ("a.tar" if tar else "a.zip")
    if tar:
        with tarfile.open(path, "w") as archive:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 1
                archive.addfile(info, io.BytesIO(b"x"))
    else:
        with zipfile.ZipFile(path, "w") as packed:
            for name in names:
                info2 = zipfile.ZipInfo("x")
                info2.filename = name
                packed.writestr(info2, b"x")
    try:
        unpack(path, look_into(path), top / "deep" / "out")
    except DownloadError:
        assert not found(top / "deep")
    assert {p.name for p in top.iterdir()} == {path.name, "deep"}
    assert {p.name for p in (top / "deep").iterdir()} <= {"out"}


# --- collisions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["zip", "tar"])
@pytest.mark.parametrize(
    "names",
    [
        ("a/b.png", "a/B.PNG"),
        ("A/b", "a/c"),
        ("a", "a/b"),
        ("a/b", "a"),
        ("a/b", "a//b"),
        ("a/b", "./a/b"),
        ("caf\u00e9", "cafe\u0301"),
        ("stra\u00dfe", "STRASSE"),
        ("a/", "A"),
    ],
)
def test_names_that_are_one(tmp_path: Path, suffix: str, names: tuple[str, str]) -> None:
    if suffix == "tar" and names[0].endswith("/"):
        files: dict[str, bytes | tuple[bytes, str]] = {"a": (tarfile.DIRTYPE, ""), "A": b"2"}
        path = make_tar(tmp_path / "a.tar", files)
    else:
        path = make(tmp_path / f"a.{suffix}", {names[0]: b"" if names[0].endswith("/") else b"1", names[1]: b"2"})
    refused(path, "holds both .* refused")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_name_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", b"1")
        archive.writestr("a", b"2")
    refused(tmp_path / "a.zip", "holds both 'a' and 'a'")
    with tarfile.open(tmp_path / "a.tar", "w") as packed:
        for _ in range(2):
            packed.addfile(tarfile.TarInfo("a"), io.BytesIO(b""))
    refused(tmp_path / "a.tar", "holds both 'a' and 'a'")


# --- links and devices ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/etc", "../..", "../../x", "a/../../..", "\\windows", "..\\.."])
@pytest.mark.parametrize("kind", ["zip", "symlink", "hardlink"])
def test_links_to_elsewhere_and_writing_through_them(tmp_path: Path, kind: str, target: str) -> None:
    if kind == "zip":
        files = {"in/link": target.encode(), "in/link/evil": b"x"}
        path = make_zip(tmp_path / "a.zip", files, {"in/link": stat.S_IFLNK | 0o777})
    else:
        link = (tarfile.SYMTYPE if kind == "symlink" else tarfile.LNKTYPE, target)
        path = make_tar(tmp_path / "a.tar", {"in/link": link, "in/link/evil": b"x"})
    if kind == "hardlink" and target == "a/../../..":
        target = "out"
    refused(path, "a link that leads out of it: refused")


def test_links_inside_are_left_out_and_never_followed(tmp_path: Path) -> None:
    links = {"a/link": (tarfile.SYMTYPE, "../b"), "b/hard": (tarfile.LNKTYPE, "b/file")}
    path = make_tar(tmp_path / "a.tar", {"b/file": b"good", **links, "a/link/file": b"through"})
    content = look_into(path)
    assert content.links == 2
    unpack(path, content, tmp_path / "out")
    assert found(tmp_path / "out") == {"b/file": b"good", "a/link/file": b"through"}
    assert not any(p.is_symlink() for p in (tmp_path / "out").rglob("*"))
    zipped = make_zip(tmp_path / "a.zip", {"a": b"b", "b": b"1"}, {"a": stat.S_IFLNK | 0o777})
    assert look_into(zipped).links == 1


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices(tmp_path: Path, kind: bytes) -> None:
    refused(make_tar(tmp_path / "a.tar", {"good": b"1", "dev": (kind, "")}), "a device or a pipe: refused")


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_devices_in_zips(tmp_path: Path, kind: int) -> None:
    refused(make_zip(tmp_path / "a.zip", {"good": b"1", "dev": b""}, {"dev": kind | 0o666}), "a device or a pipe")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_permissions_are_not_taken_over(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a": b"1"}, {"a": stat.S_IFREG | 0o6777})
    unpack(path, look_into(path), tmp_path / "out")
    assert not stat.S_IMODE((tmp_path / "out" / "a").stat().st_mode) & 0o6111


# --- bombs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_growth_out_of_all_proportion(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALWAYS_FINE", 10_000)
    refused(make(tmp_path / f"a.{suffix}", {"zeros": bytes(3_000_000)}), "out of all proportion")
    # The same amount, but as little compressible as pictures are.
    path = make(tmp_path / f"b.{suffix}", {"noise": os.urandom(3_000_000)})
    assert look_into(path).size == 3_000_000


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_MEMBERS", 20)
    assert len(look_into(make(tmp_path / "a.zip", {f"{i}": b"" for i in range(20)})).members) == 20
    refused(make(tmp_path / "b.zip", {f"{i}": b"" for i in range(21)}), "more than 20 files")


def test_a_header_that_lies_about_a_size(tmp_path: Path) -> None:
    """The growth is judged by headers, so what is written is held to them."""
    path = make_zip(tmp_path / "a.zip", {"a": bytes(100_000)})
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02") + 24
    data[place : place + 4] = (10).to_bytes(4, "little")
    path.write_bytes(data)
    content = look_into(path)
    assert content.size == 10
    with pytest.raises(DownloadError, match="damaged"):
        unpack(path, content, tmp_path / "out")
    assert sum(map(len, found(tmp_path / "out").values())) <= 10


# --- damage ---------------------------------------------------------------------------------------------------------


def test_what_is_no_archive(tmp_path: Path) -> None:
    for name, content in {"empty": b"", "text": b"hello", "zeros": bytes(5), "gz": b"\x1f\x8b\x08\x00junk"}.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "neither a zip nor a tar|holds no files|damaged")
    (tmp_path / "page").write_bytes(b"\n <!doctype html><html>Google Drive - Quota exceeded")
    refused(tmp_path / "page", "web page")
    refused(tmp_path / "none", "cannot be read")
    refused(tmp_path, "cannot be read")


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_nothing_in_it(tmp_path: Path, suffix: str) -> None:
    refused(make(tmp_path / f"a.{suffix}", {}), "holds no files|neither")


def test_a_password(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a": b"1"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    refused(path, "encrypted with a password")


@settings(max_examples=150, deadline=None)
@given(data=st.data(), suffix=st.sampled_from(SUFFIXES))
def test_damaged_anywhere(data: st.DataObject, suffix: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Cut or changed at any place: one sentence, or files that are below the folder."""
    top = tmp_path_factory.mktemp("damage")
    path = make(top / f"a.{suffix}", GOOD)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        unpack(path, look_into(path), top / "out")
    except DownloadError as error:
        assert "\n" not in str(error) and str(error).endswith(".")
    assert {p.name for p in top.iterdir()} <= {path.name, "out"}


def test_nothing_is_written_over(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a": b"new"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("mine")
    with pytest.raises(DownloadError, match="could not be written"):
        unpack(path, look_into(path), tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "mine"


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(tmp_path / "a.zip", {"a": b"1"})

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(DownloadError, match="No space left"):
        unpack(path, look_into(path), tmp_path / "out")
