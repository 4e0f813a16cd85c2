"""ops/radiance.py: the fused field against the same maths put together from its parts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from kernel_checks import DTYPES, assert_near, fate, threads
from torch import Tensor

from lightfold import losses, ops
from lightfold.ops import HashGrid, Loss, Radiance, Tracing, density_at, hash_encode, mlp, render_rays, train_rays
from lightfold.ops.march import cell_of, march, pack_bits
from lightfold.ops.radiance import _distortion, to_unit

GRID = HashGrid(levels=3, features=2, log2_rows=8, base=4, finest=16)
SIZE = 16
NEAR, FAR = 0.1, 6.0


def field_of(
    dtype: torch.dtype = torch.float64, unbounded: bool = False, grid: HashGrid = GRID, seed: int = 0
) -> Radiance:
    """A field whose densities vary between fog and stone; all of it wants gradients."""
    generator = torch.Generator().manual_seed(seed)

    def layer(outputs: int, inputs: int, gain: float = 1.5) -> Tensor:
        # Through float32, so that both types hold the same numbers.
        values = torch.randn(outputs, inputs, generator=generator) * gain * inputs**-0.5
        return values.to(dtype).requires_grad_()

    table = torch.randn(grid.rows, grid.features, generator=generator).to(dtype).requires_grad_()
    density = (layer(16, grid.width), layer(8, 16))
    return Radiance(grid, table, density, (layer(16, 24), layer(16, 16), layer(3, 16)), unbounded, 0.5)


def parameters(field: Radiance) -> list[Tensor]:
    return [field.table, *field.density, *field.colour]


def tracing_of(kind: str = "random", cascades: int = 1, **changes: Any) -> Tracing:
    """Exact: no sample is left out for its small weight."""
    words = cascades * SIZE**3 // 64
    if kind == "random":
        bits = pack_bits(torch.rand(words * 64, generator=torch.Generator().manual_seed(1)) < 0.4)
    else:
        bits = torch.full((words,), -1 if kind == "full" else 0, dtype=torch.int64)
    return replace(Tracing(bits, cascades, SIZE, 0.08, 0.02, 20, stop=0.0, keep=0.0), **changes)


def rays_of(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Origins around the cube, aimed at points in it, with backgrounds; every ninth ray misses."""
    generator = torch.Generator().manual_seed(2)
    origin = torch.randn(n, 3, generator=generator)
    origin = 2.0 * origin / origin.norm(dim=1, keepdim=True)
    direction = 0.8 * (torch.rand(n, 3, generator=generator) * 2 - 1) - origin
    direction[::9] = origin[::9]
    direction = direction / direction.norm(dim=1, keepdim=True)
    background = torch.rand(n, 3, generator=generator)
    values = (origin, direction, torch.full((n,), NEAR), torch.full((n,), FAR), background)
    return tuple(t.to(dtype) for t in values)  # type: ignore[return-value]


def target_of(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(3)).to(dtype)


@dataclass(frozen=True)
class Case:
    """What a comparison of the fused and the composed path runs on."""

    rays: int = 40
    unbounded: bool = False
    kind: str = "random"
    cascades: int = 1
    seed: int = 0
    huber: float = 0.0
    distortion: float = 0.0

    def train(self, dtype: torch.dtype = torch.float64) -> tuple[Loss, list[Tensor]]:
        """Loss and the gradients of 3 times that loss."""
        field = field_of(dtype, self.unbounded)
        result = train_rays(
            field,
            tracing_of(self.kind, self.cascades),
            *rays_of(self.rays, dtype),
            target_of(self.rays, dtype),
            seed=self.seed,
            huber=self.huber,
            distortion=self.distortion,
        )
        gradients = torch.autograd.grad(3 * result.loss, parameters(field), allow_unused=True)
        return result, [
            torch.zeros_like(p) if g is None else g for p, g in zip(parameters(field), gradients, strict=True)
        ]


CASES = {
    "bounded": Case(),
    "a single ray": Case(rays=2),
    "unbounded": Case(unbounded=True, cascades=3),
    "jittered": Case(seed=2**61 + 5),
    "huber": Case(huber=0.05),
    "huber beyond every error": Case(huber=10.0),
    "distortion": Case(distortion=0.1),
    "all at once": Case(rays=33, unbounded=True, kind="full", cascades=2, seed=9, huber=0.1, distortion=0.02),
}
FULL = Case(rays=40, kind="full")


