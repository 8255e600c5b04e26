"""The operator starts with every value that the chart's schema accepts.

Otherwise Helm would report success, and the operator's pods would end with a configuration error.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest

from aurora_store.policy.address_policy import AddressPolicy
from tests.generated.generated_file import ROOT

CHART = ROOT / "charts/aurora-operator"


@cache
def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())["properties"]
    return schema


def _is_accepted_as_host(entry: str) -> bool:
    choices = _schema()["stores"]["properties"]["internalHosts"]["items"]["anyOf"]
    return any(re.search(choice["pattern"], entry) for choice in choices)


def test_the_schema_takes_the_condition_of_a_parent_charts_dependency() -> None:
    """Helm hands `aurora-operator.enabled` of the parent chart to this chart, which takes no unknown value."""
    assert _schema()["enabled"]["type"] == "boolean"


@pytest.mark.parametrize(
    "entry",
    [
        "minio.storage",
        "Minio",
        "1st.store",
        "10.96.0.1",
        "10.96.0.1/12",
        "0.0.0.0/0",
        "10.0.0.0/32",
        "::",
        "::1",
        "1::",
        "fd00::/8",
        "fd00:1:2::3/128",
        "1:2:3:4:5:6:7:8",
        "1::8/0",
        "1:2:3:4:5:6:7::",
        "::2:3:4:5:6:7:8",
    ],
)
def test_the_operator_takes_each_host_that_the_schema_takes(entry: str) -> None:
    assert _is_accepted_as_host(entry)
    AddressPolicy.of([entry])


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "10.0.0.0/40",
        "10.0.0.0/33",
        "300.1.1.1",
        "10.0.0",
        "10",
        "1.2.3.4.5",
        "010.0.0.1",
        "minio/12",
        "a,b",
        ":",
        "::1/129",
        "1:2:3",
        "1::2::3",
        "1:2:3:4:5:6:7:8:9",
        "1:2:3:4:5:6:7:8::",
        "12345::",
        "http://minio",
    ],
)
def test_the_schema_refuses_a_host_that_the_operator_cannot_use(entry: str) -> None:
    assert not _is_accepted_as_host(entry)
