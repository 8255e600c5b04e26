"""The routes that would harm the engine are closed, and all others pass."""

from __future__ import annotations

import importlib.util
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from aurora_runtime.serving.pod_files import PodFolder
from aurora_runtime.serving.protection import Guard, closed_routes


async def ask(path: str, *, root_path: str = "", kind: str = "http", **environment: str) -> tuple[int, bytes]:
    """The status and the text of the answer to a request. The application answers 200."""
    messages: list[MutableMapping[str, Any]] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})

    async def send(message: MutableMapping[str, Any]) -> None:
        messages.append(message)

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError("the body is not read")

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        guard = Guard(app, folder=PodFolder(Path("/none")), boot="b", admin_key="key")
    await guard({"type": kind, "path": path, "root_path": root_path, "headers": []}, receive, send)
    return messages[0]["status"], messages[1]["body"]


@pytest.mark.parametrize("path", ["/open_session", "/close_session"])
async def test_sessions_are_closed_and_the_answer_says_what_to_do(path: str) -> None:
    status, text = await ask(path)
    assert status == 404
    assert b"send the whole conversation with each request" in text


@pytest.mark.parametrize("path", ["/vertex_generate", "/api/chat", "/api/generate"])
async def test_routes_that_check_no_parameters_are_closed(path: str) -> None:
    status, text = await ask(path)
    assert status == 404
    assert b"send requests to /v1 or to /generate" in text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate", "/health", "/invocations", "/", "/api/tags"])
async def test_other_routes_pass(path: str) -> None:
    assert await ask(path) == (200, b"answer")
    assert await ask(f"/engine{path}", root_path="/engine") == (200, b"answer")


async def test_a_closed_route_is_closed_under_a_prefix_and_under_another_name() -> None:
    for path in ("/open_session", "/engine/open_session"):
        assert (await ask(path, root_path="/engine"))[0] == 404
    for variable in ("AIP_PREDICT_ROUTE", "SGLANG_OLLAMA_CHAT_ROUTE", "SGLANG_OLLAMA_GENERATE_ROUTE"):
        assert (await ask("/renamed", **{variable: "/renamed"}))[0] == 404


def test_the_closed_paths_are_those_of_sglang() -> None:
    package = importlib.util.find_spec("sglang")
    assert package is not None
    assert package.submodule_search_locations is not None
    source = Path(package.submodule_search_locations[0], "srt/entrypoints/http_server.py").read_text()
    assert [path for path in closed_routes({}) if f'"{path}"' not in source] == []
