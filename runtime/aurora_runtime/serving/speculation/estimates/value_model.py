"""How many proposed tokens a round is expected to have accepted, by source, number of steps and request.

Rates are kept for the draft by position, and for lookup by length of the match. On top of them each request has odds
of its own per source, because one request copies its prompt while another one beside it does not.

Invariants:
- The model knows rounds, not time. Evidence fades with the proposals that were seen since, and more slowly with the
  rounds that went by without any. So a source that nobody tries any more becomes uncertain again, and is tried again.
  Once it was tried often enough, its rates stay, because a good source that is seldom tried must not seem bad.
- A request begins with the odds that recent requests ended with. A few proposals move the odds little.
- A draft is judged by its own proposals only. A version that serves again, after a rollback or in a measurement's next
  round, has the rates that it had.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from math import exp, log2
from typing import Final

from aurora_runtime.engine.arms import Source
from aurora_runtime.serving.speculation.estimates.survival import SurvivalRates, expected_accepted
from aurora_runtime.serving.speculation.outlook import CANNOT_DRAFT, RequestOutlook

MATCH_BUCKETS: Final = (1, 2, 3, 4, 5, 6, 8, 16, 32)
"""The shortest match of each bucket."""
MATCH_PRIORS: Final = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.5)
"""The rate of a bucket's first token before any observation. Low, because an unproven source must not cost much."""
LOOKUP_GROUPS: Final = (0, 1, 2, 2, 3)
"""Groups of the first positions of a lookup. All later positions belong to the last group."""
DRAFT_PRIOR: Final = 0.1
MEMORY_PROPOSALS: Final = 80.0
"""Proposals of a source after which earlier evidence counts for 1/e of its weight."""
LEAST_MEMORY_ROUNDS: Final = 20.0
"""Rounds with proposals after which earlier evidence counts for at least 1/e, however many requests propose at once. A
few rounds of a large batch alone would leave every rate, and so the best of many arms, to chance."""
MEMORY_ROUNDS: Final = 200.0
"""Rounds after which evidence counts for 1/e of its weight, even without a proposal."""
AGING_ROUNDS: Final = 16
"""Rounds between two reductions of unused evidence. Each reduction computes all curves again."""
ODDS_MEMORY: Final = 0.9
"""Weight that a request's earlier proposals keep with each further one."""
ODDS_WEIGHT: Final = 2.0
"""Successes and failures that a request's odds of 1 count for, by default. With fewer, one wrong proposal decides a
request's source."""
MAX_LEVEL: Final = 12
"""Odds are rounded to powers of the square root of 2, and kept within this many powers, so that curves are shared."""
START_GAIN: Final = 0.35
"""How much of the odds that a request ended with the next request begins with."""
MAX_VERSIONS: Final = 4
"""Draft versions whose rates are kept. Those that served last are kept longest."""
MAX_REQUESTS: Final = 4096
"""Requests whose odds are kept. The oldest are forgotten first."""

Curve = tuple[float, ...]
"""Expected accepted tokens by number of steps, from 0 steps on."""
Proposed = tuple[RequestOutlook, int, int]
"""A request, its accepted and its proposed tokens."""

_LONGEST_BUCKET: Final = MATCH_BUCKETS[-1]
_BUCKET_OF: Final = tuple(
    max(0, sum(start <= match for start in MATCH_BUCKETS) - 1) for match in range(_LONGEST_BUCKET + 1)
)


class _Odds:
    """How a request's proposals did against what was expected of them."""

    __slots__ = ("_start", "_weight", "expected_failures", "expected_successes", "failures", "level", "successes")

    def __init__(self, start: int, weight: float) -> None:
        self._weight = weight
        self.successes = self.expected_successes = self.failures = self.expected_failures = 0.0
        self._start = self.level = start

    def add(self, accepted: int, proposed: int, rates: Sequence[float]) -> None:
        """Learn from a proposal whose positions have the given rates."""
        failed = accepted < proposed
        tried = rates[: accepted + failed]
        if self._start:
            odds = 2.0 ** (self._start / 2)
            tried = [rate * odds / (1.0 - rate + rate * odds) for rate in tried]
        expected = sum(tried)
        self.successes = self.successes * ODDS_MEMORY + len(tried) - failed
        self.expected_successes = self.expected_successes * ODDS_MEMORY + expected
        self.failures = self.failures * ODDS_MEMORY + failed
        self.expected_failures = self.expected_failures * ODDS_MEMORY + len(tried) - expected
        better = (self.successes + self._weight) * (self.expected_failures + self._weight)
        worse = (self.failures + self._weight) * (self.expected_successes + self._weight)
        self.level = max(-MAX_LEVEL, min(MAX_LEVEL, self._start + round(2 * log2(better / worse))))


