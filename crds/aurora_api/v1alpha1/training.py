"""``spec.training``: how the trainer learns, when it offers a candidate, and how many traces it keeps.

Its worth, ``status.training.worth``, is here too, because ``training.suspendWhen`` is about it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field, field_validator

from aurora_api.base import MAX_QUANTITY, Model, Quantity, Ratio, RewrittenModel, Timestamp, capped, quantity_bytes
from aurora_api.v1alpha1.cel import at_most, rules
from aurora_api.v1alpha1.template import PodTemplate, template_field

MAX_UNROLL_STEPS: Final = 8
LEARNING_RATE_PATTERN: Final = r"^(0|[1-9][0-9]{0,3})(\.[0-9]{1,8})?$"
"""Finer than a ratio: wide targets need a rate below 0.0001."""
MAX_PUBLISH_TOKENS: Final = 1_000_000_000
MAX_PUBLISH_SECONDS: Final = 365 * 86400
MAX_TRACE_AGE_SECONDS: Final = 10 * 365 * 86400
TAG_HASH_PATTERN: Final = r"^[0-7][0-9a-f]{15}$"
NO_TAG_HASH: Final = "0" * 16
"""Stands for requests without a tag, so no tag has this hash."""


class SuspendWhen(Model):
    """When the operator suspends training because it is not worth its cost. Pods go on serving the active draft.

    The operator resumes training by itself: after `resumeAfterSeconds`, when another version became active, when live
    traffic accepts clearly fewer of the draft's tokens for an hour, or when the saving exceeds the cost again.
    """

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            (
                "has(self.candidatesWithoutGain) || self.savingBelowCost",
                "suspendWhen needs a reason to suspend: set candidatesWithoutGain, or savingBelowCost to true",
            ),
        )
    }

    candidates_without_gain: int | None = Field(
        default=None,
        ge=3,
        le=10000,
        description=(
            "Suspend training when `status.training.worth.withoutGain` reaches this number. It counts the trainer's"
            " comparisons in a row without an offer, and the candidates in a row that were measured or rolled out and"
            " did not become active. A draft that is offered ends the trainer's count. A measurement that gave way to a"
            " newer version does not count. Unset: drafts without a gain never suspend training."
        ),
    )
    saving_below_cost: bool = Field(
        default=False,
        description=(
            "Suspend training when `status.training.worth.savedSecondsPerDay` has been below"
            " `status.training.worth.costSecondsPerDay` for a day. It has no effect while one of the two is not known,"
            " or while the devices of trainer and inference pods do not have the same resource name. Do not set it"
            " where the trainer's GPU model differs from the engines'. The saving does not deduct what the plugin"
            " itself costs, so training may be suspended too late or not at all."
        ),
    )
    resume_after_seconds: int = Field(
        default=604800,
        ge=3600,
        le=7776000,
        description=(
            "Longest suspension in seconds. Training then resumes, and is suspended again only for new reasons. The"
            " default is a week."
        ),
    )


class SuspensionReason(StrEnum):
    NO_GAIN = "NoGain"
    SAVING_BELOW_COST = "SavingBelowCost"


class TrainingWorth(RewrittenModel):
    """The cost of training, the saving of speculation, and the operator's decision to suspend training."""

    cost_seconds_per_day: int | None = Field(
        default=None,
        description="Device-seconds per day that the trainer holds while it runs: its devices times 86400."
        " Measurements of candidates are not included. Unset: not known, because the trainer's template requests no"
        " devices, or names them by claims or another extended resource.",
    )
    saved_seconds_per_day: int | None = Field(
        default=None,
        description="Device-seconds per day that inference pods save by speculation, averaged over about the last day"
        " and rounded to two digits. The engines estimate it from the costs of their own verify rounds, lookup"
        " included, and compare with their own rounds without proposals. A pod that hardly proposed was 4 to 13 %"
        " slower than an engine without speculation (small model on a CPU), and this cost is not deducted. Unset: not"
        " known. A ready pod may have no estimate: its engine started less than 10 minutes ago, its rounds have a Fixed"
        " shape or a tree, or its agent is silent. Or the template requests no devices, or names them by claims or"
        " another extended resource.",
    )
    cost_device: str = Field(
        default="", description="The trainer's kind of device: a GPU's resource name, or cpu for a core."
    )
    saved_device: str = Field(default="", description="The inference pods' kind of device.")
    without_gain: int = Field(
        default=0,
        ge=0,
        description="Drafts without a gain: the trainer's comparisons in a row since its last offer or start, and the"
        " candidates in a row that failed since a version last became active.",
    )
    measured_without_gain: int = Field(
        default=0, ge=0, description="Those of `withoutGain` that were candidates: offered by the trainer."
    )
    suspended_for: SuspensionReason | None = Field(
        default=None,
        description="Why `training.suspendWhen` suspends training: NoGain or SavingBelowCost. Unset: it does not.",
    )
    since: Timestamp | None = Field(
        default=None,
        description="Since when `training.suspendWhen` suspends training, or lets it run.",
    )
    message: str = Field(default="", description="Why training was suspended or resumed, with the figures of then.")
    below_cost_since: Timestamp | None = Field(
        default=None,
        description="Start of the time in which the saving was below the cost. While a figure is unknown, the time"
        " neither starts nor ends. A restart of the operator begins the time anew.",
    )
    suspended_version: int | None = Field(
        default=None, ge=0, description="The version that was active when training was suspended."
    )
    acceptance: str | None = Field(
        default=None,
        description="Share of the draft's first proposed tokens that the target accepted when training was suspended,"
        " from 0 to 1, since the engines started, earlier drafts included."
        " Training resumes when recent traffic falls clearly below it.",
    )
    acceptance_fell_since: Timestamp | None = Field(
        default=None, description="Since when recent traffic is clearly below `acceptance`."
    )


