"""What one of two processes does for `test_distributed`: everything that needs another one, in one sitting.

    python several_processes.py FOLDER        with torchrun's variables in the environment

Starting two processes takes seconds, so they are started once. What they find goes into FOLDER, as text and tensors.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import torch
from analytic_sphere import Sphere, camera_at, info_of, ring, scene_of
from painted_ball import PaintedBall
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from lightfold import distributed
from lightfold.config import RunConfig, TrainConfig
from lightfold.distributed import World, place
from lightfold.errors import ConfigError, RunError
from lightfold.evaluate import evaluate
from lightfold.methods.base import Method
from lightfold.methods.nerfacto import Nerfacto, NerfactoConfig
from lightfold.methods.ngp import NGP, NGPConfig
from lightfold.optim import Adam, Group
from lightfold.render import render_path, render_stills
from lightfold.run import Run
from lightfold.scene import SceneConfig
from lightfold.trainer import train

TINY = NGPConfig(
    steps=64, levels=2, features=2, log2_rows=9, base=4, finest_bounded=16, width=8, geometry=8, batch=1024,
    samples=8, step=0.06, grid=16, grid_bounded=16, probes=500,
)  # fmt: skip
ACTO = NerfactoConfig(
    steps=40, rays=32, proposal_samples=(8, 6), samples=4, levels=2, features=2, log2_rows=8, base=4, finest_bounded=16,
    width=8, geometry=8, proposal_levels=2, proposal_log2_rows=6, proposal_finest=(8, 16), proposal_width=8,
    appearance=4, pose_delay=5,
)  # fmt: skip


class Line(Method):
    """A line through points that the step's generator draws, in double precision: what a batch is, without a field."""

    Config = NGPConfig
    PRESETS: ClassVar[dict[str, Any]] = {"": TINY}

    def __init__(self, config: NGPConfig, info: Any) -> None:
        super().__init__(config, info)
        self.slope = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.table = nn.Parameter(torch.zeros(40, 2, dtype=torch.float64))
        self.bad: list[int] = []
        self.signalled = -1
        self.steps_seen: list[int] = []

    def groups(self) -> list[Group]:
        return [Group("slope", [self.slope], 0.05), Group("table", [self.table], 0.05, sparse=True)]

    def error(self, rng: Generator) -> Tensor:
        x = torch.rand(8, 3, dtype=torch.float64, generator=rng)
        row = torch.randint(len(self.table), (8,), generator=rng)
        return (x @ self.slope + self.table[row].sum(1) - x.sum(1).square()).square().mean()

    def loss(self, scene: Any, step: int, rng: Generator) -> dict[str, Tensor]:
        self.steps_seen.append(step)
        if step == self.signalled:
            signal.raise_signal(signal.SIGINT)
        error = self.error(rng)
        self.stats = {"rays": 8, "samples": 16, "mse": float(error.detach())}
        return {"colour": error * (float("nan") if step in self.bad else 1.0)}

    def render(self, camera: Any, background: Any = None, crop: Any = None) -> Any:
        return Sphere(self.info).render(camera)


class Interrupted(NGP):
    """Is asked to stop within a step."""

    at = -1

    def loss(self, scene: Any, step: int, rng: Generator) -> dict[str, Tensor]:
        if step == self.at > 0:
            signal.raise_signal(signal.SIGINT)
        return super().loss(scene, step, rng)


class Alone(Line):
    """What two processes cannot train."""

    TOGETHER: ClassVar[bool] = False


def run_of(folder: Path, name: str, scene: Any, **options: Any) -> Run:
    defaults: dict[str, Any] = {"eval_every": 0.0, "checkpoint_every": 0.0}
    config = RunConfig("/captures/ball", "ngp", TINY, SceneConfig(), TrainConfig(**(defaults | options)))
    return Run.create(folder / name, config, scene.info)


def own_run(folder: Path, world: World, name: str, scene: Any, **options: Any) -> Run:
    """The first process's run; elsewhere one that nobody may write to, in a folder of its own."""
    return run_of(folder, name if world.is_first else f"{name}-of-another", scene, **options)


