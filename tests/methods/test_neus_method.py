"""methods/neus.py: from distance to opacity, fields that start as spheres, scenes learnt in seconds, and every way in
which the training of a distance is known to fall over."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from analytic_sphere import camera_at
from painted_ball import PaintedBall
from torch import Tensor

from lightfold.cameras import Camera, Lens
from lightfold.errors import ConfigError
from lightfold.methods import method_class
from lightfold.methods.base import HasDistance, step_generator
from lightfold.methods.neus import (
    REACH,
    DistanceField,
    HashField,
    NeuS,
    NeuSConfig,
    WaveField,
    intervals,
    leaving_cube,
    near_surface,
    optical_depth,
    slope_along,
    softplus,
)
from lightfold.ops import own_threads
from lightfold.ops.march import cell_centres, unpack_bits
from lightfold.optim import Adam
from lightfold.rays import Box, Rays
from lightfold.scene import Pixels

SMALL = NeuSConfig(
    steps=200, levels=4, log2_rows=12, base=8, finest=64, first_levels=2, level_every=40, width=32, geometry=7,
    colour_width=32, batch=1536, step=0.02, grid=32, anneal=100, beyond=16, variance_lr=1e-3,
)  # fmt: skip


@pytest.fixture(scope="module")
def ball() -> PaintedBall:
    """Radius 1, in a cube of half side 1; transparent around it."""
    return PaintedBall(bounded=True)


@pytest.fixture(scope="module")
def sky() -> PaintedBall:
    return PaintedBall(bounded=False, views=80, side=24)


def model_of(scene: PaintedBall, config: NeuSConfig = SMALL, seed: int = 0) -> NeuS:
    torch.manual_seed(seed)
    return NeuS(config, scene.info)


@own_threads()
def train(model: NeuS, scene: object, steps: range, seed: int = 0, optim: Adam | None = None) -> list[float]:
    optim, losses = optim or Adam(model.groups()), []
    for step in steps:
        terms = model.loss(scene, step, step_generator(seed, step))  # type: ignore[arg-type]
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        optim.step(step / model.config.steps)
        model.after_step(step, optim)
        losses.append(float(loss.detach()))
    return losses


def held_out_psnr(model: NeuS, scene: PaintedBall) -> float:
    errors = []
    for i in scene.info.test:
        truth = scene.truth(i) if scene.info.bounded else scene.view(i).rgb
        errors.append((model.render(scene.info.cameras[i]).rgb - truth).square().mean())
    return -10 * math.log10(float(torch.stack(errors).mean()))


def radii(model: NeuS) -> Tensor:
    """Distance from the centre at which each of some directions crosses zero for the first time from outside."""
    direction = torch.nn.functional.normalize(torch.randn(300, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    distance = torch.linspace(1.4, 0.2, 481)
    f = model.sdf_at((direction[:, None] * distance[:, None]).reshape(-1, 3)).reshape(300, -1)
    return distance[(f < 0).float().argmax(dim=1)]


class ExactBall(DistanceField):
    """The distance to a sphere, without anything learnt."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = radius

    def forward(self, points: Tensor) -> Tensor:
        return points.norm(dim=1, keepdim=True) - self.radius


def finite(model: NeuS) -> bool:
    return all(bool(t.isfinite().all()) for t in model.state_dict().values())


