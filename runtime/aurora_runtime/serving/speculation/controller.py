"""Chooses each decode round's arm and sources: the most expected tokens per expected millisecond.

Value comes from :mod:`estimates.value_model`, cost from :mod:`estimates.cost_model`, and :mod:`exploration` bounds
what learning may cost.

Invariants:
- No clock, no torch, no SGLang: the controller is a function of its calls and of its ``random``. Controllers with
  equal seeds and equal calls decide equally.
- :meth:`Controller.choose` needs no observation of the round before, so that an engine may launch a round before the
  last one has ended.

Tensor parallelism: measured times differ by rank, so ranks must not decide from their own. Either rank 0 decides and
broadcasts the :class:`Decision`, or every rank observes the milliseconds of rank 0 and decides alike.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from aurora_runtime.engine.arms import OFF, Arm, Source
from aurora_runtime.serving.speculation.controller_report import ControllerReport, RoundCounters
from aurora_runtime.serving.speculation.estimates.cost_cells import LookSettings
from aurora_runtime.serving.speculation.estimates.cost_model import CostModel
from aurora_runtime.serving.speculation.estimates.size_ranges import size_range
from aurora_runtime.serving.speculation.estimates.value_model import ODDS_WEIGHT, Curve, ValueModel
from aurora_runtime.serving.speculation.exploration import (
    ExplorationBudget,
    ExplorationSettings,
    Prospect,
    is_off_due,
    most_promising,
    with_draft_step_by_step,
)
from aurora_runtime.serving.speculation.outlook import CANNOT_DRAFT, Decision, RequestOutlook

__all__ = ["CANNOT_DRAFT", "Controller", "ControllerReport", "ControllerSettings", "Decision", "RequestOutlook"]

OFF_PREFERENCE: Final = 0.005
"""Share by which an arm must beat off. Estimates of arms that are about as good are not worth a difference."""
OFF_TRIES: Final = 16
"""Most rounds of off, in each range of batch sizes, for these times. A round that a prefill interrupts has no time."""


@dataclass(frozen=True)
class ControllerSettings:
    """How the controller weighs.

    Attributes:
        hysteresis: an arm replaces the arm of the last round when it is better by this share.
        catch_up_rounds: rounds over which the draft's catch-up is written off. It is paid once, and the rounds after it
            need none.
        draft_share_gain: how much of each round goes into the share of rounds that draft.
        lookup_lead: share by which lookup must promise more tokens, the bonus token included, to replace a request's
            draft in a round that drafts. The larger of two uncertain estimates is on average too high.
        odds_weight: see :data:`~aurora_runtime.serving.speculation.estimates.value_model.ODDS_WEIGHT`.
        off_times: how often off must be timed before another arm replaces it. A single time that is too long makes
            every arm seem free.
    """

    exploration: ExplorationSettings = field(default_factory=ExplorationSettings)
    looks: LookSettings = field(default_factory=LookSettings)
    hysteresis: float = 0.01
    catch_up_rounds: float = 8.0
    draft_share_gain: float = 0.05
    lookup_lead: float = 0.05
    odds_weight: float = ODDS_WEIGHT
    off_times: int = 4


class Controller:
    """Chooses rounds and learns from them."""

    def __init__(self, arms: Sequence[Arm], settings: ControllerSettings, random: random.Random) -> None:
        """``arms`` must contain :data:`OFF`. Raises :class:`ValueError` otherwise."""
        if OFF not in arms:
            raise ValueError("the arms must contain off")
        self._arms = tuple(sorted(set(arms)))
        self._index = {arm: i for i, arm in enumerate(self._arms)}
        self._shapes = tuple((i, arm.steps, arm.drafts) for i, arm in enumerate(self._arms))
        self._can_draft = any(arm.drafts for arm in self._arms)
        self._settings = settings
        self._random = random
        self._values = ValueModel(self._arms[-1].steps, settings.odds_weight)
        self._costs = CostModel(self._arms, settings.looks)
        self._budget = ExplorationBudget(settings.exploration)
        self._counters = RoundCounters()
        self._last = 0
        self._off_tries = Counter[int]()
        self._draft_share = 0.0

    def choose(self, outlooks: Sequence[RequestOutlook]) -> Decision:
        """Decide the next round of a batch. An empty batch is off."""
        if not outlooks:
            return Decision(OFF, (), explores=False)
        lookup, draft = self._curves(outlooks, 0.0)
        tokens = self._tokens(lookup, draft)
        costs = self._milliseconds(outlooks)
        best = self._best(tokens, costs)
        self._last = best
        self._draft_share += self._settings.draft_share_gain * (self._arms[best].drafts - self._draft_share)
        chosen, explores = best, False
        if best and self._must_time_off(len(outlooks)):
            chosen, explores = 0, True
        elif self._may_explore() and (found := self._explore(outlooks, tokens, costs, tokens[best] / costs[best])):
            chosen, explores = found.arm, True
        arm = self._arms[chosen]
        if explores and arm.drafts:  # a draft that is expected to be bad must propose, or nothing is learned
            draft = self._draft_curves(outlooks, self._settings.exploration.optimism)
        return Decision(arm, self._sources(arm, lookup, draft), explores)

    def observe(
        self,
        decision: Decision,
        outlooks: Sequence[RequestOutlook],
        accepted: Sequence[int],
        milliseconds: float | None,
        unplayed_lookup: Sequence[int] = (),
        tokens_made: Sequence[int] = (),
    ) -> None:
        """Learn from a round.

        Args:
            accepted: accepted proposed tokens of each request, without the bonus token.
            milliseconds: the round's time. None: it cannot be compared, for example because a prefill was in between.
            unplayed_lookup: for each request, how many tokens of its lookup are the tokens that the round made, of a
                lookup that was not the round's source. Lookup's value is then known before lookup was ever used. Empty:
                not known.
            tokens_made: for each request, how many of the round's tokens its answer took. Fewer than were accepted: the
                answer ended within the round. 0: it had ended before, so the round says nothing about the request.
                Empty: all of them.
        """
        if not outlooks:
            return
        self._values.begin_round()
        arm, steps = decision.arm, decision.arm.steps
        drafted, looked_up = [], []
        made_by = tokens_made or [count + 1 for count in accepted]
        for i, (outlook, source, count) in enumerate(zip(outlooks, decision.sources, accepted, strict=True)):
            if not (own := made_by[i]):
                continue
            right, most = min(count, own), steps if own > count else own  # nothing counts behind an answer's end
            if source is Source.DRAFT:
                drafted.append((outlook, right, most))
            elif source is Source.LOOKUP:
                looked_up.append((outlook, right, min(most, outlook.lookup_length)))
            if unplayed_lookup and source is not Source.LOOKUP:
                looked_up.append((outlook, unplayed_lookup[i], min(own, outlook.lookup_length)))
        size, made, ended = len(outlooks), sum(made_by), sum(not own for own in made_by)
        self._counters.count(decision, outlooks, accepted)
        if drafted:
            self._values.learn(Source.DRAFT, drafted)
        if looked_up:
            self._values.learn(Source.LOOKUP, looked_up)
        pending, index = _pending(outlooks) if arm.drafts else 0, self._index[arm]
        if milliseconds is None:
            took = self._costs.trial_milliseconds(size, pending, self._costs.looks(size))[index]
        else:
            self._costs.learn(arm, size, milliseconds, pending)
            took = self._costs.milliseconds(size)[index] + self._costs.catch_up_milliseconds(pending, size)
        if decision.explores and arm != OFF and ended < size:  # a round of off is not charged
            made_if_none_had_ended = made * size / (size - ended)  # any arm would have run the ended requests
            self._budget.spend(took - made_if_none_had_ended / self._best_speed(outlooks))
        if milliseconds is not None:
            off_milliseconds = self._costs.milliseconds(size)[0]
            worth = off_milliseconds * (made + ended) / size  # off, too, runs a request once after its answer's end
            pace = self._costs.pace  # seconds that passed, not seconds of a machine at pace 1
            self._counters.compare_with_off(took * pace, worth * pace)
            self._budget.earn(worth, off_milliseconds)

    def draft_serves(self, version: str) -> None:
        """The draft ``version`` serves from now on. Costs stay, because all drafts have one shape."""
        self._values.draft_serves(version)

    def request_ended(self, rid: str) -> None:
        """Forget a request. An unknown request is ignored."""
        self._values.request_ended(rid)

    def report(self) -> ControllerReport:
        """Counters and estimates, for people and metrics."""
        return self._counters.report(self._costs.cells())

    def _curves(self, outlooks: Sequence[RequestOutlook], z: float) -> tuple[list[Curve], list[Curve]]:
        """The curves of lookup and draft of each request."""
        return [self._values.lookup_curve(o, z) for o in outlooks], self._draft_curves(outlooks, z)

    def _draft_curves(self, outlooks: Sequence[RequestOutlook], z: float) -> list[Curve]:
        return [self._values.draft_curve(o, z) for o in outlooks]

    def _tokens(self, lookup: list[Curve], draft: list[Curve]) -> list[float]:
        """Expected tokens of a round by arm, bonus tokens included. 0 for the draft's arms if no request can draft."""
        size, can_draft = len(lookup), self._can_draft and any(curve[-1] > 0.0 for curve in draft)
        if size == 1:
            without: Sequence[float] = lookup[0]
            with_draft: Sequence[float] = list(map(max, lookup[0], draft[0])) if can_draft else without
        else:
            without = list(map(sum, zip(*lookup, strict=True)))
            with_draft = without
            if can_draft:
                with_draft = list(map(sum, zip(*_better(lookup, draft), strict=True)))
        return [
            size + (with_draft[steps] if drafts else without[steps]) if can_draft or not drafts else 0.0
            for _, steps, drafts in self._shapes
        ]

    def _milliseconds(self, outlooks: Sequence[RequestOutlook]) -> Sequence[float]:
        """Expected time of a round by arm. The draft's catch-up is written off over several rounds.

        A round without the draft makes the draft late. While rounds draft, it pays for the catch-up that will follow.
        """
        size, pending = len(outlooks), _pending(outlooks)
        costs = self._costs.milliseconds(size)
        if not self._can_draft:
            return costs
        if pending:
            catch_up = self._costs.catch_up_milliseconds(pending, size) / self._settings.catch_up_rounds
            return [
                cost + catch_up if drafts else cost for cost, (_, _, drafts) in zip(costs, self._shapes, strict=True)
            ]
        later = self._draft_share * self._costs.catch_up_milliseconds(size, size)
        return [cost if drafts else cost + later for cost, (_, _, drafts) in zip(costs, self._shapes, strict=True)]

    def _speeds(self, tokens: Sequence[float], costs: Sequence[float]) -> list[float]:
        """Tokens per millisecond by arm. 0: the arm may only be explored.

        A draft may only be explored until one of its tokens was accepted. Before, what it seems worth is its prior. A
        time of off that is too long would then make a worthless draft the best arm, and chosen rounds cost no budget.
        """
        can_choose_draft = self._values.draft_has_accepted
        return [
            a / b if can_choose_draft or not drafts else 0.0
            for a, b, (_, _, drafts) in zip(tokens, costs, self._shapes, strict=True)
        ]

    def _best(self, tokens: Sequence[float], costs: Sequence[float]) -> int:
        """The arm with the most tokens per millisecond. The last one stays if it is about as good."""
        speeds = self._speeds(tokens, costs)
        best = max(speeds)
        if speeds[0] * (1 + OFF_PREFERENCE) >= best:
            return 0
        if speeds[self._last] * (1 + self._settings.hysteresis) >= best:
            return self._last
        return speeds.index(best)

    def _best_speed(self, outlooks: Sequence[RequestOutlook]) -> float:
        tokens, costs = self._tokens(*self._curves(outlooks, 0.0)), self._milliseconds(outlooks)
        return max(self._speeds(tokens, costs))

    def _sources(self, arm: Arm, lookup: list[Curve], draft: list[Curve]) -> tuple[Source, ...]:
        """The source of each request: the draft, unless lookup promises ``lookup_lead`` more tokens in this arm."""
        steps, lead = arm.steps, 1.0 + self._settings.lookup_lead
        if not steps:
            return (Source.NONE,) * len(lookup)
        sources = []
        for looked_up, drafted in zip(lookup, draft, strict=True):
            if arm.drafts and drafted[steps] > 0.0 and (1.0 + drafted[steps]) * lead > 1.0 + looked_up[steps]:
                sources.append(Source.DRAFT)
            else:
                sources.append(Source.LOOKUP if looked_up[steps] > 0.0 else Source.NONE)
        return tuple(sources)

    def _must_time_off(self, size: int) -> bool:
        """Whether off was timed too rarely at this batch size to be replaced. Counts the round as a try."""
        if self._costs.off_age(size)[0] >= self._settings.off_times or self._off_tries[size_range(size)] >= OFF_TRIES:
            return False
        self._off_tries[size_range(size)] += 1
        return True

    def _may_explore(self) -> bool:
        """Whether to look for something to explore: in a share of the rounds that have credit."""
        return self._budget.credit_milliseconds > 0 and self._random.random() < self._settings.exploration.consider

    def _explore(
        self, outlooks: Sequence[RequestOutlook], tokens: Sequence[float], costs: Sequence[float], speed: float
    ) -> Prospect | None:
        """The arm to explore, if one is worth it and can be paid."""
        size, credit = len(outlooks), self._budget.credit_milliseconds
        if self._last and costs[0] - size / speed <= credit:
            samples, age = self._costs.off_age(size)
            if is_off_due(samples, age, speed * costs[0] / size):
                return Prospect(0, size, size / costs[0], costs[0])
        exploration = self._settings.exploration
        optimistic = self._tokens(*self._curves(outlooks, exploration.optimism))
        looks = self._costs.looks(size)
        least = self._costs.least_milliseconds(size, looks)
        pending = _pending(outlooks)
        trial = self._costs.trial_milliseconds(size, pending, looks)
        loan = self._budget.loan_milliseconds(self._costs.least_catch_up_milliseconds(pending, size))
        prospects = [
            Prospect(i, tokens[i], optimistic[i] / least[i], trial[i], drafts * loan) for i, _, drafts in self._shapes
        ]
        if self._can_draft:
            trials = [self._values.draft_trials(d) for d in range(self._arms[-1].steps)]
            prospects = with_draft_step_by_step(self._arms, prospects, trials)
        del prospects[self._last]
        return most_promising(prospects, speed, credit, exploration.min_gain)


def _better(lookup: list[Curve], draft: list[Curve]) -> list[Curve]:
    """Each request's better source by number of steps. Requests share curves, so most pairs are computed once."""
    found = dict[tuple[int, int], Curve]()
    better = []
    for a, b in zip(lookup, draft, strict=True):
        pair = (id(a), id(b))
        if (curve := found.get(pair)) is None:
            curve = found[pair] = tuple(map(max, a, b))
        better.append(curve)
    return better


def _pending(outlooks: Sequence[RequestOutlook]) -> int:
    """Tokens by which the draft is behind in the whole batch."""
    return sum(o.pending for o in outlooks if o.pending > 0)
