"""The published numbers are those of the records, and the benchmarks measure what they say they measure."""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightfold.ops import HashGrid, hash_encode
from lightfold.ops.backend import bfloat16_pays

REPOSITORY = Path(__file__).resolve().parents[1]
if str(REPOSITORY) not in sys.path:
    sys.path.append(str(REPOSITORY))  # The benchmarks are a package of the repository, not of what is installed.

from benchmarks import measure, peer_torch, quality, record, synthetic, table, trained_on  # noqa: E402


def envelope(name: str, results: dict[str, Any], protocol: dict[str, Any] | None = None) -> dict[str, Any]:
    """A record as `recorded` writes it."""
    return {
        "format": 1,
        "name": name,
        "quick": False,
        "date": "2026-01-02T03:04:05+00:00",
        "commit": {"id": "0123456789abcdef", "dirty": False},
        "command": f"python -m benchmarks.{name}",
        "load_average": {"before": [0.5, 0.5, 0.5], "after": [2.0, 1.0, 0.7]},
        "seconds": {"wall": 1.0, "cpu": 2.0},
        "machine": {"processor": "A processor", "cores": 2, "instruction_set": "avx2"},
        "protocol": protocol or {},
        "results": results,
    }


def quality_record(name: str, psnr: list[float]) -> dict[str, Any]:
    """A quality case with these scores, one per seed."""
    runs = [
        {
            "seed": seed,
            "psnr": value,
            "psnr_of_the_worst_view": value - 1,
            "psnr_of_the_best_view": value + 1,
            "ssim": 0.9,
            "training_wall_seconds": 15.0,
            "rays_per_second": 120_000.0,
            "looks": [{"seconds": 5.0, "psnr": 25.5, "views": 4}],
            "seconds_to": {"25 dB": 5.0, "27 dB": None},
        }
        for seed, value in enumerate(psnr)
    ]
    protocol = {"capture": "fox", "method": "ngp:fast", "seconds": 15, "seeds": list(range(len(psnr)))}
    results = {"runs": runs, "over_seeds": quality.over_seeds(runs)}
    return envelope(f"quality-{name}", results, protocol | {"evaluation": {"resolution": ["270x480"]}})


