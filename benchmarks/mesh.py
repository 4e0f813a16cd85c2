"""Meshes of the sample capture against its exact geometry, from the density field and from fused depth.

The sample is made of known surfaces (examples/sample/make_sample.py), and rays are traced against them exactly. What
at least three training cameras see of the table, its cloth and all that stands on it is the truth: points, evenly
thinned. The mesh is judged in the same box, whatever it has elsewhere. Distances are measured both ways:

    accuracy      from points spread evenly over the mesh to the nearest true point
    completeness  from true points to the nearest point of the mesh
    Chamfer       the mean of the two means, in percent of the longest side of the box that holds the truth
    normals       angle between a triangle of the mesh and the surface at the nearest true point, median over the area

A floater is a connected piece of which more than half lies farther than 2 % of that side from any true point.

Pictures of the held-out views are judged by the same rays, whatever these meet: how far the mean and the median depth
are off, as a share of the distance, and by which angle the normals.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from lightfold.export.mesh import Extracted, MeshOptions, extract_mesh
from lightfold.export.surface import Mesh, face_vectors, pieces
from lightfold.export.views import render_views
from lightfold.methods.base import HasDistance, Method
from lightfold.render import depth_of, normals_of
from lightfold.run import Run

from .measure import peak_bytes
from .record import REPOSITORY, parser, recorded

SAMPLE = REPOSITORY / "examples" / "sample"
TRUTH_SIZE = (200, 150)
POINTS = 200_000
TABLE = np.array([[-0.72, -0.72, -0.30], [0.72, 0.72, 0.45]])
"""Box around the table's cloth and what stands on it, metres: the same for every method."""
SEEN = 3
"""Training cameras that must see a true point: what fewer see, no method can place."""
FAR = 0.02
"""Share of the extent beyond which a piece of mesh belongs to nothing."""


@dataclass(frozen=True)
class Score:
    """Distances in percent of the extent; floaters as a share of the mesh's area."""

    chamfer: float
    accuracy: float
    completeness: float
    accuracy_median: float
    completeness_median: float
    normals_median_degrees: float
    largest_floater: float
    triangles: int


def main() -> None:
    """Train, or take a run that is there; extract in each way; compare."""
    made = parser(__doc__)
    made.add_argument("--run", type=Path, help="a run of the sample; default: one is trained")
    made.add_argument("--minutes", type=float, help="training time; default 5, or 1 with --quick")
    made.add_argument("--method", default="ngp", help="the method that is trained; those with a signed distance too")
    made.add_argument("--resolution", type=int, default=512)
    options = made.parse_args()
    minutes = options.minutes or (1.0 if options.quick else 5.0)
    name = "mesh" if options.method == "ngp" else f"mesh-{options.method.replace(':', '-')}"
    with recorded(name, options) as record:
        run = Run.open(options.run) if options.run else trained(minutes, options.method)
        method = run.method()
        record.protocol |= {
            "method": run.config.method,
            "minutes": run.config.train.minutes,
            "resolution": options.resolution,
            "step": run.steps()[-1],
        }
        start = time.perf_counter()
        views = render_views(method)
        record.results["render_views_seconds"] = time.perf_counter() - start
        truth, normals = seen_truth(run)
        record.protocol["true_points"] = len(truth)
        for source in ("sdf",) if isinstance(method, HasDistance) else ("density", "fusion"):
            start = time.perf_counter()
            found = extract_mesh(method, MeshOptions(source=source, resolution=options.resolution), views=views)
            seconds = time.perf_counter() - start
            score = compare(in_capture(found, run), truth, normals)
            record.results[source] = {"seconds": seconds, "notes": list(found.notes), **vars(score)}
            print(f"{source}: Chamfer {score.chamfer:.3f} %, {score.triangles} triangles, {seconds:.1f} s", flush=True)
        record.results["pictures"] = judged_pictures(method, run)
        print(f"held-out pictures: {record.results['pictures']}", flush=True)
        record.results["peak_bytes"] = peak_bytes()


def judged_pictures(method: Method, run: Run) -> dict[str, float]:
    """Medians over the pixels of all held-out views that show something: errors of depth in percent of the distance,
    and of normals in degrees; and the share of those pixels that have a normal."""
    sample, to_scene = make_sample(), run.info.scene_from_capture
    width, height = TRUTH_SIZE
    grid = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1).reshape(-1, 2)
    walk = sample.camera_walk(60)
    mean, median, angle, known = [], [], [], []
    for index in run.info.test:
        camera = run.info.cameras[index].resized(width, height)
        true = walk[int(Path(run.info.names[index]).stem) - 1].resized(width, height)
        distance, normal = sample.scene_depth_normal(*sample.pixel_rays(true, grid))
        image = method.render(camera)
        shown = np.isfinite(distance) & (image.alpha.reshape(-1).numpy() > 0.5)
        truth = distance[shown] * to_scene.scale
        for errors, name in ((mean, "depth"), (median, "median_depth")):
            errors.append(np.abs(depth_of(image, name).reshape(-1).numpy()[shown] - truth) / truth)
        found = normals_of(image, camera).reshape(-1, 3).numpy()[shown]
        has_one = np.linalg.norm(found, axis=1) > 0.5
        cosine = (found * (normal[shown] @ to_scene.rotation.numpy().T)).sum(axis=1)
        angle.append(np.degrees(np.arccos(cosine[has_one].clip(-1, 1))))
        known.append(has_one)
    return {
        "depth_percent": 100 * float(np.median(np.concatenate(mean))),
        "median_depth_percent": 100 * float(np.median(np.concatenate(median))),
        "normals_degrees": float(np.median(np.concatenate(angle))),
        "with_a_normal": float(np.concatenate(known).mean()),
    }


