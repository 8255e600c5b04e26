"""The doctor answers for any cluster, and its command prints what it found."""

from __future__ import annotations

import io
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

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
from aurora_cli.commands import diagnose as diagnose_command
from aurora_cli.doctor.diagnosis import diagnose
from aurora_cli.doctor.facts import Snapshot, events_of, jobs_of, lease_of, pods_of
from aurora_cli.doctor.finding import Finding, Severity
from aurora_cli.errors import Forbidden
from aurora_cli.tables.findings_table import report
from aurora_cli.tables.printing import as_text
from tests.unit.cli.fake_cluster import FakeApiServer, resource, speculator
from tests.unit.cli.snapshots import HEALTHY, pod, snapshot, waiting, with_condition
from tests.unit.operator.worlds import NOW

# Robustness ----------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["metadata", "status", "labels", "name", "conditions", "containerStatuses", "state", "waiting", "lastState",
         "terminated", "reason", "message", "type", "restartCount", "lastTimestamp", "creationTimestamp",
         "renewTime", "leaseDurationSeconds", "running", "startedAt"]
    ), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
OBJECTS = st.lists(st.dictionaries(st.sampled_from(["metadata", "status", "spec", "reason", "type"]), JSON, max_size=4))


@example([{"status": {"conditions": [{"type": []}], "containerStatuses": [{"state": {"waiting": {"reason": []}}}]}}])
@given(OBJECTS)
def test_odd_objects_of_a_cluster_raise_nothing(objects: list[dict[str, Any]]) -> None:
    one = Snapshot(
        speculator(HEALTHY),
        NOW,
        tuple(pods_of(objects)),
        tuple(jobs_of(objects)),
        tuple(events_of(objects)),
        lease=lease_of("a/b", objects[0]) if objects else None,
    )
    as_text(report(one, diagnose(one)))


CONDITIONS = st.builds(
    lambda type_, status, reason: Condition(type=type_, status=status, reason=reason, last_transition_time=NOW),
    st.sampled_from(ConditionType),
    st.sampled_from(ConditionStatus),
    st.sampled_from(["Unreachable", "Silent", "Novelty", "PodsNotReady", "UpgradeFailed"]),
)
STATUSES = st.builds(
    lambda conditions, rollout, made, state: HEALTHY.model_copy(
        update={
            "conditions": conditions,
            "rollout": RolloutStatus(phase=rollout, version=5, progressed=NOW - timedelta(hours=1)),
            "candidate": made and CandidateStatus(version=5, phase=made),
            "pods": [PodStatus(name="chat-a", state=state)],
        }
    ),
    st.lists(CONDITIONS, max_size=6, unique_by=lambda one: str(one.type)),
    st.sampled_from(RolloutPhase),
    st.none() | st.sampled_from(CandidatePhase),
    st.sampled_from(["Ready", "AgentUnreachable"]),
)

FIELDS = re.compile(r"\{(ns|name|secret|job|pod|container|version|annotation|bucket|root|at_endpoint)\}")


@given(STATUSES)
def test_findings_are_ordered_and_complete_for_any_status(status: SpeculatorStatus) -> None:
    findings: list[Finding] = list(diagnose(snapshot(status)))
    assert [one.severity for one in findings] == sorted(one.severity for one in findings)
    for one in findings:
        assert one.title
        assert one.evidence
        assert not FIELDS.search(" ".join(one.commands))


# The command ---------------------------------------------------------------------------------------------------------


def test_the_command_reads_pods_jobs_and_events_and_can_tell_its_result_by_the_exit_code() -> None:
    server = FakeApiServer.of(resource(with_condition("StorageReady", ConditionStatus.FALSE, "Unreachable")))
    server.objects["/api/v1/namespaces/team/pods/chat-a"] = pod(
        containerStatuses=[waiting("agent", "ImagePullBackOff")]
    )
    result = server.run("doctor", "chat")
    assert result.exit_code == 0, result.output
    assert result.stdout.index("1. problem: the store") < result.stdout.index("2. problem: container agent")
    assert server.run("doctor", "chat", "--exit-code").exit_code == 1
    healthy = FakeApiServer.of(resource(HEALTHY))
    assert healthy.run("doctor", "chat", "--exit-code").exit_code == 0


