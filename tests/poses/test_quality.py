"""The verdict: right models are good, wrong ones bad although their points fit, and missing pictures have reasons."""

from __future__ import annotations

import math
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from posed_ring import ring, write_capture

from lightfold.cameras import Camera, Lens
from lightfold.errors import CaptureError
from lightfold.footage.shots import load_footage
from lightfold.geometry import Similarity, so3_exp
from lightfold.poses.quality import Quality, assess, rows
from lightfold.poses.seams import spanning_seams
from lightfold.poses.solve import SubModel


def turned(cameras: list[Camera], which: range, degrees: float, axis: int = 1) -> list[Camera]:
    """These cameras turned as one, about the place where the first of them stands: a wrong joint."""
    pivot = cameras[which[0]].center
    omega = torch.zeros(3, dtype=torch.float64)
    omega[axis] = math.radians(degrees)
    rotation = so3_exp(omega)
    fold = Similarity(1.0, rotation, pivot - rotation @ pivot)
    return [camera.transformed(fold) if i in which else camera for i, camera in enumerate(cameras)]


def near(reach: int):
    """Pairs of neighbours only, as in a video without loops."""
    return lambda i, j: j - i <= reach


def remarks(quality: Quality) -> dict[str, tuple[str, ...]]:
    return {picture.name: picture.remarks for picture in quality.pictures if picture.remarks}


# ------------------------------------------------------------------------------------------------------- the verdict


@pytest.mark.parametrize("lens", [Lens.SIMPLE_RADIAL, Lens.EQUIRECTANGULAR])
def test_a_right_model_is_good_and_its_numbers_are_those_of_the_files(tmp_path: Path, lens: Lens) -> None:
    quality = assess(*write_capture(tmp_path, ring(24, lens=lens)))
    assert quality.verdict == "good" and quality.reasons == () and quality.advice == ()
    assert quality.registered == 24 and quality.agreement == 1.0
    assert (quality.mean_error, quality.median_error) == (pytest.approx(0.3), pytest.approx(0.3))
    assert all(seam.share > 0.999 and seam.agree > 100 for seam in quality.seams) and len(quality.seams) == 23
    assert quality.breaks == () and quality.lenses[0].impossible == ""
    evidence = quality.evidence
    assert evidence.observations.sum() == evidence.track_length.sum() > 1000
    centres = torch.from_numpy(evidence.centres)
    assert torch.allclose(centres, torch.stack([camera.center for camera in ring(24)]))
    # A point on the outside of the cloud is seen from about half of the ring, a panorama sees it from everywhere.
    assert 60 < quality.angle < 180


@pytest.mark.parametrize("degrees", [15, 90])
@pytest.mark.parametrize("reach", [3, 100])
@pytest.mark.parametrize("lens", [Lens.SIMPLE_RADIAL, Lens.EQUIRECTANGULAR])
def test_half_of_the_cameras_turned_is_bad(tmp_path: Path, degrees: float, reach: int, lens: Lens) -> None:
    truth = ring(24, turn=180, lens=lens)
    wrong = turned(truth, range(12, 24), degrees)
    quality = assess(*write_capture(tmp_path, truth, model=wrong, linked=near(reach)))
    assert quality.verdict == "bad"
    assert any("wrongly joined" in reason for reason in quality.reasons)
    # The seam that says so runs near the joint; some matches across happen to fit, as wrong ones do.
    assert quality.seams[0].share < 0.5 and len(quality.seams[0].side) >= 5


@pytest.mark.parametrize("lens", [Lens.SIMPLE_RADIAL, Lens.EQUIRECTANGULAR])
def test_a_slight_turn_is_never_good_and_the_joint_is_found(tmp_path: Path, lens: Lens) -> None:
    truth = ring(24, turn=180, lens=lens)
    quality = assess(*write_capture(tmp_path, truth, model=turned(truth, range(12, 24), 3)))
    assert quality.verdict != "good"
    assert quality.seams[0].side == tuple(f"{i:04d}.png" for i in range(12, 24)) and quality.seams[0].share < 0.65


def test_pairs_alone_would_have_missed_the_joint(tmp_path: Path) -> None:
    """Why seams are asked: of all pairs in a long walk, those across one wrong joint are few."""
    truth = ring(40, turn=180)
    wrong = turned(truth, range(20, 40), 30)
    quality = assess(*write_capture(tmp_path, truth, model=wrong, linked=near(4)))
    assert quality.agreement > 0.9 and quality.verdict == "bad"


