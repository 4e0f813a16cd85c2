"""Zip-NeRF (Barron et al. 2023): a hash grid that is asked about cones, so that near and far views agree.

`mipnerf360.py` knows how large a pixel is, and is slow; a hash grid (`ngp.py`, `nerfacto.py`) is fast, and knows points
only. A picture from twice as far away then shows other jaggies than the one from near, and training on both blurs the
field until neither is right. A grid cannot be integrated over a cone as sines can, so the paper samples the cone. In
the order of this file:

1. `hexagon`: six points for every interval of a ray, on a spiral whose moments are those of the cone's frustum
   (equations 1 and 2), each standing for a round Gaussian as large as its share of the cone.
2. `geometry.contract_cube_isotropic`: points and Gaussians of all of space come into the cube in which grids lie.
3. `ConeGrid`: what each level of the grid says at the six points is averaged, after a factor that falls to zero where
   a cell is smaller than the Gaussian (equation 3). The factors themselves are features too, so that the network can
   tell "nothing there" from "too fine to see from here".
4. `losses.spline_interlevel`: the proposals learn a blurred picture of where the field's weights are. Without the blur
   (`losses.interlevel`) distances at which a proposal errs are learnt one by one, and what lies between them flickers
   as the camera moves: aliasing along z.

Around these stand the parts of mip-NeRF 360: two rounds of proposals, here each with a grid of its own, that cut a ray
anew (`proposal_method.py`); the distortion loss; and a curve (`Spacing.POWER`) that measures rays in even steps near by
and ever longer ones far off. Values of the grids decay level by level, each level by its own mean, or the few rows of
the coarse levels would not feel it among the many of the fine ones.

What differs from the paper, because a CPU is the target: smaller tables and networks, fewer samples, harmonics instead
of sines for the direction, mean squared errors, no skip connection in the colour network, the contraction with straight
axes that the other grids here use, colours only where they count, and, after the first steps, proposals that learn in
every fourth. The preset `paper` has its sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .. import devices, ops
from ..cameras import Camera
from ..fields import bounded_exp, layers
from ..geometry import contract_cube_isotropic
from ..losses import charbonnier, distortion, mse, spline_interlevel
from ..ops import HashGrid, hash_encode, mlp
from ..optim import Group, exponential_after, warm_up
from ..proposal import Spacing, median_distance, power
from ..rays import Box, Rays, meeting
from ..spaces import BOX, Bounded, Unbounded
from .base import Image, asked, check_choices, check_pairs, check_ranges, picture
from .pixel_method import Phase
from .proposal_method import ProposalConfig, ProposalMethod, Traced

if TYPE_CHECKING:
    from ..scene import Pixels, SceneInfo


@dataclass(frozen=True, kw_only=True)
class ZipNeRFConfig(ProposalConfig):
    """Options of `zipnerf`: these, and those of `ProposalConfig`."""

    rays: int = 512
    proposal_samples: tuple[int, int] = (32, 16)
    """Intervals per ray that the first and the second proposal look at, with six points in each."""
    samples: int = 12
    """Intervals per ray that the field looks at, with six points in each."""
    width: int = 64
    """Width of the density network's hidden layer."""
    colour_width: int = 64
    """Width of the colour network's hidden layers."""
    colour_depth: int = 2
    """Hidden layers of the colour network."""
    proposal_levels: tuple[int, int] = (4, 6)
    """Levels of the two proposals' hash grids."""
    proposal_features: int = 2
    """Features per level of the proposals: 1, 2, 4 or 8."""
    proposal_finest: tuple[int, int] = (128, 512)
    annealed: int = 200
    """Steps in which proposals are believed more and more (mip-NeRF 360, equation 18), and learn at every step."""
    blur: tuple[float, float] = (0.03, 0.003)
    """Half widths of the box that blurs the field's weights before each proposal learns them, as shares of a ray."""
    deviation: float = 0.5
    """Standard deviation of the Gaussian at each of the six points, as a share of its distance from the ray."""
    poses: str = "off"
    colour_loss: Literal["mse", "charbonnier"] = "mse"
    """The square, which PSNR measures, or Charbonnier's, the paper's, which forgives passers-by and highlights."""
    interlevel: float = 0.01
    """Weight of the loss by which proposals learn. Nothing else moves them but the decay of their grids."""
    decay: float = 1e-4
    """Weight of the sum over all grids' levels of the mean square of their values."""
    table_lr: float = 5e-2
    network_lr: float = 5e-3
    warm_up: float = 0.01
    """Share of the training in which learning rates rise from a hundredth of themselves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            self,
            ("width", 8, 256), ("geometry", 1, 256), ("colour_width", 8, 256), ("colour_depth", 1, 6),
            ("annealed", 1, 10**9), ("deviation", 0.0, 10.0), ("interlevel", 0.0, 10.0), ("decay", 0.0, 10.0),
            ("warm_up", 0.0, 1.0),
        )  # fmt: skip
        check_pairs(self, ("proposal_levels", 1, 32), ("blur", 1e-6, 1.0))
        check_choices(self, ("proposal_features", (1, 2, 4, 8)), ("colour_loss", ("mse", "charbonnier")))


# ---------------------------------------------------------------------------------------------------- points in a cone

TURNS = torch.tensor([[0, 2, 4, 3, 5, 1], [1, 5, 3, 4, 2, 0]])
"""The places of six points around the ray, in sixths of a turn, in the order of their distances. In this order, or its
mirror image, neither place is correlated with the distance (equation 2)."""


def hexagon(rays: Rays, edges: Tensor, rng: Generator | None) -> tuple[Tensor, Tensor]:
    """Six points in each conical frustum between neighbouring `edges` [R, n + 1] (equations 1 and 2).

        t_j = mean + 3 / sqrt(7) (2 j / 5 - 1) half sqrt((half^2 - middle^2)^2 + 4 middle^4) / (half^2 + 3 middle^2)

    Along the ray, mean and variance of t_j are those of the frustum (mip-NeRF, equation 7). Across it the points lie
    radius t_j / sqrt(2) away, which gives them the frustum's variance there. Over all turns of the hexagon, the whole
    covariance is the same.

    Args:
        rays: with the radius of each pixel's cone at distance 1.
        rng: turns each hexagon by a random angle, and mirrors half of them. None: every other one is mirrored and
            turned by a twelfth, so that neighbours complement one another and pictures repeat.

    Returns:
        points [R, n, 6, 3], and how far from the ray each is, [R, n, 6], which is without gradient.
    """
    middle, half = 0.5 * (edges[:, 1:] + edges[:, :-1]), 0.5 * (edges[:, 1:] - edges[:, :-1])
    total = (half.square() + 3.0 * middle.square()).clamp(min=torch.finfo(edges.dtype).tiny)
    # The paper's t0 + ..., around the frustum's mean: for short intervals far away nothing cancels.
    mean = middle + 2.0 * middle * half.square() / total
    spread = ((half.square() - middle.square()).square() + 4.0 * middle.pow(4)).sqrt()
    order = torch.arange(6, dtype=edges.dtype, device=edges.device) * 0.4 - 1.0
    t = mean[..., None] + (3.0 / math.sqrt(7.0) * half * spread / total)[..., None] * order
    if rng is None:
        mirrored = torch.arange(edges.shape[1] - 1, device=edges.device) % 2
        turn = mirrored * (math.pi / 6.0)
    else:
        drawn = devices.sent(torch.rand(2, *middle.shape, generator=rng, device=rng.device), edges.device)
        mirrored, turn = (drawn[0] < 0.5).long(), 2.0 * math.pi * drawn[1]
    places = (math.pi / 3.0) * devices.constant(TURNS, edges.device).to(edges.dtype)
    angle = places[mirrored] + turn[..., None]
    distance = (rays.radius[:, None, None] * t * math.sqrt(0.5)).detach()
    right, up = (axis[:, None, None] for axis in across(rays.direction))
    points = rays.at(t.flatten(1)).view(*t.shape, 3)
    points = points + (distance * angle.cos())[..., None] * right + (distance * angle.sin())[..., None] * up
    return points, distance


@torch.no_grad()
def across(direction: Tensor) -> tuple[Tensor, Tensor]:
    """Two unit vectors [R, 3] at right angles to each direction [R, 3] and to each other."""
    away = torch.zeros_like(direction).scatter_(-1, direction.abs().argmin(-1, keepdim=True), 1.0)
    right = F.normalize(torch.linalg.cross(direction, away), dim=-1)
    return right, torch.linalg.cross(direction, right)


def downweighting(deviation: Tensor, cells: Tensor) -> Tensor:
    """By how much levels of `cells` [L] per unit count for Gaussians of a standard deviation [...]: [..., L] (eq. 3).

    erf(1 / sqrt(8 deviation^2 cells^2)): the part of the Gaussian that lies, along one axis, in a cell around its
    middle. 1 where cells are large, 0 where many of them fit into the Gaussian and would alias.
    """
    return torch.erf(math.sqrt(0.125) / (deviation[..., None] * cells))


# --------------------------------------------------------------------------------------------------------------- fields


class ConeGrid(nn.Module):
    """A hash grid that is asked at several points at once, each with an extent, and answers for all of them together.

    Of each level, there are the features and one number more that says how much of them was to be seen.
    """

    START = 1e-4
    """Largest value of the tables at the start."""
    cells: Tensor

    def __init__(self, grid: HashGrid) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.empty(grid.rows, grid.features).uniform_(-self.START, self.START))
        self.register_buffer("cells", torch.tensor(grid.scale), persistent=False)

    @property
    def width(self) -> int:
        """Numbers per answer."""
        return self.grid.levels * (self.grid.features + 1)

    def forward(self, unit: Tensor, deviation: Tensor) -> Tensor:
        """Points [N, K, 3] of the unit cube with standard deviations [N, K] there -> [N, levels (features + 1)]."""
        count, points = deviation.shape
        shape = (count, points, self.grid.levels, self.grid.features)
        share = downweighting(deviation, self.cells)
        features = hash_encode(unit.reshape(-1, 3), self.table, self.grid).view(shape)
        seen = (features * share[..., None]).mean(dim=1).flatten(1)
        # As large as the features are, or one of the two would drown the other in the network (section 3).
        size = (self.START**2 + self.squares().detach()).sqrt()
        return torch.cat([seen, (2.0 * share.mean(dim=1) - 1.0) * size], dim=1)

    def squares(self) -> Tensor:
        """[L] the mean square of each level's values."""
        return _MeanSquares.apply(self.table, tuple(self.grid.first_row))


