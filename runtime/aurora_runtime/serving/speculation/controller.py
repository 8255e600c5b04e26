"""Chooses each decode round's arm and sources: the most expected tokens per expected millisecond.

The controller is *parked* or *active*. It parks when nothing has paid for some rounds: the next rounds are off, and
nobody asks the controller. While it is active, it weighs survival rates against a table of measured times
(:mod:`estimates`).

The draft is *in use* or not. In use, it processes every prompt and every round, so any request can draft in any round.
Otherwise it processes one prefill in :data:`PROBE_PREFILLS`, and these requests may draft in a few rounds, so that its
survival stays known. It comes into use when rounds of a batch that it serves would be faster than rounds without it,
its own passes included.

A *trial* is a round that runs to learn, because its arm may be better than it seems. After a trial that lost the time
of x rounds of off, there is none for x / :data:`TRIAL_SHARE` rounds.

Invariants:
- No clock, no chance, no torch, no SGLang: the controller is a function of its calls. Controllers with equal calls
  decide equally.
- :meth:`Controller.choose` needs no observation of the round before, so that an engine may launch a round before the
  last one has ended.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from math import log
from typing import Final, NamedTuple

from aurora_runtime.engine.arms import OFF, Arm, Source
from aurora_runtime.serving.speculation.estimates import (
    CostTable,
    Curve,
    RequestOdds,
    SurvivalRates,
    size_range,
)
from aurora_runtime.serving.speculation.rounds import (
    Decision,
    Outcome,
    RequestOutlook,
)

# values
MATCH_BUCKETS: Final = (1, 2, 3, 4, 5, 6, 8, 16, 32)
"""The shortest match of each bucket of lookups, which have rates of their own."""
MATCH_PRIORS: Final = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.5)
"""The rate of a bucket's first token before any observation. Low, because an unproven source must not cost much."""
DRAFT_PRIOR: Final = 0.1
# choice
OFF_PREFERENCE: Final = 0.02
"""Share by which an arm must beat off. Estimates of arms that are about as good are not worth a difference."""
LOOKUP_LEAD: Final = 0.05
"""Share by which lookup must promise more tokens than the draft, the target's own included, to replace it. The larger
of two uncertain estimates is on average too high."""
# trials
TRIAL_SHARE: Final = 0.01
"""The share of the time that trials may lose."""
LEAST_TRIAL_ROUNDS: Final = 4
OPTIMISM: Final = 1.5
"""Standard deviations above the estimate with which a trial's value is considered."""
LEAST_GAIN: Final = 0.03
"""An arm is tried if it could be better than the best arm by this share."""
LEAST_LOSS: Final = 0.02
"""The smallest relative loss with which a possible gain is weighed."""
OFF_TIMES: Final = 4
"""Times of off, in each range of batch sizes, before another arm replaces it. With a single time that is too long,
every arm would seem free."""
OFF_TRIES: Final = 16
"""Most rounds of off for these times. A round that a prefill interrupts has no time."""
OFF_ROUNDS: Final = 128
"""After so many rounds off is timed again, because everything is compared with it."""
# the draft
USE_GAIN: Final = 0.01
"""The draft comes into use when it would make rounds faster by this share, and goes out of use below 0."""
USE_MEMORY: Final = 0.97
"""Weight that earlier rounds keep in this estimate with each further one."""
PROBE_PREFILLS: Final = 8
PROBE_ROUNDS: Final = 8
"""Decided rounds after a probe's prefill in which the draft processes the tokens."""
PROVEN_PROPOSALS: Final = 32
"""Proposals of a version before which every prefill is a probe, as long as the draft may be worth it."""
# parking
QUIET_ROUNDS: Final = 8
"""Decided rounds of off in a row before the controller parks."""
PARK_ROUNDS: Final = 128
SPEEDUP_MEMORY: Final = 0.998
"""Weight that earlier rounds keep in the speedup with each further one: about 500 rounds count."""


