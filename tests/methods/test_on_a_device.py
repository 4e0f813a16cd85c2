"""Every method works elsewhere than on the CPU: nothing of the CPU meets what is there, and the results are the same.

The device is pretended (`elsewhere`), ops are their plain PyTorch versions, and scenes are tiny. What kernels of GPUs
do is tested in `test_ngp_on_gpu.py` and `tests/ops`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from elsewhere import DEVICE, Elsewhere, There
from painted_ball import PaintedBall
from three_scenes import KINDS, Wall
from torch import Tensor

from lightfold import devices, guard, ops
from lightfold.config import lookup
from lightfold.guard import Guard
from lightfold.methods import METHODS, base, method_class
from lightfold.methods.base import Method, Recordable, step_generator
from lightfold.ops import Loss, Picture
from lightfold.optim import Adam
from lightfold.rays import Box
from lightfold.refine import ViewFit, refine_view, refined_cameras
from lightfold.scene import Pixels

SMALL: dict[str, dict[str, Any]] = {
    "ngp": {  # `batch` and `samples` hold rays and steps at their least: what controls them differs on a GPU.
        "levels": 2, "features": 2, "log2_rows": 8, "base": 4, "finest": 16, "finest_bounded": 16, "width": 8,
        "geometry": 8, "batch": 64, "samples": 128, "step": 0.2, "step_bounded": 0.2, "grid": 16,
        "grid_bounded": 16, "cascades": 2, "probes": 40, "ramp": 0,
    },
    "nerf": {"rays": 16, "coarse_samples": 4, "fine_samples": 4, "width": 8, "depth": 2, "chunk": 20},
    "nerfacto": {
        "rays": 16, "proposal_samples": (6, 4), "samples": 4, "levels": 2, "log2_rows": 8, "base": 4, "finest": 16,
        "finest_bounded": 16, "width": 8, "geometry": 8, "proposal_levels": 2, "proposal_log2_rows": 6,
        "proposal_finest": (8, 16), "proposal_width": 8, "appearance": 2, "pose_delay": 0, "normals": True,
    },
    "zipnerf": {
        "rays": 16, "proposal_samples": (6, 4), "samples": 4, "levels": 2, "log2_rows": 8, "base": 4, "finest": 16,
        "finest_bounded": 16, "width": 8, "geometry": 8, "colour_width": 8, "proposal_levels": (2, 2),
        "proposal_log2_rows": 6, "proposal_finest": (8, 16), "proposal_width": 8, "appearance": 2, "annealed": 1,
    },
    "mipnerf360": {
        "rays": 16, "proposal_samples": (6,), "samples": 4, "proposal_width": 8, "proposal_depth": 1, "width": 8,
        "depth": 2, "bottleneck": 8, "view_width": 8, "directions": 3, "octaves": 4, "chunk": 20,
    },
    "neus": {
        "levels": 3, "features": 2, "log2_rows": 8, "base": 4, "finest": 16, "width": 8, "geometry": 4,
        "colour_width": 8, "batch": 256, "step": 0.1, "grid": 16, "beyond": 4,
    },
}  # fmt: skip
"""Options that make a method small enough for plain PyTorch; a method that is new is tested with its own."""


@pytest.fixture(scope="module", params=[True, False], ids=["bounded", "unbounded"])
def scene(request: pytest.FixtureRequest) -> PaintedBall:
    return PaintedBall(bounded=request.param, views=6, side=6)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    # The package's `composite` is the function, not its module.
    for module in (devices, sys.modules["lightfold.ops.composite"]):
        monkeypatch.setattr(module, "exact", lambda device: devices.CPU)
    # Numbers are drawn for each ray that is traced: the CPU, with which results are compared, traces all of them too.
    monkeypatch.setattr(Method, "fixed_sizes", True)
    with ops.use("reference"), Elsewhere() as mode:
        yield mode


@pytest.fixture
def gpu(elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    """The device is taken for one of those beside which the host works without waiting."""
    for module in (devices, guard):
        monkeypatch.setattr(module, "TRITON_DEVICES", (DEVICE.type,))
    monkeypatch.setattr("lightfold.methods.ngp.TRITON_DEVICES", (DEVICE.type,))

    # The generators of a device cannot be pretended; what comes from one is there without being sent.
    class Chance(torch.Generator):
        def __new__(cls, device: Any = None) -> Chance:
            made = super().__new__(cls)
            made.there = device is not None and torch.device(device).type == DEVICE.type
            return made

    def there(draw: Any) -> Any:
        def drawn(*shape: Any, generator: Any = None, **options: Any) -> Tensor:
            options.pop("device", None)
            made = draw(*shape, generator=generator, **options)
            return There(made) if getattr(generator, "there", False) else made

        return drawn

    monkeypatch.setattr(torch, "Generator", Chance)
    for draw in (torch.rand, torch.randn):
        monkeypatch.setattr(torch, draw.__name__, there(draw))
    return elsewhere


def made(name: str, scene: PaintedBall) -> Method:
    config = lookup(name)[1]
    torch.manual_seed(0)
    method = method_class(name)(replace(config, **SMALL.get(name, {})), scene.info)
    if isinstance(rays := method._buffers.get("rays"), Tensor):
        rays.fill_(16)
    return method


def trained(method: Method, scene: PaintedBall, steps: range) -> list[float]:
    optim, losses = Adam(method.groups()), []
    for step in steps:
        terms = method.loss(scene, step, step_generator(0, step))  # type: ignore[arg-type]
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        optim.step(0.1)
        method.after_step(step, optim)
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "neus" else []) for name in METHODS]
)
def test_a_device_gives_the_losses_pictures_and_answers_of_the_cpu(
    name: str, scene: PaintedBall, elsewhere: Elsewhere
) -> None:
    here, there = made(name, scene), made(name, scene).to(DEVICE)
    assert there.device == DEVICE and {p.device for p in there.parameters()} == {DEVICE}
    steps = range(15, 17)  # `ngp` refreshes its grid between the two.
    expected = trained(here, scene, steps)
    assert trained(there, scene, steps) == pytest.approx(expected, rel=1e-5)
    camera, crop = scene.info.cameras[0].resized(4, 4), Box(torch.eye(3, 4))
    for box in (None, crop):
        ours, theirs = there.render(camera, torch.ones(3), box), here.render(camera, torch.ones(3), box)
        assert ours.rgb.device == devices.CPU
        torch.testing.assert_close(ours.rgb, theirs.rgb, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.depth, theirs.depth, rtol=1e-3, atol=1e-4)
    points = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    for ability in ("density_at", "occupied_at", "sdf_at"):
        if hasattr(here, ability):
            answer: Tensor = getattr(there, ability)(points)
            assert answer.device == devices.CPU
            torch.testing.assert_close(answer, getattr(here, ability)(points), rtol=1e-4, atol=1e-5)


def test_poses_and_codes_of_a_device_come_back(elsewhere: Elsewhere) -> None:
    """What is refined there fits cameras here: for exports, and for one held-out photograph."""
    scene = PaintedBall(views=6, side=6)
    here, there = made("nerfacto", scene), made("nerfacto", scene).to(DEVICE)
    for method in (here, there):
        trained(method, scene, range(2))
    for ours, theirs in zip(refined_cameras(there), refined_cameras(here), strict=True):
        torch.testing.assert_close(ours.cam_from_world, theirs.cam_from_world)
    fit = ViewFit(steps=2, rays=8)
    camera, code = refine_view(there, scene.view(0), torch.ones(3), fit)
    wanted, wanted_code = refine_view(here, scene.view(0), torch.ones(3), fit)
    torch.testing.assert_close(camera.cam_from_world, wanted.cam_from_world, rtol=1e-4, atol=1e-5)
    assert code is not None and wanted_code is not None
    torch.testing.assert_close(code.cpu(), wanted_code, rtol=1e-4, atol=1e-5)


def test_a_step_of_ngp_waits_for_nothing(gpu: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks at the clock the host only sends: no number, no size and no picture comes from the device.

    The ops themselves are replaced by some that touch every tensor they get; their own kernels are tested elsewhere.
    """
    scene = PaintedBall(views=6, side=6)
    method = made("ngp", scene).to(DEVICE)
    optim = Adam(method.groups())
    scene.info = replace(scene.info, has_alpha=True)

    def train_rays(
        field: Any, tracing: Any, *rays: Tensor, table_gradient: Tensor, touched: Tensor, varying: Any, **_: Any
    ) -> Loss:
        loss = sum(t.float().mean() for t in (*rays, *field.tensors(), tracing.bits, touched, *varying))
        count = torch.full((), 400, device=DEVICE)
        return Loss(loss, loss.detach(), loss.detach(), Picture(rays[0], rays[1], rays[2], count, count))

    monkeypatch.setattr(ops, "train_rays", train_rays)
    monkeypatch.setattr(ops, "density_at", lambda field, points: points.sum(1) + field.table.sum())
    monkeypatch.setattr("lightfold.fields.grid_raise_", lambda *_: None)
    monkeypatch.setattr("lightfold.fields.grid_decay_", lambda *_: None)
    monkeypatch.setattr("lightfold.optim.ops.adam_", lambda value, gradient, *_, **__: value.sub_(gradient))
    gpu.waits.clear()
    for step in range(1, 40):
        (loss,) = method.loss(scene, step, step_generator(0, step)).values()  # type: ignore[arg-type]
        assert isinstance(method.stats["samples"], Tensor)
        loss.backward()
        optim.step(0.1)
        method.stats = dict.fromkeys(method.stats, 400.0)  # What the trainer makes of them.
        method.after_step(step, optim)
    assert gpu.waits == []


