"""ops/triton/radiance.py: the field along rays, from the kernels of GPUs, against the reference and the native pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from gpu_checks import DEVICE, NEEDS_TRITON, kernels
from kernel_checks import assert_near
from test_radiance import CASES, GRID, SIZE, Case, expected_of, field_of, parameters, rays_of, target_of, tracing_of
from torch import Tensor

from lightfold.ops import Loss, Radiance, Tracing, density_at, render_rays, train_rays
from lightfold.ops.march import Varying, varying

pytestmark = NEEDS_TRITON


def moved(field: Radiance) -> Radiance:
    def leaf(t: Tensor) -> Tensor:
        return t.detach().to(DEVICE).requires_grad_()

    networks = {"density": tuple(map(leaf, field.density)), "colour": tuple(map(leaf, field.colour))}
    return replace(field, table=leaf(field.table), **networks)


def there(tracing: Tracing) -> Tracing:
    peak = None if tracing.peak is None else tracing.peak.to(DEVICE)
    return replace(tracing, bits=tracing.bits.to(DEVICE), peak=peak)


def batch(n: int, dtype: torch.dtype) -> list[Tensor]:
    return [t.to(DEVICE) for t in rays_of(n, dtype)]


def trained(case: Case, dtype: torch.dtype, **changes: Any) -> tuple[Loss, list[Tensor]]:
    field = moved(field_of(dtype, case.unbounded))
    with kernels():
        result = train_rays(
            field,
            there(tracing_of(case.kind, case.cascades, **changes)),
            *batch(case.rays, dtype),
            target_of(case.rays, dtype).to(DEVICE),
            seed=case.seed,
            huber=case.huber,
            distortion=case.distortion,
        )
    return result, [g.cpu() for g in torch.autograd.grad(3 * result.loss, parameters(field))]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "all at once" else pytest.mark.slow) for n in CASES])
def test_training_equals_the_composition(name: str) -> None:
    """Loss, picture and every gradient, in double; constants of a loss are passed in single precision."""
    case = CASES[name]
    result, gradients = trained(case, torch.float64)
    expected, expected_gradients = expected_of(case)
    assert_near(result.loss.detach().cpu(), expected.loss.detach(), "loss", 1e5)
    assert float(result.squared_error) == pytest.approx(expected.squared_error, rel=1e-7)
    assert float(result.distortion) == pytest.approx(expected.distortion, rel=1e-7) or not case.distortion
    assert_near(result.picture.rgb.cpu(), expected.picture.rgb, "rgb", 1e4)
    assert_near(result.picture.opacity.cpu(), expected.picture.opacity, "opacity", 1e4)
    assert int(result.picture.evaluated) == expected.picture.evaluated == int(result.picture.kept)
    for i, (a, b) in enumerate(zip(gradients, expected_gradients, strict=True)):
        assert float(b.abs().max()) > 0 or name == "a single ray"
        assert_near(a, b, f"gradient {i}", 1e5)


def test_training_equals_the_native_pass_where_samples_are_left_out() -> None:
    """Rays that stop and weights that are too small to count, in single precision."""
    case = Case(rays=30, kind="full", seed=3, huber=0.1, distortion=0.02)
    changes: dict[str, Any] = {"stop": 0.05, "keep": 0.02}
    ours, gradients = trained(case, torch.float32, **changes)
    field = field_of(torch.float32)
    native = train_rays(
        field, tracing_of("full", **changes), *rays_of(30, torch.float32), target_of(30, torch.float32), seed=3,
        huber=0.1, distortion=0.02,
    )  # fmt: skip
    expected = torch.autograd.grad(3 * native.loss, parameters(field))
    assert int(ours.picture.kept) == native.picture.kept < int(ours.picture.evaluated)
    assert_near(ours.loss.detach().cpu(), native.loss.detach(), "loss")
    for name in ("rgb", "opacity", "depth"):
        assert_near(getattr(ours.picture, name).cpu(), getattr(native.picture, name), name)
    for i, (a, b) in enumerate(zip(gradients, expected, strict=True)):
        assert_near(a, b, f"gradient {i}", 10)


def test_gradient_in_place() -> None:
    field, other = moved(field_of(torch.float32)), moved(field_of(torch.float32))
    args = (there(tracing_of()), *batch(6, torch.float32), target_of(6, torch.float32).to(DEVICE))
    into = torch.zeros_like(field.table).detach()
    touched = torch.zeros((into.numel() + 15) // 16, dtype=torch.uint8, device=DEVICE)
    with kernels():
        train_rays(field, *args, seed=1).loss.backward()
        loss = train_rays(other, *args, seed=1, table_gradient=into, touched=touched).loss
    (2 * loss).backward(retain_graph=True)
    assert other.table.grad is None and field.table.grad is not None
    assert_near(into, 2 * field.table.grad, "table")
    flat = torch.nn.functional.pad(into.reshape(-1), (0, -into.numel() % 16))
    assert (touched[flat.reshape(-1, 16).ne(0).any(dim=1)] == 1).all()
    with pytest.raises(RuntimeError, match="twice"):
        loss.backward()


def test_step_lengths_and_seed_are_read_on_the_device() -> None:
    """Bit for bit as from the host, and whatever the host says."""
    field, rays, target = moved(field_of(torch.float32, True)), batch(20, torch.float32), target_of(20, torch.float32)
    from_host, said = there(tracing_of(cascades=2, step=0.11, cone=0.04)), there(tracing_of(cascades=2))
    numbers = Varying(*(t.to(DEVICE) for t in varying(0.11, 0.04, 2**61 + 5)))
    with kernels():
        expected = train_rays(field, from_host, *rays, target.to(DEVICE), seed=2**61 + 5)
        ours = train_rays(field, said, *rays, target.to(DEVICE), seed=1, varying=numbers)
    assert torch.equal(ours.loss, expected.loss) and torch.equal(ours.picture.rgb, expected.picture.rgb)
    assert int(ours.picture.evaluated) == int(expected.picture.evaluated) > 20
    if DEVICE.type == "cpu":
        with pytest.raises(ValueError, match="varying: expected None, as native kernels"):
            train_rays(field, said, *rays, target, seed=1, varying=numbers)


def test_rays_beyond_the_room_get_no_samples() -> None:
    """The first rays are as if there were no others; the last show their background, and teach nothing."""
    field, rays, target = moved(field_of(torch.float32)), batch(12, torch.float32), target_of(12, torch.float32)
    target, tracing = target.to(DEVICE), there(tracing_of("full", peak=torch.zeros(SIZE**3)))
    with kernels():
        whole = train_rays(field, tracing, *rays, target, seed=1)
        half = train_rays(field, tracing, *(t[:6] for t in rays), target[:6], seed=1)
        room = int(half.picture.evaluated) + 3
        ours = train_rays(field, replace(tracing, room=room), *rays, target, seed=1)
        roomy = train_rays(field, replace(tracing, room=10**9), *rays, target, seed=1)
    assert 0 < int(half.picture.evaluated) == int(ours.picture.evaluated) < int(whole.picture.evaluated)
    assert torch.equal(ours.picture.rgb[:6], half.picture.rgb) and torch.equal(ours.picture.rgb[6:], rays[4][6:])
    assert_near(roomy.loss.detach().cpu(), whole.loss.detach().cpu(), "loss")
    gradients = torch.autograd.grad(12 * ours.loss, parameters(field))
    expected = torch.autograd.grad(6 * half.loss, parameters(field))
    for i, (a, b) in enumerate(zip(gradients, expected, strict=True)):
        assert_near(a.cpu(), b.cpu(), f"gradient {i}", 10)


@pytest.mark.parametrize("unbounded", [pytest.param(False, marks=pytest.mark.slow), True], ids=["bounded", "unbounded"])
def test_pictures_equal_the_native_ones(unbounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightfold.ops.triton import radiance as here

    monkeypatch.setattr(here, "RAYS_AT_ONCE", 25)  # So that a picture is marched in parts.
    tracing = tracing_of(cascades=3 if unbounded else 1)
    native = render_rays(field_of(torch.float32, unbounded), tracing, *rays_of(40, torch.float32), seed=5)
    with kernels():
        ours = render_rays(moved(field_of(torch.float32, unbounded)), there(tracing), *batch(40, torch.float32), seed=5)
    for name in ("rgb", "opacity", "depth", "median"):
        assert_near(getattr(ours, name).cpu(), getattr(native, name), name, 3)
    assert (int(ours.evaluated), int(ours.kept)) == (native.evaluated, native.kept)
    assert not ours.rgb.requires_grad


def test_peaks_equal_the_native_ones() -> None:
    tracing = tracing_of(peak=torch.full((SIZE**3,), 0.7))
    render_rays(field_of(torch.float32), tracing, *rays_of(20, torch.float32))
    ours = there(tracing_of(peak=torch.full((SIZE**3,), 0.7)))
    with kernels():
        render_rays(moved(field_of(torch.float32)), ours, *batch(20, torch.float32))
    assert tracing.peak is not None and ours.peak is not None and int((tracing.peak > 0.7).sum()) > 20
    torch.testing.assert_close(ours.peak.cpu(), tracing.peak, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [0, 63], ids="n{}".format)
def test_density(n: int) -> None:
    points = 3 * torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    expected = density_at(field_of(torch.float32, True), points)
    with kernels():
        assert_near(density_at(moved(field_of(torch.float32, True)), points.to(DEVICE)).cpu(), expected, "density", 3)


def test_an_empty_grid_and_no_rays_teach_nothing() -> None:
    for kind, n in (("empty", 20), ("full", 0)):
        result, gradients = trained(Case(rays=n, kind=kind, seed=1, distortion=0.1), torch.float32)
        assert int(result.picture.evaluated) == int(result.picture.kept) == 0
        assert result.loss.isfinite() and all((g == 0).all() for g in gradients)


def test_half_precision_is_near() -> None:
    """Inside autocast: operands and table in half precision, everything else as before."""
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        result, gradients = trained(Case(rays=20), torch.float32)
    expected, expected_gradients = expected_of(Case(rays=20))
    assert result.loss.dtype == torch.float32
    assert float(result.loss.detach()) == pytest.approx(float(expected.loss.detach()), rel=0.05)
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert a.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(a.double().reshape(-1), b.reshape(-1), dim=0) > 0.98


def test_networks_that_are_too_large_are_refused() -> None:
    field = field_of(torch.float32)
    wide = (torch.zeros(256, GRID.width), torch.zeros(8, 256))
    with kernels(), pytest.raises(ValueError, match="density: expected layers of at most 128"):
        density_at(moved(replace(field, density=wide)), torch.zeros(3, 3, device=DEVICE))
