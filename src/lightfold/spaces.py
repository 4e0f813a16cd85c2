"""Which part of a ray counts, and in which coordinates a network sees it: the difference between three kinds of scene.

    Bounded        an object in the cube [-1, 1]^3
    Unbounded      content all around and far away
    ForwardFacing  all cameras look the same way

s in [0, 1] measures the part of a ray on which samples may lie; what an even step in s is differs from kind to kind.
Positions become coordinates in steps, each of which a method may take on its own:

    rays in the scene --bound--> with near and far --straight--> rays in a space where intervals are even in `spacing`
                      --at, or a method's own--> what the network sees
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .devices import constant
from .geometry import contract, look_at
from .proposal import Spacing
from .rays import Box, Rays, meeting, ndc_rays

if TYPE_CHECKING:
    from .scene import SceneInfo

BOX = 1.05
"""Half side of the cube sampled in a bounded scene. Content fills [-1, 1]^3, and a surface needs air before it."""
NEAREST = 1e-3
"""Least near distance where 1 / distance matters, in scene units."""
Places = tuple[Tensor, Tensor, Tensor]
"""points [R, N, 3] in the network's coordinates, length [R, N] of the path up to there, whose differences are the
deltas, and distance [R, N] along the ray in scene units."""


class Space:
    """What the three kinds have in common. `SceneInfo` decides which it is: see `space_of`."""

    tubes: ClassVar[bool] = False
    """Whether a pixel's cone is a tube of constant radius in those coordinates."""
    spacing: ClassVar[Spacing] = Spacing.LINEAR
    """What an even step in s is, on rays that `straight` returns."""
    contracts: ClassVar[bool] = False
    """Whether the network sees `geometry.contract` of those coordinates."""

    def bound(self, rays: Rays) -> Rays:
        """The same rays with near and far of the part that counts, in scene units; near >= far where there is none."""
        raise TypeError(f"{type(self).__name__} must define bound()")

    def meeting(self, rays: Rays, fixed: bool = False) -> tuple[Tensor, Rays]:
        """`rays.meeting` of bound rays. With `fixed`, those that miss become one that can be made straight."""
        return meeting(rays, fixed)

    def straight(self, rays: Rays) -> Rays:
        """Bound rays, in coordinates where they are straight and `spacing` is meant, with near and far measured there.
        Directions need not be unit."""
        return rays

    def distance(self, rays: Rays, t: Tensor) -> Tensor:
        """Distance [R, N] along bound rays, in scene units, of t [R, N] on their `straight` ones."""
        return t

    def t_at(self, rays: Rays, distance: Tensor) -> Tensor:
        """The inverse of `distance`."""
        return distance

    def at(self, rays: Rays, s: Tensor) -> Places:
        """Where s [R, N] lies on bound rays."""
        straight = self.straight(rays)
        t = self.spacing.t_from_s(s, straight.near, straight.far)
        points = straight.at(t)
        length = t * straight.direction.norm(dim=-1, keepdim=True)
        return contract(points) if self.contracts else points, length, self.distance(rays, t)


class Bounded(Space):
    """An object in the cube [-1, 1]^3: even steps in distance, between the two walls of the cube."""

    def __init__(self, info: SceneInfo) -> None:
        self.near = info.near
        self.box = Box(torch.eye(3, 4) / BOX)

    def bound(self, rays: Rays) -> Rays:
        enter, leave = self.box.span(rays.origin, rays.direction)
        near = torch.maximum(enter, rays.near).clamp(min=self.near)
        return replace(rays, near=near, far=torch.minimum(leave, rays.far))


class Unbounded(Space):
    """Content all around and far away: even steps in 1/distance, because a pixel resolves the far field ever less.

    All of space is contracted into a ball of radius 2 (mip-NeRF 360, equation 10), for a network can learn no detail in
    coordinates that run into the hundreds.
    """

    spacing = Spacing.RECIPROCAL
    contracts = True

    def __init__(self, info: SceneInfo) -> None:
        self.near, self.far = max(info.near, NEAREST), info.far

    def bound(self, rays: Rays) -> Rays:
        return replace(rays, near=rays.near.clamp(min=self.near), far=rays.far.clamp(max=self.far))


