"""Poses of real captures against what their pictures show: matched features lie on each other's epipolar lines.

No point in space and no pose engine takes part, so this finds mistakes of convention (axes, inverses, half a picture)
that a round trip through our own writers cannot.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pycolmap
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from lightfold.capture import Capture
from lightfold.formats import colmap, open_capture
from lightfold.geometry import compose, invert

SIDE = 640
"""Pictures are shrunk to about this side; errors are in pixels of what comes out."""
RATIO = 0.75

# Capture, the frames whose neighbours are compared, and the share of matches that must be within three pixels.
CAPTURES = {
    "fox": ([0, 1, 2], 0.95),
    "nerf_synthetic/lego": ([5, 66, 12, 93], 0.55),
    "nerf_llff_data/fern": ([0, 1, 2], 0.95),
    "dtu_scan65": ([0, 1, 2, 3], 0.7),
    "middlebury_temple": ([5, 6, 7], 0.95),
    "record3d_door": ([0, 1, 2], 0.8),
    "beer_can_video": ([0, 1, 2], 0.95),
}


FORMAT = {
    "fox": "transforms",
    "nerf_synthetic/lego": "blender",
    "nerf_llff_data/fern": "llff",
    "dtu_scan65": "neus",
    "middlebury_temple": "middlebury",
    "record3d_door": "record3d",
    "sceaux_castle": "photos",
    "exr": "photos",
}


@pytest.mark.parametrize("name", FORMAT)
def test_real_captures_are_recognised(name: str, shared_data: Path) -> None:
    capture = open_capture(shared_data / name)
    assert capture.format == FORMAT[name] and len(capture) > 0
    assert not any("can also be read as" in note for note in capture.notes)


@pytest.mark.slow
@pytest.mark.parametrize("name", CAPTURES)
def test_matches_lie_on_epipolar_lines(name: str, shared_data: Path, tmp_path: Path) -> None:
    indices, share = CAPTURES[name]
    if name == "beer_can_video":
        capture = beer_can(shared_data / name, tmp_path, len(indices))
    else:
        capture = open_capture(shared_data / name)
    error = sampson_errors(capture, indices)
    assert len(error) > 60
    assert np.median(error) < 1 and (error < 3).mean() > share
    # The same pictures with their neighbours' poses must not pass, or nothing was tested.
    cameras = [capture.frames[i].camera for i in indices]
    swapped = list(capture.frames)
    for i, camera in zip(indices, [*cameras[1:], cameras[0]], strict=True):
        swapped[i] = replace(swapped[i], camera=camera)
    assert np.median(sampson_errors(replace(capture, frames=tuple(swapped)), indices)) > 3 * np.median(error)


def sampson_errors(capture: Capture, indices: list[int]) -> NDArray[np.float64]:
    """First-order distances, in pixels, of feature matches to the epipolar geometry, over neighbours in a list.

    On the sphere, so that it holds for every lens: with the essential matrix E = [t] R and unit directions a, b, the
    residual b . E a over the length of its gradient along both spheres is an angle (Hartley and Zisserman 2004, 11.4).
    """
    found = {i: features(capture.frames[i].path) for i in indices}
    errors = []
    for i, j in pairwise(indices):
        camera_a, camera_b = capture.frames[i].camera, capture.frames[j].camera
        assert camera_a is not None and camera_b is not None
        (xy_a, described_a), (xy_b, described_b) = found[i], found[j]
        pairs = mutual_matches(described_a, described_b)
        a = camera_a.unproject(torch.from_numpy(xy_a[pairs[:, 0]])).numpy()
        b = camera_b.unproject(torch.from_numpy(xy_b[pairs[:, 1]])).numpy()
        b_from_a = compose(camera_b.cam_from_world, invert(camera_a.cam_from_world)).numpy()
        x, y, z = b_from_a[:, 3] / np.linalg.norm(b_from_a[:, 3])
        essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ b_from_a[:, :3]
        at_b, at_a = a @ essential.T, b @ essential
        residual = (b * at_b).sum(1)
        gradient = (at_b**2).sum(1) + (at_a**2).sum(1) - 2 * residual**2
        focal = float(camera_b.intrinsics[0]) / reduction(camera_b.width, camera_b.height)
        errors.append(np.abs(residual) / np.sqrt(gradient) * focal)
    return np.concatenate(errors)


def reduction(width: int, height: int) -> int:
    return max(1, round(max(width, height) / SIDE))


@functools.lru_cache
def features(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """SIFT: pixels [N, 2] in the full picture, and descriptors [N, 128]."""
    with Image.open(path) as file:
        rgba = file.convert("RGBA")
    grey = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("L")
    factor = reduction(*grey.size)
    keypoints, descriptors = pycolmap.Sift().extract(np.asarray(grey.reduce(factor), dtype=np.float32) / 255)
    return keypoints[:, :2].astype(np.float64) * factor, descriptors.astype(np.float32)


def mutual_matches(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.int64]:
    """Pairs [M, 2] of descriptors that are each other's nearest and much nearer than the next (Lowe 2004)."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    likeness = a @ b.T
    best = likeness.argmax(1)
    first, second = -np.partition(-likeness, 1, axis=1)[:, :2].T
    distance = np.sqrt(np.maximum(2 - 2 * np.stack([first, second]), 0))
    keep = (likeness.argmax(0)[best] == np.arange(len(a))) & (distance[0] < RATIO * distance[1])
    return np.stack([np.flatnonzero(keep), best[keep]], axis=1)


def beer_can(source: Path, folder: Path, count: int) -> Capture:
    """The model of the video's frames, with the first of its pictures taken from the video: three for every second."""
    (folder / "sparse").mkdir()
    for file in (source / "sparse" / "0").glob("*.bin"):
        (folder / "sparse" / file.name).write_bytes(file.read_bytes())
    (folder / "images").mkdir()
    with av.open(source / "Beer.mp4") as video:
        for i, frame in enumerate(video.decode(video=0)):
            number, rest = divmod(i, 10)
            if number == count:
                break
            if rest == 0:
                frame.to_image().save(folder / "images" / f"{number:04d}.jpg", quality=95)
    return colmap.read(folder)