class _MeanSquares(torch.autograd.Function):
    """Mean squares [L] of a table's levels, which start at the rows `first` [L + 1]. Autograd of the slices would fill
    a table's worth of zeros for every level."""

    @staticmethod
    def forward(ctx, table: Tensor, first: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(table)
        ctx.first = first
        return torch.stack([table[i:j].square().mean() for i, j in zip(first, first[1:], strict=False)])

    @staticmethod
    def backward(ctx, upstream: Tensor):
        (table,) = ctx.saved_tensors
        slope = torch.empty_like(table)
        for level, (i, j) in enumerate(zip(ctx.first, ctx.first[1:], strict=False)):
            torch.mul(table[i:j], upstream[level] * (2.0 / table[i:j].numel()), out=slope[i:j])
        return slope, None


class ProposalField(nn.Module):
    """Density alone, from a small grid and a tiny network: right about where, and no more."""

    def __init__(self, grid: HashGrid, width: int, shift: float) -> None:
        super().__init__()
        self.cones, self.shift = ConeGrid(grid), shift
        self.network = layers(self.cones.width, width, 1)

    def density(self, unit: Tensor, deviation: Tensor) -> Tensor:
        """Points [N, K, 3] of the unit cube and their deviations [N, K] -> density [N] per scene unit."""
        raw = mlp(self.cones(unit, deviation), list(self.network))
        return bounded_exp(raw[:, 0] + self.shift)


class Field(nn.Module):
    """Density and colour: the grid, and one small network for each."""

    def __init__(self, grid: HashGrid, config: ZipNeRFConfig) -> None:
        super().__init__()
        c = config
        self.cones, self.shift = ConeGrid(grid), c.shift
        self.density_network = layers(self.cones.width, c.width, c.geometry)
        self.colour_network = layers(c.geometry + 16 + c.appearance, *[c.colour_width] * c.colour_depth, 3)

    def density(self, unit: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """Points [N, K, 3] of the unit cube and their deviations [N, K] -> density [N] per scene unit, geometry
        features [N, G]."""
        geometry = mlp(self.cones(unit, deviation), list(self.density_network))
        return bounded_exp(geometry[:, 0] + self.shift), geometry

    def colour(self, geometry: Tensor, of_ray: Tensor) -> Tensor:
        """Geometry features [N, G] and what holds for the whole ray, [N, 16 + A] (the direction's harmonics and the
        appearance code) -> colours [N, 3]."""
        raw = mlp(torch.cat([geometry, of_ray], dim=1), list(self.colour_network))
        # A little more than [0, 1], so that black and white are reached by finite outputs.
        return 1.002 * torch.sigmoid(raw) - 0.001


# --------------------------------------------------------------------------------------------------------------- method


class ZipNeRF(ProposalMethod):
    """See the module's docstring."""

    Config = ZipNeRFConfig
    PRESETS: ClassVar[dict[str, ZipNeRFConfig]] = {
        "": ZipNeRFConfig(),
        "fast": ZipNeRFConfig(steps=6_000, proposal_samples=(24, 12), samples=8, log2_rows=15),
        # The paper's own sizes and rates, for a GPU. Its tables hold a tenth of their features, so that their learning
        # rate is a tenth of this one, and the decay, of smaller values, a hundred times this one.
        "paper": ZipNeRFConfig(
            steps=25_000, rays=65536, proposal_samples=(64, 64), samples=32, padding=0.0, levels=10, log2_rows=21,
            finest=8192, finest_bounded=8192, geometry=256, colour_width=256, colour_depth=3, proposal_levels=(6, 8),
            proposal_features=1, proposal_log2_rows=21, proposal_finest=(512, 2048), proposal_width=64,
            annealed=25_000, proposal_every=1, colour_loss="charbonnier", distortion=0.01, decay=1e-3, table_lr=0.1,
            network_lr=0.01, warm_up=0.1, plateau=0.0, final_lr=0.1, keep=0.0,
        ),
    }  # fmt: skip
    ON_GPU: ClassVar[dict[str, int]] = {"rays": 8192}
    CHUNK = 1 << 12
    """Rays of a picture at once."""

    eyes: Tensor

    def __init__(self, config: ZipNeRFConfig, info: SceneInfo) -> None:
        super().__init__(config, info)
        c = config
        finest = c.finest_bounded if info.bounded else c.finest
        self.field = Field(HashGrid(c.levels, c.features, c.log2_rows, c.base, finest), c)
        self.first, self.second = (
            ProposalField(
                HashGrid(n, c.proposal_features, c.proposal_log2_rows, c.base, side), c.proposal_width, c.shift
            )
            for n, side in zip(c.proposal_levels, c.proposal_finest, strict=True)
        )
        self.refine_views()
        # Forward-facing captures are unbounded ones here: the curve of distances needs no warp of space.
        self.space = Bounded(info) if info.bounded else Unbounded(info)
        self.spacing = Spacing.LINEAR if info.bounded else Spacing.POWER
        cameras = [info.cameras[i] for i in info.train]
        self.register_buffer("eyes", torch.stack([camera.center.float() for camera in cameras]), persistent=False)
        middle = [torch.tensor([[camera.width, camera.height]]) / 2.0 for camera in cameras]
        radii = [float(camera.rays(xy).radius) for camera, xy in zip(cameras, middle, strict=True)]
        self.radius = sorted(radii)[len(radii) // 2]

    def groups(self) -> list[Group]:
        c = self.config
        # The decay touches every entry in every step in which its grid learns, so nothing is skipped but the rest.
        tables = [part.cones.table for part in (self.field, *self.proposals)]
        networks = [*self.field.density_network, *self.field.colour_network]
        networks += [layer for p in self.proposals for layer in p.network]
        return self.grouped(tables, networks, warm_up(exponential_after(c.plateau, c.final_lr), c.warm_up))

    @property
    def annealed(self) -> int:
        return int(self.config.annealed)

    def terms(self, pixels: Pixels, phase: Phase, rng: Generator) -> dict[str, Tensor]:
        """Error of the colours; and what keeps proposals, weights, grids and poses in order."""
        c = self.config
        looked = self.look(pixels, phase, rng)
        seen, factor = looked.seen, looked.per_meeting
        *proposals, (edges, weights) = seen.levels
        grids = [self.field.cones]
        terms = {
            "colour": (mse if c.colour_loss == "mse" else charbonnier)(looked.shown, looked.target),
            "distortion": c.distortion * factor * distortion(self.measured(seen), weights),
        }
        if looked.learning:
            bounds = [
                spline_interlevel(edges, weights, *proposal, radius)
                for proposal, radius in zip(proposals, c.blur, strict=True)
            ]
            terms["proposals"] = c.interlevel * factor * torch.stack(bounds).sum()
            grids += [proposal.cones for proposal in self.proposals]
        if c.decay > 0:
            terms["decay"] = c.decay * torch.cat([grid.squares() for grid in grids]).sum()
        terms |= self.pose_terms(phase)
        self.stats = self.counts(looked, mse(looked.shown.detach(), looked.target))
        return terms

    def measured(self, seen: Traced) -> Tensor:
        """Edges of the field's intervals [R, n + 1] on the curve in which weights shall lie together: even in distance
        in a bounded scene; else one so steep near the cameras that what hangs before them costs most."""
        if self.info.bounded:
            return seen.levels[-1][0]
        return power(1e4 * seen.edges, -0.25)

    # -- along rays ----------------------------------------------------------------------------------------------------

    def bound(self, rays: Rays, crop: Box | None = None, fixed: bool = False) -> tuple[Tensor, Rays]:
        near, far = rays.near, rays.far
        if crop is not None:
            enter, leave = crop.span(rays.origin.detach(), rays.direction.detach())
            near, far = torch.maximum(near, enter), torch.minimum(far, leave)
        bounded = self.space.bound(replace(rays, near=near, far=far))
        return meeting(replace(bounded, near=bounded.near.detach(), far=bounded.far.detach()), fixed)

    def trace(
        self,
        rays: Rays,
        code: Tensor | None,
        rng: Generator | None,
        anneal: float | Tensor = 1.0,
        proposals_learn: bool = False,
    ) -> Traced:
        cut = self.cut(rays, rng, anneal, proposals_learn)
        kept = self.kept(cut, rng)
        rgb = kept.summed(self.colour(kept, rays, code), len(rays))
        edges_s, weights = cut.levels[-1]
        # The middle in s: that of the last interval in t may be hundreds of units behind what it holds.
        middle = self.spacing.t_from_s(0.5 * (edges_s[:, 1:] + edges_s[:, :-1]), rays.near, rays.far)
        return Traced(rgb, weights.sum(-1), (weights * middle).sum(-1), cut.levels, cut.edges)

    def places(self, rays: Rays, edges: Tensor, rng: Generator | None) -> tuple[Tensor, Tensor]:
        """Six points in each interval, [R n, 6, 3] in the unit cube, and their standard deviations there [R n, 6]."""
        points, distance = hexagon(rays, edges, rng)
        unit, deviation = self.unit(points, self.config.deviation * distance)
        return unit.flatten(0, 1), deviation.flatten(0, 1)

    def unit(self, points: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """Points [..., 3] of the scene and deviations [...] -> the unit cube in which the grids lie."""
        if self.info.bounded:
            return points * (0.5 / BOX) + 0.5, deviation * (0.5 / BOX)
        squeezed, narrowed = contract_cube_isotropic(points, deviation)
        return squeezed * 0.25 + 0.5, narrowed.detach() * 0.25

    # -- pictures ------------------------------------------------------------------------------------------------------

    @picture
    @ops.own_threads()
    def render(
        self, camera: Camera, background: Tensor | None = None, crop: Box | None = None, code: Tensor | None = None
    ) -> Image:
        """Picture of any camera, in chunks of rows; with an appearance code [A], or that of novel views."""
        info, near = self.info, self.info.near_for(camera)
        colour = torch.tensor(info.background or (0.0, 0.0, 0.0)) if background is None else background
        colour = colour.to(self.eyes)
        code = self.novel_code() if code is None else code.to(self.device)
        parts = []
        for xy in torch.split(camera.pixel_grid(), self.chunk(self.CHUNK)):
            rays = camera.rays(xy, near, info.far).to(torch.float32).to(self.device)
            hit, bounded = self.bound(rays, crop)
            seen = self.trace(bounded, code, None)
            depth = torch.where(seen.alpha > 1e-3, seen.depth / seen.alpha.clamp(min=1e-3), 0.0)
            halfway = median_distance(*seen.levels[-1], bounded.near, bounded.far, self.spacing)
            median = torch.where(seen.alpha > 1e-3, halfway, 0.0)
            of_hit = [*(seen.rgb - seen.alpha[:, None] * colour).unbind(1), seen.alpha, depth, median]
            parts.append(rays.near.new_zeros(len(rays), 6).index_copy(0, hit, torch.stack(of_hit, dim=1)))
        found = torch.cat(parts).view(camera.height, camera.width, 6)
        rgb, (alpha, depth, median) = found[..., :3] + colour, found[..., 3:].unbind(-1)
        return Image(rgb.clamp(0, 1), alpha.clamp(0, 1), depth, median_depth=median)

    @asked
    def density_at(self, points: Tensor) -> Tensor:
        """Density [N] per scene unit at points [N, 3] of the scene; 0 outside the cube of a bounded one.

        The grids were shown Gaussians, none smaller than a pixel, so each point is asked for as the nearest training
        camera would see it.
        """
        found = []
        for part in points.split(1 << 15):
            distance = torch.cdist(part, self.eyes).amin(dim=1)
            deviation = self.config.deviation * math.sqrt(0.5) * self.radius * distance
            places = self.unit(part[:, None], deviation[:, None])
            with self.computing():
                found.append(self.field.density(*places)[0])
        density = torch.cat(found) if found else points.new_zeros(0)
        outside = points.abs().amax(1) > BOX if self.info.bounded else torch.zeros_like(density, dtype=torch.bool)
        return density.masked_fill(outside, 0.0)
