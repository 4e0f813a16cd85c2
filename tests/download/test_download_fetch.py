"""One file from a host: resumed at every byte, never wrong, never over an unsafe way."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
from data_host import Host, data_host
from hypothesis import given, settings
from hypothesis import strategies as st

from lightfold.download import fetch as web
from lightfold.download.fetch import DownloadError, Stopped, Wanted, fetch, is_allowed

CONTENT = random.Random(0).randbytes(5000)
SHA256 = ("sha256", hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("no_proxy", "*")
    with data_host() as running:
        yield running


@pytest.fixture
def pauses() -> list[float]:
    return []


def get(url: str | tuple[str, ...], target: Path, pauses: list[float] | None = None, **options: object) -> list[int]:
    """Fetch without waiting, and return what was reported."""
    urls = (url,) if isinstance(url, str) else url
    counts: list[int] = []
    waits = [] if pauses is None else pauses
    fetch(Wanted(urls, **options), target, counts.append, wait=waits.append)  # type: ignore[arg-type]
    return counts


def left_over(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_whole_file(host: Host, tmp_path: Path) -> None:
    counts = get(host.add("/a.zip", CONTENT), tmp_path / "new" / "a.zip", size=5000, checksum=SHA256)
    assert (tmp_path / "new" / "a.zip").read_bytes() == CONTENT
    assert sum(counts) == 5000 and left_over(tmp_path / "new") == {"a.zip"}
    assert host.asked[0][1]["accept-encoding"] == "identity" and "authorization" not in host.asked[0][1]


@pytest.mark.parametrize("content", [b"", b"x"])
def test_the_smallest_files(host: Host, tmp_path: Path, content: bytes) -> None:
    get(host.add("/a", content), tmp_path / "a", size=len(content))
    assert (tmp_path / "a").read_bytes() == content


@pytest.fixture(scope="module")
def lasting_host() -> Iterator[Host]:
    with pytest.MonkeyPatch.context() as patch, data_host() as running:
        patch.setenv("no_proxy", "*")
        yield running


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 5000), max_size=5), ranges=st.booleans(), tagged=st.booleans())
def test_connections_cut_at_any_byte(
    cuts: list[int], ranges: bool, tagged: bool, lasting_host: Host, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the host does, the file is right in the end, and what was reported adds up to its length."""
    target = tmp_path_factory.mktemp("cut") / "a"
    options: dict[str, object] = {} if tagged else {"etag": None}
    url = lasting_host.add("/a", CONTENT, cuts=list(cuts), ranges=ranges, **options)
    lasting_host.asked.clear()
    counts = get(url, target)
    assert target.read_bytes() == CONTENT and sum(counts) == 5000
    if ranges and tagged:
        # Nothing is sent twice by a host that can go on.
        expected: list[str | None] = [None]
        arrived = 0
        for cut in cuts:
            arrived += cut
            if arrived >= 5000:
                break
            expected.append(f"bytes={arrived}-" if arrived else None)
        assert lasting_host.ranges() == expected


def test_it_goes_on_where_an_earlier_command_ended(host: Host, tmp_path: Path) -> None:
    url = host.add("/a", CONTENT, cuts=[1234], statuses=[])
    host.resources["/a"].cuts += [0] * 20
    with pytest.raises(DownloadError, match="cannot be reached.*kept; run the same command again"):
        get(url, tmp_path / "a")
    assert (tmp_path / "a.part").stat().st_size == 1234 and not (tmp_path / "a").exists()
    host.resources["/a"].cuts.clear()
    host.asked.clear()
    assert sum(get(url, tmp_path / "a")) == 5000
    assert host.ranges() == ["bytes=1234-"] and host.asked[0][1]["if-range"] == host.resources["/a"].etag
    assert (tmp_path / "a").read_bytes() == CONTENT and left_over(tmp_path) == {"a"}


