"""An observation reads the cache, is consistent, and leaves out the objects of other owners."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from aurora_operator.children.metadata import (
    COMMON_LABELS,
    INFERENCE,
    INSTANCE_LABEL,
    JOB_LABEL,
    TRAINER,
    VALIDATOR,
    keys_name,
    selector,
    trainer_name,
)
from aurora_operator.errors import NotFound
from aurora_operator.kubernetes_api import WATCHED, Object, Resource
from aurora_operator.observe.cluster_cache import ClusterCache
from aurora_operator.observe.observed import ReplacedPod, StoreView
from aurora_operator.observe.observer import Observer
from aurora_operator.observe.secret_values import MAX_DELAY_SECONDS
from aurora_operator.observe.store.store_access import StoreAccess
from aurora_protocol.agent_api import AgentState
from aurora_protocol.errors import AgentRefused, AgentUnreachable
from aurora_store.policy.store_policy import StorePolicy
from tests.unit.operator.worlds import MINIMAL, NOW, OWNER, agent

OURS = [{"uid": OWNER.uid, "controller": True}]


def obj(kind: str, name: str, owners: Any = OURS, component: str = "inference", **body: Any) -> Object:
    labels = selector(OWNER, component) | COMMON_LABELS
    metadata = {"name": name, "namespace": OWNER.namespace, "uid": f"uid of {name}", "resourceVersion": "5"}
    return {"kind": kind, "metadata": metadata | {"labels": labels, "ownerReferences": owners}, **body}


def of_replica_set(deployment: str, template_hash: str = "1a") -> list[Object]:
    """The owner references of a Deployment's pod."""
    name = f"{deployment}-{template_hash}"
    return [{"kind": "ReplicaSet", "name": name, "uid": f"uid of {name}", "controller": True}]


def pod(name: str, component: str = INFERENCE, owners: Any = None, template_hash: str = "1a", **body: Any) -> Object:
    """A pod of the inference Deployment or of the trainer's."""
    deployment = trainer_name(OWNER) if component == TRAINER else OWNER.name
    made = obj("Pod", name, of_replica_set(deployment) if owners is None else owners, component, **body)
    made["metadata"]["labels"] |= {"pod-template-hash": template_hash}
    return made


def speculator(generation: int = 1, **metadata: Any) -> Object:
    made = obj("AuroraSpeculator", OWNER.name, spec=MINIMAL, status={})
    made["metadata"] |= {"uid": OWNER.uid, "generation": generation, "resourceVersion": str(generation)} | metadata
    return made


def keys_secret(token: str, revision: str = "1", owners: Any = OURS) -> Object:
    secret = obj("Secret", keys_name(OWNER), owners, data={"agent-token": base64.b64encode(token.encode()).decode()})
    secret["metadata"]["resourceVersion"] = revision
    return secret


@dataclass
class CountingApi:
    """Fake API server that counts the calls."""

    secret: Object | None = None
    others: dict[str, Object] = field(default_factory=dict)
    """Secrets by name."""
    pods: list[Object] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        self.calls.append(f"get {resource.kind} {name}")
        if resource.kind == "Secret" and name == keys_name(OWNER) and self.secret is not None:
            return self.secret
        if resource.kind == "Secret" and name in self.others:
            return self.others[name]
        raise NotFound(name, 404)

    def list(self, resource: Resource, namespace: str, labels: str) -> list[Object]:
        self.calls.append(f"list {resource.kind} {labels}")
        return self.pods


@dataclass
class Agents:
    """Fake agents: the answer of each pod's agent by address, or the error that asking raises."""

    answers: dict[str, AgentState | Exception] = field(default_factory=dict)
    accepted_token: str | None = None
    """None: any."""
    asked: list[tuple[str, str]] = field(default_factory=list)

    async def state(self, ip: str, token: str) -> AgentState:
        self.asked.append((ip, token))
        if self.accepted_token not in (None, token):
            raise AgentRefused("no", 401)
        answer = self.answers[ip]
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass
class ReadableStore:
    """Fake store that can always be read, and does nothing."""

    reader: None = None

    async def view(self, *_: Any) -> StoreView:
        return StoreView()


