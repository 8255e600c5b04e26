"""Decides which candidate is measured, and what follows from its measurement. Pure.

::

    registered --> Validating
    Validating --> Validated      passed: may be rolled out and become active
    Validating --> Rejected       failed a bar: never rolled out
    Validating --> Inconclusive   undecided twice, or once while a newer version waits: never rolled out
    Validating --> Failed         could not be measured
    Failed     --> Validating     after a growing delay
    Validated  --> Rejected       failed in its roll

There is at most one candidate. The newest version replaces a candidate that is decided, one that waits in Failed or
Validating, and one in Validated whose roll ended without blame. Otherwise a candidate that passed waits for its roll,
and nothing newer is measured: it would be compared with a version that is about to be replaced.

A candidate that is being measured is not replaced. Its validator ends an undecided measurement early when a newer
version waits (``aurora_runtime.validation.rounds``). Nor is a candidate replaced whose Job is suspended by a
queue or a person: the Job would lose its place. A suspended Job has not failed, however long it waits, unless it
measures on a replica, which returns to its Service when its lease is over.

A candidate that may not be measured yet waits in Validating, without a Job and without ``since``. So does one while
another speculator of its namespace measures: measurements may take all GPUs of a team's quota otherwise. With
``validation.measureOn: Replica``, the Job waits until a replica is lent (``plan/lending.py``). When the operator needs
the replica back, the attempt ends, which is no failure. If other pods were not ready, the next loan waits: the loan
itself may have overloaded them.

Invariants: one Job at a time. A candidate is measured against one active version at most :data:`MAX_MEASUREMENTS`
times. A measurement that could not be made says nothing about the candidate, even when the API server refused the Job.
A candidate is rolled out only with the evidence of :meth:`StoreView.promotion_evidence`, which compares it with the
version that is active *now*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from aurora_api.v1alpha1.status import AttemptReason, CandidatePhase, CandidateStatus, RolloutPhase, RolloutStatus
from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_operator.children.metadata import job_name
from aurora_operator.observe.observed import JobView, RefusedJob, StoreView
from aurora_operator.plan.figures import ratio_text
from aurora_operator.plan.lending import WAITING_FOR_REPLICA, Recall
from aurora_protocol.evidence_records import Evidence, MeasurementEnd, VerdictKind

MAX_MEASUREMENTS: Final = 2
"""Measurements of one candidate against one active version."""
MIN_RETRY_DELAY, MAX_RETRY_DELAY = timedelta(seconds=30), timedelta(minutes=10)
"""Delay before the next attempt: starts at the minimum and doubles with each attempt up to the maximum."""
NODE_WAIT = timedelta(minutes=10)
"""How long the Job's pod may wait for a node. The cluster autoscaler is told to bring none (``validation_job``)."""
DECIDED = frozenset({CandidatePhase.REJECTED, CandidatePhase.INCONCLUSIVE})
MEASURING = "measuring on the real engine"
AT_REST = "not measured while training is suspended and serving.replicas is 0"
NOT_NOW = "waiting: nothing is measured while a version is pinned, no pod is ready, or the spec is invalid"
_REPLICA_IS_BACK: Final = (
    "its Job was suspended for longer than a replica may be lent. Keep queues and people from suspending it, or set"
    " validation.measureOn to Job"
)
_WHY_AGAIN: Final = {
    AttemptReason.UNDECIDED: "the last measurement did not decide",
    AttemptReason.ACTIVE_CHANGED: "the last measurement compared with a version that is no longer active",
    AttemptReason.FAILED: "the last attempt failed",
    AttemptReason.RECALLED: "the replica of the last attempt had to serve again",
}