@pytest.mark.parametrize(("reason", "severity", "code"), [("Silent", "problem", 1), ("Queued", "warning", 0)])
def test_the_exit_code_is_about_problems_only(reason: str, severity: str, code: int) -> None:
    server = FakeApiServer.of(resource(with_condition("TrainerReady", ConditionStatus.FALSE, reason)))
    result = server.run("doctor", "chat", "--exit-code")
    assert (result.exit_code, result.stdout.split(":")[0]) == (code, f"1. {severity}")


def test_what_may_not_be_read_is_named_and_the_rest_is_shown() -> None:
    server = FakeApiServer.of(resource(with_condition("StorageReady", ConditionStatus.FALSE, "Unreachable")))
    server.errors = {"/pods": Forbidden("no"), "/jobs": Forbidden("no")}
    result = server.run("doctor", "chat")
    assert result.exit_code == 0, result.output
    assert "1. problem: the store" in result.stdout
    assert "you may not read pods, jobs, so a cause may be missing" in result.stdout


def test_a_printed_command_reaches_the_same_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [
        "kubectl -n team create secret generic keys --dry-run=client -o yaml | kubectl apply -f -",
        "kubectl aurora status my-kubectl -n team",
        "helm list -A --filter aurora",
    ]
    monkeypatch.setattr(diagnose_command, "diagnose", lambda _: [Finding(Severity.NOTE, "title", commands=commands)])
    server = FakeApiServer.of(resource(HEALTHY))
    result = server.run("doctor", "chat", "--context", "prod", "--kubeconfig", "my file", "-o", "json")
    flags = "=prod '--kubeconfig=my file'"
    assert json.loads(result.stdout)["findings"][0]["commands"] == [
        f"kubectl --context{flags} -n team create secret generic keys --dry-run=client -o yaml"
        f" | kubectl --context{flags} apply -f -",
        f"kubectl aurora --context{flags} status my-kubectl -n team",
        f"helm --kube-context{flags} list -A --filter aurora",
    ]
    same = server.run("doctor", "chat", "-o", "json")
    assert json.loads(same.stdout)["findings"][0]["commands"] == commands


LEASE = "/apis/coordination.k8s.io/v1/namespaces/aurora-system/leases/aurora-operator"
ACTED = HEALTHY.model_copy(update={"operator": OperatorIdentity(installation="aurora-system/aurora-operator")})


@pytest.mark.parametrize(
    ("age", "problem"),
    [(timedelta(seconds=2), ""), (timedelta(seconds=69), ""), (timedelta(seconds=75), "last renewed"), (None, "Lease")],
)
def test_an_operator_that_renews_no_lease_is_a_problem(age: timedelta | None, problem: str) -> None:
    server = FakeApiServer.of(resource(ACTED))
    if age is not None:
        renewed = (datetime.now(UTC) - age).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        server.objects[LEASE] = {"spec": {"renewTime": renewed, "leaseDurationSeconds": 10}}
    result = server.run("doctor", "chat", "--exit-code")
    assert result.exit_code == bool(problem), result.output
    assert ("1. problem: the operator does not run" in result.stdout) is bool(problem)
    assert problem in result.stdout


def test_a_lease_that_may_not_be_read_is_named() -> None:
    server = FakeApiServer.of(resource(ACTED))
    server.errors = {"/leases/aurora-operator": Forbidden("no")}
    result = server.run("doctor", "chat", "--exit-code")
    assert result.exit_code == 0
    assert "you may not read the operator's Lease aurora-system/aurora-operator, so" in result.stdout


def test_a_command_is_one_line_on_a_narrow_terminal_so_that_it_can_be_copied() -> None:
    one = snapshot(with_condition("StorageReady", ConditionStatus.FALSE, "SecretMissing"))
    (finding,) = diagnose(one)
    terminal = Console(width=40, file=io.StringIO(), force_terminal=True, color_system=None)
    with terminal.capture() as captured:
        terminal.print(report(one, [finding]), crop=False)
    lines = captured.get().splitlines()
    assert f"   $ {finding.commands[0]}" in lines
    assert all(len(line) <= 40 for line in lines if not line.startswith("   $"))
