"""What `nerfacto` and `zipnerf` share: a field and two proposals with hash grids, and photographs that may be refined.

A ray, from its ends to its colour:

    s edges, even  ->  proposal 1: density -> weights -> new edges
                   ->  proposal 2: density -> weights -> new edges
                   ->  field:      density -> weights w_i;   colour c_i where w_i counts
    picture = sum w_i c_i + (1 - sum w_i) background

A method says where a ray meets the scene (`bound`), what its fields are asked about an interval (`places`), what comes
of all that (`trace`), and what it learns from (`loss`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn

from .. import devices
from ..errors import ConfigError
from ..ops import spherical_harmonics
from ..optim import Adam, Group, Schedule
from ..proposal import Spacing, above, annealing, resample, weights_from_density
from ..rays import Box, Rays, per_meeting
from ..refine import MANIFOLDS, AppearanceCodes, PoseRefinement
from .base import check_choices, check_pairs, check_ranges
from .pixel_method import Phase, PixelMethod

if TYPE_CHECKING:
    from ..scene import Pixels


@dataclass(frozen=True, kw_only=True)
class ProposalConfig:
    """The options that the two have in common. Those without a number here have one in each method."""

    steps: int = 20_000
    """Steps of a full training."""
    rays: int
    """Rays per step."""
    proposal_samples: tuple[int, int]
    """Intervals per ray that the first and the second proposal look at."""
    samples: int
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
    geometry: int = 16
    """Outputs of the density network, density among them."""
    proposal_log2_rows: int = 15
    """Rows of a proposal's levels, as a power of two."""
    proposal_finest: tuple[int, int]
    """Vertices per axis of the finest level of the two proposals."""
    proposal_width: int = 16
    """Width of a proposal's hidden layer."""
    proposal_every: int = 4
    """After the first steps, in which they are believed more and more, proposals learn in every so many steps only:
    they follow what moves slowly."""
    shift: float = -1.0
    """Density is exp(raw + shift): how thin the fog is in which training starts."""
    appearance: int = 0
    """Length of the code per photograph, 8 to 32 where exposures differ a lot; 0 for none. Codes make novel views look
    like the average photograph, which costs plain scores (see `lightfold eval --refine`)."""
    poses: str
    """Correction of poses: "so3xr3", "se3" or "off"."""
    pose_lr: float = 3e-4
    """Learning rate of poses, in scene units and radians; it ends at a hundredth of it. Adam moves at this rate on
    noise too, and a view has few rays in a batch: higher rates shake good poses."""
    pose_delay: int = 500
    """Steps before poses start to move: from a field that knows nothing they would learn nothing."""
    pose_penalty: float = 1e-2
    """Weight of the mean squared shift of the poses; turns count a tenth of it."""
    distortion: float = 2e-3
    """Weight of the distortion loss, which gathers a ray's weights."""
    table_lr: float
    """Learning rate of the hash tables."""
    network_lr: float
    """Learning rate of the networks."""
    plateau: float = 0.3
    """Share of the training after which learning rates start to fall."""
    final_lr: float = 0.03
    """Learning rates end at this share of their start."""
    keep: float = 1e-3
    """Samples of smaller weight get no colour."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            ("steps", 1, 10**9), ("rays", 1, 2**20), ("samples", 2, 1024), ("padding", 0.0, 1.0), ("levels", 1, 32),
            ("log2_rows", 4, 24), ("base", 2, 512), ("finest", 16, 2**18), ("finest_bounded", 16, 2**18),
            ("proposal_log2_rows", 4, 24), ("proposal_width", 1, 256), ("proposal_every", 1, 1000),
            ("shift", -10.0, 10.0), ("appearance", 0, 128), ("pose_lr", 0.0, 1.0), ("pose_delay", 0, 10**9),
            ("pose_penalty", 0.0, 1e3), ("distortion", 0.0, 10.0), ("table_lr", 0.0, 10.0), ("network_lr", 0.0, 10.0),
            ("plateau", 0.0, 0.999), ("final_lr", 1e-6, 1.0), ("keep", 0.0, 0.5),
        )  # fmt: skip
        check_pairs(self, ("proposal_samples", 2, 4096), ("proposal_finest", self.base, 2**18))
        check_choices(self, ("features", (1, 2, 4, 8)), ("poses", ("off", *MANIFOLDS)))
        if self.base > min(self.finest, self.finest_bounded):
            raise ConfigError(f"base: expected at most the finest level's vertices, got {self.base}.")


@dataclass(frozen=True)
class Traced:
    """What R rays see, before any background."""

    rgb: Tensor
    """[R, 3], premultiplied by opacity."""
    alpha: Tensor
    """[R] opacity: the sum of the weights."""
    depth: Tensor
    """[R] sum of weight times distance."""
    levels: list[tuple[Tensor, Tensor]]
    """Edges in s [R, n + 1] and weights [R, n] of both proposals and, last, of the field."""
    edges: Tensor
    """[R, n + 1] distances, edges of the field's intervals."""


