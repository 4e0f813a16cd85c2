"""Five known cameras, small pictures, and writers that follow the specifications of the formats, not the readers."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightfold.cameras import Camera, Lens
from lightfold.geometry import Similarity, look_at, quaternion_from_rotation, so3_exp, so3_log

WIDTH, HEIGHT = 40, 30
OPENGL_FROM_OPENCV = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))


def rig(cx: float = 18.3, cy: float = 16.1, fx: float = 37.0, fy: float = 35.5) -> list[Camera]:
    """Five cameras on an arc that look at the origin, not square, with the principal point off the middle."""
    cameras = []
    for i in range(5):
        angle = 0.3 * i - 0.5
        eye = torch.tensor([3 * math.sin(angle), -3 * math.cos(angle), 0.4 + 0.2 * i], dtype=torch.float64)
        target = torch.tensor([0.05 * i, 0.1, 0.0], dtype=torch.float64)
        pose = look_at(eye, target, torch.tensor([0.0, 0.1, 1.0], dtype=torch.float64))
        intrinsics = torch.tensor([fx, fy, cx, cy], dtype=torch.float64)
        lens = Lens.PINHOLE
        cameras.append(Camera(pose, intrinsics, torch.zeros(0, dtype=torch.float64), WIDTH, HEIGHT, lens))
    return cameras


def world_points() -> Tensor:
    """[24, 3] points in front of every camera of the rig."""
    return torch.rand(24, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) - 0.5


def save_picture(path: Path, width: int = WIDTH, height: int = HEIGHT, mode: str = "RGB", orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    Image.new(mode, (width, height), 128).save(path, exif=exif)
    return path


def opengl_matrix(camera: Camera) -> list[list[float]]:
    """Camera-to-world 4x4 with OpenGL camera axes, as rows."""
    world_from_cam = camera.world_from_cam
    rows = torch.cat([world_from_cam[:, :3] @ OPENGL_FROM_OPENCV, world_from_cam[:, 3:]], dim=1)
    return [*rows.tolist(), [0.0, 0.0, 0.0, 1.0]]


def ngp_document(cameras: list[Camera], names: list[str]) -> dict:
    fx, fy, cx, cy = cameras[0].intrinsics.tolist()
    frames = [
        {"file_path": name, "transform_matrix": opengl_matrix(camera)}
        for name, camera in zip(names, cameras, strict=True)
    ]
    return {"fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": WIDTH, "h": HEIGHT, "frames": frames}


def write_transforms(folder: Path, document: dict, pictures: bool = True, name: str = "transforms.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for frame in document["frames"] if pictures else ():
        save_picture(folder / frame["file_path"])
    (folder / name).write_text(json.dumps(document), encoding="utf-8")
    return folder


def colmap_pose(camera: Camera) -> list[float]:
    return [*quaternion_from_rotation(camera.cam_from_world[:, :3]).tolist(), *camera.cam_from_world[:, 3].tolist()]


def write_colmap(folder: Path, binary: bool, cameras: list, images: list, points: list) -> Path:
    """cameras: (id, model id, model name, width, height, params); images: (id, pose, camera id, name, observations as
    (x, y, point id)); points: (id, xyz, rgb, error, track as (image id, index))."""
    folder.mkdir(parents=True, exist_ok=True)
    if binary:
        data = struct.pack("<Q", len(cameras))
        for number, model, _, width, height, params in cameras:
            data += struct.pack(f"<IiQQ{len(params)}d", number, model, width, height, *params)
        (folder / "cameras.bin").write_bytes(data)
        data = struct.pack("<Q", len(images))
        for number, pose, camera, name, observations in images:
            data += struct.pack("<I7dI", number, *pose, camera) + name.encode() + b"\0"
            data += struct.pack("<Q", len(observations)) + b"".join(struct.pack("<ddq", *o) for o in observations)
        (folder / "images.bin").write_bytes(data)
        data = struct.pack("<Q", len(points))
        for number, xyz, rgb, error, track in points:
            data += struct.pack("<Q3d3BdQ", number, *xyz, *rgb, error, len(track))
            data += b"".join(struct.pack("<II", *t) for t in track)
        (folder / "points3D.bin").write_bytes(data)
        return folder
    lines = ["# Camera list", *(f"{c[0]} {c[2]} {c[3]} {c[4]} " + " ".join(map(repr, c[5])) for c in cameras)]
    (folder / "cameras.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = ["# Image list with two lines of data per image:", "#   IMAGE_ID, QW, ..."]
    for number, pose, camera, name, observations in images:
        lines.append(f"{number} " + " ".join(map(repr, pose)) + f" {camera} {name}")
        lines.append(" ".join(f"{x} {y} {p}" for x, y, p in observations))
    (folder / "images.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = ["# 3D point list"]
    for number, xyz, rgb, error, track in points:
        numbers = [number, *map(repr, xyz), *rgb, repr(error), *(v for t in track for v in t)]
        lines.append(" ".join(map(str, numbers)))
    (folder / "points3D.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def colmap_model(cameras: list[Camera], names: list[str]) -> tuple[list, list, list]:
    """Rows for write_colmap, with ids that are neither contiguous nor sorted, and one point seen by the first two."""
    rows = [(7, 1, "PINHOLE", WIDTH, HEIGHT, cameras[0].intrinsics.tolist())]
    ids = [31, 3, 7, 1, 12][: len(cameras)]
    images = [
        (number, colmap_pose(camera), 7, name, [(1.5, 2.5, 99)] if i < 2 else [])
        for i, (number, camera, name) in enumerate(zip(ids, cameras, names, strict=True))
    ]
    track = [(number, 0) for number in ids[:2]]
    points = [(99, (0.1, 0.2, 0.3), (10, 20, 30), 0.5, track), (5, (1.0, 2.0, 3.0), (255, 0, 1), 1.5, [])]
    return rows, images, points


# --- formats of capture apps and photogrammetry programs ----------------------------------------------------------


# The world of the files whose capture has a frame of its own: world_from_capture.
WORLD = Similarity(
    40.0, so3_exp(torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)), torch.tensor([-28.0, 5.0, 640.0]).double()
)


def numbered(count: int = 5) -> list[str]:
    return [f"{i}.png" for i in range(count)]


def write_record3d(folder: Path, cameras: list[Camera]) -> Path:
    """An EXR + RGB export: quaternions xyzw of OpenGL camera axes, K column by column."""
    poses = []
    for name, camera in zip(numbered(len(cameras)), cameras, strict=True):
        save_picture(folder / "EXR_RGBD" / "rgb" / name)
        matrix = torch.tensor(opengl_matrix(camera), dtype=torch.float64)
        w, x, y, z = quaternion_from_rotation(matrix[:3, :3]).tolist()
        poses.append([x, y, z, w, *matrix[:3, 3].tolist()])
    fx, fy, cx, cy = cameras[0].intrinsics.tolist()
    times = [i / 60 for i in range(len(cameras))]
    document = {"w": WIDTH, "h": HEIGHT, "K": [fx, 0, 0, 0, fy, 0, cx, cy, 1], "poses": poses, "frameTimestamps": times}
    (folder / "EXR_RGBD" / "metadata.json").write_text(json.dumps(document))
    return folder


def write_polycam(folder: Path, cameras: list[Camera]) -> Path:
    """A raw data export with optimised poses."""
    keyframes = folder / "keyframes"
    (keyframes / "corrected_cameras").mkdir(parents=True)
    for i, camera in enumerate(cameras):
        save_picture(keyframes / "corrected_images" / f"{1000 + i}.jpg")
        entry = dict(zip(("fx", "fy", "cx", "cy"), camera.intrinsics.tolist(), strict=True))
        entry |= {"width": WIDTH, "height": HEIGHT, "blur_score": 100.0}
        matrix = opengl_matrix(camera)
        entry |= {f"t_{row}{column}": matrix[row][column] for row in range(3) for column in range(4)}
        (keyframes / "corrected_cameras" / f"{1000 + i}.json").write_text(json.dumps(entry))
    return folder


def integer_centres(camera: Camera) -> np.ndarray:
    """K [3, 3] with the first pixel's centre at (0, 0)."""
    fx, fy, cx, cy = camera.intrinsics.tolist()
    return np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])


