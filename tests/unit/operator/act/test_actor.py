"""The order of actions makes an interruption harmless, and a fault in the middle leaves the rest undone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from aurora_api.v1alpha1.status import CandidatePhase, SpeculatorStatus
from aurora_operator.act.actor import Actor
from aurora_operator.act.authority import Authority
from aurora_operator.children.metadata import FINALIZER
from aurora_operator.children.network import services
from aurora_operator.children.trainer_deployment import trainer_deployment
from aurora_operator.errors import Conflict, KubernetesError, NotFound, NotLeading
from aurora_operator.fleet import Fleet
from aurora_operator.kubernetes_api import Object, Resource
from aurora_operator.observe.cluster_cache import ClusterCache
from aurora_operator.observe.observed import RefusedJob, StoreView
from aurora_operator.observe.snapshot import Snapshot
from aurora_operator.plan import EventNote, LeaseRequest, Plan, Swap
from aurora_operator.reconciler import Reconciler
from aurora_protocol.agent_api import AgentState, MeasurementRequest, SwapRequest
from aurora_protocol.draft_records import Channel
from aurora_protocol.errors import AgentError, Fenced
from aurora_store.errors import ObjectExists
from tests.unit.operator.worlds import CONFIG, OWNER, agent, channel, digest, lineage, observed, registration, spec


@dataclass
class Journal:
    """Fake API server, agents and store. Records every call, and raises the configured faults."""

    calls: list[str] = field(default_factory=list)
    faults: dict[str, Exception] = field(default_factory=dict)
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)

    def record(self, call: str) -> None:
        self.calls.append(call)
        if call in self.faults:
            raise self.faults[call]

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        if fault := self.faults.get(f"get {resource.kind} {name}"):
            raise fault
        raise NotFound(f"{resource.kind} {namespace}/{name}", 404)

    def list(self, resource: Resource, namespace: str, labels: str = "") -> Sequence[Object]:
        return []

    def apply(self, obj: Object, *, subresource: str = "") -> Object:
        self.record("status" if subresource else f"apply {obj['kind']}")
        return self.store(obj)

    def create(self, obj: Object) -> Object:
        self.record(f"create {obj['kind']}")
        return self.store(obj)

    def store(self, obj: Object) -> Object:
        stored = {**obj, "metadata": {**obj["metadata"], "uid": "u", "resourceVersion": "1"}}
        self.objects[obj["kind"], obj["metadata"].get("name", "")] = stored
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

    async def advance(self, made: Channel) -> None:
        self.record("channel")

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


async def act(journal: Journal, plan: Plan, actor: Actor | None = None) -> Any:
    snapshot = Snapshot(observed(), journal.objects, "token")
    actor = actor or new_actor(journal)
    return await actor.act(plan, snapshot, journal)  # type: ignore[arg-type]


async def test_the_order_is_children_channel_status_jobs_swaps_leases_events() -> None:
    journal = Journal()
    journal.store({"kind": "Job", "metadata": {"name": "old"}})
    outcome = await act(journal, FULL)
    assert journal.calls == [
        "create Secret",
        "create Service",
        "create Deployment",
        "channel",
        "status",
        "delete Job old u",
        "create Job",
        "swap a",
        "swap b",
        "return c",
        "withdraw d",
        "create Event",
    ]
    assert (outcome.fencing_epoch, outcome.apply_errors, outcome.wrote_status) == (0, (), True)


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("channel", ObjectExists("epoch taken")),
        ("status", Conflict("moved on", 409)),
        ("status", KubernetesError("down")),
    ],
)
async def test_an_operator_that_loses_a_race_asks_no_agent(where: str, error: Exception) -> None:
    journal = Journal(faults={where: error})
    with pytest.raises(type(error)):
        await act(journal, FULL)
    assert journal.calls[-1] == where


async def test_a_process_that_stopped_leading_advances_no_channel_and_asks_no_agent() -> None:
    journal = Journal(faults={"not leading": NotLeading("no Lease")})
    with pytest.raises(NotLeading):
        await act(journal, FULL)
    assert "channel" not in journal.calls
    journal.calls.clear()
    with pytest.raises(NotLeading):
        await act(journal, replace(FULL, advance=None))
    assert [call for call in journal.calls if call.startswith(("swap", "return", "withdraw"))] == []


async def test_a_job_that_is_gone_or_whose_name_another_job_has_is_not_deleted() -> None:
    journal = Journal()
    await act(journal, FULL)
    assert [call for call in journal.calls if call.startswith("delete")] == [], "the Job was not observed"
    journal = Journal(faults={"delete Job old u": Conflict("another uid", 409)})
    journal.store({"kind": "Job", "metadata": {"name": "old"}})
    await act(journal, FULL)
    assert "swap b" in journal.calls, "the name belongs to another Job by now"


async def test_a_refused_child_does_not_delay_the_other_actions() -> None:
    faults: dict[str, Exception] = {
        "create Service": KubernetesError("bad port", 422),
        "create Deployment": KubernetesError("bad pod", 422),
    }
    journal = Journal(faults=faults)
    outcome = await act(journal, FULL)
    assert outcome.apply_errors == ("Service chat: bad port", "Deployment chat-trainer: bad pod")
    assert "swap b" in journal.calls


async def test_a_refused_job_is_reported_to_the_next_observation_and_delays_nothing() -> None:
    refused = await act(Journal(faults={"create Job": KubernetesError("exceeded quota: jobs", 403)}), FULL)
    assert refused.refused_job == RefusedJob("j", "exceeded quota: jobs")
    assert refused.apply_errors == (), "a refused Job does not affect serving"
    verbose = await act(Journal(faults={"create Job": KubernetesError("no! " * 20_000, 400)}), FULL)
    assert verbose.refused_job is not None
    assert len(verbose.refused_job.message) < 2000, "a condition holds no more than 32 KiB"
    for error in (KubernetesError("away", 503), Conflict("exists", 409)):
        journal = Journal(faults={"create Job": error})
        assert (await act(journal, FULL)).refused_job is None, "the API server did not decide about the Job"
        assert "swap b" in journal.calls


@pytest.mark.parametrize("error", [KubernetesError("denied", 403), KubernetesError("away", 503)])
async def test_a_refused_deletion_of_a_job_is_reported_and_delays_nothing(error: KubernetesError) -> None:
    journal = Journal(faults={"delete Job old u": error})
    for name in ("old", "older"):
        journal.store({"kind": "Job", "metadata": {"name": name}})
    outcome = await act(journal, replace(FULL, delete_jobs=("old", "older")))
    assert outcome.apply_errors == (f"Job old: {error}",)
    assert journal.calls[journal.calls.index("delete Job old u") + 1 :] == [
        "delete Job older u",
        "create Job",
        "swap a",
        "swap b",
        "return c",
        "withdraw d",
        "create Event",
    ]


async def test_a_job_whose_name_is_taken_by_an_object_that_cannot_be_read_delays_nothing() -> None:
    faults: dict[str, Exception] = {"create Job": Conflict("exists", 409), "get Job j": KubernetesError("denied", 403)}
    journal = Journal(faults=faults)
    outcome = await act(journal, FULL)
    assert outcome.apply_errors == ("Job j: denied",)
    assert "swap b" in journal.calls


@dataclass
class FakeObserver:
    """Observes the status that the journal stored, and a store with a candidate."""

    journal: Journal
    seconds_until_due: float = float("inf")

    @property
    def store(self) -> Journal:
        return self.journal

    async def observe(self, *, ask_agents: bool = True) -> Snapshot:
        stored = self.journal.objects.get(("AuroraSpeculator", "chat"), {}).get("status", {})
        known = {version: registration(version) for version in (0, 1)}
        store = StoreView(lineage=lineage(), channel=channel(0), registrations=known)
        world = observed(store=store, status=SpeculatorStatus.model_validate(stored))
        return Snapshot(world, self.journal.objects, "token")


async def test_a_refused_job_is_reported_in_the_status_and_not_created_again() -> None:
    journal = Journal(faults={"create Job": KubernetesError("exceeded quota: jobs", 403)})
    cache = ClusterCache(["AuroraSpeculator"])
    right = authority(journal)
    reconciler = Reconciler(journal, cache, journal, CONFIG, Fleet(), right, ("team", "chat"))  # type: ignore[arg-type]
    reconciler._observer = FakeObserver(journal)  # type: ignore[assignment]
    for _ in range(4):
        await reconciler.reconcile()
    assert journal.calls.count("create Job") == 1
    candidate = (await FakeObserver(journal).observe()).observed.status.candidate
    assert candidate is not None
    assert candidate.phase is CandidatePhase.FAILED
    assert "exceeded quota: jobs" in candidate.message


async def test_an_unavailable_api_server_ends_the_reconcile() -> None:
    journal = Journal(faults={"create Service": KubernetesError("away", 0)})
    with pytest.raises(KubernetesError):
        await act(journal, FULL)
    assert "status" not in journal.calls


async def test_a_silent_agent_does_not_delay_the_others_and_a_fence_is_reported() -> None:
    silent = await act(Journal(faults={"swap a": AgentError("no answer")}), FULL)
    assert silent.fencing_epoch == 0
    journal = Journal(faults={"swap a": Fenced("higher epoch", epoch=41)})
    assert (await act(journal, FULL)).fencing_epoch == 41
    assert "swap b" in journal.calls
    journal = Journal(faults={"return c": Fenced("higher epoch", epoch=41)})
    assert (await act(journal, FULL)).fencing_epoch == 41
    assert "withdraw d" in journal.calls


@pytest.mark.parametrize("epoch", [None, 1, swap("a").request.epoch])
async def test_a_refusal_without_a_higher_epoch_is_no_fence(epoch: int | None) -> None:
    """The agent is busy, and its last accepted order, if any, was not a newer one."""
    busy = Journal(faults={"swap a": Fenced("a swap is running", epoch=epoch)})
    assert (await act(busy, FULL)).fencing_epoch == 0


async def test_an_unchanged_child_costs_no_call_and_a_change_by_others_is_reverted() -> None:
    journal = Journal()
    actor = new_actor(journal)
    quiet = replace(
        FULL, create_keys=False, advance=None, status=None, job=None, delete_jobs=(), swaps=(), leases=(), notes=()
    )
    await act(journal, quiet, actor)
    journal.calls.clear()
    await act(journal, quiet, actor)
    assert journal.calls == []
    journal.objects["Service", "chat"]["metadata"]["resourceVersion"] = "2"
    await act(journal, quiet, actor)
    assert journal.calls == ["apply Service"]
    journal.calls.clear()
    del journal.objects["Deployment", "chat-trainer"]
    await act(journal, quiet, actor)
    assert journal.calls == ["create Deployment"]


async def test_the_finalizer_is_written_alone_because_it_changes_the_resource_version() -> None:
    for wanted, finalizers in ((True, [FINALIZER]), (False, None)):
        journal = Journal()
        outcome = await act(journal, replace(FULL, finalizer=wanted))
        assert journal.calls == ["apply AuroraSpeculator"]
        written = journal.objects["AuroraSpeculator", "chat"]["metadata"]
        assert written.get("finalizers") == finalizers
        assert not outcome.wrote_status


async def test_a_refused_finalizer_is_reported_and_a_race_observes_again() -> None:
    journal = Journal(faults={"apply AuroraSpeculator": KubernetesError("denied", 403)})
    outcome = await act(journal, replace(FULL, finalizer=True))
    assert outcome.finalizer_refused
    assert outcome.apply_errors == ("the finalizer of store.deletionPolicy: denied",)
    assert "swap b" in journal.calls
    for error in (Conflict("moved on", 409), KubernetesError("away", 503)):
        with pytest.raises(KubernetesError):
            await act(Journal(faults={"apply AuroraSpeculator": error}), replace(FULL, finalizer=True))
