"""The trace of a version tells its whole life once, and a restarted operator goes on with it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.status import PodStatus, RolloutPhase, RolloutStatus, SpeculatorStatus
from aurora_operator.observe.observed import Observed
from aurora_operator.roll_traces.roll_spans import spans_of
from aurora_operator.roll_traces.span import MAX_INTEGER, MIN_INTEGER, Span, nanoseconds
from aurora_protocol.agent_api import SwapPhase, SwapStatus
from tests.unit.operator.roll_traces.traced_life import life, tree
from tests.unit.operator.worlds import NOW, OWNER, agent, observed, pod

MEASURED = ["offer", "offer > measurement: Validated", "measurement > rounds"]


def test_a_version_that_becomes_active_is_one_trace() -> None:
    version = life(pods=3)
    version.live(40)
    assert tree(version.spans) == [
        *MEASURED,
        "canary > swap: pod-01",
        "rollout > canary",
        "rolling > swap: pod-02",
        "rolling > swap: pod-03",
        "rollout > rolling",
        "offer > decision: Promoted",
        "rollout > watching",
        "offer > rollout: Completed",
    ]
    phases = {span.name: span for span in version.spans}
    assert phases["canary"].start == phases["rollout"].start, "each phase begins where the one before ended"
    assert phases["canary"].end == phases["rolling"].start
    assert phases["rolling"].end == phases["watching"].start
    assert phases["watching"].end == phases["rollout"].end
    assert phases["measurement"].end <= phases["rollout"].start
    assert [span.name for span in version.spans if span.error] == []


def test_a_version_that_live_traffic_rejects_tells_why_and_how_long_its_pods_took_to_return() -> None:
    version = life(kind="bad")
    version.live(40)
    assert tree(version.spans) == [
        *MEASURED,
        "canary > swap: pod-01",
        "rollout > canary",
        "offer > rollout: RolledBack",
        "offer > decision: RolledBack",
        "rolling back > swap: pod-01",
        "offer > rolling back",
    ]
    phases = {span.name: span for span in version.spans}
    assert "live traffic disagrees" in phases["rollout"].error
    assert phases["rolling back"].start == phases["rollout"].end
    assert phases["rolling back"].end > phases["rolling back"].start


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        ("rejects", ["offer > measurement: Rejected", "measurement > rounds", "offer > decision: Rejected"]),
        (
            "wavers",
            [
                "offer > measurement: Repeated",
                "measurement > rounds",
                "offer > measurement: Inconclusive",
                "measurement > rounds",
                "offer > decision: Inconclusive",
            ],
        ),
    ],
)
def test_a_version_that_the_gate_does_not_pass_ends_with_its_attempts(gate: str, expected: list[str]) -> None:
    version = life(gate=gate)
    version.live(20)
    assert tree(version.spans) == ["offer", *expected]


def test_an_attempt_that_failed_is_an_error_and_the_next_one_is_a_span_of_its_own() -> None:
    version = life(gate="fails")
    version.live(3)
    version.gate_changes(gate="passes")
    version.live(6)
    attempts = [span for span in version.spans if span.name == "measurement"]
    assert [span.attributes["aurora.attempt"] for span in attempts] == [1, 2]
    assert "too few prompts" in attempts[0].error
    assert attempts[1].attributes["aurora.outcome"] == "Validated"
    assert attempts[1].start > attempts[0].end, "the delay before the next attempt belongs to neither"


def test_a_version_replaced_while_it_is_measured_says_so() -> None:
    version = life(gate="no Jobs")
    version.live(1)
    version.candidate_is_registered(kind="good")
    version.live(1)
    (measurement,) = [span for span in version.spans if span.name == "measurement"]
    assert measurement.attributes["aurora.version"] == 1
    assert measurement.attributes["aurora.outcome"] == "Replaced"
    assert [span.attributes["aurora.version"] for span in version.spans if span.name == "offer"] == [1, 2]
    assert len({span.trace_id for span in version.spans}) == 2


def test_an_offer_lasts_until_the_first_measurement_begins() -> None:
    version = life()
    version.trainer_counts_held_out_requests(count=0)
    version.live(3)
    assert version.spans == [], "the candidate waits for held-out requests"
    waited_until = version.now
    version.trainer_counts_held_out_requests(count=16)
    version.live(10)
    assert tree(version.spans)[:3] == MEASURED
    phases = {span.name: span for span in version.spans}
    assert phases["offer"].end == phases["measurement"].start >= waited_until


def test_a_version_replaced_before_its_measurement_has_an_offer_alone() -> None:
    version = life()
    version.trainer_counts_held_out_requests(count=0)
    version.live(2)
    version.candidate_is_registered(kind="good")
    version.live(2)
    assert [(span.name, span.attributes["aurora.version"]) for span in version.spans] == [("offer", 1)]
    version.trainer_counts_held_out_requests(count=16)
    version.live(1)
    assert [(span.name, span.attributes["aurora.version"]) for span in version.spans] == [("offer", 1), ("offer", 2)]


def test_a_pause_is_a_phase_and_the_canary_after_it_is_another_one() -> None:
    version = life(rollout={"canary": 1})
    while version.status.rollout.phase is not RolloutPhase.CANARY:
        version.live(1)
    paused = version.cluster.spec["rollout"] | {"paused": True}
    version.edit(rollout=paused)
    version.live(2)
    version.edit(rollout=paused | {"paused": False})
    version.live(40)
    phases = [span for span in version.spans if span.name in ("canary", "paused")]
    assert [span.name for span in phases] == ["canary", "paused", "canary"]
    assert len({span.span_id for span in phases}) == 3
    assert [before.end for before in phases[:2]] == [after.start for after in phases[1:]]


def test_a_restarted_operator_goes_on_with_the_same_trace() -> None:
    """Whatever the operator remembered would be lost, so every id must follow from what is stored."""
    version = life(pods=3)
    for _ in range(8):
        version.live(3)
        version.operators[0].restart()
    version.live(40)  # a restart begins a watch anew
    assert tree(version.spans)[-1] == "offer > rollout: Completed"
    ids = {span.span_id for span in version.spans}
    assert len({span.trace_id for span in version.spans}) == 1
    assert len(ids) == len(version.spans)
    assert {span.parent_id for span in version.spans} <= {*ids, ""}


def test_two_speculators_and_two_versions_have_traces_of_their_own() -> None:
    def trace(uid: str, version: int) -> str:
        before = SpeculatorStatus(rollout=_rollout(version=version))
        world = observed(owner=replace(OWNER, uid=uid), status=before)
        return next(spans_of(world, _ended(before), NOW)).trace_id

    assert len({trace("a", 1), trace("b", 1), trace("a", 2)}) == 3


# swaps ---------------------------------------------------------------------------------------------------------------


def _rollout(**more: Any) -> RolloutStatus:
    return RolloutStatus(
        **{"phase": RolloutPhase.ROLLING_BACK, "version": 1, "started": NOW, "progressed": NOW, **more}
    )


def _ended(before: SpeculatorStatus) -> SpeculatorStatus:
    return before.model_copy(update={"rollout": before.rollout.model_copy(update={"phase": RolloutPhase.IDLE})})


def _swap_spans(swap: SwapStatus, *, former: int | None = 1, state: str = "Ready") -> list[Span]:
    """The spans of a pod that shows version 0 after ``swap``, and ``former`` before."""
    before = SpeculatorStatus(rollout=_rollout(), pods=[PodStatus(name="chat-a", version=former, state="Swapping")])
    after = before.model_copy(update={"pods": [PodStatus(name="chat-a", version=0, state=state)]})
    world: Observed = observed(status=before, pods=(pod("chat-a", 0, agent=agent("chat-a", 0, swap=swap)),))
    return list(spans_of(world, after, NOW + timedelta(minutes=1)))


def _later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def test_a_swap_takes_from_its_order_to_its_end_and_names_its_pause() -> None:
    swap = SwapStatus(version=0, started=_later(1), finished=_later(3), pause_seconds=0.25)
    (span,) = _swap_spans(swap)
    assert (span.name, span.start, span.end, span.error) == ("swap", _later(1), _later(3), "")
    assert span.attributes["aurora.swap.pause_seconds"] == 0.25
    assert (span.attributes["aurora.swap.from_version"], span.attributes["aurora.swap.to_version"]) == (1, 0)


def test_a_failed_swap_is_an_error_without_the_engines_own_words() -> None:
    swap = SwapStatus(phase=SwapPhase.FAILED, version=1, started=_later(1), finished=_later(3), error="a prompt")
    (span,) = _swap_spans(swap, former=0, state="SwapFailed")
    assert span.error == "SwapFailed"
    assert "a prompt" not in str(span)


@pytest.mark.parametrize(
    ("swap", "former"),
    [
        (SwapStatus(version=0, finished=NOW - timedelta(days=1)), 1),  # of an earlier roll: the pod started again
        (SwapStatus(version=1, finished=_later(3)), 1),  # the pod has not the version that it was asked for
        (SwapStatus(version=0, finished=_later(3)), None),  # the pod has just come up
        (SwapStatus(version=0), 1),
    ],
)
def test_a_pod_that_came_to_its_version_without_a_swap_has_no_span(swap: SwapStatus, former: int | None) -> None:
    assert _swap_spans(swap, former=former) == []


def test_an_agent_of_an_older_version_does_not_tell_when_the_swap_began() -> None:
    (span,) = _swap_spans(SwapStatus(version=0, finished=_later(3)))
    assert span.start == span.end == _later(3)


@pytest.mark.parametrize("pause_seconds", [float("inf"), float("nan"), 1e308])
def test_nothing_that_an_agent_claims_breaks_a_reconcile_or_the_request(pause_seconds: float) -> None:
    last = datetime.max.replace(tzinfo=UTC)
    swap = SwapStatus(
        phase=SwapPhase.FAILED,
        version=1,
        started=datetime.min.replace(tzinfo=UTC),
        finished=last,
        error="x" * 1000,
        pause_seconds=pause_seconds,
    )
    (span,) = _swap_spans(swap, former=0, state="SwapFailed")
    assert (nanoseconds(span.start), nanoseconds(span.end)) == (0, MAX_INTEGER)


@pytest.mark.parametrize(("claimed", "told"), [(2**63, MAX_INTEGER), (-(2**70), MIN_INTEGER)])
def test_a_version_that_an_agent_claims_is_cut_to_the_integers_of_the_protocol(claimed: int, told: int) -> None:
    """A larger one would cost the spans of other speculators too, which are in the same request."""
    swap = SwapStatus(phase=SwapPhase.FAILED, version=claimed, started=_later(1), finished=_later(3))
    (span,) = _swap_spans(swap, former=0, state="SwapFailed")
    assert span.attributes["aurora.swap.to_version"] == told