class TestOpacity:
    def test_published_alpha(self) -> None:
        """s 64, f 0.01, length 0.02, head on. The authors add 1e-5 above and below the fraction, and so here."""
        tau = optical_depth(*(torch.tensor(v, dtype=torch.float64) for v in (0.01, -1.0, 0.02, 64.0)))
        alpha = -math.expm1(-float(tau))
        before = 1 / (1 + math.exp(-64 * 0.02))
        assert (alpha * before + 1e-5) / (before + 1e-5) == pytest.approx(0.360990, abs=1e-6)

    @pytest.mark.parametrize("s", [20.0, 64.0, 1000.0])
    def test_weight_peaks_where_the_distance_is_zero(self, s: float) -> None:
        """A wall, head on: unbiased for every s (section 3.1), and all light is gone behind it."""
        edges = torch.linspace(0, 2, 4001, dtype=torch.float64)
        middle, length = 0.5 * (edges[1:] + edges[:-1]), edges.diff()
        f = 1.2 - middle
        tau = optical_depth(f, -torch.ones_like(f), length, torch.tensor(s, dtype=torch.float64))
        weight = torch.exp(tau - tau.cumsum(0)) * -torch.expm1(-tau)
        assert abs(float(middle[weight.argmax()]) - 1.2) <= 5.1e-4
        assert float(weight.sum()) == pytest.approx(1 - math.exp(-s * 0.8), abs=1e-6)

    def test_a_nearer_surface_hides_a_farther_one(self) -> None:
        edges = torch.linspace(0, 2, 2001)
        middle = 0.5 * (edges[1:] + edges[:-1])
        f = ((middle - 0.6).abs() - 0.1).minimum((middle - 1.4).abs() - 0.1)  # two slabs
        slope = torch.where((middle < 0.6) | ((middle > 1.0) & (middle < 1.4)), -1.0, 1.0)
        tau = optical_depth(f, slope, edges.diff(), torch.tensor(100.0))
        weight = torch.exp(tau - tau.cumsum(0)) * -torch.expm1(-tau)
        assert float(weight[middle < 1.0].sum()) > 0.999 and float(weight[middle > 1.0].sum()) < 1e-3

    def test_leaving_matter_costs_nothing(self) -> None:
        tau = optical_depth(torch.linspace(-1, 1, 9), torch.ones(9), torch.full((9,), 0.1), torch.tensor(50.0))
        assert (tau == 0).all()

    def test_huge_numbers_stay_finite(self) -> None:
        f = torch.tensor([-1e4, -1.0, 0.0, 1.0, 1e4], requires_grad=True)
        tau = optical_depth(f, -torch.ones(5), torch.ones(5), torch.tensor(1e5))
        tau.sum().backward()
        assert f.grad is not None and tau.isfinite().all() and f.grad.isfinite().all()

    def test_slope_fades_from_either_way_to_front_only(self) -> None:
        direction = torch.tensor([[0.0, 0.0, 1.0]]).expand(3, 3)
        gradient = torch.tensor([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        assert slope_along(direction, gradient, 0.0).tolist() == [-1.0, -0.5, 0.0]
        assert slope_along(direction, gradient, 1.0).tolist() == [-1.0, 0.0, 0.0]

    @pytest.mark.parametrize("beta", [1.0, 100.0])
    def test_softplus_is_softplus_and_differentiable_twice(self, beta: float) -> None:
        x = torch.linspace(-0.19, 0.19, 8, dtype=torch.float64).requires_grad_()
        torch.testing.assert_close(softplus(x, beta), torch.nn.functional.softplus(x, beta), atol=1e-8, rtol=0)
        assert torch.autograd.gradcheck(lambda x: softplus(x, beta), (x,))
        assert torch.autograd.gradgradcheck(lambda x: softplus(x, beta), (x,))


class TestFields:
    @pytest.mark.parametrize("inside_out", [False, True])
    @pytest.mark.parametrize("radius", [0.2, 0.5, 0.95])
    def test_hash_field_starts_as_a_sphere_of_slope_one(self, radius: float, inside_out: bool) -> None:
        field = HashField(NeuSConfig(), radius, inside_out)
        points = torch.rand(2000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
        found = field.sample(points, train=False)
        sign = -1 if inside_out else 1
        assert (sign * found.distance - (points.norm(dim=1) - radius)).abs().max() < 0.03
        away = points.norm(dim=1) > 0.1
        assert (found.gradient.norm(dim=1)[away] - 1).square().mean() < 1e-3

    @pytest.mark.parametrize("radius", [0.3, 0.7])
    def test_wave_field_starts_as_a_sphere(self, radius: float) -> None:
        torch.manual_seed(0)
        field = WaveField(replace(NeuS.PRESETS["mlp"], width=128), radius, False)
        direction = torch.nn.functional.normalize(torch.randn(200, 3), dim=1)
        for distance in (0.5 * radius, radius, 1.4 * radius):
            assert abs(float(field.value(distance * direction).mean()) - distance + radius) < 0.05
        slope = field.sample(direction * 0.8, train=False).gradient.norm(dim=1)
        assert float(slope.mean()) == pytest.approx(1, abs=0.25)

    @pytest.mark.parametrize("kind", ["hash", "waves"])
    def test_gradient_is_the_gradient(self, kind: str) -> None:
        torch.manual_seed(0)
        config = replace(SMALL, encoding=kind, depth=2 if kind == "hash" else 5)
        field = (HashField if kind == "hash" else WaveField)(replace(config, width=64), 0.5, False).double()
        with torch.no_grad():
            for p in field.parameters():
                p.add_(0.05 * torch.randn_like(p))
        points = torch.rand(50, 3, dtype=torch.float64) * 1.8 - 0.9
        found, taps = field.sample(points, train=True), field.sample_by_taps(points, 1e-7, train=True)
        torch.testing.assert_close(found.gradient, taps.gradient, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.distance, taps.distance)
        assert found.gradient.requires_grad and not field.sample(points, train=False).gradient.requires_grad

    @pytest.mark.parametrize("levels", [2, 4])
    def test_one_kernel_is_the_chain(self, levels: int) -> None:
        """The fused op against the operations that it replaces, with some levels still switched off."""
        torch.manual_seed(0)
        field = HashField(SMALL, 0.5, False).double()
        with torch.no_grad():
            for p in field.parameters():
                p.add_(0.05 * torch.randn_like(p))
        field.set_active(levels)
        points = torch.rand(50, 3, dtype=torch.float64) * 1.8 - 0.9
        results = []
        for way in (field.sample, field.sample_by_chain):
            found = way(points, True)
            field.zero_grad()
            ((found.gradient.norm(dim=1) - 1).square().sum() + found.distance.sum() + found.features.sum()).backward()
            results.append([*found[:3], *(p.grad for p in field.parameters() if p.grad is not None)])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(field.value(points), results[1][0].detach())
        torch.testing.assert_close(field(points).detach()[:, 0], results[1][0].detach())

    def test_a_loss_on_the_slope_reaches_the_table(self) -> None:
        field = HashField(SMALL, 0.5, False)
        field.sample(torch.rand(64, 3), train=True).gradient.square().sum().backward()
        assert field.table.grad is not None and (field.table.grad != 0).any()

    def test_laplacian_of_a_ball(self) -> None:
        points = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.3, 0.4]], dtype=torch.float64)
        found = ExactBall(0.2).sample_by_taps(points, 1e-4, train=False)
        assert found.laplacian is not None
        torch.testing.assert_close(found.laplacian, 2 / points.norm(dim=1), atol=1e-5, rtol=1e-5)

    def test_levels_are_switched_on_one_by_one(self, ball: PaintedBall) -> None:
        model = model_of(ball)
        field = model.field
        assert isinstance(field, HashField)
        for step, levels in ((0, 2), (39, 2), (40, 3), (80, 4), (10_000, 4)):
            model.loss(ball, step, step_generator(0, step))  # type: ignore[arg-type]
            assert model.active_levels == field.active_levels == levels and int(field.active.sum()) == 4 * levels

    def test_levels_of_a_checkpoint_are_those_of_its_buffer(self) -> None:
        """They are kept as a number, which must follow whatever is written into the buffer."""
        field, other = HashField(SMALL, 0.5, False), HashField(SMALL, 0.5, False)
        field.set_active(3)
        other.load_state_dict(field.state_dict())
        assert other.active_levels == 3
        points = torch.rand(9, 3)
        torch.testing.assert_close(other.value(points), field.value(points))
        assert other.double().active_levels == 3


