"""Reads the ``config.json`` of a published EAGLE-3 head into the config of our drafts.

Two layouts exist. SGLang's ``LlamaForCausalLMEagle3``, which SpecForge writes too, is a Llama config with the size of
the draft's vocabulary. vLLM's speculators keep the Llama config in ``transformer_layer_config``.

The layouts number the target's layers differently. SGLang's ``eagle_config`` names layers whose *outputs* the head
reads. Speculators name layers whose *inputs* it reads, so each number is higher by one.

Invariant: a config that passes describes the computation of sglang/srt/models/llama_eagle3.py (0.5.23) that
:class:`DraftModel` repeats. A field that would change the computation is refused. Other fields are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final

from pydantic import ValidationError

from aurora_protocol.rope_scaling import RopeScaling
from aurora_runtime.engine.draft_config import ARCHITECTURE, DraftConfig
from aurora_runtime.engine.draft_rope import UnsupportedRope, read_rope_scaling
from aurora_runtime.errors import HeadRefused
from aurora_store.errors import bounded_text

SPECULATORS_TYPE: Final = "eagle3"
LAYER_IDS: Final = "eagle_aux_hidden_state_layer_ids"


class HeadLayout(StrEnum):
    """Whose ``config.json`` it is."""

    SGLANG = "SGLang"
    SPECULATORS = "speculators"


@dataclass(frozen=True)
class HeadConfig:
    """What a head's ``config.json`` says."""

    layout: HeadLayout
    draft: DraftConfig
    shares_target_head: bool
    """Whether the head scores tokens with the target's own ``lm_head``, as SGLang does without ``draft_vocab_size``."""


@dataclass(frozen=True)
class TargetSizes:
    """The sizes of the target that a head must fit."""

    hidden_size: int
    vocab_size: int
    layers: int
    max_positions: int


_UNSUPPORTED: Final = {
    "attention_bias": "its attention has biases",
    "qkv_bias": "its attention has biases",
    "mlp_bias": "its feed-forward layer has biases",
    "bias": "its projection of the target's hidden states has a bias",
    "norm_before_fc": "it normalizes the target's hidden states before fc",
    "fc_norm": "it normalizes each of the target's hidden states before fc",
    "use_aux_norm": "it normalizes each of the target's hidden states before fc",
    "norm_output": "its next step reads the normalized output of the step before",
    "norm_before_residual": "it adds its layer to the normalized hidden state, where SGLang adds it to the plain one",
    "quantization_config": "its weights are quantized",
    "compression_config": "its weights are quantized",
}
"""Fields that change the computation when they are set, and how."""
_LLAMA_DEFAULTS: Final = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}
"""Values of transformers' LlamaConfig, which a config may leave out. Engine and speculators fill them in."""
_WITHOUT = "Use a head without this, or leave draft.initial unset"


def head_config(name: str, data: Mapping[str, Any], target: TargetSizes) -> HeadConfig:
    """The config of the head ``name`` from the fields of its ``config.json``.

    Raises :class:`HeadRefused` when the layout is unknown, when the head does not fit the target, or when SGLang would
    compute it in another way than :class:`DraftModel`.
    """
    reader = _Reader(name, data, target)
    return reader.speculators() if reader.has_speculators_layout else reader.sglang()


def refusal(name: str, fact: str, advice: str) -> HeadRefused:
    """The error that says why the head ``name`` cannot be used, and what to do. ``fact`` may hold text of the head."""
    return HeadRefused(f"the head {name} cannot be used: {bounded_text(fact)}. {advice}")


