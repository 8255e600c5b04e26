"""The finalizer is written alone. A refusal of the API server is visible, and holds back no served draft."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aurora_api.v1alpha1.status import SpeculatorStatus, VersionStatus
from aurora_operator import metrics
from aurora_operator import reconciler as reconciler_module
from aurora_operator.act.finalizer import set_finalizer
from aurora_operator.children.metadata import FINALIZER
from aurora_operator.errors import Conflict, KubernetesError
from aurora_operator.loop import MAX_BACKOFF_SECONDS, SpeculatorLoop
from aurora_operator.metrics.speculator_figures import FIGURES
from aurora_operator.reconcile_slots import ReconcileSlots
from tests.unit.operator.act.journal import FULL, FakeObserver, Journal, act, reconciler_of
from tests.unit.operator.worlds import MINIMAL, OWNER, spec

THEIRS = "example.org/theirs"
SERVED = SpeculatorStatus(active=VersionStatus(version=0))


async def test_the_finalizer_is_written_alone_because_it_changes_the_resource_version() -> None:
    journal = Journal()
    outcome = await act(journal, replace(FULL, finalizer=True))
    assert journal.calls == ["apply AuroraSpeculator"]
    assert journal.objects["AuroraSpeculator", "chat"]["metadata"]["finalizers"] == [FINALIZER]
    assert not outcome.wrote_status
    journal = Journal(finalizers=[THEIRS, FINALIZER])
    outcome = await act(journal, replace(FULL, finalizer=False))
    assert journal.calls == [f"set finalizers {[THEIRS]}"], "whoever applied ours"
    assert not outcome.wrote_status


async def test_a_finalizer_is_removed_only_from_the_version_that_was_observed() -> None:
    journal = Journal(finalizers=[FINALIZER])
    moved_on = replace(OWNER, resource_version="76")
    with pytest.raises(Conflict):
        set_finalizer(journal, moved_on, wanted=False)  # type: ignore[arg-type]
    assert journal.finalizers == [FINALIZER]


@pytest.mark.parametrize("status", [SpeculatorStatus(), SERVED], ids=["new", "served"])
async def test_a_finalizer_that_stays_although_the_write_was_accepted_ends_no_plan(status: SpeculatorStatus) -> None:
    journal = Journal(finalizers=[FINALIZER], set_by_a_webhook=[FINALIZER])
    outcome = await act(journal, replace(FULL, finalizer=False), status=status)
    (error,) = outcome.apply_errors
    assert f"the resource still has the finalizer {FINALIZER}" in error
    assert (outcome.finalizer_refused, outcome.wrote_status) == (True, True)
    assert "swap b" in journal.calls


async def test_a_finalizer_that_is_not_there_after_its_write_counts_as_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal()
    monkeypatch.setattr(journal, "apply", lambda obj: journal.speculator)
    with pytest.raises(KubernetesError, match="does not have the finalizer"):
        await act(journal, replace(FULL, finalizer=True))
    assert journal.calls == [], "nothing is stored before the finalizer is there"


async def test_a_refused_finalizer_of_a_served_speculator_is_reported_and_a_race_observes_again() -> None:
    wanted = replace(FULL, finalizer=True)
    journal = Journal(faults={"apply AuroraSpeculator": KubernetesError("denied", 403)})
    outcome = await act(journal, wanted, status=SERVED)
    assert outcome.finalizer_refused
    assert outcome.apply_errors == ("the finalizer of store.deletionPolicy: denied",)
    assert "swap b" in journal.calls
    for error in (Conflict("moved on", 409), KubernetesError("away", 503)):
        with pytest.raises(KubernetesError):
            await act(Journal(faults={"apply AuroraSpeculator": error}), wanted, status=SERVED)


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
