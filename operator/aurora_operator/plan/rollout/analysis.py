"""Judges a swapped draft by live traffic: windows over the pods' counters, and a count of the judgements. Pure.

A *window* begins with a copy of the pods' counters, and ends with the next judgement. A window is judged once it is old
enough and both sides have answered enough requests. The difference of the counters is the traffic of the window.

The judged pods are compared with their peers in the same window, because a shift of the traffic shifts both. Where no
peers are left, the judged pods are compared with the *baseline*: the traffic of all pods just before the first swap.

Tokens per verify round are compared: how many answer tokens a round of the ended requests made, whoever proposed. A
draft that the engine leaves unused adds nothing, and one that is used more widely adds more. Lookup's tokens count on
both sides.

Latency is not compared: it depends on the load and on other work of the pod's machine. The gate has measured it.

Invariants: a difference that chance explains makes no judgement, and the window grows until the window can be judged.
A pod that does not answer keeps its window. Counters of an engine that restarted are compared only with the same engine
start. The whole state is an :class:`AnalysisState`, so a restarted operator goes on with it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

from aurora_api.v1alpha1.status import MAX_PODS_SHOWN
from aurora_operator.plan.rollout.roll import AnalysisState, PodWindow
from aurora_operator.plan.rollout.world import AnalysisPolicy
from aurora_protocol.agent_api import LiveCounters

MIN_Z_SCORE = 3.0
"""Standard errors that a loss must exceed. High, because windows are judged repeatedly and a rejection is final."""
MIN_SAMPLE = 8
"""Requests of a side that are awaited at least. Fewer do not show how much requests differ."""
MAX_JUDGEMENT_DEADLINES = 10
"""A judgement may take this many progress deadlines while a newer version waits. With little traffic it takes long."""


@dataclass(frozen=True)
class PodCounters:
    """One pod's counters now, of the engine start ``boot`` that serves ``version``."""

    boot: str
    version: int
    counters: LiveCounters


CountersByPod = Mapping[str, PodCounters]


def _with_windows_for(analysis: AnalysisState, pods: CountersByPod, version: int) -> AnalysisState:
    """Add windows for pods not seen before: for ``version`` at most half of what there is room for, and for the other
    versions the other half."""
    kept = {w.name: w for w in analysis.windows if w.name not in pods or _is_same_engine(w, pods[w.name])}
    fresh = {name: _window(name, live) for name, live in pods.items() if name not in kept}
    judged = [window for window in (kept | fresh).values() if window.version == version]
    others = [window for window in (kept | fresh).values() if window.version != version]
    half = MAX_PODS_SHOWN // 2
    windows = sorted(judged[:half] + others[:half], key=lambda window: window.name)
    return analysis.model_copy(update={"windows": windows})


def _is_same_engine(window: PodWindow, live: PodCounters) -> bool:
    """Whether the counters go on with those of the window, by the same engine start and version."""
    return (live.boot, live.version) == (window.boot, window.version)


def _window(name: str, live: PodCounters) -> PodWindow:
    return PodWindow(name=name, boot=live.boot, version=live.version, live=live.counters)


def _next_window(analysis: AnalysisState, pods: CountersByPod, version: int, now: datetime) -> AnalysisState:
    """Begin the next window now, for the pods that answer."""
    begun = analysis.model_copy(update={"window_begins": now, "windows": []})
    return _with_windows_for(begun, pods, version)


def _window_traffic(analysis: AnalysisState, pods: CountersByPod) -> LiveCounters:
    """The traffic of ``pods`` in the window so far, summed."""
    traffic = [
        live.counters.since(window.live)
        for window in analysis.windows
        if (live := pods.get(window.name)) is not None and _is_same_engine(window, live)
    ]
    return functools.reduce(LiveCounters.plus, traffic) if traffic else LiveCounters()


def _is_old_enough(analysis: AnalysisState, policy: AnalysisPolicy, now: datetime) -> bool:
    begins = analysis.window_begins
    return begins is not None and now - begins >= timedelta(seconds=policy.interval_seconds)


