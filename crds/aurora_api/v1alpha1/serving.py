"""``spec.serving``: the inference pods, and the arguments that users may pass to SGLang."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from aurora_api.base import MAX_COUNT, CountOrPercent, Model
from aurora_api.v1alpha1.cel import at_most, no_flag, rules
from aurora_api.v1alpha1.template import PodTemplate, template_field


class Device(StrEnum):
    """Where the engine and the trainer compute."""

    CUDA = "cuda"
    CPU = "cpu"


DEFAULT_MAX_RUNNING_REQUESTS: Final = 256
_SPECULATIVE_FLAGS_ALLOWED: Final = (
    *("--speculative-attention-mode", "--speculative-draft-attention-backend", "--speculative-draft-kv-cache-dtype"),
    *("--speculative-moe-a2a-backend", "--speculative-moe-runner-backend"),
)
"""Flags that say how a verify round computes, and change neither its proposals nor what is accepted."""
_NGRAM_FLAGS: Final = "--speculative-ngram-"
"""Flags that have an effect only in the baseline NGRAM of ``spec.validation.baselines``."""


def _refuse(*flags: str) -> str:
    """A CEL rule over the arguments: none is one of ``flags``."""
    return no_flag("self", *flags)


def _refuse_speculative_flags() -> str:
    """A CEL rule over the arguments: no flag of SGLang's speculation but those allowed, and no abbreviation of one."""
    allowed = f"(a.startsWith('{_NGRAM_FLAGS}') || a.split('=')[0] in {list(_SPECULATIVE_FLAGS_ALLOWED)})"
    abbreviates = "'--speculative-'.startsWith(a.split('=')[0])"
    return f"self.all(a, !a.startsWith('--') || {allowed} || !(a.startsWith('--speculative-') || {abbreviates}))"


_UNAVAILABLE: Final = (
    "!string(self.maxUnavailable).endsWith('%') || int(string(self.maxUnavailable).split('%')[0]) <= 100",
    "maxUnavailable is at most 100%",
)


def _count(field: str) -> str:
    """A CEL rule: ``field`` is no negative number, nor one above the pattern's highest."""
    return f"!string(self.{field}).startsWith('-') && {at_most(field, MAX_COUNT)}"


class Strategy(Model):
    """How pods are replaced when their image or arguments change, as in a Deployment. A draft swap replaces no pod."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            (
                "!(string(self.maxSurge) in ['0', '0%'] && string(self.maxUnavailable) in ['0', '0%'])",
                "maxSurge and maxUnavailable must not both be 0: no pod could be replaced",
            ),
            (
                f"{_count('maxSurge')} && {_count('maxUnavailable')}",
                f"maxSurge and maxUnavailable must be 0 to {MAX_COUNT}, or a percentage",
            ),
            _UNAVAILABLE,
        )
    }

    max_surge: CountOrPercent = Field(
        default=1,
        description="Pods, or a percentage of `replicas`, that may run beyond `replicas` during an update. Each needs"
        " a machine of its own. Where none is free for ten minutes, pods are replaced in place, one at a time. Where"
        " none is to spare, set 0 here and `maxUnavailable` to 1.",
    )
    max_unavailable: CountOrPercent = Field(
        default=0,
        description="Pods, or a percentage of `replicas`, that may be missing during an update. Set 1, with `maxSurge`"
        " 0, where no machine is to spare.",
    )


class DisruptionBudget(Model):
    """How many inference pods a drain of nodes may evict at a time, as in a PodDisruptionBudget."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            (_count("maxUnavailable"), f"maxUnavailable must be 0 to {MAX_COUNT}, or a percentage"),
            _UNAVAILABLE,
        )
    }

    enabled: bool = Field(
        default=True,
        description="`false` makes no PodDisruptionBudget. Set it where a policy of the cluster makes one for each"
        " Deployment: Kubernetes evicts no pod that has two.",
    )
    max_unavailable: CountOrPercent = Field(
        default=1,
        description="Pods, or a percentage of `replicas`, that may be unavailable because of evictions. If it is a"
        " number, a replica that is lent to a measurement is not counted, as long as another one serves.",
    )


