"""Pose corrections and appearance codes: exact at zero, true to the textbook, differentiable, recovered by training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_sphere import camera_at, info_of, ring
from scipy.linalg import expm
from torch import Tensor

from lightfold.cameras import Camera, Lens
from lightfold.geometry import Similarity, so3_exp
from lightfold.methods.base import Image
from lightfold.optim import Adam
from lightfold.rays import Box, Rays
from lightfold.refine import (
    AppearanceCodes,
    PoseRefinement,
    ViewFit,
    corrections,
    given_from_refined,
    refine_view,
    refined_cameras,
)
from lightfold.scene import SceneInfo, View

CAMERAS = [camera_at(eye, torch.tensor([0.1, 0.0, 0.2])) for eye in ring(6)]
BLACK = torch.zeros(3)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors as small as these only get slower by being shared out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rays_of(cameras: Sequence[Camera], views: Sequence[int]) -> Rays:
    """Some rays of each of these views."""
    xy = torch.tensor([[3.5, 4.5], [30.5, 20.5], [44.5, 33.5]])
    parts = [cameras[i].rays(xy) for i in views]
    view = torch.tensor(views).repeat_interleave(len(xy))
    return Rays(torch.cat([r.origin for r in parts]), torch.cat([r.direction for r in parts]), view=view)


def moved(camera: Camera, turn: Tensor, shift: Tensor) -> Camera:
    """A camera turned about its centre by a rotation vector and shifted, along the world's axes."""
    rotation = camera.cam_from_world[:, :3].double() @ so3_exp(turn.double()).T
    centre = camera.center.double() + shift.double()
    return replace(camera, cam_from_world=torch.cat([rotation, -(rotation @ centre)[:, None]], dim=1).float())


class TestPoseRefinement:
    @pytest.mark.parametrize("manifold", ["so3xr3", "se3"])
    def test_changes_no_bit_at_the_start(self, manifold: str) -> None:
        pose, rays = PoseRefinement(CAMERAS, manifold), rays_of(CAMERAS, [0, 3, 5])
        out = pose.rays(rays)
        assert torch.equal(out.origin, rays.origin) and torch.equal(out.direction, rays.direction)
        assert float(pose.penalty().detach()) == 0.0
        given = CAMERAS[2].cam_from_world
        torch.testing.assert_close(pose.camera(2).cam_from_world, given, atol=1e-6, rtol=0)

    def test_se3_is_the_exponential_of_the_twist(self) -> None:
        """About the camera's centre, against scipy's matrix exponential, up to a half turn."""
        for angle in (1e-9, 1e-4, 0.3, 3.0, math.pi - 1e-7, math.pi):
            xi = np.array([0.1, -0.2, 0.3, *(angle * np.array([2.0, -1.0, 2.0]) / 3)])
            x, y, z = xi[3:]
            matrix = np.zeros((4, 4))
            matrix[:3, :3], matrix[:3, 3] = [[0, -z, y], [z, 0, -x], [-y, x, 0]], xi[:3]
            pose = PoseRefinement(CAMERAS, "se3").double()
            with torch.no_grad():
                pose.tangent[1] = torch.from_numpy(xi)
                rotation, shift = (part[1].numpy() for part in pose.motion())
            np.testing.assert_allclose(np.c_[rotation, shift], expm(matrix)[:3], atol=1e-12)

    @pytest.mark.parametrize("manifold", ["so3xr3", "se3"])
    def test_rays_are_those_of_the_corrected_camera(self, manifold: str) -> None:
        """A parallel lens too, whose rays start beside its centre."""
        flat = replace(
            CAMERAS[4], lens=Lens.ORTHOGRAPHIC, intrinsics=CAMERAS[4].intrinsics.new_tensor([10.0, 10.0, 24.0, 18.0])
        )
        cameras = [*CAMERAS[:4], flat, CAMERAS[5]]
        pose = PoseRefinement(cameras, manifold)
        torch.manual_seed(3)
        with torch.no_grad():
            pose.tangent.copy_(0.3 * torch.randn(6, 6))
        out = pose.rays(rays_of(cameras, [1, 4]))
        expected = rays_of([pose.camera(i) for i in range(6)], [1, 4])
        torch.testing.assert_close(out.origin, expected.origin, atol=2e-6, rtol=0)
        torch.testing.assert_close(out.direction, expected.direction, atol=2e-6, rtol=0)

    def test_rays_of_no_known_view_stay(self) -> None:
        pose = PoseRefinement(CAMERAS)
        with torch.no_grad():
            pose.tangent.fill_(0.2)
        rays = replace(rays_of(CAMERAS, [0]), view=torch.full((3,), -1))
        out = pose.rays(rays)
        assert torch.equal(out.origin, rays.origin) and torch.equal(out.direction, rays.direction)

    @pytest.mark.parametrize("manifold", ["so3xr3", "se3"])
    @pytest.mark.parametrize("size", [0.0, 0.5, math.pi / math.sqrt(3)])
    def test_gradients(self, manifold: str, size: float) -> None:
        """At zero, in between, and at a half turn."""
        pose = PoseRefinement([camera.to(torch.float64) for camera in CAMERAS], manifold).double()
        rays = rays_of(CAMERAS, [0, 2]).to(torch.float64)

        def moved_rays(tangent: Tensor) -> tuple[Tensor, Tensor]:
            swapped = torch.func.functional_call(_Apply(pose), {"pose.tangent": tangent}, (rays,))
            return swapped.origin, swapped.direction

        start = torch.full((6, 6), size, dtype=torch.float64)
        assert torch.autograd.gradcheck(moved_rays, (start.requires_grad_(),))

    def test_unknown_manifold(self) -> None:
        with pytest.raises(ValueError, match="so3xr3, se3"):
            PoseRefinement(CAMERAS, "quaternion")


