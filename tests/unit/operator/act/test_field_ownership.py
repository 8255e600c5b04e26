"""The apply's record takes over what the create call set, and nothing else."""

from __future__ import annotations

from typing import Any

from aurora_operator.act.field_ownership import applied_managed_fields
from aurora_operator.kubernetes_api import Object

LABELS: Object = {"f:metadata": {"f:labels": {".": {}, "f:a": {}}}}
PORT: Object = {"f:spec": {"f:ports": {'k:{"port":80}': {".": {}, "f:name": {}}}}}
TYPE: Object = {"f:spec": {"f:type": {}}}


def record(operation: str, fields: dict[str, Any], manager: str = "aurora-operator", **more: str) -> Object:
    return {"manager": manager, "operation": operation, "apiVersion": "v1", "fieldsV1": fields, **more}


def test_an_object_that_was_only_applied_is_left_as_it_is() -> None:
    assert applied_managed_fields([]) is None
    assert applied_managed_fields([record("Apply", LABELS)]) is None


def test_what_others_and_subresources_set_is_left_as_it_is() -> None:
    others = [record("Update", LABELS, "kubectl-edit"), record("Update", TYPE, subresource="status")]
    assert applied_managed_fields(others) is None
    assert applied_managed_fields([*others, record("Update", PORT)]) == [*others, record("Apply", PORT)]


def test_the_apply_takes_over_the_fields_of_the_create_call() -> None:
    made = applied_managed_fields([record("Update", LABELS | TYPE), record("Apply", PORT, time="now")])
    assert made == [record("Apply", {**LABELS, "f:spec": {**TYPE["f:spec"], **PORT["f:spec"]}}, time="now")]
