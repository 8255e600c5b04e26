"""One watched namespace that the API server refuses holds up no other, and speculators are listed first."""

from __future__ import annotations

import asyncio

import pytest

from aurora_operator.kubernetes_api import WATCHED
from aurora_operator.watch import informers as informers_module
from tests.unit.operator.watch.informer_rig import FakeStream, informing, shorten_waits


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_waits(monkeypatch)


def everything_in(namespace: str) -> set[tuple[str, str]]:
    return {(namespace, resource.kind) for resource in WATCHED}


async def test_a_deleted_namespace_does_not_hold_up_the_others_and_comes_back_by_itself() -> None:
    stream = FakeStream(everything_in("deleted"))
    async with asyncio.timeout(10), informing(stream, "deleted", "team") as (informers, cache):
        assert not informers.synced
        await informers.wait_until_synced()
        assert not cache.readable("deleted")
        assert cache.readable("team")
        assert cache.refused_namespaces == 1
        stream.refused.clear()
        while not cache.readable("deleted"):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
    assert cache.refused_namespaces == 0


async def test_a_namespace_that_comes_back_is_not_acted_in_before_every_kind_was_listed() -> None:
    stream = FakeStream(everything_in("late"))
    async with asyncio.timeout(10), informing(stream, "late", "team") as (informers, cache):
        await informers.wait_until_synced()
        for resource in WATCHED[:-1]:
            stream.refused.discard(("late", resource.kind))
            await asyncio.sleep(0.05)
            assert not cache.readable("late"), f"{WATCHED[-1].kind} was not listed"
        stream.refused.clear()
        while not cache.readable("late"):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)


async def test_a_namespace_with_one_kind_that_is_refused_is_not_acted_in() -> None:
    stream = FakeStream({("half", "Pod")})
    async with asyncio.timeout(10), informing(stream, "half", "team") as (informers, cache):
        await informers.wait_until_synced()
        assert not cache.readable("half")


@pytest.mark.parametrize(
    ("refused", "namespaces", "status"),
    [
        (everything_in("team"), ("team",), 403),
        (everything_in(""), (), 403),
        (everything_in("slow"), ("slow", "team"), 503),
    ],
)
async def test_no_replica_leads_without_a_complete_namespace_or_while_one_may_still_come(
    refused: set[tuple[str, str]], namespaces: tuple[str, ...], status: int
) -> None:
    async with informing(FakeStream(refused, status), *namespaces) as (informers, _):
        await asyncio.sleep(0.4)
        assert not informers.synced


async def test_speculators_are_listed_before_their_children() -> None:
    stream = FakeStream()
    async with asyncio.timeout(10), informing(stream) as (informers, _):
        await informers.wait_until_synced()
    assert stream.listed[0] == "AuroraSpeculator"
    assert len(stream.listed) == len(WATCHED)


async def test_an_informer_that_waits_for_the_speculators_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = FakeStream({("", "AuroraSpeculator")})
    async with informing(stream) as (informers, _):
        await asyncio.sleep(0.05)
        monkeypatch.setattr(informers_module, "MAX_SILENT_SECONDS", 0.04)
        assert not any("Pod" in sentence for sentence in informers.silent(0))
