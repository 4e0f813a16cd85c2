"""From verified matches to models: COLMAP's mappers, joining of models, refinement. Runs in the engine's process only.

A model is a folder of COLMAP binaries. Every function that makes one writes it and says where, so that a process that
ends in the next step has lost nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
import torch
from numpy.typing import NDArray
from PIL import Image

from ..cameras import Camera, Lens
from ..files import whole_file
from ..footage.shots import Footage
from ..geometry import Similarity
from .agreement import Agreement, Pair, agreement
from .config import PoseConfig

TOLERANCE = 4.0
"""Pixels, of a picture 1000 wide, by which verified matches may miss a model's epipolar lines."""
SMALLEST_MODEL = 3
"""Pictures below which a model is not kept."""
STRONG_PICTURES, STRONG_OBSERVATIONS = 12, 3000
"""What a camera must have seen before it is tried to free its principal point."""
FOCAL_CERTAIN, AXIS_CERTAIN = 0.003, 0.002
"""Standard deviations up to which a focal length (of itself) and a principal point (of the longer side) are known."""
PRINCIPAL_POINT_REACH = 0.06
"""How far the principal point may move from the middle, in units of the longer side, before that is disbelieved."""
SIMPLER = {
    lens.value: Lens.SIMPLE_RADIAL_FISHEYE.value
    for lens in (Lens.OPENCV_FISHEYE, Lens.RADIAL_FISHEYE, Lens.THIN_PRISM_FISHEYE, Lens.SIMPLE_RADIAL_FISHEYE)
} | {lens.value: Lens.SIMPLE_RADIAL.value for lens in (Lens.OPENCV, Lens.FULL_OPENCV, Lens.FOV)}
"""What to fall back to from lenses that came out impossible; SIMPLE_PINHOLE from all others."""
STRETCH = 0.03
"""How far the two focal lengths may differ: pixels are square."""
FOCAL_RANGE = (0.25, 12.0)
"""Focal lengths that perspective lenses have, in units of the longer side of the picture."""


# ---------------------------------------------------------------------------------------------------------------------
# Matches


def match(database: Path, pairs: NDArray[np.int64], block_file: Path, config: PoseConfig) -> None:
    """Match and verify pairs [P, 2] of image ids. Pairs in the database are skipped. block_file: a name to write to."""
    matching = pycolmap.FeatureMatchingOptions()
    matching.use_gpu = False
    matching.num_threads = config.threads or 1
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = config.seed
    pairing = pycolmap.ImportedPairingOptions()
    pairing.match_list_path = str(block_file)
    with _names_without_spaces(database) as names:
        block_file.write_text("".join(f"{names[i]} {names[j]}\n" for i, j in pairs.tolist()), encoding="utf-8")
        pycolmap.match_image_pairs(str(database), matching, pairing, verification, pycolmap.Device.cpu)


@contextmanager
def _names_without_spaces(database: Path) -> Iterator[dict[int, str]]:
    """Names by image id that a list of pairs can hold: COLMAP ends a name at its first space, so for the length of the
    block names with a space are replaced in the database."""
    with pycolmap.Database.open(str(database)) as opened:
        images = opened.read_all_images()
        names = {image.image_id: image.name for image in images}
        spaced = {i: name for i, name in names.items() if any(letter.isspace() for letter in name)}
        _rename(opened, images, {i: f"image-without-spaces-{i}" for i in spaced})
    try:
        yield names | {i: f"image-without-spaces-{i}" for i in spaced}
    finally:
        with pycolmap.Database.open(str(database)) as opened:
            _rename(opened, opened.read_all_images(), spaced)


def _rename(opened: pycolmap.Database, images: list[pycolmap.Image], names: dict[int, str]) -> None:
    for image in images:
        if image.image_id in names:
            image.name = names[image.image_id]
            opened.update_image(image)


