"""Decides which candidate is measured, and what follows from its measurement. Pure.

::

    registered --> Validating
    Validating --> Validated      passed: may be rolled out and become active
    Validating --> Rejected       failed a bar: never rolled out
    Validating --> Inconclusive   undecided: never rolled out
    Validating --> Failed         could not be measured
    Failed     --> Validating     after a growing delay
    Validated  --> Rejected       failed in its roll

There is at most one candidate. The newest version replaces a candidate that is decided, one that waits in Failed or
Validating, and one in Validated whose roll ended without blame. Otherwise a candidate that passed waits for its roll,
and nothing newer is measured: it would be compared with a version that is about to be replaced.

A candidate that is being measured is not replaced. Its validator ends an undecided measurement early when a newer
version waits (``aurora_runtime.validation.rounds``). Nor is a candidate replaced whose Job is suspended by a
queue or a person: the Job would lose its place. A suspended Job has not failed, however long it waits, and holds
no replica. If its replica is gone when it is resumed, the attempt fails.

A candidate that may not be measured yet waits in Validating, without a Job and without ``since``. So does one while
another speculator of its namespace measures: measurements may take all GPUs of a team's quota otherwise. With
``validation.measureOn: Replica``, the Job waits until a replica can be lent (``plan/lending.py``). When the replica has
to serve again, the attempt fails, and the next one waits: the loan itself may have overloaded the other pods.

Invariants: one Job at a time. A candidate is measured once against one active version. A measurement that could not be
made says nothing about the candidate, even when the API server refused the Job. A candidate is rolled out only with the
evidence of :meth:`StoreView.promotion_evidence`, which compares it with the version that is active *now*.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from aurora_api.v1alpha1.status import AttemptReason, CandidatePhase, CandidateStatus, RolloutPhase, RolloutStatus
from aurora_operator.children.metadata import job_name
from aurora_operator.observe.observed import JobView, Observed, StoreView
from aurora_operator.plan import lending
from aurora_operator.plan.figures import ratio_text
from aurora_protocol.evidence_records import Evidence, VerdictKind

MIN_RETRY_DELAY, MAX_RETRY_DELAY = timedelta(seconds=30), timedelta(minutes=10)
"""Delay before the next attempt: starts at the minimum and doubles with each attempt up to the maximum."""
NODE_WAIT = timedelta(minutes=10)
"""How long the Job's pod may wait for a node. The cluster autoscaler is told to bring none (``validation_job``)."""
DECIDED = frozenset({CandidatePhase.REJECTED, CandidatePhase.INCONCLUSIVE})
MEASURING = "measuring on the real engine"
NOT_NOW = "waiting: nothing is measured while a version is pinned, no pod is ready, or the spec is invalid"
_WHY_AGAIN: Final = {
    AttemptReason.ACTIVE_CHANGED: "the last measurement compared with a version that is no longer active",
    AttemptReason.FAILED: "the last attempt failed",
}


@dataclass(frozen=True)
class ValidationInputs:
    """Everything that the decision about the candidate depends on."""

    observed: Observed
    rejected: frozenset[int]
    """Versions newer than the active one that are never rolled out."""
    now: datetime

    @property
    def store(self) -> StoreView:
        return self.observed.store

    @property
    def active(self) -> int:
        """The channel's active version."""
        assert self.store.channel is not None, "called only while there is a channel"
        return self.store.channel.active

    @property
    def rollout(self) -> RolloutStatus:
        return self.observed.status.rollout

    @property
    def may_measure(self) -> bool:
        """At least one pod is ready, no version is pinned, and the spec can be used."""
        ready = any(view.ready and view.agent and view.agent.engine_ready for view in self.observed.pods)
        return ready and self.observed.spec.rollout.pin is None and not self.observed.spec_fault

    @property
    def obstacle(self) -> str:
        """Why no measurement may begin now; empty when one may."""
        return shortage(self.observed, self.now) or ("" if self.may_measure else NOT_NOW) or self._turn

    @property
    def lacks_turn_only(self) -> bool:
        """Whether the measurement could begin, if no other speculator of the namespace measured."""
        return self.obstacle == self._turn != ""

    @property
    def _turn(self) -> str:
        first = self.observed.fleet.measured_first
        return f"waiting for its turn: {first} is measured first" if first else ""

    def job_of(self, candidate: CandidateStatus) -> JobView | None:
        """The Job of the present attempt, if it exists."""
        attempt = (candidate.version, candidate.attempt)
        return next((job for job in self.observed.jobs if (job.version, job.attempt) == attempt), None)


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
        return ValidationDecision(candidate)
    decision = _next_state(inputs, candidate)
    return replace(decision, candidate=_with_activity(inputs, decision.candidate))


