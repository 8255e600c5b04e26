"""Bounds the calls of agents that are under way, with a fair share for each speculator.

Invariants: agents that did not answer last time take no turns from those that answer. The speculators that wait get
turns in rotation, so a speculator with many agents that hang delays another one by a few calls only. What is remembered
about agents is bounded, whatever addresses pods come and go with.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator

import aiohttp

MAX_CALLS = 100
"""Calls under way at a time. An operator that has just started calls ten thousand agents."""
MAX_CALLS_TO_SILENT = 50
"""The same for the agents that did not answer last time."""
MAX_SILENT = 20_000
"""How many such agents are remembered. The longest known one counts as one that answers again."""
TURN_SECONDS = 30.0
"""Longest wait for one's turn. It does not count as the agent's time."""


class AgentTurns:
    """The turns of all agents."""

    def __init__(self) -> None:
        self._answering, self._others = FairTurns(MAX_CALLS), FairTurns(MAX_CALLS_TO_SILENT)
        self._silent: OrderedDict[str, None] = OrderedDict()
        """Addresses that did not answer last time, the longest known first."""

    @contextlib.asynccontextmanager
    async def turn(self, speculator: str, ip: str) -> AsyncIterator[None]:
        """Wait for a turn, and remember whether the agent answered. Raises :class:`TimeoutError`.

        Args:
            speculator: what tells the agent's speculator from others.
        """
        turns = self._others if ip in self._silent else self._answering
        async with asyncio.timeout(TURN_SECONDS):
            await turns.acquire(speculator)
        try:
            yield
        except (TimeoutError, aiohttp.ClientError, OSError):
            self._remember_silent(ip)
            raise
        else:
            self._silent.pop(ip, None)
        finally:
            turns.release()

    def _remember_silent(self, ip: str) -> None:
        self._silent[ip] = None
        self._silent.move_to_end(ip)
        if len(self._silent) > MAX_SILENT:
            self._silent.popitem(last=False)


class FairTurns:
    """At most ``limit`` turns at a time. A turn that ends goes to the next speculator in rotation.

    Invariant: while a turn is free, nobody waits.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """By speculator, the next one first: those that wait, longest wait first."""

    async def acquire(self, speculator: str) -> None:
        """Wait for a turn. Each turn must be given back with :meth:`release`."""
        if self._free > 0:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(speculator, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._give_up(speculator, turn)
            else:  # the turn came at the same moment
                self.release()
            raise

    def release(self) -> None:
        """Give a turn back."""
        while self._waiting:
            speculator, queue = self._waiting.popitem(last=False)
            turn = queue.popleft()
            if queue:
                self._waiting[speculator] = queue  # the last in rotation
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _give_up(self, speculator: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(speculator, deque())
        with contextlib.suppress(ValueError):  # ``release`` has passed it over already
            queue.remove(turn)
        if not queue:
            self._waiting.pop(speculator, None)
