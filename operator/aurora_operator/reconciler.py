"""One reconcile of one speculator: observe, plan, act.

Invariant: a reconciler may be lost at any time. Everything that the reconciler remembers between two
reconciles is either observed again, or only makes the next decision more careful.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from aurora_operator import metrics
from aurora_operator.act.actor import Actor, ExecutionResult
from aurora_operator.act.data_deletion import DataDeletion
from aurora_operator.act.event_recorder import EventRecorder
from aurora_operator.act.status_writer import write_status
from aurora_operator.errors import BeingDeleted, InvalidSpec
from aurora_operator.fleet import Fleet
from aurora_operator.kubernetes_api import KubernetesApi, Object
from aurora_operator.observe.observed_time import ObservedTime
from aurora_operator.observe.observer import Observer
from aurora_operator.operator_config import OperatorConfig
from aurora_operator.plan import EventNote, plan
from aurora_operator.plan.condition_builder import invalid_spec_status
from aurora_protocol.agent_client import AgentClient

log = logging.getLogger(__name__)

BUSY_POLL_SECONDS = 2.0
"""Time until the next reconcile while something is under way."""
IDLE_POLL_SECONDS = 15.0
"""Time until the next reconcile while nothing is under way. An event ends either wait early."""


class Reconciler:
    """Reconciles one speculator."""

    def __init__(
        self, api: KubernetesApi, agents: AgentClient, config: OperatorConfig, fleet: Fleet, namespace: str, name: str
    ) -> None:
        self._api, self._config, self._fleet = api, config, fleet
        self._key = (namespace, name)
        self._observer = Observer(api, agents, namespace, name)
        self._actor = Actor(api, agents)
        self._deletion = DataDeletion(api, self._observer.store)
        self._events = EventRecorder(api)
        self._observed_time = ObservedTime()
        self._last = ExecutionResult()
        self._status_written_seconds = 0.0

    async def reconcile(self) -> float:
        """Reconcile once. Returns the seconds to wait before the next reconcile.

        Raises :class:`NotFound` when the speculator is gone, :class:`Conflict` or :class:`ObjectExists` when somebody
        else wrote first, :class:`OperatorError`, :class:`StoreError`.
        """
        started_seconds = time.monotonic()
        try:
            snapshot = await self._observer.observe()
        except BeingDeleted as being_deleted:
            return await self._delete_data(being_deleted.stored)
        except InvalidSpec as error:
            self._fleet.report_unusable(self._key)
            await self._report_invalid_spec(error)
            return IDLE_POLL_SECONDS
        now, monotonic_seconds = datetime.now(UTC), time.monotonic()
        before = self._last
        observed = replace(
            snapshot.observed,
            observation_gap=self._observed_time.has_gap(now, monotonic_seconds),
            fencing_epoch=before.fencing_epoch,
            apply_errors=before.apply_errors,
            refused_job=before.refused_job,
            name_taken=before.name_taken,
            fleet=self._fleet.view(self._key),
        )
        status_age = timedelta(seconds=min(monotonic_seconds - self._status_written_seconds, 1e6))
        decided = plan(observed, self._config, now, status_age)
        # No await since the fleet was viewed, so no other speculator has taken the same turn.
        if decided.upgrade is None:
            self._fleet.report_unusable(self._key)
        else:
            self._fleet.report(self._key, decided.upgrade)
        self._last = await self._actor.act(decided, snapshot, self._observer.store_reader)
        self._observed_time.record(now, monotonic_seconds, decided=observed.store.ok)
        if self._last.wrote_status:
            self._status_written_seconds = time.monotonic()
        metrics.record_observation(observed, time.monotonic() - started_seconds)
        # The next reconcile reports in the status what this one could not apply.
        unreported = self._last.name_taken != before.name_taken
        busy = decided.moving or bool(self._last.apply_errors) or unreported
        return BUSY_POLL_SECONDS if busy else IDLE_POLL_SECONDS

    async def _delete_data(self, stored: Object) -> float:
        """The next step for a resource that is being deleted. Raises :class:`NotFound` when we do not hold it."""
        try:
            return await self._deletion.advance(stored)
        except InvalidSpec as error:
            await self._report_invalid_spec(error)
            return IDLE_POLL_SECONDS

    async def _report_invalid_spec(self, error: InvalidSpec) -> None:
        """Write the fault to the conditions and post an Event, once. The children stay as they are until then."""
        owner = error.owner
        metrics.READY.labels(owner.namespace, owner.name).set(0)
        status = invalid_spec_status(error.status, owner.generation, str(error), datetime.now(UTC))
        if status != error.status:
            log.warning("%s: the spec is invalid, nothing is changed until it is corrected: %s", owner.full_name, error)
            await asyncio.to_thread(write_status, self._api, owner, status)
            await self._events.post(EventNote("InvalidSpec", str(error), warning=True), owner)

    async def is_gone(self) -> bool:
        """Whether the speculator was deleted. False when the API server cannot tell."""
        return await self._observer.is_gone()
