"""methods/nerf.py: check vectors, the rendering sum, three ways of placing samples, and a scene learnt in seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image as Picture
from three_scenes import KINDS, Wall, camera_at, info_of
from torch import Tensor

from lightfold.cameras import Camera
from lightfold.capture import Capture, Frame
from lightfold.errors import ConfigError
from lightfold.methods import method_class
from lightfold.methods.nerf import NeRF, NeRFConfig, RadianceField, composite, positional_encoding, ray_weights
from lightfold.optim import Adam
from lightfold.rays import Rays
from lightfold.scene import Scene, SceneConfig, load_scene

SMALL = NeRFConfig(rays=32, coarse_samples=8, fine_samples=8, width=16, depth=2, chunk=50)


class TestEncodingAndNetwork:
    def test_widths(self) -> None:
        assert positional_encoding(torch.zeros(2, 5, 3), 10).shape == (2, 5, 63)
        assert positional_encoding(torch.zeros(7, 3), 4).shape == (7, 27)

    def test_values(self) -> None:
        """x first, then sine and cosine octave by octave, without a factor pi."""
        encoded = positional_encoding(torch.tensor([0.3, -0.7], dtype=torch.float64), 3)
        expected = [0.3, -0.7]
        for k in range(3):
            expected += [math.sin(2**k * 0.3), math.sin(2**k * -0.7), math.cos(2**k * 0.3), math.cos(2**k * -0.7)]
        torch.testing.assert_close(encoded, torch.tensor(expected, dtype=torch.float64))

    def test_parameter_count_of_the_paper(self) -> None:
        model = NeRF(NeRF.PRESETS["paper"], info_of("bounded"))
        for field in (model.coarse, model.fine):
            assert sum(p.numel() for p in field.parameters()) == 595_844

    def test_skip_joins_after_the_fifth_layer(self) -> None:
        widths = [layer.in_features for layer in RadianceField(NeRF.PRESETS["paper"]).trunk]
        assert widths == [63, 256, 256, 256, 256, 319, 256, 256]

    @pytest.mark.parametrize("depth", [1, 2, 3, 4, 8])
    def test_any_depth_works(self, depth: int) -> None:
        raw, rgb = RadianceField(replace(SMALL, depth=depth))(torch.rand(5, 7, 3), torch.rand(5, 1, 3))
        assert raw.shape == (5, 7) and rgb.shape == (5, 7, 3)
        assert (rgb >= 0).all() and (rgb <= 1).all()

    def test_density_does_not_see_the_direction(self) -> None:
        field, points = RadianceField(SMALL), torch.rand(6, 3)
        raw_a, rgb_a = field(points, torch.tensor([1.0, 0.0, 0.0]))
        raw_b, rgb_b = field(points, torch.tensor([0.0, 1.0, 0.0]))
        torch.testing.assert_close(raw_a, raw_b)
        assert not torch.allclose(rgb_a, rgb_b)

    def test_far_points_stay_finite(self) -> None:
        raw, rgb = RadianceField(NeRFConfig())(torch.full((1, 3), 1e4), torch.tensor([[0.0, 0.0, 1.0]]))
        assert raw.isfinite().all() and rgb.isfinite().all()


class TestCompositing:
    def test_box_of_constant_density(self) -> None:
        """The sum telescopes, so 1 - exp(-sigma L) holds exactly for any placement of samples."""
        t = torch.rand(4, 65, dtype=torch.float64).sort(dim=-1).values
        for sigma in (0.0, 0.3, 5.0, 400.0):
            alpha = ray_weights(torch.full((4, 64), sigma, dtype=torch.float64), t.diff(dim=-1)).sum(-1)
            torch.testing.assert_close(alpha, 1 - torch.exp(-sigma * (t[:, -1] - t[:, 0])))

    def test_equals_the_published_product(self, rng: torch.Generator) -> None:
        density, length = torch.rand(2, 6, 9, generator=rng, dtype=torch.float64) * 3
        alpha = 1 - torch.exp(-density * length)
        for i in range(9):
            expected = (1 - alpha[:, :i]).prod(-1) * alpha[:, i]
            torch.testing.assert_close(ray_weights(density, length)[:, i], expected)

    def test_weights_are_shares(self, rng: torch.Generator) -> None:
        density = torch.randn(100, 32, generator=rng).exp() * 10
        weights = ray_weights(density, torch.rand(100, 32, generator=rng))
        assert (weights >= 0).all()
        assert (weights.sum(-1) <= 1 + 1e-6).all()

    def test_gradient(self, rng: torch.Generator) -> None:
        density = torch.rand(3, 5, generator=rng, dtype=torch.float64).requires_grad_()
        length = torch.rand(3, 5, generator=rng, dtype=torch.float64)
        rgb = torch.rand(3, 5, 3, generator=rng, dtype=torch.float64).requires_grad_()
        distance = length.cumsum(-1)

        def image(density: Tensor, rgb: Tensor) -> tuple[Tensor, ...]:
            return composite(ray_weights(density, length), rgb, distance).parts()

        assert torch.autograd.gradcheck(image, (density, rgb))

    def test_opaque_end_is_exact_and_empty_end_is_empty(self) -> None:
        density = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
        weights = ray_weights(density, torch.tensor([[0.1, 0.1, 1e10]]).expand(2, 3))
        torch.testing.assert_close(weights, torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))

    def test_wall_gives_its_colour_and_distance(self) -> None:
        colour, wall = torch.tensor([0.2, 0.5, 0.8]), torch.tensor([[0.0, 1.0, 0.0]])
        seen = composite(wall, colour.expand(1, 3, 3), torch.tensor([[1.0, 2.5, 4.0]]))
        torch.testing.assert_close(seen.over(torch.ones(3)), colour[None])
        torch.testing.assert_close(seen.depth, torch.tensor([2.5]))
        torch.testing.assert_close(seen.median, torch.tensor([2.5]))

    def test_median_is_where_half_is_seen(self) -> None:
        weights, distance = torch.tensor([[0.1, 0.1, 0.6], [0.4, 0.1, 0.0]]), torch.tensor([[1.0, 2.0, 9.0]])
        seen = composite(weights, torch.rand(2, 3, 3), distance.expand(2, 3))
        torch.testing.assert_close(seen.median, torch.tensor([9.0, 1.0]))
        torch.testing.assert_close(seen.depth, torch.tensor([5.7 / 0.8, 0.6 / 0.5]))

    def test_background_enters_once(self) -> None:
        seen = composite(torch.tensor([[0.25, 0.0]]), torch.ones(1, 2, 3), torch.tensor([[1.0, 2.0]]))
        torch.testing.assert_close(seen.over(torch.zeros(3)), torch.full((1, 3), 0.25))
        torch.testing.assert_close(seen.over(torch.ones(3)), torch.ones(1, 3))

    def test_nothing_has_depth_zero_and_a_finite_gradient(self) -> None:
        weights = torch.zeros(2, 4, requires_grad=True)
        seen = composite(weights, torch.rand(2, 4, 3), torch.rand(2, 4))
        torch.testing.assert_close(seen.depth, torch.zeros(2))
        torch.testing.assert_close(seen.median, torch.zeros(2))
        seen.rgb.sum().backward()
        assert weights.grad is not None and weights.grad.isfinite().all()


class TestMethod:
    def test_table_and_presets(self) -> None:
        assert method_class("nerf") is NeRF
        assert isinstance(NeRF.PRESETS[""], NeRFConfig)
        assert {"", "paper", "tiny"} <= set(NeRF.PRESETS)

    def test_learning_rate_of_the_paper(self) -> None:
        (group,) = NeRF(replace(SMALL, lr=5e-4, lr_final=NeRF.PRESETS["paper"].lr_final), info_of("bounded")).groups()
        assert group.lr * group.schedule(0.5) == pytest.approx(3.15479e-4, rel=1e-5)

    def test_groups_hold_every_parameter_once(self) -> None:
        model = NeRF(SMALL, info_of("bounded"))
        held = [id(p) for group in model.groups() for p in group.params]
        assert sorted(held) == sorted(id(p) for p in model.parameters())

    @pytest.mark.parametrize("change", [{"coarse_samples": 2}, {"width": 0}, {"lr": math.nan}, {"density_noise": -1.0}])
    def test_bad_options_are_refused(self, change: dict[str, float]) -> None:
        with pytest.raises(ConfigError, match=f"nerf's option '{next(iter(change))}'"):
            replace(SMALL, **change)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("softplus", [True, False])
    def test_every_kind_of_scene_traces_and_learns(self, kind: str, softplus: bool, rng: torch.Generator) -> None:
        model = NeRF(replace(SMALL, softplus_density=softplus, density_noise=1.0), info_of(kind))
        camera = info_of(kind).cameras[2]
        coarse, fine = model.trace(camera.rays(camera.pixel_grid()), rng)
        assert (fine.alpha <= 1 + 1e-5).all() and fine.alpha.max() > 0
        (coarse.over(torch.ones(3)).sum() + fine.over(torch.ones(3)).sum()).backward()
        gradients = [p.grad for p in model.parameters()]
        assert all(g is not None and g.isfinite().all() for g in gradients)

    def test_a_scene_without_background_is_opaque(self) -> None:
        camera = info_of("unbounded").cameras[0]
        assert NeRF(SMALL, info_of("unbounded")).render(camera).alpha.min() > 1 - 1e-5
        white = info_of("bounded", background=(1.0, 1.0, 1.0))
        assert NeRF(SMALL, white).render(camera).alpha.min() < 0.9

    @pytest.mark.parametrize("kind", KINDS)
    def test_empty_space_renders_finite(self, kind: str) -> None:
        """Density exactly zero everywhere: the background, alpha 0, depth 0, and no NaN."""
        model = NeRF(replace(SMALL, softplus_density=False), info_of(kind))
        for field in (model.coarse, model.fine):
            torch.nn.init.zeros_(field.density_head.weight)
            torch.nn.init.constant_(field.density_head.bias, -1.0)
        camera = info_of(kind).cameras[0]
        image = model.render(camera, background=torch.tensor([0.1, 0.2, 0.3]))
        torch.testing.assert_close(image.rgb, torch.tensor([0.1, 0.2, 0.3]).expand(8, 8, 3))
        assert (image.alpha == 0).all() and (image.depth == 0).all()

    @pytest.mark.parametrize("kind", KINDS)
    def test_rendered_depth_lies_between_near_and_far(self, kind: str) -> None:
        info = info_of(kind)
        image = NeRF(SMALL, info).render(info.cameras[0])
        seen = image.depth[image.alpha > 0]
        assert len(seen) > 0 and seen.isfinite().all()
        assert (seen >= 0.49).all() and (seen <= info.far * 1.01).all()

    @pytest.mark.parametrize("kind", KINDS)
    def test_rays_that_are_not_numbers_see_nothing(self, kind: str) -> None:
        """Pixels beyond the rim of a fisheye's disc have no direction."""
        camera = info_of(kind).cameras[0]
        rays = camera.rays(camera.pixel_grid())
        lost = torch.arange(len(rays)) % 3 == 0
        direction = torch.where(lost[:, None], math.nan, rays.direction)
        _, fine = NeRF(SMALL, info_of(kind)).trace(replace(rays, direction=direction))
        assert all(part.isfinite().all() for part in fine.parts())
        assert (fine.alpha[lost] == 0).all() and (fine.alpha[~lost] > 0).any()

    def test_no_rays_at_all(self) -> None:
        model = NeRF(SMALL, info_of("bounded"))
        coarse, fine = model.trace(Rays(torch.zeros(0, 3), torch.zeros(0, 3)))
        assert fine.rgb.shape == (0, 3) and coarse.depth.shape == (0,)

    def test_rays_that_all_miss_can_be_trained_on(self, rng: torch.Generator) -> None:
        model = NeRF(SMALL, info_of("bounded", background=(1.0, 1.0, 1.0)))
        away = Rays(torch.tensor([[3.0, 0.0, 0.0]]).expand(5, 3), torch.tensor([[1.0, 0.0, 0.0]]).expand(5, 3))
        coarse, fine = model.trace(away, rng)
        torch.testing.assert_close(fine.over(model.background), torch.ones(5, 3))
        (coarse.over(model.background) + fine.over(model.background)).sum().backward()
        assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())

    def test_render_repeats_and_does_not_depend_on_the_chunk(self) -> None:
        info = info_of("forward-facing")
        model = NeRF(SMALL, info)
        first, second = model.render(info.cameras[0]), model.render(info.cameras[0])
        assert torch.equal(first.rgb, second.rgb)
        model.config = replace(SMALL, chunk=7)
        torch.testing.assert_close(model.render(info.cameras[0]).depth, first.depth)

    def test_float64_cameras_render(self) -> None:
        """Camera paths may come in double precision."""
        model = NeRF(SMALL, info_of("bounded", background=(0.0, 0.0, 0.0)))
        image = model.render(camera_at((2.0, 1.0, 1.0)))
        assert image.rgb.dtype == torch.float32 and image.rgb.shape == (8, 8, 3)

    def test_forward_facing_colour_sees_the_direction_before_the_warp(self) -> None:
        info = info_of("forward-facing")
        model, directions = NeRF(SMALL, info), []
        model.fine.register_forward_hook(lambda module, args, out: directions.append(args[1]))
        camera = info.cameras[0]
        rays = camera.rays(camera.pixel_grid())
        with torch.no_grad():
            model.trace(rays)
        torch.testing.assert_close(directions[0][:, 0], rays.direction)


