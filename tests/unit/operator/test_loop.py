"""A loop ends only with its speculator, survives every error, and tells when it does not turn."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from dataclasses import dataclass, field
from math import inf

import pytest
from prometheus_client import generate_latest

from aurora_operator import loop as loop_module
from aurora_operator.errors import Conflict, KubernetesError, NotFound
from aurora_operator.loop import MAX_QUICK_RETRIES, MAX_RECONCILE_SECONDS, SpeculatorLoop
from aurora_operator.reconcile_slots import ReconcileSlots, outside, outside_api
from aurora_store.errors import ObjectExists


@dataclass
class FakeReconciler:
    """Raises what a test sets, then rests. Gone after the given number of reconciles."""

    errors: list[Exception] = field(default_factory=list)
    gone_after: int = 1000
    rest_seconds: float = 0.0
    woken: list[bool] = field(default_factory=list)
    shown_before: list[int] = field(default_factory=list)
    """The number of reconciles before each time that the stored status was shown."""
    new_spec: bool = False

    def has_new_spec(self) -> bool:
        return self.new_spec

    def show_stored_status(self) -> None:
        self.shown_before.append(len(self.woken))

    def is_gone(self) -> bool:
        return len(self.woken) >= self.gone_after

    async def reconcile(self, *, woken: bool) -> float:
        self.woken.append(woken)
        if self.errors:
            raise self.errors.pop(0)
        return self.rest_seconds


def loop_of(reconciler: FakeReconciler) -> SpeculatorLoop:
    return SpeculatorLoop(reconciler, ReconcileSlots(), "team", "chat")  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "MIN_BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(loop_module, "DEBOUNCE_SECONDS", 0.001)


@pytest.mark.parametrize(
    "error",
    [
        NotFound("the cache is behind", 404),
        KubernetesError("away", 0),
        Conflict("somebody else", 409),
        ValueError("Exceeds the limit (4300 digits) for integer string conversion"),
        RecursionError("a redirect of the store"),
        KeyError("metadata"),
    ],
)
async def test_no_error_ends_the_loop_while_the_speculator_exists(error: Exception) -> None:
    reconciler = FakeReconciler([NotFound("first", 404), error, error], gone_after=4)
    async with asyncio.timeout(10):
        await loop_of(reconciler).run()
    assert len(reconciler.woken) == 4
    assert reconciler.shown_before == [0], "until a reconcile succeeds, metrics show what the status says"


async def test_the_counters_of_all_outcomes_are_there_before_the_first_reconcile_ends() -> None:
    loop_of(FakeReconciler())
    scrape = generate_latest().decode()
    for outcome in ("done", "conflict", "error"):
        assert f'aurora_reconciles_total{{name="chat",namespace="team",outcome="{outcome}"}} ' in scrape


@pytest.mark.parametrize("error", [Conflict("denied by a webhook", 409), ObjectExists("channel/7.json")])
async def test_conflicts_are_retried_at_once_and_after_five_in_a_row_with_a_backoff(error: Exception) -> None:
    reconciler = FakeReconciler([error] * 14)
    loop = loop_of(reconciler)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop_module, "MIN_BACKOFF_SECONDS", 1.0)
        patched.setattr(random, "uniform", lambda low, high: high)
        delays = [await loop._turn(woken=True) for _ in range(13)]
        assert delays == [*[0.5] * MAX_QUICK_RETRIES, 1, 2, 4, 8, 16, 32, 60, 60]
        reconciler.errors.clear()
        await loop._turn(woken=True)
        reconciler.errors.append(error)
        assert await loop._turn(woken=True) == 0.5, "a reconcile succeeded in between"


async def test_the_loop_ends_with_its_speculator() -> None:
    reconciler = FakeReconciler([NotFound("deleted", 404)], gone_after=1)
    async with asyncio.timeout(10):
        await loop_of(reconciler).run()
    assert reconciler.woken == [True]


async def test_a_change_ends_the_rest_and_the_reconcile_knows_that() -> None:
    reconciler = FakeReconciler(rest_seconds=3600)
    loop = loop_of(reconciler)
    task = asyncio.create_task(loop.run())
    await asyncio.sleep(0.05)
    assert reconciler.woken == [True]
    loop.wake()
    await asyncio.sleep(0.05)
    assert reconciler.woken == [True, True]
    reconciler.rest_seconds = 0.01
    loop.wake()
    await asyncio.sleep(0.05)
    assert reconciler.woken[3] is False, "time alone passed"
    task.cancel()


async def test_a_changed_spec_does_not_wait_for_further_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "DEBOUNCE_SECONDS", 3600)
    reconciler = FakeReconciler(rest_seconds=3600)
    loop = loop_of(reconciler)
    task = asyncio.create_task(loop.run())
    await asyncio.sleep(0.05)
    loop._began_seconds = -inf  # the last reconcile was long ago
    reconciler.new_spec = True
    loop.wake()
    await asyncio.sleep(0.05)
    assert reconciler.woken == [True, True]
    reconciler.new_spec = False
    loop.wake()
    await asyncio.sleep(0.05)
    assert reconciler.woken == [True, True], "a change of a child waits for others"
    task.cancel()


async def test_a_spec_that_changes_all_the_time_is_reconciled_no_more_often_than_children(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop_module, "DEBOUNCE_SECONDS", 0.1)
    reconciler = FakeReconciler(rest_seconds=3600, new_spec=True)
    loop = loop_of(reconciler)
    task = asyncio.create_task(loop.run())
    started = time.monotonic()
    while (passed := time.monotonic() - started) < 0.5:
        loop.wake()
        await asyncio.sleep(0.001)
    assert 2 <= len(reconciler.woken) <= 1 + passed / 0.1
    task.cancel()


async def test_a_reconcile_that_hangs_makes_the_loop_overdue(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(FakeReconciler):
        async def reconcile(self, *, woken: bool) -> float:
            await asyncio.sleep(3600)
            return 0.0

    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    loop = loop_of(Stuck())
    task = asyncio.create_task(loop.run())
    await asyncio.sleep(0)
    now += MAX_RECONCILE_SECONDS - 1
    assert loop.overdue_seconds < 0
    now += 2
    assert loop.overdue_seconds == pytest.approx(1)
    task.cancel()


async def test_a_loop_that_waits_for_its_turn_or_gets_answers_is_not_overdue(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [asyncio.Event() for _ in range(3)]

    class Slow(FakeReconciler):
        async def reconcile(self, *, woken: bool) -> float:
            for answer in answers:
                await outside(answer.wait())
            return 0.0

    clock, offset = time.monotonic, 0.0
    monkeypatch.setattr(time, "monotonic", lambda: clock() + offset)
    slots = ReconcileSlots(1)
    loop = SpeculatorLoop(Slow(), slots, "team", "chat")  # type: ignore[arg-type]
    async with slots.slot("team"):
        task = asyncio.create_task(loop.run())
        await asyncio.sleep(0.01)
        offset += 2 * MAX_RECONCILE_SECONDS
        assert loop.overdue_seconds < 0
        assert slots.stalled_seconds > 2 * MAX_RECONCILE_SECONDS, "nobody got a slot"
    for answer in answers:
        await asyncio.sleep(0.01)
        assert slots.stalled_seconds == 0
        offset += MAX_RECONCILE_SECONDS - 5
        assert loop.overdue_seconds < 0
        answer.set()
    task.cancel()


async def test_a_loop_at_rest_is_not_overdue(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.monotonic
    offset = 0.0
    loop = loop_of(FakeReconciler(rest_seconds=3000))
    task = asyncio.create_task(loop.run())
    await asyncio.sleep(0.05)
    monkeypatch.setattr(time, "monotonic", lambda: clock() + offset)
    offset = 3000 + MAX_RECONCILE_SECONDS - 5
    assert loop.overdue_seconds < 0
    offset += 10
    assert loop.overdue_seconds > 0, "its wait did not end"
    task.cancel()


async def test_a_slow_namespace_is_remembered_between_reconciles_and_forgotten_with_its_last_loop() -> None:
    """Otherwise the names of deleted namespaces would add up."""
    slots = ReconcileSlots(api_patience_seconds=0.001)

    class Slow(FakeReconciler):
        async def reconcile(self, *, woken: bool) -> float:
            await outside_api(asyncio.sleep(0.01))
            return await super().reconcile(woken=woken)

    loops = [SpeculatorLoop(Slow(), slots, "team", name) for name in ("a", "b")]  # type: ignore[arg-type]
    for loop in loops:
        await loop._turn(woken=True)
    assert slots.slow_namespaces == {"team"}
    loop = loops.pop()
    assert slots.slow_namespaces == {"team"}
    del loop
    loops.clear()
    gc.collect()
    assert slots.slow_namespaces == set()
