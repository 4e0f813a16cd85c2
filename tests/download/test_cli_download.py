"""`lightfold download`: plans, licences, captures in their place, and the list of sources."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from data_host import Host, Resource, data_host
from PIL import Image

from lightfold import cli
from lightfold.cli import download as verb
from lightfold.download import DownloadError, Source, carry_out, plan, planning, sources
from lightfold.download.catalogue import stated_size
from lightfold.download.fetch import is_allowed
from lightfold.download.unpack import member_path
from lightfold.errors import ConfigError


def blender_scene() -> dict[str, bytes]:
    """The smallest capture that the Blender reader takes."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 4), 200, dtype=np.uint8)).save(buffer, "PNG")
    pose = np.eye(4)
    pose[2, 3] = 4.0
    frames = [{"file_path": f"./train/r_{i}", "transform_matrix": pose.tolist()} for i in range(2)]
    return {
        "transforms_train.json": json.dumps({"camera_angle_x": 0.7, "frames": frames}).encode(),
        "train/r_0.png": buffer.getvalue(),
        "train/r_1.png": buffer.getvalue(),
    }


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


SCENE = blender_scene()
LEGO = zipped({f"lego/{name}": content for name, content in SCENE.items()})
SHIP = zipped({f"ship/{name}": content for name, content in SCENE.items()})
WHOLE = zipped({f"all/{scene}/{name}": content for scene in ("lego", "ship") for name, content in SCENE.items()})


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("no_proxy", "*")
    with data_host() as running:
        yield running


def a_source(**fields: object) -> Source:
    words = dict.fromkeys(("title", "about", "licence", "home", "source"), "words")
    return Source(**({"name": "objects", "captures": {"lego": {}, "ship": {}}} | words | fields))  # type: ignore[arg-type]


@pytest.fixture
def objects(host: Host, monkeypatch: pytest.MonkeyPatch) -> Source:
    """Two captures in an archive each, and in one together."""
    host.add("/lego.zip", LEGO)
    host.add("/ship.zip", SHIP)
    digest = hashlib.sha256(WHOLE).hexdigest()
    whole = {"urls": [host.add("/all.zip", WHOLE)], "inside": "all/{capture}", "bytes": len(WHOLE), "sha256": digest}
    archives = {"urls": [host.address + "/{capture}.zip"], "inside": "{capture}"}
    source = a_source(archives=archives, whole=whole)
    monkeypatch.setattr(verb, "sources", lambda: {"objects": source})
    return source


@pytest.fixture
def room(host: Host) -> Source:
    """A store that lists itself, a few files a page: two cameras, six shots each, in two sizes."""
    files = {
        f"Tower/room/{folder}/{camera}/{camera}_DSC{shot:04d}.{suffix}": f"{folder} {camera} {shot}".encode()
        for folder, suffix in (("small", "jpg"), ("big", "jpg"), ("hdr", "exr"))
        for camera in (2, 10)
        for shot in (1, 3, 20, 21, 22, 100)
    }
    files |= {"Tower/room/cameras.json": b"{}", "Tower/room/splits.json": b"{}", "Tower/room/mesh.obj": b"v"}
    files |= {"Tower/room/small/index.html": b"", "Tower/room/small/10.mp4": b"film"}
    for key, content in files.items():
        host.add("/" + key, content)

    class Listing(Resource):
        """Answers by what the query asks."""

    def answer() -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(host.asked[-1][0]).query).items()}
        keys = sorted(key for key in files if key.startswith(query["prefix"]))
        if "delimiter" in query:
            keys = [key for key in keys if "/" not in key[len(query["prefix"]) :]]
        start = int(query.get("continuation-token", 0))
        page = keys[start : start + 5]
        more = f"<NextContinuationToken>{start + 5}</NextContinuationToken>" if start + 5 < len(keys) else ""
        items = "".join(
            f"<Contents><Key>{key}</Key><Size>{len(files[key])}</Size>"
            f"<ETag>&quot;{hashlib.md5(files[key]).hexdigest()}&quot;</ETag></Contents>"
            for key in page
        )
        listing.content = f'<ListBucketResult xmlns="http://s3">{items}{more}</ListBucketResult>'.encode()

    listing = host.resources["/"] = Listing(before=answer)
    sizes = {name: {"folder": name, "suffix": ".exr" if name == "hdr" else ".jpg"} for name in ("small", "big", "hdr")}
    bucket = {
        "url": host.address + "/",
        "prefix": "Tower/{capture}/",
        "sizes": sizes,
        "default": "small",
        "beside": ["splits.json", "cameras.json"],
    }
    return a_source(name="tower", captures={"room": {}}, bucket=bucket, ask=True)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fetched(source: Source, captures: list[str], out: Path, **options: object) -> None:
    carry_out(plan(source, captures, out, **options), wait=lambda seconds: None)  # type: ignore[arg-type]


