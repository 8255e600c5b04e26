"""Decides whether an engine that was just started may take requests.

Invariant: a pod is not ready before SGLang is ready, hides its admin key, has captured one probe request, and lets the
speculation controller decide its rounds where the speculator wants that.
"""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import time
from dataclasses import dataclass
from typing import Final

from aurora_runtime.engine.sglang_client import SGLangClient, open_session
from aurora_runtime.errors import EngineFault
from aurora_runtime.serving.capture.settings import PROBE_PREFIX
from aurora_runtime.serving.engine_start import EngineStart

READY_POLL_SECONDS: Final = 0.5
PROBE_POLL_SECONDS: Final = 0.1
PROBE_TIMEOUT_SECONDS: Final = 120.0
PROBE_TOKENS: Final = 8
CONTROLLER_TIMEOUT_SECONDS: Final = 30.0
"""The controller reports once when SGLang has built its worker, which is before SGLang is ready."""


@dataclass(frozen=True)
class ReadinessCheck:
    """The checks of one engine start."""

    start: EngineStart
    process: subprocess.Popen[bytes]

    def run(self) -> None:
        """Return once the engine may take requests. Call this method from a thread without an event loop.

        Raises :class:`EngineFault` when a check fails. The message includes the reason that the capture plugin left.
        """
        try:
            asyncio.run(self._check())
        except EngineFault as error:
            capture = self.start.options.folder.read_capture_state()
            if capture is None or capture.ok:
                raise
            raise EngineFault(f"{error}; the capture plugin refused: {capture.error}") from error

    async def _check(self) -> None:
        async with open_session() as session:
            client = SGLangClient(session, f"http://127.0.0.1:{self.start.options.port}")
            await self._wait_ready(client)
            await self._check_redaction(client)
            await self._check_capture(client)
            await self._check_controller()

    async def _wait_ready(self, client: SGLangClient) -> None:
        """Wait without a time limit: the pod's startup probe limits how long a model may take to load."""
        while self.process.poll() is None:
            if await client.is_ready():
                return
            await asyncio.sleep(READY_POLL_SECONDS)
        raise EngineFault(f"SGLang ended with {self.process.returncode} before it was ready")

    async def _check_redaction(self, client: SGLangClient) -> None:
        """Raise :class:`EngineFault` when SGLang shows its admin key to everybody."""
        if self.start.files.admin_key in await client.server_info():
            raise EngineFault("SGLang shows the admin key in /server_info: the redaction hook is not in place")

    async def _check_capture(self, client: SGLangClient) -> None:
        """Send one request and wait until the plugin has captured its verify rounds. Raises :class:`EngineFault`."""
        body = {
            "rid": PROBE_PREFIX + secrets.token_hex(8),
            "input_ids": [1, 2, 3, 4],
            "sampling_params": {"temperature": 0, "max_new_tokens": PROBE_TOKENS, "ignore_eos": True},
        }
        deadline = time.monotonic() + PROBE_TIMEOUT_SECONDS
        await client.generate(body, timeout_seconds=PROBE_TIMEOUT_SECONDS)
        while time.monotonic() < deadline and self.process.poll() is None:
            capture = self.start.options.folder.read_capture_state()
            if capture is not None and capture.boot == self.start.state.boot:
                if capture.probe_records > 0:
                    return
                if not capture.ok:
                    break
            await asyncio.sleep(PROBE_POLL_SECONDS)
        raise EngineFault("no verify round of the probe request was captured: is the capture plugin loaded?")

    async def _check_controller(self) -> None:
        """Raise :class:`EngineFault` when the controller should decide the rounds and does not.

        SGLang would then choose the shapes by a rule of its own, which can be slower than no speculation.
        """
        if self.start.controller is None:
            return
        deadline = time.monotonic() + CONTROLLER_TIMEOUT_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            controller = self.start.options.folder.read_speculation_state()
            if controller is not None and controller.boot == self.start.state.boot:
                if controller.ok:
                    return
                raise EngineFault(
                    f"the speculation controller refused: {controller.error}. Remove what it names from"
                    " serving.extraArgs or serving.template, or set draft.shape to Fixed"
                )
            await asyncio.sleep(PROBE_POLL_SECONDS)
        raise EngineFault("the speculation controller has not reported: is the plugin aurora_speculation loaded?")
