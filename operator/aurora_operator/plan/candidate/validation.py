"""Decides which candidate is measured, and what follows from its measurement. Pure.

::

    registered --> Validating
    Validating --> Validated      passed: may be rolled out and become active
    Validating --> Rejected       failed a bar: never rolled out
    Validating --> Validating     undecided: measured once more
    Validating --> Inconclusive   undecided again, or a newer version waits: never rolled out
    Validating --> Failed         could not be measured
    Failed     --> Validating     after a growing delay, or at once if a person asks for the attempt
    Validated  --> Rejected       failed in its roll

The newest version replaces a candidate that is decided, and one that waits. A candidate waits

- in Failed, for its next attempt;
- in Validating, for a replica, or for another measurement because the active version changed;
- in Validated, for its roll, while rolls are paused or pods are missing.

A candidate that is being measured is not replaced. Its validator ends an undecided measurement early when a newer
version waits (``aurora_protocol.gate.budget``). Nor is a candidate replaced whose Job is suspended: the Job would lose
its place in the queue, and the candidates of a trainer that publishes often would never be measured.

A version that passed can still be rolled out (``waiting_version``) until a newer one passes too. Otherwise a trainer
that publishes faster than candidates are measured would keep every version from the pods. A delayed roll therefore
starts with the version that passed as soon as rolls may start, and does not wait for the next verdict. A version whose
roll ended without blame can be rolled out again once the newer one is decided, or after :data:`MAX_RETRY_DELAY`.

No measurement begins before enough held-out requests have come (``held_out_supply.py``), nor while a version is pinned
or no pod is ready. Until then the candidate waits in Validating, without a Job and without ``since``. A newer version
may take its place.

With ``validation.measureOn: Replica``, the Job of a candidate in Validating waits until a replica is lent
(``plan/lending.py``). When the number of pods changes or another pod fails, the operator needs the replica back.
The attempt then ends, which is no failure, and the next one waits for a replica (``recalled_replica.py``).

Invariants: one Job at a time. A candidate is measured against one active version at most ``MAX_MEASUREMENTS`` times
(``undecided_measurement.py``). A measurement that could not be made says nothing about the candidate, even when the API
server refused the Job. Such a measurement is repeated after growing delays, or at once if the Job was suspended before
its pod could start. It never counts as a verdict. A candidate is rolled out only with the evidence of
:meth:`StoreView.promotion_evidence`, which compares it with the version that is active *now*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from aurora_api.v1alpha1.status import CandidatePhase, CandidateStatus, RolloutPhase, RolloutStatus
from aurora_operator.children.metadata import job_name
from aurora_operator.observe.observed import JobView, RefusedJob, StoreView
from aurora_operator.plan.candidate.measurement_job import failure, with_waiting_note
from aurora_operator.plan.candidate.recalled_replica import delayed_message
from aurora_operator.plan.candidate.undecided_measurement import gave_way, reason_to_end
from aurora_operator.plan.formatting import ratio_text, source_text
from aurora_operator.plan.lending import WAITING_FOR_REPLICA, Recall
from aurora_operator.plan.rest import MEASURING
from aurora_protocol.draft_records import Channel
from aurora_protocol.evidence_records import Evidence, VerdictKind
from aurora_store import Keys

MIN_RETRY_DELAY, MAX_RETRY_DELAY = timedelta(seconds=30), timedelta(minutes=30)
"""Delay before a failed measurement is repeated: starts at the minimum and doubles up to the maximum."""
DECIDED = frozenset({CandidatePhase.REJECTED, CandidatePhase.INCONCLUSIVE})
NOT_NOW = "waiting: nothing is measured while a version is pinned, no pod is ready, or the spec is invalid"


@dataclass(frozen=True)
class ValidationInputs:
    """Everything that the decision about the candidate depends on."""

    now: datetime
    name: str
    """Name of the speculator."""
    store: StoreView
    """Must be readable and hold a channel."""
    candidate: CandidateStatus | None
    rejected: frozenset[int]
    rollout: RolloutStatus
    jobs: Sequence[JobView]
    refused_job: RefusedJob | None
    concurrency: int
    """The concurrency at which an improvement must show."""
    may_measure: bool = True
    """At least one pod is ready, no version is pinned, the spec can be used, and the speculator is not at rest."""
    at_rest: bool = False
    """The candidate's Job is being deleted (``plan/rest.py``)."""
    abort: int | None = None
    """A person rejects this version."""
    measure: tuple[int, int] | None = None
    """(version, attempt): a person asks for this measurement without a delay."""
    shortage: str = ""
    """Why there are too few held-out requests to measure; empty when there are enough."""
    on_replica: bool = False
    """Candidates are measured on a replica."""
    replica_is_back: bool = False
    """Candidates are measured on a replica, and none is withdrawn now."""
    recall: Recall | None = None
    """Why the replica that the candidate is measured on has to serve again. None when it can be spared."""

    @property
    def obstacle(self) -> str:
        """Why no measurement may begin now; empty when one may."""
        return self.shortage or ("" if self.may_measure else NOT_NOW)

    @property
    def channel(self) -> Channel:
        assert self.store.channel is not None, "the caller waits for the channel"
        return self.store.channel


