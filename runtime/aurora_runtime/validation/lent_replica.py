"""The engine of a replica that has been taken out of the Service: its agent swaps the drafts, and the replica returns.

A background task renews the lease. Invariants:

- A lost lease, an engine that ended, or a request that did not reach the engine is a measurement that could not be
  made. It never becomes a verdict about the candidate.
- The engine is measured in one start. Another start has a controller that knows nothing, and may follow a crash.
- Every exit from the context asks the agent to give the pod back. If that call fails, the lease runs out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from aurora_protocol.agent_api import (
    PASS_HEADER,
    Machine,
    MeasurementPhase,
    MeasurementRequest,
    MeasurementStatus,
    TrialRequest,
    measurement_pass,
)
from aurora_protocol.agent_client import AgentClient
from aurora_protocol.draft_records import Registration
from aurora_protocol.errors import AgentError, AgentRefused, Fenced
from aurora_protocol.evidence_records import Arm
from aurora_protocol.pod_settings import Replica
from aurora_runtime.engine.sglang_client import open_session
from aurora_runtime.errors import EngineFault, MeasurementError, OutOfTime
from aurora_runtime.validation.measured_engine import REQUEST_SECONDS, BatchResult, LoadClient

log = logging.getLogger(__name__)

LEASE_SECONDS: Final = 60
"""The pod returns by itself this long after the last renewal."""
RENEW_SECONDS: Final = 10.0
"""Time between two renewals of the lease."""
POLL_SECONDS: Final = 1.0
CALL_SECONDS: Final = 30.0
"""Time limit of a call to the agent."""


@dataclass
class LentReplica:
    """Implements :class:`EngineHost` on a lent replica. An async context manager.

    ``deadline`` is on :func:`time.monotonic`, in seconds.
    """

    replica: Replica
    token: str = field(repr=False)
    drafts: Mapping[Arm, Registration]
    deadline: float
    machine: Machine = field(init=False, repr=False)
    """Where the engine runs. Known once the context is entered."""
    _boot: str = field(default="", init=False)
    """The id of the engine start that is measured."""
    _loaded: Arm = field(default=Arm.ACTIVE, init=False)
    _lease_ends: float = field(default=0.0, init=False)
    _lease_lost: str = field(default="the agent did not renew the lease in time", init=False)
    _renewal: asyncio.Task[None] | None = field(default=None, init=False)
    _http: aiohttp.ClientSession | None = field(default=None, init=False)

    async def __aenter__(self) -> Self:
        self._http = open_session()
        try:
            await self._set_lease(LEASE_SECONDS)
            self._renewal = asyncio.create_task(self._renew_until_lost())
            await self._wait_until_drained()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        """Give the pod back."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
        with contextlib.suppress(EngineFault, MeasurementError):
            await self._set_lease(0)
        await self._session().close()

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            raise EngineFault(f"{self.replica.pod} is not lent: enter the context first")
        return self._http

    def _agent(self) -> AgentClient:
        return AgentClient(self._session(), self.replica.agent_port, call_seconds=CALL_SECONDS)

    # the lease -----------------------------------------------------------------------------------------------------

    async def _set_lease(self, seconds: int) -> None:
        """Renew the lease, or give the pod back (0).

        Raises :class:`MeasurementError` when the pod is no longer withdrawn for this measurement, and
        :class:`EngineFault` when the call fails for another reason.
        """
        replica, asked = self.replica, time.monotonic()
        request = MeasurementRequest(measurement=replica.measurement, epoch=replica.epoch, lease_seconds=seconds)
        try:
            await self._agent().lease(replica.ip, self.token, request)
        except Fenced as error:
            self._lease_ends = 0.0
            self._lease_lost = f"{replica.pod} was given back before the measurement ended: {error.reason}"
            raise MeasurementError(self._lease_lost) from error
        except AgentError as error:
            raise EngineFault(f"the agent of {replica.pod}: {error}") from error
        self._lease_ends = asked + seconds

    async def _renew_until_lost(self) -> None:
        """Renew the lease until cancelled, or until the lease is over."""
        while time.monotonic() <= self._lease_ends:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                await self._set_lease(LEASE_SECONDS)
            except (EngineFault, MeasurementError) as error:
                log.warning("the lease was not renewed: %s", error)

    def _check_lease(self) -> None:
        if time.monotonic() > self._lease_ends:
            raise MeasurementError(self._lease_lost)

    async def confirm_end(self) -> None:
        """Make sure that the lease held until now. Raises as :meth:`_set_lease` does."""
        self._check_lease()
        await self._set_lease(LEASE_SECONDS)

    # the engine ----------------------------------------------------------------------------------------------------

    async def _status(self) -> MeasurementStatus | None:
        """The agent's report. Raises :class:`MeasurementError` when the lease is lost or the engine was started again.

        Raises :class:`EngineFault` when the call fails.
        """
        self._check_lease()
        try:
            status = (await self._agent().state(self.replica.ip, self.token)).measurement
        except AgentError as error:
            raise EngineFault(f"the agent of {self.replica.pod}: {error}") from error
        if self._boot and (status is None or status.boot != self._boot):
            raise MeasurementError(f"the engine of {self.replica.pod} ended while it was measured: see its log")
        return status

    async def _wait_until_drained(self) -> None:
        """Wait until the pod has left its Service and the requests of clients have ended."""
        while True:
            status = await self._status()
            if status is not None and status.phase is MeasurementPhase.MEASURING and status.machine and status.boot:
                self.machine, self._boot = status.machine, status.boot
                return
            await self._wait_to_poll("requests of clients did not end")

    async def _wait_to_poll(self, unfinished: str) -> None:
        """Sleep before the next poll. Raises :class:`OutOfTime` with ``unfinished`` when time is up."""
        if time.monotonic() > self.deadline:
            raise OutOfTime(f"{unfinished} in time on {self.replica.pod}: raise validation.timeoutSeconds")
        await asyncio.sleep(POLL_SECONDS)

    async def hold(self, arm: Arm) -> bool:
        """Have the agent load the draft of ``arm`` and empty the prefix cache. Returns whether the draft changed.

        The state is read before each order. After a crash, an order would load the draft again that may be to blame.
        """
        holds = arm if arm in self.drafts else self._loaded
        draft = self.drafts[holds]
        request = TrialRequest(measurement=self.replica.measurement, version=draft.version, digest=draft.digest)
        while True:
            await self._status()
            try:
                if await self._agent().trial(self.replica.ip, self.token, request) is not None:
                    break
            except AgentRefused as error:
                raise MeasurementError(
                    f"{self.replica.pod} cannot load version {draft.version}: {error.status} {error.reason}"
                ) from error
            except AgentError as error:
                raise EngineFault(f"the agent of {self.replica.pod}: {error}") from error
            await self._wait_to_poll(f"version {draft.version} was not loaded")
        await self._status()
        swapped, self._loaded = holds is not self._loaded, holds
        return swapped

    async def confirm(self, arm: Arm, result: BatchResult) -> None:
        """Raise :class:`MeasurementError` when the lease, the engine or the network failed.

        After a failed request, waits until the engine is idle again. A request that took too long may run on.
        """
        self._check_lease()
        if result.unreached:
            raise MeasurementError(f"{result.unreached} requests did not reach {self.replica.pod} while it ran {arm}")
        if result.failures:
            await self.hold(arm)

    def client(self, _arm: Arm, wish: Mapping[str, Any], deadline: float) -> LoadClient:
        """A client of the replica's engine, which lets in the requests of this measurement only."""
        host = f"[{self.replica.ip}]" if ":" in self.replica.ip else self.replica.ip
        headers = {PASS_HEADER: measurement_pass(self.token, self.replica.measurement)}
        url = f"http://{host}:{self.replica.engine_port}"
        return LoadClient(self._session(), url, REQUEST_SECONDS, headers, deadline, wish)
