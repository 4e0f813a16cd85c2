"""ops/hash_encode.py: rows and resolutions of the papers, trilinear blending, and the kernels against the reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from kernel_checks import DTYPES, SIZES, assert_near, assert_twins, fate, threads
from scipy.ndimage import map_coordinates
from torch import Tensor

from lightfold import ops
from lightfold.ops import HashGrid, hash_encode, hash_gradient
from lightfold.ops.hash_encode import corner_rows, hash_index

LAYOUTS = pytest.mark.parametrize("layout", ["line", "xor"])
FEATURES = pytest.mark.parametrize("features", [1, 2, 4, 8], ids="F{}".format)


def small(layout: str, features: int = 2) -> HashGrid:
    """Four levels, of which the first two are dense and the others hashed, with collisions."""
    return HashGrid(levels=4, features=features, log2_rows=10, base=4, finest=24, layout=layout)


def points_of(n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def table_of(grid: HashGrid, dtype: torch.dtype, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(grid.rows, grid.features, generator=generator, dtype=dtype)


class TestGrid:
    def test_hash_of_a_vertex(self) -> None:
        index = int(hash_index(torch.tensor([1, 2, 3])))
        assert index == 2892625372
        assert index % 2**19 == 128476

    def test_rows_of_a_published_grid(self) -> None:
        """16 levels from 16 to 4096 in tiny-cuda-nn's layout."""
        grid = HashGrid(16, 2, 19, 16, 4096, "xor")
        assert (grid.rows, grid.rows * grid.features) == (6_299_960, 12_599_920)
        assert (grid.resolution[:2], grid.resolution[-1]) == ([16, 24], 4096)
        growth = (grid.scale[1] + 1) / 16
        assert growth == pytest.approx(1.447269237440378, rel=1e-12)

    def test_rows_where_rounding_bites(self) -> None:
        """16 levels from 32 to 2048: level 5 and the last are whole numbers, which exp(log) misses."""
        grid = HashGrid(16, 2, 19, 32, 2048, "xor")
        assert (grid.rows, grid.rows * grid.features) == (6_984_576, 13_969_152)
        resolution = grid.resolution
        assert (resolution[:2], resolution[5], resolution[-1]) == ([32, 43], 128, 2048)

    @LAYOUTS
    def test_levels_start_at_cache_lines_and_hold_every_corner(self, layout: str) -> None:
        grid = small(layout)
        assert grid.dense == [True, True, False, False]
        corner = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 1], [0, 1, 0.999]], dtype=torch.float64)
        x = torch.cat([corner, points_of(500, torch.float64)])
        for level in range(grid.levels):
            first, end = grid.first_row[level], grid.first_row[level + 1]
            assert first % 8 == 0
            rows = corner_rows((x * grid.scale[level] + 0.5).long(), level, grid)
            assert first <= int(rows.min()) and int(rows.max()) < end

    def test_line_layout_keeps_x_neighbours_together(self) -> None:
        grid = small("line")
        for level in range(grid.levels):
            rows = corner_rows((points_of(200, torch.float64) * grid.scale[level] + 0.5).long(), level, grid)
            assert torch.equal(rows[:, 1::2], rows[:, 0::2] + 1)

    @LAYOUTS
    def test_dense_levels_share_no_row(self, layout: str) -> None:
        """Vertices 0 to R-1 on each axis; in the "xor" layout the one beyond wraps, as tiny-cuda-nn's does."""
        grid = small(layout)
        for level in (0, 1):
            side = torch.arange(grid.resolution[level] - 1)
            cells = torch.cartesian_prod(side, side, side)
            pairs = torch.stack([corner_rows(cells, level, grid)[:, k] for k in range(8)], dim=1)
            vertices = cells[:, None] + torch.tensor([[k & 1, k >> 1 & 1, k >> 2] for k in range(8)])
            number = (vertices * torch.tensor([1, 1000, 1_000_000])).sum(-1)
            both = torch.stack([pairs.reshape(-1), number.reshape(-1)], dim=1).unique(dim=0)
            assert len(both) == len(both[:, 0].unique()) == len(both[:, 1].unique()) == grid.resolution[level] ** 3

    @pytest.mark.parametrize(
        ("change", "name"),
        [
            ({"features": 3}, "features"),
            ({"levels": 0}, "levels"),
            ({"levels": 33}, "levels"),
            ({"layout": "diagonal"}, "layout"),
            ({"log2_rows": 3}, "log2_rows"),
            ({"log2_rows": 29}, "log2_rows"),
            ({"base": 1}, "base"),
            ({"base": 32, "finest": 16}, "finest"),
        ],
        ids=str,
    )
    def test_impossible_grids_are_refused(self, change: dict, name: str) -> None:
        with pytest.raises(ValueError, match=name):
            HashGrid(**change)

    def test_a_single_level(self) -> None:
        grid = HashGrid(levels=1, features=1, base=8, finest=64)
        assert grid.resolution == [8] and grid.width == 1


