"""A draft that earned its place and that live traffic then refuses, because the traffic shifted: no mock, real drafts.

The active draft knows SQL; requests for JSON come in, and on them a draft that knows only JSON is measured faster and
begins to roll out. Then the traffic returns to SQL. What must happen: the canary is judged against its peer on the very
same requests, and every pod is back on the former draft within a minute, without a failed request.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.assets.trained_draft import nudge
from tests.faults.fault_rig import Stage
from tests.faults.results_table import Entry
from tests.traffic.prompts import Domain

pytestmark = pytest.mark.timeout(3600)
RESTORED_SECONDS = 60.0


def _drift(stage: Stage, domain: Domain) -> None:
    """Ask for ``domain`` until the held-out requests of the newest traffic are of it."""
    stage.driver.switch(domain)
    before = stage.driver.summary().requests
    stage.wait(f"traffic of {domain}", lambda: stage.driver.summary().requests - before > 750)


def test_a_passed_draft_that_a_shift_degrades_is_taken_back_within_a_minute(stage: Stage, folder: Path) -> None:
    stage.wait_active(0)
    stage.patch({"rollout": {"analysis": {"failureLimit": 1}}})
    _drift(stage, Domain.SQL)
    knows_sql = stage.offer(nudge(stage.specialists[Domain.SQL], folder / "sql", seed=1))
    stage.wait_active(knows_sql)
    _drift(stage, Domain.EXTRACTION)
    knows_json = stage.offer(nudge(stage.specialists[Domain.EXTRACTION], folder / "json", seed=2))
    stage.wait("the canary", lambda: _canary(stage, knows_json))
    before, shifted = stage.driver.summary(), time.monotonic()
    stage.driver.switch(Domain.SQL)
    stage.wait_active(knows_sql)
    seconds = time.monotonic() - shifted
    after = stage.driver.summary()
    stage.entries.append(
        Entry(
            "traffic shifts under a passed draft",
            "Canary",
            seconds,
            after.requests - before.requests,
            sum(after.broken.values()) - sum(before.broken.values()),
            after.failed - before.failed,
            f"former draft; {stage.status()['rollout']['message']}",
        )
    )
    status = stage.status()
    assert knows_json in status["rejected"], status
    assert "live traffic disagrees" in status["rollout"]["message"]
    assert seconds <= RESTORED_SECONDS
    assert after.failed == before.failed
    assert after.broken == before.broken


def _canary(stage: Stage, version: int) -> bool:
    rollout = stage.status()["rollout"]
    return bool(rollout.get("version") == version and rollout["phase"] == "Canary" and rollout.get("updated", 0) > 0)
