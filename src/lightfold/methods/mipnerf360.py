"""mip-NeRF 360: rays as cones, space without bounds, and a small network that tells a large one where to look.

`nerf.py` asks its network about points. A pixel, though, sees along a cone, and what is far away should be blurred, not
aliased; scenes go on to the horizon; and most samples of a large network fall into empty air. The paper's answers, in
the order of this file:

1. `conical_frustum`: an interval of a cone is taken as the Gaussian with the same mean and covariance.
2. `projected`: Gaussians of all of space are squeezed into a ball of radius 2 (equations 9 and 10), and what the
   encoding needs of their covariances is computed without them.
3. `integrated_encoding`: the expected sine and cosine over a Gaussian. A wave much shorter than the Gaussian averages
   to nothing, so the network never sees detail that the sample does not resolve.
4. `DensityMLP`, the proposal, and `RadianceMLP`, the field. Rays are cut anew after each round of the proposal, with
   short intervals where it found something (`proposal.resample`); the field is asked in the last round alone.
5. Three losses: the colours train the field; `losses.interlevel` trains the proposal to bound the field's weights;
   `losses.distortion` asks each ray to be of one piece, which keeps fog and floaters away.

Letters in shapes: R rays, n intervals on each, D directions of the encoding.

Source: Barron et al., "Mip-NeRF 360: Unbounded Anti-Aliased Neural Radiance Fields", CVPR 2022, and "Mip-NeRF", ICCV
2021, with the behaviour of the authors' code (multinerf) where the papers leave it open. Where this file leaves that, a
comment says so and why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .. import devices
from ..cameras import Camera
from ..errors import ConfigError
from ..losses import charbonnier, distortion, interlevel, mse
from ..optim import Adam, Group, constant, exponential_after, warm_up
from ..proposal import annealing, median_distance, resample, weights_from_density
from ..rays import Box, Rays, per_meeting
from ..spaces import space_of
from .base import Image, asked, picture
from .pixel_method import Phase, PixelMethod

if TYPE_CHECKING:
    from ..scene import Pixels, SceneInfo


@dataclass(frozen=True)
class MipNeRF360Config:
    """Options of mip-NeRF 360. The defaults are the paper's sampling and encoding with a narrower field."""

    steps: int = 50_000
    """Optimiser steps of a full training."""
    rays: int = 1024
    """Rays per step, drawn from all training photographs at once."""
    proposal_samples: tuple[int, ...] = (64, 64)
    """Intervals per ray in each round of the proposal. More than the field gets: they are cheap."""
    samples: int = 32
    """Intervals per ray that the field is asked about."""
    proposal_width: int = 256
    """Width of the proposal's layers."""
    proposal_depth: int = 4
    """Number of layers of the proposal."""
    width: int = 256
    """Width of the layers of the field's trunk."""
    depth: int = 8
    """Number of layers of the field's trunk."""
    bottleneck: int = 256
    """Features that the colour branch sees of the trunk."""
    view_width: int = 128
    """Width of the colour branch."""
    directions: Literal[3, 6, 21] = 21
    """Directions whose waves encode a Gaussian: 3 axes, or 6 or 21 spread over the sphere. Axes alone cannot tell
    Gaussians apart whose covariances differ off the diagonal."""
    octaves: int = 12
    """Octaves of the encoding: the finest wave has a period of 2 pi / 2^(octaves - 1) in contracted units."""
    view_octaves: int = 4
    """Octaves of the encoding of view directions."""
    colour_loss: Literal["auto", "charbonnier", "mse"] = "auto"
    """Charbonnier forgives passers-by and highlights. Before a plain background it has a trap: like any absolute error
    it is least at the median, which is the background where that fills most pixels, so that the scene goes empty and
    stays so. auto: as the paper, Charbonnier on photographs, which are opaque, and the square otherwise."""
    distortion: float | None = None
    """Weight of the distortion loss. None: the paper's 0.01 on photographs, which are opaque, and 0 otherwise."""
    lr: float = 2e-3
    """Learning rate of Adam at the start."""
    lr_final: float = 0.01
    """Factor on the learning rate at the end; the decay between is exponential."""
    warm_up: int = 512
    """Steps in which the learning rate grows from a hundredth of itself, in a quarter of a sine wave."""
    adam_eps: float = 1e-6
    """Adam's epsilon. It matters, because gradients are clipped to a small norm."""
    clip: float = 1e-3
    """Largest norm of the gradient of each network."""
    chunk: int = 1024
    """Rays rendered at once; bounds the memory of a picture. On a processor, few enough for its caches are faster."""

    def __post_init__(self) -> None:
        least = {"warm_up": 0, "view_octaves": 0, "samples": 2, "lr_final": 0, "distortion": 0, "adam_eps": 0}
        for field in fields(self):
            value, low = getattr(self, field.name), least.get(field.name, 1 if field.type == "int" else 0)
            if isinstance(value, int | float) and not (math.isfinite(value) and value >= low):
                raise ConfigError(f"mipnerf360's option '{field.name}' must be a finite number >= {low}, not {value}.")
        if not self.proposal_samples or min(self.proposal_samples) < 2:
            raise ConfigError(
                "mipnerf360's option 'proposal_samples' must be one number per round, each at least 2, "
                f"not {self.proposal_samples}."
            )
        for name, choices in (("directions", (3, 6, 21)), ("colour_loss", ("auto", "charbonnier", "mse"))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"mipnerf360's option '{name}' must be one of {choices}, not {getattr(self, name)}.")