class TestReference:
    @LAYOUTS
    @FEATURES
    def test_gradient(self, layout: str, features: int) -> None:
        grid = small(layout, features)
        x, table = points_of(4, torch.float64).requires_grad_(), table_of(grid, torch.float64).requires_grad_()
        with ops.use("reference"):
            assert torch.autograd.gradcheck(lambda x, t: hash_encode(x, t, grid), (x, table), fast_mode=True)
            assert torch.autograd.gradcheck(lambda x: hash_encode(x, table.detach(), grid), (x,))

    @LAYOUTS
    def test_a_dense_level_is_trilinear_interpolation(self, layout: str) -> None:
        """Against SciPy's, on a volume of values laid into the table by hand."""
        grid = HashGrid(levels=1, features=1, log2_rows=12, base=9, finest=9, layout=layout)
        side = 10 if layout == "line" else 9
        volume = np.random.default_rng(0).normal(size=(side, side, side))  # z, y, x
        table = torch.zeros(grid.rows, 1, dtype=torch.float64)
        table[: side**3, 0] = torch.from_numpy(volume.reshape(-1))
        # The vertex beyond the last is a spare one in the "line" layout, and wraps around in the other.
        x = points_of(400, torch.float64) * (1.0 if layout == "line" else 0.93)
        position = (x * 8.0 + 0.5).numpy()
        expected = map_coordinates(volume, position[:, ::-1].T, order=1)
        for name in ("native", "reference"):
            with ops.use(name):
                got = hash_encode(x, table, grid)[:, 0]
            assert_near(got, torch.from_numpy(expected), name)