class _Apply(torch.nn.Module):
    def __init__(self, pose: PoseRefinement) -> None:
        super().__init__()
        self.pose = pose

    def forward(self, rays: Rays) -> Rays:
        return self.pose.rays(rays)


class TestGauge:
    def test_a_common_motion_is_no_correction(self) -> None:
        turn = so3_exp(torch.tensor([0.3, -0.2, 0.4], dtype=torch.float64))
        common = Similarity(1.3, turn, torch.tensor([0.2, 1.0, -0.5], dtype=torch.float64))
        drifted = [camera.transformed(common) for camera in CAMERAS]
        found = given_from_refined(CAMERAS, drifted) @ common
        assert found.scale == pytest.approx(1.0, abs=1e-5)
        torch.testing.assert_close(found.rotation, torch.eye(3, dtype=torch.float64), atol=1e-5, rtol=0)
        turned, shifted = corrections(CAMERAS, drifted)
        assert float(turned.max()) < 1e-3 and float(shifted.max()) < 1e-5

    def test_one_camera_that_moved_is_found(self) -> None:
        odd = [*CAMERAS[:5], moved(CAMERAS[5], torch.tensor([0.0, 0.06, 0.0]), torch.zeros(3))]
        turned, _ = corrections(CAMERAS, odd)
        # A sixth of it counts as common.
        assert float(turned[5]) == pytest.approx(0.05, abs=2e-3)
        assert float(turned[:5].max()) < 0.012

    @pytest.mark.parametrize("manifold", ["so3xr3", "se3"])
    def test_what_all_cameras_share_is_taken_out(self, manifold: str) -> None:
        """All cameras together shifted, turned and scaled, a little, and one of them on its own: only that is left. A
        camera that is not trained on has no part in it."""
        poses = PoseRefinement(CAMERAS, manifold, trained=range(5))
        middle = torch.stack([camera.center for camera in CAMERAS[:5]]).mean(0)
        turn, shift = torch.tensor([2e-4, -3e-4, 1e-4]), torch.tensor([4e-4, 1e-4, -2e-4])
        own = torch.tensor([1e-3, 0, 0, 0, 2e-3, 0])
        with torch.no_grad():
            for i, camera in enumerate(CAMERAS[:5]):
                arm = camera.center - middle
                poses.tangent[i] = torch.cat([torch.linalg.cross(turn, arm) + shift + 5e-4 * arm, turn])
            poses.hold_gauge()
            assert float(poses.tangent.abs().max()) < 1e-6
            poses.tangent[2] += own
            poses.hold_gauge()
        # What a single camera does is in small part a motion of all.
        left = poses.tangent.detach().clone()
        assert float(left[2] @ own) > 0.6 * float(own @ own)
        poses.hold_gauge()
        torch.testing.assert_close(poses.tangent.detach(), left)
        assert not bool(poses.tangent[5].any())

    def test_cameras_in_one_place_have_no_scale(self) -> None:
        poses = PoseRefinement([CAMERAS[0]] * 4)
        own = torch.tensor([[1.0, 0, 0, 0, 0, 0], [-1.0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1.0], [0, 0, 0, 0, 0, -1.0]])
        with torch.no_grad():
            poses.tangent.copy_(own)
        poses.hold_gauge()
        torch.testing.assert_close(poses.tangent.detach(), own, atol=1e-6, rtol=0)

    def test_lists_of_different_length(self) -> None:
        with pytest.raises(ValueError, match="as many cameras"):
            corrections(CAMERAS, CAMERAS[:2])


