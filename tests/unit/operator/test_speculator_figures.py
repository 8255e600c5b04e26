"""The figures of speculators that Prometheus reads: their values, their life and what cannot be parsed."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import (
    CandidatePhase,
    CandidateStatus,
    HistoryEntry,
    OperatorIdentity,
    RolloutPhase,
    RolloutStatus,
    SpeculatorStatus,
    TrainingStatus,
    VersionStatus,
)
from aurora_operator import metrics
from aurora_operator.children.metadata import FINALIZER
from aurora_operator.errors import BeingDeleted, Conflict, KubernetesError
from aurora_operator.kubernetes_api import Object
from aurora_operator.loop import SpeculatorLoop
from aurora_operator.metrics.speculator_figures import FIGURES, SpeculatorFigures
from aurora_operator.observe.observed import StoreView, WorkloadView
from aurora_operator.plan.conditions.condition_builder import invalid_spec_status
from aurora_operator.plan.events import DECISIONS
from aurora_operator.plan.formatting import parse_ratio, ratio_text
from aurora_operator.reconcile_slots import ReconcileSlots
from aurora_protocol.evidence_records import Arm, RatioEstimate, VerdictKind
from aurora_protocol.training_records import TrainerPhase, TrainerStatus
from tests.unit.operator.test_reconciler import FakeActor, FakeApi, FakeObserver, reconciler_at, written_by
from tests.unit.operator.worlds import CONFIG, MINIMAL, NOW, OWNER, evidence, made, observed, pod, status, store

KEY = {"namespace": OWNER.namespace, "name": OWNER.name}
TRAINER = TrainerStatus(
    phase=TrainerPhase.TRAINING, step=40, shards=4, trained_tokens=1000, pending_shards=3, updated=NOW
)
STATUS = SpeculatorStatus(
    conditions=[
        Condition(type=kind, status=status, reason="Because", last_transition_time=NOW)
        for kind, status in (
            (ConditionType.READY, ConditionStatus.TRUE),
            (ConditionType.STORAGE_READY, ConditionStatus.FALSE),
            (ConditionType.CANDIDATE_VALIDATED, ConditionStatus.UNKNOWN),
            ("OfAnotherController", ConditionStatus.TRUE),
        )
    ],
    active=VersionStatus(version=3, speedup="1.52x (1.45-1.60)"),
    candidate=CandidateStatus(version=4, phase=CandidatePhase.VALIDATING, since=NOW),
    rollout=RolloutStatus(phase=RolloutPhase.WATCHING),
    training=TrainingStatus(
        step=40,
        trained_tokens=1000,
        pending_shards=3,
        held_out_accept_length="2.10",
        devices="1 nvidia.com/gpu",
        saved_devices="0.35 nvidia.com/gpu",
    ),
    accept_length="2.34",
    history=[HistoryEntry(time=NOW, event="Promoted", version=3)],
)


class Shown:
    """A registry with one speculator's figures."""

    def __init__(self) -> None:
        self.figures = SpeculatorFigures()
        self._registry = CollectorRegistry()
        self._registry.register(self.figures)

    def value(self, metric: str, **labels: str) -> float | None:
        return self._registry.get_sample_value(f"aurora_speculator_{metric}", KEY | labels)

    @property
    def text(self) -> str:
        return generate_latest(self._registry).decode()


@pytest.fixture(name="shown")
def _shown() -> Shown:
    return Shown()


def test_the_figures_of_a_status_and_of_the_trainers_record_are_shown(shown: Shown) -> None:
    world = observed(status=STATUS, store=store(0, 3, active=3, trainer=TRAINER))
    shown.figures.record_observation(world, NOW)
    kinds = ("Ready", "StorageReady", "CandidateValidated")
    assert [shown.value("condition", type=kind) for kind in kinds] == [1, 0, 0]
    assert "OfAnotherController" not in shown.text, "a type that anybody may set is no label of ours"
    assert [shown.value("active_speedup", bound=bound) for bound in ("estimate", "low", "high")] == [1.52, 1.45, 1.6]
    assert (shown.value("accept_length"), shown.value("held_out_accept_length")) == (2.34, 2.1)
    assert (shown.value("trained_tokens_total"), shown.value("trainer_steps_total")) == (1000, 40)
    assert shown.value("pending_shards") == 3
    assert shown.value("training_lag_tokens") == 750, "3 shards of 250 tokens each"
    assert shown.value("training_devices", device="nvidia.com/gpu") == 1
    assert shown.value("saved_devices", device="nvidia.com/gpu") == 0.35
    assert shown.value("rollout_phase", phase="Watching") == 1
    times = [shown.value(f"{name}_timestamp_seconds") for name in ("last_decision", "last_reconcile")]
    assert times == [NOW.timestamp()] * 2
    assert shown.value("measurement_started_timestamp_seconds") == NOW.timestamp()


