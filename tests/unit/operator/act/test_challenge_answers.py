"""An acting installation answers challenges at once, whatever its reconciles wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from aurora_operator.act import challenge_answers
from aurora_operator.act.challenge_answers import CALLS_PER_NAMESPACE
from aurora_operator.errors import Conflict, KubernetesError, NotLeading
from aurora_operator.io_pools import call_api
from aurora_operator.kubernetes_api import Object
from aurora_operator.reconcile_slots import ReconcileSlots
from tests.unit.operator.act.status_server import Clock, Installation, StatusServer, installation, names

ASKED = {"operator": names("one"), "operatorChallenge": names("two") | {"nonce": "n"}}


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(challenge_answers, "MIN_RETRY_SECONDS", 0.001)


def asked(status: dict[str, dict[str, str]] | None = None) -> Installation:
    """The installation ``one``, which acts on a speculator that ``two`` asks about."""
    return installation(StatusServer({**(ASKED if status is None else status)}), Clock(), "one")


async def test_a_challenge_is_removed_and_nothing_else_is_touched() -> None:
    one = asked({**ASKED, "updated": {"kept": "as it is"}})
    one.authority.answer(one.api.stored, acts=True)
    await one.answered()
    assert one.api.writes == ["remove operatorChallenge"]
    assert one.api.status == {"operator": names("one"), "updated": {"kept": "as it is"}}


async def test_nobody_else_is_answered_and_nothing_is_written_without_a_challenge() -> None:
    for status in ({}, {"operator": names("one")}, {**ASKED, "operator": names("three")}):
        one = asked(status)
        one.authority.answer(one.api.stored, acts=True)
        await one.answered()
        assert one.api.writes == []


async def test_an_answer_is_repeated_until_it_is_stored() -> None:
    one = asked()
    outdated = one.api.stored
    one.api.change(updated="1/2")
    one.api.faults += [Conflict("changed", 409), KubernetesError("away"), KubernetesError("away")]
    one.authority.answer(outdated, acts=True)
    await one.answered()
    assert one.api.challenge == ""


@pytest.mark.parametrize("course", ["displaced", "answered", "deleted", "created again", "not leading", "no rights"])
async def test_an_answer_ends_when_none_is_demanded_any_more(course: str) -> None:
    one = asked()
    outdated = one.api.stored
    if course == "displaced":
        one.api.change(operator=names("three"))
    elif course == "answered":
        one.api.change(operatorChallenge=None)
    elif course == "not leading":
        one.api.faults.append(NotLeading("another replica leads"))
    elif course == "no rights":
        one.api.faults += [KubernetesError("forbidden", 403), KubernetesError("forbidden", 403)]
    else:
        one.api.revision += 1
        one.api.uid, one.api.exists = "another", course != "deleted"
    one.authority.answer(outdated, acts=True)
    await one.answered()
    assert one.api.writes == []


async def test_a_speculator_of_a_namespace_that_left_is_given_up() -> None:
    one = asked()
    one.authority.answer(one.api.stored, acts=False)
    await one.answered()
    assert one.api.status == {}
    one = asked({"operator": names("one")})
    one.authority.answer(one.api.stored, acts=False)
    await one.answered()
    assert one.api.status == {}, "nobody has to ask"


async def test_a_speculator_is_given_up_although_a_challenge_is_being_answered() -> None:
    """The challenge of the new shard may be seen before the namespace's new label."""
    one = asked()
    one.api.faults.append(KubernetesError("away"))
    one.authority.answer(one.api.stored, acts=True)
    one.authority.answer(one.api.stored, acts=False)
    await one.answered()
    assert one.api.status == {}


async def test_a_speculator_is_kept_although_it_is_being_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The namespace came back, so a loop acts again."""
    monkeypatch.setattr(challenge_answers, "MIN_RETRY_SECONDS", 0.05)
    one = asked({"operator": names("one")})
    one.api.faults.append(KubernetesError("away"))
    one.authority.answer(one.api.stored, acts=False)
    await asyncio.sleep(0.02)
    one.authority.answer(one.api.stored, acts=True)
    await asyncio.sleep(0.2)
    assert one.api.operator == "one/aurora-operator"


async def test_a_challenge_that_comes_while_another_one_is_answered_is_answered_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = asked()
    loop, merge = asyncio.get_running_loop(), one.api.merge_status

    def ask_again() -> None:
        one.api.change(operatorChallenge=names("three") | {"nonce": "m"})
        one.authority.answer(one.api.stored, acts=True)

    def merge_status(obj: Object, changes: Mapping[str, Any]) -> Object:
        stored = merge(obj, changes)
        if len(one.api.writes) == 1:
            loop.call_soon_threadsafe(ask_again)  # before the first answer's task hears that it is stored
        return stored

    monkeypatch.setattr(one.api, "merge_status", merge_status)
    one.authority.answer(one.api.stored, acts=True)
    await one.answered()
    assert one.api.writes == ["remove operatorChallenge"] * 2
    assert one.api.challenge == ""


async def test_answers_of_one_namespace_leave_threads_for_the_others() -> None:
    one = asked()
    one.api.open.clear()
    stored = one.api.stored
    for number in range(64):
        one.authority.answer({**stored, "metadata": stored["metadata"] | {"uid": str(number)}}, acts=True)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(CALLS_PER_NAMESPACE + 1))
    await asyncio.sleep(0.1)
    try:
        async with asyncio.timeout(10):
            assert await call_api(lambda: 42) == 42
    finally:
        one.api.open.set()
        await one.authority.stop()


async def test_a_speculator_that_nobody_sees_gets_no_more_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(challenge_answers, "MIN_RETRY_SECONDS", 0.05)
    one = asked()
    one.api.faults.append(KubernetesError("away"))
    one.authority.answer(one.api.stored, acts=True)
    await asyncio.sleep(0.02)
    one.authority.leave_unanswered(one.api.stored)
    await asyncio.sleep(0.2)
    assert one.api.writes == []


async def test_a_process_that_stops_leading_cancels_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(challenge_answers, "MIN_RETRY_SECONDS", 60.0)
    one = asked()
    one.api.faults.append(KubernetesError("away"))
    one.authority.answer(one.api.stored, acts=True)
    await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        await one.authority.stop()
    assert one.authority._answers._under_way == {}


async def test_an_answer_that_a_reconcile_begins_neither_lends_nor_takes_the_slot_of_the_reconcile() -> None:
    slots, one = ReconcileSlots(1, 0.01), asked()
    one.api.open.clear()
    async with slots.slot("team"):
        one.authority.answer(one.api.stored, acts=True)
        await asyncio.sleep(0.05)
        assert slots._free.locked(), "the reconcile still computes"
    one.api.open.set()
    async with asyncio.timeout(5):
        await one.answered()
        async with slots.slot("team"):
            pass
