"""Instant-NGP (Mueller et al. 2022): a hash grid, two small networks and an occupancy grid. The default method.

    x = o + t d  ->  hash grid  ->  density network  ->  sigma, geometry features
                                    [geometry, harmonics(d)]  ->  colour network  ->  c
    picture = sum of w_i c_i along the ray, over samples in occupied cells (`ops.radiance`)

What differs from the paper, because a CPU is the target: few rays and many steps (a batch of some 25 thousand
samples; on a GPU it is 2^18); eight levels of four features, which halve the table look-ups;
the "line" layout of the table; and, for unbounded captures, contracted coordinates (mip-NeRF 360) under an occupancy
pyramid in straight ones, so that the background needs no larger table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from .. import devices, ops
from ..cameras import Camera
from ..errors import ConfigError
from ..fields import OccupancyGrid
from ..ops import HashGrid, Radiance, Tracing
from ..ops.backend import TRITON_DEVICES
from ..ops.march import Varying, cell_of, varying
from ..optim import Adam, Group, constant, exponential_after
from ..rays import Box
from .base import Drawn, Image, Method, asked, check_ranges, earlier, picture, ray_chunks, seed_of

if TYPE_CHECKING:
    from ..scene import Scene, SceneInfo


ROOM, LEAST_ROOM = 2, 1 << 13
"""Times the batch, and samples at least, that a GPU has memory for: a batch is as large as asked for on average only,
and 64 rays, the fewest, have at most so many."""
NOTCHES = 4
"""Numbers of rays, between one and its double, that a GPU is given."""


@dataclass(frozen=True)
class NGPConfig:
    """Options of `ngp`."""

    steps: int = 20_000
    """Steps of a full training."""
    levels: int = 8
    """Levels of the hash grid."""
    features: int = 4
    """Features per level: 1, 2, 4 or 8."""
    log2_rows: int = 16
    """Rows of a level's table, as a power of two."""
    base: int = 16
    """Vertices per axis of the coarsest level."""
    finest: int = 4096
    """Vertices per axis of the finest level of an unbounded scene, which spends half of it on the cube [-1, 1]^3."""
    finest_bounded: int = 1024
    """The same for a bounded scene, all of which lies in that cube."""
    width: int = 64
    """Width of the hidden layers."""
    geometry: int = 16
    """Outputs of the density network, density among them; a multiple of 8."""
    batch: int = 24_576
    """Samples per step to aim at: the number of rays adapts to it, as rays that meet little matter cost little."""
    ramp: int = 1500
    """Steps over which the batch grows from a quarter to the whole: many small steps first, then fewer exact ones."""
    samples: int = 24
    """Most samples per ray to aim at: while the occupancy grid is still full, steps are longer to meet it."""
    step: float = 0.005
    """Shortest step along a ray in an unbounded scene, scene units."""
    step_bounded: float = 0.008
    """Every step along a ray in a bounded scene."""
    cone: float = 1 / 256
    """A step in an unbounded scene is at least this times the distance."""
    grid: int = 64
    """Occupancy cells per axis of a cascade of an unbounded scene; a multiple of 16."""
    grid_bounded: int = 128
    """The same for a bounded scene, which has one."""
    cascades: int = 5
    """Cascades of the occupancy pyramid of an unbounded scene: it reaches 2^(cascades - 1) scene units."""
    probes: int = 4096
    """Random points at which the occupancy grid looks for new matter, every 16 steps."""
    thickness: float = 0.03
    """Optical thickness of a cell from which it counts as occupied."""
    shift: float = 1.0
    """Density is exp(raw + shift): where training starts between fog and emptiness."""
    table_lr: float = 2.5e-2
    """Learning rate of the hash table."""
    network_lr: float = 1e-2
    """Learning rate of the networks."""
    plateau: float = 0.3
    """Share of the training after which learning rates start to fall."""
    final_lr: float = 0.03
    """Learning rates end at this share of their start."""
    huber: float = 0.0
    """Colour error beyond which the loss is linear; 0 for squared error throughout."""
    distortion: float = 0.03
    """Weight of the distortion loss (mip-NeRF 360), which gathers a ray's weights."""
    keep: float = 1e-3
    """Samples of smaller weight get neither colour nor gradient."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            ("steps", 1, 10**9), ("levels", 1, 32), ("log2_rows", 4, 24), ("base", 2, 512), ("finest", 16, 2**18),
            ("finest_bounded", 16, 2**18), ("width", 8, 256), ("geometry", 8, 64), ("batch", 64, 2**22),
            ("ramp", 0, 10**9), ("samples", 1, 128), ("step", 1e-4, 1.0), ("step_bounded", 1e-4, 1.0),
            ("cone", 0.0, 1.0),
            ("grid", 16, 256), ("grid_bounded", 16, 256),
            ("cascades", 1, 10), ("probes", 0, 2**22), ("thickness", 1e-4, 10.0),
            ("shift", -10.0, 10.0), ("table_lr", 0.0, 10.0), ("network_lr", 0.0, 10.0), ("plateau", 0.0, 0.999),
            ("final_lr", 1e-6, 1.0), ("huber", 0.0, 10.0), ("distortion", 0.0, 10.0), ("keep", 0.0, 0.5),
        )  # fmt: skip
        if self.features not in (1, 2, 4, 8):
            raise ConfigError(f"features: expected 1, 2, 4 or 8, got {self.features}.")
        for name, unit in (("geometry", 8), ("grid", 16), ("grid_bounded", 16)):
            if getattr(self, name) % unit:
                raise ConfigError(f"{name}: expected a multiple of {unit}, got {getattr(self, name)}.")
        if self.base > min(self.finest, self.finest_bounded):
            raise ConfigError(f"base: expected at most the finest level's vertices, got {self.base}.")


class NGP(Method):
    """See the module's docstring."""

    Config = NGPConfig
    PRESETS: ClassVar[dict[str, NGPConfig]] = {
        "": NGPConfig(),
        "fast": NGPConfig(steps=7_500, log2_rows=15),
        # Finer and slower: behind `ngp` for the first minute on two cores, ahead of it from then on. A table of eight
        # times the rows wants larger batches, or Adam's pass over what a step has touched costs a quarter of the step.
        "big": NGPConfig(
            steps=20_000,
            log2_rows=19,
            finest_bounded=2048,
            batch=98_304,
            step_bounded=0.005,
            table_lr=3e-2,
        ),
    }
    ON_GPU: ClassVar[dict[str, int]] = {"batch": 1 << 18}
    ON_HOST = ("widen", "rays", "_per_ray")
    BATCH = ("batch", 1024)
    HALF = True
    BLOCK = 16
    """Batches drawn from the scene at a time, and steps between two updates of the occupancy grid."""

    widen: Tensor
    rays: Tensor
    touched: Tensor
    _per_ray: Tensor

    def __init__(self, config: NGPConfig, info: SceneInfo) -> None:
        super().__init__(config, info)
        c = config
        self.grid = HashGrid(c.levels, c.features, c.log2_rows, c.base, c.finest_bounded if info.bounded else c.finest)
        self.table = nn.Parameter(torch.empty(self.grid.rows, c.features).uniform_(-1e-4, 1e-4))
        widths = [self.grid.width, c.width, c.geometry]
        self.density = nn.ParameterList(_layer(o, i) for i, o in zip(widths, widths[1:], strict=False))
        widths = [c.geometry + 16, c.width, c.width, 3]
        self.colour = nn.ParameterList(_layer(o, i) for i, o in zip(widths, widths[1:], strict=False))
        cells = c.grid_bounded if info.bounded else c.grid
        self.occupancy = OccupancyGrid(info, cells, c.cascades, c.thickness)
        self.register_buffer("widen", torch.ones(()))
        self.register_buffer("rays", torch.tensor(self._whole_groups(self._batch(0) / c.samples)))
        self.register_buffer("_per_ray", torch.tensor(float(c.samples)))
        self.step, self.cone = (c.step_bounded, 0.0) if info.bounded else (c.step, c.cone)
        # The table's gradient is accumulated in place and cleared line by line, never swept (see `ops.train_rays`).
        self.table.grad = torch.zeros_like(self.table)
        self.register_buffer(
            "touched", torch.zeros((self.table.numel() + 15) // 16, dtype=torch.uint8), persistent=False
        )
        self._field: Radiance | None = None
        self._block: tuple[int, Any] | None = None

    def groups(self) -> list[Group]:
        """The table moves sparsely and faster than the networks; both decay alike. It has no momentum: a row that few
        steps touch would be moved by what long past ones have found, and to keep it is a quarter of Adam's work."""
        c = self.config
        schedule = exponential_after(c.plateau, c.final_lr) if c.final_lr < 1 else constant
        networks = [*self.density, *self.colour]
        return [
            Group("table", [self.table], c.table_lr, (0.0, 0.99), schedule=schedule, sparse=True, touched=self.touched),
            Group("networks", networks, c.network_lr, schedule=schedule, weight_decay=1e-6),
        ]

    def field(self) -> Radiance:
        """The parameters, as the ops read them."""
        if self._field is None or self._field.table is not self.table:
            networks = tuple(self.density), tuple(self.colour)
            self._field = Radiance(self.grid, self.table, *networks, not self.info.bounded, self.config.shift)
        return self._field

    def training_tracing(self, step: int) -> Tracing:
        """How rays walk in training. Every fourth step's samples feed the occupancy grid's peaks. A ray ends where so
        little light is left that no sample behind could be kept."""
        return self._training_tracing(step % 4 == 0, float(self.widen))

    def _training_tracing(self, listens: bool, widen: float) -> Tracing:
        o, c = self.occupancy, self.config
        return Tracing(
            o.bits, o.cascades, o.size, self.step * widen, self.cone * widen, 128, o.peak if listens else None,
            stop=max(1e-4, c.keep), keep=c.keep, room=max(ROOM * c.batch, LEAST_ROOM),
        )  # fmt: skip

    def rendering_tracing(self) -> Tracing:
        """How rays walk in a picture: with steps three quarters as long as in training where those are long, and more
        of them. Light and weights of a thousandth are below half a level of eight bits, so they may be left out."""
        o, widen = self.occupancy, max(0.75 * float(self.widen), 1.0)
        return Tracing(o.bits, o.cascades, o.size, self.step * widen, self.cone * widen, 1024, stop=1e-3, keep=1e-3)

    def loss(self, scene: Scene, step: int, rng: Generator) -> dict[str, Tensor]:
        """Squared error of the colours of `rays` pixels, over random backgrounds.

        A random background behind both picture and truth makes transparency costly wherever the truth is opaque, and
        opacity costly wherever it is not: no other loss on opacity is needed.
        """
        if self.device.type in TRITON_DEVICES:
            return self.loss_of(self.drawn(scene, step, rng))
        batch = self.batch(scene, step, rng)
        background = devices.sent(torch.rand(len(batch[0]), 3, generator=rng), self.device)
        return self._loss((*batch, background), self.training_tracing(step), seed_of(rng), None)

    def drawn(self, scene: Scene, step: int, rng: Generator) -> Drawn:
        """A batch and its backgrounds in one piece of memory, step lengths and the seed, all on the device."""
        row = self.row(scene, step, rng)
        tracing = self.training_tracing(step)
        lengths, start = (devices.sent(t, self.device) for t in varying(tracing.step, tracing.cone, seed_of(rng)))
        return Drawn((len(row), tracing.peak is not None), (row, lengths, start))

    def loss_of(self, drawn: Drawn) -> dict[str, Tensor]:
        """The loss of such inputs."""
        row, lengths, start = drawn.tensors
        _, listens = drawn.kind
        return self._loss(_pieces(row), self._training_tracing(listens, 1.0), 1, Varying(lengths, start))

    def _loss(
        self, batch: tuple[Tensor, ...], tracing: Tracing, seed: int, varying: Varying | None
    ) -> dict[str, Tensor]:
        c = self.config
        if self.table.grad is None:  # somebody's zero_grad has thrown it away
            self.table.grad = torch.zeros_like(self.table)
        origin, direction, near, far, rgb, alpha, background = batch
        target = torch.lerp(background, rgb, alpha[:, None]) if self.info.has_alpha else rgb
        with self.computing():
            result = ops.train_rays(
                self.field(),
                tracing,
                origin,
                direction,
                near,
                far,
                background,
                target,
                seed=seed,
                huber=c.huber,
                distortion=c.distortion,
                table_gradient=self.table.grad,
                touched=self.touched,
                varying=varying,
            )
        self.stats = {
            "rays": len(rgb),
            "samples": result.picture.evaluated,
            "kept": result.picture.kept,
            "mse": result.squared_error,
        }
        return {"colour": result.loss}

    def batch(self, scene: Scene, step: int, rng: Generator) -> tuple[Tensor, ...]:
        """This step's origins, directions, near, far, colours and opacities, cut from a block of BLOCK steps that is
        drawn at once: drawing costs hardly more for all of them."""

        def cut(drawn: tuple[Tensor, ...], seed: int) -> list[tuple[Tensor, ...]]:
            there = [devices.sent(t.contiguous(), self.device) for t in drawn]
            return list(zip(*(t.chunk(self.BLOCK) for t in there), strict=True))

        return tuple(self._of_block(scene, step, rng, cut))

    def row(self, scene: Scene, step: int, rng: Generator) -> Tensor:
        """The same for a GPU, with backgrounds and in one piece (see `_pieces`): one copy moves it."""

        def cut(drawn: tuple[Tensor, ...], seed: int) -> Tensor:
            there = [devices.sent(t, self.device) for t in drawn]
            # On the device itself: the host needs longer for a block's than a GPU for its steps.
            chance = torch.Generator(self.device).manual_seed(seed)
            background = torch.rand(len(drawn[0]), 3, generator=chance, device=self.device)
            return torch.cat([t.reshape(self.BLOCK, -1) for t in (*there, background)], dim=1)

        row: Tensor = self._of_block(scene, step, rng, cut)
        return row

    def _of_block(self, scene: Scene, step: int, rng: Generator, cut: Callable[[tuple[Tensor, ...], int], Any]) -> Any:
        """A step's part of its block, which `cut` makes of what is drawn, and of a seed for more.

        The block comes from a generator of its first step, so that a resumed run draws the same; from another than the
        step's own, or its backgrounds would follow its pixels.
        """
        if step == 0 and self.info.has_alpha:
            self.occupancy.carve(scene)
        block, place = divmod(step, self.BLOCK)
        if self._block is None or self._block[0] != block:
            pixels = scene.pixels(int(self.rays) * self.BLOCK, earlier(rng, place + 2**31))
            rays = pixels.rays
            drawn = (rays.origin, rays.direction, rays.near, rays.far, pixels.rgb, pixels.alpha)
            self._block = block, cut(drawn, earlier(rng, place + 2**30).initial_seed())
        return self._block[1][place]

    def after_step(self, step: int, optim: Adam) -> None:
        """Fit step lengths to the sample budget; every BLOCK steps, fit the number of rays and refresh the grid.

        Steps longer than a cell would jump over thin matter, so they are only for the time when the grid is full and
        the field a fog: `widen` falls back to 1 as soon as the budget allows. On a GPU the counts are those of some
        steps ago. A change is made there once in a block, so that counts from before the last one never ask for it
        again.
        """
        c, last, at_once = self.config, step % self.BLOCK == self.BLOCK - 1, self.device.type == "cpu"
        if last or at_once:
            least, most, share = (0.9, 1.1, 0.1) if at_once else (0.5, 2.0, 0.5)
            per_ray = float(self.stats["samples"]) / self.stats["rays"]
            change = min(max(per_ray / c.samples, least), most)
            self.widen.fill_(min(max(float(self.widen) * change, 1.0), 8.0))
            self._per_ray += share * (per_ray - self._per_ray)
        if last:
            self.rays.fill_(self._whole_groups(self._batch(step) / max(float(self._per_ray), 1.0)))
            rng = torch.Generator().manual_seed(step)
            with self.computing():
                self.occupancy.update(lambda points: ops.density_at(self.field(), points), c.probes, rng)

    def peaks(self, step: int | None = None) -> list[Tensor]:
        """What training's samples have found in the cells of the occupancy grid."""
        return [self.occupancy.peak] if step is None or step % self.BLOCK == self.BLOCK - 1 else []

    def _batch(self, step: int) -> float:
        """Samples to aim at, at a step."""
        grown = 0.25 + 0.75 * step / self.config.ramp if self.config.ramp else 1.0
        return self.config.batch * min(grown, 1.0)

    def _whole_groups(self, rays: float) -> int:
        """A number of rays that the kernels' tasks divide evenly, within reason; on a GPU one of few, as each has a
        recording of its own (`recording`)."""
        groups = min(max(round(rays / 64), 1), max(128, self.config.batch // 256))
        if self.device.type in TRITON_DEVICES:
            groups = round(2.0 ** (round(NOTCHES * math.log2(groups)) / NOTCHES))
        return groups * 64

    def halve_batch(self) -> str | None:
        """As usual, and at once: the number of rays would follow only later."""
        half = super().halve_batch()
        if half is not None:
            self.rays.fill_(self._whole_groups(int(self.rays) / 2))
        return half

    @picture
    @ops.own_threads()
    def render(self, camera: Camera, background: Tensor | None = None, crop: Box | None = None) -> Image:
        """Picture of any camera, in chunks of rows."""
        height, width, device = camera.height, camera.width, self.device
        colour = torch.zeros(3) if background is None else background.float()
        if background is None and self.info.background is not None:
            colour = torch.tensor(self.info.background)
        colour, size = colour.to(device), height * width
        rgb = torch.empty(size, 3, device=device)
        alpha, depth, median = (torch.empty(size, device=device) for _ in range(3))
        field, tracing = self.field(), self.rendering_tracing()
        near = self.info.near_for(camera)
        at_once = 1 << (18 if device.type in TRITON_DEVICES else 16)
        for part, origin, direction in ray_chunks(camera, self.chunk(at_once), device):
            n = len(origin)
            begin, end = torch.full((n,), near, device=device), torch.full((n,), self.info.far, device=device)
            if crop is not None:
                enter, leave = crop.span(origin, direction)
                begin, end = torch.maximum(begin, enter), torch.minimum(end, leave)
            with self.computing():
                seen = ops.render_rays(field, tracing, origin, direction, begin, end, colour.expand(n, 3).contiguous())
            rgb[part], alpha[part] = seen.rgb.clamp(0, 1), seen.opacity
            depth[part] = torch.where(seen.opacity > 1e-3, seen.depth / seen.opacity.clamp(min=1e-3), 0)
            assert seen.median is not None
            median[part] = torch.where(seen.opacity > 1e-3, seen.median, 0)
        shape = (height, width)
        return Image(rgb.view(*shape, 3), alpha.view(shape), depth.view(shape), median_depth=median.view(shape))

    @property
    def cell(self) -> float:
        """Width of the finest occupancy cells (see `base.HasOccupancy`)."""
        return 2.0 / self.occupancy.size

    @asked
    def occupied_at(self, points: Tensor) -> Tensor:
        """[N] bool: points [N, 3] that lie in occupied cells."""
        grid = self.occupancy
        cell = cell_of(points, grid.cascades, grid.size)
        reached = points.abs().amax(dim=1) <= 2.0 ** (grid.cascades - 1)
        word = grid.bits[cell >> 6]
        return ((word >> (cell & 63)) & 1).bool() & reached

    @asked
    def density_at(self, points: Tensor) -> Tensor:
        """Density [N] at points [N, 3], 0 outside occupied cells: the network was never asked there, and what it says
        means nothing."""
        density = points.new_zeros(len(points))
        inside = self.occupied_at(points).nonzero()[:, 0]
        with self.computing():
            density[inside] = ops.density_at(self.field(), points[inside])
        return density

    def forget_drawn(self) -> None:
        """The block of drawn pixels."""
        self._block = None

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """As usual; what was drawn belongs to the old state."""
        self.forget_drawn()
        return super().load_state_dict(state_dict, strict, assign)


def _pieces(row: Tensor) -> tuple[Tensor, ...]:
    """Origins, directions, near, far, colours, opacities and backgrounds of R rays, that lie one after the other."""
    widths = (3, 3, 1, 1, 3, 1, 3)
    rays = len(row) // sum(widths)
    parts = row.split([width * rays for width in widths])
    return tuple(part if width == 1 else part.view(rays, width) for part, width in zip(parts, widths, strict=True))


def _layer(outputs: int, inputs: int) -> nn.Parameter:
    """Weights with the spread that keeps activations alive through ReLUs (Glorot uniform, as tiny-cuda-nn)."""
    bound = (6.0 / (inputs + outputs)) ** 0.5
    return nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound))
