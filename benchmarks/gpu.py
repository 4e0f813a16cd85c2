"""The kernels of GPUs, each against what the card can do, and the time that `ngp` takes to a quality on one.

Kernels: device time by events, warm, the median of many repetitions; buffers stay as they are. What each has to move
and to compute is counted, and the card's own rates are measured beside it: a copy for memory, a large matrix product in
bfloat16 for the matrix units. A share of those rates is what a kernel is judged by (`docs/write-a-kernel.md`).

Training: what `lightfold train ngp:big CAPTURE` does, through the same functions and with the options that a GPU gets;
seconds from the first step to a PSNR of four held-out views, without the seconds of looking, as metrics.jsonl has them.
First cold, kernels' compilation included (Triton's cache is an empty folder); then warm. At the end all held-out views
are scored as `lightfold eval` scores them, and the pictures per second counted.

It takes some six minutes; --quick under two. Nothing here has been run on a GPU yet.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor

from lightfold import devices, machine, ops
from lightfold.cli import console, steps
from lightfold.config import RunConfig, TrainConfig, lookup
from lightfold.evaluate import evaluate
from lightfold.methods.neus import BETA, MOST, HashField, NeuSConfig, near_surface
from lightfold.ops import HashGrid
from lightfold.ops.backend import half_type, triton_lacks
from lightfold.scene import SceneConfig

from .kernels import ray_points, shell
from .record import captures, find_capture, parser, recorded

SECTOR = 32
"""Bytes that a GPU reads at least from an address."""


class Case(NamedTuple):
    """A training: its capture and how that is read, the qualities in decibels that are waited for, seconds in all, and
    whether steps are recorded and launched as a whole."""

    capture: str
    scene: SceneConfig
    goals: tuple[float, ...]
    seconds: float
    record: bool = True


CASES = {
    "lego, cold": Case("nerf_synthetic/lego", SceneConfig(), (30.0, 33.0, 35.5), 30.0),
    "lego, warm": Case("nerf_synthetic/lego", SceneConfig(), (30.0, 33.0, 35.5), 90.0),
    "lego, kernel by kernel": Case("nerf_synthetic/lego", SceneConfig(), (30.0, 33.0), 12.0, record=False),
    "fox, warm": Case("fox", SceneConfig(downscale=4, split="every:8"), (25.0, 27.0, 28.5), 60.0),
}
"""Only the first three where it is quick."""
QUICK = 12.0
"""Seconds to train where it is quick."""
LOOK = 0.5
"""Seconds between two looks at held-out views; trainings in which looking takes long look less often."""
METHOD = "ngp:big"
PICTURES = 10
"""Pictures that are rendered to measure how many a second has."""


def main() -> None:
    """One record, or one sentence where there is nothing to measure."""
    made = parser(__doc__)
    made.add_argument("--no-training", action="store_true", help="kernels only")
    options = made.parse_args()
    device = find_device()
    points = 1 << (16 if options.quick else 18)
    with tempfile.TemporaryDirectory() as cache, recorded("gpu", options) as record:
        os.environ["TRITON_CACHE_DIR"] = cache  # Empty, so that what is cold is cold.
        record.protocol |= {
            "device": describe(device),
            "points": points,
            "time": "device events, warm, median of the repetitions",
            "bytes": "each operand once; for tables also whole sectors of 32 bytes per look-up",
            "network flops": "2 per weight and sample forward; 6 backward, and 2 for what it computes again",
            "surface flops": "2 per weight and sample for each product: forward two with the first layer and one with "
            "the last; backward five and two, and one for what it computes again",
        }
        if not options.no_training:
            record.results["training"] = trainings(device, options)
        record.results["card"] = card = rates(device)
        record.results["kernels"] = kernels(device, points, card)


def find_device() -> torch.device:
    """The GPU to measure, or the end of the program in one sentence."""
    for kind in devices.TRITON_DEVICES:
        if devices.count(kind):
            lacking = triton_lacks(kind)
            if lacking is not None:
                raise SystemExit(f"There is a GPU, but no kernels to measure on it: {lacking}.")
            return devices.choose(kind)
    raise SystemExit("PyTorch sees no GPU that Triton has kernels for, so there is nothing to measure here.")


def describe(device: torch.device) -> dict[str, Any]:
    """Card and driver."""
    return {
        "card": devices.title(device),
        "memory_bytes": devices.memory(device),
        "driver": devices.driver(),
        "toolkit": torch.version.cuda or torch.version.hip,
        "triton": machine.package_version("triton"),
    }


def seconds(function: Callable[[], object], device: torch.device, repeats: int = 50) -> float:
    """Median device time of one call, after a few to warm up."""
    module: Any = torch.cuda if device.type == "cuda" else torch.xpu
    for _ in range(5):
        function()
    pairs = [(module.Event(enable_timing=True), module.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in pairs:
        begin.record()
        function()
        end.record()
    module.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs) / 1e3


def rates(device: torch.device) -> dict[str, float]:
    """Bytes per second of a large copy, read and written, and flops per second of a large matrix product."""
    source = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    into, side = torch.empty_like(source), 8192
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    return {
        "bytes_per_second": 2 * source.numel() / seconds(lambda: into.copy_(source), device),
        "matrix_flops_per_second": 2 * side**3 / seconds(lambda: a @ a, device, 20),
    }


def kernels(device: torch.device, n: int, card: dict[str, float]) -> list[dict[str, Any]]:
    """A row for each kernel, with its counts and its share of the card's rates."""
    rows = []
    for half in (None, torch.bfloat16):
        with torch.autocast(device.type, dtype=half) if half else nullcontext():
            rows += [*encoding(device, n), *networks(device, n)]
    rows += [*compositing(device, n), *adam(device), marching(device, n), *surfaces(device, n)]
    for row in rows:
        row["bytes_per_second"] = row["bytes"] / row["seconds"]
        row["share_of_memory"] = row["bytes_per_second"] / card["bytes_per_second"]
        if "flops" in row:
            row["flops_per_second"] = row["flops"] / row["seconds"]
            row["share_of_matrix_rate"] = row["flops_per_second"] / card["matrix_flops_per_second"]
    return rows


