"""Compile what the ops launch, for a GPU that need not be here: `python compile_kernels.py cuda 90`.

Triton's compilers need no device, only a driver that names one. This one launches nothing: the ops run on tensors of
the CPU up to each launch, which compiles the kernel for the target and leaves the outputs as they were allocated.
Prints a line of JSON: for each kernel, its name and the bytes of shared memory that a program takes.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from lightfold import ops
from lightfold.ops import HashGrid, Radiance, Tracing, backend, hash_encode, mlp
from lightfold.ops.march import grid_decay_, grid_raise_, varying


class AbsentDevice:
    """A driver for a device that is not here."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def compile_only(target: GPUTarget) -> list[tuple[str, int]]:
    """From now on, launches compile and do no more; the list grows with them."""
    driver.set_active(AbsentDevice(target))
    launch, compiled = JITFunction.run, []

    def run(self, *args: Any, grid: Any, warmup: bool, **options: Any):
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        compiled.append((self.fn.__name__, kernel.metadata.shared))
        return kernel

    JITFunction.run = run
    return compiled


def launch_all() -> None:
    """Every kernel, in the variants that `ngp` and `neus` use."""
    # Buffers that no kernel fills here hold ones, so that where there is something to count, there is something.
    torch.empty = torch.ones  # type: ignore[assignment]

    def layers(*widths: int) -> tuple[torch.Tensor, ...]:
        return tuple(torch.zeros(o, i, requires_grad=True) for i, o in zip(widths, widths[1:], strict=False))

    grid = HashGrid(levels=8, features=4, log2_rows=12)
    table = torch.zeros(grid.rows, 4, requires_grad=True)
    n = 1000
    hash_encode(torch.zeros(1 << 14, 3), table, grid).sum().backward()  # So many that coarse levels have copies.
    for half in (None, torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=half) if half else nullcontext():
            hash_encode(torch.zeros(n, 3), table, grid).sum().backward()
            for widths in ((32, 64, 16), (32, 64, 64, 3), (32, 128, 128, 3)):
                mlp(torch.zeros(n, widths[0], requires_grad=True), layers(*widths)).sum().backward()
    published = HashGrid(16, 2, 12, 16, 2048, "xor")
    x, rows = torch.zeros(n, 3, requires_grad=True), torch.zeros(published.rows, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(hash_encode(x, rows, published).sum(), x, create_graph=True)
    slope.sum().backward()

    for count, hidden, outputs in ((n, 64, 16), (n, 128, 128), (1, 64, 16)):
        first = torch.zeros(hidden, 4 + grid.width, requires_grad=True)
        last = torch.zeros(outputs, hidden + 1, requires_grad=True)
        for slope in (True, False):
            distance = ops.surface(torch.zeros(count, 3), table, first, last, grid, levels=8, beta=100.0, slope=slope)
            torch.cat([t.reshape(-1) for t in distance]).sum().backward()
        rays = (torch.zeros(count, 3), torch.zeros(count, 3), torch.zeros(count), torch.zeros(count))
        bits, how = torch.zeros(64**3 // 64, dtype=torch.int64), {"step": 0.01, "keep": 1e-3, "most": 128}
        ops.surface_march(rays, bits, 64, table, first, last, grid, levels=8, beta=100.0, inv_s=60.0, **how)

    offset = torch.tensor([0, 400, n])
    sigma, rgb = torch.zeros(n, requires_grad=True), torch.zeros(n, 3, requires_grad=True)
    ops.composite(sigma, rgb, torch.zeros(n), torch.zeros(n), offset).colour.sum().backward()
    state = [torch.zeros(1024) for _ in range(4)]
    ops.adam_(*state, step=1, lr=0.1)
    ops.adam_(*state, step=1, lr=0.1, rates=torch.ones(2))
    ops.adam_(*state, step=1, lr=0.1, sparse=True, touched=torch.zeros(64, dtype=torch.uint8))

    for cascades, size in ((1, 64), (5, 64)):
        words, cells = cascades * size**3 // 64, cascades * size**3
        bits, peak, threshold = torch.zeros(words, dtype=torch.int64), torch.zeros(cells), torch.zeros(cascades)
        grid_decay_(bits, peak, cascades, size, 0.9, threshold)
        grid_raise_(bits, peak, bits, cascades, size, torch.zeros(n, 3), torch.zeros(n), threshold)
        field = Radiance(grid, table, layers(32, 64, 16), layers(32, 64, 64, 3), cascades > 1, 1.0)
        tracing = Tracing(bits, cascades, size, 0.01, 1 / 256 if cascades > 1 else 0.0, 128, peak)
        rays = (torch.zeros(64, 3), torch.zeros(64, 3), torch.zeros(64), torch.zeros(64), torch.zeros(64, 3))
        numbers = varying(0.01, tracing.cone, 1)
        for told in (None, numbers):
            loss = ops.train_rays(field, tracing, *rays, torch.zeros(64, 3), seed=1, distortion=0.01, varying=told).loss
            loss.backward()
        ops.render_rays(field, tracing, *rays)


def main() -> None:
    """See the module's docstring."""
    name, architecture = sys.argv[1:]
    target = GPUTarget(name, int(architecture), 32) if name == "cuda" else GPUTarget(name, architecture, 64)
    torch.version.cuda = "as if" if name == "cuda" else None  # type: ignore[assignment]
    backend.interpreted = lambda: True  # so that tensors of the CPU are let through
    from lightfold.ops.triton import mlp as networks

    networks.interpreted = lambda: False
    compiled = compile_only(target)
    with ops.use("triton"):
        launch_all()
    sys.stdout.write(json.dumps(compiled) + "\n")


if __name__ == "__main__":
    main()
