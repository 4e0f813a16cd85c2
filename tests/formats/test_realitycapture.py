"""RealityCapture's CSV: angles, lenses, columns that users leave out, names, damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from damage import survives_damage
from synthetic_rig import HEIGHT, WIDTH, rig, save_picture, world_points, write_realitycapture

from lightfold.cameras import Camera
from lightfold.errors import CaptureError
from lightfold.formats import realitycapture

HEADING = "#name,x,y,alt,heading,pitch,roll,f,px,py,k1,k2,k3,k4,t1,t2"


def one(folder: Path, row: str, heading: str = HEADING, width: int = WIDTH, height: int = HEIGHT) -> Camera:
    """The camera of a file with one line, for a.jpg."""
    save_picture(folder / "a.jpg", width, height)
    (folder / "cameras.csv").write_text(f"{heading}\na.jpg,{row}\n")
    camera = realitycapture.read(folder).frames[0].camera
    assert camera is not None
    return camera


def test_angles_of_a_known_camera(tmp_path: Path) -> None:
    # The program's XMP and CSV for one camera, from a user's report.
    camera = one(tmp_path, "1,2,3,163.736597399311,83.4154313461628,174.386496244756,35,0,0,0,0,0,0,0,0")
    expected = [
        [0.982594073038806, 0.185426733553445, -0.0112166890261935],
        [-0.032113633044729, 0.11008102707942, -0.993403685341366],
        [-0.18296885582437, 0.976472781986697, 0.114119690840277],
    ]
    assert camera.cam_from_world[:, :3].flatten().tolist() == pytest.approx(np.ravel(expected).tolist(), abs=1e-8)
    assert camera.center.tolist() == pytest.approx([1, 2, 3])


def test_angles_of_zero_look_down(tmp_path: Path) -> None:
    camera = one(tmp_path, "0,0,9,0,0,0,36,0,0,0,0,0,0,0,0")
    xy, _ = camera.project(torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64))
    assert xy.flatten().tolist() == pytest.approx([20, 15, 20 + 40 / 9, 15, 20, 15 - 40 / 9])


def test_earth_centred_places(tmp_path: Path) -> None:
    # A drone that looks straight down, from the same forum.
    save_picture(tmp_path / "a.jpg")
    place = (
        "-5041986.508798251,2573482.020935406,-2929105.142556032,-148.4200306549068,10.20497551291449,118.7049066788339"
    )
    (tmp_path / "cameras.csv").write_text(f"{HEADING}\na.jpg,{place},35,0,0,0,0,0,0,0,0\n")
    capture = realitycapture.read(tmp_path)
    camera = capture.frames[0].camera
    assert camera is not None and capture.up is not None
    assert float(camera.forward @ capture.up) < -0.999
    (tmp_path / "cameras.csv").write_text(f"{HEADING}\na.jpg,500000,6350000,120,0,0,0,35,0,0,0,0,0,0,0,0\n")
    up = realitycapture.read(tmp_path).up
    assert up is not None and up.tolist() == [0, 0, 1]


@pytest.mark.parametrize(("k4", "tolerance"), [(0.0, 1e-9), (-0.05, 2e-3)])
def test_lens(k4: float, tolerance: float, tmp_path: Path) -> None:
    k1, k2, k3, t1, t2 = 0.05, -0.04, 0.02, 0.001, -0.002
    row = f"0,0,3,0,0,0,30,0.01,-0.02,{k1},{k2},{k3},{k4},{t1},{t2}"
    camera = one(tmp_path, row, width=4000, height=3000)
    x_in_cam = world_points() @ camera.cam_from_world[:, :3].T + camera.cam_from_world[:, 3]
    x, y = x_in_cam[:, 0] / x_in_cam[:, 2], x_in_cam[:, 1] / x_in_cam[:, 2]
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3 + k4 * r2**4
    distorted_x = x * radial + 2 * t1 * x * y + t2 * (r2 + 2 * x * x)
    distorted_y = y * radial + 2 * t2 * x * y + t1 * (r2 + 2 * y * y)
    focal = 30 / 36 * 4000
    expected = torch.stack([distorted_x * focal + 2000 + 40, distorted_y * focal + 1500 - 80], dim=1)
    torch.testing.assert_close(camera.project(world_points())[0], expected, atol=tolerance, rtol=0)


def test_a_lens_that_nothing_fits_exactly_is_said(tmp_path: Path) -> None:
    # So wide that r^8 counts for most at the corners.
    save_picture(tmp_path / "a.jpg", 4000, 3000)
    (tmp_path / "cameras.csv").write_text(f"{HEADING}\na.jpg,0,0,3,0,0,0,12,0,0,-0.4,0.3,-0.2,0.05,0,0\n")
    capture = realitycapture.read(tmp_path)
    assert len(capture) == 1 and "a term in r^8, which is fitted to within" in capture.notes[0]


def test_columns_may_be_missing_and_moved(tmp_path: Path) -> None:
    camera = one(tmp_path, "36,0,0,9,0,0,0", heading="#cameras 1\nname,f,x,y,alt,heading,pitch,roll")
    assert camera.intrinsics.tolist() == [40, 40, 20, 15]


def test_portrait_pictures_and_header_orientation(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.jpg", HEIGHT, WIDTH, orientation=6)
    (tmp_path / "cameras.csv").write_text(f"{HEADING}\na.jpg,0,0,9,0,0,0,36,0,0,0,0,0,0,0,0\n")
    frame = realitycapture.read(tmp_path).frames[0]
    assert frame.camera is not None and not frame.exif_rotate
    assert (frame.camera.width, frame.camera.height, float(frame.camera.intrinsics[0])) == (HEIGHT, WIDTH, 40)


def test_names(tmp_path: Path) -> None:
    zeros = ",0,0,9,0,0,0,36,0,0,0,0,0,0,0,0"
    save_picture(tmp_path / "left/ä 1.jpg")
    save_picture(tmp_path / "right/ä 1.jpg")
    save_picture(tmp_path / "b.JPG")
    save_picture(tmp_path / "masks/c.jpg")
    names = ["C:\\work\\left\\Ä 1.jpg", "ä 1.jpg", "b.jpg", "B", "../../c.jpg", "", "gone.jpg"]
    (tmp_path / "list.csv").write_text("\n".join([HEADING, *(f'"{name}"{zeros}' for name in names)]), encoding="utf-8")
    capture = realitycapture.read(tmp_path)
    assert [frame.name for frame in capture.frames] == ["left/ä 1.jpg", "b.JPG"]
    assert capture.notes == (
        "1 of 7 cameras were left out because more than one picture has their name: ä 1.jpg.",
        "1 of 7 cameras were left out because the same picture is listed before: B.",
        "3 of 7 cameras were left out because the picture is not on disk: ../../c.jpg, , gone.jpg.",
    )


def test_rows_that_cannot_be_used(tmp_path: Path) -> None:
    write_realitycapture(tmp_path, rig())
    file = tmp_path / "cameras.csv"
    rows = file.read_text().splitlines()
    rows[1] = rows[1].replace(rows[1].split(",")[4], "nan")
    rows[2] = ",".join(rows[2].split(",")[:6])
    rows[3] = ",".join([*rows[3].split(",")[:7], "-3", *rows[3].split(",")[8:]])
    file.write_text("\n".join(rows))
    capture = realitycapture.read(tmp_path)
    assert [frame.name for frame in capture.frames] == ["3.png", "4.png"]
    text = " ".join(capture.notes)
    assert "heading is not a finite number" in text and "roll is not a finite number" in text and "focal length" in text


def test_which_file(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    assert not realitycapture.sniff(tmp_path)
    with pytest.raises(CaptureError, match="neither is nor holds a .csv file with the columns name, x, y, alt"):
        realitycapture.read(tmp_path)
    write_realitycapture(tmp_path, rig())
    assert realitycapture.sniff(tmp_path) and len(realitycapture.read(tmp_path / "cameras.csv")) == 5
    (tmp_path / "again.csv").write_text(f"{HEADING}\n")
    with pytest.raises(CaptureError, match=r"holds 2 camera files \(again.csv, cameras.csv\)"):
        realitycapture.read(tmp_path)
    with pytest.raises(CaptureError, match=r"no usable frame \(0 found\)"):
        realitycapture.read(tmp_path / "again.csv")


def test_damaged_files(tmp_path: Path) -> None:
    write_realitycapture(tmp_path, rig())
    survives_damage(tmp_path / "cameras.csv", realitycapture.read, tmp_path)
