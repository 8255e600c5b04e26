"""Links of the documents lead somewhere, and the documents name only files, tests and commands that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.unit.docs.markdown import ROOT, Page, page, pages

IMPORT_ROOTS = ("", "crds", "operator", "runtime")
REPOSITORY_PATH = re.compile(r"(?<![\w./-])((?:tests|runtime|operator|crds|docs|charts)/[\w./-]*\w)(?:::(\w+))?")
MAKE = re.compile(r"\bmake ([a-z][a-z0-9-]*)")
MODULE = re.compile(r"\bpython -m ((?:tests|aurora_\w+)[\w.]*)")
VARIABLE = re.compile(r"\bAURORA_[A-Z_]+\b")


def _name(document: Page) -> str:
    return document.name


@pytest.mark.parametrize("document", pages(), ids=_name)
def test_links_and_anchors_resolve(document: Page) -> None:
    for number, target in document.links:
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (document.path.parent / file).resolve() if file else document.path
        assert linked.exists(), f"{document.name}:{number}: {target} does not exist"
        if anchor:
            assert anchor in Page(linked).anchors, f"{document.name}:{number}: {target} names no heading"


@pytest.mark.parametrize("document", pages(), ids=_name)
def test_named_files_and_tests_exist(document: Page) -> None:
    for text in document.code:
        for file, test in REPOSITORY_PATH.findall(text):
            places = [ROOT / file, document.path.parent / file]
            found = next((place for place in places if place.exists()), None)
            assert found is not None, f"{document.name}: {file} does not exist"
            if test:
                assert f"def {test}(" in found.read_text(), f"{document.name}: {file}::{test} does not exist"


@pytest.mark.parametrize("document", pages(), ids=_name)
def test_named_make_targets_exist(document: Page) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for text in document.code:
        for target in MAKE.findall(text):
            assert target in targets, f"{document.name}: make {target}"


@pytest.mark.parametrize("document", pages(), ids=_name)
def test_named_modules_can_be_run(document: Page) -> None:
    for text in document.code:
        for module in MODULE.findall(text):
            path = Path(module.replace(".", "/"))
            files = [ROOT / root / file for root in IMPORT_ROOTS for file in (f"{path}.py", path / "__main__.py")]
            assert any(file.exists() for file in files), f"{document.name}: python -m {module}"


@pytest.mark.parametrize("document", pages(), ids=_name)
def test_named_environment_variables_exist(document: Page) -> None:
    named = {variable for text in document.code for variable in VARIABLE.findall(text)}
    if named:
        folders = ("crds", "operator", "runtime", "tests")
        source = "".join(file.read_text() for folder in folders for file in (ROOT / folder).rglob("*.py"))
        assert not {variable for variable in named if variable not in source}, document.name


def test_the_command_line_page_lists_every_program_with_options_that_it_has() -> None:
    scripts: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    rows = [row for row in page("docs/reference/cli.md").table_rows if row[0].startswith("`aurora-")]
    programs = {row[0].strip("`").split()[0] for row in rows}
    assert programs == {name for name in scripts if name.startswith("aurora-")}
    for row in rows:
        module = scripts[row[0].strip("`").split()[0]].partition(":")[0].replace(".", "/")
        entry = next(file for root in IMPORT_ROOTS if (file := ROOT / root / f"{module}.py").exists())
        source = "".join(file.read_text() for file in (entry, entry.with_name("options.py")) if file.exists())
        for option in re.findall(r"`(--[a-z-]+)`", row[-1]):
            assert f'"{option}"' in source, f"{row[0]} has no {option}"
