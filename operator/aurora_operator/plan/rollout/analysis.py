"""Judges a swapped draft by live traffic: windows over the pods' counters, and a count of the judgements. Pure.

A *window* begins with a copy of the pods' counters, and ends with the next judgement. A window is judged once it is old
enough and both sides have answered enough requests. The difference of the counters is the traffic of the window.

The judged pods are compared with their peers in the same window, because a shift of the traffic shifts both. Where no
peers are left, the judged pods are compared with the *baseline*: the traffic of all pods just before the first swap.

Acceptance. A server without the speculation controller drafts the same number of tokens in each verify round. Its
acceptance length is the number of answer tokens per verify round. With the controller, lookup proposes in some rounds,
the draft in others and nobody in the rest, and the number of steps changes. So only chains of the draft count, position
by position: the share of the chains with a token at a position that were accepted up to that position. One plus the sum
of the shares is the acceptance length of a chain with that many positions. A controller drafts where its draft does
well. So a better draft is used more widely, also where few tokens are accepted, and its share may be lower than that of
the draft before. Therefore a lower share counts only where the draft also adds fewer tokens to a round of any kind.
Both together cannot come from the choice of rounds alone.

Latency is not compared: it depends on the load and on other work of the pod's machine. The gate has measured it.

Invariants: a difference that chance explains makes no judgement, and the window grows until the window can be judged.
Two sides are compared over the same positions, and over positions only that both sides proposed for enough requests.
A pod that does not answer keeps its window. Counters of an engine that restarted are compared only with the same engine
start. The whole state is an :class:`AnalysisState`, so a restarted operator goes on with it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

from aurora_api.v1alpha1.status import MAX_PODS_SHOWN
from aurora_operator.plan.rollout.roll import AnalysisState, PodWindow
from aurora_operator.plan.rollout.world import AnalysisPolicy
from aurora_protocol.agent_api import DraftCounters, LiveCounters

MIN_Z_SCORE = 3.0
"""Standard errors that a loss must exceed. High, because windows are judged repeatedly and a rejection is final."""
PATIENCE = 3
"""A side that has answered this many times `minRequests` has had its chance to draft for `minRequests` of them."""
MIN_DRAFTED_REQUESTS = 10
"""Requests with proposals of the draft that suffice for a comparison once the patience is over. Their large error then
lets only a draft fail that is far worse."""
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
    """Whether the counters go on with those of the window, by the same engine start, version and way of counting."""
    counts_alike = (live.counters.draft is None) == (window.live.draft is None)
    return counts_alike and (live.boot, live.version) == (window.boot, window.version)


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
    steps: int,
    now: datetime,
) -> AnalysisState:
    """Judge the window when that is possible, and then begin the next one.

    The first window begins after a while, so that requests which the former draft began can end.

    Args:
        judged: the pods that serve ``version``.
        steps: draft steps of a round on a server without the speculation controller.
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
    found = compare(new, reference, policy, steps)
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


@dataclass(frozen=True)
class _Mean:
    """A mean and an upper bound of its standard error."""

    value: float
    error: float


def has_enough_requests(counters: LiveCounters, policy: AnalysisPolicy) -> bool:
    """Whether a side has answered enough requests to be compared at all."""
    return counters.requests >= policy.min_requests and counters.verify_rounds > 0


