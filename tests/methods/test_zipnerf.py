"""methods/zipnerf.py: moments of six points, grids that know how large a sample is, a scene learnt in seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_sphere import camera_at
from painted_ball import PaintedBall
from torch import Tensor

from lightfold.config import from_plain, to_plain
from lightfold.errors import ConfigError
from lightfold.evaluate import evaluate
from lightfold.losses import distortion, mse, spline_interlevel
from lightfold.methods import method_class
from lightfold.methods.base import HasDensity, step_generator
from lightfold.methods.mipnerf360 import conical_frustum
from lightfold.methods.zipnerf import ConeGrid, ZipNeRF, ZipNeRFConfig, across, downweighting, hexagon
from lightfold.ops import HashGrid, hash_encode
from lightfold.optim import Adam
from lightfold.rays import Box, Rays
from lightfold.refine import HasColours
from lightfold.scene import Pixels
from lightfold.spaces import BOX

DOUBLE = torch.float64
SMALL = ZipNeRFConfig(
    steps=200, rays=256, proposal_samples=(16, 12), samples=8, levels=4, log2_rows=12, base=8, finest=128,
    finest_bounded=64, width=16, geometry=8, colour_width=16, proposal_levels=(2, 3), proposal_log2_rows=11,
    proposal_finest=(16, 32), proposal_width=8, table_lr=3e-2, network_lr=1e-2,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors as small as these only get slower by being shared out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Coned(PaintedBall):
    """The painted ball, whose rays know how wide their pixels are, and which view they belong to."""

    def __init__(self, bounded: bool = True, views: int = 20, side: int = 32) -> None:
        super().__init__(bounded, views, side)
        cameras = [self.info.cameras[i] for i in self.info.train]
        self._radius = torch.cat([camera.rays(camera.pixel_grid()).radius for camera in cameras])
        self._view = torch.tensor(self.info.train).repeat_interleave(side * side)

    def pixels(self, n: int, rng: torch.Generator) -> Pixels:
        chosen = torch.randint(len(self._rgb), (n,), generator=rng)
        rays = Rays(
            self._origin[chosen], self._direction[chosen], self._radius[chosen], torch.tensor(self.info.near),
            torch.tensor(self.info.far), self._view[chosen],
        )  # fmt: skip
        return Pixels(rays, self._rgb[chosen], self._alpha[chosen], torch.zeros(n, 2))


@pytest.fixture(scope="module")
def ball() -> Coned:
    return Coned()


def model_of(scene: PaintedBall, config: ZipNeRFConfig = SMALL, seed: int = 0) -> ZipNeRF:
    torch.manual_seed(seed)
    return ZipNeRF(config, scene.info)


def train(model: ZipNeRF, scene: PaintedBall, steps: range, optim: Adam | None = None) -> list[float]:
    optim, losses = optim or Adam(model.groups()), []
    for step in steps:
        terms = model.loss(scene, step, step_generator(0, step))  # type: ignore[arg-type]
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        optim.step(step / model.config.steps)
        model.after_step(step, optim)
        losses.append(float(loss.detach()))
    return losses


def held_out_psnr(model: ZipNeRF, scene: PaintedBall) -> float:
    result = evaluate(model, scene, background="white" if scene.info.bounded else None)  # type: ignore[arg-type]
    return float(result["mean"]["psnr"])


def along_z(radius: float = 0.1, count: int = 1) -> Rays:
    axis = torch.tensor([[0.0, 0.0, 1.0]], dtype=DOUBLE).expand(count, 3)
    return Rays(torch.zeros(count, 3, dtype=DOUBLE), axis, torch.full((count,), radius, dtype=DOUBLE))


class TestHexagon:
    EDGES = torch.tensor([[0.0, 1.0, 2.0, 3.0, 3.01, 40.0]], dtype=DOUBLE)

    def test_equation_1(self) -> None:
        """As it is printed, in the ends of the interval."""
        points, distance = hexagon(along_z(0.2), self.EDGES, None)
        for i, (t0, t1) in enumerate(zip(self.EDGES[0], self.EDGES[0, 1:], strict=False)):
            middle, half = (t0 + t1) / 2, (t1 - t0) / 2
            root = ((half**2 - middle**2) ** 2 + 4 * middle**4) ** 0.5
            for j in range(6):
                bracket = t1**2 + 2 * middle**2 + 3 / 7**0.5 * (2 * j / 5 - 1) * root
                t = t0 + half * bracket / (half**2 + 3 * middle**2)
                assert float(points[0, i, j, 2]) == pytest.approx(float(t), rel=1e-9)
                assert float(points[0, i, j, :2].norm()) == pytest.approx(0.2 * float(t) / 2**0.5, rel=1e-9)
                assert float(distance[0, i, j]) == pytest.approx(0.2 * float(t) / 2**0.5, rel=1e-9)

    def test_moments_are_those_of_the_frustum(self) -> None:
        """Mean and variance along the ray, and the mean and the summed variance across it, of every single hexagon;
        over all turns the whole covariance."""
        rays = along_z(0.01)
        mean, along, wide = conical_frustum(self.EDGES[:, :-1], self.EDGES[:, 1:], rays.radius[:, None])
        assert [round(float(t[0, 2]), 10) for t in (mean, along, wide)] == [2.5657894737, 0.0798822715, 0.0001665789]
        turned = []
        for rng in (None, *(torch.Generator().manual_seed(seed) for seed in range(4))):
            points, _ = hexagon(rays, self.EDGES, rng)
            centre = points.mean(dim=2)
            torch.testing.assert_close(centre[..., 2], mean)
            torch.testing.assert_close(centre[..., :2], torch.zeros_like(centre[..., :2]), rtol=0, atol=1e-12)
            torch.testing.assert_close((points[..., 2] - mean[..., None]).square().mean(2), along)
            torch.testing.assert_close(points[..., :2].square().sum(-1).mean(2), 2 * wide)
            for k in range(6):
                angle = torch.tensor(k * math.pi / 3, dtype=DOUBLE)
                matrix = torch.eye(3, dtype=DOUBLE)
                matrix[:2, :2] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
                turned.append((points - centre[:, :, None]) @ matrix.T)
        every = torch.cat(turned, dim=2)
        covariance = every.mT @ every / every.shape[2]
        expected = torch.diag_embed(torch.stack([wide, wide, along], dim=-1))
        torch.testing.assert_close(covariance, expected, rtol=1e-9, atol=1e-12)

    def test_moments_of_a_frustum_filled_at_random(self) -> None:
        """Half a million points of the frustum itself, without anybody's formula."""
        draw = np.random.default_rng(0)
        t0, t1, radius = 1.0, 2.0, 0.3
        t = (t0**3 + (t1**3 - t0**3) * draw.random(500_000)) ** (1 / 3)
        across_it, angle = radius * t * np.sqrt(draw.random(len(t))), 2 * np.pi * draw.random(len(t))
        filled = np.stack([across_it * np.cos(angle), across_it * np.sin(angle), t])
        points, _ = hexagon(along_z(radius), torch.tensor([[t0, t1]], dtype=DOUBLE), None)
        mine = points[0, 0].numpy().T
        np.testing.assert_allclose(mine.mean(axis=1), filled.mean(axis=1), atol=2e-3)
        np.testing.assert_allclose(mine.var(axis=1).sum(), np.cov(filled).trace(), rtol=1e-2)
        np.testing.assert_allclose(mine[2].var(), filled[2].var(), rtol=1e-2)

    def test_places_and_distances_are_uncorrelated(self) -> None:
        """In short intervals; and which of the two axes across the ray one looks at does not matter."""
        points, _ = hexagon(along_z(0.3), torch.tensor([[5.0, 5.001, 5.002]], dtype=DOUBLE), None)
        for i in range(2):
            correlation = np.corrcoef(points[0, i].numpy().T)
            np.testing.assert_allclose(correlation, np.eye(3), atol=1e-3)
            x, y = points[0, i, :, :2].var(dim=0)
            assert float(x) == pytest.approx(float(y), rel=1e-3)

    def test_neighbours_are_mirrored_and_turned_in_pictures(self) -> None:
        points, _ = hexagon(along_z(0.3), torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=DOUBLE), None)
        angle = torch.atan2(points[0, ..., 1], points[0, ..., 0])
        steps = (angle.diff(dim=-1) / (math.pi / 3)).round().remainder(6)
        assert steps[0].tolist() == [2, 2, 5, 2, 2] and steps[1].tolist() == [4, 4, 1, 4, 4]
        turned = ((angle[1] - angle[0, 0]) / (math.pi / 6)).round().remainder(12)
        assert sorted(turned.tolist()) == [1, 3, 5, 7, 9, 11]
        torch.testing.assert_close(angle[0], angle[2])

    def test_training_turns_and_mirrors_at_random(self) -> None:
        edges = torch.tensor([[1.0, 2.0]], dtype=DOUBLE).expand(400, 2)
        points, _ = hexagon(along_z(0.3, 400), edges, torch.Generator().manual_seed(0))
        angle = torch.atan2(points[:, 0, :, 1], points[:, 0, :, 0])
        first_step = ((angle[:, 1] - angle[:, 0]) / (math.pi / 3)).round().remainder(6)
        assert set(first_step.tolist()) == {2.0, 4.0} and 150 < int((first_step == 2).sum()) < 250
        assert float(angle[:, 0].cos().mean().abs()) < 0.15 and float(angle[:, 0].sin().mean().abs()) < 0.15

    def test_single_precision_far_away_and_at_the_eye(self) -> None:
        rays = Rays(torch.zeros(1, 3), torch.tensor([[0.6, 0.0, 0.8]]), torch.tensor(1e-3))
        edges = torch.tensor([[0.0, 0.0, 1e-3, 1000.0, 1000.01, 1e6]])
        points, distance = hexagon(rays, edges, None)
        assert bool(points.isfinite().all()) and bool(distance.isfinite().all())
        t = (points * rays.direction).sum(-1)
        # In a cone that starts at the eye, the outermost point lies 3 % behind the frustum, as the moments want it.
        assert bool((t >= edges[:, :-1, None] * (1 - 1e-6)).all()) and bool((t <= edges[:, 1:, None] * 1.04).all())

    def test_axes_across_a_ray(self) -> None:
        direction = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=1)
        direction = torch.cat([direction, torch.eye(3), -torch.eye(3)])
        frame = torch.stack([*across(direction), direction], dim=1)
        torch.testing.assert_close(frame @ frame.mT, torch.eye(3).expand(len(frame), 3, 3), rtol=0, atol=1e-6)