class TestSampling:
    @pytest.mark.parametrize("s", [20.0, 300.0])
    def test_no_cell_near_the_surface_is_missed(self, s: float) -> None:
        field, size = ExactBall(0.6), 32
        near = unpack_bits(near_surface(field, size, s))
        centres = cell_centres(0, size)
        corner = torch.tensor([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)]) / size
        nearest = torch.stack([field.value(centres + c).abs() for c in corner]).amin(dim=0)
        assert near[nearest < REACH / s].all()
        assert near.float().mean() < 0.9 and not near[field.value(centres).abs() > REACH / s + 0.1].any()

    def test_only_intervals_that_count_are_kept(self) -> None:
        field, size, s = ExactBall(0.5), 32, 100.0
        bits = near_surface(field, size, s)
        origin = torch.tensor([[-2.0, 0, 0], [-2, 0.9, 0], [-2, 0, 0.3]])
        rays = (origin, torch.tensor([[1.0, 0, 0]]).repeat(3, 1), torch.zeros(3), torch.full((3,), 9.0))
        at = intervals(field, bits, size, rays, s, 0.01, 1e-3, seed=0)
        assert at.offset.tolist()[1] == at.offset.tolist()[2] == int((at.ray == 0).sum()), "the second ray misses"
        for ray, depth in ((0, 1.5), (2, 1.6)):
            chosen = at.ray == ray
            assert (at.middle[chosen] - depth).abs().max() < 0.1 and chosen.sum() > 5
        assert at.evaluated > len(at.ray)

    def test_no_rays(self) -> None:
        rays = (torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0), torch.zeros(0))
        at = intervals(ExactBall(0.5), torch.full((32**3 // 64,), -1), 32, rays, 20.0, 0.02, 1e-3, seed=0)
        assert len(at.ray) == 0 and at.offset.tolist() == [0]

    def test_leaving_the_cube(self) -> None:
        origin = torch.tensor([[-3.0, 0, 0], [0, 0, 0], [-3, 2, 0], [3, 0, 0], [0, 0, 0.5]])
        direction = torch.tensor([[1.0, 0, 0]]).repeat(5, 1)
        assert leaving_cube(origin, direction).tolist() == [4.0, 1.0, 0.0, 0.0, 1.0]


class TestLearning:
    def test_learns_a_ball(self, ball: PaintedBall) -> None:
        """Held-out views over white; where the surface is; how sure the model is of it; its normals."""
        model = model_of(ball)
        losses = train(model, ball, range(220))
        psnr = held_out_psnr(model, ball)
        assert psnr > 24.0, f"held-out PSNR {psnr:.2f} dB, loss {losses[0]:.4f} -> {losses[-1]:.4f}"
        found = radii(model)
        assert float(found.mean()) == pytest.approx(1.0, abs=0.03) and float(found.std()) < 0.03
        assert model.stats["inv_s"] > 25
        camera = ball.info.cameras[0]
        image = model.render(camera)
        assert float(image.depth[14:18, 14:18].mean()) == pytest.approx(1.6, abs=0.1)
        assert image.median_depth is not None
        assert float(image.median_depth[14:18, 14:18].mean()) == pytest.approx(1.6, abs=0.1)
        assert image.alpha[16, 16] > 0.95 and image.alpha[0, 0] < 0.05
        assert image.normal is not None
        towards = torch.nn.functional.normalize(camera.center.float(), dim=0)
        assert float(image.normal[16, 16] @ towards) > 0.9 and (image.normal[0, 0] == 0).all()

    def test_learns_a_ball_under_a_sky(self, sky: PaintedBall) -> None:
        """No masks: what is beyond the cube is learnt beside the surface."""
        model = model_of(sky)
        train(model, sky, range(150))
        assert (psnr := held_out_psnr(model, sky)) > 24.0, f"held-out PSNR {psnr:.2f} dB"
        assert float(radii(model).mean()) == pytest.approx(1.0, abs=0.05)
        image = model.render(sky.info.cameras[0])
        assert image.alpha.min() > 0.99 and image.median_depth is not None
        # In the middle of the picture is the ball; in its corners the median is found in the background's samples.
        assert float(image.median_depth[15:17, 15:17].mean()) == pytest.approx(1.6, abs=0.3)
        assert float(image.median_depth[0, 0]) > 2.0

    def test_resumes_anywhere(self, ball: PaintedBall) -> None:
        straight = model_of(ball)
        train(straight, ball, range(40))
        first = model_of(ball)
        optim = Adam(first.groups())
        train(first, ball, range(21), optim=optim)
        second = model_of(ball, seed=5)
        second.load_state_dict({name: t.clone() for name, t in first.state_dict().items()})
        resumed = Adam(second.groups())
        resumed.load_state(optim.state())
        train(second, ball, range(21, 40), optim=resumed)
        for name, t in straight.state_dict().items():
            assert torch.equal(t, second.state_dict()[name]), name

    def test_draws_from_no_other_generator(self, ball: PaintedBall, sky: PaintedBall) -> None:
        for scene in (ball, sky):
            model, before = model_of(scene), torch.get_rng_state()
            train(model, scene, range(2))
            model.render(scene.info.cameras[0].resized(4, 4))
            assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("preset", list(NeuS.PRESETS))
    def test_presets_take_steps(self, preset: str, ball: PaintedBall, sky: PaintedBall) -> None:
        config = replace(NeuS.PRESETS[preset], batch=256, step=0.03, grid=16, log2_rows=12)
        if preset == "mlp":
            config = replace(config, width=64, colour_width=32, geometry=16)
        for scene in (ball, sky):
            model = model_of(scene, config)
            terms = model.loss(scene, 0, step_generator(0, 0))  # type: ignore[arg-type]
            assert ("mask" in terms) == scene.info.has_alpha and ("curvature" in terms) == (preset == "neuralangelo")
            train(model, scene, range(3))
            assert finite(model) and model.stats["kept"] > 0


class TestMethod:
    def test_table(self) -> None:
        assert method_class("neus") is NeuS
        assert {"", "fast", "mlp", "neuralangelo"} == set(NeuS.PRESETS)

    def test_groups_hold_every_parameter_once(self, sky: PaintedBall) -> None:
        for preset in ("", "mlp"):
            model = model_of(sky, NeuS.PRESETS[preset])
            held = [id(p) for group in model.groups() for p in group.params]
            assert sorted(held) == sorted(id(p) for p in model.parameters())

    @pytest.mark.parametrize(
        "change",
        [
            {"steps": 0}, {"encoding": "fog"}, {"slope": "steep"}, {"features": 3}, {"grid": 20}, {"radius": 0.0},
            {"base": 512, "finest": 64}, {"curvature": 1.0}, {"keep": math.nan},
        ],
        ids=str,
    )  # fmt: skip
    def test_bad_options_are_refused(self, change: dict) -> None:
        with pytest.raises(ConfigError, match=next(iter(change))):
            replace(SMALL, **change)

    def test_distance_can_be_asked_for(self, ball: PaintedBall) -> None:
        """Anywhere: outside the cube, where nothing is learnt, too."""
        model = model_of(ball)
        assert isinstance(model, HasDistance)
        points = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0.9, 0, 0], [3.0, 0, 0]])
        assert model.sdf_at(points).tolist() == pytest.approx([-0.5, 0.0, 0.4, 2.5], abs=0.05)
        assert model.sdf_at(torch.zeros(0, 3)).shape == (0,)

    def test_starts_inside_out_around_cameras_that_look_outwards(self, sky: PaintedBall) -> None:
        cameras = tuple(camera_at(0.3 * c.center.float(), 2 * c.center.float()) for c in sky.info.cameras)
        room = NeuS(SMALL, replace(sky.info, cameras=cameras))
        assert float(room.sdf_at(torch.zeros(1, 3))) > 0.5
        assert float(model_of(sky).sdf_at(torch.zeros(1, 3))) < -0.4

    @pytest.mark.parametrize("bounded", [True, False], ids=["bounded", "unbounded"])
    @pytest.mark.parametrize("kind", ["one pixel", "panorama", "fisheye", "float64", "inside", "far away"])
    def test_renders_any_camera(self, kind: str, bounded: bool, ball: PaintedBall, sky: PaintedBall) -> None:
        model = model_of(ball if bounded else sky)
        eye = {"inside": [0.1, 0.2, 0.3], "far away": [50.0, 3.0, 2.0]}.get(kind, [1.8, 0.3, 0.2])
        camera = camera_at(torch.tensor(eye), torch.zeros(3), 9, 7)
        if kind == "one pixel":
            camera = camera.resized(1, 1)
        elif kind == "panorama":
            lens = torch.tensor([16 / (2 * math.pi), 8 / math.pi, 8.0, 4.0])
            camera = Camera(camera.cam_from_world, lens, torch.zeros(0), 16, 8, Lens.EQUIRECTANGULAR)
        elif kind == "fisheye":  # The corners are beyond the rim, where a pixel has no direction.
            lens = torch.tensor([2.0, 2.0, 8.0, 8.0])
            camera = Camera(camera.cam_from_world, lens, torch.zeros(4), 16, 16, Lens.OPENCV_FISHEYE)
        elif kind == "float64":
            camera = camera.to(torch.float64)
        image = model.render(camera, background=torch.tensor([0.1, 0.2, 0.3]))
        for part in (image.rgb, image.alpha, image.depth, image.normal):
            assert part is not None and part.dtype == torch.float32 and part.isfinite().all()
        assert image.rgb.shape == (camera.height, camera.width, 3) and (image.alpha <= 1).all()

    def test_nothing_is_seen_outside_the_crop(self, ball: PaintedBall, sky: PaintedBall) -> None:
        colour = torch.tensor([0.1, 0.2, 0.3])
        elsewhere = Box.of(torch.tensor([0.8, 0.8, 0.8]), torch.eye(3), torch.full((3,), 0.1))
        around = Box.of(torch.zeros(3), torch.eye(3), torch.full((3,), 1.9))
        for scene in (ball, sky):
            model = model_of(scene)
            train(model, scene, range(3))
            camera = camera_at(torch.tensor([-2.0, 0.0, 0.0]), torch.zeros(3), 8, 8)
            nothing = model.render(camera, colour, crop=elsewhere)
            torch.testing.assert_close(nothing.rgb, colour.expand_as(nothing.rgb))
            assert (nothing.alpha == 0).all() and (nothing.depth == 0).all()
            whole, cropped = model.render(camera, colour), model.render(camera, colour, crop=around)
            torch.testing.assert_close(whole.rgb[4, 4], cropped.rgb[4, 4], atol=0.05, rtol=0)


