"""The kubeconfig is that of kubectl, and every failure of a call is one printable line."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_cli import cluster
from aurora_cli.cluster import connect, refusal
from aurora_cli.errors import ClusterError, Forbidden, NotFound
from tests.unit.cli.fake_cluster import kubeconfig

URL = "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (404, '{"message": "\\"chat\\" not found"}', NotFound, '"chat" not found'),
        (404, "404 page not found\n", ClusterError, "install the Aurora chart"),
        (403, '{"message": "jane cannot patch"}', Forbidden, "jane cannot patch"),
        (401, '{"message": "Unauthorized"}', ClusterError, "log in again"),
        (422, '{"message": "spec.rollout.pin: Invalid value"}', ClusterError, "Invalid value"),
        (503, "<html>", ClusterError, "HTTP 503"),
    ],
)
def test_a_refusal_has_its_kind(status: int, body: str, kind: type[ClusterError], message: str) -> None:
    error = refusal(status, body)
    assert type(error) is kind
    assert message in str(error)


@given(st.integers(300, 599), st.binary(max_size=40) | st.just(b'{"message": "\\n\\u001b[2J"}') | st.just(b"[]"))
def test_any_refusal_is_one_printable_line(status: int, body: bytes) -> None:
    assert str(refusal(status, body)).isprintable()


def test_namespace_and_flags_are_those_of_the_chosen_context(tmp_path: Path) -> None:
    file = kubeconfig(tmp_path, URL, namespace="team", current="")
    found = connect(context="there", kubeconfig=file)
    assert (found.namespace, found.kubectl_flags) == ("elsewhere", ("--context=there", f"--kubeconfig={file}"))
    assert connect(namespace="own", context="there", kubeconfig=file).namespace == "own"
    with pytest.raises(ClusterError, match="choose one with --context"):
        connect(kubeconfig=file)


def test_of_several_kubeconfigs_the_first_current_context_wins_as_for_kubectl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client alone would take the last one, which is another cluster than kubectl's."""
    names = {"first": "", "second": "here", "third": "there"}
    files = [kubeconfig(tmp_path, URL, namespace="team", current=current, name=n) for n, current in names.items()]
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join(files))
    assert connect().kubectl_flags == ("--context=here",)
    assert connect().namespace == "team"


@pytest.mark.parametrize("text", ["", "{", "[]", "a: b", "clusters: 3\ncurrent-context: x"])
def test_a_kubeconfig_that_is_none_is_a_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ClusterError, match=r"cannot be used: .* name another with --kubeconfig") as error:
        connect(kubeconfig=str(path))
    assert str(error.value).isprintable()


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=f"the API server {URL} does not answer"):
        connect(kubeconfig=kubeconfig(tmp_path, URL)).speculators()


def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "TIMEOUT_SECONDS", (1.0, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ClusterError, match="does not answer"):
            connect(kubeconfig=kubeconfig(tmp_path, url)).speculators()
