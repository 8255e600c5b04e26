"""A small EAGLE-3 draft that is built and loaded as SGLang's is, for one of several tensor-parallel ranks.

Names, sizes, shards and leniency are those of SGLang 0.5.23 (models/llama_eagle3.py, layers/linear.py and
layers/vocab_parallel_embedding.py). ``tests/integration/engine/test_weight_loader.py`` runs SGLang's own class.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aurora_runtime.engine.draft_update import DIGEST_TENSOR, PATH_TENSOR

HIDDEN, HEADS, KV_HEADS, HEAD, INNER, VOCABULARY, DRAFT_VOCABULARY = 8, 4, 2, 4, 12, 40, 20
HEAD_PADDING = 16


def _parameter(rows: int, columns: int, loader: object) -> nn.Parameter:
    parameter = nn.Parameter(torch.empty(rows, columns), requires_grad=False)
    parameter.__dict__["weight_loader"] = loader
    return parameter


class Stacked(nn.Module):
    """Several matrices in one parameter, each split by rows."""

    def __init__(self, rows: Sequence[int], columns: int, names: Sequence[object], rank: int, ranks: int) -> None:
        super().__init__()
        self.input_size, self.output_sizes = columns, list(rows)
        self._rows, self._names, self._rank = [n // ranks for n in rows], list(names), rank
        self.weight = _parameter(sum(self._rows), columns, self._load)

    def _load(self, parameter: Tensor, tensor: Tensor, name: object) -> None:
        part = self._names.index(name)
        rows = self._rows[part]
        own = tensor.narrow(0, self._rank * rows, rows)
        place = parameter.data.narrow(0, sum(self._rows[:part]), rows)
        assert place.shape == own.shape
        place.copy_(own)


class Qkv(Stacked):
    def __init__(self, rank: int, ranks: int) -> None:
        super().__init__((HEADS * HEAD, KV_HEADS * HEAD, KV_HEADS * HEAD), 2 * HIDDEN, "qkv", rank, ranks)
        self.total_num_heads, self.total_num_kv_heads = HEADS, KV_HEADS
        self.head_size = self.v_head_size = HEAD


class Row(nn.Module):
    """A matrix that is split by columns."""

    def __init__(self, columns: int, rank: int, ranks: int) -> None:
        super().__init__()
        self.input_size, self.output_size, self._rank = columns, HIDDEN, rank
        self.weight = _parameter(HIDDEN, columns // ranks, self._load)

    def _load(self, parameter: Tensor, tensor: Tensor) -> None:
        width = parameter.shape[1]
        own = tensor.narrow(1, self._rank * width, width)
        assert parameter.shape == own.shape
        parameter.data.copy_(own)


class Head(nn.Module):
    """A matrix that is split by rows, with rows of zeros at its end."""

    def __init__(self, rank: int, ranks: int) -> None:
        super().__init__()
        self.org_vocab_size, self.embedding_dim = DRAFT_VOCABULARY, HIDDEN
        self._rows, self._rank = DRAFT_VOCABULARY // ranks, rank
        self.weight = _parameter(-(-self._rows // HEAD_PADDING) * HEAD_PADDING, HIDDEN, self._load)

    def _load(self, parameter: Tensor, tensor: Tensor) -> None:
        assert tensor.shape[0] == self.org_vocab_size
        own = tensor.narrow(0, self._rank * self._rows, self._rows)
        parameter[: own.shape[0]].data.copy_(own)
        parameter[own.shape[0] :].data.fill_(0)


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(HIDDEN), requires_grad=False)


class Layer(nn.Module):
    def __init__(self, rank: int, ranks: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        self.self_attn.qkv_proj = Qkv(rank, ranks)
        self.self_attn.o_proj = Row(HEADS * HEAD, rank, ranks)
        self.mlp.gate_up_proj = Stacked((INNER, INNER), HIDDEN, (0, 1), rank, ranks)
        self.mlp.down_proj = Row(INNER, rank, ranks)
        self.input_layernorm, self.post_attention_layernorm, self.hidden_norm = Norm(), Norm(), Norm()


class Draft(nn.Module):
    """SGLang's model after its start. ``embedding`` stands for the target's own parameter."""

    def __init__(self, rank: int = 0, ranks: int = 1) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(VOCABULARY, HIDDEN)
        self.model.fc = nn.Linear(3 * HIDDEN, HIDDEN, bias=False)
        self.model.layers = nn.ModuleList([Layer(rank, ranks)])
        self.model.norm = Norm()
        self.lm_head = Head(rank, ranks)
        self.register_buffer("hot_token_id", torch.arange(DRAFT_VOCABULARY), persistent=False)
        for number, parameter in enumerate(self.parameters()):
            parameter.data.fill_(-1 - number)

    def load_weights(self, weights: Sequence[tuple[str, Tensor]]) -> None:
        """As ``LlamaForCausalLMEagle3.load_weights``: what has no place is skipped."""
        parameters = dict(self.named_parameters())
        stacked: list[tuple[str, str, object]] = [(".qkv_proj", f".{name}_proj", name) for name in "qkv"]
        stacked += [(".gate_up_proj", ".gate_proj", 0), (".gate_up_proj", ".up_proj", 1)]
        for full_name, tensor in weights:
            name, shard = full_name.replace("midlayer", "layers.0"), tuple[object, ...]()
            for parameter_name, own, shard_name in stacked:
                if own in name:
                    name, shard = name.replace(own, parameter_name), (shard_name,)
            parameter = parameters.get(name, parameters.get(f"model.{name}"))
            if parameter is not None:
                getattr(parameter, "weight_loader", _load_whole)(parameter, tensor, *shard)


def _load_whole(parameter: Tensor, tensor: Tensor) -> None:
    assert parameter.size() == tensor.size()
    parameter.data.copy_(tensor)


def file_tensors(seed: int) -> dict[str, Tensor]:
    """The tensors of a draft file, all of them different."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    layer = {
        "self_attn.q_proj": matrix(HEADS * HEAD, 2 * HIDDEN),
        "self_attn.k_proj": matrix(KV_HEADS * HEAD, 2 * HIDDEN),
        "self_attn.v_proj": matrix(KV_HEADS * HEAD, 2 * HIDDEN),
        "self_attn.o_proj": matrix(HIDDEN, HEADS * HEAD),
        "mlp.gate_proj": matrix(INNER, HIDDEN),
        "mlp.up_proj": matrix(INNER, HIDDEN),
        "mlp.down_proj": matrix(HIDDEN, INNER),
        "input_layernorm": matrix(HIDDEN),
        "post_attention_layernorm": matrix(HIDDEN),
        "hidden_norm": matrix(HIDDEN),
    }
    ids = torch.randperm(VOCABULARY, generator=generator)[:DRAFT_VOCABULARY].sort().values
    return {f"midlayer.{name}.weight": tensor for name, tensor in layer.items()} | {
        "fc.weight": matrix(HIDDEN, 3 * HIDDEN),
        "norm.weight": matrix(HIDDEN),
        "lm_head.weight": matrix(DRAFT_VOCABULARY, HIDDEN),
        "embed_tokens.weight": matrix(VOCABULARY, HIDDEN),
        "d2t": ids - torch.arange(DRAFT_VOCABULARY),
        "t2d": torch.zeros(VOCABULARY, dtype=torch.bool).index_fill_(0, ids, value=True),
    }


def load_request(path: Path, tensors: dict[str, Tensor]) -> tuple[str, list[tuple[str, Tensor]]]:
    """Write a draft file. Returns its digest, and what the loader is given to load it."""
    save_file(tensors, path)
    digest = hashlib.sha256(path.read_bytes())
    parts = {PATH_TENSOR: str(path).encode(), DIGEST_TENSOR: digest.digest()}
    return digest.hexdigest(), [(name, torch.tensor(list(data), dtype=torch.uint8)) for name, data in parts.items()]