def test_a_start_in_progress_is_told_from_a_speculator_that_is_not_ready(shown: Shown) -> None:
    loading = tuple(pod(name, 0, ready=False, agent=None, created=NOW) for name in ("chat-a", "chat-b"))
    starting = status(observed(pods=loading))
    unreachable = StoreView(reason="Unreachable", error="no answer")
    late = NOW + timedelta(days=1)
    for found, expected in (
        (starting, 1),
        (status(observed(pods=loading, status=starting, store=unreachable)), 0),
        (status(observed(pods=loading, status=starting), late), 0),
        (invalid_spec_status(starting, 2, "serving.image: no image", NOW), 0),
        (status(observed(status=starting)), 0),
        (status(observed(pods=loading, status=status(observed()))), 0),
    ):
        shown.figures.record_status(OWNER.namespace, OWNER.name, found, NOW)
        reasons = [(condition.type, condition.status, condition.reason) for condition in found.conditions]
        assert shown.value("starting") == expected, reasons


def test_a_trainer_in_a_queue_is_told_from_one_that_does_not_run(shown: Shown) -> None:
    queued = WorkloadView(current=True, replicas=1, ready=0, queued_behind=("kueue.x-k8s.io/admission",))
    for trainer, expected in ((queued, 1), (replace(queued, queued_behind=()), 0)):
        shown.figures.record_status(OWNER.namespace, OWNER.name, status(observed(trainer=trainer)), NOW)
        assert shown.value("condition", type="TrainerReady") == 0
        assert shown.value("trainer_queued") == expected


def test_a_value_that_is_not_known_any_more_has_no_series(shown: Shown) -> None:
    shown.figures.record_observation(observed(status=STATUS, store=store(0, trainer=TRAINER)), NOW)
    shown.figures.record_observation(observed(), NOW)
    for name in ("measurement_started_timestamp_seconds", "accept_length", "training_lag_tokens", "pending_shards"):
        assert shown.value(name) is None, name
    assert shown.value("rollout_phase", phase="Watching") is None
    assert shown.value("rollout_phase", phase="Idle") == 1


