"""ops/triton/march.py: the same samples as the native walk finds, and the same upkeep; on a GPU or interpreted."""

from __future__ import annotations

import math

import pytest
import torch
from gpu_checks import DEVICE, DTYPES, NEEDS_TRITON, kernels, on_device
from test_march import CASES, HOSTILE, SIZE, bits_of, cast, flat, rays_of, reference_case

from lightfold.ops import march
from lightfold.ops.march import cell_of, grid_decay_, grid_raise_, random_unit, unpack_bits

pytestmark = NEEDS_TRITON


@pytest.mark.parametrize("name", CASES)
def test_equals_brute_force(name: str) -> None:
    """No occupied step is missed, no empty one taken, and every step lies where the reference has it."""
    kind, cascades, step, cone, seed = CASES[name]
    rays = on_device(*rays_of(25, torch.float64, 2.0 ** (cascades - 1)), bits_of(kind, cascades))
    with kernels():
        ours = march(*rays, cascades, SIZE, step=step, cone=cone, most=60, seed=seed)
    expected = reference_case(name)
    assert torch.equal(ours[2].cpu(), expected[2])
    for got, wanted in zip(flat(*(t.cpu() for t in ours)), flat(*expected), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("cascades", [1, 4])
def test_equals_the_native_walk(cascades: int) -> None:
    """In single precision, where a middle within rounding of a cell's face may fall to either side."""
    rays, bits = rays_of(64, torch.float32, 2.0 ** (cascades - 1)), bits_of("random", cascades)
    options = {"step": 0.06, "cone": 0.04 if cascades > 1 else 0.0, "most": 40, "seed": 3}
    native = march(*rays, bits, cascades, SIZE, **options)
    with kernels():
        ours = march(*on_device(*rays, bits), cascades, SIZE, **options)
    count = ours[2].cpu()
    same = count == native[2]
    assert int((count - native[2]).abs().sum()) <= 0.003 * int(native[2].sum()) and int(native[2].sum()) > 200
    for a, b in zip(ours[:2], native[:2], strict=True):
        live = (torch.arange(40) < count[:, None]) & same[:, None]
        close = (a.cpu() - b).abs()[live] < 1e-3
        assert float(close.float().mean()) > 0.99


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy, which interprets, warns of infinities.
@DTYPES
def test_hostile_rays_end(dtype: torch.dtype) -> None:
    for kind in ("empty", "full"):
        for name, (rays, expected) in HOSTILE.items():
            there = on_device(*cast(rays, dtype), bits_of(kind))
            with kernels():
                t0, dt, count = march(*there, 1, SIZE, step=0.01, cone=0.0, most=10)
            _, t0, dt = flat(t0.cpu(), dt.cpu(), count.cpu())
            assert t0.isfinite().all() and dt.isfinite().all(), name
            assert expected is None or count.tolist() == [expected], name


def test_no_rays() -> None:
    with kernels():
        t0, _, count = march(
            *on_device(*rays_of(0, torch.float32), bits_of("full")), 1, SIZE, step=0.05, cone=0.0, most=5
        )
    assert t0.shape == (0, 5) and count.shape == (0,)


def test_samples_are_packed_on_the_device() -> None:
    from lightfold.ops.triton.march import pack

    counts = torch.tensor([0, 3, 70, 1, 0, 33], dtype=torch.int32)
    t0 = torch.rand(6, 70, generator=torch.Generator().manual_seed(0))
    offset, ray, middle, dt = (t.cpu() for t in pack(*on_device(t0, 0.5 * t0, counts), room=6 * 70))
    assert offset.tolist() == [0, 0, 3, 73, 74, 74, 107]
    rays, starts, lengths = flat(t0, 0.5 * t0, counts)
    assert torch.equal(ray[:107].long(), rays)
    torch.testing.assert_close(middle[:107], starts + 0.5 * lengths)
    assert torch.equal(dt[:107], lengths)


@pytest.mark.parametrize(
    ("room", "offset"), [(72, [0, 0, 3, 3, 3, 3, 3]), (73, [0, 0, 3, 73, 73, 73, 73]), (2, [0] * 7)]
)
def test_where_there_is_no_room_the_last_rays_have_no_samples(room: int, offset: list[int]) -> None:
    from lightfold.ops.triton.march import pack

    counts = torch.tensor([0, 3, 70, 1, 0, 33], dtype=torch.int32)
    t0 = torch.rand(6, 70, generator=torch.Generator().manual_seed(0))
    found, ray, middle, _ = (t.cpu() for t in pack(*on_device(t0, 0.5 * t0, counts), room=room))
    assert found.tolist() == offset and len(ray) == room
    rays, starts, lengths = flat(t0, 0.5 * t0, counts)
    assert torch.equal(ray[: offset[-1]].long(), rays[: offset[-1]])
    torch.testing.assert_close(middle[: offset[-1]], (starts + 0.5 * lengths)[: offset[-1]])


@pytest.mark.parametrize("kind", ["random", "full", "empty"])
def test_two_walks_find_what_one_does(kind: str) -> None:
    from lightfold.ops.triton.march import Walk, march_exactly

    rays, bits = on_device(*rays_of(40, torch.float32)), bits_of(kind).to(DEVICE)
    with kernels():
        t0, dt, count = march(*rays, bits, 1, SIZE, step=0.05, cone=0.01, most=30, seed=7)
        offset, ray, middle, length = march_exactly(rays, Walk(bits, 1, SIZE, 0.05, 0.01, 30, 7))
    expected_ray, starts, lengths = flat(t0.cpu(), dt.cpu(), count.cpu())
    assert offset.tolist() == [0, *count.cpu().cumsum(0).tolist()] and torch.equal(ray.cpu().long(), expected_ray)
    torch.testing.assert_close(middle.cpu(), starts + 0.5 * lengths)
    assert torch.equal(length.cpu(), lengths)


def test_random_numbers_are_the_native_ones() -> None:
    seed, rays = 2**61 + 12345, on_device(*rays_of(5, torch.float64))
    full = bits_of("full").to(rays[0].device)
    with kernels():
        shifted = march(*rays, full, 1, SIZE, step=0.01, cone=0.0, most=3, seed=seed)
        plain = march(*rays, full, 1, SIZE, step=0.01, cone=0.0, most=3)
    shift = (shifted[0] - plain[0]).cpu()[:, 0] / 0.01 + 0.5
    for i in ((plain[2] > 0) & (shifted[2] > 0)).nonzero()[:, 0].tolist():
        assert float(shift[i]) == pytest.approx(random_unit(seed, i), abs=1e-6)


class TestUpkeep:
    def test_decay_equals_the_native_one(self) -> None:
        cascades = 2
        peak = torch.rand(cascades * SIZE**3, generator=torch.Generator().manual_seed(1))
        threshold, bits, values = torch.tensor([0.4, 0.7]), bits_of("random", cascades), peak.clone()
        grid_decay_(bits, values, cascades, SIZE, 0.9, threshold)
        ours = on_device(bits_of("random", cascades), peak, threshold)
        with kernels():
            grid_decay_(ours[0], ours[1], cascades, SIZE, 0.9, ours[2])
        occupied = unpack_bits(bits)
        assert torch.equal(ours[0].cpu(), bits) and 100 < int(occupied.sum()) < 8000
        # Empty cells' values mean nothing; the native kernel lets those decay that share a word with occupied ones.
        before = unpack_bits(bits_of("random", cascades))
        torch.testing.assert_close(ours[1].cpu()[before], values[before])

    def test_raise_equals_the_native_one(self) -> None:
        """Bits, and the peaks of the cells that are occupied; those of others mean nothing."""
        cascades, n = 2, 3000
        generator = torch.Generator().manual_seed(2)
        points, density = torch.randn(n, 3, generator=generator), torch.rand(n, generator=generator)
        start = torch.where(bits_of("random", cascades) % 3 == 0, bits_of("random", cascades), 0)
        peak, threshold = torch.full((cascades * SIZE**3,), 0.3), torch.tensor([0.5, 0.8])
        results = []
        for gpu in (False, True):
            bits, values, allowed = start.clone(), peak.clone(), bits_of("random", cascades)
            rest = (allowed, cascades, SIZE, points, density, threshold)
            if gpu:
                bits, values, *rest = on_device(bits, values, *rest)
                with kernels():
                    grid_raise_(bits, values, *rest)
            else:
                grid_raise_(bits, values, *rest)
            results.append((bits.cpu(), values.cpu()))
        occupied = unpack_bits(results[0][0])
        assert torch.equal(results[0][0], results[1][0]) and not torch.equal(results[0][0], start)
        assert torch.equal(results[0][1][occupied], results[1][1][occupied])

    def test_densities_and_points_that_are_not_numbers(self) -> None:
        points = torch.tensor([[math.nan] * 3, [0.1, 0.1, 0.1], [math.inf, -math.inf, 0.0], [1e30, 0.0, 0.0]])
        density = torch.tensor([math.nan, math.nan, 0.0, -1.0])
        bits, peak, full, points, density, one = on_device(
            bits_of("empty"), torch.zeros(SIZE**3), bits_of("full"), points, density, torch.tensor([0.5])
        )
        with kernels():
            grid_raise_(bits, peak, full, 1, SIZE, points, density, one)
        assert (bits == 0).all() and not peak.isnan().any()

    def test_cells_are_those_of_the_reference(self) -> None:
        points = torch.randn(200, 3, generator=torch.Generator().manual_seed(9)) * 3
        bits, peak, full, there, density, limit = on_device(
            bits_of("empty", 3), torch.zeros(3 * SIZE**3), bits_of("full", 3), points, torch.ones(200), torch.ones(3)
        )
        with kernels():
            grid_raise_(bits, peak, full, 3, SIZE, there, density, limit)
        assert torch.equal(unpack_bits(bits.cpu()).nonzero()[:, 0], cell_of(points, 3, SIZE).unique())
