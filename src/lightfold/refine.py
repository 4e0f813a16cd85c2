"""What a method may learn about the photographs beside the scene: where each camera really stood, and how it exposed.

Poses from structure from motion are good to a fraction of a pixel at best; those of a phone's tracker to several. A
field trained on wrong poses blurs. But its pictures can be differentiated with respect to the rays, so the poses can be
trained too, as small corrections. And a camera that sets its own exposure gives one surface several colours; a short
code per photograph, which the colour network sees, absorbs that. Any method that takes its rays from `Pixels.rays` can
use both: `PoseRefinement.rays` between the batch and the field, `AppearanceCodes.of` beside the view direction.

What nobody can know is where the whole reconstruction lies: field and cameras may move together without any picture
changing (the gauge). The penalty keeps the corrections small, and `given_from_refined` takes out what they share before
they are compared with anything.

Scores on held-out photographs then need care: those have poses and exposures of their own, which no training has
corrected. `refine_view` fits both to one photograph while the scene stays as it is.

Source: Lin et al., "BARF: Bundle-Adjusting Neural Radiance Fields", ICCV 2021 (poses, and their refinement at test
time); Martin-Brualla et al., "NeRF in the Wild", CVPR 2021 (codes); Tancik et al., "Nerfstudio", SIGGRAPH 2023 (SO(3) x
R^3 beside SE(3), the penalty).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .cameras import Camera
from .geometry import Similarity, se3_exp, so3_exp, so3_log
from .optim import Adam, Group, Schedule, constant, exponential_after
from .rays import Box, Rays

if TYPE_CHECKING:
    from .scene import SceneInfo, View

MANIFOLDS = ("so3xr3", "se3")


class PoseRefinement(nn.Module):
    """A correction of each camera's pose: six numbers per view, all zero at the start, when it changes nothing exactly.

    The correction turns a camera about its own centre and moves it, both along the axes of the world:

        x' = R (x - c) + c + t        for everything that is fixed to the camera, its rays included

    "so3xr3": R = exp(omega), t = tau. Turning and moving are independent. "se3": (R, t) = exp((rho, omega)), a screw
    motion; the two differ at second order, and describe the same set of corrections.
    """

    centre: Tensor
    _trained: Tensor
    _gauge: Tensor | None

    def __init__(
        self, cameras: Sequence[Camera], manifold: str = "so3xr3", trained: Sequence[int] | None = None
    ) -> None:
        """A correction for each of these cameras, in whose order `Rays.view` counts. trained: those whose pictures are
        trained on; None: all."""
        super().__init__()
        if manifold not in MANIFOLDS:
            raise ValueError(f"manifold: expected one of {', '.join(MANIFOLDS)}, got '{manifold}'")
        self.manifold = manifold
        self.cameras = tuple(cameras)
        self.tangent = nn.Parameter(torch.zeros(len(cameras), 6))
        """[V, 6] translation part first, scene units and radians. Rows of views nobody trains on stay zero."""
        centre = [camera.center.float() for camera in cameras]
        self.register_buffer("centre", torch.stack(centre) if centre else torch.zeros(0, 3), persistent=False)
        rows = torch.tensor(range(len(cameras)) if trained is None else trained, dtype=torch.int64)
        self.register_buffer("_trained", rows, persistent=False)
        self.register_buffer("_gauge", _gauge(self.centre[rows]) if len(rows) > 2 else None, persistent=False)

    def motion(self) -> tuple[Tensor, Tensor]:
        """R [V, 3, 3] and t [V, 3] of every view's correction."""
        if self.manifold == "se3":
            moved = se3_exp(self.tangent)
            return moved[..., :3], moved[..., 3]
        return so3_exp(self.tangent[:, 3:]), self.tangent[:, :3]

    def rays(self, rays: Rays) -> Rays:
        """The rays of the corrected cameras, differentiable with respect to the corrections. Rays of no known view
        (`view` -1) stay as they are."""
        # A last row that changes nothing: where an index of -1 leads.
        rotation, shift = self.motion()
        rotation = torch.cat([rotation, torch.eye(3, device=rotation.device)[None]])
        shift = torch.cat([shift, torch.zeros(1, 3, device=shift.device)])
        centre = torch.cat([self.centre, torch.zeros(1, 3, device=shift.device)])
        row = rays.view.remainder(len(shift))
        turn, about = rotation.index_select(0, row), centre.index_select(0, row)
        direction = (turn * rays.direction[:, None]).sum(-1)
        # The rays of a perspective lens start at the centre, and only those of an orthographic one swing about it.
        arm = rays.origin - about
        origin = rays.origin + shift.index_select(0, row) + ((turn * arm[:, None]).sum(-1) - arm)
        return replace(rays, origin=origin, direction=direction)

    @torch.no_grad()
    def camera(self, index: int) -> Camera:
        """The corrected camera of a view, with everything but the pose as given."""
        rotation, shift = (part[index].cpu().double() for part in self.motion())
        given = self.cameras[index]
        pose = given.cam_from_world.double()
        turned = pose[:, :3] @ rotation.mT
        moved = torch.cat([turned, -(turned @ (given.center.double() + shift))[:, None]], dim=-1)
        return replace(given, cam_from_world=moved.to(given.cam_from_world.dtype))

    @torch.no_grad()
    def hold_gauge(self) -> None:
        """Take out of the corrections what they have in common: a shift, a turn about their middle, and a scale.

        Colours cannot tell these, so nothing that the photographs say is lost. But whatever else is in a loss can pull
        at them, in all cameras at once and the same way at every step: the distortion loss gains by a smaller scene.
        Cameras that wander off together leave a field behind that follows them, and blurs.
        """
        if self._gauge is not None:
            moved = self.tangent.index_select(0, self._trained).reshape(-1)
            kept = moved - self._gauge @ (self._gauge.T @ moved)
            self.tangent.index_copy_(0, self._trained, kept.view(-1, 6))

    def penalty(self, shift: float = 1e-2, turn: float = 1e-3) -> Tensor:
        """The weighted mean squares of shifts (scene units) and turns (radians): holds the gauge, and views whose
        pictures say little about their pose, near where they were given."""
        squares = self.tangent.square().mean(0)
        return shift * squares[:3].sum() + turn * squares[3:].sum()

    def group(self, lr: float, final: float = 0.01) -> Group:
        """The corrections for the optimiser, whose learning rate falls exponentially to `final` times `lr`."""
        return Group("poses", [self.tangent], lr, schedule=exponential_after(0.0, final))


