"""States that last for days cost the API server and the store next to nothing, whatever they wait for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from aurora_operator.children.metadata import ATTEMPT_LABEL, COMMON_LABELS, VALIDATOR, VERSION_LABEL, selector
from aurora_operator.errors import KubernetesError
from aurora_operator.kubernetes_api import Object
from aurora_protocol.draft_records import RootOwner
from aurora_protocol.training_records import TrainerPhase
from aurora_store.keys import Keys
from tests.unit.operator.rest_rig import OURS, RestRig, foreign
from tests.unit.operator.worlds import NOW, OWNER, channel, evidence

SETTLED_SECONDS = 3600
COUNTED_MINUTES = 40
FORBIDDEN = KubernetesError("secrets is forbidden", 403)
REFUSED = KubernetesError("denied by a webhook", 422)
TEMPLATE: Object = {"metadata": {"labels": {"team": "search"}}}
CRASH_LOOPS: Object = {
    "phase": "Running",
    "podIP": "10.9.9.9",
    "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}],
    "containerStatuses": [
        {
            "name": "engine",
            "restartCount": 9,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
        }
    ],
}
NO_NODE: Object = {
    "phase": "Pending",
    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU"}],
}


def nothing(_: RestRig) -> None:
    """The speculator is at rest already."""


def version_1(rig: RestRig) -> None:
    rig.register(1)


def rejected(rig: RestRig) -> None:
    rig.register(1)
    rig.annotate(abort="1")


def pinned(rig: RestRig) -> None:
    rig.change_spec(rollout={"pin": 0})
    rig.register(1)


def job_refused(rig: RestRig) -> None:
    """Each attempt fails, and the next one waits for half an hour."""
    rig.job(status={"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]})
    for attempt in range(2, 99):
        rig.cluster.refused["Job", f"chat-validate-v1-{attempt}"] = REFUSED


def crash_loop(rig: RestRig) -> None:
    rig.add_pod("chat-0", CRASH_LOOPS)


def template_refused(rig: RestRig) -> None:
    rig.cluster.refused["Deployment", "chat"] = REFUSED
    rig.change_spec(serving={"replicas": 2, "template": TEMPLATE})


def name_taken(rig: RestRig) -> None:
    rig.cluster.remove("Service", "chat")
    rig.cluster.put(foreign("Service", "chat"))


def secret_forbidden(rig: RestRig) -> None:
    rig.cluster.refused["Secret", "s3"] = FORBIDDEN
    rig.change_spec(training={"suspended": False})


def records_lost(rig: RestRig) -> None:
    rig.bucket.data = {key: data for key, data in rig.bucket.data.items() if key.startswith(Keys.LINEAGE)}


def invalid_record(rig: RestRig) -> None:
    with rig.uncounted():
        rig.bucket.put(Keys.channel(2), b"{}")


def not_create_once(rig: RestRig) -> None:
    rig.bucket.keeps_create_once = False
    rig.change_spec(store=rig.spec["store"] | {"endpoint": "https://another"})


def learns(rig: RestRig) -> None:
    rig.train(phase=TrainerPhase.TRAINING, step=7)


def suspended(rig: RestRig) -> None:
    rig.change_spec(serving={"replicas": 0}, training={"suspended": True})
    for name in ("chat-0", "chat-1"):
        rig.cluster.remove("Pod", name)


def passed(rig: RestRig) -> None:
    rig.register(1)
    rig.pass_measurement(evidence(1))


def pause(rig: RestRig) -> None:
    rig.change_spec(rollout={"paused": True})


def queued(rig: RestRig) -> None:
    rig.job(spec={"suspend": True})


def pending(rig: RestRig) -> None:
    rig.add_job_pod(NO_NODE)


def ended_in_a_paused_roll(rig: RestRig) -> None:
    """The Job of version 2 ends without evidence while the roll of version 1 is paused."""
    candidate = {"version": 2, "phase": "Validating", "attempt": 1, "job": "j", "since": "2026-01-01T00:00:00Z"}
    rig.register(2)
    rig.set_status(candidate=candidate)
    labels = selector(OWNER, VALIDATOR) | COMMON_LABELS | {VERSION_LABEL: "2", ATTEMPT_LABEL: "1"}
    metadata = {"name": "j", "namespace": OWNER.namespace, "labels": labels, "ownerReferences": OURS}
    ended = {"conditions": [{"type": "Complete", "status": "True"}]}
    rig.cluster.put({"kind": "Job", "metadata": metadata, "spec": {}, "status": ended})


def taken_over(rig: RestRig) -> None:
    thief = RootOwner(id="99999999", namespace="x", name="y", since=NOW)
    with rig.uncounted():
        rig.bucket.put(Keys.channel(2), channel(0, epoch=2).model_copy(update={"owner": thief}).to_json())


def learns_and_waits(rig: RestRig) -> None:
    """Light traffic lets the trainer change its phase between any two looks."""
    waits = rig.clock.seconds % 2 < 1
    rig.train(phase=TrainerPhase.WAITING_FOR_TRACES if waits else TrainerPhase.TRAINING)


def heartbeat(rig: RestRig) -> None:
    rig.train()


def heartbeat_without_prompts(rig: RestRig) -> None:
    rig.train(held_out_requests=0)


@dataclass(frozen=True)
class State:
    """How a speculator comes into a state that lasts, and what a minute of it may cost."""

    reason: tuple[str, str]
    """A condition and the reason that it has in this state."""
    begin: Sequence[Callable[[RestRig], None]] = ()
    """The changes that lead to the state, with time between them."""
    each: Callable[[RestRig], None] = heartbeat
    """What goes on before each look."""
    api: float = 0.0
    store: float = 4.0
    looks: float = 2.0


AT_REST = ("TrainerReady", "WaitingForTraces")
STATES = {
    "waiting trainer": State(AT_REST),
    "silent trainer": State(("TrainerReady", "Silent"), each=nothing),
    "trainer that ended while it learnt": State(("TrainerReady", "Silent"), [learns], nothing),
    "rejected version": State(("CandidateValidated", "Rejected"), [rejected]),
    "pinned with a newer version": State(AT_REST, [pinned]),
    "candidate without prompts": State(("CandidateValidated", "Validating"), [version_1], heartbeat_without_prompts),
    "queued Job": State(("CandidateValidated", "MeasurementSuspended"), [version_1, queued]),
    "Job without a node": State(("CandidateValidated", "Validating"), [version_1, pending], api=0.2),
    "failed candidate": State(("CandidateValidated", "Failed"), [version_1, job_refused], api=0.2),
    "canary without traffic": State(("RolloutProgressing", "Canary"), [passed], looks=5),
    "paused roll": State(("RolloutProgressing", "Paused"), [passed, pause], looks=5),
    "Job that ended in a paused roll": State(
        ("RolloutProgressing", "Paused"), [passed, pause, ended_in_a_paused_roll], looks=5
    ),
    "crash loop": State(("ServingReady", "PodsNotReady"), [crash_loop], api=0.3),
    "template refused": State(("Degraded", "ApplyRefused"), [template_refused], api=0.3),
    "name taken": State(("NameTaken", "NameTaken"), [name_taken], api=2.1),
    "Secret forbidden": State(("StorageReady", "SecretForbidden"), [secret_forbidden], api=1.1, looks=5),
    "records lost": State(("StorageReady", "RecordsLost"), [records_lost], nothing),
    "invalid record": State(("StorageReady", "InvalidRecord"), [invalid_record], looks=5),
    "not create-once": State(("StorageReady", "ConditionalWritesUnsupported"), [not_create_once], looks=5),
    "root of another speculator": State(("StorageReady", "TakenOver"), [taken_over], nothing),
    "suspended": State(("TrainerReady", "Suspended"), [suspended]),
}


@pytest.mark.parametrize("name", STATES)
async def test_a_state_that_lasts_costs_next_to_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    state, rig = STATES[name], RestRig(monkeypatch)

    def each() -> None:
        state.each(rig)

    for change in (nothing, *state.begin):
        change(rig)
        await rig.run(600, each)
    await rig.run(SETTLED_SECONDS, each)
    cost = await rig.cost(COUNTED_MINUTES, each)
    condition, reason = state.reason
    assert rig.reason(condition) == reason, rig.status["conditions"]
    assert cost.api_calls <= state.api, cost
    assert cost.store_requests <= state.store, cost
    assert cost.looks <= state.looks, cost


async def test_a_trainer_that_changes_its_phase_makes_no_look_and_no_write_frequent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Job waits for a GPU for days, while light traffic trains."""
    rig = RestRig(monkeypatch)
    await rig.run(600, lambda: heartbeat(rig))
    version_1(rig)
    await rig.run(600, lambda: heartbeat(rig))
    pending(rig)
    await rig.run(SETTLED_SECONDS, lambda: learns_and_waits(rig))
    cost = await rig.cost(COUNTED_MINUTES, lambda: learns_and_waits(rig))
    assert cost.looks <= 6, cost
    assert cost.api_calls <= 2.1, "the figures, every 30 s"