def encoding(device: torch.device, n: int) -> list[dict[str, Any]]:
    """Hash encoding, forward and by the table, of samples along rays."""
    from lightfold.ops.triton import hash_encode

    rows = []
    for grid in (HashGrid(8, 4, 16, 16, 1024), HashGrid(8, 4, 19, 16, 2048), HashGrid(16, 2, 19, 16, 2048, "xor")):
        x = ray_points(n).to(device)
        table = torch.randn(grid.rows, grid.features, device=device)
        half = half_type(table)
        read = table if half is None else table.to(half)
        out, d_table = torch.empty(n, grid.width, device=device), torch.zeros_like(table)
        name = f"{grid.layout} L{grid.levels} F{grid.features} 2^{grid.log2_rows}"
        ends, lookups = n * (12 + 4 * grid.width), 8 * n * grid.levels
        for kernel, function, size in (
            ("encode", lambda x=x, r=read, g=grid, o=out: hash_encode.encode(x, r, g, o), read.element_size()),
            ("scatter", lambda x=x, g=grid, o=out, d=d_table: hash_encode.scatter(x, o, g, d), 2 * 4),
        ):
            if kernel == "scatter" and half is not None:
                continue  # The same kernel as without autocast.
            rows.append(
                {
                    "kernel": kernel,
                    "what": name,
                    "table": str(read.dtype),
                    "seconds": seconds(function, device),
                    "bytes": ends + lookups * grid.features * size,
                    "sector_bytes": ends + lookups * max(SECTOR, grid.features * size),
                }
            )
    return rows


def networks(device: torch.device, n: int) -> list[dict[str, Any]]:
    """The networks of `ngp`, forward and backward."""
    from lightfold.ops.triton import mlp

    rows = []
    for widths in ((32, 64, 16), (32, 64, 64, 3)):
        pairs = list(zip(widths, widths[1:], strict=False))
        weights = [torch.randn(o, i, device=device) / i**0.5 for i, o in pairs]
        x, out = torch.randn(n, widths[0], device=device), torch.empty(n, widths[-1], device=device)
        d_x, half = torch.empty_like(x), half_type(x)
        products = n * sum(i * o for i, o in pairs)
        for kernel, function, flops, count in (
            ("mlp", lambda x=x, w=weights, o=out, h=half: mlp.forward(x, w, o, h), 2 * products, 1),
            ("mlp backward", lambda x=x, w=weights, o=out, d=d_x, h=half: mlp.backward(x, w, o, d, h), 8 * products, 2),
        ):
            rows.append(
                {
                    "kernel": kernel,
                    "what": "-".join(map(str, widths)),
                    "operands": str(half or x.dtype),
                    "seconds": seconds(function, device),
                    "bytes": 4 * n * (count * widths[0] + widths[-1]),
                    "flops": flops,
                }
            )
    return rows


