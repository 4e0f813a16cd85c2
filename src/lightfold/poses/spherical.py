"""Features of panoramas, in COLMAP's database. Runs in the engine's process only.

A panorama is one image with one pose, seen through COLMAP's EQUIRECTANGULAR camera: six unknowns, whatever its size.
But SIFT expects perspective pictures; on the panorama itself, content near the poles is smeared. So features are found
on a few virtual perspective crops and their positions carried back to the sphere, exactly, by the two lenses.

Crops overlap, so that nothing is lost at their borders, and would find features there twice. Therefore each direction
belongs to the crop whose axis is nearest, and only that one's features count.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import pycolmap
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cameras import Camera
from ..errors import CaptureError
from ..footage import panorama
from ..footage.shots import Footage, Shot
from ..images import UNREADABLE, decode
from .config import PoseConfig
from .features import extraction_options, in_order, write_shots

LAYOUT = panorama.LAYOUTS["4"]
"""A belt about the horizon, 80 degrees high where crops meet. Above it are ceilings and sky, below it the operator."""

SIDE_SHARE = 0.45
"""Side of a crop in units of config.max_side, the longer side at which a photograph is searched. The time goes into the
scale space, so into pixels; and of what larger crops have more of, the finest features, most would be thrown away,
because COLMAP keeps the largest."""
FEATURE_SHARE = 0.4
"""Most features of a panorama in units of config.max_features. It is seen from all sides by its neighbours, so fewer
features than those of a photograph tie it down, and comparing two pictures costs the square of their number. On a
rendered walk of 120 panoramas this makes poses that are good to 0.02 degrees and 0.0015 % of the path; 0.6 of these
features made 0.033 degrees and 0.003 %."""

FINER, POOR = 1.7, 0.5
"""A crop in which fewer features are found than this share of the most (a blank wall) is searched again, so many times
larger; never with more pixels than the panorama has."""

Features = tuple[NDArray[np.float32], NDArray[np.uint8]]
"""Keypoints [N, 4] (x, y, scale, orientation) in pixels of the panorama, and SIFT descriptors [N, 128]."""


def extract(footage: Footage, database: Path, config: PoseConfig, progress: Callable[[str, int, int], None]) -> None:
    """Write the cameras, images, keypoints and descriptors of all shots, which are panoramas. What the database has
    already is kept.

    Of `config` it reads max_side, max_features, first_octave and threads. No keypoint lies where a mask is zero.

    Raises:
        CaptureError: a picture or mask cannot be read, or is not of the size that footage.json states.
    """
    with pycolmap.Database.open(str(database)) as opened:
        write_shots(opened, footage, config)
        todo = [i for i in range(len(footage.shots)) if not opened.exists_descriptors(i + 1)]
        total = len(footage.shots)
        progress("features", total - len(todo), total)
        local = threading.local()
        # COLMAP keeps the largest. A share for each side, so that one rich wall does not take all.
        most = max(1, int(FEATURE_SHARE * config.max_features / len(LAYOUT.directions)))

        def one(index: int) -> tuple[int, Features]:
            if not hasattr(local, "extractor"):
                options = extraction_options(config)
                # A second orientation repeats a position, which ties down nothing and is compared with everything.
                options.sift.max_num_orientations = 1
                options.sift.max_num_features = most
                local.extractor = pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu)
            shot = footage.shots[index]
            image, mask = footage.image(shot), footage.mask(shot)
            return index, _features(local.extractor, image, mask, shot, config.max_side, most)

        threads = config.threads or 1
        with ThreadPoolExecutor(threads) as pool:
            for done, (index, (keypoints, descriptors)) in enumerate(in_order(pool, one, todo, 2 * threads), start=1):
                data = pycolmap.FeatureDescriptors(pycolmap.FeatureExtractorType.SIFT, descriptors)
                with pycolmap.DatabaseTransaction(opened):
                    opened.write_keypoints(index + 1, keypoints)
                    opened.write_descriptors(index + 1, data)
                progress("features", total - len(todo) + done, total)


def _features(
    extractor: pycolmap.FeatureExtractor, path: Path, mask: Path | None, shot: Shot, max_side: int, most: int
) -> Features:
    sphere, crops, maps = _views(shot.width, shot.height, max_side)
    _, fine_crops, fine_maps = _views(shot.width, shot.height, round(FINER * max_side))
    planes = panorama.as_planes(_read_grey(path, shot), panorama=True)
    keypoints = [np.zeros((0, 4), dtype=np.float32)]
    descriptors = [np.zeros((0, 128), dtype=np.uint8)]
    for number, (crop, where) in enumerate(zip(crops, maps, strict=True)):
        points, described = _search(extractor, planes, crop, where)
        searched = crops
        if len(points) < POOR * most and fine_crops[number].width > crop.width:
            points, described = _search(extractor, planes, fine_crops[number], fine_maps[number])
            searched = fine_crops
        moved, own = to_panorama(points, number, sphere, searched)
        keypoints.append(moved[own])
        descriptors.append(described[own])
    kept = np.concatenate(keypoints)
    if mask is None:
        return kept, np.concatenate(descriptors)
    counts = _read_mask(mask, shot)
    # A position on the right edge is in the seam's pixel, and one on the lower edge is in the last row.
    column, row = kept[:, 0].astype(int) % shot.width, np.minimum(kept[:, 1].astype(int), shot.height - 1)
    inside = counts[row, column]
    return kept[inside], np.concatenate(descriptors)[inside]


def _search(extractor: pycolmap.FeatureExtractor, planes: Tensor, crop: Camera, where: Tensor) -> Features:
    """The features of one crop, in pixels of the crop."""
    grey = panorama.cut(planes, where, crop)[:, :, 0]
    if min(grey.shape) < 16 or int(grey.max()) - int(grey.min()) < 4:
        # COLMAP aborts on a picture of a few pixels, and a blank one has no features to find.
        return np.zeros((0, 4), dtype=np.float32), np.zeros((0, 128), dtype=np.uint8)
    found, described = extractor.extract_from_uint8_array(np.ascontiguousarray(grey))
    points = pycolmap.keypoints_to_matrix(found).astype(np.float32).reshape(-1, 4)
    return points, np.asarray(described.data, dtype=np.uint8).reshape(len(points), 128)


def to_panorama(
    keypoints: NDArray[np.float32], number: int, sphere: Camera, crops: list[Camera]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Keypoints [N, 4] of crop `number` in pixels of the panorama, and which [N] of them are that crop's own.

    Scales become the panorama's by the ratio of pixels per radian, orientations keep the crop's angle; COLMAP's
    geometry uses neither.
    """
    crop = crops[number]
    xy = torch.from_numpy(keypoints[:, :2]).double()
    moved = keypoints.copy()
    moved[:, :2] = panorama.same_directions(crop, sphere, xy)[0].numpy()
    moved[:, 2] *= sphere.width / (2 * np.pi) / float(crop.intrinsics[0])
    direction = crop.unproject(xy) @ crop.cam_from_world[:, :3]
    axes = torch.stack([camera.forward for camera in crops])
    return moved, ((direction @ axes.mT).argmax(dim=1) == number).numpy()


