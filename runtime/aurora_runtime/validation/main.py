"""The validation Job: settings -> drafts and prompts from the store -> measurement -> evidence in the store.

Exit status 0 whatever the verdict: evidence was written. 1 when it could not measure, with one line that says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from aurora_api.errors import ContractError
from aurora_api.gate import GatePolicy
from aurora_api.pod import ValidationSettings
from aurora_api.records import Arm, Evidence, MeasuredBaseline
from aurora_api.speculator import Baseline
from aurora_runtime.engine.process import EngineSpec
from aurora_runtime.errors import DraftRefused, MeasurementError, ObjectExists, RuntimeFault
from aurora_runtime.store import ObjectStore, Registry, StoreConfig
from aurora_runtime.validation.baselines import Wanted, find, keep
from aurora_runtime.validation.drafts import fetch_draft
from aurora_runtime.validation.engines import Engines
from aurora_runtime.validation.equality import near_tie
from aurora_runtime.validation.evidence import build, choose_device, environment
from aurora_runtime.validation.measure import MeasurePlan, measure, refused
from aurora_runtime.validation.prompts import Prompt, digest, held_out_prompts

log = logging.getLogger(__name__)

FINISH_SECONDS = 30.0
"""Kept of the time limit for stopping the engines and writing the evidence."""
MIN_KV_TOKENS = 8192
TERMINATION_LOG = Path("/dev/termination-log")
"""Kubernetes mounts it into every container and shows its content in the pod's status."""


def plan_of(settings: ValidationSettings) -> MeasurePlan:
    """The measurement that the spec asks for."""
    asked = settings.validation
    policy = GatePolicy(
        concurrencies=tuple(asked.concurrencies),
        min_improvement=float(asked.min_improvement),
        tolerance=float(asked.tolerance),
        min_rounds=asked.min_rounds,
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


@dataclass(frozen=True)
class Outcome:
    """What a measurement leaves in the store."""

    evidence: Evidence
    baseline: MeasuredBaseline | None = None


async def run(settings: ValidationSettings, registry: Registry, folder: Path) -> Outcome:
    """Measure ``settings.candidate`` against ``settings.active``; nothing is stored yet.

    A candidate that no pod would load is rejected unmeasured: that, too, is a verdict about it.

    Args:
        folder: scratch space for two drafts and the engines' logs.

    Raises: :class:`RuntimeFault` when it could not measure.
    """
    started = datetime.now(UTC)
    deadline = time.monotonic() + settings.validation.timeout_seconds - FINISH_SECONDS
    plan = plan_of(settings)
    lineage = registry.lineage()
    if lineage is None:
        raise MeasurementError("there is no lineage in the store: the trainer creates it")
    active, candidate = registry.registration(settings.active), registry.registration(settings.candidate)
    device = choose_device(settings.device)
    where = environment(settings, device)
    record = partial(build, settings, candidate=candidate, active=active, where=where, started=started)
    try:
        drafts = {Arm.CANDIDATE: fetch_draft(registry, candidate, lineage, folder / Arm.CANDIDATE.value)}
    except DraftRefused as refusal:
        return Outcome(record(refused(str(refusal)), prompts_sha256=digest(())))
    try:
        drafts[Arm.ACTIVE] = fetch_draft(registry, active, lineage, folder / Arm.ACTIVE.value)
    except DraftRefused as refusal:
        raise MeasurementError(f"the active version {active.version} cannot be loaded: {refusal}") from refusal
    prompts = held_out_prompts(registry, lineage.number, wanted=plan.prompts_wanted, needed=plan.prompts_needed)
    baseline = find(registry, lineage.number, active, Wanted.of(settings, plan, where, started))
    spec = EngineSpec(
        model=settings.target.model,
        revision=settings.target.revision,
        dtype=settings.target.dtype.value,
        device=device,
        kv_tokens=kv_tokens(prompts, plan, settings.validation.max_new_tokens),
        extra_args=tuple(settings.extra_args),
    )
    engines = Engines(
        spec=spec,
        drafts=drafts,
        draft_spec=settings.draft,
        apart=() if baseline else plan.apart,
        warm_prompt=prompts[-1].tokens,
        max_new_tokens=settings.validation.max_new_tokens,
        folder=folder,
        deadline=deadline,
    )
    async with engines:
        measurement = await measure(engines, prompts, plan, deadline=deadline, baseline=baseline)
    left = None
    if baseline is None:
        registered = {Arm.ACTIVE: active, Arm.CANDIDATE: candidate}
        left = keep(settings, plan, where, measurement, measurement.samples, drafts=registered, created=started)
    return Outcome(record(measurement, prompts_sha256=digest(prompts), baseline=baseline), left)


async def _interruptible(settings: ValidationSettings, registry: Registry, folder: Path) -> Outcome:
    """:func:`run`, cancelled by SIGTERM and SIGINT, so that its engines are stopped."""
    task = asyncio.ensure_future(run(settings, registry, folder))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    return await task


def _leave_word(why: str) -> None:
    """Tell Kubernetes, and through it the operator, why nothing was measured; the first line only, the log has all."""
    if TERMINATION_LOG.exists():
        TERMINATION_LOG.write_text(why.partition("\n")[0][:1000])


def main() -> None:
    """Entry point of the Job."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        settings = ValidationSettings.from_env()
        registry = Registry(ObjectStore(StoreConfig.of(settings.store)))
        with tempfile.TemporaryDirectory(prefix="aurora-validation-") as scratch:
            outcome = asyncio.run(_interruptible(settings, registry, Path(scratch)))
        evidence = outcome.evidence
        if outcome.baseline is not None:  # first, so that evidence never names what is not there
            with contextlib.suppress(ObjectExists):
                log.info("baseline written to %s", registry.put_baseline(outcome.baseline))
        try:
            key = registry.put_evidence(evidence)
        except ObjectExists:
            log.warning("evidence of this attempt exists already: another pod of this Job was first; it stands")
            return
    except (RuntimeFault, ContractError) as error:
        log.error("could not measure: %s: %s", type(error).__name__, error)  # noqa: TRY400 - the message says it all
        _leave_word(str(error))
        raise SystemExit(1) from None
    except asyncio.CancelledError:
        log.error("interrupted: the engines are stopped, no evidence was written")  # noqa: TRY400
        _leave_word("interrupted before it could finish")
        raise SystemExit(1) from None
    log.info("verdict %s: %s", evidence.verdict.kind, "; ".join(evidence.verdict.reasons))
    log.info("evidence written to %s", key)
