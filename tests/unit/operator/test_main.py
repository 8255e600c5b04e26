"""Liveness fails when a loop or an informer does not turn. Readiness fails until the cache is full."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import aiohttp

from aurora_operator.health import HealthServer
from aurora_operator.main import Operator, agent_session
from tests.unit.operator.worlds import CONFIG


class Parts:
    """Stands in for the informers and for the loops. Reports the problems that a test sets."""

    def __init__(self, *problems: str, synced: bool = True) -> None:
        self.silent: Callable[..., Iterator[str]] = lambda *_: iter(problems)
        self.overdue: Callable[..., Iterator[str]] = self.silent
        self.answered_seconds = 0.0
        self.synced = synced


@asynccontextmanager
async def probed(informers: Parts, loops: Parts) -> AsyncIterator[str]:
    """The address of the probes of an operator with these parts."""
    operator = Operator(CONFIG)
    operator._informers, operator._loops, operator._elector = cast(Any, informers), cast(Any, loops), cast(Any, Parts())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    server = HealthServer(operator.problems, operator.is_ready)
    await server.start(port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.stop()


async def answer(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


async def test_a_healthy_operator_passes_both_probes() -> None:
    async with probed(Parts(), Parts()) as address:
        assert (await answer(f"{address}/healthz"))[0] == 200
        assert (await answer(f"{address}/readyz"))[0] == 200


async def test_a_stuck_loop_fails_the_liveness_probe_while_it_is_stuck() -> None:
    loops = Parts("the loop of team/chat is overdue by 5 s")
    async with probed(Parts(), loops) as address:
        assert await answer(f"{address}/healthz") == (500, "the loop of team/chat is overdue by 5 s")
        loops.overdue = lambda: iter(())
        assert (await answer(f"{address}/healthz"))[0] == 200


async def test_an_informer_without_an_answer_is_asked_for_how_long_the_lease_has_had_answers() -> None:
    operator = Operator(CONFIG)
    elector, informers = Parts(), Parts()
    elector.answered_seconds = 601.0
    informers.silent = lambda lease_answered_seconds: iter([f"{lease_answered_seconds:.0f} s"])
    operator._informers, operator._loops, operator._elector = (
        cast(Any, informers),
        cast(Any, Parts()),
        cast(Any, elector),
    )
    assert operator.problems() == ["601 s"]


async def test_many_problems_are_counted_and_not_all_listed() -> None:
    silent = [f"the informer of kind {number} is silent" for number in range(7)]
    async with probed(Parts(*silent), Parts("the loop of team/chat is overdue")) as address:
        status, text = await answer(f"{address}/healthz")
    assert status == 500
    assert text.endswith("kind 4 is silent and 3 more")


async def test_a_replica_is_not_ready_before_its_cache_is_complete() -> None:
    informers = Parts(synced=False)
    async with probed(informers, Parts()) as address:
        assert (await answer(f"{address}/readyz"))[0] == 503
        assert (await answer(f"{address}/healthz"))[0] == 200, "a replica that fills its cache must not be restarted"
        informers.synced = True
        assert (await answer(f"{address}/readyz"))[0] == 200


async def test_no_connection_to_an_agent_is_kept() -> None:
    server = HealthServer(list, lambda: True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    await server.start(port)
    try:
        async with agent_session() as session, session.get(f"http://127.0.0.1:{port}/healthz") as response:
            assert response.headers["Connection"] == "close"
    finally:
        await server.stop()