def test_another_file_between_two_tries(host: Host, tmp_path: Path) -> None:
    """The condition keeps the halves of two versions apart."""
    new = random.Random(1).randbytes(4000)
    url = host.add("/a", CONTENT, cuts=[2000])

    def replace() -> None:
        if len(host.asked) == 2:
            host.add("/a", new)

    host.resources["/a"].before = replace
    counts = get(url, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() in (new, CONTENT)
    host.asked.clear()
    # The same over two commands.
    host.add("/b", CONTENT, cuts=[2000, *[0] * 20])
    with pytest.raises(DownloadError):
        get(host.address + "/b", tmp_path / "b")
    host.add("/b", new)
    counts = get(host.address + "/b", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == new and sum(counts) == 4000


def test_without_tag_a_checksum_tells_whether_the_halves_belong_together(host: Host, tmp_path: Path) -> None:
    url = host.add("/a", CONTENT, etag=None, cuts=[2000])
    get(url, tmp_path / "a", checksum=SHA256)
    assert (tmp_path / "a").read_bytes() == CONTENT and host.ranges() == [None, "bytes=2000-"]
    # A first half of another version: found out at the end, and fetched in one go.
    (tmp_path / "b.part").write_bytes(b"?" * 2000)
    host.add("/b", CONTENT, etag=None)
    state = {"url": host.address + "/b", "validator": "", "total": 5000, "published": None}
    web._write_state(tmp_path / "b.part", state)
    host.asked.clear()
    counts = get(host.address + "/b", tmp_path / "b", checksum=SHA256)
    assert (tmp_path / "b").read_bytes() == CONTENT and sum(counts) == 5000
    assert host.ranges() == ["bytes=2000-", None]


@pytest.mark.parametrize("note", ["", "{", "[]", "null", '{"url": 1, "validator": "", "total": 1, "published": null}'])
def test_damaged_notes_begin_anew(host: Host, tmp_path: Path, note: str) -> None:
    (tmp_path / "a.part").write_bytes(b"?" * 100)
    (tmp_path / "a.part.json").write_text(note)
    assert sum(get(host.add("/a", CONTENT), tmp_path / "a")) == 5000
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_part_longer_than_the_file(host: Host, tmp_path: Path) -> None:
    url = host.add("/a", CONTENT)
    (tmp_path / "a.part").write_bytes(b"?" * 9000)
    tag = host.resources["/a"].etag
    web._write_state(tmp_path / "a.part", {"url": url, "validator": tag, "total": None, "published": None})
    assert sum(get(url, tmp_path / "a")) == 5000
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_whole_part_is_only_put_in_its_place(host: Host, tmp_path: Path) -> None:
    url = host.add("/a", CONTENT)
    (tmp_path / "a.part").write_bytes(CONTENT)
    web._write_state(tmp_path / "a.part", {"url": url, "validator": '"x"', "total": 5000, "published": None})
    get(url, tmp_path / "a", checksum=SHA256)
    assert host.asked == [] and (tmp_path / "a").read_bytes() == CONTENT


def test_a_wrong_checksum(host: Host, tmp_path: Path) -> None:
    url = host.add("/a", b"other" * 1000)
    with pytest.raises(DownloadError, match=r"is not the file that is published: its sha256 is .* It was not kept"):
        get(url, tmp_path / "a", size=5000, checksum=SHA256)
    assert left_over(tmp_path) == set()


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"x", b""])
def test_a_wrong_size(host: Host, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DownloadError, match=r"5,000 are published"):
        get(host.add("/a", content), tmp_path / "a", size=5000)
    assert left_over(tmp_path) == set()


def test_more_bytes_than_there_should_be(host: Host, tmp_path: Path) -> None:
    """A host that does not say how much it sends cannot fill the disk."""
    with pytest.raises(DownloadError, match="beyond the 100 bytes"):
        get(host.add("/a", CONTENT, length=0), tmp_path / "a", size=100)
    assert left_over(tmp_path) == set()


def test_no_length_at_all(host: Host, tmp_path: Path) -> None:
    get(host.add("/a", CONTENT, length=0), tmp_path / "a", checksum=SHA256)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_busy_hosts_are_asked_again_more_and_more_patiently(host: Host, tmp_path: Path, pauses: list[float]) -> None:
    get(host.add("/a", CONTENT, statuses=[503, 500, 429]), tmp_path / "a", pauses)
    assert (tmp_path / "a").read_bytes() == CONTENT and pauses == [1.0, 2.0, 4.0]


def test_a_host_may_say_how_long_to_wait(host: Host, tmp_path: Path, pauses: list[float]) -> None:
    get(host.add("/a", CONTENT, statuses=[429, 503], headers={"Retry-After": "7"}), tmp_path / "a", pauses)
    assert pauses == [7.0, 7.0]
    host.add("/b", CONTENT, statuses=[429], headers={"Retry-After": "99999"})
    get(host.address + "/b", tmp_path / "b", pauses)
    assert pauses[-1] == web.LONGEST_PAUSE


