"""Modules that methods share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

from . import devices
from .cameras import Camera
from .ops.march import cell_centres, grid_decay_, grid_raise_

if TYPE_CHECKING:
    from .scene import Scene, SceneInfo


class _BoundedExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        y = torch.exp(x.clamp(max=11.0))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, upstream: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return upstream * y


def bounded_exp(x: Tensor) -> Tensor:
    """exp(x), bounded: beyond e^11 per scene unit all matter looks alike, and infinity times zero would follow. The
    slope is that of the bound there, not zero, so that matter can thin again."""
    return _BoundedExp.apply(x)


def layers(*widths: int) -> nn.ParameterList:
    """Weights for `ops.mlp`, with the spread that keeps activations alive through ReLUs (Glorot uniform)."""
    weights = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        bound = (6.0 / (inputs + outputs)) ** 0.5
        weights.append(nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound)))
    return nn.ParameterList(weights)


class OccupancyGrid(nn.Module):
    """Which cells of the scene may hold something: a pyramid of bits (see `ops.march`), kept up to date by training.

    A cell is occupied while the densest value seen in it, times the cell's width, reaches `thickness`. Training
    samples raise those values for free; `update` lets them decay, probes random cells, and strikes off what has
    faded. Cells that fewer than two cameras see are never occupied: nothing there can be triangulated, and that is
    where floaters grow.
    """

    bits: Tensor
    peak: Tensor
    allowed: Tensor
    threshold: Tensor

    DECAY = 0.95
    GRACE = 30
    """Updates that a cell survives at the start without a single sample dense enough."""

    def __init__(self, info: SceneInfo, size: int, cascades: int, thickness: float) -> None:
        super().__init__()
        self.size = size
        self.cascades = cascades if not info.bounded else 1
        width = 2.0 / size * 2.0 ** torch.arange(self.cascades, dtype=torch.float32)
        allowed = seen_cells(info, size, self.cascades)
        self.register_buffer("threshold", thickness / width, persistent=False)
        self.register_buffer("allowed", allowed)
        self.register_buffer("bits", allowed.clone())
        start = self.threshold / self.DECAY**self.GRACE
        self.register_buffer("peak", start.repeat_interleave(size**3))

    @property
    def fraction(self) -> float:
        """Share of the cells that are occupied, of those that are allowed."""
        return _count(self.bits) / max(_count(self.allowed), 1)

    def update(self, density: Callable[[Tensor], Tensor], probes: int, rng: Generator) -> None:
        """Decay, strike off, and look for new matter at `probes` random points: half of them anywhere, as matter may
        be, and half in and around the blocks that hold some, where most of it is.

        `density` maps points [N, 3] of the scene to density [N].
        """
        grid_decay_(self.bits, self.peak, self.cascades, self.size, self.DECAY, self.threshold)
        anywhere = devices.sent(self._anywhere(probes - probes // 2, rng), self.bits.device)
        points = torch.cat([anywhere, self._around_matter(probes // 2, rng)])
        grid_raise_(
            self.bits, self.peak, self.allowed, self.cascades, self.size, points, density(points), self.threshold
        )

    def _anywhere(self, count: int, rng: Generator) -> Tensor:
        half = 2.0 ** torch.randint(self.cascades, (count, 1), generator=rng).float()
        return (torch.rand(count, 3, generator=rng) * 2 - 1) * half

    def _around_matter(self, count: int, rng: Generator) -> Tensor:
        device = self.bits.device
        share = devices.sent(torch.rand(count, generator=rng), device)
        if device.type == "cpu":
            words = self.bits.nonzero()[:, 0]
            if not len(words):
                return self._anywhere(count, rng)
            word = words[(share * len(words)).long()]
        else:  # The host does not wait for how many words there are. Where there is none, this finds the last.
            end = (self.bits != 0).cumsum(0)
            word = torch.searchsorted(end, (share * end[-1]).long(), right=True).clamp(max=len(self.bits) - 1)
        blocks = self.size // 4
        scale = 2.0 ** (word // blocks**3).float()[:, None]
        corner = torch.stack([word % blocks, word // blocks % blocks, word // blocks**2 % blocks], dim=1).float()
        # A block of four cells and a rim of one.
        within = devices.sent((torch.rand(count, 3, generator=rng) * 6 - 1) / 4, device)
        return ((corner + within) / blocks * 2 - 1) * scale

    def carve(self, scene: Scene) -> None:
        """Forbid, for good, the blocks outside the visual hull of the training views' opacity."""
        for k in range(self.cascades):
            words = slice(k * self.size**3 // 64, (k + 1) * self.size**3 // 64)
            inside = in_hull(scene, block_centres(k, self.size), 4.0 * 2.0**k / self.size * 3**0.5)
            inside = inside.to(self.bits.device)
            self.allowed[words] *= inside
            self.bits[words] *= inside


def _count(bits: Tensor) -> int:
    weights = bits.cpu().view(torch.uint8)
    return int(_ONES[weights.long()].sum())


_ONES = torch.tensor([bin(i).count("1") for i in range(256)])


def block_centres(cascade: int, size: int) -> Tensor:
    """Centres of a cascade's 4x4x4 blocks, in the order of their words: [(G/4)^3, 3]."""
    return cell_centres(cascade, size).reshape(-1, 64, 3).mean(dim=1)


def seen_cells(info: SceneInfo, size: int, cascades: int) -> Tensor:
    """Bits of the blocks that at least two training cameras see (one, where there are fewer than four cameras)."""
    cameras = [info.cameras[i] for i in info.train]
    # Beyond a hundred views the rest add little: an even choice of them decides.
    step = max(1, len(cameras) // 100)
    chosen = list(zip(cameras, [info.view_near[i] for i in info.train], strict=True))[::step]
    needed = 2 if len(chosen) >= 4 else 1
    words = []
    for k in range(cascades):
        centres = block_centres(k, size)
        radius = 4.0 * 2.0**k / size * 3**0.5
        seen = torch.zeros(centres.shape[0], dtype=torch.int32)
        for camera, near in chosen:
            seen += sees(camera, near, centres, radius).int()
        words.append(torch.where(seen >= needed, -1, 0))
    return torch.cat(words)


def sees(camera: Camera, near: float, centres: Tensor, radius: float) -> Tensor:
    """Whether any of a ball around each centre [N, 3] may fall into the picture, behind the near plane: bool [N]."""
    xy, valid = camera.project(centres.to(camera.cam_from_world.dtype))
    distance = (centres - camera.center.float()).norm(dim=1)
    margin = image_radius(camera, centres, distance, radius)
    x, y = xy[:, 0].float(), xy[:, 1].float()
    inside = (x > -margin) & (x < camera.width + margin) & (y > -margin) & (y < camera.height + margin)
    return ((inside & valid) | (distance < 2 * radius)) & (distance + radius > near)


def image_radius(camera: Camera, centres: Tensor, distance: Tensor, radius: float) -> Tensor:
    """Pixels [N] within which balls around centres [N, 3] fall from the centres' images.

    A ball of angular radius phi at an angle theta off a perspective lens's axis reaches out to f tan(theta + phi);
    other lenses stretch less. A camera inside a ball may see it everywhere.
    """
    cosine = (centres - camera.center.float()) @ camera.forward.float() / distance.clamp(min=1e-9)
    theta = cosine.clamp(0.0, 1.0).acos()
    phi = (radius / distance.clamp(min=radius)).asin()
    return camera.intrinsics[..., :2].float().amax() * (
        (theta + phi).clamp(max=1.55).tan() - theta.clamp(max=1.5).tan()
    )


def in_hull(scene: Scene, centres: Tensor, radius: float) -> Tensor:
    """Whether no training view shows pure transparency all over a ball around each centre [N, 3]: bool [N].

    Where a picture is transparent there is nothing along the ray. Balls that leave a picture are not judged by it.
    """
    inside = torch.ones(len(centres), dtype=torch.bool)
    views = scene.info.train
    for index in views[:: max(1, len(views) // 60)]:
        view = scene.view(index)
        camera, alive = view.camera, inside.nonzero()[:, 0]
        xy, valid = camera.project(centres[alive].to(camera.cam_from_world.dtype))
        distance = (centres[alive] - camera.center.float()).norm(dim=1)
        margin = image_radius(camera, centres[alive], distance, radius)
        x, y = xy[:, 0].float(), xy[:, 1].float()
        whole = (x > margin) & (x < camera.width - margin) & (y > margin) & (y < camera.height - margin) & valid
        # Sums over squares by an integral image: exact for any margin, and as cheap for large ones.
        opaque = ((view.alpha > 0) | ~view.mask).double().cumsum(0).cumsum(1)
        opaque = torch.nn.functional.pad(opaque, (1, 0, 1, 0))
        left, right = (x - margin).long().clamp(0, camera.width), (x + margin).long().clamp(0, camera.width - 1) + 1
        top, bottom = (y - margin).long().clamp(0, camera.height), (y + margin).long().clamp(0, camera.height - 1) + 1
        shown = opaque[bottom, right] - opaque[top, right] - opaque[bottom, left] + opaque[top, left]
        inside[alive[whole & (shown <= 0)]] = False
    return inside