PAPER_360 = MipNeRF360Config(steps=250_000, rays=16384, width=1024, distortion=0.01)
PAPER_BLENDER = MipNeRF360Config(
    steps=250_000,
    rays=16384,
    proposal_samples=(128,),
    directions=3,
    octaves=16,
    colour_loss="mse",
    distortion=0.0,
    adam_eps=1e-8,
)
PAPER_LLFF = replace(PAPER_BLENDER, colour_loss="charbonnier", distortion=0.01)
SMALL = MipNeRF360Config(
    steps=10_000,
    rays=256,
    proposal_samples=(48,),
    samples=24,
    proposal_width=64,
    proposal_depth=2,
    width=128,
    depth=4,
    bottleneck=64,
    view_width=64,
    directions=6,
    octaves=8,
    lr=8e-3,
    warm_up=100,
    adam_eps=1e-8,
    chunk=256,
)

# ------------------------------------------------------------------------------------------------- Gaussians along rays


def conical_frustum(t0: Tensor, t1: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean along the axis, variance along it and variance across it of a cone between t0 and t1 (mip-NeRF, eq. 7).

    `radius` is the cone's at t = 1; all three broadcast. Written in the middle and the half-length of the interval: the
    plain moments cancel catastrophically for the short intervals of far samples.
    """
    middle, half = 0.5 * (t0 + t1), 0.5 * (t1 - t0)
    share = half**2 / (3.0 * middle**2 + half**2).clamp(min=torch.finfo(t0.dtype).tiny)
    mean = middle + 2.0 * middle * share
    along = half**2 / 3.0 - 4.0 / 15.0 * share**2 * (12.0 * middle**2 - half**2)
    across = radius**2 * (middle**2 / 4.0 + 5.0 / 12.0 * half**2 - 4.0 / 15.0 * half**2 * share)
    return mean, along, across


def cylinder(t0: Tensor, t1: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`conical_frustum` of a tube of constant radius: what a pixel's cone is in normalised device coordinates."""
    return 0.5 * (t0 + t1), (t1 - t0) ** 2 / 12.0, (radius**2 / 4.0).expand_as(t0)


def projected(
    rays: Rays, moments: tuple[Tensor, Tensor, Tensor], directions: Tensor, contracted: bool
) -> tuple[Tensor, Tensor]:
    """Means and variances [R, n, D] along unit `directions` [3, D] of the Gaussians with these moments [R, n].

    In space, a Gaussian on a ray with direction d has its mean at x and the covariance C = along d d^T + across (I -
    d d^T / |d|^2) (mip-NeRF, equation 8; `along` is measured in d, which need not be unit, `across` in lengths).
    `contracted` squeezes it by `geometry.contract`, whose Jacobian is J = a I + (b - a) u u^T with u = x / |x|, where
    a = (2 - 1/|x|) / |x| and b = 1 / |x|^2 beyond the unit ball, and a = b = 1 in it (equation 9). All that the
    encoding asks of the covariance is p^T J C J p for each of its directions p. That takes dot products, and not a
    matrix per sample.
    """
    mean, along, across = moments
    d = rays.direction[:, None]
    x = rays.at(mean)
    along = (along - across / (d * d).sum(-1))[..., None]
    place, slope, length = x @ directions, d @ directions, torch.ones((), dtype=x.dtype, device=x.device)
    if contracted:
        inverse = (x * x).sum(-1, keepdim=True).clamp(min=1.0).rsqrt()
        a, b = (2.0 - inverse) * inverse, inverse * inverse
        share = place * inverse  # p . u
        length = torch.addcmul(a * a, b * b - a * a, share * share)  # |J p|^2
        slope = torch.addcmul(a * slope, (b - a) * inverse * (x * d).sum(-1, keepdim=True), share)  # (J p) . d
        place = place * a
    return place, along * slope * slope + across[..., None] * length


# ------------------------------------------------------------------------------------------------------------- encoding


def encoding_directions(count: int) -> Tensor:
    """Unit directions [count, 3], no two opposite: the 3 axes, the 6 of an icosahedron's vertices, or the 21 of its
    vertices and the middles of its edges."""
    if count == 3:
        return torch.eye(3)
    golden = 0.5 * (1.0 + math.sqrt(5.0))
    rectangle = [(0.0, a, b * golden) for a in (-1.0, 1.0) for b in (-1.0, 1.0)]
    corner = torch.tensor([point[i:] + point[:i] for point in rectangle for i in range(3)], dtype=torch.float64)
    every = corner
    if count == 21:
        i, j = torch.triu_indices(12, 12, offset=1)
        edge = (corner[i] - corner[j]).norm(dim=-1) < 2.1  # Edges have length 2; the next distance is 2 golden.
        every = torch.cat([corner, 0.5 * (corner[i] + corner[j])[edge]])
    # Of two opposite points, the one whose first coordinate that is not zero is positive.
    sign = every.sign() @ torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    return F.normalize(every[sign > 0], dim=-1).float()


def integrated_encoding(mean: Tensor, variance: Tensor, octaves: int) -> Tensor:
    """Expected sin(2^l x) and cos(2^l x), l = 0 .. octaves - 1, for x normal with `mean` and `variance` [..., D].

    Returns [..., 2 D octaves]. Each wave is damped by exp(-4^l variance / 2) (mip-NeRF, equation 14); without variance
    it is NeRF's positional encoding.
    """
    scale = 2.0 ** torch.arange(octaves, dtype=mean.dtype, device=mean.device)
    # A matrix [D, octaves D] that repeats and scales: a product with it is faster than to broadcast rows of D numbers.
    scaled = torch.kron(scale[None], torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device))
    angle, damping = mean @ scaled, (variance @ (-0.5 * scaled**2)).exp_()
    return torch.cat([angle.sin().mul_(damping), angle.cos_().mul_(damping)], dim=-1)


