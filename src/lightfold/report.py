"""One page about a run: scores, pictures, curves, video and the settings that made them, opened from disk.

`report.html` lies in the run's folder and refers to the pictures beside it by relative links, so the folder can be
moved, zipped or served as it is. It loads nothing from anywhere else and runs no script. Whatever the folder holds is
treated as text from a stranger: it is escaped, and a link must point to a file inside the folder. What a run does not
have yet (an evaluation, a video) is a sentence on the page.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard
from urllib.parse import quote

from .errors import RunError
from .files import whole_file

if TYPE_CHECKING:
    from .run import Run

Series = dict[str, list[tuple[float, float]]]
"""Name -> points (x, y) of a curve, x ascending."""

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
MOST_POINTS = 400
MOST_STILLS = 24
CURVE_COLOURS = ("#c2410c", "#1d4ed8", "#15803d", "#7e22ce", "#a16207", "#0e7490")


def write_report(run: Run | Path | str) -> Path:
    """Write report.html into a run's folder from whatever the folder holds, and return its path.

    A folder that is too damaged to open as a `Run` can still be reported on.
    """
    folder = Path(run) if isinstance(run, (str, Path)) else run.path
    if not folder.is_dir():
        raise RunError(f"There is no run folder at {folder}, so there is nothing to report on.")
    evaluation = _json_object(folder / "eval.json")
    scene = _json_object(folder / "scene.json")
    metrics = read_metrics(folder / "metrics.jsonl")
    name = folder.resolve().name
    sections = [
        _headline(name, evaluation, metrics),
        _section("Held-out views", _pictures(folder, evaluation)),
        _section("Video and stills", _renders(folder)),
        _section("Training", _curves(metrics)),
        _section("Scores per view", _scores(evaluation)),
        _section("Other evaluations", _others(folder), optional=True),
        _section("How the scores were taken", _mapping(evaluation.get("protocol"), "There is no evaluation yet.")),
        _section("Time and memory", _mapping(_costs(evaluation, metrics), "No timings were recorded yet.")),
        _section("Scene", _scene(scene)),
        _section("Software and machine", _mapping(_flat(_json_object(folder / "run.json")), ""), optional=True),
        _section("Configuration", _configuration(folder / "config.yaml")),
    ]
    page = PAGE.format(title=escape(name), style=STYLE, body="\n".join(part for part in sections if part))
    target = folder / "report.html"
    with whole_file(target) as partial:
        partial.write_text(page, encoding="utf-8")
    return target


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics.jsonl with their finite numbers; damaged lines are passed over and a missing file is empty."""
    rows = []
    for line in _text(path).splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append({str(key): float(value) for key, value in row.items() if _is_number(value)})
    return rows


# --- sections -------------------------------------------------------------------------------------------------------


def _headline(name: str, evaluation: dict[str, Any], metrics: Sequence[dict[str, float]]) -> str:
    mean = evaluation.get("mean")
    mean = mean if isinstance(mean, dict) else {}
    figures = [("PSNR", _figure(mean.get("psnr"), 2), "dB"), ("SSIM", _figure(mean.get("ssim"), 4), "")]
    if _is_number(mean.get("lpips")):
        figures.append(("LPIPS", _figure(mean["lpips"], 4), ""))
    if _is_number(mean.get("psnr_masked")):
        figures.append(("PSNR in the mask", _figure(mean["psnr_masked"], 2), "dB"))
    if metrics and "step" in metrics[-1]:
        figures.append(("steps", f"{metrics[-1]['step']:,.0f}", ""))
    boxes = "".join(f"<div><b>{value}</b> {unit}<span>{label}</span></div>" for label, value, unit in figures)
    protocol = evaluation.get("protocol")
    views = protocol.get("view_count") if isinstance(protocol, dict) else None
    line = f"Mean over {_value(views)} views." if _is_number(views) else "This run has not been evaluated yet."
    return f'<header><h1>{escape(name)}</h1><div class="figures">{boxes}</div><p>{line}</p></header>'


def _pictures(folder: Path, evaluation: dict[str, Any]) -> str:
    figures = []
    for row in _rows(evaluation):
        link = _link(folder, row.get("picture"), PICTURES)
        if link:
            caption = f"{escape(str(row.get('name', '')))} · {_figure(row.get('psnr'), 2)} dB"
            figures.append(_picture(link, caption))
    if not figures:
        return "<p>There are no pictures of held-out views yet; <code>lightfold eval</code> makes them.</p>"
    return f'<div class="wide">{"".join(figures)}</div>'


