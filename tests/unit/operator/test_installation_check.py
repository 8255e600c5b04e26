"""The check of an installation passes only with the CRD and a leader, and says what is missing."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from aurora_operator import installation_check
from aurora_operator.installation_check import main


class Cluster:
    """An API server and the operator's Service on one port."""

    def __init__(self) -> None:
        self.resources: list[str] | None = ["auroraspeculators", "auroraspeculators/status"]
        """None: the API server does not know the group."""
        self.leading: Iterator[str] = itertools.cycle(["1.0"])
        """What the pods of the operator answer, one request after the other."""
        self.tokens: list[str | None] = []
        self.url = ""

    def answer(self, path: str, token: str | None) -> tuple[int, str]:
        if path == "/metrics":
            return 200, f"# TYPE aurora_operator_leading gauge\naurora_operator_leading {next(self.leading)}\n"
        self.tokens.append(token)
        if self.resources is None or path != "/apis/aurora.dev/v1alpha1":
            return 404, "404 page not found"
        return 200, json.dumps({"resources": [{"name": name} for name in self.resources]})


@pytest.fixture(name="cluster")
def _cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    cluster = Cluster()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = cluster.answer(self.path, self.headers.get("Authorization"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(installation_check, "POLL_SECONDS", 0.01)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        cluster.url = f"http://127.0.0.1:{server.server_port}"
        yield cluster
        server.shutdown()
        thread.join()


def check(cluster: Cluster, folder: Path, seconds: float = 0.0) -> int:
    (folder / "token").write_text("secret\n")
    metrics = f"{cluster.url}/metrics"
    arguments = ["--api", cluster.url, "--metrics", metrics, "--credentials", str(folder)]
    return main([*arguments, "--timeout-seconds", str(seconds)])


def test_a_sound_installation_passes(cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(cluster, tmp_path) == 0
    assert capsys.readouterr().out.count("ok: ") == 2
    assert cluster.tokens == ["Bearer secret"], "the API server refuses a request without a token"


@pytest.mark.parametrize("resources", [None, [], ["otherthings"]])
def test_without_the_crd_the_check_says_so(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], resources: list[str] | None
) -> None:
    cluster.resources = resources
    assert check(cluster, tmp_path) == 1
    assert "does not serve auroraspeculators of aurora.dev/v1alpha1: install the CRD" in capsys.readouterr().err


def test_a_standby_that_answers_first_is_no_failure(cluster: Cluster, tmp_path: Path) -> None:
    cluster.leading = itertools.chain(["0.0", "0.0"], itertools.repeat("1.0"))
    assert check(cluster, tmp_path, seconds=30) == 0


def test_nobody_who_leads_is_a_failure(cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.leading = itertools.repeat("0.0")
    assert check(cluster, tmp_path, seconds=0.1) == 1
    assert "does not lead" in capsys.readouterr().err


def test_an_api_server_that_does_not_answer_is_a_failure(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.url = "http://127.0.0.1:1"
    assert check(cluster, tmp_path) == 1
    assert "refused" in capsys.readouterr().err