def test_a_bent_model_is_bad(tmp_path: Path) -> None:
    truth = ring(24, turn=180)
    wrong = truth
    for i in range(1, 24):
        wrong = turned(wrong, range(i, 24), 1.5, axis=0)
    assert assess(*write_capture(tmp_path, truth, model=wrong, linked=near(8))).verdict == "bad"


def test_a_model_in_another_frame_is_the_same_model(tmp_path: Path) -> None:
    moved = Similarity(7.0, so3_exp(torch.tensor([0.3, 0.2, 0.1]).double()), torch.tensor([5.0, -3.0, 90.0]))
    footage, solution = write_capture(tmp_path, ring(12), model=[camera.transformed(moved) for camera in ring(12)])
    quality = assess(footage, solution)
    assert quality.agreement == 1.0 and quality.seams[0].share > 0.999


def test_one_picture_in_the_wrong_place_is_named_and_hides_nothing(tmp_path: Path) -> None:
    truth = ring(24)
    quality = assess(*write_capture(tmp_path, truth, model=turned(truth, range(7, 8), 40, axis=2)))
    assert remarks(quality) == {"0007.png": ("probably in the wrong place",)}
    assert quality.verdict == "usable" and all(seam.share > 0.9 for seam in quality.seams)


def test_two_places_taken_for_one_are_found_by_what_does_not_match(tmp_path: Path) -> None:
    """Both halves of the ring stand in the same places, and no picture of one matches any of the other."""
    half = ring(12, turn=120)
    quality = assess(*write_capture(tmp_path, [*half, *half], linked=lambda i, j: (i < 12) == (j < 12) or i % 12 == 0))
    assert quality.silent > 0.5 and quality.verdict == "bad"
    assert any("look alike" in reason for reason in quality.reasons)


def test_a_fold_that_false_matches_support_is_betrayed_by_neighbours(tmp_path: Path) -> None:
    """A thing that is the same on both sides: the second half of the walk stands where the first does."""
    truth = ring(24)
    folded = [truth[i % 12] for i in range(24)]
    footage, solution = write_capture(tmp_path, folded)
    right = assess(replace(footage, ordered=False), solution)
    assert right.verdict == "good" and right.jumps == ()
    # The two neighbours where the walk was folded match, by the floor say, and nothing of that fits.
    rows_of_both = np.stack([np.arange(40), np.arange(40)], axis=1).astype("<u4")
    with sqlite3.connect(solution.database) as database:
        change = "UPDATE two_view_geometries SET rows = 40, data = ? WHERE pair_id = 12 * 2147483647 + 13"
        database.execute(change, (rows_of_both.tobytes(),))
    folded_report = assess(footage, solution)
    assert [(jump.before, jump.after) for jump in folded_report.jumps] == [("0011.png", "0012.png")]
    assert folded_report.verdict == "bad" and any("jumps between neighbours" in r for r in folded_report.reasons)


def test_two_places_with_the_same_thing_in_them_are_found_by_what_surrounds_it(tmp_path: Path) -> None:
    truth = ring(48)
    right = assess(*write_capture(tmp_path / "right", truth, points=1200, linked=near(4)))

    # Even cameras stand in one hall and odd ones in another. The upper part is what both have; below, each has its own.
    def shows(camera: int, point: int, z: float) -> bool:
        return z > 0.2 or camera % 2 == point % 2

    mixed = assess(*write_capture(tmp_path / "mixed", truth, points=1200, linked=near(4), shows=shows))
    assert right.verdict == "good" and right.beside >= 40 and not right.lookalikes
    # All matches agree with the wrong model, and nothing is torn.
    assert mixed.agreement == 1.0 and not mixed.jumps
    assert mixed.verdict == "bad" and "taken for one" in mixed.reasons[0]
    parity = {int(first[:4]) % 2 == int(second[:4]) % 2 for first, second in mixed.lookalikes}
    assert parity == {False} and len(mixed.lookalikes) >= 30


def test_a_few_pictures_of_another_place_are_a_doubt_at_least(tmp_path: Path) -> None:
    strangers = {10, 11, 30}

    def shows(camera: int, point: int, z: float) -> bool:
        return z > 0.2 or (camera in strangers) == (point % 2 == 0)

    quality = assess(*write_capture(tmp_path, ring(48), points=1200, linked=near(4), shows=shows))
    assert quality.verdict != "good"
    assert all({int(a[:4]), int(b[:4])} & strangers for a, b in quality.lookalikes)


