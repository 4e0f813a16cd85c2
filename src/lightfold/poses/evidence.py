"""What can be known about a solution from the files it left: COLMAP's database and the chosen model, as arrays.

The database is read with the standard library and the model by `formats.colmap`, so that a report can be made, and
tested, without COLMAP. S is the number of shots, in the order of the footage, and all indices of pictures refer to it.

The relative poses that COLMAP's tables have a place for are empty unless asked for (measured: pycolmap 4.2.1 leaves
qvec and tvec NULL), so the matches themselves are the witnesses; see `agreement`.
"""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..cameras import Camera, Lens
from ..capture import Capture, Points
from ..errors import CaptureError
from ..footage.shots import Footage
from ..formats import colmap
from .absence import absent_shares
from .agreement import epipolar_angles
from .solve import Solution

PAIR_FACTOR = 2147483647
"""A pair of images is stored as image_id1 * PAIR_FACTOR + image_id2, with image_id1 < image_id2."""
FLAT = (4, 5, 6)
"""Two-view configurations PLANAR, PANORAMIC and PLANAR_OR_PANORAMIC: a homography explains all matches."""
MOST_MATCHES = 300
"""Matches of a pair that are looked at, evenly spaced: their share is then known to three per cent."""
TOLERANCE, TOLERANCE_PANORAMA = 0.004, 0.001
"""By how much matches may miss the model's epipolar lines, in lengths of the longer side at the middle's resolution.
Nearly all matches of right models miss by less. A panorama's longer side is a full turn, so its share is smaller."""


