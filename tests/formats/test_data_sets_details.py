"""What is particular to each published data set: splits, resolutions, lights, subsets, and frames that do not count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_sets import (
    CX,
    CY,
    FX,
    FY,
    HEIGHT,
    WIDTH,
    Written,
    arkitscenes,
    blendedmvs,
    deepvoxels,
    dtu,
    eyefultower,
    fvs,
    linemod,
    matrix,
    mvsnet,
    mvsnet_camera,
    nerfpp,
    nsvf,
    pfm,
    phototourism,
    picture,
    pinhole,
    points,
    poses,
    scannet,
    scannetpp,
    text,
)

from lightfold import formats
from lightfold.capture import Capture
from lightfold.errors import CaptureError
from lightfold.formats import open_capture
from lightfold.images import Resize, prepare, read_depth


def edit(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | changes))


def pixels(capture: Capture, number: int) -> np.ndarray:
    camera = capture.frames[number].camera
    assert camera is not None
    projected: np.ndarray = camera.project(torch.from_numpy(points()))[0].numpy()
    return projected


def center(capture: Capture, number: int) -> np.ndarray:
    camera = capture.frames[number].camera
    assert camera is not None
    found: np.ndarray = camera.center.numpy()
    return found


# --- rooms ----------------------------------------------------------------------------------------------------------


def test_scannet_leaves_out_where_tracking_was_lost(tmp_path: Path) -> None:
    scannet(tmp_path)
    text(tmp_path / "pose/3.txt", *np.full((4, 4), -np.inf))
    capture = open_capture(tmp_path)
    assert [frame.name for frame in capture.frames] == [f"color/{i}.jpg" for i in (0, 1, 2, 4)]
    assert "tracking was lost" in capture.notes[0] and "3.jpg" in capture.notes[0]
    assert capture.metric and capture.up is not None and capture.up.tolist() == [0, 0, 1]


def test_scannet_pictures_of_another_size_are_remarked(tmp_path: Path) -> None:
    scannet(tmp_path)
    picture(tmp_path / "color/1.jpg", WIDTH * 2, HEIGHT * 2)
    assert any("1.jpg" in note and "may belong to another size" in note for note in open_capture(tmp_path).notes)


def test_scannetpp_bad_frames_masks_and_lists(tmp_path: Path) -> None:
    scannetpp(tmp_path)
    dslr = tmp_path / "dslr"
    file = dslr / "nerfstudio/transforms.json"
    frames = json.loads(file.read_text())["frames"]
    frames[1]["is_bad"] = True
    (dslr / "resized_anon_masks/DSC00002.png").unlink()
    edit(file, frames=frames)
    for path in (tmp_path, dslr, file):
        capture = open_capture(path)
        assert capture.root == dslr and [f.path.stem[-1] for f in capture.frames] == ["0", "2", "3", "4"]
        assert [frame.mask is not None for frame in capture.frames] == [True, False, True, True]
        assert any("bad (is_bad): DSC00001.jpg" in note for note in capture.notes)
    values = json.loads(file.read_text())
    values["frames"] += values.pop("test_frames")
    file.write_text(json.dumps(values))
    (dslr / "train_test_lists.json").write_text(json.dumps({"train": ["DSC00000.jpg"], "test": ["DSC00003.jpg"]}))
    capture = open_capture(tmp_path)
    assert [(f.path.stem[-1], f.split) for f in capture.frames] == [("0", "train"), ("3", "test")]
    assert any("in neither list" in note for note in capture.notes)


def test_scannetpp_masks_and_depths_from_elsewhere_are_not_followed(tmp_path: Path) -> None:
    scannetpp(tmp_path / "scene")
    outside = tmp_path / "outside.png"
    picture(outside, mode="L")
    file = tmp_path / "scene/dslr/nerfstudio/transforms.json"
    frames = json.loads(file.read_text())["frames"]
    for frame, named in zip(frames, ("../../../outside.png", str(outside), "", "x"), strict=True):
        frame |= {"mask_path": named, "depth_file_path": str(outside), "depth_path": str(outside)}
    edit(file, frames=frames, mask_path=str(outside), depth_file_path=str(outside), depth_path=str(outside))
    capture = open_capture(tmp_path / "scene")
    assert [frame.mask is not None for frame in capture.frames] == [False] * 4 + [True]
    assert all(frame.depth is None for frame in capture.frames)


def test_scannetpp_undistorted_copies_and_the_phone(tmp_path: Path) -> None:
    scannetpp(tmp_path)
    file = tmp_path / "dslr/nerfstudio/transforms.json"
    other = file.with_name("transforms_undistorted.json")
    other.write_text(
        json.dumps(json.loads(file.read_text()) | {"camera_model": "PINHOLE", "k1": 0, "k2": 0, "k3": 0, "k4": 0})
    )
    assert not formats.scannetpp.sniff(other)
    (tmp_path / "dslr/resized_images").rename(tmp_path / "dslr/resized_undistorted_images")
    capture = open_capture(other)
    assert capture.frames[0].name == "resized_undistorted_images/DSC00000.jpg"
    np.testing.assert_allclose(pixels(capture, 1), pinhole(matrix(), poses()[1])(points()), atol=1e-6)
    (tmp_path / "dslr").rename(tmp_path / "iphone")
    (tmp_path / "iphone/resized_undistorted_images").rename(tmp_path / "iphone/rgb")
    (tmp_path / "iphone/depth").mkdir()
    (tmp_path / "iphone/depth/DSC00001.png").write_bytes(b"")
    capture = open_capture(tmp_path / "iphone")
    assert [frame.depth is not None for frame in capture.frames] == [False, True, False, False, False]


def test_arkitscenes_between_two_poses_and_away_from_all(tmp_path: Path) -> None:
    written = arkitscenes(tmp_path)
    root = written.path / "41069021_frames"
    # Between two poses, away from all, and at no time at all.
    for time in ("6845.750", "6850.000", "x"):
        picture(root / f"lowres_wide/41069021_{time}.png")
        text(root / f"lowres_wide_intrinsics/41069021_{time}.pincam", [WIDTH, HEIGHT, FX, FY, CX, CY])
    capture = open_capture(written.path)
    assert len(capture) == 6 and [frame.time for frame in capture.frames[:2]] == [6845.7, 6845.75]
    share = (6845.75 - 6845.702) / 0.1
    between = center(capture, 0) * (1 - share) + center(capture, 2) * share
    np.testing.assert_allclose(center(capture, 1), between, atol=1e-6)
    first, middle, last = (capture.frames[i].camera for i in range(3))
    assert first is not None and middle is not None and last is not None

    def angle(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.arccos(((a.T @ b).trace() - 1) / 2))

    turned = [camera.cam_from_world[:, :3] for camera in (first, middle, last)]
    assert angle(turned[0], turned[1]) == pytest.approx(share * angle(turned[0], turned[2]), rel=1e-4)
    for words in ("given one interpolated", "no pose at their time", "does not end in a time"):
        assert any(words in note for note in capture.notes)


def test_arkitscenes_other_resolutions(tmp_path: Path) -> None:
    written = arkitscenes(tmp_path)
    root = written.path / "41069021_frames"
    picture(root / "vga_wide/41069021_6845.700.png", 2 * WIDTH, 2 * HEIGHT)
    text(root / "vga_wide_intrinsics/41069021_6845.700.pincam", [2 * WIDTH, 2 * HEIGHT, 2 * FX, 2 * FY, 2 * CX, 2 * CY])
    capture = open_capture(root / "vga_wide")
    assert capture.format == "arkitscenes" and len(capture) == 1
    np.testing.assert_allclose(pixels(capture, 0), 2 * pinhole(matrix(), poses()[0])(points()), atol=1e-6)


# --- sights and objects ---------------------------------------------------------------------------------------------


def test_phototourism_says_what_it_leaves_out(tmp_path: Path) -> None:
    phototourism(tmp_path)
    file = tmp_path / "brandenburg.tsv"
    file.write_text(file.read_text() + "not there.jpg\t99.0\ttrain\tbrandenburg_gate\n")
    capture = open_capture(file)
    assert any("not used by brandenburg.tsv: photo 4.jpg" in note for note in capture.notes)
    assert any("not in the model: not there.jpg" in note for note in capture.notes)
    # The point was seen by photographs 0 and 4, of which one is left.
    assert capture.points is not None and capture.points.tracks is not None
    assert capture.points.tracks[1].tolist() == [0]
    file.write_text("filename\tid\tsplit\tdataset\nother.jpg\t1\ttrain\tx\n")
    with pytest.raises(CaptureError, match="names none of the 5 pictures"):
        open_capture(tmp_path)


def test_nsvf_validation_box_and_intrinsics_of_one_line(tmp_path: Path) -> None:
    nsvf(tmp_path)
    for kind, end in (("rgb", "png"), ("pose", "txt")):
        (tmp_path / f"{kind}/1_00004.{end}").rename(tmp_path / f"{kind}/2_00004.{end}")
        (tmp_path / f"{kind}/0_00003.{end}").rename(tmp_path / f"{kind}/1_00003.{end}")
    capture = open_capture(tmp_path)
    assert [frame.split for frame in capture.frames] == ["train", "train", "train", "test"]
    assert any("validation split: 1_00003.png" in note for note in capture.notes)
    assert capture.bounds is not None and capture.bounds.tolist() == [[-0.5] * 3, [0.5, 0.5, 0.6]]
    assert capture.background == "white"
    text(
        tmp_path / "intrinsics.txt",
        f"{2 * FX} {2 * CX} {2 * CY} 0.",
        "0. 0. 0.",
        "0.",
        "1.",
        f"{2 * HEIGHT} {2 * WIDTH}",
    )
    k = matrix((FX, FX, CX, CY))
    np.testing.assert_allclose(pixels(open_capture(tmp_path), 1), pinhole(k, poses()[1])(points()), atol=1e-6)
    (tmp_path / "bbox.txt").write_text("1 1 1 0 0 0 0.1")
    assert open_capture(tmp_path).bounds is None


def test_nsvf_names_that_differ_are_matched_by_order(tmp_path: Path) -> None:
    written = nsvf(tmp_path)
    for i, file in enumerate(sorted((tmp_path / "pose").iterdir())):
        file.rename(file.with_name(f"matrix {i}.txt"))
    capture = open_capture(tmp_path)
    np.testing.assert_allclose(pixels(capture, 3), written.project["rgb/0_00003.png"](points()), atol=1e-6)
    (tmp_path / "pose/matrix 0.txt").unlink()
    with pytest.raises(CaptureError, match="5 pictures and 4 poses of other names"):
        open_capture(tmp_path)


def test_nerfpp_damage_costs_one_frame(tmp_path: Path) -> None:
    nerfpp(tmp_path)
    (tmp_path / "train/intrinsics/000000.txt").write_text("1 2 3")
    (tmp_path / "train/intrinsics/000001.txt").unlink()
    (tmp_path / "train/pose/000002.txt").write_text("x")
    capture = open_capture(tmp_path)
    assert [frame.name for frame in capture.frames] == ["train/rgb/000003.png", "test/rgb/000004.png"]
    assert len(capture.notes) == 2


def test_fvs_takes_the_largest_pictures_and_refuses_promises(tmp_path: Path) -> None:
    fvs(tmp_path)
    fvs(tmp_path / "other")
    (tmp_path / "other/dense/ibr3d_pw_0.50").rename(tmp_path / "dense/ibr3d_pw_0.25")
    assert open_capture(tmp_path).root.name == "ibr3d_pw_0.50"
    assert open_capture(tmp_path / "dense/ibr3d_pw_0.25").root.name == "ibr3d_pw_0.25"
    file = tmp_path / "dense/ibr3d_pw_0.50/Ks.npy"
    file.write_bytes(file.read_bytes().replace(b"(5, 3, 3), ", b"(10**9,3,3)"))
    with pytest.raises(CaptureError, match="Ks.npy"):
        open_capture(tmp_path)
    np.save(file, np.ones((999, 3, 3)))
    with pytest.raises(CaptureError, match="999, 5 and 5"):
        open_capture(tmp_path)
    np.save(file, np.array([{"a": 1}] * 5), allow_pickle=True)
    with pytest.raises(CaptureError, match="Ks.npy"):
        open_capture(tmp_path)


def test_deepvoxels_objects_depths_and_the_flag(tmp_path: Path) -> None:
    written = deepvoxels(tmp_path)
    capture = open_capture(tmp_path)
    assert capture.near is not None and capture.far is not None
    radius = np.mean([np.linalg.norm(center(capture, i)) for i in range(5)])
    assert (capture.near, capture.far) == (pytest.approx(radius - 1), pytest.approx(radius + 1))
    for part in ("train", "test"):
        file = tmp_path / part / "cube/intrinsics.txt"
        file.write_text(file.read_text() + "1\n")
    for i, pose in enumerate(poses()):
        text(tmp_path / ("test" if i == 4 else "train") / f"cube/pose/{i:06d}.txt", pose)
    np.testing.assert_allclose(
        pixels(open_capture(tmp_path), 1), written.project["train/cube/rgb/000001.png"](points()), atol=1e-6
    )
    (tmp_path / "train/vase").mkdir()
    for part in ("rgb", "pose"):
        (tmp_path / "train/vase" / part).mkdir()
    (tmp_path / "train/vase/intrinsics.txt").touch()
    with pytest.raises(CaptureError, match=r"2 objects \(cube, vase\); name one"):
        open_capture(tmp_path)
    assert len(open_capture(tmp_path / "train/cube")) == 5


def test_linemod_depths_and_pictures_of_one_name(tmp_path: Path) -> None:
    linemod(tmp_path)
    capture = open_capture(tmp_path)
    assert (capture.near, capture.far) == (1.0, 5.0)
    assert all(frame.path.is_relative_to(tmp_path) for frame in capture.frames)
    (tmp_path / "transforms_test.json").rename(tmp_path / "transforms_val.json")
    assert [frame.split for frame in open_capture(tmp_path).frames] == ["train"] * 4 + ["test"]


# --- stereo ---------------------------------------------------------------------------------------------------------


def test_mvsnet_depth_ranges(tmp_path: Path) -> None:
    mvsnet(tmp_path)
    capture = open_capture(tmp_path)
    assert (capture.near, capture.far) == (1.5, 9.0)
    mvsnet_camera(tmp_path / "cams/00000003_cam.txt", poses()[3], matrix(), "0 0.1 11")
    capture = open_capture(tmp_path)
    assert capture.near is None and capture.far == 9.0
    mvsnet_camera(tmp_path / "cams/00000003_cam.txt", poses()[3], matrix(), "2 0.1")
    assert open_capture(tmp_path).far is None


def test_pfm_rows_stand_on_their_head(tmp_path: Path) -> None:
    blendedmvs(tmp_path)
    values = np.arange(1.0, HEIGHT * WIDTH + 1).reshape(HEIGHT, WIDTH)
    for order in "<>":
        pfm(tmp_path / "rendered_depth_maps/00000000.pfm", values, order)
        depth = read_depth(open_capture(tmp_path).frames[0], WIDTH, HEIGHT)
        assert torch.equal(depth, torch.from_numpy(values).float())


def test_dtu_lights(tmp_path: Path) -> None:
    scan = dtu(tmp_path).path
    capture = open_capture(scan)
    assert all("_3_" in frame.name for frame in capture.frames) and "0, max" in capture.notes[-1]
    capture = open_capture(scan / "rect_002_max.png")
    assert [frame.name for frame in capture.frames] == [f"rect_{i:03d}_max.png" for i in range(1, 6)]
    for file in scan.glob("*_3_*"):
        file.unlink()
    assert len(open_capture(scan)) == 5


def test_dtu_as_mvsnet_stores_it(tmp_path: Path) -> None:
    scan = tmp_path / "Rectified/scan65_train"
    full = (2892.33, 2883.18, 823.2, 619.07)
    for i, pose in enumerate(poses()):
        picture(scan / f"rect_{i + 1:03d}_3_r5000.png", 640, 512)
        # Halved, cropped by 80 and 44, and divided by 4, on paper: as if pixels had no extent.
        small = (full[0] / 8, full[1] / 8, (full[2] / 2 - 80) / 4, (full[3] / 2 - 44) / 4)
        mvsnet_camera(tmp_path / f"Cameras/train/{i:08d}_cam.txt", pose, matrix(small), "425.0 2.5")
        pfm(tmp_path / f"Depths/scan65_train/depth_map_{i:04d}.pfm", np.full((128, 160), 600.0))
    capture = open_capture(scan)
    in_full = pinhole(matrix(full), poses()[2], shift=0.5)(points())
    np.testing.assert_allclose(pixels(capture, 2), in_full / 2 - [80, 44], atol=1e-6)
    assert float(read_depth(capture.frames[0], 640, 512).mean()) == 600


def test_dtu_without_cameras_says_where_they_were_looked_for(tmp_path: Path) -> None:
    scan = dtu(tmp_path).path
    for file in (tmp_path / "Calibration/cal18").iterdir():
        file.unlink()
    with pytest.raises(CaptureError, match=r"Calibration/cal18/pos_001.txt and the like\) is not on disk"):
        open_capture(scan)


# --- the tower ------------------------------------------------------------------------------------------------------


def test_tower_crop_subset_and_resolution(tmp_path: Path) -> None:
    written: Written = eyefultower(tmp_path)
    capture = open_capture(written.path)
    assert capture.metric and capture.up is not None and capture.up.tolist() == [0, 1, 0]
    # 0.45 of the width, in pixels of the pictures; what lies outside does not count.
    assert capture.fisheye_crop_radius == pytest.approx(0.45 * 30)
    prepared = prepare(capture.frames[0], Resize(1.0, 100), capture.fisheye_crop_radius)
    assert prepared.mask is not None
    assert [int(prepared.mask[20, x]) for x in (0, 1, 2, 15, 27, 28, 29)] == [0, 0, 255, 255, 255, 0, 0]
    assert [f.name[-8:-4] for f in open_capture(written.path, subset=3).frames] == ["0000", "0002", "0004"]
    assert [f.split for f in open_capture(written.path, subset=0.4).frames] == ["train", "test"]
    assert len(open_capture(written.path, subset=1)) == 1 and len(open_capture(written.path, subset=1000)) == 5
    for subset in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="subset"):
            open_capture(written.path, subset=subset)
    for name in ("0/0_DSC0000", "2/2_DSC0002"):
        picture(written.path / f"images-jpeg/{name}.jpg", 60, 80)
    for path, width, count in ((written.path, 60, 2), (written.path / "images-jpeg-1k", 30, 5)):
        capture = open_capture(path)
        camera = capture.frames[0].camera
        assert camera is not None and camera.width == width and len(capture) == count
        assert any("to use another resolution" in note for note in capture.notes)
    written.path.rename(tmp_path / "bedroom")
    capture = open_capture(tmp_path / "bedroom")
    assert capture.fisheye_crop_radius is None and any("No crop radius" in note for note in capture.notes)


def test_tower_light(tmp_path: Path) -> None:
    exr = pytest.importorskip("OpenEXR")
    written = eyefultower(tmp_path)
    for i in range(5):
        camera = 5 if i == 4 else i
        file = written.path / f"images-1k/{camera}/{camera}_DSC{i:04d}.exr"
        file.parent.mkdir(parents=True)
        exr.File({}, {"RGB": np.ones((40, 30, 3), dtype=np.float32)}).write(str(file))
    capture = open_capture(written.path / "images-1k")
    assert len(capture) == 5
    assert all(frame.colour == "linear-p3" for frame in capture.frames)
    assert capture.frames[0].white_balance == (0.653298, 1.0, 2.139514)
    assert all(frame.colour is None for frame in open_capture(written.path).frames)
    np.testing.assert_allclose(
        pixels(capture, 1), written.project["images-jpeg-1k/1/1_DSC0001.jpg"](points()), atol=1e-6
    )
