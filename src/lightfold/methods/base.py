"""What every method is: parameters with schedules, a loss, a picture; and what some can be asked beyond that."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, fields, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Generator, Tensor, nn

from .. import devices
from ..cameras import Camera, DirectionTable, Lens
from ..errors import ConfigError, LightfoldError
from ..optim import Adam, Group
from ..rays import Box

if TYPE_CHECKING:
    from ..scene import Scene, SceneInfo


log = logging.getLogger(__name__)

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


def seed_of(rng: Generator) -> int:
    """A seed for kernels, or for a generator on a device; not 0, which stands for none."""
    return int(torch.randint(1, 2**62, (1,), generator=rng))


def check_ranges(config: Any, *ranges: tuple[str, float, float]) -> None:
    """Raise ConfigError unless every option named is a number from its least to its greatest."""
    for name, least, most in ranges:
        if not least <= getattr(config, name) <= most:
            raise ConfigError(f"{name}: expected {least} to {most}, got {getattr(config, name)}.")


def check_pairs(config: Any, *ranges: tuple[str, float, float]) -> None:
    """Raise ConfigError unless every option named is two numbers from its least to its greatest."""
    for name, least, most in ranges:
        given = getattr(config, name)
        if len(given) != 2 or not all(least <= value <= most for value in given):
            raise ConfigError(f"{name}: expected two numbers of {least:g} to {most:g}, got {given}.")


def check_choices(config: Any, *choices: tuple[str, Sequence[Any]]) -> None:
    """Raise ConfigError unless every option named is one of its choices."""
    for name, known in choices:
        if getattr(config, name) not in known:
            *others, last = map(str, known)
            raise ConfigError(f"{name}: expected {', '.join(others)} or {last}, got {getattr(config, name)!r}.")


def ray_chunks(camera: Camera, most: int, device: torch.device = devices.CPU) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rays of a whole picture, row by row, in chunks of at most `most`: (pixels, origin [n, 3], unit direction [n, 3]),
    on a device.

    The lens is inverted once for the picture, however many chunks it takes.
    """
    computes = devices.exact(device)
    for part, origin, direction in _ray_chunks(camera.to(torch.float32).to(computes), most, computes):
        yield part, origin.to(device), direction.to(device)


def _ray_chunks(camera: Camera, most: int, device: torch.device) -> Iterator[tuple[slice, Tensor, Tensor]]:
    parallel = camera.lens is Lens.ORTHOGRAPHIC
    # To invert a distorted lens at every pixel can take longer than the picture. Between knots it is exact enough.
    table = None if parallel else DirectionTable(camera, KNOTS)
    rotation, centre = camera.world_from_cam[:, :3], camera.center
    for begin in range(0, camera.height * camera.width, most):
        part = slice(begin, min(begin + most, camera.height * camera.width))
        pixel = torch.arange(part.start, part.stop, device=device)
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
    world axes, 0 where unknown; median_depth [H, W] distance before which half of what the ray sees lies, else as
    depth.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    normal: Tensor | None = None
    median_depth: Tensor | None = None

    def cpu(self) -> Image:
        """The same on the CPU."""
        here = Image.merged([self], lambda planes: devices.fetched(planes[0]))
        devices.synchronize(self.rgb.device)
        return here

    @classmethod
    def merged(cls, parts: Sequence[Image], merge: Callable[[list[Tensor]], Tensor]) -> Image:
        """The picture whose every plane `merge` makes of that of the parts; a plane that one of them lacks is None."""
        merged: dict[str, Any] = {}
        for field in fields(cls):
            planes = [getattr(part, field.name) for part in parts]
            merged[field.name] = None if any(plane is None for plane in planes) else merge(planes)
        return cls(**merged)


FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
LEAST_CHUNK = 64
"""Rays at once below which a picture is given up for lack of memory."""


def picture(render: FunctionT) -> FunctionT:
    """What every method's `render` has around it: no gradients, the method's device, whatever thread it is called from,
    and smaller chunks (`Method.chunk`) where memory is short. The picture comes back on the CPU."""

    @wraps(render)
    def rendered(method: Method, *arguments: Any, **named: Any) -> Image:
        with torch.no_grad(), devices.current(method.device):
            while True:
                with suppress(devices.OutOfMemory):
                    return cast(Image, render(method, *arguments, **named)).cpu()
                # Only here are the tensors of the attempt gone.
                if not method.halve_chunk():
                    remedy = "ask for a smaller picture, or say --device cpu"
                    raise LightfoldError(devices.shortage(method.device, "a picture", remedy))

    return cast(FunctionT, rendered)


def asked(answer: FunctionT) -> FunctionT:
    """What every answer at points [N, 3] has around it: no gradients, and the method's device; points may be anywhere,
    and the answer is where they are."""

    @wraps(answer)
    def answered(method: Method, points: Tensor) -> Tensor:
        with torch.no_grad(), devices.current(method.device):
            return cast(Tensor, answer(method, points.to(method.device))).to(points.device)

    return cast(FunctionT, answered)