WAITLESS: list[tuple[str, dict[str, Any]]] = [
    ("nerf", {"density_noise": 1.0}),
    ("nerf", {"softplus_density": False}),
    ("nerfacto", {"poses": "se3", "coarse_until": 0.5, "depth": 0.1}),
    ("nerfacto", {"poses": "off", "normals": False, "appearance": 0, "depth": 0.1, "depth_kind": "sight"}),
    ("zipnerf", {"poses": "so3xr3", "pose_delay": 0, "proposal_every": 2}),
    ("zipnerf", {"colour_loss": "charbonnier", "appearance": 0}),
    ("mipnerf360", {"distortion": 0.01, "proposal_samples": (6, 6)}),
    ("mipnerf360", {"directions": 6, "colour_loss": "charbonnier"}),
]
"""Methods whose steps have fixed sizes on a device, and options that lead them different ways."""


class Missed:
    """One of three kinds of scene, a third of whose rays look away from it; some of the others come with a distance.
    Where poses stay as they are, another third has no direction."""

    def __init__(self, kind: str, poses: bool) -> None:
        self.poses = poses
        self.scene = Wall(kind) if kind == "forward-facing" else PaintedBall(kind == "bounded", views=6, side=6)
        self.info = self.scene.info

    def pixels(self, n: int, rng: torch.Generator, depth: bool = False) -> Pixels:
        pixels, third = self.scene.pixels(n, rng), (torch.arange(n) % 3)[:, None]
        rays = pixels.rays
        direction = torch.where(third == 1, -rays.direction, rays.direction)
        direction = direction if self.poses else direction.masked_fill(third == 2, torch.nan)
        measured = 2.0 * (torch.arange(n) % 2) if depth else None
        return replace(pixels, rays=replace(rays, direction=direction), depth=measured)