@dataclass(frozen=True)
class ValidationDecision:
    """The consequences for the candidate and for the rollout."""

    candidate: CandidateStatus | None
    next_version: int | None = None
    """The version that may be rolled out now."""
    reject: int | None = None
    """Never roll out this version."""
    event: str = ""
    """A reason of ``plan/events.py``; empty: nothing to report."""
    message: str = ""
    """The event's message, where the event is not about the candidate."""
    may_begin: bool = True
    """During a roll: whether the candidate's measurement could begin if no roll were under way."""

    @property
    def waits(self) -> bool:
        """Whether the candidate's measurement may not begin yet."""
        return self.candidate is not None and self.candidate.waits_to_begin

    @property
    def job(self) -> tuple[int, int] | None:
        """(version, attempt) of the Job that should exist now."""
        if self.waits or self.candidate is None or self.candidate.phase is not CandidatePhase.VALIDATING:
            return None
        return self.candidate.version, self.candidate.attempt


def decide(inputs: ValidationInputs) -> ValidationDecision:
    """The candidate's next state, and the version that may be rolled out meanwhile."""
    candidate = _restored(inputs)
    if inputs.rollout.phase is not RolloutPhase.IDLE:
        return ValidationDecision(candidate, may_begin=not inputs.obstacle)
    waiting = None if candidate is None else candidate.waiting_version
    if candidate is not None and waiting is not None and waiting == inputs.abort:
        alone = candidate.model_copy(update={"waiting_version": None})
        message = f"version {waiting} was aborted by a person"
        return ValidationDecision(alone, reject=waiting, event="Rejected", message=message)
    decision = _next_state(inputs, candidate)
    if decision.next_version is not None:
        return decision
    return replace(decision, next_version=_waiting_version(inputs, decision.candidate))


def _restored(inputs: ValidationInputs) -> CandidateStatus | None:
    """The stored candidate, corrected where the spec, the store or the rollout disagrees."""
    candidate = inputs.candidate
    if candidate is None or candidate.version <= inputs.channel.active:
        return None
    if candidate.phase not in DECIDED and candidate.version not in inputs.store.registrations:
        return None  # its registration was deleted, so it can be neither measured nor rolled out
    if not inputs.on_replica:
        candidate = _without_replica(candidate)
    waiting = candidate.waiting_version
    if waiting is not None and (waiting in inputs.rejected or not inputs.store.promotion_evidence(waiting)):
        candidate = candidate.model_copy(update={"waiting_version": None})
    if candidate.version in inputs.rejected and candidate.phase not in DECIDED:
        rolled = inputs.rollout.version == candidate.version
        update = {"phase": CandidatePhase.REJECTED, "message": inputs.rollout.message if rolled else "rejected before"}
        candidate = candidate.model_copy(update=update)
    return candidate


