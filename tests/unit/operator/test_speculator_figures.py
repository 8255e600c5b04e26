"""The figures of speculators that Prometheus reads: their values, their life and what cannot be parsed."""

from __future__ import annotations

import re
import threading
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import (
    CandidatePhase,
    CandidateStatus,
    HistoryEntry,
    RolloutPhase,
    RolloutStatus,
    SpeculatorStatus,
    TrainingStatus,
    VersionStatus,
)
from aurora_operator.observe.observed import StoreView
from aurora_operator.plan.conditions import invalid_spec_status
from aurora_operator.plan.events import DECISIONS
from aurora_operator.plan.figures import parse_ratio, ratio_text
from aurora_operator.speculator_figures import SpeculatorFigures
from aurora_protocol.evidence_records import Arm, RatioEstimate, VerdictKind
from aurora_protocol.training_records import TrainerPhase, TrainerStatus
from tests.unit.operator.worlds import NOW, OWNER, evidence, made, observed, pod, spec, status, store

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
            (ConditionType.STALLED, ConditionStatus.UNKNOWN),
            ("OfAnotherController", ConditionStatus.TRUE),
        )
    ],
    active=VersionStatus(version=3, speedup="1.52x (1.45-1.60)"),
    candidate=CandidateStatus(version=4, phase=CandidatePhase.VALIDATING, since=NOW),
    rollout=RolloutStatus(phase=RolloutPhase.JUDGING),
    training=TrainingStatus(
        step=40,
        trained_tokens=1000,
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
    kinds = ("Ready", "StorageReady", "Stalled")
    assert [shown.value("condition", type=kind) for kind in kinds] == [1, 0, 0]
    assert "OfAnotherController" not in shown.text, "a type that anybody may set is no label of ours"
    assert [shown.value("active_speedup", bound=bound) for bound in ("estimate", "low", "high")] == [1.52, 1.45, 1.6]
    assert shown.value("held_out_accept_length") == 2.1
    assert shown.value("pending_shards") == 3
    assert shown.value("training_devices", device="nvidia.com/gpu") == 1
    assert shown.value("saved_devices", device="nvidia.com/gpu") == 0.35
    assert shown.value("rollout_phase", phase="Judging") == 1
    assert shown.value("last_reconcile_timestamp_seconds") == NOW.timestamp()
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
        (status(observed(pods=(), spec=spec(serving={"replicas": 0}))), 0),
    ):
        shown.figures.record_status(OWNER.namespace, OWNER.name, found, NOW)
        reasons = [(condition.type, condition.status, condition.reason) for condition in found.conditions]
        assert shown.value("starting") == expected, reasons


def test_a_value_that_is_not_known_any_more_has_no_series(shown: Shown) -> None:
    shown.figures.record_observation(observed(status=STATUS, store=store(0, trainer=TRAINER)), NOW)
    shown.figures.record_observation(observed(), NOW)
    for name in ("measurement_started_timestamp_seconds", "pending_shards"):
        assert shown.value(name) is None, name
    assert shown.value("rollout_phase", phase="Judging") is None
    assert shown.value("rollout_phase", phase="Idle") == 1


def counts(scrape: str) -> dict[str, float]:
    """The counters of decisions in the text of one scrape."""
    return {name: float(count) for name, count in re.findall(r'decisions_total\{decision="(\w+)".*\} (\S+)', scrape)}


def test_decisions_of_every_kind_are_counted_from_zero(shown: Shown) -> None:
    """So that Prometheus' ``increase`` sees the first one, too."""
    zeros = dict.fromkeys(DECISIONS, 0.0)
    shown.figures.record_status(OWNER.namespace, OWNER.name, STATUS, NOW)
    assert counts(shown.text) == zeros
    shown.figures.count_decisions(OWNER.namespace, OWNER.name, ["Validated", "RolloutStarted"])
    shown.figures.record_observation(observed(), NOW)
    shown.figures.count_decisions(OWNER.namespace, OWNER.name, ["RolloutStarted"])
    assert counts(shown.text) == zeros | {"Validated": 1, "RolloutStarted": 2}


def test_a_plan_names_the_decisions_that_it_posts() -> None:
    passed = store(0, 1, evidence=(evidence(1, VerdictKind.PASS),))
    candidate = CandidateStatus(version=1, phase=CandidatePhase.VALIDATING, job="chat-validate-v1-1")
    plan = made(observed(store=passed, status=SpeculatorStatus(candidate=candidate)))
    assert "Validated" in plan.decisions
    assert set(plan.decisions) <= {note.reason for note in plan.notes}


@pytest.mark.parametrize("text", ["", "about 2", "nan", "inf", "1.5x"])
def test_a_figure_that_cannot_be_parsed_is_left_out(shown: Shown, text: str) -> None:
    active = VersionStatus(version=0, speedup=text)
    training = TrainingStatus(held_out_accept_length=text)
    shown.figures.record_observation(observed(status=SpeculatorStatus(training=training, active=active)), NOW)
    assert shown.value("held_out_accept_length") is None
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