@lru_cache(maxsize=4)
def _views(width: int, height: int, max_side: int) -> tuple[Camera, list[Camera], list[Tensor]]:
    """For panoramas of one size: their camera at the origin, their crops, and the maps to cut them."""
    sphere = Camera.panorama(torch.eye(3, 4, dtype=torch.float64), width, height)
    crops = panorama.crop_cameras(
        sphere, LAYOUT, min(round(SIDE_SHARE * max_side), panorama.natural_size(LAYOUT, width))
    )
    return sphere, crops, [panorama.crop_map(sphere, crop) for crop in crops]


def _read_grey(path: Path, shot: Shot) -> NDArray[np.uint8]:
    try:
        rgb, _ = decode(path)
    except UNREADABLE as error:
        raise CaptureError(f"{path} cannot be read any more ({error}).") from error
    if rgb.shape[:2] != (shot.height, shot.width):
        raise CaptureError(
            f"{path} has {rgb.shape[1]} x {rgb.shape[0]} pixels, but footage.json says {shot.width} x {shot.height}. "
            "Delete footage.json beside images/, and the footage is gathered again."
        )
    # Luma of ITU-R BT.601, as JPEG has it.
    return (rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32) + 0.5).astype(np.uint8)


def _read_mask(path: Path, shot: Shot) -> NDArray[np.bool_]:
    try:
        return panorama.read_mask(path, shot.width, shot.height)
    except UNREADABLE as error:
        raise CaptureError(f"The mask {path} cannot be read ({error}). Replace it or delete it.") from error
