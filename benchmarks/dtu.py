"""A surface of DTU's scan 65 from silhouettes and photographs: `neus` and the density of `ngp`, trained alike.

Every 8th view is held out. There is no ground truth in the capture, so a mesh is judged by what the photographs say of
it without any method's help:

    outside       share of the mesh's area whose points fall beside a silhouette in any view that should see them: what
                  lies outside the visual hull, more than 2 pixels from it, cannot be there
    iou           overlap of the mesh's silhouettes with the held-out ones: intersection over union, mean of the views
    roughness     median angle between neighbouring triangles, in degrees, both meshes cut from lattices of one size
    largest_piece share of the area in the largest connected piece

and the field by PSNR and SSIM of the held-out photographs, over a white background where the silhouettes are empty.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from scipy import ndimage

from lightfold.cli import main as command_line
from lightfold.evaluate import evaluate
from lightfold.export.mesh import MeshOptions, extract_mesh
from lightfold.export.surface import Mesh, face_vectors, pieces
from lightfold.formats import open_capture
from lightfold.machine import cache_folder
from lightfold.methods.base import HasDistance
from lightfold.run import Run
from lightfold.scene import Scene, load_scene

from .measure import peak_bytes
from .record import child, find_capture, parser, recorded

POINTS = 100_000
NEAR = 2
"""Pixels beside a silhouette that may be its own blur."""
SILHOUETTES = 4
"""Held-out silhouettes are drawn at this fraction of the pictures' size."""


def main() -> None:
    """One record with both methods."""
    made = parser(__doc__)
    made.add_argument("--methods", nargs="+", default=["neus", "ngp"])
    made.add_argument("--minutes", type=float, help="of each training; default 15, or 1 with --quick")
    made.add_argument("--resolution", type=int, default=384)
    made.add_argument("--keep", type=Path, help="keep the runs and the meshes in this folder")
    made.add_argument("--one", metavar="METHOD", help=argparse.SUPPRESS)
    options = made.parse_args()
    minutes = options.minutes or (1.0 if options.quick else 15.0)
    path = find_capture(options, "dtu_scan65")
    if path is None:
        raise SystemExit("There is no capture 'dtu_scan65'; say where captures are with --data or LIGHTFOLD_TEST_DATA.")
    if options.one:
        print(json.dumps(measure(options.one, path, minutes, options.resolution, options.keep)), flush=True)
        return
    with recorded("dtu", options) as record, tempfile.TemporaryDirectory() as scratch:
        keep = options.keep.resolve() if options.keep else Path(scratch)
        record.protocol |= {
            "capture": "DTU scan 65, 25 views, 800x600, silhouettes given, every 8th view held out, white behind",
            "minutes": minutes,
            "resolution": options.resolution,
            "outside": f"more than {NEAR} pixels beside a silhouette, in any of the 25 views",
        }
        for method in options.methods:
            words = ["benchmarks.dtu", "--one", method, "--minutes", str(minutes), "--keep", str(keep)]
            words += ["--resolution", str(options.resolution)]
            words += ["--data", str(options.data.resolve())] if options.data else []
            row = record.results[method] = child(words, timeout=1200 * minutes + 1800)
            print(f"{method}: {row}", flush=True)


def measure(method: str, path: Path, minutes: float, resolution: int, keep: Path) -> dict[str, Any]:
    """Train by the command line, cut the mesh, judge it."""
    folder = keep / method.replace(":", "-")
    words = ["train", method, str(path), "--minutes", str(minutes), "--scene.background", "white"]
    if command_line([*words, "--eval-every", "0", "--out", str(folder)]) != 0:
        raise SystemExit("the training failed")
    run = Run.open(folder)
    trained = run.method()
    scene = load_scene(open_capture(path).posed(), run.config.scene, cache_folder())
    mean = evaluate(trained, scene, "test")["mean"]
    source = "sdf" if isinstance(trained, HasDistance) else "density"
    found = extract_mesh(trained, MeshOptions(source=source, resolution=resolution))
    made = trimesh.Trimesh(found.mesh.vertices, found.mesh.faces, process=False)
    made.export(keep / f"{folder.name}.ply")
    return {"psnr": mean["psnr"], "ssim": mean["ssim"], **judged(found.mesh, scene), "peak_bytes": peak_bytes()}


