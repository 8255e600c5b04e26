"""Compares how many proposed tokens two groups of pods had accepted, by the sums of their counters. Pure.

A server without the speculation controller drafts the same number of tokens in each verify round. Its acceptance length
is the number of answer tokens per verify round.

With the controller, lookup proposes in some rounds, the draft in others and nobody in the rest, and the number of steps
changes. So only chains of the draft count, position by position: the share of the chains with a token at a position
that were accepted up to that position. One plus the sum of the shares is the acceptance length of a chain with that
many positions.

A controller drafts where its draft does well. So a better draft is used more widely, also where few tokens are
accepted, and its share may be lower than that of the draft before. Therefore a lower share counts only where the draft
also adds fewer tokens to a round of any kind. Both together cannot come from the choice of rounds alone.

Invariants: a side that misses its bar by no more than chance allows is undecided, never bad. Two sides are compared
over the same positions, and over positions only that both sides proposed for enough requests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from aurora_api.v1alpha1.rollout import AnalysisSpec
from aurora_protocol.agent_api import DraftCounters, LiveCounters

MIN_Z_SCORE = 3.0
"""Standard errors that a loss must exceed. High, because windows are judged repeatedly and a rejection is final."""
PATIENCE = 3
"""A side that has answered this many times `minRequests` has had its chance to draft for `minRequests` of them."""
MIN_DRAFTED_REQUESTS = 10
"""Requests with proposals of the draft that suffice for a comparison once the patience is over. Their large error then
lets only a draft fail that is far worse."""


@dataclass(frozen=True)
class Mean:
    """A mean and an upper bound of its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Acceptance:
    """The result of a comparison, and a text with the numbers. Neither bad nor undecided: nothing speaks against it."""

    text: str
    bad: bool = False
    undecided: bool = False


def is_precise(counters: LiveCounters, policy: AnalysisSpec, steps: int) -> bool:
    """Whether chance moves the acceptance length by less than the loss that the policy tolerates.

    ``counters`` must hold verify rounds.
    """
    length = _round_length(counters, steps)
    if counters.draft is not None:
        positions = _positions(counters.draft, policy.min_requests)
        if not positions:
            return False
        length = _chain_length(counters.draft, positions)
    return MIN_Z_SCORE * length.error <= float(policy.max_accept_loss) * length.value


def compare_acceptance(new: LiveCounters, old: LiveCounters, policy: AnalysisSpec, steps: int) -> Acceptance:
    """Whether ``new`` had as much accepted as ``old`` within the policy. Both must hold requests and verify rounds.

    Args:
        steps: draft steps of a round on a server without the controller, which accepts between 0 and this many tokens.
    """
    if new.draft is None and old.draft is None:
        return _compare(_round_length(new, steps), _round_length(old, steps), policy)
    if new.draft is None or old.draft is None:
        return Acceptance("acceptance not judged: only some pods count what their draft proposed", undecided=True)
    patient = min(new.requests, old.requests) < PATIENCE * policy.min_requests
    least = policy.min_requests if patient else min(policy.min_requests, MIN_DRAFTED_REQUESTS)
    positions = min(_positions(new.draft, least), _positions(old.draft, least))
    if positions:
        compared = _compare(_chain_length(new.draft, positions), _chain_length(old.draft, positions), policy)
        adds = f"{_added_tokens(new):.2f} accepted draft tokens a round against {_added_tokens(old):.2f}"
        text = f"{compared.text} over {positions} draft steps, {adds}"
        less = _added_tokens(new) < _added_tokens(old)
        return Acceptance(text, bad=compared.bad and less, undecided=compared.undecided and less)
    # Pods whose old draft hardly proposes lose nothing with a new one: there is nothing to compare the new one with.
    return Acceptance(
        f"acceptance not judged: the new draft proposed tokens in {new.draft.requests} of {new.requests} requests,"
        f" and the former draft in {old.draft.requests} of {old.requests}",
        undecided=patient or _positions(old.draft, least) > 0,
    )


def _compare(new: Mean, old: Mean, policy: AnalysisSpec) -> Acceptance:
    kept_share = 1 - float(policy.max_accept_loss)
    shortfall = kept_share * old.value - new.value
    return Acceptance(
        f"acceptance length {new.value:.2f} against {old.value:.2f}",
        bad=shortfall > MIN_Z_SCORE * math.hypot(new.error, kept_share * old.error),
        undecided=shortfall > 0,
    )


def _round_length(counters: LiveCounters, steps: int) -> Mean:
    """Answer tokens per verify round.

    A variable between 0 and s with mean a has a variance of at most a(s - a) (Bhatia and Davis, 2000). The rounds of a
    request resemble each other, so the sample size is the number of requests, not of rounds.
    """
    length = counters.answer_tokens / counters.verify_rounds
    accepted = min(max(length - 1, 0.0), float(steps))
    return Mean(length, math.sqrt(accepted * (steps - accepted) / counters.requests))


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


def _chain_length(draft: DraftCounters, positions: int) -> Mean:
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
    return Mean(length, error)