class TestConeGrid:
    GRID = HashGrid(levels=3, features=2, log2_rows=8, base=4, finest=32)

    def grid(self) -> ConeGrid:
        torch.manual_seed(0)
        cones = ConeGrid(self.GRID)
        with torch.no_grad():
            cones.table.uniform_(-1, 1)
        return cones

    def test_downweighting_is_the_share_in_a_cell(self) -> None:
        deviation, cells = torch.tensor([1e-3, 0.02, 0.5], dtype=DOUBLE), torch.tensor([4.0, 15.0, 100.0], dtype=DOUBLE)
        found = downweighting(deviation, cells)
        for i, s in enumerate(deviation.tolist()):
            for j, n in enumerate(cells.tolist()):
                assert float(found[i, j]) == pytest.approx(math.erf(1 / math.sqrt(8 * s**2 * n**2)), rel=1e-12)
                x = np.linspace(-0.5 / n, 0.5 / n, 20_001)
                mass = np.trapezoid(np.exp(-0.5 * (x / s) ** 2), x) / (s * math.sqrt(2 * math.pi))
                assert float(found[i, j]) == pytest.approx(mass, rel=1e-3)
        assert downweighting(torch.zeros(1), torch.tensor([64.0])).item() == 1.0

    def test_against_a_loop_over_points_and_levels(self) -> None:
        cones, rng = self.grid(), torch.Generator().manual_seed(1)
        unit, deviation = torch.rand(5, 6, 3, generator=rng), 0.2 * torch.rand(5, 6, generator=rng)
        found = cones(unit, deviation).detach().numpy()
        each = hash_encode(unit.view(-1, 3), cones.table.detach(), self.GRID).view(5, 6, 3, 2).numpy()
        table, first = cones.table.detach().numpy(), self.GRID.first_row
        for i in range(5):
            for level in range(3):
                shares = [
                    math.erf(1 / (math.sqrt(8) * float(deviation[i, j]) * self.GRID.scale[level])) for j in range(6)
                ]
                for f in range(2):
                    mean = sum(share * each[i, j, level, f] for j, share in enumerate(shares)) / 6
                    assert found[i, 2 * level + f] == pytest.approx(mean, abs=1e-5)
                size = math.sqrt(1e-8 + float((table[first[level] : first[level + 1]] ** 2).mean()))
                assert found[i, 6 + level] == pytest.approx((2 * np.mean(shares) - 1) * size, abs=1e-5)

    def test_large_samples_see_coarse_levels_alone(self) -> None:
        cones = self.grid()
        where = torch.rand(64, 1, 3, generator=torch.Generator().manual_seed(2)).expand(64, 6, 3)
        near, far = (cones(where, torch.full((64, 6), s))[:, :6].detach() for s in (1e-4, 0.15))
        kept = far.view(64, 3, 2).norm(dim=(0, 2)) / near.view(64, 3, 2).norm(dim=(0, 2))
        assert kept[0] > 2.5 * kept[1] > 5 * kept[2] > 0

    def test_mean_squares_and_their_slope(self) -> None:
        cones = self.grid()
        weight = torch.tensor([1.0, 2.0, 3.0])
        (slope,) = torch.autograd.grad((cones.squares() * weight).sum(), cones.table)
        first = self.GRID.first_row
        for level in range(3):
            rows = slice(first[level], first[level + 1])
            values = cones.table[rows].detach()
            assert float(cones.squares()[level].detach()) == pytest.approx(float((values**2).mean()), rel=1e-6)
            torch.testing.assert_close(slope[rows], 2 * weight[level] * values / values.numel())

    def test_scale_features_do_not_train_the_table(self) -> None:
        cones = self.grid()
        seen = cones(torch.rand(4, 6, 3), torch.full((4, 6), 0.05))
        (slope,) = torch.autograd.grad(seen[:, 6:].sum(), cones.table)
        assert not bool(slope.any())


