"""Every fault in every state of a draft's life, under constant traffic.

The tests check promises 1 to 3 (docs/explanation/promises.md) from outside.

Each test offers one good draft. The draft is measured on the real engine, swapped into the canary, rolled out, watched,
and rolled back by a user. The fault is caused in each of these states. Each draft must end in the same state as without
faults.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.assets.trained_draft import write_perturbed_copy
from tests.faults.fault_kinds import FAULTS, Fault
from tests.faults.fault_rig import FaultRig
from tests.faults.results_table import ClientCounts, FaultResult
from tests.traffic.prompts import Domain

pytestmark = pytest.mark.timeout(2400)


ROLLOUT_STATES = ("Canary", "Rolling", "Watching")
STATES = ("Validating", *ROLLOUT_STATES, "RollingBack")
MAX_ROLLOUTS = 5


def _cause_and_measure(rig: FaultRig, fault: Fault, state: str) -> None:
    """Cause the fault, wait until everything is healthy again, and record the cost."""
    before = rig.driver.summary()
    has_recovered = fault.cause(rig)
    seconds = rig.wait_until(
        f"recovery from {fault.name} in state {state}", lambda: has_recovered() and rig.is_healthy()
    )
    clients = ClientCounts.between(before, rig.driver.summary())
    result = FaultResult(fault.name, state, seconds, clients, rig.state())
    rig.results.append(result)
    print(result, flush=True)
    assert clients.failed == 0
    assert fault.breaks_requests or clients.retries == 0, f"{fault.name} must not reach clients"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_draft_lives_through_a_fault_in_every_state(fault: Fault, rig: FaultRig, draft_folder: Path) -> None:
    rig.wait_until_serving(0)
    rig.patch({"rollout": {"analysis": {"failureLimit": fault.failure_limit}}})
    version = rig.offer(write_perturbed_copy(rig.specialists[Domain.EXTRACTION], draft_folder, seed=len(rig.results)))
    rig.wait_until(f"version {version} is measured", lambda: rig.candidate_phase(version) == "Validating")
    _cause_and_measure(rig, fault, "Validating")
    if not fault.validating_only:
        _cause_in_each_rollout_state(rig, fault, version)
    rig.wait_until(f"version {version} is active", lambda: rig.is_active(version))
    rig.annotate("abort", version)
    if not fault.validating_only:
        rig.wait_until("the rollback begins", lambda: rig.state() == "RollingBack" or rig.serves(0))
        _cause_and_measure(rig, fault, rig.state())
    rig.wait_until_serving(0)
    assert version in rig.status()["rejected"]


def _cause_in_each_rollout_state(rig: FaultRig, fault: Fault, version: int) -> None:
    """Cause the fault once in each state of a rollout.

    A state may pass unseen while the speculator still recovers from the fault in the state before. Then a user pins
    version 0 and removes the pin. The version has passed the gate already, so it is rolled out once more.
    """
    missing, rollouts = list(ROLLOUT_STATES), 1
    while missing:
        rig.wait_until(
            f"version {version} in one of {missing}",
            lambda: rig.rollout_phase(version) in missing or rig.is_active(version),
        )
        state = rig.rollout_phase(version)
        if state in missing:
            _cause_and_measure(rig, fault, state)
            missing.remove(state)
        elif rig.is_active(version):
            rollouts += 1
            assert rollouts < MAX_ROLLOUTS, f"states that were never seen: {missing}"
            rig.patch({"rollout": {"pin": 0}})
            rig.wait_until_serving(0)
            rig.patch({"rollout": {"pin": None}})


def test_every_state_had_a_fault(rig: FaultRig) -> None:
    assert {result.state for result in rig.results} >= set(STATES)
