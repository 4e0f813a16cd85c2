"""Features of panoramas: COLMAP's spherical camera is ours, positions are exact, masks count, the seam is nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from lightfold.cameras import Camera
from lightfold.cli.mask import MaskArguments, make_masks
from lightfold.errors import CaptureError
from lightfold.footage import panorama
from lightfold.footage.gather import gather
from lightfold.footage.photos import PhotosConfig
from lightfold.footage.shots import Footage, Shot
from lightfold.poses import spherical
from lightfold.poses.config import PoseConfig

WIDTH, HEIGHT = 512, 256
CONFIG = PoseConfig(threads=2)


def quiet(stage: str, done: int, total: int) -> None:
    assert stage == "features" and 0 <= done <= total


def sphere() -> Camera:
    return Camera.panorama(torch.eye(3, 4, dtype=torch.float64), WIDTH, HEIGHT)


def blobs(direction: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A grey panorama with a round dark dot about each direction [N, 3]."""
    camera = sphere()
    pixels = camera.unproject(camera.pixel_grid())
    nearest = (pixels @ torch.from_numpy(direction).mT).amax(dim=1).clamp(-1, 1)
    return (
        (200 - 150 * torch.exp(-0.5 * (torch.acos(nearest) / 0.035) ** 2))
        .round()
        .to(torch.uint8)
        .numpy()
        .reshape(HEIGHT, WIDTH)
    )