class TestLearning:
    def test_learns_a_ball(self, ball: Coned) -> None:
        """Views that were held out, over white; the depth of the middle is where the ball is, and so is the density."""
        model = model_of(ball)
        losses = train(model, ball, range(200))
        psnr = held_out_psnr(model, ball)
        assert psnr > 26.0, f"held-out PSNR {psnr:.2f} dB, loss {losses[0]:.4f} -> {losses[-1]:.4f}"
        image = model.render(ball.info.cameras[0])
        assert float(image.depth[14:18, 14:18].mean()) == pytest.approx(1.6, abs=0.12)
        assert image.median_depth is not None
        assert float(image.median_depth[14:18, 14:18].mean()) == pytest.approx(1.6, abs=0.1)
        assert image.alpha[16, 16] > 0.98 and image.alpha[0, 0] < 0.03
        assert isinstance(model, HasDensity)
        inside, outside, beyond = model.density_at(torch.tensor([[0.0, 0, 0.97], [0.9, 0.9, 0.9], [5.0, 0, 0]]))
        assert inside > 10 * outside and beyond == 0
        assert model.density_at(torch.zeros(0, 3)).shape == (0,)

    def test_learns_a_ball_under_a_sky(self) -> None:
        sky = Coned(bounded=False, views=80, side=24)
        model = model_of(sky)
        losses = train(model, sky, range(200))
        psnr = held_out_psnr(model, sky)
        assert psnr > 18.0, f"held-out PSNR {psnr:.2f} dB, loss {losses[0]:.4f} -> {losses[-1]:.4f}"

    def test_five_hundred_steps_at_ten_times_the_learning_rate_stay_finite(self, ball: Coned) -> None:
        wild = replace(
            SMALL, steps=500, rays=64, table_lr=0.5, network_lr=0.1, pose_lr=5e-3, pose_delay=0, poses="se3",
            appearance=4, warm_up=0.0,
        )  # fmt: skip
        model = model_of(ball, wild)
        losses = train(model, ball, range(500))
        assert all(math.isfinite(loss) for loss in losses)
        assert all(bool(t.isfinite().all()) for t in model.state_dict().values())
        assert bool(model.render(ball.info.cameras[0]).rgb.isfinite().all())

    def test_each_loss_trains_what_it_should(self, ball: Coned) -> None:
        """Proposals learn from the field's weights alone, and the field never from the proposals."""
        model = model_of(ball)
        rays = model.bound(ball.pixels(32, torch.Generator().manual_seed(0)).rays)[1]
        seen = model.trace(rays, None, torch.Generator().manual_seed(1), proposals_learn=True)
        *proposals, (edges, weights) = seen.levels
        bounds = [spline_interlevel(edges, weights, *proposal, 0.03) for proposal in proposals]
        parts = {name: list(part.parameters()) for name, part in model.named_children()}
        for what, trained in (
            (mse(seen.rgb, torch.rand_like(seen.rgb)), "field"), (distortion(edges, weights), "field"),
            (bounds[0], "first"), (bounds[1], "second"),
        ):  # fmt: skip
            for name, parameters in parts.items():
                slopes = torch.autograd.grad(what, parameters, allow_unused=True, retain_graph=True)
                moved = any(slope is not None and bool(slope.any()) for slope in slopes)
                assert moved == (name == trained), (what, name)

    def test_looks_where_the_proposals_see_nothing(self, ball: Coned, monkeypatch: pytest.MonkeyPatch) -> None:
        """All weight in one interval: most samples go there, some everywhere, or a mistake could never be seen."""

        def spike(density: Tensor, edges: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(torch.tensor(5), density.shape[1]).float().expand(density.shape)

        monkeypatch.setattr("lightfold.methods.proposal_method.weights_from_density", spike)
        model = model_of(ball)
        rays = model.bound(ball.pixels(64, torch.Generator().manual_seed(0)).rays)[1]
        edges, _ = model.trace(rays, None, torch.Generator().manual_seed(1)).levels[-1]
        first = torch.tensor([5.0, 6.0]) / SMALL.proposal_samples[0]
        inside = (edges[:, 1:-1] > first[0]) & (edges[:, 1:-1] < first[1])
        assert 0.5 < float(inside.float().mean()) < 0.97

    def test_half_the_pixels_show_a_smoother_field(self, ball: Coned) -> None:
        """Wide pixels see less of the fine levels than narrow ones at the same places: that is the anti-aliasing."""
        model = model_of(ball)
        with torch.no_grad():
            model.field.cones.table.normal_(generator=torch.Generator().manual_seed(0))
        camera = ball.info.cameras[0]
        rays = camera.rays(camera.pixel_grid(), 0.5, 10.0)
        _, bounded = model.bound(rays)
        edges = model.spacing.t_from_s(torch.linspace(0, 1, 9).expand(len(bounded), 9), bounded.near, bounded.far)
        spread = []
        for factor in (0.0, 1.0, 4.0, 16.0):
            wide = replace(bounded, radius=factor * bounded.radius)
            features = model.field.cones(*model.places(wide, edges, None))
            spread.append(float(features[:, : SMALL.levels * SMALL.features].detach().std()))
        assert spread[0] > spread[1] > 1.2 * spread[2] > 1.5 * spread[3]


class TestMethod:
    def test_table_presets_and_config(self) -> None:
        assert method_class("zipnerf") is ZipNeRF
        assert {"", "fast", "paper"} <= set(ZipNeRF.PRESETS)
        for preset in ZipNeRF.PRESETS.values():
            assert from_plain(ZipNeRFConfig, to_plain(preset), "model") == preset

    def test_the_papers_grids(self) -> None:
        """Resolutions double from 16 to 512, 2048 and 8192, in 6, 8 and 10 levels."""
        c = ZipNeRF.PRESETS["paper"]
        for levels, finest in zip((*c.proposal_levels, c.levels), (*c.proposal_finest, c.finest), strict=True):
            assert HashGrid(levels, 1, 21, c.base, finest).resolution == [16 * 2**k for k in range(levels)]
        assert (c.finest, c.proposal_finest, c.rays * c.steps) == (8192, (512, 2048), 25_000 * 65_536)

    @pytest.mark.parametrize(
        "change",
        [
            {"features": 3}, {"poses": "on"}, {"colour_loss": "l1"}, {"samples": 1}, {"proposal_samples": (64, 1)},
            {"base": 8192}, {"decay": -1.0}, {"keep": math.nan}, {"blur": (0.03, 0.0)}, {"proposal_levels": (4,)},
            {"proposal_finest": (8, 512)}, {"warm_up": 2.0},
        ],
    )  # fmt: skip
    def test_options_that_mean_nothing(self, change: dict) -> None:
        with pytest.raises(ConfigError, match=next(iter(change))):
            replace(ZipNeRFConfig(), **change)

    def test_groups_hold_every_parameter_once(self, ball: Coned) -> None:
        model = model_of(ball, replace(SMALL, poses="se3", appearance=4))
        held = [id(p) for group in model.groups() for p in group.params]
        assert sorted(held) == sorted(id(p) for p in model.parameters())

    def test_resumes_bit_for_bit_and_repeats(self, ball: Coned) -> None:
        config = replace(SMALL, steps=30, rays=64, poses="so3xr3", pose_delay=5, appearance=4)
        straight, again = model_of(ball, config), model_of(ball, config)
        assert train(straight, ball, range(14)) == train(again, ball, range(14))
        first = model_of(ball, config)
        optim = Adam(first.groups())
        train(first, ball, range(9), optim)
        second = model_of(ball, config, seed=5)
        second.load_state_dict({name: t.clone() for name, t in first.state_dict().items()})
        resumed = Adam(second.groups())
        resumed.load_state(optim.state())
        train(second, ball, range(9, 14), resumed)
        for name, t in straight.state_dict().items():
            assert torch.equal(t, second.state_dict()[name]), name

    def test_draws_from_no_other_generator(self, ball: Coned) -> None:
        model, before = model_of(ball), torch.get_rng_state()
        train(model, ball, range(2))
        model.render(ball.info.cameras[0].resized(4, 4))
        torch.testing.assert_close(torch.get_rng_state(), before)

    def test_rays_that_miss_and_pictures_of_nothing(self, ball: Coned) -> None:
        """A camera that looks away from the cube sees the background; so does one whose crop is elsewhere."""
        model, white = model_of(ball), torch.ones(3)
        away = camera_at(torch.tensor([3.0, 0.0, 0.0]), torch.tensor([9.0, 0.0, 0.0]), 8, 8)
        image = model.render(away, white)
        assert bool((image.rgb == 1).all()) and not bool(image.alpha.any()) and not bool(image.depth.any())
        crop = Box.of(torch.tensor([0.0, 0.0, 5.0]), torch.eye(3), torch.full((3,), 0.1))
        assert not bool(model.render(ball.info.cameras[0], white, crop=crop).alpha.any())

    def test_a_batch_that_misses_everything_trains_on(self, ball: Coned) -> None:
        class Away(Coned):
            def pixels(self, n: int, rng: torch.Generator) -> Pixels:
                pixels = super().pixels(n, rng)
                return replace(pixels, rays=replace(pixels.rays, direction=-pixels.rays.direction))

        losses = train(model_of(ball), Away(), range(3))
        assert all(math.isfinite(loss) for loss in losses)

    def test_colours_are_the_picture(self, ball: Coned) -> None:
        model = model_of(ball, replace(SMALL, appearance=4))
        assert isinstance(model, HasColours)
        train(model, ball, range(20))
        camera, grey = ball.info.cameras[0], torch.full((3,), 0.5)
        rays = camera.rays(camera.pixel_grid(), ball.info.near_for(camera), ball.info.far)
        colours = model.colours(rays, None, grey).detach().reshape(32, 32, 3)
        torch.testing.assert_close(colours.clamp(0, 1), model.render(camera, grey).rgb, atol=1e-4, rtol=0)

    def test_density_at_a_point_is_that_of_a_sample_there(self, ball: Coned) -> None:
        """An interval too short to matter, seen from the nearest camera, against the point asked for by itself."""
        model = model_of(ball)
        train(model, ball, range(40))
        camera = ball.info.cameras[ball.info.train[0]]
        rays = camera.rays(torch.tensor([[16.0, 16.0]]))
        t = 1.7
        points, distance = hexagon(rays, torch.tensor([[t - 1e-3, t + 1e-3]]), None)
        seen = model.field.density(*model.unit(points.flatten(0, 1), 0.5 * distance.flatten(0, 1)))[0]
        asked = model.density_at(rays.at(torch.tensor([[t]])).view(1, 3))
        assert float(seen.detach()) == pytest.approx(float(asked), rel=0.1)
        assert model.density_at(torch.tensor([[BOX + 0.01, 0.0, 0.0]])).item() == 0.0


def test_gradients_through_rays(ball: Coned) -> None:
    """What trains the poses: the slope of the colours along a shift of the rays, against finite differences."""
    model = model_of(ball)
    train(model, ball, range(60))
    camera = ball.info.cameras[0]
    rays = camera.rays(camera.pixel_grid(), 0.5, 10.0)
    probe = torch.rand(len(rays), 3, generator=torch.Generator().manual_seed(0))

    def total(shift: Tensor) -> Tensor:
        moved = replace(rays, origin=rays.origin + shift)
        return (model.colours(moved, None, torch.zeros(3)) * probe).sum()

    shift = torch.zeros(3, requires_grad=True)
    (slope,) = torch.autograd.grad(total(shift), shift)
    with torch.no_grad():
        step = 1e-2 * torch.eye(3)
        difference = torch.stack([(total(row) - total(-row)) / 2e-2 for row in step])
    # Proposals move with the rays and their intervals are cut anew, which the slope leaves out on purpose.
    assert float(torch.nn.functional.cosine_similarity(slope, difference, dim=0)) > 0.9, (slope, difference)