@cache
def expected_of(case: Case) -> tuple[Loss, list[Tensor]]:
    with ops.use("reference"):
        return case.train()


@pytest.mark.usefixtures("isa")
class TestTraining:
    @pytest.mark.parametrize("name", CASES)
    def test_equals_the_composition(self, name: str) -> None:
        """Loss, picture and every gradient, in double precision."""
        case = CASES[name]
        result, gradients = case.train()
        expected, expected_gradients = expected_of(case)
        assert_near(result.loss.detach(), expected.loss.detach(), "loss", 10)
        assert result.squared_error == pytest.approx(expected.squared_error, rel=1e-11)
        assert result.distortion == pytest.approx(expected.distortion, rel=1e-11) or not case.distortion
        assert_near(result.picture.rgb, expected.picture.rgb, "rgb", 10)
        assert_near(result.picture.opacity, expected.picture.opacity, "opacity", 10)
        if not case.distortion:  # Then the reference keeps the distortion there.
            assert_near(result.picture.depth, expected.picture.depth, "depth", 10)
        assert result.picture.evaluated == expected.picture.evaluated == result.picture.kept
        for i, (a, b) in enumerate(zip(gradients, expected_gradients, strict=True)):
            assert float(b.abs().max()) > 0 or name == "a single ray"
            assert_near(a, b, f"gradient {i}", 100)

    def test_single_precision(self) -> None:
        result, gradients = FULL.train(torch.float32)
        expected, expected_gradients = expected_of(FULL)
        assert_near(result.loss.detach(), expected.loss.detach(), "loss")
        assert_near(result.picture.rgb, expected.picture.rgb, "rgb")
        for i, (a, b) in enumerate(zip(gradients, expected_gradients, strict=True)):
            assert_near(a, b, f"gradient {i}", 10)

    @DTYPES
    def test_gradient_in_place_equals_the_returned_one(self, dtype: torch.dtype) -> None:
        for layout, features in (("line", 2), ("line", 8), ("xor", 4)):
            grid = replace(GRID, layout=layout, features=features, log2_rows=12, finest=64)
            args = (tracing_of(), *rays_of(6, dtype), target_of(6, dtype))
            field = field_of(dtype, grid=grid)
            train_rays(field, *args, seed=1).loss.backward()
            other = field_of(dtype, grid=grid)
            into = torch.zeros_like(other.table).detach()
            touched = torch.zeros((into.numel() + 15) // 16, dtype=torch.uint8)
            for _ in range(2):  # It is added to what is there.
                train_rays(other, *args, seed=1, table_gradient=into, touched=touched).loss.backward()
            assert other.table.grad is None and field.table.grad is not None
            assert_near(into, 2 * field.table.grad, "table", 10)
            for a, b in zip(parameters(field)[1:], parameters(other)[1:], strict=True):
                assert a.grad is not None and b.grad is not None and torch.equal(2 * a.grad, b.grad)
            flat = torch.nn.functional.pad(field.table.grad.reshape(-1), (0, -into.numel() % 16))
            written = flat.reshape(-1, 16).ne(0).any(dim=1)
            assert written.any() and not written.all()
            assert (touched[written] == 1).all()
            assert float(touched.float().mean()) < 1.0

    @DTYPES
    def test_the_number_of_threads_changes_no_bit(self, dtype: torch.dtype) -> None:
        results: list[Any] = []
        for count in (1, 2, 3):
            field = field_of(dtype)
            peak = torch.zeros(SIZE**3)
            with threads(count):
                tracing = tracing_of(peak=peak, stop=1e-4, keep=1e-3)
                result = train_rays(
                    field, tracing, *rays_of(300, dtype), target_of(300, dtype), seed=4, distortion=0.01
                )
                result.loss.backward()
            counts = torch.tensor([result.squared_error, result.distortion, *result.picture[3:5]], dtype=torch.float64)
            results.append([result.loss, *result.picture[:3], counts, peak, *(p.grad for p in parameters(field))])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))

    @DTYPES
    def test_small_weights_may_be_left_out(self, dtype: torch.dtype) -> None:
        """The picture moves by no more than the weights that were left out; the gradient keeps its direction."""
        rays, target = rays_of(100, dtype), target_of(100, dtype)
        exact, short = field_of(dtype), field_of(dtype)
        a = train_rays(exact, tracing_of("full"), *rays, target, seed=1)
        b = train_rays(short, tracing_of("full", keep=2e-3, stop=1e-3), *rays, target, seed=1)
        assert b.picture.kept < b.picture.evaluated < a.picture.evaluated
        assert float((a.picture.rgb - b.picture.rgb).abs().max()) < 20 * 2e-3 + 1e-3
        assert float(b.loss.detach()) == pytest.approx(float(a.loss.detach()), rel=0.02)
        a.loss.backward()
        b.loss.backward()
        for p, q in zip(parameters(exact), parameters(short), strict=True):
            assert p.grad is not None and q.grad is not None
            assert torch.nn.functional.cosine_similarity(p.grad.reshape(-1), q.grad.reshape(-1), dim=0) > 0.995

    @DTYPES
    def test_an_empty_grid_shows_the_background_and_teaches_nothing(self, dtype: torch.dtype) -> None:
        field, rays, target = field_of(dtype), rays_of(50, dtype), target_of(50, dtype)
        result = train_rays(field, tracing_of("empty"), *rays, target, seed=1, distortion=0.1)
        assert torch.equal(result.picture.rgb, rays[4])
        assert (result.picture.opacity == 0).all() and (result.picture.depth == 0).all()
        assert (result.picture.evaluated, result.picture.kept, result.distortion) == (0, 0, 0.0)
        assert_near(result.loss.detach(), (rays[4] - target).square().mean())
        result.loss.backward()
        assert all(p.grad is not None and (p.grad == 0).all() for p in parameters(field))

    @DTYPES
    def test_no_rays(self, dtype: torch.dtype) -> None:
        field = field_of(dtype)
        result = train_rays(field, tracing_of("full"), *rays_of(0, dtype), target_of(0, dtype), seed=1, distortion=0.1)
        assert float(result.loss.detach()) == 0.0 and result.picture.rgb.shape == (0, 3)
        result.loss.backward()
        assert all(p.grad is not None and (p.grad == 0).all() for p in parameters(field))

    def test_an_opaque_field_stays_finite(self) -> None:
        """Densities near the largest float: one sample takes all, and the gradient is held as trunc_exp holds it."""
        for dtype in (torch.float32, torch.float64):
            field = replace(field_of(dtype), shift=80.0)
            result = train_rays(
                field, tracing_of("full"), *rays_of(40, dtype), target_of(40, dtype), seed=1, distortion=0.1
            )
            result.loss.backward()
            assert result.loss.isfinite() and result.picture.rgb.isfinite().all()
            hit = result.picture.opacity > 0
            assert hit.any() and (result.picture.opacity[hit] == 1).all()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters(field))

    def test_distortion_is_that_of_the_losses(self) -> None:
        """On s = t / (1 + t), where every step is occupied; the middles differ by a second-order term only."""
        n = 30
        field, rays, tracing = field_of(), rays_of(n), tracing_of("full", step=0.02, cone=0.0, most=200)
        with torch.no_grad():
            result = train_rays(field, tracing, *rays, target_of(n), seed=0, distortion=1.0)
            t0, dt, count = march(*rays[:4], tracing.bits, 1, SIZE, step=0.02, cone=0.0, most=200)
            total = 0.0
            for r in range(n):
                m = int(count[r])
                if m == 0:
                    continue
                middle = (t0 + 0.5 * dt)[r, :m, None]
                sigma = density_at(field, rays[0][r] + middle * rays[1][r])
                weight = ops.composite(
                    sigma, torch.zeros(m, 3).double(), t0[r, :m], (t0 + dt)[r, :m], torch.tensor([0, m])
                ).weight
                edges = torch.cat([t0[r, :m], (t0 + dt)[r, m - 1 : m]])
                total += float(losses.distortion((edges / (1 + edges))[None], weight[None]))
        assert result.distortion == pytest.approx(total / n, rel=1e-3)

    def test_backward_works_once(self) -> None:
        field = field_of()
        loss = train_rays(field, tracing_of(), *rays_of(4), target_of(4), seed=1).loss
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="twice"):
            loss.backward()

    def test_two_batches_may_be_under_way_at_once(self) -> None:
        """Their buffers are borrowed; neither may take the other's."""
        args: list[Any] = [
            (tracing_of(), *(t[i::2].contiguous() for t in rays_of(64)), target_of(64)[i::2].contiguous())
            for i in (0, 1)
        ]
        apart = field_of()
        for a in args:
            train_rays(apart, *a, seed=1).loss.backward()
        together = field_of()
        first, second = (train_rays(together, *a, seed=1).loss for a in args)
        (first + second).backward()
        for p, q in zip(parameters(apart), parameters(together), strict=True):
            assert p.grad is not None and q.grad is not None
            assert_near(q.grad, p.grad, "sum", 10)


