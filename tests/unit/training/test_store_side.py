"""Lineage, shards, candidates and clean-up against the store's contract, kills included."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.target import TargetSpec
from aurora_api.v1alpha1.training import TrainingSpec
from aurora_protocol.training_records import TrainerPhase
from aurora_runtime.errors import CheckpointFormatError, Interrupted, TargetUnavailable
from aurora_runtime.traces import RequestTrace
from aurora_runtime.training import lineage
from aurora_runtime.training.candidates import Candidates
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.data.held_out import HeldOutSet
from aurora_runtime.training.data.prefix_bank import PrefixBank
from aurora_runtime.training.data.shards import ShardReader
from aurora_runtime.training.evaluation import evaluate
from aurora_runtime.training.model import checkpoint
from aurora_runtime.training.model.target import TargetModel, load_target
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.optim.vocabulary_remap import remapped
from aurora_runtime.training.progress import StatusWriter
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.state.orphan_cleanup import OrphanCleanup, orphans
from aurora_runtime.training.state.shard_ledger import ShardLedger
from aurora_store import Keys, Registry
from aurora_store.errors import StoreError
from tests.unit.training import tiny

SPEC = DraftSpec(vocab_size=tiny.DRAFT_VOCAB)


def clock() -> Iterator[datetime]:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    while True:
        at += timedelta(seconds=1)
        yield at


@pytest.fixture
def model(tmp_path: Path) -> TargetModel:
    return tiny.target(tmp_path / "target")


def open_at(registry: Registry, model: TargetModel, times: Iterator[datetime]) -> None:
    lineage.open_lineage(registry, model, SPEC, lambda: next(times))


def test_creating_the_lineage_survives_a_kill_before_any_write(model: TargetModel) -> None:
    whole, objects = tiny.memory_registry()
    times = clock()
    open_at(whole, model, times)
    writes = len(objects.data)
    assert writes == 5  # config, weights, manifest, registration, lineage
    for kill in range(writes):
        registry, objects = tiny.memory_registry()
        objects.fail_at = kill
        with pytest.raises(KeyboardInterrupt):
            open_at(registry, model, times)
        if registry.lineage() is not None:
            registry.registration(0)
        objects.fail_at = None
        open_at(registry, model, times)
        stored = registry.lineage()
        assert stored is not None
        assert registry.registration(0).digest == whole.registration(0).digest
        assert orphans(registry) == set()
        before = dict(objects.data)
        open_at(registry, model, times)
        assert objects.data == before


def test_a_changed_target_is_refused(model: TargetModel, tmp_path: Path) -> None:
    registry, _ = tiny.memory_registry()
    open_at(registry, model, clock())
    other = load_target(tiny.write_target(tmp_path / "other", tied=False))
    with pytest.raises(CheckpointFormatError, match="another target"):
        open_at(registry, other, clock())


def test_the_checkpoint_is_what_sglang_loads(model: TargetModel, tmp_path: Path) -> None:
    draft, vocabulary = tiny.draft_of(model)
    exported = checkpoint.export(draft, vocabulary.to_target, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    h, v = tiny.HIDDEN, tiny.DRAFT_VOCAB
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [1, 3, 4]
    assert {n: tuple(t.shape) for n, t in tensors.items()} == {
        "fc.weight": (h, 3 * h),
        "midlayer.hidden_norm.weight": (h,),
        "midlayer.input_layernorm.weight": (h,),
        "midlayer.post_attention_layernorm.weight": (h,),
        "midlayer.self_attn.q_proj.weight": (32, 2 * h),
        "midlayer.self_attn.k_proj.weight": (16, 2 * h),
        "midlayer.self_attn.v_proj.weight": (16, 2 * h),
        "midlayer.self_attn.o_proj.weight": (h, 32),
        "midlayer.mlp.gate_proj.weight": (48, h),
        "midlayer.mlp.up_proj.weight": (48, h),
        "midlayer.mlp.down_proj.weight": (h, 48),
        "norm.weight": (h,),
        "lm_head.weight": (v, h),
        "d2t": (v,),
        "t2d": (tiny.VOCAB,),
    }
    assert {n: (t.shape, t.dtype) for n, t in exported.tensors.items()}["d2t"] == ((v,), "I64")
    assert (tensors["d2t"] + torch.arange(v)).tolist() == vocabulary.to_target.tolist()
    assert int(tensors["t2d"].sum()) == v
    assert all((tmp_path / "out" / f.name).stat().st_mode & 0o777 == 0o644 for f in exported.files)
    again, ids = checkpoint.load(tmp_path / "out", model.embedding)
    assert ids.tolist() == vocabulary.to_target.tolist()
    assert checkpoint.export(again, ids, tmp_path / "twice").digest == exported.digest
    assert again.config == draft.config


def test_the_error_for_a_missing_target_file_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailable, match=r"config\.json"):
        load_target(TargetSpec(model=str(tmp_path)))


def reader_of(registry: Registry, model: TargetModel) -> ShardReader:
    return ShardReader(registry, tiny.VOCAB, 3 * tiny.HIDDEN, Retrier())


def test_shards_are_split_by_request_and_consumed_once(model: TargetModel) -> None:
    registry, _ = tiny.memory_registry()
    traces = [tiny.trace(seed) for seed in range(40)]
    keys = [tiny.put_shard(registry, i, traces[i * 10 : i * 10 + 10]) for i in range(4)]
    reader, ledger = reader_of(registry, model), ShardLedger(registry, 1, Retrier())
    assert ledger.pending() == keys
    held, trained = set(), 0
    for key in keys:
        shard = reader.read(key)
        assert shard is not None
        held |= {request for request, _ in shard.held_out}
        trained += len(shard.train)
        ledger.consume(key)
    assert held == {t.request for t in traces if t.held_out}
    assert trained == sum(not t.held_out for t in traces)
    assert held
    assert ledger.pending() == []
    assert ledger.total == 4


def cached(trace: RequestTrace, length: int) -> RequestTrace:
    """``trace`` as captured when its first ``length`` positions came from the prefix cache."""
    return dataclasses.replace(trace, hidden_start=length, hidden=trace.hidden[length:])


def test_states_missing_after_a_prefix_cache_hit_are_borrowed() -> None:
    first, other = tiny.trace(1, prompt=12), tiny.trace(2, prompt=12)
    shared = torch.cat([first.tokens[:8], other.tokens[8:]])
    states = torch.cat([first.hidden[:8], other.hidden[8:]])
    second = dataclasses.replace(other, tokens=shared, hidden=states)
    bank = PrefixBank(1 << 28, 256)
    assert bank.complete(first) is first
    whole = bank.complete(cached(second, 8))
    assert whole.hidden_start == 0
    assert torch.equal(whole.hidden, states)
    # In a chain of conversations, the third shares with the second a prefix that the first lacks.
    third = dataclasses.replace(second, tokens=second.tokens.clone())
    assert torch.equal(bank.complete(cached(third, 11)).hidden, states)
    # No state is borrowed across a different token, or from an empty bank.
    stranger = dataclasses.replace(second, tokens=torch.cat([shared[:3] + 1, shared[3:]]))
    assert bank.complete(cached(stranger, 8)).hidden_start == 8
    assert PrefixBank(1 << 28, 256).complete(cached(second, 8)).hidden_start == 8


def test_borrowed_states_do_not_count_as_fresh() -> None:
    trace = tiny.trace(1, prompt=12)
    (example,) = examples_of(trace, tiny.VOCAB, counted_positions=7)
    assert example.fresh == trace.hidden.shape[0] - 7


def test_the_prefix_bank_is_bounded() -> None:
    size = tiny.trace(0).hidden.numel() * 2
    bank = PrefixBank(limit_bytes=3 * size, limit_traces=100)
    traces = [tiny.trace(seed) for seed in range(9)]
    for trace in traces:
        bank.complete(trace)
    found = [bank.complete(cached(t, 5)).hidden_start == 0 for t in reversed(traces)]
    assert found[:2] == [True, True]
    assert not any(found[3:])


def poison(trace: RequestTrace) -> RequestTrace:
    return dataclasses.replace(trace, hidden=torch.full_like(trace.hidden, float("nan")))


def test_a_damaged_shard_is_counted_and_skipped(model: TargetModel) -> None:
    registry, objects = tiny.memory_registry()
    keys = [tiny.put_shard(registry, i, [tiny.trace(i)]) for i in range(5)]
    data = [k.replace(".json", ".safetensors") for k in keys]
    objects.data[data[0]] = objects.data[data[0]][:-1] + b"!"  # flipped byte
    del objects.data[data[1]]
    objects.data[keys[2]] = b"{}"
    keys.append(tiny.put_shard(registry, 6, [poison(tiny.trace(6))]))
    narrow = dataclasses.replace(tiny.trace(7), hidden=tiny.trace(7).hidden[:, :5].contiguous())
    keys.append(tiny.put_shard(registry, 7, [narrow]))
    reader = reader_of(registry, model)
    assert [reader.read(k) is None for k in keys] == [True, True, True, False, False, True, True]
    assert reader.damaged == 5


def test_held_out_keeps_the_newest_request_of_each_prompt() -> None:
    held = HeldOutSet(3)
    examples = {seed: tuple(examples_of(tiny.trace(seed), tiny.VOCAB)) for seed in range(5)}
    for seed in (0, 1, 2, 0, 3):
        held.add(seed, examples[seed])
    assert [id(e) for e in held.newest_first()] == [id(examples[s][0]) for s in (3, 0, 2)]


def offering(registry: Registry, model: TargetModel) -> tuple[Session, Candidates, HeldOutSet]:
    """A session that was trained on its own held-out set, so that a gain is certain."""
    open_at(registry, model, clock())
    draft, vocabulary = lineage.fetch_draft(registry, 0, model)
    held_draft = lineage.fetch_draft(registry, 0, model)
    session = Session(draft, vocabulary, Recipe(learning_rate=5e-3), torch.device("cpu"))
    held = HeldOutSet(8)
    for seed in range(6):
        held.add(seed, tuple(examples_of(tiny.trace(seed, answer=20), tiny.VOCAB)))
    settings = TrainingSpec(publish_tokens=256, publish_seconds=3600)
    candidates = Candidates(registry, 1, settings, 3, registry.registration(0), held_draft)
    for _ in range(40):
        session.step(held.newest_first())
    return session, candidates, held


def test_a_draft_is_registered_only_for_a_gain_and_only_once(model: TargetModel) -> None:
    registry, _ = tiny.memory_registry()
    session, candidates, held = offering(registry, model)
    assert not candidates.due(255, session.steps)
    assert candidates.due(256, session.steps)
    first = candidates.offer(session, held, 300)
    assert first.registration is not None
    assert first.registration.version == 1
    assert registry.checkpoint(first.registration).parent == 0
    assert not candidates.due(600, session.steps)  # no step since
    second = candidates.offer(session, held, 600)
    assert second.registration is None
    assert registry.last_version() == 1


def test_the_average_of_the_weights_is_evaluated_and_registered(model: TargetModel) -> None:
    registry, _ = tiny.memory_registry()
    session, candidates, held = offering(registry, model)
    trained = evaluate(session.draft, held.newest_first(), session.vocabulary, 3)
    served = evaluate(session.served, held.newest_first(), session.vocabulary, 3)
    offered = candidates.offer(session, held, 300)
    assert offered.candidate == served != trained
    registered, _ = lineage.fetch_draft(registry, 1, model)
    heads = [draft.lm_head.weight.bfloat16() for draft in (registered, session.served, session.draft)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_each_draft_is_evaluated_and_registered_with_its_own_map(model: TargetModel) -> None:
    registry, _ = tiny.memory_registry()
    session, candidates, held = offering(registry, model)
    ids = torch.arange(tiny.VOCAB - tiny.DRAFT_VOCAB, tiny.VOCAB)
    session.restore(remapped(session.state(), ids, model.head))
    session.step(held.newest_first())
    first, vocabulary = lineage.fetch_draft(registry, 0, model)
    before = evaluate(first, held.newest_first(), vocabulary, 3)
    offered = candidates.offer(session, held, 300)
    assert offered.registration is not None
    assert offered.registration.lineage == 1
    assert f"version 0 has {before.acceptance_length:.2f}" in offered.message
    draft, registered = lineage.fetch_draft(registry, 1, model)
    assert registered.to_target.tolist() == ids.tolist()
    after = evaluate(draft, held.newest_first(), registered, 3)
    assert after.coverage == offered.candidate.coverage  # type: ignore[union-attr]
    session.restore(remapped(session.state(), vocabulary.to_target, model.head))
    again = candidates.offer(session, held, 600)
    assert f"version 1 has {after.acceptance_length:.2f}" in again.message


def test_a_taken_number_is_skipped_and_a_crash_registers_no_draft_twice(model: TargetModel) -> None:
    registry, objects = tiny.memory_registry()
    session, candidates, held = offering(registry, model)
    other = registry.registration(0).model_copy(update={"version": 1})
    racing = iter([0])
    # The other trainer registers between the check and the attempt.
    registry.last_version = lambda: next(racing, 1)  # type: ignore[method-assign]
    registry.register(other)
    offered = candidates.offer(session, held, 300)
    assert offered.registration is not None
    assert offered.registration.version == 2
    # After a crash right after registering, only the registry knows the version.
    del registry.last_version
    before = set(objects.data)
    held_draft = lineage.fetch_draft(registry, 0, model)
    reborn = Candidates(registry, 1, TrainingSpec(), 3, registry.registration(0), held_draft)
    again = reborn.offer(session, held, 300)
    assert again.registration == offered.registration
    assert set(objects.data) == before


def test_cleanup_deletes_only_objects_that_no_manifest_names(model: TargetModel) -> None:
    registry, objects = tiny.memory_registry()
    open_at(registry, model, clock())
    complete = set(objects.data)
    objects.put("checkpoints/00000007-abc/model.safetensors", b"half")
    objects.put("trainer/state/00000003/state.safetensors", b"half")
    objects.put("trainer/state/00000002/state.safetensors", b"whole")
    objects.put(Keys.trainer_state(2), b"{}")
    assert OrphanCleanup(registry, grace_seconds=3600).delete_due() == 0
    cleanup = OrphanCleanup(registry, grace_seconds=0)
    objects.put("checkpoints/00000008-def/model.safetensors", b"being uploaded since the first look")
    assert cleanup.delete_due() == 2
    kept = {"checkpoints/00000008-def/model.safetensors", "trainer/state/00000002/state.safetensors"}
    assert set(objects.data) == complete | kept | {Keys.trainer_state(2)}


def test_an_orphan_that_cannot_be_deleted_does_not_block_the_others(
    model: TargetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, objects = tiny.memory_registry()
    for name in "ab":
        objects.put(f"checkpoints/00000007-{name}/model.safetensors", b"half")
    cleanup, real = OrphanCleanup(registry, grace_seconds=0), objects.delete

    def delete(key: str) -> None:
        if "-a/" in key:
            raise StoreError("AccessDenied")
        real(key)

    monkeypatch.setattr(objects, "delete", delete)
    assert cleanup.delete_due() == 1
    assert list(objects.data) == ["checkpoints/00000007-a/model.safetensors"]


def test_a_store_that_refuses_deletions_is_detected_at_the_start_and_left_with_one_object(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objects = tiny.MemoryObjects()
    real = objects.delete

    def refuse(key: str) -> None:
        raise StoreError("AccessDenied")

    monkeypatch.setattr(objects, "delete", refuse)
    for _ in range(3):
        with pytest.raises(StoreError, match="DeleteObject"):
            objects.probe()
    assert len(objects.data) == 1
    monkeypatch.setattr(objects, "delete", real)
    objects.probe()
    assert objects.data == {}


def test_an_announced_phase_keeps_the_other_fields_of_the_status() -> None:
    registry, _ = tiny.memory_registry()
    StatusWriter(registry).announce(TrainerPhase.STARTING, message="reading the target failed: set HF_TOKEN")
    status = registry.trainer_status()
    assert status is not None
    assert (status.phase, status.message, status.step) == (
        TrainerPhase.STARTING,
        "reading the target failed: set HF_TOKEN",
        0,
    )
    registry.put_trainer_status(status.model_copy(update={"step": 7, "held_out_acceptance_length": 2.5}))
    StatusWriter(registry).announce(TrainerPhase.SUSPENDED, lineage=1)
    status = registry.trainer_status()
    assert status is not None
    assert (status.phase, status.step, status.held_out_acceptance_length, status.lineage) == (
        TrainerPhase.SUSPENDED,
        7,
        2.5,
        1,
    )


def test_the_error_for_a_gated_model_names_hf_token(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise RepositoryNotFoundError("401", response=httpx.Response(401, request=httpx.Request("GET", "http://hub")))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(TargetUnavailable, match="set HF_TOKEN"):
        load_target(TargetSpec(model="meta/gated"))


def test_a_retry_outlasts_an_outage_and_ends_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aurora_runtime.training.retry.INITIAL_BACKOFF_SECONDS", 0.001)
    retrier = Retrier()
    outages = iter(range(2))

    def flaky() -> int:
        if next(outages, None) is not None:
            raise StoreError("down")
        return 7

    failures = list[str]()
    assert retrier.call("testing", flaky, failures.append) == 7
    assert failures == ["testing failed: down"] * 2

    def down() -> int:
        retrier.stop()
        raise StoreError("down")

    with pytest.raises(Interrupted):
        retrier.call("testing", down)
