"""One reconcile of one speculator: observe, plan, act.

Invariant: a reconciler may be lost at any time. Everything that the reconciler remembers between two reconciles is
observed again, only makes the next decision more careful, or is an Event that is still to be posted.
"""

from __future__ import annotations

import logging
import random
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import inf

from aurora_api.v1alpha1.status import CandidatePhase, RolloutPhase, SpeculatorStatus
from aurora_operator import metrics
from aurora_operator.act.actor import Actor, ExecutionResult
from aurora_operator.act.authority import Authority
from aurora_operator.act.contest import Claim
from aurora_operator.act.data_deletion import DataDeletion
from aurora_operator.act.event_recorder import EventRecorder
from aurora_operator.act.status_writer import write_status
from aurora_operator.act.unposted_notes import UnpostedNotes
from aurora_operator.children.metadata import has_finalizer
from aurora_operator.children.owner import Owner
from aurora_operator.errors import BeingDeleted, Conflict, InvalidSpec, NotFound
from aurora_operator.fleet import Fleet
from aurora_operator.io_pools import call_api
from aurora_operator.kubernetes_api import SPECULATOR, KubernetesApi, Object
from aurora_operator.metrics.speculator_figures import FIGURES
from aurora_operator.observe.cluster_cache import ClusterCache, SpeculatorKey
from aurora_operator.observe.observed import Observed
from aurora_operator.observe.observed_time import ObservedTime
from aurora_operator.observe.observer import Observer
from aurora_operator.observe.snapshot import Snapshot
from aurora_operator.observe.stored_resource import owner_of, status_of
from aurora_operator.operator_config import OperatorConfig
from aurora_operator.plan import EventNote, Plan, plan
from aurora_operator.plan.actions import CONDITION_PERIOD
from aurora_operator.plan.candidate.recalled_replica import seconds_until_loan
from aurora_operator.plan.candidate.validation import seconds_until_retry
from aurora_operator.plan.conditions.condition_builder import invalid_spec_status
from aurora_operator.plan.status_builder import differs_in_decisions
from aurora_operator.plan.upgrade.decision import UpgradeStage
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
"""Time until the next reconcile while the operator waits for something that no watch shows: a paused roll whose draft
live traffic still judges, a store or an agent that does not answer, a turn to restart after an upgrade, a first pod
whose creation is refused. In a roll it is also the longest time, because its deadlines
count only observed time (``observed_time.MAX_GAP``)."""
REST_POLL_SECONDS, REST_JITTER = 60.0, 0.25
"""Mean time until the next reconcile at rest, and the share by which it varies. The reconcile repairs what a missed
change would leave undone. It makes no API call. A read of the store that is due ends the rest earlier."""
AGENTS_AT_REST_SECONDS = 100.0
"""Minimum age of the agents' answers at rest before a reconcile asks the agents again.

At rest no decision needs the answers: an engine or agent that restarts changes its pod, and that change wakes the loop.
The answers feed the figures in the status, which are three minutes old at most. While a draft is judged or swapped,
the agents are asked in every reconcile.
"""


