from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightfold.cameras import Camera, Lens
from lightfold.errors import CaptureError
from lightfold.geometry import Similarity, invert, look_at, so3_exp
from lightfold.path_files import camera_path_json
from lightfold.scene import SceneInfo
from lightfold.viewer.keyframes import Flight, Keyframe, flight_text, moved, read_flight, write_flight
from lightfold.viewer.path_tab import LENSES


def info() -> SceneInfo:
    """A scene whose frame is far from its capture's, so that a forgotten conversion shows."""
    camera = Camera.panorama(torch.eye(4)[:3], 64, 32)
    turn = so3_exp(torch.tensor([0.3, -0.5, 0.2], dtype=torch.float64))
    frame = Similarity(0.37, turn, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    return SceneInfo(True, (camera,), ("a",), (0,), (), 0.05, (0.05,), 10.0, frame)


def pose(angle: float, height: float = 0.5) -> Tensor:
    eye = torch.tensor([2 * math.cos(angle), 2 * math.sin(angle), height], dtype=torch.float64)
    return invert(look_at(eye, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 0, 1], dtype=torch.float64)))


def ring(count: int, **options) -> Flight:
    keys = tuple(Keyframe(pose(2 * math.pi * i / count), 0.8 + 0.1 * (i % 2), 1.0 + i % 2) for i in range(count))
    return Flight(keys, **options)


def test_a_flight_passes_through_its_keyframes() -> None:
    flight = ring(5)
    times = torch.tensor([0.0, 1.0, 3.0, 4.0, 6.0])
    poses, fov = flight.at(times)
    torch.testing.assert_close(poses, torch.stack([key.world_from_cam for key in flight.keyframes]))
    torch.testing.assert_close(fov, torch.tensor([key.fov for key in flight.keyframes], dtype=torch.float64))
    assert flight.seconds == 6.0 and flight.frames == 144


def test_a_closed_flight_has_no_corner_where_it_closes() -> None:
    flight = ring(6, loop=True)
    h = 1e-3
    end = flight.seconds
    before = flight.at(torch.tensor([end - h, end]))[0][:, :, 3].diff(dim=0) / h
    after = flight.at(torch.tensor([0.0, h]))[0][:, :, 3].diff(dim=0) / h
    torch.testing.assert_close(before, after, atol=2e-2, rtol=0)


def test_fields_of_view_never_overshoot() -> None:
    keys = tuple(Keyframe(pose(0.3 * i), fov, 1.0) for i, fov in enumerate([0.4, 0.4, 1.6, 1.6, 0.5]))
    fov = Flight(keys).at(torch.linspace(0, 4, 200))[1]
    assert float(fov.min()) >= 0.4 - 1e-9 and float(fov.max()) <= 1.6 + 1e-9


@given(st.lists(st.floats(0, 6.2), min_size=1, max_size=6), st.booleans())
@settings(max_examples=30, deadline=None)
def test_every_frame_is_a_pose(angles: list[float], loop: bool) -> None:
    """Also where keyframes coincide, or there is only one."""
    flight = Flight(tuple(Keyframe(pose(a), 0.8, 0.5) for a in angles), loop=loop)
    rotation = flight.cameras().world_from_cam[:, :, :3].double()
    assert len(rotation) == flight.frames >= 1
    torch.testing.assert_close(
        rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand_as(rotation), atol=1e-5, rtol=0
    )


def test_frames_begin_and_end_at_keyframes() -> None:
    flight = ring(4)
    cameras = flight.cameras()
    torch.testing.assert_close(
        cameras.world_from_cam[0].double(), flight.keyframes[0].world_from_cam, atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        cameras.world_from_cam[-1].double(), flight.keyframes[-1].world_from_cam, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("kind", LENSES.values(), ids=LENSES)
def test_the_file_brings_back_what_was_written(kind: tuple[Lens, str], tmp_path: Path) -> None:
    lens, eyes = kind
    flight = ring(4, loop=True, fps=30.0, size=(320, 200), lens=lens, eyes=eyes)
    again = read_flight(flight_text(flight, info()), info())
    assert (again.loop, again.fps, again.size, again.lens, again.eyes) == (True, 30.0, (320, 200), lens, eyes)
    for one, other in zip(flight.keyframes, again.keyframes, strict=True):
        torch.testing.assert_close(one.world_from_cam, other.world_from_cam, atol=1e-6, rtol=0)
        assert (one.fov, one.seconds) == pytest.approx((other.fov, other.seconds))
    write_flight(tmp_path / "path.json", flight, info())
    path = camera_path_json(tmp_path / "path.json", info())
    torch.testing.assert_close(path.cameras.world_from_cam, flight.cameras().world_from_cam, atol=1e-5, rtol=0)
    assert path.fps == 30.0 and path.eyes == eyes


def test_a_path_without_keyframes_becomes_one_of_all_its_cameras() -> None:
    data = json.loads(flight_text(ring(3), info()))
    frames = len(data["camera_path"])
    del data["keyframes"]
    again = read_flight(json.dumps(data), info())
    assert len(again.keyframes) == frames and again.frames == pytest.approx(frames, abs=1)


def test_matrices_of_the_first_viewer_are_text_column_by_column() -> None:
    data = json.loads(flight_text(ring(3), info()))
    for key in data["keyframes"]:
        rows = torch.tensor(key["matrix"]).reshape(4, 4)
        key["matrix"] = json.dumps(rows.T.flatten().tolist())
    again = read_flight(json.dumps(data), info())
    torch.testing.assert_close(
        again.keyframes[1].world_from_cam, ring(3).keyframes[1].world_from_cam, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "null", '{"keyframes": [1]}', '{"keyframes": [{"matrix": "[1"}]}', "[" * 100_000,
        '{"keyframes": [{"matrix": [1, 2]}]}', '{"keyframes": [{"matrix": [0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1]}]}',
        '{"keyframes": [{"matrix": [1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1]}], "fps": 1e400}',
        '{"camera_path": [], "keyframes": []}', '{"keyframes": [{"matrix": "{}"}]}',
    ],
)  # fmt: skip
def test_bad_files_get_a_sentence(text: str) -> None:
    with pytest.raises(CaptureError, match=r"\w.*\."):
        read_flight(text, info(), "my path")


def test_moving_a_keyframe() -> None:
    keys = ring(3).keyframes
    assert moved(keys, 0, 1) == (keys[1], keys[0], keys[2])
    assert moved(keys, 0, -1) == keys and moved(keys, 2, 5) == keys
