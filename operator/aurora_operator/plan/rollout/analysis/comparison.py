"""Compares two groups of pods by the sums of their counters: acceptance, time between tokens, aborts. Pure.

Invariants: a side that misses its bar by no more than chance allows is undecided, never bad. Times that depend on the
load are compared only between sides that share it.
"""

from __future__ import annotations

import math
from enum import Enum, auto

from aurora_api.v1alpha1.rollout import AnalysisSpec
from aurora_operator.plan.rollout.analysis.acceptance import MIN_Z_SCORE, Mean, compare_acceptance
from aurora_protocol.agent_api import LiveCounters


class Outcome(Enum):
    UNDECIDED = auto()
    """Misses a bar, but by no more than chance allows."""
    GOOD = auto()
    SLOW = auto()
    """Worse only in the time between tokens."""
    BAD = auto()


def has_enough_requests(counters: LiveCounters, policy: AnalysisSpec) -> bool:
    """Whether a side has answered enough requests to be compared at all."""
    return counters.requests >= policy.min_requests and counters.verify_rounds > 0


def compare(
    new: LiveCounters, old: LiveCounters, policy: AnalysisSpec, steps: int, *, same_load: bool
) -> tuple[Outcome, str]:
    """Whether ``new`` is as good as ``old`` within the policy, and a message with the numbers.

    Both sides must have :func:`has_enough_requests`.

    Args:
        steps: draft steps of a round on a server without the speculation controller.
        same_load: both sides answered at the same time, under the same load.
    """
    acceptance = compare_acceptance(new, old, policy, steps)
    parts, bad, undecided = [acceptance.text], acceptance.bad, acceptance.undecided
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


def _gap(counters: LiveCounters, policy: AnalysisSpec) -> Mean | None:
    """Mean milliseconds between tokens, over requests.

    None when the sum of squares is unknown, or when too few requests have a time between tokens: the spread of a few
    requests would be luck.
    """
    if not counters.gap_squares or counters.gaps < policy.min_requests:
        return None
    mean = counters.gap_milliseconds / counters.gaps
    return Mean(mean, math.sqrt(max(counters.gap_squares / counters.gaps - mean * mean, 0.0) / counters.gaps))


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
