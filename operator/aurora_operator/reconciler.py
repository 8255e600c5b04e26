"""One reconcile of one speculator: observe, plan, act.

Invariants:

- A reconciler may be lost at any time. Everything that the reconciler remembers between two reconciles is observed
  again, or only makes the next decision more careful.
- A deadline expires only after a series of observations that led to decisions, with gaps no longer than
  :data:`MAX_GAP`, by the wall clock and by a monotonic clock. A wall clock may be set forwards, the process may stand
  still, and the store may be out of reach or lack the records. Such time says nothing about the pods.
"""

from __future__ import annotations

import logging
import random
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import inf

from aurora_api.v1alpha1.status import CandidatePhase, OperatorIdentity, RolloutPhase, SpeculatorStatus
from aurora_api.v1alpha1.validation import MeasureOn
from aurora_operator import metrics
from aurora_operator.act.actor import Actor, ExecutionResult
from aurora_operator.act.custom_resource import EventRecorder, claim, set_finalizer, write_status
from aurora_operator.act.data_deletion import DataDeletion, deletes
from aurora_operator.children.metadata import has_finalizer
from aurora_operator.errors import Gone, InvalidSpec, Recreated
from aurora_operator.fleet import Fleet
from aurora_operator.kubernetes_api import KubernetesApi, Object
from aurora_operator.observe.observed import Observed
from aurora_operator.observe.observer import Observer, Snapshot
from aurora_operator.observe.stored_resource import owner_of, status_of
from aurora_operator.operator_config import OperatorConfig
from aurora_operator.plan import EventNote, Plan, plan
from aurora_operator.plan.actions import MeasurementStage
from aurora_operator.plan.candidate import seconds_until_attempt
from aurora_operator.plan.conditions import invalid_spec_status
from aurora_operator.plan.operator_upgrade import UpgradeStage
from aurora_operator.plan.status_builder import differs_in_decisions
from aurora_operator.speculator_figures import FIGURES
from aurora_protocol.agent_client import AgentClient

log = logging.getLogger(__name__)

BUSY_POLL_SECONDS = 2.0
"""Shortest time until the next reconcile while something is under way. A change in the cluster ends each wait early."""
QUIET_SHARE = 0.1
"""While something is under way, the next reconcile comes after this share of the time since the decided status changed.

Why: what is under way may wait for days, for a GPU or for traffic. With a share, everything that only time or an agent
tells is noticed late by at most a tenth of the time that it took.
"""
WATCHFUL_POLL_SECONDS = 15.0
"""Time until the next reconcile while the operator waits for something that no event shows: a roll whose draft live
traffic still judges, a store or an agent that does not answer, a turn to restart after an upgrade. In a roll it is also
the longest time, because its deadlines count only observed time (:data:`MAX_GAP`)."""
WAITING_POLL_SECONDS = 60.0
"""Longest time until the next reconcile while the store cannot be used, or another speculator is measured first."""
REST_POLL_SECONDS, REST_JITTER = 240.0, 0.25
"""Mean time until the next reconcile at rest, and the share by which it varies. The reconcile repairs what a lost event
would leave undone. It costs about ten reads of the API server. The store is looked at more often."""


