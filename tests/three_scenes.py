"""The three kinds of scene in small: cameras and what is known of them, and a painted wall to learn."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightfold.cameras import Camera, Lens
from lightfold.geometry import Similarity, look_at
from lightfold.rays import Rays
from lightfold.scene import Pixels, SceneInfo

KINDS = ["bounded", "unbounded", "forward-facing"]
Triple = tuple[float, float, float]


def camera_at(eye: Triple, target: Triple = (0.0, 0.0, 0.0), side: int = 8) -> Camera:
    """A pinhole camera of about 50 degrees that sees `target`; +z is up, or -y where the camera looks along z."""
    position, aim = torch.tensor(eye, dtype=torch.float64), torch.tensor(target, dtype=torch.float64)
    up = torch.tensor([0.0, -1.0, 0.0] if eye[:2] == target[:2] else [0.0, 0.0, 1.0], dtype=torch.float64)
    intrinsics = torch.tensor([1.1 * side, 1.1 * side, side / 2, side / 2], dtype=torch.float64)
    return Camera(look_at(position, aim, up), intrinsics, torch.zeros(0, dtype=torch.float64), side, side, Lens.PINHOLE)


def info_of(kind: str, background: Triple | None = None) -> SceneInfo:
    """A scene of three cameras. Forward-facing: spread over a plane and pushed back and forth, looking along +z."""
    eyes = [(-0.3, 0.0, 0.1), (0.3, 0.1, -0.1), (0.0, -0.2, 0.0)]
    if kind == "forward-facing":
        cameras = tuple(camera_at(eye, (eye[0], eye[1], 5.0)).to(torch.float32) for eye in eyes)
    else:
        cameras = tuple(camera_at((3 * x + 2.0, y, 1.0)).to(torch.float32) for x, y, _ in eyes)
    return SceneInfo(
        bounded=kind == "bounded",
        cameras=cameras,
        names=("a", "b", "c"),
        train=(0, 1, 2),
        test=(),
        near=0.5,
        view_near=(0.6, 0.5, 0.7),
        far=4.0 if kind == "bounded" else 1000.0,
        scene_from_capture=Similarity.identity(),
        background=background,
        forward_facing=kind == "forward-facing",
    )


class Wall:
    """A scene that is painted, not photographed: a coloured wall at z = 2, seen from a plane of cameras at z = 0."""

    def __init__(self, kind: str) -> None:
        self.eyes = [(x, y, 0.02 * x) for x in (-0.4, -0.15, 0.15, 0.4) for y in (-0.3, 0.0, 0.3)]
        cameras = tuple(camera_at(eye, (eye[0], eye[1], 2.0), side=24).to(torch.float32) for eye in self.eyes)
        views = tuple(range(len(cameras)))
        named = {"names": tuple(map(str, views)), "train": views, "view_near": (0.8,) * len(views), "near": 0.8}
        # An expected distance has a long tail: weight of one part in a thousand at a far end of 1000 would add 1 to it.
        self.info = replace(info_of(kind), cameras=cameras, far=10.0, **named)
        rays = [camera.rays(camera.pixel_grid()) for camera in cameras]
        self.origin, self.direction = torch.cat([r.origin for r in rays]), torch.cat([r.direction for r in rays])

    @staticmethod
    def paint(rays: Rays) -> tuple[Tensor, Tensor]:
        """Colour and distance of the wall along rays."""
        distance = (2.0 - rays.origin[:, 2]) / rays.direction[:, 2]
        x, y, _ = rays.at(distance[:, None])[:, 0].unbind(-1)
        return 0.5 + 0.4 * torch.stack([(5 * x).sin(), (6 * y).sin(), (4 * x - 5 * y).cos()], dim=-1), distance

    def pixels(self, n: int, rng: torch.Generator) -> Pixels:
        chosen = torch.randint(len(self.origin), (n,), generator=rng)
        rays = Rays(self.origin[chosen], self.direction[chosen], near=torch.tensor(0.8))
        return Pixels(rays, self.paint(rays)[0], torch.ones(n), torch.zeros(n, 2))