def _restored(inputs: ValidationInputs) -> CandidateStatus | None:
    """The stored candidate, corrected where the spec, the store or the rollout disagrees."""
    candidate = inputs.observed.status.candidate
    if candidate is None or candidate.version <= inputs.active:
        return None
    if candidate.phase not in DECIDED and candidate.version not in inputs.store.registrations:
        return None  # its registration was deleted, so it can be neither measured nor rolled out
    if candidate.phase is CandidatePhase.VALIDATING:
        pod = lending.lent_pod(inputs.observed, candidate, inputs.job_of(candidate))
        candidate = candidate.model_copy(update={"pod": pod})
    if candidate.version in inputs.rejected and candidate.phase not in DECIDED:
        rolled = inputs.rollout.version == candidate.version
        update = {"phase": CandidatePhase.REJECTED, "message": inputs.rollout.message if rolled else "rejected before"}
        candidate = candidate.model_copy(update=update)
    return candidate


def _next_state(inputs: ValidationInputs, candidate: CandidateStatus | None) -> ValidationDecision:
    if candidate is None:
        newer = _newer_version(inputs, inputs.active)
        return ValidationDecision(None) if newer is None else _begin(inputs, newer)
    if candidate.version == inputs.observed.abort and candidate.phase not in DECIDED:
        message = f"version {candidate.version} was aborted by a person"
        return _end(candidate, CandidatePhase.REJECTED, "Rejected", message)
    newer = _newer_version(inputs, candidate.version)
    if candidate.phase is CandidatePhase.VALIDATING:
        if newer is not None and _measurement_not_begun(inputs, candidate):
            return _begin(inputs, newer)
        return _after_attempt(inputs, candidate)
    if candidate.phase is CandidatePhase.VALIDATED:
        return _validated(inputs, candidate, newer)
    if newer is not None:
        return _begin(inputs, newer)
    is_due = not seconds_until_attempt(candidate, inputs.now)
    if candidate.phase is CandidatePhase.FAILED and inputs.may_measure and is_due:
        return _begin_attempt(inputs, _next_attempt(inputs, candidate, AttemptReason.FAILED))
    return ValidationDecision(candidate)


def _newer_version(inputs: ValidationInputs, version: int) -> int | None:
    """The newest version, if it came after ``version`` and its measurement may begin."""
    newest = inputs.store.newest
    fits = newest is not None and newest > version and newest not in inputs.rejected and inputs.may_measure
    return newest if fits else None


def _validated(inputs: ValidationInputs, candidate: CandidateStatus, newer: int | None) -> ValidationDecision:
    """The next state of a candidate that passed, and was not rolled out or whose roll ended without blame."""
    promotable = inputs.store.promotion_evidence(candidate.version) is not None
    was_rolled = inputs.rollout.version == candidate.version
    if newer is not None and (was_rolled or not promotable):
        return _begin(inputs, newer)
    if promotable:
        return ValidationDecision(candidate, next_version=candidate.version)
    return _begin(inputs, candidate.version) if inputs.may_measure else ValidationDecision(candidate)


def _measurement_not_begun(inputs: ValidationInputs, candidate: CandidateStatus) -> bool:
    """Neither Job nor evidence exist."""
    measured = any(proof.attempt == candidate.attempt for proof in inputs.store.evidence_of(candidate.version))
    return inputs.job_of(candidate) is None and not measured


# attempts ------------------------------------------------------------------------------------------------------------


