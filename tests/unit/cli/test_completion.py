"""Completion in the form of kubectl's plugins: a candidate a line, and a directive at the end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_cli.cluster.kubeconfig import Access, Connection
from aurora_cli.command_line import Session
from aurora_cli.commands.shell import complete
from aurora_cli.errors import ClusterError
from aurora_cli.main import app
from tests.unit.cli.fake_cluster import FakeApiServer, resource
from tests.unit.cli.test_decisions import CANARY

SERVER = FakeApiServer.of(resource(CANARY), resource(None, name="code"))
NO_FILES = ":4"


def completed(words: Sequence[str], capsys: pytest.CaptureFixture[str], server: FakeApiServer = SERVER) -> list[str]:
    def connect(access: Access) -> Connection:
        return Connection(server, access.namespace or "team")

    complete(app, words, Session(connect=connect))
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("words", "candidates"),
    [
        (["pa"], ["pause"]),
        (["-n", "team", "pa"], ["pause"]),
        (["status", ""], ["chat", "code"]),
        (["status", "-n", "other", ""], []),
        (["--namespace=other", "status", ""], []),
        (["pause", "co"], ["code"]),
        (["abort", "chat", ""], ["4", "5"]),
        (["abort", "chat", "5", ""], []),
        (["abort", "--dry-run", "chat", "5"], ["5"]),
        (["status", "chat", "-o", "y"], ["yaml"]),
        (["status", "chat", "--output=js"], ["json"]),
        (["status", "chat", "--wa"], ["--watch"]),
        (["history", "nope", "chat", ""], []),
        (["promote", "nope", ""], []),
    ],
)
def test_candidates(words: list[str], candidates: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert completed(words, capsys) == [*candidates, NO_FILES]


def test_all_commands_are_candidates_and_a_kubeconfig_is_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"status", "doctor", "promote", "completion"} <= set(completed([], capsys))
    assert completed(["--kubeconfig", ""], capsys) == [":0"]
    assert completed(["report", "chat", "-o", ""], capsys) == [":0"]


def test_without_a_cluster_commands_are_completed_and_nothing_fails(capsys: pytest.CaptureFixture[str]) -> None:
    away = FakeApiServer(error=ClusterError("away"))
    assert completed(["status", ""], capsys, away) == [NO_FILES]
    assert completed(["stat"], capsys, away) == ["status", NO_FILES]


@given(st.lists(st.sampled_from(["-n", "--output", "-", "--", "=", "status", "chat", "5", "-o=json", "store"])))
def test_any_words_end_with_a_directive(words: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("typer.echo", lambda text, **_: printed.append(text))
        complete(app, words, Session(connect=lambda access: Connection(SERVER, "team")))
    assert printed[-1] in (":0", NO_FILES)


def test_the_printed_program_asks_the_same_program() -> None:
    script = SERVER.run("completion").stdout
    assert script.startswith("#!/bin/sh\n")
    assert 'exec kubectl-aurora __complete "$@"' in script
