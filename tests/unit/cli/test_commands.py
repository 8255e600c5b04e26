"""The commands against a stand-in for the API server: what they print, what they change, and how they fail."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml
from rich.console import Console

from aurora_api.v1alpha1.annotations import ABORT_ANNOTATION, PROMOTE_ANNOTATION
from aurora_api.v1alpha1.status import CandidatePhase, HistoryEntry, RolloutPhase, TrainingStatus
from aurora_cli.cluster.kubernetes_api import speculators_path
from aurora_cli.commands import look
from aurora_cli.errors import ClusterError, Conflict, Forbidden, NotInstalled
from aurora_operator.plan import plan
from tests.unit.cli.fake_cluster import FakeApiServer, resource
from tests.unit.cli.test_decisions import CANARY, status
from tests.unit.operator import worlds
from tests.unit.operator.worlds import NOW

CHAT = speculators_path("team", "chat")
REAL = worlds.status(worlds.observed(store=worlds.store(0, 1, evidence=(worlds.evidence(1),))))
"""A status that the operator's planner writes."""
DECIDING = ("promote", "abort", "pin", "unpin", "pause", "resume")
"""Commands that change a field, but for ``measure``, which needs a candidate that failed."""


@pytest.fixture(name="server")
def _server() -> FakeApiServer:
    return FakeApiServer.of(resource(CANARY))


def arguments_of(command: str) -> list[str]:
    return [command, "chat", *(["2"] if command == "pin" else [])]


def test_one_speculator_is_shown_with_pods_and_conditions() -> None:
    result = FakeApiServer.of(resource(REAL)).run("status", "chat")
    assert result.exit_code == 0, result.output
    assert "version 0, 1.35x (1.30-1.40) over no speculation" in result.stdout
    text = " ".join(result.stdout.split())
    assert "saved by speculation: not known" in text
    for pod in REAL.pods:
        assert pod.name in result.stdout
    for condition in REAL.conditions:
        assert f"{condition.type} " in result.stdout


def test_a_speculator_that_is_being_deleted_is_shown_as_such() -> None:
    server = FakeApiServer.of(resource(REAL))
    deleted = datetime.now(UTC) - timedelta(minutes=90)
    server.change("chat", {"metadata": {"deletionTimestamp": deleted.isoformat(timespec="seconds")}})
    assert "; being deleted for 1h30m" in server.run("status", "chat").stdout.splitlines()[0]
    assert "being deleted" in server.run("status").stdout.splitlines()[1]
    assert "being deleted" not in FakeApiServer.of(resource(REAL)).run("status", "chat").stdout


def test_figures_of_traffic_are_called_the_last_ones() -> None:
    shown = REAL.model_copy(update={"accept_length": "2.71", "estimated_speedup": "~1.9x"})
    text = " ".join(FakeApiServer.of(resource(shown)).run("status", "chat").stdout.split())
    assert "acceptance length 2.71 when there was traffic last" in text
    assert "estimated speedup ~1.9x when there was traffic last" in text


def test_the_worth_of_training_is_shown() -> None:
    training = TrainingStatus(devices="1 nvidia.com/gpu", saved_devices="0.05 nvidia.com/gpu")
    shown = REAL.model_copy(update={"training": training})
    text = " ".join(FakeApiServer.of(resource(shown)).run("status", "chat").stdout.split())
    assert "saved by speculation: 0.05 nvidia.com/gpu, held by the trainer: 1 nvidia.com/gpu" in text


def test_all_speculators_are_a_table_with_one_line_each() -> None:
    server = FakeApiServer.of(resource(REAL), resource(None, name="other"))
    heading, *rows = server.run("status").stdout.splitlines()
    assert heading.split()[:4] == ["NAME", "READY", "REASON", "ACTIVE"]
    assert [row.split()[0] for row in rows] == ["chat", "other"]
    assert "NoStatus" in rows[1]
    assert server.run("status", "-A").stdout.startswith("NAMESPACE")


