"""Which tries are made, and which model wins: the mappers are stood in for, the decisions are real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightfold.errors import CaptureError
from lightfold.footage.shots import Footage, Shot
from lightfold.poses import compare, mapping, pairs, tries
from lightfold.poses.agreement import Agreement
from lightfold.poses.config import PoseConfig
from lightfold.poses.job import Job, Record, Work

NAMES = tuple(f"{i}.jpg" for i in range(40))
ALL = pairs.exhaustive(40)
AUTO = PoseConfig()


def result(work: Work, count: int, share: float = 1.0, seam: float = 1.0, lens: str = "", torn=()) -> tries.Candidate:
    asked = Agreement(share=share, pairs=100, seam=seam, doubtful=(), outliers=())
    return tries.Candidate(work, "incremental", Path("model"), NAMES[:count], asked, lens, torn)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a search in which each try, by its name, has the stated result: what it finds, and the tries made."""

    def search(results, config=AUTO, partners=5, chosen=ALL, ordered=False, kind="photos"):
        made = []
        shots = tuple(Shot(name, name, 100, 100) for name in NAMES)
        job = Job(
            Footage(tmp_path, kind, ordered, shots),
            config,
            tmp_path,
            Record(tmp_path / "stages.json"),
            frozenset(),
            lambda _: None,
        )
        work = Work("plain", tmp_path / "database.db", config, "")

        def attempt(job, work, mapper, name, run):
            made.append(name)
            given = results.get(name)
            return None if given is None else result(work, **given)

        links = (
            {(NAMES[i], NAMES[i + 1]): np.zeros((partners, 2), dtype=np.int64) for i in range(39)} if partners else {}
        )
        keypoints = {name: np.zeros((500, 2)) for name in NAMES}
        monkeypatch.setattr(tries, "_attempt", attempt)
        monkeypatch.setattr(mapping, "copy_near", lambda *_: None)
        monkeypatch.setattr(mapping, "read_matches", lambda _: mapping.Matches(keypoints, links, 0))
        for name in ("extract", "compare"):
            monkeypatch.setattr(compare, name, lambda *_: None)
        monkeypatch.setattr(compare, "feature_counts", lambda _: dict.fromkeys(NAMES, 500))
        try:
            return tries.search(job, work, chosen), made
        except CaptureError as error:
            return str(error), made

    return search


def test_a_complete_model_ends_the_search(run):
    (best, told), made = run({"plain incremental": {"count": 40}})
    assert made == ["plain incremental"] and len(best.names) == 40
    assert told == ["Incremental mapping: 40 of 40 pictures in one model, 100% of 100 pairs agree with it."]


def test_a_few_left_over_are_sought_cheaply_and_the_best_is_kept(run):
    (best, told), made = run(
        {"plain incremental": {"count": 38}, "plain continued": {"count": 39}, "plain global": {"count": 30}}
    )
    assert made == ["plain incremental", "plain continued", "plain global"]
    assert len(best.names) == 39 and len(told) == 3


@pytest.mark.parametrize("kind", ["photos", "panoramas"])
def test_many_left_over_are_worth_richer_features(run, kind):
    (best, _), made = run({"plain incremental": {"count": 20}, "rich incremental": {"count": 40}}, kind=kind)
    assert made[-1] == "rich incremental" and best.work.name == "rich" and best.work.config.first_octave == -1


def test_weak_pairs_are_tried_all_together_at_last(run):
    (best, _), made = run({"rich global": {"count": 8}}, kind="panoramas")
    assert made[-1] == "rich global" and len(best.names) == 8


def test_a_folded_model_loses_to_a_smaller_one_that_the_matches_believe(run):
    (best, told), made = run(
        {"plain incremental": {"count": 40, "share": 0.8, "seam": 0.05}, "plain global": {"count": 35}}
    )
    assert made[:2] == ["plain incremental", "plain global"]
    assert len(best.names) == 35 and best.believable
    assert "5% of the matches at its weakest seam" in told[0]


def test_a_folded_walk_is_tried_with_neighbours_in_time_only(run):
    folded = {"count": 40, "torn": (("3.jpg", "4.jpg"),)}
    (best, told), made = run({"plain incremental": folded, "near incremental": {"count": 40}}, ordered=True)
    assert made == ["plain incremental", "near incremental"] and best.work.name == "near"
    assert "but it jumps between 3.jpg and 4.jpg" in told[0]


def test_only_neighbours_that_match_and_do_not_fit_tear_a_model(tmp_path):
    doubtful = (("1.jpg", "30.jpg", 0.0), ("5.jpg", "6.jpg", 0.1), ("8.jpg", "9.jpg", 0.4))
    asked = Agreement(share=0.9, pairs=100, seam=1.0, doubtful=doubtful, outliers=())
    shots = tuple(Shot(name, name, 100, 100) for name in NAMES)
    for ordered, torn in ((True, (("5.jpg", "6.jpg"),)), (False, ())):
        footage = Footage(tmp_path, "video", ordered, shots)
        job = Job(footage, AUTO, tmp_path, Record(tmp_path / "s.json"), frozenset(), lambda _: None)
        assert tries._torn(job, asked) == torn


def test_an_impossible_lens_is_tried_again_with_a_simpler_one(run):
    (best, told), made = run(
        {"plain incremental": {"count": 40, "lens": "folds over"}, "plain simpler lens": {"count": 40}}
    )
    assert made == ["plain incremental", "plain simpler lens"] and not best.lens
    assert "folds over" in told[0]


def test_more_pairs_are_compared_when_not_all_were(run):
    _, made = run({"plain incremental": {"count": 38}}, chosen=ALL[:50])
    assert "plain incremental more pairs" in made
    _, made = run({"plain incremental": {"count": 38}}, PoseConfig(pairs="sequential"), chosen=ALL[:50])
    assert "plain incremental more pairs" not in made


def test_without_retries_there_is_one_try(run):
    assert run({"plain incremental": {"count": 5}}, PoseConfig(retries=False))[1] == ["plain incremental"]


def test_pictures_without_any_match_cost_no_mapping(run):
    sentence, made = run({}, partners=0)
    assert "No two of the 40 pictures" in sentence
    assert "plain relaxed" not in made and "plain global" not in made


def test_when_nothing_works_the_sentence_says_what_to_do(run):
    sentence, made = run({})
    assert sentence.startswith("No model could be built from the 40 pictures") and "Take more pictures" in sentence
    assert {"plain incremental", "plain relaxed", "plain global", "rich incremental"} <= set(made)