def measure_baseline(
    analysis: AnalysisState, pods: CountersByPod, version: int, policy: AnalysisPolicy, now: datetime
) -> AnalysisState:
    """Watch ``pods``, which serve ``version``, until their traffic suffices for a baseline, and then set it."""
    if analysis.window_begins is None:
        return _next_window(analysis, pods, version, now)
    analysis = _with_windows_for(analysis, pods, version)
    done = _window_traffic(analysis, pods)
    if not has_enough_requests(done, policy) or not _is_old_enough(analysis, policy, now):
        return analysis
    return AnalysisState(serving_digest=analysis.serving_digest, baseline=done)


def judge(
    analysis: AnalysisState,
    judged: CountersByPod,
    peers: CountersByPod,
    version: int,
    policy: AnalysisPolicy,
    *,
    now: datetime,
) -> AnalysisState:
    """Judge the window when that is possible, and then begin the next one.

    The first window begins after a while, so that requests which the former draft began can end.

    Args:
        judged: the pods that serve ``version``.
    """
    everyone = {**peers, **judged}
    if analysis.window_begins is None:
        begins = now + timedelta(seconds=policy.settle_seconds)
        return analysis.model_copy(update={"window_begins": begins, "windows": []})
    if now < analysis.window_begins:
        return analysis
    analysis = _with_windows_for(analysis, everyone, version)
    new = _window_traffic(analysis, judged)
    reference = _window_traffic(analysis, peers) if peers else analysis.baseline
    if reference is None or not _is_old_enough(analysis, policy, now):
        return analysis
    if not (has_enough_requests(new, policy) and has_enough_requests(reference, policy)):
        return analysis
    found = compare(new, reference, policy)
    if found.outcome is Outcome.UNDECIDED:
        return analysis
    update = {
        "good_windows": analysis.good_windows + 1 if found.outcome is Outcome.GOOD else 0,
        "bad_windows": analysis.bad_windows + (found.outcome is Outcome.BAD),
        "message": found.text,
    }
    return _next_window(analysis.model_copy(update=update), everyone, version, now)


# two groups of pods ---------------------------------------------------------------------------------------------------


class Outcome(Enum):
    UNDECIDED = auto()
    """Misses the bar, but by no more than chance allows."""
    GOOD = auto()
    BAD = auto()


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison, and a text with the numbers."""

    outcome: Outcome
    text: str


def has_enough_requests(counters: LiveCounters, policy: AnalysisPolicy) -> bool:
    """Whether a side has answered enough requests to be compared at all."""
    return counters.requests >= max(MIN_SAMPLE, policy.min_requests) and counters.rounds > 0


def compare(new: LiveCounters, old: LiveCounters, policy: AnalysisPolicy) -> Comparison:
    """Whether ``new`` made as many tokens a round as ``old`` within the policy. Both :func:`has_enough_requests`."""
    kept_share = 1 - policy.max_accept_loss
    new_length, old_length = new.tokens / new.rounds, old.tokens / old.rounds
    shortfall = kept_share * old_length - new_length
    text = f"acceptance length {new_length:.2f} against {old_length:.2f}"
    if shortfall > MIN_Z_SCORE * math.hypot(standard_error(new), kept_share * standard_error(old)):
        return Comparison(Outcome.BAD, text)
    return Comparison(Outcome.UNDECIDED if shortfall > 0 else Outcome.GOOD, text)


def standard_error(counters: LiveCounters) -> float:
    """The standard error of tokens per round, R, as it varies between requests (Cochran, Sampling Techniques, 6.4).

    It is that of a ratio of two sums, by linearisation: the root of the sum over requests of (tokens - R rounds)
    squared, divided by all rounds. The rounds of a request resemble each other, so requests are the sample. The sum is
    of integers, because its parts are far larger than their difference.
    """
    tokens, rounds, requests = counters.tokens, counters.rounds, counters.requests
    residuals = (
        counters.tokens_squared * rounds**2
        - 2 * tokens * counters.tokens_by_rounds * rounds
        + tokens**2 * counters.rounds_squared
    )
    return math.sqrt(max(0, residuals) * requests / (requests - 1)) / rounds**2
