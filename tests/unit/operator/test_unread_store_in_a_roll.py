"""Time in which the store lacks the records counts for no deadline of a roll. Tests reconciler and planner together."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from aurora_api.v1alpha1.status import RolloutPhase, SpeculatorStatus, VersionStatus
from aurora_operator import reconciler as reconciler_module
from aurora_operator.observe.observed import StoreView
from aurora_operator.plan.rollout.roll import Roll, read_roll
from aurora_operator.plan.world_builder import serving_digest
from tests.unit.operator.rolls import watching
from tests.unit.operator.test_reconciler import FakeObserver, reconciler_at
from tests.unit.operator.worlds import channel, observed, pod, spec, store

STEP_SECONDS = 15.0
LOST_SECONDS = 7200.0
LOST = StoreView()
AWAY = StoreView(reason="Unreachable", error="no route")
JUDGED = spec(serving={"replicas": 2}, rollout={"analysis": {"watchSeconds": 600}})


class Life:
    """A reconciler under a clock of its own. Its pods a and b serve version 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, roll: Roll) -> None:
        self.seconds = 0.0
        base = datetime.now(UTC)
        clock = SimpleNamespace(
            now=lambda zone: base + timedelta(seconds=self.seconds), fromisoformat=datetime.fromisoformat
        )
        monkeypatch.setattr(reconciler_module, "datetime", clock)
        monkeypatch.setattr(reconciler_module, "time", SimpleNamespace(monotonic=lambda: self.seconds))
        times = {"started": base, "progressed": base}
        rollout, state = roll.model_copy(update=times).status_parts()
        status = SpeculatorStatus(active=VersionStatus(version=1), rollout=rollout, operator_state=state)
        self.records = store(0, 1, channel=channel(1, epoch=5, previous=0))
        pods = (pod("a", 1), pod("b", 1))
        self.observer = FakeObserver(observed(spec=JUDGED, status=status, store=self.records, pods=pods))
        self.reconciler = reconciler_at(self.observer)
        actor: Any = self.reconciler._actor
        act = actor.act

        async def keep(decided: Any, *rest: Any) -> Any:
            self.advance = decided.advance
            if decided.status is not None:
                self.see(status=decided.status)
            return await act(decided, *rest)

        actor.act = keep

    def see(self, **more: Any) -> None:
        self.observer.observed = replace(self.observer.observed, **more)

    async def reconcile(self, seconds: float) -> Roll:
        """Reconcile for ``seconds``. Returns the roll then."""
        end = self.seconds + seconds
        while self.seconds < end:
            self.seconds += STEP_SECONDS
            await self.reconciler.reconcile()
        return read_roll(self.observer.observed.status)


@pytest.mark.parametrize("unread", [LOST, AWAY], ids=["lost", "away"])
async def test_a_watch_goes_on_in_full_after_the_store_lacked_the_records(
    monkeypatch: pytest.MonkeyPatch, unread: StoreView
) -> None:
    digest = serving_digest(observed(spec=JUDGED))
    life = Life(monkeypatch, watching(serving_digest=digest))
    assert (await life.reconcile(300)).phase is RolloutPhase.WATCHING
    life.see(store=unread)
    await life.reconcile(LOST_SECONDS)
    life.see(store=life.records)
    assert (await life.reconcile(585)).phase is RolloutPhase.WATCHING
    assert (await life.reconcile(60)).phase is RolloutPhase.IDLE


@pytest.mark.parametrize("unread", [LOST, AWAY], ids=["lost", "away"])
async def test_a_pod_that_is_missing_has_its_time_in_full_after_the_store_lacked_the_records(
    monkeypatch: pytest.MonkeyPatch, unread: StoreView
) -> None:
    digest = serving_digest(observed(spec=JUDGED))
    roll = watching(serving_digest=digest).model_copy(update={"engine_boots": {"a": "b1", "b": "b1"}})
    life = Life(monkeypatch, roll)
    life.see(pods=(pod("a", 1, ready=False, agent=None), pod("b", 1)))
    since = (await life.reconcile(60)).missing_since
    assert since.keys() == {"a"}
    life.see(store=unread)
    await life.reconcile(LOST_SECONDS)
    life.see(store=life.records)
    roll = await life.reconcile(STEP_SECONDS)
    assert (roll.phase, life.advance) == (RolloutPhase.WATCHING, None)
    assert roll.missing_since["a"] > since["a"] + timedelta(seconds=LOST_SECONDS)
