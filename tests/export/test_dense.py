"""A dense workspace: its maps say where the ball is, and COLMAP's own fusion makes the ball of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pycolmap
import pytest
import torch
import trimesh
from analytic_sphere import RED
from ball_field import RADIUS, BallRender, ball_info, ball_views
from PIL import Image

from lightfold.cameras import Camera, Lens
from lightfold.errors import RunError
from lightfold.export.dense import pinhole, straightened, write_dense, write_map
from lightfold.formats import open_capture
from lightfold.images import read_depth

INFO = ball_info(side=64)
CAPTURE_FROM_SCENE = INFO.scene_from_capture.inverse()
CENTRE = CAPTURE_FROM_SCENE.apply(torch.zeros(3, dtype=torch.float64)).numpy()
SIZE = RADIUS / INFO.scene_from_capture.scale


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "größe mit raum"
    method = BallRender(INFO, shaded=True)
    assert write_dense(method, ball_views(method, 64), CAPTURE_FROM_SCENE, folder) > 1000  # type: ignore[arg-type]
    return folder


def read_map(path: Path) -> np.ndarray:
    """[H, W, C] as COLMAP's documentation reads a map: the column runs fastest, then the row, then the channel."""
    *size, numbers = path.read_bytes().split(b"&", 3)
    width, height, channels = (int(n) for n in size)
    return np.frombuffer(numbers, "<f4").reshape(width, height, channels, order="F").transpose(1, 0, 2)


def test_colmap_reads_its_maps_and_they_lie_on_the_ball(workspace: Path) -> None:
    model = pycolmap.Reconstruction(str(workspace / "sparse"))
    assert model.num_reg_images() == 16
    for image in list(model.images.values())[:4]:
        depth_map = pycolmap.DepthMap()
        depth_map.read(str(workspace / "stereo" / "depth_maps" / f"{image.name}.geometric.bin"))
        depth = np.squeeze(depth_map.to_array())
        normal = read_map(workspace / "stereo" / "normal_maps" / f"{image.name}.geometric.bin")
        row, column = np.nonzero(depth)
        assert len(row) > 300 and normal.shape == (64, 64, 3)
        fx, fy, cx, cy = model.cameras[image.camera_id].params
        z = depth[row, column]
        in_camera = np.stack([(column + 0.5 - cx) / fx * z, (row + 0.5 - cy) / fy * z, z], axis=1)
        pose = image.cam_from_world().matrix()
        outward = (in_camera - pose[:, 3]) @ pose[:, :3] - CENTRE
        assert np.allclose(np.linalg.norm(outward, axis=1), SIZE, atol=1e-4)
        found = normal[row, column] @ pose[:, :3]
        assert np.allclose(found, outward / SIZE, atol=1e-4)


def test_colmaps_fusion_makes_the_ball_of_it(workspace: Path) -> None:
    options = pycolmap.StereoFusionOptions()
    options.num_threads = 1
    fused = workspace / "fused"
    fused.mkdir()
    pycolmap.stereo_fusion(str(fused), str(workspace), options=options)
    pycolmap.stereo_fusion(str(fused / "fused.ply"), str(workspace), options=options, output_type="PLY")
    cloud = trimesh.load(fused / "fused.ply").metadata["_ply_raw"]["vertex"]["data"]
    away = np.stack([cloud[axis] for axis in "xyz"], axis=1) - CENTRE
    normal = np.stack([cloud[axis] for axis in ("nx", "ny", "nz")], axis=1)
    assert ((normal * away).sum(axis=1) > 0.95 * np.linalg.norm(away, axis=1)).all()
    points = pycolmap.Reconstruction(str(fused)).points3D.values()
    xyz, rgb = np.array([p.xyz for p in points]), np.array([p.color for p in points])
    assert len(xyz) > 500
    outward = (xyz - CENTRE) / SIZE
    assert np.abs(np.linalg.norm(outward, axis=1) - 1).max() < 0.04
    assert np.abs(rgb / 255 - (0.5 * outward + 0.5)).mean() < 0.05
    assert (outward.max(axis=0) > 0.9).all() and (outward.min(axis=0) < -0.9).all()


