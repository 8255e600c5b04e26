"""A decision is a patch that the operator acts on, or a refusal that says why nothing would happen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_api.v1alpha1.annotations import ABORT_ANNOTATION
from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.status import (
    CandidatePhase,
    CandidateStatus,
    PreviousVersion,
    RolloutPhase,
    RolloutStatus,
    SpeculatorStatus,
    VersionStatus,
)
from aurora_cli import decisions
from aurora_cli.decisions import Change
from aurora_cli.errors import Refused
from aurora_cli.speculator import Speculator
from aurora_operator.observe.stored_resource import aborted_version
from tests.unit.cli.fake_cluster import FakeApiServer, merged, resource, speculator, speculators_path

CHAT = speculators_path("team", "chat")


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
        previous=None if previous is None else PreviousVersion(version=previous),
        candidate=None if candidate is None else CandidateStatus(version=candidate[0], phase=candidate[1]),
        rollout=RolloutStatus() if rollout is None else RolloutStatus(version=rollout[0], phase=rollout[1], total=2),
        rejected=list(rejected),
    )


ROLLING = status(candidate=(5, CandidatePhase.VALIDATED), rollout=(5, RolloutPhase.ROLLING))
FAILED = status(candidate=(5, CandidatePhase.FAILED))


@pytest.mark.parametrize(
    ("found", "version", "effect"),
    [
        (ROLLING, None, "the roll of version 5 ends, and its pods return to version 4"),
        (status(), 4, "pods return from version 4 to version 3"),
        (status(candidate=(5, CandidatePhase.VALIDATING)), 5, "version 5 is not rolled out"),
    ],
)
def test_the_operator_reads_the_version_of_an_abort(found: SpeculatorStatus, version: int | None, effect: str) -> None:
    one = speculator(found)
    change = decisions.abort(one, version)
    assert change.effect.startswith(effect)
    assert aborted_version(merged(dict(one.raw), change.patch)) == (version or 5)


@pytest.mark.parametrize(
    ("found", "version", "spec"),
    [
        pytest.param(status(), None, {}, id="no roll"),
        pytest.param(status(5, rollout=(5, RolloutPhase.ROLLING)), None, {}, id="the active version is never implied"),
        pytest.param(status(), 9, {}, id="unknown"),
        pytest.param(status(), 4, {"rollout": {"pin": 3}}, id="active beside a pin"),
        pytest.param(status(previous=None), 4, {}, id="nothing to return to"),
    ],
)
def test_an_abort_that_the_operator_would_ignore_is_refused(
    found: SpeculatorStatus, version: int | None, spec: dict[str, Any]
) -> None:
    with pytest.raises(Refused):
        decisions.abort(speculator(found, **spec), version)


def test_an_abort_names_an_abort_that_it_replaces() -> None:
    replaced = {"2": 0, "4": 1}
    for former, notes in replaced.items():
        change = decisions.abort(speculator(ROLLING, annotations={ABORT_ANNOTATION: former}))
        assert change.patch == {"metadata": {"annotations": {ABORT_ANNOTATION: "5"}}}
        assert len(change.notes) == notes


@pytest.mark.parametrize("found", [status(rejected=(5,)), status(candidate=(5, CandidatePhase.REJECTED))])
def test_a_version_that_never_passed_is_not_pinned(found: SpeculatorStatus) -> None:
    with pytest.raises(Refused):
        decisions.pin(speculator(found), 5)


@pytest.mark.parametrize(("version", "expired"), [(2, True), (1, False), (3, False), (4, False), (9, False)])
def test_a_version_that_expired_is_not_pinned(version: int, expired: bool) -> None:
    """Versions 3 and 4 serve, version 9 is not registered yet."""
    one = speculator(status().model_copy(update={"kept_versions": [0, 1, 4, 5]}))
    assert one.has_expired(version) is expired
    if expired:
        with pytest.raises(Refused, match="draftHistoryLimit"):
            decisions.pin(one, version)
    else:
        assert decisions.pin(one, version).patch


DECISIONS: tuple[Callable[[Speculator, int], Change], ...] = (
    decisions.abort,
    decisions.pin,
    lambda one, _: decisions.unpin(one),
    lambda one, _: decisions.pause(one),
    lambda one, _: decisions.resume(one),
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
ANNOTATIONS = st.dictionaries(st.just(ABORT_ANNOTATION), st.sampled_from(["2", "x", ""]))


@given(STATUSES, ROLLOUTS, ANNOTATIONS, st.sampled_from(DECISIONS), st.integers(0, 7))
def test_a_decision_that_was_carried_out_has_nothing_left_to_change(
    found: SpeculatorStatus,
    rollout: dict[str, Any],
    annotations: dict[str, str],
    decision: Callable[[Speculator, int], Change],
    version: int,
) -> None:
    try:
        patch = decision(speculator(found, annotations=annotations, rollout=rollout), version).patch
    except Refused:
        return
    decided = merged(resource(found, annotations=annotations, rollout=rollout), patch)
    SpeculatorSpec.model_validate(decided["spec"], extra="forbid")
    try:
        assert not decision(Speculator.of(decided), version).patch
    except Refused:
        assert decision is decisions.abort  # of the active version, whose status has not followed yet


@pytest.mark.parametrize(
    ("words", "patched"),
    [
        (("abort",), {"metadata": {"annotations": {ABORT_ANNOTATION: "5"}}}),
        (("pin", "3"), {"spec": {"rollout": {"pin": 3}}}),
        (("unpin",), {"spec": {"rollout": {"pin": None}}}),
        (("pause",), {"spec": {"rollout": {"paused": True}}}),
        (("resume",), {"spec": {"rollout": {"paused": False}}}),
    ],
)
def test_a_decision_is_stored_and_a_dry_run_is_not(
    server: FakeApiServer, words: tuple[str, ...], patched: dict[str, Any]
) -> None:
    rollout = {"paused": words[0] == "resume", "pin": 4 if words[0] == "unpin" else None}
    before = resource(ROLLING, rollout=rollout)
    server.add(before)
    command, *version = words
    dry = server.run(command, "chat", *version, "--dry-run")
    assert (dry.exit_code, "dry run" in dry.stdout, server.objects[CHAT]) == (0, True, before)
    assert server.calls[-1][2]["dryRun"] == "All"
    done = server.run(command, "chat", *version)
    assert (done.exit_code, server.objects[CHAT]) == (0, merged(before, patched))
    again = server.run(command, "chat", *version)
    assert (again.exit_code, "unchanged, because" in again.stdout, server.calls[-1][0]) == (0, True, "GET")
