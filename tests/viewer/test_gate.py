from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lightfold.viewer.gate import COOKIE, Gate, tokens


class Behind(BaseHTTPRequestHandler):
    """What the gate protects."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = f"secret {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def gate() -> Iterator[Gate]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Behind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    gate = Gate("127.0.0.1", 0, server.server_address[1])
    yield gate
    gate.close()
    server.shutdown()
    server.server_close()


def ask(gate: Gate, path: str, cookie: str = "") -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", gate.port, timeout=10)
    connection.request("GET", path, headers={"Cookie": cookie} if cookie else {})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(), dict(answer.getheaders())
    connection.close()
    return found


@pytest.mark.parametrize("path", ["/", "/?token=", "/?token=wrong"])
@pytest.mark.parametrize("cookie", ["", f"{COOKIE}=wrong", f"{COOKIE}="])
def test_nothing_passes_without_the_token(gate: Gate, path: str, cookie: str) -> None:
    status, body, _ = ask(gate, path, cookie)
    assert status == 403 and "secret" not in body and "token" in body


def test_the_address_with_the_token_leaves_a_cookie_which_opens(gate: Gate) -> None:
    status, body, headers = ask(gate, f"/?token={gate.token}")
    assert status == 303 and headers["Location"] == "/" and "secret" not in body
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    status, body, _ = ask(gate, "/page", cookie.partition(";")[0])
    assert (status, body) == (200, "secret /page")


def talk(gate: Gate, raw: bytes) -> bytes:
    """All that the gate answers to these bytes."""
    answer = b""
    with socket.create_connection(("127.0.0.1", gate.port), timeout=10) as connection:
        try:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(1 << 16):
                answer += data
        except OSError:
            return answer
    return answer


def test_no_request_slips_through_behind_another(gate: Gate) -> None:
    """A connection that was let through once carries no other request, with or without a token."""
    good = f"GET /one HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\nCookie: {COOKIE}={gate.token}\r\n\r\n"
    answer = talk(gate, good.encode() + b"GET /two HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"secret /one" in answer and b"/two" not in answer


GARBAGE = [
    b"",
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"\xff\xfe\x00\r\n\r\n",
    b"A" * 200_000,
    b"GET / HTTP/1.1\r\nCookie: ;;=\r\n\r\n",
    b"GET http://[ HTTP/1.1\r\n\r\n",
]


@pytest.mark.parametrize("raw", GARBAGE)
def test_garbage_neither_passes_nor_stops_the_gate(gate: Gate, raw: bytes) -> None:
    assert b"secret" not in talk(gate, raw)
    assert ask(gate, "/", f"{COOKIE}={gate.token}")[0] == 200


def test_tokens_of_a_request() -> None:
    head = b"GET /?a=1&token=abc HTTP/1.1\r\nHost: x\r\nCookie: other=1; " + COOKIE.encode() + b"=def\r\n\r\n"
    assert tokens(head) == ("abc", "def")


def test_every_gate_has_a_token_of_its_own() -> None:
    first, second = Gate("127.0.0.1", 0, 1), Gate("127.0.0.1", 0, 1)
    assert first.token != second.token and len(first.token) >= 20
    with pytest.raises(OSError, match="."):
        Gate("127.0.0.1", first.port, 1)
    first.close()
    second.close()
