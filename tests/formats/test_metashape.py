"""Metashape's XML: lenses by the manual's formulas, components, rigs, hostile XML."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from damage import survives_damage
from synthetic_rig import HEIGHT, WIDTH, WORLD, rig, save_picture, world_points, write_metashape

from lightfold.cameras import Camera, Lens
from lightfold.errors import CaptureError
from lightfold.formats import metashape


def edit(folder: Path, *replacements: tuple[str, str]) -> Path:
    file = folder / "cameras.xml"
    text = file.read_text(encoding="utf-8")
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text, encoding="utf-8")
    return folder


def first(folder: Path) -> Camera:
    camera = metashape.read(folder).frames[0].camera
    assert camera is not None
    return camera


def in_camera(camera: Camera) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, y, z = (world_points() @ camera.cam_from_world[:, :3].T + camera.cam_from_world[:, 3]).T
    return x, y, z


def distorted(
    x: torch.Tensor, y: torch.Tensor, k: list[float], p1: float, p2: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The manual's appendix, Camera models."""
    r2 = x * x + y * y
    radial = 1 + sum(c * r2 ** (i + 1) for i, c in enumerate(k))
    return (
        x * radial + p1 * (r2 + 2 * x * x) + 2 * p2 * x * y,
        y * radial + p2 * (r2 + 2 * y * y) + 2 * p1 * x * y,
    )


def pixels(x: torch.Tensor, y: torch.Tensor, f: float, cx: float, cy: float, b1: float) -> torch.Tensor:
    return torch.stack([WIDTH / 2 + cx + x * f + x * b1, HEIGHT / 2 + cy + y * f], dim=1)


@pytest.mark.parametrize("k4", [0.0, 0.03])
def test_frame_cameras(k4: float, tmp_path: Path) -> None:
    k, p1, p2 = [0.05, -0.04, 0.02, k4], 0.002, -0.003
    values = {"f": 35.0, "cx": 1.5, "cy": -0.5, "b1": 0.7, "p1": p1, "p2": p2}
    values |= {f"k{i + 1}": c for i, c in enumerate(k)}
    camera = first(write_metashape(tmp_path, rig(), **values))
    x, y, z = in_camera(camera)
    expected = pixels(*distorted(x / z, y / z, k, p1, p2), 35.0, 1.5, -0.5, 0.7)
    torch.testing.assert_close(camera.project(world_points())[0], expected, atol=1e-4 if k4 else 1e-9, rtol=0)


@pytest.mark.parametrize(("p1", "p2", "lens"), [(0.0, 0.0, Lens.OPENCV_FISHEYE), (0.01, 0.02, Lens.THIN_PRISM_FISHEYE)])
def test_fisheyes(p1: float, p2: float, lens: Lens, tmp_path: Path) -> None:
    k = [0.05, -0.04, 0.02, -0.01]
    values = {"f": 30.0, "b1": 0.0, "p1": p1, "p2": p2} | {f"k{i + 1}": c for i, c in enumerate(k)}
    write_metashape(tmp_path, rig(), **values)
    camera = first(edit(tmp_path, ('type="frame"', 'type="fisheye"')))
    assert camera.lens is lens
    x, y, z = in_camera(camera)
    radius = torch.hypot(x, y)
    angle = torch.atan2(radius, z)
    cx, cy = float(camera.intrinsics[2]) - WIDTH / 2, float(camera.intrinsics[3]) - HEIGHT / 2
    expected = pixels(*distorted(x / radius * angle, y / radius * angle, k, p1, p2), 30.0, cx, cy, 0.0)
    torch.testing.assert_close(camera.project(world_points())[0], expected, atol=1e-9, rtol=0)


