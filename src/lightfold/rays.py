"""Rays, the samples on them, and how sample positions are drawn.

t   distance along a ray, in scene units (directions are unit vectors), t0 and t1 the ends of an interval
R   number of rays, S number of samples, n number of intervals per ray
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .devices import constant, sent

_ZERO, _INFINITY, _UNKNOWN = torch.tensor(0.0), torch.tensor(math.inf), torch.tensor(-1)


@dataclass(frozen=True, eq=False)
class Rays:
    """R rays, flat. Where `near`, `far`, `radius` or `view` is a scalar tensor, it holds for every ray."""

    origin: Tensor
    """[R, 3] in the world."""
    direction: Tensor
    """[R, 3] unit vectors in the world (`ndc_rays` is the one exception)."""
    radius: Tensor = _ZERO
    """[R] radius of the pixel's cone at distance 1: what mip-NeRF integrates over."""
    near: Tensor = _ZERO
    """[R] distance where the ray starts to count."""
    far: Tensor = _INFINITY
    """[R] distance where it ends; infinity when nothing bounds it."""
    view: Tensor = _UNKNOWN
    """[R] int64, index of the photo that the ray belongs to, -1 when unknown."""

    def __post_init__(self) -> None:
        if self.origin.ndim != 2 or self.origin.shape[-1] != 3 or self.origin.shape != self.direction.shape:
            raise ValueError(
                "Rays: expected origin and direction of the same shape [R, 3], "
                f"got {list(self.origin.shape)} and {list(self.direction.shape)}"
            )
        count = self.origin.shape[0]
        for name in ("radius", "near", "far", "view"):
            value = getattr(self, name)
            if value.ndim == 0:
                dtype = torch.int64 if name == "view" else self.origin.dtype
                full = torch.full((count,), value.item(), dtype=dtype, device=self.origin.device)
                object.__setattr__(self, name, full)
            elif value.shape != (count,):
                raise ValueError(f"Rays: expected {name} of shape [{count}], got {list(value.shape)}")

    def __len__(self) -> int:
        return self.origin.shape[0]

    def __getitem__(self, index: Any) -> Rays:
        """The rays that a slice, mask or index tensor selects."""
        return Rays(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, target: torch.device | str | torch.dtype) -> Rays:
        """On another device, or in another float type (`view` stays int64)."""
        keep = isinstance(target, torch.dtype)
        moved = {f.name: getattr(self, f.name).to(target) for f in fields(self) if not (keep and f.name == "view")}
        return Rays(**{"view": self.view, **moved})

    def at(self, t: Tensor) -> Tensor:
        """Points [R, n, 3] at distances t [R, n]."""
        return self.origin[:, None] + t[..., None] * self.direction[:, None]


@dataclass(frozen=True, eq=False)
class Samples:
    """S intervals, packed ray after ray: those of ray i are `offset[i]` up to `offset[i + 1]`, near to far."""

    t0: Tensor
    """[S] where the interval starts."""
    t1: Tensor
    """[S] where it ends."""
    ray: Tensor
    """[S] int64, index of the ray."""
    offset: Tensor
    """[R + 1] int64."""

    @classmethod
    def regular(cls, edges: Tensor) -> Samples:
        """The same number of intervals on every ray, from their edges [R, n + 1]."""
        rays, n = edges.shape[0], edges.shape[1] - 1
        ray = torch.arange(rays, device=edges.device).repeat_interleave(n)
        offset = torch.arange(rays + 1, device=edges.device) * n
        return cls(edges[:, :-1].reshape(-1), edges[:, 1:].reshape(-1), ray, offset)

    def __len__(self) -> int:
        return self.t0.shape[0]

    @property
    def middle(self) -> Tensor:
        """[S] the middle of each interval."""
        return 0.5 * (self.t0 + self.t1)

    @property
    def length(self) -> Tensor:
        """[S] the length of each interval."""
        return self.t1 - self.t0

    def positions(self, rays: Rays) -> Tensor:
        """Points [S, 3] in the middle of the intervals."""
        return rays.origin[self.ray] + self.middle[:, None] * rays.direction[self.ray]


