"""The demo's table of speed over time has a row for each minute of traffic."""

from __future__ import annotations

from typing import Any

from tests.demo.speed_over_time import SpeedOverTime
from tests.traffic.report import RequestCounts, Summary


def traffic(seconds: float, tokens: int) -> Summary:
    return RequestCounts().summary("extraction", seconds).model_copy(update={"answer_tokens": tokens})


def status(version: int, **fields: Any) -> dict[str, Any]:
    return {"status": {"active": {"version": version}, **fields}}


def test_a_row_has_the_tokens_of_its_own_minute() -> None:
    speed = SpeedOverTime()
    speed.add(status(0), traffic(30, 600))
    speed.add(status(0), traffic(60, 1200))
    speed.add(status(1, estimatedSpeedup="~1.9x"), traffic(75, 1800))
    speed.add(status(1, estimatedSpeedup="~2.1x"), traffic(120, 3600))
    assert [(row.version, row.tokens_per_second, row.estimate) for row in speed.rows] == [(0, 20, ""), (1, 40, "~2.1x")]
    assert speed.table().splitlines()[1:] == [
        "  minute  draft   tok/s  estimate",
        "     1.0      0    20.0         -",
        "     2.0      1    40.0     ~2.1x",
    ]


def test_before_the_operator_has_written_a_status_a_row_says_so() -> None:
    speed = SpeedOverTime()
    speed.add({}, traffic(60, 0))
    assert speed.table().splitlines()[-1] == "     1.0      -     0.0         -"
