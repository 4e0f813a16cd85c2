"""NeuS (Wang et al. 2021): surfaces, not fog. Read `nerf.py` first.

A scene is a signed distance f(x): positive outside things, negative inside, zero on their surface, |grad f| = 1. Its
colours are learnt by volume rendering like NeRF's, so f has to become opacity. The logistic function Phi_s(f) =
1 / (1 + exp(-s f)) climbs from 0 to 1 across the surface, within a few 1/s of it; NeuS lets a ray lose light as
Phi_s falls along it (section 3.1, equations 10 to 13):

    alpha_i = max((Phi_s(f_i) - Phi_s(f_{i+1})) / Phi_s(f_i), 0)    f_i, f_{i+1}: f at the two ends of interval i

A ray that enters head on is then absorbed most strongly exactly where f = 0, whatever s is ("unbiased"), and a second
surface behind counts less than the first ("occlusion-aware"): with a density that is any plain function of f, only one
of the two can be had. s is learnt too: it rises as training becomes sure of the surface, and is the gauge to watch
(`inv_s` in metrics.jsonl; the paper's name, although s is already the inverse of a width). It starts at 20, ends at
hundreds or more, and falling below its start means that the training has gone astray.

Since Phi_s(f) = exp(-softplus(-s f)), the formula is that of a medium with optical depth

    tau_i = max(softplus(-s f_{i+1}) - softplus(-s f_i), 0),    alpha_i = 1 - exp(-tau_i)

which divides by nothing and overflows nowhere; `optical_depth` is all there is of NeuS in the rendering, and NeRF's
own compositing does the rest. f at the ends is extrapolated from the middle by its slope along the ray.

Four things hold the distance field together:

1. It starts as a sphere (`HashField`, `WaveField`): a distance to begin with, that rays can carve and inflate.
2. The eikonal loss (|grad f| - 1)^2 keeps it a distance. It is a loss on a slope, so training differentiates the slope
   again; the hash grid's kernels do that analytically (`ops.hash_gradient`). The `neuralangelo` preset takes the
   slope by finite differences instead (Li et al. 2023, section 3.2), whose wide taps smooth where the grid is fine,
   and adds a loss on the curvature that the same taps give.
3. Hash levels are switched on one by one, coarse before fine, so that noise cannot hide in detail.
4. What is not the object is somebody else's business: masks where the pictures have transparency (a loss on opacity,
   random backgrounds), and otherwise a second, ordinary density field for all that lies beyond the cube [-1, 1]^3.

Where samples lie is this file's own, for a CPU. The paper evaluates 128 points of every ray. Here a grid of bits says
where |f| is small enough to matter: f is a distance, so its value at a cell's centre bounds it over the whole cell, and
the grid is refreshed exactly, not by chance. Rays walk through those cells in steps of about 1/s; f alone is evaluated,
without gradients, which is cheap; and only intervals whose weight counts, some ten per ray, get slopes, colours and
gradients. The paper's up-sampling rounds would cost as many cheap evaluations and spread the dear ones.

Sources: the paper and the behaviour of the authors' code; where this file departs from them, a comment says why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from .. import devices, ops
from ..cameras import Camera
from ..errors import ConfigError
from ..geometry import contract_cube
from ..ops import HashGrid
from ..ops.march import cell_centres, pack_bits
from ..optim import Adam, Group, exponential_after, warm_up
from ..rays import Box, Samples
from .base import Image, Method, asked, check_ranges, picture, ray_chunks

if TYPE_CHECKING:
    from ..scene import Scene, SceneInfo


@dataclass(frozen=True)
class NeuSConfig:
    """Options of `neus`."""

    steps: int = 20_000
    """Steps of a full training."""
    encoding: str = "hash"
    """What the distance network sees of a point: "hash" (a hash grid) or "waves" (the paper's positional encoding)."""
    slope: str = "analytic"
    """How the gradient of the distance is found: "analytic" or "taps" (finite differences, as Neuralangelo)."""
    levels: int = 8
    """Levels of the hash grid."""
    features: int = 4
    """Features per level: 1, 2, 4 or 8."""
    log2_rows: int = 16
    """Rows of a level's table, as a power of two."""
    base: int = 16
    """Vertices per axis of the coarsest level, over the cube [-1, 1]^3."""
    finest: int = 1024
    """Vertices per axis of the finest level."""
    first_levels: int = 3
    """Levels that are active at the start."""
    level_every: int = 400
    """Steps after which one more level becomes active; 0: all from the start."""
    width: int = 64
    """Width of the distance network's hidden layers."""
    depth: int = 1
    """Hidden layers of the distance network. With "waves" the fifth sees the encoded point again."""
    geometry: int = 15
    """Features that the distance network hands to the colour network beside the distance."""
    colour_width: int = 64
    """Width of the colour network's hidden layers."""
    colour_depth: int = 2
    """Hidden layers of the colour network."""
    radius: float = 0.5
    """Radius of the sphere that training starts from, scene units; the scene's cube has half side 1."""
    batch: int = 8192
    """Samples with gradients per step to aim at: the number of rays adapts to it."""
    step: float = 0.004
    """Shortest step along a ray, scene units. Steps are longer while the surface is still wide."""
    keep: float = 3e-4
    """Intervals of smaller weight get neither colour nor gradient."""
    grid: int = 96
    """Cells per axis of the grid of bits; a multiple of 16."""
    refresh: int = 32
    """Steps between two refreshes of that grid."""
    beyond: int = 32
    """Samples per ray of the background, where it is learnt."""
    eikonal: float = 0.1
    """Weight of the eikonal loss."""
    mask: float = 0.1
    """Weight of the cross entropy of opacity, where pictures have transparency."""
    curvature: float = 0.0
    """Weight of the curvature loss at the start; it falls with the square of the taps' distance. Needs taps."""
    anneal: int = 2000
    """Steps over which rays learn to tell front from back, where nothing masks the background (see `slope_along`)."""
    table_lr: float = 1e-2
    """Learning rate of the hash tables."""
    network_lr: float = 2e-3
    """Learning rate of the networks."""
    variance_lr: float = 1e-4
    """Learning rate of ln(s) / 10. Once s is high, rays see f only where it is zero: what was carved away by then, such
    as a stem, never grows back. So s is to rise no faster than the shape takes to settle."""
    final_lr: float = 0.05
    """Learning rates end at this share of their start."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            ("steps", 1, 10**9), ("levels", 1, 32), ("log2_rows", 4, 24), ("base", 2, 512), ("finest", 16, 2**18),
            ("first_levels", 1, 32), ("level_every", 0, 10**9), ("width", 8, 1024), ("depth", 1, 16),
            ("geometry", 1, 512), ("colour_width", 8, 512), ("colour_depth", 1, 7), ("radius", 0.01, 1.0),
            ("batch", 64, 2**22), ("step", 1e-4, 1.0), ("keep", 0.0, 0.1), ("grid", 16, 256), ("refresh", 1, 10**6),
            ("beyond", 2, 1024), ("eikonal", 0.0, 100.0), ("mask", 0.0, 100.0), ("curvature", 0.0, 100.0),
            ("anneal", 0, 10**9), ("table_lr", 0.0, 10.0), ("network_lr", 0.0, 10.0), ("variance_lr", 0.0, 1.0),
            ("final_lr", 1e-6, 1.0),
        )  # fmt: skip
        for name, choices in (("encoding", ("hash", "waves")), ("slope", ("analytic", "taps"))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name}: expected {' or '.join(choices)}, got {getattr(self, name)!r}.")
        if self.features not in (1, 2, 4, 8):
            raise ConfigError(f"features: expected 1, 2, 4 or 8, got {self.features}.")
        if self.grid % 16:
            raise ConfigError(f"grid: expected a multiple of 16, got {self.grid}.")
        if self.base > self.finest:
            raise ConfigError(f"base: expected at most the finest level's vertices, got {self.base}.")
        if self.curvature > 0 and self.slope != "taps":
            raise ConfigError("curvature: it is measured by finite differences; set slope to taps as well.")


# ------------------------------------------------------------------------------------------- from distance to opacity


def optical_depth(f: Tensor, slope: Tensor, length: Tensor, inv_s: Tensor) -> Tensor:
    """tau [S] of intervals of this length [S] along rays on which f has this value [S] and slope [S] in the middle.

    Equation 13 of the paper, as in the module's docstring: alpha = 1 - exp(-tau).
    """
    half = 0.5 * slope * length
    return (softplus(-inv_s * (f + half)) - softplus(-inv_s * (f - half))).clamp(min=0.0)


def slope_along(direction: Tensor, gradient: Tensor, share: float) -> Tensor:
    """Slope of f along rays, d . grad f [S], never above 0: a ray that moves out of matter loses nothing.

    At first any moving surface helps, so the authors blend in a slope that is negative even for rays that leave
    (share 0: between -1 and 0 whichever way the normal points) and let it fade (share 1: min(d . grad f, 0)). Without
    masks, training fails without this; with masks they do without it.
    """
    cosine = (direction * gradient).sum(dim=-1)
    either_way = -(0.5 - 0.5 * cosine).clamp(min=0.0)
    return torch.lerp(either_way, cosine.clamp(max=0.0), share)


class _Softplus(torch.autograd.Function):
    """softplus by operations that PyTorch vectorises, which its own is not: an order of magnitude on a CPU.

    Beyond 20 it is flat or straight to eight digits. Cut off there, nothing gets so small (below 1e-38) that processors
    fall back to slow arithmetic. The backward pass is made of such operations too, so autograd can differentiate it.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.abs().clamp_(max=20.0).neg_().exp_().log1p_().add_(x.clamp(min=0.0))

    @staticmethod
    def backward(ctx, d: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return d * torch.sigmoid(x.clamp(-20.0, 20.0))


def softplus(x: Tensor, beta: float = 1.0) -> Tensor:
    """log(1 + exp(beta x)) / beta."""
    return _Softplus.apply(x) if beta == 1.0 else _Softplus.apply(beta * x) / beta


# ------------------------------------------------------------------------------------------------------ distance fields

BETA = 100.0
"""Sharpness of the softplus between layers: almost a ReLU, but its slope has a slope, which the eikonal loss needs."""


class Sampled(NamedTuple):
    """A distance field at points: distance [N], features for the colour network [N, K], gradient of the distance
    [N, 3], and its Laplacian [N] where it was measured."""

    distance: Tensor
    features: Tensor
    gradient: Tensor
    laplacian: Tensor | None = None

    def first(self, count: int) -> Sampled:
        """The same at the first so many points."""
        laplacian = None if self.laplacian is None else self.laplacian[:count]
        return Sampled(self.distance[:count], self.features[:count], self.gradient[:count], laplacian)


class DistanceField(nn.Module):
    """f on the cube [-1, 1]^3 and features beside it: `forward` of a subclass gives both, [N, 3] -> [N, 1 + K]."""

    def value(self, points: Tensor) -> Tensor:
        """f alone [N], without a gradient."""
        with torch.no_grad():
            return self(points)[:, 0]

    def march(self, rays: tuple[Tensor, Tensor, Tensor, Tensor], bits: Tensor, size: int, **how: Any) -> ops.Steps:
        """The steps along rays that count: `ops.march_field` of this field."""
        return ops.march_field(self.value, rays, bits, size, **how)

    def sample(self, points: Tensor, train: bool) -> Sampled:
        """Distance, features and analytic gradient; differentiable again if `train`."""
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            out = self(points)
            (gradient,) = torch.autograd.grad(out[:, 0].sum(), points, create_graph=train)
        sampled = Sampled(out[:, 0], out[:, 1:], gradient)
        return sampled if train else Sampled(*(t.detach() for t in sampled[:3]))

    def sample_by_taps(self, points: Tensor, reach: float, train: bool) -> Sampled:
        """The same by central differences over `reach` to both sides of each axis, with the Laplacian.

        Neuralangelo, equations 4 and 6: taps a grid cell apart see past that cell's borders, at which an analytic
        gradient of a trilinear blend jumps, so the eikonal loss reaches all cells around a point.
        """
        with torch.set_grad_enabled(train):
            out = self(points)
            offset = reach * torch.cat([torch.eye(3), -torch.eye(3)]).to(points)
            taps = self((points[:, None] + offset).reshape(-1, 3))[:, 0].reshape(-1, 6)
            gradient = (taps[:, :3] - taps[:, 3:]) / (2 * reach)
            laplacian = (taps.sum(dim=1) - 6 * out[:, 0]) / reach**2
        return Sampled(out[:, 0], out[:, 1:], gradient, laplacian)


class HashField(DistanceField):
    """A hash grid and a small network that also sees the coordinates themselves. Starts as a sphere.

    With directions u_j spread evenly over the sphere, the mean of max(u_j . x, 0) is |x| / 4, so that a hidden layer of
    such units gives f = |x| - r to within about a percent, with no training and for any radius: |grad f| = 1, and
    nothing for the eikonal loss to undo. (Random directions, as in the paper's initialisation, are as good only in
    a wide and deep network.) Deeper layers start as the identity, which ReLUs leave positive numbers.
    """

    active: Tensor

    def __init__(self, config: NeuSConfig, radius: float, inside_out: bool) -> None:
        super().__init__()
        c = config
        self.grid = HashGrid(c.levels, c.features, c.log2_rows, c.base, c.finest)
        self.table = nn.Parameter(torch.empty(self.grid.rows, c.features).uniform_(-1e-4, 1e-4))
        first, *deeper = [nn.Linear(3 + self.grid.width if i == 0 else c.width, c.width) for i in range(c.depth)]
        self.hidden = nn.ModuleList([first, *deeper])
        self.shallow = c.depth == 1
        self.out = nn.Linear(c.width, 1 + c.geometry)
        self.register_buffer("active", torch.ones(self.grid.width))
        self._counted = (self.active, self.active._version, self.grid.levels)
        sign = -1.0 if inside_out else 1.0
        with torch.no_grad():
            first.weight[:, :3] = even_directions(c.width)
            first.weight[:, 3:].normal_(0.0, (2.0 / c.width) ** 0.5)
            first.bias.zero_()
            for layer in deeper:
                layer.weight.copy_(torch.eye(c.width))
                layer.bias.zero_()
            self.out.weight[0] = sign * 4.0 / c.width
            self.out.bias.zero_()
            # At the distance r all units together miss r by the roundness of the softplus, which the bias takes up.
            on_sphere = self(radius * even_directions(200))[:, 0].mean()
            self.out.bias[0] = -on_sphere

    def set_active(self, levels: int) -> None:
        """Let the network see the coarsest levels only, so many."""
        if levels == self.active_levels:
            return
        self.active.copy_((torch.arange(self.grid.width) < levels * self.grid.features).float())
        self._counted = (self.active, self.active._version, levels)

    @property
    def active_levels(self) -> int:
        """How many levels the network sees: read from the buffer, for which a GPU's host waits, only if it is new."""
        active, version, levels = self._counted
        if active is not self.active or version != self.active._version:
            levels = int(self.active.sum()) // self.grid.features
            self._counted = (self.active, self.active._version, levels)
        return levels

    def cell(self, levels: int) -> float:
        """Side of a cell of the finest of so many levels, in scene units."""
        return 2.0 / self.grid.scale[min(levels, self.grid.levels) - 1]

    def forward(self, points: Tensor) -> Tensor:
        if self.shallow:
            return self._surface(points, slope=False)[0]
        encoded = ops.hash_encode(0.5 * points + 0.5, self.table, self.grid)
        return self._network(torch.cat([points, encoded * self.active], dim=1))

    def value(self, points: Tensor) -> Tensor:
        with torch.no_grad():
            if self.shallow:
                return self._surface(points, slope=False, outputs=1)[0][:, 0]
            return self(points)[:, 0]

    def sample(self, points: Tensor, train: bool) -> Sampled:
        if not self.shallow:
            return self.sample_by_chain(points, train)
        with torch.set_grad_enabled(train):
            out, gradient = self._surface(points, slope=True)
        return Sampled(out[:, 0], out[:, 1:], gradient)

    def sample_by_chain(self, points: Tensor, train: bool) -> Sampled:
        """`sample` for any depth, operation by operation: autograd differentiates the network, a kernel the grid."""
        # As in the base class, but for the table: autograd on `points` would also scatter a gradient into it, unasked.
        with torch.set_grad_enabled(train):
            place = 0.5 * points + 0.5
            inputs = torch.cat([points, ops.hash_encode(place, self.table, self.grid) * self.active], dim=1)
        with torch.enable_grad():
            inputs = inputs if inputs.requires_grad else inputs.requires_grad_()
            out = self._network(inputs)
            (slope,) = torch.autograd.grad(out[:, 0].sum(), inputs, create_graph=train)
        with torch.set_grad_enabled(train):
            by_features = ops.hash_gradient(place, self.table, slope[:, 3:] * self.active, self.grid)
            gradient = slope[:, :3] + 0.5 * by_features
        out = out if train else out.detach()
        return Sampled(out[:, 0], out[:, 1:], gradient)

    def march(self, rays: tuple[Tensor, Tensor, Tensor, Tensor], bits: Tensor, size: int, **how: Any) -> ops.Steps:
        if not self.shallow:
            return super().march(rays, bits, size, **how)
        with torch.no_grad():
            inner, outer, levels = self._layers(1)
        return ops.surface_march(rays, bits, size, self.table, inner, outer, self.grid, levels=levels, beta=BETA, **how)

    def _surface(self, points: Tensor, slope: bool, outputs: int | None = None) -> tuple[Tensor, Tensor]:
        """All of it in one kernel, which knows networks of one hidden layer."""
        inner, outer, levels = self._layers(outputs)
        return ops.surface(points, self.table, inner, outer, self.grid, levels=levels, beta=BETA, slope=slope)

    def _layers(self, outputs: int | None) -> tuple[Tensor, Tensor, int]:
        """Both layers as `ops.surface` takes them, with biases as columns, and how many levels are active."""
        first, levels = self.hidden[0], self.active_levels
        assert isinstance(first, nn.Linear)
        weight = first.weight[:, : 3 + levels * self.grid.features]
        inner = torch.cat([weight[:, :3], first.bias[:, None], weight[:, 3:]], dim=1)
        return inner, torch.cat([self.out.weight, self.out.bias[:, None]], dim=1)[:outputs], levels

    def _network(self, inputs: Tensor) -> Tensor:
        for layer in self.hidden:
            inputs = softplus(layer(inputs), BETA)
        return self.out(inputs)


class WaveField(DistanceField):
    """The paper's network: positional encoding of six octaves, wide softplus layers with weight normalisation, the
    encoded point again halfway. Initialised as in SAL (Atzmon and Lipman 2020), which makes it a sphere of this radius.
    """

    OCTAVES = 6

    def __init__(self, config: NeuSConfig, radius: float, inside_out: bool) -> None:
        super().__init__()
        inputs, width, depth = 3 + 6 * self.OCTAVES, config.width, config.depth
        self.skip = depth // 2 if depth >= 4 else -1
        layers = []
        for i in range(depth + 1):
            out = 1 + config.geometry if i == depth else width - inputs if i + 1 == self.skip else width
            layer = nn.Linear(inputs if i == 0 else width, out)
            with torch.no_grad():
                layer.bias.zero_()
                if i == depth:
                    layer.weight.normal_(math.sqrt(math.pi / width), 1e-4)
                else:
                    layer.weight.normal_(0.0, math.sqrt(2.0 / out))
                    # Waves would ripple the sphere: they are heard once training has given them a weight.
                    if i == 0:
                        layer.weight[:, 3:] = 0.0
                    if i == self.skip:
                        layer.weight[:, width - inputs + 3 :] = 0.0
            layers.append(layer)
        self.layers = nn.ModuleList(layers)
        with torch.no_grad():
            # In theory it is |x| now. In a network of finite width slope and offset are a little off: made good here.
            last, far = layers[depth], self(even_directions(200))[:, 0].mean()
            slope = 2.0 * (far - self(0.5 * even_directions(200))[:, 0].mean())
            last.weight.div_(-slope if inside_out else slope)
            last.bias[0] = -self(radius * even_directions(200))[:, 0].mean()
        self.layers = nn.ModuleList(weight_norm(layer) for layer in self.layers)

    def forward(self, points: Tensor) -> Tensor:
        angle = 2.0 ** torch.arange(self.OCTAVES, dtype=points.dtype, device=points.device)[:, None] * points[:, None]
        encoded = torch.cat([points, angle.sin().flatten(1), angle.cos().flatten(1)], dim=1)
        hidden = encoded
        for i, layer in enumerate(self.layers):
            if i == self.skip:
                hidden = torch.cat([hidden, encoded], dim=1) / math.sqrt(2.0)
            hidden = layer(hidden)
            if i + 1 < len(self.layers):
                hidden = softplus(hidden, BETA)
        return hidden


def even_directions(count: int) -> Tensor:
    """Unit vectors [count, 3] spread evenly over the sphere: a golden-angle spiral."""
    i = torch.arange(count, dtype=torch.float64) + 0.5
    z = 1.0 - 2.0 * i / count
    azimuth = math.pi * (1.0 + math.sqrt(5.0)) * i
    around = (1.0 - z * z).sqrt()
    return torch.stack([around * azimuth.cos(), around * azimuth.sin(), z], dim=1).float()


# -------------------------------------------------------------------------------------------- colours and background


def layers_of(widths: list[int]) -> nn.ParameterList:
    """Weights of a small network for `ops.mlp`, with the spread that keeps activations alive (Glorot uniform)."""
    bounds = [math.sqrt(6.0 / (i + o)) for i, o in zip(widths, widths[1:], strict=False)]
    sizes = zip(bounds, widths, widths[1:], strict=False)
    return nn.ParameterList(nn.Parameter(torch.empty(o, i).uniform_(-bound, bound)) for bound, i, o in sizes)


class Background(nn.Module):
    """All that lies beyond the cube: a small radiance field in contracted coordinates, as in `ngp`.

    Rays see it from where they leave the cube. The last interval takes what light is left, so that there is always
    something behind the object.
    """

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples
        self.grid = HashGrid(levels=6, features=4, log2_rows=15, base=16, finest=512)
        self.table = nn.Parameter(torch.empty(self.grid.rows, self.grid.features).uniform_(-1e-4, 1e-4))
        self.density = layers_of([self.grid.width, 32, 16])
        self.colour = layers_of([16 + 16, 32, 3])

    def forward(
        self, origin: Tensor, direction: Tensor, start: Tensor, end: Tensor, opaque: bool, rng: Generator | None
    ) -> tuple[ops.Composite, Samples]:
        """What rays see between two distances [R], and where. `opaque`: whatever light is left ends in the last
        interval."""
        rays, n, device = len(origin), self.samples, origin.device
        jitter = torch.rand(rays, n + 1, generator=rng) if rng is not None else torch.full((rays, n + 1), 0.5)
        s = devices.sent((torch.arange(n + 1) + jitter - 0.5).clamp(0, n) / n, device)
        # Even steps in 1 / (t + 1): about one's own size nearby, and out to the horizon in a finite number of them.
        t = 1.0 / torch.lerp(1.0 / (start[:, None] + 1.0), 1.0 / (end[:, None] + 1.0), s) - 1.0
        t0, t1 = t[:, :-1], torch.maximum(t[:, 1:], t[:, :-1] + 1e-6)
        ray, middle = torch.arange(rays, device=device).repeat_interleave(n), 0.5 * (t0 + t1)
        points = origin[ray] + middle.reshape(-1, 1) * direction[ray]
        encoded = ops.hash_encode(0.25 * contract_cube(points) + 0.5, self.table, self.grid)
        features = ops.mlp(encoded, list(self.density))
        harmonics = ops.spherical_harmonics(direction)[ray]
        rgb = torch.sigmoid(ops.mlp(torch.cat([features, harmonics], dim=1), list(self.colour)))
        # Softplus, not exp, and per unit of the steps' own measure: no sample can hide all those behind it at once.
        density = softplus(features[:, 0] + 1.0).reshape(rays, n) / (1.0 + middle)
        if opaque:
            density = torch.where(torch.arange(n, device=device) == n - 1, 1e3 / (t1 - t0), density)
        samples = Samples(t0.reshape(-1), t1.reshape(-1), ray, torch.arange(rays + 1, device=device) * n)
        return ops.composite(density.reshape(-1), rgb, samples.t0, samples.t1, samples.offset), samples


# ---------------------------------------------------------------------------------------------------- where samples lie


@dataclass(frozen=True)
class Intervals:
    """S pieces of R rays, ray after ray, front to back: those of ray r are offset[r] to offset[r + 1]."""

    ray: Tensor
    """[S] int64"""
    start: Tensor
    """[S] distance along the ray."""
    length: Tensor
    """[S]"""
    offset: Tensor
    """[R + 1] int64"""
    evaluated: int
    """Points at which f was asked for to find these."""

    @property
    def middle(self) -> Tensor:
        """[S] distance along the ray."""
        return self.start + 0.5 * self.length


REACH = 6.0
"""Beyond this over s from a surface, Phi_s differs from 0 or 1 by less than a four-hundredth."""
SLACK = 1.25
"""A learnt distance may grow faster than a true one: by so much is it trusted to bound its neighbourhood."""


@torch.no_grad()
def near_surface(field: DistanceField, size: int, inv_s: float) -> Tensor:
    """Bits (see `ops.march`) of those of size^3 cells of the cube in which rays may lose light: |f| < REACH / s.

    f at the middle of a block of 4 x 4 x 4 cells decides whether its cells are looked at one by one.
    """
    first = next(field.parameters(), None)
    device = devices.CPU if first is None else first.device
    cells = cell_centres(0, size).reshape(-1, 64, 3).to(device)
    half = math.sqrt(3.0) / size * SLACK
    blocks = field.value(cells.mean(dim=1)).abs() < REACH / inv_s + 4 * half
    near = torch.zeros(len(cells), 64, dtype=torch.bool, device=device)
    chosen = cells[blocks]
    values = [field.value(part.reshape(-1, 3)).abs() for part in chosen.split(1024)]
    near[blocks] = (torch.cat(values) < REACH / inv_s + half).reshape(-1, 64) if values else near[blocks]
    return pack_bits(near.reshape(-1))


MOST = 512
"""Most steps of a ray within cells that matter."""


@torch.no_grad()
def intervals(
    field: DistanceField,
    bits: Tensor,
    size: int,
    rays: tuple[Tensor, Tensor, Tensor, Tensor],
    inv_s: float,
    step: float,
    keep: float,
    seed: int,
) -> Intervals:
    """The pieces of rays (origin, direction [R, 3], near, far [R]) whose weight is above `keep` (`ops.surface_march`).

    Between neighbouring steps f is taken as linear; the same telescoping sum as in `optical_depth` then gives the
    weights. `seed` shifts the steps of each ray at random; 0 shifts none.
    """
    found = field.march(rays, bits, size, inv_s=inv_s, step=step, keep=keep, most=MOST, seed=seed)
    return Intervals(found.ray, found.start, torch.full_like(found.start, step), found.offset, found.evaluated)


# --------------------------------------------------------------------------------------------------------------- method


class Traced(NamedTuple):
    """What R rays see of the object, and what the losses need of the samples."""

    colour: Tensor
    """[R, 3], premultiplied by opacity."""
    opacity: Tensor
    """[R]"""
    depth: Tensor
    """[R], not divided by opacity."""
    weight: Tensor
    """[S]"""
    at: Intervals
    sampled: Sampled
    slopes: Tensor
    """[S + P, 3] gradients of the distance at the samples, and at points that were asked for beside them."""


class Behind(NamedTuple):
    """What R rays see beyond the cube."""

    colour: Tensor
    """[R, 3], premultiplied by opacity."""
    opacity: Tensor
    """[R]"""
    depth: Tensor
    """[R], not divided by opacity."""
    thin: Tensor
    """[T] int64, the rays that the object leaves any light to, which alone see something there."""
    weight: Tensor
    """[S], of those rays' samples."""
    samples: Samples


class NeuS(Method):
    """See the module's docstring."""

    Config = NeuSConfig
    PRESETS: ClassVar[dict[str, NeuSConfig]] = {
        "": NeuSConfig(),
        "fast": NeuSConfig(
            steps=5000, log2_rows=15, finest=512, level_every=150, anneal=600, step=0.006, variance_lr=3e-4,
        ),
        # The paper's networks. Its 300 000 steps of 512 rays are a day on a GPU; here they are for those who have one.
        "mlp": NeuSConfig(
            steps=300_000, encoding="waves", width=256, depth=8, geometry=256, colour_width=256, colour_depth=4,
            anneal=50_000, refresh=200, table_lr=5e-4, network_lr=5e-4, variance_lr=5e-4,
        ),
        "neuralangelo": NeuSConfig(
            steps=40_000, slope="taps", log2_rows=18, finest=2048, first_levels=4, level_every=1000, curvature=5e-4,
            geometry=31, batch=4096,
        ),
    }  # fmt: skip

    ON_HOST = ("rays", "trained")
    BATCH = ("batch", 256)

    bits: Tensor
    rays: Tensor
    trained: Tensor

    def __init__(self, config: NeuSConfig, info: SceneInfo) -> None:
        super().__init__(config, info)
        c = config
        radius, inside_out = self._start_sphere()
        field = HashField if c.encoding == "hash" else WaveField
        self.field: DistanceField = field(c, radius, inside_out)
        self.colour = layers_of([3 + 3 + 16 + c.geometry, *[c.colour_width] * c.colour_depth, 3])
        self.variance = nn.Parameter(torch.tensor(0.3))
        self.background = None if info.has_alpha else Background(c.beyond)
        self.register_buffer("bits", torch.full((c.grid**3 // 64,), -1))
        self.register_buffer("rays", torch.tensor(256))
        self.register_buffer("trained", torch.tensor(0))
        """Steps taken so far: on them depend the active levels and the annealing."""

    def _start_sphere(self) -> tuple[float, bool]:
        """Radius, and whether matter is outside it: around cameras that stand in the middle and look outwards."""
        cameras = [self.info.cameras[i] for i in self.info.train]
        distance = torch.stack([camera.center.float().norm() for camera in cameras]).median()
        outwards = torch.stack([camera.forward.float() @ camera.center.float() for camera in cameras]).mean() >= 0
        if not self.info.bounded and distance < 0.8 and outwards:
            return 0.95, True
        return self.config.radius, False

    # -- state that follows from the number of steps -------------------------------------------------------------------

    @property
    def inv_s(self) -> Tensor:
        """s of Phi_s. Clipped like the authors', more narrowly: beyond these, only rounding is learnt."""
        return torch.exp(10.0 * self.variance).clamp(1.0, 1e5)

    @property
    def active_levels(self) -> int:
        """Hash levels that are switched on."""
        c = self.config
        grown = int(self.trained) // c.level_every if c.level_every else c.levels
        return min(c.levels, c.first_levels + grown)

    @property
    def share(self) -> float:
        """How far the annealing of slopes is (see `slope_along`)."""
        return (
            1.0 if self.info.has_alpha or not self.config.anneal else min(int(self.trained) / self.config.anneal, 1.0)
        )

    def _follow(self, step: int) -> None:
        """Take the state of a step; refresh the grid where it is due."""
        self.trained.fill_(step)
        if isinstance(self.field, HashField):
            self.field.set_active(self.active_levels)
        if step % self.config.refresh == 0:
            self.bits.copy_(near_surface(self.field, self.config.grid, float(self.inv_s.detach())))

    # -- training ------------------------------------------------------------------------------------------------------

    def groups(self) -> list[Group]:
        """Tables move sparsely; networks and s more slowly. All warm up: the first gradients would break the sphere."""
        c = self.config
        schedule = warm_up(exponential_after(0.3, c.final_lr), 0.02)
        tables = [p for name, p in self.named_parameters() if name.endswith("table")]
        networks = [p for name, p in self.named_parameters() if not name.endswith("table") and name != "variance"]
        groups = [Group(f"table{i}", [p], c.table_lr, schedule=schedule, sparse=True) for i, p in enumerate(tables)]
        return [
            *groups,
            Group("networks", networks, c.network_lr, schedule=schedule),
            Group("variance", [self.variance], c.variance_lr, schedule=schedule),
        ]

    def loss(self, scene: Scene, step: int, rng: Generator) -> dict[str, Tensor]:
        """Absolute error of colours and eikonal (section 3.3); where they apply, cross entropy of opacity, curvature.

        Rays that miss everything, batches without a sample, pixels without a direction: each is a mean over nothing,
        which is 0 and not NaN.
        """
        self._follow(step)
        c = self.config
        pixels = scene.pixels(int(self.rays), rng).to(self.device)
        rays = pixels.rays
        valid = (rays.origin + rays.direction).isfinite().all(dim=1)
        origin, direction, near, far = (
            t[valid].contiguous() for t in (rays.origin, rays.direction, rays.near, rays.far)
        )
        rgb, alpha = pixels.rgb[valid], pixels.alpha[valid]
        seed = int(torch.randint(1, 2**62, (1,), generator=rng))
        apart = devices.sent(torch.rand(max(c.batch // 8, 64), 3, generator=rng) * 2 - 1, self.device)
        traced = self.trace(origin, direction, near, far, seed, train=True, apart=apart)
        if self.background is None:
            # Random colours behind both picture and truth: opacity cannot pass for colour, nor colour for opacity.
            behind = devices.sent(torch.rand(len(rgb), 3, generator=rng), self.device)
            truth = torch.lerp(behind, rgb, alpha[:, None])
        else:
            behind, truth = self._beyond(origin, direction, near, far, traced.opacity, True, rng).colour, rgb
        error = traced.colour + (1.0 - traced.opacity)[:, None] * behind - truth
        terms = {"colour": _mean(error.abs())}
        terms["eikonal"] = c.eikonal * _mean((_length(traced.slopes) - 1.0).square())
        if self.info.has_alpha and c.mask > 0:
            opacity = traced.opacity.clamp(1e-3, 1.0 - 1e-3)
            terms["mask"] = -c.mask * _mean(alpha * opacity.log() + (1.0 - alpha) * (1.0 - opacity).log())
        if c.curvature > 0 and traced.sampled.laplacian is not None and isinstance(self.field, HashField):
            fade = (self.field.cell(self.active_levels) / self.field.cell(c.first_levels)) ** 2
            terms["curvature"] = c.curvature * fade * _mean(traced.sampled.laplacian.abs())
        self.stats = {
            "rays": len(rgb),
            "samples": traced.at.evaluated,
            "kept": len(traced.at.ray),
            "mse": devices.number(_mean(error.detach().square())),
            "inv_s": devices.number(self.inv_s),
        }
        return terms

    def after_step(self, step: int, optim: Adam) -> None:
        """Fit the number of rays to the budget of samples. A batch that met nothing says nothing about it."""
        kept, rays = self.stats["kept"], self.stats["rays"]
        if kept > 0 and rays > 0:
            wanted = self.config.batch * rays / kept
            self.rays.fill_(round(min(max(0.9 * float(self.rays) + 0.1 * wanted, 64.0), 4096.0)))

    def sample(self, points: Tensor, train: bool) -> Sampled:
        """The distance field at points [N, 3] of the cube, by whichever gradient is configured."""
        if self.config.slope == "analytic":
            return self.field.sample(points, train)
        reach = self.field.cell(self.active_levels) if isinstance(self.field, HashField) else 1e-3
        return self.field.sample_by_taps(points, reach, train)

    def trace(
        self,
        origin: Tensor,
        direction: Tensor,
        near: Tensor,
        far: Tensor,
        seed: int,
        train: bool,
        apart: Tensor | None = None,
    ) -> Traced:
        """What rays see of the object: the rendering equation of section 3.1 over the intervals that matter.

        `apart`: points [P, 3] anywhere in the cube, whose slopes are wanted too; all are asked for in one go.
        """
        c, inv_s = self.config, self.inv_s
        steepness = float(inv_s.detach())
        step = min(max(1.0 / steepness, c.step), 0.03)
        rays = (origin, direction, near, far)
        at = intervals(self.field, self.bits, c.grid, rays, steepness, step, c.keep, seed)
        d = direction[at.ray]
        points = origin[at.ray] + at.middle[:, None] * d
        everywhere = self.sample(points if apart is None else torch.cat([points, apart]), train)
        sampled = everywhere.first(len(points))
        normal = sampled.gradient / _length(sampled.gradient)[:, None]
        harmonics = ops.spherical_harmonics(direction)[at.ray]
        inputs = torch.cat([points, normal, harmonics, sampled.features], dim=1)
        rgb = torch.sigmoid(ops.mlp(inputs, list(self.colour)))
        tau = optical_depth(sampled.distance, slope_along(d, sampled.gradient, self.share), at.length, inv_s)
        seen = ops.composite(tau / at.length, rgb, at.start, at.start + at.length, at.offset)
        return Traced(seen.colour, seen.opacity, seen.depth, seen.weight, at, sampled, everywhere.gradient)

    def _beyond(
        self,
        origin: Tensor,
        direction: Tensor,
        near: Tensor,
        far: Tensor,
        opacity: Tensor,
        opaque: bool,
        rng: Generator | None,
    ) -> Behind:
        """What is seen behind the object where it lets any light through; 0 elsewhere."""
        assert self.background is not None
        start = torch.maximum(leaving_cube(origin, direction), near)
        thin = ((opacity < 1.0 - 1e-3) & (start < far)).nonzero()[:, 0]
        seen, samples = self.background(origin[thin], direction[thin], start[thin], far[thin], opaque, rng)
        blank = origin.new_zeros(len(origin))
        colour = torch.zeros_like(origin).index_put((thin,), seen.colour)
        opacity, depth = blank.index_put((thin,), seen.opacity), blank.index_put((thin,), seen.depth)
        return Behind(colour, opacity, depth, thin, seen.weight, samples)

    # -- looking -------------------------------------------------------------------------------------------------------

    @picture
    @ops.own_threads()
    def render(self, camera: Camera, background: Tensor | None = None, crop: Box | None = None) -> Image:
        """Picture of any camera in chunks of rays, with normals. `background` is seen where nothing is learnt."""
        size = camera.height * camera.width
        plain = torch.zeros(3) if self.info.background is None else torch.tensor(self.info.background)
        plain = (plain if background is None else background.float()).to(self.device)
        rgb, normal = plain.expand(size, 3).clone(), plain.new_zeros(size, 3)
        alpha, depth, median = (plain.new_zeros(size) for _ in range(3))
        lowest = self.info.near_for(camera)
        for part, origin, direction in ray_chunks(camera, self.chunk(4096), self.device):
            index = (origin + direction).isfinite().all(dim=1).nonzero()[:, 0] + part.start
            origin, direction = origin[index - part.start].contiguous(), direction[index - part.start].contiguous()
            near, far = origin.new_full((len(index),), lowest), origin.new_full((len(index),), self.info.far)
            if crop is not None:
                enter, leave = crop.span(origin, direction)
                near, far = torch.maximum(near, enter), torch.minimum(far, leave)
            seen = self.trace(origin, direction, near, far, seed=0, train=False)
            through, opacity, distance = 1.0 - seen.opacity, seen.opacity, seen.depth
            colour, ends, behind = seen.colour, seen.at.start + seen.at.length, None
            if self.background is not None:
                behind = self._beyond(origin, direction, near, far, opacity, crop is None, None)
                colour = colour + through[:, None] * behind.colour
                opacity, distance = opacity + through * behind.opacity, distance + through * behind.depth
            halfway = ops.distance_at(0.5 * opacity, seen.weight, seen.at.start, ends, seen.at.offset)
            if behind is not None:
                # Where the object is thinner than that, what lacks is found behind it.
                thin, samples = behind.thin, behind.samples
                lacking = (0.5 * opacity - seen.opacity)[thin] / through[thin]
                farther = ops.distance_at(lacking.clamp(min=0.0), behind.weight, samples.t0, samples.t1, samples.offset)
                halfway[thin] = torch.where(lacking > 0, farther, halfway[thin])
            rgb[index] = colour + (1.0 - opacity)[:, None] * plain
            alpha[index] = opacity
            depth[index] = torch.where(opacity > 1e-3, distance / opacity.clamp(min=1e-3), 0.0)
            median[index] = torch.where(opacity > 1e-3, halfway, 0.0)
            summed = torch.zeros_like(origin)
            summed.index_add_(0, seen.at.ray, seen.weight[:, None] * seen.sampled.gradient)
            normal[index] = torch.where(seen.opacity[:, None] > 1e-3, summed / _length(summed)[:, None], 0.0)
        shape = (camera.height, camera.width)
        rgb, normal = rgb.clamp(0.0, 1.0).view(*shape, 3), normal.view(*shape, 3)
        return Image(rgb, alpha.clamp(0.0, 1.0).view(shape), depth.view(shape), normal, median.view(shape))

    @asked
    @ops.own_threads()
    def sdf_at(self, points: Tensor) -> Tensor:
        """Signed distance [N] in scene units at points [N, 3] of the scene, positive outside.

        Outside the cube [-1, 1]^3, where no field is learnt, it grows with the distance from the cube.
        """
        found = [self._sdf(part.float()) for part in points.split(1 << 16)]
        return torch.cat(found) if found else torch.zeros(0)

    def _sdf(self, points: Tensor) -> Tensor:
        inside = points.clamp(-1.0, 1.0)
        return self.field.value(inside) + (points - inside).norm(dim=1)


def leaving_cube(origin: Tensor, direction: Tensor) -> Tensor:
    """Distance [R] at which rays leave the cube [-1, 1]^3; 0 where they miss it or have left it."""
    slope = torch.where(direction.abs() < 1e-9, 1e-9, direction)
    low, high = (-1.0 - origin) / slope, (1.0 - origin) / slope
    enter, leave = torch.minimum(low, high).amax(dim=1), torch.maximum(low, high).amin(dim=1)
    return torch.where(leave > enter, leave, 0.0).clamp(min=0.0)


def _length(vectors: Tensor) -> Tensor:
    """[N, 3] -> [N]. The derivative of a norm at exactly 0 would be NaN; a hair above, it is 0."""
    return (vectors.square().sum(dim=1) + 1e-12).sqrt()


def _mean(values: Tensor) -> Tensor:
    """Mean that is 0, and still has a gradient path, for an empty batch."""
    return values.sum() / max(values.numel(), 1)