def write_neus(folder: Path, cameras: list[Camera]) -> Path:
    """cameras_sphere.npz with projections from WORLD, each with another scale and sign, which mean nothing."""
    matrices = {}
    scale_mat = np.eye(4)
    scale_mat[:3, :3] = WORLD.scale * WORLD.rotation.numpy()
    scale_mat[:3, 3] = WORLD.translation.numpy()
    for i, camera in enumerate(cameras):
        save_picture(folder / "image" / f"{i:06d}.png")
        projection = integer_centres(camera) @ camera.transformed(WORLD).cam_from_world.numpy()
        matrices[f"world_mat_{i}"] = np.concatenate([(-3.0) ** i * projection, [[0, 0, 0, 1]]])
        matrices[f"scale_mat_{i}"] = scale_mat
    np.savez(folder / "cameras_sphere.npz", **matrices)
    return folder


def write_middlebury(folder: Path, cameras: list[Camera]) -> Path:
    lines = [str(len(cameras))]
    for name, camera in zip(numbered(len(cameras)), cameras, strict=True):
        save_picture(folder / name)
        pose = camera.cam_from_world.numpy()
        numbers = [*integer_centres(camera).ravel(), *pose[:, :3].ravel(), *pose[:, 3]]
        lines.append(" ".join([name, *(repr(float(number)) for number in numbers)]))
    (folder / "rig_par.txt").write_text("\n".join(lines) + "\n")
    (folder / "README.txt").write_text("The (tight) bounding box for the model is\n(-0.5 -0.5 -0.5)\n(0.5 0.5 0.6)\n")
    return folder


