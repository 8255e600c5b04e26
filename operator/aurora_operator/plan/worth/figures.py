"""Computes the cost of training and the saving of the draft from observed figures. Pure.

Invariant: a figure that was not observed is unknown. One ready pod without an estimate makes the saving unknown,
because the others say nothing about it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from aurora_api.v1alpha1.status import CandidatePhase, RolloutPhase, SpeculatorStatus
from aurora_api.v1alpha1.training import TrainingWorth
from aurora_operator.children.metadata import ENGINE_CONTAINER, TRAINER
from aurora_operator.observe.observed import AcceptedTokens, Observed, PodView
from aurora_operator.observe.recent_counters import first_tokens_of
from aurora_operator.plan.candidate.undecided_measurement import gave_way
from aurora_operator.plan.events import VersionEvent
from aurora_operator.plan.worth.devices import Devices, devices_of
from aurora_operator.plan.worth.policy import WorthFacts

DAY_SECONDS: Final = 86400
MIN_OBSERVED: Final = timedelta(minutes=10)
"""An engine's estimate counts once it covers so much time."""
MIN_RECENT_TOKENS: Final = 100
"""Proposed tokens below which the recent acceptance is not known."""
MAX_COMPARISONS: Final = 10**6
"""The record may hold any number, and the API server refuses a status with a number beyond 64 bits."""
SIGNIFICANT_DIGITS: Final = 2
"""Of the saving. More would be false precision, and would write a status for each reconcile."""
MIN_CHANGE: Final = 0.1
"""Share by which the saving must change before the status shows the new one."""
MIN_CHANGE_SECONDS: Final = DAY_SECONDS // 100
"""The same in device-seconds per day. An engine's average fades for days after its last request."""


def worth_figures(observed: Observed, events: Iterable[VersionEvent]) -> TrainingWorth:
    """The former worth with the figures of now, and the outcomes in ``events`` counted."""
    former = observed.status.training.worth
    training, serving = observed.spec.training, observed.spec.serving
    trainer, engine = devices_of(training.template, TRAINER), devices_of(serving.template, ENGINE_CONTAINER)
    measured = _measured_without_gain(observed, former.measured_without_gain, events)
    update: dict[str, Any] = {
        "cost_seconds_per_day": None if trainer is None else int(trainer.count * DAY_SECONDS),
        "saved_seconds_per_day": None if engine is None else _saved_seconds_per_day(observed.pods, engine),
        "cost_device": trainer.kind if trainer else "",
        "saved_device": engine.kind if engine else "",
        "measured_without_gain": measured,
        "without_gain": measured + _compared_without_gain(observed, former),
    }
    return former.model_copy(update=update)


def with_steady_saving(worth: TrainingWorth, former: TrainingWorth) -> TrainingWorth:
    """``worth`` as the status shows it: with the former saving, unless the saving changed by more than a little.

    Without traffic a saving fades for days, and each change would write a status. Decisions use the figure of now.
    """
    before, after = former.saved_seconds_per_day, worth.saved_seconds_per_day
    if before is None or after is None or former.saved_device != worth.saved_device:
        return worth
    if abs(after - before) >= max(MIN_CHANGE * abs(before), MIN_CHANGE_SECONDS):
        return worth
    return worth.model_copy(update={"saved_seconds_per_day": before})


def worth_facts(observed: Observed, worth: TrainingWorth, status: SpeculatorStatus) -> WorthFacts:
    """The facts of a decision. ``worth`` has the figures of now, ``status`` the candidate and the roll of now."""
    since_start = recent = AcceptedTokens()
    for pod in observed.pods:
        if pod.agent is None or pod.measurement is not None:
            continue
        total, sample = first_tokens_of(pod.agent.live), observed.recent_counters.get(pod.name)
        since_start = _sum(since_start, total)
        if sample is not None and sample.boot == pod.agent.boot:
            before = sample.first_tokens
            recent = _sum(recent, AcceptedTokens(total.proposed - before.proposed, total.accepted - before.accepted))
    return WorthFacts(
        active=status.active.version if status.active else None,
        cost=worth.cost_seconds_per_day,
        saved=worth.saved_seconds_per_day,
        comparable=worth.cost_device == worth.saved_device != "",
        without_gain=worth.without_gain,
        gain_is_coming=_gain_is_coming(status),
        acceptance=_share(since_start, least=MIN_RECENT_TOKENS),
        recent_acceptance=_share(recent, least=MIN_RECENT_TOKENS),
        figures_gap=observed.figures_gap,
    )


def _saved_seconds_per_day(pods: Iterable[PodView], engine: Devices) -> int | None:
    serving = [pod for pod in pods if pod.ready and not pod.terminating and pod.measurement is None]
    shares = []
    for pod in serving:
        saved = pod.agent.saved_time if pod.agent is not None else None
        if saved is None or saved.observed_seconds < MIN_OBSERVED.total_seconds():
            return None
        shares.append(saved.share)
    return _rounded(sum(shares) * float(engine.count) * DAY_SECONDS) if shares else None


def _rounded(value: float) -> int:
    return int(float(f"{value:.{SIGNIFICANT_DIGITS}g}"))


def _measured_without_gain(observed: Observed, before: int, events: Iterable[VersionEvent]) -> int:
    """The candidates in a row that did not become active, after ``events``."""
    count = before
    for event in events:
        if event.reason == "Promoted":
            count = 0
        elif event.reason in ("Rejected", "Inconclusive", "RolloutFailed"):
            evidence = observed.store.evidence_of(event.version)
            by_person = event.version == observed.user_requests.abort
            undecided = event.reason == "Inconclusive" and gave_way(evidence[-1] if evidence else None)
            count += not (by_person or undecided)
    return count


def _compared_without_gain(observed: Observed, former: TrainingWorth) -> int:
    """The drafts in a row that the trainer compared and did not offer, since training last resumed.

    The operator's clock says when the record changed, because the trainer's may be wrong. A restarted operator has seen
    no change, and takes the record's own time until it does.
    """
    record = observed.store.trainer
    if record is None:
        return 0
    changed = observed.store.trainer_changed or record.updated
    if former.since is not None and changed < former.since:
        return 0
    return min(record.comparisons_without_gain or 0, MAX_COMPARISONS)


def _gain_is_coming(status: SpeculatorStatus) -> bool:
    candidate = status.candidate
    passed = candidate is not None and (
        candidate.phase is CandidatePhase.VALIDATED or candidate.waiting_version is not None
    )
    return passed or status.rollout.phase is not RolloutPhase.IDLE


def _sum(one: AcceptedTokens, other: AcceptedTokens) -> AcceptedTokens:
    return replace(one, proposed=one.proposed + other.proposed, accepted=one.accepted + other.accepted)


def _share(tokens: AcceptedTokens, least: int) -> float | None:
    return tokens.accepted / tokens.proposed if tokens.proposed >= least else None
