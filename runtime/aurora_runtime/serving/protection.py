"""Hooks in SGLang's HTTP process that protect the engine, its keys and its measurements from clients.

**Redaction.** SGLang 0.5.23 logs its resolved arguments, and shows them on the open route ``/server_info``, admin key
included (sglang/srt/entrypoints/engine.py:1185, http_server.py:863). Anybody who reaches the serving port could then
call the admin API. Both texts pass through SGLang's own redaction of watermark secrets, so our hooks run after that
redaction. The launcher checks ``/server_info`` before the pod is ready, and ends an engine that shows its key.

SGLang also logs a client's schema, grammar or regular expression with the whole text: when the text cannot be
compiled, and when an answer does not fit it. A client's text may be private, so it is cut off in every message of
SGLang. The client still gets the full message.

**Refusals.** SGLang keeps sessions (``/open_session``) until they are closed, and puts their earlier turns before later
ones, also turns that refused traces. Its routes for Vertex AI and Ollama give a client's parameters to the scheduler
without the checks of ``/generate``. A parameter of a wrong type ends the scheduler, and with it every request of the
pod. These routes answer 404. A request that asks not to be traced in a form that nobody understands must not be traced
by mistake. The hook before the scheduler raises ValueError, which SGLang answers with status 400. All other limits of a
request are up to SGLang, and to a gateway in front of it.

**The guard** keeps clients away from an engine that may hold a trial draft (promise 1). It answers the pod's readiness
probe: not ready (503) before the launcher's checks have passed, and while the pod is withdrawn. So no other container
decides whether a healthy engine gets requests. A pod that is not ready gets no new connections, but a client's open
connection lives on for as long as it is busy. So every answer of a withdrawn pod closes its connection. Once a trial
draft was loaded, the guard refuses requests that do not belong to the measurement (503), so that the client asks
another pod. A request of the measurement carries a pass, which the validator and the agent derive from the agents'
token. The guard knows only the digest of the pass. The agent loads no trial draft unless this guard has answered with
the measurement's name.

Invariant: any other request passes unchanged.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final

from aurora_protocol.agent_api import MEASUREMENT_HEADER, PASS_HEADER, PROBE_HEADER
from aurora_runtime.request_wish import request_wish
from aurora_runtime.serving.capture.settings import CaptureSettings
from aurora_runtime.serving.pod_files import PodFolder, Withdrawal

# keys and clients' texts in logs -------------------------------------------------------------------------------------

SECRETS_FUNCTION: Final = "sglang.srt.sampling.watermarking.core.redact_watermark_secrets"
COMMAND_LINE_FUNCTION: Final = "sglang.srt.sampling.watermarking.core.redact_watermark_command_line"
REPLACEMENT: Final = "<redacted>"
SECRET_FIELDS: Final = frozenset({"admin_api_key", "api_key", "ssl_keyfile_password"})
_SECRET_FLAG: Final = re.compile(rf"(--(?:{'|'.join(sorted(SECRET_FIELDS)).replace('_', '-')})[ =])\S+")
_CLIENT_TEXT: Final = re.compile(
    r"((?:key_string|serialized_grammar|grammar_key|regex)=|skip invalid regex: |invalid stop_regex |"
    r"Grammar compilation (?:raised an exception|failed): |Failed to compile \w+ grammar: |"
    r"Grammar accept_token failed|Tokens? not accepted|Invalid key_type: ).*",
    re.DOTALL,
)
"""The beginning of a client's text in a message, and all that follows."""
_FORMATTER: Final = logging.Formatter()


def redact(value: Any) -> Any:
    """A copy of nested dicts with secret fields and the values of secret command-line flags replaced."""
    if isinstance(value, dict):
        return {key: REPLACEMENT if key in SECRET_FIELDS and item else redact(item) for key, item in value.items()}
    return _SECRET_FLAG.sub(rf"\1{REPLACEMENT}", value) if isinstance(value, str) else value


class _CuttingFactory:
    """Makes log records as ``former`` does, without clients' texts in those of SGLang."""

    def __init__(self, former: Callable[..., logging.LogRecord]) -> None:
        self._former = former

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._former(*args, **kwargs)
        if record.name.startswith("sglang"):
            if record.exc_info:
                record.exc_text = _without_client_text(_FORMATTER.formatException(record.exc_info))
            try:
                text = record.getMessage()
            except (TypeError, ValueError, KeyError):  # the arguments do not fit, and a handler would show them
                text, record.args = str(record.msg), ()
            if (cut := _without_client_text(text)) != text:
                record.msg, record.args = cut, ()
        return record


