"""``spec.validation``: the gate that measures candidates."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from aurora_api.base import Model, Ratio
from aurora_api.v1alpha1.template import PodTemplate, rules


class Baseline(StrEnum):
    NGRAM = "NGRAM"


class MeasureOn(StrEnum):
    JOB = "Job"
    REPLICA = "Replica"


class ConcurrencyTolerance(Model):
    """What may be lost at one concurrency."""

    concurrency: int = Field(ge=1, le=1024)
    tolerance: Ratio = Field(description="Loss allowed there.")


class ValidationSpec(Model):
    """The gate: candidates are measured on the real engine, beside the replicas or on one of them."""

    concurrencies: list[Annotated[int, Field(ge=1, le=1024)]] = Field(
        default_factory=lambda: [1, 4],
        min_length=1,
        max_length=8,
        description="The first is the primary: there an improvement must show.",
    )
    min_improvement: Ratio = Field(default="0.05", description="Candidate over active at the primary concurrency.")
    tolerance: Ratio = Field(default="0.05", description="Loss allowed at the other concurrencies.")
    tolerances: list[ConcurrencyTolerance] | None = Field(
        default=None,
        max_length=7,
        description="…and where one of them is allowed another.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["concurrency"]},
    )
    min_rounds: int = Field(default=5, ge=3, le=100)
    max_rounds: int = Field(default=12, ge=3, le=1000)
    prompts_per_round: int = Field(default=4, ge=1, le=1024, description="Held-out prompts per arm, round and worker.")
    max_new_tokens: int = Field(default=128, ge=1, le=8192)
    baselines: list[Baseline] = Field(
        default_factory=list,
        max_length=1,
        description="Peers reported beside the gate. NGRAM begins every batch with an empty corpus here, because caches"
        " are emptied in between: where traffic repeats itself it does better in service.",
    )
    baseline_max_age_seconds: int = Field(
        default=86400,
        ge=0,
        le=31536000,
        description="How long a measurement without speculation, and of peers, may serve later candidates; 0: never.",
    )
    where: MeasureOn = Field(
        default=MeasureOn.JOB,
        description="Job: in an extra pod shaped like an inference pod. "
        "Replica: on one of at least two replicas, which leaves the Service meanwhile.",
    )
    timeout_seconds: int = Field(default=3600, ge=60, le=86400)
    template: PodTemplate = Field(default_factory=PodTemplate)

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            ("self.minRounds <= self.maxRounds", "minRounds must not exceed maxRounds"),
            ("self.concurrencies.all(c, self.concurrencies.exists_one(d, d == c))", "concurrencies must be distinct"),
            ("double(self.tolerance) < 1.0", "tolerance is a share below 1"),
            (
                "!has(self.tolerances) || self.tolerances.all(t, double(t.tolerance) < 1.0)",
                "tolerances are shares below 1",
            ),
            (
                "!has(self.tolerances) || self.tolerances.all(t, self.concurrencies.exists(c, c == t.concurrency)"
                " && t.concurrency != self.concurrencies[0])",
                "tolerances are for declared concurrencies but the first, where an improvement must show",
            ),
        )
    }