class TestEdges:
    """Ways in which trainings of hash-grid NeuS are known to end in NaN or to crash."""

    @pytest.mark.parametrize("bounded", [True, False], ids=["bounded", "unbounded"])
    @pytest.mark.parametrize("preset", ["", "neuralangelo"])
    def test_ten_times_the_learning_rate(self, bounded: bool, preset: str, ball: PaintedBall, sky: PaintedBall) -> None:
        scene = ball if bounded else sky
        slope, curvature = ("taps", 5e-4) if preset else ("analytic", 0.0)
        config = replace(
            SMALL, table_lr=0.1, network_lr=0.02, variance_lr=0.1, batch=1024, slope=slope, curvature=curvature
        )
        model = model_of(scene, config)
        losses = train(model, scene, range(40))
        assert all(math.isfinite(loss) for loss in losses) and finite(model)
        assert 1.0 <= model.stats["inv_s"] <= 1e5
        assert model.render(scene.info.cameras[0]).rgb.isfinite().all()

    @pytest.mark.parametrize("bounded", [True, False], ids=["bounded", "unbounded"])
    def test_a_batch_without_a_sample(self, bounded: bool, ball: PaintedBall, sky: PaintedBall) -> None:
        """The published implementations divide by the number of samples; this ended their trainings."""
        scene = ball if bounded else sky
        model = model_of(scene, replace(SMALL, refresh=10**6, eikonal=0.0))
        optim = Adam(model.groups())
        train(model, scene, range(1), optim=optim)
        model.bits.zero_()
        rays = int(model.rays)
        losses = train(model, scene, range(1, 6), optim=optim)
        assert model.stats["kept"] == 0 and all(math.isfinite(loss) for loss in losses) and finite(model)
        assert int(model.rays) == rays, "an empty batch says nothing about the rays that fit"
        image = model.render(scene.info.cameras[0], background=torch.tensor([0.1, 0.2, 0.3]))
        assert image.rgb.isfinite().all() and image.normal is not None and (image.normal == 0).all()

    def test_no_valid_rays(self, ball: PaintedBall) -> None:
        """Pixels beyond a fisheye's rim have no direction."""

        def pixels(n: int, rng: torch.Generator) -> Pixels:
            drawn = ball.pixels(n, rng)
            nowhere = Rays(drawn.rays.origin, drawn.rays.direction * math.nan, near=drawn.rays.near, far=drawn.rays.far)
            return replace(drawn, rays=nowhere)

        model = model_of(ball)
        losses = train(model, SimpleNamespace(info=ball.info, pixels=pixels), range(3))
        assert all(math.isfinite(loss) for loss in losses) and finite(model) and model.stats["rays"] == 0

    @pytest.mark.parametrize("sign", [1.0, -1.0], ids=["all positive", "all negative"])
    def test_a_field_without_a_surface(self, sign: float, ball: PaintedBall) -> None:
        model = model_of(ball)
        field = model.field
        assert isinstance(field, HashField)
        with torch.no_grad():
            field.out.weight[0] = 0.0
            field.out.bias[0] = sign
        losses = train(model, ball, range(3))
        assert all(math.isfinite(loss) for loss in losses) and finite(model)

    def test_rays_that_all_miss(self, ball: PaintedBall) -> None:
        def pixels(n: int, rng: torch.Generator) -> Pixels:
            drawn = ball.pixels(n, rng)
            return replace(drawn, rays=replace(drawn.rays, origin=drawn.rays.origin + 100.0))

        model = model_of(ball)
        losses = train(model, SimpleNamespace(info=ball.info, pixels=pixels), range(3))
        assert all(math.isfinite(loss) for loss in losses) and finite(model) and model.stats["kept"] == 0
