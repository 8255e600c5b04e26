"""Engine processes on this machine, by name, and the connections to them.

Invariants: :meth:`EngineSet.close` stops every engine that was started. A caller that measures calls
:meth:`EngineSet.check` after each batch, so that a dead engine does not pass for a slow one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from aurora_runtime.engine.server_process import STOP_SECONDS, EngineProcess, EngineSpec
from aurora_runtime.engine.sglang_client import open_session
from aurora_runtime.engine.speculation_flags import Eagle3, Ngram
from aurora_runtime.errors import MeasurementError
from aurora_runtime.validation.load_client import REQUEST_SECONDS, LoadClient


@dataclass
class EngineSet:
    """Engine processes by name, and the connections to them. Each writes its log to ``folder``."""

    spec: EngineSpec
    folder: Path
    request_seconds: float = REQUEST_SECONDS
    """Time limit of one request for an answer."""
    _processes: dict[str, EngineProcess] = field(default_factory=dict, init=False)
    _session: aiohttp.ClientSession | None = field(default=None, init=False)

    def start(self, name: str, speculation: Eagle3 | Ngram | None) -> None:
        """Start an engine without waiting."""
        process = self._processes[name] = EngineProcess(name, self.folder / f"{name}.log")
        process.start(self.spec, speculation)

    async def wait_ready(self, name: str, deadline: float) -> None:
        """Wait until the engine is ready, at most until ``deadline`` (:func:`time.monotonic`, in seconds).

        Raises :class:`EngineFault` when the engine does not start.
        """
        await asyncio.to_thread(self._processes[name].wait_ready, deadline)

    async def close(self) -> None:
        """Stop every engine. Safe to call twice.

        An engine on a GPU gets time to release the device's memory. On a CPU there is nothing to release, and SGLang
        looks only every 5 s whether it is asked to stop.
        """
        if self._session is not None:
            await self._session.close()
            self._session = None
        for process in self._processes.values():
            process.ask_to_stop()
        for process in self._processes.values():
            process.stop(0.0 if self.spec.device == "cpu" else STOP_SECONDS)
        self._processes.clear()

    def check(self, name: str) -> None:
        """Raise :class:`MeasurementError` when the engine died or was never started."""
        process = self._processes.get(name)
        if process is None:
            raise MeasurementError(f"engine {name} is not running")
        if not process.is_alive():
            raise MeasurementError(f"engine {name} died; the end of its log:\n{process.log_tail()}")

    def url(self, name: str) -> str:
        """The engine's address. Raises as :meth:`check` does."""
        self.check(name)
        return self._processes[name].url

    def client(self, name: str, **wish: bool) -> LoadClient:
        """A client for answers, whose requests have this ``wish``. Raises as :meth:`check` does."""
        url = self.url(name)
        return LoadClient(self._open_session(), url, self.request_seconds, wish=wish)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = open_session()
        return self._session
