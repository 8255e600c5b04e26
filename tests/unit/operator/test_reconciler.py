"""A spec that does not parse becomes a condition, and the children stay as they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.fleet import Fleet
from aurora_operator.kubernetes_api import Object, Resource
from aurora_operator.observe.stored_resource import parse
from aurora_operator.plan.condition_builder import invalid_spec_status
from aurora_operator.reconciler import IDLE_POLL_SECONDS, Reconciler
from tests.unit.operator.worlds import CONFIG, MINIMAL, NOW, OWNER, observed, status

READY = Condition(type=ConditionType.READY, status=ConditionStatus.TRUE, reason="Serving", last_transition_time=NOW)
SERVING = READY.model_copy(update={"type": ConditionType.SERVING_READY})


@dataclass
class FakeApi:
    """An API server with one speculator and nothing else. Records what is applied."""

    spec: dict[str, Any]
    status: dict[str, Any]
    applied: list[Object] = field(default_factory=list)
    created: list[Object] = field(default_factory=list)

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        metadata = {
            "namespace": OWNER.namespace,
            "name": OWNER.name,
            "uid": OWNER.uid,
            "generation": 2,
            "resourceVersion": "77",
        }
        return {"metadata": metadata, "spec": self.spec, "status": self.status}

    def apply(self, obj: Object, *, subresource: str = "") -> Object:
        assert subresource == "status", "no child is applied"
        self.applied.append(obj)
        self.status = obj["status"]
        return obj

    def create(self, obj: Object) -> Object:
        assert obj["kind"] == "Event", "no child is created"
        self.created.append(obj)
        return obj


def reconciler_of(api: FakeApi) -> Reconciler:
    return Reconciler(api, None, CONFIG, Fleet(), OWNER.namespace, OWNER.name)  # type: ignore[arg-type]


def conditions(api: FakeApi) -> dict[str, Condition]:
    return {c.type: c for c in SpeculatorStatus.model_validate(api.status).conditions}


async def test_an_invalid_spec_is_written_to_the_conditions_once() -> None:
    before = SpeculatorStatus(conditions=[READY, SERVING], updated="2/2")
    api = FakeApi(MINIMAL | {"target": {"model": 7}}, before.model_dump(mode="json", by_alias=True))
    reconciler = reconciler_of(api)
    assert await reconciler.reconcile() == IDLE_POLL_SECONDS
    invalid = conditions(api)[ConditionType.INVALID_SPEC]
    assert (invalid.status, invalid.reason) == (ConditionStatus.TRUE, "InvalidSpec")
    assert "target.model" in invalid.message
    assert invalid.observed_generation == 2
    assert conditions(api)[ConditionType.READY].status is ConditionStatus.FALSE
    assert conditions(api)[ConditionType.SERVING_READY] == SERVING, "the pods serve as before"
    assert api.status["updated"] == "2/2"
    assert api.applied[0]["metadata"]["resourceVersion"] == "77"
    assert await reconciler.reconcile() == IDLE_POLL_SECONDS
    assert len(api.applied) == 1, "an unchanged fault is not written again"
    (event,) = api.created
    assert (event["reason"], event["type"]) == ("InvalidSpec", "Warning")
    assert "target.model" in event["message"]


def test_a_status_that_does_not_parse_counts_as_empty() -> None:
    stored = FakeApi(MINIMAL, {"replicas": "many"}).get(Resource("", "", ""), "", "")
    _, _, parsed = parse(stored)
    assert parsed == SpeculatorStatus()


def test_the_condition_is_cleared_once_the_spec_parses() -> None:
    broken = invalid_spec_status(SpeculatorStatus(), 1, "capture.sampleRatio: not a ratio", NOW)
    corrected = {c.type: c.status for c in status(observed(status=broken)).conditions}
    assert corrected[ConditionType.INVALID_SPEC] is ConditionStatus.FALSE
    assert corrected[ConditionType.READY] is ConditionStatus.TRUE
