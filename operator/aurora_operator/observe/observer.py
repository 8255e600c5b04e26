"""One look at a speculator: custom resource, children, agents, store -> :class:`Observed`.

Invariants: the order is Jobs, pods, store, so that a finished Job's evidence, and what its pod said, is never missed;
only the API server's failure ends a look early; what is kept between looks (connections, cached create-once records,
the live window) may be lost at any time without changing a decision.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from aurora_api import GROUP
from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator import kubernetes_api
from aurora_operator.agent_client import AgentClient
from aurora_operator.children.common import INFERENCE, VALIDATOR, keys_name, selector_text, store_settings
from aurora_operator.children.owner import Owner
from aurora_operator.children.trainer_statefulset import trainer_name
from aurora_operator.errors import AgentError, InvalidSpec, NotFound
from aurora_operator.kubernetes_api import KubernetesApi, Object
from aurora_operator.observe import kubernetes_views
from aurora_operator.observe.observed import LiveWindow, Observed, PodView, StoreView, UserRequests, WorkloadView
from aurora_operator.observe.store_reader import StoreReader
from aurora_protocol.agent_api import AgentState
from aurora_protocol.pod_settings import AGENT_TOKEN
from aurora_store import StoreConfig

PROMOTE, ABORT = f"{GROUP}/promote", f"{GROUP}/abort"
"""Annotations: ``kubectl annotate aspec chat aurora.dev/abort=3``."""
WINDOW = timedelta(seconds=60)
"""Live acceptance is shown over about this time."""
STORE_SECONDS = 20.0
"""A store that does not answer within this time is an outage; pods and their status must not wait for it."""


@dataclass(frozen=True)
class Look:
    """What a look yields beside :class:`Observed`: what acting needs and planning must not depend on."""

    observed: Observed
    live: Mapping[tuple[str, str], Object]
    """(kind, name) -> the child as it is."""
    token: str = field(repr=False)
    """The agents' bearer token; empty while the Secret is not there."""


