"""Poses of fisheye pictures, rendered by the sample's ray tracer, of which everything is known."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from lightfold.cameras import Camera, Lens
from lightfold.footage.photos import PhotosConfig, gather_photos
from lightfold.formats import open_capture
from lightfold.poses.align import pose_errors
from lightfold.poses.config import PoseConfig
from lightfold.poses.solve import Solution, solve
from lightfold.poses.write import write_capture

SAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sample" / "make_sample.py"
SIDE, FOCAL, BENT = 480, 190.0, (-0.03, 0.004, 0.0, 0.0)
"""Side of the square pictures, focal length in pixels (145 degrees across), and the lens's four numbers."""


def tracer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lightfold_sample_of_fisheyes", SAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def fisheyes(sample: ModuleType, count: int) -> list[Camera]:
    """A part of the sample's walk around the table, through another lens."""
    cameras = []
    for view in sample.camera_walk(90)[:count]:
        opengl = torch.from_numpy(view.world_from_camera).double()
        world_from_cam = opengl @ torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
        cameras.append(
            Camera(
                cam_from_world=torch.linalg.inv(world_from_cam)[:3],
                intrinsics=torch.tensor([FOCAL, FOCAL, SIDE / 2 + 3, SIDE / 2 - 2], dtype=torch.float64),
                distortion=torch.tensor(BENT, dtype=torch.float64),
                width=SIDE,
                height=SIDE,
                lens=Lens.OPENCV_FISHEYE,
            )
        )
    return cameras


def picture(sample: ModuleType, camera: Camera) -> np.ndarray:
    """One ray through the middle of each pixel."""
    y, x = np.mgrid[:SIDE, :SIDE]
    xy = torch.from_numpy(np.stack([x.ravel() + 0.5, y.ravel() + 0.5], axis=1)).double()
    direction, seen = camera.unproject_valid(xy)
    world = (direction @ camera.cam_from_world[:, :3]).numpy()  # rows times R: R^T applied to each
    d = np.ascontiguousarray(world.T.astype(np.float32))
    o = np.ascontiguousarray(np.broadcast_to(camera.center.numpy().astype(np.float32)[:, None], d.shape))
    spread = np.full(d.shape[1], 1.4 / FOCAL, dtype=np.float32)
    light = np.zeros((SIDE * SIDE, 3), dtype=np.float32)
    for block in np.array_split(np.flatnonzero(seen.numpy()), 4):
        some = np.ascontiguousarray(o[:, block]), np.ascontiguousarray(d[:, block])
        shade = sample.radiance_along(*some, spread[block], np.zeros_like(spread[block]), reflect=True)
        light[block] = sample.display(shade).T
    return np.asarray(sample.encode(light.reshape(SIDE, SIDE, 3)))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Camera]]:
    folder = tmp_path_factory.mktemp("fisheye") / "photos"
    folder.mkdir()
    sample = tracer()
    truth = fisheyes(sample, 10)
    for i, camera in enumerate(truth):
        Image.fromarray(picture(sample, camera)).save(folder / f"walk_{i:02d}.png")
    return folder, truth


def solved(rendered: tuple[Path, list[Camera]], out: Path, config: PhotosConfig) -> tuple[Solution, float, float]:
    """The solution, its median rotation error in degrees, up to one constant turn of the camera (the principal point is
    not determined), and its median position error as a share of the walk."""
    folder, truth = rendered
    footage = gather_photos(folder, out, config)
    solution = solve(footage, PoseConfig(threads=2))
    assert solution.missing == () and solution.trusted
    capture = open_capture(write_capture(footage, solution))
    assert {frame.camera.lens for frame in capture.frames if frame.camera is not None} == {Lens.OPENCV_FISHEYE}
    found = torch.stack([frame.camera.cam_from_world for frame in capture.frames if frame.camera is not None])
    errors = pose_errors(found, torch.stack([camera.cam_from_world for camera in truth]))
    return solution, float(errors.rotation_free.median()), float(errors.position.median()) / errors.extent


@pytest.mark.slow
def test_a_fisheye_named_by_its_model(rendered: tuple[Path, list[Camera]], tmp_path: Path) -> None:
    solution, rotation, position = solved(rendered, tmp_path / "out", PhotosConfig(lens="OPENCV_FISHEYE"))
    assert rotation < 0.3 and position < 0.005
    assert solution.intrinsics[0].parameters[0] == pytest.approx(FOCAL, rel=0.02)


@pytest.mark.slow
def test_a_fisheye_with_its_calibration(rendered: tuple[Path, list[Camera]], tmp_path: Path) -> None:
    """The numbers are known, so they stay what they are."""
    whole = rendered[1][0].resized(2 * SIDE, 2 * SIDE)
    numbers = " ".join(f"{value!r}" for value in [*whole.intrinsics.tolist(), *whole.distortion.tolist()])
    (tmp_path / "cameras.txt").write_text(f"1 OPENCV_FISHEYE {2 * SIDE} {2 * SIDE} {numbers}\n")
    config = PhotosConfig(calibration=tmp_path / "cameras.txt")
    solution, rotation, position = solved(rendered, tmp_path / "out", config)
    assert rotation < 0.15 and position < 0.002
    assert solution.intrinsics[0].parameters == (FOCAL, FOCAL, SIDE / 2 + 3, SIDE / 2 - 2, *BENT)
