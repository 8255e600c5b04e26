"""The load driver counts every request once, and every kind of failure by its name."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from tests.traffic.driver import Limit, Load, RequestOptions, TrafficDriver
from tests.traffic.prompts import Domain, prompts
from tests.traffic.report import distinct_share, percentiles

PIECES = [{"choices": [{"delta": {"content": f"word{i} "}, "finish_reason": None}]} for i in range(6)]
END = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
USAGE = {"choices": [], "usage": {"completion_tokens": 12}}
WHOLE = [*PIECES, END, USAGE, "[DONE]"]


@asynccontextmanager
async def scripted_server(script: Sequence[object]) -> AsyncIterator[tuple[str, list[object]]]:
    """A server that answers the n-th request with the n-th item of ``script``, which repeats.

    An item is a list of events, a status, "hang" or "break". Yields the server's URL and the requests it has received.
    """
    answers = itertools.cycle(script)
    received: list[object] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        received.append(await request.json())
        answer = next(answers)
        if isinstance(answer, int):
            return web.Response(status=answer)
        if answer == "hang":
            await asyncio.sleep(30)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        events = WHOLE[:3] if answer == "break" else answer
        assert isinstance(events, list)
        for event in events:
            text = event if isinstance(event, str) else json.dumps(event)
            await response.write(f"data: {text}\n\n".encode())
        if answer == "break":
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
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", received
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
    async with scripted_server([answer, WHOLE]) as (url, received):
        driver = TrafficDriver(
            Load(url, concurrency=1, limit=Limit(max_requests=2), options=RequestOptions(timeout_seconds=0.5))
        )
        summary = await driver.run()
    assert summary.failures == {kind: 1}
    assert (summary.requests, summary.succeeded, summary.failed) == (2, 1, 1)
    assert len(received) == 2, "nothing must be retried"


async def test_a_retrying_client_counts_failed_attempts_and_fails_after_its_retry_time() -> None:
    async with scripted_server([503, "break", WHOLE]) as (url, received):
        summary = await TrafficDriver(
            Load(url, concurrency=1, limit=Limit(max_requests=1), options=RequestOptions(retry_seconds=5.0))
        ).run()
    assert (summary.succeeded, summary.failed) == (1, 0)
    assert summary.retries == {"status 503": 1, "ClientPayloadError": 1}
    assert received[0] == received[1] == received[2], "a retry must send the same request"
    gone = await TrafficDriver(
        Load(
            "http://127.0.0.1:1", concurrency=1, limit=Limit(max_requests=1), options=RequestOptions(retry_seconds=0.5)
        )
    ).run()
    assert gone.failed == gone.requests == 1
    assert gone.retries


async def test_switch_domain_changes_the_prompts() -> None:
    async with scripted_server([WHOLE]) as (url, received):
        driver = TrafficDriver(Load(url, concurrency=1, limit=Limit(max_requests=1)))
        await driver.run()
        other = TrafficDriver(Load(url, concurrency=1, limit=Limit(max_requests=1)))
        other.switch_domain(Domain.SQL)
        await other.run()
    assert "JSON" in str(received[0])
    assert "SQL" in str(received[1])


async def test_a_refused_connection_is_a_failure() -> None:
    summary = await TrafficDriver(Load("http://127.0.0.1:1", concurrency=2, limit=Limit(max_requests=4))).run()
    assert summary.failed == summary.requests == 4


async def test_the_summary_of_a_run_without_failures() -> None:
    async with scripted_server([WHOLE]) as (url, received):
        summary = await TrafficDriver(Load(url, concurrency=3, limit=Limit(max_requests=10))).run()
    assert (summary.requests, summary.failed, summary.answer_tokens) == (10, 0, 120)
    assert len(received) == 10
    assert summary.ttft_seconds is not None
    assert summary.ttft_seconds.p50 > 0
    assert summary.distinct_4grams == 1.0
    assert summary.distinct_answers == 0.0, "all answers are the same"


async def test_requests_are_sent_at_the_rate_that_is_asked_for() -> None:
    async with scripted_server([WHOLE]) as (url, received):
        summary = await TrafficDriver(Load(url, requests_per_second=50.0, limit=Limit(duration_seconds=0.5))).run()
    assert 15 <= summary.requests == len(received) <= 27


async def test_stop_from_another_thread_lets_requests_finish() -> None:
    async with scripted_server([WHOLE]) as (url, received):
        driver = TrafficDriver(Load(url, concurrency=2))
        driver.start()
        while driver.summary().requests < 3:  # noqa: ASYNC110 - the driver lives in another thread
            await asyncio.sleep(0.01)
        summary = await asyncio.to_thread(driver.stop)
    assert summary.failed == 0
    assert summary.requests == len(received)


@pytest.mark.parametrize("domain", list(Domain))
def test_a_seed_always_gives_the_same_many_distinct_prompts(domain: Domain) -> None:
    one, again = (list(itertools.islice(prompts(domain, 4), 800)) for _ in range(2))
    assert one == again
    assert len(set(one)) > 790
    assert one != list(itertools.islice(prompts(domain, 5), 800))


def test_distinct_share_tells_repeating_text_from_prose() -> None:
    assert distinct_share("a b c d " * 50) < 0.05  # type: ignore[operator]
    assert distinct_share('{"name": "Ann", "city": "Rome"}') == 1.0
    assert distinct_share("too short") is None


def test_percentiles_are_nearest_rank() -> None:
    result = percentiles([float(i) for i in range(1, 101)])
    assert result is not None
    assert (result.p50, result.p95, result.p99, result.largest) == (51.0, 96.0, 100.0, 100.0)
    assert percentiles([]) is None


async def test_a_run_ends_after_its_last_message() -> None:
    async with scripted_server([WHOLE]) as (url, received):
        for load in (Load(url, concurrency=2), Load(url, requests_per_second=100.0, concurrency=1)):
            driver = TrafficDriver(load, messages=iter(["one", "two", "three"]))
            driver.start()
            assert driver.running
            assert (await asyncio.to_thread(driver.wait_until_done)).requests == 3
            assert not driver.running
    asked = [word for body in received for word in ("one", "two", "three") if f"'{word}'" in str(body)]
    assert sorted(asked) == sorted(2 * ["one", "two", "three"])
