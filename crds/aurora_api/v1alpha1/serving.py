"""``spec.serving``: the inference pods."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from aurora_api.base import Model
from aurora_api.v1alpha1.template import PodTemplate, rules


class Device(StrEnum):
    AUTO = "auto"
    CUDA = "cuda"
    CPU = "cpu"


def _refused(*names: str) -> str:
    """A CEL rule over arguments: none is one of ``names``, or short for one, as argparse takes it."""
    return f"self.all(a, !a.startsWith('--') || !{list(names)}.exists(o, o.startsWith(a.split('=')[0])))"


class UpdateSpec(Model):
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


class ServingSpec(Model):
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
    update: UpdateSpec = Field(default_factory=UpdateSpec)
    template: PodTemplate = Field(default_factory=PodTemplate)