def _gauge(centre: Tensor) -> Tensor:
    """[6 V, 7] corrections of V cameras that move all of them together, to first order and orthonormal: three shifts,
    three turns about the middle of the centres [V, 3], and a scale from there."""
    arm = centre.double() - centre.double().mean(0)
    axes = torch.eye(3, dtype=torch.float64)
    modes = [torch.cat([axis.expand_as(arm), torch.zeros_like(arm)], dim=1) for axis in axes]
    modes += [torch.cat([torch.linalg.cross(axis.expand_as(arm), arm), axis.expand_as(arm)], dim=1) for axis in axes]
    modes.append(torch.cat([arm, torch.zeros_like(arm)], dim=1))
    flat = torch.stack([mode.reshape(-1) for mode in modes], dim=1)
    # Cameras in one place have no scale, and a column of nothing.
    basis, size, _ = torch.linalg.svd(flat / flat.norm(dim=0).clamp(min=1e-9), full_matrices=False)
    return basis[:, size > 1e-6].to(centre.dtype)


def given_from_refined(given: Sequence[Camera], refined: Sequence[Camera]) -> Similarity:
    """The similarity that moves refined cameras, all together, as close to the given ones as it can.

    Its rotation is the best over the cameras' axes (the orthogonal Procrustes problem), which is determined even where
    the centres lie on a line; scale and translation are the best over the centres. What is left after it are the true
    corrections; it is the part that no photograph can tell, and a field trained with `refined` moves with it.
    """
    turn = sum(
        r.cam_from_world[:, :3].double().mT @ g.cam_from_world[:, :3].double() for g, r in _pairs(given, refined)
    )
    # given_axes = refined_axes Q^T for the rotation Q of the world, so Q^T is the closest rotation to the sum.
    u, _, vh = torch.linalg.svd(torch.as_tensor(turn))
    flip = torch.diag(torch.tensor([1.0, 1.0, torch.linalg.det(u @ vh).sign()], dtype=torch.float64))
    rotation = (u @ flip @ vh).mT
    to = torch.stack([camera.center.double() for camera in given])
    start = torch.stack([camera.center.double() for camera in refined])
    spread, wanted = (start - start.mean(0)) @ rotation.T, to - to.mean(0)
    square = float(spread.square().sum())
    scale = float((spread * wanted).sum()) / square if square > 1e-12 else 1.0
    scale = scale if scale > 1e-6 else 1.0
    return Similarity(scale, rotation, to.mean(0) - scale * (rotation @ start.mean(0)))