class Reconciler:
    """Reconciles one speculator."""

    def __init__(
        self,
        api: KubernetesApi,
        cache: ClusterCache,
        agents: AgentClient,
        config: OperatorConfig,
        fleet: Fleet,
        authority: Authority,
        speculator: SpeculatorKey,
    ) -> None:
        self._api, self._cache, self._config, self._fleet, self._authority = api, cache, config, fleet, authority
        self._key = speculator
        stored = cache.get(SPECULATOR.kind, *speculator)
        self._uid = "" if stored is None else stored["metadata"]["uid"]
        self._observer = Observer(api, cache, agents, config.stores, *speculator)
        self._actor = Actor(api, agents, authority)
        self._deletion = DataDeletion(api, cache, self._observer.store, authority.ensure_leading)
        self._events = EventRecorder(api)
        self._unposted = UnpostedNotes()
        self._fault_is_unposted = False
        """Whether the fault of an invalid spec is, or may be, in the status without its Event."""
        self._observed_time = ObservedTime()
        self._last = ExecutionResult()
        self._refusals_in_a_row = 0
        self._status_written_seconds = 0.0
        self._asked_seconds = -inf
        self._changed_seconds = time.monotonic()
        """When the decided status last changed in more than figures."""
        self._at_rest = False
        self._cache_is_behind = False
        self._unreported = False
        self._seen_generation = 0
        """The generation of the spec when the last reconcile began."""

    async def reconcile(self, *, woken: bool = True) -> float:
        """Reconcile once. Returns the seconds to wait before the next reconcile.

        Args:
            woken: something changed, as opposed to time having passed.

        Raises :class:`NotFound` when the speculator is gone, :class:`Conflict` or :class:`ObjectExists` when somebody
        else wrote first, :class:`OperatorError`, :class:`StoreError`.
        """
        stored = self._stored()
        if stored is not None:
            self._seen_generation = stored["metadata"]["generation"]
        if self._cache_is_behind:
            await self._observer.refresh()
            self._cache_is_behind = False
        try:
            return await self._reconcile(woken=woken)
        except Conflict:
            self._cache_is_behind = True
            raise

    async def _reconcile(self, *, woken: bool) -> float:
        started_seconds = time.monotonic()
        stored = self._stored()
        if stored is None:
            raise NotFound(f"{self._key[0]}/{self._key[1]} is gone", 404)
        # The claim comes before the observation, which asks agents and writes to the store: another installation may
        # act on this speculator.
        claim = await self._claim(owner_of(stored), status_of(stored))
        if claim is Claim.TAKE:
            return 0.0  # the status was written, so read it first
        if claim is not Claim.HOLD:
            return self._authority.wait_seconds(*self._key)
        self._authority.answer(stored, acts=True)
        ask_agents = woken or not self._at_rest or started_seconds - self._asked_seconds >= AGENTS_AT_REST_SECONDS
        self._at_rest = False
        try:
            snapshot = await self._observer.observe(ask_agents=ask_agents)
        except BeingDeleted as being_deleted:
            self._fleet.report_unusable(self._key)
            return await self._delete_data(being_deleted.stored)
        except InvalidSpec as error:
            self._fleet.report_unusable(self._key)
            self._show(await self._report_invalid_spec(error))
            return _rest_seconds()
        if woken:
            self._actor.try_refused_writes_now()
        if ask_agents:
            self._asked_seconds = started_seconds
        FIGURES.begin(*self._key)
        decided, observed = await self._decide_and_act(snapshot)
        metrics.record_observation(observed, time.monotonic() - started_seconds)
        FIGURES.record_observation(observed, datetime.now(UTC))
        delay_seconds = self._delay_seconds(decided, observed)
        self._at_rest = delay_seconds > WATCHFUL_POLL_SECONDS
        return min(delay_seconds, max(BUSY_POLL_SECONDS, self._observer.seconds_until_due))

    async def _claim(self, owner: Owner, status: SpeculatorStatus) -> Claim:
        claim = await self._authority.claim(owner, status)
        if claim in (Claim.WAIT, Claim.YIELD):
            self._fleet.report_unusable(self._key)
            metrics.forget_observations(*self._key)
            FIGURES.forget(*self._key)
        return claim

    async def _decide_and_act(self, snapshot: Snapshot) -> tuple[Plan, Observed]:
        now, monotonic_seconds = datetime.now(UTC), time.monotonic()
        before = self._last
        observed = replace(
            snapshot.observed,
            observation_gap=self._observed_time.has_gap(now, monotonic_seconds),
            fencing_epoch=before.fencing_epoch,
            finalizer_refused=before.finalizer_refused,
            apply_errors=before.apply_errors,
            refused_job=before.refused_job,
            name_taken=before.name_taken,
            fleet=self._fleet.view(self._key),
        )
        status_age = timedelta(seconds=min(monotonic_seconds - self._status_written_seconds, 1e6))
        decided = self._unposted.complete(plan(observed, self._config, now, status_age), observed.status)
        if decided.advance is not None or _decides(decided, observed):
            self._changed_seconds = monotonic_seconds
        # No await since the fleet was viewed, so no other speculator has taken the same turn.
        if decided.upgrade is not None:
            self._fleet.report(self._key, decided.upgrade)
        elif observed.spec_fault:
            self._fleet.report_unusable(self._key)
        # A plan that only sets the finalizer decides nothing about the upgrade: the speculator keeps its turn.
        self._last = await self._actor.act(decided, snapshot, self._observer.store)
        self._refusals_in_a_row = self._refusals_in_a_row + 1 if self._last.apply_errors else 0
        if decided.finalizer is None or self._last.finalizer_refused:  # else the plan ended at the finalizer
            FIGURES.count_decisions(*self._key, decided.decisions)
            self._unposted.clear(decided)
        if self._last.fencing_epoch:
            self._observer.store.read_everything_next()
        self._observed_time.record(now, monotonic_seconds, decided=decided.decides_versions)
        if self._last.wrote_status:
            self._status_written_seconds = time.monotonic()
        # The next reconcile reports in the status what this one could not apply.
        self._unreported = self._last.name_taken != before.name_taken
        return decided, observed

    def _delay_seconds(self, decided: Plan, observed: Observed) -> float:
        """How long to wait unless something changes."""
        if self._unreported or (decided.finalizer is not None and not self._last.finalizer_refused):
            return BUSY_POLL_SECONDS
        if not observed.store.ok:
            # Nothing is decided about versions until the store answers, so nothing is under way.
            return WATCHFUL_POLL_SECONDS
        status = decided.status or observed.status
        serves_nothing = observed.store.channel is None or not observed.pods
        start_is_refused = serves_nothing and self._refusals_in_a_row > 0
        silent_agent = any(pod.ready and pod.agent is None for pod in observed.pods)
        waits_for_turn = decided.upgrade is not None and decided.upgrade.stage is UpgradeStage.WAITING
        judged = status.rollout.phase is not RolloutPhase.IDLE
        watchful = waits_for_turn or judged or silent_agent
        if decided.moving:
            watchful = watchful or start_is_refused or _agents_are_asked(decided, observed)
        longest = WATCHFUL_POLL_SECONDS if watchful else _rest_seconds()
        if status.candidate is not None and status.candidate.phase is CandidatePhase.FAILED:
            retry_seconds = seconds_until_retry(status.candidate, datetime.now(UTC))
            # A retry that is due and does not begin waits for something else, which wakes the loop.
            longest = min(longest, max(BUSY_POLL_SECONDS, retry_seconds or inf))
        loan_seconds = seconds_until_loan(status.candidate, datetime.now(UTC))
        longest = min(longest, max(BUSY_POLL_SECONDS, loan_seconds or inf))
        if decided.moving and not start_is_refused:
            quiet_seconds = time.monotonic() - self._changed_seconds
            longest = min(longest, max(BUSY_POLL_SECONDS, QUIET_SHARE * quiet_seconds))
        return min(longest, _backoff_seconds(self._refusals_in_a_row), max(BUSY_POLL_SECONDS, self._last.retry_seconds))

    async def _delete_data(self, stored: Object) -> float:
        """The next step for a resource that is being deleted. Raises :class:`NotFound` when we do not hold it."""
        self._show_deletion(stored)
        return await self._deletion.advance(stored)

    async def _report_invalid_spec(self, error: InvalidSpec) -> SpeculatorStatus:
        """Write the fault to the conditions and post an Event, once. The children stay as they are until then.

        Returns the status that names the fault.
        """
        owner = error.owner
        status = invalid_spec_status(error.status, owner.generation, str(error), datetime.now(UTC))
        if status != error.status:
            log.warning("%s: the spec is invalid, nothing is changed until it is corrected: %s", owner.full_name, error)
            self._fault_is_unposted = True
            await call_api(write_status, self._api, owner, status)
        if self._fault_is_unposted:
            note = EventNote("InvalidSpec", str(error), warning=True, period_per_reason=CONDITION_PERIOD)
            await self._events.post(note, owner)
            self._fault_is_unposted = False
        return status

    def has_new_spec(self) -> bool:
        """Whether somebody changed the spec, or asked for the deletion, since the last reconcile began."""
        stored = self._stored()
        return stored is not None and stored["metadata"]["generation"] != self._seen_generation

    def show_stored_status(self) -> None:
        """Let the metrics say what the status says, before anything is observed.

        Why: a restart of the operator must not end an alert that is still true, and the first reconcile may fail.
        """
        stored = self._stored()
        if stored is None:
            return
        status = status_of(stored)
        if status.operator is not None and status.operator.installation != self._config.installation:
            return  # the installation that acts shows it
        if "deletionTimestamp" in stored["metadata"]:
            self._show_deletion(stored)
        else:
            self._show(status)

    def _show(self, status: SpeculatorStatus) -> None:
        """Take the metrics from a status alone."""
        metrics.record_ready(*self._key, status)
        FIGURES.record_status(*self._key, status, datetime.now(UTC))

    def _show_deletion(self, stored: Object) -> None:
        """Take away what was observed, and show since when the speculator is being deleted."""
        metrics.forget_observations(*self._key)
        FIGURES.record_deletion(*self._key, datetime.fromisoformat(stored["metadata"]["deletionTimestamp"]))

    def is_gone(self) -> bool:
        """Whether the cache says that the speculator is gone, or is being deleted without our finalizer.

        A speculator that was created again under the same name is another one, with keys of its own. It gets another
        reconciler.
        """
        stored = self._stored()
        return stored is None or ("deletionTimestamp" in stored["metadata"] and not has_finalizer(stored))

    def _stored(self) -> Object | None:
        """The custom resource in the cache, unless another speculator has its name by now."""
        stored = self._cache.get(SPECULATOR.kind, *self._key)
        return stored if stored is not None and stored["metadata"]["uid"] == self._uid else None


def _decides(decided: Plan, observed: Observed) -> bool:
    """Whether the plan changes the status in more than figures."""
    return decided.status is not None and differs_in_decisions(observed.status, decided.status)


def _agents_are_asked(decided: Plan, observed: Observed) -> bool:
    """Whether a pod swaps or is lent to a measurement. Only its agent tells how far it is."""
    candidate = (decided.status or observed.status).candidate
    lent = candidate is not None and candidate.pod is not None
    busy = any(pod.swapping or pod.measurement is not None for pod in observed.pods)
    return busy or lent or bool(decided.swaps or decided.leases)


def _backoff_seconds(refusals_in_a_row: int) -> float:
    """Seconds until the next reconcile after a refused write: twice as long after each one with a refusal.

    ``act.refused_writes`` says in which of these reconciles the write is tried again.
    """
    return BUSY_POLL_SECONDS * 2.0 ** min(refusals_in_a_row - 1, 10) if refusals_in_a_row else inf


def _rest_seconds() -> float:
    return REST_POLL_SECONDS * random.uniform(1 - REST_JITTER, 1 + REST_JITTER)  # noqa: S311 - jitter
