"""Closes routes of SGLang's HTTP server that a speculator does not serve, because they would harm it.

SGLang 0.5.23 keeps sessions (``/open_session``) until they are closed, and puts their earlier turns before later ones,
also turns that refused traces. Its routes for Vertex AI and Ollama give a client's parameters to the scheduler without
the checks of ``/generate``. A parameter of a wrong type ends the scheduler, and with it every request of the pod.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from aurora_runtime.serving.protection.asgi import Application, Receive, Scope, Send, send_text

_SESSIONS: Final = b"sessions are not served: send the whole conversation with each request\n"
_UNCHECKED: Final = b"this route is not served: send requests to /v1 or to /generate\n"


def closed_routes(environment: Mapping[str, str]) -> dict[str, bytes]:
    """The closed paths, each with the text of its answer. SGLang reads some of the paths from its environment."""
    return {
        "/open_session": _SESSIONS,
        "/close_session": _SESSIONS,
        environment.get("AIP_PREDICT_ROUTE", "/vertex_generate"): _UNCHECKED,
        environment.get("SGLANG_OLLAMA_CHAT_ROUTE", "/api/chat"): _UNCHECKED,
        environment.get("SGLANG_OLLAMA_GENERATE_ROUTE", "/api/generate"): _UNCHECKED,
    }


class ClosedRoutes:
    """ASGI middleware. Answers 404 with a reason on a closed path."""

    def __init__(self, app: Application, routes: Mapping[str, bytes]) -> None:
        self._app, self._routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            # SGLang's router takes a path with and without the prefix of --fastapi-root-path.
            for name in (path, path.removeprefix(scope.get("root_path", ""))):
                if reason := self._routes.get(name):
                    await send_text(send, 404, reason)
                    return
        await self._app(scope, receive, send)


def after_authentication(result: Any, app: Any, *_: Any, **__: Any) -> Any:
    """The hook after SGLang's authentication that closes the routes."""
    app.add_middleware(ClosedRoutes, routes=closed_routes(os.environ))
    return result
