"""The doctor finds what the status shows, and its table has a row for each reason that the operator can set."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import (
    CandidatePhase,
    CandidateStatus,
    OperatorIdentity,
    PodStatus,
    RolloutPhase,
    RolloutStatus,
    SpeculatorStatus,
)
from aurora_cli.commands.doctor import report
from aurora_cli.doctor import DOCTOR, Remedy, Severity, diagnose, remedies
from aurora_cli.tables.printing import as_text
from tests.unit.cli.fake_cluster import FakeApiServer, resource, speculator
from tests.unit.docs.markdown import ROOT
from tests.unit.operator.worlds import NOW

RENEWED = {"renewTime": NOW.isoformat(), "leaseDurationSeconds": 10}
HEALTHY = SpeculatorStatus(observed_generation=1)


def with_condition(
    type_: ConditionType, reason: str, message: str = "", status: ConditionStatus = ConditionStatus.FALSE
) -> SpeculatorStatus:
    condition = Condition(type=type_, status=status, reason=reason, message=message, last_transition_time=NOW)
    return HEALTHY.model_copy(update={"conditions": [condition]})


def found(status: SpeculatorStatus | None, lease: Any = RENEWED, **more: Any) -> list[str]:
    return [one.reason for one in diagnose(speculator(status, **more), lease, NOW)]


def test_a_finding_has_the_command_for_this_cluster_namespace_and_speculator() -> None:
    status = with_condition(ConditionType.STORAGE_READY, "SecretMissing", "no Secret s3")
    problem, note = diagnose(speculator(status, rollout={"paused": True}), RENEWED, NOW, ["--context=prod"])
    assert (problem.severity, note.severity) == (Severity.PROBLEM, Severity.NOTE)
    text = as_text(*report("chat", [problem, note]))
    assert "$ kubectl --context=prod -n team create secret generic s3 --from-env-file=FILE" in text
    assert "$ kubectl aurora --context=prod resume chat -n team" in text


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (None, "NoOperator"),
        (SpeculatorStatus(), "SpecUnseen"),
        ({"pods": [PodStatus(name="chat-a", state="AgentUnreachable")]}, "AgentUnreachable"),
        (
            {"rollout": RolloutStatus(phase=RolloutPhase.ROLLING, version=5, started=NOW - timedelta(hours=1))},
            "RollStands",
        ),
        ({"candidate": CandidateStatus(version=5, phase=CandidatePhase.VALIDATING)}, "CandidateWaits"),
    ],
)
def test_what_no_condition_says_is_found(status: Any, reason: str) -> None:
    status = HEALTHY.model_copy(update=status) if isinstance(status, dict) else status
    assert found(status) == [reason]


@pytest.mark.parametrize("lease", [{}, {"renewTime": "x"}, RENEWED | {"renewTime": "2025-12-31T23:58:00Z"}])
def test_an_operator_that_does_not_renew_its_lease_is_found(lease: dict[str, Any]) -> None:
    assert found(HEALTHY, lease) == ["OperatorStopped"]
    assert found(HEALTHY, None) == []


@pytest.mark.parametrize(
    ("cause", "repeats"),
    [
        ((ConditionType.SERVING_READY, "PodsNotReady"), {"type": ConditionType.READY}),
        (
            (ConditionType.STORAGE_READY, "Unreachable"),
            {"type": ConditionType.STALLED, "status": ConditionStatus.TRUE, "reason": "StorageUnreachable"},
        ),
    ],
    ids=["Ready", "Stalled"],
)
def test_a_condition_that_sums_others_up_repeats_no_finding(
    cause: tuple[ConditionType, str], repeats: dict[str, Any]
) -> None:
    status = with_condition(*cause)
    again = status.conditions[0].model_copy(update=repeats)
    assert found(status.model_copy(update={"conditions": [again, *status.conditions]})) == [cause[1]]


@pytest.mark.parametrize(
    ("type_", "status", "expected"),
    [
        (ConditionType.STALLED, ConditionStatus.TRUE, ["UnheardOf"]),
        (ConditionType.STALLED, ConditionStatus.FALSE, []),
        (ConditionType.READY, ConditionStatus.FALSE, ["UnheardOf"]),
        (ConditionType.RECONCILING, ConditionStatus.TRUE, []),
    ],
)
def test_a_reason_of_a_newer_operator_is_no_sign_of_health(
    type_: ConditionType, status: ConditionStatus, expected: list[str]
) -> None:
    assert found(with_condition(type_, "UnheardOf", status=status)) == expected


def rows() -> list[tuple[str, str, Remedy]]:
    return [(type_, reason, row) for type_, reasons in remedies().items() for reason, row in reasons.items()]


def test_every_type_of_condition_has_rows_and_only_known_fields() -> None:
    assert set(remedies()) - {DOCTOR} == {kind.value for kind in ConditionType}
    known = {"{ns}", "{name}", "{operator_ns}", "{secret}", "{job}"}
    for _, reason, row in rows():
        assert set(re.findall(r"\{[a-z_]+\}", " ".join(row.run))) <= known, reason
        assert row.do or not row.run, reason


def test_every_reason_that_the_operator_sets_has_a_row() -> None:
    source = "".join(file.read_text() for file in sorted((ROOT / "operator/aurora_operator").rglob("*.py")))
    constants = dict(re.findall(r'^([A-Z_]+)(?:: Final)? = "([A-Z][A-Za-z]+)"$', source, re.MULTILINE))
    arguments = re.findall(r'ConditionContent\(\s*[^,()"]+,\s*("?\w+"?)[,)]', source)
    set_by_operator = {
        constants.get(each, "") or each.strip('"') for each in arguments if each[0] in '"' or each in constants
    }
    assert len(set_by_operator) > 15
    assert set_by_operator - {reason for _, reason, _ in rows()} == set()


def test_the_command_prints_documents_and_an_exit_code(server: FakeApiServer) -> None:
    told = with_condition(ConditionType.STORAGE_READY, "SecretMissing")
    server.add(resource(told.model_copy(update={"operator": OperatorIdentity(installation="aurora-system/aurora")})))
    server.refusals = {"/leases/": 403}
    result = server.run("doctor", "chat", "-o", "json", "--exit-code")
    assert (result.exit_code, "refused" in result.stderr) == (1, True)
    (finding,) = json.loads(result.stdout)
    assert (finding["reason"], finding["severity"]) == ("SecretMissing", "problem")
    server.refusals = {}
    assert [one["reason"] for one in json.loads(server.run("doctor", "chat", "-o", "json").stdout)] == [
        "OperatorStopped",
        "SecretMissing",
    ]