# ------------------------------------------------------------------------------------------------------------- networks


class DensityMLP(nn.Module):
    """Encoded Gaussians [..., features] -> density [...]: the proposal, and the trunk of the field."""

    SKIP = 5
    """The layer, counted from 0, that sees the encoding again."""

    def __init__(self, features: int, width: int, depth: int) -> None:
        super().__init__()
        inputs = [features if i == 0 else width + features if i == self.SKIP else width for i in range(depth)]
        self.trunk = nn.ModuleList(nn.Linear(n, width) for n in inputs)
        self.density_head = nn.Linear(width, 1)
        he_uniform(self)

    def forward(self, encoded: Tensor) -> Tensor:
        return self.density(self.hidden(encoded))

    def hidden(self, encoded: Tensor) -> Tensor:
        """The trunk's features [..., width]."""
        hidden = encoded
        for i, layer in enumerate(self.trunk):
            hidden = F.relu(layer(torch.cat([hidden, encoded], dim=-1) if i == self.SKIP else hidden))
        return hidden

    def density(self, hidden: Tensor) -> Tensor:
        """softplus(raw - 1), of the raw output itself: it starts as thin fog, and may grow without limit."""
        raw = self.density_head(hidden).to(self.density_head.weight)  # which autocast may have made narrower
        return F.softplus(raw.squeeze(-1) - 1.0)