@pytest.mark.usefixtures("isa")
class TestKernels:
    @LAYOUTS
    @FEATURES
    @DTYPES
    @SIZES
    def test_equal_the_reference(self, layout: str, features: int, dtype: torch.dtype, n: int) -> None:
        grid = small(layout, features)
        inputs = [points_of(n, dtype).requires_grad_(), table_of(grid, dtype).requires_grad_()]
        assert_twins(lambda x, table: hash_encode(x, table, grid), inputs)

    @LAYOUTS
    @FEATURES
    def test_gradient(self, layout: str, features: int) -> None:
        grid = small(layout, features)
        x, table = points_of(4, torch.float64).requires_grad_(), table_of(grid, torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, t: hash_encode(x, t, grid), (x, table), fast_mode=True)
        assert torch.autograd.gradcheck(lambda x: hash_encode(x, table.detach(), grid), (x,))

    @LAYOUTS
    @DTYPES
    def test_a_table_of_ones_gives_ones(self, layout: str, dtype: torch.dtype) -> None:
        """The eight weights of a cell sum to one."""
        grid = small(layout)
        got = hash_encode(points_of(300, dtype), torch.ones(grid.rows, grid.features, dtype=dtype), grid)
        assert_near(got, torch.ones_like(got))

    @LAYOUTS
    def test_a_one_hot_table_gives_the_weight_of_that_corner(self, layout: str) -> None:
        grid = small(layout, features=1)
        x = torch.tensor([[0.31, 0.62, 0.17]], dtype=torch.float64)
        for level in range(grid.levels):
            position = x[0] * grid.scale[level] + 0.5
            cell, f = position.floor().long(), position - position.floor()
            rows = corner_rows(cell[None], level, grid)[0]
            for k in range(8):
                table = torch.zeros(grid.rows, 1, dtype=torch.float64)
                table[rows[k]] = 1.0
                weight = math.prod(float(f[a]) if k >> a & 1 else 1 - float(f[a]) for a in range(3))
                shared = int((rows == rows[k]).sum())
                got = hash_encode(x, table, grid)[0]
                if shared == 1:  # Where two corners collide the row counts for both.
                    assert float(got[level]) == pytest.approx(weight, abs=1e-14)
                assert float(got.abs().sum()) == pytest.approx(float(got[level]), abs=1e-14)

    @LAYOUTS
    @DTYPES
    def test_positions_outside_are_clamped(self, layout: str, dtype: torch.dtype) -> None:
        grid = small(layout)
        table = table_of(grid, dtype)
        x = (points_of(200, dtype) * 5 - 2).requires_grad_()
        got = hash_encode(x, table, grid)
        assert torch.equal(got, hash_encode(x.detach().clamp(0, 1), table, grid))
        got.sum().backward()
        assert x.grad is not None
        outside = (x < 0) | (x > 1)
        assert outside.any() and (x.grad[outside] == 0).all() and (x.grad[~outside] != 0).all()
        huge = torch.tensor([[1e30, -1e30, math.inf]], dtype=dtype)
        assert torch.equal(hash_encode(huge, table, grid), hash_encode(huge.clamp(0, 1), table, grid))

    @LAYOUTS
    def test_the_number_of_threads_changes_no_bit(self, layout: str) -> None:
        grid = small(layout, 4)
        results: list[Any] = []
        for count in (1, 2, 3):
            x, table = points_of(3000, torch.float32).requires_grad_(), table_of(grid, torch.float32).requires_grad_()
            with threads(count):
                out = hash_encode(x, table, grid)
                out.square().sum().backward()
            results.append((out, x.grad, table.grad))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))

    def test_a_level_of_full_size(self) -> None:
        """Sixteen levels to 4096, in double so that only the indices can be wrong: uint32 arithmetic must wrap."""
        for layout in ("line", "xor"):
            grid = HashGrid(16, 2, 12, 16, 4096, layout)
            assert_twins(
                lambda x, t, grid=grid: hash_encode(x, t, grid),
                [points_of(200, torch.float64), table_of(grid, torch.float64)],
            )