@dataclass(frozen=True)
class Matches:
    """The verified matches of a database.

    keypoints: [n, 2] pixels by name of picture.
    pairs:     (first, second) to the matching rows [m, 2] of their keypoints.
    planar:    how many of the pairs show a plane, or turn without moving: nothing can be triangulated from these alone.
    """

    keypoints: dict[str, NDArray[np.float64]]
    pairs: dict[tuple[str, str], NDArray[np.int64]]
    planar: int

    def links(self) -> list[tuple[str, str, int]]:
        """The pairs and how many matches each has, in order: equal when the matches are, for all that mappers see."""
        return sorted((*pair, len(rows)) for pair, rows in self.pairs.items())

    def partners(self) -> dict[str, int]:
        """How many pictures each picture has verified matches with."""
        counts = dict.fromkeys(self.keypoints, 0)
        for first, second in self.pairs:
            counts[first] += 1
            counts[second] += 1
        return counts


def read_matches(database: Path) -> Matches:
    """All verified pairs."""
    flat = (
        pycolmap.TwoViewGeometryConfiguration.PLANAR,
        pycolmap.TwoViewGeometryConfiguration.PANORAMIC,
        pycolmap.TwoViewGeometryConfiguration.PLANAR_OR_PANORAMIC,
    )
    with pycolmap.Database.open(str(database)) as opened:
        names = {image.image_id: image.name for image in opened.read_all_images()}
        keypoints = {
            name: np.asarray(opened.read_keypoints(i), dtype=np.float64).reshape(-1, 2)
            if opened.num_keypoints_for_image(i) == 0
            else np.asarray(opened.read_keypoints(i), dtype=np.float64)[:, :2]
            for i, name in names.items()
        }
        pairs, planar = {}, 0
        for number, geometry in zip(*opened.read_two_view_geometries(), strict=True):
            rows = np.asarray(geometry.inlier_matches, dtype=np.int64).reshape(-1, 2)
            if len(rows):
                first, second = pycolmap.pair_id_to_image_pair(number)
                pairs[names[first], names[second]] = rows
                planar += geometry.config in flat
    return Matches(keypoints, pairs, planar)


# ---------------------------------------------------------------------------------------------------------------------
# Mappers


@dataclass(frozen=True)
class Task:
    """What every mapper is given.

    fixed: ids of cameras whose intrinsics are known and stay. stated: ids of those whose focal length a header states.
    progress: called with the number of pictures placed. fixed_rigs: ids of rigs whose offsets are known and stay.
    """

    database: Path
    images: Path
    config: PoseConfig
    fixed: frozenset[int]
    stated: frozenset[int]
    progress: Callable[[int], None]
    fixed_rigs: frozenset[int] = frozenset()


def map_incrementally(
    task: Task,
    output: Path,
    relaxed: bool = False,
    continued: Path | None = None,
) -> list[Path]:
    """Models, largest first, picture by picture (Schoenberger and Frahm 2016).

    relaxed: lower thresholds for the first pair, so that others can be it, and for adding pictures. continued: a model
    to add pictures to.
    """
    options = _incremental_options(task, relaxed)
    count = 0

    def added() -> None:
        nonlocal count
        count += 1
        task.progress(count)

    _empty(output)
    pycolmap.incremental_mapping(
        str(task.database),
        str(task.images),
        str(output),
        options,
        input_path=str(continued) if continued is not None else "",
        initial_image_pair_callback=added,
        next_image_callback=added,
    )
    return models_in(output)


def _incremental_options(task: Task, relaxed: bool = False) -> pycolmap.IncrementalPipelineOptions:
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads = task.config.threads or 1
    options.random_seed = task.config.seed
    options.min_model_size = SMALLEST_MODEL
    options.constant_cameras = set(task.fixed)
    options.constant_rigs = set(task.fixed_rigs)
    # Colours are read later, by us, for the one model that is chosen.
    options.extract_colors = False
    if relaxed:
        options.min_num_matches = 10
        options.mapper.init_min_num_inliers = 50
        options.mapper.init_min_tri_angle = 4.0
        options.mapper.abs_pose_min_num_inliers = 15
        options.mapper.abs_pose_min_inlier_ratio = 0.15
    return options


