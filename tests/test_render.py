"""Videos play back with the right size, length and colours; stills keep numbers; an interruption leaves nothing."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from analytic_sphere import RED, Sphere, camera_at, info_of, ring
from PIL import Image as PillowImage

from lightfold import render
from lightfold.cameras import Camera, Lens
from lightfold.errors import RunError
from lightfold.methods.base import Image
from lightfold.paths import orbit, template_camera
from lightfold.pictures import colour_table
from lightfold.render import (
    OUTPUTS,
    VideoWriter,
    as_panorama,
    list_cameras,
    normals_from_depth,
    path_depth_range,
    render_path,
    render_stills,
    unique_stems,
)
from lightfold.scene import SceneInfo

ORIGIN = torch.zeros(3)


@pytest.fixture
def info() -> SceneInfo:
    return info_of([camera_at(eye, ORIGIN) for eye in ring(8)])


def decoded(path: Path) -> tuple[list[np.ndarray], float, str]:
    """Frames, frame rate and codec of a video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.pix_fmt == "yuv420p"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return frames, float(stream.average_rate), stream.codec_context.name


def test_a_video_has_its_frames_size_rate_and_colours(info: SceneInfo, tmp_path: Path) -> None:
    calls = []
    result = render_path(
        Sphere(info),  # type: ignore[arg-type]
        orbit(info, 7),
        tmp_path / "new" / "orbit.mp4",
        fps=25,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert result.files == (tmp_path / "new" / "orbit.mp4",)
    assert result.frames == 7
    assert result.notes == ()
    assert calls == [(i, 7) for i in range(1, 8)]
    frames, rate, codec = decoded(result.files[0])
    assert (len(frames), rate, codec) == (7, 25.0, "h264")
    for frame in frames:
        assert frame.shape == (36, 48, 3)
        assert np.abs(frame[18, 24].astype(int) - (RED * 255).numpy()).max() < 8
        assert frame[0, 0].max() < 12
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["orbit.mp4"]


def test_the_video_is_tagged_with_the_colours_it_was_made_in(info: SceneInfo, tmp_path: Path) -> None:
    file = render_path(Sphere(info), orbit(info, 2), tmp_path / "a.mp4").files[0]  # type: ignore[arg-type]
    with av.open(str(file)) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)


def test_odd_sizes_are_padded_to_even_ones(info: SceneInfo, tmp_path: Path) -> None:
    path = orbit(info, 2, template_camera(info, (45, 31)))
    frames, _, _ = decoded(render_path(Sphere(info), path, tmp_path / "a.mp4").files[0])  # type: ignore[arg-type]
    assert frames[0].shape == (32, 46, 3)


def test_outputs_stand_side_by_side_or_in_files_of_their_own(info: SceneInfo, tmp_path: Path) -> None:
    method, path = Sphere(info), orbit(info, 3)
    together = render_path(method, path, tmp_path / "all.mp4", outputs=OUTPUTS)  # type: ignore[arg-type]
    frames, _, _ = decoded(together.files[0])
    assert frames[0].shape == (36, len(OUTPUTS) * 48, 3)
    middle = [frames[0][18, 24 + 48 * i].astype(int) for i in range(len(OUTPUTS))]
    assert np.abs(middle[0] - (RED * 255).numpy()).max() < 10
    assert np.abs(middle[1] - colour_table()[255]).max() < 30  # the nearest point of the sphere
    assert middle[-1].min() > 240
    apart = render_path(method, path, tmp_path / "b.mp4", outputs=("rgb", "alpha"), separate=True)  # type: ignore[arg-type]
    assert [file.name for file in apart.files] == ["b_rgb.mp4", "b_alpha.mp4"]
    assert all(len(decoded(file)[0]) == 3 for file in apart.files)


