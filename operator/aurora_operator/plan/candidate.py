"""Which candidate is measured, and what its measurement means. Pure.

::

    registered --> Validating --> Validated --> (rollout) --> active
                     |  ^  ^         |
         inconclusive|  |  |later    +--> Rejected (rolled back)
                     v  |  +-- Failed: the measurement could not be made
                 Inconclusive / Rejected: never offered again

The newest version supersedes one that ended and one that waits: for its next attempt, for a replica, to be measured
anew against another active version, or for its roll, while a person pauses rolls or pods are missing. One that is being
measured is not superseded, and one that passed stays on offer (``waiting``) until a newer one passes too: else a
trainer that publishes faster than one can measure would keep every version from the pods. So a roll that was held
starts with what passed as soon as it may, and not with the next verdict. One whose roll ended without blame is offered
again when the newer one is decided upon, or after :data:`RETRY_LAST`.

With ``validation.measureOn: Replica`` the Job of a candidate in Validating waits for a replica (plan/lending.py).

Invariants: one Job at a time; a verdict is sought in at most :data:`MAX_MEASUREMENTS` measurements against one version;
a measurement that could not be made, also because the API server refused its Job, says nothing about the candidate, so
it is tried again, ever later, and never counted as a verdict; a candidate is offered to the rollout only with the
evidence of :meth:`StoreView.earned`, which compares it with the version that is active *now*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from aurora_api.v1alpha1.status import CandidatePhase, CandidateStatus, RolloutPhase, RolloutStatus
from aurora_operator.children.metadata import job_name
from aurora_operator.observe.observed import JobView, RefusedJob, StoreView
from aurora_operator.plan.formatting import ratio_text, source_text
from aurora_protocol.evidence_records import VerdictKind
from aurora_store import Keys

MAX_MEASUREMENTS = 2
RETRY_FIRST, RETRY_LAST = timedelta(seconds=30), timedelta(minutes=30)
"""A measurement that could not be made is tried again after the first, doubled each time up to the last."""
STUCK = "; its pod does not start: "
TERMINAL = frozenset({CandidatePhase.REJECTED, CandidatePhase.INCONCLUSIVE})


@dataclass(frozen=True)
class Inputs:
    now: datetime
    name: str
    store: StoreView
    """Readable, with a channel."""
    candidate: CandidateStatus | None
    rejected: frozenset[int]
    rollout: RolloutStatus
    jobs: Sequence[JobView]
    refused_job: RefusedJob | None
    primary: int
    """The concurrency at which an improvement must show."""
    ready: bool = True
    """Pods serve, and a better version would be welcome."""
    abort: int | None = None
    """A person refuses this version."""


@dataclass(frozen=True)
class Decision:
    candidate: CandidateStatus | None
    offer: int | None = None
    reject: int | None = None
    event: str = ""
    """ValidationStarted, Validated, Rejected, Inconclusive, ValidationFailed; empty: nothing to tell."""
    message: str = ""
    """Of the event, where it is not about the candidate."""

    @property
    def job(self) -> tuple[int, int] | None:
        """(version, attempt) of the Job that should exist now."""
        if self.candidate is None or self.candidate.phase is not CandidatePhase.VALIDATING:
            return None
        return self.candidate.version, self.candidate.attempt


def decide(inputs: Inputs) -> Decision:
    """The candidate's next state, and what may be rolled out meanwhile."""
    candidate = _recalled(inputs)
    if inputs.rollout.phase is not RolloutPhase.IDLE:
        return Decision(candidate)
    if candidate is not None and candidate.waiting is not None and candidate.waiting == inputs.abort:
        refused, alone = candidate.waiting, candidate.model_copy(update={"waiting": None})
        return Decision(alone, reject=refused, event="Rejected", message=f"version {refused} was aborted by a person")
    decision = _decided(inputs, candidate)
    return decision if decision.offer is not None else replace(decision, offer=_waiting(inputs, decision.candidate))


