"""Each kernel alone, against what the processor can do: multiply-adds for networks, look-ups and bytes for the rest.

Buffers are allocated once and kernels are called as the ops call them, so that neither allocation nor autograd is in
the numbers. The last table is a whole training step of the presets of `ngp` on a scene made of a formula.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightfold import machine, ops
from lightfold.methods.base import step_generator
from lightfold.methods.neus import HashField, NeuSConfig
from lightfold.methods.ngp import NGP
from lightfold.ops import HashGrid
from lightfold.ops.backend import core, kernel
from lightfold.optim import Adam
from lightfold.run import placed

from .measure import best, once
from .record import REPOSITORY, parser, recorded
from .synthetic import BallScene

FINEST = 8192
"""Vertices per axis of the finest level, as in the prototype's rows."""
GRIDS = [
    *(("xor", 16, 2, log2_rows) for log2_rows in (15, 17, 19)),
    *(("line", 16, 2, log2_rows) for log2_rows in (15, 17, 19)),
    *(("line", 8, 4, log2_rows) for log2_rows in (14, 15, 16, 17, 18, 19)),
]


@dataclass(frozen=True)
class Size:
    """How much to measure."""

    points: int
    repeats: int
    seconds: float
    warm_up_steps: int
    blocks: int
    grids: list[tuple[str, int, int, int]]


FULL = Size(points=262_144, repeats=7, seconds=0.6, warm_up_steps=1500, blocks=60, grids=GRIDS)
QUICK = Size(
    points=65_536,
    repeats=3,
    seconds=0.05,
    warm_up_steps=300,
    blocks=15,
    grids=[grid for grid in GRIDS if grid[0] == "line" and grid[3] in (15, 16, 19)],
)
STEPS_PER_BLOCK = 16


def main() -> None:
    """Measure everything with one thread and with all."""
    options = parser(__doc__).parse_args()
    size = QUICK if options.quick else FULL
    with recorded("kernels", options) as record:
        measure_all(size, record.protocol, record.results)


def measure_all(size: Size, protocol: dict[str, Any], results: dict[str, Any]) -> None:
    """Fill a record."""
    every = machine.default_threads()
    protocol |= {
        "points": size.points,
        "rates": f"from the fastest of at least {size.repeats} repeats and {size.seconds} s, wall clock",
        "precision": "single; networks also in pairs of bfloat16, over the peak of those; steps as trained here",
        "network flops": "2 per weight and sample forward; 6 backward: both gradients, and the forward it repeats",
        "rays": "24 consecutive samples, 0.00125 of the unit cube apart, of rays through a sphere's surface",
        "hash grid": f"coarsest 16, finest {FINEST} vertices per axis",
    }
    for threads in sorted({1, every}):
        torch.set_num_threads(threads)
        # The peak is taken before and after: clocks and neighbours change.
        peaks = [peak_gflops(threads)]
        rows = networks(size)
        peaks.append(peak_gflops(threads))
        peak, peak_of_pairs = max(peaks), peak_gflops(threads, pairs=True)
        for row in rows:
            row["share_of_peak"] = row["gflops"] / (peak_of_pairs if row["precision"] == "bfloat16" else peak)
        field = surface(size)
        for row in field:
            row["share_of_peak"] = row["gflops"] / peak
        name = f"{threads} thread" + ("s" if threads > 1 else "")
        results[name] = {
            "threads": threads,
            "peak_gflops": peak,
            "peak_gflops_of_pairs": peak_of_pairs,
            "networks": rows,
            "hash_encoding": hash_encoding(size),
            "rendering": rendering(size),
            "adam": adam(size),
            "surface": field,
            "training_step": [training_step(size, preset) for preset in ("fast", "", "big")],
        }
        print(json.dumps({name: {"peak_gflops": round(peak, 1)}}), flush=True)
    torch.set_num_threads(every)
    results["all_threads"] = every
    compare_with_prototype(results["1 thread"]["hash_encoding"])


