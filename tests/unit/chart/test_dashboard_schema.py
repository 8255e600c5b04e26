"""The dashboard has only fields and values that Grafana knows, by the types of Grafana's Foundation SDK.

No test runs Grafana, and Grafana shows a dashboard without the fields that it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from typing import Any, Final, get_type_hints

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from pydantic import ConfigDict, TypeAdapter, ValidationError

from tests.rig.prometheus.dashboard_queries import DASHBOARD

UNKNOWN_TO_THE_SDK: Final = {"dashboard.annotations.list[0].titleFormat"}
"""Grafana's source of Prometheus data reads it, and the SDK does not describe annotations of single sources."""
ANY_TYPE: Final = ConfigDict(arbitrary_types_allowed=True)


def _problems(dashboard: dict[str, Any]) -> set[str]:
    """Fields that the types lose or change, and values that they do not allow."""
    register_default_plugins()
    read = Dashboard.from_json(dashboard)
    written = json.loads(JSONEncoder().encode(read))
    return {*_lost(dashboard, written, "dashboard"), *_wrong_values(read, "dashboard")}


def _lost(before: Any, after: Any, place: str) -> Iterator[str]:
    """The parts of ``before`` that ``after`` lacks. The types add defaults, which are no loss."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from _lost(value, after.get(key), f"{place}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _lost(one, other, f"{place}[{index}]")
    elif before != after:
        yield place


def _wrong_values(read: object, place: str) -> Iterator[str]:
    """Attributes whose text or number is not of the type that they are declared with."""
    if isinstance(read, list):
        for index, one in enumerate(read):
            yield from _wrong_values(one, f"{place}[{index}]")
    elif type(read).__module__.startswith("grafana_foundation_sdk.") and not isinstance(read, Enum):
        hints = get_type_hints(type(read))
        for name, value in vars(read).items():
            if not isinstance(value, str | int | float):
                yield from _wrong_values(value, f"{place}.{name}")
            elif not _is_allowed(value, hints[name]):
                yield f"{place}.{name}"


def _is_allowed(value: object, declared: Any) -> bool:
    try:
        TypeAdapter(declared, config=ANY_TYPE).validate_json(json.dumps(value), strict=True)
    except ValidationError:
        return False
    return True


def test_grafana_knows_every_field_and_every_value_of_the_dashboard() -> None:
    assert _problems(DASHBOARD) == UNKNOWN_TO_THE_SDK
