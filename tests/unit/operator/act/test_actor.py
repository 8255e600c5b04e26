"""The order of actions makes an interruption harmless, and a fault in the middle leaves the rest undone."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from aurora_api.v1alpha1.status import SpeculatorStatus, VersionStatus
from aurora_operator.act import actor as actor_module
from aurora_operator.act.actor import Actor, ExecutionResult
from aurora_operator.act.custom_resource import EventRecorder
from aurora_operator.children.supporting_objects import services
from aurora_operator.children.trainer_deployment import trainer_deployment
from aurora_operator.errors import Conflict, KubernetesError
from aurora_operator.observe.observed import RefusedJob
from aurora_operator.observe.observer import Snapshot
from aurora_operator.observe.stored_resource import owner_of
from aurora_operator.plan import EventNote, Plan, Swap, TraceLimit
from aurora_protocol.agent_api import AgentState, SwapRequest, TraceBudget
from aurora_protocol.draft_records import Channel
from aurora_protocol.errors import AgentUnreachable, Fenced
from aurora_store.errors import ObjectExists
from tests.unit.operator.fake_api import DENIED, UNAVAILABLE, FakeApi
from tests.unit.operator.worlds import CONFIG, MINIMAL, OWNER, agent, channel, digest, observed, spec

LABELS = services(OWNER)[0]["metadata"]
SERVED = SpeculatorStatus(active=VersionStatus(version=0))


@dataclass
class World(FakeApi):
    """Fake API server, agents and store with one log of calls. ``faults`` hold for all of them."""

    def __post_init__(self) -> None:
        metadata = {"namespace": OWNER.namespace, "name": OWNER.name, "uid": OWNER.uid}
        self.put({"kind": "AuroraSpeculator", "metadata": metadata, "spec": MINIMAL})
        self.put({"kind": "Job", "metadata": {**LABELS, "name": "old"}})

    async def swap(self, ip: str, token: str, request: SwapRequest) -> AgentState:
        assert token == "token"  # noqa: S105 - the snapshot's
        self._record(f"swap {ip}")
        return agent(ip, request.version)

    async def limit_traces(self, ip: str, token: str, budget: TraceBudget) -> AgentState:
        self._record(f"limit {ip}")
        return agent(ip, 0, trace_budget=budget)

    async def advance(self, made: Channel) -> None:
        self._record(f"channel {made.epoch}")

    async def act(self, plan: Plan, status: SpeculatorStatus | None = None) -> ExecutionResult:
        """Execute ``plan``, made from an observation with ``status``."""
        return await self.act_as(self.new_actor(), plan, status)

    def new_actor(self) -> Actor:
        events = EventRecorder(lambda *_, reason, **__: self.calls.append(f"event {reason}"))
        agents: Any = self
        return Actor(self, agents, events)

    async def act_as(self, actor: Actor, plan: Plan, status: SpeculatorStatus | None = None) -> ExecutionResult:
        """:meth:`act` of an actor that may have acted before."""
        owner = owner_of(self.objects["AuroraSpeculator", OWNER.name])
        seen = observed(owner=owner, status=status or SpeculatorStatus())
        store: Any = self
        children = {key: obj for key, obj in self.objects.items() if OWNER.owns(obj)}
        return await actor.act(plan, Snapshot(seen, children, "token"), store)


def swap(pod: str) -> Swap:
    return Swap(pod, pod, SwapRequest(version=1, digest=digest(1), epoch=4))


FULL = Plan(
    create_keys=True,
    children=(*services(OWNER), trainer_deployment(OWNER, spec(), CONFIG, 1)),
    advance=channel(1, epoch=2, previous=0),
    status=SpeculatorStatus(),
    job={"apiVersion": "batch/v1", "kind": "Job", "metadata": {**LABELS, "name": "j"}},
    delete_jobs=("old",),
    swaps=(swap("a"), swap("b")),
    trace_limits=(TraceLimit("e", "e", TraceBudget(tokens_per_minute=9)),),
    notes=(EventNote("Promoted", "version 1"),),
)
WRITTEN = ["create Secret chat-keys", "apply Service chat", "apply Deployment chat-trainer", "channel 2"]
JOBS = ["apply AuroraSpeculator chat/status", "delete Job old", "create Job j"]
ASKED = ["swap a", "swap b", "limit e", "event Promoted"]


async def test_the_order_is_children_channel_status_jobs_swaps_limits_events() -> None:
    world = World()
    assert await world.act(FULL) == ExecutionResult(wrote_status=True)
    assert world.writes == [*WRITTEN, *JOBS, *ASKED]


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("apply Service chat", Conflict("moved on", 409)),
        ("channel 2", ObjectExists("epoch taken")),
        ("apply AuroraSpeculator chat/status", Conflict("moved on", 409)),
        ("apply AuroraSpeculator chat/status", UNAVAILABLE),
        ("create Job j", UNAVAILABLE),
    ],
)
async def test_a_lost_race_leaves_everything_after_it_undone(where: str, error: Exception) -> None:
    """So no agent is asked for anything before the decision behind it is in channel and status."""
    world = World(faults={where: error})
    with pytest.raises(type(error)):
        await world.act(FULL)
    whole = [*WRITTEN, *JOBS, *ASKED]
    assert world.writes == whole[: whole.index(where) + 1]


async def test_refused_children_and_refused_jobs_delay_nothing_else() -> None:
    world = World(faults={"apply Service": KubernetesError("bad port", 422), "create Job": DENIED})
    outcome = await world.act(FULL)
    assert outcome.apply_errors == ("Service chat: bad port",)
    assert outcome.refused_job == RefusedJob("j", "Job j: denied by a webhook")
    assert world.writes[-len(ASKED) :] == ASKED
    world = World(faults={"delete Job": DENIED})
    outcome = await world.act(FULL)
    assert outcome.apply_errors == ("Job old: denied by a webhook",)
    assert world.writes[-len(ASKED) :] == ASKED


async def test_while_the_keys_are_not_ours_no_job_is_made_and_pods_that_serve_are_still_asked() -> None:
    world = World()
    world.put({"kind": "Secret", "metadata": {"name": "chat-keys", "namespace": OWNER.namespace}})
    outcome = await world.act(FULL)
    assert outcome.name_taken == ("Secret chat-keys",)
    assert world.writes[1:] == ["apply Service chat", "channel 2", *JOBS[:2], *ASKED]


async def test_a_pod_is_not_asked_for_the_same_swap_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A swap that fails may have paused the engine."""
    world, clock = World(), SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(actor_module, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
    actor = world.new_actor()
    later = Swap("a", "a", SwapRequest(version=0, digest=digest(0), epoch=5))
    for clock.seconds, asked in ((0.0, swap("a")), (14.0, swap("a")), (14.0, later), (15.0, swap("a"))):
        await world.act_as(actor, Plan(swaps=(asked,)))
    assert world.writes == ["swap a"] * 3, "a new decision is told at once"


async def test_agents_that_do_not_answer_hold_up_nobody_and_a_higher_epoch_is_told() -> None:
    world = World(faults={"swap a": AgentUnreachable("away")})
    assert (await world.act(FULL)).refused_by_epoch == 0
    assert world.writes[-len(ASKED) :] == ASKED
    world = World(faults={"swap a": Fenced("higher epoch", epoch=41), "swap b": Fenced("higher epoch", epoch=42)})
    assert (await world.act(FULL)).refused_by_epoch == 42
    for epoch in (None, 1, swap("a").request.epoch):
        busy = World(faults={"swap a": Fenced("a swap is running", epoch=epoch)})
        assert (await busy.act(FULL)).refused_by_epoch == 0
