"""The chart's values and their schema fit each other: every value has a default and a check."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from tests.unit.docs.markdown import ROOT

CHART = ROOT / "charts/aurora-operator"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())


class Described(NamedTuple):
    """A value in the schema. A field of a type that several values share needs no default in each of them."""

    schema: dict[str, Any]
    shared: bool


def _described(schema: dict[str, Any], path: str = "", shared: bool = False) -> Iterator[tuple[str, Described]]:
    for name, value in schema.get("properties", {}).items():
        reference = value.get("$ref", "")
        resolved = {**SCHEMA["$defs"][reference.rpartition("/")[2]], **value} if reference else value
        yield f"{path}{name}", Described(resolved, shared)
        yield from _described(resolved, f"{path}{name}.", shared or bool(reference))


DESCRIBED = dict(_described(SCHEMA))


def _paths(values: dict[str, Any], path: str = "") -> Iterator[str]:
    """The paths of all values. A free-form object, such as an affinity, is one value."""
    for name, value in values.items():
        yield f"{path}{name}"
        known = DESCRIBED.get(f"{path}{name}")
        if isinstance(value, dict) and (known is None or "properties" in known.schema):
            yield from _paths(value, f"{path}{name}.")


def test_the_schema_has_every_value() -> None:
    assert set(_paths(VALUES)) <= DESCRIBED.keys()


def test_every_value_of_the_schema_has_a_default() -> None:
    own = {path for path, value in DESCRIBED.items() if not value.shared}
    assert own - set(_paths(VALUES)) == {"global", "enabled"}, "a parent chart sets these two"


def test_no_section_accepts_an_unknown_value() -> None:
    sections = {path: value.schema for path, value in DESCRIBED.items() if "properties" in value.schema}
    assert "images" in sections
    assert [path for path, schema in sections.items() if schema.get("additionalProperties") is not False] == []
