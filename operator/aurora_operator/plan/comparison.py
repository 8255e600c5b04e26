"""Whether what some pods did is as good as what others did: pure statistics over two sums of counters.

Pods are compared with their *peers*, who share the traffic's shifts and the load, or with what all pods did at another
time, when the load says nothing. Pods differ without any draft's doing, too: by their machine, or because sessions
stick to them. So a side that was worse than its peers in its *past*, beyond chance, is held to the same distance.

Invariants: what misses its bar by no more than chance allows is undecided, never bad; a past that chance explains
changes nothing, and none makes a bar stricter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from aurora_api.agent import LiveCounters
from aurora_api.speculator import Analysis

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
class Past:
    """What two sides that are compared now did at the same time before, with the same draft on both."""

    ours: LiveCounters
    theirs: LiveCounters


@dataclass(frozen=True)
class _Mean:
    """A mean and an upper bound of its standard error."""

    value: float
    error: float

    def times(self, other: _Mean) -> _Mean:
        """The product of two means that know nothing of each other."""
        return _Mean(self.value * other.value, math.hypot(self.error * other.value, other.error * self.value))


_ALIKE = _Mean(1.0, 0.0)


def enough(counters: LiveCounters, policy: Analysis) -> bool:
    """Whether a side did so much that it can be compared at all."""
    return counters.requests >= policy.min_requests and counters.verify_rounds > 0


def compare(
    new: LiveCounters, old: LiveCounters, policy: Analysis, steps: int, *, beside: bool, past: Past | None = None
) -> tuple[Outcome, str]:
    """Whether ``new`` is as good as ``old`` within the policy, and the sentence that says so.

    Both have verify rounds and requests. What misses its bar by no more than chance allows is undecided.

    Args:
        steps: draft steps per round: a round accepts between 0 and this many tokens.
        beside: both at the same time, under the same load.
        past: counts where either side had as many requests as a judgement needs.
    """
    past = past if past and enough(past.ours, policy) and enough(past.theirs, policy) else None
    ours, theirs = _accept_length(new, steps), _accept_length(old, steps)
    said = [f"acceptance length {ours.value:.2f} against {theirs.value:.2f}"]
    usual = _usual(past, lambda counters: _accept_length(counters, steps))
    if usual.value < 1:
        theirs = theirs.times(usual)
        said.append(f"of which {usual.value:.2f} is usual for these pods")
    kept = 1 - float(policy.max_accept_loss)
    shortfall = kept * theirs.value - ours.value
    bad, undecided = shortfall > Z * math.hypot(ours.error, kept * theirs.error), shortfall > 0
    slow = False
    gap, others = _gap(new), _gap(old)
    if beside and gap and others:
        said.append(f"{gap.value:.1f} ms between tokens against {others.value:.1f}")
        usual = _usual(past, _gap)
        if usual.value > 1:
            others = others.times(usual)
            said.append(f"of which {usual.value:.2f} is usual for these pods")
        allowed = 1 + float(policy.max_latency_increase)
        excess = gap.value - allowed * others.value
        slow = excess > Z * math.hypot(gap.error, allowed * others.error)
        undecided |= excess > 0
    if new.aborted or old.aborted:
        said.append(f"{new.aborted} of {new.requests} requests given up against {old.aborted} of {old.requests}")
        rise = _rate_increase(new, old)
        if past and _rate_increase(past.ours, past.theirs) > 0:
            rise = min(rise, _rate_increase(new, past.ours))
        bad |= rise > float(policy.max_abort_increase)
    outcome = Outcome.BAD if bad else Outcome.SLOW if slow else Outcome.WAITING if undecided else Outcome.GOOD
    return outcome, ", ".join(said)


def _usual(past: Past | None, mean: Callable[[LiveCounters], _Mean | None]) -> _Mean:
    """How many times the peers' ``mean`` is usual for our pods; exactly one where chance explains it."""
    ours, theirs = (mean(past.ours), mean(past.theirs)) if past else (None, None)
    if not ours or not theirs or not ours.value or not theirs.value:
        return _ALIKE
    if abs(ours.value - theirs.value) <= Z * math.hypot(ours.error, theirs.error):
        return _ALIKE
    ratio = ours.value / theirs.value
    return _Mean(ratio, ratio * math.hypot(ours.error / ours.value, theirs.error / theirs.value))


def _accept_length(counters: LiveCounters, steps: int) -> _Mean:
    """Answer tokens per verify round.

    A variable between 0 and s with mean a varies by at most a(s - a) (Bhatia and Davis, 2000). The rounds of a request
    resemble each other, so requests are counted, not rounds.
    """
    length = counters.answer_tokens / counters.verify_rounds
    accepted = min(max(length - 1, 0.0), float(steps))
    return _Mean(length, math.sqrt(accepted * (steps - accepted) / counters.requests))


def _gap(counters: LiveCounters) -> _Mean | None:
    """Milliseconds between tokens, over requests; None where the agent does not bound the sum of squares."""
    if not counters.gap_squares:
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