class TestAppearanceCodes:
    def test_training_views_have_their_own_and_others_the_mean(self) -> None:
        info = info_of(CAMERAS, 3)  # 0 and 3 are held out
        codes = AppearanceCodes(info, 2)
        assert float(codes.of(torch.tensor([1, -1])).detach().abs().max()) == 0.0
        with torch.no_grad():
            codes.codes.copy_(torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 4.0], [6.0, 4.0]]))
        expected = torch.tensor([[1.0, 0.0], [6.0, 4.0], [3.0, 2.0], [3.0, 2.0]])
        assert torch.equal(codes.of(torch.tensor([1, 5, 3, -1])).detach(), expected)
        assert torch.equal(codes.novel().detach(), expected[2])


class Dome(torch.nn.Module):
    """A method whose field is known: the inside of a sphere with a smooth pattern, brightened by an appearance code."""

    def __init__(self, info: SceneInfo) -> None:
        super().__init__()
        self.info = info
        self.weight = torch.nn.Parameter(torch.ones(()))

    def colours(self, rays: Rays, code: Tensor | None, background: Tensor) -> Tensor:
        along = (rays.origin * rays.direction).sum(1)
        t = (along.square() + 4 - rays.origin.square().sum(1)).sqrt() - along
        x, y, z = (rays.origin + t[:, None] * rays.direction).unbind(1)
        colour = torch.stack([torch.sin(4 * y + x), torch.sin(4 * z + 1), torch.sin(3 * y - 3 * z)], dim=1) * 0.2 + 0.4
        bright = self.novel_code() if code is None else code
        return colour * (1 + bright) * self.weight

    def novel_code(self) -> Tensor:
        return torch.zeros(1)

    def render(
        self, camera: Camera, background: Tensor | None = None, crop: Box | None = None, code: Tensor | None = None
    ) -> Image:
        with torch.no_grad():
            rgb = self.colours(camera.rays(camera.pixel_grid()), code, BLACK).reshape(camera.height, camera.width, 3)
        return Image(rgb, torch.ones(rgb.shape[:2]), torch.ones(rgb.shape[:2]))


def inside() -> list[Camera]:
    eyes = [torch.tensor([0.9 + 0.1 * i, math.cos(2 * i), math.sin(2 * i)]) for i in range(6)]
    return [camera_at(eye, torch.tensor([-1.0, 0.0, 0.0]), 32, 32, 18.0) for eye in eyes]


