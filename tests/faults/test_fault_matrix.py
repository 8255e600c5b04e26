"""Every fault at every moment of a draft's life, under constant traffic: promises 1 to 3 from outside.

One life per fault: a good draft is offered, measured on the real engine, swapped into the canary, rolled out, watched,
and taken back by a person. The fault strikes in each of these states, and each life must end as if it had not.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.assets.trained_draft import nudge
from tests.faults.fault_kinds import FAULTS, Fault
from tests.faults.fault_rig import Stage
from tests.faults.results_table import Entry
from tests.traffic.prompts import Domain

pytestmark = pytest.mark.timeout(2400)


ROLL = ("Canary", "Rolling", "Watching")
STATES = ("Validating", *ROLL, "RollingBack")
MAX_ROLLS = 5


def _strike(stage: Stage, fault: Fault, state: str) -> None:
    """Make the fault, wait until all is whole again, and note what it cost."""
    before = stage.driver.summary()
    back = fault.strike(stage)
    seconds = stage.wait(f"{fault.name} at {state}: whole again", lambda: back() and stage.whole())
    after = stage.driver.summary()
    entry = Entry(
        fault.name,
        state,
        seconds,
        after.requests - before.requests,
        sum(after.broken.values()) - sum(before.broken.values()),
        after.failed - before.failed,
        stage.state(),
    )
    stage.entries.append(entry)
    print(entry, flush=True)
    assert entry.failed == 0
    assert fault.breaks or entry.broken == 0, f"{fault.name} must not reach clients"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_life_of_a_draft_under(fault: Fault, stage: Stage, folder: Path) -> None:
    stage.wait_active(0)
    stage.patch({"rollout": {"analysis": {"failureLimit": fault.tolerated}}})
    version = stage.offer(nudge(stage.specialists[Domain.EXTRACTION], folder, seed=len(stage.entries)))
    stage.wait(f"version {version} is measured", lambda: stage.candidate(version) == "Validating")
    _strike(stage, fault, "Validating")
    if not fault.validating_only:
        _strike_while_it_rolls(stage, fault, version)
    stage.wait(f"version {version} active", lambda: stage.status()["active"]["version"] == version)
    stage.annotate("abort", version)
    if not fault.validating_only:
        stage.wait("the way back", lambda: stage.state() == "RollingBack" or stage.serves(0))
        _strike(stage, fault, stage.state())
    stage.wait_active(0)
    assert version in stage.status()["rejected"]


def _strike_while_it_rolls(stage: Stage, fault: Fault, version: int) -> None:
    """Strike once in each state of a roll. A state may pass while the fault of the one before is still being mended:
    then a person pins the former version and lets go, and the version, which has earned it, rolls out once more."""
    left, rolls = list(ROLL), 1
    while left:
        stage.wait(f"version {version}: {left}", lambda: _now(stage, version) in left or _promoted(stage, version))
        state = _now(stage, version)
        if state in left:
            _strike(stage, fault, state)
            left.remove(state)
        elif _promoted(stage, version):
            rolls += 1
            assert rolls < MAX_ROLLS, f"never seen: {left}"
            stage.patch({"draft": {"pin": 0}})
            stage.wait_active(0)
            stage.patch({"draft": {"pin": None}})


def _now(stage: Stage, version: int) -> str:
    """The state of the roll of ``version``; a canary counts once a pod has it."""
    rollout = stage.status()["rollout"]
    begun = rollout["phase"] != "Canary" or rollout.get("updated", 0) > 0
    return str(rollout["phase"]) if rollout.get("version") == version and begun else ""


def _promoted(stage: Stage, version: int) -> bool:
    return bool(stage.status()["active"]["version"] == version)


def test_every_state_was_struck(stage: Stage) -> None:
    assert {entry.state for entry in stage.entries} >= set(STATES)