def map_globally(task: Task, output: Path) -> list[Path]:
    """Models, largest first, all pictures at once (Pan et al. 2024). Fast, and sometimes confidently wrong."""
    # The calibration of the view graph writes focal lengths into the database; the other mappers keep theirs.
    with scratch_copy(task.database, output) as database:
        with pycolmap.Database.open(str(database)) as opened:
            cameras = opened.read_all_cameras()
            for camera in cameras:
                camera.has_prior_focal_length |= camera.camera_id in task.stated
                opened.update_camera(camera)
        if any(not camera.is_spherical() and camera.camera_id not in task.fixed for camera in cameras):
            calibration = pycolmap.ViewGraphCalibrationOptions()
            calibration.random_seed = task.config.seed
            pycolmap.calibrate_view_graph(str(database), calibration)
        options = pycolmap.GlobalPipelineOptions()
        options.num_threads = task.config.threads or 1
        options.random_seed = task.config.seed
        options.min_model_size = SMALLEST_MODEL
        options.mapper.global_positioning.use_gpu = False
        options.mapper.bundle_adjustment.ceres.use_gpu = False
        options.mapper.refine_sensor_from_rig = not task.fixed_rigs
        if len(task.fixed) == len(cameras):
            options.mapper.bundle_adjustment.refine_focal_length = False
            options.mapper.bundle_adjustment.refine_extra_params = False
        _empty(output)
        pycolmap.global_mapping(str(database), str(task.images), str(output), options)
    return models_in(output)


@contextmanager
def scratch_copy(database: Path, beside: Path) -> Iterator[Path]:
    """A copy of a database that may be written to and is deleted when the block ends. beside: a folder to come."""
    copy = beside.with_name(f"{beside.name}.db")
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(database, copy)
    try:
        yield copy
    finally:
        # SQLite keeps a journal or two beside it.
        for path in copy.parent.glob(f"{copy.name}*"):
            path.unlink(missing_ok=True)


def copy_near(source: Path, target: Path, reach: int) -> None:
    """A copy of a database with the matches only of pictures at most `reach` places apart in the order of ids."""
    with whole_file(target) as partial:
        shutil.copyfile(source, partial)
        with pycolmap.Database.open(str(partial)) as opened:
            for number in opened.read_all_matches()[0]:
                first, second = pycolmap.pair_id_to_image_pair(number)
                if abs(first - second) > reach:
                    opened.delete_matches(first, second)
                    opened.delete_two_view_geometry(first, second)


def simplify_lenses(database: Path, fixed: Collection[int]) -> None:
    """Give all cameras but the fixed ones a lens with less freedom, which cannot go as far astray."""
    with pycolmap.Database.open(str(database)) as opened:
        for camera in opened.read_all_cameras():
            if camera.camera_id not in fixed:
                simple = pycolmap.Camera.create_from_model_name(
                    camera.camera_id,
                    SIMPLER.get(camera.model_name, Lens.SIMPLE_PINHOLE.value),
                    camera.mean_focal_length(),
                    camera.width,
                    camera.height,
                )
                simple.has_prior_focal_length = camera.has_prior_focal_length
                opened.update_camera(simple)


def models_in(folder: Path) -> list[Path]:
    """The models of a mapper's output, the one with the most pictures first."""
    found = [path.parent for path in folder.glob("*/images.bin")]
    return sorted(found, key=lambda path: (-len(read(path).reg_image_ids()), path.name))


def read(folder: Path) -> pycolmap.Reconstruction:
    """A model."""
    return pycolmap.Reconstruction(str(folder))


def write(model: pycolmap.Reconstruction, folder: Path) -> Path:
    """Write a model, replacing what is there."""
    _empty(folder)
    model.write_binary(str(folder))
    return folder


def has_rigs(model: pycolmap.Reconstruction) -> bool:
    """Whether pictures of different cameras have a pose in common."""
    return any(rig.num_sensors() > 1 for rig in model.rigs.values())


def names_in(model: pycolmap.Reconstruction) -> list[str]:
    """The pictures that have a pose."""
    return [model.images[i].name for i in model.reg_image_ids()]