class Observer:
    """Looks at one speculator, again and again."""

    def __init__(self, api: KubernetesApi, agents: AgentClient, namespace: str, name: str) -> None:
        self._api, self._agents = api, agents
        self.namespace, self.name = namespace, name
        self.records: StoreReader | None = None
        self._windows: dict[str, list[LiveWindow]] = {}
        self._reading: asyncio.Future[StoreView] | None = None

    async def look(self) -> Look:
        """Raises :class:`NotFound` when the resource is gone, :class:`InvalidSpec`, :class:`KubernetesError`."""
        found = await asyncio.to_thread(self._api.get, kubernetes_api.SPECULATOR, self.namespace, self.name)
        if "deletionTimestamp" in found["metadata"]:
            raise NotFound(f"{self.namespace}/{self.name} is being deleted", 404)
        owner, spec, status = parse(found)
        live = await self._children(owner)
        token = _decoded(await self._secret(keys_name(owner)), AGENT_TOKEN)
        bare = [kubernetes_views.pod(obj) for obj in live.values() if obj["kind"] == "Pod" and _part(obj) == INFERENCE]
        states = await asyncio.gather(*(self._state(pod, token) for pod in bare))
        pods = tuple(sorted((replace(p, agent=s) for p, s in zip(bare, states, strict=True)), key=lambda p: p.name))
        validators = [obj for obj in live.values() if _part(obj) == VALIDATOR]
        measuring = [obj for obj in validators if obj["kind"] == "Pod"]
        jobs = tuple(kubernetes_views.job(obj, measuring) for obj in validators if obj["kind"] == "Job")
        store = await self._store(owner, spec, status)
        observed = Observed(
            owner=owner,
            spec=spec,
            status=status,
            pods=pods,
            jobs=jobs,
            deployment=kubernetes_views.workload(live.get(("Deployment", owner.name))),
            trainer=_trainer(owner, live),
            store=store,
            keys_exist=bool(token),
            disruptions_allowed=kubernetes_views.disruptions_allowed(live.get(("PodDisruptionBudget", owner.name))),
            live_window=self._window(pods, datetime.now(UTC)),
            user_requests=user_requests(found),
        )
        return Look(observed, live, token)

    async def _children(self, owner: Owner) -> dict[tuple[str, str], Object]:
        labels = selector_text(owner)
        kinds = (*kubernetes_api.CHILDREN, kubernetes_api.JOB)
        lists = await asyncio.gather(
            *(asyncio.to_thread(self._api.list, kind, owner.namespace, labels) for kind in kinds)
        )
        # Pods last: what a failed Job's pod said has been said by then.
        pods = await asyncio.to_thread(self._api.list, kubernetes_api.POD, owner.namespace, labels)
        return {(obj["kind"], obj["metadata"]["name"]): obj for found in (*lists, pods) for obj in found}

    async def _secret(self, name: str) -> Object | None:
        """By name only: the operator may not list Secrets."""
        try:
            return await asyncio.to_thread(self._api.get, kubernetes_api.SECRET, self.namespace, name)
        except NotFound:
            return None

    async def _state(self, pod: PodView, token: str) -> AgentState | None:
        if not pod.ip or not token or pod.terminating:
            return None
        try:
            return await self._agents.state(pod.ip, token)
        except AgentError:
            return None

    async def _store(self, owner: Owner, spec: SpeculatorSpec, status: SpeculatorStatus) -> StoreView:
        settings = store_settings(owner, spec)
        access, secret = "", ""
        reference = spec.store.credentials.secret_ref
        if reference is not None:
            found = await self._secret(reference.name)
            if found is None:
                text = f"create the Secret {reference.name} with the store's keys"
                return StoreView(reason="SecretMissing", error=text)
            access, secret = (_decoded(found, key) for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
            if not access or not secret:
                text = f"the Secret {reference.name} needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                return StoreView(reason="SecretIncomplete", error=text)
        config = StoreConfig(
            settings.bucket, settings.root, settings.endpoint, settings.region, access or None, secret or None
        )
        if self.records is None or self.records.config != config:
            self.records = await asyncio.to_thread(StoreReader, config)
        pinned = frozenset[int]() if spec.rollout.pin is None else {spec.rollout.pin}
        return await self._read(self.records, status.versions() | pinned)

    async def _read(self, records: StoreReader, interesting: frozenset[int]) -> StoreView:
        """Read in a thread, which may hang longer than we wait: then the next look waits for it and adds no other."""
        silent = StoreView(reason="Unreachable", error=f"the store gave no answer within {STORE_SECONDS:.0f} s")
        if self._reading is not None and not await _ends(self._reading):
            return silent
        self._reading = asyncio.ensure_future(asyncio.to_thread(records.read, interesting))
        return self._reading.result() if await _ends(self._reading) else silent

    def _window(self, pods: tuple[PodView, ...], now: datetime) -> dict[str, LiveWindow]:
        """The oldest sample of each pod within :data:`WINDOW`, of the same engine start; adds the newest sample."""
        kept: dict[str, list[LiveWindow]] = {}
        for pod in pods:
            if pod.agent is None:
                continue
            sample = LiveWindow(boot=pod.agent.boot, time=now, live=pod.agent.live)
            past = [s for s in self._windows.get(pod.name, []) if s.boot == sample.boot and now - s.time <= WINDOW]
            kept[pod.name] = [*past, sample]
        self._windows = kept
        return {name: samples[0] for name, samples in kept.items()}


def user_requests(found: Object) -> UserRequests:
    """The annotations by which a person decides; what is not a number is no wish."""
    annotations = found["metadata"].get("annotations") or {}

    def version(key: str) -> int | None:
        text = annotations.get(key, "")
        return int(text) if text.isdecimal() else None

    return UserRequests(promote=version(PROMOTE), abort=version(ABORT))


def _trainer(owner: Owner, live: Mapping[tuple[str, str], Object]) -> WorkloadView | None:
    """The trainer's StatefulSet, with the reason why its pod does not run."""
    workload = kubernetes_views.workload(live.get(("StatefulSet", trainer_name(owner))))
    found = live.get(("Pod", f"{trainer_name(owner)}-0"))
    if workload is None or found is None or not (why := kubernetes_views.pod(found).waiting):
        return workload
    return replace(workload, message=f"the trainer's pod is not ready ({why})")


def _decoded(secret: Object | None, key: str) -> str:
    return base64.b64decode(((secret or {}).get("data") or {}).get(key, "")).decode()


async def _ends(reading: asyncio.Future[StoreView]) -> bool:
    await asyncio.wait({reading}, timeout=STORE_SECONDS)
    return reading.done()


def _part(obj: Mapping[str, Any]) -> str:
    return str(obj["metadata"].get("labels", {}).get("app.kubernetes.io/component", ""))


def parse(found: Object) -> tuple[Owner, SpeculatorSpec, SpeculatorStatus]:
    """The parts of a stored custom resource.

    A status that does not parse (an older operator's) counts as empty: it is rebuilt from the store and the pods.
    Raises :class:`InvalidSpec`, naming fields.
    """
    metadata = found["metadata"]
    owner = Owner(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        resource_version=metadata["resourceVersion"],
    )
    try:
        spec = SpeculatorSpec.model_validate(found["spec"])
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
        raise InvalidSpec(f"spec: {wrong}") from None
    try:
        status = SpeculatorStatus.model_validate(found.get("status") or {})
    except ValidationError:
        status = SpeculatorStatus()
    return owner, spec, status
