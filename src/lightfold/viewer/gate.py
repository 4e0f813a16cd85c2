"""The door of a page that others on the network can reach: nothing passes without the token.

The page's own server knows no passwords and listens on this machine only. Before it stands this small relay, which
reads the head of every request and lets it through if it carries the token in its cookie. The address with the token
leaves that cookie behind. A connection serves one request, unless it becomes a web socket, so that none slips through
behind another.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import threading
from contextlib import suppress
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

COOKIE = "lightfold-token"
LARGEST_HEAD = 1 << 16
PATIENCE = 20.0
"""Seconds in which a stranger must have said what he wants."""
REFUSAL = (
    b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    b"This page needs the token: open the whole address that `lightfold view` has printed.\n"
)


class Gate:
    """A relay from (host, port) to a port of this machine. Port 0 takes a free one; `token` is new for every gate."""

    def __init__(self, host: str, port: int, behind: int) -> None:
        self.token = secrets.token_urlsafe(16)
        self.host, self.port, self._behind = host, port, behind
        self._loop = asyncio.new_event_loop()
        self._failure: OSError | None = None
        self._server: asyncio.Server | None = None
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self._thread.start()
        started.wait()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Stop listening; open connections end."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    def _serve(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            opening = asyncio.start_server(self._meet, self.host, self.port, limit=LARGEST_HEAD)
            self._server = self._loop.run_until_complete(opening)
            self.port = self._server.sockets[0].getsockname()[1]
        except OSError as error:
            self._failure = error
            return
        finally:
            started.set()
        self._loop.run_forever()
        self._server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        except (asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            writer.close()
            return
        in_address, in_cookie = tokens(head)
        if self._right(in_address) and not self._right(in_cookie):
            # The cookie carries the token from now on, and the address bar forgets it.
            writer.write(
                b"HTTP/1.1 303 See Other\r\nLocation: /\r\nConnection: close\r\nContent-Length: 0\r\n"
                + f"Set-Cookie: {COOKIE}={self.token}; Path=/; HttpOnly; SameSite=Strict\r\n\r\n".encode()
            )
        elif not self._right(in_cookie):
            writer.write(REFUSAL)
        else:
            await self._relay(head, reader, writer)
        await _finished(writer)

    def _right(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self.token.encode())

    async def _relay(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", self._behind)
        except OSError:
            return
        onward_writer.write(_one_request(head))
        await asyncio.gather(_copy(reader, onward_writer), _copy(onward_reader, writer))
        await _finished(onward_writer)


def tokens(head: bytes) -> tuple[str, str]:
    """The tokens in a request's address and in its cookie, empty where there is none."""
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    query = parse_qs(urlsplit(words[1]).query) if len(words) == 3 else {}
    in_cookie = ""
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "cookie":
            try:
                found = SimpleCookie(value.strip()).get(COOKIE)
            except CookieError:
                continue
            in_cookie = found.value if found is not None else in_cookie
    return query.get("token", [""])[0], in_cookie


def _one_request(head: bytes) -> bytes:
    if re.search(rb"\r\nupgrade:", head, re.IGNORECASE):
        return head
    without = re.sub(rb"\r\n(connection|keep-alive):[^\r]*", b"", head, flags=re.IGNORECASE)
    return without[:-2] + b"Connection: close\r\n\r\n"


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Until the source has no more to say, which the target is told; what it still answers can come."""
    with suppress(OSError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
        target.write_eof()


async def _finished(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        await writer.drain()
        writer.close()
