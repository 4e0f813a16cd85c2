"""The quality report as files: poses.json for programs, and poses.html, one page with pictures, for people.

The page holds everything it shows: it loads nothing and runs no script, so it can be mailed as it is. Names of pictures
come from strangers and are escaped.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..files import whole_file
from ..formats.frames import printable
from .agreement import AGREES, PAIR_MATCHES
from .verdict import MISPLACED, Picture, Quality, facts, headline

VERSION = 1
THUMBNAIL = 240
"""Longer side in pixels of the pictures on the page."""
MOST_THUMBNAILS = 24
MOST_POINTS = 4000
"""Points drawn in the view from above."""
SIDE = 640
"""Width and height of the drawings, in units of their own."""
COLOURS = ("#1d4ed8", "#7e22ce", "#0e7490", "#a16207")
"""Of the cameras in the drawing, and of pairs that agree."""
RED = "#dc2626"
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError)
"""What Pillow raises on damaged pictures."""


def write_quality(quality: Quality, folder: Path) -> Path:
    """Write poses.json and poses.html into a folder and return the latter. Raises RunError when they cannot be."""
    text = json.dumps(document(quality), indent=1, ensure_ascii=False, allow_nan=False)
    # Names that are broken Unicode, which a disk may hold, come back as they were by the same error handler.
    with whole_file(folder / "poses.json") as partial:
        partial.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")
    target = folder / "poses.html"
    with whole_file(target) as partial:
        partial.write_text(page(quality), encoding="utf-8", errors="replace")
    return target


def document(quality: Quality) -> dict[str, Any]:
    """The report as plain JSON types; what is unknown is null. Pictures in `links` are indices into `pictures`."""
    links = quality.evidence.links
    content = {
        "version": VERSION,
        "verdict": quality.verdict,
        "reasons": list(quality.reasons),
        "advice": list(quality.advice),
        "registered": quality.registered,
        "total": len(quality.pictures),
        "missing": {picture.name: picture.missing for picture in quality.pictures if picture.missing},
        "findings": [asdict(finding) for finding in quality.findings],
        "agreement": {"share": quality.agreement, "pairs": quality.pairs, "near_without_match": quality.silent},
        "lookalikes": {"pairs": [list(pair) for pair in quality.lookalikes], "asked": quality.beside},
        "reprojection_error_pixels": {"mean": quality.mean_error, "median": quality.median_error},
        "points": {
            "count": len(quality.evidence.points),
            "mean_track_length": quality.track_length,
            "median_per_picture": quality.observations,
            "median_angle_degrees": quality.angle,
        },
        "lenses": [asdict(lens) | {"deviation": lens.deviation} for lens in quality.lenses],
        "coverage": None if quality.coverage is None else asdict(quality.coverage),
        "metric": quality.metric,
        "groups": [list(group) for group in quality.groups],
        "breaks": [asdict(entry) for entry in quality.breaks],
        "jumps": [asdict(entry) for entry in quality.jumps],
        "seams": [asdict(seam) | {"share": seam.share} for seam in quality.seams[:10]],
        "seconds": quality.seconds,
        "tries": list(quality.tries),
        "notes": list(quality.notes),
        "pictures": [asdict(picture) for picture in quality.pictures],
        "links": [
            [int(a), int(b), int(matches), float(fits)]
            for (a, b), matches, fits in zip(links.pair, links.matches, links.fits, strict=True)
        ],
    }
    return dict(_plain(content))


def page(quality: Quality) -> str:
    """The page's HTML."""
    name = printable(quality.footage.root.resolve().name)
    sections = [
        _header(quality, name),
        _section("What was found", _findings(quality)),
        f'<div class="wide">{_section("Seen from above", _plan(quality))}'
        f"{_section('Which pictures match which', _matrix(quality))}</div>",
        _section("Pictures to look at", _gallery(quality)),
        _section("Numbers", _table(facts(quality))),
        _section("What was tried", _list([*quality.tries, *quality.notes])),
        _section("Every picture", _every_picture(quality)),
    ]
    return PAGE.format(title=escape(name), style=STYLE, body="\n".join(sections))