def test_background_goes_to_the_method(info: SceneInfo, tmp_path: Path) -> None:
    file = render_path(Sphere(info), orbit(info, 1), tmp_path / "a.mp4", background=torch.ones(3)).files[0]  # type: ignore[arg-type]
    assert decoded(file)[0][0][0, 0].min() > 245


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_video_leaves_the_older_one_and_nothing_else(
    info: SceneInfo, tmp_path: Path, failure: type[BaseException]
) -> None:
    method = Sphere(info)
    target = render_path(method, orbit(info, 2), tmp_path / "a.mp4").files[0]  # type: ignore[arg-type]
    before = target.read_bytes()

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise failure

    with pytest.raises(failure):
        render_path(method, orbit(info, 9), target, progress=stop, separate=True)  # type: ignore[arg-type]
    with pytest.raises(failure):
        render_path(method, orbit(info, 9), target, progress=stop)  # type: ignore[arg-type]
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_frames_reach_the_disk_while_more_are_made(tmp_path: Path) -> None:
    """Else memory would grow with the length of a video. The encoder itself looks some 50 frames ahead."""
    rng = np.random.default_rng(0)
    sizes = []
    with VideoWriter(tmp_path / "a.mp4", 24, crf=1) as writer:
        for _ in range(120):
            writer.add(rng.integers(0, 255, (96, 96, 3), dtype=np.uint8))
            sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
        assert not (tmp_path / "a.mp4").exists()
    assert 0 < sizes[-1] < (tmp_path / "a.mp4").stat().st_size
    assert sizes[-1] > 0.25 * (tmp_path / "a.mp4").stat().st_size