def _without_replica(candidate: CandidateStatus) -> CandidateStatus:
    """Remove the replica's name and message. ``validation.measureOn`` may have changed from Replica to Job."""
    names_replica = candidate.pod is not None or candidate.message.startswith(WAITING_FOR_REPLICA)
    if candidate.phase is not CandidatePhase.VALIDATING or not names_replica:
        return candidate
    return candidate.model_copy(update={"pod": None, "message": MEASURING})


def _waiting_version(inputs: ValidationInputs, candidate: CandidateStatus | None) -> int | None:
    """The version that passed before ``candidate`` took its place, if that version may be rolled out now."""
    if candidate is None:
        return None
    ended = inputs.rollout.progressed
    ended_lately = ended is not None and timedelta(0) <= inputs.now - ended < MAX_RETRY_DELAY
    if candidate.waiting_version == inputs.rollout.version and candidate.phase not in DECIDED and ended_lately:
        return None
    return candidate.waiting_version


def _newer_version(inputs: ValidationInputs, version: int) -> int | None:
    """The newest version, if it came after ``version`` and its measurement may begin."""
    newest = inputs.store.newest
    fits = newest is not None and newest > version and newest not in inputs.rejected and inputs.may_measure
    return newest if fits else None


def _next_state(inputs: ValidationInputs, candidate: CandidateStatus | None) -> ValidationDecision:
    if candidate is None:
        newer = _newer_version(inputs, inputs.channel.active)
        return ValidationDecision(None) if newer is None else _begin(inputs, newer)
    if candidate.version == inputs.abort and candidate.phase not in DECIDED:
        message = f"version {candidate.version} was aborted by a person"
        return _end(candidate.model_copy(update={"message": message}), CandidatePhase.REJECTED, "Rejected")
    newer = _newer_version(inputs, candidate.version)
    if candidate.phase is CandidatePhase.VALIDATING:
        if newer is not None and _measurement_not_begun(inputs, candidate):
            return _begin(inputs, newer, candidate)
        return _after_attempt(inputs, candidate)
    if candidate.phase is CandidatePhase.VALIDATED:
        return _validated(inputs, candidate, newer)
    if newer is not None:
        return _begin(inputs, newer, candidate)
    if candidate.phase is CandidatePhase.FAILED and inputs.may_measure and _retry_is_due(inputs, candidate):
        return _next_attempt(inputs, candidate)
    return ValidationDecision(candidate)


def _validated(inputs: ValidationInputs, candidate: CandidateStatus, newer: int | None) -> ValidationDecision:
    """The next state of a candidate that passed and was not rolled out yet."""
    promotable = inputs.store.promotion_evidence(candidate.version) is not None
    if newer is not None:
        waiting = candidate.version if promotable else None
        return _begin(inputs, newer, candidate.model_copy(update={"waiting_version": waiting}))
    if promotable:
        return ValidationDecision(candidate, next_version=candidate.version)
    return _begin(inputs, candidate.version) if inputs.may_measure else ValidationDecision(candidate)


def _measurement_not_begun(inputs: ValidationInputs, candidate: CandidateStatus) -> bool:
    """No replica is on its way, and neither Job nor evidence exist."""
    begun = {(job.version, job.attempt) for job in inputs.jobs}
    begun |= {(evidence.version, evidence.attempt) for evidence in inputs.store.evidence}
    return candidate.pod is None and (candidate.version, candidate.attempt) not in begun


def _retry_is_due(inputs: ValidationInputs, candidate: CandidateStatus) -> bool:
    if inputs.measure == (candidate.version, candidate.attempt + 1):
        return True
    return not seconds_until_retry(candidate, inputs.now)


def seconds_until_retry(candidate: CandidateStatus, now: datetime) -> float:
    """Seconds until ``candidate``, whose last attempt failed, may be measured again."""
    delay = _retry_delay(candidate)
    waited = delay if candidate.since is None else now - candidate.since
    # A time in the future was written before the clock was set back: the retry is due, because the wait is not known.
    return (delay - waited).total_seconds() if timedelta(0) <= waited < delay else 0.0