@dataclass(frozen=True, eq=False)
class Links:
    """L pairs of pictures with verified matches.

    pair:    [L, 2] indices of shots, the smaller first.
    matches: [L] verified matches.
    shift:   [L] median distance between where the two pictures show the same thing, in lengths of the longer side.
    flat:    [L] whether one homography explains all matches: the camera turned on the spot, or saw a plane.
    fits:    [L] share of the matches that lie on the epipolar lines of the model; NaN where a picture has no pose.
    absent:  [L] share of the regions of a picture whose points the other should see and does not; see `absence`.
    """

    pair: NDArray[np.int64]
    matches: NDArray[np.int64]
    shift: NDArray[np.float64]
    flat: NDArray[np.bool_]
    fits: NDArray[np.float64]
    absent: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Facts about S pictures and the model of some of them.

    features:     [S] keypoints found in each picture.
    links:        pairs with verified matches.
    unlinked:     [U, 2] pairs that were compared and gave no verified match.
    registered:   [S] whether the picture has a pose.
    cam_from_world: [S, 3, 4] in the model's frame, whose z is up; NaN without a pose.
    observations: [S] points of the model that the picture sees.
    error:        [S] mean reprojection error of these points in pixels; NaN without any.
    points, colours: [P, 3] positions and [P, 3] uint8 colours of the points.
    point_error:  [P] pixels.
    track_length: [P] pictures that see each point.
    angle:        [P] radians, the largest angle under which two pictures see the point.
    depth:        [S] median distance of the points that the picture sees; NaN without any.
    """

    features: NDArray[np.int64]
    links: Links
    unlinked: NDArray[np.int64]
    registered: NDArray[np.bool_]
    cam_from_world: NDArray[np.float64]
    observations: NDArray[np.int64]
    error: NDArray[np.float64]
    points: NDArray[np.float64]
    colours: NDArray[np.uint8]
    point_error: NDArray[np.float64]
    track_length: NDArray[np.int64]
    angle: NDArray[np.float64]
    depth: NDArray[np.float64]

    @property
    def centres(self) -> NDArray[np.float64]:
        """[S, 3] where the cameras stand; NaN without a pose."""
        rotation, translation = self.cam_from_world[:, :, :3], self.cam_from_world[:, :, 3]
        return -np.einsum("sji,sj->si", rotation, translation)

    @property
    def forward(self) -> NDArray[np.float64]:
        """[S, 3] where they look; NaN without a pose."""
        return self.cam_from_world[:, 2, :3]


def gather(footage: Footage, solution: Solution) -> Evidence:
    """Read the evidence. Raises CaptureError when the model or the database is missing or damaged."""
    count = len(footage.shots)
    # By their files: the names of frames are cleaned of what a terminal may not show.
    index = {_place(footage.image(shot)): i for i, shot in enumerate(footage.shots)}
    model = colmap.read(solution.model)
    cameras: list[Camera | None] = [None] * count
    shot_of_frame = np.full(len(model.frames), -1, dtype=np.int64)
    for f, frame in enumerate(model.frames):
        shot = index.get(_place(frame.path))
        if shot is not None and frame.camera is not None:
            shot_of_frame[f] = shot
            cameras[shot] = frame.camera
    poses = np.full((count, 3, 4), math.nan)
    for i, camera in enumerate(cameras):
        if camera is not None:
            poses[i] = camera.cam_from_world.numpy()
    sees, seen = _tracks(model, shot_of_frame)
    points = model.points or Points(torch.zeros(0, 3, dtype=torch.float64))
    xyz = points.xyz.numpy()
    point_error = np.full(len(xyz), math.nan) if points.error is None else points.error.numpy()
    with np.errstate(invalid="ignore"):
        observations = np.bincount(sees, minlength=count)
        error = np.bincount(sees, point_error[seen], minlength=count) / np.where(observations, observations, np.nan)
    features, links, unlinked = _read_database(solution.database, footage, cameras)
    evidence = Evidence(
        features=features,
        links=links,
        unlinked=unlinked,
        registered=np.array([camera is not None for camera in cameras], dtype=bool),
        cam_from_world=poses,
        observations=observations,
        error=error,
        points=xyz,
        colours=np.zeros((len(xyz), 3), dtype=np.uint8) if points.rgb is None else points.rgb.numpy(),
        point_error=point_error,
        track_length=np.bincount(seen, minlength=len(xyz)),
        angle=np.zeros(len(xyz)),
        depth=np.full(count, math.nan),
    )
    ray = xyz[seen] - evidence.centres[sees]
    evidence.angle[:] = _widest_angles(ray, seen, len(xyz))
    for i in np.unique(sees):
        evidence.depth[i] = np.median(np.linalg.norm(ray[sees == i], axis=1))
    links.absent[:] = absent_shares(links.pair, cameras, evidence.depth, xyz, sees, seen)
    return evidence


# ---------------------------------------------------------------------------------------------------------------------
# The model


def _place(path: Path) -> Path:
    """Where a file lies, without links on the way there; the file itself may be one."""
    return path.parent.resolve() / path.name


def _tracks(model: Capture, shot_of_frame: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Observations as (shot [M], point [M]), sorted by point. A point seen twice by a picture counts once."""
    if model.points is None or model.points.tracks is None:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    point, frame = (tensor.numpy() for tensor in model.points.tracks)
    shot = shot_of_frame[frame]
    rows = np.unique(np.stack([point, shot], axis=1)[shot >= 0], axis=0)
    return rows[:, 1], rows[:, 0]


