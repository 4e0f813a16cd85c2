"""The page: a viser server on this machine, its clients, and whose turn it is to be painted.

One thread paints for all clients, in slices: for a finished run that of `Viewer.serve`; for a training the training's
own, between two steps, so that a picture never sees half a step and its share of the time is known. All other threads
(viser's) only say what is wanted.
"""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import viser

from .. import ops
from ..errors import LightfoldError
from .gate import Gate
from .painter import SLICE, Painter
from .panels import Panels
from .subject import Subject
from .training_tab import Training

if TYPE_CHECKING:
    pass

PORT = 7007
LOCAL = ("localhost", "127.0.0.1", "::1")
REPAINT = 2.0
"""Seconds between two paintings of the same look while the field changes."""
KEPT_ROWS = 400
"""Rows of metrics that the plots show."""


class Client:
    """One browser: its camera, its panels, and what is painted for it."""

    def __init__(self, handle: viser.ClientHandle, viewer: Viewer) -> None:
        self.handle = handle
        self.viewer = viewer
        subject = viewer.subject
        self.painter = Painter(subject.render, photo=subject.photo_from) if subject.method is not None else None
        self.painted_at = 0.0
        self.panels = Panels(handle, subject, viewer.training, self.look_again, viewer.awake)
        handle.camera.on_update(lambda _: self.look_again())
        self.look_again()

    def look_again(self) -> None:
        """The camera has moved, or something else is to be seen."""
        if self.painter is None:
            return
        look = self.panels.look()
        self.painter.most, self.painter.share = self.panels.most_pixels(), self.viewer.share_now()
        self.painter.want(look)
        self.viewer.awake()

    def paint(self) -> None:
        """One slice of work, and the picture if there is a new one."""
        assert self.painter is not None
        picture = self.painter.paint()
        self.painted_at = time.perf_counter()
        if picture is not None:
            self.show(picture)

    def show(self, picture: np.ndarray) -> None:
        """Put a picture behind the scene."""
        self.handle.scene.set_background_image(picture, format="jpeg", jpeg_quality=85)


