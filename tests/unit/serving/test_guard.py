"""The guard before SGLang's routes closes those that would harm the engine, and refuses clients of a lent pod."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from aurora_protocol.agent_api import MEASUREMENT_HEADER, PASS_HEADER, PROBE_HEADER, measurement_pass
from aurora_runtime.serving.pod_files import EngineState, PodFolder, Withdrawal, write_atomically
from aurora_runtime.serving.protection import Guard, closed_routes

KEY = "the-admin-key"
PASS = measurement_pass("the-agent-token", "job-1")


class Scene:
    def __init__(self, path: Path) -> None:
        self.folder = PodFolder(path)
        self.reached = 0
        self.seen: list[tuple[bytes, bytes]] = []
        self.guard = Guard(self._app, folder=self.folder, boot="b1", admin_key=KEY)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached += 1
        self.seen += scope["headers"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
        await send({"type": "http.response.body", "body": b"answer"})

    def launcher_says(self, *, ready: bool, boot: str = "b1") -> None:
        state = EngineState(boot=boot, ready=ready, started_at=datetime.now(UTC))
        write_atomically(self.folder.engine, state.to_json())

    async def probe(self) -> int:
        """The status that the kubelet gets."""
        return (await self.ask("GET", **{PROBE_HEADER: "readiness"}))[0]

    def withdraw(self, *, closed: bool = False, boot: str = "b1") -> None:
        withdrawal = Withdrawal(
            measurement="job-1",
            boot=boot,
            current_digest="0" * 64,
            current_checksum="sum",
            closed=closed,
            pass_sha256=hashlib.sha256(PASS.encode()).hexdigest(),
        )
        write_atomically(self.folder.withdrawal, withdrawal.to_json())

    async def ask(self, method: str = "POST", **headers: str) -> tuple[int, dict[bytes, bytes]]:
        """The status and the headers of the answer to a request."""
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        start, _ = await self.answer({"path": "/generate", "method": method, "headers": raw})
        return start["status"], dict(start["headers"])

    async def ask_route(self, path: str, root_path: str = "") -> tuple[int, bytes]:
        """The status and the text of the answer. The application answers 200."""
        start, body = await self.answer({"path": path, "root_path": root_path, "method": "POST"})
        return start["status"], body["body"]

    async def answer(self, scope: dict[str, Any]) -> list[MutableMapping[str, Any]]:
        messages: list[MutableMapping[str, Any]] = []

        async def send(message: MutableMapping[str, Any]) -> None:
            messages.append(message)

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.disconnect"}

        await self.guard({"type": "http", "headers": []} | scope, receive, send)
        return messages


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


async def test_requests_of_a_serving_pod_pass_unchanged(scene: Scene) -> None:
    assert await scene.ask() == (200, {b"x": b"y"})


async def test_the_probe_passes_only_after_the_checks_of_this_start(scene: Scene) -> None:
    assert await scene.probe() == 503
    scene.launcher_says(ready=True, boot="b0")  # of the start before, which was killed
    assert await scene.probe() == 503
    scene.launcher_says(ready=False)
    assert await scene.probe() == 503
    assert (await scene.ask("GET"))[0] == 200, "the launcher asks without the header"
    scene.launcher_says(ready=True)
    assert await scene.probe() == 200
    scene.folder.engine.write_bytes(b"damaged")
    assert await scene.probe() == 200, "the engine takes requests all the same"


async def test_the_probe_of_a_withdrawn_pod_fails_until_the_pod_returns(scene: Scene) -> None:
    scene.launcher_says(ready=True)
    assert await scene.probe() == 200
    scene.withdraw()
    assert await scene.probe() == 503
    scene.folder.withdrawal.unlink()
    assert await scene.probe() == 200


async def test_a_withdrawn_pod_answers_with_its_current_draft_and_closes_the_connection(scene: Scene) -> None:
    scene.withdraw()
    status, headers = await scene.ask()
    assert status == 200
    assert headers[b"connection"] == b"close"
    assert headers[MEASUREMENT_HEADER.encode()] == b"job-1"


async def test_once_closed_only_the_measurement_is_answered(scene: Scene) -> None:
    scene.withdraw(closed=True)
    for headers in (
        {},
        {"x_aurora_measurement": "job-1"},
        {"x_aurora_pass": "job-1"},
        {"x_aurora_pass": ""},
        {"x_aurora_pass": measurement_pass("the-agent-token", "job-2")},
        {"x_aurora_pass": measurement_pass("another token", "job-1")},
        {"x_aurora_pass": hashlib.sha256(PASS.encode()).hexdigest()},
        {"authorization": "Bearer user"},
    ):
        assert (await scene.ask(**headers))[0] == 503
    assert scene.reached == 0
    _, refusal = await scene.ask()
    assert refusal[b"connection"] == b"close"
    assert (await scene.ask(x_aurora_pass=PASS, x_other="1"))[0] == 200
    assert scene.seen == [(b"x-other", b"1")], f"{PASS_HEADER} may be logged behind the guard"
    assert (await scene.ask(authorization=f"Bearer {KEY}"))[0] == 200
    assert (await scene.ask("GET"))[0] == 200, "health and metrics"


async def test_where_the_disk_damaged_the_withdrawal_no_client_is_answered(scene: Scene) -> None:
    scene.launcher_says(ready=True)
    scene.folder.withdrawal.write_bytes(b"{")
    assert (await scene.ask())[0] == 503
    assert await scene.probe() == 503


async def test_an_engine_started_after_the_measurement_answers_clients(scene: Scene) -> None:
    """SGLang warms itself up through its own port."""
    scene.withdraw(closed=True, boot="b0")
    assert (await scene.ask())[0] == 200


# closed routes -------------------------------------------------------------------------------------------------------

SESSION, UNCHECKED = b"send the whole conversation with each request", b"send requests to /v1 or to /generate"


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("/open_session", SESSION),
        ("/close_session", SESSION),
        ("/vertex_generate", UNCHECKED),
        ("/api/chat", UNCHECKED),
        ("/api/generate", UNCHECKED),
    ],
)
async def test_sessions_and_routes_that_check_no_parameters_are_closed(scene: Scene, path: str, advice: bytes) -> None:
    for prefix in ("", "/engine"):
        status, text = await scene.ask_route(f"{prefix}{path}", prefix)
        assert status == 404
        assert advice in text
    assert (await scene.ask_route("/open_session", "/engine"))[0] == 404
    assert scene.reached == 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate", "/health", "/invocations", "/", "/api/tags"])
async def test_other_routes_pass(scene: Scene, path: str) -> None:
    assert await scene.ask_route(path) == (200, b"answer")
    assert await scene.ask_route(f"/engine{path}", "/engine") == (200, b"answer")


async def test_what_is_not_http_passes(scene: Scene) -> None:
    assert (await scene.answer({"type": "websocket", "path": "/open_session"}))[0]["status"] == 200


@pytest.mark.parametrize("variable", ["AIP_PREDICT_ROUTE", "SGLANG_OLLAMA_CHAT_ROUTE", "SGLANG_OLLAMA_GENERATE_ROUTE"])
async def test_a_closed_route_is_closed_under_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "/renamed")
    assert (await Scene(tmp_path).ask_route("/renamed"))[0] == 404


def test_the_closed_paths_are_those_of_sglang() -> None:
    package = importlib.util.find_spec("sglang")
    assert package is not None
    assert package.submodule_search_locations is not None
    source = Path(package.submodule_search_locations[0], "srt/entrypoints/http_server.py").read_text()
    assert [path for path in closed_routes({}) if f'"{path}"' not in source] == []
