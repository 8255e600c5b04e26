"""Evidence in a real S3 store is judged by the operator itself, each record once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aurora_operator.observe.store import signed_records
from aurora_protocol.evidence_records import Evidence, VerdictKind
from aurora_protocol.gate import verdict
from tests.assets.s3 import S3
from tests.integration.operator.store_rig import Speculator
from tests.unit.operator.worlds import evidence, registration, samples, spec


@pytest.mark.parametrize(
    ("found", "passes"),
    [
        (evidence(1), True),
        (evidence(1, samples=()), False),
        (evidence(1, samples=samples(rounds=4)), False),
        (evidence(1, active_digest=registration(9).digest), False),
        (evidence(1, candidate_digest=registration(9).digest), False),
    ],
    ids=["honest", "no samples", "too few rounds", "another active draft", "another candidate"],
)
async def test_evidence_that_only_says_pass_promotes_nothing(
    s3: S3, speculator: Speculator, found: Evidence, passes: bool
) -> None:
    registry = speculator.registry(s3)
    registry.register(registration(1))
    registry.put_evidence(found)
    view = await speculator.look()
    assert [one.version for one in view.evidence] == [1]
    assert (view.promotion_evidence(1) is not None) is passes


async def test_evidence_is_judged_with_the_bars_of_the_present_spec(s3: S3, speculator: Speculator) -> None:
    registry = speculator.registry(s3)
    registry.register(registration(1))
    registry.put_evidence(evidence(1))
    for generation, (bars, passes) in enumerate([({}, True), ({"minImprovement": "0.5"}, False), ({}, True)]):
        speculator.owner = replace(speculator.owner, generation=generation)
        speculator.spec = speculator.spec.model_copy(update={"validation": spec(validation=bars).validation})
        assert ((await speculator.look()).promotion_evidence(1) is not None) is passes, bars


@pytest.fixture(name="judged")
def _judged(monkeypatch: pytest.MonkeyPatch) -> list[Evidence]:
    """The evidence whose verdict is computed again."""
    judged = list[Evidence]()

    def recomputed(evidence: Evidence, *more: Any) -> Evidence:
        judged.append(evidence)
        return verdict.recomputed(evidence, *more)

    monkeypatch.setattr(signed_records, "recomputed", recomputed)
    return judged


@pytest.mark.parametrize("pin", [None, 1])
async def test_each_attempt_is_judged_once(
    s3: S3, speculator: Speculator, judged: list[Evidence], pin: int | None
) -> None:
    registry = speculator.registry(s3)
    registry.register(registration(1))
    for attempt in range(1, 6):
        registry.put_evidence(evidence(1, samples=samples(rounds=4)).model_copy(update={"attempt": attempt}))
    registry.put_evidence(evidence(1, VerdictKind.INCONCLUSIVE).model_copy(update={"attempt": 6}))
    speculator.spec = speculator.spec.model_copy(update={"rollout": spec(rollout={"pin": pin}).rollout})
    for _ in range(3):
        view = await speculator.look(120)
    assert [one.attempt for one in judged] == [1, 2, 3, 4, 5, 6]
    assert [one.attempt for one in view.evidence] == [1, 2, 3, 4, 5, 6]
    assert view.promotion_evidence(1) is None or pin == 1
