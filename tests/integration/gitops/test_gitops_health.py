"""Argo CD's and Flux's own code judges the health of a speculator in every state.

The statuses are those that the operator's plan writes. Argo CD runs the check of docs/how-to/gitops.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from aurora_api import API_VERSION, KIND
from aurora_api.crd import crd
from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_cli.doctor import remedies
from aurora_operator.children.inference_deployment import START_LIMIT
from aurora_operator.observe.observed import FleetView, Observed, StoreView, WorkloadView
from aurora_operator.plan import plan
from aurora_operator.plan.conditions import deleting_status, invalid_spec_status
from aurora_protocol.agent_api import SwapPhase
from aurora_protocol.training_records import TrainerPhase
from tests.integration.gitops.health_program import Verdict, verdicts
from tests.unit.docs.markdown import page
from tests.unit.operator.plan import test_lending, test_without_draft
from tests.unit.operator.plan.conditions.test_start import begun, later, starting
from tests.unit.operator.plan.test_scaling import scaled_up
from tests.unit.operator.upgrades import config, running
from tests.unit.operator.worlds import NOW, agent, evidence, observed, pod, spec, status, store, trainer_record

HEALTHY: Final = Verdict("Healthy", "Current")
PROGRESSING: Final = Verdict("Progressing", "InProgress")
FAILED: Final = Verdict("Degraded", "Failed")
TERMINATING: Final = Verdict("Progressing", "Terminating")
CHECK: Final = "resource.customizations.health.aurora.dev_AuroraSpeculator"
GENERATION: Final = 1
"""The generation of the spec that each status describes."""


def upgrades() -> Mapping[str, SpeculatorStatus]:
    """While the pods wait for their turn of an upgrade, and after they did not become ready with their new template."""
    (speculator,) = running("chat")
    waiting = plan(replace(speculator.observe(), fleet=FleetView(restarting=1)), config(2), NOW).status
    assert waiting is not None
    turn = plan(replace(speculator.observe(), status=waiting), config(2), NOW)
    assert turn.upgrade is not None
    assert turn.status is not None
    speculator.apply(turn.upgrade)
    speculator.miss_deadline()
    failed = plan(replace(speculator.observe(), status=turn.status), config(2), NOW).status
    assert failed is not None
    return {"waiting": waiting, "failed": failed}


def stuck_pod() -> Observed:
    """A pod cannot return to the active version."""
    swap = agent("chat-b", 3).swap.model_copy(
        update={"phase": SwapPhase.FAILED, "version": 0, "error": "disk full", "finished": NOW}
    )
    return observed(pods=(pod("chat-a", 0), pod("chat-b", 3, agent=agent("chat-b", 3, swap=swap))))


def away(reason: str) -> StoreView:
    """A store that cannot be used."""
    return replace(store(0), reason=reason, error="timed out")


ONE_READY: Final = observed(pods=(pod("chat-a", 0), pod("chat-b", 0, ready=False)))
NONE_READY: Final = begun(starting(), starting("chat-b"))
CRASHES: Final = begun(starting(failing="sglang", waiting="CrashLoopBackOff", crash="sglang ended with exit code 1"))
SUSPENDED: Final = spec(serving={"replicas": 2}, training={"suspended": True})
NO_REPLICAS: Final = spec(serving={"replicas": 0})
BEFORE: Final = status(observed())
UPGRADES: Final = upgrades()

STATES: Final[Mapping[str, tuple[Verdict, SpeculatorStatus]]] = {
    "serving": (HEALTHY, BEFORE),
    "serving without a draft": (HEALTHY, status(test_without_draft.before_the_first_draft())),
    "scaled to zero": (HEALTHY, status(observed(spec=NO_REPLICAS, pods=(), deployment=WorkloadView(True, 0, 0)))),
    "a canary": (HEALTHY, status(observed(store=store(0, 1, evidence=(evidence(1),))))),
    "a pod serves without speculation": (
        HEALTHY,
        status(observed(pods=(pod("a", 0), pod("b", 0, agent=agent("b", 0, speculation_off="crashed"))))),
    ),
    "a replica is lent": (HEALTHY, test_lending.status(test_lending.lent())),
    "an upgrade waits for its turn": (HEALTHY, UPGRADES["waiting"]),
    "training is suspended": (HEALTHY, status(observed(spec=SUSPENDED))),
    "the trainer's pod crashes": (HEALTHY, status(observed(trainer=WorkloadView(True, 1, 0, message="exit code 1")))),
    "the trainer cannot start": (
        HEALTHY,
        status(observed(store=store(0, trainer=trainer_record(phase=TrainerPhase.STARTING, message="no model")))),
    ),
    "the trainer is silent": (
        HEALTHY,
        status(observed(store=store(0, trainer=trainer_record(updated=NOW - timedelta(hours=1))))),
    ),
    "the store is away": (HEALTHY, status(observed(store=away("Unreachable")))),
    "the first pods start": (PROGRESSING, status(NONE_READY)),
    "the first pods start, the store is away": (PROGRESSING, status(replace(NONE_READY, store=away("Unreachable")))),
    "one of two pods is not ready": (PROGRESSING, status(ONE_READY)),
    "one pod must take the active version": (PROGRESSING, status(observed(pods=(pod("a", 0), pod("b", None))))),
    "pods get a new template": (PROGRESSING, status(observed(deployment=WorkloadView(False, 2, 1)))),
    "a scale-up": (PROGRESSING, status(observed(spec=spec(serving={"replicas": 3})))),
    "a scale-up without a node": (PROGRESSING, status(scaled_up())),
    "a wrong field": (FAILED, status(observed(spec_fault="serving.template: unknown field"))),
    "a spec that does not parse": (FAILED, invalid_spec_status(BEFORE, GENERATION, "store: bad", NOW)),
    "a first spec that does not parse": (
        FAILED,
        invalid_spec_status(SpeculatorStatus(), GENERATION, "store: bad", NOW),
    ),
    "a name is taken": (FAILED, status(observed(name_taken=("Service chat",)))),
    "a child is refused": (FAILED, status(observed(apply_errors=("quota",)))),
    "a pin is refused": (FAILED, status(observed(spec=spec(serving={"replicas": 2}, rollout={"pin": 7})))),
    "a swap fails": (FAILED, status(stuck_pod())),
    "an upgrade fails": (FAILED, UPGRADES["failed"]),
    "the first pod crashes": (FAILED, status(CRASHES)),
    "a start takes too long": (FAILED, status(later(NONE_READY), NOW + START_LIMIT + timedelta(seconds=1))),
    "the store's Secret is missing": (FAILED, status(observed(store=away("SecretMissing")))),
    "being deleted": (TERMINATING, deleting_status(BEFORE, GENERATION, "2 of 10 objects are deleted", NOW)),
}
"""Each state's verdict, and the status that the operator writes in it."""


