"""Checks that each tensor of a draft file has its place in SGLang's draft model, before anything is written.

SGLang's own loader is lenient (``LlamaForCausalLMEagle3.load_weights``, sglang/srt/models/llama_eagle3.py:327). It
skips a tensor that has no place, keeps a parameter that no tensor fills, and takes a part of a tensor that is too
large. A load would then succeed in part. This module refuses all three, in words.

Sizes are those of whole tensors, so every tensor-parallel rank comes to the same result before it takes its own shard.
The sizes come from SGLang's layers, which know them besides the size of their shard. CPU ranks that cannot share the
heads equally are not supported: SGLang adds heads to their draft (sglang/srt/configs/update_config.py:226).

Only SGLang's scheduler imports this module, because it needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from aurora_runtime.errors import DraftRefused

EMBEDDING: Final = "embed_tokens"
"""Part of the name of the embedding, which in SGLang is the target's own parameter (sglang/srt/models/llama.py:910)."""
FIRST_LAYER: Final = ("midlayer", "layers.0")
"""The draft's layer in a file, and in SGLang."""
STACKED: Final = {
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
"""For each tensor that shares a parameter: that parameter's layer, and the tensor's place in it."""
PLAIN_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of an unquantized draft. SGLang converts between them, at its start as in a swap."""

Shape = tuple[int, ...]


def check_destinations(model: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise :class:`DraftRefused` unless every tensor fills its place in a plain parameter, and no place stays empty.

    The tensors fill all parameters of ``model`` but the embedding.
    """
    parameters = {name: p for name, p in model.named_parameters() if EMBEDDING not in name}
    places = {name: _plain_places(model, name, parameter) for name, parameter in parameters.items()}
    for name, tensor in tensors.items():
        parameter, part = _place_of(name, parameters)
        if part not in places.get(parameter, {}):
            raise DraftRefused(f"the engine's draft has no place for {name}, or another tensor of the file fills it")
        _check_tensor(name, tensor, places[parameter].pop(part))
    if empty := [_describe(name, part) for name, parts in places.items() for part in parts]:
        raise DraftRefused(f"no tensor of the file fills {', '.join(empty)}")


def _describe(parameter: str, part: int) -> str:
    own = [name for name, (stacked, index) in STACKED.items() if f".{stacked}." in parameter and index == part]
    return f"{parameter} ({own[0]})" if own else parameter


def _place_of(tensor: str, parameters: Mapping[str, object]) -> tuple[str, int]:
    """The parameter that a tensor of this name belongs to, and its place in the parameter."""
    name, part = tensor.replace(*FIRST_LAYER), 0
    for own, (stacked, index) in STACKED.items():
        if f".{own}." in name:
            name, part = name.replace(f".{own}.", f".{stacked}."), index
    return (name if name in parameters else f"model.{name}"), part


def _plain_places(model: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> dict[int, Shape]:
    """The places of one parameter and the size of the whole tensor for each. Refuses a quantized parameter."""
    is_plain = type(parameter) is torch.nn.Parameter and type(parameter.data) is torch.Tensor
    if not is_plain or parameter.dtype not in PLAIN_DTYPES:
        raise DraftRefused(
            f"the engine holds {name} as {type(parameter).__name__} of {parameter.dtype}, and a swap needs an"
            " unquantized draft: start the engine with --speculative-draft-model-quantization unquant"
        )
    layer: Any = model.get_submodule(name.rpartition(".")[0])
    return dict(enumerate(_whole_shapes(layer, parameter)))


def _whole_shapes(layer: Any, parameter: Tensor) -> list[Shape]:
    """The sizes of the whole tensors of a layer, in the order of their places (sglang/srt/layers/linear.py)."""
    if parameter.ndim != 2:
        return [tuple(parameter.shape)]
    if hasattr(layer, "total_num_kv_heads"):
        heads, kv_heads = layer.total_num_heads, layer.total_num_kv_heads
        rows = (heads * layer.head_size, kv_heads * layer.head_size, kv_heads * layer.v_head_size)
        return [(n, layer.input_size) for n in rows]
    if hasattr(layer, "output_sizes"):
        return [(n, layer.input_size) for n in layer.output_sizes]
    if hasattr(layer, "org_vocab_size"):
        return [(layer.org_vocab_size, layer.embedding_dim)]
    if hasattr(layer, "output_size"):
        return [(layer.output_size, layer.input_size)]
    return [tuple(parameter.shape)]


def _check_tensor(name: str, tensor: Tensor, whole: Shape) -> None:
    if tensor.dtype not in PLAIN_DTYPES:
        raise DraftRefused(f"tensor {name}: {tensor.dtype}, expected an unquantized dtype")
    if tuple(tensor.shape) != whole:
        raise DraftRefused(f"tensor {name}: {list(tensor.shape)}, expected {list(whole)}")
