"""Copies of the target's last layer what fits a draft's layer. Pure, but for the function that reads tensors.

A draft is one Llama layer, because that is what SGLang runs (sglang/srt/models/llama_eagle3.py): attention without
biases and without norms of queries and keys, then a feed-forward layer with SiLU. So three cases exist for each of
these two sublayers:

- the target's sublayer has this form: its weights are copied;
- it differs by a factor that can be moved into the weights in the mean: the weights are scaled, then copied;
- it differs otherwise: nothing is copied, and the draft's sublayer starts as one that adds nothing to its input.

Invariant: the names of the tensors decide, before any is read. So the target's experts are never loaded, and a layer
with a part that this module does not know is not copied by mistake. A sublayer whose weights cannot be read is not
copied either, because a draft that starts without it is better than none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor

from aurora_runtime.errors import UnreadableWeight
from aurora_runtime.models.target_config import TargetConfig
from aurora_runtime.training.target.families import Family
from aurora_runtime.training.target.quantised_weights import SCALE_SUFFIXES

INPUT_NORM, MIDDLE_NORM = "input_layernorm.weight", "post_attention_layernorm.weight"
_PROJECTIONS: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
_HEAD_NORMS: Final = ("q_norm", "k_norm")
_FEED_FORWARD: Final = ("gate_proj", "up_proj", "down_proj")
_SHARED_EXPERTS: Final = ("mlp.shared_expert.", "mlp.shared_experts.")
_SHARED_EXPERT_GATE: Final = "mlp.shared_expert_gate.weight"
_MEAN_GATE: Final = 0.5
"""The mean of a sigmoid whose input has a symmetric distribution around zero."""
_SILU: Final = ("silu", "swish")
_IGNORED_SUFFIXES: Final = ("input_scale", "k_scale", "v_scale")
"""Scales of activations and of the KV cache, which a draft has no use for."""
_MAX_NAMES: Final = 4
"""Most names of tensors in an explanation."""


@dataclass(frozen=True)
class CopiedLayer:
    """Weights for a draft's layer, by their names within the layer, with the hidden state as their only input.

    ``self_attn.{q,k,v}_proj.weight`` ``[rows, H]``, ``self_attn.o_proj.weight`` ``[H, heads * head_dim]``,
    ``mlp.{gate,up}_proj.weight`` ``[width, H]`` and ``mlp.down_proj.weight`` ``[H, width]``, where ``width`` may be
    narrower than the draft's, and the two norms ``[H]``. A sublayer that is not copied is absent.

    Attributes:
        attention, feed_forward: what was copied, or why nothing was; for the trainer's log.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    attention: str = "not copied"
    feed_forward: str = "not copied"


def copy_last_layer(
    names: Collection[str], read: Callable[[str], Tensor], config: TargetConfig, family: Family
) -> CopiedLayer:
    """Copy what fits a draft of the layer whose tensors have the ``names`` (within the layer). ``read`` reads one.

    Raises :class:`UnreadableWeight` when ``read`` does so for a norm.
    """
    tensors: dict[str, Tensor] = {}
    for norm in (INPUT_NORM, MIDDLE_NORM):
        if norm in names:
            tensors[norm] = read(norm).float() + family.norm_offset
    obstacle = _layer_obstacle(names)

    def copy(copied: Callable[[], dict[str, Tensor] | str]) -> str | None:
        """Add the weights of a sublayer to ``tensors``, or return why there are none."""
        try:
            weights = copied()
        except UnreadableWeight as error:
            return str(error)
        if isinstance(weights, str):
            return weights
        tensors.update(weights)
        return None

    attention = obstacle or family.attention_obstacle or _attention_obstacle(names, config)
    attention = attention or copy(lambda: _attention(names, read, config, tensors[INPUT_NORM], family.norm_offset))
    prefix, width_note = _feed_forward_place(names)
    factor = _MEAN_GATE if _SHARED_EXPERT_GATE in names and prefix in _SHARED_EXPERTS else 1.0
    feed_forward = obstacle or _feed_forward_obstacle(names, prefix, config)
    feed_forward = feed_forward or copy(lambda: _feed_forward(prefix, read, config, factor))
    return CopiedLayer(
        tensors,
        attention=f"not copied, because {attention}" if attention else _attention_note(names, config),
        feed_forward=f"not copied, because {feed_forward}" if feed_forward else width_note,
    )


def _layer_obstacle(names: Collection[str]) -> str | None:
    """Why nothing of the layer can be copied."""
    norms = sorted(n for n in names if "." not in n.removesuffix(".weight") and n.endswith("norm.weight"))
    if norms != [INPUT_NORM, MIDDLE_NORM]:
        return f"the layer's norms are {', '.join(norms) or 'none'}"
    return None


def _attention_obstacle(names: Collection[str], config: TargetConfig) -> str | None:
    """Why the attention cannot be copied."""
    if config.latent:
        return "the attention is latent (MLA)"
    missing = sorted(p for p in _PROJECTIONS if f"self_attn.{p}.weight" not in names)
    if missing:
        return f"the attention has no {', '.join(missing)}"
    unknown = _unknown_names(names, "self_attn.", _PROJECTIONS, {f"{norm}.weight" for norm in _HEAD_NORMS})
    return f"a draft's attention has no {unknown}" if unknown else None


