"""What the containers of an inference pod agree on: files in the shared folder, names, the capture plugin's settings.

No torch and no sglang: the agent imports this. Invariant: every file named here is replaced by an atomic rename, so
that a reader never sees half of one.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import Field

from aurora_api.base import Ratio, Timestamp
from aurora_protocol.agent_api import EngineMode, Machine, measurement_pass
from aurora_protocol.record import Record, Sha256

CAPTURE_VARIABLE: Final = "AURORA_CAPTURE"
PROBE_PREFIX: Final = "aurora-probe-"
"""Request ids that start so are the launcher's own: captured to prove that capture works, and never written down."""


class CaptureSettings(Record):
    """``AURORA_CAPTURE``: what the launcher tells the plugin in SGLang's processes."""

    state: str = Field(description="The pod's shared folder.")
    lineage: int = Field(ge=1)
    pod: str
    boot: str
    sample_ratio: Ratio = "1"
    top_k: int = Field(default=32, ge=1)
    shard_seconds: float = Field(default=20, gt=0)
    shard_tokens: int = Field(default=16384, ge=1)
    spool_shards: int = Field(default=64, ge=1, description="Shards waiting for upload before the oldest is dropped.")
    spool_bytes: int = Field(default=4 << 30, ge=1)
    queue_records: int = Field(default=2048, ge=1, description="Batches between the scheduler and the writer.")
    open_bytes: int = Field(default=2 << 30, ge=1, description="Hidden states held for unfinished requests.")
    hooks: bool = Field(default=True, description="False: hide keys and guard, but trace nothing: there is no draft.")


class CaptureState(Record):
    """``capture.json``: the plugin's heartbeat and counters since the engine started."""

    boot: str
    ok: bool
    error: str = ""
    probe_records: int = 0
    captured_records: int = 0
    dropped_records: int = 0
    errors: int = Field(default=0, description="Exceptions inside hooks: each cost one batch's records.")
    requests: int = 0
    answer_tokens: int = 0
    shards_written: int = 0
    shards_dropped: int = 0
    updated: Timestamp


class EngineState(Record):
    """``engine.json``: the launcher's word that the engine of this boot is up and captures."""

    boot: str
    ready: bool
    started: Timestamp
    mode: EngineMode = EngineMode.DRAFT
    order: str = Field(default="", description="The order that this start obeys.")
    machine: Machine | None = None


class ModeOrder(Record):
    """``mode.json``: the agent's order to the launcher. A new one ends the engine; its container starts it anew."""

    mode: EngineMode = EngineMode.DRAFT
    order: str = Field(default="", description="Random: the same mode ordered again is another start.")


class Withdrawal(Record):
    """``withdrawal.json``: the pod is withdrawn to measure on it. Its absence is what lets the pod be ready.

    ``version``, ``digest`` and ``checksum`` are of the draft to go back to, ``current``, as the engine of ``boot`` held
    it. Written before any trial; removed when the engine was seen to hold that draft again.
    """

    measurement: str
    drained: bool = False
    boot: str
    version: int
    digest: Sha256
    checksum: str
    trial_boot: str = Field(default="", description="The engine that may hold a draft which has earned nothing.")
    pass_sha256: Sha256 = Field(description="Of the pass that the measurement's requests carry: no secret itself.")


def pass_digest(token: str, measurement: str) -> str:
    """What :class:`Withdrawal` keeps of a measurement's pass."""
    return hashlib.sha256(measurement_pass(token, measurement).encode()).hexdigest()


@dataclass(frozen=True)
class PodFolder:
    """Paths in the folder that the containers of a pod share."""

    path: Path

    @property
    def drafts(self) -> Path:
        return self.path / "drafts"

    @property
    def current(self) -> Path:
        """Symlink to the folder of the draft that the engine starts with."""
        return self.drafts / "current"

    @property
    def spool(self) -> Path:
        return self.path / "spool"

    @property
    def lineage(self) -> Path:
        return self.path / "lineage.json"

    @property
    def capture(self) -> Path:
        return self.path / "capture.json"

    @property
    def engine(self) -> Path:
        return self.path / "engine.json"

    @property
    def mode(self) -> Path:
        return self.path / "mode.json"

    @property
    def withdrawal(self) -> Path:
        return self.path / "withdrawal.json"

    @property
    def ending(self) -> Path:
        """There while the launcher was told to end: SGLang answers what it has, and nothing new comes."""
        return self.path / "ending"

    def ordered(self) -> ModeOrder:
        """How the engine is to run: with the draft, unless ordered otherwise."""
        try:
            return ModeOrder.from_json(self.mode.read_bytes())
        except FileNotFoundError:
            return ModeOrder()

    def withdrawn(self) -> Withdrawal | None:
        try:
            return Withdrawal.from_json(self.withdrawal.read_bytes())
        except FileNotFoundError:
            return None

    def engine_state(self) -> EngineState | None:
        try:
            return EngineState.from_json(self.engine.read_bytes())
        except FileNotFoundError:
            return None


def new_boot() -> str:
    """A random id of one engine start; later ids sort after earlier ones, so that shards sort by age."""
    return f"{int(time.time()):08x}{secrets.token_hex(4)}"


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path``; a reader sees the old bytes or the new."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        part.write_bytes(data)
        part.chmod(0o644)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
