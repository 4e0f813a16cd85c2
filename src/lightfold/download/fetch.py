"""One file from the web: resumed where it was cut, checked against what is published, and never over an unsafe way.

A download grows as NAME.part, beside NAME.part.json with what the server said about it, and becomes NAME when it is
whole and right. Going on asks for the rest (Range) on condition that the file is still the same (If-Range, RFC 9110
section 13.1.5); a server that has another one by now, or knows no ranges, sends all of it, and all of it is taken.

Only https is spoken, certificates are checked, and nothing secret is ever sent; plain http reaches this computer only.
Redirects are followed one by one, because each has to obey the same rules.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import http.client
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any, NoReturn
from urllib.parse import urljoin, urlsplit

from ..errors import LightfoldError, RunError
from ..files import whole_file

CHUNK = 1 << 18
TRIES = 6
"""Tries that bring nothing, one after the other; each byte that arrives starts the count anew."""
TIMEOUT = 30.0
LONGEST_PAUSE = 60.0
MOST_REDIRECTS = 10
THIS_COMPUTER = ("localhost", "127.0.0.1", "::1")
TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}
REDIRECTS = {301, 302, 303, 307, 308}

Report = Callable[[int], None]
"""Called with the number of bytes that have arrived; negative when they have to be fetched again."""


class DownloadError(LightfoldError):
    """A data set cannot be downloaded or unpacked."""


@dataclass(frozen=True)
class Wanted:
    """A file to fetch.

    urls:     places that hold the same file; the next one is asked when one does not have it.
    size:     bytes, or None when unknown.
    checksum: (name of the algorithm in hashlib, hexadecimal digest), or None when none is published. What a server
              states itself is used then.
    """

    urls: tuple[str, ...]
    size: int | None = None
    checksum: tuple[str, str] | None = None


def fetch(
    wanted: Wanted,
    target: Path,
    report: Report = lambda count: None,
    stop: Event | None = None,
    wait: Callable[[float], object] = time.sleep,
) -> None:
    """Download a file to `target`, going on where an earlier try has ended.

    stop: when set, the download ends with an error; what has arrived is kept. wait: sleeps between tries.
    Raises DownloadError when no place has the file, none can be reached, or what it sends is not what is published.
    """
    for place, url in enumerate(wanted.urls):
        try:
            return _fetch_from(url, wanted, target, report, stop, wait)
        except _Absent:
            if place == len(wanted.urls) - 1:
                raise


def read(url: str, most: int, wait: Callable[[float], object] = time.sleep) -> bytes:
    """A small answer as bytes. Raises DownloadError when it is longer than `most`, or cannot be had."""
    for tried in range(1, TRIES + 1):
        try:
            with _open(url, {})[0] as response:
                content = response.read(most + 1)
                short = len(content) < min(int(response.headers.get("Content-Length") or 0), most)
            if len(content) > most:
                raise DownloadError(f"{url} answers with more than {most:,} bytes, which is not what was asked for.")
            if not short:
                return content
            cut = _Cut("the connection was cut")
        except _Cut as error:
            cut = error
        if tried < TRIES:
            wait(cut.pause or _pause(tried))
    raise DownloadError(f"{_host(url)} cannot be reached: {cut}. Try again later.")


def size(url: str) -> int | None:
    """How many bytes there are at an address, when its server says so."""
    with suppress(DownloadError, _Cut, ValueError), _open(url, {}, "HEAD")[0] as response:
        return int(response.headers["Content-Length"] or "")
    return None


def is_allowed(url: str, came_from: str | None = None) -> bool:
    """Whether an address may be asked: https without a password, or http on this computer if no https led there."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or parts.username is not None or parts.password is not None:
        return False
    local = parts.scheme == "http" and host in THIS_COMPUTER
    return parts.scheme == "https" or (local and (came_from is None or urlsplit(came_from).scheme == "http"))


def what_is_wrong(path: Path, wanted: Wanted) -> str:
    """How a file differs from what is published, in words; "" when it does not, or nothing is published."""
    length = _length(path)
    if wanted.size is not None and length != wanted.size:
        return f"it has {length:,} bytes, and {wanted.size:,} are published"
    checksum = wanted.checksum or _read_state(path).get("published")
    if checksum is None:
        return ""
    algorithm, digest = checksum
    found = _digest(path, algorithm)
    return "" if found == digest else f"its {algorithm} is {found}, and {digest} is published"


class Stopped(DownloadError):
    """The download was told to end."""


class _Absent(DownloadError):
    """This place does not have the file; another may."""


class _Cut(Exception):
    """The connection has ended early, or the server is busy: worth another try, after so many seconds."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class _BeyondTheEnd(_Cut):
    """The server's file ends before the part that was asked for begins."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        return None


