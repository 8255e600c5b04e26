"""``spec.serving``: the inference pods, and the arguments that users may pass to SGLang."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from aurora_api.base import CountOrPercent, Model
from aurora_api.v1alpha1.cel import matches, rules
from aurora_api.v1alpha1.template import PodTemplate, template_field


class Device(StrEnum):
    """Where the engine computes."""

    AUTO = "auto"
    CUDA = "cuda"
    CPU = "cpu"


def _refuse(*flags: str) -> str:
    """A CEL rule over arguments: none is one of ``flags``, nor an abbreviation of one, which argparse accepts."""
    return f"self.all(a, !a.startsWith('--') || !{list(flags)}.exists(o, o.startsWith(a.split('=')[0])))"


class OperatorUpgrade(StrEnum):
    """When pods take the images and settings of another version of the operator."""

    STAGED = "Staged"
    WITH_SPEC = "WithSpec"


class UpdateSpec(Model):
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
                "!string(self.maxUnavailable).endsWith('%') || int(string(self.maxUnavailable).split('%')[0]) <= 100",
                "maxUnavailable is at most 100%",
            ),
        )
    }

    max_surge: CountOrPercent = Field(
        default=1,
        description=(
            "Pods, or a percentage of `replicas`, that may run beyond `replicas` during an update. Each needs a"
            " machine of its own: where none is to spare, set 0 here and `maxUnavailable` to 1."
        ),
    )
    max_unavailable: CountOrPercent = Field(
        default=0,
        description=(
            "Pods, or a percentage of `replicas`, that may be missing during an update. Set 1, with `maxSurge` 0,"
            " where no machine is to spare. A single replica is then away during an update."
        ),
    )
    operator_upgrade: OperatorUpgrade = Field(
        default=OperatorUpgrade.STAGED,
        description=(
            "When the pods restart after an upgrade of the operator. `Staged`: when it is this speculator's turn. The"
            " operator restarts one speculator after the other (chart value `upgrade.maxConcurrent`). `WithSpec`: with"
            " the next change of this speculator's own serving settings. A change of these settings always restarts the"
            " pods at once."
        ),
    )


class ServingSpec(Model):
    """The inference pods: stock SGLang with a sidecar that swaps drafts and uploads traces."""

    replicas: int = Field(
        default=1,
        ge=0,
        le=1000,
        description=(
            "Number of inference pods. Autoscalers set it through the scale subresource, at any time, also during a"
            " roll. No other field makes a value invalid: `rollout.canary` may be larger, and"
            " `validation.measureOn: Replica` waits below 2. With 0, and `training.suspended`, no pod runs at all."
        ),
    )
    image: str | None = Field(
        default=None,
        max_length=512,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$",
        json_schema_extra=matches(
            r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$",
            "an image is a reference such as registry.example/aurora-runtime:0.1.0",
        ),
        description="Runtime image of the pods, the trainer and the validator. Unset: the image that the operator was"
        " installed with.",
    )
    device: Device = Field(
        default=Device.AUTO,
        description="`auto` computes on CUDA when the pod sees a GPU, else on the CPU. Set `cuda` to make a pod without"
        " a GPU fail instead.",
    )
    extra_args: list[Annotated[str, Field(max_length=512)]] = Field(
        default_factory=list,
        max_length=64,
        description=(
            "Further arguments for SGLang's server, such as `--tp` and `2`. The API server refuses arguments that"
            " `spec` sets or that break draft swaps. An unknown flag shows in the condition InvalidSpec."
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
                    *("--speculative-algorithm", "--speculative-draft-model-path", "--speculative-num-steps"),
                    *("--speculative-eagle-topk", "--speculative-num-draft-tokens", "--custom-weight-loader"),
                ),
                "extraArgs cannot set what spec.target and spec.draft set, nor the address, version and weight loader"
                " that the agent relies on",
            ),
            (
                _refuse("--dp-size", "--data-parallel-size"),
                "extraArgs cannot set --dp-size: SGLang swaps no weights with it; raise replicas instead",
            ),
            (
                _refuse("--quantization", "--load-format"),
                "extraArgs cannot set --quantization or --load-format: they apply to the draft too, and a swap would"
                " load it only in part; serve a checkpoint that is quantized already",
            ),
            (
                _refuse("--enable-lora", "--lora-paths"),
                "extraArgs cannot enable LoRA: traces would mix the hidden states of several targets",
            ),
            (
                _refuse("--nnodes", "--node-rank", "--dist-init-addr"),
                "extraArgs cannot spread an engine over several nodes: each pod runs a whole engine",
            ),
        ),
    )
    update: UpdateSpec = Field(default_factory=UpdateSpec)
    template: PodTemplate = template_field(
        "an inference pod",
        ["sglang", "agent"],
        ["stage"],
        note="A change restarts the pods. A canary under way returns to the active version and may start again later,"
        " and a watch ends. Labels and annotations also go to the validation pod where `validation.measureOn` is"
        " `Job`.",
    )
