"""lightfold export: what it writes lies where the cameras of the capture saw it, and what goes wrong is a sentence."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh

sys.path.insert(0, str(Path(__file__).parent / "export"))
from ball_field import RADIUS, BallDistance, BallField, ball_info

from lightfold.cameras import Camera
from lightfold.cli import export
from lightfold.config import RunConfig, TrainConfig, lookup
from lightfold.errors import ConfigError, LightfoldError, RunError
from lightfold.formats import transforms
from lightfold.geometry import Similarity
from lightfold.refine import PoseRefinement
from lightfold.run import Run
from lightfold.scene import SceneConfig

TURNED = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
SCENE_FROM_CAPTURE = Similarity(0.25, TURNED, torch.tensor([0.1, -0.2, 0.05]))
INFO = ball_info(side=64, scene_from_capture=SCENE_FROM_CAPTURE)
CENTRE = SCENE_FROM_CAPTURE.inverse().apply(torch.zeros(3, dtype=torch.float64)).numpy()
FAST = ["--views", "16", "--resolution", "32"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose method is a ball of radius 0.7 in the scene, 2.8 in the capture; its capture is gone."""
    monkeypatch.setattr(Run, "method", lambda run, step=None, device=None: BallField(run.info, shaded=True))
    config = RunConfig("/captures/ball", "nerf", lookup("nerf")[1], SceneConfig(), TrainConfig())
    return Run.create(tmp_path / "run", config, INFO).path


def cameras_of_the_capture() -> list[tuple[Camera, Camera]]:
    """Training cameras in the frame of the capture, which the photographs are in, and in that of the scene."""
    back = SCENE_FROM_CAPTURE.inverse()
    return [(INFO.cameras[i].to(torch.float64).transformed(back), INFO.cameras[i]) for i in INFO.train[:5]]


def assert_where_the_renderings_have_it(points: np.ndarray, slack: float) -> None:
    """Points in capture coordinates fall into every training picture where its rendered depth is theirs."""
    xyz = torch.from_numpy(np.asarray(points, dtype=np.float64))
    for camera, in_scene in cameras_of_the_capture():
        image = BallField(INFO).render(in_scene)
        xy, valid = camera.project(xyz)
        column, row = xy.long().unbind(1)
        depth = image.depth[row, column].double() / SCENE_FROM_CAPTURE.scale
        distance = (xyz - camera.center).norm(dim=1)
        toward = torch.nn.functional.normalize(camera.center - xyz, dim=1)
        outward = torch.nn.functional.normalize(xyz - torch.from_numpy(CENTRE), dim=1)
        front = valid & ((toward * outward).sum(dim=1) > 0.5)
        assert int(front.sum()) > 50
        assert (distance - depth)[front].abs().max() < slack


def test_a_mesh_lands_where_the_cameras_of_the_capture_saw_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export.main([str(run), "mesh", *FAST, "--source", "density", "--page"])
    said = capsys.readouterr()
    assert "triangles" in said.out and "density reaches" in said.err
    for suffix in (".ply", ".glb", ".html"):
        assert str(run / "exports" / f"mesh{suffix}") in said.out
    ply = trimesh.load(run / "exports" / "mesh.ply", process=False)
    assert_where_the_renderings_have_it(ply.vertices, slack=0.2)
    assert np.allclose(np.linalg.norm(ply.vertices - CENTRE, axis=1), RADIUS / 0.25, atol=0.1)
    glb = trimesh.load(run / "exports" / "mesh.glb", process=False, force="mesh")
    assert_where_the_renderings_have_it(np.stack([glb.vertices[:, 0], -glb.vertices[:, 2], glb.vertices[:, 1]], 1), 0.2)
    assert ply.volume > 0 and glb.volume > 0
    assert not list(run.rglob("*.partial"))


def test_a_signed_distance_makes_the_mesh_of_itself(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Run, "method", lambda run, step=None, device=None: BallDistance(run.info, shaded=True))
    for name, words in {"auto": [], "named": ["--source", "sdf"]}.items():
        export.main([str(run), "mesh", *FAST, *words, "--out", str(tmp_path / f"{name}.ply")])
    mesh = trimesh.load(tmp_path / "auto.ply", process=False)
    assert mesh.is_watertight and mesh.volume > 0
    # Marching cubes is exact where the distance is linear between samples, and it nearly is.
    assert np.allclose(np.linalg.norm(mesh.vertices - CENTRE, axis=1), RADIUS / 0.25, atol=0.01)
    assert (tmp_path / "auto.ply").read_bytes() == (tmp_path / "named.ply").read_bytes()


