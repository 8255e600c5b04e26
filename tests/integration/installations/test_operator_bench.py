"""The operator's bench with three speculators: the harness works, and an operator at rest is quiet."""

from __future__ import annotations

import json

from tests.bench.operator.__main__ import table
from tests.bench.operator.run import RunOptions, run

OPTIONS = RunOptions(replicas=2, settle_seconds=5, rest_seconds=10, samples=3, restarts=1)


def test_a_small_run_measures_everything() -> None:
    row = run(3, OPTIONS)
    assert row["pods"] == 9, "two replicas and a trainer each"
    assert row["change_to_applied_seconds"]["samples"] == 3
    assert row["readiness_to_status_seconds"]["ready"]["samples"] == 3
    assert row["restarts"][0]["whole_seconds"] > 0
    rest = row["at_rest"]
    assert rest["api_reads_per_minute"] == 0
    assert rest["memory_mebibytes"]["now"] > 0
    assert json.loads(json.dumps(row)) == row
    assert len(table([row]).splitlines()) == 3
