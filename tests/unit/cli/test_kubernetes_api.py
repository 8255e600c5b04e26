"""What the API server answers, or that it does not, becomes one line that says what to do."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from aurora_cli.cluster import kubernetes_api
from aurora_cli.cluster.kubeconfig import Access, connect
from aurora_cli.cluster.kubernetes_api import refusal, speculators_path
from aurora_cli.errors import ClusterError, Conflict, Forbidden, NotFound, NotInstalled

CHAT = speculators_path("team", "chat")
MISSING = {"message": 'auroraspeculators.aurora.dev "chat" not found', "details": {"name": "chat"}}


@pytest.mark.parametrize(
    ("path", "status", "body", "kind", "message"),
    [
        (CHAT, 404, json.dumps(MISSING), NotFound, '"chat" not found'),
        (CHAT, 404, "404 page not found\n", NotInstalled, "install the Aurora chart"),
        ("/api/v1/namespaces/team/secrets/s3", 404, "404 page not found\n", NotFound, "HTTP 404"),
        (CHAT, 403, '{"message": "User \\"jane\\" cannot patch"}', Forbidden, 'User "jane" cannot patch'),
        (CHAT, 401, '{"message": "Unauthorized"}', ClusterError, "log in again"),
        (CHAT, 409, '{"message": "modified"}', Conflict, "modified"),
        (CHAT, 422, '{"message": "spec.rollout.pin: Invalid value"}', ClusterError, "Invalid value"),
        (CHAT, 503, "<html>", ClusterError, "HTTP 503"),
    ],
)
def test_a_refusal_has_its_kind(path: str, status: int, body: str, kind: type[ClusterError], message: str) -> None:
    error = refusal(path, status, body.encode())
    assert type(error) is kind
    assert message in str(error)


@given(st.integers(300, 599), st.binary(max_size=40) | st.just(b'{"message": "\\n\\u001b[2J"}') | st.just(b"[]"))
def test_any_refusal_is_one_printable_line(status: int, body: bytes) -> None:
    assert str(refusal(CHAT, status, body)).isprintable()


class Handler(BaseHTTPRequestHandler):
    """Answers as a small API server, and remembers what it was asked."""

    asked: list[tuple[str, str, dict[str, str], Any]]

    def do_GET(self) -> None:
        self._answer()

    def do_PATCH(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.asked.append((self.command, self.path, headers, json.loads(body or "null")))
        data = b'{"kind": "AuroraSpeculator"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture(name="server")
def _server() -> Iterator[ThreadingHTTPServer]:
    Handler.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def kubeconfig(
    tmp_path: Path, url: str, *, namespace: str = "", current: str = "here", context: str = "here", name: str = "config"
) -> str:
    """A kubeconfig with two contexts. Cluster and user of the first are named after it."""
    own = {"cluster": context, "user": context} | ({"namespace": namespace} if namespace else {})
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": current,
        "clusters": [{"name": context, "cluster": {"server": url}}],
        "users": [{"name": context, "user": {"token": "secret-token"}}],
        "contexts": [
            {"name": context, "context": own},
            {"name": "there", "context": own | {"namespace": "elsewhere"}},
        ],
    }
    path = tmp_path / name
    path.write_text(yaml.safe_dump(config))
    return str(path)


def url_of(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_a_patch_is_a_merge_patch_with_the_users_token(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    api = connect(Access(kubeconfig=kubeconfig(tmp_path, url_of(server)))).api
    api.merge_patch(CHAT, {"spec": {"rollout": {"pin": None}}}, dry_run=True)
    ((method, path, headers, body),) = Handler.asked
    assert (method, path) == ("PATCH", f"{CHAT}?fieldManager=kubectl-aurora&dryRun=All")
    assert headers["content-type"] == "application/merge-patch+json"
    assert headers["authorization"] == "Bearer secret-token"
    assert headers["user-agent"] == "kubectl-aurora"
    assert body == {"spec": {"rollout": {"pin": None}}}


def test_the_namespace_is_that_of_the_flag_then_of_the_context_then_default(tmp_path: Path) -> None:
    named = kubeconfig(tmp_path, "http://127.0.0.1:1", namespace="team")
    assert connect(Access(kubeconfig=named)).namespace == "team"
    assert connect(Access("mine", kubeconfig=named)).namespace == "mine"
    assert connect(Access(context="there", kubeconfig=named)).namespace == "elsewhere"
    assert connect(Access(kubeconfig=kubeconfig(tmp_path, "http://127.0.0.1:1"))).namespace == "default"


def test_kubeconfig_of_the_environment_is_read_when_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path, "http://127.0.0.1:1", namespace="team"))
    assert connect(Access()).namespace == "team"


def test_of_several_kubeconfigs_the_first_current_context_wins_as_for_kubectl(
    server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [
        kubeconfig(tmp_path, "http://127.0.0.1:1", context="unused", current="", name="first"),
        kubeconfig(tmp_path, url_of(server), context="staging", current="staging", namespace="team", name="second"),
        kubeconfig(tmp_path, "http://127.0.0.1:1", context="prod", current="prod", name="third"),
    ]
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join(files))
    connection = connect(Access())
    connection.api.get(CHAT)
    assert len(Handler.asked) == 1
    assert connection.namespace == "team"
    assert connection.kubectl_flags == ("--context=staging",)


@pytest.mark.parametrize("current", ["", "gone"])
def test_a_named_context_needs_no_current_one(tmp_path: Path, current: str) -> None:
    file = kubeconfig(tmp_path, "http://127.0.0.1:1", current=current)
    connection = connect(Access(context="there", kubeconfig=file))
    assert connection.namespace == "elsewhere"
    assert connection.kubectl_flags == ("--context=there", f"--kubeconfig={file}")
    with pytest.raises(ClusterError, match=r"choose one with --context|gone"):
        connect(Access(kubeconfig=file))


@pytest.mark.parametrize("text", ["", "{", "[]", "a: b", "clusters: 3\ncurrent-context: x"])
def test_a_kubeconfig_that_is_none_is_a_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ClusterError, match=r"cannot be used: .* name another with --kubeconfig") as error:
        connect(Access(kubeconfig=str(path)))
    assert str(error.value).isprintable()


def test_an_unknown_context_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="nowhere"):
        connect(Access(context="nowhere", kubeconfig=kubeconfig(tmp_path, "http://127.0.0.1:1")))


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    api = connect(Access(kubeconfig=kubeconfig(tmp_path, url))).api
    with pytest.raises(ClusterError, match=f"{url} cannot be reached: the connection was refused"):
        api.get(CHAT)


def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_api, "READ_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        api = connect(Access(kubeconfig=kubeconfig(tmp_path, url))).api
        with pytest.raises(ClusterError, match=r"did not answer within 0\.2 s"):
            api.get(CHAT)