def test_the_workspace_is_a_capture_and_names_its_pictures(workspace: Path) -> None:
    read = open_capture(workspace)
    for frame in read.frames[:2]:
        assert frame.camera is not None
        depth = read_depth(frame, 64, 64)
        rays = frame.camera.rays(frame.camera.pixel_grid())
        along = (depth.reshape(-1) / frame.camera.unproject(frame.camera.pixel_grid())[:, 2])[:, None]
        away = (rays.origin + along * rays.direction - torch.from_numpy(CENTRE)).norm(dim=1)[depth.reshape(-1) > 0]
        assert len(away) > 300 and float((away - SIZE).abs().max()) < 1e-4
    assert len(read.frames) == 16 and read.points is not None and len(read.points) > 1000
    names = (workspace / "stereo" / "fusion.cfg").read_text().splitlines()
    assert sorted(names) == sorted(path.name for path in (workspace / "images").iterdir())
    assert (workspace / "stereo" / "patch-match.cfg").read_text().splitlines()[:2] == [names[0], "__auto__, 20"]
    assert (workspace / "stereo" / "consistency_graphs").is_dir()


def test_photographs_take_the_place_of_renderings_in_the_size_that_is_asked_for(tmp_path: Path) -> None:
    method = BallRender(INFO)
    grey = SimpleNamespace(view=lambda index: SimpleNamespace(rgb=torch.full((64, 64, 3), 0.5)))
    write_dense(method, ball_views(method)[:2], CAPTURE_FROM_SCENE, tmp_path, 32, grey)  # type: ignore[arg-type]
    for path in (tmp_path / "images").iterdir():
        picture = np.asarray(Image.open(path))
        assert picture.shape == (32, 32, 3) and (np.abs(picture.astype(int) - 128) <= 1).all()


def test_light_is_written_as_srgb(tmp_path: Path) -> None:
    method = BallRender(replace(INFO, hdr_exposure=1.0))
    dim = float(method.info.coded(torch.tensor(0.5)))
    photo = SimpleNamespace(view=lambda index: SimpleNamespace(rgb=torch.full((64, 64, 3), dim)))
    for folder, scene in (("photos", photo), ("renderings", None)):
        write_dense(method, ball_views(method)[:2], CAPTURE_FROM_SCENE, tmp_path / folder, 32, scene)  # type: ignore[arg-type]
    picture = np.asarray(Image.open(next((tmp_path / "photos" / "images").iterdir())))
    assert (np.abs(picture.astype(int) - 128) <= 1).all()
    rendered = np.asarray(Image.open(next((tmp_path / "renderings" / "images").iterdir())))
    expected = 255 * method.info.shown(RED).numpy()
    assert (np.abs(rendered[16, 16] - expected) <= 1).all()


def test_a_map_is_text_and_then_its_channels(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float64).reshape(2, 2, 3)
    write_map(tmp_path / "a.bin", values)
    raw = (tmp_path / "a.bin").read_bytes()
    assert raw[:6] == b"2&2&3&"
    assert np.frombuffer(raw[6:], "<f4").tolist() == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
    write_map(tmp_path / "b.bin", values[..., 0])
    assert (tmp_path / "b.bin").read_bytes()[:6] == b"2&2&1&"


def bent(lens: Lens, *distortion: float) -> Camera:
    return replace(INFO.cameras[0], lens=lens, distortion=torch.tensor(distortion))


def test_distortion_is_taken_out_of_pictures() -> None:
    """A ramp over the directions that one lens sees is the same ramp over those of the straight one."""
    for camera in (bent(Lens.OPENCV, 0.15, -0.02, 0.01, 0.0), bent(Lens.OPENCV_FISHEYE, 0.02, 0.0, 0.0, 0.0)):
        straight = pinhole(camera, "a")
        assert straight.lens is Lens.PINHOLE and straight.distortion.shape == (0,)

        def ramp(camera: Camera) -> torch.Tensor:
            return (0.5 + camera.unproject(camera.pixel_grid()) * 0.4).float().reshape(64, 64, 3)

        shown = straightened(ramp(camera), camera, straight)
        seen = shown.sum(dim=2) > 0
        assert seen.float().mean() > 0.8
        inner = torch.zeros_like(seen)
        inner[8:-8, 8:-8] = True
        assert (shown - ramp(straight)).abs()[seen & inner].max() < 2e-3


def test_lenses_without_a_pinhole_are_refused() -> None:
    wide = replace(bent(Lens.OPENCV_FISHEYE, 0.0, 0.0, 0.0, 0.0), intrinsics=torch.tensor([20.0, 20.0, 32.0, 32.0]))
    assert float(pinhole(wide, "a").fov[0]) == pytest.approx(math.pi / 2, abs=1e-4)
    assert pinhole(INFO.cameras[0], "a", 16).width == 16
    panorama = Camera.panorama(INFO.cameras[0].cam_from_world, 64, 32)
    with pytest.raises(RunError, match=r"pinhole cameras only, and view\.png has the lens EQUIRECTANGULAR"):
        pinhole(panorama, "view.png")