@dataclass(frozen=True)
class Cut:
    """R rays whose intervals the proposals have placed, and what the field knows of these, but for their colours."""

    levels: list[tuple[Tensor, Tensor]]
    """As in `Traced`."""
    edges: Tensor
    """[R, n + 1] distances, edges of the field's intervals."""
    places: tuple[Tensor, ...]
    """What the field was asked about the R n intervals."""
    geometry: Tensor
    """[R n, G] its geometry features."""

    @property
    def weights(self) -> Tensor:
        """[R, n] of the field's intervals."""
        return self.levels[-1][1]


@dataclass(frozen=True)
class Kept:
    """The K samples on R rays that get a colour; see `proposal.above`."""

    weight: Tensor
    """[K]"""
    place: Tensor
    """[K] which of all samples they are."""
    ray: Tensor
    """[K] the rays on which they lie."""
    geometry: Tensor
    """[K, G] their geometry features."""

    def summed(self, values: Tensor, rays: int) -> Tensor:
        """Values [K, 3], times weights, summed along each of so many rays: [R, 3]."""
        return self.weight.new_zeros(rays, 3).index_add(0, self.ray, self.weight[:, None] * values)


@dataclass(frozen=True)
class Looked:
    """What R pixels show, and what is seen along the H of their rays that meet the scene."""

    target: Tensor
    """[R, 3] the photographs' colours."""
    shown: Tensor
    """[R, 3] the field's, over the same backgrounds."""
    hit: Tensor
    """[H] indices of the rays that meet the scene."""
    rays: Rays
    """These, bound."""
    seen: Traced
    """Along these."""
    learning: bool
    """Whether the proposals learn in this step."""
    per_meeting: Tensor | float
    """Factor on means over these rays: 1; or where sizes are fixed and H is R, that of `rays.per_meeting`."""


