"""A repository of safetensors files in the layout of MiniMax-M2.1, without its weights: every weight is zero.

The index and the headers of the files are complete: they name every tensor with its type and its size. The names and
sizes are generated from the published sizes. The division of tensors into files is ours, so a file of the real
repository may hold other layers. The weights are holes in the files, so that 229 billion of them need no disk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

BLOCK: Final = 128
"""Rows and columns of a block of fp8 weights that shares one scale."""
FILE_BYTES: Final = 1_800_000_000
_ITEM_BYTES: Final = {"BF16": 2, "F32": 4, "F8_E4M3": 1}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the repository. ``dtype`` is a name of the safetensors format."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class SparseTarget:
    """The sizes of a target, by default those that MiniMax-M2.1 publishes."""

    hidden: int = 3072
    expert_width: int = 1536
    heads: int = 48
    kv_heads: int = 8
    head_dim: int = 128
    rotary_dim: int = 64
    layers: int = 62
    experts: int = 256
    experts_per_token: int = 8
    vocab: int = 200_064

    @property
    def config(self) -> dict[str, Any]:
        """The fields of ``config.json`` that a trainer reads."""
        return {
            "architectures": ["MiniMaxM2ForCausalLM"],
            "hidden_size": self.hidden,
            "intermediate_size": self.expert_width,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "rotary_dim": self.rotary_dim,
            "num_hidden_layers": self.layers,
            "max_position_embeddings": 196_608,
            "num_local_experts": self.experts,
            "num_experts_per_tok": self.experts_per_token,
            "vocab_size": self.vocab,
            "quantization_config": {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]},
        }

    def tensors(self) -> Iterator[StoredTensor]:
        """Every tensor, in the order of the layers."""
        yield StoredTensor("model.embed_tokens.weight", "BF16", (self.vocab, self.hidden))
        for layer in range(self.layers):
            yield from self._layer(f"model.layers.{layer}.")
        yield StoredTensor("model.norm.weight", "BF16", (self.hidden,))
        yield StoredTensor("lm_head.weight", "BF16", (self.vocab, self.hidden))

    def _layer(self, prefix: str) -> Iterator[StoredTensor]:
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield StoredTensor(f"{prefix}{norm}.weight", "BF16", (self.hidden,))
        attention = f"{prefix}self_attn."
        yield StoredTensor(f"{attention}q_norm.weight", "BF16", (queries,))
        yield StoredTensor(f"{attention}k_norm.weight", "BF16", (keys,))
        yield from _fp8(f"{attention}q_proj", queries, self.hidden)
        yield from _fp8(f"{attention}k_proj", keys, self.hidden)
        yield from _fp8(f"{attention}v_proj", keys, self.hidden)
        yield from _fp8(f"{attention}o_proj", self.hidden, queries)
        moe = f"{prefix}block_sparse_moe."
        yield StoredTensor(f"{moe}gate.weight", "BF16", (self.experts, self.hidden))
        yield StoredTensor(f"{moe}e_score_correction_bias", "F32", (self.experts,))
        for expert in range(self.experts):
            yield from _fp8(f"{moe}experts.{expert}.w1", self.expert_width, self.hidden)
            yield from _fp8(f"{moe}experts.{expert}.w2", self.hidden, self.expert_width)
            yield from _fp8(f"{moe}experts.{expert}.w3", self.expert_width, self.hidden)


def _fp8(name: str, rows: int, columns: int) -> Iterator[StoredTensor]:
    yield StoredTensor(f"{name}.weight", "F8_E4M3", (rows, columns))
    yield StoredTensor(f"{name}.weight_scale_inv", "F32", (-(-rows // BLOCK), -(-columns // BLOCK)))


def write_sparse_target(target: SparseTarget, folder: Path, file_bytes: int = FILE_BYTES) -> dict[str, str]:
    """Write the repository into ``folder``. Returns its index: tensor name -> file name.

    A file holds at most ``file_bytes``, or one tensor. The tokenizer is a stand-in that has an entry for each token.
    """
    index = dict[str, str]()
    for number, tensors in enumerate(_files(target, file_bytes)):
        name = f"model-{number:05}.safetensors"
        _write_file(folder / name, tensors)
        index |= dict.fromkeys((tensor.name for tensor in tensors), name)
    vocabulary = {f"token-{token}": token for token in range(target.vocab)}
    contents = {
        "model.safetensors.index.json": {"weight_map": index},
        "config.json": target.config,
        "tokenizer.json": {"added_tokens": [], "model": {"vocab": vocabulary}},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    return index


def _files(target: SparseTarget, file_bytes: int) -> Iterator[list[StoredTensor]]:
    """The tensors of each file."""
    held, size = list[StoredTensor](), 0
    for tensor in target.tensors():
        if held and size + tensor.size_bytes > file_bytes:
            yield held
            held, size = [], 0
        held.append(tensor)
        size += tensor.size_bytes
    yield held


def _write_file(path: Path, tensors: list[StoredTensor]) -> None:
    """A safetensors file: the header's length, the header, and a hole for the weights."""
    header, end = dict[str, Any](), 0
    for tensor in tensors:
        begin, end = end, end + tensor.size_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
