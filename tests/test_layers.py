"""The shape of the code: imports go one way, and nothing that could execute a stranger's data is ever called."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightfold.methods import METHODS

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src" / "lightfold"
FILES = sorted(SOURCE.rglob("*.py"))


def test_imports_go_one_way() -> None:
    pytest.importorskip("importlinter", reason="import-linter is in the extra [dev]")
    path = os.pathsep.join([str(SOURCE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()", "--no-cache"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "0 broken" in done.stdout


def test_every_method_is_held_to_independence() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    contract = text[text.index("methods never import methods") :]
    missing = [place for place in METHODS.values() if f'"lightfold.methods.{place.partition(":")[0]}"' not in contract]
    assert missing == []


def calls(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything that is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything that is imported from elsewhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FORBIDDEN_CALLS = {"torch.load", "eval", "exec", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load"}
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "marshal", "shelve", "cloudpickle", "joblib"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_nothing_executes_a_strangers_data(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set(calls(tree))
    assert not found & FORBIDDEN_CALLS
    assert not {name.partition(".")[0] for name in imports(tree)} & FORBIDDEN_IMPORTS
    keywords = [(k.arg, ast.unparse(k.value)) for n in ast.walk(tree) if isinstance(n, ast.Call) for k in n.keywords]
    assert ("shell", "True") not in keywords and ("allow_pickle", "True") not in keywords
    if "yaml.load" in found:
        assert path.name == "config.py" and "class _Loader(yaml.SafeLoader)" in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_only_ops_knows_the_extension(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.parent.name == "triton":
        return
    # Not even the rest of ops imports Triton: without a GPU it need not be installed.
    assert not [name for name in imports(tree) if name.partition(".")[0] == "triton"]
    if path.parent.name == "ops":
        return
    relative = {alias.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level for alias in n.names}
    assert "_core" not in relative
    assert not [name for name in imports(tree) if name.startswith(("lightfold._core", "lightfold.ops.triton"))]


def test_no_catch_all_modules() -> None:
    names = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    assert not names & {"utils", "util", "common", "helpers", "helper", "misc"}