def hide_client_texts() -> None:
    """Cut clients' texts out of the messages of SGLang in this process. A second call changes nothing."""
    if not isinstance(former := logging.getLogRecordFactory(), _CuttingFactory):
        logging.setLogRecordFactory(_CuttingFactory(former))


def _without_client_text(text: str) -> str:
    return _CLIENT_TEXT.sub(rf"\1{REPLACEMENT}", text)


def after_redaction(result: Any, *_: Any, **__: Any) -> Any:
    """The hook after both functions of SGLang's own redaction."""
    return redact(result)


# refused routes and requests ------------------------------------------------------------------------------------------

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


async def send_text(send: Send, status: int, text: bytes) -> None:
    """Answer with ``text`` and no more."""
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
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


VALIDATE_FUNCTION: Final = "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request"
"""Called once for each prompt, with its token ids, before it is sent to the scheduler."""


def before_validation(_manager: Any, obj: Any, input_ids: Any) -> None:
    """Runs before ``_validate_one_request``. Raises ValueError for a session, and for an unclear wish about traces."""
    if getattr(obj, "session_params", None):
        raise ValueError("session_params: sessions are not served; send the whole conversation with each request")
    if isinstance(sampling_params := obj.sampling_params, dict):
        request_wish(sampling_params.get("custom_params"))


# the guard -----------------------------------------------------------------------------------------------------------

AUTHENTICATION_FUNCTION: Final = "sglang.srt.utils.auth.add_api_key_middleware"
"""The function whose hook installs the guard. SGLang calls the function once, with the application, before the server
starts, because an admin key is set (sglang/srt/utils/auth.py:154)."""
_HEADER: Final = MEASUREMENT_HEADER.encode()
_PASS: Final = PASS_HEADER.encode()
_PROBE: Final = PROBE_HEADER.encode()
_NOT_READY: Final = b"the engine's checks have not passed yet, or this replica is withdrawn for a measurement\n"
_REFUSAL: Final = b"this replica is withdrawn for a measurement: ask another replica\n"


class Guard:
    """ASGI middleware. While the pod serves, a request costs a look at its headers and at whether a file exists.

    A closed path is answered with 404 and a reason.
    """

    def __init__(self, app: Application, *, folder: PodFolder, boot: str, admin_key: str) -> None:
        self._app, self._folder, self._boot = app, folder, boot
        self._closed = closed_routes(os.environ)
        self._admin = f"Bearer {admin_key}".encode()
        self._checked = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        # SGLang's router takes a path with and without the prefix of --fastapi-root-path.
        for name in (path, path.removeprefix(scope.get("root_path", ""))):
            if reason := self._closed.get(name):
                await send_text(send, 404, reason)
                return
        if _PROBE in dict(scope["headers"]) and not self._may_serve():
            await send_text(send, 503, _NOT_READY)
            return
        # The file is read only where there is one.
        withdrawal = self._folder.read_withdrawal() if os.path.exists(self._folder.withdrawal) else None  # noqa: ASYNC240
        if withdrawal is None:
            await self._app(scope, receive, send)
            return
        guard_headers = [(b"connection", b"close"), (_HEADER, withdrawal.measurement.encode())]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *guard_headers]
            await send(message)

        admitted = self._admits(scope, withdrawal)
        # SGLang behind this guard may log the headers of a request.
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != _PASS]
        if withdrawal.closed and withdrawal.boot in ("", self._boot) and not admitted:
            await send_text(send_with_headers, 503, _REFUSAL)
            return
        await self._app(scope, receive, send_with_headers)

    def _may_serve(self) -> bool:
        """Whether the launcher has checked this start of the engine, and the pod is not withdrawn."""
        self._checked = self._checked or self._folder.ready_boot() == self._boot
        return self._checked and not self._folder.withdrawal.exists()

    def _admits(self, scope: Scope, withdrawal: Withdrawal) -> bool:
        """Whether a request comes from the measurement or from the agent, or needs no draft (GET and HEAD)."""
        headers = dict(scope["headers"])
        return (
            scope["method"] in ("GET", "HEAD")
            or hmac.compare_digest(hashlib.sha256(headers.get(_PASS, b"")).hexdigest(), withdrawal.pass_sha256)
            or hmac.compare_digest(headers.get(b"authorization", b""), self._admin)
        )


def guard_hook(settings: CaptureSettings) -> Callable[..., Any]:
    """The hook that puts the guard before SGLang's routes."""
    folder = PodFolder(Path(settings.state_folder))

    def after(result: Any, app: Any, *_: Any, admin_api_key: str | None = None, **__: Any) -> Any:
        app.add_middleware(Guard, folder=folder, boot=settings.boot, admin_key=admin_api_key or "")
        return result

    return after
