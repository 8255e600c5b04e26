"""Whether what some pods did is as good as what others did: pure statistics over two sums of counters.

Invariants: what misses its bar by no more than chance allows is undecided, never bad; times that depend on the load are
compared only between sides that share it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto

from aurora_api.v1alpha1.rollout import AnalysisSpec
from aurora_protocol.agent_api import LiveCounters

Z = 3.0
"""Standard errors that a loss must exceed: windows are looked at again and again, and a verdict is for good."""


class Outcome(Enum):
    WAITING = auto()
    """Not enough traffic, or within chance."""
    GOOD = auto()
    SLOW = auto()
    """Worse in nothing but the time between tokens."""
    BAD = auto()


@dataclass(frozen=True)
class _Mean:
    """A mean and an upper bound of its standard error."""

    value: float
    error: float


def enough(counters: LiveCounters, policy: AnalysisSpec) -> bool:
    """Whether a side did so much that it can be compared at all."""
    return counters.requests >= policy.min_requests and counters.verify_rounds > 0


def precise(counters: LiveCounters, policy: AnalysisSpec, steps: int) -> bool:
    """Whether chance moves the acceptance length by less than the policy lets go; what did :func:`enough`."""
    length = _accept_length(counters, steps)
    return Z * length.error <= float(policy.max_accept_loss) * length.value


def compare(
    new: LiveCounters, old: LiveCounters, policy: AnalysisSpec, steps: int, *, beside: bool
) -> tuple[Outcome, str]:
    """Whether ``new`` is as good as ``old`` within the policy, and the sentence that says so.

    Both did :func:`enough`. What misses its bar by no more than chance allows is undecided.

    Args:
        steps: draft steps per round: a round accepts between 0 and this many tokens.
        beside: both at the same time, under the same load.
    """
    ours, theirs = _accept_length(new, steps), _accept_length(old, steps)
    said = [f"acceptance length {ours.value:.2f} against {theirs.value:.2f}"]
    kept = 1 - float(policy.max_accept_loss)
    shortfall = kept * theirs.value - ours.value
    bad, undecided = shortfall > Z * math.hypot(ours.error, kept * theirs.error), shortfall > 0
    slow = False
    gap, others = _gap(new, policy), _gap(old, policy)
    if beside and gap and others:
        said.append(f"{gap.value:.1f} ms between tokens against {others.value:.1f}")
        allowed = 1 + float(policy.max_latency_increase)
        excess = gap.value - allowed * others.value
        slow = excess > Z * math.hypot(gap.error, allowed * others.error)
        undecided |= excess > 0
    if new.aborted or old.aborted:
        said.append(f"{new.aborted} of {new.requests} requests given up against {old.aborted} of {old.requests}")
        bad |= _rate_increase(new, old) > float(policy.max_abort_increase)
    outcome = Outcome.BAD if bad else Outcome.SLOW if slow else Outcome.WAITING if undecided else Outcome.GOOD
    return outcome, ", ".join(said)


def _accept_length(counters: LiveCounters, steps: int) -> _Mean:
    """Answer tokens per verify round.

    A variable between 0 and s with mean a varies by at most a(s - a) (Bhatia and Davis, 2000). The rounds of a request
    resemble each other, so requests are counted, not rounds.
    """
    length = counters.answer_tokens / counters.verify_rounds
    accepted = min(max(length - 1, 0.0), float(steps))
    return _Mean(length, math.sqrt(accepted * (steps - accepted) / counters.requests))


def _gap(counters: LiveCounters, policy: AnalysisSpec) -> _Mean | None:
    """Milliseconds between tokens, over requests; None where too few were counted, or their squares are not bounded.

    Not every request has a gap: a spread of few would be nothing but luck.
    """
    if not counters.gap_squares or counters.gaps < policy.min_requests:
        return None
    mean = counters.gap_milliseconds / counters.gaps
    return _Mean(mean, math.sqrt(max(counters.gap_squares / counters.gaps - mean * mean, 0.0) / counters.gaps))


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
