"""methods/ngp.py: scenes learnt in seconds, and the edges where a training could fall over."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from analytic_sphere import camera_at
from painted_ball import PaintedBall
from torch import Tensor

from lightfold.cameras import Camera, Lens
from lightfold.methods import method_class
from lightfold.methods.base import step_generator
from lightfold.methods.ngp import NGP, NGPConfig
from lightfold.optim import Adam

SMALL = NGPConfig(
    steps=400, levels=4, features=4, log2_rows=12, base=8, finest=128, finest_bounded=64, width=16, geometry=8,
    batch=3072, samples=16, step=0.03, grid=32, grid_bounded=32, cascades=4, probes=2000, table_lr=3e-2, ramp=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def ball() -> PaintedBall:
    return PaintedBall(bounded=True)


@pytest.fixture(scope="module")
def sky() -> PaintedBall:
    return PaintedBall(bounded=False, views=80, side=24)


def model_of(scene: PaintedBall, config: NGPConfig = SMALL, seed: int = 0) -> NGP:
    torch.manual_seed(seed)
    return NGP(config, scene.info)


def train(model: NGP, scene: PaintedBall, steps: range, seed: int = 0, optim: Adam | None = None) -> list[float]:
    optim, losses = optim or Adam(model.groups()), []
    for step in steps:
        (loss,) = model.loss(scene, step, step_generator(seed, step)).values()  # type: ignore[arg-type]
        loss.backward()
        optim.step(step / model.config.steps)
        model.after_step(step, optim)
        losses.append(float(loss.detach()))
    return losses


def held_out_psnr(model: NGP, scene: PaintedBall) -> float:
    errors = [(model.render(scene.info.cameras[i]).rgb - scene.truth(i)).square().mean() for i in scene.info.test]
    return -10 * math.log10(float(torch.stack(errors).mean()))


def panorama(side: int = 16) -> Camera:
    pose = camera_at(torch.tensor([0.5, -1.8, 0.2]), torch.zeros(3)).cam_from_world
    w, h = 2 * side, side
    intrinsics = torch.tensor([w / (2 * math.pi), h / math.pi, w / 2, h / 2])
    return Camera(pose, intrinsics, torch.zeros(0), w, h, Lens.EQUIRECTANGULAR)


class TestLearning:
    def test_learns_a_ball(self, ball: PaintedBall) -> None:
        """Views that were held out, over white; the depth of the middle is where the ball is."""
        model = model_of(ball)
        losses = train(model, ball, range(400))
        psnr = held_out_psnr(model, ball)
        assert psnr > 28.0, f"held-out PSNR {psnr:.2f} dB, loss {losses[0]:.4f} -> {losses[-1]:.4f}"
        image = model.render(ball.info.cameras[0])
        middle = image.depth[14:18, 14:18].mean()
        assert float(middle) == pytest.approx(1.6, abs=0.12)
        assert image.median_depth is not None
        assert float(image.median_depth[14:18, 14:18].mean()) == pytest.approx(1.6, abs=0.1)
        assert image.alpha[16, 16] > 0.99 and image.alpha[0, 0] < 0.02

    def test_learns_a_ball_under_a_sky(self, sky: PaintedBall) -> None:
        """Unbounded: the background is learnt too, at contracted distances."""
        model = model_of(sky, replace(SMALL, finest=64, distortion=0.0))
        losses = train(model, sky, range(400))
        errors = [(model.render(sky.info.cameras[i]).rgb - sky.view(i).rgb).square().mean() for i in sky.info.test]
        psnr = -10 * math.log10(float(torch.stack(errors).mean()))
        assert psnr > 20.0, f"held-out PSNR {psnr:.2f} dB, loss {losses[0]:.4f} -> {losses[-1]:.4f}"

    def test_the_number_of_threads_changes_no_bit(self, ball: PaintedBall) -> None:
        runs = []
        for threads in (1, 2, 3):
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            model = model_of(ball)
            losses = train(model, ball, range(20))
            torch.set_num_threads(before)
            runs.append((losses, model.state_dict()))
        for losses, state in runs[1:]:
            assert losses == runs[0][0]
            assert all(torch.equal(t, state[name]) for name, t in runs[0][1].items())

    def test_learns_on_after_its_gradients_were_thrown_away(self, ball: PaintedBall) -> None:
        model = model_of(ball)
        torch.optim.SGD(model.parameters(), 0.1).zero_grad(set_to_none=True)
        before = model.table.detach().clone()
        train(model, ball, range(2))
        assert not torch.equal(model.table, before)

    def test_another_seed_draws_other_batches(self, ball: PaintedBall) -> None:
        assert train(model_of(ball), ball, range(3), seed=0) != train(model_of(ball), ball, range(3), seed=1)

    def test_draws_from_no_other_generator(self, ball: PaintedBall) -> None:
        model, before = model_of(ball), torch.get_rng_state()
        train(model, ball, range(17))
        model.render(ball.info.cameras[0].resized(4, 4))
        torch.testing.assert_close(torch.get_rng_state(), before)

    def test_rendering_changes_nothing(self, ball: PaintedBall) -> None:
        model = model_of(ball)
        train(model, ball, range(5))
        before = {name: t.clone() for name, t in model.state_dict().items()}
        first = model.render(ball.info.cameras[0])
        assert torch.equal(first.rgb, model.render(ball.info.cameras[0]).rgb)
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


class TestMethod:
    def test_table_and_presets(self) -> None:
        assert method_class("ngp") is NGP
        assert {"", "fast", "big"} <= set(NGP.PRESETS)

    def test_groups_hold_every_parameter_once(self, ball: PaintedBall) -> None:
        model = model_of(ball)
        held = [id(p) for group in model.groups() for p in group.params]
        assert sorted(held) == sorted(id(p) for p in model.parameters())

    def test_resumes_anywhere_in_a_block(self, ball: PaintedBall) -> None:
        """From a state_dict and the moments alone, at a step that is no multiple of the block of drawn batches."""
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

    def test_the_batch_adapts(self, ball: PaintedBall) -> None:
        """Rays that meet little matter cost little, so that more of them fit."""
        model = model_of(ball)
        train(model, ball, range(150))
        assert 0.5 * SMALL.batch < model.stats["samples"] < 2 * SMALL.batch and model.stats["rays"] % 64 == 0
        model.occupancy.allowed.zero_()
        model.occupancy.bits.zero_()
        train(model, ball, range(150, 192))
        assert model.stats["rays"] > 4 * SMALL.batch / SMALL.samples

    def test_gradients_return_to_zero(self, ball: PaintedBall) -> None:
        """The table's gradient lives from step to step; a line that was not cleared would count twice."""
        model = model_of(ball)
        train(model, ball, range(3))
        assert model.table.grad is not None
        assert (model.table.grad == 0).all() and (model.touched == 0).all()


