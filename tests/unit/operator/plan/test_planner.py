"""The whole plan: a draft's life from the first registration to promotion or refusal, and what people see of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.status import (
    CandidatePhase,
    RolloutPhase,
    SpeculatorStatus,
    VersionStatus,
)
from aurora_operator.observe.observed import (
    JobView,
    LiveWindow,
    Observed,
    RefusedJob,
    StoreView,
    UserRequests,
    WorkloadView,
)
from aurora_operator.plan import plan
from aurora_operator.plan.rollout.roll import AnalysisState, PodWindow, Roll, read_roll
from aurora_protocol.agent_api import LiveCounters, SwapPhase
from aurora_protocol.draft_records import ChannelReason
from aurora_protocol.evidence_records import Evidence, VerdictKind
from aurora_protocol.training_records import TrainerPhase, TrainerStatus
from tests.unit.operator.worlds import (
    CONFIG,
    NOW,
    agent,
    channel,
    condition,
    evidence,
    lineage,
    made,
    observed,
    pod,
    registration,
    spec,
    status,
    store,
    validating,
)


def test_the_initial_draft_becomes_active_without_evidence_and_only_then() -> None:
    early = observed(store=StoreView(lineage=lineage()), pods=())
    assert made(early).advance is None
    assert condition(early, ConditionType.SERVING_READY).reason == "WaitingForDraft"
    first = made(observed(store=store(0, channel=None), pods=())).advance
    assert first is not None
    assert (first.epoch, first.active, first.previous) == (1, 0, None)


def test_the_status_tells_how_the_draft_learns_and_what_share_of_the_answers_it_can_say() -> None:
    told = TrainerStatus(
        phase=TrainerPhase.TRAINING,
        step=7,
        shards=2,
        trained_tokens=900,
        held_out_acceptance_length=1.604,
        vocabulary_coverage=0.8456,
        updated=NOW,
    )
    training = status(observed(store=store(0, trainer=told))).training
    assert (training.step, training.trained_tokens) == (7, 900)
    assert (training.held_out_accept_length, training.vocabulary_coverage) == ("1.60", "0.846")


def test_a_draft_lives_from_registration_to_promotion() -> None:
    """Every step is planned from the status of the former one, as after a restart of the operator."""
    unjudged = {"analysis": {"consecutiveSuccessLimit": 0, "watchSeconds": 0}}
    world = observed(store=store(0, 1), spec=spec(serving={"replicas": 2}, rollout=unjudged))
    first = made(world)
    assert first.job is not None
    assert first.job["metadata"]["name"] == "chat-validate-v1-1"
    assert first.status is not None
    assert first.status.candidate is not None
    assert first.status.candidate.phase is CandidatePhase.VALIDATING

    running = JobView("chat-validate-v1-1", 1, 1)
    world = replace(world, status=first.status)
    second = made(replace(world, jobs=(running,)))
    assert (second.job, second.delete_jobs) == (None, ())

    proven = store(0, 1, evidence=(evidence(1),))
    third = made(replace(world, jobs=(replace(running, succeeded=True),), store=proven))
    assert third.status is not None
    assert third.status.rollout.phase is RolloutPhase.CANARY
    assert third.swaps == ()
    assert {note.reason for note in third.notes} >= {"Validated", "RolloutStarted"}

    fourth = made(replace(world, status=third.status, store=proven))
    (swap,) = fourth.swaps
    assert (swap.pod, swap.request.version, swap.request.epoch) == ("chat-a", 1, third.status.rollout.epoch)

    mixed = replace(world, store=proven, pods=(pod("chat-a", 1), pod("chat-b", 0)))
    watched = status(replace(mixed, status=third.status))
    assert watched.updated == "2/2", "a pod on the canary's version serves what it should"
    rolling = made(replace(mixed, status=third.status))
    assert [swap.pod for swap in rolling.swaps] == ["chat-b"]
    assert rolling.status is not None

    both = replace(world, store=proven, pods=(pod("chat-a", 1), pod("chat-b", 1)), status=rolling.status)
    last = made(both)
    assert last.advance is not None
    assert (last.advance.epoch, last.advance.active, last.advance.previous) == (2, 1, 0)
    assert last.advance.evidence == "evidence/00000001/00000001.json"
    assert last.status is not None
    assert last.status.active is not None
    assert (last.status.active.version, last.status.active.speedup) == (1, "1.62x (1.57-1.67)")
    assert last.status.active.gain == "1.20x (1.15-1.25)"
    assert last.status.candidate is None
    assert [entry.event for entry in last.status.history] == ["Promoted"]


def test_a_pause_and_what_ends_it_are_in_the_history() -> None:
    world = observed(store=store(0, 1, evidence=(evidence(1),)))
    world = replace(world, status=status(world))
    for paused in (True, False):
        asked = world.spec.model_copy(update={"rollout": world.spec.rollout.model_copy(update={"paused": paused})})
        world = replace(world, status=status(replace(world, spec=asked)))
    assert [(entry.event, entry.version) for entry in world.status.history] == [("Paused", 1), ("Resumed", 1)]


def promoted_and_watched(**more: Any) -> Observed:
    """Version 1 was just promoted, and since then pods accept half of what they did before."""
    started = made(observed(store=store(0, 1, evidence=(evidence(1),)))).status
    assert started is not None
    analysis = read_roll(started).analysis
    assert analysis is not None
    baseline = LiveCounters(requests=100, verify_rounds=1000, answer_tokens=2000)
    begun = [PodWindow(name=name, boot="b1", version=1, live=LiveCounters()) for name in ("chat-a", "chat-b")]
    roll = Roll(
        phase=RolloutPhase.WATCHING,
        version=1,
        epoch=2,
        progressed=NOW - timedelta(seconds=60),
        analysis=AnalysisState(
            serving_digest=analysis.serving_digest,
            window_began=NOW - timedelta(seconds=30),
            windows=begun,
            baseline=baseline,
            bad_windows=1,
        ),
    )
    rollout, operator_state = roll.status_parts()
    now = LiveCounters(requests=50, verify_rounds=500, answer_tokens=550)
    pods = tuple(pod(name, 1, agent=agent(name, 1, live=now)) for name in ("chat-a", "chat-b"))
    active = channel(1, epoch=2, previous=0)
    return observed(
        store=replace(store(0, 1, evidence=(evidence(1),)), channel=active),
        pods=pods,
        status=SpeculatorStatus(rollout=rollout, operator_state=operator_state),
        **more,
    )


def test_live_traffic_takes_a_promoted_draft_back_and_the_store_remembers() -> None:
    result = made(promoted_and_watched())
    assert result.advance is not None
    assert (result.advance.active, result.advance.previous, result.advance.epoch) == (0, None, 3)
    assert (result.advance.reason, result.advance.rejected) == (ChannelReason.ROLLED_BACK, (1,))
    assert "acceptance length 1.10 against 2.00" in result.advance.message
    assert result.status is not None
    assert [entry.event for entry in result.status.history] == ["RolledBack"]
    assert "acceptance length 1.10 against 2.00" in result.status.history[0].message
    assert result.status.rejected == [1]
    assert result.swaps == ()
    forgotten = replace(
        promoted_and_watched(),
        status=SpeculatorStatus(),
        store=replace(store(0, 1, evidence=(evidence(1),)), channel=result.advance),
    )
    again = made(forgotten)
    assert {swap.request.version for swap in again.swaps} == {0}
    assert (again.job, again.advance) == (None, None), "a lost status does not offer it again"


def test_a_pin_is_obeyed_only_for_what_once_passed() -> None:
    def pinned(version: int, *proofs: Evidence) -> Observed:
        given = spec(serving={"replicas": 2}, rollout={"pin": version})
        return observed(spec=given, store=store(0, 1, 2, evidence=proofs))

    proven = made(pinned(1, evidence(1, active=7)))
    assert proven.advance is not None
    assert (proven.advance.active, proven.advance.previous) == (1, 0)
    assert proven.job is None, "nothing is measured against a version that is to stay"
    refused = pinned(1, evidence(1, VerdictKind.REJECT))
    assert made(refused).advance is None
    assert condition(refused, ConditionType.READY).reason == "PinRefused"
    assert made(pinned(0)).advance is None


def test_a_person_refuses_a_candidate_before_it_is_measured_to_the_end() -> None:
    world = observed(store=store(0, 1))
    refused = made(replace(world, status=status(world), user_requests=UserRequests(abort=1)))
    assert refused.status is not None
    assert refused.status.rejected == [1]
    assert [entry.event for entry in refused.status.history] == ["Rejected"]
    assert refused.advance is not None, "no evidence says it, so the channel has to"
    assert (refused.advance.active, refused.advance.reason, refused.advance.rejected) == (
        0,
        ChannelReason.REFUSED,
        (1,),
    )


def test_what_is_refused_changes_nothing_about_the_active_version() -> None:
    since = NOW - timedelta(days=3)
    old = VersionStatus(version=1, since=since)
    active = channel(1, epoch=4, previous=0).model_copy(update={"evidence": "evidence/1"})
    world = observed(
        store=replace(store(0, 1, 2, evidence=(evidence(1), evidence(2, active=1))), channel=active),
        pods=(pod("chat-a", 1), pod("chat-b", 1)),
    )
    rolled = status(world)
    refused = made(
        replace(world, status=rolled.model_copy(update={"active": old}), user_requests=UserRequests(abort=2))
    )
    assert refused.advance is not None
    assert (refused.advance.active, refused.advance.previous, refused.advance.evidence) == (1, 0, "evidence/1")
    assert refused.status is not None
    assert refused.status.active is not None
    assert refused.status.active.since == since


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"active_version": 5}, "compared with another version"),
        ({"candidate_digest": f"{9:064x}"}, "other weights"),
        ({"lineage": 2}, "another lineage"),
    ],
)
def test_evidence_about_something_else_earns_nothing(changes: dict[str, Any], why: str) -> None:
    assert store(0, 1, evidence=(evidence(1, **changes),)).promotion_evidence(1) is None, why


def test_a_refused_candidate_is_never_offered_again() -> None:
    world = observed(store=store(0, 1, evidence=(evidence(1, VerdictKind.REJECT),)))
    refused = status(world)
    assert (refused.rejected, refused.rollout.phase) == ([1], RolloutPhase.IDLE)
    again = made(replace(world, status=refused, store=store(0, 1, evidence=(evidence(1),))))
    assert (again.job, again.swaps) == (None, ())
    newer = made(replace(world, status=refused, store=store(0, 1, 2)))
    assert newer.job is not None
    assert newer.job["metadata"]["name"] == "chat-validate-v2-1"


def test_two_inconclusive_measurements_and_no_more() -> None:
    world = observed(store=store(0, 1))
    current = status(world)
    for attempt in (1, 2):
        job = JobView(f"chat-validate-v1-{attempt}", 1, attempt, succeeded=True)
        found = tuple(evidence(1, VerdictKind.INCONCLUSIVE, attempt=a) for a in range(1, attempt + 1))
        result = made(replace(world, status=current, jobs=(job,), store=store(0, 1, evidence=found)))
        assert result.status is not None
        current = result.status
        if attempt == 1:
            assert result.job is not None
            assert result.job["metadata"]["name"] == "chat-validate-v1-2"
            assert result.delete_jobs == ("chat-validate-v1-1",)
    assert current.rejected == [1]
    assert current.candidate is not None
    assert current.candidate.phase is CandidatePhase.INCONCLUSIVE


def test_a_measurement_that_could_not_be_made_is_made_again_later_and_rejects_nothing() -> None:
    world = observed(store=store(0, 1))
    current, now = status(world), NOW
    waits: list[float] = []
    for attempt in range(1, 9):
        job = JobView(f"chat-validate-v1-{attempt}", 1, attempt, failed=True, message="2 prompts: wait for traffic")
        world = replace(world, jobs=(job,))
        failed = made(replace(world, status=current), now)
        assert failed.status is not None
        assert failed.status.candidate is not None
        assert (failed.job, failed.delete_jobs) == (None, ()), "its log is kept"
        assert "wait for traffic" in failed.status.candidate.message
        assert (failed.status.rejected, failed.status.history) == ([], [])
        current, began = failed.status, now
        while (result := made(replace(world, status=current), now)).job is None:
            now += timedelta(seconds=5)
        assert result.job["metadata"]["name"] == f"chat-validate-v1-{attempt + 1}"
        assert result.status is not None
        current = result.status
        waits.append((now - began).total_seconds())
    assert waits == [30, 60, 120, 240, 480, 960, 1800, 1800]
    set_back = made(replace(world, status=current, jobs=(replace(job, attempt=9),)), now)
    assert set_back.status is not None
    earlier = made(replace(world, status=set_back.status), now - timedelta(days=1))
    assert earlier.job is not None, "a clock that is set back delays nothing"


def test_a_measurement_whose_pod_does_not_start_says_so_until_it_does() -> None:
    world, job = observed(store=store(0, 1)), JobView("chat-validate-v1-1", 1, 1)
    for waiting, expected in (
        ("Unschedulable: 1 Insufficient nvidia.com/gpu.", "does not start: Unschedulable: 1 Insufficient"),
        ("", "measuring on the real engine"),
    ):
        world = replace(world, status=status(world), jobs=(replace(job, waiting=waiting),))
        told = condition(world, ConditionType.CANDIDATE_VALIDATED)
        assert (told.status.value, told.reason) == ("Unknown", "Validating")
        assert expected in told.message


def test_a_trainer_that_cannot_start_is_not_ready() -> None:
    why = "reading the target failed: meta/gated does not exist or needs access: set HF_TOKEN"
    told = TrainerStatus(phase=TrainerPhase.STARTING, step=0, shards=0, trained_tokens=0, message=why, updated=NOW)
    found = condition(observed(store=store(0, trainer=told)), ConditionType.TRAINER_READY)
    assert (found.status.value, found.reason, found.message) == ("False", "Starting", why)


def test_a_refused_job_is_a_measurement_that_could_not_be_made() -> None:
    asked = observed(store=store(0, 1), status=status(observed(store=store(0, 1))))
    refused = replace(asked, refused_job=RefusedJob("chat-validate-v1-1", "admission webhook denied it"))
    failed = made(refused)
    assert failed.status is not None
    assert failed.status.candidate is not None
    assert failed.status.candidate.phase is CandidatePhase.FAILED
    assert "admission webhook denied it" in failed.status.candidate.message
    assert "in 30 s" in failed.status.candidate.message
    assert failed.job is None
    assert condition(refused, ConditionType.READY).status.value == "True", "pods serve as well as before"
    again = made(replace(asked, status=failed.status), NOW + timedelta(seconds=30)).job
    assert again is not None
    assert again["metadata"]["name"] == "chat-validate-v1-2"
    for other in (
        replace(refused, jobs=(JobView("chat-validate-v1-1", 1, 1),)),
        replace(asked, refused_job=RefusedJob("chat-validate-v0-7", "no")),
    ):
        assert validating(other) == 1, "another process created it, or it was another Job"


def test_a_newer_candidate_does_not_wait_for_one_that_could_not_be_measured() -> None:
    world = observed(store=store(0, 1))
    failed = status(replace(world, status=status(world), jobs=(JobView("chat-validate-v1-1", 1, 1, failed=True),)))
    result = made(replace(world, status=failed, store=store(0, 1, 2)))
    assert result.job is not None
    assert result.job["metadata"]["name"] == "chat-validate-v2-1"


def test_a_canary_without_traffic_gives_way_and_the_newer_version_is_measured() -> None:
    """The roll ends without blame; what it tried is neither refused nor tried again before the newer one."""
    proven = store(0, 1, 2, evidence=(evidence(1),))
    world = observed(store=replace(proven, registrations={v: registration(v) for v in (0, 1)}))
    began = status(world)
    assert began.rollout.phase is RolloutPhase.CANARY
    world = replace(world, status=status(replace(world, status=began)), store=proven)
    ended = made(world, NOW + timedelta(seconds=601))
    assert ended.status is not None
    assert (ended.status.rollout.phase, ended.advance) == (RolloutPhase.ROLLING_BACK, None)
    idle = status(replace(world, status=ended.status))
    assert (idle.rollout.phase, idle.rejected) == (RolloutPhase.IDLE, [])
    assert [(entry.event, entry.version) for entry in idle.history] == [("RolloutStopped", 1)]
    after = made(replace(world, status=idle))
    assert after.job is not None
    assert after.job["metadata"]["name"] == "chat-validate-v2-1"
    refused = idle.model_copy(update={"rejected": [2]})
    again = status(replace(world, status=refused))
    assert (again.rollout.phase, again.rollout.version) == (RolloutPhase.CANARY, 1), "nothing better is left to try"


def test_a_lost_status_is_rebuilt_from_the_store() -> None:
    rebuilt = status(observed(store=store(0, 1, evidence=(evidence(1),))))
    assert rebuilt.rollout.phase is RolloutPhase.CANARY, "no second measurement of what was measured"


def test_no_decision_about_versions_while_the_store_is_out_of_reach() -> None:
    rolling = status(observed(store=store(0, 1, evidence=(evidence(1),))))
    dark = replace(
        observed(pods=(pod("chat-a", 1), pod("chat-b", 0))),
        status=rolling,
        store=StoreView(reason="Unreachable", error="get channel: no route"),
    )
    result = made(dark, NOW + timedelta(hours=1))
    assert (result.swaps, result.advance, result.job) == ((), None, None)
    assert result.status is not None
    assert result.status.rollout == rolling.rollout
    assert result.status.active == rolling.active
    assert condition(dark, ConditionType.STORAGE_READY).reason == "Unreachable"


def test_ready_is_about_this_generation_and_every_pod() -> None:
    assert condition(observed(), ConditionType.READY).status.value == "True"
    old = WorkloadView(current=False, replicas=2, ready=2)
    assert condition(observed(deployment=old), ConditionType.READY).reason == "PodsUpdating"
    stray = observed(pods=(pod("chat-a", 0), pod("chat-b", 3)))
    assert condition(stray, ConditionType.READY).reason == "SwapsPending"
    hidden = observed(pods=(pod("chat-a", 0), pod("chat-b", 0, agent=None)))
    assert condition(hidden, ConditionType.READY).reason == "PodsNotReady"
    refused = observed(apply_errors=("Deployment chat: no",))
    assert condition(refused, ConditionType.READY).reason == "ApplyRefused"


def test_transition_times_change_with_the_status_only() -> None:
    first = status(observed())
    later = NOW + timedelta(minutes=5)
    stray = observed(pods=(pod("chat-a", 0), pod("chat-b", 3)), status=first)
    times = {c.type: c.last_transition_time for c in status(stray, later).conditions}
    assert times[ConditionType.SERVING_READY] == later
    assert times[ConditionType.READY] == NOW, "the other pod serves"
    assert times[ConditionType.STORAGE_READY] == NOW
    down = observed(pods=(pod("chat-a", 0, ready=False), pod("chat-b", 0, ready=False)), status=first)
    times = {c.type: c.last_transition_time for c in status(down, later).conditions}
    assert times[ConditionType.READY] == later
    assert times[ConditionType.AVAILABLE] == later
    assert times[ConditionType.STORAGE_READY] == NOW


def test_an_idle_speculator_writes_nothing_and_running_figures_wait() -> None:
    first = status(observed())
    same = observed(status=first)
    assert plan(same, CONFIG, NOW + timedelta(hours=1), timedelta(hours=1)).status is None
    busier = replace(same, pods=(pod("chat-a", 0), pod("chat-b", 0, agent=agent("chat-b", 0, boot="b2"))))
    counted = replace(
        busier,
        live_window={
            p.name: LiveWindow("b1", NOW, agent("x", 0).live.model_copy(update={"answer_tokens": 0})) for p in same.pods
        },
    )
    assert plan(counted, CONFIG, NOW, timedelta(seconds=1)).status is None
    written = plan(counted, CONFIG, NOW, timedelta(seconds=5)).status
    assert written is None, "no verify round passed in the window"


def test_live_acceptance_is_tokens_per_round_of_one_engine_start() -> None:
    start = agent("x", 0).live.model_copy(update={"answer_tokens": 10, "verify_rounds": 10})
    window = {"chat-a": LiveWindow("b1", NOW, start), "chat-b": LiveWindow("former", NOW, start)}
    shown = status(observed(live_window=window))
    assert shown.accept_length == "2.25"
    assert [p.accept_length for p in shown.pods] == ["2.25", None]


def test_a_pod_that_cannot_return_needs_a_human() -> None:
    swap = agent("x", 0).swap.model_copy(
        update={"phase": SwapPhase.FAILED, "version": 0, "error": "disk full", "finished": NOW}
    )
    stuck = pod("chat-b", 3, agent=agent("chat-b", 3, swap=swap))
    assert "disk full" in condition(observed(pods=(pod("chat-a", 0), stuck)), ConditionType.DEGRADED).message


def test_the_initial_draft_shows_the_speedup_it_had_beside_its_candidates() -> None:
    shown = status(observed(store=store(0, 1, evidence=(evidence(1, VerdictKind.REJECT),))))
    assert shown.active is not None
    assert shown.active.speedup == "1.35x (1.30-1.40)"
    assert shown.active.speedup_source == "cpu: two cores, float32, concurrency 1"


def test_nothing_is_measured_without_a_pod_that_serves() -> None:
    assert made(observed(store=store(0, 1), pods=())).job is None


def test_jobs_of_nobody_are_deleted_and_the_last_log_is_kept() -> None:
    world = observed(store=store(0, 1, evidence=(evidence(1, VerdictKind.REJECT),)))
    jobs = (JobView("chat-validate-v1-1", 1, 1, succeeded=True), JobView("chat-validate-v0-9", 0, 9))
    assert made(replace(world, jobs=jobs)).delete_jobs == ("chat-validate-v0-9",)


def test_a_spec_with_zero_replicas_is_ready_and_quiet() -> None:
    nothing = spec(serving={"replicas": 0})
    world = observed(spec=nothing, pods=(), deployment=WorkloadView(current=True, replicas=0, ready=0))
    assert condition(world, ConditionType.READY).reason == "ScaledToZero"
    assert not made(world).moving
