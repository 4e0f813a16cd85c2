"""A method that needs no training: one coloured sphere, hit exactly. Tests of what comes after training use it."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import Tensor

from lightfold.cameras import Camera, Lens
from lightfold.geometry import Similarity, look_at
from lightfold.methods.base import Image
from lightfold.scene import SceneInfo, View

RED = torch.tensor([0.9, 0.2, 0.1])
UP = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)


def camera_at(eye: Tensor, target: Tensor, width: int = 48, height: int = 36, focal: float = 40.0) -> Camera:
    """A pinhole at `eye` that looks at `target`, z up."""
    return Camera(
        cam_from_world=look_at(eye.double(), target.double(), UP).float(),
        intrinsics=torch.tensor([focal, focal, width / 2, height / 2]),
        distortion=torch.zeros(0),
        width=width,
        height=height,
        lens=Lens.PINHOLE,
    )


def ring(n: int, share: float = 1.0, radius: float = 3.0, height: float = 1.0) -> list[Tensor]:
    """n points on a share of a circle about the z axis."""
    angles = [2 * math.pi * share * i / n for i in range(n)]
    return [torch.tensor([radius * math.cos(a), radius * math.sin(a), height], dtype=torch.float64) for a in angles]


def info_of(cameras: list[Camera], test_every: int | None = 4, **changes: object) -> SceneInfo:
    """What a scene would say of these cameras; every k-th is held out."""
    test = tuple(range(0, len(cameras), test_every)) if test_every else ()
    info = SceneInfo(
        bounded=True,
        cameras=tuple(cameras),
        names=tuple(f"images/view_{i}.png" for i in range(len(cameras))),
        train=tuple(i for i in range(len(cameras)) if i not in test),
        test=test,
        near=0.5,
        view_near=(0.5,) * len(cameras),
        far=10.0,
        scene_from_capture=Similarity(0.5, torch.eye(3, dtype=torch.float64), torch.tensor([0.1, -0.2, 0.3])),
    )
    return replace(info, **changes)  # type: ignore[arg-type]


class Sphere:
    """A sphere of radius 1 at the origin; constant colour, or its normal as colour. Stands in for a trained Method."""

    def __init__(self, info: SceneInfo, shaded: bool = False, with_normals: bool = True) -> None:
        self.info = info
        self.shaded = shaded
        self.with_normals = with_normals
        self.rendered: list[Camera] = []

    def render(self, camera: Camera, background: Tensor | None = None, crop: object = None) -> Image:
        self.rendered.append(camera)
        rays = camera.rays(camera.pixel_grid())
        along = -(rays.origin * rays.direction).sum(dim=1)
        inside = along.square() - rays.origin.square().sum(dim=1) + 1.0
        t = along - inside.clamp(min=0).sqrt()
        hit = (inside > 0) & (t > 0)
        point = rays.origin + rays.direction * t[:, None]
        colour = 0.5 * point + 0.5 if self.shaded else RED.expand_as(point)
        behind = torch.zeros(3) if background is None else background
        shape = (camera.height, camera.width)
        return Image(
            rgb=torch.where(hit[:, None], colour, behind).float().reshape(*shape, 3),
            alpha=hit.float().reshape(shape),
            depth=torch.where(hit, t, 0.0).float().reshape(shape),
            normal=torch.where(hit[:, None], point, 0.0).float().reshape(*shape, 3) if self.with_normals else None,
        )


def scene_of(info: SceneInfo, noise: float = 0.0, masked: tuple[int, ...] = (), alpha: bool = True) -> SimpleNamespace:
    """A scene whose photographs are the sphere's own pictures plus noise; masked views ignore their left half."""

    def view(index: int) -> View:
        camera = info.cameras[index]
        image = Sphere(info).render(camera)
        generator = torch.Generator().manual_seed(index)
        rgb = (image.rgb + noise * torch.randn(image.rgb.shape, generator=generator)).clamp(0, 1)
        mask = torch.ones(camera.height, camera.width, dtype=torch.bool)
        if index in masked:
            mask[:, : camera.width // 2] = False
        opaque = image.alpha if alpha else torch.ones_like(image.alpha)
        return View(camera=camera, rgb=rgb, alpha=opaque, mask=mask, name=info.names[index], index=index)

    return SimpleNamespace(info=info, view=view)