def _begin(inputs: ValidationInputs, version: int) -> ValidationDecision:
    """Make ``version`` the candidate.

    After a lost status the store may hold evidence of ``version`` already. Then the evidence decides, without a Job.
    """
    evidence = inputs.store.evidence_of(version)
    attempt = evidence[-1].attempt if evidence else 1
    candidate = CandidateStatus(
        version=version,
        phase=CandidatePhase.VALIDATING,
        attempt=attempt,
        job=job_name(inputs.observed.owner.name, version, attempt),
        since=inputs.now,
    )
    return _after_attempt(inputs, candidate) if evidence else _begin_attempt(inputs, candidate)


def _begin_attempt(inputs: ValidationInputs, candidate: CandidateStatus) -> ValidationDecision:
    """Measure ``candidate``, or let it wait."""
    if inputs.obstacle:
        return ValidationDecision(candidate.model_copy(update={"since": None}))
    return ValidationDecision(candidate.model_copy(update={"since": inputs.now}), event="ValidationStarted")


def _next_attempt(inputs: ValidationInputs, candidate: CandidateStatus, reason: AttemptReason) -> CandidateStatus:
    """``candidate`` with another attempt, in another Job, and perhaps on another replica."""
    attempt = candidate.attempt + 1
    update = {
        "phase": CandidatePhase.VALIDATING,
        "attempt": attempt,
        "attempt_reason": reason,
        "not_before": None,
        "job": job_name(inputs.observed.owner.name, candidate.version, attempt),
        "pod": None,
    }
    return candidate.model_copy(update=update)


def _after_attempt(inputs: ValidationInputs, candidate: CandidateStatus) -> ValidationDecision:
    """The next state of a candidate in Validating, by the evidence or the failure of its present attempt."""
    attempts = inputs.store.evidence_of(candidate.version)
    evidence = next((e for e in attempts if e.attempt == candidate.attempt), None)
    if evidence is not None:
        return _by_verdict(inputs, candidate, evidence)
    job = inputs.job_of(candidate)
    if reason := _failure(inputs, candidate, job):
        return _failed(inputs, candidate, reason)
    if candidate.since is None and job is not None:  # the Job was created just before the status was written
        return ValidationDecision(candidate.model_copy(update={"since": inputs.now}), event="ValidationStarted")
    if candidate.since is None or (shortage(inputs.observed, inputs.now) and job is None):
        return _begin_attempt(inputs, candidate)
    return ValidationDecision(candidate)


def _failure(inputs: ValidationInputs, candidate: CandidateStatus, job: JobView | None) -> str:
    """Why the present attempt ended without evidence; empty while its Job may still write evidence."""
    if job is None:
        refused = inputs.observed.refused_job
        its_own = refused is not None and refused.name == candidate.job
        return f"the API server refused {refused.message}" if refused is not None and its_own else ""
    if job.unplaced_since is not None and inputs.now - job.unplaced_since > NODE_WAIT:
        return (
            f"no node had room for its pod for {NODE_WAIT // timedelta(minutes=1)} minutes ({job.waiting}). Make room,"
            " or measure on a replica (validation.measureOn)"
        )
    if job.finished:
        return job.message or "the Job ended without evidence; see its log"
    reason = lending.recall_reason(inputs.observed, candidate.pod) if candidate.pod is not None else ""
    return f"its replica had to serve again: {reason}" if reason else ""


def _failed(inputs: ValidationInputs, candidate: CandidateStatus, reason: str) -> ValidationDecision:
    update = {
        "phase": CandidatePhase.FAILED,
        "since": inputs.now,
        "not_before": inputs.now + _delay(candidate),
        "pod": None,
        "message": f"attempt {candidate.attempt} failed: {reason}",
    }
    return ValidationDecision(candidate.model_copy(update=update), event="ValidationFailed")


def _delay(candidate: CandidateStatus) -> timedelta:
    return min(MAX_RETRY_DELAY, MIN_RETRY_DELAY * (1 << min(candidate.attempt - 1, 10)))


