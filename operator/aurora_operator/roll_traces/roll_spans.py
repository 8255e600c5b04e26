"""Finds the phases of a version's life that end with a status write. Pure.

The trace of a version::

    offer                     registered, until its first measurement began or it was given up before (the root)
    ├── measurement           one for each attempt, until the operator decided
    │   └── rounds            the measured rounds, from the evidence
    ├── rollout               from its start until the version was established, rejected or stopped
    │   └── canary, rolling, watching, paused
    │       └── swap          one for each pod
    ├── rolling back          all pods return to the active version
    │   └── swap
    └── decision              an entry of status.history; has no length

Invariants: spans follow from the former status, the new status and what was observed between them. A status is written
only over the one that it was computed from, so each change is seen once and each phase ends once. A span is exported
when its phase ends: a parent may therefore come after its children. The root ends first, because nobody can know
whether a version that was stopped will be rolled out again. A version that a pin put aside may be offered again, and
the first measurement begins again after a rest. Then the root is exported again, with a later end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime

from aurora_api.v1alpha1.status import (
    CandidatePhase,
    CandidateStatus,
    PodStatus,
    RolloutPhase,
    SpeculatorStatus,
)
from aurora_operator.observe.observed import Observed, PodView
from aurora_operator.plan.rollout.roll import JUDGED_PHASES, Roll, read_roll
from aurora_operator.roll_traces.span import Span, VersionTrace, time_key
from aurora_protocol.agent_api import SwapPhase
from aurora_protocol.evidence_records import Evidence

_PHASE_NAMES = {
    RolloutPhase.CANARY: "canary",
    RolloutPhase.ROLLING: "rolling",
    RolloutPhase.WATCHING: "watching",
    RolloutPhase.PAUSED: "paused",
    RolloutPhase.ROLLING_BACK: "rolling back",
}
_RETURN_DECISIONS = ("RolledBack", "RolloutStopped")
"""Entries of the history with which pods begin to return."""
_NOT_OF_A_ROLL = "Pinned"
"""A pin may name the initial draft, which nobody offered."""
_SWAP_FAILED = "SwapFailed"


def spans_of(observed: Observed, after: SpeculatorStatus, now: datetime) -> Iterator[Span]:
    """The spans that end because ``after`` was written at ``now`` over ``observed.status``."""
    roll = read_roll(observed.status)
    yield from _candidate_spans(observed, after.candidate, now)
    if roll.version is not None and roll.phase is not RolloutPhase.IDLE:
        trace = VersionTrace(observed.owner, roll.version)
        yield from _swap_spans(observed, after, roll, trace)
        if roll.phase is RolloutPhase.ROLLING_BACK:
            yield from _return_spans(observed, after, roll, trace, now)
        else:
            yield from _rollout_spans(after, roll, trace, now)
    yield from _decision_spans(observed, after)


# the gate ------------------------------------------------------------------------------------------------------------


def _candidate_spans(observed: Observed, candidate: CandidateStatus | None, now: datetime) -> Iterator[Span]:
    before = observed.status.candidate
    after = candidate if before is not None and candidate is not None and candidate.version == before.version else None
    if before is not None and _is_on_offer(before) and not _is_on_offer(after):
        yield _offer(observed, after or before, now)
    if candidate is not None and after is None and not _is_on_offer(candidate):
        yield _offer(observed, candidate, now)
    if before is None or before.phase is not CandidatePhase.VALIDATING or before.waits_to_begin:
        return
    if after is not None and after.phase is before.phase and after.attempt == before.attempt:
        return
    yield from _measurement(observed, before, after, now)


def _is_on_offer(candidate: CandidateStatus | None) -> bool:
    """Whether the candidate waits for its first measurement."""
    return candidate is not None and candidate.waits_to_begin and candidate.attempt == 1


def _offer(observed: Observed, candidate: CandidateStatus, now: datetime) -> Span:
    trace = VersionTrace(observed.owner, candidate.version)
    registration = observed.store.registrations.get(candidate.version)
    attributes = {
        "aurora.lineage": registration.lineage if registration else None,
        "aurora.draft.digest": candidate.digest,
        "aurora.draft.trained_tokens": registration.trained_tokens if registration else None,
    }
    start = registration.created if registration else None
    return trace.span(trace.root_id, "offer", start, candidate.since or now, attributes, parent_id="")


def _measurement(
    observed: Observed, before: CandidateStatus, after: CandidateStatus | None, now: datetime
) -> Iterator[Span]:
    """The attempt that ``before`` shows. ``after``: the same version now. None: another version took its place."""
    trace = VersionTrace(observed.owner, before.version)
    outcome = "Replaced" if after is None else "Repeated" if after.attempt > before.attempt else after.phase.value
    decided = after if after is not None and after.attempt == before.attempt else None
    reason = "" if after is None else after.message
    span_id = trace.span_id("measurement", before.attempt)
    yield trace.span(
        span_id,
        "measurement",
        before.since,
        now,
        {
            "aurora.attempt": before.attempt,
            "aurora.outcome": outcome,
            "aurora.reason": reason,
            "aurora.speedup": decided.speedup if decided else None,
            "aurora.gain": decided.gain if decided else None,
            "k8s.job.name": before.job,
            "k8s.pod.name": before.pod,
        },
        error=reason if outcome in (CandidatePhase.FAILED, CandidatePhase.REJECTED) else "",
    )
    for evidence in observed.store.evidence_of(before.version):
        if evidence.attempt == before.attempt:
            yield _rounds(trace, span_id, evidence)


def _rounds(trace: VersionTrace, measurement_id: str, evidence: Evidence) -> Span:
    return trace.span(
        trace.span_id("rounds", evidence.attempt),
        "rounds",
        evidence.started,
        evidence.finished,
        {
            "aurora.attempt": evidence.attempt,
            "aurora.gate.verdict": evidence.verdict.kind.value,
            "aurora.gate.end": evidence.end.value if evidence.end else None,
            "aurora.gate.active_version": evidence.active_version,
            "aurora.gate.hardware": evidence.environment.hardware,
            "aurora.reason": "; ".join(evidence.verdict.reasons),
        },
        parent_id=measurement_id,
    )


# the roll ------------------------------------------------------------------------------------------------------------


def _rollout_spans(after: SpeculatorStatus, roll: Roll, trace: VersionTrace, now: datetime) -> Iterator[Span]:
    """The phase that ends, and with it perhaps the rollout. A rollout ends before its pods return."""
    new = after.rollout
    goes_on = new.version == roll.version and new.phase in JUDGED_PHASES
    if goes_on and new.phase is roll.phase:
        return
    counts = {"aurora.pods.updated": new.updated, "aurora.pods.total": new.total} if new.version == roll.version else {}
    yield trace.span(
        _phase_id(trace, roll),
        _PHASE_NAMES[roll.phase],
        roll.phase_started or roll.started,
        now,
        {"aurora.reason": new.message, "aurora.judgement": new.last_judgement, **counts},
        parent_id=_rollout_id(trace, roll),
    )
    if goes_on:
        return
    outcome = _outcome(after, roll)
    yield trace.span(
        _rollout_id(trace, roll),
        "rollout",
        roll.started,
        now,
        {"aurora.outcome": outcome, "aurora.reason": new.message, **counts},
        error=new.message if outcome == "RolledBack" else "",
    )


def _outcome(after: SpeculatorStatus, roll: Roll) -> str:
    if after.rollout.phase is RolloutPhase.ROLLING_BACK:
        return "RolledBack" if roll.version in after.rejected else "Stopped"
    return "Completed" if after.active is not None and after.active.version == roll.version else "Stopped"


def _return_spans(
    observed: Observed, after: SpeculatorStatus, roll: Roll, trace: VersionTrace, now: datetime
) -> Iterator[Span]:
    if after.rollout.phase is RolloutPhase.ROLLING_BACK:
        return
    decided = [e.time for e in observed.status.history if e.version == roll.version and e.event in _RETURN_DECISIONS]
    # `progressed` is when the pods began to return, or when an operator that restarted since began to observe.
    start = decided[-1] if decided else roll.progressed
    yield trace.span(_phase_id(trace, roll), _PHASE_NAMES[roll.phase], start, now, {"aurora.reason": roll.message})


def _rollout_id(trace: VersionTrace, roll: Roll) -> str:
    return trace.span_id("rollout", time_key(roll.started))


def _phase_id(trace: VersionTrace, roll: Roll) -> str:
    """The id of the roll's present phase. A roll that was paused has several canaries; it returns only once."""
    return trace.span_id(roll.phase.value, time_key(roll.started), time_key(roll.phase_started))


