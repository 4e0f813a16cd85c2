"""Pictures with known poses for the pose engine: a corner of a room whose walls and floor are covered in noise."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lightfold.cameras import Camera, Lens
from lightfold.footage.shots import Footage, Shot
from lightfold.geometry import look_at

WIDTH, HEIGHT, FOCAL = 320, 240, 300.0
Z = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)


def cameras(count: int = 8) -> list[Camera]:
    """Level cameras on an arc about the corner."""
    angle = torch.linspace(0.25, 1.3, count, dtype=torch.float64)
    eye = torch.stack([3.2 * angle.cos(), 3.2 * angle.sin(), 1.2 + 0.3 * (3 * angle).sin()], dim=1)
    poses = look_at(eye, torch.tensor([0.2, 0.2, 0.8], dtype=torch.float64), Z)
    intrinsics = torch.tensor([FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2], dtype=torch.float64)
    empty = torch.zeros(0, dtype=torch.float64)
    return [Camera(pose, intrinsics, empty, WIDTH, HEIGHT, Lens.SIMPLE_PINHOLE) for pose in poses]


def texture(seed: int) -> np.ndarray:
    """[1024, 1024] uint8 of noise at several scales, so that there are corners at every distance."""
    rng = np.random.default_rng(seed)
    total = np.zeros((1024, 1024))
    for side, weight in ((16, 1.0), (64, 1.0), (128, 1.2), (256, 1.2)):
        small = Image.fromarray(rng.integers(0, 255, (side, side)).astype(np.uint8))
        total += weight * np.asarray(small.resize((1024, 1024), Image.Resampling.BICUBIC), dtype=np.float64)
    return np.clip(255 * (total - total.min()) / (total.max() - total.min()), 0, 255).astype(np.uint8)


def render(camera: Camera, seed: int = 0) -> np.ndarray:
    """[H, W] uint8: the walls x = 0 and y = 0 and the floor z = 0, 4 units long each."""
    direction = camera.unproject(camera.pixel_grid().reshape(-1, 2)).numpy() @ camera.cam_from_world[:, :3].numpy()
    eye = camera.center.numpy()
    with np.errstate(divide="ignore"):
        distance = np.where(direction < 0, -eye / direction, np.inf)
    nearest = distance.argmin(axis=1)
    point = eye + direction * distance[np.arange(len(direction)), nearest][:, None]
    picture = np.zeros(len(point), dtype=np.uint8)
    for axis in range(3):
        on = nearest == axis
        u, v = (np.clip(point[on][:, k] / 5 * 1024, 0, 1023).astype(int) for k in range(3) if k != axis)
        picture[on] = texture(10 * seed + axis)[v, u]
    return picture.reshape(camera.height, camera.width)


def footage_of(pictures: dict[str, np.ndarray], root: Path, **known: object) -> Footage:
    """Footage of these grey pictures, as whoever gathers it leaves it."""
    shots = []
    for name, picture in pictures.items():
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
        shots.append(Shot(name, name, picture.shape[1], picture.shape[0], **known))  # type: ignore[arg-type]
    footage = Footage(root, "photos", False, tuple(shots))
    footage.save()
    return footage


def room(root: Path, count: int = 8, **known: object) -> tuple[Footage, list[Camera]]:
    """Footage of the room, whose names have spaces and letters beyond ASCII, and its true cameras."""
    truth = cameras(count)
    pictures = {f"eck e/größe {i:02}.png": render(camera) for i, camera in enumerate(truth)}
    return footage_of(pictures, root, **known), truth


def gps_of(camera: Camera) -> tuple[float, float, float]:
    """Where a camera of the room stood if one unit were 20 metres, near 47 degrees north."""
    east, north, up = (20 * camera.center).tolist()
    metre = 180 / math.pi / 6371000.0
    return 47.0 + north * metre, 8.0 + east * metre / math.cos(math.radians(47.0)), 400.0 + up
