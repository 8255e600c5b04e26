"""Builds the environment of a measurement, and the evidence record that holds both.

Invariant: a figure is never stored without its environment. A measurement on a CPU says so.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime

from aurora_api.v1alpha1.draft import LookupScope, Shape
from aurora_protocol.agent_api import Machine
from aurora_protocol.evidence_records import Environment, Evidence
from aurora_protocol.pod_settings import ValidationSettings
from aurora_runtime.validation.attempt import Attempt
from aurora_runtime.validation.rounds.measure import Measurement


def measurement_environment(settings: ValidationSettings, machine: Machine) -> Environment:
    """The machine, the engine and the settings that decide speed."""
    return Environment(
        **machine.model_dump(),
        dtype=settings.target.dtype.value,
        draft_steps=settings.draft.steps,
        draft_tokens=settings.draft.tokens_per_round,
        draft_shape=Shape.ADAPTIVE if settings.draft.adaptive else Shape.FIXED,
        lookup=_measured_lookup(settings),
        image=settings.image,
        load_average=0.0 if settings.replica else round(os.getloadavg()[0], 2),
    )


def _measured_lookup(settings: ValidationSettings) -> LookupScope:
    """Where the measured engine looks. That of a Job never looks in other requests, as a candidate would find there
    what the active draft answered."""
    if not settings.draft.adaptive:
        return LookupScope.OFF
    looks_in_others = settings.draft.lookup is LookupScope.SPECULATOR
    return LookupScope.REQUEST if looks_in_others and not settings.replica else settings.draft.lookup


def build_evidence(attempt: Attempt, environment: Environment, measurement: Measurement) -> Evidence:
    """The evidence of a finished measurement, with the verdict after the last round."""
    return Evidence(
        version=attempt.settings.candidate,
        attempt=attempt.settings.attempt,
        lineage=attempt.candidate.lineage,
        candidate_digest=attempt.candidate.digest,
        active_version=attempt.active.version,
        active_digest=attempt.active.digest,
        samples=tuple(measurement.samples),
        baseline=measurement.baseline.samples,
        equality=measurement.equalities(),
        acceptance_length=measurement.acceptance_length(),
        environment=environment,
        verdict=measurement.verdicts[-1],
        end=measurement.end.kind,
        end_message=measurement.end.message,
        started=attempt.started,
        finished=datetime.now(UTC),
    )
