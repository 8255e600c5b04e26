"""One measurement from its settings: drafts and prompts from the store, engines of one's own or a replica's, a verdict.

Invariant: whatever the place, the same plan, the same prompts and the same gate.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aurora_api.v1alpha1.validation import Baseline
from aurora_protocol.draft_records import Lineage, Registration
from aurora_protocol.evidence_records import Arm, BaselineSamples, CachedBaseline, Environment, Evidence, Sample
from aurora_protocol.gate import GatePolicy
from aurora_protocol.pod_settings import AGENT_TOKEN, Replica, ValidationSettings
from aurora_runtime.engine.machine import detect_machine
from aurora_runtime.engine.server_process import EngineSpec
from aurora_runtime.errors import DraftRefused, MeasurementError
from aurora_runtime.validation.answer_equality import near_tie
from aurora_runtime.validation.cached_baselines import Wanted, find, keep, used
from aurora_runtime.validation.draft_fetch import FetchedDraft, fetch_draft
from aurora_runtime.validation.evidence_builder import build, environment
from aurora_runtime.validation.held_out_prompts import Prompt, digest, held_out_prompts
from aurora_runtime.validation.job_engines import Engines
from aurora_runtime.validation.measure import Measurement, MeasurePlan, measure, measure_apart, refused
from aurora_runtime.validation.replica_engine import ReplicaEngine
from aurora_runtime.validation.server_set import EngineSet
from aurora_store import Registry

FINISH_SECONDS = 30.0
"""Kept of the time limit for stopping the engines and writing the evidence."""
MIN_KV_TOKENS = 8192


@dataclass(frozen=True)
class Place:
    """Folders of this process: scratch space for drafts and logs, and the keys."""

    scratch: Path
    keys: Path


@dataclass(frozen=True)
class Outcome:
    """What a measurement leaves in the store."""

    evidence: Evidence
    baseline: CachedBaseline | None = None


@dataclass(frozen=True)
class Task:
    """What is to be measured, and until when (monotonic)."""

    settings: ValidationSettings
    plan: MeasurePlan
    registry: Registry
    lineage: Lineage
    registered: dict[Arm, Registration]
    started: datetime
    deadline: float

    def baseline(self, where: Environment) -> BaselineSamples | None:
        """A kept one that stands for off and peers in ``where``."""
        wanted = Wanted.of(self.settings, self.plan, where, self.started)
        return find(self.registry, self.lineage.number, self.registered[Arm.ACTIVE], wanted)

    def outcome(
        self,
        where: Environment,
        measurement: Measurement,
        prompts: tuple[Prompt, ...] = (),
        baseline: BaselineSamples | None = None,
        fresh: tuple[Sample, ...] = (),
    ) -> Outcome:
        """``fresh``: samples from which a baseline is kept, when they hold enough of off."""
        evidence = build(
            self.settings,
            measurement,
            candidate=self.registered[Arm.CANDIDATE],
            active=self.registered[Arm.ACTIVE],
            where=where,
            prompts_sha256=digest(prompts),
            started=self.started,
            baseline=baseline,
        )
        kept = keep(self.settings, self.plan, where, measurement, fresh, drafts=self.registered, created=self.started)
        return Outcome(evidence, kept)


def plan_of(settings: ValidationSettings) -> MeasurePlan:
    """The measurement that the spec asks for."""
    asked = settings.validation
    policy = GatePolicy(
        concurrencies=asked.concurrencies_primary_first,
        min_improvement=float(asked.min_improvement),
        tolerance=float(asked.tolerance.default),
        min_rounds=asked.min_rounds,
        tolerances={one.concurrency: float(one.tolerance) for one in asked.tolerance.per_concurrency or ()},
    )
    arms = [Arm.OFF, Arm.ACTIVE, Arm.CANDIDATE]
    if Baseline.NGRAM in asked.baselines:
        arms.append(Arm.NGRAM)
    bound = near_tie(settings.target.dtype)
    return MeasurePlan(policy, tuple(arms), asked.max_rounds, asked.prompts_per_round, bound)


def kv_tokens(prompts: tuple[Prompt, ...], plan: MeasurePlan, max_new_tokens: int) -> int:
    """KV cache that holds the largest batch with room for drafts, so that no request is ever queued for memory."""
    longest = max(len(prompt.tokens) for prompt in prompts) + max_new_tokens + 64
    return max(MIN_KV_TOKENS, 2 * longest * max(plan.policy.concurrencies))


async def run(settings: ValidationSettings, registry: Registry, place: Place) -> Outcome:
    """Measure ``settings.candidate`` against ``settings.active``; nothing is stored yet.

    A candidate that no pod would load is rejected unmeasured: that, too, is a verdict about it.

    Raises: :class:`RuntimeFault` when it could not measure.
    """
    lineage = registry.lineage()
    if lineage is None:
        raise MeasurementError("there is no lineage in the store: the trainer creates it")
    versions = {Arm.ACTIVE: settings.active, Arm.CANDIDATE: settings.candidate}
    task = Task(
        settings,
        plan_of(settings),
        registry,
        lineage,
        {arm: registry.registration(version) for arm, version in versions.items()},
        started=datetime.now(UTC),
        deadline=time.monotonic() + settings.validation.timeout_seconds - FINISH_SECONDS,
    )
    try:
        candidate = fetch_draft(registry, task.registered[Arm.CANDIDATE], lineage, place.scratch / "candidate")
    except DraftRefused as refusal:
        where = environment(settings, await asyncio.to_thread(detect_machine, settings.device))
        return task.outcome(where, refused(str(refusal)))
    plan = task.plan
    prompts = held_out_prompts(registry, lineage.number, wanted=plan.prompts_wanted, needed=plan.prompts_needed)
    if settings.replica is not None:
        token = (place.keys / AGENT_TOKEN).read_text().strip()
        return await _on_replica(task, prompts, settings.replica, token)
    return await _on_own_engines(task, prompts, candidate, place.scratch)


async def _on_own_engines(task: Task, prompts: tuple[Prompt, ...], candidate: FetchedDraft, scratch: Path) -> Outcome:
    """All engines side by side; off's and NGRAM's only where no baseline stands for them."""
    settings, plan, active = task.settings, task.plan, task.registered[Arm.ACTIVE]
    try:
        serving = fetch_draft(task.registry, active, task.lineage, scratch / "active")
    except DraftRefused as refusal:
        raise MeasurementError(f"the active version {active.version} cannot be loaded: {refusal}") from refusal
    on = await asyncio.to_thread(detect_machine, settings.device)
    where = environment(settings, on)
    baseline = task.baseline(where)
    spec = EngineSpec(
        model=settings.target.model,
        revision=settings.target.revision,
        dtype=settings.target.dtype.value,
        device=on.device,
        kv_tokens=kv_tokens(prompts, plan, settings.validation.max_new_tokens),
        extra_args=tuple(settings.extra_args),
    )
    engines = Engines(
        servers=EngineSet(spec, scratch),
        drafts={Arm.ACTIVE: serving, Arm.CANDIDATE: candidate},
        draft_spec=settings.draft,
        apart=() if baseline else plan.apart,
        warm_prompt=prompts[-1].tokens,
        max_new_tokens=settings.validation.max_new_tokens,
        deadline=task.deadline,
    )
    async with engines:
        measurement = await measure(engines, prompts, plan, deadline=task.deadline, baseline=baseline)
    fresh = () if baseline else tuple(measurement.samples)
    return task.outcome(where, measurement, prompts, baseline, fresh)


async def _on_replica(task: Task, prompts: tuple[Prompt, ...], place: Replica, token: str) -> Outcome:
    """One engine, so one kind of speculation after the other: first those of the baseline, unless one is kept."""
    settings, plan = task.settings, task.plan
    replica = ReplicaEngine(
        replica=place,
        token=token,
        settings=settings,
        drafts=task.registered,
        warm_up_prompt=prompts[-1].tokens,
        deadline=task.deadline,
    )
    async with replica:
        where = environment(settings, replica.machine)
        baseline, known, fresh = task.baseline(where), None, tuple[Sample, ...]()
        if baseline is None:
            samples, known = await measure_apart(replica, prompts, plan, deadline=task.deadline)
            fresh = tuple(samples)
            baseline = used(settings, task.lineage.number, fresh, task.started)
        measurement = await measure(replica, prompts, plan, deadline=task.deadline, baseline=baseline, known=known)
        await replica.confirm_lease()
    return task.outcome(where, measurement, prompts, baseline, fresh)
