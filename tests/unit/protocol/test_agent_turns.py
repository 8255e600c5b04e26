"""Turns of agents: the rotation of speculators, waits that end early, and the bound of what is remembered."""

from __future__ import annotations

import asyncio
import random

import pytest

from aurora_protocol import agent_turns
from aurora_protocol.agent_turns import AgentTurns, FairTurns


async def test_speculators_that_wait_get_turns_in_rotation() -> None:
    turns, order = FairTurns(1), list[str]()
    await turns.acquire("a")

    async def call(name: str) -> None:
        await turns.acquire(name[0])
        order.append(name)
        turns.release()

    calls = [asyncio.create_task(call(name)) for name in ("a1", "a2", "a3", "a4", "b1", "b2", "c1")]
    await asyncio.sleep(0)
    turns.release()
    await asyncio.gather(*calls)
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


@pytest.mark.parametrize("seed", range(20))
async def test_no_turn_is_lost_whenever_a_wait_ends(seed: int) -> None:
    chance, turns = random.Random(seed), FairTurns(3)  # noqa: S311 - not for a secret
    under_way = most = done = 0

    async def call(name: str) -> None:
        nonlocal under_way, most, done
        await turns.acquire(name)
        under_way += 1
        most = max(most, under_way)
        try:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            done += 1
        finally:
            under_way -= 1
            turns.release()

    calls = [asyncio.create_task(call(chance.choice("abc"))) for _ in range(60)]
    for _ in range(40):
        await asyncio.sleep(0)
        if chance.random() < 0.7:
            chance.choice(calls).cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert (most, done > 0) == (3, True)
    async with asyncio.timeout(1):
        for _ in range(3):
            await turns.acquire("a")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await turns.acquire("a")
    assert not turns._waiting


async def test_a_turn_that_comes_with_the_end_of_the_wait_goes_to_the_next() -> None:
    turns = FairTurns(1)
    await turns.acquire("a")
    first, second = (asyncio.create_task(turns.acquire(name)) for name in "ab")
    await asyncio.sleep(0)
    turns.release()
    first.cancel()
    await asyncio.wait_for(second, 1)
    assert first.cancelled()


async def test_a_bounded_number_of_silent_agents_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_turns, "MAX_SILENT", 3)
    turns = AgentTurns()

    async def hang(ip: str) -> None:
        with pytest.raises(TimeoutError):
            async with turns.turn("a", ip):
                raise TimeoutError

    for ip in ("1", "2", "3", "1", "4"):
        await hang(ip)
    assert list(turns._silent) == ["3", "1", "4"], "the longest known one is forgotten"
    async with turns.turn("a", "1"):
        pass
    assert list(turns._silent) == ["3", "4"]