def compositing(device: torch.device, n: int, per_ray: int = 24) -> list[dict[str, Any]]:
    """Rays of 24 samples, forward and backward."""
    from lightfold.ops.triton import composite

    rays = n // per_ray
    n = rays * per_ray
    sigma, rgb = torch.rand(n, device=device), torch.rand(n, 3, device=device)
    t0, offset = torch.rand(n, device=device), torch.arange(rays + 1, device=device) * per_ray
    out = [torch.empty(shape, device=device) for shape in ((n,), (rays, 3), (rays,), (rays,))]
    d = [torch.randn_like(t) for t in out]
    ends = [torch.empty_like(sigma), torch.empty_like(rgb)]
    t1, weight, opacity = t0 + 0.01, out[0], out[2]
    return [
        {
            "kernel": "composite",
            "what": f"{per_ray} samples per ray",
            "seconds": seconds(lambda: composite.composite(sigma, rgb, t0, t1, offset, *out), device),
            "bytes": 4 * (7 * n + 7 * rays),
        },
        {
            "kernel": "composite backward",
            "what": f"{per_ray} samples per ray",
            "seconds": seconds(
                lambda: composite.backward(sigma, rgb, t0, t1, offset, weight, opacity, *d, *ends), device
            ),
            "bytes": 4 * (11 * n + 8 * rays),
        },
    ]