class ProposalMethod(PixelMethod):
    """A method with a `field`, the proposals `first` and `second`, a `spacing`, and what `refine_views` makes."""

    HALF = True
    field: Any
    first: Any
    second: Any
    spacing: Spacing
    codes: AppearanceCodes | None
    poses: PoseRefinement | None

    @property
    def proposals(self) -> tuple[Any, Any]:
        """In the order in which a ray meets them."""
        return self.first, self.second

    def refine_views(self) -> None:
        """Make appearance codes and corrections of poses for the photographs, where they are asked for."""
        c, info = self.config, self.info
        self.codes = AppearanceCodes(info, c.appearance) if c.appearance else None
        self.poses = PoseRefinement(info.cameras, c.poses, info.train) if c.poses != "off" else None

    def grouped(
        self, tables: Sequence[nn.Parameter], networks: Sequence[nn.Parameter], schedule: Schedule
    ) -> list[Group]:
        """Tables move sparsely and faster than networks; poses and codes have their own pace."""
        c = self.config
        groups = [
            Group("tables", list(tables), c.table_lr, schedule=schedule, sparse=True),
            Group("networks", list(networks), c.network_lr, schedule=schedule, weight_decay=1e-6),
        ]
        if self.codes is not None:
            groups.append(self.codes.group(c.network_lr, schedule))
        if self.poses is not None:
            groups.append(self.poses.group(c.pose_lr))
        return groups

    def after_step(self, step: int, optim: Adam) -> None:
        """Keeps the cameras from moving all together."""
        if self.poses is not None:
            self.poses.hold_gauge()

    # -- what a step looks at ------------------------------------------------------------------------------------------

    @property
    def annealed(self) -> int:
        """Steps in which proposals are believed more and more (mip-NeRF 360, equation 18), and learn at every step."""
        raise TypeError(f"{type(self).__name__} must define annealed")

    def phase(self, step: int) -> Phase:
        """Whether the proposals learn, whether poses move, and whether proposals are believed by now."""
        c, annealed = self.config, self.annealed
        learning, moving = step < annealed or step % c.proposal_every == 0, step >= c.pose_delay
        return Phase((learning, moving, step >= annealed), annealing(min(step / annealed, 1.0)))

    def look(self, pixels: Pixels, phase: Phase, rng: Generator) -> Looked:
        """A step's pixels and what is seen there, over random backgrounds, which make transparency costly wherever the
        truth is opaque."""
        rays = pixels.rays
        learning, moving, believed, *_ = phase.kind
        if self.poses is not None:
            with torch.set_grad_enabled(moving):
                rays = self.poses.rays(rays)
        drawn = torch.rand(len(rays), 3, generator=rng, device=rng.device)
        background = devices.sent(drawn, self.device)
        target = torch.lerp(background, pixels.rgb, pixels.alpha[:, None]) if self.info.has_alpha else pixels.rgb
        hit, bounded = self.bound(rays, fixed=self.fixed_sizes)
        code = None if self.codes is None else self.codes.of(bounded.view)
        anneal = 1.0 if believed else phase.anneal
        seen = self.trace(bounded, code, rng, anneal=anneal, proposals_learn=learning)
        shown = background.index_add(0, hit, seen.rgb - seen.alpha[:, None] * background[hit])
        factor = per_meeting(bounded) if self.fixed_sizes else 1.0
        return Looked(target, shown, hit, bounded, seen, learning, factor)

    def pose_terms(self, phase: Phase) -> dict[str, Tensor]:
        """The loss that holds poses near where they were given, once they move."""
        c, moving = self.config, phase.kind[1]
        if self.poses is None or not moving or c.pose_penalty == 0:
            return {}
        return {"poses": self.poses.penalty(c.pose_penalty, 0.1 * c.pose_penalty)}

    def counts(self, looked: Looked, error: Tensor) -> dict[str, Any]:
        """What `stats` is after a step with this mean squared error."""
        per_ray = sum(self.config.proposal_samples) + self.config.samples
        samples = len(looked.hit) * per_ray
        return {"rays": len(looked.target), "samples": samples, "mse": devices.number(error)}

    # -- along rays ----------------------------------------------------------------------------------------------------

    def bound(self, rays: Rays, crop: Box | None = None, fixed: bool = False) -> tuple[Tensor, Rays]:
        """Indices [H] of the rays that meet the scene (in `crop`), and these rays between the distances at which they
        do. fixed: as in `rays.meeting`."""
        raise TypeError(f"{type(self).__name__} must define bound()")

    def places(self, rays: Rays, edges: Tensor, rng: Generator | None) -> tuple[Tensor, ...]:
        """What the fields are asked about the R n intervals of rays [R] between edges [R, n + 1]."""
        raise TypeError(f"{type(self).__name__} must define places()")

    def trace(
        self,
        rays: Rays,
        code: Tensor | None,
        rng: Generator | None,
        anneal: float | Tensor = 1.0,
        proposals_learn: bool = False,
    ) -> Traced:
        """What bounded rays [R] see with their appearance codes [R, A]. With a generator: jittered, for training."""
        raise TypeError(f"{type(self).__name__} must define trace()")

    def cut(self, rays: Rays, rng: Generator | None, anneal: float | Tensor, proposals_learn: bool) -> Cut:
        """Place the intervals of bounded rays [R], and ask the field for their density."""
        edges_s = torch.arange(2, dtype=rays.near.dtype, device=rays.near.device).expand(len(rays), 2)
        weights = torch.ones_like(edges_s[:, 1:])
        levels = []
        # Proposals learn from the field, never from the colours, so the poses need no gradient through them.
        fixed = replace(rays, origin=rays.origin.detach(), direction=rays.direction.detach())
        with torch.set_grad_enabled(proposals_learn and torch.is_grad_enabled()):
            for proposal, n in zip(self.proposals, self.config.proposal_samples, strict=True):
                edges_s, edges, places = self._intervals(fixed, edges_s, weights, n, rng, anneal)
                with self.computing():
                    density = proposal.density(*places)
                weights = weights_from_density(density.view(len(rays), n), edges)
                levels.append((edges_s, weights))
        n = self.config.samples
        edges_s, edges, places = self._intervals(rays, edges_s, weights, n, rng, anneal)
        with self.computing():
            density, geometry = self.field.density(*places)
        levels.append((edges_s, weights_from_density(density.view(len(rays), n), edges)))
        return Cut(levels, edges, places, geometry)

    def _intervals(
        self, rays: Rays, edges_s: Tensor, weights: Tensor, n: int, rng: Generator | None, anneal: float | Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """New edges in s and in distance, [R, n + 1], and what fields are asked about the intervals between them."""
        edges_s = resample(edges_s, weights.detach() + self.config.padding, n, rng, anneal=anneal)
        edges = self.spacing.t_from_s(edges_s, rays.near, rays.far)
        return edges_s, edges, self.places(rays, edges, rng)

    def kept(self, cut: Cut, rng: Generator | None) -> Kept:
        """The samples that get a colour: those where it counts."""
        weight, place, ray = above(cut.weights, self.config.keep, self.fixed_sizes and rng is not None)
        return Kept(weight, place, ray, cut.geometry.index_select(0, place))

    def colour(self, kept: Kept, rays: Rays, code: Tensor | None) -> Tensor:
        """Colours [K, 3] of samples on rays [R] with appearance codes [R, A]."""
        of_ray = spherical_harmonics(rays.direction)
        if code is not None:
            of_ray = torch.cat([of_ray, code.expand(len(rays), -1)], dim=1)
        with self.computing():
            return self.field.colour(kept.geometry, of_ray.index_select(0, kept.ray))

    # -- one photograph ------------------------------------------------------------------------------------------------

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