def _fetch_from(
    url: str, wanted: Wanted, target: Path, report: Report, stop: Event | None, wait: Callable[[float], object]
) -> None:
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if part.is_symlink() or (part.exists() and not part.is_file()):
            raise DownloadError(f"{part} is in the way of the download; remove it.")
    except OSError as error:
        raise DownloadError(f"{target.parent} cannot be written to: {error.strerror}.") from error
    started_with = _length(part)
    pieces = 0
    tried = 0
    report(started_with)
    while True:
        before = _length(part)
        try:
            pieces += 1
            _transfer(url, wanted, part, report, stop)
        except _Cut as cut:
            tried = 1 if _length(part) > before else tried + 1
            if tried >= TRIES:
                raise DownloadError(
                    f"{_host(url)} cannot be reached: {cut}. What has arrived is kept; run the same command again to "
                    "go on."
                ) from cut
            wait(cut.pause or _pause(tried))
            continue
        reason = what_is_wrong(part, wanted)
        if not reason:
            break
        report(-_length(part))
        _forget(part)
        if started_with == 0 and pieces == 1:
            raise DownloadError(f"{url} is not the file that is published: {reason}. It was not kept.")
        # Pieces of two versions may have met; a download in one go shows whether the server's file is right.
        started_with = pieces = 0
    try:
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
        _state_file(part).unlink(missing_ok=True)
    except OSError as error:
        raise DownloadError(f"{target} could not be written: {error.strerror}.") from error


def _transfer(url: str, wanted: Wanted, part: Path, report: Report, stop: Event | None) -> None:
    """Fetch what is missing. Raises _Cut when the connection ends before the file does."""
    state = _read_state(part)
    offset = _length(part)
    known = wanted.checksum is not None or state.get("validator")
    total = wanted.size if wanted.size is not None else state.get("total")
    # Another server's copy goes on only when a checksum tells in the end whether the pieces belong together.
    same = state.get("url") == url or (state.get("url") in wanted.urls and wanted.checksum is not None)
    if offset and (not known or not same or (total is not None and offset > total)):
        report(-offset)
        _forget(part)
        offset, state = 0, {}
    if offset and offset == total:
        return
    asked: dict[str, str] = {}
    if offset:
        asked["Range"] = f"bytes={offset}-"
        if state.get("validator") and state.get("url") == url:
            asked["If-Range"] = state["validator"]
    try:
        response, published = _open(url, asked)
    except _BeyondTheEnd as error:
        _restart(part, report, str(error))
    with response:
        begins = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range") or "")
        goes_on = response.status == 206 and begins is not None and int(begins[1]) == offset
        if response.status == 206 and not goes_on:
            _restart(part, report, "it sent another part than was asked for")
        if offset and not goes_on:
            report(-offset)
            offset = 0
        length = response.headers.get("Content-Length")
        announced = offset + int(length) if length is not None and length.isdigit() else None
        if wanted.size is not None and announced is not None and announced != wanted.size:
            _forget(part)
            raise _Absent(
                f"{url} has {announced:,} bytes, and {wanted.size:,} are published: the file was replaced. "
                "Nothing was kept; please report it."
            )
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise _Absent(f"{url} is sent compressed although it was asked for as it is.")
        tag = response.headers.get("ETag") or ""
        validator = tag if tag.startswith('"') else response.headers.get("Last-Modified") or ""
        _write_state(part, {"url": url, "validator": validator, "total": announced, "published": published})
        _append(response, part, offset, wanted.size or announced, report, stop)
    if announced is not None and _length(part) < announced:
        raise _Cut("the connection was cut")