class Reconciler:
    """Reconciles one speculator."""

    def __init__(
        self,
        api: KubernetesApi,
        agents: AgentClient,
        config: OperatorConfig,
        fleet: Fleet,
        namespace: str,
        name: str,
    ) -> None:
        self._api, self._config, self._fleet = api, config, fleet
        self._key = (namespace, name)
        self._uid = ""
        self._events = EventRecorder()
        self._observer = Observer(api, agents, config.stores, namespace, name)
        self._actor = Actor(api, agents, self._events)
        self._deletion = DataDeletion(api, self._observer, self._events)
        self._observed_time = ObservedTime()
        self._last = ExecutionResult()
        self._shown = False
        """Whether the metrics show the status."""
        self._status_written_seconds = 0.0
        self._changed_seconds = time.monotonic()
        """When the decided status last changed in more than figures."""
        self._due_seconds = 0.0
        """When to reconcile again although nothing changed."""
        self._decides = False
        """Whether the last reconcile decided about versions, so that news in the store begin the next one."""
        fleet.expect(self._key)

    async def reconcile(self, *, woken: bool) -> float:
        """Reconcile once. Returns the seconds to wait before the next reconcile.

        Args:
            woken: something changed, as opposed to time having passed.

        Raises :class:`Gone`, :class:`Conflict` or :class:`ObjectExists` when somebody else wrote first,
        :class:`OperatorError`, :class:`StoreError`.
        """
        try:
            if not woken and time.monotonic() < self._due_seconds and not await self._observer.store.has_news():
                return self._seconds_until_due()
            self._due_seconds = 0.0  # at once, if this reconcile fails
            delay_seconds = await self._reconcile()
            self._due_seconds = time.monotonic() + delay_seconds
            return self._seconds_until_due()
        except Gone:
            self._fleet.forget(self._key)
            FIGURES.forget(*self._key)
            raise

    def _seconds_until_due(self) -> float:
        """Seconds until the next reconcile, or until the store is looked at alone."""
        store_seconds = self._observer.store.seconds_until_due() if self._decides else inf
        return max(BUSY_POLL_SECONDS, min(self._due_seconds - time.monotonic(), store_seconds))

    async def _reconcile(self) -> float:
        started_seconds, self._decides = time.monotonic(), False
        stored = await self._speculator()
        # Before the observation, which asks agents and writes to the store.
        claimed = await self._claimed(stored)
        if claimed is None:
            return _rest_seconds()
        stored = claimed
        if "deletionTimestamp" in stored["metadata"]:
            self._fleet.report(self._key, None)
            FIGURES.record_deletion(*self._key, datetime.fromisoformat(stored["metadata"]["deletionTimestamp"]))
            return await self._deletion.advance(stored)
        stored = await set_finalizer(self._api, stored, wanted=deletes(stored))  # before anything is stored
        if not self._shown:
            # A restart of the operator must not end an alert that is still true, and this reconcile may fail.
            self._show(status_of(stored))
        try:
            snapshot = await self._observer.observe(stored)
        except InvalidSpec as error:
            self._fleet.report(self._key, None)
            await self._report_invalid_spec(error)
            return _rest_seconds()
        decided, observed = await self._decide_and_act(snapshot)
        metrics.RECONCILE_SECONDS.observe(time.monotonic() - started_seconds)
        FIGURES.record_observation(observed, datetime.now(UTC))
        self._decides = True
        return self._delay_seconds(decided, observed)

    async def _speculator(self) -> Object:
        """The custom resource. Raises :class:`Gone` when it is gone, or being deleted without our finalizer."""
        stored = await self._observer.speculator()
        metadata = stored["metadata"]
        self._uid = self._uid or metadata["uid"]
        if metadata["uid"] != self._uid:
            raise Recreated(f"{self._key[0]}/{self._key[1]} was created again")
        if "deletionTimestamp" in metadata and not has_finalizer(stored):
            raise Gone(f"{self._key[0]}/{self._key[1]} is gone")
        return stored

    def _show(self, status: SpeculatorStatus) -> None:
        """Take the metrics from a status alone."""
        self._shown = True
        FIGURES.record_status(*self._key, status, datetime.now(UTC))

    async def _claimed(self, stored: Object) -> Object | None:
        """The resource, whose status names this installation. None: another installation acts on it.

        Two installations that act would undo each other's Deployments for ever. The second one yields, and a person
        decides which of them stays.
        """
        own, named = self._config.identity, status_of(stored).operator
        yields = named is not None and named.installation != own.installation
        metrics.record_yield(*self._key, yields=yields)
        if named is not None and yields:
            self._say_yielded(stored, named)
            return None
        return stored if named == own else await claim(self._api, stored, own)

    def _say_yielded(self, stored: Object, named: OperatorIdentity) -> None:
        self._fleet.report(self._key, None)
        FIGURES.forget(*self._key)
        namespace, name = self._key
        message = (
            f"{named} acts on this speculator, so {self._config.identity} does not. Run only one of the two here, or"
            f" give each its own namespaces. If {named} is gone: kubectl patch auroraspeculator {name} -n {namespace}"
            """ --subresource=status --type=merge -p '{"status":{"operator":null}}'"""
        )
        self._events.post(EventNote("OperatorYielded", message, warning=True), owner_of(stored))

    async def _decide_and_act(self, snapshot: Snapshot) -> tuple[Plan, Observed]:
        now, monotonic_seconds = datetime.now(UTC), time.monotonic()
        before = self._last
        observed = replace(
            snapshot.observed,
            observation_gap=self._observed_time.has_gap(now, monotonic_seconds),
            refused_by_epoch=before.refused_by_epoch,
            apply_errors=before.apply_errors,
            refused_job=before.refused_job,
            name_taken=before.name_taken,
            fleet=self._fleet.view(self._key),
        )
        status_age = timedelta(seconds=min(monotonic_seconds - self._status_written_seconds, 1e6))
        decided = plan(observed, self._config, now, status_age)
        status = decided.status or observed.status
        if decided.advance is not None or differs_in_decisions(observed.status, status):
            self._changed_seconds = monotonic_seconds
        # No await since the fleet was viewed, so no other speculator has taken the same turn.
        if decided.upgrade is not None:
            self._fleet.report(self._key, decided.upgrade)
        elif observed.spec_fault:
            self._fleet.report(self._key, None)
        self._fleet.report_measurement(self._key, decided.measurement)
        self._last = await self._actor.act(decided, snapshot, self._observer.store)
        FIGURES.count_decisions(*self._key, decided.decisions)
        if self._last.refused_by_epoch:
            self._observer.store.read_next()
        self._observed_time.record(now, monotonic_seconds, decided=decided.decides_versions)
        if self._last.wrote_status:
            self._status_written_seconds = time.monotonic()
        return decided, observed

    def _delay_seconds(self, decided: Plan, observed: Observed) -> float:
        """How long to wait unless something changes."""
        told = observed.name_taken, observed.apply_errors
        if (self._last.name_taken, self._last.apply_errors) != told or (decided.create_keys and not any(told)):
            return BUSY_POLL_SECONDS
        quiet_seconds = QUIET_SHARE * (time.monotonic() - self._changed_seconds)
        if not observed.store.ok:
            # No event shows that a person created or corrected the Secret with the store's keys.
            return min(WAITING_POLL_SECONDS, max(WATCHFUL_POLL_SECONDS, quiet_seconds))
        status = decided.status or observed.status
        delays = [_rest_seconds()]
        if _is_watched(decided, observed, status):
            delays.append(WATCHFUL_POLL_SECONDS)
        if decided.measurement is MeasurementStage.WAITING:
            delays.append(WAITING_POLL_SECONDS)
        if decided.moving or self._last.apply_errors:
            delays.append(quiet_seconds)
        now = datetime.now(UTC)
        # An attempt that is due and does not begin waits for something else, which wakes the task.
        delays.append(seconds_until_attempt(status.candidate, now) or inf)
        return min(delays)

    async def _report_invalid_spec(self, error: InvalidSpec) -> None:
        """Write the fault to the conditions and post an Event. The children stay as they are until it is corrected."""
        owner = error.owner
        status = invalid_spec_status(error.status, owner.generation, str(error), datetime.now(UTC))
        if status != error.status:
            log.warning("%s: the spec is invalid, nothing is changed until it is corrected: %s", owner.full_name, error)
            await write_status(self._api, owner, status)
        self._show(status)
        note = EventNote("InvalidSpec", str(error), warning=True, about_condition=True)
        self._events.post(note, owner)