class RadianceMLP(DensityMLP):
    """Encoded Gaussians [..., features], encoded view directions (broadcast) -> density [...], rgb [..., 3].

    Density never sees the direction; colour sees it through one narrow layer, as in NeRF.
    """

    def __init__(
        self, features: int, width: int, depth: int, bottleneck: int, view_features: int, view_width: int
    ) -> None:
        super().__init__(features, width, depth)
        self.bottleneck = nn.Linear(width, bottleneck)
        self.view_branch = nn.Linear(bottleneck + view_features, view_width)
        self.colour_head = nn.Linear(view_width, 3)
        he_uniform(self)

    def radiance(self, encoded: Tensor, encoded_view: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.hidden(encoded)
        bottleneck = self.bottleneck(hidden)
        branch = torch.cat([bottleneck, encoded_view.expand(*bottleneck.shape[:-1], -1)], dim=-1)
        raw = self.colour_head(F.relu(self.view_branch(branch))).to(self.colour_head.weight)
        # A little more than [0, 1], so that black and white are reached by finite outputs.
        return self.density(hidden), 1.002 * torch.sigmoid(raw) - 0.001


def he_uniform(module: nn.Module) -> None:
    """Weights of all linear layers uniform within sqrt(6 / inputs), biases zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)


# --------------------------------------------------------------------------------------------------------------- method


@dataclass(frozen=True)
class Traced:
    """What R rays see, before any background, and how the M of them that meet the scene were cut."""

    rgb: Tensor
    """[R, 3], premultiplied by alpha."""
    alpha: Tensor
    """[R] opacity: the sum of the weights."""
    depth: Tensor
    """[R] expected distance along the ray in scene units; 0 where alpha is 0."""
    median: Tensor
    """[R] distance along the ray before which half of the weights lie; 0 where alpha is 0."""
    levels: tuple[tuple[Tensor, Tensor], ...]
    """(edges in s [M, n + 1], weights [M, n]) of each round of the proposal, then of the field."""
    per_meeting: Tensor | float
    """Factor on means over those M: 1; or where sizes are fixed and M is R, that of `rays.per_meeting`."""

    def over(self, background: Tensor) -> Tensor:
        """Colours [R, 3] in front of a background [3]. The only place where a background enters."""
        return self.rgb + (1.0 - self.alpha)[:, None] * background


class MipNeRF360(PixelMethod):
    """A field of radiance over Gaussians, and a proposal that finds where to ask it."""

    Config = MipNeRF360Config
    PRESETS: ClassVar[dict[str, MipNeRF360Config]] = {
        "": MipNeRF360Config(),
        "small": SMALL,
        "360": PAPER_360,
        "blender": PAPER_BLENDER,
        "llff": PAPER_LLFF,
    }
    BY_KERNELS = False
    HALF = True
    ON_HOST = ("fraction", "trained")
    config: MipNeRF360Config
    background: Tensor
    fraction: Tensor
    trained: Tensor
    basis: Tensor
    eyes: Tensor

    def __init__(self, config: MipNeRF360Config, info: SceneInfo) -> None:
        super().__init__(config, info)
        features, view_features = 2 * config.directions * config.octaves, 3 + 6 * config.view_octaves
        self.proposal = DensityMLP(features, config.proposal_width, config.proposal_depth)
        self.field = RadianceMLP(
            features, config.width, config.depth, config.bottleneck, view_features, config.view_width
        )
        self.space = space_of(info)
        # Photographs without transparency have no background: whatever a ray meets last is opaque, however far.
        self.opaque = info.background is None
        by_scene = "charbonnier" if self.opaque else "mse"
        self.colour_loss = by_scene if config.colour_loss == "auto" else config.colour_loss
        self.distortion = (0.01 if self.opaque else 0.0) if config.distortion is None else config.distortion
        self.register_buffer("background", torch.tensor(info.background or (0.0, 0.0, 0.0)), persistent=False)
        self.register_buffer("fraction", torch.tensor(0.0))
        """Share of the training that is done, of steps or of time: what the annealing runs on."""
        self.register_buffer("trained", torch.tensor(0))
        """Steps taken so far: what the warm-up counts."""
        self.register_buffer("basis", encoding_directions(config.directions).T, persistent=False)
        cameras = [info.cameras[i] for i in info.train]
        self.register_buffer("eyes", torch.stack([camera.center.float() for camera in cameras]), persistent=False)
        middle = [torch.tensor([[camera.width, camera.height]]) / 2.0 for camera in cameras]
        radii = [float(camera.rays(xy).radius) for camera, xy in zip(cameras, middle, strict=True)]
        self.radius = sorted(radii)[len(radii) // 2]

    def groups(self) -> list[Group]:
        c = self.config
        decay, ramp = exponential_after(0.0, c.lr_final), warm_up(constant, 1.0)

        # In steps, whatever the budget: a share of three minutes would be over before the networks know of space.
        def schedule(fraction: float) -> float:
            return decay(fraction) * (ramp(int(self.trained) / c.warm_up) if c.warm_up else 1.0)

        networks = {"proposal": self.proposal, "field": self.field}
        return [
            Group(name, list(net.parameters()), c.lr, (0.9, 0.999), c.adam_eps, schedule=schedule, clip=c.clip)
            for name, net in networks.items()
        ]

    def phase(self, step: int) -> Phase:
        return Phase(anneal=annealing(float(self.fraction)))

    def terms(self, pixels: Pixels, phase: Phase, rng: Generator) -> dict[str, Tensor]:
        c = self.config
        alpha = pixels.alpha[:, None]
        true = pixels.rgb * alpha + (1.0 - alpha) * self.background
        seen = self.trace(pixels.rays, rng, phase.anneal)
        colour = seen.over(self.background)
        *proposals, (edges, weights) = seen.levels
        bounds = [interlevel(edges, weights, *proposal) for proposal in proposals]
        terms = {
            "colour": charbonnier(colour, true) if self.colour_loss == "charbonnier" else mse(colour, true),
            "interlevel": seen.per_meeting * torch.stack(bounds).sum(),
        }
        if self.distortion > 0:
            terms["distortion"] = self.distortion * seen.per_meeting * distortion(edges, weights)
        asked = sum(c.proposal_samples) + c.samples
        self.stats = {"rays": c.rays, "samples": c.rays * asked, "mse": devices.number(mse(colour.detach(), true))}
        return terms

    def after_step(self, step: int, optim: Adam) -> None:
        self.fraction.fill_(optim.fraction)
        self.trained.fill_(step + 1)

    def trace(
        self, rays: Rays, rng: Generator | None = None, anneal: float | Tensor = 1.0, cropped: bool = False
    ) -> Traced:
        """What rays see. With a generator: jittered, for training. `anneal` is the exponent on proposals' weights. Rays
        that end at the wall of a cropping box have nothing behind it."""
        count, fixed = len(rays), self.fixed_sizes and rng is not None
        # Rays that miss the scene cost nothing; neither do pixels beyond a lens's rim, which have no direction.
        hit, rays = self.space.meeting(self.space.bound(rays), fixed)
        straight = self.space.straight(rays)
        speed = straight.direction.norm(dim=-1, keepdim=True)
        edges = torch.stack([torch.zeros_like(rays.near), torch.ones_like(rays.near)], dim=1)
        weights = torch.ones_like(edges[:, 1:])
        # Directions as they are before any warp: in those a highlight means something.
        view = self.encode_view(rays.direction)[:, None]
        levels: list[tuple[Tensor, Tensor]] = []
        drawn, counts = 1, [*self.config.proposal_samples, self.config.samples]
        for n in counts:
            # In the first round there is nothing yet to dilate: one interval, as long as the ray.
            dilation = 0.0025 + 0.5 / drawn if levels else 0.0
            edges = resample(edges, weights, n, rng, dilation, anneal)
            drawn *= n
            t = self.space.spacing.t_from_s(edges, straight.near, straight.far)
            encoded = self.encode(straight, t)
            with self.computing():
                if len(levels) + 1 < len(counts):
                    density = self.proposal(encoded)
                else:
                    density, rgb = self.field.radiance(encoded, view)
            weights = weights_from_density(density, t * speed, self.opaque and not cropped)
            if fixed:  # A ray that misses meets nothing, not even what is opaque behind it.
                weights = torch.where((rays.far > rays.near)[:, None], weights, 0.0)
            levels.append((edges, weights))
        alpha = weights.sum(dim=-1)
        # The middle in s: that of the last interval in t may be hundreds of units behind what it holds.
        middle = self.space.spacing.t_from_s(0.5 * (edges[:, 1:] + edges[:, :-1]), straight.near, straight.far)
        depth = (weights * self.space.distance(rays, middle)).sum(dim=-1)
        depth = depth / alpha.clamp(min=torch.finfo(alpha.dtype).tiny)
        halfway = median_distance(edges, weights, straight.near, straight.far, self.space.spacing)
        median = torch.where(alpha > 0, self.space.distance(rays, halfway[:, None])[:, 0], 0.0)
        colour = (weights[..., None] * rgb).sum(dim=-2)
        colour, alpha, depth, median = (_scatter(part, hit, count) for part in (colour, alpha, depth, median))
        return Traced(colour, alpha, depth, median, tuple(levels), per_meeting(rays) if fixed else 1.0)

    def encode(self, rays: Rays, t: Tensor) -> Tensor:
        """Features [R, n, 2 D octaves] of the intervals between t [R, n + 1] of straight rays."""
        shape = cylinder if self.space.tubes else conical_frustum
        moments = shape(t[:, :-1], t[:, 1:], rays.radius[:, None])
        # Outside `computing`: of a place that is rounded, the fine waves are noise.
        mean, variance = projected(rays, moments, self.basis, self.space.contracts)
        return integrated_encoding(mean, variance, self.config.octaves)

    def encode_view(self, direction: Tensor) -> Tensor:
        """Features [..., 3 + 6 octaves] of unit directions [..., 3]: a direction has no extent, and itself is kept."""
        waves = integrated_encoding(direction, torch.zeros_like(direction), self.config.view_octaves)
        return torch.cat([direction, waves], dim=-1)

    @asked
    def density_at(self, points: Tensor) -> Tensor:
        """Optical density [N] per scene unit at points [N, 3]; 0 outside the part of space that pictures show.

        The network knows no points, only Gaussians, and was never shown one smaller than a pixel. So each point is
        asked for as its nearest training camera would see it, as an interval as long as its pixel is wide.
        """
        found = []
        for part in points.split(self.config.chunk * self.config.samples):
            distance, nearest = torch.cdist(part, self.eyes).min(dim=1)
            towards = (part - self.eyes[nearest]) / distance.clamp(min=1e-9)[:, None]
            rays = self.space.bound(Rays(self.eyes[nearest], towards, radius=torch.tensor(self.radius)))
            shown = torch.nonzero((distance >= rays.near) & (distance <= rays.far))[:, 0]
            rays, distance = rays[shown], distance[shown]
            straight = self.space.straight(rays)
            t = self.space.t_at(rays, distance[:, None])
            speed = straight.direction.norm(dim=-1, keepdim=True)
            half = straight.radius[:, None] / speed * (1.0 if self.space.tubes else t)
            ends = torch.cat([t - half, t + half], dim=-1)
            density = self.field(self.encode(straight, ends))
            # Per unit of the straight ray's space, which a warp may have squeezed.
            squeeze = (ends * speed).diff(dim=-1) / self.space.distance(rays, ends).diff(dim=-1)
            found.append(_scatter((density * squeeze)[:, 0], shown, len(part)))
        return torch.cat(found) if found else torch.zeros(0)

    @picture
    def render(self, camera: Camera, background: Tensor | None = None, crop: Box | None = None) -> Image:
        background = self.background if background is None else background.to(self.background)
        near = self.info.near_for(camera)
        parts = []
        for xy in torch.split(camera.pixel_grid(), self.chunk(self.config.chunk)):
            rays = camera.rays(xy).to(self.background.dtype).to(self.device)
            rays = replace(rays, near=torch.full_like(rays.near, near))
            if crop is not None:
                enter, leave = crop.span(rays.origin, rays.direction)
                rays = replace(rays, near=torch.maximum(rays.near, enter), far=torch.minimum(rays.far, leave))
            seen = self.trace(rays, cropped=crop is not None)
            parts.append((seen.over(background), seen.alpha, seen.depth, seen.median))
        rgb, *others = (torch.cat(part) for part in zip(*parts, strict=True))
        alpha, depth, median = (part.reshape(camera.height, camera.width) for part in others)
        rgb = rgb.clamp(0.0, 1.0).reshape(camera.height, camera.width, 3)
        return Image(rgb, alpha.clamp(0.0, 1.0), depth, median_depth=median)


def _scatter(values: Tensor, place: Tensor, count: int) -> Tensor:
    """Values [M, ...] at the places [M] that they have among `count`, and zeros elsewhere: [count, ...]."""
    return values.new_zeros(count, *values.shape[1:]).index_copy(0, place, values)