# --- archives -------------------------------------------------------------------------------------------------------


def test_captures_come_into_their_place(objects: Source, host: Host, tmp_path: Path) -> None:
    planned = plan(objects, ["lego"], tmp_path)
    assert planned.size == len(LEGO) and planned.disk == 2 * len(LEGO)
    fetched(objects, ["lego"], tmp_path)
    assert tree(tmp_path) == {f"objects/lego/{name}": content for name, content in SCENE.items()}
    assert {path for path, _ in host.asked} == {"/lego.zip"} and not (tmp_path / ".lightfold").exists()


def test_all_captures_come_as_one_archive(objects: Source, host: Host, tmp_path: Path) -> None:
    fetched(objects, [], tmp_path)
    assert [path for path, _ in host.asked] == ["/all.zip"]
    assert set(tree(tmp_path)) == {f"objects/{scene}/{name}" for scene in ("lego", "ship") for name in SCENE}


def test_what_is_there_is_left_as_it_is(objects: Source, host: Host, tmp_path: Path) -> None:
    (tmp_path / "objects" / "lego").mkdir(parents=True)
    (tmp_path / "objects" / "lego" / "mine").write_text("mine")
    (tmp_path / "objects" / "ship").mkdir()
    planned = plan(objects, [], tmp_path)
    assert planned.there == ("lego",)
    carry_out(planned)
    assert tree(tmp_path / "objects" / "lego") == {"mine": b"mine"} and len(tree(tmp_path / "objects" / "ship")) == 3
    assert {path for path, _ in host.asked} == {"/ship.zip"}


def test_interrupted_and_run_again(objects: Source, host: Host, tmp_path: Path) -> None:
    host.resources["/lego.zip"].cuts = [500, *[0] * 20]
    with pytest.raises(DownloadError, match="run the same command again"):
        fetched(objects, ["lego"], tmp_path)
    assert not (tmp_path / "objects").exists()
    host.resources["/lego.zip"].cuts.clear()
    assert plan(objects, ["lego"], tmp_path).size == len(LEGO) - 500
    fetched(objects, ["lego"], tmp_path)
    assert len(tree(tmp_path / "objects" / "lego")) == 3 and host.ranges()[-1] == "bytes=500-"


