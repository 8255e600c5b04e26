"""Records and observations with sensible content, for tests that depend on only one or two fields of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from aurora_api.v1alpha1.conditions import Condition, ConditionType
from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.status import CandidatePhase, SpeculatorStatus
from aurora_operator.children.metadata import Owner
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.observed import Observed, PodView, StoreView, WorkloadView
from aurora_operator.operator_config import OperatorConfig
from aurora_operator.plan import Plan, plan
from aurora_protocol.agent_api import AgentState, CaptureCounters, LiveCounters, SwapPhase, SwapStatus
from aurora_protocol.draft_records import (
    Channel,
    ChannelReason,
    DraftSizes,
    Lineage,
    Registration,
    RootOwner,
    TargetIdentity,
)
from aurora_protocol.evidence_records import (
    AnswerEquality,
    Arm,
    Environment,
    Evidence,
    RatioEstimate,
    Sample,
    Verdict,
    VerdictKind,
)
from aurora_protocol.pod_settings import SETTINGS_VARIABLE, ValidationSettings
from aurora_protocol.training_records import TrainerPhase, TrainerStatus
from aurora_store.keys import owner_id
from tests.assets.signing import ROOT_OWNER

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG = OperatorConfig(runtime_image="runtime:1", agent_image="agent:1", operator_namespace="aurora-system")
OWNER = Owner("team", "chat", "0123456789abcdef", 1, "77")
MINIMAL: dict[str, Any] = {
    "target": {"model": "org/model"},
    "store": {"bucket": "bucket", "credentials": {"secretRef": {"name": "s3"}}},
}


def digest(version: int) -> str:
    return f"{version:064x}"


def spec(**parts: Any) -> SpeculatorSpec:
    return SpeculatorSpec.model_validate(MINIMAL | parts, extra="forbid")


def lineage() -> Lineage:
    target = TargetIdentity(
        model="org/model", config_sha256=digest(1), tokenizer_sha256=digest(2), hidden_size=8, vocab_size=16
    )
    return Lineage(
        number=1,
        target=target,
        architecture="EAGLE3",
        draft_vocab_size=8,
        aux_layers=(1, 2, 3),
        tensors={},
        draft_sizes=DraftSizes(
            intermediate_size=16, heads=2, kv_heads=1, head_dim=4, rms_norm_eps=1e-5, rope_theta=1e4, max_positions=64
        ),
        created=NOW,
    )


def registration(version: int) -> Registration:
    return Registration(
        version=version,
        lineage=1,
        checkpoint=f"checkpoints/{version:08d}-{digest(version)[:12]}/",
        digest=digest(version),
        trained_tokens=version * 1000,
        created=NOW,
    )


def trainer_record(**more: Any) -> TrainerStatus:
    """The record of a trainer that waits for its first traces."""
    base = TrainerStatus(
        phase=TrainerPhase.WAITING_FOR_TRACES, step=0, shards=0, trained_tokens=0, held_out_requests=0, updated=NOW
    )
    return base.model_copy(update=more)


def root_owner(owner: Owner = OWNER) -> RootOwner:
    """``owner`` as the owner of its root, as channel records name it."""
    return RootOwner(id=owner_id(owner.uid), namespace=owner.namespace, name=owner.name, since=NOW)


def channel(
    active: int,
    epoch: int = 1,
    previous: int | None = None,
    rejected: tuple[int, ...] = (),
    owner: RootOwner = ROOT_OWNER,
) -> Channel:
    reason = ChannelReason.INITIAL if epoch == 1 else ChannelReason.PROMOTED
    return Channel(
        owner=owner,
        epoch=epoch,
        lineage=1,
        active=active,
        previous=previous,
        reason=reason,
        rejected=rejected,
        created=NOW,
    )


_SPEEDS = {Arm.OFF: 100, Arm.ACTIVE: 135, Arm.CANDIDATE: 162}


def samples(
    rounds: int = 5, speeds: dict[Arm, int] = _SPEEDS, concurrencies: tuple[int, ...] = (1, 4)
) -> tuple[Sample, ...]:
    """Samples with which a candidate passes with the bars of :func:`spec`."""
    return tuple(
        Sample(arm=arm, concurrency=concurrency, round=number, requests=4, tokens=tokens, seconds=1.0)
        for number in range(rounds)
        for concurrency in concurrencies
        for arm, tokens in speeds.items()
    )


def evidence(
    version: int, kind: VerdictKind = VerdictKind.PASS, *, active: int = 0, attempt: int = 1, **more: Any
) -> Evidence:
    def ratio(numerator: Arm, denominator: Arm, estimate: float) -> RatioEstimate:
        return RatioEstimate(
            numerator=numerator,
            denominator=denominator,
            concurrency=1,
            rounds=5,
            estimate=estimate,
            low=estimate - 0.05,
            high=estimate + 0.05,
        )

    ratios = (
        ratio(Arm.CANDIDATE, Arm.OFF, 1.62),
        ratio(Arm.CANDIDATE, Arm.ACTIVE, 1.2),
        ratio(Arm.ACTIVE, Arm.OFF, 1.35),
    )
    made = Evidence(
        version=version,
        attempt=attempt,
        lineage=1,
        candidate_digest=digest(version),
        active_version=active,
        active_digest=digest(active),
        samples=samples(),
        equality=(AnswerEquality(arm=Arm.CANDIDATE, prompts=1, identical=1, near_ties=0, different=0),),
        acceptance_length={Arm.CANDIDATE: 2.0},
        environment=Environment(
            hardware="two cores",
            device="cpu",
            engine="0.5.23",
            torch="2",
            dtype="float32",
            draft_steps=3,
            draft_tokens=4,
        ),
        verdict=Verdict(kind=kind, reasons=("because",), ratios=ratios),
        started=NOW,
        finished=NOW,
    )
    return made.model_copy(update=more)


def agent(pod: str, version: int | None, **more: Any) -> AgentState:
    """The state of a ready pod. ``version`` None: it serves without a draft."""
    state = AgentState(
        pod=pod,
        boot="b1",
        engine_ready=True,
        version=version,
        checksum=None if version is None else f"sum-{version}",
        swap=SwapStatus(phase=SwapPhase.IDLE),
        live=LiveCounters(tokens=100, rounds=50),
        capture=CaptureCounters(answer_tokens=10),
    )
    return state.model_copy(update=more)


def pod(name: str, version: int | None, **more: Any) -> PodView:
    view = PodView(name=name, ip=f"10.0.0.{len(name)}", ready=True, scheduled=True, agent=agent(name, version))
    return replace(view, **more)


NO_ROOM = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


def waiting_pod(name: str) -> PodView:
    """A pod for which the cluster has no room."""
    return PodView(name=name, waiting="Unschedulable", scheduler_message=NO_ROOM)


def observed(**more: Any) -> Observed:
    """Two pods serve the initial draft, the store is readable, and nothing is under way."""
    replicas = more.get("spec", spec(serving={"replicas": 2})).serving.replicas
    ready = WorkloadView(current=True, replicas=replicas, ready=replicas)
    base = Observed(
        owner=OWNER,
        spec=spec(serving={"replicas": 2}),
        status=SpeculatorStatus(),
        pods=(pod("chat-a", 0), pod("chat-b", 0)),
        deployment=ready,
        trainer=WorkloadView(current=True, replicas=1, ready=1),
        store=StoreView(lineage=lineage(), channel=channel(0), registrations={0: registration(0)}),
        keys_exist=True,
    )
    return replace(base, **more)


def made(world: Observed, now: datetime = NOW) -> Plan:
    return plan(world, CONFIG, now)


def status(world: Observed, now: datetime = NOW) -> SpeculatorStatus:
    found = made(world, now).status
    assert found is not None
    return found


def condition(world: Observed, type_: ConditionType) -> Condition:
    return next(c for c in status(world).conditions if c.type is type_)


def store(*versions: int, active: int = 0, **more: Any) -> StoreView:
    base = StoreView(lineage=lineage(), channel=channel(active), registrations={v: registration(v) for v in versions})
    return replace(base, **more)


def validating(world: Observed) -> int | None:
    """The version that is being measured, if any."""
    candidate = (made(world).status or world.status).candidate
    return candidate.version if candidate and candidate.phase is CandidatePhase.VALIDATING else None


def job_settings(job: Object) -> ValidationSettings:
    """The settings that a validation Job gives to its validator."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (variable,) = (variable for variable in container["env"] if variable["name"] == SETTINGS_VARIABLE)
    return ValidationSettings.from_json(variable["value"])
