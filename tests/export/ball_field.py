"""A method whose surface is known exactly: the ball of `analytic_sphere`, with a density and a signed distance."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from analytic_sphere import Sphere, camera_at, info_of
from torch import Tensor

from lightfold.export.views import Seen, render_views
from lightfold.methods.base import Image
from lightfold.scene import SceneInfo

RADIUS = 0.7
DISTANCE = 2.6


def ball_info(views: int = 16, side: int = 48, **changes: object) -> SceneInfo:
    """Cameras evenly on a sphere (Fibonacci), in the scene of `analytic_sphere`, whose capture has another scale."""
    cameras = []
    for i in range(views):
        height = 1 - 2 * (i + 0.5) / views
        around, azimuth = math.sqrt(1 - height**2), math.pi * (1 + math.sqrt(5)) * i
        eye = DISTANCE * torch.tensor([around * math.cos(azimuth), around * math.sin(azimuth), height])
        cameras.append(camera_at(eye, torch.zeros(3), side, side, 1.05 * side))
    return info_of(cameras, None, **changes)


class BallRender(Sphere):
    """Renders a ball of radius RADIUS, exactly. Nothing else may be asked of it."""

    def render(self, camera, background: Tensor | None = None) -> Image:  # type: ignore[no-untyped-def]
        # A ball of another size is the unit ball seen by a camera that is farther away in proportion.
        pose = camera.cam_from_world.clone()
        pose[:, 3] /= RADIUS
        image = super().render(replace(camera, cam_from_world=pose), background)
        return replace(image, depth=image.depth * RADIUS)


class BallField(BallRender):
    """The same with a density that falls off smoothly across the surface; at 20 it is where the pictures show it."""

    def density_at(self, points: Tensor) -> Tensor:
        return 20 * torch.exp((RADIUS - points.norm(dim=1)) * 60).clamp(max=50)


class FloatingField(BallField):
    """The same with a dense lump before the ball that no picture shows, and a hollow inside that no camera sees."""

    def density_at(self, points: Tensor) -> Tensor:
        lump = (points - torch.tensor([0.0, 0.0, 0.95])).norm(dim=1) < 0.05
        hollow = points.norm(dim=1) < 0.4
        return torch.where(hollow, 0.0, torch.where(lump, 500.0, super().density_at(points)))


class BallDistance(BallRender):
    """The same with a signed distance."""

    def sdf_at(self, points: Tensor) -> Tensor:
        return points.norm(dim=1) - RADIUS


def ball_views(method: Sphere, side: int = 48) -> list[Seen]:
    return render_views(method, 16, side)  # type: ignore[arg-type]
