"""Rigs: which pictures belong together, offsets that are kept and offsets that are recovered, in real COLMAP models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from textured_room import FOCAL, HEIGHT, WIDTH, cameras, footage_of, render

from lightfold.cameras import Camera, Lens
from lightfold.errors import CaptureError, ConfigError
from lightfold.footage.shots import Footage, Shot
from lightfold.formats import open_capture
from lightfold.geometry import compose, invert, quaternion_from_rotation, se3_exp, so3_exp, so3_log
from lightfold.poses import rigs, solve
from lightfold.poses.align import pose_errors
from lightfold.poses.config import PoseConfig
from lightfold.poses.write import write_capture

COUNT = 8
OFFSETS = {
    "left/": torch.eye(3, 4, dtype=torch.float64),
    "right/": se3_exp(torch.tensor([0.30, -0.02, 0.05, 0.05, -0.20, 0.02], dtype=torch.float64)),
}
"""cam_from_rig of the two cameras of the room's rig: 30 cm apart, turned towards each other by some ten degrees."""


def rig_cameras() -> dict[str, Camera]:
    """The true cameras of both, by the name of the picture."""
    made = {}
    for i, reference in enumerate(cameras(COUNT)):
        for prefix, offset in OFFSETS.items():
            pose = compose(offset, reference.cam_from_world)
            made[f"{prefix}{i:02}.png"] = Camera(
                pose, reference.intrinsics, reference.distortion, WIDTH, HEIGHT, Lens.SIMPLE_PINHOLE
            )
    return made


def room_of_rig(root: Path, truth: dict[str, Camera], **known: object) -> Footage:
    """Pictures of the room; one of the right camera is black, and can only stand where the rig has it."""
    pictures = {name: render(camera) for name, camera in truth.items()}
    pictures["right/03.png"] = np.zeros_like(pictures["right/03.png"])
    return footage_of(pictures, root, **known)


def rig_json(**changes: Any) -> list[dict[str, Any]]:
    offset = OFFSETS["right/"]
    right = {
        "image_prefix": "right/",
        "cam_from_rig_rotation": quaternion_from_rotation(offset[:, :3]).tolist(),
        "cam_from_rig_translation": offset[:, 3].tolist(),
    }
    return [{"cameras": [right | changes, {"image_prefix": "left/", "ref_sensor": True}]}]


def offsets_of(capture_root: Path) -> torch.Tensor:
    """right_from_left [N, 3, 4] at each instant."""
    frames = {frame.name: frame.camera for frame in open_capture(capture_root).frames}
    found = []
    for i in range(COUNT):
        left, right = frames[f"images/left/{i:02}.png"], frames[f"images/right/{i:02}.png"]
        assert left is not None and right is not None
        found.append(compose(right.cam_from_world, invert(left.cam_from_world)))
    return torch.stack(found)


def errors_of(capture_root: Path, truth: dict[str, Camera]):
    frames = open_capture(capture_root).frames
    estimate = torch.stack([frame.camera.cam_from_world for frame in frames if frame.camera is not None])
    reference = torch.stack([truth[frame.name.removeprefix("images/")].cam_from_world for frame in frames])
    return pose_errors(estimate, reference)


def test_stated_offsets_are_kept_and_give_metres(tmp_path: Path) -> None:
    truth = rig_cameras()
    footage = room_of_rig(tmp_path / "räume a", truth, focal=FOCAL)
    file = tmp_path / "rig.json"
    file.write_text(json.dumps(rig_json()), encoding="utf-8")
    solution = solve.solve(footage, PoseConfig(threads=2, rig=str(file)))
    assert solution.missing == () and solution.metric
    write_capture(footage, solution)
    found, offset = offsets_of(footage.root), OFFSETS["right/"]
    assert torch.allclose(found[:, :, 3], offset[:, 3].expand(COUNT, 3), atol=1e-5)
    assert float(so3_log(found[:, :, :3] @ offset[:, :3].mT).norm(dim=-1).max()) < 1e-5
    errors = errors_of(footage.root, truth)
    assert float(errors.rotation_free.max()) < 0.5 and float(errors.position.max()) < 0.02 * errors.extent
    assert errors.reference_from_estimate.scale == pytest.approx(1.0, abs=0.02)
    (note,) = [note for note in solution.notes if "rig" in note]
    assert "2 cameras at 8 instants" in note and "as stated" in note and "right/ is 0.304 m from left/" in note


def test_offsets_are_estimated_from_folders(tmp_path: Path) -> None:
    truth = rig_cameras()
    footage = room_of_rig(tmp_path, truth, focal=FOCAL)
    solution = solve.solve(footage, PoseConfig(threads=2, rig="folders"))
    assert solution.missing == () and not solution.metric
    assert any(text.startswith("As a rig: ") for text in solution.tries)
    write_capture(footage, solution)
    found, offset = offsets_of(footage.root), OFFSETS["right/"]
    assert float(so3_log(found[:, :, :3] @ found[:1, :, :3].mT).norm(dim=-1).max()) < 1e-6, "one offset for all"
    assert math.degrees(float(so3_log(found[0, :, :3] @ offset[:, :3].mT).norm())) < 0.5
    errors = errors_of(footage.root, truth)
    scale = errors.reference_from_estimate.scale
    assert torch.allclose(scale * found[0, :, 3], offset[:, 3], atol=0.02)
    assert float(errors.position.max()) < 0.02 * errors.extent


