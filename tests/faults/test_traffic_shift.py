"""A draft that passed the gate is rolled back because the traffic shifts. Nothing is mocked: both drafts are real.

The active draft was trained on SQL. Then clients ask for JSON. On these requests a draft that was trained on JSON only
is measured faster, and its rollout begins. Then clients return to SQL. The operator must compare the canary with the
other pod on the same traffic. Two judgements later every pod must serve the previous draft again, without a failed
request.

Each round drafts (`draft.shape: Fixed`). With Adaptive a draft proposes too seldom, on these requests, for a judgement.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aurora_api.v1alpha1.draft import Shape
from tests.assets.trained_draft import write_perturbed_copy
from tests.faults.fault_rig import FaultRig
from tests.faults.results_table import ClientCounts, FaultResult
from tests.traffic.prompts import Domain

pytestmark = [pytest.mark.timeout(3600), pytest.mark.usefixtures("fixed_shape", "reject_newest_version_afterwards")]
MAX_ROLLBACK_REQUESTS = 300
"""Requests from the shift to the end of the rollback, about 60 s of this traffic on two quiet cores.

A judgement needs about 30 requests of each pod before chance does not explain a loss of this size, and two judgements
must fail. The requests during the settle time and the swap come on top. The limit counts requests, because the rate of
requests depends on the machine.
"""
REQUESTS_TO_SHIFT = 750
"""After so many requests of a domain, all recent held-out requests are of that domain."""


@pytest.fixture
def fixed_shape(rig: FaultRig) -> Iterator[None]:
    """Let each round propose the draft's tokens, until the test ends."""
    _set_shape(rig, Shape.FIXED)
    yield
    _set_shape(rig, Shape.ADAPTIVE)


def _set_shape(rig: FaultRig, shape: Shape) -> None:
    former = _pod_names(rig)
    rig.patch({"draft": {"shape": shape}})
    rig.wait_until("both pods were replaced", lambda: not _pod_names(rig) & former)
    rig.wait_until("both pods serve", lambda: rig.serves(rig.status()["active"]["version"]))


def _pod_names(rig: FaultRig) -> set[str]:
    return {pod["metadata"]["name"] for pod in rig.component_pods("inference")}


def _shift_traffic(rig: FaultRig, domain: Domain) -> None:
    """Send requests of ``domain`` until the recent held-out requests are all of that domain."""
    rig.driver.switch_domain(domain)
    before = rig.driver.summary().requests
    rig.wait_until(f"enough traffic of {domain}", lambda: rig.driver.summary().requests - before > REQUESTS_TO_SHIFT)


def test_a_validated_draft_that_a_shift_degrades_is_rolled_back_after_two_judgements(
    rig: FaultRig, draft_folder: Path
) -> None:
    rig.wait_until_serving(0)
    rig.patch({"rollout": {"analysis": {"failureLimit": 1}}})
    _shift_traffic(rig, Domain.SQL)
    sql_version = rig.offer(write_perturbed_copy(rig.specialists[Domain.SQL], draft_folder / "sql", seed=1))
    rig.wait_until_serving(sql_version)
    _shift_traffic(rig, Domain.EXTRACTION)
    json_version = rig.offer(write_perturbed_copy(rig.specialists[Domain.EXTRACTION], draft_folder / "json", seed=2))
    rig.wait_until(f"the canary serves version {json_version}", lambda: rig.rollout_phase(json_version) == "Canary")
    before, shifted = rig.driver.summary(), time.monotonic()
    rig.driver.switch_domain(Domain.SQL)
    rig.wait_until_serving(sql_version)
    seconds = time.monotonic() - shifted
    after = rig.driver.summary()
    status = rig.status()
    outcome = f"previous draft; {status['rollout']['message']}"
    clients = ClientCounts.between(before, after)
    rig.results.append(FaultResult("traffic shifts during the canary", "Canary", seconds, clients, outcome))
    assert json_version in status["rejected"], status
    assert "live traffic disagrees" in status["rollout"]["message"]
    assert clients.requests <= MAX_ROLLBACK_REQUESTS
    assert after.failed == before.failed
    assert after.retries == before.retries
    # The other tests begin with version 0.
    rig.annotate("abort", sql_version)
    rig.wait_until_serving(0)
