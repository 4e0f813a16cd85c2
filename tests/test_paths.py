"""Camera paths: they stay where cameras were, move without jumps, and survive a file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from analytic_sphere import camera_at, info_of, ring
from torch import Tensor

from lightfold.cameras import Camera, Lens
from lightfold.errors import CaptureError, LightfoldError
from lightfold.geometry import Similarity, closest_point_to_lines, so3_exp, so3_log
from lightfold.path_files import camera_path_json, capture_from_nerfstudio, write_camera_path
from lightfold.paths import (
    arrangement,
    auto,
    held_out,
    interpolate,
    orbit,
    spiral,
    suited_path,
    template_camera,
)
from lightfold.scene import SceneInfo

ORIGIN = torch.zeros(3)


def circle(n: int = 16, share: float = 1.0, **changes: object) -> SceneInfo:
    return info_of([camera_at(eye, ORIGIN) for eye in ring(n, share)], test_every=None, **changes)


def wall(n: int = 12) -> SceneInfo:
    """Cameras side by side, all looking along +y."""
    eyes = [torch.tensor([0.4 * (i % 4), 0.02 * (i % 3), 0.3 * (i // 4)], dtype=torch.float64) for i in range(n)]
    along = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    return info_of([camera_at(eye, eye + along) for eye in eyes], test_every=None, forward_facing=True)


def turns(path: Camera) -> Tensor:
    """Angle between successive frames [n - 1], radians."""
    rotation = path.cam_from_world[:, :, :3].double()
    return so3_log(rotation[1:] @ rotation[:-1].mT).norm(dim=1)


def test_an_orbit_keeps_distance_and_height_and_looks_at_the_focus() -> None:
    path = orbit(circle(), 60)
    assert path.shape == (60,)
    torch.testing.assert_close(path.center.norm(dim=1), torch.full((60,), math.sqrt(10.0)), atol=1e-4, rtol=0)
    torch.testing.assert_close(path.center[:, 2], torch.ones(60), atol=1e-4, rtol=0)
    xy, valid = path.project(torch.zeros(60, 1, 3))
    assert bool(valid.all())
    torch.testing.assert_close(xy[:, 0], torch.tensor([24.0, 18.0]).expand(60, 2), atol=1e-2, rtol=0)
    steps = torch.cat([path.center, path.center[:1]]).diff(dim=0).norm(dim=1)
    torch.testing.assert_close(steps, steps[0].expand(60), atol=1e-4, rtol=0)
    torch.testing.assert_close(path.center[0], torch.tensor([3.0, 0.0, 1.0]), atol=1e-4, rtol=0)


def test_a_hemisphere_of_cameras_is_orbited_on_the_hemisphere(rng: torch.Generator) -> None:
    direction = torch.randn(60, 3, generator=rng, dtype=torch.float64)
    direction[:, 2] = direction[:, 2].abs() + 0.05
    eyes = 4 * direction / direction.norm(dim=1, keepdim=True)
    info = info_of([camera_at(eye, ORIGIN) for eye in eyes])
    assert suited_path(info) == "orbit"
    assert orbit(info, 10).center.norm(dim=1).tolist() == pytest.approx([4.0] * 10, abs=1e-3)


def test_auto_orbits_only_where_cameras_stood() -> None:
    assert suited_path(circle()) == "orbit"
    assert suited_path(circle(share=0.5)) == "interpolate"
    assert suited_path(wall()) == "spiral"
    outward = info_of([camera_at(eye, 2 * eye) for eye in ring(16)], test_every=None)
    assert arrangement(outward).focus is None
    assert suited_path(outward) == "interpolate"


def test_auto_on_an_arc_never_leaves_it() -> None:
    info = circle(24, share=0.4)
    path = auto(info, 80)
    keys = torch.stack([camera.center for camera in info.cameras])
    nearest = torch.cdist(path.center, keys).min(dim=1).values
    between = (keys[1] - keys[0]).norm()
    assert float(nearest.max()) < float(between)


def test_interpolation_without_smoothing_passes_through_every_camera() -> None:
    info = circle(9, share=0.6)
    path = interpolate(info, 1000, smoothing=0.0, loop=False)
    keys = torch.stack([camera.center for camera in info.cameras])
    distance, frame = torch.cdist(keys, path.center).min(dim=1)
    assert float(distance.max()) < 0.01
    assert bool((frame.diff() > 0).all())
    for camera, i in zip(info.cameras, frame.tolist(), strict=True):
        off = so3_log(path[i].cam_from_world[:, :3].double() @ camera.cam_from_world[:, :3].double().T)
        assert float(off.norm()) < 0.01


@pytest.mark.parametrize("make", [interpolate, orbit, spiral, auto])
def test_no_path_jumps(make: Callable[..., Camera]) -> None:
    info = wall() if make is spiral else circle(share=0.9 if make is interpolate else 1.0)
    path = make(info, 120)
    step = path.center.double().diff(dim=0).norm(dim=1)
    assert float(step.max()) < 4 * float(step.mean()) + 1e-9
    assert float(turns(path).max()) < 0.2
    bend = path.center.double().diff(n=2, dim=0).norm(dim=1)
    assert float(bend.max()) < float(step.max())


def test_interpolation_keeps_an_even_pace_where_photographs_are_uneven() -> None:
    angles = torch.tensor([0.0, 0.05, 0.1, 0.7, 0.75, 1.5, 1.52, 2.2], dtype=torch.float64)
    eyes = torch.stack([3 * angles.cos(), 3 * angles.sin(), torch.ones_like(angles)], dim=1)
    info = info_of([camera_at(eye, ORIGIN) for eye in eyes], test_every=None)
    step = interpolate(info, 100, smoothing=0.0, loop=False).center.diff(dim=0).norm(dim=1)
    assert float(step.max()) < 1.3 * float(step.min())


def test_cubic_quaternions_stay_close_to_the_geodesic() -> None:
    """For a camera that turns evenly about one axis, slerp is exact, so every frame must lie on it."""
    eyes = ring(12, share=0.9)
    info = info_of([camera_at(eye, 3 * eye) for eye in eyes], test_every=None)
    path = interpolate(info, 200, smoothing=0.0, loop=False)
    sideways = path.forward[:, :2] / path.forward[:, :2].norm(dim=1, keepdim=True)
    angle = torch.atan2(sideways[:, 1], sideways[:, 0])
    steps = torch.remainder(angle.diff() + math.pi, 2 * math.pi) - math.pi
    assert float(steps.min()) > 0
    assert float(steps[20:-20].max()) < 1.1 * float(steps[20:-20].min())


def test_smoothing_takes_out_the_tremble(rng: torch.Generator) -> None:
    eyes = torch.stack(ring(40, share=0.5)) + 0.05 * torch.randn(40, 3, generator=rng, dtype=torch.float64)
    info = info_of([camera_at(eye, ORIGIN) for eye in eyes], test_every=None)

    def roughness(smoothing: float) -> float:
        centre = interpolate(info, 200, smoothing=smoothing, loop=False).center.double()
        return float(centre.diff(n=2, dim=0).norm(dim=1).mean())

    assert roughness(2.0) < 0.4 * roughness(0.0)


def test_a_loop_closes_and_does_not_repeat_its_first_frame() -> None:
    path = interpolate(circle(20), 100, smoothing=1.0)
    centre = torch.cat([path.center, path.center[:1]])
    step = centre.diff(dim=0).norm(dim=1)
    assert float(step[-1]) == pytest.approx(float(step.mean()), rel=0.1)
    rotation = path.cam_from_world[:, :, :3].double()
    assert float(so3_log(rotation[0] @ rotation[-1].T).norm()) < 0.1


def test_views_are_visited_in_natural_order_or_nearest_first() -> None:
    eyes = ring(12, share=0.5)
    tidy = info_of([camera_at(eye, ORIGIN) for eye in eyes], test_every=None)
    swapped = [0, 10, 2, 9, 4, 7, 6, 5, 8, 3, 1, 11]
    mixed = info_of([camera_at(eyes[i], ORIGIN) for i in swapped], test_every=None)

    def length(info: SceneInfo, order: str) -> float:
        path = interpolate(info, 300, smoothing=0.0, order=order, loop=False)
        return float(path.center.diff(dim=0).norm(dim=1).sum())

    arc = length(tidy, "capture")  # names view_0 ... view_11, where sorting as text would put view_10 after view_1
    assert arc == pytest.approx(3 * math.pi * 11 / 12, rel=0.05)
    assert length(mixed, "capture") > 2 * arc
    assert length(mixed, "auto") == pytest.approx(arc, rel=0.01)


def test_a_camera_on_a_tripod_gives_a_still_path() -> None:
    info = info_of([camera_at(torch.tensor([3.0, 0.0, 1.0]), ORIGIN)] * 5, test_every=None)
    path = interpolate(info, 7)
    assert path.shape == (7,)
    assert torch.isfinite(path.cam_from_world).all()
    assert float(path.center.std(dim=0).max()) < 1e-6


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_cameras_still_make_a_path(count: int) -> None:
    path = auto(circle(count, share=0.3), 11)
    assert path.shape == (11,)
    assert torch.isfinite(path.cam_from_world).all()


def test_the_spiral_stays_among_forward_facing_cameras_and_looks_ahead() -> None:
    info = wall()
    path = spiral(info, 90)
    keys = torch.stack([camera.center for camera in info.cameras])
    spread = 0.5 * (keys.amax(0) - keys.amin(0)) + 1e-4
    assert bool(((path.center - keys.mean(0)).abs() <= spread + 0.2).all())
    assert float(path.forward[:, 1].min()) > 0.8
    close = info.near / 0.75 * 0.9
    distance = (path.center[0] - (keys.mean(0) + torch.tensor([0.0, 4.0 * close, 0.0]))).norm()
    assert float(distance) < 10 * close


def test_the_spiral_focuses_by_the_points_when_there_are_any() -> None:
    points = torch.rand(200, 3) + torch.tensor([0.0, 9.0, 0.0])
    path = spiral(replace(wall(), points=points), 40)
    meeting = closest_point_to_lines(path.center.double(), path.forward.double())
    assert 0.9 * 9 < float(meeting[1]) < 4 * 10


def test_paths_that_do_not_fit_say_which_do() -> None:
    with pytest.raises(LightfoldError, match="use the path 'interpolate'"):
        orbit(wall(), 10)
    with pytest.raises(LightfoldError, match="use the path 'interpolate'"):
        spiral(circle(), 10)
    with pytest.raises(LightfoldError, match="No views were held out"):
        held_out(circle())
    with pytest.raises(ValueError, match="n: expected"):
        interpolate(circle(), 0)
    with pytest.raises(ValueError, match="order: expected"):
        interpolate(circle(), 10, order="random")
    with pytest.raises(ValueError, match="smoothing: expected"):
        interpolate(circle(), 10, smoothing=-1.0)


def test_held_out_cameras_are_those_of_the_test_views() -> None:
    info = info_of([camera_at(eye, ORIGIN) for eye in ring(8)])
    assert held_out(info) == [info.cameras[0], info.cameras[4]]


def test_the_template_keeps_the_field_of_view_and_drops_the_distortion() -> None:
    info = circle()
    plain = template_camera(info)
    assert (plain.width, plain.height, plain.lens) == (48, 36, Lens.PINHOLE)
    assert plain.intrinsics.tolist() == [40.0, 40.0, 24.0, 18.0]
    large = template_camera(info, (192, 72))
    assert large.intrinsics.tolist() == [80.0, 80.0, 96.0, 36.0]
    panorama = template_camera(info, (64, 32), Lens.EQUIRECTANGULAR)
    assert panorama.lens is Lens.EQUIRECTANGULAR
    with pytest.raises(ValueError, match="lens: expected"):
        template_camera(info, lens=Lens.OPENCV)
    with pytest.raises(ValueError, match="size: expected"):
        template_camera(info, (0, 10))


@pytest.mark.parametrize("lens", [Lens.EQUIRECTANGULAR, Lens.OPENCV_FISHEYE])
def test_wide_captures_give_a_window_of_90_degrees_when_a_pinhole_is_asked_for(lens: Lens) -> None:
    wide = Camera(
        cam_from_world=torch.eye(4)[:3],
        intrinsics=torch.tensor([20.0, 20.0, 40.0, 20.0]),
        distortion=torch.zeros(4 if lens is Lens.OPENCV_FISHEYE else 0),
        width=80,
        height=40,
        lens=lens,
    )
    window = template_camera(info_of([wide] * 4), lens=Lens.PINHOLE)
    assert float(window.fov[0]) == pytest.approx(math.pi / 2, abs=1e-5)
    assert template_camera(info_of([wide] * 4)).lens is (
        Lens.EQUIRECTANGULAR if lens is Lens.EQUIRECTANGULAR else Lens.PINHOLE
    )


# --- files ------------------------------------------------------------------------------------------------------------


def nerfstudio_file(**changes: object) -> dict[str, object]:
    """A path of two cameras as the viewer writes it: at the origin looking along -z, then moved by (1, 2, 3)."""
    first = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    second = [1, 0, 0, 1, 0, 1, 0, 2, 0, 0, 1, 3, 0, 0, 0, 1]
    shots = [{"camera_to_world": m, "fov": 90, "aspect": 2.0} for m in (first, second)]
    data: dict[str, object] = {
        "keyframes": [], "camera_type": "perspective", "render_height": 40, "render_width": 80, "fps": 30,
        "seconds": 2, "smoothness_value": 0.5, "is_cycle": False, "crop": None, "camera_path": shots,
    }  # fmt: skip
    return data | changes


def written(folder: Path, data: object) -> Path:
    file = folder / "path.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    return file


def test_the_viewers_file_is_read_as_it_is_meant(tmp_path: Path) -> None:
    info = circle(scene_from_capture=Similarity.identity())
    path = camera_path_json(written(tmp_path, nerfstudio_file()), info)
    assert (path.fps, path.notes) == (30.0, ())
    cameras = path.cameras
    assert (cameras.width, cameras.height, cameras.lens) == (80, 40, Lens.PINHOLE)
    assert cameras.intrinsics[0].tolist() == pytest.approx([20.0, 20.0, 40.0, 20.0])
    assert cameras.center.tolist() == [[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]
    torch.testing.assert_close(cameras.forward, torch.tensor([[0.0, 0.0, -1.0]]).expand(2, 3))
    # +y of the world is up in the picture, so it has a smaller row than the centre.
    xy, valid = cameras[0].project(torch.tensor([[1.0, 2.0, -10.0]]))
    assert bool(valid)
    assert xy[0].tolist() == pytest.approx([42.0, 16.0])


def test_a_path_in_capture_coordinates_is_brought_into_the_scene(tmp_path: Path) -> None:
    info = circle()
    file = written(tmp_path, nerfstudio_file())
    cameras = camera_path_json(file, info).cameras
    expected = info.scene_from_capture.apply(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(cameras.center[1].double(), expected, atol=1e-6, rtol=0)
    in_scene = camera_path_json(written(tmp_path, nerfstudio_file(frame="scene")), info).cameras
    assert in_scene.center[1].tolist() == pytest.approx([1.0, 2.0, 3.0])


def test_a_path_in_nerfstudios_frame_lands_where_its_viewer_showed_it(tmp_path: Path) -> None:
    """The viewer's x_viewer = scale (R x + t) undone: a camera that the viewer shows at f(c) stands at c."""
    rotation = so3_exp(torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64))
    shift = torch.tensor([0.4, 0.1, -2.0], dtype=torch.float64)
    transforms = tmp_path / "dataparser_transforms.json"
    matrix = torch.cat([rotation, shift[:, None]], dim=1)
    transforms.write_text(json.dumps({"transform": matrix.tolist(), "scale": 0.25}))
    centre = torch.tensor([5.0, -6.0, 7.0], dtype=torch.float64)
    shown = torch.eye(4, dtype=torch.float64)
    shown[:3, :3] = rotation
    shown[:3, 3] = 0.25 * (rotation @ centre + shift)
    shots = [{"camera_to_world": shown.flatten().tolist(), "fov": 60}]
    info = circle()
    file = written(tmp_path, nerfstudio_file(camera_path=shots))
    cameras = camera_path_json(file, info, capture_from_nerfstudio(transforms)).cameras
    torch.testing.assert_close(cameras.center[0].double(), info.scene_from_capture.apply(centre), atol=1e-5, rtol=0)
    torch.testing.assert_close(cameras.forward[0], torch.tensor([0.0, 0.0, -1.0]), atol=1e-5, rtol=0)
    applied = Similarity(2.0, torch.eye(3, dtype=torch.float64), torch.tensor([1.0, 0.0, 0.0]))
    cameras = camera_path_json(file, info, capture_from_nerfstudio(transforms, applied)).cameras
    expected = info.scene_from_capture.apply(applied.inverse().apply(centre))
    torch.testing.assert_close(cameras.center[0].double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("lens", [Lens.PINHOLE, Lens.OPENCV_FISHEYE, Lens.EQUIRECTANGULAR])
def test_writing_and_reading_a_path_changes_nothing(tmp_path: Path, lens: Lens) -> None:
    info = circle()
    path = orbit(info, 9, template_camera(info, (64, 32), lens))
    write_camera_path(tmp_path / "path.json", path, info, fps=25.0)
    back = camera_path_json(tmp_path / "path.json", info)
    assert back.fps == 25.0
    assert back.cameras.lens is lens
    torch.testing.assert_close(back.cameras.cam_from_world, path.cam_from_world, atol=1e-5, rtol=0)
    torch.testing.assert_close(back.cameras.intrinsics, path.intrinsics, atol=1e-4, rtol=0)
    assert [file.name for file in tmp_path.iterdir()] == ["path.json"]


def test_a_path_with_distortion_has_no_place_in_the_file(tmp_path: Path) -> None:
    info = circle()
    fisheye = orbit(info, 2, template_camera(info, lens=Lens.OPENCV_FISHEYE))
    bent = replace(fisheye, distortion=torch.full((2, 4), 0.01))
    with pytest.raises(ValueError, match="without distortion"):
        write_camera_path(tmp_path / "path.json", bent, info)


def test_missing_extras_have_defaults_and_a_crop_is_reported(tmp_path: Path) -> None:
    info = circle()
    data = nerfstudio_file(crop={"crop_center": [0, 0, 0]})
    for key in ("render_width", "render_height", "fps", "camera_type"):
        del data[key]
    path = camera_path_json(written(tmp_path, data), info)
    assert (path.cameras.width, path.cameras.height) == (48, 36)
    assert path.fps == 1.0  # two frames in two seconds
    assert path.notes == ("The crop box of the camera path is not applied.",)


def test_files_for_two_eyes_say_so_and_hold_panoramas(tmp_path: Path) -> None:
    info = circle()
    for kind, eyes, width in (("VR180", "vr180", 160), ("omnidirectional", "omnidirectional", 80)):
        path = camera_path_json(written(tmp_path, nerfstudio_file(camera_type=kind)), info)
        assert path.eyes == eyes and path.cameras.lens is Lens.EQUIRECTANGULAR
        assert (path.cameras.width, path.cameras.height) == (width, 40)
    assert camera_path_json(written(tmp_path, nerfstudio_file()), info).eyes == ""


SHOT = {"camera_to_world": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1], "fov": 50}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ([1, 2], "should hold a JSON object"),
        ({}, "no list 'camera_path'"),
        ({"camera_path": []}, "at least one camera"),
        ({"keyframes": [{}], "camera_path": []}, "keyframes only"),
        ({"camera_path": ["x"]}, "Camera 0 .* should be a JSON object"),
        ({"camera_path": [{}]}, "list of 16 numbers"),
        ({"camera_path": [SHOT | {"camera_to_world": [1] * 15}]}, "it has 15"),
        ({"camera_path": [SHOT | {"camera_to_world": ["1"] * 16}]}, "should be a number"),
        ({"camera_path": [SHOT | {"camera_to_world": [float("nan")] * 16}]}, "finite number"),
        ({"camera_path": [SHOT | {"camera_to_world": [10**400] + [0] * 15}]}, "finite number"),
        ({"camera_path": [SHOT | {"camera_to_world": [0] * 15 + [1]}]}, "skewed, mirrored or zero"),
        ({"camera_path": [SHOT | {"camera_to_world": [-1, *SHOT["camera_to_world"][1:]]}]}, "mirrored"),  # type: ignore[index]
        (
            {"camera_path": [SHOT | {"camera_to_world": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 5, 6, 7, 1]}]},
            "column by column",
        ),
        ({"camera_path": [SHOT | {"fov": 180}]}, "0.1 to 179.5 degrees"),
        ({"camera_path": [SHOT | {"fov": None}], "default_fov": "wide"}, "should be a number"),
        ({"camera_path": [SHOT], "camera_type": "vr180_r"}, "known are perspective, fisheye, equirectangular"),
        ({"camera_path": [SHOT], "camera_type": ["perspective"]}, "known are perspective"),
        ({"camera_path": [SHOT], "render_width": 0}, "between 1 and 16384"),
        ({"camera_path": [SHOT], "render_height": 1e9}, "between 1 and 16384"),
        ({"camera_path": [SHOT], "render_height": True}, "should be a number"),
        ({"camera_path": [SHOT], "fps": 0}, "between 0.1 and 240"),
        ({"camera_path": [SHOT], "seconds": "long"}, "should be a number"),
        ({"camera_path": [SHOT], "frame": "world"}, "'capture' or 'scene'"),
        ({"camera_path": [SHOT], "frame": ["scene"]}, "'capture' or 'scene'"),
    ],
)
def test_a_hostile_path_gives_one_sentence(tmp_path: Path, data: object, reason: str) -> None:
    with pytest.raises(CaptureError, match=reason) as caught:
        camera_path_json(written(tmp_path, data), circle())
    message = str(caught.value)
    assert "\n" not in message
    assert "path.json" in message
    assert len(message) < 400


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[" * 200_000, b'{"camera_path": [' + b"9" * 5000 + b"]}"]
)
def test_bytes_that_are_not_a_path_give_one_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "path.json"
    file.write_bytes(content)
    with pytest.raises(CaptureError, match=r"path\.json"):
        camera_path_json(file, circle())
    with pytest.raises(CaptureError, match="cannot be read"):
        camera_path_json(tmp_path / "none.json", circle())


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"transform": [[1, 0, 0, 0]] * 3, "scale": 1},
        {"transform": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], "scale": 0},
    ],
)
def test_hostile_transforms_give_one_sentence(tmp_path: Path, data: object) -> None:
    with pytest.raises(CaptureError, match=r"path\.json"):
        capture_from_nerfstudio(written(tmp_path, data))
