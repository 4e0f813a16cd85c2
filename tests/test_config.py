"""config.py: every configuration survives its file, and no file can mean anything but a configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightfold.config import (
    RunConfig,
    TrainConfig,
    from_plain,
    from_yaml,
    lookup,
    method_names,
    nearest,
    to_plain,
    to_yaml,
)
from lightfold.errors import ConfigError
from lightfold.scene import SceneConfig


class Colour(str, Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    weight: float = 0.5
    colour: Colour = Colour.RED


@dataclass(frozen=True)
class Everything:
    flag: bool
    count: int
    ratio: float
    name: str
    limit: int | None
    size: tuple[int, int]
    ranks: tuple[float, ...]
    mode: Literal["fast", "good"]
    place: Path
    either: int | float
    inner: Inner


def config_of(method: str = "nerf:tiny") -> RunConfig:
    return RunConfig("/captures/fox", method, lookup(method)[1], SceneConfig(), TrainConfig(minutes=5.0))


EVERYTHING = Everything(True, 3, 0.25, "no", None, (4, 3), (1.0, 2.5), "good", Path("a/b"), 2, Inner(1e-7, Colour.BLUE))


# --- round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", method_names())
def test_every_preset_survives_its_file(method: str) -> None:
    config = config_of(method)
    assert from_yaml(to_yaml(config)) == config


def test_every_kind_of_field_survives_plain_values() -> None:
    plain = to_plain(EVERYTHING)
    assert plain["inner"] == {"weight": 1e-7, "colour": "blue"} and plain["size"] == [4, 3] and plain["place"] == "a/b"
    assert from_plain(Everything, plain) == EVERYTHING


@settings(deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=("Cs",)), max_size=40),
    number=st.floats(allow_nan=False),
    whole=st.integers(0, 10**15),
)
def test_texts_and_numbers_survive_exactly(text: str, number: float, whole: int) -> None:
    """Texts that look like numbers, dates or YAML come back as those texts, and floats to the last bit."""
    config = config_of()
    config = replace(config, capture=text, scene=replace(config.scene, split=text, near=number))
    config = replace(config, train=replace(config.train, seed=whole))
    again = from_yaml(to_yaml(config))
    assert again == config
    assert again.scene.near is not None and math.copysign(1, again.scene.near) == math.copysign(1, number)


@pytest.mark.parametrize(
    "text", ["no", "on", "null", "~", "1e3", "0x10", "1:30", "2001-01-01", "- a", "a: b", "", " ", "!!x"]
)
def test_texts_that_yaml_would_rather_read_otherwise(text: str) -> None:
    config = replace(config_of(), capture=text)
    assert from_yaml(to_yaml(config)).capture == text


def test_numbers_as_people_write_them() -> None:
    text = to_yaml(config_of()).replace("lr: 0.003", "lr: 3e-3").replace("minutes: 5.0", "minutes: 5")
    config = from_yaml(text)
    assert config.model.lr == 3e-3 and config.train.minutes == 5.0 and isinstance(config.train.minutes, float)


# --- strictness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps: 500", "stepz: 500", ["model", "'stepz'", "'steps'"]),
        ("steps: 500", "steps: many", ["model", "steps", "whole number", "'many'"]),
        ("steps: 500", "steps: 5.5", ["steps", "whole number", "5.5"]),
        ("steps: 500", "steps: true", ["steps", "whole number", "True"]),
        ("steps: 500", "steps: null", ["steps", "whole number", "None"]),
        ("steps: 500", "steps: [1]", ["steps", "a list of 1"]),
        ("steps: 500", "steps: 500\n  steps: 501", ["'steps' appears twice"]),
        ("softplus_density: true", "softplus_density: 1", ["softplus_density", "true or false"]),
        ("  seed: 0\n", "", ["train", "'seed' is missing"]),
        ("  seed: 0\n", "  seed: -1\n", ["'seed'", "at least 0"]),
        ("method: nerf:tiny", "method: nurf", ["'nurf'", "nerf"]),
        ("method: nerf:tiny", "method: 5", ["'method'"]),
        ("split: auto", "split: yes", []),
        ("capture: /captures/fox", "capture: 7", ["capture", "text", "7"]),
    ],
)
def test_what_does_not_fit_is_named(old: str, new: str, words: list[str]) -> None:
    text = to_yaml(config_of())
    assert old in text
    if not words:  # In YAML 1.1 this would be the value true.
        assert from_yaml(text.replace(old, new)).scene.split == "yes"
        return
    with pytest.raises(ConfigError) as caught:
        from_yaml(text.replace(old, new), "runs/x/config.yaml")
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", [1]),
        ("size", "11"),
        ("ranks", [1.0, "a"]),
        ("mode", "slow"),
        ("inner", 3),
        ("either", "a"),
        ("flag", 0),
    ],
)
def test_each_kind_refuses_what_it_is_not(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        from_plain(Everything, to_plain(EVERYTHING) | {field: value})


def test_enums_name_their_members() -> None:
    plain = to_plain(EVERYTHING)
    plain["inner"] = {"weight": 1.0, "colour": "green"}
    with pytest.raises(ConfigError, match="red, blue"):
        from_plain(Everything, plain)


def test_a_value_without_a_plain_form_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="object"):
        to_plain(replace(EVERYTHING, name=object()))  # type: ignore[arg-type]


def test_a_retuned_or_renamed_preset_does_not_matter_to_a_file() -> None:
    text = to_yaml(config_of()).replace("nerf:tiny", "nerf:gone")
    assert from_yaml(text).model == lookup("nerf:tiny")[1]


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"minutes": 0.0}, {"minutes": math.inf}, {"threads": 0}, {"seed": -1}]
)
def test_budgets_that_mean_nothing(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        replace(TrainConfig(), **change)


# --- hostile files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00",
        "- 1",
        "5",
        "{{{}: 1}: 2}",
        "? [1]: 2",
        "[" * 5000,
        "%YAML 3.0\n---\n",
        "a: &x [1]\nb: *x",
        "<<: {a: 1}",
        "a: " + "9" * 10_000,
        "a: 2001-99-99",
        "method: nerf\nmodel: " + "{a: " * 2000,
        "x" * 2_000_000,
        "method: ../../etc/passwd",
        "method: os:system",
    ],
    ids=lambda text: repr(text[:20]),
)
def test_nonsense_is_one_sentence(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_yaml(text)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch {0}']",
        "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{0}']]",
        "!!python/name:os.system",
        "!!binary aGVsbG8=",
        "!mine 3",
    ],
)
def test_a_stranger_can_execute_nothing(tmp_path: Path, tag: str) -> None:
    mark = tmp_path / "executed"
    text = to_yaml(config_of()).replace("/captures/fox", tag.format(mark))
    with pytest.raises(ConfigError, match="tag"):
        from_yaml(text)
    assert not mark.exists()


def test_a_cut_file_is_whole_or_refused() -> None:
    """At any byte: a number that lost its last digits would read well and mean something else."""
    text = to_yaml(config_of())
    for cut in range(len(text)):
        try:
            assert from_yaml(text[:cut]) == config_of()
        except ConfigError:
            continue
        assert text[cut:].strip() == ""


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "word"), [("nerv", "nerf"), ("nerf:tinny", "nerf:tiny"), ("ngp:fats", "ngp:fast"), ("nerf:", "nerf:tiny")]
)
def test_an_unknown_method_or_preset_gets_the_nearest(name: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        lookup(name)


def test_lookup_gives_class_and_options() -> None:
    cls, config = lookup("nerf:tiny")
    assert isinstance(config, cls.Config) and config == cls.PRESETS["tiny"]


def test_nearest_is_silent_about_what_is_far() -> None:
    assert nearest("steps", ["zebra"]) == []
    assert nearest("stepz", ["zebra", "steps"]) == ["steps"]