def test_panoramas_need_no_calibration(tmp_path: Path) -> None:
    write_metashape(tmp_path, rig())
    text = (tmp_path / "cameras.xml").read_text()
    start, end = text.index("<calibration"), text.rindex("</calibration>") + len("</calibration>")
    (tmp_path / "cameras.xml").write_text(text[:start] + text[end:])
    with pytest.raises(CaptureError, match="their sensor has no calibration"):
        metashape.read(tmp_path)
    edit(
        tmp_path, ('type="frame"', 'type="spherical"'), (f'width="{WIDTH}" height="{HEIGHT}"', 'width="64" height="32"')
    )
    for i in range(5):
        save_picture(tmp_path / f"photos/{i}.png", 64, 32)
    assert first(tmp_path).lens is Lens.EQUIRECTANGULAR


def test_the_world_is_one_step_away(tmp_path: Path) -> None:
    capture = metashape.read(write_metashape(tmp_path, rig()))
    assert capture.original_from_capture.scale == pytest.approx(WORLD.scale)
    torch.testing.assert_close(capture.original_from_capture.translation, WORLD.translation)
    assert capture.up is None
    # With a reference the local world's z is up.
    edit(tmp_path, ("</transform></camera>", '</transform><reference x="1" y="2" z="3" enabled="true"/></camera>'))
    up = metashape.read(tmp_path).up
    assert up is not None
    torch.testing.assert_close(WORLD.rotation @ up, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))


def test_earth_centred_worlds(tmp_path: Path) -> None:
    write_metashape(tmp_path, rig())
    place = f"<translation>{' '.join(map(repr, WORLD.translation.tolist()))}</translation>"
    capture = metashape.read(edit(tmp_path, (place, "<translation>4500000 0 4500000</translation>")))
    assert capture.up is not None
    up_in_world = WORLD.rotation @ capture.up
    # Geodetic latitude is a little more than the geocentric 45 degrees.
    latitude = torch.rad2deg(torch.atan2(up_in_world[2], up_in_world[0]))
    assert float(latitude) == pytest.approx(45.192, abs=2e-3) and abs(float(up_in_world[1])) < 1e-4


def test_components_meet_in_the_world(tmp_path: Path) -> None:
    write_metashape(tmp_path, rig())
    # The last camera moves into a component of twice the size, which stands where its poses come out the same.
    camera = rig()[4]
    pose = camera.world_from_cam.clone()
    pose[:, 3] *= 2
    old, new = (" ".join(map(repr, [*p.flatten().tolist(), 0, 0, 0, 1])) for p in (camera.world_from_cam, pose))
    place = f"<rotation>{' '.join(map(repr, WORLD.rotation.flatten().tolist()))}</rotation>"
    place += f"<translation>{' '.join(map(repr, WORLD.translation.tolist()))}</translation><scale>20.0</scale>"
    component = f'<component id="7"><transform>{place}</transform></component></components>'
    edit(tmp_path, (old, new), ("</components>", component))
    edit(tmp_path, ('id="4" sensor_id="3" component_id="0"', 'id="4" sensor_id="3" component_id="7"'))
    capture = metashape.read(tmp_path)
    last = capture.frames[4].camera
    assert last is not None
    torch.testing.assert_close(last.cam_from_world, camera.cam_from_world, atol=1e-9, rtol=0)
    # Without a transform nobody knows where it stands.
    capture = metashape.read(edit(tmp_path, (component, '<component id="7"/></components>')))
    assert len(capture) == 4 and "nothing says where their component stands" in capture.notes[0]


def test_a_chunk_transform_serves_all(tmp_path: Path) -> None:
    write_metashape(tmp_path, rig())
    text = (tmp_path / "cameras.xml").read_text()
    start, end = text.index("<components"), text.index("</components>") + len("</components>")
    transform = text[text.index("<transform><rotation>") : text.index("</component>")]
    (tmp_path / "cameras.xml").write_text(text[:start] + transform + text[end:])
    assert metashape.read(tmp_path).original_from_capture.scale == pytest.approx(WORLD.scale)


