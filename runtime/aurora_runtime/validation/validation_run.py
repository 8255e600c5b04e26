"""One measurement from its settings to its evidence: fetch drafts and prompts, run the engine, judge.

Invariants: the plan, the prompts, the engine's client and the gate are the same on the Job's own engine and on a lent
replica. No figure is stored without its environment. A measurement on a CPU says so.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from aurora_api.v1alpha1.draft import LookupScope, Shape
from aurora_api.v1alpha1.serving import Device
from aurora_protocol.agent_api import Machine
from aurora_protocol.draft_records import Lineage, Registration
from aurora_protocol.errors import ProtocolError
from aurora_protocol.evidence_records import Arm, Environment, Evidence
from aurora_protocol.pod_settings import AGENT_TOKEN, ValidationSettings
from aurora_runtime.engine.machine import detect_machine
from aurora_runtime.engine.server_process import EngineSpec
from aurora_runtime.errors import DraftRefused, MeasurementError
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.store_thread import call_in_thread
from aurora_runtime.validation.held_out_prompts import (
    DRAFT_ROOM_TOKENS,
    FEW_SHARDS,
    MAX_SHARDS,
    Prompt,
    held_out_prompts,
    longest_prompt,
    recorded_conversations,
)
from aurora_runtime.validation.job_engine import JobEngine
from aurora_runtime.validation.lent_replica import LentReplica
from aurora_runtime.validation.measured_engine import MeasuredEngine
from aurora_runtime.validation.rounds import Measurement, MeasurementPlan, RoundRunner, measure
from aurora_runtime.validation.store_reads import FetchedDraft, fetch_draft, repeat_while_away
from aurora_store.deadline import is_interrupted, total_deadline
from aurora_store.errors import StoreError

log = logging.getLogger(__name__)

MIN_KV_CACHE_TOKENS: Final = 8192


@dataclass(frozen=True)
class Workspace:
    """Folders of this process: scratch space for drafts and logs, and the folder with the keys."""

    scratch: Path
    keys: Path


@dataclass(frozen=True)
class ValidationRun:
    """One attempt: all that is known before the first round. ``deadline`` is on :func:`time.monotonic`, in seconds."""

    settings: ValidationSettings
    plan: MeasurementPlan
    drafts: Mapping[Arm, Registration]
    """The registrations of the active draft and of the candidate."""
    registry: PodRegistry
    lineage: Lineage
    deadline: float
    started: datetime

    @classmethod
    def open(cls, settings: ValidationSettings, registry: PodRegistry, deadline: float) -> Self:
        """Read what the store holds about the two versions.

        Raises :class:`MeasurementError` when there is no lineage yet, and :class:`StoreError` or
        :class:`ProtocolError`.
        """
        lineage = registry.lineage()
        if lineage is None:
            raise MeasurementError("there is no lineage in the store: wait until the trainer has created one")
        versions = {Arm.ACTIVE: settings.active, Arm.CANDIDATE: settings.candidate}
        drafts = {arm: registry.registration(version) for arm, version in versions.items()}
        return cls(settings, MeasurementPlan.of(settings), drafts, registry, lineage, deadline, datetime.now(UTC))

    def fetch_draft(self, arm: Arm, folder: Path) -> FetchedDraft:
        """Download a draft into ``folder`` before the deadline. Raises as :func:`fetch_draft` does."""
        registration = self.drafts[arm]
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

    def conversations(self, longest: int) -> tuple[tuple[int, ...], ...]:
        """The conversations with which lookup begins, each cut after ``longest`` tokens. Empty where it needs none."""
        if not self.settings.draft.adaptive or self.settings.draft.lookup is not LookupScope.SPECULATOR:
            return ()
        with total_deadline(self.deadline - time.monotonic()):
            return recorded_conversations(self.registry, self.lineage.number, longest)

    async def newer_version(self) -> int | None:
        """A version of the lineage that was registered after the candidate, which gives way to it while undecided."""
        try:
            return await call_in_thread(self._newest_after_candidate)
        except (StoreError, ProtocolError) as error:
            log.warning("newer versions are not known: %s", error)
            return None

    def _newest_after_candidate(self) -> int | None:
        candidate, newest = self.drafts[Arm.CANDIDATE], self.registry.last_version()
        if newest is None or newest <= candidate.version:
            return None
        channel = self.registry.channel()
        refused = channel is not None and newest in channel.rejected
        return None if refused or self.registry.registration(newest).lineage != candidate.lineage else newest

    def evidence(self, machine: Machine, measurement: Measurement) -> Evidence:
        """The evidence of a finished measurement, with the verdict after the last round."""
        active, candidate = self.drafts[Arm.ACTIVE], self.drafts[Arm.CANDIDATE]
        return Evidence(
            version=self.settings.candidate,
            attempt=self.settings.attempt,
            lineage=candidate.lineage,
            candidate_digest=candidate.digest,
            active_version=active.version,
            active_digest=active.digest,
            samples=tuple(measurement.samples),
            equality=measurement.equalities(),
            acceptance_length=measurement.acceptance_length(),
            environment=measurement_environment(self.settings, machine),
            verdict=measurement.verdicts[-1],
            end=measurement.end.kind,
            end_message=measurement.end.message,
            started=self.started,
            finished=datetime.now(UTC),
        )


def measurement_environment(settings: ValidationSettings, machine: Machine) -> Environment:
    """The machine, the engine and the settings that decide speed."""
    adaptive = settings.draft.adaptive
    return Environment(
        **machine.model_dump(),
        dtype=settings.target.dtype.value,
        draft_steps=settings.draft.steps,
        draft_tokens=settings.draft.tokens_per_round,
        draft_shape=Shape.ADAPTIVE if adaptive else Shape.FIXED,
        lookup=settings.draft.lookup if adaptive else LookupScope.OFF,
        image=settings.image,
        load_average=0.0 if settings.replica else round(os.getloadavg()[0], 2),
    )


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
        candidate = await call_in_thread(lambda: run.fetch_draft(Arm.CANDIDATE, folder))
    except DraftRefused as refusal:
        # A Job for a replica has no GPU of its own, and nothing was measured.
        device = Device.CPU if settings.replica else settings.device
        machine = await call_in_thread(lambda: detect_machine(device, is_interrupted))
        return run.evidence(machine, Measurement.rejected_unmeasured(str(refusal)))
    prompts = await call_in_thread(run.choose_prompts)
    host: JobEngine | LentReplica
    if settings.replica is not None:
        token = (workspace.keys / AGENT_TOKEN).read_text().strip()
        host = LentReplica(settings.replica, token, run.drafts, deadline)
    else:
        host = await _job_engine(run, prompts, candidate, workspace.scratch)
    async with host:
        return await _measure(run, prompts, host)


async def _measure(run: ValidationRun, prompts: Sequence[Prompt], host: JobEngine | LentReplica) -> Evidence:
    """Measure on the engine of ``host``."""
    engine = MeasuredEngine(
        host,
        [prompt.tokens for prompt in prompts],
        run.plan.policy.concurrencies,
        run.settings.validation.max_new_tokens,
        run.deadline,
        learns=run.settings.draft.adaptive,
    )
    if isinstance(host, JobEngine):  # a replica's lookup knows the traffic that the replica served
        longest = max(len(prompt.tokens) for prompt in prompts)
        await engine.fill_lookup(await call_in_thread(lambda: run.conversations(longest)))
    runner = RoundRunner(engine, prompts, run.plan, run.deadline)
    measurement = await measure(runner, newer_version=run.newer_version)
    await host.confirm_end()
    return run.evidence(host.machine, measurement)


async def _job_engine(
    run: ValidationRun, prompts: Sequence[Prompt], candidate: FetchedDraft, scratch: Path
) -> JobEngine:
    """The engine of this Job, which is not started yet."""
    settings, active = run.settings, run.drafts[Arm.ACTIVE]
    try:
        active_draft = await call_in_thread(lambda: run.fetch_draft(Arm.ACTIVE, scratch / "active"))
    except DraftRefused as refusal:
        raise MeasurementError(f"the active version {active.version} cannot be loaded: {refusal}") from refusal
    machine = await call_in_thread(lambda: detect_machine(settings.device, is_interrupted))
    spec = EngineSpec(
        model=settings.target.model,
        revision=settings.target.revision,
        dtype=settings.target.dtype.value,
        device=machine.device,
        kv_tokens=kv_cache_tokens(prompts, run.plan, settings.validation.max_new_tokens),
        extra_args=tuple(settings.extra_args),
        max_running_requests=settings.max_running_requests,
    )
    drafts = {Arm.ACTIVE: active_draft, Arm.CANDIDATE: candidate}
    with_ngram = Arm.NGRAM in run.plan.arms
    return JobEngine(spec, scratch, drafts, settings.draft, with_ngram, machine, run.deadline)


def kv_cache_tokens(prompts: Sequence[Prompt], plan: MeasurementPlan, max_new_tokens: int) -> int:
    """Size of a KV cache that holds the largest batch with its drafts, so that no request queues for memory."""
    longest = max(len(prompt.tokens) for prompt in prompts) + max_new_tokens + DRAFT_ROOM_TOKENS
    return max(MIN_KV_CACHE_TOKENS, 2 * longest * max(plan.policy.concurrencies))