class Draft:
    """What is known of the serving draft: its rates, and whether it is in use."""

    def __init__(self, steps: int) -> None:
        self.rates = SurvivalRates(steps, DRAFT_PRIOR)
        self.gain = 0.0
        """By how much it would make rounds faster, as a logarithm, in the recent past."""
        self.in_use = False
        self.may_pay = True
        """Whether it could make rounds faster, by an optimistic estimate."""

    @property
    def is_unproven(self) -> bool:
        return self.rates.proposals < PROVEN_PROPOSALS

    def compare(self, log_ratio: float) -> None:
        """Rounds with the draft would be faster than rounds without it by this much."""
        if not self.rates.has_accepted:  # what it seems worth is its prior
            return
        self.gain += (1 - USE_MEMORY) * (log_ratio - self.gain)
        self.in_use = self.gain > (0.0 if self.in_use else USE_GAIN)


class Value(NamedTuple):
    """An arm and its expected tokens per millisecond."""

    arm: Arm
    speed: float


class Controller:
    """Chooses rounds and learns from them."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        """``arms`` contains :data:`OFF`."""
        self._arms = tuple(sorted(set(arms)))
        self._plain = tuple(arm for arm in self._arms if not arm.drafts)
        self._most_steps = max(1, self._arms[-1].steps)
        self._nothing: Curve = (0.0,) * (self._most_steps + 1)
        self._lookup = [SurvivalRates(self._most_steps, prior) for prior in MATCH_PRIORS]
        self._lookup_odds, self._draft_odds = RequestOdds(), RequestOdds()
        self._draft: Draft | None = Draft(self._most_steps)
        self._drafts: dict[str, Draft] = {}
        """The last two drafts that served, by version."""
        self.costs = CostTable()
        self.saved_seconds = 0.0
        """Time that speculation saved since the start, by the same estimate as :attr:`speedup_over_off`."""
        self._own_milliseconds = self._off_milliseconds = 0.0
        self._round = 0
        self._next_trial = 0
        self._off_tries = Counter[int]()
        self._prefills = PROBE_PREFILLS
        self._keep_until = 0
        self._debt = 0.0
        self._quiet = 0

    # decisions -------------------------------------------------------------------------------------------------------

    def choose(self, outlooks: Sequence[RequestOutlook]) -> Decision:
        """Decide the next round of a batch."""
        size = len(outlooks)
        keeps = self._keeps_draft()
        lookup = [self._lookup_curve(o) for o in outlooks]
        served = [self._draft_curve(o) for o in outlooks]
        draft = [curve if o.can_draft and keeps else self._nothing for o, curve in zip(outlooks, served, strict=True)]
        self._compare_draft(size, lookup, served)
        in_use = self._draft is not None and self._draft.in_use  # else off is what would run without the probe
        values = self._values(size, lookup, draft, upkeep=in_use)
        best = self._best(values)
        chosen, explores = best.arm, False
        if self._must_time_off(size):
            chosen, explores = OFF, best.arm != OFF
        elif self._round >= self._next_trial and (found := self._trial(outlooks, values, best)):
            chosen, explores = found, True
        if explores and chosen.drafts:  # a draft that is expected to be bad must propose, or nothing is learned
            draft = [self._draft_curve(o, OPTIMISM) if o.can_draft else self._nothing for o in outlooks]
        sources = self._sources(chosen, lookup, draft)
        return Decision(chosen, sources, explores, keeps, self._parks(best, keeps=keeps, explores=explores))

    def prefill_drafts(self) -> bool:
        """Whether the draft processes the prompts of the next prefill: always in use, else for one prefill in some."""
        draft = self._draft
        if draft is None:
            return False
        if not draft.in_use:
            self._prefills += 1
            due = draft.may_pay and self._round >= max(self._next_trial, OFF_TIMES)
            if not due or not (draft.is_unproven or self._prefills >= PROBE_PREFILLS):
                return False
        self._prefills, self._keep_until = 0, self._round + PROBE_ROUNDS
        return True

    def _keeps_draft(self) -> bool:
        """Whether the draft processes the next round."""
        return self._draft is not None and (self._draft.in_use or self._round < self._keep_until)

    def _parks(self, best: Value, *, keeps: bool, explores: bool) -> int:
        """How many rounds to park after a decided round."""
        if best.arm != OFF:
            self._quiet = 0
        elif not keeps and not explores:
            self._quiet += 1
        if keeps or self._quiet < QUIET_ROUNDS:
            return 0
        self._quiet = 0
        return PARK_ROUNDS

    # learning --------------------------------------------------------------------------------------------------------

    def observe(self, outcome: Outcome) -> None:
        """Learn from a round."""
        self._pass_round()
        self._learn_survival(outcome)
        arm, size, made = outcome.decision.arm, len(outcome.outlooks), sum(outcome.made)
        keeps = outcome.decision.keeps_draft
        if outcome.milliseconds is not None:
            self.costs.learn(arm, size, outcome.milliseconds, self._round, upkeep=keeps)
        took, off = self.costs.milliseconds(arm, size, upkeep=keeps), self.costs.milliseconds(OFF, size)
        ended = sum(not own for own in outcome.made)
        if keeps and not arm.drafts and self._draft is not None and not self._draft.in_use:
            self._debt += self.costs.upkeep_milliseconds(size) / off
        if outcome.decision.explores and arm != OFF and ended < size:
            made_if_none_had_ended = made * size / (size - ended)  # any arm would have run the ended requests
            lost = (took - made_if_none_had_ended * off / size) / off + self._debt
            self._next_trial = self._round + max(LEAST_TRIAL_ROUNDS, round(lost / TRIAL_SHARE))
            self._debt = 0.0
        if outcome.milliseconds is not None:
            worth = off * (made + ended) / size  # off, too, runs a request once after its answer's end
            self._compare_with_off(took, worth)

    def round_parked(self, batch_size: int) -> None:
        """A round of off without a decision passed."""
        self._pass_round()
        off = self.costs.milliseconds(OFF, batch_size)
        self._compare_with_off(off, off)

    def draft_serves(self, version: str | None) -> None:
        """The draft ``version`` serves from now on. What requests had from another draft says nothing about it.

        What was learned of the draft before counts again: the gate lets two drafts serve by turns.
        """
        self._draft_odds = RequestOdds()
        self._draft = None
        if version is not None:
            known = version in self._drafts
            self._draft = self._drafts.pop(version) if known else Draft(self._most_steps)
            self._drafts[version] = self._draft
            if len(self._drafts) > 2:
                del self._drafts[next(iter(self._drafts))]
        self._prefills = PROBE_PREFILLS

    def request_ended(self, rid: str) -> None:
        """Forget a request. An unknown request is ignored."""
        self._draft_odds.end(rid)
        self._lookup_odds.end(rid)

    @property
    def speedup_over_off(self) -> float | None:
        """Tokens per second over those that rounds of off would have made in the recent past, by the table of costs.

        None: no round was timed.
        """
        return self._off_milliseconds / self._own_milliseconds if self._own_milliseconds else None

    def _pass_round(self) -> None:
        self._round += 1
        self._lookup_odds.age(1)
        self._draft_odds.age(1)

    def _compare_with_off(self, own: float, off: float) -> None:
        """A round took ``own`` milliseconds at pace 1. Rounds of off would have taken ``off`` for the same tokens."""
        own, off = own * self.costs.pace, off * self.costs.pace
        self._own_milliseconds = self._own_milliseconds * SPEEDUP_MEMORY + own
        self._off_milliseconds = self._off_milliseconds * SPEEDUP_MEMORY + off
        self.saved_seconds += (off - own) / 1000

    def _learn_survival(self, outcome: Outcome) -> None:
        """Nothing counts behind an answer's end."""
        steps, made, drafted = outcome.decision.arm.steps, outcome.made, list[tuple[str, int, int]]()
        looked_up = dict[int, list[tuple[str, int, int]]]()
        for place, (outlook, source) in enumerate(zip(outcome.outlooks, outcome.decision.sources, strict=True)):
            count, own = outcome.accepted[place], made[place]
            if not own:
                continue
            right, most = min(count, own), steps if own > count else own
            if source is Source.DRAFT:
                drafted.append((outlook.rid, right, most))
            if source is Source.LOOKUP:
                most = min(most, outlook.lookup_length)
            elif outcome.unplayed_lookup:
                right, most = outcome.unplayed_lookup[place], min(own, outlook.lookup_length)
            else:
                continue
            if most and outlook.lookup_match:
                looked_up.setdefault(_bucket(outlook), []).append((outlook.rid, right, most))
        if drafted and self._draft is not None:
            self._draft.rates.learn(self._draft_odds, drafted, self._round)
        for bucket, proposals in looked_up.items():
            self._lookup[bucket].learn(self._lookup_odds, proposals, self._round)

    # values ----------------------------------------------------------------------------------------------------------

    def _lookup_curve(self, outlook: RequestOutlook, z: float = 0.0) -> Curve:
        length = outlook.lookup_length
        if outlook.lookup_match <= 0 or length <= 0:
            return self._nothing
        curve = self._lookup[_bucket(outlook)].curve(self._lookup_odds.of(outlook.rid), z)
        return (
            curve
            if length >= self._most_steps
            else curve[: length + 1] + (curve[length],) * (self._most_steps - length)
        )

    def _draft_curve(self, outlook: RequestOutlook, z: float = 0.0) -> Curve:
        """The curve of the draft for a request, if it could serve the request."""
        if self._draft is None:
            return self._nothing
        return self._draft.rates.curve(self._draft_odds.of(outlook.rid), z)

    def _values(
        self, size: int, lookup: Sequence[Curve], draft: Sequence[Curve], *, upkeep: bool, least: bool = False
    ) -> list[Value]:
        """The value of each arm, in the order of the arms. Those of the draft are left out if no request can draft.

        Args:
            upkeep: whether the other arms pay for the draft's pass over their tokens.
            least: with times that are not unlikely, instead of the expected ones.
        """
        without, costs, extra = _sum(lookup), self.costs, upkeep * self.costs.upkeep_milliseconds(size)
        cost = costs.least_milliseconds if least else costs.milliseconds
        can_draft = any(curve[-1] > 0.0 for curve in draft)
        with_draft = _sum(_better(lookup, draft)) if can_draft else without
        return [
            Value(arm, (size + with_draft[arm.steps]) / cost(arm, size))
            if arm.drafts
            else Value(arm, (size + without[arm.steps]) / (cost(arm, size) + extra))
            for arm in (self._arms if can_draft else self._plain)
        ]

    def _best(self, values: Sequence[Value]) -> Value:
        """The arm with the most tokens per millisecond. Off, if it is about as good.

        A draft may only be tried until one of its tokens was accepted. Before, what it seems worth is its prior.
        """
        proven = self._draft is not None and self._draft.rates.has_accepted
        allowed = [value for value in values if proven or not value.arm.drafts]
        off, best = allowed[0], max(allowed, key=lambda value: value.speed)
        return off if off.speed * (1 + OFF_PREFERENCE) >= best.speed else best

    def _sources(self, arm: Arm, lookup: Sequence[Curve], draft: Sequence[Curve]) -> tuple[Source, ...]:
        """The source of each request: the draft, unless lookup promises more tokens by its lead in this arm."""
        steps, lead = arm.steps, 1.0 + LOOKUP_LEAD
        sources = []
        for looked_up, drafted in zip(lookup, draft, strict=True):
            if arm.drafts and drafted[steps] > 0.0 and (1.0 + drafted[steps]) * lead > 1.0 + looked_up[steps]:
                sources.append(Source.DRAFT)
            else:
                sources.append(Source.LOOKUP if looked_up[steps] > 0.0 else Source.NONE)
        return tuple(sources)

    def _compare_draft(self, size: int, lookup: Sequence[Curve], served: Sequence[Curve]) -> None:
        """Compare rounds in which the draft serves the whole batch with rounds without it."""
        if self._draft is None:
            return
        with_draft = max(value.speed for value in self._values(size, lookup, served, upkeep=True))
        without = max(value.speed for value in self._values(size, lookup, (), upkeep=False))
        self._draft.compare(log(with_draft / without))

    # trials ----------------------------------------------------------------------------------------------------------

    def _must_time_off(self, size: int) -> bool:
        """Whether to time off, because it was timed too rarely or too long ago to be compared with."""
        times, last = self.costs.times(OFF, size)
        if times >= OFF_TIMES:
            return self._round - last >= OFF_ROUNDS
        self._off_tries[size_range(size)] += 1
        return self._off_tries[size_range(size)] <= OFF_TRIES

    def _trial(self, outlooks: Sequence[RequestOutlook], values: Sequence[Value], best: Value) -> Arm | None:
        """The arm to try: the one with the largest possible gain per expected loss."""
        lookup = [self._lookup_curve(o, OPTIMISM) for o in outlooks]
        served = [self._draft_curve(o, OPTIMISM) for o in outlooks]  # what the draft may be worth to a whole batch
        promises = {
            value.arm: value.speed for value in self._values(len(outlooks), lookup, served, upkeep=False, least=True)
        }
        if self._draft is not None:
            most = max((speed for arm, speed in promises.items() if arm.drafts), default=0.0)
            self._draft.may_pay = most > best.speed * (1 + LEAST_GAIN)
        found, most = None, 0.0
        for value in values:
            gain = promises.get(value.arm, 0.0) / best.speed - 1
            if value.arm in (best.arm, OFF) or gain <= LEAST_GAIN:
                continue
            loss = 1 - value.speed / best.speed
            if gain / max(loss, LEAST_LOSS) > most:
                found, most = value.arm, gain / max(loss, LEAST_LOSS)
        return found


