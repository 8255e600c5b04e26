"""Fills a store for tests of the validator: a lineage, drafts, and traces of real prompts.

The traces have no hidden states, because the validator reads only prompts.
"""

from __future__ import annotations

import hashlib
import itertools
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from aurora_protocol.draft_records import (
    CONFIG_FILE,
    CheckpointManifest,
    FileRef,
    Lineage,
    Registration,
    TargetIdentity,
)
from aurora_protocol.training_records import ShardManifest
from aurora_runtime.engine.draft_config import config_from_json, read_config
from aurora_runtime.engine.draft_file_check import WEIGHTS, read_header
from aurora_runtime.held_out_split import is_held_out, prompt_hash
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.traces import RequestTrace, encode
from aurora_store import Keys
from aurora_store.objects import sha256_file
from tests.assets.random_draft import aux_layers
from tests.assets.shards import put_shard_bytes
from tests.traffic.prompts import extraction

ZERO_DIGEST = "0" * 64


def recorded_traces(model: Path, count: int, seed: int = 0, *, held_out: bool = True) -> list[RequestTrace]:
    """Traces of ``count`` extraction requests, without verify rounds. Prompts follow the chat template."""
    tokenizer = AutoTokenizer.from_pretrained(model)

    def tokens(text: str) -> list[int]:
        chat = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    prompts = (p for p in map(tokens, extraction(seed)) if is_held_out(prompt_hash(p)) is held_out)
    return [trace_of(prompt) for prompt in itertools.islice(prompts, count)]


def trace_of(prompt: list[int]) -> RequestTrace:
    """A trace with a prompt and without verify rounds."""
    none = torch.zeros(0, dtype=torch.int32)
    return RequestTrace(
        request=prompt_hash(prompt),
        prompt_length=len(prompt),
        hidden_start=0,
        tokens=torch.tensor(prompt, dtype=torch.int32),
        hidden=torch.zeros(0, 3, dtype=torch.float16),
        root=none,
        node_count=none,
        accepted=none,
        version=none,
        source=none,
        node_token=none,
        node_parent=torch.zeros(0, dtype=torch.int16),
        node_accepted=torch.zeros(0, dtype=torch.bool),
        top_ids=torch.zeros(0, 1, dtype=torch.int32),
        top_logprobs=torch.zeros(0, 1, dtype=torch.float16),
        uncaptured_mass=torch.zeros(0, dtype=torch.float16),
    )


def put_traces(registry: PodRegistry, traces: list[RequestTrace]) -> None:
    """Upload one shard of lineage 1 that holds ``traces``."""
    now, data = datetime.now(UTC), encode(traces)
    stem = Keys.shard(1, "pod-0", "boot", 0, now).rsplit("/", 1)[1]
    put_shard_bytes(
        registry,
        ShardManifest(
            lineage=1,
            pod="pod-0",
            boot="boot",
            seq=0,
            file=FileRef(name=f"{stem}.safetensors", sha256=hashlib.sha256(data).hexdigest(), size=len(data)),
            requests=len(traces),
            tokens=0,
            answer_tokens=0,
            rounds=0,
            proposed=0,
            accepted=0,
            dropped_records=0,
            created=now,
        ),
        data,
    )


def put_lineage(registry: PodRegistry, draft: Path) -> None:
    """Create lineage 1 with the tensors and the vocabulary map of the draft in the folder ``draft``."""
    file = draft / WEIGHTS
    tensors = load_file(file)
    with file.open("rb") as source:
        entries, _ = read_header(source, file.stat().st_size)
    registry.create_lineage(
        Lineage(
            number=1,
            target=TargetIdentity(
                model="smollm2",
                config_sha256=ZERO_DIGEST,
                tokenizer_sha256=ZERO_DIGEST,
                hidden_size=576,
                vocab_size=49152,
            ),
            architecture="EAGLE3",
            draft_vocab_size=tensors["d2t"].shape[0],
            aux_layers=aux_layers(30),
            tensors={name: entry.spec for name, entry in entries.items()},
            draft_sizes=config_from_json(read_config(draft / CONFIG_FILE)).sizes,
            created=datetime.now(UTC),
        )
    )


def put_version(registry: PodRegistry, version: int, draft: Path) -> str:
    """Upload and register the draft in the folder ``draft``. Returns the digest of its weights."""
    digest, now = sha256_file(draft / WEIGHTS), datetime.now(UTC)
    files = tuple(
        FileRef(name=name, sha256=sha256_file(draft / name), size=(draft / name).stat().st_size)
        for name in ("config.json", WEIGHTS)
    )
    manifest = CheckpointManifest(
        lineage=1, version=version, digest=digest, files=files, step=version, trained_tokens=0, created=now
    )
    folder = registry.put_checkpoint(manifest, draft)
    registry.register(
        Registration(version=version, lineage=1, checkpoint=folder, digest=digest, trained_tokens=0, created=now)
    )
    return digest
