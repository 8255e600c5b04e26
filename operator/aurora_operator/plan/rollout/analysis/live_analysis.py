"""Judges a swapped draft by live traffic: windows over the pods' counters, and a count of the judgements. Pure.

A *window* begins with a copy of the pods' counters, and ends with the next judgement. A window is judged once it is old
enough and both sides have answered enough requests. The difference of the counters is the traffic of the window.

The judged pods are compared with their peers in the same window, because a shift of the traffic shifts both. Where no
peers are left, the judged pods are compared with the *baseline*: the traffic of all pods just before the first swap.

The time between tokens depends on the load, so it is compared only with peers, which share the load. It also depends on
other work of the pod's machine. Such work slows all requests of a window alike, so their spread does not show it.
Slowness therefore counts only after :data:`MIN_SLOW_WINDOWS` windows in a row. A machine that stays slow for longer
cannot be distinguished from a slow draft.

With the speculation controller the draft is judged by the chains that it proposed, not by those of lookup. Where the
former draft hardly proposes, only the rest of the comparison judges (see ``acceptance.py``).

Invariants: a difference that chance explains makes no judgement, and the window grows until the window can be judged.
A pod that does not answer keeps its window. Counters of an engine that restarted are compared only with the same
engine start. The whole state is an :class:`AnalysisState`, so a restarted operator goes on with it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from aurora_api.v1alpha1.rollout import AnalysisSpec
from aurora_api.v1alpha1.status import MAX_PODS_SHOWN
from aurora_operator.plan.rollout.analysis.acceptance import is_precise
from aurora_operator.plan.rollout.analysis.comparison import Outcome, compare, has_enough_requests
from aurora_operator.plan.rollout.roll import AnalysisState, PodWindow
from aurora_protocol.agent_api import LiveCounters

MIN_SLOW_WINDOWS = 3
"""Slow windows in a row, each beyond chance, that make a bad judgement. Each further slow window is another one."""
MAX_JUDGEMENT_DEADLINES = 10
"""A judgement may take this many progress deadlines while a newer version waits."""


@dataclass(frozen=True)
class PodCounters:
    """One pod's counters now, of the engine start ``boot`` that serves ``version``."""

    boot: str
    version: int
    counters: LiveCounters


CountersByPod = Mapping[str, PodCounters]


def with_windows_for(analysis: AnalysisState, pods: CountersByPod, version: int) -> AnalysisState:
    """Add windows for pods not seen before.

    Where there is no room for all, ``version`` and the other versions share it: each gets at least half, if it has as
    many pods. A comparison needs both sides.
    """
    kept = {w.name: w for w in analysis.windows if w.name not in pods or _is_same_engine(w, pods[w.name])}
    fresh = {name: _window(name, live) for name, live in pods.items() if name not in kept}
    judged = [window for window in (kept | fresh).values() if window.version == version]
    others = [window for window in (kept | fresh).values() if window.version != version]
    half = MAX_PODS_SHOWN // 2
    shared = judged[: max(half, MAX_PODS_SHOWN - len(others))] + others[: max(half, MAX_PODS_SHOWN - len(judged))]
    windows = sorted(shared, key=lambda window: window.name)
    return analysis if windows == analysis.windows else analysis.model_copy(update={"windows": windows})


def _is_same_engine(window: PodWindow, live: PodCounters) -> bool:
    """Whether the counters go on with those of the window, by the same engine start, version and way of counting."""
    counts_alike = (live.counters.draft is None) == (window.live.draft is None)
    return counts_alike and (live.boot, live.version) == (window.boot, window.version)


def _window(name: str, live: PodCounters) -> PodWindow:
    return PodWindow(name=name, boot=live.boot, version=live.version, live=live.counters)


def _next_window(analysis: AnalysisState, pods: CountersByPod, now: datetime) -> AnalysisState:
    """Begin the next window now, for the pods that answer."""
    windows = [_window(w.name, pods[w.name]) for w in analysis.windows if w.name in pods]
    return analysis.model_copy(update={"window_begins": now, "settling": False, "windows": windows})