@dataclass(frozen=True)
class ValidationInputs:
    """Everything that the decision about the candidate depends on."""

    now: datetime
    name: str
    """Name of the speculator."""
    store: StoreView
    active: int
    """The channel's active version."""
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
    """The candidate's Job is being deleted (:func:`~aurora_operator.plan.wanted_children.is_at_rest`)."""
    abort: int | None = None
    """A person rejects this version."""
    shortage: str = ""
    """Why there are too few held-out requests to measure; empty when there are enough."""
    on_replica: bool = False
    """Candidates are measured on a replica."""
    replica_is_back: bool = False
    """Candidates are measured on a replica, and none is withdrawn now."""
    measured_first: str = ""
    """As in :class:`~aurora_operator.observe.observed.FleetView`."""
    recall: Recall | None = None
    """Why the replica that the candidate is measured on has to serve again. None when it can be spared."""

    @property
    def obstacle(self) -> str:
        """Why no measurement may begin now; empty when one may."""
        return self.shortage or ("" if self.may_measure else NOT_NOW) or self._turn

    @property
    def lacks_turn_only(self) -> bool:
        """Whether the measurement could begin, if no other speculator of the namespace measured."""
        return self.obstacle == self._turn != ""

    @property
    def _turn(self) -> str:
        return f"waiting for its turn: {self.measured_first} is measured first" if self.measured_first else ""

    def job_of(self, candidate: CandidateStatus) -> JobView | None:
        """The Job of the present attempt, if it exists."""
        attempt = (candidate.version, candidate.attempt)
        return next((job for job in self.jobs if (job.version, job.attempt) == attempt), None)


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
    """The event's message, where it is not the candidate's."""

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
    candidate = inputs.candidate
    if candidate is None or candidate.version <= inputs.active:
        return None
    if candidate.phase not in DECIDED and candidate.version not in inputs.store.registrations:
        return None  # its registration was deleted, so it can be neither measured nor rolled out
    if candidate.pod is not None and not inputs.on_replica:
        candidate = candidate.model_copy(update={"pod": None})
    if candidate.version in inputs.rejected and candidate.phase not in DECIDED:
        rolled = inputs.rollout.version == candidate.version
        update = {"phase": CandidatePhase.REJECTED, "message": inputs.rollout.message if rolled else "rejected before"}
        candidate = candidate.model_copy(update=update)
    return candidate


def _next_state(inputs: ValidationInputs, candidate: CandidateStatus | None) -> ValidationDecision:
    if candidate is None:
        newer = _newer_version(inputs, inputs.active)
        return ValidationDecision(None) if newer is None else _begin(inputs, newer)
    if candidate.version == inputs.abort and candidate.phase not in DECIDED:
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
    """No replica is on its way, and neither Job nor evidence exist."""
    measured = any(proof.attempt == candidate.attempt for proof in inputs.store.evidence_of(candidate.version))
    return candidate.pod is None and inputs.job_of(candidate) is None and not measured


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
        job=job_name(inputs.name, version, attempt),
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
        "job": job_name(inputs.name, candidate.version, attempt),
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
    is_under_way = inputs.recall is not None and (inputs.recall.withdrawn if job is None else not job.finished)
    if inputs.recall is not None and is_under_way and not inputs.at_rest:
        return _recalled(inputs, candidate, inputs.recall)
    if reason := _failure(inputs, candidate, job):
        return _failed(inputs, candidate, reason)
    has_place = not inputs.at_rest and (job is not None or candidate.pod is not None)
    if candidate.since is None and has_place:  # the Job was created just before the status was written
        return ValidationDecision(candidate.model_copy(update={"since": inputs.now}), event="ValidationStarted")
    if candidate.since is None or (inputs.shortage and not has_place):
        return _begin_attempt(inputs, candidate)
    return ValidationDecision(candidate)


def _recalled(inputs: ValidationInputs, candidate: CandidateStatus, recall: Recall) -> ValidationDecision:
    """Measure ``candidate`` again after a delay, once a replica can be spared. Nothing failed."""
    again = _next_attempt(inputs, candidate, AttemptReason.RECALLED)
    again = again.model_copy(update={"since": inputs.now, "not_before": inputs.now + _delay(candidate)})
    return ValidationDecision(again, event="ReplicaRecalled", message=recall.reason)


def _failure(inputs: ValidationInputs, candidate: CandidateStatus, job: JobView | None) -> str:
    """Why the present attempt ended without evidence; empty while its Job may still write evidence."""
    if job is None:
        refused = inputs.refused_job
        its_own = refused is not None and refused.name == candidate.job
        return f"the API server refused its Job: {refused.message}" if refused is not None and its_own else ""
    if job.suspended:
        return _REPLICA_IS_BACK if inputs.replica_is_back else ""
    if job.unplaced_since is not None and inputs.now - job.unplaced_since > NODE_WAIT:
        return (
            f"no node had room for its pod for {NODE_WAIT // timedelta(minutes=1)} minutes ({job.waiting}). Make room,"
            " or measure on a replica (validation.measureOn)"
        )
    return (job.message or "the Job ended without evidence; see its log") if job.finished else ""


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
    """Seconds until the next attempt of ``candidate`` may begin, or its next replica may be lent; 0: now."""
    if candidate is None or candidate.not_before is None:
        return 0.0
    left = candidate.not_before - now
    # A longer time was written before the clock was set back. How long was waited is not known, so the wait is over.
    return left.total_seconds() if timedelta(0) < left <= MAX_RETRY_DELAY else 0.0


# verdicts ------------------------------------------------------------------------------------------------------------


