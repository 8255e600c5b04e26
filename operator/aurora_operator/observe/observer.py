"""Observes one speculator: custom resource and children from the cache, agents, and the store.

Invariants:

- An observation of a speculator at rest costs no API call. Secrets are read by name once.
- A finished Job is observed together with its pod's termination message and with its evidence. Jobs and pods come by
  separate watches, and a Job's end may arrive before its pod's. The pod is then read from the API server, which stored
  the pod's end first. The store is read last, because a validator writes its evidence before it ends.
- Only a failure of the API server ends an observation early.
- The observer may lose everything that it keeps between observations (connections, Secrets, cached create-once records,
  the recent counters) without changing a decision about a version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice

from aurora_operator import kubernetes_api
from aurora_operator.children.metadata import (
    INFERENCE,
    JOB_LABEL,
    TRAINER,
    VALIDATOR,
    component_of,
    has_finalizer,
    keys_name,
    trainer_name,
)
from aurora_operator.children.own_pods import is_own_pod
from aurora_operator.children.owner import Owner
from aurora_operator.errors import BeingDeleted, NotFound
from aurora_operator.io_pools import call_api
from aurora_operator.kubernetes_api import KubernetesApi, Object
from aurora_operator.observe import kubernetes_views
from aurora_operator.observe.agent_states import AgentStates
from aurora_operator.observe.annotations import user_requests
from aurora_operator.observe.cluster_cache import ClusterCache
from aurora_operator.observe.observed import JobView, Observed, PodView, ReplacedPod, WorkloadView
from aurora_operator.observe.recent_counters import CounterHistory
from aurora_operator.observe.replaced_pod import replaced_pod
from aurora_operator.observe.secret_values import SecretReader, secret_value
from aurora_operator.observe.snapshot import Snapshot
from aurora_operator.observe.store.store_access import StoreAccess
from aurora_operator.observe.store.store_needs import store_needs
from aurora_operator.observe.stored_objects import PackedObjects, pack, unpack
from aurora_operator.observe.stored_resource import parse_usable
from aurora_protocol.agent_client import AgentClient
from aurora_protocol.pod_settings import AGENT_TOKEN
from aurora_store.policy.store_policy import StorePolicy

MAX_PODS_OF_A_JOB = 100
"""A Job has one pod at a time. Others may have given its label to their pods."""


@dataclass(frozen=True)
class _Children:
    """The children at one moment, unpacked no longer than it takes to read them."""

    packed: PackedObjects
    """Only children that this speculator owns, and the pods of its workloads."""
    pods: Sequence[PodView]
    replaced_pod: ReplacedPod | None
    jobs: tuple[JobView, ...]
    trainer: WorkloadView | None


class Observer:
    """Observes one speculator repeatedly."""

    def __init__(
        self,
        api: KubernetesApi,
        cache: ClusterCache,
        agents: AgentClient,
        stores: StorePolicy,
        namespace: str,
        name: str,
    ) -> None:
        self._api, self._cache = api, cache
        self.namespace, self.name = namespace, name
        self._secrets = SecretReader(api, namespace)
        self.store = StoreAccess(self._secrets, stores)
        self._agents = AgentStates(agents)
        self._counter_history = CounterHistory()
        self._generation = 0
        self._read_jobs = frozenset[str]()
        """Finished Jobs, by uid, whose pods were read from the API server."""

    @property
    def seconds_until_due(self) -> float:
        """Seconds until there is something to read again. Infinite while nothing is expected."""
        return min(self._secrets.seconds_until_next_read, self.store.seconds_until_due())

    async def observe(self, *, ask_agents: bool = True) -> Snapshot:
        """Observe once.

        Args:
            ask_agents: False: take the agents' last answers. The caller knows that no pod changed since.

        Raises :class:`NotFound`, :class:`BeingDeleted`, :class:`InvalidSpec` and :class:`KubernetesError`.
        """
        stored = self._cache.get(kubernetes_api.SPECULATOR.kind, self.namespace, self.name)
        if stored is None:
            raise NotFound(f"{self.namespace}/{self.name} is gone", 404)
        if "deletionTimestamp" in stored["metadata"]:
            raise BeingDeleted(stored)
        owner, spec, status, fault = parse_usable(stored)
        self._trust_no_secret_of_another_spec(owner)
        children = await self._children(owner)
        token = await self._agent_token(owner)
        pods = await self._agents.of(children.pods, token, ask=ask_agents)
        requests = user_requests(stored)
        store = await self.store.view(owner, spec, store_needs(owner, spec, status, children.jobs, requests))
        self._secrets.drop_unasked()
        self._doubt_secrets(owner, pods, children.jobs, token)
        history, live = self._counter_history, children.packed
        deployment = live.get(("Deployment", owner.name))
        observed = Observed(
            owner=owner,
            spec=spec,
            status=status,
            pods=pods,
            replaced_pod=children.replaced_pod,
            jobs=children.jobs,
            deployment=kubernetes_views.workload_view(deployment),
            deployed=kubernetes_views.deployed_template(deployment),
            trainer=children.trainer,
            store=store,
            keys_exist=bool(token),
            disruptions_allowed=kubernetes_views.disruptions_allowed(live.get(("PodDisruptionBudget", owner.name))),
            recent_counters=history.update(pods, datetime.now(UTC)) if ask_agents else history.oldest(),
            user_requests=requests,
            has_finalizer=has_finalizer(stored),
            spec_fault=fault,
        )
        return Snapshot(observed, live, token)

    async def refresh(self) -> None:
        """Read the custom resource from the API server, because the cache turned out to be behind.

        Raises :class:`KubernetesError`.
        """
        speculator = kubernetes_api.SPECULATOR
        check = self._cache.compare(speculator.kind, self.namespace, self.name)
        answer = await call_api(self._api.get, speculator, self.namespace, self.name)
        check(answer)
        self._cache.put(answer)

    def _trust_no_secret_of_another_spec(self, owner: Owner) -> None:
        """A changed spec may name other Secrets, and a user who corrects a Secret often touches the spec as well."""
        if owner.generation != self._generation:
            self._secrets.forget()
            self._generation = owner.generation

    async def _children(self, owner: Owner) -> _Children:
        """The objects with our labels, except those that belong to somebody else."""
        packed = self._cache.children(owner.namespace, owner.name)
        labelled = dict(packed.items())
        live = {key: obj for key, obj in labelled.items() if _is_ours(owner, obj, labelled)}
        pods = [obj for obj in live.values() if obj["kind"] == "Pod"]
        jobs = [obj for obj in live.values() if obj["kind"] == "Job"]
        late = [pod for pod in await self._pods_of_finished_jobs(owner, jobs, pods) if is_own_pod(owner, pod, live)]
        now = datetime.now(UTC)
        pods = [*{pod["metadata"]["name"]: pod for pod in (*pods, *late)}.values()]
        inference = [pod for pod in pods if component_of(pod) == INFERENCE]
        return _Children(
            packed.restricted(live.keys()),
            _inference_pods(inference),
            replaced_pod(inference),
            _jobs(jobs, pods, now),
            _trainer(owner, live, now),
        )

    async def _pods_of_finished_jobs(
        self, owner: Owner, jobs: Sequence[Object], pods: Sequence[Object]
    ) -> Sequence[Object]:
        """The pods of Jobs that have finished while the cache does not know their pods' end yet. Read once per Job."""
        finished = {job["metadata"]["uid"] for job in jobs if kubernetes_views.job_view(job).finished}
        self._read_jobs &= finished
        found: list[Object] = []
        for job in jobs:
            uid = job["metadata"]["uid"]
            if uid not in finished - self._read_jobs or kubernetes_views.ended_pod(job, pods):
                continue
            labels = f"{JOB_LABEL}={job['metadata']['name']}"
            listed = await call_api(self._list_pods, labels)
            for pod in listed:
                self._cache.put(pod)
            found += listed
            self._read_jobs |= {uid}
        return found

    def _list_pods(self, labels: str) -> Sequence[Object]:
        """The pods with these labels, as the cache would hold them. Blocks."""
        listed = self._api.list(kubernetes_api.POD, self.namespace, labels)
        return [unpack(pack(pod)) for pod in islice(listed, MAX_PODS_OF_A_JOB)]

    async def _agent_token(self, owner: Owner) -> str:
        name = keys_name(owner)
        secret = await self._secrets.find(name)
        if secret is not None and not owner.owns(secret):
            self._secrets.doubt(name)
            return ""
        return "" if secret is None else secret_value(secret, AGENT_TOKEN)

    def _doubt_secrets(self, owner: Owner, pods: Sequence[PodView], jobs: Sequence[JobView], token: str) -> None:
        """Read a Secret again soon where something speaks against its value."""
        # A pod cannot start without the Secret with the keys, so a pod that does not come up may mean that it is gone.
        stuck = any(pod.scheduled and not pod.terminating and pod.agent is None for pod in pods)
        if token and self._agents.token_refused:
            self._secrets.doubt(keys_name(owner))
        elif token and (stuck or any(not (job.finished or job.suspended) for job in jobs)):
            self._secrets.suspect(keys_name(owner))


