"""Observes one speculator: custom resource, children, agents and the store.

Invariants:

- Nothing is kept that the API server can say: each observation reads the resource and lists each kind of children by
  our labels. So a change whose event was lost is seen by the next observation.
- Pods are listed after the workloads, and the store is read last. A Job that has finished is therefore observed
  together with its pod's termination message and with its evidence.
- Only a failure of the API server ends an observation early. An agent that does not answer never delays the others,
  and is data: its state is None.
- The observer may lose everything that it keeps (connections, Secrets, create-once records, the recent counters)
  without changing a decision about a version. The counters feed only the figures in the status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from aurora_operator import kubernetes_api
from aurora_operator.children.metadata import (
    INFERENCE,
    TRAINER,
    VALIDATOR,
    Owner,
    component_of,
    is_own_pod,
    keys_name,
    selector_text,
    trainer_name,
)
from aurora_operator.errors import Gone
from aurora_operator.kubernetes_api import CHILDREN, POD, KubernetesApi, Object
from aurora_operator.observe import kubernetes_views
from aurora_operator.observe.observed import CounterSample, JobView, Observed, PodView, WorkloadView
from aurora_operator.observe.secret_values import SecretReader, secret_value
from aurora_operator.observe.store.store_access import StoreAccess
from aurora_operator.observe.store.store_reader import store_needs
from aurora_operator.observe.stored_resource import aborted_version, parse
from aurora_protocol.agent_api import AgentState
from aurora_protocol.agent_client import AgentClient
from aurora_protocol.errors import AgentError
from aurora_protocol.pod_settings import AGENT_TOKEN
from aurora_store.store_policy import StorePolicy

Children = Mapping[tuple[str, str], Object]
"""Kind and name -> the object."""


@dataclass(frozen=True)
class Snapshot:
    """One observation, with extra parts that acting needs. Planning must not depend on the extra parts."""

    observed: Observed
    live_children: Children
    """As the API server stores them. Only children that this speculator owns, and the pods of its workloads."""
    agent_token: str = field(repr=False)
    """The agents' bearer token; empty while our Secret does not exist, or holds none."""


class Observer:
    """Observes one speculator repeatedly."""

    def __init__(self, api: KubernetesApi, agents: AgentClient, stores: StorePolicy, namespace: str, name: str) -> None:
        self._api = api
        self.namespace, self.name = namespace, name
        self._secrets = SecretReader(api, namespace)
        self.store = StoreAccess(self._secrets, stores)
        self._agents = AgentStates(agents)
        self._counter_history = CounterHistory()

    async def speculator(self) -> Object:
        """The custom resource. Raises :class:`Gone`, :class:`KubernetesError`."""
        stored = await self._api.find(kubernetes_api.SPECULATOR, self.namespace, self.name)
        if stored is None:
            raise Gone(f"{self.namespace}/{self.name} is gone")
        return stored

    async def observe(self, stored: Object) -> Snapshot:
        """Observe once.

        Args:
            stored: the custom resource.

        Raises :class:`InvalidSpec`, :class:`KubernetesError`.
        """
        owner, spec, status, fault = parse(stored)
        live = await self.children(owner)
        all_pods = [obj for obj in live.values() if obj["kind"] == "Pod"]
        inference = [pod for pod in all_pods if component_of(pod) == INFERENCE]
        jobs = _jobs([obj for obj in live.values() if obj["kind"] == "Job"], all_pods)
        token = await self._agent_token(owner)
        pods = await self._agents.of(_inference_pods(inference), token or "")
        abort = aborted_version(stored)
        store = await self.store.view(owner, spec, store_needs(owner, spec, status, jobs, abort))
        deployment = live.get(("Deployment", owner.name))
        observed = Observed(
            owner=owner,
            spec=spec,
            status=status,
            pods=pods,
            jobs=jobs,
            deployment=kubernetes_views.workload_view(deployment),
            deployed=kubernetes_views.deployed_template(deployment),
            trainer=_trainer(owner, live),
            store=store,
            keys_exist=token is not None,
            recent_counters=self._counter_history.update(pods, datetime.now(UTC)),
            abort=abort,
            spec_fault=fault,
        )
        return Snapshot(observed, live, token or "")

    async def children(self, owner: Owner) -> Children:
        """The objects with our labels, except those that belong to somebody else."""
        labels = selector_text(owner)
        workloads = [resource for resource in CHILDREN if resource != POD]
        listed = await asyncio.gather(*(self._api.list(kind, owner.namespace, labels) for kind in workloads))
        pods = await self._api.list(POD, owner.namespace, labels)
        labelled = {(obj["kind"], obj["metadata"]["name"]): obj for objects in (*listed, pods) for obj in objects}
        return {key: obj for key, obj in labelled.items() if _is_ours(owner, obj, labelled)}

    async def _agent_token(self, owner: Owner) -> str | None:
        """The token in our Secret; empty if a person removed it. None: the Secret is missing, or not ours."""
        secret = await self._secrets.find(keys_name(owner))
        return None if secret is None or not owner.owns(secret) else secret_value(secret, AGENT_TOKEN)


