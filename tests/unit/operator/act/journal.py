"""A fake API server, agents and store that record what the actor asks of them, and a plan that asks for everything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.act.actor import Actor
from aurora_operator.act.authority import Authority
from aurora_operator.children.network import services
from aurora_operator.children.owner import Owner
from aurora_operator.children.trainer_deployment import trainer_deployment
from aurora_operator.errors import NotFound
from aurora_operator.fleet import Fleet
from aurora_operator.kubernetes_api import SPECULATOR, Object, Resource
from aurora_operator.observe.cluster_cache import ClusterCache
from aurora_operator.observe.observed import StoreView
from aurora_operator.observe.snapshot import Snapshot
from aurora_operator.plan import EventNote, LeaseRequest, Plan, Swap
from aurora_operator.reconciler import Reconciler
from aurora_protocol.agent_api import AgentState, MeasurementRequest, SwapRequest
from aurora_protocol.draft_records import Channel
from aurora_protocol.errors import AgentError
from tests.unit.operator.worlds import (
    CONFIG,
    OWNER,
    agent,
    channel,
    digest,
    lineage,
    observed,
    registration,
    spec,
)


@dataclass
class Journal:
    """Fake API server, agents and store. Records every call, and raises the configured faults."""

    calls: list[str] = field(default_factory=list)
    faults: dict[str, Exception] = field(default_factory=dict)
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    finalizers: list[str] = field(default_factory=list)
    """Those of the speculator, whoever applied them."""
    set_by_a_webhook: list[str] = field(default_factory=list)

    @property
    def speculator(self) -> Object:
        """The speculator as the API server has it, without its spec and status."""
        metadata = {"namespace": OWNER.namespace, "name": OWNER.name, "uid": OWNER.uid}
        versioned = {"resourceVersion": OWNER.resource_version, "finalizers": self.finalizers}
        return {"kind": SPECULATOR.kind, "metadata": metadata | versioned}

    def record(self, call: str) -> None:
        self.calls.append(call)
        if call in self.faults:
            raise self.faults[call]

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        if fault := self.faults.get(f"get {resource.kind} {name}"):
            raise fault
        if resource is SPECULATOR:
            return self.speculator
        raise NotFound(f"{resource.kind} {namespace}/{name}", 404)

    def list(self, resource: Resource, namespace: str, labels: str = "") -> Sequence[Object]:
        return []

    def apply(self, obj: Object, *, subresource: str = "") -> Object:
        self.record("status" if subresource else f"apply {obj['kind']}")
        return self.store(obj)

    def set_finalizers(self, obj: Object, finalizers: Sequence[str]) -> Object:
        self.record(f"set finalizers {[*finalizers]}")
        assert obj == self.speculator
        self.finalizers = [*finalizers, *self.set_by_a_webhook]
        return self.speculator

    def merge_status(self, obj: Object, changes: Mapping[str, Any]) -> Object:
        self.record("status")
        before = self.objects.get((obj["kind"], obj["metadata"]["name"]), {}).get("status", {})
        return self.store({**obj, "status": {**before, **changes}})

    def create(self, obj: Object) -> Object:
        self.record(f"create {obj['kind']}")
        return self.store(obj)

    def store(self, obj: Object) -> Object:
        key = obj["kind"], obj["metadata"].get("name", "")
        metadata = {**obj["metadata"], "uid": "u", "resourceVersion": "1"}
        self.objects[key] = stored = {**self.objects.get(key, {}), **obj, "metadata": metadata}
        return stored

    def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        self.record(f"delete {resource.kind} {name} {uid}")

    async def swap(self, ip: str, token: str, request: SwapRequest) -> AgentState:
        self.record(f"swap {ip}")
        return agent(ip, request.version)

    async def lease(self, ip: str, token: str, request: MeasurementRequest) -> AgentState:
        self.record(f"{'withdraw' if request.begin else 'return'} {ip}")
        return agent(ip, 0)

    async def state(self, ip: str, token: str) -> AgentState:
        raise AgentError(ip)

    async def advance(self, made: Channel, ensure_leading: Callable[[], None]) -> None:
        ensure_leading()
        self.record("channel")

    def keys_made(self, owner: Owner) -> None:
        self.record("keys made")

    def read_everything_next(self) -> None:
        self.record("read the store")

    def seconds_until_due(self) -> float:
        return 60.0


def swap(pod: str) -> Swap:
    return Swap(pod, pod, SwapRequest(version=1, digest=digest(1), epoch=4))


def lease_request(pod: str, lease: int) -> LeaseRequest:
    return LeaseRequest(pod, pod, MeasurementRequest(measurement="j", epoch=4, lease_seconds=lease, begin=lease > 0))


FULL = Plan(
    create_keys=True,
    children=(*services(OWNER), trainer_deployment(OWNER, spec(), CONFIG, 1)),
    advance=channel(1, epoch=2, previous=0),
    status=SpeculatorStatus(),
    job={"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j", "namespace": "team"}},
    delete_jobs=("old",),
    swaps=(swap("a"), swap("b")),
    leases=(lease_request("c", 0), lease_request("d", 60)),
    notes=(EventNote("Promoted", "version 1"),),
)


def authority(journal: Journal) -> Authority:
    def ensure_leading() -> None:
        if "not leading" in journal.faults:
            raise journal.faults["not leading"]

    return Authority(journal, CONFIG, ensure_leading)  # type: ignore[arg-type]


def new_actor(journal: Journal) -> Actor:
    return Actor(journal, journal, authority(journal))  # type: ignore[arg-type]


async def act(journal: Journal, plan: Plan, actor: Actor | None = None, status: SpeculatorStatus | None = None) -> Any:
    """Execute ``plan``, made from an observation with ``status``."""
    snapshot = Snapshot(observed(status=status or SpeculatorStatus()), journal.objects, "token")
    actor = actor or new_actor(journal)
    return await actor.act(plan, snapshot, journal)  # type: ignore[arg-type]


@dataclass
class FakeObserver:
    """Observes the status that the journal stored, and a store with a candidate."""

    journal: Journal
    spec: SpeculatorSpec = field(default_factory=lambda: spec(serving={"replicas": 2}))
    seconds_until_due: float = float("inf")

    @property
    def store(self) -> Journal:
        return self.journal

    async def observe(self, *, ask_agents: bool = True) -> Snapshot:
        stored = self.journal.objects.get(("AuroraSpeculator", "chat"), {}).get("status", {})
        known = {version: registration(version) for version in (0, 1)}
        store = StoreView(lineage=lineage(), channel=channel(0), registrations=known)
        world = observed(spec=self.spec, store=store, status=SpeculatorStatus.model_validate(stored))
        return Snapshot(world, self.journal.objects, "token")


class JournalCache(ClusterCache):
    """Has the speculator with the status that the journal stored."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(["AuroraSpeculator"])
        self._journal = journal

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        status = self._journal.objects.get((kind, name), {}).get("status", {})
        metadata = {
            "namespace": namespace,
            "name": name,
            "uid": OWNER.uid,
            "generation": OWNER.generation,
            "resourceVersion": OWNER.resource_version,
        }
        return {"kind": kind, "metadata": metadata, "status": status}


def reconciler_of(journal: Journal, observer: FakeObserver) -> Reconciler:
    cache, right = JournalCache(journal), authority(journal)
    made = Reconciler(journal, cache, journal, CONFIG, Fleet(), right, ("team", "chat"))  # type: ignore[arg-type]
    made._observer = observer  # type: ignore[assignment]
    return made