def _retry_delay(candidate: CandidateStatus) -> timedelta:
    """How long to wait after the present attempt, which failed. Attempts whose replica was recalled do not count."""
    attempts = max(candidate.attempt - candidate.recalled_attempts, 1)
    return min(MAX_RETRY_DELAY, MIN_RETRY_DELAY * (1 << min(attempts - 1, 10)))


def _begin(inputs: ValidationInputs, version: int, former: CandidateStatus | None = None) -> ValidationDecision:
    """Make ``version`` the candidate in place of ``former``, whose waiting version goes on waiting.

    After a lost status the store may hold evidence of ``version`` already. Then the evidence decides, without a Job.
    """
    evidence = inputs.store.evidence_of(version)
    registration = inputs.store.registrations.get(version)
    attempt = evidence[-1].attempt if evidence else 1
    candidate = CandidateStatus(
        version=version,
        digest=registration.digest if registration else "",
        phase=CandidatePhase.VALIDATING,
        attempt=attempt,
        job=job_name(inputs.name, version, attempt),
        since=inputs.now,
        waiting_version=former.waiting_version if former else None,
        took_over_from=_took_over_from(inputs, former) if former else None,
        message=MEASURING,
    )
    return _after_attempt(inputs, candidate) if evidence else _begin_attempt(inputs, candidate)


def _begin_attempt(inputs: ValidationInputs, candidate: CandidateStatus) -> ValidationDecision:
    """Measure ``candidate``, or let it wait."""
    if inputs.obstacle:
        return ValidationDecision(candidate.model_copy(update={"message": inputs.obstacle, "since": None}))
    return ValidationDecision(candidate.model_copy(update={"since": inputs.now}), event="ValidationStarted")


def _took_over_from(inputs: ValidationInputs, former: CandidateStatus) -> int | None:
    """The version whose measurement gave way to the candidate after ``former``, if one did."""
    if former.phase not in DECIDED:
        return former.took_over_from  # it was not measured to its end, so nothing was decided since
    evidence = inputs.store.evidence_of(former.version)
    return former.version if evidence and gave_way(evidence[-1]) else None


def _after_attempt(inputs: ValidationInputs, candidate: CandidateStatus) -> ValidationDecision:
    """The next state of a candidate in Validating, by the evidence or the failure of its present attempt."""
    attempts = inputs.store.evidence_of(candidate.version)
    evidence = next((e for e in attempts if e.attempt == candidate.attempt), None)
    if evidence is not None:
        return _by_verdict(inputs, _with_figures(inputs, candidate, evidence), evidence)
    job = next((j for j in inputs.jobs if (j.version, j.attempt) == (candidate.version, candidate.attempt)), None)
    if job is not None and job.never_started and candidate.pod is None:
        return _next_attempt(inputs, candidate.model_copy(update={"message": f"measuring again: {job.message}"}))
    if inputs.recall is not None and _is_under_way(inputs, inputs.recall, job):
        return _recalled(inputs, candidate, inputs.recall)
    if reason := failure(candidate, job, inputs.refused_job, replica_is_back=inputs.replica_is_back):
        return _failed(inputs, candidate, reason)
    has_place = not inputs.at_rest and (job is not None or candidate.pod is not None)
    if candidate.since is None and has_place:  # the Job was created just before the status was written
        begun = candidate.model_copy(update={"message": MEASURING, "since": inputs.now})
        return ValidationDecision(begun, event="ValidationStarted")
    if candidate.since is None or (inputs.shortage and not has_place):
        return _begin_attempt(inputs, candidate.model_copy(update={"message": MEASURING}))
    return ValidationDecision(with_waiting_note(candidate, job))


def _is_under_way(inputs: ValidationInputs, recall: Recall, job: JobView | None) -> bool:
    """Whether the attempt has a Job that runs, or a replica that has left the Service for it."""
    return not inputs.at_rest and (recall.withdrawn if job is None else not job.finished)