class _RequestOdds:
    """The odds of all running requests for one source, and the odds that a new request begins with.

    A new request begins with the odds that the last requests ended with. The rates cannot say this: they count
    proposals, and a request that proposes badly soon proposes no more, so the rates see little of it.
    """

    def __init__(self, weight: float) -> None:
        self._weight = weight
        self._odds: OrderedDict[str, _Odds] = OrderedDict()
        self._start = 0.0

    def __len__(self) -> int:
        return len(self._odds)

    def level(self, rid: str) -> int:
        """The level of a request's odds."""
        odds = self._odds.get(rid)
        return round(self._start) if odds is None else odds.level

    def of(self, rid: str) -> _Odds:
        """The odds of a request, new ones if there are none."""
        if (odds := self._odds.get(rid)) is None:
            odds = self._odds[rid] = _Odds(round(self._start), self._weight)
            if len(self._odds) > MAX_REQUESTS:
                self._odds.popitem(last=False)
        return odds

    def end(self, rid: str) -> None:
        """Forget a request, but not how it did."""
        if odds := self._odds.pop(rid, None):
            self._start += START_GAIN * (odds.level - self._start)

    def age(self) -> None:
        """Move the odds of new requests back towards 1, once in :data:`AGING_ROUNDS`.

        A request whose proposals fail stops proposing, so it ends with low odds. New requests would begin with them
        and propose nothing, and nothing would correct the odds.
        """
        self._start *= exp(-AGING_ROUNDS / MEMORY_ROUNDS)


class _SourceRates:
    """Rates with their curves, computed when first asked for after a change."""

    def __init__(self, positions: Sequence[int], prior: float) -> None:
        self._rates = SurvivalRates(positions, prior)
        self.has_accepted = False
        """Whether any token was ever accepted."""
        self._round = 0
        self._proposals = 0
        """Proposals seen so far."""
        self._curves: dict[tuple[int, float], Curve] = {}
        self._by_z: dict[float, list[float]] = {}

    def trials(self, position: int) -> float:
        return self._rates.trials(position)

    def learn(self, proposals: Sequence[tuple[_Odds, int, int]], now: int) -> None:
        """Learn from a round's proposals: the odds, the accepted and the proposed tokens of each."""
        mean = self.rates(0.0)
        used = min(len(proposals) / MEMORY_PROPOSALS, 1 / LEAST_MEMORY_ROUNDS)
        self._discount_idle(max(0, now - self._round - 1))
        self._rates.fade(1 / MEMORY_ROUNDS + used)
        self._round = now
        self._proposals += len(proposals)
        for odds, accepted, proposed in proposals:
            odds.add(accepted, proposed, mean)
            self._rates.add(accepted, proposed)
            self.has_accepted |= accepted > 0
        self._forget_curves()

    def serve(self, now: int) -> None:
        """Serve from round ``now`` on. The rounds before, in which another version served, reduce no evidence."""
        self._round = now

    def age(self, now: int) -> None:
        """Reduce the weight of evidence for the rounds that went by without a proposal."""
        if now - self._round >= AGING_ROUNDS:
            self._discount_idle(now - self._round)
            self._round = now
            self._forget_curves()

    def _discount_idle(self, rounds: int) -> None:
        """Reduce the weight of evidence for rounds without a proposal.

        The rates stay once enough was seen. Before, they return to the prior, or luck would last for long.
        """
        reduce = self._rates.fade if self._proposals < MEMORY_PROPOSALS else self._rates.forget
        reduce(rounds / MEMORY_ROUNDS)

    def _forget_curves(self) -> None:
        self._curves.clear()
        self._by_z.clear()

    def rates(self, z: float) -> list[float]:
        if (found := self._by_z.get(z)) is None:
            found = self._by_z[z] = self._rates.rates(z)
        return found

    def curve(self, level: int, z: float) -> Curve:
        key = (level, z)
        if (found := self._curves.get(key)) is None:
            found = self._curves[key] = expected_accepted(self.rates(z), 2.0 ** (level / 2))
        return found


