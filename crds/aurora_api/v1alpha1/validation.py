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
"""Time of the Job after the measurement: to stop three engines or to give a replica back, and for two writes to a slow
store, each of which first looks who owns the root."""


class Baseline(StrEnum):
    """Speculation without a draft model, measured beside the drafts for comparison."""

    NGRAM = "NGRAM"


class MeasureOn(StrEnum):
    """The engines on which a candidate is measured."""

    JOB = "Job"
    REPLICA = "Replica"


class ConcurrencyTolerance(Model):
    """The tolerance at one concurrency."""

    concurrency: int = Field(ge=1, le=1024, description="One of `validation.concurrencies`, not the primary one.")
    tolerance: Ratio = Field(
        description=('Share of throughput that may be lost at this concurrency, as in `default`: "0.02" is 2 %.')
    )


class Tolerance(Model):
    """Share of throughput that a candidate may lose against the active draft, except at the primary concurrency.

    No tolerance lowers the bars against no speculation: 1 at the primary concurrency, and 0.98 at the others.
    """

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            ("double(self.default) < 1.0", "tolerance.default is a share below 1"),
            (
                "!has(self.perConcurrency) || self.perConcurrency.all(t, double(t.tolerance) < 1.0)",
                "tolerance.perConcurrency: a tolerance is a share below 1",
            ),
        )
    }

    default: Ratio = Field(
        default="0.05",
        description=(
            'Tolerance where `perConcurrency` names no other: "0.05" is 5 %. The whole 95 % interval must lie'
            " within the tolerance, so a draft whose true loss equals it nearly always fails. Lower it where no"
            " concurrency may lose."
        ),
    )
    per_concurrency: list[ConcurrencyTolerance] | None = Field(
        default=None,
        max_length=7,
        description="Tolerances that replace `default` at some concurrencies.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["concurrency"]},
    )

    def at(self, concurrency: int) -> float:
        """The share of throughput that may be lost at ``concurrency``."""
        replaced = {one.concurrency: one.tolerance for one in self.per_concurrency or ()}
        return float(replaced.get(concurrency, self.default))


