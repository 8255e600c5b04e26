"""The trainer process against a real S3: traces become a candidate, and a kill loses nothing and doubles nothing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aurora_api.pod import SETTINGS_VARIABLE, StoreSettings, TrainerSettings
from aurora_api.records import FileRef, Registration, ShardManifest, TrainerPhase, TrainerState
from aurora_api.speculator import Draft, Target, Training
from aurora_runtime.store import ObjectStore, Registry
from aurora_runtime.traces import RequestTrace, encode
from aurora_runtime.training.janitor import orphans
from aurora_runtime.training.lineage import utc_now
from tests.assets.model import ensure_model
from tests.assets.s3 import S3, seaweedfs
from tests.assets.traces import json_traces

SHARD_REQUESTS = 30
WAIT_S = 600.0


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with seaweedfs() as server:
        yield server


@pytest.fixture
def registry(s3: S3, request: pytest.FixtureRequest) -> Registry:
    objects = ObjectStore(s3.config(root=request.node.name.lower()))
    objects.ensure_bucket()
    return Registry(objects)


def settings_for(registry: Registry, training: Training) -> TrainerSettings:
    config = registry.objects.config
    return TrainerSettings(
        namespace="default",
        name="test",
        target=Target(model=str(ensure_model())),
        draft=Draft(),
        training=training,
        store=StoreSettings(bucket=config.bucket, root=config.root, endpoint=config.endpoint, region=config.region),
    )


@contextlib.contextmanager
def trainer(s3: S3, settings: TrainerSettings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A trainer process; killed at the end if it is still there."""
    environment = os.environ | s3.environment() | {SETTINGS_VARIABLE: settings.to_json().decode()}
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "aurora_runtime.training"],
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def wait_for(what: str, probe: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not probe():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"{what}: exit {process.poll()}\n{log.read_text()[-4000:]}")
        time.sleep(0.5)


def put_shards(registry: Registry, traces: list[RequestTrace]) -> list[str]:
    keys = []
    for seq, start in enumerate(range(0, len(traces), SHARD_REQUESTS)):
        part = traces[start : start + SHARD_REQUESTS]
        data = encode(part)
        name = f"pod-0-b00t-{seq:08d}.safetensors"
        manifest = ShardManifest(
            lineage=1,
            pod="pod-0",
            boot="b00t",
            seq=seq,
            file=FileRef(name=name, sha256=hashlib.sha256(data).hexdigest(), size=len(data)),
            requests=len(part),
            tokens=sum(t.hidden.shape[0] for t in part),
            answer_tokens=sum(t.answer_tokens for t in part),
            rounds=sum(t.root.shape[0] for t in part),
            proposed=0,
            accepted=0,
            dropped_records=0,
            draft_versions=(0,),
            created=utc_now(),
        )
        keys.append(registry.put_shard(manifest, data))
    return keys


def state_of(registry: Registry) -> TrainerState | None:
    stored = registry.trainer_state()
    return stored[0] if stored else None


def stop(process: subprocess.Popen[bytes]) -> float:
    """SIGTERM; returns how long the process took to leave."""
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    return time.monotonic() - began


def test_traces_become_a_candidate_although_the_trainer_is_killed(s3: S3, registry: Registry, tmp_path: Path) -> None:
    traces = json_traces()
    fresh = sum(t.hidden.shape[0] for t in traces if not t.held_out)
    settings = settings_for(registry, Training(publish_tokens=fresh - 2000, publish_seconds=3600))
    log = tmp_path / "trainer.log"

    with trainer(s3, settings, log) as process:
        wait_for("day 0", registry.lineage, process, log)
        assert registry.last_version() == 0
        keys = put_shards(registry, traces)
        wait_for("a first state", lambda: state_of(registry), process, log)
        process.kill()
        process.wait(10)
    before = state_of(registry)
    assert before is not None
    assert 0 < len(before.consumed) < len(keys)

    with trainer(s3, settings, log) as process:
        wait_for("a candidate", lambda: registry.last_version() == 1, process, log)
        wait_for("all shards", lambda: (s := state_of(registry)) and len(s.consumed) == len(keys), process, log)
        status = registry.trainer_status()
        assert stop(process) < 10
        assert process.returncode == 0, log.read_text()[-4000:]

    after = state_of(registry)
    assert after is not None
    assert sorted(after.consumed) == sorted(keys)
    assert after.consumed[: len(before.consumed)] == before.consumed
    assert after.trained_tokens == fresh  # every position counted once: none lost, none twice
    assert after.step > before.step
    assert status is not None
    assert status.phase in (TrainerPhase.TRAINING, TrainerPhase.WAITING_FOR_TRACES)

    registration = registry.registration(1)
    assert registration.held_out_accept_length is not None
    assert registration.held_out_accept_length > 1.5
    manifest = registry.fetch_checkpoint(registration, tmp_path / "v1")  # digests verified
    assert manifest.parent == 0
    lineage = registry.lineage()
    assert lineage is not None
    assert digest_of_d2t(tmp_path / "v1") == lineage.d2t_sha256 == digest_of_version(registry, 0, tmp_path / "v0")
    assert orphans(registry) == set()


def digest_of_d2t(folder: Path) -> str:
    from safetensors.torch import load_file

    return hashlib.sha256(load_file(folder / "model.safetensors")["d2t"].numpy().tobytes()).hexdigest()


def digest_of_version(registry: Registry, version: int, folder: Path) -> str:
    registration: Registration = registry.registration(version)
    registry.fetch_checkpoint(registration, folder)
    return digest_of_d2t(folder)


def test_suspended_creates_the_lineage_and_trains_nothing(s3: S3, registry: Registry, tmp_path: Path) -> None:
    settings = settings_for(registry, Training(suspended=True))
    log = tmp_path / "trainer.log"
    with trainer(s3, settings, log) as process:
        wait_for("a status", lambda: registry.trainer_status(), process, log)
        status = registry.trainer_status()
        assert status is not None
        assert status.phase is TrainerPhase.SUSPENDED
        assert registry.registration(0).trained_tokens == 0
        assert stop(process) < 10
        assert process.returncode == 0
