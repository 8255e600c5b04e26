"""Remembers recent counters of each pod's engine, so that the status can show the live acceptance length.

Invariant: the samples may be lost at any time. They feed only the figures in the status, and never a decision about a
version.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from aurora_operator.observe.observed import AcceptedTokens, CounterSample, PodView
from aurora_protocol.agent_api import LiveCounters

WINDOW = timedelta(seconds=60)
"""The live acceptance length is computed over this time, or since the sample before when that is longer ago."""


def first_tokens_of(live: LiveCounters) -> AcceptedTokens:
    """The first tokens of the draft's chains, where the counters tell positions apart; else none.

    The share of first tokens that is accepted depends on the draft and on the text only. The acceptance length also
    depends on the steps that the engine chooses, and so on the load.
    """
    draft = live.draft
    if draft is None or not draft.proposed_at:
        return AcceptedTokens()
    return AcceptedTokens(draft.proposed_at[0], draft.accepted_at[0] if draft.accepted_at else 0)


class CounterHistory:
    """The recent counter samples of all pods of one speculator."""

    def __init__(self) -> None:
        self._samples: dict[str, list[CounterSample]] = {}

    def update(self, pods: Iterable[PodView], now: datetime) -> dict[str, CounterSample]:
        """Add a sample for each pod, and return each pod's oldest sample within :data:`WINDOW`, by pod name.

        The sample before the new one is kept whatever its age, because a speculator at rest is sampled rarely. Samples
        of an earlier engine start are dropped, because its counters began at zero.
        """
        kept: dict[str, list[CounterSample]] = {}
        for pod in pods:
            if pod.agent is None:
                continue
            live = pod.agent.live
            first_tokens = first_tokens_of(live)
            sample = CounterSample(pod.agent.boot, now, live.answer_tokens, live.verify_rounds, first_tokens)
            past = [s for s in self._samples.get(pod.name, []) if s.boot == sample.boot]
            recent = [s for s in past if now - s.time <= WINDOW] or past[-1:]
            kept[pod.name] = [*recent, sample]
        self._samples = kept
        return self.oldest()

    def oldest(self) -> dict[str, CounterSample]:
        """What the last :meth:`update` returned."""
        return {name: samples[0] for name, samples in self._samples.items()}
