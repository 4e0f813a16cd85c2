"""How well the poses of real photographs explain what the photographs show, without any point in space."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from lightfold.capture import Capture, Frame
from lightfold.geometry import compose, invert


def epipolar_errors(capture: Capture, indices: list[int], side: int = 640) -> np.ndarray:
    """Pixels between feature matches and their epipolar lines, over neighbours in a list of frames.

    Matches are SIFT's with a ratio test; some are wrong whatever the poses, so medians and shares are what to look at.
    """
    feature = pytest.importorskip("skimage.feature", reason="matching features needs scikit-image")
    found = {i: _features(capture.frames[i], side, feature) for i in indices}
    errors = []
    for i, j in pairwise(indices):
        a, b = capture.frames[i].camera, capture.frames[j].camera
        assert a is not None and b is not None
        (xy_a, described_a), (xy_b, described_b) = found[i], found[j]
        pairs = feature.match_descriptors(described_a, described_b, max_ratio=0.75, cross_check=True)
        direction_a = a.unproject(xy_a[pairs[:, 0]])
        direction_b = b.unproject(xy_b[pairs[:, 1]])
        b_from_a = compose(b.cam_from_world, invert(a.cam_from_world))
        normal = torch.linalg.cross(b_from_a[:, 3].expand(len(pairs), 3), direction_a @ b_from_a[:, :3].T)
        sine = (torch.nn.functional.normalize(normal, dim=-1) * direction_b).sum(-1)
        errors.append((sine.abs() * float(b.intrinsics[0])).numpy())
    return np.concatenate(errors)


def _features(frame: Frame, side: int, feature: object) -> tuple[torch.Tensor, np.ndarray]:
    """Pixels [N, 2] in the full picture, and descriptors, of a picture shrunk to `side`."""
    with Image.open(frame.path) as file:
        grey = file.convert("L")
    factor = max(1, round(max(grey.size) / side))
    small = grey.reduce(factor)
    sift = feature.SIFT()  # type: ignore[attr-defined]
    sift.detect_and_extract(np.asarray(small) / 255.0)
    return torch.from_numpy((sift.keypoints[:, ::-1] + 0.5) * factor), sift.descriptors
