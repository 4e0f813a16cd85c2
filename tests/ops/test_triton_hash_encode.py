"""ops/triton/hash_encode.py against the reference, forward, backward and twice; on a GPU or interpreted."""

from __future__ import annotations

import math

import pytest
import test_surface as surfaces
import torch
from gpu_checks import NEEDS_TRITON, SIZES, assert_gpu_twins, kernels, on_device
from kernel_checks import assert_near
from test_hash_encode import LAYOUTS, points_of, small, table_of
from torch import Tensor

from lightfold import ops
from lightfold.ops import HashGrid, hash_encode, hash_gradient

pytestmark = NEEDS_TRITON


@pytest.mark.parametrize(("layout", "features"), [("line", 1), ("line", 4), ("line", 8), ("xor", 2)])
def test_equals_the_reference(layout: str, features: int) -> None:
    """Features and both gradients; in double, so that only the mathematics can be wrong."""
    grid = small(layout, features)
    inputs = [points_of(100, torch.float64).requires_grad_(), table_of(grid, torch.float64).requires_grad_()]
    assert_gpu_twins(lambda x, table: hash_encode(x, table, grid), inputs)


@SIZES
def test_sizes(n: int) -> None:
    dtype, grid = torch.float32, small("line", 4)
    inputs = [points_of(n, dtype).requires_grad_(), table_of(grid, dtype).requires_grad_()]
    assert_gpu_twins(lambda x, table: hash_encode(x, table, grid), inputs)


@pytest.mark.parametrize("layout", ["line", "xor"])
def test_a_level_of_full_size(layout: str) -> None:
    """Sixteen levels to 4096: 32-bit arithmetic must wrap."""
    grid = HashGrid(16, 2, 12, 16, 4096, layout)
    inputs = [points_of(100, torch.float64), table_of(grid, torch.float64)]
    assert_gpu_twins(lambda x, t: hash_encode(x, t, grid), inputs)


@pytest.mark.parametrize(("layout", "features"), [("line", 4), ("xor", 2)], ids=["line", "xor"])
def test_second_order(layout: str, features: int) -> None:
    """What a loss on the slope trains: by the points, the table and the gradient that came in."""
    grid = small(layout, features)
    generator = torch.Generator().manual_seed(3)
    d_out = torch.randn(50, grid.width, generator=generator, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (points_of(50, torch.float64), table_of(grid, torch.float64), d_out)]

    def gradients(x: Tensor, table: Tensor, d_out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(hash_encode(x, table, grid), (x, table), d_out, create_graph=True)

    assert_gpu_twins(gradients, inputs, slack=3)
    assert_gpu_twins(lambda x, table, d_out: hash_gradient(x, table, d_out, grid), inputs, slack=3)


def test_a_crowd_on_coarse_levels_is_summed_from_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some levels below and some above the limit; the same sums as without copies."""
    from lightfold.ops.triton import hash_encode as here

    grid = small("line", 2)
    d_out = torch.randn(200, grid.width, generator=torch.Generator().manual_seed(5))
    results = []
    for crowd in (10**9, 1):
        monkeypatch.setattr(here, "CROWD", crowd)
        monkeypatch.setattr(here, "COARSE_ROWS", grid.modulus[1])
        x, table, d = on_device(points_of(200, torch.float32), table_of(grid, torch.float32).requires_grad_(), d_out)
        with kernels():
            hash_encode(x, table, grid).backward(d)
        results.append(table.grad)
    assert results[0].abs().sum() > 0
    assert_near(results[1], results[0])


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_autocast_reads_a_half_table_and_trains_the_whole_one(half: torch.dtype) -> None:
    grid = small("line", 4)
    x, table = on_device(points_of(100, torch.float32), table_of(grid, torch.float32).requires_grad_())
    with kernels(), torch.autocast(x.device.type, dtype=half):
        out = hash_encode(x, table, grid)
    with ops.use("reference"):
        expected = hash_encode(x, table.detach().to(half).float(), grid)
    assert out.dtype == torch.float32
    assert_near(out, expected)
    out.sum().backward()
    with ops.use("reference"):
        other = table.detach().clone().requires_grad_()
        hash_encode(x, other, grid).sum().backward()
    assert table.grad is not None and other.grad is not None and table.grad.dtype == torch.float32
    assert_near(table.grad, other.grad)


@LAYOUTS
def test_positions_outside_and_positions_that_are_not_numbers(layout: str) -> None:
    grid = small(layout)
    place = torch.tensor([[math.nan, 0.5, 0.5], [1e30, -1e30, math.inf], [-0.5, 0.5, 1.5], [1.0, 1.0, 1.0]])
    x, table = on_device(place.requires_grad_(), table_of(grid, torch.float32).requires_grad_())
    with kernels():
        out = hash_encode(x, table, grid)
        out.sum().backward()
        inside = hash_encode(x.detach().nan_to_num(0.0, 1.0, 0.0).clamp(0, 1), table, grid)
    assert torch.equal(out, inside)
    assert x.grad is not None and table.grad is not None and table.grad.isfinite().all()
    assert (x.grad[1] == 0).all() and x.grad[2, 1] != 0


def test_a_surface_that_is_too_wide_for_its_kernel_is_the_chain_with_this_encoding() -> None:
    """A loss on its slope needs the encoding's second derivatives."""
    grid = surfaces.grid_of(2)
    points, *weights = surfaces.inputs_of(grid, 40, 130, 3, 3, torch.float64)
    assert_gpu_twins(
        lambda *w: ops.surface(points.to(w[0]), *w, grid, levels=3, beta=surfaces.BETA), weights, slack=2.0
    )