def row_of(page: str, what: str) -> list[str]:
    """Cells of the first row of a Markdown table that begins so."""
    line = next(line for line in page.splitlines() if line.startswith(f"| {what}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


# ------------------------------------------------------------------------------------------------ published numbers


@pytest.mark.parametrize("path", sorted((REPOSITORY / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_every_measurement_finds_what_it_measures(path: Path) -> None:
    """They are run by hand and seldom: a function that was renamed must not wait until then to be missed."""
    if path.stem != "__main__":
        assert import_module(f"benchmarks.{path.stem}").__doc__


def test_the_published_page_is_what_the_committed_records_say() -> None:
    records = record.load(record.COMMITTED)
    assert table.PAGE.read_text(encoding="utf-8") == table.page(records), "run `python -m benchmarks.table`"


def test_the_readme_shows_what_the_committed_records_say() -> None:
    text = table.README.read_text(encoding="utf-8") if table.README.exists() else f"{table.BEGIN}\n{table.END}"
    promised = table.promises(record.load(record.COMMITTED), only_measured=True)
    written = table.with_table(text, promised)
    assert promised in written
    assert not table.README.exists() or written == text, "run `python -m benchmarks.table`"


def test_committed_records_name_no_folder_of_the_machine_they_come_from() -> None:
    texts = {file.name: file.read_text(encoding="utf-8") for file in record.COMMITTED.glob("*.json")}
    assert [name for name, text in texts.items() if '"/' in text or " /" in text or ":\\" in text] == []


def test_bars_are_judged_by_the_mean_and_shown_with_their_range() -> None:
    records = {r["name"]: r for r in (quality_record("fox-15s", [24.0, 25.0, 25.5]), quality_record("fox-60s", [27.5]))}
    page = table.page(records)
    assert row_of(page, "fox, `ngp:fast`, 15 s")[1:] == ["24.83 dB (24.00 to 25.50)", "≥ 25.00 dB", "", "**not met**"]
    assert row_of(page, "fox, `ngp`, 60 s")[1:] == ["27.50 dB", "≥ 27.00 dB", "", "met"]
    assert row_of(page, "fox, `ngp:big`, 5 min")[1] == "not measured"
    assert row_of(page, "fox-15s")[2] == "24.83 ± 0.76"
    assert row_of(page, "quality-fox-15s")[3:5] == ["`012345678`", "0.5 to 2.0"]


def test_beyond_and_smaller_is_better() -> None:
    row = table.Row("a wait", table.number("wait", "seconds"), "{:.1f} s", 10, 5, at_most=True)
    verdicts = {seconds: row.verdict(table.Value(seconds)) for seconds in (4.0, 5.0, 9.0, 11.0)}
    assert verdicts == {4.0: "met, and beyond", 5.0: "met, and beyond", 9.0: "met", 11.0: "**not met**"}
    assert row.target(row.bar) == "≤ 10.0 s"
    hoped = table.Row("a hope", table.number("wait", "seconds"), "{:.1f}", None, 3)
    assert [hoped.verdict(table.Value(v)) for v in (2.0, 3.0)] == ["not reached", "reached"]


def test_a_number_that_was_not_measured_is_not_invented() -> None:
    find = table.number("memory", "own_growth_over_decoded_size")
    for records in ({}, {"memory": envelope("memory", {})}):
        with pytest.raises(KeyError):
            find(records)
    assert table.promises({}, only_measured=True) == table.UNMEASURED


def test_the_table_goes_between_the_markers_and_nowhere_else() -> None:
    text = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    once = table.with_table(text, "| new |")
    assert once == f"before\n{table.BEGIN}\n| new |\n{table.END}\nafter\n"
    assert table.with_table(once, "| new |") == once
    with pytest.raises(ValueError, match="once each"):
        table.with_table("no markers", "| new |")


def test_sections_of_every_benchmark_can_be_written() -> None:
    rate = {"samples_per_second": 2e6, "samples_per_cpu_second": 1e6}
    peer = {"grid": "L16 F2 2^19", "rays": {"torch, index": rate}, "random": {"torch, index": rate}}
    ways = ("separate ops, rays", "separate ops, random", "fused, rays, float32", "fused, rays")
    ours = {"grid": "L16 F2 2^19", "rates": dict.fromkeys(ways, rate)}
    sides = {f"torch, {name} grid": peer for name in ("common", "ours")}
    sides |= {f"lightfold, {name} grid": ours for name in ("common", "ours")}
    step = {"preset": "ngp", "milliseconds": 2.0, "rays_per_second": 1e5}
    step |= {"samples_evaluated_per_second": 2e6, "samples_kept_per_second": 1e6}
    grid = {f"{d}_{k}_points_per_second": 2e7 for d in ("forward", "backward") for k in ("random", "rays")}
    network = {"network": "density 32-64-16", "direction": "forward", "gflops": 80.0}
    network |= {"share_of_peak": 0.8, "samples_per_second": 1e6}
    one_thread = {
        "peak_gflops": 100.0,
        "peak_gflops_of_pairs": 200.0,
        "networks": [network | {"precision": precision} for precision in ("float32", "bfloat16")],
        "hash_encoding": [{"grid": "line L8 F4 2^16", **grid, "forward_rays_over_prototype": 0.7}],
        "rendering": [{"op": "march", "samples_per_second": 1e7, "wall": 0.001}],
        "adam": [{"kind": "dense", "parameters_per_second": 1e9, "gigabytes_per_second": 32.0}],
        "training_step": [step],
    }
    shares = {"shares": {"Adam": 0.2, "marching": 0.1}, "milliseconds_per_step": 2.0, "ops_apart_over_fused_pass": 1.1}
    described = ("points", "timed", "networks", "threads")
    found = [
        envelope("kernels", {"1 thread": one_thread, "all_threads": 1}),
        envelope("peer_torch", sides | {"ratios": peer_torch.ratios(sides)}, dict.fromkeys(described, 2)),
        envelope("breakdown", {"ngp": shares | {"largest_other_share": 0.2}}, {"capture": "fox"}),
        envelope(
            "memory",
            {
                "captures": [{"pictures": 50, "decoded_bytes": 1e6, "peak_own_bytes": 3e8, "peak_bytes": 4e8}],
                "own_growth_over_decoded_size": 0.01,
            },
            {"method": "ngp", "pictures": "480x320", "own": "own"},
        ),
        envelope(
            "poses",
            {
                "lund": {
                    "registered": 29,
                    "pictures": 29,
                    "largest_groups": [29],
                    "verdict": "usable",
                    "wall_seconds": 90.0,
                    "tries": ["Incremental mapping: 29 of 29 pictures in one model."],
                    "reasons": ["The focal length came out as 733 px, -29 % against the header of the pictures."],
                },
                "unrelated": {"error": "No two pictures could be matched.", "wall_seconds": 3.0},
            },
        ),
        envelope("first_picture", {"fox": {"first_time_seconds": 6.0, "again_seconds": 4.0, "options": ""}}),
        envelope("start_up", {"lightfold --help": {"wall": 0.2, "cpu": 0.2}}),
    ]
    page = table.page({r["name"]: r for r in found})
    assert page.count("\n## ") == len(found) + 1
    assert row_of(page, "networks of width 64")[1::3] == ["0.80", "met"]
    assert row_of(page, "hash encoding over the prototype")[1::3] == ["0.70 x", "**not met**"]
    assert row_of(page, "largest stage")[1::3] == ["20 %", "**not met**"]
    assert row_of(page, "samples trained per second")[1] == "1.0 x"
    assert row_of(page, "`lightfold run` on fox")[4] == "met"
    assert row_of(page, "`lightfold --help`")[1] == "0.20 s"
    assert row_of(page, "lund: pictures of 29")[4] == "met"
    assert row_of(page, "lund |")[1:3] == ["29 of 29", "usable"]
    assert row_of(page, "unrelated |")[5] == "No two pictures could be matched."


def test_found_poses_are_compared_seed_by_seed() -> None:
    scores = {"given": [28.0, 28.4], "found": [28.1, 28.2]}
    runs = {name: [{"seed": i, "psnr": v, "ssim": 0.8} for i, v in enumerate(each)] for name, each in scores.items()}
    results = trained_on.summary(runs)
    assert results["psnr_gain"]["mean"] == pytest.approx(-0.05)
    assert results["psnr_gain"]["min"] == pytest.approx(-0.2)
    page = table.promises({"trained_on": envelope("trained_on", results)})
    assert row_of(page, "fox, `ngp`, 8000 steps")[1:5] == [
        "-0.05 dB (-0.20 to +0.10)",
        "≥ -0.20 dB",
        "≥ +0.00 dB",
        "met",
    ]


# ------------------------------------------------------------------------------------------------------ measuring


def test_a_record_is_written_whole_and_only_when_the_block_ends_well(tmp_path: Path) -> None:
    options = argparse.Namespace(quick=True, out=tmp_path, data=None)
    with record.recorded("one", options) as made:
        made.results |= {"rate": 1 / 3, "broken": float("nan")}
    written = json.loads((tmp_path / "one.json").read_text())
    assert written["results"] == {"rate": 0.333333, "broken": None}
    assert written["machine"]["cores"] >= 1 and written["quick"] is True and "protocol" in written
    assert record.load(tmp_path) == {"one": written}
    with pytest.raises(ZeroDivisionError), record.recorded("two", options):
        raise ZeroDivisionError
    assert not (tmp_path / "two.json").exists()


def test_best_prepares_every_run_and_keeps_the_fastest() -> None:
    calls: list[str] = []
    timing = measure.best(lambda: calls.append("run"), repeats=3, seconds=0.0, before=lambda: calls.append("before"))
    assert calls == ["before", "run"] * len(calls[::2]) and timing.repeats == len(calls) // 2 - 1
    assert 0 <= timing.wall <= timing.median


def test_own_memory_sees_what_is_held_and_let_go() -> None:
    if measure.status_bytes("RssAnon") is None:
        pytest.skip("this system does not tell own memory from mapped files")
    before = measure.status_bytes("RssAnon") or 0
    with measure.own_memory(every=0.001) as memory:
        held = torch.ones(50_000_000, dtype=torch.uint8)
        assert int(held[-1]) == 1
        inside = measure.status_bytes("RssAnon") or 0
    assert memory.peak is not None and memory.peak >= before
    assert inside - before > 40_000_000


@pytest.mark.parametrize("way", list(peer_torch.LOOK_UPS))
def test_the_peer_encodes_what_ours_encodes(way: str) -> None:
    grid = HashGrid(6, 2, 12, 8, 256, "xor")
    assert any(grid.dense) and not all(grid.dense)
    field = peer_torch.TorchField(grid, peer_torch.LOOK_UPS[way])
    x = torch.rand(200, 3)
    upstream = torch.randn(200, grid.width)
    field.encode(x).backward(upstream)
    table_ours = field.table.detach().clone().requires_grad_()
    ours = hash_encode(x, table_ours, grid)
    ours.backward(upstream)
    torch.testing.assert_close(field.encode(x), ours, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(field.table.grad, table_ours.grad, rtol=1e-4, atol=1e-4)


def test_the_comparison_runs_on_both_sides() -> None:
    grids = {"common": HashGrid(4, 2, 12, 8, 64, "xor"), "ours": HashGrid(2, 4, 10, 8, 64, "xor")}
    effort = {"repeats": 1, "seconds": 0.0}
    results = peer_torch.compare(8 * peer_torch.SAMPLES_PER_RAY, 2, effort, compiled=False, grids=grids)
    for clock in ("samples_per_second", "samples_per_cpu_second"):
        assert len(results["ratios"][clock]) == 7 + bfloat16_pays(torch.device("cpu"))
        assert all(ratio > 0 for ratio in results["ratios"][clock].values())


def test_looks_are_the_rows_with_a_score() -> None:
    rows = [
        {"step": 100, "seconds": 1.0, "cpu_seconds": 2.0},
        {"step": 150, "held_out_psnr": 24.0, "held_out_views": 4, "seconds": 2.0},
        {"step": 200, "seconds": 3.0},
        {"step": 260, "held_out_psnr": 27.5, "held_out_views": 4, "seconds": 4.5},
    ]
    looks = quality.seen_while_training(rows)
    assert [(look["seconds"], look["psnr"]) for look in looks] == [(2.0, 24.0), (4.5, 27.5)]
    reached = quality.seconds_to(looks)
    assert (reached["25 dB"], reached["27 dB"], reached["28.5 dB"]) == (4.5, 4.5, None)


def test_spread_over_seeds_and_counting_of_steps() -> None:
    found = quality.over_seeds([{"seed": 0, "psnr": 25.0, "looks": []}, {"seed": 1, "psnr": 26.0, "looks": []}])
    assert list(found) == ["psnr"]
    assert found["psnr"] == {"mean": 25.5, "min": 25.0, "max": 26.0, "stdev": pytest.approx(0.5**0.5)}
    method = SimpleNamespace(stats={"rays": 3, "samples": 50}, after_step=lambda step, optim: None)
    totals = quality.count_steps(method)
    for step in range(4):
        method.after_step(step, None)
    assert totals == {"steps": 4, "rays": 12, "samples": 200, "kept": 0}


def test_the_ball_looks_the_same_from_a_file_and_from_the_formula(tmp_path: Path) -> None:
    from lightfold.formats import open_capture
    from lightfold.scene import SceneConfig, load_scene

    capture = open_capture(synthetic.write_capture(tmp_path / "capture", 5, 48, 32))
    assert len(capture.posed().frames) == 5
    scene = load_scene(capture, SceneConfig(), tmp_path / "cache")
    view = scene.view(0)
    camera = synthetic.ring(5, 48, 32)[0]
    rays = camera.rays(camera.pixel_grid().double())
    exact = synthetic.shade(rays.origin.float(), rays.direction.float()).reshape(32, 48, 3)
    assert float((view.rgb - exact).abs().mean()) < 0.03
    drawn = synthetic.BallScene(bounded=True).pixels(100, torch.Generator().manual_seed(0))
    assert drawn.rgb.shape == (100, 3) and float(drawn.rgb.std()) > 0.05
    torch.testing.assert_close(drawn.rays.direction.norm(dim=1), torch.ones(100))
