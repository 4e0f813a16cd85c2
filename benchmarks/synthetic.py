"""Scenes made of a formula, for measurements that must not depend on data: a checkered ball over a checkered ground."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Photo
from torch import Tensor

from lightfold.cameras import Camera, Lens
from lightfold.capture import Capture, Frame
from lightfold.formats import transforms
from lightfold.geometry import Similarity, look_at
from lightfold.rays import Rays
from lightfold.scene import Pixels, SceneInfo

RADIUS = 0.6
FLOOR = -0.6


def shade(origin: Tensor, direction: Tensor) -> Tensor:
    """What a ray sees: origin and unit direction [N, 3] -> rgb [N, 3] in [0, 1]."""
    along = (origin * direction).sum(dim=1)
    root = (along**2 - (origin**2).sum(dim=1) + RADIUS**2).clamp(min=0).sqrt()
    ball = torch.where((root > 0) & (-along - root > 0), -along - root, torch.inf)
    down = (FLOOR - origin[:, 2]) / direction[:, 2]
    ground = torch.where((down > 0) & (down < 8), down, torch.inf)
    t = torch.minimum(ball, ground)
    hit = torch.isfinite(t)
    point = origin + torch.where(hit, t, 0)[:, None] * direction
    check = torch.sin(point * 23).prod(dim=1).sign() * 0.25 + 0.5
    tint = 0.5 + 0.5 * torch.sin(point * torch.tensor([2.0, 3.0, 4.0]))
    sky = torch.tensor([0.55, 0.7, 0.9]) - 0.2 * direction[:, 2:]
    return torch.where(hit[:, None], (0.3 + check[:, None]) * tint, sky).clamp(0, 1)


def ring(count: int, width: int, height: int) -> list[Camera]:
    """Cameras (float64) around the ball on a wave, looking at it."""
    up, target = torch.tensor([0.0, 0.0, 1.0]).double(), torch.zeros(3).double()
    cameras = []
    for i in range(count):
        angle = 2 * math.pi * i / count
        eye = torch.tensor([2.2 * math.cos(angle), 2.2 * math.sin(angle), 0.5 + 0.4 * math.sin(3 * angle)]).double()
        cameras.append(
            Camera(
                cam_from_world=look_at(eye, target, up),
                intrinsics=torch.tensor([width, width, width / 2, height / 2]).double(),
                distortion=torch.zeros(0).double(),
                width=width,
                height=height,
                lens=Lens.PINHOLE,
            )
        )
    return cameras


def write_capture(folder: Path, count: int, width: int, height: int, distinct: int | None = None) -> Path:
    """A posed capture of `count` photographs as transforms.json and JPEGs.

    distinct: how many photographs are really computed; the others are further names of the one taken closest by.
    """
    distinct = min(count, distinct or count)
    made = []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for i, camera in enumerate(ring(distinct, width, height)):
        rays = camera.rays(camera.pixel_grid().double())
        rgb = shade(rays.origin.float(), rays.direction.float()).reshape(height, width, 3)
        path = folder / "images" / f"{i:05d}.jpg" if distinct == count else folder / f"{i:05d}.jpg"
        Photo.fromarray((rgb.numpy() * 255).round().astype(np.uint8)).save(path, quality=95, subsampling=0)
        made.append(path)
    frames = []
    for i, camera in enumerate(ring(count, width, height)):
        path = folder / "images" / f"{i:05d}.jpg"
        if distinct < count:
            path.hardlink_to(made[round(i * distinct / count) % distinct])
        frames.append(Frame(path=path, camera=camera, name=f"images/{path.name}"))
    transforms.write(Capture(root=folder, format="transforms", frames=tuple(frames)), folder)
    return folder


class BallScene:
    """The same as a scene that methods can train on, with its pixels computed when they are drawn."""

    def __init__(self, bounded: bool) -> None:
        cameras = [camera.to(torch.float32) for camera in ring(24, 320, 240)]
        self.info = SceneInfo(
            bounded=bounded,
            cameras=tuple(cameras),
            names=tuple(str(i) for i in range(len(cameras))),
            train=tuple(range(len(cameras))),
            test=(),
            near=0.6,
            view_near=(0.6,) * len(cameras),
            far=4.0 if bounded else 1000.0,
            scene_from_capture=Similarity.identity(),
        )

    def pixels(self, n: int, rng: torch.Generator) -> Pixels:
        """n pixels of random views."""
        cameras = self.info.cameras
        per_view = -(-n // len(cameras))
        xy = torch.rand(len(cameras), per_view, 2, generator=rng) * torch.tensor([320.0, 240.0])
        parts = [camera.rays(points) for camera, points in zip(cameras, xy, strict=True)]
        order = torch.randperm(per_view * len(cameras), generator=rng)[:n]
        origin = torch.cat([part.origin for part in parts])[order]
        direction = torch.cat([part.direction for part in parts])[order]
        rays = Rays(
            origin=origin,
            direction=direction,
            radius=torch.cat([part.radius for part in parts])[order],
            near=torch.full((n,), self.info.near),
            far=torch.full((n,), self.info.far),
            view=torch.zeros(n, dtype=torch.int64),
        )
        return Pixels(
            rays=rays, rgb=shade(origin, direction), alpha=torch.ones(n), depth=None, xy=xy.reshape(-1, 2)[order]
        )
