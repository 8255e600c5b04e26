"""Measures on the engine of a replica that has been taken out of the Service, and guarantees that the replica returns.

The pod's agent changes how the engine speculates. A background task renews the lease meanwhile.

Invariants:

- A lost lease, an engine that ended, or a request that did not reach the engine is a measurement that could not be
  made. It never becomes a verdict about the candidate.
- Every engine start is warmed up before it is measured, whoever ordered the start.
- A warm-up that fails is not repeated at length, so that a draft that crashes the engine crashes it once.
- Every exit from the context asks the agent to give the pod back. If that call fails, the lease runs out.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self

import aiohttp

from aurora_protocol.agent_api import (
    PASS_HEADER,
    EngineMode,
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
from aurora_protocol.pod_settings import Replica, ValidationSettings
from aurora_runtime.engine.sglang_client import open_session
from aurora_runtime.errors import EngineFault, MeasurementError, OutOfTime
from aurora_runtime.validation.engines.load_client import BatchResult, LoadClient
from aurora_runtime.validation.engines.warm_up import ENGINE_TOKENS, SWAP_TOKENS, WarmUp
from aurora_runtime.validation.rounds.measurement_plan import DRAFT_ARMS

LEASE_SECONDS: Final = 60
"""The pod returns by itself this long after the last renewal."""
RENEW_SECONDS: Final = 10.0
"""Time between two renewals of the lease."""
POLL_SECONDS: Final = 1.0
CALL_SECONDS: Final = 30.0
"""Time limit of a call to the agent."""
REQUEST_SECONDS: Final = 300.0
"""Time limit of a request to the engine."""
BUSY_SECONDS: Final = REQUEST_SECONDS + 30.0
"""Time limit for an engine to be idle again after a failed request: about that of the longest request."""
MODES: Final = {Arm.OFF: EngineMode.OFF, Arm.NGRAM: EngineMode.NGRAM}


@dataclass
class ReplicaEngine:
    """Implements :class:`EnginesUnderTest`. An async context manager.

    ``deadline`` is on :func:`time.monotonic`, in seconds.
    """

    replica: Replica
    token: str = field(repr=False)
    settings: ValidationSettings
    drafts: dict[Arm, Registration]
    warm_up: WarmUp
    deadline: float
    _http: aiohttp.ClientSession | None = field(default=None, init=False)
    _renewal: asyncio.Task[None] | None = field(default=None, init=False)
    _machine: Machine | None = field(default=None, init=False)
    _lease_lost: str = field(default="", init=False)
    """Why the lease was lost; empty while the lease is valid."""
    _warmed_up: tuple[Arm, str] | None = field(default=None, init=False)
    """The arm that was warmed up last, and the id of the engine start in which that happened."""
    _known: set[tuple[Arm, str]] = field(default_factory=set, init=False)
    """All arms that were warmed up, with the id of the engine start."""
    _failed_warm_up: set[Arm] = field(default_factory=set, init=False)
    """The drafts whose warm-up had a failure, or ended in another start of the engine. It is not repeated at length."""

    async def __aenter__(self) -> Self:
        self._http = open_session()
        try:
            await self._renew_lease()
            self._renewal = asyncio.create_task(self._renew_until_lost())
            await self._wait_until_drained()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the pod back. Safe to call twice."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
            self._renewal = None
        if self._http is not None:
            with contextlib.suppress(EngineFault, MeasurementError):
                await self._set_lease(0)
            await self._http.close()
            self._http = None

    @property
    def machine(self) -> Machine:
        """Where the engine runs. Known once the context is entered."""
        if self._machine is None:
            raise EngineFault(f"the agent of {self.replica.pod} has not reported its machine yet")
        return self._machine

    # the agent -----------------------------------------------------------------------------------------------------

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            raise EngineFault(f"{self.replica.pod} was given back already")
        return self._http

    def _agent(self) -> AgentClient:
        return AgentClient(self._session(), self.replica.agent_port, call_seconds=CALL_SECONDS)

    async def _set_lease(self, seconds: int) -> None:
        """Renew the lease, or give the pod back (0).

        Raises :class:`MeasurementError` when the pod is no longer withdrawn for this measurement, and
        :class:`EngineFault` when the call fails for another reason.
        """
        replica = self.replica
        request = MeasurementRequest(measurement=replica.measurement, epoch=replica.epoch, lease_seconds=seconds)
        try:
            await self._agent().lease(replica.ip, self.token, request)
        except Fenced as error:
            raise MeasurementError(
                f"{replica.pod} was given back before the measurement ended: {error.reason}"
            ) from error
        except AgentError as error:
            raise EngineFault(f"the agent of {replica.pod}: {error}") from error

    async def _renew_lease(self) -> None:
        await self._set_lease(LEASE_SECONDS)

    async def _renew_until_lost(self) -> None:
        """Renew the lease until cancelled, or until the lease is lost, and then note why in ``_lease_lost``."""
        last_renewal = time.monotonic()
        while not self._lease_lost:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                await self._renew_lease()
                last_renewal = time.monotonic()
            except MeasurementError as error:
                self._lease_lost = str(error)
            except EngineFault as error:
                if time.monotonic() - last_renewal > LEASE_SECONDS:
                    self._lease_lost = str(error)

    def _check_lease(self) -> None:
        if self._lease_lost:
            raise MeasurementError(self._lease_lost)

    async def _status(self) -> MeasurementStatus | None:
        """The agent's report of the measurement. Raises :class:`EngineFault` when the call fails."""
        try:
            return (await self._agent().state(self.replica.ip, self.token)).measurement
        except AgentError as error:
            raise EngineFault(f"the agent of {self.replica.pod}: {error}") from error

    async def _wait_until_drained(self) -> None:
        """Wait until the pod has left its Service and the requests of clients have ended."""
        while True:
            self._check_lease()
            measurement = await self._status()
            if (
                measurement is not None
                and measurement.phase is MeasurementPhase.MEASURING
                and measurement.machine is not None
            ):
                self._machine = measurement.machine
                return
            await self._wait_to_poll("requests of clients did not end")

    async def _wait_to_poll(self, unfinished: str) -> None:
        """Sleep before the next poll. Raises :class:`OutOfTime` with ``unfinished`` when time is up."""
        if time.monotonic() > self.deadline:
            raise OutOfTime(f"{unfinished} in time on {self.replica.pod}: raise validation.timeoutSeconds")
        await asyncio.sleep(POLL_SECONDS)

    async def _order_trial(self, arm: Arm, *, may_be_faulty: bool = False) -> str | None:
        """Order the engine to run ``arm`` with an empty prefix cache.

        Returns the id of the engine start that runs ``arm``. None while the change is under way.

        Args:
            may_be_faulty: return None also when the agent answers 503, because it has trouble with the engine.

        Raises :class:`MeasurementError` when the agent refuses, and :class:`EngineFault` when the call fails otherwise.
        """
        draft = self.drafts.get(arm)
        request = TrialRequest(
            measurement=self.replica.measurement,
            mode=MODES.get(arm, EngineMode.DRAFT),
            version=draft.version if draft else None,
            digest=draft.digest if draft else None,
        )
        try:
            state = await self._agent().trial(self.replica.ip, self.token, request)
        except AgentRefused as error:
            if may_be_faulty and error.status == HTTPStatus.SERVICE_UNAVAILABLE:
                return None
            raise MeasurementError(f"{self.replica.pod} cannot run {arm}: {error.status} {error.reason}") from error
        except AgentError as error:
            raise EngineFault(f"the agent of {self.replica.pod}: {error}") from error
        return state.measurement.boot if state is not None and state.measurement is not None else None

    # the engine ----------------------------------------------------------------------------------------------------

    def _client(self) -> LoadClient:
        host = f"[{self.replica.ip}]" if ":" in self.replica.ip else self.replica.ip
        headers = {PASS_HEADER: measurement_pass(self.token, self.replica.measurement)}
        return LoadClient(
            self._session(), f"http://{host}:{self.replica.engine_port}", REQUEST_SECONDS, headers, self.deadline
        )

    async def prepare(self, arm: Arm) -> None:
        """Make the engine run ``arm``, warmed up and with an empty prefix cache.

        Between two drafts the agent swaps. Between a draft, NGRAM and off the agent restarts the engine.
        """
        boot = await self._run_trial(arm)
        if self._warmed_up == (arm, boot):
            return
        drafts = arm in DRAFT_ARMS
        is_new = (arm, boot) not in self._known and arm not in self._failed_warm_up
        if is_new:
            if drafts:
                self._failed_warm_up.add(arm)  # until it ended well
            result = await self.warm_up.first_time(self._client(), drafts=drafts, may_continue=self._may_continue)
        else:
            tokens = SWAP_TOKENS if (arm, boot) in self._known else ENGINE_TOKENS
            result = await self.warm_up.answer_once(self._client(), tokens)
        await self._check_engine(arm, boot, result)
        if result.failures and result.failures == len(result.answers):
            raise EngineFault(f"a warm-up request failed on {arm}: see the engine's log on {self.replica.pod}")
        # The warm-up filled the prefix cache. The trial empties it.
        if await self._run_trial(arm) != boot:
            raise self._engine_ended(arm)
        if is_new and not result.failures:
            self._failed_warm_up.discard(arm)
        self._warmed_up = (arm, boot)
        self._known.add((arm, boot))

    async def _run_trial(self, arm: Arm) -> str:
        """Wait until the engine runs ``arm`` with an empty prefix cache. Returns the id of the engine start."""
        while True:
            self._check_lease()
            if boot := await self._order_trial(arm):
                return boot
            await self._wait_to_poll(f"the engine did not run {arm}")

    def _may_continue(self) -> bool:
        return not self._lease_lost and time.monotonic() <= self.deadline

    async def run(self, arm: Arm, prompts: Sequence[tuple[int, ...]], concurrency: int) -> BatchResult:
        """Answer ``prompts``. Raises :class:`MeasurementError` when the lease, the engine or the network failed."""
        result = await self._client().batch(prompts, concurrency, self.settings.validation.max_new_tokens)
        await self._check_engine(arm, self._warmed_up[1] if self._warmed_up else None, result)
        return result

    async def _check_engine(self, arm: Arm, boot: str | None, result: BatchResult) -> None:
        """Raise :class:`MeasurementError` when the lease, the engine start ``boot`` or the network failed."""
        self._check_lease()
        if result.failures:
            await self._require_same_start(arm, boot)
        if result.unreached:
            raise MeasurementError(f"{result.unreached} requests did not reach {self.replica.pod} while it ran {arm}")

    async def _require_same_start(self, arm: Arm, boot: str | None) -> None:
        """Wait until the engine is idle. Raises :class:`MeasurementError` unless it is still in its start ``boot``.

        A request that took too long may run on for a while, and the agent cannot empty the prefix cache meanwhile. The
        id is read before each order: after a restart, an order would load the draft again that may have crashed the
        engine. There is no id after the end of an engine, until its next start is ready.
        """
        busy_until = time.monotonic() + BUSY_SECONDS
        while True:
            self._check_lease()
            status = await self._status()
            if status is not None and status.boot != boot:
                raise self._engine_ended(arm)
            if status is not None and await self._order_trial(arm, may_be_faulty=True) == boot:
                return
            failed = f"requests failed on {arm}, and the engine was not idle again"
            if time.monotonic() > busy_until:
                raise MeasurementError(f"{failed} within {BUSY_SECONDS:.0f} s: see its log on {self.replica.pod}")
            await self._wait_to_poll(failed)

    def _engine_ended(self, arm: Arm) -> MeasurementError:
        return MeasurementError(f"the engine of {self.replica.pod} ended while it ran {arm}")

    async def confirm_lease(self) -> None:
        """Make sure that the lease held until now.

        Raises :class:`MeasurementError` when the lease was lost, and :class:`EngineFault` when the agent does not
        answer.
        """
        self._check_lease()
        await self._renew_lease()

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float:
        """Gap between the log-probabilities of two next tokens after ``prefix``."""
        return await self._client().margin(prefix, one, other)
