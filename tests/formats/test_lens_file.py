"""Calibrations of other programs: the same lens in each of their spellings."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from lightfold.cameras import Lens
from lightfold.errors import CaptureError
from lightfold.formats.lens_file import read_lens_file

FX, FY, CX, CY = 800.0, 790.0, 319.0, 241.0
K1, K2, P1, P2 = -0.2, 0.05, 0.001, -0.002
MATRIX = [FX, 0, CX, 0, FY, CY, 0, 0, 1]

OPENCV = f"""%YAML:1.0
---
calibration_time: "Sat 21 Nov 2026"
image_width: 640
image_height: 480
camera_matrix: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ {FX}, 0., {CX}, 0., {FY}, {CY}, 0., 0., 1. ]
distortion_coefficients: !!opencv-matrix
   rows: 5
   cols: 1
   dt: d
   data: [ {K1}, {K2}, {P1}, {P2}, 0. ]
"""
ROS = f"""image_width: 640
image_height: 480
camera_name: head
camera_matrix: {{rows: 3, cols: 3, data: {MATRIX}}}
distortion_model: plumb_bob
distortion_coefficients: {{rows: 1, cols: 5, data: [{K1}, {K2}, {P1}, {P2}, 0.0]}}
"""
MESSAGE = f"{{height: 480, width: 640, distortion_model: plumb_bob, d: [{K1}, {K2}, {P1}, {P2}, 0.0], k: {MATRIX}}}"
KALIBR = f"""cam0:
  camera_model: pinhole
  distortion_coeffs: [{K1}, {K2}, {P1}, {P2}]
  distortion_model: radtan
  intrinsics: [{FX}, {FY}, {CX}, {CY}]
  resolution: [640, 480]