@dataclass(frozen=True, eq=False)
class Box:
    """A box of any place, size and direction, to look at a part of the scene."""

    box_from_world: Tensor
    """[3, 4] affine: the box is what it maps into the cube [-1, 1]^3."""

    @classmethod
    def of(cls, centre: Tensor, rotation: Tensor, size: Tensor) -> Box:
        """From its centre [3], the rotation world_from_box [3, 3] and the lengths of its sides [3], all positive."""
        linear = rotation.T * (2.0 / size)[:, None]
        return cls(torch.cat([linear, -(linear @ centre)[:, None]], dim=1))

    def span(self, rays_origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Distances [R] at which rays [R, 3] enter and leave the box; they leave before they enter if they miss it.

        Slabs: a ray is inside all three pairs of walls from its last entry to its first exit.
        """
        affine = constant(self.box_from_world, direction.device).to(direction.dtype)
        origin = rays_origin @ affine[:, :3].T + affine[:, 3]
        along = direction @ affine[:, :3].T
        # A direction of exactly 0 could give 0 / 0; a tiny one gives huge distances of the right signs.
        along = torch.where(along.abs() < 1e-12, 1e-12, along)
        one, other = (-1 - origin) / along, (1 - origin) / along
        return torch.minimum(one, other).amax(dim=-1), torch.maximum(one, other).amin(dim=-1)


def meeting(
    rays: Rays, fixed: bool = False, origin: Tensor | None = None, direction: Tensor | None = None
) -> tuple[Tensor, Rays]:
    """Indices [H] of those of R rays that meet the scene, and these rays.

    The scene lies between near and far, so a ray that ends where it begins, or before, misses it. So does one that has
    no direction, as pixels beyond a lens's rim.

    fixed: all rays instead, H = R, so that the host need not wait for a device to learn how many meet the scene. Those
        that miss are replaced by a ray of no length, near = far: its intervals have none, and thereby no weight.
    origin, direction: [3] of that ray; None: any.
    """
    hit = (rays.far > rays.near) & (rays.origin + rays.direction).detach().isfinite().all(-1)
    if not fixed:
        index = torch.nonzero(hit)[:, 0]
        return index, rays[index]
    origin = rays.origin.new_zeros(3) if origin is None else origin
    direction = rays.direction.new_full((3,), 3**-0.5) if direction is None else direction
    return torch.arange(len(rays), device=hit.device), Rays(
        origin=torch.where(hit[:, None], rays.origin, origin),
        direction=torch.where(hit[:, None], rays.direction, direction),
        radius=torch.where(hit, rays.radius, 1.0),
        near=torch.where(hit, rays.near, 1.0),
        far=torch.where(hit, rays.far, 1.0),
        view=rays.view,
    )


def per_meeting(rays: Rays) -> Tensor:
    """The factor R / H that makes a mean over all R rays of a `meeting`, to which those that miss add nothing, one over
    the H that meet the scene. Where all miss it is R, for there is nothing to multiply."""
    return len(rays) / (rays.far > rays.near).sum().clamp(min=1)


def _one_per_stratum(rows: int, n: int, rng: torch.Generator | None, like: Tensor) -> Tensor:
    """[rows, n] increasing numbers of [0, 1), one in each n-th part: uniform in it, or its middle without a
    generator."""
    start = torch.arange(n, dtype=like.dtype, device=like.device)
    if rng is None:
        return ((start + 0.5) / n).expand(rows, n)
    jitter = sent(torch.rand(rows, n, generator=rng, dtype=like.dtype, device=rng.device), like.device)
    # The sum may round up to n; the half-open interval must stay half-open.
    return ((start + jitter) / n).clamp_max(1.0 - torch.finfo(like.dtype).eps)


def stratified(near: Tensor, far: Tensor, n: int, rng: torch.Generator | None) -> Tensor:
    """One distance in each of n equal parts of [near, far] (NeRF 2020, eq. 2).

    Args:
        near, far: [R], finite.
        n: samples per ray.
        rng: draws uniformly in each part; None takes the middles (evaluation must repeat).

    Returns:
        t [R, n], increasing.
    """
    share = _one_per_stratum(near.shape[0], n, rng, near)
    return near[:, None] + (far - near)[:, None] * share


def sample_pdf(edges: Tensor, weights: Tensor, m: int, rng: torch.Generator | None) -> Tensor:
    """Draws m distances per ray from the step function that `weights` is (NeRF 2020, section 5.2, eq. 5).

    The inverse of the cumulative distribution, evaluated at one number per m-th part of [0, 1]. A bin without weight is
    never drawn from; a ray whose weights are all zero is sampled as if they were equal. No gradient passes: where to
    look next is not what the loss should teach the weights.

    Args:
        edges: ends of the bins [R, n + 1], increasing.
        weights: mass of each bin [R, n], not negative; need not sum to one.
        m: samples per ray.
        rng: draws uniformly in each part; None takes the middles.

    Returns:
        t [R, m], increasing.
    """
    if edges.ndim != 2 or weights.shape != (edges.shape[0], edges.shape[1] - 1):
        raise ValueError(
            "sample_pdf: expected edges [R, n + 1] and weights [R, n], "
            f"got {list(edges.shape)} and {list(weights.shape)}"
        )
    with torch.no_grad():
        return inverse_cdf(edges, weights, _one_per_stratum(edges.shape[0], m, rng, edges))


def inverse_cdf(edges: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """Where the step function that `weights` is has the share u of its mass before it.

    A bin without weight never holds an answer; a ray whose weights are all zero is taken as if they were equal.

    Args:
        edges: ends of the bins [R, n + 1], increasing.
        weights: mass of each bin [R, n], not negative; need not sum to one.
        u: [R, m] shares in [0, 1).

    Returns:
        positions [R, m], increasing where u is.
    """
    total = weights.sum(-1, keepdim=True)
    mass = torch.where(total > 0, weights, torch.ones_like(weights))
    cumulative = torch.cumsum(mass, -1)
    # x / x is one exactly, and bins without weight after the last that has some keep that one exactly.
    cdf = torch.cat([torch.zeros_like(total), cumulative / cumulative[:, -1:]], dim=-1)
    upper = torch.searchsorted(cdf, u.contiguous(), right=True).clamp_(1, weights.shape[1])
    cdf0, cdf1 = cdf.gather(1, upper - 1), cdf.gather(1, upper)
    edge0, edge1 = edges.gather(1, upper - 1), edges.gather(1, upper)
    share = (u - cdf0) / (cdf1 - cdf0).clamp_min(torch.finfo(edges.dtype).tiny)
    return torch.lerp(edge0, edge1, share.clamp(0.0, 1.0))


def ndc_rays(rays: Rays, focal: float, width: int, height: int, near: float = 1.0) -> Rays:
    """Rays of a forward-facing capture in normalised device coordinates (NeRF 2020, appendix C).

    The world must be the frame of the average camera. The paper's axes look along -z; these are OpenCV's, so its
    formulas appear here with z (and y) negated: x' = 2f/W x/z, y' = 2f/H y/z, z' = 1 - 2 near/z. The frustum beyond the
    near plane becomes the cube [-1, 1]^3: the near plane is z' = -1, infinity is z' = +1.

    Args:
        rays: with direction z > 0.
        focal: focal length in pixels.
        width, height: of the picture in pixels.
        near: distance of the near plane along z.

    Returns:
        rays with origin on the near plane and **directions that are not unit**: at t = 0 the ray is on the near plane,
        at t = 1 at infinity, and near = 0, far = 1 say so. Multiply intervals by the direction's length for distances
        in this space. `radius` is the constant half-width of the pixel's tube at the near plane.

    Raises:
        ValueError: a ray of the CPU does not look forward.
    """
    z = rays.direction[:, 2]
    # Looking there would be waiting for a device. Whoever has rays there has left out those that do not look forward.
    if z.device.type == "cpu" and bool((z <= 0).any()):
        raise ValueError(f"ndc_rays: expected directions with z > 0 (forward-facing), got z = {float(z.min()):.4g}")
    to_near = (near - rays.origin[:, 2]) / z
    origin = rays.origin + to_near[:, None] * rays.direction
    across, down = 2.0 * focal / width, 2.0 * focal / height
    start = torch.stack([across * origin[:, 0], down * origin[:, 1]], dim=-1) / near
    end = torch.stack([across * rays.direction[:, 0], down * rays.direction[:, 1]], dim=-1) / z[:, None]
    ones = torch.ones_like(z)[:, None]
    # A pixel's tube: its cone's width at the near plane, magnified as the plane is.
    radius = rays.radius * to_near.abs() * (0.5 * (across + down)) / near
    return Rays(
        origin=torch.cat([start, -ones], dim=-1),
        direction=torch.cat([end - start, 2.0 * ones], dim=-1),
        radius=radius,
        near=torch.zeros_like(z),
        far=torch.ones_like(z),
        view=rays.view,
    )
