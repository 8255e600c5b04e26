"""A tiny target on disk, tiny traces and an in-memory store: the trainer's unit tests need nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import torch
from safetensors.torch import save_file

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.target import TargetSpec
from aurora_protocol.draft_records import FileRef
from aurora_protocol.pod_settings import StateType
from aurora_protocol.training_records import ShardManifest
from aurora_runtime.held_out_split import prompt_hash
from aurora_runtime.packed_states import unpacked
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.traces import RequestTrace, encode
from aurora_runtime.training import lineage
from aurora_runtime.training.data.kept_states import KeptStates
from aurora_runtime.training.lineage import utc_now
from aurora_runtime.training.model import initial_draft
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.target.target_model import TargetModel, load_target
from aurora_store import ObjectStore, StoreConfig
from aurora_store.errors import DigestMismatch, ObjectExists, ObjectMissing, ObjectTooLarge
from aurora_store.objects import MAX_LISTED_OBJECTS, MAX_RECORD_BYTES, ObjectInfo
from tests.assets.range_client import answer_ranges
from tests.assets.shards import put_shard_bytes
from tests.assets.traces.sources import sources_without_controller

HIDDEN, VOCAB, DRAFT_VOCAB, LAYERS, TOP_K = 32, 400, 300, 8, 8
DRAFT_SPEC = DraftSpec(vocab_size=DRAFT_VOCAB)


def write_target(folder: Path, *, tied: bool = True) -> TargetSpec:
    """A random Llama of 8 layers as SGLang and transformers would read it; end token 399 lies outside the first ids."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).mul(0.05).to(torch.bfloat16)

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_hidden_layers": LAYERS,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "eos_token_id": 399,
        "tie_word_embeddings": tied,
    }
    layer = f"model.layers.{LAYERS - 1}."
    tensors = {
        "model.embed_tokens.weight": normal(VOCAB, HIDDEN),
        "model.norm.weight": normal(HIDDEN) + 1,
        f"{layer}input_layernorm.weight": normal(HIDDEN) + 1,
        f"{layer}post_attention_layernorm.weight": normal(HIDDEN) + 1,
        f"{layer}self_attn.q_proj.weight": normal(32, HIDDEN),
        f"{layer}self_attn.k_proj.weight": normal(16, HIDDEN),
        f"{layer}self_attn.v_proj.weight": normal(16, HIDDEN),
        f"{layer}self_attn.o_proj.weight": normal(HIDDEN, 32),
        f"{layer}mlp.gate_proj.weight": normal(48, HIDDEN),
        f"{layer}mlp.up_proj.weight": normal(48, HIDDEN),
        f"{layer}mlp.down_proj.weight": normal(HIDDEN, 48),
    }
    if not tied:
        tensors["lm_head.weight"] = normal(VOCAB, HIDDEN)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 398, "special": True}]}))
    return TargetSpec(model=str(folder))


def target(folder: Path) -> TargetModel:
    return load_target(write_target(folder))


def draft_of(model: TargetModel) -> tuple[DraftModel, VocabularyMap]:
    ids = initial_draft.initial_vocabulary(DRAFT_VOCAB, VOCAB, model.special_tokens)
    draft = initial_draft.initial_draft(model, initial_draft.draft_config(model, DRAFT_VOCAB), ids)
    return draft, VocabularyMap.of(ids, VOCAB)


def trace(
    seed: int, *, prompt: int = 6, answer: int = 12, hidden_start: int = 0, steps: int = 2, least: int = 0
) -> RequestTrace:
    """A random request as capture would record it. Its rounds accept 0 to ``steps`` of ``steps`` draft tokens.

    All token ids are at least ``least``.
    """
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    length = prompt + answer
    tokens = integers(least, VOCAB, length).to(torch.int32)
    roots, accepted = [], []
    at = prompt
    while at < length - 1:
        a = min(int(integers(0, steps + 1, 1)), length - 2 - at)
        roots.append(at)
        accepted.append(a)
        at += a + 1
    nodes = len(roots) * (steps + 1)
    node = torch.arange(nodes) % (steps + 1)
    depth = torch.tensor(accepted).repeat_interleave(steps + 1)
    root = torch.tensor(roots, dtype=torch.int32)
    position = (root.repeat_interleave(steps + 1) + node).clamp(max=length - 1)
    on_path = node <= depth
    logits = torch.randn(nodes, VOCAB, generator=generator) * 2
    following = tokens[(position + 1).clamp(max=length - 1)].long()
    logits[torch.arange(nodes), following] += 9.0 * on_path  # the committed token is the target's most likely one
    top = logits.log_softmax(-1).topk(TOP_K)
    return RequestTrace(
        request=prompt_hash(tokens[:prompt].tolist()),
        prompt_length=prompt,
        hidden_start=hidden_start,
        tokens=tokens,
        hidden=torch.randn(length - 1 - hidden_start, 3 * HIDDEN, generator=generator).to(torch.bfloat16),
        root=root,
        node_count=torch.full((len(roots),), steps + 1, dtype=torch.int32),
        accepted=torch.tensor(accepted, dtype=torch.int32),
        version=torch.zeros(len(roots), dtype=torch.int32),
        source=sources_without_controller(torch.full((len(roots),), steps + 1)),
        node_token=torch.where(on_path, tokens[position.long()], integers(0, VOCAB, nodes).to(torch.int32)),
        node_parent=(node - 1).to(torch.int16),
        node_accepted=on_path,
        top_ids=top.indices.to(torch.int32),
        top_logprobs=top.values.to(torch.float16),
        uncaptured_mass=(1 - top.values.exp().sum(-1)).clamp(0, 1).to(torch.float16),
    )


