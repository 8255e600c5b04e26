"""Requests that would make an engine forget who refused traces, closed routes, and the status of each answer."""

from __future__ import annotations

from typing import Any

_MESSAGES = [{"role": "user", "content": "hello"}]
_CLOSED: dict[str, dict[str, Any]] = {
    "/open_session": {"capacity_of_str_len": 10},
    "/close_session": {"session_id": "a"},
    "/vertex_generate": {
        "instances": [{"text": "hello"}],
        "parameters": {"sampling_params": {"json_schema": {"a": 1}}},
    },
    "/api/chat": {"model": "default", "messages": _MESSAGES, "options": {"stop": [["a", "b"]]}},
    "/api/generate": {"model": "default", "prompt": "hello", "options": {"stop": [["a", "b"]]}},
}

REFUSED: dict[str, tuple[str, dict[str, Any], int]] = {
    "session": ("/generate", {"text": "hello", "session_params": {"id": []}}, 400),
    **{route: (route, body, 404) for route, body in _CLOSED.items()},
}
"""For each name the route, the body and the status."""
