"""COLMAP models: both encodings, odd ids and names, several models, and damaged files."""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_rig import HEIGHT, WIDTH, colmap_model, colmap_pose, rig, save_picture, world_points, write_colmap

from lightfold.cameras import Camera, Lens
from lightfold.errors import CaptureError
from lightfold.formats import open_capture
from lightfold.formats.colmap import MODELS, read, sniff

NAMES = ["a/one picture.png", "b/2.jpg", "b/10.jpg", "Bär.png", "x.tif"]
PARAMS = {
    "SIMPLE_PINHOLE": [30.0, 20.5, 14.0],
    "PINHOLE": [30.0, 31.0, 20.5, 14.0],
    "SIMPLE_RADIAL": [30.0, 20.5, 14.0, 0.1],
    "RADIAL": [30.0, 20.5, 14.0, 0.1, -0.02],
    "OPENCV": [30.0, 31.0, 20.5, 14.0, 0.1, -0.02, 0.001, 0.002],
    "OPENCV_FISHEYE": [30.0, 31.0, 20.5, 14.0, 0.1, -0.02, 0.001, 0.002],
    "FULL_OPENCV": [30.0, 31.0, 20.5, 14.0, 0.1, -0.02, 0.001, 0.002, 0.01, 0.02, 0.03, 0.04],
    "FOV": [30.0, 31.0, 20.5, 14.0, 0.9],
    "SIMPLE_RADIAL_FISHEYE": [30.0, 20.5, 14.0, 0.1],
    "RADIAL_FISHEYE": [30.0, 20.5, 14.0, 0.1, -0.02],
    "THIN_PRISM_FISHEYE": [30.0, 31.0, 20.5, 14.0, 0.1, -0.02, 0.001, 0.002, 0.01, 0.02, 0.003, 0.004],
}


def pictures(folder: Path, names: list[str] = NAMES) -> None:
    for name in names:
        save_picture(folder / name)


def model(folder: Path, binary: bool = True, names: list[str] = NAMES, cameras: list[Camera] | None = None) -> Path:
    return write_colmap(folder, binary, *colmap_model(cameras or rig(), names))


