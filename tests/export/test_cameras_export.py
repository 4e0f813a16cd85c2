"""The cameras of a run, written in every format and read back: points fall on the same pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ball_field import ball_info
from PIL import Image

from lightfold.cameras import Camera, Lens
from lightfold.capture import Capture, Frame
from lightfold.errors import CaptureError, RunError
from lightfold.export.cameras import TARGETS, capture_of, placed, sphere_of_scene, write_cameras
from lightfold.formats import open_capture
from lightfold.geometry import Similarity
from lightfold.scene import SceneInfo

VIEWS = 8
POINTS = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.3


@pytest.fixture
def info() -> SceneInfo:
    """Training pictures of 24 x 24, a shrunken form of those on disk; views 1 and 5 are held out."""
    scene_from_capture = Similarity(0.25, torch.eye(3, dtype=torch.float64)[[1, 2, 0]], torch.tensor([3.0, -2.0, 1.0]))
    names = tuple(f"images/{i}.png" for i in range(VIEWS))
    held = (1, 5)
    train = tuple(i for i in range(VIEWS) if i not in held)
    changes = {"names": names, "train": train, "test": held, "scene_from_capture": scene_from_capture}
    return ball_info(VIEWS, 24, **changes, points=torch.randn(50, 3) * 0.3)


@pytest.fixture
def pictures(info: SceneInfo, tmp_path: Path) -> Capture:
    """The capture on disk: pictures of 48 x 48, three of which were never used."""
    root = tmp_path / "capture"
    (root / "images").mkdir(parents=True)
    frames = []
    for i in range(VIEWS + 3):
        path = root / "images" / f"{i}.png"
        Image.new("RGB", (48, 48)).save(path)
        camera = info.cameras[i % VIEWS].to(torch.float64).resized(48, 48)
        frames.append(Frame(path, camera, f"images/{i}.png", time=float(i)))
    original = Similarity(2.0, torch.eye(3, dtype=torch.float64), torch.tensor([5.0, 6.0, 7.0]))
    return Capture(root, "transforms", tuple(frames), original_from_capture=original)


def pixels(info: SceneInfo) -> dict[str, torch.Tensor]:
    """Where the points fall in the training pictures, counted in pixels of 48."""
    return {
        name: 2 * camera.to(torch.float64).project(POINTS)[0]
        for name, camera in zip(info.names, info.cameras, strict=True)
    }


def assert_same_pixels(cameras: dict[str, Camera], info: SceneInfo, b_from_scene: Similarity) -> None:
    moved = b_from_scene.apply(POINTS)
    for name, xy in pixels(info).items():
        camera = cameras[name]
        assert (camera.width, camera.height) == (48, 48)
        assert torch.allclose(camera.to(torch.float64).project(moved)[0], xy, atol=2e-3)


@pytest.mark.parametrize("format", ["transforms", "colmap", "llff"])
def test_each_format_is_read_back_in_capture_coordinates(
    format: str, info: SceneInfo, pictures: Capture, tmp_path: Path
) -> None:
    back = info.scene_from_capture.inverse()
    capture = capture_of(info, back, pictures)
    folder = tmp_path / "exported cameras"
    assert write_cameras(capture, format, folder) == []
    if format == "colmap":
        (folder / "images").symlink_to(pictures.root / "images", target_is_directory=True)
    read = open_capture(folder)
    assert read.format == format
    # A transforms.json elsewhere names pictures by their way there; the number is the same in all formats.
    cameras = {f"images/{frame.path.stem}.png": frame.camera for frame in read.frames if frame.camera is not None}
    assert set(cameras) == set(info.names)
    assert_same_pixels(cameras, info, back)
    if format == "transforms":
        by_stem = {frame.path.stem: frame for frame in read.frames}
        assert by_stem["1"].split == "test" and by_stem["2"].split == "train" and by_stem["3"].time == 3.0
        assert read.original_from_capture.apply(torch.zeros(3)).tolist() == pytest.approx([5, 6, 7])
        assert read.bounds is not None and read.points is not None and len(read.points) == 50


@pytest.mark.parametrize("format", ["instant-ngp", "blender", "colmap-text", "sdfstudio"])
def test_the_formats_of_convert_are_those_of_export(
    format: str, info: SceneInfo, pictures: Capture, tmp_path: Path
) -> None:
    back = info.scene_from_capture.inverse()
    capture, sphere = capture_of(info, back, pictures), sphere_of_scene(info, back)
    if TARGETS[format].frame == "sphere":
        capture, sphere = placed(capture, format, sphere)
    folder = tmp_path / "exported cameras"
    assert write_cameras(capture, format, folder, sphere) == []
    if format == "colmap-text":
        (folder / "images").symlink_to(pictures.root / "images", target_is_directory=True)
    read = open_capture(folder)
    cameras = {f"images/{frame.path.stem}.png": frame.camera for frame in read.frames if frame.camera is not None}
    assert set(cameras) == set(info.names)
    assert sphere is not None
    in_sphere = sphere_of_scene(info, back).world_from_sphere.inverse() @ back
    assert_same_pixels(cameras, info, in_sphere if format == "sdfstudio" else back)


def test_neus_matrices_project_into_the_pictures_and_hold_the_scene(
    info: SceneInfo, pictures: Capture, tmp_path: Path
) -> None:
    back = info.scene_from_capture.inverse()
    capture = capture_of(info, back, pictures)
    assert write_cameras(capture, "neus", tmp_path, sphere_of_scene(info, back)) == []
    file = np.load(tmp_path / "cameras_sphere.npz")
    moved = np.concatenate([back.apply(POINTS).numpy(), np.ones((len(POINTS), 1))], axis=1)
    for i, frame in enumerate(capture.frames):
        image = moved @ file[f"world_mat_{i}"][:3].T
        # NeuS counts pixels from the first one's middle.
        assert np.allclose(image[:, :2] / image[:, 2:] + 0.5, pixels(info)[frame.name].numpy(), atol=2e-3)
        sphere = moved @ file[f"scale_mat_inv_{i}"].T
        assert np.allclose(sphere[:, :3] * 3**0.5, POINTS.numpy() @ np.asarray(back.rotation).T, atol=1e-6)
        assert np.allclose(file[f"world_mat_{i}"] @ file[f"world_mat_inv_{i}"], np.eye(4), atol=1e-9)


def test_neus_says_what_it_cannot_say(info: SceneInfo, tmp_path: Path) -> None:
    bent = [replace(c, lens=Lens.OPENCV, distortion=torch.tensor([0.1, 0, 0, 0])) for c in info.cameras]
    back = info.scene_from_capture.inverse()
    capture = capture_of(replace(info, cameras=tuple(bent)), back)
    (note,) = write_cameras(capture, "neus", tmp_path, sphere_of_scene(info, back))
    assert "8 of 8 lenses have distortion" in note
    wide = [replace(c, lens=Lens.OPENCV_FISHEYE, distortion=torch.zeros(4)) for c in info.cameras]
    capture = capture_of(replace(info, cameras=tuple(wide)), back)
    with pytest.raises(CaptureError, match="OPENCV_FISHEYE"):
        write_cameras(capture, "neus", tmp_path, sphere_of_scene(info, back))


def test_without_the_pictures_cameras_have_the_training_size(info: SceneInfo, tmp_path: Path) -> None:
    capture = capture_of(info, Similarity.identity())
    assert [frame.name for frame in capture.frames] == list(info.names)
    camera = capture.frames[0].camera
    assert camera is not None and camera.width == 24
    assert torch.allclose(camera.cam_from_world, info.cameras[0].cam_from_world.double())
    with pytest.raises(RunError, match=r"LLFF.*--capture"):
        write_cameras(capture, "llff", tmp_path)
    with pytest.raises(ValueError, match="format"):
        write_cameras(capture, "gltf", tmp_path)


def test_depth_files_keep_meaning_the_same_length(info: SceneInfo, pictures: Capture) -> None:
    with_depth = replace(pictures, frames=tuple(replace(f, depth=f.path, depth_scale=0.001) for f in pictures.frames))
    in_scene = capture_of(info, Similarity.identity(), with_depth)
    assert in_scene.frames[0].depth_scale == pytest.approx(0.001 * info.scene_from_capture.scale)
    in_capture = capture_of(info, info.scene_from_capture.inverse(), with_depth)
    assert in_capture.frames[0].depth_scale == pytest.approx(0.001)
