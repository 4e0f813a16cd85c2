"""The page as a user sees it, in a real browser. Skipped where there is no Chromium."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import trimesh
from browser import Browser
from painted_ball import PaintedBall

from lightfold import trainer
from lightfold.config import RunConfig, TrainConfig, lookup
from lightfold.run import Run
from lightfold.scene import SceneConfig
from lightfold.viewer.server import Viewer
from lightfold.viewer.subject import Subject

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A ball that a small field has learnt in some seconds."""
    scene = PaintedBall(side=48)
    cls, model = lookup("ngp:fast")
    config = RunConfig("ball", "ngp:fast", model, SceneConfig(), TrainConfig(steps=400, checkpoint_every=0))
    run = Run.create(tmp_path_factory.mktemp("page") / "run", config, scene.info)
    torch.manual_seed(0)
    trainer.train(run, scene, cls(model, run.info), config.train, progress=False)  # type: ignore[arg-type]
    return run


@pytest.fixture
def page(run: Run, tmp_path: Path) -> Iterator[Browser]:
    viewer = Viewer(Subject("ball", run.info, run.method(), run), port=0)
    threading.Thread(target=viewer.serve, daemon=True).start()
    try:
        with Browser(tmp_path) as browser:
            browser.open(viewer.address)
            browser.wait("document.querySelector('canvas') !== null")
            browser.wait("document.body.innerText.includes('Field of view')")
            browser.viewer = viewer  # type: ignore[attr-defined]
            client = viewer.clients[0]
            assert client.panels.path is not None
            client.panels.path.width.value, client.panels.path.height.value = 160, 120
            yield browser
    finally:
        viewer.close()


def seen(browser: Browser) -> np.ndarray:
    """The left half of the page, where the field is."""
    picture = browser.picture()
    return picture[:, : picture.shape[1] // 2]


def colourful(browser: Browser, seconds: float = 30.0) -> np.ndarray:
    """The picture, once there is one: the page behind it is of one colour."""
    end = time.monotonic() + seconds
    while True:
        picture = seen(browser)
        if len(np.unique(picture.reshape(-1, 3)[::7], axis=0)) > 300:
            return picture
        assert time.monotonic() < end, "no picture arrived"
        time.sleep(0.2)


def changed(browser: Browser, before: np.ndarray, seconds: float = 30.0) -> np.ndarray:
    """The picture, once it is another."""
    end = time.monotonic() + seconds
    while np.abs((picture := seen(browser)).astype(int) - before.astype(int)).mean() <= 2:
        assert time.monotonic() < end, "the picture stays the same"
        time.sleep(0.2)
    return picture


def downloaded(folder: Path, suffix: str, browser: Browser, seconds: float = 120.0) -> Path:
    """The file that a click on the page's link brings."""
    browser.wait(
        f"[...document.querySelectorAll('a')].some(a => a.download && a.download.endsWith({json.dumps(suffix)}))",
        seconds,
    )
    browser.run(f"[...document.querySelectorAll('a')].find(a => a.download.endsWith({json.dumps(suffix)})).click()")
    end = time.monotonic() + 30
    while not (found := [p for p in folder.glob(f"*{suffix}") if p.stat().st_size]):
        assert time.monotonic() < end, f"no {suffix} was downloaded"
        time.sleep(0.2)
    time.sleep(0.5)
    return found[0]


def test_a_picture_arrives_and_changes_when_the_camera_moves(page: Browser) -> None:
    first = colourful(page)
    page.drag(250, 300, 150, 30)
    changed(page, first)
    outside = [url for url in page.requests if not url.startswith(("http://localhost:", "data:", "blob:"))]
    assert outside == [], "the page needs nobody else's server"


def test_cameras_and_splitting(page: Browser) -> None:
    before = colourful(page)
    page.toggle("Split the view")
    split = changed(page, before)
    page.click("Cameras")
    page.toggle("Show cameras")
    page.click("next")
    changed(page, split)


def test_a_video_is_rendered_and_downloaded(page: Browser, tmp_path: Path) -> None:
    colourful(page)
    page.click("Path")
    page.click("Add a keyframe here")
    page.drag(250, 300, 60, 0)
    time.sleep(1)
    page.click("Add a keyframe here")
    page.wait("document.body.innerText.includes('48 frames')")
    page.click("Render the video")
    video = downloaded(tmp_path, ".mp4", page)
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 48 and frames[0].shape == (120, 160, 3)
    assert np.abs(frames[0].astype(int) - frames[-1].astype(int)).mean() > 1


def test_a_mesh_is_made_and_downloaded(page: Browser, tmp_path: Path) -> None:
    colourful(page)
    page.click("Export")
    page.wait("document.body.innerText.includes('Mesh as')")
    page.click("Export")  # the tab
    page.run("[...document.querySelectorAll('button')].filter(b => b.innerText.trim() === 'Export').pop().click()")
    file = downloaded(tmp_path, ".glb", page)
    assert len(trimesh.load_mesh(file).faces) > 500
    # The page's own renderer is three.js: the file opens there too, and its colours are the field's.
    before = seen(page)
    scene = page.viewer.clients[0].handle.scene
    scene.set_background_image(np.full((64, 64, 3), 255, dtype=np.uint8))
    empty = changed(page, before)
    scene.add_glb("/mesh", file.read_bytes(), scale=1.0)
    shown = changed(page, empty)
    assert len(np.unique(shown.reshape(-1, 3)[::7], axis=0)) > 100


def test_the_verb_serves_a_page(run: Run, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "lightfold", "view", str(run.path), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = next(line.split()[-1] for line in process.stdout if line.startswith("Open"))
        with Browser(tmp_path) as browser:
            browser.open(address)
            colourful(browser)
    finally:
        process.terminate()
        process.wait(20)