@pytest.mark.parametrize("binary", [True, False])
def test_poses_points_and_tracks(binary: bool, tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    model(tmp_path / "sparse" / "0", binary)
    capture = read(tmp_path)
    assert [frame.name for frame in capture.frames] == ["a/one picture.png", "b/2.jpg", "b/10.jpg", "Bär.png", "x.tif"]
    for frame, truth in zip(capture.frames, rig(), strict=True):
        assert frame.camera is not None
        torch.testing.assert_close(frame.camera.cam_from_world, truth.cam_from_world, atol=1e-12, rtol=0)
        assert frame.camera.intrinsics.tolist() == truth.intrinsics.tolist()
    points = capture.points
    assert points is not None and points.rgb is not None and points.error is not None and points.tracks is not None
    assert points.xyz.tolist() == [[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]]
    assert points.rgb.tolist() == [[10, 20, 30], [255, 0, 1]]
    assert points.error.tolist() == [0.5, 1.5]
    # Point 0 was seen by the images of ids 31 and 3, which are the first two names.
    assert points.tracks[0].tolist() == [0, 0]
    assert points.tracks[1].tolist() == [0, 1]
    assert capture.notes == ()


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name", list(PARAMS))
def test_every_lens_model(name: str, binary: bool, tmp_path: Path) -> None:
    number = next(i for i, (known, _) in MODELS.items() if known == name)
    pictures(tmp_path, ["a.png"])
    image = (1, colmap_pose(rig()[0]), 3, "a.png", [])
    write_colmap(tmp_path, binary, [(3, number, name, WIDTH, HEIGHT, PARAMS[name])], [image], [])
    camera = read(tmp_path).frames[0].camera
    assert camera is not None and camera.lens is Lens(name)
    expected = Camera.from_colmap(name, PARAMS[name], WIDTH, HEIGHT, rig()[0].cam_from_world)
    torch.testing.assert_close(
        camera.project(world_points())[0], expected.project(world_points())[0], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("number", "name", "message"),
    [
        (11, "RAD_TAN_THIN_PRISM_FISHEYE", r"\(RAD_TAN_THIN_PRISM_FISHEYE, number 11\)"),
        (16, "EUCM", r"\(EUCM, number 16\)"),
        (99, "NEW_LENS", r"\((number 99, unknown|NEW_LENS, number unknown)\)"),
        (-1, "OLD", r"\((number -1, unknown|OLD, number unknown)\)"),
    ],
)
@pytest.mark.parametrize("binary", [True, False])
def test_models_without_a_lens_are_refused_by_number_and_name(
    number: int, name: str, message: str, binary: bool, tmp_path: Path
) -> None:
    pictures(tmp_path, ["a.png"])
    rows = [(3, number, name, WIDTH, HEIGHT, [1.0] * 6)]
    write_colmap(tmp_path, binary, rows, [(1, colmap_pose(rig()[0]), 3, "a.png", [])], [])
    with pytest.raises(CaptureError, match=rf"Camera 3 of .* {message}.*Supported are SIMPLE_PINHOLE"):
        read(tmp_path)


# --- where things are ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_at", "pictures_at", "opened"),
    [
        ("sparse/0", "images", "."),
        ("sparse", "images", "."),
        ("colmap/sparse/0", "images", "."),
        ("colmap/sparse/0", "colmap/images", "."),
        ("dense/sparse", "dense/images", "."),
        (".", "images", "."),
        (".", ".", "."),
        ("sparse/0", ".", "."),
        ("sparse/0", "images", "sparse/0"),
        ("sparse", "images", "sparse"),
        ("sparse/0", "images_4", "images_4"),
        ("sparse/0", "images_2", "."),
    ],
)
def test_models_and_pictures_are_found_where_tools_put_them(
    model_at: str, pictures_at: str, opened: str, tmp_path: Path
) -> None:
    pictures(tmp_path / pictures_at)
    model(tmp_path / model_at)
    assert sniff(tmp_path / opened)
    capture = open_capture(tmp_path / opened)
    assert (capture.format, len(capture)) == ("colmap", 5)
    assert capture.frames[0].path.samefile(tmp_path / pictures_at / NAMES[0])


