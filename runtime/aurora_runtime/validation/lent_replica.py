"""Borrows a replica's engine: its agent takes the pod out of the Service, swaps the drafts, and the pod returns.

Invariants:

- A lost lease, an engine that ended, or a request that did not reach the engine is a measurement that could not be
  made. It never becomes a verdict about the candidate. An agent renews no lease that is over, so a renewal after each
  batch shows that the batch had the engine to itself.
- The engine is measured in one start. Another start has a controller that knows nothing, and may follow a crash.
- Every exit from the context asks the agent to give the pod back. If that call fails, the lease runs out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
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
from aurora_protocol.errors import AgentError
from aurora_protocol.evidence_records import Arm
from aurora_protocol.pod_settings import Replica
from aurora_runtime.engine.sglang_client import open_session
from aurora_runtime.errors import MeasurementError
from aurora_runtime.validation.measured_engine import BatchResult, LoadClient

log = logging.getLogger(__name__)

LEASE_SECONDS: Final = 60
"""The pod returns by itself this long after the last renewal."""
RENEW_SECONDS: Final = 10.0
"""Time between two renewals of the lease in the background, because a batch may take longer than the lease."""
POLL_SECONDS: Final = 1.0
CALL_SECONDS: Final = 30.0
"""Time limit of a call to the agent."""


@dataclass
class LentReplica:
    """Implements :class:`EngineHost` on a lent replica, within :meth:`lent`.

    ``deadline`` is on :func:`time.monotonic`, in seconds. Methods that call the agent raise :class:`AgentError`.
    """

    replica: Replica
    token: str = field(repr=False)
    drafts: Mapping[Arm, Registration]
    deadline: float
    machine: Machine = field(init=False, repr=False)
    """Where the engine runs. Known once it is lent."""
    _boot: str = field(default="", init=False)
    """The id of the engine start that is measured."""
    _loaded: Arm = field(default=Arm.ACTIVE, init=False)
    _session: aiohttp.ClientSession = field(init=False, repr=False)

    @contextlib.asynccontextmanager
    async def lent(self) -> AsyncIterator[Self]:
        """Ask for the pod, wait until no client uses it, keep its lease, and give it back at the end.

        Raises :class:`Fenced` when the pod cannot be lent: a newer roll gave it an order, or a swap runs.
        """
        async with open_session() as self._session:
            renewal = asyncio.create_task(self._renew_lease())
            try:
                await self._set_lease(LEASE_SECONDS, begin=True)
                await self._wait_until_drained()
                yield self
            finally:
                renewal.cancel()
                with contextlib.suppress(AgentError):
                    await self._set_lease(0)

    def _agent(self) -> AgentClient:
        return AgentClient(self._session, self.replica.agent_port, call_seconds=CALL_SECONDS)

    async def _set_lease(self, seconds: int, *, begin: bool = False) -> None:
        """Begin or renew the lease, or give the pod back (0). The agent renews none that is over."""
        replica = self.replica
        request = MeasurementRequest(
            measurement=replica.measurement, epoch=replica.epoch, lease_seconds=seconds, begin=begin
        )
        await self._agent().lease(replica.ip, self.token, request)

    async def _renew_lease(self) -> None:
        """Renew the lease until cancelled. A lease that is lost shows after the batch."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                await self._set_lease(LEASE_SECONDS)
            except AgentError as error:
                log.warning("the lease was not renewed: %s", error)

    async def _status(self) -> MeasurementStatus | None:
        """The agent's report. Raises :class:`MeasurementError` when the engine was started again."""
        status = (await self._agent().state(self.replica.ip, self.token)).measurement
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
        """Sleep before the next poll. Raises :class:`MeasurementError` with ``unfinished`` when time is up.

        Raises :class:`AgentError` when the lease was lost, because what is awaited does not happen then.
        """
        if time.monotonic() > self.deadline:
            raise MeasurementError(f"{unfinished} in time on {self.replica.pod}: raise validation.timeoutSeconds")
        await self._set_lease(LEASE_SECONDS)
        await asyncio.sleep(POLL_SECONDS)

    async def hold(self, arm: Arm) -> bool:
        """Have the agent load the draft of ``arm`` and empty the prefix cache. Returns whether the draft changed.

        The state is read before each order. After a crash, an order would load the draft again that may be to blame.
        """
        holds = arm if arm in self.drafts else self._loaded
        draft = self.drafts[holds]
        request = TrialRequest(measurement=self.replica.measurement, version=draft.version, digest=draft.digest)
        await self._status()
        while await self._agent().trial(self.replica.ip, self.token, request) is None:
            await self._wait_to_poll(f"version {draft.version} was not loaded")
            await self._status()
        await self._status()
        swapped, self._loaded = holds is not self._loaded, holds
        return swapped

    async def confirm(self, arm: Arm, result: BatchResult) -> None:
        """Raise an error when the lease, the engine or the network failed.

        After a failed request, waits until the engine is idle again, because a request that took too long may run on.
        Once the time is over, nothing else is measured.
        """
        await self._set_lease(LEASE_SECONDS)
        if result.unreached:
            raise MeasurementError(f"{result.unreached} requests did not reach {self.replica.pod} while it ran {arm}")
        if result.failures and time.monotonic() < self.deadline:
            await self.hold(arm)

    def client(self, _arm: Arm, wish: Mapping[str, Any]) -> LoadClient:
        """A client of the replica's engine, which lets in the requests of this measurement only."""
        host = f"[{self.replica.ip}]" if ":" in self.replica.ip else self.replica.ip
        headers = {PASS_HEADER: measurement_pass(self.token, self.replica.measurement)}
        url = f"http://{host}:{self.replica.engine_port}"
        return LoadClient(self._session, url, headers, wish)