def speculator(shown: Mapping[str, Any], generation: int = GENERATION) -> dict[str, Any]:
    """A speculator as the API server returns it."""
    metadata = {"namespace": "team", "name": "chat", "uid": "77", "generation": generation}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "status": dict(shown)}


def objects() -> Mapping[str, tuple[Verdict, dict[str, Any]]]:
    """Each state's verdict, and a speculator in that state."""
    made = {
        name: (verdict, speculator(shown.model_dump(mode="json", by_alias=True, exclude_none=True)))
        for name, (verdict, shown) in STATES.items()
    }
    made["being deleted"][1]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    (version,) = crd()["spec"]["versions"]
    created = speculator(version["schema"]["openAPIV3Schema"]["properties"]["status"].get("default", {}))
    changed = speculator(made["serving"][1]["status"], generation=GENERATION + 1)
    return made | {"just created": (PROGRESSING, created), "a new spec": (PROGRESSING, changed)}


def test_argo_cd_and_flux_tell_every_state_by_the_conditions(tmp_path: Path) -> None:
    (check,) = (
        text
        for block in page("docs/how-to/gitops.md").blocks("yaml")
        if (text := (yaml.safe_load(block).get("data") or {}).get(CHECK))
    )
    (tmp_path / "check.lua").write_text(check)
    states = objects()
    found = verdicts(tmp_path / "check.lua", [one for _, one in states.values()], tmp_path)
    assert dict(zip(states, found, strict=True)) == {name: verdict for name, (verdict, _) in states.items()}


@pytest.mark.parametrize("kind", [ConditionType.RECONCILING, ConditionType.STALLED, ConditionType.SERVING_READY])
def test_the_states_have_every_reason_by_which_the_tools_judge(kind: ConditionType) -> None:
    shown = [condition for _, one in STATES.values() for condition in one.conditions if condition.type is kind]
    assert set(remedies()[kind]) <= {condition.reason for condition in shown}