RADIUS = 0.6


def ball(camera: Camera, side: int) -> Tensor:
    """A ball at the origin, coloured by its normal: straight RGBA [side, side, 4], 4 x 4 samples per pixel."""
    fine = camera.resized(4 * side, 4 * side)
    rays = fine.rays(fine.pixel_grid())
    b = (rays.origin * rays.direction).sum(-1)
    root = b**2 - (rays.origin**2).sum(-1) + RADIUS**2
    hit = root > 0
    normal = rays.at((-b - root.clamp(min=0).sqrt())[:, None])[:, 0] / RADIUS
    rgba = torch.cat([0.5 + 0.5 * normal, torch.ones_like(b)[:, None]], dim=-1) * hit[:, None]
    rgba = rgba.reshape(side, 4, side, 4, 4).mean(dim=(1, 3))
    return torch.cat([rgba[..., :3] / rgba[..., 3:].clamp(min=1 / 16), rgba[..., 3:]], dim=-1)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from a second thread, and on a busy machine wait for it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The ball, from 12 training views and 2 held-out ones of 32 x 32, through the real scene loader."""
    root, frames = tmp_path_factory.mktemp("ball"), []
    for i in range(14):
        azimuth, height = 2 * math.pi * i * 0.381966, math.sin(2.4 * i)
        around = 2.6 * math.cos(height)
        camera = camera_at((around * math.cos(azimuth), around * math.sin(azimuth), 2.6 * math.sin(height)), side=32)
        path = Path(root / f"{i:02}.png")
        pixels = (ball(camera, 32) * 255).round().clamp(0, 255).to(torch.uint8)
        Picture.fromarray(pixels.numpy(), "RGBA").save(path)
        frames.append(Frame(path=path, camera=camera, name=path.name, split="test" if i in (5, 11) else "train"))
    box = torch.tensor([[-0.7] * 3, [0.7] * 3], dtype=torch.float64)
    capture = Capture(root=root, format="blender", frames=tuple(frames), bounds=box, background="white")
    return load_scene(capture, SceneConfig(), root / "cache")


def train(scene: Scene | Wall, config: NeRFConfig, steps: int, seed: int = 0) -> tuple[NeRF, list[float]]:
    torch.manual_seed(seed)
    model = NeRF(config, scene.info)
    optim, losses = Adam(model.groups()), []
    for step in range(steps):
        terms = model.loss(scene, step, torch.Generator().manual_seed(seed * 1000 + step))
        total = torch.stack(list(terms.values())).sum()
        total.backward()
        optim.step(step / steps)
        losses.append(float(total.detach()))
    return model, losses


@pytest.mark.usefixtures("one_thread")
class TestLearning:
    def test_learns_a_ball_from_twelve_pictures(self, toy: Scene) -> None:
        """Held-out views, where a network that memorised the photographs would fail."""
        model, losses = train(toy, replace(NeRF.PRESETS["tiny"], position_octaves=4), 300)
        errors = []
        for i in toy.info.test:
            view = toy.view(i)
            image = model.render(view.camera)
            true = view.rgb * view.alpha[..., None] + (1 - view.alpha[..., None])
            errors.append(float((image.rgb - true).square().mean()))
            centre = image.depth[15:17, 15:17].mean()
            distance = view.camera.center.norm() - RADIUS * toy.info.scene_from_capture.scale
            # In pictures this small and smooth a soft rind explains everything: nothing is nearer, little is deeper.
            assert float(distance) - 0.02 < centre < float(distance) + 0.35
        psnr = -10 * math.log10(sum(errors) / len(errors))
        assert psnr > 28.0, f"held-out PSNR {psnr:.2f} dB, loss {losses[0]:.4f} -> {losses[-1]:.4f}"
        assert model.stats["rays"] == 256
        assert model.stats["samples"] == 256 * (16 + 32)

    @pytest.mark.parametrize("kind", ["unbounded", "forward-facing"])
    def test_learns_a_wall_at_its_true_distance(self, kind: str) -> None:
        """From a place between the cameras: right colours in the right depth, through either mapping of space."""
        wall = Wall(kind)
        model, losses = train(wall, replace(NeRF.PRESETS["tiny"], position_octaves=4, rays=128), 150)
        camera = camera_at((0.02, 0.12, 0.05), (0.02, 0.12, 2.0), side=24).to(torch.float32)
        image = model.render(camera)
        colour, distance = wall.paint(camera.rays(camera.pixel_grid()))
        psnr = -10 * math.log10(float((image.rgb.reshape(-1, 3) - colour).square().mean()))
        assert psnr > 24.0, f"PSNR {psnr:.2f} dB, loss {losses[0]:.4f} -> {losses[-1]:.4f}"
        assert 0.95 < float((image.depth.reshape(-1) / distance).median()) < 1.3

    def test_same_seeds_same_training(self, toy: Scene) -> None:
        config = replace(SMALL, density_noise=0.5)
        _, first = train(toy, config, 4)
        assert train(toy, config, 4)[1] == first
        assert train(toy, config, 4, seed=1)[1] != first

    def test_draws_from_no_other_generator(self, toy: Scene, rng: torch.Generator) -> None:
        """A resumed training seeds one generator per step; anything drawn elsewhere would make it diverge."""
        model, before = NeRF(replace(SMALL, density_noise=0.5), toy.info), torch.get_rng_state()
        model.loss(toy, 0, rng)
        model.render(toy.info.cameras[0].resized(4, 4))
        torch.testing.assert_close(torch.get_rng_state(), before)
