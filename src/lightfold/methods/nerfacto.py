"""nerfacto (Tancik et al. 2023): what practice made of NeRF. Proposals, a hash grid, contraction, poses, exposure.

Each part cures one weakness of the 2020 paper (`nerf.py`), and they fit together in one page:

    photographs' poses are wrong      small corrections are trained along       (`refine.PoseRefinement`)
    their exposures differ            a code per photograph                      (`refine.AppearanceCodes`)
    samples in air are wasted         two cheap density fields propose where     (`proposal.resample`)
    scenes do not end                 all of space is contracted into a cube     (`to_unit`)
    big networks are slow             a hash grid and two small networks         (`ops.hash_encode`, `ops.mlp`)
    floaters and fog                  weights of a ray shall lie together        (`losses.distortion`)

A ray's way from the batch to its colour, and the options that `zipnerf` has too, are in `proposal_method.py`.

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

from .. import ops
from ..cameras import Camera
from ..depth import KINDS, depth_loss
from ..fields import bounded_exp, layers
from ..losses import distortion, interlevel, mse
from ..ops import HashGrid, hash_encode, mlp
from ..ops.radiance import to_unit
from ..optim import Adam, Group, exponential_after
from ..proposal import Spacing, median_distance
from ..rays import Box, Rays, meeting
from .base import Image, asked, check_choices, check_ranges, earlier, picture, ray_chunks
from .pixel_method import Phase
from .proposal_method import ProposalConfig, ProposalMethod, Traced

if TYPE_CHECKING:
    from ..scene import Pixels, Scene, SceneInfo


@dataclass(frozen=True, kw_only=True)
class NerfactoConfig(ProposalConfig):
    """Options of `nerfacto`: these, and those of `ProposalConfig`."""

    rays: int = 1024
    proposal_samples: tuple[int, int] = (64, 32)
    samples: int = 16
    width: int = 64
    """Width of the field's hidden layers."""
    proposal_levels: int = 5
    """Levels of a proposal's hash grid, of two features each."""
    proposal_finest: tuple[int, int] = (128, 256)
    poses: str = "so3xr3"
    coarse_until: float = 0.0
    """Share of the training in which the levels of the grid open one after the other, from the coarsest COARSE on; 0
    opens all at the start. Detail that is learnt from wrong poses holds them where they are (BARF), but it comes later
    then, so this is for poses that are wrong by more than a few pixels."""
    normals: bool = False
    """Also learn normals, smoother than the density's own gradient, for shading and meshes."""
    depth: float = 0.0
    """Weight of the loss on measured depth, for captures that come with it; 0 ignores it."""
    depth_kind: str = "termination"
    """Which loss on measured depth: "termination" (DS-NeRF) or "sight" (URF)."""
    depth_spread: float = 0.01
    """Standard deviation of measured depth, as a share of it."""
    table_lr: float = 2e-2
    network_lr: float = 3e-3
    """Learning rate of the networks. Batches are small: at 1e-2 a long plateau ends in a field that is lost."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            self,
            ("width", 8, 256), ("geometry", 1, 64), ("proposal_levels", 1, 32), ("coarse_until", 0.0, 1.0),
            ("depth", 0.0, 1e3), ("depth_spread", 1e-6, 1.0),
        )  # fmt: skip
        check_choices(self, ("depth_kind", KINDS))


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
class TracedNormals(Traced):
    """And the normals that rays see, where they are learnt."""

    normal: Tensor | None
    """[R, 3] sum of weight times normal."""
    normal_terms: dict[str, Tensor]
    """Losses on normals."""


CUBE = Box.of(torch.zeros(3), torch.eye(3), torch.full((3,), 2.0))
"""Where all content of a bounded scene lies."""


class Nerfacto(ProposalMethod):
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
        self.refine_views()
        self.register_buffer("done", torch.tensor(0.0))
        self._open_levels()
        self.spacing = Spacing.LINEAR if info.bounded else Spacing.PIECEWISE
        self._block: tuple[int, list[Pixels]] | None = None

    def groups(self) -> list[Group]:
        c = self.config
        tables = [self.field.table, *(p.table for p in self.proposals)]
        networks = [*self.field.density_network, *self.field.colour_network, *(self.field.normal_network or [])]
        networks += [layer for p in self.proposals for layer in p.network]
        return self.grouped(tables, networks, exponential_after(c.plateau, c.final_lr))

    def after_step(self, step: int, optim: Adam) -> None:
        """As usual; and opens levels of the grid, where that is asked for."""
        super().after_step(step, optim)
        if self.config.coarse_until > 0 and self.done < self.config.coarse_until:
            self.done.fill_(optim.fraction)
            self._open_levels()

    def _open_levels(self) -> None:
        c = self.config
        share = min(float(self.done) / c.coarse_until, 1.0) if c.coarse_until > 0 else 1.0
        self.field.open_levels(self.COARSE + share * max(c.levels - self.COARSE, 0))

    @property
    def annealed(self) -> int:
        return self.ANNEALED

    def phase(self, step: int) -> Phase:
        """And how far levels of the grid are open, where they are not."""
        phase = super().phase(step)
        return phase._replace(kind=(*phase.kind, None if self.field.open is None else float(self.done)))

    def terms(self, pixels: Pixels, phase: Phase, rng: Generator) -> dict[str, Tensor]:
        """Squared error of the colours; and what keeps proposals, weights, poses and, where asked for, depth and
        normals in order."""
        c = self.config
        looked = self.look(pixels, phase, rng)
        seen, factor = looked.seen, looked.per_meeting
        assert isinstance(seen, TracedNormals)
        error = mse(looked.shown, looked.target)
        edges, weights = seen.levels[-1]
        terms = {"colour": error, "distortion": c.distortion * factor * distortion(edges, weights)}
        if looked.learning:
            bounds = [interlevel(edges, weights, *level) for level in seen.levels[:-1]]
            terms["proposals"] = factor * torch.stack(bounds).sum()
        terms |= self.pose_terms(phase)
        if pixels.depth is not None:
            known = torch.where(looked.rays.far > looked.rays.near, pixels.depth[looked.hit], 0.0)
            terms["depth"] = c.depth * depth_loss(c.depth_kind, weights, seen.edges, known, c.depth_spread)
        terms |= {name: factor * term for name, term in seen.normal_terms.items()}
        self.stats = self.counts(looked, error)
        return terms

    def pixels(self, scene: Scene, step: int, rng: Generator) -> Pixels:
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
        near, far = rays.near.clamp(min=1e-3), rays.far.clamp(max=self.info.far)
        for box in (CUBE if self.info.bounded else None, crop):
            if box is not None:
                enter, leave = box.span(rays.origin.detach(), rays.direction.detach())
                near, far = torch.maximum(near, enter), torch.minimum(far, leave)
        return meeting(replace(rays, near=near, far=far), fixed)

    def trace(
        self,
        rays: Rays,
        code: Tensor | None,
        rng: Generator | None,
        anneal: float | Tensor = 1.0,
        proposals_learn: bool = False,
    ) -> TracedNormals:
        cut, count = self.cut(rays, rng, anneal, proposals_learn), len(rays)
        weights, edges, kept = cut.weights, cut.edges, self.kept(cut, rng)
        rgb = kept.summed(self.colour(kept, rays, code), count)
        normal, terms = None, {}
        if self.field.normal_network is not None:
            points = cut.places[0].index_select(0, kept.place)
            normals = self.field.normal(kept.geometry, points)
            normal = kept.summed(normals, count)
            if rng is not None:
                terms = self.normal_losses(normals, points, kept.weight.detach(), rays.direction[kept.ray], count)
        depth = (weights * 0.5 * (edges[:, 1:] + edges[:, :-1])).sum(-1)
        return TracedNormals(rgb, weights.sum(-1), depth, cut.levels, edges, normal, terms)

    def places(self, rays: Rays, edges: Tensor, rng: Generator | None) -> tuple[Tensor]:
        """The middles of intervals, as points [R n, 3] of the unit cube in which the grids lie."""
        return (to_unit(rays.at(0.5 * (edges[:, 1:] + edges[:, :-1])).view(-1, 3), not self.info.bounded),)

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
