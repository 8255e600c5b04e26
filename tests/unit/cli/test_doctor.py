"""The doctor names each abnormal state that the documentation knows, likeliest cause first, with what mends it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.annotations import (
    ABORT_ANNOTATION,
    MEASURE_ANNOTATION,
    PROMOTE_ANNOTATION,
    START_OVER_ANNOTATION,
)
from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import (
    CandidatePhase,
    CandidateStatus,
    HistoryEntry,
    OperatorIdentity,
    PodStatus,
    RolloutPhase,
    RolloutStatus,
    SpeculatorStatus,
    VersionStatus,
)
from aurora_cli.doctor.diagnosis import diagnose, is_well
from aurora_cli.doctor.facts import EventFacts, Snapshot, jobs_of
from aurora_cli.doctor.finding import Severity
from aurora_cli.tables.findings_table import report
from aurora_cli.tables.printing import as_text
from tests.unit.cli.fake_cluster import speculator
from tests.unit.cli.snapshots import HEALTHY, found, pod, snapshot, waiting, with_condition
from tests.unit.docs.markdown import page
from tests.unit.operator import worlds
from tests.unit.operator.worlds import NOW


def test_a_healthy_speculator_is_well() -> None:
    assert found(snapshot()) == []
    assert "nothing is wrong" in as_text(report(snapshot(), ()))


# The documentation and the doctor know the same ----------------------------------------------------------------------

NEEDS_NOBODY = {
    ("TrainerReady", "WaitingForTraces"),
    ("TrainerReady", "Suspended"),
    ("StorageReady", "TakingOver"),
    ("UpgradePending", "WaitingForTurn"),
    ("UpgradePending", "WaitingForSpec"),
    ("UpgradePending", "Restarting"),
    ("ServingReady", "Measuring"),
    ("ServingReady", "ScaledToZero"),
    ("CandidateValidated", "Rejected"),
    ("CandidateValidated", "Inconclusive"),
    ("RolloutProgressing", "Done"),
    ("RolloutProgressing", "RolledBack"),
}
"""Abnormal by the status of its condition, and yet no person has to act."""
TRUE_IS_BAD = ("Degraded", "NameTaken", "InvalidSpec", "UpgradePending")
DERIVED = ("Ready", "Available", "CandidateValidated", "RolloutProgressing")
"""Conditions that repeat another one, or the candidate's phase or the roll's, which other tests cover."""


def abnormal_reasons() -> Iterator[tuple[str, str]]:
    """Condition type and reason of each row of the page that describes something abnormal."""
    type_ = ""
    for line in page("docs/reference/conditions.md").path.read_text().splitlines():
        if line.startswith("## "):
            type_ = line.removeprefix("## ")
        row = re.match(r"\| `(\w+)` \| (True|False|Unknown|True or False) \|", line)
        if row is None or type_ in DERIVED or row[1] == "AsExpected":
            continue
        kind = row[1] if type_ == "NameTaken and InvalidSpec" else type_
        if row[2] == ("True" if kind in TRUE_IS_BAD else "False"):
            yield kind, row[1]


def test_the_page_has_rows() -> None:
    assert len(list(abnormal_reasons())) > 30


@pytest.mark.parametrize(("type_", "reason"), list(abnormal_reasons()))
def test_every_abnormal_reason_of_the_documentation_is_found_and_has_a_way_out(type_: str, reason: str) -> None:
    bad = ConditionStatus.TRUE if type_ in TRUE_IS_BAD else ConditionStatus.FALSE
    findings = diagnose(snapshot(with_condition(type_, bad, reason, "the message")))
    if (type_, reason) in NEEDS_NOBODY:
        assert is_well(findings)
        return
    assert not is_well(findings)
    assert f"{type_}={bad} {reason}: the message" in findings[0].evidence
    assert findings[0].commands
    assert findings[0].advice


@pytest.mark.parametrize("type_", ["Degraded", "StorageReady", "ServingReady", "TrainerReady"])
def test_a_reason_of_a_newer_operator_is_found_too(type_: str) -> None:
    bad = ConditionStatus.TRUE if type_ in TRUE_IS_BAD else ConditionStatus.FALSE
    (finding,) = diagnose(snapshot(with_condition(type_, bad, "Novelty", "words")))
    assert "Novelty: words" in finding.evidence
    assert finding.commands


# Causes --------------------------------------------------------------------------------------------------------------


def test_without_a_status_no_operator_acts() -> None:
    (finding,) = diagnose(snapshot(None))
    assert finding.title == "no operator acts on the speculator"
    assert "aurora-operator" in finding.commands[-1]
    new = Snapshot(speculator(None), speculator(None).created or NOW)
    assert diagnose(new) == []


@pytest.mark.parametrize(("hours", "expected"), [(1, True), (30, False)])
def test_a_second_installation_is_found_for_a_day(hours: int, expected: bool) -> None:
    event = EventFacts("OperatorYielded", "a/b acts", True, NOW - timedelta(hours=hours))
    one = replace(snapshot(), events=(event,))
    assert ("two installations of the operator want to act on the speculator" in found(one)) is expected


@pytest.mark.parametrize(
    ("reason", "last", "title"),
    [
        ("ImagePullBackOff", {}, "container sglang of an inference pod cannot pull its image"),
        ("ErrImagePull", {}, "container sglang of an inference pod cannot pull its image"),
        ("CrashLoopBackOff", {}, "container sglang of an inference pod exits again and again"),
        (
            "CrashLoopBackOff",
            {"terminated": {"reason": "OOMKilled"}},
            "container sglang of an inference pod was killed because it used more memory than its limit",
        ),
        (
            "CreateContainerConfigError",
            {},
            "container sglang of an inference pod needs a Secret or a ConfigMap that does not exist",
        ),
        ("SomethingNew", {}, "container sglang of an inference pod does not run"),
    ],
)
def test_the_state_of_a_pod_explains_why_serving_is_not_ready(reason: str, last: dict[str, Any], title: str) -> None:
    not_ready = with_condition("ServingReady", ConditionStatus.FALSE, "PodsNotReady", "1 of 2 pods are ready")
    pods = [pod(name, containerStatuses=[waiting("sglang", reason, **last)]) for name in ("chat-a", "chat-b")]
    (finding,) = diagnose(snapshot(not_ready, pods=pods))
    assert finding.title == title
    assert "chat-a" in " ".join(finding.commands)
    assert "{" not in " ".join(finding.commands)


def killed(container: str, minutes_ago: int) -> dict[str, Any]:
    """A container that ran out of memory and has run again since."""
    running = {"running": {"startedAt": (NOW - timedelta(minutes=minutes_ago)).isoformat()}}
    return {"name": container, "state": running, "lastState": {"terminated": {"reason": "OOMKilled"}}}


@pytest.mark.parametrize(("minutes_ago", "expected"), [(9, True), (11, False)])
def test_a_container_that_ran_out_of_memory_is_found_until_it_has_recovered(minutes_ago: int, expected: bool) -> None:
    one = snapshot(pods=[pod(containerStatuses=[killed("sglang", minutes_ago)])])
    assert any("more memory than its limit" in title for title in found(one)) is expected


def test_an_init_container_that_was_killed_and_then_succeeded_hides_no_cause_of_today() -> None:
    killed_before = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    init = {"name": "fetch", "state": {"terminated": {"exitCode": 0}}, "lastState": killed_before, "restartCount": 1}
    not_ready = with_condition("ServingReady", ConditionStatus.FALSE, "PodsNotReady", "1 of 2 pods are ready")
    (title,) = found(snapshot(not_ready, pods=[pod(initContainerStatuses=[init])]))
    assert title.startswith("fewer pods are ready")
    again = init | {"state": killed_before}
    (title,) = found(snapshot(not_ready, pods=[pod(initContainerStatuses=[again])]))
    assert title.startswith("container fetch of an inference pod was killed")


@pytest.mark.parametrize(
    ("component", "type_", "title"),
    [("inference", "ServingReady", "fewer pods are ready"), ("trainer", "TrainerReady", "the trainer's pod is not")],
)
def test_a_container_that_runs_again_hides_no_cause_of_today(component: str, type_: str, title: str) -> None:
    reason = "PodsNotReady" if component == "inference" else "PodNotReady"
    not_ready = with_condition(type_, ConditionStatus.FALSE, reason, "why")
    titles = found(snapshot(not_ready, pods=[pod(component=component, containerStatuses=[killed("agent", 1)])]))
    assert len(titles) == 2
    assert any(one.startswith(title) for one in titles)


def test_a_container_that_is_being_created_is_no_trouble() -> None:
    starts = pod(containerStatuses=[waiting("sglang", "ContainerCreating")], initContainerStatuses=[])
    assert found(snapshot(pods=[starts])) == []


@pytest.mark.parametrize("component", ["inference", "trainer", "validator"])
def test_a_pod_without_a_node_is_found_with_the_schedulers_reason(component: str) -> None:
    condition = {"type": "PodScheduled", "status": "False", "message": worlds.NO_ROOM}
    (finding,) = diagnose(snapshot(pods=[pod(component=component, conditions=[condition])]))
    assert finding.title.endswith("finds no node")
    assert worlds.NO_ROOM in finding.evidence


def candidate(phase: CandidatePhase, message: str, minutes: int = 1) -> SpeculatorStatus:
    made = CandidateStatus(
        version=5, phase=phase, job="chat-validate-v5-1", message=message, since=NOW - timedelta(minutes=minutes)
    )
    return HEALTHY.model_copy(update={"candidate": made})


def test_suspended_training_is_noted_with_the_field_that_resumes_it() -> None:
    (finding,) = diagnose(snapshot(with_condition("TrainerReady", ConditionStatus.TRUE, "Suspended", "why")))
    assert finding.severity is Severity.NOTE
    assert '"suspended"' in finding.commands[0]


def test_a_measurement_that_failed_leads_to_its_log_and_to_why_its_job_ended() -> None:
    job = {
        "metadata": {"name": "chat-validate-v5-1"},
        "status": {"conditions": [{"type": "Failed", "status": "True", "message": "past its deadline"}]},
    }
    failed = snapshot(candidate(CandidatePhase.FAILED, "attempt 1 failed: no prompts"))
    (finding,) = diagnose(replace(failed, jobs=tuple(jobs_of([job]))))
    assert finding.evidence.endswith("no prompts; Job chat-validate-v5-1 failed: past its deadline")
    assert finding.severity is Severity.PROBLEM
    assert any("logs job/chat-validate-v5-1" in command for command in finding.commands)


@pytest.mark.parametrize(
    ("message", "minutes", "expected"),
    [("measuring", 75, False), ("measuring", 80, True), ("measuring; its pod does not start: Unschedulable", 1, True)],
)
def test_a_measurement_that_does_not_begin_or_end_is_found(message: str, minutes: int, expected: bool) -> None:
    """A Job of the default time limit, an hour, ends after 77 minutes."""
    titles = found(snapshot(candidate(CandidatePhase.VALIDATING, message, minutes)))
    assert ("the candidate waits for its measurement" in titles) is expected


def test_a_measurement_is_not_too_long_before_its_own_time_limit() -> None:
    measured = snapshot(candidate(CandidatePhase.VALIDATING, "measuring", 100))
    for limit, expected in ((3600, True), (7200, False), ("unreadable", True)):
        raw = measured.speculator.raw
        given = {**raw, "spec": {**raw.get("spec", {}), "validation": {"timeoutSeconds": limit}}}
        titles = found(replace(measured, speculator=replace(measured.speculator, raw=given)))
        assert ("the candidate waits for its measurement" in titles) is expected


@pytest.mark.parametrize("reason", ["WaitingForTraces", "Training"])
def test_a_candidate_that_waits_before_its_measurement_is_found(reason: str) -> None:
    words = "waiting for held-out requests: 0 of 16"
    waits = CandidateStatus(version=1, phase=CandidatePhase.VALIDATING, job="chat-validate-v1-1", message=words)
    status = with_condition("TrainerReady", ConditionStatus.TRUE, reason, "the message")
    (finding,) = diagnose(snapshot(status.model_copy(update={"candidate": waits})))
    assert finding.title == "the candidate's measurement has not begun"
    assert finding.severity is Severity.WARNING
    assert finding.evidence.endswith(words)
    assert "capture.sampleRatio" in finding.advice


def roll(phase: RolloutPhase, minutes: int) -> SpeculatorStatus:
    progressed = NOW - timedelta(minutes=minutes)
    made = RolloutStatus(phase=phase, version=5, updated=1, total=3, started=progressed, progressed=progressed)
    return HEALTHY.model_copy(update={"rollout": made})


def test_a_canary_without_traffic_can_be_promoted_or_aborted() -> None:
    (finding,) = diagnose(snapshot(roll(RolloutPhase.CANARY, 11)))
    _, promote, abort = finding.commands
    assert promote.startswith("kubectl aurora promote chat 5 -n team ")
    assert abort.startswith("kubectl aurora abort chat 5 -n team ")
    assert found(snapshot(roll(RolloutPhase.CANARY, 5))) == []
    assert found(snapshot(roll(RolloutPhase.WATCHING, 50))) == []


@pytest.mark.parametrize("phase", [RolloutPhase.ROLLING, RolloutPhase.ROLLING_BACK])
def test_a_roll_that_does_not_go_on_is_found(phase: RolloutPhase) -> None:
    assert found(snapshot(roll(phase, 11))) == ["the roll does not go on"]


def test_a_pause_is_a_note_until_a_version_waits() -> None:
    (note,) = diagnose(snapshot(rollout={"paused": True}))
    assert note.severity is Severity.NOTE
    (warning,) = diagnose(snapshot(candidate(CandidatePhase.VALIDATED, "passed"), rollout={"paused": True}))
    assert warning.severity is Severity.WARNING
    assert warning.commands == ("kubectl aurora resume chat -n team",)


@pytest.mark.parametrize(
    ("annotation", "value"), [(PROMOTE_ANNOTATION, "v5"), (MEASURE_ANNOTATION, "5"), (START_OVER_ANNOTATION, "5")]
)
def test_an_annotation_that_the_operator_ignores_is_found(annotation: str, value: str) -> None:
    (finding,) = diagnose(snapshot(annotations={annotation: value, ABORT_ANNOTATION: "4"}))
    assert finding.commands == (f"kubectl -n team annotate auroraspeculator chat {annotation}-",)


@pytest.mark.parametrize(
    ("draft", "measured", "expected"),
    [
        ({"shape": "Fixed"}, "0.92x (0.90-0.95)", True),
        ({"branching": 4, "draftTokens": 16}, "0.92x (0.90-0.95)", True),
        ({"shape": "Fixed"}, "1.10x (1.05-1.15)", False),
        ({"shape": "Fixed"}, None, False),
        ({}, "0.92x (0.90-0.95)", False),
    ],
)
def test_a_fixed_shape_that_does_not_pay_is_found(draft: dict[str, Any], measured: str | None, expected: bool) -> None:
    active = VersionStatus(version=1, speedup=measured)
    status = HEALTHY.model_copy(update={"estimated_speedup": "~0.8x", "active": active})
    findings = diagnose(snapshot(status, draft=draft))
    words = "serving is slower than without speculation, by the gate's measurement of the active version"
    wrong = [one.title for one in findings if one.severity is not Severity.NOTE]
    assert wrong == [words] * expected, "the estimate is about another shape"


def history(*events: str) -> SpeculatorStatus:
    entries = [HistoryEntry(time=NOW, event=event, version=n, message=f"m{n}") for n, event in enumerate(events, 1)]
    return HEALTHY.model_copy(update={"history": entries})


def test_a_suspended_measurement_is_found_although_it_waits_for_long() -> None:
    words = "version 2: measuring on the real engine; its Job is suspended until Kueue admits it to the queue q"
    status = with_condition("CandidateValidated", ConditionStatus.UNKNOWN, "MeasurementSuspended", words)
    since = NOW - timedelta(hours=9)
    candidate = CandidateStatus(version=2, phase=CandidatePhase.VALIDATING, job="chat-validate-v2-1", since=since)
    (finding,) = diagnose(snapshot(status.model_copy(update={"candidate": candidate})))
    assert finding.title == "the candidate's measurement is suspended"
    assert finding.severity is Severity.WARNING
    assert "patch job chat-validate-v2-1" in finding.commands[-1]


def test_a_queued_trainer_is_no_lack_of_nodes() -> None:
    gated = pod("chat-trainer-1", "trainer", conditions=[
        {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "Scheduling is blocked"},
    ])  # fmt: skip
    status = with_condition("TrainerReady", ConditionStatus.FALSE, "Queued", "waits behind a gate")
    assert found(snapshot(status, pods=[gated])) == ["the trainer's pod waits in a queue"]


def test_candidates_that_never_pass_are_found_from_the_third_on() -> None:
    assert found(snapshot(history("Rejected", "Inconclusive"))) == []
    assert found(snapshot(history("Rejected", "Rejected", "Promoted", "Inconclusive"))) == []
    (finding,) = diagnose(snapshot(history("Promoted", "Rejected", "Inconclusive", "Rejected")))
    assert finding.evidence == "2 Rejected, 3 Inconclusive, 4 Rejected; the last: m4"


def test_a_rollback_of_today_is_a_note_with_its_evidence() -> None:
    (finding,) = diagnose(snapshot(history("Promoted", "RolledBack")))
    assert finding.severity is Severity.NOTE
    assert "kubectl aurora evidence chat 2 -n team" in finding.commands


def test_an_agent_that_the_operator_cannot_reach_is_found() -> None:
    status = HEALTHY.model_copy(update={"pods": [PodStatus(name="chat-a", state="AgentUnreachable")]})
    assert found(snapshot(status)) == ["the operator cannot reach the agent of a pod that runs"]


def test_causes_come_before_what_follows_from_them() -> None:
    bad = HEALTHY.model_copy(
        update={
            "conditions": [
                Condition(type=t, status=s, reason=r, last_transition_time=NOW)
                for t, s, r in (
                    (ConditionType.TRAINER_READY, ConditionStatus.FALSE, "Silent"),
                    (ConditionType.SERVING_READY, ConditionStatus.FALSE, "SwapsPending"),
                    (ConditionType.STORAGE_READY, ConditionStatus.FALSE, "SecretMissing"),
                )
            ]
        }
    )
    findings = diagnose(snapshot(bad, rollout={"paused": True}))
    reasons = [finding.evidence.split()[1].rstrip(":") for finding in findings[:3]]
    assert reasons == ["SecretMissing", "Silent", "SwapsPending"]
    assert findings[-1].severity is Severity.NOTE
    assert "create secret generic s3 " in findings[0].commands[0]


@pytest.mark.parametrize(
    ("installation", "namespace"),
    [
        ("aurora-tenant-a/aurora-operator", "aurora-tenant-a"),
        ("x; rm -rf ~/lease", "aurora-system"),
        (None, "aurora-system"),
    ],
)
def test_commands_name_the_namespace_of_the_operator_that_acts(installation: str | None, namespace: str) -> None:
    forbidden = with_condition("StorageReady", ConditionStatus.FALSE, "SecretForbidden")
    operator = None if installation is None else OperatorIdentity(installation=installation)
    (finding,) = diagnose(snapshot(forbidden.model_copy(update={"operator": operator})))
    listed, values = finding.commands
    assert listed == f"helm list -n {namespace}"
    assert values == f"helm get values -n {namespace} RELEASE   # secretNames"
