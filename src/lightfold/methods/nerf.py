"""NeRF as published in 2020, written to be read: start here to learn the field.

A scene is a function that a small network learns: (point x, view direction d) -> (density sigma, colour c). Density is
the chance per unit length that light stops at x; colour is what leaves x along d. A pixel is an integral along its ray
r(t) = o + t d, taken at samples t_1 < ... < t_N as a sum (equation 3 of the paper):

    delta_i = t_{i+1} - t_i                     length that sample i stands for
    alpha_i = 1 - exp(-sigma_i delta_i)         share of the light that stops there
    T_i     = prod_{j<i} (1 - alpha_j)          share that gets that far: transmittance
    w_i     = T_i alpha_i                       weight; the weights of a ray sum to at most 1
    C       = sum_i w_i c_i + (1 - sum_i w_i) background

All of it is differentiable, so the squared error against the photographs trains the network. Two ideas make it work:

1. `positional_encoding`: bare coordinates teach a network only a blur; their sines and cosines teach it detail.
2. Two networks. The coarse one sees evenly spread samples; its weights say where the surface is, and the fine one is
   given more samples there (`NeRF.trace`).

The file reads from the formulas down to the method: encoding, network, compositing, `NeRF`. Where samples may lie
depends on the kind of scene: `spaces.py`. Letters in shapes: R rays, N samples on each.

Source: Mildenhall et al., "NeRF: Representing Scenes as Neural Radiance Fields for View Synthesis", ECCV 2020, and the
behaviour of the authors' code. Where this file leaves them, a comment says so and why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .. import devices
from ..cameras import Camera
from ..errors import ConfigError
from ..losses import mse
from ..optim import Group, exponential_after
from ..rays import Box, Rays, sample_pdf, stratified
from ..spaces import space_of
from .base import Image, picture
from .pixel_method import Phase, PixelMethod

if TYPE_CHECKING:
    from ..scene import Pixels, SceneInfo


@dataclass(frozen=True)
class NeRFConfig:
    """Options of NeRF. The defaults are a smaller network that a processor trains in an hour or two."""

    steps: int = 6000
    """Optimiser steps of a full training."""
    rays: int = 512
    """Rays per step, drawn from all training photographs at once."""
    coarse_samples: int = 32
    """Evenly spread samples per ray, seen by the coarse network (and again by the fine one)."""
    fine_samples: int = 64
    """Further samples per ray, placed where the coarse network found something."""
    width: int = 128
    """Width of the trunk's layers; the colour branch is half as wide."""
    depth: int = 8
    """Number of layers of the trunk."""
    position_octaves: int = 10
    """Octaves of the positional encoding of points: the finest sine has a period of 2 pi / 2^(octaves - 1)."""
    direction_octaves: int = 4
    """Octaves of the positional encoding of view directions."""
    softplus_density: bool = True
    """True: density is softplus(raw - 1), which always has a gradient. False: the paper's ReLU, which can die early."""
    density_noise: float = 0.0
    """Standard deviation of Gaussian noise on the raw density while training; the paper uses 1 on photographs."""
    lr: float = 1e-3
    """Learning rate of Adam at the start."""
    lr_final: float = 0.1
    """Factor on the learning rate at the end; the decay between is exponential."""
    chunk: int = 1024
    """Rays rendered at once; bounds the memory of a picture, about 1 MB per ray for the paper's network."""

    def __post_init__(self) -> None:
        least = {"steps": 1, "rays": 1, "coarse_samples": 3, "fine_samples": 1, "width": 2, "depth": 1, "chunk": 1}
        for field in fields(self):
            value, low = getattr(self, field.name), least.get(field.name, 0)
            if not (math.isfinite(value) and value >= low):
                raise ConfigError(f"nerf's option '{field.name}' must be a finite number >= {low}, not {value}.")


