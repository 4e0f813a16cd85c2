"""Rays and samples: what the containers promise, and that drawn distances follow the weights they are drawn from."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightfold.cameras import Camera, Lens
from lightfold.rays import Rays, Samples, meeting, ndc_rays, per_meeting, sample_pdf, stratified


def some_rays(rng: torch.Generator, count: int = 6, dtype: torch.dtype = torch.float64) -> Rays:
    origin = torch.randn(count, 3, generator=rng, dtype=dtype)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=rng, dtype=dtype), dim=-1)
    return Rays(origin, direction, torch.rand(count, generator=rng, dtype=dtype), view=torch.arange(count))


class TestRays:
    def test_defaults_hold_for_every_ray(self) -> None:
        rays = Rays(torch.zeros(4, 3), torch.ones(4, 3))
        assert len(rays) == 4
        assert rays.near.tolist() == [0.0] * 4 and rays.far.tolist() == [math.inf] * 4
        assert rays.radius.tolist() == [0.0] * 4
        assert rays.view.tolist() == [-1] * 4 and rays.view.dtype == torch.int64

    def test_indexing_keeps_the_fields_together(self, rng: torch.Generator) -> None:
        rays = some_rays(rng)
        for index in (slice(1, 4), torch.tensor([5, 0, 0]), torch.tensor([True, False, True, False, False, True])):
            part = rays[index]
            assert part.view.tolist() == torch.arange(6)[index].tolist()
            assert torch.equal(part.origin, rays.origin[part.view])
            assert torch.equal(part.direction, rays.direction[part.view])
            assert torch.equal(part.radius, rays.radius[part.view])
        assert len(rays[:0]) == 0

    def test_float_type_does_not_touch_the_view(self, rng: torch.Generator) -> None:
        rays = some_rays(rng).to(torch.float32)
        assert rays.origin.dtype == rays.far.dtype == torch.float32
        assert rays.view.dtype == torch.int64
        assert rays.to("cpu").origin.dtype == torch.float32

    def test_points(self, rng: torch.Generator) -> None:
        rays = some_rays(rng)
        t = torch.rand(6, 5, generator=rng, dtype=torch.float64)
        points = rays.at(t)
        assert points.shape == (6, 5, 3)
        torch.testing.assert_close((points - rays.origin[:, None]).norm(dim=-1), t)

    @pytest.mark.parametrize(
        "fields",
        [
            {"origin": torch.zeros(3), "direction": torch.zeros(3)},
            {"origin": torch.zeros(2, 3), "direction": torch.zeros(4, 3)},
            {"origin": torch.zeros(2, 3), "direction": torch.zeros(2, 3), "near": torch.zeros(3)},
            {"origin": torch.zeros(2, 3), "direction": torch.zeros(2, 3), "radius": torch.zeros(2, 1)},
        ],
    )
    def test_shapes_that_do_not_fit_are_refused(self, fields: dict[str, Tensor]) -> None:
        with pytest.raises(ValueError, match="Rays: expected"):
            Rays(**fields)


class TestMeeting:
    near, far = torch.tensor([1.0, 2.0, 1.0, 0.5]), torch.tensor([2.0, 2.0, 3.0, math.inf])

    def rays(self) -> Rays:
        """The second has no length, the third no direction."""
        direction = torch.tensor([[0.0, 0.0, 1.0]]).repeat(4, 1)
        direction[2] = torch.nan
        return Rays(torch.ones(4, 3), direction, torch.full((4,), 0.1), self.near, self.far, torch.arange(4))

    def test_those_that_miss_are_left_out(self) -> None:
        index, rays = meeting(self.rays())
        assert index.tolist() == rays.view.tolist() == [0, 3]
        assert rays.near.tolist() == [1.0, 0.5] and rays.far.tolist() == [2.0, math.inf]
        assert [len(part) for part in meeting(self.rays()[1:3])] == [0, 0]

    def test_or_have_no_length_where_sizes_are_fixed(self) -> None:
        index, rays = meeting(self.rays(), fixed=True)
        assert index.tolist() == rays.view.tolist() == [0, 1, 2, 3]
        assert (rays.far > rays.near).tolist() == [True, False, False, True]
        torch.testing.assert_close(rays.direction.norm(dim=-1), torch.ones(4))
        forward = torch.tensor([0.6, 0.0, 0.8])
        _, rays = meeting(self.rays(), True, torch.zeros(3), forward)
        assert torch.equal(rays.direction[1:3], forward.expand(2, 3)) and not rays.origin[1:3].any()
        assert torch.equal(rays.direction[0], torch.tensor([0.0, 0.0, 1.0])) and bool(rays.origin[0].all())

    def test_a_mean_over_all_becomes_one_over_those_that_meet(self) -> None:
        _, rays = meeting(self.rays(), fixed=True)
        values = torch.where(rays.far > rays.near, torch.tensor([3.0, 9.0, 9.0, 5.0]), 0.0)
        assert float(per_meeting(rays) * values.mean()) == 4.0
        assert math.isfinite(float(per_meeting(rays[1:3])))


class TestSamples:
    def test_regular(self, rng: torch.Generator) -> None:
        edges = torch.tensor([[0.0, 1.0, 3.0], [2.0, 4.0, 5.0]], dtype=torch.float64)
        samples = Samples.regular(edges)
        assert len(samples) == 4
        assert samples.t0.tolist() == [0.0, 1.0, 2.0, 4.0]
        assert samples.t1.tolist() == [1.0, 3.0, 4.0, 5.0]
        assert samples.ray.tolist() == [0, 0, 1, 1]
        assert samples.offset.tolist() == [0, 2, 4]
        assert samples.middle.tolist() == [0.5, 2.0, 3.0, 4.5]
        assert samples.length.tolist() == [1.0, 2.0, 2.0, 1.0]
        rays = some_rays(rng, 2)
        torch.testing.assert_close(samples.positions(rays), rays.at(samples.middle.view(2, 2)).flatten(0, 1))

    def test_no_rays(self) -> None:
        samples = Samples.regular(torch.zeros(0, 5))
        assert len(samples) == 0 and samples.offset.tolist() == [0]


class TestStratified:
    def test_middles_without_a_generator(self) -> None:
        t = stratified(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 6.0]), 4, None)
        assert t.tolist() == [[0.125, 0.375, 0.625, 0.875], [2.5, 3.5, 4.5, 5.5]]

    def test_one_in_each_part(self, rng: torch.Generator) -> None:
        near, far = torch.full((500,), 2.0), torch.full((500,), 6.0)
        t = stratified(near, far, 16, rng)
        part = ((t - 2.0) / 4.0 * 16).floor()
        assert torch.equal(part, torch.arange(16.0).expand(500, 16))
        # Uniform inside its part: mean 1/2, variance 1/12.
        share = (t - 2.0) / 4.0 * 16 - part
        assert float(share.mean()) == pytest.approx(0.5, abs=0.02)
        assert float(share.var()) == pytest.approx(1 / 12, abs=0.005)

    def test_the_same_seed_gives_the_same_numbers(self) -> None:
        near, far = torch.zeros(3), torch.ones(3)
        one, two = (stratified(near, far, 8, torch.Generator().manual_seed(5)) for _ in range(2))
        assert torch.equal(one, two)


class TestSamplePdf:
    @given(st.integers(0, 9), st.integers(1, 40), st.booleans(), st.sampled_from([torch.float32, torch.float64]))
    @settings(max_examples=60, deadline=None)
    def test_a_single_bin_gets_all_samples(self, hot: int, m: int, jitter: bool, dtype: torch.dtype) -> None:
        edges = torch.linspace(1.0, 3.0, 11, dtype=dtype).expand(4, 11)
        weights = torch.zeros(4, 10, dtype=dtype)
        weights[:, hot] = torch.tensor([1.0, 1e-30, 1e30, 0.3], dtype=dtype)
        t = sample_pdf(edges, weights, m, torch.Generator().manual_seed(m) if jitter else None)
        assert t.shape == (4, m)
        assert (t >= edges[:, hot, None]).all() and (t <= edges[:, hot + 1, None]).all()
        assert (t.diff(dim=-1) >= 0).all()

    def test_equal_weights_on_uneven_bins_are_the_inverse_cdf(self) -> None:
        edges = torch.tensor([[0.0, 1.0, 10.0]], dtype=torch.float64)
        t = sample_pdf(edges, torch.ones(1, 2, dtype=torch.float64), 4, None)
        torch.testing.assert_close(t, torch.tensor([[0.25, 0.75, 3.25, 7.75]], dtype=torch.float64))

    def test_histogram_follows_the_weights(self, rng: torch.Generator) -> None:
        weights = torch.tensor([[0.1, 0.0, 0.5, 0.15, 0.25]], dtype=torch.float64)
        edges = torch.tensor([[0.0, 0.5, 2.0, 2.1, 4.0, 7.0]], dtype=torch.float64)
        t = sample_pdf(edges.expand(2000, 6), weights.expand(2000, 5), 7, rng).flatten()
        counts = torch.histogram(t, edges[0]).hist / len(t)
        torch.testing.assert_close(counts, weights[0], rtol=0, atol=0.01)
        assert counts[1] == 0

    def test_scale_of_the_weights_does_not_matter_and_no_weight_means_equal_weights(self) -> None:
        edges = torch.linspace(0, 1, 6, dtype=torch.float64).expand(1, 6)
        weights = torch.tensor([[0.2, 0.1, 0.4, 0.0, 0.3]], dtype=torch.float64)
        torch.testing.assert_close(sample_pdf(edges, 0.01 * weights, 9, None), sample_pdf(edges, weights, 9, None))
        empty, equal = torch.zeros_like(weights), torch.ones_like(weights)
        torch.testing.assert_close(sample_pdf(edges, empty, 9, None), sample_pdf(edges, equal, 9, None))

    def test_no_gradient_passes(self) -> None:
        weights = torch.rand(2, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
        assert not sample_pdf(torch.linspace(0, 1, 6).expand(2, 6), weights, 4, None).requires_grad

    def test_shapes_that_do_not_fit_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"\[3, 6\]"):
            sample_pdf(torch.zeros(3, 6), torch.zeros(3, 6), 4, None)

    def test_no_rays(self, rng: torch.Generator) -> None:
        assert sample_pdf(torch.zeros(0, 6), torch.zeros(0, 5), 4, rng).shape == (0, 4)


class TestNdc:
    focal, width, height = 400.0, 640, 480

    def paper(self, point: Tensor, near: float) -> Tensor:
        """NeRF, appendix C, eq. 25, literally: a camera that looks along -z with y up."""
        x, y, z = point[..., 0], -point[..., 1], -point[..., 2]
        projected = [
            -2 * self.focal / self.width * x / z,
            -2 * self.focal / self.height * y / z,
            1 + 2 * near / z,
        ]
        return torch.stack(projected, dim=-1)

    def forward_rays(self, rng: torch.Generator) -> Rays:
        rays = some_rays(rng, 20)
        direction = rays.direction.clone()
        direction[:, 2] = direction[:, 2].abs() + 0.5
        return Rays(0.3 * rays.origin, torch.nn.functional.normalize(direction, dim=-1), rays.radius, view=rays.view)

    @pytest.mark.parametrize("near", [1.0, 1.7])
    def test_near_plane_and_infinity(self, near: float, rng: torch.Generator) -> None:
        rays = self.forward_rays(rng)
        ndc = ndc_rays(rays, self.focal, self.width, self.height, near)
        start, end = ndc.at(torch.tensor([[0.0, 1.0]], dtype=torch.float64)).unbind(1)
        ones = torch.ones(20, dtype=torch.float64)
        torch.testing.assert_close(start[:, 2], -ones)
        torch.testing.assert_close(end[:, 2], ones)
        assert torch.equal(ndc.near, torch.zeros_like(ones)) and torch.equal(ndc.far, ones)
        assert torch.equal(ndc.view, rays.view)

    @pytest.mark.parametrize("near", [1.0, 1.7])
    def test_every_point_is_the_papers_projection(self, near: float, rng: torch.Generator) -> None:
        rays = self.forward_rays(rng)
        ndc = ndc_rays(rays, self.focal, self.width, self.height, near)
        share = torch.tensor([[0.0, 0.3, 0.9]], dtype=torch.float64).expand(20, 3)
        # t' = 1 - z(near plane) / z(point), equation 30 of the paper.
        depth = near / (1 - share)
        t = (depth - rays.origin[:, 2:]) / rays.direction[:, 2:]
        ours, theirs = ndc.at(share), self.paper(rays.at(t), near)
        torch.testing.assert_close(ours * torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64), theirs)

    def test_a_centred_camera_fills_the_cube_and_its_tubes_are_pixels_wide(self) -> None:
        camera = Camera(
            torch.eye(3, 4, dtype=torch.float64),
            torch.tensor([self.focal, self.focal, 320.0, 240.0], dtype=torch.float64),
            torch.zeros(0),
            self.width,
            self.height,
            Lens.PINHOLE,
        )
        corners = torch.tensor([[0.0, 0.0], [640.0, 480.0]], dtype=torch.float64)
        ndc = ndc_rays(camera.rays(corners), self.focal, self.width, self.height)
        torch.testing.assert_close(ndc.origin[:, :2], torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64))
        # Parallel to the axis of the cube, and as wide as neighbouring pixels are apart there.
        torch.testing.assert_close(ndc.direction, torch.tensor([[0.0, 0.0, 2.0]] * 2, dtype=torch.float64))
        expected = 0.5 * (2 / self.width + 2 / self.height) * 2 / math.sqrt(12)
        torch.testing.assert_close(ndc.radius, torch.full((2,), expected, dtype=torch.float64))

    def test_backward_rays_are_refused(self) -> None:
        rays = Rays(torch.zeros(2, 3), torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.6, -0.8]]))
        with pytest.raises(ValueError, match="z > 0"):
            ndc_rays(rays, 100.0, 10, 10)