def _recalled(inputs: Inputs) -> CandidateStatus | None:
    """The stored candidate, as far as it is one still."""
    channel, candidate = inputs.store.channel, inputs.candidate
    assert channel is not None, "the caller waits for the channel"
    if candidate is None or candidate.version <= channel.active:
        return None
    waiting = candidate.waiting
    if waiting is not None and (waiting in inputs.rejected or not inputs.store.promotion_evidence(waiting)):
        candidate = candidate.model_copy(update={"waiting": None})
    if candidate.version in inputs.rejected and candidate.phase not in TERMINAL:
        text = inputs.rollout.message if inputs.rollout.version == candidate.version else "rejected before"
        candidate = candidate.model_copy(update={"phase": CandidatePhase.REJECTED, "message": text})
    return candidate


def _waiting(inputs: Inputs, candidate: CandidateStatus | None) -> int | None:
    """The version that ``candidate`` superseded, if it may be rolled out now."""
    if candidate is None:
        return None
    ended = inputs.rollout.progressed
    rests = ended is not None and timedelta(0) <= inputs.now - ended < RETRY_LAST
    if candidate.waiting == inputs.rollout.version and candidate.phase not in TERMINAL and rests:
        return None
    return candidate.waiting


def _newer(inputs: Inputs, version: int) -> int | None:
    """The newest version, if it came after ``version`` and one may begin to measure it."""
    newest = inputs.store.newest
    fits = newest is not None and newest > version and newest not in inputs.rejected and inputs.ready
    return newest if fits else None


def _decided(inputs: Inputs, candidate: CandidateStatus | None) -> Decision:
    channel = inputs.store.channel
    assert channel is not None, "the caller waits for the channel"
    if candidate is not None and candidate.version == inputs.abort and candidate.phase not in TERMINAL:
        refused = candidate.model_copy(update={"message": f"version {candidate.version} was aborted by a person"})
        return _end(refused, CandidatePhase.REJECTED, "Rejected")
    newer = _newer(inputs, channel.active if candidate is None else candidate.version)
    if candidate is not None and candidate.phase is CandidatePhase.VALIDATING:
        if newer is not None and _untouched(inputs, candidate):
            return _begin(inputs, newer, candidate.waiting)
        return _measured(inputs, candidate)
    if candidate is not None and candidate.phase is CandidatePhase.VALIDATED:
        earned = inputs.store.promotion_evidence(candidate.version) is not None
        if newer is not None:
            return _begin(inputs, newer, candidate.version if earned else None)
        if earned:
            return Decision(candidate, offer=candidate.version)
        return _begin(inputs, candidate.version) if inputs.ready else Decision(candidate)
    if newer is not None:
        return _begin(inputs, newer, None if candidate is None else candidate.waiting)
    if candidate is not None and candidate.phase is CandidatePhase.FAILED and inputs.ready:
        waited = None if candidate.since is None else inputs.now - candidate.since
        # A time that lies ahead was written before the clock was set back: nobody knows how long it was.
        due = waited is None or not timedelta(0) <= waited < _patience(candidate.attempt)
        return _again(inputs, candidate) if due else Decision(candidate)
    return Decision(candidate)


def _untouched(inputs: Inputs, candidate: CandidateStatus) -> bool:
    """Its measurement has not begun: no replica is on its way, no Job is there and no evidence."""
    begun = {(job.version, job.attempt) for job in inputs.jobs}
    begun |= {(proof.version, proof.attempt) for proof in inputs.store.evidence}
    return candidate.pod is None and (candidate.version, candidate.attempt) not in begun


def _patience(attempt: int) -> timedelta:
    """How long to wait after a failed ``attempt``."""
    return min(RETRY_LAST, RETRY_FIRST * (1 << min(attempt - 1, 10)))


def _begin(inputs: Inputs, version: int, waiting: int | None = None) -> Decision:
    """Take up ``version``: with what the store has about it already (a lost status), or with a first Job."""
    made = inputs.store.evidence_of(version)
    registration = inputs.store.registrations.get(version)
    attempt = made[-1].attempt if made else 1
    candidate = CandidateStatus(
        version=version,
        digest=registration.digest if registration else "",
        phase=CandidatePhase.VALIDATING,
        attempt=attempt,
        job=job_name(inputs.name, version, attempt),
        since=inputs.now,
        waiting=waiting,
        message="measuring on the real engine",
    )
    if made:
        return _measured(inputs, candidate)
    return Decision(candidate, event="ValidationStarted")


