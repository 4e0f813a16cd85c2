"""What every method is: parameters with schedules, a loss, a picture; and what some can be asked beyond that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor, nn

from ..cameras import Camera, DirectionTable, Lens
from ..errors import ConfigError
from ..optim import Adam, Group
from ..rays import Box

if TYPE_CHECKING:
    from ..scene import Scene, SceneInfo


STRIDE = 0x9E3779B1
"""Distance between the first steps of two seeds, modulo 2^32: neighbouring seeds meet only after billions of steps."""


RANK_STRIDE = 0x6A400000
"""The same between the processes of one training: an odd multiple of 2^22, so that the first thousand never meet within
four million steps. It is also one of the steps in which `window` passes over all views: the processes of a machine draw
from the same views, which lie in its memory once."""

KNOTS = 1 << 12
"""Pixels of a picture at which a distorted lens is inverted exactly (see `DirectionTable`: 1e-3 pixels off between)."""


def step_generator(seed: int, step: int, rank: int = 0) -> Generator:
    """The randomness of a step. It depends on nothing else, so a resumed run draws what an unbroken one would have.

    PyTorch's CPU generator uses 32 bits of its seed, so seeds, and the ranks of processes that train together, are kept
    apart by strides within those.
    """
    return torch.Generator().manual_seed((seed * STRIDE + rank * RANK_STRIDE + step) % 2**32)


def earlier(rng: Generator, steps: int) -> Generator:
    """The generator of that many steps before the one that `rng` was made for."""
    return torch.Generator().manual_seed((rng.initial_seed() - steps) % 2**32)


def check_ranges(config: Any, *ranges: tuple[str, float, float]) -> None:
    """Raise ConfigError unless every option named is a number from its least to its greatest."""
    for name, least, most in ranges:
        if not least <= getattr(config, name) <= most:
            raise ConfigError(f"{name}: expected {least} to {most}, got {getattr(config, name)}.")


def ray_chunks(camera: Camera, most: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rays of a whole picture, row by row, in chunks of at most `most`: (pixels, origin [n, 3], unit direction [n, 3]).

    The lens is inverted once for the picture, however many chunks it takes.
    """
    camera = camera.to(torch.float32)
    parallel = camera.lens is Lens.ORTHOGRAPHIC
    # To invert a distorted lens at every pixel can take longer than the picture. Between knots it is exact enough.
    table = None if parallel else DirectionTable(camera, KNOTS)
    rotation, centre = camera.world_from_cam[:, :3], camera.center
    for begin in range(0, camera.height * camera.width, most):
        part = slice(begin, min(begin + most, camera.height * camera.width))
        pixel = torch.arange(part.start, part.stop)
        column, row = pixel % camera.width, pixel // camera.width
        if table is None:
            rays = camera.rays(torch.stack([column, row], dim=1) + 0.5)
            yield part, rays.origin.contiguous(), rays.direction.contiguous()
        else:
            direction = table(column, row)[0] @ rotation.T
            yield part, centre.expand_as(direction).contiguous(), direction


@dataclass(frozen=True)
class Image:
    """A rendered picture of height H and width W, in scene coordinates where it has units.

    rgb [H, W, 3] sRGB in [0, 1], composited over the background that was asked for; alpha [H, W] opacity in [0, 1];
    depth [H, W] expected distance along the ray in scene units, 0 where nothing was hit; normal [H, W, 3] unit, in
    world axes, 0 where unknown.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    normal: Tensor | None = None


class Method(nn.Module):
    """A way to learn a scene. It pulls its own batches from the scene, so the trainer knows neither rays nor splats."""

    Config: ClassVar[type]
    """Frozen dataclass of options; has at least `steps: int`, the length of a full training."""
    PRESETS: ClassVar[dict[str, Any]]
    """Name after the colon in `method:preset` -> Config. The empty name is the default."""
    TOGETHER: ClassVar[bool] = True
    """Whether several processes can train it together: whether all that changes its parameters and buffers is the
    optimiser, `stats`, and what `peaks` names."""
    BY_KERNELS: ClassVar[bool] = True
    """Whether a step's work is done by the native kernels, which then get all threads while PyTorch computes with one
    (`ops.own_threads`). False: it is PyTorch's, which keeps them."""

    def __init__(self, config: Any, info: SceneInfo) -> None:
        super().__init__()
        self.config = config
        self.info = info
        self.stats: dict[str, float] = {}
        """Counts of the last step for the progress line: `rays` and `samples`."""

    def groups(self) -> list[Group]:
        """Every trainable parameter, once, with its learning rate and schedule."""
        raise TypeError(f"{type(self).__name__} must define groups()")

    def loss(self, scene: Scene, step: int, rng: Generator) -> dict[str, Tensor]:
        """Weighted loss terms of one batch. All randomness comes from `rng`, which the trainer seeds from the step."""
        raise TypeError(f"{type(self).__name__} must define loss()")

    def render(self, camera: Camera, background: Tensor | None = None, crop: Box | None = None) -> Image:
        """Picture from a single camera of any lens, without gradients, in bounded memory.

        `background` is a colour [3]; None means the scene's own, or black. Outside `crop` nothing is seen.
        """
        raise TypeError(f"{type(self).__name__} must define render()")

    def after_step(self, step: int, optim: Adam) -> None:
        """Called when the parameters have moved: densify, prune, refresh a grid."""

    def peaks(self, step: int | None = None) -> list[Tensor]:
        """Buffers whose values the samples of training raise; with a step, those that its `after_step` will read.

        Of several processes each has raised its own. The trainer makes them the largest of all when they are read, and
        before a checkpoint.
        """
        return []


# --- what only some methods can be asked ----------------------------------------------------------------------------
#
# A method has an ability when it has functions of these names: `isinstance(method, HasDensity)` asks. Points are given
# in scene coordinates as [N, 3] float32, and answers come without gradients.


@runtime_checkable
class HasDensity(Protocol):
    """A method whose matter can be asked for at a point."""

    def density_at(self, points: Tensor) -> Tensor:
        """Optical density [N] >= 0 per scene unit; 0 wherever the method's own pictures skip."""


@runtime_checkable
class HasOccupancy(HasDensity, Protocol):
    """A method that knows, before its density is computed, where there is none."""

    cell: float
    """The smallest distance over which `occupied_at` may change, in scene units: probes closer than it miss nothing."""

    def occupied_at(self, points: Tensor) -> Tensor:
        """[N] bool, False where the density is known to be 0."""


@runtime_checkable
class HasDistance(Protocol):
    """A method whose surface is where a signed distance is zero, as in NeuS (Wang et al. 2021)."""

    def sdf_at(self, points: Tensor) -> Tensor:
        """Signed distance [N] to the surface in scene units, positive outside. A learnt one is nearly a distance."""
