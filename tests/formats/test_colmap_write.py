"""COLMAP models as they are written: our reader and pycolmap find the same cameras, poses, names, points and tracks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_rig import HEIGHT, WIDTH, rig, save_picture, world_points
from test_transforms import DISTORTIONS

from lightfold.cameras import Camera, Lens
from lightfold.capture import Capture, Frame, Points
from lightfold.errors import CaptureError, RunError
from lightfold.formats import open_capture
from lightfold.formats.colmap import write

LENSES = [lens for lens in DISTORTIONS if lens is not Lens.ORTHOGRAPHIC]
NAMES = ["a.png", "tag eins/b c.png", "tag eins/ä.png", "z 10.png", "图.png"]
PLAIN = [name.replace(" ", "_") for name in NAMES]


def of_lens(lens: Lens, camera: Camera) -> Camera:
    if lens is Lens.EQUIRECTANGULAR:
        return Camera.panorama(camera.cam_from_world, WIDTH, HEIGHT)
    intrinsics = camera.intrinsics.clone()
    intrinsics[1] = intrinsics[0]  # Some of COLMAP's lenses have one focal length.
    return replace(camera, intrinsics=intrinsics, distortion=torch.tensor(DISTORTIONS[lens]), lens=lens)


def points_seen() -> Points:
    """Points of which frame f sees every (f + 2)nd, and the last one nobody."""
    count = len(world_points())
    pairs = [(p, f) for f in range(5) for p in range(0, count - 1, f + 2)]
    tracks = (torch.tensor([p for p, _ in pairs]), torch.tensor([f for _, f in pairs]))
    rgb = torch.arange(3 * count).reshape(count, 3).to(torch.uint8)
    return Points(world_points(), rgb, torch.linspace(0.1, 2, count, dtype=torch.float64), tracks)


def capture_of(folder: Path, cameras: list[Camera] | None = None, names: list[str] = NAMES, **changes: Any) -> Capture:
    frames = tuple(
        Frame(save_picture(folder / "images" / name), camera, f"images/{name}")
        for name, camera in zip(names, cameras or rig(), strict=True)
    )
    return Capture(folder, "transforms", frames, **{"points": points_seen(), **changes})


def pairs_of(points: Points) -> set[tuple[int, int]]:
    assert points.tracks is not None
    return set(zip(*(index.tolist() for index in points.tracks), strict=True))


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("lens", LENSES)
def test_what_is_written_reads_back(lens: Lens, binary: bool, tmp_path: Path) -> None:
    names = NAMES if binary else PLAIN
    capture = capture_of(tmp_path, [of_lens(lens, camera) for camera in rig()], names)
    write(capture, tmp_path / "sparse" / "0", binary=binary)
    again = open_capture(tmp_path)
    assert again.format == "colmap" and again.notes == ()
    assert [frame.name for frame in again.frames] == names
    for before, after in zip(capture.frames, again.frames, strict=True):
        assert before.camera is not None and after.camera is not None and after.path.samefile(before.path)
        assert (after.camera.lens, after.camera.width, after.camera.height) == (lens, WIDTH, HEIGHT)
        torch.testing.assert_close(after.camera.cam_from_world, before.camera.cam_from_world, atol=1e-12, rtol=0)
        assert after.camera.intrinsics.tolist() == before.camera.intrinsics.tolist()
        assert after.camera.distortion.tolist() == before.camera.distortion.tolist()
    assert again.points is not None and capture.points is not None
    for key in ("xyz", "rgb", "error"):
        assert torch.equal(getattr(again.points, key), getattr(capture.points, key)), key
    assert pairs_of(again.points) <= pairs_of(capture.points)
    assert len(pairs_of(again.points)) > 0.9 * len(pairs_of(capture.points))


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("lens", LENSES)
def test_pycolmap_reads_the_same(lens: Lens, binary: bool, tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="COLMAP itself is asked what it finds")
    names = NAMES if binary else PLAIN
    capture = capture_of(tmp_path, [of_lens(lens, camera) for camera in rig()], names)
    write(capture, tmp_path / "model", binary=binary)
    model = pycolmap.Reconstruction(str(tmp_path / "model"))
    assert (model.num_cameras(), model.num_reg_images(), model.num_points3D()) == (1, 5, len(world_points()))
    assert (model.num_rigs(), model.num_reg_frames()) == (1, 5) and model.is_valid()
    camera = model.cameras[1]
    first = capture.frames[0].camera
    assert first is not None
    assert (camera.model.name, camera.width, camera.height) == (lens.value, WIDTH, HEIGHT)
    assert list(camera.params) == first.to_colmap()[1]
    for name, frame in zip(names, capture.frames, strict=True):
        image = model.find_image_with_name(name)
        assert image is not None and frame.camera is not None
        np.testing.assert_allclose(image.cam_from_world().matrix(), frame.camera.cam_from_world.numpy(), atol=1e-12)
        for seen in image.points2D:
            # COLMAP's own projection of the point lies on the observation.
            projected = camera.img_from_cam(image.cam_from_world() * model.points3D[seen.point3D_id].xyz)
            np.testing.assert_allclose(projected, seen.xy, atol=1e-6)
            assert image.image_id in {element.image_id for element in model.points3D[seen.point3D_id].track.elements}
    model.write_binary(str(tmp_path))
    for kind in ("cameras", "images", "rigs", "frames"):
        if binary:
            assert (tmp_path / f"{kind}.bin").read_bytes() == (tmp_path / "model" / f"{kind}.bin").read_bytes(), kind


def test_frames_with_the_same_intrinsics_share_a_camera(tmp_path: Path) -> None:
    cameras = rig()
    cameras[3] = replace(cameras[3], intrinsics=cameras[3].intrinsics + 1)
    write(capture_of(tmp_path, cameras, PLAIN), tmp_path / "model", binary=False)
    lines = (tmp_path / "model/cameras.txt").read_text().splitlines()
    assert [line.split()[:4] for line in lines] == [[i, "PINHOLE", "40", "30"] for i in "12"]
    images = (tmp_path / "model/images.txt").read_text(encoding="utf-8").splitlines()[::2]
    assert [line.split(maxsplit=9)[8:] for line in images] == [
        [camera, name] for camera, name in zip("11121", PLAIN, strict=True)
    ]


def test_what_is_missing_gets_colmaps_defaults_and_unposed_frames_are_left_out(tmp_path: Path) -> None:
    capture = capture_of(tmp_path, points=Points(world_points()))
    frames = (replace(capture.frames[0], camera=None), *capture.frames[1:])
    write(replace(capture, frames=frames), tmp_path / "sparse/0")
    again = open_capture(tmp_path)
    assert [frame.name for frame in again.frames] == NAMES[1:]
    assert again.points is not None and again.points.rgb is not None and again.points.error is not None
    assert again.points.rgb.max() == 0 and (again.points.error == -1).all() and pairs_of(again.points) == set()
    write(replace(capture, frames=frames, points=None), tmp_path / "sparse/0")
    assert len(open_capture(tmp_path).points or ()) == 0


def test_points_that_a_frame_cannot_see_are_no_observations(tmp_path: Path) -> None:
    camera = rig()[0]
    behind = camera.center - camera.forward
    tracks = (torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 0]))
    points = Points(torch.stack([behind, world_points()[0]]), tracks=tracks)
    write(capture_of(tmp_path, points=points), tmp_path / "sparse/0")
    again = open_capture(tmp_path).points
    assert again is not None and (0, 0) not in pairs_of(again) and (1, 0) in pairs_of(again)


def test_names_are_relative_to_the_pictures(tmp_path: Path) -> None:
    capture = capture_of(tmp_path, names=PLAIN)
    for root, name in ((tmp_path, " z_10.png"), (tmp_path.parent, f" {tmp_path.name}/images/z_10.png")):
        write(replace(capture, root=root), tmp_path / "a", binary=False)
        assert name in (tmp_path / "a/images.txt").read_text(encoding="utf-8")
    # Where a picture lies outside the root, the names that the frames have must do.
    write(replace(capture, root=tmp_path / "images" / "tag_eins"), tmp_path / "a", binary=False)
    assert " z_10.png" in (tmp_path / "a/images.txt").read_text(encoding="utf-8")
    twice = replace(capture, frames=(capture.frames[0], capture.frames[0]))
    with pytest.raises(CaptureError, match="several frames of one picture"):
        write(twice, tmp_path / "b")


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    capture = capture_of(tmp_path)
    flat = replace(capture, frames=(replace(capture.frames[0], camera=replace(rig()[0], lens=Lens.ORTHOGRAPHIC)),))
    with pytest.raises(CaptureError, match=r"a.png has the lens ORTHOGRAPHIC, which COLMAP does not have"):
        write(flat, tmp_path / "model")
    unposed = replace(capture, frames=(replace(capture.frames[0], camera=None),))
    with pytest.raises(CaptureError, match="no frame with a pose"):
        write(unposed, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    write(capture, tmp_path / "model")
    with pytest.raises(CaptureError, match=r"holds a COLMAP model in .bin files already"):
        write(capture, tmp_path / "model", binary=False)
    write(capture, tmp_path / "model")
    with pytest.raises(CaptureError, match=r"tag eins/b c.png has a space in its name"):
        write(capture, tmp_path / "text", binary=False)
    with pytest.raises(RunError, match="could not be written"):
        write(capture, save_picture(tmp_path / "file.png") / "model")
