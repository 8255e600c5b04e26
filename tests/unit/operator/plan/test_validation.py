"""Which version is measured, and which may be rolled out, when a newer one is registered.

A version that passed waits for its roll. Nothing newer is measured before the roll ended.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aurora_api.v1alpha1.status import (
    CandidatePhase,
    CandidateStatus,
    RolloutPhase,
    RolloutStatus,
    SpeculatorStatus,
)
from aurora_operator.observe.observed import JobView, Observed, StoreView
from aurora_protocol.evidence_records import Evidence, MeasurementEnd, VerdictKind
from tests.unit.operator.worlds import (
    evidence,
    made,
    observed,
    registration,
    spec,
    status,
    store,
    validating,
)

PAUSED = spec(serving={"replicas": 2}, rollout={"paused": True})


def passed_and_waits(*proofs: Evidence, **more: Any) -> Observed:
    """Version 1 passed while rolls were paused. Then version 2 was registered."""
    before = observed(spec=PAUSED, store=store(0, 1, evidence=(evidence(1),)))
    return observed(**{"spec": PAUSED, "status": status(before), "store": proven(*proofs), **more})


def test_a_version_that_passed_waits_for_its_roll_and_nothing_newer_is_measured_meanwhile() -> None:
    delayed = passed_and_waits()
    waiting = made(delayed)
    assert (waiting.job, (waiting.status or delayed.status).candidate) == (None, delayed.status.candidate)
    resumed = made(replace(delayed, spec=observed().spec))
    assert resumed.status is not None
    assert (resumed.status.rollout.phase, resumed.status.rollout.version) == (RolloutPhase.JUDGING, 1)
    assert resumed.job is None, "the version being rolled out may become the one to compare with"


def test_a_version_whose_roll_ended_without_blame_makes_room_for_a_newer_one() -> None:
    delayed = passed_and_waits()
    tried = delayed.status.model_copy(update={"rollout": RolloutStatus(version=1, epoch=3)})
    assert validating(replace(delayed, status=tried)) == 2
    alone = replace(delayed, status=tried, store=store(0, 1, evidence=(evidence(1),)), spec=observed().spec)
    again = status(alone)
    assert (again.rollout.phase, again.rollout.version) == (RolloutPhase.JUDGING, 1), "nothing newer is there to try"


def proven(*more: Evidence) -> StoreView:
    return store(0, 1, 2, evidence=(evidence(1), *more))


def test_a_candidate_with_outdated_evidence_is_replaced_by_the_newest_version() -> None:
    """Version 1 passed, or is measured, against a version that is no longer active."""
    stale = store(0, 1, 2, evidence=(evidence(1, active=7),))
    for phase in (CandidatePhase.VALIDATED, CandidatePhase.VALIDATING):
        known = CandidateStatus(version=1, phase=phase, job="chat-validate-v1-1")
        world = observed(status=SpeculatorStatus(candidate=known), store=stale)
        assert validating(world) == 2
        pinned = replace(world, spec=spec(serving={"replicas": 2}, rollout={"pin": 0}))
        assert validating(pinned) in (None, 1), "nothing new is measured against a version that is to stay"
    alone = replace(stale, registrations={v: registration(v) for v in (0, 1)})
    assert validating(observed(status=SpeculatorStatus(candidate=known), store=alone)) == 1


def test_a_candidate_that_is_being_measured_is_not_replaced() -> None:
    world = observed(store=store(0, 1))
    running = replace(world, status=status(world), jobs=(JobView("chat-validate-v1-1", 1, 1),), store=store(0, 1, 2))
    assert validating(running) == 1


def measured(world: Observed, *proofs: Evidence, newest: int) -> Observed:
    """``world`` after its candidate's measurement, whose evidence is the last of ``proofs``. ``newest`` is registered.

    The Job has ended, and the plan has seen the evidence.
    """
    found = replace(world, jobs=(), store=store(*range(newest + 1), evidence=proofs))
    return replace(found, status=status(found))


def undecided(version: int, end: MeasurementEnd = MeasurementEnd.BUDGET_USED, **more: Any) -> Evidence:
    return evidence(version, VerdictKind.INCONCLUSIVE, end=end, **more)


def candidate(world: Observed) -> CandidateStatus:
    found = world.status.candidate
    assert found is not None
    return found


def started(newest: int = 1) -> Observed:
    world = observed(store=store(*range(newest + 1)))
    return replace(world, status=status(world))


def test_an_undecided_candidate_is_not_measured_again_and_makes_room_for_a_newer_version() -> None:
    first = measured(started(), undecided(1), newest=2)
    assert candidate(first).phase is CandidatePhase.INCONCLUSIVE
    assert first.status.rejected == [1]
    assert [(entry.event, entry.version) for entry in first.status.history] == [("Inconclusive", 1)]
    assert validating(first) == 2