class ValidationSpec(Model):
    """The gate: how a candidate is measured on the real engine, and how much better it must be."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            ("self.minRounds <= self.maxRounds", "minRounds must not exceed maxRounds"),
            (
                "self.maxRounds * size(self.concurrencies) <= 1000",
                "maxRounds times the number of concurrencies must not exceed 1000: the record of a measurement has at"
                " most 1 MiB",
            ),
            (
                "!has(self.primaryConcurrency) || self.primaryConcurrency in self.concurrencies",
                "primaryConcurrency must be one of concurrencies",
            ),
            (
                "!has(self.tolerance) || !has(self.tolerance.perConcurrency) || self.tolerance.perConcurrency.all(t,"
                " t.concurrency in self.concurrencies && (has(self.primaryConcurrency)"
                " ? t.concurrency != self.primaryConcurrency : self.concurrencies.exists(c, c < t.concurrency)))",
                "tolerance.perConcurrency is for declared concurrencies other than the primary one, where a candidate"
                " must improve",
            ),
        )
    }

    concurrencies: list[Annotated[int, Field(ge=1, le=1024)]] = Field(
        default_factory=lambda: [1, 4],
        min_length=1,
        max_length=8,
        description=(
            "Numbers of requests in flight at which throughput is measured. Choose what one pod sees: its usual"
            " load and its peak."
        ),
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    primary_concurrency: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description=(
            "The one of `concurrencies` at which a candidate must gain `minImprovement`, and be no slower than no"
            " speculation. At the others it must stay within `tolerance`, and reach 0.98 of the throughput without"
            " speculation. Unset: the lowest. Set it to the usual load of a pod."
        ),
    )
    min_improvement: Ratio = Field(
        default="0.05",
        description=(
            "Gain in throughput over the active draft that a candidate must show at the primary concurrency:"
            ' "0.05" is 5 %. The lower bound of the 95 % interval must reach it. Raise it to roll out fewer'
            " candidates; to measure fewer, raise `training.minGain`."
        ),
    )
    tolerance: Tolerance = Field(default_factory=Tolerance)
    min_rounds: int = Field(
        default=5,
        ge=3,
        le=100,
        description=(
            "Smallest number of measurement rounds before a candidate passes or fails by its speed. Raise it on"
            " noisy machines."
        ),
    )
    max_rounds: int = Field(
        default=24,
        ge=3,
        le=1000,
        description=(
            "Number of measurement rounds after which an undecided measurement ends as inconclusive. It ends earlier"
            " when the rounds that are left would hardly decide, or when a newer version waits. Raise it where"
            " intervals stay wide: the candidate's message then names the number of rounds that it needs."
        ),
    )
    prompts_per_round: int = Field(
        default=4,
        ge=1,
        le=1024,
        description=(
            "Held-out prompts that each draft and baseline answers in a round, times the concurrency: 4 at"
            " concurrency 16 is 64 prompts. More prompts make narrower intervals and longer rounds."
        ),
    )
    max_new_tokens: int = Field(
        default=128,
        ge=1,
        le=8192,
        description=("Longest answer in a measurement, in tokens. Choose the usual length of your answers."),
    )
    baselines: list[Baseline] = Field(
        default_factory=list,
        max_length=1,
        description=(
            "Kinds of speculation that need no draft model, measured beside the drafts for comparison only. NGRAM, the"
            " only one, proposes tokens from earlier answers. It verifies 12 tokens of each request in a round, which"
            " is SGLang's default. Under load fewer tokens can be faster. A measurement underrates it for repetitive"
            " traffic, because each batch starts without earlier answers. Unset: none."
        ),
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    baseline_max_age_seconds: int = Field(
        default=86400,
        ge=0,
        le=31536000,
        description=(
            "Seconds for which the measurements of plain decoding and of `baselines` are reused for later candidates,"
            " on the same machine and settings. 0 measures anew each time."
        ),
    )
    measure_on: MeasureOn = Field(
        default=MeasureOn.JOB,
        description=(
            "`Job` measures in an extra pod shaped like an inference pod. `Replica` takes one replica out of the"
            " Service, measures on it and returns it: choose it where no machine is to spare. It needs"
            " `serving.replicas` of at least 2, and candidates wait otherwise."
        ),
    )
    timeout_seconds: int = Field(
        default=3600,
        ge=60,
        le=86400,
        description=(
            "Seconds that a measurement may take once its validator runs: to start the engines, and for its rounds."
            " After that time the finished rounds decide. If no round finished, the measurement is repeated later. The"
            f" Job may take {START_ALLOWANCE_SECONDS + FINISH_RESERVE_SECONDS} seconds longer, to start its pod and to"
            " store the result. Raise it for targets that load slowly."
        ),
    )
    template: PodTemplate = template_field("the validation pod", ["validator"])

    @property
    def job_deadline_seconds(self) -> int:
        """Seconds after its start at which Kubernetes ends the Job of a measurement.

        The validator ends by itself before, if its pod runs within 600 s and is not replaced. Otherwise Kubernetes may
        end the Job first, and its rounds are lost.
        """
        return START_ALLOWANCE_SECONDS + self.timeout_seconds + FINISH_RESERVE_SECONDS

    @property
    def prompts_needed(self) -> int:
        """Distinct held-out prompts without which nothing is measured: a batch would hold a prompt twice."""
        return self.prompts_per_round * max(self.concurrencies)

    @property
    def concurrencies_primary_first(self) -> tuple[int, ...]:
        """The declared concurrencies, the primary one first and the others in ascending order."""
        primary = min(self.concurrencies) if self.primary_concurrency is None else self.primary_concurrency
        return (primary, *sorted(set(self.concurrencies) - {primary}))