def test_interrupted_while_unpacking(objects: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        (arguments[2]).mkdir()  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(planning, "unpack", interrupt)
        fetched(objects, ["lego"], tmp_path)
    # The archive waits for the next try; nothing half unpacked is anywhere.
    assert set(tree(tmp_path)) == {".lightfold/objects/lego.zip"}
    fetched(objects, ["lego"], tmp_path)
    assert len(tree(tmp_path / "objects" / "lego")) == 3


def test_archives_can_be_kept(objects: Source, host: Host, tmp_path: Path) -> None:
    source = a_source(archives={"urls": [host.address + "/all.zip"], "inside": "{capture}"})
    carry_out(plan(source, ["lego"], tmp_path), keep=True)
    assert plan(source, ["ship"], tmp_path).size == 0
    host.asked.clear()
    carry_out(plan(source, ["ship"], tmp_path, ask=False))
    assert host.asked == [] and len(tree(tmp_path / "objects")) == 6


def test_a_hostile_archive_leaves_nothing(objects: Source, host: Host, tmp_path: Path) -> None:
    host.add("/lego.zip", zipped({"lego/good": b"1", "lego/../../../evil": b"2"}))
    with pytest.raises(DownloadError, match="refused, nothing unpacked"):
        fetched(objects, ["lego"], tmp_path / "deep" / "out")
    assert not any(path.name == "evil" for path in tmp_path.rglob("*"))
    assert not (tmp_path / "deep" / "out" / "objects").exists()


def test_a_damaged_archive_is_asked_for_again(objects: Source, host: Host, tmp_path: Path) -> None:
    host.add("/lego.zip", LEGO[: len(LEGO) // 2])
    with pytest.raises(DownloadError, match="neither a zip nor a tar"):
        fetched(objects, ["lego"], tmp_path)
    assert tree(tmp_path) == {}
    host.add("/lego.zip", LEGO)
    fetched(objects, ["lego"], tmp_path)
    assert len(tree(tmp_path)) == 3


def test_an_archive_that_has_changed(objects: Source, host: Host, tmp_path: Path) -> None:
    host.add("/lego.zip", zipped({"something/else": b"1"}))
    with pytest.raises(DownloadError, match="holds no folder lego"):
        fetched(objects, ["lego"], tmp_path)


def test_too_little_room(objects: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * len(LEGO) - 1))
    with pytest.raises(DownloadError, match="GB are needed below"):
        fetched(objects, ["lego"], tmp_path)
    assert tree(tmp_path) == {}


def test_requests_that_cannot_be(objects: Source, room: Source, tmp_path: Path) -> None:
    for captures, options, words in [
        (["legoo"], {}, "Did you mean lego"),
        (["lego"], {"resolution": "small"}, "do not apply"),
        (["lego"], {"images": 3}, "do not apply"),
    ]:
        with pytest.raises(ConfigError, match=words):
            plan(objects, captures, tmp_path, **options)  # type: ignore[arg-type]
    for options, words in [
        ({"resolution": "huge"}, "Known are small, big, hdr"),
        ({"images": 1}, "at least 2"),
        ({"fraction": 0.0}, "above 0"),
        ({"fraction": float("nan")}, "above 0"),
        ({"images": 2, "fraction": 0.5}, "not both"),
    ]:
        with pytest.raises(ConfigError, match=words):
            plan(room, ["room"], tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Choose captures"):
        plan(room, [], tmp_path)


# --- single files ---------------------------------------------------------------------------------------------------


def test_files_with_their_digests(host: Host, tmp_path: Path) -> None:
    files = {"images/a b.jpg": b"photo", "transforms.json": b"{}"}
    host.add("/images/a%20b.jpg", files["images/a b.jpg"])
    host.add("/transforms.json", files["transforms.json"])
    listed = {name: [len(content), hashlib.sha256(content).hexdigest()] for name, content in files.items()}
    source = a_source(name="toy", captures={"toy": {}}, files={"urls": [host.address + "/{file}"], "list": listed})
    assert source.size() == 7
    fetched(source, [], tmp_path)
    assert tree(tmp_path) == {f"toy/{name}": content for name, content in files.items()}
    host.add("/transforms.json", b"[]")
    with pytest.raises(DownloadError, match="not the file that is published"):
        fetched(source, [], tmp_path / "again")
    assert not (tmp_path / "again" / "toy").exists()


def test_a_store_that_lists_itself(room: Source, tmp_path: Path) -> None:
    fetched(room, ["room"], tmp_path)
    names = set(tree(tmp_path))
    assert len(names) == 14 and "tower/room/small/10/10_DSC0100.jpg" in names and "tower/room/cameras.json" in names
    # Another size later comes beside it.
    mine = tmp_path / "tower" / "room" / "cameras.json"
    mine.write_text("edited")
    fetched(room, ["room"], tmp_path, resolution="hdr")
    assert len(tree(tmp_path)) == 26 and mine.read_text() == "edited"
    assert plan(room, ["room"], tmp_path, resolution="hdr").there == ("room",)


@pytest.mark.parametrize(("options", "count"), [({"images": 4}, 4), ({"fraction": 0.5}, 6), ({"images": 99}, 12)])
def test_some_of_the_pictures_are_spread_over_all(
    room: Source, tmp_path: Path, options: dict[str, float], count: int
) -> None:
    planned = plan(room, ["room"], tmp_path, **options)  # type: ignore[arg-type]
    pictures = [file.path for file in planned.files if file.path.endswith(".jpg")]
    assert len(pictures) == len(set(pictures)) == count
    assert pictures[0] == "small/2/2_DSC0001.jpg" and pictures[-1] == "small/10/10_DSC0100.jpg"
    assert sum(path.startswith("small/2/") for path in pictures) == count // 2
    assert [file.path for file in planned.files[-2:]] == ["cameras.json", "splits.json"]


def test_single_files_go_on_one_by_one(room: Source, host: Host, tmp_path: Path) -> None:
    bad = "/Tower/room/small/2/2_DSC0020.jpg"
    good = host.resources[bad].content
    host.add(bad, b"X" * len(good))
    with pytest.raises(DownloadError, match="DSC0020.jpg is not the file that is published"):
        fetched(room, ["room"], tmp_path)
    assert not (tmp_path / "tower").exists()
    host.add(bad, good)
    host.asked.clear()
    arrived = sum(1 for name in tree(tmp_path / ".lightfold") if name.endswith(("jpg", "json")) and ".part" not in name)
    fetched(room, ["room"], tmp_path)
    assert len(tree(tmp_path / "tower" / "room")) == 14 and not (tmp_path / ".lightfold").exists()
    assert sum(path.startswith("/Tower") for path, _ in host.asked) == 14 - arrived


def test_an_earlier_choice_does_not_come_along(room: Source, host: Host, tmp_path: Path) -> None:
    host.resources["/Tower/room/small/2/2_DSC0020.jpg"].statuses = [404]
    with pytest.raises(DownloadError):
        fetched(room, ["room"], tmp_path)
    fetched(room, ["room"], tmp_path, images=2)
    assert len(tree(tmp_path / "tower" / "room")) == 4


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"<html>",
        b"<a/>",
        b"<a><Contents><Key>Tower/room/small/../../../evil.jpg</Key><Size>1</Size></Contents></a>",
        b"<a><Contents><Key>Tower/room/small/a.jpg</Key><Size>many</Size></Contents></a>",
        b'<!DOCTYPE a [<!ENTITY b "b">]><a>&b;</a>',
    ],
)
def test_hostile_and_empty_lists(room: Source, host: Host, tmp_path: Path, page: bytes) -> None:
    host.add("/", page)
    with pytest.raises(DownloadError, match="lists no pictures|cannot be read"):
        plan(room, ["room"], tmp_path)
    assert tree(tmp_path) == {}


# --- the verb -------------------------------------------------------------------------------------------------------


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(["download", *words])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err + shown.out
    return code, shown.out, " ".join(shown.err.split())


def test_from_the_name_to_the_next_command(objects: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["objects", "lego", "--out", str(tmp_path / "my data"), "--accept-licence", "objects"]
    code, out, err = run(words, capsys)
    place = tmp_path / "my data" / "objects" / "lego"
    assert code == 0 and f"{place}: blender, 2 pictures, 2 of them with poses." in out
    assert f"lightfold run {place}" in out and "licence" in out and "to fetch" in out and "disk" in out
    assert "fetching lego.zip" in err and "unpacking lego" in err
    code, out, _ = run(words, capsys)
    assert code == 0 and "was there already" in out and "lightfold run" in out


def test_the_licence_is_never_accepted_by_itself(
    objects: Source, host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["objects", "lego", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n"))
    code, _, err = run(words, capsys)
    assert code == 2 and "has to be accepted" in err and "--accept-licence objects" in err
    code, _, err = run([*words, "--accept-licence", "fox"], capsys)
    assert code == 2 and "--accept-licence names 'fox'" in err
    assert host.asked == []

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for answer in ("", "y\n", "no\n", "\n"):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        code, out, err = run(words, capsys)
        assert code == 2 and "was not accepted" in err and tree(tmp_path) == {}
    monkeypatch.setattr(sys, "stdin", Terminal(" Yes\n"))
    code, out, _ = run(words, capsys)
    assert code == 0 and "Type yes to accept" in out and len(tree(tmp_path)) == 3


def test_an_archive_of_the_users(
    objects: Source, host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand = a_source(name="statues", captures={"statues": {}}, archives={"urls": []}, by_hand="Open a browser.")
    monkeypatch.setattr(verb, "sources", lambda: {"objects": objects, "statues": by_hand})
    accept = ["--accept-licence", "statues", "--out", str(tmp_path / "out")]
    code, _, err = run(["statues", *accept], capsys)
    assert code == 2 and "Open a browser." in err and "lightfold download statues --archive FILE" in err
    own = tmp_path / "statues.zip"
    own.write_bytes(WHOLE)
    code, out, _ = run(["statues", "--archive", str(own), *accept], capsys)
    assert code == 0 and own.read_bytes() == WHOLE
    assert (
        f"{tmp_path / 'out' / 'statues' / 'lego'}: blender" in out and f"{tmp_path / 'out' / 'statues' / 'ship'}" in out
    )
    # For one that could be downloaded as well, and with a remark when it is another one.
    accept = ["--accept-licence", "objects", "--out", str(tmp_path / "out")]
    code, _, err = run(["objects", "--archive", str(own), *accept], capsys)
    assert code == 0 and "not the archive that is published" not in err and host.asked == []
    shutil.rmtree(tmp_path / "out" / "objects")
    own.write_bytes(zipped({f"all/{s}/{n}": c for s in ("lego", "ship") for n, c in SCENE.items()} | {"x": b""}))
    code, _, err = run(["objects", "--archive", str(own), *accept], capsys)
    assert code == 0 and "not the archive that is published" in err
    code, _, err = run(["objects", "--archive", str(tmp_path / "none"), *accept], capsys)
    assert code == 2 and "There is no file" in err


def test_ctrl_c_says_how_to_go_on(
    objects: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verb, "carry_out", interrupt)
    code, _, err = run(["objects", "lego", "--out", str(tmp_path), "--accept-licence", "objects"], capsys)
    assert code == cli.INTERRUPTED and "the same command goes on" in err


def test_what_cannot_be_read_is_said(
    objects: Source, host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host.add("/lego.zip", zipped({"lego/notes.txt": b"1"}))
    code, out, _ = run(["objects", "lego", "--out", str(tmp_path), "--accept-licence", "objects"], capsys)
    assert code == 0 and "cannot read it as a capture" in out


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="whoever may write everywhere cannot be refused")
def test_no_permission(objects: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    words = ["objects", "lego", "--out", str(tmp_path / "locked"), "--accept-licence", "objects"]
    code, _, err = run(words, capsys)
    assert code == 2 and "Permission denied" in err


def test_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(["nerf-synthetic"], capsys)
    assert code == 2 and "Did you mean nerf_synthetic" in err


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run([], capsys)
    assert code == 0
    for source in sources().values():
        assert source.name in out and source.licence in out and source.home in out and source.about in out


# --- the file of sources --------------------------------------------------------------------------------------------


def test_every_kind_of_data_set_is_there() -> None:
    assert list(sources())[:4] == ["fox", "nerf_synthetic", "nerf_llff_data", "mipnerf360"]
    for part in ("dtu", "blendedmvs", "eyefultower", "nerfstudio", "tanksandtemples"):
        assert any(name.startswith(part) for name in sources())


@pytest.mark.parametrize("source", sources().values(), ids=sources())
def test_entries_are_complete(source: Source) -> None:
    assert re.fullmatch(r"[a-z0-9_]+", source.name) and member_path(source.name, windows=True)
    for words in (source.title, source.about, source.licence, source.source):
        assert len(words.split()) >= 1 and words == words.strip() and "\n" not in words
    assert len(source.source.split()) > 2 and is_allowed(source.home)
    assert sum(kind is not None for kind in (source.archives, source.files, source.bucket)) == 1
    assert source.captures and all(member_path(name, windows=True) == (name,) for name in source.captures)
    assert source.size() is None or source.size() > 10**6  # type: ignore[operator]
    for address in re.findall(r"http\S+", source.licence + " " + (source.by_hand or "")):
        assert is_allowed(address.rstrip(".,;"))


@pytest.mark.parametrize("source", sources().values(), ids=sources())
def test_addresses_and_digests_are_sound(source: Source) -> None:
    entries = [source.archive(name) for name in source.captures] if source.archives else []
    if source.whole:
        entries.append(dict(source.whole) | {"inside": source.whole["inside"].replace("{capture}", "x")})
    for entry in entries:
        assert bool(entry["urls"]) != bool(source.by_hand)
        assert all(is_allowed(url) and "{" not in url and " " not in url for url in entry["urls"])
        assert "{" not in entry["inside"]
        assert entry.get("sha256") is None or re.fullmatch(r"[0-9a-f]{64}", entry["sha256"])
        assert entry.get("md5") is None or re.fullmatch(r"[0-9a-f]{32}", entry["md5"])
        assert stated_size(entry) is None or stated_size(entry) > 10**6  # type: ignore[operator]
        known = {"urls", "inside", "bytes", "about_bytes", "sha256", "md5"}
        assert set(entry) <= known
    if source.files:
        for path, (size, digest) in source.files["list"].items():
            assert "/".join(member_path(path, windows=True) or ()) == path
            assert size > 0 and re.fullmatch(r"[0-9a-f]{64}", digest)
        assert all(is_allowed(url) and "{file}" in url for url in source.files["urls"])
    if source.bucket:
        assert is_allowed(source.bucket["url"]) and source.bucket["url"].endswith("/")
        assert source.bucket["default"] in source.bucket["sizes"] and "{capture}" in source.bucket["prefix"]


def test_the_shared_fox_is_the_one_that_is_listed(shared_data: Path) -> None:
    if not (shared_data / "fox").is_dir():
        pytest.skip("there is no fox")
    listed = sources()["fox"].files
    assert listed is not None
    path = "transforms.json"
    content = (shared_data / "fox" / path).read_bytes()
    assert listed["list"][path] == [len(content), hashlib.sha256(content).hexdigest()]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nerf_synthetic", "leggo"], "no capture 'leggo'. Did you mean lego"),
        (["lego"], "lightfold download nerf_synthetic lego"),
    ],
)
def test_a_wrong_name_is_said_before_any_licence(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        verb.main(words)
