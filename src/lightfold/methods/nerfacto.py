"""nerfacto (Tancik et al. 2023): what practice made of NeRF. Proposals, a hash grid, contraction, poses, exposure.

Each part cures one weakness of the 2020 paper (`nerf.py`), and they fit together in one page:

    photographs' poses are wrong      small corrections are trained along       (`refine.PoseRefinement`)
    their exposures differ            a code per photograph                      (`refine.AppearanceCodes`)
    samples in air are wasted         two cheap density fields propose where     (`proposal.resample`)
    scenes do not end                 all of space is contracted into a cube     (`to_unit`)
    big networks are slow             a hash grid and two small networks         (`ops.hash_encode`, `ops.mlp`)
    floaters and fog                  weights of a ray shall lie together        (`losses.distortion`)

A ray, from the batch to its colour:

    s edges, even  ->  proposal 1: density -> weights -> new edges
                   ->  proposal 2: density -> weights -> new edges
                   ->  field:      density -> weights w_i;   colour c_i where w_i counts
    picture = sum w_i c_i + (1 - sum w_i) background

The proposals learn from the field alone (`losses.interlevel`): they must bound its weights from above. The colours
train the field, the codes and, through the samples' positions, the poses.

What differs from Nerfstudio's own, because a CPU is the target: fewer samples (64 and 32 proposed, 16 fine, not 256,
96 and 48), eight levels of four features, smaller tables, fewer rays per step, and codes only where they are asked for.
The preset `big` has its sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .. import devices, ops
from ..cameras import Camera
from ..depth import KINDS, depth_loss
from ..errors import ConfigError
from ..fields import bounded_exp, layers
from ..losses import distortion, interlevel, mse
from ..ops import HashGrid, hash_encode, mlp, spherical_harmonics
from ..ops.radiance import to_unit
from ..optim import Adam, Group, exponential_after
from ..proposal import Spacing, above, median_distance, resample, weights_from_density
from ..rays import Box, Rays, meeting, per_meeting
from ..refine import MANIFOLDS, AppearanceCodes, PoseRefinement
from .base import Image, Method, asked, check_ranges, earlier, picture, ray_chunks

if TYPE_CHECKING:
    from ..scene import Pixels, Scene, SceneInfo


@dataclass(frozen=True)
class NerfactoConfig:
    """Options of `nerfacto`."""

    steps: int = 20_000
    """Steps of a full training."""
    rays: int = 1024
    """Rays per step."""
    proposal_samples: tuple[int, int] = (64, 32)
    """Intervals per ray that the first and the second proposal look at."""
    samples: int = 16
    """Intervals per ray that the field looks at."""
    padding: float = 0.01
    """Weight that every interval of a proposal gets on top of its own when it is cut anew. Without it, nothing is ever
    looked at where a proposal once saw nothing: matter creeps towards the cameras, and no photograph can object."""
    levels: int = 8
    """Levels of the field's hash grid."""
    features: int = 4
    """Features per level: 1, 2, 4 or 8."""
    log2_rows: int = 16
    """Rows of a level's table, as a power of two."""
    base: int = 16
    """Vertices per axis of the coarsest level, of the field and of the proposals."""
    finest: int = 4096
    """Vertices per axis of the finest level of an unbounded scene, which spends half of it on the cube [-1, 1]^3."""
    finest_bounded: int = 1024
    """The same for a bounded scene, all of which lies in that cube."""
    width: int = 64
    """Width of the field's hidden layers."""
    geometry: int = 16
    """Outputs of the density network, density among them."""
    proposal_levels: int = 5
    """Levels of a proposal's hash grid, of two features each."""
    proposal_log2_rows: int = 15
    """Rows of a proposal's levels, as a power of two."""
    proposal_finest: tuple[int, int] = (128, 256)
    """Vertices per axis of the finest level of the two proposals."""
    proposal_width: int = 16
    """Width of a proposal's hidden layer."""
    proposal_every: int = 4
    """After the first thousand steps, proposals learn in every so many steps only: they follow what moves slowly."""
    shift: float = -1.0
    """Density is exp(raw + shift): how thin the fog is in which training starts."""
    appearance: int = 0
    """Length of the code per photograph, 8 to 32 where exposures differ a lot; 0 for none. Codes make novel views look
    like the average photograph, which costs plain scores (see `lightfold eval --refine`)."""
    poses: str = "so3xr3"
    """Correction of poses: "so3xr3", "se3" or "off"."""
    pose_lr: float = 3e-4
    """Learning rate of poses, in scene units and radians; it ends at a hundredth of it. Adam moves at this rate on
    noise too, and a view has few rays in a batch: higher rates shake good poses."""
    coarse_until: float = 0.0
    """Share of the training in which the levels of the grid open one after the other, from the coarsest COARSE on; 0
    opens all at the start. Detail that is learnt from wrong poses holds them where they are (BARF), but it comes later
    then, so this is for poses that are wrong by more than a few pixels."""
    pose_delay: int = 500
    """Steps before poses start to move: from a field that knows nothing they would learn nothing."""
    pose_penalty: float = 1e-2
    """Weight of the mean squared shift of the poses; turns count a tenth of it."""
    normals: bool = False
    """Also learn normals, smoother than the density's own gradient, for shading and meshes."""
    depth: float = 0.0
    """Weight of the loss on measured depth, for captures that come with it; 0 ignores it."""
    depth_kind: str = "termination"
    """Which loss on measured depth: "termination" (DS-NeRF) or "sight" (URF)."""
    depth_spread: float = 0.01
    """Standard deviation of measured depth, as a share of it."""
    table_lr: float = 2e-2
    """Learning rate of the hash tables."""
    network_lr: float = 3e-3
    """Learning rate of the networks. Batches are small: at 1e-2 a long plateau ends in a field that is lost."""
    plateau: float = 0.3
    """Share of the training after which learning rates start to fall."""
    final_lr: float = 0.03
    """Learning rates end at this share of their start."""
    distortion: float = 2e-3
    """Weight of the distortion loss, which gathers a ray's weights."""
    keep: float = 1e-3
    """Samples of smaller weight get no colour."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            ("steps", 1, 10**9), ("rays", 1, 2**20), ("samples", 2, 1024), ("levels", 1, 32), ("log2_rows", 4, 24),
            ("base", 2, 512), ("finest", 16, 2**18), ("finest_bounded", 16, 2**18), ("width", 8, 256),
            ("geometry", 1, 64), ("proposal_levels", 1, 32), ("proposal_log2_rows", 4, 24), ("proposal_width", 1, 256),
            ("proposal_every", 1, 1000), ("shift", -10.0, 10.0), ("appearance", 0, 128), ("pose_lr", 0.0, 1.0),
            ("coarse_until", 0.0, 1.0), ("pose_delay", 0, 10**9), ("pose_penalty", 0.0, 1e3), ("depth", 0.0, 1e3),
            ("depth_spread", 1e-6, 1.0), ("table_lr", 0.0, 10.0), ("network_lr", 0.0, 10.0), ("plateau", 0.0, 0.999),
            ("final_lr", 1e-6, 1.0), ("distortion", 0.0, 10.0), ("keep", 0.0, 0.5), ("padding", 0.0, 1.0),
        )  # fmt: skip
        for name, least, most in (("proposal_samples", 2, 4096), ("proposal_finest", self.base, 2**18)):
            if not all(least <= value <= most for value in getattr(self, name)):
                raise ConfigError(f"{name}: expected two numbers of {least} to {most}, got {getattr(self, name)}.")
        if self.features not in (1, 2, 4, 8):
            raise ConfigError(f"features: expected 1, 2, 4 or 8, got {self.features}.")
        if self.base > min(self.finest, self.finest_bounded):
            raise ConfigError(f"base: expected at most the finest level's vertices, got {self.base}.")
        for name, known in (("poses", ("off", *MANIFOLDS)), ("depth_kind", KINDS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}: expected {' or '.join(known)}, got '{getattr(self, name)}'.")


# --------------------------------------------------------------------------------------------------------------- fields


class ProposalField(nn.Module):
    """Density alone, from a small grid and a tiny network: right about where, and no more."""

    def __init__(self, grid: HashGrid, width: int, shift: float) -> None:
        super().__init__()
        self.grid, self.shift = grid, shift
        self.table = nn.Parameter(torch.empty(grid.rows, grid.features).uniform_(-1e-4, 1e-4))
        self.network = layers(grid.width, width, 1)

    def density(self, unit: Tensor) -> Tensor:
        """Points [N, 3] of the unit cube -> density [N] per scene unit."""
        raw = mlp(hash_encode(unit, self.table, self.grid), list(self.network))
        return bounded_exp(raw[:, 0] + self.shift)


class Field(nn.Module):
    """Density and colour: the hash grid, and one small network for each."""

    def __init__(self, grid: HashGrid, config: NerfactoConfig) -> None:
        super().__init__()
        c = config
        self.grid, self.shift = grid, c.shift
        self.table = nn.Parameter(torch.empty(grid.rows, grid.features).uniform_(-1e-4, 1e-4))
        self.density_network = layers(grid.width, c.width, c.geometry)
        self.colour_network = layers(c.geometry + 16 + c.appearance, c.width, c.width, 3)
        self.normal_network = layers(c.geometry + 3, c.width, 3) if c.normals else None
        self.open: Tensor | None = None
        """[L F] by how much each feature of the grid counts; None: all count."""

    def open_levels(self, count: float) -> None:
        """Let only so many levels count, the next one in part (BARF: Lin et al. 2021, equation 14)."""
        levels = torch.arange(self.grid.levels, device=self.table.device).repeat_interleave(self.grid.features)
        share = (count - levels).clamp(0.0, 1.0)
        self.open = None if count >= self.grid.levels else 0.5 - 0.5 * torch.cos(math.pi * share)

    def density(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Points [N, 3] of the unit cube -> density [N] per scene unit, geometry features [N, G]."""
        encoded = hash_encode(unit, self.table, self.grid)
        geometry = mlp(encoded if self.open is None else encoded * self.open, list(self.density_network))
        return bounded_exp(geometry[:, 0] + self.shift), geometry

    def colour(self, geometry: Tensor, of_ray: Tensor) -> Tensor:
        """Geometry features [N, G] and what holds for the whole ray, [N, 16 + A] (the direction's harmonics and the
        appearance code) -> colours [N, 3]."""
        return torch.sigmoid(mlp(torch.cat([geometry, of_ray], dim=1), list(self.colour_network)))

    def normal(self, geometry: Tensor, unit: Tensor) -> Tensor:
        """Geometry features [N, G] and points [N, 3] of the unit cube -> unit normals [N, 3]."""
        assert self.normal_network is not None
        return F.normalize(mlp(torch.cat([geometry, 2 * unit - 1], dim=1), list(self.normal_network)), dim=1)


