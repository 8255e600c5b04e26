"""``AuroraSpeculator``: what a user writes. The CRD's schema is generated from these models.

Invariant: everything but the target and the store has a default that a user would want. Fields marked immutable are
guarded by CEL transition rules; rules that compare fields are CEL too, so that bad input fails at ``kubectl apply``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import Field, WithJsonSchema, model_validator

from aurora_api.base import Model, Ratio

_NAME = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]


def rules(*pairs: tuple[str, str], **extra: Any) -> dict[str, Any]:
    """JSON-schema extras carrying CEL rules as ``(rule, message)``."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs], **extra}


OpenObject = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})]
"""An object whose schema belongs to Kubernetes: checked by the API server when the child is applied."""


class TemplateMetadata(Model):
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class PodTemplate(Model):
    """A partial pod template merged over the operator's own: lists of named things merge by name (strategic merge)."""

    metadata: TemplateMetadata = Field(default_factory=TemplateMetadata)
    spec: OpenObject = Field(
        default_factory=dict, description="Partial PodSpec: resources, nodeSelector, volumes, env…"
    )


class DType(StrEnum):
    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


class Target(Model):
    """The model that is served. Another target is another speculator."""

    model: str = Field(min_length=1, max_length=512, description="Hugging Face id, or a path inside the pods.")
    revision: str | None = Field(default=None, max_length=128, description="Git revision of a Hugging Face model.")
    dtype: DType = Field(default=DType.AUTO, description="Computation type, as SGLang's --dtype.")


class Architecture(StrEnum):
    EAGLE3 = "EAGLE3"


class Draft(Model):
    """The draft model. ``architecture`` and ``vocabSize`` define the lineage; the rest is how it is used."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            ("self.architecture == oldSelf.architecture", "architecture is immutable: it defines the lineage"),
            ("self.vocabSize == oldSelf.vocabSize", "vocabSize is immutable: it defines the lineage"),
            (
                "self.topK == 1 ? self.draftTokens == self.steps + 1 : true",
                "a chain (topK 1) has draftTokens = steps + 1",
            ),
            (
                "self.draftTokens <= 1 + self.steps * self.topK * self.topK",
                "draftTokens exceeds what the tree can hold",
            ),
        )
    }

    architecture: Architecture = Architecture.EAGLE3
    vocab_size: int = Field(
        default=16384,
        ge=256,
        le=262144,
        description="Entries of the draft's vocabulary map, capped at the target's. On a CPU 4096 or 8192 make"
        " cheaper rounds (docs/measurements.md).",
    )
    steps: int = Field(default=3, ge=1, le=16, description="Draft steps per verify round.")
    top_k: int = Field(default=1, ge=1, le=16, description="Branches per step; 1 is a chain.")
    draft_tokens: int = Field(default=4, ge=2, le=64, description="Nodes verified per round, the root included.")
    pin: int | None = Field(
        default=None,
        ge=0,
        description="Serve this version, at once and whatever comes after it, until unset. It must once have passed.",
    )


class Device(StrEnum):
    AUTO = "auto"
    CUDA = "cuda"
    CPU = "cpu"


def _refused(*names: str) -> str:
    """A CEL rule over arguments: none is one of ``names``, or short for one, as argparse takes it."""
    return f"self.all(a, !a.startsWith('--') || !{list(names)}.exists(o, o.startsWith(a.split('=')[0])))"


class Update(Model):
    """How pods are replaced when how they serve changes: another image, other arguments. A draft replaces none."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(("self.maxSurge + self.maxUnavailable > 0", "one of them must not be 0"))
    }

    max_surge: int = Field(
        default=1, ge=0, le=1000, description="Pods beyond replicas meanwhile: each needs a machine of its own."
    )
    max_unavailable: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="Pods that may be missing meanwhile: 1 where there is no machine to spare.",
    )


