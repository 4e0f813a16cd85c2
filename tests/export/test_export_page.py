"""The page holds the geometry, loads nothing from anywhere, and (slow) shows it in a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from lightfold.export.page import _view, write_page


def decoded(text: str, name: str, kind: str) -> np.ndarray:
    found = re.search(rf'{name} = "([A-Za-z0-9+/=]*)"', text)
    assert found
    return np.frombuffer(base64.b64decode(found[1]), dtype=kind)


def model_of(text: str) -> dict:
    found = re.search(r"const MODEL = (\{.*?\});", text)
    assert found
    return json.loads(found[1])


def ball() -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions=3, radius=2.0)


def test_a_page_holds_the_mesh_and_asks_nobody_for_anything(tmp_path: Path) -> None:
    made = ball()
    vertices = made.vertices + np.array([4e6, 5e5, 100.0])
    colours = np.random.default_rng(0).integers(0, 256, (len(vertices), 3), dtype=np.uint8)
    write_page(tmp_path / "seite.html", vertices, colours, np.asarray(made.faces), title="<script>$MODEL & co")
    text = (tmp_path / "seite.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|src=|href=|import |fetch\(", text)
    assert "<title>&lt;script&gt;$MODEL &amp; co</title>" in text
    model = model_of(text)
    assert model["vertices"] == len(vertices) and model["indices"] == made.faces.size
    packed = decoded(text, "POSITIONS", "<u2").reshape(-1, 4)[:, :3] / 65535
    at = model["low"] + packed * (np.array(model["high"]) - model["low"])
    assert np.abs(at - made.vertices).max() < 4.0 / 65535
    assert np.array_equal(decoded(text, "COLOURS", "u1").reshape(-1, 4)[:, :3], colours)
    assert np.array_equal(decoded(text, "INDICES", "<u4").reshape(-1, 3), made.faces)


def test_points_have_no_triangles_and_a_flat_cloud_has_no_division_by_zero(tmp_path: Path) -> None:
    flat = np.array([[1.0, 1, 1], [2, 1, 1], [3, 1, 1]])
    write_page(tmp_path / "p.html", flat, None, title="three")
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert model_of(text)["indices"] == 0 and decoded(text, "INDICES", "<u4").size == 0
    assert np.isfinite(model_of(text)["low"] + model_of(text)["high"]).all()
    write_page(tmp_path / "one.html", flat[:1], None, title="one")


def test_the_first_view_is_where_it_was_asked_for() -> None:
    for up in (np.array([0.0, 0, 1]), np.array([1.0, 0, 0]), np.array([0.3, -0.8, 0.5])):
        up = up / np.linalg.norm(up)
        offset = np.array([1.0, 2.0, -0.5])
        azimuth, elevation, distance = _view(up, offset, 1.0)
        # As page.html puts them together.
        east = np.cross(up, [1.0, 0, 0] if abs(up[0]) < 0.9 else [0, 1.0, 0])
        east = east / np.linalg.norm(east)
        level = east * np.cos(azimuth) + np.cross(up, east) * np.sin(azimuth)
        back = level * np.cos(elevation) + up * np.sin(elevation)
        assert np.allclose(back * distance, offset)
    assert _view(np.array([0.0, 0, 1]), None, 1.0)[2] > 1


@pytest.mark.slow
@pytest.mark.parametrize("with_faces", [True, False])
def test_a_browser_shows_it(with_faces: bool, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium to look at the page with")
    made = ball()
    colours = np.full((len(made.vertices), 3), (255, 0, 0), dtype=np.uint8)
    faces = np.asarray(made.faces) if with_faces else None
    write_page(tmp_path / "page.html", made.vertices, colours, faces, title="ball")
    picture = tmp_path / "page.png"
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--use-gl=swiftshader", "--enable-unsafe-swiftshader",
         f"--user-data-dir={tmp_path / 'profile'}", "--window-size=400,300", "--virtual-time-budget=3000",
         f"--screenshot={picture}", (tmp_path / "page.html").as_uri()],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    shown = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    red = (shown[..., 0] > 200) & (shown[..., 1] < 40)
    assert red[shown.shape[0] // 2, shown.shape[1] // 2] and 0.05 < red.mean() < 0.8