# ---------------------------------------------------------------------------------------------------------------------
# Sections


def _header(quality: Quality, name: str) -> str:
    evidence = quality.evidence
    figures = [
        (f"{quality.registered} of {len(quality.pictures)}", "pictures have a pose"),
        (_percent(quality.agreement), "of the pairs agree with the model"),
        (_percent(quality.seams[0].share) if quality.seams else "–", "of the matches, at the weakest seam"),
        (f"{quality.mean_error:.2f} px" if math.isfinite(quality.mean_error) else "–", "reprojection error"),
        (f"{len(evidence.points):,}", "points"),
    ]
    boxes = "".join(f"<div><b>{value}</b><span>{label}</span></div>" for value, label in figures)
    return (
        f"<header><h1>Poses of {escape(name)}</h1>"
        f'<p class="verdict {quality.verdict}"><b>{quality.verdict.capitalize()}</b> {escape(headline(quality))}</p>'
        f'<div class="figures">{boxes}</div></header>'
    )


def _findings(quality: Quality) -> str:
    if not quality.findings:
        return "<p>Every picture has its place, and the pictures agree with it. Nothing needs to be done.</p>"
    lines = "".join(f'<li class="{f.level}">{escape(f.reason)}</li>' for f in quality.findings)
    steps = "".join(f"<li>{escape(sentence)}</li>" for sentence in quality.advice)
    advice = f"<h3>What to do next</h3><ol>{steps}</ol>" if steps else ""
    return f'<ul class="findings">{lines}</ul>{advice}'


def _plan(quality: Quality) -> str:
    """Cameras as wedges and points as dots, x to the right and y upward."""
    evidence = quality.evidence
    shown = np.flatnonzero(evidence.registered)
    if not len(shown):
        return "<p>No picture has a pose.</p>"
    centres = evidence.centres[:, :2]
    points = _points_worth_showing(quality)
    spread = np.concatenate([centres[shown], points])
    middle = (spread.min(0) + spread.max(0)) / 2
    size = max(float(np.ptp(spread, axis=0).max()), 1e-9)
    scale = (SIDE - 60) / size

    def place(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        return (xy - middle) * np.array([scale, -scale]) + SIDE / 2

    dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in place(points))
    parts = [f'<path class="dots" d="{dots}"/>']
    at = place(centres)
    if quality.footage.ordered:
        for i, j in zip(shown, shown[1:], strict=False):
            parts.append(_line(at[i], at[j], "walk"))
    if quality.coverage is not None:
        x, y = place(np.array(quality.coverage.subject[:2]))
        if 0 < x < SIDE and 0 < y < SIDE:
            parts.append(f'<circle class="subject" cx="{x:.1f}" cy="{y:.1f}" r="7"/>')
    wrong = _suspects(quality)
    for i in shown:
        name = quality.pictures[i].name
        colour = RED if name in wrong else COLOURS[0]
        parts.append(_camera(at[i], evidence.forward[i], colour, printable(name), quality.footage.kind == "panoramas"))
    parts += _break_marks(quality, at)
    parts += _labels(quality, at, shown)
    caption = "Cameras (blue) and points from above; move the pointer over a camera for its name."
    if wrong:
        caption += " Red cameras are those that the matches contradict."
    if quality.breaks or quality.jumps:
        caption += " Red rings and lines mark neighbours that hardly match, or that the model tears apart."
    missing = [printable(picture.name) for picture in quality.pictures if picture.missing]
    listed = f"<p>Without a pose: {escape(', '.join(missing))}.</p>" if missing else ""
    return f"{_svg('Plan of cameras and points', parts, caption)}{listed}"


