"""What the documentation says exists: files, verbs, options, methods, targets; and its Python runs."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest
import torch

from lightfold import cli
from lightfold.config import method_names
from lightfold.formats import FORMATS
from lightfold.methods import METHODS
from lightfold.ops import backend

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/sample/README.md")]
PAGES += sorted((REPOSITORY / "docs").glob("*.md"))
GENERATED = {REPOSITORY / "docs" / "results.md", REPOSITORY / "docs" / "images" / "sample.jpg"}
"""Written by the benchmark and by the demo; a page may link to them before they exist."""
TITLES = [str(page.relative_to(REPOSITORY)) for page in PAGES]
COMMAND = re.compile(r"(?:^ {4}|`)lightfold ([^`\n#]*)", re.M)


def blocks(page: Path) -> list[tuple[int, str]]:
    """Every ```python block with the number of the line that it starts on."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S)
    return [(text[: match.start(1)].count("\n"), match[1]) for match in found]


def commands(page: Path) -> list[list[str]]:
    """The words after `lightfold` of every command that stands in a code block or between backticks."""
    return [match[1].split() for match in COMMAND.finditer(page.read_text(encoding="utf-8"))]


def anchors(page: Path) -> set[str]:
    """What `#...` may follow the page's name: its headings as the forges spell them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_every_page_is_read() -> None:
    assert len(PAGES) > 10 and all(page.is_file() for page in PAGES)
    assert sum(len(blocks(page)) for page in PAGES) > 15
    assert sum(len(commands(page)) for page in PAGES) > 25


@pytest.mark.parametrize("page", PAGES, ids=TITLES)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_relative_to(REPOSITORY), f"{page.name} links out of the repository: {target}"
        assert file.exists() or file in GENERATED, f"{page.name} links to {target}, which does not exist"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}, which has no such heading"


def test_the_overview_lists_every_page() -> None:
    overview = (REPOSITORY / "docs" / "README.md").read_text(encoding="utf-8")
    missing = [page.name for page in PAGES if page.parent.name == "docs" and f"({page.name})" not in overview]
    assert set(missing) <= {"README.md"}


@pytest.mark.parametrize("page", PAGES, ids=TITLES)
def test_commands_exist_with_their_options(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    helps: dict[tuple[str, str], str] = {}
    for words in commands(page):
        if not words or words[0].startswith("-") or words[0].isupper():
            continue
        verb, method = words[0], "ngp"
        assert verb in cli.VERBS, f"{page.name} names `lightfold {verb}`, which is no verb"
        options = {word.strip(".,)").partition("=")[0] for word in words if word.startswith("--")}
        named = [word for word in words if word.partition(":")[0] in METHODS]
        if named:
            method = named[0]
        if (verb, method) not in helps:
            chosen = {"run": ["--method", method], "train": [method]}.get(verb, [])
            assert cli.main([verb, *chosen, "--help"]) == cli.DONE
            helps[verb, method] = capsys.readouterr().out
        unknown = [o for o in options if not re.search(rf"{re.escape(o)}(?![\w-])", helps[verb, method])]
        assert not unknown, f"{page.name}: `lightfold {' '.join(words)}` has options that do not exist: {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=TITLES)
def test_methods_targets_and_variables_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    known = set(method_names())
    for method in re.findall(rf"\b(?:{'|'.join(METHODS)}):[a-z][\w-]*", text):
        assert method in known, f"{page.name} names the method {method}, which does not exist"
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^ {4}|`)make ([a-z][a-z-]*)", text, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), f"{page.name} names `make {target}`, which is no target"
    sources = [
        *(REPOSITORY / "src").rglob("*.py"),
        *(REPOSITORY / "csrc").iterdir(),
        *(REPOSITORY / "tests").glob("*.py"),
    ]
    code = "".join(source.read_text(encoding="utf-8") for source in sources if source != Path(__file__))
    for variable in re.findall(r"\bLIGHTFOLD_[A-Z_]+\b", text):
        assert variable in code, f"{page.name} names the variable {variable}, which nothing reads"


def test_the_readme_names_every_method_format_and_lens() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    missing = [name for name in [*method_names(), *FORMATS] if f"`{name}`" not in text]
    assert not missing
    from lightfold.cameras import Lens

    assert all(re.search(rf"\b{lens.value}\b", text) for lens in Lens)
    assert text.index("<!-- results:begin -->") < text.index("<!-- results:end -->")


@pytest.mark.parametrize("page", PAGES, ids=TITLES)
def test_python_compiles(page: Path) -> None:
    for line, source in blocks(page):
        try:
            ast.parse(source)
        except SyntaxError as error:
            pytest.fail(f"{page.name}, the block at line {line}: {error}")


@pytest.mark.parametrize("name", [title for title, page in zip(TITLES, PAGES, strict=True) if blocks(page)])
def test_python_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page, one after the other, where the sample capture is; pages that open runs get a small one."""
    try:
        backend.core()
    except ImportError as error:
        pytest.skip(str(error))
    # A copy, because a link would not be followed everywhere, and what the snippets write must not land in the tree.
    shutil.copytree(REPOSITORY / "examples" / "sample" / "images", tmp_path / "examples" / "sample" / "images")
    shutil.copy(REPOSITORY / "examples" / "sample" / "transforms.json", tmp_path / "examples" / "sample")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTFOLD_CACHE", str(tmp_path / "cache"))
    if name.endswith("run-folder.md"):
        short = ["--steps", "2", "--scene.max-side", "32", "--eval-every", "0"]
        assert cli.main(["train", "ngp:fast", "examples/sample", *short]) == cli.DONE
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    namespace: dict[str, object] = {"__name__": "documentation"}
    try:
        for line, source in blocks(REPOSITORY / name):
            # Padded, so that a traceback names the line of the page.
            exec(compile("\n" * line + source, name, "exec"), namespace)
    finally:
        torch.set_num_threads(threads)


def test_docs_name_nothing_outside_the_repository() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"/" + r"(?:work|home|tmp/bash)\b", text), page
