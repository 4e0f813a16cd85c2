"""Transforms are groups, exponentials are matrix exponentials, derivatives hold where the formulas divide by zero."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from lightfold import geometry as geo
from lightfold.geometry import Similarity

# Where something could go wrong: zero, tiny, both sides of the series' limit, near and at a half turn.
HARD_OMEGAS = [
    [0.0, 0.0, 0.0],
    [1e-9, 0.0, -1e-9],
    [1e-4, 2e-4, -1e-4],
    [0.1, -0.2, 0.3],
    [0.999999, 0.0, 0.0],
    [1.000001, 0.0, 0.0],
    [1.0, -2.0, 0.5],
    [0.0, 3.141, 0.0],
    [math.pi / math.sqrt(3)] * 3,
    [0.0, 0.0, math.pi],
]
coordinate = st.floats(-3.0, 3.0, allow_nan=False)


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_rigid(rng: torch.Generator, *shape: int) -> Tensor:
    return geo.se3_exp(2.0 * torch.randn(*shape, 6, generator=rng, dtype=torch.float64))


def random_similarity(rng: torch.Generator) -> Similarity:
    pose = random_rigid(rng)
    return Similarity(math.exp(float(torch.randn((), generator=rng))), pose[:, :3], 3 * pose[:, 3])


def cross_matrix(omega: Tensor) -> Tensor:
    x, y, z = omega.tolist()
    return double([[0, -z, y], [z, 0, -x], [-y, x, 0]])


class TestRigid:
    def test_composition_is_application_in_turn(self, rng: torch.Generator) -> None:
        c_from_b, b_from_a = random_rigid(rng, 5), random_rigid(rng, 5)
        x_in_a = torch.randn(5, 3, generator=rng, dtype=torch.float64)
        x_in_c = geo.apply(c_from_b, geo.apply(b_from_a, x_in_a))
        torch.testing.assert_close(geo.apply(geo.compose(c_from_b, b_from_a), x_in_a), x_in_c)

    def test_inverse_and_identity(self, rng: torch.Generator) -> None:
        pose = random_rigid(rng, 7)
        identity = torch.eye(3, 4, dtype=torch.float64).expand(7, 3, 4)
        torch.testing.assert_close(geo.compose(pose, geo.invert(pose)), identity)
        torch.testing.assert_close(geo.compose(geo.invert(pose), pose), identity)
        torch.testing.assert_close(geo.compose(identity, pose), pose)

    def test_composition_is_associative(self, rng: torch.Generator) -> None:
        a, b, c = random_rigid(rng), random_rigid(rng), random_rigid(rng)
        torch.testing.assert_close(geo.compose(geo.compose(a, b), c), geo.compose(a, geo.compose(b, c)))

    def test_one_transform_moves_many_points_and_batches_broadcast(self, rng: torch.Generator) -> None:
        poses, x = random_rigid(rng, 4), torch.randn(6, 3, generator=rng, dtype=torch.float64)
        all_at_once = geo.apply(poses[:, None], x)
        assert all_at_once.shape == (4, 6, 3)
        for pose, moved in zip(poses, all_at_once, strict=True):
            torch.testing.assert_close(geo.apply(pose, x), moved)

    def test_gradients(self, rng: torch.Generator) -> None:
        a, b = random_rigid(rng, 2).requires_grad_(), random_rigid(rng, 2).requires_grad_()
        x = torch.randn(2, 3, generator=rng, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda a, b, x: geo.apply(geo.compose(a, geo.invert(b)), x), (a, b, x))


class TestLookAt:
    def test_target_is_ahead_and_up_is_up(self) -> None:
        eye, target, up = double([1.0, -4.0, 2.0]), double([0.5, 0.0, 0.3]), double([0.0, 0.0, 1.0])
        pose = geo.look_at(eye, target, up)
        distance = float((target - eye).norm())
        torch.testing.assert_close(geo.apply(pose, target), double([0.0, 0.0, distance]))
        torch.testing.assert_close(geo.apply(pose, eye), double([0.0, 0.0, 0.0]))
        above = geo.apply(pose, target + 0.1 * up)
        assert above[1] < 0 and abs(above[0]) < 1e-12  # y of the camera points down
        torch.testing.assert_close(torch.linalg.det(pose[:, :3]), double(1.0))

    def test_known_pose(self) -> None:
        # From the south, looking north, z up: the picture's right is east (+x) and its down is -z.
        pose = geo.look_at(double([0.0, -2.0, 0.0]), double([0.0, 0.0, 0.0]), double([0.0, 0.0, 1.0]))
        torch.testing.assert_close(pose, double([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 2.0]]))

    def test_batches(self) -> None:
        eyes = double([[3.0, 0.0, 1.0], [0.0, 3.0, 1.0]])
        poses = geo.look_at(eyes, torch.zeros(3, dtype=torch.float64), double([0.0, 0.0, 1.0]))
        torch.testing.assert_close(geo.invert(poses)[..., 3], eyes)

    @pytest.mark.parametrize("target", [[0.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
    def test_no_upright_picture(self, target: list[float]) -> None:
        with pytest.raises(ValueError, match="look_at"):
            geo.look_at(torch.zeros(3), torch.tensor(target), torch.tensor([0.0, 0.0, 1.0]))


class TestRotations:
    @pytest.mark.parametrize("omega", HARD_OMEGAS)
    def test_exponential_is_the_matrix_exponential(self, omega: list[float]) -> None:
        expected = torch.linalg.matrix_exp(cross_matrix(double(omega)))
        torch.testing.assert_close(geo.so3_exp(double(omega)), expected, rtol=0, atol=1e-14)

    @pytest.mark.parametrize("omega", HARD_OMEGAS)
    def test_logarithm_inverts_the_exponential(self, omega: list[float]) -> None:
        rotation = geo.so3_exp(double(omega))
        found = geo.so3_log(rotation)
        if math.hypot(*omega) < 3.14159:
            torch.testing.assert_close(found, double(omega), rtol=1e-9, atol=1e-14)
        # At a half turn the sign of the axis is free, but the rotation is the same.
        torch.testing.assert_close(geo.so3_exp(found), rotation, rtol=0, atol=1e-13)

    @given(st.tuples(coordinate, coordinate, coordinate))
    @settings(max_examples=60, deadline=None)
    def test_against_scipy(self, omega: tuple[float, float, float]) -> None:
        theirs = Rotation.from_rotvec(omega)
        rotation = geo.so3_exp(double(omega))
        torch.testing.assert_close(rotation, torch.from_numpy(theirs.as_matrix()), rtol=0, atol=1e-13)
        wxyz = geo.quaternion_from_rotation(rotation)
        x, y, z, w = theirs.as_quat()
        same_rotation = abs(float(wxyz @ double([w, x, y, z])))
        assert same_rotation == pytest.approx(1.0, abs=1e-12)
        assert wxyz[0] >= 0
        torch.testing.assert_close(geo.rotation_from_quaternion(wxyz), rotation, rtol=0, atol=1e-13)

    def test_quaternion_scale_and_sign_do_not_matter(self) -> None:
        wxyz = double([0.1, -0.4, 0.3, 0.8])
        rotation = geo.rotation_from_quaternion(wxyz)
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
        torch.testing.assert_close(geo.rotation_from_quaternion(-7.0 * wxyz), rotation)
        torch.testing.assert_close(geo.quaternion_from_rotation(rotation), wxyz / wxyz.norm())

    @pytest.mark.parametrize("axis", range(3))
    def test_half_turns_about_the_axes(self, axis: int) -> None:
        rotation = -torch.eye(3, dtype=torch.float64)
        rotation[axis, axis] = 1.0
        expected = torch.zeros(4, dtype=torch.float64)
        expected[axis + 1] = 1.0
        torch.testing.assert_close(geo.quaternion_from_rotation(rotation).abs(), expected)
        assert float(geo.so3_log(rotation).norm()) == pytest.approx(math.pi)

    @pytest.mark.parametrize("omega", HARD_OMEGAS[:8])
    def test_gradients_including_zero(self, omega: list[float]) -> None:
        leaf = double(omega).requires_grad_()
        assert torch.autograd.gradcheck(geo.so3_exp, leaf)
        assert torch.autograd.gradcheck(lambda o: geo.so3_log(geo.so3_exp(o)), leaf)
        jacobian = torch.autograd.functional.jacobian(lambda o: geo.so3_log(geo.so3_exp(o)), leaf)
        torch.testing.assert_close(jacobian, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-7)

    def test_second_derivative_at_zero(self) -> None:
        assert torch.autograd.gradgradcheck(geo.so3_exp, torch.zeros(3, dtype=torch.float64, requires_grad=True))

    def test_single_precision(self) -> None:
        omega = torch.tensor(HARD_OMEGAS, dtype=torch.float32)
        torch.testing.assert_close(geo.so3_exp(omega).double(), geo.so3_exp(omega.double()), rtol=0, atol=1e-6)


class TestTwists:
    @pytest.mark.parametrize("omega", HARD_OMEGAS)
    def test_exponential_is_the_matrix_exponential(self, omega: list[float]) -> None:
        rho = double([0.3, -1.2, 2.0])
        generator = torch.zeros(4, 4, dtype=torch.float64)
        generator[:3, :3], generator[:3, 3] = cross_matrix(double(omega)), rho
        found = geo.se3_exp(torch.cat([rho, double(omega)]))
        torch.testing.assert_close(found, torch.linalg.matrix_exp(generator)[:3], rtol=0, atol=1e-13)

    @pytest.mark.parametrize("omega", HARD_OMEGAS[:8])
    def test_logarithm_and_gradients(self, omega: list[float]) -> None:
        xi = double([0.3, -1.2, 2.0, *omega]).requires_grad_()
        torch.testing.assert_close(geo.se3_log(geo.se3_exp(xi)), xi, rtol=1e-8, atol=1e-12)
        assert torch.autograd.gradcheck(geo.se3_exp, xi)
        assert torch.autograd.gradcheck(lambda x: geo.se3_log(geo.se3_exp(x)), xi)

    def test_zero_is_the_identity(self) -> None:
        torch.testing.assert_close(geo.se3_exp(torch.zeros(2, 6)), torch.eye(3, 4).expand(2, 3, 4))

    def test_sine_ratio(self) -> None:
        x = torch.linspace(0, 4, 101, dtype=torch.float64)
        torch.testing.assert_close(geo.sine_ratio(x * x), torch.sinc(x / math.pi), rtol=1e-14, atol=1e-15)
        assert torch.autograd.gradcheck(geo.sine_ratio, double([0.0, 0.5, 0.9999, 1.0001, 6.0]).requires_grad_())


class TestContraction:
    def test_check_vector(self) -> None:
        torch.testing.assert_close(geo.contract(double([3.0, 4.0, 0.0])), double([1.08, 1.44, 0.0]))

    def test_unit_ball_stays_and_far_points_reach_two(self, rng: torch.Generator) -> None:
        direction = torch.nn.functional.normalize(torch.randn(50, 3, generator=rng, dtype=torch.float64), dim=-1)
        inside = direction * torch.linspace(0, 1, 50, dtype=torch.float64)[:, None]
        torch.testing.assert_close(geo.contract(inside), inside)
        torch.testing.assert_close(geo.contract(1e12 * direction), 2.0 * direction)
        assert geo.contract(torch.tensor([1e17, -1e17, 0.0])).norm() == pytest.approx(2.0)

    @given(st.tuples(*[st.floats(-1e3, 1e3)] * 3))
    @settings(max_examples=60, deadline=None)
    def test_norms(self, x: tuple[float, float, float]) -> None:
        point = double(x)
        radius = float(point.norm())
        assert float(geo.contract(point).norm()) == pytest.approx(radius if radius <= 1 else 2 - 1 / radius, abs=1e-12)
        side = float(point.abs().max())
        cube = geo.contract_cube(point)
        assert float(cube.abs().max()) == pytest.approx(side if side <= 1 else 2 - 1 / side, abs=1e-12)
        torch.testing.assert_close(geo.uncontract_cube(cube), point, rtol=1e-9, atol=1e-12)

    def test_surface_of_the_cube_is_far_but_finite(self) -> None:
        far = geo.uncontract_cube(torch.tensor([[2.0, 0.0, -1.0], [-2.0, 2.0, 2.0]]))
        assert torch.isfinite(far).all() and (far.abs().amax(-1) > 1e6).all()
        torch.testing.assert_close(far[0] / far[0, 0], torch.tensor([1.0, 0.0, -0.5]))

    @pytest.mark.parametrize("scale", [0.3, 1.5, 40.0])
    def test_jacobian_is_the_closed_form(self, scale: float) -> None:
        # With n = |x|, x = n u: a step along u is shortened to 1/n^2, a step across it to (2 - 1/n)/n.
        x = scale * double([0.6, -0.48, 0.64])
        n, u = float(x.norm()), x / x.norm()
        along = torch.outer(u, u)
        eye = torch.eye(3, dtype=torch.float64)
        expected = eye if n <= 1 else along / n**2 + (eye - along) * (2 - 1 / n) / n
        torch.testing.assert_close(torch.autograd.functional.jacobian(geo.contract, x), expected)

    @pytest.mark.parametrize("function", [geo.contract, geo.contract_cube, geo.uncontract_cube])
    def test_gradients_including_zero(self, function: Callable[[Tensor], Tensor]) -> None:
        x = double([[0.0, 0.0, 0.0], [0.2, -0.3, 0.1], [0.7, -1.6, 1.2], [1.9, 0.3, 0.4]]).requires_grad_()
        assert torch.autograd.gradcheck(function, x)

    def test_first_derivative_is_continuous_at_the_unit_sphere(self) -> None:
        u = double([0.6, 0.0, 0.8])
        for radius in (1 - 1e-9, 1 + 1e-9):
            jacobian = torch.autograd.functional.jacobian(geo.contract, radius * u)
            torch.testing.assert_close(jacobian, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-8)


class TestContractedGaussians:
    def test_linear_at_the_mean(self, rng: torch.Generator) -> None:
        """J covariance J^T with the Jacobian that autodiff finds, inside and outside the unit ball and far away."""
        mean = torch.randn(20, 3, generator=rng, dtype=torch.float64) * double([0.2, 1.0, 3.0, 50.0]).repeat(5)[:, None]
        root = torch.randn(20, 3, 3, generator=rng, dtype=torch.float64)
        contracted, covariance = geo.contract_gaussian(mean, root @ root.mT)
        torch.testing.assert_close(contracted, geo.contract(mean))
        for x, a, found in zip(mean, root, covariance, strict=True):
            jacobian = torch.autograd.functional.jacobian(geo.contract, x)
            torch.testing.assert_close(found, jacobian @ a @ a.T @ jacobian.T)

    def test_small_gaussians_are_those_of_contracted_samples(self, rng: torch.Generator) -> None:
        mean, root = double([2.0, -1.0, 0.5]), 1e-3 * torch.randn(3, 3, generator=rng, dtype=torch.float64)
        drawn = geo.contract(mean + torch.randn(200_000, 3, generator=rng, dtype=torch.float64) @ root.T)
        _, covariance = geo.contract_gaussian(mean, root @ root.T)
        torch.testing.assert_close(drawn.T.cov(), covariance, rtol=0.02, atol=1e-9)

    def test_gradients(self) -> None:
        mean = double([[0.0, 0.0, 0.0], [0.2, -0.3, 0.1], [0.7, -1.6, 1.2]]).requires_grad_()
        covariance = torch.eye(3, dtype=torch.float64).expand(3, 3, 3).clone().requires_grad_()
        assert torch.autograd.gradcheck(geo.contract_gaussian, (mean, covariance))


class TestContractedIsotropic:
    def test_deviation_follows_the_volume(self, rng: torch.Generator) -> None:
        """The cube root of the determinant of the Jacobian, which autodiff finds."""
        mean = 5 * torch.randn(40, 3, generator=rng, dtype=torch.float64)
        where, deviation = geo.contract_cube_isotropic(mean, torch.full((40,), 0.1, dtype=torch.float64))
        torch.testing.assert_close(where, geo.contract_cube(mean))
        for x, found in zip(mean, deviation, strict=True):
            jacobian = torch.autograd.functional.jacobian(geo.contract_cube, x)
            assert float(found) == pytest.approx(0.1 * abs(float(torch.linalg.det(jacobian))) ** (1 / 3), rel=1e-9)

    def test_the_region_of_interest_stays_as_it_is(self) -> None:
        mean, deviation = torch.tensor([[0.3, -1.0, 0.9], [0.0, 0.0, 0.0]]), torch.tensor([0.2, 0.0])
        where, narrowed = geo.contract_cube_isotropic(mean, deviation)
        assert torch.equal(where, mean) and torch.equal(narrowed, deviation)


class TestSimilarity:
    def test_group(self, rng: torch.Generator) -> None:
        c_from_b, b_from_a = random_similarity(rng), random_similarity(rng)
        x = torch.randn(9, 3, generator=rng, dtype=torch.float64)
        torch.testing.assert_close((c_from_b @ b_from_a).apply(x), c_from_b.apply(b_from_a.apply(x)))
        torch.testing.assert_close(b_from_a.inverse().apply(b_from_a.apply(x)), x)
        torch.testing.assert_close((b_from_a.inverse() @ b_from_a).apply(x), x)
        torch.testing.assert_close((Similarity.identity() @ b_from_a).apply(x), b_from_a.apply(x))

    def test_lengths_scale(self) -> None:
        b_from_a = Similarity(2.5, geo.so3_exp(double([0.1, 0.2, 0.3])), double([1.0, 2.0, 3.0]))
        x = double([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]])
        y = b_from_a.apply(x)
        assert float((y[1] - y[0]).norm()) == pytest.approx(12.5)
        torch.testing.assert_close(y[0], double([1.0, 2.0, 3.0]))

    def test_camera_sees_the_scaled_point_at_the_scaled_place(self, rng: torch.Generator) -> None:
        b_from_a, cam_from_a = random_similarity(rng), random_rigid(rng, 4)
        x = torch.randn(4, 3, generator=rng, dtype=torch.float64)
        cam_from_b = b_from_a.camera_from(cam_from_a)
        rotation = cam_from_b[..., :3]
        torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(4, 3, 3))
        torch.testing.assert_close(geo.apply(cam_from_b, b_from_a.apply(x)), b_from_a.scale * geo.apply(cam_from_a, x))

    def test_keeps_the_float_type_but_computes_in_double(self) -> None:
        # Map coordinates: in float32 the difference of two eastings of 5e6 would lose half a metre.
        b_from_a = Similarity(1.0, torch.eye(3), double([-5e6, 0.0, 0.0]))
        x = double([[5e6 + 0.125, 0.0, 0.0]])
        assert b_from_a.apply(x)[0, 0] == 0.125
        assert b_from_a.apply(x.float()).dtype == torch.float32
        assert b_from_a.camera_from(torch.eye(3, 4)).dtype == torch.float32

    def test_dict_round_trip(self, rng: torch.Generator) -> None:
        one = random_similarity(rng)
        two = Similarity.from_dict(one.to_dict())
        assert two.scale == one.scale
        assert torch.equal(two.rotation, one.rotation) and torch.equal(two.translation, one.translation)

    @pytest.mark.parametrize(
        ("scale", "rotation"),
        [
            (0.0, torch.eye(3)),
            (-1.0, torch.eye(3)),
            (math.nan, torch.eye(3)),
            (1.0, -torch.eye(3)),
            (1.0, 2.0 * torch.eye(3)),
            (1.0, torch.full((3, 3), math.nan)),
            (1.0, torch.eye(4)),
        ],
    )
    def test_refuses_what_is_no_similarity(self, scale: float, rotation: Tensor) -> None:
        with pytest.raises(ValueError, match="scale|rotation"):
            Similarity(scale, rotation, torch.zeros(3))

    def test_from_dict_names_the_missing_key(self) -> None:
        with pytest.raises(ValueError, match="translation"):
            Similarity.from_dict({"scale": 1.0, "rotation": torch.eye(3).tolist()})


class TestClosestPoint:
    def test_lines_through_a_point(self, rng: torch.Generator) -> None:
        point = double([1e6, -2e6, 30.0])
        direction = torch.randn(20, 3, generator=rng, dtype=torch.float64)
        origin = point + direction * torch.randn(20, 1, generator=rng, dtype=torch.float64)
        torch.testing.assert_close(geo.closest_point_to_lines(origin, 5.0 * direction), point, rtol=0, atol=1e-7)

    def test_two_skew_lines_meet_half_way(self) -> None:
        origin, direction = double([[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]]), double([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        torch.testing.assert_close(geo.closest_point_to_lines(origin, direction), double([0.0, 0.0, 1.0]))

    def test_it_is_the_least_squares_point(self, rng: torch.Generator) -> None:
        origin, direction = torch.randn(2, 8, 3, generator=rng, dtype=torch.float64)
        direction = torch.nn.functional.normalize(direction, dim=-1)
        point = geo.closest_point_to_lines(origin, direction).requires_grad_()
        torch.linalg.cross(point - origin, direction).square().sum().backward()
        assert point.grad is not None
        torch.testing.assert_close(point.grad, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-10)

    def test_parallel_lines_have_none(self, rng: torch.Generator) -> None:
        origin = torch.randn(5, 3, generator=rng)
        direction = torch.tensor([0.0, 0.6, 0.8]).expand(5, 3) * torch.tensor([1.0, -1.0, 2.0, 3.0, 1.0])[:, None]
        with pytest.raises(ValueError, match="parallel"):
            geo.closest_point_to_lines(origin, direction)

    def test_one_line_is_not_enough(self) -> None:
        with pytest.raises(ValueError, match="N >= 2"):
            geo.closest_point_to_lines(torch.zeros(1, 3), torch.ones(1, 3))