class ValueModel:
    """Expected accepted tokens of each request."""

    def __init__(self, max_steps: int, odds_weight: float = ODDS_WEIGHT) -> None:
        self._max_steps = max_steps
        self._odds_weight = odds_weight
        self._round = 0
        self._nothing: Curve = (0.0,) * (max_steps + 1)
        self._lookup_odds = _RequestOdds(self._odds_weight)
        self._drafts: OrderedDict[str, _SourceRates] = OrderedDict()
        self.draft_serves("")
        groups = [LOOKUP_GROUPS[min(d, len(LOOKUP_GROUPS) - 1)] for d in range(max(1, max_steps))]
        self._lookup = [_SourceRates(groups, prior) for prior in MATCH_PRIORS]

    def draft_serves(self, version: str) -> None:
        """The draft ``version`` serves from now on. What requests had from another draft says nothing about it."""
        if version not in self._drafts:
            self._drafts[version] = _SourceRates(range(max(1, self._max_steps)), DRAFT_PRIOR)
        self._drafts.move_to_end(version)
        self._draft = self._drafts[version]
        self._draft.serve(self._round)
        if len(self._drafts) > MAX_VERSIONS:
            self._drafts.popitem(last=False)
        self._draft_odds = _RequestOdds(self._odds_weight)

    def request_ended(self, rid: str) -> None:
        """Forget a request. An unknown request is ignored."""
        self._draft_odds.end(rid)
        self._lookup_odds.end(rid)

    @property
    def tracked_requests(self) -> int:
        """Requests that odds are kept of, the larger number of the two sources."""
        return max(len(self._draft_odds), len(self._lookup_odds))

    def draft_trials(self, position: int) -> float:
        """The weight of what is known about the draft's proposals at a position, counted from 0."""
        return self._draft.trials(position)

    @property
    def draft_has_accepted(self) -> bool:
        """Whether any token of the serving draft was ever accepted."""
        return self._draft.has_accepted

    def lookup_curve(self, outlook: RequestOutlook, z: float = 0.0) -> Curve:
        """Expected accepted tokens of a request's lookup, ``z`` standard errors above the estimate."""
        length = outlook.lookup_length
        if outlook.lookup_match <= 0 or length <= 0:
            return self._nothing
        bucket = self._lookup[_BUCKET_OF[min(outlook.lookup_match, _LONGEST_BUCKET)]]
        curve = bucket.curve(self._lookup_odds.level(outlook.rid), z)
        if length >= self._max_steps:
            return curve
        return curve[: length + 1] + (curve[length],) * (self._max_steps - length)

    def draft_curve(self, outlook: RequestOutlook, z: float = 0.0) -> Curve:
        """Expected accepted tokens of a request's chain, ``z`` standard errors above the estimate."""
        if outlook.pending == CANNOT_DRAFT:
            return self._nothing
        return self._draft.curve(self._draft_odds.level(outlook.rid), z)

    def begin_round(self) -> None:
        """Count a round. Evidence of earlier rounds fades."""
        self._round += 1
        if self._round % AGING_ROUNDS == 0:
            self._draft_odds.age()
            self._lookup_odds.age()
            for rates in (self._draft, *self._lookup):
                rates.age(self._round)

    def learn(self, source: Source, proposals: Iterable[Proposed]) -> None:
        """Learn from a round's proposals of one source. Proposals without tokens are ignored."""
        if source is Source.DRAFT:
            learned = [(self._draft_odds.of(o.rid), a, p) for o, a, p in proposals if p > 0]
            if learned:
                self._draft.learn(learned, self._round)
        elif source is Source.LOOKUP:
            by_bucket = dict[int, list[tuple[_Odds, int, int]]]()
            for o, a, p in proposals:
                if p > 0 and o.lookup_match > 0:
                    bucket = _BUCKET_OF[min(o.lookup_match, _LONGEST_BUCKET)]
                    by_bucket.setdefault(bucket, []).append((self._lookup_odds.of(o.rid), a, p))
            for bucket, group in by_bucket.items():
                self._lookup[bucket].learn(group, self._round)
