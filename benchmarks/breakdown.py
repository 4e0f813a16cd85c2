"""Where the time of a training step goes.

Two levels. The outer one is measured in the training itself, by clocks around the parts of a step: drawing pixels, the
fused pass over the rays, the scatter of the table's gradient, Adam, and the occupancy grid. The inner one divides the
fused pass, which cannot be stopped in the middle: its ops run separately on the very rays of those steps, and the pass
is divided in proportion to their times. What they take together, over what the pass takes, is given as a check; it is
above 1 because apart they go through memory.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightfold import machine, ops
from lightfold.config import lookup
from lightfold.formats import open_capture
from lightfold.methods.base import step_generator
from lightfold.methods.ngp import NGP
from lightfold.ops.backend import in_pairs, kernel
from lightfold.ops.radiance import to_unit
from lightfold.optim import Adam
from lightfold.run import placed
from lightfold.scene import Scene, load_scene

from .measure import best
from .quality import FOX
from .record import find_capture, parser, recorded

NETWORKS = ("density network", "colour network", "colour network, backward", "density network, backward")
ENCODING = ("hash encoding", "scatter of the table's gradient")


class Clocks:
    """Wall seconds by name, over all steps."""

    def __init__(self) -> None:
        self.wall: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def around(self, name: str) -> Iterator[None]:
        """Count the time inside."""
        start = time.perf_counter()
        yield
        self.wall[name] += time.perf_counter() - start


def main() -> None:
    """Each preset on fox, or on the sample where fox is absent."""
    options = parser(__doc__).parse_args()
    name = "fox" if find_capture(options, "fox") else "sample"
    capture = find_capture(options, name)
    if capture is None:
        raise SystemExit("There is no capture to train on, not even examples/sample.")
    torch.set_num_threads(machine.default_threads())
    warm_up, blocks = (300, 20) if options.quick else (3000, 200)
    with recorded("breakdown", options) as record, tempfile.TemporaryDirectory() as cache:
        scene = load_scene(open_capture(capture).posed(), FOX, Path(cache))
        record.protocol |= {
            "capture": name,
            "measured": f"{blocks} blocks of {NGP.BLOCK} steps, after {warm_up} steps, all threads; the fastest half",
        }
        for preset in ("ngp:fast",) if options.quick else ("ngp:fast", "ngp", "ngp:big"):
            record.results[preset] = breakdown(scene, preset, warm_up, blocks)
            shares = ", ".join(f"{k} {v:.0%}" for k, v in record.results[preset]["shares"].items())
            print(f"{preset}: {shares}", flush=True)


def breakdown(scene: Scene, preset: str, warm_up: int, blocks: int) -> dict[str, Any]:
    """Shares of a step, with the numbers they come from."""
    torch.manual_seed(0)
    cls, config = lookup(preset)
    method = placed(cls(config, scene.info))
    optim = Adam(method.groups())
    with ops.own_threads():
        step = 0
        while step < warm_up // NGP.BLOCK * NGP.BLOCK:
            one_step(scene, method, optim, step, Clocks())
            step += 1
        measured = []
        for _ in range(blocks):
            clocks = Clocks()
            for _ in range(NGP.BLOCK):
                one_step(scene, method, optim, step, clocks)
                step += 1
            measured.append(dict(clocks.wall))
        # Neighbours on the machine make blocks slower, never faster.
        quiet = sorted(measured, key=lambda block: sum(block.values()))[: max(1, blocks // 2)]
        outer = {name: sum(block[name] for block in quiet) for name in quiet[0]}
        with method.computing():
            inner = inside_the_pass(scene, method, step)
    total = sum(outer.values())
    fused = outer.pop("fused pass")
    apart = sum(inner.values())
    shares = {name: fused * seconds / apart / total for name, seconds in inner.items()}
    shares |= {name: seconds / total for name, seconds in outer.items()}
    others = {k: v for k, v in shares.items() if k not in NETWORKS + ENCODING}
    return {
        "milliseconds_per_step": 1e3 * total / len(quiet) / NGP.BLOCK,
        "shares": dict(sorted(shares.items(), key=lambda item: -item[1])),
        "networks": sum(shares[name] for name in NETWORKS),
        "encoding": sum(shares[name] for name in ENCODING),
        "largest_other": max(others, key=lambda name: others[name]),
        "largest_other_share": max(others.values()),
        "fused_pass_share": fused / total,
        "ops_apart_over_fused_pass": apart / (fused / len(quiet) / NGP.BLOCK),
    }


def one_step(scene: Scene, method: NGP, optim: Adam, step: int, clocks: Clocks) -> None:
    """A step of `trainer.train`, with clocks around its parts."""
    rng = step_generator(0, step)
    with clocks.around("drawing pixels"):
        method.batch(scene, step, rng)
    with clocks.around("fused pass"):
        loss = method.loss(scene, step, rng)["colour"]
        float(loss.detach())
    with clocks.around("scatter of the table's gradient"):
        loss.backward()
    with clocks.around("Adam"):
        optim.step(0.2)
    with clocks.around("occupancy grid"):
        method.after_step(step, optim)


def inside_the_pass(scene: Scene, method: NGP, step: int) -> dict[str, float]:
    """Seconds per step of the ops that the fused pass is made of, apart, on the rays of one block of steps.

    Rays of a whole block at once would leave the caches that a step's fit into, so each op runs on one step's rays.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    first = -(-step // NGP.BLOCK) * NGP.BLOCK
    for index in range(first, first + NGP.BLOCK):
        for name, part in parts_of_the_pass(scene, method, index).items():
            seconds[name] += part / NGP.BLOCK
    return dict(seconds)


@torch.no_grad()
def parts_of_the_pass(scene: Scene, method: NGP, step: int) -> dict[str, float]:
    """Seconds of each op on one step's rays: density on as many samples as the pass evaluates, colour and all of
    backward on as many as it keeps."""
    method.loss(scene, step, step_generator(0, step))
    evaluated, kept = int(method.stats["samples"]), int(method.stats["kept"])
    origin, direction, near, far, *_ = method.batch(scene, step, step_generator(0, step))
    t, field = method.training_tracing(step), method.field()

    def walk() -> tuple[Tensor, Tensor, Tensor]:
        options = {"step": t.step, "cone": t.cone, "most": t.most, "seed": 1}
        return ops.march(origin, direction, near, far, t.bits, t.cascades, t.size, **options)

    t0, dt, count = walk()
    live = torch.arange(t.most) < count[:, None]
    ray = torch.arange(len(origin))[:, None].expand_as(live)[live]
    middle = (t0 + 0.5 * dt)[live]
    x = to_unit(origin[ray] + middle[:, None] * direction[ray], field.unbounded)[:evaluated].contiguous()
    features = ops.hash_encode(x, field.table, field.grid)
    geometry = ops.mlp(features, field.density)
    inputs = torch.cat([geometry, ops.spherical_harmonics(direction)[ray][:evaluated]], dim=1)[:kept].contiguous()
    offset = torch.cat([torch.zeros(1, dtype=torch.int64), count.long().cumsum(0)]).clamp(max=kept)
    begin, length = t0[live][:kept], dt[live][:kept]
    sigma, rgb = torch.exp(geometry[:kept, 0]), torch.rand(kept, 3)

    def composite() -> object:
        return ops.composite(sigma, rgb, begin, begin + length, offset)

    def seconds(function: Callable[[], object]) -> float:
        return best(function, repeats=5, seconds=0.01).wall

    def backward_only(x: Tensor, weights: tuple[Tensor, ...]) -> float:
        # The separate kernel repeats the forward first; the fused pass has kept its results.
        return max(seconds(backward(x, weights)) - seconds(forward(x, weights)), 0.0)

    return {
        # Alone, it walks past the place where the pass finds the ray opaque.
        "marching": seconds(walk) * min(1.0, evaluated / max(len(ray), 1)),
        "hash encoding": seconds(encoding(x, field)),
        "density network": seconds(forward(features, field.density)),
        "compositing": seconds(composite),
        "colour network": seconds(forward(inputs, field.colour)),
        "colour network, backward": backward_only(inputs, field.colour),
        "density network, backward": backward_only(features[:kept].contiguous(), field.density),
    }


def encoding(x: Tensor, field: ops.Radiance) -> Callable[[], object]:
    """The encoding kernel over fixed buffers."""
    out, run = torch.empty(len(x), field.grid.width), kernel("hash_encode", x)
    return lambda: run(field.grid.native, field.table.data_ptr(), x.data_ptr(), len(x), out.data_ptr())


def forward(x: Tensor, weights: tuple[Tensor, ...]) -> Callable[[], object]:
    """A network's kernel over fixed buffers."""
    widths = [x.shape[1], *(w.shape[0] for w in weights)]
    out, run, pointers = torch.empty(len(x), widths[-1]), kernel("mlp", x), [w.data_ptr() for w in weights]
    pairs = in_pairs(x)
    return lambda: run(widths, pointers, pairs, x.data_ptr(), len(x), out.data_ptr())


def backward(x: Tensor, weights: tuple[Tensor, ...]) -> Callable[[], object]:
    """A network's backward kernel over fixed buffers."""
    widths = [x.shape[1], *(w.shape[0] for w in weights)]
    pointers, gradients = [w.data_ptr() for w in weights], [torch.zeros_like(w) for w in weights]
    d_out, d_x, run = torch.rand(len(x), widths[-1]), torch.empty_like(x), kernel("mlp_backward", x)
    pairs = in_pairs(x)

    def call() -> None:
        # The addresses are asked for here, so that the gradients live as long as this function.
        d_pointers = [d.data_ptr() for d in gradients]
        run(widths, pointers, pairs, x.data_ptr(), len(x), d_out.data_ptr(), d_pointers, d_x.data_ptr())

    return call


if __name__ == "__main__":
    main()
