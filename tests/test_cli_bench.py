"""lightfold bench: a table whose numbers are those of the runs below it, and what goes wrong is in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightfold.cli import bench
from lightfold.errors import CaptureError, ConfigError, LightfoldError

SAMPLE = Path(__file__).resolve().parents[1] / "examples" / "sample"


def test_one_table_of_all_trainings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quality", str(SAMPLE), "--methods", "ngp:fast", "neus:fast", "--minutes", "0.02", "--out", str(tmp_path)]
    bench.main([*words, "--", "--scene.max-side", "48"])
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["ngp:fast", "neus:fast"]
    for row in rows:
        written = json.loads((tmp_path / "sample" / row["method"].replace(":", "-") / "eval.json").read_text())
        assert row["psnr"] == written["mean"]["psnr"] and row["protocol"]["view_count"] == 8
    table = (tmp_path / "bench.md").read_text()
    assert f"| `ngp:fast` | ours | {rows[0]['psnr']:.2f} dB |" in table and "8 views (test) at 48x36" in table
    assert table.strip() in capsys.readouterr().out


def test_a_method_that_fails_is_a_line_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    words = ["quality", str(tmp_path / "empty"), "--methods", "ngp", "--minutes", "0.01", "--out", str(tmp_path)]
    with pytest.raises(LightfoldError, match=r"bench\.md says why"):
        bench.main(words)
    (row,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert "psnr" not in row and row["failure"] in (tmp_path / "bench.md").read_text()


def test_published_figures_stand_beside_ours_and_say_whose_they_are() -> None:
    figures, how = bench.published("nerf_synthetic", "lego") or ([], "")
    assert ("NeRF (paper)", 32.54, "1-2 days, V100") in figures and "200 test views" in how
    assert bench.published("captures", "lego") is None and bench.published("nerf_synthetic", "fox") is None
    text = bench.written([{"capture": "lego", "of": "nerf_synthetic", "method": "ngp", "failure": "no luck"}])
    assert "| NeRF (paper) | published | 32.54 dB |" in text and "no like for like" in text


@pytest.mark.parametrize(
    "words",
    [[], ["speed", "x"], ["quality"], ["quality", "x", "--minutes", "0"], ["quality", "x", "--methods", "gnp"]],
)
def test_what_cannot_be_measured_is_said_at_once(words: list[str]) -> None:
    with pytest.raises(ConfigError):
        bench.main(words)


def test_a_capture_that_is_not_there_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="There is nothing at"):
        bench.main(["quality", str(SAMPLE), str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
