"""A ring of cameras around a cloud of points, as the files that solving leaves: pictures, footage.json, a COLMAP
database, a model. Written from the specifications of the files, without COLMAP."""

from __future__ import annotations

import io
import math
import sqlite3
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lightfold.cameras import Camera, Lens
from lightfold.footage.shots import Footage, Shot
from lightfold.geometry import look_at, quaternion_from_rotation
from lightfold.poses.solve import Intrinsics, Solution, SubModel

WIDTH, HEIGHT, FOCAL = 400, 300, 350.0
PAIR_FACTOR = 2147483647


def ring(count: int, turn: float = 360.0, lens: Lens = Lens.SIMPLE_RADIAL) -> list[Camera]:
    """Cameras on an arc of this many degrees, at distance 4, that look at the origin."""
    cameras = []
    for i in range(count):
        angle = math.radians(turn * i / count)
        eye = torch.tensor([4 * math.cos(angle), 4 * math.sin(angle), 1.0], dtype=torch.float64)
        pose = look_at(eye, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 0, 1], dtype=torch.float64))
        if lens is Lens.EQUIRECTANGULAR:
            cameras.append(Camera.panorama(pose, 2 * HEIGHT, HEIGHT))
            continue
        params = [FOCAL, WIDTH / 2, HEIGHT / 2, 0.01]
        cameras.append(Camera.from_colmap("SIMPLE_RADIAL", params, WIDTH, HEIGHT, pose))
    return cameras


def write_capture(
    root: Path,
    truth: Sequence[Camera],
    *,
    names: Sequence[str] | None = None,
    model: Sequence[Camera | None] | None = None,
    linked: Callable[[int, int], bool] = lambda i, j: True,
    shows: Callable[[int, int, float], bool] = lambda camera, point, z: True,
    points: int = 200,
    started: float = FOCAL,
    changes: dict[int, dict[str, object]] | None = None,
    ordered: bool = True,
) -> tuple[Footage, Solution]:
    """Keypoints and matches of the true cameras; the model may say something else, None for no pose.

    Every camera sees the points that face it, so that neighbours share many and opposite cameras none. `shows` takes
    some away: by the numbers of camera and point, and the point's height.
    """
    count = len(truth)
    model = truth if model is None else model
    names = [f"{i:04d}.png" for i in range(count)] if names is None else names
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(points, 3)) * [1, 1, 0.5]
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    xyz = torch.from_numpy(normal * rng.uniform(0.8, 1.0, (points, 1)))
    width, height, lens = truth[0].width, truth[0].height, truth[0].lens
    # Point -> row among the keypoints of each picture.
    seen: list[dict[int, int]] = []
    pixels = []
    for i, camera in enumerate(truth):
        xy, valid = camera.project(xyz)
        facing = ((camera.center - xyz) * torch.from_numpy(normal)).sum(1) > 0
        if lens is Lens.EQUIRECTANGULAR:
            facing = torch.ones_like(facing)
        inside = valid & facing & (xy >= 0).all(1) & (xy[:, 0] < width) & (xy[:, 1] < height)
        inside &= torch.tensor([shows(i, point, float(xyz[point, 2])) for point in range(points)])
        seen.append({point: row for row, point in enumerate(inside.nonzero()[:, 0].tolist())})
        pixels.append(xy[inside].numpy())
    shots = tuple(
        replace(
            Shot(name, name, width, height, lens=lens.value, focal=None, sharpness=0.5, brightness=0.5),
            **(changes or {}).get(i, {}),
        )
        for i, name in enumerate(names)
    )
    footage = Footage(root, "panoramas" if lens is Lens.EQUIRECTANGULAR else "photos", ordered, shots)
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (120, 130, 140)).save(buffer, "PNG")
    for name in names:
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    footage.save()
    database = root / "colmap" / "database.db"
    database.parent.mkdir(parents=True, exist_ok=True)
    _write_database(database, names, seen, pixels, linked)
    chosen = [i for i in range(count) if model[i] is not None]
    folder = write_model(root / "colmap" / "sparse" / "0", names, model, seen, xyz.numpy())
    params = truth[0].to_colmap()[1]
    first = params if lens is Lens.EQUIRECTANGULAR else [started, *params[1:]]
    solution = Solution(
        model=folder,
        database=database,
        models=(SubModel(folder, tuple(names[i] for i in chosen)),),
        missing=tuple(names[i] for i in range(count) if i not in chosen),
        agreement=1.0,
        trusted=True,
        doubtful=(),
        error=0.3,
        intrinsics=(Intrinsics(lens.value, width, height, tuple(params), tuple(first), True, len(chosen)),),
        metric=False,
        origin=None,
        tries=("Incremental mapping: one model.",),
        seconds={"features": 1.0},
        notes=(),
    )
    return footage, solution


