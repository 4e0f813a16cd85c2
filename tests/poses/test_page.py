"""The report's files: everything is in them, nothing in them can act, and names of strangers stay text."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from posed_ring import ring, write_capture

from lightfold.errors import RunError
from lightfold.geometry import Similarity, so3_exp
from lightfold.poses.page import document, page, write_quality
from lightfold.poses.quality import assess
from lightfold.poses.solve import SubModel

HOSTILE = '<script>alert("1")</script>&'


class Tags(HTMLParser):
    """Tags and attributes of a page, which must be nested well."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str, kind: str | None = None) -> list[dict[str, str | None]]:
        """Attributes of all elements of this name, and class where one is given."""
        return [a for t, a in self.tags if t == tag and (kind is None or kind in (a.get("class") or "").split())]


def test_the_page_shows_cameras_breaks_matches_and_missing_pictures(tmp_path: Path) -> None:
    truth = ring(20, turn=200)
    footage, solution = write_capture(
        tmp_path,
        truth,
        model=[camera if i < 14 else None for i, camera in enumerate(truth)],
        linked=lambda i, j: (i < 14) == (j < 14),
        changes={2: {"sharpness": 0.1}},
    )
    other = SubModel(solution.model, tuple(f"{i:04d}.png" for i in range(14, 20)))
    quality = assess(footage, replace(solution, models=(*solution.models, other)))
    text = page(quality)
    tags = Tags(text)
    assert len(tags.of("polygon", "camera")) == 14 and len(tags.of("circle", "ring")) == 1
    assert len(tags.of("img")) == 7 and "0002.png</b> blurred" in text
    assert all((a["src"] or "").startswith("data:image/jpeg;base64,") for a in tags.of("img"))
    assert "14 of 20" in text and "no matches between 0013.png and 0014.png" in text
    rows = re.findall(r"<tr class=\"missing\"><td>(\d+)\.png</td><td>group 1</td>", text)
    assert [int(row) for row in rows] == list(range(14, 20))
    for sentence in (*quality.reasons, *quality.advice):
        assert sentence in text


def test_the_matrix_is_symmetric_and_red_where_pairs_contradict(tmp_path: Path) -> None:
    truth = ring(16, turn=180)
    pivot = truth[8].center
    rotation = so3_exp(torch.tensor([0.0, math.radians(40), 0.0], dtype=torch.float64))
    fold = Similarity(1.0, rotation, pivot - rotation @ pivot)
    wrong = [camera.transformed(fold) if i >= 8 else camera for i, camera in enumerate(truth)]
    quality = assess(*write_capture(tmp_path, truth, model=wrong))
    tags = Tags(page(quality))
    data = (tags.of("image")[0]["href"] or "").removeprefix("data:image/png;base64,")
    cells = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert cells.shape == (16, 16, 4) and (cells == cells.transpose(1, 0, 2)).all()
    red = (cells[..., 0] > 200) & (cells[..., 3] > 0)
    assert not red[:8, :8].any() and not red[8:, 8:].any() and red[:8, 8:].mean() > 0.3
    assert len({a["fill"] for a in tags.of("polygon", "camera")}) == 2
    assert quality.verdict == "bad" and tags.of("p", "bad")


def test_names_from_strangers_stay_text(tmp_path: Path) -> None:
    names = [f"{i} {HOSTILE.replace('/', '')} ' é.png" for i in range(8)]
    truth = ring(8)
    model = [None if i == 3 else camera for i, camera in enumerate(truth)]
    footage, solution = write_capture(tmp_path / "a <b>capture</b> & co", truth, names=names, model=model)
    footage = replace(footage, notes=(HOSTILE,))
    text = page(assess(footage, replace(solution, tries=(HOSTILE,))))
    tags = Tags(text)
    assert not tags.of("script") and not tags.of("b", "capture")
    assert not [name for _, attributes in tags.tags for name in attributes if name.startswith("on")]
    assert text.count("&lt;script&gt;") > 10
    outside = [a for _, a in tags.tags for k in ("src", "href") if not (a.get(k) or "data:").startswith("data:")]
    assert outside == [] and "default-src 'none'" in text


def test_the_files_are_whole_and_the_json_reads_back(tmp_path: Path) -> None:
    truth = ring(8)
    footage, solution = write_capture(tmp_path, truth, model=[*truth[:7], None], changes={1: {"sharpness": math.nan}})
    quality = assess(footage, solution)
    assert write_quality(quality, tmp_path) == tmp_path / "poses.html"
    content = json.loads((tmp_path / "poses.json").read_text(encoding="utf-8"))
    assert content == document(quality)
    assert (content["verdict"], content["registered"], content["total"]) == (quality.verdict, 7, 8)
    assert content["pictures"][1]["sharpness"] is None and list(content["missing"]) == ["0007.png"]
    first = content["links"][0]
    assert first[:2] == [0, 1] and first[2] >= 15 and first[3] == 1.0
    assert len((tmp_path / "poses.html").read_bytes()) > 5000
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*"))
    with pytest.raises(RunError):
        write_quality(quality, tmp_path / "images" / "0000.png")


def test_a_picture_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    truth = ring(8)
    footage, solution = write_capture(tmp_path, truth, model=[*truth[:7], None])
    quality = assess(footage, solution)
    (tmp_path / "images" / "0007.png").write_bytes(b"")
    assert "The picture cannot be read." in page(quality)
    (tmp_path / "images" / "0007.png").unlink()
    assert "The picture cannot be read." in page(quality)