PAPER = NeRFConfig(
    steps=200_000,
    rays=4096,
    coarse_samples=64,
    fine_samples=128,
    width=256,
    softplus_density=False,
    lr=5e-4,
    lr_final=0.1**0.4,  # The code decays by 0.1 every 500 k steps, and stops at 200 k.
)
PAPER_LLFF = NeRFConfig(
    steps=200_000,
    rays=4096,
    coarse_samples=64,
    fine_samples=64,
    width=256,
    softplus_density=False,
    density_noise=1.0,
    lr=5e-4,
    lr_final=0.1**0.8,  # Here by 0.1 every 250 k.
)
TINY = NeRFConfig(
    steps=500, rays=256, coarse_samples=16, fine_samples=16, width=64, depth=4, position_octaves=6, lr=3e-3
)

# ---------------------------------------------------------------------------------------------------------------- field


def positional_encoding(x: Tensor, octaves: int) -> Tensor:
    """[..., D] -> [..., D + 2 D octaves]: x, then sin(2^k x) and cos(2^k x) for k = 0 .. octaves - 1 (equation 4).

    As in the authors' code, and unlike equation 4, x itself is kept and there is no factor pi.
    """
    frequency = 2.0 ** torch.arange(octaves, dtype=x.dtype, device=x.device)
    angle = frequency[:, None] * x[..., None, :]  # [..., octaves, D]
    waves = torch.stack([angle.sin(), angle.cos()], dim=-2)  # [..., octaves, 2, D]
    return torch.cat([x, waves.flatten(-3)], dim=-1)