def _widest_angles(ray: NDArray[np.float64], seen: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """[count] the largest angle between two rays to each point, by two sweeps: the ray farthest from the first one,
    then the ray farthest from that. Exact when the rays lie in a plane, and never more than the truth.

    ray: [M, 3] from camera to point. seen: [M] number of the point, ascending.
    """
    angle = np.zeros(count)
    if not len(seen):
        return angle
    ray = ray / np.maximum(np.linalg.norm(ray, axis=1, keepdims=True), 1e-300)
    present, start = np.unique(seen, return_index=True)
    length = np.diff(np.append(start, len(seen)))
    chosen = start
    for _ in range(2):
        chord = np.linalg.norm(ray - np.repeat(ray[chosen], length, axis=0), axis=1)
        # Within each point the largest chord comes last.
        order = np.lexsort((chord, seen))
        chosen = order[start + length - 1]
    angle[present] = 2 * np.arcsin(np.clip(chord[chosen] / 2, 0, 1))
    return angle


# ---------------------------------------------------------------------------------------------------------------------
# The database


def _read_database(
    path: Path, footage: Footage, cameras: list[Camera | None]
) -> tuple[NDArray[np.int64], Links, NDArray[np.int64]]:
    """Features of each shot, links, and pairs compared without a match. Raises CaptureError."""
    if not path.is_file():
        raise CaptureError(f"The database {path} is gone, so the poses cannot be judged. Find them again.")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            return _read_tables(database, footage, cameras)
    except (sqlite3.Error, ValueError, TypeError, OverflowError, IndexError) as error:
        raise CaptureError(
            f"The database {path} is damaged ({error}). Delete it, and the poses are found again."
        ) from error


def _read_tables(
    database: sqlite3.Connection, footage: Footage, cameras: list[Camera | None]
) -> tuple[NDArray[np.int64], Links, NDArray[np.int64]]:
    index = {shot.name: i for i, shot in enumerate(footage.shots)}
    rows = database.execute("SELECT image_id, name FROM images")
    shot_of_image = {int(number): index[name] for number, name in rows if name in index}
    features = np.zeros(len(footage.shots), dtype=np.int64)
    pixels: dict[int, NDArray[np.float64]] = {}
    rays: dict[int, NDArray[np.float64]] = {}
    for number, count, columns, data in database.execute("SELECT image_id, rows, cols, data FROM keypoints"):
        shot = shot_of_image.get(int(number))
        if shot is None or not count:
            continue
        features[shot] = count
        pixels[shot] = np.frombuffer(data, "<f4").reshape(count, columns)[:, :2].astype(np.float64)
        camera = cameras[shot]
        if camera is not None:
            rays[shot] = camera.unproject(torch.from_numpy(pixels[shot])).numpy()
    linked, unlinked = [], []
    query = "SELECT pair_id, rows, cols, data, config FROM two_view_geometries"
    for number, count, columns, data, configuration in database.execute(query):
        a, b = (shot_of_image.get(image) for image in divmod(int(number), PAIR_FACTOR))
        if a is None or b is None:
            continue
        if not count:
            unlinked.append((min(a, b), max(a, b)))
            continue
        matches = np.frombuffer(data, "<u4").reshape(count, columns)
        matches = matches[np.linspace(0, count - 1, min(count, MOST_MATCHES)).astype(np.int64)]
        size = max(footage.shots[a].width, footage.shots[a].height)
        shift = float(np.median(np.linalg.norm(pixels[a][matches[:, 0]] - pixels[b][matches[:, 1]], axis=1))) / size
        fits = math.nan
        first, second = cameras[a], cameras[b]
        if first is not None and second is not None:
            rays_a, rays_b = rays[a][matches[:, 0]], rays[b][matches[:, 1]]
            pose_a, pose_b = first.cam_from_world.numpy(), second.cam_from_world.numpy()
            error = epipolar_angles(pose_a, pose_b, rays_a, rays_b)
            # A pixel that no ray reaches, in the corner of a folded lens, is NaN, and fits nothing.
            tolerance = max(_tolerance(first), _tolerance(second))
            fits = float((error < tolerance).mean())
        linked.append((min(a, b), max(a, b), count, shift, configuration in FLAT, fits))
    table = np.array(sorted(linked), dtype=np.float64).reshape(-1, 6)
    links = Links(
        pair=table[:, :2].astype(np.int64),
        matches=table[:, 2].astype(np.int64),
        shift=table[:, 3],
        flat=table[:, 4] != 0,
        fits=table[:, 5],
        absent=np.full(len(table), math.nan),
    )
    return features, links, np.array(sorted(unlinked), dtype=np.int64).reshape(-1, 2)


def _tolerance(camera: Camera) -> float:
    """Radians by which matches of this camera may miss."""
    if camera.lens is Lens.EQUIRECTANGULAR:
        return TOLERANCE_PANORAMA * 2 * math.pi
    return TOLERANCE * max(camera.width, camera.height) / float(camera.intrinsics[:2].mean())