class Serving(Model):
    """The inference pods."""

    replicas: int = Field(default=1, ge=0, le=1000)
    image: str | None = Field(
        default=None, max_length=512, description="Runtime image; the operator's default if unset."
    )
    device: Device = Field(default=Device.AUTO, description="auto: CUDA when the pod sees a GPU, else the CPU engine.")
    extra_args: list[Annotated[str, Field(max_length=512)]] = Field(
        default_factory=list,
        max_length=64,
        description="Further arguments for SGLang's server.",
        json_schema_extra=rules(
            (
                _refused("--api-key", "--admin-api-key"),
                "extraArgs cannot set SGLang's keys: they lock the agent out, and anyone who may read this can read"
                " them; authenticate clients in front of the Service",
            ),
            (
                _refused(
                    *("--model-path", "--revision", "--dtype", "--host", "--port", "--weight-version", "--config"),
                    *("--speculative-algorithm", "--speculative-draft-model-path", "--speculative-num-steps"),
                    *("--speculative-eagle-topk", "--speculative-num-draft-tokens", "--custom-weight-loader"),
                ),
                "extraArgs cannot set what spec.target and spec.draft say, nor what the agent relies on: address,"
                " version and how weights are loaded",
            ),
            (
                _refused("--dp-size", "--data-parallel-size"),
                "extraArgs cannot set --dp-size: SGLang swaps no weights with it; raise replicas instead",
            ),
        ),
    )
    update: Update = Field(default_factory=Update)
    template: PodTemplate = Field(default_factory=PodTemplate)


class Capture(Model):
    """Traces of live requests. They hold token ids: user data. Lower ``sampleRatio``, or set it to 0, to keep less."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(("double(self.sampleRatio) <= 1.0", "sampleRatio is a share: at most 1"))
    }

    sample_ratio: Ratio = Field(default="1", description="Share of requests that are traced.")
    top_k: int = Field(
        default=32, ge=1, le=256, description="Target probabilities kept per node; the rest as one mass."
    )
    shard_seconds: int = Field(default=20, ge=1, le=3600, description="A shard is closed after this time…")
    shard_tokens: int = Field(default=16384, ge=64, le=1048576, description="…or this many positions.")


MAX_UNROLL_STEPS: Final = 8


class Training(Model):
    """The trainer."""

    suspended: bool = Field(default=False, description="Stop training; serving goes on with the active draft.")
    learning_rate: Ratio = Field(default="0.001")
    replay: int = Field(
        default=3,
        ge=0,
        le=8,
        description="Replayed batches per fresh batch. More of them need less traffic for the same draft, and as many"
        " times the computation: lower it for a trainer that falls behind. 0 trains every position once.",
    )
    passes: int = Field(
        default=16,
        ge=1,
        le=64,
        description="A position is trained at most this often on average, replays included: beyond 1 + replay a trainer"
        " replays while it would wait for traces, and then rests. Without replay it counts for nothing.",
    )
    unroll_steps: int | None = Field(
        default=None,
        ge=1,
        le=MAX_UNROLL_STEPS,
        description="Draft steps that training unrolls (EAGLE-3's training-time test); as many as draft.steps, at most"
        f" {MAX_UNROLL_STEPS}, if unset. Deeper than it was trained a draft guesses worse.",
    )
    publish_tokens: int = Field(
        default=20000, ge=256, description="Offer a candidate after this many new traced positions, when it improved."
    )
    publish_seconds: int = Field(default=900, ge=10, description="…or after this time.")
    min_gain: Ratio = Field(
        default="0.02", description="Held-out acceptance length a candidate must gain to be offered."
    )
    keep_gibibytes: int = Field(
        default=64,
        ge=2,
        le=1048576,
        description="Traces kept in the store, and their number: one shard per MiB, at least 4096. Beyond either the"
        " oldest are deleted, learnt from or not. Replay and held-out prompts come from what is kept.",
    )
    template: PodTemplate = Field(default_factory=PodTemplate)


class Baseline(StrEnum):
    NGRAM = "NGRAM"


class Where(StrEnum):
    JOB = "Job"
    REPLICA = "Replica"


class ConcurrencyTolerance(Model):
    """What may be lost at one concurrency."""

    concurrency: int = Field(ge=1, le=1024)
    tolerance: Ratio = Field(description="Loss allowed there.")


class Validation(Model):
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
    where: Where = Field(
        default=Where.JOB,
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


class Analysis(Model):
    """Live traffic's word on a swapped draft: what swapped pods do, against their peers, or what all did before."""

    settle_seconds: int = Field(
        default=20,
        ge=0,
        le=3600,
        description="Wait after a swap, so that requests end that the former draft began: set it above how long your"
        " longest usual requests take, as those that outlast it count for the new draft.",
    )
    interval_seconds: int = Field(
        default=10, ge=1, le=3600, description="One judgement per interval, which grows until there is enough traffic."
    )
    min_requests: int = Field(
        default=50, ge=1, le=1000000, description="Requests that a judgement needs on either side."
    )
    max_accept_loss: Ratio = Field(default="0.1", description="Share of the acceptance length that may be lost.")
    max_latency_increase: Ratio = Field(
        default="0.5",
        description="Share by which the time between answer tokens may exceed the peers'; bad is only what exceeds it,"
        " beyond chance, in three windows in a row.",
    )
    max_abort_increase: Ratio = Field(
        default="0.02", description="Share of requests that clients may give up beyond the other side's."
    )
    failure_limit: int = Field(
        default=1, ge=0, le=100, description="Bad judgements, and engines that end, that are tolerated each."
    )
    consecutive_success_limit: int = Field(
        default=2, ge=0, le=100, description="Good judgements in a row that let a canary pass; 0: at once."
    )
    watch_seconds: int = Field(
        default=300, ge=0, le=86400, description="How long a promoted version is judged on; then it stays."
    )

    model_config = Model.model_config | {
        "json_schema_extra": rules(("double(self.maxAcceptLoss) < 1.0", "maxAcceptLoss is a share below 1"))
    }


