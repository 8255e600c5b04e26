"""A decision is a patch that the operator acts on, or a refusal that says why nothing would happen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_api.v1alpha1.annotations import (
    ABORT_ANNOTATION,
    MEASURE_ANNOTATION,
    PROMOTE_ANNOTATION,
    START_OVER_ANNOTATION,
)
from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType
from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.status import (
    CandidatePhase,
    CandidateStatus,
    HistoryEntry,
    RolloutPhase,
    RolloutStatus,
    SpeculatorStatus,
    VersionStatus,
)
from aurora_cli.cluster.kubernetes_api import FIELD_MANAGER
from aurora_cli.decisions import lost_records, measurement, rolls, versions
from aurora_cli.decisions.change import Change, FieldChange, other_managers
from aurora_cli.errors import Refused
from aurora_cli.speculator import Speculator
from aurora_operator.observe.annotations import user_requests
from tests.unit.cli.fake_cluster import merged, resource, speculator
from tests.unit.operator.worlds import NOW


def status(
    active: int = 4,
    *,
    previous: int | None = 3,
    candidate: tuple[int, CandidatePhase] | None = None,
    rollout: tuple[int, RolloutPhase] | None = None,
    rejected: tuple[int, ...] = (),
) -> SpeculatorStatus:
    return SpeculatorStatus(
        active=VersionStatus(version=active),
        previous=None if previous is None else VersionStatus(version=previous),
        candidate=None if candidate is None else CandidateStatus(version=candidate[0], phase=candidate[1]),
        rollout=RolloutStatus() if rollout is None else RolloutStatus(version=rollout[0], phase=rollout[1], total=2),
        rejected=list(rejected),
    )


CANARY = status(candidate=(5, CandidatePhase.VALIDATED), rollout=(5, RolloutPhase.CANARY))


def test_a_promotion_means_the_version_of_the_roll() -> None:
    one = speculator(CANARY)
    change = versions.promote(one)
    assert change.patch(one) == {"metadata": {"resourceVersion": "10", "annotations": {PROMOTE_ANNOTATION: "5"}}}
    assert "canary of version 5" in change.effect


def test_the_operator_reads_what_a_decision_writes() -> None:
    one = speculator(CANARY)
    written = merged(dict(one.raw), versions.abort(one).patch(one))
    assert user_requests(written).abort == 5


def test_a_promotion_says_what_delays_it() -> None:
    change = versions.promote(speculator(CANARY, rollout={"paused": True, "pin": 3}))
    assert [note.split(":")[0] for note in change.notes] == ["version 3 is pinned", "rolls are paused"]


def test_a_pause_says_what_it_holds_up() -> None:
    assert "measured" not in rolls.pause(speculator(status())).effect
    stopped = rolls.pause(speculator(CANARY)).effect
    assert "the roll of version 5 stops before its next pod" in stopped
    assert "no candidate is measured until it ends" in stopped


def test_a_watch_ends_with_a_promotion() -> None:
    change = versions.promote(speculator(status(5, rollout=(5, RolloutPhase.WATCHING))))
    assert change.fields == (FieldChange(PROMOTE_ANNOTATION, None, "5"),)
    assert "watch ends" in change.effect


@pytest.mark.parametrize(
    ("found", "version", "message"),
    [
        (status(), None, "no version of chat is being rolled out: name the version (known versions: 4)"),
        (status(), 9, "promote has no effect on version 9"),
        (status(), 3, "to return to it, run `pin chat 3`"),
        (status(rejected=(5,)), 5, "version 5 was rejected"),
        (status(candidate=(5, CandidatePhase.INCONCLUSIVE)), 5, "version 5 is Inconclusive"),
    ],
)
def test_a_promotion_without_effect_is_refused(found: SpeculatorStatus, version: int | None, message: str) -> None:
    with pytest.raises(Refused) as refused:
        versions.promote(speculator(found), version)
    assert message in str(refused.value)


def test_a_version_that_was_aborted_is_not_promoted() -> None:
    with pytest.raises(Refused, match="version 5 was rejected"):
        versions.promote(speculator(CANARY, annotations={ABORT_ANNOTATION: "5"}))


@pytest.mark.parametrize(
    ("found", "version", "effect"),
    [
        (CANARY, None, "the roll of version 5 ends, and its pods return to version 4"),
        (status(), 4, "pods return from version 4 to version 3"),
        (status(candidate=(5, CandidatePhase.VALIDATING)), 5, "version 5 is not rolled out"),
    ],
)
def test_an_abort_says_what_follows(found: SpeculatorStatus, version: int | None, effect: str) -> None:
    change = versions.abort(speculator(found), version)
    assert change.effect.startswith(effect)
    assert change.effect.endswith("is never offered again")


def test_the_active_version_is_never_aborted_without_being_named() -> None:
    with pytest.raises(Refused, match="name the version"):
        versions.abort(speculator(status(5, rollout=(5, RolloutPhase.WATCHING))))


@pytest.mark.parametrize(
    ("spec", "previous", "message"),
    [({"rollout": {"pin": 4}}, 3, "a version is pinned"), ({}, None, "no previous version")],
)
def test_an_abort_of_the_active_version_that_the_operator_would_ignore_is_refused(
    spec: dict[str, Any], previous: int | None, message: str
) -> None:
    with pytest.raises(Refused, match=message):
        versions.abort(speculator(status(previous=previous), **spec), 4)


def test_an_abort_withdraws_the_promotion_of_the_same_version() -> None:
    one = speculator(CANARY, annotations={PROMOTE_ANNOTATION: "5"})
    annotations = versions.abort(one).patch(one)["metadata"]["annotations"]
    assert annotations == {ABORT_ANNOTATION: "5", PROMOTE_ANNOTATION: None}


def test_an_abort_keeps_the_promotion_of_another_version() -> None:
    one = speculator(CANARY, annotations={PROMOTE_ANNOTATION: "4"})
    assert versions.abort(one).patch(one)["metadata"]["annotations"] == {ABORT_ANNOTATION: "5"}


ROLLED_BACK = status(candidate=(5, CandidatePhase.VALIDATED), rollout=(5, RolloutPhase.ROLLING_BACK))
WATCH = status(4, candidate=(5, CandidatePhase.VALIDATED), rollout=(4, RolloutPhase.WATCHING))


@pytest.mark.parametrize(
    ("found", "annotation", "waiting", "decision"),
    [
        (WATCH, ABORT_ANNOTATION, 4, lambda one: versions.abort(one, 5)),
        (ROLLED_BACK, ABORT_ANNOTATION, 4, lambda one: versions.abort(one, 5)),
        (WATCH, PROMOTE_ANNOTATION, 5, versions.promote),
        (WATCH, PROMOTE_ANNOTATION, 4, lambda one: versions.promote(one, 5)),
    ],
)
def test_a_decision_that_waits_for_its_effect_is_not_replaced_by_another(
    found: SpeculatorStatus, annotation: str, waiting: int, decision: Callable[[Speculator], Change]
) -> None:
    with pytest.raises(Refused) as refused:
        decision(speculator(found, annotations={annotation: str(waiting)}))
    assert str(refused.value).startswith(f"{annotation} names version {waiting}, waits for its effect")
    done = "rejected" if annotation == ABORT_ANNOTATION else "active or rejected"
    assert f"once `status chat` shows that version {waiting} is {done}, or" in str(refused.value)
    assert refused.value.command == f"kubectl -n team annotate auroraspeculator chat {annotation}-"


@pytest.mark.parametrize(
    ("found", "waiting", "bad"),
    [
        (status(candidate=(6, CandidatePhase.VALIDATED), rollout=(5, RolloutPhase.CANARY)), 6, 5),
        (status(candidate=(6, CandidatePhase.VALIDATED), rollout=(5, RolloutPhase.ROLLING)), 6, 5),
        (CANARY, 4, 5),
        (WATCH, 5, 4),
    ],
)
def test_an_abort_of_the_version_that_is_rolled_out_takes_the_place_of_one_that_waits(
    found: SpeculatorStatus, waiting: int, bad: int
) -> None:
    change = versions.abort(speculator(found, annotations={ABORT_ANNOTATION: str(waiting)}), bad)
    assert tuple(change.fields) == (FieldChange(ABORT_ANNOTATION, str(waiting), str(bad)),)
    assert tuple(change.notes) == (
        f"this withdraws the abort of version {waiting}, which waits for its effect, so version {waiting} may be rolled"
        f" out next; repeat its abort with `abort chat {waiting}` as soon as `status chat` shows that version {bad} is"
        " rejected",
    )


@pytest.mark.parametrize(
    ("found", "annotation", "former", "decision"),
    [
        (status(candidate=(6, CandidatePhase.VALIDATING), rejected=(5,)), ABORT_ANNOTATION, 5, versions.abort),
        (status(candidate=(6, CandidatePhase.VALIDATING)), ABORT_ANNOTATION, 2, versions.abort),
        (status(previous=None, candidate=(6, CandidatePhase.VALIDATING)), ABORT_ANNOTATION, 4, versions.abort),
        (status(candidate=(6, CandidatePhase.VALIDATING)), PROMOTE_ANNOTATION, 4, versions.promote),
        (status(candidate=(6, CandidatePhase.VALIDATING)), PROMOTE_ANNOTATION, 3, versions.promote),
    ],
)
def test_a_decision_that_has_had_its_effect_is_replaced(
    found: SpeculatorStatus, annotation: str, former: int, decision: Callable[[Speculator, int], Change]
) -> None:
    one = speculator(found, annotations={annotation: str(former)})
    assert tuple(decision(one, 6).fields) == (FieldChange(annotation, str(former), "6"),)


@pytest.mark.parametrize(
    ("decision", "spec"),
    [
        (rolls.pause, {"rollout": {"paused": True}}),
        (rolls.resume, {}),
        (rolls.unpin, {}),
        (lambda one: rolls.pin(one, 3), {"rollout": {"pin": 3}}),
        (lambda one: versions.promote(one, 4), {}),
        (lambda one: versions.abort(one, 6), {}),
    ],
)
def test_what_is_decided_already_changes_nothing(
    decision: Callable[[Speculator], Change], spec: dict[str, Any]
) -> None:
    assert not decision(speculator(status(rejected=(6,)), **spec)).fields


def test_a_pin_of_a_version_that_may_not_have_passed_has_a_note() -> None:
    promoted = CANARY.model_copy(update={"history": [HistoryEntry(time=NOW, event="Promoted", version=2)]})
    assert rolls.pin(speculator(promoted), 1).notes
    for version in (0, 2, 3, 4):
        assert not rolls.pin(speculator(promoted), version).notes


def test_a_controller_that_sets_the_field_is_named() -> None:
    raw = resource(CANARY)
    raw["metadata"]["managedFields"] = [
        {"manager": "argocd", "operation": "Apply", "fieldsV1": {"f:spec": {"f:rollout": {"f:paused": {}}}}},
        {"manager": "flux", "operation": "Apply", "fieldsV1": {"f:spec": {"f:rollout": {"f:pin": {}}}}},
        {
            "manager": "argocd-controller",
            "operation": "Update",
            "fieldsV1": {"f:spec": {"f:rollout": {"f:paused": {}}}},
        },
        {"manager": FIELD_MANAGER, "operation": "Update", "fieldsV1": {"f:spec": {"f:rollout": {"f:paused": {}}}}},
        *(
            {
                "manager": f"kubectl-{verb}",
                "operation": "Update",
                "fieldsV1": {"f:spec": {"f:rollout": {"f:paused": {}}}},
            }
            for verb in ("create", "edit", "patch", "replace")
        ),
    ]
    one = Speculator.of(raw)
    assert other_managers(one, rolls.pause(one).fields) == ["argocd", "argocd-controller"]
    assert other_managers(one, versions.promote(one).fields) == []


def candidate(phase: CandidatePhase) -> SpeculatorStatus:
    return status(candidate=(5, phase)).model_copy(update={"ready_replicas": 2})


def test_a_measurement_that_failed_is_made_again_now() -> None:
    one = speculator(candidate(CandidatePhase.FAILED))
    change = measurement.measure(one)
    assert not change.notes
    written = merged(resource(candidate(CandidatePhase.FAILED)), change.patch(one))
    assert user_requests(written).measure == (5, 2)


@pytest.mark.parametrize("phase", [CandidatePhase.REJECTED, CandidatePhase.INCONCLUSIVE])
def test_a_candidate_that_is_decided_is_not_measured_again(phase: CandidatePhase) -> None:
    with pytest.raises(Refused, match=f"version 5 is {phase} and is not measured again"):
        measurement.measure(speculator(candidate(phase)))


@pytest.mark.parametrize("phase", [CandidatePhase.VALIDATING, CandidatePhase.VALIDATED])
def test_a_candidate_that_is_being_measured_or_passed_needs_no_measurement(phase: CandidatePhase) -> None:
    assert not measurement.measure(speculator(candidate(phase))).fields


def test_a_measurement_that_has_not_begun_says_what_it_waits_for() -> None:
    words = "waiting for held-out requests: 3 of 16"
    waits = CandidateStatus(version=5, phase=CandidatePhase.VALIDATING, message=words)
    change = measurement.measure(speculator(status().model_copy(update={"candidate": waits}), rollout={"pin": 4}))
    assert change.effect == f"the measurement of version 5 has not begun (attempt 1): {words}"
    assert [note.split(":")[0] for note in change.notes] == ["version 4 is pinned", "no pod is ready"]
    begun = status().model_copy(update={"candidate": waits.model_copy(update={"since": NOW})})
    assert "is being measured" in measurement.measure(speculator(begun)).effect


def test_a_measurement_says_what_keeps_it_from_beginning() -> None:
    one = speculator(status(candidate=(5, CandidatePhase.FAILED)), rollout={"pin": 4})
    assert [note.split(":")[0] for note in measurement.measure(one).notes] == ["version 4 is pinned", "no pod is ready"]
    in_watch = status(candidate=(5, CandidatePhase.FAILED), rollout=(4, RolloutPhase.WATCHING))
    notes = measurement.measure(speculator(in_watch.model_copy(update={"ready_replicas": 2}))).notes
    assert notes == ("the roll of version 4 is Watching: nothing is measured before it ends",)
    with pytest.raises(Refused, match="no candidate"):
        measurement.measure(speculator(status()))


DECISIONS: tuple[Callable[[Speculator, int], Change], ...] = (
    versions.promote,
    versions.abort,
    rolls.pin,
    lambda one, _: rolls.unpin(one),
    lambda one, _: rolls.pause(one),
    lambda one, _: rolls.resume(one),
    lambda one, _: measurement.measure(one),
)
STATUSES = st.builds(
    status,
    st.integers(0, 4),
    previous=st.none() | st.integers(0, 4),
    candidate=st.none() | st.tuples(st.integers(0, 6), st.sampled_from(CandidatePhase)),
    rollout=st.none() | st.tuples(st.integers(0, 6), st.sampled_from(RolloutPhase)),
    rejected=st.lists(st.integers(0, 6), max_size=2).map(tuple),
)
ROLLOUTS = st.fixed_dictionaries({}, optional={"paused": st.booleans(), "pin": st.integers(0, 6)})
ANNOTATIONS = st.dictionaries(st.sampled_from([PROMOTE_ANNOTATION, ABORT_ANNOTATION]), st.sampled_from(["2", "x", ""]))


@given(STATUSES, ROLLOUTS, ANNOTATIONS, st.sampled_from(DECISIONS), st.integers(0, 7))
def test_a_decision_that_was_carried_out_has_nothing_left_to_change(
    found: SpeculatorStatus,
    rollout: dict[str, Any],
    annotations: dict[str, str],
    decision: Callable[[Speculator, int], Change],
    version: int,
) -> None:
    one = speculator(found, annotations=annotations, rollout=rollout)
    try:
        patch = decision(one, version).patch(one)
    except Refused:
        return
    decided = merged(resource(found, annotations=annotations, rollout=rollout), patch)
    SpeculatorSpec.model_validate(decided["spec"], extra="forbid")
    again = Speculator.of(decided)
    assert not decision(again, version).fields


def storage(reason: str, message: str = "kubectl annotate … aurora.dev/start-over=4-0") -> SpeculatorStatus:
    ready = ConditionStatus.TRUE if reason == "Ready" else ConditionStatus.FALSE
    told = Condition(
        type=ConditionType.STORAGE_READY, status=ready, reason=reason, message=message, last_transition_time=NOW
    )
    return status(4).model_copy(update={"conditions": [told]})


def test_lost_records_are_given_up_by_the_number_of_the_active_version() -> None:
    one = speculator(storage("RecordsLost"), rollout={"pin": 3})
    change = lost_records.start_over(one)
    written = merged(dict(one.raw), change.patch(one))
    assert user_requests(written).start_over == (4, one.status.rollout.epoch)
    assert "pods swap to version 0" in change.effect
    assert change.notes == ("version 3 is pinned: nothing is rolled out before `unpin chat`",)
    assert not lost_records.start_over(Speculator.of(written)).fields


@pytest.mark.parametrize("confirmed", [{}, {START_OVER_ANNOTATION: "4-0"}], ids=["new", "confirmed already"])
def test_decisions_about_versions_that_are_given_up_are_removed(confirmed: dict[str, str]) -> None:
    """New versions get the same numbers."""
    old = {ABORT_ANNOTATION: "3", MEASURE_ANNOTATION: "5-2", PROMOTE_ANNOTATION: "5", "team": "a", **confirmed}
    one = speculator(storage("RecordsLost"), annotations=old)
    written = merged(dict(one.raw), lost_records.start_over(one).patch(one))
    assert written["metadata"]["annotations"] == {"team": "a", START_OVER_ANNOTATION: "4-0"}


@pytest.mark.parametrize("reason", ["Ready", "Unreachable"])
def test_records_that_are_not_lost_are_not_given_up(reason: str) -> None:
    with pytest.raises(Refused, match="has lost no records"):
        lost_records.start_over(speculator(storage(reason)))


def test_a_channel_that_has_records_is_not_given_up() -> None:
    left = "To give them up, delete what is left below aurora/team/chat-1/channel/"
    with pytest.raises(Refused, match="delete what is left below aurora/team/chat-1/channel/"):
        lost_records.start_over(speculator(storage("RecordsLost", left)))


def test_a_root_that_was_taken_over_cannot_begin_again() -> None:
    restored = {"bucket": "bucket", "restoreFrom": "aurora/team/old-99999999"}
    with pytest.raises(Refused, match=r"without store\.restoreFrom"):
        lost_records.start_over(speculator(storage("RecordsLost"), store=restored))
