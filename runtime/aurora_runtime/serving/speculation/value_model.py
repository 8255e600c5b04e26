"""How many proposed tokens a round is expected to have accepted, by source, number of steps and request.

Rates are kept for the draft by position, and for lookup by length of the match. On top of them each request has odds
of its own per source, because one request copies its prompt while another one beside it does not.

Invariants:
- The model knows rounds, not time. Evidence fades with the rounds that were played since.
- A request's odds are 1 until the request has proposals of its own. Few proposals move the odds little.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import log2
from typing import Final

from aurora_runtime.serving.speculation.arms import Source
from aurora_runtime.serving.speculation.outlook import CANNOT_DRAFT, RequestOutlook
from aurora_runtime.serving.speculation.survival import SurvivalRates, expected_accepted

MATCH_BUCKETS: Final = (1, 3, 4, 5, 6, 8, 16, 32)
"""The shortest match of each bucket."""
MATCH_PRIORS: Final = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.5)
"""The rate of a bucket's first token before any observation. Low, because an unproven source must not cost much."""
LOOKUP_GROUPS: Final = (0, 1, 2, 2, 3)
"""Groups of the first positions of a lookup. All later positions belong to the last group."""
DRAFT_PRIOR: Final = 0.1
MEMORY_ROUNDS: Final = 40.0
"""Rounds after which evidence counts for 1/e of its weight."""
ODDS_MEMORY: Final = 0.9
"""Weight that a request's earlier rounds keep with each proposal."""
ODDS_WEIGHT: Final = 1.5
"""Successes and failures that a request's odds of 1 count for."""
MAX_LEVEL: Final = 6
"""Odds are rounded to powers of 2 between ``2 ** -MAX_LEVEL`` and ``2 ** MAX_LEVEL``, so that curves can be shared."""
MAX_REQUESTS: Final = 4096
"""Requests whose odds are kept. The oldest are forgotten first."""

Curve = tuple[float, ...]
"""Expected accepted tokens by number of steps, from 0 steps on."""


@dataclass
class _RequestOdds:
    """How a request's proposals did against what the rates said of them, by source."""

    successes: float = 0.0
    expected_successes: float = 0.0
    failures: float = 0.0
    expected_failures: float = 0.0
    level: int = 0

    def add(self, accepted: int, proposed: int, rates: Sequence[float]) -> None:
        """Learn from a proposal whose positions have the given rates."""
        failed = accepted < proposed
        tried = rates[: accepted + failed]
        expected = sum(tried)
        self.successes = self.successes * ODDS_MEMORY + min(accepted, len(rates))
        self.expected_successes = self.expected_successes * ODDS_MEMORY + expected
        self.failures = self.failures * ODDS_MEMORY + failed
        self.expected_failures = self.expected_failures * ODDS_MEMORY + len(tried) - expected
        better = (self.successes + ODDS_WEIGHT) / (self.expected_successes + ODDS_WEIGHT)
        worse = (self.failures + ODDS_WEIGHT) / (self.expected_failures + ODDS_WEIGHT)
        self.level = max(-MAX_LEVEL, min(MAX_LEVEL, round(log2(better / worse))))


@dataclass
class _Request:
    draft: _RequestOdds = field(default_factory=_RequestOdds)
    lookup: _RequestOdds = field(default_factory=_RequestOdds)


class _SourceRates:
    """Rates with their curves, computed when first asked for after a change."""

    def __init__(self, rates: SurvivalRates) -> None:
        self._rates = rates
        self._round = 0
        self._curves: dict[tuple[int, float], Curve] = {}
        self._mean: list[float] | None = None

    @property
    def trials(self) -> float:
        return self._rates.trials

    @property
    def mean(self) -> list[float]:
        if self._mean is None:
            self._mean = self._rates.rates()
        return self._mean

    def learn(self, accepted: int, proposed: int, now: int) -> None:
        if now != self._round:
            self._rates.fade(2.718281828 ** ((self._round - now) / MEMORY_ROUNDS))
            self._round = now
        self._rates.add(accepted, proposed)
        self._curves.clear()
        self._mean = None

    def curve(self, level: int, z: float) -> Curve:
        key = (level, z)
        if (found := self._curves.get(key)) is None:
            rates = self._rates.rates(z) if z else self.mean
            found = self._curves[key] = expected_accepted(rates, 2.0**level)
        return found


class ValueModel:
    """Expected accepted tokens of each request."""

    def __init__(self, max_steps: int) -> None:
        self._max_steps = max_steps
        self._round = 0
        self._requests: OrderedDict[str, _Request] = OrderedDict()
        self._draft = self._new_draft()
        groups = [LOOKUP_GROUPS[min(d, len(LOOKUP_GROUPS) - 1)] for d in range(max_steps)] or [0]
        self._lookup = [_SourceRates(SurvivalRates(groups, prior)) for prior in MATCH_PRIORS]

    @cached_property
    def _nothing(self) -> Curve:
        return (0.0,) * (self._max_steps + 1)

    def _new_draft(self) -> _SourceRates:
        return _SourceRates(SurvivalRates(range(max(1, self._max_steps)), DRAFT_PRIOR))

    def draft_replaced(self) -> None:
        """Forget what the former draft did."""
        self._draft = self._new_draft()
        for request in self._requests.values():
            request.draft = _RequestOdds()

    def request_ended(self, rid: str) -> None:
        """Forget a request. An unknown request is ignored."""
        self._requests.pop(rid, None)

    def lookup_curve(self, outlook: RequestOutlook, z: float = 0.0) -> Curve:
        """Expected accepted tokens of a request's lookup, ``z`` standard errors above the estimate."""
        if outlook.lookup_match <= 0 or outlook.lookup_length <= 0:
            return self._nothing
        request = self._requests.get(outlook.rid)
        bucket = self._lookup[bisect_right(MATCH_BUCKETS, outlook.lookup_match) - 1]
        curve = bucket.curve(request.lookup.level if request else 0, z)
        length = outlook.lookup_length
        if length >= self._max_steps:
            return curve
        return curve[: length + 1] + (curve[length],) * (self._max_steps - length)

    def draft_curve(self, outlook: RequestOutlook, z: float = 0.0) -> Curve:
        """Expected accepted tokens of a request's chain, ``z`` standard errors above the estimate."""
        if outlook.pending == CANNOT_DRAFT:
            return self._nothing
        request = self._requests.get(outlook.rid)
        return self._draft.curve(request.draft.level if request else 0, z)

    def begin_round(self) -> None:
        """Count a round. Evidence of earlier rounds fades."""
        self._round += 1

    def learn(self, source: Source, outlook: RequestOutlook, accepted: int, proposed: int) -> None:
        """Learn that ``accepted`` of ``proposed`` tokens of a request's proposal were right."""
        if proposed <= 0 or source is Source.NONE:
            return
        if source is Source.DRAFT:
            rates = self._draft
        elif outlook.lookup_match <= 0:
            return
        else:
            rates = self._lookup[bisect_right(MATCH_BUCKETS, outlook.lookup_match) - 1]
        request = self._requests.get(outlook.rid)
        if request is None:
            request = self._requests[outlook.rid] = _Request()
            if len(self._requests) > MAX_REQUESTS:
                self._requests.popitem(last=False)
        odds = request.draft if source is Source.DRAFT else request.lookup
        odds.add(accepted, proposed, rates.mean)
        rates.learn(accepted, proposed, self._round)
