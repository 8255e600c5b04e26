"""The families of targets: whose states SGLang can capture for an EAGLE-3 draft, and how their norms store weights.

A model outside this table is refused before its lineage begins, because its inference pods would crash. A lineage that
exists goes on, whatever the table says. Nearly all other traits of a family show in its ``config.json``
(:mod:`~aurora_runtime.models.target_config`) and in the names of its tensors
(:mod:`~aurora_runtime.training.target.last_layer`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aurora_runtime.errors import TargetUnavailable


@dataclass(frozen=True)
class Family:
    """Models that share their layers' code.

    Attributes:
        architectures: names in ``config.json`` for which SGLang 0.5.23 has ``set_eagle3_layers_to_capture``.
        norm_offset: what the model adds to the stored weight of a norm. Gemma's norm computes ``x * (1 + weight)``.
        attention_obstacle: why a draft cannot have the attention, where neither names nor sizes of tensors show that.
    """

    name: str
    architectures: tuple[str, ...]
    norm_offset: float = 0.0
    attention_obstacle: str | None = None


FAMILIES: Final = (
    Family(
        "Llama",
        (
            *("LlamaForCausalLM", "MistralForCausalLM", "Ministral3ForCausalLM", "InternLM3ForCausalLM"),
            *("IQuestCoderForCausalLM", "TeleFLMForCausalLM", "Phi3ForCausalLM"),
        ),
    ),
    Family(
        "Llama 4",
        ("Llama4ForCausalLM", "Llama4ForConditionalGeneration"),
        attention_obstacle="Llama 4 rotates queries and keys in another way, and in some layers not at all",
    ),
    Family("Qwen2", ("Qwen2ForCausalLM", "Qwen2MoeForCausalLM", "Qwen2_5_VLForConditionalGeneration")),
    Family(
        "Qwen3",
        (
            *("Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "Qwen3VLForConditionalGeneration"),
            "Qwen3VLMoeForConditionalGeneration",
        ),
    ),
    Family(
        "Qwen3-Next",
        (
            *("Qwen3NextForCausalLM", "Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM"),
            *("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"),
        ),
        norm_offset=1.0,
    ),
    Family("MiniMax-M2", ("MiniMaxM2ForCausalLM",)),
    Family(
        "DeepSeek",
        (
            *("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM"),
            *("KimiK25ForConditionalGeneration", "MistralLarge3ForCausalLM"),
        ),
    ),
    Family("gpt-oss", ("GptOssForCausalLM",)),
    Family("GLM-4", ("Glm4MoeForCausalLM", "Glm4MoeLiteForCausalLM")),
    Family("Gemma 3", ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"), norm_offset=1.0),
)


UNKNOWN: Final = Family("unknown", ())


def family_of(architectures: tuple[str, ...]) -> Family:
    """The family of a model whose ``config.json`` names ``architectures``, or :data:`UNKNOWN`."""
    return next((family for family in FAMILIES if set(architectures) & set(family.architectures)), UNKNOWN)


def require_family(family: Family, architectures: tuple[str, ...], model: str) -> None:
    """Raise :class:`TargetUnavailable` when ``family``, that of ``model``, is :data:`UNKNOWN`."""
    if family is not UNKNOWN:
        return
    known = ", ".join(family.name for family in FAMILIES)
    named = ", ".join(architectures[:3]) or "no architecture"
    raise TargetUnavailable(
        f"{model}: config.json names {named[:200]}, for which aurora cannot train drafts. It can for models of these"
        f" families: {known}"
    )
