"""Engine processes on this machine, and the connections to them.

Invariant: whatever was started is stopped by :meth:`EngineSet.close`. Who measures calls :meth:`EngineSet.check` after
a batch, so that a dead server does not pass for a slow one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from aurora_runtime.engine.server_process import EngineProcess, EngineSpec
from aurora_runtime.engine.sglang_client import SGLangClient, open_session
from aurora_runtime.engine.speculation_flags import Eagle3, Ngram
from aurora_runtime.errors import MeasurementError
from aurora_runtime.validation.load_client import Client


@dataclass
class EngineSet:
    """Servers by name, each with its log in ``folder``."""

    spec: EngineSpec
    folder: Path
    request_timeout: float = 300.0
    _processes: dict[str, EngineProcess] = field(default_factory=dict)
    _session: aiohttp.ClientSession | None = None

    def start(self, name: str, speculation: Eagle3 | Ngram | None, *, memory_share: float = 0.85) -> None:
        """Start a server; does not wait. ``memory_share`` is of what is free on a GPU."""
        process = self._processes[name] = EngineProcess(name, self.folder / f"{name}.log")
        process.start(self.spec, speculation, memory_share=memory_share)

    async def wait_ready(self, name: str, deadline: float) -> None:
        """Until ``deadline`` (monotonic). Raises :class:`EngineFault` when it does not come up."""
        await asyncio.to_thread(self._processes[name].wait_ready, deadline)

    async def close(self) -> None:
        """Stop every server; safe to call twice."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        for process in self._processes.values():
            process.ask_to_stop()
        for process in self._processes.values():
            process.stop()
        self._processes.clear()

    def url(self, name: str) -> str:
        """Where the server listens; raises as :meth:`check` does."""
        self.check(name)
        return self._processes[name].url

    def check(self, name: str) -> None:
        """Raises :class:`MeasurementError` when the server died or was never started."""
        process = self._processes.get(name)
        if process is None:
            raise MeasurementError(f"server {name} is not running")
        if not process.alive():
            raise MeasurementError(f"server {name} died; the end of its log:\n{process.tail()}")

    def admin(self, name: str) -> SGLangClient:
        """To swap drafts, ask for checksums and empty caches."""
        url = self.url(name)
        return SGLangClient(self._http(), url)

    def client(self, name: str) -> Client:
        """To ask for answers."""
        url = self.url(name)
        return Client(self._http(), url, self.request_timeout)

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = open_session()
        return self._session