def test_a_chain_is_no_proof(tmp_path: Path) -> None:
    quality = assess(*write_capture(tmp_path, ring(24, turn=180), linked=near(1)))
    assert quality.verdict == "usable" and any("chain" in reason for reason in quality.reasons)


def test_a_camera_that_turned_on_the_spot_gives_no_depth(tmp_path: Path) -> None:
    truth = [
        replace(camera, cam_from_world=torch.cat([c[:, :3], c[:, 3:] + 0.001 * i], dim=1))
        for i, camera in enumerate([ring(24)[0]] * 12)
        if (c := camera.cam_from_world) is not None
    ]
    quality = assess(*write_capture(tmp_path, truth))
    assert quality.verdict == "bad" and any("Depth is uncertain" in reason for reason in quality.reasons)


@pytest.mark.parametrize(
    ("parameters", "verdict", "word"),
    [
        ((350.0, 200.0, 150.0, 0.01), "good", ""),
        ((450.0, 200.0, 150.0, 0.01), "usable", "+29 %"),
        ((350.0, 260.0, 150.0, 0.01), "usable", "off its middle"),
        ((350.0, 200.0, 150.0, -2.0), "bad", "folds over"),
        ((9000.0, 200.0, 150.0, 0.0), "bad", "22.5 picture lengths"),
    ],
)
def test_lenses_are_judged(tmp_path: Path, parameters: tuple[float, ...], verdict: str, word: str) -> None:
    footage, solution = write_capture(tmp_path, ring(12))
    lens = replace(solution.intrinsics[0], parameters=parameters)
    quality = assess(footage, replace(solution, intrinsics=(lens,)))
    assert quality.verdict == verdict and word in " ".join(quality.reasons)


def test_seams_are_those_of_the_heaviest_tree() -> None:
    """Two triangles held by one light edge and a lighter one that the tree does without."""
    pair = np.array([[0, 1], [1, 2], [0, 2], [3, 4], [4, 5], [3, 5], [2, 3], [1, 4], [5, 6]])
    weight = np.array([9.0, 8, 7, 9, 8, 7, 2, 1, 0])
    sides = {frozenset(np.flatnonzero(side).tolist()) for side in spanning_seams(6, pair[:8], weight[:8])}
    assert {frozenset({0, 1, 2}), frozenset({3, 4, 5})} & sides
    assert {frozenset(side) for side in ({0}, {0, 1}, {5}, {4, 5})} < sides and len(sides) == 5
    # What nothing holds, although a worthless pair leads there, is a side by itself.
    assert {6} in [set(np.flatnonzero(side).tolist()) for side in spanning_seams(7, pair, weight)]
    assert len(spanning_seams(0, pair[:0], weight[:0])) == len(spanning_seams(1, pair[:0], weight[:0])) == 0


# --------------------------------------------------------------------------------------------------- missing pictures


def without(cameras: list[Camera], *lost: int) -> list[Camera | None]:
    return [None if i in lost else camera for i, camera in enumerate(cameras)]


def test_every_missing_picture_has_its_reason(tmp_path: Path) -> None:
    truth = ring(30)
    lost = {3, 9, 15, 16, 22}

    def linked(i: int, j: int) -> bool:
        if {i, j} & {15, 16}:
            return {i, j} == {15, 16}
        return 9 not in (i, j)

    changes = {22: {"sharpness": 0.1}}
    footage, solution = write_capture(tmp_path, truth, model=without(truth, *lost), linked=linked, changes=changes)
    with sqlite3.connect(solution.database) as database:
        database.execute("UPDATE keypoints SET rows = 4, data = substr(data, 1, 96) WHERE image_id = 4")
        database.execute("DELETE FROM two_view_geometries WHERE pair_id / 2147483647 = 4 OR pair_id % 2147483647 = 4")
        database.execute("UPDATE two_view_geometries SET rows = 16, data = substr(data, 1, 128) "
                         "WHERE rows > 16 AND (pair_id / 2147483647 = 23 OR pair_id % 2147483647 = 23)")  # fmt: skip
    quality = assess(footage, solution)
    why = {picture.name: picture.missing for picture in quality.pictures if picture.missing}
    assert list(why) == ["0003.png", "0009.png", "0015.png", "0016.png", "0022.png"] == list(solution.missing)
    assert "too little detail (4 features" in why["0003.png"]
    assert why["0009.png"] == "no other picture matches it"
    assert why["0015.png"] == "it matches only pictures that are missing too (most: 0016.png)"
    assert why["0022.png"].startswith("it is blurred, and its matches are too few (at most 16, with ")
    assert quality.verdict == "usable" and quality.reasons[0] == "25 of 30 pictures have a pose."