def test_the_trainers_counts_do_not_fall_when_it_goes_on_from_its_last_saved_state(shown: Shown) -> None:
    def trained(tokens: int, lineage: int | None = 1) -> tuple[float | None, float | None]:
        record = TRAINER.model_copy(update={"lineage": lineage, "trained_tokens": tokens, "step": tokens // 10})
        world = observed(status=SpeculatorStatus(lineage=1), store=store(0, trainer=record))
        shown.figures.record_observation(world, NOW)
        return shown.value("trained_tokens_total"), shown.value("trainer_steps_total")

    assert trained(1000) == (1000, 100)
    assert trained(400) == (1000, 100), "rate would count 400 tokens that were counted already"
    assert trained(700, lineage=None) == (1000, 100)
    away = SpeculatorStatus(lineage=1, training=TrainingStatus(step=40, trained_tokens=400))
    shown.figures.record_observation(observed(status=away), NOW)
    assert shown.value("trained_tokens_total") == 1000, "the store is away"
    assert trained(1200) == (1200, 120)
    assert trained(30, lineage=2) == (30, 3), "another lineage begins anew"


def counts(scrape: str) -> dict[str, float]:
    """The counters of decisions in the text of one scrape."""
    return {name: float(count) for name, count in re.findall(r'decisions_total\{decision="(\w+)".*\} (\S+)', scrape)}


@pytest.mark.parametrize("first", DECISIONS)
def test_increase_sees_the_first_decision_of_every_kind(shown: Shown, first: str) -> None:
    zeros = dict.fromkeys(DECISIONS, 0.0)
    shown.figures.begin(OWNER.namespace, OWNER.name)
    assert counts(shown.text) == zeros
    shown.figures.count_decisions(OWNER.namespace, OWNER.name, [first])
    shown.figures.record_observation(observed(), NOW)
    assert counts(shown.text) == zeros | {first: 1}


def test_a_decision_before_the_first_scrape_is_shown_from_the_second_on(shown: Shown) -> None:
    """A new leader decides at once what became due while nobody led."""
    zeros = dict.fromkeys(DECISIONS, 0.0)
    shown.figures.count_decisions(OWNER.namespace, OWNER.name, ["Validated", "RolloutStarted"])
    shown.figures.record_observation(observed(), NOW)
    assert counts(shown.text) == zeros
    shown.figures.count_decisions(OWNER.namespace, OWNER.name, ["RolloutStarted"])
    assert [counts(shown.text) for _ in range(2)] == [zeros | {"Validated": 1, "RolloutStarted": 2}] * 2
    shown.figures.forget(OWNER.namespace, OWNER.name)
    shown.figures.begin(OWNER.namespace, OWNER.name)
    assert counts(shown.text) == zeros, "the process acts on the speculator again"


def test_a_plan_names_the_decisions_that_it_posts() -> None:
    passed = store(0, 1, evidence=(evidence(1, VerdictKind.PASS),))
    candidate = CandidateStatus(version=1, phase=CandidatePhase.VALIDATING, job="chat-validate-v1-1")
    plan = made(observed(store=passed, status=SpeculatorStatus(candidate=candidate)))
    assert "Validated" in plan.decisions
    assert set(plan.decisions) <= {note.reason for note in plan.notes}


@pytest.mark.parametrize("text", ["", "about 2", "nan", "inf", "1.5x"])
def test_a_figure_that_cannot_be_parsed_is_left_out(shown: Shown, text: str) -> None:
    active = VersionStatus(version=0, speedup=text)
    shown.figures.record_observation(observed(status=SpeculatorStatus(accept_length=text, active=active)), NOW)
    assert shown.value("accept_length") is None
    assert shown.value("active_speedup", bound="estimate") is None


@given(st.floats(0, 1000), st.floats(0, 1000), st.floats(0, 1000))
def test_a_ratio_is_parsed_as_it_was_written(estimate: float, low: float, high: float) -> None:
    ratio = RatioEstimate(
        numerator=Arm.CANDIDATE, denominator=Arm.OFF, concurrency=1, rounds=5, estimate=estimate, low=low, high=high
    )
    proof = evidence(1)
    proof = proof.model_copy(update={"verdict": proof.verdict.model_copy(update={"ratios": (ratio,)})})
    written = ratio_text(proof, Arm.CANDIDATE, Arm.OFF, 1)
    assert written is not None
    assert parse_ratio(written) == pytest.approx((estimate, low, high), abs=0.0051)


def test_a_speculator_that_is_gone_has_no_series(shown: Shown) -> None:
    shown.figures.record_observation(observed(status=STATUS), NOW)
    shown.figures.record_status("team", "other", STATUS, NOW)
    shown.figures.forget(OWNER.namespace, OWNER.name)
    assert 'name="chat"' not in shown.text
    assert 'name="other"' in shown.text


def test_prometheus_may_ask_while_speculators_come_and_go(shown: Shown) -> None:
    failures: list[Exception] = []

    def scrape() -> None:
        try:
            for _ in range(100):
                generate_latest(shown._registry)
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=scrape)
    thread.start()
    number = 0
    while thread.is_alive():
        number += 1
        shown.figures.record_status("team", f"s{number % 50}", STATUS, NOW)
        shown.figures.count_decisions("team", f"s{number % 50}", [DECISIONS[number % 7]])
        shown.figures.forget("team", f"s{(number + 25) % 50}")
    thread.join()
    assert failures == []


async def test_a_first_reconcile_that_fails_shows_the_counters_already() -> None:
    reconciler = reconciler_at(FakeObserver(observed()), FakeActor(error=Conflict("somebody else", 409)))
    FIGURES.forget(OWNER.namespace, OWNER.name)
    with pytest.raises(Conflict):
        await reconciler.reconcile()
    registry = CollectorRegistry()
    registry.register(FIGURES)
    assert counts(generate_latest(registry).decode()) == dict.fromkeys(DECISIONS, 0.0)


async def test_a_reconcile_records_and_one_that_yields_forgets() -> None:
    reconciler = reconciler_at(FakeObserver(observed()), FakeActor())
    await reconciler.reconcile()
    registry = CollectorRegistry()
    registry.register(FIGURES)
    name = "aurora_speculator_last_reconcile_timestamp_seconds"
    recorded = registry.get_sample_value(name, KEY)
    assert recorded is not None
    assert timedelta(seconds=recorded) > timedelta(days=10_000)
    reconciler._cache.put(FakeApi(MINIMAL, written_by("elsewhere/aurora-operator"), revision=78).stored)
    await reconciler.reconcile()
    assert registry.get_sample_value(name, KEY) is None, "another installation acts, and a stale time would alert"


CONDITION, LAST_RECONCILE, DELETED_AT = (
    f"aurora_speculator_{name}"
    for name in ("condition", "last_reconcile_timestamp_seconds", "deletion_timestamp_seconds")
)
READY = {"type": "Ready"}


def shown_now(metric: str, **labels: str) -> float | None:
    """The speculator's value of a metric of this process."""
    registry = CollectorRegistry()
    registry.register(FIGURES)
    found = registry.get_sample_value(metric, KEY | labels)
    return REGISTRY.get_sample_value(metric, KEY | labels) if found is None else found


def just_started(installation: str = CONFIG.installation) -> FakeApi:
    """A speculator on which ``installation`` acts, as the API server has it. The process has just started."""
    FIGURES.forget(OWNER.namespace, OWNER.name)
    metrics.forget(OWNER.namespace, OWNER.name)
    identity = OperatorIdentity(installation=installation, version=version("aurora-operator"))
    named = STATUS.model_copy(update={"operator": identity})
    return FakeApi(MINIMAL, named.model_dump(mode="json", by_alias=True))


async def test_a_restarted_operator_shows_the_stored_status_although_its_reconciles_fail() -> None:
    """Otherwise the alert about a condition would end with each restart of an operator that cannot go on."""
    reconciler = just_started().reconciler()
    reconciler._observer = FakeObserver(observed(), error=KubernetesError("away", 503))  # type: ignore[assignment]
    loop = SpeculatorLoop(reconciler, ReconcileSlots(), OWNER.namespace, OWNER.name)
    await loop._turn(woken=True)
    assert [shown_now(CONDITION, type=kind) for kind in ("Ready", "StorageReady")] == [1, 0]
    assert shown_now("aurora_speculator_ready") == 1
    began = shown_now(LAST_RECONCILE)
    assert began is not None
    await loop._turn(woken=True)
    assert shown_now(LAST_RECONCILE) == began, "no reconcile has succeeded since"


def test_the_status_of_a_speculator_on_which_another_installation_acts_is_not_shown() -> None:
    just_started("elsewhere/aurora-operator").reconciler().show_stored_status()
    assert shown_now(CONDITION, **READY) is None
    assert shown_now(LAST_RECONCILE) is None


class HangingDeletion:
    """A deletion that does not get on."""

    async def advance(self, stored: Object) -> float:
        return 30.0


async def test_a_deletion_that_does_not_get_on_is_all_that_is_shown() -> None:
    deleting = replace(just_started(), revision=78).stored
    deleting["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FINALIZER]}
    reconciler = reconciler_at(FakeObserver(observed(status=STATUS)), FakeActor())
    await reconciler.reconcile()
    assert shown_now("aurora_speculator_pods", version="0") == 2
    reconciler._observer = FakeObserver(observed(), error=BeingDeleted(deleting))  # type: ignore[assignment]
    reconciler._deletion = HangingDeletion()  # type: ignore[assignment]
    await reconciler.reconcile()
    assert shown_now(DELETED_AT) == NOW.timestamp()
    others = ("aurora_speculator_ready", "aurora_speculator_active_version", LAST_RECONCILE)
    assert [shown_now(name) for name in others] == [None, None, None]
    assert shown_now("aurora_speculator_pods", version="0") is None
    assert shown_now(CONDITION, **READY) is None
    restarted = just_started().reconciler()
    restarted._cache.put(deleting)
    restarted.show_stored_status()
    assert shown_now(DELETED_AT) == NOW.timestamp()


class CountedDict(dict[Any, Any]):
    """Counts how often somebody goes through all entries."""

    walks = 0

    def _walked(self) -> None:
        type(self).walks += 1

    def __iter__(self) -> Iterator[Any]:
        self._walked()
        return super().__iter__()

    def items(self) -> Any:
        self._walked()
        return super().items()

    def values(self) -> Any:
        self._walked()
        return super().values()


def test_neither_a_reconcile_nor_an_end_goes_through_the_series_of_all_speculators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for series in (metrics.READY, metrics.ACTIVE_VERSION, metrics.RECONCILES):
        monkeypatch.setattr(series, "_metrics", CountedDict(series._metrics))
    metrics.record_observation(observed(store=store(0)), 0.1)
    metrics.forget_observations(OWNER.namespace, OWNER.name)
    metrics.forget(OWNER.namespace, OWNER.name)
    metrics.forget(OWNER.namespace, OWNER.name)
    assert CountedDict.walks == 0


def test_pods_are_counted_by_their_version(shown: Shown) -> None:
    pods = (pod("a", 0), pod("b", 1), pod("c", 1), pod("d", 0, agent=None))
    labels = ("0", "1", "unknown")
    shown.figures.record_observation(observed(pods=pods), NOW)
    assert [shown.value("pods", version=label) for label in labels] == [1, 2, 1]
    shown.figures.record_observation(observed(pods=pods[1:3]), NOW)
    assert [shown.value("pods", version=label) for label in labels] == [None, 2, None]