# the pods ------------------------------------------------------------------------------------------------------------


def _swap_spans(observed: Observed, after: SpeculatorStatus, roll: Roll, trace: VersionTrace) -> Iterator[Span]:
    """The swaps that ended since the former status. The status shows :data:`MAX_PODS_SHOWN` pods; others have none."""
    former = {pod.name: pod for pod in observed.status.pods}
    present = {pod.name: pod for pod in after.pods}
    for view in observed.pods:
        known, shown = former.get(view.name), present.get(view.name)
        if known is not None and shown is not None and (span := _swap(view, known, shown, roll, trace)) is not None:
            yield span


def _swap(view: PodView, known: PodStatus, shown: PodStatus, roll: Roll, trace: VersionTrace) -> Span | None:
    swap = view.agent.swap if view.agent is not None and view.measurement is None else None
    if swap is None or swap.finished is None or roll.started is None or not roll.ordered(swap):
        return None
    failed = shown.state == _SWAP_FAILED != known.state
    swapped = (
        swap.phase is SwapPhase.IDLE and swap.version == shown.version != known.version and known.version is not None
    )
    if not failed and not swapped:
        return None
    pause_seconds = swap.pause_seconds
    return trace.span(
        trace.span_id("swap", view.name, time_key(swap.finished)),
        "swap",
        swap.started,
        swap.finished,
        {
            "k8s.pod.name": view.name,
            "aurora.swap.from_version": known.version,
            "aurora.swap.to_version": swap.version,
            "aurora.swap.pause_seconds": pause_seconds if pause_seconds and math.isfinite(pause_seconds) else None,
        },
        parent_id=_phase_id(trace, roll),
        error=_SWAP_FAILED if failed else "",
    )


# the decisions -------------------------------------------------------------------------------------------------------


def _decision_spans(observed: Observed, after: SpeculatorStatus) -> Iterator[Span]:
    for entry in after.history:
        if entry in observed.status.history or entry.event == _NOT_OF_A_ROLL:
            continue
        trace = VersionTrace(observed.owner, entry.version)
        yield trace.span(
            trace.span_id("decision", entry.event, time_key(entry.time)),
            "decision",
            entry.time,
            entry.time,
            {"aurora.decision": entry.event, "aurora.reason": entry.message},
        )
