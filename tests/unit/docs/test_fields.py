"""Samples and field names in the documents fit the models, so that a reader can paste them."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.status import SpeculatorStatus
from tests.unit.docs.markdown import ROOT, Page, pages

PARTS = tuple(field.alias or name for name, field in SpeculatorSpec.model_fields.items())
FIELD = re.compile(rf"(?:spec\.)?((?:{'|'.join(PARTS)})(?:\.[a-zA-Z]+)+)(?=$|:|=| )")
STATUS_FIELD = re.compile(r"(status(?:\.[a-zA-Z]+)+)(?=$|:|=| )")
MINIMAL: dict[str, Any] = {
    "target": {"model": "m"},
    "store": {"bucket": "bkt", "credentials": {"serviceAccountName": "s"}},
}
USER_PAGES = [page for page in pages() if page.name == "README.md" or page.name.startswith("docs/")]
CHART = yaml.safe_load((ROOT / "charts/aurora-operator/values.yaml").read_text())
CHART_VALUE = re.compile(rf"({'|'.join(CHART)})(\.[a-zA-Z]+)*(?=$|:|=)")


def _name(document: Page) -> str:
    return document.name


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models within an annotation: X of Annotated[X, …], X | None and list[X]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models(part)


def _has(model: type[BaseModel], path: list[str]) -> bool:
    """Whether the model has the field. Below an object with a schema of Kubernetes every field is accepted."""
    field = next((f for name, f in model.model_fields.items() if (f.alias or name) == path[0]), None)
    if field is None:
        return False
    if len(path) == 1:
        return True
    within = list(_models(field.annotation))
    return any(_has(part, path[1:]) for part in within) if within else "dict" in str(field.annotation)


@pytest.mark.parametrize("document", USER_PAGES, ids=_name)
def test_named_fields_exist(document: Page) -> None:
    for number, text in document.spans:
        if match := FIELD.match(text):
            assert _has(SpeculatorSpec, match[1].split(".")), f"{document.name}:{number}: {text}"
        if match := STATUS_FIELD.match(text):
            assert _has(SpeculatorStatus, match[1].split(".")[1:]), f"{document.name}:{number}: {text}"


@pytest.mark.parametrize("document", USER_PAGES, ids=_name)
def test_named_chart_values_exist(document: Page) -> None:
    for number, text in document.spans:
        if match := CHART_VALUE.fullmatch(text.partition("=")[0]):
            value: Any = CHART
            for part in match[0].split("."):
                assert isinstance(value, dict), f"{document.name}:{number}: {text}"
                assert part in value, f"{document.name}:{number}: {text}"
                value = value[part]


def _resources(text: str) -> Iterator[dict[str, Any]]:
    """The specs in a YAML text: of whole speculators, and of fragments that begin with a part of the spec."""
    for value in yaml.safe_load_all(text):
        if isinstance(value, dict) and value.get("kind") == "AuroraSpeculator":
            yield value["spec"]
        elif isinstance(value, dict) and value.keys() <= set(PARTS):
            yield MINIMAL | value


@pytest.mark.parametrize("document", USER_PAGES, ids=_name)
def test_yaml_blocks_are_valid(document: Page) -> None:
    for block in document.blocks("yaml"):
        for spec in _resources(block):
            SpeculatorSpec.model_validate(spec, extra="forbid")


SAMPLES = sorted([*(ROOT / "docs/samples").glob("*.yaml"), *(ROOT / "docs/samples/targets").glob("*.yaml")])


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_samples_are_valid(sample: Any) -> None:
    specs = list(_resources(sample.read_text()))
    assert specs
    for spec in specs:
        SpeculatorSpec.model_validate(spec, extra="forbid")


def test_the_example_for_artifact_hub_is_valid() -> None:
    notes = yaml.safe_load((ROOT / "charts/aurora-operator/Chart.yaml").read_text())["annotations"]
    (example,) = yaml.safe_load(notes["artifacthub.io/crdsExamples"])
    SpeculatorSpec.model_validate(example["spec"], extra="forbid")