def seconds_until_attempt(candidate: CandidateStatus | None, now: datetime) -> float:
    """Seconds until the next attempt of ``candidate`` may begin; 0: now."""
    if candidate is None or candidate.not_before is None:
        return 0.0
    left = candidate.not_before - now
    # A longer time was written before the clock was set back. How long was waited is not known, so the wait is over.
    return left.total_seconds() if timedelta(0) < left <= MAX_RETRY_DELAY else 0.0


# verdicts ------------------------------------------------------------------------------------------------------------


def _by_verdict(inputs: ValidationInputs, candidate: CandidateStatus, evidence: Evidence) -> ValidationDecision:
    reasons = "; ".join(evidence.verdict.reasons)
    concurrency = inputs.observed.spec.validation.primary_concurrency
    figures = {
        "speedup": ratio_text(evidence, "candidate", "off", concurrency),
        "gain": ratio_text(evidence, "candidate", "active", concurrency),
    }
    candidate, passed = candidate.model_copy(update=figures), evidence.verdict.kind is VerdictKind.PASS
    if passed and inputs.store.promotion_evidence(candidate.version) is evidence:
        validated = candidate.model_copy(update={"phase": CandidatePhase.VALIDATED, "message": reasons})
        return ValidationDecision(validated, next_version=candidate.version, event="Validated")
    if evidence.verdict.kind is VerdictKind.REJECT:
        return _end(candidate, CandidatePhase.REJECTED, "Rejected", reasons)
    if not passed or evidence.active_version == inputs.active:
        reason = "its evidence is about other weights" if passed else reasons
        return _end(candidate, CandidatePhase.INCONCLUSIVE, "Inconclusive", reason)
    newer = _newer_version(inputs, candidate.version)
    if newer is not None:
        return _begin(inputs, newer)  # the evidence proves nothing about the active version
    return _begin_attempt(inputs, _next_attempt(inputs, candidate, AttemptReason.ACTIVE_CHANGED))


def _end(candidate: CandidateStatus, phase: CandidatePhase, event: str, message: str) -> ValidationDecision:
    ended = candidate.model_copy(update={"phase": phase, "message": message})
    return ValidationDecision(ended, reject=candidate.version, event=event)


# what a candidate in Validating waits for ----------------------------------------------------------------------------


def _with_activity(inputs: ValidationInputs, candidate: CandidateStatus | None) -> CandidateStatus | None:
    """A candidate in Validating says what it does or waits for, anew in each reconcile."""
    if candidate is None or candidate.phase is not CandidatePhase.VALIDATING:
        return candidate
    return candidate.model_copy(update={"message": _activity(inputs, candidate)})


def _activity(inputs: ValidationInputs, candidate: CandidateStatus) -> str:
    if candidate.since is None:
        return inputs.obstacle
    again = f", because {why}" if (why := _WHY_AGAIN.get(candidate.attempt_reason)) else ""
    job = inputs.job_of(candidate)
    message = (measuring_on(candidate.pod) if candidate.pod else MEASURING) + again
    if job is not None and job.suspended:
        return f"{message}; its Job is suspended, by a queue or a person. kubectl aurora abort ends the wait"
    return f"{message}; its pod does not start: {job.waiting}" if job is not None and job.waiting else message


def measuring_on(pod: str) -> str:
    """What a candidate says that is measured on the replica ``pod``."""
    return f"measuring on the replica {pod}, which serves no clients meanwhile"


def shortage(observed: Observed, now: datetime) -> str:
    """Why no measurement may begin, by the trainer's count of held-out requests; empty when one may.

    A validator that finds too few held-out prompts has taken a machine in vain. Where nobody knows the count, or the
    trainer is silent, the measurement begins, unless training is suspended: the count cannot grow then.
    """
    record, needed = observed.store.trainer, observed.spec.validation.prompts_needed
    count = record.held_out_requests if record else None
    if observed.spec.training.suspended and (count or 0) < needed:
        return f"{count or 0} of {needed} held-out requests are there, and training is suspended, so nothing is traced"
    if count is None or count >= needed or observed.store.trainer_is_silent(now):
        return ""
    counted = "One request per conversation counts, and one conversation in eight is held out"
    return f"waiting for held-out requests: {count} of {needed}. {counted}"