class ServingSpec(Model):
    """The inference pods: stock SGLang with a sidecar that swaps drafts and uploads traces."""

    replicas: int = Field(
        default=1,
        ge=0,
        le=1000,
        description="Number of inference pods. Autoscalers set it through the scale subresource, at any time. With 0"
        " and `training.suspended`, no pod runs at all.",
    )
    image: str | None = Field(
        default=None,
        max_length=512,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$",
        description="Runtime image of the inference pods, the trainer and the validator. Unset: the image that the"
        " operator was installed with.",
    )
    device: Device = Field(
        default=Device.CUDA,
        description="Where the engine, the trainer and the validator compute: `cuda`, with GPUs from `resources`, or"
        " `cpu`, which suits small models. With `cuda`, a pod without a GPU fails and says so.",
    )
    max_running_requests: int = Field(
        default=DEFAULT_MAX_RUNNING_REQUESTS,
        ge=1,
        le=4096,
        description="Most requests that an engine answers at the same time. Further requests wait in its queue. Raise"
        " it where more requests fit in the memory of a pod's GPU, lower it to bound the time between the tokens of an"
        " answer. Pods restart one by one when it changes.",
    )
    extra_args: list[Annotated[str, Field(max_length=512)]] = Field(
        default_factory=list,
        max_length=64,
        description="Further arguments for SGLang's server, such as `--tp` and `2`. With one that SGLang does not take,"
        " a new pod does not start, and the pods before it serve on.",
        json_schema_extra=rules(
            (
                _refuse("--api-key", "--admin-api-key"),
                "extraArgs cannot set SGLang's keys: they lock the agent out, and everybody who may read this resource"
                " can read them. Authenticate clients in front of the Service",
            ),
            (
                _refuse(
                    *("--model-path", "--revision", "--dtype", "--host", "--port", "--weight-version", "--config"),
                    *("--custom-weight-loader", "--max-running-requests"),
                ),
                "extraArgs cannot set what spec.target and serving.maxRunningRequests set, nor the address, version and"
                " weight loader that the agent relies on",
            ),
            (
                f"{_refuse_speculative_flags()}"
                f" && {_refuse('--enable-multi-layer-eagle', '--decoupled-spec-bind-endpoint')}",
                "extraArgs cannot set how SGLang speculates: set spec.draft instead (steps, shape, lookup). Allowed are"
                f" {', '.join(_SPECULATIVE_FLAGS_ALLOWED)} and {_NGRAM_FLAGS}*",
            ),
            (
                _refuse(
                    *("--tokenizer-worker-num", "--dp-size", "--data-parallel-size", "--nnodes", "--node-rank"),
                    *("--pp-size", "--pipeline-parallel-size", "--enable-dp-attention", "--attn-dp-size"),
                    *("--attention-data-parallel-size", "--attn-cp-size", "--attention-context-parallel-size"),
                    *("--enable-prefill-cp", "--dcp-size", "--decode-context-parallel-size", "--dist-init-addr"),
                    "--disaggregation-mode",
                ),
                "extraArgs cannot spread an engine beyond tensor parallelism: drafts are swapped, and traces captured,"
                " in one engine with one HTTP process in each pod; set --tp, or raise replicas",
            ),
            (
                _refuse("--quantization", "--load-format", "--modelopt-quant", "--quantize-and-serve"),
                "extraArgs cannot set --quantization or --load-format: no draft was measured on a target that SGLang"
                " quantizes at its start; serve a checkpoint that is quantized already",
            ),
            (
                _refuse("--enable-lora", "--lora-paths"),
                "extraArgs cannot enable LoRA: SGLang refuses it beside the rounds of draft.shape Adaptive, and traces"
                " would mix the hidden states of several targets; serve a checkpoint with the adapter merged",
            ),
        ),
    )
    strategy: Strategy = Field(default_factory=Strategy)
    disruption_budget: DisruptionBudget = Field(default_factory=DisruptionBudget)
    template: PodTemplate = template_field(
        "an inference pod",
        ["sglang", "agent"],
        ["stage"],
        note="A change restarts the pods. A canary under way returns to the active version and may start again later,"
        " and a watch ends. Labels and annotations also go to the validation pod where `validation.measureOn` is"
        " `Job`.",
    )
