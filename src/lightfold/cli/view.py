"""lightfold view RUN or CAPTURE: look at it in a browser."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ..errors import CaptureError, ConfigError, LightfoldError
from . import console
from .arguments import parse

if TYPE_CHECKING:
    from ..methods.base import Method
    from ..run import Run
    from ..scene import Scene
    from ..viewer.server import Viewer
    from ..viewer.subject import Subject

DESCRIPTION = """Look at a run, or at the cameras of a capture, in a browser: fly through it, compare with the
photographs, make camera paths and videos, export.

The page is served by this machine alone and needs no network. From another machine: ssh -L 7007:localhost:7007 HOST."""


@dataclass(frozen=True)
class ViewArguments:
    what: Annotated[Positional[str], arg(metavar="RUN|CAPTURE")] = ""
    """A run folder, or a capture with poses."""
    host: str = "localhost"
    """The network address to serve at. Any other than localhost lets others in, with the token that is printed."""
    port: int | None = None
    """The port. None: 7007, or the next that is free."""
    step: int | None = None
    """Which checkpoint. None: the newest."""
    device: str = "auto"
    """What computes: auto (a GPU that Triton has kernels for, else the processor), cpu, cuda, cuda:1, xpu or mps."""
    capture: Path | None = None
    """Where the pictures of a run are now. None: where they were; without them no photographs are shown."""


def main(words: list[str]) -> None:
    """The verb."""
    arguments = parse(ViewArguments, words, "view", DESCRIPTION, ViewArguments())
    if not arguments.what:
        raise ConfigError("Say what to look at: `lightfold view RUN` or `lightfold view CAPTURE`.")
    check_address(arguments.host, arguments.port)
    from ..run import is_run
    from ..viewer.server import Viewer
    from . import steps

    steps.use_threads(None)
    subject = run_subject(arguments) if is_run(arguments.what) else capture_subject(arguments.what)
    viewer = Viewer(subject, arguments.host, arguments.port)
    try:
        announce(viewer)
        viewer.serve()
    except KeyboardInterrupt:
        console.say("The page is closed.")
    finally:
        viewer.close()


@dataclass(frozen=True)
class WatchArguments:
    """How a training can be watched."""

    view: bool = False
    """Serve a page on which the training can be watched, and its result looked at afterwards."""
    view_host: str = "localhost"
    """The network address of that page; see `lightfold view --help`."""
    view_port: int | None = None
    """Its port. None: 7007, or the next that is free."""


class Watch:
    """The page beside a training, from its first step to the end of the program."""

    def __init__(self, arguments: WatchArguments, run: Run, scene: Scene) -> None:
        check_address(arguments.view_host, arguments.view_port)
        self._arguments, self._run, self._scene = arguments, run, scene
        self._viewer: Viewer | None = None

    def begin(self, method: Method) -> Viewer:
        """Serve the page of a method that is about to be trained."""
        from ..viewer.server import Viewer

        subject = subject_of(self._run, self._scene, method)
        self._viewer = Viewer(subject, self._arguments.view_host, self._arguments.view_port, training=True)
        announce(self._viewer)
        return self._viewer

    def training_ended(self) -> None:
        """From now on the page shows the result."""
        if self._viewer is not None:
            self._viewer.training_ended()

    def stay(self) -> None:
        """Keep the page open until Ctrl-C."""
        if self._viewer is None:
            return
        console.say(f"Still to be seen at  {self._viewer.address}\nCtrl-C closes the page.")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            console.say("The page is closed.")

    def close(self) -> None:
        """Stop serving."""
        if self._viewer is not None:
            self._viewer.close()


@contextmanager
def watching(arguments: WatchArguments, run: Run, scene: Scene) -> Iterator[Watch | None]:
    """A `Watch` where one is asked for, closed at the end."""
    if not arguments.view:
        yield None
        return
    watch = Watch(arguments, run, scene)
    try:
        yield watch
    finally:
        watch.close()


def check_address(host: str, port: int | None) -> None:
    """Raises ConfigError when host or port is nothing to serve at."""
    if not host.strip():
        raise ConfigError("--host must be a name or an address, such as localhost or 0.0.0.0.")
    if port is not None and not 0 <= port <= 65535:
        raise ConfigError(f"--port must be from 0 to 65535, and it is {port}.")


def announce(viewer: Viewer) -> None:
    """Say where the page is, and who can reach it."""
    if viewer.gate is not None:
        console.remark(
            "The page can be reached from the network by everybody who has this address with its token. The connection "
            "is not encrypted; through `ssh -L` it would be."
        )
    console.say(f"Open  {viewer.address}\nCtrl-C closes the page.")


def run_subject(arguments: ViewArguments) -> Subject:
    """A run with its field, and with its photographs if they are at hand."""
    from ..devices import choose
    from ..run import Run
    from . import steps

    run = Run.open(arguments.what)
    method = run.method(arguments.step, choose(arguments.device))
    notes: list[str] = []
    try:
        scene = steps.scene_of(run, arguments.capture)
    except LightfoldError as error:
        if arguments.capture is not None:
            raise
        scene = None
        notes.append(f"The photographs are not shown: {error}")
    for note in [*run.notes, *notes]:
        console.remark(note)
    return subject_of(run, scene, method, tuple(notes))


def subject_of(run: Run, scene: Scene | None, method: Method, notes: tuple[str, ...] = ()) -> Subject:
    """What a page shows of a run."""
    from ..viewer.subject import Subject, unposed_names
    from . import steps

    place = Path(run.config.capture)
    title = f"{steps.capture_name(place)}, {run.config.method}"
    return Subject(title, run.info, method, run, scene, unposed_names(place), notes)


def capture_subject(path: str) -> Subject:
    """The cameras of a capture, with their photographs and its sparse points."""
    from ..scene import SceneConfig
    from ..viewer.subject import Subject, unposed_names
    from . import steps

    if not Path(path).expanduser().exists():
        raise CaptureError(f"There is nothing at {path}.")
    # What is looked at small need not be decoded large.
    scene = steps.make_scene(steps.posed_capture(path), SceneConfig(max_side=800, split="all"))
    return Subject(steps.capture_name(path), scene.info, None, None, scene, unposed_names(Path(path)))