def test_a_dense_workspace_is_written_where_nothing_is(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(run), "cameras", "--cameras-as", "dense", "--views", "8", "--side", "32"]
    export.main(words)
    assert "renderings in their place" in capsys.readouterr().err
    assert len(list((run / "exports" / "dense" / "images").iterdir())) == 8
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="holds something already"):
        export.main([*words, "--out", str(tmp_path / "mine")])
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_points_land_there_too_and_their_normals_turn_along(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "cloud.ply"
    export.main([str(run), "points", "--views", "16", "--count", "2000", "--out", str(out), "--page"])
    cloud = trimesh.load(out)
    assert len(cloud.vertices) == 2000 and out.with_suffix(".html").is_file()
    assert_where_the_renderings_have_it(cloud.vertices, slack=0.2)
    rows = np.frombuffer(out.read_bytes().partition(b"end_header\n")[2], dtype=[("f", "<f4", 6), ("c", "u1", 3)])
    outward = (rows["f"][:, :3] - CENTRE) / np.linalg.norm(rows["f"][:, :3] - CENTRE, axis=1, keepdims=True)
    assert (rows["f"][:, 3:] * outward).sum(axis=1).min() > 0.9


def test_a_volume_lands_there_too(run: Path) -> None:
    export.main([str(run), "volume", *FAST])
    with np.load(run / "exports" / "volume.npz") as file:
        # At its own surface the ball has density 20 per scene unit, 5 per unit of the capture.
        index = np.argwhere((file["density"] > 3) & (file["density"] < 8))
        at = index @ file["frame_from_grid"][:, :3].T + file["frame_from_grid"][:, 3]
    assert_where_the_renderings_have_it(at, slack=0.2)


def test_cameras_are_where_training_has_moved_them(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that corrects poses takes its field along, so meshes fit the corrected cameras and no others."""
    index = INFO.train[1]
    moved = SimpleNamespace(info=INFO, poses=PoseRefinement(INFO.cameras))
    with torch.no_grad():
        moved.poses.tangent[index, 0] = 0.02
    monkeypatch.setattr(Run, "method", lambda run, step=None, device=None: moved)
    monkeypatch.setattr(Run, "steps", lambda run: [1])
    export.main([str(run), "cameras"])
    document = json.loads((run / "exports" / "cameras" / "transforms.json").read_text())
    for i, frame in enumerate(document["frames"]):
        given = INFO.cameras[i].to(torch.float64).transformed(SCENE_FROM_CAPTURE.inverse()).center.numpy()
        # 0.02 of the scene are 0.08 of the capture, whose axes are turned.
        shift = np.array([0.0, -0.08, 0.0]) if i == index else np.zeros(3)
        assert np.allclose(np.array(frame["transform_matrix"])[:3, 3], given + shift, atol=1e-5)


def test_cameras_are_those_of_the_capture(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export.main([str(run), "cameras"])
    assert "no longer at /captures/ball" in capsys.readouterr().err
    document = json.loads((run / "exports" / "cameras" / "transforms.json").read_text())
    for frame, index in zip(document["frames"], range(len(INFO.cameras)), strict=True):
        truth = INFO.cameras[index].to(torch.float64).transformed(SCENE_FROM_CAPTURE.inverse())
        pose = np.array(frame["transform_matrix"])[:3] @ np.diag([1, -1, -1, 1])
        assert np.allclose(pose, truth.world_from_cam.numpy(), atol=1e-5)


def test_frames_differ_by_their_similarity(run: Path, tmp_path: Path) -> None:
    boxes = {}
    for frame in ("capture", "scene"):
        export.main([str(run), "mesh", *FAST, "--frame", frame, "--out", str(tmp_path / f"{frame}.ply")])
        boxes[frame] = trimesh.load(tmp_path / f"{frame}.ply", process=False).vertices
    moved = SCENE_FROM_CAPTURE.apply(torch.from_numpy(np.array(boxes["capture"], dtype=np.float64))).numpy()
    assert np.allclose(moved, boxes["scene"], atol=1e-5)
    with pytest.raises(RunError, match=r"original frame.*--capture"):
        export.main([str(run), "cameras", "--frame", "original"])


def test_the_original_frame_is_the_captures_own(run: Path, tmp_path: Path) -> None:
    original = Similarity(3.0, torch.eye(3, dtype=torch.float64), torch.tensor([100.0, 0, 0]))
    arguments = replace(export.ExportArguments(run=str(run), what="cameras"), frame="original")
    from PIL import Image

    from lightfold.capture import Capture, Frame

    frames = []
    for i, camera in enumerate(INFO.cameras):
        path = tmp_path / "capture" / f"view_{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (96, 96)).save(path)
        frames.append(Frame(path, camera.to(torch.float64), path.name))
    transforms.write(Capture(path.parent, "transforms", tuple(frames), original_from_capture=original), path.parent)
    opened = Run.open(run)
    found = export.frame_of(opened, replace(arguments, capture=tmp_path / "capture"))
    point = torch.tensor([[0.3, 0.1, -0.2]], dtype=torch.float64)
    expected = original.apply(SCENE_FROM_CAPTURE.inverse().apply(point))
    assert torch.allclose(found.apply(point), expected)


def test_a_box_in_capture_coordinates_cuts_mesh_and_points(run: Path, tmp_path: Path) -> None:
    low, high = CENTRE + np.array([-9, -9, 0.5]), CENTRE + 9
    box = ["--box", *(f"{value:.6f}" for value in (*low, *high))]
    export.main([str(run), "mesh", *FAST, *box, "--out", str(tmp_path / "m.ply")])
    export.main([str(run), "points", "--views", "16", "--count", "500", *box, "--out", str(tmp_path / "p.ply")])
    for name in ("m.ply", "p.ply"):
        vertices = trimesh.load(tmp_path / name, process=False).vertices
        assert len(vertices) > 100 and vertices[:, 2].min() >= low[2] - 1e-4
        assert vertices[:, 2].max() == pytest.approx(CENTRE[2] + 2.8, abs=0.1)
    with pytest.raises(RunError, match="No surface was found"):
        export.main([str(run), "mesh", *FAST, "--box", "50", "50", "50", "51", "51", "51"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "from which run"),
        (["RUN"], "Say what to export: mesh, points, cameras, volume"),
        (["RUN", "mash"], "no export called 'mash'.*mesh"),
        (["RUN", "mesh", "--out", "a.fbx"], r"--out must end in \.ply or \.glb or \.obj or \.stl"),
        (["RUN", "points", "--out", "a.glb"], r"--out must end in \.ply"),
        (["RUN", "mesh", "--box", "1", "1", "1", "0", "2", "2"], "--box must be a lower and an upper corner"),
        (["RUN", "mesh", "--resolution", "1"], "--resolution must be from 8"),
        (["RUN", "mesh", "--level", "0"], "--level"),
        (["RUN", "mesh", "--least-piece", "2"], "--least-piece"),
        (["RUN", "volume", "--page"], "--page shows a mesh or points"),
        (["RUN", "mesh", "--texture-sise", "3"], "--texture-size"),
        (["RUN", "cameras", "--capture", "/nowhere"], "nothing at /nowhere"),
        (["/no/such/run", "mesh"], "There is no run folder"),
        (["RUN", "mesh", "--source", "sdf", "--views", "4"], "no sdf"),
    ],
)
def test_mistakes_are_sentences(words: list[str], sentence: str, run: Path) -> None:
    with pytest.raises(LightfoldError, match=sentence):
        export.main([str(run) if word == "RUN" else word for word in words])


def test_a_texture_needs_xatlas_and_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xatlas", None)
    with pytest.raises(RunError, match=r"xatlas: .pip install .lightfold\[mesh\]"):
        export.main([str(run), "mesh", *FAST, "--texture", "field"])
    monkeypatch.setitem(sys.modules, "fast_simplification", None)
    with pytest.raises(RunError, match=r"fast-simplification: .pip install .lightfold\[mesh\]"):
        export.main([str(run), "mesh", *FAST, "--triangles", "100"])


def test_nothing_is_lost_when_a_write_fails(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="could not be written"):
        export.main([str(run), "mesh", *FAST, "--out", str(tmp_path / "file" / "mesh.ply")])
    assert (tmp_path / "file").read_text() == "mine"


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        export.main(["--help"])
    assert "--texture" in capsys.readouterr().out
    with pytest.raises(ConfigError):
        export.main(["run", "mesh", "--formats"])
