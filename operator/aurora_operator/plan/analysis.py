"""What live traffic says of a swapped draft: pure judgement over the counters of pods.

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

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

from aurora_api.agent import LiveCounters
from aurora_api.speculator import Analysis
from aurora_api.status import MAX_PODS_SHOWN, AnalysisStatus, PodWindow

Z = 3.0
"""Standard errors that a loss must exceed: windows are looked at again and again, and a verdict is for good."""

SLOW_WINDOWS = 3
"""In a row, each beyond chance: the last of them, and each that follows, is a bad judgement."""
PATIENCE = 10
"""Progress deadlines that a judgement may take, going by the traffic so far, while a newer version waits."""


class Outcome(Enum):
    WAITING = auto()
    """Not enough traffic, or within chance."""
    GOOD = auto()
    SLOW = auto()
    """Worse in nothing but the time between tokens."""
    BAD = auto()


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


def _old_enough(analysis: AnalysisStatus, policy: Analysis, now: datetime) -> bool:
    return analysis.since is not None and now - analysis.since >= timedelta(seconds=policy.interval_seconds)


def _enough(counters: LiveCounters, policy: Analysis) -> bool:
    return counters.requests >= policy.min_requests and counters.verify_rounds > 0


def measure_baseline(
    analysis: AnalysisStatus, pods: Pods, version: int, policy: Analysis, now: datetime
) -> AnalysisStatus:
    """Watch ``pods``, which serve ``version``, until what they do can serve as the baseline, which is then set."""
    analysis = observe(analysis, pods, version)
    if analysis.since is None:
        return _anew(analysis, pods, now)
    done = _sum(analysis, pods)
    if not _old_enough(analysis, policy, now) or not _enough(done, policy):
        return analysis
    return AnalysisStatus(shape=analysis.shape, baseline=done)


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
    if reference is None or not _old_enough(analysis, policy, now):
        return analysis
    if not (_enough(ours, policy) and _enough(reference, policy)):
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


def compare(new: LiveCounters, old: LiveCounters, policy: Analysis, steps: int, *, beside: bool) -> tuple[Outcome, str]:
    """Whether ``new`` is as good as ``old`` within the policy, and the sentence that says so.

    Both have verify rounds and requests. ``beside``: at the same time, under the same load. What misses its bar by no
    more than chance allows is undecided.
    """
    bar = 1 - float(policy.max_accept_loss)
    ours, theirs = _accept_length(new), _accept_length(old)
    error = math.hypot(_error(ours, new.requests, steps), bar * _error(theirs, old.requests, steps))
    said = [f"acceptance length {ours:.2f} against {theirs:.2f}"]
    shortfall = bar * theirs - ours
    bad, undecided = shortfall > Z * error, shortfall > 0
    slow = False
    if beside and new.gap_squares and old.gap_squares:
        gap, former = new.gap_milliseconds / new.gaps, old.gap_milliseconds / old.gaps
        said.append(f"{gap:.1f} ms between tokens against {former:.1f}")
        allowed = 1 + float(policy.max_latency_increase)
        excess = gap - allowed * former
        slow = excess > Z * math.hypot(_gap_error(new), allowed * _gap_error(old))
        undecided |= excess > 0
    if new.aborted or old.aborted:
        said.append(f"{new.aborted} of {new.requests} requests given up against {old.aborted} of {old.requests}")
        bad |= _rate_increase(new, old) > float(policy.max_abort_increase)
    outcome = Outcome.BAD if bad else Outcome.SLOW if slow else Outcome.WAITING if undecided else Outcome.GOOD
    return outcome, ", ".join(said)


def _accept_length(counters: LiveCounters) -> float:
    return counters.answer_tokens / counters.verify_rounds


def _error(length: float, requests: int, steps: int) -> float:
    """An upper bound of the standard error of an acceptance length.

    A variable between 0 and s with mean a varies by at most a(s - a) (Bhatia and Davis, 2000). The rounds of a request
    resemble each other, so requests are counted, not rounds.
    """
    accepted = min(max(length - 1, 0.0), float(steps))
    return math.sqrt(accepted * (steps - accepted) / requests)


def _gap_error(counters: LiveCounters) -> float:
    """An upper bound of the standard error of the mean over requests: the agent bounds the sum of squares."""
    mean = counters.gap_milliseconds / counters.gaps
    return math.sqrt(max(counters.gap_squares / counters.gaps - mean * mean, 0.0) / counters.gaps)


def _rate_increase(new: LiveCounters, old: LiveCounters) -> float:
    """The lower bound of the rise in the share of requests given up (Newcombe, 1998, method 10)."""
    (rate, low, _), (former, _, high) = _wilson(new), _wilson(old)
    return rate - former - math.hypot(rate - low, high - former)


def _wilson(counters: LiveCounters) -> tuple[float, float, float]:
    """A rate with its Wilson interval. An aborted request may or may not be among those counted as ended."""
    count = max(counters.requests, counters.aborted, 1)
    rate = counters.aborted / count
    middle, spread = rate + Z * Z / (2 * count), Z * math.sqrt(rate * (1 - rate) / count + Z * Z / (4 * count * count))
    whole = 1 + Z * Z / count
    return rate, (middle - spread) / whole, (middle + spread) / whole
