"""The operator starts with every value that the chart's schema accepts.

Otherwise Helm would report success, and the operator's pods would end with a configuration error.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tests.generated.generated_file import ROOT

CHART = ROOT / "charts/aurora-operator"


@cache
def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())["properties"]
    return schema


def test_the_schema_takes_the_condition_of_a_parent_charts_dependency() -> None:
    """Helm hands `aurora-operator.enabled` of the parent chart to this chart, which takes no unknown value."""
    assert _schema()["enabled"]["type"] == "boolean"