def test_cameras_that_cannot_be_used(tmp_path: Path) -> None:
    write_metashape(tmp_path, rig())
    edit(
        tmp_path,
        ('label="0"><transform>', 'label="0" enabled="false"><transform>'),
        ('label="1"><transform>', 'label="1" master_id="0"><x>'),
        ('label="2"><transform>', 'label="2"><transform>nan '),
        ('id="3" sensor_id="3"', 'id="3" sensor_id="8"'),
    )
    text = (tmp_path / "cameras.xml").read_text()
    at = text.index("</transform></camera>", text.index('label="1"'))
    (tmp_path / "cameras.xml").write_text(text[:at] + text[at:].replace("</transform>", "</x>", 1))
    capture = metashape.read(tmp_path)
    assert [frame.name for frame in capture.frames] == ["photos/4.png"]
    text = " ".join(capture.notes)
    for reason in ("are disabled", "stand in a rig", "transform is not 16 finite", "sensor is not in the file"):
        assert reason in text


def test_labels_in_groups(tmp_path: Path) -> None:
    write_metashape(tmp_path, rig())
    save_picture(tmp_path / "second/0.png")
    text = (tmp_path / "cameras.xml").read_text()
    camera = text[text.index('<camera id="0"') : text.index('<camera id="1"')]
    group = f'<group id="0" label="second" type="folder">{camera}</group>'
    file = tmp_path / "cameras.xml"
    file.write_text(
        text.replace("</cameras>", f"{group}</cameras>").replace('label="0"><tr', 'label="photos/0"><tr', 1)
    )
    capture = metashape.read(tmp_path)
    assert {frame.name for frame in capture.frames} >= {"photos/0.png", "second/0.png"}


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (
            ("<document", '<!DOCTYPE d [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;">]><document'),
            "declares a document type",
        ),
        (("<document", '<!DOCTYPE d SYSTEM "file:///etc/passwd"><document'), "declares a document type"),
        (("</chunk>", "<a>" * 100 + "</a>" * 100 + "</chunk>"), "nested deeper than 64"),
        (("</chunk>", ""), r"is not valid XML: mismatched tag: line \d+"),
        (("UTF-8", "no-such-code"), "is not valid XML"),
        (("<cameras>", "<others>"), "is not valid XML"),
        (('<sensor id="3"', '<sensor id="9"'), "sensor is not in the file"),
        ((f'width="{WIDTH}"', 'width="wide"'), "resolution of their sensor is not two numbers"),
        ((f'width="{WIDTH}"', 'width="nan"'), "not a whole number of pixels"),
        (('type="frame">', 'type="cylindrical">'), "sensor of type cylindrical has no counterpart"),
        (("<f>35.5</f>", "<f>-35.5</f>"), "focal length"),
        (("<f>35.5</f>", "<fx>35.5</fx>"), "no focal length f"),
        (("<f>35.5</f>", "<f>1e400</f>"), "f is not 1 finite numbers"),
    ],
)
def test_hostile_and_odd_files(replacement: tuple[str, str], message: str, tmp_path: Path) -> None:
    write_metashape(tmp_path, rig())
    edit(tmp_path, replacement)
    with pytest.raises(CaptureError, match=message):
        metashape.read(tmp_path)


def test_what_is_ignored_is_said(tmp_path: Path) -> None:
    capture = metashape.read(write_metashape(tmp_path, rig(), b2=3.0, p3=0.1))
    assert len(capture) == 5 and len(capture.notes) == 2
    assert "skew" in capture.notes[0] or "right angles" in capture.notes[0]
    assert "beyond p2" in capture.notes[1]


def test_which_file(tmp_path: Path) -> None:
    (tmp_path / "other.xml").write_text("<html/>")
    assert not metashape.sniff(tmp_path)
    with pytest.raises(CaptureError, match="neither is nor holds an .xml file of cameras"):
        metashape.read(tmp_path)
    write_metashape(tmp_path, rig())
    assert metashape.sniff(tmp_path) and len(metashape.read(tmp_path / "cameras.xml")) == 5


def test_damaged_files(tmp_path: Path) -> None:
    write_metashape(tmp_path, rig())
    survives_damage(tmp_path / "cameras.xml", metashape.read, tmp_path)
