"""The list of rejected versions stays short, and a version that left the list is never offered again."""

from __future__ import annotations

from dataclasses import replace

from aurora_api.v1alpha1.status import (
    MAX_REJECTED,
    CandidatePhase,
    CandidateStatus,
    RolloutStatus,
    SpeculatorStatus,
)
from aurora_operator.observe.observed import Observed
from tests.unit.operator.worlds import evidence, made, observed, status, store, validating

REJECTED = list(range(1, 201))
NEWEST = REJECTED[-MAX_REJECTED:]


def passed_before(newest: int, before: SpeculatorStatus) -> Observed:
    """The newest registered version passed its measurement. All versions up to 200 were rejected later."""
    return observed(store=store(0, newest, evidence=(evidence(newest),)), status=before)


def test_the_status_lists_the_newest() -> None:
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
