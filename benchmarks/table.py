"""docs/results.md and the README's table, made from the records in benchmarks/results. No number is typed by hand.

python -m benchmarks.table            rewrite both
python -m benchmarks.table --print    show what the records of runs/benchmarks say, and write nothing
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .record import COMMITTED, REPOSITORY, SCRATCH, load, parser

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
PAGE = REPOSITORY / "docs" / "results.md"
README = REPOSITORY / "README.md"
UNMEASURED = "Nothing has been measured yet."
Records = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Value:
    """A measured number, with its least and greatest over seeds where there are several."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """Something promised: `bar` must be reached, `beyond` is hoped for; with `at_most`, smaller is better.

    `value` finds the number in the records and raises KeyError where it was not measured. `format` writes a number.
    """

    what: str
    value: Callable[[Records], Value]
    format: str
    bar: float | None
    beyond: float | None = None
    at_most: bool = False

    def reached(self, value: Value, target: float | None) -> bool:
        """Whether the mean is on the right side of a target."""
        if target is None:
            return False
        return value.mean <= target if self.at_most else value.mean >= target

    def verdict(self, value: Value) -> str:
        """In words, so that it reads without colours."""
        if self.bar is None and self.beyond is None:
            return ""
        if self.reached(value, self.beyond):
            return "met, and beyond" if self.bar is not None else "reached"
        if self.bar is None:
            return "not reached"
        return "met" if self.reached(value, self.bar) else "**not met**"

    def target(self, number: float | None) -> str:
        """A target with its direction."""
        return "" if number is None else f"{'≤' if self.at_most else '≥'} {self.format.format(number)}"


# ------------------------------------------------------------------------------------------------ finding numbers


def over_seeds(case: str, key: str, factor: float = 1.0) -> Callable[[Records], Value]:
    """A number of a quality case, over its seeds."""

    def find(records: Records) -> Value:
        found = records[f"quality-{case}"]["results"]["over_seeds"][key]
        return Value(found["mean"] * factor, found["min"] * factor, found["max"] * factor)

    return find


def number(name: str, *keys: str, scale: float = 1.0) -> Callable[[Records], Value]:
    """A number somewhere in a record, times `scale`."""

    def find(records: Records) -> Value:
        found = records[name]["results"]
        for key in keys:
            found = found[key]
        if found is None:
            raise KeyError(keys[-1])
        return Value(scale * float(found))

    return find


def with_poses(capture: str) -> Callable[[Records], Value]:
    """Per cent of a capture's pictures that have a pose in the chosen model."""

    def find(records: Records) -> Value:
        found = records["poses"]["results"][capture]
        return Value(100 * found["registered"] / found["pictures"])

    return find


def gain_of_found_poses(records: Records) -> Value:
    """Decibels that training on the found poses gives over training on the given ones, seed by seed."""
    found = records["trained_on"]["results"]["psnr_gain"]
    return Value(found["mean"], found["min"], found["max"])


def references() -> dict[str, Any]:
    """What others measured: the prototype and other programs."""
    return json.loads((REPOSITORY / "benchmarks" / "references.json").read_text(encoding="utf-8"))


def network_share(precision: str) -> Callable[[Records], Value]:
    """Share of the precision's own peak at one thread over the networks of width 64: their mean, and the range."""

    def find(records: Records) -> Value:
        rows = records["kernels"]["results"]["1 thread"]["networks"]
        shares = [row["share_of_peak"] for row in rows if "-64-" in row["network"] and row["precision"] == precision]
        return Value(mean(shares), min(shares), max(shares))

    return find


def encoding_over_prototype(records: Records) -> Value:
    """The best row of the prototype against the same here: all its columns, geometric mean, with the extremes."""
    best = {"line L8 F4 2^14", "line L8 F4 2^16", "line L8 F4 2^18"}
    rows = [row for row in records["kernels"]["results"]["1 thread"]["hash_encoding"] if row["grid"] in best]
    ratios = [value for row in rows for key, value in row.items() if key.endswith("_over_prototype")]
    if not ratios:
        raise KeyError("no rows of the prototype")
    product = 1.0
    for ratio in ratios:
        product *= ratio ** (1 / len(ratios))
    return Value(product, min(ratios), max(ratios))