class TrainingSpec(Model):
    """The trainer: how it learns, when it offers a candidate, and how many traces it keeps."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            (
                "!has(self.learningRate) || (double(self.learningRate) > 0.0 && double(self.learningRate) <= 0.1)",
                "learningRate is above 0 and at most 0.1",
            ),
            (
                "quantity(string(self.traceStorageLimit)).compareTo(quantity('2Gi')) >= 0",
                "traceStorageLimit is at least 2Gi",
            ),
            (
                at_most("traceStorageLimit", MAX_QUANTITY),
                "traceStorageLimit without a unit has at most 18 digits",
            ),
        )
    }

    suspended: bool = Field(
        default=False,
        description=(
            "Stop training and offer no new candidate. Pods go on serving the active draft. The trainer's pod stays,"
            " with its GPU, only to create the initial draft, and to delete old traces while pods may write new ones:"
            " it stops"
            ' when `serving.replicas` is 0 or `capture.sampleRatio` is "0". A candidate that was offered before is'
            " still measured and rolled out while `serving.replicas` is above 0: set `rollout.paused` to prevent the"
            " roll."
        ),
    )
    suspend_when: SuspendWhen | None = Field(
        default=None,
        description=(
            "Let the operator suspend training while it is not worth its cost. Unset: only `suspended` suspends"
            " training. Unset it to resume at once. `status.training.worth` shows the figures in any case."
        ),
    )
    learning_rate: Annotated[str, Field(pattern=LEARNING_RATE_PATTERN)] | None = Field(
        default=None,
        description=(
            "Step size of the optimizer (AdamW). It stays constant, because live traffic has no end. Unset: 0.001 for"
            " targets with a hidden size of up to 576, and less for wider ones in inverse proportion: 0.00014 at 4096."
            " Lower it if held-out acceptance falls or jumps."
        ),
    )
    replay: int = Field(
        default=3,
        ge=0,
        le=8,
        description=(
            "Batches of older examples trained beside each new batch. More replay needs less traffic for the same"
            " draft, and proportionally more computation. Lower it for a trainer that falls behind. 0 turns replay"
            " off."
        ),
    )
    passes: int = Field(
        default=16,
        ge=1,
        le=64,
        description=(
            "Largest average number of times that a traced position is trained, replay included. The trainer trains it"
            " 1 + `replay` times as traces arrive, and the rest while it is idle. Lower it to let the trainer's device"
            " rest sooner. It has no effect when `replay` is 0."
        ),
    )
    unroll_steps: int | None = Field(
        default=None,
        ge=1,
        le=MAX_UNROLL_STEPS,
        description="Draft steps that training unrolls (the training-time test of EAGLE-3). Unset: as many as"
        f" `draft.steps`, at most {MAX_UNROLL_STEPS}, which is best: a draft proposes worse tokens beyond the"
        " depth that it was trained for.",
    )
    publish_tokens: Annotated[int, capped(MAX_PUBLISH_TOKENS)] = Field(
        default=20000,
        ge=256,
        le=MAX_PUBLISH_TOKENS,
        description=(
            "Number of new traced positions after which the trainer compares its draft with the last version that"
            " it offered. It offers the draft as a candidate if it is better by `minGain`. Lower it to follow the"
            " traffic faster, with more measurements."
        ),
    )
    publish_seconds: Annotated[int, capped(MAX_PUBLISH_SECONDS)] = Field(
        default=900,
        ge=10,
        le=MAX_PUBLISH_SECONDS,
        description=(
            "Seconds since the last comparison after which the trainer compares its draft even if fewer than"
            " `publishTokens` positions came. Raise it for services with little traffic."
        ),
    )
    min_gain: Ratio = Field(
        default="0.02",
        description=(
            "Tokens per verify round by which a draft must beat the last offered version on held-out requests,"
            ' before the trainer offers it as a candidate: with "0.02", a draft must reach 2.52 where the last offered'
            " version has 2.50. Raise it for fewer, larger candidates."
        ),
    )
    trace_storage_limit: Quantity = Field(
        default="64Gi",
        description=(
            "Bytes of traces that the store keeps for this speculator, at least 2Gi, such as 200G or 200Gi. The"
            " number of shards is limited too: one per MiB of the limit, but never fewer than 4096. Beyond"
            " either limit the trainer deletes the oldest shards, trained or not. Raise it to replay more of the"
            " past, lower it where the bucket fills."
        ),
    )
    trace_max_age_seconds: (
        Annotated[int, Field(ge=3600, le=MAX_TRACE_AGE_SECONDS), capped(MAX_TRACE_AGE_SECONDS)] | None
    ) = Field(
        default=None,
        description=(
            "Age in seconds beyond which the trainer deletes traces, trained or not, and drops them from replay:"
            " 2592000 for 30 days. It deletes them little more than an hour after that."
            " Drafts that learned from them stay. Unset: traces have no limit of age. It has no effect while no trainer"
            ' runs: training is suspended, and `serving.replicas` is 0 or `capture.sampleRatio` is "0".'
        ),
    )
    erase_tags: list[Annotated[str, Field(pattern=TAG_HASH_PATTERN)]] = Field(
        default_factory=list,
        max_length=64,
        description=(
            "Hashes of tags whose traces are erased, 16 hexadecimal digits each. A change restarts the trainer, which"
            " first removes these traces from the stored shards, and reports the result in"
            " `status.training.erasures`. While a tag is listed, none of its traces is trained on, and those that come"
            " later are erased at the trainer's next start. See docs/how-to/erasing-data.md for a tag's hash."
        ),
        json_schema_extra=rules((f"!('{NO_TAG_HASH}' in self)", f"{NO_TAG_HASH} is the hash of no tag: remove it")),
    )
    template: PodTemplate = template_field("the trainer's pod", ["trainer"])

    @field_validator("erase_tags")
    @classmethod
    def _hashes(cls, hashes: list[str]) -> list[str]:
        if NO_TAG_HASH in hashes:
            raise ValueError(f"{NO_TAG_HASH} is the hash of no tag: remove it")
        return hashes

    @property
    def trace_storage_bytes(self) -> int:
        """:attr:`trace_storage_limit` in bytes."""
        return quantity_bytes(self.trace_storage_limit)