def _by_verdict(inputs: ValidationInputs, candidate: CandidateStatus, evidence: Evidence) -> ValidationDecision:
    reasons = "; ".join(evidence.verdict.reasons)
    figures = {
        "speedup": ratio_text(evidence, "candidate", "off", inputs.concurrency),
        "gain": ratio_text(evidence, "candidate", "active", inputs.concurrency),
    }
    candidate, passed = candidate.model_copy(update=figures), evidence.verdict.kind is VerdictKind.PASS
    if passed and inputs.store.promotion_evidence(candidate.version) is evidence:
        validated = candidate.model_copy(update={"phase": CandidatePhase.VALIDATED, "message": reasons})
        return ValidationDecision(validated, next_version=candidate.version, event="Validated")
    if evidence.verdict.kind is VerdictKind.REJECT:
        return _end(candidate, CandidatePhase.REJECTED, "Rejected", reasons)
    newer = _newer_version(inputs, candidate.version)
    if passed and newer is not None:
        return _begin(inputs, newer)  # the evidence proves nothing about the active version
    why_again = AttemptReason.ACTIVE_CHANGED if passed else AttemptReason.UNDECIDED
    if why := _reason_to_end(inputs, evidence, newer):
        reason = _WHY_AGAIN[why_again] if passed else reasons
        return _end(candidate, CandidatePhase.INCONCLUSIVE, "Inconclusive", f"{reason}; {why}")
    return _begin_attempt(inputs, _next_attempt(inputs, candidate, why_again))


def _reason_to_end(inputs: ValidationInputs, evidence: Evidence, newer: int | None) -> str:
    """Why the candidate of ``evidence``, which did not decide, is not measured again. Empty: it is, once more."""
    if newer is not None:
        return f"version {newer} is newer and is measured instead"
    attempts = inputs.store.evidence_of(evidence.version)
    measurements = sum(one.active_version == inputs.active for one in attempts)
    if measurements >= MAX_MEASUREMENTS:
        return f"it was measured {measurements} times"
    if evidence.end is MeasurementEnd.HOPELESS:
        return "another measurement would hardly decide either"
    return ""


def _end(candidate: CandidateStatus, phase: CandidatePhase, event: str, message: str) -> ValidationDecision:
    ended = candidate.model_copy(update={"phase": phase, "message": message})
    return ValidationDecision(ended, reject=candidate.version, event=event)


# what a candidate in Validating waits for ----------------------------------------------------------------------------


def _with_activity(inputs: ValidationInputs, candidate: CandidateStatus | None) -> CandidateStatus | None:
    """A candidate in Validating says what it does or waits for, anew in each reconcile. At rest it has no start."""
    if candidate is None or candidate.phase is not CandidatePhase.VALIDATING:
        return candidate
    if inputs.at_rest:
        return candidate.model_copy(update={"message": AT_REST, "since": None, "pod": None})
    return candidate.model_copy(update={"message": _activity(inputs, candidate)})


def _activity(inputs: ValidationInputs, candidate: CandidateStatus) -> str:
    if candidate.since is None:
        return inputs.obstacle
    again = f", because {why}" if (why := _WHY_AGAIN.get(candidate.attempt_reason)) else ""
    if candidate.not_before is not None and seconds_until_attempt(candidate, inputs.now):
        return f"{WAITING_FOR_REPLICA}not before {candidate.not_before:%H:%M:%S} UTC{again}"
    job, on = inputs.job_of(candidate), f"the replica {candidate.pod}, which has left the Service"
    message = f"measuring on {on}{again}" if candidate.pod else f"{MEASURING}{again}"
    if job is not None and job.suspended:
        return f"{message}; its Job is suspended, by a queue or a person. kubectl aurora abort ends the wait"
    return f"{message}; its pod does not start: {job.waiting}" if job is not None and job.waiting else message


def shortage(store: StoreView, spec: ValidationSpec, now: datetime, *, trainer_stopped: bool) -> str:
    """Why no measurement may begin, by the trainer's count of held-out requests; empty when one may.

    A validator that finds too few held-out prompts has taken a machine in vain. Where nobody knows the count, the
    measurement begins. The record of a silent trainer tells the count only if the operator stopped that trainer.
    """
    record = store.trainer
    if record is None or record.held_out_requests is None or record.held_out_requests >= spec.prompts_needed:
        return ""
    if store.trainer_is_silent(now) and not trainer_stopped:
        return ""
    return (
        f"waiting for held-out requests: {record.held_out_requests} of {spec.prompts_needed}. One request per"
        " conversation counts, and one conversation in eight is held out"
    )
