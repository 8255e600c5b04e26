"""The trainer on several processes against a real S3: a dying rank ends all, and no shard is trained twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.training import TrainingSpec
from aurora_operator.children.trainer_deployment import program
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training.state.orphan_cleanup import orphans
from aurora_store import ObjectStore
from tests.assets.s3 import S3, seaweedfs
from tests.assets.trainer_process import (
    put_shards,
    running_trainer,
    stop_trainer,
    stored_trainer_state,
    trainer_settings,
    wait_for,
)
from tests.unit.training import tiny

SHARD_REQUESTS = 20
SHARDS = 12


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with seaweedfs() as server:
        yield server


def ranks_below(pid: int) -> dict[int, int]:
    """Process ids of the ranks that the torchrun ``pid`` started."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        variables = dict(entry.split(b"=", 1) for entry in environment if b"=" in entry)
        found[int(variables[b"RANK"])] = int(child)
    return found


@pytest.mark.parametrize("dying", [0, 1])
def test_a_rank_that_dies_ends_all_and_nothing_is_trained_twice(s3: S3, tmp_path: Path, dying: int) -> None:
    objects = ObjectStore(s3.config(root=f"ranks-{dying}"))
    objects.ensure_bucket()
    registry = PodRegistry(objects)
    tiny.write_target(tmp_path / "target")
    traces = [tiny.trace(seed, answer=30) for seed in range(SHARDS * SHARD_REQUESTS)]
    fresh = sum(t.hidden.shape[0] for t in traces if not t.held_out)
    draft, training = (
        DraftSpec(vocab_size=tiny.DRAFT_VOCAB),
        TrainingSpec(publish_tokens=fresh // 2),
    )
    settings = trainer_settings(registry, tmp_path / "target", training, draft)
    log = tmp_path / "trainer.log"

    with running_trainer(s3, settings, log, program(2)) as process:
        wait_for("the initial draft", registry.lineage, process, log)
        keys = put_shards(registry, traces, SHARD_REQUESTS)
        wait_for("a first state", lambda: stored_trainer_state(registry), process, log)
        ranks = ranks_below(process.pid)
        os.kill(ranks[dying], signal.SIGKILL)
        assert process.wait(60) != 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    before = stored_trainer_state(registry)
    assert before is not None

    with running_trainer(s3, settings, log, program(2)) as process:
        wait_for("all shards", lambda: (s := registry.trainer_status()) and s.shards == len(keys), process, log)
        stop_trainer(process)
    after = stored_trainer_state(registry)
    assert after is not None
    assert sorted(after.consumed) == sorted(keys)
    assert after.consumed[: len(before.consumed)] == before.consumed
    assert after.trained_tokens == fresh  # every position counted once
    assert orphans(registry) == set()
    assert "Traceback" not in log.read_text().rsplit("resumed at step", 1)[1].split("stopping on signal")[0]