class Rollout(Model):
    """How an earned draft reaches the pods."""

    paused: bool = Field(
        default=False,
        description="Start no swap; a roll in progress stops before its next pod. What was refused is taken back.",
    )
    canary: int = Field(default=1, ge=1, le=100, description="Pods swapped and judged first.")
    analysis: Analysis = Field(default_factory=Analysis)
    max_swapping: int = Field(default=1, ge=1, le=100, description="Pods swapped at the same time after the canary.")
    max_unavailable: int = Field(
        default=1, ge=0, le=1000, description="Swap no further pod while more pods than these are not ready."
    )
    progress_deadline_seconds: int = Field(
        default=600, ge=10, le=86400, description="Without progress for this long, roll back."
    )


class SecretRef(Model):
    name: _NAME = Field(description="Secret with keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")


class Credentials(Model):
    """Exactly one kind."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            (
                "has(self.secretRef) != has(self.serviceAccountName)",
                "set exactly one of secretRef and serviceAccountName",
            ),
        )
    }

    secret_ref: SecretRef | None = None
    service_account_name: _NAME | None = Field(
        default=None, description="Existing ServiceAccount whose pods obtain credentials (workload identity)."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Credentials:
        if (self.secret_ref is None) == (self.service_account_name is None):
            raise ValueError("set exactly one of secretRef and serviceAccountName")
        return self


class Store(Model):
    """The S3 bucket for traces and checkpoints. Moving it is a new speculator: state lives there."""

    bucket: str = Field(min_length=3, max_length=63, pattern=r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$")
    prefix: str = Field(default="aurora", max_length=256, pattern=r"^[A-Za-z0-9._/-]*$")
    endpoint: str | None = Field(
        default=None, max_length=512, pattern=r"^https?://[^\s]+$", description="Unset: AWS S3."
    )
    region: str | None = Field(default=None, max_length=64)
    credentials: Credentials


class SpeculatorSpec(Model):
    """Desired state."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            (
                "self.target == oldSelf.target",
                "target is immutable: create another AuroraSpeculator for another target",
            ),
            (
                "self.store.bucket == oldSelf.store.bucket && self.store.prefix == oldSelf.store.prefix",
                "store.bucket and store.prefix are immutable: the draft's history lives there",
            ),
            (
                "self.serving.replicas == 0 || self.rollout.canary <= self.serving.replicas",
                "rollout.canary must not exceed serving.replicas",
            ),
        )
    }

    target: Target
    store: Store
    draft: Draft = Field(default_factory=Draft)
    serving: Serving = Field(default_factory=Serving)
    capture: Capture = Field(default_factory=Capture)
    training: Training = Field(default_factory=Training)
    validation: Validation = Field(default_factory=Validation)
    rollout: Rollout = Field(default_factory=Rollout)
