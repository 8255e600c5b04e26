"""The generated CRD: in step with the models, structural, and with the defaults that the models have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from aurora_api import crd
from aurora_api.v1alpha1.spec import SpeculatorSpec

FORBIDDEN = {"$ref", "$defs", "allOf", "anyOf", "oneOf", "const", "title", "prefixItems", "exclusiveMinimumValue"}


EXAMPLE = {"target": {"model": "m"}, "store": {"bucket": "bkt", "credentials": {"secretRef": {"name": "s3"}}}}


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}[]")


@pytest.fixture(name="schema")
def _schema() -> dict[str, Any]:
    (version,) = crd.crd()["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return found


def test_the_files_are_what_the_models_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert crd.main(["--check"]) == 0, capsys.readouterr().out


def test_no_text_of_the_models_is_taken_for_an_action_of_helm(monkeypatch: pytest.MonkeyPatch) -> None:
    made = crd.crd()
    made["spec"]["names"]["kind"] = "{{ .Values.kind }}"
    monkeypatch.setattr(crd, "crd", lambda: made)
    assert '{{ "{{" }} .Values.kind }}' in crd.render_template()


def test_every_node_is_structural(schema: dict[str, Any]) -> None:
    for path, node in nodes(schema):
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert not FORBIDDEN & node.keys(), path
        assert node.get("additionalProperties") is not False, path


def test_a_new_status_is_about_no_spec_and_no_other_part_has_a_default(schema: dict[str, Any]) -> None:
    """Without this default, kstatus and so Flux take a resource for ready that no operator has seen."""
    status = schema["properties"]["status"]
    assert status["default"] == {"observedGeneration": 0}
    assert [node["default"] for _, node in nodes(status) if "default" in node] == [status["default"]]


def defaulted(schema: dict[str, Any], value: Any) -> Any:
    """``value`` as the API server stores it, with the defaults filled in level by level."""
    if schema.get("type") != "object" or "properties" not in schema:
        return value
    out = dict(value)
    for name, child in schema["properties"].items():
        if name not in out and "default" in child:
            out[name] = child["default"]
        if name in out:
            out[name] = defaulted(child, out[name])
    return out


@pytest.mark.parametrize("extra", [{}, {"serving": {"replicas": 3}}, {"draft": {"steps": 5}}])
def test_server_and_models_fill_in_the_same_defaults(schema: dict[str, Any], extra: dict[str, Any]) -> None:
    minimal = {"target": {"model": "m"}, "store": {"bucket": "bucket", "credentials": {"secretRef": {"name": "s"}}}}
    stored = defaulted(schema["properties"]["spec"], minimal | extra)
    assert SpeculatorSpec.model_validate(stored) == SpeculatorSpec.model_validate(minimal | extra)
    every = SpeculatorSpec.model_validate(stored).model_dump(mode="json", by_alias=True, exclude_none=True)
    for part in ("draft", "capture", "rollout"):
        assert stored[part] == every[part], part


def test_a_rule_bounds_the_numbers_of_each_field_that_may_also_hold_text(schema: dict[str, Any]) -> None:
    """A pattern limits text only. The API server would store a number that the models refuse."""
    bounded = {}
    for path, node in nodes(schema["properties"]["spec"]):
        rules = " ".join(rule["rule"] for rule in node.get("x-kubernetes-validations", ()))
        for name, child in node.get("properties", {}).items():
            if child.get("x-kubernetes-int-or-string"):
                (limit,) = re.findall(rf"\(type\(self\.{name}\) != int \|\| self\.{name} <= ([0-9]+)\)", rules)
                assert re.fullmatch(child["pattern"], limit), f"{path}.{name}"
                assert not re.fullmatch(child["pattern"], str(int(limit) + 1)), f"{path}.{name}"
                bounded[name] = int(limit)
    assert bounded == {"maxSurge": 999, "maxUnavailable": 999, "traceStorageLimit": 10**18 - 1}


def test_each_number_of_the_spec_has_a_maximum(schema: dict[str, Any]) -> None:
    """The API server takes integers up to 2**63, which overflow a time, a Job's deadline or a key in the store."""
    for path, node in nodes(schema["properties"]["spec"]):
        if node.get("type") == "integer":
            assert node["maximum"] <= 2**31 - 1, path
