"""A pod template cannot remove what the operator's own containers need."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from aurora_api.v1alpha1.template import NEEDED_FIELDS, PodTemplate


def template(pod: dict[str, Any]) -> PodTemplate:
    return PodTemplate.model_validate({"spec": pod})


def container(**fields: Any) -> dict[str, Any]:
    return {"containers": [{"name": "agent"}, {"name": "sglang", **fields}]}


@pytest.mark.parametrize("field", NEEDED_FIELDS)
@pytest.mark.parametrize("kind", ["containers", "initContainers"])
def test_null_removes_no_needed_field_of_a_container(kind: str, field: str) -> None:
    with pytest.raises(ValidationError, match=f"would remove what the operator sets: {field} of stage; remove the key"):
        template({kind: [{"name": "stage", field: None}]})


@pytest.mark.parametrize("field", ["volumes", "containers", "initContainers"])
def test_null_removes_none_of_the_operators_lists(field: str) -> None:
    with pytest.raises(ValidationError, match=f"would remove what the operator sets: {field}; remove the key"):
        template({field: None})


def test_an_empty_image_or_command_takes_the_place_of_the_operators_and_every_removed_field_is_named() -> None:
    with pytest.raises(ValidationError, match="image of sglang, command of sglang, env of sglang;"):
        template(container(image="", command=[], env=None))


@pytest.mark.parametrize(
    "pod",
    [
        {},
        {"nodeSelector": None, "topologySpreadConstraints": None, "securityContext": None, "imagePullSecrets": None},
        container(securityContext=None, resources=None, lifecycle=None),
        container(env=[], volumeMounts=[], ports=[]),  # lists of named items, of which an empty one removes nothing
        container(livenessProbe={"httpGet": None, "tcpSocket": {"port": 1}}),
        container(image="mine:1", command=["debug"], env=[{"name": "HF_TOKEN", "value": "x"}]),
        {"containers": "not a list"},  # the API server refuses these in its own words
        {"containers": ["not an object", None]},
    ],
)
def test_other_fields_may_be_removed_and_needed_ones_changed(pod: dict[str, Any]) -> None:
    assert template(pod).spec == pod
