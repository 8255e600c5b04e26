"""An observation is consistent, takes agents as they are, and leaves out the objects of other owners."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from aurora_operator.children.metadata import (
    COMMON_LABELS,
    INFERENCE,
    JOB_LABEL,
    TRAINER,
    VALIDATOR,
    keys_name,
    selector,
    trainer_name,
)
from aurora_operator.errors import KubernetesError
from aurora_operator.kubernetes_api import CHILDREN, Object
from aurora_operator.observe.observed import StoreView, WorkloadView
from aurora_operator.observe.observer import Observer, Snapshot
from aurora_protocol.agent_api import AgentState
from aurora_protocol.errors import AgentRefused, AgentUnreachable
from aurora_store.store_policy import StorePolicy
from tests.unit.operator.fake_api import UNAVAILABLE, FakeApi
from tests.unit.operator.worlds import MINIMAL, OWNER, agent

OURS = [{"uid": OWNER.uid, "controller": True}]
EVICTED = {"phase": "Failed", "reason": "Evicted"}
FAILED = {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": ""}]}
JOB = "chat-validate-v1-1"
LONG_AGO = "2026-01-01T00:00:00Z"


def obj(kind: str, name: str, owners: Any = OURS, component: str = INFERENCE, **body: Any) -> Object:
    labels = selector(OWNER, component) | COMMON_LABELS
    metadata = {"name": name, "namespace": OWNER.namespace, "labels": labels, "ownerReferences": owners}
    return {"kind": kind, "metadata": metadata, **body}


def of_replica_set(deployment: str, template_hash: str = "1a") -> list[Object]:
    """The owner references of a Deployment's pod."""
    name = f"{deployment}-{template_hash}"
    return [{"kind": "ReplicaSet", "name": name, "uid": f"uid of {name}", "controller": True}]


def pod(name: str, component: str = INFERENCE, owners: Any = None, created: str = LONG_AGO, **body: Any) -> Object:
    """A pod of the inference Deployment or of the trainer's."""
    deployment = trainer_name(OWNER) if component == TRAINER else OWNER.name
    made = obj("Pod", name, of_replica_set(deployment) if owners is None else owners, component, **body)
    made["metadata"] |= {"creationTimestamp": created}
    made["metadata"]["labels"] |= {"pod-template-hash": "1a"}
    return made


def running_pod(name: str = "chat-0", ip: str = "10.0.0.1") -> Object:
    conditions = [{"type": kind, "status": "True"} for kind in ("Ready", "PodScheduled")]
    return pod(name, status={"podIP": ip, "conditions": conditions})


def keys_secret(token: str, owners: Any = OURS) -> Object:
    return obj("Secret", keys_name(OWNER), owners, data={"agent-token": base64.b64encode(token.encode()).decode()})


@dataclass
class Agents:
    """Fake agents: the answer of each pod's agent by address, or the error that asking raises."""

    answers: dict[str, AgentState | Exception] = field(default_factory=dict)
    accepted_token: str = "t"  # noqa: S105
    asked: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0

    async def state(self, ip: str, token: str) -> AgentState:
        self.asked.append((ip, token))
        await asyncio.sleep(self.seconds)
        if token != self.accepted_token:
            raise AgentRefused("no", 401)
        answer = self.answers[ip]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Rig:
    """An observer of a fake API server, with a clock that a test moves."""

    def __init__(self, *objects: Object) -> None:
        self.api, self.agents, self.clock = FakeApi(), Agents({"10.0.0.1": agent("chat-0", 0)}), 1000.0
        metadata = {"uid": OWNER.uid, "namespace": OWNER.namespace, "name": OWNER.name}
        for one in ({"kind": "AuroraSpeculator", "metadata": metadata, "spec": MINIMAL}, *objects):
            self.api.put(one)
        agents: Any = self.agents
        self.observer = Observer(self.api, agents, StorePolicy(), OWNER.namespace, OWNER.name)
        self.observer._secrets._clock = lambda: self.clock
        readable: Any = SimpleNamespace(view=self._store_view)
        self.observer.store = readable

    async def _store_view(self, *_: Any) -> StoreView:
        self.api.calls.append("read the store")
        return StoreView()

    async def observe(self) -> Snapshot:
        return await self.observer.observe(await self.observer.speculator())

    async def trainer(self) -> WorkloadView:
        found = (await self.observe()).observed.trainer
        assert found is not None
        return found


