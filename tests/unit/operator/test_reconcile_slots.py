"""Few reconciles compute at a time, and one that waits for a store or agents holds up nobody."""

from __future__ import annotations

import asyncio

import pytest

from aurora_operator.reconcile_slots import ReconcileSlots, outside


async def test_few_reconciles_compute_at_a_time() -> None:
    slots, running, most = ReconcileSlots(3), 0, 0

    async def reconcile() -> None:
        nonlocal running, most
        async with slots.slot("team"):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001)
            running -= 1

    await asyncio.gather(*(reconcile() for _ in range(20)))
    assert most == 3


async def test_a_reconcile_that_waits_for_a_slow_store_lends_its_slot_and_takes_one_back() -> None:
    slots, answered, holding = ReconcileSlots(1, 0.05), asyncio.Event(), list[str]()

    async def answer() -> str:
        await answered.wait()
        return "records"

    async def slow() -> None:
        async with slots.slot("team"):
            assert await outside(answer()) == "records"
            holding.append("slow")
            await asyncio.sleep(0.05)
            holding.remove("slow")

    async def prompt() -> None:
        async with slots.slot("team"):
            assert holding == []
            await asyncio.sleep(0)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(slow())
        await asyncio.sleep(0.01)
        for _ in range(5):
            await prompt()
        answered.set()
        for _ in range(20):
            await prompt()
            await asyncio.sleep(0.005)


async def test_a_reconcile_that_is_cancelled_while_it_waits_gives_back_one_slot() -> None:
    slots, entered = ReconcileSlots(2, 0.01), 0

    async def hang() -> None:
        nonlocal entered
        async with slots.slot("team"):
            entered += 1
            await outside(asyncio.sleep(60))

    waiting = [asyncio.create_task(hang()) for _ in range(5)]
    await asyncio.sleep(0.2)
    assert entered == 5, "each lent its slot to the next"
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    holders = 0

    async def hold() -> None:
        nonlocal holders
        async with slots.slot("team"):
            holders += 1
            await asyncio.sleep(60)

    held = [asyncio.create_task(hold()) for _ in range(4)]
    await asyncio.sleep(0.05)
    assert holders == 2
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)


async def test_an_error_and_an_answer_reach_the_reconcile() -> None:
    async def fail() -> None:
        raise ValueError("no")

    async with ReconcileSlots(1, 0.01).slot("team"):
        with pytest.raises(ValueError, match="no"):
            await outside(fail())
        assert await outside(asyncio.sleep(0.03, "late")) == "late"
    assert await outside(asyncio.sleep(0, "without a slot")) == "without a slot"


@pytest.mark.parametrize("work_seconds", [0.05, 0.2], ids=["waits for the slot", "still works"])
async def test_a_task_that_outlives_its_reconcile_takes_no_slot(work_seconds: float) -> None:
    """Nobody would give it back."""
    slots = ReconcileSlots(1, 0.01)

    async def another() -> None:
        async with slots.slot("team"):
            await asyncio.sleep(0.15)

    async with slots.slot("team"):
        left = asyncio.create_task(outside(asyncio.sleep(work_seconds)))
        next_one = asyncio.create_task(another())
        await asyncio.sleep(0.1)
    async with asyncio.timeout(5):
        await asyncio.gather(left, next_one)
        async with slots.slot("team"):
            pass


async def test_two_tasks_of_a_reconcile_take_its_slot_back_once() -> None:
    slots = ReconcileSlots(1, 0.01)
    async with slots.slot("team"):
        await asyncio.gather(outside(asyncio.sleep(0.03)), outside(asyncio.sleep(0.03)))
    async with asyncio.timeout(5), slots.slot("team"):
        pass
