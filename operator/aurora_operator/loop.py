"""One task per speculator: observe, plan, act, wait for an event or for time to pass.

Invariants: a task holds no truth, so it may end and start anywhere; the loop's handler is the one place that catches
everything: it logs and comes back with growing, jittered delay, because a speculator must never be given up.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from aurora_operator import metrics
from aurora_operator.act.actor import Actor, Outcome
from aurora_operator.agent_client import AgentClient
from aurora_operator.errors import Conflict, NotFound, OperatorError
from aurora_operator.kubernetes_api import KubernetesApi
from aurora_operator.observe.observed_time import ObservedTime
from aurora_operator.observe.observer import Observer
from aurora_operator.operator_config import OperatorConfig
from aurora_operator.plan import plan
from aurora_store.errors import ObjectExists, StoreError

log = logging.getLogger(__name__)

MOVING_SECONDS = 2.0
IDLE_SECONDS = 15.0
SETTLE_SECONDS = 0.2
"""Events come in bursts: one look answers all that arrive within this time."""
FIRST_BACKOFF, LAST_BACKOFF = 1.0, 60.0


class Loop:
    """The loop of one speculator."""

    def __init__(
        self, api: KubernetesApi, agents: AgentClient, config: OperatorConfig, namespace: str, name: str
    ) -> None:
        self._config = config
        self._who = f"{namespace}/{name}"
        self._labels = (namespace, name)
        self._observer = Observer(api, agents, namespace, name)
        self._actor = Actor(api, agents)
        self._woken = asyncio.Event()
        self._outcome = Outcome()
        self._observed_time = ObservedTime()
        self._written = 0.0

    def wake(self) -> None:
        """Something changed: look soon."""
        self._woken.set()

    async def run(self) -> None:
        """Until the speculator is gone."""
        failures = 0
        while True:
            self._woken.clear()
            outcome = "done"
            try:
                delay = await self.once()
                failures = 0
            except NotFound as error:
                if await self._gone():
                    return
                log.info("%s: %s; looking again", self._who, error)
                delay, outcome = FIRST_BACKOFF, "error"
            except (Conflict, ObjectExists) as error:
                log.info("%s: somebody else was first; looking again (%s)", self._who, error)
                delay, outcome = random.uniform(0.1, 0.5), "conflict"  # noqa: S311 - jitter
            except Exception as error:
                failures += 1
                known = isinstance(error, (OperatorError, StoreError))
                if known:
                    log.warning("%s: %s", self._who, error)
                else:
                    log.exception("%s: not expected", self._who)
                limit = min(LAST_BACKOFF, FIRST_BACKOFF * 2 ** min(failures - 1, 10))
                delay, outcome = random.uniform(limit / 2, limit), "error"  # noqa: S311 - jitter
            metrics.RECONCILES.labels(*self._labels, outcome).inc()
            await self._pause(delay)

    async def once(self) -> float:
        """One look, plan and act; how long to wait for the next."""
        started = time.monotonic()
        look = await self._observer.look()
        now, steady = datetime.now(UTC), time.monotonic()
        observed = replace(
            look.observed,
            observation_gap=self._observed_time.has_gap(now, steady),
            fenced=self._outcome.fenced,
            apply_errors=self._outcome.problems,
            refused_job=self._outcome.refused_job,
        )
        made = plan(observed, self._config, now, timedelta(seconds=min(steady - self._written, 1e6)))
        self._outcome = await self._actor.act(made, look, self._observer.records)
        self._observed_time.record(now, steady, decided=observed.store.ok)
        if self._outcome.wrote_status:
            self._written = time.monotonic()
        metrics.show(observed)
        metrics.SECONDS.labels(*self._labels).observe(time.monotonic() - started)
        return MOVING_SECONDS if made.moving or self._outcome.problems else IDLE_SECONDS

    async def _gone(self) -> bool:
        try:
            await self._observer.look()
        except NotFound:
            metrics.forget(*self._labels)
            return True
        except OperatorError:
            return False
        return False

    async def _pause(self, seconds: float) -> None:
        try:
            # Not asyncio.wait_for: before Python 3.12 it swallows a cancellation that comes together with the end.
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return
        await asyncio.sleep(SETTLE_SECONDS)


class Loops:
    """All loops of this process."""

    def __init__(self, api: KubernetesApi, agents: AgentClient, config: OperatorConfig) -> None:
        self._api, self._agents, self._config = api, agents, config
        self._loops: dict[tuple[str, str], tuple[Loop, asyncio.Task[None]]] = {}

    def wake(self, namespace: str, name: str, *, start: bool = False) -> None:
        """Wake a speculator's loop; with ``start``, begin one where there is none."""
        key = (namespace, name)
        known = self._loops.get(key)
        if known is not None and not known[1].done():
            known[0].wake()
        elif start:
            loop = Loop(self._api, self._agents, self._config, namespace, name)
            self._loops[key] = (loop, asyncio.create_task(loop.run(), name=f"{namespace}/{name}"))

    async def stop(self) -> None:
        """End all tasks. An act that is cut short is continued by the next process."""
        tasks = [task for _, task in self._loops.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loops.clear()
