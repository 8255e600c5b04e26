"""``spec.validation``: the gate that measures each candidate on the real engine."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from aurora_api.base import Model, Ratio
from aurora_api.v1alpha1.cel import rules
from aurora_api.v1alpha1.template import PodTemplate, template_field

START_ALLOWANCE_SECONDS: Final = 600
"""Time of a measurement's Job until its validator runs: for a place, perhaps on a new node, for the pull of the image
and for the imports."""
FINISH_RESERVE_SECONDS: Final = 420
"""Time of the Job after the measurement: for the last batch, to stop two engines or to give a replica back, and for a
write to a slow store, which first looks who owns the root."""


MIN_ROUNDS: Final = 5
"""Fewest rounds of a measurement before a candidate passes or fails by its speed."""
MAX_ROUNDS: Final = 96
"""Rounds after which an undecided measurement ends as inconclusive."""
PROMPTS_PER_ROUND: Final = 1
"""Held-out prompts that each arm answers in a round, for each concurrent request: 16 at concurrency 16."""
PROMPTS_NEEDED: Final = 4
"""Distinct held-out prompts that a measurement needs, for each concurrent request."""


class Baseline(StrEnum):
    """Speculation without a draft model, measured beside the drafts for comparison."""

    NGRAM = "NGRAM"


class MeasureOn(StrEnum):
    """The engines on which a candidate is measured."""

    JOB = "Job"
    REPLICA = "Replica"


class ValidationSpec(Model):
    """The gate: how a candidate is measured on the real engine, and how much better it must be."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            ("double(self.tolerance) < 1.0", "tolerance is a share below 1"),
            (
                "self.measureOn != 'Replica' || !has(self.baselines) || self.baselines.size() == 0",
                "baselines need an engine of their own: set measureOn: Job, or leave baselines out",
            ),
        )
    }

    concurrencies: list[Annotated[int, Field(ge=1, le=1024)]] = Field(
        default_factory=lambda: [1, 4],
        min_length=1,
        max_length=8,
        description="Numbers of requests in flight at which throughput is measured, the most important one first: there"
        " a candidate must gain `minImprovement`. Choose the usual load of one pod, then its peak and a quiet pod.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"}
        | rules(("self.all(c, self.exists_one(d, d == c))", "concurrencies must differ")),
    )
    min_improvement: Ratio = Field(
        default="0.05",
        description="Gain in throughput over the active draft that a candidate must show at the first concurrency:"
        ' "0.05" is 5 %. The lower end of the 95 % interval must reach it. Raise it to roll out fewer candidates.',
    )
    tolerance: Ratio = Field(
        default="0.05",
        description="Share of throughput that a candidate may lose against the active draft at the other concurrencies:"
        ' "0.05" is 5 %. The whole 95 % interval must lie within it. No tolerance lowers the bars against no'
        " speculation: 1 at the first concurrency, and 0.98 at the others. Lower it where no concurrency may lose.",
    )
    max_new_tokens: int = Field(
        default=128,
        ge=1,
        le=8192,
        description="Longest answer in a measurement, in tokens. Choose the usual length of your answers.",
    )
    baselines: list[Baseline] = Field(
        default_factory=list,
        max_length=1,
        description="Speculation without a draft model that is measured beside the drafts, for comparison only: NGRAM,"
        " which needs an engine of its own and so `measureOn: Job`. Unset: none.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    measure_on: MeasureOn = Field(
        default=MeasureOn.JOB,
        description="`Job` measures in an extra pod shaped like an inference pod. `Replica` takes one replica out of"
        " the Service, measures on it and returns it: choose it where no machine is to spare. It needs two replicas,"
        " the draft shape `Adaptive` and no `baselines`.",
    )
    timeout_seconds: int = Field(
        default=3600,
        ge=60,
        le=86400,
        description="Seconds that a measurement may take once its validator runs, the start of the engines included."
        " Then the finished rounds decide. The Job may take"
        f" {START_ALLOWANCE_SECONDS + FINISH_RESERVE_SECONDS} seconds longer. Raise it for targets that load slowly.",
    )
    template: PodTemplate = template_field(
        "the validation pod",
        ["validator"],
        note="Its Job ends when all containers have ended: add a sidecar as an init container that restarts always.",
    )

    @property
    def job_deadline_seconds(self) -> int:
        """Seconds after its start at which Kubernetes ends the Job of a measurement.

        The validator ends by itself before, if its pod runs within 600 s and is not replaced. Otherwise Kubernetes may
        end the Job first, and its rounds are lost.
        """
        return START_ALLOWANCE_SECONDS + self.timeout_seconds + FINISH_RESERVE_SECONDS

    @property
    def prompts_needed(self) -> int:
        """Distinct held-out prompts without which nothing is measured: few prompts would pass or reject by chance."""
        return PROMPTS_NEEDED * max(self.concurrencies)

    @property
    def primary_concurrency(self) -> int:
        """The concurrency at which a candidate must gain."""
        return self.concurrencies[0]