@pytest.mark.usefixtures("isa")
class TestRendering:
    @pytest.mark.parametrize("unbounded", [False, True], ids=["bounded", "unbounded"])
    def test_equals_the_composition(self, unbounded: bool) -> None:
        field, tracing = field_of(unbounded=unbounded), tracing_of(cascades=3 if unbounded else 1)
        picture = render_rays(field, tracing, *rays_of(40))
        with ops.use("reference"):
            expected = render_rays(field, tracing, *rays_of(40))
        for name in ("rgb", "opacity", "depth", "median"):
            assert_near(getattr(picture, name), getattr(expected, name), name, 10)
        assert not picture.rgb.requires_grad

    def test_reference_renders_without_gradients(self) -> None:
        with ops.use("reference"):
            picture = render_rays(field_of(), tracing_of(), *rays_of(3))
        assert_near(picture.rgb, render_rays(field_of(), tracing_of(), *rays_of(3)).rgb, "rgb", 10)
        assert not picture.rgb.requires_grad

    @DTYPES
    def test_of_its_parts(self, dtype: torch.dtype) -> None:
        """The same picture from the public ops one by one, thousands of samples of them."""
        n, field, rays = 200, field_of(dtype), rays_of(200, dtype)
        options: dict[str, Any] = {"step": 0.03, "cone": 0.0, "most": 60}
        tracing = tracing_of("random", **options)
        with torch.no_grad():
            t0, dt, count = march(*rays[:4], tracing.bits, 1, SIZE, **options)
            live = torch.arange(60) < count[:, None]
            ray = torch.arange(n)[:, None].expand_as(live)[live]
            t0, dt = t0[live], dt[live]
            points = rays[0][ray] + (t0 + 0.5 * dt)[:, None] * rays[1][ray]
            geometry = mlp(hash_encode(to_unit(points, False), field.table, GRID), field.density)
            inputs = torch.cat([geometry, ops.spherical_harmonics(rays[1])[ray]], dim=1)
            rgb = torch.sigmoid(mlp(inputs, field.colour))
            offset = torch.cat([torch.zeros(1, dtype=torch.int64), count.long().cumsum(0)])
            sigma = torch.exp(geometry[:, 0] + field.shift)
            out = ops.composite(sigma, rgb, t0, t0 + dt, offset)
        picture = render_rays(field, tracing, *rays)
        assert picture.evaluated == len(ray) > 1500
        assert_near(picture.rgb, out.colour + (1 - out.opacity)[:, None] * rays[4], "rgb", 10)
        assert_near(picture.depth, out.depth, "depth", 10)
        assert_near(picture.median, ops.distance_at(0.5 * out.opacity, out.weight, t0, t0 + dt, offset), "median", 10)
        between = (picture.median > NEAR) & (picture.median < FAR)
        assert bool((between == (picture.opacity > 0)).all()) and 0 < int(between.sum()) < n
        assert_near(density_at(field, points), sigma, "density", 20)

    def test_no_rays_and_one_ray(self) -> None:
        assert render_rays(field_of(), tracing_of(), *rays_of(0)).rgb.shape == (0, 3)
        several = render_rays(field_of(), tracing_of(), *rays_of(40))
        seventh: list[Any] = [t[7:8].contiguous() for t in rays_of(40)]
        alone = render_rays(field_of(), tracing_of(), *seventh)
        assert_near(alone.rgb, several.rgb[7:8], "rgb")

    @DTYPES
    def test_peaks_are_the_densest_samples_of_their_cells(self, dtype: torch.dtype) -> None:
        n, field, rays = 100, field_of(dtype), rays_of(100, dtype)
        peak = torch.full((SIZE**3,), 0.7)
        render_rays(field, tracing_of("random", peak=peak), *rays)
        t0, dt, count = march(*rays[:4], tracing_of().bits, 1, SIZE, step=0.08, cone=0.02, most=20)
        live = torch.arange(20) < count[:, None]
        ray = torch.arange(n)[:, None].expand_as(live)[live]
        points = rays[0][ray] + (t0 + 0.5 * dt)[live][:, None] * rays[1][ray]
        expected = torch.full((SIZE**3,), 0.7)
        density = density_at(field, points.contiguous()).float()
        expected.scatter_reduce_(0, cell_of(points, 1, SIZE), density, "amax")
        assert (expected > 0.7).sum() > 50
        torch.testing.assert_close(peak, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("isa")
class TestDensity:
    @DTYPES
    @pytest.mark.parametrize("unbounded", [False, True], ids=["bounded", "unbounded"])
    @pytest.mark.parametrize("n", [0, 1, 63, 1000], ids="n{}".format)
    def test_equals_the_reference(self, dtype: torch.dtype, unbounded: bool, n: int) -> None:
        points = 3 * torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
        with ops.use("reference"):
            expected = density_at(field_of(unbounded=unbounded), points.double())
        assert_near(density_at(field_of(dtype, unbounded), points.to(dtype)), expected, "density", 3)

    @DTYPES
    def test_space_is_contracted_into_the_grid(self, dtype: torch.dtype) -> None:
        points = torch.tensor([[0.5, -1, 1], [2, 0, 0], [0, -4, 2], [1e6, 1e6, -1e6]], dtype=dtype)
        expected = torch.tensor(
            [[0.625, 0.25, 0.75], [0.875, 0.5, 0.5], [0.5, 0.0625, 0.71875], [1.0, 1.0, 0.0]], dtype=dtype
        )
        torch.testing.assert_close(to_unit(points, True), expected, rtol=0, atol=1e-6)
        bounded = torch.tensor([[0.75, 0, 1], [1, 0.5, 0.5], [0.5, 0, 1], [1, 1, 0]], dtype=dtype)
        torch.testing.assert_close(to_unit(points, False), bounded)


def test_distortion_check_vector() -> None:
    """Edges 0, 1/4, 1/2, 1 and weights .2, .5, .3, in the limit of small distances, where s = t."""
    edges = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64) * 1e-8
    weight = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    assert float(_distortion(weight, edges[:-1], edges.diff())) / 1e-8 == pytest.approx(0.2766667, rel=1e-6)