def _with_figures(inputs: ValidationInputs, candidate: CandidateStatus, evidence: Evidence) -> CandidateStatus:
    figures = {
        "evidence": Keys.evidence(evidence.version, evidence.attempt),
        "speedup": ratio_text(evidence, "candidate", "off", inputs.concurrency),
        "gain": ratio_text(evidence, "candidate", "active", inputs.concurrency),
        "speedup_source": source_text(evidence, inputs.concurrency),
        "message": "; ".join(filter(None, (*evidence.verdict.reasons, evidence.end_message))),
    }
    return candidate.model_copy(update=figures)


def _by_verdict(inputs: ValidationInputs, candidate: CandidateStatus, evidence: Evidence) -> ValidationDecision:
    passed = evidence.verdict.kind is VerdictKind.PASS
    if passed and inputs.store.promotion_evidence(candidate.version) is evidence:
        validated = candidate.model_copy(update={"phase": CandidatePhase.VALIDATED, "waiting_version": None})
        return ValidationDecision(validated, next_version=candidate.version, event="Validated")
    if evidence.verdict.kind is VerdictKind.REJECT:
        return _end(candidate, CandidatePhase.REJECTED, "Rejected")
    reason, newer = candidate.message, _newer_version(inputs, candidate.version)
    if passed:
        # The evidence compares with a version that is no longer active, so it proves nothing about the active one.
        if newer is not None:
            return _begin(inputs, newer, candidate)
        reason = "the measurement compared with a version that is no longer active"
    against_active = [
        e for e in inputs.store.evidence_of(candidate.version) if e.active_version == inputs.channel.active
    ]
    if why := reason_to_end(evidence, len(against_active), newer):
        ended = candidate.model_copy(update={"message": f"{reason}; {why}"})
        return _end(ended, CandidatePhase.INCONCLUSIVE, "Inconclusive")
    return _next_attempt(inputs, candidate.model_copy(update={"message": f"measuring again: {reason}"}))


def _failed(inputs: ValidationInputs, candidate: CandidateStatus, reason: str) -> ValidationDecision:
    delay_seconds = int(_retry_delay(candidate).total_seconds())
    again = f"the next attempt begins in {delay_seconds} s at the earliest"
    message = f"attempt {candidate.attempt} failed: {reason}; {again}"
    update = {"phase": CandidatePhase.FAILED, "since": inputs.now, "message": message, "pod": None}
    return ValidationDecision(candidate.model_copy(update=update), event="ValidationFailed")


def _recalled(inputs: ValidationInputs, candidate: CandidateStatus, recall: Recall) -> ValidationDecision:
    """Measure ``candidate`` again once a replica can be spared, after a delay if pods are missing. Nothing failed."""
    update = {"since": inputs.now, "recalled_attempts": candidate.recalled_attempts + 1}
    again = _with_next_attempt(inputs, candidate).model_copy(update=update)
    if recall.pods_missing:
        again = again.model_copy(update={"message": delayed_message(again, recall.reason)})
    return ValidationDecision(again, event="ReplicaRecalled", message=recall.reason)


def _next_attempt(inputs: ValidationInputs, candidate: CandidateStatus) -> ValidationDecision:
    """Measure ``candidate`` again, in another Job, and perhaps on another replica."""
    return _begin_attempt(inputs, _with_next_attempt(inputs, candidate))


def _with_next_attempt(inputs: ValidationInputs, candidate: CandidateStatus) -> CandidateStatus:
    attempt = candidate.attempt + 1
    job = job_name(inputs.name, candidate.version, attempt)
    update = {"phase": CandidatePhase.VALIDATING, "attempt": attempt, "job": job, "pod": None}
    return candidate.model_copy(update=update)


def _end(candidate: CandidateStatus, phase: CandidatePhase, event: str) -> ValidationDecision:
    ended = candidate.model_copy(update={"phase": phase})
    return ValidationDecision(ended, reject=candidate.version, event=event)