class _Reader:
    """One ``config.json``. ``layer`` holds the fields of the Llama config."""

    def __init__(self, name: str, data: Mapping[str, Any], target: TargetSizes) -> None:
        self._name, self._data, self._target = name, data, target
        self.has_speculators_layout = "speculators_model_type" in data or "transformer_layer_config" in data
        self._layer = self._mapping(data, "transformer_layer_config") if self.has_speculators_layout else data
        self._eagle = self._mapping(data, "eagle_config")

    def refusal(self, fact: str, advice: str = _WITHOUT) -> HeadRefused:
        return refusal(self._name, fact, advice)

    def sglang(self) -> HeadConfig:
        if self._data.get("architectures") != [ARCHITECTURE]:
            raise self.refusal(
                f"config.json is neither that of {ARCHITECTURE} nor that of speculators",
                "Convert the head to one of the two",
            )
        if self._data.get("tie_word_embeddings"):
            raise self.refusal(
                "tie_word_embeddings is true", "Set it to false if the head has an lm_head.weight of its own"
            )
        if self._eagle.get("use_aux_hidden_state", True) is not True:
            raise self.refusal("it reads one hidden state only, as EAGLE does (use_aux_hidden_state)")
        if self._data.get(LAYER_IDS) is not None and LAYER_IDS not in self._eagle:
            raise self.refusal(
                f"{LAYER_IDS} is outside eagle_config, where SGLang does not read it",
                "Move it into eagle_config, and name the layers whose outputs the head reads",
            )
        # models/llama.py:936 captures the inputs of layers 2, n/2 and n-3 when the config names none.
        n = self._target.layers
        layers = self._layer_ids(self._eagle.get(LAYER_IDS), (1, n // 2 - 1, n - 4))
        shares = self._data.get("draft_vocab_size") is None
        return HeadConfig(HeadLayout.SGLANG, self._draft(layers, self._layer.get("model_type", "llama")), shares)

    def speculators(self) -> HeadConfig:
        kind = self._data.get("speculators_model_type")
        if kind != SPECULATORS_TYPE:
            raise self.refusal(f"its speculators_model_type is not {SPECULATORS_TYPE}", "Use an EAGLE-3 head")
        if "norm_before_residual" not in self._data:
            raise self.refusal(
                "config.json lacks norm_before_residual, which speculators take for false and vLLM for true",
                "Add the field with the value that the head was trained with",
            )
        # speculators/models/utils.py: the states before layers 2, n/2 and n-3 when the config names none.
        n = self._target.layers
        inputs = self._layer_ids(self._data.get(LAYER_IDS), (2, n // 2, n - 3), first=1)
        layers = tuple(layer - 1 for layer in inputs)
        return HeadConfig(HeadLayout.SPECULATORS, self._draft(layers, self._layer.get("model_type")), False)

    def _mapping(self, data: Mapping[str, Any], field: str) -> Mapping[str, Any]:
        value = data.get(field)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.refusal(f"{field} in config.json is not an object", "Correct the file")
        return value

    def _layer_ids(self, named: Any, default: tuple[int, ...], *, first: int = 0) -> tuple[int, ...]:
        """The layers in the layout's own numbering, whose first layer is ``first``."""
        ids = default if named is None else named
        last = self._target.layers - 2 + first  # SGLang captures no output of the last layer
        if not isinstance(ids, list | tuple) or not ids or not all(type(i) is int for i in ids):
            raise self.refusal(f"{LAYER_IDS} is not a list of layers", "Correct config.json")
        if any(a >= b for a, b in pairwise(ids)) or not first <= ids[0] <= ids[-1] <= last:
            raise self.refusal(
                f"its layers {list(ids)[:8]} are not ascending layers from {first} to {last} of the target",
                "Use a head that was trained for this target",
            )
        count = self._data.get("num_aux_hidden_states")
        if count is not None and count != len(ids):
            raise self.refusal(f"num_aux_hidden_states is not {len(ids)}, the number of its layers")
        return tuple(ids)

    def _draft(self, aux_layers: tuple[int, ...], model_type: Any) -> DraftConfig:
        self._require_known_computation(model_type)
        hidden, vocab = self._size("hidden_size"), self._size("vocab_size")
        inputs = self._data.get("target_hidden_size")
        for field, value, wanted in (
            ("hidden_size", hidden, self._target.hidden_size),
            ("target_hidden_size", hidden if inputs is None else inputs, self._target.hidden_size),
            ("vocab_size", vocab, self._target.vocab_size),
        ):
            if value != wanted:
                raise self.refusal(
                    f"its {field} is {value!s:.12} and the target's is {wanted}", "Use a head for this target"
                )
        heads = self._size("num_attention_heads")
        theta = self._rope_theta()
        config = DraftConfig(
            hidden_size=hidden,
            intermediate_size=self._size("intermediate_size"),
            heads=heads,
            kv_heads=self._size("num_key_value_heads", heads),
            head_dim=self._size("head_dim", hidden // heads),
            rotary_dim=self._rotary_dim(self._size("head_dim", hidden // heads)),
            vocab_size=vocab,
            draft_vocab_size=self._draft_vocab_size(vocab),
            rms_norm_eps=self._number("rms_norm_eps", self._layer.get("rms_norm_eps", _LLAMA_DEFAULTS["rms_norm_eps"])),
            rope_theta=theta,
            # No rope that is read depends on this length, so the drafts take the target's.
            max_positions=self._target.max_positions,
            aux_layers=aux_layers,
            rope_scaling=self._rope_scaling(theta),
        )
        try:
            possible = bool(config.sizes) and heads % config.kv_heads == 0 and config.rotary_dim % 2 == 0
        except ValidationError:
            possible = False
        if not possible:
            raise self.refusal("config.json names sizes that no draft can have", "Correct the file")
        return config

    def _require_known_computation(self, model_type: Any) -> None:
        if model_type != "llama":
            raise self.refusal("its layer is not a Llama layer (model_type)")
        if self._layer.get("hidden_act", "silu") != "silu":
            raise self.refusal("its activation is not silu (hidden_act)")
        layers = self._layer.get("num_hidden_layers", _LLAMA_DEFAULTS["num_hidden_layers"])
        if layers != 1 or type(layers) is not int:
            raise self.refusal("it has another number of layers than one (num_hidden_layers)")
        for field, effect in _UNSUPPORTED.items():
            if any(source.get(field) for source in (self._data, self._layer, self._eagle)):
                raise self.refusal(f"{effect} ({field})")
        kinds = self._layer.get("layer_types") or []
        if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
            raise self.refusal("its attention has a sliding window (layer_types)")
        if not self._layer.get("rope_is_neox_style", True):
            raise self.refusal("it rotates in another way than Llama (rope_is_neox_style)")

    def _ropes(self) -> Iterator[Mapping[str, Any]]:
        """The objects that describe the rope. Of two, transformers and so SGLang read the first alone."""
        for field in ("rope_scaling", "rope_parameters"):
            if rope := self._mapping(self._layer, field):
                yield rope

    def _rope_theta(self) -> float:
        outside = self._layer.get("rope_theta", 10_000.0)
        first, *others = [rope.get("rope_theta", outside) for rope in self._ropes()] or [outside]
        if any(other != first for other in others):
            raise self.refusal("rope_scaling and rope_parameters name two bases (rope_theta)", "Correct config.json")
        return self._number("rope_theta", first)

    def _rope_scaling(self, theta: float) -> RopeScaling | None:
        positions = self._size("max_position_embeddings")
        original = self._layer.get("original_max_position_embeddings")
        try:
            named = [read_rope_scaling(rope, theta, positions, original) for rope in self._ropes()]
        except UnsupportedRope as error:
            raise self.refusal(str(error)) from error
        if any(other != named[0] for other in named):
            raise self.refusal("rope_scaling and rope_parameters differ", "Correct config.json")
        return named[0] if named else None

    def _rotary_dim(self, head_dim: int) -> int:
        """The rotated part of each attention head. SGLang reads its share from the layer's own field."""
        share = self._number("partial_rotary_factor", self._layer.get("partial_rotary_factor", 1))
        inside = [rope["partial_rotary_factor"] for rope in self._ropes() if "partial_rotary_factor" in rope]
        width = round(head_dim * share)
        if any(other != share for other in inside) or width != head_dim * share or not 0 < width <= head_dim:
            raise self.refusal("it names no usable share of its attention heads to rotate (partial_rotary_factor)")
        return width

    def _draft_vocab_size(self, vocab: int) -> int:
        named = self._data.get("draft_vocab_size")
        if named is None:
            return vocab
        if type(named) is not int or not 0 < named <= vocab:
            raise self.refusal(f"its draft_vocab_size is not between 1 and {vocab}", "Correct config.json")
        return named

    def _size(self, field: str, default: int | None = None) -> int:
        value = self._layer.get(field)
        value = _LLAMA_DEFAULTS.get(field, default) if value is None else value
        if type(value) is not int or not 0 < value < 1 << 31:
            raise self.refusal(f"{field} in config.json is not a size", "Correct the file")
        return value

    def _number(self, field: str, value: Any) -> float:
        if type(value) not in (int, float) or not 0 <= value < 1e15:
            raise self.refusal(f"{field} in config.json is not a number", "Correct the file")
        return float(value)
