"""The reference pages list all events, condition types and store keys of the code."""

from __future__ import annotations

import re

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_store import Keys
from tests.unit.docs.markdown import ROOT, page

WORD = re.compile(r"`([A-Z][A-Za-z]+)`")
STATUSES = ("True", "False", "Unknown", "True or False")


def _source(*folders: str) -> str:
    return "".join(file.read_text() for folder in folders for file in sorted((ROOT / folder).rglob("*.py")))


def _first_column(name: str, start: str) -> set[str]:
    rows = page(name).table_rows
    return {row[0].strip("`") for row in rows if re.fullmatch(rf"`{start}\w*`", row[0])}


def test_the_events_page_lists_the_events_of_the_operator() -> None:
    documented = _first_column("docs/reference/events.md", "[A-Z]")
    about_versions = re.findall(r'^    "([A-Z]\w+)": "', _source("operator/aurora_operator/plan"), re.MULTILINE)
    about_data = re.findall(r'EventNote\(\s*"([A-Z]\w+)"', _source("operator/aurora_operator/plan"))
    assert len(about_versions) > 10
    others = re.findall(r'EventNote\(\s*"([A-Z]\w+)"', _source("operator/aurora_operator/act"))
    assert documented == {*about_versions, *about_data, *others, "Ready"}


def test_the_conditions_page_lists_all_types_and_no_invented_reason() -> None:
    document = page("docs/reference/conditions.md")
    rows = list(document.table_rows)
    types = {word for row in rows for word in WORD.findall(row[0])}
    assert {kind.value for kind in ConditionType} <= types
    source = _source("operator/aurora_operator", "crds", "runtime/aurora_protocol", "runtime/aurora_store")
    reasons = {row[0].strip("`") for row in rows if row[1] in STATUSES}
    assert {reason for reason in reasons if f'"{reason}"' not in source} == set()


def test_the_command_line_page_lists_every_variable_that_the_operator_reads() -> None:
    documented = _first_column("docs/reference/cli.md", "(AURORA|POD)_")
    read = set(
        re.findall(r'"((?:AURORA|POD)_[A-Z_]+)"', (ROOT / "operator/aurora_operator/operator_config.py").read_text())
    )
    assert len(read) > 10
    assert documented == read


def test_the_command_line_page_says_which_of_these_variables_the_chart_sets() -> None:
    sentence = page("docs/reference/cli.md").path.read_text().partition("The chart sets all but")[2].partition(":\n")[0]
    kept = set(re.findall(r"`(\w+)`", sentence))
    template = (ROOT / "charts/aurora-operator/templates/deployment.yaml").read_text()
    passed = set(re.findall(r"- name: ((?:AURORA|POD)_[A-Z_]+)", template))
    assert passed == _first_column("docs/reference/cli.md", "(AURORA|POD)_") - kept


def test_the_store_page_lists_every_kind_of_key() -> None:
    text = page("docs/reference/store-layout.md").path.read_text()
    prefixes = {value for name, value in vars(Keys).items() if name.isupper() and isinstance(value, str)}
    assert len(prefixes) > 5
    assert {prefix for prefix in prefixes - {Keys.PROBE} if f"`{prefix}" not in text} == set()
