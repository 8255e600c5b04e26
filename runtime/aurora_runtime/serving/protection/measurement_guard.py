"""Keeps clients away from an engine that may hold a trial draft (promise 1), inside SGLang's own HTTP server.

The guard answers the pod's readiness probe: not ready (503) before the launcher's checks have passed, and while the pod
is withdrawn. So no other container decides whether a healthy engine gets requests.

A pod that is not ready gets no new connections, but a client's open connection lives on for as long as it is busy. So
every answer of a withdrawn pod closes its connection. Once a trial draft was loaded, the guard refuses requests that do
not belong to the measurement (503), so that the client asks another pod. A request of the measurement carries a pass,
which the validator and the agent derive from the agents' token. The guard knows only the digest of the pass. The agent
loads no trial draft unless this guard has answered with the measurement's name.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from aurora_protocol.agent_api import MEASUREMENT_HEADER, PASS_HEADER, PROBE_HEADER
from aurora_runtime.serving.capture.settings import CaptureSettings
from aurora_runtime.serving.pod_files import PodFolder
from aurora_runtime.serving.pod_records import Withdrawal
from aurora_runtime.serving.protection.refusals import Application, Message, Receive, Scope, Send, send_text

AUTHENTICATION_FUNCTION: Final = "sglang.srt.utils.auth.add_api_key_middleware"
"""The function whose hook installs the guard. SGLang calls the function once, with the application, before the server
starts, because an admin key is set (sglang/srt/utils/auth.py:154)."""
_HEADER: Final = MEASUREMENT_HEADER.encode()
_PASS: Final = PASS_HEADER.encode()
_PROBE: Final = PROBE_HEADER.encode()
_NOT_READY: Final = b"the engine's checks have not passed yet, or this replica is withdrawn for a measurement\n"
_REFUSAL: Final = b"this replica is withdrawn for a measurement: ask another replica\n"


class Guard:
    """ASGI middleware. While the pod serves, a request costs a look at its headers and at whether a file exists."""

    def __init__(self, app: Application, *, folder: PodFolder, boot: str, admin_key: str) -> None:
        self._app, self._folder, self._boot = app, folder, boot
        self._admin = f"Bearer {admin_key}".encode()
        self._checked = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _PROBE in dict(scope["headers"]) and not self._may_serve():
            await send_text(send, 503, _NOT_READY)
            return
        if scope["type"] != "http" or not os.path.exists(self._folder.withdrawal):  # noqa: ASYNC240 - a stat, not a read
            await self._app(scope, receive, send)
            return
        withdrawal = self._folder.read_withdrawal()
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
        if withdrawal.trial_boot == self._boot and not admitted:
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
