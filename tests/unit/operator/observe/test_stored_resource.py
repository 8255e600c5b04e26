"""A stored resource becomes a spec and a status, or an error that names the wrong field."""

from __future__ import annotations

from typing import Any

import pytest

from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.errors import InvalidSpec
from aurora_operator.observe.stored_resource import parse


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


def test_a_flag_that_sglang_does_not_know_is_named() -> None:
    with pytest.raises(InvalidSpec, match=r"spec.serving.extraArgs: SGLang has no flag --no-such-flag"):
        parse(stored({"extraArgs": ["--tp", "2", "--no-such-flag"]}))


def test_flags_of_an_image_of_the_users_own_are_not_checked() -> None:
    _, spec, _ = parse(stored({"extraArgs": ["--no-such-flag"], "image": "mine:1"}))
    assert spec.serving.extra_args == ["--no-such-flag"]


def test_a_field_that_does_not_parse_is_named_without_its_value() -> None:
    with pytest.raises(InvalidSpec, match=r"spec: serving.replicas: ") as error:
        parse(stored({"replicas": "secret"}))
    assert "secret" not in str(error.value)


def test_a_status_that_does_not_parse_counts_as_empty() -> None:
    assert parse(stored(status={"replicas": "many"}))[2] == SpeculatorStatus()
