"""One measurement from its settings to its evidence: fetch drafts and prompts, run engines, judge.

Invariant: the plan, the prompts and the gate are the same on the Job's own engines and on a lent replica.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from aurora_api.v1alpha1.serving import Device
from aurora_protocol.draft_records import Lineage, Registration
from aurora_protocol.errors import ProtocolError
from aurora_protocol.evidence_records import Arm, Evidence
from aurora_protocol.pod_settings import AGENT_TOKEN, Replica, ValidationSettings
from aurora_runtime.engine.machine import detect_machine
from aurora_runtime.engine.server_process import EngineSpec
from aurora_runtime.errors import DraftRefused, MeasurementError
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.store_thread import call_in_thread
from aurora_runtime.validation.attempt import Attempt
from aurora_runtime.validation.context_room import DRAFT_ROOM_TOKENS, longest_prompt
from aurora_runtime.validation.draft_fetch import FetchedDraft, fetch_draft
from aurora_runtime.validation.engines.engine_set import EngineSet
from aurora_runtime.validation.engines.job_engines import JobEngines
from aurora_runtime.validation.engines.replica_engine import ReplicaEngine
from aurora_runtime.validation.engines.warm_up import WarmUp
from aurora_runtime.validation.evidence_builder import build_evidence, measurement_environment
from aurora_runtime.validation.held_out_prompts import FEW_SHARDS, MAX_SHARDS, Prompt, held_out_prompts
from aurora_runtime.validation.rounds.measure import measure, measure_baseline, rejected_unmeasured
from aurora_runtime.validation.rounds.measurement_plan import MeasurementPlan, measurement_plan
from aurora_runtime.validation.rounds.round_runner import RoundRunner
from aurora_runtime.validation.store_retry import repeat_while_away
from aurora_store.deadline import is_interrupted, total_deadline
from aurora_store.errors import StoreError

log = logging.getLogger(__name__)

MIN_KV_CACHE_TOKENS = 8192


@dataclass(frozen=True)
class Workspace:
    """Folders of this process: scratch space for drafts and logs, and the folder with the keys."""

    scratch: Path
    keys: Path


@dataclass(frozen=True)
class ValidationRun:
    """One attempt, with the store and the time limit. ``deadline`` is on :func:`time.monotonic`, in seconds."""

    attempt: Attempt
    registry: PodRegistry
    lineage: Lineage
    deadline: float

    @classmethod
    def open(cls, settings: ValidationSettings, registry: PodRegistry, deadline: float) -> Self:
        """Read what the store holds about the two versions.

        Raises :class:`MeasurementError` when there is no lineage yet, and :class:`StoreError` or
        :class:`ProtocolError`.
        """
        lineage = registry.lineage()
        if lineage is None:
            raise MeasurementError("there is no lineage in the store: wait until the trainer has created one")
        drafts = {
            Arm.ACTIVE: registry.registration(settings.active),
            Arm.CANDIDATE: registry.registration(settings.candidate),
        }
        attempt = Attempt(settings, measurement_plan(settings), drafts, started=datetime.now(UTC))
        return cls(attempt, registry, lineage, deadline)

    @property
    def settings(self) -> ValidationSettings:
        """The settings of the attempt."""
        return self.attempt.settings

    @property
    def plan(self) -> MeasurementPlan:
        """The plan of the attempt."""
        return self.attempt.plan

    def fetch_draft(self, registration: Registration, folder: Path) -> FetchedDraft:
        """Download a version into ``folder`` before the deadline. Raises as :func:`fetch_draft` does."""
        with total_deadline(self.deadline - time.monotonic()):
            return repeat_while_away(
                f"fetching version {registration.version}",
                lambda: fetch_draft(self.registry, registration, self.lineage, folder),
            )

    def choose_prompts(self) -> tuple[Prompt, ...]:
        """The held-out prompts of the plan, read before the deadline. Raises as :func:`held_out_prompts` does."""
        settings = self.settings
        longest = longest_prompt(
            self.lineage.draft_sizes, settings.draft, settings.validation.max_new_tokens, settings.extra_args
        )
        with total_deadline(self.deadline - time.monotonic()):
            return held_out_prompts(
                self.registry,
                self.lineage.number,
                vocab_size=self.lineage.target.vocab_size,
                wanted=self.plan.prompts_wanted,
                needed=self.plan.prompts_needed,
                longest=longest,
                max_shards=MAX_SHARDS if settings.replica is None else FEW_SHARDS,
            )

    def warm_up(self, prompts: Sequence[Prompt]) -> WarmUp:
        """The warm-up of the engines on ``prompts``."""
        settings = self.settings
        texts = [prompt.tokens for prompt in prompts]
        concurrencies = self.plan.policy.concurrencies
        return WarmUp.of(texts, settings.draft, settings.validation.max_new_tokens, concurrencies)

    async def newer_version(self) -> int | None:
        """A version of the lineage that was registered after the candidate, which gives way to it while undecided."""
        try:
            return await call_in_thread(self._newest_after_candidate)
        except (StoreError, ProtocolError) as error:
            log.warning("newer versions are not known: %s", error)
            return None

    def _newest_after_candidate(self) -> int | None:
        candidate, newest = self.attempt.candidate, self.registry.last_version()
        if newest is None or newest <= candidate.version:
            return None
        channel = self.registry.channel()
        refused = channel is not None and newest in channel.rejected
        return None if refused or self.registry.registration(newest).lineage != candidate.lineage else newest


async def validate(settings: ValidationSettings, registry: PodRegistry, workspace: Workspace) -> Evidence:
    """Measure ``settings.candidate`` against ``settings.active``. Stores nothing.

    The measurement ends by itself once ``validation.timeoutSeconds`` are over. Its Job ends later
    (``job_deadline_seconds``), so the rounds until then are not lost.

    A candidate that no pod would load is rejected without a measurement. All calls of the store run in threads, so that
    a signal ends them, and so that the lease of a replica is renewed meanwhile.

    Raises :class:`RuntimeFault`, :class:`StoreError` or :class:`ProtocolError` when it could not measure.
    """
    deadline = time.monotonic() + settings.validation.timeout_seconds
    run = await call_in_thread(
        lambda: repeat_while_away("reading the versions", lambda: ValidationRun.open(settings, registry, deadline))
    )
    folder = workspace.scratch / "candidate"
    try:
        candidate = await call_in_thread(lambda: run.fetch_draft(run.attempt.candidate, folder))
    except DraftRefused as refusal:
        # A Job for a replica has no GPU of its own, and nothing was measured.
        device = Device.CPU if settings.replica else settings.device
        this_machine = await call_in_thread(lambda: detect_machine(device, is_interrupted))
        environment = measurement_environment(settings, this_machine)
        return build_evidence(run.attempt, environment, rejected_unmeasured(str(refusal)))
    prompts = await call_in_thread(run.choose_prompts)
    if settings.replica is not None:
        token = (workspace.keys / AGENT_TOKEN).read_text().strip()
        return await _measure_on_replica(run, prompts, settings.replica, token)
    return await _measure_on_job_engines(run, prompts, candidate, workspace.scratch)


async def _measure_on_job_engines(
    run: ValidationRun, prompts: tuple[Prompt, ...], candidate: FetchedDraft, scratch: Path
) -> Evidence:
    """Start all engines side by side, so that every arm shares the rounds."""
    settings, plan, active = run.settings, run.plan, run.attempt.active
    try:
        active_draft = await call_in_thread(lambda: run.fetch_draft(active, scratch / "active"))
    except DraftRefused as refusal:
        raise MeasurementError(f"the active version {active.version} cannot be loaded: {refusal}") from refusal
    this_machine = await call_in_thread(lambda: detect_machine(settings.device, is_interrupted))
    environment = measurement_environment(settings, this_machine)
    spec = EngineSpec(
        model=settings.target.model,
        revision=settings.target.revision,
        dtype=settings.target.dtype.value,
        device=this_machine.device,
        kv_tokens=kv_cache_tokens(prompts, plan, settings.validation.max_new_tokens),
        extra_args=tuple(settings.extra_args),
        max_running_requests=settings.max_running_requests,
    )
    engines = JobEngines(
        engines=EngineSet(spec, scratch),
        drafts={Arm.ACTIVE: active_draft, Arm.CANDIDATE: candidate},
        draft_spec=settings.draft,
        baseline_arms=plan.baseline_arms,
        warm_up=run.warm_up(prompts),
        max_new_tokens=settings.validation.max_new_tokens,
        deadline=run.deadline,
    )
    async with engines:
        runner = RoundRunner(engines, prompts, plan, run.deadline)
        measurement = await measure(runner, newer_version=run.newer_version)
    return build_evidence(run.attempt, environment, measurement)


async def _measure_on_replica(
    run: ValidationRun, prompts: tuple[Prompt, ...], replica: Replica, token: str
) -> Evidence:
    """Measure on the single engine of a replica: first off and NGRAM, and then the drafts."""
    engine = ReplicaEngine(
        replica=replica,
        token=token,
        settings=run.settings,
        drafts=dict(run.attempt.drafts),
        warm_up=run.warm_up(prompts),
        deadline=run.deadline,
    )
    async with engine:
        environment = measurement_environment(run.settings, engine.machine)
        runner = RoundRunner(engine, prompts, run.plan, run.deadline)
        baseline = await measure_baseline(runner)
        measurement = await measure(runner, baseline=baseline, newer_version=run.newer_version)
        await engine.confirm_lease()
    return build_evidence(run.attempt, environment, measurement)


def kv_cache_tokens(prompts: Sequence[Prompt], plan: MeasurementPlan, max_new_tokens: int) -> int:
    """Size of a KV cache that holds the largest batch with its drafts, so that no request queues for memory."""
    longest = max(len(prompt.tokens) for prompt in prompts) + max_new_tokens + DRAFT_ROOM_TOKENS
    return max(MIN_KV_CACHE_TOKENS, 2 * longest * max(plan.policy.concurrencies))