class Viewer:
    """The page of a subject. It is served from the moment of construction; `serve` or a training paints it.

    host: "localhost" is reached from this machine alone (and through `ssh -L`). Any other, such as 0.0.0.0, is reached
    through a gate that asks for a token, which is in `address`.
    port: 0 takes a free one; a port that is taken is an error, and PORT gives way to the next free one.
    training: whether `subject.method` is being trained.
    """

    def __init__(
        self, subject: Subject, host: str = "localhost", port: int | None = None, training: bool = False
    ) -> None:
        self.subject = subject
        self.training = Training() if training else None
        self._news = threading.Event()
        self._clients: dict[int, Client] = {}
        self._lock = threading.Lock()
        self._turn_ended = time.perf_counter()
        self._credit = 0.0
        self._repainted = 0.0
        self._closed = threading.Event()
        self.gate: Gate | None = None
        local = host in LOCAL
        # A client may vanish between any two messages; viser warns of those that reach nobody.
        warnings.filterwarnings("ignore", message="Queued a .* on a closed connection")
        # viser greets in the terminal, with an address that a gate would make wrong.
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                behind = _free_port(port if local else 0)
                self.server = viser.ViserServer("127.0.0.1", behind, label=subject.title, verbose=False)
            except OSError as error:
                raise LightfoldError(f"The page could not be served: {error.strerror or error}.") from error
        # Its share button would send the page through a stranger's relay.
        self.server.request_share_url = lambda verbose=True: None  # type: ignore[method-assign]
        self.server.gui.configure_theme(show_share_button=False, show_logo=False, dark_mode=True)
        self.server.gui.main_panel.dock_right()
        if not local:
            try:
                self.gate = Gate(host, PORT if port is None else port, self.server.get_port())
            except OSError as error:
                self.server.stop()
                raise LightfoldError(
                    f"The page cannot be served at {host} port {PORT if port is None else port}: "
                    f"{error.strerror or error}. Choose another --port or --host."
                ) from error
        self._set_first_view()
        self.server.on_client_connect(self._connected)
        self.server.on_client_disconnect(self._gone)

    # ---------------------------------------------------------------------------------------------------- the address

    @property
    def address(self) -> str:
        """What to open in a browser."""
        if self.gate is None:
            return f"http://localhost:{self.server.get_port()}"
        name = socket.gethostname() if self.gate.host in ("0.0.0.0", "::", "") else self.gate.host
        return f"http://{name}:{self.gate.port}/?token={self.gate.token}"

    def close(self) -> None:
        """Stop serving; jobs that clients started end."""
        self._closed.set()
        self.awake()
        for client in self.clients:
            client.panels.close()
        if self.gate is not None:
            self.gate.close()
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()

    # -------------------------------------------------------------------------------------------------------- clients

    def _set_first_view(self) -> None:
        camera = self.subject.first_camera()
        eye, forward = camera.center.double(), camera.forward.double()
        ahead = max(0.3, float(-eye @ forward))
        self.server.scene.set_up_direction(tuple(self.subject.up.tolist()))
        first = self.server.initial_camera
        first.up = tuple(self.subject.up.tolist())
        first.position = tuple(eye.tolist())
        first.look_at = tuple((eye + ahead * forward).tolist())
        first.near, first.far = 0.01, 200.0

    def _connected(self, handle: viser.ClientHandle) -> None:
        if self._foreign(handle):
            return
        client = Client(handle, self)
        with self._lock:
            self._clients[handle.client_id] = client
        self.awake()

    def _foreign(self, handle: viser.ClientHandle) -> bool:
        """Whether it was another site's page, open in the user's browser, that has connected: browsers let any page do
        so, and it must see nothing. They say truly whose page it is (Origin), and which name led here (Host)."""
        connection = self.server._websock_server._live_connections.get(handle.client_id)
        request = None if connection is None else connection.request
        if request is None:
            return True
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        named = urlsplit(f"//{host}").hostname
        return (origin is not None and urlsplit(origin).netloc != host) or (self.gate is None and named not in LOCAL)

    def _gone(self, handle: viser.ClientHandle) -> None:
        with self._lock:
            client = self._clients.pop(handle.client_id, None)
        if client is not None:
            client.panels.close()

    @property
    def clients(self) -> list[Client]:
        """Those that are connected now."""
        with self._lock:
            return list(self._clients.values())

    def awake(self) -> None:
        """There is news: `serve` looks what is to be done."""
        self._news.set()

    # ------------------------------------------------------------------------------------------------------- painting

    def share_now(self) -> float:
        """Share of the time that painting gets now."""
        busy = self.training is not None and not self.training.finished and not self.training.pausing
        return self.training.share if busy and self.training is not None else 1.0

    def paint(self) -> bool:
        """A slice for whoever needs it most: first who moves, then who has waited longest. False if nobody does."""
        waiting = [c for c in self.clients if c.painter is not None and c.painter.waiting]
        if not waiting:
            return False
        client = min(waiting, key=lambda c: (not c.painter.urgent, c.painted_at))  # type: ignore[union-attr]
        client.paint()
        return True

    def serve(self) -> None:
        """Paint until the page is closed."""
        with ops.own_threads():
            while not self._closed.is_set():
                if not self.paint():
                    self._news.wait(0.2)
                    self._news.clear()

    # ----------------------------------------------------------------------------------------------------- a training

    def turn(self, step: int, fraction: float, save: Callable[[], None]) -> None:
        """Between two steps (see `trainer.Onlooker`): paint as long as painting's share of the time allows."""
        assert self.training is not None
        self.training.step, self.training.fraction = step, fraction
        if self.training.checkpoint_wanted:
            save()
            self.training.checkpoint_wanted = False
        now = time.perf_counter()
        if self.training.pausing:
            if not self.paint():
                self._news.wait(0.05)
                self._news.clear()
        elif self._clients:
            share = self.training.share
            self._credit = min(self._credit + (now - self._turn_ended) * share / max(1 - share, 0.05), 5 * SLICE)
            if now - self._repainted > REPAINT:
                self._repainted = now
                for client in self.clients:
                    if client.painter is not None:
                        client.painter.again()
                    client.panels.follow_training()
            while self._credit > 0:
                begin = time.perf_counter()
                if not self.paint():
                    break
                self._credit -= time.perf_counter() - begin
        else:
            self._credit = 0.0
        self._turn_ended = time.perf_counter()

    def pausing(self) -> bool:
        """Whether a client has asked for a pause; nobody is left paused when the last client goes."""
        assert self.training is not None
        if self.training.pausing and not self._clients:
            self.training.pausing = False
        return self.training.pausing

    def row(self, row: dict[str, Any]) -> None:
        """A row of metrics, for the plots."""
        assert self.training is not None
        rows = self.training.rows
        rows.append(row)
        if len(rows) > KEPT_ROWS:
            del rows[1 : KEPT_ROWS // 2 : 2]

    def training_ended(self) -> None:
        """The training is over; the page stays, painted by a thread of its own."""
        assert self.training is not None
        self.training.finished, self.training.pausing = True, False
        for client in self.clients:
            client.panels.follow_training()
            client.look_again()
        threading.Thread(target=self.serve, daemon=True).start()


def _free_port(port: int | None) -> int:
    """`port` itself; a free one for 0; for None PORT or, where that is taken, one of the next.

    viser would silently take another port than the one that the user has forwarded.
    """
    candidates = range(PORT, PORT + 50) if port is None else (port,)
    for candidate in candidates:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    named = f"Port {port} is" if port is not None else f"Ports {PORT} to {PORT + 49} are"
    raise LightfoldError(f"{named} taken or not allowed; choose another --port.")