class RadianceField(nn.Module):
    """The network of figure 7: points [..., 3], unit view directions (broadcast) -> raw density [...], rgb [..., 3].

    Density depends on the point alone, so that geometry is the same from everywhere; the direction joins late, through
    one narrow layer, which is enough for highlights and too little to paint each photograph separately.
    """

    def __init__(self, config: NeRFConfig) -> None:
        super().__init__()
        self.position_octaves = config.position_octaves
        self.direction_octaves = config.direction_octaves
        point_width = 3 + 6 * config.position_octaves
        view_width = 3 + 6 * config.direction_octaves
        width = config.width
        # Halfway up, the encoded point is given again (layer 6 of 8), so that deep layers still know where they are.
        self.skip = config.depth // 2 + 1
        inputs = [width + point_width if i == self.skip else width for i in range(config.depth)]
        self.trunk = nn.ModuleList(nn.Linear(n, width) for n in [point_width, *inputs[1:]])
        self.density_head = nn.Linear(width, 1)
        self.feature = nn.Linear(width, width)
        self.view_branch = nn.Linear(width + view_width, width // 2)
        self.colour_head = nn.Linear(width // 2, 3)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):  # The authors' (Keras') defaults; torch's own start much smaller.
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, points: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        encoded = positional_encoding(points, self.position_octaves)
        hidden = encoded
        for i, layer in enumerate(self.trunk):
            if i == self.skip:
                hidden = torch.cat([encoded, hidden], dim=-1)
            hidden = F.relu(layer(hidden))
        raw_density = self.density_head(hidden).squeeze(-1)
        encoded_view = positional_encoding(views, self.direction_octaves).expand(*points.shape[:-1], -1)
        branch = torch.cat([self.feature(hidden), encoded_view], dim=-1)
        return raw_density, torch.sigmoid(self.colour_head(F.relu(self.view_branch(branch))))


# ---------------------------------------------------------------------------------------------------------- compositing


def ray_weights(density: Tensor, length: Tensor) -> Tensor:
    """Weights w_i = T_i (1 - exp(-sigma_i delta_i)) [R, N] from densities [R, N] >= 0 and interval lengths [R, N] >= 0.

    Transmittance is exp(-sum of sigma delta before i): the product of the (1 - alpha_j) without its rounding.
    """
    optical = density * length
    before = F.pad(optical[:, :-1].cumsum(dim=-1), (1, 0))
    return torch.exp(-before) * -torch.expm1(-optical)


@dataclass(frozen=True)
class Traced:
    """What rays see, before any background."""

    rgb: Tensor
    """[R, 3], premultiplied by alpha."""
    alpha: Tensor
    """[R] opacity: the sum of the weights."""
    depth: Tensor
    """[R] expected distance along the ray in scene units; 0 where alpha is 0."""
    median: Tensor
    """[R] distance before which half of the weights lie; 0 where alpha is 0."""

    def over(self, background: Tensor) -> Tensor:
        """Colours [R, 3] in front of a background [3] or [R, 3]. The only place where a background enters."""
        return self.rgb + (1.0 - self.alpha)[:, None] * background

    def scatter(self, place: Tensor, count: int) -> Traced:
        """These rays at the places [R] that they have among `count` rays, of which the others see nothing."""
        wide = [part.new_zeros(count, *part.shape[1:]) for part in self.parts()]
        return Traced(*(w.index_copy(0, place, part) for w, part in zip(wide, self.parts(), strict=True)))

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.rgb, self.alpha, self.depth, self.median


def composite(weights: Tensor, rgb: Tensor, distance: Tensor) -> Traced:
    """Weights [R, N], colours [R, N, 3] and distances along the ray [R, N], increasing -> what each ray sees."""
    alpha = weights.sum(dim=-1)
    # Dividing by an alpha of exactly 0 would give NaN; depth there is 0 by definition, and so is the sum above it.
    depth = (weights * distance).sum(dim=-1) / alpha.clamp(min=torch.finfo(alpha.dtype).tiny)
    half = weights.detach().cumsum(dim=-1) >= 0.5 * alpha[:, None]
    median = distance.gather(1, half.byte().argmax(dim=-1, keepdim=True))[:, 0]
    return Traced((weights[..., None] * rgb).sum(dim=-2), alpha, depth, torch.where(alpha > 0, median, 0.0))


ENDLESS = 1e10
"""Length of the last interval where there is no background. Not infinity: a density of 0 must still give alpha 0."""


# --------------------------------------------------------------------------------------------------------------- method


class NeRF(PixelMethod):
    """Coarse and fine radiance field with hierarchical sampling."""

    Config = NeRFConfig
    PRESETS: ClassVar[dict[str, Any]] = {"": NeRFConfig(), "paper": PAPER, "paper-llff": PAPER_LLFF, "tiny": TINY}
    BY_KERNELS = False
    ON_GPU: ClassVar[dict[str, int]] = {"rays": 4096, "chunk": 8192}
    background: Tensor

    def __init__(self, config: NeRFConfig, info: SceneInfo) -> None:
        super().__init__(config, info)
        self.coarse = RadianceField(config)
        self.fine = RadianceField(config)
        # Departure from the paper in unbounded scenes, whose code offers 1/t steps up to a far plane: the encoding of a
        # coordinate in the hundreds is noise, so space is first contracted. In forward-facing ones, points are warped,
        # but colours still see the direction before the warp, in which a highlight means something.
        self.space = space_of(info)
        # Photographs without transparency have no background: whatever a ray meets last is opaque, however far.
        self.endless = info.background is None
        self.register_buffer("background", torch.tensor(info.background or (0.0, 0.0, 0.0)), persistent=False)

    def groups(self) -> list[Group]:
        schedule = exponential_after(0.0, self.config.lr_final)
        params = list(self.parameters())
        return [Group("networks", params, lr=self.config.lr, betas=(0.9, 0.999), eps=1e-7, schedule=schedule)]

    def terms(self, pixels: Pixels, phase: Phase, rng: Generator) -> dict[str, Tensor]:
        rgb, alpha = pixels.rgb, pixels.alpha[:, None]
        true = rgb * alpha + (1.0 - alpha) * self.background
        coarse, fine = self.trace(pixels.rays, rng)
        terms = {"fine": mse(fine.over(self.background), true), "coarse": mse(coarse.over(self.background), true)}
        evaluated = len(true) * (2 * self.config.coarse_samples + self.config.fine_samples)
        self.stats = {"rays": len(true), "samples": evaluated, "mse": devices.number(terms["fine"])}
        return terms

    def trace(self, rays: Rays, rng: Generator | None = None, cropped: bool = False) -> tuple[Traced, Traced]:
        """What the coarse and the fine network see. With a generator: jittered and noisy, for training. Rays that end
        at the wall of a cropping box have nothing behind it."""
        c, count = self.config, len(rays)
        # Rays that miss the scene cost nothing; neither do pixels beyond a lens's rim, which have no direction.
        hit, rays = self.space.meeting(self.space.bound(rays), self.fixed_sizes and rng is not None)
        s = stratified(torch.zeros_like(rays.near), torch.ones_like(rays.near), c.coarse_samples, rng)
        coarse, weights = self.see(self.coarse, rays, s, rng, cropped)
        # The histogram to draw from: bins end midway between samples, and a little weight everywhere keeps the door
        # open for what the coarse network missed. No gradient goes through the choice of where to look.
        middle = 0.5 * (s[:, 1:] + s[:, :-1])
        s_fine = sample_pdf(middle, weights[:, 1:-1] + 1e-5, c.fine_samples, rng)
        s_union = torch.cat([s, s_fine], dim=-1).sort(dim=-1).values
        fine, _ = self.see(self.fine, rays, s_union, rng, cropped)
        return coarse.scatter(hit, count), fine.scatter(hit, count)

    def see(
        self, field: RadianceField, rays: Rays, s: Tensor, rng: Generator | None, cropped: bool
    ) -> tuple[Traced, Tensor]:
        """One network along the rays [R] at s [R, N], ascending -> what it sees, and its weights [R, N]."""
        end = torch.ones_like(s[:, :1])
        points, length, distance = self.space.at(rays, torch.cat([s, end], dim=-1))
        delta = length.diff(dim=-1)
        if self.endless and not cropped:
            # A ray of no length has missed the scene, and nothing is behind it.
            last = ENDLESS * (rays.far > rays.near)[:, None].to(end)
            delta = torch.cat([delta[:, :-1], last], dim=-1)
        raw, rgb = field(points[:, :-1], rays.direction[:, None, :])
        if rng is not None and self.config.density_noise > 0:
            noise = devices.sent(torch.randn(raw.shape, generator=rng, device=rng.device), raw.device)
            raw = raw + self.config.density_noise * noise
        # ReLU is the paper's. Where it is 0 at every sample, no gradient is left: before a white background that is a
        # stable wrong answer, an all-white picture into which training can fall in its first steps. The authors' remedy
        # is to crop the first batches to the picture's middle; softplus(raw - 1), from mip-NeRF, needs no such luck: it
        # starts as thin fog and always has a gradient.
        density = F.softplus(raw - 1.0) if self.config.softplus_density else F.relu(raw)
        weights = ray_weights(density, delta)
        return composite(weights, rgb, distance[:, :-1]), weights

    @picture
    def render(self, camera: Camera, background: Tensor | None = None, crop: Box | None = None) -> Image:
        background = self.background if background is None else background.to(self.background)
        rgb, alpha, depth, median = [], [], [], []
        for xy in torch.split(camera.pixel_grid(), self.chunk(self.config.chunk)):
            rays = camera.rays(xy).to(self.background.dtype).to(self.device)
            if crop is not None:
                enter, leave = crop.span(rays.origin, rays.direction)
                rays = replace(rays, near=torch.maximum(rays.near, enter), far=torch.minimum(rays.far, leave))
            _, fine = self.trace(rays, cropped=crop is not None)
            rgb.append(fine.over(background))
            alpha.append(fine.alpha)
            depth.append(fine.depth)
            median.append(fine.median)
        size = (camera.height, camera.width)
        return Image(
            rgb=torch.cat(rgb).clamp(0.0, 1.0).reshape(*size, 3),
            alpha=torch.cat(alpha).clamp(0.0, 1.0).reshape(size),
            depth=torch.cat(depth).reshape(size),
            median_depth=torch.cat(median).reshape(size),
        )