def test_full_size_pictures_go_before_smaller_ones_which_can_be_named(tmp_path: Path) -> None:
    model(tmp_path / "sparse/0", names=["a.jpg"], cameras=rig()[:1])
    save_picture(tmp_path / "images/a.jpg")
    # The same picture at half the size, saved with another suffix.
    save_picture(tmp_path / "images_2/a.png", WIDTH // 2, HEIGHT // 2)
    capture = open_capture(tmp_path)
    assert capture.frames[0].path == tmp_path / "images" / "a.jpg"
    assert capture.frames[0].smaller == {2: tmp_path / "images_2" / "a.png"}
    assert any("--scene.downscale 2 uses them" in note for note in capture.notes)
    half = open_capture(tmp_path / "images_2").frames[0]
    assert half.path == tmp_path / "images_2" / "a.png"
    assert half.camera is not None and half.camera.intrinsics[:3].tolist() == [18.5, 17.75, 9.15]


def test_undistorted_pictures_go_with_the_undistorted_model(tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    pictures(tmp_path / "dense/images")
    model(tmp_path / "dense/sparse")
    assert read(tmp_path).frames[0].path == tmp_path / "dense/images" / NAMES[0]


def test_the_largest_of_several_models_is_taken(tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    model(tmp_path / "sparse/0", names=NAMES[:2], cameras=rig()[:2])
    model(tmp_path / "sparse/1", binary=False)
    model(tmp_path / "sparse/10", names=NAMES[:3], cameras=rig()[:3])
    capture = read(tmp_path)
    assert len(capture) == 5
    (note,) = capture.notes
    assert f"Of 3 models, {tmp_path}/sparse/1 with 5 images is used" in note
    assert "sparse/0 (2 images)" in note and "sparse/10 (3 images)" in note


def test_masks_and_depths_beside_the_pictures(tmp_path: Path) -> None:
    names = ["a/1.jpg", "a/2.jpg", "3.jpg"]
    model(tmp_path / "sparse/0", names=names, cameras=rig()[:3])
    pictures(tmp_path / "images", names)
    for name in ("masks/a/1.jpg.png", "masks/a/2.png", "depths/3.png"):
        save_picture(tmp_path / name, mode="L")
    frames = {frame.name: frame for frame in read(tmp_path).frames}
    assert frames["a/1.jpg"].mask == tmp_path / "masks/a/1.jpg.png"
    assert frames["a/2.jpg"].mask == tmp_path / "masks/a/2.png"
    assert frames["3.jpg"].mask is None and frames["3.jpg"].depth == tmp_path / "depths/3.png"
    assert not frames["3.jpg"].mask_inverted


def test_depths_of_a_dense_workspace_are_in_its_unit(tmp_path: Path) -> None:
    names = ["1.jpg", "2.jpg", "3.jpg"]
    model(tmp_path / "sparse", names=names, cameras=rig()[:3])
    pictures(tmp_path / "images", names)
    maps = tmp_path / "stereo" / "depth_maps"
    maps.mkdir(parents=True)
    for name in ("1.jpg.geometric.bin", "1.jpg.photometric.bin", "2.jpg.photometric.bin"):
        (maps / name).write_bytes(b"1&1&1&" + bytes(4))
    first, second, third = read(tmp_path).frames
    assert (first.depth, first.depth_scale) == (maps / "1.jpg.geometric.bin", 1.0)
    assert (second.depth, second.depth_scale) == (maps / "2.jpg.photometric.bin", 1.0)
    assert (third.depth, third.depth_scale) == (None, 0.001)


def test_missing_pictures_are_noted_and_their_observations_dropped(tmp_path: Path) -> None:
    pictures(tmp_path / "images", NAMES[1:])
    model(tmp_path / "sparse/0")
    capture = read(tmp_path)
    assert len(capture) == 4
    assert capture.notes == ("1 of 5 images were left out because the picture is not on disk: a/one picture.png.",)
    assert capture.points is not None and capture.points.tracks is not None
    assert capture.points.tracks[0].tolist() == [0] and capture.points.tracks[1].tolist() == [0]


def test_no_picture_at_all(tmp_path: Path) -> None:
    model(tmp_path / "sparse/0")
    with pytest.raises(
        CaptureError, match=r"None of the 5 pictures .*such as a/one picture.png.*Put them into a folder 'images'"
    ):
        read(tmp_path)


def test_a_folder_without_model(tmp_path: Path) -> None:
    assert not sniff(tmp_path)
    with pytest.raises(CaptureError, match=r"holds no COLMAP model\. Looked for"):
        read(tmp_path)


def test_points_may_be_absent(tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    model(tmp_path / "sparse/0")
    (tmp_path / "sparse/0/points3D.bin").unlink()
    capture = read(tmp_path)
    assert capture.points is None
    assert "has no points3D file" in capture.notes[0]


# --- values that cannot be -------------------------------------------------------------------------------------------


def test_images_that_cannot_be_used_are_left_out(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png", "b.png", "c.png", "d.png"])
    cameras = [
        (1, 1, "PINHOLE", WIDTH, HEIGHT, [30.0, 30.0, 20.0, 15.0]),
        (2, 0, "SIMPLE_PINHOLE", WIDTH, HEIGHT, [math.nan, 1, 1]),
    ]
    pose = colmap_pose(rig()[0])
    images = [
        (1, pose, 1, "a.png", []),
        (2, [0.0] * 4 + pose[4:], 1, "b.png", []),
        (3, [*pose[:6], math.nan], 1, "c.png", []),
        (4, pose, 9, "d.png", []),
        (5, pose, 1, "a.png", []),
    ]
    write_colmap(tmp_path, True, cameras, images, [])
    capture = read(tmp_path)
    assert [frame.name for frame in capture.frames] == ["a.png"]
    notes = " ".join(capture.notes)
    assert "2 of 5 images were left out because the pose holds NaN" in notes
    assert "1 of 5 images were left out because their camera is not in the model: d.png" in notes
    assert "1 of 5 images were left out because an image of the same name" in notes
    write_colmap(tmp_path, True, cameras, [(1, pose, 2, "a.png", [])], [])
    with pytest.raises(CaptureError, match=r"no usable frame .*a focal length that is not positive"):
        read(tmp_path)


def test_quaternions_are_normalised_and_their_sign_does_not_matter(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png"])
    cameras, _, _ = colmap_model(rig()[:1], ["a.png"])
    pose = colmap_pose(rig()[0])
    write_colmap(tmp_path, True, cameras, [(1, [-3 * v for v in pose[:4]] + pose[4:], 7, "a.png", [])], [])
    camera = read(tmp_path).frames[0].camera
    assert camera is not None
    torch.testing.assert_close(camera.cam_from_world, rig()[0].cam_from_world, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [(0, 30), (40, 2**40)])
def test_impossible_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png"])
    rows = [(1, 0, "SIMPLE_PINHOLE", *size, [1.0, 1.0, 1.0])]
    write_colmap(tmp_path, True, rows, [(1, colmap_pose(rig()[0]), 1, "a.png", [])], [])
    with pytest.raises(CaptureError, match=r"Camera 1 of .* impossible size"):
        read(tmp_path)


# --- damaged files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cameras", "images", "points3D"])
def test_binary_files_truncated_anywhere_say_where(kind: str, tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    model(tmp_path / "sparse/0")
    file = tmp_path / f"sparse/0/{kind}.bin"
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(
            CaptureError, match=rf"{kind}.bin is truncated: it ends at byte {length}, inside .*begins at byte \d+"
        ):
            read(tmp_path)


@pytest.mark.parametrize("count", [2**63, 2**64 - 1, 10**6])
def test_absurd_counts_do_not_allocate(count: int, tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    model(tmp_path / "sparse/0")
    for kind in ("points3D", "images", "cameras"):
        file = tmp_path / f"sparse/0/{kind}.bin"
        whole = file.read_bytes()
        file.write_bytes(struct.pack("<Q", count) + whole[8:])
        with pytest.raises(CaptureError, match="is truncated"):
            read(tmp_path)
        file.write_bytes(whole)
    points = tmp_path / "sparse/0/points3D.bin"
    whole = points.read_bytes()
    points.write_bytes(whole[:51] + struct.pack("<Q", count) + whole[59:])
    with pytest.raises(CaptureError, match=r"is truncated: .* inside point 1 of 2, which begins at byte 8"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("cameras", "1 PINHOLE 40 30 1 2 3", "Line 1 of .* has 3 parameters; PINHOLE has 4"),
        ("cameras", "1 PINHOLE forty 30 1 2 3 4", r"Line 1 of .* is not a camera \(ID MODEL.*forty"),
        ("cameras", "1 PINHOLE", "Line 1 of .* is not a camera"),
        ("cameras", "", r"no usable frame \(5 found\).*their camera is not in the model"),
        ("images", "1 1 0 0 0 0 0 0 7", "Line 1 of .* is not an image"),
        ("images", "# c\n1 1 0 0 0 0 0 x 7 a.png\n\n", "Line 2 of .* is not an image"),
        ("images", "1 1 0 0 0 0 0 0 7 a.png\n1.0 2.0\n", "Line 2 of .* should hold the observations"),
        ("images", "", "has no images"),
        ("points3D", "1 0 0", "Line 1 of .* is not a point"),
        ("points3D", f"1 0 0 0 1 2 3 0.5 {10**30} 0", "Line 1 of .* is not a point"),
    ],
)
def test_damaged_text(kind: str, content: str, message: str, tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    model(tmp_path / "sparse/0", binary=False)
    (tmp_path / f"sparse/0/{kind}.txt").write_text(content)
    with pytest.raises(CaptureError, match=message):
        read(tmp_path)


def test_an_image_without_observations_may_end_the_file(tmp_path: Path) -> None:
    pictures(tmp_path, ["a b.png", "c.png"])
    model(tmp_path, binary=False, names=["a b.png", "c.png"], cameras=rig()[:2])
    pose = " ".join(map(repr, colmap_pose(rig()[0])))
    (tmp_path / "images.txt").write_text(f"#\n\n31 {pose} 7 a b.png\r\n\r\n3 {pose} 7 c.png")
    assert [frame.name for frame in read(tmp_path).frames] == ["a b.png", "c.png"]


def test_names_that_are_not_utf8_still_open(tmp_path: Path) -> None:
    name = b"caf\xe9.png"
    picture = save_picture(tmp_path / "images" / "x.png")
    try:
        with open(bytes(tmp_path / "images") + b"/" + name, "wb") as file:
            file.write(picture.read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    model(tmp_path / "sparse/0", names=["caf_.png"], cameras=rig()[:1])
    file_of_images = tmp_path / "sparse/0/images.bin"
    file_of_images.write_bytes(file_of_images.read_bytes().replace(b"caf_.png", name))
    (frame,) = read(tmp_path).frames
    assert frame.name.isprintable() and frame.name.encode()
    assert frame.path.is_file()


# --- a real model ----------------------------------------------------------------------------------------------------


def test_beer_can_without_photos(shared_data: Path) -> None:
    with pytest.raises(CaptureError, match=r"None of the 71 pictures of the COLMAP model .*such as 0000.jpg"):
        open_capture(shared_data / "beer_can_video")


def test_beer_can_agrees_with_its_llff_twin(shared_data: Path, tmp_path: Path) -> None:
    # The capture has COLMAP's model and, of the same frames, LLFF's poses. Blank pictures stand in for the photos.
    source = shared_data / "beer_can_video"
    for name in ("sparse", "poses_bounds.npy"):
        (tmp_path / name).symlink_to(source / name)
    blank = save_picture(tmp_path / "blank.jpg", 720, 1280)
    data = (source / "sparse/0/images.bin").read_bytes()
    (tmp_path / "images").mkdir()
    for name in {name.decode() for name in re.findall(rb"[0-9]{4}\.jpg(?=\0)", data)}:
        (tmp_path / "images" / name).symlink_to(blank)
    colmap, llff = open_capture(tmp_path), open_capture(tmp_path, format="llff")
    assert (len(colmap), len(llff)) == (71, 71)
    for a, b in zip(colmap.frames, llff.frames, strict=True):
        assert a.camera is not None and b.camera is not None
        torch.testing.assert_close(a.camera.cam_from_world, b.camera.cam_from_world, atol=1e-9, rtol=0)
    # The tracks say which frame saw which point, so every observed point lies in front of its camera and in the
    # picture.
    points = colmap.points
    assert points is not None and points.tracks is not None and len(points) > 1000
    seen = 0
    for i, frame in enumerate(colmap.frames[:10]):
        assert frame.camera is not None
        xy, valid = frame.camera.project(points.xyz[points.tracks[0][points.tracks[1] == i]])
        inside = (xy > -5).all(-1) & (xy < torch.tensor([725.0, 1285.0], dtype=torch.float64)).all(-1)
        assert bool((valid & inside).all())
        seen += len(xy)
    assert seen > 1000
    # LLFF's bounds are percentiles of the depths of just these points.
    assert llff.near is not None and llff.far is not None and 0 < llff.near < llff.far
    assert np.isclose(llff.near, np.load(source / "poses_bounds.npy")[:, 15].min())