def _measured(inputs: Inputs, candidate: CandidateStatus) -> Decision:
    channel = inputs.store.channel
    assert channel is not None, "the caller waits for the channel"
    evidence = next((e for e in inputs.store.evidence_of(candidate.version) if e.attempt == candidate.attempt), None)
    if evidence is not None:
        figures = {
            "evidence": Keys.evidence(evidence.version, evidence.attempt),
            "speedup": ratio_text(evidence, "candidate", "off", inputs.primary),
            "gain": ratio_text(evidence, "candidate", "active", inputs.primary),
            "speedup_source": source_text(evidence, inputs.primary),
            "message": "; ".join(evidence.verdict.reasons),
        }
        candidate = candidate.model_copy(update=figures)
        kind = evidence.verdict.kind
        if kind is VerdictKind.PASS and inputs.store.promotion_evidence(candidate.version) is evidence:
            validated = candidate.model_copy(update={"phase": CandidatePhase.VALIDATED, "waiting": None})
            return Decision(validated, offer=candidate.version, event="Validated")
        if kind is VerdictKind.REJECT:
            return _end(candidate, CandidatePhase.REJECTED, "Rejected")
        why = candidate.message
        if kind is VerdictKind.PASS:
            # Measured against a version that is active no more: that proves nothing about this one.
            if (newer := _newer(inputs, candidate.version)) is not None:
                return _begin(inputs, newer, candidate.waiting)
            why = "measured against a former version"
        counted = [e for e in inputs.store.evidence_of(candidate.version) if e.active_version == channel.active]
        if len(counted) >= MAX_MEASUREMENTS:
            return _end(candidate.model_copy(update={"message": why}), CandidatePhase.INCONCLUSIVE, "Inconclusive")
        return _again(inputs, candidate.model_copy(update={"message": f"again, because: {why}"}))
    why = _hindered(inputs, candidate)
    if not why:
        return Decision(_told(inputs, candidate))
    wait = int(_patience(candidate.attempt).total_seconds())
    text = f"attempt {candidate.attempt} could not measure: {why}; the next one starts in {wait} s"
    failed = candidate.model_copy(update={"phase": CandidatePhase.FAILED, "since": inputs.now, "message": text})
    return Decision(failed, event="ValidationFailed")


def _told(inputs: Inputs, candidate: CandidateStatus) -> CandidateStatus:
    """``candidate`` with the news of its Job: that its pod does not start, or that it does by now."""
    job = _job(inputs, candidate)
    if job is None:
        return candidate
    before = candidate.message.split(STUCK)[0]
    message = f"{before}{STUCK}{job.waiting}" if job.waiting else before
    return candidate if message == candidate.message else candidate.model_copy(update={"message": message})


def _job(inputs: Inputs, candidate: CandidateStatus) -> JobView | None:
    """The Job of the attempt that goes on."""
    return next((j for j in inputs.jobs if (j.version, j.attempt) == (candidate.version, candidate.attempt)), None)


def _hindered(inputs: Inputs, candidate: CandidateStatus) -> str:
    """Why the attempt that goes on has to end without evidence, in plain words; empty while it may yet write some."""
    job = _job(inputs, candidate)
    if job is not None:
        return (job.message or "the Job ended without writing evidence: see its log") if job.finished else ""
    refused = inputs.refused_job
    return f"the API server refused its Job: {refused.message}" if refused and refused.name == candidate.job else ""


def _again(inputs: Inputs, candidate: CandidateStatus) -> Decision:
    """The next attempt, in a Job of its own."""
    attempt = candidate.attempt + 1
    job = job_name(inputs.name, candidate.version, attempt)
    update = {"phase": CandidatePhase.VALIDATING, "attempt": attempt, "job": job, "since": inputs.now}
    return Decision(candidate.model_copy(update=update), event="ValidationStarted")


def _end(candidate: CandidateStatus, phase: CandidatePhase, event: str) -> Decision:
    ended = candidate.model_copy(update={"phase": phase})
    return Decision(ended, reject=candidate.version, event=event)
