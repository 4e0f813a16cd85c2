"""Cameras, pictures and their SIFT features, in COLMAP's database. Runs in the engine's process only.

Pictures are decoded and scaled here and handed to COLMAP as arrays, so COLMAP's own file reading, which aborts on masks
of another size and hangs on odd formats, is never used. In the database the ids of image, frame and position in
`footage.shots` go together: image_id = frame_id = 1 + index, and rig_id = camera_id.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import pycolmap
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import CaptureError
from ..footage.shots import Footage, Shot
from .config import PoseConfig

ResultT = TypeVar("ResultT")
DEFAULT_FOCAL = 1.2
"""Focal length to start from where the header has none, in units of the longer side: a phone's main camera is wider,
a standard lens is longer, and bundle adjustment finds its way from here for both."""


def extract(footage: Footage, database: Path, config: PoseConfig, progress: Callable[[str, int, int], None]) -> None:
    """Write the cameras, images, keypoints and descriptors of all shots. What is in the database already is kept.

    Keypoints are in pixels of the full picture and lie outside no mask. Raises CaptureError for a picture or mask that
    cannot be read or is not of the size that footage.json states.
    """
    with pycolmap.Database.open(str(database)) as opened:
        write_shots(opened, footage, config)
        todo = [i for i in range(len(footage.shots)) if not opened.exists_descriptors(i + 1)]
        total = len(footage.shots)
        progress("features", total - len(todo), total)
        threads = config.threads or 1
        local = threading.local()

        def one(index: int) -> tuple[int, NDArray[np.float32], NDArray[np.uint8]]:
            if not hasattr(local, "extractor"):
                local.extractor = pycolmap.FeatureExtractor.create(extraction_options(config), pycolmap.Device.cpu)
            shot = footage.shots[index]
            return index, *_features(local.extractor, footage.image(shot), footage.mask(shot), shot, config)

        with ThreadPoolExecutor(threads) as pool:
            for done, (index, keypoints, descriptors) in enumerate(in_order(pool, one, todo, 2 * threads), start=1):
                data = pycolmap.FeatureDescriptors(pycolmap.FeatureExtractorType.SIFT, descriptors)
                with pycolmap.DatabaseTransaction(opened):
                    opened.write_keypoints(index + 1, keypoints)
                    opened.write_descriptors(index + 1, data)
                progress("features", total - len(todo) + done, total)


def extraction_options(config: PoseConfig) -> pycolmap.FeatureExtractionOptions:
    """COLMAP's options for one thread and pictures that have their size already."""
    options = pycolmap.FeatureExtractionOptions()
    options.use_gpu = False
    options.num_threads = 1
    options.max_image_size = 1 << 20
    options.sift.max_num_features = config.max_features
    options.sift.first_octave = config.first_octave
    return options


def write_shots(database: pycolmap.Database, footage: Footage, config: PoseConfig) -> None:
    """Write the cameras, rigs of one camera each, images and frames of all shots, unless they are there."""
    if database.num_images():
        return
    numbers: dict[str, int] = {}
    with pycolmap.DatabaseTransaction(database):
        for index, shot in enumerate(footage.shots):
            key = camera_key(shot, index, config)
            if key not in numbers:
                numbers[key] = camera_id = len(numbers) + 1
                camera = start_camera(shot, camera_id, config)
                database.write_camera(camera, use_camera_id=True)
                rig = pycolmap.Rig()
                rig.rig_id = camera_id
                rig.add_ref_sensor(camera.sensor_id)
                database.write_rig(rig, use_rig_id=True)
            number = numbers[key]
            image = pycolmap.Image(name=shot.name, camera_id=number, image_id=index + 1)
            database.write_image(image, use_image_id=True)
            frame = pycolmap.Frame()
            frame.frame_id = index + 1
            frame.rig_id = number
            sensor = pycolmap.sensor_t(pycolmap.SensorType.CAMERA, number)
            frame.add_data_id(pycolmap.data_t(sensor, index + 1))
            database.write_frame(frame, use_frame_id=True)


def camera_key(shot: Shot, index: int, config: PoseConfig) -> str:
    """Shots with the same key share intrinsics. Never shots of different sizes."""
    name = {"auto": shot.camera, "one": "", "each": str(index)}[config.cameras]
    return f"{name} {shot.width}x{shot.height} {lens_of(shot, config)}"


def lens_of(shot: Shot, config: PoseConfig) -> str:
    """The lens model to solve for; a calibration brings its own."""
    return shot.lens if config.lens == "auto" or shot.parameters or shot.lens == "EQUIRECTANGULAR" else config.lens


