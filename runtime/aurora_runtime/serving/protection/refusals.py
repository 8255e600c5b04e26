"""Refuses what would harm a speculator: some of SGLang's routes, and requests with an unclear wish.

SGLang 0.5.23 keeps sessions (``/open_session``) until they are closed, and puts their earlier turns before later ones,
also turns that refused traces. Its routes for Vertex AI and Ollama give a client's parameters to the scheduler without
the checks of ``/generate``. A parameter of a wrong type ends the scheduler, and with it every request of the pod. These
routes answer 404.

A request that asks not to be traced in a form that nobody understands must not be traced by mistake. The hook before
the scheduler raises ValueError, which SGLang answers with status 400. Invariant: any other request passes unchanged.
All other limits of a request are up to SGLang, and to a gateway in front of it.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Final

from aurora_runtime.request_wish import request_wish

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]


async def send_text(send: Send, status: int, text: bytes, headers: Iterable[Header] = ()) -> None:
    """Answer with ``text`` and no more. ``headers`` are further headers."""
    own = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": text})


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


VALIDATE_FUNCTION: Final = "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request"
"""Called once for each prompt, with its token ids, before it is sent to the scheduler."""


def before_validation(_manager: Any, obj: Any, input_ids: Any) -> None:
    """Runs before ``_validate_one_request``. Raises ValueError for a session, and for an unclear wish about traces."""
    if getattr(obj, "session_params", None):
        raise ValueError("session_params: sessions are not served; send the whole conversation with each request")
    if isinstance(sampling_params := obj.sampling_params, dict):
        request_wish(sampling_params.get("custom_params"))
