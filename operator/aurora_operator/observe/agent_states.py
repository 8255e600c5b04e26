"""Asks the agents of a speculator's pods for their states.

Invariant: an agent that does not answer never delays the others, and is data: its state is None.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from aurora_operator.observe.observed import PodView
from aurora_operator.reconcile_slots import outside
from aurora_protocol.agent_api import AgentState
from aurora_protocol.agent_client import AgentClient
from aurora_protocol.errors import AgentError, AgentRefused

_WRONG_TOKEN = frozenset({401, 403})


class AgentStates:
    """The agents of one speculator."""

    def __init__(self, agents: AgentClient) -> None:
        self._agents = agents
        self._answers: dict[str, bytes] = {}
        """Pod uid -> the last answer as JSON, which takes a seventh of the memory."""
        self.token_refused = False
        """Whether an agent refused the token when it was last asked."""

    async def of(self, views: Iterable[PodView], token: str, *, ask: bool) -> tuple[PodView, ...]:
        """``views`` with the agents' states.

        Args:
            ask: False: take the last answers. The caller knows that no pod changed since.
        """
        pods = tuple(views)
        if ask:
            self.token_refused = False
            states = await outside(self._states(pods, token))
            answered = [(pod, state) for pod, state in zip(pods, states, strict=True) if state is not None]
            self._answers = {pod.uid: state.to_json() for pod, state in answered}
            return tuple(replace(pod, agent=state) for pod, state in zip(pods, states, strict=True))
        return tuple(replace(pod, agent=self._last_answer(pod)) for pod in pods)

    async def _states(self, pods: Iterable[PodView], token: str) -> list[AgentState | None]:
        return await asyncio.gather(*(self._state(pod, token) for pod in pods))

    def _last_answer(self, pod: PodView) -> AgentState | None:
        answer = self._answers.get(pod.uid)
        return None if answer is None else AgentState.from_json(answer)

    async def _state(self, pod: PodView, token: str) -> AgentState | None:
        if not pod.ip or not token or pod.terminating:
            return None
        try:
            return await self._agents.state(pod.ip, token)
        except AgentRefused as error:
            self.token_refused |= error.status in _WRONG_TOKEN
            return None
        except AgentError:
            return None
