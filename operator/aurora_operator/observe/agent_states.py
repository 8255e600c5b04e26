"""Asks the agents of a speculator's pods for their states, and remembers the recent counters of their engines.

Invariants:

- An agent that does not answer never delays the others, and is data: its state is None.
- The counters may be lost at any time. They feed only the figures in the status, and never a decision about a version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from aurora_operator.observe.observed import CounterSample, PodView
from aurora_protocol.agent_api import AgentState
from aurora_protocol.agent_client import AgentClient
from aurora_protocol.errors import AgentError

WINDOW = timedelta(seconds=60)
"""The live acceptance length is computed over this time, or since the sample before when that is longer ago."""


class AgentStates:
    """The agents of one speculator."""

    def __init__(self, agents: AgentClient) -> None:
        self._agents = agents

    async def of(self, views: Iterable[PodView], token: str) -> tuple[PodView, ...]:
        """``views`` with the agents' states."""
        pods = tuple(views)
        states = await asyncio.gather(*(self._state(pod, token) for pod in pods))
        return tuple(replace(pod, agent=state) for pod, state in zip(pods, states, strict=True))

    async def _state(self, pod: PodView, token: str) -> AgentState | None:
        if not pod.ip or not token or pod.terminating:
            return None
        try:
            state = await self._agents.state(pod.ip, token)
        except AgentError:
            return None
        return state if state.pod == pod.name else None  # the address belongs to another pod by now


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
            sample = CounterSample(pod.agent.boot, now, live.tokens, live.rounds)
            past = [s for s in self._samples.get(pod.name, []) if s.boot == sample.boot]
            recent = [s for s in past if now - s.time <= WINDOW] or past[-1:]
            kept[pod.name] = [*recent, sample]
        self._samples = kept
        return {name: samples[0] for name, samples in kept.items()}