class ForwardFacing(Space):
    """All cameras look the same way: normalised device coordinates of the average camera (NeRF 2020, appendix C).

    The view pyramid beyond a near plane becomes a cube, in which a ray stays straight and even steps are even steps in
    1/depth, up to infinity.
    """

    tubes = True

    def __init__(self, info: SceneInfo) -> None:
        cameras = [info.cameras[i] for i in info.train]
        if not cameras:
            raise ValueError("info.train: expected at least one training view, got none")
        rows = torch.stack([camera.cam_from_world[:, :3].double() for camera in cameras])  # right, down, forward
        centres = torch.stack([camera.center.double() for camera in cameras])
        forward = F.normalize(rows[:, 2].mean(dim=0), dim=0)
        # Seen from the rearmost camera plane, every camera has depth >= 0, so the near plane is in front of the origin.
        centre = centres.mean(dim=0)
        depth = (centres - centre) @ forward
        centre = centre + depth.min() * forward
        near = torch.tensor([info.view_near[i] for i in info.train], dtype=torch.float64)
        self.near = max(float((depth - depth.min() + near).min()), NEAREST)
        self.far = info.far
        self.ndc_from_world = look_at(centre, centre + forward, -rows[:, 1].mean(dim=0)).float()
        # One lens for all: warping by a slightly wrong focal length only stretches the cube.
        self.width, self.height = cameras[0].width, cameras[0].height
        self.focal = float(cameras[0].intrinsics[0])

    def turned(self, rays: Rays) -> Rays:
        """Rays in the axes of the average camera."""
        pose = constant(self.ndc_from_world, rays.origin.device).to(rays.origin.dtype)
        rotation, translation = pose[:, :3], pose[:, 3]
        return replace(rays, origin=rays.origin @ rotation.T + translation, direction=rays.direction @ rotation.T)

    def bound(self, rays: Rays) -> Rays:
        turned = self.turned(rays)
        depth, slope = turned.origin[:, 2], turned.direction[:, 2]
        near = torch.maximum((self.near - depth) / slope.clamp(min=1e-6), rays.near)
        # A ray that looks sideways or back never enters the pyramid.
        return replace(rays, near=near, far=torch.where(slope > 1e-3, rays.far.clamp(max=self.far), 0.0))

    def meeting(self, rays: Rays, fixed: bool = False) -> tuple[Tensor, Rays]:
        if not fixed:
            return meeting(rays)
        # The average camera's own ray: one that looks sideways has no place in the cube.
        pose = constant(self.ndc_from_world, rays.origin.device).to(rays.origin.dtype)
        return meeting(rays, fixed, -pose[:, :3].T @ pose[:, 3], pose[2, :3])

    def straight(self, rays: Rays) -> Rays:
        warped = ndc_rays(self.turned(rays), self.focal, self.width, self.height, self.near)
        near, far = self.t_at(rays, torch.stack([rays.near, rays.far], dim=1)).unbind(1)
        return replace(warped, near=near, far=far)

    def distance(self, rays: Rays, t: Tensor) -> Tensor:
        start, c = self._scale(rays)
        return start + c * t / (1.0 - t)

    def t_at(self, rays: Rays, distance: Tensor) -> Tensor:
        start, c = self._scale(rays)
        return (distance - start) / (distance - start + c)

    def _scale(self, rays: Rays) -> tuple[Tensor, Tensor]:
        """How distance becomes t: with the warped origin on the near plane, at the distance `start` [R, 1], a point u
        further on has t = u / (u + c), where c [R, 1] is the distance in which depth grows by that of the near plane.
        """
        turned = self.turned(rays)
        slope = turned.direction[:, 2:]
        return (self.near - turned.origin[:, 2:]) / slope, self.near / slope


def space_of(info: SceneInfo) -> Space:
    """The kind of space that a scene is."""
    if info.bounded:
        return Bounded(info)
    return ForwardFacing(info) if info.forward_facing else Unbounded(info)
