"""Chooses each decode round's arm and sources: the most expected tokens per expected millisecond.

Value comes from :mod:`value_model`, cost from :mod:`cost_model`, and :mod:`exploration` bounds what learning may cost.

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

from aurora_runtime.serving.speculation.arms import OFF, Arm, Source
from aurora_runtime.serving.speculation.controller_report import ControllerReport, CostCell
from aurora_runtime.serving.speculation.cost_model import CostModel
from aurora_runtime.serving.speculation.exploration import ExplorationBudget, ExplorationSettings
from aurora_runtime.serving.speculation.outlook import CANNOT_DRAFT, Decision, RequestOutlook
from aurora_runtime.serving.speculation.value_model import ValueModel

__all__ = ["CANNOT_DRAFT", "Controller", "ControllerReport", "ControllerSettings", "Decision", "RequestOutlook"]


@dataclass(frozen=True)
class ControllerSettings:
    """How the controller weighs.

    Attributes:
        hysteresis: an arm replaces the arm of the last round when it is better by this share.
        optimism: standard errors above the estimate that an arm is given when exploring.
    """

    exploration: ExplorationSettings = field(default_factory=ExplorationSettings)
    hysteresis: float = 0.02
    optimism: float = 1.5


class Controller:
    """Chooses rounds and learns from them."""

    def __init__(self, arms: Sequence[Arm], settings: ControllerSettings, random: random.Random) -> None:
        """``arms`` must contain :data:`OFF`. Raises :class:`ValueError` otherwise."""
        if OFF not in arms:
            raise ValueError("the arms must contain off")
        self._arms = tuple(sorted(set(arms)))
        self._settings = settings
        self._random = random
        self._values = ValueModel(max(arm.steps for arm in self._arms))
        self._costs = CostModel(self._arms)
        self._budget = ExplorationBudget(settings.exploration)
        self._last = OFF
        self._exploring_rounds = 0
        self._rounds_by_arm: Counter[Arm] = Counter()
        self._proposed: Counter[Source] = Counter()
        self._accepted: Counter[Source] = Counter()

    def choose(self, outlooks: Sequence[RequestOutlook]) -> Decision:
        """Decide the next round of a batch. An empty batch is off."""
        if not outlooks:
            return Decision(OFF, (), explores=False)
        costs = self._costs.milliseconds(len(outlooks))
        tokens = self._tokens(outlooks, 0.0)
        speeds = [tokens[i] / costs[i] for i in range(len(costs))]
        best = max(range(len(speeds)), key=speeds.__getitem__)
        last = self._arms.index(self._last)
        if speeds[last] * (1 + self._settings.hysteresis) >= speeds[best]:
            best = last
        explored = self._worth_exploring(outlooks, costs, speeds[best])
        chosen = best if explored is None else explored
        if explored is None:
            self._last = self._arms[best]
        arm = self._arms[chosen]
        return Decision(arm, self._sources(arm, outlooks), explores=explored is not None)

    def observe(
        self,
        decision: Decision,
        outlooks: Sequence[RequestOutlook],
        accepted: Sequence[int],
        milliseconds: float | None,
    ) -> None:
        """Learn from a round.

        Args:
            accepted: accepted proposed tokens of each request, without the bonus token.
            milliseconds: the round's time. None: it cannot be compared, for example because a prefill was in between.
        """
        self._values.begin_round()
        self._rounds_by_arm[decision.arm] += 1
        self._exploring_rounds += decision.explores
        for outlook, source, count in zip(outlooks, decision.sources, accepted, strict=True):
            proposed = decision.arm.steps
            if source is Source.LOOKUP:
                proposed = min(proposed, outlook.lookup_length)
            if source is not Source.NONE:
                self._proposed[source] += proposed
                self._accepted[source] += count
                self._values.learn(source, outlook, count, proposed)
        if milliseconds is None or not outlooks:
            return
        size = len(outlooks)
        self._costs.learn(decision.arm, size, milliseconds)
        off = self._costs.milliseconds(size)[0]
        if decision.explores:
            self._budget.spend(self._costs.milliseconds(size)[self._arms.index(decision.arm)] - off)
        self._budget.earn(off, off)

    def draft_replaced(self) -> None:
        """Another draft version serves: forget the draft's values and keep the costs."""
        self._values.draft_replaced()

    def request_ended(self, rid: str) -> None:
        """Forget a request. An unknown request is ignored."""
        self._values.request_ended(rid)

    def report(self) -> ControllerReport:
        """Counters and estimates, for people and metrics."""
        return ControllerReport(
            rounds=self._rounds_by_arm.total(),
            exploring_rounds=self._exploring_rounds,
            rounds_by_arm=dict(self._rounds_by_arm),
            proposed_by_source=dict(self._proposed),
            accepted_by_source=dict(self._accepted),
            costs=tuple[CostCell, ...](),
            speedup_over_off=None,
        )

    def _tokens(self, outlooks: Sequence[RequestOutlook], z: float) -> list[float]:
        """Expected tokens of a round by arm, bonus tokens included."""
        lookup = [self._values.lookup_curve(outlook, z) for outlook in outlooks]
        draft = [self._values.draft_curve(outlook, z) for outlook in outlooks]
        without = list(map(sum, zip(*lookup, strict=True)))
        with_draft = list(map(sum, zip(*(map(max, a, b) for a, b in zip(lookup, draft, strict=True)), strict=True)))
        size = len(outlooks)
        return [size + (with_draft if arm.drafts else without)[arm.steps] for arm in self._arms]

    def _worth_exploring(self, outlooks: Sequence[RequestOutlook], costs: Sequence[float], speed: float) -> int | None:
        """The cheapest arm that could be better than ``speed`` and that the budget can pay."""
        if self._budget.credit_milliseconds <= 0:
            return None
        tokens = self._tokens(outlooks, self._settings.optimism)
        size = len(outlooks)
        affordable = [
            (costs[i] - size / speed, i)
            for i in range(len(costs))
            if tokens[i] > speed * costs[i] and 0 < costs[i] - size / speed <= self._budget.credit_milliseconds
        ]
        return min(affordable)[1] if affordable else None

    def _sources(self, arm: Arm, outlooks: Sequence[RequestOutlook]) -> tuple[Source, ...]:
        """The source of each request: the one with more expected tokens in this arm."""
        if arm == OFF:
            return (Source.NONE,) * len(outlooks)
        return tuple(self._source(arm, outlook) for outlook in outlooks)

    def _source(self, arm: Arm, outlook: RequestOutlook) -> Source:
        lookup = self._values.lookup_curve(outlook)[arm.steps]
        draft = self._values.draft_curve(outlook)[arm.steps] if arm.drafts else 0.0
        if lookup <= 0.0 and draft <= 0.0:
            return Source.NONE
        return Source.LOOKUP if lookup >= draft else Source.DRAFT