# --------------------------------------------------------------------------------------------------------------- method


@dataclass(frozen=True)
class Traced:
    """What R rays see, before any background."""

    rgb: Tensor
    """[R, 3], premultiplied by opacity."""
    alpha: Tensor
    """[R] opacity: the sum of the weights."""
    depth: Tensor
    """[R] sum of weight times distance."""
    normal: Tensor | None
    """[R, 3] sum of weight times normal."""
    levels: list[tuple[Tensor, Tensor]]
    """Edges in s [R, n + 1] and weights [R, n] of both proposals and, last, of the field."""
    edges: Tensor
    """[R, n + 1] distances, edges of the field's intervals."""
    normal_terms: dict[str, Tensor]
    """Losses on normals, where they are learnt."""


CUBE = Box.of(torch.zeros(3), torch.eye(3), torch.full((3,), 2.0))
"""Where all content of a bounded scene lies."""


class Nerfacto(Method):
    """See the module's docstring."""

    Config = NerfactoConfig
    PRESETS: ClassVar[dict[str, NerfactoConfig]] = {
        "": NerfactoConfig(),
        "fast": NerfactoConfig(steps=8_000, proposal_samples=(48, 24), samples=12, log2_rows=15),
        # Nerfstudio's own sizes. Too slow for a CPU.
        "big": NerfactoConfig(
            steps=30_000, rays=4096, proposal_samples=(256, 96), samples=48, levels=16, features=2, log2_rows=19,
            proposal_log2_rows=17, appearance=32,
        ),
        # For poses that are wrong by a degree.
        "noisy": NerfactoConfig(pose_lr=1e-3, pose_delay=200, coarse_until=0.5),
    }  # fmt: skip
    ON_GPU: ClassVar[dict[str, int]] = {"rays": 4096}
    ON_HOST = ("done",)
    HALF = True
    BLOCK = 16
    """Batches drawn from the scene at a time."""
    COARSE = 4
    """Levels that are open from the start where others wait (`coarse_until`)."""
    ANNEALED = 1000
    """Steps in which proposals are believed more and more (mip-NeRF 360), and learn at every step."""

    done: Tensor
    """Share of the training that is done; followed only while levels of the grid are closed."""

    def __init__(self, config: NerfactoConfig, info: SceneInfo) -> None:
        super().__init__(config, info)
        c = config
        finest = c.finest_bounded if info.bounded else c.finest
        self.field = Field(HashGrid(c.levels, c.features, c.log2_rows, c.base, finest), c)
        self.first, self.second = (
            ProposalField(HashGrid(c.proposal_levels, 2, c.proposal_log2_rows, c.base, side), c.proposal_width, c.shift)
            for side in c.proposal_finest
        )
        self.codes = AppearanceCodes(info, c.appearance) if c.appearance else None
        self.poses = PoseRefinement(info.cameras, c.poses, info.train) if c.poses != "off" else None
        self.register_buffer("done", torch.tensor(0.0))
        self._open_levels()
        self.spacing = Spacing.LINEAR if info.bounded else Spacing.PIECEWISE
        self._block: tuple[int, list[Pixels]] | None = None

    @property
    def proposals(self) -> tuple[ProposalField, ProposalField]:
        """In the order in which a ray meets them."""
        return self.first, self.second

    def groups(self) -> list[Group]:
        """Tables move sparsely and faster than networks; poses and codes have their own pace."""
        c = self.config
        schedule = exponential_after(c.plateau, c.final_lr)
        tables = [self.field.table, *(p.table for p in self.proposals)]
        networks = [*self.field.density_network, *self.field.colour_network, *(self.field.normal_network or [])]
        networks += [layer for p in self.proposals for layer in p.network]
        groups = [
            Group("tables", tables, c.table_lr, schedule=schedule, sparse=True),
            Group("networks", networks, c.network_lr, schedule=schedule, weight_decay=1e-6),
        ]
        if self.codes is not None:
            groups.append(self.codes.group(c.network_lr, schedule))
        if self.poses is not None:
            groups.append(self.poses.group(c.pose_lr))
        return groups

    def after_step(self, step: int, optim: Adam) -> None:
        """Keeps the cameras from moving all together, and opens levels of the grid, where that is asked for."""
        if self.poses is not None:
            self.poses.hold_gauge()
        if self.config.coarse_until > 0 and self.done < self.config.coarse_until:
            self.done.fill_(optim.fraction)
            self._open_levels()

    def _open_levels(self) -> None:
        c = self.config
        share = min(float(self.done) / c.coarse_until, 1.0) if c.coarse_until > 0 else 1.0
        self.field.open_levels(self.COARSE + share * max(c.levels - self.COARSE, 0))

    def loss(self, scene: Scene, step: int, rng: Generator) -> dict[str, Tensor]:
        """Squared error of the colours over random backgrounds, which make transparency costly wherever the truth is
        opaque; and what keeps proposals, weights, poses and, where asked for, depth and normals in order."""
        c, info = self.config, self.info
        pixels = self.batch(scene, step, rng)
        rays = pixels.rays
        if self.poses is not None:
            with torch.set_grad_enabled(step >= c.pose_delay):
                rays = self.poses.rays(rays)
        background = devices.sent(torch.rand(len(rays), 3, generator=rng), self.device)
        target = torch.lerp(background, pixels.rgb, pixels.alpha[:, None]) if info.has_alpha else pixels.rgb
        hit, bounded = self.bound(rays, fixed=self.fixed_sizes)
        # All means below are over the rays that meet the scene.
        scale = per_meeting(bounded) if self.fixed_sizes else 1.0
        code = None if self.codes is None else self.codes.of(bounded.view)
        learning = step < self.ANNEALED or step % c.proposal_every == 0
        share = min(step / self.ANNEALED, 1.0)
        seen = self.trace(bounded, code, rng, anneal=10 * share / (9 * share + 1), proposals_learn=learning)
        shown = background.index_add(0, hit, seen.rgb - seen.alpha[:, None] * background[hit])
        error = mse(shown, target)
        edges, weights = seen.levels[-1]
        terms = {"colour": error, "distortion": c.distortion * scale * distortion(edges, weights)}
        if learning:
            bounds = [interlevel(edges, weights, *level) for level in seen.levels[:-1]]
            terms["proposals"] = scale * torch.stack(bounds).sum()
        if self.poses is not None and step >= c.pose_delay and c.pose_penalty > 0:
            terms["poses"] = self.poses.penalty(c.pose_penalty, 0.1 * c.pose_penalty)
        if pixels.depth is not None:
            known = torch.where(bounded.far > bounded.near, pixels.depth[hit], 0.0)
            terms["depth"] = c.depth * depth_loss(c.depth_kind, weights, seen.edges, known, c.depth_spread)
        terms |= {name: scale * term for name, term in seen.normal_terms.items()}
        per_ray = sum(c.proposal_samples) + c.samples
        self.stats = {"rays": len(rays), "samples": len(hit) * per_ray, "mse": devices.number(error)}
        return terms

    def batch(self, scene: Scene, step: int, rng: Generator) -> Pixels:
        """This step's pixels, cut from a block of BLOCK steps that is drawn at once: drawing costs hardly more for all
        of them. The block comes from a generator of its first step, so that a resumed run draws the same."""
        block, place = divmod(step, self.BLOCK)
        if self._block is None or self._block[0] != block:
            count, draw = self.config.rays * self.BLOCK, earlier(rng, place + 2**31)
            pixels = scene.pixels(count, draw, depth=True) if self.config.depth > 0 else scene.pixels(count, draw)
            pixels = pixels.to(self.device)
            parts = [slice(i, i + self.config.rays) for i in range(0, count, self.config.rays)]
            self._block = block, [_cut(pixels, part) for part in parts]
        return self._block[1][place]

    # -- along rays ----------------------------------------------------------------------------------------------------

    def bound(self, rays: Rays, crop: Box | None = None, fixed: bool = False) -> tuple[Tensor, Rays]:
        """The rays that meet the scene (in `crop`), between the distances at which they do, and their indices [H];
        `fixed`: as in `rays.meeting`."""
        near, far = rays.near.clamp(min=1e-3), rays.far.clamp(max=self.info.far)
        for box in (CUBE if self.info.bounded else None, crop):
            if box is not None:
                enter, leave = box.span(rays.origin.detach(), rays.direction.detach())
                near, far = torch.maximum(near, enter), torch.minimum(far, leave)
        return meeting(replace(rays, near=near, far=far), fixed)

    def trace(
        self, rays: Rays, code: Tensor | None, rng: Generator | None, anneal: float = 1.0, proposals_learn: bool = False
    ) -> Traced:
        """What bounded rays [R] see with their appearance codes [R, A]. With a generator: jittered, for training."""
        c, count = self.config, len(rays)
        edges_s = torch.arange(2, dtype=rays.near.dtype, device=rays.near.device).expand(count, 2)
        weights = torch.ones_like(edges_s[:, 1:])
        levels = []
        # Proposals learn from the field, never from the colours, so the poses need no gradient through them.
        fixed = replace(rays, origin=rays.origin.detach(), direction=rays.direction.detach())
        with torch.set_grad_enabled(proposals_learn):
            for proposal, n in zip(self.proposals, c.proposal_samples, strict=True):
                edges_s = resample(edges_s, weights.detach() + c.padding, n, rng, anneal=anneal)
                edges = self.spacing.t_from_s(edges_s, rays.near, rays.far)
                unit = self.unit(fixed, edges)
                with self.computing():
                    density = proposal.density(unit)
                weights = weights_from_density(density.view(count, n), edges)
                levels.append((edges_s, weights))
        edges_s = resample(edges_s, weights.detach() + c.padding, c.samples, rng, anneal=anneal)
        edges = self.spacing.t_from_s(edges_s, rays.near, rays.far)
        unit = self.unit(rays, edges)
        with self.computing():
            density, geometry = self.field.density(unit)
        weights = weights_from_density(density.view(count, c.samples), edges)
        levels.append((edges_s, weights))
        # Colour only where it counts.
        weight, kept, ray = above(weights, c.keep, self.fixed_sizes and rng is not None)
        features, weight = geometry.index_select(0, kept), weight[:, None]
        of_ray = spherical_harmonics(rays.direction)
        if code is not None:
            of_ray = torch.cat([of_ray, code.expand(count, -1)], dim=1)
        with self.computing():
            colour = self.field.colour(features, of_ray.index_select(0, ray))
        rgb = weight.new_zeros(count, 3).index_add(0, ray, weight * colour)
        normal, terms = None, {}
        if self.field.normal_network is not None:
            points = unit.index_select(0, kept)
            normals = self.field.normal(features, points)
            normal = weight.new_zeros(count, 3).index_add(0, ray, weight * normals)
            if rng is not None:
                terms = self.normal_losses(normals, points, weight.detach()[:, 0], rays.direction[ray], count)
        depth = (weights * 0.5 * (edges[:, 1:] + edges[:, :-1])).sum(-1)
        return Traced(rgb, weights.sum(-1), depth, normal, levels, edges, terms)

    def unit(self, rays: Rays, edges: Tensor) -> Tensor:
        """The middles of intervals, [R, n + 1] edges -> points [R n, 3] of the unit cube in which the grids lie."""
        return to_unit(rays.at(0.5 * (edges[:, 1:] + edges[:, :-1])).view(-1, 3), not self.info.bounded)

    def normal_losses(
        self, normals: Tensor, unit: Tensor, weight: Tensor, direction: Tensor, rays: int
    ) -> dict[str, Tensor]:
        """Learnt normals follow the density's gradient and face the camera (Ref-NeRF: Verbin et al. 2022, equations 10
        and 11). The density is not pulled by either, which keeps the geometry that the colours found."""
        with torch.enable_grad():
            points = unit.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.field.density(points)[1][:, 0].sum(), points)
        own = F.normalize(-slope, dim=1)
        apart = (weight * (1.0 - (normals * own).sum(-1))).sum() / rays
        behind = (weight * (normals * direction.detach()).sum(-1).clamp(min=0).square()).sum() / rays
        return {"normals": 1e-3 * apart, "orientation": 1e-4 * behind}

    # -- pictures ------------------------------------------------------------------------------------------------------

    def colours(self, rays: Rays, code: Tensor | None, background: Tensor) -> Tensor:
        """Colours [R, 3] of rays over a background [3], differentiable with respect to rays and code [A]; what
        `refine.refine_view` asks for."""
        device = rays.origin.device
        rays, background = rays.to(self.device), background.to(self.device)
        hit, bounded = self.bound(rays)
        code = self.novel_code() if code is None else code.to(self.device)
        seen = self.trace(bounded, code, None)
        shown = background.expand(len(rays), 3).index_add(0, hit, seen.rgb - seen.alpha[:, None] * background)
        return shown.to(device)

    def novel_code(self) -> Tensor | None:
        """[A] the appearance of pictures that were not trained on: the mean of the training codes."""
        return None if self.codes is None else self.codes.novel()

    @picture
    @ops.own_threads()
    def render(
        self, camera: Camera, background: Tensor | None = None, crop: Box | None = None, code: Tensor | None = None
    ) -> Image:
        """Picture of any camera, in chunks of rows; with an appearance code [A], or that of novel views."""
        height, width, info, device = camera.height, camera.width, self.info, self.device
        colour = torch.tensor(info.background or (0.0, 0.0, 0.0)) if background is None else background.float()
        colour = colour.to(device)
        rgb = colour.expand(height * width, 3).contiguous()
        alpha, depth, median = (rgb.new_zeros(height * width) for _ in range(3))
        normal = torch.zeros_like(rgb) if self.config.normals else None
        code = self.novel_code() if code is None else code.to(device)
        near, far = torch.tensor(info.near_for(camera)), torch.tensor(info.far)
        for part, origin, direction in ray_chunks(camera, self.chunk(1 << 13), device):
            hit, bounded = self.bound(Rays(origin, direction, near=near, far=far), crop)
            seen, place = self.trace(bounded, code, None), hit + part.start
            rgb[place] += seen.rgb - seen.alpha[:, None] * colour
            alpha[place] = seen.alpha
            depth[place] = torch.where(seen.alpha > 1e-3, seen.depth / seen.alpha.clamp(min=1e-3), 0.0)
            halfway = median_distance(*seen.levels[-1], bounded.near, bounded.far, self.spacing)
            median[place] = torch.where(seen.alpha > 1e-3, halfway, 0.0)
            if normal is not None and seen.normal is not None:
                normal[place] = torch.where(seen.alpha[:, None] > 1e-3, F.normalize(seen.normal, dim=1), 0.0)
        shape = (height, width)
        return Image(
            rgb.clamp(0, 1).view(*shape, 3),
            alpha.clamp(0, 1).view(shape),
            depth.view(shape),
            None if normal is None else normal.view(*shape, 3),
            median.view(shape),
        )

    @asked
    def density_at(self, points: Tensor) -> Tensor:
        """Density [N] per scene unit at points [N, 3] of the scene; 0 outside the cube of a bounded one."""
        with self.computing():
            density = self.field.density(to_unit(points, not self.info.bounded))[0]
        outside = points.abs().amax(1) > 1 if self.info.bounded else points.new_zeros(len(points), dtype=torch.bool)
        return density.masked_fill(outside, 0.0)

    def forget_drawn(self) -> None:
        """The block of drawn pixels."""
        self._block = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Nerfacto:
        super()._apply(fn, recurse)
        self._open_levels()  # What the field keeps of them follows it.
        return self

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """As usual; what was drawn belongs to the old state."""
        self.forget_drawn()
        loaded = super().load_state_dict(state_dict, strict, assign)
        self._open_levels()
        return loaded


def _cut(pixels: Pixels, part: slice) -> Pixels:
    depth = None if pixels.depth is None else pixels.depth[part]
    return replace(
        pixels, rays=pixels.rays[part], rgb=pixels.rgb[part], alpha=pixels.alpha[part], xy=pixels.xy[part], depth=depth
    )
