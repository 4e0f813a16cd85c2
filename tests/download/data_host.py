"""A host of data sets on this computer, as well or as badly behaved as a test wants it."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Resource:
    """What is served at a path.

    cuts:     after how many bytes of the answer the connection ends, one for each request to come; then never.
    statuses: what is answered instead, one for each request to come; then the content.
    length:   a Content-Length that is not true; 0 for none at all.
    """

    content: bytes = b""
    etag: str | None = None
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    location: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    before: Callable[[], None] | None = None


class Host:
    """Paths and what is there. asked: (path, headers) of every request."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.resources: dict[str, Resource] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []

    def add(self, path: str, content: bytes = b"", **options: object) -> str:
        """Serve something and return its address. A strong tag is made of its content unless another is given."""
        options.setdefault("etag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.resources[path] = Resource(content, **options)  # type: ignore[arg-type]
        return self.address + path

    def ranges(self) -> list[str | None]:
        """What each request wanted of its file."""
        return [headers.get("range") for _, headers in self.asked]


@contextmanager
def data_host() -> Iterator[Host]:
    """A running host."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            host.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            resource = host.resources.get(self.path) or host.resources.get(self.path.partition("?")[0])
            if resource is not None and resource.before is not None:
                resource.before()
            if resource is None or resource.statuses:
                self.send_response(404 if resource is None else resource.statuses.pop(0))
                for name, value in ({} if resource is None else resource.headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if resource.location is not None:
                self.send_response(302)
                self.send_header("Location", resource.location)
                for name, value in resource.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start, content = 0, resource.content
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            condition = self.headers.get("If-Range")
            if wanted and resource.ranges and condition in (None, resource.etag):
                start = int(wanted[1])
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            if resource.etag:
                self.send_header("ETag", resource.etag)
            for name, value in resource.headers.items():
                self.send_header(name, value)
            length = len(content) - start if resource.length is None else resource.length
            if length or resource.length is None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            if body:
                end = resource.cuts.pop(0) if resource.cuts else len(content)
                self.wfile.write(content[start:][:end])
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    host = Host(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield host
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