def state(method: Method) -> dict[str, Tensor]:
    return {name: tensor.clone().contiguous() for name, tensor in method.state_dict().items()}


def exchanges(world: World) -> dict[str, Any]:
    """Words and numbers."""
    share = torch.full((3,), float(world.rank + 5))
    world.share([share])
    peak = torch.tensor([float(world.rank), -float(world.rank)])
    world.maximum_([peak])
    return {
        "sum": world.sum([1.0, float(world.rank), 0.1]),
        "tell": world.tell("ä first\n" * world.is_first),
        "tell nothing": world.tell(),
        "gather": world.gather("x" * world.rank),
        "collect": [part.tolist() for part in world.collect(torch.tensor([world.rank]))],
        "share": share.tolist(),
        "maximum": peak.tolist(),
        "alike": [world.alike([share]), world.alike([torch.tensor(world.rank)])],
    }


def gradients(world: World) -> dict[str, Any]:
    """The mean of gradients, sparse and dense, and how much was sent."""
    sent = []
    means = []
    for sparse in (0.0, 2.0):
        distributed.SPARSE = sparse
        rng = torch.Generator().manual_seed(world.rank)
        table, odd, plain, seldom = (nn.Parameter(torch.zeros(n)) for n in (16 * 500, 16 * 3 + 5, 7, 4))
        touched = torch.zeros(500, dtype=torch.uint8)
        table.grad, odd.grad, plain.grad = torch.zeros(16 * 500), torch.zeros(16 * 3 + 5), torch.randn(7, generator=rng)
        lines = torch.randint(500, (20,), generator=rng)
        table.grad.view(-1, 16)[lines] = torch.randn(20, 16, generator=rng)
        touched[lines] = 1
        odd.grad[-1 - world.rank] = 3.0
        if world.rank:
            seldom.grad = torch.ones(4)
        groups = [
            Group("table", [table], 1.0, sparse=True, touched=touched),
            Group("odd", [odd], 1.0, sparse=True),
            Group("plain", [plain, seldom, nn.Parameter(torch.zeros(2))], 1.0),
        ]
        sent.append(world.average_gradients(groups))
        assert seldom.grad is not None and groups[2].params[2].grad is None
        means.append([t.tolist() for t in (table.grad, odd.grad, plain.grad, seldom.grad, touched)])
    distributed.SPARSE = 0.75
    return {"sent": sent, "means": means}


