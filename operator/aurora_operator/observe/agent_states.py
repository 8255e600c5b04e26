"""Asks the agents of a speculator's pods for their states.

Invariant: an agent that does not answer never delays the others, and is data: its state is None.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace

from pydantic import TypeAdapter

from aurora_operator.observe.observed import PodView
from aurora_operator.reconcile_slots import outside
from aurora_protocol.agent_api import AgentState
from aurora_protocol.agent_client import AgentClient
from aurora_protocol.errors import AgentError, AgentRefused

_WRONG_TOKEN = frozenset({401, 403})
_ANSWERS = TypeAdapter(dict[str, AgentState])
"""Pod uid -> the last answer of its agent."""


class AgentStates:
    """The agents of one speculator."""

    def __init__(self, agents: AgentClient) -> None:
        self._agents = agents
        self._answers = _pack({})
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
            answers = {pod.uid: state for pod, state in zip(pods, states, strict=True) if state is not None}
            self._answers = _pack(answers)
        else:
            answers = _unpack(self._answers)
        return tuple(replace(pod, agent=answers.get(pod.uid)) for pod in pods)

    async def _states(self, pods: Iterable[PodView], token: str) -> list[AgentState | None]:
        return await asyncio.gather(*(self._state(pod, token) for pod in pods))

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


def _pack(answers: Mapping[str, AgentState]) -> bytes:
    """The answers of one speculator as compressed JSON: they are alike, so they take little memory."""
    return zlib.compress(_ANSWERS.dump_json(dict(answers), by_alias=True, exclude_none=True), level=1)


def _unpack(packed: bytes) -> dict[str, AgentState]:
    return _ANSWERS.validate_json(zlib.decompress(packed))
