"""Occupancy pyramid and ray marching.

Letters: K cascades, G cells per axis, R rays, M most samples per ray. Cascade k covers the cube [-2^k, 2^k]^3 of the
scene with G^3 cells, so that cells grow with distance as pixels do; a point belongs to the finest cascade that holds
it. One bit per cell, block-major: 64 bits are a 4x4x4 block, whose word index runs x fastest, then y, z, cascade.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import LightfoldError
from .backend import core, gpu, kernel, route


class Varying(NamedTuple):
    """How rays walk, as numbers on the device: what may differ each time that a recorded step is launched."""

    lengths: Tensor
    """[2] the shortest step, and how much a step grows with distance."""
    start: Tensor
    """[1] int64, `seed_start` of the seed."""


def varying(step: float, cone: float, seed: int) -> Varying:
    """These numbers on the CPU, to be sent."""
    return Varying(torch.tensor([step, cone]), torch.tensor([seed_start(seed)]))


def seed_start(seed: int) -> int:
    """The part of the random numbers' hash that is the same for all rays, as a signed number of 64 bits."""
    start = (seed * 0x9E3779B97F4A7C15 + 0x2545F4914F6CDD1D) & (2**64 - 1)
    return start - 2**64 if start >= 2**63 else start


def march(
    origin: Tensor,
    direction: Tensor,
    near: Tensor,
    far: Tensor,
    bits: Tensor,
    cascades: int,
    size: int,
    *,
    step: float,
    cone: float,
    most: int,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples in occupied cells, front to back.

    origin, direction (unit) [R, 3]; near, far [R]; bits int64 [K G^3 / 64]. A step at distance t is
    max(step, cone * t) long; a ray ends after `most` samples. `seed` shifts each ray's first step at random by up to
    one step; 0 shifts all by half a step.
    -> t0 [R, M], dt [R, M], count [R] int32; entries beyond a ray's count are undefined. Not differentiable.
    """
    check_rays(origin, direction, near, far)
    check_bits(bits, cascades, size)
    check_steps(step, cone, most)
    rays = origin.shape[0]
    way = route("march", origin, direction, near, far, bits)
    if way == "reference":
        return march_reference(origin, direction, near, far, bits, cascades, size, step, cone, most, seed)
    t0 = torch.empty((rays, most), dtype=origin.dtype, device=origin.device)
    dt = torch.empty((rays, most), dtype=origin.dtype, device=origin.device)
    count = torch.empty(rays, dtype=torch.int32, device=origin.device)
    if way == "triton":
        kernels = gpu("march", origin, direction, near, far)
        walk = kernels.Walk(bits, cascades, size, step, cone, most, seed)
        kernels.march((origin, direction, near, far), walk, t0, dt, count)
        return t0, dt, count
    kernel("march", origin, direction, near, far)(
        cascades,
        size,
        bits.data_ptr(),
        rays,
        origin.data_ptr(),
        direction.data_ptr(),
        near.data_ptr(),
        far.data_ptr(),
        seed,
        step,
        cone,
        most,
        t0.data_ptr(),
        dt.data_ptr(),
        count.data_ptr(),
    )
    return t0, dt, count


def check_rays(origin: Tensor, direction: Tensor, near: Tensor, far: Tensor) -> None:
    """Raise unless these are R rays."""
    rays = origin.shape[0] if origin.ndim else 0
    for name, t, shape in (
        ("origin", origin, (rays, 3)),
        ("direction", direction, (rays, 3)),
        ("near", near, (rays,)),
        ("far", far, (rays,)),
    ):
        if tuple(t.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(t.shape)}")


def check_steps(step: float, cone: float, most: int) -> None:
    """Raise unless a walk with these steps moves on and ends."""
    if not (step > 0 and cone >= 0 and most >= 1):
        raise ValueError(f"step, cone, most: expected step > 0, cone >= 0, most >= 1, got {step}, {cone}, {most}")


def check_cells(name: str, tensor: Tensor, count: int) -> None:
    """Raise unless `tensor` is contiguous float32 with one number per cell, or per cascade."""
    if tensor.dtype != torch.float32 or tensor.numel() != count or not tensor.is_contiguous():
        raise ValueError(f"{name}: expected contiguous float32 [{count}], got {tensor.dtype} {tuple(tensor.shape)}")


def check_bits(bits: Tensor, cascades: int, size: int) -> None:
    """Raise unless `bits` is the bit field of a pyramid of this shape."""
    if size % 16 or not 16 <= size <= 512:
        raise ValueError(f"size: expected a multiple of 16 up to 512, got {size}")
    if not 1 <= cascades <= 16:
        raise ValueError(f"cascades: expected 1 to 16, got {cascades}")
    words = cascades * size**3 // 64
    if bits.dtype != torch.int64 or bits.numel() != words or not bits.is_contiguous():
        raise ValueError(f"bits: expected contiguous int64 [{words}], got {bits.dtype} {tuple(bits.shape)}")


def cell_of(points: Tensor, cascades: int, size: int) -> Tensor:
    """Index of the cell (bit number in the pyramid) that holds each point: [N, 3] -> [N] int64."""
    reach = points.abs().amax(dim=1)
    k = torch.frexp(reach.float())[1]
    k = torch.where(torch.ldexp(torch.ones_like(reach), k - 1) >= reach, k - 1, k).clamp(0, cascades - 1)
    unit = torch.ldexp(points, -k[:, None])  # Exact in any precision, as only the exponent changes.
    cell = ((unit.float() * (0.5 * size)) + 0.5 * size).long().clamp(0, size - 1)
    block, inner = cell // 4, cell % 4
    word = ((k * (size // 4) + block[:, 2]) * (size // 4) + block[:, 1]) * (size // 4) + block[:, 0]
    return word * 64 + (inner[:, 2] * 4 + inner[:, 1]) * 4 + inner[:, 0]


def cell_centres(cascade: int, size: int) -> Tensor:
    """Centres of the cells of a cascade, in the order of their bits: [G^3, 3], on the CPU."""
    blocks = size // 4
    number = torch.arange(size**3)
    word, bit = number // 64, number % 64
    x = (word % blocks) * 4 + bit % 4
    y = (word // blocks % blocks) * 4 + bit // 4 % 4
    z = (word // blocks**2) * 4 + bit // 16
    return (torch.stack([x, y, z], dim=1) + 0.5) * (2.0 / size * 2**cascade) - 2.0**cascade


def grid_decay_(bits: Tensor, peak: Tensor, cascades: int, size: int, decay: float, threshold: Tensor) -> None:
    """Occupied cells lose a factor of their peak density and are struck off where it falls below threshold [K]."""
    check_bits(bits, cascades, size)
    check_cells("peak", peak, cascades * size**3)
    check_cells("threshold", threshold, cascades)
    way = route("grid_decay_", bits, peak, threshold)
    if way == "triton":
        gpu("march", peak, threshold).decay(bits, peak, cascades, size, decay, threshold)
        return
    if way == "reference":
        occupied = unpack_bits(bits)
        peak.copy_(torch.where(occupied, peak * decay, peak))
        limit = threshold.repeat_interleave(size**3)
        bits.copy_(pack_bits(occupied & (peak >= limit)))
        return
    core().grid_decay(cascades, size, peak.data_ptr(), bits.data_ptr(), decay, threshold.data_ptr())


def grid_raise_(
    bits: Tensor,
    peak: Tensor,
    allowed: Tensor,
    cascades: int,
    size: int,
    points: Tensor,
    density: Tensor,
    threshold: Tensor,
) -> None:
    """Points [N, 3] with density [N] raise the peaks of their cells, and set the bits of those that reach threshold.

    Cells whose bit in `allowed` is zero stay empty for good: no camera sees them. The peak of a cell that is empty
    afterwards means nothing.
    """
    check_bits(bits, cascades, size)
    check_bits(allowed, cascades, size)
    check_cells("peak", peak, cascades * size**3)
    check_cells("threshold", threshold, cascades)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points: expected shape [N, 3], got {tuple(points.shape)}")
    if density.shape != points.shape[:1]:
        raise ValueError(f"density: expected shape [{len(points)}], got {tuple(density.shape)}")
    if points.dtype != torch.float32 or density.dtype != torch.float32:
        raise ValueError(f"points and density: expected float32, got {points.dtype} and {density.dtype}")
    points, density = points.contiguous(), density.contiguous()
    way = route("grid_raise_", bits, peak, allowed, points, density, threshold)
    if way == "triton":
        gpu("march", peak, points, density, threshold).raise_(
            bits, peak, allowed, cascades, size, points, density, threshold
        )
        return
    if way == "reference":
        grid_raise_reference_(bits, peak, allowed, cascades, size, points, density, threshold)
        return
    core().grid_raise(
        cascades,
        size,
        peak.data_ptr(),
        bits.data_ptr(),
        points.data_ptr(),
        density.data_ptr(),
        points.shape[0],
        threshold.data_ptr(),
        allowed.data_ptr(),
    )


def grid_raise_reference_(
    bits: Tensor,
    peak: Tensor,
    allowed: Tensor,
    cascades: int,
    size: int,
    points: Tensor,
    density: Tensor,
    threshold: Tensor,
) -> None:
    """`grid_raise_` in plain PyTorch."""
    cell = cell_of(points.nan_to_num(0.0), cascades, size)
    may = unpack_bits(allowed)[cell] & points.isfinite().all(dim=1) & density.isfinite()
    cell, density = cell[may], density[may]
    occupied = unpack_bits(bits)
    seen = torch.where(occupied, peak, 0.0).scatter_reduce(0, cell, density, "amax")
    met = torch.zeros_like(occupied)
    met[cell] = True
    peak.copy_(torch.where(met, seen, peak))
    occupied[cell[density >= threshold[cell // size**3]]] = True
    bits.copy_(pack_bits(occupied))


def unpack_bits(bits: Tensor) -> Tensor:
    """int64 [W] -> bool [64 W], lowest bit first."""
    shift = torch.arange(64, dtype=torch.int64, device=bits.device)
    return ((bits[:, None] >> shift) & 1).bool().reshape(-1)


def pack_bits(occupied: Tensor) -> Tensor:
    """Inverse of `unpack_bits`."""
    as_bytes = occupied.reshape(-1, 8).to(torch.uint8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=occupied.device)
    return (as_bytes * weights).sum(dim=1, dtype=torch.uint8).view(torch.int64).clone()


def random_unit(seed: int, index: int) -> float:
    """The kernels' counter-based random number in [0, 1)."""
    mask = 0xFFFFFFFFFFFFFFFF
    x = (seed_start(seed) + index * 0xD1342543DE82EF95) & mask
    for _ in range(2):
        x ^= x >> 32
        x = x * 0xD6E8FEB86659FD93 & mask
    x ^= x >> 32
    return (x >> 40) / 16777216.0


def march_reference(
    origin: Tensor,
    direction: Tensor,
    near: Tensor,
    far: Tensor,
    bits: Tensor,
    cascades: int,
    size: int,
    step: float,
    cone: float,
    most: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`march` in plain Python: visit every step and keep those whose middle lies in an occupied cell.

    Positions agree with the kernel's up to rounding; a sample within rounding of a cell's face may differ.
    """
    occupied = unpack_bits(bits)
    t0 = torch.zeros(origin.shape[0], most, dtype=origin.dtype, device=origin.device)
    dt = torch.zeros_like(t0)
    count = torch.zeros(origin.shape[0], dtype=torch.int32, device=origin.device)
    half = 2.0 ** (cascades - 1)
    for r in range(origin.shape[0]):
        o, d = origin[r], direction[r]
        safe = torch.where(d.abs() < 1e-12, torch.where(d < 0, -1e-12, 1e-12).to(d.dtype), d)
        low, high = (-half - o) / safe, (half - o) / safe
        begin = max(float(near[r]), float(torch.minimum(low, high).max()))
        end = min(float(far[r]), float(torch.maximum(low, high).min()))
        if not begin < end:
            continue
        jitter = random_unit(seed, r) if seed else 0.5
        found = _steps(o, d, begin, end, jitter, step, cone, most, occupied, cascades, size)
        count[r] = len(found)
        for i, (t, length) in enumerate(found):
            t0[r, i], dt[r, i] = t, length
    return t0, dt, count


def _steps(o, d, begin, end, jitter, step, cone, most, occupied, cascades, size) -> list[tuple[float, float]]:
    if not math.isfinite(end):
        raise LightfoldError("A ray leaves the occupancy pyramid at infinity: its direction is not finite.")
    found: list[tuple[float, float]] = []
    t = begin + jitter * max(step, cone * begin)
    while t < end and len(found) < most:
        length = max(step, cone * t)
        point = (o + (t + 0.5 * length) * d)[None]
        if bool(occupied[cell_of(point, cascades, size)[0]]):
            found.append((t, length))
        t += length
    return found