def trainings(world: World, folder: Path) -> dict[str, Any]:
    """Line, ngp and nerfacto, trained together; stops, retreats and refusals."""
    found: dict[str, Any] = {}
    ball = PaintedBall(views=7, side=16)

    line = Line(TINY, ball.info)
    train(
        own_run(folder, world, "line", ball, steps=50),
        ball,
        line,
        TrainConfig(steps=50, eval_every=0),
        False,
        world=world,
    )  # type: ignore[arg-type]
    found["line"] = [line.slope.tolist(), line.table.tolist()]

    torch.manual_seed(world.rank)  # The first one's weights are everybody's.
    ngp = NGP(TINY, ball.info)
    run = own_run(folder, world, "ngp", ball, steps=50, checkpoint_every=1e-9)
    train(run, ball, ngp, run.config.train, False, world=world)  # type: ignore[arg-type]
    save_file(state(ngp), folder / f"ngp-{world.rank}.safetensors")
    found["rays"] = ngp.stats["rays"], int(ngp.rays)
    found["sent_mb"] = [row.get("sent_mb") for row in run.metrics()]
    found["written"] = sorted(p.name for p in run.path.iterdir())

    halves = own_run(folder, world, "halves", ball, steps=50)
    for sitting in (21, -1):
        torch.manual_seed(0 if sitting > 0 else 9)
        half = Interrupted(TINY, ball.info)
        half.at = sitting * world.rank
        with suppress(KeyboardInterrupt):
            train(halves, ball, half, halves.config.train, False, world=world)  # type: ignore[arg-type]
        found.setdefault("halves", []).append(halves.steps())
    save_file(state(half), folder / f"halves-{world.rank}.safetensors")

    torch.manual_seed(3)
    acto = Nerfacto(ACTO, ball.info)
    run = own_run(folder, world, "acto", ball, steps=30)
    train(run, ball, acto, run.config.train, False, world=world)  # type: ignore[arg-type]
    save_file(state(acto), folder / f"acto-{world.rank}.safetensors")

    # Only the second is asked to stop, and only its losses are not finite.
    stopped = Line(TINY, ball.info)
    stopped.signalled = 7 if world.rank else -1
    run = own_run(folder, world, "stopped", ball, steps=50)
    try:
        train(run, ball, stopped, run.config.train, False, world=world)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        found["stopped"] = len(stopped.steps_seen), run.steps()

    retreating = Line(TINY, ball.info)
    retreating.bad = [10, *range(20, 25)] if world.rank else []
    run = own_run(folder, world, "retreating", ball, steps=40, checkpoint_every=1e-9)
    train(run, ball, retreating, run.config.train, False, world=world)  # type: ignore[arg-type]
    found["retreating"] = retreating.slope.tolist(), run.notes

    hopeless = Line(TINY, ball.info)
    hopeless.bad = list(range(50)) if world.rank else []
    run = own_run(folder, world, "hopeless", ball, steps=50)
    try:
        train(run, ball, hopeless, run.config.train, False, world=world)  # type: ignore[arg-type]
    except RunError as error:
        found["hopeless"] = str(error)

    # A processor that rounds differently.
    drifting = Line(TINY, ball.info)
    moved = drifting.after_step

    def drift(step: int, optim: Adam) -> None:
        drifting.slope.data[0] += 1e-12 * world.rank
        moved(step, optim)

    drifting.after_step = drift  # type: ignore[method-assign]
    run = own_run(folder, world, "drifting", ball, steps=20)
    train(run, ball, drifting, run.config.train, False, world=world)  # type: ignore[arg-type]
    found["drifting"] = drifting.slope.tolist(), run.notes

    run = own_run(folder, world, "alone", ball, steps=20)
    try:
        train(run, ball, Alone(TINY, ball.info), run.config.train, False, world=world)  # type: ignore[arg-type]
    except ConfigError as error:
        found["alone"] = str(error)

    timed = Line(TINY, ball.info)
    run = own_run(folder, world, "timed", ball, minutes=0.3 / 60)
    train(run, ball, timed, run.config.train, False, world=world)  # type: ignore[arg-type]
    found["timed"] = len(timed.steps_seen), timed.slope.tolist()
    return found


def pictures(world: World, folder: Path) -> dict[str, Any]:
    """Views scored, and frames rendered, in turns."""
    info = info_of([camera_at(eye, torch.zeros(3)) for eye in ring(5)], has_alpha=True)
    method, scene = Sphere(info), scene_of(info, noise=0.1)
    result = evaluate(method, scene, "all", folder / "together", world=world)  # type: ignore[arg-type]
    stills = render_stills(method, list(info.cameras), folder / "together" / "stills", world=world)  # type: ignore[arg-type]
    video = folder / "together" / "video.mp4"
    film = render_path(method, list(info.cameras), video, outputs=("rgb", "normal"), world=world)  # type: ignore[arg-type]
    single = render_path(method, info.cameras[0], folder / "together" / "one.mp4", world=world)  # type: ignore[arg-type]
    notes, frames = [*stills.notes, *film.notes], [stills.frames, film.frames, single.frames]
    return {"evaluated": result, "notes": notes, "frames": frames}


def main() -> None:
    torch.set_num_threads(1)
    folder, found = Path(sys.argv[1]), place()
    assert found is not None
    world = World.join(found)
    said = exchanges(world) | gradients(world) | trainings(world, folder) | pictures(world, folder)
    world.leave()
    (folder / f"said-{os.environ['RANK']}.json").write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main()
