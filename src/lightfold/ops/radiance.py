"""A hash-grid radiance field rendered along rays in a single pass, and trained in one.

This fuses what `march`, `hash_encode`, `mlp`, `spherical_harmonics` and `composite` do apart, for the step that
dominates training on a CPU: activations stay in the second-level cache, a ray stops when it is opaque, and only samples
whose weight counts reach the colour network and the backward pass. `render_rays_reference` states the same in terms of
those ops, and a GPU runs their kernels one after the other.

    x = o + t d -> u in [0, 1]^3 (contracted where unbounded) -> features = hash_encode(u)
    [raw, geometry...] = mlp(features);  sigma = exp(raw + shift)
    c = sigmoid(mlp([raw, geometry..., harmonics(d)]));  picture = sum w c + (1 - sum w) background
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .backend import core, empty, gpu, half_type, in_pairs, kernel, refuse_second_order, route
from .composite import composite_reference, distance_at
from .hash_encode import HashGrid, hash_encode_reference
from .march import Varying, check_bits, check_cells, check_rays, march_reference
from .mlp import mlp_reference
from .spherical_harmonics import spherical_harmonics_reference

TRAIL_PAD = 32
"""Spare columns of a trail row: kernels write whole vectors."""

_spare: list[Tensor] = []
"""Trails and gradients of finished steps. Fresh memory would cost a page fault for every 4 KiB, at every step."""


def _borrow(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    for i, spare in enumerate(_spare):
        if spare.shape == shape and spare.dtype == dtype:
            return _spare.pop(i)
    return torch.empty(shape, dtype=dtype)


def _give_back(*tensors: Tensor) -> None:
    _spare.extend(tensors)
    del _spare[:-8]


@dataclass(frozen=True)
class Radiance:
    """A field's parameters and how to read them. Weights are [out, in]; the last density layer gives raw density and
    geometry features, a multiple of 8 in all; the first colour layer takes those and 16 harmonics."""

    grid: HashGrid
    table: Tensor
    density: tuple[Tensor, ...]
    colour: tuple[Tensor, ...]
    unbounded: bool
    shift: float

    def __post_init__(self) -> None:
        geometry = self.density[-1].shape[0]
        if geometry % 8:
            raise ValueError(f"density[-1]: expected a multiple of 8 outputs, got {geometry}")
        if tuple(self.table.shape) != (self.grid.rows, self.grid.features):
            expected = self.grid.rows, self.grid.features
            raise ValueError(f"table: expected shape {expected}, got {tuple(self.table.shape)}")
        for name, layers in (("density", self.density), ("colour", self.colour)):
            if any(after.shape[1] != before.shape[0] for before, after in zip(layers, layers[1:], strict=False)):
                raise ValueError(f"{name}: expected layers that meet, got {[tuple(w.shape) for w in layers]}")
        if self.density[0].shape[1] != self.grid.width:
            raise ValueError(f"density[0]: expected {self.grid.width} inputs, got {self.density[0].shape[1]}")
        if self.colour[0].shape[1] != geometry + 16 or self.colour[-1].shape[0] != 3:
            raise ValueError(
                f"colour: expected {geometry + 16} inputs and 3 outputs, got {[tuple(w.shape) for w in self.colour]}"
            )

    def tensors(self) -> tuple[Tensor, ...]:
        """The table and all weights."""
        return (self.table, *self.density, *self.colour)

    def density_widths(self) -> list[int]:
        """Layer widths of the density network."""
        return [self.grid.width, *(w.shape[0] for w in self.density)]

    def colour_widths(self) -> list[int]:
        """Layer widths of the colour network."""
        return [self.colour[0].shape[1], *(w.shape[0] for w in self.colour)]

    def arguments(self) -> tuple:
        """The same, as the kernels take it, with the precision of the networks that autocast asks for now."""
        return (
            self.grid.native,
            self.table.data_ptr(),
            self.unbounded,
            self.shift,
            in_pairs(self.table),
            self.density_widths(),
            [w.data_ptr() for w in self.density],
            self.colour_widths(),
            [w.data_ptr() for w in self.colour],
        )


@dataclass(frozen=True)
class Tracing:
    """How rays walk: the occupancy pyramid (see `march`), step lengths, and what may be left out."""

    bits: Tensor
    cascades: int
    size: int
    step: float
    cone: float
    most: int
    peak: Tensor | None = None
    """Densest value seen per cell [K G^3] float32, raised by the samples; None when nobody listens."""
    stop: float = 1e-4
    """Transmittance below which a ray ends."""
    keep: float = 1e-3
    """Samples of smaller weight get neither colour nor gradient."""
    room: int | None = None
    """Samples that a batch of rays may have in all in training on a GPU, where memory for them is taken before their
    number is known; where it does not suffice, the last rays get none. None: as many as there can be."""

    def __post_init__(self) -> None:
        for name, good in (("step", self.step > 0), ("cone", self.cone >= 0), ("most", 1 <= self.most <= 1 << 16)):
            if not good:
                raise ValueError(f"{name}: expected step > 0, cone >= 0, 1 <= most <= 65536, got {getattr(self, name)}")


class Picture(NamedTuple):
    """rgb [R, 3] over the background, opacity [R], depth [R] as sum of w t; samples evaluated and kept; median [R].

    The median is the distance before which half of the weight of the samples that are shown lies, 0 where there are
    none (see `distance_at`), and is not taken in training. On a GPU the numbers of samples, and those of `Loss`, are
    tensors of one number: to turn them into numbers is to wait.
    """

    rgb: Tensor
    opacity: Tensor
    depth: Tensor
    evaluated: int | Tensor
    kept: int | Tensor
    median: Tensor | None = None


class Loss(NamedTuple):
    """loss, squared_error and distortion are means (over rays and channels; over rays); picture is detached."""

    loss: Tensor
    squared_error: float | Tensor
    distortion: float | Tensor
    picture: Picture


def _ray_pointers(origin: Tensor, direction: Tensor, near: Tensor, far: Tensor, background: Tensor) -> tuple:
    check_rays(origin, direction, near, far)
    if background.shape != origin.shape:
        raise ValueError(f"background: expected shape {tuple(origin.shape)}, got {tuple(background.shape)}")
    return (origin.shape[0], *(t.data_ptr() for t in (origin, direction, near, far, background)))


def _trace(field: Radiance, tracing: Tracing, rays: tuple[Tensor, ...], seed: int, train: tuple) -> Picture:
    origin = rays[0]
    check_bits(tracing.bits, tracing.cascades, tracing.size)
    if tracing.peak is not None:
        check_cells("peak", tracing.peak, tracing.cascades * tracing.size**3)
    count = origin.shape[0]
    tasks = -(-count // core().GROUP)
    rgb, opacity, depth = empty((count, 3), origin), empty((count,), origin), empty((count,), origin)
    median = None if train[-1] else empty((count,), origin)
    counts = torch.zeros((2, max(tasks, 1)), dtype=torch.int64)
    kernel("trace", field.table, *rays, *field.density, *field.colour)(
        *field.arguments(),
        *_ray_pointers(*rays),
        seed,
        tracing.cascades,
        tracing.size,
        tracing.bits.data_ptr(),
        0 if tracing.peak is None else tracing.peak.data_ptr(),
        tracing.step,
        tracing.cone,
        tracing.most,
        tracing.stop,
        tracing.keep,
        rgb.data_ptr(),
        opacity.data_ptr(),
        depth.data_ptr(),
        0 if median is None else median.data_ptr(),
        counts[0].data_ptr(),
        counts[1].data_ptr(),
        *train,
    )
    evaluated, kept = counts.sum(dim=1).tolist()
    return Picture(rgb, opacity, depth, evaluated, kept, median)


def render_rays(
    field: Radiance,
    tracing: Tracing,
    origin: Tensor,
    direction: Tensor,
    near: Tensor,
    far: Tensor,
    background: Tensor,
    seed: int = 0,
) -> Picture:
    """Picture along rays, without gradients. Rays as in `march`; background [R, 3]."""
    rays = (origin, direction, near, far, background)
    way = route("render_rays", *rays, tracing.bits, *field.tensors())
    if way == "reference":
        with torch.no_grad():
            return render_rays_reference(field, tracing, *rays, seed)
    if way == "triton":
        kernels = _gpu(field, tracing, rays)
        rgb, (opacity, depth, median) = empty(tuple(origin.shape), origin), (torch.empty_like(near) for _ in range(3))
        with torch.no_grad():
            out = (rgb, opacity, depth, median)
            evaluated, kept = kernels.render(field, tracing, rays, seed, half_type(origin), *out)
            return Picture(rgb, opacity, depth, evaluated, kept, median)
    no_training: tuple[object, ...] = (0, 0, 1.0, 0.0, 0, 0, 0, 0, 0, [], [])
    return _trace(field, tracing, rays, seed, no_training)


def train_rays(
    field: Radiance,
    tracing: Tracing,
    origin: Tensor,
    direction: Tensor,
    near: Tensor,
    far: Tensor,
    background: Tensor,
    target: Tensor,
    *,
    seed: int,
    huber: float = 0.0,
    distortion: float = 0.0,
    table_gradient: Tensor | None = None,
    touched: Tensor | None = None,
    varying: Varying | None = None,
) -> Loss:
    """Loss of a batch of rays against target [R, 3] (over the same background), with its gradient taken on the way.

    The loss is the mean over rays and channels of the squared error, or, with `huber` > 0, of the parabola continued
    linearly beyond that error; plus `distortion` times the distortion loss of mip-NeRF 360 (equation 15) on
    s = t / (1 + t), mean over rays. Differentiable once with respect to the field's table and weights; samples below
    `tracing.keep` count as constant.

    With `table_gradient` given, the table's gradient is added to it in place during `backward()`, and lines that were
    written are marked in `touched` (see `adam_`): a table of millions of rows is then never swept, as a returned
    gradient would force. Otherwise it is returned as any gradient is.

    With `varying`, which is for kernels of a GPU alone, step lengths and seed are read on the device.
    """
    for name, value in (("huber", huber), ("distortion", distortion)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")
    rays = (origin, direction, near, far, background)
    way = route("train_rays", *rays, target, tracing.bits, *field.tensors())
    if varying is not None and way != "triton":
        raise ValueError(f"varying: expected None, as {way} kernels take step lengths and seed from the host")
    if way == "reference":
        picture = render_rays_reference(field, tracing, *rays, seed, distortion=distortion > 0)
        return _reference_loss(picture, target, huber, distortion)
    if target.shape != origin.shape:
        raise ValueError(f"target: expected shape {tuple(origin.shape)}, got {tuple(target.shape)}")
    if target.dtype != origin.dtype or not target.is_contiguous():
        raise ValueError(f"target: expected contiguous {origin.dtype}, got {target.dtype}, strides {target.stride()}")
    if table_gradient is not None and table_gradient.shape != field.table.shape:
        expected = tuple(field.table.shape)
        raise ValueError(f"table_gradient: expected shape {expected}, got {tuple(table_gradient.shape)}")
    lines = (field.table.numel() + 15) // 16
    if touched is not None and (touched.dtype != torch.uint8 or touched.numel() != lines):
        raise ValueError(f"touched: expected uint8 [{lines}], got {touched.dtype} {tuple(touched.shape)}")
    saved: dict[str, tuple[float, float, Picture]] = {}
    parameters = (field.table, *field.density, *field.colour)
    how = (field, tracing, rays, target, seed, huber, distortion, table_gradient, touched, saved)
    if way == "triton":
        loss = _TrainRaysOnGPU.apply(*how, varying, *parameters)
    else:
        loss = _TrainRays.apply(*how, *parameters)
    return Loss(loss, *saved["report"])


class _TrainRays(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, field, tracing, rays, target, seed, huber, distortion, table_gradient, touched, saved, table, *weights
    ):
        count = rays[0].shape[0]
        group = core().GROUP
        tasks = max(-(-count // group), 1)
        stride = group * tracing.most + TRAIL_PAD
        dtype = table.dtype
        trail = _borrow((tasks, 3 + field.grid.width, stride), dtype)
        trail_count = torch.zeros(tasks, dtype=torch.int32)
        size = kernel("trace_gradient_size", table)(in_pairs(table), field.density_widths(), field.colour_widths())
        gradient = _borrow((tasks, size), dtype)
        sums = torch.zeros((tasks, 3), dtype=torch.float64)
        d_weights = [torch.zeros_like(w) for w in weights]
        pointers = [d.data_ptr() for d in d_weights]
        split = len(field.density)
        train = (
            target.data_ptr(),
            int(huber > 0),
            huber,
            distortion,
            trail.data_ptr(),
            stride,
            trail_count.data_ptr(),
            gradient.data_ptr(),
            sums.data_ptr(),
            pointers[:split],
            pointers[split:],
        )
        picture = _trace(field, tracing, rays, seed, train)
        _give_back(gradient)
        error, square, apart = sums.sum(dim=0).tolist()
        terms = max(3 * count, 1)
        apart /= max(count, 1)
        saved["report"] = (square / terms, apart, picture)
        ctx.pack = (field.grid, table.shape, trail, stride, trail_count, d_weights, table_gradient, touched)
        return torch.tensor(error / terms + distortion * apart, dtype=dtype)

    @staticmethod
    def backward(ctx, upstream: Tensor):
        refuse_second_order("train_rays")
        if ctx.pack is None:
            raise RuntimeError("train_rays: backward() was called twice; its buffers serve the next step by then")
        grid, shape, trail, stride, trail_count, d_weights, into, touched = ctx.pack
        ctx.pack = None
        d_table = torch.zeros(shape, dtype=trail.dtype) if into is None else into
        kernel("scatter_trail", trail, d_table)(
            grid.native,
            trail.data_ptr(),
            stride,
            trail_count.data_ptr(),
            trail_count.shape[0],
            float(upstream),
            d_table.data_ptr(),
            0 if touched is None else touched.data_ptr(),
        )
        _give_back(trail)
        returned = d_table if into is None else None
        return *(None,) * 10, returned, *(d * upstream for d in d_weights)


class _TrainRaysOnGPU(torch.autograd.Function):
    """The same from the kernels one by one. Nothing waits for the device."""

    @staticmethod
    def forward(
        ctx, field, tracing, rays, target, seed, huber, distortion, table_gradient, touched, saved, varying, table,
        *weights,
    ):  # fmt: skip
        kernels = _gpu(field, tracing, rays)
        trained = kernels.train(field, tracing, rays, target, seed, huber, distortion, half_type(target), varying)
        sums = trained.sums.sum(dim=0)
        count = rays[0].shape[0]
        terms, apart = max(3 * count, 1), sums[2] / max(count, 1)
        picture = Picture(trained.rgb, trained.opacity, trained.depth, trained.evaluated[0], trained.kept.total[0])
        saved["report"] = (sums[1] / terms, apart, picture)
        ctx.pack = (kernels, field, trained, terms, table_gradient, touched)
        return sums[0] / terms + distortion * apart

    @staticmethod
    def backward(ctx, upstream: Tensor):
        refuse_second_order("train_rays")
        if ctx.pack is None:
            raise RuntimeError("train_rays: backward() was called twice; its buffers serve the next step by then")
        kernels, field, trained, terms, into, touched = ctx.pack
        ctx.pack = None
        upstream = upstream / terms
        d_table = torch.zeros_like(field.table) if into is None else into
        kernels.scatter_gradient(field, trained, upstream, d_table)
        if touched is not None:
            # Marking each line that is written would cost more than the sweep that it saves a GPU.
            touched.fill_(1)
        returned = d_table if into is None else None
        return *(None,) * 11, returned, *(d * upstream for d in (*trained.d_density, *trained.d_colour))


def _gpu(field: Radiance, tracing: Tracing, rays: tuple[Tensor, ...]):
    """The kernels of GPUs, for a field and rays that have been checked."""
    origin, direction, near, far, background = rays
    check_rays(origin, direction, near, far)
    if background.shape != origin.shape:
        raise ValueError(f"background: expected shape {tuple(origin.shape)}, got {tuple(background.shape)}")
    check_bits(tracing.bits, tracing.cascades, tracing.size)
    if tracing.peak is not None:
        check_cells("peak", tracing.peak, tracing.cascades * tracing.size**3)
    kernels = gpu("radiance", *field.tensors(), *rays)
    kernels.check(field)
    return kernels


def density_at(field: Radiance, points: Tensor) -> Tensor:
    """Density at points of the scene [N, 3] -> [N], per scene unit. Not differentiable."""
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points: expected shape [N, 3], got {tuple(points.shape)}")
    way = route("density_at", points, *field.tensors())
    if way == "reference":
        with torch.no_grad():
            features = hash_encode_reference(to_unit(points, field.unbounded), field.table, field.grid)
            return torch.exp(mlp_reference(features, field.density)[:, 0] + field.shift)
    points = points.contiguous()
    out = empty((points.shape[0],), points)
    if way == "triton":
        kernels = gpu("radiance", points, *field.tensors())
        kernels.check(field)
        with torch.no_grad():
            kernels.density(field, to_unit(points, field.unbounded), half_type(points), out)
        return out
    *network, _, _ = field.arguments()
    kernel("density", points, field.table)(*network, points.data_ptr(), points.shape[0], out.data_ptr())
    return out


def to_unit(points: Tensor, unbounded: bool) -> Tensor:
    """Scene coordinates [N, 3] -> [0, 1]^3: the cube [-1, 1]^3 itself, or all of space contracted (mip-NeRF 360,
    equation 10, with the max norm, so that the cube keeps straight axes and half of the grid's resolution)."""
    if not unbounded:
        return (0.5 * points + 0.5).clamp(0.0, 1.0)
    reach = points.abs().amax(dim=1, keepdim=True).clamp(min=1.0)
    return points * (2.0 - 1.0 / reach) / reach * 0.25 + 0.5


def render_rays_reference(
    field: Radiance,
    tracing: Tracing,
    origin: Tensor,
    direction: Tensor,
    near: Tensor,
    far: Tensor,
    background: Tensor,
    seed: int = 0,
    distortion: bool = False,
) -> Picture:
    """`render_rays` in plain PyTorch, differentiable. With `distortion`, Picture.depth holds that loss per ray."""
    t0, dt, count = march_reference(
        origin,
        direction,
        near,
        far,
        tracing.bits,
        tracing.cascades,
        tracing.size,
        tracing.step,
        tracing.cone,
        tracing.most,
        seed,
    )
    device = origin.device
    live = torch.arange(tracing.most, device=device) < count[:, None]
    ray = torch.arange(origin.shape[0], device=device)[:, None].expand_as(live)[live]
    t0, dt = t0[live], dt[live]
    offset = torch.cat([torch.zeros(1, dtype=torch.int64, device=device), count.long().cumsum(0)])
    middle = (t0 + 0.5 * dt)[:, None]
    x = to_unit(origin[ray] + middle * direction[ray], field.unbounded)
    geometry = mlp_reference(hash_encode_reference(x, field.table, field.grid), field.density)
    sigma = torch.exp(geometry[:, 0] + field.shift)
    inputs = torch.cat([geometry, spherical_harmonics_reference(direction)[ray]], dim=1)
    rgb = torch.sigmoid(mlp_reference(inputs, field.colour))
    weight, colour, opacity, depth = composite_reference(sigma, rgb, t0, t0 + dt, offset)
    median = distance_at(0.5 * opacity.detach(), weight.detach(), t0, t0 + dt, offset)
    if distortion:
        pairs = zip(offset[:-1], offset[1:], strict=True)
        # The first, empty, makes a sum of no rays a sum.
        depth = torch.stack([depth.sum() * 0] + [_distortion(weight[a:b], t0[a:b], dt[a:b]) for a, b in pairs])[1:]
    return Picture(colour + (1 - opacity)[:, None] * background, opacity, depth, len(ray), len(ray), median)


def _distortion(weight: Tensor, t0: Tensor, dt: Tensor) -> Tensor:
    """Distortion loss of one ray as its double sum (mip-NeRF 360, equation 15)."""

    def squash(t: Tensor) -> Tensor:
        return t / (1 + t)

    middle, width = squash(t0 + 0.5 * dt), squash(t0 + dt) - squash(t0)
    apart = (middle[:, None] - middle[None, :]).abs()
    return (weight[:, None] * weight[None, :] * apart).sum() + (weight**2 * width).sum() / 3


def _reference_loss(picture: Picture, target: Tensor, huber: float, distortion: float) -> Loss:
    error = picture.rgb - target
    square = error**2
    term = torch.where(error.abs() <= huber, square, 2 * huber * error.abs() - huber**2) if huber > 0 else square
    apart = picture.depth.sum() / max(len(target), 1) if distortion > 0 else target.new_zeros(())
    detached = Picture(picture.rgb.detach(), picture.opacity.detach(), picture.depth.detach(), *picture[3:5])
    terms = max(term.numel(), 1)
    loss = term.sum() / terms + distortion * apart
    return Loss(loss, float(square.detach().sum() / terms), float(apart.detach()), detached)
