"""A plan is made whatever is observed, and it asks no pod for a version without evidence (promise 1)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aurora_api.v1alpha1.status import (
    AttemptReason,
    CandidatePhase,
    CandidateStatus,
    RolloutPhase,
    SpeculatorStatus,
)
from aurora_api.v1alpha1.validation import MeasureOn
from aurora_operator.observe.observed import JobView, Observed, PodView, StoreView
from aurora_operator.plan import plan
from aurora_operator.plan.rollout.roll import AnalysisState, PodWindow, Roll
from aurora_protocol.agent_api import LiveCounters, MeasurementPhase, MeasurementStatus, SwapPhase, SwapStatus
from aurora_protocol.draft_records import ChannelReason
from aurora_protocol.evidence_records import Evidence, MeasurementEnd, VerdictKind
from tests.example_count import example_count
from tests.unit.operator.worlds import (
    CONFIG,
    NOW,
    agent,
    channel,
    evidence,
    job_settings,
    lineage,
    observed,
    pod,
    registration,
    spec,
)

VERSIONS = st.integers(0, 3)
TIMES = st.integers(-700, 0).map(lambda seconds: NOW + timedelta(seconds=seconds))
SWAPS = st.builds(
    SwapStatus,
    phase=st.sampled_from(SwapPhase),
    version=st.none() | VERSIONS,
    epoch=st.none() | st.integers(0, 9),
    finished=st.none() | TIMES,
    error=st.just("no"),
)


MEASUREMENTS = st.none() | st.builds(
    MeasurementStatus,
    measurement=st.sampled_from(["chat-validate-v1-1", "chat-validate-v2-2", "other"]),
    phase=st.sampled_from(MeasurementPhase),
)
COUNTERS = st.builds(LiveCounters, **{name: st.integers(0, 2000) for name in LiveCounters.model_fields})
ANALYSES = st.builds(
    AnalysisState,
    window_begins=st.none() | TIMES,
    baseline=st.none() | COUNTERS,
    good_windows=st.integers(0, 2),
    bad_windows=st.integers(0, 2),
    windows=st.lists(
        st.builds(
            PodWindow, name=st.sampled_from(["chat-a", "chat-b"]), boot=st.just("b1"), version=VERSIONS, live=COUNTERS
        ),
        max_size=2,
        unique_by=lambda window: window.name,
    ),
)


@st.composite
def pods(draw: st.DrawFn, name: str) -> PodView:
    version = draw(VERSIONS)
    known = {
        "swap": draw(SWAPS),
        "version": draw(st.none() | st.just(version)),
        "checksum": draw(st.sampled_from([None, f"sum-{version}", "other"])),
        "engine_ready": draw(st.booleans()),
        "live": draw(COUNTERS),
        "measurement": draw(MEASUREMENTS),
    }
    state = agent(name, version).model_copy(update=known)
    return pod(
        name,
        version,
        agent=draw(st.sampled_from([state, None])),
        ready=draw(st.booleans()),
        terminating=draw(st.booleans()),
        ip=draw(st.sampled_from(["10.0.0.1", ""])),
        lone_restarts=draw(st.none() | st.integers(-1, 2)),
    )


@st.composite
def proofs(draw: st.DrawFn) -> Evidence:
    return evidence(
        draw(st.integers(1, 3)),
        draw(st.sampled_from(VerdictKind)),
        active=draw(VERSIONS),
        attempt=draw(st.integers(1, 2)),
        end=draw(st.none() | st.sampled_from(MeasurementEnd)),
    )


@st.composite
def stores(draw: st.DrawFn) -> StoreView:
    if draw(st.integers(0, 9)) == 0:
        return StoreView(reason="Unreachable", error="no route")
    active = draw(VERSIONS)
    versions = draw(st.sets(VERSIONS)) | {0, active}
    return StoreView(
        lineage=lineage(),
        channel=draw(
            st.none()
            | st.builds(
                channel,
                st.just(active),
                epoch=st.integers(1, 5),
                previous=st.none() | st.sampled_from(sorted(versions)).filter(lambda v: v != active),
                rejected=st.lists(VERSIONS, max_size=1).map(tuple),
            )
        ),
        registrations={v: registration(v) for v in versions},
        evidence=tuple(draw(st.lists(proofs(), max_size=4))),
    )


@st.composite
def statuses(draw: st.DrawFn) -> SpeculatorStatus:
    candidate = draw(
        st.none()
        | st.builds(
            CandidateStatus,
            version=st.integers(1, 3),
            phase=st.sampled_from(CandidatePhase),
            attempt=st.integers(1, 2),
            job=st.sampled_from(["chat-validate-v1-1", "chat-validate-v2-2"]),
            pod=st.sampled_from([None, "chat-a", "chat-b"]),
            attempt_reason=st.sampled_from(AttemptReason),
            not_before=st.none() | TIMES,
        )
    )
    roll = draw(
        st.builds(
            Roll,
            phase=st.sampled_from(RolloutPhase),
            epoch=st.integers(0, 9),
            version=st.none() | VERSIONS,
            paused=st.booleans(),
            promoted=st.booleans(),
            started=st.none() | TIMES,
            progressed=st.none() | TIMES,
            lone_restarts=st.dictionaries(st.sampled_from(["chat-a", "chat-b"]), st.integers(-1, 1)),
            engine_crashes=st.integers(0, 2),
            analysis=st.none() | ANALYSES,
        )
    )
    rollout, state = roll.status_parts()
    return SpeculatorStatus(
        candidate=candidate,
        rollout=rollout,
        operator_state=draw(st.sampled_from([state, state, state, {}, {"analysis": "unreadable"}])),
        rejected=draw(st.lists(VERSIONS, max_size=2)),
    )


@st.composite
def worlds(draw: st.DrawFn) -> Observed:
    names = ["chat-a", "chat-b", "chat-c"][: draw(st.integers(0, 3))]
    flags = dict.fromkeys(("succeeded", "failed", "suspended"), st.booleans())
    jobs = st.builds(JobView, st.just("job"), VERSIONS, st.integers(1, 2), **flags)
    return replace(
        observed(
            spec=spec(
                serving={"replicas": 3},
                rollout={"paused": draw(st.booleans()), "pin": draw(st.none() | VERSIONS)},
                validation={"measureOn": draw(st.sampled_from(["Job", "Replica"]))},
            )
        ),
        abort=draw(st.none() | VERSIONS),
        pods=tuple(draw(pods(name)) for name in names),
        store=draw(stores()),
        status=draw(statuses()),
        jobs=tuple(draw(st.lists(jobs, max_size=2))),
        observation_gap=draw(st.booleans()),
        refused_by_epoch=draw(st.integers(0, 20)),
    )


@settings(max_examples=example_count(400), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(worlds())
def test_every_plan_is_sound(world: Observed) -> None:
    made = plan(world, CONFIG, NOW)
    store = world.store
    if store.channel is None:
        assert (made.swaps, made.job) == ((), None)
        return
    rejected = {*world.status.rejected, *store.channel.rejected}
    for swap in made.swaps:
        version = swap.request.version
        assert version == store.channel.active or (store.promotion_evidence(version) and version not in rejected)
        assert swap.request.epoch >= max(world.status.rollout.epoch, store.channel.epoch)
        assert swap.ip
    lent = {view.name for view in world.pods if view.measurement is not None}
    assert not lent & {swap.pod for swap in made.swaps}, "a withdrawn pod is asked for nothing"
    replica = job_settings(made.job).replica if made.job is not None else None
    if replica is not None:
        others = [v for v in world.pods if v.name != replica.pod]
        assert not lent
        assert others
        assert all(v.ready and v.agent and v.agent.version == store.channel.active for v in others)
        assert world.status.rollout.phase is RolloutPhase.IDLE
        assert made.status is None or made.status.rollout.phase is RolloutPhase.IDLE
        assert made.status is None or (made.status.candidate and made.status.candidate.pod == replica.pod)
    if made.job is not None:
        assert (replica is not None) == (world.spec.validation.measure_on is MeasureOn.REPLICA)
    if made.advance is not None:
        assert made.advance.epoch == store.channel.epoch + 1
        active, reason = made.advance.active, made.advance.reason
        if reason is ChannelReason.PROMOTED:
            assert store.promotion_evidence(active)
            assert active not in rejected
        elif reason is ChannelReason.PINNED:
            assert active == world.spec.rollout.pin
            assert store.may_be_pinned(active)
        else:
            back = reason is ChannelReason.ROLLED_BACK
            assert active == (store.channel.previous if back else store.channel.active)
            assert active not in set(made.advance.rejected) - set(store.channel.rejected)
            assert made.advance.message
        assert set(store.channel.rejected) <= set(made.advance.rejected)
    if made.job is not None:
        assert int(made.job["metadata"]["labels"]["aurora.dev/version"]) > store.channel.active
    if made.status is not None:
        assert made.status.rollout.epoch >= world.status.rollout.epoch
        assert SpeculatorStatus.model_validate_json(made.status.model_dump_json(by_alias=True)) == made.status


@settings(max_examples=example_count(100), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(worlds())
def test_planning_again_from_the_planned_status_comes_to_rest(world: Observed) -> None:
    """Only the channel changes outside. A watch ends and deadlines pass, and then the status stays the same.

    One change goes on: a pod whose swap fails is asked again for as long as it fails, and the status notes when.
    """
    now, status = NOW, world.status
    for _ in range(30):
        now += timedelta(seconds=400)
        made = plan(replace(world, status=status, observation_gap=False, refused_by_epoch=0), CONFIG, now)
        if made.status is None or _without_retries(made.status) == _without_retries(status):
            return
        status = made.status
        if made.advance is not None:
            world = replace(world, store=replace(world.store, channel=made.advance))
    raise AssertionError(f"still writing: {status.rollout}, {status.candidate}")


def _without_retries(status: SpeculatorStatus) -> SpeculatorStatus:
    state = {name: value for name, value in status.operator_state.items() if name not in ("asked",)}
    return status.model_copy(update={"operator_state": state})