def write_opendronemap(folder: Path, cameras: list[Camera]) -> Path:
    """Axis times angle from the world to the camera; intrinsics in units of the longer side, from the middle."""
    fx, fy, cx, cy = cameras[0].intrinsics.tolist()
    side = max(WIDTH, HEIGHT)
    model = {"projection_type": "brown", "width": WIDTH, "height": HEIGHT, "focal_x": fx / side, "focal_y": fy / side}
    model |= {"c_x": (cx - WIDTH / 2) / side, "c_y": (cy - HEIGHT / 2) / side}
    model |= dict.fromkeys(("k1", "k2", "k3", "p1", "p2"), 0.0)
    shots = {}
    for name, camera in zip(numbered(len(cameras)), cameras, strict=True):
        save_picture(folder / "images" / name)
        rotation = so3_log(camera.cam_from_world[:, :3]).tolist()
        shots[name] = {"rotation": rotation, "translation": camera.cam_from_world[:, 3].tolist(), "camera": "v2"}
    points = {"7": {"color": [10.0, 20.0, 30.0], "coordinates": [0.1, 0.2, 0.3]}}
    reconstruction = {"cameras": {"v2": model}, "shots": shots, "points": points, "reference_lla": {"latitude": 48.1}}
    (folder / "opensfm").mkdir(parents=True)
    (folder / "opensfm" / "reconstruction.json").write_text(json.dumps([reconstruction]))
    return folder


def write_realitycapture(folder: Path, cameras: list[Camera]) -> Path:
    """Angles of R = Rz(-heading) Rx(pitch) Ry(roll), camera to world with OpenGL axes. One focal length only."""
    lines = ["#name,x,y,alt,heading,pitch,roll,f,px,py,k1,k2,k3,k4,t1,t2"]
    side = max(WIDTH, HEIGHT)
    for name, camera in zip(numbered(len(cameras)), cameras, strict=True):
        save_picture(folder / name)
        matrix = np.array(opengl_matrix(camera))
        heading = math.atan2(matrix[0, 1], matrix[1, 1])
        pitch = math.asin(matrix[2, 1])
        roll = math.atan2(-matrix[2, 0], matrix[2, 2])
        angles = [math.degrees(angle) for angle in (heading, pitch, roll)]
        fx, _, cx, cy = camera.intrinsics.tolist()
        inner = [fx * 36 / side, (cx - WIDTH / 2) / side, (cy - HEIGHT / 2) / side]
        numbers = [*matrix[:3, 3], *angles, *inner, 0, 0, 0, 0, 0, 0]
        lines.append(",".join([name, *(repr(float(number)) for number in numbers)]))
    (folder / "cameras.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_metashape(folder: Path, cameras: list[Camera], **calibration: float) -> Path:
    """Camera to component, with labels that lack the suffix, and a component that stands in WORLD."""
    fx, fy, cx, cy = cameras[0].intrinsics.tolist()
    values = {"f": fy, "b1": fx - fy, "cx": cx - WIDTH / 2, "cy": cy - HEIGHT / 2, **calibration}
    adjusted = "".join(f"<{name}>{value!r}</{name}>" for name, value in values.items())
    size = f'<resolution width="{WIDTH}" height="{HEIGHT}"/>'
    listed = ""
    for i, camera in enumerate(cameras):
        save_picture(folder / "photos" / f"{i}.png")
        numbers = [*camera.world_from_cam.flatten().tolist(), 0, 0, 0, 1]
        transform = " ".join(map(repr, numbers))
        listed += (
            f'<camera id="{i}" sensor_id="3" component_id="0" label="{i}"><transform>{transform}</transform></camera>'
        )
    place = f"<rotation>{' '.join(map(repr, WORLD.rotation.flatten().tolist()))}</rotation>"
    place += (
        f"<translation>{' '.join(map(repr, WORLD.translation.tolist()))}</translation><scale>{WORLD.scale!r}</scale>"
    )
    (folder / "cameras.xml").write_text(
        f"""<?xml version="1.0" encoding="UTF-8"?>
<document version="2.0.0"><chunk label="Chunk 1" enabled="true">
<sensors next_id="4"><sensor id="3" label="x" type="frame">{size}
<calibration type="frame" class="initial">{size}<f>1</f></calibration>
<calibration type="frame" class="adjusted">{size}{adjusted}</calibration></sensor></sensors>
<components next_id="1"><component id="0" active="true"><transform>{place}</transform></component></components>
<cameras>{listed}</cameras>
</chunk></document>
""",
        encoding="utf-8",
    )
    return folder


WRITERS: dict[str, Callable[[Path, list[Camera]], Path]] = {
    "record3d": write_record3d,
    "polycam": write_polycam,
    "neus": write_neus,
    "middlebury": write_middlebury,
    "opendronemap": write_opendronemap,
    "realitycapture": write_realitycapture,
    "metashape": write_metashape,
}