def _renders(folder: Path) -> str:
    found = sorted(path for path in (folder / "renders").rglob("*") if path.is_file()) if folder.is_dir() else []
    videos, stills = [], []
    for path in found:
        relative = path.relative_to(folder).as_posix()
        label = escape(relative)
        if link := _link(folder, relative, (".mp4",)):
            videos.append(
                f'<figure><video controls loop muted playsinline preload="metadata" src="{link}"></video>'
                f'<figcaption><a href="{link}">{label}</a></figcaption></figure>'
            )
        elif link := _link(folder, relative, PICTURES):
            stills.append(_picture(link, label))
    parts = [f'<div class="wide">{"".join(videos)}</div>'] if videos else []
    if not videos:
        parts.append("<p>There is no video yet; <code>lightfold render</code> makes one.</p>")
    if stills:
        parts.append(f'<div class="grid">{"".join(stills[:MOST_STILLS])}</div>')
    if len(stills) > MOST_STILLS:
        parts.append(f"<p>{len(stills) - MOST_STILLS} more stills are in the folder renders.</p>")
    return "".join(parts)


def _curves(metrics: Sequence[dict[str, float]]) -> str:
    if not metrics:
        return "<p>No training steps were logged yet.</p>"
    charts = []
    for title, word, log in (("PSNR, dB", "psnr", False), ("Loss", "loss", True), ("Rays per second", "rays", False)):
        series: Series = {}
        for key in sorted({key for row in metrics for key in row if word in key.lower()}):
            points = [(row["step"], row[key]) for row in metrics if key in row and "step" in row]
            points = [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not log)]
            if len(points) > 1:
                series[key] = sorted(points)
        if series:
            charts.append(line_chart(title, series, log))
    return f'<div class="wide">{"".join(charts)}</div>' if charts else "<p>Too few steps were logged for a curve.</p>"


def _scores(evaluation: dict[str, Any]) -> str:
    rows = _rows(evaluation)
    if not rows:
        return "<p>There is no evaluation yet; <code>lightfold eval</code> makes one.</p>"
    columns = [("psnr", "PSNR", 2), ("ssim", "SSIM", 4), ("lpips", "LPIPS", 4), ("psnr_masked", "PSNR masked", 2)]
    columns += [("ssim_masked", "SSIM masked", 4), ("seconds", "seconds", 3)]
    shown = [column for column in columns if any(_is_number(row.get(column[0])) for row in rows)]
    head = "".join(f"<th>{label}</th>" for _, label, _ in shown)
    lines = [
        f"<tr><td>{escape(str(row.get('name', '')))}</td>"
        + "".join(f"<td>{_figure(row.get(key), digits)}</td>" for key, _, digits in shown)
        + "</tr>"
        for row in rows
    ]
    mean = evaluation.get("mean")
    mean = mean if isinstance(mean, dict) else {}
    foot = "".join(f"<td>{_figure(mean.get(key), digits) if key in mean else ''}</td>" for key, _, digits in shown)
    return (
        f'<div class="scroll"><table class="numbers"><thead><tr><th>view</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody><tfoot><tr><td>mean</td>{foot}</tr></tfoot></table></div>"
    )


def _others(folder: Path) -> str:
    lines = []
    for path in sorted(folder.glob("eval_*.json")):
        mean = _json_object(path).get("mean")
        if isinstance(mean, dict):
            cells = f"<td>{_figure(mean.get('psnr'), 2)}</td><td>{_figure(mean.get('ssim'), 4)}</td>"
            lines.append(f"<tr><td>{escape(path.stem)}</td>{cells}</tr>")
    if not lines:
        return ""
    head = "<tr><th>file</th><th>PSNR</th><th>SSIM</th></tr>"
    body = "".join(lines)
    return f'<div class="scroll"><table class="numbers"><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _costs(evaluation: dict[str, Any], metrics: Sequence[dict[str, float]]) -> dict[str, Any]:
    timing = evaluation.get("timing")
    costs: dict[str, Any] = {}
    if metrics:
        words = ("second", "time", "memory", "rays", "samples")
        costs |= {f"training: {key}": v for key, v in metrics[-1].items() if any(word in key.lower() for word in words)}
    if isinstance(timing, dict):
        costs |= {f"evaluation: {key}": value for key, value in timing.items()}
    return costs