class Method(nn.Module):
    """A way to learn a scene. It pulls its own batches from the scene, so the trainer knows neither rays nor splats."""

    Config: ClassVar[type]
    """Frozen dataclass of options; has at least `steps: int`, the length of a full training."""
    PRESETS: ClassVar[dict[str, Any]]
    """Name after the colon in `method:preset` -> Config. The empty name is the default."""
    TOGETHER: ClassVar[bool] = True
    """Whether several processes can train it together: whether all that changes its parameters and buffers is the
    optimiser, `stats`, and what `peaks` names."""
    ON_GPU: ClassVar[dict[str, Any]] = {}
    """Options that are larger on a GPU, where the user has not set them: a step must fill thousands of cores."""
    ON_HOST: ClassVar[tuple[str, ...]] = ()
    """Buffers that stay with the CPU wherever the method is: numbers by which the host decides what a step does. To
    read them from a device would be to wait for it."""
    BATCH: ClassVar[tuple[str, int]] = ("rays", 64)
    """The option that says how large a batch is, which is halved where memory does not suffice, and its least value."""
    HALF: ClassVar[bool] = False
    """Whether it has networks or tables that may be read in half precision: those inside `computing`."""
    BY_KERNELS: ClassVar[bool] = True
    """Whether a step's work is done by the native kernels, which then get all threads while PyTorch computes with one
    (`ops.own_threads`). False: it is PyTorch's, which keeps them."""

    def __init__(self, config: Any, info: SceneInfo) -> None:
        super().__init__()
        self.config = config
        self.info = info
        self.stats: dict[str, Any] = {}
        """Counts of the last step for the progress line: `rays` and `samples`. On a GPU, values may be tensors there,
        which the trainer makes numbers when they have arrived: `after_step` then reads those of some steps ago."""
        self.half_type: torch.dtype | None = None
        """Type in which networks multiply and tables are read, inside `computing`; None: single precision."""
        self.halvings = 0
        """How often the chunks of pictures were halved, for lack of memory."""

    @property
    def device(self) -> torch.device:
        """Where its parameters are, and so where it computes."""
        first = next(self.parameters(), None)
        return devices.CPU if first is None else first.device

    @property
    def fixed_sizes(self) -> bool:
        """Whether a training step also computes what counts for nothing: rays that miss the scene, and samples without
        weight. A CPU leaves them out. How many there are, a host would have to wait for a GPU to tell."""
        return self.device.type != "cpu"

    def computing(self) -> AbstractContextManager[Any]:
        """Around the evaluation of networks and tables, and nothing else: within it positions lose digits too."""
        if self.half_type is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.half_type)

    def chunk(self, rays: int) -> int:
        """How many rays of a picture to trace at once, where memory allows `rays`."""
        return max(rays >> self.halvings, 1)

    def halve_chunk(self) -> bool:
        """Render in smaller chunks from now on; False where they are small enough already."""
        if LEAST_CHUNK << self.halvings >= 1 << 16:
            return False
        self.halvings += 1
        devices.release(self.device)
        log.warning("Memory is short on %s: pictures are rendered in smaller chunks.", devices.title(self.device))
        return True

    def halve_batch(self) -> str | None:
        """Train with half the batch from now on: what it is then, in words; None where it is as small as it may be."""
        name, least = self.BATCH
        size = getattr(self.config, name) // 2
        if size < least:
            return None
        self.config = replace(self.config, **{name: size})
        self.forget_drawn()
        return f"{name} {size}"

    def forget_drawn(self) -> None:
        """Drop what was drawn ahead from the scene: it belongs to another state."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Method:
        # How `to` moves everything. What the host reads stays.
        stays = {name: self._buffers[name] for name in self.ON_HOST}
        super()._apply(fn, recurse)
        self._buffers.update(stays)
        return self

    def groups(self) -> list[Group]:
        """Every trainable parameter, once, with its learning rate and schedule."""
        raise TypeError(f"{type(self).__name__} must define groups()")

    def loss(self, scene: Scene, step: int, rng: Generator) -> dict[str, Tensor]:
        """Weighted loss terms of one batch. All randomness comes from `rng`, which the trainer seeds from the step."""
        raise TypeError(f"{type(self).__name__} must define loss()")

    def render(self, camera: Camera, background: Tensor | None = None, crop: Box | None = None) -> Image:
        """Picture from a single camera of any lens, without gradients, in bounded memory; see `picture`.

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
# in scene coordinates as [N, 3] float32, and answers come without gradients, where the points are (see `asked`).


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


# --- steps that can be recorded -------------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """What a step takes from the scene and from chance: all in which it differs from others of its kind."""

    kind: tuple[Any, ...]
    """What decides the shapes of its tensors, and which operations it takes; can be the key of a dict."""
    tensors: tuple[Tensor, ...]
    """On the method's device."""


@runtime_checkable
class Recordable(Protocol):
    """A method whose steps on a GPU can be recorded and launched again (see `recording`): `loss` in two parts."""

    stats: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """See `Method.device`."""

    def drawn(self, scene: Scene, step: int, rng: Generator) -> Drawn:
        """The inputs of a step."""

    def loss_of(self, drawn: Drawn) -> dict[str, Tensor]:
        """The loss terms of these inputs, by operations on the device alone that read nothing from the host but what
        `Drawn.kind` tells; random numbers, if there are any, come from a generator there, `chance`. Values of `stats`
        are tensors there, or the same for all steps of the kind."""
