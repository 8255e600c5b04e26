"""Runs the trainer as its own process against a real S3, and writes shards to this S3 for the trainer to read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.serving import Device
from aurora_api.v1alpha1.target import TargetSpec
from aurora_api.v1alpha1.training import TrainingSpec
from aurora_protocol.draft_records import FileRef
from aurora_protocol.pod_settings import SETTINGS_VARIABLE, StoreSettings, TrainerSettings
from aurora_protocol.training_records import ShardManifest, TrainerState
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.traces import RequestTrace, encode
from aurora_runtime.training.lineage import utc_now
from tests.assets.s3 import S3
from tests.assets.shards import put_shard_bytes
from tests.assets.signing import ROOT_OWNER

TRAINER_MODULE = "aurora_runtime.training"
WAIT_SECONDS = 600.0


def trainer_settings(
    registry: PodRegistry, target: Path, training: TrainingSpec, draft: DraftSpec | None = None
) -> TrainerSettings:
    """The settings of a trainer for the target in ``target``, with the store of ``registry``."""
    config = registry.objects.config
    return TrainerSettings(
        namespace="default",
        name="test",
        target=TargetSpec(model=str(target)),
        draft=draft or DraftSpec(),
        training=training,
        device=Device.CPU,
        store=StoreSettings(
            owner=ROOT_OWNER.id, bucket=config.bucket, root=config.root, endpoint=config.endpoint, region=config.region
        ),
    )


@contextlib.contextmanager
def running_trainer(
    s3: S3, settings: TrainerSettings, log: Path, program: Sequence[str] = (TRAINER_MODULE,)
) -> Iterator[subprocess.Popen[bytes]]:
    """A trainer process. When the context ends, the process and its children are killed if they still run."""
    environment = os.environ | s3.environment() | {SETTINGS_VARIABLE: settings.to_json().decode()}
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", *program],
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def wait_for(description: str, condition: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until ``condition()`` is true.

    Raises:
        AssertionError: The process ended, or 600 s passed. The message contains the end of the log.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(
                f"{description}: not reached; the trainer's exit status: {process.poll()}\n{log.read_text()[-4000:]}"
            )
        time.sleep(0.5)


def stop_trainer(process: subprocess.Popen[bytes]) -> float:
    """Send SIGTERM, wait for the end, and return the seconds that it took."""
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    return time.monotonic() - started


def put_shards(registry: PodRegistry, traces: list[RequestTrace], requests: int, first: int = 0) -> list[str]:
    """Store the traces as shards of ``requests`` requests each, numbered from ``first``. Returns the shards' keys."""
    keys = []
    for seq, start in enumerate(range(0, len(traces), requests), first):
        part = traces[start : start + requests]
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
            created=utc_now(),
        )
        keys.append(put_shard_bytes(registry, manifest, data))
    return keys


def stored_trainer_state(registry: PodRegistry) -> TrainerState | None:
    """The newest trainer state in the store, or None before the first one."""
    stored = registry.trainer_state()
    return stored[0] if stored else None
