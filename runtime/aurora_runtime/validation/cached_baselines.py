"""Caches baselines for later candidates, because the speed of off and of NGRAM changes seldom.

Invariants: a cached baseline is used only where everything that decides speed is the same, and while it is younger than
the limit. The active draft must be known to answer as off does, because the candidate's answers are then compared with
the active draft's. The active draft must have been measured beside the baseline, because only that shows whether the
machine's speed has changed.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from aurora_protocol.draft_records import Registration
from aurora_protocol.evidence_records import Arm, BaselineSamples, CachedBaseline, Environment, Sample, VerdictKind
from aurora_runtime.validation.attempt import Attempt
from aurora_runtime.validation.rounds.measure import Measurement
from aurora_runtime.validation.rounds.measurement_plan import MeasurementPlan
from aurora_store import Keys, Registry

log = logging.getLogger(__name__)

MAX_AGE = timedelta(days=1)
"""How long a baseline is used. A Job on a CPU measures its own, because shared cores change their speed by the minute.
On a replica even a CPU reuses it, because to measure without a draft restarts the replica's engine twice."""
MAX_BASELINES_READ = 8
"""How many of the newest baselines are read. Older ones are of other machines, or too old."""


@dataclass(frozen=True)
class BaselineRequirements:
    """What a measurement needs of a cached baseline."""

    plan: MeasurementPlan
    environment: Environment
    max_new_tokens: int
    max_age: timedelta
    now: datetime

    @classmethod
    def of(cls, attempt: Attempt, environment: Environment) -> BaselineRequirements:
        """The requirements of ``attempt`` in ``environment``."""
        settings = attempt.settings
        shares_cores = environment.device == "cpu" and settings.replica is None
        max_age = timedelta(0) if shares_cores else MAX_AGE
        return cls(attempt.plan, environment, settings.validation.max_new_tokens, max_age, attempt.started)


def find_baseline(
    registry: Registry, lineage: int, active: Registration, requirements: BaselineRequirements
) -> BaselineSamples | None:
    """The newest usable baseline, reduced to the samples that the plan asks for and those of the active draft."""
    concurrencies = requirements.plan.policy.concurrencies
    for key, baseline in itertools.islice(registry.baselines(lineage), MAX_BASELINES_READ):
        control = [s for s in _samples_of_active(baseline, active) if s.concurrency in concurrencies]
        reason = reason_not_usable(baseline, requirements)
        if not reason and not answers_as_off(registry, active, baseline):
            reason = f"the answers of version {active.version} are not known to equal those of off"
        if not reason and {s.concurrency for s in control} != set(concurrencies):
            reason = f"version {active.version} was not measured beside it, so a change of the speed would not show"
        if reason:
            log.info("baseline %s is not used: %s", key, reason)
            continue
        log.info("baseline %s of %s is used", key, baseline.created.isoformat())
        arms = requirements.plan.baseline_arms
        samples = [s for s in baseline.samples if s.arm in arms and s.concurrency in concurrencies]
        return BaselineSamples(key=key, samples=(*samples, *control), created=baseline.created)
    return None


def reason_not_usable(baseline: CachedBaseline, requirements: BaselineRequirements) -> str:
    """Why ``baseline`` cannot replace a measurement. Empty when it can."""
    plan = requirements.plan
    age = requirements.now - baseline.created
    if not timedelta(0) <= age < requirements.max_age:
        return f"it is {age.total_seconds():.0f} s old"
    if not baseline.environment.is_comparable_with(requirements.environment):
        return "it was measured on another machine, engine or setting"
    batch_size = (baseline.prompts_per_worker, baseline.max_new_tokens)
    if batch_size != (plan.prompts_per_worker, requirements.max_new_tokens):
        return "its batches were of another size"
    for arm in plan.baseline_arms:
        for concurrency in plan.policy.concurrencies:
            if _rounds(baseline.samples, arm, concurrency) < plan.policy.min_rounds:
                return f"it has too few rounds of {arm} at concurrency {concurrency}"
    return ""


def answers_as_off(registry: Registry, active: Registration, baseline: CachedBaseline) -> bool:
    """Whether the active draft's greedy answers are known to equal those without speculation.

    They were compared when the baseline was measured, or when the draft passed the gate in the same environment.
    """
    return active.digest in baseline.drafts_answering_as_off or any(
        evidence.verdict.kind is VerdictKind.PASS
        and evidence.candidate_digest == active.digest
        and evidence.lineage == baseline.lineage
        and evidence.environment.is_comparable_with(baseline.environment)
        for evidence in registry.evidence_of_all_attempts(active.version)
    )


def _samples_of_active(baseline: CachedBaseline, active: Registration) -> list[Sample]:
    """The samples of the draft that is active now. It may have been the candidate when the baseline was measured."""
    arm_then = next((arm for arm, digest in baseline.draft_digests.items() if digest == active.digest), None)
    return [s.model_copy(update={"arm": Arm.ACTIVE}) for s in baseline.samples if s.arm is arm_then]


def _rounds(samples: Sequence[Sample], arm: Arm, concurrency: int) -> int:
    return len({s.round for s in samples if s.arm is arm and s.concurrency == concurrency and s.tokens > 0})


def fresh_baseline(attempt: Attempt, samples: Sequence[Sample]) -> BaselineSamples:
    """A baseline that was measured just now, under the key that its record will have."""
    key = Keys.baseline(attempt.candidate.lineage, attempt.settings.candidate, attempt.settings.attempt)
    return BaselineSamples(key=key, samples=tuple(samples), created=attempt.started)


def baseline_to_cache(
    attempt: Attempt, environment: Environment, measurement: Measurement, samples: Sequence[Sample]
) -> CachedBaseline | None:
    """The baseline to store for later candidates. None when it holds too few rounds of off to be useful.

    Args:
        samples: the samples of off, and of the arms measured beside off. An arm with failed requests is left out.
    """
    failed_arms = {sample.arm for sample in samples if sample.failures}
    usable = tuple(sample for sample in samples if sample.arm not in failed_arms)
    policy = attempt.plan.policy
    if any(_rounds(usable, Arm.OFF, concurrency) < policy.min_rounds for concurrency in policy.concurrencies):
        return None
    same_answers = (
        attempt.drafts[equality.arm].digest
        for equality in measurement.equalities()
        if equality.arm in attempt.drafts
        and equality.reference is Arm.OFF
        and equality.prompts > 0
        and equality.different == 0
    )
    arms = {sample.arm for sample in usable}
    return CachedBaseline(
        lineage=attempt.candidate.lineage,
        version=attempt.settings.candidate,
        attempt=attempt.settings.attempt,
        environment=environment,
        concurrencies=policy.concurrencies,
        prompts_per_worker=attempt.plan.prompts_per_worker,
        max_new_tokens=attempt.settings.validation.max_new_tokens,
        samples=usable,
        draft_digests={arm: draft.digest for arm, draft in attempt.drafts.items() if arm in arms},
        drafts_answering_as_off=tuple(dict.fromkeys(same_answers)),
        created=attempt.started,
    )
