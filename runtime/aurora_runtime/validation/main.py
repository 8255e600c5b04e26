"""The validation Job: reads its settings, measures a candidate, and stores the evidence.

Exit status 0: evidence was written, whatever the verdict. Exit status 1: the Job could not measure, and one log line
says why. Exit status ``EXIT_INTERRUPTED``: the pod was told to end. Its Job, unless deleted, measures in another pod.

Invariants: the plan, the prompts, the engine's client and the gate are the same on the Job's own engine and on a lent
replica. No figure is stored without its environment. A measurement on a CPU says so.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
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
from aurora_protocol.pod_settings import (
    AGENT_TOKEN,
    EXIT_INTERRUPTED,
    KEYS_FOLDER,
    SIGNING_FOLDER,
    ValidationSettings,
)
from aurora_protocol.signatures import KeyName, keys_in
from aurora_runtime.engine.machine import detect_machine
from aurora_runtime.engine.server_process import EngineSpec
from aurora_runtime.errors import DraftRefused, MeasurementError, RuntimeFault
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.store_thread import call_in_thread
from aurora_runtime.termination_message import write_termination_message
from aurora_runtime.validation.job_engine import JobEngine
from aurora_runtime.validation.lent_replica import LentReplica
from aurora_runtime.validation.measured_engine import HELD_OFF, MeasuredEngine
from aurora_runtime.validation.rounds import Measurement, MeasurementPlan, RoundRunner, measure
from aurora_runtime.validation.store_reads import FetchedDraft, Traffic, fetch_draft, read_traffic
from aurora_store import FencedObjectStore, StoreConfig
from aurora_store.deadline import total_deadline
from aurora_store.errors import ObjectExists, StoreError

log = logging.getLogger(__name__)

STORE_SECONDS: Final = 60.0
"""Time to store the result, of the Job's ``FINISH_RESERVE_SECONDS``. The last batch and the engines end in the rest."""
MIN_KV_CACHE_TOKENS: Final = 8192
DRAFT_ROOM_TOKENS: Final = 64
"""Room for the draft tokens of a request. No round of a chain, of a lookup or of SGLang's verification is wider."""


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

    async def fetch_draft(self, arm: Arm, scratch: Path) -> FetchedDraft:
        """Download a draft. Raises as :func:`~store_reads.fetch_draft` does."""
        return await call_in_thread(lambda: fetch_draft(self.registry, self.drafts[arm], self.lineage, scratch / arm))

    async def read_traffic(self) -> Traffic:
        """The recorded traffic for the plan. Raises as :func:`~store_reads.read_traffic` does."""
        vocab_size, plan = self.lineage.target.vocab_size, self.plan
        sizes = {"vocab_size": vocab_size, "wanted": plan.prompts_wanted, "needed": plan.prompts_needed}
        return await call_in_thread(lambda: read_traffic(self.registry, self.lineage.number, **sizes))

    async def newer_waits(self) -> bool:
        """Whether a newer version of the lineage waits to be measured, to which an undecided candidate gives way."""
        try:
            return await call_in_thread(self._newest_follows_candidate)
        except (StoreError, ProtocolError) as error:
            log.warning("newer versions are not known: %s", error)
            return False

    def _newest_follows_candidate(self) -> bool:
        candidate, newest, channel = self.settings.candidate, self.registry.last_version(), self.registry.channel()
        if newest is None or newest <= candidate or (channel is not None and newest in channel.rejected):
            return False
        return self.registry.registration(newest).lineage == self.lineage.number

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
            equality=(measurement.equality.record(),),
            acceptance_length=measurement.acceptance_length(),
            environment=measurement_environment(self.settings, machine),
            verdict=measurement.verdicts[-1],
            end=measurement.end,
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


async def validate(settings: ValidationSettings, registry: PodRegistry, scratch: Path, keys: Path) -> Evidence:
    """Measure ``settings.candidate`` against ``settings.active``. Stores nothing.

    No batch begins once ``validation.timeoutSeconds`` are over. The Job ends later (``job_deadline_seconds``), so the
    rounds until then are not lost.

    A candidate that no pod would load is rejected without a measurement. All calls of the store run in threads, so that
    a signal ends them, and so that the lease of a replica is renewed meanwhile.

    Args:
        scratch: folder for drafts and logs.
        keys: folder with the agents' token.

    Raises :class:`RuntimeFault`, :class:`StoreError` or :class:`ProtocolError` when it could not measure.
    """
    seconds = settings.validation.timeout_seconds
    deadline = time.monotonic() + seconds
    with total_deadline(seconds):
        run = await call_in_thread(lambda: ValidationRun.open(settings, registry, deadline))
        try:
            candidate = await run.fetch_draft(Arm.CANDIDATE, scratch)
        except DraftRefused as refusal:
            # A Job for a replica has no GPU of its own, and nothing was measured.
            device = Device.CPU if settings.replica else settings.device
            machine = await call_in_thread(lambda: detect_machine(device))
            return run.evidence(machine, Measurement.rejected_unmeasured(str(refusal)))
        traffic = await run.read_traffic()
        if settings.replica is None:
            engine = await _job_engine(run, traffic, candidate, scratch)
            async with engine.running():
                return await _measure(run, traffic, engine)
        replica = LentReplica(settings.replica, (keys / AGENT_TOKEN).read_text().strip(), run.drafts, deadline)
        async with replica.lent():
            return await _measure(run, traffic, replica)