class Rig:
    """An observer over a cache that a test fills."""

    def __init__(self, *objects: Object, api: CountingApi | None = None, agents: Agents | None = None) -> None:
        self.cache = ClusterCache(resource.kind for resource in WATCHED)
        self.api, self.agents = api or CountingApi(), agents or Agents()
        for one in (speculator(), *objects):
            self.cache.put(one)
        agent_client: Any = self.agents
        fake_api: Any = self.api
        self.observer = Observer(fake_api, self.cache, agent_client, StorePolicy(), OWNER.namespace, OWNER.name)
        self.observer.store = cast(Any, ReadableStore())


async def test_a_pod_that_the_kubelet_evicted_or_refused_is_no_pod_of_the_speculator() -> None:
    """The Deployment has replaced such a pod, and nobody deletes the rest of it for a long time."""
    evicted = pod("chat-a", status={"phase": "Failed", "reason": "Evicted"})
    evicted["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    running = pod("chat-b", status={"phase": "Running"})
    running["metadata"]["creationTimestamp"] = "2026-01-01T00:01:00Z"
    trainer = pod("chat-trainer-a", TRAINER, status={"phase": "Failed", "reason": "Evicted"})
    trainer["metadata"]["creationTimestamp"] = "2026-01-01T00:02:00Z"
    observed = (await Rig(evicted, running, trainer).observer.observe()).observed
    assert [pod.name for pod in observed.pods] == ["chat-b"]
    assert observed.replaced_pod == ReplacedPod("chat-a", NOW, "Evicted")


async def test_a_speculator_at_rest_costs_no_api_call() -> None:
    rig = Rig(api=CountingApi(secret=keys_secret("t")))
    await rig.observer.observe()
    assert rig.api.calls == [f"get Secret {keys_name(OWNER)}"], "the Secret is read once"
    for _ in range(5):
        await rig.observer.observe()
    assert len(rig.api.calls) == 1


async def test_a_deleted_speculator_is_not_found() -> None:
    rig = Rig()
    rig.cache.put(speculator(2, deletionTimestamp="2026-11-26T00:00:00Z"))
    with pytest.raises(NotFound):
        await rig.observer.observe()


async def test_only_owned_objects_count_as_children() -> None:
    others = {"other": [{"uid": "another", "controller": True}], "user": [{"uid": OWNER.uid}]}
    owners: dict[str, Any] = {"none": [], "ours": OURS} | others
    rig = Rig(*(obj("Service", name, owner) for name, owner in owners.items()))
    live = (await rig.observer.observe()).live_children
    assert {name for kind, name in live if kind == "Service"} == {"ours"}


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
    strangers = [pod(name, owners=references) for name, references in other.items()]
    agents = Agents({"10.0.0.1": agent("chat-0", 0)})
    rig = Rig(running_pod(), *strangers, api=CountingApi(secret=keys_secret("t")), agents=agents)
    snapshot = await rig.observer.observe()
    assert [view.name for view in snapshot.observed.pods] == ["chat-0"]
    assert [name for kind, name in snapshot.live_children if kind == "Pod"] == ["chat-0"]
    rig.cache.put(obj("Deployment", "chat", [{"uid": "a former speculator", "controller": True}]))
    assert (await rig.observer.observe()).observed.pods == (), "its Deployment is not ours"


async def test_a_validators_pod_belongs_to_the_job_of_its_uid() -> None:
    """A speculator that was created again has a Job of the same name, and the former one's pod may still end."""
    job = obj("Job", "chat-validate-v1-1", component=VALIDATOR, status=FAILED)
    former = validator_pod(**ENDED)
    former["metadata"]["ownerReferences"][0]["uid"] = "uid of the former Job"
    (view,) = (await Rig(job, former).observer.observe()).observed.jobs
    assert "3 of 8 prompts" not in view.message


async def test_the_token_of_a_foreign_secret_is_not_used() -> None:
    api = CountingApi(secret=keys_secret("stolen", owners=[{"uid": "another"}]))
    snapshot = await Rig(api=api).observer.observe()
    assert snapshot.agent_token == ""
    assert not snapshot.observed.keys_exist


FAILED = {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": ""}]}
ENDED = {
    "phase": "Failed",
    "containerStatuses": [{"name": VALIDATOR, "state": {"terminated": {"message": "3 of 8 prompts"}}}],
}


def validator_pod(**status: Any) -> Object:
    name = "chat-validate-v1-1"
    of_job = [{"kind": "Job", "name": name, "uid": f"uid of {name}", "controller": True}]
    made = obj("Pod", f"{name}-x", of_job, VALIDATOR, status=status)
    made["metadata"]["labels"] |= {JOB_LABEL: name}
    return made


async def test_a_finished_job_is_observed_with_its_message_although_its_pods_watch_is_behind() -> None:
    job = obj("Job", "chat-validate-v1-1", component=VALIDATOR, status=FAILED)
    ended = validator_pod(**ENDED)
    ended["metadata"]["resourceVersion"] = "6"
    rig = Rig(job, validator_pod(phase="Running"), api=CountingApi(pods=[ended]))
    (view,) = (await rig.observer.observe()).observed.jobs
    assert view.message == "3 of 8 prompts"
    reads = [call for call in rig.api.calls if call.startswith("list")]
    assert reads == [f"list Pod {JOB_LABEL}=chat-validate-v1-1"]
    (view,) = (await rig.observer.observe()).observed.jobs
    assert view.message == "3 of 8 prompts"
    assert [call for call in rig.api.calls if call.startswith("list")] == reads, "read once per Job"


async def test_a_finished_job_whose_pod_is_gone_is_looked_up_once() -> None:
    rig = Rig(obj("Job", "chat-validate-v1-1", component=VALIDATOR, status=FAILED))
    for _ in range(3):
        await rig.observer.observe()
    assert sum(call.startswith("list") for call in rig.api.calls) == 1


async def test_a_finished_job_whose_pods_end_is_known_costs_no_call() -> None:
    rig = Rig(obj("Job", "chat-validate-v1-1", component=VALIDATOR, status=FAILED), validator_pod(**ENDED))
    (view,) = (await rig.observer.observe()).observed.jobs
    assert view.message == "3 of 8 prompts"
    assert not any(call.startswith("list") for call in rig.api.calls)


async def test_a_job_whose_pod_hangs_on_a_lost_node_has_failed() -> None:
    pod = validator_pod(phase="Running")
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    rig = Rig(obj("Job", "chat-validate-v1-1", component=VALIDATOR), pod)
    (view,) = (await rig.observer.observe()).observed.jobs
    assert view.failed
    assert not any(call.startswith("list") for call in rig.api.calls)


def running_pod() -> Object:
    conditions = [{"type": kind, "status": "True"} for kind in ("Ready", "PodScheduled")]
    return pod("chat-0", status={"podIP": "10.0.0.1", "conditions": conditions})


async def test_a_refused_token_is_read_again_and_the_new_one_is_used() -> None:
    agents = Agents({"10.0.0.1": agent("chat-0", 0)}, accepted_token="new")  # noqa: S106
    rig = Rig(running_pod(), api=CountingApi(secret=keys_secret("old")), agents=agents)
    clock = 1000.0
    rig.observer._secrets._clock = lambda: clock
    await rig.observer.observe()
    rig.api.secret = keys_secret("new", "2")
    await rig.observer.observe()
    assert len(rig.api.calls) == 1, "the first read was a moment ago"
    clock += 2.1
    await rig.observer.observe()
    assert agents.asked[-1] == ("10.0.0.1", "new")
    for _ in range(3):
        clock += 100
        await rig.observer.observe()
    assert len(rig.api.calls) == 2, "a token that works is not read again"


async def test_a_changed_spec_reads_the_secrets_again() -> None:
    rig = Rig(api=CountingApi(secret=keys_secret("t")))
    await rig.observer.observe()
    rig.cache.put(speculator(2))
    await rig.observer.observe()
    assert len(rig.api.calls) == 2


async def test_a_secret_that_the_last_observation_did_not_read_is_not_due() -> None:
    """The Secret with the store's keys goes missing after it was doubted."""
    clock = 1000.0
    store_keys = {name: base64.b64encode(b"key").decode() for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    rig = Rig(api=CountingApi(secret=keys_secret("t")))
    rig.observer.store = StoreAccess(rig.observer._secrets, StorePolicy())
    rig.api.others = {"s3": obj("Secret", "s3", data=store_keys)}
    rig.observer._secrets._clock = lambda: clock
    assert (await rig.observer.observe()).observed.store.reason == "SigningKeysMissing"
    rig.observer._secrets.doubt("s3")
    del rig.api.others["s3"]
    waits = list[float]()
    for _ in range(20):
        clock += 100
        assert (await rig.observer.observe()).observed.store.reason == "SecretMissing"
        waits.append(rig.observer.seconds_until_due)
    assert waits[-5:] == [MAX_DELAY_SECONDS] * 5


async def test_agents_are_asked_only_when_the_caller_wants_it() -> None:
    agents = Agents({"10.0.0.1": agent("chat-0", 3)})
    rig = Rig(running_pod(), api=CountingApi(secret=keys_secret("t")), agents=agents)
    first = (await rig.observer.observe()).observed
    again = (await rig.observer.observe(ask_agents=False)).observed
    assert len(agents.asked) == 1
    assert again.pods == first.pods
    assert again.recent_counters == first.recent_counters
    agents.answers["10.0.0.1"] = AgentUnreachable("away")
    (view,) = (await rig.observer.observe()).observed.pods
    assert view.agent is None


async def test_a_slow_agent_does_not_delay_the_others() -> None:
    class SlowAgents(Agents):
        async def state(self, ip: str, token: str) -> AgentState:
            await asyncio.sleep(0.2)
            return await super().state(ip, token)

    pods = []
    for number in range(20):
        made = running_pod()
        made["metadata"] |= {"name": f"chat-{number}", "uid": f"uid {number}"}
        pods.append(made)
    rig = Rig(*pods, api=CountingApi(secret=keys_secret("t")), agents=SlowAgents({"10.0.0.1": agent("chat-0", 0)}))
    async with asyncio.timeout(2):
        observed = (await rig.observer.observe()).observed
    assert all(pod.agent is not None for pod in observed.pods)


async def test_a_refresh_makes_up_for_a_cache_that_is_behind() -> None:
    class Ahead(CountingApi):
        def get(self, resource: Resource, namespace: str, name: str) -> Object:
            self.calls.append(f"get {resource.kind}")
            return speculator(7)

    rig = Rig(api=Ahead())
    await rig.observer.refresh()
    stored = rig.cache.get("AuroraSpeculator", OWNER.namespace, OWNER.name)
    assert stored is not None
    assert stored["metadata"]["generation"] == 7


def test_the_instance_label_names_the_speculator() -> None:
    assert obj("Pod", "p")["metadata"]["labels"][INSTANCE_LABEL] == OWNER.name


async def test_a_trainers_pod_behind_a_scheduling_gate_is_queued() -> None:
    workload = obj("Deployment", trainer_name(OWNER), component=TRAINER, spec={"replicas": 1}, status={"replicas": 1})
    workload["metadata"]["generation"] = 1
    gated = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
    gate = {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]}
    queued = pod("chat-trainer-a", TRAINER, status={"conditions": [gated]}, spec=gate)
    trainer = (await Rig(workload, queued).observer.observe()).observed.trainer
    assert trainer is not None
    assert trainer.queued_behind == ("kueue.x-k8s.io/admission",)
    assert trainer.message == "the trainer's pod is not ready (SchedulingGated)"


async def test_a_trainers_pod_that_hangs_on_a_lost_node_is_seen_although_another_one_runs() -> None:
    workload = obj("Deployment", trainer_name(OWNER), component=TRAINER, spec={"replicas": 1}, status={"replicas": 1})
    workload["metadata"]["generation"] = 1
    runs, hangs = (pod(f"chat-trainer-{name}", TRAINER, status={"phase": "Running"}) for name in "ab")
    hangs["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    for pods, hung in (([runs, hangs], True), ([runs], False)):
        trainer = (await Rig(workload, *pods).observer.observe()).observed.trainer
        assert trainer is not None
        assert trainer.has_hung_pod is hung


async def test_a_trainer_that_crashed_says_why_in_its_own_words() -> None:
    workload = obj("Deployment", trainer_name(OWNER), component=TRAINER, spec={"replicas": 1}, status={"replicas": 1})
    workload["metadata"]["generation"] = 1
    crashed = {"name": "trainer", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    crashed["lastState"] = {"terminated": {"exitCode": 1, "reason": "Error", "message": "the store has no version"}}
    failing = pod("chat-trainer-a", TRAINER, status={"containerStatuses": [crashed]})
    trainer = (await Rig(workload, failing).observer.observe()).observed.trainer
    assert trainer is not None
    assert "CrashLoopBackOff: trainer ended with exit code 1: the store has no version" in trainer.message