class TestRecovery:
    def test_poses_of_a_known_scene(self) -> None:
        """Disturbed by 1 degree and 0.03 units: a tenth is left, once what all cameras share is taken out."""
        cameras, rng = inside(), torch.Generator().manual_seed(1)
        noise = [torch.nn.functional.normalize(torch.randn(2, 3, generator=rng), dim=1) for _ in cameras]
        given = [moved(c, math.radians(1) * n[0], 0.03 * n[1]) for c, n in zip(cameras, noise, strict=True)]
        dome, poses = Dome(info_of(cameras)), PoseRefinement(given)
        optim = Adam([poses.group(3e-3, 0.01)])
        grid = cameras[0].pixel_grid()
        for step in range(300):
            chosen = torch.randint(len(grid), (48,), generator=rng)
            true = [c.rays(grid[chosen]) for c in cameras]
            batch = [g.rays(grid[chosen]) for g in given]
            view = torch.arange(len(given)).repeat_interleave(48)
            origin, direction = torch.cat([r.origin for r in batch]), torch.cat([r.direction for r in batch])
            shown = dome.colours(poses.rays(Rays(origin, direction, view=view)), None, BLACK)
            truth = torch.cat([dome.colours(r, None, BLACK) for r in true])
            (shown - truth.detach()).square().mean().backward()
            optim.step(step / 300)
        before = corrections(cameras, given)
        after = corrections(cameras, [poses.camera(i) for i in range(len(given))])
        assert float(after[0].mean()) < 0.1 * float(before[0].mean()), (before, after)
        assert float(after[1].mean()) < 0.1 * float(before[1].mean()), (before, after)

    def test_a_photograph_with_another_pose_and_exposure(self) -> None:
        """`refine_view` finds both, leaves the method as it was, and the picture then fits."""
        true = inside()[2]
        dome = Dome(info_of([true], None))
        rgb = dome.render(true, code=torch.tensor([0.2])).rgb
        given = moved(true, torch.tensor([0.0, 0.02, -0.01]), torch.tensor([0.0, 0.03, 0.02]))
        shape = (true.height, true.width)
        view = View(given, rgb, torch.ones(shape), torch.ones(shape, dtype=torch.bool), "one", 0)
        camera, code = refine_view(dome, view, BLACK, ViewFit(steps=300, rays=256))  # type: ignore[arg-type]
        assert code is not None and float(code) == pytest.approx(0.2, abs=5e-3)
        error = (dome.render(camera, code=code).rgb - rgb).square().mean()
        plain = (dome.render(given).rgb - rgb).square().mean()
        assert float(error) < 1e-3 * float(plain)
        assert dome.weight.requires_grad and dome.weight.grad is None and float(dome.weight.detach()) == 1.0

    def test_only_what_was_asked_for(self) -> None:
        camera = inside()[0]
        dome = Dome(info_of([camera], None))
        shape = (camera.height, camera.width)
        view = View(camera, torch.rand(*shape, 3), torch.ones(shape), torch.ones(shape, dtype=torch.bool), "one", 0)
        fit = ViewFit(pose=False, steps=3, rays=8)
        found, code = refine_view(dome, view, BLACK, fit)  # type: ignore[arg-type]
        torch.testing.assert_close(found.cam_from_world, camera.cam_from_world, atol=1e-6, rtol=0)
        assert code is not None
        found, code = refine_view(dome, view, BLACK, replace(fit, pose=True, appearance=False))  # type: ignore[arg-type]
        assert code is None and not torch.allclose(found.cam_from_world, camera.cam_from_world, atol=1e-5)

    def test_a_view_without_valid_pixels_stays(self) -> None:
        camera = inside()[0]
        dome = Dome(info_of([camera], None))
        shape = (camera.height, camera.width)
        view = View(camera, torch.rand(*shape, 3), torch.ones(shape), torch.zeros(shape, dtype=torch.bool), "one", 0)
        found, _ = refine_view(dome, view, BLACK, ViewFit(steps=3))  # type: ignore[arg-type]
        assert found is camera

    def test_a_method_that_cannot(self) -> None:
        info = info_of(CAMERAS)

        class Plain:
            pass

        plain = Plain()
        plain.info = info  # type: ignore[attr-defined]
        assert refined_cameras(plain) == info.cameras  # type: ignore[arg-type]
        view = View(CAMERAS[0], torch.zeros(2, 2, 3), torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool), "one", 0)
        with pytest.raises(ValueError, match="colours"):
            refine_view(plain, view, BLACK, ViewFit())  # type: ignore[arg-type]