def peak_gflops(threads: int, seconds: float = 0.3, pairs: bool = False) -> float:
    """Multiply-adds of all threads at once, in GFLOP/s; of pairs of bfloat16 if asked."""
    rates = [0.0] * threads
    backend = core()  # Here, because PyTorch's number of threads is this thread's own.

    def run(i: int) -> None:
        rates[i] = backend.measure_gflops(seconds, pairs)

    workers = [threading.Thread(target=run, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(rates)


# ------------------------------------------------------------------------------------------------------------- networks


def networks(size: Size) -> list[dict[str, Any]]:
    """Density and colour networks of `ngp` at both widths, forward and backward, in both precisions."""
    rows = []
    for width in (32, 64):
        for name, widths in (("density", [32, width, 16]), ("colour", [32, width, width, 3])):
            for pairs in (False, True):
                rows += network(f"{name} {'-'.join(map(str, widths))}", widths, pairs, size)
    return rows


def network(name: str, widths: list[int], pairs: bool, size: Size) -> list[dict[str, Any]]:
    """Both directions of one network."""
    n = size.points // 4
    weights = [torch.randn(o, i) / i**0.5 for i, o in zip(widths, widths[1:], strict=False)]
    d_weights = [torch.zeros_like(w) for w in weights]
    x, out = torch.randn(n, widths[0]), torch.empty(n, widths[-1])
    d_x, d_out = torch.empty_like(x), torch.randn(n, widths[-1])
    pointers, d_pointers = [w.data_ptr() for w in weights], [d.data_ptr() for d in d_weights]
    run, back = kernel("mlp", x), kernel("mlp_backward", x)

    def forward() -> None:
        run(widths, pointers, pairs, x.data_ptr(), n, out.data_ptr())

    def backward() -> None:
        back(widths, pointers, pairs, x.data_ptr(), n, d_out.data_ptr(), d_pointers, d_x.data_ptr())

    products = n * sum(w.numel() for w in weights)
    rows = []
    for direction, function, flops in (("forward", forward, 2 * products), ("backward", backward, 6 * products)):
        timing = best(function, repeats=size.repeats, seconds=size.seconds)
        rows.append(
            {
                "network": name,
                "precision": "bfloat16" if pairs else "float32",
                "direction": direction,
                "gflops": flops / timing.wall / 1e9,
                "samples_per_second": n / timing.wall,
                **vars(timing),
            }
        )
    return rows


# -------------------------------------------------------------------------------------------------------- hash encoding


def random_points(n: int) -> Tensor:
    """Points all over the unit cube."""
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(1))


def ray_points(n: int, per_ray: int = 24, spacing: float = 0.00125) -> Tensor:
    """Consecutive samples of random rays, around the place where each meets a sphere."""
    rng = torch.Generator().manual_seed(2)
    rays = -(-n // per_ray)
    surface = torch.nn.functional.normalize(torch.randn(rays, 3, generator=rng), dim=1) * 0.3 + 0.5
    direction = torch.nn.functional.normalize(torch.randn(rays, 3, generator=rng), dim=1)
    t = (torch.arange(per_ray) - per_ray / 2) * spacing
    return (surface[:, None] + t[None, :, None] * direction[:, None]).reshape(-1, 3)[:n].contiguous()


def hash_encoding(size: Size) -> list[dict[str, Any]]:
    """Points per second through all levels, forward and backward."""
    rows = []
    points = {"random": random_points(size.points), "rays": ray_points(size.points)}
    for layout, levels, features, log2_rows in size.grids:
        grid = HashGrid(levels, features, log2_rows, 16, FINEST, layout)
        table = torch.rand(grid.rows, features)
        row: dict[str, Any] = {
            "grid": f"{layout} L{levels} F{features} 2^{log2_rows}",
            "table_bytes": 4 * table.numel(),
        }
        for kind, x in points.items():
            for direction, function in encoders(grid, table, x).items():
                timing = best(function, repeats=size.repeats, seconds=size.seconds)
                row[f"{direction}_{kind}_points_per_second"] = len(x) / timing.wall
        rows.append(row)
    return rows


def encoders(grid: HashGrid, table: Tensor, x: Tensor) -> dict[str, Callable[[], None]]:
    """The two kernels over fixed buffers; backward is that of the table, added to what is there."""
    out, d_table = torch.empty(len(x), grid.width), torch.zeros_like(table)
    d_out = torch.randn(len(x), grid.width)
    run, back = kernel("hash_encode", x), kernel("hash_encode_backward", x)

    def forward() -> None:
        run(grid.native, table.data_ptr(), x.data_ptr(), len(x), out.data_ptr())

    def backward() -> None:
        back(grid.native, table.data_ptr(), x.data_ptr(), len(x), d_out.data_ptr(), d_table.data_ptr(), 0)

    return {"forward": forward, "backward": backward}


def compare_with_prototype(rows: list[dict[str, Any]]) -> None:
    """Add each measured rate's ratio to the prototype's, where it had that row."""
    reference = json.loads((REPOSITORY / "benchmarks" / "references.json").read_text())["prototype"]["hash_encoding"]
    for row in rows:
        for key, value in reference.get(row["grid"], {}).items():
            row[f"{key}_over_prototype"] = row[f"{key}_points_per_second"] / (value * 1e6)


# ------------------------------------------------------------------------------------------------ marching, compositing


def shell(cascades: int, size: int) -> Tensor:
    """Occupancy bits of a sphere's neighbourhood, about 5 % of the cells."""
    from lightfold.fields import block_centres

    words = [block_centres(k, size).norm(dim=1).sub(0.6).abs() < 0.06 for k in range(cascades)]
    return torch.where(torch.cat(words), -1, 0).to(torch.int64)


def rendering(size: Size) -> list[dict[str, Any]]:
    """Marching through a shell, and compositing what it found."""
    rays, most, cells = size.points // 16, 64, 128
    rng = torch.Generator().manual_seed(3)
    origin = torch.nn.functional.normalize(torch.randn(rays, 3, generator=rng), dim=1) * 2
    direction = torch.nn.functional.normalize(0.5 * torch.randn(rays, 3, generator=rng) - origin, dim=1)
    near, far, bits = torch.full((rays,), 0.2), torch.full((rays,), 4.0), shell(1, cells)
    kwargs = {"step": 0.005, "cone": 1 / 256, "most": most, "seed": 1}

    def walk() -> tuple[Tensor, Tensor, Tensor]:
        return ops.march(origin, direction, near, far, bits, 1, cells, **kwargs)

    t0, dt, count = walk()
    timing = best(walk, repeats=size.repeats, seconds=size.seconds)
    samples = int(count.sum())
    rows = [
        {
            "op": "march",
            "rays_per_second": rays / timing.wall,
            "samples_per_second": samples / timing.wall,
            "samples_per_ray": samples / rays,
            **vars(timing),
        }
    ]
    live = torch.arange(most) < count[:, None]
    offset = torch.cat([torch.zeros(1, dtype=torch.int64), count.long().cumsum(0)])
    start, end = t0[live], t0[live] + dt[live]
    sigma = torch.rand(samples, requires_grad=True)
    rgb = torch.rand(samples, 3, requires_grad=True)

    def forward() -> Tensor:
        return ops.composite(sigma, rgb, start, end, offset).colour

    def both() -> None:
        forward().backward(torch.ones(rays, 3))

    for name, function in (("composite, forward", forward), ("composite, forward and backward", both)):
        timing = best(function, repeats=size.repeats, seconds=size.seconds)
        rows.append({"op": name, "samples_per_second": samples / timing.wall, **vars(timing)})
    return rows


# -------------------------------------------------------------------------------------------------------------- surface


def surface(size: Size) -> list[dict[str, Any]]:
    """The distance field of `neus`: its fused op against the chain of operations that autograd differentiates twice.

    Samples along rays, as many as two training steps have. Flops are those of the two layers alone, 2 per weight and
    product: a value takes one product with each layer, the slope one more with the first, the backward pass five with
    the first and two with the last. The look-ups in the hash grid, three times as many, are in the time alone.
    """
    torch.manual_seed(0)
    config = NeuSConfig()
    field = HashField(config, config.radius, inside_out=False)
    points = 2 * ray_points(size.points // 16) - 1
    inner = (4 + field.grid.width) * config.width
    outer = (1 + config.geometry) * (config.width + 1)
    n = len(points)

    def value() -> None:
        field.value(points)

    def value_by_chain() -> None:
        with torch.no_grad():
            encoded = ops.hash_encode(0.5 * points + 0.5, field.table, field.grid)
            field._network(torch.cat([points, encoded * field.active], dim=1))

    def trained(sample: Callable[[Tensor, bool], Any]) -> Callable[[], None]:
        def step() -> None:
            found = sample(points, True)
            eikonal = (found.gradient.square().sum(dim=1).sqrt() - 1).square()
            (eikonal.sum() + found.distance.sum() + found.features.sum()).backward()

        return step

    rows = []
    with ops.own_threads():
        for name, fused, chain, flops in (
            ("value", value, value_by_chain, 2 * n * (inner + config.width)),
            (
                "forward, slope, backward",
                trained(field.sample),
                trained(field.sample_by_chain),
                2 * n * (7 * inner + 3 * outer),
            ),
        ):
            ours = best(fused, repeats=size.repeats, seconds=size.seconds)
            theirs = best(chain, repeats=size.repeats, seconds=size.seconds)
            rows.append(
                {
                    "op": name,
                    "samples_per_second": n / ours.wall,
                    "gflops": flops / ours.wall / 1e9,
                    "over_the_chain": theirs.wall / ours.wall,
                    **vars(ours),
                }
            )
    return rows


# ----------------------------------------------------------------------------------------------------------------- adam


def adam(size: Size) -> list[dict[str, Any]]:
    """Parameters per second swept, and bytes per second of the lines that change: 16 read and 16 written per value."""
    n = size.points * 16
    value, gradient, first, second = (torch.rand(n) for _ in range(4))
    touched = torch.zeros((n + 15) // 16, dtype=torch.uint8)
    rows = []
    for share in (None, 1.0, 0.1, 0.01):
        lines = torch.rand(len(touched), generator=torch.Generator().manual_seed(4)) < (share or 0.0)

        def before(lines: Tensor = lines) -> None:
            gradient.view(-1, 16)[lines] = 1e-3
            touched.copy_(lines)

        def step(sparse: bool = share is not None) -> None:
            flags = touched if sparse else None
            ops.adam_(value, gradient, first, second, step=1000, lr=1e-6, sparse=sparse, touched=flags)

        timing = best(step, repeats=size.repeats, seconds=size.seconds / 2, before=before)
        changed = n if share is None else 16 * int(lines.sum())
        rows.append(
            {
                "kind": "dense" if share is None else f"sparse, {share:.0%} of the lines touched",
                "parameters_per_second": n / timing.wall,
                "gigabytes_per_second": 32 * changed / timing.wall / 1e9,
                **vars(timing),
            }
        )
    return rows


# -------------------------------------------------------------------------------------------------------- training step


def training_step(size: Size, preset: str) -> dict[str, Any]:
    """Forward, backward and Adam of a preset on drawn batches, after enough steps that the field is no longer fog.

    Drawing pixels and refreshing the occupancy grid happen between the timed parts; `breakdown` measures those.
    """
    torch.manual_seed(0)
    scene = BallScene(bounded=False)
    method = placed(NGP(NGP.PRESETS[preset], scene.info))
    optim = Adam(method.groups())
    counts = dict.fromkeys(("rays", "samples", "kept"), 0)
    index = 0

    def settle() -> None:
        """What a step needs before it: the last one's bookkeeping, and its block of pixels."""
        nonlocal index
        if method.stats:
            method.after_step(index, optim)
        index += 1
        method.batch(scene, index, step_generator(0, index))

    def step() -> None:
        method.loss(scene, index, step_generator(0, index))["colour"].backward()
        optim.step(0.2)

    blocks = []
    with ops.own_threads():
        for _ in range(size.warm_up_steps):
            settle()
            step()
        # Steps differ in their samples, so the fastest block of steps is taken, with its own counts.
        for _ in range(size.blocks):
            wall = cpu = 0.0
            counts = dict.fromkeys(counts, 0)
            for _ in range(STEPS_PER_BLOCK):
                settle()
                timing = once(step)
                wall, cpu = wall + timing[0], cpu + timing[1]
                counts = {key: counts[key] + int(method.stats[key]) for key in counts}
            blocks.append((wall, cpu, counts))
    wall, cpu, counts = min(blocks, key=lambda block: block[0])
    return {
        "preset": f"ngp:{preset}" if preset else "ngp",
        "milliseconds": 1e3 * wall / STEPS_PER_BLOCK,
        "cpu_milliseconds": 1e3 * cpu / STEPS_PER_BLOCK,
        "rays_per_second": counts["rays"] / wall,
        "samples_evaluated_per_second": counts["samples"] / wall,
        "samples_kept_per_second": counts["kept"] / wall,
        "samples_per_ray": counts["samples"] / counts["rays"],
    }


if __name__ == "__main__":
    main()
