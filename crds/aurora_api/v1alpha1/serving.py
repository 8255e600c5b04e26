"""``spec.serving``: the inference pods, and the arguments that users may pass to SGLang."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from aurora_api.base import MAX_COUNT, CountOrPercent, Model
from aurora_api.v1alpha1.cel import at_most, matches, no_flag, rules
from aurora_api.v1alpha1.template import PodTemplate, template_field


class Device(StrEnum):
    """Where the engine computes."""

    AUTO = "auto"
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


class Strategy(Model):
    """How pods are replaced when their image or arguments change, as in a Deployment. A draft swap replaces no pod."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            (
                "!(string(self.maxSurge) in ['0', '0%'] && string(self.maxUnavailable) in ['0', '0%'])",
                "maxSurge and maxUnavailable must not both be 0: no pod could be replaced",
            ),
            (
                "!string(self.maxSurge).startsWith('-') && !string(self.maxUnavailable).startsWith('-')",
                "maxSurge and maxUnavailable must not be negative",
            ),
            (
                f"{at_most('maxSurge', MAX_COUNT)} && {at_most('maxUnavailable', MAX_COUNT)}",
                f"maxSurge and maxUnavailable are at most {MAX_COUNT}",
            ),
            (
                "!string(self.maxUnavailable).endsWith('%') || int(string(self.maxUnavailable).split('%')[0]) <= 100",
                "maxUnavailable is at most 100%",
            ),
        )
    }

    max_surge: CountOrPercent = Field(
        default=1,
        description="Pods, or a percentage of `replicas`, that may run beyond `replicas` during an update. Each needs"
        " a machine of its own: where none is to spare, set 0 here and `maxUnavailable` to 1.",
    )
    max_unavailable: CountOrPercent = Field(
        default=0,
        description="Pods, or a percentage of `replicas`, that may be missing during an update. Set 1, with `maxSurge`"
        " 0, where no machine is to spare.",
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
        json_schema_extra=matches(
            r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$",
            "an image is a reference such as registry.example/aurora-runtime:0.1.0",
        ),
        description="Runtime image of the inference pods, the trainer and the validator. Unset: the image that the"
        " operator was installed with.",
    )
    device: Device = Field(
        default=Device.AUTO,
        description="`auto` computes on CUDA when the pod sees a GPU, else on the CPU. Set `cuda` to make a pod without"
        " a GPU fail instead.",
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
        description=(
            "Further arguments for SGLang's server, such as `--tp` and `2`. The API server refuses arguments that"
            " `spec` sets, and those that break draft swaps or speculation. With others that SGLang does not take, a"
            " new pod does not start, and the pods before it serve on."
        ),
        json_schema_extra=rules(
            (
                _refuse("--api-key", "--admin-api-key"),
                "extraArgs cannot set SGLang's keys: they lock the agent out, and everybody who may read this resource"
                " can read them. Authenticate clients in front of the Service",
            ),
            (
                _refuse(
                    *("--model-path", "--revision", "--dtype", "--host", "--port", "--weight-version", "--config"),
                    "--custom-weight-loader",
                ),
                "extraArgs cannot set what spec.target sets, nor the address, version and weight loader that the agent"
                " relies on",
            ),
            (
                _refuse_speculative_flags(),
                "extraArgs cannot set how SGLang speculates: set spec.draft instead (steps, shape, lookup). Allowed are"
                f" {', '.join(_SPECULATIVE_FLAGS_ALLOWED)} and {_NGRAM_FLAGS}*",
            ),
            (
                _refuse("--enable-multi-layer-eagle", "--decoupled-spec-bind-endpoint"),
                "extraArgs cannot choose another way to draft: the draft of spec.draft has one layer and runs in the"
                " pod's own engine",
            ),
            (
                _refuse("--max-running-requests"),
                "extraArgs cannot set --max-running-requests: set serving.maxRunningRequests instead",
            ),
            (
                _refuse("--tokenizer-worker-num"),
                "extraArgs cannot set --tokenizer-worker-num: SGLang's further HTTP processes would check neither the"
                " admin key nor wishes about traces; raise replicas instead",
            ),
            (
                _refuse("--dp-size", "--data-parallel-size"),
                "extraArgs cannot set --dp-size: SGLang swaps no weights with it; raise replicas instead",
            ),
            (
                _refuse("--pp-size", "--pipeline-parallel-size"),
                "extraArgs cannot set --pp-size: the states that a draft reads would lie on several stages; set --tp"
                " instead",
            ),
            (
                _refuse("--enable-dp-attention", "--attn-dp-size", "--attention-data-parallel-size"),
                "extraArgs cannot enable data-parallel attention: its ranks would choose different sizes of a verify"
                " round; raise replicas instead",
            ),
            (
                _refuse(
                    *("--attn-cp-size", "--attention-context-parallel-size", "--enable-prefill-cp"),
                    *("--dcp-size", "--decode-context-parallel-size"),
                ),
                "extraArgs cannot split sequences over ranks (context parallelism): traces were never captured with it;"
                " set --tp instead",
            ),
            (
                _refuse("--quantization", "--load-format", "--modelopt-quant", "--quantize-and-serve"),
                "extraArgs cannot set --quantization or --load-format: no draft was ever measured on a target that"
                " SGLang quantizes at its start, and a load format applies to the draft's file too; serve a checkpoint"
                " that is quantized already",
            ),
            (
                _refuse("--enable-lora", "--lora-paths"),
                "extraArgs cannot enable LoRA: traces would mix the hidden states of several targets",
            ),
            (
                _refuse("--nnodes", "--node-rank", "--dist-init-addr", "--disaggregation-mode"),
                "extraArgs cannot spread an engine over several nodes or pods: each pod runs a whole engine",
            ),
        ),
    )
    strategy: Strategy = Field(default_factory=Strategy)
    template: PodTemplate = template_field(
        "an inference pod",
        ["sglang", "agent"],
        ["stage"],
        note="A change restarts the pods. A canary under way returns to the active version and may start again later,"
        " and a watch ends. Labels and annotations also go to the validation pod where `validation.measureOn` is"
        " `Job`.",
    )
