"""Drafts and a lineage for tests of the serving pod, published in a real store.

The drafts need no training: ``write_constant_draft`` proposes the same few tokens for every input. So proposals are
accepted in a request that repeats these tokens, and rejected in others, in chains and in trees.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aurora_protocol.draft_records import CONFIG_FILE, Lineage, TargetIdentity
from aurora_runtime.engine.draft_config import config_from_json, read_config
from aurora_runtime.engine.draft_file_check import read_header
from aurora_store.objects import sha256_file
from tests.assets.random_draft import aux_layers, write_random_draft

DRAFT_VOCABULARY = 1024


def target_ids(tensors: dict[str, Tensor]) -> Tensor:
    """Target ids of the draft's tokens ``[draft_vocab]``; ``d2t`` holds offsets."""
    return tensors["d2t"] + torch.arange(tensors["d2t"].shape[0])


def with_map(tensors: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
    """``tensors`` with the target ids ``ids`` ``[draft_vocab]`` as the draft's tokens, in this order."""
    reachable = torch.zeros_like(tensors["t2d"])
    reachable[ids] = True
    return tensors | {"d2t": ids - torch.arange(ids.shape[0]), "t2d": reachable}


def write_draft(folder: Path, target: Path, tokens: Sequence[int], *, seed: int, lowest: int = 0) -> Path:
    """A random draft whose vocabulary map holds ``tokens`` and, from ``lowest`` on, the target's first ids."""
    write_random_draft(folder, target, seed=seed, draft_vocabulary=DRAFT_VOCABULARY)
    file = folder / "model.safetensors"
    others = [i for i in range(lowest, lowest + DRAFT_VOCABULARY) if i not in tokens]
    ids = torch.tensor(sorted([*tokens, *others[: DRAFT_VOCABULARY - len(tokens)]]))
    save_file(with_map(load_file(file), ids), file)
    return folder


def write_constant_draft(folder: Path, target: Path, tokens: Sequence[int], *, lowest: int = 0) -> Path:
    """A draft that always ranks ``tokens`` in this order.

    Its MLP computes silu(z)·z, which is never negative, and adds the sum to one dimension only. After the norm the
    state lies in that dimension, where the head reads its ranking.
    """
    write_draft(folder, target, tokens, seed=1, lowest=lowest)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["fc.weight"] *= 0.01
    tensors["midlayer.self_attn.o_proj.weight"].zero_()
    tensors["midlayer.mlp.gate_proj.weight"] = (
        torch.randn(tensors["midlayer.mlp.gate_proj.weight"].shape, generator=torch.Generator().manual_seed(2)).to(
            torch.bfloat16
        )
        * 0.05
    )
    tensors["midlayer.mlp.up_proj.weight"] = tensors["midlayer.mlp.gate_proj.weight"].clone()
    tensors["midlayer.mlp.down_proj.weight"].zero_()
    tensors["midlayer.mlp.down_proj.weight"][0] = 1
    tensors["lm_head.weight"].zero_()
    tensors["lm_head.weight"][:, 0] = -1
    rows = torch.searchsorted(target_ids(tensors), torch.tensor(tokens))
    tensors["lm_head.weight"][rows, 0] = 1 - 0.02 * torch.arange(len(tokens)).to(torch.bfloat16)
    save_file(tensors, file)
    return folder


def lineage_of(draft: Path, target: Path) -> Lineage:
    """The lineage whose initial draft is ``draft``."""
    file = draft / "model.safetensors"
    config = json.loads((target / "config.json").read_text())
    with file.open("rb") as source:
        entries, _ = read_header(source, file.stat().st_size)
    layers = config["num_hidden_layers"]
    return Lineage(
        number=1,
        target=TargetIdentity(
            model=str(target),
            config_sha256=sha256_file(target / "config.json"),
            tokenizer_sha256=sha256_file(target / "tokenizer.json"),
            hidden_size=config["hidden_size"],
            vocab_size=config["vocab_size"],
        ),
        architecture="EAGLE3",
        draft_vocab_size=DRAFT_VOCABULARY,
        aux_layers=aux_layers(layers),
        tensors={name: entry.spec for name, entry in entries.items()},
        draft_sizes=config_from_json(read_config(draft / CONFIG_FILE)).sizes,
        created=datetime.now(UTC),
    )
