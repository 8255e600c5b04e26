"""A draft's ``config.json``: how it follows from the lineage, and the comparison of a stored one with that.

Why: the gate swaps weights alone, so a wrong configuration would first bite at the next start of an engine, possibly in
every pod at once. SGLang and transformers let a configuration choose code.

Invariant: a configuration that passes has exactly the lineage's fields with the lineage's values. This module imports
neither torch nor SGLang, because the agent imports it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from pydantic import ValidationError

from aurora_protocol.draft_records import CONFIG_FILE, DraftSizes, Lineage
from aurora_protocol.rope_scaling import RopeScaling
from aurora_runtime.engine.draft_rope import rope_scaling_json
from aurora_runtime.errors import DraftRefused

ARCHITECTURE: Final = "LlamaForCausalLMEagle3"
MAX_FIELDS_NAMED: Final = 5
"""Most fields that an error names."""


@dataclass(frozen=True)
class DraftConfig:
    """Sizes of a draft. It reads the *outputs* of the target layers ``aux_layers`` (eagle_config's numbering).

    Of each head's ``head_dim`` elements, the first ``rotary_dim`` are rotated by position.
    """

    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    vocab_size: int
    draft_vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_positions: int
    aux_layers: tuple[int, ...]
    rope_scaling: RopeScaling | None = None

    @property
    def sizes(self) -> DraftSizes:
        """The sizes that a lineage records beside its own fields."""
        return DraftSizes(
            intermediate_size=self.intermediate_size,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            rotary_dim=None if self.rotary_dim == self.head_dim else self.rotary_dim,
            rms_norm_eps=self.rms_norm_eps,
            rope_theta=self.rope_theta,
            rope_scaling=self.rope_scaling,
            max_positions=self.max_positions,
        )


def config_json(config: DraftConfig) -> dict[str, Any]:
    """The content of ``config.json``. The rope is written under transformers' old and new field names.

    A field that only some drafts have is absent elsewhere.
    """
    share = config.rotary_dim / config.head_dim
    rotation = {} if share == 1 else {"partial_rotary_factor": share}
    scaling = rope_scaling_json(config.rope_scaling) if config.rope_scaling else {}
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "num_hidden_layers": 1,
        "vocab_size": config.vocab_size,
        "draft_vocab_size": config.draft_vocab_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"} | scaling | rotation,
        **({"rope_scaling": scaling} if scaling else {}),
        **rotation,
        "tie_word_embeddings": False,
        "eagle_config": {
            "eagle_aux_hidden_state_layer_ids": list(config.aux_layers),
            "use_aux_hidden_state": True,
        },
    }


def config_from_json(data: dict[str, Any]) -> DraftConfig:
    """The inverse of :func:`config_json`. Raises :class:`DraftRefused` when a field is missing or no list of layers."""
    try:
        return DraftConfig(
            hidden_size=data["hidden_size"],
            intermediate_size=data["intermediate_size"],
            heads=data["num_attention_heads"],
            kv_heads=data["num_key_value_heads"],
            head_dim=data["head_dim"],
            rotary_dim=round(data["head_dim"] * data.get("partial_rotary_factor", 1)),
            vocab_size=data["vocab_size"],
            draft_vocab_size=data["draft_vocab_size"],
            rms_norm_eps=data["rms_norm_eps"],
            rope_theta=data["rope_theta"],
            max_positions=data["max_position_embeddings"],
            aux_layers=tuple(data["eagle_config"]["eagle_aux_hidden_state_layer_ids"]),
            rope_scaling=RopeScaling(**data["rope_scaling"]) if "rope_scaling" in data else None,
        )
    except KeyError as error:
        raise DraftRefused(f"{CONFIG_FILE} lacks {error.args[0]}") from error
    except (TypeError, OverflowError, ValidationError) as error:  # OverflowError: a share of 1e999
        raise DraftRefused(f"{CONFIG_FILE} has a field of another type") from error


def read_config(path: Path) -> dict[str, Any]:
    """The fields of a ``config.json``. Raises :class:`DraftRefused` unless it is one plain JSON object."""
    try:
        data = json.loads(path.read_bytes(), object_pairs_hook=_fields, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # RecursionError: a file of brackets
        raise DraftRefused(
            f"{CONFIG_FILE} is not JSON, names a field twice, or holds a number that is not finite"
        ) from (error)
    if not isinstance(data, dict):
        raise DraftRefused(f"{CONFIG_FILE} is not a JSON object")
    return data


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field is named twice")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def lineage_config(lineage: Lineage) -> DraftConfig:
    """The configuration of all drafts of ``lineage``."""
    sizes = lineage.draft_sizes
    return DraftConfig(
        hidden_size=lineage.target.hidden_size,
        vocab_size=lineage.target.vocab_size,
        draft_vocab_size=lineage.draft_vocab_size,
        aux_layers=lineage.aux_layers,
        rope_scaling=sizes.rope_scaling,
        rotary_dim=sizes.rotary_dim or sizes.head_dim,
        **sizes.model_dump(include=set(DraftSizes.model_fields) - {"rotary_dim", "rope_scaling"}),
    )


def check_draft_config(path: Path, lineage: Lineage) -> None:
    """Raise :class:`DraftRefused` unless ``path`` is the configuration of a draft of ``lineage``, field by field."""
    actual = read_config(path)
    expected = config_json(lineage_config(lineage))
    different = sorted(name for name in expected.keys() | actual.keys() if not _is_same(name, expected, actual))
    if different:
        names = ", ".join(name[:64] for name in different[:MAX_FIELDS_NAMED])
        raise DraftRefused(f"{CONFIG_FILE} is not that of lineage {lineage.number}: {names}")


def _is_same(name: str, expected: dict[str, Any], actual: dict[str, Any]) -> bool:
    """Whether both have the field with the same value. In Python, True equals 1; in JSON it does not."""
    if name not in expected or name not in actual:
        return False
    return json.dumps(expected[name], sort_keys=True) == json.dumps(actual[name], sort_keys=True)