def _window_traffic(analysis: AnalysisState, pods: CountersByPod) -> LiveCounters:
    """The traffic of ``pods`` in the window so far, summed."""
    traffic = [
        live.counters.since(window.live)
        for window in analysis.windows
        if (live := pods.get(window.name)) is not None and _is_same_engine(window, live)
    ]
    return functools.reduce(LiveCounters.plus, traffic) if traffic else LiveCounters()


def _is_old_enough(analysis: AnalysisState, policy: AnalysisSpec, now: datetime) -> bool:
    begins = analysis.window_begins
    return begins is not None and now - begins >= timedelta(seconds=policy.interval_seconds)


def measure_baseline(
    analysis: AnalysisState,
    pods: CountersByPod,
    version: int,
    policy: AnalysisSpec,
    *,
    steps: int,
    max_duration: timedelta | None,
    now: datetime,
) -> AnalysisState:
    """Watch ``pods``, which serve ``version``, until their traffic suffices for a baseline, and then set the baseline.

    Args:
        max_duration: set where no peers will be left beside the canary. The canary is then compared with the baseline
            only, and no later window corrects a baseline that chance moved. So the pods are watched until the baseline
            is precise, but at most for this long.
    """
    analysis = with_windows_for(analysis, pods, version)
    if analysis.window_begins is None:
        return _next_window(analysis, pods, now)
    done = _window_traffic(analysis, pods)
    if not _is_old_enough(analysis, policy, now) or not has_enough_requests(done, policy):
        return analysis
    if max_duration is not None and not is_precise(done, policy, steps) and now - analysis.window_begins < max_duration:
        return analysis
    return AnalysisState(serving_digest=analysis.serving_digest, baseline=done)


def judge(
    analysis: AnalysisState,
    judged: CountersByPod,
    peers: CountersByPod,
    version: int,
    policy: AnalysisSpec,
    *,
    steps: int,
    now: datetime,
) -> AnalysisState:
    """Judge the window when that is possible, and then begin the next one.

    Args:
        judged: the pods that serve ``version``.
        steps: draft steps of a round on a server without the speculation controller.
    """
    everyone = {**peers, **judged}
    analysis = with_windows_for(analysis, everyone, version)
    if analysis.window_begins is None:
        begins = now + timedelta(seconds=policy.settle_seconds)
        return analysis.model_copy(update={"window_begins": begins, "settling": True})
    if analysis.settling:
        return analysis if now < analysis.window_begins else _next_window(analysis, everyone, now)
    new = _window_traffic(analysis, judged)
    reference = _window_traffic(analysis, peers) if peers else analysis.baseline
    if reference is None or not _is_old_enough(analysis, policy, now):
        return analysis
    if not (has_enough_requests(new, policy) and has_enough_requests(reference, policy)):
        return analysis
    outcome, message = compare(new, reference, policy, steps, same_load=bool(peers))
    if outcome is Outcome.UNDECIDED:
        return analysis
    slow = analysis.slow_windows + 1 if outcome is Outcome.SLOW else 0
    bad = outcome is Outcome.BAD or slow >= MIN_SLOW_WINDOWS
    update = {
        "good_windows": analysis.good_windows + 1 if outcome is Outcome.GOOD else 0,
        "bad_windows": analysis.bad_windows + (1 if bad else 0),
        "slow_windows": slow,
        "message": message,
    }
    return _next_window(analysis.model_copy(update=update), everyone, now)


def starved(
    analysis: AnalysisState, sides: Sequence[CountersByPod], policy: AnalysisSpec, deadline: timedelta, now: datetime
) -> bool:
    """Whether this window's judgement takes longer than :data:`MAX_JUDGEMENT_DEADLINES` deadlines.

    The time is estimated from the requests of the ``sides`` so far. To count only a side without any request as starved
    would not suffice: a few requests before the traffic ended would hold a roll forever. A limit of one deadline would
    be too strict: with little traffic a judgement takes long, yet it comes. A window that already took too long is
    starved even in full traffic, because all of that traffic left the window undecided.
    """
    if analysis.window_begins is None or analysis.settling:
        return False
    took = now - analysis.window_begins
    fewest = min(_window_traffic(analysis, pods).requests for pods in sides)
    too_slow = fewest * MAX_JUDGEMENT_DEADLINES * deadline < policy.min_requests * took
    return took > deadline and (too_slow or took > MAX_JUDGEMENT_DEADLINES * deadline)