def start_camera(shot: Shot, camera_id: int, config: PoseConfig) -> pycolmap.Camera:
    """Where the intrinsics start: known, from the header, or a common field of view. Raises CaptureError."""
    lens = lens_of(shot, config)
    focal = shot.focal or DEFAULT_FOCAL * max(shot.width, shot.height)
    if "FISHEYE" in lens and not shot.focal:
        # A fisheye's picture spans about half a turn.
        focal = max(shot.width, shot.height) / np.pi
    camera = pycolmap.Camera.create_from_model_name(camera_id, lens, focal, shot.width, shot.height)
    # Headers lie (a cropped picture, a wrong sensor), and COLMAP finds no first pair with a wrong prior. A focal length
    # that is only a start costs nothing. But two fisheye pictures have no fundamental matrix, so the start must do.
    camera.has_prior_focal_length = bool(shot.parameters) or "FISHEYE" in lens
    if shot.parameters:
        if len(shot.parameters) != len(camera.params):
            raise CaptureError(
                f"{shot.source} has {len(shot.parameters)} known intrinsics, but the lens {lens} has "
                f"{len(camera.params)}. Correct the calibration."
            )
        camera.params = list(shot.parameters)
    return camera


def _features(
    extractor: pycolmap.FeatureExtractor, path: Path, mask: Path | None, shot: Shot, config: PoseConfig
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Keypoints [N, 4] (x, y, scale, orientation) in pixels of the full picture, and descriptors [N, 128]."""
    grey = _read_grey(path, (shot.width, shot.height), config.max_side)
    height, width = grey.shape
    if min(height, width) < 16 or int(grey.max()) - int(grey.min()) < 4:
        # COLMAP aborts on a picture of a few pixels, and a blank one has no features to find.
        return np.zeros((0, 4), dtype=np.float32), np.zeros((0, 128), dtype=np.uint8)
    found, described = extractor.extract_from_uint8_array(grey)
    keypoints = pycolmap.keypoints_to_matrix(found).astype(np.float32).reshape(-1, 4)
    descriptors = np.asarray(described.data, dtype=np.uint8).reshape(-1, 128)
    keypoints[:, 0] *= shot.width / width
    keypoints[:, 1] *= shot.height / height
    keypoints[:, 2] *= max(shot.width, shot.height) / max(width, height)
    if mask is not None:
        counts = _read_mask(mask, (shot.width, shot.height))
        x = np.clip(keypoints[:, 0].astype(int), 0, shot.width - 1)
        y = np.clip(keypoints[:, 1].astype(int), 0, shot.height - 1)
        keep = counts[y, x]
        keypoints, descriptors = keypoints[keep], descriptors[keep]
    return np.ascontiguousarray(keypoints), np.ascontiguousarray(descriptors)


def _read_grey(path: Path, size: tuple[int, int], max_side: int) -> NDArray[np.uint8]:
    """The picture in grey, its longer side at most `max_side`."""
    try:
        with Image.open(path) as picture:
            if picture.size != size:
                raise CaptureError(
                    f"{path} has {picture.size[0]} x {picture.size[1]} pixels, but footage.json says {size[0]} x "
                    f"{size[1]}. Delete footage.json beside images/, and the footage is gathered again."
                )
            factor = min(1.0, max_side / max(size))
            target = (max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
            # A JPEG is decoded at half or a quarter of its size where that is still larger: several times faster.
            picture.draft("L", target)
            grey = picture.convert("L")
            if grey.size != target:
                grey = grey.resize(target, Image.Resampling.LANCZOS, reducing_gap=2.0)
            return np.asarray(grey, dtype=np.uint8)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CaptureError(f"{path} cannot be read any more ({error}).") from error


def _read_mask(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    try:
        with Image.open(path) as picture:
            counts = np.asarray(picture.convert("L")) > 0
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CaptureError(f"The mask {path} cannot be read ({error}).") from error
    if counts.shape != size[::-1]:
        raise CaptureError(
            f"The mask {path} has {counts.shape[1]} x {counts.shape[0]} pixels and its picture {size[0]} x {size[1]}. "
            "Give masks of the size of their pictures."
        )
    return counts


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[int], ResultT], items: list[int], ahead: int
) -> Iterator[ResultT]:
    """pool.map that keeps only `ahead` results waiting, so that memory does not grow with the set."""
    waiting = iter(items)
    futures = [pool.submit(function, item) for item in islice(waiting, ahead)]
    try:
        while futures:
            result = futures.pop(0).result()
            futures.extend(pool.submit(function, item) for item in islice(waiting, 1))
            yield result
    finally:
        for future in futures:
            future.cancel()
