"""The page as a program sees it: what is said by clients, and the pictures that come back."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic_sphere import Sphere, camera_at, info_of, ring
from benchmarks.page import Page
from painted_ball import PaintedBall
from websockets.exceptions import InvalidStatus

from lightfold import trainer
from lightfold.config import RunConfig, TrainConfig, lookup
from lightfold.errors import LightfoldError
from lightfold.methods.base import Method
from lightfold.run import Run
from lightfold.scene import SceneConfig
from lightfold.viewer.server import Viewer
from lightfold.viewer.subject import Subject, unposed_names

# A client that is gone may still be painted for; viser says so.
pytestmark = pytest.mark.filterwarnings("ignore:Queued a .* on a closed connection")

EYE, MIDDLE, UP = np.array([3.0, 0.5, 1.0]), np.zeros(3), np.array([0.0, 0.0, 1.0])


def sphere(**changes) -> Subject:
    info = info_of([camera_at(eye, torch.zeros(3)) for eye in ring(8)])
    return Subject("ball", info, Sphere(info, shaded=True), **changes)  # type: ignore[arg-type]


def served(viewer: Viewer) -> Viewer:
    threading.Thread(target=viewer.serve, daemon=True).start()
    return viewer


@pytest.fixture
def viewer() -> Iterator[Viewer]:
    viewer = served(Viewer(sphere(), port=0))
    yield viewer
    viewer.close()


def port(viewer: Viewer) -> int:
    return int(viewer.server.get_port())


def until(true, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def test_a_client_gets_the_picture_from_where_it_stands(viewer: Viewer) -> None:
    with Page(port(viewer)) as page:
        page.look(EYE, MIDDLE, UP, 320, 240)
        page.listen(20, pictures=1)
        page.listen(1.0)
        last = page.arrived[-1][1]
        assert last.shape == (240, 320, 3)
        camera = viewer.clients[0].painter._look.camera()  # type: ignore[union-attr]
        expected = (viewer.subject.method.render(camera).rgb * 255).numpy()  # type: ignore[union-attr]
        assert np.abs(last - expected).mean() < 3  # JPEG
        count = len(page.arrived)
        assert page.listen(0.5) == 0, "a camera that rests gets no more pictures"
        page.look(np.array([0.5, 3.0, 1.0]), MIDDLE, UP, 320, 240)
        page.listen(20, pictures=1)
        assert len(page.arrived) > count and np.abs(page.arrived[-1][1] - expected.mean()).mean() > 3


def test_clients_look_from_where_they_like_and_vanish_without_harm(viewer: Viewer) -> None:
    with Page(port(viewer)) as one:
        one.look(EYE, MIDDLE, UP, 160, 120)
        one.listen(20, pictures=1)
        with Page(port(viewer)) as other:
            other.look(-EYE, MIDDLE, UP, 200, 100)
            other.listen(20, pictures=1)
            other.listen(0.5)
            assert other.arrived[-1][1].shape == (100, 200, 3)
            until(lambda: len(viewer.clients) == 2)
            other.look(-EYE, MIDDLE, -UP, 200, 100)  # and gone, with pictures under way
        until(lambda: len(viewer.clients) == 1)
        one.look(EYE + 0.3, MIDDLE, UP, 160, 120)
        assert one.listen(20, pictures=1) == 1
    until(lambda: not viewer.clients)


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (3, 900)])
def test_windows_of_odd_sizes(viewer: Viewer, size: tuple[int, int]) -> None:
    """A minimised window has no pixels; nothing breaks, and the next size is painted."""
    with Page(port(viewer)) as page:
        page.look(EYE, MIDDLE, UP, *size)
        page.listen(0.5)
        page.look(EYE, MIDDLE, UP, 64, 48)
        page.listen(20, pictures=1)
        page.listen(0.5)
        assert page.arrived[-1][1].shape == (48, 64, 3)


def test_others_on_the_network_need_the_token() -> None:
    viewer = served(Viewer(sphere(), host="0.0.0.0", port=0))
    try:
        assert viewer.gate is not None and f"token={viewer.gate.token}" in viewer.address
        with pytest.raises(InvalidStatus):
            Page(viewer.gate.port)
        with Page(viewer.gate.port, {"Cookie": f"lightfold-token={viewer.gate.token}"}) as page:
            page.look(EYE, MIDDLE, UP, 64, 48)
            assert page.listen(20, pictures=1) == 1
    finally:
        viewer.close()


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://localhost:1", "null", "https://127.0.0.1.evil.example"]
)
def test_pages_of_other_sites_see_nothing(viewer: Viewer, origin: str) -> None:
    """Any page that the user has open may connect to a port of this machine; the browser says whose it is."""
    with Page(port(viewer), {"Origin": origin}) as page:
        page.look(EYE, MIDDLE, UP, 64, 48)
        page.listen(1.0)
        assert not page.arrived and not viewer.clients
    with Page(port(viewer), {"Origin": f"http://127.0.0.1:{port(viewer)}"}) as page:
        page.look(EYE, MIDDLE, UP, 64, 48)
        assert page.listen(20, pictures=1) == 1


def test_what_the_page_does_not_offer_cannot_be_asked_for(tmp_path: Path) -> None:
    """Values of dropdowns come from outside, and become words of a command line and names of files."""
    run, _, method = begin(tmp_path / "run", 1)
    viewer = served(Viewer(Subject("ball", run.info, method, run), port=0))
    with Page(port(viewer)) as page:
        page.look(EYE, MIDDLE, UP, 64, 48)
        until(lambda: bool(viewer.clients))
        panels = viewer.clients[0].panels
        assert panels.export is not None and panels.path is not None
        panels.path._add()
        for handle, start, bad in (
            (panels.export.format, panels.export._begin, "x/../../../../evil.ply"),
            (panels.export.what, panels.export._begin, "mesh --out /evil"),
            (panels.export.frame, panels.export._begin, "scene --page"),
            (panels.export.cameras_as, panels.export._begin, "../../evil"),
            (panels.path.shown, panels.path._video, "rgb --out /evil.mp4"),
        ):
            good, handle.value = handle.value, bad
            with pytest.raises(LightfoldError, match="does not offer"):
                start()
            handle.value = good
        assert panels.export._begin().words[:3] == ["export", str(run.path), "mesh"]
    viewer.close()


def test_the_page_offers_no_relay_of_a_stranger(viewer: Viewer) -> None:
    with Page(port(viewer)) as page:
        page.look(EYE, MIDDLE, UP, 64, 48)
        page.say("ShareUrlRequest")
        page.listen(1.0)
    assert viewer.server.request_share_url() is None
    theme = [m for m in page.messages if m["type"] == "ThemeConfigurationMessage"]
    assert theme and not theme[-1]["show_share_button"]


def test_a_taken_port_is_a_sentence() -> None:
    first = Viewer(sphere(), port=0)
    taken = port(first)
    try:
        with pytest.raises(LightfoldError, match=f"{taken}"):
            Viewer(sphere(), port=taken)
    finally:
        first.close()


def test_a_capture_alone_shows_its_cameras() -> None:
    subject = sphere(missing=("lost.jpg",))
    subject.method = None
    viewer = Viewer(subject, port=0)
    try:
        with Page(port(viewer)) as page:
            page.look(EYE, MIDDLE, UP, 64, 48)
            page.listen(2.0)
        kinds = [m["type"] for m in page.messages]
        assert kinds.count("CameraFrustumMessage") == 8 and not page.arrived
        assert any("lost.jpg" in json.dumps(m, default=str) for m in page.messages)
    finally:
        viewer.close()


def test_names_of_pictures_without_a_pose(tmp_path: Path) -> None:
    (tmp_path / "poses.json").write_text(json.dumps({"missing": {"b.jpg": "it is blurred"}}))
    assert unposed_names(tmp_path) == ("b.jpg",) == unposed_names(tmp_path / "transforms.json")
    for text in ("", "[]", '{"missing": 3}', "[" * 100_000):
        (tmp_path / "poses.json").write_text(text)
        assert unposed_names(tmp_path) == ()


# --- beside a training ----------------------------------------------------------------------------------------------


def begin(folder: Path, steps: int) -> tuple[Run, PaintedBall, Method]:
    scene = PaintedBall(side=24)
    cls, model = lookup("ngp:fast")
    config = RunConfig("ball", "ngp:fast", model, SceneConfig(), TrainConfig(steps=steps, checkpoint_every=0))
    run = Run.create(folder, config, scene.info)
    torch.manual_seed(0)
    return run, scene, cls(model, run.info)


def test_a_watched_training_learns_what_an_unwatched_one_does(tmp_path: Path) -> None:
    """Looking on changes nothing, to the last bit, and a client sees the field change."""
    alone = begin(tmp_path / "alone", 150)
    trainer.train(*alone, alone[0].config.train, progress=False)  # type: ignore[arg-type]
    run, scene, method = begin(tmp_path / "watched", 150)
    viewer = Viewer(Subject("ball", run.info, method, run), port=0, training=True)
    page = Page(port(viewer))
    page.look(EYE, MIDDLE, UP, 64, 48)
    heard = threading.Thread(target=page.listen, args=(30.0, 2))
    heard.start()
    until(lambda: bool(viewer.clients))
    assert viewer.training is not None
    viewer.training.share = 0.5
    trainer.train(run, scene, method, run.config.train, progress=False, onlooker=viewer)  # type: ignore[arg-type]
    viewer.training_ended()
    heard.join()
    for name, value in alone[2].state_dict().items():
        assert torch.equal(value, method.state_dict()[name]), name
    assert len(page.arrived) == 2
    page.__exit__(None, None, None)
    viewer.close()


def test_pause_holds_the_training_until_it_goes_on_or_the_last_client_has_gone(tmp_path: Path) -> None:
    run, scene, method = begin(tmp_path / "run", 10**6)
    viewer = Viewer(Subject("ball", run.info, method, run), port=0, training=True)
    training = viewer.training
    assert training is not None
    stopping = threading.Event()

    def turn(step: int, fraction: float, save) -> None:
        Viewer.turn(viewer, step, fraction, save)
        if stopping.is_set():
            raise KeyboardInterrupt

    viewer.turn = turn  # type: ignore[method-assign]

    def train() -> None:
        try:
            trainer.train(run, scene, method, run.config.train, progress=False, onlooker=viewer)  # type: ignore[arg-type]
        except KeyboardInterrupt:
            training.finished = True

    worker = threading.Thread(target=train)
    with Page(port(viewer)) as page:
        page.look(EYE, MIDDLE, UP, 64, 48)
        until(lambda: bool(viewer.clients))
        worker.start()
        until(lambda: training.step > 5)
        training.pausing = True
        time.sleep(0.3)
        held = training.step
        assert page.listen(20, pictures=1) == 1, "a paused training is still to be looked at"
        time.sleep(0.3)
        assert training.step == held
        training.ask_for_checkpoint()
        assert run.steps() == [held]
    until(lambda: training.step > held)
    assert not training.pausing
    stopping.set()
    worker.join(20)
    assert training.finished
    viewer.close()