class TestEdges:
    @pytest.mark.parametrize("bounded", [True, False], ids=["bounded", "unbounded"])
    def test_an_empty_occupancy_grid_is_no_end(self, bounded: bool, ball: PaintedBall, sky: PaintedBall) -> None:
        """Not a single sample in a batch: the loss is finite, nothing learns, and the training goes on."""
        scene = ball if bounded else sky
        model = model_of(scene)
        model.occupancy.allowed.zero_()
        model.occupancy.bits.zero_()
        before = model.table.detach().clone()
        losses = train(model, scene, range(1, 34))
        assert all(math.isfinite(loss) and loss > 0 for loss in losses)
        assert model.stats["samples"] == 0 and torch.equal(model.table.detach(), before)
        colour = torch.tensor([0.1, 0.2, 0.3])
        image = model.render(scene.info.cameras[0], background=colour)
        torch.testing.assert_close(image.rgb, colour.expand_as(image.rgb))
        assert (image.alpha == 0).all() and (image.depth == 0).all()

    def test_it_recovers_from_an_empty_grid(self, ball: PaintedBall) -> None:
        """Random probes find the matter again, as long as the field has some."""
        model = model_of(ball)
        model.occupancy.bits.zero_()
        train(model, ball, range(1, 50))
        assert model.stats["samples"] > 0 and model.occupancy.fraction > 0

    @pytest.mark.parametrize("bounded", [True, False], ids=["bounded", "unbounded"])
    @pytest.mark.parametrize("kind", ["one pixel", "panorama", "orthographic", "float64", "inside", "far away"])
    def test_renders_any_camera(self, kind: str, bounded: bool, ball: PaintedBall, sky: PaintedBall) -> None:
        scene = ball if bounded else sky
        model = model_of(scene)
        eye = {"inside": [0.1, 0.2, 0.3], "far away": [50.0, 3.0, 2.0]}.get(kind, [1.8, 0.3, 0.2])
        camera = camera_at(torch.tensor(eye), torch.zeros(3), 9, 7)
        if kind == "one pixel":
            camera = camera.resized(1, 1)
        elif kind == "panorama":
            camera = panorama()
        elif kind == "orthographic":
            camera = replace(camera, lens=Lens.ORTHOGRAPHIC, intrinsics=torch.tensor([4.0, 4.0, 4.5, 3.5]))
        elif kind == "float64":
            camera = camera.to(torch.float64)
        image = model.render(camera)
        assert image.rgb.shape == (camera.height, camera.width, 3) and image.rgb.dtype == torch.float32
        for part in (image.rgb, image.alpha):
            assert part.isfinite().all() and part.min() >= 0 and part.max() <= 1
        assert image.depth.isfinite().all() and (image.depth >= 0).all()

    def test_background(self, ball: PaintedBall, sky: PaintedBall) -> None:
        """The scene's own, then the one that is asked for; black where the scene has none."""
        for scene, own in ((ball, 1.0), (sky, 0.0)):
            model = model_of(scene)
            model.occupancy.bits.zero_()
            assert (model.render(scene.info.cameras[0]).rgb == own).all()
            green = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
            assert (model.render(scene.info.cameras[0], background=green).rgb == green.float()).all()

    def test_depth_lies_between_near_and_far(self, ball: PaintedBall) -> None:
        model = model_of(ball)
        image = model.render(ball.info.cameras[1])
        seen: Tensor = image.depth[image.alpha > 1e-2]
        assert len(seen) > 0 and (seen >= ball.info.near).all() and (seen <= 2.6 + 3**0.5).all()

    def test_a_panorama_shows_the_ball_where_it_is(self, ball: PaintedBall) -> None:
        """In the middle of the picture, for a camera that looks at it; nothing behind the camera."""
        model = model_of(ball)
        train(model, ball, range(120))
        alpha = model.render(panorama(side=24)).alpha
        assert alpha[12, 24] > 0.9
        assert alpha[:, :6].max() < 0.1 and alpha[:, -6:].max() < 0.1


def test_the_batch_grows_over_the_ramp(ball: PaintedBall) -> None:
    model = model_of(ball, replace(SMALL, ramp=100))
    assert [model._batch(step) / SMALL.batch for step in (0, 50, 100, 1000)] == [0.25, 0.625, 1.0, 1.0]