def _scene(scene: dict[str, Any]) -> str:
    if not scene:
        return "<p>The file scene.json is missing or cannot be read.</p>"
    plain = ("bounded", "forward_facing", "has_alpha", "near", "far", "background")
    facts = {key: scene[key] for key in plain if key in scene}
    for key, label in (("cameras", "views"), ("train", "training views"), ("test", "held-out views")):
        if isinstance(scene.get(key), list):
            facts[label] = len(scene[key])
    notes = scene.get("notes")
    lines = "".join(f"<li>{escape(str(note))}</li>" for note in notes) if isinstance(notes, list) else ""
    return _mapping(facts, "") + (f"<ul>{lines}</ul>" if lines else "")


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """One level of nesting taken out: {"a": {"b": 1}} -> {"a b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= {f"{key} {inner}": entry for inner, entry in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _configuration(path: Path) -> str:
    text = _text(path)
    return f"<pre>{escape(text)}</pre>" if text.strip() else "<p>The file config.yaml is missing or cannot be read.</p>"


# --- a curve --------------------------------------------------------------------------------------------------------


def line_chart(title: str, series: Series, log: bool = False) -> str:
    """An inline SVG of curves over the training step, with a linear or logarithmic vertical axis."""
    width, height, left, right, top, bottom = 640, 260, 64, 12, 30, 30
    scale = math.log10 if log else float
    drawn = {name: _thinned(points) for name, points in series.items()}
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [scale(y) for points in drawn.values() for _, y in points]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    x1, y1 = (x1 if x1 > x0 else x0 + 1), (y1 if y1 > y0 else y0 + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - x0) / (x1 - x0) * (width - left - right),
            height - bottom - (y - y0) / (y1 - y0) * (height - top - bottom),
        )

    parts = [f'<text x="{left}" y="18" class="title">{escape(title)}</text>']
    for value in _ticks(y0, y1, 4):
        _, y = place(x0, value)
        label = f"{10**value:.3g}" if log else f"{value:,.6g}"
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" class="rule"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for value in _ticks(x0, x1, 6):
        x, _ = place(value, y0)
        parts.append(f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle">{value:,.6g}</text>')
    for i, (name, points) in enumerate(drawn.items()):
        colour = CURVE_COLOURS[i % len(CURVE_COLOURS)]
        path = " ".join("{:.1f},{:.1f}".format(*place(x, scale(y))) for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        where = f'x="{width - right}" y="{top + 12 + 15 * i}"'
        parts.append(f'<text {where} text-anchor="end" style="fill:{colour}">{escape(name)}</text>')
    opening = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
    return f"<figure>{opening}{''.join(parts)}</svg></figure>"


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS points, each the mean of its bin, so that noise is thinned rather than sampled."""
    bin_size = -(-len(points) // MOST_POINTS)
    bins = [points[i : i + bin_size] for i in range(0, len(points), bin_size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in bins]


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) between low and high, about `count` of them."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    # Adding 0.0 turns the -0.0 of a rounded product into 0.0, which prints without a sign.
    return [round(i * step, 12) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


# --- pieces ---------------------------------------------------------------------------------------------------------


def _section(title: str, body: str, optional: bool = False) -> str:
    return "" if optional and not body else f"<section><h2>{escape(title)}</h2>{body}</section>"


def _picture(link: str, caption: str) -> str:
    return (
        f'<figure><a href="{link}"><img src="{link}" alt="{caption}" loading="lazy"></a>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _mapping(values: object, missing: str) -> str:
    if not isinstance(values, dict) or not values:
        return f"<p>{escape(missing)}</p>" if missing else ""
    lines = "".join(f"<tr><th>{escape(_label(key))}</th><td>{_value(value)}</td></tr>" for key, value in values.items())
    return f'<div class="scroll"><table>{lines}</table></div>'


def _label(key: object) -> str:
    return str(key).replace("_", " ")


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "–"
    if _is_number(value):
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(entry) for entry in value)
    return escape(str(value))


def _figure(value: object, digits: int) -> str:
    return f"{value:.{digits}f}" if _is_number(value) else "–"


def _is_number(value: object) -> TypeGuard[float]:
    """A finite number that is not a truth value. Whole numbers beyond a float's range do not count."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e300


def _rows(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    rows = evaluation.get("views")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _link(folder: Path, relative: object, suffixes: Iterable[str]) -> str:
    """The relative URL of a file inside the folder, or "" for anything that is not one."""
    if not isinstance(relative, str) or not relative.lower().endswith(tuple(suffixes)) or "\0" in relative:
        return ""
    path = folder / relative
    try:
        inside = path.resolve().is_relative_to(folder.resolve()) and path.is_file()
    except OSError:
        return ""
    # The leading ./ keeps a name like "javascript:x.png" from being read as a scheme.
    return "./" + quote(path.relative_to(folder).as_posix()) if inside else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _json_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(_text(path))
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #6b7280; --paper: #fbfaf7; --card: #fff; --rule: #e3e1da; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e4df; --soft: #9aa0a6; --paper: #16181b; --card: #1e2125; --rule: #33373d; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(.8rem, 3vw, 2rem) 4rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; margin: 1rem 0 .6rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .7rem; }
p, figcaption { color: var(--soft); } figure { margin: 0; } figcaption { font-size: .85rem; padding: .25rem 0; }
a { color: inherit; }
img, video, svg { display: block; width: 100%; height: auto; border-radius: 6px; background: var(--card); }
.figures { display: flex; flex-wrap: wrap; gap: .7rem; }
.figures div { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: .6rem .9rem; }
.figures b { font-size: 1.5rem; } .figures span { display: block; color: var(--soft); font-size: .85rem; }
.wide { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
.grid { display: grid; gap: .8rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 14rem), 1fr)); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .28rem .9rem .28rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; color: var(--soft); } .numbers th + th, .numbers td + td { text-align: right; }
tfoot td { font-weight: 700; } pre { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: .8rem; overflow-x: auto; font-size: .85rem; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
svg .title { font-weight: 600; fill: var(--ink); } svg .rule { stroke: var(--rule); }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="script-src 'none'; object-src 'none'; base-uri 'none'">
<title>{title} · Lightfold</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
