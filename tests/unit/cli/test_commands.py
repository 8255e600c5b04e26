"""The commands that look: the figures that they show, and how every command fails."""

from __future__ import annotations

from datetime import timedelta

import pytest

from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import (
    CandidatePhase,
    CandidateStatus,
    HistoryEntry,
    PodStatus,
    PreviousVersion,
    RolloutPhase,
    RolloutStatus,
    SpeculatorStatus,
    TrainingStatus,
    VersionStatus,
)
from aurora_cli.tables import status_table
from aurora_cli.tables.printing import as_text
from tests.unit.cli.fake_cluster import FakeApiServer, resource, speculator, speculators_path
from tests.unit.operator import worlds
from tests.unit.operator.worlds import NOW

SINCE = NOW - timedelta(hours=3)
COLUMNS = 80
STATUS = SpeculatorStatus(
    conditions=[
        Condition(
            type=ConditionType(type_),
            status=ConditionStatus(status),
            reason=reason,
            message=message,
            last_transition_time=SINCE,
        )
        for type_, status, reason, message in (
            ("Ready", "True", "Serving", "2 of 2 pods serve the version they should"),
            ("StorageReady", "False", "Unreachable", "get channel/: timed out after 10 s at the store of the cluster"),
        )
    ],
    active=VersionStatus(version=4, speedup="1.52x (1.45-1.60)", gain="1.10x (1.07-1.13)", since=SINCE),
    previous=PreviousVersion(version=3),
    candidate=CandidateStatus(version=5, phase=CandidatePhase.VALIDATING, attempt=2, message="round 3 of 12"),
    rollout=RolloutStatus(phase=RolloutPhase.ROLLING, version=5, total=2, updated=1, started=SINCE),
    rejected=[2],
    pods=[PodStatus(name="chat-7d4b9-x2x7k", version=4, state="Ready", checksum="0123456789ab")],
    training=TrainingStatus(phase="Training", step=9420, trained_tokens=1_230_000),
    history=[
        HistoryEntry(time=SINCE, event="Rejected", version=2, message="candidate/active 1.001x does not reach 1.020"),
        HistoryEntry(time=NOW, event="Promoted", version=4),
    ],
    accept_length="2.71",
    updated="2/2",
    store_root="aurora/team/chat",
)


def test_the_tables_show_the_figures_of_the_status_in_80_columns() -> None:
    one = speculator(STATUS)
    found = {
        "detail": status_table.detail(one, NOW),
        "overview": status_table.overview([one, speculator(name="other")], everywhere=False),
        "history": status_table.history(one),
        "new": status_table.detail(speculator(), NOW),
    }
    texts = {name: as_text(shown, width=COLUMNS) for name, shown in found.items()}
    assert max(len(line) for text in texts.values() for line in text.splitlines()) <= COLUMNS
    facts = ("1.52x (1.45-1.60)", "1.10x (1.07-1.13)", "version 5 Validating, attempt 2", "version 5 on 1 of 2 pods",
             "rejected: 2", "2.71", "step 9420, 1.2M tokens", "s3://bucket/aurora/team/chat", "0123456789ab",
             "False Unreachable, 3h")  # fmt: skip
    assert [fact for fact in facts if fact not in texts["detail"]] == []
    rows = [row.split() for row in texts["overview"].splitlines()[1:]]
    assert rows == [
        ["chat", "True", "Serving", "4", "1.52x", "2/2", "Rolling", "5", "Validating"],
        ["other", "-", "NoStatus", "-", "-", "-", "-", "-"],
    ]
    events = [row.split()[:4] for row in texts["history"].splitlines() if row[0].isdigit()]
    assert events == [["2025-12-31", "21:00", "Rejected", "2"], ["2026-01-01", "00:00", "Promoted", "4"]]


def test_a_speculator_that_is_being_deleted_is_shown_as_such(server: FakeApiServer) -> None:
    server.add(resource(STATUS, metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}))
    assert server.run("status", "chat").stdout.splitlines()[0].startswith("chat in team: ready, Serving; being deleted")
    assert "being deleted" in server.run("status").stdout


def test_a_status_that_the_operator_writes_is_shown(server: FakeApiServer) -> None:
    real = worlds.status(worlds.observed(store=worlds.store(0, 1, evidence=(worlds.evidence(1),))))
    text = server.add(resource(real)).run("status", "chat").stdout
    assert "version 0, 1.35x (1.30-1.40) over no speculation" in text
    assert all(f"{condition.type} " in text for condition in real.conditions)


def test_a_missing_speculator_is_named(server: FakeApiServer) -> None:
    result = server.run("status", "chta")
    assert (result.exit_code, "chta in the namespace team" in result.stderr) == (1, True)


def test_all_namespaces_are_one_table(server: FakeApiServer) -> None:
    server.add(resource(STATUS), resource(STATUS, name="b", metadata={"namespace": "other"}))
    rows = server.run("status", "-A").stdout.splitlines()
    assert [row.split()[:2] for row in rows] == [["NAMESPACE", "NAME"], ["other", "b"], ["team", "chat"]]
    assert server.run("status", "chat", "-A").exit_code == 1


@pytest.mark.parametrize("words", ["status", "history", "doctor", "abort", "pin 2", "unpin", "pause", "resume"])
def test_every_failure_is_one_line_on_stderr_and_no_success(server: FakeApiServer, words: str) -> None:
    command, *more = words.split()
    server.refusals = {"speculators": 500}
    result = server.run(command, "chat", *more)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")


def test_a_status_that_cannot_be_read_is_a_clear_error_and_hides_no_other_speculator(server: FakeApiServer) -> None:
    server.add(resource(STATUS), resource(STATUS, name="newer"))
    server.objects[speculators_path("team", "newer")]["status"]["rollout"]["phase"] = "Sideways"
    assert "team/newer: status: rollout.phase" in server.run("status", "newer").stderr
    _, chat, newer = server.run("status").stdout.splitlines()
    assert "1.52x" in chat
    assert "Unreadable" in newer


@pytest.mark.parametrize("name", ["Chat", "../secrets/x", "chat/status", "-chat", "chat?x=y", ""])
def test_a_name_that_no_object_has_reaches_no_server(server: FakeApiServer, name: str) -> None:
    assert server.run("pause", "--", name).exit_code == 2
    assert server.run("status", "chat", f"--namespace={name or '/'}").exit_code == 2
    assert server.calls == []


def test_texts_of_others_do_not_control_the_terminal(server: FakeApiServer) -> None:
    evil = "\x1b[2J[bold]all is well[/bold]\r\x07\u202e"
    told = STATUS.conditions[1].model_copy(update={"message": evil})
    found = STATUS.model_copy(update={"conditions": [told], "history": [HistoryEntry(time=NOW, event=evil, version=1)]})
    server.add(resource(found))
    for arguments in (("status", "chat"), ("history", "chat"), ("doctor", "chat"), ("doctor", "chat", "-o", "yaml")):
        result = server.run(*arguments)
        assert result.exit_code == 0, result.output
        assert all(character.isprintable() or character == "\n" for character in result.stdout)
        assert "[bold]" in result.stdout
    server.objects = {speculators_path("team", "chat"): resource(found, metadata={"name": evil})}
    assert all(character.isprintable() or character == "\n" for character in server.run("status").stdout)