def adam(device: torch.device, n: int = 12_600_000) -> list[dict[str, Any]]:
    """A published table: all of it, and where a tenth of the lines has a gradient."""
    state = [torch.rand(n, device=device) for _ in range(4)]
    gradient = state[1].clone()
    sparse = gradient * (torch.rand(n // 16, device=device) < 0.1).repeat_interleave(16)
    rows = []
    for what, live, filled in (("dense", 1.0, gradient), ("sparse, a tenth of the lines", 0.1, sparse)):

        def step(filled: Tensor = filled, what: str = what) -> None:
            state[1].copy_(filled)  # A step clears it.
            ops.adam_(*state, step=10, lr=1e-3, sparse=what != "dense")

        refill = seconds(lambda filled=filled: state[1].copy_(filled), device)
        rows.append(
            {
                "kernel": "adam",
                "what": what,
                "seconds": seconds(step, device) - refill,
                "bytes": int(4 * n * (1 + 7 * live)),
            }
        )
    return rows


def around(rays: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Origin, direction, near and far of rays from all sides towards the middle."""
    rng = torch.Generator().manual_seed(3)
    origin = torch.nn.functional.normalize(torch.randn(rays, 3, generator=rng), dim=1) * 2
    direction = torch.nn.functional.normalize(0.5 * torch.randn(rays, 3, generator=rng) - origin, dim=1)
    return origin, direction, torch.full((rays,), 0.2), torch.full((rays,), 4.0)


def marching(device: torch.device, n: int) -> dict[str, Any]:
    """Rays through a shell; what bounds it is waiting for bits, so the rate of samples says more than bytes."""
    rays, most, cells = n // 16, 128, 128
    arguments = [t.to(device) for t in (*around(rays), shell(1, cells))]

    def walk() -> Tensor:
        return ops.march(*arguments, 1, cells, step=0.005, cone=1 / 256, most=most, seed=1)[2]

    samples = int(walk().sum())
    took = seconds(walk, device)
    return {
        "kernel": "march",
        "what": f"{samples / rays:.0f} samples per ray",
        "seconds": took,
        "bytes": 8 * samples + 32 * rays,
        "samples_per_second": samples / took,
        "rays_per_second": rays / took,
    }


def surfaces(device: torch.device, n: int) -> list[dict[str, Any]]:
    """The distance field of `neus`, forward with its slope and backward, and the search for its samples along rays
    through the sphere that it starts from, at the steepness of a training's end; the last waits for the device once.
    """
    from lightfold.ops.triton import surface

    torch.manual_seed(0)
    config = NeuSConfig()
    model = HashField(config, config.radius, inside_out=False).to(device)
    grid, table = model.grid, model.table.detach()
    first, last, levels = model._layers(None)
    first, last, points = first.detach(), last.detach(), 2 * ray_points(n).to(device) - 1
    out, gradient = torch.empty(n, len(last), device=device), torch.empty(n, 3, device=device)
    d_out, d_gradient = torch.randn_like(out), torch.randn_like(gradient)
    field = (points, table, first, last, grid, levels, BETA)
    ends, lookups = n * 4 * (3 + len(last) + 3), 8 * n * levels
    row_bytes = 4 * grid.features
    between = n * 4 * 4 * grid.width  # Four times a number per feature: u, q, and changes.
    what = f"{grid.width + 4}-{config.width}-{len(last)}, {grid.layout} L{levels} F{grid.features} 2^{grid.log2_rows}"
    rows: list[dict[str, Any]] = [
        {
            "kernel": "surface",
            "what": what,
            "seconds": seconds(lambda: surface.forward(*field, out, gradient), device),
            "bytes": ends + lookups * row_bytes,
            "sector_bytes": ends + lookups * max(SECTOR, row_bytes),
            "flops": 2 * n * (2 * first.numel() + last.numel()),
        },
        {
            "kernel": "surface backward",
            "what": what,
            "seconds": seconds(lambda: surface.backward(*field, d_out, d_gradient), device),
            "bytes": ends + between + lookups * 3 * row_bytes,  # A row is read, and read and written to be added to.
            "sector_bytes": ends + between + lookups * (max(SECTOR, row_bytes) + max(SECTOR, 2 * row_bytes)),
            "flops": 2 * n * (6 * first.numel() + 2 * last.numel()),
        },
    ]
    count, steepness = n // 16, 400.0
    bits = near_surface(model, config.grid, steepness)
    rays = tuple(t.to(device) for t in around(count))
    how: dict[str, Any] = {"inv_s": steepness, "step": config.step, "keep": config.keep, "most": MOST, "seed": 1}

    def march() -> ops.Steps:
        return model.march(rays, bits, config.grid, **how)  # type: ignore[arg-type]

    found, took = march(), seconds(march, device)
    per_point = 8 * levels * row_bytes
    rows.append(
        {
            "kernel": "surface_march",
            "what": f"{found.evaluated / count:.0f} of a ray's steps evaluated, {len(found.ray) / count:.0f} kept",
            "seconds": took,
            "bytes": 32 * count + found.evaluated * per_point,
            "samples_per_second": found.evaluated / took,
            "rays_per_second": count / took,
        }
    )
    return rows


# ------------------------------------------------------------------------------------------------------------ training


def trainings(device: torch.device, options: Any) -> dict[str, Any]:
    """All cases, in order; a capture that is not there is skipped and said to be."""
    results: dict[str, Any] = {}
    for name, case in list(CASES.items())[: 3 if options.quick else None]:
        path = find_capture(options, case.capture)
        if path is None:
            print(f"{name} is skipped: there is no capture '{case.capture}' in {captures(options)}.")
            continue
        print(f"{name} ...", flush=True)
        results[name] = train(path, case._replace(seconds=QUICK) if options.quick else case, device)
    return results


def train(capture: Path, case: Case, device: torch.device) -> dict[str, Any]:
    """Seconds until each quality is reached, and what was reached at the end."""
    minutes, record = case.seconds / 60, case.record
    habits = TrainConfig(minutes=minutes, eval_every=LOOK, checkpoint_every=0, device=str(device), record=record)
    config = RunConfig(str(capture.resolve()), METHOD, lookup(METHOD)[1], case.scene, habits)
    with tempfile.TemporaryDirectory() as folder:
        run, scene = steps.begin(config, Path(folder) / "run")
        before = time.time() - psutil.Process().create_time()
        steps.train(run, scene)
        rows, step = run.metrics(), run.steps()[-1]
        method = run.method(device=device)
        scores = evaluate(method, scene)
        camera = scene.info.cameras[scene.info.test[0]]
        took = [timed(lambda: method.render(camera), device) for _ in range(PICTURES)]
        options, about = run.config.model, run.about
        console.drop_logs()
    looks = [(row["seconds"], row["held_out_psnr"]) for row in rows if "held_out_psnr" in row]
    rates = [row for row in rows if "kept_samples_per_second" in row]
    settled = rates[len(rates) // 2 :]
    return {
        "seconds_to_psnr": {str(goal): next((at for at, psnr in looks if psnr >= goal), None) for goal in case.goals},
        "looks": looks,
        "psnr": scores["mean"]["psnr"],
        "ssim": scores["mean"]["ssim"],
        "views": scores["protocol"]["view_count"],
        "background": scores["protocol"]["background"],
        "steps": step,
        "batch": options.batch,
        "precision": about["precision"],
        "kept_samples_per_second": statistics.median(row["kept_samples_per_second"] for row in settled),
        "samples_per_second": statistics.median(row["samples_per_second"] for row in settled),
        "pictures_per_second": 1 / statistics.median(took),
        "picture": f"{camera.width}x{camera.height}",
        "peak_gpu_memory_gb": max((row.get("peak_gpu_memory_gb", 0.0) for row in rates), default=None),
        "seconds_of_the_process_before": before,
    }


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call by the clock of the host, to the end of what it started."""
    devices.synchronize(device)
    begin = time.perf_counter()
    function()
    devices.synchronize(device)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
