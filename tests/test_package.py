"""The package as it is shipped: what it declares is what it uses, and what a user is told to run exists."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import pytest

from lightfold import ops

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src" / "lightfold"
MODULES = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "skimage": "scikit-image",
    "OpenEXR": "openexr",
    "fast_simplification": "fast-simplification",
}
"""Import name -> distribution, where the two differ."""
NO_PATHS = re.compile(r"/" + r"work/(main|dev|shared)\b")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    data: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    return data


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~;\[ ]", line, maxsplit=1)[0].lower() for line in requirements}


def third_party(path: Path) -> set[str]:
    """Top-level modules of other people that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"lightfold", "__future__"}


def test_everything_imported_is_declared_and_the_other_way_round(project: dict[str, Any]) -> None:
    declared = names(project["project"]["dependencies"])
    optional = project["project"]["optional-dependencies"]
    extras = {name for extra, needed in optional.items() if extra != "dev" for name in names(needed)}
    # A library of film studios, which comes with their programs.
    extras |= {"openvdb", "pyopenvdb"}
    used = {MODULES.get(name, name) for path in SOURCE.rglob("*.py") for name in third_party(path)}
    # TensorBoard is used through torch, which does not depend on it.
    assert used - extras <= declared
    assert declared - {"tensorboard"} <= used


def test_constraints_pin_every_direct_dependency_and_name_no_host(project: dict[str, Any]) -> None:
    lines = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(
        re.fullmatch(
            r"[A-Za-z0-9._-]+==[A-Za-z0-9._]+(; python_version [<>=]+ \"[0-9.]+\"|; platform_system == \"Linux\")?",
            line,
        )
        for line in lines
    )
    pinned = names(lines)
    extras = project["project"]["optional-dependencies"]
    wanted = (
        names(project["project"]["dependencies"]) | names(extras["dev"]) | names(project["build-system"]["requires"])
    )
    assert wanted <= pinned
    assert "torch==2.13.0" in lines


def test_version_and_changelog_agree(project: dict[str, Any]) -> None:
    newest = re.search(r"^## (\S+)", (REPOSITORY / "CHANGELOG.md").read_text(), re.M)
    assert newest is not None and newest[1] == project["project"]["version"]
    try:
        assert version("lightfold") == project["project"]["version"]
    except PackageNotFoundError:
        pytest.skip("the package is not installed; the files agree")


def test_licence(project: dict[str, Any]) -> None:
    assert project["project"]["license"] == "Apache-2.0"
    text = (REPOSITORY / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


def test_the_command_is_installed() -> None:
    found = [entry for entry in entry_points(group="console_scripts") if entry.name == "lightfold"]
    if not found:
        pytest.skip("the package is not installed")
    assert found[0].value == "lightfold.cli:main" and callable(found[0].load())


def test_python_dash_m() -> None:
    path = os.pathsep.join([str(Path(ops.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "lightfold", "--version"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        check=True,
    )
    assert done.stdout.startswith("lightfold ")


def test_the_kernels_are_there() -> None:
    native = ops.native_info()
    assert native["isa"] in native["available"] and "portable" in native["available"]  # type: ignore[operator]


@pytest.mark.parametrize("target", ["venv", "install", "demo", "test", "test-slow", "bench", "lint", "clean"])
def test_every_make_target_is_sound(target: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not on this machine")
    done = subprocess.run(["make", "-n", target], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_continuous_integration_runs_what_the_documents_say() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert os.access(script, os.X_OK) or os.name == "nt"
    text = script.read_text()
    assert all(f"make {target}" in text for target in ("lint", "test", "demo")) and "set -euo pipefail" in text
    if shutil.which("bash") is not None:
        subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("name", ["ci.yml", "wheels.yml"])
def test_workflows_are_yaml(name: str) -> None:
    import yaml

    jobs = yaml.safe_load((REPOSITORY / ".github" / "workflows" / name).read_text())["jobs"]
    assert all("steps" in job and "runs-on" in job for job in jobs.values())


def test_nothing_points_at_one_persons_machine() -> None:
    suffixes = {".py", ".md", ".toml", ".txt", ".yml", ".cpp", ".h", ".sh", ""}
    skipped = {".git", ".venv", "build", "runs", ".hypothesis", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
    for path in REPOSITORY.rglob("*"):
        inside = path.relative_to(REPOSITORY).parts
        if path.suffix in suffixes and path.is_file() and not skipped & set(inside) and path.stat().st_size < 2**20:
            assert not NO_PATHS.search(path.read_text(encoding="utf-8", errors="replace")), path
