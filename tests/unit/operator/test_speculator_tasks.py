"""One task per speculator: woken by changes, tried again after failures, and never in the way of other namespaces.

Everything runs in virtual time.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from aurora_operator.errors import Conflict, Gone, KubernetesError, NotFound, Recreated
from aurora_operator.speculator_tasks import (
    AT_ONCE,
    DEBOUNCE_SECONDS,
    MAX_BACKOFF_SECONDS,
    MAX_RECONCILE_SECONDS,
    REST_SPACING_SECONDS,
    SpeculatorTasks,
)
from aurora_store.errors import StoreError
from tests.example_count import example_count
from tests.unit.operator.virtual_time import now, run

REST_SECONDS = 100.0
HANGS = 1e6
Turn = tuple[float, Exception | None]
"""How many seconds a reconcile takes, and what it raises."""


@dataclass
class Reconciles:
    """Makes the reconcilers, records when each reconcile begins, and does what ``turns`` say, then rests."""

    turns: Iterator[Turn] = field(default_factory=lambda: iter(()))
    rest_seconds: float = REST_SECONDS
    made: list[tuple[str, str]] = field(default_factory=list)
    begun: list[tuple[float, str, bool]] = field(default_factory=list)
    """When, name, and whether something had changed."""
    running: Counter[tuple[str, str]] = field(default_factory=Counter)

    def tasks(self, settle_seconds: float = 0.0) -> SpeculatorTasks:
        return SpeculatorTasks(self._reconciler, settle_seconds=settle_seconds)

    def _reconciler(self, namespace: str, name: str) -> _Reconciler:
        self.made.append((namespace, name))
        return _Reconciler(self, (namespace, name))

    def times(self, name: str = "chat") -> list[float]:
        return [seconds for seconds, other, _ in self.begun if other == name]

    def gaps(self) -> list[float]:
        """Seconds between the beginnings of reconciles."""
        return [round(after - before, 3) for before, after in itertools.pairwise(self.times())]


@dataclass
class _Reconciler:
    recorded: Reconciles
    key: tuple[str, str]

    async def reconcile(self, *, woken: bool) -> float:
        self.recorded.begun.append((now(), self.key[1], woken))
        self.recorded.running[self.key] += 1
        assert self.recorded.running[self.key] == 1, "two reconciles of one speculator at once"
        try:
            seconds, error = next(self.recorded.turns, (0.0, None))
            await asyncio.sleep(seconds)
            if error is not None:
                raise error
        finally:
            self.recorded.running[self.key] -= 1
        return self.recorded.rest_seconds


def reconciles_of(*turns: Turn, seconds: float, wakes: tuple[float, ...] = (0.0,)) -> Reconciles:
    """What happens within ``seconds`` when ``team/chat`` changes at the times ``wakes``."""
    recorded = Reconciles(iter(turns))

    async def live() -> None:
        tasks = recorded.tasks()
        for wake in wakes:
            await asyncio.sleep(wake - now())
            tasks.wake("team", "chat")
        await asyncio.sleep(seconds - now())
        await tasks.stop()

    run(live())
    return recorded


def test_a_new_leader_begins_with_those_that_wait_for_it_and_spreads_those_at_rest() -> None:
    """kopf lists for 5 s: first the speculators, then their children."""
    recorded = Reconciles(rest_seconds=HANGS)
    names = [f"resting-{number}" for number in range(50)]

    async def live() -> None:
        tasks = recorded.tasks(settle_seconds=0.5)
        for name in names:
            tasks.wake("team", name, at_rest=True)
        tasks.wake("team", "chat")
        for _ in range(25):
            await asyncio.sleep(0.2)
            tasks.child_listed("team", "chat")
            tasks.child_listed("team", names[0])
        await asyncio.sleep(0.1)
        tasks.wake("team", names[1])
        await asyncio.sleep(100 - now())
        tasks.child_listed("team", names[2])
        await asyncio.sleep(1)
        await tasks.stop()

    run(live())
    assert recorded.times() == [0], "at once, and once"
    assert recorded.times(names[1])[0] == pytest.approx(5.1 + DEBOUNCE_SECONDS)
    listed, spread = 5.1 + 0.5, REST_SPACING_SECONDS * len([*names, "chat"])
    others = [recorded.times(name)[0] for name in names if name != names[1]]
    assert listed <= min(others) < listed + spread / 4
    assert listed + spread / 2 < max(others) <= listed + spread + 2 * DEBOUNCE_SECONDS
    assert [len(recorded.times(name)) for name in names] == [1, 1, 2, *[1] * 47], "a later list is news"


def test_a_change_while_a_task_waits_for_its_turn_is_no_look_at_the_store_alone() -> None:
    recorded = Reconciles(itertools.cycle([(20.0, None)]), rest_seconds=30.0)

    async def live() -> None:
        tasks = recorded.tasks()
        for number in range(3 * AT_ONCE):
            tasks.wake("team", f"other-{number}")
        tasks.wake("team", "chat")
        await asyncio.sleep(60 + 20 + 30 + 5)  # it queues for its second turn, which time alone began
        assert len(recorded.times()) == 1
        tasks.wake("team", "chat")
        await asyncio.sleep(100)
        await tasks.stop()

    run(live())
    assert [woken for _, name, woken in recorded.begun if name == "chat"][:2] == [True, True]


def outcomes(outcome: str) -> float:
    labels = {"namespace": "team", "name": "chat", "outcome": outcome}
    return REGISTRY.get_sample_value("aurora_reconciles_total", labels) or 0.0


def test_a_burst_of_changes_is_answered_by_one_reconcile_and_time_alone_by_another() -> None:
    recorded = reconciles_of((1.0, None), seconds=250, wakes=(0.0, 0.3, 0.4, 0.9))
    assert recorded.made == [("team", "chat")]
    assert [woken for _, _, woken in recorded.begun] == [True, True, False, False]
    assert recorded.gaps() == [1 + DEBOUNCE_SECONDS, REST_SECONDS, REST_SECONDS]


def test_a_change_during_the_rest_ends_the_rest() -> None:
    recorded = reconciles_of(seconds=60, wakes=(0.0, 50.0, 50.1))
    assert recorded.times() == [0.0, 50 + DEBOUNCE_SECONDS]


@pytest.mark.parametrize(
    "error",
    [
        KubernetesError("away"),
        NotFound("404", 404),
        Conflict("409", 409),
        StoreError("away"),
        ValueError("4300 digits"),
    ],
)
def test_failures_are_tried_again_with_a_jittered_backoff(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """No error ends the task while the speculator exists."""
    longest = [0.5, 1, 2, 4, 8, 16, 32, MAX_BACKOFF_SECONDS]
    turns = ((0.0, error),) * 8
    drawn = reconciles_of(*turns, seconds=300).gaps()[:8]
    assert all(longest[i] / 2 <= drawn[i] <= longest[i] for i in range(8))
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    again = reconciles_of(*turns, (0.0, None), (0.0, error), seconds=300)
    assert again.gaps() == [*longest, REST_SECONDS, 0.5], "a success in between begins anew"


def test_a_change_ends_a_backoff() -> None:
    recorded = reconciles_of(*((0.0, KubernetesError("away")),) * 20, seconds=200, wakes=(0.0, 150.0))
    assert 150 + DEBOUNCE_SECONDS in recorded.times()


def test_outcomes_are_counted_from_zero_and_forgotten_with_the_task() -> None:
    recorded = Reconciles(iter([(0.0, None), (0.0, Conflict("x", 409)), (0.0, KubernetesError("x"))]))

    async def live() -> list[float]:
        tasks = recorded.tasks()
        tasks.wake("team", "chat")
        assert [outcomes(outcome) for outcome in ("done", "conflict", "error")] == [0, 0, 0]
        await asyncio.sleep(REST_SECONDS + 0.6)
        counted = [outcomes(outcome) for outcome in ("done", "conflict", "error")]
        await tasks.stop()
        return counted

    assert run(live()) == [1, 1, 1]
    assert "aurora_reconciles_total" not in {
        sample.name
        for family in REGISTRY.collect()
        for sample in family.samples
        if (sample.labels.get("namespace"), sample.labels.get("name")) == ("team", "chat")
    }


@pytest.mark.parametrize(
    ("error", "wakes", "made"),
    [
        (Gone("gone"), (0.0,), 1),
        (Gone("gone"), (0.0, 0.5), 2),
        (Gone("gone"), (0.0, 5.0), 2),
        (Recreated("created again, and both events came within the pause after the first"), (0.0, 0.1), 2),
    ],
)
def test_a_task_whose_speculator_is_gone_ends_and_a_change_meanwhile_starts_a_new_one(
    error: Exception, wakes: tuple[float, ...], made: int
) -> None:
    """``kubectl replace --force``: the new speculator must not be handled with the former one's state."""
    recorded = reconciles_of((1.0, error), seconds=50, wakes=wakes)
    assert (len(recorded.made), len(recorded.begun)) == (made, made)


