"""A store that hangs holds up neither a healthy store nor the process. Hanging calls are threads that wait."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from aurora_operator import io_pools, metrics
from aurora_operator.errors import CallAbandoned, KubernetesError
from aurora_operator.io_pools import FairThreads, StorePools, call_api
from aurora_operator.reconcile_slots import ReconcileSlots

HOSTILE = 64
PROMPT_SECONDS = 1.0


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Set at the end of a test, so that its hanging calls end."""
    event = threading.Event()
    yield event
    event.set()


async def prompt_seconds(pools: StorePools, endpoint: str = "healthy", namespace: str = "team") -> float:
    """Seconds that a call of a healthy store takes."""
    began = time.monotonic()
    assert await pools.of(endpoint).call(lambda: 42, namespace=namespace, timeout_seconds=5) == 42
    return time.monotonic() - began


async def abandoned(pools: StorePools, endpoint: str, released: threading.Event, seconds: float = 0.2) -> None:
    with pytest.raises(CallAbandoned):
        await pools.of(endpoint).call(lambda: released.wait(30), namespace="team", timeout_seconds=seconds)


async def test_a_hanging_call_is_abandoned_at_its_deadline_and_counted(released: threading.Event) -> None:
    before = metrics.STORE_CALLS_ABANDONED._value.get()
    began = time.monotonic()
    await abandoned(StorePools(), "slow", released)
    assert time.monotonic() - began < PROMPT_SECONDS
    assert metrics.STORE_CALLS_ABANDONED._value.get() == before + 1


async def test_64_hanging_endpoints_do_not_delay_a_healthy_one(released: threading.Event) -> None:
    pools = StorePools()
    hanging = [asyncio.create_task(abandoned(pools, f"slow-{number}", released, 3)) for number in range(HOSTILE)]
    await asyncio.sleep(0.1)
    assert await prompt_seconds(pools) < PROMPT_SECONDS
    await asyncio.gather(*hanging)
    assert await prompt_seconds(pools) < PROMPT_SECONDS, "the abandoned threads still run"


async def test_one_endpoint_made_and_deleted_64_times_does_not_delay_a_healthy_one(released: threading.Event) -> None:
    pools = StorePools()
    for _ in range(HOSTILE):
        call = pools.of("slow").call(lambda: released.wait(30), namespace="team", timeout_seconds=30)
        task = asyncio.create_task(call)
        await asyncio.sleep(0)
        task.cancel()
    assert await prompt_seconds(pools) < PROMPT_SECONDS


async def test_endpoints_that_hang_leave_threads_for_those_that_answer(released: threading.Event) -> None:
    pools = StorePools(threads=8, unproven=4, per_endpoint=2)
    known = pools.of("known")  # a speculator holds the pool of its store
    await prompt_seconds(pools, "known")
    hanging = [asyncio.create_task(abandoned(pools, f"slow-{number}", released, 1)) for number in range(32)]
    await asyncio.sleep(0.1)
    assert await prompt_seconds(pools, "known") < PROMPT_SECONDS
    await asyncio.gather(*hanging)
    assert known is pools.of("known")


def hang(pools: StorePools, endpoint: str, released: threading.Event) -> asyncio.Task[bool]:
    """A call of namespace ``team`` that hangs until the end of the test."""
    call = pools.of(endpoint).call(lambda: released.wait(60), namespace="team", timeout_seconds=60)
    return asyncio.create_task(call)


async def test_more_hanging_endpoints_than_threads_do_not_delay_a_new_store_of_another_namespace(
    released: threading.Event,
) -> None:
    pools = StorePools()
    hanging = [hang(pools, f"slow-{number}", released) for number in range(3 * io_pools.UNPROVEN_THREADS)]
    await asyncio.sleep(0.5)
    await prompt_seconds(pools, "new", "other")  # a call that waits for hanging ones would be abandoned
    await asyncio.gather(*(prompt_seconds(pools, f"new-{number}", "other") for number in range(30)))
    assert not any(task.done() for task in hanging)
    for task in hanging:
        task.cancel()
    await asyncio.sleep(0)
    await prompt_seconds(pools, "last", "third")  # the abandoned threads still run