def largest_other_stage(records: Records) -> Value:
    """The largest share of a step, over presets, of anything that is neither a network nor the encoding."""
    shares = [found["largest_other_share"] for found in records["breakdown"]["results"].values()]
    return Value(100 * max(shares), 100 * min(shares), 100 * max(shares))


def mesh_seconds(records: Records) -> Value:
    """From the trained run to its mesh: the views that judge and colour it are rendered first."""
    return Value(
        sum(number("mesh", *keys)(records).mean for keys in (("render_views_seconds",), ("fusion", "seconds")))
    )


def over_crops(records: Records) -> Value:
    """Processor seconds of unrelated crops over those of the panoramas. Where the crops were stopped, what they had
    taken by then bounds the ratio from below; a bound that proves nothing is no measurement."""
    found = records["panoramas"]["results"]["speed_up"]
    if found["at_least"] and found["cpu"] < records["panoramas"]["protocol"]["bars"]["speed_up"]:
        raise KeyError("speed_up")
    return Value(float(found["cpu"]))


def over_nerfacto(records: Records) -> Value:
    """Rays per second in 300 s on fox, over nerfacto's."""
    return over_seeds("fox-300s", "rays_per_second", 1 / references()["peers"]["nerfacto"]["rays_per_second"])(records)


def above(peer: str) -> Callable[[Records], Value]:
    """Decibels above another program after 300 s on fox."""

    def find(records: Records) -> Value:
        psnr, theirs = over_seeds("fox-300s", "psnr")(records), references()["peers"][peer]["psnr"]
        low, high = psnr.low or psnr.mean, psnr.high or psnr.mean
        return Value(psnr.mean - theirs, low - theirs, high - theirs)

    return find


def torch_ratio(which: str) -> Callable[[Records], Value]:
    """Samples per second over plain PyTorch, by the wall clock; processor time gives the other end of the range."""

    def find(records: Records) -> Value:
        ratios = records["peer_torch"]["results"]["ratios"]
        clocks = [ratios[clock][which] for clock in ("samples_per_second", "samples_per_cpu_second")]
        return Value(clocks[0], min(clocks), max(clocks))

    return find