def test_without_h264_the_video_is_mpeg4_and_says_so(
    info: SceneInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    result = render_path(Sphere(info), orbit(info, 4), tmp_path / "a.mp4")  # type: ignore[arg-type]
    frames, _, codec = decoded(result.files[0])
    assert (len(frames), codec) == (4, "mpeg4")
    assert "no H.264 encoder" in result.notes[0]


def test_a_lower_crf_keeps_more(info: SceneInfo, tmp_path: Path) -> None:
    method, path = Sphere(info, shaded=True), orbit(info, 4, template_camera(info, (96, 72)))
    fine = render_path(method, path, tmp_path / "fine.mp4", crf=5).files[0]  # type: ignore[arg-type]
    coarse = render_path(method, path, tmp_path / "coarse.mp4", crf=45).files[0]  # type: ignore[arg-type]
    assert fine.stat().st_size > coarse.stat().st_size


def test_a_folder_that_cannot_be_written_gives_one_sentence(info: SceneInfo, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"The video .* could not be written"):
        render_path(Sphere(info), orbit(info, 2), tmp_path / "file" / "a.mp4")  # type: ignore[arg-type]
    with pytest.raises(RunError, match="could not be written"):
        render_stills(Sphere(info), orbit(info, 2), tmp_path / "file")  # type: ignore[arg-type]


def test_arguments_that_do_not_fit_are_named(info: SceneInfo, tmp_path: Path) -> None:
    method, path = Sphere(info), orbit(info, 2)
    with pytest.raises(ValueError, match="outputs: expected"):
        render_path(method, path, tmp_path / "a.mp4", outputs=("rgb", "colour"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"ends in \.mp4"):
        render_path(method, path, tmp_path / "a.avi")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="crf: expected"):
        render_path(method, path, tmp_path / "a.mp4", crf=52)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fps: expected"):
        render_path(method, path, tmp_path / "a.mp4", fps=0.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one"):
        render_path(method, [], tmp_path / "a.mp4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one size"):
        render_path(method, [path[0], path[1].resized(20, 20)], tmp_path / "a.mp4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="names: expected 2"):
        render_stills(method, path, tmp_path, names=["one"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="depth_as: expected"):
        render_stills(method, path, tmp_path, depth_as="exr")  # type: ignore[arg-type]
    assert method.rendered == []


def test_the_video_writer_discards_what_was_not_finished(tmp_path: Path) -> None:
    frame = np.zeros((16, 16, 3), dtype=np.uint8)
    with pytest.raises(RuntimeError, match="stop"), VideoWriter(tmp_path / "a.mp4", 24) as writer:
        writer.add(frame)
        raise RuntimeError("stop")
    assert not list(tmp_path.iterdir())
    with VideoWriter(tmp_path / "a.mp4", 24) as writer:
        writer.add(frame)
        with pytest.raises(ValueError, match="expected 16 x 16"):
            writer.add(np.zeros((8, 16, 3), dtype=np.uint8))
    assert len(decoded(tmp_path / "a.mp4")[0]) == 1


def test_the_depth_scale_is_that_of_the_whole_path(info: SceneInfo) -> None:
    """A camera that moves away: one scale must hold its first and its last frame."""
    cameras = [camera_at(torch.tensor([x, 0.0, 0.0]), ORIGIN) for x in (2.0, 3.0, 4.0, 8.0)]
    near, far = path_depth_range(Sphere(info), cameras)  # type: ignore[arg-type]
    assert near == pytest.approx(1.0, abs=0.1)
    assert 7.0 < far < 8.0


def test_panoramas_are_rendered_like_any_other_lens(info: SceneInfo, tmp_path: Path) -> None:
    path = as_panorama(orbit(info, 2), height=32)
    assert (path.width, path.height, path.lens) == (64, 32, Lens.EQUIRECTANGULAR)
    method = Sphere(info)
    frames, _, _ = decoded(render_path(method, path, tmp_path / "a.mp4").files[0])  # type: ignore[arg-type]
    assert frames[0].shape == (32, 64, 3)
    assert np.abs(frames[0][16, 32].astype(int) - (RED * 255).numpy()).max() < 12
    assert method.rendered[-1].lens is Lens.EQUIRECTANGULAR


# --- stills -----------------------------------------------------------------------------------------------------------


def test_stills_are_named_after_their_views_and_may_differ_in_size(info: SceneInfo, tmp_path: Path) -> None:
    cameras = [info.cameras[0], info.cameras[1].resized(20, 30)]
    names = ["images/a.png", "images/<b>.png"]
    result = render_stills(Sphere(info), cameras, tmp_path, names, outputs=("rgb", "alpha"))  # type: ignore[arg-type]
    assert [file.name for file in result.files] == [
        "images_a_rgb.png", "images_a_alpha.png", "images__b__rgb.png", "images__b__alpha.png",
    ]  # fmt: skip
    assert PillowImage.open(result.files[0]).size == (48, 36)
    assert PillowImage.open(result.files[2]).size == (20, 30)


def test_depth_stills_are_in_capture_units_along_the_ray(info: SceneInfo, tmp_path: Path) -> None:
    method, camera = Sphere(info), camera_at(torch.tensor([3.0, 0.0, 0.0]), ORIGIN, width=49, height=37)
    in_scene = method.render(camera).depth
    expected = in_scene / info.scene_from_capture.scale
    assert float(expected[18, 24]) == pytest.approx(4.0, abs=1e-4)  # two scene units are four in the capture
    png = render_stills(method, camera, tmp_path, outputs=("depth",), depth_as="png16", depth_unit=0.002)  # type: ignore[arg-type]
    stored = PillowImage.open(png.files[0])
    assert stored.mode.startswith("I;16")
    assert np.abs(np.asarray(stored) * float(stored.info["depth_unit"]) - expected.numpy()).max() <= 0.00101
    npy = render_stills(method, camera, tmp_path, outputs=("depth",), depth_as="npy")  # type: ignore[arg-type]
    np.testing.assert_allclose(np.load(npy.files[0]), expected.numpy(), atol=1e-6)
    far = render_stills(method, camera, tmp_path, outputs=("depth",), depth_as="png16", depth_unit=1e-5)  # type: ignore[arg-type]
    assert "beyond 0.65535 capture units" in far.notes[0]


def test_median_depth_is_shown_and_where_there_is_none_the_mean_is(info: SceneInfo, tmp_path: Path) -> None:
    class Farther(Sphere):
        """Its median depth is one unit behind its mean."""

        def render(self, camera: Camera, background: torch.Tensor | None = None, crop: object = None) -> Image:
            image = super().render(camera, background)
            return replace(image, median_depth=image.depth + 1.0)

    camera, outputs = info.cameras[1], ("depth", "median_depth")
    own = render_stills(Farther(info), camera, tmp_path / "own", outputs=outputs, depth_as="npy")  # type: ignore[arg-type]
    mean, median = (np.load(file) for file in own.files)
    seen = mean > 0
    assert seen.any() and own.notes == ()
    np.testing.assert_allclose(median[seen], mean[seen] + 1.0 / info.scene_from_capture.scale, rtol=1e-5)
    assert not median[~seen].any()
    lacking = render_stills(Sphere(info), camera, tmp_path / "lacking", outputs=outputs, depth_as="npy")  # type: ignore[arg-type]
    np.testing.assert_array_equal(*(np.load(file) for file in lacking.files))
    assert lacking.notes == ("The method gives no median depth; the mean is shown instead.",)


def test_names_that_would_collide_are_numbered() -> None:
    assert unique_stems(["a/1.png", "b/1.png"]) == ["a_1", "b_1"]
    assert unique_stems(["a b.png", "a_b.png"]) == ["0000_a_b", "0001_a_b"]
    assert unique_stems(["A.png", "a.png"]) == ["0000_A", "0001_a"]


@pytest.mark.parametrize("lens", [Lens.PINHOLE, Lens.OPENCV_FISHEYE, Lens.EQUIRECTANGULAR])
def test_normals_from_depth_are_the_spheres_own(info: SceneInfo, lens: Lens) -> None:
    camera = orbit(info, 3, template_camera(info, (160, 120), lens))[1]
    image = Sphere(info).render(camera)
    assert image.normal is not None
    found = normals_from_depth(camera, image.depth, image.alpha)
    known = found.norm(dim=-1) > 0.5
    facing = (found * image.normal).sum(dim=-1)[known]
    assert int(known.sum()) > 100
    # At the rim the surface turns away within a pixel, so a few differences there are coarse.
    assert float(facing.quantile(0.1)) > 0.97
    assert float(facing.median()) > 0.997
    assert bool((found[image.alpha == 0] == 0).all())


def wall_depth(camera: Camera, normal: torch.Tensor, offset: float) -> torch.Tensor:
    """[H, W] distance along the rays of a camera to the plane normal . x = offset; 0 where they miss it."""
    rays = camera.rays(camera.pixel_grid())
    t = (offset - rays.origin @ normal) / (rays.direction @ normal)
    return torch.where(t > 0, t, 0.0).reshape(camera.height, camera.width)


LENSES = [Lens.PINHOLE, Lens.OPENCV_FISHEYE, Lens.EQUIRECTANGULAR, Lens.ORTHOGRAPHIC]


@pytest.mark.parametrize("lens", LENSES)
def test_the_normal_of_a_plane_is_exact_up_to_the_border(info: SceneInfo, lens: Lens) -> None:
    camera = replace(template_camera(info, (64, 48), Lens.PINHOLE), cam_from_world=torch.eye(3, 4))
    if lens is not Lens.PINHOLE:
        scale = 20.0 if lens is Lens.ORTHOGRAPHIC else 30.0
        around = torch.tensor([64 / (2 * torch.pi), 48 / torch.pi, 32.0, 24.0])
        flat = torch.tensor([scale, scale, 32.0, 24.0])
        distortion = torch.zeros(4 if lens is Lens.OPENCV_FISHEYE else 0)
        panorama = lens is Lens.EQUIRECTANGULAR
        camera = replace(camera, lens=lens, intrinsics=around if panorama else flat, distortion=distortion)
    normal = torch.nn.functional.normalize(torch.tensor([0.5, -0.3, -1.0]), dim=0)
    depth = wall_depth(camera, normal, -3.0)
    found = normals_from_depth(camera, depth, torch.ones_like(depth))
    # Where the plane is seen at a grazing angle, too little of it lies in the window.
    rays = camera.rays(camera.pixel_grid()).direction.reshape(48, 64, 3)
    steep = (rays @ normal).abs() > 0.35
    clear = (depth > 0) & steep
    assert int(clear.sum()) > 500 and bool((found.norm(dim=-1)[clear] > 0.99).all())
    assert float((found[clear] @ normal).min()) > 0.9999
    assert bool((found[depth == 0] == 0).all())


def test_normals_do_not_bridge_an_edge_and_average_noise_away(info: SceneInfo) -> None:
    camera = replace(template_camera(info, (80, 60), Lens.PINHOLE), cam_from_world=torch.eye(3, 4))
    left, right = (torch.nn.functional.normalize(torch.tensor(v), dim=0) for v in ([0.4, 0.0, -1.0], [0.0, 0.3, -1.0]))
    depth = wall_depth(camera, left, -2.0)
    depth[:, 40:] = wall_depth(camera, right, -4.0)[:, 40:]
    found = normals_from_depth(camera, depth, torch.ones_like(depth))
    assert float((found[:, :40] @ left).min()) > 0.9999 and float((found[:, 40:] @ right).min()) > 0.9999
    pixel = 4.0 / float(camera.intrinsics[0])
    noise = torch.randn(depth.shape, generator=torch.Generator().manual_seed(0))
    rough = normals_from_depth(camera, depth + pixel * noise, torch.ones_like(depth))
    angle = torch.rad2deg(torch.arccos((rough[10:50, 50:70] @ right).clamp(-1, 1)))
    assert float(angle.median()) < 6.0  # differences of next neighbours: 34 degrees


def test_a_normal_needs_neighbours(info: SceneInfo) -> None:
    camera = template_camera(info, (20, 16), Lens.PINHOLE)
    depth = torch.zeros(16, 20)
    depth[3, 3], depth[12, 5:15] = 2.0, 2.0
    assert bool((normals_from_depth(camera, depth, torch.ones_like(depth)) == 0).all())
    depth[11, 5:15] = 2.0
    assert int((normals_from_depth(camera, depth, torch.ones_like(depth)).norm(dim=-1) > 0).sum()) == 20
    for size in ((1, 1), (1, 9), (9, 1)):
        thin = template_camera(info, size, Lens.PINHOLE)
        ones = torch.ones(size[1], size[0])
        assert normals_from_depth(thin, ones, ones).shape == (size[1], size[0], 3)


def test_large_pictures_are_fitted_band_by_band(info: SceneInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    camera = orbit(info, 3, template_camera(info, (64, 48), Lens.PINHOLE))[1]
    image = Sphere(info).render(camera)
    whole = normals_from_depth(camera, image.depth, image.alpha)
    monkeypatch.setattr(render, "BAND", 5 * 64)
    torch.testing.assert_close(normals_from_depth(camera, image.depth, image.alpha), whole, atol=0, rtol=0)


def test_a_method_without_normals_shows_those_of_its_depth_and_says_so(info: SceneInfo, tmp_path: Path) -> None:
    own = render_stills(Sphere(info), info.cameras[1], tmp_path / "own", outputs=("normal",))  # type: ignore[arg-type]
    bare = Sphere(info, with_normals=False)
    derived = render_stills(bare, list(info.cameras[1:3]), tmp_path / "derived", outputs=("normal",))  # type: ignore[arg-type]
    assert own.notes == ()
    assert derived.notes == ("The method gives no normals; those shown are the slopes of its depth.",)
    first, second = (np.asarray(PillowImage.open(r.files[0])).astype(int) for r in (own, derived))
    assert np.abs(first[18, 24] - second[18, 24]).max() < 12


def test_cameras_come_as_a_batch_a_single_one_or_a_list(info: SceneInfo) -> None:
    batch = orbit(info, 3)
    assert [camera.shape for camera in list_cameras(batch)] == [torch.Size([])] * 3
    assert list_cameras(batch[0])[0].shape == torch.Size([])
    assert list_cameras([batch[0], batch[1]])[1] is not None
    assert isinstance(list_cameras(batch)[0], Camera)


def test_importing_render_does_not_import_the_video_library() -> None:
    code = "import sys, lightfold.render; sys.exit('av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert render.OUTPUTS == ("rgb", "depth", "median_depth", "normal", "alpha")