def _unknown_names(
    names: Collection[str], prefix: str, projections: Collection[str], others: Collection[str] = ()
) -> str:
    """The ``names`` with ``prefix`` that are neither weights and scales of the ``projections`` nor among ``others``."""
    known = {f"{p}.weight{suffix}" for p in projections for suffix in ("", *SCALE_SUFFIXES)}.union(others)
    own = {n.removeprefix(prefix) for n in names if n.startswith(prefix)}
    unknown = sorted(n for n in own - known if not n.endswith(_IGNORED_SUFFIXES))
    return ", ".join(unknown[:_MAX_NAMES]) + (", …" if len(unknown) > _MAX_NAMES else "")


def _attention_weights(names: Collection[str]) -> list[str]:
    return [name for part in (*_PROJECTIONS, *_HEAD_NORMS) if (name := f"self_attn.{part}.weight") in names]


def _is_gated(query_rows: int, config: TargetConfig) -> bool:
    """Whether the query projection also yields a gate for each head, as in Qwen3-Next."""
    return query_rows == 2 * config.heads * config.head_dim


def _attention(
    names: Collection[str],
    read: Callable[[str], Tensor],
    config: TargetConfig,
    input_norm: Tensor,
    norm_offset: float,
) -> dict[str, Tensor] | str:
    """The attention's weights in the draft's form, or why they cannot be brought into this form."""
    weights = {name: read(name) for name in _attention_weights(names)}
    query, key, value, output = (weights[f"self_attn.{p}.weight"].float() for p in _PROJECTIONS)
    if _is_gated(query.shape[0], config):
        query = query.view(config.heads, 2, config.head_dim, config.hidden_size)[:, 0].flatten(0, 1)
        output = output * _MEAN_GATE
    expected = {
        "q_proj": (query, (config.heads * config.head_dim, config.hidden_size)),
        "k_proj": (key, (config.kv_heads * config.head_dim, config.hidden_size)),
        "v_proj": (value, (config.kv_heads * config.head_dim, config.hidden_size)),
        "o_proj": (output, (config.hidden_size, config.heads * config.head_dim)),
    }
    if wrong := _wrong_sizes(expected):
        return wrong
    copied = {f"self_attn.{name}.weight": tensor for name, (tensor, _) in expected.items()}
    for projection, norm in zip(("q_proj", "k_proj"), _HEAD_NORMS, strict=True):
        if f"self_attn.{norm}.weight" in weights:
            name = f"self_attn.{projection}.weight"
            weight = weights[f"self_attn.{norm}.weight"].float() + norm_offset
            copied[name] = fold_head_norm(copied[name], weight, input_norm, config.rms_norm_eps)
    return copied


def _wrong_sizes(expected: Mapping[str, tuple[Tensor, tuple[int, ...]]]) -> str | None:
    """Which tensors have other shapes than those beside them."""
    wrong = [name for name, (tensor, shape) in expected.items() if tensor.shape != shape]
    return f"config.json states other sizes than {', '.join(wrong)} has" if wrong else None


def fold_head_norm(projection: Tensor, norm: Tensor, input_norm: Tensor, eps: float) -> Tensor:
    """``projection`` ``[rows, H]`` with the norm of its output moved into its rows, in the mean.

    The norm divides a head by its root mean square, which depends on the input. The projection's input is itself
    normalised and then multiplied by ``input_norm`` ``[H]``. If its elements have mean 0, variance 1 and no
    correlation, a head's expected mean square is the mean of the squared rows of ``projection * input_norm``. ``norm``
    is ``[head_dim]``, or ``[rows]`` where one norm spans all heads.
    """
    heads = projection.view(-1, norm.numel(), projection.shape[1])
    mean_square = (heads * input_norm).square().sum(-1).mean(-1)  # [heads]
    scale = norm / (mean_square + eps).sqrt()[:, None]
    return (heads * scale[:, :, None]).flatten(0, 1)


def _feed_forward_place(names: Collection[str]) -> tuple[str, str]:
    """Where the weights of the dense layer lie, else those of the expert that every token passes; and what to say."""
    for prefix in _SHARED_EXPERTS:
        if f"{prefix}down_proj.weight" in names:
            return prefix, "the shared expert is copied, the others are not"
    return "mlp.", "copied"


def _feed_forward_obstacle(names: Collection[str], prefix: str, config: TargetConfig) -> str | None:
    if config.activation not in _SILU:
        return f"its activation is {config.activation}, not SiLU"
    if not all(f"{prefix}{part}.weight" in names for part in _FEED_FORWARD):
        return (
            "no expert sees all tokens"
            if any(".experts." in n for n in names)
            else "its tensors have other names than Llama's"
        )
    unknown = _unknown_names(names, prefix, _FEED_FORWARD)
    return f"a draft's feed-forward layer has no {unknown}" if unknown else None


def _feed_forward(
    prefix: str, read: Callable[[str], Tensor], config: TargetConfig, factor: float
) -> dict[str, Tensor] | str:
    """The weights of the feed-forward layer with their output times ``factor``, or why they do not fit a draft."""
    gate, up, down = (read(f"{prefix}{part}.weight") for part in _FEED_FORWARD)
    width, hidden = gate.shape[0], config.hidden_size
    expected = {"gate_proj": (gate, (width, hidden)), "up_proj": (up, (width, hidden))}
    if wrong := _wrong_sizes(expected | {"down_proj": (down, (hidden, width))}):
        return wrong
    return {"mlp.gate_proj.weight": gate, "mlp.up_proj.weight": up, "mlp.down_proj.weight": down.float() * factor}


def _attention_note(names: Collection[str], config: TargetConfig) -> str:
    if any(f"self_attn.{norm}.weight" in names for norm in _HEAD_NORMS):
        return "copied, with the norms of its heads moved into the weights in the mean"
    return "copied"
