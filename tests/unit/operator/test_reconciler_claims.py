"""A reconcile acts only on a speculator that this operator has claimed, and answers challenges at once."""

from __future__ import annotations

import asyncio

import pytest

from aurora_operator.act.contest import CHALLENGE_SECONDS
from aurora_operator.observe.snapshot import Snapshot
from aurora_operator.reconciler import WATCHFUL_POLL_SECONDS
from tests.unit.operator.test_reconciler import FakeApi, FakeObserver, reconciler_at, written_by
from tests.unit.operator.worlds import CONFIG, MINIMAL, observed


async def test_an_operator_that_another_one_displaced_observes_nothing() -> None:
    """An observation reads Secrets, asks all agents, and writes probes to the store."""
    observer = FakeObserver(observed())
    reconciler = reconciler_at(observer)
    await reconciler.reconcile()
    api = FakeApi(MINIMAL, written_by("elsewhere/aurora-operator"), revision=78, cache=reconciler._cache)
    reconciler._authority._api = api  # type: ignore[assignment]
    for _ in range(3):
        assert await reconciler.reconcile(woken=False) == pytest.approx(CHALLENGE_SECONDS, abs=5)
    assert api.status["operatorChallenge"]["installation"] == CONFIG.installation
    assert len(api.applied) == 1, "it asks once"
    api.merge_status(api.stored, {"operatorChallenge": None})
    assert await reconciler.reconcile() > WATCHFUL_POLL_SECONDS
    assert len(observer.asked) == 1


async def test_a_speculator_is_claimed_before_it_is_observed() -> None:
    api = FakeApi(MINIMAL, {})
    reconciler = api.reconciler()
    observer = FakeObserver(observed())
    reconciler._observer = observer  # type: ignore[assignment]
    assert await reconciler.reconcile() == 0, "observe at once"
    assert observer.asked == []
    assert api.status["operator"]["installation"] == CONFIG.installation


async def test_a_challenge_is_answered_although_the_observation_does_not_end() -> None:
    """A slow store holds up an observation for minutes."""
    asks = {"installation": "elsewhere/aurora-operator", "nonce": "n"}
    api = FakeApi(MINIMAL, written_by(CONFIG.installation) | {"operatorChallenge": asks})
    reconciler = api.reconciler()
    reconciler._observer = HangingObserver(observed())  # type: ignore[assignment]
    task = asyncio.create_task(reconciler.reconcile())
    async with asyncio.timeout(5):
        while "operatorChallenge" in api.status:  # noqa: ASYNC110 - the answer is written in a thread
            await asyncio.sleep(0.01)
    assert not task.done()
    task.cancel()


class HangingObserver(FakeObserver):
    """An observation that waits for its store."""

    async def observe(self, *, ask_agents: bool = True) -> Snapshot:
        await asyncio.sleep(600)
        raise AssertionError("cancelled before")