def rooms(seed: int = 0) -> NDArray[np.uint8]:
    """Detail everywhere: noise of several sizes, which continues across the seam."""
    rng = np.random.default_rng(seed)
    total = np.zeros((HEIGHT, WIDTH))
    for size in (4, 8, 16):
        coarse = rng.random((HEIGHT // size, WIDTH // size))
        total += np.kron(coarse, np.ones((size, size)))
    return (255 * total / 3).astype(np.uint8)


def footage(
    root: Path, pictures: dict[str, NDArray[np.uint8]], masks: dict[str, NDArray[np.uint8]] | None = None
) -> Footage:
    shots = []
    for name, picture in pictures.items():
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(root / "images" / name)
        mask = (masks or {}).get(name)
        if mask is not None:
            (root / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(root / "masks" / f"{name}.png")
        height, width = picture.shape[:2]
        shots.append(Shot(name, name, width, height, lens="EQUIRECTANGULAR", mask=mask is not None))
    return Footage(root, "panoramas", True, tuple(shots))


def keypoints(found: Footage, config: PoseConfig = CONFIG) -> list[NDArray[np.float32]]:
    database = found.root / "database.db"
    spherical.extract(found, database, config, quiet)
    with pycolmap.Database.open(str(database)) as opened:
        result = [opened.read_keypoints(i + 1) for i in range(len(found.shots))]
        counts = [len(opened.read_descriptors(i + 1).data) for i in range(len(found.shots))]
    assert counts == [len(points) for points in result]
    return result


def test_colmaps_spherical_camera_is_ours() -> None:
    theirs, ours = pycolmap.Camera.create_from_model_name(1, "EQUIRECTANGULAR", 0.0, WIDTH, HEIGHT), sphere()
    rng = np.random.default_rng(0)
    points = np.concatenate(
        [rng.normal(size=(500, 3)), [[0, 0, 1], [1, 0, 0], [-1, 0, 0], [0, 0.999, 0.01], [0.01, 0, -9]]]
    )
    xy, valid = ours.project(torch.from_numpy(points))
    assert bool(valid.all()) and np.allclose(theirs.img_from_cam(points), xy.numpy(), atol=1e-9)
    pixels = rng.random((500, 2)) * [WIDTH, HEIGHT]
    assert np.allclose(theirs.cam_ray_from_img(pixels), ours.unproject(torch.from_numpy(pixels)).numpy(), atol=1e-12)
    model, params = ours.to_colmap()
    assert model == theirs.model_name and params == list(theirs.params)


def test_positions_are_those_of_the_dots(tmp_path: Path) -> None:
    """Also on the seam, on the border between two crops, and where the panorama is stretched."""
    longitude = np.radians([0, 20, 44.5, 90, 100, 136, 180, -100, -45.5])
    latitude = np.radians([0, 30, 10, -30, 5, 0, 0, 20, -20])
    flat = np.cos(latitude)
    direction = np.stack([np.sin(longitude) * flat, np.sin(latitude), np.cos(longitude) * flat], axis=1)
    (found,) = keypoints(footage(tmp_path, {"a.png": blobs(direction)}))
    rays = sphere().unproject(torch.from_numpy(found[:, :2]).double()).numpy()
    angle = np.arccos(np.clip(rays @ direction.T, -1, 1))
    pixel = 2 * np.pi / WIDTH
    assert (angle.min(axis=0) < 0.3 * pixel).all()
    # Each dot belongs to one crop: orientations may double a keypoint, a second crop would triple it.
    assert all(len(np.unique(found[column < 3 * pixel, :2].round(1), axis=0)) == 1 for column in angle.T)


def test_a_turned_panorama_has_the_same_features_turned(tmp_path: Path) -> None:
    picture = rooms()
    turned = np.roll(picture, WIDTH // 4, axis=1)
    first, second = keypoints(footage(tmp_path, {"a.png": picture, "b.png": turned}))
    assert len(first) == len(second) > 200
    first[:, 0] = (first[:, 0] + WIDTH / 4) % WIDTH
    apart = np.abs(first[:, None, :2] - second[None, :, :2]).max(axis=2)
    assert apart.min(axis=0).max() < 0.05 and apart.min(axis=1).max() < 0.05


def test_what_is_written_is_what_colmap_expects(tmp_path: Path) -> None:
    found = footage(tmp_path, {"a.png": rooms(), "räume/b 1.png": rooms(1), "c.png": rooms()[::2, ::2]})
    points = keypoints(found)
    with pycolmap.Database.open(str(tmp_path / "database.db")) as opened:
        cameras, images = opened.read_all_cameras(), opened.read_all_images()
        assert [(c.model_name, c.width, c.height) for c in cameras] == [
            ("EQUIRECTANGULAR", WIDTH, HEIGHT), ("EQUIRECTANGULAR", WIDTH // 2, HEIGHT // 2)
        ]  # fmt: skip
        assert [(i.image_id, i.name, i.camera_id) for i in images] == [
            (1, "a.png", 1),
            (2, "räume/b 1.png", 1),
            (3, "c.png", 2),
        ]
        assert opened.num_frames() == 3 and opened.num_rigs() == 2
        descriptors = np.asarray(opened.read_descriptors(1).data)
    assert descriptors.dtype == np.uint8 and descriptors.shape == (len(points[0]), 128)
    for shot, table in zip(found.shots, points, strict=True):
        assert (table[:, :2] >= 0).all() and (table[:, :2] <= [shot.width, shot.height]).all()
    assert len(points[0]) <= CONFIG.max_features
    few = keypoints(footage(tmp_path / "few", {"a.png": rooms()}), PoseConfig(threads=1, max_features=64))
    assert 0 < len(few[0]) <= 2 * 64  # COLMAP counts a position with two orientations once


def test_a_second_run_keeps_what_is_there(tmp_path: Path) -> None:
    found = footage(tmp_path, {"a.png": rooms(), "b.png": rooms(1)})
    before = keypoints(found)
    for shot in found.shots:
        found.image(shot).unlink()
    after = keypoints(found)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_masks_are_honoured(tmp_path: Path) -> None:
    mask = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
    mask[:, :100] = 0
    half = np.full((HEIGHT // 2, WIDTH // 2), 1, dtype=np.uint8)
    half[64:] = 0
    pictures = {name: rooms() for name in ("free.png", "left.png", "half.png", "all.png")}
    masks = {"left.png": mask, "half.png": half, "all.png": np.zeros_like(mask)}
    free, left, lower, none = keypoints(footage(tmp_path, pictures, masks))
    assert np.array_equal(left, free[free[:, 0] >= 100])
    assert np.array_equal(lower, free[free[:, 1] < 128])
    assert len(none) == 0


def test_the_nadir_that_a_user_masks_has_no_features(tmp_path: Path) -> None:
    """The whole way: `lightfold mask --nadir`, gathering, features."""
    folder = tmp_path / "größe a"
    folder.mkdir()
    for i in range(2):
        Image.fromarray(rooms(i)).save(folder / f"pano {i}.png")
    make_masks(MaskArguments(str(folder), nadir=70.0))
    gathered = gather(folder, tmp_path / "capture", PhotosConfig(lens="EQUIRECTANGULAR"))
    assert gathered.kind == "panoramas" and all(shot.mask for shot in gathered.shots)
    free = keypoints(footage(tmp_path / "free", {"pano 0.png": rooms(0), "pano 1.png": rooms(1)}))
    lowest = HEIGHT * (1 - 70 / 180)
    for masked, all_of_it in zip(keypoints(gathered), free, strict=True):
        assert (all_of_it[:, 1] > lowest + 2).any(), "there is something to mask"
        assert len(masked) and float(masked[:, 1].max()) <= lowest + 1


def test_pictures_without_detail_have_no_features(tmp_path: Path) -> None:
    blank, tiny = np.full((64, 128, 3), 90, dtype=np.uint8), rooms()[:2, :4]
    assert [len(points) for points in keypoints(footage(tmp_path, {"blank.png": blank, "tiny.png": tiny}))] == [0, 0]


@pytest.mark.parametrize("damage", ["image", "mask", "size"])
def test_damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    full = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
    found = footage(tmp_path, {"größe.png": rooms()}, {"größe.png": full})
    if damage == "image":
        path = found.image(found.shots[0])
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "mask":
        (tmp_path / "masks" / "größe.png.png").write_bytes(b"\x89PNG")
    else:
        Image.fromarray(rooms()[:128]).save(found.image(found.shots[0]))
    with pytest.raises(CaptureError, match=r"größe\.png"):
        keypoints(found)


def test_large_panoramas_are_searched_at_the_size_that_is_asked_for() -> None:
    _, crops, _ = spherical._views(2048, 1024, 250)
    assert {crop.width for crop in crops} == {112}
    _, crops, _ = spherical._views(WIDTH, HEIGHT, 2000)
    assert {crop.width for crop in crops} == {panorama.natural_size(spherical.LAYOUT, WIDTH)}