def write_model(
    folder: Path, names: Sequence[str], model: Sequence[Camera | None], seen: list[dict[int, int]], xyz: np.ndarray
) -> Path:
    """cameras.bin, images.bin and points3D.bin: image_id = 1 + index, one camera."""
    folder.mkdir(parents=True, exist_ok=True)
    posed = [(i, camera) for i, camera in enumerate(model) if camera is not None]
    lens, params = posed[0][1].to_colmap()
    number = {"SIMPLE_RADIAL": 2, "EQUIRECTANGULAR": 17}[lens]
    data = struct.pack("<QIiQQ", 1, 1, number, posed[0][1].width, posed[0][1].height)
    (folder / "cameras.bin").write_bytes(data + struct.pack(f"<{len(params)}d", *params))
    data = struct.pack("<Q", len(posed))
    for i, camera in posed:
        quaternion = quaternion_from_rotation(camera.cam_from_world[:, :3]).tolist()
        data += struct.pack("<I7dI", i + 1, *quaternion, *camera.cam_from_world[:, 3].tolist(), 1)
        data += names[i].encode() + b"\0" + struct.pack("<Q", 0)
    (folder / "images.bin").write_bytes(data)
    tracks = [[(i + 1, seen[i][p]) for i, _ in posed if p in seen[i]] for p in range(len(xyz))]
    kept = [p for p in range(len(xyz)) if len(tracks[p]) >= 2]
    data = struct.pack("<Q", len(kept))
    for p in kept:
        data += struct.pack("<Q3d3BdQ", p + 1, *xyz[p], 200, 100, 50, 0.3, len(tracks[p]))
        data += b"".join(struct.pack("<II", *entry) for entry in tracks[p])
    (folder / "points3D.bin").write_bytes(data)
    return folder


def _write_database(
    path: Path,
    names: Sequence[str],
    seen: list[dict[int, int]],
    pixels: list[np.ndarray],
    linked: Callable[[int, int], bool],
) -> None:
    """The tables of pycolmap 4.2.1 that are read; pairs with fewer than 15 matches are compared, and not linked."""
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE images (image_id INTEGER PRIMARY KEY, name TEXT, camera_id INTEGER)")
    database.execute("CREATE TABLE keypoints (image_id INTEGER PRIMARY KEY, rows INTEGER, cols INTEGER, data BLOB)")
    database.execute(
        "CREATE TABLE two_view_geometries (pair_id INTEGER PRIMARY KEY, rows INTEGER, cols INTEGER, data BLOB, "
        "config INTEGER)"
    )
    for i, name in enumerate(names):
        database.execute("INSERT INTO images VALUES (?, ?, 1)", (i + 1, name))
        table = np.concatenate([pixels[i], np.ones((len(pixels[i]), 4))], axis=1).astype("<f4")
        database.execute("INSERT INTO keypoints VALUES (?, ?, 6, ?)", (i + 1, len(table), table.tobytes()))
        for j in range(i + 1, len(names)):
            shared = sorted(set(seen[i]) & set(seen[j])) if linked(i, j) else []
            rows = [(seen[i][p], seen[j][p]) for p in shared] if len(shared) >= 15 else []
            data = np.array(rows, dtype="<u4").tobytes()
            values = ((i + 1) * PAIR_FACTOR + j + 1, len(rows), 2, data, 2 if rows else 1)
            database.execute("INSERT INTO two_view_geometries VALUES (?, ?, ?, ?, ?)", values)
    database.commit()
    database.close()
