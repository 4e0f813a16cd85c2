"""Five known cameras, small pictures, and writers that follow the specifications of the formats, not the readers."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lightfold.cameras import Camera, Lens
from lightfold.geometry import look_at, quaternion_from_rotation

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