async def test_a_call_that_waits_for_hanging_calls_goes_on_when_another_call_proves_its_endpoint(
    released: threading.Event,
) -> None:
    pools = StorePools()
    hanging = [hang(pools, f"slow-{number}", released) for number in range(io_pools.UNPROVEN_THREADS)]
    await asyncio.sleep(0.5)
    shared = pools.of("shared")
    waiting = [asyncio.create_task(prompt_seconds(pools, "shared", "team")) for _ in range(20)]
    await asyncio.sleep(0.1)
    assert not any(task.done() for task in waiting), "calls that hang have the namespace's threads"
    await prompt_seconds(pools, "shared", "other")
    async with asyncio.timeout(PROMPT_SECONDS):
        await asyncio.gather(*waiting)
    assert not shared._unproven_waits
    assert pools.unproven._taken == Counter(team=96)
    assert not any(task.done() for task in hanging)


async def test_a_call_that_never_began_says_nothing_about_its_endpoint_and_is_counted_as_a_wait(
    released: threading.Event,
) -> None:
    pools = StorePools(threads=8, unproven=4, per_endpoint=2)
    known = pools.of("known")
    await prompt_seconds(pools, "known")
    busy = [hang(pools, "known", released) for _ in range(2)]
    await asyncio.sleep(0.1)
    calls, waits = metrics.STORE_CALLS_ABANDONED._value.get(), metrics.STORE_WAITS_ABANDONED._value.get()
    with pytest.raises(CallAbandoned, match="was not asked within 0 s"):
        await known.call(lambda: 42, namespace="team", timeout_seconds=0.1)
    assert known._proven
    assert metrics.STORE_CALLS_ABANDONED._value.get() == calls
    assert metrics.STORE_WAITS_ABANDONED._value.get() == waits + 1
    assert not any(task.done() for task in busy)


async def test_a_namespace_whose_calls_hang_leaves_threads_of_a_shared_endpoint(released: threading.Event) -> None:
    pools = StorePools()
    hanging = [hang(pools, "shared", released) for _ in range(64)]
    await asyncio.sleep(0.1)
    await prompt_seconds(pools, "shared", "other")
    assert not any(task.done() for task in hanging)


async def test_an_endpoint_has_a_bounded_share(released: threading.Event) -> None:
    pools, running, most = StorePools(per_endpoint=3), list[int](), 0

    def work() -> None:
        nonlocal most
        running.append(1)
        most = max(most, len(running))
        time.sleep(0.05)
        running.pop()

    await asyncio.gather(*(pools.of("busy").call(work, namespace="team", timeout_seconds=10) for _ in range(12)))
    assert most == 3


async def test_errors_reach_the_caller_and_slots_come_back(released: threading.Event) -> None:
    pools = StorePools(threads=1, unproven=1, per_endpoint=1)

    def fail() -> None:
        raise ValueError("no")

    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            await pools.of("a").call(fail, namespace="team", timeout_seconds=1)
        assert await prompt_seconds(pools, "b") < PROMPT_SECONDS


async def test_a_pool_is_freed_with_its_last_user(released: threading.Event) -> None:
    pools = StorePools()
    kept = pools.of("kept")
    for number in range(100):
        await prompt_seconds(pools, f"endpoint-{number}")
    await asyncio.sleep(0.05)
    gc.collect()
    assert len(pools) == 1
    assert pools.of("kept") is kept
    for threads in (pools.threads, pools.unproven, kept._threads):
        assert not threads._taken
        assert not threads._waiting


async def test_a_thread_that_ends_goes_to_the_namespace_with_the_fewest_in_rotation() -> None:
    threads, order = FairThreads(3), list[str]()
    for _ in range(3):
        await threads.acquire("a")

    async def call(name: str) -> None:
        await threads.acquire(name[0])
        order.append(name)

    calls = [asyncio.create_task(call(name)) for name in ("a1", "a2", "b1", "c1", "b2", "c2")]
    await asyncio.sleep(0)
    for ended in "aaabca":
        threads.release(ended)
        await asyncio.sleep(0)
    await asyncio.gather(*calls)
    assert order == ["b1", "c1", "a1", "b2", "c2", "a2"]


@pytest.mark.parametrize("seed", range(20))
async def test_no_thread_is_lost_whenever_a_wait_ends(seed: int) -> None:
    chance, threads = random.Random(seed), FairThreads(4)  # noqa: S311 - not for a secret
    under_way, most, done, waits = Counter[str](), 0, 0, set[asyncio.Future[bool]]()

    async def call(namespace: str) -> None:
        nonlocal most, done
        if not await threads.acquire(namespace, waits):
            return
        under_way[namespace] += 1
        most = max(most, under_way.total())
        try:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            done += 1
        finally:
            under_way[namespace] -= 1
            threads.release(namespace)

    calls = [asyncio.create_task(call(chance.choice("abc"))) for _ in range(60)]
    for _ in range(40):
        await asyncio.sleep(0)
        if chance.random() < 0.7:
            chance.choice(calls).cancel()
        ready = [wait for wait in waits if not wait.done()]
        if ready and chance.random() < 0.3:
            chance.choice(ready).set_result(False)  # it needs no thread any more
    async with asyncio.timeout(10):
        await asyncio.gather(*calls, return_exceptions=True)
    assert most in (3, 4)
    assert done > 0
    assert not threads._taken
    assert not threads._waiting
    async with asyncio.timeout(1):
        for namespace in "aaab":
            await threads.acquire(namespace)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await threads.acquire("c")