def test_it_gives_up(host: Host, tmp_path: Path, pauses: list[float]) -> None:
    with pytest.raises(DownloadError, match="cannot be reached: it answers 500"):
        get(host.add("/a", CONTENT, statuses=[500] * 50), tmp_path / "a", pauses)
    assert len(pauses) == web.TRIES - 1


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "does not exist any more"), (410, "does not exist"), (403, "login"), (401, "login"), (400, "answers 400")],
)
def test_what_is_not_given_is_said_once(
    host: Host, tmp_path: Path, pauses: list[float], status: int, words: str
) -> None:
    with pytest.raises(DownloadError, match=words):
        get(host.add("/a", CONTENT, statuses=[status] * 9), tmp_path / "a", pauses)
    assert pauses == [] and len(host.asked) == 1


def test_nobody_is_there(tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with data_host() as gone:
        pass
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1 cannot be reached"):
        get(gone.address + "/a", tmp_path / "a", pauses)


def test_the_next_place_is_asked(host: Host, tmp_path: Path) -> None:
    urls = (host.address + "/none", host.add("/old", b"old"), host.add("/a", CONTENT))
    get(urls, tmp_path / "a", size=5000, checksum=SHA256)
    assert (tmp_path / "a").read_bytes() == CONTENT
    with pytest.raises(DownloadError, match="/other does not exist"):
        get((urls[0], host.address + "/other"), tmp_path / "b")


def test_another_place_goes_on_only_with_a_checksum(host: Host, tmp_path: Path) -> None:
    first, second = host.add("/a", CONTENT, cuts=[1500]), host.add("/b", CONTENT)
    host.resources["/a"].before = lambda: host.resources["/a"].statuses.extend([404] if len(host.asked) > 1 else [])
    get((first, second), tmp_path / "a", checksum=SHA256)
    assert (tmp_path / "a").read_bytes() == CONTENT and host.ranges()[-1] == "bytes=1500-"


# --- redirects ------------------------------------------------------------------------------------------------------


def test_redirects_are_followed_with_the_range(host: Host, tmp_path: Path) -> None:
    host.add("/real", CONTENT, cuts=[700])
    url = host.add("/a", location="/b")
    host.add("/b", location=host.address + "/real")
    get(url, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert host.ranges() == [None, None, None, *["bytes=700-"] * 3]


def test_redirects_in_circles(host: Host, tmp_path: Path, pauses: list[float]) -> None:
    url = host.add("/a", location="/b")
    host.add("/b", location="/a")
    with pytest.raises(DownloadError, match="redirects more than 10 times"):
        get(url, tmp_path / "a", pauses)
    assert pauses == []


@pytest.mark.parametrize(
    "target",
    ["http://example.org/a", "file:///etc/passwd", "ftp://example.org/a", "data:,x", "https://me:secret@example.org/a"],
)
def test_unsafe_redirects_are_refused(host: Host, tmp_path: Path, target: str) -> None:
    with pytest.raises(DownloadError, match="is not followed: only https"):
        get(host.add("/a", location=target), tmp_path / "a")
    assert left_over(tmp_path) == set()


@pytest.mark.parametrize(
    ("url", "came_from", "allowed"),
    [
        ("https://example.org/a", None, True),
        ("https://example.org/a", "http://localhost/b", True),
        ("http://example.org/a", None, False),
        ("http://localhost:80/a", None, True),
        ("http://[::1]:80/a", None, True),
        ("http://127.0.0.1/a", "https://example.org", False),
        ("http://localhost.example.org/a", None, False),
        ("http://localhost@example.org/a", None, False),
        ("https://user@example.org/a", None, False),
        ("https://user:word@example.org/a", None, False),
        ("file:///etc/passwd", None, False),
        ("ftp://localhost/a", None, False),
        ("https:///a", None, False),
        ("https://example.org:x/a", None, False),
        ("https://[example/a", None, False),
        ("", None, False),
    ],
)
def test_what_may_be_asked(url: str, came_from: str | None, allowed: bool) -> None:
    assert is_allowed(url, came_from) is allowed


@settings(deadline=None)
@given(st.text())
def test_no_text_is_an_error_for_the_judge(text: str) -> None:
    assert is_allowed(text) in (True, False)
    assert not is_allowed("http://" + text.replace("@", "")) or text.startswith(("localhost", "127.0.0.1", "[::1]"))


# --- what hosts state -----------------------------------------------------------------------------------------------


def test_a_checksum_that_the_host_states_on_the_way(host: Host, tmp_path: Path) -> None:
    """As Hugging Face does: the redirect carries the digest of the file that it leads to."""
    host.add("/real", CONTENT)
    good = host.add("/good", location="/real", headers={"X-Linked-ETag": f'"{SHA256[1]}"'})
    get(good, tmp_path / "good")
    bad = host.add("/bad", location="/real", headers={"X-Linked-ETag": f'"{"0" * 64}"'})
    with pytest.raises(DownloadError, match=r"its sha256 is .* is published"):
        get(bad, tmp_path / "bad")
    assert left_over(tmp_path) == {"good"}


def test_a_checksum_in_googles_manner(host: Host, tmp_path: Path) -> None:
    md5 = base64.b64encode(hashlib.md5(CONTENT).digest()).decode()
    get(host.add("/good", CONTENT, headers={"x-goog-hash": f"crc32c=AAAAAA==,md5={md5}"}), tmp_path / "good")
    with pytest.raises(DownloadError, match="its md5 is"):
        get(host.add("/bad", CONTENT[::-1], headers={"x-goog-hash": f"md5={md5}"}), tmp_path / "bad")
    get(host.add("/odd", CONTENT, headers={"x-goog-hash": "md5=%%%"}), tmp_path / "odd")


def test_compressed_answers_are_not_taken(host: Host, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="compressed"):
        get(host.add("/a", CONTENT, headers={"Content-Encoding": "gzip"}), tmp_path / "a")


def test_size_and_small_answers(host: Host) -> None:
    url = host.add("/a", CONTENT, statuses=[503])
    assert web.size(url) is None and web.size(url) == 5000 and web.size(host.address + "/none") is None
    assert web.read(url, 5000) == CONTENT
    with pytest.raises(DownloadError, match="more than 4,999 bytes"):
        web.read(url, 4999)
    host.resources["/a"].cuts = [10, 20]
    waited: list[float] = []
    assert web.read(url, 5000, waited.append) == CONTENT and len(waited) == 2


# --- this computer's troubles ---------------------------------------------------------------------------------------


def test_a_full_disk_keeps_what_has_arrived(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = host.add("/a", CONTENT)
    real = Path.open

    def limited(self: Path, mode: str = "r", *rest: object, **named: object) -> object:
        file = real(self, mode, *rest, **named)  # type: ignore[call-overload]
        if self.name != "a.part" or "b" not in mode or mode == "rb":
            return file

        class Full:
            def __getattr__(self, name: str) -> object:
                return getattr(file, name)

            def __enter__(self) -> Full:
                return self

            def __exit__(self, *error: object) -> None:
                file.close()

            def write(self, chunk: bytes) -> int:
                file.write(chunk[:1000])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return Full()

    with (
        monkeypatch.context() as patch,
        pytest.raises(DownloadError, match="the disk is full. What has arrived is kept"),
    ):
        patch.setattr(Path, "open", limited)
        get(url, tmp_path / "a")
    assert (tmp_path / "a.part").read_bytes() == CONTENT[:1000]
    get(url, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT and host.ranges()[-1] == "bytes=1000-"


def test_interrupted_by_the_user(host: Host, tmp_path: Path) -> None:
    url = host.add("/a", CONTENT * 200)

    def interrupt(count: int) -> None:
        if count > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(Wanted((url,)), tmp_path / "a", interrupt)
    arrived = (tmp_path / "a.part").stat().st_size
    assert 0 < arrived < len(CONTENT) * 200
    host.asked.clear()
    get(url, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT * 200 and host.ranges() == [f"bytes={arrived}-"]


def test_told_to_stop(host: Host, tmp_path: Path) -> None:
    stop = Event()
    stop.set()
    with pytest.raises(Stopped):
        fetch(Wanted((host.add("/a", CONTENT),)), tmp_path / "a", stop=stop)


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="whoever may write everywhere cannot be refused")
def test_no_permission(host: Host, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(DownloadError, match="written"):
        get(host.add("/a", CONTENT), tmp_path / "locked" / "a")


def test_something_is_in_the_way(host: Host, tmp_path: Path) -> None:
    url = host.add("/a", CONTENT)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DownloadError, match="cannot be written to"):
        get(url, tmp_path / "file" / "a")
    (tmp_path / "a.part").mkdir()
    with pytest.raises(DownloadError, match="in the way"):
        get(url, tmp_path / "a")
    if os.name != "nt":
        (tmp_path / "b.part").symlink_to(tmp_path / "file")
        with pytest.raises(DownloadError, match="in the way"):
            get(url, tmp_path / "b")
    assert (tmp_path / "file").read_text() == "mine"
