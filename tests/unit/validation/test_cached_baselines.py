"""When a cached baseline may replace a measurement, and which samples are cached."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope, Shape
from aurora_api.v1alpha1.target import TargetSpec
from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_protocol.draft_records import Registration
from aurora_protocol.evidence_records import Arm, CachedBaseline, Environment, Sample, VerdictKind
from aurora_protocol.gate import GatePolicy
from aurora_protocol.pod_settings import StoreSettings, ValidationSettings
from aurora_runtime.validation.attempt import Attempt
from aurora_runtime.validation.cached_baselines import (
    BaselineRequirements,
    baseline_to_cache,
    find_baseline,
    reason_not_usable,
)
from aurora_runtime.validation.rounds.answer_equality import EqualityCounter
from aurora_runtime.validation.rounds.measure import Measurement
from aurora_runtime.validation.rounds.measurement_plan import MeasurementPlan
from aurora_store import Registry
from tests.assets.signing import KEYS
from tests.unit.fakes import FolderObjects
from tests.unit.operator.worlds import digest, evidence, registration

NOW = datetime(2026, 1, 2, tzinfo=UTC)
HERE = Environment(
    hardware="two cores",
    device="cpu",
    engine="0.5.23",
    torch="2",
    dtype="float32",
    draft_steps=3,
    draft_tokens=4,
)
POLICY = GatePolicy(concurrencies=(1, 4), min_improvement=0.05, tolerance=0.05, min_rounds=3)
PLAN = MeasurementPlan(POLICY, (Arm.OFF, Arm.ACTIVE, Arm.CANDIDATE), 5, prompts_per_worker=2)
REQUIREMENTS = BaselineRequirements(PLAN, HERE, max_new_tokens=64, max_age=timedelta(hours=1), now=NOW)


def samples(arm: Arm, rounds: int = 3, **changes: Any) -> list[Sample]:
    sample = Sample(arm=arm, concurrency=1, round=0, requests=2, tokens=20, seconds=1.0).model_copy(update=changes)
    return [sample.model_copy(update={"concurrency": c, "round": r}) for r in range(rounds) for c in (1, 4)]


def baseline(**changes: Any) -> CachedBaseline:
    usable = CachedBaseline(
        lineage=1,
        version=3,
        attempt=1,
        environment=HERE,
        concurrencies=(1, 4),
        prompts_per_worker=2,
        max_new_tokens=64,
        samples=tuple(sample for arm in (Arm.OFF, Arm.NGRAM, Arm.ACTIVE, Arm.CANDIDATE) for sample in samples(arm)),
        draft_digests={Arm.ACTIVE: digest(2), Arm.CANDIDATE: digest(7)},
        drafts_answering_as_off=(digest(2),),
        created=NOW - timedelta(minutes=30),
    )
    return usable.model_copy(update=changes)


def elsewhere(**changes: Any) -> Environment:
    return HERE.model_copy(update=changes)


def test_a_young_baseline_of_the_same_environment_is_usable_however_busy_the_machine_is() -> None:
    assert reason_not_usable(baseline(), REQUIREMENTS) == ""
    assert reason_not_usable(baseline(), replace(REQUIREMENTS, environment=elsewhere(load_average=9.0))) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"created": NOW - timedelta(hours=1)}, "3600 s old"),
        ({"created": NOW + timedelta(seconds=5)}, "old"),
        ({"environment": elsewhere(hardware="three cores")}, "another machine"),
        ({"environment": elsewhere(engine="0.5.24")}, "another machine"),
        ({"environment": elsewhere(image="other")}, "another machine"),
        ({"environment": elsewhere(dtype="bfloat16")}, "another machine"),
        ({"environment": elsewhere(pod_digest="more memory")}, "another machine"),
        ({"environment": elsewhere(ngram_tokens=4)}, "another machine"),
        ({"max_new_tokens": 32}, "another size"),
        ({"prompts_per_worker": 1}, "another size"),
        ({"samples": tuple(samples(Arm.NGRAM))}, "few rounds of off"),
        ({"samples": tuple(samples(Arm.OFF, rounds=2))}, "few rounds of off"),
        ({"samples": tuple(s for s in samples(Arm.OFF) if s.concurrency == 1)}, "concurrency 4"),
    ],
)
def test_a_baseline_that_differs_in_anything_is_not_usable(changes: dict[str, Any], words: str) -> None:
    assert words in reason_not_usable(baseline(**changes), REQUIREMENTS)


def test_a_maximum_age_of_zero_disables_the_cache() -> None:
    assert reason_not_usable(baseline(created=NOW), replace(REQUIREMENTS, max_age=timedelta(0)))


def test_a_baseline_without_a_requested_arm_is_not_usable() -> None:
    with_ngram = replace(REQUIREMENTS, plan=replace(PLAN, arms=(*PLAN.arms, Arm.NGRAM)))
    assert reason_not_usable(baseline(), with_ngram) == ""
    assert "ngram" in reason_not_usable(baseline(samples=tuple(samples(Arm.OFF))), with_ngram)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    objects = FolderObjects(tmp_path / "store")
    objects.path.mkdir()
    return Registry(objects, KEYS)


def active(version: int) -> Registration:
    return registration(version)


def test_the_newest_usable_baseline_is_found_and_reduced_to_the_requested_arms(registry: Registry) -> None:
    for version, hours in ((3, 0.5), (4, 0.1), (5, 0.2)):
        stored = baseline(version=version, created=NOW - timedelta(hours=hours))
        registry.put_baseline(stored.model_copy(update={"prompts_per_worker": 9} if version == 5 else {}))
    found = find_baseline(registry, 1, active(2), REQUIREMENTS)
    assert found is not None
    assert found.key == "baselines/00000001/00000004-00000001.json"
    assert {s.arm for s in found.samples} == {Arm.OFF, Arm.ACTIVE}
    assert find_baseline(registry, 2, active(2), REQUIREMENTS) is None, "another lineage"


@pytest.mark.parametrize(
    ("evidence_of_active", "usable"),
    [
        (evidence(7, VerdictKind.PASS), True),
        (evidence(7, VerdictKind.INCONCLUSIVE), False),
        (evidence(7, VerdictKind.PASS, environment=elsewhere(dtype="bfloat16")), False),
        (evidence(7, VerdictKind.PASS, candidate_digest=digest(8)), False),
        (None, False),
    ],
)
def test_an_active_draft_whose_answers_were_never_compared_is_no_reference(
    registry: Registry, evidence_of_active: Any, usable: bool
) -> None:
    registry.put_baseline(baseline())
    if evidence_of_active is not None:
        registry.put_evidence(evidence_of_active)
    assert (find_baseline(registry, 1, active(7), REQUIREMENTS) is not None) is usable


@pytest.mark.parametrize("drafts", [{}, {Arm.ACTIVE: digest(3)}])
def test_a_baseline_measured_without_the_active_draft_is_not_usable(registry: Registry, drafts: dict[Arm, str]) -> None:
    registry.put_baseline(baseline(draft_digests=drafts))
    assert find_baseline(registry, 1, active(2), REQUIREMENTS) is None


def settings() -> ValidationSettings:
    return ValidationSettings(
        namespace="n",
        name="s",
        target=TargetSpec(model="m"),
        draft=DraftSpec(),
        validation=ValidationSpec(concurrencies=[1, 4], max_new_tokens=64),
        store=StoreSettings(bucket="b", root="r"),
        candidate=5,
        active=2,
        attempt=2,
    )


def cached(measured: list[Sample], *, near_ties: int = 0, different: int = 0) -> CachedBaseline | None:
    equality = {
        Arm.ACTIVE: EqualityCounter(Arm.ACTIVE, 0.25, identical=3),
        Arm.CANDIDATE: EqualityCounter(Arm.CANDIDATE, 0.25, near_ties=near_ties, different=different),
    }
    plan = replace(PLAN, arms=(*PLAN.arms, Arm.NGRAM))
    drafts = {Arm.ACTIVE: registration(2), Arm.CANDIDATE: registration(5)}
    measurement = Measurement(arms=plan.arms, samples=measured, equality=equality)
    return baseline_to_cache(Attempt(settings(), plan, drafts, started=NOW), HERE, measurement, measured)


def test_a_cached_baseline_names_the_drafts_that_answered_as_off_did(registry: Registry) -> None:
    measured = [s for arm in (Arm.OFF, Arm.ACTIVE, Arm.CANDIDATE, Arm.NGRAM) for s in samples(arm)]
    same, different, not_compared = cached(measured, near_ties=2), cached(measured, different=1), cached(measured)
    assert same is not None
    assert different is not None
    assert not_compared is not None
    assert same.drafts_answering_as_off == (digest(2), digest(5))
    assert different.drafts_answering_as_off == not_compared.drafts_answering_as_off == (digest(2),)
    assert same.draft_digests == {Arm.ACTIVE: digest(2), Arm.CANDIDATE: digest(5)}
    registry.put_baseline(same)
    later = find_baseline(registry, 1, active(5), REQUIREMENTS)
    assert later is not None
    assert {s.arm for s in later.samples} == {Arm.OFF, Arm.ACTIVE}, "the former candidate is the active draft now"


def test_a_baseline_with_too_few_rounds_is_not_cached_and_an_arm_with_failures_is_left_out() -> None:
    assert cached(samples(Arm.OFF, rounds=2)) is None
    failed = cached(samples(Arm.OFF) + samples(Arm.NGRAM, failures=1))
    assert failed is not None
    assert {s.arm for s in failed.samples} == {Arm.OFF}
    assert failed.draft_digests == {}


def test_a_baseline_of_another_shape_or_scope_of_lookup_is_not_used() -> None:
    """The active draft beside it, which shows a change of the machine's speed, was served in another way."""
    for changes in ({"draft_shape": Shape.ADAPTIVE}, {"lookup": LookupScope.REQUEST}):
        served_otherwise = replace(REQUIREMENTS, environment=elsewhere(**changes))
        assert (
            reason_not_usable(baseline(), served_otherwise) == "it was measured on another machine, engine or setting"
        )
