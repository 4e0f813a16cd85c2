"""methods/nerfacto.py: scenes learnt in seconds, poses and exposures learnt with them, and the edges of a training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from analytic_sphere import camera_at
from painted_ball import PaintedBall
from torch import Tensor

from lightfold.config import from_plain, to_plain
from lightfold.errors import ConfigError
from lightfold.evaluate import evaluate, view_fit
from lightfold.geometry import so3_exp
from lightfold.methods import method_class
from lightfold.methods.base import HasDensity, step_generator
from lightfold.methods.nerfacto import Nerfacto, NerfactoConfig
from lightfold.optim import Adam
from lightfold.rays import Box, Rays
from lightfold.refine import HasColours, corrections, refined_cameras
from lightfold.scene import Pixels

SMALL = NerfactoConfig(
    steps=250, rays=256, proposal_samples=(24, 16), samples=10, levels=4, log2_rows=12, base=8, finest=128,
    finest_bounded=64, width=16, geometry=8, proposal_levels=3, proposal_log2_rows=11, proposal_finest=(32, 64),
    proposal_width=8, appearance=0, poses="off", table_lr=3e-2, network_lr=1e-2,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors as small as these only get slower by being shared out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Viewed(PaintedBall):
    """The painted ball, whose rays say which view they belong to; with exposures, and poses that are not quite right.

    exposure: factor on the colours of every training view, drawn from [1 - exposure, 1 + exposure].
    degrees, shift: every training camera is said to be turned and moved by so much from where its picture was taken.
    """

    def __init__(self, bounded: bool = True, exposure: float = 0.0, degrees: float = 0.0, shift: float = 0.0) -> None:
        super().__init__(bounded)
        rng = torch.Generator().manual_seed(5)
        self.true = self.info.cameras
        cameras = list(self.true)
        gains = 1 + exposure * (2 * torch.rand(len(cameras), 1, generator=rng) - 1)
        pixels = len(self._rgb) // len(self.info.train)
        self._view = torch.tensor(self.info.train).repeat_interleave(pixels)
        self._rgb = self._rgb * gains[self._view]
        for i in self.info.train:
            noise = torch.nn.functional.normalize(torch.randn(2, 3, generator=rng), dim=1)
            rotation = cameras[i].cam_from_world[:, :3] @ so3_exp(math.radians(degrees) * noise[0]).T
            centre = cameras[i].center + shift * noise[1]
            cameras[i] = replace(cameras[i], cam_from_world=torch.cat([rotation, -(rotation @ centre)[:, None]], dim=1))
        self.info = replace(self.info, cameras=tuple(cameras))
        rays = [cameras[i].rays(cameras[i].pixel_grid()) for i in self.info.train]
        self._origin, self._direction = torch.cat([r.origin for r in rays]), torch.cat([r.direction for r in rays])

    def pixels(self, n: int, rng: torch.Generator, depth: bool = False) -> Pixels:
        chosen = torch.randint(len(self._rgb), (n,), generator=rng)
        near, far = torch.full((n,), self.info.near), torch.full((n,), self.info.far)
        rays = Rays(self._origin[chosen], self._direction[chosen], near=near, far=far, view=self._view[chosen])
        along = -(rays.origin * rays.direction).sum(1)
        inside = along.square() - rays.origin.square().sum(1) + 1
        measured = torch.where(inside > 0, along - inside.clamp(min=0).sqrt(), 0.0)
        return Pixels(rays, self._rgb[chosen], self._alpha[chosen], torch.zeros(n, 2), measured if depth else None)


@pytest.fixture(scope="module")
def ball() -> Viewed:
    return Viewed()


def model_of(scene: PaintedBall, config: NerfactoConfig = SMALL, seed: int = 0) -> Nerfacto:
    torch.manual_seed(seed)
    return Nerfacto(config, scene.info)


def train(model: Nerfacto, scene: PaintedBall, steps: range, optim: Adam | None = None) -> list[float]:
    optim, losses = optim or Adam(model.groups()), []
    for step in steps:
        terms = model.loss(scene, step, step_generator(0, step))  # type: ignore[arg-type]
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        optim.step(step / model.config.steps)
        model.after_step(step, optim)
        losses.append(float(loss.detach()))
    return losses


def held_out_psnr(model: Nerfacto, scene: PaintedBall) -> float:
    result = evaluate(model, scene, background="white" if scene.info.bounded else None)  # type: ignore[arg-type]
    return float(result["mean"]["psnr"])


class TestLearning:
    def test_learns_a_ball(self, ball: Viewed) -> None:
        """Views that were held out, over white; the depth of the middle is where the ball is, and so is the density."""
        model = model_of(ball)
        losses = train(model, ball, range(250))
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

    def test_learns_a_ball_under_a_sky(self) -> None:
        sky = PaintedBall(bounded=False, views=80, side=24)
        model = model_of(sky, replace(SMALL, finest=64))
        losses = train(model, sky, range(250))
        psnr = held_out_psnr(model, sky)
        assert psnr > 18.0, f"held-out PSNR {psnr:.2f} dB, loss {losses[0]:.4f} -> {losses[-1]:.4f}"

    def test_ten_times_the_learning_rate_stays_finite(self, ball: Viewed) -> None:
        wild = replace(
            SMALL, table_lr=0.3, network_lr=0.1, pose_lr=5e-3, pose_delay=0, poses="se3", appearance=4, normals=True,
            depth=0.1,
        )  # fmt: skip
        model = model_of(ball, wild)
        losses = train(model, ball, range(150))
        assert all(math.isfinite(loss) for loss in losses)
        assert all(bool(t.isfinite().all()) for t in model.state_dict().values())
        image = model.render(ball.info.cameras[0])
        assert bool(image.rgb.isfinite().all())

    def test_depth_alone_finds_the_surface(self) -> None:
        """Colours of noise say nothing; measured depth still does."""
        scene = Viewed()
        scene._rgb = torch.rand(scene._rgb.shape, generator=torch.Generator().manual_seed(0))
        model = model_of(scene, replace(SMALL, steps=150, depth=0.1))
        train(model, scene, range(150))
        depth = model.render(scene.info.cameras[0]).depth[12:20, 12:20]
        assert float(depth.mean()) == pytest.approx(1.63, abs=0.1)

    def test_normals_point_outward(self, ball: Viewed) -> None:
        model = model_of(ball, replace(SMALL, normals=True))
        train(model, ball, range(250))
        image = model.render(ball.info.cameras[0])
        assert image.normal is not None
        camera, middle = ball.info.cameras[0], image.normal[13:19, 13:19].reshape(-1, 3)
        toward = torch.nn.functional.normalize(camera.center, dim=0)
        assert float((middle @ toward).mean()) > 0.8
        length = image.normal.norm(dim=-1)
        assert bool(((length - 1).abs() < 1e-4).logical_or(length == 0).all())

    def test_looks_where_the_proposals_see_nothing(self, ball: Viewed, monkeypatch: pytest.MonkeyPatch) -> None:
        """All weight in one interval: most samples go there, some everywhere, or a mistake could never be seen."""

        def spike(density: Tensor, edges: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(torch.tensor(5), density.shape[1]).float().expand(density.shape)

        monkeypatch.setattr("lightfold.methods.proposal_method.weights_from_density", spike)
        model = model_of(ball)
        rays = model.bound(ball.pixels(64, torch.Generator().manual_seed(0)).rays)[1]
        edges, _ = model.trace(rays, None, torch.Generator().manual_seed(1)).levels[-1]
        first = torch.tensor([5.0, 6.0]) / SMALL.proposal_samples[0]
        inside = (edges[:, 1:-1] > first[0]) & (edges[:, 1:-1] < first[1])
        assert 0.5 < float(inside.float().mean()) < 0.95
        assert float((edges[:, 1:] - edges[:, :-1]).max()) < 0.7


class TestRefinement:
    def test_recovers_disturbed_poses(self) -> None:
        scene = Viewed(degrees=2.0, shift=0.05)
        config = replace(SMALL, steps=400, poses="so3xr3", pose_delay=40, pose_lr=6e-3)
        model = model_of(scene, config)
        train(model, scene, range(400))
        true = [scene.true[i] for i in scene.info.train]
        given = [scene.info.cameras[i] for i in scene.info.train]
        found = [refined_cameras(model)[i] for i in scene.info.train]
        before, after = corrections(true, given), corrections(true, found)
        assert float(after[1].mean()) < 0.7 * float(before[1].mean()), (before[1].mean(), after[1].mean())
        held_out = scene.info.test[0]
        assert torch.equal(refined_cameras(model)[held_out].cam_from_world, scene.info.cameras[held_out].cam_from_world)
        assert "poses.tangent" in model.state_dict()

    def test_good_poses_stay_good(self, ball: Viewed) -> None:
        """A view has few rays in a batch, so its gradient is mostly noise; the default rate must not follow it."""
        config = replace(SMALL, steps=400, poses="so3xr3", pose_lr=NerfactoConfig().pose_lr, pose_delay=50)
        model = model_of(ball, config)
        train(model, ball, range(400))
        given = [ball.info.cameras[i] for i in ball.info.train]
        turned, moved = corrections(given, [refined_cameras(model)[i] for i in ball.info.train])
        assert 0 < float(turned.median()) < math.radians(0.15), math.degrees(float(turned.median()))
        assert float(moved.median()) < 0.005, float(moved.median())

    def test_detail_waits_for_the_poses(self, ball: Viewed) -> None:
        config = replace(SMALL, steps=40, levels=6, poses="so3xr3", pose_delay=5, coarse_until=0.5)
        model = model_of(ball, config)
        optim = Adam(model.groups())
        before = model.field.table.detach().clone()
        train(model, ball, range(10), optim)
        grid, open_now = model.field.grid, model.field.open
        assert open_now is not None and open_now[-1] == 0
        assert bool((open_now[: model.COARSE * grid.features] == 1).all())
        fine = grid.first_row[-2]
        assert torch.equal(model.field.table[fine:], before[fine:])
        train(model, ball, range(10, 40), optim)
        assert model.field.open is None and not torch.equal(model.field.table[fine:], before[fine:])

    def test_codes_absorb_the_exposure(self) -> None:
        scene = Viewed(exposure=0.3)
        with_codes = train(model_of(scene, replace(SMALL, appearance=4)), scene, range(200))
        without = train(model_of(scene), scene, range(200))
        assert sum(with_codes[-50:]) < 0.6 * sum(without[-50:])

    def test_evaluation_says_what_it_refined(self, ball: Viewed, tmp_path) -> None:
        """Plain by default; a held-out camera that is said to stand elsewhere scores better once it is refined."""
        model = model_of(ball, replace(SMALL, appearance=4))
        train(model, ball, range(150))
        camera = ball.info.cameras[0]
        pose = camera.cam_from_world.clone()
        pose[:, 3] += torch.tensor([0.06, -0.04, 0.0])
        wrong = replace(ball.view(0), camera=replace(camera, cam_from_world=pose))
        scene = SimpleNamespace(info=ball.info, view=lambda index: wrong)
        before = {name: t.clone() for name, t in model.state_dict().items()}
        plain_scores = evaluate(model, scene, [0], tmp_path)  # type: ignore[arg-type]
        refined = evaluate(model, scene, [0], tmp_path, refine="both")  # type: ignore[arg-type]
        assert plain_scores["protocol"]["refined"] == "none" and "refined_shift" not in plain_scores["views"][0]
        assert (
            "own pixels" in refined["protocol"]["refined"] and "pose and appearance" in refined["protocol"]["refined"]
        )
        assert refined["views"][0]["refined_shift"] > 0.01 and refined["views"][0]["refined_degrees"] > 0.1
        assert refined["mean"]["psnr"] > plain_scores["mean"]["psnr"] + 1
        assert (tmp_path / "eval_chosen.json").exists() and (tmp_path / "eval_chosen_refined.json").exists()
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        assert all(p.requires_grad for p in model.parameters())

    def test_what_cannot_be_refined(self, ball: Viewed) -> None:
        model = model_of(ball)
        assert isinstance(model, HasColours)
        with pytest.raises(ConfigError, match="without appearance codes"):
            view_fit(model, "appearance")
        with pytest.raises(ConfigError, match="nerfacto"):
            view_fit(torch.nn.Identity(), "poses")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="none, poses"):
            view_fit(model, "all")
        assert view_fit(model, "none") is None

    def test_colours_are_the_picture(self, ball: Viewed) -> None:
        model = model_of(ball, replace(SMALL, appearance=4))
        train(model, ball, range(20))
        camera, grey = ball.info.cameras[0], torch.full((3,), 0.5)
        rays = camera.rays(camera.pixel_grid(), ball.info.near_for(camera), ball.info.far)
        colours = model.colours(rays, None, grey).detach().reshape(32, 32, 3)
        torch.testing.assert_close(colours.clamp(0, 1), model.render(camera, grey).rgb, atol=1e-4, rtol=0)


class TestMethod:
    def test_table_presets_and_config(self, ball: Viewed) -> None:
        assert method_class("nerfacto") is Nerfacto
        assert {"", "fast", "big"} <= set(Nerfacto.PRESETS)
        for preset in Nerfacto.PRESETS.values():
            assert from_plain(NerfactoConfig, to_plain(preset), "model") == preset

    @pytest.mark.parametrize(
        "change",
        [
            {"features": 3}, {"poses": "on"}, {"depth_kind": "l2"}, {"samples": 1}, {"proposal_samples": (64, 1)},
            {"base": 8192}, {"depth": -1.0}, {"keep": math.nan},
        ],
    )  # fmt: skip
    def test_options_that_mean_nothing(self, change: dict) -> None:
        with pytest.raises(ConfigError, match=next(iter(change))):
            replace(NerfactoConfig(), **change)

    def test_groups_hold_every_parameter_once(self, ball: Viewed) -> None:
        model = model_of(ball, replace(SMALL, poses="se3", appearance=4, normals=True))
        held = [id(p) for group in model.groups() for p in group.params]
        assert sorted(held) == sorted(id(p) for p in model.parameters())

    def test_resumes_anywhere_in_a_block(self, ball: Viewed) -> None:
        config = replace(SMALL, steps=40, levels=6, poses="so3xr3", pose_delay=5, coarse_until=0.9, appearance=4)
        straight = model_of(ball, config)
        train(straight, ball, range(30))
        first = model_of(ball, config)
        optim = Adam(first.groups())
        train(first, ball, range(21), optim)
        second = model_of(ball, config, seed=5)
        second.load_state_dict({name: t.clone() for name, t in first.state_dict().items()})
        resumed = Adam(second.groups())
        resumed.load_state(optim.state())
        train(second, ball, range(21, 30), resumed)
        for name, t in straight.state_dict().items():
            assert torch.equal(t, second.state_dict()[name]), name

    def test_draws_from_no_other_generator(self, ball: Viewed) -> None:
        model, before = model_of(ball), torch.get_rng_state()
        train(model, ball, range(2))
        model.render(ball.info.cameras[0].resized(4, 4))
        torch.testing.assert_close(torch.get_rng_state(), before)

    def test_rays_that_miss_and_pictures_of_nothing(self, ball: Viewed) -> None:
        """A camera that looks away from the cube sees the background; so does one whose crop is elsewhere."""
        model, white = model_of(ball), torch.ones(3)
        away = camera_at(torch.tensor([3.0, 0.0, 0.0]), torch.tensor([9.0, 0.0, 0.0]), 8, 8)
        image = model.render(away, white)
        assert bool((image.rgb == 1).all()) and not bool(image.alpha.any()) and not bool(image.depth.any())
        crop = Box.of(torch.tensor([0.0, 0.0, 5.0]), torch.eye(3), torch.full((3,), 0.1))
        assert not bool(model.render(ball.info.cameras[0], white, crop=crop).alpha.any())

    def test_a_batch_that_misses_everything_trains_on(self, ball: Viewed) -> None:
        class Away(Viewed):
            def pixels(self, n: int, rng: torch.Generator, depth: bool = False) -> Pixels:
                pixels = super().pixels(n, rng, depth)
                return replace(pixels, rays=replace(pixels.rays, direction=-pixels.rays.direction))

        losses = train(model_of(ball), Away(), range(3))
        assert all(math.isfinite(loss) for loss in losses)


def test_gradients_through_rays(ball: Viewed) -> None:
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
