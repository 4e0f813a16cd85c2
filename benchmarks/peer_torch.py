"""Against what a Python user has today on a processor: the hash grid in plain PyTorch, as most repositories write it.

Both sides encode the same points with tables of the same shape, run the same networks (density, then colour from the
geometry features and the harmonics of the direction), and take the gradient of everything. Of the common ways to
look up the table the fastest counts. Ours is measured twice: as separate ops, and as the fused step that training runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightfold import machine, ops
from lightfold.ops import HashGrid, Radiance, Tracing
from lightfold.ops.backend import bfloat16_pays
from lightfold.ops.hash_encode import PRIMES

from .measure import Timing, best
from .record import parser, recorded

COMMON = HashGrid(16, 2, 19, 16, 2048, "xor")
"""The shape of the paper, and of most repositories."""
OURS = HashGrid(8, 4, 16, 16, 4096, "xor")
"""The shape of the preset `ngp`; either shape is laid out in lines on our side, as in training."""
GRIDS = {"common": COMMON, "ours": OURS}
CPU = torch.device("cpu")
SAMPLES_PER_RAY = 32
WIDTH = 64


def look_up_by_index(table: Tensor, rows: Tensor) -> Tensor:
    """table[rows]"""
    return table[rows]


def look_up_by_embedding(table: Tensor, rows: Tensor) -> Tensor:
    """As HashNeRF-pytorch: nn.Embedding."""
    return F.embedding(rows, table)


def look_up_by_select(table: Tensor, rows: Tensor) -> Tensor:
    """index_select over the flattened rows."""
    return table.index_select(0, rows.reshape(-1)).view(*rows.shape, -1)


SHORTER = "torch, index_select, bfloat16"
"""A way that few take, and only where the processor multiplies bfloat16 faster."""
LOOK_UPS = {"index": look_up_by_index, "embedding": look_up_by_embedding, "index_select": look_up_by_select}


class TorchField(nn.Module):
    """A hash grid with two networks, in plain PyTorch: points [N, 3] in [0, 1], harmonics [N, 16] -> sigma, rgb."""

    def __init__(self, grid: HashGrid, look_up: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.grid, self.look_up = grid, look_up
        self.table = nn.Parameter(torch.rand(grid.rows, grid.features) * 2e-4 - 1e-4)
        self.corners: Tensor
        self.register_buffer("corners", torch.tensor([[k & 1, k >> 1 & 1, k >> 2] for k in range(8)]))

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=False)

        self.density = nn.Sequential(linear(grid.width, WIDTH), nn.ReLU(), linear(WIDTH, 16))
        self.colour = nn.Sequential(
            linear(32, WIDTH), nn.ReLU(), linear(WIDTH, WIDTH), nn.ReLU(), linear(WIDTH, 3), nn.Sigmoid()
        )

    def encode(self, x: Tensor) -> Tensor:
        """[N, 3] -> [N, L F], level after level: eight corners gathered and blended."""
        return torch.cat([self.level(x, level) for level in range(self.grid.levels)], dim=1)

    def level(self, x: Tensor, level: int) -> Tensor:
        """Features of one level [N, F]."""
        position = x * self.grid.scale[level] + 0.5
        cell = position.floor()
        fraction = position - cell
        vertex = cell.long()[:, None] + self.corners
        if self.grid.dense[level]:
            side = self.grid.resolution[level]
            rows = vertex[..., 0] + side * (vertex[..., 1] + side * vertex[..., 2])
        else:
            rows = vertex[..., 0] ^ vertex[..., 1] * PRIMES[1] ^ vertex[..., 2] * PRIMES[2]
        rows = rows % self.grid.modulus[level] + self.grid.first_row[level]
        weight = torch.where(self.corners.bool(), fraction[:, None], 1 - fraction[:, None]).prod(dim=-1)
        return (weight[..., None] * self.look_up(self.table, rows)).sum(dim=1)

    def forward(self, x: Tensor, harmonics: Tensor) -> tuple[Tensor, Tensor]:
        """Density [N] and colour [N, 3]."""
        geometry = self.density(self.encode(x))
        return torch.exp(geometry[:, 0]), self.colour(torch.cat([geometry, harmonics], dim=1))


def main() -> None:
    """Measure both sides on the same points in the same process, taking turns."""
    options = parser(__doc__).parse_args()
    count = 65_536 if options.quick else 131_072
    rounds = 2 if options.quick else 5
    effort = {"repeats": 1, "seconds": 0.2 if options.quick else 1.0}
    with recorded("peer_torch", options) as record:
        torch.set_num_threads(machine.default_threads())
        record.protocol |= {
            "points": count,
            "points_are": f"{SAMPLES_PER_RAY} consecutive samples of random rays; and uniformly random",
            "networks": f"grid-{WIDTH}-16 and 32-{WIDTH}-{WIDTH}-3, no biases, width {WIDTH} on both sides",
            "timed": "forward and backward, gradients of table and networks; no optimiser step",
            "rounds": f"{rounds}, each contender in each, the best kept",
            "threads": torch.get_num_threads(),
            "precision": "networks of the fused step, and of a way in PyTorch, in bfloat16 where the processor has it",
            "fused": "every sample evaluated and kept (nothing skipped), gradient of the table cleared inside the time",
        }
        record.results |= compare(count, rounds, effort, compiled=not options.quick)


def compare(
    count: int, rounds: int, effort: dict[str, Any], compiled: bool, grids: Mapping[str, HashGrid] = GRIDS
) -> dict[str, Any]:
    """Rates of both sides and their ratios.

    Everybody has a turn in every round and keeps the best: what else the machine does changes over minutes, and would
    otherwise fall on one side.
    """
    rays = Rays(count // SAMPLES_PER_RAY)
    points = {"rays": rays.points(), "random": torch.rand(rays.count * SAMPLES_PER_RAY, 3)}
    harmonics = ops.spherical_harmonics(rays.direction).repeat_interleave(SAMPLES_PER_RAY, dim=0)
    results: dict[str, Any] = {}
    for name, grid in grids.items():
        results[f"torch, {name} grid"] = {"grid": described(grid), "rays": {}, "random": {}}
        results[f"lightfold, {name} grid"] = {"grid": described(grid), "rates": {}}
    for _ in range(rounds):
        for name, grid in grids.items():
            theirs, ours = results[f"torch, {name} grid"], results[f"lightfold, {name} grid"]["rates"]
            field = Field(replace(grid, layout="line"))
            for kind, x in points.items():
                keep_best(ours, f"separate ops, {kind}", separate_rate(field, x, harmonics, effort))
                for way, look_up in LOOK_UPS.items():
                    peer = TorchField(grid, look_up)
                    keep_best(theirs[kind], f"torch, {way}", torch_rate(peer, x, harmonics, effort))
                if bfloat16_pays(CPU):
                    # What ours does with its networks, PyTorch can do too.
                    peer = TorchField(grid, look_up_by_select)
                    with torch.autocast("cpu", torch.bfloat16):
                        rate = torch_rate(peer, x, harmonics, effort)
                    keep_best(theirs[kind], SHORTER, rate)
                tell(f"torch, {name} grid, {kind}", theirs[kind])
            keep_best(ours, "fused, rays, float32", fused_rate(field, rays, effort))
            # As training does it here.
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_pays(CPU)):
                keep_best(ours, "fused, rays", fused_rate(field, rays, effort))
            tell(f"lightfold, {name} grid", ours)
    if compiled:
        # It is no common way, and takes a minute to compile: one row is enough to know it.
        peer = TorchField(grids["common"], look_up_by_index)
        results["torch, common grid"]["compiled"] = compiled_rate(peer, points["rays"], harmonics, effort)
    results["ratios"] = ratios(results)
    return results


def keep_best(rates: dict[str, dict[str, float]], name: str, found: dict[str, float]) -> None:
    """Raise a contender's rates, by each clock, to what was found now."""
    before = rates.get(name, found)
    rates[name] = {clock: max(before[clock], rate) for clock, rate in found.items()}


