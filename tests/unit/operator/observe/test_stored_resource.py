"""A stored resource becomes a spec, a status and requests, or an error that names the wrong field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_api.v1alpha1.annotations import ABORT_ANNOTATION
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.errors import InvalidSpec
from aurora_operator.observe.stored_resource import aborted_version, parse


def stored(serving: dict[str, Any] | None = None, **parts: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "team", "name": "chat", "uid": "u", "generation": 1, "resourceVersion": "7"},
        "spec": {
            "target": {"model": "m"},
            "store": {"bucket": "abc", "credentials": {"secretRef": {"name": "s3"}}},
            "serving": serving or {},
        },
        **parts,
    }


def test_a_field_that_does_not_parse_is_named_without_its_value() -> None:
    fault = parse(stored({"replicas": "secret"}))[3]
    assert fault.startswith("spec: serving.replicas: ")
    assert "secret" not in fault


def test_a_template_that_removes_what_our_containers_need_is_named_and_left_out() -> None:
    removes = {"template": {"spec": {"containers": [{"name": "sglang", "env": None}]}}, "replicas": 3}
    _, usable, _, fault = parse(stored(removes))
    assert "spec: serving.template.spec: " in fault
    assert (usable.serving.replicas, usable.serving.template.spec) == (3, {})


def test_replicas_stay_as_they_are_stored_whatever_else_is_wrong() -> None:
    for serving in ({"strategy": "no", "replicas": 5}, {"extraArgs": ["--tp", 2], "replicas": 0}):
        assert parse(stored(serving))[1].serving.replicas == serving["replicas"]


def test_a_wrong_field_has_its_default_while_the_spec_waits_for_its_correction() -> None:
    usable = parse(stored({"replicas": "many", "extraArgs": ["--tp", 2]}))[1]
    assert (usable.serving.replicas, usable.serving.extra_args) == (1, [])


@pytest.mark.parametrize(
    "part", [{"target": {}}, {"store": {"bucket": "abc", "endpoint": 7, "credentials": {"secretRef": {"name": "s3"}}}}]
)
def test_a_wrong_target_or_store_has_no_substitute(part: dict[str, Any]) -> None:
    resource = stored()
    resource["spec"] |= part
    with pytest.raises(InvalidSpec):
        parse(resource)


def test_a_part_of_the_status_that_does_not_parse_counts_as_empty_and_the_others_are_kept() -> None:
    written_by_a_newer_operator = {"rollout": {"phase": "Dancing", "version": 4}, "rejected": [3], "updated": "1/2"}
    status = parse(stored(status=written_by_a_newer_operator))[2]
    assert status == SpeculatorStatus(rejected=[3], updated="1/2")


def test_unknown_fields_and_the_conditions_of_others_are_left_out() -> None:
    def condition(condition_type: str) -> dict[str, str]:
        return {"type": condition_type, "status": "True", "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"}

    conditions = [condition("Ready"), condition("example.com/Cost")]
    _, spec, status, _ = parse(stored({"turbo": True}, status={"mood": "good", "conditions": conditions}))
    assert "turbo" not in spec.model_dump_json()
    assert "mood" not in status.model_dump_json()
    assert [c.type for c in status.conditions] == ["Ready"]


def abort_of(text: str) -> int | None:
    return aborted_version({"metadata": {"annotations": {ABORT_ANNOTATION: text}}})


def test_only_a_version_number_is_a_request() -> None:
    assert abort_of("12345678") == 12345678
    assert aborted_version({"metadata": {}}) is None
    for text in ("", "v3", "-1", "3.0", " 3", "123456789", "9" * 5000, "²"):
        assert abort_of(text) is None


@given(st.text())
def test_no_text_of_a_request_raises(text: str) -> None:
    abort_of(text)