def test_two_groups_are_told_apart_with_the_place_between_them(tmp_path: Path) -> None:
    truth = ring(30, turn=200)
    footage, solution = write_capture(
        tmp_path, truth, model=without(truth, *range(19, 30)), linked=lambda i, j: (i < 19) == (j < 19)
    )
    other = SubModel(solution.model, tuple(f"{i:04d}.png" for i in range(19, 30)))
    quality = assess(footage, replace(solution, models=(*solution.models, other)))
    assert [(entry.before, entry.after, entry.matches) for entry in quality.breaks] == [("0018.png", "0019.png", 0)]
    assert any("(11 pictures)" in r and "no matches between 0018.png and 0019.png" in r for r in quality.reasons)
    assert "Add pictures between 0018.png and 0019.png." in quality.advice
    assert {picture.group for picture in quality.pictures} == {0, 1}
    assert all("another group (number 1)" in p.missing for p in quality.pictures if p.group == 1)
    # In unordered footage there is no between.
    quality = assess(replace(footage, ordered=False), replace(solution, models=(*solution.models, other)))
    assert quality.breaks == () and any("share no matches (0019.png" in reason for reason in quality.reasons)


def test_fewer_than_half_is_bad(tmp_path: Path) -> None:
    truth = ring(24)
    quality = assess(*write_capture(tmp_path, truth, model=without(truth, *range(13)), linked=near(6)))
    assert quality.verdict == "bad" and quality.reasons[0] == "11 of 24 pictures have a pose."


def test_blur_exposure_and_copies_are_remarked(tmp_path: Path) -> None:
    truth = ring(24)
    truth[11] = truth[10]
    changes = {3: {"sharpness": 0.2}, 5: {"brightness": 0.2}, 6: {"brightness": 0.9}}
    quality = assess(*write_capture(tmp_path, truth, changes=changes))
    assert remarks(quality) == {
        "0003.png": ("blurred",),
        "0005.png": ("darker than the others",),
        "0006.png": ("brighter than the others",),
        "0011.png": ("shows the same as 0010.png",),
    }
    assert quality.verdict == "good"


def test_a_gap_in_the_ring_is_seen(tmp_path: Path) -> None:
    quality = assess(*write_capture(tmp_path, ring(30, turn=280), ordered=False))
    assert quality.coverage is not None and quality.coverage.gap == pytest.approx(80 + 280 / 30, abs=0.1)
    assert {quality.coverage.first, quality.coverage.second} == {"0000.png", "0029.png"}
    assert torch.tensor(quality.coverage.subject).norm() < 1e-6
    assert any("sector of 89 degrees" in reason for reason in quality.reasons) and quality.verdict == "good"


# ------------------------------------------------------------------------------------------------- lines, odd input


def test_lines_for_the_terminal_are_short_and_harmless(tmp_path: Path) -> None:
    names = [f"a\x1b[31m {i}.png" for i in range(24)]
    truth = ring(24)
    lost = without(truth, *range(12, 24))
    lines = rows(assess(*write_capture(tmp_path, truth, names=names, model=lost)))
    assert lines[0][0] == "verdict" and lines[1] == ("registered", "12 of 24")
    assert len(lines) < 40 and all(value.isprintable() for _, value in lines)


def test_files_that_are_gone_or_damaged_are_a_sentence(tmp_path: Path) -> None:
    footage, solution = write_capture(tmp_path, ring(6))
    with sqlite3.connect(solution.database) as database:
        database.execute("UPDATE keypoints SET data = x'00' WHERE image_id = 2")
    with pytest.raises(CaptureError, match="damaged"):
        assess(footage, solution)
    solution.database.write_bytes(b"not a database" * 100)
    with pytest.raises(CaptureError, match="damaged"):
        assess(footage, solution)
    solution.database.unlink()
    with pytest.raises(CaptureError, match="gone"):
        assess(footage, solution)
    (solution.model / "images.bin").write_bytes(b"\1")
    with pytest.raises(CaptureError):
        assess(footage, solution)


def test_the_footage_is_only_read(tmp_path: Path) -> None:
    _, solution = write_capture(tmp_path, ring(6))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assess(load_footage(tmp_path), solution)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