def _empty(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


# ---------------------------------------------------------------------------------------------------------------------
# Judging, joining


def judge(model: pycolmap.Reconstruction, matches: Matches) -> Agreement:
    """What the verified matches say about a model."""
    poses, cameras, tolerance = {}, {}, {}
    for i in model.reg_image_ids():
        image = model.images[i]
        poses[image.name] = np.asarray(image.cam_from_world().matrix())
        cameras[image.name] = model.cameras[image.camera_id]
        tolerance[image.name] = TOLERANCE / 1000 * _radians_per_width(model.cameras[image.camera_id])
    pairs = []
    for (first, second), rows in matches.pairs.items():
        if first in poses and second in poses:
            xy_first, xy_second = matches.keypoints[first][rows[:, 0]], matches.keypoints[second][rows[:, 1]]
            rays_first = np.asarray(cameras[first].cam_ray_from_img(xy_first))
            rays_second = np.asarray(cameras[second].cam_ray_from_img(xy_second))
            seen = np.isfinite(rays_first).all(1) & np.isfinite(rays_second).all(1)
            pairs.append(Pair(first, second, rays_first[seen], rays_second[seen]))
    return agreement(poses, pairs, tolerance)


def _radians_per_width(camera: pycolmap.Camera) -> float:
    """The angle that the longer side would span at the resolution of the picture's middle."""
    if camera.is_spherical():
        return 2 * np.pi
    return float(max(camera.width, camera.height) / camera.mean_focal_length())


def drop(model: pycolmap.Reconstruction, names: Collection[str]) -> None:
    """Take the poses of these pictures out of a model."""
    for i in list(model.reg_image_ids()):
        if model.images[i].name in names:
            model.deregister_frame(model.images[i].frame_id)


def join(task: Task, folders: list[Path], output: Path) -> list[Path]:
    """Models with those joined that share at least three pictures and agree on where these stand; largest first.

    The smaller one is moved onto the larger by their shared points; its own pictures are added, everything is
    triangulated anew from the matches of both, and adjusted. A joint that loses pictures or doubles the error is not
    made.
    """
    if not folders or has_rigs(read(folders[0])):
        # A picture of a rig cannot be moved over without the others of its instant.
        return folders
    joined, rest = folders[:1], folders[1:]
    for folder in rest:
        target, source = read(joined[0]), read(folder)
        shared = set(names_in(target)) & set(names_in(source))
        if len(shared) < 3 or len(shared) == len(names_in(source)):
            joined.append(folder)
            continue
        sim = pycolmap.align_reconstructions_via_reprojections(source, target)
        if sim is None:
            joined.append(folder)
            continue
        before = target.compute_mean_reprojection_error()
        wanted = len(set(names_in(target)) | set(names_in(source)))
        source.transform(sim)
        for i in source.reg_image_ids():
            image = source.images[i]
            if image.name not in shared:
                _adopt(target, image, source.cameras[image.camera_id])
        folder_of_joint = output / f"joined-{len(list(output.glob('joined-*'))) + 1}"
        _empty(folder_of_joint)
        model = pycolmap.triangulate_points(
            target, str(task.database), str(task.images), str(folder_of_joint), True, _incremental_options(task)
        )
        adjust(model, task)
        if len(names_in(model)) == wanted and model.compute_mean_reprojection_error() < 2 * before + 0.5:
            joined[0] = write(model, folder_of_joint)
        else:
            remove(folder_of_joint)
            joined.append(folder)
    return joined


def _adopt(target: pycolmap.Reconstruction, image: pycolmap.Image, camera: pycolmap.Camera) -> None:
    """Add a picture of another model, without its points, under the ids that both share through the database."""
    if image.image_id in target.images:
        frame = target.frames[image.frame_id]
        frame.set_cam_from_world(image.camera_id, image.cam_from_world())
        target.register_frame(image.frame_id)
        return
    if not target.exists_camera(image.camera_id):
        target.add_camera_with_trivial_rig(pycolmap.Camera(camera.todict()))
    fresh = pycolmap.Image(name=image.name, camera_id=image.camera_id, image_id=image.image_id)
    target.add_image_with_trivial_frame(fresh, image.cam_from_world())


# ---------------------------------------------------------------------------------------------------------------------
# Refinement


def adjust(model: pycolmap.Reconstruction, task: Task, free: Collection[int] = ()) -> set[int]:
    """Bundle adjustment of all poses, points and intrinsics that are not fixed.

    free: cameras whose principal point is freed too; the intrinsics of all others then stay. Returns those of them
    whose intrinsics the pictures determine: the standard deviation, from the covariance at the minimum, of the focal
    length is below FOCAL_CERTAIN of itself, and of the principal point below AXIS_CERTAIN of the longer side. A walk
    straight ahead fits almost any focal length, and says so only there.
    """
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    options.ceres.use_gpu = False
    options.ceres.solver_options.num_threads = task.config.threads or 1
    options.ceres.solver_options.max_num_iterations = 50
    # A few wrong matches survive every filter; they must not pull at what all others agree on.
    options.ceres.loss_function_type = pycolmap.LossFunctionType.SOFT_L1
    options.refine_principal_point = bool(free)
    config = pycolmap.BundleAdjustmentConfig()
    for i in model.reg_image_ids():
        config.add_image(i)
    for camera_id in {model.images[i].camera_id for i in model.reg_image_ids()}:
        if camera_id in task.fixed or (free and camera_id not in free):
            config.set_constant_cam_intrinsics(camera_id)
    for rig_id in task.fixed_rigs & set(model.rigs):
        for sensor in model.rigs[rig_id].non_ref_sensors:
            config.set_constant_sensor_from_rig_pose(sensor)
    if has_rigs(model) and task.fixed_rigs:
        # Known offsets are known lengths, so there is no scale to be fixed: one frame is all that can stay.
        config.set_constant_rig_from_world_pose(min(model.images[i].frame_id for i in model.reg_image_ids()))
    else:
        config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    adjuster = pycolmap.create_default_ceres_bundle_adjuster(options, config, model)
    adjuster.solve()
    model.update_point_3d_errors()
    if not free:
        return set()
    wanted = pycolmap.BACovarianceOptions()
    # With anything less than all, the numbers of the intrinsics are not those of a covariance (pycolmap 4.2.1).
    wanted.params = pycolmap.BACovarianceOptionsParams.ALL
    covariance = pycolmap.estimate_ba_covariance(wanted, model, adjuster)
    if covariance is None:
        return set()
    return {c for c in free if _certain(model.cameras[c], covariance.get_other_params_cov(model.cameras[c].params))}


def _certain(camera: pycolmap.Camera, covariance: NDArray[np.float64] | None) -> bool:
    if covariance is None or len(covariance) != len(camera.params):
        return False
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0))
    focal = deviation[camera.focal_length_idxs()].max() / camera.mean_focal_length()
    axis = deviation[camera.principal_point_idxs()].max() / max(camera.width, camera.height)
    return bool(focal < FOCAL_CERTAIN and axis < AXIS_CERTAIN)