def compare(new: LiveCounters, old: LiveCounters, policy: AnalysisPolicy, steps: int) -> Comparison:
    """Whether ``new`` had as much accepted as ``old`` within the policy. Both must have :func:`has_enough_requests`.

    Args:
        steps: draft steps of a round on a server without the controller, which accepts between 0 and this many tokens.
    """
    if new.draft is None and old.draft is None:
        return _compare(_round_length(new, steps), _round_length(old, steps), policy)
    if new.draft is None or old.draft is None:
        text = "acceptance not judged: only some pods count what their draft proposed"
        return Comparison(Outcome.UNDECIDED, text)
    patient = min(new.requests, old.requests) < PATIENCE * policy.min_requests
    least = policy.min_requests if patient else min(policy.min_requests, MIN_DRAFTED_REQUESTS)
    positions = min(_positions(new.draft, least), _positions(old.draft, least))
    if positions:
        compared = _compare(_chain_length(new.draft, positions), _chain_length(old.draft, positions), policy)
        adds = f"{_added_tokens(new):.2f} accepted draft tokens a round against {_added_tokens(old):.2f}"
        adds_less = _added_tokens(new) < _added_tokens(old)
        text = f"{compared.text} over {positions} draft steps, {adds}"
        return Comparison(compared.outcome if adds_less else Outcome.GOOD, text)
    # Pods whose old draft hardly proposes lose nothing with a new one: there is nothing to compare the new one with.
    undecided = patient or _positions(old.draft, least) > 0
    return Comparison(
        Outcome.UNDECIDED if undecided else Outcome.GOOD,
        f"acceptance not judged: the new draft proposed tokens in {new.draft.requests} of {new.requests} requests,"
        f" and the former draft in {old.draft.requests} of {old.requests}",
    )


def _compare(new: _Mean, old: _Mean, policy: AnalysisPolicy) -> Comparison:
    kept_share = 1 - policy.max_accept_loss
    shortfall = kept_share * old.value - new.value
    text = f"acceptance length {new.value:.2f} against {old.value:.2f}"
    if shortfall > MIN_Z_SCORE * math.hypot(new.error, kept_share * old.error):
        return Comparison(Outcome.BAD, text)
    return Comparison(Outcome.UNDECIDED if shortfall > 0 else Outcome.GOOD, text)


def _round_length(counters: LiveCounters, steps: int) -> _Mean:
    """Answer tokens per verify round.

    A variable between 0 and s with mean a has a variance of at most a(s - a) (Bhatia and Davis, 2000). The rounds of a
    request resemble each other, so the sample size is the number of requests, not of rounds.
    """
    length = counters.answer_tokens / counters.verify_rounds
    accepted = min(max(length - 1, 0.0), float(steps))
    return _Mean(length, math.sqrt(accepted * (steps - accepted) / counters.requests))


def _added_tokens(counters: LiveCounters) -> float:
    """Accepted tokens of the draft per verify round, whoever proposed in the round."""
    accepted = sum(counters.draft.accepted_at) if counters.draft else 0
    return accepted / counters.verify_rounds


def _sample_sizes(draft: DraftCounters) -> Sequence[float]:
    """The requests that stand behind each position.

    The chains of a request resemble each other. So a position's share of the chains counts as that share of the
    requests.
    """
    chains = draft.proposed_at[0] if draft.proposed_at else 0
    return [draft.requests * min(1.0, proposed / chains) if chains else 0.0 for proposed in draft.proposed_at]


def _positions(draft: DraftCounters, least_requests: int) -> int:
    """The first positions that the draft proposed for at least ``least_requests`` requests."""
    sizes = _sample_sizes(draft)
    return next((at for at, size in enumerate(sizes) if size < least_requests), len(sizes))


def _chain_length(draft: DraftCounters, positions: int) -> _Mean:
    """Tokens that a chain of ``positions`` proposed tokens yields, the target's own included.

    The error of a share is that of Agresti and Coull (1998), which holds for shares near 0 and 1 too. Positions depend
    on each other in full at worst, so their errors add up.
    """
    length, error = 1.0, 0.0
    accepted_at = (*draft.accepted_at, *[0] * positions)
    for proposed, accepted, size in zip(draft.proposed_at, accepted_at, _sample_sizes(draft)[:positions], strict=False):
        share = min(1.0, accepted / proposed)
        added = MIN_Z_SCORE * MIN_Z_SCORE
        moderate = (share * size + added / 2) / (size + added)
        length += share
        error += math.sqrt(moderate * (1 - moderate) / (size + added))
    return _Mean(length, error)