async def _measure(run: ValidationRun, traffic: Traffic, host: JobEngine | LentReplica) -> Evidence:
    """Measure on the engine of ``host``, with the prompts that every arm answers.

    SGLang refuses a request whose prompt, longest answer and reserved tokens exceed the context length
    (sglang/srt/managers/tokenizer_manager.py:1335-1377). It reserves tokens only where a draft speculates. A longer
    prompt would therefore be answered without speculation, and fail with a draft.
    """
    draft, most_new_tokens = run.settings.draft, run.settings.validation.max_new_tokens
    context_length = await host.client(Arm.OFF, HELD_OFF).context_length()
    most_tokens = context_length - most_new_tokens - max(DRAFT_ROOM_TOKENS, draft.steps)
    traffic = traffic.within(most_tokens, needed=run.plan.prompts_needed)
    engine = MeasuredEngine(host, traffic.prompts[-1].tokens, most_new_tokens)
    # A replica's lookup knows the traffic that the replica served.
    if isinstance(host, JobEngine) and draft.adaptive and draft.lookup is LookupScope.SPECULATOR:
        await engine.fill_lookup(traffic.conversations)
    runner = RoundRunner(engine, traffic.prompts, run.plan, run.deadline)
    return run.evidence(host.machine, await measure(runner, newer_waits=run.newer_waits))


async def _job_engine(run: ValidationRun, traffic: Traffic, candidate: FetchedDraft, scratch: Path) -> JobEngine:
    """The engine of this Job, which is not started yet."""
    settings, active = run.settings, run.drafts[Arm.ACTIVE]
    try:
        active_draft = await run.fetch_draft(Arm.ACTIVE, scratch)
    except DraftRefused as refusal:
        raise MeasurementError(f"the active version {active.version} cannot be loaded: {refusal}") from refusal
    machine = await call_in_thread(lambda: detect_machine(settings.device))
    spec = EngineSpec(
        model=settings.target.model,
        revision=settings.target.revision,
        dtype=settings.target.dtype.value,
        device=machine.device,
        kv_tokens=kv_cache_tokens(traffic, run.plan, settings.validation.max_new_tokens),
        extra_args=tuple(settings.extra_args),
        max_running_requests=settings.max_running_requests,
    )
    drafts = {Arm.ACTIVE: active_draft, Arm.CANDIDATE: candidate}
    with_ngram = Arm.NGRAM in run.plan.arms
    return JobEngine(spec, scratch, drafts, settings.draft, with_ngram, machine, run.deadline)


def kv_cache_tokens(traffic: Traffic, plan: MeasurementPlan, max_new_tokens: int) -> int:
    """Size of a KV cache that holds the largest batch with its drafts, so that no request queues for memory."""
    longest = traffic.longest + max_new_tokens + DRAFT_ROOM_TOKENS
    return max(MIN_KV_CACHE_TOKENS, 2 * longest * max(plan.policy.concurrencies))


async def _validate_until_signal(settings: ValidationSettings, registry: PodRegistry, keys: Path) -> None:
    """Measure, and store the result. SIGTERM and SIGINT cancel both.

    So the engines stop, a replica is given back, and no pod that is being deleted waits for a store that is away.
    """

    async def measure_and_store() -> None:
        with tempfile.TemporaryDirectory(prefix="aurora-validation-") as scratch:
            evidence = await validate(settings, registry, Path(scratch), keys)
        await call_in_thread(lambda: _store(registry, evidence))

    task = asyncio.ensure_future(measure_and_store())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    await task


def _store(registry: PodRegistry, evidence: Evidence) -> None:
    """Store the evidence, in bounded time."""
    try:
        with total_deadline(STORE_SECONDS):
            key = registry.put_evidence(evidence)
    except ObjectExists:
        log.warning("another pod of this Job has already written the evidence of this attempt, which is kept")
        return
    log.info("verdict %s: %s", evidence.verdict.kind, "; ".join(evidence.verdict.reasons))
    log.info("evidence written to %s", key)


def _open_registry(settings: ValidationSettings, signing: Path) -> PodRegistry:
    """The store, with the key that signs evidence. Raises :class:`MeasurementError` when the key is missing."""
    keys = keys_in(signing)
    if KeyName.EVIDENCE not in keys:
        raise MeasurementError(f"{signing} has no {KeyName.EVIDENCE.value}, and unsigned evidence would not count")
    return PodRegistry(FencedObjectStore(StoreConfig.of(settings.store)), keys)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the Job."""
    parser = argparse.ArgumentParser(description="Measure one draft candidate of an AuroraSpeculator.")
    parser.add_argument("--keys", type=Path, default=Path(KEYS_FOLDER), help="folder with the agents' token")
    parser.add_argument(
        "--signing", type=Path, default=Path(SIGNING_FOLDER), help="folder with the key that signs evidence"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        settings = ValidationSettings.from_env()
        registry = _open_registry(settings, options.signing)
        asyncio.run(_validate_until_signal(settings, registry, options.keys))
    except (RuntimeFault, StoreError, ProtocolError) as error:
        log.error("could not measure: %s: %s", type(error).__name__, error)  # noqa: TRY400 - the message says it all
        write_termination_message(str(error))
        raise SystemExit(1) from None
    except asyncio.CancelledError:
        log.error("interrupted: the engines are stopped, no evidence was written")  # noqa: TRY400
        write_termination_message("interrupted before it could finish")
        raise SystemExit(EXIT_INTERRUPTED) from None
