"""Compares two groups of pods by the sums of their counters: acceptance length, time between tokens, aborts. Pure.

Invariants: a side that misses its bar by no more than chance allows is undecided, never bad. Times that depend on the
load are compared only between sides that share it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto

from aurora_api.v1alpha1.rollout import AnalysisSpec
from aurora_protocol.agent_api import LiveCounters

MIN_Z_SCORE = 3.0
"""Standard errors that a loss must exceed. High, because windows are judged repeatedly and a rejection is final."""


class Outcome(Enum):
    UNDECIDED = auto()
    """Misses a bar, but by no more than chance allows."""
    GOOD = auto()
    SLOW = auto()
    """Worse only in the time between tokens."""
    BAD = auto()


@dataclass(frozen=True)
class _Mean:
    """A mean and an upper bound of its standard error."""

    value: float
    error: float


def has_enough_requests(counters: LiveCounters, policy: AnalysisSpec) -> bool:
    """Whether a side has answered enough requests to be compared at all."""
    return counters.requests >= policy.min_requests and counters.verify_rounds > 0


def is_precise(counters: LiveCounters, policy: AnalysisSpec, steps: int) -> bool:
    """Whether chance moves the acceptance length by less than the loss that the policy tolerates.

    ``counters`` must have :func:`has_enough_requests`.
    """
    length = _accept_length(counters, steps)
    return MIN_Z_SCORE * length.error <= float(policy.max_accept_loss) * length.value


def compare(
    new: LiveCounters, old: LiveCounters, policy: AnalysisSpec, steps: int, *, same_load: bool
) -> tuple[Outcome, str]:
    """Whether ``new`` is as good as ``old`` within the policy, and a message with the numbers.

    Both sides must have :func:`has_enough_requests`.

    Args:
        steps: draft steps per round: a round accepts between 0 and this many tokens.
        same_load: both sides answered at the same time, under the same load.
    """
    new_length, old_length = _accept_length(new, steps), _accept_length(old, steps)
    parts = [f"acceptance length {new_length.value:.2f} against {old_length.value:.2f}"]
    kept_share = 1 - float(policy.max_accept_loss)
    shortfall = kept_share * old_length.value - new_length.value
    bad = shortfall > MIN_Z_SCORE * math.hypot(new_length.error, kept_share * old_length.error)
    undecided = shortfall > 0
    slow = False
    new_gap, old_gap = _gap(new, policy), _gap(old, policy)
    if same_load and new_gap and old_gap:
        parts.append(f"{new_gap.value:.1f} ms between tokens against {old_gap.value:.1f}")
        allowed = 1 + float(policy.max_latency_increase)
        excess = new_gap.value - allowed * old_gap.value
        slow = excess > MIN_Z_SCORE * math.hypot(new_gap.error, allowed * old_gap.error)
        undecided |= excess > 0
    if new.aborted or old.aborted:
        parts.append(
            f"{new.aborted} of {new.requests} requests aborted by clients against {old.aborted} of {old.requests}"
        )
        bad |= _rate_increase(new, old) > float(policy.max_abort_increase)
    outcome = Outcome.BAD if bad else Outcome.SLOW if slow else Outcome.UNDECIDED if undecided else Outcome.GOOD
    return outcome, ", ".join(parts)


def _accept_length(counters: LiveCounters, steps: int) -> _Mean:
    """Answer tokens per verify round.

    A variable between 0 and s with mean a has a variance of at most a(s - a) (Bhatia and Davis, 2000). The rounds of a
    request resemble each other, so the sample size is the number of requests, not of rounds.
    """
    length = counters.answer_tokens / counters.verify_rounds
    accepted = min(max(length - 1, 0.0), float(steps))
    return _Mean(length, math.sqrt(accepted * (steps - accepted) / counters.requests))


def _gap(counters: LiveCounters, policy: AnalysisSpec) -> _Mean | None:
    """Mean milliseconds between tokens, over requests.

    None when the sum of squares is unknown, or when too few requests have a time between tokens: the spread of a few
    requests would be luck.
    """
    if not counters.gap_squares or counters.gaps < policy.min_requests:
        return None
    mean = counters.gap_milliseconds / counters.gaps
    return _Mean(mean, math.sqrt(max(counters.gap_squares / counters.gaps - mean * mean, 0.0) / counters.gaps))


def _rate_increase(new: LiveCounters, old: LiveCounters) -> float:
    """Lower bound of the increase of the share of aborted requests (Newcombe, 1998, method 10)."""
    (rate, low, _), (former, _, high) = _wilson(new), _wilson(old)
    return rate - former - math.hypot(rate - low, high - former)


def _wilson(counters: LiveCounters) -> tuple[float, float, float]:
    """Share of aborted requests with its Wilson interval.

    ``requests`` may or may not include the aborted ones, so the larger number counts.
    """
    count = max(counters.requests, counters.aborted, 1)
    rate = counters.aborted / count
    z_squared = MIN_Z_SCORE * MIN_Z_SCORE
    middle = rate + z_squared / (2 * count)
    spread = MIN_Z_SCORE * math.sqrt(rate * (1 - rate) / count + z_squared / (4 * count * count))
    whole = 1 + z_squared / count
    return rate, (middle - spread) / whole, (middle + spread) / whole
