"""Observes one speculator: custom resource, children, agents and store.

Invariants:

- The order is Jobs, pods, store. A finished Job's termination message and evidence are therefore never missed.
- Only a failure of the API server ends an observation early.
- The observer may lose everything that it keeps between observations (connections, cached create-once records, the
  recent counters) without changing a decision.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator import kubernetes_api
from aurora_operator.children.metadata import (
    INFERENCE,
    TRAINER,
    VALIDATOR,
    component_of,
    has_finalizer,
    keys_name,
    selector_text,
    trainer_name,
)
from aurora_operator.children.owner import Owner
from aurora_operator.errors import BeingDeleted, InvalidSpec, KubernetesError, NotFound
from aurora_operator.kubernetes_api import KubernetesApi, Object
from aurora_operator.observe import kubernetes_views
from aurora_operator.observe.annotations import user_requests
from aurora_operator.observe.observed import JobView, Observed, PodView, WorkloadView
from aurora_operator.observe.recent_counters import CounterHistory
from aurora_operator.observe.secret_values import find_secret, secret_value
from aurora_operator.observe.snapshot import Snapshot
from aurora_operator.observe.store_access import StoreAccess
from aurora_operator.observe.store_reader import StoreReader
from aurora_operator.observe.stored_resource import parse
from aurora_protocol.agent_api import AgentState
from aurora_protocol.agent_client import AgentClient
from aurora_protocol.errors import AgentError
from aurora_protocol.pod_settings import AGENT_TOKEN

LiveChildren = dict[tuple[str, str], Object]


class Observer:
    """Observes one speculator repeatedly."""

    def __init__(self, api: KubernetesApi, agents: AgentClient, namespace: str, name: str) -> None:
        self._api, self._agents = api, agents
        self.namespace, self.name = namespace, name
        self.store = StoreAccess(api)
        self._counter_history = CounterHistory()

    @property
    def store_reader(self) -> StoreReader | None:
        """The speculator's open store; None until its credentials were found."""
        return self.store.reader

    async def observe(self) -> Snapshot:
        """Raises :class:`NotFound`, :class:`BeingDeleted`, :class:`InvalidSpec` and :class:`KubernetesError`."""
        stored = await asyncio.to_thread(self._api.get, kubernetes_api.SPECULATOR, self.namespace, self.name)
        if "deletionTimestamp" in stored["metadata"]:
            raise BeingDeleted(stored)
        owner, spec, status, fault = _usable(stored)
        live = await self._live_children(owner)
        token = await self._agent_token(owner)
        pods = await self._pods(live, token)
        pinned = frozenset[int]() if spec.rollout.pin is None else {spec.rollout.pin}
        observed = Observed(
            owner=owner,
            spec=spec,
            status=status,
            pods=pods,
            jobs=_jobs(live),
            deployment=kubernetes_views.workload_view(live.get(("Deployment", owner.name))),
            deployed=kubernetes_views.deployed_template(live.get(("Deployment", owner.name))),
            trainer=_trainer(owner, live),
            store=await self.store.view(owner, spec, status.versions() | pinned),
            keys_exist=bool(token),
            disruptions_allowed=kubernetes_views.disruptions_allowed(live.get(("PodDisruptionBudget", owner.name))),
            recent_counters=self._counter_history.update(pods, datetime.now(UTC)),
            user_requests=user_requests(stored),
            has_finalizer=has_finalizer(stored),
            spec_fault=fault,
        )
        return Snapshot(observed, live, token)

    async def is_gone(self) -> bool:
        """Whether nothing is left to do, because the custom resource is gone or being deleted without our finalizer.

        False when the API server cannot tell.
        """
        try:
            stored = await asyncio.to_thread(self._api.get, kubernetes_api.SPECULATOR, self.namespace, self.name)
        except NotFound:
            return True
        except KubernetesError:
            return False
        return "deletionTimestamp" in stored["metadata"] and not has_finalizer(stored)

    async def _live_children(self, owner: Owner) -> LiveChildren:
        """Objects with our labels, except those that belong to somebody else."""
        labels = selector_text(owner)
        kinds = (*kubernetes_api.CHILDREN, kubernetes_api.JOB)
        lists = await asyncio.gather(
            *(asyncio.to_thread(self._api.list, kind, owner.namespace, labels) for kind in kinds)
        )
        owned = [obj for listed in lists for obj in listed if owner.owns(obj)]
        # Pods come last: by then a failed Job's pod has written its termination message. Workloads own them, not we.
        pods = await asyncio.to_thread(self._api.list, kubernetes_api.POD, owner.namespace, labels)
        return {(obj["kind"], obj["metadata"]["name"]): obj for obj in (*owned, *pods)}

    async def _agent_token(self, owner: Owner) -> str:
        secret = await find_secret(self._api, owner.namespace, keys_name(owner))
        return secret_value(secret, AGENT_TOKEN) if secret is not None and owner.owns(secret) else ""

    async def _pods(self, live: LiveChildren, token: str) -> tuple[PodView, ...]:
        """The inference pods with their agents' answers, by name."""
        objects = [obj for obj in live.values() if obj["kind"] == "Pod" and component_of(obj) == INFERENCE]
        views = sorted(map(kubernetes_views.pod_view, objects), key=lambda view: view.name)
        states = await asyncio.gather(*(self._agent_state(view, token) for view in views))
        return tuple(replace(view, agent=state) for view, state in zip(views, states, strict=True))

    async def _agent_state(self, pod: PodView, token: str) -> AgentState | None:
        if not pod.ip or not token or pod.terminating:
            return None
        try:
            return await self._agents.state(pod.ip, token)
        except AgentError:
            return None


def _usable(stored: Object) -> tuple[Owner, SpeculatorSpec, SpeculatorStatus, str]:
    """The parts of the resource, and the fault of its spec; empty when the spec has none.

    Raises :class:`InvalidSpec` when so much is wrong that nothing can be done.
    """
    try:
        return *parse(stored), ""
    except InvalidSpec as error:
        if error.usable_spec is None:
            raise
        return error.owner, error.usable_spec, error.status, str(error)


def _jobs(live: LiveChildren) -> tuple[JobView, ...]:
    validators = [obj for obj in live.values() if component_of(obj) == VALIDATOR]
    pods = [obj for obj in validators if obj["kind"] == "Pod"]
    return tuple(kubernetes_views.job_view(obj, pods) for obj in validators if obj["kind"] == "Job")


def _trainer(owner: Owner, live: Mapping[tuple[str, str], Object]) -> WorkloadView | None:
    """The trainer's Deployment, with the reason why its pod does not run."""
    workload = kubernetes_views.workload_view(live.get(("Deployment", trainer_name(owner))))
    pods = [kubernetes_views.pod_view(obj) for obj in live.values() if _is_trainer_pod(obj)]
    reason = next((pod.waiting for pod in pods if pod.waiting and not pod.terminating), "")
    if workload is None or not reason:
        return workload
    return replace(workload, message=f"the trainer's pod is not ready ({reason})")


def _is_trainer_pod(obj: Object) -> bool:
    return obj["kind"] == "Pod" and component_of(obj) == TRAINER