def mean(values: list[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def dtu(method: str, key: str, scale: float = 1.0) -> Callable[[Records], Value]:
    """A number of one method's mesh or field of DTU's scan 65."""
    return number("dtu", method, key, scale=scale)


DEGREES = "{:.1f} degrees"
DB, RAYS, SAMPLES, TIMES, SECONDS = "{:.2f} dB", "{:.0f} k rays/s", "{:.2f} M samples/s", "{:.1f} x", "{:.2f} s"
ROWS = [
    Row("fox, `ngp:fast`, 15 s of training: held-out PSNR", over_seeds("fox-15s", "psnr"), DB, 25),
    Row("fox, `ngp`, 30 s", over_seeds("fox-30s", "psnr"), DB, None, 27),
    Row("fox, `ngp`, 60 s", over_seeds("fox-60s", "psnr"), DB, 27),
    Row("fox, `ngp:big`, 2 min", over_seeds("fox-120s", "psnr"), DB, None, 28.5),
    Row("fox, `ngp:big`, 5 min", over_seeds("fox-300s", "psnr"), DB, 28.5),
    Row("fox, `ngp:big`, 15 min", over_seeds("fox-900s", "psnr"), DB, None, 30),
    Row("lego 800x800, `ngp`, 1 min", over_seeds("lego-60s", "psnr"), DB, None, 30),
    Row("lego 800x800, `ngp`, 2 min", over_seeds("lego-120s", "psnr"), DB, 30),
    Row("lego 800x800, `ngp:big`, 3 min", over_seeds("lego-180s", "psnr"), DB, None, 33),
    Row("lego 800x800, `ngp:big`, 6 min", over_seeds("lego-360s", "psnr"), DB, 33),
    Row("lego 800x800, `ngp:big`, 15 min", over_seeds("lego-900s", "psnr"), DB, None, 35),
    Row("`ngp:fast` training on fox", over_seeds("fox-15s", "rays_per_second", 1e-3), RAYS, 110, 165),
    Row("the same, samples evaluated", over_seeds("fox-15s", "samples_evaluated_per_second", 1e-6), SAMPLES, 2, 3),
    Row("`ngp:big` training on fox", over_seeds("fox-300s", "rays_per_second", 1e-3), RAYS, 55, 82.5),
    Row("the same, samples evaluated", over_seeds("fox-300s", "samples_evaluated_per_second", 1e-6), SAMPLES, 1, 1.5),
    Row(
        "networks of width 64, share of the multiply-add peak, 1 thread (range: of 4)",
        network_share("float32"),
        "{:.2f}",
        0.75,
    ),
    Row("the same in pairs of bfloat16, of theirs", network_share("bfloat16"), "{:.2f}", None),
    Row(
        "hash encoding over the prototype's best rows, 1 thread (range: rows)", encoding_over_prototype, "{:.2f} x", 0.8
    ),
    Row("largest stage of a step besides networks and encoding", largest_other_stage, "{:.0f} %", 15, at_most=True),
    Row(
        "samples trained per second over plain PyTorch, each with its own grid",
        torch_ratio("each with its own grid, fused"),
        TIMES,
        25,
        50,
    ),
    Row("the same, ours in float32", torch_ratio("each with its own grid, fused, in float32"), TIMES, None),
    Row("the same, both in bfloat16", torch_ratio("each with its own grid, fused, both in bfloat16"), TIMES, None),
    Row("the same with the same grid (16 levels of 2, 2^19)", torch_ratio("same grid, fused"), TIMES, 25, 50),
    Row("fox, 5 min: rays/s over nerfacto's", over_nerfacto, "{:.0f} x", 100),
    Row("fox, 5 min: PSNR above nerfacto", above("nerfacto"), "{:.1f} dB", 15),
    Row("fox, 5 min: PSNR above OpenSplat", above("opensplat"), "{:.1f} dB", 5),
    Row(
        "peak memory of training and evaluating on fox, `ngp:big`",
        over_seeds("fox-300s", "peak_bytes", 1e-9),
        "{:.2f} GB",
        2,
        at_most=True,
    ),
    Row(
        "memory per further photograph, of its decoded size",
        number("memory", "own_growth_over_decoded_size"),
        "{:.2f}",
        0.1,
        at_most=True,
    ),
    Row(
        "memory of training on 10,000 photographs in a window of a fifth of them",
        number("memory", "window", "peak_own_bytes", scale=1e-9),
        "{:.2f} GB",
        2,
        at_most=True,
    ),
    Row(
        "memory of a thread while it decodes 24 megapixels",
        number("memory", "one_large_photograph", "own_bytes", scale=1e-9),
        "{:.2f} GB",
        None,
    ),
    Row(
        "`lightfold run` on fox to the first picture, first time",
        number("first_picture", "fox", "first_time_seconds"),
        "{:.1f} s",
        10,
        5,
        at_most=True,
    ),
    Row(
        "a held-out fox view, 270x480, `ngp`",
        over_seeds("fox-60s", "seconds_per_view"),
        SECONDS,
        0.4,
        0.2,
        at_most=True,
    ),
    Row(
        "a held-out lego view, 800x800, `ngp`", over_seeds("lego-120s", "seconds_per_view"), SECONDS, 3, 1, at_most=True
    ),
    Row("fox, poses found anew: pictures of 50", number("poses", "fox", "registered"), "{:.0f}", 50),
    Row(
        "the same, median rotation off the reference",
        number("poses", "fox", "errors", "rotation_degrees", "median"),
        "{:.3f} degrees",
        0.3,
        at_most=True,
    ),
    Row(
        "the same, median position off the reference, of the extent",
        number("poses", "fox", "errors", "position_percent", "median"),
        "{:.3f} %",
        0.2,
        at_most=True,
    ),
    Row("the same, from photos to poses", number("poses", "fox", "wall_seconds"), "{:.0f} s", 60, 35, at_most=True),
    Row(
        "fox, `ngp`, 8000 steps: found poses over the given ones, held-out PSNR (range: seeds)",
        gain_of_found_poses,
        "{:+.2f} dB",
        -0.2,
        0,
    ),
    Row("sceaux_castle: pictures of 11 with a pose", number("poses", "sceaux_castle", "registered"), "{:.0f}", 11),
    Row("lund: pictures of 29 with a pose", number("poses", "lund", "registered"), "{:.0f}", 29),
    # One of the 16 shows too little of what the others show, which its report says.
    Row("odm_banana: pictures of 16 with a pose", number("poses", "odm_banana", "registered"), "{:.0f}", 15),
    Row("beer_can_video: chosen frames in one model", with_poses("beer_can_video"), "{:.0f} %", 95),
    Row(
        "the same, median rotation off the longest sound part of the reference",
        number("poses", "beer_can_video", "errors", "rotation_degrees", "median"),
        "{:.2f} degrees",
        None,
    ),
    Row("theta_office: panoramas of 21 with a pose", number("poses", "theta_office", "registered"), "{:.0f}", None),
    Row(
        "frames of a 10-minute 4K video chosen, seconds of video per second",
        number("video", "choice_video_seconds_per_second"),
        TIMES,
        1,
    ),
    Row("the same, memory", number("video", "peak_bytes", scale=1e-9), "{:.2f} GB", 1, at_most=True),
    Row(
        "a rendered walk of 120 panoramas, poses found: share of them",
        number("panoramas", "panoramas", "registered_share", scale=100),
        "{:.0f} %",
        98,
    ),
    Row(
        "the same, median rotation off the truth",
        number("panoramas", "panoramas", "rotation_degrees", "median"),
        "{:.3f} degrees",
        0.05,
        at_most=True,
    ),
    Row(
        "the same, median position off the truth, of the path",
        number("panoramas", "panoramas", "position_percent_of_path", "median"),
        "{:.3f} %",
        0.05,
        at_most=True,
    ),
    Row("the same, processor time of unrelated crops over it", over_crops, TIMES, 8),
    *(
        row
        for name, shown in (("nerf_synthetic/lego", "lego"), ("sample", "the sample"))
        for row in (
            Row(
                f"the page of {shown}: first picture after connecting",
                number("viewer", name, "first_picture_seconds"),
                SECONDS,
                1,
                at_most=True,
            ),
            Row(
                "the same, pictures while the camera moves, canvas 320x240",
                number("viewer", name, "moving_pictures_per_second"),
                "{:.1f} per second",
                5,
                15,
            ),
            Row(
                "the same, their pixels, of 76 800",
                number("viewer", name, "moving_pixels", scale=1 / 76_800),
                "{:.2f}",
                None,
            ),
            Row(
                "the same, sharp at 800x600 after",
                number("viewer", name, "settled_seconds"),
                SECONDS,
                3,
                at_most=True,
            ),
            Row(
                "the same, training is slower while somebody looks by",
                number("viewer", name, "cost_of_a_client", scale=100),
                "{:.0f} %",
                20,
                at_most=True,
            ),
            Row(
                "the same, while nobody looks",
                number("viewer", name, "cost_of_an_open_page", scale=100),
                "{:.0f} %",
                None,
            ),
        )
    ),
    Row(
        "mesh of the sample by `ngp` after 5 min, fused from its depth: Chamfer distance, of the extent",
        number("mesh", "fusion", "chamfer"),
        "{:.2f} %",
        1,
        at_most=True,
    ),
    Row(
        "the same, largest floater",
        number("mesh", "fusion", "largest_floater", scale=100),
        "{:.2f} %",
        1,
        at_most=True,
    ),
    Row(
        "the same, normals off the true ones, median", number("mesh", "fusion", "normals_median_degrees"), DEGREES, None
    ),
    Row(
        "the same, Chamfer distance where the density crosses a level",
        number("mesh", "density", "chamfer"),
        "{:.2f} %",
        1,
        at_most=True,
    ),
    Row("the same, 512^3 samples, with the views it is judged by", mesh_seconds, "{:.0f} s", 120, at_most=True),
    Row("the same, memory with its training", number("mesh", "peak_bytes", scale=1e-9), "{:.2f} GB", 4, at_most=True),
    Row("fox, `nerfacto`, 5 min of training: held-out PSNR", over_seeds("fox-nerfacto-300s", "psnr"), DB, 25),
    Row("fox, `zipnerf`, 5 min of training: held-out PSNR", over_seeds("fox-zipnerf-300s", "psnr"), DB, 25),
    Row(
        "fox, poses disturbed by 1 degree and 1 %: recovered of the PSNR that was lost, held-out poses fitted",
        number("noisy_poses", "recovered_psnr_fitted", scale=100),
        "{:.0f} %",
        90,
    ),
    Row("the same, as it stands", number("noisy_poses", "recovered_psnr", scale=100), "{:.0f} %", 90),
    Row(
        "the same, left of the turn",
        number("noisy_poses", "left_of_turn_median_degrees", scale=100),
        "{:.0f} %",
        50,
        at_most=True,
    ),
    Row(
        "the same, left of the shift",
        number("noisy_poses", "left_of_position_median_percent", scale=100),
        "{:.0f} %",
        50,
        at_most=True,
    ),
    Row(
        "mesh of the sample by `neus`, 15 min: Chamfer distance, of the extent",
        number("mesh-neus", "sdf", "chamfer"),
        "{:.2f} %",
        0.5,
        0.3,
        at_most=True,
    ),
    Row(
        "the same, normals off the true ones, median",
        number("mesh-neus", "sdf", "normals_median_degrees"),
        DEGREES,
        10,
        at_most=True,
    ),
    Row(
        "held-out views of the sample, `ngp`, 5 min: median depth off the truth",
        number("mesh", "pictures", "median_depth_percent"),
        "{:.2f} %",
        None,
    ),
    Row("the same, mean depth", number("mesh", "pictures", "depth_percent"), "{:.2f} %", None),
    Row("the same, normals", number("mesh", "pictures", "normals_degrees"), DEGREES, None),
    Row("DTU scan 65, `neus` with silhouettes, 8 min: held-out PSNR", dtu("neus", "psnr"), DB, None),
    Row("the same, `ngp`", dtu("ngp", "psnr"), DB, None),
    Row("the same, area of the mesh outside the visual hull, `neus`", dtu("neus", "outside", 100), "{:.2f} %", None),
    Row("the same, of `ngp`'s density", dtu("ngp", "outside", 100), "{:.2f} %", None),
    Row("the same, overlap with held-out silhouettes, `neus`", dtu("neus", "iou"), "{:.3f}", None),
    Row("the same, `ngp`", dtu("ngp", "iou"), "{:.3f}", None),
    Row("the same, angle between neighbouring triangles, `neus`", dtu("neus", "roughness"), DEGREES, None),
    Row("the same, `ngp`", dtu("ngp", "roughness"), DEGREES, None),
    Row("fox, `mipnerf360:small`, 30 min on one core", over_seeds("fox-mipnerf360-small-1800s", "psnr"), DB, 26.5),
    Row(
        "lego 400x400, `mipnerf360:small`, 30 min on one core",
        over_seeds("lego-half-mipnerf360-small-1800s", "psnr"),
        DB,
        26,
    ),
    Row("`lightfold --help`", number("start_up", "lightfold --help", "wall"), SECONDS, 1, at_most=True),
]
"""Everything promised, in the order of the page."""


# ------------------------------------------------------------------------------------------------------- writing


def main() -> None:
    """Rewrite the generated pages, or print the table."""
    made = parser(__doc__)
    made.add_argument("--print", action="store_true", help="print the table and write nothing")
    options = made.parse_args()
    if options.print:
        print(promises(load(options.out or SCRATCH)))
        return
    records = load(options.out or COMMITTED)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(records), encoding="utf-8")
    print(f"wrote {PAGE}")
    if README.exists() and BEGIN in (text := README.read_text(encoding="utf-8")):
        README.write_text(with_table(text, promises(records, only_measured=True)), encoding="utf-8")
        print(f"wrote the table of {README}")


def with_table(text: str, table: str) -> str:
    """A page with what stands between the markers replaced. ValueError when they are not there, once each, in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"text: expected {BEGIN} and, after it, {END}, once each")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


def promises(records: Records, only_measured: bool = False) -> str:
    """The table of what was promised beside what was measured."""
    lines = []
    for row in ROWS:
        try:
            value = row.value(records)
        except KeyError:
            if not only_measured:
                lines.append([row.what, "not measured", row.target(row.bar), row.target(row.beyond), ""])
            continue
        lines.append([row.what, shown(row, value), row.target(row.bar), row.target(row.beyond), row.verdict(value)])
    return markdown(("what", "measured", "bar", "beyond", ""), lines) if lines else UNMEASURED


def shown(row: Row, value: Value) -> str:
    """The number, with its range where it has one."""
    text = row.format.format(value.mean)
    if value.low is None or value.high is None or value.low == value.high:
        return text
    bare = row.format.split("}")[0] + "}"
    return f"{text} ({bare.format(value.low)} to {bare.format(value.high)})"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def page(records: Records) -> str:
    """docs/results.md as a whole."""
    parts = [
        "# Results",
        "Written by `python -m benchmarks.table` from the records in `benchmarks/results`; do not edit. `make bench` "
        "measures a shorter list in some minutes, `python -m benchmarks --full` all of it. Ranges are the least and "
        "the most over seeds unless a row says otherwise. *Bar* is what the project demands of itself, *beyond* what "
        "it hopes for; both were set before measuring. Scores are those of photographs that training never saw.",
        machines(records),
        promises(records),
    ]
    for name, write in SECTIONS.items():
        found = {key: record for key, record in records.items() if key == name or key.startswith(f"{name}-")}
        if found:
            parts.append(write(found))
    parts.append(others())
    return "\n\n".join(part for part in parts if part) + "\n"


def machines(records: Records) -> str:
    """On what, when and how loaded everything was measured, grouped where it agrees."""
    if not records:
        return UNMEASURED
    lines = []
    for name, record in sorted(records.items()):
        machine, commit = record["machine"], record["commit"]
        cores = "1 core" if machine["cores"] == 1 else f"{machine['cores']} cores"
        before, after = record["load_average"]["before"], record["load_average"]["after"]
        lines.append(
            [
                name + (" (quick)" if record["quick"] else ""),
                f"{machine['processor']}, {cores}, {machine['instruction_set']}",
                record["date"][:10],
                f"`{(commit['id'] or 'unknown')[:9]}`" + (" with changes" if commit["dirty"] else ""),
                f"{before[0]:.1f} to {after[0]:.1f}" if before and after else "unknown",
                f"`{record['command']}`",
            ]
        )
    note = "Load: processes that wanted to run, before and after. Above the number of cores, others were in the way."
    return f"{markdown(('measurement', 'machine', 'day', 'commit', 'load', 'command'), lines)}\n\n{note}"


def others() -> str:
    """Where the numbers come from that these benchmarks do not measure."""
    known = references()
    peers = {name: peer for name, peer in known["peers"].items() if isinstance(peer, dict)}
    lines = [
        [
            f"{name} ({peer['version']})",
            f"{peer['rays_per_second']}" if "rays_per_second" in peer else "",
            f"{peer['psnr']}",
            f"`{peer['command']}`",
        ]
        for name, peer in peers.items()
    ]
    head = ("program", "rays/s", "PSNR, dB", "command")
    prototype = known["prototype"]
    return (
        f"## What others reach\n\n{known['peers']['what']}\n\n{markdown(head, lines)}\n\n"
        f"The prototype: {prototype['what']} On {prototype['machine']}."
    )


def quality_section(records: Records) -> str:
    """Every case, mean over seeds."""
    lines = []
    for name, record in sorted(
        records.items(), key=lambda item: (item[1]["protocol"]["capture"], item[1]["protocol"]["seconds"])
    ):
        found, protocol = record["results"]["over_seeds"], record["protocol"]

        def cell(key: str, form: str, factor: float = 1.0, found: dict[str, Any] = found) -> str:
            return form.format(found[key]["mean"] * factor) if key in found else ""

        lines.append(
            [
                name.removeprefix("quality-"),
                f"`{protocol['method']}`",
                f"{cell('psnr', '{:.2f}')} ± {found['psnr']['stdev']:.2f}",
                f"{cell('psnr_of_the_worst_view', '{:.1f}')} to {cell('psnr_of_the_best_view', '{:.1f}')}",
                cell("ssim", "{:.3f}"),
                str(len(protocol["seeds"])),
                cell("training_wall_seconds", "{:.1f}"),
                cell("training_cpu_seconds", "{:.1f}"),
                cell("rays_per_second", "{:.0f}", 1e-3),
                cell("samples_evaluated_per_second", "{:.2f}", 1e-6),
                cell("peak_bytes_in_training", "{:.2f}", 1e-9),
                cell("seconds_per_view", "{:.2f}"),
                ", ".join(protocol.get("evaluation", {}).get("resolution", [])),
            ]
        )
    head = ("case", "method", "PSNR, dB", "worst and best view", "SSIM", "seeds", "wall s", "CPU s", "k rays/s")
    head += ("M samples/s", "GB", "s per view", "size")
    return (
        "## Quality at a budget\n\nHeld-out views, rounded to 8 bits, each metric per picture and then the mean; "
        f"± is the standard deviation over seeds.\n\n{markdown(head, lines)}\n\n{looks(records)}".rstrip()
    )


def looks(records: Records) -> str:
    """When thresholds were first seen passed, of the cases that looked."""
    lines = []
    for name, record in sorted(records.items()):
        runs = [run["seconds_to"] for run in record["results"]["runs"] if run.get("looks")]
        if runs:
            times = [[f"{run[level]:.0f}" if run[level] else "never" for run in runs] for level in runs[0]]
            lines.append([name.removeprefix("quality-"), *(", ".join(seeds) for seeds in times)])
            levels = list(runs[0])
    if not lines:
        return ""
    return (
        "Seconds of training until a few held-out views first passed a threshold, one number per seed; the schedule is "
        f"that of the whole budget, so a shorter budget gets there sooner.\n\n{markdown(('case', *levels), lines)}"
    )


def kernels_section(records: Records) -> str:
    """All kernels, by threads."""
    parts = ["## Kernels"]
    for name, found in records["kernels"]["results"].items():
        if not isinstance(found, dict):
            continue
        peaks = found["peak_gflops"], found["peak_gflops_of_pairs"]
        parts.append(f"### {name}: peak {peaks[0]:.0f} GFLOP/s of multiply-adds, {peaks[1]:.0f} of pairs of bfloat16")
        lines = [
            [
                row["network"],
                row["precision"],
                row["direction"],
                f"{row['gflops']:.0f}",
                f"{row['share_of_peak']:.0%}",
                f"{row['samples_per_second'] / 1e6:.1f}",
            ]
            for row in found["networks"]
        ]
        parts.append(markdown(("network", "", "", "GFLOP/s", "of peak", "M samples/s"), lines))
        columns = ("forward_random", "forward_rays", "backward_random", "backward_rays")
        lines = []
        for row in found["hash_encoding"]:
            cells = []
            for key in columns:
                ratio = row.get(f"{key}_over_prototype")
                cells.append(f"{row[f'{key}_points_per_second'] / 1e6:.1f}" + (f" ({ratio:.2f} x)" if ratio else ""))
            lines.append([row["grid"], *cells])
        parts.append("M points/s of the hash encoding; in brackets, over the prototype's on its processor.")
        parts.append(markdown(("grid", *(key.replace("_", ", ") for key in columns)), lines))
        lines = [
            [row["op"], f"{row['samples_per_second'] / 1e6:.1f} M samples/s", f"{1e3 * row['wall']:.2f} ms"]
            for row in found["rendering"]
        ]
        lines += [
            [
                f"Adam, {row['kind']}",
                f"{row['parameters_per_second'] / 1e9:.2f} G parameters/s swept",
                f"{row['gigabytes_per_second']:.1f} GB/s",
            ]
            for row in found["adam"]
        ]
        lines += [
            [
                f"distance field: {row['op']}",
                f"{row['samples_per_second'] / 1e6:.2f} M samples/s, {row['share_of_peak']:.0%} of the peak",
                f"{row['over_the_chain']:.1f} x the chain of operations",
            ]
            for row in found.get("surface", ())
        ]
        lines += [
            [
                f"step of `{row['preset']}`",
                f"{row['rays_per_second'] / 1e3:.0f} k rays/s, "
                f"{row['samples_evaluated_per_second'] / 1e6:.2f} M samples/s evaluated, "
                f"{row['samples_kept_per_second'] / 1e6:.2f} M kept",
                f"{row['milliseconds']:.2f} ms",
            ]
            for row in found["training_step"]
        ]
        parts.append(markdown(("what", "rate", ""), lines))
    return "\n\n".join(parts)


def torch_section(records: Records) -> str:
    """Both sides of the comparison with plain PyTorch."""
    results = records["peer_torch"]["results"]
    lines = []
    for grid in ("common", "ours"):
        found = results[f"torch, {grid} grid"]
        for kind in ("random", "rays"):
            lines += [[f"{way}", found["grid"], kind, rate_cell(rate)] for way, rate in found[kind].items()]
        if "compiled" in found:
            compiled = found["compiled"]
            lines.append(
                [
                    "torch.compile, index",
                    found["grid"],
                    "rays",
                    compiled if isinstance(compiled, str) else rate_cell(compiled),
                ]
            )
        own = results[f"lightfold, {grid} grid"]
        lines += [
            [f"lightfold, {name.split(', ')[0]}", own["grid"], name.split(", ")[1], rate_cell(rate)]
            for name, rate in own["rates"].items()
        ]
    ratios = [
        [name, f"{ratio:.1f}", f"{results['ratios']['samples_per_cpu_second'][name]:.1f}"]
        for name, ratio in results["ratios"]["samples_per_second"].items()
    ]
    protocol = records["peer_torch"]["protocol"]
    return (
        f"## Against a hash grid in plain PyTorch\n\n{protocol['points']} points; {protocol['timed']}; "
        f"{protocol['networks']}; {protocol['threads']} threads.\n\n"
        f"{markdown(('who', 'grid', 'points', 'M samples/s: wall, CPU'), lines)}\n\n"
        f"{markdown(('ratio', 'by the wall clock', 'by processor time'), ratios)}"
    )


def rate_cell(rate: dict[str, float]) -> str:
    """A rate by both clocks."""
    return f"{rate['samples_per_second'] / 1e6:.3f}, {rate['samples_per_cpu_second'] / 1e6:.3f}"


def breakdown_section(records: Records) -> str:
    """Shares of a step."""
    results = records["breakdown"]["results"]
    stages = dict.fromkeys(stage for found in results.values() for stage in found["shares"])
    lines = [[stage, *(f"{found['shares'].get(stage, 0):.0%}" for found in results.values())] for stage in stages]
    lines.append(["milliseconds per step", *(f"{found['milliseconds_per_step']:.2f}" for found in results.values())])
    lines.append(
        ["ops apart over the fused pass", *(f"{found['ops_apart_over_fused_pass']:.2f}" for found in results.values())]
    )
    head = ("stage", *(f"`{preset}`" for preset in results))
    return (
        f"## Where a step's time goes\n\nOn {records['breakdown']['protocol']['capture']}. Pixels, scatter, Adam, the "
        "occupancy grid and the fused pass are measured in the training; the stages inside the pass are its ops run "
        "apart on the same rays, in proportion.\n\n"
        f"{markdown(head, lines)}"
    )


def memory_section(records: Records) -> str:
    """Memory over the number of photographs."""
    rows, protocol = records["memory"]["results"]["captures"], records["memory"]["protocol"]
    lines = [
        [str(row["pictures"]), *(f"{row[key] / 1e6:.0f}" for key in ("decoded_bytes", "peak_own_bytes", "peak_bytes"))]
        for row in rows
    ]
    head = ("photographs", "decoded, MB", "own memory, MB", "with cache pages, MB")
    return (
        f"## Memory\n\n`{protocol['method']}` on photographs of {protocol['pictures']}. Own: {protocol['own']}. "
        "The last column adds pages of the picture cache, which the system takes back when it needs them.\n\n"
        f"{markdown(head, lines)}"
    )


def waiting_section(records: Records) -> str:
    """First picture."""
    lines = [
        [
            name,
            f"{found['first_time_seconds']:.1f}",
            f"{found['again_seconds']:.1f}",
            f"`{found['options']}`" if found["options"] else "",
        ]
        for name, found in records["first_picture"]["results"].items()
    ]
    return f"## Seconds to the first picture\n\n{markdown(('capture', 'first time', 'again', 'options'), lines)}"


def start_section(records: Records) -> str:
    """The command line."""
    lines = [
        [f"`{name}`", f"{found['wall']:.2f}", f"{found['cpu']:.2f}"]
        for name, found in records["start_up"]["results"].items()
    ]
    return f"## Seconds until the command line answers\n\n{markdown(('command', 'wall', 'CPU'), lines)}"


def poses_section(records: Records) -> str:
    """What became of each capture whose poses were thrown away."""
    lines = []
    for name, found in records["poses"]["results"].items():
        if "error" in found:
            lines.append([name, "none", "", f"{found['wall_seconds']:.0f}", "", found["error"]])
            continue
        groups = ", ".join(str(size) for size in found["largest_groups"])
        said = " ".join(found["reasons"])
        tries = str(len(found["tries"]))
        lines.append(
            [name, f"{groups} of {found['pictures']}", found["verdict"], f"{found['wall_seconds']:.0f}", tries, said]
        )
    head = ("capture", "in a model", "verdict", "seconds", "tries", "because")
    return f"## Poses of real captures\n\n{markdown(head, lines)}"


SECTIONS: dict[str, Callable[[Records], str]] = {
    "quality": quality_section,
    "kernels": kernels_section,
    "breakdown": breakdown_section,
    "peer_torch": torch_section,
    "memory": memory_section,
    "poses": poses_section,
    "first_picture": waiting_section,
    "start_up": start_section,
}


if __name__ == "__main__":
    main()