def test_a_namespace_whose_reconciles_hang_does_not_hold_up_another() -> None:
    recorded = Reconciles(iter([(HANGS, None)] * AT_ONCE))

    async def live() -> None:
        tasks = recorded.tasks()
        for number in range(AT_ONCE):
            tasks.wake("slow", f"hangs-{number}")
        await asyncio.sleep(1)
        tasks.wake("slow", "waits")
        tasks.wake("team", "chat")
        await asyncio.sleep(10)
        assert recorded.times("chat") == [1.0]
        assert recorded.times("waits") == []
        await asyncio.sleep(MAX_RECONCILE_SECONDS)
        assert recorded.times("waits") == [MAX_RECONCILE_SECONDS], "a reconcile that is stuck ends at its deadline"
        await tasks.stop()

    run(live())


def test_a_stop_cancels_reconciles_under_way_and_ends_every_task() -> None:
    recorded = Reconciles(iter([(HANGS, None)]))

    async def live() -> float:
        tasks = recorded.tasks()
        for name in ("chat", "code"):
            tasks.wake("team", name)
        await asyncio.sleep(1)
        await tasks.stop()
        assert (recorded.running.total(), len(asyncio.all_tasks())) == (0, 1)
        return now()

    assert run(live()) == 1.0


ERRORS: tuple[Callable[[], Exception | None], ...] = (
    lambda: None,
    lambda: Conflict("somebody else", 409),
    lambda: KubernetesError("away"),
    lambda: Gone("gone"),
)
TURNS = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 1.0, 30.0, HANGS]), st.sampled_from(ERRORS)), max_size=40)
WAKES = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.2, 1.0, 50.0]), st.sampled_from("abcdefghijkl")), max_size=30)


@settings(max_examples=example_count(400), deadline=None)
@given(turns=TURNS, wakes=WAKES)
def test_whatever_happens_each_change_is_followed_by_a_reconcile(
    turns: list[tuple[float, Callable[[], Exception | None]]], wakes: list[tuple[float, str]]
) -> None:
    """No two reconciles of one speculator run at once, and no more than ``AT_ONCE`` in the namespace."""
    recorded = Reconciles(((seconds, error()) for seconds, error in turns), rest_seconds=1e9)
    last = dict[str, float]()

    async def live() -> None:
        tasks = recorded.tasks()
        for seconds, name in wakes:
            await asyncio.sleep(seconds)
            last[name] = now()
            tasks.wake("team", name)
            assert recorded.running.total() <= AT_ONCE
        # Each turn that hangs holds a slot until its deadline, and whoever waits for a slot waits for all of them.
        await asyncio.sleep((len(turns) + 1) * (MAX_RECONCILE_SECONDS + MAX_BACKOFF_SECONDS))
        await tasks.stop()

    run(live())
    for name, changed in last.items():
        assert recorded.times(name)[-1] >= changed