def _is_ours(owner: Owner, obj: Object, labelled: Mapping[tuple[str, str], Object]) -> bool:
    """Workloads own the pods, not we."""
    return is_own_pod(owner, obj, labelled) if obj["kind"] == "Pod" else owner.owns(obj)


def _inference_pods(pods: Iterable[Object]) -> list[PodView]:
    """The inference pods by name, without their agents' answers.

    The kubelet leaves a pod that it evicted or refused behind, and the Deployment has replaced that pod.
    """
    objects = [pod for pod in pods if not kubernetes_views.has_ended(pod)]
    return sorted(map(kubernetes_views.pod_view, objects), key=lambda view: view.name)


def _jobs(jobs: Iterable[Object], pods: Iterable[Object], now: datetime) -> tuple[JobView, ...]:
    of_validators = [pod for pod in pods if component_of(pod) == VALIDATOR]
    return tuple(kubernetes_views.job_view(job, of_validators, now) for job in jobs if component_of(job) == VALIDATOR)


def _trainer(owner: Owner, live: Mapping[tuple[str, str], Object], now: datetime) -> WorkloadView | None:
    """The trainer's Deployment, with the reason why its pod does not run."""
    workload = kubernetes_views.workload_view(live.get(("Deployment", trainer_name(owner))))
    objects = [obj for obj in live.values() if _is_trainer_pod(obj)]
    pods = [kubernetes_views.pod_view(obj, TRAINER) for obj in objects]
    if workload is None:
        return None
    failing = next((pod for pod in pods if pod.failure and not pod.terminating), None)
    hung = any(kubernetes_views.has_hung(obj, now) for obj in objects)
    workload = replace(workload, failing_pod=failing, has_hung_pod=hung)
    held_up = next((pod for pod in pods if pod.waiting and not pod.terminating), None)
    if held_up is None:
        return workload
    message = f"the trainer's pod is not ready ({held_up.trouble})"
    return replace(workload, message=message, queued_behind=held_up.scheduling_gates)


def _is_trainer_pod(obj: Object) -> bool:
    return obj["kind"] == "Pod" and component_of(obj) == TRAINER