class TestHostile:
    def test_density_anywhere(self) -> None:
        fates = {}
        for place in (math.nan, math.inf, 1e38):
            for unbounded in (False, True):
                points = torch.tensor([[place, 0.0, 0.0], [place] * 3, [0.0, -place, 0.1]])
                field = field_of(torch.float32, unbounded)
                fates[place, unbounded] = fate(partial(density_at, field, points))
        assert set(fates.values()) == {"done"}, fates

    @pytest.mark.parametrize("which", [0, 1], ids=["origin", "direction"])
    def test_rays_that_are_not_numbers_see_nothing(self, which: int) -> None:
        """Pixels beyond the rim of a fisheye's disc have no direction."""
        lost = torch.arange(40) % 3 == 0

        def render(unbounded: bool, components: int) -> None:
            rays: list[Any] = [t.clone() for t in rays_of(40, torch.float32)]
            rays[which][lost, :components] = math.nan
            picture = render_rays(field_of(torch.float32, unbounded), tracing_of("full"), *rays)
            assert all(part.isfinite().all() for part in picture[:3])
            assert (picture.opacity[lost] == 0).all() and torch.equal(picture.rgb[lost], rays[4][lost])

        fates = {
            (unbounded, components): fate(partial(render, unbounded, components))
            for unbounded in (False, True)
            for components in (1, 3)
        }
        assert set(fates.values()) == {"done"}, fates

    @pytest.mark.parametrize("name", ["target", "table_gradient", "touched"])
    def test_arguments_of_a_training(self, name: str) -> None:
        """Each of them would be read, or written, past its end."""
        field = field_of(torch.float32)
        values: dict[str, Any] = {
            "target": target_of(8, torch.float32),
            "table_gradient": torch.zeros(GRID.rows, 2),
            "touched": torch.zeros(GRID.rows * 2 // 16, dtype=torch.uint8),
        }
        values[name] = values[name][:3]

        def train() -> None:
            train_rays(field, tracing_of(), *rays_of(8, torch.float32), **values, seed=1).loss.backward()

        assert f"ValueError: {name}: expected" in fate(train)

    @pytest.mark.parametrize("name", ["type", "strides"])
    def test_target_of_another_kind(self, name: str) -> None:
        target = target_of(8) if name == "type" else target_of(8, torch.float32).t().contiguous().t()
        args = (field_of(torch.float32), tracing_of(), *rays_of(8, torch.float32), target)
        assert "ValueError: t" in fate(lambda: train_rays(*args, seed=1))

    @pytest.mark.parametrize("change", [{"step": 0.0}, {"cone": -1.0}, {"most": 0}, {"step": math.nan}], ids=str)
    def test_tracing(self, change: dict[str, Any]) -> None:
        def render() -> None:
            render_rays(field_of(), tracing_of("empty", **change), *rays_of(8))

        assert f"ValueError: {next(iter(change))}" in fate(render)

    @pytest.mark.parametrize("change", [{"huber": -1.0}, {"huber": math.nan}, {"distortion": math.inf}], ids=str)
    def test_weights_of_a_loss(self, change: dict[str, float]) -> None:
        args = (field_of(), tracing_of(), *rays_of(8), target_of(8))
        with pytest.raises(ValueError, match=f"{next(iter(change))}: expected a finite number"):
            train_rays(*args, seed=1, **change)

    def test_no_rays_at_all(self) -> None:
        """Both ways agree that nothing is lost."""
        args = (field_of(), tracing_of(), *rays_of(0), target_of(0))
        fast = train_rays(*args, seed=1, distortion=0.1)
        with ops.use("reference"):
            slow = train_rays(*args, seed=1, distortion=0.1)
        assert fast.loss.item() == slow.loss.item() == 0.0

    def test_peak_of_another_size(self) -> None:
        def render() -> None:
            render_rays(field_of(), tracing_of("full", peak=torch.zeros(7)), *rays_of(8))

        assert "ValueError: peak" in fate(render)

    def test_table_of_another_grid(self) -> None:
        field = field_of()
        with pytest.raises(ValueError, match="table: expected"):
            Radiance(GRID, field.table[:10], field.density, field.colour, False, 0.0)

    @pytest.mark.parametrize("name", ["density", "colour"])
    def test_layers_that_do_not_meet(self, name: str) -> None:
        field = field_of()
        networks = {"density": field.density, "colour": field.colour}
        first, second, *rest = networks[name]
        networks[name] = (first, second[:, :8].contiguous(), *rest)
        with pytest.raises(ValueError, match=name):
            Radiance(GRID, field.table, networks["density"], networks["colour"], False, 0.0)

    def test_networks_of_a_wrong_width(self) -> None:
        field = field_of()
        with pytest.raises(ValueError, match=r"density\[-1\]: expected a multiple of 8"):
            Radiance(GRID, field.table, (field.density[0], torch.zeros(7, 16)), field.colour, False, 0.0)
        with pytest.raises(ValueError, match=r"density\[0\]: expected 6 inputs"):
            Radiance(GRID, field.table, (torch.zeros(16, 5), field.density[1]), field.colour, False, 0.0)
        with pytest.raises(ValueError, match="colour: expected 24 inputs and 3 outputs"):
            Radiance(GRID, field.table, field.density, (*field.colour[:2], torch.zeros(4, 16)), False, 0.0)

    @pytest.mark.parametrize("which", range(5), ids=["origin", "direction", "near", "far", "background"])
    def test_rays_of_a_wrong_shape(self, which: int) -> None:
        rays: list[Any] = list(rays_of(8))
        rays[which] = (rays[which][:-1] if which else rays[which][:, :2]).contiguous()
        name = ("origin", "direction", "near", "far", "background")[which]
        with pytest.raises(ValueError, match=f"{name}: expected shape"):
            render_rays(field_of(), tracing_of(), *rays)

    def test_rays_of_another_type(self) -> None:
        rays = rays_of(8, torch.float32)
        with pytest.raises(ValueError, match="one type"):
            render_rays(field_of(), tracing_of(), *rays)
        with pytest.raises(ValueError, match="contiguous"):
            render_rays(field_of(torch.float32), tracing_of(), *rays[:4], torch.ones(3).expand(8, 3))

    def test_points_of_a_wrong_shape(self) -> None:
        assert "ValueError: points: expected" in fate(lambda: density_at(field_of(), torch.zeros(5, 2).double()))
