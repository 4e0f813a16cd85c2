"""spaces.py: the part of a ray that counts, and the coordinates of its samples, in three kinds of scene."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from three_scenes import KINDS, info_of

from lightfold.geometry import Similarity
from lightfold.rays import Rays
from lightfold.spaces import BOX, Bounded, ForwardFacing, Space, Unbounded, space_of


def space_for(kind: str) -> Space:
    return space_of(info_of(kind))


def test_the_scene_decides() -> None:
    kinds = [Bounded, Unbounded, ForwardFacing]
    assert [type(space_for(kind)) for kind in KINDS] == kinds


class TestPlacement:
    @pytest.mark.parametrize("kind", KINDS)
    def test_span_runs_from_near_to_far(self, kind: str) -> None:
        """s = 0 and 1 are the near and far ends in real distance, and everything between is in order."""
        space, camera = space_for(kind), info_of(kind).cameras[0]
        rays = space.bound(camera.rays(camera.pixel_grid()))
        rays = rays[rays.far > rays.near]
        s = torch.linspace(0, 1, 33).expand(len(rays), 33)
        points, length, distance = space.at(rays, s)
        torch.testing.assert_close(distance[:, 0], rays.near, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(distance[:, -1], rays.far, rtol=2e-2, atol=0)
        assert (distance.diff(dim=-1) > 0).all() and (length.diff(dim=-1) > 0).all()
        assert points.isfinite().all() and points.abs().max() <= 2.0
        assert len(rays) > 0

    def test_bounded_ends_on_the_walls(self) -> None:
        space = space_for("bounded")
        origin = torch.tensor([[-3.0, 0.2, 0.1], [0.0, 0.0, 0.0]])
        bound = space.bound(Rays(origin, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])))
        torch.testing.assert_close(bound.near, torch.tensor([3 - BOX, 0.5]))
        torch.testing.assert_close(bound.far, torch.tensor([3 + BOX, BOX]))

    def test_bounded_misses(self) -> None:
        """Beside the cube, away from it, along a face outside, and rays that are not numbers."""
        origin = torch.tensor([[-3.0, 2.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 1.2, 0.0], [math.nan, 0.0, 0.0]])
        direction = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
        bound = space_for("bounded").bound(Rays(origin, direction))
        assert not (bound.far > bound.near).any()

    def test_unbounded_is_even_in_disparity(self) -> None:
        space, camera = space_for("unbounded"), info_of("unbounded").cameras[1]
        rays = space.bound(camera.rays(camera.pixel_grid()))
        _, _, distance = space.at(rays, torch.linspace(0, 1, 9).expand(len(rays), 9))
        steps = (1 / distance).diff(dim=-1)
        torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=1e-3, atol=1e-5)

    def test_forward_facing_distance_is_that_of_the_point(self) -> None:
        """Undo the warp by hand: z' = 1 - 2 n / z gives the depth of each sample, hence its distance along the ray."""
        space, camera = space_for("forward-facing"), info_of("forward-facing").cameras[1]
        assert isinstance(space, ForwardFacing)
        rays = space.bound(camera.rays(camera.pixel_grid()))
        points, _, distance = space.at(rays, torch.linspace(0, 0.95, 11).expand(len(rays), 11))
        turned = space.turned(rays)
        depth = 2 * space.near / (1 - points[..., 2])
        expected = (depth - turned.origin[:, None, 2]) / turned.direction[:, None, 2]
        torch.testing.assert_close(distance, expected, rtol=1e-4, atol=1e-4)
        x = points[..., 0] * space.width / (2 * space.focal) * depth
        torch.testing.assert_close(x, turned.at(distance)[..., 0], rtol=1e-3, atol=1e-4)

    def test_forward_facing_near_plane_hides_nothing(self) -> None:
        """The plane lies before the near end of every training view, and behind no camera's back."""
        info = info_of("forward-facing")
        space = ForwardFacing(info)
        for camera, near in zip(info.cameras, info.view_near, strict=True):
            depth = space.turned(camera.rays(camera.pixel_grid())).origin[0, 2]
            assert depth >= -1e-6 and space.near <= depth + near + 1e-6

    def test_forward_facing_ignores_rays_that_look_back(self) -> None:
        direction = torch.tensor([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        bound = space_for("forward-facing").bound(Rays(torch.zeros(3, 3), direction))
        assert (bound.far > bound.near).tolist() == [False, False, True]

    def test_forward_facing_follows_the_cameras_not_the_axes(self) -> None:
        """The same rig, turned and moved as a whole, gives the same coordinates."""
        info = info_of("forward-facing")
        angle = torch.tensor(0.7, dtype=torch.float64)
        c, s = angle.cos(), angle.sin()
        rotation = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)
        moved = Similarity(1.0, rotation, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
        turned = replace(info, cameras=tuple(camera.transformed(moved) for camera in info.cameras))
        points = []
        for each in (info, turned):
            space, camera = ForwardFacing(each), each.cameras[0]
            rays = space.bound(camera.rays(camera.pixel_grid()))
            points.append(space.at(rays, torch.linspace(0, 1, 5).expand(len(rays), 5))[0])
        torch.testing.assert_close(points[0], points[1], rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("kind", KINDS)
    def test_distance_and_t_are_inverse(self, kind: str) -> None:
        space, camera = space_for(kind), info_of(kind).cameras[0]
        rays = space.bound(camera.rays(camera.pixel_grid()).to(torch.float64))
        rays = rays[rays.far > rays.near]
        distance = torch.lerp(rays.near[:, None], rays.far[:, None], torch.linspace(0, 1, 7, dtype=torch.float64))
        torch.testing.assert_close(space.distance(rays, space.t_at(rays, distance)), distance)