async def test_pods_are_listed_after_the_workloads_and_the_store_is_read_last() -> None:
    """So a Job that has finished is seen with its pod's message and with its evidence."""
    rig = Rig(keys_secret("t"))
    await rig.observe()
    *lists, last = [call for call in rig.api.calls if not call.startswith("get")]
    assert (sorted(lists), lists[-1]) == (sorted(f"list {kind.kind}" for kind in CHILDREN), "list Pod")
    assert last == "read the store"
    rig.api.faults["list Pod"] = UNAVAILABLE
    with pytest.raises(KubernetesError):
        await rig.observe()


async def test_a_child_whose_event_was_lost_is_seen_by_the_next_observation() -> None:
    rig = Rig(obj("Service", "chat"))
    assert ("Service", "chat") in (await rig.observe()).live_children
    rig.api.remove("Service", "chat")
    rig.api.put(obj("ServiceAccount", "chat"))
    assert [*(await rig.observe()).live_children] == [("ServiceAccount", "chat")]


async def test_only_owned_objects_count_as_children() -> None:
    owners: dict[str, Any] = {"none": [], "ours": OURS, "user": [{"uid": OWNER.uid}]}
    owners["other"] = [{"uid": "another", "controller": True}]
    rig = Rig(*(obj("Service", name, owner) for name, owner in owners.items()))
    assert [*(await rig.observe()).live_children] == [("Service", "ours")]


async def test_a_pod_with_our_labels_that_no_workload_of_ours_controls_is_not_ours() -> None:
    """Such a pod would get the agents' token, be counted as a replica, and be asked to swap."""
    ours, of_user = of_replica_set("chat"), [reference | {"controller": False} for reference in of_replica_set("chat")]
    other = {
        "no owner": [],
        "the speculator itself": [OURS[0] | {"kind": "AuroraSpeculator", "name": OWNER.name}],
        "another ReplicaSet": of_replica_set("shop"),
        "another template": of_replica_set("chat", "2b"),
        "a StatefulSet": [ours[0] | {"kind": "StatefulSet"}],
        "a plain reference": of_user,
    }
    rig = Rig(running_pod(), keys_secret("t"), *(pod(name, owners=references) for name, references in other.items()))
    snapshot = await rig.observe()
    assert [view.name for view in snapshot.observed.pods] == ["chat-0"]
    assert [*snapshot.live_children] == [("Pod", "chat-0")]
    assert rig.agents.asked == [("10.0.0.1", "t")]
    rig.api.put(obj("Deployment", "chat", [{"uid": "a former speculator", "controller": True}]))
    assert (await rig.observe()).observed.pods == (), "its Deployment is not ours"


async def test_a_pod_that_the_kubelet_evicted_is_no_pod_of_the_speculator() -> None:
    """The Deployment has replaced such a pod, and nobody deletes the rest of it for a long time."""
    running = pod("chat-b", status={"phase": "Running"}, created="2026-01-01T00:01:00Z")
    observed = (await Rig(pod("chat-a", status=EVICTED), running).observe()).observed
    assert [view.name for view in observed.pods] == ["chat-b"]


def validator_pod(**status: Any) -> Object:
    of_job = [{"kind": "Job", "name": JOB, "uid": f"uid of {JOB}", "controller": True}]
    made = obj("Pod", f"{JOB}-x", of_job, VALIDATOR, status=status)
    made["metadata"]["labels"] |= {JOB_LABEL: JOB}
    return made


