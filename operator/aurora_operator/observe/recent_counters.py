"""Remembers recent counters of each pod's engine, so that the status can show the live acceptance length.

Invariant: the samples may be lost at any time. They feed only the figures in the status, and never a decision about a
version.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from aurora_operator.observe.observed import CounterSample, PodView

WINDOW = timedelta(seconds=60)
"""The live acceptance length is computed over this time, or since the sample before when that is longer ago."""


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
            sample = CounterSample(pod.agent.boot, now, live.answer_tokens, live.verify_rounds)
            past = [s for s in self._samples.get(pod.name, []) if s.boot == sample.boot]
            recent = [s for s in past if now - s.time <= WINDOW] or past[-1:]
            kept[pod.name] = [*recent, sample]
        self._samples = kept
        return self.oldest()

    def oldest(self) -> dict[str, CounterSample]:
        """What the last :meth:`update` returned."""
        return {name: samples[0] for name, samples in self._samples.items()}
