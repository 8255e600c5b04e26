"""Asks the agents of a speculator's pods for their states.

Invariant: an agent that does not answer never delays the others, and is data: its state is None.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from aurora_operator.observe.observed import PodView
from aurora_protocol.agent_api import AgentState
from aurora_protocol.agent_client import AgentClient
from aurora_protocol.errors import AgentError


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
            return await self._agents.state(pod.ip, token)
        except AgentError:
            return None
