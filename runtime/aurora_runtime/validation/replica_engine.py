"""The engine of a withdrawn inference pod as a bench: its agent changes what it holds, its lease is renewed meanwhile.

Invariants: nothing is said of a candidate once the lease was lost, or the engine ended or was not reached while it
answered: that is a measurement that could not be made. Every engine start is warmed up before it is measured, whoever
ordered it. The pod is asked to go back on every way out; where that asking fails, the lease runs out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

import aiohttp

from aurora_protocol.agent_api import (
    PASS_HEADER,
    AgentState,
    EngineMode,
    Machine,
    MeasurementPhase,
    MeasurementRequest,
    TrialRequest,
    measurement_pass,
)
from aurora_protocol.draft_records import Registration
from aurora_protocol.evidence_records import Arm
from aurora_protocol.pod_settings import Replica, ValidationSettings
from aurora_runtime.engine.sglang_client import session
from aurora_runtime.errors import EngineFault, MeasurementError
from aurora_runtime.validation.load_client import BatchResult, Client

log = logging.getLogger(__name__)

LEASE_S: Final = 60
RENEW_S: Final = 10.0
POLL_S: Final = 1.0
CALL_S: Final = 30.0
TRIAL_S: Final = 900.0
"""An agent answers once the draft is downloaded, checked and swapped in."""
REQUEST_S: Final = 300.0
WARM_TOKENS: Final = 24
MODES: Final = {Arm.OFF: EngineMode.OFF, Arm.NGRAM: EngineMode.NGRAM}


@dataclass
class ReplicaEngine:
    """Implements :class:`aurora_runtime.validation.measure.Bench`. An async context manager."""

    place: Replica
    token: str = field(repr=False)
    settings: ValidationSettings
    drafts: dict[Arm, Registration]
    warm_prompt: tuple[int, ...]
    deadline: float
    _http: aiohttp.ClientSession | None = None
    _renewing: asyncio.Task[None] | None = None
    _machine: Machine | None = None
    _lost: str = ""
    _at: tuple[Arm, str] | None = None
    """The arm that was warmed up last, and in which engine."""

    async def __aenter__(self) -> Self:
        self._http = session()
        try:
            await self._renew()
            self._renewing = asyncio.create_task(self._keep())
            await self._drained()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let the pod go back; safe to call twice."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
            self._renewing = None
        if self._http is not None:
            with contextlib.suppress(EngineFault, MeasurementError):
                await self._lease(0)
            await self._http.close()
            self._http = None

    @property
    def machine(self) -> Machine:
        """Where the engine runs; known once entered."""
        if self._machine is None:
            raise EngineFault("the replica has not said yet where it runs")
        return self._machine

    # the agent -----------------------------------------------------------------------------------------------------

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            raise EngineFault("the replica was given back")
        return self._http

    def _url(self, port: int) -> str:
        host = f"[{self.place.ip}]" if ":" in self.place.ip else self.place.ip
        return f"http://{host}:{port}"

    async def _ask(
        self, method: str, path: str, body: bytes | None = None, *, limit: float = CALL_S
    ) -> tuple[int, str]:
        """The agent's status and answer; raises :class:`EngineFault` when there is none."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(total=limit)
        try:
            async with self._session().request(
                method, self._url(self.place.agent_port) + path, data=body, headers=headers, timeout=timeout
            ) as response:
                return response.status, await response.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineFault(f"the agent of {self.place.pod}: {path}: {type(error).__name__}") from error

    async def _lease(self, seconds: int) -> None:
        request = MeasurementRequest(measurement=self.place.measurement, epoch=self.place.epoch, lease_seconds=seconds)
        status, text = await self._ask("PUT", "/v1/measurement", request.to_json())
        if status == 409:
            raise MeasurementError(
                f"{self.place.pod} was given back before the measurement ended: {text.strip()[:300]}"
            )
        if status != 202:
            raise EngineFault(f"the agent of {self.place.pod}: {status} {text.strip()[:300]}")

    async def _renew(self) -> None:
        await self._lease(LEASE_S)

    async def _keep(self) -> None:
        """Renew the lease until cancelled, or until it is lost; then leave the reason."""
        good = time.monotonic()
        while not self._lost:
            await asyncio.sleep(RENEW_S)
            try:
                await self._renew()
                good = time.monotonic()
            except MeasurementError as error:
                self._lost = str(error)
            except EngineFault as error:
                if time.monotonic() - good > LEASE_S:
                    self._lost = str(error)

    def _check(self) -> None:
        if self._lost:
            raise MeasurementError(self._lost)

    async def _drained(self) -> None:
        """Wait until the pod has left its Service and requests have ended."""
        while True:
            self._check()
            status, text = await self._ask("GET", "/v1/state")
            if status != 200:
                raise EngineFault(f"the agent of {self.place.pod}: {status}")
            found = AgentState.from_json(text).measurement
            if found is not None and found.phase is MeasurementPhase.MEASURING and found.machine is not None:
                self._machine = found.machine
                return
            await self._pause("requests of clients did not end")

    async def _pause(self, what: str) -> None:
        if time.monotonic() > self.deadline:
            raise MeasurementError(f"{what} in time on {self.place.pod}: raise validation.timeoutSeconds")
        await asyncio.sleep(POLL_S)

    async def _trial(self, arm: Arm) -> str | None:
        """Ask for the engine to hold ``arm``, flushed: the boot of the one that does; None while that is on the way."""
        draft = self.drafts.get(arm)
        request = TrialRequest(
            measurement=self.place.measurement,
            mode=MODES.get(arm, EngineMode.DRAFT),
            version=draft.version if draft else None,
            digest=draft.digest if draft else None,
        )
        status, text = await self._ask("PUT", "/v1/measurement/trial", request.to_json(), limit=TRIAL_S)
        if status not in (200, 202):
            raise MeasurementError(f"{self.place.pod} cannot run {arm}: {status} {text.strip()[:300]}")
        if status == 202:
            return None
        found = AgentState.from_json(text).measurement
        return found.boot if found is not None else None

    # the bench -----------------------------------------------------------------------------------------------------

    def _client(self) -> Client:
        headers = {PASS_HEADER: measurement_pass(self.token, self.place.measurement)}
        return Client(self._session(), self._url(self.place.engine_port), REQUEST_S, headers)

    async def ready(self, arm: Arm) -> None:
        """Bring the arm in place, which for another mode takes a start of the engine; warm it up, empty its cache."""
        while True:
            self._check()
            if boot := await self._trial(arm):
                if self._at == (arm, boot):
                    return
                if await self._client().answer(self.warm_prompt, WARM_TOKENS) is None:
                    raise EngineFault(f"the warm-up request failed on {arm}")
                self._at = (arm, boot)
                continue
            await self._pause(f"the engine did not come to run {arm}")

    async def run(self, arm: Arm, prompts: Sequence[tuple[int, ...]], concurrency: int) -> BatchResult:
        result = await self._client().batch(prompts, concurrency, self.settings.validation.max_new_tokens)
        self._check()
        if result.failures and (arm, await self._trial(arm)) != self._at:
            raise MeasurementError(f"the engine of {self.place.pod} ended while it ran {arm}")
        if result.unreached:
            raise MeasurementError(f"{result.unreached} requests did not reach {self.place.pod} while it ran {arm}")
        return result

    async def confirm(self) -> None:
        """Raises :class:`MeasurementError` when the lease was lost since the last batch, and :class:`EngineFault` when
        the agent does not say."""
        self._check()
        await self._renew()

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float:
        return await self._client().margin(prefix, one, other)