def _append(
    response: http.client.HTTPResponse, part: Path, offset: int, most: int | None, report: Report, stop: Event | None
) -> None:
    try:
        file = part.open("r+b" if offset else "wb")
    except OSError as error:
        raise DownloadError(f"{part} cannot be written: {error.strerror}.") from error
    with file:
        file.seek(offset)
        file.truncate()
        while True:
            if stop is not None and stop.is_set():
                raise Stopped("The download was stopped. What has arrived is kept.")
            try:
                # read1 gives what has arrived; read would wait for the whole chunk and lose it when the line is cut.
                chunk = response.read1(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _Cut(_reason(error)) from error
            if not chunk:
                return
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:
                full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
                why = "the disk is full" if full else error.strerror
                raise DownloadError(
                    f"{part} could not be written: {why}. What has arrived is kept; run the same command again."
                ) from error
            offset += len(chunk)
            report(len(chunk))
            if most is not None and offset > most:
                report(-offset)
                _forget(part)
                raise _Absent(f"{part.name} goes on beyond the {most:,} bytes that it should have. It was not kept.")


def _open(url: str, headers: dict[str, str], method: str = "GET") -> tuple[Any, tuple[str, str] | None]:
    """The response after all redirects, and the checksum that a server on the way has stated."""
    first, came_from = url, None
    published: tuple[str, str] | None = None
    # Servers may compress otherwise, and a range of compressed bytes would be of no use.
    headers = {"User-Agent": "lightfold", "Accept-Encoding": "identity", **headers}
    for _ in range(MOST_REDIRECTS + 1):
        if not is_allowed(url, came_from):
            raise _Absent(f"{first} leads to {url}, which is not followed: only https addresses are.")
        try:
            response = _opener().open(urllib.request.Request(url, headers=headers, method=method), timeout=TIMEOUT)
            return response, published or _stated_checksum(response.headers, url)
        except urllib.error.HTTPError as error:
            with error:
                published = published or _stated_checksum(error.headers, url)
                target = error.headers.get("Location")
                if error.code not in REDIRECTS or not target:
                    raise _failure(first, error) from error
            url, came_from = urljoin(url, target), url
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise _Absent(
                    f"{_host(url)} has no valid certificate ({reason.verify_message}), so nothing is taken from it. "
                    "Is this computer's clock right?"
                ) from error
            raise _Cut(_reason(error)) from error
    raise _Absent(f"{first} redirects more than {MOST_REDIRECTS} times.")


@cache
def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirects, urllib.request.HTTPSHandler(context=ssl.create_default_context()))


def _failure(url: str, error: urllib.error.HTTPError) -> Exception:
    if error.code in TRY_AGAIN:
        after = error.headers.get("Retry-After") or ""
        return _Cut(f"it answers {error.code}", min(float(after), LONGEST_PAUSE) if after.isdigit() else 0.0)
    if error.code == 416:
        return _BeyondTheEnd("it has less than what was asked for")
    if error.code in (401, 403):
        return _Absent(f"{url} is not given to the public ({error.code}); its host may want a login.")
    if error.code in (404, 410):
        return _Absent(f"{url} does not exist any more ({error.code}). Please report it; the file may have moved.")
    return _Absent(f"{url} cannot be downloaded: its server answers {error.code} {error.reason}.")


def _stated_checksum(headers: Message, url: str) -> tuple[str, str] | None:
    """What hosts of data sets say about their files: Hugging Face the SHA-256, Google's and Amazon's stores the MD5."""
    linked = (headers.get("X-Linked-ETag") or "").strip('"')
    if re.fullmatch(r"[0-9a-f]{64}", linked):
        return "sha256", linked
    for stated in headers.get_all("x-goog-hash") or []:
        found = re.search(r"md5=([A-Za-z0-9+/=]+)", stated)
        with suppress(binascii.Error):
            if found:
                return "md5", base64.b64decode(found[1], validate=True).hex()
    tag = (headers.get("ETag") or "").strip('"')
    # Files that were uploaded in pieces, or encrypted with a key of the owner's, have a tag that is no MD5.
    encrypted = headers.get("x-amz-server-side-encryption", "AES256") != "AES256"
    if (urlsplit(url).hostname or "").endswith(".amazonaws.com") and re.fullmatch(r"[0-9a-f]{32}", tag):
        return None if encrypted else ("md5", tag)
    return None


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise DownloadError(f"{path} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


def _restart(part: Path, report: Report, reason: str) -> NoReturn:
    report(-_length(part))
    _forget(part)
    raise _Cut(reason)


def _state_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_state(part: Path) -> dict[str, Any]:
    """What is known about the server's file. Damaged notes are none: the download then begins anew."""
    try:
        state = json.loads(_state_file(part).read_text(encoding="utf-8"))
        algorithm, digest = state["published"] or ("md5", "")
        right = state["total"] is None or isinstance(state["total"], int)
        right = right and all(isinstance(text, str) for text in (state["url"], state["validator"], digest))
        return state if right and algorithm in ("md5", "sha256") else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write_state(part: Path, state: dict[str, Any]) -> None:
    try:
        with whole_file(_state_file(part)) as partial:
            partial.write_text(json.dumps(state), encoding="utf-8")
    except RunError as error:
        raise DownloadError(str(error)) from error


def _forget(part: Path) -> None:
    for path in (part, _state_file(part)):
        with suppress(OSError):
            path.unlink()


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _pause(tried: int) -> float:
    return min(2.0 ** (tried - 1), LONGEST_PAUSE)


def _host(url: str) -> str:
    return urlsplit(url).hostname or url


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
