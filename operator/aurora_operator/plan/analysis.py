"""What live traffic says of a swapped draft: windows over the counters of pods, and their count of judgements. Pure.

A *window* begins with a copy of the pods' counters and is judged when it is old enough and both sides have seen enough
requests; what pods did since is the difference. The judged pods are compared with their peers in the same window,
because what shifts the traffic shifts both, and pods that were worse than their peers before the first swap are held to
what they were (:mod:`aurora_operator.plan.comparison`); where there are no peers left, with the *baseline*, what all
pods did just before the first swap. The time between tokens also depends on what else a pod's machine does, which all
requests of a window share and their spread does not show, so it counts only after :data:`SLOW_WINDOWS` in a row.

Invariants: a difference that chance explains is no verdict (the window grows until there is one); a pod out of sight
keeps its window, and an engine that restarted is compared with itself only; the whole state is an
:class:`AnalysisStatus`, so a restarted operator goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from aurora_api.agent import LiveCounters
from aurora_api.speculator import Analysis
from aurora_api.status import MAX_PODS_SHOWN, AnalysisStatus, PodBefore, PodWindow
from aurora_operator.plan.comparison import Outcome, Past, compare, enough

SLOW_WINDOWS = 3
"""In a row, each beyond chance: the last of them, and each that follows, is a bad judgement."""
PATIENCE = 10
"""Progress deadlines that a judgement may take, going by the traffic so far, while a newer version waits."""


@dataclass(frozen=True)
class Live:
    """One pod's counters now, of the engine start ``boot`` that serves ``version``."""

    boot: str
    version: int
    counters: LiveCounters


Pods = Mapping[str, Live]


def observe(analysis: AnalysisStatus, pods: Pods, version: int) -> AnalysisStatus:
    """Windows for pods not seen before; those of ``version`` come first where there is no room for all."""
    kept = {w.name: w for w in analysis.pods if w.name not in pods or _same(w, pods[w.name])}
    fresh = {name: _window(name, live) for name, live in pods.items() if name not in kept}
    judged_first = sorted((kept | fresh).values(), key=lambda window: window.version != version)
    windows = sorted(judged_first[:MAX_PODS_SHOWN], key=lambda window: window.name)
    return analysis if windows == analysis.pods else analysis.model_copy(update={"pods": windows})


def _same(window: PodWindow, live: Live) -> bool:
    return (live.boot, live.version) == (window.boot, window.version)


def _window(name: str, live: Live) -> PodWindow:
    return PodWindow(name=name, boot=live.boot, version=live.version, live=live.counters)


def _anew(analysis: AnalysisStatus, pods: Pods, now: datetime) -> AnalysisStatus:
    """The next window, from now on, of the pods in sight."""
    windows = [_window(w.name, pods[w.name]) for w in analysis.pods if w.name in pods]
    return analysis.model_copy(update={"since": now, "settling": False, "pods": windows})


def _done(analysis: AnalysisStatus, pods: Pods) -> dict[str, LiveCounters]:
    """What each of ``pods`` did since the window began."""
    done = dict[str, LiveCounters]()
    for window in analysis.pods:
        live = pods.get(window.name)
        if live is not None and _same(window, live):
            now, then = live.counters, window.live
            counted = {name: max(0, getattr(now, name) - getattr(then, name)) for name in LiveCounters.model_fields}
            done[window.name] = LiveCounters(**counted)
    return done


def _total(each: Iterable[LiveCounters]) -> LiveCounters:
    counters = list(each)
    return LiveCounters(**{name: sum(getattr(one, name) for one in counters) for name in LiveCounters.model_fields})


def _sum(analysis: AnalysisStatus, pods: Pods) -> LiveCounters:
    """What ``pods`` did since the window began, together."""
    return _total(_done(analysis, pods).values())


def _past(analysis: AnalysisStatus, judged: Pods, peers: Pods) -> Past:
    """What both sides' pods did before the first swap, as far as they were there."""

    def did(pods: Pods) -> LiveCounters:
        return _total(one.done for one in analysis.before if one.name in pods)

    return Past(did(judged), did(peers))


def _oldenough(analysis: AnalysisStatus, policy: Analysis, now: datetime) -> bool:
    return analysis.since is not None and now - analysis.since >= timedelta(seconds=policy.interval_seconds)


def measure_baseline(
    analysis: AnalysisStatus, pods: Pods, version: int, policy: Analysis, now: datetime
) -> AnalysisStatus:
    """Watch ``pods``, which serve ``version``, until what they do can serve as the baseline, which is then set."""
    analysis = observe(analysis, pods, version)
    if analysis.since is None:
        return _anew(analysis, pods, now)
    each = _done(analysis, pods)
    done = _total(each.values())
    if not _oldenough(analysis, policy, now) or not enough(done, policy):
        return analysis
    before = [PodBefore(name=name, done=counters) for name, counters in each.items()]
    return AnalysisStatus(shape=analysis.shape, baseline=done, before=before)


def judge(
    analysis: AnalysisStatus,
    judged: Pods,
    peers: Pods,
    version: int,
    policy: Analysis,
    *,
    steps: int,
    now: datetime,
) -> AnalysisStatus:
    """Judge the window when that is possible; the next one then begins.

    Args:
        judged: the pods that serve ``version``.
        steps: draft steps per round: a round accepts between 0 and this many tokens.
    """
    everyone = {**peers, **judged}
    analysis = observe(analysis, everyone, version)
    if analysis.since is None:
        begins = now + timedelta(seconds=policy.settle_seconds)
        return analysis.model_copy(update={"since": begins, "settling": True})
    if analysis.settling:
        return analysis if now < analysis.since else _anew(analysis, everyone, now)
    ours, reference = _sum(analysis, judged), _sum(analysis, peers) if peers else analysis.baseline
    if reference is None or not _oldenough(analysis, policy, now):
        return analysis
    if not (enough(ours, policy) and enough(reference, policy)):
        return analysis
    past = _past(analysis, judged, peers) if peers else None
    outcome, message = compare(ours, reference, policy, steps, beside=bool(peers), past=past)
    if outcome is Outcome.WAITING:
        return analysis
    slow = analysis.slow + 1 if outcome is Outcome.SLOW else 0
    bad = outcome is Outcome.BAD or slow >= SLOW_WINDOWS
    update = {
        "successes": analysis.successes + 1 if outcome is Outcome.GOOD else 0,
        "failures": analysis.failures + (1 if bad else 0),
        "slow": slow,
        "message": message,
    }
    return _anew(analysis.model_copy(update=update), everyone, now)


def starved(
    analysis: AnalysisStatus, sides: Sequence[Pods], policy: Analysis, deadline: timedelta, now: datetime
) -> bool:
    """Whether the window has seen so little of one of the ``sides`` that nobody should wait for its judgement.

    Not only when it saw nothing: a few requests before the traffic ended would hold a roll for ever. Nor as soon as a
    deadline is over: where traffic is thin, a judgement takes long and yet comes, and must not be cut off each time.
    """
    if analysis.since is None or analysis.settling:
        return False
    fewest, took = min(_sum(analysis, pods).requests for pods in sides), now - analysis.since
    return took > deadline and fewest * PATIENCE * deadline < policy.min_requests * took
