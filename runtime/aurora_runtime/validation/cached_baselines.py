"""Baselines kept for later candidates: what the target does without a draft of ours changes seldom.

Invariant: a baseline is used only where everything that decides speed is the same, while it is younger than the limit,
and only beside an active draft that is known to answer as off does: the candidate is compared with that draft then.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from aurora_protocol.draft_records import Registration
from aurora_protocol.evidence_records import Arm, BaselineSamples, CachedBaseline, Environment, Sample, VerdictKind
from aurora_protocol.pod_settings import ValidationSettings
from aurora_runtime.validation.measure import Measurement, MeasurePlan
from aurora_store import Keys, Registry

log = logging.getLogger(__name__)

LOOKED_AT = 8
"""The newest baselines; older ones are of other machines or too old."""


@dataclass(frozen=True)
class Wanted:
    """What a measurement needs of a baseline."""

    plan: MeasurePlan
    environment: Environment
    max_new_tokens: int
    max_age: timedelta
    now: datetime

    @classmethod
    def of(cls, settings: ValidationSettings, plan: MeasurePlan, where: Environment, now: datetime) -> Wanted:
        asked = settings.validation
        return cls(plan, where, asked.max_new_tokens, timedelta(seconds=asked.baseline_max_age_seconds), now)


def _rounds(samples: Sequence[Sample], arm: Arm, concurrency: int) -> int:
    return len({s.round for s in samples if s.arm is arm and s.concurrency == concurrency and s.tokens > 0})


def refusal(baseline: CachedBaseline, wanted: Wanted) -> str:
    """Why ``baseline`` cannot stand for a measurement of its own; empty when it can."""
    policy = wanted.plan.policy
    age = wanted.now - baseline.created
    if not timedelta(0) <= age < wanted.max_age:
        return f"it is {age.total_seconds():.0f} s old"
    if not baseline.environment.is_comparable_with(wanted.environment):
        return "it was measured on another machine, engine or setting"
    if (baseline.prompts_per_worker, baseline.max_new_tokens) != (
        wanted.plan.prompts_per_worker,
        wanted.max_new_tokens,
    ):
        return "its batches were of another size"
    for arm in wanted.plan.apart:
        for concurrency in policy.concurrencies:
            if _rounds(baseline.samples, arm, concurrency) < policy.min_rounds:
                return f"it has too few rounds of {arm} at concurrency {concurrency}"
    return ""


def answers_as_off(registry: Registry, active: Registration, baseline: CachedBaseline) -> bool:
    """Whether the active draft's greedy answers are known to be off's: seen with the baseline, or when it passed."""
    return active.digest in baseline.drafts_answering_as_off or any(
        evidence.verdict.kind is VerdictKind.PASS
        and evidence.candidate_digest == active.digest
        and evidence.lineage == baseline.lineage
        and evidence.environment.is_comparable_with(baseline.environment)
        for evidence in registry.evidence_of_all_attempts(active.version)
    )


def find(registry: Registry, lineage: int, active: Registration, wanted: Wanted) -> BaselineSamples | None:
    """The newest usable baseline, reduced to what the plan asks for."""
    for key, baseline in itertools.islice(registry.baselines(lineage), LOOKED_AT):
        why = refusal(baseline, wanted)
        concurrencies = wanted.plan.policy.concurrencies
        control = tuple(s for s in _control(baseline, active) if s.concurrency in concurrencies)
        if not why and not answers_as_off(registry, active, baseline):
            why = f"version {active.version} was never seen to answer as off does"
        if not why and {s.concurrency for s in control} != set(concurrencies):
            why = (
                f"version {active.version} was not measured beside it, and only that tells whether the machine changed"
            )
        if why:
            log.info("baseline %s is not used: %s", key, why)
            continue
        log.info("baseline %s of %s is used", key, baseline.created.isoformat())
        samples = tuple(s for s in baseline.samples if s.arm in wanted.plan.apart and s.concurrency in concurrencies)
        return BaselineSamples(key=key, samples=samples + control, created=baseline.created)
    return None


def _control(baseline: CachedBaseline, active: Registration) -> tuple[Sample, ...]:
    """What the draft that is active now did beside the baseline, whatever it was then."""
    arm = next((arm for arm, digest in baseline.draft_digests.items() if digest == active.digest), None)
    return tuple(s.model_copy(update={"arm": Arm.ACTIVE}) for s in baseline.samples if s.arm is arm)


def used(settings: ValidationSettings, lineage: int, samples: Sequence[Sample], created: datetime) -> BaselineSamples:
    """A baseline just measured apart, under the key that its record will have."""
    key = Keys.baseline(lineage, settings.candidate, settings.attempt)
    return BaselineSamples(key=key, samples=tuple(samples), created=created)


def keep(
    settings: ValidationSettings,
    plan: MeasurePlan,
    where: Environment,
    measurement: Measurement,
    samples: Sequence[Sample],
    *,
    drafts: dict[Arm, Registration],
    created: datetime,
) -> CachedBaseline | None:
    """The record to leave for later candidates; None when ``samples`` are too few to be of use to any.

    Args:
        samples: of off and whatever was measured beside it; an arm of which requests failed is left out.
    """
    failed = {sample.arm for sample in samples if sample.failures}
    kept = tuple(s for s in samples if s.arm not in failed)
    policy = plan.policy
    if any(_rounds(kept, Arm.OFF, concurrency) < policy.min_rounds for concurrency in policy.concurrencies):
        return None
    same = tuple(
        drafts[e.arm].digest
        for e in measurement.equalities()
        if e.arm in drafts and e.reference is Arm.OFF and e.prompts > 0 and e.different == 0
    )
    return CachedBaseline(
        lineage=drafts[Arm.CANDIDATE].lineage,
        version=settings.candidate,
        attempt=settings.attempt,
        environment=where,
        concurrencies=policy.concurrencies,
        prompts_per_worker=plan.prompts_per_worker,
        max_new_tokens=settings.validation.max_new_tokens,
        samples=kept,
        draft_digests={arm: draft.digest for arm, draft in drafts.items() if any(s.arm is arm for s in kept)},
        drafts_answering_as_off=tuple(dict.fromkeys(same)),
        created=created,
    )