async def test_a_finished_job_shows_the_message_of_its_own_pod() -> None:
    """A speculator that was created again has a Job of the same name, and the former one's pod may still end."""
    ended = {"name": VALIDATOR, "state": {"terminated": {"message": "3 of 8 prompts"}}}
    own = validator_pod(phase="Failed", containerStatuses=[ended])
    rig = Rig(obj("Job", JOB, component=VALIDATOR, status=FAILED), own)
    (view,) = (await rig.observe()).observed.jobs
    assert view.message == "3 of 8 prompts"
    own["metadata"]["ownerReferences"][0]["uid"] = "uid of the former Job"
    rig.api.put(own)
    (view,) = (await rig.observe()).observed.jobs
    assert "3 of 8 prompts" not in view.message


@pytest.mark.parametrize("error", [AgentUnreachable("away"), AgentRefused("busy", 500)])
async def test_an_agent_that_does_not_answer_is_data(error: Exception) -> None:
    rig = Rig(running_pod(), running_pod("chat-1", "10.0.0.2"), keys_secret("t"))
    rig.agents.answers["10.0.0.2"] = error
    first, second = (await rig.observe()).observed.pods
    assert (first.agent, second.agent) == (agent("chat-0", 0), None)


async def test_an_answer_of_another_pod_that_has_the_address_by_now_does_not_count() -> None:
    rig = Rig(running_pod(), keys_secret("t"))
    assert [view.agent for view in (await rig.observe()).observed.pods] == [agent("chat-0", 0)]
    rig.agents.answers["10.0.0.1"] = agent("other-0", 3)
    assert [view.agent for view in (await rig.observe()).observed.pods] == [None]


async def test_slow_agents_are_asked_at_once() -> None:
    addresses = {f"chat-{number}": f"10.0.0.{number}" for number in range(20)}
    rig = Rig(*(running_pod(name, ip) for name, ip in addresses.items()), keys_secret("t"))
    rig.agents.answers = {ip: agent(name, 0) for name, ip in addresses.items()}
    rig.agents.seconds = 0.2
    async with asyncio.timeout(2):
        assert all(view.agent is not None for view in (await rig.observe()).observed.pods)


async def test_no_agent_is_asked_without_a_token_of_our_own() -> None:
    cases = ((), False), ((keys_secret("stolen", owners=[{"uid": "another"}]),), False), ((keys_secret(""),), True)
    for keys, exist in cases:  # a Secret of ours that lost its token is not made again, so serving must not wait for it
        rig = Rig(running_pod(), *keys)
        snapshot = await rig.observe()
        assert (snapshot.agent_token, snapshot.observed.keys_exist, rig.agents.asked) == ("", exist, [])


TRAINER_DEPLOYMENT = obj(
    "Deployment", trainer_name(OWNER), component=TRAINER, spec={"replicas": 1}, status={"replicas": 1}
)


async def test_a_trainers_pod_behind_a_scheduling_gate_says_so() -> None:
    gated = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
    gate = {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]}
    queued = pod("chat-trainer-a", TRAINER, status={"conditions": [gated]}, spec=gate)
    trainer = await Rig(TRAINER_DEPLOYMENT, queued).trainer()
    assert "SchedulingGated" in trainer.message


async def test_a_trainer_that_crashed_says_why_in_its_own_words() -> None:
    crashed: dict[str, Any] = {"name": "trainer", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    crashed["restartCount"] = 3
    crashed["lastState"] = {"terminated": {"exitCode": 1, "reason": "Error", "message": "the store has no version"}}
    failing = pod("chat-trainer-a", TRAINER, status={"containerStatuses": [crashed]})
    trainer = await Rig(TRAINER_DEPLOYMENT, failing).trainer()
    message = trainer.message
    assert trainer.restarts == 3
    assert all(part in message for part in ("CrashLoopBackOff", "exit code 1", "the store has no version"))