def described(grid: HashGrid) -> str:
    """A grid's shape in a few letters."""
    return f"L{grid.levels} F{grid.features} 2^{grid.log2_rows}"


def tell(what: str, rates: dict[str, dict[str, float]]) -> None:
    """A line of progress."""
    shown = ", ".join(f"{name} {rate['samples_per_second'] / 1e6:.3f}" for name, rate in rates.items())
    print(f"{what}, M samples/s: {shown}", flush=True)


def rates_of(samples: int, timing: Timing) -> dict[str, float]:
    """Samples per second by both clocks."""
    return {"samples_per_second": samples / timing.wall, "samples_per_cpu_second": samples / max(timing.cpu, 1e-9)}


def ratios(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Ours over the fastest of the common ways in plain PyTorch, by the wall clock and by processor time; and over
    what is no common way, but faster: networks in bfloat16, and torch.compile."""
    found = {}
    compiled = results["torch, common grid"].get("compiled")
    for clock in ("samples_per_second", "samples_per_cpu_second"):
        peer = {
            (grid, kind): max(
                rate[clock] for way, rate in results[f"torch, {grid} grid"][kind].items() if way != SHORTER
            )
            for grid in ("common", "ours")
            for kind in ("rays", "random")
        }
        common = {name: rate[clock] for name, rate in results["lightfold, common grid"]["rates"].items()}
        own = {name: rate[clock] for name, rate in results["lightfold, ours grid"]["rates"].items()}
        found[clock] = {
            "same grid, separate ops, rays": common["separate ops, rays"] / peer["common", "rays"],
            "same grid, separate ops, random": common["separate ops, random"] / peer["common", "random"],
            "same grid, fused": common["fused, rays"] / peer["common", "rays"],
            "our grid on both sides, separate ops": own["separate ops, rays"] / peer["ours", "rays"],
            "each with its own grid, fused, in float32": own["fused, rays, float32"] / peer["common", "rays"],
            "our grid on both sides, fused": own["fused, rays"] / peer["ours", "rays"],
            "each with its own grid, fused": own["fused, rays"] / peer["common", "rays"],
        }
        shorter = results["torch, common grid"]["rays"].get(SHORTER)
        if shorter is not None:
            found[clock]["each with its own grid, fused, both in bfloat16"] = own["fused, rays"] / shorter[clock]
        if isinstance(compiled, dict):
            found[clock]["each with its own grid, fused, against torch.compile"] = own["fused, rays"] / compiled[clock]
    return found


class Rays:
    """Rays that start inside the cube [-1, 1]^3 and have exactly SAMPLES_PER_RAY samples each."""

    STEP = 0.005
    SEED = 7

    def __init__(self, count: int) -> None:
        rng = torch.Generator().manual_seed(5)
        self.count = count
        self.origin = torch.rand(count, 3, generator=rng) * 1.6 - 0.8
        self.direction = F.normalize(torch.randn(count, 3, generator=rng), dim=1)
        self.near, self.far = torch.zeros(count), torch.full((count,), 1.0)
        self.target, self.background = torch.rand(count, 3, generator=rng), torch.ones(count, 3)
        self.tracing = Tracing(
            torch.full((32**3 // 64,), -1, dtype=torch.int64),
            1,
            32,
            self.STEP,
            0.0,
            SAMPLES_PER_RAY,
            stop=0.0,
            keep=0.0,
        )

    def points(self) -> Tensor:
        """The samples' places in the unit cube, as the fused step finds them."""
        t = self.tracing
        t0, dt, count = ops.march(
            self.origin,
            self.direction,
            self.near,
            self.far,
            t.bits,
            1,
            32,
            step=t.step,
            cone=0.0,
            most=t.most,
            seed=self.SEED,
        )
        if not bool((count == SAMPLES_PER_RAY).all()):
            raise RuntimeError("a ray of the comparison left the cube early")
        middle = t0 + 0.5 * dt
        return (0.5 * (self.origin[:, None] + middle[..., None] * self.direction[:, None]) + 0.5).reshape(-1, 3)


class Field:
    """Parameters of ours, of the same shapes."""

    def __init__(self, grid: HashGrid) -> None:
        def layer(inputs: int, outputs: int) -> Tensor:
            return (torch.rand(outputs, inputs) * 2 - 1).mul(1 / math.sqrt(inputs)).requires_grad_()

        self.grid = grid
        self.table = (torch.rand(grid.rows, grid.features) * 2e-4 - 1e-4).requires_grad_()
        self.density = (layer(grid.width, WIDTH), layer(WIDTH, 16))
        self.colour = (layer(32, WIDTH), layer(WIDTH, WIDTH), layer(WIDTH, 3))
        self.parameters = [self.table, *self.density, *self.colour]


def torch_rate(field: Any, x: Tensor, harmonics: Tensor, effort: dict[str, Any]) -> dict[str, float]:
    """Samples per second, forward and backward."""
    parameters = list(field.parameters())

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        sigma, rgb = field(x, harmonics)
        (sigma.mean() + rgb.mean()).backward()

    return rates_of(len(x), best(step, **effort))


def compiled_rate(field: nn.Module, x: Tensor, harmonics: Tensor, effort: dict[str, Any]) -> dict[str, float] | str:
    """The same through torch.compile; a sentence where that does not work on this machine."""
    try:
        return torch_rate(torch.compile(field), x, harmonics, effort)
    except (RuntimeError, OSError, ImportError) as error:
        return f"torch.compile failed here: {type(error).__name__}"


def separate_rate(field: Field, x: Tensor, harmonics: Tensor, effort: dict[str, Any]) -> dict[str, float]:
    """Samples per second of hash_encode and two mlp, through autograd."""

    def step() -> None:
        for parameter in field.parameters:
            parameter.grad = None
        geometry = ops.mlp(ops.hash_encode(x, field.table, field.grid), field.density)
        rgb = torch.sigmoid(ops.mlp(torch.cat([geometry, harmonics], dim=1), field.colour))
        (torch.exp(geometry[:, 0]).mean() + rgb.mean()).backward()

    return rates_of(len(x), best(step, **effort))


def fused_rate(field: Field, rays: Rays, effort: dict[str, Any]) -> dict[str, float]:
    """Samples per second of the fused step, which also marches, composites and takes the loss of pixels."""
    radiance = Radiance(field.grid, field.table, field.density, field.colour, False, 0.0)
    gradient = torch.zeros_like(field.table)
    touched = torch.zeros((gradient.numel() + 15) // 16, dtype=torch.uint8)
    seen: dict[str, int] = {}

    def step() -> None:
        for parameter in field.parameters:
            parameter.grad = None
        gradient.zero_()
        result = ops.train_rays(
            radiance,
            rays.tracing,
            rays.origin,
            rays.direction,
            rays.near,
            rays.far,
            rays.background,
            rays.target,
            seed=rays.SEED,
            table_gradient=gradient,
            touched=touched,
        )
        result.loss.backward()
        seen.update(evaluated=result.picture.evaluated, kept=result.picture.kept)

    with ops.own_threads():
        timing = best(step, **effort)
    if seen["kept"] != rays.count * SAMPLES_PER_RAY:
        raise RuntimeError(f"the fused step kept {seen['kept']} of {rays.count * SAMPLES_PER_RAY} samples")
    return rates_of(seen["kept"], timing)


if __name__ == "__main__":
    main()
