"""The finalizer is written alone. A refusal of the API server is visible, and holds back no served draft."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aurora_api.v1alpha1.status import SpeculatorStatus, VersionStatus
from aurora_operator import metrics
from aurora_operator import reconciler as reconciler_module
from aurora_operator.children.metadata import FINALIZER
from aurora_operator.errors import Conflict, KubernetesError
from aurora_operator.loop import MAX_BACKOFF_SECONDS, SpeculatorLoop
from aurora_operator.metrics.speculator_figures import FIGURES
from aurora_operator.reconcile_slots import ReconcileSlots
from tests.unit.operator.act.journal import FULL, FakeObserver, Journal, act, reconciler_of
from tests.unit.operator.worlds import MINIMAL, spec


async def test_the_finalizer_is_written_alone_because_it_changes_the_resource_version() -> None:
    for wanted, finalizers in ((True, [FINALIZER]), (False, None)):
        journal = Journal()
        outcome = await act(journal, replace(FULL, finalizer=wanted))
        assert journal.calls == ["apply AuroraSpeculator"]
        written = journal.objects["AuroraSpeculator", "chat"]["metadata"]
        assert written.get("finalizers") == finalizers
        assert not outcome.wrote_status


async def test_a_refused_finalizer_of_a_served_speculator_is_reported_and_a_race_observes_again() -> None:
    served, wanted = SpeculatorStatus(active=VersionStatus(version=0)), replace(FULL, finalizer=True)
    journal = Journal(faults={"apply AuroraSpeculator": KubernetesError("denied", 403)})
    outcome = await act(journal, wanted, status=served)
    assert outcome.finalizer_refused
    assert outcome.apply_errors == ("the finalizer of store.deletionPolicy: denied",)
    assert "swap b" in journal.calls
    for error in (Conflict("moved on", 409), KubernetesError("away", 503)):
        with pytest.raises(KubernetesError):
            await act(Journal(faults={"apply AuroraSpeculator": error}), wanted, status=served)


async def test_a_refused_finalizer_of_a_new_speculator_is_logged_counted_and_tried_again_with_a_backoff(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The finalizer is the whole plan, so no status tells of the refusal."""
    journal = Journal(faults={"apply AuroraSpeculator": KubernetesError("denied", 403)})
    observer = FakeObserver(journal, spec(store=MINIMAL["store"] | {"deletionPolicy": "Delete"}))
    loop = SpeculatorLoop(reconciler_of(journal, observer), ReconcileSlots(), "team", "chat")
    await loop._turn(woken=True)  # writes the operator's name
    errors = metrics.RECONCILES.labels("team", "chat", "error")
    before = errors._value.get()
    delays = [await loop._turn(woken=True) for _ in range(8)]
    assert errors._value.get() == before + 8
    assert caplog.text.count("team/chat: reconcile failed: denied") == 8
    assert delays[-1] >= MAX_BACKOFF_SECONDS / 2
    assert "create Service" not in journal.calls


async def test_decisions_are_counted_when_their_plan_is_carried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan with a finalizer that the API server accepts ends there. The next plan decides the same again."""
    counted: list[tuple[str, ...]] = []
    monkeypatch.setattr(FIGURES, "count_decisions", lambda *parts: counted.append(parts[-1]))
    journal = Journal()
    reconciler = reconciler_of(journal, FakeObserver(journal))
    await reconciler.reconcile()  # writes the operator's name
    decided = replace(FULL, finalizer=True, decisions=("ValidationStarted",))
    monkeypatch.setattr(reconciler_module, "plan", lambda *_: decided)
    await reconciler.reconcile()
    assert counted == []
    decided = replace(decided, finalizer=None)
    await reconciler.reconcile()
    assert counted == [("ValidationStarted",)]