@pytest.mark.usefixtures("isa")
class TestSecondOrder:
    """Losses on the slope of a field, as an eikonal loss is, train the table through these."""

    @LAYOUTS
    @FEATURES
    def test_gradient_of_the_gradient(self, layout: str, features: int) -> None:
        """Against finite differences, by all that it depends on: points, table, and the gradient that came in."""
        grid = small(layout, features)
        x, table = points_of(4, torch.float64).requires_grad_(), table_of(grid, torch.float64).requires_grad_()
        d_out = torch.randn(4, grid.width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        assert torch.autograd.gradgradcheck(
            lambda x, t: hash_encode(x, t, grid), (x, table), d_out.requires_grad_(), fast_mode=True
        )
        assert torch.autograd.gradgradcheck(lambda x: hash_encode(x, table.detach(), grid), (x,), d_out)
        assert torch.autograd.gradcheck(lambda x, t, d: hash_gradient(x, t, d, grid), (x, table, d_out), fast_mode=True)

    @LAYOUTS
    @FEATURES
    @DTYPES
    @SIZES
    def test_equals_the_reference(self, layout: str, features: int, dtype: torch.dtype, n: int) -> None:
        grid = small(layout, features)
        generator = torch.Generator().manual_seed(3)
        inputs = [points_of(n, dtype), table_of(grid, dtype), torch.randn(n, grid.width, generator=generator).to(dtype)]
        inputs = [t.requires_grad_() for t in inputs]

        def gradients(x: Tensor, table: Tensor, d_out: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(hash_encode(x, table, grid), (x, table), d_out, create_graph=True)

        assert_twins(gradients, inputs, slack=3)
        assert_twins(lambda x, table, d_out: hash_gradient(x, table, d_out, grid), inputs, slack=3)

    @LAYOUTS
    def test_gradient_alone_is_what_autograd_finds(self, layout: str) -> None:
        grid = small(layout)
        x, table = (points_of(300, torch.float64) * 1.4 - 0.2).requires_grad_(), table_of(grid, torch.float64)
        d_out = torch.randn(300, grid.width, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        (expected,) = torch.autograd.grad(hash_encode(x, table, grid), x, d_out)
        assert torch.equal(hash_gradient(x.detach(), table, d_out, grid), expected)
        assert (expected[(x < 0) | (x > 1)] == 0).all()

    def test_a_slope_can_be_trained(self) -> None:
        """The table learns a field of slope one from a loss on the slope alone."""
        grid = HashGrid(levels=3, features=2, log2_rows=10, base=4, finest=12)
        table = table_of(grid, torch.float32).mul_(0.1).requires_grad_()
        optimiser, x, mix = torch.optim.Adam([table], lr=0.02), points_of(2000, torch.float32), torch.ones(2000, 6)
        losses = []
        for _ in range(60):
            slope = hash_gradient(x, table, mix, grid)
            loss = ((slope.square().sum(1) + 1e-12).sqrt() - 1).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.1 * losses[0], losses[::10]

    @LAYOUTS
    def test_the_number_of_threads_changes_no_bit(self, layout: str) -> None:
        grid = small(layout, 4)
        results: list[Any] = []
        for count in (1, 2, 3):
            x, table = points_of(3000, torch.float32).requires_grad_(), table_of(grid, torch.float32).requires_grad_()
            with threads(count):
                (slope,) = torch.autograd.grad(hash_encode(x, table, grid).square().sum(), x, create_graph=True)
                slope.square().sum().backward()
            results.append((slope, x.grad, table.grad))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


class TestArguments:
    def test_shapes_and_types(self) -> None:
        grid = small("line")
        x, table = points_of(5, torch.float32), table_of(grid, torch.float32)
        for bad in (x[:, :2], x[0], x[None]):
            with pytest.raises(ValueError, match="x: expected"):
                hash_encode(bad, table, grid)
        for bad in (table[1:], table[:, :1], table.reshape(-1)):
            with pytest.raises(ValueError, match="table: expected"):
                hash_encode(x, bad, grid)
        with pytest.raises(ValueError, match="one type"):
            hash_encode(x.double(), table, grid)
        with pytest.raises(ValueError, match="float32 or float64"):
            hash_encode(x.half(), table.half(), grid)
        with pytest.raises(ValueError, match="contiguous"):
            hash_encode(x, table_of(small("line", 4), torch.float32)[:, ::2], grid)

    def test_strided_positions(self) -> None:
        grid = small("line")
        x, table = points_of(6, torch.float32).t().contiguous().t(), table_of(grid, torch.float32)
        assert not x.is_contiguous()
        assert torch.equal(hash_encode(x, table, grid), hash_encode(x.contiguous(), table, grid))

    @pytest.mark.parametrize(
        "layout",
        ["line", "xor"],
    )
    def test_positions_that_are_not_numbers_crash_nothing(self, layout: str) -> None:
        grid = small(layout)
        x = torch.tensor([[math.nan, 0.5, 0.5], [0.5, math.nan, math.nan]]).repeat(40, 1)
        table = table_of(grid, torch.float32).requires_grad_()
        assert fate(lambda: hash_encode(x, table, grid).sum().backward()) == "done"

    def test_a_third_derivative_is_refused_not_ignored(self) -> None:
        """It does not exist natively; counting it as zero would train a wrong model in silence."""
        grid = small("line")
        x, table = points_of(3, torch.float64).requires_grad_(), table_of(grid, torch.float64).requires_grad_()
        out = hash_encode(x, table, grid)
        (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="third"):
            torch.autograd.grad(slope.square().sum(), x, create_graph=True)

    def test_gradients_of_features_have_the_features_shape(self) -> None:
        grid = small("line")
        x, table = points_of(5, torch.float32), table_of(grid, torch.float32)
        for bad in (torch.ones(5, 7), torch.ones(4, 8), torch.ones(8)):
            with pytest.raises(ValueError, match="d_out: expected"):
                hash_gradient(x, table, bad, grid)