def free_lenses(model: pycolmap.Reconstruction, camera_ids: Collection[int]) -> None:
    """Give cameras of one focal length and one distortion number the OPENCV lens, which begins as the same lens.

    Mapping is more certain with few unknowns; a strong model determines all of them.
    """
    for camera_id in camera_ids:
        camera = model.cameras[camera_id]
        if camera.model_name == Lens.SIMPLE_RADIAL.value:
            focal, cx, cy, k1 = camera.params
            camera.model = pycolmap.CameraModelId.OPENCV
            camera.params = [focal, focal, cx, cy, k1, 0.0, 0.0, 0.0]


def strong_cameras(model: pycolmap.Reconstruction) -> set[int]:
    """Cameras with enough pictures and observations for their principal point to be worth freeing."""
    pictures: dict[int, int] = {}
    observations: dict[int, int] = {}
    for i in model.reg_image_ids():
        image = model.images[i]
        pictures[image.camera_id] = pictures.get(image.camera_id, 0) + 1
        observations[image.camera_id] = observations.get(image.camera_id, 0) + image.num_points3D
    return {c for c, n in pictures.items() if n >= STRONG_PICTURES and observations[c] >= STRONG_OBSERVATIONS}


def implausible(model: pycolmap.Reconstruction, fixed: Collection[int] = ()) -> dict[int, str]:
    """Cameras whose intrinsics no real lens has, and why: words that can follow "the lens"."""
    reasons = {}
    for camera_id in {model.images[i].camera_id for i in model.reg_image_ids()} - set(fixed):
        camera = model.cameras[camera_id]
        if camera.is_spherical():
            continue
        side = max(camera.width, camera.height)
        focal = camera.mean_focal_length() / side
        offset = max(
            abs(camera.principal_point_x - camera.width / 2), abs(camera.principal_point_y - camera.height / 2)
        )
        if not FOCAL_RANGE[0] <= focal <= FOCAL_RANGE[1]:
            reasons[camera_id] = f"has a focal length of {focal:.2f} picture widths"
        elif abs(camera.focal_length_x / camera.focal_length_y - 1) > STRETCH:
            reasons[camera_id] = "stretches the picture"
        elif offset > PRINCIPAL_POINT_REACH * side:
            reasons[camera_id] = f"has its axis {offset / side:.0%} of the picture off the middle"
        elif camera.is_perspective() and not _unfolded(camera):
            reasons[camera_id] = "folds over inside the picture"
    return reasons