class FixedArms(Controller):
    """Takes the given arms in turn, one a round, and learns nothing: for measurements and tests.

    ``names`` are ``off``, ``lookup-N``, ``draft-N`` and ``union-N``, which is ``draft-N`` with lookup's tokens where
    lookup has any. The draft misses no token if any arm drafts.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__((OFF,))
        arms = [(kind, _arm(kind, steps)) for kind, _, steps in (name.partition("-") for name in names)]
        self._turns = itertools.cycle(arms)
        self._may_draft = any(arm.drafts for _, arm in arms)

    def choose(self, outlooks: Sequence[RequestOutlook]) -> Decision:
        kind, arm = next(self._turns)
        looks_up, keeps, sources = kind in ("lookup", "union"), self._keeps_draft(), []
        for outlook in outlooks:
            if looks_up and outlook.lookup_length > 0:
                sources.append(Source.LOOKUP)
            else:
                sources.append(Source.DRAFT if arm.drafts and keeps and outlook.can_draft else Source.NONE)
        return Decision(arm, tuple(sources), keeps_draft=keeps)

    def prefill_drafts(self) -> bool:
        return self._keeps_draft()

    def _keeps_draft(self) -> bool:
        return self._may_draft and self._draft is not None

    def observe(self, outcome: Outcome) -> None:
        return

    def round_parked(self, batch_size: int) -> None:
        return


def _arm(kind: str, steps: str) -> Arm:
    return OFF if kind == OFF.name else Arm(int(steps), drafts=kind != "lookup")


def _bucket(outlook: RequestOutlook) -> int:
    return bisect_right(MATCH_BUCKETS, outlook.lookup_match) - 1


def _sum(curves: Sequence[Curve]) -> Sequence[float]:
    return curves[0] if len(curves) == 1 else [sum(column) for column in zip(*curves, strict=True)]


def _better(lookup: Sequence[Curve], draft: Sequence[Curve]) -> list[Curve]:
    """Each request's better source by number of steps. Requests share curves, so most pairs are computed once."""
    found = dict[tuple[int, int], Curve]()
    better = []
    for a, b in zip(lookup, draft, strict=True):
        pair = (id(a), id(b))
        if (curve := found.get(pair)) is None:
            curve = found[pair] = tuple(map(max, a, b))
        better.append(curve)
    return better
