"""kopf's liveness probe fails when a loop or an informer does not turn, and only then."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import aiohttp
import kopf
import pytest
from kopf._core.engines.probing import health_reporter

from aurora_operator.main import Operator
from tests.unit.operator.worlds import CONFIG


class Parts:
    """Stands in for the informers and for the loops. Reports the problems that a test sets."""

    def __init__(self, *problems: str) -> None:
        self.silent = self.overdue = lambda: iter(problems)


def operator(informers: Parts, loops: Parts) -> Operator:
    made = Operator(CONFIG)
    made._informers, made._loops = cast(Any, informers), cast(Any, loops)
    return made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_healthy_operator_passes() -> None:
    await operator(Parts(), Parts()).check()


async def test_a_stuck_loop_fails_the_probe_at_once() -> None:
    """kopf repeats other errors for a minute before it answers."""
    with pytest.raises(kopf.PermanentError, match="the loop of team/chat is overdue"):
        await operator(Parts(), Parts("the loop of team/chat is overdue by 5 s")).check()


async def test_many_problems_are_counted_and_not_all_listed() -> None:
    silent = [f"the informer of kind {number} is silent" for number in range(7)]
    with pytest.raises(kopf.PermanentError, match=r"kind 4 is silent and 3 more$"):
        await operator(Parts(*silent), Parts("the loop of team/chat is overdue")).check()


async def test_kopf_answers_the_probe_with_an_error_while_a_loop_is_stuck() -> None:
    registry, loops = kopf.OperatorRegistry(), Parts()
    kopf.on.probe(registry=registry, id="turning")(operator(Parts(), loops).check)
    ready, port = asyncio.Event(), free_port()
    reporter = asyncio.create_task(
        health_reporter(
            f"http://127.0.0.1:{port}/healthz",
            memo=cast(Any, None),
            indices=cast(Any, {}),
            registry=registry,
            settings=kopf.OperatorSettings(),
            ready_flag=ready,
        )
    )
    await ready.wait()
    async with aiohttp.ClientSession() as session, asyncio.timeout(10):
        loops.overdue = lambda: iter(["the loop of team/chat is overdue by 5 s"])
        async with session.get(f"http://127.0.0.1:{port}/healthz") as answer:
            assert answer.status == 500
        loops.overdue = lambda: iter(())
        async with session.get(f"http://127.0.0.1:{port}/healthz") as answer:
            assert answer.status == 200
    reporter.cancel()
    await asyncio.gather(reporter, return_exceptions=True)