def configured(name: str, kind: str, options: dict[str, Any]) -> tuple[Method, Any]:
    """A method, whose field is not the same everywhere, and its scene."""
    config = replace(lookup(name)[1], **SMALL[name] | options)
    scene, rng = Missed(kind, getattr(config, "poses", "off") != "off"), torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    method = method_class(name)(config, scene.info)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(torch.empty_like(p).normal_(0.0, 0.02, generator=rng))
    return method, scene


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "options"), WAITLESS)
def test_a_step_waits_for_nothing(name: str, options: dict[str, Any], kind: str, gpu: Elsewhere) -> None:
    """The loss, the way back, what the guard and the optimiser do, and what comes after a step."""
    method, scene = configured(name, kind, options)
    method.to(DEVICE)
    optim, watch = Adam(method.groups()), Guard(DEVICE)
    assert isinstance(method, Recordable)
    optim.keep_rates(DEVICE)
    gpu.waits.clear()
    for step in (0, 1001, 1002):  # Proposals learn in the first alone.
        drawn = method.drawn(scene, step, step_generator(0, step))
        optim.advance(0.1)
        gpu.sends.clear()
        terms = method.loss_of(drawn)
        assert isinstance(method.stats["mse"], Tensor)
        watch.backward(torch.stack(list(terms.values())).sum())
        watch.clean(optim.groups)
        optim.move()
        # What is sent from the host would be the same each time that a recording is launched; constants may be.
        assert step == 0 or gpu.sends == []
        method.after_step(step, optim)
    assert gpu.waits == []
    assert all(bool(p.isfinite().all()) for p in method.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "options"), WAITLESS)
def test_what_counts_for_nothing_changes_nothing(
    name: str, options: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and gradients are those of a step that leaves out rays that miss and samples without weight, where both
    draw the same numbers."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, 0.3))
    monkeypatch.setattr(torch, "randn", lambda shape, **_: torch.full(shape, 0.3))
    if name in ("nerfacto", "zipnerf"):  # Some samples are left out.
        options = options | {"keep": 0.1 if kind == "bounded" else 0.2}
    found = []
    for fixed in (False, True):
        monkeypatch.setattr(Method, "fixed_sizes", fixed)
        method, scene = configured(name, kind, options)
        terms = method.loss(scene, 1000, step_generator(0, 1000))
        torch.stack(list(terms.values())).sum().backward()
        found.append(({key: term.detach() for key, term in terms.items()}, method))
    (terms, method), (others, other) = found
    torch.testing.assert_close(others, terms, rtol=1e-5, atol=1e-8)
    for ours, theirs in zip(other.parameters(), method.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None
        else:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6 * float(theirs.grad.abs().max()))


@pytest.mark.parametrize("name", METHODS)
def test_pictures_and_answers_know_their_device(name: str) -> None:
    """Each `render` and each answer has around it what `base.picture` and `base.asked` put there."""
    method = method_class(name)
    assert method.render.__wrapped__.__code__.co_filename != base.__file__  # type: ignore[attr-defined]
    assert method.render.__code__.co_filename == base.__file__
    for ability in ("density_at", "occupied_at", "sdf_at"):
        answer = getattr(method, ability, None)
        assert answer is None or answer.__code__.co_filename == base.__file__
