"""Published data sets: every layout projects as its own formula says, is recognised, and survives damage."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import survives_damage
from data_sets import HEIGHT, WIDTH, WRITERS, points
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_rig import WRITERS as PROGRAMS
from synthetic_rig import rig
from test_formats_agree import write

from lightfold.errors import CaptureError
from lightfold.formats import FORMATS, open_capture
from lightfold.images import read_depth


@pytest.mark.parametrize("layout", WRITERS)
def test_points_fall_where_the_data_set_says(layout: str, tmp_path: Path) -> None:
    kind, writer = WRITERS[layout]
    written = writer(tmp_path)
    capture = open_capture(written.path)
    assert capture.format == kind
    assert {frame.name for frame in capture.frames} == set(written.project)
    for frame in capture.frames:
        assert frame.camera is not None and frame.camera.cam_from_world.dtype == torch.float64
        xy, valid = frame.camera.project(torch.from_numpy(points()))
        assert bool(valid.all())
        np.testing.assert_allclose(xy.numpy(), written.project[frame.name](points()), rtol=0, atol=1e-6)
        assert frame.split == written.split.get(frame.name)
        if written.depth is not None:
            depth = read_depth(frame, WIDTH, HEIGHT)
            assert depth.shape == (HEIGHT, WIDTH) and torch.allclose(depth, torch.tensor(written.depth))


AGREE = ("transforms", "colmap binary", "colmap text", "blender", "llff")


@pytest.mark.parametrize("layout", [*WRITERS, *PROGRAMS, *AGREE])
def test_every_layout_is_recognised_by_its_own_reader(layout: str, tmp_path: Path) -> None:
    folder = tmp_path / "captures of ünïcode"
    folder.mkdir()
    if layout in WRITERS:
        kind, writer = WRITERS[layout]
        path = writer(folder).path
    elif layout in PROGRAMS:
        kind, path = layout, PROGRAMS[layout](folder, rig(fx=37.0, fy=37.0))
    else:
        kind, path = layout.split()[0], write(layout, folder, rig(WIDTH / 2, HEIGHT / 2, 37.0, 37.0))
    found = [name for name, module in FORMATS.items() if module.sniff(path)]
    # linemod is blender's files with more in them, and phototourism a COLMAP model with a list.
    also = {"linemod": ["blender"], "phototourism": ["colmap"]}.get(kind, [])
    assert found == [kind, *also, "photos"]
    capture = open_capture(path)
    assert capture.format == kind and not any("can also be read as" in note for note in capture.notes)


@pytest.mark.parametrize("layout", WRITERS)
def test_a_missing_picture_is_named(layout: str, tmp_path: Path) -> None:
    kind, writer = WRITERS[layout]
    written = writer(tmp_path)
    before = open_capture(written.path)
    gone = before.frames[1]
    gone.path.unlink()
    capture = FORMATS[kind].read(written.path)
    assert {frame.name for frame in capture.frames} == {frame.name for frame in before.frames} - {gone.name}
    if kind != "dtu":  # Its pictures are the list.
        assert any(gone.path.stem in note for note in capture.notes)


@pytest.mark.parametrize("layout", WRITERS)
def test_nothing_usable_is_one_sentence(layout: str, tmp_path: Path) -> None:
    kind, writer = WRITERS[layout]
    written = writer(tmp_path)
    for picture in (*tmp_path.rglob("*.png"), *tmp_path.rglob("*.jpg")):
        picture.write_bytes(b"not a picture")
    with pytest.raises(CaptureError) as failed:
        FORMATS[kind].read(written.path)
    assert "\n" not in str(failed.value)
    with pytest.raises(CaptureError):
        FORMATS[kind].read(tmp_path / "nothing here")


# What decides about cameras in each layout; one file where all pictures have one.
TEXTS = {
    "scannet": ["intrinsic/intrinsic_color.txt", "pose/2.txt"],
    "scannetpp": ["dslr/nerfstudio/transforms.json"],
    "arkitscenes": [
        "41069021_frames/lowres_wide.traj",
        "41069021_frames/lowres_wide_intrinsics/41069021_6845.800.pincam",
    ],
    "phototourism": ["brandenburg.tsv"],
    "nsvf": ["intrinsics.txt", "bbox.txt", "pose/0_00001.txt"],
    "nerfpp": ["train/pose/000001.txt", "train/intrinsics/000001.txt"],
    "fvs": ["dense/ibr3d_pw_0.50/Ks.npy", "dense/ibr3d_pw_0.50/ts.npy"],
    "deepvoxels": ["train/cube/intrinsics.txt", "train/cube/pose/000001.txt"],
    "linemod": ["transforms_train.json", "transforms_test.json"],
    "mvsnet": ["cams/00000001_cam.txt"],
    "dtu": ["../../Calibration/cal18/pos_002.txt"],
    "eyefultower v1": ["cameras.json", "splits.json"],
}


@pytest.mark.parametrize(("layout", "file"), [(layout, file) for layout, files in TEXTS.items() for file in files])
def test_damage_costs_frames_or_is_one_sentence(layout: str, file: str, tmp_path: Path) -> None:
    kind, writer = WRITERS[layout]
    path = writer(tmp_path).path
    survives_damage(path / file, FORMATS[kind].read, path, examples=10)


NUMBER = re.compile(rb"-?[0-9]+\.?[0-9]*(?:e[-+]?[0-9]+)?")
VALUES = [b"NaN", b"Infinity", b"-Infinity", b"0", b"-1", b"1e308", b"-1e308", b"1e-320", b"1e150", b"9" * 400]


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("layout", [layout for layout in TEXTS if layout != "fvs"])
def test_no_number_is_too_odd(layout: str, tmp_path: Path) -> None:
    """Numbers that no camera has: frames may go, the rest is finite, and nothing is printed."""
    kind, writer = WRITERS[layout]
    path = writer(tmp_path).path
    contents = {path / file: (path / file).read_bytes() for file in TEXTS[layout]}

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(file=st.sampled_from(list(contents)), place=st.floats(0, 1, exclude_max=True), value=st.sampled_from(VALUES))
    def odd(file: Path, place: float, value: bytes) -> None:
        found = list(NUMBER.finditer(contents[file]))
        match = found[int(place * len(found))]
        file.write_bytes(contents[file][: match.start()] + value + contents[file][match.end() :])
        try:
            capture = FORMATS[kind].read(path)
        except CaptureError as error:
            assert "\n" not in str(error)
        else:
            assert all(f.camera is not None and bool(f.camera.cam_from_world.isfinite().all()) for f in capture.frames)
            assert capture.near is None or 0 < capture.near < 1e308
        finally:
            file.write_bytes(contents[file])

    odd()


@pytest.mark.parametrize(
    ("layout", "file", "change"),
    [
        ("scannetpp", "dslr/nerfstudio/transforms.json", ("DSC00001.jpg", "../../../outside/DSC00001.jpg")),
        ("eyefultower v1", "cameras.json", ("1/1_DSC0001", "../../../outside/1_DSC0001")),
        ("eyefultower v1", "cameras.json", ("1/1_DSC0001", "OUTSIDE/1_DSC0001")),
    ],
)
def test_no_name_leads_out_of_the_data_set(layout: str, file: str, change: tuple[str, str], tmp_path: Path) -> None:
    kind, writer = WRITERS[layout]
    (tmp_path / "in").mkdir()
    written = writer(tmp_path / "in")
    outside = tmp_path / "outside"
    for frame in open_capture(written.path).frames:
        outside.mkdir(exist_ok=True)
        (outside / frame.path.name).write_bytes(frame.path.read_bytes())
    target = written.path / file
    new = change[1].replace("OUTSIDE", str(outside))
    target.write_text(target.read_text().replace(json.dumps(change[0]), json.dumps(new)))
    capture = FORMATS[kind].read(written.path)
    assert len(capture) == len(written.project) - 1
    assert all(frame.path.is_relative_to(written.path) for frame in capture.frames)
