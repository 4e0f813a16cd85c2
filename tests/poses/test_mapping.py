"""Joining, judging and checking of models, on COLMAP's synthetic scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch

from lightfold.geometry import Similarity, so3_exp
from lightfold.poses import mapping
from lightfold.poses.align import pose_errors
from lightfold.poses.config import PoseConfig


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory):
    """A task with matches of 14 pictures of 300 points, and the true model."""
    folder = tmp_path_factory.mktemp("synthetic")
    pycolmap.set_random_seed(0)
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 1, 1, 14
    options.num_points3D = 300
    with pycolmap.Database.open(str(folder / "database.db")) as database:
        truth = pycolmap.synthesize_dataset(options, database)
    task = mapping.Task(folder / "database.db", folder, PoseConfig(threads=2), frozenset(), frozenset(), lambda _: None)
    return task, truth


def part(truth: pycolmap.Reconstruction, keep: range, moved: Similarity, folder: Path) -> Path:
    """The model of some of the pictures, in a frame of its own."""
    model = pycolmap.Reconstruction(truth)
    order = sorted(mapping.names_in(model))
    mapping.drop(model, {name for i, name in enumerate(order) if i not in keep})
    mapping.place(model, moved)
    return mapping.write(model, folder)


def poses(model: pycolmap.Reconstruction) -> torch.Tensor:
    images = sorted((model.images[i] for i in model.reg_image_ids()), key=lambda image: image.name)
    return torch.stack([torch.from_numpy(np.array(image.cam_from_world().matrix())) for image in images])


def test_models_that_share_pictures_are_joined(scene, tmp_path):
    task, truth = scene
    elsewhere = Similarity(3.0, so3_exp(torch.tensor([0.3, -0.5, 1.0])), torch.tensor([5.0, 6.0, 7.0]))
    first = part(truth, range(9), Similarity.identity(), tmp_path / "out" / "0")
    second = part(truth, range(5, 14), elsewhere, tmp_path / "out" / "1")
    joined = mapping.join(task, [first, second], tmp_path / "out")
    assert len(joined) == 1
    model = mapping.read(joined[0])
    assert len(mapping.names_in(model)) == 14
    errors = pose_errors(poses(model), poses(truth))
    assert float(errors.rotation.max()) < 0.1 and float(errors.position.max()) < 0.01 * errors.extent
    assert mapping.models_in(tmp_path / "out")[0] == joined[0]


def test_models_that_share_too_little_stay_apart(scene, tmp_path):
    task, truth = scene
    first = part(truth, range(8), Similarity.identity(), tmp_path / "0")
    second = part(truth, range(7, 14), Similarity.identity(), tmp_path / "1")
    assert mapping.join(task, [first, second], tmp_path) == [first, second]
    assert mapping.join(task, [], tmp_path) == []


def test_models_that_contradict_each_other_are_not_joined(scene, tmp_path):
    task, truth = scene
    first = part(truth, range(9), Similarity.identity(), tmp_path / "0")
    second = part(truth, range(5, 14), Similarity.identity(), tmp_path / "1")
    model = mapping.read(second)
    rng = np.random.default_rng(0)
    for i in model.reg_image_ids():
        matrix = np.array(model.images[i].cam_from_world().matrix())
        matrix[:, 3] += rng.normal(0, 3, 3)
        model.frames[model.images[i].frame_id].set_cam_from_world(model.images[i].camera_id, pycolmap.Rigid3d(matrix))
    mapping.write(model, second)
    assert len(mapping.join(task, [first, second], tmp_path)) == 2


def test_the_true_model_is_believed_and_a_displaced_picture_is_named(scene):
    task, truth = scene
    matches = mapping.read_matches(task.database)
    assert mapping.judge(truth, matches).trusted
    model = pycolmap.Reconstruction(truth)
    image = model.images[min(model.reg_image_ids())]
    turn = so3_exp(torch.tensor([0.0, 0.4, 0.0], dtype=torch.float64)).numpy()
    wrong = turn @ np.array(image.cam_from_world().matrix())
    model.frames[image.frame_id].set_cam_from_world(image.camera_id, pycolmap.Rigid3d(wrong))
    assert mapping.judge(model, matches).outliers == (image.name,)


def test_lenses_that_no_camera_has_are_named(scene):
    _, truth = scene
    assert mapping.implausible(truth) == {}
    camera_id = next(iter(truth.cameras))
    for parameters, words in (
        ([100.0, 512.0, 384.0, 0.0], "focal length"),
        ([1280.0, 700.0, 384.0, 0.0], "axis"),
        ([1280.0, 512.0, 384.0, -1.5], "folds"),
    ):
        model = pycolmap.Reconstruction(truth)
        model.cameras[camera_id].params = parameters
        assert words in mapping.implausible(model)[camera_id]
        assert mapping.implausible(model, {camera_id}) == {}


def test_a_freer_lens_begins_as_the_same_lens(scene):
    _, truth = scene
    model = pycolmap.Reconstruction(truth)
    camera_id = next(iter(model.cameras))
    before = np.array(model.cameras[camera_id].cam_from_img(np.array([[100.0, 200.0], [900.0, 30.0]])))
    mapping.free_lenses(model, {camera_id})
    assert model.cameras[camera_id].model_name == "OPENCV"
    after = np.array(model.cameras[camera_id].cam_from_img(np.array([[100.0, 200.0], [900.0, 30.0]])))
    assert np.allclose(before, after, atol=1e-6)


def test_intrinsics_are_known_to_be_known_or_not(scene, tmp_path):
    """Fourteen cameras all round determine their lens; two do not."""
    task, truth = scene
    model = pycolmap.Reconstruction(truth)
    camera_id = next(iter(model.cameras))
    noise = pycolmap.SyntheticNoiseOptions()
    noise.point2D_stddev = 0.5
    pycolmap.synthesize_noise(noise, model)
    assert mapping.adjust(model, task, {camera_id}) == {camera_id}
    assert model.cameras[camera_id].params[:3] == pytest.approx([1280.0, 512.0, 384.0], abs=3)
    few = pycolmap.Reconstruction(truth)
    pycolmap.synthesize_noise(noise, few)
    mapping.drop(few, sorted(mapping.names_in(few))[2:])
    few = mapping.read(mapping.write(few, tmp_path / "few"))
    assert mapping.adjust(few, task, {camera_id}) == set()


def test_every_option_that_is_set_exists(scene):
    task, _ = scene
    mapping._incremental_options(task, relaxed=True).check()
    for relaxed in (False, True):
        assert mapping._incremental_options(task, relaxed).num_threads == 2


def test_the_scratch_copy_goes_and_the_database_stays_as_it_was(scene, tmp_path):
    task, _ = scene
    with mapping.scratch_copy(task.database, tmp_path / "try") as copy:
        mapping.simplify_lenses(copy, set())
        with pycolmap.Database.open(str(copy)) as opened:
            assert {camera.model_name for camera in opened.read_all_cameras()} == {"SIMPLE_PINHOLE"}
    assert list(tmp_path.iterdir()) == []
    with pycolmap.Database.open(str(task.database)) as opened:
        assert {camera.model_name for camera in opened.read_all_cameras()} == {"SIMPLE_RADIAL"}


def test_a_copy_of_near_matches_holds_no_others(scene, tmp_path):
    task, _ = scene
    mapping.copy_near(task.database, tmp_path / "near.db", 2)
    found = mapping.read_matches(tmp_path / "near.db").pairs
    with pycolmap.Database.open(str(task.database)) as opened:
        number = {image.name: image.image_id for image in opened.read_all_images()}
    assert {abs(number[a] - number[b]) for a, b in found} == {1, 2}
    assert set(found) < set(mapping.read_matches(task.database).pairs)


def test_names_with_spaces_are_matched_and_come_back(tmp_path):
    database = tmp_path / "d.db"
    rng = np.random.default_rng(0)
    with pycolmap.Database.open(str(database)) as opened:
        camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_RADIAL", 100.0, 100, 100)
        opened.write_camera(camera, use_camera_id=True)
        for i, name in ((1, "a b/ü c.jpg"), (2, "plain.jpg")):
            opened.write_image(pycolmap.Image(name=name, camera_id=1, image_id=i), use_image_id=True)
            opened.write_keypoints(i, rng.uniform(0, 100, (50, 4)).astype(np.float32))
            data = np.random.default_rng(1).integers(0, 255, (50, 128)).astype(np.uint8)
            kind = pycolmap.FeatureExtractorType.SIFT
            opened.write_descriptors(i, pycolmap.FeatureDescriptors(kind, data))
    mapping.match(database, np.array([[1, 2]]), tmp_path / "block.txt", PoseConfig(threads=1))
    with pycolmap.Database.open(str(database)) as opened:
        assert opened.read_all_images()[0].name == "a b/ü c.jpg"
        assert len(opened.read_matches(1, 2)) > 40
