"""The driver counts every way in which a request can fail, once, and drops nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from tests.traffic.driver import Driver, Load
from tests.traffic.prompts import Domain, prompts
from tests.traffic.report import distinct_share, percentiles

PIECES = [{"choices": [{"delta": {"content": f"word{i} "}, "finish_reason": None}]} for i in range(6)]
END = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
USAGE = {"choices": [], "usage": {"completion_tokens": 12}}
WHOLE = [*PIECES, END, USAGE, "[DONE]"]


@asynccontextmanager
async def server(script: Sequence[object]) -> AsyncIterator[tuple[str, list[object]]]:
    """Answers the n-th request as ``script`` says (in a circle): events, a status, "hang" or "break"."""
    turns = itertools.cycle(script)
    seen: list[object] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append(await request.json())
        what = next(turns)
        if isinstance(what, int):
            return web.Response(status=what)
        if what == "hang":
            await asyncio.sleep(30)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        events = WHOLE[:3] if what == "break" else what
        assert isinstance(events, list)
        for event in events:
            text = event if isinstance(event, str) else json.dumps(event)
            await response.write(f"data: {text}\n\n".encode())
        if what == "break":
            assert request.transport is not None
            request.transport.abort()
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", seen
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (503, "status 503"),
        (WHOLE[:-1], "stream ended early"),
        ([*PIECES, USAGE, "[DONE]"], "finish reason None"),
        ([*PIECES, END, "[DONE]"], "no usage"),
        ([{"choices": [{"delta": {}, "finish_reason": "abort"}]}, USAGE, "[DONE]"], "finish reason abort"),
        ([{"error": {"message": "secret words"}}], "error in stream"),
        (["not json"], "malformed stream"),
        ("break", "ClientPayloadError"),
        ("hang", "timeout"),
    ],
)
async def test_each_failure_is_counted_by_its_kind(answer: object, kind: str) -> None:
    async with server([answer, WHOLE]) as (url, seen):
        driver = Driver(Load(url, concurrency=1, requests=2, timeout=0.5))
        summary = await driver.run()
    assert summary.failures == {kind: 1}
    assert (summary.requests, summary.succeeded, summary.failed) == (2, 1, 1)
    assert len(seen) == 2, "nothing is retried"


async def test_a_client_that_asks_again_counts_what_broke_and_fails_only_in_the_end() -> None:
    async with server([503, "break", WHOLE]) as (url, seen):
        summary = await Driver(Load(url, concurrency=1, requests=1, again_seconds=5.0)).run()
    assert (summary.succeeded, summary.failed) == (1, 0)
    assert summary.broken == {"status 503": 1, "ClientPayloadError": 1}
    assert seen[0] == seen[1] == seen[2], "the same question"
    gone = await Driver(Load("http://127.0.0.1:1", concurrency=1, requests=1, again_seconds=0.5)).run()
    assert gone.failed == gone.requests == 1
    assert gone.broken


async def test_traffic_drifts_when_it_is_told_to() -> None:
    async with server([WHOLE]) as (url, seen):
        driver = Driver(Load(url, concurrency=1, requests=1))
        await driver.run()
        other = Driver(Load(url, concurrency=1, requests=1))
        other.switch(Domain.SQL)
        await other.run()
    assert "JSON" in str(seen[0])
    assert "SQL" in str(seen[1])


async def test_a_refused_connection_is_a_failure() -> None:
    summary = await Driver(Load("http://127.0.0.1:1", concurrency=2, requests=4)).run()
    assert summary.failed == summary.requests == 4


async def test_a_good_run_adds_up() -> None:
    async with server([WHOLE]) as (url, seen):
        summary = await Driver(Load(url, concurrency=3, requests=10)).run()
    assert (summary.requests, summary.failed, summary.answer_tokens) == (10, 0, 120)
    assert len(seen) == 10
    assert summary.ttft is not None
    assert summary.ttft.p50 > 0
    assert summary.distinct_4grams == 1.0
    assert summary.distinct_answers == 0.0, "all answers were the same"


async def test_a_rate_is_kept_whatever_the_answers_take() -> None:
    async with server([WHOLE]) as (url, seen):
        summary = await Driver(Load(url, rate=50.0, seconds=0.5)).run()
    assert 15 <= summary.requests == len(seen) <= 27


async def test_stop_from_another_thread_lets_requests_finish() -> None:
    async with server([WHOLE]) as (url, seen):
        driver = Driver(Load(url, concurrency=2))
        driver.start()
        while driver.summary().requests < 3:  # noqa: ASYNC110 - the driver lives in another thread
            await asyncio.sleep(0.01)
        summary = await asyncio.to_thread(driver.stop)
    assert summary.failed == 0
    assert summary.requests == len(seen)


@pytest.mark.parametrize("domain", list(Domain))
def test_prompts_repeat_for_a_seed_and_are_many(domain: Domain) -> None:
    one, again = (list(itertools.islice(prompts(domain, 4), 800)) for _ in range(2))
    assert one == again
    assert len(set(one)) > 790
    assert one != list(itertools.islice(prompts(domain, 5), 800))


def test_loops_are_told_from_prose() -> None:
    assert distinct_share("a b c d " * 50) < 0.05  # type: ignore[operator]
    assert distinct_share('{"name": "Ann", "city": "Rome"}') == 1.0
    assert distinct_share("too short") is None


def test_percentiles_are_of_the_values() -> None:
    found = percentiles([float(i) for i in range(1, 101)])
    assert found is not None
    assert (found.p50, found.p95, found.p99, found.largest) == (51.0, 96.0, 100.0, 100.0)
    assert percentiles([]) is None


async def test_a_run_ends_with_its_messages() -> None:
    async with server([WHOLE]) as (url, seen):
        for load in (Load(url, concurrency=2), Load(url, rate=100.0, concurrency=1)):
            driver = Driver(load, messages=iter(["one", "two", "three"]))
            driver.start()
            assert driver.running
            assert (await asyncio.to_thread(driver.wait)).requests == 3
            assert not driver.running
    asked = [word for body in seen for word in ("one", "two", "three") if f"'{word}'" in str(body)]
    assert sorted(asked) == sorted(2 * ["one", "two", "three"])
