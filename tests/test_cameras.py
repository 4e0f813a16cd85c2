"""Every lens: against COLMAP's numbers, there and back over the whole picture, and by finite differences."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightfold import geometry as geo
from lightfold.cameras import Camera, DirectionTable, Lens, distortion_size, opencv_lens
from lightfold.geometry import Similarity

WIDTH, HEIGHT = 400, 300
EYE = torch.eye(3, 4, dtype=torch.float64)

# Model, parameters for an 800 x 600 picture, and the pixel of the point (0.4, -0.3, 1.1) that COLMAP 4.2.1 computes.
COLMAP = [
    ("SIMPLE_PINHOLE", [500, 402.3, 297.1], (584.1181818181818, 160.73636363636368)),
    ("PINHOLE", [500, 505, 402.3, 297.1], (584.1181818181818, 159.3727272727273)),
    ("SIMPLE_RADIAL", [500, 402.3, 297.1, -0.1], (580.3616078136739, 163.5537941397446)),
    ("RADIAL", [500, 402.3, 297.1, -0.2, 0.05], (576.9931096360781, 166.08016777294154)),
    ("OPENCV", [500, 505, 402.3, 297.1, -0.25, 0.08, 0.001, -0.002], (574.777420196087, 166.39618477997655)),
    (
        "FULL_OPENCV",
        [500, 505, 402.3, 297.1, 0.3, -0.1, 0.001, 0.0005, 0.02, 0.4, -0.05, 0.01],
        (580.3161034237245, 162.39626756561964),
    ),
    (
        "OPENCV_FISHEYE",
        [230, 232, 402.3, 297.1, -0.02, 0.004, -0.002, 0.0003],
        (480.52318472576377, 237.92246025094397),
    ),
    ("SIMPLE_RADIAL_FISHEYE", [230, 402.3, 297.1, -0.02], (480.51370340757785, 238.43972244431666)),
    ("RADIAL_FISHEYE", [230, 402.3, 297.1, -0.02, 0.001], (480.51630393848154, 238.43777204613886)),
    (
        "THIN_PRISM_FISHEYE",
        [230, 232, 402.3, 297.1, -0.02, 0.004, 0.001, -0.0008, 0.0005, -0.0001, 0.002, -0.001],
        (480.49151335204346, 237.9844242342073),
    ),
    ("FOV", [500, 505, 402.3, 297.1, 0.9], (586.2053106501955, 157.79172718247693)),
    ("EQUIRECTANGULAR", [800, 600], (444.406903382, 252.08046916319785)),
    ("FISHEYE", [230, 232, 402.3, 297.1], (480.7994587353452, 237.71345295673888)),
    ("SIMPLE_FISHEYE", [230, 402.3, 297.1], (480.7994587353452, 238.22540594849113)),
]
COLMAP_IDS = {
    "SIMPLE_PINHOLE": 0,
    "PINHOLE": 1,
    "SIMPLE_RADIAL": 2,
    "RADIAL": 3,
    "OPENCV": 4,
    "OPENCV_FISHEYE": 5,
    "FULL_OPENCV": 6,
    "FOV": 7,
    "SIMPLE_RADIAL_FISHEYE": 8,
    "RADIAL_FISHEYE": 9,
    "THIN_PRISM_FISHEYE": 10,
    "SIMPLE_FISHEYE": 14,
    "FISHEYE": 15,
    "EQUIRECTANGULAR": 17,
}

# Lens, focal length in pixels for a picture of 400 x 300, distortion. Every pixel of these has a direction.
LENSES: list[tuple[Lens, float, list[float]]] = [
    (Lens.SIMPLE_PINHOLE, 250, []),
    (Lens.PINHOLE, 250, []),
    (Lens.SIMPLE_RADIAL, 250, [-0.1]),
    (Lens.SIMPLE_RADIAL, 150, [0.2]),
    (Lens.RADIAL, 250, [-0.2, 0.05]),
    (Lens.OPENCV, 250, [-0.25, 0.08, 0.001, -0.002]),
    (Lens.OPENCV, 200, [0.1, -0.01, -0.004, 0.003]),
    (Lens.FULL_OPENCV, 250, [0.3, -0.1, 0.001, 0.0005, 0.02, 0.4, -0.05, 0.01]),
    (Lens.FULL_OPENCV, 250, [-0.2, 0.08, 0.0004, -0.0003, -0.01, 0.0, 0.0, 0.0]),
    (Lens.OPENCV_FISHEYE, 115, [-0.02, 0.004, -0.002, 0.0003]),  # 212 degrees across
    (Lens.OPENCV_FISHEYE, 100, [0.02, -0.004, 0.0015, -0.0001]),  # 220 degrees across
    (Lens.SIMPLE_RADIAL_FISHEYE, 115, [-0.02]),
    (Lens.RADIAL_FISHEYE, 115, [-0.02, 0.001]),
    (Lens.THIN_PRISM_FISHEYE, 115, [-0.02, 0.004, 0.001, -0.0008, 0.0005, -0.0001, 0.002, -0.001]),
    (Lens.FOV, 250, [0.9]),
    (Lens.FOV, 250, [0.0]),
    (Lens.FOV, 250, [1e-5]),
    (Lens.EQUIRECTANGULAR, 100, []),
    (Lens.ORTHOGRAPHIC, 100, []),
]
IDS = [f"{lens.value}{i}" for i, (lens, _, _) in enumerate(LENSES)]
each_lens = pytest.mark.parametrize(("lens", "focal", "distortion"), LENSES, ids=IDS)


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def make(lens: Lens, focal: float, distortion: list[float], pose: Tensor = EYE) -> Camera:
    if lens is Lens.EQUIRECTANGULAR:
        return Camera.panorama(pose, WIDTH, HEIGHT)
    intrinsics = double([focal, 1.01 * focal, 0.5 * WIDTH + 3.3, 0.5 * HEIGHT - 2.1])
    return Camera(pose, intrinsics, double(distortion), WIDTH, HEIGHT, lens)


def some_pose(seed: int = 0) -> Tensor:
    return geo.se3_exp(torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def corners_and_more(camera: Camera, stride: int = 7) -> Tensor:
    """Pixel centres all over the picture, and the four corners of the picture itself."""
    w, h = float(camera.width), float(camera.height)
    return torch.cat([camera.pixel_grid()[::stride], double([[0, 0], [w, 0], [0, h], [w, h]])])


class TestAgainstColmap:
    @pytest.mark.parametrize(("model", "params", "pixel"), COLMAP, ids=[c[0] for c in COLMAP])
    def test_projection(self, model: str, params: list[float], pixel: tuple[float, float]) -> None:
        for key in (model, COLMAP_IDS[model]):
            camera = Camera.from_colmap(key, params, 800, 600, EYE)
            xy, valid = camera.project(double([[0.4, -0.3, 1.1]]))
            torch.testing.assert_close(xy, double([pixel]), rtol=0, atol=1e-10)
            assert valid.all()

    @pytest.mark.parametrize(("model", "params", "pixel"), COLMAP, ids=[c[0] for c in COLMAP])
    def test_parameters_come_back(self, model: str, params: list[float], pixel: tuple[float, float]) -> None:
        name, back = Camera.from_colmap(model, params, 800, 600, EYE).to_colmap()
        again = Camera.from_colmap(name, back, 800, 600, EYE)
        torch.testing.assert_close(again.project(double([[0.4, -0.3, 1.1]]))[0], double([pixel]), rtol=0, atol=1e-10)
        if model not in ("FISHEYE", "SIMPLE_FISHEYE"):  # these are the larger model with zeros
            assert (name, back) == (model, params)

    def test_opencv_by_hand(self) -> None:
        k1, k2, p1, p2 = -0.25, 0.08, 0.001, -0.002
        u, v = 0.5, -0.25
        r2 = u * u + v * v
        radial = 1 + k1 * r2 + k2 * r2**2
        x = 300 * (u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u)) + 200
        y = 310 * (v * radial + p1 * (r2 + 2 * v * v) + 2 * p2 * u * v) + 150
        camera = Camera.from_colmap("OPENCV", [300, 310, 200, 150, k1, k2, p1, p2], 400, 300, EYE)
        torch.testing.assert_close(camera.project(double([[1.0, -0.5, 2.0]]))[0], double([[x, y]]))

    def test_equidistant_fisheye_by_hand(self) -> None:
        # 120 degrees off the axis, in the direction of +y: behind the camera's plane and still in the picture.
        theta = 2 * math.pi / 3
        camera = Camera.from_colmap("SIMPLE_RADIAL_FISHEYE", [100, 200, 150, -0.01], 400, 300, EYE)
        xy, valid = camera.project(double([[0.0, math.sin(theta), math.cos(theta)]]))
        torch.testing.assert_close(xy, double([[200.0, 150.0 + 100 * theta * (1 - 0.01 * theta**2)]]))
        assert valid.all()

    @pytest.mark.parametrize("model", ["EUCM", "opencv", "", 12, 99, -1])
    def test_unknown_models_are_refused_by_name_or_number(self, model: str | int) -> None:
        with pytest.raises(ValueError, match=f"got {model!r}"):
            Camera.from_colmap(model, [1, 2, 3], 4, 3, EYE)

    def test_wrong_number_of_parameters(self) -> None:
        with pytest.raises(ValueError, match="expected 8 numbers for OPENCV, got 5"):
            Camera.from_colmap("OPENCV", [1, 2, 3, 4, 5], 4, 3, EYE)
        with pytest.raises(ValueError, match="EQUIRECTANGULAR"):
            Camera.from_colmap("EQUIRECTANGULAR", [800, 400], 400, 200, EYE)

    @pytest.mark.parametrize(
        ("model", "params", "larger"),
        [
            ("SIMPLE_PINHOLE", [100, 50, 40], "PINHOLE"),
            ("RADIAL", [100, 50, 40, 0.1, 0.02], "OPENCV"),
            ("SIMPLE_RADIAL_FISHEYE", [100, 50, 40, 0.1], "OPENCV_FISHEYE"),
        ],
    )
    def test_two_focal_lengths_need_the_larger_model(self, model: str, params: list[float], larger: str) -> None:
        camera = Camera.from_colmap(model, params, 100, 80, EYE).resized(33, 27)
        name, back = camera.to_colmap()
        assert name == larger
        x = double([[0.2, 0.1, 1.0]])
        torch.testing.assert_close(Camera.from_colmap(name, back, 33, 27, EYE).project(x), camera.project(x))

    def test_orthographic_has_no_colmap_model(self) -> None:
        with pytest.raises(ValueError, match="ORTHOGRAPHIC"):
            make(*LENSES[-1]).to_colmap()


class TestRoundTrip:
    # All but ORTHOGRAPHIC, whose directions do not determine pixels; the next test covers it.
    @pytest.mark.parametrize(("lens", "focal", "distortion"), LENSES[:-1], ids=IDS[:-1])
    def test_pixel_to_direction_to_pixel(self, lens: Lens, focal: float, distortion: list[float]) -> None:
        camera = make(lens, focal, distortion)
        xy = corners_and_more(camera)
        direction, valid = camera.unproject_valid(xy)
        assert valid.all()
        torch.testing.assert_close(direction.norm(dim=-1), torch.ones(len(xy), dtype=torch.float64))
        back, seen = camera.project(5.0 * direction)
        assert seen.all()
        wrap = camera.width if lens is Lens.EQUIRECTANGULAR else math.inf
        error = (back - xy).abs()
        error[:, 0] = torch.minimum(error[:, 0], (wrap - error[:, 0]).abs())  # the seam's two sides are one
        if lens is Lens.EQUIRECTANGULAR:
            error[(xy[:, 1] == 0) | (xy[:, 1] == HEIGHT), 0] = 0  # at the poles every x is right
        assert float(error.max()) < 1e-6

    @each_lens
    def test_points_on_rays_project_back(self, lens: Lens, focal: float, distortion: list[float]) -> None:
        camera = make(lens, focal, distortion, some_pose())
        xy = camera.pixel_grid()[::37]
        rays = camera.rays(xy)
        points = rays.at(torch.tensor([[0.1, 30.0]], dtype=torch.float64)).flatten(0, 1)
        back, valid = camera.project(points)
        assert valid.all()
        torch.testing.assert_close(back, xy.repeat_interleave(2, 0), rtol=0, atol=1e-6)

    @each_lens
    def test_single_precision(self, lens: Lens, focal: float, distortion: list[float]) -> None:
        camera = make(lens, focal, distortion, some_pose())
        xy = camera.pixel_grid()[::101]
        direction = camera.to(torch.float32).rays(xy).direction
        assert direction.dtype == torch.float32
        torch.testing.assert_close(direction.double(), camera.rays(xy).direction, rtol=0, atol=2e-6)

    @given(st.floats(-0.3, 0.3), st.floats(-0.1, 0.1), st.floats(-0.01, 0.01), st.floats(-0.01, 0.01))
    @settings(max_examples=60, deadline=None)
    def test_what_is_called_valid_is_right(self, k1: float, k2: float, p1: float, p2: float) -> None:
        """For any OPENCV lens, folding ones included: a pixel said to be valid comes back, and nothing is ever NaN."""
        camera = make(Lens.OPENCV, 180, [k1, k2, p1, p2])
        xy = camera.pixel_grid()[::211]
        direction, valid = camera.unproject_valid(xy)
        assert torch.isfinite(direction).all()
        back, seen = camera.project(direction)
        assert torch.isfinite(back).all()
        assert seen[valid].all()
        assert valid.any()
        torch.testing.assert_close(back[valid], xy[valid], rtol=0, atol=1e-6)


class TestWhatIsSeen:
    def test_behind_a_perspective_lens(self) -> None:
        camera = make(Lens.PINHOLE, 250, [])
        points = double([[0, 0, 1], [0, 0, -1], [0, 0, 0], [1, 0, 0], [1, 2, 1e-9], [0.5, 0.1, -3]])
        xy, valid = camera.project(points)
        assert valid.tolist() == [True, False, False, False, False, False]
        assert torch.isfinite(xy).all()

    def test_straight_behind_a_fisheye_and_at_its_centre(self) -> None:
        camera = make(Lens.OPENCV_FISHEYE, 115, [0.0] * 4)
        xy, valid = camera.project(double([[0, 0, 2], [0, 0, -1], [0, 0, 0], [1e-3, 0, -1]]))
        assert valid.tolist() == [True, False, False, True]
        assert torch.isfinite(xy).all()
        torch.testing.assert_close(xy[0], camera.intrinsics[2:])

    def test_a_lens_that_folds(self) -> None:
        # r (1 - 0.3 r^2) grows up to r^2 = 1/0.9 and returns to zero at r^2 = 1/0.3: the second sheet is not seen.
        camera = make(Lens.SIMPLE_RADIAL, 250, [-0.3])
        limit = math.sqrt(1 / 0.9)
        points = double([[r, 0.0, 1.0] for r in (0.5, limit - 1e-6, limit + 1e-6, 1.5, 100.0)])
        assert camera.project(points)[1].tolist() == [True, True, False, False, False]
        # Beyond the rim no direction reaches a pixel; it gets the rim's.
        rim = 250 * limit * (1 - 0.3 * limit**2) + float(camera.intrinsics[2])
        direction, valid = camera.unproject_valid(double([[rim - 0.01, 147.9], [rim + 0.01, 147.9]]))
        assert valid.tolist() == [True, False]
        assert float(direction[1, 0] / direction[1, 2]) == pytest.approx(limit, rel=1e-6)

    def test_a_fisheye_circle_smaller_than_the_picture(self) -> None:
        camera = make(Lens.OPENCV_FISHEYE, 40, [0.0] * 4)  # the circle of 180 degrees either way has radius 126
        direction, valid = camera.unproject_valid(camera.pixel_grid())
        radius = (camera.pixel_grid() - camera.intrinsics[2:]) / camera.intrinsics[:2]
        assert torch.equal(valid, radius.norm(dim=-1) < math.pi)
        assert torch.isfinite(direction).all()

    def test_a_pole_of_the_rational_lens(self) -> None:
        # 1 - 0.5 r^2 below the fraction bar: infinite at r^2 = 2.
        camera = make(Lens.FULL_OPENCV, 250, [0.0, 0.0, 0.0, 0.0, 0.0, -0.5, 0.0, 0.0])
        points = double([[r, 0.0, 1.0] for r in (0.5, 1.4, 1.42, 3.0)])
        assert camera.project(points)[1].tolist() == [True, True, False, False]

    def test_angle_of_view(self) -> None:
        pinhole = Camera.from_colmap("PINHOLE", [200, 150, 200, 150], 400, 300, EYE)
        torch.testing.assert_close(pinhole.fov, double([math.pi / 2, math.pi / 2]))
        fisheye = Camera.from_colmap("FISHEYE", [100, 100, 200, 150], 400, 300, EYE)
        torch.testing.assert_close(fisheye.fov, double([4.0, 3.0]))  # 4 radians are 229 degrees
        torch.testing.assert_close(Camera.panorama(EYE, 64, 32).fov, double([2 * math.pi, math.pi]))
        torch.testing.assert_close(make(Lens.ORTHOGRAPHIC, 10, []).fov, double([0.0, 0.0]))


class TestPanorama:
    camera = Camera.panorama(EYE, 400, 200)

    @pytest.mark.parametrize(
        ("direction", "pixel"),
        [
            ([0, 0, 1], [200, 100]),
            ([1, 0, 0], [300, 100]),
            ([-1, 0, 0], [100, 100]),
            ([0, 1, 1], [200, 150]),  # y points down
            ([0, -1, 1], [200, 50]),
            ([0, 7, 0], [200, 200]),
            ([0, -7, 0], [200, 0]),
        ],
    )
    def test_known_directions(self, direction: list[float], pixel: list[float]) -> None:
        xy, valid = self.camera.project(double([direction]))
        torch.testing.assert_close(xy, double([pixel]))
        assert valid.all()

    def test_seam(self) -> None:
        either_side = self.camera.project(double([[1e-9, 0, -1], [-1e-9, 0, -1]]))[0]
        torch.testing.assert_close(either_side, double([[400.0, 100.0], [0.0, 100.0]]), rtol=0, atol=1e-6)
        left, right = self.camera.unproject(double([[0.0, 70.0], [400.0, 70.0]]))
        torch.testing.assert_close(left, right)

    def test_gradients_are_finite_at_the_poles(self) -> None:
        points = double([[0, 1, 0], [0, -2, 0], [0, 0, 1], [0, 0, -1]]).requires_grad_()
        self.camera.project(points)[0].sum().backward()
        assert points.grad is not None and torch.isfinite(points.grad).all()

    def test_the_camera_itself_is_not_seen_and_rows_outside_do_not_exist(self) -> None:
        assert not self.camera.project(double([[0, 0, 0]]))[1].any()
        assert self.camera.unproject_valid(double([[5, -1], [5, 0], [5, 200], [5, 201]]))[1].tolist() == [
            False,
            True,
            True,
            False,
        ]


class TestGradients:
    @each_lens
    def test_projection(self, lens: Lens, focal: float, distortion: list[float]) -> None:
        camera = make(lens, focal, distortion)
        # The axis itself, just beside it, and far out: the places where polar formulas divide by zero.
        points = double([[0, 0, 1], [1e-4, 0, 1], [0.3, -0.2, 1], [-0.5, 0.4, 1.2]]).requires_grad_()
        xi = double([0.01, -0.02, 0.03, 0, 0, 0]).requires_grad_()
        intrinsics = camera.intrinsics.clone().requires_grad_()
        k = camera.distortion.clone().requires_grad_()

        def pixels(points: Tensor, xi: Tensor, intrinsics: Tensor, k: Tensor) -> Tensor:
            moved = replace(camera, cam_from_world=geo.se3_exp(xi), intrinsics=intrinsics, distortion=k)
            return moved.project(points)[0] / camera.width

        if lens is Lens.FOV and abs(distortion[0]) < 1e-3:
            k.requires_grad_(False)  # finite differences cross the switch to the flat lens
        assert torch.autograd.gradcheck(pixels, (points, xi, intrinsics, k), atol=1e-6)

    @each_lens
    def test_rays(self, lens: Lens, focal: float, distortion: list[float]) -> None:
        camera = make(lens, focal, distortion)
        xy = double([[200.0, 150.0], [30.5, 40.5], [380.5, 270.5]])
        xi = double([0.1, 0.2, -0.3, 0.2, -0.1, 0.3]).requires_grad_()
        intrinsics = camera.intrinsics.clone().requires_grad_()
        k = camera.distortion.clone().requires_grad_(not (lens is Lens.FOV and abs(distortion[0]) < 1e-3))

        def directions(xi: Tensor, intrinsics: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
            rays = replace(camera, cam_from_world=geo.se3_exp(xi), intrinsics=intrinsics, distortion=k).rays(xy)
            return rays.origin, rays.direction

        assert torch.autograd.gradcheck(directions, (xi, intrinsics, k), atol=1e-6)

    def test_points_that_are_not_seen_do_not_poison_the_rest(self) -> None:
        for lens, focal, distortion in LENSES:
            camera = make(lens, focal, distortion).to(torch.float32)
            points = torch.tensor([[0.0, 0, 0], [0, 0, -1], [1, 0, 0], [1e20, 0, 1e-20], [0, 0, 1], [0, 1, 0]])
            points.requires_grad_()
            xy, valid = camera.project(points)
            xy[valid].sum().backward()
            assert points.grad is not None and torch.isfinite(points.grad).all(), lens


class TestConeRadius:
    def test_multinerf_definition(self) -> None:
        """On the plane z = 1 the neighbours are 1/f away; multinerf counts t along z, so its radius is at z = 1."""
        camera = make(Lens.PINHOLE, 250, [])
        xy = camera.pixel_grid()[::999]
        rays = camera.rays(xy)
        pixel_to_plane = torch.linalg.inv(
            double([[250, 0, camera.intrinsics[2]], [0, 252.5, camera.intrinsics[3]], [0, 0, 1]])
        )

        def on_plane(dx: float, dy: float) -> Tensor:
            homogeneous = torch.cat([xy + double([dx, dy]), torch.ones(len(xy), 1, dtype=torch.float64)], -1)
            return homogeneous @ pixel_to_plane.T

        here = on_plane(0, 0)
        dx, dy = (on_plane(1, 0) - here).norm(dim=-1), (on_plane(0, 1) - here).norm(dim=-1)
        theirs = 0.5 * (dx + dy) * 2 / math.sqrt(12)
        torch.testing.assert_close(rays.radius * here.norm(dim=-1), theirs)

    def test_fisheye_pixels_are_a_focal_length_apart(self) -> None:
        camera = Camera.from_colmap("SIMPLE_FISHEYE", [300, 200, 150], 400, 300, EYE)
        radius = camera.rays(double([[200.0, 150.0]])).radius
        assert float(radius) == pytest.approx(2 / math.sqrt(12) / 300, rel=1e-4)

    def test_half_the_resolution_doubles_it(self) -> None:
        camera = make(Lens.OPENCV, 250, [-0.25, 0.08, 0.001, -0.002])
        fine = camera.rays(double([[100.0, 80.0]])).radius
        coarse = camera.resized(200, 150).rays(double([[50.0, 40.0]])).radius
        torch.testing.assert_close(coarse, 2 * fine, rtol=0.01, atol=0)


class TestChangingCameras:
    @each_lens
    def test_resized(self, lens: Lens, focal: float, distortion: list[float]) -> None:
        camera = make(lens, focal, distortion)
        points = double([[0.1, 0.2, 1.0], [-0.3, 0.1, 0.9]])
        small = camera.resized(133, 77)
        scale = double([133 / WIDTH, 77 / HEIGHT])
        torch.testing.assert_close(small.project(points)[0], camera.project(points)[0] * scale)
        assert (small.width, small.height) == (133, 77)
        if lens is Lens.EQUIRECTANGULAR:
            torch.testing.assert_close(small.intrinsics, Camera.panorama(EYE, 133, 77).intrinsics)

    @each_lens
    def test_similarity_keeps_every_pixel(self, lens: Lens, focal: float, distortion: list[float]) -> None:
        camera = make(lens, focal, distortion, some_pose())
        points = camera.rays(camera.pixel_grid()[::1009]).at(torch.full((1, 1), 3.0, dtype=torch.float64))[:, 0]
        pose = some_pose(1)
        b_from_a = Similarity(0.37, pose[:, :3], pose[:, 3])
        there = camera.transformed(b_from_a)
        torch.testing.assert_close(there.project(b_from_a.apply(points)), camera.project(points))
        torch.testing.assert_close(there.center, b_from_a.apply(camera.center))
        torch.testing.assert_close(there.forward, b_from_a.rotation @ camera.forward)

    def test_centre_and_axis(self) -> None:
        eye = double([1.0, 2.0, 3.0])
        pose = geo.look_at(eye, double([1.0, 2.0, 9.0]), double([0.0, 1.0, 0.0]))
        camera = make(Lens.PINHOLE, 250, [], pose)
        torch.testing.assert_close(camera.center, eye)
        torch.testing.assert_close(camera.forward, double([0.0, 0.0, 1.0]))
        torch.testing.assert_close(geo.apply(camera.world_from_cam, double([0.0, 0.0, 0.0])), eye)

    def test_orthographic_rays_are_parallel(self) -> None:
        camera = make(Lens.ORTHOGRAPHIC, 100, [], some_pose())
        xy = double([[203.3, 147.9], [303.3, 147.9]])
        rays = camera.rays(xy)
        torch.testing.assert_close(rays.direction[0], rays.direction[1])
        torch.testing.assert_close(rays.direction[0], camera.forward)
        torch.testing.assert_close(rays.origin[0], camera.center)
        assert float((rays.origin[1] - rays.origin[0]).norm()) == pytest.approx(1.0)
        assert rays.radius.tolist() == [0.0, 0.0]

    @each_lens
    def test_dict_round_trip_is_exact(self, lens: Lens, focal: float, distortion: list[float]) -> None:
        for dtype in (torch.float32, torch.float64):
            camera = make(lens, focal, distortion, some_pose()).to(dtype)
            back = Camera.from_dict(json.loads(json.dumps(camera.to_dict())))
            assert (back.lens, back.width, back.height) == (camera.lens, camera.width, camera.height)
            for name in ("cam_from_world", "intrinsics", "distortion"):
                one, two = getattr(back, name), getattr(camera, name)
                assert one.dtype == dtype and torch.equal(one, two)

    def test_a_batch_survives_the_dict(self) -> None:
        batch = Camera.stack([make(Lens.OPENCV, 250, [0.1, 0, 0, 0], some_pose(i)) for i in range(3)])
        back = Camera.from_dict(json.loads(json.dumps(batch.to_dict())))
        assert back.shape == (3,) and torch.equal(back.cam_from_world, batch.cam_from_world)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"lens": "EUCM"}, "EUCM"),
            ({"dtype": "object"}, "dtype"),
            ({"width": 0}, "width"),
            ({"distortion": [0.1]}, "distortion"),
            ({"intrinsics": [1.0, 2.0]}, "intrinsics"),
            ({"cam_from_world": [1.0]}, "cam_from_world"),
        ],
    )
    def test_a_damaged_dict_is_refused(self, change: dict[str, object], message: str) -> None:
        good = make(Lens.PINHOLE, 250, []).to_dict()
        with pytest.raises(ValueError, match=message):
            Camera.from_dict({**good, **change})
        with pytest.raises(ValueError, match="height"):
            Camera.from_dict({key: value for key, value in good.items() if key != "height"})

    def test_non_finite_distortion_is_refused(self) -> None:
        with pytest.raises(ValueError, match="distortion"):
            make(Lens.SIMPLE_RADIAL, 250, [math.nan]).project(double([[0, 0, 1]]))

    def test_opencv_lens_is_the_smallest_that_fits(self) -> None:
        assert opencv_lens() == (Lens.PINHOLE, [])
        assert opencv_lens(0.1, 0.2, 0.3, 0.4) == (Lens.OPENCV, [0.1, 0.2, 0.3, 0.4])
        lens, distortion = opencv_lens(0.1, 0.2, 0.001, 0.002, k3=0.05)
        assert lens is Lens.FULL_OPENCV and len(distortion) == distortion_size(lens)
        camera = make(lens, 250, distortion)
        u, r2 = 0.5, 0.25
        radial = 1 + 0.1 * r2 + 0.2 * r2**2 + 0.05 * r2**3
        x = 250 * (u * radial + 0.002 * 3 * r2) + float(camera.intrinsics[2])
        assert float(camera.project(double([[0.5, 0, 1]]))[0][0, 0]) == pytest.approx(x)
        with pytest.raises(ValueError, match="k4"):
            opencv_lens(k4=0.01)


class TestBatches:
    def test_a_batch_is_its_cameras(self) -> None:
        cameras = [make(Lens.OPENCV, 250 + 5 * i, [-0.1 * i, 0.02, 0.001 * i, 0.0], some_pose(i)) for i in range(4)]
        batch = Camera.stack(cameras)
        assert batch.shape == (4,) and len(batch) == 4
        points = torch.randn(6, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        xy, valid = batch.project(points)
        grid = cameras[0].pixel_grid()[::5003]
        rays = batch.rays(grid)
        assert xy.shape == (4, 6, 2) and valid.shape == (4, 6) and len(rays) == 4 * len(grid)
        for i, camera in enumerate(cameras):
            torch.testing.assert_close(camera.project(points), (xy[i], valid[i]))
            alone, together = camera.rays(grid), rays[i * len(grid) : (i + 1) * len(grid)]
            torch.testing.assert_close(alone.direction, together.direction)
            torch.testing.assert_close(alone.origin, together.origin)
            torch.testing.assert_close(batch[i].fov, camera.fov)
        assert batch[1:3].shape == (2,)
        assert batch[torch.tensor([True, False, True, True])].shape == (3,)
        assert [c.shape for c in batch] == [()] * 4

    def test_one_lens_at_many_poses(self) -> None:
        path = torch.stack([some_pose(i) for i in range(5)])
        cameras = replace(make(Lens.FOV, 250, [0.9]), cam_from_world=path)
        assert cameras.shape == (5,) and cameras.intrinsics.shape == (5, 4) and cameras.distortion.shape == (5, 1)

    def test_mixed_cameras_do_not_stack(self) -> None:
        with pytest.raises(ValueError, match="one lens"):
            Camera.stack([make(Lens.PINHOLE, 250, []), make(Lens.PINHOLE, 250, []).resized(10, 10)])
        with pytest.raises(ValueError, match="one lens"):
            Camera.stack([])

    def test_a_single_camera_has_no_elements(self) -> None:
        with pytest.raises(IndexError):
            make(Lens.PINHOLE, 250, [])[0]

    def test_pixel_grid_is_row_major_with_centres_at_one_half(self) -> None:
        grid = make(Lens.PINHOLE, 250, []).resized(3, 2).pixel_grid()
        assert grid.tolist() == [[0.5, 0.5], [1.5, 0.5], [2.5, 0.5], [0.5, 1.5], [1.5, 1.5], [2.5, 1.5]]


class TestDirectionTable:
    @each_lens
    def test_is_exact_at_pixel_centres(self, lens: Lens, focal: float, distortion: list[float]) -> None:
        camera = make(lens, focal, distortion)
        index = torch.randint(WIDTH * HEIGHT, (500,), generator=torch.Generator().manual_seed(0))
        direction, radius = DirectionTable(camera)(index % WIDTH, index // WIDTH)
        exact = camera.rays(camera.pixel_grid()[index])
        assert direction.dtype == radius.dtype == torch.float32
        torch.testing.assert_close(direction.double(), exact.direction, rtol=0, atol=5e-7)
        torch.testing.assert_close(radius.double(), exact.radius, rtol=2e-5, atol=0)

    @each_lens
    def test_large_pictures_stay_within_a_thousandth_of_a_pixel(
        self, lens: Lens, focal: float, distortion: list[float]
    ) -> None:
        camera = make(lens, focal, distortion).resized(8000, 6000)
        table = DirectionTable(camera)
        index = torch.randint(8000 * 6000, (5000,), generator=torch.Generator().manual_seed(0))
        x, y = index % 8000, index // 8000
        direction, radius = table(x, y)
        exact = camera.rays(torch.stack([x, y], dim=-1) + 0.5)
        error = (direction.double() - exact.direction).norm(dim=-1)
        pixel = exact.radius * math.sqrt(12) / 2
        if lens is not Lens.ORTHOGRAPHIC:
            assert float((error / pixel).max()) < 1e-3
        torch.testing.assert_close(radius.double(), exact.radius, rtol=1e-3, atol=0)

    def test_corners_of_a_large_picture(self) -> None:
        camera = make(Lens.OPENCV, 250, [-0.25, 0.08, 0.001, -0.002]).resized(2001, 1501)
        x, y = torch.tensor([0, 2000, 0, 2000]), torch.tensor([0, 0, 1500, 1500])
        direction, _ = DirectionTable(camera)(x, y)
        exact = camera.unproject(torch.stack([x, y], dim=-1) + 0.5)
        torch.testing.assert_close(direction.double(), exact, rtol=0, atol=2e-7)

    def test_pixels_without_a_direction_get_a_unit_vector(self) -> None:
        folding = make(Lens.SIMPLE_RADIAL, 150, [-0.3])
        for camera in (folding, folding.resized(1600, 1200)):
            x, y = torch.tensor([0, camera.width - 1, 3]), torch.tensor([0, camera.height - 1, 2])
            direction, radius = DirectionTable(camera)(x, y)
            torch.testing.assert_close(direction.norm(dim=-1), torch.ones(3))
            assert torch.isfinite(radius).all()

    def test_accuracy_up_to_the_fold(self) -> None:
        """Near the rim of a folding lens the inverse bends without bound; only its last few knots may be worse."""
        camera = make(Lens.SIMPLE_RADIAL, 150, [-0.3]).resized(3200, 2400)
        rim = math.sqrt(1 / 0.9) * (1 - 0.3 / 0.9)
        index = torch.randint(3200 * 2400, (20_000,), generator=torch.Generator().manual_seed(0))
        x, y = index % 3200, index // 3200
        xy = torch.stack([x, y], dim=-1) + 0.5
        inside = ((xy - camera.intrinsics[2:]) / camera.intrinsics[:2]).norm(dim=-1) < rim - 3 * 11 / 1200
        direction, _ = DirectionTable(camera)(x[inside], y[inside])
        back, valid = camera.project(direction.double())
        assert inside.sum() > 3000 and valid.all()
        assert float((back - xy[inside]).abs().max()) < 1e-3

    def test_memory_is_bounded(self) -> None:
        for size in ((128, 128), (129, 128), (9000, 6000), (100_000, 20)):
            table = DirectionTable(make(Lens.FOV, 250, [0.9]).resized(*size), entries=1 << 14)
            entries = sum(len(t) for t in (table._table, table._knots) if t is not None)
            assert 0 < entries <= 2 << 14

    def test_wants_a_single_camera(self) -> None:
        with pytest.raises(ValueError, match="single camera"):
            DirectionTable(Camera.stack([make(Lens.PINHOLE, 250, [])]))
