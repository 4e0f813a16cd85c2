"""Poses of real captures, thrown away and found again: pictures registered, seconds, errors, and the report's verdict.

Each capture is gathered and solved with the defaults in a process of its own. Where a reference exists, errors are
those after the similarity that aligns the camera centres best; rotations also after removing one rotation that is
constant in the cameras' own axes, because two solutions whose principal points differ, differ by just that and see the
same. Positions are in per cent of the diagonal of the box around the reference's centres.

A reference is a solution too, and not the truth: fox has the poses that instant-ngp publishes, beer_can_video a COLMAP
model of every tenth frame, between which the reference is interpolated at the times of the frames that were chosen.
sceaux_castle has a calibrated focal length. The others have nothing to be compared with.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import torch

from lightfold.footage.gather import gather
from lightfold.footage.shots import Footage
from lightfold.formats import open_capture
from lightfold.geometry import invert, so3_exp, so3_log
from lightfold.poses.align import pose_errors
from lightfold.poses.config import PoseConfig
from lightfold.poses.page import write_quality
from lightfold.poses.quality import Quality, assess
from lightfold.poses.solve import solve
from lightfold.poses.write import read_model, write_capture

from .record import captures, child, find_capture, parser, recorded

LONGEST = 3600.0
JUMP = 4.0
"""Steps this many times longer than usual are no steps of a walk."""
SPACING = 1 / 3
"""Seconds between the frames of beer_can_video that its reference has: every tenth of 30 per second."""


@dataclass(frozen=True)
class Case:
    """A capture: its folder, what is footage in it, and what it is compared with."""

    capture: str
    footage: str = ""
    reference: str = ""


CASES = {
    "fox": Case("fox", "images", "transforms"),
    "beer_can_video": Case("beer_can_video", "Beer.mp4", "frames"),
    "sceaux_castle": Case("sceaux_castle", "", "focal"),
    "lund": Case("lund", "images"),
    "odm_banana": Case("odm_banana"),
    "theta_office": Case("theta_office"),
}
QUICK = ("fox",)


def main() -> None:
    """One record with all captures."""
    made = parser(__doc__)
    made.add_argument("--cases", nargs="+", choices=list(CASES), help="default: all, and fox with --quick")
    made.add_argument("--keep", type=Path, help="keep the captures that are made, with their reports, in this folder")
    made.add_argument("--one", metavar="CASE", help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.one:
        print(json.dumps(one(options)), flush=True)
        return
    names = options.cases or (QUICK if options.quick else CASES)
    if options.keep and any((options.keep / name).exists() for name in names):
        made.error("the folder of --keep has captures of an earlier measurement, whose work would be found again")
    with recorded("poses", options) as record:
        record.protocol |= {
            "configuration": "defaults",
            "clock": "gathering and solving; reading references and judging are outside",
            "alignment": "similarity of camera centres; rotation_degrees without the constant camera-frame rotation",
            "positions": "per cent of the diagonal of the box around the reference's centres",
        }
        for name in names:
            if find_capture(options, CASES[name].capture) is None:
                print(f"{name} is skipped: there is no capture '{name}' in {captures(options)}.")
                continue
            words = ["benchmarks.poses", "--one", name]
            words += ["--data", str(options.data.resolve())] if options.data else []
            words += ["--keep", str(options.keep.resolve())] if options.keep else []
            found = child(words, timeout=LONGEST)
            record.results[name] = found
            print(f"{name}: {line(found)}", flush=True)


def line(found: dict[str, Any]) -> str:
    """A capture's result in one line."""
    if "error" in found:
        return f"no poses after {found['wall_seconds']:.0f} s: {found['error']}"
    text = f"{found['registered']} of {found['pictures']}, {found['verdict']}, {found['wall_seconds']:.0f} s"
    errors = found.get("errors")
    if errors:
        text += f", {errors['rotation_degrees']['median']:.3f} degrees, {errors['position_percent']['median']:.3f} %"
    return text


