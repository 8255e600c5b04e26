"""A trainer state that contradicts itself or its lineage is a damaged one: the trainer resumes from the one before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from aurora_protocol.training_records import TrainerState
from aurora_runtime.training.state import replay_restore
from aurora_runtime.training.state.state_check import max_state_bytes
from aurora_store import Keys
from tests.unit.training.trainer_rig import Traffic, TrainerRig

HEAD = "weight.lm_head.weight"
Tensors = dict[str, Tensor]


@pytest.fixture
def rig(tmp_path: Path) -> TrainerRig:
    return TrainerRig(tmp_path)


def rewrite(rig: TrainerRig, change: Callable[[dict[str, Any], Tensors], None]) -> TrainerState:
    """Change the newest state's record and data, and give the data their own digest. Returns the state before."""
    registry = rig.registry
    before, newest = (registry.trainer_state(epoch) for epoch in registry.trainer_state_epochs()[-2:])
    assert before is not None
    assert newest is not None
    record, tensors = newest[0].model_dump(mode="json", by_alias=True), load(newest[1])
    change(record, tensors)
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    size = record["file"]["size"]
    file = {"name": Keys.trainer_state_file(digest), "sha256": digest}
    record["file"] = file | {"size": len(data) if size == len(newest[1]) else size}
    rig.objects.put(Keys.trainer_state_folder(record["epoch"]) + file["name"], data)
    rig.objects.put(Keys.trainer_state(record["epoch"]), json.dumps(record).encode())
    return before[0]


def put(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any], Tensors], None]:
    return lambda _, tensors: tensors.update({name: value(tensors[name])})


def set_record(**fields: Any) -> Callable[[dict[str, Any], Tensors], None]:
    return lambda record, _: record.update(fields)


def without(name: str) -> Callable[[dict[str, Any], Tensors], None]:
    def remove(_: dict[str, Any], tensors: Tensors) -> None:
        del tensors[name]

    return remove


def a_large_file(record: dict[str, Any], _: Tensors) -> None:
    record["file"]["size"] = 1 << 60


def a_shard_twice(record: dict[str, Any], _: Tensors) -> None:
    record["consumed"] = [record["consumed"][0]] * len(record["consumed"])


CONTRADICTIONS: dict[str, Callable[[dict[str, Any], Tensors], None]] = {
    "no shard": set_record(consumed=[]),
    "a shard twice": a_shard_twice,
    "a large file": a_large_file,
    "no weight": without(HEAD),
    "a weight of another shape": put(HEAD, lambda weight: weight[1:]),
    "a weight that is not finite": put(HEAD, lambda weight: weight.index_fill(0, torch.tensor([0]), torch.nan)),
    "a weight of another kind": put(HEAD, lambda weight: weight.long()),
    "a weight in a type that torch's loader does not know": put(HEAD, lambda weight: weight.to(torch.float8_e8m0fnu)),
    "half of the moments": without("exp_avg_sq.lm_head.weight"),
    "a negative second moment": put("exp_avg_sq.lm_head.weight", lambda moment: moment - 1),
    "an average that is not finite": put("ema_offset.norm.weight", lambda offset: offset / 0),
    "no steps": without("counters"),
    "a loss that is infinite": put("loss", lambda loss: loss + torch.inf),
    "a token beyond the vocabulary": put("vocabulary", lambda ids: ids + 10_000),
    "a token twice": put("vocabulary", torch.zeros_like),
    "no generator": put("generator", lambda state: state[:9]),
    "spans with a column less": put(replay_restore.SPANS, lambda spans: spans[:, :2]),
    "a held-out shard beyond the last": put(replay_restore.HELD_OUT, lambda _: torch.tensor([99])),
    "a counted request beyond the last": put(replay_restore.MEASURABLE, lambda _: torch.tensor([[1, 99]])),
    "counts of another vocabulary": put("coverage.counts", lambda counts: counts[1:]),
    "a budget that is a single number": put("replay.budget", lambda budget: budget[:1]),
}


@pytest.mark.parametrize("change", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_trainer_resumes_from_the_state_before_one_that_contradicts_itself(
    rig: TrainerRig, change: Callable[[dict[str, Any], Tensors], None]
) -> None:
    rig.trainer(Traffic(rig.registry, 3)).run()
    before = rewrite(rig, change)
    again = rig.trainer(Traffic(rig.registry, 0))
    assert again.learning.ledger.consumed == before.consumed
    assert again.learning.session.steps == before.step > 0


def test_a_state_that_is_only_stored_again_is_restored(rig: TrainerRig) -> None:
    """Else the other tests would show nothing."""
    rig.trainer(Traffic(rig.registry, 3)).run()
    before = rewrite(rig, lambda _, tensors: None)
    again = rig.trainer(Traffic(rig.registry, 0))
    assert len(again.learning.ledger.consumed) == len(before.consumed) + 1


def test_a_state_that_an_earlier_version_stored_is_restored(rig: TrainerRig) -> None:
    """It has no average, does not count requests, and has one more column for spans."""
    rig.trainer(Traffic(rig.registry, 3)).run()

    def remove(_: dict[str, Any], tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith("ema_") or name == replay_restore.MEASURABLE]:
            del tensors[name]
        spans = tensors[replay_restore.SPANS]
        tensors[replay_restore.SPANS] = torch.cat([spans, spans[:, :1]], dim=1)

    before = rewrite(rig, remove)
    assert rig.trainer(Traffic(rig.registry, 0)).learning.session.steps > before.step


def test_a_state_has_room_for_all_that_a_trainer_stores(rig: TrainerRig) -> None:
    rig.trainer(Traffic(rig.registry, 3)).run()
    record = rig.registry.trainer_state_record()
    assert record is not None
    assert record.file.size < max_state_bytes(rig.lineage)
