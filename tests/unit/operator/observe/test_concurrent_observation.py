"""An observation waits for the agents and for the store at the same time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

import pytest

from aurora_operator.errors import Conflict
from aurora_operator.observe import observer
from aurora_operator.observe.observed import StoreView
from aurora_protocol.agent_api import AgentState
from tests.unit.operator.observe.test_observer import CountingApi, Rig, keys_secret, pod
from tests.unit.operator.worlds import agent


@dataclass
class Meeting:
    """A fake of agents and store: each answers once the other one was asked too."""

    asked: asyncio.Barrier = field(default_factory=lambda: asyncio.Barrier(2))
    error: Exception | None = None
    """What the store raises then."""
    ended: bool = False
    """The wait for the agents ended early."""

    async def state(self, _ip: str, _token: str) -> AgentState:
        await self.asked.wait()
        try:
            await asyncio.sleep(0 if self.error is None else 3600)
        finally:
            self.ended = self.error is not None
        return agent("chat-a", 0)

    async def view(self, *_: Any) -> StoreView:
        await self.asked.wait()
        if self.error is not None:
            raise self.error
        return StoreView()


def meeting_rig(meeting: Meeting) -> Rig:
    running = pod("chat-a", status={"phase": "Running", "podIP": "10.0.0.1"})
    rig = Rig(running, api=CountingApi(keys_secret("token")), agents=cast(Any, meeting))
    cast(Any, rig.observer.store).view = meeting.view
    return rig


async def test_the_agents_and_the_store_are_asked_at_the_same_time() -> None:
    async with asyncio.timeout(10):
        observed = (await meeting_rig(Meeting()).observer.observe()).observed
    assert [each.agent for each in observed.pods] == [agent("chat-a", 0)]


async def test_a_store_whose_view_fails_ends_the_wait_for_the_agents() -> None:
    meeting = Meeting(error=Conflict("spec.store changed while the store was read", 409))
    async with asyncio.timeout(10):
        with pytest.raises(Conflict):
            await meeting_rig(meeting).observer.observe()
    assert meeting.ended


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancellation_that_comes_with_an_error_is_not_lost(turns: int) -> None:
    """A loop that went on after it had lost the Lease would act beside the new leader."""
    failing = asyncio.Event()

    async def fail() -> NoReturn:
        await failing.wait()
        raise Conflict("spec.store changed while the store was read", 409)

    async def end_slowly() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def reconcile() -> None:
        try:
            await observer._together(fail(), end_slowly())
        except Conflict:
            await asyncio.sleep(3600)

    task = asyncio.create_task(reconcile())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    failing.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(10):
        await asyncio.wait({task})
    assert task.cancelled()