def one(options: argparse.Namespace) -> dict[str, Any]:
    """Gather, solve and judge one capture in this process."""
    case = CASES[options.one]
    source = find_capture(options, case.capture)
    if source is None:
        raise SystemExit(f"There is no capture '{case.capture}' in {captures(options)}.")
    if options.keep:
        return measured(case, source, options.keep / options.one)
    with tempfile.TemporaryDirectory() as folder:
        return measured(case, source, Path(folder) / options.one)


def measured(case: Case, source: Path, out: Path) -> dict[str, Any]:
    """Numbers of one capture; a sentence where it has no solution."""
    from lightfold.errors import LightfoldError

    wall, cpu = time.perf_counter(), processor_seconds()
    try:
        footage = gather(source / case.footage, out)
        gathered = time.perf_counter() - wall
        solution = solve(footage, PoseConfig())
    except LightfoldError as error:
        return {
            # Folders differ from machine to machine.
            "error": str(error).replace(str(out.resolve()), out.name).replace(str(out), out.name),
            "wall_seconds": time.perf_counter() - wall,
            "cpu_seconds": processor_seconds() - cpu,
        }
    clocks = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": processor_seconds() - cpu}
    write_capture(footage, solution)
    quality = assess(footage, solution)
    write_quality(quality, out)
    model = read_model(footage, solution)
    names = [frame.name for frame in model.frames]
    estimate = torch.stack([frame.camera.cam_from_world for frame in model.frames if frame.camera is not None])
    return clocks | {
        "gathering_wall_seconds": gathered,
        "stage_seconds": solution.seconds,
        "tries": list(solution.tries),
        "pictures": len(footage.shots),
        "registered": quality.registered,
        "largest_groups": sorted((len(group) for group in quality.groups), reverse=True),
        "verdict": quality.verdict,
        "reasons": list(quality.reasons),
        "agreement": quality.agreement,
        "weakest_seam": quality.seams[0].share if quality.seams else None,
        "reprojection_error_pixels": quality.mean_error,
        "focal_deviation_percent": focal_deviation(case, source, quality),
        "errors": errors(case, source, footage, names, estimate),
    }


