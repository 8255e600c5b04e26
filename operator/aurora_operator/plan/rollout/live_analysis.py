"""What live traffic says of a swapped draft: windows over the counters of pods, and their count of judgements. Pure.

A *window* begins with a copy of the pods' counters and is judged when it is old enough and both sides have seen enough
requests; what pods did since is the difference. The judged pods are compared with their peers in the same window,
because what shifts the traffic shifts both; where there are no peers left, with the *baseline*, what all pods did just
before the first swap. The time between tokens depends on the load, so it is compared among peers only, who share it;
and on what else a pod's machine does, which all requests of a window share and their spread does not show, so it counts
only after :data:`SLOW_WINDOWS` in a row. What slows one machine for longer cannot be told from a slow draft.

Invariants: a difference that chance explains is no verdict (the window grows until there is one); a pod out of sight
keeps its window, and an engine that restarted is compared with itself only; the whole state is an
:class:`AnalysisStatus`, so a restarted operator goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from aurora_api.v1alpha1.rollout import AnalysisSpec
from aurora_api.v1alpha1.status import MAX_PODS_SHOWN, AnalysisStatus, PodWindow
from aurora_operator.plan.rollout.comparison import Outcome, compare, enough, precise
from aurora_protocol.agent_api import LiveCounters

SLOW_WINDOWS = 3
"""In a row, each beyond chance: the last of them, and each that follows, is a bad judgement."""
PATIENCE = 10
"""Progress deadlines that a judgement may take while a newer version waits."""


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


def _sum(analysis: AnalysisStatus, pods: Pods) -> LiveCounters:
    """What ``pods`` did since the window began."""
    total = dict.fromkeys(LiveCounters.model_fields, 0)
    for window in analysis.pods:
        live = pods.get(window.name)
        if live is not None and _same(window, live):
            for name in total:
                total[name] += max(0, getattr(live.counters, name) - getattr(window.live, name))
    return LiveCounters(**total)


def _old_enough(analysis: AnalysisStatus, policy: AnalysisSpec, now: datetime) -> bool:
    return analysis.since is not None and now - analysis.since >= timedelta(seconds=policy.interval_seconds)


def measure_baseline(
    analysis: AnalysisStatus,
    pods: Pods,
    version: int,
    policy: AnalysisSpec,
    *,
    steps: int,
    longest: timedelta | None,
    now: datetime,
) -> AnalysisStatus:
    """Watch ``pods``, which serve ``version``, until what they do can serve as the baseline, which is then set.

    Args:
        longest: where no peers will be left beside the canary. The baseline is all that it is compared with, and what
            chance did to it no later window makes good; so it is watched until it is precise, for this long at most.
    """
    analysis = observe(analysis, pods, version)
    if analysis.since is None:
        return _anew(analysis, pods, now)
    done = _sum(analysis, pods)
    if not _old_enough(analysis, policy, now) or not enough(done, policy):
        return analysis
    if longest is not None and not precise(done, policy, steps) and now - analysis.since < longest:
        return analysis
    return AnalysisStatus(shape=analysis.shape, baseline=done)


def judge(
    analysis: AnalysisStatus,
    judged: Pods,
    peers: Pods,
    version: int,
    policy: AnalysisSpec,
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
    if reference is None or not _old_enough(analysis, policy, now):
        return analysis
    if not (enough(ours, policy) and enough(reference, policy)):
        return analysis
    outcome, message = compare(ours, reference, policy, steps, beside=bool(peers))
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
    analysis: AnalysisStatus, sides: Sequence[Pods], policy: AnalysisSpec, deadline: timedelta, now: datetime
) -> bool:
    """Whether nobody should wait for this window's judgement: it would take more than :data:`PATIENCE` deadlines.

    Going by what it saw of the ``sides``, not only when it saw nothing: a few requests before the traffic ended would
    hold a roll for ever. Nor as soon as a deadline is over: where traffic is thin, a judgement takes long and yet
    comes, and must not be cut off each time. Or it took that long: all the traffic there is left it undecided.
    """
    if analysis.since is None or analysis.settling:
        return False
    fewest, took = min(_sum(analysis, pods).requests for pods in sides), now - analysis.since
    return took > deadline and (fewest * PATIENCE * deadline < policy.min_requests * took or took > PATIENCE * deadline)
