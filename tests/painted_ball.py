"""A scene that is painted, not photographed: the shaded ball of `analytic_sphere`, with or without a sky behind it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from analytic_sphere import Sphere, camera_at, info_of
from torch import Tensor

from lightfold.cameras import Camera
from lightfold.methods.base import Image
from lightfold.rays import Rays
from lightfold.scene import Pixels, SceneInfo, View


def cameras_around(count: int, side: int, focal: float, radius: float = 2.6) -> list[Camera]:
    """Cameras on a sphere, each a golden angle on from the last, that look at the middle; focal length in sides."""
    cameras = []
    for i in range(count):
        azimuth, height = 2 * math.pi * i * 0.381966, 0.9 * math.sin(2.4 * i)
        around = radius * math.cos(height)
        eye = torch.tensor([around * math.cos(azimuth), around * math.sin(azimuth), radius * math.sin(height)])
        cameras.append(camera_at(eye, torch.zeros(3), side, side, focal * side))
    return cameras


class PaintedBall:
    """Stands in for a Scene: `info`, `pixels` and `view`.

    bounded: the ball alone, transparent around it. Otherwise a smooth sky fills the background and all is opaque.
    """

    def __init__(self, bounded: bool = True, views: int = 20, side: int = 32, focal: float = 1.05) -> None:
        cameras = cameras_around(views, side, focal)
        white = (1.0, 1.0, 1.0) if bounded else None
        self.info: SceneInfo = replace(
            info_of(cameras, 6), bounded=bounded, background=white, has_alpha=bounded, far=10.0 if bounded else 1000.0
        )
        self._sphere = Sphere(self.info, shaded=True)
        self._painted = [self._paint(camera) for camera in cameras]
        rays = [cameras[i].rays(cameras[i].pixel_grid()) for i in self.info.train]
        self._origin, self._direction = torch.cat([r.origin for r in rays]), torch.cat([r.direction for r in rays])
        self._rgb = torch.cat([self._painted[i].rgb.reshape(-1, 3) for i in self.info.train])
        self._alpha = torch.cat([self._painted[i].alpha.reshape(-1) for i in self.info.train])

    def _paint(self, camera: Camera) -> Image:
        """Four by four samples per pixel; the colour of a transparent pixel is that of the part that is not."""
        fine = self._sphere.render(camera.resized(4 * camera.width, 4 * camera.height))
        shape = (camera.height, 4, camera.width, 4)
        alpha = fine.alpha.reshape(*shape).mean(dim=(1, 3))
        rgb = (fine.rgb * fine.alpha[..., None]).reshape(*shape, 3).mean(dim=(1, 3))
        if self.info.bounded:
            return Image(rgb / alpha.clamp(min=1 / 16)[..., None], alpha, alpha * 0)
        direction = camera.rays(camera.pixel_grid()).direction.reshape(camera.height, camera.width, 3)
        sky = 0.5 + 0.3 * torch.sin(2 * direction)
        return Image(rgb + (1 - alpha)[..., None] * sky, torch.ones_like(alpha), alpha * 0)

    def pixels(self, n: int, rng: torch.Generator) -> Pixels:
        chosen = torch.randint(len(self._rgb), (n,), generator=rng)
        near, far = torch.full((n,), self.info.near), torch.full((n,), self.info.far)
        rays = Rays(self._origin[chosen], self._direction[chosen], near=near, far=far)
        return Pixels(rays, self._rgb[chosen], self._alpha[chosen], torch.zeros(n, 2))

    def view(self, index: int) -> View:
        camera, image = self.info.cameras[index], self._painted[index]
        mask = torch.ones(camera.height, camera.width, dtype=torch.bool)
        return View(camera, image.rgb, image.alpha, mask, self.info.names[index], index)

    def truth(self, index: int) -> Tensor:
        """A view over white where it is transparent."""
        view = self.view(index)
        return view.rgb * view.alpha[..., None] + 1 - view.alpha[..., None]
