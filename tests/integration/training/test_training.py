"""The trainer process against a real S3: traces become a candidate, and a kill loses no trace and trains none twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aurora_api.v1alpha1.training import TrainingSpec
from aurora_protocol.training_records import TrainerPhase
from aurora_runtime.engine.draft_file_check import WEIGHTS, check_draft_file
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training.state.orphan_cleanup import orphans
from aurora_store import ObjectStore
from tests.assets.model import ensure_model
from tests.assets.s3 import S3, seaweedfs
from tests.assets.traces.recorded import json_traces
from tests.assets.trainer_process import (
    put_shards,
    running_trainer,
    stop_trainer,
    stored_trainer_state,
    trainer_settings,
    wait_for,
)

REQUESTS = 96
"""As many teach a draft enough to be registered."""
SHARD_REQUESTS = 16


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with seaweedfs() as server:
        yield server


@pytest.fixture
def registry(s3: S3, request: pytest.FixtureRequest) -> PodRegistry:
    objects = ObjectStore(s3.config(root=request.node.name.lower()))
    objects.ensure_bucket()
    return PodRegistry(objects)


def test_traces_become_a_candidate_although_the_trainer_is_killed(
    s3: S3, registry: PodRegistry, tmp_path: Path
) -> None:
    traces = json_traces()[:REQUESTS]
    fresh = sum(t.hidden.shape[0] for t in traces if not t.held_out)
    settings = trainer_settings(registry, ensure_model(), TrainingSpec(publish_tokens=fresh - 2000))
    log = tmp_path / "trainer.log"

    with running_trainer(s3, settings, log) as process:
        wait_for("the initial draft", registry.lineage, process, log)
        assert registry.last_version() == 0
        keys = put_shards(registry, traces, SHARD_REQUESTS)
        wait_for("a first state", lambda: stored_trainer_state(registry), process, log)
        process.kill()
        process.wait(10)
    before = stored_trainer_state(registry)
    assert before is not None
    assert 0 < len(before.consumed) < len(keys)

    with running_trainer(s3, settings, log) as process:
        wait_for("a candidate", lambda: registry.last_version() == 1, process, log)
        wait_for("all shards", lambda: (s := registry.trainer_status()) and s.shards == len(keys), process, log)
        status = registry.trainer_status()
        assert stop_trainer(process) < 10
        assert process.returncode == 0, log.read_text()[-4000:]

    after = stored_trainer_state(registry)
    assert after is not None
    assert sorted(after.consumed) == sorted(keys)
    assert after.consumed[: len(before.consumed)] == before.consumed
    assert after.trained_tokens == fresh  # every position counted once
    assert after.step > before.step
    assert status is not None
    assert status.phase in (TrainerPhase.TRAINING, TrainerPhase.WAITING_FOR_TRACES)

    registration = registry.registration(1)
    assert registration.held_out_acceptance_length is not None
    assert registration.held_out_acceptance_length > 1.5
    manifest = registry.fetch_checkpoint(registration, tmp_path / "v1")  # digests verified
    assert manifest.parent == 0
    lineage = registry.lineage()
    assert lineage is not None
    check_draft_file(tmp_path / "v1" / WEIGHTS, lineage)  # a pod would load it
    assert orphans(registry) == set()