def test_flags_stand_before_or_after_the_command(server: FakeApiServer) -> None:
    for arguments in (("-n", "other", "status", "chat"), ("status", "chat", "-n", "other")):
        result = server.run(*arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: no AuroraSpeculator chat in the namespace other")


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_a_document_is_the_resource_and_nothing_else(server: FakeApiServer, output: str) -> None:
    server.objects[CHAT]["metadata"]["managedFields"] = [{"manager": "helm"}]
    read: Any = json.loads if output == "json" else yaml.safe_load
    one = read(server.run("status", "chat", "-o", output).stdout)
    assert one["status"] == server.objects[CHAT]["status"]
    assert "managedFields" not in one["metadata"]
    assert [item["metadata"]["name"] for item in read(server.run("status", "-o", output).stdout)["items"]] == ["chat"]


def test_the_history_is_in_order() -> None:
    entries = [HistoryEntry(time=NOW, event="Promoted", version=v, message=f"reason {v}") for v in (1, 2)]
    server = FakeApiServer.of(resource(CANARY.model_copy(update={"history": entries})))
    lines = server.run("history", "chat").stdout.splitlines()
    assert [line.rsplit("  ", 1)[-1] for line in lines[1:]] == ["reason 1", "reason 2"]
    assert [entry["version"] for entry in json.loads(server.run("history", "chat", "-o", "json").stdout)] == [1, 2]


def test_a_decision_is_stored_and_printed(server: FakeApiServer) -> None:
    result = server.run("promote", "chat", "5")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == f"chat: {PROMOTE_ANNOTATION}: unset -> 5"
    assert server.objects[CHAT]["metadata"]["annotations"] == {PROMOTE_ANNOTATION: "5"}


@pytest.mark.parametrize("command", DECIDING)
def test_a_dry_run_stores_nothing_and_is_checked_by_the_server(command: str) -> None:
    rollout = {"paused": command == "resume", "pin": 3 if command == "unpin" else None}
    server = FakeApiServer.of(resource(CANARY, rollout=rollout))
    before = json.dumps(server.objects)
    result = server.run(*arguments_of(command), "--dry-run")
    assert result.exit_code == 0, result.output
    assert "dry run, nothing was changed" in result.stdout
    assert json.dumps(server.objects) == before
    assert [dry_run for _, _, dry_run in server.patches] == [True]


def test_a_decision_twice_is_unchanged_and_no_failure(server: FakeApiServer) -> None:
    server.run("pause", "chat")
    result = server.run("pause", "chat")
    assert (result.exit_code, result.stdout) == (0, "chat: unchanged, because rolls are paused already\n")
    assert len(server.patches) == 1


def test_a_refusal_prints_the_command_that_mends_it_on_a_line_of_its_own_and_for_the_same_cluster() -> None:
    waits = resource(CANARY, annotations={ABORT_ANNOTATION: "5"})
    server = FakeApiServer.of(waits)
    result = server.run("--kubeconfig", "my file", "abort", "chat", "4", "--context", "prod")
    error, command = result.stderr.splitlines()
    assert (result.exit_code, server.patches) == (1, [])
    assert error.startswith(f"error: {ABORT_ANNOTATION} names version 5, waits for its effect")
    flags = "--context=prod '--kubeconfig=my file'"
    assert command == f"   $ kubectl {flags} -n team annotate auroraspeculator chat {ABORT_ANNOTATION}-"
    moved = status(6, candidate=(5, CandidatePhase.VALIDATED), rollout=(6, RolloutPhase.WATCHING))
    promoted = FakeApiServer.of(resource(moved, annotations={PROMOTE_ANNOTATION: "5"}))
    assert promoted.run("promote", "chat", "--context", "prod").stderr.splitlines()[1] == (
        f"   $ kubectl --context=prod -n team annotate auroraspeculator chat {PROMOTE_ANNOTATION}-"
    )


def test_a_bad_canary_is_aborted_while_an_abort_of_a_candidate_waits() -> None:
    found = status(3, candidate=(5, CandidatePhase.VALIDATED), rollout=(4, RolloutPhase.CANARY))
    server = FakeApiServer.of(resource(found, annotations={ABORT_ANNOTATION: "5"}))
    result = server.run("abort", "chat")
    assert result.exit_code == 0, result.output
    assert server.objects[CHAT]["metadata"]["annotations"] == {ABORT_ANNOTATION: "4"}
    assert result.stderr.startswith("note: this withdraws the abort of version 5, which waits for its effect, so")
    assert "`abort chat 5` as soon as" in result.stderr


def test_a_new_status_of_the_operator_does_not_prevent_a_decision(server: FakeApiServer) -> None:
    server.meanwhile = [{"status": {"traces": number}} for number in (5, 6, 7)]
    result = server.run("pin", "chat", "3")
    assert result.exit_code == 0, result.output
    assert server.objects[CHAT]["spec"]["rollout"]["pin"] == 3
    assert server.objects[CHAT]["status"]["traces"] == 7


@pytest.mark.parametrize(
    ("newer", "shown"),
    [
        ({"spec": {"rollout": {"pin": 2}}}, "spec.rollout.pin: unset -> 2"),
        ({"metadata": {"annotations": {ABORT_ANNOTATION: "5"}}}, f"{ABORT_ANNOTATION}: unset -> 5"),
        ({"metadata": {"uid": "another"}}, "metadata.uid"),
    ],
)
def test_a_newer_decision_of_somebody_else_is_not_overwritten(
    server: FakeApiServer, newer: dict[str, Any], shown: str
) -> None:
    server.meanwhile = [newer]
    result = server.run("pin", "chat", "3")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: nothing was changed, because somebody changed chat meanwhile")
    assert shown in result.stderr
    assert server.patches == []


def test_a_roll_that_moved_on_meanwhile_is_decided_anew(server: FakeApiServer) -> None:
    promoted = status(5, previous=4).model_dump(mode="json", by_alias=True, exclude_none=True)
    server.meanwhile = [{"status": promoted}]
    result = server.run("abort", "chat", "5")
    assert result.exit_code == 0, result.output
    assert "pods return from version 5 to version 4" in result.stdout


def test_a_patch_that_always_meets_a_conflict_ends() -> None:
    server = FakeApiServer.of(resource(CANARY))
    server.meanwhile = [{"status": {"traces": number}} for number in range(100)]
    result = server.run("pause", "chat")
    assert result.exit_code == 1
    assert result.stderr == "error: chat changes all the time, and 8 patches were refused; try again\n"


@pytest.mark.parametrize(
    "error",
    [
        NotInstalled("the cluster does not know the kind AuroraSpeculator"),
        Forbidden('auroraspeculators.aurora.dev "chat" is forbidden: User "jane" cannot get it'),
        ClusterError("the API server https://10.0.0.1 cannot be reached: the connection was refused"),
        ClusterError("one line\nand another \x1b[2J"),
        Conflict("the object has been modified"),
    ],
)
@pytest.mark.parametrize("command", ["status", "history", "doctor", *DECIDING])
def test_every_failure_is_one_line_on_stderr_and_no_success(command: str, error: ClusterError) -> None:
    result = FakeApiServer(error=error).run(*arguments_of(command))
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "\x1b" not in line


def test_a_status_of_another_version_is_a_clear_error(server: FakeApiServer) -> None:
    server.objects[CHAT]["status"]["rollout"]["phase"] = "Sideways"
    result = server.run("status", "chat")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: team/chat: status: rollout.phase")
    assert "update kubectl-aurora" in result.stderr


def test_a_status_that_cannot_be_read_hides_no_other_speculator() -> None:
    server = FakeApiServer.of(resource(REAL), resource(REAL, name="newer"))
    server.objects[speculators_path("team", "newer")]["status"]["rollout"]["phase"] = "Sideways"
    _, chat, newer = server.run("status").stdout.splitlines()
    assert "1.35x" in chat
    assert "Unreadable" in newer


@pytest.mark.parametrize("name", ["Chat", "../secrets/x", "chat/status", "-chat", "chat?x=y", ""])
def test_a_name_that_no_object_has_reaches_no_server(server: FakeApiServer, name: str) -> None:
    assert server.run("pause", "--", name).exit_code == 2
    assert server.run("status", "chat", f"--namespace={name or '/'}").exit_code == 2
    assert server.calls == []


def test_texts_of_others_do_not_control_the_terminal() -> None:
    evil = "\x1b[2J[bold]all is well[/bold]\r\x07\u202e"
    found = REAL.model_copy(update={"history": [HistoryEntry(time=NOW, event="Promoted", version=1, message=evil)]})
    found = found.model_copy(update={"rollout": found.rollout.model_copy(update={"version": 1, "message": evil})})
    server = FakeApiServer.of(resource(found))
    for arguments in (("status", "chat"), ("history", "chat"), ("history", "chat", "-o", "yaml"), ("doctor", "chat")):
        result = server.run(*arguments)
        assert result.exit_code == 0, result.output
        assert all(character.isprintable() or character == "\n" for character in result.stdout)
        assert "[bold]" in result.stdout or arguments[0] == "doctor"


def test_a_watch_prints_what_changed_survives_an_outage_and_ends_with_ctrl_c(
    server: FakeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Callable[[], None]] = [
        lambda: None,
        lambda: server.change("chat", {"status": {"acceptLength": "2.71"}}),
        lambda: setattr(server, "error", ClusterError("the API server is away")),
        lambda: setattr(server, "error", None),
    ]

    def sleep(seconds: float) -> None:
        assert seconds == 2.0
        if not events:
            raise KeyboardInterrupt
        events.pop(0)()

    monkeypatch.setattr("time.sleep", sleep)
    result = server.run("status", "--watch")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("NAME ") == 3
    assert result.stdout.count("2.71") == 2
    assert "error: the API server is away; trying again" in result.stdout


def test_a_watch_on_a_terminal_keeps_its_last_view_below_one_error(
    server: FakeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def sleep(_: float) -> None:
        nonlocal looks
        looks += 1
        server.error = ClusterError("the API server is away")
        if looks == 20:
            raise KeyboardInterrupt

    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=200, height=40, color_system=None)
    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr(look, "console", lambda: terminal)
    result = server.run("status", "--watch")
    assert result.exit_code == 0, result.output
    assert screen.getvalue().count("error: the API server is away; trying again") == looks - 1
    assert screen.getvalue().count("NAME ") >= looks


def test_a_watch_that_cannot_begin_fails() -> None:
    assert FakeApiServer(error=ClusterError("away")).run("status", "-w").exit_code == 1
    assert FakeApiServer.of(resource(CANARY)).run("status", "-w", "-o", "json").exit_code == 1


def test_help_names_every_command() -> None:
    text = FakeApiServer().run("--help").stdout
    assert all(f"  {command} " in text for command in ("status", "history", "evidence", "doctor", *DECIDING))


def test_the_operator_carries_out_a_pin_of_the_program() -> None:
    """The field that the program writes is the one that the planner reads."""
    server = FakeApiServer.of(resource(REAL))
    server.run("pin", "chat", "0")
    spec = worlds.spec(rollout=server.objects[CHAT]["spec"]["rollout"])
    world = worlds.observed(spec=spec, store=worlds.store(0, 1, evidence=(worlds.evidence(1),)))
    made = plan(world, worlds.CONFIG, NOW).status
    assert made is not None
    assert made.candidate is None or made.candidate.phase is not CandidatePhase.VALIDATING
    assert made.rollout.phase is RolloutPhase.IDLE