def corrections(given: Sequence[Camera], refined: Sequence[Camera]) -> tuple[Tensor, Tensor]:
    """By how much each camera was turned [V] (radians) and moved [V] (scene units), without what all have in common."""
    common = given_from_refined(given, refined)
    pairs = _pairs(given, [camera.transformed(common) for camera in refined])
    turned = [so3_log(r.cam_from_world[:, :3].double().mT @ g.cam_from_world[:, :3].double()).norm() for g, r in pairs]
    return torch.stack(turned), torch.stack([(r.center.double() - g.center.double()).norm() for g, r in pairs])


class OfScene(Protocol):
    """Whatever was made for a scene, as every method is."""

    info: SceneInfo


def refined_cameras(method: OfScene) -> tuple[Camera, ...]:
    """All views' cameras as the method's field has them: training views corrected, the others as given.

    They fit whatever is exported of the field. A method without pose refinement returns the cameras it was given.
    """
    poses = getattr(method, "poses", None)
    if not isinstance(poses, PoseRefinement):
        return method.info.cameras
    return tuple(poses.camera(i) for i in range(len(method.info.cameras)))


class AppearanceCodes(nn.Module):
    """A short code per training photograph, for its exposure, white balance and weather; all zero at the start.

    A picture that was not trained on is shown with the mean of the training codes: the look of an average photograph.
    """

    row: Tensor

    def __init__(self, info: SceneInfo, width: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.zeros(len(info.train), width))
        """[T, width] in the order of `info.train`."""
        # Views nobody trained on, and -1 at the end, lead to the row after the last.
        row = torch.full((len(info.cameras) + 1,), len(info.train))
        row[list(info.train)] = torch.arange(len(info.train))
        self.register_buffer("row", row, persistent=False)

    def of(self, view: Tensor) -> Tensor:
        """Codes [R, width] of views [R], as `Rays.view` counts them."""
        known = torch.cat([self.codes, self.novel()[None]])
        return known.index_select(0, self.row[view.remainder(len(self.row))])

    def novel(self) -> Tensor:
        """[width] the code of a picture that was not trained on."""
        return self.codes.mean(0)

    def group(self, lr: float, schedule: Schedule = constant) -> Group:
        """The codes for the optimiser."""
        return Group("codes", [self.codes], lr, schedule=schedule)


# ---------------------------------------------------------------------------------------------- one held-out photograph