def _is_watched(decided: Plan, observed: Observed, status: SpeculatorStatus) -> bool:
    """Whether the next step depends on something that no event shows."""
    silent_agent = any(pod.ready and pod.agent is None for pod in observed.pods)
    waits_for_turn = decided.upgrade is not None and decided.upgrade.stage is UpgradeStage.WAITING
    on_replica = observed.spec.validation.measure_on is MeasureOn.REPLICA
    needs_room = on_replica and status.candidate is not None and status.candidate.phase is CandidatePhase.VALIDATING
    return waits_for_turn or status.rollout.phase is not RolloutPhase.IDLE or silent_agent or needs_room


def _rest_seconds() -> float:
    return REST_POLL_SECONDS * random.uniform(1 - REST_JITTER, 1 + REST_JITTER)  # noqa: S311 - jitter


# observed time --------------------------------------------------------------------------------------------------------


MAX_GAP = timedelta(seconds=60)
"""Longer than one reconcile and the pause after it while a deadline runs. Shorter than any deadline that a user sets.

A speculator at rest pauses for longer. No deadline of a roll runs then, and one that begins afterwards begins in full.
"""


class ObservedTime:
    """Remembers the last observation that led to decisions. A restart forgets it, and deadlines then restart too."""

    def __init__(self) -> None:
        self._last: tuple[datetime, float] | None = None

    def has_gap(self, now: datetime, monotonic_seconds: float) -> bool:
        """Whether deadlines restart: the last observation is longer ago than :data:`MAX_GAP`, or the clock was set."""
        if self._last is None:
            return True
        wall, monotonic = now - self._last[0], timedelta(seconds=monotonic_seconds - self._last[1])
        return max(abs(wall), monotonic) > MAX_GAP

    def record(self, now: datetime, monotonic_seconds: float, *, decided: bool) -> None:
        """Remember an observation that was acted upon.

        ``decided`` is False when the store was out of reach, or had lost the records: then nothing was decided about
        versions, and nobody waited for the pods.
        """
        self._last = (now, monotonic_seconds) if decided else None