def processor_seconds() -> float:
    """Of this process and of its children that have ended, which is where COLMAP ran."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


# --------------------------------------------------------------------------------------------------------- references


def errors(
    case: Case, source: Path, footage: Footage, names: list[str], estimate: torch.Tensor
) -> dict[str, Any] | None:
    """Median and greatest errors against the reference; None where there is none, or too few pictures."""
    if case.reference == "transforms":
        truth = {frame.path.name: frame.camera.cam_from_world for frame in open_capture(source).posed().frames}
        known = [i for i, name in enumerate(names) if Path(name).name in truth]
        reference = [truth[Path(names[i]).name] for i in known]
        return summary(estimate[known], torch.stack(reference)) if len(known) > 3 else None
    if case.reference == "frames":
        times = {shot.name: shot.time for shot in footage.shots}
        at = np.array([times[name] for name in names], dtype=np.float64)
        return against_frames(source / "sparse" / "0", at, estimate)
    return None


def summary(estimate: torch.Tensor, reference: torch.Tensor) -> dict[str, Any]:
    """Errors of poses [N, 3, 4] against others of the same cameras."""
    found = pose_errors(estimate, reference)
    percent = 100 * found.position / found.extent
    return {
        "pictures": len(estimate),
        "rotation_degrees": spread(found.rotation_free),
        "rotation_degrees_with_constant": spread(found.rotation),
        "position_percent": spread(percent),
    }


def spread(values: torch.Tensor) -> dict[str, float]:
    """Median and greatest."""
    return {"median": float(values.median()), "max": float(values.max())}


def against_frames(model: Path, at: np.ndarray, estimate: torch.Tensor) -> dict[str, Any] | None:
    """Errors against a model of frames SPACING apart, interpolated at the times `at`: those of the longest part.

    The can's label is printed on it twice, and the reference is folded about it: three times it jumps to the other side
    from one frame to the next. Only the parts between its jumps can be compared with anything, each by itself. The
    offset in time between both, within a spacing, is the one that fits best.
    """
    numbers, poses = reference_frames(model)
    centre = invert(poses)[..., 3]
    step = (centre[1:] - centre[:-1]).norm(dim=1).numpy() / np.diff(numbers)
    ends = [0, *(np.flatnonzero(step > JUMP * np.median(step)) + 1), len(numbers)]
    parts = [
        part
        for first, last in zip(ends, ends[1:], strict=False)
        if (part := against_part(numbers[first:last], poses[first:last], at, estimate)) is not None
    ]
    if not parts:
        return None
    return max(parts, key=lambda part: part["pictures"]) | {"parts": parts, "jumps_of_the_reference": len(ends) - 2}


def against_part(
    numbers: np.ndarray, poses: torch.Tensor, at: np.ndarray, estimate: torch.Tensor
) -> dict[str, Any] | None:
    """Errors within one part of the reference; None when too few pictures fall into it."""
    best: dict[str, Any] | None = None
    for offset in np.linspace(-SPACING, SPACING, 41):
        position = (at - offset) / SPACING
        inside = (position >= numbers[0]) & (position <= numbers[-1])
        if inside.sum() < 6:
            continue
        found = summary(estimate[torch.from_numpy(inside)], interpolated(numbers, poses, position[inside]))
        found["offset_seconds"] = float(offset)
        if best is None or found["position_percent"]["median"] < best["position_percent"]["median"]:
            best = found
    return best


def reference_frames(model: Path) -> tuple[np.ndarray, torch.Tensor]:
    """Numbers [K] that are the names of a model's pictures, and their cam_from_world [K, 3, 4], ascending."""
    # The pictures themselves are not there, so the reader of captures, which wants them, is no help.
    images = pycolmap.Reconstruction(str(model)).images.values()
    poses = {int(Path(image.name).stem): np.asarray(image.cam_from_world().matrix()) for image in images}
    numbers = np.array(sorted(poses))
    return numbers, torch.from_numpy(np.stack([poses[number] for number in numbers]))


def interpolated(numbers: np.ndarray, poses: torch.Tensor, position: np.ndarray) -> torch.Tensor:
    """cam_from_world [N, 3, 4] between the poses of a smooth path: Catmull-Rom for centres, the geodesic for rotations.

    numbers: [K] ascending whole numbers at which the poses [K, 3, 4] are known. position: [N] between first and last.
    """
    after = np.clip(np.searchsorted(numbers, position, side="right"), 1, len(numbers) - 1)
    before = after - 1
    share = torch.from_numpy((position - numbers[before]) / (numbers[after] - numbers[before]))[:, None]
    centre = invert(poses)[..., 3]
    last = len(numbers) - 1
    p0, p1, p2, p3 = (centre[np.clip(k, 0, last)] for k in (before - 1, before, after, after + 1))
    u = share
    smooth = p1 + u / 2 * (p2 - p0 + u * (2 * p0 - 5 * p1 + 4 * p2 - p3 + u * (3 * (p1 - p2) + p3 - p0)))
    turn = so3_log(poses[after][..., :3] @ poses[before][..., :3].mT)
    rotation = so3_exp(share * turn) @ poses[before][..., :3]
    return torch.cat([rotation, -(rotation @ smooth[..., None])], dim=-1)


def focal_deviation(case: Case, source: Path, quality: Quality) -> float | None:
    """Of the first camera's focal length from the calibration in K.txt, for a picture of the same width."""
    if case.reference != "focal":
        return None
    words = (source / "K.txt").read_text(encoding="utf-8").split()
    return 100 * (quality.lenses[0].focal / float(words[0]) - 1)


if __name__ == "__main__":
    main()