def _is_ours(owner: Owner, obj: Object, labelled: Children) -> bool:
    """Workloads own the pods, not we."""
    return is_own_pod(owner, obj, labelled) if obj["kind"] == "Pod" else owner.owns(obj)


def _inference_pods(pods: Iterable[Object]) -> list[PodView]:
    """The inference pods by name, without their agents' answers.

    The kubelet leaves a pod that it evicted or refused behind, and the Deployment has replaced that pod.
    """
    objects = [pod for pod in pods if not kubernetes_views.has_ended(pod)]
    return sorted(map(kubernetes_views.pod_view, objects), key=lambda view: view.name)


def _jobs(jobs: Iterable[Object], pods: Iterable[Object]) -> tuple[JobView, ...]:
    of_validators = [pod for pod in pods if component_of(pod) == VALIDATOR]
    return tuple(kubernetes_views.job_view(job, of_validators) for job in jobs if component_of(job) == VALIDATOR)


def _trainer(owner: Owner, live: Children) -> WorkloadView | None:
    """The trainer's Deployment, with the reason why its pod does not run."""
    workload = kubernetes_views.workload_view(live.get(("Deployment", trainer_name(owner))))
    objects = [obj for obj in live.values() if obj["kind"] == "Pod" and component_of(obj) == TRAINER]
    pods = [kubernetes_views.pod_view(obj, TRAINER) for obj in objects]
    if workload is None:
        return None
    present = [pod for pod in pods if not pod.terminating]
    created = max((pod.created for pod in present if pod.created), default=None)
    workload = replace(workload, restarts=max((pod.restarts for pod in present), default=0), created=created)
    held_up = next((pod for pod in present if pod.waiting), None)
    if held_up is None:
        return workload
    message = f"the trainer's pod is not ready ({held_up.trouble})"
    return replace(workload, message=message)


# the pods' agents -----------------------------------------------------------------------------------------------------


WINDOW = timedelta(seconds=60)
"""The live acceptance length is computed over this time, or since the sample before when that is longer ago."""


class AgentStates:
    """The agents of one speculator."""

    def __init__(self, agents: AgentClient) -> None:
        self._agents = agents

    async def of(self, views: Iterable[PodView], token: str) -> tuple[PodView, ...]:
        """``views`` with the agents' states."""
        pods = tuple(views)
        states = await asyncio.gather(*(self._state(pod, token) for pod in pods))
        return tuple(replace(pod, agent=state) for pod, state in zip(pods, states, strict=True))

    async def _state(self, pod: PodView, token: str) -> AgentState | None:
        if not pod.ip or not token or pod.terminating:
            return None
        try:
            state = await self._agents.state(pod.ip, token)
        except AgentError:
            return None
        return state if state.pod == pod.name else None  # the address belongs to another pod by now


class CounterHistory:
    """The recent counter samples of all pods of one speculator."""

    def __init__(self) -> None:
        self._samples: dict[str, list[CounterSample]] = {}

    def update(self, pods: Iterable[PodView], now: datetime) -> dict[str, CounterSample]:
        """Add a sample for each pod, and return each pod's oldest sample within :data:`WINDOW`, by pod name.

        The sample before the new one is kept whatever its age, because a speculator at rest is sampled rarely. Samples
        of an earlier engine start are dropped, because its counters began at zero.
        """
        kept: dict[str, list[CounterSample]] = {}
        for pod in pods:
            if pod.agent is None:
                continue
            live = pod.agent.live
            sample = CounterSample(pod.agent.boot, now, live.tokens, live.rounds)
            past = [s for s in self._samples.get(pod.name, []) if s.boot == sample.boot]
            recent = [s for s in past if now - s.time <= WINDOW] or past[-1:]
            kept[pod.name] = [*recent, sample]
        self._samples = kept
        return {name: samples[0] for name, samples in kept.items()}
