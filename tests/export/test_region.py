"""The sphere of interest: about the object and not the table, from points or silhouettes, and never past a camera."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightfold.cameras import Camera, Lens
from lightfold.capture import Capture, Frame, Points
from lightfold.export.region import Sphere, sphere_of_interest
from lightfold.geometry import Similarity, look_at

CENTRE = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
SIDE = 60
RADIUS = 0.4


def cameras_around(count: int = 16, distance: float = 3.0) -> list[Camera]:
    cameras = []
    for i in range(count):
        angle = 2 * math.pi * i / count
        eye = CENTRE + distance * torch.tensor([math.cos(angle), math.sin(angle), 0.4], dtype=torch.float64)
        pose = look_at(eye, CENTRE, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
        intrinsics = torch.tensor([90.0, 90.0, SIDE / 2, SIDE / 2], dtype=torch.float64)
        cameras.append(Camera(pose, intrinsics, torch.zeros(0), SIDE, SIDE, Lens.PINHOLE))
    return cameras


def capture_of(folder: Path, masks: bool = False, alpha: bool = False) -> Capture:
    """Pictures of a ball about CENTRE, whose outline is a mask or the alpha channel."""
    frames = []
    for i, camera in enumerate(cameras_around()):
        away = CENTRE - camera.center
        ray = camera.unproject(camera.pixel_grid()) @ camera.cam_from_world[:, :3]
        off = (away - (ray @ away)[:, None] * ray).norm(dim=1)
        outline = (255 * (off <= RADIUS)).reshape(SIDE, SIDE).to(torch.uint8).numpy()
        path, mask = folder / f"{i}.png", folder / f"{i}m.png"
        Image.fromarray(np.dstack([outline] * 4) if alpha else np.dstack([outline] * 3)).save(path)
        Image.fromarray(outline).save(mask)
        frames.append(Frame(path, camera, f"{i}.png", mask=mask if masks else None))
    return Capture(folder, "transforms", tuple(frames))


def on_ball(count: int, radius: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return CENTRE + radius * torch.nn.functional.normalize(
        torch.randn(count, 3, dtype=torch.float64, generator=generator), dim=1
    )


def test_the_object_counts_and_walls_and_stragglers_do_not(tmp_path: Path) -> None:
    walls, stragglers = on_ball(300, 9.0), on_ball(6, 1.1)
    points = Points(torch.cat([on_ball(500, RADIUS), walls, stragglers]))
    sphere = sphere_of_interest(capture_of(tmp_path), points)
    assert float((sphere.centre - CENTRE).norm()) < 0.1
    assert RADIUS < sphere.radius < 1.6 * RADIUS
    assert "most pictures show" in sphere.source and sphere.camera_distance == pytest.approx(3.23, abs=0.1)


@pytest.mark.parametrize("kind", ["masks", "alpha"])
def test_silhouettes_decide_where_there_are_any(kind: str, tmp_path: Path) -> None:
    points = Points(torch.cat([on_ball(300, 9.0), on_ball(300, 1.5)]))
    sphere = sphere_of_interest(capture_of(tmp_path, **{kind: True}), points)
    assert "silhouettes" in sphere.source
    assert float((sphere.centre - CENTRE).norm()) < 0.1 and RADIUS < sphere.radius < 1.8 * RADIUS


def test_no_sphere_reaches_a_camera(tmp_path: Path) -> None:
    for points in (None, Points(on_ball(500, 2.9)), Points(on_ball(10, 0.3))):
        sphere = sphere_of_interest(capture_of(tmp_path), points)
        nearest = min(float((camera.center - sphere.centre).norm()) for camera in cameras_around())
        assert 0 < sphere.radius < nearest


def test_a_box_overrules_and_a_stated_one_holds_all(tmp_path: Path) -> None:
    capture = capture_of(tmp_path)
    box = torch.tensor([[1.0, -1.0, 0.0], [2.0, 0.0, 1.0]], dtype=torch.float64)
    sphere = sphere_of_interest(capture, Points(on_ball(500, RADIUS)), box)
    assert sphere.centre.tolist() == [1.5, -0.5, 0.5] and sphere.radius == pytest.approx(math.sqrt(0.75))
    stated = sphere_of_interest(replace(capture, bounds=box), None)
    assert stated.radius == pytest.approx(math.sqrt(0.75))
    # NeuS's reader puts the box about the sphere.
    assert sphere_of_interest(replace(capture, bounds=box, format="neus"), None).radius == pytest.approx(0.5)


def test_a_sphere_moves_with_its_frame() -> None:
    b_from_a = Similarity(2.0, torch.eye(3, dtype=torch.float64)[[1, 2, 0]], torch.tensor([1.0, 0.0, 0.0]).double())
    sphere = Sphere(CENTRE, 0.5, 3.0, "a test").moved(b_from_a)
    assert (sphere.radius, sphere.camera_distance) == (1.0, 6.0)
    assert torch.allclose(sphere.centre, b_from_a.apply(CENTRE))
    assert torch.allclose(sphere.world_from_sphere.apply(torch.zeros(3).double()), sphere.centre)
