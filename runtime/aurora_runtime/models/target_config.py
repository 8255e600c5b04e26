"""The facts in a target's ``config.json`` that decide a draft's sizes. Pure; the file comes from outside.

Invariant: a config that lacks a needed number, or holds an impossible one, is refused with the field's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from aurora_protocol.rope_scaling import RopeScaling
from aurora_runtime.engine.draft_rope import UnsupportedRope, read_rope_scaling
from aurora_runtime.errors import TargetUnavailable

_MAX_SIZE: Final = 1 << 30
_MAX_NUMBER: Final = 1e12
_EXPERT_COUNTS: Final = ("num_experts", "num_local_experts", "n_routed_experts")
_EXPERTS_PER_TOKEN: Final = ("num_experts_per_tok", "experts_per_token", "num_experts_per_token")
_LENGTHS: Final = ("max_sequence_length", "seq_length", "max_seq_len", "model_max_length", "max_position_embeddings")
"""The fields for the longest sequence, in SGLang's order (sglang/srt/utils/hf_transformers/common.py:668)."""
LATENT_HEAD_DIM: Final = 128
"""Width of a draft's heads where the target's attention is latent (MLA), because its own widths fit no such draft."""
LATENT_KV_HEADS: Final = 8
"""Most heads with keys and values of their own in the draft of such a target."""


@dataclass(frozen=True)
class TargetConfig:
    """Sizes and types of a target's layers. Widths are in elements.

    Attributes:
        intermediate_size: width of the feed-forward layer that one token passes: of the dense layer, or of all experts
            that a token is sent to.
        rotary_dim: how much of each head is rotated.
        max_positions: longest sequence in tokens, as SGLang finds it.
        rope_scaling: how the rope is scaled for long contexts. None: it is not, or in a way that no draft can have.
        latent: keys and values are projected through a narrow latent (DeepSeek's MLA). The head sizes are then those
            of a draft beside such a target.
    """

    architectures: tuple[str, ...]
    hidden_size: int
    layers: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    rms_norm_eps: float
    max_positions: int
    activation: str
    latent: bool


