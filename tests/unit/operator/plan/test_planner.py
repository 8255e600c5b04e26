"""The whole plan: a version's life from its registration to its promotion or rejection."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.status import (
    MAX_REJECTED,
    CandidatePhase,
    CandidateStatus,
    RolloutPhase,
    RolloutStatus,
    SpeculatorStatus,
)
from aurora_operator.observe.observed import (
    JobView,
    Observed,
    RefusedJob,
    StoreView,
)
from aurora_operator.plan.rollout.roll import AnalysisState, PodWindow, Roll, read_roll
from aurora_protocol.agent_api import LiveCounters, SwapPhase, SwapStatus
from aurora_protocol.draft_records import ChannelReason
from aurora_protocol.evidence_records import Evidence, VerdictKind
from tests.unit.operator.counters import counters
from tests.unit.operator.worlds import (
    NOW,
    agent,
    channel,
    condition,
    digest,
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


def test_the_initial_draft_becomes_active_without_evidence_once_it_is_registered() -> None:
    early = observed(store=StoreView(lineage=lineage()), pods=())
    assert made(early).advance is None
    first = made(observed(store=store(0, channel=None), pods=())).advance
    assert first is not None
    assert (first.epoch, first.active, first.previous) == (1, 0, None)


def test_a_version_goes_from_registration_to_promotion() -> None:
    """Each step is planned from the status of the former one, as after a restart of the operator."""
    unjudged = {"analysis": {"minRequests": 0}}
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
    assert third.status.rollout.phase is RolloutPhase.JUDGING
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


def promoted_and_watched(**more: Any) -> Observed:
    """Version 1 was just promoted, and since then pods accept half of what they did before."""
    started = made(observed(store=store(0, 1, evidence=(evidence(1),)))).status
    assert started is not None
    analysis = read_roll(started).analysis
    assert analysis is not None
    baseline = counters(100, 2.0)
    begun = [PodWindow(name=name, boot="b1", version=1, live=LiveCounters()) for name in ("chat-a", "chat-b")]
    roll = Roll(
        phase=RolloutPhase.JUDGING,
        version=1,
        epoch=2,
        promoted=True,
        progressed=NOW - timedelta(seconds=60),
        analysis=AnalysisState(
            serving_digest=analysis.serving_digest,
            window_begins=NOW - timedelta(seconds=30),
            windows=begun,
            baseline=baseline,
            bad_windows=1,
        ),
    )
    rollout, operator_state = roll.status_parts()
    now = counters(50, 1.1)
    pods = tuple(pod(name, 1, agent=agent(name, 1, live=now)) for name in ("chat-a", "chat-b"))
    active = channel(1, epoch=2, previous=0)
    return observed(
        store=replace(store(0, 1, evidence=(evidence(1),)), channel=active),
        pods=pods,
        status=SpeculatorStatus(rollout=rollout, operator_state=operator_state),
        **more,
    )


def test_a_promoted_version_that_live_traffic_rejects_is_rolled_back_and_stays_rejected() -> None:
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


def test_only_a_version_that_once_passed_can_be_pinned() -> None:
    def pinned(version: int, *proofs: Evidence) -> Observed:
        given = spec(serving={"replicas": 2}, rollout={"pin": version})
        return observed(spec=given, store=store(0, 1, 2, evidence=proofs))

    proven = made(pinned(1, evidence(1, active=7)))
    assert proven.advance is not None
    assert (proven.advance.active, proven.advance.previous) == (1, 0)
    assert proven.job is None, "nothing is measured while a version is pinned"
    refused = pinned(1, evidence(1, VerdictKind.REJECT))
    assert made(refused).advance is None
    assert condition(refused, ConditionType.READY).reason == "PinRefused"
    assert made(pinned(0)).advance is None
    whole = pinned(1, evidence(1, active=7))
    expired = replace(whole, store=replace(whole.store, expired=frozenset({1}), kept=(0, 2)))
    assert made(expired).advance is None, "its weights are gone"
    told = condition(expired, ConditionType.READY)
    assert told.reason == "PinRefused"
    assert "draftHistoryLimit is 10" in told.message
    assert status(expired).kept_versions == [0, 2]
    away = replace(expired, status=status(expired), store=StoreView(reason="Unreachable", error="no route"))
    assert status(away).kept_versions == [0, 2]
    serving = channel(1).model_copy(update={"active_digest": digest(1)})
    assert store(0, 1, channel=serving, expired=frozenset({1})).may_be_pinned(1), "the active version has its weights"


def test_a_person_aborts_a_candidate_while_it_is_measured() -> None:
    world = observed(store=store(0, 1))
    refused = made(replace(world, status=status(world), abort=1))
    assert refused.status is not None
    assert refused.status.rejected == [1]
    assert [entry.event for entry in refused.status.history] == ["Rejected"]
    assert refused.status.candidate is not None
    assert (refused.status.candidate.version, refused.status.candidate.phase) == (1, CandidatePhase.REJECTED)
    assert refused.advance is not None, "no evidence records the rejection, so the channel does"
    assert (refused.advance.active, refused.advance.reason, refused.advance.rejected) == (
        0,
        ChannelReason.REFUSED,
        (1,),
    )


def test_a_candidate_that_no_pod_can_load_stays_in_the_status_as_rejected_and_says_why() -> None:
    begun = observed(store=store(0, 1, evidence=(evidence(1),)))
    begun = replace(begun, status=status(begun))
    failed = SwapStatus(phase=SwapPhase.FAILED, version=1, epoch=begun.status.rollout.epoch, error="shapes differ")
    pods = tuple(pod(name, 0, agent=agent(name, 0, swap=failed)) for name in ("chat-a", "chat-b"))
    result = made(replace(begun, pods=pods), NOW + timedelta(minutes=20))
    assert result.advance is not None
    assert result.status is not None
    assert result.status.candidate is not None
    assert result.status.candidate.phase is CandidatePhase.REJECTED
    assert "shapes differ" in result.status.candidate.message


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"active_version": 5}, "compared with another version"),
        ({"candidate_digest": f"{9:064x}"}, "other weights"),
        ({"active_digest": f"{9:064x}"}, "compared with other weights"),
        ({"lineage": 2}, "another lineage"),
    ],
)
def test_evidence_about_another_version_or_lineage_does_not_count(changes: dict[str, Any], why: str) -> None:
    assert store(0, 1, evidence=(evidence(1, **changes),)).promotion_evidence(1) is None, why


def test_a_failed_measurement_rejects_nothing_and_is_made_again() -> None:
    world = observed(store=store(0, 1))
    job = JobView("chat-validate-v1-1", 1, 1, failed=True, message="2 prompts: wait for traffic")
    world = replace(world, status=status(world), jobs=(job,))
    failed = made(world)
    assert failed.status is not None
    assert failed.status.candidate is not None
    assert (failed.job, failed.delete_jobs) == (None, ()), "its log is kept"
    assert "wait for traffic" in failed.status.candidate.message
    assert (failed.status.rejected, failed.status.history) == ([], [])
    rested = replace(world, status=failed.status)
    assert made(rested, NOW + timedelta(seconds=29)).job is None
    for later in (timedelta(seconds=30), timedelta(days=-1)):
        again = made(rested, NOW + later).job
        assert again is not None, "a clock that is set back delays nothing"
        assert again["metadata"]["name"] == "chat-validate-v1-2"


def test_the_message_says_that_the_measuring_pod_does_not_start_until_it_does() -> None:
    world, job = observed(store=store(0, 1)), JobView("chat-validate-v1-1", 1, 1)
    for waiting, expected in (
        ("Unschedulable: 1 Insufficient nvidia.com/gpu.", "does not start: Unschedulable: 1 Insufficient"),
        ("", "measuring on the real engine"),
    ):
        world = replace(world, status=status(world), jobs=(replace(job, waiting=waiting),))
        shown = status(world).candidate
        assert shown is not None
        assert (shown.phase.value, expected in shown.message) == ("Validating", True)


def test_a_job_that_finds_no_node_for_ten_minutes_is_given_up_and_made_again() -> None:
    asked = observed(store=store(0, 1), status=status(observed(store=store(0, 1))))

    def waits(minutes: int) -> Observed:
        since = NOW - timedelta(minutes=minutes)
        return replace(
            asked, jobs=(JobView("chat-validate-v1-1", 1, 1, waiting="Unschedulable", unplaced_since=since),)
        )

    assert made(waits(9)).delete_jobs == ()
    given_up = made(waits(11))
    assert given_up.delete_jobs == ("chat-validate-v1-1",)
    assert given_up.status is not None
    assert given_up.status.candidate is not None
    assert given_up.status.candidate.phase is CandidatePhase.FAILED
    again = made(replace(asked, status=given_up.status), NOW + timedelta(seconds=30)).job
    assert again is not None
    assert again["metadata"]["name"] == "chat-validate-v1-2"


def test_a_refused_job_counts_as_a_failed_measurement() -> None:
    asked = observed(store=store(0, 1), status=status(observed(store=store(0, 1))))
    refused = replace(asked, refused_job=RefusedJob("chat-validate-v1-1", "admission webhook denied it"))
    failed = made(refused)
    assert failed.status is not None
    assert failed.status.candidate is not None
    assert failed.status.candidate.phase is CandidatePhase.FAILED
    assert "admission webhook denied it" in failed.status.candidate.message
    assert failed.status.candidate.not_before == NOW + timedelta(seconds=30)
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


def test_a_canary_without_traffic_stops_so_that_the_newer_version_is_measured() -> None:
    """The roll stops without blame. Its version is neither rejected nor rolled out again before the newer one."""
    proven = store(0, 1, 2, evidence=(evidence(1),))
    world = observed(store=replace(proven, registrations={v: registration(v) for v in (0, 1)}))
    began = status(world)
    assert began.rollout.phase is RolloutPhase.JUDGING
    world = replace(world, status=status(replace(world, status=began)), store=proven)
    ended = made(world, NOW + timedelta(seconds=6001))
    assert ended.status is not None
    assert (ended.status.rollout.phase, ended.advance) == (RolloutPhase.IDLE, None)
    idle = status(replace(world, status=ended.status))
    assert (idle.rollout.phase, idle.rejected) == (RolloutPhase.IDLE, [])
    assert [(entry.event, entry.version) for entry in idle.history] == [("RolloutStopped", 1)]
    after = made(replace(world, status=idle))
    assert after.job is not None
    assert after.job["metadata"]["name"] == "chat-validate-v2-1"


def test_a_lost_status_is_rebuilt_from_the_store() -> None:
    rebuilt = status(observed(store=store(0, 1, evidence=(evidence(1),))))
    assert rebuilt.rollout.phase is RolloutPhase.JUDGING, "the version is not measured twice"


def test_nothing_is_decided_about_versions_while_the_store_cannot_be_read() -> None:
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


def test_obsolete_jobs_are_deleted_and_the_candidates_last_job_is_kept() -> None:
    world = observed(store=store(0, 1, evidence=(evidence(1, VerdictKind.REJECT),)))
    jobs = (JobView("chat-validate-v1-1", 1, 1, succeeded=True), JobView("chat-validate-v0-9", 0, 9))
    assert made(replace(world, jobs=jobs)).delete_jobs == ("chat-validate-v0-9",)


REJECTED = list(range(1, 201))
NEWEST = REJECTED[-MAX_REJECTED:]


def passed_before(newest: int, before: SpeculatorStatus) -> Observed:
    """The newest registered version passed its measurement. All versions up to 200 were rejected later."""
    return observed(store=store(0, newest, evidence=(evidence(newest),)), status=before)


def test_the_status_lists_the_newest_rejected_versions() -> None:
    candidate = CandidateStatus(version=9, phase=CandidatePhase.REJECTED)
    before = SpeculatorStatus(rejected=REJECTED, candidate=candidate, rollout=RolloutStatus(version=5))
    world = passed_before(200, before)
    after = status(world)
    assert after.rejected == NEWEST
    assert made(replace(world, status=after)).status is None, "the list stays as it is"
    unread = replace(world, store=replace(world.store, channel=None))
    assert status(unread).rejected == NEWEST


def test_a_version_that_is_newer_than_all_rejected_ones_is_measured() -> None:
    world = observed(store=store(0, 201), status=SpeculatorStatus(rejected=REJECTED))
    assert validating(world) == 201
    assert validating(replace(world, status=status(world))) == 201
