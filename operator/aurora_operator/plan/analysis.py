"""What live traffic says of a swapped draft: pure judgement over the counters of pods.

A *window* begins with a copy of the pods' counters and is judged when it is old enough and both sides have seen enough
verify rounds; what pods did since is the difference. The swapped pods are compared with their peers in the same window
where there are peers with enough traffic, because what shifts the traffic shifts both; otherwise with the *baseline*,
what all pods did just before the first swap.

The time between tokens depends on the load, so it is compared among peers only, which share it.

Invariants: a difference that chance explains is no verdict (the window grows until there is one); an engine that
restarted is compared with itself only; the whole state is an :class:`AnalysisStatus`, so a restarted operator goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

from aurora_api.agent import LiveCounters
from aurora_api.speculator import Analysis
from aurora_api.status import MAX_PODS_SHOWN, AnalysisStatus, PodWindow

Z = 1.645
"""One-sided 95 %."""


class Outcome(Enum):
    WAITING = auto()
    """Not enough traffic, or within chance."""
    GOOD = auto()
    BAD = auto()


@dataclass(frozen=True)
class Live:
    """One pod's counters now, of the engine start ``boot``."""

    boot: str
    counters: LiveCounters


def _start(analysis: AnalysisStatus, pods: Mapping[str, Live]) -> AnalysisStatus:
    """The window with a first look at every pod that it has not seen, or that restarted; pods that went are dropped."""
    known = {w.name: w for w in analysis.pods if w.name in pods and w.boot == pods[w.name].boot}
    fresh = {
        name: PodWindow(name=name, boot=live.boot, live=live.counters)
        for name, live in pods.items()
        if name not in known
    }
    windows = list((known | fresh).values())[:MAX_PODS_SHOWN]
    return analysis if windows == analysis.pods else analysis.model_copy(update={"pods": windows})


def _sum(analysis: AnalysisStatus, pods: Mapping[str, Live]) -> LiveCounters:
    """What ``pods`` did since the window began."""
    total = dict.fromkeys(LiveCounters.model_fields, 0)
    for window in analysis.pods:
        live = pods.get(window.name)
        if live is not None and live.boot == window.boot:
            for name in total:
                total[name] += max(0, getattr(live.counters, name) - getattr(window.live, name))
    return LiveCounters(**total)


def _open(analysis: AnalysisStatus, pods: Mapping[str, Live], policy: Analysis, now: datetime) -> bool:
    """Whether the window is old enough to be judged."""
    return bool(pods) and analysis.since is not None and now - analysis.since >= _interval(policy)


def _interval(policy: Analysis) -> timedelta:
    return timedelta(seconds=policy.interval_seconds)


def measure_baseline(
    analysis: AnalysisStatus, pods: Mapping[str, Live], policy: Analysis, now: datetime
) -> AnalysisStatus:
    """Watch ``pods`` until what they do can serve as the baseline, which is then set."""
    if analysis.since is None:
        analysis = analysis.model_copy(update={"since": now})
    analysis = _start(analysis, pods)
    done = _sum(analysis, pods)
    if not _open(analysis, pods, policy, now) or done.verify_rounds < policy.min_rounds:
        return analysis
    return AnalysisStatus(baseline=done)


def judge(
    analysis: AnalysisStatus,
    swapped: Mapping[str, Live],
    peers: Mapping[str, Live],
    policy: Analysis,
    *,
    steps: int,
    now: datetime,
) -> tuple[AnalysisStatus, Outcome]:
    """Judge the window when that is possible; the next one then begins.

    The first one begins an interval after the first call: until then requests end that the former draft began, and an
    engine counts a request's rounds when it ends.

    Args:
        steps: draft steps per round: a round accepts between 0 and this many tokens.
    """
    if analysis.since is None:
        return analysis.model_copy(update={"since": now + _interval(policy)}), Outcome.WAITING
    if now < analysis.since:
        return analysis, Outcome.WAITING
    everyone = {**swapped, **peers}
    analysis = _start(analysis, everyone)
    theirs, reference = _sum(analysis, swapped), _sum(analysis, peers)
    beside = reference.verify_rounds >= policy.min_rounds
    if not beside and analysis.baseline is not None:
        reference = analysis.baseline
    enough = min(theirs.verify_rounds, reference.verify_rounds) >= policy.min_rounds
    if not _open(analysis, swapped, policy, now) or not enough:
        return analysis, Outcome.WAITING
    outcome, message = compare(theirs, reference, policy, steps, beside=beside)
    if outcome is Outcome.WAITING:
        return analysis, outcome
    good = outcome is Outcome.GOOD
    update = {
        "since": now,
        "pods": [],
        "successes": analysis.successes + 1 if good else 0,
        "failures": analysis.failures + (0 if good else 1),
        "message": message,
    }
    return _start(analysis.model_copy(update=update), everyone), outcome


def compare(new: LiveCounters, old: LiveCounters, policy: Analysis, steps: int, *, beside: bool) -> tuple[Outcome, str]:
    """Whether ``new`` is as good as ``old`` within the policy, and the sentence that says so.

    Both have verify rounds. ``beside``: at the same time, under the same load. An acceptance length below its bar by no
    more than chance allows is undecided.
    """
    bar = 1 - float(policy.max_accept_loss)
    ours, theirs = _accept_length(new), _accept_length(old)
    error = math.hypot(_error(ours, new.verify_rounds, steps), bar * _error(theirs, old.verify_rounds, steps))
    said = [f"acceptance length {ours:.2f} against {theirs:.2f}"]
    shortfall = bar * theirs - ours
    bad, undecided = shortfall > Z * error, shortfall > 0
    if beside and new.gaps and old.gaps:
        gap, former = new.gap_milliseconds / new.gaps, old.gap_milliseconds / old.gaps
        said.append(f"{gap:.1f} ms between tokens against {former:.1f}")
        bad |= gap > former * (1 + float(policy.max_latency_increase))
    rate, former_rate = _error_rate(new), _error_rate(old)
    spread = Z * math.hypot(*(math.sqrt(r * (1 - r) / max(n, 1)) for r, n in _rates((new, old))))
    if rate or former_rate:
        said.append(f"{rate:.1%} of requests aborted against {former_rate:.1%}")
    bad |= rate - former_rate - spread > float(policy.max_error_rate)
    return Outcome.BAD if bad else Outcome.WAITING if undecided else Outcome.GOOD, ", ".join(said)


def _accept_length(counters: LiveCounters) -> float:
    return counters.answer_tokens / counters.verify_rounds


def _error(length: float, rounds: int, steps: int) -> float:
    """An upper bound of the mean's standard error: a variable between 0 and s with mean a varies by at most a(s - a)
    (Bhatia and Davis, 2000)."""
    accepted = min(max(length - 1, 0.0), float(steps))
    return math.sqrt(accepted * (steps - accepted) / rounds)


def _error_rate(counters: LiveCounters) -> float:
    return counters.aborted / max(counters.requests + counters.aborted, 1)


def _rates(sides: Iterable[LiveCounters]) -> Iterable[tuple[float, int]]:
    return ((_error_rate(side), side.requests + side.aborted) for side in sides)
