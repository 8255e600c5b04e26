"""The configuration of a lineage's drafts when no published head decides it, and the tensors of any draft. Pure."""

from __future__ import annotations

from aurora_protocol.draft_records import TensorSpec
from aurora_runtime.engine.draft_config import DraftConfig
from aurora_runtime.engine.draft_file_check import INVERSE_MAP, MAP_DTYPES, VOCABULARY_MAP
from aurora_runtime.models.target_config import TargetConfig


def default_draft_config(target: TargetConfig, target_vocab_size: int, vocab_size: int) -> DraftConfig:
    """The config of a draft that looks like one layer of the target, with the target's rope.

    Args:
        target_vocab_size: number of tokens in the target's vocabulary.
        vocab_size: most tokens that the draft's vocabulary may have.
    """
    return DraftConfig(
        hidden_size=target.hidden_size,
        intermediate_size=target.intermediate_size,
        heads=target.heads,
        kv_heads=target.kv_heads,
        head_dim=target.head_dim,
        rotary_dim=target.rotary_dim,
        vocab_size=target_vocab_size,
        draft_vocab_size=min(vocab_size, target_vocab_size),
        rms_norm_eps=target.rms_norm_eps,
        rope_theta=target.rope_theta,
        max_positions=target.max_positions,
        aux_layers=aux_layers(target.layers),
        rope_scaling=target.rope_scaling,
    )


def aux_layers(layers: int) -> tuple[int, ...]:
    """The target layers whose outputs the draft reads.

    SGLang's default is the inputs of layers 2, n/2 and n-3 (models/llama.py:936), so the outputs of the layers before.
    A target too shallow for three distinct layers gets its first, middle and last-but-one layer.
    """
    default = (1, layers // 2 - 1, layers - 4)
    if len(set(default)) == 3 and min(default) >= 0:
        return default
    return tuple(sorted({0, max(layers // 2 - 1, 0), max(layers - 2, 0)}))


def weight_shapes(config: DraftConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of a draft's weights by the names of its checkpoint, without the vocabulary map."""
    hidden, width = config.hidden_size, config.intermediate_size
    attended = config.heads * config.head_dim
    keys = (config.kv_heads * config.head_dim, 2 * hidden)
    return {
        "fc.weight": (hidden, len(config.aux_layers) * hidden),
        "midlayer.hidden_norm.weight": (hidden,),
        "midlayer.input_layernorm.weight": (hidden,),
        "midlayer.post_attention_layernorm.weight": (hidden,),
        "midlayer.self_attn.q_proj.weight": (attended, 2 * hidden),
        "midlayer.self_attn.k_proj.weight": keys,
        "midlayer.self_attn.v_proj.weight": keys,
        "midlayer.self_attn.o_proj.weight": (hidden, attended),
        "midlayer.mlp.gate_proj.weight": (width, hidden),
        "midlayer.mlp.up_proj.weight": (width, hidden),
        "midlayer.mlp.down_proj.weight": (hidden, width),
        "norm.weight": (hidden,),
        "lm_head.weight": (config.draft_vocab_size, hidden),
    }


def draft_tensors(config: DraftConfig) -> dict[str, TensorSpec]:
    """Every tensor of a draft's ``model.safetensors``, as the trainer writes it. The widest numbers come first."""
    weights = {name: TensorSpec(shape=shape, dtype="BF16") for name, shape in weight_shapes(config).items()}
    offsets = TensorSpec(shape=(config.draft_vocab_size,), dtype=MAP_DTYPES[VOCABULARY_MAP])
    mask = TensorSpec(shape=(config.vocab_size,), dtype=MAP_DTYPES[INVERSE_MAP])
    return {VOCABULARY_MAP: offsets, **weights, INVERSE_MAP: mask}