def shots(*names: str, **known: Any) -> Footage:
    return Footage(Path("set"), "photos", False, tuple(Shot(name, name, 64, 48, **known) for name in names))


def test_folders_and_prefixes_say_what_was_taken_at_once() -> None:
    footage = shots("a/1.jpg", "a/2.jpg", "b/1.png", "b/3.jpg", "deep/b/1.jpg", "loose.jpg")
    (rig,) = rigs.read_rigs("folders", footage)
    assert [member.prefix for member in rig.members] == ["a/", "b/", "", "deep/b/"]
    assert rigs._instants(rig, footage) == {"1": {0: 0, 1: 2, 3: 4}, "2": {0: 1}, "3": {1: 3}, "loose": {2: 5}}
    grouped = rigs.with_cameras(footage, (rig,))
    assert len({shot.camera for shot in grouped.shots}) == 4
    assert rigs.read_rigs("", footage) == () and rigs.with_cameras(footage, ()) == footage


def test_intrinsics_of_the_file_are_used(tmp_path: Path) -> None:
    file = tmp_path / "rig.json"
    known = rig_json(camera_model_name="PINHOLE", camera_params=[50.0, 51.0, 32.0, 24.0])
    file.write_text(json.dumps(known), encoding="utf-8")
    footage = shots("left/1.jpg", "right/1.jpg")
    given = rigs.read_rigs(str(file), footage)
    left, right = rigs.with_cameras(footage, given).shots
    assert given[0].stated and given[0].members[0].prefix == "left/"
    assert (right.lens, right.parameters) == ("PINHOLE", (50.0, 51.0, 32.0, 24.0)) and left.parameters == ()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "no rig configuration"),
        ("[]", "two cameras"),
        ("3", "no rig configuration"),
        (json.dumps([{"cameras": [{"image_prefix": "left/", "ref_sensor": True}]}]), "two cameras"),
        (json.dumps([{"cameras": [{"image_prefix": "left/"}, {"image_prefix": "right/"}]}]), "ref_sensor"),
        (json.dumps([{"cameras": [{"ref_sensor": True}]}]), "'image_prefix' is missing"),
        (json.dumps(rig_json(image_prefix="left/")), "same image_prefix"),
        (json.dumps(rig_json(cam_from_rig_rotation=[0, 0, 0, 0])), "no rigid motion"),
        (json.dumps(rig_json(cam_from_rig_rotation=[1, 0, 0])), "four numbers"),
        (json.dumps(rig_json(cam_from_rig_translation=[math.nan, 0, 0])), "no rigid motion"),
        (json.dumps(rig_json(cam_from_rig_translation=None)), "need each other"),
        (json.dumps(rig_json(camera_model_name="PERIOD", camera_params=[1])), "not known"),
        (json.dumps(rig_json(image_prefix="centre/")), "taken at once"),
    ],
)
def test_a_damaged_rig_file_is_one_sentence(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "größe rig.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(CaptureError, match=words):
        rigs.read_rigs(str(file), shots("left/1.jpg", "right/1.jpg"))


def test_what_cannot_be_a_rig_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="cannot be read"):
        rigs.read_rigs(str(tmp_path / "none.json"), shots("left/1.jpg"))
    with pytest.raises(CaptureError, match="one folder"):
        rigs.read_rigs("folders", shots("1.jpg", "2.jpg"))
    with pytest.raises(CaptureError, match="same name"):
        rigs.read_rigs("folders", shots("a/1.jpg", "b/2.jpg"))
    footage = Footage(tmp_path, "photos", False, (Shot("a/1.jpg", "", 64, 48), Shot("a/2.jpg", "", 48, 64)))
    with pytest.raises(CaptureError, match="48 x 64 pixels and others 64 x 48"):
        rigs.with_cameras(footage, (rigs.Rig((rigs.Member("a/"), rigs.Member("b/"))),))
    with pytest.raises(ConfigError, match="auto with a rig"):
        PoseConfig(rig="folders", cameras="one")


def test_a_rig_of_pictures_that_do_not_fit_ends_in_a_sentence(tmp_path: Path) -> None:
    """The engine's own process, from the option to the words."""
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((48, 64), dtype=np.uint8)).save(tmp_path / "images" / name)
    footage = Footage(tmp_path, "photos", False, shots("a/1.png", "a/2.png", "b/3.png").shots)
    with pytest.raises(CaptureError, match="taken at once"):
        solve.solve(footage, PoseConfig(threads=1, rig="folders"))


def test_the_median_motion_ignores_the_minority() -> None:
    generator = torch.Generator().manual_seed(0)
    right = se3_exp(torch.tensor([1.0, 2.0, 3.0, 0.3, -0.2, 0.1], dtype=torch.float64))
    motions = right.repeat(9, 1, 1)
    motions[:4, :, :3] = so3_exp(torch.randn(4, 3, generator=generator, dtype=torch.float64))
    motions[:4, :, 3] += 10
    assert torch.allclose(rigs.median_motion(motions), right)
