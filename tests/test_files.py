"""A file is whole under its name, or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightfold.errors import RunError
from lightfold.files import whole_file


def test_a_block_that_ends_well_leaves_the_file(tmp_path: Path) -> None:
    with whole_file(tmp_path / "new" / "a.txt") as partial:
        partial.write_text("all of it")
        assert not (tmp_path / "new" / "a.txt").exists()
    assert (tmp_path / "new" / "a.txt").read_text() == "all of it"
    assert len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path, failure: type[BaseException]) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(failure), whole_file(tmp_path / "a.txt") as partial:
        partial.write_text("ne")
        raise failure
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failing_disk_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="could not be written"), whole_file(tmp_path / "file" / "a.txt") as partial:
        partial.write_text("x")
    with pytest.raises(RunError, match="No space left"), whole_file(tmp_path / "b.txt"):
        raise OSError(28, "No space left on device")