def read_target_config(raw: dict[str, Any], model: str) -> TargetConfig:
    """The facts in ``raw``, the ``config.json`` of ``model``. A multimodal model's are in its ``text_config``.

    Raises :class:`TargetUnavailable` for a missing or impossible field.
    """
    config = text_config(raw)
    field = _Fields(config, model)
    hidden = field.size("hidden_size")
    latent = bool(config.get("kv_lora_rank"))
    if latent:
        head_dim, heads = LATENT_HEAD_DIM, max(1, hidden // LATENT_HEAD_DIM)
        kv_heads = max(n for n in range(1, LATENT_KV_HEADS + 1) if heads % n == 0)
        rotary_dim = head_dim
    else:
        heads = field.size("num_attention_heads")
        kv_heads = field.size("num_key_value_heads") if config.get("num_key_value_heads") else heads
        head_dim = field.size("head_dim") if config.get("head_dim") else hidden // heads
        rotary_dim = _rotary_dim(config, field, head_dim)
    architectures = raw.get("architectures")
    rope_theta = field.number("rope_theta", _rope_entry(config, "rope_theta") or 10_000.0)
    named_positions = _max_positions(config, field)
    return TargetConfig(
        architectures=tuple(a for a in architectures if isinstance(a, str)) if isinstance(architectures, list) else (),
        hidden_size=hidden,
        layers=field.size("num_hidden_layers"),
        intermediate_size=_intermediate_size(config, field),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        rope_theta=rope_theta,
        rope_scaling=_rope_scaling(config, rope_theta, named_positions),
        rms_norm_eps=field.number("rms_norm_eps", config.get("rms_norm_eps") or 1e-6),
        max_positions=_scaled(named_positions, config),
        activation=str(config.get("hidden_act") or config.get("hidden_activation") or "silu"),
        latent=latent,
    )


def vocabulary_size(raw: dict[str, Any], model: str) -> int:
    """The number of tokens that ``raw`` names, which the weights may differ from. Raises :class:`TargetUnavailable`."""
    return _Fields(text_config(raw), model).size("vocab_size")


def text_config(raw: dict[str, Any]) -> dict[str, Any]:
    """The part of ``config.json`` that describes the language model."""
    text = raw.get("text_config")
    return text if isinstance(text, dict) else raw


class _Fields:
    def __init__(self, config: dict[str, Any], model: str) -> None:
        self._config, self._model = config, model

    def size(self, name: str) -> int:
        value = self._config.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_SIZE:
            raise self.refusal(name)
        return value

    def number(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MAX_NUMBER:
            raise self.refusal(name)
        return float(value)

    def refusal(self, name: str) -> TargetUnavailable:
        return TargetUnavailable(f"{self._model}: config.json has no usable {name}")


def _max_positions(config: dict[str, Any], field: _Fields) -> int:
    """See :class:`TargetConfig`. SGLang starts no engine whose draft has a shorter sequence than its target.

    A config that names none, such as that of Gemma 3 27B, has the default of its model type in transformers.
    """
    if name := next((name for name in _LENGTHS if config.get(name) is not None), None):
        return field.size(name)
    from transformers import AutoConfig

    name = "max_position_embeddings"
    try:
        default = getattr(AutoConfig.for_model(str(config.get("model_type"))), name, None)
    except ValueError:  # a type that transformers does not know
        default = None
    if not isinstance(default, int):
        raise field.refusal(name)
    return default


def _scaled(positions: int, config: dict[str, Any]) -> int:
    """``positions`` times the factor of a ``dynamic`` rope scaling, as SGLang finds them. No draft has such a scaling.

    transformers notes the original length beside the other scalings, and SGLang then takes the length as it is.
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters")
    rope = rope if isinstance(rope, dict) else {}
    factor, kind = rope.get("factor", 1), rope.get("rope_type", rope.get("type"))
    if kind != "dynamic" or "original_max_position_embeddings" in rope or not isinstance(factor, int | float):
        return positions
    return max(1, min(int(positions * factor), _MAX_SIZE))


def _intermediate_size(config: dict[str, Any], field: _Fields) -> int:
    """See :class:`TargetConfig`. ``intermediate_size`` is the width of one expert where no other field names that."""
    if config.get("intermediate_size_mlp"):  # Llama 4
        return field.size("intermediate_size_mlp")
    expert_width = "moe_intermediate_size" if config.get("moe_intermediate_size") else "intermediate_size"
    has_experts = any(config.get(name) for name in _EXPERT_COUNTS)
    if not has_experts or (expert_width != "intermediate_size" and config.get("intermediate_size")):
        return field.size("intermediate_size")
    per_token = next((name for name in _EXPERTS_PER_TOKEN if config.get(name)), None)
    return field.size(expert_width) * (field.size(per_token) if per_token else 1)


def _rotary_dim(config: dict[str, Any], field: _Fields, head_dim: int) -> int:
    """Width of the rotated part of a head. Published MiniMax-M2 checkpoints name the width, others a share."""
    name = "rotary_dim" if config.get("rotary_dim") else "partial_rotary_factor"
    if name == "rotary_dim":
        width = field.size(name)
    else:
        width = int(head_dim * field.number(name, _rope_entry(config, name) or 1.0))
    if not 0 < width <= head_dim or width % 2:
        raise field.refusal(name)
    return width


def _rope_entry(config: dict[str, Any], name: str) -> Any:
    """An entry of ``rope_parameters``, or the field of that name in older configs.

    Some models state the entries for each type of layer. Those of full attention count.
    """
    return _rope_of_full_attention(config.get("rope_parameters")).get(name) or config.get(name)


def _rope_of_full_attention(rope: Any) -> dict[str, Any]:
    if isinstance(rope, dict) and isinstance(rope.get("full_attention"), dict):
        rope = rope["full_attention"]
    return rope if isinstance(rope, dict) else {}


def _rope_scaling(config: dict[str, Any], theta: float, max_positions: int) -> RopeScaling | None:
    """See :class:`TargetConfig`. Where a config has both fields, transformers reads ``rope_scaling``."""
    rope = _rope_of_full_attention(config.get("rope_scaling") or config.get("rope_parameters"))
    original = config.get("original_max_position_embeddings")
    try:
        return read_rope_scaling(rope, theta, max_positions, original if isinstance(original, int) else None)
    except UnsupportedRope:
        return None