def judged(mesh: Mesh, scene: Scene) -> dict[str, float]:
    """What the silhouettes, and the mesh itself, say of a mesh in the scene frame."""
    area = 0.5 * np.linalg.norm(face_vectors(mesh.vertices, mesh.faces), axis=1)
    rng = np.random.default_rng(0)
    face = rng.choice(len(area), size=POINTS, p=area / area.sum())
    share = rng.dirichlet([1.0, 1.0, 1.0], size=POINTS)
    points = torch.from_numpy(np.einsum("nc,ncd->nd", share, mesh.vertices[mesh.faces[face]])).float()
    outside = torch.zeros(POINTS, dtype=torch.bool)
    overlap = []
    for index, camera in enumerate(scene.info.cameras):
        silhouette = scene.view(index).alpha.numpy() > 0.5
        beside = ndimage.distance_transform_edt(~silhouette) > NEAR
        outside |= falls_on(points, camera, beside)
        if index in scene.info.test:
            small = camera.resized(camera.width // SILHOUETTES, camera.height // SILHOUETTES)
            drawn = drawn_silhouette(mesh, small)
            true = silhouette[SILHOUETTES // 2 :: SILHOUETTES, SILHOUETTES // 2 :: SILHOUETTES][: small.height]
            true = true[:, : small.width]
            overlap.append((drawn & true).sum() / (drawn | true).sum())
    solid = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    piece = pieces(mesh)
    return {
        "outside": float(outside.float().mean()),
        "iou": float(np.mean(overlap)),
        "roughness": float(np.degrees(np.median(solid.face_adjacency_angles))),
        "largest_piece": float(np.bincount(piece, weights=area).max() / area.sum()),
        "pieces": int(piece.max()) + 1,
        "triangles": len(mesh.faces),
    }


def falls_on(points: torch.Tensor, camera: Any, pixels: np.ndarray) -> torch.Tensor:
    """[N] whether a point is seen by the camera on a pixel that is set."""
    xy, seen = camera.project(points)
    column, row = torch.nan_to_num(xy).long().unbind(-1)
    inside = seen & (column >= 0) & (row >= 0) & (column < camera.width) & (row < camera.height)
    place = row.clamp(0, camera.height - 1) * camera.width + column.clamp(0, camera.width - 1)
    return inside & torch.from_numpy(pixels).reshape(-1)[place]


def drawn_silhouette(mesh: Mesh, camera: Any) -> np.ndarray:
    """[H, W] what the mesh covers: every pixel whose centre lies in some triangle's projection."""
    xy, _ = camera.project(torch.from_numpy(np.asarray(mesh.vertices)).float())
    corners = xy.numpy()[mesh.faces]
    low = np.ceil(corners.min(axis=1) - 0.5).astype(int).clip(0)
    high = np.floor(corners.max(axis=1) - 0.5).astype(int)
    drawn = np.zeros((camera.height, camera.width), dtype=bool)
    # Most triangles of a fine lattice span no pixel's centre.
    some = (high >= low).all(axis=1)
    for (a, b, c), (x0, y0), (x1, y1) in zip(corners[some], low[some], high[some], strict=True):
        x, y = np.meshgrid(np.arange(x0, min(x1, camera.width - 1) + 1), np.arange(y0, min(y1, camera.height - 1) + 1))
        p = np.stack([x, y], axis=-1) + 0.5
        side = [
            (v[0] - u[0]) * (p[..., 1] - u[1]) - (v[1] - u[1]) * (p[..., 0] - u[0]) for u, v in ((a, b), (b, c), (c, a))
        ]
        inside = (np.stack(side) >= 0).all(axis=0) | (np.stack(side) <= 0).all(axis=0)
        drawn[y[inside], x[inside]] = True
    return drawn


if __name__ == "__main__":
    main()