async def test_a_part_of_the_threads_is_kept_for_namespaces_that_have_none() -> None:
    threads = FairThreads(8)
    async with asyncio.timeout(1):
        for namespace in "aaaaaabc":
            await threads.acquire(namespace)
    assert threads._free == 0
    threads.release("b")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await threads.acquire("a")
    async with asyncio.timeout(1):
        await threads.acquire("d")


async def test_a_thread_that_comes_with_the_end_of_the_wait_goes_to_the_next() -> None:
    threads = FairThreads(1)
    await threads.acquire("a")
    first, second = (asyncio.create_task(threads.acquire(namespace)) for namespace in "ab")
    await asyncio.sleep(0)
    threads.release("a")
    first.cancel()
    await asyncio.wait_for(second, 10)
    assert first.cancelled()


async def test_slots_come_back_when_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch, released: threading.Event
) -> None:
    pools = StorePools(threads=1, unproven=1, per_endpoint=1)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(CallAbandoned, match="limit of processes"):
            await pools.of("a").call(lambda: 1, namespace="team", timeout_seconds=1)
    assert await prompt_seconds(pools, "a") < PROMPT_SECONDS


async def test_a_call_of_the_api_server_is_abandoned_at_its_deadline_and_counted(released: threading.Event) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    before = metrics.API_CALLS_ABANDONED._value.get()
    began: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io_pools, "API_CALL_SECONDS", 0.2)
        calls = (call_api(released.wait, 30), call_api(began.append, "queued"))
        errors = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(error) for error in errors] == [KubernetesError, KubernetesError]
    assert metrics.API_CALLS_ABANDONED._value.get() == before + 2
    released.set()
    assert await call_api(lambda: 42) == 42
    assert began == [], "a call that nobody waits for must not begin"


async def test_reconciles_that_wait_for_a_slow_webhook_hold_up_neither_slots_nor_threads_of_other_namespaces(
    released: threading.Event,
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(io_pools.api_threads())
    slots = ReconcileSlots(2, 0.02, 0.05)

    async def reconcile(namespace: str, work: Callable[[], object]) -> None:
        async with slots.slot(namespace):
            await call_api(work)

    hanging = [asyncio.create_task(reconcile("slow", lambda: released.wait(30))) for _ in range(200)]
    await asyncio.sleep(2.5)
    began = time.monotonic()
    for _ in range(10):
        await reconcile("team", lambda: 42)
    assert time.monotonic() - began < 5 * PROMPT_SECONDS
    released.set()
    async with asyncio.timeout(10):
        await asyncio.gather(*hanging)


async def test_only_a_namespace_whose_calls_were_slow_lends_its_slots_early(released: threading.Event) -> None:
    """More reconciles at a time would make each call of a busy API server slower."""
    slots = ReconcileSlots(1, 0.01, 0.5)
    turns = slots.api_turns("team")  # as the namespace's loops hold them between reconciles

    async def lent_after(seconds: float) -> bool:
        """Whether another reconcile gets the only slot within this time, while a call hangs."""
        released.clear()
        async with asyncio.TaskGroup() as tasks:
            entered = asyncio.Event()

            async def hang() -> None:
                async with slots.slot("team"):
                    entered.set()
                    await call_api(released.wait, 30)

            tasks.create_task(hang())
            await entered.wait()
            other = slots.slot("other")
            waits = tasks.create_task(other.acquire())
            done, _ = await asyncio.wait({waits}, timeout=seconds)
            released.set()
            await waits
            other.release()
        return bool(done)

    assert not await lent_after(0.25)
    assert slots.slow_namespaces == set()
    assert await lent_after(5), "its patience ends"
    assert slots.slow_namespaces == {"team"}
    assert await lent_after(0.25), "the namespace is known to be slow"
    assert not turns.slow, "the last call was quick"


async def test_a_timeout_inside_a_call_is_not_taken_for_the_deadline() -> None:
    def time_out() -> None:
        raise TimeoutError("inside")

    with pytest.raises(TimeoutError, match="inside"):
        await call_api(time_out)
