"""Two eyes see what two eyes would: where points fall in their pictures, in pairs, all round and in the front half."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic_sphere import Sphere, camera_at, info_of, ring
from torch import Tensor

from lightfold.cameras import Camera, Lens
from lightfold.methods.base import Image
from lightfold.paths import levelled, orbit, template_camera
from lightfold.render import render_path, render_stills
from lightfold.spherical_video import Tags, read_tags
from lightfold.stereo import MONO, Viewing, beside, eyes

INFO = info_of([camera_at(eye, torch.zeros(3)) for eye in ring(8)])
PAIR = Viewing("side-by-side", 0.2)
POINTS = torch.tensor([[2.0, 0.3, 0.1], [-1.5, 1.0, -0.4], [0.9, -2.5, 0.8], [-1.0, -1.0, 0.2]])


class Dots:
    """A method that shows the points as black dots on white, so small that each darkens the pixels around it only."""

    info = INFO

    def render(self, camera: Camera, background: Tensor | None = None) -> Image:
        direction = torch.nn.functional.normalize(POINTS - camera.center, dim=1)
        pixels = camera.unproject(camera.pixel_grid()) @ camera.cam_from_world[:, :3]
        near = ((pixels @ direction.T).clamp(-1, 1).acos() / 0.06).square().mul(-1).exp().amax(dim=1)
        shape = (camera.height, camera.width)
        grey = (1 - near).reshape(*shape, 1).expand(*shape, 3)
        return Image(grey, near.reshape(shape), near.reshape(shape))


def panorama(height: int = 64) -> Camera:
    """In the middle, its x along the world's x, its y down, so that it looks along the world's y."""
    pose = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0]])
    return Camera.panorama(pose, 2 * height, height)


def directions(picture: Tensor, points: int) -> Tensor:
    """Longitude and latitude [N, 2] of the darkest spots of an equirectangular picture, found one after the other."""
    height, width = picture.shape
    dark = 1 - picture
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    found = []
    for _ in range(points):
        at = int(dark.argmax())
        close = (rows - at // width - 0.5).abs().maximum((columns - at % width - 0.5).abs()) <= 6
        weight = dark * close
        x, y = (weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()
        found.append([(x / width - 0.5) * 2 * math.pi, (y / height - 0.5) * math.pi])
        dark = dark * ~close
    return torch.tensor(found)


def test_the_eyes_of_a_pair_stand_beside_each_other() -> None:
    camera = INFO.cameras[0]
    (left, left_camera), (right, right_camera) = eyes(Dots(), camera, PAIR)  # type: ignore[arg-type]
    apart = right_camera.center - left_camera.center
    assert torch.allclose(apart, 0.2 * camera.world_from_cam[:, 0], atol=1e-6)
    assert torch.allclose(0.5 * (right_camera.center + left_camera.center), camera.center, atol=1e-6)
    # A point straight ahead lies further right for the left eye, by focal length times eye distance over depth.
    point = camera.center + 2.0 * camera.forward
    shift = left_camera.project(point[None])[0] - right_camera.project(point[None])[0]
    assert torch.allclose(shift, torch.tensor([[40 * 0.2 / 2, 0.0]]), atol=1e-3)
    assert not torch.equal(left.rgb, right.rgb)
    assert torch.equal(beside(camera, 0.0).cam_from_world, camera.cam_from_world)


def test_one_eye_is_the_plain_picture() -> None:
    ((image, camera),) = eyes(Sphere(INFO), INFO.cameras[0], MONO)  # type: ignore[arg-type]
    assert camera is INFO.cameras[0]
    assert torch.equal(image.rgb, Sphere(INFO).render(camera).rgb)


def test_all_round_each_eye_sees_a_point_from_beside_the_middle() -> None:
    """The eye that looks at a point stands where its circle's tangent to the point touches: by asin(offset / distance)
    beside its direction from the middle, in the plane of the horizon."""
    pair = eyes(Dots(), panorama(), Viewing("top-bottom", 0.4))  # type: ignore[arg-type]
    for (image, _), offset in zip(pair, (-0.2, 0.2), strict=True):
        seen = directions(image.rgb[..., 0], len(POINTS))
        away = POINTS[:, :2].norm(dim=1)
        longitude = torch.atan2(POINTS[:, 0], POINTS[:, 1]) - torch.asin(offset / away)
        latitude = torch.atan2(-POINTS[:, 2], (away.square() - offset**2).sqrt())
        expected = torch.stack([longitude, latitude], dim=1)
        difference = (seen[:, None] - expected).norm(dim=2)
        assert difference.amin(dim=0).max() < 0.015


def test_without_a_distance_columns_are_those_of_the_panorama() -> None:
    camera = panorama()
    whole = Dots().render(camera).rgb
    ((front, _),) = eyes(Dots(), camera, Viewing(half=True))  # type: ignore[arg-type]
    assert torch.allclose(front.rgb[:, 32:96], whole[:, 32:96], atol=1e-4)
    assert not front.rgb[:, :32].any() and not front.rgb[:, 96:].any()
    shown = Viewing(half=True).packed([front.rgb.numpy()])
    assert np.allclose(shown, whole[:, 32:96].numpy(), atol=1e-4)


def test_all_columns_have_one_near_plane_and_the_method_stays_as_it_was() -> None:
    points = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    info = info_of(list(INFO.cameras), bounded=False, points=points, view_near=tuple(0.1 + 0.1 * i for i in range(8)))
    near = []

    class Asking(Sphere):
        def render(self, camera: Camera, background: Tensor | None = None) -> Image:
            near.append(self.info.near_for(camera))
            return super().render(camera, background)

    method = Asking(info)
    eyes(method, panorama(8), PAIR)  # type: ignore[arg-type]
    assert set(near) == {info.near_for(panorama(8))} and len(near) == 32
    assert method.info is info


def test_frames_hold_the_left_eye_first() -> None:
    left, right = np.zeros((2, 4, 3)), np.ones((2, 4, 3))
    assert PAIR.packed([left, right]).shape == (2, 8, 3)
    assert PAIR.packed([left, right])[:, :4].max() == 0
    assert Viewing("top-bottom", 1.0).packed([left, right])[:2].max() == 0
    assert Viewing("top-bottom", 1.0, half=True).packed([left, right]).shape == (4, 2, 3)
    assert MONO.packed([left]) is not None and np.array_equal(MONO.packed([left]), left)


def test_mistakes_of_programmers_are_named() -> None:
    with pytest.raises(ValueError, match="layout"):
        Viewing("crossed", 1.0)
    with pytest.raises(ValueError, match="eye_distance"):
        Viewing("top-bottom")
    with pytest.raises(ValueError, match="half"):
        eyes(Sphere(INFO), INFO.cameras[0], Viewing(half=True))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("viewing", "lens", "size", "tags"),
    [
        (PAIR, Lens.PINHOLE, (96, 36), Tags("side-by-side")),
        (Viewing("top-bottom", 0.1), Lens.PINHOLE, (48, 72), Tags("top-bottom")),
        (MONO, Lens.PINHOLE, (48, 36), None),
        (MONO, Lens.EQUIRECTANGULAR, (64, 32), Tags("mono", (0.0, 0.0, 0.0, 0.0))),
        (Viewing("top-bottom", 0.1), Lens.EQUIRECTANGULAR, (64, 64), Tags("top-bottom", (0.0, 0.0, 0.0, 0.0))),
        (Viewing("side-by-side", 0.1, True), Lens.EQUIRECTANGULAR, (64, 32), Tags("side-by-side", (0, 0, 0.25, 0.25))),
    ],
)
def test_videos_have_the_size_and_the_tags(
    viewing: Viewing, lens: Lens, size: tuple[int, int], tags: Tags | None, tmp_path: Path
) -> None:
    import av

    template = template_camera(INFO, (64, 32) if lens is Lens.EQUIRECTANGULAR else None, lens)
    cameras = levelled(orbit(INFO, 2, template))
    for output in ("rgb", "normal"):
        method = Sphere(INFO, with_normals=False)
        result = render_path(method, cameras, tmp_path / f"{output}.mp4", outputs=(output,), viewing=viewing)  # type: ignore[arg-type]
        with av.open(str(result.files[0])) as container:
            stream = container.streams.video[0]
            assert (stream.width, stream.height, sum(1 for _ in container.decode(stream))) == (*size, 2)
        assert read_tags(result.files[0]) == tags
    # Several outputs in one frame are no panorama that a player could show.
    both = render_path(Sphere(INFO), cameras, tmp_path / "both.mp4", outputs=("rgb", "alpha"))  # type: ignore[arg-type]
    assert read_tags(both.files[0]) is None


def test_stills_hold_both_eyes_and_depth_in_numbers(tmp_path: Path) -> None:
    result = render_stills(
        Sphere(INFO),  # type: ignore[arg-type]
        INFO.cameras[0],
        tmp_path,
        outputs=("rgb", "depth"),
        depth_as="npy",
        viewing=PAIR,
    )
    depth = np.load(result.files[1])
    assert depth.shape == (36, 96)
    left = Sphere(INFO).render(beside(INFO.cameras[0], -0.1))
    assert np.allclose(depth[:, :48], 2 * torch.where(left.alpha > 0.5, left.depth, 0.0).numpy(), atol=1e-5)


def test_levelled_cameras_turn_about_the_vertical_only() -> None:
    down = camera_at(torch.tensor([2.0, 0.0, 3.0]), torch.zeros(3))
    below = Camera.stack([down, *(INFO.cameras[i] for i in range(3))])
    level = levelled(below)
    assert torch.allclose(level.center, below.center, atol=1e-6)
    axes = level.world_from_cam[:, :, :3]
    assert torch.allclose(axes[:, :, 1], torch.tensor([0.0, 0.0, -1.0]).expand(4, 3), atol=1e-6)
    heading = torch.nn.functional.normalize(below.world_from_cam[:, :2, 2], dim=1)
    assert torch.allclose(axes[:, :2, 2], heading, atol=1e-6)
    # Straight down: what was above in the picture is ahead.
    straight = Camera.panorama(torch.tensor([[[0.0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, -1, 0]]]), 8, 4)
    assert torch.allclose(levelled(straight).world_from_cam[0, :, 2], torch.tensor([1.0, 0.0, 0.0]), atol=1e-6)