def _unfolded(camera: pycolmap.Camera) -> bool:
    """Whether every corner of the picture is reached by a ray, also beyond the points that were measured."""
    eye = torch.eye(3, 4, dtype=torch.float64)
    lens = Camera.from_colmap(camera.model_name, list(camera.params), camera.width, camera.height, eye)
    w, h = float(camera.width), float(camera.height)
    corners = torch.tensor([[0.0, 0.0], [w, 0.0], [0.0, h], [w, h]], dtype=torch.float64)
    return bool(lens.unproject_valid(corners)[1].all())


# ---------------------------------------------------------------------------------------------------------------------
# Finishing


def place(model: pycolmap.Reconstruction, new_from_old: Similarity) -> None:
    """Move a model into another frame."""
    matrix = torch.cat([new_from_old.scale * new_from_old.rotation, new_from_old.translation[:, None]], dim=1)
    model.transform(pycolmap.Sim3d(matrix.numpy()))


def colour(model: pycolmap.Reconstruction, footage: Footage, progress: Callable[[int], None]) -> None:
    """Give every point the mean colour of the pixels at which it was seen."""
    sums: Mapping[int, NDArray[np.float64]] = {i: np.zeros(4) for i in model.point3D_ids()}
    for done, i in enumerate(model.reg_image_ids(), start=1):
        image = model.images[i]
        seen = [point for point in image.points2D if point.has_point3D()]
        if seen:
            with Image.open(footage.root / "images" / image.name) as picture:
                full = picture.size
                picture.draft("RGB", (full[0] // 2, full[1] // 2))
                pixels = np.asarray(picture.convert("RGB"))
            scale = np.array([pixels.shape[1] / full[0], pixels.shape[0] / full[1]])
            xy = (np.array([point.xy for point in seen]) * scale).astype(int)
            rgb = pixels[np.clip(xy[:, 1], 0, pixels.shape[0] - 1), np.clip(xy[:, 0], 0, pixels.shape[1] - 1)]
            for point, value in zip(seen, rgb, strict=True):
                total = sums[point.point3D_id]
                total[:3] += value
                total[3] += 1
        progress(done)
    for number, total in sums.items():
        if total[3]:
            model.points3D[number].color = np.round(total[:3] / total[3]).astype(np.uint8)


def remove(folder: Path) -> bool:
    """Delete a model; whether there was one."""
    if not folder.is_dir():
        return False
    shutil.rmtree(folder)
    return True
