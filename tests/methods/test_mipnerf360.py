"""methods/mipnerf360.py: check vectors, the faults of a well-known port, a transcription in NumPy, scenes learnt."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from literal_resampling import resample_literally
from painted_ball import PaintedBall
from three_scenes import KINDS, Wall, camera_at, info_of
from torch import Tensor

from lightfold.errors import ConfigError
from lightfold.geometry import contract_gaussian
from lightfold.losses import interlevel
from lightfold.methods import method_class
from lightfold.methods.mipnerf360 import (
    DensityMLP,
    MipNeRF360,
    MipNeRF360Config,
    RadianceMLP,
    annealing,
    conical_frustum,
    cylinder,
    encoding_directions,
    integrated_encoding,
    projected,
)
from lightfold.optim import Adam
from lightfold.rays import Box, Rays
from lightfold.run import placed
from lightfold.scene import Pixels
from lightfold.spaces import Unbounded

DOUBLE = torch.float64
TINY = MipNeRF360Config(
    steps=200,
    rays=32,
    proposal_samples=(12, 8),
    samples=6,
    proposal_width=16,
    proposal_depth=2,
    width=24,
    depth=3,
    bottleneck=16,
    view_width=16,
    directions=6,
    octaves=4,
    warm_up=20,
    adam_eps=1e-8,
    chunk=50,
)


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def rays_of(kind: str, view: int = 0) -> Rays:
    camera = info_of(kind).cameras[view]
    return camera.rays(camera.pixel_grid())


class Given:
    """Stands in for a Scene: the same rays and colours in every step."""

    def __init__(self, rays: Rays, rgb: Tensor) -> None:
        self.rays, self.rgb = rays, rgb

    def pixels(self, n: int, rng: torch.Generator) -> Pixels:
        return Pixels(self.rays, self.rgb, torch.ones_like(self.rgb[:, 0]), torch.zeros(len(self.rays), 2))


class TestGaussians:
    def test_check_vector(self) -> None:
        found = conical_frustum(double(2.0), double(3.0), double(0.01))
        for value, expected in zip(found, (2.565789, 0.0798823, 1.665789e-4), strict=True):
            assert float(value) == pytest.approx(expected, rel=1e-6)

    def test_equals_the_integrals_over_the_cone(self, rng: torch.Generator) -> None:
        """Moments of a solid whose cross-section grows as t^2."""
        t0 = torch.rand(50, generator=rng, dtype=DOUBLE) * 3
        t1, radius = t0 + 0.01 + torch.rand(50, generator=rng, dtype=DOUBLE) * 5, double(0.3)
        mean, along, across = conical_frustum(t0, t1, radius)
        cubes, fourth, fifth = (t1**k - t0**k for k in (3, 4, 5))
        expected = 3 * fourth / (4 * cubes)
        torch.testing.assert_close(mean, expected)
        torch.testing.assert_close(along, 3 * fifth / (5 * cubes) - expected**2, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(across, radius**2 * 3 * fifth / (20 * cubes))

    def test_short_far_intervals_keep_their_digits(self) -> None:
        t0, t1 = torch.tensor([900.0]), torch.tensor([900.5])
        single, exact = (
            conical_frustum(t0, t1, torch.tensor(1e-3)),
            conical_frustum(t0.double(), t1.double(), double(1e-3)),
        )
        for a, b in zip(single, exact, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=0)

    def test_no_length_at_the_origin_is_a_point(self) -> None:
        zero = torch.zeros(1)
        assert all(value.item() == 0 for value in conical_frustum(zero, zero, torch.tensor(0.1)))

    def test_cylinder_has_the_moments_of_one(self, rng: torch.Generator) -> None:
        mean, along, across = cylinder(double(2.0), double(3.5), double(0.4))
        t = 2.0 + 1.5 * torch.rand(400_000, generator=rng, dtype=DOUBLE)
        r = 0.4 * torch.rand(400_000, generator=rng, dtype=DOUBLE).sqrt()
        x = r * (2 * math.pi * torch.rand(400_000, generator=rng, dtype=DOUBLE)).cos()
        assert float(mean) == pytest.approx(float(t.mean()), rel=1e-2)
        assert float(along) == pytest.approx(float(t.var()), rel=1e-2)
        assert float(across) == pytest.approx(float(x.var()), rel=1e-2)

    @pytest.mark.parametrize("contracted", [False, True])
    def test_projected_is_the_matrices_seen_along_each_direction(self, contracted: bool, rng: torch.Generator) -> None:
        """Directions that are not unit: variance along them is in their units, variance across them in lengths."""
        origin, direction = (2 * torch.randn(40, 3, generator=rng, dtype=DOUBLE) for _ in range(2))
        mean, along, across = (5 * torch.rand(40, 7, generator=rng, dtype=DOUBLE) for _ in range(3))
        basis = torch.nn.functional.normalize(encoding_directions(21).double(), dim=1).T
        rays = Rays(origin, direction)
        place, variance = projected(rays, (mean, along, across), basis, contracted)
        line = direction[:, :, None] * direction[:, None, :]
        plane = torch.eye(3, dtype=DOUBLE) - line / line.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]
        x, covariance = rays.at(mean), along[..., None, None] * line[:, None] + across[..., None, None] * plane[:, None]
        if contracted:
            assert (x.norm(dim=-1) < 1).any() and (x.norm(dim=-1) > 1).any(), "both sides of the unit ball"
            x, covariance = contract_gaussian(x, covariance)
        torch.testing.assert_close(place, x @ basis)
        torch.testing.assert_close(variance, torch.einsum("id,rnij,jd->rnd", basis, covariance, basis))

    def test_projected_far_away_in_single_precision(self) -> None:
        """Where the parts of the contracted covariance nearly cancel, no variance may come out negative."""
        rays = Rays(torch.tensor([[0.3, -0.2, 0.1]]), torch.tensor([[0.6, 0.0, 0.8]]))
        mean, along, across = (
            torch.tensor([[10.0, 500.0, 1e6]]),
            torch.tensor([[4.0, 1e4, 1e10]]),
            torch.full((1, 3), 1e-4),
        )
        _, variance = projected(rays, (mean, along, across), encoding_directions(21).T, True)
        exact = projected(
            rays.to(DOUBLE), (mean.double(), along.double(), across.double()), encoding_directions(21).T.double(), True
        )
        assert (variance >= -1e-9).all()
        torch.testing.assert_close(variance.double(), exact[1], rtol=1e-3, atol=1e-6)


class TestEncoding:
    @pytest.mark.parametrize("count", [3, 6, 21])
    def test_directions_are_unit_and_no_two_opposite(self, count: int) -> None:
        basis = encoding_directions(count)
        assert basis.shape == (count, 3)
        torch.testing.assert_close(basis.norm(dim=1), torch.ones(count))
        between = (basis @ basis.T - torch.eye(count)).abs()
        assert between.max() < math.cos(math.radians(31 if count == 21 else 60))
        # Spread evenly: no direction of space is favoured.
        torch.testing.assert_close(basis.T @ basis, torch.eye(3) * count / 3, rtol=0, atol=1e-5 if count < 21 else 0.6)

    def test_values(self) -> None:
        mean, variance = double([[0.3, -0.7]]), double([[0.2, 0.0]])
        expected = []
        for wave in (math.sin, math.cos):
            for k in range(3):
                expected += [math.exp(-0.5 * 4**k * v) * wave(2**k * m) for m, v in ((0.3, 0.2), (-0.7, 0.0))]
        torch.testing.assert_close(integrated_encoding(mean, variance, 3), double([expected]))

    def test_is_the_expectation_over_the_gaussian(self, rng: torch.Generator) -> None:
        mean, variance = double([0.4]), double([0.09])
        drawn = mean + variance.sqrt() * torch.randn(400_000, 1, generator=rng, dtype=DOUBLE)
        expected = integrated_encoding(drawn, torch.zeros_like(drawn), 4).mean(dim=0)
        torch.testing.assert_close(integrated_encoding(mean, variance, 4), expected, rtol=0, atol=5e-3)

    def test_is_plain_encoding_when_gaussians_shrink(self, rng: torch.Generator) -> None:
        mean = torch.randn(5, 7, generator=rng, dtype=DOUBLE)
        octaves = 2.0 ** torch.arange(6, dtype=DOUBLE)[:, None]
        plain = torch.cat([(octaves * mean[:, None]).sin(), (octaves * mean[:, None]).cos()], dim=1).flatten(1)
        for variance in (1e-6, 1e-9, 0.0):
            found = integrated_encoding(mean, torch.full_like(mean, variance), 6)
            assert float((found - plain).abs().max()) <= 0.5 * 4**5 * variance + 1e-15

    def test_waves_shorter_than_the_gaussian_are_gone(self) -> None:
        found = integrated_encoding(torch.tensor([1.0]), torch.tensor([1.0]), 12)
        assert found[3:12].abs().max() < 1e-13 and found[15:].abs().max() < 1e-13 and found[0].abs() > 0.1


class TestNetworks:
    @pytest.mark.parametrize(("preset", "millions"), [("360", 9.0), ("blender", 0.84), ("llff", 0.84)])
    def test_parameter_counts_of_the_paper(self, preset: str, millions: float) -> None:
        model = MipNeRF360(MipNeRF360.PRESETS[preset], info_of("unbounded"))
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1 if preset == "360" else 2) == millions

    def test_skip_joins_after_the_fifth_layer(self) -> None:
        widths = [layer.in_features for layer in DensityMLP(504, 1024, 8).trunk]
        assert widths == [504, 1024, 1024, 1024, 1024, 1528, 1024, 1024]
        assert [layer.in_features for layer in DensityMLP(504, 256, 4).trunk] == [504, 256, 256, 256]

    def test_initial_weights_are_he_uniform(self) -> None:
        net = RadianceMLP(96, 256, 8, 256, 27, 128)
        for layer in net.modules():
            if isinstance(layer, torch.nn.Linear):
                bound = (6.0 / layer.in_features) ** 0.5
                assert layer.weight.abs().max() <= bound and (layer.bias == 0).all()
                assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)

    def test_colours_reach_black_and_white(self) -> None:
        net = RadianceMLP(4, 8, 2, 8, 3, 8)
        for sign in (-1.0, 1.0):
            torch.nn.init.constant_(net.colour_head.bias, sign * 20.0)
            _, rgb = net.radiance(torch.zeros(5, 4), torch.zeros(5, 3))
            torch.testing.assert_close(rgb, torch.full((5, 3), 0.5 + sign * 0.501))

    def test_density_does_not_see_the_direction(self) -> None:
        net, encoded = RadianceMLP(4, 8, 2, 8, 3, 8), torch.rand(6, 4)
        a, rgb_a = net.radiance(encoded, torch.tensor([1.0, 0.0, 0.0]))
        b, rgb_b = net.radiance(encoded, torch.tensor([0.0, 1.0, 0.0]))
        assert torch.equal(a, b) and not torch.allclose(rgb_a, rgb_b)


class TestSchedules:
    def test_annealing(self) -> None:
        assert annealing(0.1) == pytest.approx(0.526316, rel=1e-5)
        assert annealing(0.0) == 0.0 and annealing(1.0) == pytest.approx(1.0)

    def test_learning_rate_of_the_paper(self) -> None:
        for preset in ("360", "blender", "llff"):
            model = MipNeRF360(MipNeRF360.PRESETS[preset], info_of("bounded"))
            for group in model.groups():
                model.trained.fill_(256)
                assert group.lr * group.schedule(256 / 250_000) == pytest.approx(1.41339e-3, rel=1e-5)
                model.trained.fill_(250_000)
                assert group.lr * group.schedule(1.0) == pytest.approx(2e-5)
                assert group.clip == 1e-3 and group.betas == (0.9, 0.999)

    def test_warm_up_counts_steps_whatever_the_budget(self) -> None:
        model = MipNeRF360(TINY, info_of("bounded"))
        (schedule, _), optim = (group.schedule for group in model.groups()), Adam(model.groups())
        assert schedule(0.0) == schedule(0.5) / TINY.lr_final**0.5 == pytest.approx(0.01)
        model.after_step(TINY.warm_up - 1, optim)
        assert schedule(0.0) == 1.0
        assert MipNeRF360(replace(TINY, warm_up=0), info_of("bounded")).groups()[0].schedule(0.0) == 1.0

    def test_groups_hold_every_parameter_once(self) -> None:
        model = MipNeRF360(TINY, info_of("bounded"))
        held = [id(p) for group in model.groups() for p in group.params]
        assert sorted(held) == sorted(id(p) for p in model.parameters())


class TestFaultsOfThePort:
    """A much-read port of this method to PyTorch does not converge. What its code gets wrong, one test each."""

    def test_01_the_field_teaches_the_proposal_and_never_the_other_way_round(self, rng: torch.Generator) -> None:
        torch.manual_seed(0)
        model = MipNeRF360(TINY, info_of("unbounded"))
        first, second, field = model.trace(rays_of("unbounded"), rng).levels
        loss = interlevel(*field, *first) + interlevel(*field, *second)
        loss.backward()
        assert loss > 0 and all(p.grad is not None and p.grad.abs().max() > 0 for p in model.proposal.parameters())
        assert all(p.grad is None for p in model.field.parameters())
        # A proposal that claims more than the field does costs nothing, one that claims less does.
        edges, weights = (part.detach() for part in field)
        more, less = (interlevel(edges, weights, edges, factor * weights) for factor in (1.1, 0.9))
        assert more < 1e-9 < less

    def test_02_the_proposal_has_more_samples_than_the_field(self) -> None:
        narrow = replace(MipNeRF360.PRESETS["360"], width=8, bottleneck=8)
        levels = MipNeRF360(narrow, info_of("unbounded")).trace(rays_of("unbounded")).levels
        assert [weights.shape for _, weights in levels] == [(64, 64), (64, 64), (64, 32)]
        for config in MipNeRF360.PRESETS.values():
            assert min(config.proposal_samples) > config.samples

    def test_03_directions_and_octaves(self) -> None:
        model = MipNeRF360(replace(MipNeRF360.PRESETS["360"], width=8, bottleneck=8), info_of("unbounded"))
        rays = Unbounded(model.info).bound(rays_of("unbounded"))
        assert model.encode(rays, torch.tensor([[1.0, 2.0, 3.0]]).expand(64, 3)).shape == (64, 2, 21 * 12 * 2)
        assert model.field.trunk[0].in_features == model.proposal.trunk[0].in_features == 504

    def test_04_contraction_is_per_point(self) -> None:
        """What a ray sees does not depend on which other rays are in the batch."""
        model, rays = MipNeRF360(TINY, info_of("unbounded")), rays_of("unbounded")
        together, alone = model.trace(rays), model.trace(rays[5:6])
        torch.testing.assert_close(alone.rgb, together.rgb[5:6])
        torch.testing.assert_close(alone.depth, together.depth[5:6])
        torch.testing.assert_close(alone.median, together.median[5:6])

    def test_05_covariance_is_contracted_about_the_true_mean(self) -> None:
        """From far off the centre, even the start of a ray is squeezed; without the origin it would not be."""
        model = MipNeRF360(replace(TINY, directions=3, octaves=1), info_of("unbounded"))
        rays = Rays(torch.tensor([[8.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]), radius=torch.tensor(1e-9))
        t = torch.tensor([[0.1, 0.5]])
        _, along, _ = conical_frustum(t[:, :1], t[:, 1:], rays.radius[:, None])
        x, y, z = model.encode(rays, t)[0, 0].reshape(2, 3).square().sum(dim=0)  # sin^2 + cos^2 leave the damping alone
        assert float(x) == pytest.approx(math.exp(-float(along) / 8.32**4), rel=1e-3)
        assert 1 - float(x) < 1e-5 and float(y) == pytest.approx(1.0) and float(z) == pytest.approx(1.0)

    def test_06_rays_are_left_as_they_are(self, rng: torch.Generator) -> None:
        for kind in KINDS:
            rays = rays_of(kind)
            before = {name: getattr(rays, name).clone() for name in ("origin", "direction", "near", "far", "radius")}
            MipNeRF360(TINY, info_of(kind)).trace(rays, rng)
            assert all(torch.equal(getattr(rays, name), value) for name, value in before.items())

    def test_07_density_has_no_upper_limit(self) -> None:
        net = DensityMLP(4, 8, 2)
        for raw, density in ((1.0, math.log(2.0)), (51.0, 50.0), (-30.0, 0.0)):
            torch.nn.init.zeros_(net.density_head.weight)
            torch.nn.init.constant_(net.density_head.bias, raw)
            torch.testing.assert_close(net(torch.rand(3, 4)), torch.full((3,), density))

    def test_08_jitter_is_counted_once(self) -> None:
        """The first round cuts evenly: inner edges are j/n + shift with one shift of at most half a step per ray."""
        model, n = MipNeRF360(TINY, info_of("unbounded")), 12
        edges = model.trace(rays_of("unbounded"), torch.Generator().manual_seed(3)).levels[0][0]
        shift = n * edges[:, 1:-1] - torch.arange(1, n)
        assert shift.abs().max() <= 0.5 + 1e-4
        torch.testing.assert_close(shift, shift[:, :1].expand_as(shift), rtol=0, atol=1e-4)
        assert float(shift[:, 0].std()) > 0.2

    def test_09_scenes_seen_all_round_are_contracted_not_warped(self) -> None:
        for preset in MipNeRF360.PRESETS.values():
            space = MipNeRF360(replace(preset, width=8, bottleneck=8), info_of("unbounded")).space
            assert isinstance(space, Unbounded) and space.contracts and not space.tubes

    def test_10_losses_are_means_and_one_step_trains_both(self) -> None:
        rays = rays_of("unbounded")
        twice = Rays(torch.cat([rays.origin] * 2), torch.cat([rays.direction] * 2), torch.cat([rays.radius] * 2))
        model = MipNeRF360(TINY, info_of("unbounded"))
        model.trace, jittered = (lambda rays, rng, fraction: jittered(rays, None, fraction)), model.trace
        rgb = torch.rand(64, 3)
        once = model.loss(Given(rays, rgb), 50, torch.Generator())
        again = model.loss(Given(twice, torch.cat([rgb] * 2)), 50, torch.Generator())
        assert once.keys() == {"colour", "interlevel", "distortion"}
        torch.testing.assert_close(once, again)
        torch.stack(list(once.values())).sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
        schedule = model.groups()[0].schedule
        assert [schedule(0.5) for _ in range(3)] == [schedule(0.5)] * 3

    def test_annealing_follows_the_budget_whatever_it_is(self) -> None:
        """A training by the clock is annealed by the clock, and a checkpoint remembers where it was."""
        model = MipNeRF360(TINY, info_of("unbounded"))
        optim = Adam(model.groups())
        optim.step(0.25)
        model.after_step(3, optim)
        assert float(model.fraction) == 0.25 == float(model.state_dict()["fraction"])

    def test_11_every_direction_has_its_own_encoding(self) -> None:
        model = MipNeRF360(TINY, info_of("bounded"))
        octants = torch.nn.functional.normalize(torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3), dim=1)
        encoded = model.encode_view(octants)
        assert encoded.shape == (8, 27)
        assert (torch.cdist(encoded, encoded) + 9 * torch.eye(8)).min() > 1.0

    def test_11_colours_stay_in_their_channels(self) -> None:
        model = MipNeRF360(TINY, info_of("unbounded"))
        torch.nn.init.zeros_(model.field.colour_head.weight)
        model.field.colour_head.bias.data = torch.tensor([9.0, 0.0, -9.0])
        rgb = model.render(info_of("unbounded").cameras[0]).rgb
        torch.testing.assert_close(rgb, torch.tensor([1.0, 0.5, 0.0]).expand(8, 8, 3), rtol=0, atol=2e-3)


class Transcription:
    """The paper's formulas once more, in NumPy, ray by ray, from the weights of a model alone. Cones, no bounds."""

    def __init__(self, model: MipNeRF360) -> None:
        self.weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
        self.basis, self.config = model.basis.numpy(), model.config

    def layer(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def features(self, origin: np.ndarray, direction: np.ndarray, t0: float, t1: float, radius: float) -> np.ndarray:
        third, fourth, fifth = (t1**k - t0**k for k in (3, 4, 5))
        mean_t = 3 * fourth / (4 * third)
        along, across = 3 * fifth / (5 * third) - mean_t**2, radius**2 * 3 * fifth / (20 * third)
        line = np.outer(direction, direction)
        x, covariance = origin + mean_t * direction, along * line + across * (np.eye(3) - line)
        r = np.linalg.norm(x)
        if r > 1:
            jacobian = (2 / r - 1 / r**2) * np.eye(3) + (2 / r**3 - 2 / r**2) / r * np.outer(x, x)
            covariance = jacobian @ covariance @ jacobian.T
            x = (2 - 1 / r) * x / r
        waves = []
        for wave in (np.sin, np.cos):
            for octave in range(self.config.octaves):
                for p in self.basis.T:
                    waves.append(np.exp(-0.5 * 4**octave * p @ covariance @ p) * wave(2**octave * p @ x))
        return np.array(waves)

    def hidden(self, net: str, depth: int, features: np.ndarray) -> np.ndarray:
        x = features
        for i in range(depth):
            x = np.maximum(self.layer(f"{net}.trunk.{i}", x), 0)
            if i == 4 and i + 1 < depth:
                x = np.concatenate([x, features])
        return x

    def density(self, net: str, hidden: np.ndarray) -> float:
        return float(np.log1p(np.exp(self.layer(f"{net}.density_head", hidden)[0] - 1)))

    def colour(self, hidden: np.ndarray, direction: np.ndarray) -> np.ndarray:
        view = [direction]
        for wave in (np.sin, np.cos):
            view += [wave(2**octave * direction) for octave in range(4)]
        x = np.concatenate([self.layer("field.bottleneck", hidden), *view])
        raw = self.layer("field.colour_head", np.maximum(self.layer("field.view_branch", x), 0))
        return 1.002 / (1 + np.exp(-raw)) - 0.001

    def ray(
        self,
        origin: np.ndarray,
        direction: np.ndarray,
        radius: float,
        near: float,
        far: float,
        fraction: float,
        jitters: list[float],
    ) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
        """Edges and weights of every level, and the colour."""
        c, levels, drawn = self.config, [], 1
        edges, weights = np.array([0.0, 1.0]), np.array([1.0])
        counts = [*c.proposal_samples, c.samples]
        for level, n in enumerate(counts):
            dilation = 0.0 if level == 0 else 0.0025 + 0.5 / drawn
            edges = resample_literally(edges, weights, n, dilation, 10 * fraction / (9 * fraction + 1), jitters[level])
            drawn *= n
            t = 1 / (edges / far + (1 - edges) / near)
            last, passed, weights, colour = level == len(counts) - 1, 1.0, np.zeros(n), np.zeros(3)
            net, depth = ("field", c.depth) if last else ("proposal", c.proposal_depth)
            for i in range(n):
                hidden = self.hidden(net, depth, self.features(origin, direction, t[i], t[i + 1], radius))
                share = 1 - np.exp(-self.density(net, hidden) * (t[i + 1] - t[i])) if i < n - 1 else 1.0
                weights[i] = passed * share
                passed *= 1 - share
                if last:
                    colour += weights[i] * self.colour(hidden, direction)
            levels.append((edges, weights))
        return levels, colour


def losses_literally(
    levels: list[list[tuple[np.ndarray, np.ndarray]]], colours: np.ndarray, true: np.ndarray
) -> dict[str, float]:
    """Charbonnier, interlevel and distortion losses as they are printed, in double loops; mean over rays."""
    bound_loss, spread = 0.0, 0.0
    for *proposals, (edges, weights) in levels:
        n = len(weights)
        for ends, shares in proposals:
            for i in range(n):
                touching = (ends[:-1] < edges[i + 1]) & (ends[1:] > edges[i])
                bound_loss += max(0.0, weights[i] - shares[touching].sum()) ** 2 / weights[i] / n
        middle = (edges[1:] + edges[:-1]) / 2
        for i in range(n):
            spread += weights[i] ** 2 * (edges[i + 1] - edges[i]) / 3
            for j in range(n):
                spread += weights[i] * weights[j] * abs(middle[i] - middle[j])
    return {
        "colour": float(np.mean(np.sqrt((colours - true) ** 2 + 1e-6))),
        "interlevel": bound_loss / len(levels),
        "distortion": 0.01 * spread / len(levels),
    }


class TestAgainstATranscription:
    def test_a_step_of_the_full_size(self, rng: torch.Generator) -> None:
        """The preset of the paper, 9 million parameters: edges, weights, colours and losses, in double precision."""
        torch.manual_seed(0)
        info = info_of("unbounded")
        model = MipNeRF360(MipNeRF360.PRESETS["360"], info).double()
        for net in (model.proposal, model.field):  # Thinner fog than at the start, so that light gets everywhere.
            torch.nn.init.constant_(net.density_head.bias, -2.0)
        rays = rays_of("unbounded", 1).to(DOUBLE)[torch.tensor([3, 60])]
        rays = replace(rays, direction=torch.nn.functional.normalize(rays.direction, dim=-1))
        rgb = torch.rand(2, 3, generator=rng, dtype=DOUBLE)
        seed = 11
        model.fraction.fill_(0.1)
        terms = model.loss(Given(rays, rgb), 25_000, torch.Generator().manual_seed(seed))
        seen = model.trace(rays, torch.Generator().manual_seed(seed), annealing(0.1))
        draws = torch.Generator().manual_seed(seed)
        jitters = torch.cat([torch.rand(2, 1, generator=draws, dtype=DOUBLE) for _ in range(3)], dim=1).numpy()
        reference, levels, colours = Transcription(model), [], []
        for i in range(2):
            origin, direction, radius = (part[i].numpy() for part in (rays.origin, rays.direction, rays.radius))
            found = reference.ray(origin, direction, float(radius), 0.5, 1000.0, 0.1, list(jitters[i]))
            levels.append(found[0])
            colours.append(found[1])
            for (edges, weights), (expected_edges, expected_weights) in zip(seen.levels, found[0], strict=True):
                np.testing.assert_allclose(edges[i].detach().numpy(), expected_edges, rtol=1e-7, atol=1e-9)
                np.testing.assert_allclose(weights[i].detach().numpy(), expected_weights, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(seen.rgb.detach().numpy(), np.array(colours), rtol=1e-6)
        expected = losses_literally(levels, np.array(colours), rgb.numpy())
        assert {name: float(value.detach()) for name, value in terms.items()} == pytest.approx(expected, rel=1e-5)
        assert min(expected.values()) > 1e-7, "every loss should have something to say"


class TestMethod:
    def test_table_and_presets(self) -> None:
        assert method_class("mipnerf360") is MipNeRF360
        assert set(MipNeRF360.PRESETS) == {"", "small", "360", "blender", "llff"}

    @pytest.mark.parametrize(
        ("name", "value"),
        [("samples", 1), ("lr", math.nan), ("proposal_samples", ()), ("directions", 5), ("colour_loss", "l1"),
         ("distortion", -1.0), ("depth", 0)],
    )  # fmt: skip
    def test_bad_options_are_refused(self, name: str, value: object) -> None:
        with pytest.raises(ConfigError, match=f"mipnerf360's option '{name}'"):
            replace(TINY, **{name: value})

    def test_defaults_suit_the_scene(self) -> None:
        white = info_of("bounded", background=(1.0, 1.0, 1.0))
        assert MipNeRF360(TINY, white).distortion == 0.0
        assert MipNeRF360(TINY, info_of("unbounded")).distortion == 0.01
        assert MipNeRF360(replace(TINY, distortion=0.3), white).distortion == 0.3
        assert MipNeRF360(TINY, white).colour_loss == "mse"
        assert MipNeRF360(TINY, info_of("unbounded")).colour_loss == "charbonnier"
        assert MipNeRF360(replace(TINY, colour_loss="charbonnier"), white).colour_loss == "charbonnier"

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_of_scene_renders_between_near_and_far(self, kind: str) -> None:
        info = info_of(kind)
        image = MipNeRF360(TINY, info).render(info.cameras[0])
        seen = image.depth[image.alpha > 0]
        assert len(seen) > 0 and (seen >= 0.49).all() and (seen <= info.far * 1.01).all()
        assert image.rgb.isfinite().all() and image.alpha.min() > 1 - 1e-5, "photographs without background are opaque"

    @pytest.mark.parametrize("kind", KINDS)
    def test_cropped_rays_end_at_the_wall(self, kind: str) -> None:
        info = info_of(kind)
        model, camera = MipNeRF360(TINY, info), info.cameras[0]
        middle = camera.center + 2.0 * camera.forward
        image = model.render(camera, torch.zeros(3), Box.of(middle, torch.eye(3), torch.full((3,), 0.5)))
        assert (image.alpha < 0.999).all() and image.alpha.max() > 0
        seen = image.depth[image.alpha > 0]
        assert (seen - 2.0).abs().max() < 0.5

    @pytest.mark.parametrize("kind", KINDS)
    def test_rays_that_are_not_numbers_see_nothing(self, kind: str) -> None:
        rays = rays_of(kind)
        lost = torch.arange(len(rays)) % 3 == 0
        seen = MipNeRF360(TINY, info_of(kind)).trace(
            replace(rays, direction=torch.where(lost[:, None], math.nan, rays.direction))
        )
        assert seen.rgb.isfinite().all() and (seen.alpha[lost] == 0).all() and (seen.alpha[~lost] > 0).any()

    def test_rays_that_all_miss_can_be_trained_on(self, rng: torch.Generator) -> None:
        model = MipNeRF360(TINY, info_of("bounded", background=(1.0, 1.0, 1.0)))
        away = Rays(torch.tensor([[3.0, 0.0, 0.0]]).expand(5, 3), torch.tensor([[1.0, 0.0, 0.0]]).expand(5, 3))
        terms = model.loss(Given(away, torch.ones(5, 3)), 0, rng)
        assert terms["colour"].item() == terms["interlevel"].item() == 0.0
        torch.stack(list(terms.values())).sum().backward()

    def test_render_repeats_and_does_not_depend_on_the_chunk(self) -> None:
        info = info_of("forward-facing")
        model = MipNeRF360(TINY, info)
        first, second = model.render(info.cameras[0]), model.render(info.cameras[0])
        assert torch.equal(first.rgb, second.rgb)
        model.config = replace(TINY, chunk=7)
        torch.testing.assert_close(model.render(info.cameras[0]).depth, first.depth)

    def test_bfloat16_changes_little_and_comes_back_as_single_precision(self) -> None:
        torch.manual_seed(0)
        info = info_of("unbounded")
        model = MipNeRF360(TINY, info)
        exact = model.render(info.cameras[0]).rgb
        rounded = placed(model, "bfloat16", torch.device("cpu")).render(info.cameras[0]).rgb
        assert rounded.dtype == torch.float32
        assert 0 < (rounded - exact).abs().max() < 0.02
        assert torch.equal(placed(model, "float32", torch.device("cpu")).render(info.cameras[0]).rgb, exact)

    def test_places_are_never_rounded_to_bfloat16(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = placed(MipNeRF360(TINY, info_of("unbounded")), "bfloat16", torch.device("cpu"))
        inside, encode = [], model.encode

        def encoding(rays: Rays, t: torch.Tensor) -> torch.Tensor:
            inside.append(torch.is_autocast_enabled("cpu"))
            return encode(rays, t)

        monkeypatch.setattr(model, "encode", encoding)
        model.trace(rays_of("unbounded").to(torch.float32))
        assert inside and not any(inside)

    def test_float64_cameras_render(self) -> None:
        model = MipNeRF360(TINY, info_of("bounded", background=(0.0, 0.0, 0.0)))
        assert model.render(camera_at((2.0, 1.0, 1.0))).rgb.dtype == torch.float32

    @pytest.mark.parametrize("kind", KINDS)
    def test_density_along_a_ray_makes_its_opacity(self, kind: str) -> None:
        """Per scene unit, also where space is warped: 1 - exp(-integral) is what the rendering says."""
        info = info_of(kind, background=(0.0, 0.0, 0.0))
        model = MipNeRF360(TINY, info)
        torch.nn.init.zeros_(model.field.density_head.weight)
        torch.nn.init.constant_(model.field.density_head.bias, {"forward-facing": 0.6}.get(kind, -0.5))
        rays = rays_of(kind)[35:36]
        near, far = 0.8, 2.2
        with torch.no_grad():
            alpha = model.trace(replace(rays, near=torch.tensor([near]), far=torch.tensor([far]))).alpha
        t = torch.linspace(near, far, 2001)[None]
        integral = torch.trapezoid(model.density_at(rays.at(t)[0]), t[0])
        assert 0.2 < float(alpha) < 0.95
        # Edges are mirrored, not pinned to the ends of the ray, so a little of its length is missing.
        assert float(alpha) == pytest.approx(1 - math.exp(-float(integral)), abs=0.05)

    def test_density_outside_the_pictures_is_zero(self) -> None:
        model = MipNeRF360(TINY, info_of("bounded"))
        assert (model.density_at(torch.tensor([[0.0, 0.0, 1.2], [9.0, 0.0, 0.0]])) == 0).all()
        assert float(model.density_at(torch.zeros(1, 3))) > 0
        assert model.density_at(torch.zeros(0, 3)).shape == (0,)

    def test_density_at_a_camera_is_finite(self) -> None:
        for kind in KINDS:
            model = MipNeRF360(TINY, info_of(kind))
            assert model.density_at(model.eyes).isfinite().all()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from a second thread, and on a busy machine wait for it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(
    scene: object, config: MipNeRF360Config, precision: str = "float32", seed: int = 0
) -> tuple[MipNeRF360, list[float]]:
    torch.manual_seed(seed)
    model = placed(MipNeRF360(config, scene.info), precision, torch.device("cpu"))
    optim, losses = Adam(model.groups()), []
    for step in range(config.steps):
        total = torch.stack(
            list(model.loss(scene, step, torch.Generator().manual_seed(seed * 1000 + step)).values())
        ).sum()
        total.backward()
        optim.step(step / config.steps)
        model.after_step(step, optim)
        losses.append(float(total.detach()))
    return model, losses


LEARNING = replace(TINY, steps=300, rays=128, proposal_samples=(24,), samples=12, proposal_width=32, width=64, lr=1e-2)


@pytest.mark.usefixtures("one_thread")
class TestLearning:
    def test_learns_a_ball(self) -> None:
        ball = PaintedBall()
        model, losses = train(ball, LEARNING)
        errors = [(model.render(ball.view(i).camera).rgb - ball.truth(i)).square().mean() for i in ball.info.test]
        psnr = -10 * math.log10(float(torch.stack(errors).mean()))
        assert psnr > 24.0, f"held-out PSNR {psnr:.2f} dB, loss {losses[0]:.4f} -> {losses[-1]:.4f}"
        assert model.stats == {"rays": 128, "samples": 128 * 36, "mse": model.stats["mse"]}

    def test_learns_in_bfloat16(self) -> None:
        ball = PaintedBall()
        model, losses = train(ball, replace(LEARNING, steps=200), "bfloat16")
        errors = [(model.render(ball.view(i).camera).rgb - ball.truth(i)).square().mean() for i in ball.info.test]
        psnr = -10 * math.log10(float(torch.stack(errors).mean()))
        assert psnr > 22.0, f"held-out PSNR {psnr:.2f} dB, loss {losses[0]:.4f} -> {losses[-1]:.4f}"
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)

    @pytest.mark.parametrize("kind", ["unbounded", "forward-facing"])
    def test_learns_a_wall_at_its_true_distance(self, kind: str) -> None:
        """From a place between the cameras: right colours in the right depth, through either mapping of space."""
        wall = Wall(kind)
        model, losses = train(wall, LEARNING)
        camera = camera_at((0.02, 0.12, 0.05), (0.02, 0.12, 2.0), side=24).to(torch.float32)
        image = model.render(camera)
        colour, distance = wall.paint(camera.rays(camera.pixel_grid()))
        psnr = -10 * math.log10(float((image.rgb.reshape(-1, 3) - colour).square().mean()))
        assert psnr > 24.0, f"PSNR {psnr:.2f} dB, loss {losses[0]:.4f} -> {losses[-1]:.4f}"
        assert 0.9 < float((image.depth.reshape(-1) / distance).median()) < 1.3
        assert image.median_depth is not None
        assert 0.9 < float((image.median_depth.reshape(-1) / distance).median()) < 1.1

    def test_ten_times_the_learning_rate_stays_finite(self) -> None:
        model, losses = train(PaintedBall(bounded=False), replace(TINY, steps=60, lr=2e-2, warm_up=0))
        assert all(math.isfinite(loss) for loss in losses)
        assert all(p.isfinite().all() for p in model.parameters())

    def test_same_seeds_same_training(self) -> None:
        ball, config = PaintedBall(), replace(TINY, steps=4)
        assert train(ball, config)[1] == train(ball, config)[1] != train(ball, config, seed=1)[1]

    def test_draws_from_no_other_generator(self, rng: torch.Generator) -> None:
        ball = PaintedBall()
        model, before = MipNeRF360(TINY, ball.info), torch.get_rng_state()
        model.loss(ball, 0, rng)
        model.render(ball.info.cameras[0].resized(4, 4))
        torch.testing.assert_close(torch.get_rng_state(), before)