@runtime_checkable
class HasColours(Protocol):
    """A method whose pictures can be differentiated with respect to the rays: what `refine_view` needs."""

    info: SceneInfo

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """As every module's."""

    def colours(self, rays: Rays, code: Tensor | None, background: Tensor) -> Tensor:
        """Colours [R, 3] of rays over a background [3], with an appearance code [A]; None: that of novel views."""

    def novel_code(self) -> Tensor | None:
        """[A] the appearance of pictures that were not trained on; None where the method has no codes."""

    def render(
        self, camera: Camera, background: Tensor | None = None, crop: Box | None = None, code: Tensor | None = None
    ) -> Any:
        """As every method's, with an appearance code [A]; None: that of novel views."""


@dataclass(frozen=True)
class ViewFit:
    """How `refine_view` fits one photograph."""

    pose: bool = True
    appearance: bool = True
    steps: int = 200
    rays: int = 1024
    """Pixels drawn per step."""
    pose_lr: float = 2e-3
    code_lr: float = 2e-2
    final: float = 0.05
    """Both learning rates end at this share of their start."""

    def told(self) -> str:
        """One sentence for a protocol."""
        what = " and ".join(name for name, on in (("pose", self.pose), ("appearance code", self.appearance)) if on)
        return (
            f"each view's {what} was fitted to that view's own pixels ({self.steps} steps of {self.rays} pixels), "
            "everything else frozen; not comparable with scores on given poses"
        )


def refine_view(
    method: object, view: View, background: Tensor, fit: ViewFit, seed: int = 0
) -> tuple[Camera, Tensor | None]:
    """The pose and the appearance code with which a trained method shows this photograph best.

    Only they are trained; the method's parameters neither move nor collect gradients.

    Args:
        background: [3] behind the photograph and the picture.
        seed: draws the pixels.

    Returns:
        the camera, as given unless `fit.pose`; and the code, None unless `fit.appearance` and the method has codes.

    Raises:
        ValueError: the method's pictures cannot be differentiated.
    """
    if not isinstance(method, HasColours):
        raise ValueError(f"method: expected one that has colours() and novel_code(), got {type(method).__name__}")
    pose = PoseRefinement([view.camera])
    start = method.novel_code() if fit.appearance else None
    code = None if start is None else nn.Parameter(start.detach().clone())
    decay = exponential_after(0.0, fit.final)
    groups = [pose.group(fit.pose_lr, fit.final)] if fit.pose else []
    if code is not None:
        groups.append(Group("code", [code], fit.code_lr, schedule=decay))
    pixels = torch.nonzero(view.mask.reshape(-1))[:, 0]
    if not groups or not len(pixels):
        return view.camera, code
    truth = view.rgb * view.alpha[..., None] + background * (1 - view.alpha[..., None])
    truth, grid = truth.reshape(-1, 3), view.camera.pixel_grid()
    near = method.info.near_for(view.camera)
    rng, optim = torch.Generator().manual_seed(seed), Adam(groups)
    trained = [p for p in method.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        for step in range(fit.steps):
            chosen = pixels[torch.randint(len(pixels), (fit.rays,), generator=rng)]
            rays = view.camera.rays(grid[chosen], near, method.info.far)
            rays = replace(rays.to(torch.float32), view=torch.zeros(len(rays), dtype=torch.int64))
            moved = replace(pose.rays(rays), view=torch.full((len(rays),), -1))
            error = (method.colours(moved, code, background) - truth[chosen]).square().mean()
            if error.requires_grad and math.isfinite(float(error.detach())):
                error.backward()
                optim.step(step / fit.steps)
            optim.zero_grad()
    finally:
        for p in trained:
            p.requires_grad_(True)
    return pose.camera(0), None if code is None else code.detach()


def _pairs(given: Sequence[Camera], refined: Sequence[Camera]) -> list[tuple[Camera, Camera]]:
    if len(given) != len(refined) or not given:
        raise ValueError(f"refined: expected as many cameras as given, at least one; got {len(refined)}, {len(given)}")
    return list(zip(given, refined, strict=True))
