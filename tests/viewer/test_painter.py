from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightfold.cameras import Camera, Lens
from lightfold.geometry import invert, look_at
from lightfold.methods.base import Image
from lightfold.render import shown_output
from lightfold.viewer.painter import Look, Painter, offsets, seen_from_same_place, sublattice


def wall(camera: Camera, look: Look | None = None) -> Image:
    """A method whose colour is a smooth function of the direction, so that every pixel can be checked."""
    rays = camera.rays(camera.pixel_grid())
    shape = (camera.height, camera.width)
    rgb = (0.5 + 0.5 * torch.sin(7 * rays.direction)).reshape(*shape, 3)
    along = rays.direction[:, 0].reshape(shape)
    return Image(rgb, torch.ones(shape), 2.0 + along, median_depth=3.0 + along)


def pose() -> Tensor:
    eye, target, up = torch.tensor([3.0, 1.0, 0.5]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])
    return invert(look_at(eye, target, up))


def look(width: int = 160, height: int = 120, **changes) -> Look:
    return Look(pose(), math.radians(50), width, height, **changes)


def test_sublattices_are_the_pixels_they_say() -> None:
    camera = look(37, 23).camera()
    whole = camera.rays(camera.pixel_grid()).direction.reshape(23, 37, 3)
    for column, row in offsets(4):
        part = sublattice(camera, 4, column, row)
        seen = part.rays(part.pixel_grid()).direction.reshape(part.height, part.width, 3)
        torch.testing.assert_close(seen, whole[row::4, column::4], atol=1e-5, rtol=0)


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16])
def test_the_first_offsets_make_coarser_lattices(stride: int) -> None:
    order = offsets(stride)
    assert len(set(order)) == len(order) == stride * stride
    count = 1
    while count <= stride:
        step = stride // count
        assert set(order[: count * count]) == {(x * step, y * step) for x in range(count) for y in range(count)}
        count *= 2


@pytest.mark.parametrize("rate", [1e3, 4e4, 1e9])
def test_a_resting_camera_gets_the_exact_picture(rate: float) -> None:
    """Whatever the speed, the last picture is the one that a single rendering gives."""
    painter = Painter(wall, rate=rate)
    painter._timed = lambda camera, look: wall(camera)  # type: ignore[method-assign]  # the rate stays as it is
    painter.want(look())
    shown = []
    while painter.waiting:
        picture = painter.paint()
        if picture is not None:
            shown.append(picture)
    expected = (wall(look().camera()).rgb * 255 + 0.5).to(torch.uint8).numpy()
    assert np.abs(shown[-1].astype(int) - expected.astype(int)).max() <= 1
    sizes = [picture.shape[0] * picture.shape[1] for picture in shown]
    assert sizes == sorted(sizes) and max(shown[0].shape) >= 48


@pytest.mark.parametrize("output", ["depth", "median_depth"])
def test_depths_are_painted_like_colours(output: str) -> None:
    painter, limits = Painter(wall, rate=4e4), (1.0, 4.0)
    painter.want(look(outputs=(output,), depth_limits=limits))
    pictures = []
    while painter.waiting:
        pictures.append(painter.paint())
    camera = look().camera()
    last = [picture for picture in pictures if picture is not None][-1]
    np.testing.assert_array_equal(last, shown_output(wall(camera), camera, output, limits))


def test_no_pixel_is_rendered_twice_while_refining() -> None:
    rendered = 0

    def counting(camera: Camera, look: Look) -> Image:
        nonlocal rendered
        rendered += camera.width * camera.height
        return wall(camera)

    painter = Painter(counting, rate=2e4)
    painter.want(look(161, 119))
    first = painter.paint()
    assert first is not None
    coarse = rendered
    while painter.waiting:
        painter.paint()
    assert rendered - coarse == 161 * 119


def test_a_moving_camera_is_shown_at_once_and_refined_only_when_it_rests() -> None:
    painter = Painter(wall, rate=2e4)
    painter._timed = lambda camera, look: wall(camera)  # type: ignore[method-assign]  # the rate stays as it is
    for _ in range(5):
        painter.want(look())
        picture = painter.paint()
        assert picture is not None and max(picture.shape) < 160
    painter.want(None)
    assert painter.paint() is None


def test_two_outputs_side_by_side() -> None:
    painter = Painter(wall, rate=1e9)
    painter.want(look(outputs=("rgb", "alpha"), divider=0.25))
    picture = painter.paint()
    assert picture is not None
    assert (picture[:, 41:] == 255).all() and not (picture[:, :39] == 255).all()


def test_a_photograph_seen_from_its_own_place() -> None:
    """Turning and zooming in the place of a photograph shows what the field shows there; elsewhere there is none."""
    taken = Camera(
        cam_from_world=look_at(torch.tensor([3.0, 1.0, 0.5]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])),
        intrinsics=torch.tensor([220.0, 220.0, 160.0, 120.0]),
        distortion=torch.tensor([-0.08, 0.01]),
        width=320,
        height=240,
        lens=Lens.RADIAL,
    )
    photo = wall(taken).rgb
    turned = look().world_from_cam.clone()
    turned[:, :3] = turned[:, :3] @ torch.linalg.matrix_exp(torch.tensor([[0, 0, 0.2], [0, 0, 0], [-0.2, 0, 0]]))
    camera = Look(turned, math.radians(25), 160, 120).camera()
    seen = seen_from_same_place(photo, taken, camera)
    assert seen is not None
    assert float((seen - wall(camera).rgb).abs().max()) < 0.02
    moved = turned.clone()
    moved[:, 3] += 0.1
    assert seen_from_same_place(photo, taken, Look(moved, 0.5, 160, 120).camera()) is None


def test_what_lies_outside_the_photograph_is_grey() -> None:
    taken = look(64, 64).camera()
    wide = Look(pose(), math.radians(120), 64, 64).camera()
    seen = seen_from_same_place(torch.ones(64, 64, 3), taken, wide)
    assert seen is not None
    assert float(seen[0, 0, 0]) == 0.5 and float(seen[32, 32, 0]) == 1.0
