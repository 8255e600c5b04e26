"""Where a measurement was taken, and the record that keeps it.

Invariant: a figure is never without its environment; what was measured on a CPU says so.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime

from aurora_protocol.agent_api import Machine
from aurora_protocol.draft_records import Registration
from aurora_protocol.evidence_records import BaselineSamples, Environment, Evidence
from aurora_protocol.pod_settings import ValidationSettings
from aurora_runtime.validation.measure import Measurement


def environment(settings: ValidationSettings, where: Machine) -> Environment:
    """The machine, the engine and the draft's shape."""
    return Environment(
        hardware=where.hardware,
        device=where.device,
        engine=where.engine,
        torch=where.torch,
        dtype=settings.target.dtype.value,
        draft_steps=settings.draft.steps,
        draft_topk=settings.draft.branching,
        draft_tokens=settings.draft.tokens_per_round,
        image=settings.image,
        pod_digest=settings.pod_digest,
        load_average=0.0 if settings.replica else round(os.getloadavg()[0], 2),
    )


def build(
    settings: ValidationSettings,
    measurement: Measurement,
    *,
    candidate: Registration,
    active: Registration,
    where: Environment,
    prompts_sha256: str,
    started: datetime,
    baseline: BaselineSamples | None = None,
) -> Evidence:
    """The evidence record of a finished measurement; its verdict is the last round's."""
    return Evidence(
        version=settings.candidate,
        attempt=settings.attempt,
        lineage=candidate.lineage,
        candidate_digest=candidate.digest,
        active_version=active.version,
        active_digest=active.digest,
        samples=tuple(measurement.samples),
        baseline=baseline,
        equality=measurement.equalities(),
        acceptance_length=measurement.acceptance_length(),
        environment=where,
        prompts_sha256=prompts_sha256,
        verdict=measurement.verdicts[-1],
        started=started,
        finished=datetime.now(UTC),
    )