"""
XML = f"""<?xml version="1.0"?>
<opencv_storage><image_width>640</image_width><image_height>480</image_height>
<camera_matrix type_id="opencv-matrix"><rows>3</rows><cols>3</cols><dt>d</dt>
<data>{" ".join(map(str, MATRIX))}</data></camera_matrix>
<distortion_coefficients type_id="opencv-matrix"><rows>5</rows><cols>1</cols><dt>d</dt>
<data>{K1} {K2} {P1} {P2} 0.</data></distortion_coefficients></opencv_storage>
"""
FILE_JSON = json.dumps(
    {
        "image_width": 640,
        "image_height": 480,
        "camera_matrix": [MATRIX[:3], MATRIX[3:6], MATRIX[6:]],
        "dist_coeffs": [[K1, K2, P1, P2, 0.0]],
    }
)
# These two count pixels as this program does.
COLMAP = f"# Camera list\n1 OPENCV 640 480 {FX} {FY} {CX + 0.5} {CY + 0.5} {K1} {K2} {P1} {P2}\n"
TRANSFORMS = json.dumps(
    {
        "camera_model": "OPENCV",
        "w": 640, "h": 480, "fl_x": FX, "fl_y": FY, "cx": CX + 0.5, "cy": CY + 0.5,
        "k1": K1, "k2": K2, "p1": P1, "p2": P2,
    }
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("out_camera_data.yml", OPENCV),
        ("head.yaml", ROS),
        ("message.yaml", MESSAGE),
        ("camchain.yaml", KALIBR),
        ("out_camera_data.xml", XML),
        ("opencv.json", FILE_JSON),
        ("cameras.txt", COLMAP),
        ("camera.json", TRANSFORMS),
    ],
)
def test_one_lens_in_every_spelling(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / f"Prüfstand 1 {name}"
    path.write_text(text, encoding="utf-8")
    camera = read_lens_file(path)
    assert (camera.lens, camera.width, camera.height) == (Lens.OPENCV, 640, 480)
    assert camera.intrinsics.tolist() == [FX, FY, CX + 0.5, CY + 0.5]
    assert camera.distortion.tolist() == [K1, K2, P1, P2]


def test_colmaps_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "cameras.bin"
    path.write_bytes(struct.pack("<QiiQQ8d", 1, 1, 4, 640, 480, FX, FY, CX, CY, K1, K2, P1, P2))
    assert read_lens_file(path).distortion.tolist() == [K1, K2, P1, P2]


@pytest.mark.parametrize(
    ("text", "lens", "distortion"),
    [
        (ROS.replace("plumb_bob", "equidistant").replace(", 0.0]", "]"), Lens.OPENCV_FISHEYE, [K1, K2, P1, P2]),
        (OPENCV + "fisheye_model: 1\n", Lens.OPENCV_FISHEYE, [K1, K2, P1, P2]),
        (KALIBR.replace("radtan", "equidistant"), Lens.OPENCV_FISHEYE, [K1, K2, P1, P2]),
        (KALIBR.replace("radtan", "none").replace(f"[{K1}, {K2}, {P1}, {P2}]", "[]"), Lens.PINHOLE, []),
        (KALIBR.replace("radtan", "fov").replace(f"[{K1}, {K2}, {P1}, {P2}]", "[0.9]"), Lens.FOV, [0.9]),
        (ROS.replace(", 0.0]", ", 0.03]"), Lens.FULL_OPENCV, [K1, K2, P1, P2, 0.03, 0, 0, 0]),
        (
            ROS.replace("plumb_bob", "rational_polynomial").replace(", 0.0]", ", 0.1, 0.2, 0.3, 0.4]"),
            Lens.FULL_OPENCV,
            [K1, K2, P1, P2, 0.1, 0.2, 0.3, 0.4],
        ),
    ],
)
def test_lenses(text: str, lens: Lens, distortion: list[float], tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    camera = read_lens_file(path)
    assert camera.lens is lens and camera.distortion.tolist() == distortion


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.yaml", "", "no calibration that can be read"),
        ("a.yaml", "- 1\n- 2\n", "no calibration that can be read"),
        ("a.yaml", "a: !!python/object/apply:os.system ['echo']", "no calibration that can be read"),
        ("a.yaml", ROS.replace("image_width: 640\n", ""), "which size of picture"),
        ("a.yaml", ROS.replace("800.0, 0", ".nan, 0"), "no calibration"),
        ("a.yaml", ROS.replace("800.0, 0", "-800.0, 0"), "focal length is not positive"),
        ("a.yaml", ROS.replace("image_width: 640", "image_width: 640.5"), "whole number of pixels"),
        ("a.yaml", ROS.replace("plumb_bob", "mystery"), "'mystery'"),
        ("a.yaml", OPENCV.replace("0. ]\n", "0., 0., 0., 0., 0.1 ]\n"), "thin-prism"),
        ("a.yaml", KALIBR + KALIBR.replace("cam0", "cam1"), "2 cameras"),
        ("a.yaml", KALIBR.replace("pinhole", "omni"), "'omni'"),
        ("cameras.txt", COLMAP + COLMAP.replace("\n1 ", "\n2 "), "2 cameras"),
        ("cameras.txt", "1 OPENCV 640 480 3 4\n", "has 2 parameters"),
        ("cameras.bin", "xx", "cameras.bin"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "{}", "no calibration that can be read"),
        ("a.json", TRANSFORMS.replace('"w": 640, ', ""), "add w and h"),
        ("a.json", '{"camera_model": "EQUIRECTANGULAR", "w": 200, "h": 100, "fl_x": 1}', "nothing to calibrate"),
        ("a.xml", XML.replace("<opencv_storage>", "<!DOCTYPE a [<!ENTITY b 'c'>]><opencv_storage>"), "no calibration"),
        ("a.xml", XML[:200], "no calibration that can be read"),
        ("a.jpg", "\xff\xd8", "no calibration that can be read"),
    ],
)
def test_what_is_no_calibration_is_one_sentence(name: str, text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="latin-1")
    with pytest.raises(CaptureError, match=words) as caught:
        read_lens_file(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="cannot be read"):
        read_lens_file(tmp_path / "gone.yaml")