def trained(minutes: float, method: str) -> Run:
    """A fresh run of the sample, by the command line as a user would."""
    import tempfile

    from lightfold.cli import main as command_line

    folder = Path(tempfile.mkdtemp(prefix="lightfold-mesh-")) / "run"
    words = ["train", method, str(SAMPLE), "--minutes", str(minutes), "--eval-every", "0", "--out", str(folder)]
    if command_line(words) != 0:
        raise SystemExit("the training failed")
    return Run.open(folder)


def make_sample() -> ModuleType:
    """examples/sample/make_sample.py as a module, which answers exact questions."""
    name = "make_sample"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, SAMPLE / "make_sample.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def seen_truth(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Exact points [N, 3] of the table in metres that enough training cameras see, and the surface's normals [N, 3]."""
    sample = make_sample()
    width, height = TRUTH_SIZE
    grid = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1).reshape(-1, 2)
    found, facing, farthest, cameras = [], [], [], []
    walk = sample.camera_walk(60)
    for index in run.info.train:
        camera = walk[int(Path(run.info.names[index]).stem) - 1].resized(*TRUTH_SIZE)
        origin, direction = sample.pixel_rays(camera, grid)
        distance, normal = sample.scene_depth_normal(origin, direction)
        hit = np.isfinite(distance)
        facing.append(normal[hit])
        found.append(origin + direction[hit] * distance[hit, None])
        farthest.append(ndimage.maximum_filter(distance.reshape(height, width), 3))
        cameras.append(camera)
    points, normals = np.concatenate(found), np.concatenate(facing)
    wanted = on_table(points)
    points, normals = points[wanted], normals[wanted]
    kept = thinned(points, POINTS)
    points, normals = points[kept], normals[kept]
    count = np.zeros(len(points), dtype=int)
    for camera, depth in zip(cameras, farthest, strict=True):
        xy, inside = sample.project(camera, points)
        column, row = np.nan_to_num(xy).clip(0, [width - 1, height - 1]).astype(int).T
        distance = np.linalg.norm(points - camera.world_from_camera[:3, 3], axis=1)
        count += inside & (distance <= 1.01 * depth[row, column])
    return points[count >= SEEN], normals[count >= SEEN]


def on_table(points: np.ndarray) -> np.ndarray:
    """[N] whether points [N, 3] in metres lie in the box that is judged."""
    return ((points >= TABLE[0]) & (points <= TABLE[1])).all(axis=1)


def thinned(points: np.ndarray, most: int) -> np.ndarray:
    """Indices of one point per cell of a grid, with the cells so small that about `most` remain: near surfaces count no
    more than far ones, however many pixels they fill."""
    low, high = 0.0, float(np.ptp(points, axis=0).max())
    kept = np.arange(len(points))
    for _ in range(20):
        cell = 0.5 * (low + high)
        _, first = np.unique(np.floor(points / cell).astype(np.int64), axis=0, return_index=True)
        kept = np.sort(first)
        low, high = (cell, high) if len(kept) > most else (low, cell)
        if abs(len(kept) - most) < 0.05 * most:
            break
    return kept


def in_capture(found: Extracted, run: Run) -> Mesh:
    return found.mesh.moved(run.info.scene_from_capture.inverse())


def compare(mesh: Mesh, truth: np.ndarray, normals: np.ndarray) -> Score:
    """Distances between a mesh and true points, both in metres, and angles between their normals."""
    extent = float(np.ptp(truth, axis=0).max())
    vectors = face_vectors(mesh.vertices, mesh.faces)
    area = 0.5 * np.linalg.norm(vectors, axis=1)
    area *= on_table(mesh.vertices[mesh.faces].mean(axis=1))
    if area.sum() == 0:
        raise SystemExit("the mesh has nothing where the table is")
    rng = np.random.default_rng(0)
    face = rng.choice(len(area), size=POINTS, p=area / area.sum())
    share = rng.dirichlet([1.0, 1.0, 1.0], size=POINTS)
    points = np.einsum("nc,ncd->nd", share, mesh.vertices[mesh.faces[face]])
    distance, nearest = cKDTree(truth).query(points)
    accuracy = distance / extent
    cosine = (vectors[face] * normals[nearest]).sum(axis=1) / np.maximum(2 * area[face], 1e-30)
    completeness = cKDTree(points).query(truth)[0] / extent
    piece = pieces(mesh)
    count = np.bincount(piece[face], minlength=piece.max() + 1)
    far = np.bincount(piece[face], weights=accuracy > FAR, minlength=piece.max() + 1)
    floats = far > 0.5 * np.maximum(count, 1)
    return Score(
        chamfer=50 * float(accuracy.mean() + completeness.mean()),
        accuracy=100 * float(accuracy.mean()),
        completeness=100 * float(completeness.mean()),
        accuracy_median=100 * float(np.median(accuracy)),
        completeness_median=100 * float(np.median(completeness)),
        normals_median_degrees=float(np.degrees(np.median(np.arccos(cosine.clip(-1, 1))))),
        largest_floater=float((count[floats] / POINTS).max()) if floats.any() else 0.0,
        triangles=len(mesh.faces),
    )


if __name__ == "__main__":
    main()