def whole(states: KeptStates) -> torch.Tensor:
    """The states ``[S, H3]`` in one tensor, unpacked."""
    return torch.cat([unpacked(block.states, block.scale) for block in states.blocks])


class MemoryObjects(ObjectStore):
    """Objects in a dictionary. ``fail_at`` makes the n-th change from now raise, as a kill would."""

    def __init__(self) -> None:
        self.config = StoreConfig("bucket", "aurora/team/chat-1a2b3c4d")
        self.data: dict[str, bytes] = {}
        self.written: dict[str, datetime] = {}
        self.fail_at: int | None = None
        self.changes = 0
        """How many changes were tried."""
        self._probe = "probe/0"
        answer_ranges(self)

    def _fail(self) -> None:
        self.changes += 1
        if self.fail_at is not None:
            if self.fail_at == 0:
                raise KeyboardInterrupt
            self.fail_at -= 1

    def _write(self, key: str, data: bytes) -> None:
        self._fail()
        self.data[key] = data
        self.written[key] = datetime.now(UTC)

    def put(self, key: str, data: bytes) -> None:
        self._write(key, data)

    def create(self, key: str, data: bytes) -> None:
        if key in self.data:
            if self.data[key] == data:
                return
            raise ObjectExists(key)
        self._write(key, data)

    def upload(self, key: str, path: Path) -> None:
        self._write(key, path.read_bytes())

    def create_file(self, key: str, path: Path) -> None:
        if key in self.data:
            raise ObjectExists(key)
        self._write(key, path.read_bytes())

    def get(self, key: str, sha256: str | None = None, *, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
        if key not in self.data:
            raise ObjectMissing(key)
        if len(self.data[key]) > max_bytes:
            raise ObjectTooLarge(key)
        if sha256 is not None and hashlib.sha256(self.data[key]).hexdigest() != sha256:
            raise DigestMismatch(key)
        return self.data[key]

    def download(self, key: str, path: Path, sha256: str, *, max_bytes: int) -> None:
        path.write_bytes(self.get(key, sha256, max_bytes=max_bytes))

    def list_objects(self, prefix: str, *, after: str = "", limit: int = MAX_LISTED_OBJECTS) -> Iterator[ObjectInfo]:
        keys = sorted(key for key in self.data if key.startswith(prefix) and key > after)
        yield from [ObjectInfo(key, len(self.data[key]), self.written[key]) for key in keys]

    def delete(self, key: str) -> None:
        self._fail()
        self.data.pop(key, None)


def ticking_clock() -> Iterator[datetime]:
    """Times that are a second apart."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    while True:
        now += timedelta(seconds=1)
        yield now


def open_lineage(registry: PodRegistry, model: TargetModel, times: Iterator[datetime]) -> None:
    """Create the lineage of ``model`` with its initial draft; each record takes the next of ``times``."""
    lineage.open_lineage(registry, model, DRAFT_SPEC, lambda: next(times))


def memory_registry() -> tuple[PodRegistry, MemoryObjects]:
    objects = MemoryObjects()
    return PodRegistry(objects), objects


def put_shard(
    registry: PodRegistry, seq: int, traces: list[RequestTrace], state_type: StateType = StateType.BFLOAT16
) -> str:
    """Write a shard as an agent would."""
    data = encode(traces, state_type)
    created = utc_now()
    stem = f"pod-0-boot-{seq:08d}"
    return put_shard_bytes(
        registry,
        ShardManifest(
            lineage=1,
            pod="pod-0",
            boot="boot",
            seq=seq,
            file=FileRef(name=f"{stem}.safetensors", sha256=hashlib.sha256(data).hexdigest(), size=len(data)),
            requests=len(traces),
            tokens=sum(t.hidden.shape[0] for t in traces),
            answer_tokens=sum(t.answer_tokens for t in traces),
            rounds=sum(t.root.shape[0] for t in traces),
            proposed=sum(t.node_token.shape[0] - t.root.shape[0] for t in traces),
            accepted=sum(int(t.accepted.sum()) for t in traces),
            dropped_records=0,
            created=created,
        ),
        data,
    )
