"""The report opens from disk, shows what the run has, and lets nothing that the run holds act."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest

from lightfold import pictures
from lightfold.errors import RunError
from lightfold.report import line_chart, read_metrics, write_report

HOSTILE = '<script>alert("1")</script>&'


class Page(HTMLParser):
    """Tags, attributes and nesting of a page."""

    VOID = frozenset({"meta", "img", "line", "polyline", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def evaluation(name: str, picture: object) -> dict[str, object]:
    row = {"name": name, "index": 0, "psnr": 27.125, "ssim": 0.875, "seconds": 0.25, "picture": picture}
    return {
        "mean": {"psnr": 27.125, "ssim": 0.875, "lpips": None},
        "timing": {"seconds_per_view": 0.25, "rays_per_second": 123456.0, "peak_memory_bytes": 10**9},
        "protocol": {"view_count": 1, "background": [0.0, 0.0, 0.0], HOSTILE: HOSTILE, "8-bit quantised": True},
        "views": [row],
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with everything in it, under a name that needs escaping."""
    folder = tmp_path / "my <b>run</b> & co"
    pictures.save_picture(folder / "eval" / "0000 #1 50%.jpg", np.zeros((8, 8, 3), dtype=np.uint8))
    pictures.save_picture(folder / "renders" / "still<i>.png", np.zeros((8, 8, 3), dtype=np.uint8))
    (folder / "renders" / "orbit.mp4").write_bytes(b"not really a video")
    (folder / "eval.json").write_text(json.dumps(evaluation(HOSTILE, "eval/0000 #1 50%.jpg")))
    (folder / "eval_train.json").write_text(json.dumps(evaluation("x", None)))
    (folder / "scene.json").write_text(json.dumps({"bounded": True, "train": [1, 2], "notes": [HOSTILE]}))
    about = {"format": 1, "versions": {"torch": HOSTILE, "python": "3.11"}}
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "config.yaml").write_text(f"capture: '{HOSTILE}'\n")
    lines = [
        json.dumps({"step": i, "loss": 1 / (i + 1), "psnr": 20 + i / 100, "rays_per_second": 1e5}) for i in range(900)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 900, "lo')
    return folder


def test_a_full_run_shows_its_scores_curves_pictures_and_video(run: Path) -> None:
    target = write_report(run)
    text = target.read_text(encoding="utf-8")
    page = Page(text)
    assert target == run / "report.html"
    assert {"svg", "polyline", "video", "img", "table", "pre"} <= set(page.tags)
    assert text.count("<svg") == 3
    for expected in ("27.12", "0.8750", "123,456", "loss", "8-bit quantised", "eval_train", "899", "versions torch"):
        assert expected in text
    assert 'name="viewport"' in text


def test_every_link_is_relative_and_leads_to_a_file_in_the_folder(run: Path) -> None:
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert len(page.links) == 6  # two pictures with a link each, the video and its link
    for link in page.links:
        assert link.startswith("./")
        assert (run / unquote(link)).is_file()


def test_what_the_run_holds_is_text(run: Path) -> None:
    text = write_report(run).read_text(encoding="utf-8")
    assert "script" not in Page(text).tags
    assert "<script" not in text
    assert "<b>run" not in text
    # The view's name (thrice), the protocol's key and value, a note of the scene, a version, the configuration.
    assert text.count("&lt;script&gt;") == 8
    assert "script-src 'none'" in text
    assert not re.search(r"""(src|href)=["'](https?:)?//""", text)


@pytest.mark.parametrize(
    "picture",
    [
        "../secret.png",
        "/etc/secret.png",
        "javascript:alert(1)//.png",
        "https://example.org/a.png",
        "eval/no.png",
        7,
        "a\0.png",
    ],
)
def test_a_picture_outside_the_folder_is_not_linked(run: Path, picture: object) -> None:
    pictures.save_picture(run.parent / "secret.png", np.zeros((4, 4, 3), dtype=np.uint8))
    (run / "eval.json").write_text(json.dumps(evaluation("x", picture)))
    text = write_report(run).read_text(encoding="utf-8")
    assert "secret.png" not in text
    assert "There are no pictures of held-out views yet" in text


def test_an_empty_run_is_a_page_of_sentences(tmp_path: Path) -> None:
    text = write_report(tmp_path).read_text(encoding="utf-8")
    Page(text)
    for sentence in (
        "This run has not been evaluated yet.",
        "There is no video yet",
        "No training steps were logged yet.",
        "There is no evaluation yet",
        "config.yaml is missing",
        "scene.json is missing",
    ):
        assert sentence in text
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]


@pytest.mark.parametrize(
    "content",
    ["", "[1, 2]", '{"mean": 3, "views": "x", "protocol": [], "timing": 1}', '{"views": [1, {"psnr": "high"}]}',
     '{"mean": {"psnr": 1e999, "ssim": true}}', "[" * 100_000, "\x00\xff"],
)  # fmt: skip
def test_damaged_files_still_give_a_page(tmp_path: Path, content: str) -> None:
    for name in ("eval.json", "eval_x.json", "scene.json", "metrics.jsonl"):
        (tmp_path / name).write_text(content, encoding="latin-1")
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert ">nan" not in text.lower()
    assert Page(text).tags.count("h1") == 1


def test_an_opened_run_may_be_given_instead_of_its_folder(tmp_path: Path) -> None:
    run = SimpleNamespace(path=tmp_path)
    assert write_report(run) == tmp_path / "report.html"  # type: ignore[arg-type]


def test_a_missing_folder_gives_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder"):
        write_report(tmp_path / "nowhere")


def test_metrics_pass_over_damaged_lines(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 0.5, "note": "x", "ok": true}\n\n[1]\nnull\n{"step": 2, "loss": NaN}\n{"step"')
    assert read_metrics(file) == [{"step": 1.0, "loss": 0.5}, {"step": 2.0}]
    assert read_metrics(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("log", [False, True])
def test_curves_stay_in_their_frame(log: bool) -> None:
    points = [(float(i), 10.0 ** (-i / 500)) for i in range(2000)]
    chart = line_chart("Loss", {"loss": points, HOSTILE: [(0.0, 1.0), (3.0, 1.0)]}, log)
    Page(chart)
    xy = [
        tuple(map(float, pair.split(","))) for line in re.findall(r'points="([^"]+)"', chart) for pair in line.split()
    ]
    assert 300 < len(xy) <= 402
    assert all(64 <= x <= 628 and 30 <= y <= 230 for x, y in xy)
    assert "<script" not in chart


def test_a_constant_curve_has_an_axis() -> None:
    chart = line_chart("PSNR", {"psnr": [(0.0, 20.0), (1.0, 20.0)]})
    assert "20" in chart
    Page(chart)
