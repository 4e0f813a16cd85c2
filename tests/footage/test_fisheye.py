"""Dual-fisheye frames: stitching undoes what two lenses do, and Hugin's numbers mean what Hugin means by them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lightfold.cameras import Camera, Lens
from lightfold.errors import CaptureError
from lightfold.footage import fisheye
from lightfold.footage.fisheye import DualFisheye
from lightfold.geometry import so3_exp

PTO = """# hugin project file
p f2 w3840 h1920 v360 n"TIFF_m"
i w400 h200 f2 v380 Ra0 Rb0 Eev0 r0 p0 y180 j0 a-0.28 b0.52 c-0.14 d-100.5 e2 g0 t0 Va1 Vb-0.9 Vc-4 Vd-1 Vx0 Vy0 S0,200,0,200 n"a S9,9 v1.jpg"
i w400 h200 f2 v=0 Ra=0 Rb=0 Eev0 r1 p2 y90 j0 a=0 b=0 c=0 d=0 e=0 g=0 t=0 Va=0 Vb=0 Vc=0 Vd=0 Vx=0 Vy=0 S0,200,0,200 n"b.jpg"
i w400 h200 f2 v382 Ra0 Rb0 Eev0 r0.5 p-2 y0.3 j0 a-0.29 b0.53 c-0.15 d100 e-1 g0 t0 Va1 Vb0 Vc0 Vd0 Vx0 Vy0 S200,400,0,200 n"a.jpg"
"""  # noqa: E501


def paint(direction: Tensor) -> Tensor:
    """A smooth colour [..., 3] in [0, 255] of every direction."""
    x, y, z = direction.unbind(-1)
    waves = [torch.sin(3 * x + 2 * y) + z, torch.cos(2 * z - 3 * y) + x, torch.sin(2 * x * z + 4 * y) - z]
    return (127.5 + 50.0 * torch.stack(waves, dim=-1)).clamp(1, 250)


def photograph(calibration: DualFisheye) -> NDArray[np.uint8]:
    """The frame that the two lenses take of the painted sphere; black outside their circles."""
    first, _ = calibration.lenses
    xy = first.camera.pixel_grid()
    frame = torch.zeros(len(xy), 3, dtype=torch.float64)
    for lens in calibration.lenses:
        direction, valid = lens.camera.unproject_valid(xy)
        x, y, radius = lens.circle
        inside = valid & (torch.hypot(xy[:, 0] - x, xy[:, 1] - y) < radius + 1)
        frame[inside] = paint(direction @ lens.camera.cam_from_world[:, :3])[inside]
    return frame.round().to(torch.uint8).numpy().reshape(calibration.height, calibration.width, 3)


def truth(width: int) -> NDArray[np.float64]:
    camera = Camera.panorama(torch.eye(3, 4, dtype=torch.float64), width, width // 2)
    return paint(camera.unproject(camera.pixel_grid())).numpy().reshape(width // 2, width, 3)


def cameras() -> tuple[Camera, Camera, Tensor]:
    """Two fisheyes of 100 degrees half angle, one a little turned from straight back."""
    pose = torch.eye(3, 4, dtype=torch.float64)
    made = [
        Camera(pose, pose.new_tensor([f, f, cx, cy]), pose.new_tensor(k), 160, 160, Lens.OPENCV_FISHEYE)
        for f, cx, cy, k in ((46.0, 80.5, 79.0, [0.01, 0.0, 0.0, 0.0]), (45.5, 79.0, 81.0, [0.0, 0.002, 0.0, 0.0]))
    ]
    back = so3_exp(torch.tensor([0.02, math.pi - 0.01, 0.03], dtype=torch.float64))
    return made[0], made[1], back


def test_stitching_undoes_the_lenses() -> None:
    first, second, back = cameras()
    calibration = fisheye.side_by_side(first, second, back)
    assert (calibration.width, calibration.height) == (320, 160)
    how = fisheye.stitching(calibration, (320, 160), 160)
    assert (how.mask == 255).all()
    panorama = fisheye.stitch(photograph(calibration), how)
    assert panorama.shape == (80, 160, 3)
    assert np.abs(panorama - truth(160)).max() < 4.0


def test_weights_are_a_partition_and_blend_at_the_seam_only() -> None:
    first, second, back = cameras()
    how = fisheye.stitching(fisheye.side_by_side(first, second, back), (320, 160), 160, feather=math.radians(6))
    total = torch.zeros(80 * 160)
    for index, _, weight in how.parts:
        assert bool((weight > 0).all())
        total[index] += weight
    assert torch.allclose(total, torch.ones_like(total), atol=1e-5)
    camera = Camera.panorama(torch.eye(3, 4, dtype=torch.float64), 160, 80)
    z = camera.unproject(camera.pixel_grid())[:, 2]
    shared = torch.zeros(80 * 160)
    for index, _, _ in how.parts:
        shared[index] += 1
    assert bool((z[shared > 1].abs() < math.sin(math.radians(6))).all()) and bool((shared > 1).any())
    # The front half is the first lens's.
    assert bool((z[how.parts[0][0]] > -0.11).all()) and bool((z[how.parts[1][0]] < 0.11).all())


def test_a_frame_of_another_size_is_the_same_picture() -> None:
    first, second, back = cameras()
    small = fisheye.side_by_side(first, second, back)
    large = fisheye.side_by_side(first.resized(320, 320), second.resized(320, 320), back)
    panorama = fisheye.stitch(photograph(large), fisheye.stitching(small, (640, 320), 160))
    assert np.abs(panorama - truth(160)).max() < 4.0
    with pytest.raises(CaptureError, match="another shape"):
        fisheye.stitching(small, (640, 480), 160)
    with pytest.raises(ValueError, match="frame"):
        fisheye.stitch(photograph(small), fisheye.stitching(small, (640, 320), 160))


def test_lenses_that_see_too_little_leave_a_masked_gap() -> None:
    first, second, back = cameras()
    calibration = fisheye.side_by_side(first, second, back)
    narrow = [replace(lens, circle=(*lens.circle[:2], 60.0)) for lens in calibration.lenses]
    how = fisheye.stitching(replace(calibration, lenses=(narrow[0], narrow[1])), (320, 160), 160)
    panorama = fisheye.stitch(photograph(calibration), how)
    assert 0 < (how.mask == 0).mean() < 0.5 and (panorama[how.mask == 0] == 0).all()
    assert np.abs(panorama - truth(160))[how.mask == 255].max() < 4.0


def test_falloff_is_undone() -> None:
    first, second, back = cameras()
    calibration = fisheye.side_by_side(first, second, back)
    dark = [replace(lens, falloff=(-1.0, 0.2, -0.5)) for lens in calibration.lenses]
    calibration = replace(calibration, lenses=(dark[0], dark[1]))
    frame = np.zeros((160, 320, 3))
    grid = first.pixel_grid().reshape(160, 160, 2)
    for number, lens in enumerate((first, second)):
        r2 = ((grid - lens.intrinsics[2:]) / (0.5 * math.hypot(320, 160))).square().sum(-1)
        light = 1 - r2 + 0.2 * r2**2 - 0.5 * r2**3
        frame[:, 160 * number : 160 * number + 160] = 200.0 * light[..., None].clamp_min(0.0).numpy() ** (1 / 2.2)
    panorama = fisheye.stitch(frame.round().astype(np.uint8), fisheye.stitching(calibration, (320, 160), 160))
    assert np.abs(panorama.astype(float) - 200.0).max() <= 2.0


# --- Hugin -----------------------------------------------------------------------------------------------------------


def project(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "kalibrierung größe.pto"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def test_the_polynomial_and_the_shift_are_hugins(tmp_path: Path) -> None:
    """Against the formula of the radial correction, written out once more for directions in one meridian."""
    calibration = fisheye.read_hugin(project(tmp_path, PTO))
    assert (calibration.width, calibration.height) == (400, 200)
    for lens, v, (a, b, c), (d, e) in zip(
        calibration.lenses,
        (380, 382),
        ((-0.28, 0.52, -0.14), (-0.29, 0.53, -0.15)),
        ((-100.5, 2), (100, -1)),
        strict=True,
    ):
        angle = torch.linspace(0.0, math.radians(95), 50, dtype=torch.float64)
        r = 400 / math.radians(v) * angle
        q = r / 100
        bent = r * (a * q**3 + b * q**2 + c * q + 1 - a - b - c)
        around = 0.7
        direction = (
            torch.stack([angle.sin() * math.cos(around), angle.sin() * math.sin(around), angle.cos()], dim=-1)
            @ lens.camera.cam_from_world[:, :3]
        )
        xy, valid = lens.camera.project(direction)
        expected = torch.stack([200 + d + bent * math.cos(around), 100 + e + bent * math.sin(around)], dim=-1)
        assert bool(valid.all())
        # A tenth of a pixel in frames of this size is one in those of 4000 pixels.
        assert float((xy - expected).norm(dim=-1).max()) < 0.1
    assert calibration.lenses[0].circle == (100.0, 100.0, 100.0) and calibration.lenses[1].circle == (
        300.0,
        100.0,
        100.0,
    )
    assert calibration.lenses[0].falloff == (-0.9, -4.0, -1.0)


@pytest.mark.parametrize(
    ("angles", "seen", "where"),
    [
        ("y90 p0 r0", (1.0, 0.0, 0.0), (0.0, 0.0)),  # yaw: to the right
        ("y0 p30 r0", (0.0, -0.5, math.sqrt(0.75)), (0.0, 0.0)),  # pitch: upwards
        ("y0 p0 r30", (0.0, -1.0, 1.0), (-0.5, -math.sqrt(0.75))),  # rolled clockwise, what is above moves to the left
        ("y90 p30 r30", (math.sqrt(0.75), -0.5, 0.0), (0.0, 0.0)),
    ],
)
def test_yaw_pitch_and_roll(tmp_path: Path, angles: str, seen: tuple[float, ...], where: tuple[float, float]) -> None:
    first, second = (line for line in PTO.splitlines() if " y180 " in line or " y0.3 " in line)
    turned = first.replace("r0 p0 y180", " ".join(reversed(angles.split())))
    lens = fisheye.read_hugin(project(tmp_path, f"{turned}\n{second}\n")).lenses[0].camera
    xy = lens.project(torch.tensor([seen], dtype=torch.float64))[0][0] - lens.intrinsics[2:]
    direction = xy / xy.norm().clamp_min(1.0)
    assert torch.allclose(direction, torch.tensor(where, dtype=torch.float64), atol=1e-6)


def test_a_stitched_hugin_frame_shows_the_sphere(tmp_path: Path) -> None:
    calibration = fisheye.read_hugin(project(tmp_path, PTO))
    plain = [replace(lens, falloff=(0.0, 0.0, 0.0)) for lens in calibration.lenses]
    calibration = replace(calibration, lenses=(plain[0], plain[1]))
    panorama = fisheye.stitch(photograph(calibration), fisheye.stitching(calibration, (400, 200), 160))
    assert np.abs(panorama - truth(160)).max() < 5.0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("S200,400,0,200", "S0,200,0,200"),
        ("S200,400,0,200", "S200,400"),
        ("S200,400,0,200", "S200,200,0,0"),
        (" v380 ", " v=2 "),
        (" v380 ", " v=99 "),
        (" v380 ", " "),
        (" v380 ", " vnan "),
        (" v380 ", " v-1e300 "),
        (" w400 ", " w0 "),
        ("i w400 h200 f2 v382", "i w500 h200 f2 v382"),
        (" f2 v380", " f0 v380"),
        (" g0 t0 Va1 Vb-0.9", " g3 t0 Va1 Vb-0.9"),
        ("a-0.28 b0.52", "a-40 b0.52"),
    ],
)
def test_projects_that_are_not_of_two_fisheyes_are_refused(tmp_path: Path, old: str, new: str) -> None:
    assert old in PTO
    text = PTO.replace(" v382 ", " v=0 ") if new == " v=2 " else PTO
    path = project(tmp_path, text.replace(old, new))
    with pytest.raises(CaptureError, match="größe"):
        fisheye.read_hugin(path)


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="cannot be read"):
        fisheye.read_hugin(tmp_path / "none.pto")
    with pytest.raises(CaptureError, match="cannot be read"):
        fisheye.read_hugin(tmp_path)


@given(st.integers(0, len(PTO) - 1), st.text(max_size=12), st.integers(0, 8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_projects_never_crash(tmp_path: Path, at: int, text: str, removed: int) -> None:
    try:
        calibration = fisheye.read_hugin(project(tmp_path, PTO[:at] + text + PTO[at + removed :]))
    except CaptureError:
        return
    for lens in calibration.lenses:
        assert bool(torch.isfinite(lens.camera.intrinsics).all() & torch.isfinite(lens.camera.cam_from_world).all())


@pytest.mark.slow
def test_a_real_camera_fits_at_the_seam(shared_data: Path) -> None:
    """Both lenses see the seam. Their views of what is far away agree best where they are, within a pixel."""
    av = pytest.importorskip("av")
    ndimage = pytest.importorskip("scipy.ndimage")
    folder = shared_data / "dual_fisheye_video"
    calibration = fisheye.read_hugin(folder / "New_Dual_Remap_Calibrate.pto")
    with av.open(str(folder / "360_0103_0.MP4")) as video:
        frame = next(video.decode(video=0)).to_ndarray(format="rgb24")
    width = 1024
    blind = replace(calibration.lenses[0], circle=(0.0, 0.0, 0.5))
    detail, sees = [], []
    for lens in calibration.lenses:
        alone = fisheye.stitching(replace(calibration, lenses=(lens, blind)), (3840, 1920), width)
        grey = fisheye.stitch(frame, alone).mean(axis=2)
        detail.append(ndimage.gaussian_filter(grey, 1.0) - ndimage.gaussian_filter(grey, 4.0))
        sees.append(ndimage.binary_erosion(alone.mask == 255, iterations=5))
    horizon = slice(int(0.2 * width), int(0.28 * width))  # nearer things do not fit: the lenses stand apart

    def agreement(down: int, right: int) -> float:
        both = (sees[0] & np.roll(sees[1], (down, right), (0, 1)))[horizon]
        moved = np.roll(detail[1], (down, right), (0, 1))[horizon]
        return float(np.corrcoef(detail[0][horizon][both], moved[both])[0, 1])

    found = {(down, right): agreement(down, right) for down in range(-4, 5) for right in range(-4, 5)}
    best = max(found, key=lambda shift: found[shift])
    assert max(abs(best[0]), abs(best[1])) <= 1 and found[0, 0] > 0.8