def _points_worth_showing(quality: Quality) -> NDArray[np.float64]:
    """[n, 2] of the points near the cameras and what they look at: a few far away would shrink all the rest."""
    evidence = quality.evidence
    good = np.flatnonzero((evidence.track_length >= 3) & np.isfinite(evidence.points).all(axis=1))
    if not len(good):
        return np.zeros((0, 2))
    good = good[:: -(-len(good) // MOST_POINTS)]
    xy = evidence.points[good, :2]
    low, high = np.quantile(xy, 0.05, axis=0), np.quantile(xy, 0.95, axis=0)
    centres = evidence.centres[evidence.registered][:, :2]
    low, high = np.minimum(low, centres.min(0)), np.maximum(high, centres.max(0))
    margin = 0.1 * float((high - low).max())
    return xy[((xy > low - margin) & (xy < high + margin)).all(axis=1)]


def _suspects(quality: Quality) -> set[str]:
    """Pictures on the smaller side of a contradicted seam, and those in the wrong place."""
    names = {picture.name for picture in quality.pictures if MISPLACED in picture.remarks}
    if quality.seams and quality.seams[0].share < AGREES:
        names |= set(quality.seams[0].side)
    return names


def _camera(at: NDArray[np.float64], forward: NDArray[np.float64], colour: str, name: str, panorama: bool) -> str:
    x, y = at
    title = f"<title>{escape(name)}</title>"
    direction = np.array([forward[0], -forward[1]])
    length = float(np.linalg.norm(direction))
    if panorama or length < 0.1:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}" class="camera">{title}</circle>'
    # Seen from above a camera that looks down is short.
    along = direction * 15
    beside = np.array([-direction[1], direction[0]]) / length * 6
    corners = " ".join(f"{u:.1f},{v:.1f}" for u, v in (at, at + along + beside, at + along - beside))
    return f'<polygon points="{corners}" fill="{colour}" class="camera">{title}</polygon>'


def _break_marks(quality: Quality, at: NDArray[np.float64]) -> list[str]:
    position = {picture.name: i for i, picture in enumerate(quality.pictures)}
    parts = []
    places = [(entry.before, entry.after) for entry in quality.breaks]
    places += [(entry.before, entry.after) for entry in quality.jumps]
    for place in places:
        ends = [position[name] for name in place if quality.evidence.registered[position[name]]]
        if len(ends) == 2:
            parts.append(_line(at[ends[0]], at[ends[1]], "break"))
        for i in ends:
            parts.append(f'<circle class="ring" cx="{at[i][0]:.1f}" cy="{at[i][1]:.1f}" r="11"/>')
    return parts


def _labels(quality: Quality, at: NDArray[np.float64], shown: NDArray[np.int64]) -> list[str]:
    """Names of some cameras, not so near to each other that they cover each other."""
    parts: list[str] = []
    taken: list[tuple[float, float]] = []
    for i in shown:
        x, y = at[i]
        if all(abs(x - u) > 90 or abs(y - v) > 16 for u, v in taken):
            taken.append((x, y))
            right = x > SIDE - 120
            where = f'x="{x + (-10 if right else 10):.1f}" y="{y - 8:.1f}"' + (' text-anchor="end"' if right else "")
            parts.append(f"<text {where}>{escape(_short(quality.pictures[i].name))}</text>")
    return parts


def _matrix(quality: Quality) -> str:
    """Verified matches of all pairs, as a picture with one square per pair."""
    links, count = quality.evidence.links, len(quality.pictures)
    if not count or not len(links.pair):
        return "<p>No two pictures match.</p>"
    strength = np.log(links.matches / 10).clip(0) / math.log(max(links.matches.max(), 100) / 10)
    alpha = (60 + 195 * strength).astype(np.uint8)
    against = np.isfinite(links.fits) & (links.fits < AGREES) & (links.matches >= PAIR_MATCHES)
    outside = ~np.isfinite(links.fits)
    colours = np.array([_rgb(COLOURS[0]), _rgb(RED), (130, 130, 130)], dtype=np.uint8)
    cells = np.zeros((count, count, 4), dtype=np.uint8)
    for a, b in (links.pair.T, links.pair.T[::-1]):
        cells[a, b, :3] = colours[np.where(against, 1, np.where(outside, 2, 0))]
        cells[a, b, 3] = alpha
    missing = np.array([bool(picture.missing) for picture in quality.pictures])
    diagonal = np.arange(count)
    cells[diagonal, diagonal] = np.where(missing[:, None], (*_rgb("#d97706"), 255), (120, 120, 120, 120))
    left, top, side = 105, 55, SIDE - 120
    parts = [
        f'<rect x="{left}" y="{top}" width="{side}" height="{side}" class="frame"/>',
        f'<image x="{left}" y="{top}" width="{side}" height="{side}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="{_data_uri(Image.fromarray(cells), "PNG")}"/>',
    ]
    step = -(-count // 24)
    for i in range(0, count, step):
        y = top + (i + 0.5) * side / count
        label = escape(_short(quality.pictures[i].name))
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    caption = (
        "Each square is a pair of pictures, in the order of the footage from left to right and from top to bottom. "
        "Blue: they match, the deeper the more, and agree with the model. Red: they match and contradict the model. "
        "Grey: they match, and one has no pose. Orange on the diagonal: without a pose."
    )
    return _svg("Matches between pictures", parts, caption)


def _gallery(quality: Quality) -> str:
    """Thumbnails of the pictures that are missing or remarkable, the missing first."""
    rank = {True: 0, False: 1}
    chosen = [p for p in quality.pictures if p.missing or p.remarks]
    if not chosen:
        return "<p>None is blurred, badly exposed, missing or in the wrong place.</p>"
    chosen.sort(key=lambda p: (rank[bool(p.missing)], MISPLACED not in p.remarks))
    figures = []
    for picture in chosen[:MOST_THUMBNAILS]:
        image = _thumbnail(quality, picture)
        words = "; ".join(filter(None, (f"no pose: {picture.missing}" if picture.missing else "", *picture.remarks)))
        caption = f"<b>{escape(printable(picture.name))}</b> {escape(words)}"
        figures.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    rest = len(chosen) - MOST_THUMBNAILS
    more = f"<p>And {rest} more, in the table below.</p>" if rest > 0 else ""
    return f'<div class="grid">{"".join(figures)}</div>{more}'


def _every_picture(quality: Quality) -> str:
    head = "".join(
        f"<th>{title}</th>"
        for title in (
            "picture",
            "pose",
            "features",
            "partners",
            "points",
            "error px",
            "sharpness",
            "brightness",
            "remarks",
        )
    )
    lines = []
    for picture in quality.pictures:
        pose = "yes" if picture.group == 0 else "no" if picture.group is None else f"group {picture.group}"
        cells = [
            escape(printable(picture.name)),
            pose,
            f"{picture.features:,}",
            str(picture.partners),
            str(picture.observations),
            _number(picture.error),
            _number(picture.sharpness),
            _number(picture.brightness),
            escape("; ".join(filter(None, (picture.missing, *picture.remarks)))),
        ]
        state = ' class="missing"' if picture.missing else ' class="remarkable"' if picture.remarks else ""
        lines.append(f"<tr{state}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f'<div class="scroll"><table class="pictures"><thead><tr>{head}</tr></thead>{"".join(lines)}</table></div>'


# ---------------------------------------------------------------------------------------------------------------------
# Pieces


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _table(lines: Sequence[tuple[str, str]]) -> str:
    body = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in lines)
    return f'<div class="scroll"><table>{body}</table></div>'


def _list(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(printable(s))}</li>' for s in sentences)}</ul>" if sentences else ""


def _svg(label: str, parts: Sequence[str], caption: str) -> str:
    opening = f'<svg viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="{escape(label)}">'
    return f"<figure>{opening}{''.join(parts)}</svg><figcaption>{escape(caption)}</figcaption></figure>"


def _line(a: NDArray[np.float64], b: NDArray[np.float64], kind: str) -> str:
    return f'<line class="{kind}" x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}"/>'


def _thumbnail(quality: Quality, picture: Picture) -> str:
    """A small copy of a picture as an img element; a sentence where it cannot be read."""
    path = quality.footage.root / "images" / picture.name
    try:
        with Image.open(path) as file:
            file.draft("RGB", (THUMBNAIL, THUMBNAIL))
            small = file.convert("RGB")
            small.thumbnail((THUMBNAIL, THUMBNAIL))
            return f'<img alt="{escape(printable(picture.name))}" src="{_data_uri(small, "JPEG")}">'
    except UNREADABLE:
        return "<p>The picture cannot be read.</p>"


def _data_uri(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    if kind == "JPEG":
        image.save(buffer, kind, quality=72)
    else:
        image.save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _short(name: str) -> str:
    """The end of a name, which is what differs."""
    name = printable(name)
    return name if len(name) <= 14 else f"…{name[-13:]}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if math.isfinite(share) else "–"


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "–"


def _plain(value: Any) -> Any:
    """JSON has no NaN and no tuples: null and lists instead; and six digits are enough."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #6b7280; --paper: #fbfaf7; --card: #fff; --rule: #e3e1da;
  --good: #15803d; --doubt: #b45309; --bad: #dc2626; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e4df; --soft: #9aa0a6; --paper: #16181b; --card: #1e2125; --rule: #33373d;
    --good: #4ade80; --doubt: #fbbf24; --bad: #f87171; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(.8rem, 3vw, 2rem) 4rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; margin: 1rem 0 .6rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .7rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p, figcaption { color: var(--soft); } figure { margin: 0; } figcaption { font-size: .85rem; padding: .25rem 0; }
figcaption b { color: var(--ink); display: block; }
.verdict { font-size: 1.25rem; color: var(--ink); border-left: .5rem solid; padding: .5rem .9rem; border-radius: 6px;
  background: var(--card); }
.verdict b { margin-right: .5rem; } .good, .good b { border-color: var(--good); } .good b { color: var(--good); }
.usable { border-color: var(--doubt); } .usable b { color: var(--doubt); }
.verdict.bad { border-color: var(--bad); } .verdict.bad b { color: var(--bad); }
.figures { display: flex; flex-wrap: wrap; gap: .7rem; }
.figures div { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: .6rem .9rem; }
.figures b { font-size: 1.5rem; } .figures span { display: block; color: var(--soft); font-size: .85rem; }
.findings { list-style: none; padding: 0; margin: 0; }
.findings li { border-left: .3rem solid var(--rule); padding: .15rem .8rem; margin: .4rem 0; }
.findings .bad { border-color: var(--bad); } .findings .doubt { border-color: var(--doubt); }
ol { margin: 0; padding-left: 1.4rem; } ul { margin: 0; }
.wide { display: grid; gap: 0 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
img { display: block; width: 100%; height: auto; border-radius: 6px; background: var(--card); }
svg { display: block; width: 100%; height: auto; border: 1px solid var(--rule); border-radius: 8px;
  background: var(--card); }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.dots { stroke: var(--soft); stroke-width: 1.6; stroke-linecap: round; opacity: .55; }
.camera { stroke: var(--card); stroke-width: .7; } .walk { stroke: var(--rule); stroke-width: 1.5; }
.subject { fill: none; stroke: var(--good); stroke-width: 2; } .frame { fill: none; stroke: var(--rule); }
.break { stroke: var(--bad); stroke-width: 2; stroke-dasharray: 5 4; }
.ring { fill: none; stroke: var(--bad); stroke-width: 2; }
.grid { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 11rem), 1fr)); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .28rem .9rem .28rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; color: var(--soft); white-space: nowrap; }
.pictures td:nth-child(n+3):nth-child(-n+8), .pictures th:nth-child(n+3):nth-child(-n+8) { text-align: right; }
.pictures td:first-child { min-width: 9rem; }
.missing td { color: var(--bad); } .remarkable td:last-child { color: var(--doubt); }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Poses of {title} · Lightfold</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
