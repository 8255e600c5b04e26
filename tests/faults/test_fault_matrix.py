"""Every fault in every state of a draft's life, under constant traffic.

The tests check promises 1 to 3 (docs/explanation/promises.md) from outside.

A draft is measured on the real engine while every fault is caused in turn, and must pass. Each test then lets it be
swapped into the canary, rolled out and watched, and pins version 0 again, so that the pods return. The fault is caused
in each of these states, and the draft must end in the same state as without faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from tests.assets.trained_draft import write_perturbed_copy
from tests.faults.fault_kinds import FAULTS, Fault
from tests.faults.fault_rig import FaultRig
from tests.faults.results_table import ClientCounts, FaultResult
from tests.traffic.prompts import Domain

pytestmark = pytest.mark.timeout(3600)


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


@pytest.fixture(scope="module")
def version(rig: FaultRig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A draft that passed although every fault hit a measurement. A pin of version 0 holds it back."""
    folder, version = tmp_path_factory.mktemp("drafts"), 0

    def is_in(phase: str) -> bool:
        return rig.candidate_phase(version) == phase

    rig.wait_until_serving(0)
    rig.patch({"rollout": {"paused": True}})  # not a pin, with which nothing is measured

    def is_measured() -> bool:
        return is_in("Validating") and bool(rig.component_pods("validator"))

    for number, fault in enumerate(FAULTS):
        if not is_in("Validating"):
            if is_in("Validated"):  # nothing newer is measured while it waits for its roll
                rig.annotate("abort", version)
                rig.wait_until(f"version {version} is rejected", partial(is_in, "Rejected"))
            draft = write_perturbed_copy(rig.specialists[Domain.EXTRACTION], folder / str(number), seed=number)
            version = rig.offer(draft)
            rig.wait_until(f"version {version} is measured", is_measured)
        _cause_and_measure(rig, fault, "Validating")
    rig.wait_until(f"version {version} passes", partial(is_in, "Validated"), 1800)
    rig.patch({"rollout": {"pin": 0, "paused": False}})
    yield version
    rig.annotate("abort", version)
    rig.patch({"rollout": {"pin": None}})
    rig.wait_until(f"version {version} is rejected", lambda: version in rig.status()["rejected"])
    rig.wait_until_serving(0)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if not fault.validating_only], ids=lambda f: f.name)
def test_a_draft_lives_through_a_fault_in_every_state(fault: Fault, rig: FaultRig, version: int) -> None:
    rig.patch({"rollout": {"analysis": {"failureLimit": fault.failure_limit}, "pin": None}})
    try:
        _cause_in_each_rollout_state(rig, fault, version)
        rig.wait_until(f"version {version} is active", lambda: rig.is_active(version))
    finally:
        rig.patch({"rollout": {"pin": 0}})
    rig.wait_until("the rollback begins", lambda: rig.is_active(0))
    _cause_and_measure(rig, fault, "RollingBack")
    rig.wait_until_serving(0)


def _cause_in_each_rollout_state(rig: FaultRig, fault: Fault, version: int) -> None:
    """Cause the fault once in each state of a rollout.

    A state may pass unseen while the speculator still recovers from the fault in the state before. Then the version is
    taken back and rolled out once more.
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
